"""globus-batch-download.py, "the driver": a job that ends early (killed, preempted, cancelled, over
its walltime) is submitted again by itself, and costs a file only what is its own doing."""
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
    copy_downloads,
    count_events,
    journal,
    kinds,
    last_line,
    processed,
    put_before,
    queued,
    wait_until,
)
from in_process import Played, load

DRIVER = load("globus-batch-download")
EVERY_KIND = pytest.mark.parametrize("kind", DRIVER.SCHEDULERS)


def on(stand_ins, real):
    """Where a test is to run, for the fixture cluster."""
    return pytest.mark.parametrize("cluster", kinds(stand_ins, real), indirect=True)


# ---- while it waits ----


def cancel_last_job(site):
    command = "scancel" if site.scheduler == "slurm" else "qdel"
    subprocess.run([command, queued(site)[-1]], env=site.env, check=True,
                   stdout=subprocess.DEVNULL)


@on(["slurm"], ["slurm", "sge"])
def test_a_job_that_had_not_begun_when_it_was_cancelled_is_submitted_again(
        cluster, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(copy_downloads(cluster), tmp_path,
               "sbatch" if cluster.scheduler == "slurm" else "qsub",
               'mkdir "$0.first" || exec "$real" "$@"',
               'cat >/dev/null; printf "#!/bin/bash\\nsleep 100\\n" | "$real" "$@"')
    cluster.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.5")
    cluster.process(*KEEP)
    driver = cluster.start(BATCH)
    wait_until(lambda: queued(cluster))
    cancel_last_job(cluster)
    assert driver.communicate(timeout=300)[0].endswith(b"1 processed, 0 failed, 0 not needed\n")
    assert processed(cluster) == {"a": 1} and len(queued(cluster)) == 2


@EVERY_KIND
@pytest.mark.parametrize("has_driver", [True, False], ids=["with a driver", "without"])
@pytest.mark.parametrize("is_forgotten", [False, True])
def test_pending_jobs_that_are_cancelled_fail_no_file_and_do_not_halt_the_run(
        is_forgotten, has_driver, kind, tmp_path, monkeypatch):
    """Whether the scheduler still lists them or, after some minutes, has forgotten them."""
    played = Played(tmp_path, monkeypatch, kind)
    played.start("a", "b", "c", FILES_PER_JOB=2, NUM_JOBS=2).step()
    for jobs in (2, 4):
        assert len(played.jobs) == jobs or is_forgotten
        if not has_driver:
            played.kill()
        for number in list(played.jobs):
            played.jobs[number].die("CANCELLED")
            if is_forgotten:
                del played.jobs[number]
        if not has_driver:
            played.start(MAX_FAILURES_IN_A_ROW=2)
        played.poll(7)
        assert played.count("submit") == jobs + 2
    assert played.finish() == (3, 0)
    assert played.processed == {"a": 1, "b": 1, "c": 1}
    assert "FAILED" not in played.text() and "STOPPING" not in played.text()


def test_pending_jobs_that_are_cancelled_are_told_without_blame(played):
    played.start("a", "b", "c", "d", MAX_FAILURES_IN_A_ROW=2).step()
    for _ in range(2):
        for job in played.jobs.values():
            job.die("CANCELLED")
        played.poll(3)
    assert played.finish() == (4, 0)
    assert "STOPPING" not in played.text() and "compute nodes" not in played.text()
    assert "ended early: the job was cancelled." in played.text()


def test_a_job_that_never_began_is_told_at_once_without_a_log_that_is_not_there(played, capfd):
    played.start("a", GRACE_SECONDS=1000, MAX_FAILURES_IN_A_ROW=2).step()
    for _ in range(2):
        played.jobs.popitem()[1].die()
        played.plays["squeue"] = lambda command: (
            0, DRIVER.SLURM_HEADING + "\n%d|g1.%d-%s|FAILED|JobLaunchFailure\n" % (
                played.number - 1, played.number - 1000, played.driver.state.run), "")
        played.poll(3)
    words = ("the job never started: the scheduler says FAILED, JobLaunchFailure. Can the compute "
             "nodes see, and write, WORKING_DIR?")
    assert played.text().count("ended early: " + words) == 1
    assert "STOPPING: 2 files or jobs failed in a row" in played.text()
    assert "2 of them with: the job never started: the scheduler says FAILED, Job" in played.text()
    played.module.print_summary(played.driver)
    out = capfd.readouterr().out
    assert "0 processed, 0 failed" in out and "/log" not in played.text() + out


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


@on(["slurm"], ["sge"])
def test_the_task_of_a_cancelled_job_is_taken_over_by_the_next_attempt(cluster, emulator):
    driver = slow_download(cluster, emulator, 50000)
    cancel_last_job(cluster)
    check_taken_over(cluster, emulator, driver)


@pytest.mark.timeout(600)
def test_so_is_that_of_a_job_that_reaches_its_walltime(real_cluster, emulator):
    # Slurm's limits are whole minutes.
    real_cluster.config("RESOURCES = %r" % {"slurm": "--time=1", "sge": "-l h_rt=10"}[
        real_cluster.scheduler])
    driver = slow_download(real_cluster, emulator, {"slurm": 20000, "sge": 130000}[
        real_cluster.scheduler])
    check_taken_over(real_cluster, emulator, driver)


@pytest.mark.long
@on(["pbs"], ["slurm"])
def test_that_of_a_job_that_was_cancelled_while_no_driver_ran_is_taken_over_too(
        cluster, emulator):
    driver = slow_download(cluster, emulator, 50000)
    driver.kill()
    driver.communicate()
    cancel_last_job(cluster)
    check_taken_over(cluster, emulator, cluster.start(BATCH))


@EVERY_KIND
def test_a_job_that_is_cancelled_while_its_download_is_stuck_says_what_it_was_stuck_at(
        kind, tmp_path, monkeypatch):
    played = Played(tmp_path, monkeypatch, kind)
    played.start("a").step()
    job = played.jobs["1000"]
    job.begin()
    (job.folder / "waiting").write_text("the collection's server is too busy  (task 1)")
    job.end(143, "CANCELLED")
    played.poll(2)
    words = {"slurm": "the job was cancelled"}.get(kind, "ended by signal 15" + (
        " (state C)" if kind == "torque" else ""))
    assert ("ended early: %s, while it waited: the collection's server is too busy" % words
            in played.text())
    (job.folder / "waiting").unlink()
    assert played.finish() == (1, 0)


# ---- in process.sh ----


@on(["slurm"], ["slurm", "sge"])
@pytest.mark.long
def test_a_job_cancelled_in_process_sh_is_a_failure_that_keeps_its_file(cluster, emulator):
    """Slurm says that the job was cancelled; with the others it may as well have been preempted, so
    that the file is begun once more."""
    emulator.add({"a": b"1"})
    cluster.process("echo >>begun; sleep 100")
    begun, is_told = cluster.folder / "begun", cluster.scheduler == "slurm"
    driver = cluster.start(BATCH)
    for number in range(1 if is_told else 2):
        wait_until(lambda number=number: begun.exists()
                   and begun.read_text().count("\n") == number + 1)
        wait_until(lambda number=number: len(queued(cluster)) == number + 1)
        cancel_last_job(cluster)
    out = driver.communicate(timeout=300)[0].decode()
    assert driver.returncode == 1
    assert out.splitlines()[-1] == "0 processed, 1 failed, 0 not needed"
    assert ("FAILED a: the job was cancelled" if is_told else
            "FAILED a: killed twice while it was processed: ") in out
    assert begun.read_text().count("\n") == (1 if is_told else 2)
    assert cluster.downloaded() == {"a": b"1"}
    cluster.process(*KEEP)
    assert last_line(cluster.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert len(emulator.tasks()) == 1


@EVERY_KIND
def test_a_job_cancelled_in_process_sh_fails_where_the_queue_tells_and_else_at_the_second_time(
        kind, tmp_path, monkeypatch):
    played = Played(tmp_path, monkeypatch, kind)
    played.start("a").step()
    times, words = {
        "slurm": (1, "the job was cancelled"),
        "torque": (2, "killed twice while it was processed: ended by signal 15 (state C)"),
    }.get(kind, (2, "killed twice while it was processed: ended by signal 15"))
    for number in range(1000, 1000 + times):
        job = played.jobs[str(number)]
        job.begin(0)
        job.end(143, "CANCELLED")
        played.poll(3)
    assert played.driver.failures["a"].words == words and len(played.jobs) == times
    assert played.finish() == (0, 1)


def alive(site):
    """The names of those jobs of this run that the scheduler still lists."""
    scheduler = DRIVER.SCHEDULERS[site.scheduler]
    text = subprocess.check_output(scheduler.queue, env=site.env).decode()
    run = next(event["run"] for event in journal(site) if event["event"] == "run")
    return [entry.name for entry in scheduler.parse_queue(text)
            if entry.name.endswith("-" + run) and entry.state != "ended"]


@on(["slurm"], ["sge"])
def test_a_job_killed_while_no_driver_ran_comes_again_or_where_the_queue_does_not_tell_is_lost(
        cluster, emulator):
    emulator.add({"a": b"1"})
    cluster.config("GRACE_SECONDS = 1")
    cluster.process("if mkdir first; then until [ -e go ]; do sleep 0.1; done", DIE, "fi", *KEEP)
    driver = cluster.start(BATCH)
    wait_until((cluster.folder / "first").exists)
    driver.kill()
    driver.communicate()
    (cluster.folder / "go").touch()
    wait_until((cluster.folder / "killed").exists)
    wait_until(lambda: not alive(cluster))
    done = cluster.run(BATCH)
    assert "Resuming the interrupted run" in done.err
    if cluster.scheduler != "slurm":  # which lists it as ended
        assert done.returncode == 1
        assert last_line(done) == "0 processed, 1 failed, 0 not needed"
        assert "FAILED a: the job was lost: no exit status" in done.out
        assert not processed(cluster)
        done = cluster.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
    assert processed(cluster) == {"a": 1}
    assert len(emulator.tasks()) == 1


@EVERY_KIND
@pytest.mark.parametrize("has_driver", [True, False], ids=["with a driver", "without"])
def test_a_job_that_is_killed_at_work_comes_again_or_where_the_queue_does_not_tell_is_lost(
        has_driver, kind, tmp_path, monkeypatch):
    played = Played(tmp_path, monkeypatch, kind)
    played.start("a").step()
    if not has_driver:
        played.kill()
    played.jobs["1000"].begin(0)
    played.jobs["1000"].die()
    if not has_driver:
        played.start()
    if kind in ("slurm", "torque"):
        assert played.finish() == (1, 0) and played.processed == {"a": 1}
        return
    # PBS and Grid Engine show no job that has ended: it may live on, and is not begun again.
    played.poll(4)
    assert not played.driver.failures
    assert played.finish() == (0, 1)
    assert played.driver.failures["a"].words == (
        "the job was lost: no exit status, and it is not in the queue any more")
    played.kill()
    assert played.start().finish() == (1, 0)


@pytest.mark.parametrize("kind,words", [("slurm", "FAILED"), ("torque", "state C")])
def test_a_job_that_is_killed_twice_at_work_is_a_failure_in_the_schedulers_words(
        kind, words, tmp_path, monkeypatch):
    played = Played(tmp_path, monkeypatch, kind)
    played.start("a", "b").step()
    for number in ("1000", "1002"):
        played.jobs[number].begin(0)
        played.jobs[number].die()
        played.poll(4)
    assert played.finish() == (1, 1) and played.count("submit") == 3
    assert played.driver.failures["a"].words == (
        "killed twice while it was processed: no exit status, and the scheduler says " + words)


def test_attempts_that_needed_a_login_are_not_counted_as_fruitless(played):
    played.start("a", "b").step()
    played.jobs["1001"].work()
    played.jobs["1000"].begin()
    played.jobs["1000"].die()
    played.poll(2)
    for _ in range(20):
        played.step()
        job = list(played.jobs.values())[-1]
        job.begin()
        job.end(status=played.module.helper.NEEDS_LOGIN)
        with pytest.raises(played.module.helper.UserError):
            played.step()
        played.kill()
        played.start()
    played.step()
    list(played.jobs.values())[-1].begin()
    list(played.jobs.values())[-1].die()
    assert played.finish() == (2, 0)


@on(["slurm"], ["slurm"])
@pytest.mark.long
def test_a_file_whose_job_is_killed_once_at_work_is_processed_and_one_at_the_second_time_failed(
        cluster, emulator):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    copy_downloads(cluster).config("GRACE_SECONDS = 2", "POLL_SECONDS = 0.5")
    cluster.process('case $1 in *a) echo >>begun; %s ;;' % DIE,
                    "*c) ! mkdir once 2>/dev/null || { %s; } ;; esac" % DIE, *KEEP)
    done = cluster.run(BATCH)
    assert done.returncode == 1
    assert last_line(done) == "2 processed, 1 failed, 0 not needed"
    assert ("FAILED a: killed twice while it was processed: no exit status, and the scheduler says "
            "FAILED") in done.out
    assert done.err.count("ended early: no exit status, and the scheduler says FAILED") == 2
    assert (cluster.folder / "begun").read_text() == "\n\n"
    assert count_events(cluster, "submit") == 5 and processed(cluster) == {"b": 1, "c": 1}


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
def test_a_file_that_kills_its_job_each_time_fails_alone(where, stand_in, emulator):
    """The first one of its pack, the last one, or two in a row."""
    files, killers = emulator.add({"f%d" % n: b"%d" % n for n in range(9)}), "f0 f4 f6 f7"
    if where == "job":
        copy_downloads(stand_in)
    stand_in.config("FILES_PER_JOB = 5", "NUM_JOBS = 2", "POLL_SECONDS = 0.3",
                    "MAX_FAILURES_IN_A_ROW = None", "DOWNLOAD_BY = %r" % where)
    stand_in.process(*KILL, *HOLD, 'case " %s " in *" $GLOBUS_NAME "*) end FAILED ;; esac'
                     % killers, *KEEP)
    done = stand_in.run(BATCH)
    killers = killers.split()
    assert last_line(done) == "5 processed, 4 failed, 0 not needed", done.err
    for name in killers:
        assert "FAILED %s: killed twice while it was processed" % name in done.err
    assert begun(stand_in) == {name: 2 if name in killers else 1 for name in files}
    assert processed(stand_in) == {name: 1 for name in files if name not in killers}
    assert stand_in.downloaded() == {name: files[name] for name in killers}
