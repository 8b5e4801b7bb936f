"""globus-batch-download.py, what failures leave: their files and logs stay until the next start, as
the summary says, and are used again."""
from conftest import BATCH, KEEP, NEEDED, QUICK, entries, last_line, load, processed

driver = load("globus-batch-download")

# The first job is killed at work on b, which it has cut short.
CUT_SHORT = ('[ "$GLOBUS_NAME" != a ] || { echo "no header"; exit 1; }',
             'if [ "$GLOBUS_NAME" = b ] && mkdir killed 2>/dev/null; then',
             '  : >"$1"; kill -KILL $PPID $$; fi')


def test_a_failed_file_stays_though_its_pack_was_downloaded_again(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"22", "c": b"333"})
    stand_in.config("FILES_PER_JOB = 3", "NUM_JOBS = 1", "GRACE_SECONDS = 0", "POLL_SECONDS = 0.2",
                    "helper.ARRIVAL_SECONDS = 1")
    stand_in.process(*CUT_SHORT, *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 1 failed, 0 not needed"
    assert processed(stand_in) == {"b": 1, "c": 1}
    assert stand_in.downloaded() == {"a": b"1"}
    tasks = len(emulator.tasks())
    stand_in.config(NEEDED)
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 2 not needed"
    assert len(emulator.tasks()) == tasks  # it is not sent again


def test_the_log_of_a_download_by_the_driver_is_not_written_over_by_the_job(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    emulator.bend(troubles=[{"path": "a$", "code": "NO_SPACE_LEFT"}], retry_seconds=0.1)
    stand_in.config("FILES_PER_JOB = 2", "DOWNLOAD_BY = 'driver'", *QUICK)
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    log = next(word for word in done.err.split() if word.endswith("download.log)"))
    assert "no space left" in (stand_in.folder / log.strip("()")).read_text()


def test_refused_submissions_are_no_retries():
    state = driver.State()
    file = [entries("a")[0][key] for key in ("name", "size", "last_modified")]
    for event in ({"event": "run", "run": "abcde", "identity": {}},
                  {"event": "pack", "pack": "g1-abcde", "files": [file]},
                  {"event": "submit", "pack": "g1-abcde", "attempt": 1, "results": 0},
                  {"event": "closed", "pack": "g1-abcde", "at": None, "results": None},
                  {"event": "submit", "pack": "g1-abcde", "attempt": 2, "results": 0},
                  {"event": "queued", "pack": "g1-abcde", "id": "7"}):
        state.apply(dict(event, time=0))
    assert state.retries == 0
    for event in ({"event": "closed", "pack": "g1-abcde", "at": None, "results": 0},
                  {"event": "submit", "pack": "g1-abcde", "attempt": 3, "results": 0},
                  {"event": "queued", "pack": "g1-abcde", "id": "8"},
                  {"event": "queued", "pack": "g1-abcde", "id": "9"}):  # of the same job
        state.apply(dict(event, time=0))
    assert state.retries == 1
