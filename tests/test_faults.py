"""A scheduler out of order: executables of a few lines, put on PATH before the real ones."""
import os
import subprocess
import time

import pytest
from conftest import (
    BATCH,
    KEEP,
    count_calls,
    journal,
    last_line,
    processed,
    put_before,
    wait_until,
    with_stand_in,
)

SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "torque": "qsub", "sge": "qsub"}
ASK = {"slurm": "squeue", "pbs": "qstat", "torque": "qstat", "sge": "qstat"}

FIRST_TIME = 'mkdir "$0.first" 2>/dev/null || exec "$real" "$@"'

# The job has its token: the first one that is submitted.
BEGUN = ('for try in {1..300}; do ! compgen -G "jobs/*/[ae][tn]*.1.*" >/dev/null || break; '
         'sleep 0.1; done')

# Submitted; but the job begins later than the answer comes.
LATER = '(echo "#!/bin/bash"; echo "sleep 2"; cat) | "$real" "$@" >/dev/null'

# process.sh: the job is killed at work on the file.
DIE = "touch killed; kill -KILL $PPID $$"


def count_events(site, kind):
    return [event["event"] for event in journal(site)].count(kind)

# name: what the first submission does, and what the person is told of it
SUBMISSIONS = {
    "accepted, but then a time-out is reported": (
        [LATER,
         'echo "error: Batch job submission failed: Socket timed out on send/recv operation" >&2',
         "exit 1"],
        "error: Batch job submission failed: Socket timed out on send/recv operation\n"),
    "not accepted, and a time-out is reported": (
        ['echo "error: Socket timed out on send/recv operation" >&2', "exit 1"],
        "error: Socket timed out on send/recv operation\n"),
    "accepted, but then it hangs": ([LATER, "exec sleep 100"], "did not answer within 2 s\n"),
    "accepted and at work, but it hangs": (
        ['"$real" "$@" >/dev/null', BEGUN, "exec sleep 100"], None),
    "hangs": (["exec sleep 100"], "did not answer within 2 s\n"),
    "accepted long after it was killed": (
        ['cat >"$0.script"', '(sleep 4; printf "#!/bin/bash\\nbash %s.script; touch %s.over\\n" '
         '"$0" "$0" | "$real" "$@") >/dev/null 2>&1 &', "exec sleep 100"],
        "did not answer within 2 s\n"),
    "accepted, but prints no id": ([LATER], "(nothing)\n"),
    "accepted and at work, but prints no id": (['"$real" "$@" >/dev/null', BEGUN], None),
    "accepted, but a limit and a time-out are reported": (
        [LATER, 'echo "error: limit of requests reached, waiting" >&2',
         'echo "error: Socket timed out on send/recv operation" >&2', "exit 1"],
        "error: limit of requests reached, waiting; error: Socket timed out on"),
    "a limit of the site": (
        ['echo "error: QOSMaxSubmitJobPerUserLimit" >&2',
         'echo "error: Batch job submission failed: Job violates accounting/QOS policy (job submit'
         ' limit, user\'s size and/or time limits)" >&2', "exit 1"],
        "error: QOSMaxSubmitJobPerUserLimit; error: Batch job submission failed: Job violates"),
    "a limit of PBS": (
        ['echo "qsub: Maximum number of jobs for user me already in complex" >&2', "exit 1"],
        "qsub: Maximum number of jobs for user me already in complex\n"),
    "a server that ends": (
        ['echo "qsub: Request not allowed: Server shutting down" >&2', "exit 1"],
        "qsub: Request not allowed: Server shutting down\n"),
    "out of order": (
        ['echo "cannot connect to server pbshost (errno=15010)" >&2', "exit 162"],
        "cannot connect to server pbshost (errno=15010)\n"),
    "accepted, but then the scheduler is out of reach": (
        [LATER, 'echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2',
         "exit 1"], "sbatch: error: Unable to contact slurm controller (connect failure)\n"),
    "accepted, but then it is killed": ([LATER, 'kill -KILL $$'], "(nothing)\n"),
    "accepted and at work, but then it is killed": (
        ['"$real" "$@" >/dev/null', BEGUN, 'kill -KILL $$'], None),
    "accepted and at work, but refused in words that nobody knows": (
        ['"$real" "$@" >/dev/null', BEGUN, 'echo "error: out of cheese" >&2', "exit 1"], None),
    "a warning, and it succeeds": (
        ['echo "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying" >&2',
         'exec "$real" "$@"'], None),
}


