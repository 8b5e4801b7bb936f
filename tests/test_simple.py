"""globus-simple-download.py: one task for all files, its progress, a summary at the end."""
import signal
import subprocess
import time

from conftest import SIMPLE, strange_tree


def test_a_tree_of_strange_names_arrives_byte_for_byte_by_one_task_with_checksums(site, emulator):
    tree = emulator.add(strange_tree())
    site.config("RECURSIVE = True")
    assert site.run(SIMPLE).returncode == 0
    assert site.downloaded() == tree
    task, = emulator.tasks()
    assert task["verify_checksum"] and task["sync_level"] == 3


def test_a_flat_directory_arrives_and_its_subdirectories_do_not(site, here, emulator):
    emulator.add({"a": b"1", "b": b"22", "sub/c": b"333"})
    done = here.run(SIMPLE)
    assert done.returncode == 0
    assert site.downloaded() == {"a": b"1", "b": b"22"}
    assert done.out.splitlines()[-1].endswith("2 sent, 0 already there, 0 did not arrive.")


def test_the_task_and_its_page_are_told_before_it_ends_and_ctrl_c_leaves_it_running(
        site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(task_seconds=60)
    process = site.start(SIMPLE)
    said = [process.stdout.readline().decode() for _ in range(2)]
    task, = emulator.tasks()
    assert task["status"] == "ACTIVE"
    assert said == ["Transfer task %s\n" % task["task_id"],
                    "https://app.globus.org/activity/%s\n" % task["task_id"]]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert b"continues without this script" in err and b"Traceback" not in err
    assert emulator.tasks()[0]["status"] == "ACTIVE"


def test_an_error_that_ends_the_wait_says_that_the_task_goes_on(here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    emulator.fault("GET /v0.10/task/", times=1, status=403, json={
        "code": "PermissionDenied", "message": "not yours", "authorization_parameters": None})
    done = here.run(SIMPLE)
    assert done.returncode == 1 and "not yours" in done.err
    assert ("continues without this script:\nhttps://app.globus.org/activity/"
            + emulator.tasks()[0]["task_id"]) in done.err


def test_stdout_and_stderr_in_one_log_appear_in_the_order_in_which_they_were_said(site, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("GET /v0.10/task/", times=3, status=503, text="<html>maintenance</html>")
    done = subprocess.run(
        site.command(SIMPLE), cwd=str(site.folder), env=site.env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    order = [done.stdout.find(words) for words in (
        b"1 file, ", b"Transfer task", b"Waiting: ", b"Resumed.", b"Downloads are in")]
    assert order == sorted(order) and order[0] >= 0
    done = subprocess.run(
        site.command(SIMPLE, "--dry-run"), cwd=str(site.folder), env=site.env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert 0 <= done.stdout.find(b"  a\n") < done.stdout.find(b"1 file, ")


def test_a_second_run_sends_nothing_again(here, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    here.run(SIMPLE)
    done = here.run(SIMPLE)
    assert "0 sent, 2 already there" in done.out


def test_dry_run_lists_and_sends_nothing(site, here, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    done = here.run(SIMPLE, "--dry-run")
    assert done.returncode == 0
    assert [line.split() for line in done.out.splitlines()] == [["1", "a"], ["2", "b"]]
    assert emulator.tasks() == [] and not site.downloads.exists()


def test_a_file_that_vanished_is_named_and_the_others_arrive(site, here, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    emulator.bend(troubles=[{"path": "a$", "code": "FILE_NOT_FOUND"}])
    site.config("helper.ARRIVAL_SECONDS = 1")
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert "Did not arrive: a (file not found)\n" in done.out
    assert site.downloaded() == {"b": b"22"}


def test_a_task_that_fails_is_told_at_once_with_each_file_that_is_missing(here, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    emulator.bend(slots=0, speed=3600 * 12)
    begun = time.monotonic()
    done = here.run(SIMPLE)
    assert done.returncode == 1 and time.monotonic() - begun < 30
    assert "The transfer failed: expired" in done.err
    assert "Did not arrive: a\nDid not arrive: b\n" in done.out


def test_an_empty_directory_is_said_and_well(here):
    done = here.run(SIMPLE)
    assert done.returncode == 0
    assert "0 files, 0 B, in /home/share/godata/" in done.err


def test_a_task_that_goes_on_is_told_with_its_page_though_stdout_is_full(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            site.command(SIMPLE), cwd=str(site.folder), env=site.env,
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
    page = "https://app.globus.org/activity/" + emulator.tasks()[0]["task_id"]
    assert done.returncode == 1
    assert "continues without this script:\n" + page in done.stderr.decode()


def start_with_two_in_place(site, here, emulator):
    """Two of three files are there already; the third cannot arrive."""
    emulator.add({"a": b"1", "b": b"22"})
    here.run(SIMPLE)
    emulator.add({"c": b"333"})
    emulator.bend(retry_seconds=0.1, troubles=[{"path": "c$", "code": "NOT_A_FILE"}])
    site.config("import helper", "helper.ERRORS['NOT_A_FILE'] = ('', 1)")


def test_what_a_failed_task_had_found_in_place_is_there_and_whole(site, here, emulator):
    start_with_two_in_place(site, here, emulator)
    done = here.run(SIMPLE)
    assert done.returncode == 1 and done.out.count("Did not arrive: ") == 1
    assert done.out.endswith("3 files: 0 sent, 2 already there, 1 did not arrive.\n")


def test_the_numbers_of_the_summary_add_up_though_globus_s_do_not(site, here, emulator):
    start_with_two_in_place(site, here, emulator)
    emulator.fault("GET /v0.10/task/[^/]*$", patch={"files_skipped": 1})
    done = here.run(SIMPLE)
    assert "Did not arrive: a (it is there, but not verified)\n" in done.out
    assert done.out.endswith("3 files: 0 sent, 0 already there, 3 did not arrive.\n")
