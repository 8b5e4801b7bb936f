"""globus-batch-download.py and helper.py, "packs": jobs of several files (FILES_PER_JOB), in which
each file has a result of its own."""
import os
import re
import subprocess
import sys

import pytest
from conftest import (
    BATCH,
    KEEP,
    PATH,
    SINGLE,
    SOURCE,
    contents,
    journal,
    kill,
    last_line,
    processed,
    put_before,
    strange_tree,
    wait_until,
)

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


def test_a_pack_is_one_transfer_task_and_one_job(packs, emulator):
    files = emulator.add({"f%02d" % n: b"%d" % n for n in range(20)})
    done = packs.run(BATCH)
    assert last_line(done) == "20 processed, 0 failed, 0 not needed", done.err
    assert contents(packs.folder / "out") == files
    assert processed(packs) == dict.fromkeys(files, 1)
    assert len(emulator.tasks()) == len(packs_of(packs)) < 10
    assert [event["event"] for event in journal(packs)].count("submit") == len(packs_of(packs))


def test_packs_are_full_from_the_first_one_on(packs, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(30)})
    assert last_line(packs.run(BATCH)) == "30 processed, 0 failed, 0 not needed"
    assert [len(pack) for pack in packs_of(packs)][:4] == [5, 5, 5, 5]


def test_packs_get_smaller_towards_the_end(packs, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(14)})
    packs.edit(BATCH, "LEAST_SECONDS = 10", "LEAST_SECONDS = 0")
    packs.run(BATCH)
    sizes = [len(pack) for pack in packs_of(packs)]
    assert sizes[0] == 5 and sizes[-1] == 1 and sizes == sorted(sizes, reverse=True)


def test_packs_of_files_that_take_no_time_do_not_get_smaller(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(23)})
    stand_in.config("FILES_PER_JOB = 5", "NUM_JOBS = 2", "MAX_FAILURES_IN_A_ROW = None")
    stand_in.run(BATCH)
    sizes = [len(pack) for pack in packs_of(stand_in)]
    assert set(sizes[:-1]) == {5}


def test_names_of_any_kind_travel_in_packs(packs, emulator):
    tree = emulator.add(strange_tree())
    packs.config("RECURSIVE = True")
    assert last_line(packs.run(BATCH)) == "30 processed, 0 failed, 0 not needed"
    assert contents(packs.folder / "out") == tree
    assert sorted(os.listdir(str(packs.jobs))) == ["driver.lock", "journal.jsonl"]
    assert list(packs.downloads.iterdir()) == []


def test_limit_counts_files(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(9)})
    assert last_line(packs.run(BATCH, "--limit", "7")) == "7 processed, 0 failed, 0 not needed"


def test_the_sizes_that_the_driver_listed_save_the_questions(packs, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(30)})
    packs.config("FILES_PER_JOB = 30", "NUM_JOBS = 1")
    assert last_line(packs.run(BATCH)) == "30 processed, 0 failed, 0 not needed"
    assert len(packs_of(packs)) == 1
    assert not [line for line in emulator.requests() if "/stat" in line and "%2Ff" in line]


def test_packs_are_full_while_files_are_listed(stand_in, emulator):
    emulator.add({"d%d/%s" % (n, name): b"x" for n in range(6) for name in "ab"})
    emulator.bend_collection(SOURCE, list_seconds=0.2)
    stand_in.config("RECURSIVE = True", "FILES_PER_JOB = 4", "NUM_JOBS = 1")
    stand_in.edit(BATCH, "LISTING_SECONDS = 1 ", "LISTING_SECONDS = 0 ")
    stand_in.process('printf "%s\\n" "$GLOBUS_NAME" >>processed')
    driver = stand_in.start(BATCH)
    wait_until(lambda: sum(processed(stand_in).values()) > 0)
    kill(driver)
    stand_in.run(BATCH)
    packs = [event["files"] for event in journal(stand_in) if event["event"] == "pack"]
    assert [len(files) for files in packs] == [4, 4, 4]
    assert sum(processed(stand_in).values()) == 12


# ---- a file that fails fails alone ----


def test_a_file_that_fails_in_process_sh_fails_alone_with_its_own_last_words(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(10)})
    packs.process('case $GLOBUS_NAME in f1) echo "no good"; exit 3 ;; f2) exit 4 ;; esac',
                  "echo fine", *KEEP)
    done = packs.run(BATCH)
    assert last_line(done) == "8 processed, 2 failed, 0 not needed"
    assert re.search(r"FAILED f1: exit status 3: no good \(on \S+, jobs/.*\.log\)", done.out)
    assert "FAILED f2: exit status 4" in done.out
    assert packs.downloaded() == {"f1": b"x", "f2": b"x"}


