"""What Globus says, and what the user reads of it."""

import pytest
from conftest import DESTINATION, SOURCE

SINGLE, SIMPLE = "globus-single-file-download.py", "globus-simple-download.py"
PATH = "/home/share/godata/"
ONE = (SINGLE, "--globus-path", PATH, "--file", "a")
QUICK = ("import helper", "helper.ERRORS = {code: (words, seconds and 1) for code, (words, "
         "seconds) in helper.ERRORS.items()}", "helper.SLOWEST_POLL = 0.2")

# As the server of a collection says it (ramanathanlab/genslm, issue 113), with a banner before.
UNMAPPED = (
    "Command Failed: Error (login)\nEndpoint: Globus Tutorial Collection 1 (" + SOURCE + ")\n"
    "Server: 140.221.68.244:443\nMessage: Login Failed\n---\n"
    "Details: 530-*** Authorized use only ***\\r\\n"
    "530-Login incorrect. : Mapping collection to specified ID failed.\\r\\n"
    "530-GlobusError: v=1 c=LOGIN_DENIED\\r\\n530-GridFTP-Message: Identity set contains an "
    "identity from an allowed domain, but it does not map to a valid username for this "
    "connector\\r\\n"
    '530-GridFTP-JSON-Result: {"DATA_TYPE": "result#1.1.0", "code": "permission_denied", "detail": '
    '{"DATA_TYPE": "invalid_user#1.0.0", "usernames": ["arvind"]}, "http_response_code": 403}\\r\\n'
    "530 End.\\r\\n\n")


def fail_login(emulator, message, match="/ls"):
    emulator.fault(match, status=502, json={
        "code": "ExternalError.DirListingFailed.LoginFailed", "message": message})


@pytest.mark.parametrize("message,words", [
    (UNMAPPED, "does not map to a valid username for this connector (Globus Tutorial Collection"),
    (UNMAPPED.split("530-GlobusError")[0] + "530 Login incorrect: expired\\r\\n\n",
     "Login incorrect: expired (Globus Tutorial Collection"),
    ("Error (connect)\nEndpoint: B (" + SOURCE + ")\nServer: 1.2.3.4:443\nMessage: The operation "
     "timed out\n", "The operation timed out (B)"),
], ids=["GridFTP's message", "the last reply", "no details"])
def test_of_a_server_error_in_many_lines_the_useful_one_is_shown(message, words, site, emulator):
    fail_login(emulator, message)
    done = site.run(SIMPLE)
    assert done.returncode == 1
    assert "Globus says: " in done.err and words in done.err
    assert "Authorized use" not in done.err and "Command Failed" not in done.err


