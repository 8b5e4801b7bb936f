"""DOWNLOAD_BY = "driver": the driver asks Globus for the files, the jobs only process them."""
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request

import pytest
from conftest import (
    BATCH,
    KEEP,
    SOURCE,
    contents,
    journal,
    last_line,
    processed,
    put_before,
    wait_until,
)


@pytest.fixture
def driven(stand_in):
    """A site whose driver downloads, packs of two."""
    stand_in.config("DOWNLOAD_BY = 'driver'", "FILES_PER_JOB = 2", "NUM_JOBS = 2",
                    "POLL_SECONDS = 0.5")
    stand_in.process(*KEEP)
    return stand_in


def in_another_world(site, tmp_path, command):
    """Jobs begin with this command before their shell."""
    put_before(site, tmp_path, "sbatch", 'cat >"$0.$$.script"',
               'echo "exec %s bash $0.$$.script" | "$real" "$@"' % command)


def test_jobs_need_no_network_no_token_and_no_home(driven, emulator, tmp_path):
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "--net", "true"], check=False).returncode:
        pytest.skip("unshare --net is not allowed here")
    emulator.add({"f%d" % n: b"x" for n in range(3)})
    in_another_world(driven, tmp_path, "%s --net %s HOME=/nowhere" % (unshare, shutil.which("env")))
    driven.process('[ "$HOME" = /nowhere ] || exit 9', "! : >/dev/tcp/127.0.0.1/%s || exit 8"
                   % emulator.url.rstrip("/").rpartition(":")[2], *KEEP)
    assert last_line(driven.run(BATCH)) == "3 processed, 0 failed, 0 not needed"


@pytest.mark.long
def test_a_transfer_task_is_taken_over_after_a_kill(driven, emulator):
    files = emulator.add({"f%d" % n: b"x" for n in range(8)})
    emulator.bend(task_seconds=3)
    driver = driven.start(BATCH)
    wait_until(lambda: len(emulator.tasks()) == 3)
    driver.kill()
    driver.communicate()
    assert last_line(driven.run(BATCH)) == "8 processed, 0 failed, 0 not needed"
    sent = [item["source_path"] for task in emulator.tasks() for item in task["request"]["DATA"]]
    assert len(sent) == len(set(sent)) == len(files)


@pytest.mark.long
def test_there_are_never_more_than_three_tasks_and_twice_num_jobs_packs_ahead(driven, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(40)})
    driven.config("NUM_JOBS = 2")
    driven.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = driven.start(BATCH)
    wait_until(lambda: len(emulator.tasks()) == 6)  # two at work and four ahead
    time.sleep(2)
    assert len(emulator.tasks()) == 6
    (driven.folder / "go").touch()
    most = 0
    while driver.poll() is None:
        most = max(most, sum(task["status"] == "ACTIVE" for task in emulator.tasks()))
    assert driver.communicate()[0].endswith(b"40 processed, 0 failed, 0 not needed\n")
    assert most <= 3


def test_the_loop_is_not_held_up_while_globus_is_slow_and_the_collection_is_named(
        driven, emulator):
    emulator.add({"a": b"x", "b": b"x", "c": b"x"})
    driven.config("FILES_PER_JOB = 1")
    emulator.bend(troubles=[{"path": "c$", "code": "CONNECT_FAILED"}])
    driver = driven.start(BATCH)
    said = []
    wait_until(lambda: said.append(driver.stderr.readline().decode())
               or "All downloads wait" in said[-1])
    assert "the collection's server cannot be reached" in said[-1]
    assert "/c, on the source collection (Globus Tutorial Collection 1)" in said[-1]
    wait_until(lambda: len(processed(driven)) == 2)
    emulator.bend(troubles=[])
    assert driver.communicate()[0].endswith(b"3 processed, 0 failed, 0 not needed\n")


def test_the_loop_is_not_held_up_while_globus_does_not_answer(driven, emulator):
    emulator.add({"a": b"x", "b": b"x", "c": b"x"})
    driven.config("FILES_PER_JOB = 1")
    emulator.fault("POST /v0.10/transfer", times=1, skip=1, delay=300)
    driver = driven.start(BATCH)
    wait_until(lambda: len(processed(driven)) == 2)
    driver.kill()
    driver.communicate()
    assert last_line(driven.run(BATCH)) == "3 processed, 0 failed, 0 not needed"
    assert len(emulator.tasks()) == 3


