"""globus-batch-download.py, "reporting", while it runs: the bar on a terminal, the lines of a log;
neither holds up the loop."""
import fcntl
import os
import pty
import re
import subprocess
import termios
import time

import pytest
from conftest import (
    BATCH,
    DESTINATION,
    KEEP,
    SIMPLE,
    end,
    journal,
    let_go,
    output_of,
    processed,
    put_before,
    wait_until,
)
from in_process import add_pack, load, make_driver

DRIVER = load("globus-batch-download")


def test_a_bar_on_a_terminal_shows_how_far_it_is(copying, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    copying.process("until [ -e go ]; do sleep 0.1; done")
    for screen in copying.watch(BATCH):
        if re.search(r"0:00:\d\d \[\.{8}] 0 of 2 files, 2 jobs in the queue", screen.said):
            let_go(copying)
    assert re.search(r"\r0:00:\d\d \[#{8}] 2 of 2 files, 0 jobs", screen.said)
    assert "submitted" not in screen.said


def test_what_matters_most_fits_80_columns_and_the_bar_takes_what_is_left():
    with_bar = DRIVER.with_bar
    text = "123,456 of 270,000 files, 1,234 failed, ~12.5 h left, 100 jobs in the queue"
    assert with_bar("12:34:56", text, 0.5, 76)[:76] == (
        "12:34:56 123,456 of 270,000 files, 1,234 failed, ~12.5 h left, 100 jobs in t")
    assert with_bar("0:00:01", "1 of 2 files", 0.5, 76) == "0:00:01 [####....] 1 of 2 files"
    assert with_bar("0:00:01", "x" * 60, 0.5, 76) == "0:00:01 [##...] " + "x" * 60


def test_a_log_begins_with_what_it_is_about_and_gets_a_line_of_progress_now_and_then(
        copying, emulator):
    emulator.add({"a": b"1", "b": b"1", "large": b"1" * 9})
    copying.config("FILES_PER_JOB = 2", "MAX_BYTES = 8", "NUM_JOBS = 1",
                   "helper.QUIET_SECONDS = 0.1")
    copying.process("sleep 1")
    err = copying.run(BATCH).err
    lines = [line for line in err.splitlines() if "Listing: " not in line]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  2 files to process \(2 B\), .*", lines[0])
    assert lines[1].startswith("/home/share/godata/ on collection 6c54cade-")
    assert "FILES_PER_JOB = 2" in lines[2]
    # between two lines of a busy log, too
    assert re.search(r"(?m)^[\d-]{10} [\d:]{8}  1 of 3 files, 1 failed, .*1 job in the queue", err)


def test_a_line_of_progress_comes_once_a_minute(tmp_path, monkeypatch):
    driver, said, now = make_driver(DRIVER, tmp_path), [], [1000]
    add_pack(driver, "a")
    monkeypatch.setattr(DRIVER.helper, "log", said.append)
    monkeypatch.setattr(DRIVER.helper, "is_terminal", lambda: False)
    monkeypatch.setattr(DRIVER.helper.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(DRIVER.helper.TOLD, "progress_logged", 1000)
    for now[0] in range(1000, 1121):
        DRIVER.show_progress(driver)
    assert said == ["0 of 1 file, 0 jobs in the queue, 1 pack ahead"] * 2


def many_files(site, emulator):
    files = emulator.add({"%04d-%s" % (n, "x" * 240): b"x" for n in range(400)})
    site.config("FILES_PER_JOB = 200", "MAX_FAILURES_IN_A_ROW = None",
                "def is_file_needed(file): return not os.path.exists(WORKING_DIR + '/processed')")
    site.process('echo "$GLOBUS_NAME" >>processed', "case $GLOBUS_NAME in *[27]-*) exit 3 ;; esac")
    return files


def is_finished(site):
    """True if the driver has seen the end of all files."""
    events = journal(site)
    return events and events[-1]["event"] == "finished"


@pytest.mark.long
def test_a_pipe_that_nobody_reads_does_not_hold_up_the_loop(copying, emulator):
    files = many_files(copying, emulator)
    driver = copying.start(BATCH)
    wait_until(lambda: is_finished(copying), 120)
    assert processed(copying) == dict.fromkeys(files, 1)
    last, status, said = end(driver)
    assert (last, status) == ("320 processed, 80 failed, 0 not needed", 1)
    assert said.count("  processed ") == 320  # what was said is there, later
    assert len(said) > 80000  # more than a pipe holds


@pytest.mark.parametrize("how", ["stopped", pytest.param("not read", marks=pytest.mark.long)])
def test_a_terminal_that_does_not_take_more_does_not_hold_up_the_loop(how, copying, emulator):
    files = many_files(copying, emulator)
    ours, theirs = pty.openpty()
    driver = subprocess.Popen(copying.command(BATCH), cwd=str(copying.folder), env=copying.env,
                              stdin=theirs, stdout=theirs, stderr=theirs)
    if how == "stopped":  # what Ctrl-S does
        termios.tcflow(theirs, termios.TCOOFF)
    wait_until(lambda: is_finished(copying), 120)
    assert processed(copying) == dict.fromkeys(files, 1)
    if how == "stopped":
        termios.tcflow(theirs, termios.TCOON)
    os.close(theirs)
    said = []
    with open(ours, "rb", buffering=0) as terminal:
        try:
            for text in iter(lambda: terminal.read(4096), b""):
                said.append(text)
        except OSError:
            pass  # the script has ended
    assert driver.wait(60) == 1
    said = b"".join(said).decode()
    assert said.rstrip().endswith("320 processed, 80 failed, 0 not needed"), said[-500:]
    assert "Traceback" not in said


def test_a_tiny_pipe_that_is_read_slowly_loses_nothing(copying, emulator):
    emulator.add({"f%03d" % n: b"x" for n in range(200)})
    copying.config("FILES_PER_JOB = 100", "MAX_FAILURES_IN_A_ROW = None")
    copying.process('echo "$GLOBUS_NAME" >>processed')
    ours, theirs = os.pipe()
    fcntl.fcntl(ours, 1031, 4096)  # F_SETPIPE_SZ
    driver = subprocess.Popen(copying.command(BATCH), cwd=str(copying.folder), env=copying.env,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    said = b""
    with open(ours, "rb", buffering=0) as pipe:
        for text in iter(lambda: pipe.read(100), b""):
            said += text
            time.sleep(0.005)
    out = driver.communicate()[0].decode()
    assert out.endswith("200 processed, 0 failed, 0 not needed\n") and driver.returncode == 0
    assert said.decode().count("  processed f") == 200


@pytest.mark.long
def test_a_batch_whose_jobs_are_refused_shows_no_time_left(copying, emulator, tmp_path):
    emulator.add(dict.fromkeys("abcdef", b"1"))
    full = tmp_path / "full"
    put_before(copying, tmp_path, "sbatch", "[ ! -e %s ] || {" % full,
               "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }",
               'exec "$real" "$@"')
    copying.config("NUM_JOBS = 1", "POLL_SECONDS = 0.3")
    copying.process(*KEEP, '[ "$GLOBUS_NAME" != c ] || touch %s' % full)
    seen = []
    for screen in copying.watch(BATCH, columns=160):
        text = " ".join(screen.display)
        if "3 of 6 files, 0 jobs" in text and full.exists() and "did not accept a job" in text:
            seen.append(text.rpartition("3 of 6 files")[2])
            if len(seen) > 3:
                full.unlink()
    assert screen.status == 0
    assert len(seen) > 3 and "left" not in seen[2]


def test_a_download_over_quota_shows_no_time_left(site, emulator):
    emulator.add({"a": b"x" * 500, "b": b"x" * 2000})
    emulator.bend(retry_seconds=0.2, collections={DESTINATION: {"quota": 1000}})
    site.config("import helper", "helper.SLOWEST_POLL = 0.3")
    seen = ""
    for screen in site.watch(SIMPLE, columns=160):
        lines = [line for line in screen.display if "B/s" in line and "over quota" in line]
        if lines and not seen:
            seen = lines[0]
            emulator.bend(collections={DESTINATION: {"quota": None}})
    assert screen.status == 0
    assert "1 of 2 files, 500 B of 2.5 kB" in seen and "left" not in seen


@pytest.mark.long
def test_the_driver_says_why_all_its_jobs_wait(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.process(*KEEP)
    emulator.bend(slots=0)
    driver = stand_in.start(BATCH)
    said = []
    wait_until(lambda: said.append(driver.stderr.readline().decode()) or "wait: " in said[-1])
    assert "  All downloads wait: queued at Globus, which works on three transfer" in said[-1]
    emulator.bend(slots=3)
    rest = output_of(driver)
    assert "All downloads wait" not in rest
    assert "\n2 processed, 0 failed, 0 not needed\n" in rest
