"""globus-batch-download.py, "the driver": MAX_BYTES, downloads in flight and files left behind by
failures together."""
import contextlib
import os
import signal
import subprocess
import threading
import time

import pytest
from conftest import BATCH, KEEP, NEEDED, count_events, last_line, processed, wait_until
from in_process import leave_failure, load, make_driver

DRIVER = load("globus-batch-download")


def test_larger_files_than_max_bytes_fail_with_that_reason_in_one_line(copying, emulator):
    emulator.add(dict({"a": b"1"}, **dict.fromkeys("bcde", b"x" * 2000)))
    copying.config("MAX_BYTES = 1000")
    done = copying.run(BATCH)
    assert done.returncode == 1
    assert done.err.count("Refused: ") == 1
    assert "Refused: 4 files, such as b: is larger than MAX_BYTES (2 kB)\n" in done.err
    assert "FAILED 4 files: is larger than MAX_BYTES (2 kB)\n  b\n" in done.out
    assert last_line(done) == "1 processed, 4 failed, 0 not needed"


class Disk(threading.Thread):
    """Measures DOWNLOAD_DIR, again and again."""

    def __init__(self, site):
        super().__init__(daemon=True)
        self.site, self.most, self.is_over = site, 0, False

    def run(self):
        while not self.is_over:
            # What is there in both looks was there, at that size, at the moment between them.
            first, second = self.sizes(), self.sizes()
            self.most = max(self.most, sum(
                min(size, second[path]) for path, size in first.items() if path in second))
            time.sleep(0.01)

    def sizes(self):
        found = {}
        for folder, _, names in os.walk(str(self.site.downloads)):
            for path in (os.path.join(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    found[path] = os.path.getsize(path)
        return found


def run_with_disk(site):
    disk = Disk(site)
    disk.start()
    done = site.run(BATCH)
    disk.is_over = True
    disk.join()
    return done, disk.most


@pytest.mark.long
def test_downloads_in_flight_never_exceed_max_bytes(cluster, emulator):
    emulator.add({"f%d" % n: b"x" * 1000 * (1 + n % 3) for n in range(9)})
    cluster.config("NUM_JOBS = 8", "MAX_BYTES = 5000")
    # f0, f1 and f3 fit at the same time.
    cluster.process('touch "begun.$GLOBUS_NAME"',
                    "until there=(begun.*) && [ ${#there[@]} -ge 3 ]; do sleep 0.1; done; sleep 1",
                    *KEEP)
    done, most = run_with_disk(cluster)
    assert last_line(done) == "9 processed, 0 failed, 0 not needed"
    assert 3000 < most <= 5000


def test_files_that_failures_leave_count_for_max_bytes(copying, emulator):
    emulator.add({"f%d" % n: b"x" * 1000 for n in range(8)})
    copying.config("NUM_JOBS = 8", "MAX_BYTES = 4000")
    copying.process("case $1 in *f[01]) exit 3 ;; esac", "sleep 0.5", *KEEP)
    done, most = run_with_disk(copying)
    assert last_line(done) == "6 processed, 2 failed, 0 not needed"
    assert 2000 < most <= 4000


@pytest.mark.long
def test_what_a_pack_that_is_not_over_has_left_counts_for_max_bytes(stand_in, emulator):
    emulator.add({"f%d" % n: b"x" * 1000 for n in range(9)})
    stand_in.config("NUM_JOBS = 1", "FILES_PER_JOB = 3", "DOWNLOAD_BY = 'driver'",
                    "MAX_BYTES = 6000")
    stand_in.process("case $1 in *f[01]) exit 3 ;; *) sleep 0.7 ;; esac", *KEEP)
    done, most = run_with_disk(stand_in)
    assert last_line(done) == "7 processed, 2 failed, 0 not needed"
    assert 4000 < most <= 6000


def fill_the_disk(site, emulator):
    """A run that stops because failures have left no room; the command that makes room again."""
    emulator.add({"f%d" % n: b"x" * 1000 for n in range(4)})
    site.config("NUM_JOBS = 1", "MAX_BYTES = 2500")
    site.process("exit 3")
    done, most = run_with_disk(site)
    assert done.returncode == 1 and most == 2000
    assert "leaves no room for another file within MAX_BYTES" in done.err
    assert last_line(done) == "0 processed, 2 failed, 0 not needed"
    command = done.err.splitlines()[-1]
    run = {folder.name.split("-")[1] for folder in site.downloads.iterdir()}
    assert command == "rm -r %s/g*-%s" % (site.downloads, *run)
    site.process(*KEEP)
    return command


def test_a_disk_full_of_failures_stops_the_run_and_it_goes_on_once_there_is_room_again(
        copying, emulator):
    command = fill_the_disk(copying, emulator)
    subprocess.run(command, shell=True, check=True)
    done, most = run_with_disk(copying)
    assert last_line(done) == "4 processed, 0 failed, 0 not needed"
    assert most <= 2500 and set(processed(copying).values()) == {1}


@pytest.mark.long
def test_failures_that_fill_the_disk_are_tried_again_where_they_are(stand_in, emulator):
    """They are there already, so that they need no more room."""
    fill_the_disk(stand_in, emulator)
    done, most = run_with_disk(stand_in)
    assert done.returncode == 0, done.err
    assert last_line(done) == "4 processed, 0 failed, 0 not needed"
    assert most <= 2500 and len(emulator.tasks()) == 4
    assert processed(stand_in) == {"f%d" % n: 1 for n in range(4)}


@pytest.mark.long
def test_what_runs_of_another_source_left_counts_for_max_bytes(stand_in, emulator):
    emulator.add({"sub/left": b"x" * 2000, "a": b"x" * 1000})
    stand_in.config("MAX_BYTES = 2500", "PATH = '/home/share/godata/sub'")
    stand_in.process("exit 3")
    assert stand_in.run(BATCH).returncode == 1
    stand_in.config("PATH = '/home/share/godata'")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "leaves no room" in done.err
    assert stand_in.downloaded() == {"left": b"x" * 2000}
    subprocess.run(done.err.splitlines()[-1], shell=True, check=True)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


@pytest.mark.parametrize("path,key", [
    ("/home/share/godata/", "left"), ("/home/share/other/", "g1-abcde/left")])
def test_what_a_run_that_is_over_left_takes_room_whatever_its_source(
        path, key, tmp_path, monkeypatch):
    said, driver = [], make_driver(DRIVER, tmp_path, MAX_BYTES=2500)
    monkeypatch.setattr(DRIVER.helper, "log", said.append)
    name = leave_failure(driver, "left", 2000)
    place, driver.config.PATH = tmp_path / "downloads" / name, path
    DRIVER.find_kept(driver)
    assert driver.kept == {key: (name, str(place), "left", 2000, "")} and driver.room() == 500
    driver.pending.append(DRIVER.helper.File("a", 1000, "", None))
    assert driver.new_pack(1) is None and driver.is_halted
    assert "leaves no room for another file within MAX_BYTES" in said[-1]
    assert said[-1].endswith("\nrm -r %s/g*-abcde" % place.parent) and (place / "left").exists()


def test_the_bytes_that_the_task_of_a_killed_job_still_brings_count_for_max_bytes(
        stand_in, emulator):
    """Nothing of the file is on the disk yet; the next attempt takes the task over."""
    emulator.add({"a": b"x" * 2000, "b": b"x" * 2000})
    emulator.bend(slots=0)
    stand_in.config("NUM_JOBS = 2", "MAX_BYTES = 3000", "GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    stand_in.process(*KEEP)
    driver = stand_in.start(BATCH)
    wait_until(emulator.tasks)
    job = next((stand_in.folder.parent / "stand-in").glob("*"))
    os.killpg(int((job / "pid").read_text()), signal.SIGKILL)
    (job / "state").write_text("FAILED\n")
    wait_until(lambda: count_events(stand_in, "queued") == 2)
    assert count_events(stand_in, "pack") == 1
    assert len(emulator.tasks()) == 1
    disk = Disk(stand_in)
    disk.start()
    emulator.bend(slots=3)
    out = driver.communicate()[0]
    disk.is_over = True
    disk.join()
    assert out.endswith(b"2 processed, 0 failed, 0 not needed\n") and disk.most <= 2000
    assert len(emulator.tasks()) == 2 and processed(stand_in) == {"a": 1, "b": 1}


@pytest.mark.parametrize("where", ["driver", pytest.param("job", marks=pytest.mark.long)])
def test_side_files_go_with_their_pack_so_that_max_bytes_has_room(where, stand_in, emulator):
    emulator.add({"a": b"x" * 60, "sub/b": b"x" * 60, "c": b"x" * 60, "d": b"x" * 60})
    stand_in.config("MAX_BYTES = 125", "FILES_PER_JOB = 2", "RECURSIVE = True", NEEDED,
                    "DOWNLOAD_BY = %r" % where)
    stand_in.process('head -c 500 /dev/zero >"$1.bai"; mkdir "$1.work"; echo >"$1.work/x y"',
                     'echo >"${1%/*}/tmp.$$"; ln -s /etc "${1%/*}/link"',
                     '[ -e fixed ] || [ "$GLOBUS_NAME" != c ] || exit 3', *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "3 processed, 1 failed, 0 not needed", done.err
    assert stand_in.downloaded() == {"c": b"x" * 60}
    assert len(list(stand_in.downloads.rglob("*"))) == 2  # the file, and its pack's folder
    (stand_in.folder / "fixed").touch()
    emulator.add({"e": b"x" * 60})
    tasks = len(emulator.tasks())
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 3 not needed", done.err
    assert list(stand_in.downloads.iterdir()) == []
    assert processed(stand_in) == {"a": 1, "sub/b": 1, "c": 1, "d": 1, "e": 1}
    sent = [item["source_path"] for task in emulator.tasks()[tasks:]
            for item in task["request"]["DATA"]]
    assert not any(path.endswith("/c") for path in sent)  # it was there already


@pytest.mark.long
def test_max_bytes_holds_for_packs(packs, emulator):
    emulator.add({"f%02d" % n: b"x" * 100 for n in range(14)})
    packs.config("MAX_BYTES = 600")
    packs.process("sleep 0.1", *KEEP)
    done, most = run_with_disk(packs)
    assert last_line(done) == "14 processed, 0 failed, 0 not needed"
    assert 100 < most <= 600
