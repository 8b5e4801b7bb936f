"""DOWNLOAD_DIR may be shared: each pack has a folder of its own there."""
import os
import shutil
import subprocess

import pytest
from conftest import (
    BATCH,
    DESTINATION,
    KEEP,
    SIMPLE,
    Site,
    contents,
    copy_downloads,
    count_events,
    kill,
    last_line,
    let_go,
    processed,
    wait_until,
)
from in_process import load

helper = load("globus-batch-download").helper

NAMES = ["a", "b", "c", "sub/a", "sub/it's b"]


def copy_of_the_scripts(stand_in, emulator, folder, downloads):
    """Another copy of the scripts, of the same user."""
    folder.mkdir()
    copy = Site(folder, emulator, "")
    copy.env, copy.scheduler = stand_in.env, stand_in.scheduler
    copy.config("DOWNLOAD_DIR = %r" % str(downloads))
    copy.downloads = downloads
    return copy


def set_path(site, emulator, name):
    """Let PATH be a directory of that name, with files that differ from those of the same names in
    others; what they are."""
    files = {path: ("%s of %s\n" % (path, name)).encode() * 2000 for path in NAMES}
    emulator.add({name + "/" + path: content for path, content in files.items()})
    site.config("PATH = '/home/share/godata/%s'" % name, "RECURSIVE = True", "FILES_PER_JOB = 5",
                "NUM_JOBS = 1")
    return files


@pytest.fixture
def other(stand_in, emulator, tmp_path):
    """A second copy of the scripts, which downloads into the same folder."""
    return copy_of_the_scripts(stand_in, emulator, tmp_path / "other", stand_in.downloads)


