"""Jobs that their scheduler stops, and the driver that is stopped or killed and started again."""
import signal
import subprocess
import time

import pytest
from conftest import BATCH, DIE, KEEP, journal, last_line, load, processed, put_before, wait_until

DRIVER = load("globus-batch-download")


def cancel_first_job(site):
    job = next(event["id"] for event in journal(site) if event["event"] == "queued")
    command = "scancel" if site.scheduler == "slurm" else "qdel"
    subprocess.run([command, job], env=site.env, check=True, stdout=subprocess.DEVNULL)


def slow_download(site, emulator):
    """A driver whose only job is in the middle of its download."""
    emulator.add({"a": b"x" * 2000000})
    emulator.bend(bytes_per_second=20000)
    driver = site.start(BATCH)
    wait_until(lambda: site.downloaded().get("a"))
    return driver


def check_stopped(site, emulator, driver):
    """The job's end came in its exit-status file, and it left nothing at work and no part."""
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 1, err
    assert b"FAILED a: exit status 130" in out
    assert emulator.tasks()[0]["fatal_error"]["code"] == "CANCELED"
    assert site.downloaded() == {}


def test_a_cancelled_job_cancels_its_task_and_removes_the_partial_file(every_cluster, emulator):
    driver = slow_download(every_cluster, emulator)
    cancel_first_job(every_cluster)
    check_stopped(every_cluster, emulator, driver)


def test_so_does_a_job_that_reaches_its_walltime(real_cluster, emulator):
    real_cluster.config("RESOURCES = %r" % {"slurm": "--time=1", "sge": "-l h_rt=5"}[
        real_cluster.scheduler])
    driver = slow_download(real_cluster, emulator)
    check_stopped(real_cluster, emulator, driver)


def test_a_job_cancelled_in_process_sh_is_a_failure_that_keeps_its_file(every_cluster, emulator):
    emulator.add({"a": b"1"})
    every_cluster.process("touch begun; sleep 100")
    driver = every_cluster.start(BATCH)
    wait_until((every_cluster.folder / "begun").exists)
    cancel_first_job(every_cluster)
    out = driver.communicate()[0]
    assert driver.returncode == 1 and b"FAILED a: " in out
    assert every_cluster.downloaded() == {"a": b"1"}


def alive(site):
    """The names of those jobs of this run that the scheduler still lists."""
    scheduler = DRIVER.SCHEDULERS[site.scheduler]
    text = subprocess.check_output(scheduler.queue, env=site.env).decode()
    run = next(event["run"] for event in journal(site) if event["event"] == "run")
    return [name for name, entry in scheduler.parse_queue(text).items()
            if name.startswith(run + "-") and entry.state != "ended"]


def test_what_a_job_was_processing_when_it_was_lost_while_no_driver_ran_has_failed(
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
    wait_until(lambda: not alive(every_cluster))  # a driver that sees it go calls it a failure
    done = every_cluster.run(BATCH)
    assert last_line(done) == "0 processed, 1 failed, 0 not needed"
    assert "FAILED a: the job was lost: no exit status" in done.out
    assert last_line(every_cluster.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert processed(every_cluster) == {"a": 1}


def test_a_job_that_had_not_begun_when_it_was_cancelled_while_no_driver_ran_is_submitted_again(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "sbatch", 'mkdir "$0.first" || exec "$real" "$@"',
               'cat >/dev/null; echo sleep 100 | "$real" "$@"')
    stand_in.config("GRACE_SECONDS = 1")
    stand_in.process(*KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    driver.kill()
    driver.communicate()
    cancel_first_job(stand_in)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1}


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
