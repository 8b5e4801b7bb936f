"""globus-batch-download.py, "the journal and the state": a journal that is damaged, of another
version, or cannot be written."""
import errno
import os
import subprocess

import pytest
from conftest import BATCH, KEEP, last_line, processed

# name: a journal that no driver of this version has written; what is said
OTHERS = {
    "no event of a pack": (
        '{"event": "run", "run": "abcde", "version": 3, "identity": {}, "time": 1}\n'
        '{"event": "submit"}\n', "journal.jsonl is damaged"),
    "no JSON": ('{"event": "run", "run": "abcde", "version": 3, "identity": {}, "time": 1}\n'
                "\0\0\0\n", "journal.jsonl is damaged"),
    "no object": ('["run"]\n', "journal.jsonl is damaged"),
    "an older version": (
        '{"event": "run", "run": "g1", "source": ["x", "y"]}\n'
        '{"event": "submit", "job": "g1-1", "path": "a", "size": 1}\n',
        "journal.jsonl is of another version of these scripts"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_journal_that_cannot_be_read_is_refused_with_the_way_out(name, played):
    text, words = OTHERS[name]
    (played.folder / "journal.jsonl").write_text(text)
    with pytest.raises(played.module.helper.UserError) as refusal:
        played.start("a")
    assert words in str(refusal.value) and refusal.value.status == 2
    assert str(refusal.value).endswith("To forget that run, cancel its jobs and remove the folder "
                                       + str(played.folder))
    assert (played.folder / "journal.jsonl").read_text() == text


def test_a_journal_of_an_older_version_is_no_obstacle_if_its_run_was_finished(played):
    (played.folder / "journal.jsonl").write_text(
        OTHERS["an older version"][0] + '{"event": "finished"}\n')
    assert played.start("a").finish() == (1, 0)


def test_a_damaged_journal_stops_the_driver_before_it_submits_anything(copying, emulator):
    emulator.add({"a": b"1"})
    copying.jobs.mkdir()
    (copying.jobs / "journal.jsonl").write_text(OTHERS["no JSON"][0])
    done = copying.run(BATCH)
    assert done.returncode == 2
    assert "journal.jsonl is damaged" in done.err and "remove the folder" in done.err
    assert not list((copying.folder.parent / "stand-in").iterdir())


@pytest.mark.long
def test_a_full_disk_under_the_journal_loses_nothing(copying, emulator):
    files = ["%02d" % n + "x" * 200 for n in range(24)]
    emulator.add(dict.fromkeys(files, b"x"))
    copying.config("FILES_PER_JOB = 4")
    copying.process(*KEEP)
    # What else writes files.
    copying.env.pop("COVERAGE_PROCESS_START", None)
    copying.env["PYTHONDONTWRITEBYTECODE"] = "yes"
    # No file may grow beyond 8 kB: the line that would only half fit is written half.
    full = subprocess.run(
        ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", *copying.command(BATCH)],
        cwd=str(copying.folder), env=copying.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert full.returncode == 1
    assert b"journal.jsonl" in full.stderr and b"Traceback" not in full.stderr
    assert (copying.jobs / "journal.jsonl").stat().st_size == 8192
    assert last_line(copying.run(BATCH)) == "24 processed, 0 failed, 0 not needed"
    assert processed(copying) == dict.fromkeys(files, 1)


@pytest.mark.parametrize("call", range(1, 9))
def test_a_journal_that_cannot_be_written_for_a_moment_ends_the_driver_and_loses_no_file(
        call, played, monkeypatch):
    real, calls = os.fstat, []

    def fstat(number):
        calls.append(number)
        if len(calls) == call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(number)

    played.start("a", "b")
    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(played.module.helper.UserError) as stop:
        played.finish()
    assert str(stop.value) == (
        "Input/output error: %s/journal.jsonl\nFix that, and start this script again; it continues "
        "where it stopped." % played.folder)
    played.kill()
    assert played.start().finish() == (2, 0) and played.processed == {"a": 1, "b": 1}


def test_a_refused_submission_is_no_retry_but_a_job_for_a_pack_that_had_one_is(played):
    def numbers():
        return played.module.describe_numbers(played.driver.state, 0)

    played.plays["sbatch"] = lambda command: (1, "", "sbatch: error: busy")
    played.start("a").step()
    played.plays["sbatch"] = played.accept
    played.poll(2)
    assert list(played.jobs) == ["1000"] and "retr" not in numbers()
    played.jobs["1000"].begin()
    played.jobs["1000"].die("NODE_FAIL")
    played.poll(3)
    assert "1001" in played.jobs and numbers().endswith(", 1 retry")
