"""globus-batch-download.py, "the queue": asked one question each POLL_SECONDS; silence, nonsense
and foreign lines change nothing; what is ours is known by id and name."""
import os
import shutil
import signal
import subprocess

import pytest
from conftest import (
    BATCH,
    HOLD,
    KEEP,
    begun,
    calls_of,
    copy_downloads,
    count_events,
    end,
    hold,
    kill,
    last_line,
    processed,
    put_before,
    queued,
    state_of,
    wait_for,
    wait_until,
)
from in_process import Played, load

read = load("globus-batch-download")
HEADING = read.SLURM_HEADING + "\n"


# ---- questions and answers ----


def test_the_queue_is_asked_once_each_poll_seconds(played):
    played.start("a", POLL_SECONDS=2)
    begun = played.now
    while played.now < begun + 21:
        played.step()
    assert len(played.called("squeue")) == 11


# name: what an answer (exit status, stdout, stderr) is replaced with
ANSWERS = {
    "fails": lambda status, out, err: (1, "", "Unable to contact slurm controller"),
    "prints nothing": lambda status, out, err: (0, "", ""),
    "prints half a line": lambda status, out, err: (0, out[:-7], ""),
    "prints nonsense": lambda status, out, err: (0, "maintenance today\n", ""),
    "hangs": lambda status, out, err: (None, "", "squeue did not answer within 60 s"),
}


@pytest.mark.parametrize("kind", ["slurm", "pbs", "sge"])
@pytest.mark.parametrize("fault", ANSWERS)
def test_no_job_is_given_up_while_the_queue(fault, kind, tmp_path, monkeypatch):
    played = Played(tmp_path, monkeypatch, kind)
    played.start("a", "b").step()
    command = played.scheduler.queue[0]
    played.plays[command] = lambda words: ANSWERS[fault](*played.list(words))
    for job in played.jobs.values():
        job.begin(0)
    played.poll(10)  # longer than GRACE_SECONDS
    assert played.text().count("Asking again") == 1 and played.count("closed") == 0
    for job in played.jobs.values():
        job.report()
        job.end()
    played.plays[command] = played.list
    assert played.finish() == (2, 0) and played.count("submit") == 2


@pytest.mark.long
def test_no_job_is_lost_by_answers_of_all_these_kinds(copying, emulator, tmp_path):
    """Also in a partition that squeue hides from a user who is not root."""
    emulator.add({"a": b"1"})
    put_before(copying, tmp_path, "squeue", "n=1; until mkdir $0.$n 2>/dev/null; do n=$((n + 1));",
               'done; touch "$STAND_IN_DIR/../polls.$n"', "case $n in",
               '2) echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1 ;;',
               '3) exit 0 ;; 4) "$real" "$@" | head -c -7; exit ;;',
               "5) echo maintenance today; exit ;; 6) exec sleep 100 ;; esac",
               '[[ "$*" = *--all* ]] && [ -z "$SQUEUE_NAMES" ] && exec "$real" "$@"',
               "echo 'JOBID|NAME|STATE|REASON'")
    copying.edit(BATCH, "QUEUE_SECONDS = 60", "QUEUE_SECONDS = 0.5")
    copying.env["SQUEUE_NAMES"] = "of_theirs"
    copying.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.2")
    copying.process("until [ -e %s/polls.9 ]; do sleep 0.1; done" % tmp_path, *KEEP)
    done = copying.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
    assert "ended early" not in done.err and count_events(copying, "submit") == 1
    for words in ("slurm_load_jobs error: Unable to contact slurm controller",
                  "squeue did not answer within 0.5 s"):
        assert "The scheduler does not answer (squeue: %s)" % words in done.err


