"""globus-batch-download.py and helper.py, "packs": jobs of several files (FILES_PER_JOB), in which
each file has a result of its own."""
import re
import subprocess
import types

import pytest
from conftest import (
    BATCH,
    KEEP,
    PATH,
    SINGLE,
    SOURCE,
    contents,
    copier,
    copy_downloads,
    count_events,
    journal,
    kill,
    last_line,
    processed,
    put_before,
    wait_until,
)
from in_process import load

DRIVER = load("globus-batch-download")

KILL = "kill -KILL $PPID $$"  # process.sh, killing the job's script
ONCE = ("if not os.path.exists('once'):\n        open('once', 'w').close()\n"
        "        raise OSError(122, 'Disk quota exceeded', folder)\n    ")
MOMENTS = {"before its folder": "os.makedirs(folder, exist_ok=True)\n    write_whole(",
           "before the list of its files": 'write_whole(os.path.join(folder, "files")'}


# ---- how files are packed ----


def packs_of(site):
    """The files of each pack, in order."""
    return [[path for path, _, _ in event["files"]] for event in journal(site)
            if event["event"] == "pack"]


def test_a_pack_is_one_transfer_task_and_one_job_and_nothing_is_left_of_it(packs, emulator):
    files = emulator.add({"%s%02d" % (place, n): b"%d" % n
                          for n in range(7) for place in ("f", "it's a folder/f")})
    packs.config("RECURSIVE = True")
    done = packs.run(BATCH)
    assert last_line(done) == "14 processed, 0 failed, 0 not needed", done.err
    assert contents(packs.folder / "out") == files
    assert processed(packs) == dict.fromkeys(files, 1)
    assert len(emulator.tasks()) == count_events(packs, "submit") == len(packs_of(packs)) < 7
    assert sorted(path.name for path in packs.jobs.iterdir()) == ["driver.lock", "journal.jsonl"]
    assert list(packs.downloads.iterdir()) == []
    # The sizes that the driver listed save the questions.
    assert not [line for line in emulator.requests() if "/stat" in line and "%2Ff0" in line]


def sizes_of_packs(files, seconds_per_file):
    """How many files the packs get, if nothing fails."""
    config, sizes = types.SimpleNamespace(FILES_PER_JOB=5, NUM_JOBS=2), []
    while sum(sizes) < files:
        sizes.append(min(files - sum(sizes),
                         DRIVER.pack_size(files - sum(sizes), config, seconds_per_file)))
    return sizes


def test_packs_are_full_from_the_first_one_on_and_get_smaller_towards_the_end():
    unknown = float("inf")
    assert sizes_of_packs(30, unknown)[:4] == sizes_of_packs(30, 100)[:4] == [5, 5, 5, 5]
    sizes = sizes_of_packs(14, 100)
    assert sizes[0] == 5 and sizes[-1] == 1 and sizes == sorted(sizes, reverse=True)


def test_packs_of_files_that_take_no_time_do_not_get_smaller():
    assert sizes_of_packs(23, 0.01) == [5, 5, 5, 5, 3]


def test_packs_are_full_while_files_are_listed(copying, emulator):
    emulator.add({"d%d/%s" % (n, name): b"x" for n in range(6) for name in "ab"})
    emulator.bend_collection(SOURCE, list_seconds=0.2)
    copying.config("RECURSIVE = True", "FILES_PER_JOB = 4", "NUM_JOBS = 1")
    copying.edit(BATCH, "LISTING_SECONDS = 1 ", "LISTING_SECONDS = 0 ")
    copying.process('printf "%s\\n" "$GLOBUS_NAME" >>processed')
    driver = copying.start(BATCH)
    wait_until(lambda: sum(processed(copying).values()) > 0)
    kill(driver)
    copying.run(BATCH)
    assert [len(files) for files in packs_of(copying)] == [4, 4, 4]
    assert sum(processed(copying).values()) == 12


# ---- a file that fails fails alone ----


