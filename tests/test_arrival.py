"""helper.py, "what has arrived": only what Globus tells is known."""
import pytest
from conftest import BATCH, QUICK, SIMPLE, last_line, processed, wait_until

TWO = ("globus-single-file-download.py", "--globus-path", "/home/share/godata", "--file", "a",
          "--file", "b")
SKIPPED, SENT = "/skipped_errors", "/successful_transfers"
NAMELESS = {"DATA": [{"source_path": None, "destination_path": None, "error_code": "X"}]}


@pytest.fixture
def stale(site, emulator):
    """A site where b, which cannot be read by now, lies in DOWNLOAD_DIR from another day."""
    emulator.add({"a": b"1", "b": b"new"})
    emulator.bend(troubles=[{"path": "b$", "code": "PERMISSION_DENIED"}])
    site.downloads.mkdir()
    (site.downloads / "b").write_bytes(b"old")
    site.config("helper.LIST_SECONDS = 1", "helper.ARRIVAL_SECONDS = 1")
    return site


@pytest.mark.parametrize("fault", [
    pytest.param({"status": 409, "json": {"code": "Conflict", "message": "not yet"}},
                 marks=pytest.mark.long),
    {"status": 403, "json": {"code": "PermissionDenied", "message": "no"}},
    pytest.param({"status": 404, "json": {"code": "TaskNotFound", "message": "no"}},
                 marks=pytest.mark.long),
    pytest.param({"patch": {"DATA": []}}, marks=pytest.mark.long),
    pytest.param({"patch": NAMELESS}, marks=pytest.mark.long),
], ids=["409", "403", "404", "empty", "without paths"])
def test_what_was_skipped_without_being_named_has_not_arrived(fault, stale, here, emulator):
    emulator.fault(SKIPPED, **fault)
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert "Did not arrive: b (no reason given)\n" in done.out
    assert "1 sent, 0 already there, 1 did not arrive." in done.out
    done = here.run(*TWO)
    assert done.returncode == 1 and done.out.splitlines()[1] == "", done.out


def test_a_list_that_comes_late_is_asked_for_again(stale, here, emulator):
    emulator.fault(SKIPPED, status=409, times=1, json={"code": "Conflict", "message": "not yet"})
    done = here.run(SIMPLE)
    assert "Did not arrive: b (permission denied)\n" in done.out


def test_a_file_that_is_named_by_its_destination_only_is_known(stale, here, emulator):
    emulator.fault(SKIPPED, patch={"DATA": [{
        "source_path": None, "destination_path": str(stale.downloads / "b"),
        "error_code": "PERMISSION_DENIED"}]})
    done = here.run(SIMPLE)
    assert "Did not arrive: b (permission denied)\n" in done.out


def test_if_nothing_at_all_is_named_nothing_has_arrived(stale, here, emulator):
    for name in (SKIPPED, SENT):
        emulator.fault(name, status=403, json={"code": "PermissionDenied", "message": "no"})
    done = here.run(SIMPLE)
    assert done.returncode == 1
    for name in "ab":
        assert "Did not arrive: %s (Globus does not tell whether it has arrived)" % name in done.out


