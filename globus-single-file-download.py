#!/usr/bin/env python3
r"""Download one file, inside a job: DIR/NAME of the source to DOWNLOAD_DIR/NAME.

Prints the local path on stdout when the file is there, whole; messages go to
stderr. wrapper.sh calls it; by hand it shows what a job would meet.

Example:

    ./globus-single-file-download.py \
        --globus-path /home/share/godata --file file1.txt
"""
import argparse
import contextlib
import os
import sys
import time

import helper

STOP_SECONDS = 60  # how long a cancel may take; Slurm kills a job 30 s after its first signal


def find(client, config, path, name):
    """The File on the source collection. Raises Problem if there is none."""
    try:
        entry = helper.patiently(client.operation_stat, config.SOURCE_ENDPOINT_ID, path=path,
                                 wanted={"type": str})
    except helper.GlobusAPIError as error:
        if error.http_status != 404:
            raise
        raise helper.Problem(f"{path} is not on the source collection. {helper.explain(error)}")
    if entry["type"] != "file" or not isinstance(entry.get("size"), int):
        raise helper.Problem(f"{path} is not a file ({helper.words(entry, 'type')}).")
    return helper.File(name, entry["size"], entry.get("last_modified"), None)


def transfer(client, request, local):
    """Submit the request and wait; why it failed, or None. Whatever ends it, no task is left
    behind, and no part of the file, unless a task may still write to it."""
    before, task_id = state(local), None
    try:
        task_id = helper.submit(client, request)
        failure = helper.wait_for_task(client, task_id, lambda task, reason: None)[1]
    except BaseException as error:
        is_refused = task_id is None and isinstance(error, helper.GlobusAPIError)
        if is_refused or stop(client, request, task_id):
            remove_partial(local, before)
        raise
    if failure:
        remove_partial(local, before)
    return failure


def stop(client, request, task_id):
    """Cancel the task; True once it is over. Outages are waited out, but not for longer than
    STOP_SECONDS: the scheduler soon kills this script."""
    deadline, is_accepted, told = time.monotonic() + STOP_SECONDS, False, None
    helper.tune(client, 10, helper.HTTP_RETRIES)
    for pause in helper.pauses(0.25, 5):
        try:
            # Stopped in the middle of submitting: the same request again tells the task's id.
            task_id = task_id or client.submit_transfer(request)["task_id"]
            is_accepted = is_accepted or client.cancel_task(task_id) is not None
            status = client.get_task(task_id)["status"]
            if status in helper.ENDED:
                break
            reason, may_wait = "Globus has accepted that, but the task is not over", True
        except (helper.GlobusError, helper.Problem, *helper.NONSENSE, OSError) as error:
            reason, may_wait = helper.explain(error), task_id or not isinstance(
                error, helper.GlobusAPIError) or not helper.is_from_globus(error)
        if not may_wait or time.monotonic() > deadline:
            task = f"the transfer task {task_id}" if task_id else "a task, if there is one,"
            helper.tell(f"Stopped, but {task} could not be cancelled: {reason}\n"
                        "See https://app.globus.org/activity")
            return False
        if reason != told and time.monotonic() > deadline - STOP_SECONDS + helper.CANCEL_SECONDS:
            helper.tell(f"Cancelling the transfer task {task_id}: {reason}.")
            told = reason
        time.sleep(pause)
    helper.tell(f"Stopped; the transfer task {task_id} "
                + ("had succeeded." if status == "SUCCEEDED" else "is cancelled."))
    return True


def state(path):
    """What changes when a file is written to; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def remove_partial(path, before):
    """Remove what a transfer that did not succeed has written; what was there before stays."""
    if state(path) != before:
        with contextlib.suppress(OSError):
            os.remove(path)


def refuse_growth(config, source, size):
    """Raise Problem if the file is larger than the driver reckoned with, under a limit."""
    listed = int(os.environ.get("GLOBUS_SIZE") or size)
    if config.MAX_BYTES is not None and size > listed:
        raise helper.Problem(f"{source} has grown from {listed} to {size} bytes since it was "
                             "listed, which may break MAX_BYTES. The next run takes it.")


def download(client, config, directory, name):
    """The absolute local path of the file, which has arrived whole. Raises Problem if not."""
    refused = helper.why_refused(name)
    if refused:
        raise helper.Problem(f"The name {name!r} {refused}.", 2)
    source = helper.join(directory, name)
    file = find(client, config, source, name)
    refuse_growth(config, source, file.size)
    request = helper.transfer_request(
        client, config, helper.job_label(source),
        [(source, helper.join(config.DESTINATION_PATH, name))],
        notify_on_succeeded=False, notify_on_failed=False, notify_on_inactive=False)
    local = os.path.join(config.DOWNLOAD_DIR, name)
    failure = transfer(client, request, local)
    if failure:
        raise helper.Problem(f"The transfer of {source} failed: {failure}")
    if helper.await_arrival([file], config.DOWNLOAD_DIR):
        raise helper.Problem(helper.why_missing(config, file))
    return local


def parse(argv):
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--globus-path", metavar="DIR", required=True,
                        help="directory on the source collection")
    parser.add_argument("--file", metavar="NAME", required=True, help="file in that directory")
    words = []
    for word in sys.argv[1:] if argv is None else argv:
        if words and words[-1] in ("--globus-path", "--file"):
            words[-1] += "=" + word  # the only way in which argparse takes -rf for a name
        else:
            words.append(word)
    return parser.parse_args(words)


def main(argv=None):
    """Download one file; the exit status."""
    options = parse(argv)
    config = helper.settings()
    print(download(helper.transfer_client(), config, options.globus_path, options.file))
    return 0


if __name__ == "__main__":
    sys.exit(helper.run(main))
