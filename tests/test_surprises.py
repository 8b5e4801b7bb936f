"""What surprises a newcomer is said, with what to do."""
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import BATCH, KEEP, journal, last_line, put_before, wait_until

ALL = pytest.mark.parametrize("script,options", [
    ("globus-login.py", ()), ("globus-simple-download.py", ()), (BATCH, ()),
    ("globus-single-file-download.py", ("--globus-path", "/x", "--file", "y"))])
WAIT = "touch begun; until [ -e go ]; do sleep 0.1; done"


def interrupt(site):
    """A batch that was killed while its first job was in process.sh; the job's id."""
    site.process(WAIT, *KEEP)
    driver = site.start(BATCH)
    wait_until((site.folder / "begun").exists)
    driver.kill()
    driver.communicate()
    return next(event["id"] for event in journal(site) if event["event"] == "queued")


# ---- another data set ----


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=str)
def test_a_second_data_set_whose_names_repeat_is_told(options, stand_in, emulator):
    emulator.add({"run1/S01": b"1", "run2/S01": b"2"})
    stand_in.config("PATH = '/home/share/godata/run1'")
    stand_in.run(BATCH)
    stand_in.config("PATH = '/home/share/godata/run2'")
    stand_in.run(BATCH, *options)
    done = stand_in.run(BATCH, *options)  # still, as long as nothing came of it
    assert "The last run here was for /home/share/godata/run1/ of collection" in done.err
    assert "skips 1 file of this one." in done.err and "folder for its results" in done.err


