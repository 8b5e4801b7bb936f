"""helper.py, "settings": config.py is read once; what makes no sense is a line that names it."""
import pytest
from conftest import BATCH, SIMPLE, check_err


@pytest.mark.parametrize("line,words", [
    ("SOURCE_ENDPOINT_ID = 'mine'", "is not the UUID"),
    ("SOURCE_ENDPOINT_ID = None", "is not the UUID"),
    ("DESTINATION_ENDPOINT_ID = '{6c54cade-bde5-45c1-bdea-f4bd71dba2cc}'", "is not the UUID"),
    ("PATH = 'data'", "absolute path"),
    ("PATH = None", "absolute path"),
    ("PATH = '/a\\nb'", "control character"),
    ("DOWNLOAD_DIR = 'here'", "absolute path"),
    ("DESTINATION_PATH = 'C:/x'", "absolute path"),
    ("WORKING_DIR = 3", "absolute path"),
    ("RECURSIVE = 'yes'", "must be True or False"),
    ("DOWNLOAD_DIR = WORKING_DIR", "a folder of its own"),
    ("DOWNLOAD_DIR = WORKING_DIR + '/x/../jobs/'", "a folder of its own"),
    ("NUM_JOBS = 0", "of at least 1"),
    ("NUM_JOBS = '3'", "of at least 1"),
    ("NUM_JOBS = True", "of at least 1"),
    ("MAX_BYTES = 0", "number of bytes"),
    ("MAX_BYTES = '5G'", "number of bytes"),
    ("SCHEDULER = 'lsf'", "'slurm'"),
    ("RESOURCES = '--comment=\"open'", "split as a shell would"),
    ("RESOURCES = ['--time=1']", "split as a shell would"),
    ("POLL_SECONDS = 0", "number of seconds"),
    ("GRACE_SECONDS = -1", "number of seconds"),
    ("is_file_needed = True", "must be a function"),
    ("del NUM_JOBS", "is missing"),
])
def test_a_setting_that_makes_no_sense(stand_in, emulator, line, words):
    stand_in.config(line)
    name = line.replace("del ", "").split(" =")[0]
    check_err(stand_in.run(SIMPLE), 2, "config.py: " + name, words, lines=1)
    assert emulator.requests() == []


@pytest.mark.parametrize("line", ["NUM_JOBS = ", "NUM_JOBS = three", "import nothing_such"])
def test_a_config_that_python_cannot_run_names_the_line(stand_in, line):
    number = len((stand_in.folder / "config.py").read_text().splitlines()) + 2
    stand_in.config(line)
    check_err(stand_in.run(SIMPLE), 2, "config.py, line %d: " % number, lines=1)


def test_an_appended_working_dir_takes_the_folders_along(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    stand_in.config("WORKING_DIR = %r" % str(tmp_path / "w"))
    assert stand_in.run(BATCH).returncode == 0
    assert (tmp_path / "w" / "downloads").is_dir() and (tmp_path / "w" / "jobs").is_dir()
    assert (tmp_path / "w" / "results" / "a.sha256").exists()


@pytest.mark.parametrize("line", [
    "TOKEN_FILE = 3", "TOKEN_FILE = 'tokens.json'", "FILES_PER_JOB = 0", "FILES_PER_JOB = 5001",
    "DOWNLOAD_BY = 'me'", "MAX_FAILURES_IN_A_ROW = 0"])
def test_a_setting_that_makes_no_sense_is_named(line, stand_in):
    stand_in.config(line)
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and done.err.startswith("config.py: " + line.split()[0])


@pytest.mark.parametrize("name", [
    "FILES_PER_JOB", "DOWNLOAD_BY", "MAX_FAILURES_IN_A_ROW", "TOKEN_FILE"])
def test_an_older_config_is_told_which_setting_it_lacks(name, stand_in, emulator):
    emulator.add({"a": b"1"})
    config = stand_in.folder / "config.py"
    config.write_text("".join(line for line in config.read_text().splitlines(keepends=True)
                              if not line.startswith(name)))
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert done.err == "config.py: %s is missing; see the original config.py\n" % name
    assert emulator.requests() == []


@pytest.mark.parametrize("line,words", [
    ("NUM_JOBS = (3", "SyntaxError: '(' was never closed"),
    ("os.environ['NOT_SET']", "KeyError: 'NOT_SET'")])
def test_a_wrong_line_of_config_is_told_once_with_the_type_of_its_error(line, words, stand_in):
    stand_in.config(line)
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and done.err.count("line") == 1
    assert words.split(":")[0] + ": " in done.err


@pytest.mark.parametrize("name,setting", [
    ("NUMJOBS", "NUM_JOBS"), ("RECURSE", "RECURSIVE"), ("POLL_SECS", "POLL_SECONDS"),
    ("WORK_DIR", "WORKING_DIR"), ("MAXBYTES", "MAX_BYTES")])
def test_a_misspelled_setting_is_an_error(name, setting, stand_in, emulator):
    stand_in.config(name + " = 5")
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and emulator.requests() == []
    assert done.err == "config.py: %s = 5 is not a setting; did you mean %s?\n" % (name, setting)


def test_capital_names_of_the_users_own_are_left_alone(stand_in, emulator):
    stand_in.config("PATH2 = OUTPUT_DIR = SAMPLES = DATA_SET = THREADS = REFERENCE = 5")
    assert stand_in.run(BATCH).returncode == 0
