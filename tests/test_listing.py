"""helper.py, "collections and listings": a listing is complete, or is none; what cannot be used of
it is refused and named."""
import os

import pytest
from conftest import BOTH_DOWNLOADS, SIMPLE, check_err


@BOTH_DOWNLOADS
def test_a_path_that_is_not_there(stand_in, script):
    stand_in.config("PATH = '/home/nothing/'")
    check_err(stand_in.run(script), 2, "PATH = '/home/nothing/'", "is not on the source collection")


@BOTH_DOWNLOADS
def test_a_path_that_is_a_file(stand_in, here, emulator, script):
    emulator.add({"a": b"1"})
    stand_in.config("PATH = '/home/share/godata/a'")
    check_err(here.run(script), 2, "is a file, not a directory", lines=1)


@BOTH_DOWNLOADS
def test_a_path_that_may_not_be_read(stand_in, here, emulator, script):
    emulator.bend(troubles=[{"path": "godata", "code": "PERMISSION_DENIED"}])
    check_err(here.run(script), 1, "may not read PATH")


@BOTH_DOWNLOADS
def test_a_path_without_files_asks_whether_they_are_in_directories(
        script, stand_in, here, emulator):
    emulator.add({"sub/a": b"1"})
    done = here.run(script, "--dry-run")
    assert done.returncode == 0
    assert "/home/share/godata/ holds no files. Are they in directories below it?" in done.err


def test_a_folder_that_its_server_cannot_list_is_refused_and_the_rest_arrives(site, here, emulator):
    emulator.add({"a": b"1", "bad/b": b"2"})
    emulator.fault("/ls.*bad", status=502, json={
        "code": "EndpointError",
        "message": "Command Failed: Error (list)\nDetails: 500 Input/output error"})
    site.config("RECURSIVE = True")
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert "Refused: 'bad/' cannot be listed: " in done.err
    assert site.downloaded() == {"a": b"1"}


def test_a_listing_that_waits_names_its_folder(site, here, emulator):
    emulator.add({"a": b"1", "slow/b": b"2"})
    emulator.fault("/ls.*slow", times=3, status=502, json={
        "code": "EndpointError", "message": "a problem"})
    site.config("RECURSIVE = True", "import helper, itertools",
                "helper.backoff = lambda *_: itertools.repeat(0.1)")
    done = here.run(SIMPLE, "--dry-run")
    assert done.returncode == 0
    assert "EndpointError" in done.err and ", at /home/share/godata/slow/. Trying" in done.err


def test_a_listing_in_several_pages_is_complete(here, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(5)})
    page = [{"DATA_TYPE": "file", "name": "f%d" % n, "type": "file", "size": 1,
             "last_modified": "2026-01-01 00:00:00+00:00"} for n in range(2)]
    emulator.fault("/ls", times=1, patch={"DATA": page, "length": 2, "total": 5})
    done = here.run(SIMPLE, "--dry-run")
    assert [line.split()[1] for line in done.out.splitlines()] == ["f%d" % n for n in range(5)]


def test_a_listing_without_its_total_goes_on_after_a_full_page(site, here, emulator):
    emulator.add(dict.fromkeys("abcde", b"1"))
    emulator.fault("/ls", patch={"total": None})
    site.config("helper.MOST_ENTRIES = 5")
    done = here.run(SIMPLE, "--dry-run")
    assert done.returncode == 0
    assert len([r for r in emulator.requests() if "/ls" in r]) == 2
    assert "5 files, 5 B" in done.err


def test_a_listing_that_stays_incomplete_is_no_listing(here, emulator):
    emulator.add({"a": b"x"})
    emulator.fault("/ls", patch={"total": 5})
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert "is incomplete: 1 of 5 entries" in done.err
    assert emulator.tasks() == []


def test_a_listing_that_brings_nothing_of_what_it_counts_is_told(here, emulator):
    emulator.fault("/ls", patch={"DATA": [], "total": 5})
    done = here.run(SIMPLE, "--dry-run")
    assert done.returncode == 1
    assert "is incomplete: 0 of 5 entries. Try again." in done.err


