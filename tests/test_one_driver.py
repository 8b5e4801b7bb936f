"""globus-batch-download.py, "one driver at a time": a second driver in one WORKING_DIR is refused,
or noticed where locks do not work."""
import errno
import fcntl
import os
import signal

import pytest
from conftest import BATCH, KEEP, processed, wait_until
from in_process import load

read = load("globus-batch-download")


def test_a_second_driver_is_refused(copying, emulator):
    emulator.add({"a": b"1"})
    copying.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    first = copying.start(BATCH)
    wait_until(lambda: b"(job" in first.stderr.readline())
    second = copying.run(BATCH)
    (copying.folder / "go").touch()
    assert second.returncode == 1
    assert second.err.startswith("Another globus-batch-download.py is running in %s, on %s as "
                                 "process %d, since 20" % (
                                     copying.folder, os.uname().nodename, first.pid))
    first.communicate()
    assert first.returncode == 0 and processed(copying) == {"a": 1}


def test_a_second_writer_of_the_journal_stops_the_driver(played):
    """As where locks hold on one host only, and a driver was started on another one."""
    played.start("a", "b", NUM_JOBS=1).step()
    with open(str(played.folder / "journal.jsonl"), "a") as file:
        file.write("\n")
    with pytest.raises(played.module.helper.UserError, match="Another driver writes to "):
        played.finish()
    assert len(played.jobs) == 1


def test_of_two_drivers_that_begin_a_new_run_the_first_one_stops(tmp_path):
    """As where the second one begins while the first one lists: each takes the run for a new
    one."""
    first, second = (read.Journal(str(tmp_path / "journal.jsonl")) for _ in range(2))
    first.open(True)
    first.append({"event": "run"})
    second.open(True)
    second.append({"event": "run"})
    with pytest.raises(read.helper.UserError, match="Another driver writes to .*This one stops."):
        first.append({"event": "listed"})
    second.append({"event": "listed"})


# As a file system without flock has it.
NO_FLOCK = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


def test_a_second_driver_without_flock_is_warned_and_the_first_one_stops(
        copying, emulator, tmp_path):
    """Nothing keeps it out; but of two writers of the journal one notices."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(NO_FLOCK)
    copying.env["PYTHONPATH"] = str(tmp_path / "patch")
    emulator.add({"a": b"1", "b": b"2"})
    copying.config("NUM_JOBS = 1")
    copying.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    first = copying.start(BATCH)
    wait_until(lambda: b"(job" in first.stderr.readline())
    copying.config("NUM_JOBS = 2")
    second = copying.start(BATCH)
    assert b"No flock in " in second.stderr.readline()
    wait_until(lambda: b"submitted b" in second.stderr.readline())
    second.send_signal(signal.SIGSTOP)
    (copying.folder / "go").touch()
    assert b"Another driver writes to " in first.communicate()[1] and first.returncode == 1
    second.send_signal(signal.SIGCONT)
    assert second.communicate()[0].endswith(b"2 processed, 0 failed, 0 not needed\n")
    assert second.returncode == 0 and processed(copying) == {"a": 1, "b": 1}


@pytest.mark.parametrize("has_flock", [True, False])
def test_a_killed_driver_keeps_nobody_out(has_flock, tmp_path, monkeypatch):
    said, path = [], tmp_path / "driver.lock"
    monkeypatch.setattr(read.helper, "log", said.append)
    if not has_flock:
        def flock(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", flock)
    pid = os.fork()
    if not pid:
        with read.lock(str(tmp_path)):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert "as process %d, since 20" % pid in path.read_text()
    with read.lock(str(tmp_path)):
        assert "as process %d, since 20" % os.getpid() in path.read_text()
    assert said == [] if has_flock else said[0].startswith(
        "No flock in %s (No locks available): see to it that no second driver is" % tmp_path)
