"""globus-batch-download.py, "one driver at a time": a second driver in one WORKING_DIR is refused,
or noticed where locks do not work."""
import os
import signal

import pytest
from conftest import BATCH, KEEP, journal, last_line, processed, wait_until


def test_a_second_driver_is_refused(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    first = stand_in.start(BATCH)
    wait_until(lambda: b"(job" in first.stderr.readline())
    second = stand_in.run(BATCH)
    (stand_in.folder / "go").touch()
    assert second.returncode == 1
    assert second.err.startswith("Another globus-batch-download.py is running in %s, on %s as "
                                 "process %d, since 20" % (
                                     stand_in.folder, os.uname().nodename, first.pid))
    first.communicate()
    assert first.returncode == 0 and processed(stand_in) == {"a": 1}


def test_a_second_writer_of_the_journal_stops_the_driver(stand_in, emulator):
    """As where locks hold on one host only, and a driver was started on another one."""
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("NUM_JOBS = 1")
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    with open(str(stand_in.jobs / "journal.jsonl"), "a") as file:
        file.write("\n")
    assert b"Another driver writes to " in driver.communicate()[1]
    assert driver.returncode == 1


# As a file system without flock has it.
NO_FLOCK = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


@pytest.fixture
def no_flock(stand_in, tmp_path):
    """The site on a file system that does not support flock."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(NO_FLOCK)
    stand_in.env["PYTHONPATH"] = str(tmp_path / "patch")
    return stand_in


def test_a_second_driver_without_flock_is_warned_and_the_first_one_stops(no_flock, emulator):
    """Nothing keeps it out; but of two writers of the journal one notices."""
    emulator.add({"a": b"1", "b": b"2"})
    no_flock.config("NUM_JOBS = 1")
    no_flock.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    first = no_flock.start(BATCH)
    wait_until(lambda: b"(job" in first.stderr.readline())
    no_flock.config("NUM_JOBS = 2")
    second = no_flock.start(BATCH)
    assert b"No flock in " in second.stderr.readline()
    wait_until(lambda: b"submitted b" in second.stderr.readline())
    second.send_signal(signal.SIGSTOP)
    (no_flock.folder / "go").touch()
    assert b"Another driver writes to " in first.communicate()[1] and first.returncode == 1
    second.send_signal(signal.SIGCONT)
    assert second.communicate()[0].endswith(b"2 processed, 0 failed, 0 not needed\n")
    assert second.returncode == 0 and processed(no_flock) == {"a": 1, "b": 1}


def test_a_second_driver_that_begins_while_the_first_one_lists_is_noticed_without_flock(
        no_flock, emulator):
    """Both take the run for a new one, and only one of them may go on."""
    emulator.add({"a": b"1", "sub/b": b"2"})
    emulator.fault("/ls.*sub", times=1, delay=20)
    no_flock.config("RECURSIVE = True")
    no_flock.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    first = no_flock.start(BATCH)
    wait_until(lambda: journal(no_flock))
    second = no_flock.start(BATCH)
    wait_until(lambda: b"(job" in second.stderr.readline())
    (no_flock.folder / "go").touch()
    assert second.communicate()[0].endswith(b"2 processed, 0 failed, 0 not needed\n")
    assert b"Another driver writes to " in first.communicate()[1]
    assert first.returncode == 1
    assert processed(no_flock) == {"a": 1, "sub/b": 1}


def test_a_killed_driver_keeps_nobody_out_without_flock(no_flock, emulator):
    emulator.add({"a": b"1"})
    no_flock.process("sleep 2", *KEEP)
    first = no_flock.start(BATCH)
    wait_until(lambda: b"(job" in first.stderr.readline())
    first.kill()
    first.wait()
    assert last_line(no_flock.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert processed(no_flock) == {"a": 1}