@pytest.mark.long
def test_an_outage_is_told_once_and_waited_out(driven, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    emulator.fault("POST /v0.10/transfer", times=6, status=503, text="<html>down</html>")
    done = driven.run(BATCH)
    assert last_line(done) == "4 processed, 0 failed, 0 not needed"
    assert done.err.count("All downloads wait: ") == 1
    assert done.err.count("Trying again until it works.") == 1


def test_lost_answers_and_a_refused_job_cost_no_second_transfer(driven, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    emulator.fault("POST /v0.10/transfer", times=3, drop="after")
    put_before(driven, tmp_path, "sbatch", 'mkdir "$0.first" 2>/dev/null || exec "$real" "$@"',
               'echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1')
    done = driven.run(BATCH)
    assert last_line(done) == "4 processed, 0 failed, 0 not needed"
    assert "did not accept a job: error: QOSMaxSubmitJobPerUserLimit" in done.err
    sent = [item["source_path"] for task in emulator.tasks() for item in task["request"]["DATA"]]
    assert len(sent) == len(set(sent)) == 4


def test_what_this_machine_or_globus_refuses_for_a_moment_is_tried_again_and_costs_no_file(
        driven, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(10)})  # two packs: of one file, it would fail
    emulator.fault("POST /v0.10/transfer", times=1, status=403, json={
        "code": "PermissionDenied", "message": "not yours"})
    driven.config("NUM_JOBS = 1", "import errno", "fork, refused = os.fork, []",
                  "def refuse_some():", "    refused.append(1)", "    if len(refused) < 3:",
                  "        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))",
                  "    return fork()", "os.fork = refuse_some")
    with open(str(driven.folder / "helper.py"), "a") as file:
        file.write("def submission_id(client, ask=submission_id):\n"
                   "    try:\n        os.mkdir(%r)\n    except FileExistsError:\n"
                   "        return ask(client)\n    raise OSError('no CA bundle')\n"
                   % str(tmp_path / "once"))
    done = driven.run(BATCH)
    assert last_line(done) == "10 processed, 0 failed, 0 not needed"
    assert done.err.count("Waiting: Resource temporarily unavailable: ") == 1
    assert re.search(r"The download of g\d+-\w{5} ended early: Globus says: not yours", done.err)
    assert "ended early: no CA bundle.\nIt will be tried again." in done.err


def test_each_file_that_cannot_be_brought_fails_alone_with_its_reason(driven, emulator):
    source = emulator.source / "home/share/godata"
    emulator.add({"f%d" % n: b"x" for n in range(7)})
    emulator.bend(troubles=[
        {"path": "f0$", "code": "IS_A_DIRECTORY", "is_source": False},
        {"path": "f6$", "code": "PERMISSION_DENIED"}], retry_seconds=0.2)
    emulator.fault("/stat.*path=.*f2$", status=403, json={
        "code": "PermissionDenied", "message": "not yours"})
    driven.config("MAX_FAILURES_IN_A_ROW = None", "helper.ERRORS['IS_A_DIRECTORY'] = ('', 1)",
                  "helper.ARRIVAL_SECONDS = 1", "def is_file_needed(file):",
                  "    if file.path == 'f6': open(%r, 'w').write('more')" % str(source / "f2"),
                  "    return True")
    done = driven.run(BATCH)
    assert last_line(done) == "4 processed, 3 failed, 0 not needed"
    assert "FAILED f0: cancelled, because it cannot succeed: " in done.out
    # of this one Globus will not tell the size
    assert "FAILED f2: came with 4 bytes, but was listed with 1: did it change" in done.out
    # not: cancelled, after a minute of trying
    assert "FAILED f6: permission denied" in done.out
    assert processed(driven) == {"f%d" % n: 1 for n in (1, 3, 4, 5)}


def test_a_login_that_lapses_stops_the_driver_and_loses_nothing(driven, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(14)})
    driver = driven.start(BATCH)
    wait_until(lambda: b"processed" in driver.stderr.readline())
    emulator.bend_collection(SOURCE, session_policy={"session_required_policies": ["p"]})
    emulator.fault("POST /v0.10/transfer", times=1, status=403, json={
        "code": "AuthPolicyFailed", "message": "x", "authorization_parameters": {
            "session_required_policies": ["p"]}})
    err = driver.communicate()[1].decode()
    assert driver.returncode == 1 and "Then start this script again" in err
    emulator.bend_collection(SOURCE, session_policy=None)
    emulator.clear_faults()
    assert last_line(driven.run(BATCH)) == "14 processed, 0 failed, 0 not needed"
    assert processed(driven) == dict.fromkeys(files, 1)


