"""Names that are not UTF-8, and paths and entries that are not plain."""
import os

import pytest
from conftest import BATCH, KEEP, TUTORIAL, contents, last_line

SINGLE, SIMPLE = "globus-single-file-download.py", "globus-simple-download.py"
# In Latin-1, in code page 437, in a folder; and a true U+FFFD.
BYTES = [b"caf\xe9", b"m\x81sli", b"\xfcber sicht/\xe9t\xe9.txt"]
TRUE = ["\ufffd", "\ufffdplain", "caf\u00e9"]


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


def test_entries_without_a_type_are_asked_for_again_without_fields(site, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("fields=", patch={"DATA": [{"name": "a", "size": 1}], "total": 1})
    assert site.run(SIMPLE).returncode == 0
    assert site.downloaded() == {"a": b"1"}


def test_entries_that_never_have_a_type_are_refused(site, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("/ls", patch={"DATA": [{"name": "a", "size": 1}], "total": 1})
    done = site.run(SIMPLE)
    assert done.returncode == 1 and "Refused: 'a' has no type." in done.err
