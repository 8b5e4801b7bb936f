"""globus-batch-download.py, "the driver": what fails for all files alike costs
MAX_FAILURES_IN_A_ROW of them."""
import time

import pytest
from conftest import (
    BATCH,
    DESTINATION,
    HOLD,
    KEEP,
    NEEDED,
    end,
    hold,
    hold_jobs,
    journal,
    last_line,
    processed,
    put_before,
    queued,
    state_of,
    wait_for,
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


def test_a_halt_is_told_at_once_and_jobs_that_have_not_begun_are_cancelled(
        stand_in, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"x" for n in range(10)})
    stand_in.config("NUM_JOBS = 4", "MAX_FAILURES_IN_A_ROW = 3", "POLL_SECONDS = 0.3", NEEDED)
    stand_in.process(*HOLD, '[ -e fixed ] || [ "$GLOBUS_NAME" = f0 ] || { echo broken; exit 5; }',
                     *KEEP)
    held, pending = hold(stand_in, "f0"), hold_jobs(stand_in, tmp_path)
    (pending / "g2").touch()
    (pending / "g1").touch()
    driver = stand_in.start(BATCH)
    wait_until(lambda: queued(stand_in))
    (pending / "g1").unlink()
    said = wait_for(driver, "STOPPING")
    said += wait_for(driver, "again")  # to the end of what is told
    assert "MAX_FAILURES_IN_A_ROW = 3" in said and "exit status 5: broken" in said
    assert held.exists()  # f0 is at work
    waiting = next(path.parent.name for path in (tmp_path / "stand-in").glob("*/name")
                   if path.read_text().startswith("g2."))
    wait_until(lambda: state_of(tmp_path, waiting) == "CANCELLED", 10)
    assert driver.poll() is None and held.exists()
    jobs = len(list((tmp_path / "stand-in").glob("*/name")))
    held.unlink()
    last, status, rest = end(driver)
    assert status == 1 and last.startswith("1 processed, "), rest
    assert 3 <= int(last.split()[2]) <= 4  # two jobs were at work beside f0
    assert len(list((tmp_path / "stand-in").glob("*/name"))) == jobs
    assert (said + rest).count("STOPPING") == 1
    assert "FAILED f1:" not in said + rest
    (stand_in.folder / "fixed").touch()
    (pending / "g2").unlink()
    assert last_line(stand_in.run(BATCH)) == "10 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == dict.fromkeys(files, 1)


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


def test_a_success_seen_together_with_the_failures_that_halt_takes_nothing_back(
        stand_in, emulator, tmp_path):
    emulator.add({"f%02d" % n: b"x" for n in range(16)})
    stand_in.config("FILES_PER_JOB = 8", "NUM_JOBS = 1", "MAX_FAILURES_IN_A_ROW = 3")
    put_before(stand_in, tmp_path, "squeue", "sleep 1", 'exec "$real" "$@"')
    stand_in.process("case $GLOBUS_NAME in f0[123]) exit 3 ;; esac", *KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert done.err.count("STOPPING: 3 files or jobs failed in a row") == 1, done.err


def test_a_halt_that_a_disk_breaks_off_is_tried_again_and_told_once(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(12)})
    stand_in.config("FILES_PER_JOB = 12", "NUM_JOBS = 1", "MAX_FAILURES_IN_A_ROW = 2")
    stand_in.edit(BATCH, '    if token.state in ("gone", "lost"):\n        return True\n    try:', (
        '    if token.state in ("gone", "lost"):\n        return True\n'
        '    if state == "stop" and not os.path.exists("once"):\n'
        '        open("once", "w").close()\n'
        '        raise OSError(116, "Stale file handle", folder)\n    try:'))
    stand_in.process("echo >>begun; [ $GLOBUS_NAME = f00 ] || { sleep 1; exit 3; }", *KEEP)
    done = stand_in.run(BATCH)
    assert done.err.count("STOPPING: ") == 1 and "Stale file handle" in done.err
    assert (stand_in.folder / "begun").read_text().count("\n") <= 5


def test_a_failure_in_the_step_that_ends_the_run_is_told(stand_in, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    stand_in.config("NUM_JOBS = 1")
    stand_in.edit(BATCH, "            there, ours = os.stat(self.path)", (
        '            if event["event"] == "closed":\n'
        "                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "            there, ours = os.stat(self.path)"))
    stand_in.process("echo why; exit 3")
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "FAILED f0: exit status 3: why" in done.err


# ---- bad neighbours ----


@pytest.mark.parametrize("most", [1, 5])
def test_bad_neighbours_at_the_beginning_of_the_listing_do_not_halt_a_healthy_batch(
        most, stand_in, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(40)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = 10", "FILES_PER_JOB = %d" % most)
    stand_in.process('case $GLOBUS_NAME in f0?|f1[0-4]) exit 3 ;; esac', *KEEP)
    done = stand_in.run(BATCH)
    assert "STOPPING" not in done.err, done.err
    assert last_line(done) == "25 processed, 15 failed, 0 not needed"
    assert processed(stand_in) == {name: 1 for name in files if name > "f14"}


def test_bad_neighbours_at_the_head_of_a_pack_do_not_stop_a_healthy_batch(packs, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(30)})
    packs.config("MAX_FAILURES_IN_A_ROW = 6", "POLL_SECONDS = 0.5")
    packs.process("case $GLOBUS_NAME in f0[0-4]) exit 3 ;; esac", *KEEP)
    done = packs.run(BATCH)
    assert last_line(done) == "25 processed, 5 failed, 0 not needed"
    assert "STOPPING" not in done.err
    assert processed(packs) == {"f%02d" % n: 1 for n in range(5, 30)}
