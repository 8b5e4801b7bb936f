"""globus-batch-download.py, "start or resume": an interrupted run is taken up, that of another
source, cluster or user is refused, and nothing of a run is left behind."""
import json
import os
import re
import shutil
import signal
import time

import pytest
from conftest import (
    BATCH,
    HOLD,
    KEEP,
    calls_of,
    contents,
    hold,
    journal,
    kill,
    kill_driver_with_a_job,
    kill_with_a_job_at_work,
    last_line,
    let_go,
    processed,
    put_before,
    state_of,
    wait_until,
)

WAIT = "touch begun; until [ -e go ]; do sleep 0.1; done"


# ---- taken up ----


def test_a_killed_driver_started_again_takes_up_its_jobs(every_cluster, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    every_cluster.process("sleep 1", *KEEP)
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
    files = emulator.add({"f%02d" % n: b"x" for n in range(50)})
    packs.process("sleep 0.2", *KEEP)
    for _ in range(4):
        kill_when_one_is_processed(packs.start(BATCH))
    done = packs.run(BATCH)
    assert last_line(done) == "50 processed, 0 failed, 0 not needed"
    assert processed(packs) == dict.fromkeys(files, 1)


def interrupt(site):
    """A batch that was killed while its first job was in process.sh; the job's id."""
    site.process(WAIT, *KEEP)
    driver = site.start(BATCH)
    wait_until((site.folder / "begun").exists)
    driver.kill()
    driver.communicate()
    return next(event["id"] for event in journal(site) if event["event"] == "queued")


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=str)
def test_a_run_that_is_resumed_is_told_with_its_jobs(options, stand_in, emulator):
    emulator.add({"a": b"1"})
    job_id = interrupt(stand_in)
    driver = stand_in.start(BATCH, *options)
    first = driver.stderr.readline().decode()
    (stand_in.folder / "go").touch()
    driver.communicate()
    assert "Resuming the interrupted run: 0 processed, 1 job (%s).\n" % job_id in first


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
    emulator.bend_collection("6c54cade-bde5-45c1-bdea-f4bd71dba2cc", list_seconds=1)


@pytest.mark.long
def test_jobs_end_and_begin_while_the_listing_of_a_resumed_run_still_comes(stand_in, emulator):
    emulator.add({f"d{n}/f": b"x" for n in range(4)})
    stand_in.config("RECURSIVE = True", "NUM_JOBS = 1", "POLL_SECONDS = 0.2",
                    "def is_file_needed(file):",
                    "    open('asked', 'a').write(file.path + chr(10)); return True")
    interrupted_run(stand_in, emulator)
    asked = stand_in.folder / "asked"
    asked.unlink()
    driver, said = stand_in.start(BATCH), []
    wait_until(lambda: said.append(driver.stderr.readline()) or b"submitted" in said[-1])
    assert any(b"Resuming the interrupted run: 1 processed, 1 job (1000)." in line for line in said)
    assert "d3/f" not in asked.read_text()
    assert driver.communicate()[0].endswith(b"4 processed, 0 failed, 0 not needed\n")
    assert asked.read_text().startswith("d1/f\nd2/f\nd3/f\n")
    assert set(processed(stand_in).values()) == {1}


def test_a_signal_is_obeyed_while_the_listing_of_a_resumed_run_comes(stand_in, emulator):
    emulator.add({f"d{n:02d}/f": b"x" for n in range(20)})
    stand_in.config("RECURSIVE = True", "NUM_JOBS = 1")
    interrupted_run(stand_in, emulator)
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"Resuming" in driver.stderr.readline())
    begun = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    assert b"Stopped. " in driver.communicate()[1]
    assert driver.returncode == 130 and time.monotonic() - begun < 10