def test_each_file_of_a_pack_that_fails_fails_alone_with_its_own_reason(packs, emulator):
    source = emulator.source / "home/share/godata"
    emulator.add({"f%d" % n: b"x" for n in range(10)})
    emulator.bend(troubles=[{"path": "f3$", "code": "PERMISSION_DENIED"}], retry_seconds=0.2)
    packs.config("FILES_PER_JOB = 10", "MAX_FAILURES_IN_A_ROW = None",
                 "helper.ARRIVAL_SECONDS = 1", "def is_file_needed(file):",
                 "    if file.path == 'f9':",  # they are gone, and changed, since they were listed
                 "        os.remove(%r)" % str(source / "f4"),
                 "        open(%r, 'w').write('more')" % str(source / "f5"), "    return True")
    packs.process('case $GLOBUS_NAME in f1) echo "no good"; exit 3 ;; f2) exit 4 ;; esac',
                  "echo fine", *KEEP)
    done = packs.run(BATCH)
    assert last_line(done) == "6 processed, 4 failed, 0 not needed"
    assert re.search(r"FAILED f1: exit status 3: no good \(on \S+, jobs/.*\.log\)", done.out)
    assert "FAILED f2: exit status 4" in done.out
    assert re.search("FAILED f3: .*permission denied", done.out)
    assert re.search("FAILED f4: .*file not found", done.out)
    assert packs.downloaded() == {"f1": b"x", "f2": b"x"}
    assert contents(packs.folder / "out") == dict(
        {"f%d" % n: b"x" for n in (0, 6, 7, 8, 9)}, f5=b"more")


def run_several(site, *names, env=None):
    site.env.update(env or {})
    return site.run(SINGLE, "--globus-path", PATH,
                    *[word for name in names for word in ("--file", name)])


def test_a_signal_between_two_files_costs_neither(copying, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(3)})
    copying.config("FILES_PER_JOB = 3", "NUM_JOBS = 1", "POLL_SECONDS = 0.5")
    copying.process('[ "$GLOBUS_NAME" != f1 ] || ! mkdir once 2>/dev/null || kill $PPID', *KEEP)
    assert last_line(copying.run(BATCH)) == "3 processed, 0 failed, 0 not needed"
    assert processed(copying) == {"f%d" % n: 1 for n in range(3)}


def test_a_stat_that_is_refused_fails_that_file_alone(site, emulator):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    site.config("MAX_BYTES = 100")
    emulator.fault("/stat.*path=.*b$", status=403, json={
        "code": "PermissionDenied", "message": "not yours"})
    done = run_several(site, "a", "b", "c")
    assert done.returncode == 1
    assert done.out == "%s/a\n\n%s/c\n" % (site.downloads, site.downloads)


# ---- killed jobs ----


def test_a_file_whose_job_is_killed_at_work_on_it_is_tried_again_and_fails_alone_the_second_time(
        packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(10)})
    packs.config("POLL_SECONDS = 0.5", "MAX_FAILURES_IN_A_ROW = 2")
    packs.process('echo "$GLOBUS_NAME" >>begun', "case $GLOBUS_NAME in f1) %s ;; "
                  "f6) mkdir once 2>/dev/null && %s ;; esac" % (KILL, KILL), *KEEP)
    done = packs.run(BATCH)
    assert last_line(done) == "9 processed, 1 failed, 0 not needed"
    assert "FAILED f1: killed twice while it was processed: " in done.out
    assert "will be submitted again" in done.err and "in a row" not in done.err
    assert processed(packs) == {"f%d" % n: 1 for n in range(10) if n != 1}
    begun = (packs.folder / "begun").read_text().splitlines()
    assert begun.count("f1") == begun.count("f6") == 2 and len(begun) == 12
    assert len(emulator.tasks()) == len(packs_of(packs))  # nothing is sent again


def test_a_cancelled_job_fails_with_the_file_at_work_only(copying, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(6)})
    copying.config("FILES_PER_JOB = 3", "NUM_JOBS = 2", "POLL_SECONDS = 0.5")
    copying.process('if [ "$GLOBUS_NAME" = f1 ]; then touch begun; sleep 100; fi', *KEEP)
    driver = copying.start(BATCH)
    wait_until((copying.folder / "begun").exists)
    name = next(event["pack"] for event in journal(copying)
                if event["event"] == "pack" and "f1" in [path for path, _, _ in event["files"]])
    job = wait_until(lambda: next((event["id"] for event in journal(copying)
                                   if event["event"] == "queued" and event["pack"] == name), None))
    subprocess.run(["scancel", job], env=copying.env, check=True)
    out = driver.communicate()[0].decode()
    assert out.splitlines()[-1] == "5 processed, 1 failed, 0 not needed"
    assert "FAILED f1: the job was cancelled" in out
    assert processed(copying) == {"f%d" % n: 1 for n in range(6) if n != 1}


