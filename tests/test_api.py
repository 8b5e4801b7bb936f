"""helper.py, "asking Globus": which errors of the service and the network are waited out, and which
end a script."""
import http.server
import shutil
import ssl
import subprocess
import threading

import pytest
from conftest import (
    ONE,
    PATH,
    QUICK,
    SIMPLE,
    SOURCE,
    run_single,
)


def test_a_network_that_is_out_of_reach_is_told_by_its_cause(site, here):
    site.env.update(http_proxy="http://127.0.0.1:1", no_proxy="", NO_PROXY="")
    here.start(*ONE).wait_for("\n")
    assert here.err.startswith("Waiting: Globus cannot be reached: ")
    assert "Connection refused" in here.err


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl")
def test_a_certificate_that_nobody_trusts_is_told_with_what_helps(site, here, tmp_path):
    made = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x",
                    *made], check=True, stderr=subprocess.DEVNULL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(tmp_path / "certificate"), str(tmp_path / "key"))
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.env["GLOBUS_SDK_SERVICE_URL_TRANSFER"] = "https://127.0.0.1:%d/" % server.server_port
    here.start(*ONE).wait_for("\n")
    assert "CERTIFICATE_VERIFY_FAILED" in here.err and "GLOBUS_SDK_VERIFY_SSL" in here.err
    here.stop()
    server.shutdown()
    server.server_close()


def test_a_proxy_that_cannot_work_ends_with_its_reason(site, here):
    site.env.update(http_proxy="socks5://127.0.0.1:1", no_proxy="", NO_PROXY="")
    done = here.run(*ONE)
    assert "SOCKS" in done.err
    assert done.returncode == 1


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
        "no answer in time", "an empty answer", "a list", "503 with a page", "an answer lost",
        "429", "502 of a proxy"}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in PASSING])
def test_what_passes_is_waited_for_in_each_call_and_makes_no_second_task(
        name, site, here, emulator):
    emulator.add({"a": b"12345"})
    for call in CALLS:
        emulator.fault(call, times=3, **PASSING[name])
    # Two of the three are globus-sdk's own, silent tries, where it takes the answer for one.
    site.config("import helper, itertools", "helper.HTTP_TIMEOUT = 1",
                "helper.backoff = lambda *_: itertools.repeat(0.1)")
    done = here.run(*ONE)
    assert done.returncode == 0, done.err
    assert done.err.count("Waiting: ") >= len(CALLS)
    assert "Trying again until it works." in done.err
    assert len(emulator.tasks()) == 1
    assert site.downloaded() == {"a": b"12345"}


def test_a_listing_that_hangs_is_told(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend_collection(SOURCE, list_seconds=3)
    site.config("helper.SILENCE = 1")
    done = site.run(SIMPLE)
    assert done.returncode == 0
    assert done.err.startswith("Waiting: no answer from Globus in 1 s.")


def test_an_answer_lost_after_submitting_makes_no_second_task(site, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("POST /v0.10/transfer", times=2, drop="after")
    assert run_single(site, "a").returncode == 0
    assert len(emulator.tasks()) == 1


@pytest.mark.long
def test_an_outage_is_waited_for_and_told(site, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("GET /v0.10/task/", times=4, status=503, text="<html>maintenance</html>")
    done = run_single(site, "a")
    assert done.returncode == 0
    assert "Trying again until it works" in done.err


@pytest.mark.parametrize("status", [
    401, *(pytest.param(status, marks=pytest.mark.long) for status in (400, 403, 404, 410))])
@pytest.mark.parametrize("page", [
    pytest.param({"text": "<html><title>Blocked</title>your proxy</html>"}, marks=pytest.mark.long),
    {"json": {"message": "Forbidden"}}], ids=["page", "document"])
def test_what_a_server_in_between_says_is_waited_out_and_not_taken_for_globus(
        status, page, site, here, emulator):
    emulator.add({"a": b"1"})
    site.config("import helper, itertools", "helper.backoff = lambda *_: itertools.repeat(0.1)")
    emulator.fault("/stat", times=9, status=status, **page)
    emulator.fault("GET /v0.10/task/", times=9, status=status, **page)
    done = here.run(*ONE)
    assert done.returncode == 0, done.err
    assert "only from a server in between: " in done.err and "(HTTP %d)" % status in done.err
    assert len(emulator.tasks()) == 1


def test_the_file_is_found_in_event_details_that_are_json(site, here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(json_details=True, retry_seconds=0.1,
                  troubles=[{"path": "a$", "code": "PERMISSION_DENIED", "is_source": False}])
    site.config(*QUICK)
    done = here.run(*ONE)
    assert PATH + "a: cancelled, because it cannot succeed: permission denied\n" in done.err


@pytest.mark.parametrize("status,answer", [
    (413, {"text": "<html><h1>413 Request Entity Too Large</h1>nginx</html>"}),
    (413, {"json": {"code": "RequestTooLarge", "message": "The request is too large"}}),
    (400, {"json": {"code": "ClientError.BadRequest",
                    "message": "A transfer may have at most 3 items: too many items"}}),
], ids=["a page", "a document", "a limit on items"])
def test_too_large_a_request_is_told_with_what_to_do(status, answer, here, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("POST /v0.10/transfer", status=status, **answer)
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert "The request is too large for Globus" in done.err
    assert "with globus-batch-download.py, a smaller FILES_PER_JOB or a narrower PATH." in done.err
    assert "in between" not in done.err and "continues without" not in done.err