def test_the_file_is_found_in_event_details_that_are_json(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(json_details=True, retry_seconds=0.1,
                  troubles=[{"path": "a$", "code": "PERMISSION_DENIED", "is_source": False}])
    site.config(*QUICK)
    done = site.run(*ONE)
    assert PATH + "a: cancelled, because it cannot succeed: permission denied\n" in done.err


# ---- which side, and who may ----


@pytest.mark.parametrize("code", ["CONNECT_FAILED", "LIMIT_EXCEEDED"])
@pytest.mark.parametrize("is_source,words", [
    (True, ", on the source collection (Globus Tutorial Collection 1)"),
    (False, ", on the destination collection (My cluster)")])
def test_a_trouble_of_one_collection_names_it(code, is_source, words, site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(retry_seconds=0.3, troubles=[
        {"path": "a$", "code": code, "times": 3, "is_source": is_source}])
    done = site.run(*ONE)
    assert done.returncode == 0
    limit = "; given up after 60 min without progress" if code == "LIMIT_EXCEEDED" else ""
    assert PATH + "a" + words + limit + "  (task" in done.err


def test_a_destination_of_a_site_is_not_advised_to_edit_config_paths(site, emulator):
    emulator.bend_collection(DESTINATION, entity_type="GCSv5_mapped_collection",
                             allowed=["/elsewhere"], gcp_connected=None)
    emulator.bend(collections={"22222222-2222-4333-8444-555555555555": {
        "entity_type": "GCP_mapped_collection"}})
    done = site.run(SIMPLE)
    assert "You may not use DESTINATION_PATH" in done.err and "config-paths" not in done.err
    assert "You are logged in as researcher@example.org. Log in with an identity" in done.err


def test_a_refused_login_names_the_identity_and_the_domains_that_may(site, emulator):
    fail_login(emulator, UNMAPPED.replace('"usernames": ["arvind"]',
                                          '"allowed_domains": ["sydney.edu.au"]'))
    done = site.run(SIMPLE)
    assert ("You are logged in as researcher@example.org. Log in with an identity of "
            '"sydney.edu.au" that has access') in done.err


def test_an_unknown_identity_is_no_problem(site, emulator):
    emulator.fault("/endpoint_search", status=403, json={"code": "PermissionDenied"})
    fail_login(emulator, UNMAPPED, "/stat")
    done = site.run(SIMPLE)
    assert done.returncode == 1
    assert "You are logged in as the identity on app.globus.org/settings." in done.err
    assert "config-paths" not in done.err


# ---- codes of tasks ----

CODES = ["AUTH", "NO_CREDENTIALS", "INVALID_SERVICE_CREDENTIAL", "ACL_CHANGED", "LIMIT_EXCEEDED",
         "ENDPOINT_ERROR"]


@pytest.mark.parametrize("code", CODES)
def test_a_task_with_a_code_that_does_not_pass_is_given_up_with_words(code, site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(retry_seconds=0.1, troubles=[{"path": "a$", "code": code}])
    site.config(*QUICK)
    done = site.run(*ONE)
    assert done.returncode == 1
    assert "because it cannot succeed: " in done.err
    assert code not in done.err and code.lower().replace("_", " ") + "," not in done.err
    assert emulator.tasks()[0]["fatal_error"]["code"] == "CANCELED"


@pytest.mark.long
def test_a_file_that_changes_for_ever_is_given_up(site, emulator):
    emulator.add({"a": b"x" * 2000})
    emulator.bend(retry_seconds=0.3, task_seconds=0.3, troubles=[
        {"path": "a$", "code": "FILE_SIZE_CHANGED"}])
    site.config(*QUICK)
    done = site.run(*ONE)
    assert done.returncode == 1 and done.out == ""
    assert "because it cannot succeed: a file changes while it is sent" in done.err
    assert done.err.count("Waiting: ") == 1 and "Resumed." not in done.err


def test_a_trouble_that_comes_and_goes_is_told_once_until_something_moves(site, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    emulator.bend(retry_seconds=0.4, task_seconds=0.4, troubles=[
        {"path": "b$", "code": "CONNECT_FAILED", "times": 4}])
    site.config("helper.SLOWEST_POLL = 0.1")
    done = site.run(SIMPLE)
    assert done.returncode == 0
    assert done.err.count("Waiting: ") == done.err.count("Resumed.") == 1


def test_an_unknown_code_has_globus_s_own_description_or_is_said_to_have_none(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(retry_seconds=0.3, troubles=[{"path": "a$", "code": "BRAND_NEW", "times": 3}])
    emulator.fault("GET /v0.10/task/[^/]*$", patch={"nice_status_short_description": None})
    done = site.run(*ONE)
    assert done.returncode == 0
    assert "Waiting: Globus gives no reason (BRAND_NEW), Globus keeps trying" in done.err


def test_a_file_skipped_for_an_unknown_code_has_the_server_s_words(site, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    emulator.bend(troubles=[{"path": "a$", "code": "FILE_NOT_FOUND"}])
    emulator.fault("/skipped_errors", patch={"DATA": [{
        "DATA_TYPE": "skipped_error", "error_code": "BRAND_NEW", "source_path": PATH + "a",
        "error_details": "550-GlobusError: v=1 c=X%0D%0A550-GridFTP-Errno: 5%0D%0A"
        "550-GridFTP-Error-String: Input/output error%0D%0A550 End.%0D%0A"}]})
    done = site.run(SIMPLE)
    assert "Did not arrive: a (Input/output error)\n" in done.out


# ---- too large a request ----


@pytest.mark.parametrize("status,answer", [
    (413, {"text": "<html><h1>413 Request Entity Too Large</h1>nginx</html>"}),
    (413, {"json": {"code": "RequestTooLarge", "message": "The request is too large"}}),
    (400, {"json": {"code": "ClientError.BadRequest",
                    "message": "A transfer may have at most 3 items: too many items"}}),
], ids=["a page", "a document", "a limit on items"])
def test_too_large_a_request_is_told_with_what_to_do(status, answer, site, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("POST /v0.10/transfer", status=status, **answer)
    done = site.run(SIMPLE)
    assert done.returncode == 1
    assert "The request is too large for Globus" in done.err
    assert "with globus-batch-download.py, a smaller FILES_PER_JOB or a narrower PATH." in done.err
    assert "in between" not in done.err and "continues without" not in done.err
