#!/usr/bin/env python3
r"""Download files, inside a job: DIR/NAME of the source to DOWNLOAD_DIR/NAME.

Prints the local path on stdout when the file is there, whole (of several files
a line each, in order, empty for one that did not arrive); messages go to
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

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # without it: PYTHONSAFEPATH
import helper

MOST_EMPTY_ROUNDS = 3  # cancelled tasks in a row that transferred nothing
STOP_SECONDS = 60  # upper limit for a cancel; Slurm kills a job 30 s (KillWait) after SIGTERM


def find_files(client, config, directory, names):
    """The Files, and {name: why} of those that cannot be downloaded. The sizes that the batch
    driver has listed will do, unless there is a limit, or only one file to ask for."""
    try:
        sizes = dict(zip(names, map(int, os.environ.get("GLOBUS_SIZES", "").split())))
    except ValueError:  # it is not the driver's
        sizes = {}
    files, failed = [], {}
    for name in dict.fromkeys(names):
        try:
            problem = helper.name_problem(name)
            if problem:
                raise helper.UserError(f"The name {name!r} {problem}.", 2)
            if name in sizes and len(names) > 1 and config.MAX_BYTES is None:
                files.append(helper.File(name, sizes[name], None, None))
                continue
            file = helper.stat_source(client, config, helper.join(directory, name), name)
            if config.MAX_BYTES is not None and file.size > sizes.get(name, file.size):
                raise helper.UserError(
                    f"{name} has grown from {sizes[name]:,} to {file.size:,} bytes since it was "
                    "listed, which may exceed MAX_BYTES. The next run will process it.")
            files.append(file)
        except (helper.UserError, helper.GlobusAPIError) as error:
            if len(names) == 1 or isinstance(
                    error, helper.GlobusAPIError) and helper.reauth_reason(error):
                raise
            failed[name] = helper.describe_error(error)
    return files, failed


def transfer(client, config, directory, files):
    """Submit one task for all Files and wait; {name: why} of those that it did not bring, and the
    Files among them that it has not come to. Whatever ends it, no task is left behind, and no part
    of a file, unless a task may still write to it."""
    sources = [helper.join(directory, file.path) for file in files]
    request = helper.build_transfer(
        config, helper.submission_id(client), helper.job_label(sources),
        [(source, helper.join(config.DESTINATION_PATH, file.path))
         for source, file in zip(sources, files)],
        skip_source_errors=len(files) > 1,  # one unreadable file must not hold up the others
        notify_on_succeeded=False, notify_on_failed=False, notify_on_inactive=False)
    before, task_id = {file.path: file_signature(config, file.path) for file in files}, None
    try:
        task_id = helper.submit(client, request)
        task, failure = helper.wait_for_task(client, task_id, lambda task, reason: None)
        missing = helper.outcomes(client, config, directory, files, task)
        rest = helper.not_come_to(client, config, directory, files, task, missing) if (
            failure or "").startswith(helper.CANCELLED) else []
    except BaseException as error:
        is_refused = task_id is None and isinstance(error, helper.GlobusAPIError)
        if is_refused or stop(client, request, task_id):
            remove_partial(config, before, before)
        raise
    remove_partial(config, missing, before)
    return {name: why or failure for name, why in missing.items()}, rest


def stop(client, request, task_id):
    """Cancel the task; True once it is over. Outages are waited out, but not for longer than
    STOP_SECONDS: the scheduler soon kills this script."""
    deadline, is_accepted, told = time.monotonic() + STOP_SECONDS, False, None
    client.transport.http_timeout = 10
    for pause in helper.backoff(0.25, 5):
        try:
            # Stopped in the middle of submitting: the same request again tells the task's id.
            task_id = task_id or client.submit_transfer(request)["task_id"]
            is_accepted = is_accepted or client.cancel_task(task_id) is not None
            status = client.get_task(task_id)["status"]
            if status in helper.ENDED:
                break
            reason, may_wait = helper.NOT_ENDED, True
        except (helper.GlobusError, helper.UserError, *helper.MALFORMED, OSError) as error:
            reason, may_wait = helper.describe_error(error), task_id or not isinstance(
                error, helper.GlobusAPIError) or not helper.error_code(error)
        if not may_wait or time.monotonic() > deadline:
            task = f"the transfer task {task_id}" if task_id else "a task, if there is one,"
            helper.log(f"Stopped, but {task} could not be cancelled: {reason}\n"
                       "See https://app.globus.org/activity")
            return False
        if reason != told and time.monotonic() > deadline - STOP_SECONDS + helper.CANCEL_SECONDS:
            helper.log(f"Cancelling the transfer task {task_id}: {reason}.")
            told = reason
        time.sleep(pause)
    helper.log(f"Stopped; the transfer task {task_id} "
               + ("had succeeded." if status == "SUCCEEDED" else "is cancelled."))
    return True


def file_signature(config, path):
    """What changes when a file is written to; None if there is none."""
    try:
        status = os.stat(os.path.join(config.DOWNLOAD_DIR, path))
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def remove_partial(config, paths, before):
    """Remove what a transfer that did not succeed has written; what was there before stays."""
    for path in paths:
        if file_signature(config, path) != before[path]:
            with contextlib.suppress(OSError):
                os.remove(os.path.join(config.DOWNLOAD_DIR, path))


def late_files(client, config, directory, files):
    """{name: why} of those Files that Globus has sent, but that are not there. A size that the
    driver listed may have changed since."""
    late = {}
    for file in helper.wait_for_files(files, config.DOWNLOAD_DIR):
        if len(files) > 1:
            with contextlib.suppress(helper.UserError, helper.GlobusAPIError):
                file = helper.stat_source(client, config, helper.join(directory, file.path),
                                          file.path)
        if helper.missing_files([file], config.DOWNLOAD_DIR):
            late[file.path] = helper.missing_reason(config, file)
    return late


def download(client, config, directory, names):
    """{name: why} of the files that have not arrived whole in DOWNLOAD_DIR. Raises UserError if
    there was only one to download."""
    files, failed = find_files(client, config, directory, names)
    empty_rounds = 0
    while files:
        missing, rest = transfer(client, config, directory, files)
        if len(names) == 1 and missing:
            raise helper.UserError(f"The transfer of {helper.join(directory, names[0])} failed: "
                                   + missing[names[0]])
        failed.update(late_files(client, config, directory,
                                 [file for file in files if file.path not in missing]))
        # One that cannot arrive does not hold up the others; but all may have the same trouble.
        empty_rounds = empty_rounds + 1 if len(missing) == len(files) else 0
        files = rest if empty_rounds < MOST_EMPTY_ROUNDS else []
        left = {file.path for file in files}
        failed.update((name, why) for name, why in missing.items() if name not in left)
    if len(names) == 1 and failed:
        raise helper.UserError(failed[names[0]])
    return failed


def parse(argv):
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--globus-path", metavar="DIR", required=True,
                        help="directory on the source collection")
    parser.add_argument("--file", metavar="NAME", required=True, action="append",
                        help="file in that directory; may be given several times")
    words = []
    for word in sys.argv[1:] if argv is None else argv:
        if words and words[-1] in ("--globus-path", "--file"):
            words[-1] += "=" + word  # the only way in which argparse takes -rf for a name
        else:
            words.append(word)
    return parser.parse_args(words)


def main(argv=None):
    """Download the files; the exit status."""
    options = parse(argv)
    config = helper.load_config()
    names = [helper.local_path(name) for name in options.file]
    failed = download(helper.transfer_client(), config, helper.plain_path(options.globus_path),
                      names)
    for name in names:
        if name in failed:
            helper.log(f"{name}: {failed[name]}")
        print("" if name in failed else os.path.join(config.DOWNLOAD_DIR, name))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(helper.run_main(main))
