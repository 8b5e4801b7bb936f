"""The driver killed at every step, and started again: each file is processed once.

strace injects a SIGKILL at the n-th system call of a kind; nothing in the driver knows of it."""
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import BATCH, journal, last_line, may_trace, processed, put_before

# What changes the outer world: files written, moved, made and removed, commands called, processes
# begun, and what is sent to Globus.
CALLS = ["write", "fsync", "rename", "openat", "unlink", "ftruncate", "mkdir", "rmdir", "vfork",
         "clone", "sendto"]
FILES = ["a", "it's b", "sub/c"]

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


def trace(site, *options):
    """Run the driver under strace; its outputs are not wanted."""
    return subprocess.run(
        [shutil.which("strace"), "-qq", *options, *site.command(BATCH)], cwd=str(site.folder),
        env=site.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL).returncode


def first_steps(site, tmp_path):
    """{system call: the number of the first one that may concern the state folder}."""
    log = tmp_path / "calls"
    trace(site, "-o", str(log), "-e", "trace=" + ",".join(CALLS))
    lines = log.read_text(errors="replace").splitlines()
    start = next(n for n, line in enumerate(lines) if str(site.jobs) in line)
    calls = [line.split("(")[0] for line in lines[:start]]
    return {call: calls.count(call) + 1 for call in CALLS}


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
@pytest.mark.parametrize("quick,before,call", [
    *[("packs", before, call) for before in (nothing_yet, interrupted) for call in CALLS],
    *[("packs that the driver downloads", nothing_yet, call)
      for call in ("write", "fsync", "openat", "sendto", "vfork")],
], indirect=["quick"])
def test_killed_before_any_system_call_it_goes_on(call, before, quick, tmp_path, record_property):
    before(quick)
    number, kills = first_steps(quick, tmp_path)[call], 0
    before(quick)
    while kill_at(quick, call, number):
        if not is_finished(quick):  # a next run would be a new one
            done = quick.run(BATCH)
            assert done.returncode == 0, done.err
            assert last_line(done) == "3 processed, 0 failed, 0 not needed"
        assert processed(quick) == dict.fromkeys(FILES, 1), (call, number)
        number, kills = number + 1, kills + 1
        before(quick)
    record_property("kills", kills)
    assert processed(quick) == dict.fromkeys(FILES, 1)  # and the last run was whole


def kill_job_at(site, tmp_path, call, number):
    """Let the n-th system call of a kind kill the script of one job; a function that tells whether
    that job came through, because it has no n-th one."""
    strace = shutil.which("strace")
    folder = put_before(
        site, tmp_path, "bash", '[[ $1 == */script ]] && mkdir "$0.once" 2>/dev/null || '
        'exec "$real" "$@"',
        '%s -qq -o /dev/null -e trace=%s -e inject=%s:signal=KILL:when=%d "$real" "$@"'
        % (strace, call, call, number), "status=$?", '[ $status = 137 ] || touch "$0.over"',
        "exit $status")
    return (folder / "bash.over").exists


def kill_download_at(site, tmp_path, call, number):
    """The same for the download of one job."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/bash\nmkdir "$0.once" 2>/dev/null || exec %s "$@"\n' % sys.executable
        + '%s -qq -o /dev/null -e trace=%s -e inject=%s:signal=KILL:when=%d %s "$@"\n'
        % (shutil.which("strace"), call, call, number, sys.executable)
        + 'status=$?\n[ $status = 137 ] || touch "$0.over"\nexit $status\n')
    python.chmod(0o755)
    return (tmp_path / "python.over").exists


@pytest.mark.long
@pytest.mark.skipif(not may_trace(), reason="strace is not installed, or not allowed to trace")
@pytest.mark.parametrize("killed,where,call", [
    (kill_job_at, "job", "write"), (kill_job_at, "job", "openat"), (kill_job_at, "job", "clone"),
    (kill_job_at, "job", "dup2"), (kill_job_at, "driver", "write"),
    (kill_job_at, "driver", "clone"), (kill_download_at, "job", "sendto"),
    (kill_download_at, "job", "rename"), (kill_download_at, "job", "link"),
    (kill_download_at, "job", "unlink")])
def test_a_job_killed_before_any_system_call_is_begun_again_and_costs_no_file(
        killed, where, call, stand_in, emulator, tmp_path, record_property):
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
    path, number, is_over = stand_in.env["PATH"], 0, lambda: False
    while not is_over():
        number += 1
        nothing_yet(stand_in)
        for old in [tmp_path / "before", *tmp_path.glob("python*")]:
            subprocess.run(["rm", "-rf", str(old)], check=True)
        stand_in.env["PATH"] = path
        is_over = killed(stand_in, tmp_path, call, number)
        done = stand_in.run(BATCH)
        assert last_line(done) == "3 processed, 0 failed, 0 not needed", (number, done.err)
        assert processed(stand_in) == {"a": 1, "b": 1, "c": 1}, (call, number, done.err)
        assert stand_in.downloaded() == {}, (call, number)
    record_property("kills", number - 1)
    assert number > 1


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
