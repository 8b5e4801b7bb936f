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
    copy_downloads,
    end,
    hold,
    journal,
    last_line,
    let_go,
    processed,
    put_before,
    queued,
    state_of,
    wait_for,
    wait_until,
    with_stand_in,
)
from in_process import add_pack, load, make_driver

DRIVER = load("globus-batch-download")


def hold_jobs(site, tmp_path):
    """A folder: while it has a file `all`, or `gN`, jobs (of pack N) are PENDING."""
    folder = tmp_path / "pending"
    folder.mkdir()
    put_before(site, tmp_path, "sbatch",
               'for word; do [ "$last" != --job-name ] || name=$word; last=$word; done',
               '{ echo "while [ -e %s/all ] || [ -e %s/${name%%%%.*} ]; do sleep 0.1; done"'
               % (folder, folder),
               'echo "touch %s/begun.\\$SLURM_JOB_ID"; cat; } | "$real" "$@"' % folder)
    put_before(site, tmp_path, "squeue",
               '"$real" "$@" | while IFS="|" read -r id name state reason; do',
               '[ "$state" != RUNNING ] || [ -e %s/begun.$id ] ||' % folder,
               '{ state=PENDING; reason=Priority; }; echo "$id|$name|$state|$reason"; done')
    return folder


@pytest.fixture
def counting(tmp_path):
    """A function: a driver in this process that has seen these exit statuses, one after the other,
    of files of one pack."""
    def see(*statuses, most, left=1):
        driver = make_driver(DRIVER, tmp_path, MAX_FAILURES_IN_A_ROW=most)
        name = add_pack(driver, *["f%d" % n for n in range(len(statuses) + left)])
        for index, status in enumerate(statuses):
            DRIVER.helper.add_result(driver.path(name), "1.2.node-3-4", index, status, "why")
        driver.take_results(name, ["results.1.2.node-3-4"])
        return driver

    return see


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
def test_files_that_fail_in_a_row_stop_the_submitting_and_the_next_start_does_all(
        where, copying, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(8)})
    copying.config("MAX_FAILURES_IN_A_ROW = 4", "NUM_JOBS = 2", "DOWNLOAD_BY = %r" % where)
    copying.process('[ -e fixed ] || { echo "samtools: command not found"; exit 127; }', *KEEP)
    done = copying.run(BATCH)
    failed = last_line(done).split()[2]
    assert done.returncode == 1
    assert last_line(done).startswith("0 processed, ") and 4 <= int(failed) <= 5
    assert ("STOPPING: 4 files or jobs failed in a row (MAX_FAILURES_IN_A_ROW = 4), 4 of them "
            "with: exit status 127: samtools: command not found\n") in done.err
    assert done.err.count("STOPPING") == 1
    (copying.folder / "fixed").touch()
    done = copying.run(BATCH)
    assert done.returncode == 0
    assert last_line(done) == "8 processed, 0 failed, 0 not needed"
    assert processed(copying) == dict.fromkeys(files, 1)
    # What had arrived was not sent again, which test_max_bytes.py sees of jobs.
    assert len(emulator.tasks()) <= 8 + 2
    assert list(copying.downloads.iterdir()) == []


def test_a_success_in_between_begins_the_row_anew(counting):
    driver = counting(3, 3, 3, 0, 3, 3, 3, most=4)
    assert not driver.is_halted and len(driver.in_a_row) == 3 and len(driver.failures) == 6


def test_as_many_failures_in_a_row_as_the_setting_says_halt_the_run(counting):
    assert counting(0, 3, 3, 3, most=3).is_halted


def test_none_is_no_limit(counting):
    driver = counting(*[3] * 1000, most=None)
    assert len(driver.failures) == 1000 and not driver.is_halted


def test_when_nothing_is_left_nothing_is_halted(counting):
    assert not counting(3, 3, 3, most=3, left=0).is_halted


def test_a_success_seen_together_with_the_failures_that_halt_takes_nothing_back(counting):
    driver = counting(0, 3, 3, 3, 0, most=3)
    assert driver.is_halted and driver.in_a_row == []
    assert DRIVER.describe_halt(driver.halt_causes, 3).startswith(
        "STOPPING: 3 files or jobs failed in a row (MAX_FAILURES_IN_A_ROW = 3), 3 of them with: ")


@pytest.mark.long
def test_a_job_at_work_ends_after_its_file_where_the_queue_tells_no_ends_too(
        site, emulator, tmp_path):
    copy_downloads(with_stand_in(site, tmp_path, "pbs"))
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


@pytest.mark.parametrize("reason", ["BeginTime", "JobHoldMaxRequeue"])
def test_a_halt_does_not_wait_for_a_job_that_was_killed_at_work_and_requeued(reason, played):
    played.start("a", "b", "c", MAX_FAILURES_IN_A_ROW=1, NUM_JOBS=2).step()
    one, other = played.jobs.values()
    one.begin(0)
    one.die("PENDING", reason)
    other.begin(0)
    other.report(status=3)
    other.end(status=3)
    played.poll()
    assert "STOPPING" in played.text()
    assert not played.driver.state.submitted() and one.state == "CANCELLED"
    assert played.start().finish() == (3, 0)  # the next one
    assert played.processed["a"] == 1


