"""helper.py, "transfer tasks": why a task does not move, in Globus's words, and when it is given
up."""
import time

import pytest
from conftest import (
    ONE,
    PATH,
    QUICK,
    SIMPLE,
    SOURCE,
    cancel_task,
    gcp,
    wait_until,
)

# ---- why it does not move ----


def trouble(code, **more):
    return {"troubles": [dict({"path": "a$", "code": code}, **more)]}


# name: (settings of the emulator, what heals them, what the user sees)
STALLS = {
    "no slot is free": (
        {"slots": 0}, {"slots": 3}, "queued at Globus, which works on three"),
    "Globus Connect Personal stops": (
        gcp(gcp_connected=False), gcp(gcp_connected=True),
        "Globus Connect Personal is not running; start it: globusconnectpersonal -start &"),
    "Globus Connect Personal is paused": (
        gcp(gcp_paused=True), gcp(gcp_paused=False), "resume it: globusconnectpersonal -unpause"),
    "an administrator pauses the collection": (
        gcp(paused_message="disks are moved until 5 pm"), gcp(paused_message=None),
        "paused by an administrator of the collection: disks are moved until 5 pm"),
    "a permission is missing for a moment": (
        trouble("PERMISSION_DENIED", times=3, is_source=False), {},
        "(My cluster); given up after 60 s without progress"),
    "the server is out of reach": (
        trouble("CONNECT_FAILED", times=3), {},
        "the collection's server cannot be reached, Globus keeps trying: /home/share/godata/a"),
    "the server is too busy": (
        trouble("ENDPOINT_TOO_BUSY", times=3), {}, "too busy, Globus keeps trying"),
    "a checksum does not match for once": (
        dict(trouble("CORRUPT", times=1), retry_seconds=2), {},
        "a checksum did not match, Globus sends the file again"),
    "a reason that nobody knows": (
        trouble("BRAND_NEW", times=3), {}, "brand new (BRAND_NEW), Globus keeps trying"),
}


@pytest.mark.parametrize("name", STALLS)
def test_a_stall_says_why_once_and_goes_on(name, site, here, emulator):
    emulator.add({"a": b"x" * 2000})
    bent, healed, words = STALLS[name]
    emulator.bend(task_seconds=0.5, retry_seconds=0.3)
    site.config("import helper", "helper.SLOWEST_POLL = 0.5")
    if "troubles" in bent or "slots" in bent:
        emulator.bend(**bent)
        here.start(*ONE)
    else:  # in the middle
        here.start(*ONE)
        wait_until(emulator.tasks)
        emulator.bend(**bent)
    here.wait_for(words)
    emulator.bend(**healed)
    done = here.end()
    assert done.returncode == 0, done.err
    said, = [line for line in done.err.splitlines() if words in line]
    assert said.startswith("Waiting: ")
    assert site.downloaded() == {"a": b"x" * 2000}


