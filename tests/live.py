#!/usr/bin/env python3
"""What the scripts assume of Globus, asked of the service itself; see live.sh."""
import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import globus_sdk  # noqa: E402

import helper  # noqa: E402

TUTORIAL = "6c54cade-bde5-45c1-bdea-f4bd71dba2cc", "/home/share/godata/"
TUTORIAL_2 = "31ce9ba0-176d-45a5-add3-f37d233ba47d", "/~/globus-download-live-test/"
MISSING = "there is no such file"
CHECKS = []
notes = {}  # what was seen, for live.json


def check(function):
    """A check: a generator of pairs, an assumption and whether it holds (None: not to be seen)."""
    CHECKS.append(function)
    return function


def note(name, value):
    """Keep a document or a number for live.json; returns it."""
    notes[name] = getattr(value, "data", value)
    return value


def refusal(call, *arguments, **options):
    """The error of Globus with which a call is refused, as (status, code); None if it is not."""
    try:
        call(*arguments, **options)
    except globus_sdk.GlobusAPIError as error:
        return error.http_status, helper.error_code(error)
    return None


def wait_for(what, ask, is_fit, seconds=120):
    """Ask until the answer fits; that answer, or the last one. Notes how long it took."""
    begun = time.monotonic()
    while True:
        answer = ask()
        if is_fit(answer) or time.monotonic() - begun > seconds:
            note("seconds until " + what, round(time.monotonic() - begun, 2))
            return answer
        time.sleep(1)


class Live:
    """A client, the two collections, and requests between them."""

    def __init__(self, options):
        self.client = helper.transfer_client()
        self.options = options
        self.names = None

    def request(self, names, submission=None, label="live test", **more):
        data = globus_sdk.TransferData(
            source_endpoint=self.options.source, destination_endpoint=self.options.destination,
            submission_id=submission or self.client.get_submission_id()["value"], label=label,
            verify_checksum=True, sync_level="checksum", **more)
        for name in names:
            data.add_item(helper.join(self.options.path, name), helper.join(self.options.to, name))
        return data

    def end(self, task_id):
        return wait_for("the end of task " + task_id, lambda: self.client.get_task(task_id),
                        lambda task: task["status"] in helper.ENDED, 600)


@check
def listing(live):
    """operation_ls and operation_stat"""
    client, source, path = live.client, live.options.source, live.options.path
    whole = note("ls", client.operation_ls(source, path=path, query_params={
        "fields": helper.FIELDS}))
    live.names = [entry["name"] for entry in whole["DATA"] if entry["type"] == "file"][:2]
    keys = {key for entry in whole["DATA"] for key in entry}
    yield "`fields` leaves out what it does not name", keys <= {*helper.FIELDS.split(","),
                                                                "DATA_TYPE"}
    yield "`total` counts the entries", whole.get("total") == len(whole["DATA"])
    rest = client.operation_ls(source, path=path, query_params={"offset": 1})
    yield "`offset` leaves out the first ones", [entry["name"] for entry in rest["DATA"]] == [
        entry["name"] for entry in whole["DATA"]][1:]
    stat = note("stat", client.operation_stat(source, path=helper.join(path, live.names[0])))
    yield "stat tells type and size", stat["type"] == "file" and isinstance(stat["size"], int)
    error = note("stat of nothing", refusal(
        client.operation_stat, source, path=helper.join(path, MISSING)))
    yield "stat of what is not there is a 404", error is not None and error[0] == 404


@check
def submissions(live):
    """submission ids, and the same one again"""
    client = live.client
    submission = client.get_submission_id()["value"]
    yield "a submission id is a UUID, not of zeros", helper.is_uuid(submission)
    request = live.request(live.names, submission)
    first = note("submitted", client.submit_transfer(request))
    again = note("submitted again", client.submit_transfer(request))
    yield "the first answer is Accepted", first["code"] == "Accepted"
    yield "the same again is Duplicate, with the same task", (
        again["code"], again["task_id"]) == ("Duplicate", first["task_id"])
    task = note("task", live.end(first["task_id"]))
    yield "a small transfer succeeds", task["status"] == "SUCCEEDED"
    late = note("submitted after the end", client.submit_transfer(request))
    yield "so it is after the end of the task", late["task_id"] == first["task_id"]


@check
def skipped(live):
    """a file that cannot be read, with skip_source_errors"""
    client = live.client
    answer = client.submit_transfer(
        live.request([live.names[0], MISSING], skip_source_errors=True))
    task = note("task with a skipped error", live.end(answer["task_id"]))
    yield "the task succeeds even so, and counts it", (
        task["status"], task["subtasks_skipped_errors"]) == ("SUCCEEDED", 1)
    errors = note("skipped errors", wait_for(
        "skipped errors are listed", lambda: client.task_skipped_errors(task["task_id"]),
        lambda page: page["DATA"]))
    yield "it is named by its source path", [error.get("source_path") for error in errors[
        "DATA"]] == [helper.join(live.options.path, MISSING)]
    yield "its code is FILE_NOT_FOUND", [error.get("error_code") for error in errors[
        "DATA"]] == ["FILE_NOT_FOUND"]
    sent = note("successful transfers", client.task_successful_transfers(task["task_id"]))
    yield "a file that was compared, not sent, is no successful transfer", (
        len(sent["DATA"]) == task["files_transferred"])
    events = note("events of it", client.task_event_list(task["task_id"]))
    yield "there is an event SKIPPED_ERRORS", any(
        event["code"] == "SKIPPED_ERRORS" for event in events["DATA"])


