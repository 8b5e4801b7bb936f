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
    entries,
    is_harmful,
    last_line,
    processed,
)
from hypothesis import given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize("download_by,pack", [("job", 1), ("job", 6), ("driver", 6)])
def test_names_that_are_not_utf8_go_through_a_batch(download_by, pack, stand_in, tree):
    stand_in.config("RECURSIVE = True", "DOWNLOAD_BY = %r" % download_by,
                    "FILES_PER_JOB = %d" % pack, "helper.ARRIVAL_SECONDS = 1")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 0, done.out
    assert last_line(done) == "6 processed, 0 failed, 0 not needed"
    assert contents(stand_in.folder / "out") == tree and stand_in.downloaded() == {}


def test_a_failure_of_a_name_that_is_not_utf8_is_told_with_its_reason(stand_in, tree):
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
    "/home//share/godata", "/home/share/./godata/", "/home/share/godata/."])
def test_a_path_with_empty_parts_is_the_plain_one(path, site, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    site.config("PATH = %r" % path, "helper.ARRIVAL_SECONDS = 1")
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
    assert "gr\u00fc\u00df" in stand_in.run(BATCH, "--dry-run").out
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert contents(stand_in.folder / "out") == {"gr\u00fc\u00df": b"1"}


def test_files_of_one_name_are_refused_counted_and_named(stand_in, emulator):
    """As object stores list them: of two files of one name, who knows which one comes?"""
    emulator.add({"a": b"1", "b": b"2"})
    emulator.fault("/ls", patch={"DATA": entries("a", "b", "b"), "total": 3})
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert ("FAILED 2 files: is listed more than once, or is a folder's name, too\n  b\n  b\n"
            in done.out)
    assert last_line(done) == "1 processed, 2 failed, 0 not needed" and done.returncode == 1
    assert processed(stand_in) == {"a": 1}
    assert last_line(stand_in.run(BATCH, "--dry-run")) == "1 to process, 2 refused, 0 not needed"


def test_a_file_with_the_name_of_a_folder_is_refused_and_the_folder_comes(stand_in, emulator):
    emulator.add({"a": b"1", "x/b": b"2"})
    emulator.fault("/ls", times=1, patch={
        "DATA": entries("a", "x") + entries("x", kind="dir"), "total": 3})
    stand_in.config("RECURSIVE = True")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert "FAILED x: is listed more than once, or is a folder's name, too\n" in done.out
    assert last_line(done) == "2 processed, 1 failed, 0 not needed"


def test_a_folder_that_is_listed_twice_is_listed_once(stand_in, emulator):
    emulator.add({"x/b": b"2"})
    emulator.fault("/ls", times=1, patch={"DATA": entries("x", "x", kind="dir"), "total": 2})
    stand_in.config("RECURSIVE = True")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


@pytest.mark.parametrize("name,why", [
    ("\u00fc" * 128, "is longer than the 255 bytes that a file's name may have"),
    ("a/b", "holds a slash"),
], ids=["too long", "slash"])
def test_a_name_that_no_file_can_have_there_is_refused(name, why, stand_in, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("/ls", patch={"DATA": entries("a", name), "total": 2})
    done = stand_in.run(BATCH)
    assert "FAILED %s: %s\n" % (name, why) in done.out
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"


def test_a_name_of_255_bytes_is_fine(stand_in, emulator):
    name = "\u00fc" * 120 + "x" * 15
    emulator.add({name: b"1"})
    stand_in.process("true")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def entry(name, kind="file", size=1):
    return {"DATA_TYPE": "file", "name": name, "type": kind, "size": size,
            "last_modified": "2026-01-01 00:00:00+00:00", "link_target": None}


HARMFUL_NAMES = ["../x", "..", "/etc/passwd", "a\nb", "a\x1b[31mb", "a\x00b", "a/../../b", "", ".",
                 "\u0085", "\ud800"]


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_a_listed_name_that_would_do_harm_is_refused_and_counted(stand_in, emulator, kind):
    emulator.add({"good": b"1"})
    stand_in.config("RECURSIVE = True")
    listing = [entry(name, kind) for name in HARMFUL_NAMES] + [entry("good")]
    emulator.fault("/ls.(.*&)?path=%2Fhome%2Fshare%2Fgodata%2F(&|$)", patch={
        "DATA": listing, "length": len(listing), "total": len(listing)})
    simple = stand_in.run(SIMPLE)
    assert simple.returncode == 1
    assert simple.err.count("Refused:") == len(HARMFUL_NAMES)
    batch = stand_in.run(BATCH)
    assert batch.returncode == 1
    refused = re.findall(r"(?m)  Refused: (?:(\d+) files, such as )?.*: .*$", batch.err)
    assert sum(int(number or 1) for number in refused) == len(HARMFUL_NAMES)
    assert last_line(batch) == "1 processed, %d failed, 0 not needed" % len(HARMFUL_NAMES)
    said = simple.out + simple.err + batch.out + batch.err
    assert "\x1b" not in said and "\x00" not in said
    assert not any("/ls" in r and "." in r.split("?")[1] for r in emulator.requests())
    items = [i["source_path"] for t in emulator.tasks() for i in t["request"]["DATA"]]
    assert set(items) == {"/home/share/godata/good"}


def test_a_batch_dry_run_names_and_counts_what_is_refused(stand_in, emulator):
    emulator.add({"good": b"1"})
    emulator.fault("/ls", patch={"DATA": [entry("good"), entry("../x")], "total": 2})
    done = stand_in.run(BATCH, "--dry-run")
    assert done.returncode == 1
    assert "would be written outside DOWNLOAD_DIR" in done.err
    assert last_line(done) == "1 to process, 1 refused, 0 not needed"


def test_a_listed_file_without_a_size_or_a_name_is_refused(stand_in, emulator):
    listing = [dict(entry("a"), size=None), dict(entry("b"), name=7)]
    emulator.fault("/ls", patch={"DATA": listing, "total": 2})
    done = stand_in.run(SIMPLE, "--dry-run")
    assert done.returncode == 1
    assert "Refused: 'a' has no size." in done.err and "Refused: '7' is not a name." in done.err


@pytest.mark.long
@settings(max_examples=3, **FEW)
@given(names=st.sets(NAMES, min_size=25, max_size=25))
def test_any_name_that_a_file_can_have_reaches_process_sh_unharmed(names, stand_in, emulator):
    clear(stand_in, emulator)
    tree = emulator.add({name: name.encode() for name in names})
    stand_in.config("NUM_JOBS = 6")
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