@pytest.mark.long
def test_no_room_for_what_is_listed_so_far_does_not_stop_a_resumed_run(stand_in, emulator):
    emulator.add({"d0/f": b"x" * 10, "d1/f": b"x" * 200, "d2/f": b"x" * 900, "d3/f": b"x"})
    stand_in.config("RECURSIVE = True", "NUM_JOBS = 1", "MAX_BYTES = 1000")
    interrupted_run(stand_in, emulator)
    stand_in.process("[[ $1 != */d1/f ]] || exit 3", *KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "leaves no room for another file" in done.err
    assert f"\nrm -r {stand_in.downloads}/g" in done.err
    assert processed(stand_in) == {"d0/f": 1, "d3/f": 1}


# ---- of another source, cluster or user ----


def test_an_interrupted_run_of_another_path_is_not_mixed_up(stand_in, emulator):
    emulator.add({"a": b"1", "sub/b": b"2"})
    stand_in.process("sleep 1")
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    driver.kill()
    driver.communicate()
    stand_in.config("PATH = '/home/share/godata/sub'")
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert ("There is an interrupted run here, with PATH = '/home/share/godata/', not "
            "'/home/share/godata/sub/'.\n" in done.err)
    job = next(event["id"] for event in journal(stand_in) if event["event"] == "queued")
    assert "scancel " + job in done.err and "remove the folder %s" % stand_in.jobs in done.err


def test_a_run_of_which_nothing_came_is_forgotten_when_path_is_mended(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("PATH = '/home/share/gdata'")
    assert stand_in.run(BATCH).returncode == 2
    stand_in.config("PATH = '/home/share/godata'")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_jobs_of_an_interrupted_run_are_not_looked_for_on_another_cluster(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue", '[ "$SLURM_CLUSTERS" != other ] || exec "$real" "$@"',
               "echo 'JOBID|NAME|STATE|REASON'")
    stand_in.config("GRACE_SECONDS = 0")
    stand_in.process("touch begun; until [ -e go ]; do sleep 0.1; done", *KEEP)
    there = dict(stand_in.env, SLURM_CLUSTERS="other")
    here, stand_in.env = stand_in.env, there
    driver = stand_in.start(BATCH)
    wait_until((stand_in.folder / "begun").exists)
    driver.kill()
    driver.communicate()
    stand_in.env = here
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert ("There is an interrupted run here, with cluster = 'stand-in SLURM_CLUSTERS=other', not "
            "'stand-in'.\n" in done.err)
    (stand_in.folder / "go").touch()
    stand_in.env = there
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1}


def test_another_cluster_s_run_is_refused_and_nothing_is_cancelled(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("NUM_JOBS = 1", "GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    stand_in.process(*HOLD, *KEEP)
    calls, held = calls_of(stand_in, tmp_path, "scancel"), hold(stand_in, "a")
    before, path = kill_with_a_job_at_work(stand_in), stand_in.env["PATH"]
    put_before(stand_in, tmp_path, "scontrol", 'echo "ClusterName             = elsewhere"')
    put_before(stand_in, tmp_path, "squeue", "echo 'JOBID|NAME|STATE|REASON'")
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert "stand-in" in done.err and "elsewhere" in done.err and str(stand_in.jobs) in done.err
    assert calls() == [] and journal(stand_in) == before
    assert state_of(tmp_path, 1000) == "RUNNING"
    for name in ("scontrol", "squeue"):
        (tmp_path / "before" / name).unlink()
    stand_in.env["PATH"] = path
    held.unlink()
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1, "b": 1}


def test_another_user_s_run_is_refused(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    stand_in.process(*HOLD, *KEEP)
    calls, held = calls_of(stand_in, tmp_path, "scancel"), hold(stand_in, "a")
    path = stand_in.jobs / "journal.jsonl"
    kill_with_a_job_at_work(stand_in)
    text = path.read_text()
    first, _, rest = text.partition("\n")
    run = json.loads(first)
    user, run["identity"]["user"] = run["identity"]["user"], "a colleague"
    path.write_text(json.dumps(run) + "\n" + rest)
    before = journal(stand_in)
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert "'a colleague'" in done.err and repr(user) in done.err
    assert str(stand_in.jobs) in done.err
    assert calls() == [] and journal(stand_in) == before
    path.write_text(text)
    held.unlink()
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1}


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=str)
def test_an_interrupted_run_of_another_source_is_told_with_its_jobs(options, stand_in, emulator):
    emulator.add({"a": b"1", "sub/b": b"2"})
    job_id = interrupt(stand_in)
    stand_in.config("PATH = '/home/share/godata/sub'")
    done = stand_in.run(BATCH, *options)
    (stand_in.folder / "go").touch()
    assert done.returncode == (0 if options else 2)
    assert "PATH = '/home/share/godata/', not '/home/share/godata/sub/'." in done.err
    assert "\nscancel %s\n" % job_id in done.err and str(stand_in.jobs) in done.err


def test_a_copied_folder_with_an_interrupted_run_is_noticed_at_once(stand_in, emulator):
    emulator.add({"a": b"1"})
    interrupt(stand_in)
    original, copy = stand_in.folder, stand_in.folder.parent / "copy"
    shutil.copytree(str(original), str(copy), symlinks=True)
    stand_in.folder = copy
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert "WORKING_DIR = %r, not %r." % (str(original), str(copy)) in done.err
    folder = re.search("remove the folder (.*)", done.err).group(1)
    assert folder == str(copy / "jobs")
    shutil.rmtree(folder)
    (copy / "go").touch()
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    (original / "go").touch()


# ---- cleared away ----


def test_what_a_killed_driver_did_not_clear_away_is_gone_after_the_next(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("NUM_JOBS = 1")
    stand_in.process('[ "$GLOBUS_NAME" = a ] || sleep 2', *KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"processed a" in driver.stderr.readline())
    driver.kill()
    driver.communicate()
    name = next(event["pack"] for event in journal(stand_in) if event["event"] == "pack")
    for folder in (stand_in.jobs / name, stand_in.downloads / name):
        folder.mkdir(exist_ok=True)
        (folder / "log").write_text("left behind")
    assert stand_in.run(BATCH).returncode == 0
    assert sorted(os.listdir(str(stand_in.jobs))) == ["driver.lock", "journal.jsonl"]
    assert list(stand_in.downloads.iterdir()) == []
    assert processed(stand_in) == {"a": 1, "b": 1}


def test_a_folder_in_jobs_of_a_run_that_is_over_goes_away(stand_in, emulator):
    emulator.add({"a": b"1"})
    folder = stand_in.jobs / "g4-abcde"
    folder.mkdir(parents=True)
    for name in ("files", "moved", "gone.1", "end.2.7.node-1-2.0.0", "log", "0.log", "arrived"):
        (folder / name).write_text("")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert sorted(os.listdir(str(stand_in.jobs))) == ["driver.lock", "journal.jsonl"]


@pytest.mark.parametrize("gone", ["files", "settings.json", "arrived", "results"])
def test_a_folder_in_jobs_that_was_half_removed_when_the_driver_was_killed_goes_away(
        gone, stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.process("exit 3")
    assert last_line(stand_in.run(BATCH)) == "0 processed, 1 failed, 0 not needed"
    removed = list(stand_in.jobs.glob("g*/%s*" % gone))
    assert removed
    shutil.rmtree(str(next(stand_in.downloads.glob("g*"))))  # which goes first
    for path in removed:
        path.unlink()
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err
    assert sorted(os.listdir(str(stand_in.jobs))) == ["driver.lock", "journal.jsonl"]
    assert not stand_in.downloaded()


def test_the_log_of_a_failure_that_has_since_succeeded_goes_away(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"1"})
    stand_in.process("[ -e fixed ] || exit 3", *KEEP)
    stand_in.run(BATCH)
    assert len(list(stand_in.jobs.glob("*/0.log"))) == 2
    (stand_in.folder / "fixed").touch()
    stand_in.run(BATCH, "--limit", "1")  # the other one's stays
    assert len(list(stand_in.jobs.glob("*/0.log"))) == 1
    assert not (stand_in.jobs / "failed.txt").exists()  # it is about this run
    stand_in.run(BATCH)
    assert sorted(os.listdir(str(stand_in.jobs))) == ["driver.lock", "journal.jsonl"]