def test_ctrl_c_says_what_goes_on_without_the_driver_and_what_does_not(driven, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(8)})
    emulator.bend(task_seconds=5)
    driver = driven.start(BATCH)
    wait_until(lambda: b"downloading 2 files" in driver.stderr.readline())
    driver.send_signal(signal.SIGINT)
    err = driver.communicate()[1].decode()
    assert driver.returncode == 130
    assert "of this script will go on, but jobs for their files are submitted only after" in err


@pytest.mark.long
def test_a_run_that_was_interrupted_may_go_on_with_the_other_way(driven, emulator):
    files = emulator.add({"f%d" % n: b"x" for n in range(8)})
    emulator.bend(task_seconds=1)
    driver = driven.start(BATCH)
    wait_until(lambda: len(emulator.tasks()) == 3)
    driver.kill()
    driver.communicate()
    driven.config("DOWNLOAD_BY = 'job'")
    assert last_line(driven.run(BATCH)) == "8 processed, 0 failed, 0 not needed"
    assert processed(driven) == dict.fromkeys(files, 1)
    assert contents(driven.downloads) == {}


@pytest.mark.long
def test_packs_that_wait_are_shown_on_the_bar(driven, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    emulator.bend(task_seconds=2)
    *_, screen = driven.watch(BATCH)
    assert "0 of 4 files, 0 jobs in the queue, 3 packs ahead" in screen.said


def test_the_download_is_journalled_before_globus_is_asked(driven, emulator):
    emulator.add({"a": b"x"})
    emulator.fault("POST /v0.10/transfer", times=1, delay=2)
    driver = driven.start(BATCH)
    wait_until(lambda: any("POST /v0.10/transfer" in line for line in emulator.requests()))
    pack = journal(driven)[-1]
    assert pack["event"] == "pack" and emulator.tasks() == []
    assert json.loads((driven.jobs / pack["pack"] / "submission.1").read_text())["files"] == [0]
    driver.kill()
    driver.communicate()
    assert last_line(driven.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert len(emulator.tasks()) == 1


@pytest.mark.long
def test_a_node_waits_for_a_file_that_it_sees_late_and_asks_about_one_that_it_does_not_see(
        driven, emulator, tmp_path):
    emulator.add({"a": b"x", "b": b"x"})
    put_before(driven, tmp_path, "sbatch", "rm -f %s/*/a" % driven.downloads,
               "file=$(echo %s/*/b)" % driven.downloads,
               '[ ! -e "$file" ] || { mv "$file" %s/late' % tmp_path,
               '(sleep 1; mv %s/late "$file") >/dev/null 2>&1 & }' % tmp_path,
               'exec "$real" "$@"')
    driven.config("FILES_PER_JOB = 1", "NUM_JOBS = 1")
    driven.edit("wrapper.sh", "-gt 60", "-gt 5")
    done = driven.run(BATCH)
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    assert "FAILED a: exit status 1: the file is not there: does " in done.out
    assert "/downloads/g1-" in done.out
    assert processed(driven) == {"b": 1}


@pytest.mark.long
def test_a_pack_that_globus_does_not_take_for_now_does_not_hold_up_the_others(driven, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(8)})
    emulator.fault("POST /v0.10/transfer", times=30, skip=1, status=409, json={
        "code": "ClientError.Conflict.TooManyPendingJobs", "message": "too many"})
    driver = driven.start(BATCH)
    wait_until(lambda: len(processed(driven)) == 2)
    wait_until(lambda: b"All downloads wait: Globus says: too many" in driver.stderr.readline())
    emulator.clear_faults()
    assert driver.communicate()[0].endswith(b"8 processed, 0 failed, 0 not needed\n")


@pytest.mark.long
def test_a_cancel_that_fails_is_tried_again(driven, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(2)})
    emulator.bend(troubles=[{"path": "f1$", "code": "IS_A_DIRECTORY", "is_source": False}],
                  retry_seconds=0.2)
    driven.config("helper.ERRORS['IS_A_DIRECTORY'] = ('', 1)")
    emulator.fault("/cancel", times=3, status=503, text="<html>busy</html>")
    assert last_line(driven.run(BATCH)) == "1 processed, 1 failed, 0 not needed"
    assert sum("/cancel" in line for line in emulator.requests()) >= 4


