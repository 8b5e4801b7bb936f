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

import helper


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


def transfer(client, request):
    """Submit the request and wait; why it failed, or None. Leaves no task behind when it is
    stopped."""
    task_id = None
    try:
        task_id = helper.submit(client, request)
        return helper.wait_for_task(client, task_id, lambda task, reason: None)[1]
    except KeyboardInterrupt:
        stop(client, request, task_id)
        raise
    except (helper.GlobusError, OSError):
        if task_id:
            stop(client, request, task_id)
        raise


def stop(client, request, task_id):
    """Cancel the task. There is no time to wait for better weather: the scheduler soon kills this
    script."""
    try:
        # Stopped in the middle of submitting: the same request again tells the task's id.
        task_id = task_id or client.submit_transfer(request)["task_id"]
        helper.cancel(client, task_id)
        helper.tell(f"Stopped; the transfer task {task_id} is cancelled.")
    except (helper.GlobusError, helper.Problem, *helper.NONSENSE, OSError) as error:
        task = f"the transfer task {task_id}" if task_id else "a transfer task, if there is one,"
        helper.tell(f"Stopped, but {task} could not be cancelled: {helper.explain(error)}\n"
                    "See https://app.globus.org/activity")


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
        client, config, "download " + source,
        [(source, helper.join(config.DESTINATION_PATH, name))],
        notify_on_succeeded=False, notify_on_failed=False, notify_on_inactive=False)
    local = os.path.join(config.DOWNLOAD_DIR, name)
    before = state(local)
    try:
        failure = transfer(client, request)
        if failure:
            raise helper.Problem(f"The transfer of {source} failed: {failure}")
    except BaseException:
        remove_partial(local, before)
        raise
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
