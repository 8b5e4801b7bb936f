"""globus-batch-download.py, "start or resume": an interrupted run is taken up, that of another
source, cluster or user is refused, and nothing of a run is left behind."""
import os
import re
import shutil
import signal
import time

import pytest
from conftest import (
    BATCH,
    KEEP,
    SOURCE,
    calls_of,
    contents,
    journal,
    kill,
    last_line,
    let_go,
    processed,
    put_before,
    state_of,
    wait_until,
)
from in_process import leave_failure, load, make_driver

DRIVER = load("globus-batch-download")
WAIT = "touch begun; until [ -e go ]; do sleep 0.1; done"


def kill_driver_with_a_job(site):
    """Kill the driver when its first job is queued, which waits for a file `go`."""
    site.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = site.start(BATCH)
    wait_until(lambda: any(event["event"] == "queued" for event in journal(site)))
    driver.kill()
    driver.communicate()


# ---- taken up ----


def test_a_killed_driver_started_again_takes_up_its_jobs(every_cluster, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    every_cluster.config("FILES_PER_JOB = 2", "NUM_JOBS = 2")
    every_cluster.process("sleep 0.5", *KEEP)
    driver = every_cluster.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    driver.kill()
    driver.communicate()
    done = every_cluster.run(BATCH)
    assert "Resuming the interrupted run" in done.err
    assert last_line(done) == "4 processed, 0 failed, 0 not needed"
    assert processed(every_cluster) == {"f%d" % n: 1 for n in range(4)}


def kill_when_one_is_processed(driver):
    wait_until(lambda: b"processed f" in driver.stderr.readline())
    driver.kill()
    driver.communicate()


@pytest.mark.long
def test_a_killed_driver_takes_up_packs(packs, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(30)})
    packs.process("sleep 0.2", *KEEP)
    for _ in range(2):
        kill_when_one_is_processed(packs.start(BATCH))
    done = packs.run(BATCH)
    assert last_line(done) == "30 processed, 0 failed, 0 not needed"
    assert processed(packs) == dict.fromkeys(files, 1)


def interrupt(site):
    """A batch that was killed while its first job was in process.sh; the job's id."""
    site.process(WAIT, *KEEP)
    driver = site.start(BATCH)
    wait_until((site.folder / "begun").exists)
    driver.kill()
    driver.communicate()
    return next(event["id"] for event in journal(site) if event["event"] == "queued")


def test_a_run_that_is_resumed_is_told_with_its_jobs_by_a_dry_run_too(copying, emulator):
    emulator.add({"a": b"1"})
    job_id = interrupt(copying)
    done = copying.run(BATCH, "--dry-run")
    driver = copying.start(BATCH)
    first = driver.stderr.readline().decode()
    (copying.folder / "go").touch()
    driver.communicate()
    for said in (done.err, first):
        assert "Resuming the interrupted run: 0 processed, 1 job (%s).\n" % job_id in said


