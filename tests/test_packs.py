"""Jobs of several files (FILES_PER_JOB), in which each file has a result of its own."""
import os
import re
import subprocess
import sys
import threading
import time

import pytest
from conftest import (
    BATCH,
    DIE,
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
PATH = "/home/share/godata/"


@pytest.fixture(params=["job", pytest.param("driver", marks=pytest.mark.long)])
def packs(request, stand_in):
    """A site whose jobs carry up to five files, downloaded by the job or by the driver."""
    stand_in.config("FILES_PER_JOB = 5", "NUM_JOBS = 2", "DOWNLOAD_BY = %r" % request.param)
    stand_in.process(*KEEP)
    return stand_in


def packs_of(site):
    """The files of each pack, in order."""
    return [[path for path, _ in event["files"]] for event in journal(site)
            if event["event"] in ("submit", "download") and event["files"]]


def test_a_pack_is_one_transfer_task_and_one_job(packs, emulator):
    files = emulator.add({"f%02d" % n: b"%d" % n for n in range(20)})
    done = packs.run(BATCH)
    assert last_line(done) == "20 processed, 0 failed, 0 not needed", done.err
    assert contents(packs.folder / "out") == files
    assert processed(packs) == dict.fromkeys(files, 1)
    assert len(emulator.tasks()) == len(packs_of(packs)) < 10


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
    assert re.search(r"FAILED f1: exit status 3: no good \(/.*\.log\)", done.out)
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


def test_what_a_killed_job_did_not_come_to_goes_into_a_later_job(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(10)})
    packs.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.5")
    packs.process("case $GLOBUS_NAME in f1) %s ;; esac" % DIE, *KEEP)
    done = packs.run(BATCH)
    assert last_line(done) == "9 processed, 1 failed, 0 not needed"
    assert "FAILED f1: the job was lost" in done.out
    assert processed(packs) == {"f%d" % n: 1 for n in range(10) if n != 1}


def test_a_cancelled_job_fails_with_the_file_at_work_only(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(10)})
    packs.config("POLL_SECONDS = 0.5")
    packs.process('if [ "$GLOBUS_NAME" = f1 ]; then touch begun; sleep 100; fi', *KEEP)
    driver = packs.start(BATCH)
    wait_until((packs.folder / "begun").exists)
    job = next(event["id"] for event in journal(packs) if event["event"] == "queued")
    subprocess.run(["scancel", job], env=packs.env, check=True)
    out = driver.communicate()[0].decode()
    assert out.splitlines()[-1] == "9 processed, 1 failed, 0 not needed"
    assert "FAILED f1: exit status 143" in out
    assert processed(packs) == {"f%d" % n: 1 for n in range(10) if n != 1}


def test_all_files_of_a_job_that_was_killed_while_it_downloaded_have_failed(
        stand_in, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    stand_in.config("FILES_PER_JOB = 4", "NUM_JOBS = 1", "GRACE_SECONDS = 1", "POLL_SECONDS = 0.5")
    (tmp_path / "download").write_text("#!/bin/bash\n" + DIE + "\n")
    (tmp_path / "download").chmod(0o755)
    stand_in.edit("wrapper.sh", "\nPYTHON=", "\nPYTHON=%s\n: " % (tmp_path / "download"))
    done = stand_in.run(BATCH)
    assert last_line(done) == "0 processed, 4 failed, 0 not needed"
    assert done.err.count(": the job was lost") == 4


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


def test_a_requeued_job_goes_on_behind_its_last_result(packs, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(5)})
    packs.config("NUM_JOBS = 1")
    put_before(packs, tmp_path, "sbatch", 'cat >"$0.script"',
               'echo "bash $0.script; sleep 1; SLURM_RESTART_COUNT=1 bash $0.script" |',
               '"$real" "$@"')
    packs.process('if [ "$GLOBUS_NAME" = f2 ] && mkdir once; then exit 143; fi', *KEEP)
    assert last_line(packs.run(BATCH)) == "5 processed, 0 failed, 0 not needed"
    assert processed(packs) == {"f%d" % n: 1 for n in range(5)}


@pytest.mark.long
def test_max_bytes_holds_for_packs(packs, emulator):
    emulator.add({"f%02d" % n: b"x" * 100 for n in range(20)})
    packs.config("MAX_BYTES = 600")
    most, is_over = [0], threading.Event()

    def watch():
        while not is_over.is_set():
            total = 0
            for path in packs.downloads.rglob("*") if packs.downloads.exists() else ():
                try:
                    total += path.lstat().st_size * path.is_file()
                except OSError:
                    pass
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
    files = emulator.add({"f%02d" % n: b"x" for n in range(20)})
    packs.process("sleep 0.2", *KEEP)
    for _ in range(4):
        kill_when_one_is_processed(packs.start(BATCH))
    done = packs.run(BATCH)
    assert last_line(done) == "20 processed, 0 failed, 0 not needed"
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


