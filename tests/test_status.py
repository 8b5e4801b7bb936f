"""globus-batch-download.py --status, and the numbers at the end."""
import fcntl
import os
import re
from pathlib import Path

import pytest
from conftest import BATCH, wait_until

NUMBERS = re.compile(r"(\d+) of (\d+) files? processed, (\d+) failed\.\nSince the start at "
                     r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d: (\d+) files?, (.+) in \d+ s, .+/s")


def ask(site):
    """The lines of --status, from a terminal without network, login or scheduler."""
    env, site.env = site.env, dict(
        site.env, PATH="/nowhere", GLOBUS_SDK_SERVICE_URL_TRANSFER="http://127.0.0.1:1/",
        GLOBUS_SDK_SERVICE_URL_AUTH="http://127.0.0.1:1/", HOME="/nowhere")
    try:
        done = site.run(BATCH, "--status")
    finally:
        site.env = env
    assert (done.returncode, done.err) == (0, "")
    return done.out.splitlines()


@pytest.fixture
def at_work(stand_in, emulator):
    """A site whose driver has processed a and b, of which b failed, and works on c and d; e is not
    submitted yet."""
    emulator.add(dict.fromkeys("abcde", b"xyz"))
    stand_in.config("NUM_JOBS = 2")
    stand_in.process('[ "$GLOBUS_NAME" != b ] || exit 1',
                     'until [ "$GLOBUS_NAME" = a ] || [ -e go ]; do sleep 0.1; done')
    stand_in.driver = stand_in.start(BATCH)
    wait_until(lambda: sum("processing" in line for line in jobs(stand_in)) == 2)
    yield stand_in
    (stand_in.folder / "go").touch()
    stand_in.driver.communicate()


def jobs(site):
    """What --status says of the jobs, those at work on a file marked as processing."""
    return [re.sub(r" ([cd]), since", r" processing \1, since", line) for line in ask(site)[2:-1]]


def test_before_the_first_start_there_is_nothing_to_tell(stand_in):
    first, last = ask(stand_in)
    assert first == "Nothing has been listed yet, in %s." % stand_in.jobs
    assert last == "No driver is running."


def test_a_run_tells_its_numbers_its_jobs_and_its_driver(at_work):
    *numbers, _, _, last = ask(at_work)
    assert NUMBERS.fullmatch("\n".join(numbers)).groups() == ("1", "5", "1", "1", "3 B"), numbers
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    for line in jobs(at_work):
        assert re.fullmatch(r"  job \d+  on \S+  processing [cd], since " + stamp, line), line
    assert re.fullmatch(r"The driver is running, on %s as process %d, since %s\." % (
        re.escape(os.uname().nodename), at_work.driver.pid, stamp), last), last


def test_a_driver_that_was_killed_is_not_running(at_work):
    at_work.driver.kill()
    at_work.driver.wait()
    assert re.match(r"No driver is running; the last one was on .* as process %d, " %
                    at_work.driver.pid, ask(at_work)[-1])


def test_asking_does_not_stand_in_the_way_of_a_driver_that_starts(at_work):
    at_work.driver.kill()
    at_work.driver.wait()
    (at_work.folder / "go").touch()
    path = at_work.jobs / "driver.lock"
    with path.open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)  # as --status holds it
        at_work.driver = at_work.start(BATCH)
        wait_until(lambda: path in [fd.resolve() for fd in Path(
            "/proc/%d/fd" % at_work.driver.pid).iterdir()])
    out, err = at_work.driver.communicate()
    assert out.endswith(b"4 processed, 1 failed, 0 not needed\n"), err


def test_after_the_end_its_numbers_are_those_of_the_summary(stand_in, emulator):
    emulator.add({"a": b"x" * 1500, "b": b"1", "c\x01": b""})
    stand_in.process('[ "$GLOBUS_NAME" != b ]')
    done = stand_in.run(BATCH)
    *_, first, second, numbers = done.out.splitlines()
    assert numbers == "1 processed, 2 failed, 0 not needed"
    said = first + "\n" + second
    assert NUMBERS.fullmatch(said).groups() == ("1", "3", "2", "1", "1.5 kB")
    assert [re.sub(r" in .*", "", text) for text in ("\n".join(ask(stand_in)[:2]), said)] == [
        re.sub(r" in .*", "", said)] * 2


def test_a_second_start_counts_the_run_and_what_it_does_itself(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"22", "c": b"333"})
    stand_in.process('touch "$GLOBUS_NAME.begun"',
                     'until [ "$GLOBUS_NAME" = a ] || [ -e go ]; do sleep 0.1; done')
    driver = stand_in.start(BATCH)
    wait_until(lambda: (stand_in.folder / "c.begun").exists() and ask(stand_in)[0][0] == "1")
    driver.kill()
    driver.communicate()
    driver = stand_in.start(BATCH)
    assert b"Resuming" in driver.stderr.readline()
    (stand_in.folder / "go").touch()
    said = driver.communicate()[0].decode().splitlines()
    assert said[-1] == "3 processed, 0 failed, 0 not needed"
    assert NUMBERS.fullmatch("\n".join(said[-3:-1])).groups() == ("3", "3", "0", "2", "5 B")


def test_a_journal_that_is_none_is_told(stand_in):
    stand_in.jobs.mkdir()
    (stand_in.jobs / "journal.jsonl").write_text("what?\n")
    done = stand_in.run(BATCH, "--status")
    assert done.returncode == 1 and "journal.jsonl is damaged" in done.err


def test_another_driver_is_refused_with_how_to_ask(at_work):
    done = at_work.run(BATCH)
    assert done.returncode == 1
    assert "as process %d, since" % at_work.driver.pid in done.err
    assert "How it is doing: globus-batch-download.py --status" in done.err


def test_a_dry_run_beside_a_driver_says_that_it_is_running(at_work):
    done = at_work.run(BATCH, "--dry-run")
    assert "The driver is running, on %s as process %d, since" % (
        os.uname().nodename, at_work.driver.pid) in done.err and "interrupted" not in done.err
    assert done.out.splitlines()[-1].startswith("2 to process")  # the one that failed, and e
