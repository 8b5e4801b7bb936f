"""DOWNLOAD_DIR has one user: what a batch marks as its own, nothing else downloads into."""
import os
import shutil
import subprocess

import pytest
from conftest import BATCH, KEEP, Site, last_line, processed, wait_until

SIMPLE = "globus-simple-download.py"
MARK = ".globus-batch"


@pytest.fixture
def other(stand_in, emulator, tmp_path):
    """A second copy of the scripts, of the same user, which downloads into the same folder."""
    (tmp_path / "other").mkdir()
    copy = Site(tmp_path / "other", emulator, "")
    copy.env = stand_in.env
    copy.config("DOWNLOAD_DIR = %r" % str(stand_in.downloads))
    return copy


def start_batch(site, emulator):
    """A batch whose jobs work until there is a file `go`."""
    emulator.add({"a": b"1", "b": b"2"})
    site.process("touch begun; until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = site.start(BATCH)
    wait_until((site.folder / "begun").exists)
    return driver


def kill(driver):
    driver.kill()
    driver.communicate()


def let_go(site):
    (site.folder / "go").touch()


def check_refused(done, folder, owner):
    assert done.returncode == 2
    assert "%s belongs to the batch of %s" % (folder, owner.folder) in done.err


def test_a_second_batch_with_the_same_folder_is_refused_and_told_whose_it_is(
        stand_in, other, emulator):
    driver = start_batch(stand_in, emulator)
    check_refused(other.run(BATCH), stand_in.downloads, stand_in)
    assert not (other.folder / "processed").exists()
    let_go(stand_in)
    assert driver.communicate()[0].endswith(b"2 processed, 0 failed, 0 not needed\n")
    assert last_line(other.run(BATCH)) == "2 processed, 0 failed, 0 not needed"


@pytest.mark.parametrize("script", [BATCH, SIMPLE])
def test_the_folder_of_an_interrupted_batch_is_refused_until_it_has_ended(
        script, stand_in, other, emulator):
    kill(start_batch(stand_in, emulator))
    check_refused(other.run(script), stand_in.downloads, stand_in)
    let_go(stand_in)
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1, "b": 1}
    assert other.run(script).returncode == 0


def test_a_simple_download_beside_its_own_batch_is_refused(stand_in, emulator):
    driver = start_batch(stand_in, emulator)
    check_refused(stand_in.run(SIMPLE), stand_in.downloads, stand_in)
    assert stand_in.run(SIMPLE, "--dry-run").returncode == 0
    let_go(stand_in)
    driver.communicate()
    assert stand_in.run(SIMPLE).returncode == 0


@pytest.mark.parametrize("below", ["..", "sub/deep"])
def test_so_is_a_folder_around_or_in_that_of_a_batch(below, stand_in, other, emulator):
    place = stand_in.folder.parent / "disk" / "in"
    stand_in.config("DOWNLOAD_DIR = %r" % str(place))
    driver = start_batch(stand_in, emulator)
    other.config("DOWNLOAD_DIR = %r" % os.path.normpath(str(place / below)))
    check_refused(other.run(SIMPLE), place, stand_in)
    let_go(stand_in)
    driver.communicate()


def test_a_folder_that_is_named_by_a_link_is_the_same_folder(stand_in, other, emulator):
    kill(start_batch(stand_in, emulator))
    (other.home / "linked").symlink_to(stand_in.downloads)
    other.config("DOWNLOAD_DIR = %r" % str(other.home / "linked"))
    check_refused(other.run(BATCH), stand_in.downloads, stand_in)
    let_go(stand_in)


def test_removing_the_jobs_folder_forgets_the_mark_too(stand_in, other, emulator):
    kill(start_batch(stand_in, emulator))
    let_go(stand_in)
    wait_until(lambda: len(processed(stand_in)) == 2)
    wait_until(lambda: not subprocess.check_output(["squeue", "-h"], env=stand_in.env))
    shutil.rmtree(str(stand_in.jobs))
    assert last_line(other.run(BATCH)) == "2 processed, 0 failed, 0 not needed"
    assert MARK not in os.listdir(str(stand_in.downloads))


def test_a_batch_whose_folder_is_not_there_is_named_with_the_mark_to_remove(other, emulator):
    emulator.add({"a": b"1"})
    (other.folder.parent.parent / "collection" / "downloads").mkdir()
    mark = other.folder.parent.parent / "collection" / "downloads" / MARK
    mark.symlink_to("/elsewhere/batch/jobs")
    done = other.run(BATCH)
    assert done.returncode == 2
    assert "belongs to the batch of /elsewhere/batch, which is not there" in done.err
    assert "if it no longer exists, remove %s" % mark in done.err
    mark.unlink()
    assert last_line(other.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_a_mark_that_has_outlived_its_run_is_removed(stand_in, other, emulator):
    emulator.add({"a": b"1"})
    stand_in.run(BATCH)
    (stand_in.downloads / MARK).symlink_to(stand_in.jobs)  # killed right before it was removed
    assert last_line(other.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert list(stand_in.downloads.iterdir()) == []


def test_a_file_where_the_mark_should_be_is_said(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.downloads.mkdir()
    (stand_in.downloads / MARK).write_text("mine")
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and "is in the way" in done.err
    assert (stand_in.downloads / MARK).read_text() == "mine"


def test_a_batch_is_refused_while_a_simple_download_still_sends_into_its_folder(
        stand_in, other, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    download = other.start(SIMPLE)
    wait_until(emulator.tasks)
    kill(download)  # its task goes on
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert "A task of globus-simple-download.py still downloads into DOWNLOAD_DIR" in done.err
    assert emulator.tasks()[0]["task_id"] in done.err
    emulator.bend(slots=3)
    wait_until(lambda: emulator.tasks()[0]["status"] == "SUCCEEDED")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_a_simple_download_during_whose_submission_a_batch_begins_cancels_its_task(
        stand_in, other, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    emulator.fault("POST /v0.10/transfer", times=1, delay=3)
    download = other.start(SIMPLE)
    wait_until(lambda: any("POST /v0.10/transfer" in line for line in emulator.requests()))
    stand_in.jobs.mkdir()
    (stand_in.jobs / "journal.jsonl").write_text(
        '{"event": "run", "run": "g1", "version": 2}\n{"event": "submit"}\n')
    stand_in.downloads.mkdir()
    (stand_in.downloads / MARK).symlink_to(stand_in.jobs)
    assert b"belongs to the batch of" in download.communicate()[1]
    assert download.returncode == 2
    assert [task["status"] for task in emulator.tasks()] == ["FAILED"]


@pytest.mark.parametrize("place", ["WORKING_DIR + '/..'", "os.path.expanduser('~')", "'/'"])
def test_a_folder_around_the_scripts_or_the_login_is_no_download_folder(place, stand_in, emulator):
    stand_in.config("DOWNLOAD_DIR = " + place)
    done = stand_in.run(SIMPLE)
    assert done.returncode == 2 and "must be a folder of its own" in done.err
    assert emulator.requests() == []


def test_a_file_named_finished_does_not_end_a_run(stand_in, other, emulator):
    emulator.add({"finished": b"1"})
    stand_in.process("touch begun; until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = stand_in.start(BATCH)
    wait_until((stand_in.folder / "begun").exists)
    kill(driver)
    journal = stand_in.jobs / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:3]))
    check_refused(other.run(BATCH), stand_in.downloads, stand_in)
    let_go(stand_in)