def test_the_same_data_set_again_is_not_taken_for_another(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.run(BATCH)
    stand_in.config("PATH = '/home/share/godata'")  # it had a slash at its end
    assert "The last run here" not in stand_in.run(BATCH).err


# ---- config.py ----


@pytest.mark.parametrize("body,words", [
    ("file.size > 3", "is_file_needed('a') returned None; it must return True or False"),
    ("return file.path", "is_file_needed('a') returned 'a'"),
    ("return os.environ['NOT_SET']", "is_file_needed failed on 'a': KeyError: 'NOT_SET'"),
    ("return 1 / 0", "is_file_needed failed on 'a': ZeroDivisionError: division by zero"),
])
def test_a_filter_without_an_answer_is_an_error_with_its_line(body, words, stand_in, emulator):
    emulator.add({"a": b"1"})
    number = len((stand_in.folder / "config.py").read_text().splitlines()) + 2
    stand_in.config("def is_file_needed(file): " + body)
    done = stand_in.run(BATCH, "--dry-run")
    assert done.returncode == 2 and done.err.count("\n") == 1
    assert done.err.startswith("config.py, line %d: %s" % (number, words))


@pytest.mark.parametrize("line,words", [
    ("NUM_JOBS = (3", "SyntaxError: '(' was never closed"),
    ("os.environ['NOT_SET']", "KeyError: 'NOT_SET'")])
def test_a_wrong_line_of_config_is_told_once_with_the_type_of_its_error(line, words, stand_in):
    stand_in.config(line)
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and done.err.count("line") == 1
    assert words.split(":")[0] + ": " in done.err


@pytest.mark.parametrize("name,setting", [
    ("NUMJOBS", "NUM_JOBS"), ("RECURSE", "RECURSIVE"), ("POLL_SECS", "POLL_SECONDS"),
    ("WORK_DIR", "WORKING_DIR"), ("MAXBYTES", "MAX_BYTES")])
def test_a_misspelled_setting_is_an_error(name, setting, stand_in, emulator):
    stand_in.config(name + " = 5")
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and emulator.requests() == []
    assert done.err == "config.py: %s = 5 is not a setting; did you mean %s?\n" % (name, setting)


def test_capital_names_of_the_users_own_are_left_alone(stand_in, emulator):
    stand_in.config("PATH2 = OUTPUT_DIR = SAMPLES = DATA_SET = THREADS = REFERENCE = 5")
    assert stand_in.run(BATCH).returncode == 0


@ALL
@pytest.mark.parametrize("lines,words", [
    (["DOWNLOAD_DIR = WORKING_DIR + '/config.py/x'"], "cannot be made or written: "),
    (["DOWNLOAD_DIR = WORKING_DIR + '/tests'", "os.makedirs(DOWNLOAD_DIR, exist_ok=True)",
      "os.access = lambda *_: False"], "cannot be made or written: ")], ids=["made", "written"])
def test_a_download_dir_that_cannot_be_used_is_named_before_anything_is_sent(
        lines, words, script, options, stand_in, emulator):
    stand_in.config(*lines)
    done = stand_in.run(script, *options)
    assert done.returncode == 2 and emulator.requests() == []
    assert done.err.startswith("config.py: DOWNLOAD_DIR = ") and words in done.err


# ---- the environment ----


@pytest.fixture
def no_sdk(site, tmp_path):
    """The site with a Python that has no globus-sdk."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "globus_sdk.py").write_text("raise ImportError('No module globus_sdk')")
    site.env["PYTHONPATH"] = str(tmp_path / "empty")
    return site


@ALL
def test_help_works_without_globus_sdk(script, options, no_sdk):
    assert "usage:" in no_sdk.run(script, "--help").out


def test_an_environment_beside_the_scripts_is_to_be_activated(no_sdk):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(no_sdk.folder / "venv")],
                   check=True)
    done = no_sdk.run(BATCH)
    assert done.returncode == 1
    assert done.err.splitlines()[1:] == [". %s/venv/bin/activate" % no_sdk.folder]


def test_no_pip_outside_an_environment_is_advised(no_sdk):
    python = os.path.join(sys.base_prefix, "bin", "python3")
    done = subprocess.run([python, BATCH], cwd=str(no_sdk.folder), env=no_sdk.env,
                          stderr=subprocess.PIPE)
    command = done.stderr.decode().splitlines()[1]
    assert re.fullmatch(r"python3 -m venv .* && \. .*/activate && pip install .*", command)


# ---- an interrupted run ----


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=str)
def test_an_interrupted_run_of_another_source_is_told_with_its_jobs(options, stand_in, emulator):
    emulator.add({"a": b"1", "sub/b": b"2"})
    job_id = interrupt(stand_in)
    stand_in.config("PATH = '/home/share/godata/sub'")
    done = stand_in.run(BATCH, *options)
    (stand_in.folder / "go").touch()
    assert done.returncode == (0 if options else 2)
    assert "PATH = '/home/share/godata/', not '/home/share/godata/sub/'." in done.err
    assert "\nscancel %s\n" % job_id in done.err and str(stand_in.jobs) in done.err


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=str)
def test_a_run_that_is_resumed_is_told_with_its_jobs(options, stand_in, emulator):
    emulator.add({"a": b"1"})
    job_id = interrupt(stand_in)
    driver = stand_in.start(BATCH, *options)
    first = driver.stderr.readline().decode()
    (stand_in.folder / "go").touch()
    driver.communicate()
    assert "Resuming the interrupted run: 0 processed, 1 job (%s).\n" % job_id in first


def test_a_copied_folder_with_an_interrupted_run_is_noticed_at_once(stand_in, emulator):
    emulator.add({"a": b"1"})
    interrupt(stand_in)
    original, copy = stand_in.folder, stand_in.folder.parent / "copy"
    shutil.copytree(str(original), str(copy), symlinks=True)
    stand_in.folder = copy
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert "WORKING_DIR = %r, not %r." % (str(original), str(copy)) in done.err
    folder = re.search("remove the folder (.*)", done.err).group(1)
    assert folder == str(copy / "jobs")
    shutil.rmtree(folder)
    (copy / "go").touch()
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    (original / "go").touch()


# ---- what it says ----


def test_a_filter_that_still_wants_what_was_processed_is_told_once(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.process("true")
    done = stand_in.run(BATCH)
    assert "is_file_needed still wants 2 of the 2 processed files, such as a.\n" in done.err
    assert done.err.count("still wants") == 1


def test_a_filter_that_fails_at_the_end_does_not_hide_the_result(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("def is_file_needed(file): return not os.listdir(WORKING_DIR + '/results')")
    stand_in.process("true", "rmdir results")
    stand_in.results.mkdir()
    done = stand_in.run(BATCH)
    assert "is_file_needed failed on 'a': FileNotFoundError" in done.err
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"


def test_a_dry_run_on_a_terminal_shows_nothing_but_its_list(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    *_, screen = stand_in.watch(BATCH, "--dry-run")
    assert [line.strip() for line in screen.display if line.strip()] == [
        "1  a", "2  b", "2 to process, 0 refused, 0 not needed"]


def test_the_numbers_of_a_dry_run_have_separators(stand_in, emulator):
    emulator.bend(crowds={"/home/share/godata": 1200})
    assert last_line(stand_in.run(BATCH, "--dry-run")).startswith("1,200 to process, ")


def test_failures_of_one_reason_are_one_group_that_fits_a_screen(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(40)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = None", "FILES_PER_JOB = 20", "NUM_JOBS = 2")
    stand_in.process("echo no $GLOBUS_NAME; exit 3")
    done = stand_in.run(BATCH)
    assert re.match(r"FAILED 40 files: exit status 3: no FILE \(all on %s\)\n"
                    % os.uname().nodename.split(".")[0], done.out)
    logs = re.findall(r"(?m)^  f\d\d  (jobs/g\d+-\w{5}/\d+\.log)$", done.out)
    assert len(logs) > 5 and all((stand_in.folder / log).exists() for log in logs)
    assert len(done.out.splitlines()) <= 24 and "more files" in done.out
    told = re.findall(r"FAILED (?:(\d+) files, such as )?f\d\d: exit status 3: no f\d\d \(on \S+, ",
                      done.err)
    assert sum(int(number or 1) for number in told) == 40 and len(told) < 40


def test_the_end_names_a_file_with_all_failures(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(3)})
    stand_in.process("exit 3")
    path = re.search("All failures: (.*)", stand_in.run(BATCH).out).group(1)
    with open(path) as file:
        assert sorted(line.split("\t")[0] for line in file) == ["f00", "f01", "f02"]


def test_the_end_says_where_everything_is_and_that_failures_are_tried_again(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"1"})
    stand_in.process("[ $GLOBUS_NAME = a ]")
    out = stand_in.run(BATCH).out
    words = ("All failures: %s/failed.txt\nThe next start tries them again. Until then their logs "
             "are kept, there, and\ntheir files, in %s\n")
    assert words % (stand_in.jobs, stand_in.downloads) in out


# ---- logs ----


def test_a_log_begins_with_what_it_is_about(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"1", "large": b"1" * 9})
    stand_in.config("FILES_PER_JOB = 2", "MAX_BYTES = 8")
    lines = stand_in.run(BATCH).err.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  2 files to process \(2 B\), .*", lines[0])
    assert lines[1].startswith("/home/share/godata/ on collection 6c54cade-")
    assert "FILES_PER_JOB = 2" in lines[2]


@pytest.mark.long
def test_a_busy_log_says_now_and_then_how_far_it_is(stand_in, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(6)})
    stand_in.config("import helper", "helper.QUIET_SECONDS = 1", "NUM_JOBS = 1")
    stand_in.process("sleep 0.5")
    assert re.search(r"(?m)^[\d-]{10} [\d:]{8}  [2-5] of 6 files, ", stand_in.run(BATCH).err)


def test_the_log_of_a_job_begins_with_its_file_and_host(stand_in, emulator):
    emulator.add({"a b": b"1"})
    stand_in.process("exit 3")
    log = re.search(r"(jobs/.*\.log)\)", stand_in.run(BATCH).err).group(1)
    with open(str((stand_in.folder / log).parent / "log")) as file:
        assert re.fullmatch(r"wrapper\.sh on %s, \d{4}-[\d-]+ [\d:]+: pack of 1, a b"
                            % os.uname().nodename, file.readline().rstrip("\n"))


def test_the_log_of_a_failure_that_has_since_succeeded_goes_away(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"1"})
    stand_in.process("[ -e fixed ] || exit 3", *KEEP)
    stand_in.run(BATCH)
    assert len(list(stand_in.jobs.glob("*/0.log"))) == 2
    (stand_in.folder / "fixed").touch()
    stand_in.run(BATCH, "--limit", "1")  # the other one's stays
    assert len(list(stand_in.jobs.glob("*/0.log"))) == 1
    assert not (stand_in.jobs / "failed.txt").exists()  # it is about this run
    stand_in.run(BATCH)
    assert sorted(os.listdir(str(stand_in.jobs))) == ["driver.lock", "journal.jsonl"]


def test_what_the_users_own_wrapper_does_not_delete_goes_with_its_pack(stand_in, emulator):
    emulator.add({"f%d" % n: b"x" * 1000 for n in range(4)})
    stand_in.edit("wrapper.sh", 'rm -f --', 'true')
    stand_in.config("NUM_JOBS = 2", "MAX_BYTES = 2500")
    assert last_line(stand_in.run(BATCH)) == "4 processed, 0 failed, 0 not needed"
    assert list(stand_in.downloads.iterdir()) == []


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=str)
def test_all_files_that_are_too_large_are_one_line(options, stand_in, emulator):
    emulator.add(dict.fromkeys("abcd", b"1" * 2000))
    stand_in.config("MAX_BYTES = 1000")
    done = stand_in.run(BATCH, *options)
    assert done.err.count("Refused: ") == 1
    assert "Refused: 4 files, such as a: is larger than MAX_BYTES (2 kB)\n" in done.err


# ---- process.sh ----


UNSTARTED = r"process\.sh: .*(required file not found|bad interpreter)"  # as bash says it


@pytest.mark.parametrize("change,words", [
    (r"printf '#!/bin/bash\r\nexit 0\r\n' >process.sh", UNSTARTED),
    (r"printf '#!/usr/bin/env julia\nx\n' >process.sh", "env: .*julia.*: No such file"),
    (r"printf '#!/opt/no/perl -w\nx\n' >process.sh", UNSTARTED),
], ids=["line ends", "env", "interpreter"])
def test_what_is_wrong_with_process_sh_on_the_node_is_said(
        change, words, stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    stand_in.process("true")
    (stand_in.folder / "process.sh").chmod(0o755)
    put_before(stand_in, tmp_path, "sbatch", change, 'exec "$real" "$@"')
    assert re.search(r"FAILED a: exit status 12[67]: .*" + words, stand_in.run(BATCH).out)


def test_a_process_sh_that_has_gone_stops_the_run_with_its_reason(stand_in, emulator, tmp_path):
    emulator.add({"f%02d" % n: b"1" for n in range(30)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = 4")
    put_before(stand_in, tmp_path, "sbatch", "rm -f process.sh", 'exec "$real" "$@"')
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "STOPPING: 4 files or jobs failed in a row" in done.err
    assert "%s/process.sh': No such file or directory" % stand_in.folder in done.err
    assert "No such file or directory" in done.err.split("STOPPING: ")[1]
