"""globus-batch-download.py, "what is to be done": is_file_needed, --dry-run, --limit."""
import re
import types

import pytest
from conftest import BATCH, KEEP, SOURCE, check_err, contents, last_line, wait_until
from in_process import load, make_driver

DRIVER = load("globus-batch-download")
helper = DRIVER.helper


def dry_run(tmp_path, capsys, names, limit=None):
    """The lines of a dry run with files of these names, all of them needed."""
    driver = make_driver(DRIVER, tmp_path, is_file_needed=lambda file: True)
    assert DRIVER.dry_run(driver, [helper.File(name, 1, "", None) for name in names], limit) == 0
    return capsys.readouterr().out.splitlines()


def test_dry_run_lists_what_is_needed_by_path_size_and_date_and_submits_nothing(
        stand_in, emulator):
    emulator.add({"a": b"1", "b": b"22", "sub/c": b"333"})
    stand_in.config("RECURSIVE = True", "def is_file_needed(file):",
                    "    with open(WORKING_DIR + '/asked', 'a') as asked:",
                    "        print((file.path, file.size, file.last_modified), file=asked)",
                    "    return file.size > 1")
    done = stand_in.run(BATCH, "--dry-run")
    assert done.returncode == 0
    assert [line.split() for line in done.out.splitlines()] == [
        ["2", "b"], ["3", "sub/c"], "2 to process, 0 refused, 1 not needed".split()]
    assert not stand_in.jobs.exists()
    *_, last = (stand_in.folder / "asked").read_text().splitlines()
    assert re.fullmatch(r"\('sub/c', 3, '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00'\)", last)


def test_a_limit_takes_so_many_files_a_spread_of_the_list_and_the_numbers_add_up(
        copying, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(30)})
    copying.config("FILES_PER_JOB = 2", "NUM_JOBS = 1")
    done = copying.run(BATCH, "--limit", "3")
    assert "3 of 30 files to process (3 B), 0 not needed" in done.err.splitlines()[0]
    assert done.out.splitlines()[-2:] == [
        "27 files left out by --limit",
        "3 processed, 0 failed, 0 not needed"]
    assert sorted(path.name for path in copying.results.iterdir()) == [
        "f09.sha256", "f19.sha256", "f29.sha256"]


def test_a_dry_run_with_a_limit_takes_the_same_spread(tmp_path, capsys):
    *names, beyond, last = dry_run(tmp_path, capsys, ["f%02d" % n for n in range(30)], 3)
    assert [line.split()[-1] for line in names] == ["f09", "f19", "f29"]
    assert beyond == "27 files left out by --limit"
    assert last == "3 to process, 0 refused, 0 not needed"


def test_a_limit_above_the_number_of_files_leaves_none_out(tmp_path, capsys):
    assert len(dry_run(tmp_path, capsys, "ab", 3)) == 3


