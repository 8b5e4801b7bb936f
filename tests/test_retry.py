"""globus-batch-download.py, "the driver": a job that ends early (killed, preempted, cancelled, over
its walltime) is submitted again by itself, and costs a file only what is its own doing."""
import re
import shutil
import signal
import subprocess

import pytest
from conftest import (
    BATCH,
    DIE,
    HOLD,
    KEEP,
    KILL,
    begun,
    contents,
    count_events,
    end,
    hold_jobs,
    journal,
    last_line,
    load,
    processed,
    put_before,
    queued,
    wait_until,
)

DRIVER = load("globus-batch-download")


# ---- while it waits ----


def cancel_last_job(site):
    command = "scancel" if site.scheduler == "slurm" else "qdel"
    subprocess.run([command, queued(site)[-1]], env=site.env, check=True,
                   stdout=subprocess.DEVNULL)


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


def test_pending_jobs_that_are_cancelled_fail_no_file_and_do_not_halt_the_run(
        stand_in, emulator, tmp_path):
    files = emulator.add({"f%02d" % n: b"x" for n in range(12)})
    stand_in.config("FILES_PER_JOB = 2", "MAX_FAILURES_IN_A_ROW = 2", "POLL_SECONDS = 0.3")
    stand_in.process(*KEEP)
    pending = hold_jobs(stand_in, tmp_path)
    (pending / "all").touch()
    driver = stand_in.start(BATCH)
    for jobs in (3, 6):
        wait_until(lambda jobs=jobs: len(queued(stand_in)) == jobs)
        subprocess.run(["scancel", *queued(stand_in)[-3:]], env=stand_in.env, check=True)
    wait_until(lambda: len(queued(stand_in)) == 9)
    (pending / "all").unlink()
    last, status, said = end(driver)
    assert (last, status) == ("12 processed, 0 failed, 0 not needed", 0), said
    assert processed(stand_in) == dict.fromkeys(files, 1)
    assert "FAILED" not in said and "STOPPING" not in said and "compute nodes" not in said
    assert "cancelled" in said


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_pending_jobs_cancelled_while_no_driver_runs_fail_no_file(
        is_forgotten, stand_in, emulator, tmp_path):
    files = emulator.add({"f%02d" % n: b"x" for n in range(6)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = 2", "POLL_SECONDS = 0.3")
    stand_in.process(*KEEP)
    pending = hold_jobs(stand_in, tmp_path)
    (pending / "all").touch()
    driver = stand_in.start(BATCH)
    wait_until(lambda: len(queued(stand_in)) == 3)
    driver.send_signal(signal.SIGINT)
    assert end(driver)[1] == 130
    subprocess.run(["scancel", *queued(stand_in)], env=stand_in.env, check=True)
    if is_forgotten:  # by the scheduler, after some minutes
        shutil.rmtree(str(tmp_path / "stand-in"))
        (tmp_path / "stand-in").mkdir()
    (pending / "all").unlink()
    stand_in.config("RESOURCES = '--time=7'")
    done = stand_in.run(BATCH)
    assert last_line(done) == "6 processed, 0 failed, 0 not needed", done.err
    assert "STOPPING" not in done.err
    assert processed(stand_in) == dict.fromkeys(files, 1)


def test_a_job_that_never_began_is_told_at_once_without_a_log_that_is_not_there(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "sbatch", 'cat >/dev/null',
               'for option; do shift; [[ $option = --output* ]] || set -- "$@" "$option"; done',
               'echo "exit 1" | "$real" "$@"')
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | sed "s/None$/JobLaunchFailure/"')
    stand_in.config("GRACE_SECONDS = 1000", "POLL_SECONDS = 0.3", "MAX_FAILURES_IN_A_ROW = 2")
    done = stand_in.run(BATCH)
    words = ("the job never started: the scheduler says FAILED, JobLaunchFailure. Can the compute "
             "nodes see, and write, WORKING_DIR?")
    assert done.returncode == 1 and done.err.count(f"ended early: {words}") == 1
    assert "STOPPING: 2 files or jobs failed in a row" in done.err
    assert "2 of them with: the job never started: the scheduler says FAILED, Job" in done.err
    assert "/log" not in done.err and "/log" not in done.out


# ---- while it downloads ----


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


def test_a_job_that_is_cancelled_while_its_download_is_stuck_says_what_it_was_stuck_at(
        stand_in, emulator):
    emulator.add({"a": b"x"})
    emulator.bend(retry_seconds=0.2, troubles=[
        {"path": "a$", "code": "ENDPOINT_TOO_BUSY"}])
    driver = stand_in.start(BATCH)
    said = [driver.stderr.readline().decode()]
    while "submitted" not in said[-1]:
        said.append(driver.stderr.readline().decode())
    wait_until(lambda: list(stand_in.jobs.glob("*/waiting")))
    subprocess.run(["scancel", re.search(r"job (\d+)", said[-1]).group(1)], check=True,
                   env=stand_in.env)
    while "ended early" not in said[-1]:
        said.append(driver.stderr.readline().decode())
    assert "while it waited: the collection's server is too busy" in said[-1]
    emulator.bend(troubles=[])
    driver.communicate()
    assert driver.returncode == 0


# ---- in process.sh ----


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


def test_a_job_that_is_killed_twice_at_work_is_a_failure_with_that_reason(every_cluster, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    every_cluster.config("GRACE_SECONDS = 2")
    every_cluster.process('case $1 in *a) echo >>begun; %s ;; esac' % DIE, *KEEP)
    done = every_cluster.run(BATCH)
    assert done.returncode == 1
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    # PBS and Grid Engine show no job that has ended: it may live on, and is not begun again.
    tries, words = {
        "slurm": (2, "killed twice while it was processed: the scheduler says FAILED"),
        "torque": (2, "killed twice while it was processed: the scheduler says state C"),
    }.get(every_cluster.scheduler, (
        1, "the job was lost: no exit status, and it is not in the queue any more"))
    assert "FAILED a: " + words in done.out
    assert (every_cluster.folder / "begun").read_text() == "\n" * tries
    assert count_events(every_cluster, "submit") == tries + 1


def test_a_job_that_is_killed_once_at_work_is_submitted_again(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process('case $1 in *a) ! mkdir once 2>/dev/null || { %s; } ;; esac' % DIE, *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed"
    assert done.err.count("ended early: the scheduler says FAILED.\n") == 1
    assert processed(stand_in) == {"a": 1, "b": 1}


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
@pytest.mark.parametrize("killers", ["f0", "f4", "f2 f3"])
def test_a_file_that_kills_its_job_each_time_fails_alone(killers, where, stand_in, emulator):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(10)})
    stand_in.config("FILES_PER_JOB = 5", "NUM_JOBS = 2", "POLL_SECONDS = 0.3",
                    "DOWNLOAD_BY = %r" % where)
    stand_in.process(*KILL, *HOLD, 'case " %s " in *" $GLOBUS_NAME "*) end FAILED ;; esac'
                     % killers, *KEEP)
    done = stand_in.run(BATCH)
    killers = killers.split()
    assert last_line(done) == "%d processed, %d failed, 0 not needed" % (
        10 - len(killers), len(killers)), done.err
    for name in killers:
        assert "FAILED %s: killed twice while it was processed" % name in done.err
    assert begun(stand_in) == {name: 2 if name in killers else 1 for name in files}
    assert processed(stand_in) == {name: 1 for name in files if name not in killers}
    assert stand_in.downloaded() == {name: files[name] for name in killers}