@pytest.mark.long
def test_a_file_that_failed_and_has_changed_since_is_sent_again_though_its_pack_was_open(
        stand_in, emulator):
    emulator.add({"a": b"old", "b": b"1"})
    stand_in.config("FILES_PER_JOB = 2", "NUM_JOBS = 1")
    stand_in.process('[ "$GLOBUS_NAME" = b ] || [ -e go ] || exit 1',
                     "touch begun; until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = stand_in.start(BATCH)
    wait_until((stand_in.folder / "begun").exists)
    kill(driver)
    emulator.add({"a": b"new"})
    os.utime(str(emulator.source / "home/share/godata/a"), (1, 2000000000))
    driver = stand_in.start(BATCH)
    assert b"Resuming" in driver.stderr.readline()
    let_go(stand_in)
    out, err = driver.communicate()
    assert contents(stand_in.folder / "out") == {"a": b"new", "b": b"1"}, err
    *_, numbers, _, last = out.decode().splitlines()
    assert last == "2 processed, 0 failed, 0 not needed"
    assert numbers.startswith("2 of 2 files processed, 0 failed.")


def interrupted_run(site, emulator):
    """A run with one job that has ended since its driver was killed; the next listing is slow."""
    site.edit(BATCH, "LISTING_SECONDS = 1", "LISTING_SECONDS = 0")
    kill_driver_with_a_job(site)
    (site.folder / "go").touch()
    wait_until(lambda: list(site.jobs.glob("g*/end.*")))
    emulator.bend_collection(SOURCE, list_seconds=1)


@pytest.mark.long
def test_jobs_end_and_begin_while_the_listing_of_a_resumed_run_still_comes(copying, emulator):
    emulator.add({f"d{n}/f": b"x" for n in range(4)})
    copying.config("RECURSIVE = True", "NUM_JOBS = 1", "POLL_SECONDS = 0.2",
                    "def is_file_needed(file):",
                    "    open('asked', 'a').write(file.path + chr(10)); return True")
    interrupted_run(copying, emulator)
    asked = copying.folder / "asked"
    asked.unlink()
    driver, said = copying.start(BATCH), []
    wait_until(lambda: said.append(driver.stderr.readline()) or b"submitted" in said[-1])
    assert any(b"Resuming the interrupted run: 1 processed, 1 job (1000)." in line for line in said)
    assert "d3/f" not in asked.read_text()
    assert driver.communicate()[0].endswith(b"4 processed, 0 failed, 0 not needed\n")
    assert asked.read_text().startswith("d1/f\nd2/f\nd3/f\n")
    assert set(processed(copying).values()) == {1}


def test_a_signal_is_obeyed_while_the_listing_of_a_resumed_run_comes(copying, emulator):
    emulator.add({f"d{n:02d}/f": b"x" for n in range(20)})
    copying.config("RECURSIVE = True", "NUM_JOBS = 1")
    interrupted_run(copying, emulator)
    driver = copying.start(BATCH)
    wait_until(lambda: b"Resuming" in driver.stderr.readline())
    begun = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    assert b"Stopped. " in driver.communicate()[1]
    assert driver.returncode == 130 and time.monotonic() - begun < 10


@pytest.mark.long
def test_no_room_for_what_is_listed_so_far_does_not_stop_a_resumed_run(copying, emulator):
    emulator.add({"d0/f": b"x" * 10, "d1/f": b"x" * 200, "d2/f": b"x" * 900, "d3/f": b"x"})
    copying.config("RECURSIVE = True", "NUM_JOBS = 1", "MAX_BYTES = 1000")
    interrupted_run(copying, emulator)
    copying.process("[[ $1 != */d1/f ]] || exit 3", *KEEP)
    done = copying.run(BATCH)
    assert done.returncode == 1 and "leaves no room for another file" in done.err
    assert f"\nrm -r {copying.downloads}/g" in done.err
    assert processed(copying) == {"d0/f": 1, "d3/f": 1}


# ---- of another source, cluster or user ----


def test_a_run_of_which_nothing_came_is_forgotten_when_path_is_mended(copying, emulator):
    emulator.add({"a": b"1"})
    copying.config("PATH = '/home/share/gdata'")
    assert copying.run(BATCH).returncode == 2
    copying.config("PATH = '/home/share/godata'")
    assert last_line(copying.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_an_interrupted_run_of_another_cluster_is_refused_and_its_jobs_are_left_alone(
        copying, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(copying, tmp_path, "squeue", '[ "$SLURM_CLUSTERS" != other ] || exec "$real" "$@"',
               "echo 'JOBID|NAME|STATE|REASON'")
    cancelled = calls_of(copying, tmp_path, "scancel")
    copying.config("GRACE_SECONDS = 0")
    there = dict(copying.env, SLURM_CLUSTERS="other")
    here, copying.env = copying.env, there
    job_id = interrupt(copying)
    before, copying.env = journal(copying), here
    done = copying.run(BATCH)
    assert done.returncode == 2
    assert ("There is an interrupted run here, with cluster = 'stand-in SLURM_CLUSTERS=other', not "
            "'stand-in'.\n" in done.err)
    assert cancelled() == [] and journal(copying) == before
    assert state_of(tmp_path, job_id) == "RUNNING"
    (copying.folder / "go").touch()
    copying.env = there
    assert last_line(copying.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert processed(copying) == {"a": 1}


def test_an_interrupted_run_of_another_source_is_told_with_its_jobs_by_a_dry_run_too(
        copying, emulator):
    emulator.add({"a": b"1", "sub/b": b"2"})
    job_id = interrupt(copying)
    copying.config("PATH = '/home/share/godata/sub'")
    for options, status in ((), 2), (("--dry-run",), 0):
        done = copying.run(BATCH, *options)
        assert done.returncode == status
        assert ("There is an interrupted run here, with PATH = '/home/share/godata/', not "
                "'/home/share/godata/sub/'.\n" in done.err)
        assert "\nscancel %s\n" % job_id in done.err
        assert "remove the folder %s" % copying.jobs in done.err
    (copying.folder / "go").touch()


IDENTITY = {"SOURCE_ENDPOINT_ID": "x", "PATH": "/a/", "WORKING_DIR": "/work", "user": "me",
            "cluster": "here SLURM_CLUSTERS=here"}


def refusal(tmp_path, **differs):
    """What is said of an interrupted run, with a job, of which this differs; None if it may go
    on."""
    driver = make_driver(DRIVER, tmp_path)
    driver.append("run", run="abcde", identity=IDENTITY)
    driver.append("pack", pack="g1-abcde", files=[["a", 1, None]])
    driver.append("submit", pack="g1-abcde", attempt=1, results=0)
    driver.append("queued", pack="g1-abcde", id="12")
    try:
        DRIVER.refuse_another(driver, dict(IDENTITY, **differs))
    except DRIVER.helper.UserError as problem:
        return str(problem)


@pytest.mark.parametrize("name,value", [
    ("SOURCE_ENDPOINT_ID", "y"), ("PATH", "/b/"), ("user", "a colleague"),
    ("cluster", "elsewhere")])
def test_an_interrupted_run_of_another_one_is_refused_with_how_to_forget_it(
        name, value, tmp_path):
    assert refusal(tmp_path, **{name: value}) == (
        "There is an interrupted run here, with %s = %r, not %r.\nFinish it as it was begun; or, "
        "to forget it, cancel its jobs:\nSLURM_CLUSTERS=here scancel 12\nand remove the folder "
        "%s/jobs" % (name, IDENTITY[name], value, tmp_path))


def test_the_jobs_of_a_copied_folder_s_run_are_not_to_be_cancelled(tmp_path):
    assert refusal(tmp_path, WORKING_DIR="/copy") == (
        "There is an interrupted run here, with WORKING_DIR = '/work', not '/copy'.\nFinish it as "
        "it was begun; or, to forget it, remove the folder %s/jobs" % tmp_path)


def test_a_run_is_told_from_another_one_by_these(tmp_path, monkeypatch):
    driver = make_driver(DRIVER, tmp_path, SCHEDULER="slurm", PATH="/a/b")
    monkeypatch.setattr(DRIVER, "cluster_name", lambda scheduler: "here")
    (tmp_path / "linked").symlink_to(tmp_path)
    driver.config.WORKING_DIR = str(tmp_path / "linked")
    assert DRIVER.identity_of(driver.config, driver.scheduler) == {
        "SOURCE_ENDPOINT_ID": SOURCE, "PATH": "/a/b/", "DOWNLOAD_DIR": driver.config.DOWNLOAD_DIR,
        "WORKING_DIR": str(tmp_path), "user": DRIVER.USER, "scheduler": "slurm", "cluster": "here"}


@pytest.mark.parametrize("differs", [{}, {"cluster": None}], ids=str)
def test_the_same_run_goes_on_also_where_the_cluster_does_not_tell_its_name(differs, tmp_path):
    assert refusal(tmp_path, **differs) is None


@pytest.mark.long
def test_a_copied_folder_with_an_interrupted_run_is_noticed_at_once(copying, emulator):
    emulator.add({"a": b"1"})
    interrupt(copying)
    original, copy = copying.folder, copying.folder.parent / "copy"
    shutil.copytree(str(original), str(copy), symlinks=True)
    copying.folder = copy
    done = copying.run(BATCH)
    assert done.returncode == 2
    assert "WORKING_DIR = %r, not %r." % (str(original), str(copy)) in done.err
    folder = re.search("remove the folder (.*)", done.err).group(1)
    assert folder == str(copy / "jobs")
    shutil.rmtree(folder)
    (copy / "go").touch()
    assert last_line(copying.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    (original / "go").touch()


# ---- cleared away ----


def test_what_a_killed_driver_did_not_clear_away_is_gone_after_the_next(copying, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    copying.config("NUM_JOBS = 1")
    copying.process('[ "$GLOBUS_NAME" = a ] || sleep 1', *KEEP)
    driver = copying.start(BATCH)
    wait_until(lambda: b"processed a" in driver.stderr.readline())
    driver.kill()
    driver.communicate()
    name = next(event["pack"] for event in journal(copying) if event["event"] == "pack")
    for folder in (copying.jobs / name, copying.downloads / name, copying.jobs / "g4-other"):
        folder.mkdir(exist_ok=True)
        (folder / "log").write_text("left behind")
    assert copying.run(BATCH).returncode == 0
    assert sorted(os.listdir(str(copying.jobs))) == ["driver.lock", "journal.jsonl"]
    assert list(copying.downloads.iterdir()) == []
    assert processed(copying) == {"a": 1, "b": 1}


def test_a_folder_in_jobs_of_a_run_that_is_over_goes_away(tmp_path):
    driver, folder = make_driver(DRIVER, tmp_path), tmp_path / "jobs" / "g4-other"
    folder.mkdir()
    for name in ("files", "moved", "gone.1", "end.2.7.node-1-2.0.0", "log", "0.log", "arrived"):
        (folder / name).write_text("")
    DRIVER.find_kept(driver)
    assert not folder.exists() and driver.kept == {}


def test_a_failure_stays_with_what_tells_of_it(tmp_path):
    driver = make_driver(DRIVER, tmp_path)
    name = leave_failure(driver, "a")
    DRIVER.find_kept(driver)
    assert list(driver.kept) == ["a"] and (tmp_path / "jobs" / name / "0.log").exists()
    assert (tmp_path / "downloads" / name / "a").exists()


@pytest.mark.parametrize("gone", ["files", "settings.json", "arrived", "results"])
def test_a_folder_in_jobs_that_was_half_removed_when_the_driver_was_killed_goes_away(
        gone, tmp_path):
    driver = make_driver(DRIVER, tmp_path)
    name = leave_failure(driver, "a")
    removed = list((tmp_path / "jobs" / name).glob(gone + "*"))
    assert removed
    shutil.rmtree(str(tmp_path / "downloads" / name))  # which goes first
    for path in removed:
        path.unlink()
    DRIVER.find_kept(driver)
    assert driver.kept == {} and not (tmp_path / "jobs" / name).exists()


def test_the_log_of_a_failure_that_has_since_succeeded_goes_away(copying, emulator):
    emulator.add({"a": b"1", "b": b"1"})
    copying.process("[ -e fixed ] || exit 3", *KEEP)
    copying.run(BATCH)
    assert len(list(copying.jobs.glob("*/0.log"))) == 2
    (copying.folder / "fixed").touch()
    copying.run(BATCH, "--limit", "1")  # the other one's stays
    assert len(list(copying.jobs.glob("*/0.log"))) == 1
    assert not (copying.jobs / "failed.txt").exists()  # it is about this run
    copying.run(BATCH)
    assert sorted(os.listdir(str(copying.jobs))) == ["driver.lock", "journal.jsonl"]