def test_a_filter_of_squeue_in_the_environment_hides_no_job(real_slurm, emulator):
    emulator.add({"a": b"1"})
    copy_downloads(real_slurm).config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    real_slurm.env["SQUEUE_NAMES"] = "of_theirs"
    real_slurm.process("sleep 2", *KEEP)
    assert last_line(real_slurm.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_a_filter_of_qstat_in_the_home_folder_hides_no_job(real_sge, emulator, tmp_path):
    emulator.add({"a": b"1"})
    (real_sge.home / ".sge_qstat").write_text("-s r\n")
    put_before(copy_downloads(real_sge), tmp_path, "qsub", 'exec "$real" -h "$@"')
    real_sge.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    driver = real_sge.start(BATCH)
    wait_until(lambda: b"the scheduler says of 1 job: " in driver.stderr.readline())
    subprocess.run(["qrls", driver.stderr.readline().split()[-1]], env=real_sge.env, check=True,
                   stdout=subprocess.DEVNULL)
    assert driver.communicate()[0].endswith(b"1 processed, 0 failed, 0 not needed\n")


FOREIGN = {
    "a name with a line feed": ("slurm", lambda out: out + "7|two\nlines|RUNNING|None\n"),
    "a notice before the heading": ("slurm", lambda out: "Maintenance on Tuesday\n" + out),
    "a notice of PBS": ("pbs", lambda out: "Maintenance on Tuesday\n" + out),
    "a comment with many lines": ("pbs", lambda out: (out or "---\n") + (
        "99.pbshost root workq theirs -- 1 1 -- -- Q --\n   no licence\nasked for: 3\n\n"
        "9 there are\n")),
    "a name that is no XML": ("sge", lambda out: out.replace(
        "<queue_info>", "<queue_info>\n<job_list><JB_name>\x01</JB_name></job_list>")),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_lines_hide_neither_jobs_nor_that_one_is_gone(name, tmp_path, monkeypatch):
    kind, change = FOREIGN[name]
    played = Played(tmp_path, monkeypatch, kind)
    played.start("a", "b").step()
    played.plays[played.scheduler.queue[0]] = lambda words: (
        (0, change(played.list(words)[1]), "") if words == played.scheduler.queue else
        played.list(words))
    for job in played.jobs.values():
        job.begin(0)
    played.poll()
    played.jobs["1000"].die()  # the queue of Slurm lists it as ended; it is begun once more
    played.poll(8)
    assert "does not answer" not in played.text()
    assert (played.count("submit") == 3) if kind == "slurm" else (
        "the job was lost: no exit status, and it is not in the queue any more"
        in played.driver.failures["a"].words)
    assert played.driver.state.packs[name_of(played, "1001")].is_submitted


def name_of(played, number):
    """The pack of a job."""
    return os.path.basename(str(played.jobs[number].folder))


@pytest.mark.parametrize("has_begun", [False, True])
@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_a_job_that_seems_to_have_ended_at_one_look_only_is_not_given_up(
        kind, has_begun, tmp_path, monkeypatch):
    """As while a scheduler restarts, or submits it again by itself."""
    played = Played(tmp_path, monkeypatch, kind)
    played.start("a", GRACE_SECONDS=0).step()
    job = played.jobs["1000"]
    if has_begun:
        job.begin(0)
    state = job.state
    for _ in range(3):
        job.state = "FAILED"
        played.poll()
        job.state = state
        played.poll()
    assert played.count("closed") == 0 and "early" not in played.text()


def test_a_job_on_a_line_that_cannot_be_read_is_not_lost(played):
    played.start("a", GRACE_SECONDS=0).step()
    played.jobs["1000"].begin(0)
    played.plays["squeue"] = lambda words: (
        0, played.list(words)[1].replace("|RUNNING|None", " RUNNING/"), "")
    played.poll(5)
    assert played.count("closed") == 0 and "early" not in played.text()
    played.plays["squeue"] = lambda words: (0, HEADING, "")
    played.poll(3)
    assert played.count("closed") == 1


def test_a_killed_job_that_is_stuck_in_completing_is_told_and_does_not_hold_its_slot(played):
    played.start("a", "b", NUM_JOBS=1).step()
    played.jobs["1000"].begin(0)
    played.poll()
    played.jobs["1000"].die("COMPLETING")
    played.poll(4)  # it may still report
    assert played.count("closed") == 0
    assert played.finish() == (1, 1)
    assert played.driver.failures["a"].words == (
        "the job was lost: no exit status, and the scheduler says COMPLETING")
    assert played.processed == {"b": 1} and not played.called("scancel")


def test_the_last_word_on_a_job_that_was_stopped_is_waited_for_while_its_node_lets_go(played):
    played.start("a").step()
    played.jobs["1000"].begin(0)
    played.jobs["1000"].end(140, "COMPLETING")
    played.poll(3)
    assert played.count("closed") == 0
    played.jobs["1000"].state = "TIMEOUT"
    played.poll()
    assert played.driver.failures["a"].words == (
        "time limit reached: raise the time in RESOURCES")


def test_a_job_that_has_ended_and_that_the_queue_lists_for_ever_holds_its_slot_for_a_while_only(
        played):
    played.start("a", "b", NUM_JOBS=1).step()
    played.jobs["1000"].begin(0)
    played.jobs["1000"].report()
    played.jobs["1000"].end(state="RUNNING")
    played.poll(4)
    assert played.count("submit") == 1
    assert played.finish() == (2, 0)
    said = [text for text in played.said if text.startswith("The scheduler still lists")]
    assert said == ["The scheduler still lists jobs that ended a while ago: 1000. No slot is held "
                    "for them any more."]


# ---- what is ours ----


def test_jobs_of_other_users_and_other_runs_are_not_mistaken_for_ours(played):
    played.start("a", "b", "c").step()
    played.plays["squeue"] = lambda words: (0, HEADING + "".join(
        ["1|g1.1-abcde|PENDING|JobHeldAdmin\n2|a job of theirs|RUNNING|\n", *(
            "5|%s-2|PENDING|Priority\n6|x%s|PENDING|None\n" % (job.name, job.name)
            for job in played.jobs.values())]) + played.list(words)[1][len(HEADING):], "")
    for job in played.jobs.values():
        job.begin(0)
    played.poll(10)
    assert "No job is running" not in played.text() and "early" not in played.text()
    played.plays["squeue"] = lambda words: (0, HEADING + "".join(
        "5|%s-2|PENDING|Priority\n" % job.name for job in played.jobs.values()), "")
    played.poll(8)
    assert len(played.driver.failures) == 3  # they are gone, whatever jobs have similar names
    assert not played.called("scancel")


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_a_job_that_its_owner_renamed_is_not_lost_and_not_cancelled(kind, tmp_path, monkeypatch):
    played = Played(tmp_path, monkeypatch, kind)
    played.start("a").step()
    job = played.jobs["1000"]
    job.begin(0)
    job.name = "of-mine"
    played.poll(10)
    name = "1000" if kind == "slurm" else "1000.pbshost"
    assert played.text().count("Job %s is called of-mine by now; " % name) == 1
    job.report()
    job.end()
    assert played.finish() == (1, 0)
    assert "early" not in played.text() and not played.called(played.scheduler.cancel[0])
    assert played.count("submit") == 1


@pytest.mark.parametrize("names,cancelled", [
    ({}, ["1001", "1002"]), ({"1002": lambda name: "a job of theirs"}, ["1001"]),
    ({"1001": lambda name: name + "-2", "1002": lambda name: name + "-2"}, [])])
def test_a_job_of_another_name_is_not_cancelled_whatever_its_id(names, cancelled, played):
    """When the run is halted, all jobs that have not begun are cancelled, by one command."""
    played.start("a", "b", "c", "d", MAX_FAILURES_IN_A_ROW=1).step()
    for number, name in names.items():
        played.jobs[number].name = name(played.jobs[number].name)
    played.jobs["1000"].begin(0)
    played.jobs["1000"].report(status=3)
    played.jobs["1000"].end(1)
    played.step()
    assert "STOPPING: " in played.text()
    assert played.called("scancel") == [["scancel", *cancelled]] * bool(cancelled)
    assert not any(played.jobs[number].begin() for number in ("1001", "1002"))


def test_a_job_with_an_id_that_was_ours_is_not_cancelled_by_a_driver_that_resumes(played):
    """As where a server that was set up anew counts from the beginning again."""
    played.start("a", GRACE_SECONDS=0, MAX_FAILURES_IN_A_ROW=1).step()
    played.kill()
    played.jobs["1000"].name = "theirs"
    played.start().poll(8)
    assert not played.called("scancel") and played.count("submit") == 1
    played.jobs["1000"].state = "COMPLETED"
    played.poll(4)
    assert not played.called("scancel")


@pytest.mark.parametrize("state", ["RUNNING", "PENDING"])
def test_an_unrelated_job_with_the_id_of_ours_is_not_cancelled_when_the_run_is_halted(
        state, played):
    played.start("a", "b", MAX_FAILURES_IN_A_ROW=1).step()
    played.jobs["1000"].begin(0)
    played.kill()
    played.jobs["1000"].name, played.jobs["1000"].state = "theirs", state
    played.start()
    played.jobs["1001"].begin(0)
    played.jobs["1001"].report(status=3)
    played.jobs["1001"].end(1)
    played.poll(4)
    assert "STOPPING: " in played.text() and not played.called("scancel")
    played.module.report_stop(played.driver)
    assert "To cancel: " not in played.text()


@pytest.mark.long
def test_an_unrelated_job_with_the_id_of_ours_is_never_cancelled(copying, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    copying.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3", "MAX_FAILURES_IN_A_ROW = 2")
    copying.process(*HOLD, '[ -e fixed ] || [ "$GLOBUS_NAME" = a ] || exit 3', *KEEP)
    calls = calls_of(copying, tmp_path, "scancel")
    held, waits = hold(copying, "a"), [hold(copying, "b"), hold(copying, "c")]
    driver = copying.start(BATCH)
    wait_until(lambda: len(begun(copying)) == len(queued(copying)) == 3)
    kill(driver)
    # The controller is set up afresh: no job is left, and ids begin again.
    for folder in list((tmp_path / "stand-in").iterdir()):
        os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)
        shutil.rmtree(str(folder))
    for path in [held, *waits]:
        path.unlink()
    theirs = subprocess.run(["sbatch", "--parsable", "--job-name", "theirs"], env=copying.env,
                            input=b"#!/bin/bash\nsleep 1000\n", stdout=subprocess.PIPE, check=True)
    assert theirs.stdout == b"1000\n"
    driver = copying.start(BATCH)
    wait_for(driver, "STOPPING")  # b and c have failed
    driver.send_signal(signal.SIGINT)
    last, status, said = end(driver)
    assert status == 130, said
    assert not any("1000" in call for call in calls())
    assert state_of(tmp_path, 1000) == "RUNNING"
    subprocess.run(["scancel", "1000"], env=copying.env, check=True)  # its owner
    (copying.folder / "fixed").touch()
    done = copying.run(BATCH)
    assert last_line(done) == "3 processed, 0 failed, 0 not needed", done.err
    assert processed(copying) == {"a": 1, "b": 1, "c": 1}
    assert len(calls()) == 1


def test_a_stop_prints_no_command_that_would_cancel_a_job_of_another_name(played):
    played.start("a", "b").step()
    played.jobs["1000"].name = "theirs"
    played.poll()
    played.module.report_stop(played.driver)
    assert "To cancel: scancel 1001\n" in played.text()



def test_pbs_that_greets_where_there_are_no_jobs_is_asked_to_take_one_again(tmp_path, monkeypatch):
    played = Played(tmp_path, monkeypatch, "pbs").start("a")
    played.plays["qstat"] = lambda command: (0, "Welcome to the cluster\n", "")
    played.plays["qsub"] = lambda command: (1, "", "qsub: busy")
    played.poll(2)
    played.plays.update(qsub=played.accept, qstat=played.list)
    assert played.finish() == (1, 0) and "does not answer" not in played.text()
