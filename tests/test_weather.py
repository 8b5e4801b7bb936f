"""Bad weather on Globus's side: what passes is waited for and told, what does not fails soon.

Each row is a fault: how it is made, what the user sees, and how it ends."""
import http.server
import json
import shutil
import signal
import ssl
import subprocess
import threading
import time
import urllib.request

import pytest
from conftest import (
    BATCH,
    DESTINATION,
    KEEP,
    SOURCE,
    last_line,
    processed,
    wait_until,
)

SINGLE, SIMPLE, LOGIN = (
    "globus-single-file-download.py", "globus-simple-download.py", "globus-login.py")
PATH = "/home/share/godata/"
QUICK = ("import helper", "helper.ERRORS = {code: (words, seconds and 1) for code, (words, "
         "seconds) in helper.ERRORS.items()}",
         "helper.SLOWEST_POLL = 0.5", "helper.ARRIVAL_SECONDS = 1")


def start(site, script):
    options = {SINGLE: ["--globus-path", PATH, "--file", "a"]}
    return site.start(script, *options.get(script, []))


def end(process):
    """What it said on both outputs."""
    out, err = process.communicate(timeout=300)
    assert b"Traceback" not in err, err
    return out.decode() + err.decode()


def trouble(code, **more):
    return {"troubles": [dict({"path": "a$", "code": code}, **more)]}


def gcp(**settings):
    return {"collections": {DESTINATION: settings}}


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


@pytest.mark.parametrize("name,script", [
    *((name, SINGLE) for name in STALLS), ("a reason that nobody knows", SIMPLE),
    *(pytest.param(name, SIMPLE, marks=pytest.mark.long) for name in STALLS
      if name != "a reason that nobody knows")])
def test_a_stall_says_why_once_and_goes_on(name, script, site, emulator):
    emulator.add({"a": b"x" * 2000})
    bent, healed, words = STALLS[name]
    emulator.bend(task_seconds=0.5, retry_seconds=0.3)
    site.config("import helper", "helper.SLOWEST_POLL = 0.5")
    if "troubles" in bent or "slots" in bent:
        emulator.bend(**bent)
        process = start(site, script)
    else:  # in the middle
        process = start(site, script)
        wait_until(emulator.tasks)
        emulator.bend(**bent)
    said = []
    wait_until(lambda: said.append(process.stderr.readline().decode()) or words in said[-1])
    assert said[-1].startswith("Waiting: ")
    emulator.bend(**healed)
    rest = end(process)
    assert process.returncode == 0, rest
    assert words not in rest
    assert site.downloaded() == {"a": b"x" * 2000}