def test_an_older_wrapper_goes_on_working_with_one_file_a_job(stand_in, emulator):
    emulator.add({"a": b"1", "bad": b"2"})
    (stand_in.folder / "wrapper.sh").write_text(OLD_WRAPPER)
    stand_in.process('[ "$GLOBUS_NAME" != bad ] || exit 3', *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    assert "FAILED bad: exit status 3" in done.out


@pytest.mark.parametrize("setting", ["FILES_PER_JOB = 2", "DOWNLOAD_BY = 'driver'"])
def test_an_older_wrapper_is_refused_for_what_it_cannot_do(setting, stand_in, emulator):
    emulator.add({"a": b"1"})
    (stand_in.folder / "wrapper.sh").write_text(OLD_WRAPPER)
    stand_in.config(setting)
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and "wrapper.sh is an older version" in done.err


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


def test_a_job_that_a_module_s_banner_confuses_processes_what_it_is_sure_of(
        site, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text("print('Welcome! ', end='')\n")
    site.env.update(PYTHONPATH=str(tmp_path / "patch"), GLOBUS_DOWNLOAD_DIR=str(site.downloads))
    site.process(*KEEP)
    done = run_wrapper(site, "a", "b")
    assert done.returncode == 1 and b"but got: Welcome! /" in done.stderr
    assert processed(site) == {"b": 1}


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
    assert "nothing: " + PATH + "nothing is not on the source collection." in done.err


def test_a_file_that_cannot_be_written_does_not_hold_up_the_others(site, emulator):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    (site.downloads / "b").mkdir(parents=True)
    site.config("helper.ERRORS['IS_A_DIRECTORY'] = ('', 1)")
    done = run_single(site, "a", "b", "c")
    assert done.returncode == 1
    assert done.out == "%s/a\n\n%s/c\n" % (site.downloads, site.downloads)


def test_variables_that_happen_to_be_set_do_no_harm(site, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    done = run_single(site, "a", "b", env={"GLOBUS_SIZES": "10GB x", "GLOBUS_DESTINATION": "mine"})
    assert done.returncode == 0, done.err


def test_the_sizes_that_the_driver_listed_save_the_questions(site, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(30)})
    done = run_single(site, *["f%02d" % n for n in range(30)],
                      env={"GLOBUS_SIZES": " ".join(["1"] * 30)})
    assert done.returncode == 0, done.err
    assert len(emulator.requests()) <= 5


# ---- what an independent reading found ----


def test_a_wrapper_that_is_killed_costs_the_file_at_work_only(packs, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(10)})
    packs.config("POLL_SECONDS = 0.5")
    packs.process('[ "$GLOBUS_NAME" != f1 ] || kill -KILL $PPID $$', *KEEP)
    done = packs.run(BATCH)
    assert last_line(done) == "9 processed, 1 failed, 0 not needed"
    assert "FAILED f1: exit status 137" in done.out
    assert processed(packs) == {"f%d" % n: 1 for n in range(10) if n != 1}


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
    name = next(event["job"] for event in journal(packs) if event["event"] == "queued")
    (packs.jobs / (name + ".claim")).write_text("given up by the driver\n")
    assert last_line(packs.run(BATCH)) == "4 processed, 0 failed, 0 not needed"
    assert processed(packs) == {"f%d" % n: 1 for n in range(4)}


@pytest.mark.long
def test_a_missing_program_costs_no_whole_packs(packs, emulator):
    emulator.add({"f%03d" % n: b"x" for n in range(100)})
    packs.config("FILES_PER_JOB = 50", "MAX_FAILURES_IN_A_ROW = 5", "POLL_SECONDS = 0.5")
    packs.process('[ -e broken ] || [ "$GLOBUS_NAME" = f000 ] || { touch broken; exit 127; }',
                  "[ ! -e broken ] || { sleep 0.3; exit 127; }", *KEEP)
    done = packs.run(BATCH)
    assert done.returncode == 1 and "files failed in a row" in done.err
    assert 5 <= int(last_line(done).split()[2]) <= 25
    packs.process(*KEEP)
    assert last_line(packs.run(BATCH)).startswith("%d processed" % (
        100 - int(last_line(done).split()[2])))


@pytest.mark.long
def test_a_killed_job_counts_as_one_failure_in_a_row(stand_in, emulator, tmp_path):
    emulator.add({"f%02d" % n: b"x" for n in range(12)})
    stand_in.config("FILES_PER_JOB = 5", "NUM_JOBS = 1", "GRACE_SECONDS = 1", "POLL_SECONDS = 0.5",
                    "MAX_FAILURES_IN_A_ROW = 5")
    (tmp_path / "download").write_text("#!/bin/bash\n" 'mkdir "$0.once" 2>/dev/null || exec %s '
                                       '"$@"\n%s\n' % (sys.executable, DIE))
    (tmp_path / "download").chmod(0o755)
    stand_in.edit("wrapper.sh", "\nPYTHON=", "\nPYTHON=%s\n: " % (tmp_path / "download"))
    done = stand_in.run(BATCH)
    assert last_line(done) == "7 processed, 5 failed, 0 not needed"
    assert "in a row" not in done.err


def test_a_stat_that_is_refused_fails_that_file_alone(site, emulator):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    site.config("MAX_BYTES = 100")
    emulator.fault("/stat.*path=.*b$", status=403, json={
        "code": "PermissionDenied", "message": "not yours"})
    done = run_single(site, "a", "b", "c")
    assert done.returncode == 1
    assert done.out == "%s/a\n\n%s/c\n" % (site.downloads, site.downloads)
