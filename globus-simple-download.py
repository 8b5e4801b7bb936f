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
            helper.show("Listing: %s" % helper.count(len(files), "file"))
    return files, refused


def submit(client, config, files):
    """One transfer task for all files; its id, which is told at once."""
    request = helper.transfer_request(
        config, "download " + config.PATH,
        ((helper.join(config.PATH, file.path), helper.join(config.DESTINATION_PATH, file.path))
         for file in files),
        skip_source_errors=True)  # one unreadable file must not hold up the others
    task_id = helper.submit(client, request)
    print("Transfer task %s: https://app.globus.org/activity/%s" % (task_id, task_id), flush=True)
    return task_id


def progress_teller(files):
    """A function for wait_for_task that shows how far the task is."""
    total, last = sum(file.size for file in files), [time.monotonic()]

    def progress(task, reason):
        text = "%d of %s, %s of %s, %s/s" % (
            task["files_transferred"] + task["files_skipped"], helper.count(len(files), "file"),
            helper.size_text(task["bytes_transferred"]), helper.size_text(total),
            helper.size_text(task.get("effective_bytes_per_second") or 0))
        helper.show(text + (". " + reason if reason else ""))
        if not sys.stderr.isatty() and time.monotonic() - last[0] >= LINE_SECONDS:
            helper.tell(text)
            last[0] = time.monotonic()

    return progress


def wait(client, task_id, files):
    """The task document at its end."""
    try:
        return helper.wait_for_task(client, task_id, progress_teller(files))
    except KeyboardInterrupt:
        helper.tell("The transfer goes on without this script. To stop it, cancel it on the page "
                    "above; to see how it ended, run this script again.")
        raise


def summary(config, files, missing, refused, task):
    """Print how it ended, the bad news last but one, the numbers last."""
    for file in missing:
        print("Did not arrive: %s" % helper.printable(file.path))
    print("%s in %s: %s sent, %d already there, %d did not arrive." % (
        helper.count(len(files) + len(refused), "file"), config.DOWNLOAD_DIR,
        format(task["files_transferred"], ","), task["files_skipped"],
        len(missing) + len(refused)))


def download(client, config, files, refused):
    """Transfer the files, and see that they arrived; the exit status."""
    task_id = submit(client, config, files)
    task = wait(client, task_id, files)
    if task["status"] != "SUCCEEDED":
        helper.tell("The transfer failed: %s" % helper.why_failed(client, task))
    helper.show("Looking at what arrived")
    missing = helper.await_arrival(files, config.DOWNLOAD_DIR)
    helper.show("")
    summary(config, files, missing, refused, task)
    if len(missing) == len(files):
        helper.tell("Nothing is in DOWNLOAD_DIR. Is DESTINATION_PATH = %s the same folder, as the "
                    "destination collection names it?" % config.DESTINATION_PATH)
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
        helper.tell("Refused: %r %s." % (file.path, file.refused))
    if options.dry_run:
        for file in files:
            print("%14s  %s" % (format(file.size, ","), helper.printable(file.path)))
    helper.tell("%s, %s, in %s" % (helper.count(len(files), "file"),
                                   helper.size_text(sum(f.size for f in files)), config.PATH))
    if options.dry_run or not files:
        return 1 if refused else 0
    return download(client, config, files, refused)


if __name__ == "__main__":
    sys.exit(helper.run(main))
