"""globus-batch-download.py, "the driver": a job that is lost, without a trace for GRACE_SECONDS; it
may live on, so that its files are begun nowhere else."""
import pytest
from conftest import (
    BATCH,
    DIE,
    HOLD,
    KEEP,
    NEEDED,
    begun,
    contents,
    count_calls,
    end,
    hold,
    is_begun,
    last_line,
    processed,
    put_before,
    queued,
    state_of,
    wait_for,
    wait_until,
)


def hide_first_job(site, tmp_path):
    """A file: while it exists, the queue does not show the first job."""
    path = tmp_path / "hidden"
    put_before(site, tmp_path, "squeue", '[ -e %s ] || exec "$real" "$@"' % path,
               '"$real" "$@" | grep -v "^1000|"')
    return path


def lose_f0(site, tmp_path):
    """A driver that has called the job at work on f0 lost, while it works."""
    site.config("FILES_PER_JOB = 2", "NUM_JOBS = 1", "GRACE_SECONDS = 0", "POLL_SECONDS = 0.3",
                NEEDED)
    site.process(*HOLD, '[ -f "$1" ] || [ $n = 1 ] || { echo "it is gone"; exit 44; }', *KEEP)
    hidden = hide_first_job(site, tmp_path)
    put_before(site, tmp_path, "scancel", "exit 1")
    held = hold(site, "f0")
    driver = site.start(BATCH)
    wait_until(is_begun(site, "f0"))
    wait_until(lambda: queued(site))
    hidden.touch()
    wait_for(driver, "FAILED f0: the job was lost")
    return driver, held


def test_a_lost_job_that_lives_on_deletes_nothing_of_a_later_pack(stand_in, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(4)})
    driver, held = lose_f0(stand_in, tmp_path)
    again = hold(stand_in, "f0", 2)
    last, status, said = end(driver)
    assert (last, status) == ("3 processed, 1 failed, 0 not needed", 1), said
    assert begun(stand_in) == dict.fromkeys(files, 1)  # not in another job of this run
    driver = stand_in.start(BATCH)
    wait_until(is_begun(stand_in, "f0", 2))
    held.unlink()
    wait_until(lambda: state_of(tmp_path, 1000) != "RUNNING")  # it succeeds, and deletes
    assert stand_in.downloaded() == {"f0": b"0"}
    again.unlink()
    last, status, said = end(driver)
    assert (last, status) == ("1 processed, 0 failed, 3 not needed", 0), said
    assert contents(stand_in.folder / "out") == files
    assert processed(stand_in) == dict(dict.fromkeys(files, 1), f0=2)
    assert stand_in.downloaded() == {}


def test_the_late_success_of_a_lost_job_counts(stand_in, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(4)})
    rest = hold(stand_in, "f1")
    driver, held = lose_f0(stand_in, tmp_path)
    wait_until(is_begun(stand_in, "f1"))
    held.unlink()
    wait_for(driver, "processed f0")
    rest.unlink()
    last, status, said = end(driver)
    assert (last, status) == ("4 processed, 0 failed, 0 not needed", 0), said
    assert processed(stand_in) == dict.fromkeys(files, 1)
    assert last_line(stand_in.run(BATCH)) == "0 processed, 0 failed, 4 not needed"


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


@pytest.mark.long
def test_a_lost_job_that_lives_after_all_begins_no_other_file(packs, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(6)})
    blind = tmp_path / "blind"
    put_before(packs, tmp_path, "squeue", '[ -e %s ] || exec "$real" "$@"' % blind,
               "echo 'JOBID|NAME|STATE|REASON'")
    put_before(packs, tmp_path, "scancel", "exit 1")
    packs.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.5", "NUM_JOBS = 1")
    packs.process('if [ "$GLOBUS_NAME" = f1 ]; then', "touch %s" % blind,
                  "while [ -e %s ]; do sleep 0.1; done; sleep 1; fi" % blind, *KEEP)
    driver = packs.start(BATCH)
    wait_until(lambda: b"FAILED f1: the job was lost" in driver.stderr.readline())
    blind.unlink()
    driver.communicate()
    wait_until(lambda: "f1" in processed(packs))  # it was at work on that one
    assert processed(packs) == {"f%d" % n: 1 for n in range(6)}


def test_a_lost_job_does_not_blame_the_last_word_of_a_wait_that_is_over(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | grep -v FAILED')
    stand_in.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.3")
    stand_in.process("echo Resumed. >&2", DIE)
    done = stand_in.run(BATCH)
    assert "FAILED a: the job was lost: no exit status" in done.out
    assert "Resumed." not in done.out


def test_a_lost_job_that_lives_on_does_nothing_more_when_the_next_run_has_begun(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | grep -v "^1000|"')  # the first job
    put_before(stand_in, tmp_path, "scancel", "exit 1")
    stand_in.config("FILES_PER_JOB = 2", "NUM_JOBS = 1", "MAX_FAILURES_IN_A_ROW = None",
                    "GRACE_SECONDS = 5", "POLL_SECONDS = 0.3")
    stand_in.process("case $1 in *a) until [ -e go ]; do sleep 0.1; done ;; esac", *KEEP)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 1 failed, 0 not needed"
    stand_in.config("def is_file_needed(file):", "    return False")
    assert last_line(stand_in.run(BATCH)) == "0 processed, 0 failed, 2 not needed"
    (stand_in.folder / "go").touch()
    states = [path / "state" for path in (tmp_path / "stand-in").iterdir()]
    wait_until(lambda: not any("RUNNING" in state.read_text() for state in states))
    assert processed(stand_in) == {"a": 1, "b": 1}
