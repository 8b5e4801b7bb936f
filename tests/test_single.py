"""globus-single-file-download.py and wrapper.sh: what happens inside a job."""
import os
import signal
import subprocess
import sys

import pytest
from conftest import STRANGE_NAMES, contents, wait_until

PATH = "/home/share/godata/"


def run_single(site, name, directory=PATH):
    return site.run("globus-single-file-download.py", "--globus-path", directory, "--file", name)


@pytest.mark.parametrize("name", STRANGE_NAMES[:7] + ["sub dir/it's"])
def test_prints_the_local_path_and_nothing_else(site, emulator, name):
    emulator.add({name: b"data"})
    done = run_single(site, name)
    assert done.returncode == 0, done.err
    assert done.out == str(site.downloads / name) + "\n"
    assert (site.downloads / name).read_bytes() == b"data"


def test_a_missing_file_fails_at_once_with_its_name(site, emulator):
    done = run_single(site, "nothing")
    assert done.returncode == 1
    assert done.err.startswith(PATH + "nothing: is not on the source collection.")
    assert done.out == "" and emulator.tasks() == []


def test_a_directory_is_no_file(site, emulator):
    emulator.add({"sub/a": b""})
    done = run_single(site, "sub")
    assert done.returncode == 1
    assert "is not a file" in done.err


@pytest.mark.parametrize("name", ["../x", "..", "/etc/passwd", "a/../../x", "", "a\nb", "a\x1bb"])
def test_a_name_that_would_leave_the_folder_is_refused_unasked(site, emulator, name):
    done = run_single(site, name)
    assert done.returncode == 2
    assert "would be written outside DOWNLOAD_DIR" in done.err or "control character" in done.err
    assert emulator.requests() == []


