"""globus-batch-download.py, what failures leave: their files and logs stay until the next start, as
the summary says, and are used again."""
import pytest
from conftest import BATCH, KEEP, NEEDED, QUICK, last_line, processed

# A job is killed at work on c, the last one, which it has cut short.
CUT_SHORT = ('[ "$GLOBUS_NAME" != a ] || { echo "no header"; exit 1; }',
             'if [ "$GLOBUS_NAME" = c ]%s; then : >"$1"; kill -KILL $PPID $$; fi')


@pytest.mark.parametrize("condition,numbers", [
    (" && mkdir killed 2>/dev/null", "2 processed, 1 failed, 0 not needed"),
    pytest.param("", "1 processed, 2 failed, 0 not needed", marks=pytest.mark.long)],
    ids=["once", "twice"])
def test_a_failed_file_stays_though_another_one_of_its_pack_was_left_half_processed(
        condition, numbers, stand_in, emulator):
    emulator.add({"a": b"1", "b": b"22", "c": b"333"})
    stand_in.config("FILES_PER_JOB = 3", "NUM_JOBS = 1", "GRACE_SECONDS = 0", "POLL_SECONDS = 0.2",
                    "helper.ARRIVAL_SECONDS = 1", NEEDED)
    stand_in.process(CUT_SHORT[0], CUT_SHORT[1] % condition, *KEEP)
    assert last_line(stand_in.run(BATCH)) == numbers
    assert stand_in.downloaded()["a"] == b"1"
    stand_in.process(*KEEP)
    assert stand_in.run(BATCH).returncode == 0
    assert processed(stand_in) == {"a": 1, "b": 1, "c": 1}


def test_the_log_of_a_download_by_the_driver_is_not_written_over_by_the_job(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    emulator.bend(troubles=[{"path": "a$", "code": "NO_SPACE_LEFT"}], retry_seconds=0.1)
    stand_in.config("FILES_PER_JOB = 2", "DOWNLOAD_BY = 'driver'", *QUICK)
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    log = next(word for word in done.err.split() if word.endswith("download.log)"))
    assert "no space left" in (stand_in.folder / log.strip("()")).read_text()