def test_a_directory_that_changes_while_it_is_listed_is_told(here, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(5)})
    page = [{"DATA_TYPE": "file", "name": "f0", "type": "file", "size": 1}]
    emulator.fault("/ls", times=1, patch={"DATA": page, "total": 4})
    done = here.run(SIMPLE, "--dry-run")
    assert "changed while it was listed; start again later" in done.err
    assert len(done.out.splitlines()) == 5


def test_a_service_that_does_not_know_the_fields_is_asked_without(site, here, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("fields=", status=400, json={"code": "BadRequest", "message": "fields?"})
    assert here.run(SIMPLE).returncode == 0
    assert site.downloaded() == {"a": b"1"}


def test_what_is_neither_file_nor_directory_is_left_out_and_named(site, here, emulator):
    emulator.add({"a": b"1"})
    os.mkfifo(str(emulator.source / "home/share/godata/pipe"))
    done = here.run(SIMPLE)
    assert done.returncode == 0 and site.downloaded() == {"a": b"1"}
    assert "Skipped, neither file nor directory: pipe (pipe)" in done.err


def test_a_link_to_a_directory_is_left_out_and_named(site, here, emulator):
    emulator.add({"sub/a": b"1"})
    (emulator.source / "home/share/godata/loop").symlink_to("..")
    site.config("RECURSIVE = True")
    done = here.run(SIMPLE, "--dry-run")
    assert done.out.split() == ["1", "sub/a"]
    assert "loop (a link to a directory)" in done.err


def test_an_unreadable_subdirectory_counts_as_failed(site, here, emulator):
    emulator.add({"a": b"1", "closed/b": b"2"})
    emulator.bend(troubles=[{"path": "closed", "code": "PERMISSION_DENIED"}])
    site.config("RECURSIVE = True")
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert "'closed/' cannot be listed" in done.err
    assert site.downloaded() == {"a": b"1"}


def test_a_path_without_its_first_slash_is_told_what_is_missing(site, here):
    site.config("PATH = 'home/share/godata'")
    done = here.run(SIMPLE)
    assert done.returncode == 2
    assert done.err.startswith("config.py: PATH = 'home/share/godata' must be an absolute path, "
                               "which begins with a slash")


@pytest.mark.parametrize("fault", [
    {"status": 502, "json": {"code": "ExternalError.DirListingFailed.ConnectFailed",
                             "message": "no"}},
    {"status": 504, "text": "<html>Gateway Time-out</html>"}, {"drop": "before"},
], ids=["502", "504", "no answer"])
def test_a_subdirectory_that_can_never_be_listed_is_refused_and_the_rest_arrives(
        fault, site, here, emulator):
    emulator.add({"a": b"1", "bad/b": b"2", "good/c": b"3"})
    emulator.fault("ls.*bad", **fault)
    site.config("RECURSIVE = True", "helper.FOLDER_SECONDS = 1")
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert "Refused: 'bad/' cannot be listed: " in done.err
    assert site.downloaded() == {"a": b"1", "good/c": b"3"}


@pytest.mark.long
def test_an_outage_of_all_of_globus_refuses_no_subdirectory(site, here, emulator):
    emulator.add({"a": b"1", "sub/b": b"2"})
    emulator.fault("/ls", skip=1, times=6, status=503, text="<html>maintenance</html>")
    site.config("RECURSIVE = True", "helper.FOLDER_SECONDS = 1")
    done = here.run(SIMPLE)
    assert done.returncode == 0, done.err
    assert site.downloaded() == {"a": b"1", "sub/b": b"2"}


def test_entries_without_a_type_are_asked_for_again_without_fields(site, here, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("fields=", patch={"DATA": [{"name": "a", "size": 1}], "total": 1})
    assert here.run(SIMPLE).returncode == 0
    assert site.downloaded() == {"a": b"1"}


def test_entries_that_never_have_a_type_are_refused(here, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("/ls", patch={"DATA": [{"name": "a", "size": 1}], "total": 1})
    done = here.run(SIMPLE)
    assert done.returncode == 1 and "Refused: 'a' has no type." in done.err
