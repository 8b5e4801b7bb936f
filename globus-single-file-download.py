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
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # without it: PYTHONSAFEPATH
import helper


def parse(argv):
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--globus-path", metavar="DIR", help="directory on the source collection")
    parser.add_argument("--file", metavar="NAME", action="append",
                        help="file in that directory; may be given several times")
    parser.add_argument("--pack", help=argparse.SUPPRESS)  # for wrapper.sh: the pack's folder
    words = []
    for word in sys.argv[1:] if argv is None else argv:
        if words and words[-1] in ("--globus-path", "--file"):
            words[-1] += "=" + word  # the only way in which argparse takes -rf for a name
        else:
            words.append(word)
    options = parser.parse_args(words)
    if not options.pack and not (options.globus_path and options.file):
        parser.error("the following arguments are required: --globus-path, --file")
    return options


def main(argv=None):
    """Download the files; the exit status."""
    options = parse(argv)
    config = helper.load_config()
    if options.pack:
        return helper.pack_status(config, options.pack)
    place = helper.Place(helper.plain_path(options.globus_path), config.DOWNLOAD_DIR,
                         config.DESTINATION_PATH)
    names = [helper.local_path(name) for name in options.file]
    if len(names) == 1 and helper.name_problem(names[0]):
        raise helper.UserError(f"The name {names[0]!r} {helper.name_problem(names[0])}.", 2)
    client = helper.transfer_client()
    if helper.FROZEN not in os.environ:  # else the driver has
        helper.choose_verification(config, helper.find_collections(client, config))
    failed = helper.download_files(client, config, place, names)
    for name in names:
        path, why = helper.join(place.source, name), failed.get(name)
        if why is not None:
            helper.log(f"{path}: {why}")
        if why is None or len(names) > 1:
            print(os.path.join(config.DOWNLOAD_DIR, name) if why is None else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(helper.run_main(main))
