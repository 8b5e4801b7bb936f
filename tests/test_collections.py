"""helper.py, "collections and listings": source and destination, what kinds there are, whose turn
it is, how files are compared."""
import pytest
from conftest import (
    BATCH,
    BOTH_DOWNLOADS,
    DESTINATION,
    KEEP,
    ONE,
    PATH,
    SIMPLE,
    SINGLE,
    SOURCE,
    check_err,
    contents,
    last_line,
    wait_until,
)

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


@pytest.mark.parametrize("command", [[SIMPLE], list(ONE), [BATCH]], ids=lambda c: c[0])
def test_the_uuid_of_an_endpoint_is_refused_with_where_its_collections_are(
        command, stand_in, here, emulator):
    emulator.bend_collection(SOURCE, non_functional=True, display_name="Big Endpoint")
    done = here.run(*command)
    assert done.returncode == 2
    assert done.err == (
        "config.py: SOURCE_ENDPOINT_ID = '%s' is Big Endpoint, an endpoint, which holds no files "
        "itself. Take the UUID of one of its\ncollections, from "
        "https://app.globus.org/collections\n" % SOURCE)


def test_a_source_that_is_somebody_elses_and_off_is_told_with_whose_turn_it_is(here, emulator):
    emulator.bend_collection(SOURCE, gcp_connected=False, display_name="Laptop")
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert done.err.endswith("Globus Connect Personal is not running; it is the source, Laptop, "
                             "whose owner, researcher@example.org, has to start it\n")


def test_so_is_one_that_is_switched_off_while_it_sends(here, emulator):
    emulator.add({"a": b"1" * 5000})
    emulator.bend(bytes_per_second=10000, retry_seconds=0.2)
    emulator.bend_collection(SOURCE, gcp_connected=True, display_name="Laptop")
    here.start(SIMPLE)
    wait_until(emulator.tasks)
    emulator.bend_collection(SOURCE, gcp_connected=False)
    here.wait_for("Waiting: ")
    assert ("\nWaiting: Globus Connect Personal is not running; it is the source, Laptop, "
            "whose owner, researcher@example.org, has to start it  (task ") in here.err
    emulator.bend_collection(SOURCE, gcp_connected=True)
    assert here.end().returncode == 0


@pytest.mark.parametrize("script", [
    SIMPLE, SINGLE, "job", pytest.param("driver", marks=pytest.mark.long)])