def test_words_that_globus_refuses_to_give_do_not_end_the_wait(here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(**gcp(paused_message="no word"))
    emulator.fault("/pause_info", status=403, json={"code": "PermissionDenied", "message": "no"})
    here.start(*ONE).wait_for("paused")
    emulator.bend(**gcp(paused_message=None))
    done = here.end()
    assert "Resumed." in done.err
    assert done.returncode == 0


def test_a_task_that_globus_has_suspended_says_what_to_do(here, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("GET /v0.10/task/", times=3, patch={"status": "INACTIVE", "nice_status": None})
    done = here.run(*ONE)
    assert "Waiting: suspended until you log in again and resume it" in done.err
    assert done.returncode == 0


def test_a_task_that_somebody_cancels_says_so(site, here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(task_seconds=60)
    here.start(*ONE)
    wait_until(emulator.tasks)
    cancel_task(site)
    done = here.end()
    assert done.returncode == 1
    assert "/home/share/godata/a: canceled" in done.err


def test_why_a_task_does_not_move_is_told_again_after_an_outage(here, emulator):
    emulator.add({"a": b"x"})
    emulator.bend_collection(SOURCE, paused_message="an hour off")
    here.start(*ONE).wait_for("an hour off")
    emulator.fault("GET /v0.10/task/", times=2, status=503, text="<html>down</html>")
    here.wait_for("Resumed.")
    wait_until(lambda: here.err.rpartition("Resumed.")[2].count("an hour off"))
    emulator.bend_collection(SOURCE, paused_message=None)
    assert here.end().returncode == 0


def test_a_stalled_task_says_why(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(task_seconds=1, slots=0)
    process = site.start("globus-simple-download.py")
    process.stdout.readline()
    wait_until(lambda: b"queued at Globus" in process.stderr.readline())
    emulator.bend(slots=3)
    process.communicate()
    assert process.returncode == 0


@pytest.mark.long
def test_a_trouble_that_comes_and_goes_is_told_once_until_something_moves(site, here, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    emulator.bend(retry_seconds=0.4, task_seconds=0.4, troubles=[
        {"path": "b$", "code": "CONNECT_FAILED", "times": 4}])
    site.config("helper.SLOWEST_POLL = 0.1")
    done = here.run(SIMPLE)
    assert done.returncode == 0
    assert done.err.count("Waiting: ") == done.err.count("Resumed.") == 1


# ---- what does not pass ----


# name: (settings of the emulator, what the user sees of the reason)
DOOMED = {
    "no permission": (trouble("PERMISSION_DENIED", is_source=False),
                      "permission denied, on the destination collection"),
    "disk full": (trouble("NO_SPACE_LEFT"), "no space left at the destination"),
    "quota": (gcp(quota=10), "over quota at the destination"),
    "a checksum that never matches": (trouble("CORRUPT"), "a checksum did not match"),
    "a directory in its place": (None, "is a directory"),
    "a name that is not allowed": (trouble("INVALID_PATH_NAME"), "invalid path name"),
}


@pytest.mark.parametrize("name", DOOMED)
def test_what_cannot_succeed_fails_soon_and_can_be_asked_for_again(name, site, here, emulator):
    emulator.add({"a": b"x" * 2000})
    site.config(*QUICK)
    bent, words = DOOMED[name]
    emulator.bend(retry_seconds=0.2)
    if bent is None:
        (site.downloads / "a").mkdir(parents=True)
    else:
        emulator.bend(**bent)
    done = here.run(*ONE)
    assert done.returncode == 1
    assert PATH + "a: cancelled, because it cannot succeed: " in done.err and words in done.err
    assert done.out == ""
    assert [task["fatal_error"]["code"] for task in emulator.tasks()] == ["CANCELED"]
    # Fixed, the same file is asked for again.
    emulator.bend(troubles=[], **gcp(quota=None))
    if bent is None:
        (site.downloads / "a").rmdir()
    done = here.run(*ONE)
    assert (done.out, done.err, done.returncode) == (str(site.downloads / "a") + "\n", "", 0)


@pytest.mark.parametrize("code,words", [
    ("FILE_NOT_FOUND", "file not found"), ("PERMISSION_DENIED", "permission denied")])
def test_what_the_source_does_not_give_fails_at_once_and_can_be_asked_for_again(
        code, words, site, here, emulator):
    emulator.add({"a": b"x" * 2000})
    emulator.bend(**trouble(code))
    done = here.run(*ONE)
    assert "/home/share/godata/a: " + words in done.err
    assert done.returncode == 1 and done.out == "" and site.downloaded() == {}
    assert [task["status"] for task in emulator.tasks()] == ["SUCCEEDED"]  # but for that file
    emulator.bend(troubles=[])
    done = here.run(*ONE)
    assert (done.out, done.err, done.returncode) == (str(site.downloads / "a") + "\n", "", 0)


def test_a_download_that_cannot_succeed_is_told_with_each_file_that_is_missing(
        site, here, emulator):
    emulator.add({"a": b"1", "b": b"x" * 2000, "c": b"x" * 3000})
    emulator.bend(retry_seconds=0.2, **gcp(quota=1000))
    site.config(*QUICK)
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert ("The transfer failed: cancelled, because it cannot succeed: "
            "over quota at the destination" in done.err)
    assert "Did not arrive: b\nDid not arrive: c\n" in done.out
    assert "3 files: 1 sent, 0 already there, 2 did not arrive." in done.out


def test_a_trouble_that_globus_has_not_tried_again_is_not_hopeless(site, here, emulator):
    """As of a task that waits for its turn, which still shows its last trouble."""
    emulator.add({"a": b"1"})
    site.config(*QUICK)
    emulator.bend(retry_seconds=3, **trouble("PERMISSION_DENIED", times=1, is_source=False))
    done = here.run(*ONE)
    assert done.returncode == 0, done.err


@pytest.mark.long
def test_the_time_with_another_trouble_does_not_count_for_the_first_one(site, here, emulator):
    emulator.add({"a": b"1"})
    site.config(*QUICK)
    emulator.bend(retry_seconds=2, **trouble("PERMISSION_DENIED", times=2, is_source=False))
    here.start(*ONE).wait_for("permission denied")
    emulator.bend(retry_seconds=0.2, **gcp(gcp_connected=False))
    here.wait_for("is not running")
    time.sleep(1)
    emulator.bend(retry_seconds=0.7, **gcp(gcp_connected=True))
    done = here.end()
    assert done.returncode == 0, done.err


def test_one_doomed_file_among_many_moving_ones_is_given_the_time_of_the_others(
        site, here, emulator):
    emulator.add({"a": b"1", **{"f%d" % n: b"x" * 5000 for n in range(5)}})
    emulator.bend(retry_seconds=0.2, bytes_per_second=20000,
                  troubles=[{"path": "/f", "code": "PERMISSION_DENIED", "times": 3,
                             "is_source": False}])
    site.config(*QUICK)
    done = here.run(SIMPLE)
    assert done.returncode == 0, done.err
    assert len(site.downloaded()) == 6


CODES = ["AUTH", "NO_CREDENTIALS", "INVALID_SERVICE_CREDENTIAL", "ACL_CHANGED", "LIMIT_EXCEEDED",
         "ENDPOINT_ERROR"]


@pytest.mark.parametrize("code", CODES)
def test_a_task_with_a_code_that_does_not_pass_is_given_up_with_words(code, site, here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(retry_seconds=0.1, troubles=[{"path": "a$", "code": code}])
    site.config(*QUICK)
    done = here.run(*ONE)
    assert done.returncode == 1
    assert "because it cannot succeed: " in done.err
    assert code not in done.err and code.lower().replace("_", " ") + "," not in done.err
    assert emulator.tasks()[0]["fatal_error"]["code"] == "CANCELED"


@pytest.mark.long
def test_a_file_that_changes_for_ever_is_given_up(site, here, emulator):
    emulator.add({"a": b"x" * 2000})
    emulator.bend(retry_seconds=0.3, task_seconds=0.3, troubles=[
        {"path": "a$", "code": "FILE_SIZE_CHANGED"}])
    site.config(*QUICK)
    done = here.run(*ONE)
    assert done.returncode == 1 and done.out == ""
    assert "because it cannot succeed: a file changes while it is sent" in done.err
    assert done.err.count("Waiting: ") == 1 and "Resumed." not in done.err


def test_an_unknown_code_has_globus_s_own_description_or_is_said_to_have_none(here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(retry_seconds=0.3, troubles=[{"path": "a$", "code": "BRAND_NEW", "times": 3}])
    emulator.fault("GET /v0.10/task/[^/]*$", patch={"nice_status_short_description": None})
    done = here.run(*ONE)
    assert done.returncode == 0
    assert "Waiting: Globus gives no reason (BRAND_NEW), Globus keeps trying" in done.err


def test_a_file_skipped_for_an_unknown_code_has_the_server_s_words(here, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    emulator.bend(troubles=[{"path": "a$", "code": "FILE_NOT_FOUND"}])
    emulator.fault("/skipped_errors", patch={"DATA": [{
        "DATA_TYPE": "skipped_error", "error_code": "BRAND_NEW", "source_path": PATH + "a",
        "error_details": "550-GlobusError: v=1 c=X%0D%0A550-GridFTP-Errno: 5%0D%0A"
        "550-GridFTP-Error-String: Input/output error%0D%0A550 End.%0D%0A"}]})
    done = here.run(SIMPLE)
    assert "Did not arrive: a (Input/output error)\n" in done.out