def test_words_that_globus_refuses_to_give_do_not_end_the_wait(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(**gcp(paused_message="no word"))
    emulator.fault("/pause_info", status=403, json={"code": "PermissionDenied", "message": "no"})
    process = start(site, SINGLE)
    said = []
    wait_until(lambda: said.append(process.stderr.readline().decode()) or "paused" in said[-1])
    emulator.bend(**gcp(paused_message=None))
    assert "Resumed." in end(process)
    assert process.returncode == 0


def test_a_task_that_globus_has_suspended_says_what_to_do(site, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("GET /v0.10/task/", times=3, patch={"status": "INACTIVE", "nice_status": None})
    process = start(site, SINGLE)
    assert "Waiting: suspended until you log in again and resume it" in end(process)
    assert process.returncode == 0


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
def test_what_cannot_succeed_fails_soon_and_can_be_asked_for_again(name, site, emulator):
    emulator.add({"a": b"x" * 2000})
    site.config(*QUICK)
    bent, words = DOOMED[name]
    emulator.bend(retry_seconds=0.2)
    if bent is None:
        (site.downloads / "a").mkdir(parents=True)
    else:
        emulator.bend(**bent)
    process = start(site, SINGLE)
    said = end(process)
    assert process.returncode == 1
    assert "/a: cancelled, because it cannot succeed: " in said and words in said
    assert [task["fatal_error"]["code"] for task in emulator.tasks()] == ["CANCELED"]
    # Fixed, the same file is asked for again.
    emulator.bend(troubles=[], **gcp(quota=None))
    if bent is None:
        (site.downloads / "a").rmdir()
    process = start(site, SINGLE)
    assert (end(process), process.returncode) == (str(site.downloads / "a") + "\n", 0)


@pytest.mark.parametrize("code,words", [
    ("FILE_NOT_FOUND", "file not found"), ("PERMISSION_DENIED", "permission denied")])
def test_what_the_source_does_not_give_fails_at_once_and_can_be_asked_for_again(
        code, words, site, emulator):
    emulator.add({"a": b"x" * 2000})
    emulator.bend(**trouble(code))
    process = start(site, SINGLE)
    assert "/home/share/godata/a: " + words in end(process)
    assert process.returncode == 1 and site.downloaded() == {}
    assert [task["status"] for task in emulator.tasks()] == ["SUCCEEDED"]  # but for that file
    emulator.bend(troubles=[])
    process = start(site, SINGLE)
    assert (end(process), process.returncode) == (str(site.downloads / "a") + "\n", 0)


def test_a_download_that_cannot_succeed_is_told_with_each_file_that_is_missing(site, emulator):
    emulator.add({"a": b"1", "b": b"x" * 2000, "c": b"x" * 3000})
    emulator.bend(retry_seconds=0.2, **gcp(quota=1000))
    site.config(*QUICK)
    done = site.run(SIMPLE)
    assert done.returncode == 1
    assert ("The transfer failed: cancelled, because it cannot succeed: "
            "over quota at the destination" in done.err)
    assert "Did not arrive: b\nDid not arrive: c\n" in done.out
    assert "3 files: 1 sent, 0 already there, 2 did not arrive." in done.out


def test_a_damaged_file_of_a_task_that_failed_has_not_arrived(site, emulator):
    emulator.add({"a": b"1", "z": b"x" * 2000})
    emulator.bend(retry_seconds=0.2, troubles=[{"path": "z$", "code": "CORRUPT"}])
    site.config(*QUICK)
    done = site.run(SIMPLE)
    assert done.returncode == 1
    assert "Did not arrive: z (it is there, but not verified)\n" in done.out
    assert "2 files: 1 sent, 0 already there, 1 did not arrive." in done.out


def test_a_trouble_that_globus_has_not_tried_again_is_not_hopeless(site, emulator):
    """As of a task that waits for its turn, which still shows its last trouble."""
    emulator.add({"a": b"1"})
    site.config(*QUICK)
    emulator.bend(retry_seconds=3, **trouble("PERMISSION_DENIED", times=1, is_source=False))
    process = start(site, SINGLE)
    said = end(process)
    assert process.returncode == 0, said


@pytest.mark.long
def test_the_time_with_another_trouble_does_not_count_for_the_first_one(site, emulator):
    emulator.add({"a": b"1"})
    site.config(*QUICK)
    emulator.bend(retry_seconds=2, **trouble("PERMISSION_DENIED", times=2, is_source=False))
    process = start(site, SINGLE)
    wait_until(lambda: b"permission denied" in process.stderr.readline())
    emulator.bend(retry_seconds=0.2, **gcp(gcp_connected=False))
    wait_until(lambda: b"is not running" in process.stderr.readline())
    time.sleep(1)
    emulator.bend(retry_seconds=0.7, **gcp(gcp_connected=True))
    said = end(process)
    assert process.returncode == 0, said


def test_one_doomed_file_among_many_moving_ones_is_given_the_time_of_the_others(site, emulator):
    emulator.add({"a": b"1", **{"f%d" % n: b"x" * 5000 for n in range(5)}})
    emulator.bend(retry_seconds=0.2, bytes_per_second=20000,
                  troubles=[{"path": "/f", "code": "PERMISSION_DENIED", "times": 3,
                             "is_source": False}])
    site.config(*QUICK)
    done = site.run(SIMPLE)
    assert done.returncode == 0, done.err
    assert len(site.downloaded()) == 6


def test_a_task_that_somebody_cancels_says_so(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(task_seconds=60)
    process = start(site, SINGLE)
    task, = wait_until(emulator.tasks)
    cancel(site, emulator, task["task_id"])
    said = end(process)
    assert process.returncode == 1
    assert "/home/share/godata/a: canceled" in said


def cancel(site, emulator, task):
    """Cancel a task, as its owner may in the web app."""
    token = json.loads(site.tokens.read_text())["transfer.api.globus.org"]["access_token"]
    urllib.request.urlopen(urllib.request.Request(
        emulator.url + "v0.10/task/%s/cancel" % task, method="POST", data=b"",
        headers={"Authorization": "Bearer " + token}))


def test_a_task_that_expires_is_told_and_submitted_again(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0, speed=3600 * 12)
    process = start(site, SINGLE)
    wait_until(lambda: len(emulator.tasks()) == 2)
    emulator.bend(slots=3, speed=1)
    said = end(process)
    assert process.returncode == 0 and site.downloaded() == {"a": b"1"}
    assert [task["fatal_error"]["code"] for task in emulator.tasks()[:1]] == ["EXPIRED"]
    assert "expired" in said


def test_a_network_that_is_out_of_reach_is_told_by_its_cause(site):
    site.env.update(http_proxy="http://127.0.0.1:1", no_proxy="", NO_PROXY="")
    process = start(site, SINGLE)
    said = process.stderr.readline().decode()
    assert said.startswith("Waiting: Globus cannot be reached: ") and "Connection refused" in said
    process.kill()
    process.communicate()


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl")
def test_a_certificate_that_nobody_trusts_is_told_with_what_helps(site, tmp_path):
    made = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x",
                    *made], check=True, stderr=subprocess.DEVNULL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(tmp_path / "certificate"), str(tmp_path / "key"))
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.env["GLOBUS_SDK_SERVICE_URL_TRANSFER"] = "https://127.0.0.1:%d/" % server.server_port
    process = start(site, SINGLE)
    said = process.stderr.readline().decode()
    assert "CERTIFICATE_VERIFY_FAILED" in said and "GLOBUS_SDK_VERIFY_SSL" in said
    process.kill()
    process.communicate()
    server.shutdown()
    server.server_close()


def test_a_proxy_that_cannot_work_ends_with_its_reason(site):
    site.env.update(http_proxy="socks5://127.0.0.1:1", no_proxy="", NO_PROXY="")
    process = start(site, SINGLE)
    assert "SOCKS" in end(process)
    assert process.returncode == 1


HTML = "<html><body>Maintenance</body></html>"
# name: the fault of the service or the network
PASSING = {
    "503 with a page": {"status": 503, "text": HTML},
    "500": {"status": 500, "json": {"code": "InternalError", "message": "oops"}},
    "502 of a proxy": {"status": 502, "text": HTML},
    "504": {"status": 504, "text": ""},
    "the collection's server is out of reach": {"status": 502, "json": {
        "code": "ExternalError.StatFailed.ConnectFailed", "message": "no connection"}},
    "the collection's server has a problem": {"status": 502, "json": {
        "code": "EndpointError", "message": "a problem"}},
    "the collection is paused": {"status": 409, "json": {
        "code": "OperationPaused", "message": "disks are moved until 5 pm"}},
    "429": {"status": 429, "json": {"code": "TooManyRequests", "message": "slow down"}},
    "429 with Retry-After": {"status": 429, "headers": {"Retry-After": "1"},
                                 "json": {"code": "TooManyRequests", "message": "slow down"}},
    "a reset": {"drop": "before"},
    "an answer lost": {"drop": "after"},
    "no answer in time": {"delay": 2},
    "a page instead of JSON": {"status": 200, "text": HTML},
    "an empty answer": {"status": 200, "text": ""},
    "a list": {"status": 200, "json": [1, 2]},
    "an empty document": {"status": 200, "json": {}},
    "fields of other kinds": {"status": 200, "json": {
        "DATA": 3, "DATA_TYPE": None, "status": 5, "value": [], "task_id": {}, "type": None}},
}
CALLS = ["GET /v0.10/operation/endpoint/.*stat", "GET /v0.10/submission_id",
         "POST /v0.10/transfer", "GET /v0.10/task/"]


LONG = {"the collection's server has a problem", "500", "504", "429 with Retry-After",
        "no answer in time", "an empty answer", "a list", "503 with a page", "an answer lost"}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in PASSING])
