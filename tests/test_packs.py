"""Jobs of several files (FILES_PER_JOB), in which each file has a result of its own."""
import contextlib
import os
import re
import subprocess
import sys
import threading
import time

import pytest
from conftest import (
    BATCH,
    KEEP,
    contents,
    journal,
    last_line,
    processed,
    put_before,
    strange_tree,
    wait_until,
)

SINGLE = "globus-single-file-download.py"
KILL = "kill -KILL $PPID $$"  # process.sh, killing the job's script
PATH = "/home/share/godata/"


@pytest.fixture(params=["job", pytest.param("driver", marks=pytest.mark.long)])
def packs(request, stand_in):
    """A site whose jobs carry up to five files, downloaded by the job or by the driver."""
    stand_in.config("FILES_PER_JOB = 5", "NUM_JOBS = 2", "DOWNLOAD_BY = %r" % request.param)
    stand_in.process(*KEEP)
    return stand_in


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


@pytest.mark.long
def test_a_lost_job_that_lives_after_all_begins_no_other_file(packs, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(6)})
    blind = tmp_path / "blind"
    put_before(packs, tmp_path, "squeue", '[ -e %s ] || exec "$real" "$@"' % blind,
               "echo 'JOBID|NAME|STATE|REASON'")
    put_before(packs, tmp_path, "scancel", "exit 1")
    packs.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.5", "NUM_JOBS = 1")
    packs.process('if [ "$GLOBUS_NAME" = f1 ]; then', "touch %s" % blind,
                  "while [ -e %s ]; do sleep 0.1; done; sleep 1; fi" % blind, *KEEP)
    driver = packs.start(BATCH)
    wait_until(lambda: b"FAILED f1: the job was lost" in driver.stderr.readline())
    blind.unlink()
    driver.communicate()
    wait_until(lambda: "f1" in processed(packs))  # it was at work on that one
    assert processed(packs) == {"f%d" % n: 1 for n in range(6)}


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


@pytest.mark.long
def test_max_bytes_holds_for_packs(packs, emulator):
    emulator.add({"f%02d" % n: b"x" * 100 for n in range(20)})
    packs.config("MAX_BYTES = 600")
    most, is_over = [0], threading.Event()

    def watch():
        while not is_over.is_set():
            total = 0
            for folder, _, names in os.walk(str(packs.downloads)):  # which come and go meanwhile
                for name in names:
                    with contextlib.suppress(OSError):
                        total += os.lstat(os.path.join(folder, name)).st_size
            most[0] = max(most[0], total)
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    packs.process("sleep 0.1", *KEEP)
    done = packs.run(BATCH)
    is_over.set()
    thread.join()
    assert last_line(done) == "20 processed, 0 failed, 0 not needed"
    assert 100 < most[0] <= 600


def test_limit_counts_files(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(9)})
    assert last_line(packs.run(BATCH, "--limit", "7")) == "7 processed, 0 failed, 0 not needed"


def kill_when_one_is_processed(driver):
    wait_until(lambda: b"processed f" in driver.stderr.readline())
    driver.kill()
    driver.communicate()


@pytest.mark.long
def test_a_killed_driver_takes_up_packs(packs, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(50)})
    packs.process("sleep 0.2", *KEEP)
    for _ in range(4):
        kill_when_one_is_processed(packs.start(BATCH))
    done = packs.run(BATCH)
    assert last_line(done) == "50 processed, 0 failed, 0 not needed"
    assert processed(packs) == dict.fromkeys(files, 1)


# ---- the wrapper.sh of an older collection, and by hand ----

OLD_WRAPPER = """#!/bin/bash
trap : HUP INT TERM XCPU USR1 USR2
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
export GLOBUS_NAME=$2
file=$("$PYTHON" "$here/globus-single-file-download.py" --globus-path "$1" --file "$2") || exit
bash "$here/process.sh" "$file" || exit
rm -f -- "$file"
"""


