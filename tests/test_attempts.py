"""globus-batch-download.py, "the token of an attempt", and results: a job that begins twice, late,
or after it was given up, begins no file that another one has."""
import errno
import os
import subprocess
import time

import pytest
from conftest import (
    BATCH,
    FIRST_TIME,
    HOLD,
    KEEP,
    NEEDED,
    begun,
    contents,
    copy_downloads,
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
)

# ---- begun twice ----


def test_a_requeued_job_begins_again_and_is_not_lost(real_slurm, emulator):
    emulator.add({"a": b"1"})
    copy_downloads(real_slurm).config("RESOURCES = '--requeue'")
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


@pytest.mark.long
def test_the_exit_status_of_a_try_that_the_scheduler_stopped_is_not_the_job_s_end(
        copying, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(copying, tmp_path, "sbatch", 'cat >"$0.script"',
               'echo "bash $0.script; sleep 1; bash $0.script" | "$real" "$@"')
    copying.config("POLL_SECONDS = 0.2")
    copying.process("! mkdir once 2>/dev/null || { kill -TERM $PPID; exit 143; }", *KEEP)
    done = copying.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
    assert count_events(copying, "submit") == 2  # by the driver, not by the second try
    assert processed(copying) == {"a": 1}


@pytest.mark.long
def test_a_job_that_is_begun_again_after_its_end_does_nothing(copying, emulator, tmp_path):
    """Also while the driver takes its result: between its look at the tokens and its move, and
    after that."""
    files = emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    put_before(copying, tmp_path, "sbatch", 'cat >"$0.$$"',
               'echo "bash $0.$$; bash $0.$$; echo >>over" | "$real" "$@"')
    put_before(copying, tmp_path, "mv", "case $* in", '*/g2-*) sleep 0.6; exec "$real" "$@" ;;',
               '*/g3-*) "$real" "$@"; status=$?; sleep 0.6; exit $status ;; esac',
               'exec "$real" "$@"')
    copying.process(*KEEP)
    assert last_line(copying.run(BATCH)) == "3 processed, 0 failed, 0 not needed"
    over = copying.folder / "over"
    wait_until(lambda: over.exists() and over.read_text() == "\n\n\n")
    assert processed(copying) == dict.fromkeys(files, 1)


def test_a_job_that_is_begun_again_when_the_next_run_has_begun_does_nothing(
        copying, emulator, tmp_path):
    """Whatever counts restarts, or does not: PBS does not."""
    emulator.add({"a": b"1"})
    folder = put_before(copying, tmp_path, "sbatch", 'cp /dev/stdin "$0.${@: -1}"',
                        'exec "$real" "$@" <"$0.${@: -1}"')
    copying.process(*KEEP)
    assert last_line(copying.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    job, = folder.glob("sbatch.g*")
    copying.config("def is_file_needed(file): return True")
    copying.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = copying.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    for job_id in ("SLURM_JOB_ID=7", "SLURM_JOB_ID=1000", "PBS_JOBID=1000.host"):
        subprocess.run(["bash", "-c", "export %s; bash %s" % (job_id, job)],
                       env=copying.env, check=False, stdin=subprocess.DEVNULL)
    assert processed(copying) == {"a": 1}
    number, _, run = job.name[len("sbatch."):].partition(".1-")
    assert not (copying.jobs / (number + "-" + run)).exists()
    (copying.folder / "go").touch()
    assert driver.communicate()[0].endswith(b"1 processed, 0 failed, 0 not needed\n")
    assert processed(copying) == {"a": 2}


def start_again(site, job):
    """Start a job's script once more, as a scheduler does that has lost sight of its node."""
    script = next(site.jobs.glob("*/wrapper.sh"))
    return subprocess.Popen(["bash", str(script)], cwd=str(site.folder),
                            env=dict(site.env, SLURM_JOB_ID=job), stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("at", ["f1", *(
    pytest.param(name, marks=pytest.mark.long) for name in ("f0", "f2"))])
def test_a_requeued_job_whose_first_incarnation_lives_on(at, copying, emulator):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(3)})
    copying.config("FILES_PER_JOB = 3", "NUM_JOBS = 1", NEEDED)
    copying.process(*HOLD, '[ "$GLOBUS_NAME" != f1 ] || { echo no good; exit 3; }', *KEEP)
    one = hold(copying, at)
    driver = copying.start(BATCH)
    wait_until(is_begun(copying, at))
    second = start_again(copying, wait_until(lambda: queued(copying))[0])
    assert second.wait(60) == 0  # the driver decides; it works on nothing that may be at work
    one.unlink()
    last, status, said = end(driver)
    assert (last, status) == ("2 processed, 1 failed, 0 not needed", 1), said
    assert "FAILED f1: exit status 3: no good" in said
    good = {name: content for name, content in files.items() if name != "f1"}
    assert processed(copying) == dict.fromkeys(good, 1)
    assert contents(copying.folder / "out") == good
    assert begun(copying) == dict.fromkeys(files, 1)
    assert last_line(copying.run(BATCH)) == "0 processed, 1 failed, 2 not needed"


# ---- begun after it was given up ----


def test_a_job_that_was_given_up_does_nothing_though_it_begins_after_a_restart(
        copying, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    folder = put_before(copying, tmp_path, "sbatch", FIRST_TIME, 'cat >"$0.script"',
                        "exec sleep 100")
    copying.edit(BATCH, "SUBMIT_SECONDS = 300", "SUBMIT_SECONDS = 1")
    copying.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = copying.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    driver.kill()
    driver.communicate()

    def begin():
        subprocess.run(["bash", str(folder / "sbatch.script")], check=False,
                       env=dict(copying.env, SLURM_JOB_ID="999"), stdin=subprocess.DEVNULL)
        assert not list(copying.jobs.glob("*/*.999.*"))

    driver = copying.start(BATCH)
    begin()  # it would wait for `go`
    (copying.folder / "go").touch()
    assert driver.communicate()[0].endswith(b"2 processed, 0 failed, 0 not needed\n")
    begin()
    assert processed(copying) == {"a": 1, "b": 1}


def test_a_job_that_was_given_up_by_a_driver_that_was_killed_then_loses_no_file(played):
    played.start("a", "b", "c", "d", FILES_PER_JOB=4, NUM_JOBS=1).step()
    job = played.jobs["1000"]
    (job.folder / "ticket.1").rename(job.folder / "gone.1")  # and then it was killed
    played.kill()
    played.start().step()
    assert played.count("closed") == 1
    assert played.finish() == (4, 0)
    assert not job.begin() and played.processed == {"a": 1, "b": 1, "c": 1, "d": 1}


# ---- results, and the disk that they are on ----


def list_folders(monkeypatch, change):
    """Let listings of packs' folders be changed, by a function of folder and names."""
    real = os.listdir

    def listdir(path="."):
        names = real(path)
        return change(path, names) if "/jobs/g" in str(path) else names

    monkeypatch.setattr(os, "listdir", listdir)


def test_a_result_that_is_gone_when_it_is_read_is_none(played, monkeypatch):
    """As where a shared file system still lists what is not there any more."""
    list_folders(monkeypatch, lambda folder, names: names + ["results.1.7.node-1-2"])
    assert played.start("a").finish() == (1, 0)


def test_a_job_that_is_not_listed_is_not_closed_for_a_token_that_was_just_being_moved(played):
    played.start("a").step()
    played.jobs.pop("1000").begin(0)
    name, = played.driver.state.submitted()
    for _ in range(9):
        played.driver.look_at_entry(name, None, None)
        played.pass_by(1)
    assert played.driver.state.submitted()


def test_a_full_disk_under_a_token_fails_no_file(played, monkeypatch):
    real, times = played.module.helper.write_whole, []

    def write_whole(path, text):
        if "/ticket." in path and len(times) < 3:
            times.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        real(path, text)

    monkeypatch.setattr(played.module.helper, "write_whole", write_whole)
    assert played.start("a", "b").finish() == (2, 0)
    assert played.text().count("Waiting: No space left on device") == 1 and len(times) == 3
    assert played.processed == {"a": 1, "b": 1} and not played.driver.failures


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
def test_a_disk_that_is_out_of_order_for_a_moment_is_told_and_waited_for(
        code, played, monkeypatch):
    left = [3]

    def fail(folder, names):
        if played.jobs and left[0]:
            left[0] -= 1
            raise OSError(code, os.strerror(code), folder)
        return names

    list_folders(monkeypatch, fail)
    played.start("a").poll(5)
    assert left == [0] and played.finish() == (1, 0)
    assert [text for text in played.said if text.startswith("Waiting: ")] == [
        "Waiting: %s: %s. Trying again." % (os.strerror(code), played.jobs["1000"].folder)]


@pytest.mark.parametrize("text", [
    "nonsense\n", "0 -1\n", "0 0x\n", "0\n", " 0 0\n", "0 \n", "x 0\n", "0 0", "0 3\0\n", "\n"])
def test_a_line_of_results_that_is_none_is_passed_over(text, played):
    played.start("a").step()
    job = played.jobs["1000"]
    job.begin(0)
    (job.folder / "results.0.7.node-1-2").write_text(text)
    played.poll()
    assert not played.driver.state.packs[job.folder.name].results
    job.report(status=3)
    job.end(1)
    played.poll()
    assert played.driver.failures["a"].words == "exit status 3"


def test_a_result_of_a_file_that_a_pack_does_not_have_is_passed_over(played):
    played.start("a").step()
    (played.jobs["1000"].folder / "results.0.7.node-1-2").write_text("7 0\n")
    assert played.finish() == (1, 0)


def test_half_a_line_of_a_result_is_none(copying, emulator):
    """The disk took '1 3' of '1 3' and its line feed, and then the job was killed."""
    emulator.add({"f%d" % n: b"x" for n in range(3)})
    copying.config("FILES_PER_JOB = 3", "NUM_JOBS = 1", "GRACE_SECONDS = 2", "POLL_SECONDS = 0.3")
    copying.process('if [ $GLOBUS_NAME = f1 ] && mkdir killed 2>/dev/null; then',
                    "printf '1 3' >>\"$(ls jobs/g1-*/results.* | head -n 1)\"",
                    "kill -KILL $PPID $$; fi", *KEEP)
    done = copying.run(BATCH)
    assert last_line(done) == "3 processed, 0 failed, 0 not needed", done.err
    assert processed(copying) == {"f0": 1, "f1": 1, "f2": 1}