def test_a_halt_cancels_no_job_that_begins_a_file_while_the_queue_is_asked(played):
    played.start("a", "b", MAX_FAILURES_IN_A_ROW=1, NUM_JOBS=2).step()
    one, other = played.jobs.values()
    answer = played.plays["squeue"]

    def begin_after_the_answer(command):
        said = answer(command)
        if other.state != "PENDING" and one.state == "PENDING":
            one.begin(0)
        return said

    played.plays["squeue"] = begin_after_the_answer
    other.begin(0)
    other.report(status=3)
    other.end(status=3)
    played.step()
    assert played.driver.has_halted and one.state == "RUNNING"
    assert one.token.startswith("at.") and list(one.folder.glob("stop.*"))


def test_when_nothing_is_left_the_run_is_over_as_ever(copying, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(2)})
    copying.config("MAX_FAILURES_IN_A_ROW = 2")
    copying.process("exit 3")
    done = copying.run(BATCH)
    assert last_line(done) == "0 processed, 2 failed, 0 not needed" and "in a row" not in done.err
    assert journal(copying)[-1]["event"] == "finished"


def test_a_folder_that_the_nodes_do_not_see_costs_a_few_files(copying, emulator, tmp_path):
    files = emulator.add({"f%02d" % n: b"x" for n in range(5)})
    before = dict(copying.env)
    copying.process(*KEEP)
    put_before(copying, tmp_path, "sbatch", 'cat >/dev/null; echo "exit 1" | "$real" "$@"')
    copying.config("MAX_FAILURES_IN_A_ROW = 2", "GRACE_SECONDS = 0.5", "POLL_SECONDS = 0.3")
    done = copying.run(BATCH)
    assert done.returncode == 1
    assert "Can the compute nodes see, and write, WORKING_DIR?" in done.err
    assert "failed in a row (MAX_FAILURES_IN_A_ROW = 2), 2 of them with: the job never" in done.err
    assert last_line(done) == "0 processed, 0 failed, 0 not needed"
    assert sum(event["event"] == "queued" for event in journal(copying)) <= 2 + 3
    copying.env = before
    done = copying.run(BATCH)
    assert last_line(done) == "5 processed, 0 failed, 0 not needed"
    assert processed(copying) == dict.fromkeys(files, 1)


@pytest.mark.long
def test_a_quota_costs_a_few_files(stand_in, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(4)})
    emulator.bend_collection(DESTINATION, quota=0)
    stand_in.process(*KEEP)
    stand_in.config("MAX_FAILURES_IN_A_ROW = 2", "NUM_JOBS = 1",
                    "helper.ERRORS['QUOTA_EXCEEDED'] = ('over quota at the destination', 1)")
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "over quota at the destination" in done.err
    assert "failed in a row (MAX_FAILURES_IN_A_ROW = 2)" in done.err
    assert last_line(done) == "0 processed, 2 failed, 0 not needed" and len(emulator.tasks()) == 2
    emulator.bend_collection(DESTINATION, quota=None)
    assert last_line(stand_in.run(BATCH)) == "4 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == dict.fromkeys(files, 1)


def test_what_fails_while_it_waits_does_not_make_the_driver_wait_for_ever(copying, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(6)})
    copying.config("MAX_FAILURES_IN_A_ROW = 1", "NUM_JOBS = 2")
    copying.process("wanted=go", '[ "$GLOBUS_NAME" = f0 ] && wanted=begun || touch begun',
                     "until [ -e $wanted ]; do sleep 0.1; done",
                     '[ "$GLOBUS_NAME" != f0 ] || exit 3', *KEEP)
    driver = copying.start(BATCH)
    wait_until(lambda: b"FAILED f0" in driver.stderr.readline())
    (copying.folder / "go").touch()
    out = driver.communicate()[0].decode()
    assert driver.returncode == 1
    assert out.splitlines()[-1] == "1 processed, 1 failed, 0 not needed"
    copying.process(*KEEP)
    assert last_line(copying.run(BATCH)) == "6 processed, 0 failed, 0 not needed"
    assert processed(copying) == {"f%d" % n: 1 for n in range(6)}


def test_a_halt_is_told_at_once_and_jobs_that_have_not_begun_are_cancelled(
        copying, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"x" for n in range(10)})
    copying.config("NUM_JOBS = 4", "MAX_FAILURES_IN_A_ROW = 3", "POLL_SECONDS = 0.3", NEEDED)
    copying.process(*HOLD, '[ -e fixed ] || [ "$GLOBUS_NAME" = f0 ] || { echo broken; exit 5; }',
                     *KEEP)
    held, pending = hold(copying, "f0"), hold_jobs(copying, tmp_path)
    (pending / "g2").touch()
    (pending / "g1").touch()
    driver = copying.start(BATCH)
    wait_until(lambda: queued(copying))
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
    (copying.folder / "fixed").touch()
    (pending / "g2").unlink()
    assert last_line(copying.run(BATCH)) == "10 processed, 0 failed, 0 not needed"
    assert processed(copying) == dict.fromkeys(files, 1)


