"""tests/demo.sh: it shows what it is to show, and leaves nothing running but with --keep."""
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import TESTS, kinds, wait_until

STORY = [  # lines that a newcomer has to see, in this order
    r"\$ ./globus-login\.py", r"You are logged in; .*", r"3 files: 3 sent, .*",
    r"12 to process, 0 refused, 0 not needed",
    # asked while it runs, and interrupted
    r"(\d+) of 12 files processed, 0 failed\.", r"  job \d+  on \S+ .*",
    r"The driver is running, .*", r".*Stopped\. \d jobs? left in the queue\.",
    r"\[exit status 130\]",
    # resumed, with the file that fails
    r".*Resuming the interrupted run: \d+ processed, \d jobs?( .*)?\.",
    r"FAILED sample-10\.txt\.gz: .*: not in gzip format.*",
    r"11 processed, 1 failed, 0 not needed", r"\[exit status 1\]",
    r"gzip: .*: not in gzip format",
    # fixed
    r"1 processed, 0 failed, 11 not needed", r"results/sample-10\.txt\.gz\.lines:10000",
]


@pytest.fixture(params=kinds(["slurm"], ["slurm"]))
def newcomer(request, tmp_path):
    """The environment of somebody who tries the demo, where Slurm may be installed or not; its
    TMPDIR has a short name, as those of sockets are limited."""
    path = os.environ["PATH"]
    if request.param.startswith("stand-in"):
        path = path_without_apt(tmp_path / "programs")
    elif "slurm" not in os.environ.get("TEST_SCHEDULERS", "").split():
        pytest.skip("no private slurm; tests/run.sh starts one where it may")
    with tempfile.TemporaryDirectory(prefix="demo") as folder:
        yield {"PATH": path, "HOME": str(tmp_path), "TMPDIR": folder, "PYTHON": sys.executable}
        for process in processes_of(folder):  # after a failure
            os.kill(process, signal.SIGKILL)


def path_without_apt(folder):
    """A PATH with all programs of this machine but apt-get: Slurm cannot be installed then."""
    folder.mkdir()
    for place in os.environ["PATH"].split(":"):
        for program in Path(place).glob("*"):
            if program.name != "apt-get" and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return str(folder)


def demo(environment, *options):
    """Run the demo to its end; what is on the screen."""
    done = subprocess.run([str(TESTS / "demo.sh"), *options], env=environment, timeout=300,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    screen = done.stdout.decode()
    assert done.returncode == 0, screen
    return screen


def processes_of(folder):
    """The processes that have a folder in their command line or environment, by id."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = b"".join((process / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:  # another user's, or it has ended
            continue
        if os.fsencode(folder) in text:
            found.append(int(process.name))
    return found


def assert_nothing_is_left(environment):
    assert not processes_of(environment["TMPDIR"])
    assert not os.listdir(environment["TMPDIR"])


def check_story(screen):
    lines = iter(screen.splitlines())
    for step in STORY:
        assert any(re.fullmatch(step, line) for line in lines), (step, screen)


@pytest.mark.long
def test_it_tells_the_whole_story_and_leaves_nothing(newcomer):
    screen = demo(newcomer)
    check_story(screen)
    assert "Nothing is left running" in screen
    assert_nothing_is_left(newcomer)


@pytest.mark.long
def test_kept_it_goes_on_by_hand_until_it_is_ended(newcomer):
    screen = demo(newcomer, "--keep")
    check_story(screen)
    assert processes_of(newcomer["TMPDIR"])
    *commands, end = re.findall(r"(?m)^    (\S.*)$", screen.split("--- Go on by hand ---")[1])
    done = subprocess.run(["bash"], env=newcomer, input="\n".join(commands).encode(), timeout=300,
                          stdout=subprocess.PIPE)
    out = done.stdout.decode()
    assert "9 processed, 0 failed, 3 not needed\n9 of 9 files processed, 0 failed." in out
    assert done.returncode == 0
    subprocess.run(["bash", "-c", end], env=newcomer, check=True)
    assert_nothing_is_left(newcomer)


def test_stopped_by_ctrl_c_in_the_batch_it_leaves_nothing(newcomer, tmp_path):
    screen = tmp_path / "screen"
    with screen.open("w") as file:
        running = subprocess.Popen([str(TESTS / "demo.sh")], env=newcomer, stdin=subprocess.DEVNULL,
                                   stdout=file, stderr=file, start_new_session=True)
    wait_until(lambda: running.poll() is not None or "submitted" in screen.read_text(),
               seconds=200)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(60) == 130, screen.read_text()
    assert_nothing_is_left(newcomer)
