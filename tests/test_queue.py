"""globus-batch-download.py, "the queue": asked one question each POLL_SECONDS; silence, nonsense
and foreign lines change nothing; what is ours is known by id and name."""
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest
from conftest import (
    ASK,
    BATCH,
    DIE,
    FIRST_TIME,
    HOLD,
    KEEP,
    begun,
    calls_of,
    count_calls,
    count_events,
    end,
    hold,
    is_begun,
    kill_with_a_job_at_work,
    last_line,
    processed,
    put_before,
    queued,
    state_of,
    wait_for,
    wait_until,
    with_stand_in,
)

# ---- questions and answers ----


def test_the_queue_is_asked_once_each_poll_seconds(stand_in, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(9)})
    questions = count_calls(stand_in, tmp_path, "squeue")
    stand_in.config("POLL_SECONDS = 2")
    stand_in.process("sleep 0.5", *KEEP)
    begun = time.monotonic()
    assert stand_in.run(BATCH).returncode == 0
    assert 1 <= questions() <= 1 + (time.monotonic() - begun) / 2


# name: what the first, the second ... answers are replaced with
ANSWERS = {
    "fails": ['echo "slurm_load_jobs error: Unable to contact slurm controller" >&2', "exit 1"],
    "prints nothing": ["exit 0"],
    "prints half a line": ['"$real" "$@" | head -c -7'],
    "prints nonsense": ["echo maintenance today"],
    "hangs": ["exec sleep 100"],
}


