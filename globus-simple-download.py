#!/usr/bin/env python3
"""Download all files of PATH (see config.py) with one transfer task.

Safe to run again: what is there already, by its checksum, is not sent again.

Example, to look first and then to download:

    ./globus-simple-download.py --dry-run
    ./globus-simple-download.py
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # without it: PYTHONSAFEPATH
import helper


def find_files(client, config):
    """The Files of PATH, and those among them that must not be downloaded."""
    files, refused = [], []
    for file in helper.list_files(client, config):
        (refused if file.refused else files).append(file)
        if len(files) % 1000 == 0:
            helper.show_progress("Listing: " + helper.plural(len(files), "file"))
    helper.show_progress("")
    return files, refused


def place_of(config):
    """From where to where the files go."""
    return helper.Place(config.PATH, config.DOWNLOAD_DIR, config.DESTINATION_PATH)


def build(client, config, files):
    """One transfer request for all files."""
    names = helper.checksum("\n".join(file.path for file in files))
    return helper.build_transfer(
        config, helper.submission_id(client), f"download {config.PATH} {names}",
        place_of(config), (file.path for file in files))


def make_progress(files):
    """A function for wait_for_task that shows how far the task is."""
    total = sum(file.size for file in files)

    def progress(task, reason):
        sent, rate = (helper.get_number(task, name)
                      for name in ("bytes_transferred", "effective_bytes_per_second"))
        text = (f"{helper.files_done(task):,} of {helper.plural(len(files), 'file')}, "
                f"{helper.format_bytes(sent)} of {helper.format_bytes(total)}, "
                f"{helper.format_bytes(rate)}/s")
        if rate and sent < total and not (reason or helper.get_number(task, "files_skipped")):
            text += f", ~{helper.format_duration((total - sent) / rate)} left"
        helper.show_progress(text + (". " + reason if reason else ""))

    return progress


def transfer(client, config, files):
    """The document of the task that transfers the files, at its end; why it failed, or None."""
    request = build(client, config, files)
    task_id = helper.find_duplicate_task(client, request)
    try:
        task_id = task_id or helper.submit(client, request)
        print(f"Transfer task {task_id}\nhttps://app.globus.org/activity/{task_id}", flush=True)
        return helper.wait_for_task(client, task_id, make_progress(files))
    except BaseException as error:  # Ctrl-C, or whatever else ends the wait
        if task_id or not isinstance(error, (helper.GlobusAPIError, helper.UserError)):
            page = f"https://app.globus.org/activity/{task_id or ''}".rstrip("/")
            helper.log(f"The transfer task continues without this script:\n{page}\nCancel it on "
                       "its page there, or run this script again to see how it ended.")
        raise


def summary(config, files, missing, refused, task):
    """Print how it ended: each file that did not arrive and why, then the numbers, whose sum is
    all files."""
    here = len(files) - len(missing)
    sent = min(here, helper.get_number(task, "files_transferred"))
    for path, reason in missing.items():
        words = f"Did not arrive: {path}" + (f" ({reason})" if reason else "")
        print(helper.escape_control_chars(words))
    print(f"Downloads are in {config.DOWNLOAD_DIR}")
    print(f"{helper.plural(len(files) + len(refused), 'file')}: "
          f"{sent:,} sent, {here - sent:,} already there, "
          f"{len(missing) + len(refused):,} did not arrive.")


def check_result(client, config, files, task):
    """{path: why} of the Files that are not there. Where Globus says that none is missing, but
    none is there, says so."""
    place = place_of(config)
    missing = helper.outcomes(client, place, files, task)
    if task["status"] != "SUCCEEDED":
        absent = {file.path for file in helper.missing_files(files, config.DOWNLOAD_DIR)}
        here = [path for path, why in missing.items()
                if why in (helper.TASK_FAILED, helper.UNTOLD) and path not in absent]
        stuck = helper.stuck_file(client, place, task)
        compared = [path for path in here if path != stuck]
        # Globus counts what it compared and found in place, but does not name it.
        is_clear = len(compared) == helper.get_number(task, "files_skipped")
        for path in here:
            if is_clear and path != stuck:
                del missing[path]
            else:
                missing[path] = "it is there, but not verified"
        return missing
    helper.show_progress("Checking what arrived")
    unfit = helper.unfit_files(
        client, config, place, [file for file in files if file.path not in missing], task)
    helper.show_progress("")
    if len(unfit) == len(files) and helper.size_of(
            os.path.join(config.DOWNLOAD_DIR, files[0].path)) is None:
        helper.log(f"{files[0].path} {unfit[files[0].path]}")
        return dict.fromkeys(unfit, "")
    return {**missing, **unfit}


def download(client, config, files, refused):
    """Transfer the files, and see that they arrived; the exit status."""
    task, failure = transfer(client, config, files)
    if failure:
        helper.log(f"The transfer failed: {failure}")
    missing = check_result(client, config, files, task)
    summary(config, files, missing, refused, task)
    return 1 if missing or refused or failure else 0


def main(argv=None):
    """List, submit, wait, print the result; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="only list what would be sent")
    options = parser.parse_args(argv)
    config = helper.load_config()
    client = helper.transfer_client()
    helper.check_collections(client, config)
    helper.check_destination(client, config)
    files, refused = find_files(client, config)
    for file in refused:
        helper.log(f"Refused: {file.path!r} {file.refused}.")
    if options.dry_run:
        for file in files:
            print(f"{file.size:14,}  {helper.escape_control_chars(file.path)}")
    size = helper.format_bytes(sum(file.size for file in files))
    helper.log(f"{helper.plural(len(files), 'file')}, {size}, in {config.PATH}")
    if options.dry_run or not files:
        return 1 if refused else 0
    return download(client, config, files, refused)


if __name__ == "__main__":
    sys.exit(helper.run_main(main))
