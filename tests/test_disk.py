"""A disk that is out of order at the worst moment, a halt in the middle of it, and files that are
torn: no file is lost, none fails for it."""
import pytest
from conftest import BATCH, KEEP, last_line, processed, put_before, with_stand_in

ONCE = ("if not os.path.exists('once'):\n        open('once', 'w').close()\n"
        "        raise OSError(122, 'Disk quota exceeded', folder)\n    ")
MOMENTS = {"before its folder": "os.makedirs(folder, exist_ok=True)\n    write_whole(",
           "before the list of its files": 'write_whole(os.path.join(folder, "files")'}


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


def test_half_a_line_of_a_result_is_none(stand_in, emulator):
    """The disk took '1 3' of '1 3' and its line feed, and then the job was killed."""
    emulator.add({"f%d" % n: b"x" for n in range(3)})
    stand_in.config("FILES_PER_JOB = 3", "NUM_JOBS = 1", "GRACE_SECONDS = 2", "POLL_SECONDS = 0.5")
    stand_in.process('if [ $GLOBUS_NAME = f1 ] && mkdir killed 2>/dev/null; then',
                     "printf '1 3' >>\"$(ls jobs/g1-*/results.* | head -n 1)\"",
                     "kill -KILL $PPID $$; fi", *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "3 processed, 0 failed, 0 not needed", done.err
    assert processed(stand_in) == {"f0": 1, "f1": 1, "f2": 1}


def test_an_empty_queue_of_grid_engine_is_an_answer_without_any_job_of_ours(
        site, emulator, tmp_path):
    with_stand_in(site, tmp_path, "sge")
    emulator.add({"a": b"1"})
    put_before(site, tmp_path, "qsub", "mkdir once 2>/dev/null || exec \"$real\" \"$@\"",
               "echo 'no more jobs for you' >&2; exit 1")
    site.config("POLL_SECONDS = 0.3")
    site.process(*KEEP)
    done = site.run(BATCH)
    assert "no more jobs for you" in done.err and "does not answer" not in done.err
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
