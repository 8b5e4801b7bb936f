"""The driver killed at every step, and started again: each file is processed once.

strace injects a SIGKILL at the n-th system call of a kind; nothing in the driver knows of it. A run
takes a sample of the calls; with KILLS=all in its environment all of them, which takes an hour."""
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from conftest import BATCH, journal, last_line, may_trace, processed, put_before

# What changes the outer world: files written, moved, made and removed, commands called, processes
# begun, and what is sent to Globus.
CALLS = ["write", "fsync", "rename", "openat", "unlink", "ftruncate", "mkdir", "rmdir", "vfork",
         "clone", "sendto"]
FILES = ["a", "it's b", "sub/c"]
KILLS = 5  # of a test, where the environment has none
PARTS = 2  # of the kills, so that they run side by side

# Stands in for the Python of a job: brings the files of a pack in a moment.
DOWNLOAD = """#!/bin/bash
pack=$3 number=0
rm -f "$pack/arrived.new"
while IFS=$'\\t' read -r _ _ path; do
  mkdir -p -- "%(downloads)s/${pack##*/}/$(dirname -- "$path")"
  printf x >"%(downloads)s/${pack##*/}/$path"
  echo $((number++)) >>"$pack/arrived.new"
done <"$pack/files"
mv "$pack/arrived.new" "$pack/arrived"
"""


@pytest.fixture
def quick(request, stand_in, emulator, tmp_path):
    """A site whose jobs take a moment: a Python of their own stands in for the download."""
    stand_in.config("FILES_PER_JOB = 3")
    if "driver" in request.param:
        stand_in.config("DOWNLOAD_BY = 'driver'")
        emulator.bend(task_seconds=0)
    emulator.add(dict.fromkeys(FILES, b"x"))
    stand_in.env.pop("COVERAGE_PROCESS_START", None)  # it would add steps of its own,
    stand_in.env["PYTHONDONTWRITEBYTECODE"] = "yes"  # and so would the first run
    stand_in.config("RECURSIVE = True", "NUM_JOBS = 2", "POLL_SECONDS = 0.1", "GRACE_SECONDS = 1")
    download = tmp_path / "download"
    download.write_text(DOWNLOAD % {"downloads": stand_in.downloads})
    download.chmod(0o755)
    stand_in.edit("wrapper.sh", "\nPYTHON=", "\nPYTHON=%s\n: " % download)
    stand_in.process('mark="at work.${GLOBUS_NAME//"/"/_}"', 'mkdir "$mark" || exit 9',
                     'printf "%s\\n" "$GLOBUS_NAME" >>processed', 'rmdir "$mark"')
    return stand_in


def acts(log, calls, start=""):
    """[(system call, its number)] of those in a log of strace that change something, from the first
    line on that holds a text."""
    lines = log.read_text(errors="replace").splitlines()
    first = next(n for n, line in enumerate(lines) if start in line)
    counts, found = Counter(), []
    for number, line in enumerate(lines):
        call = line.split("(")[0]
        counts[call] += 1
        if number >= first and call in calls and not re.match(
                r"write\([12],|openat\((?!.*O_(CREAT|TRUNC))", line):
            found.append((call, counts[call]))
    return found


def sample(steps, part):
    """Some of the steps, by a seed that is printed; with KILLS=all a part of them all."""
    if os.environ.get("KILLS") == "all":
        return steps[part::PARTS]
    seed = int(os.environ.get("KILL_SEED") or random.randrange(1000000))
    print("KILL_SEED=%d" % seed)
    return random.Random(seed).sample(steps, min(len(steps), int(os.environ.get("KILLS", KILLS))))


def trace(site, *options):
    """Run the driver under strace; its outputs are not wanted."""
    return subprocess.run(
        [shutil.which("strace"), "-qq", *options, *site.command(BATCH)], cwd=str(site.folder),
        env=site.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL).returncode


def nothing_yet(site):
    """No run has begun."""
    for name in ("jobs", "downloads", "processed"):
        subprocess.run(["rm", "-rf", str(site.folder / name)], check=True)


def interrupted(site):
    """A run has been killed that had two jobs in the queue; its journal's last line is torn."""
    nothing_yet(site)
    kill_at(site, "fsync", 5)
    with open(str(site.jobs / "journal.jsonl"), "a") as file:
        file.write('{"event": "que')


def kill_at(site, call, number):
    """Run the driver and kill it before its n-th system call of a kind; True if it came to that."""
    options = ["-e", "trace=" + call, "-e", "inject=%s:signal=KILL:when=%d" % (call, number)]
    return trace(site, *options) == -signal.SIGKILL


def is_finished(site):
    return any(event["event"] == "finished" for event in journal(site))


@pytest.mark.long
@pytest.mark.skipif(not may_trace(), reason="strace is not installed, or not allowed to trace")
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("quick,before", [
    ("packs", nothing_yet), ("packs", interrupted),
    ("packs that the driver downloads", nothing_yet)], indirect=["quick"])
