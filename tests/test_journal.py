"""globus-batch-download.py, "the journal and the state": a journal that is damaged, of another
version, or cannot be written."""
import subprocess

import pytest
from conftest import BATCH, KEEP, last_line, processed


def test_a_damaged_journal_stops_the_driver_with_the_way_out(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.jobs.mkdir()
    (stand_in.jobs / "journal.jsonl").write_text(
        '{"event": "run", "run": "abcde", "version": 3, "identity": {}}\n{"event": "submit"}\n')
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert "journal.jsonl is damaged" in done.err and "remove the folder" in done.err
    assert emulator.tasks() == []


def test_a_journal_of_an_older_version_is_refused_with_the_way_out(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.jobs.mkdir()
    (stand_in.jobs / "journal.jsonl").write_text(
        '{"event": "run", "run": "g1", "source": ["x", "y"]}\n'
        '{"event": "submit", "job": "g1-1", "path": "a", "size": 1}\n')
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and "is of another version of these scripts" in done.err
    with open(str(stand_in.jobs / "journal.jsonl"), "a") as file:
        file.write('{"event": "finished"}\n')
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


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


def test_a_journal_that_cannot_be_written_for_a_moment_ends_the_driver_and_loses_no_file(
        stand_in, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(6)})
    stand_in.config("import errno", "real, calls = os.fstat, []", "def fstat(fd):",
                    "    calls.append(1)",
                    "    if len(calls) == 12 and not os.path.exists('once'):",
                    "        open('once', 'w'); raise OSError(errno.EIO, os.strerror(errno.EIO))",
                    "    return real(fd)", "os.fstat = fstat")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and f"Input/output error: {stand_in.jobs}/journal" in done.err
    assert last_line(stand_in.run(BATCH)) == "6 processed, 0 failed, 0 not needed"
    assert set(processed(stand_in).values()) == {1}