def test_a_file_that_a_failed_task_has_sent_but_does_not_name_is_asked_for_again(
        site, here, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    emulator.bend(troubles=[{"path": "b$", "code": "IS_A_DIRECTORY", "is_source": False}],
                  retry_seconds=0.2)
    emulator.fault(SENT, patch={"DATA": []}, times=3)
    site.config("helper.LIST_SECONDS = 1", "helper.ERRORS['IS_A_DIRECTORY'] = 'a folder', 1")
    done = here.run(*TWO)
    assert done.returncode == 1
    assert done.out.splitlines() == [str(site.downloads / "a"), ""]


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
def test_the_tasks_of_packs_that_expire_are_no_verdict_on_their_files(where, stand_in, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    emulator.bend(slots=0, speed=3600 * 12)
    stand_in.config("FILES_PER_JOB = 2", "NUM_JOBS = 2", "DOWNLOAD_BY = %r" % where)
    stand_in.process('printf "%s\\n" "$GLOBUS_NAME" >>processed')
    driver = stand_in.start(BATCH)
    wait_until(lambda: sum(task["status"] == "FAILED" for task in emulator.tasks()) >= 2)
    emulator.bend(slots=3, speed=1)
    done = driver.communicate()
    assert driver.returncode == 0, done
    assert processed(stand_in) == {"f%d" % n: 1 for n in range(4)}


def test_a_task_that_was_cancelled_before_it_was_taken_over_is_no_verdict(stand_in, emulator):
    """The job was killed between its cancel and its word on the file that the task was stuck at."""
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    emulator.bend(retry_seconds=0.2, troubles=[
        {"path": "f2", "code": "IS_A_DIRECTORY", "is_source": False}])
    stand_in.config("FILES_PER_JOB = 4", "helper.ERRORS['IS_A_DIRECTORY'] = 'a folder', 1",
                    "helper.real_cancel = globus_sdk.TransferClient.cancel_task",
                    "helper.globus_sdk.TransferClient.cancel_task = cancel_and_die")
    stand_in.edit("helper.py", "\n# ---- transfer tasks ----\n", '''
def cancel_and_die(client, task):
    real_cancel(client, task)
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.join(HERE, "died"))
        os.kill(os.getpid(), 9)


# ---- transfer tasks ----
''')
    stand_in.process('printf "%s\\n" "$GLOBUS_NAME" >>processed')
    done = stand_in.run(BATCH)
    assert last_line(done) == "3 processed, 1 failed, 0 not needed", done.err
    assert processed(stand_in) == {"f0": 1, "f1": 1, "f3": 1}
    assert "FAILED f2: " in done.out and "a folder" in done.out


def lie(emulator):
    """List a with 7 bytes; it has one."""
    emulator.add({"a": b"1", "b": b"22"})
    emulator.fault("/ls", skip=0, patch={"DATA": [
        {"name": "a", "type": "file", "size": 7}, {"name": "b", "type": "file", "size": 2}]})


@pytest.mark.parametrize("start", ["first", "second"])
def test_a_file_whose_listed_size_is_no_real_one_is_what_globus_compared(
        start, site, here, emulator):
    lie(emulator)
    site.config("helper.ARRIVAL_SECONDS = 1")
    for _ in range(1 + (start == "second")):
        done = here.run(SIMPLE)
    assert done.returncode == 0, done.out
    assert done.err.count("1 file came with another size than was listed, such as a; Globus") == 1
    assert site.downloaded() == {"a": b"1", "b": b"22"}


def test_a_size_that_is_not_that_of_the_destination_is_not_believed(
        site, here, emulator, tmp_path):
    lie(emulator)
    other = tmp_path / "another folder"
    other.mkdir()
    (other / "a").write_bytes(b"333")
    (other / "b").write_bytes(b"4444")
    site.config("helper.ARRIVAL_SECONDS = 1", "DESTINATION_PATH = %r" % str(site.downloads),
                "DOWNLOAD_DIR = %r" % str(other))
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert "Did not arrive: a (came with 3 bytes, but was listed with 7" in done.out
    assert "Did not arrive: b (came with 4 bytes, but was listed with 2" in done.out


def test_a_damaged_file_of_a_task_that_failed_has_not_arrived(site, here, emulator):
    emulator.add({"a": b"1", "z": b"x" * 2000})
    emulator.bend(retry_seconds=0.2, troubles=[{"path": "z$", "code": "CORRUPT"}])
    site.config(*QUICK)
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert "Did not arrive: z (it is there, but not verified)\n" in done.out
    assert "2 files: 1 sent, 0 already there, 1 did not arrive." in done.out
