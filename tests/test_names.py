"""helper.py, "names": any name that Globus can list goes through every step unharmed; one that
would do harm is refused."""
import os
import re
import subprocess

import pytest
from conftest import (
    BATCH,
    FEW,
    KEEP,
    PATH,
    SIMPLE,
    SINGLE,
    TUTORIAL,
    assert_tame,
    contents,
    copy_downloads,
    entries,
    is_harmful,
    last_line,
    processed,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import load

helper = load("helper")

# In Latin-1, in code page 437, in a folder; and a true U+FFFD.
BYTES = [b"caf\xe9", b"m\x81sli", b"\xfcber sicht/\xe9t\xe9.txt"]
TRUE = ["\ufffd", "\ufffdplain", "caf\u00e9"]
NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]),
                min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= 240)


@pytest.fixture
def tree(emulator):
    """Files whose names are not UTF-8, and some that look like it; {name: content}."""
    names = list(map(os.fsdecode, BYTES)) + TRUE
    return emulator.add({name: os.fsencode(name) for name in names})


def test_names_that_are_not_utf8_arrive_under_their_own_bytes(site, tree):
    site.config("RECURSIVE = True", "helper.ARRIVAL_SECONDS = 1")
    done = site.run(SIMPLE)
    assert done.returncode == 0, done.err
    assert site.downloaded() == tree


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
def test_names_that_are_not_utf8_or_as_long_as_can_be_go_through_a_batch(
        where, stand_in, emulator, tree):
    files = dict(tree, **emulator.add({"\u00fc" * 120 + "x" * 15: b"255 bytes"}))
    stand_in.config("RECURSIVE = True", "DOWNLOAD_BY = %r" % where, "FILES_PER_JOB = 7",
                    "NUM_JOBS = 1", "helper.ARRIVAL_SECONDS = 1")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 0, done.out
    assert last_line(done) == "7 processed, 0 failed, 0 not needed"
    assert contents(stand_in.folder / "out") == files and stand_in.downloaded() == {}


def test_a_failure_of_a_name_that_is_not_utf8_is_told_with_its_reason(stand_in, tree):
    copy_downloads(stand_in)
    stand_in.config("FILES_PER_JOB = 5", "MAX_FAILURES_IN_A_ROW = None", "NUM_JOBS = 1")
    stand_in.process('echo "cannot read $GLOBUS_NAME" >&2; [ -z "${GLOBUS_NAME##*sli}" ] && exit 3',
                     "exit 0")
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and done.out.count("FAILED") == 1
    assert r"FAILED m\udc81sli: exit status 3: cannot read m\udc81sli" in done.out


def test_a_name_that_is_not_utf8_may_be_given_as_globus_shows_it(site, tree):
    done = site.run(SINGLE, "--globus-path", "/" + TUTORIAL, "--file", "\ufffdcaf\u00e9")
    assert done.returncode == 0, done.err
    assert site.downloaded() == {os.fsdecode(BYTES[0]): BYTES[0]}


@pytest.mark.parametrize("path", [
    "/home//share/godata/", "/home/share/./godata/", "/home/share/godata/.", "//home/share/godata/",
    "/home/.//./share/godata/./", "/home/share/godata/"])
def test_empty_parts_of_a_path_are_left_out(path):
    assert helper.plain_path(path) == "/home/share/godata/"