@check
def cancelled(live):
    """a task that is stuck, and its cancel"""
    client = live.client
    request = live.request([MISSING])
    task_id = client.submit_transfer(request)["task_id"]
    task = note("stuck task", wait_for(
        "a fault is told", lambda: client.get_task(task_id), lambda task: task["faults"], 300))
    yield "a file that is missing does not end its task", task["status"] == "ACTIVE"
    yield "its nice_status is FILE_NOT_FOUND", task["nice_status"] == "FILE_NOT_FOUND"
    errors = note("error events", client.task_event_list(
        task_id, query_params={"filter": "is_error:1"}))["DATA"]
    yield "an error event names the file", bool(errors) and helper.parse_server_error(
        str(errors[0]["details"]))["file"] == helper.join(live.options.path, MISSING)
    same = note("identical paths", refusal(client.submit_transfer, live.request([MISSING])))
    yield "identical paths are refused with 409 Conflict", same == (409, "Conflict")
    unfinished = client.task_list(limit=200, filter="status:ACTIVE,INACTIVE")["DATA"]
    yield "the filter of tasks lists it, and none that has ended", (
        task_id in [task["task_id"] for task in unfinished]
        and not {task["status"] for task in unfinished} & set(helper.ENDED))
    begun = time.monotonic()
    note("cancel", client.cancel_task(task_id))
    note("seconds of the cancel", round(time.monotonic() - begun, 2))
    task = note("cancelled task", live.end(task_id))
    yield "it has FAILED, with CANCELED", (
        task["status"], (task["fatal_error"] or {}).get("code")) == ("FAILED", "CANCELED")
    events = note("error events after it", client.task_event_list(
        task_id, query_params={"filter": "is_error:1"}))["DATA"]
    yield "its newest error event is CANCELED", bool(events) and events[0]["code"] == "CANCELED"


@check
def labels(live):
    """which labels Globus takes"""
    plain = refusal(live.client.submit_transfer, live.request(
        live.names, label=helper.task_label("live test of /a/b c.txt", "/x")))
    yield "letters, digits, space, `,_-` are taken in a label", plain is None
    other = note("a label with other characters", refusal(
        live.client.submit_transfer, live.request(live.names[:1], label="live: a/b (c) \u00fc")))
    yield "others are refused", other is not None and other[0] == 400


@check
def old_submission_id(live):
    """a submission id that was given a while ago"""
    submission = live.client.get_submission_id()["value"]
    print(f"... waiting {live.options.age} s for a submission id to grow old; Ctrl-C leaves it out")
    try:
        time.sleep(live.options.age)
    except KeyboardInterrupt:
        yield "an old submission id is accepted", None
        return
    request = live.request(live.names[1:], submission)  # identical paths may be under way
    yield "an old submission id is accepted", refusal(live.client.submit_transfer, request) is None


def run(live):
    """Print each assumption and whether it holds; how many do not, of how many."""
    seen, words = [], {True: "held", False: "NOT HELD", None: "not seen"}
    for function in CHECKS:
        print(function.__doc__)
        try:
            for text, holds in function(live):
                seen.append((text, holds))
                print(f"  {words[holds]}: {text}")
        except (globus_sdk.GlobusError, KeyError, TypeError, IndexError) as error:
            text = f"{function.__doc__} went through ({type(error).__name__}: {error})"
            seen.append((text, False))
            print("  NOT HELD: " + text)
    note("assumptions", [{"text": text, "holds": holds} for text, holds in seen])
    return sum(holds is False for _, holds in seen), len(seen)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=TUTORIAL[0], help="collection to read from, UUID")
    parser.add_argument("--path", default=TUTORIAL[1], help="directory there, with two small files")
    parser.add_argument("--destination", default=TUTORIAL_2[0], help="to write to, UUID")
    parser.add_argument("--to", default=TUTORIAL_2[1], help="directory there, made if need be")
    parser.add_argument("--age", type=float, default=3600, metavar="SECONDS",
                        help="how old a submission id gets before it is used (default: an hour)")
    parser.add_argument("--output", default="live.json")
    options = parser.parse_args()
    wrong, count = run(Live(options))
    text = json.dumps(dict(notes, globus_sdk=globus_sdk.__version__), indent=1, default=str)
    Path(options.output).write_text(text + "\n")
    print(f"{count - wrong} of {count} assumptions held; what was seen is in {options.output}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(helper.run_main(main))
