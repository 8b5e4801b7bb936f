"""globus-batch-download.py --status, and the numbers at the end."""
import contextlib
import fcntl
import os
import re
from pathlib import Path

import pytest
from conftest import BATCH, journal, kill, wait_until
from in_process import add_pack, load, make_driver

DRIVER = load("globus-batch-download")
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


def status_of(site, capsys):
    """The same lines, asked in this process."""
    capsys.readouterr()
    assert DRIVER.status(str(site.folder)) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def at_work(copying, emulator):
    """A site whose driver has processed a and b, of which b failed, and works on c and d; e is not
    submitted yet."""
    emulator.add(dict.fromkeys("abcde", b"xyz"))
    copying.config("NUM_JOBS = 2")
    copying.process('[ "$GLOBUS_NAME" != b ] || exit 1', 'touch "$GLOBUS_NAME.begun"',
                    'until [ "$GLOBUS_NAME" = a ] || [ -e go ]; do sleep 0.1; done')
    copying.driver = copying.start(BATCH)
    wait_until(lambda: all((copying.folder / (name + ".begun")).exists() for name in "cd") and [
        event["event"] for event in journal(copying)].count("over") == 2)
    yield copying
    (copying.folder / "go").touch()
    copying.driver.communicate()


def test_before_the_first_start_there_is_nothing_to_tell(tmp_path, capsys):
    DRIVER.status(str(tmp_path))
    assert capsys.readouterr().out == (
        "Nothing has been listed yet, in %s/jobs.\nNo driver is running.\n" % tmp_path)


def test_a_run_tells_its_numbers_its_jobs_and_its_driver(at_work):
    *numbers, first, second, last = ask(at_work)
    assert NUMBERS.fullmatch("\n".join(numbers)).groups() == ("1", "5", "1", "1", "3 B"), numbers
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    for line in (first, second):
        assert re.fullmatch(r"  job \d+  on \S+  [cd], since " + stamp, line), line
    assert re.fullmatch(r"The driver is running, on %s as process %d, since %s\." % (
        re.escape(os.uname().nodename), at_work.driver.pid, stamp), last), last


@pytest.mark.parametrize("token,words", [
    ("ticket.1", "in the queue"),
    ("at.1.7.node-a-3-4.get", "on node-a  downloading 2 files, since T"),
    ("at.1.7.node-a-3-4.1", "on node-a  b\\x01, since T"),
    ("stop.1.7.node-a-3-4.0", "on node-a  a, since T"),
    ("end.1.7.node-a-3-4.1.0", "has ended, since T")])
def test_a_job_is_described_by_its_token(token, words, tmp_path):
    driver = make_driver(DRIVER, tmp_path)
    name = add_pack(driver, "a", "b\x01")
    driver.append("submit", pack=name, attempt=1, results=0)
    (tmp_path / "jobs" / name / token).touch()
    said = DRIVER.describe_job(driver.path(name), driver.state.packs[name])
    assert re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", "T", said) == words


def open_files(pid):
    """The paths of the files that a process has open."""
    paths = []
    for fd in Path("/proc/%d/fd" % pid).iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was just closed
            paths.append(Path(os.readlink(str(fd))))
    return paths


def test_a_driver_that_was_killed_is_not_running_and_asking_is_not_in_the_way_of_the_next(
        at_work, capsys):
    at_work.driver.kill()
    at_work.driver.wait()
    assert re.match(r"No driver is running; the last one was on .* as process %d, " %
                    at_work.driver.pid, status_of(at_work, capsys)[-1])
    (at_work.folder / "go").touch()
    path = at_work.jobs / "driver.lock"
    with path.open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)  # as --status holds it
        at_work.driver = at_work.start(BATCH)
        wait_until(lambda: path in open_files(at_work.driver.pid))
    out, err = at_work.driver.communicate()
    assert out.endswith(b"4 processed, 1 failed, 0 not needed\n"), err


def test_after_the_end_its_numbers_are_those_of_the_summary(stand_in, emulator, capsys):
    emulator.add({"a": b"x" * 1500, "b": b"1", "c\x01": b""})
    stand_in.process('[ "$GLOBUS_NAME" != b ]')
    done = stand_in.run(BATCH)
    *_, first, second, numbers = done.out.splitlines()
    assert numbers == "1 processed, 2 failed, 0 not needed"
    said = first + "\n" + second
    assert NUMBERS.fullmatch(said).groups() == ("1", "3", "2", "1", "1.5 kB")
    assert [re.sub(r" in .*", "", text) for text in (
        "\n".join(status_of(stand_in, capsys)[:2]), said)] == [
        re.sub(r" in .*", "", said)] * 2


def test_a_second_start_counts_the_run_and_what_it_does_itself(copying, emulator, capsys):
    emulator.add({"a": b"1", "b": b"22", "c": b"333"})
    copying.process('touch "$GLOBUS_NAME.begun"',
                    'until [ "$GLOBUS_NAME" = a ] || [ -e go ]; do sleep 0.1; done')
    driver = copying.start(BATCH)
    wait_until(lambda: (copying.folder / "c.begun").exists()
               and status_of(copying, capsys)[0][0] == "1")
    kill(driver)
    driver = copying.start(BATCH)
    assert b"Resuming" in driver.stderr.readline()
    (copying.folder / "go").touch()
    said = driver.communicate()[0].decode().splitlines()
    assert said[-1] == "3 processed, 0 failed, 0 not needed"
    assert NUMBERS.fullmatch("\n".join(said[-3:-1])).groups() == ("3", "3", "0", "2", "5 B")


def test_a_journal_that_is_none_is_told(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "journal.jsonl").write_text("what?\n")
    with pytest.raises(DRIVER.helper.UserError, match="journal.jsonl is damaged"):
        DRIVER.status(str(tmp_path))


@pytest.mark.long
def test_beside_a_driver_another_one_is_refused_with_how_to_ask_and_a_dry_run_says_that_it_runs(
        at_work):
    done = at_work.run(BATCH)
    assert done.returncode == 1
    assert "as process %d, since" % at_work.driver.pid in done.err
    assert "How it is doing: globus-batch-download.py --status" in done.err
    done = at_work.run(BATCH, "--dry-run")
    assert "The driver is running, on %s as process %d, since" % (
        os.uname().nodename, at_work.driver.pid) in done.err and "interrupted" not in done.err
    assert done.out.splitlines()[-1].startswith("2 to process")  # the one that failed, and e
