"""globus-single-file-download.py and helper.py, "downloading files": one file, or several with one
task, by hand and in a job."""
import signal

import pytest
from conftest import (
    BATCH,
    ONE,
    PATH,
    SINGLE,
    STRANGE_NAMES,
    cancel_task,
    run_single,
    wait_until,
)

NAMES = [*STRANGE_NAMES[:7], "sub dir/it's"]


# ---- one file ----


def test_prints_the_local_path_and_nothing_else(site, here, emulator):
    emulator.add(dict.fromkeys(NAMES, b"data"))
    for name in NAMES:
        done = here.run(SINGLE, "--globus-path", PATH, "--file", name)
        assert done.returncode == 0, done.err
        assert done.out == str(site.downloads / name) + "\n"
        assert (site.downloads / name).read_bytes() == b"data"


def test_a_missing_file_fails_at_once_with_its_name(here, emulator):
    done = here.run(SINGLE, "--globus-path", PATH, "--file", "nothing")
    assert done.returncode == 1
    assert done.err.startswith(PATH + "nothing: is not on the source collection.")
    assert done.out == "" and emulator.tasks() == []


def test_a_directory_is_no_file(here, emulator):
    emulator.add({"sub/a": b""})
    done = here.run(SINGLE, "--globus-path", PATH, "--file", "sub")
    assert done.returncode == 1
    assert "is not a file" in done.err


def test_a_name_that_would_leave_the_folder_is_refused_unasked(here, emulator):
    for name in "../x", "..", "/etc/passwd", "a/../../x", "", "a\nb", "a\x1bb":
        done = here.run(SINGLE, "--globus-path", PATH, "--file", name)
        assert done.returncode == 2, name
        assert "would be written outside DOWNLOAD_DIR" in done.err or (
            "control character" in done.err), name
    assert emulator.requests() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, *(
    pytest.param(number, marks=pytest.mark.long) for number in (signal.SIGINT, signal.SIGHUP))])
def test_stopped_by_a_signal_it_cancels_its_task(site, emulator, number):
    emulator.add({"a": b"1"})
    emulator.bend(task_seconds=60)
    process = site.start(*ONE)
    wait_until(lambda: any(r.startswith("GET /v0.10/task/") for r in emulator.requests()))
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 130
    assert b"is cancelled" in err and out == b""
    assert emulator.tasks()[0]["fatal_error"]["code"] == "CANCELED"


def test_a_transfer_that_fails_does_not_remove_what_was_there_whole(site, here, emulator):
    emulator.add({"a": b"1"})
    assert here.run(*ONE).returncode == 0
    emulator.bend(troubles=[{"path": "a$", "code": "PERMISSION_DENIED"}])
    site.config("helper.ERRORS['PERMISSION_DENIED'] = ('permission denied', 1)")
    assert here.run(*ONE).returncode == 1
    assert site.downloaded() == {"a": b"1"}


def test_stopped_while_it_submits_it_leaves_no_task_either(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(task_seconds=60)
    emulator.fault("POST /v0.10/transfer", times=1, delay=3, drop="after")
    process = site.start(*ONE)
    wait_until(lambda: any("POST /v0.10/transfer" in r for r in emulator.requests()))
    process.send_signal(signal.SIGTERM)
    process.communicate()
    wait_until(lambda: all(t["status"] == "FAILED" for t in emulator.tasks()))
    assert len(emulator.tasks()) == 1


def test_a_file_that_did_not_arrive_whole_is_a_failure(site, emulator):
    emulator.add({"a": b"12345"})
    emulator.fault("/stat", patch={"size": 7})
    site.config("helper.ARRIVAL_SECONDS = 1")
    done = run_single(site, "a")
    assert done.returncode == 1
    assert PATH + "a: came with 5 bytes, but was listed with 7" in done.err and done.out == ""


def test_no_mail_is_sent_for_each_file(here, emulator):
    emulator.add({"a": b"1"})
    here.run(*ONE)
    request = emulator.tasks()[0]["request"]
    assert not any(request["notify_on_" + how] for how in ("succeeded", "failed", "inactive"))


def test_a_small_file_by_hand_takes_six_requests_and_a_pack_in_a_job_four(
        stand_in, here, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("helper.SOONEST_POLL = 4")  # by the first look it has arrived, however slowly
    here.run(*ONE)
    by_hand = len(emulator.requests())
    assert by_hand <= 6, emulator.requests()  # of which two are for the collections
    here.run(BATCH, "--dry-run")
    checks = len(emulator.requests()) - by_hand
    stand_in.run(BATCH)
    assert len(emulator.requests()) - by_hand - 2 * checks <= 4, emulator.requests()


def stopped_twice(site, emulator):
    """A download that gets a second signal while it cancels its task; what it said."""
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    process = site.start(*ONE)
    wait_until(emulator.tasks)
    emulator.fault("/cancel", times=1, status=503, text="<html>busy</html>")
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: any("/cancel" in line for line in emulator.requests()))
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].decode()
    assert process.returncode == 130
    return said


