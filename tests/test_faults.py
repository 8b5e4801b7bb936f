"""A scheduler out of order: executables of a few lines, put on PATH before the real ones."""
import os
import subprocess
import time

import pytest
from conftest import (
    BATCH,
    DIE,
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

BEGUN = 'until compgen -G "jobs/*.claim" >/dev/null; do sleep 0.1; done'

# name: what the first submission does, and what the person is told of it
SUBMISSIONS = {
    "accepted, but then a time-out is reported": (
        ['"$real" "$@" >/dev/null',
         'echo "error: Batch job submission failed: Socket timed out on send/recv operation" >&2',
         "exit 1"],
        "whether the scheduler accepted a job: error: Batch job submission failed: Socket"),
    "not accepted, and a time-out is reported": (
        ['echo "error: Socket timed out on send/recv operation" >&2', "exit 1"],
        "not clear whether the scheduler accepted a job"),
    "accepted, but then it hangs": (['"$real" "$@" >/dev/null', "exec sleep 100"],
                                    "did not answer within 2 s"),
    "hangs": (["exec sleep 100"], "did not answer within 2 s"),
    "accepted long after it was killed": (
        ['cat >"$0.script"', '(sleep 4; "$real" "$@" <"$0.script") >/dev/null 2>&1 &',
         "exec sleep 100"], "did not answer within 2 s"),
    "accepted, but prints no id": (['"$real" "$@" >/dev/null'], "not clear whether"),
    "accepted, but a limit and a time-out are reported": (
        ['"$real" "$@" >/dev/null', 'echo "error: limit of requests reached, waiting" >&2',
         'echo "error: Socket timed out on send/recv operation" >&2', "exit 1"],
        "not clear whether the scheduler accepted a job"),
    "a limit of the site": (
        ['echo "error: QOSMaxSubmitJobPerUserLimit" >&2',
         'echo "error: Batch job submission failed: Job violates accounting/QOS policy (job submit'
         ' limit, user\'s size and/or time limits)" >&2', "exit 1"],
        "accepts no more jobs for now: error: QOSMaxSubmitJobPerUserLimit"),
    "a limit of PBS": (
        ['echo "qsub: Maximum number of jobs for user me already in complex" >&2', "exit 1"],
        "accepts no more jobs for now: qsub: Maximum number of jobs for user me already in"),
    "a server that ends": (
        ['echo "qsub: Request not allowed: Server shutting down" >&2', "exit 1"],
        "not clear whether the scheduler accepted a job"),
    "out of order": (
        ['echo "cannot connect to server pbshost (errno=15010)" >&2', "exit 162"],
        "not clear whether the scheduler accepted a job: cannot connect to server"),
    "accepted, but then the scheduler is out of reach": (
        ['"$real" "$@" >/dev/null',
         'echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2',
         "exit 1"], "not clear whether the scheduler accepted a job"),
    "accepted, but then it is killed": (
        ['"$real" "$@" >/dev/null', 'kill -KILL $$'],
        "not clear whether the scheduler accepted a job"),
    "accepted and at work, but refused in words that nobody knows": (
        ['"$real" "$@" >/dev/null', BEGUN, 'echo "error: out of cheese" >&2', "exit 1"],
        "not clear whether the scheduler accepted a job"),
    "a warning, and it succeeds": (
        ['echo "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying" >&2',
         'exec "$real" "$@"'], None),
}


LONG = {"accepted long after it was killed", "hangs", "a limit of PBS", "a server that ends",
        "out of order", "accepted, but then the scheduler is out of reach"}


@pytest.mark.parametrize("fault", [
    pytest.param(fault, marks=pytest.mark.long) if fault in LONG else fault
    for fault in SUBMISSIONS])
def test_each_file_is_processed_once_though_a_submission_is(fault, cluster, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    lines, words = SUBMISSIONS[fault]
    put_before(cluster, tmp_path, SUBMIT[cluster.scheduler], FIRST_TIME, *lines)
    cluster.edit(BATCH, "SUBMIT_SECONDS = 300", "SUBMIT_SECONDS = 2")
    cluster.process(*KEEP)
    done = cluster.run(BATCH)
    assert last_line(done) == "4 processed, 0 failed, 0 not needed"
    assert processed(cluster) == {"f%d" % n: 1 for n in range(4)}
    assert words in done.err if words else "sbatch: error" not in done.err
    if fault == "accepted long after it was killed":
        time.sleep(4)
        assert processed(cluster) == {"f%d" % n: 1 for n in range(4)}


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


def test_jobs_of_other_users_and_other_runs_are_not_mistaken_for_ours(cluster, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(3)})
    fault = {"slurm": 'echo "1|g000000-1|PENDING|JobHeldAdmin"; echo "2|a job of theirs|RUNNING|"',
             "sge": ""}[cluster.scheduler]
    put_before(cluster, tmp_path, ASK[cluster.scheduler], '"$real" "$@" || exit', fault)
    cluster.process("sleep 1", *KEEP)
    done = cluster.run(BATCH)
    assert last_line(done) == "3 processed, 0 failed, 0 not needed"
    assert " held" not in done.err


def test_jobs_that_wait_for_long_are_told_once_with_the_scheduler_s_words(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | sed "s/RUNNING|.*/PENDING|Resources/"')
    stand_in.config("import helper", "helper.QUIET_SECONDS = 1", "POLL_SECONDS = 0.3")
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
    wait_until(lambda: said.append(driver.stderr.readline().decode()) or "1 job held: " in said[-1])
    release = driver.stderr.readline().decode()
    assert "To cancel (their files then count as failed): " in driver.stderr.readline().decode()
    subprocess.run(release.split()[2:], env=real_cluster.env, check=True,
                   stdout=subprocess.DEVNULL)
    assert driver.communicate()[0].decode().endswith("1 processed, 0 failed, 0 not needed\n")


def test_a_job_that_is_held_is_told_once(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue",
               '"$real" "$@" | sed "s/RUNNING|.*/PENDING|JobHeldUser/"')
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process("sleep 2")
    assert stand_in.run(BATCH).err.count("1 job held: JobHeldUser\nTo release: ") == 1


def test_a_scheduler_that_is_down_is_waited_for(cluster, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    down = tmp_path / "down"
    down.touch()
    for command in (SUBMIT[cluster.scheduler], ASK[cluster.scheduler]):
        put_before(cluster, tmp_path, command, "[ -e %s ] || exec \"$real\" \"$@\"" % down,
                   'echo "error: Unable to contact slurm controller (connect failure)" >&2; exit 1')
    driver = cluster.start(BATCH)
    wait_until(lambda: b"does not answer" in driver.stderr.readline())
    time.sleep(3)
    down.unlink()
    out, err = driver.communicate()
    assert out.decode().splitlines()[-1] == "2 processed, 0 failed, 0 not needed"
    assert err.count(b"Unable to contact") <= 2  # once from each command, and not at every poll


def test_a_job_that_is_refused_is_tried_again_no_more_often_than_the_queue_is_asked(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    limit = tmp_path / "limit"
    limit.touch()
    put_before(stand_in, tmp_path, "sbatch", '[ -e %s ] || exec "$real" "$@"' % limit,
               "echo >>%s" % limit, 'echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1')
    questions = count_calls(stand_in, tmp_path, "squeue")
    stand_in.config("POLL_SECONDS = 0.3")
    driver = stand_in.start(BATCH)
    wait_until(lambda: questions() >= 5)
    assert len(limit.read_text()) <= questions() + 1
    limit.unlink()
    assert driver.communicate()[0].endswith(b"1 processed, 0 failed, 0 not needed\n")


@pytest.mark.long
def test_a_limit_below_num_jobs_is_told_once_and_leaves_nothing_behind(
        stand_in, emulator, tmp_path):
    emulator.add({"f%02d" % n: b"x" for n in range(20)})
    put_before(stand_in, tmp_path, "sbatch", 'if grep -qs RUNNING "$STAND_IN_DIR"/*/state; then',
               'echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi', 'exec "$real" "$@"')
    stand_in.config("POLL_SECONDS = 0.5")
    done = stand_in.run(BATCH)
    assert last_line(done) == "20 processed, 0 failed, 0 not needed"
    assert done.err.count("accepts no more jobs") == 1
    assert sorted(os.listdir(str(stand_in.jobs))) == ["driver.lock", "journal.jsonl"]


def test_an_option_that_sounds_like_an_outage_stops_the_run_all_the_same(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("RESOURCES = '--timeout=60'")
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert "The scheduler refuses the job: sbatch: unrecognized option '--timeout=60'" in done.err


def test_a_job_that_is_accepted_long_after_it_was_given_up_is_cancelled(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_before(stand_in, tmp_path, "sbatch", 'if mkdir "$0.first" 2>/dev/null; then',
               'cat >"$0.script"; printf "%q " "$@" >"$0.args"',
               'echo "error: Socket timed out on send/recv operation" >&2; exit 1; fi',
               'if mkdir "$0.second" 2>/dev/null; then',
               'echo "sleep 100; bash $0.script" | eval "\"$real\" $(cat "$0.args")"; fi >&2',
               'exec "$real" "$@"')
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process('for try in {1..300}; do', 'sleep 0.1',
                     '! grep -qs CANCELLED "$STAND_IN_DIR"/*/state || exit 0', "done", "exit 1")
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed"


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
    wait_until(lambda: b"1 job held: " in driver.stderr.readline())
    subprocess.run(["qrls", driver.stderr.readline().split()[-1]], env=real_sge.env, check=True,
                   stdout=subprocess.DEVNULL)
    assert driver.communicate()[0].endswith(b"1 processed, 0 failed, 0 not needed\n")


def test_an_exit_status_that_is_gone_when_it_is_read_is_none(stand_in, emulator):
    """As of a job that begins again, where a shared file system still lists the old status."""
    emulator.add({"a": b"1"})
    stand_in.edit(BATCH, "set(os.listdir(self.folder))",
                  "set(os.listdir(self.folder) + [name + '.results' for name in self.submitted()])")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_a_lost_job_is_a_failure_with_that_reason(every_cluster, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    every_cluster.config("GRACE_SECONDS = 2")
    every_cluster.process('case $1 in *a) %s ;; esac' % DIE, *KEEP)
    done = every_cluster.run(BATCH)
    assert done.returncode == 1
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    assert "FAILED a: the job was lost: no exit status" in done.out


def test_a_lost_job_that_comes_back_with_its_exit_status_counts(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_before(stand_in, tmp_path, "squeue", "echo 'JOBID|NAME|STATE|REASON'")
    put_before(stand_in, tmp_path, "scancel", "exit 1")
    stand_in.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.5")
    stand_in.process('case $1 in *a) sleep 3 ;; *) sleep 5 ;; esac', *KEEP)
    stand_in.edit(BATCH, "setdefault(name, now)",
                  "setdefault(name, now + name.endswith('-2') * 100)")
    done = stand_in.run(BATCH)
    assert "FAILED a: the job was lost" in done.err
    assert last_line(done) == "2 processed, 0 failed, 0 not needed"


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
               'echo "bash $0.script; sleep 1; SLURM_RESTART_COUNT=1 bash $0.script" |',
               '"$real" "$@"')
    stand_in.process("! mkdir once 2>/dev/null || exit 143", *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1}


def test_a_job_that_is_begun_again_after_its_end_does_nothing(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "sbatch", 'cat >"$0.script"',
               'echo "bash $0.script; SLURM_RESTART_COUNT=1 bash $0.script; touch over" |',
               '"$real" "$@"')
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    wait_until((stand_in.folder / "over").exists)
    assert processed(stand_in) == {"a": 1}


def test_a_job_that_is_begun_again_while_the_driver_takes_its_result_does_nothing(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "sbatch", 'cat >"$0.script"',
               'echo "bash $0.script; SLURM_RESTART_COUNT=1 bash $0.script; touch over" |',
               '"$real" "$@"')
    # Between its look at the journal and what follows, the driver comes by.
    put_before(stand_in, tmp_path, "grep", '"$real" "$@"; status=$?; sleep 1; exit $status')
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    wait_until((stand_in.folder / "over").exists)
    assert processed(stand_in) == {"a": 1}


@pytest.mark.parametrize("env", ["SLURM_RESTART_COUNT=1", "PBS_JOBID=$SLURM_JOB_ID"])
def test_a_job_that_is_begun_again_when_the_next_run_has_begun_does_nothing(
        env, stand_in, emulator, tmp_path):
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
    subprocess.run(["bash", "-c", "SLURM_JOB_ID=7; export %s; bash %s" % (env, job)],
                   env=stand_in.env, check=False, stdin=subprocess.DEVNULL)
    assert processed(stand_in) == {"a": 1}
    assert not list(stand_in.jobs.glob(job.name.split(".")[1] + ".*"))
    (stand_in.folder / "go").touch()
    assert driver.communicate()[0].endswith(b"1 processed, 0 failed, 0 not needed\n")
    assert processed(stand_in) == {"a": 2}


def test_a_job_of_pbs_that_is_begun_again_after_its_end_does_nothing(
        site, emulator, tmp_path):
    """PBS counts no restarts, and the claim of a job that went well is gone."""
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


def test_a_job_that_was_given_up_does_nothing_though_it_begins_after_a_restart(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    folder = put_before(stand_in, tmp_path, "sbatch", FIRST_TIME, 'cat >"$0.script"',
                        "exec sleep 100")
    stand_in.edit(BATCH, "SUBMIT_SECONDS = 300", "SUBMIT_SECONDS = 1")
    stand_in.process("sleep 2", *KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    driver.kill()
    driver.communicate()
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"
    subprocess.run(["bash", str(folder / "sbatch.script")], env=stand_in.env, check=False)
    assert processed(stand_in) == {"a": 1, "b": 1}


def test_a_job_that_comes_after_a_refusal_in_unknown_words_does_nothing(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    folder = put_before(stand_in, tmp_path, "sbatch", FIRST_TIME, 'cat >"$0.script"',
                        'echo "error: out of cheese" >&2; exit 1')
    stand_in.process(*KEEP)
    assert "The scheduler refuses the job: error: out of cheese" in stand_in.run(BATCH).err
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    subprocess.run(["bash", str(folder / "sbatch.script")], env=stand_in.env, check=False)
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
    assert (stand_in.folder / "begun").read_text() == "\n"


def test_a_full_disk_under_a_claim_fails_no_file(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_before(stand_in, tmp_path, "sbatch", 'mkdir "$0.first" 2>/dev/null || exec "$real" "$@"',
               'echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1')
    stand_in.config(
        "GRACE_SECONDS = 0", "POLL_SECONDS = 0.3", "import builtins, errno, os",
        "real_open, times = builtins.open, []", "class Full:",
        "    def __enter__(self): return self", "    def __exit__(self, *_): pass",
        "    def write(self, _): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))",
        "def full(path, *more, **named):", "    file = real_open(path, *more, **named)",
        "    if not str(path).endswith('.claim') or more != ('x',): return file",
        "    times.append(1)", "    return file if len(times) > 3 else file.close() or Full()",
        "builtins.open = full")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed"
    assert "Waiting: No space left on device" in done.err


@pytest.mark.long
def test_a_full_disk_under_the_journal_loses_nothing(stand_in, emulator):
    files = ["f%02d" % n for n in range(40)]
    emulator.add(dict.fromkeys(files, b"x"))
    stand_in.process(*KEEP)
    # What else writes files.
    stand_in.env.pop("COVERAGE_PROCESS_START", None)
    stand_in.env["PYTHONDONTWRITEBYTECODE"] = "yes"
    # No file may grow beyond 4 kB: the line that would only half fit is written half.
    full = subprocess.run(
        ["bash", "-c", 'ulimit -f 4; exec "$@"', "-", *stand_in.command(BATCH)],
        cwd=str(stand_in.folder), env=stand_in.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert full.returncode == 1
    assert b"journal.jsonl" in full.stderr and b"Traceback" not in full.stderr
    assert (stand_in.jobs / "journal.jsonl").stat().st_size == 4096
    assert last_line(stand_in.run(BATCH)) == "40 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == dict.fromkeys(files, 1)


def test_an_exit_status_that_is_none_is_a_failure(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.process('echo nonsense >"$GLOBUS_JOB.results"', "sleep 2")
    assert "FAILED a: exit status 255" in stand_in.run(BATCH).out