REFUSED = "The scheduler did not accept a job: "

LONG = {"accepted long after it was killed", "hangs", "a limit of PBS", "a server that ends",
        "out of order", "accepted, but then the scheduler is out of reach",
        "accepted and at work, but then it is killed"}


@pytest.mark.parametrize("fault", [
    pytest.param(fault, marks=pytest.mark.long) if fault in LONG else fault
    for fault in SUBMISSIONS])
def test_each_file_is_processed_once_though_a_submission_is(fault, cluster, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    lines, words = SUBMISSIONS[fault]
    put_before(cluster, tmp_path, SUBMIT[cluster.scheduler], FIRST_TIME, *lines)
    cluster.edit(BATCH, "SUBMIT_SECONDS = 300", "SUBMIT_SECONDS = 2")
    over = tmp_path / "before" / (SUBMIT[cluster.scheduler] + ".over")
    is_late = fault == "accepted long after it was killed"  # it begins while the next one is at it
    wait = "until [ -e '%s' ] || [ $SECONDS -gt 15 ]; do sleep 0.1; done" % over
    cluster.process(*[wait] * is_late, *KEEP)
    done = cluster.run(BATCH)
    assert last_line(done) == "4 processed, 0 failed, 0 not needed"
    assert processed(cluster) == {"f%d" % n: 1 for n in range(4)}
    assert done.err.count(REFUSED) == (1 if words else 0)
    if words:
        refusal = done.err.split(REFUSED)[1]
        assert words in refusal[:refusal.index("\n") + 1]
        assert "\nThe command was: %s " % SUBMIT[cluster.scheduler] in refusal
        assert "\nTrying again every 1 s.\n" in refusal
    else:
        assert "sbatch: error" not in done.err and count_events(cluster, "submit") == 4
    # A real scheduler may keep the late one waiting, until the driver cancels it.
    if not is_late or "STAND_IN_DIR" in cluster.env:
        assert over.exists() == is_late


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


# ---- what is ours is known by id and name ----


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


def test_jobs_that_wait_for_long_are_told_once_with_the_scheduler_s_words(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | sed "s/RUNNING|.*/PENDING|Resources/"')
    stand_in.config("helper.QUIET_SECONDS = 1", "POLL_SECONDS = 0.3")
    stand_in.process("sleep 3")
    done = stand_in.run(BATCH)
    assert done.err.count("No job is running; the scheduler says of 1 job: Resources") == 1
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"


# How a user holds a job from the beginning.
HOLD = {"slurm": "--hold", "sge": "-h"}


def test_a_job_that_is_held_is_told_with_the_way_to_cancel_it_and_goes_on_when_released(
        real_cluster, emulator, tmp_path):
    emulator.add({"a": b"1"})
    kind = real_cluster.scheduler
    put_before(real_cluster, tmp_path, SUBMIT[kind], 'exec "$real" %s "$@"' % HOLD[kind])
    driver = real_cluster.start(BATCH)
    said = []
    wait_until(lambda: said.append(driver.stderr.readline().decode())
               or "No job is running; the scheduler says of 1 job: " in said[-1])
    release = driver.stderr.readline().decode()
    assert driver.stderr.readline().decode().startswith("If RESOURCES has to be fixed, ")
    subprocess.run(release.split()[2:], env=real_cluster.env, check=True,
                   stdout=subprocess.DEVNULL)
    assert driver.communicate()[0].decode().endswith("1 processed, 0 failed, 0 not needed\n")


def test_a_job_that_is_held_is_told_once(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue",
               '"$real" "$@" | sed "s/RUNNING|.*/PENDING|JobHeldUser/"')
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process("sleep 2")
    done = stand_in.run(BATCH)
    assert done.err.count("No job is running; the scheduler says of ") == 1
    assert ("the scheduler says of 1 job: JobHeldUser\nTo release: scontrol release 1000\n"
            "If RESOURCES has to be fixed, stop this script, cancel, and start again: "
            "scancel 1000\n") in done.err


def test_a_scheduler_that_is_down_is_waited_for(cluster, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    down, calls = tmp_path / "down", tmp_path / "questions"
    down.touch()
    for command in (SUBMIT[cluster.scheduler], ASK[cluster.scheduler]):
        put_before(cluster, tmp_path, command, "[ -e %s ] || exec \"$real\" \"$@\"" % down,
                   "[ %s != %s ] || echo >>%s" % (command, ASK[cluster.scheduler], calls),
                   'echo "error: Unable to contact slurm controller (connect failure)" >&2; exit 1')
    driver = cluster.start(BATCH)
    wait_until(lambda: b"does not answer" in driver.stderr.readline())
    calls.write_text("")
    wait_until(lambda: calls.read_text().count("\n") >= 5)  # more often than refusals count
    down.unlink()
    out, err = driver.communicate()
    assert out.decode().splitlines()[-1] == "2 processed, 0 failed, 0 not needed"
    assert err.count(b"Unable to contact") <= 2  # once from each command, and not at every poll


def test_a_job_that_is_refused_is_tried_again_no_more_often_than_the_queue_is_asked(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    limit = tmp_path / "limit"
    limit.touch()
    put_before(stand_in, tmp_path, "sbatch", 'mkdir "$0.first" 2>/dev/null && exec "$real" "$@"',
               '[ -e %s ] || exec "$real" "$@"' % limit,
               "echo >>%s" % limit, 'echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1')
    questions = count_calls(stand_in, tmp_path, "squeue")
    stand_in.config("POLL_SECONDS = 0.3", "NUM_JOBS = 1")
    driver = stand_in.start(BATCH)
    wait_until(lambda: len(limit.read_text()) >= 5)  # more often than stops a run that begins
    assert len(limit.read_text()) <= questions() + 1  # and once when the job had ended
    limit.unlink()
    out, err = driver.communicate()
    assert out.endswith(b"2 processed, 0 failed, 0 not needed\n")
    assert err.decode().count(REFUSED + "error: QOSMaxSubmitJobPerUserLimit\n") == 1


def test_the_run_stops_with_the_words_if_nothing_is_accepted_in_three_polls(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    tries = tmp_path / "tries"
    put_before(stand_in, tmp_path, "sbatch", "echo >>%s" % tries,
               'echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1')
    stand_in.config("POLL_SECONDS = 0.3")
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and len(tries.read_text()) == 3
    assert done.err.count(REFUSED + "error: QOSMaxSubmitJobPerUserLimit\n") == 1
    assert ("The scheduler has accepted no job in 3 tries: error: QOSMaxSubmitJobPerUserLimit\n"
            in done.err)
    (tmp_path / "before" / "sbatch").unlink()
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"


def test_a_refusal_that_comes_twice_does_not_stop_a_run_that_begins(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_before(stand_in, tmp_path, "sbatch",
               'mkdir "$0.1" 2>/dev/null || mkdir "$0.2" 2>/dev/null || exec "$real" "$@"',
               'echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1')
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed"
    assert done.err.count(REFUSED) == 1 and processed(stand_in) == {"a": 1, "b": 1}


@pytest.mark.long
def test_a_limit_below_num_jobs_is_told_once_and_leaves_nothing_behind(
        stand_in, emulator, tmp_path):
    emulator.add({"f%02d" % n: b"x" for n in range(20)})
    put_before(stand_in, tmp_path, "sbatch", 'if grep -qs RUNNING "$STAND_IN_DIR"/*/state; then',
               'echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi', 'exec "$real" "$@"')
    stand_in.config("POLL_SECONDS = 0.5")
    done = stand_in.run(BATCH)
    assert last_line(done) == "20 processed, 0 failed, 0 not needed"
    assert done.err.count(REFUSED) == 1
    assert sorted(os.listdir(str(stand_in.jobs))) == ["driver.lock", "journal.jsonl"]


def test_an_option_that_sounds_like_an_outage_stops_the_run_all_the_same(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("RESOURCES = '--timeout=60'", "POLL_SECONDS = 0.3")
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert ("The scheduler has accepted no job in 3 tries: sbatch: unrecognized option "
            "'--timeout=60'; Try" in done.err)
    assert "Fix that, often RESOURCES in config.py, and start this script again" in done.err


def test_a_job_that_is_accepted_long_after_it_was_given_up_is_cancelled(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_before(stand_in, tmp_path, "sbatch", 'if mkdir "$0.first" 2>/dev/null; then',
               'cat >"$0.script"; printf "%q " "$@" >"$0.args"',
               'echo "error: Socket timed out on send/recv operation" >&2; exit 1; fi',
               'if mkdir "$0.second" 2>/dev/null; then',
               'echo "sleep 100; bash $0.script" | eval "\"$real\" $(cat "$0.args")"; fi >&2',
               'exec "$real" "$@"')
    put_before(stand_in, tmp_path, "squeue",
               '"$real" "$@" | sed "/^1000|/s/RUNNING|None/PENDING|Priority/"')
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process('for try in {1..300}; do', 'sleep 0.1',
                     '! grep -qs CANCELLED "$STAND_IN_DIR"/*/state || exit 0', "done", "exit 1")
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed"
    assert (tmp_path / "stand-in" / "1000" / "state").read_text() == "CANCELLED\n"


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


def test_a_result_that_is_gone_when_it_is_read_is_none(stand_in, emulator):
    """As where a shared file system still lists what is not there any more."""
    emulator.add({"a": b"1"})
    stand_in.config("import os", "real = os.listdir", "def listdir(path='.'):",
                    "    stale = ['results.1.7.node-1-2'] if '/jobs/g' in str(path) else []",
                    "    return real(path) + stale", "os.listdir = listdir")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


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


def test_a_lost_job_that_comes_back_with_its_exit_status_counts(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | grep -v "^1000|"')  # the first job
    calls = count_calls(stand_in, tmp_path, "scancel")
    stand_in.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.5", "FILES_PER_JOB = 2", "NUM_JOBS = 1")
    stand_in.process('case $1 in', '*a) until [ -e go ]; do sleep 0.1; done ;;',
                     '*) touch go', 'until grep -qs "^0 0" jobs/g*/results.1.*; do sleep 0.1; done',
                     'esac', *KEEP)
    done = stand_in.run(BATCH)
    assert "FAILED a: the job was lost: no exit status" in done.err
    assert last_line(done) == "2 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1, "b": 1} and calls() == 0
    assert not stand_in.downloaded()


def test_a_requeued_job_begins_again_and_is_not_lost(real_slurm, emulator):
    emulator.add({"a": b"1"})
    real_slurm.config("RESOURCES = '--requeue'")
    real_slurm.process('if mkdir once; then scontrol requeue "$SLURM_JOB_ID"; sleep 100; fi', *KEEP)
    driver = real_slurm.start(BATCH)
    job = wait_until(lambda: [e["id"] for e in journal(real_slurm) if e["event"] == "queued"])[0]
    # Slurm lets it wait for two minutes, so that the end of the first try is not taken for that of
    # the second; here three seconds do.
    wait_until(lambda: (job + "|BeginTime").encode() in subprocess.check_output(
        ["squeue", "-h", "--format=%i|%r"], env=real_slurm.env))
    time.sleep(3)
    subprocess.run(["scontrol", "update", "StartTime=now", "JobId=" + job], check=True,
                   env=real_slurm.env)
    out = driver.communicate()[0]
    assert out.decode().splitlines()[-1] == "1 processed, 0 failed, 0 not needed"
    assert processed(real_slurm) == {"a": 1}


def test_the_exit_status_of_a_try_that_the_scheduler_stopped_is_not_the_job_s_end(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "sbatch", 'cat >"$0.script"',
               'echo "bash $0.script; sleep 1; bash $0.script" | "$real" "$@"')
    stand_in.config("POLL_SECONDS = 0.2")
    stand_in.process("! mkdir once 2>/dev/null || { kill -TERM $PPID; exit 143; }", *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
    assert count_events(stand_in, "submit") == 2  # by the driver, not by the second try
    assert processed(stand_in) == {"a": 1}


TWICE = ('cat >"$0.script"', 'echo "bash $0.script; bash $0.script; touch over" | "$real" "$@"')


def test_a_job_that_is_begun_again_after_its_end_does_nothing(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "sbatch", *TWICE)
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    wait_until((stand_in.folder / "over").exists)
    assert processed(stand_in) == {"a": 1}


@pytest.mark.parametrize("slow", ['sleep 1; exec "$real" "$@"',
                                  '"$real" "$@"; status=$?; sleep 1; exit $status'])
def test_a_job_that_is_begun_again_while_the_driver_takes_its_result_does_nothing(
        slow, stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "sbatch", *TWICE)
    # Between its look at the tokens and its move, and after that, the driver comes by.
    put_before(stand_in, tmp_path, "mv", slow)
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    wait_until((stand_in.folder / "over").exists)
    assert processed(stand_in) == {"a": 1}


@pytest.mark.parametrize("job_id", ["SLURM_JOB_ID=7", "SLURM_JOB_ID=1000", "PBS_JOBID=1000.host"])
def test_a_job_that_is_begun_again_when_the_next_run_has_begun_does_nothing(
        job_id, stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    folder = put_before(stand_in, tmp_path, "sbatch", 'cp /dev/stdin "$0.${@: -1}"',
                        'exec "$real" "$@" <"$0.${@: -1}"')
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    job, = folder.glob("sbatch.g*")
    stand_in.config("def is_file_needed(file): return True")
    stand_in.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    subprocess.run(["bash", "-c", "export %s; bash %s" % (job_id, job)],
                   env=stand_in.env, check=False, stdin=subprocess.DEVNULL)
    assert processed(stand_in) == {"a": 1}
    number, _, run = job.name[len("sbatch."):].partition(".1-")
    assert not (stand_in.jobs / f"{number}-{run}").exists()
    (stand_in.folder / "go").touch()
    assert driver.communicate()[0].endswith(b"1 processed, 0 failed, 0 not needed\n")
    assert processed(stand_in) == {"a": 2}


def test_a_job_of_pbs_that_is_begun_again_after_its_end_does_nothing(
        site, emulator, tmp_path):
    """PBS counts no restarts, and the token of a job that went well is gone."""
    with_stand_in(site, tmp_path, "pbs")
    emulator.add({"a": b"1", "b": b"2"})
    folder = put_before(site, tmp_path, "qsub", 'mkdir "$0.once" || exec "$real" "$@"',
                        'cp /dev/stdin "$0.script"', 'exec "$real" "$@" <"$0.script"')
    site.config("NUM_JOBS = 1")
    site.process('[ ! -e processed ] || until [ -e go ]; do sleep 0.1; done', *KEEP)
    driver = site.start(BATCH)
    wait_until(lambda: b"processed a" in driver.stderr.readline())
    subprocess.run(["bash", str(folder / "qsub.script")], check=False,
                   env=dict(site.env, PBS_JOBID="1000.pbshost"), stdin=subprocess.DEVNULL)
    (site.folder / "go").touch()
    assert driver.communicate()[0].endswith(b"2 processed, 0 failed, 0 not needed\n")
    assert processed(site) == {"a": 1, "b": 1}


@pytest.mark.parametrize("is_late", [False, True])
def test_a_job_that_was_given_up_does_nothing_though_it_begins_after_a_restart(
        is_late, stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    folder = put_before(stand_in, tmp_path, "sbatch", FIRST_TIME, 'cat >"$0.script"',
                        "exec sleep 100")
    stand_in.edit(BATCH, "SUBMIT_SECONDS = 300", "SUBMIT_SECONDS = 1")
    stand_in.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    driver.kill()
    driver.communicate()

    def begin():
        subprocess.run(["bash", str(folder / "sbatch.script")], check=False,
                       env=dict(stand_in.env, SLURM_JOB_ID="999"), stdin=subprocess.DEVNULL)
        assert not list(stand_in.jobs.glob("*/*.999.*"))

    driver = stand_in.start(BATCH)
    if not is_late:
        begin()  # it would wait for `go`
    (stand_in.folder / "go").touch()
    assert driver.communicate()[0].endswith(b"2 processed, 0 failed, 0 not needed\n")
    begin()
    assert processed(stand_in) == {"a": 1, "b": 1}


def test_a_job_that_comes_after_a_refusal_in_unknown_words_does_nothing(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    folder = put_before(stand_in, tmp_path, "sbatch", FIRST_TIME, 'cat >"$0.script"',
                        'echo "error: out of cheese" >&2; exit 1')
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert REFUSED + "error: out of cheese\n" in done.err
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
    subprocess.run(["bash", str(folder / "sbatch.script")], env=stand_in.env, check=False,
                   stdin=subprocess.DEVNULL)
    assert processed(stand_in) == {"a": 1}


def test_a_job_that_had_begun_is_not_submitted_again_though_nobody_told_its_id(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "sbatch", '"$real" "$@" >/dev/null', BEGUN)
    put_before(stand_in, tmp_path, "squeue", "echo 'JOBID|NAME|STATE|REASON'")
    stand_in.config("GRACE_SECONDS = 1")
    stand_in.process("echo >>begun", DIE)
    done = stand_in.run(BATCH)
    assert last_line(done) == "0 processed, 1 failed, 0 not needed"
    assert "FAILED a: the job was lost: no exit status" in done.out and REFUSED not in done.err
    assert (stand_in.folder / "begun").read_text() == "\n"
    assert count_events(stand_in, "submit") == 1


def test_a_full_disk_under_a_token_fails_no_file(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_before(stand_in, tmp_path, "sbatch", 'mkdir "$0.first" 2>/dev/null || exec "$real" "$@"',
               'echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1')
    stand_in.config(
        "GRACE_SECONDS = 0", "POLL_SECONDS = 0.3", "import builtins, errno, os",
        "real_open, times = builtins.open, []", "class Full:",
        "    def __enter__(self): return self", "    def __exit__(self, *_): pass",
        "    def write(self, _): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))",
        "def full(path, *more, **named):", "    file = real_open(path, *more, **named)",
        "    if '/ticket.' not in str(path): return file",
        "    times.append(1)", "    return file if len(times) > 3 else file.close() or Full()",
        "builtins.open = full")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed"
    assert done.err.count("Waiting: No space left on device") == 1
    assert processed(stand_in) == {"a": 1, "b": 1}


@pytest.mark.long
def test_a_full_disk_under_the_journal_loses_nothing(stand_in, emulator):
    files = ["f%02d" % n for n in range(40)]
    emulator.add(dict.fromkeys(files, b"x"))
    stand_in.process(*KEEP)
    # What else writes files.
    stand_in.env.pop("COVERAGE_PROCESS_START", None)
    stand_in.env["PYTHONDONTWRITEBYTECODE"] = "yes"
    # No file may grow beyond 8 kB: the line that would only half fit is written half.
    full = subprocess.run(
        ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", *stand_in.command(BATCH)],
        cwd=str(stand_in.folder), env=stand_in.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert full.returncode == 1
    assert b"journal.jsonl" in full.stderr and b"Traceback" not in full.stderr
    assert (stand_in.jobs / "journal.jsonl").stat().st_size == 8192
    assert last_line(stand_in.run(BATCH)) == "40 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == dict.fromkeys(files, 1)


def test_lines_of_results_that_are_none_are_passed_over(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.process("for line in nonsense '0 -1' '0 0x' '7 0' '0' ' 0 0' '0 ' 'x 0'; do",
                     'echo "$line" >>"$(echo jobs/g*)/results.0.7.node-1-2"', "done",
                     "sleep 2", "exit 3")
    done = stand_in.run(BATCH)
    assert last_line(done) == "0 processed, 1 failed, 0 not needed"
    assert "FAILED a: exit status 3" in done.out