def test_a_second_signal_does_not_keep_it_from_cancelling_its_task(site, emulator):
    assert "is cancelled" in stopped_twice(site, emulator)
    assert [task["status"] for task in emulator.tasks()] == ["FAILED"]


def test_a_cancel_that_is_refused_for_a_while_is_tried_again(site, here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    site.config("import helper, itertools", "helper.CANCEL_SECONDS = 0.1",
                "helper.backoff = lambda *_: itertools.repeat(0.1)")
    here.start(*ONE)
    wait_until(emulator.tasks)
    emulator.fault("/cancel", times=6, status=503, text="<html>busy</html>")
    here.interrupt()
    said = here.end().err
    assert "Cancelling the transfer task " in said and "in between: busy (HTTP 503)." in said
    assert [task["status"] for task in emulator.tasks()] == ["FAILED"]


def start_slow_cancel(site, here, emulator):
    """A download that is stopped, but whose task goes on for long though it is cancelled."""
    emulator.add({"a": b"x" * 1000000})
    emulator.bend(bytes_per_second=10000, cancel_seconds=600)
    site.config("helper.CANCEL_SECONDS = 0.5")
    here.start(*ONE)
    wait_until(lambda: site.downloaded().get("a"))
    here.interrupt()


def test_a_cancel_that_is_not_over_at_once_is_waited_for(site, here, emulator):
    start_slow_cancel(site, here, emulator)
    here.wait_for("Globus has accepted the cancel request, but the task has not ended.")
    emulator.bend(cancel_seconds=0)
    cancel_task(site)
    said = here.end().err
    assert "; the transfer task " in said and " is cancelled.\n" in said
    assert emulator.tasks()[0]["status"] == "FAILED"


def test_a_task_that_outlives_its_cancel_is_said(site, here, emulator):
    site.config("helper.STOP_SECONDS = 1")
    start_slow_cancel(site, here, emulator)
    done = here.end()
    assert done.returncode == 130
    assert "could not be cancelled: Globus has accepted the cancel request, but" in done.err
    assert emulator.tasks()[0]["status"] == "ACTIVE"


@pytest.mark.long
def test_a_hopeless_task_that_outlives_its_cancel_is_waited_for(site, here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(retry_seconds=0.2, cancel_seconds=3, troubles=[
        {"path": "a$", "code": "PERMISSION_DENIED", "is_source": False}])
    site.config("import helper", "helper.CANCEL_SECONDS = 0.5",
                "helper.ERRORS['PERMISSION_DENIED'] = ('permission denied', 1)")
    done = here.run(*ONE)
    assert done.returncode == 1
    assert "Waiting: Globus has accepted the cancel request, but the task has not" in done.err
    assert [task["status"] for task in emulator.tasks()] == ["FAILED"]


def test_an_error_that_ends_the_wait_leaves_no_task_behind(here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    emulator.fault("GET /v0.10/task/", times=1, status=403, json={
        "code": "PermissionDenied", "message": "not yours"})
    done = here.run(*ONE)
    assert done.returncode == 1
    assert "is cancelled" in done.err and "not yours" in done.err
    assert [task["fatal_error"]["code"] for task in emulator.tasks()] == ["CANCELED"]


# ---- several files ----


def several(*names):
    return [SINGLE, "--globus-path", PATH, *[word for name in names for word in ("--file", name)]]


def test_several_files_are_one_task_and_a_line_each(site, emulator):
    names = [*reversed(NAMES), "sub/b"]
    emulator.add(dict.fromkeys(names, b"1"))
    done = site.run(*several(*names))
    assert done.returncode == 0, done.err
    assert done.out == "".join("%s/%s\n" % (site.downloads, name) for name in names)
    assert len(emulator.tasks()) == 1


def test_a_file_that_is_not_there_does_not_hold_up_the_others(site, here, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    done = here.run(*several("a", "no\nname", "nothing", "b"))
    assert done.returncode == 1
    assert done.out == "%s/a\n\n\n%s/b\n" % (site.downloads, site.downloads)
    assert PATH + "nothing: is not on the source collection." in done.err


def test_a_file_that_cannot_be_written_does_not_hold_up_the_others(site, here, emulator):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    (site.downloads / "b").mkdir(parents=True)
    site.config("helper.ERRORS['IS_A_DIRECTORY'] = ('', 1)")
    done = here.run(*several("a", "b", "c"))
    assert done.returncode == 1
    assert done.out == "%s/a\n\n%s/c\n" % (site.downloads, site.downloads)


def test_variables_that_happen_to_be_set_do_no_harm(site, here, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    site.env.update(GLOBUS_NAME="mine", GLOBUS_DESTINATION="mine")
    done = here.run(*several("a", "b"))
    assert done.returncode == 0, done.err