def test_a_file_that_cannot_be_read_fails_alone_with_globus_s_reason(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(10)})
    emulator.bend(troubles=[{"path": "f3$", "code": "PERMISSION_DENIED"}], retry_seconds=0.2)
    done = packs.run(BATCH)
    assert last_line(done) == "9 processed, 1 failed, 0 not needed"
    assert re.search("FAILED f3: .*permission denied", done.out)


def test_a_file_that_is_gone_since_it_was_listed_fails_alone(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(10)})
    packs.config("import os", "def is_file_needed(file):",
                 "    if file.path == 'f9': os.remove(%r)"
                 % str(emulator.source / "home/share/godata/f2"),
                 "    return True")
    done = packs.run(BATCH)
    assert last_line(done) == "9 processed, 1 failed, 0 not needed"
    assert re.search("FAILED f2: .*file not found", done.out)


def test_a_file_that_changed_its_size_since_it_was_listed_is_taken_as_it_is(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(10)})
    packs.config("helper.ARRIVAL_SECONDS = 1", "def is_file_needed(file):",
                 "    if file.path == 'f9': open(%r, 'w').write('more')"
                 % str(emulator.source / "home/share/godata/f2"), "    return True")
    assert last_line(packs.run(BATCH)) == "10 processed, 0 failed, 0 not needed"
    assert contents(packs.folder / "out")["f2"] == b"more"


def run_several(site, *names, env=None):
    site.env.update(env or {})
    return site.run(SINGLE, "--globus-path", PATH,
                    *[word for name in names for word in ("--file", name)])


def test_a_signal_between_two_files_costs_neither(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(6)})
    packs.config("POLL_SECONDS = 0.5")
    packs.process('[ "$GLOBUS_NAME" != f1 ] || ! mkdir once 2>/dev/null || kill $PPID', *KEEP)
    assert last_line(packs.run(BATCH)) == "6 processed, 0 failed, 0 not needed"
    assert processed(packs) == {"f%d" % n: 1 for n in range(6)}


def test_a_stat_that_is_refused_fails_that_file_alone(site, emulator):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    site.config("MAX_BYTES = 100")
    emulator.fault("/stat.*path=.*b$", status=403, json={
        "code": "PermissionDenied", "message": "not yours"})
    done = run_several(site, "a", "b", "c")
    assert done.returncode == 1
    assert done.out == "%s/a\n\n%s/c\n" % (site.downloads, site.downloads)


# ---- killed jobs ----


def test_a_file_whose_job_is_killed_twice_while_at_work_on_it_fails_alone(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(10)})
    packs.config("POLL_SECONDS = 0.5")
    packs.process('echo "$GLOBUS_NAME" >>begun',
                  "case $GLOBUS_NAME in f1) %s ;; esac" % KILL, *KEEP)
    done = packs.run(BATCH)
    assert last_line(done) == "9 processed, 1 failed, 0 not needed"
    assert "FAILED f1: killed twice while it was processed: " in done.out
    assert processed(packs) == {"f%d" % n: 1 for n in range(10) if n != 1}
    begun = (packs.folder / "begun").read_text().splitlines()
    assert begun.count("f1") == 2 and len(begun) == 11
    assert len(emulator.tasks()) == len(packs_of(packs))  # nothing is sent again


def test_a_job_that_is_killed_once_is_submitted_again_and_costs_no_file(packs, emulator):
    files = emulator.add({"f%d" % n: b"x" for n in range(10)})
    packs.config("POLL_SECONDS = 0.5", "MAX_FAILURES_IN_A_ROW = 2")
    packs.process("case $GLOBUS_NAME in f1) mkdir once 2>/dev/null && %s ;; esac" % KILL, *KEEP)
    done = packs.run(BATCH)
    assert last_line(done) == "10 processed, 0 failed, 0 not needed"
    assert "will be submitted again" in done.err and "in a row" not in done.err
    assert processed(packs) == dict.fromkeys(files, 1)
    assert len(emulator.tasks()) == len(packs_of(packs))


def test_a_cancelled_job_fails_with_the_file_at_work_only(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(10)})
    packs.config("POLL_SECONDS = 0.5")
    packs.process('if [ "$GLOBUS_NAME" = f1 ]; then touch begun; sleep 100; fi', *KEEP)
    driver = packs.start(BATCH)
    wait_until((packs.folder / "begun").exists)
    name = next(event["pack"] for event in journal(packs)
                if event["event"] == "pack" and "f1" in [path for path, _, _ in event["files"]])
    job = wait_until(lambda: next((event["id"] for event in journal(packs)
                                   if event["event"] == "queued" and event["pack"] == name), None))
    subprocess.run(["scancel", job], env=packs.env, check=True)
    out = driver.communicate()[0].decode()
    assert out.splitlines()[-1] == "9 processed, 1 failed, 0 not needed"
    assert "FAILED f1: the job was cancelled" in out
    assert processed(packs) == {"f%d" % n: 1 for n in range(10) if n != 1}


