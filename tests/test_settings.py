"""helper.py, "settings": config.py is read once; what makes no sense is a line that names it."""
import re
import shutil

import pytest
from conftest import BATCH, COLLECTION, DESTINATION, SIMPLE
from in_process import load

helper = load("helper")


@pytest.fixture
def load_config(tmp_path, monkeypatch):
    """A function that reads config.py, with these lines at its end; the settings."""
    config = tmp_path / "config.py"
    shutil.copy(str(COLLECTION / "config.py"), str(config))

    def run(*lines):
        monkeypatch.setattr(helper, "HERE", str(tmp_path))
        helper.read_config.cache_clear()
        destination = "DESTINATION_ENDPOINT_ID = %r" % DESTINATION  # no Globus Connect Personal
        config.write_text("\n".join([config.read_text(), destination, *lines, ""]))
        return helper.load_config()

    run.path = config
    return run


def refusal(load_config, *lines):
    with pytest.raises(helper.UserError) as told:
        load_config(*lines)
    assert told.value.status == 2
    return str(told.value)


def test_config_py_as_it_comes_is_right(load_config, tmp_path):
    config = load_config()
    assert config.DOWNLOAD_DIR == config.DESTINATION_PATH == str(tmp_path / "downloads")


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
    ("TOKEN_FILE = 3", "must be an absolute path"),
    ("TOKEN_FILE = 'tokens.json'", "must be an absolute path"),
    ("FILES_PER_JOB = 0", "from 1 to 5000"),
    ("FILES_PER_JOB = 5001", "from 1 to 5000"),
    ("DOWNLOAD_BY = 'me'", "'job' or 'driver'"),
    ("MAX_FAILURES_IN_A_ROW = 0", "of at least 1, or None"),
])
def test_a_setting_that_makes_no_sense_is_named_in_a_line(line, words, load_config):
    name = line.replace("del ", "").split(" =")[0]
    said = refusal(load_config, line)
    assert said.startswith("config.py: " + name) and words in said and "\n" not in said


@pytest.mark.parametrize("script", [SIMPLE, BATCH])
def test_a_setting_that_makes_no_sense_ends_a_script_before_it_asks_globus(
        script, site, emulator):
    site.config("NUM_JOBS = 0")
    done = site.run(script)
    assert done.returncode == 2
    assert done.err == "config.py: NUM_JOBS = 0 must be an integer of at least 1\n"
    assert emulator.requests() == []


@pytest.mark.parametrize("line,words", [
    ("NUM_JOBS = ", "SyntaxError: invalid syntax"),
    ("NUM_JOBS = three", "NameError: name 'three' is not defined"),
    ("import nothing_such", "ModuleNotFoundError: No module named 'nothing_such'"),
    ("os.environ['NOT_SET']", "KeyError: 'NOT_SET'")])
def test_a_config_that_python_cannot_run_names_the_line_once_and_the_type_of_its_error(
        line, words, load_config):
    number = len(load_config.path.read_text().splitlines()) + 3
    said = refusal(load_config, line)
    assert said.startswith("config.py, line %d: %s" % (number, words))
    assert said.count("line") == 1 and "\n" not in said


def test_a_bracket_that_is_not_closed_is_told_with_a_line(load_config):  # which: not each Python
    assert re.match(r"config\.py, line \d+: SyntaxError: .*\Z", refusal(load_config, "X = (3"))


def test_an_appended_working_dir_takes_the_folders_along(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    stand_in.config("WORKING_DIR = %r" % str(tmp_path / "w"))
    assert stand_in.run(BATCH).returncode == 0
    assert (tmp_path / "w" / "downloads").is_dir() and (tmp_path / "w" / "jobs").is_dir()
    assert (tmp_path / "w" / "results" / "a.sha256").exists()


@pytest.mark.parametrize("name", [
    "FILES_PER_JOB", "DOWNLOAD_BY", "MAX_FAILURES_IN_A_ROW", "TOKEN_FILE"])
def test_an_older_config_is_told_which_setting_it_lacks(name, load_config):
    lines = load_config.path.read_text().splitlines(keepends=True)
    load_config.path.write_text("".join(line for line in lines if not line.startswith(name)))
    assert refusal(load_config) == (
        "config.py: %s is missing; see the original config.py" % name)


@pytest.mark.parametrize("name,setting", [
    ("NUMJOBS", "NUM_JOBS"), ("RECURSE", "RECURSIVE"), ("POLL_SECS", "POLL_SECONDS"),
    ("WORK_DIR", "WORKING_DIR"), ("MAXBYTES", "MAX_BYTES")])
def test_a_misspelled_setting_is_an_error(name, setting, load_config):
    assert refusal(load_config, name + " = 5") == (
        "config.py: %s = 5 is not a setting; did you mean %s?" % (name, setting))


def test_capital_names_of_the_users_own_are_left_alone(load_config):
    names = "PATH2 = OUTPUT_DIR = SAMPLES = DATA_SET = THREADS = REFERENCE"
    assert load_config(names + " = 5").PATH2 == 5