def test_a_task_that_the_user_cancels_is_not_asked_for_again(driven, emulator):
    emulator.add({"a": b"x", "b": b"x"})
    driven.config("NUM_JOBS = 1")
    emulator.bend(troubles=[{"path": "a$", "code": "CONNECT_FAILED"}], retry_seconds=0.2)
    driver = driven.start(BATCH)
    wait_until(lambda: any(task["faults"] for task in emulator.tasks()))
    task, = emulator.tasks()
    token = json.loads(driven.tokens.read_text())["transfer.api.globus.org"]["access_token"]
    urllib.request.urlopen(urllib.request.Request(
        "%sv0.10/task/%s/cancel" % (emulator.url, task["task_id"]), method="POST",
        headers={"Authorization": "Bearer " + token})).close()
    out = driver.communicate()[0].decode()
    assert out.splitlines()[-1] == "0 processed, 2 failed, 0 not needed"
    assert len(emulator.tasks()) == 1


def interrupted_while_it_downloads(driven, emulator):
    """A run whose driver was killed while its transfer tasks went on; they have ended."""
    driver = driven.start(BATCH)
    wait_until(lambda: len(emulator.tasks()) == 1)
    driver.kill()
    driver.communicate()
    wait_until(lambda: emulator.tasks()[0]["status"] != "ACTIVE")


@pytest.mark.parametrize("meanwhile", ["removed", pytest.param("grown", marks=pytest.mark.long)])
def test_what_has_arrived_while_no_driver_ran_counts_whatever_became_of_the_source(
        meanwhile, driven, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    driven.config("MAX_BYTES = 100", "NUM_JOBS = 1")
    emulator.bend(task_seconds=1)
    interrupted_while_it_downloads(driven, emulator)
    for name in "ab":
        path = emulator.source / "home/share/godata" / name
        path.unlink() if meanwhile == "removed" else path.write_text("x" * 1000)
    emulator.add({"later": b"3"})  # PATH is not to be empty
    assert last_line(driven.run(BATCH, "--limit", "2")) == "2 processed, 0 failed, 0 not needed"
    assert contents(driven.folder / "out") == {"a": b"1", "b": b"2"}


def test_a_task_that_globus_will_not_tell_of_is_cancelled(driven, emulator):
    emulator.add({"a": b"x"})
    emulator.bend(task_seconds=60)
    emulator.fault("GET /v0.10/task/", times=1, status=403, json={
        "code": "PermissionDenied", "message": "not yours"})
    done = driven.run(BATCH)
    assert last_line(done) == "0 processed, 1 failed, 0 not needed"
    assert "FAILED a: Globus says: not yours" in done.out
    assert [task["status"] for task in emulator.tasks()] == ["FAILED"]


@pytest.mark.long
def test_a_reason_that_all_downloads_share_is_told_once_each_time_it_comes(driven, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(6)})
    driven.config("FILES_PER_JOB = 1", "NUM_JOBS = 3")
    emulator.bend(task_seconds=4, retry_seconds=0.2)
    driver, said = driven.start(BATCH), []

    def waiting():
        return [path.read_text() for path in driven.jobs.glob("*/waiting")]

    def has_said(text):
        said.append(driver.stderr.readline().decode())
        return text in said[-1]

    for tasks in (3, 6):
        wait_until(lambda tasks=tasks: len(emulator.tasks()) == tasks)
        emulator.bend_collection(SOURCE, paused_message="an hour off")
        wait_until(lambda: has_said("All downloads wait: "))
        assert "an hour off" in said[-1]
        wait_until(lambda: len(waiting()) == 3)  # the others see it as well
        emulator.bend_collection(SOURCE, paused_message=None)
        wait_until(lambda: not waiting())
    out, err = driver.communicate()
    assert out.endswith(b"6 processed, 0 failed, 0 not needed\n")
    assert "".join([*said, err.decode()]).count("All downloads wait: ") == 2


