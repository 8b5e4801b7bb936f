"""Jobs that their scheduler stops, and the driver that is stopped or killed and started again."""
import signal
import subprocess
import time

import pytest
from conftest import (
    BATCH,
    KEEP,
    contents,
    journal,
    last_line,
    load,
    processed,
    put_before,
    wait_until,
)

DRIVER = load("globus-batch-download")

# process.sh, killing the job's script, which is its parent
DIE = "touch killed; kill -KILL $PPID $$"


def queued(site):
    """The ids of the jobs that were accepted, in order."""
    return [event["id"] for event in journal(site) if event["event"] == "queued"]


def cancel_last_job(site):
    command = "scancel" if site.scheduler == "slurm" else "qdel"
    subprocess.run([command, queued(site)[-1]], env=site.env, check=True,
                   stdout=subprocess.DEVNULL)


def slow_download(site, emulator, bytes_per_second):
    """A driver whose only job is in the middle of its download."""
    emulator.add({"a": b"x" * 2000000})
    emulator.bend(bytes_per_second=bytes_per_second)
    site.process(*KEEP)
    driver = site.start(BATCH)
    wait_until(lambda: site.downloaded().get("a"))
    return driver


def check_taken_over(site, emulator, driver):
    """The next attempt went on with the task of the first one, and nothing is left."""
    submitted = "POST /v0.10/transfer"
    wait_until(lambda: sum(submitted in line for line in emulator.requests()) == 2, 150)
    emulator.bend(bytes_per_second=None)
    out, err = driver.communicate(timeout=300)
    assert out.endswith(b"1 processed, 0 failed, 0 not needed\n"), out + err
    assert driver.returncode == 0
    assert len(queued(site)) == 2
    task, = emulator.tasks()
    assert task["status"] == "SUCCEEDED"
    assert processed(site) == {"a": 1}
    assert contents(site.folder / "out") == {"a": b"x" * 2000000}
    assert list(site.downloads.iterdir()) == []


def test_the_task_of_a_cancelled_job_is_taken_over_by_the_next_attempt(every_cluster, emulator):
    driver = slow_download(every_cluster, emulator, 50000)
    cancel_last_job(every_cluster)
    check_taken_over(every_cluster, emulator, driver)


@pytest.mark.timeout(600)
def test_so_is_that_of_a_job_that_reaches_its_walltime(real_cluster, emulator):
    # Slurm's limits are whole minutes.
    real_cluster.config("RESOURCES = %r" % {"slurm": "--time=1", "sge": "-l h_rt=10"}[
        real_cluster.scheduler])
    driver = slow_download(real_cluster, emulator, {"slurm": 20000, "sge": 130000}[
        real_cluster.scheduler])
    check_taken_over(real_cluster, emulator, driver)


def test_that_of_a_job_that_was_cancelled_while_no_driver_ran_is_taken_over_too(
        every_cluster, emulator):
    driver = slow_download(every_cluster, emulator, 50000)
    driver.kill()
    driver.communicate()
    cancel_last_job(every_cluster)
    check_taken_over(every_cluster, emulator, every_cluster.start(BATCH))