def test_a_collection_without_checksums_is_read_by_size_and_time(script, stand_in, here, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    emulator.bend_collection(SOURCE, disable_verify=True, display_name="Tape")
    if script in (SIMPLE, SINGLE):
        done = here.run(*ONE if script == SINGLE else [SIMPLE])
    else:
        stand_in.config("DOWNLOAD_BY = %r" % script, "FILES_PER_JOB = 2")
        stand_in.process(*KEEP)
        done = stand_in.run(BATCH)
        assert last_line(done) == "2 processed, 0 failed, 0 not needed", done.err
        assert contents(stand_in.folder / "out") == {"a": b"1", "b": b"22"}
    assert done.returncode == 0, done.err
    assert done.err.count("Tape allows no checksums (disable_verify)") == 1
    assert {task["verify_checksum"] for task in emulator.tasks()} == {False}


def test_a_collection_that_demands_checksums_and_one_that_allows_none_are_refused(here, emulator):
    emulator.bend_collection(SOURCE, disable_verify=True, display_name="Tape")
    emulator.bend_collection(DESTINATION, force_verify=True, display_name="Disk")
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert done.err.startswith("Disk demands that checksums are compared (force_verify), and Tape "
                               "allows none (disable_verify).")


@BOTH_DOWNLOADS
@pytest.mark.parametrize("name", ["SOURCE_ENDPOINT_ID", "DESTINATION_ENDPOINT_ID"])
def test_an_unknown_collection(stand_in, here, script, name):
    stand_in.config("%s = '00000000-0000-0000-0000-000000000001'" % name)
    check_err(here.run(script), 2, name, "is not a collection that Globus knows")


@BOTH_DOWNLOADS
def test_no_personal_endpoint_on_this_machine(stand_in, here, script):
    (stand_in.home / ".globusonline/lta/client-id.txt").unlink()
    check_err(here.run(script), 2, "DESTINATION_ENDPOINT_ID", "-setup")


@BOTH_DOWNLOADS
def test_a_personal_endpoint_that_is_offline(stand_in, here, emulator, script):
    emulator.bend_collection(DESTINATION, gcp_connected=False)
    check_err(here.run(script), 1, "Globus Connect Personal is not running",
          "globusconnectpersonal -start")


@BOTH_DOWNLOADS
def test_a_personal_endpoint_that_is_paused(stand_in, here, emulator, script):
    emulator.bend_collection(DESTINATION, gcp_paused=True)
    check_err(here.run(script), 1, "paused", "globusconnectpersonal -unpause")


@BOTH_DOWNLOADS
def test_a_destination_that_the_personal_endpoint_does_not_show(stand_in, here, emulator, script):
    emulator.bend_collection(DESTINATION, allowed=["/elsewhere"])
    check_err(here.run(script), 1, "DESTINATION_PATH", "config-paths")


@BOTH_DOWNLOADS
def test_the_same_told_as_an_error_of_the_server(stand_in, here, emulator, script):
    emulator.fault("/stat.*downloads", status=502, json={
        "code": "ExternalError.StatFailed.GCDError", "message": "Path not allowed"})
    check_err(here.run(script), 1, "DESTINATION_PATH", "config-paths")


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
def test_of_a_server_error_in_many_lines_the_useful_one_is_shown(message, words, here, emulator):
    fail_login(emulator, message)
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert "Globus says: " in done.err and words in done.err
    assert "Authorized use" not in done.err and "Command Failed" not in done.err


@pytest.mark.parametrize("code", ["CONNECT_FAILED", "LIMIT_EXCEEDED"])
@pytest.mark.parametrize("is_source,words", [
    (True, ", on the source collection (Globus Tutorial Collection 1)"),
    (False, ", on the destination collection (My cluster)")])
def test_a_trouble_of_one_collection_names_it(code, is_source, words, here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(retry_seconds=0.3, troubles=[
        {"path": "a$", "code": code, "times": 3, "is_source": is_source}])
    done = here.run(*ONE)
    assert done.returncode == 0
    limit = "; given up after 60 min without progress" if code == "LIMIT_EXCEEDED" else ""
    assert PATH + "a" + words + limit + "  (task" in done.err


def test_a_destination_of_a_site_is_not_advised_to_edit_config_paths(here, emulator):
    emulator.bend_collection(DESTINATION, entity_type="GCSv5_mapped_collection",
                             allowed=["/elsewhere"], gcp_connected=None)
    emulator.bend(collections={"22222222-2222-4333-8444-555555555555": {
        "entity_type": "GCP_mapped_collection"}})
    done = here.run(SIMPLE)
    assert "You may not use DESTINATION_PATH" in done.err and "config-paths" not in done.err
    assert "You are logged in as researcher@example.org. Log in with an identity" in done.err


def test_a_refused_login_names_the_identity_and_the_domains_that_may(here, emulator):
    fail_login(emulator, UNMAPPED.replace('"usernames": ["arvind"]',
                                          '"allowed_domains": ["sydney.edu.au"]'))
    done = here.run(SIMPLE)
    assert ("You are logged in as researcher@example.org. Log in with an identity of "
            '"sydney.edu.au" that has access') in done.err


def test_an_unknown_identity_is_no_problem(here, emulator):
    emulator.fault("/endpoint_search", status=403, json={"code": "PermissionDenied"})
    fail_login(emulator, UNMAPPED, "/stat")
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert "You are logged in as the identity on app.globus.org/settings." in done.err
    assert "config-paths" not in done.err


def test_a_page_instead_of_the_destination_is_waited_out(here, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("/stat.*downloads", times=1, status=200, text="<html>maintenance</html>")
    done = here.run(SIMPLE)
    assert done.returncode == 0
    assert "Waiting: Globus sent an unexpected answer" in done.err


def test_a_wrong_destination_path_is_told_in_words_that_lead_to_the_mend(
        site, here, emulator, tmp_path):
    emulator.add({"a": b"1"})
    site.config("helper.ARRIVAL_SECONDS = 1",
                "DESTINATION_PATH = %r" % str(tmp_path / "elsewhere"))
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert "DESTINATION_PATH" in done.err
    assert contents(tmp_path / "elsewhere") == {"a": b"1"}