# A job that has had a success goes on until the driver says stop.
@pytest.mark.parametrize("first,most", [(0, 20), pytest.param(2, 30, marks=pytest.mark.long)])
def test_a_missing_program_costs_no_whole_packs(first, most, copying, emulator):
    files = emulator.add({"f%03d" % n: b"x" for n in range(80)})
    copying.config("FILES_PER_JOB = 40", "NUM_JOBS = 2", "MAX_FAILURES_IN_A_ROW = 10",
                   "POLL_SECONDS = 0.5")
    copying.process("[[ $GLOBUS_NAME < f%03d ]] || { sleep %s; exit 127; }" % (
        first, "0.3" if first else "0"), *KEEP)
    done = copying.run(BATCH)
    assert done.returncode == 1 and "10 files or jobs failed in a row" in done.err
    assert 10 <= int(last_line(done).split()[2]) <= most
    copying.process(*KEEP)
    assert last_line(copying.run(BATCH)) == "80 processed, 0 failed, 0 not needed"
    assert processed(copying) == dict.fromkeys(files, 1)


def test_a_halt_that_a_disk_breaks_off_is_tried_again_and_told_once(copying, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(12)})
    copying.config("FILES_PER_JOB = 12", "NUM_JOBS = 1", "MAX_FAILURES_IN_A_ROW = 2")
    copying.edit(BATCH, '    if token.state in ("gone", "lost"):\n        return True\n    try:', (
        '    if token.state in ("gone", "lost"):\n        return True\n'
        '    if state == "stop" and not os.path.exists("once"):\n'
        '        open("once", "w").close()\n'
        '        raise OSError(116, "Stale file handle", folder)\n    try:'))
    copying.process("echo >>begun; [ $GLOBUS_NAME = f00 ] || { sleep 0.5; exit 3; }", *KEEP)
    done = copying.run(BATCH)
    assert done.err.count("STOPPING: ") == 1 and "Stale file handle" in done.err
    assert (copying.folder / "begun").read_text().count("\n") <= 5


def test_a_failure_in_the_step_that_ends_the_run_is_told(copying, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(2)})
    copying.config("NUM_JOBS = 1")
    copying.edit(BATCH, "            there, ours = os.stat(self.path)", (
        '            if event["event"] == "closed":\n'
        "                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "            there, ours = os.stat(self.path)"))
    copying.process("echo why; exit 3")
    done = copying.run(BATCH)
    assert done.returncode == 1 and "FAILED f0: exit status 3: why" in done.err


# ---- bad neighbours ----


@pytest.mark.parametrize("most,bad,row,jobs,where", [
    (1, 8, 6, 2, "job"), (5, 15, 10, 3, "job"),
    pytest.param(5, 15, 10, 3, "driver", marks=pytest.mark.long)])
@pytest.mark.long
def test_bad_neighbours_at_the_beginning_of_the_listing_do_not_halt_a_healthy_batch(
        most, bad, row, jobs, where, copying, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(bad + 12)})
    copying.config("MAX_FAILURES_IN_A_ROW = %d" % row, "FILES_PER_JOB = %d" % most,
                   "NUM_JOBS = %d" % jobs, "DOWNLOAD_BY = %r" % where)
    copying.process("[[ ! $GLOBUS_NAME < f%02d ]] || exit 3" % bad, *KEEP)
    done = copying.run(BATCH)
    assert "STOPPING" not in done.err, done.err
    assert last_line(done) == "12 processed, %d failed, 0 not needed" % bad
    assert processed(copying) == {name: 1 for name in files if name >= "f%02d" % bad}


def test_a_pack_with_failures_only_comes_after_new_ones(copying, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(9)})
    copying.config("MAX_FAILURES_IN_A_ROW = 12", "FILES_PER_JOB = 3", "NUM_JOBS = 2")
    copying.process("case $GLOBUS_NAME in f0[01]) exit 3 ;; esac",
                     "until [ -e go ]; do sleep 0.1; done", *KEEP)
    copying.edit("wrapper.sh", "_most_failures=$4", "_most_failures=2")
    driver = copying.start(BATCH)
    wait_until(lambda: len(queued(copying)) == 3)
    let_go(copying)
    packs = [event["pack"].split("-")[0] for event in journal(copying)
             if event["event"] == "submit"]
    assert packs == ["g1", "g2", "g3"]
    assert end(driver)[0] == "7 processed, 2 failed, 0 not needed"



def test_what_failures_put_a_pack_behind_new_ones():
    pack = DRIVER.Pack([DRIVER.helper.File(name, 1, "", None) for name in "ab"])
    assert not pack.has_only_failed()
    pack.results = {0: (1, "gone", "download-node-7")}  # no job had it yet
    assert not pack.has_only_failed()
    pack.results[0] = (1, "", "1.7.node-8-9")
    assert pack.has_only_failed()
    pack.results[1] = (0, "", "1.7.node-8-9")
    assert not pack.has_only_failed()
    del pack.results[1]
    pack.failed_before = {0}  # before the last start
    assert not pack.has_only_failed()