def test_killed_before_any_system_call_it_goes_on(before, part, quick, tmp_path, record_property):
    log = tmp_path / "calls"
    before(quick)
    trace(quick, "-o", str(log), "-e", "trace=" + ",".join(CALLS))
    assert processed(quick) == dict.fromkeys(FILES, 1)  # a run that nobody kills
    steps, kills = acts(log, CALLS, str(quick.jobs)), 0
    for call, number in sample(steps, part):
        before(quick)
        kills += kill_at(quick, call, number)
        if not is_finished(quick):  # a next run would be a new one
            done = quick.run(BATCH)
            assert done.returncode == 0, done.err
            assert last_line(done) == "3 processed, 0 failed, 0 not needed", (call, number)
        assert processed(quick) == dict.fromkeys(FILES, 1), (call, number)
    record_property("kills", "%d at %d steps" % (kills, len(steps)))


def trace_job(site, tmp_path, *options):
    """Let strace watch the script of one job."""
    put_before(
        site, tmp_path, "bash", '[[ $1 == */script ]] && mkdir "$0.once" 2>/dev/null || '
        'exec "$real" "$@"', 'exec %s "$real" "$@"' % " ".join([
            shutil.which("strace"), "-qq", *options]))


def trace_download(site, tmp_path, *options):
    """The same for the download of one job."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/bash\nmkdir "$0.once" 2>/dev/null || exec %s "$@"\nexec %s %s "$@"\n' % (
            sys.executable, " ".join([shutil.which("strace"), "-qq", *options]), sys.executable))
    python.chmod(0o755)


@pytest.mark.long
@pytest.mark.skipif(not may_trace(), reason="strace is not installed, or not allowed to trace")
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("watch,where,calls", [
    (trace_job, "job", ["write", "openat", "clone", "dup2"]),
    (trace_job, "driver", ["write", "openat", "clone", "dup2"]),
    (trace_download, "job", ["sendto", "write", "rename", "link", "unlink"])])
def test_a_job_killed_before_any_system_call_is_begun_again_and_costs_no_file(
        watch, where, calls, part, stand_in, emulator, tmp_path, record_property):
    emulator.add(dict.fromkeys(["a", "b", "c"], b"x"))
    emulator.bend(task_seconds=0)
    stand_in.env["PYTHONDONTWRITEBYTECODE"] = "yes"
    stand_in.config("FILES_PER_JOB = 3", "NUM_JOBS = 1", "POLL_SECONDS = 0.1",
                    "GRACE_SECONDS = 60", "DOWNLOAD_BY = %r" % where, "def is_file_needed(file):",
                    "    seen = os.path.join(WORKING_DIR, 'processed')",
                    "    return not (os.path.exists(seen) and file.path in open(seen).read())")
    stand_in.process('mkdir "at work" || exit 9', 'printf "%s\\n" "$GLOBUS_NAME" >>processed',
                     'rmdir "at work"')
    stand_in.edit("wrapper.sh", "\nPYTHON=", "\n[ ! -x %s ] || PYTHON=%s\nPYTHON=" % (
        tmp_path / "python", tmp_path / "python"))
    path, log = stand_in.env["PATH"], tmp_path / "calls"

    def run(*options):
        nothing_yet(stand_in)
        for old in [tmp_path / "before", *tmp_path.glob("python*")]:
            subprocess.run(["rm", "-rf", str(old)], check=True)
        stand_in.env["PATH"] = path
        watch(stand_in, tmp_path, *options)
        done = stand_in.run(BATCH)
        assert last_line(done) == "3 processed, 0 failed, 0 not needed", (options, done.err)
        assert processed(stand_in) == {"a": 1, "b": 1, "c": 1}, (options, done.err)
        assert stand_in.downloaded() == {}, options

    run("-o", str(log), "-e", "trace=" + ",".join(calls))
    steps = acts(log, calls)
    for call, number in sample(steps, part):
        run("-o", os.devnull, "-e", "trace=" + call,
            "-e", "inject=%s:signal=KILL:when=%d" % (call, number))
    record_property("steps", len(steps))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("where,size", [("job", 5), ("driver", 5)])
def test_killed_at_random_moments_again_and_again_it_processes_each_file_once(
        where, size, real_cluster, emulator, record_property):
    files = ["f%02d" % n for n in range(90)]
    emulator.add(dict.fromkeys(files, b"x"))
    real_cluster.config("FILES_PER_JOB = %d" % size, "DOWNLOAD_BY = %r" % where)
    real_cluster.config("NUM_JOBS = 6", "POLL_SECONDS = 0.5", "GRACE_SECONDS = 5")
    real_cluster.process('mkdir "at work.$GLOBUS_NAME" || exit 9', "sleep %d" % min(size, 3),
                         'printf "%s\\n" "$GLOBUS_NAME" >>processed',
                         'rmdir "at work.$GLOBUS_NAME"')
    seed = random.randrange(1000000)
    print("seed", seed)
    chance, kills = random.Random(seed), 0
    while kills < 30 and not is_finished(real_cluster):
        driver = real_cluster.start(BATCH)
        time.sleep(0.5 + chance.random())  # it takes about half a second to begin
        driver.kill()
        driver.communicate()
        kills += 1
    record_property("kills", kills)
    done = real_cluster.run(BATCH)
    assert last_line(done) == "90 processed, 0 failed, 0 not needed", done.err
    assert processed(real_cluster) == dict.fromkeys(files, 1)
    assert kills == 30