@pytest.mark.parametrize("is_source", [True, False], ids=["source", "destination"])
def test_permission_denied_ends_the_task_and_says_which_file(is_source, site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(retry_seconds=0.2, troubles=[
        {"path": "a$", "code": "PERMISSION_DENIED", "is_source": is_source}])
    site.config("helper.ERRORS['PERMISSION_DENIED'] = ('permission denied', 1)")
    done = run_single(site, "a")
    assert done.returncode == 1 and done.out == ""
    assert "permission denied" in done.err and PATH + "a" in done.err
    task, = emulator.tasks()
    # What cannot be read at the source is skipped, and holds up no other file.
    assert task["status"] == "SUCCEEDED" if is_source else (
        task["fatal_error"]["code"] == "CANCELED")


def test_a_permission_error_that_clears_by_itself_is_waited_for(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(retry_seconds=0.5, troubles=[
        {"path": "a$", "code": "PERMISSION_DENIED", "times": 3, "is_source": False}])
    done = run_single(site, "a")
    assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopped_by_a_signal_it_cancels_its_task(site, emulator, number):
    emulator.add({"a": b"1"})
    emulator.bend(task_seconds=60)
    process = site.start("globus-single-file-download.py", "--globus-path", PATH, "--file", "a")
    wait_until(lambda: any(r.startswith("GET /v0.10/task/") for r in emulator.requests()))
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 130
    assert b"is cancelled" in err and out == b""
    assert emulator.tasks()[0]["fatal_error"]["code"] == "CANCELED"


def test_a_transfer_that_fails_does_not_remove_what_was_there_whole(site, emulator):
    emulator.add({"a": b"1"})
    assert run_single(site, "a").returncode == 0
    emulator.bend(troubles=[{"path": "a$", "code": "PERMISSION_DENIED"}])
    site.config("helper.ERRORS['PERMISSION_DENIED'] = ('permission denied', 1)")
    assert run_single(site, "a").returncode == 1
    assert site.downloaded() == {"a": b"1"}


def test_stopped_while_it_submits_it_leaves_no_task_either(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(task_seconds=60)
    emulator.fault("POST /v0.10/transfer", times=1, delay=3, drop="after")
    process = site.start("globus-single-file-download.py", "--globus-path", PATH, "--file", "a")
    wait_until(lambda: any("POST /v0.10/transfer" in r for r in emulator.requests()))
    process.send_signal(signal.SIGTERM)
    process.communicate()
    wait_until(lambda: all(t["status"] == "FAILED" for t in emulator.tasks()))
    assert len(emulator.tasks()) == 1


def test_an_answer_lost_after_submitting_makes_no_second_task(site, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("POST /v0.10/transfer", times=2, drop="after")
    assert run_single(site, "a").returncode == 0
    assert len(emulator.tasks()) == 1


def test_a_task_for_the_same_file_that_is_still_at_work_is_taken_over(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(task_seconds=3)
    first = site.start("globus-single-file-download.py", "--globus-path", PATH, "--file", "a")
    wait_until(emulator.tasks)
    first.kill()
    first.communicate()
    done = run_single(site, "a")
    assert done.returncode == 0
    assert "already has this transfer, as task" in done.err
    assert len(emulator.tasks()) == 1


@pytest.mark.long
def test_an_outage_is_waited_for_and_told(site, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("GET /v0.10/task/", times=4, status=503, text="<html>maintenance</html>")
    done = run_single(site, "a")
    assert done.returncode == 0
    assert "Trying again until it works" in done.err


def test_a_file_that_did_not_arrive_whole_is_a_failure(site, emulator):
    emulator.add({"a": b"12345"})
    emulator.fault("/stat", patch={"size": 7})
    site.config("helper.ARRIVAL_SECONDS = 1")
    done = run_single(site, "a")
    assert done.returncode == 1
    assert PATH + "a: came with 5 bytes, but was listed with 7" in done.err and done.out == ""


def test_no_mail_is_sent_for_each_file(site, emulator):
    emulator.add({"a": b"1"})
    run_single(site, "a")
    request = emulator.tasks()[0]["request"]
    assert not any(request["notify_on_" + how] for how in ("succeeded", "failed", "inactive"))


def test_a_small_file_by_hand_takes_six_requests_and_a_pack_in_a_job_four(stand_in, emulator):
    emulator.add({"a": b"1"})
    run_single(stand_in, "a")
    by_hand = len(emulator.requests())
    assert by_hand <= 6, emulator.requests()  # of which two are for the collections
    stand_in.run("globus-batch-download.py", "--dry-run")
    checks = len(emulator.requests()) - by_hand
    stand_in.run("globus-batch-download.py")
    assert len(emulator.requests()) - by_hand - 2 * checks <= 4, emulator.requests()


def run_wrapper(site, name):
    return subprocess.run(["bash", str(site.folder / "wrapper.sh"), PATH, name],
                          cwd=str(site.folder), env=dict(site.env, PYTHON=sys.executable),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("name", STRANGE_NAMES[::3] + ["sub dir/$deep's/*"])
def test_wrapper_downloads_processes_and_deletes(site, emulator, name):
    emulator.add({name: b"data"})
    done = run_wrapper(site, name)
    assert done.returncode == 0, done.stderr
    assert site.downloaded() == {}
    result, = contents(site.results).values()
    assert result.decode().endswith("  %s\n" % name)
    assert (site.results / (name + ".sha256")).exists()


def test_wrapper_gives_process_sh_the_absolute_path_and_working_dir(site, emulator):
    emulator.add({"a": b"1"})
    site.process('printf "%s\\n" "$1" "$PWD" >seen')
    run_wrapper(site, "a")
    assert (site.folder / "seen").read_text().split("\n")[:2] == [
        str(site.downloads / "a"), str(site.folder)]


def test_wrapper_ends_with_the_status_of_process_sh_and_keeps_the_file(site, emulator):
    emulator.add({"a": b"1"})
    site.process("exit 3")
    assert run_wrapper(site, "a").returncode == 3
    assert site.downloaded() == {"a": b"1"}


def test_wrapper_ends_with_the_status_of_the_download_and_processes_nothing(site):
    site.process("touch processed")
    assert run_wrapper(site, "nothing").returncode == 1
    assert not (site.folder / "processed").exists()


def test_wrapper_runs_a_process_sh_that_is_not_executable(site, emulator):
    emulator.add({"a": b"1"})
    os.chmod(str(site.folder / "process.sh"), 0o644)
    assert run_wrapper(site, "a").returncode == 0


def test_wrapper_is_content_with_a_process_sh_that_moves_the_file_away(site, emulator):
    emulator.add({"a": b"1"})
    site.process('mv -- "$1" moved')
    assert run_wrapper(site, "a").returncode == 0


def stopped_twice(site, emulator):
    """A download that gets a second signal while it cancels its task; what it said."""
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    process = site.start("globus-single-file-download.py", "--globus-path", PATH, "--file", "a")
    wait_until(emulator.tasks)
    emulator.fault("/cancel", times=1, status=503, text="<html>busy</html>")
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: any("/cancel" in line for line in emulator.requests()))
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].decode()
    assert process.returncode == 130
    return said


def test_a_second_signal_does_not_keep_it_from_cancelling_its_task(site, emulator):
    assert "is cancelled" in stopped_twice(site, emulator)
    assert [task["status"] for task in emulator.tasks()] == ["FAILED"]


def test_a_cancel_that_is_refused_for_a_while_is_tried_again(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    site.config("import helper, itertools", "helper.CANCEL_SECONDS = 0.1",
                "helper.backoff = lambda *_: itertools.repeat(0.1)")
    process = site.start("globus-single-file-download.py", "--globus-path", PATH, "--file", "a")
    wait_until(emulator.tasks)
    emulator.fault("/cancel", times=6, status=503, text="<html>busy</html>")
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1].decode()
    assert "Cancelling the transfer task " in said and "in between: busy (HTTP 503)." in said
    assert [task["status"] for task in emulator.tasks()] == ["FAILED"]


def start_slow_cancel(site, emulator):
    """A download whose cancel takes two seconds and more, in which its task goes on."""
    emulator.add({"a": b"x" * 1000000})
    emulator.bend(bytes_per_second=100000, cancel_seconds=2)
    site.config("import helper", "helper.CANCEL_SECONDS = 0.5")
    process = site.start("globus-single-file-download.py", "--globus-path", PATH, "--file", "a")
    wait_until(lambda: site.downloaded().get("a"))
    process.send_signal(signal.SIGTERM)
    return process


def test_a_cancel_that_is_not_over_at_once_is_waited_for(site, emulator):
    said = start_slow_cancel(site, emulator).communicate()[1].decode()
    assert "Globus has accepted the cancel request, but the task has not ended." in said
    assert "; the transfer task " in said and " is cancelled.\n" in said
    assert emulator.tasks()[0]["status"] == "FAILED"


def test_a_task_that_outlives_its_cancel_is_said(site, emulator):
    site.edit("helper.py", "STOP_SECONDS = 60", "STOP_SECONDS = 1")
    process = start_slow_cancel(site, emulator)
    said = process.communicate()[1].decode()
    assert process.returncode == 130
    assert "could not be cancelled: Globus has accepted the cancel request, but" in said
    assert emulator.tasks()[0]["status"] == "ACTIVE"


@pytest.mark.long
def test_a_hopeless_task_that_outlives_its_cancel_is_waited_for(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(retry_seconds=0.2, cancel_seconds=3, troubles=[
        {"path": "a$", "code": "PERMISSION_DENIED", "is_source": False}])
    site.config("import helper", "helper.CANCEL_SECONDS = 0.5",
                "helper.ERRORS['PERMISSION_DENIED'] = ('permission denied', 1)")
    done = run_single(site, "a")
    assert done.returncode == 1
    assert "Waiting: Globus has accepted the cancel request, but the task has not" in done.err
    assert [task["status"] for task in emulator.tasks()] == ["FAILED"]


@pytest.mark.parametrize("status", [
    403, 401, *(pytest.param(status, marks=pytest.mark.long) for status in (400, 404, 410))])
@pytest.mark.parametrize("page", [{"text": "<html><title>Blocked</title>your proxy</html>"},
                                  {"json": {"message": "Forbidden"}}], ids=["page", "document"])
def test_what_a_server_in_between_says_is_waited_out_and_not_taken_for_globus(
        status, page, site, emulator):
    emulator.add({"a": b"1"})
    site.config("import helper, itertools", "helper.backoff = lambda *_: itertools.repeat(0.1)")
    emulator.fault("/stat", times=9, status=status, **page)
    emulator.fault("GET /v0.10/task/", times=9, status=status, **page)
    done = run_single(site, "a")
    assert done.returncode == 0, done.err
    assert "only from a server in between: " in done.err and "(HTTP %d)" % status in done.err
    assert len(emulator.tasks()) == 1


BANNERS = {
    "a line": "print('Loading python/3.11')",
    "a path of another file": "print('/etc/passwd')",
    "several lines": "print('\\n*** maintenance on Monday ***\\n/scratch/\\n')",
}
HIDING = {
    "before, without a line feed": "print('/Welcome! ', end='')",
    "at the end": "import atexit; atexit.register(print, '/Welcome!')",
    "no line feed at the end": "import atexit; atexit.register(print, '/Welcome!', end='')",
}


@pytest.mark.parametrize("banner", BANNERS)
def test_what_else_is_printed_on_stdout_is_not_taken_for_the_path(
        banner, site, emulator, tmp_path):
    emulator.add({"it's a": b"data"})
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(BANNERS[banner] + "\n")
    site.env["PYTHONPATH"] = str(tmp_path / "patch")
    done = run_wrapper(site, "it's a")
    assert done.returncode == 0, done.stderr
    assert site.downloaded() == {} and len(contents(site.results)) == 1


@pytest.mark.parametrize("banner", HIDING)
def test_a_path_that_cannot_be_told_from_a_banner_fails_and_deletes_nothing(
        banner, site, emulator, tmp_path):
    emulator.add({"a": b"data"})
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(HIDING[banner] + "\n")
    site.env["PYTHONPATH"] = str(tmp_path / "patch")
    done = run_wrapper(site, "a")
    assert done.returncode == 1
    assert site.downloaded() == {"a": b"data"} and not site.results.exists()
    assert b"/Welcome!" in done.stderr


def test_wrapper_finds_its_folder_though_cdpath_is_set(site, emulator):
    emulator.add({"a": b"1"})
    env = dict(site.env, PYTHON=sys.executable, CDPATH=str(site.home))
    (site.home / site.folder.name).mkdir()
    done = subprocess.run(["bash", "%s/wrapper.sh" % site.folder.name, PATH, "a"], env=env,
                          cwd=str(site.folder.parent), stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr


def test_an_error_that_ends_the_wait_leaves_no_task_behind(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    emulator.fault("GET /v0.10/task/", times=1, status=403, json={
        "code": "PermissionDenied", "message": "not yours"})
    done = run_single(site, "a")
    assert done.returncode == 1
    assert "is cancelled" in done.err and "not yours" in done.err
    assert [task["fatal_error"]["code"] for task in emulator.tasks()] == ["CANCELED"]