def download_with(site, tmp_path, *lines):
    """Put a script before the Python of a job's download; $python goes on."""
    (tmp_path / "download").write_text("\n".join(
        ["#!/bin/bash", "python() { exec %s \"$@\"; }" % sys.executable, *lines]) + "\n")
    (tmp_path / "download").chmod(0o755)
    site.edit("wrapper.sh", "\nPYTHON=", "\nPYTHON=%s\n: " % (tmp_path / "download"))


def test_a_job_that_is_killed_while_it_downloads_is_submitted_again_and_costs_no_file(
        stand_in, emulator, tmp_path):
    emulator.add({"f%02d" % n: b"x" for n in range(12)})
    stand_in.config("FILES_PER_JOB = 5", "NUM_JOBS = 1", "POLL_SECONDS = 0.5",
                    "MAX_FAILURES_IN_A_ROW = 2")
    download_with(stand_in, tmp_path, 'mkdir "$0.once" 2>/dev/null || python "$@"', KILL)
    done = stand_in.run(BATCH)
    assert last_line(done) == "12 processed, 0 failed, 0 not needed"
    assert "in a row" not in done.err  # one failure, however many files it had


def test_files_whose_jobs_are_always_killed_while_they_download_fail_in_the_end(
        stand_in, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    stand_in.config("FILES_PER_JOB = 4", "NUM_JOBS = 1", "POLL_SECONDS = 0.5")
    stand_in.edit(BATCH, "MOST_FRUITLESS = 10", "MOST_FRUITLESS = 3")
    download_with(stand_in, tmp_path, "echo >>%s" % (tmp_path / "tries"), KILL)
    done = stand_in.run(BATCH)
    assert last_line(done) == "0 processed, 4 failed, 0 not needed"
    assert ("FAILED 4 files: 3 attempts ended without a result: the scheduler says FAILED"
            in done.out)
    assert (tmp_path / "tries").read_bytes().count(b"\n") == 3


def test_jobs_that_are_all_killed_while_they_download_stop_the_run(stand_in, emulator, tmp_path):
    emulator.add({"f%02d" % n: b"x" for n in range(40)})
    stand_in.config("FILES_PER_JOB = 5", "NUM_JOBS = 1", "POLL_SECONDS = 0.5",
                    "MAX_FAILURES_IN_A_ROW = 3")
    download_with(stand_in, tmp_path, "[ ! -e %s ] || python \"$@\"" % (tmp_path / "fixed"), KILL)
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "STOPPING: 3 files or jobs failed in a row" in done.err
    assert "the scheduler says FAILED" in done.err
    assert last_line(done) == "0 processed, 0 failed, 0 not needed"
    (tmp_path / "fixed").touch()
    assert last_line(stand_in.run(BATCH)) == "40 processed, 0 failed, 0 not needed"


def test_a_requeued_job_that_was_killed_at_work_leaves_the_rest_to_another(
        packs, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(5)})
    packs.config("NUM_JOBS = 1", "POLL_SECONDS = 0.5")
    put_before(packs, tmp_path, "sbatch", 'cat >"$0.script"',
               'echo "bash $0.script; sleep 1; SLURM_RESTART_COUNT=1 bash $0.script" |',
               '"$real" "$@"')
    packs.process('if [ "$GLOBUS_NAME" = f2 ] && mkdir once; then %s; fi' % KILL, *KEEP)
    assert last_line(packs.run(BATCH)) == "5 processed, 0 failed, 0 not needed"
    assert processed(packs) == {"f%d" % n: 1 for n in range(5)}
    assert [event["event"] for event in journal(packs)].count("submit") == 2


# ---- on a full disk ----


@pytest.mark.parametrize("where", ["job", "driver"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_pack_that_a_full_disk_left_half_set_up_is_set_up_again(
        moment, where, stand_in, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    stand_in.config("FILES_PER_JOB = 2", "NUM_JOBS = 2", "DOWNLOAD_BY = %r" % where)
    stand_in.edit("helper.py", MOMENTS[moment], ONCE + MOMENTS[moment])
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert "Waiting: Disk quota exceeded" in done.err
    assert last_line(done) == "4 processed, 0 failed, 0 not needed", done.err
    assert set(processed(stand_in).values()) == {1}
