"""The emulator, judged by others: globus-cli uses it, and its documents have all the fields of
those that globus-sdk has recorded from the real service."""
import json
import os
import subprocess
import urllib.error
import urllib.request

import pytest
from conftest import DESTINATION, PATH, SOURCE, TESTS, clean_env, wait_until

try:
    from globus_sdk.testing import get_response_set
except ImportError:  # globus-sdk 3
    from globus_sdk._testing import get_response_set


# ---- globus-cli ----


@pytest.fixture
def globus(emulator, tmp_path):
    """A function that runs globus-cli, logged in as a client, and gives what it printed."""
    command = os.environ.get("GLOBUS_CLI")
    if not command:
        pytest.skip("tests/run.sh installs globus-cli, in an environment of its own")
    env = clean_env(HOME=str(tmp_path), GLOBUS_CLI_CLIENT_SECRET="any",
                    GLOBUS_CLI_CLIENT_ID="4f0448d6-e7e2-4637-bc64-e8f682d1cc77",
                    GLOBUS_SDK_SERVICE_URL_AUTH=emulator.url,
                    GLOBUS_SDK_SERVICE_URL_TRANSFER=emulator.url)

    def run(*arguments, status=0):
        done = subprocess.run([command, *arguments], env=env, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        assert done.returncode == status, done.stdout
        return done.stdout.decode()

    return run


def submit(globus, tmp_path, name="a"):
    """The id of a task that globus-cli has submitted."""
    return globus("transfer", "--jmespath", "task_id", "-F", "unix", SOURCE + ":" + PATH + name,
                  "%s:%s/%s" % (DESTINATION, tmp_path / "out", name)).strip()


def test_globus_ls(globus, emulator):
    emulator.add({"a": b"1", "b c": b"22", "sub/d": b"333"})
    assert globus("ls", SOURCE + ":" + PATH).splitlines() == ["a", "b c", "sub/"]
    assert globus("ls", "--recursive", SOURCE + ":" + PATH).splitlines() == [
        "a", "b c", "sub/", "sub/d"]


def test_globus_ls_with_a_filter(globus, emulator):
    emulator.add({"a.txt": b"1", "b.dat": b"22"})
    assert globus("ls", "--filter", "~*.dat", SOURCE + ":" + PATH) == "b.dat\n"


def test_globus_stat_of_a_missing_file(globus):
    assert globus("stat", SOURCE + ":" + PATH + "x") == "Nothing found at " + PATH + "x\n"


def test_globus_waits_for_a_task_shows_it_with_its_events_and_lists_it(
        globus, emulator, tmp_path):
    emulator.add({"a": b"12345"})
    task = submit(globus, tmp_path)
    globus("task", "wait", task, "--polling-interval", "1")
    assert (tmp_path / "out" / "a").read_bytes() == b"12345"
    shown = json.loads(globus("task", "show", task, "-F", "json"))
    assert (shown["status"], shown["files_transferred"], shown["bytes_transferred"]) == (
        "SUCCEEDED", 1, 5)
    assert PATH + "a" in globus("task", "show", "-t", task)
    events = json.loads(globus("task", "event-list", task, "-F", "json"))["DATA"]
    assert [event["code"] for event in events] == ["SUCCEEDED", "STARTED"]
    assert task in globus("task", "list")
    assert task not in globus("task", "list", "--filter-status", "FAILED")


def test_globus_task_wait_on_a_task_that_stumbles(globus, emulator, tmp_path):
    task = submit(globus, tmp_path, "nothing")
    globus("task", "wait", task, "--timeout", "1", "--polling-interval", "1", status=1)
    assert "FILE_NOT_FOUND" in globus("task", "event-list", "--filter-errors", task)


def test_globus_task_cancel(globus, emulator, tmp_path):
    emulator.add({"a": b"1"})
    emulator.bend(task_seconds=60)
    task = submit(globus, tmp_path)
    assert globus("task", "cancel", task) == "The task has been cancelled successfully.\n"
    assert json.loads(globus("task", "show", task, "-F", "json"))["fatal_error"] == {
        "code": "CANCELED", "description": "canceled"}


# ---- the recorded documents of globus-sdk ----


def ask(site, method, path, document=None):
    """The emulator's answer as a document, an error's as well."""
    token = json.loads(site.tokens.read_text())["transfer.api.globus.org"]["access_token"]
    request = urllib.request.Request(
        site.emulator.url + path, method=method,
        data=None if document is None else json.dumps(document).encode(),
        headers={"Authorization": "Bearer " + token, "Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


def recorded(name, case="default"):
    """A document that globus-sdk has recorded. Older versions have fewer of them."""
    try:
        return get_response_set(name).lookup(case).json
    except (ImportError, KeyError, ValueError):
        pytest.skip("this globus-sdk has not recorded " + name)


def missing(wanted, got, where=""):
    """The fields of a document that another one lacks, or has of another kind."""
    if isinstance(wanted, dict):
        if not isinstance(got, dict):
            return [where]
        lacking = [where + "." + key for key in wanted if key not in got]
        return lacking + [lack for key in wanted if key in got
                          for lack in missing(wanted[key], got[key], where + "." + key)]
    if isinstance(wanted, list):
        if not isinstance(got, list):
            return [where]
        return missing(wanted[0], got[0], where + "[]") if wanted and got else []
    if wanted is None or got is None or isinstance(got, type(wanted)):
        return []
    return [where]


def transfer(site, name, submission="1"):
    return ask(site, "POST", "v0.10/transfer", {
        "DATA_TYPE": "transfer", "submission_id": submission, "source_endpoint": SOURCE,
        "destination_endpoint": DESTINATION, "DATA": [
            {"DATA_TYPE": "transfer_item", "source_path": PATH + name,
             "destination_path": str(site.downloads / name)}]})


ANSWERS = {
    ("transfer.get_endpoint", "default"): lambda site: ask(
        site, "GET", "v0.10/endpoint/" + SOURCE),
    ("transfer.operation_stat", "default"): lambda site: ask(
        site, "GET", "v0.10/operation/endpoint/%s/stat?path=%sa" % (SOURCE, PATH)),
    ("transfer.operation_stat", "not_found"): lambda site: ask(
        site, "GET", "v0.10/operation/endpoint/%s/stat?path=%sb" % (SOURCE, PATH)),
    ("transfer.operation_mkdir", "default"): lambda site: ask(
        site, "POST", "v0.10/operation/endpoint/%s/mkdir" % DESTINATION,
        {"DATA_TYPE": "mkdir", "path": str(site.folder / "new")}),
    ("transfer.get_submission_id", "default"): lambda site: ask(
        site, "GET", "v0.10/submission_id"),
    ("transfer.submit_transfer", "default"): lambda site: transfer(site, "a"),
    ("transfer.submit_transfer", "failure"): lambda site: ask(
        site, "POST", "v0.10/transfer", {"submission_id": "2", "DATA": []}),
    ("transfer.cancel_task", "default"): lambda site: ask(
        site, "POST", "v0.10/task/%s/cancel" % transfer(site, "a")["task_id"], {}),
    ("transfer.task_list", "default"): lambda site: transfer(site, "a") and ask(
        site, "GET", "v0.10/task_list"),
    ("transfer.endpoint_manager_task_successful_transfers", "default"): lambda site: ask(
        site, "GET", "v0.10/task/%s/successful_transfers" % transfer(site, "a")["task_id"]),
}


@pytest.mark.parametrize("name,case", ANSWERS)
def test_a_document_has_all_the_fields_of_the_recorded(name, case, site, emulator):
    emulator.add({"a": b"1"})
    wanted = recorded(name, case)
    assert missing(wanted, ANSWERS[name, case](site)) == []


def test_a_token_document_has_all_the_fields_of_the_recorded(site, emulator):
    tokens = json.loads(site.tokens.read_text())["transfer.api.globus.org"]
    form = "grant_type=refresh_token&client_id=%s&refresh_token=%s" % (
        "4f0448d6-e7e2-4637-bc64-e8f682d1cc77", tokens["refresh_token"])
    with urllib.request.urlopen(emulator.url + "v2/oauth2/token", form.encode()) as answer:
        got = json.load(answer)
    assert missing(recorded("auth.oauth2_exchange_code_for_tokens"), got) == []


def end_of(site, name):
    """The id of a cancelled task that was stuck, and had a file left behind."""
    task = ask(site, "POST", "v0.10/transfer", {
        "DATA_TYPE": "transfer", "submission_id": "3", "source_endpoint": SOURCE,
        "destination_endpoint": DESTINATION, "skip_source_errors": True, "DATA": [
            {"DATA_TYPE": "transfer_item", "source_path": PATH + file,
             "destination_path": str(site.downloads / file)} for file in ("none", "a", "stuck")]})
    wait_until(lambda: ask(site, "GET", "v0.10/task/%s" % task["task_id"])["faults"])
    ask(site, "POST", "v0.10/task/%s/cancel" % task["task_id"], {})
    wait_until(lambda: ask(site, "GET", "v0.10/task/%s" % task["task_id"])["status"] == "FAILED")
    return ask(site, "GET", "v0.10/task/%s%s" % (task["task_id"], name))


WRITTEN_DOWN = {
    "ls": lambda site: ask(site, "GET", "v0.10/operation/endpoint/%s/ls?path=%s" % (SOURCE, PATH)),
    "task": lambda site: end_of(site, ""),
    "event_list": lambda site: end_of(site, "/event_list?filter=is_error:1"),
    "skipped_errors": lambda site: end_of(site, "/skipped_errors"),
    "successful_transfers": lambda site: end_of(site, "/successful_transfers"),
    "pause_info": lambda site: end_of(site, "/pause_info"),
    "error": lambda site: ask(site, "GET", "v0.10/task/" + SOURCE),
}


@pytest.mark.parametrize("name", WRITTEN_DOWN)
def test_a_document_has_all_the_fields_that_are_written_down_in_data(name, site, emulator):
    emulator.add({"a": b"1", "stuck": b"2"})
    emulator.bend(retry_seconds=0.1, troubles=[
        {"path": "stuck", "code": "PERMISSION_DENIED", "is_source": False}])
    documents = json.loads((TESTS / "data" / "globus-documents.json").read_text())
    got = WRITTEN_DOWN[name](site)
    assert missing(documents[name], got) == []
    if name == "event_list":
        assert (got["DATA"][0]["code"], got["DATA"][0]["is_error"]) == ("CANCELED", True)