@pytest.mark.parametrize("fault", ANSWERS)
def test_no_job_is_given_up_while_the_queue(fault, every_cluster, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_before(every_cluster, tmp_path, ASK[every_cluster.scheduler],
               '[[ "$*" != *version* && "$*" != *help* ]] || exec "$real" "$@"',
               *ANSWERS[fault])
    if fault == "hangs":
        every_cluster.edit(BATCH, "QUEUE_SECONDS = 60", "QUEUE_SECONDS = 0.5")
    every_cluster.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    every_cluster.process("sleep 1", *KEEP)
    done = every_cluster.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed"
    assert processed(every_cluster) == {"a": 1, "b": 1}
    assert done.err.count("Asking again") <= 2  # however often it is asked
    assert "ended early" not in done.err and count_events(every_cluster, "submit") == 2


def test_jobs_in_a_partition_that_squeue_hides_are_not_lost(stand_in, emulator, tmp_path):
    """As a user who is not root meets them."""
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue", '[[ "$*" != *--all* ]] || exec "$real" "$@"',
               "echo 'JOBID|NAME|STATE|REASON'")
    stand_in.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    stand_in.process("sleep 2", *KEEP)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_a_filter_of_squeue_in_the_environment_hides_no_job(real_slurm, emulator):
    emulator.add({"a": b"1"})
    real_slurm.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    real_slurm.env["SQUEUE_NAMES"] = "of_theirs"
    real_slurm.process("sleep 2", *KEEP)
    assert last_line(real_slurm.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_a_filter_of_qstat_in_the_home_folder_hides_no_job(real_sge, emulator, tmp_path):
    emulator.add({"a": b"1"})
    (real_sge.home / ".sge_qstat").write_text("-s r\n")
    put_before(real_sge, tmp_path, "qsub", 'exec "$real" -h "$@"')
    real_sge.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    driver = real_sge.start(BATCH)
    wait_until(lambda: b"the scheduler says of 1 job: " in driver.stderr.readline())
    subprocess.run(["qrls", driver.stderr.readline().split()[-1]], env=real_sge.env, check=True,
                   stdout=subprocess.DEVNULL)
    assert driver.communicate()[0].endswith(b"1 processed, 0 failed, 0 not needed\n")


FOREIGN = {
    "a name with a line feed": ("slurm", '"$real" "$@"; echo "7|two"; echo "lines|RUNNING|None"'),
    "a notice before the heading": ("slurm", 'echo "Maintenance on Tuesday"; "$real" "$@"'),
    "a notice of PBS": ("pbs", 'echo "Maintenance on Tuesday"; "$real" "$@"'),
    "a comment with many lines": (
        "pbs", 'out=$("$real" "$@"); if [ -n "$out" ]; then echo "$out"; else echo "---"; fi; '
        'echo "99.pbshost root workq theirs -- 1 1 -- -- Q --"; echo "   no licence"; '
        'echo "asked for: 3"; echo; echo "9 there are"'),
    "a name that is no XML": ("sge", '"$real" "$@" | sed "s/^ *<queue_info>/&<job_list><JB_name>'
                                     '\\x01<\\/JB_name><\\/job_list>/"'),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_lines_hide_neither_jobs_nor_that_one_is_gone(name, site, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    kind, line = FOREIGN[name]
    with_stand_in(site, tmp_path, kind)
    put_before(site, tmp_path, "squeue" if kind == "slurm" else "qstat",
               '[[ "$*" != *version* && "$*" != *help* ]] || exec "$real" "$@"', line)
    site.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    site.process("case $1 in *a) %s ;; esac; sleep 1" % DIE, *KEEP)
    done = site.run(BATCH)
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    words = {"slurm": "killed twice while it was processed: the scheduler says FAILED"}.get(
        kind, "the job was lost: no exit status, and it is not in the queue any more")
    assert "FAILED a: " + words in done.err
    assert processed(site) == {"b": 1}


def test_a_job_on_a_line_that_cannot_be_read_is_not_lost(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | sed "s/|RUNNING|None$/ RUNNING/"')
    stand_in.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.2")
    stand_in.process("sleep 2", *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
    assert "ended early" not in done.err


def test_a_killed_job_that_is_stuck_in_completing_is_told_and_does_not_hold_its_slot(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    stand_in.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.3", "NUM_JOBS = 1")
    stand_in.process(*HOLD, *KEEP)
    hold(stand_in, "a")
    put_before(stand_in, tmp_path, "squeue",
               '"$real" "$@" | sed "s/^\\(1000|.*|\\)FAILED|/\\1COMPLETING|/"')
    driver = stand_in.start(BATCH)
    wait_until(is_begun(stand_in, "a"))
    wait_until(lambda: queued(stand_in))
    (tmp_path / "stand-in" / "1000" / "state").write_text("FAILED\n")
    os.killpg(int((tmp_path / "stand-in" / "1000" / "pid").read_text()), signal.SIGKILL)
    killer = threading.Timer(60, driver.kill)
    killer.start()
    last, status, said = end(driver)
    killer.cancel()
    assert (last, status) == ("2 processed, 1 failed, 0 not needed", 1), said
    assert "COMPLETING" in said
    assert processed(stand_in) == {"b": 1, "c": 1}


def test_a_job_that_has_ended_and_that_the_queue_lists_for_ever_holds_its_slot_for_a_while_only(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.3", "NUM_JOBS = 1")
    stand_in.process("sleep 1", *KEEP)
    seen = tmp_path / "seen"
    put_before(stand_in, tmp_path, "squeue", 'said=$("$real" "$@")',
               'grep "^1000|.*|RUNNING|" <<<"$said" >>%s' % seen,
               'grep -v "^1000|" <<<"$said"', "head -n 1 %s" % seen)
    driver = stand_in.start(BATCH)
    killer = threading.Timer(60, driver.kill)
    killer.start()
    last, status, said = end(driver)
    killer.cancel()
    assert (last, status) == ("2 processed, 0 failed, 0 not needed", 0), said
    assert said.count("The scheduler still lists jobs that ended a while ago: 1000. No slot") == 1


# ---- what is ours ----


def test_jobs_of_other_users_and_other_runs_are_not_mistaken_for_ours(cluster, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(3)})
    fault = {"slurm": [
        'echo "1|g1.1-abcde|PENDING|JobHeldAdmin"; echo "2|a job of theirs|RUNNING|"',
        '"$real" "$@" | sed -n "s/^[0-9]*|\\(g[^|]*\\)|.*/'
        '5|\\1-2|PENDING|Priority\\n6|x\\1|PENDING|None/p"'],
        "sge": []}[cluster.scheduler]
    put_before(cluster, tmp_path, ASK[cluster.scheduler], '"$real" "$@" || exit', *fault)
    calls = count_calls(cluster, tmp_path, {"slurm": "scancel", "sge": "qdel"}[cluster.scheduler])
    cluster.process("sleep 1", *KEEP)
    done = cluster.run(BATCH)
    assert last_line(done) == "3 processed, 0 failed, 0 not needed"
    assert "No job is running" not in done.err and calls() == 0


@pytest.mark.parametrize("kind", [
    "slurm", "pbs", pytest.param("torque", marks=pytest.mark.long),
    pytest.param("sge", marks=pytest.mark.long)])
def test_a_job_that_its_owner_renamed_is_not_lost_and_not_cancelled(
        kind, site, emulator, tmp_path):
    with_stand_in(site, tmp_path, kind)
    emulator.add({"a": b"1"})
    calls = count_calls(site, tmp_path, "scancel" if kind == "slurm" else "qdel")
    questions = tmp_path / "questions"
    put_before(site, tmp_path, ASK[kind], "echo >>%s" % questions, 'exec "$real" "$@"')
    site.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.2")
    site.process('printf of-mine >"$STAND_IN_DIR/1000/name"', ": >%s" % questions,
                 'until [ "$(grep -c "" %s)" -ge 5 ]; do sleep 0.1; done' % questions, *KEEP)
    done = site.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err
    assert "ended early" not in done.err and calls() == 0
    assert done.err.count(" is called of-mine by now; ") == 1 and "Job 1000" in done.err
    assert count_events(site, "submit") == 1 and processed(site) == {"a": 1}


@pytest.mark.parametrize("names,cancelled", [
    ("", ["1001", "1002"]), ("s/^1002|[^|]*/1002|a job of theirs/", ["1001"]),
    ("s/^100[12]|[^|]*/&-2/", [])])
def test_a_job_of_another_name_is_not_cancelled_whatever_its_id(
        names, cancelled, stand_in, emulator, tmp_path):
    """When the run is halted, all jobs that have not begun are cancelled, by one command."""
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    put_before(stand_in, tmp_path, "sbatch", 'mkdir "$0.first" 2>/dev/null && exec "$real" "$@"',
               '(echo "sleep 100"; cat) | "$real" "$@"; [ ! -e "$STAND_IN_DIR/1002" ] || touch go')
    put_before(stand_in, tmp_path, "squeue",
               '"$real" "$@" | sed "%s; /^100[12]|/s/RUNNING|None/PENDING|Priority/"' % names)
    calls = tmp_path / "calls"
    put_before(stand_in, tmp_path, "scancel", 'echo "$@" >>%s' % calls, 'exec "$real" "$@"')
    stand_in.config("MAX_FAILURES_IN_A_ROW = 1", "POLL_SECONDS = 0.3")
    stand_in.process("until [ -e go ]; do sleep 0.1; done; exit 3")
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "STOPPING: " in done.err
    assert [line.split() for line in calls.read_text().splitlines()] == [cancelled] if cancelled \
        else not calls.exists()
    states = {job: (tmp_path / "stand-in" / job / "state").read_text().strip()
              for job in ("1001", "1002")}
    assert states == {job: "CANCELLED" if job in cancelled else "RUNNING" for job in states}


def test_a_job_with_an_id_that_was_ours_is_not_cancelled_by_a_driver_that_resumes(
        stand_in, emulator, tmp_path):
    """As where a server that was set up anew counts from the beginning again."""
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "sbatch", FIRST_TIME, 'echo "sleep 100" | "$real" "$@"')
    calls = count_calls(stand_in, tmp_path, "scancel")
    stand_in.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.2", "MAX_FAILURES_IN_A_ROW = 1")
    stand_in.process(*KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: count_events(stand_in, "queued"))
    driver.kill()
    driver.communicate()
    (tmp_path / "stand-in" / "1000" / "name").write_text("theirs")
    questions = count_calls(stand_in, tmp_path, "squeue")
    driver = stand_in.start(BATCH)
    wait_until(lambda: questions() >= 5)
    assert calls() == 0 and count_events(stand_in, "submit") == 1
    (tmp_path / "stand-in" / "1000" / "state").write_text("COMPLETED\n")
    driver.communicate()
    assert calls() == 0


@pytest.mark.parametrize("state", ["RUNNING", "PENDING"])
def test_an_unrelated_job_with_the_id_of_ours_is_never_cancelled(
        state, stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    stand_in.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3", "MAX_FAILURES_IN_A_ROW = 2")
    stand_in.process(*HOLD, '[ -e fixed ] || [ "$GLOBUS_NAME" = a ] || exit 3', *KEEP)
    calls = calls_of(stand_in, tmp_path, "scancel")
    held, waits = hold(stand_in, "a"), [hold(stand_in, "b"), hold(stand_in, "c")]
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | sed "s/|theirs|RUNNING/|theirs|%s/"'
               % state)
    kill_with_a_job_at_work(stand_in)
    # The controller is set up afresh: no job is left, and ids begin again.
    wait_until(lambda: len(begun(stand_in)) == 3)
    for folder in list((tmp_path / "stand-in").iterdir()):
        os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)
        shutil.rmtree(str(folder))
    for path in [held, *waits]:
        path.unlink()
    theirs = subprocess.run(["sbatch", "--parsable", "--job-name", "theirs"], env=stand_in.env,
                            input=b"#!/bin/bash\nsleep 1000\n", stdout=subprocess.PIPE, check=True)
    assert theirs.stdout == b"1000\n"
    driver = stand_in.start(BATCH)
    wait_for(driver, "STOPPING")  # b and c have failed
    driver.send_signal(signal.SIGINT)
    last, status, said = end(driver)
    assert status == 130, said
    assert not any("1000" in call for call in calls())
    assert state_of(tmp_path, 1000) == "RUNNING"
    subprocess.run(["scancel", "1000"], env=stand_in.env, check=True)  # its owner
    (stand_in.folder / "fixed").touch()
    done = stand_in.run(BATCH)
    assert last_line(done) == "3 processed, 0 failed, 0 not needed", done.err
    assert processed(stand_in) == {"a": 1, "b": 1, "c": 1}
    assert len(calls()) == 1


def test_a_stop_prints_no_command_that_would_cancel_a_job_of_another_name(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process(*HOLD, *KEEP)
    hold(stand_in, "a")
    put_before(stand_in, tmp_path, "squeue",
               '"$real" "$@" | sed "s/^1000|[^|]*|/1000|theirs|/"')
    driver = stand_in.start(BATCH)
    said = wait_for(driver, "theirs")
    driver.send_signal(signal.SIGINT)
    last, status, rest = end(driver)
    assert status == 130
    assert "To cancel: " not in rest or "1000" not in rest.split("To cancel: ")[1], said