def test_a_job_cancelled_in_process_sh_is_a_failure_that_keeps_its_file(every_cluster, emulator):
    """Slurm says that the job was cancelled; with the others it may as well have been preempted, so
    that the file is begun once more."""
    emulator.add({"a": b"1"})
    every_cluster.process("echo >>begun; sleep 100")
    begun, is_told = every_cluster.folder / "begun", every_cluster.scheduler == "slurm"
    driver = every_cluster.start(BATCH)
    for number in range(1 if is_told else 2):
        wait_until(lambda number=number: begun.exists()
                   and begun.read_text().count("\n") == number + 1)
        wait_until(lambda number=number: len(queued(every_cluster)) == number + 1)
        cancel_last_job(every_cluster)
    out = driver.communicate(timeout=300)[0].decode()
    assert driver.returncode == 1
    assert out.splitlines()[-1] == "0 processed, 1 failed, 0 not needed"
    assert ("FAILED a: the job was cancelled" if is_told else
            "FAILED a: killed twice while it was processed: ") in out
    assert begun.read_text().count("\n") == (1 if is_told else 2)
    assert every_cluster.downloaded() == {"a": b"1"}
    every_cluster.process(*KEEP)
    assert last_line(every_cluster.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert len(emulator.tasks()) == 1


def alive(site):
    """The names of those jobs of this run that the scheduler still lists."""
    scheduler = DRIVER.SCHEDULERS[site.scheduler]
    text = subprocess.check_output(scheduler.queue, env=site.env).decode()
    run = next(event["run"] for event in journal(site) if event["event"] == "run")
    return [entry.name for entry in scheduler.parse_queue(text)
            if entry.name.endswith("-" + run) and entry.state != "ended"]


def test_a_job_killed_while_no_driver_ran_comes_again_or_where_the_queue_does_not_tell_is_lost(
        every_cluster, emulator):
    emulator.add({"a": b"1"})
    every_cluster.config("GRACE_SECONDS = 1")
    every_cluster.process("if mkdir first; then until [ -e go ]; do sleep 0.1; done", DIE, "fi",
                          *KEEP)
    driver = every_cluster.start(BATCH)
    wait_until((every_cluster.folder / "first").exists)
    driver.kill()
    driver.communicate()
    (every_cluster.folder / "go").touch()
    wait_until((every_cluster.folder / "killed").exists)
    wait_until(lambda: not alive(every_cluster))
    done = every_cluster.run(BATCH)
    assert "Resuming the interrupted run" in done.err
    if every_cluster.scheduler not in ("slurm", "torque"):  # which list it as ended
        assert done.returncode == 1
        assert last_line(done) == "0 processed, 1 failed, 0 not needed"
        assert "FAILED a: the job was lost: no exit status" in done.out
        assert not processed(every_cluster)
        done = every_cluster.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
    assert processed(every_cluster) == {"a": 1}
    assert len(emulator.tasks()) == 1


@pytest.mark.parametrize("has_driver", [True, False], ids=["with a driver", "without"])
def test_a_job_that_had_not_begun_when_it_was_cancelled_is_submitted_again(
        has_driver, every_cluster, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(every_cluster, tmp_path,
               "sbatch" if every_cluster.scheduler == "slurm" else "qsub",
               'mkdir "$0.first" || exec "$real" "$@"',
               'cat >/dev/null; printf "#!/bin/bash\\nsleep 100\\n" | "$real" "$@"')
    every_cluster.config("GRACE_SECONDS = 1")
    every_cluster.process(*KEEP)
    driver = every_cluster.start(BATCH)
    wait_until(lambda: queued(every_cluster))
    if not has_driver:
        driver.kill()
        driver.communicate()
    cancel_last_job(every_cluster)
    if not has_driver:
        driver = every_cluster.start(BATCH)
    assert driver.communicate(timeout=300)[0].endswith(b"1 processed, 0 failed, 0 not needed\n")
    assert processed(every_cluster) == {"a": 1} and len(queued(every_cluster)) == 2


@pytest.mark.long
def test_ctrl_c_during_a_submission_tells_of_a_job_that_may_be_there(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "sbatch", 'touch "$0.begun"; sleep 4; exec "$real" "$@"')
    stand_in.process(*KEEP)
    driver = stand_in.start(BATCH)
    wait_until((tmp_path / "before" / "sbatch.begun").exists)
    driver.send_signal(signal.SIGINT)
    time.sleep(0.5)  # two at once would be one
    driver.send_signal(signal.SIGINT)
    err = driver.communicate()[1].decode()
    assert driver.returncode == 130
    assert "1 job left in the queue (1 not yet confirmed)" in err
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1}