def test_a_filter_that_still_wants_what_was_processed_is_told_of_while_the_run_goes_on(
        copying, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    copying.config("NUM_JOBS = 1", "helper.ARRIVAL_SECONDS = 0.5",
                    "def is_file_needed(file): return True")
    copying.process('[ "$GLOBUS_NAME" = a ] || until [ -e go ]; do sleep 0.1; done')
    driver = copying.start(BATCH)
    wait_until(lambda: b"is_file_needed still wants 1 of the 1 processed file, such as a."
               in driver.stderr.readline())
    (copying.folder / "go").touch()
    out, err = driver.communicate()
    assert b"still wants" not in err
    assert out.endswith(b"2 processed, 0 failed, 0 not needed\n")


def test_a_filter_that_fails(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("def is_file_needed(file): return file.sise > 3")
    check_err(stand_in.run(BATCH), 2, "is_file_needed failed on 'a'", "sise", lines=1)


def config_with(*lines):
    """What a config.py with these lines defines."""
    config = types.ModuleType("config")
    exec(compile("import os\n" + "\n".join(lines), "/somewhere/config.py", "exec"), vars(config))
    return config


@pytest.mark.parametrize("body,words", [
    ("file.size > 3", "is_file_needed('a') returned None; it must return True or False"),
    ("return file.path", "is_file_needed('a') returned 'a'"),
    ("return os.environ['NOT_SET']", "is_file_needed failed on 'a': KeyError: 'NOT_SET'"),
    ("return 1 / 0", "is_file_needed failed on 'a': ZeroDivisionError: division by zero"),
    ("return Series()", "is_file_needed failed on 'a': ValueError: The truth value of a Series is "
     "ambiguous"),
])
def test_a_filter_without_an_answer_is_an_error_with_its_line(body, words):
    config = config_with(
        "def is_file_needed(file): " + body, "class Series:", "    def __eq__(self, other):",
        "        raise ValueError('The truth value of a Series is ambiguous')")
    with pytest.raises(helper.UserError) as said:
        DRIVER.is_needed(config, helper.File("a", 1, "", None))
    assert re.sub("line 5", "line 2", str(said.value)).startswith("config.py, line 2: " + words)
    assert said.value.status == 2 and "\n" not in str(said.value)


def test_a_filter_may_answer_with_a_number_that_is_true_or_false():
    config = config_with("def is_file_needed(file): return file.size")
    assert [DRIVER.is_needed(config, helper.File("a", size, "", None)) for size in (0, 1)] == [
        False, True]


def test_a_second_data_set_whose_names_repeat_is_told(copying, emulator):
    emulator.add({"run1/S01": b"1", "run2/S01": b"2"})
    copying.config("PATH = '/home/share/godata/run1'")
    copying.run(BATCH)
    copying.config("PATH = '/home/share/godata/run2'")
    done = copying.run(BATCH)
    assert "The last run here was for /home/share/godata/run1/ of collection" in done.err
    assert "skips 1 file of this one." in done.err and "folder for its results" in done.err


RUN = {"PATH": "/a/", "SOURCE_ENDPOINT_ID": SOURCE}


@pytest.mark.parametrize("path,not_needed,is_told", [
    ("/b", 1, True), ("/b", 0, False), ("/a", 1, False), ("/a/", 1, False)])
def test_the_same_data_set_or_one_without_repeated_names_is_not_taken_for_another(
        path, not_needed, is_told, monkeypatch):
    said = []
    monkeypatch.setattr(helper, "log", said.append)
    DRIVER.report_previous(
        RUN, types.SimpleNamespace(PATH=path, SOURCE_ENDPOINT_ID=SOURCE), not_needed)
    assert len(said) == is_told


@pytest.mark.parametrize("is_processed,identity", [(True, dict(RUN, PATH="/b/")), (False, RUN)])
def test_the_last_run_is_the_last_one_of_which_something_came(is_processed, identity, tmp_path):
    driver = make_driver(DRIVER, tmp_path)
    driver.journal.file.close()
    driver.journal.open(True)
    driver.append("run", version=DRIVER.JOURNAL_VERSION, run="abcde", previous=RUN,
                  identity=dict(RUN, PATH="/b/"))
    if is_processed:
        driver.append("pack", pack="g1-abcde", files=[["a", 1, None]])
        driver.append("over", pack="g1-abcde", failed=[], bytes=1)
    driver.append("finished")
    driver.state = DRIVER.State()
    assert DRIVER.read_journal(driver)
    assert driver.previous == identity


def test_a_filter_that_still_wants_what_was_processed_is_told_once(copying, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    copying.process("true")
    done = copying.run(BATCH)
    assert "is_file_needed still wants 2 of the 2 processed files, such as a.\n" in done.err
    assert done.err.count("still wants") == 1


def test_a_filter_that_fails_at_the_end_does_not_hide_the_result(monkeypatch):
    said, files = [], [helper.File("a", 1, "", None)]
    monkeypatch.setattr(helper, "log", said.append)
    DRIVER.report_disagreement(config_with("def is_file_needed(file): os.rmdir('/nowhere')"), files)
    assert len(said) == 1 and "is_file_needed failed on 'a': FileNotFoundError" in said[0]


def test_a_dry_run_on_a_terminal_shows_nothing_but_its_list(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    *_, screen = stand_in.watch(BATCH, "--dry-run")
    assert [line.strip() for line in screen.display if line.strip()] == [
        "1  a", "2  b", "2 to process, 0 refused, 0 not needed"]


def test_the_numbers_of_a_dry_run_have_separators(tmp_path, capsys):
    *_, last = dry_run(tmp_path, capsys, ["f%d" % n for n in range(1200)])
    assert last.startswith("1,200 to process, ")


@pytest.mark.parametrize("modified", [None, 7])
def test_a_filter_may_compare_a_date_that_globus_does_not_know(modified):
    file = helper.parse_entry(
        "", {"name": "a", "type": "file", "size": 1, "last_modified": modified})
    assert file.last_modified < "2026"


def test_files_without_a_date_go_through_a_batch(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    emulator.fault("/ls", patch={"total": 2, "DATA": [
        {"name": name, "type": "file", "size": 1, "last_modified": None} for name in "ab"]})
    stand_in.config("FILES_PER_JOB = 2", "NUM_JOBS = 1")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed", done.out
    assert contents(stand_in.folder / "out") == {"a": b"1", "b": b"2"}
