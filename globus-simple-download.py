#!/usr/bin/env python3
"""Download all files of PATH (see config.py) with one transfer task.

Safe to run again: what is there already, by its checksum, is not sent again."""
import argparse
import sys
import time

import helper

LINE_SECONDS = 60  # between two lines of progress where there is no terminal


def find_files(client, config, is_told):
    """The Files of PATH, and those among them that must not be downloaded."""
    files, refused = [], []
    for file in helper.list_files(client, config.SOURCE_ENDPOINT_ID, config.PATH,
                                  config.RECURSIVE):
        (refused if file.refused else files).append(file)
        if is_told and len(files) % 1000 == 0:
            helper.show("Listing: " + helper.count(len(files), "file"))
    return files, refused


def submit(client, config, files):
    """One transfer task for all files; its id, which is told at once."""
    request = helper.transfer_request(
        config, "download " + config.PATH,
        ((helper.join(config.PATH, file.path), helper.join(config.DESTINATION_PATH, file.path))
         for file in files),
        skip_source_errors=True)  # one unreadable file must not hold up the others
    task_id = helper.submit(client, request)
    print(f"Transfer task {task_id}: https://app.globus.org/activity/{task_id}", flush=True)
    return task_id


def progress_teller(files):
    """A function for wait_for_task that shows how far the task is."""
    total, last = sum(file.size for file in files), [time.monotonic()]

    def progress(task, reason):
        done = task["files_transferred"] + task["files_skipped"]
        text = (f"{done:,} of {helper.count(len(files), 'file')}, "
                f"{helper.size_text(task['bytes_transferred'])} of {helper.size_text(total)}, "
                f"{helper.size_text(task['effective_bytes_per_second'])}/s")
        helper.show(text + (". " + reason if reason else ""))
        if not sys.stderr.isatty() and time.monotonic() - last[0] >= LINE_SECONDS:
            helper.tell(text)
            last[0] = time.monotonic()

    return progress


def transfer(client, config, files):
    """The document of the task that transfers the files, at its end."""
    try:
        task_id = submit(client, config, files)
        return helper.wait_for_task(client, task_id, progress_teller(files))
    except KeyboardInterrupt:
        helper.tell("A task that was submitted goes on without this script: "
                    "https://app.globus.org/activity\n"
                    "Cancel it on its page there, or run this script again to see how it ended.")
        raise


def summary(config, files, missing, refused, task):
    """Print how it ended, the bad news last but one, the numbers last."""
    for file in missing:
        print(f"Did not arrive: {helper.printable(file.path)}")
    print(f"{helper.count(len(files) + len(refused), 'file')} for {config.DOWNLOAD_DIR}: "
          f"{task['files_transferred']:,} sent, {task['files_skipped']:,} already there, "
          f"{len(missing) + len(refused):,} did not arrive.")


def download(client, config, files, refused):
    """Transfer the files, and see that they arrived; the exit status."""
    task = transfer(client, config, files)
    if task["status"] != "SUCCEEDED":
        helper.tell(f"The transfer failed: {helper.why_failed(client, task)}")
    helper.show("Looking at what arrived")
    missing = helper.await_arrival(files, config.DOWNLOAD_DIR)
    helper.show("")
    summary(config, files, missing, refused, task)
    if len(missing) == len(files):
        helper.tell(f"Nothing is in DOWNLOAD_DIR. Is DESTINATION_PATH = {config.DESTINATION_PATH} "
                    "the same folder, as the destination collection names it?")
    return 1 if missing or refused or task["status"] != "SUCCEEDED" else 0


def main(argv=None):
    """List, submit, wait, print the result; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="only list what would be sent")
    options = parser.parse_args(argv)
    config = helper.settings()
    client = helper.transfer_client()
    helper.check_collections(client, config)
    files, refused = find_files(client, config, not options.dry_run)
    for file in refused:
        helper.tell(f"Refused: {file.path!r} {file.refused}.")
    if options.dry_run:
        for file in files:
            print(f"{file.size:14,}  {helper.printable(file.path)}")
    size = helper.size_text(sum(file.size for file in files))
    helper.tell(f"{helper.count(len(files), 'file')}, {size}, in {config.PATH}")
    if options.dry_run or not files:
        return 1 if refused else 0
    return download(client, config, files, refused)


if __name__ == "__main__":
    sys.exit(helper.run(main))