def test_a_path_with_empty_parts_is_the_plain_one(site, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    site.config("PATH = '/home//share/./godata'", "helper.ARRIVAL_SECONDS = 1")
    emulator.bend(troubles=[{"path": "a$", "code": "FILE_NOT_FOUND"}])
    done = site.run(SIMPLE)
    assert "Did not arrive: a (file not found)\n" in done.out, done.out
    assert "2 files: 1 sent, 0 already there, 1 did not arrive." in done.out


def test_a_directory_with_empty_parts_is_the_plain_one_for_a_job(site, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    emulator.bend(troubles=[{"path": "a$", "code": "FILE_NOT_FOUND"}])
    done = site.run(SINGLE, "--globus-path", "/home//share/godata", "--file", "a", "--file", "b")
    assert "a: file not found\n" in done.err


@pytest.mark.parametrize("env", [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}], ids=str)
def test_names_are_utf8_whatever_the_environment_says(env, stand_in, emulator):
    emulator.add({"gr\u00fc\u00df": b"1"})
    stand_in.env.update(env)
    stand_in.process(*KEEP, "exit 3")
    done = stand_in.run(BATCH)
    assert "FAILED gr\u00fc\u00df: exit status 3" in done.out
    assert last_line(done) == "0 processed, 1 failed, 0 not needed"
    assert contents(stand_in.folder / "out") == {"gr\u00fc\u00df": b"1"}


def test_files_of_one_name_or_of_a_folder_s_are_refused_counted_and_named_and_folders_come_once(
        stand_in, emulator):
    """As object stores list them: of two files of one name, who knows which one comes?"""
    emulator.add({"a": b"1", "b": b"2", "x/b": b"3", "y/c": b"4"})
    emulator.fault("/ls", times=1, patch={
        "DATA": entries("a", "b", "b", "x") + entries("x", "y", "y", kind="dir"), "total": 7})
    copy_downloads(stand_in)
    stand_in.config("RECURSIVE = True", "FILES_PER_JOB = 3")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert ("FAILED 3 files: is listed more than once, or is a folder's name, too\n"
            "  b\n  b\n  x\n" in done.out)
    assert last_line(done) == "3 processed, 3 failed, 0 not needed" and done.returncode == 1
    assert processed(stand_in) == {"a": 1, "x/b": 1, "y/c": 1}


def entry(name, kind="file", size=1):
    return {"DATA_TYPE": "file", "name": name, "type": kind, "size": size,
            "last_modified": "2026-01-01 00:00:00+00:00", "link_target": None}


@pytest.mark.parametrize("name,why", [
    ("\u00fc" * 128, "is longer than the 255 bytes that a file's name may have"),
    ("a/b", "holds a slash"),
    (7, "is not a name"),
    ("\u00fc" * 120 + "x" * 15, None),
], ids=["too long", "slash", "number", "255 bytes"])
def test_a_name_that_no_file_can_have_is_refused(name, why):
    assert helper.parse_entry("sub/", entry(name)) == (
        "sub/" + str(name), 1, "2026-01-01 00:00:00+00:00", why)


@pytest.mark.parametrize("size", [None, -1, "1"])
def test_a_listed_file_without_a_size_is_refused_and_a_folder_needs_none(size):
    assert helper.parse_entry("", entry("a", "file", size))[1:] == (
        0, "2026-01-01 00:00:00+00:00", "has no size")
    assert helper.parse_entry("", entry("a", "dir", size)).refused is None


HARMFUL_NAMES = ["../x", "..", "/etc/passwd", "a\nb", "a\x1b[31mb", "a\x00b", "a/../../b", "", ".",
                 "\u0085", "\ud800"]


@pytest.mark.parametrize("name", HARMFUL_NAMES)
@pytest.mark.parametrize("kind", ["file", "dir"])
def test_a_listed_name_that_would_do_harm_is_refused(kind, name):
    assert helper.parse_entry("", entry(name, kind)).refused


@pytest.mark.parametrize("script,kind", [(SIMPLE, "file"), (BATCH, "dir")])
def test_listed_names_that_would_do_harm_are_told_counted_and_never_asked_for(
        script, kind, stand_in, emulator):
    emulator.add({"good": b"1"})
    copy_downloads(stand_in)
    stand_in.config("RECURSIVE = True")
    listing = [entry(name, kind) for name in HARMFUL_NAMES] + [entry("good")]
    emulator.fault("/ls.(.*&)?path=%2Fhome%2Fshare%2Fgodata%2F(&|$)", patch={
        "DATA": listing, "length": len(listing), "total": len(listing)})
    done = stand_in.run(script)
    assert done.returncode == 1
    refused = re.findall(r"(?m)Refused: (?:(\d+) files, such as )?.*: .*$" if script == BATCH
                         else "(?m)^Refused: (.?)", done.err)
    assert sum(int(number) if number.isdigit() else 1 for number in refused) == len(HARMFUL_NAMES)
    assert last_line(done) == {
        SIMPLE: "%d files: 1 sent, 0 already there, %d did not arrive." % (
            len(listing), len(HARMFUL_NAMES)),
        BATCH: "1 processed, %d failed, 0 not needed" % len(HARMFUL_NAMES)}[script]
    assert "\x1b" not in done.out + done.err and "\x00" not in done.out + done.err
    assert not any("/ls" in r and "." in r.split("?")[1] for r in emulator.requests())
    items = [i["source_path"] for t in emulator.tasks() for i in t["request"]["DATA"]]
    assert set(items) <= {"/home/share/godata/good"}


def test_a_batch_dry_run_names_and_counts_what_is_refused(stand_in, emulator):
    emulator.add({"good": b"1"})
    emulator.fault("/ls", patch={"DATA": [entry("good"), entry("../x")], "total": 2})
    done = stand_in.run(BATCH, "--dry-run")
    assert done.returncode == 1
    assert "would be written outside DOWNLOAD_DIR" in done.err
    assert last_line(done) == "1 to process, 1 refused, 0 not needed"


@pytest.mark.long
@settings(max_examples=3, **FEW)
@given(names=st.sets(NAMES, min_size=25, max_size=25))
def test_any_name_that_a_file_can_have_reaches_process_sh_unharmed(names, stand_in, emulator):
    clear(stand_in, emulator)
    tree = emulator.add({name: name.encode() for name in names})
    stand_in.config("NUM_JOBS = 6", "FILES_PER_JOB = 5")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    good = {name for name in names if not is_harmful(name)}
    assert last_line(done) == "%d processed, %d failed, 0 not needed" % (
        len(good), len(names) - len(good)), done.err
    assert processed(stand_in) == dict.fromkeys(good, 1)
    assert contents(stand_in.folder / "out") == {name: tree[name] for name in good}
    assert stand_in.downloaded() == {}
    assert_tame(done)


def clear(site, emulator):
    subprocess.run(["rm", "-rf", *(str(site.folder / name) for name in (
        "out", "processed", "jobs", "downloads")), str(emulator.source / PATH.strip("/"))],
        check=True)
    (emulator.source / PATH.strip("/")).mkdir()
