"""How a run is stopped: by Ctrl-C, by the driver's own walltime, by the removal of jobs/."""
import os
import re
import shutil
import signal
import time
import types

import pytest
from conftest import (
    BATCH,
    HOLD,
    KEEP,
    begun,
    copy_downloads,
    end,
    hold,
    last_line,
    processed,
    put_before,
    state_of,
    wait_until,
)
from in_process import load

DRIVER = load("globus-batch-download")


def test_ctrl_c_leaves_the_jobs_and_tells_how_to_go_on_and_how_to_cancel(every_cluster, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    every_cluster.config("FILES_PER_JOB = 2", "NUM_JOBS = 2")
    every_cluster.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = every_cluster.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    wait_until(lambda: b"(job" in driver.stderr.readline())
    driver.send_signal(signal.SIGINT)
    err = driver.communicate()[1].decode()
    (every_cluster.folder / "go").touch()
    assert driver.returncode == 130 and "Traceback" not in err
    assert "Start this script again" in err and re.search(r"(scancel|qdel) \d+\S* \d+", err)
    done = every_cluster.run(BATCH)
    assert last_line(done) == "4 processed, 0 failed, 0 not needed"
    assert set(processed(every_cluster).values()) == {1}


@pytest.mark.long
def test_ctrl_c_during_a_submission_tells_of_a_job_that_may_be_there(copying, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(copying, tmp_path, "sbatch", 'touch "$0.begun"; sleep 3; exec "$real" "$@"')
    copying.process(*KEEP)
    driver = copying.start(BATCH)
    wait_until((tmp_path / "before" / "sbatch.begun").exists)
    driver.send_signal(signal.SIGINT)
    time.sleep(0.5)  # two at once would be one
    driver.send_signal(signal.SIGINT)
    err = driver.communicate()[1].decode()
    assert driver.returncode == 130
    assert "1 job left in the queue (1 not yet confirmed)" in err
    assert last_line(copying.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert processed(copying) == {"a": 1}


def test_ctrl_c_while_sbatch_takes_its_time_says_what_it_waits_for(copying, emulator, tmp_path):
    emulator.add({"a": b"1"})
    go, asked = tmp_path / "go", tmp_path / "asked"
    put_before(copying, tmp_path, "sbatch", "touch %s; until [ -e %s ]; do sleep 0.1; done" % (
        asked, go), 'exec "$real" "$@"')
    driver = copying.start(BATCH)
    wait_until(asked.exists)
    driver.send_signal(signal.SIGINT)
    wait_until(lambda: b"Stopping, as soon as sbatch has answered." in driver.stderr.readline())
    go.touch()
    assert b"Stopped. 1 job left in the queue." in driver.communicate()[1]
    assert driver.returncode == 130


@pytest.mark.parametrize("where", ["process.sh", "download"])
def test_jobs_end_when_their_folder_is_removed_and_so_does_the_driver(where, stand_in, emulator,
                                                                      tmp_path):
    emulator.add({"f%d" % n: b"%d" % n for n in range(4)})
    stand_in.config("FILES_PER_JOB = 2", "NUM_JOBS = 2")
    stand_in.process(*HOLD, *KEEP)
    if where == "process.sh":
        copy_downloads(stand_in)
    held = [hold(stand_in, "f%d" % n) for n in range(4)]
    emulator.bend(slots=0 if where == "download" else 3)
    driver = stand_in.start(BATCH)
    wait_until(lambda: len(begun(stand_in) if where == "process.sh" else emulator.tasks()) == 2)
    os.rename(str(stand_in.jobs), str(tmp_path / "removed"))
    shutil.rmtree(str(tmp_path / "removed"))
    last, status, said = end(driver)
    assert status == 1
    assert str(stand_in.jobs) in said and "removed" in said
    assert not stand_in.jobs.exists()
    emulator.bend(slots=3)
    for path in held:
        path.unlink()
    wait_until(lambda: all(state_of(tmp_path, job) != "RUNNING" for job in (1000, 1001)))
    assert len(begun(stand_in)) == (2 if where == "process.sh" else 0)
    assert not stand_in.jobs.exists()


@pytest.mark.parametrize("number", [signal.SIGXCPU, signal.SIGUSR2, signal.SIGTERM])
def test_the_signals_at_the_end_of_a_walltime_stop_the_driver_as_ctrl_c_does(number):
    driver = types.SimpleNamespace(stopping=False, is_submitting=False)
    before = {signum: signal.getsignal(signum) for signum in DRIVER.helper.ENDING_SIGNALS}
    try:
        DRIVER.install_signal_handlers(driver)
        handler = signal.getsignal(number)
        assert callable(handler)
        handler(number, None)
        assert driver.stopping
        assert signal.getsignal(number) == signal.default_int_handler  # a second one, at once
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_a_driver_that_is_ended_by_its_own_walltime_says_how_to_go_on(copying, emulator):
    emulator.add({"a": b"1"})
    copying.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = copying.start(BATCH)
    wait_until(lambda: b"submitted" in driver.stderr.readline())
    driver.send_signal(signal.SIGXCPU)
    err = driver.communicate()[1].decode()
    assert driver.returncode == 130
    assert "Stopped. 1 job left in the queue.\nStart this script again to continue" in err
    (copying.folder / "go").touch()
    assert last_line(copying.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