def test_a_task_that_was_accepted_unheard_and_then_refused_is_cancelled(driven, emulator):
    emulator.add({"a": b"x"})
    emulator.bend(task_seconds=60)
    emulator.fault("POST /v0.10/transfer", times=1, drop="after")
    emulator.fault("POST /v0.10/transfer", times=9, status=403, json={
        "code": "PermissionDenied", "message": "not yours"})
    done = driven.run(BATCH)
    assert last_line(done) == "0 processed, 1 failed, 0 not needed"
    assert [task["status"] for task in emulator.tasks()] == ["FAILED"]


@pytest.mark.long
def test_one_file_that_changed_before_it_was_sent_counts_after_a_kill_as_well(driven, emulator):
    emulator.add({"a": b"x"})
    driven.config("FILES_PER_JOB = 1", "helper.ARRIVAL_SECONDS = 1",
                  "def is_file_needed(file):", "    open(%r, 'w').write('more')"
                  % str(emulator.source / "home/share/godata/a"), "    return True")
    emulator.bend(task_seconds=1)
    interrupted_while_it_downloads(driven, emulator)
    assert last_line(driven.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


@pytest.mark.long
def test_a_refusal_of_all_packs_costs_no_file(driven, emulator):
    emulator.add({"f%03d" % n: b"x" for n in range(100)})
    driven.config("FILES_PER_JOB = 50", "MAX_FAILURES_IN_A_ROW = 4")
    emulator.fault("POST /v0.10/transfer", status=403, json={
        "code": "PermissionDenied", "message": "not yours"})
    done = driven.run(BATCH)
    assert done.returncode == 1 and "files or jobs failed in a row" in done.err
    assert last_line(done) == "0 processed, 0 failed, 0 not needed"
    emulator.clear_faults()
    assert last_line(driven.run(BATCH)) == "100 processed, 0 failed, 0 not needed"


def test_a_file_that_the_task_of_a_killed_driver_did_not_carry_is_not_taken_for_arrived(
        driven, emulator):
    emulator.add({"a": b"x", "b": b"x"})
    driven.config("MAX_BYTES = 2000", "NUM_JOBS = 1", "def is_file_needed(file):",
                  "    open(%r, 'w').write('x' * 1000)"
                  % str(emulator.source / "home/share/godata/a"), "    return True")
    emulator.bend(task_seconds=1)
    interrupted_while_it_downloads(driven, emulator)
    pack, = driven.downloads.iterdir()
    (pack / "a").write_bytes(b"?")  # as long as a was when it was listed
    done = driven.run(BATCH)
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    assert "FAILED a: has grown from 1 to 1,000 bytes since it was listed" in done.out
    assert processed(driven) == {"b": 1}
    task, = emulator.tasks()  # a was not asked for
    assert [os.path.basename(item["source_path"]) for item in task["request"]["DATA"]] == ["b"]


@pytest.mark.long
def test_another_download_dir_has_to_wait_while_files_are_in_the_one_before(driven, emulator):
    emulator.add({"a": b"x"})
    emulator.bend(task_seconds=1)
    interrupted_while_it_downloads(driven, emulator)
    driven.config("DOWNLOAD_DIR = DESTINATION_PATH = %r" % str(driven.folder / "other"))
    done = driven.run(BATCH)
    assert done.returncode == 2
    assert "interrupted run here, with DOWNLOAD_DIR = %r, not " % str(driven.downloads) in done.err
    driven.config("DOWNLOAD_DIR = DESTINATION_PATH = %r" % str(driven.downloads))
    assert last_line(driven.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


@pytest.mark.long
def test_a_refusal_is_told_though_globus_does_not_list_the_tasks_either(driven, emulator):
    emulator.add({"a": b"x"})
    emulator.fault("POST /v0.10/transfer", status=403, json={
        "code": "PermissionDenied", "message": "not yours"})
    emulator.fault("GET /v0.10/task_list.*ACTIVE", status=500, text="<html>down</html>")
    done = driven.run(BATCH)
    assert "FAILED a: Globus says: not yours" in done.out