def start_batch(site):
    """A batch whose jobs are in process.sh until there is a file `go`."""
    site.process("touch begun; until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = site.start(BATCH)
    wait_until((site.folder / "begun").exists)
    return driver


def check_results(site, driver, files):
    """The batch ends well, and each file was processed once, with its own content."""
    out, err = driver.communicate(timeout=300)
    assert out.decode().splitlines()[-1] == (
        "%d processed, 0 failed, 0 not needed" % len(files)), err.decode()
    assert driver.returncode == 0
    assert contents(site.folder / "out") == files
    assert processed(site) == dict.fromkeys(files, 1)


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
def test_two_batches_and_a_simple_download_share_a_folder_at_the_same_time(
        where, stand_in, other, emulator, tmp_path):
    stand_in.downloads.mkdir()
    (other.home / "linked").symlink_to(stand_in.downloads)
    other.config("DOWNLOAD_DIR = %r" % str(other.home / "linked"))  # by another name, too
    simple = copy_of_the_scripts(stand_in, emulator, tmp_path / "third", stand_in.downloads)
    first, second, third = (set_path(site, emulator, name) for site, name in (
        (stand_in, "one"), (other, "two"), (simple, "three")))
    for site in (stand_in, other):
        site.config("DOWNLOAD_BY = %r" % where)
    drivers = [start_batch(stand_in), start_batch(other)]
    done = simple.run(SIMPLE)
    assert done.returncode == 0, done.err
    assert done.out.splitlines()[-1] == "5 files: 5 sent, 0 already there, 0 did not arrive."
    for site in (stand_in, other):
        assert not (site.folder / "processed").exists()  # all three have files there by now
        let_go(site)
    check_results(stand_in, drivers[0], first)
    check_results(other, drivers[1], second)
    assert contents(stand_in.downloads) == third  # no more, and no less


@pytest.mark.long
def test_transfers_of_equal_names_at_the_same_time_do_not_meet(
        stand_in, other, emulator, tmp_path):
    simple = copy_of_the_scripts(stand_in, emulator, tmp_path / "third", stand_in.downloads)
    sites = (stand_in, other, simple)
    files = [set_path(site, emulator, name) for site, name in zip(
        sites, ("one", "two", "three"))]
    emulator.bend(bytes_per_second=20000, slots=3)  # several seconds for each
    for site in sites[:2]:
        site.process(*KEEP)
    downloads = [site.start(script) for site, script in zip(sites, (BATCH, BATCH, SIMPLE))]

    def is_each_at_work():
        tasks = [task for task in emulator.tasks() if task["status"] == "ACTIVE"]
        return len(tasks) == 3 and all(task["bytes_transferred"] for task in tasks)

    wait_until(is_each_at_work)
    check_results(stand_in, downloads[0], files[0])
    check_results(other, downloads[1], files[1])
    assert downloads[2].communicate()[0].splitlines()[-1] == (
        b"5 files: 5 sent, 0 already there, 0 did not arrive.")
    assert contents(stand_in.downloads) == files[2]
    assert [task["status"] for task in emulator.tasks()] == ["SUCCEEDED"] * 3


@pytest.mark.long
def test_what_an_interrupted_batch_has_there_is_not_touched(stand_in, other, emulator):
    first, second = set_path(stand_in, emulator, "one"), set_path(other, emulator, "two")
    for site in (stand_in, other):
        copy_downloads(site)
    kill(start_batch(stand_in))
    other.process(*KEEP)
    assert other.run(BATCH).returncode == 0
    assert contents(other.folder / "out") == second
    assert other.run(SIMPLE).returncode == 0
    let_go(stand_in)
    check_results(stand_in, stand_in.start(BATCH), first)
    assert contents(stand_in.downloads) == second


@pytest.mark.long
def test_what_failures_of_another_batch_have_left_there_is_not_touched(stand_in, other, emulator):
    first, second = set_path(stand_in, emulator, "one"), set_path(other, emulator, "two")
    stand_in.config("MAX_FAILURES_IN_A_ROW = None")
    stand_in.process("exit 3")
    assert last_line(stand_in.run(BATCH)) == "0 processed, 5 failed, 0 not needed"
    other.process(*KEEP)
    check_results(other, other.start(BATCH), second)
    assert stand_in.downloaded() == first
    stand_in.process(*KEEP)
    before = len(emulator.tasks())
    check_results(stand_in, stand_in.start(BATCH), first)
    assert len(emulator.tasks()) == before  # it was all there
    assert list(stand_in.downloads.iterdir()) == []


def test_a_simple_download_beside_its_own_batch_disturbs_neither(stand_in, emulator):
    files = set_path(copy_downloads(stand_in), emulator, "one")
    driver = start_batch(stand_in)
    assert stand_in.run(SIMPLE).returncode == 0
    let_go(stand_in)
    check_results(stand_in, driver, files)
    assert contents(stand_in.downloads) == files


@pytest.mark.long
def test_so_does_one_into_a_folder_around_or_in_that_of_a_batch(
        stand_in, other, emulator, tmp_path):
    place = stand_in.folder.parent / "disk" / "in"
    stand_in.config("DOWNLOAD_DIR = %r" % str(place))
    first, second = set_path(stand_in, emulator, "one"), set_path(other, emulator, "two")
    copy_downloads(stand_in)
    driver = start_batch(stand_in)
    for folder in (place.parent, place / "sub" / "deep"):
        other.config("DOWNLOAD_DIR = %r" % str(folder))
        assert other.run(SIMPLE).returncode == 0
    let_go(stand_in)
    check_results(stand_in, driver, first)
    shutil.rmtree(str(stand_in.jobs))
    for folder in (place.parent, place / "sub" / "deep"):
        there = contents(folder)
        assert {path: there.get(path) for path in second} == second


def test_what_a_forgotten_run_has_left_there_is_in_nobodys_way(stand_in, emulator):
    files = set_path(copy_downloads(stand_in), emulator, "one")
    kill(start_batch(stand_in))
    shutil.rmtree(str(stand_in.jobs))
    let_go(stand_in)
    wait_until(lambda: not subprocess.check_output(["squeue", "-h"], env=stand_in.env))
    left = set(os.listdir(str(stand_in.downloads)))
    for path in ("processed", "out"):
        before = stand_in.folder / path
        if before.exists():
            before.rename(stand_in.folder / (path + ".before"))
    check_results(stand_in, stand_in.start(BATCH), files)
    assert set(os.listdir(str(stand_in.downloads))) == left
    assert count_events(stand_in, "run") == 1


def test_a_task_that_a_killed_simple_download_has_left_does_not_meet_a_batch(
        stand_in, other, emulator):
    first, second = set_path(stand_in, emulator, "one"), set_path(other, emulator, "two")
    emulator.bend(bytes_per_second=20000)
    download = other.start(SIMPLE)
    wait_until(lambda: contents(stand_in.downloads) if stand_in.downloads.exists() else {})
    kill(download)  # its task goes on
    emulator.bend(bytes_per_second=None)
    stand_in.process(*KEEP)
    check_results(stand_in, stand_in.start(BATCH), first)
    wait_until(lambda: {task["status"] for task in emulator.tasks()} == {"SUCCEEDED"})
    assert contents(stand_in.downloads) == second


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """What config.py of a copy of the scripts says, for load_config()."""
    config = load("config")
    for name in ("scripts", "home"):
        (tmp_path / name).mkdir()
    config.__file__ = str(tmp_path / "scripts" / "config.py")
    config.WORKING_DIR, config.DESTINATION_ENDPOINT_ID = str(tmp_path / "work"), DESTINATION
    monkeypatch.setattr(helper, "HERE", str(tmp_path / "scripts"))
    monkeypatch.setattr(helper, "read_config", lambda: config)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(helper.FROZEN, raising=False)
    return config


@pytest.mark.parametrize("place", ["work", "work/..", "work/jobs/here", "scripts", "home", "/"])
def test_a_folder_around_the_scripts_or_the_login_is_no_download_folder(place, settings, tmp_path):
    settings.DOWNLOAD_DIR = str(tmp_path / place)
    with pytest.raises(helper.UserError, match=r"config\.py: DOWNLOAD_DIR = .* must be a folder of "
                       "its own"):
        helper.load_config()


def test_a_file_or_a_folder_of_others_is_no_download_folder(settings, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    settings.DOWNLOAD_DIR = str(tmp_path / "file" / "x")
    with pytest.raises(helper.UserError, match=r"config\.py: DOWNLOAD_DIR = .*/file/x' cannot be "
                       "made or written: .*/file is not a folder"):
        helper.load_config()
    settings.DOWNLOAD_DIR = settings.DESTINATION_PATH = str(tmp_path / "theirs")
    helper.load_config()
    monkeypatch.setattr(helper.os, "access", lambda *_: False)
    with pytest.raises(helper.UserError, match=r"config\.py: DOWNLOAD_DIR = .* cannot be made or "
                       "written: "):
        helper.load_config()


@pytest.mark.parametrize("script,place,words", [
    (BATCH, "os.path.expanduser('~')", "must be a folder of its own"),
    (SIMPLE, "WORKING_DIR + '/config.py/x'", "cannot be made or written: ")])
def test_a_download_dir_that_cannot_be_used_is_named_before_anything_is_sent(
        script, place, words, stand_in, emulator):
    stand_in.config("DOWNLOAD_DIR = " + place)
    done = stand_in.run(script)
    assert done.returncode == 2 and emulator.requests() == []
    assert done.err.startswith("config.py: DOWNLOAD_DIR = ") and words in done.err


def test_what_the_users_own_wrapper_does_not_delete_goes_with_its_pack(copying, emulator):
    emulator.add({"f%d" % n: b"x" * 1000 for n in range(4)})
    copying.edit("wrapper.sh", 'rm -f --', 'true')
    copying.config("NUM_JOBS = 2", "MAX_BYTES = 2500")
    assert last_line(copying.run(BATCH)) == "4 processed, 0 failed, 0 not needed"
    assert list(copying.downloads.iterdir()) == []