def download_with(site, tmp_path, *lines):
    """Put a script before what brings a job's files, which is bring "$@"."""
    copy_downloads(site)
    (tmp_path / "download").write_text("\n".join(
        ["#!/bin/bash", 'bring() { exec %s "$@"; }' % copier(site), *lines]) + "\n")
    (tmp_path / "download").chmod(0o755)
    site.edit("wrapper.sh", "PYTHON=%s" % copier(site), "PYTHON=%s" % (tmp_path / "download"))


def test_a_job_that_is_killed_while_it_downloads_is_submitted_again_and_costs_no_file(
        stand_in, emulator, tmp_path):
    emulator.add({"f%02d" % n: b"x" for n in range(12)})
    stand_in.config("FILES_PER_JOB = 5", "NUM_JOBS = 1", "POLL_SECONDS = 0.5",
                    "MAX_FAILURES_IN_A_ROW = 2")
    download_with(stand_in, tmp_path, 'mkdir "$0.once" 2>/dev/null || bring "$@"', KILL)
    done = stand_in.run(BATCH)
    assert last_line(done) == "12 processed, 0 failed, 0 not needed"
    assert "in a row" not in done.err  # one failure, however many files it had


@pytest.mark.long
def test_files_whose_jobs_are_always_killed_while_they_download_fail_in_the_end(
        stand_in, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    stand_in.config("FILES_PER_JOB = 4", "NUM_JOBS = 1", "POLL_SECONDS = 0.5")
    stand_in.edit(BATCH, "MOST_FRUITLESS = 10", "MOST_FRUITLESS = 3")
    download_with(stand_in, tmp_path, "echo >>%s" % (tmp_path / "tries"), KILL)
    done = stand_in.run(BATCH)
    assert last_line(done) == "0 processed, 4 failed, 0 not needed"
    assert ("FAILED 4 files: 3 attempts ended without a result: no exit status, and the scheduler "
            "says FAILED") in done.out
    assert (tmp_path / "tries").read_bytes().count(b"\n") == 3


@pytest.mark.long
def test_jobs_that_are_all_killed_while_they_download_stop_the_run(stand_in, emulator, tmp_path):
    emulator.add({"f%02d" % n: b"x" for n in range(20)})
    stand_in.config("FILES_PER_JOB = 5", "NUM_JOBS = 1", "POLL_SECONDS = 0.5",
                    "MAX_FAILURES_IN_A_ROW = 3")
    download_with(stand_in, tmp_path, "[ ! -e %s ] || bring \"$@\"" % (tmp_path / "fixed"), KILL)
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "STOPPING: 3 files or jobs failed in a row" in done.err
    assert "the scheduler says FAILED" in done.err
    assert last_line(done) == "0 processed, 0 failed, 0 not needed"
    (tmp_path / "fixed").touch()
    assert last_line(stand_in.run(BATCH)) == "20 processed, 0 failed, 0 not needed"


@pytest.mark.long
def test_a_requeued_job_that_was_killed_at_work_leaves_the_rest_to_another(
        copying, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(5)})
    copying.config("FILES_PER_JOB = 5", "NUM_JOBS = 1", "POLL_SECONDS = 0.5")
    put_before(copying, tmp_path, "sbatch", 'cat >"$0.script"',
               'echo "bash $0.script; sleep 1; SLURM_RESTART_COUNT=1 bash $0.script" |',
               '"$real" "$@"')
    copying.process('if [ "$GLOBUS_NAME" = f2 ] && mkdir once; then %s; fi' % KILL, *KEEP)
    assert last_line(copying.run(BATCH)) == "5 processed, 0 failed, 0 not needed"
    assert processed(copying) == {"f%d" % n: 1 for n in range(5)}
    assert count_events(copying, "submit") == 2


# ---- on a full disk ----


@pytest.mark.parametrize("moment,where", [
    ("before its folder", "job"), ("before the list of its files", "driver"),
    pytest.param("before its folder", "driver", marks=pytest.mark.long),
    pytest.param("before the list of its files", "job", marks=pytest.mark.long)])
def test_a_pack_that_a_full_disk_left_half_set_up_is_set_up_again(
        moment, where, copying, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    copying.config("FILES_PER_JOB = 2", "NUM_JOBS = 2", "DOWNLOAD_BY = %r" % where)
    copying.edit("helper.py", MOMENTS[moment], ONCE + MOMENTS[moment])
    copying.process(*KEEP)
    done = copying.run(BATCH)
    assert "Waiting: Disk quota exceeded" in done.err
    assert last_line(done) == "4 processed, 0 failed, 0 not needed", done.err
    assert set(processed(copying).values()) == {1}