def test_what_passes_is_waited_for_in_each_call_and_makes_no_second_task(name, site, emulator):
    emulator.add({"a": b"12345"})
    for call in CALLS:
        emulator.fault(call, times=3, **PASSING[name])
    # Two of the three are globus-sdk's own, silent tries, where it takes the answer for one.
    site.config("import helper, itertools", "helper.HTTP_TIMEOUT = 1",
                "helper.backoff = lambda *_: itertools.repeat(0.1)")
    process = start(site, SINGLE)
    said = end(process)
    assert process.returncode == 0, said
    assert said.count("Waiting: ") >= len(CALLS) and "Trying again until it works." in said
    assert len(emulator.tasks()) == 1
    assert site.downloaded() == {"a": b"12345"}


# What Globus refuses at submission, and takes later.
REFUSED = pytest.mark.parametrize("bent,healed,words", [
    (gcp(gcp_connected=False), gcp(gcp_connected=True), "is not currently connected to Globus"),
    ({"pending_limit": 0}, {"pending_limit": 100}, "too many pending tasks"),
], ids=["Globus Connect Personal is offline", "too many pending tasks"])


@REFUSED
def test_stopped_while_it_is_refused_it_ends_at_once(bent, healed, words, site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(**bent)
    process = start(site, SINGLE)
    wait_until(lambda: words in process.stderr.readline().decode())
    process.send_signal(signal.SIGTERM)
    assert "could not be cancelled" in end(process)
    assert process.returncode == 130 and emulator.tasks() == []


@REFUSED
def test_a_submission_that_is_refused_for_now_is_repeated(bent, healed, words, site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(**bent)
    process = start(site, SINGLE)
    said = []
    wait_until(lambda: said.append(process.stderr.readline().decode()) or words in said[-1])
    emulator.bend(**healed)
    assert "Resumed." in end(process)
    assert process.returncode == 0 and len(emulator.tasks()) == 1


def test_a_listing_that_hangs_is_told(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend_collection(SOURCE, list_seconds=3)
    site.config("helper.SILENCE = 1")
    done = site.run(SIMPLE)
    assert done.returncode == 0
    assert done.err.startswith("Waiting: no answer from Globus in 1 s.")


def test_the_driver_says_why_all_its_jobs_wait(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.process(*KEEP)
    emulator.bend(slots=0)
    driver = stand_in.start(BATCH)
    said = []
    wait_until(lambda: said.append(driver.stderr.readline().decode()) or "wait: " in said[-1])
    assert "  All downloads wait: queued at Globus, which works on three transfer" in said[-1]
    emulator.bend(slots=3)
    rest = end(driver)
    assert "All downloads wait" not in rest
    assert "\n2 processed, 0 failed, 0 not needed\n" in rest


# ---- logins ----

POLICY = {"session_required_policies": ["12345678-1234-1234-1234-123456789012"],
          "session_message": "Log in with your institute"}
# name: (settings of the source collection, what is said)
LOGINS = {
    "a consent": ({"consent": True}, "The collection requires your consent (data_access)."),
    "a policy": ({"session_policy": POLICY},
                 "The collection requires you to re-authenticate (your session has expired, or its "
                 "policy requires another login: Log in with your institute)."),
    "a policy of a high-assurance collection": (
        {"session_policy": POLICY, "high_assurance": True}, "requires you to re-authenticate"),
    "a session that has timed out": (
        {"session_policy": {"prompt": "login"}, "high_assurance": True, "session_seconds": 60},
        "your session has expired"),
    "multi-factor authentication": (
        {"session_policy": {"session_required_mfa": True}}, "requires you to re-authenticate"),
}


@pytest.mark.parametrize("name", LOGINS)
@pytest.mark.parametrize("script", [SINGLE, SIMPLE, BATCH])
def test_every_script_says_to_log_in_again_for(name, script, stand_in, emulator):
    emulator.add({"a": b"1"})
    settings, words = LOGINS[name]
    emulator.ask("POST", "age")
    emulator.bend_collection(SOURCE, **settings)
    process = start(stand_in, script)
    said = end(process)
    assert process.returncode == 1
    assert words in said and "Log in again: globus-login.py  (" in said
    assert emulator.tasks() == []


@pytest.mark.parametrize("name", LOGINS)
def test_one_run_of_login_heals(name, site, emulator):
    emulator.add({"a": b"1"})
    emulator.ask("POST", "age")
    emulator.bend_collection(SOURCE, **LOGINS[name][0])
    login = site.log_in()
    assert login.returncode == 0, login.out
    process = start(site, SINGLE)
    assert end(process) == str(site.downloads / "a") + "\n"


def test_a_high_assurance_collection_is_named_with_how_long_a_login_lasts(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend_collection(SOURCE, high_assurance=True, session_seconds=1800)
    done = site.run(SIMPLE)
    assert done.returncode == 0
    assert done.err.startswith("High-assurance collection: Globus Tutorial Collection 1 (SOURCE")
    assert "It requires you to re-authenticate every 30 minutes" in done.err


def test_one_run_of_login_heals_what_two_collections_want(site, emulator):
    emulator.bend_collection(SOURCE, session_policy={"session_required_policies": ["p"]},
                             consent=True)
    emulator.bend_collection(DESTINATION,
                             session_policy={"session_required_single_domain": ["example.org"]})
    login = site.log_in()
    assert login.returncode == 0, login.out


def test_a_batch_stops_when_the_destination_wants_a_fresh_login(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(20)})
    stand_in.config("POLL_SECONDS = 0.3", "NUM_JOBS = 2")
    driver = stand_in.start(BATCH)
    wait_until(lambda: any(task["status"] == "SUCCEEDED" for task in emulator.tasks()))
    emulator.bend_collection(DESTINATION, session_policy=POLICY, session_seconds=1e-9)
    said = end(driver)
    assert driver.returncode == 1
    assert "Then start this script again; it continues with its jobs" in said


def test_login_gives_up_on_a_collection_that_is_never_content(site, emulator):
    emulator.bend_collection(SOURCE, session_policy=POLICY, session_seconds=1e-9)
    login = site.log_in()
    assert login.returncode == 1
    assert login.out.count("Open this page") == 5
    assert "Log in with your institute" in login.out.splitlines()[-1]


@pytest.mark.long
def test_a_login_that_lapses_in_the_middle_stops_the_driver_not_every_file(stand_in, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(30)})
    stand_in.config("POLL_SECONDS = 5")
    stand_in.process(*KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"processed" in driver.stderr.readline())
    emulator.bend_collection(SOURCE, session_policy=POLICY)
    said = end(driver)
    assert driver.returncode == 1
    assert "Log in again: globus-login.py" in said and "start this script again" in said
    assert "FAILED" not in said
    assert stand_in.log_in().returncode == 0
    done = stand_in.run(BATCH)
    assert done.returncode == 0, done.err
    assert last_line(done) == "30 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == dict.fromkeys(files, 1)


def test_why_a_task_does_not_move_is_told_again_after_an_outage(site, emulator):
    emulator.add({"a": b"x"})
    emulator.bend_collection(SOURCE, paused_message="an hour off")
    process = site.start(SINGLE, "--globus-path", "/home/share/godata/", "--file", "a")

    def has_said(text):
        return text in process.stderr.readline().decode()

    wait_until(lambda: has_said("an hour off"))
    emulator.fault("GET /v0.10/task/", times=2, status=503, text="<html>down</html>")
    wait_until(lambda: has_said("Resumed."))
    wait_until(lambda: has_said("an hour off"))
    emulator.bend_collection(SOURCE, paused_message=None)
    assert process.wait() == 0
