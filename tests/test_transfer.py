"""helper.py, "transfer tasks": submitted once, refused for now, taken over, submitted again when
they expire."""
import signal
import subprocess

import pytest
from conftest import (
    BATCH,
    ONE,
    SIMPLE,
    SINGLE,
    end,
    gcp,
    journal,
    kill,
    last_line,
    output_of,
    start_script,
    wait_for,
    wait_until,
)


def test_a_task_that_expires_is_told_and_submitted_again(site, here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0, speed=3600 * 12)
    here.start(*ONE)
    wait_until(lambda: len(emulator.tasks()) == 2)
    emulator.bend(slots=3, speed=1)
    done = here.end()
    assert done.returncode == 0 and site.downloaded() == {"a": b"1"}
    assert [task["fatal_error"]["code"] for task in emulator.tasks()[:1]] == ["EXPIRED"]
    assert "expired" in done.err


def test_stopped_while_it_is_refused_it_ends_at_once(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(pending_limit=0)
    process = start_script(site, SINGLE)
    wait_for(process, "too many pending tasks")
    process.send_signal(signal.SIGTERM)
    assert "could not be cancelled" in output_of(process)
    assert process.returncode == 130 and emulator.tasks() == []


# What Globus refuses at submission, and takes later.
@pytest.mark.parametrize("bent,healed,words", [
    (gcp(gcp_connected=False), gcp(gcp_connected=True), "is not currently connected to Globus"),
    ({"pending_limit": 0}, {"pending_limit": 100}, "too many pending tasks"),
], ids=["Globus Connect Personal is offline", "too many pending tasks"])
def test_a_submission_that_is_refused_for_now_is_repeated(bent, healed, words, here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(**bent)
    here.start(*ONE).wait_for(words)
    emulator.bend(**healed)
    done = here.end()
    assert "Resumed." in done.err
    assert done.returncode == 0 and len(emulator.tasks()) == 1


def test_a_task_of_ones_own_with_the_same_paths_is_waited_for(here, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("POST /v0.10/transfer", times=1, status=409, json={
        "code": "Conflict", "message": "A transfer with identical paths has not yet completed"})
    done = here.run(SIMPLE)
    assert done.returncode == 0
    assert "Waiting: another transfer task of yours has the same paths." in done.err
    assert len(emulator.tasks()) == 1


def leave(here, emulator, count):
    """Start a download, and leave it when there are so many tasks; they go on."""
    here.start(SIMPLE)
    wait_until(lambda: len(emulator.tasks()) == count)
    here.stop()


def test_a_download_that_is_started_again_takes_up_its_task_unasked(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    first = site.start(SIMPLE)
    wait_until(emulator.tasks)
    kill(first)
    process = site.start(SIMPLE)
    wait_for(process, "already has this transfer, as task")
    emulator.bend(slots=3)
    assert end(process)[1] == 0
    assert sum(line.startswith("POST /v0.10/transfer") for line in emulator.requests()) == 1


def test_of_two_tasks_from_one_path_the_one_with_just_these_files_is_taken_up(here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    leave(here, emulator, 1)
    emulator.add({"b": b"2"})
    leave(here, emulator, 2)
    (emulator.source / "home/share/godata/b").unlink()
    first = emulator.tasks()[0]["task_id"]
    here.start(SIMPLE)
    wait_until(lambda: here.out.startswith("Transfer task %s\n" % first))


def test_a_task_that_has_ended_is_not_taken_over_whatever_the_filter_lets_through(
        site, here, emulator):
    emulator.add({"a": b"1"})
    here.run(SIMPLE)
    emulator.fault("/task_list", patch={"DATA": emulator.tasks()})
    emulator.add({"a": b"another"})
    assert here.run(SIMPLE).returncode == 0
    assert site.downloaded() == {"a": b"another"} and len(emulator.tasks()) == 2


def test_a_submission_id_of_zeros_is_none(here, emulator):
    emulator.add({"a": b"1"})
    zeros = "00000000-0000-0000-0000-000000000000"
    emulator.fault("/submission_id", times=1, patch={"value": zeros})
    assert here.run(SIMPLE).returncode == 0
    assert sum("/submission_id" in line for line in emulator.requests()) == 2


def test_a_task_for_the_same_file_that_is_still_at_work_is_taken_over(site, here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    first = site.start(*ONE)
    wait_until(emulator.tasks)
    kill(first)
    here.start(*ONE).wait_for("already has this transfer, as task")
    emulator.bend(slots=3)
    assert here.end().returncode == 0
    assert len(emulator.tasks()) == 1


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
def test_a_task_that_this_login_may_not_see_is_not_sent_twice_but_asks_for_the_other_login(
        where, stand_in, emulator):
    emulator.add({"a": b"x", "b": b"y"})
    emulator.bend(task_seconds=2)
    stand_in.config("FILES_PER_JOB = 2", "NUM_JOBS = 1", "DOWNLOAD_BY = %r" % where)
    stand_in.process('printf "%s\\n" "$GLOBUS_NAME" >>processed')
    driver = stand_in.start(BATCH)
    task, = wait_until(emulator.tasks)
    driver.kill()
    driver.communicate()
    if where == "job":
        subprocess.run(["scancel", journal(stand_in)[-1]["id"]], check=True, env=stand_in.env)
    emulator.fault("GET /v0.10/task/" + task["task_id"], status=404, json={
        "code": "ClientError.NotFound", "message": "No task found"})
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert "is not to be seen with this login; log in as whoever began it" in done.err
    emulator.clear_faults()
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed", done.err
    assert len(emulator.tasks()) == 1
