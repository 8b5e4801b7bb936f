"""globus-batch-download.py, "the driver": a job that is lost, without a trace for GRACE_SECONDS; it
may live on, so that its files are begun nowhere else."""
from conftest import (
    BATCH,
    HOLD,
    KEEP,
    NEEDED,
    begun,
    calls_of,
    contents,
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
    """A driver that has called the job at work on f0, the first of two files, lost, while it
    works."""
    site.config("FILES_PER_JOB = 2", "NUM_JOBS = 1", "GRACE_SECONDS = 0", "POLL_SECONDS = 0.3",
                NEEDED)
    site.process(*HOLD, '[ -f "$1" ] || [ $n = 1 ] || { echo "it is gone"; exit 44; }', *KEEP)
    hidden = hide_first_job(site, tmp_path)
    held = hold(site, "f0")
    driver = site.start(BATCH)
    wait_until(is_begun(site, "f0"))
    wait_until(lambda: queued(site))
    hidden.touch()
    wait_for(driver, "FAILED f0: the job was lost: no exit status")
    return driver, held


def test_a_lost_job_that_lives_on_deletes_nothing_of_a_later_pack(copying, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(3)})
    driver, held = lose_f0(copying, tmp_path)
    again = hold(copying, "f0", 2)
    last, status, said = end(driver)
    assert (last, status) == ("2 processed, 1 failed, 0 not needed", 1), said
    assert begun(copying) == dict.fromkeys(files, 1)  # not in another job of this run
    driver = copying.start(BATCH)
    wait_until(is_begun(copying, "f0", 2))
    held.unlink()
    wait_until(lambda: state_of(tmp_path, 1000) != "RUNNING")  # it succeeds, and deletes
    assert copying.downloaded() == {"f0": b"0"}
    again.unlink()
    last, status, said = end(driver)
    assert (last, status) == ("1 processed, 0 failed, 2 not needed", 0), said
    assert contents(copying.folder / "out") == files
    assert processed(copying) == dict(dict.fromkeys(files, 1), f0=2)
    assert copying.downloaded() == {}


def test_the_late_success_of_a_lost_job_counts(copying, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(3)})
    rest, calls = hold(copying, "f1"), calls_of(copying, tmp_path, "scancel")
    driver, held = lose_f0(copying, tmp_path)
    wait_until(is_begun(copying, "f1"))
    held.unlink()
    wait_for(driver, "processed f0")
    rest.unlink()
    last, status, said = end(driver)
    assert (last, status) == ("3 processed, 0 failed, 0 not needed", 0), said
    assert processed(copying) == dict.fromkeys(files, 1) and not calls()
    assert not copying.downloaded()


def test_a_lost_job_that_lives_on_does_nothing_more_when_the_next_run_has_begun(
        copying, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"x" for n in range(2)})
    driver, held = lose_f0(copying, tmp_path)
    assert end(driver)[:2] == ("1 processed, 1 failed, 0 not needed", 1)
    copying.config("def is_file_needed(file): return False")
    assert last_line(copying.run(BATCH)) == "0 processed, 0 failed, 2 not needed"
    held.unlink()
    wait_until(lambda: state_of(tmp_path, 1000) != "RUNNING")
    assert processed(copying) == begun(copying) == dict.fromkeys(files, 1)


def test_a_lost_job_does_not_blame_the_last_word_of_a_wait_that_is_over(played):
    played.start("a").step()
    played.jobs["1000"].begin(0)
    (played.jobs["1000"].folder / "log").write_text("Resumed.\n")
    del played.jobs["1000"]
    assert played.finish() == (0, 1)
    assert played.driver.failures["a"].words == (
        "the job was lost: no exit status, and it is not in the queue any more")


def test_a_job_that_reports_after_it_was_lost_has_not_failed(played):
    played.start("a", "b", NUM_JOBS=1, FILES_PER_JOB=2).step()
    job = played.jobs.pop("1000")
    job.begin(0)
    played.poll(8)
    assert list(played.driver.failures) == ["a"] and "FAILED a: the job was lost" in played.text()
    assert not job.begin(1)  # it begins no other file
    job.report()
    assert played.finish() == (2, 0)
    assert played.processed == {"b": 1} and not played.called("scancel")
