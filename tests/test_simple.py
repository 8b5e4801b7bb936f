"""globus-simple-download.py"""
import os
import signal
import subprocess
import time

import pytest
from conftest import contents, strange_tree, wait_until


def test_a_flat_directory_arrives_and_its_subdirectories_do_not(site, emulator):
    emulator.add({"a": b"1", "b": b"22", "sub/c": b"333"})
    done = site.run("globus-simple-download.py")
    assert done.returncode == 0
    assert site.downloaded() == {"a": b"1", "b": b"22"}
    assert done.out.splitlines()[-1].endswith("2 sent, 0 already there, 0 did not arrive.")


def test_a_tree_of_strange_names_arrives_byte_for_byte(site, emulator):
    tree = emulator.add(strange_tree())
    site.config("RECURSIVE = True")
    assert site.run("globus-simple-download.py").returncode == 0
    assert site.downloaded() == tree


def test_it_is_one_task_with_checksums_verified(site, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    site.run("globus-simple-download.py")
    task, = emulator.tasks()
    assert task["verify_checksum"] and task["sync_level"] == 3


def test_the_task_and_its_page_are_told_before_it_ends(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(task_seconds=60)
    process = site.start("globus-simple-download.py")
    said = [process.stdout.readline().decode() for _ in range(2)]
    task, = emulator.tasks()
    assert task["status"] == "ACTIVE"
    assert said == ["Transfer task %s\n" % task["task_id"],
                    "https://app.globus.org/activity/%s\n" % task["task_id"]]
    process.kill()
    process.communicate()


def test_ctrl_c_leaves_the_task_running_and_says_so(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(task_seconds=60)
    process = site.start("globus-simple-download.py")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert b"continues without this script" in err and b"Traceback" not in err
    assert emulator.tasks()[0]["status"] == "ACTIVE"


def test_an_error_that_ends_the_wait_says_that_the_task_goes_on(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    emulator.fault("GET /v0.10/task/", times=1, status=403, json={
        "code": "PermissionDenied", "message": "not yours", "authorization_parameters": None})
    done = site.run("globus-simple-download.py")
    assert done.returncode == 1 and "not yours" in done.err
    assert ("continues without this script:\nhttps://app.globus.org/activity/"
            + emulator.tasks()[0]["task_id"]) in done.err


def test_stdout_and_stderr_in_one_log_appear_in_the_order_in_which_they_were_said(site, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("GET /v0.10/task/", times=3, status=503, text="<html>maintenance</html>")
    done = subprocess.run(
        site.command("globus-simple-download.py"), cwd=str(site.folder), env=site.env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    order = [done.stdout.find(words) for words in (
        b"1 file, ", b"Transfer task", b"Waiting: ", b"Resumed.", b"Downloads are in")]
    assert order == sorted(order) and order[0] >= 0
    done = subprocess.run(
        site.command("globus-simple-download.py", "--dry-run"), cwd=str(site.folder), env=site.env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert 0 <= done.stdout.find(b"  a\n") < done.stdout.find(b"1 file, ")


def test_a_second_run_sends_nothing_again(site, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    site.run("globus-simple-download.py")
    done = site.run("globus-simple-download.py")
    assert "0 sent, 2 already there" in done.out


def test_dry_run_lists_and_sends_nothing(site, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    done = site.run("globus-simple-download.py", "--dry-run")
    assert done.returncode == 0
    assert [line.split() for line in done.out.splitlines()] == [["1", "a"], ["2", "b"]]
    assert emulator.tasks() == [] and not site.downloads.exists()


def test_a_file_that_vanished_is_named_and_the_others_arrive(site, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    emulator.bend(troubles=[{"path": "a$", "code": "FILE_NOT_FOUND"}])
    site.config("helper.ARRIVAL_SECONDS = 1")
    done = site.run("globus-simple-download.py")
    assert done.returncode == 1
    assert "Did not arrive: a (file not found)\n" in done.out
    assert site.downloaded() == {"b": b"22"}


def lie(emulator):
    """List a with 7 bytes; it has one."""
    emulator.add({"a": b"1", "b": b"22"})
    emulator.fault("/ls", skip=0, patch={"DATA": [
        {"name": "a", "type": "file", "size": 7}, {"name": "b", "type": "file", "size": 2}]})


@pytest.mark.parametrize("start", ["first", "second"])
def test_a_file_whose_listed_size_is_no_real_one_is_what_globus_compared(start, site, emulator):
    lie(emulator)
    site.config("helper.ARRIVAL_SECONDS = 1")
    for _ in range(1 + (start == "second")):
        done = site.run("globus-simple-download.py")
    assert done.returncode == 0, done.out
    assert done.err.count("1 file came with another size than was listed, such as a; Globus") == 1
    assert site.downloaded() == {"a": b"1", "b": b"22"}


def test_a_size_that_is_not_that_of_the_destination_is_not_believed(site, emulator, tmp_path):
    lie(emulator)
    other = tmp_path / "another folder"
    other.mkdir()
    (other / "a").write_bytes(b"333")
    (other / "b").write_bytes(b"22")
    site.config("helper.ARRIVAL_SECONDS = 1", "DESTINATION_PATH = %r" % str(site.downloads),
                "DOWNLOAD_DIR = %r" % str(other))
    done = site.run("globus-simple-download.py")
    assert done.returncode == 1
    assert "Did not arrive: a (came with 3 bytes, but was listed with 7" in done.out


def test_a_task_that_fails_is_told_at_once_with_each_file_that_is_missing(site, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    emulator.bend(slots=0, speed=3600 * 12)
    begun = time.monotonic()
    done = site.run("globus-simple-download.py")
    assert done.returncode == 1 and time.monotonic() - begun < 30
    assert "The transfer failed: expired" in done.err
    assert "Did not arrive: a\nDid not arrive: b\n" in done.out


def test_a_folder_that_its_server_cannot_list_is_refused_and_the_rest_arrives(site, emulator):
    emulator.add({"a": b"1", "bad/b": b"2"})
    emulator.fault("/ls.*bad", status=502, json={
        "code": "EndpointError",
        "message": "Command Failed: Error (list)\nDetails: 500 Input/output error"})
    site.config("RECURSIVE = True")
    done = site.run("globus-simple-download.py")
    assert done.returncode == 1
    assert "Refused: 'bad/' cannot be listed: " in done.err
    assert site.downloaded() == {"a": b"1"}


def test_a_page_instead_of_the_destination_is_waited_out(site, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("/stat.*downloads", times=1, status=200, text="<html>maintenance</html>")
    done = site.run("globus-simple-download.py")
    assert done.returncode == 0
    assert "Waiting: Globus sent an unexpected answer" in done.err


def test_a_listing_that_waits_names_its_folder(site, emulator):
    emulator.add({"a": b"1", "slow/b": b"2"})
    emulator.fault("/ls.*slow", times=3, status=502, json={
        "code": "EndpointError", "message": "a problem"})
    site.config("RECURSIVE = True", "import helper, itertools",
                "helper.backoff = lambda *_: itertools.repeat(0.1)")
    done = site.run("globus-simple-download.py", "--dry-run")
    assert done.returncode == 0
    assert "EndpointError" in done.err and ", at /home/share/godata/slow/. Trying" in done.err


def test_an_empty_directory_is_said_and_well(site):
    done = site.run("globus-simple-download.py")
    assert done.returncode == 0
    assert "0 files, 0 B, in /home/share/godata/" in done.err


def test_a_wrong_destination_path_is_told_in_words_that_lead_to_the_mend(site, emulator, tmp_path):
    emulator.add({"a": b"1"})
    site.config("helper.ARRIVAL_SECONDS = 1",
                "DESTINATION_PATH = %r" % str(tmp_path / "elsewhere"))
    done = site.run("globus-simple-download.py")
    assert done.returncode == 1
    assert "DESTINATION_PATH" in done.err
    assert contents(tmp_path / "elsewhere") == {"a": b"1"}


def test_a_listing_in_several_pages_is_complete(site, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(5)})
    page = [{"DATA_TYPE": "file", "name": "f%d" % n, "type": "file", "size": 1,
             "last_modified": "2026-01-01 00:00:00+00:00"} for n in range(2)]
    emulator.fault("/ls", times=1, patch={"DATA": page, "length": 2, "total": 5})
    done = site.run("globus-simple-download.py", "--dry-run")
    assert [line.split()[1] for line in done.out.splitlines()] == ["f%d" % n for n in range(5)]


def test_a_listing_without_its_total_goes_on_after_a_full_page(site, emulator):
    emulator.add(dict.fromkeys("abcde", b"1"))
    emulator.fault("/ls", patch={"total": None})
    site.config("helper.MOST_ENTRIES = 5")
    done = site.run("globus-simple-download.py", "--dry-run")
    assert done.returncode == 0
    assert len([r for r in emulator.requests() if "/ls" in r]) == 2
    assert "5 files, 5 B" in done.err


def test_a_listing_that_stays_incomplete_is_no_listing(site, emulator):
    emulator.add({"a": b"x"})
    emulator.fault("/ls", patch={"total": 5})
    done = site.run("globus-simple-download.py")
    assert done.returncode == 1
    assert "is incomplete: 1 of 5 entries" in done.err
    assert emulator.tasks() == []


def test_a_listing_that_brings_nothing_of_what_it_counts_is_told(site, emulator):
    emulator.fault("/ls", patch={"DATA": [], "total": 5})
    done = site.run("globus-simple-download.py", "--dry-run")
    assert done.returncode == 1
    assert "is incomplete: 0 of 5 entries. Try again." in done.err


def test_a_directory_that_changes_while_it_is_listed_is_told(site, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(5)})
    page = [{"DATA_TYPE": "file", "name": "f0", "type": "file", "size": 1}]
    emulator.fault("/ls", times=1, patch={"DATA": page, "total": 4})
    done = site.run("globus-simple-download.py", "--dry-run")
    assert "changed while it was listed; start again later" in done.err
    assert len(done.out.splitlines()) == 5


def test_a_service_that_does_not_know_the_fields_is_asked_without(site, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("fields=", status=400, json={"code": "BadRequest", "message": "fields?"})
    assert site.run("globus-simple-download.py").returncode == 0
    assert site.downloaded() == {"a": b"1"}


def test_what_is_neither_file_nor_directory_is_left_out_and_named(site, emulator):
    emulator.add({"a": b"1"})
    os.mkfifo(str(emulator.source / "home/share/godata/pipe"))
    done = site.run("globus-simple-download.py")
    assert done.returncode == 0 and site.downloaded() == {"a": b"1"}
    assert "Skipped, neither file nor directory: pipe (pipe)" in done.err


def test_a_task_of_ones_own_with_the_same_paths_is_waited_for(site, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("POST /v0.10/transfer", times=1, status=409, json={
        "code": "Conflict", "message": "A transfer with identical paths has not yet completed"})
    done = site.run("globus-simple-download.py")
    assert done.returncode == 0
    assert "Waiting: another transfer task of yours has the same paths." in done.err
    assert len(emulator.tasks()) == 1

def test_a_stalled_task_says_why(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(task_seconds=1, slots=0)
    process = site.start("globus-simple-download.py")
    process.stdout.readline()
    wait_until(lambda: b"queued at Globus" in process.stderr.readline())
    emulator.bend(slots=3)
    process.communicate()
    assert process.returncode == 0


def test_a_link_to_a_directory_is_left_out_and_named(site, emulator):
    emulator.add({"sub/a": b"1"})
    (emulator.source / "home/share/godata/loop").symlink_to("..")
    site.config("RECURSIVE = True")
    done = site.run("globus-simple-download.py", "--dry-run")
    assert done.out.split() == ["1", "sub/a"]
    assert "loop (a link to a directory)" in done.err


def test_an_unreadable_subdirectory_counts_as_failed(site, emulator):
    emulator.add({"a": b"1", "closed/b": b"2"})
    emulator.bend(troubles=[{"path": "closed", "code": "PERMISSION_DENIED"}])
    site.config("RECURSIVE = True")
    done = site.run("globus-simple-download.py")
    assert done.returncode == 1
    assert "'closed/' cannot be listed" in done.err
    assert site.downloaded() == {"a": b"1"}


def interrupt(site, emulator, count):
    """Start a download, and kill it when there are so many tasks."""
    process = site.start("globus-simple-download.py")
    wait_until(lambda: len(emulator.tasks()) == count)
    process.kill()
    process.communicate()


def test_a_download_that_is_started_again_takes_up_its_task_unasked(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    interrupt(site, emulator, 1)
    process = site.start("globus-simple-download.py")
    wait_until(lambda: b"already has this transfer, as task" in process.stderr.readline())
    emulator.bend(slots=3)
    process.communicate()
    assert process.returncode == 0
    assert sum(line.startswith("POST /v0.10/transfer") for line in emulator.requests()) == 1


def test_of_two_tasks_from_one_path_the_one_with_just_these_files_is_taken_up(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    interrupt(site, emulator, 1)
    emulator.add({"b": b"2"})
    interrupt(site, emulator, 2)
    (emulator.source / "home/share/godata/b").unlink()
    first = emulator.tasks()[0]["task_id"]
    process = site.start("globus-simple-download.py")
    assert process.stdout.readline().decode() == "Transfer task %s\n" % first
    process.kill()
    process.communicate()


def test_a_task_that_goes_on_is_told_with_its_page_though_stdout_is_full(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            site.command("globus-simple-download.py"), cwd=str(site.folder), env=site.env,
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
    page = "https://app.globus.org/activity/" + emulator.tasks()[0]["task_id"]
    assert done.returncode == 1
    assert "continues without this script:\n" + page in done.stderr.decode()


def start_with_two_in_place(site, emulator):
    """Two of three files are there already; the third cannot arrive."""
    emulator.add({"a": b"1", "b": b"22"})
    site.run("globus-simple-download.py")
    emulator.add({"c": b"333"})
    emulator.bend(retry_seconds=0.1, troubles=[{"path": "c$", "code": "NOT_A_FILE"}])
    site.config("import helper", "helper.ERRORS['NOT_A_FILE'] = ('', 1)")


def test_what_a_failed_task_had_found_in_place_is_there_and_whole(site, emulator):
    start_with_two_in_place(site, emulator)
    done = site.run("globus-simple-download.py")
    assert done.returncode == 1 and done.out.count("Did not arrive: ") == 1
    assert done.out.endswith("3 files: 0 sent, 2 already there, 1 did not arrive.\n")


def test_the_numbers_of_the_summary_add_up_though_globus_s_do_not(site, emulator):
    start_with_two_in_place(site, emulator)
    emulator.fault("GET /v0.10/task/[^/]*$", patch={"files_skipped": 1})
    done = site.run("globus-simple-download.py")
    assert "Did not arrive: a (it is there, but not verified)\n" in done.out
    assert done.out.endswith("3 files: 0 sent, 0 already there, 3 did not arrive.\n")


def test_a_task_that_has_ended_is_not_taken_over_whatever_the_filter_lets_through(site, emulator):
    emulator.add({"a": b"1"})
    site.run("globus-simple-download.py")
    emulator.fault("/task_list", patch={"DATA": emulator.tasks()})
    emulator.add({"a": b"another"})
    assert site.run("globus-simple-download.py").returncode == 0
    assert site.downloaded() == {"a": b"another"} and len(emulator.tasks()) == 2


def test_a_submission_id_of_zeros_is_none(site, emulator):
    emulator.add({"a": b"1"})
    zeros = "00000000-0000-0000-0000-000000000000"
    emulator.fault("/submission_id", times=1, patch={"value": zeros})
    assert site.run("globus-simple-download.py").returncode == 0
    assert sum("/submission_id" in line for line in emulator.requests()) == 2


def test_a_path_without_its_first_slash_is_told_what_is_missing(site):
    site.config("PATH = 'home/share/godata'")
    done = site.run("globus-simple-download.py")
    assert done.returncode == 2
    assert done.err.startswith("config.py: PATH = 'home/share/godata' must be an absolute path, "
                               "which begins with a slash")
