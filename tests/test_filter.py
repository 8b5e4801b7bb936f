"""globus-batch-download.py, "what is to be done": is_file_needed, --dry-run, --limit."""
import re

import pytest
from conftest import BATCH, KEEP, check_err, contents, last_line, processed, wait_until


def test_dry_run_lists_what_is_needed_and_submits_nothing(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"22", "c": b"333"})
    stand_in.config("def is_file_needed(file): return file.size > 1")
    done = stand_in.run(BATCH, "--dry-run")
    assert done.returncode == 0
    assert [line.split() for line in done.out.splitlines()] == [
        ["2", "b"], ["3", "c"], "2 to process, 0 refused, 1 not needed".split()]
    assert not stand_in.jobs.exists()


def test_the_filter_sees_path_size_and_date(stand_in, emulator):
    emulator.add({"sub/a": b"123"})
    stand_in.config("RECURSIVE = True", "def is_file_needed(file):",
                    "    print(repr((file.path, file.size, file.last_modified)))",
                    "    return False")
    done = stand_in.run(BATCH)
    assert re.match(r"\('sub/a', 3, '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00'\)", done.out)
    assert last_line(done) == "0 processed, 0 failed, 1 not needed"


def test_limit_processes_that_many(stand_in, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(5)})
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH, "--limit", "2")) == "2 processed, 0 failed, 0 not needed"
    assert len(processed(stand_in)) == 2


def test_files_beyond_the_limit_are_counted_so_that_the_numbers_add_up(stand_in, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(5)})
    done = stand_in.run(BATCH, "--limit", "2")
    assert done.out.splitlines()[-2:] == [
        "3 files left out by --limit",
        "2 processed, 0 failed, 0 not needed"]


def test_a_limit_takes_a_spread_of_the_list_and_the_log_begins_with_it(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(30)})
    done = stand_in.run(BATCH, "--dry-run", "--limit", "3")
    assert [line.split()[-1] for line in done.out.splitlines()[:3]] == ["f09", "f19", "f29"]
    assert done.out.endswith(
        "27 files left out by --limit\n3 to process, 0 refused, 0 not needed\n")
    done = stand_in.run(BATCH, "--limit", "3")
    assert "3 of 30 files to process (3 B), 0 not needed" in done.err.splitlines()[0]
    assert last_line(done) == "3 processed, 0 failed, 0 not needed"
    assert sorted(path.name for path in stand_in.results.iterdir()) == [
        "f09.sha256", "f19.sha256", "f29.sha256"]


def test_a_filter_that_still_wants_what_was_processed_is_told_of_while_the_run_goes_on(
        stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("NUM_JOBS = 1", "helper.ARRIVAL_SECONDS = 0.5",
                    "def is_file_needed(file): return True")
    stand_in.process('[ "$GLOBUS_NAME" = a ] || until [ -e go ]; do sleep 0.1; done')
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"is_file_needed still wants 1 of the 1 processed file, such as a."
               in driver.stderr.readline())
    (stand_in.folder / "go").touch()
    out, err = driver.communicate()
    assert b"still wants" not in err
    assert out.endswith(b"2 processed, 0 failed, 0 not needed\n")


def test_a_filter_that_fails(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("def is_file_needed(file): return file.sise > 3")
    check_err(stand_in.run(BATCH), 2, "is_file_needed failed on 'a'", "sise", lines=1)


def test_a_filter_whose_answer_is_neither_true_nor_false(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("class Series:", "    def __eq__(self, other):",
                    "        raise ValueError('The truth value of a Series is ambiguous')",
                    "def is_file_needed(file): return Series()")
    check_err(stand_in.run(BATCH), 2, "is_file_needed failed on 'a'", "ambiguous", lines=1)


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=str)
def test_a_second_data_set_whose_names_repeat_is_told(options, stand_in, emulator):
    emulator.add({"run1/S01": b"1", "run2/S01": b"2"})
    stand_in.config("PATH = '/home/share/godata/run1'")
    stand_in.run(BATCH)
    stand_in.config("PATH = '/home/share/godata/run2'")
    stand_in.run(BATCH, *options)
    done = stand_in.run(BATCH, *options)  # still, as long as nothing came of it
    assert "The last run here was for /home/share/godata/run1/ of collection" in done.err
    assert "skips 1 file of this one." in done.err and "folder for its results" in done.err


def test_the_same_data_set_again_is_not_taken_for_another(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.run(BATCH)
    stand_in.config("PATH = '/home/share/godata'")  # it had a slash at its end
    assert "The last run here" not in stand_in.run(BATCH).err


@pytest.mark.parametrize("body,words", [
    ("file.size > 3", "is_file_needed('a') returned None; it must return True or False"),
    ("return file.path", "is_file_needed('a') returned 'a'"),
    ("return os.environ['NOT_SET']", "is_file_needed failed on 'a': KeyError: 'NOT_SET'"),
    ("return 1 / 0", "is_file_needed failed on 'a': ZeroDivisionError: division by zero"),
])
def test_a_filter_without_an_answer_is_an_error_with_its_line(body, words, stand_in, emulator):
    emulator.add({"a": b"1"})
    number = len((stand_in.folder / "config.py").read_text().splitlines()) + 2
    stand_in.config("def is_file_needed(file): " + body)
    done = stand_in.run(BATCH, "--dry-run")
    assert done.returncode == 2 and done.err.count("\n") == 1
    assert done.err.startswith("config.py, line %d: %s" % (number, words))


def test_a_filter_that_still_wants_what_was_processed_is_told_once(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.process("true")
    done = stand_in.run(BATCH)
    assert "is_file_needed still wants 2 of the 2 processed files, such as a.\n" in done.err
    assert done.err.count("still wants") == 1


def test_a_filter_that_fails_at_the_end_does_not_hide_the_result(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("def is_file_needed(file): return not os.listdir(WORKING_DIR + '/results')")
    stand_in.process("true", "rmdir results")
    stand_in.results.mkdir()
    done = stand_in.run(BATCH)
    assert "is_file_needed failed on 'a': FileNotFoundError" in done.err
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"


def test_a_dry_run_on_a_terminal_shows_nothing_but_its_list(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    *_, screen = stand_in.watch(BATCH, "--dry-run")
    assert [line.strip() for line in screen.display if line.strip()] == [
        "1  a", "2  b", "2 to process, 0 refused, 0 not needed"]


def test_the_numbers_of_a_dry_run_have_separators(stand_in, emulator):
    emulator.bend(crowds={"/home/share/godata": 1200})
    assert last_line(stand_in.run(BATCH, "--dry-run")).startswith("1,200 to process, ")


@pytest.mark.parametrize("modified", [None, 7])
def test_a_filter_may_compare_a_date_that_globus_does_not_know(modified, stand_in, emulator):
    emulator.fault("/ls", patch={"total": 1, "DATA": [
        {"name": "a", "type": "file", "size": 1, "last_modified": modified}]})
    stand_in.config("def is_file_needed(file): return file.last_modified < '2026'")
    done = stand_in.run(BATCH, "--dry-run")
    assert done.returncode == 0
    assert last_line(done) == "1 to process, 0 refused, 0 not needed"


@pytest.mark.parametrize("files_per_job", [1, 2])
def test_files_without_a_date_go_through_a_batch(files_per_job, stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    emulator.fault("/ls", patch={"total": 2, "DATA": [
        {"name": name, "type": "file", "size": 1, "last_modified": None} for name in "ab"]})
    stand_in.config("FILES_PER_JOB = %d" % files_per_job)
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed", done.out
    assert contents(stand_in.folder / "out") == {"a": b"1", "b": b"2"}
