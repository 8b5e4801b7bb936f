"""globus-batch-download.py, "the token of an attempt", and results: a job that begins twice, late,
or after it was given up, begins no file that another one has."""
import subprocess
import time

import pytest
from conftest import (
    BATCH,
    FIRST_TIME,
    HOLD,
    KEEP,
    NEEDED,
    REFUSED,
    begun,
    contents,
    count_events,
    end,
    hold,
    is_begun,
    journal,
    last_line,
    processed,
    put_before,
    queued,
    wait_until,
    with_stand_in,
)

ID = {"slurm": "SLURM_JOB_ID", "sge": "JOB_ID"}


# ---- begun twice ----


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


def start_again(site, job):
    """Start a job's script once more, as a scheduler does that has lost sight of its node."""
    script = next(site.jobs.glob("*/wrapper.sh"))
    env = dict(site.env, **{ID[site.scheduler]: job.split(";")[0]})
    return subprocess.Popen(["bash", str(script)], cwd=str(site.folder), env=env,
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("at", ["f0", "f1", "f2", "f3"])
def test_a_requeued_job_whose_first_incarnation_lives_on(at, cluster, emulator):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(4)})
    cluster.config("FILES_PER_JOB = 4", "NUM_JOBS = 1", NEEDED)
    cluster.process(*HOLD, '[ "$GLOBUS_NAME" != f1 ] || { echo no good; exit 3; }', *KEEP)
    one = hold(cluster, at)
    driver = cluster.start(BATCH)
    wait_until(is_begun(cluster, at))
    second = start_again(cluster, wait_until(lambda: queued(cluster))[0])
    assert second.wait(60) == 0  # the driver decides; it works on nothing that may be at work
    one.unlink()
    last, status, said = end(driver)
    assert (last, status) == ("3 processed, 1 failed, 0 not needed", 1), said
    assert "FAILED f1: exit status 3: no good" in said
    good = {name: content for name, content in files.items() if name != "f1"}
    assert processed(cluster) == dict.fromkeys(good, 1)
    assert contents(cluster.folder / "out") == good
    assert begun(cluster) == dict.fromkeys(files, 1)
    assert last_line(cluster.run(BATCH)) == "0 processed, 1 failed, 3 not needed"


# ---- begun after it was given up ----


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


def test_a_job_that_was_given_up_by_a_driver_that_was_killed_then_loses_no_file(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    put_before(packs, packs.home, "sbatch", 'mkdir "$0.first" 2>/dev/null || exec "$real" "$@"',
               'cat >"$0.script"; (echo "sleep 3"; cat "$0.script") | "$real" "$@"')
    packs.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.5", "NUM_JOBS = 1")
    driver = packs.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    driver.kill()
    driver.communicate()
    name = next(event["pack"] for event in journal(packs) if event["event"] == "queued")
    (packs.jobs / name / "ticket.1").rename(packs.jobs / name / "gone.1")  # and then it was killed
    assert last_line(packs.run(BATCH)) == "4 processed, 0 failed, 0 not needed"
    assert processed(packs) == {"f%d" % n: 1 for n in range(4)}


# ---- results, and the disk that they are on ----


def test_a_result_that_is_gone_when_it_is_read_is_none(stand_in, emulator):
    """As where a shared file system still lists what is not there any more."""
    emulator.add({"a": b"1"})
    stand_in.config("import os", "real = os.listdir", "def listdir(path='.'):",
                    "    stale = ['results.1.7.node-1-2'] if '/jobs/g' in str(path) else []",
                    "    return real(path) + stale", "os.listdir = listdir")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


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


def test_lines_of_results_that_are_none_are_passed_over(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.process("for line in nonsense '0 -1' '0 0x' '7 0' '0' ' 0 0' '0 ' 'x 0'; do",
                     'echo "$line" >>"$(echo jobs/g*)/results.0.7.node-1-2"', "done",
                     "sleep 2", "exit 3")
    done = stand_in.run(BATCH)
    assert last_line(done) == "0 processed, 1 failed, 0 not needed"
    assert "FAILED a: exit status 3" in done.out


STALE = """
import os, errno
real, left = os.listdir, [3]
def listdir(path="."):
    journal = os.path.join(path, "..", "journal.jsonl")
    if "/jobs/g" in str(path) and left[0] and '"queued"' in open(journal).read():
        left[0] -= 1
        raise OSError(errno.%s, os.strerror(errno.%s), path)
    return real(path)
os.listdir = listdir
"""


@pytest.mark.parametrize("code", ["ESTALE", "EIO"])
def test_a_disk_that_is_out_of_order_for_a_moment_is_told_and_waited_for(
        code, stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config(STALE % (code, code))
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
    assert done.err.count("Waiting: ") == 1
    pack, = {event["pack"] for event in journal(stand_in) if "pack" in event}
    assert f": {stand_in.jobs}/{pack}. Trying again.\n" in done.err


def test_half_a_line_of_a_result_is_none(stand_in, emulator):
    """The disk took '1 3' of '1 3' and its line feed, and then the job was killed."""
    emulator.add({"f%d" % n: b"x" for n in range(3)})
    stand_in.config("FILES_PER_JOB = 3", "NUM_JOBS = 1", "GRACE_SECONDS = 2", "POLL_SECONDS = 0.5")
    stand_in.process('if [ $GLOBUS_NAME = f1 ] && mkdir killed 2>/dev/null; then',
                     "printf '1 3' >>\"$(ls jobs/g1-*/results.* | head -n 1)\"",
                     "kill -KILL $PPID $$; fi", *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "3 processed, 0 failed, 0 not needed", done.err
    assert processed(stand_in) == {"f0": 1, "f1": 1, "f2": 1}