def test_an_older_wrapper_is_refused_with_a_message(stand_in, emulator):
    emulator.add({"a": b"1"})
    (stand_in.folder / "wrapper.sh").write_text(OLD_WRAPPER)
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and "wrapper.sh is of an older version" in done.err
    assert "Copy your environment lines" in done.err and emulator.tasks() == []


def run_wrapper(site, *names):
    return subprocess.run(["bash", str(site.folder / "wrapper.sh"), PATH, *names],
                          cwd=str(site.folder), env=dict(site.env, PYTHON=sys.executable),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_wrapper_by_hand_takes_several_names_and_ends_with_the_last_failure(site, emulator):
    emulator.add({"a": b"1", "sub/a": b"2", "it's": b"3"})
    site.process('[ "$GLOBUS_NAME" != sub/a ] || exit 7', *KEEP)
    done = run_wrapper(site, "nothing", "a", "sub/a", "it's")
    assert done.returncode == 7, done.stderr
    assert processed(site) == {"a": 1, "it's": 1}
    assert site.downloaded() == {"sub/a": b"2"}


def test_wrapper_takes_no_file_for_another_one_whose_name_ends_alike(site, emulator):
    emulator.add({"sub/a": b"2"})
    site.process(*KEEP)
    assert run_wrapper(site, "a", "sub/a").returncode == 1
    assert processed(site) == {"sub/a": 1}


def add_banner(site, tmp_path, end):
    """Every Python of the site prints this first."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text("print('Welcome!', end=%r)\n" % end)
    site.env["PYTHONPATH"] = str(tmp_path / "patch")


def test_words_on_stdout_change_nothing_for_the_files_of_a_job(packs, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"x" for n in range(6)})
    add_banner(packs, tmp_path, " ")
    assert last_line(packs.run(BATCH)).endswith("6 processed, 0 failed, 0 not needed")
    assert processed(packs) == dict.fromkeys(files, 1)


def test_a_line_on_stdout_changes_nothing_by_hand(site, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    add_banner(site, tmp_path, "\n")
    site.process(*KEEP)
    done = run_wrapper(site, "a", "b")
    assert done.returncode == 0, done.stderr
    assert processed(site) == {"a": 1, "b": 1} and site.downloaded() == {}


# ---- globus-single-file-download.py with several files ----


def run_single(site, *names, env=None):
    site.env.update(env or {})
    return site.run(SINGLE, "--globus-path", PATH,
                    *[word for name in names for word in ("--file", name)])


def test_several_files_are_one_task_and_a_line_each(site, emulator):
    emulator.add({"a": b"1", "sub/b": b"2"})
    done = run_single(site, "sub/b", "a")
    assert done.returncode == 0, done.err
    assert done.out == "%s/sub/b\n%s/a\n" % (site.downloads, site.downloads)
    assert len(emulator.tasks()) == 1


def test_a_file_that_is_not_there_does_not_hold_up_the_others(site, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    done = run_single(site, "a", "no\nname", "nothing", "b")
    assert done.returncode == 1
    assert done.out == "%s/a\n\n\n%s/b\n" % (site.downloads, site.downloads)
    assert PATH + "nothing: is not on the source collection." in done.err


def test_a_file_that_cannot_be_written_does_not_hold_up_the_others(site, emulator):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    (site.downloads / "b").mkdir(parents=True)
    site.config("helper.ERRORS['IS_A_DIRECTORY'] = ('', 1)")
    done = run_single(site, "a", "b", "c")
    assert done.returncode == 1
    assert done.out == "%s/a\n\n%s/c\n" % (site.downloads, site.downloads)


def test_variables_that_happen_to_be_set_do_no_harm(site, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    done = run_single(site, "a", "b", env={"GLOBUS_NAME": "mine", "GLOBUS_DESTINATION": "mine"})
    assert done.returncode == 0, done.err


def test_the_sizes_that_the_driver_listed_save_the_questions(packs, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(30)})
    packs.config("FILES_PER_JOB = 30", "NUM_JOBS = 1")
    assert last_line(packs.run(BATCH)) == "30 processed, 0 failed, 0 not needed"
    assert len(packs_of(packs)) == 1
    assert not [line for line in emulator.requests() if "/stat" in line and "%2Ff" in line]


# ---- what an independent reading found ----


def test_a_signal_between_two_files_costs_neither(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(6)})
    packs.config("POLL_SECONDS = 0.5")
    packs.process('[ "$GLOBUS_NAME" != f1 ] || ! mkdir once 2>/dev/null || kill $PPID', *KEEP)
    assert last_line(packs.run(BATCH)) == "6 processed, 0 failed, 0 not needed"
    assert processed(packs) == {"f%d" % n: 1 for n in range(6)}


def test_a_job_that_was_given_up_by_a_driver_that_was_killed_then_loses_no_file(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    put_before(packs, packs.home, "sbatch", 'mkdir "$0.first" 2>/dev/null || exec "$real" "$@"',
               'cat >"$0.script"; (echo "sleep 3"; cat "$0.script") | "$real" "$@"')
    packs.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.5", "NUM_JOBS = 1")
    driver = packs.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    driver.kill()
    driver.communicate()
    name = next(event["pack"] for event in journal(packs) if event["event"] == "queued")
    (packs.jobs / name / "ticket.1").rename(packs.jobs / name / "gone.1")  # and then it was killed
    assert last_line(packs.run(BATCH)) == "4 processed, 0 failed, 0 not needed"
    assert processed(packs) == {"f%d" % n: 1 for n in range(4)}


@pytest.mark.long
def test_a_missing_program_costs_no_whole_packs(packs, emulator):
    emulator.add({"f%03d" % n: b"x" for n in range(100)})
    packs.config("FILES_PER_JOB = 50", "MAX_FAILURES_IN_A_ROW = 5", "POLL_SECONDS = 0.5")
    packs.process('[ -e broken ] || [ "$GLOBUS_NAME" = f000 ] || { touch broken; exit 127; }',
                  "[ ! -e broken ] || { sleep 0.3; exit 127; }", *KEEP)
    done = packs.run(BATCH)
    assert done.returncode == 1 and "files or jobs failed in a row" in done.err
    assert 5 <= int(last_line(done).split()[2]) <= 25
    packs.process(*KEEP)
    assert last_line(packs.run(BATCH)) == "100 processed, 0 failed, 0 not needed"


def test_a_program_that_is_missing_from_the_start_costs_no_whole_packs(packs, emulator):
    files = emulator.add({"f%03d" % n: b"x" for n in range(100)})
    packs.config("FILES_PER_JOB = 50", "MAX_FAILURES_IN_A_ROW = 10", "POLL_SECONDS = 0.5")
    packs.process("exit 127")
    done = packs.run(BATCH)
    assert done.returncode == 1 and "10 files or jobs failed in a row" in done.err
    assert 10 <= int(last_line(done).split()[2]) <= 20
    packs.process(*KEEP)
    assert last_line(packs.run(BATCH)) == "100 processed, 0 failed, 0 not needed"
    assert processed(packs) == dict.fromkeys(files, 1)


def test_bad_neighbours_at_the_head_of_a_pack_do_not_stop_a_healthy_batch(packs, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(30)})
    packs.config("MAX_FAILURES_IN_A_ROW = 6", "POLL_SECONDS = 0.5")
    packs.process("case $GLOBUS_NAME in f0[0-4]) exit 3 ;; esac", *KEEP)
    done = packs.run(BATCH)
    assert last_line(done) == "25 processed, 5 failed, 0 not needed"
    assert "STOPPING" not in done.err
    assert processed(packs) == {"f%02d" % n: 1 for n in range(5, 30)}


def test_a_stat_that_is_refused_fails_that_file_alone(site, emulator):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    site.config("MAX_BYTES = 100")
    emulator.fault("/stat.*path=.*b$", status=403, json={
        "code": "PermissionDenied", "message": "not yours"})
    done = run_single(site, "a", "b", "c")
    assert done.returncode == 1
    assert done.out == "%s/a\n\n%s/c\n" % (site.downloads, site.downloads)
