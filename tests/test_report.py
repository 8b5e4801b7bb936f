"""What the batch driver reports: the first lines of its log, failures, and the end."""
import re
import signal
import subprocess

from conftest import BATCH, KEEP, journal, last_line, put_before, wait_until

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def test_the_end_names_data_time_bytes_rate_and_retries(stand_in, emulator):
    emulator.add(dict.fromkeys("abc", b"xyz"))
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process('[ "$GLOBUS_NAME" != b ] || mkdir once || exit 0', '[ ! -d once ] || '
                     '[ "$GLOBUS_NAME" != b ] || kill -9 $PPID', *KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 0
    assert re.fullmatch(r"Run \w{5}, %s to %s, from\n"
                        r"/home/share/godata/ on collection [0-9a-f-]{36}\n"
                        r"3 of 3 files processed, 0 failed\.\n"
                        r"Since the start at %s: 3 files, 9 B in \d+ s, \d+ B/s, 1 retry\n"
                        r"3 processed, 0 failed, 0 not needed\n" % (TIME, TIME, TIME), done.out)
    assert max(map(len, done.out.splitlines())) <= 80


def test_a_limit_takes_a_spread_of_the_list_and_the_log_begins_with_it(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(30)})
    done = stand_in.run(BATCH, "--dry-run", "--limit", "3")
    assert [line.split()[-1] for line in done.out.splitlines()[:3]] == ["f09", "f19", "f29"]
    assert done.out.endswith(
        "27 files left out by --limit\n3 to process, 0 refused, 0 not needed\n")
    done = stand_in.run(BATCH, "--limit", "3")
    assert "3 of 30 files to process (3 B), 0 not needed" in done.err.splitlines()[0]
    assert last_line(done) == "3 processed, 0 failed, 0 not needed"
    assert sorted(path.name for path in stand_in.results.iterdir()) == [
        "f09.sha256", "f19.sha256", "f29.sha256"]


def test_jobs_that_are_cancelled_together_are_one_line(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(12)})
    stand_in.config("NUM_JOBS = 12", "POLL_SECONDS = 3", "MAX_FAILURES_IN_A_ROW = None")
    stand_in.process("touch begun.$GLOBUS_NAME; exec sleep 60")
    driver = stand_in.start(BATCH)
    wait_until(lambda: len(list(stand_in.folder.glob("begun.*"))) == 12)
    ids = [event["id"] for event in journal(stand_in) if event["event"] == "queued"]
    subprocess.run(["scancel", *ids], check=True, env=stand_in.env)
    out, err = driver.communicate()
    told = re.findall(r"FAILED (?:(\d+) files, such as )?f\d\d: the job was cancelled "
                      r"\(on \S+, jobs/\S+/log\)\n", err.decode())
    # Unless a poll comes in between, it is one line.
    assert sum(int(number or 1) for number in told) == 12 and len(told) < 7, err
    assert out.decode().splitlines()[-1] == "0 processed, 12 failed, 0 not needed"


def test_an_edit_of_config_py_during_a_run_is_told_once(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("POLL_SECONDS = 0.2")
    stand_in.process("until [ -e go ]; do sleep 0.1; done")
    driver = stand_in.start(BATCH)
    wait_until(lambda: len(journal(stand_in)) > 3)
    stand_in.config("NUM_JOBS = 7")
    words = b"config.py has changed; it takes effect at the next start."
    wait_until(lambda: words in driver.stderr.readline())
    (stand_in.folder / "go").touch()
    assert words not in driver.communicate()[1]


def test_a_filter_that_still_wants_what_was_processed_is_told_of_while_the_run_goes_on(
        stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("NUM_JOBS = 1", "helper.ARRIVAL_SECONDS = 0.5",
                    "def is_file_needed(file): return True")
    stand_in.process('[ "$GLOBUS_NAME" = a ] || until [ -e go ]; do sleep 0.1; done')
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"is_file_needed still wants 1 of the 1 processed file, such as a."
               in driver.stderr.readline())
    (stand_in.folder / "go").touch()
    out, err = driver.communicate()
    assert b"still wants" not in err
    assert out.endswith(b"2 processed, 0 failed, 0 not needed\n")


def test_ctrl_c_while_sbatch_takes_its_time_says_what_it_waits_for(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    go, asked = tmp_path / "go", tmp_path / "asked"
    put_before(stand_in, tmp_path, "sbatch", "touch %s; until [ -e %s ]; do sleep 0.1; done" % (
        asked, go), 'exec "$real" "$@"')
    driver = stand_in.start(BATCH)
    wait_until(asked.exists)
    driver.send_signal(signal.SIGINT)
    wait_until(lambda: b"Stopping, as soon as sbatch has answered." in driver.stderr.readline())
    go.touch()
    assert b"Stopped. 1 job left in the queue." in driver.communicate()[1]
    assert driver.returncode == 130
