"""What fails for all files alike: it costs MAX_FAILURES_IN_A_ROW of them, or is said before."""
import os
import shutil
import time

import pytest
from conftest import (
    BATCH,
    DESTINATION,
    KEEP,
    journal,
    last_line,
    processed,
    put_before,
    wait_until,
    with_stand_in,
)


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
def test_files_that_fail_in_a_row_stop_the_submitting_and_the_next_start_does_all(
        where, stand_in, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(16)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = 4", "NUM_JOBS = 2", "DOWNLOAD_BY = %r" % where)
    stand_in.process('[ -e fixed ] || { echo "samtools: command not found"; exit 127; }', *KEEP)
    done = stand_in.run(BATCH)
    failed = last_line(done).split()[2]
    assert done.returncode == 1
    assert last_line(done).startswith("0 processed, ") and 4 <= int(failed) <= 5
    assert ("STOPPING: 4 files or jobs failed in a row (MAX_FAILURES_IN_A_ROW = 4), 4 of them "
            "with: exit status 127: samtools: command not found\n") in done.err
    assert done.err.count("STOPPING") == 1
    (stand_in.folder / "fixed").touch()
    done = stand_in.run(BATCH)
    assert done.returncode == 0
    assert last_line(done) == "16 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == dict.fromkeys(files, 1)
    assert len(emulator.tasks()) <= 16 + 2  # what had arrived was not sent again
    assert list(stand_in.downloads.iterdir()) == []


@pytest.mark.long
def test_a_success_in_between_begins_the_row_anew(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(12)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = 3", "NUM_JOBS = 1")
    stand_in.process('case $GLOBUS_NAME in *[048]) ;; *) exit 3 ;; esac', *KEEP)
    stand_in.config("MAX_FAILURES_IN_A_ROW = 4")
    assert last_line(stand_in.run(BATCH)) == "4 processed, 8 failed, 0 not needed"


@pytest.mark.long
def test_a_job_at_work_ends_after_its_file_where_the_queue_tells_no_ends_too(
        site, emulator, tmp_path):
    with_stand_in(site, tmp_path, "pbs")
    emulator.add(dict.fromkeys("abcdef", b"x"))
    site.config("FILES_PER_JOB = 3", "NUM_JOBS = 2", "MAX_FAILURES_IN_A_ROW = 1",
                "GRACE_SECONDS = 100", "POLL_SECONDS = 0.5")
    site.process('case $GLOBUS_NAME in a) until [ -e d ]; do sleep 0.1; done; exit 1 ;;',
                 'd) touch d; until [ -e go ]; do sleep 0.1; done ;; esac')
    driver = site.start(BATCH)
    while b"STOPPING" not in driver.stderr.readline():
        pass
    wait_until(lambda: list(site.jobs.glob("*/stop.*")))
    begun = time.monotonic()
    (site.folder / "go").touch()
    out, err = driver.communicate()
    assert time.monotonic() - begun < 30 and b"lost" not in err
    assert out.endswith(b"1 processed, 1 failed, 0 not needed\n")


def test_none_is_no_limit(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(15)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = None")
    stand_in.process("exit 3")
    done = stand_in.run(BATCH)
    assert last_line(done) == "0 processed, 15 failed, 0 not needed"
    assert "in a row" not in done.err


def test_when_nothing_is_left_the_run_is_over_as_ever(stand_in, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(3)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = 3")
    stand_in.process("exit 3")
    done = stand_in.run(BATCH)
    assert last_line(done) == "0 processed, 3 failed, 0 not needed" and "in a row" not in done.err
    assert journal(stand_in)[-1]["event"] == "finished"


def test_a_folder_that_the_nodes_do_not_see_costs_a_few_files(stand_in, emulator, tmp_path):
    files = emulator.add({"f%02d" % n: b"x" for n in range(20)})
    before = dict(stand_in.env)
    stand_in.process(*KEEP)
    put_before(stand_in, tmp_path, "sbatch", 'cat >/dev/null; echo "exit 1" | "$real" "$@"')
    stand_in.config("MAX_FAILURES_IN_A_ROW = 2", "GRACE_SECONDS = 0.5", "POLL_SECONDS = 0.3")
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert "Can the compute nodes see, and write, WORKING_DIR?" in done.err
    assert "failed in a row (MAX_FAILURES_IN_A_ROW = 2), 2 of them with: the job never" in done.err
    assert last_line(done) == "0 processed, 0 failed, 0 not needed"
    assert sum(event["event"] == "queued" for event in journal(stand_in)) <= 2 + 3
    stand_in.env = before
    done = stand_in.run(BATCH)
    assert last_line(done) == "20 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == dict.fromkeys(files, 1)


def test_a_quota_costs_a_few_files(stand_in, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(20)})
    emulator.bend_collection(DESTINATION, quota=0)
    stand_in.process(*KEEP)
    stand_in.config("MAX_FAILURES_IN_A_ROW = 2", "NUM_JOBS = 2",
                    "helper.ERRORS['QUOTA_EXCEEDED'] = ('over quota at the destination', 1)")
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "over quota at the destination" in done.err
    assert "failed in a row (MAX_FAILURES_IN_A_ROW = 2)" in done.err
    assert 2 <= int(last_line(done).split()[2]) <= 4 and len(emulator.tasks()) <= 4
    emulator.bend_collection(DESTINATION, quota=None)
    assert last_line(stand_in.run(BATCH)) == "20 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == dict.fromkeys(files, 1)


def test_a_missing_process_sh_is_said_before_anything_is_submitted(stand_in, emulator):
    emulator.add({"a": b"1"})
    (stand_in.folder / "process.sh").unlink()
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and "process.sh: No such file or directory" in done.err
    assert emulator.tasks() == [] and not stand_in.jobs.exists()


@pytest.mark.parametrize("script", ["process.sh", "wrapper.sh"])
def test_line_ends_of_windows_are_said_before_anything_is_submitted(script, stand_in, emulator):
    emulator.add({"a": b"1"})
    text = (stand_in.folder / script).read_text()
    (stand_in.folder / script).write_bytes(text.replace("\n", "\r\n").encode())
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and "has Windows line endings" in done.err
    assert "sed -i 's/\\r$//' %s" % (stand_in.folder / script) in done.err


def test_an_interpreter_that_is_not_on_this_machine_is_asked_about(stand_in, emulator):
    emulator.add({"a": b"1"})
    (stand_in.folder / "process.sh").write_text("#!/usr/bin/env julia-that-is-not-here\n")
    os.chmod(str(stand_in.folder / "process.sh"), 0o755)
    assert "begins with #!/usr/bin/env julia-that-is-not-here, which is not on" in stand_in.run(
        BATCH).err


def test_a_refusal_after_a_job_was_accepted_is_told_once_and_tried_again(
        stand_in, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(8)})
    put_before(stand_in, tmp_path, "sbatch", 'echo >>"$0.calls"',
               'case $(wc -l <"$0.calls") in 3|4|5) echo "error: out of cheese" >&2; exit 1;; esac',
               'exec "$real" "$@"')
    (tmp_path / "bin" / "wc").symlink_to(shutil.which("wc"))
    stand_in.config("NUM_JOBS = 2", "POLL_SECONDS = 0.3")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "8 processed, 0 failed, 0 not needed"
    assert done.err.count("The scheduler did not accept a job: error: out of cheese\n"
                          "The command was: sbatch ") == 1
    assert done.err.count("out of cheese") == 1
    assert sum(event["event"] == "closed" and event["why"] == "refused"
               for event in journal(stand_in)) == 3


# ---- TOKEN_FILE ----


def test_the_token_file_may_be_elsewhere(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    stand_in.tokens.rename(tmp_path / "tokens.json")
    stand_in.config("TOKEN_FILE = %r" % str(tmp_path / "tokens.json"))
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert not stand_in.tokens.exists()


def test_login_and_logout_use_it(fresh_site, tmp_path):
    fresh_site.config("TOKEN_FILE = '~/of mine.json'")
    assert fresh_site.log_in().returncode == 0
    stored = fresh_site.home / "of mine.json"
    assert stored.stat().st_mode & 0o777 == 0o600 and not fresh_site.tokens.exists()
    assert fresh_site.run("globus-login.py", "--logout").returncode == 0
    assert not stored.exists()


def test_a_job_that_does_not_see_the_tokens_says_where_it_looked(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.edit("wrapper.sh", "\nPYTHON=", "\nexport HOME=/nowhere\nPYTHON=")
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert "there is no login in /nowhere/.wehi-globus-tokens.json" in done.err
    assert "on a disk that %s can see" % os.uname().nodename in done.err
    assert "start this script again; it continues" in done.err


def test_a_job_that_does_not_see_the_home_folder_knows_the_destination_and_the_tokens(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    stand_in.tokens.rename(tmp_path / "tokens.json")
    stand_in.config("TOKEN_FILE = %r" % str(tmp_path / "tokens.json"))
    stand_in.edit("wrapper.sh", "\nPYTHON=", "\nexport HOME=/nowhere\nPYTHON=")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


@pytest.mark.parametrize("line", [
    "TOKEN_FILE = 3", "TOKEN_FILE = 'tokens.json'", "FILES_PER_JOB = 0", "FILES_PER_JOB = 5001",
    "DOWNLOAD_BY = 'me'", "MAX_FAILURES_IN_A_ROW = 0"])
def test_a_setting_that_makes_no_sense_is_named(line, stand_in):
    stand_in.config(line)
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and done.err.startswith("config.py: " + line.split()[0])


@pytest.mark.parametrize("name", [
    "FILES_PER_JOB", "DOWNLOAD_BY", "MAX_FAILURES_IN_A_ROW", "TOKEN_FILE"])
def test_an_older_config_is_told_which_setting_it_lacks(name, stand_in, emulator):
    emulator.add({"a": b"1"})
    config = stand_in.folder / "config.py"
    config.write_text("".join(line for line in config.read_text().splitlines(keepends=True)
                              if not line.startswith(name)))
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert done.err == "config.py: %s is missing; see the original config.py\n" % name
    assert emulator.requests() == []


def test_a_journal_of_an_older_version_is_refused_with_the_way_out(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.jobs.mkdir()
    (stand_in.jobs / "journal.jsonl").write_text(
        '{"event": "run", "run": "g1", "source": ["x", "y"]}\n'
        '{"event": "submit", "job": "g1-1", "path": "a", "size": 1}\n')
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and "is of another version of these scripts" in done.err
    with open(str(stand_in.jobs / "journal.jsonl"), "a") as file:
        file.write('{"event": "finished"}\n')
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_what_fails_while_it_waits_does_not_make_the_driver_wait_for_ever(stand_in, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(6)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = 1", "NUM_JOBS = 2")
    stand_in.process("wanted=go", '[ "$GLOBUS_NAME" = f0 ] && wanted=begun || touch begun',
                     "until [ -e $wanted ]; do sleep 0.1; done",
                     '[ "$GLOBUS_NAME" != f0 ] || exit 3', *KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"FAILED f0" in driver.stderr.readline())
    (stand_in.folder / "go").touch()
    out = driver.communicate()[0].decode()
    assert driver.returncode == 1
    assert out.splitlines()[-1] == "1 processed, 1 failed, 0 not needed"
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "6 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"f%d" % n: 1 for n in range(6)}
