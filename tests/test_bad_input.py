"""Bad input is one clear line and the right exit status, from every script that can meet it."""
import json
import re
import subprocess

import pytest
from conftest import DESTINATION, SOURCE, last_line

SIMPLE, BATCH = "globus-simple-download.py", "globus-batch-download.py"
BOTH = pytest.mark.parametrize("script", [SIMPLE, BATCH])
ALL = pytest.mark.parametrize("script,options", [
    (SIMPLE, ()), (BATCH, ()),
    ("globus-single-file-download.py", ("--globus-path", "/x", "--file", "y"))])


def entry(name, kind="file", size=1):
    return {"DATA_TYPE": "file", "name": name, "type": kind, "size": size,
            "last_modified": "2026-01-01 00:00:00+00:00", "link_target": None}


def check(done, status, *words, lines=2):
    """The exit status, and all words in a line or two on stderr."""
    assert done.returncode == status, done.err
    assert all(word in done.err for word in words), done.err
    assert len(done.err.splitlines()) <= lines, done.err


@ALL
def test_no_tokens(stand_in, script, options):
    stand_in.tokens.unlink()
    check(stand_in.run(script, *options), 1, "not logged in", "globus-login.py", lines=1)


@ALL
def test_revoked_tokens(stand_in, script, options):
    tokens = json.loads(stand_in.tokens.read_text())
    tokens["transfer.api.globus.org"].update(refresh_token="gone", expires_at_seconds=1)
    stand_in.tokens.write_text(json.dumps(tokens))
    check(stand_in.run(script, *options), 1, "no longer accepts the stored login",
          "globus-login.py")


@ALL
@pytest.mark.parametrize("text", ["not JSON", "[]", "", '{"a": 3}', "\udcff"])
def test_a_token_file_that_holds_something_else(stand_in, script, options, text):
    stand_in.tokens.write_bytes(text.encode("utf-8", "surrogateescape"))
    check(stand_in.run(script, *options), 1, "does not hold tokens", "globus-login.py", lines=1)


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
    check(stand_in.run(SIMPLE), 2, "config.py: " + name, words, lines=1)
    assert emulator.requests() == []


@pytest.mark.parametrize("line", ["NUM_JOBS = ", "NUM_JOBS = three", "import nothing_such"])
def test_a_config_that_python_cannot_run_names_the_line(stand_in, line):
    number = len((stand_in.folder / "config.py").read_text().splitlines()) + 2
    stand_in.config(line)
    check(stand_in.run(SIMPLE), 2, "config.py, line %d: " % number, lines=1)


def test_an_appended_working_dir_takes_the_folders_along(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    stand_in.config("WORKING_DIR = %r" % str(tmp_path / "w"))
    assert stand_in.run(BATCH).returncode == 0
    assert (tmp_path / "w" / "downloads").is_dir() and (tmp_path / "w" / "jobs").is_dir()
    assert (tmp_path / "w" / "results" / "a.sha256").exists()


@BOTH
@pytest.mark.parametrize("name", ["SOURCE_ENDPOINT_ID", "DESTINATION_ENDPOINT_ID"])
def test_an_unknown_collection(stand_in, script, name):
    stand_in.config("%s = '00000000-0000-0000-0000-000000000001'" % name)
    check(stand_in.run(script), 2, name, "is not a collection that Globus knows")


@BOTH
def test_no_personal_endpoint_on_this_machine(stand_in, script):
    (stand_in.home / ".globusonline/lta/client-id.txt").unlink()
    check(stand_in.run(script), 2, "DESTINATION_ENDPOINT_ID", "-setup")


@BOTH
def test_a_path_that_is_not_there(stand_in, script):
    stand_in.config("PATH = '/home/nothing/'")
    check(stand_in.run(script), 2, "PATH = '/home/nothing/'", "is not on the source collection")


@BOTH
def test_a_path_that_is_a_file(stand_in, emulator, script):
    emulator.add({"a": b"1"})
    stand_in.config("PATH = '/home/share/godata/a'")
    check(stand_in.run(script), 2, "is a file, not a directory", lines=1)


@BOTH
def test_a_path_that_may_not_be_read(stand_in, emulator, script):
    emulator.bend(troubles=[{"path": "godata", "code": "PERMISSION_DENIED"}])
    check(stand_in.run(script), 1, "may not read PATH")


@BOTH
def test_a_personal_endpoint_that_is_offline(stand_in, emulator, script):
    emulator.bend_collection(DESTINATION, gcp_connected=False)
    check(stand_in.run(script), 1, "Globus Connect Personal is not running",
          "globusconnectpersonal -start")


@BOTH
def test_a_personal_endpoint_that_is_paused(stand_in, emulator, script):
    emulator.bend_collection(DESTINATION, gcp_paused=True)
    check(stand_in.run(script), 1, "paused", "globusconnectpersonal -unpause")


@BOTH
def test_a_destination_that_the_personal_endpoint_does_not_show(stand_in, emulator, script):
    emulator.bend_collection(DESTINATION, allowed=["/elsewhere"])
    check(stand_in.run(script), 1, "DESTINATION_PATH", "config-paths")


@BOTH
def test_the_same_told_as_an_error_of_the_server(stand_in, emulator, script):
    emulator.fault("/stat.*downloads", status=502, json={
        "code": "ExternalError.StatFailed.GCDError", "message": "Path not allowed"})
    check(stand_in.run(script), 1, "DESTINATION_PATH", "config-paths")


@BOTH
def test_a_missing_consent(stand_in, emulator, script):
    emulator.bend_collection(SOURCE, consent=True)
    check(stand_in.run(script), 1, "requires your consent", "globus-login.py", lines=1)


@pytest.mark.parametrize("setting", ["auto", "slurm"])
def test_no_scheduler(site, setting):
    site.config("SCHEDULER = %r" % setting)
    check(site.run(BATCH), 2, "SCHEDULER", "no sbatch")


HARMFUL_NAMES = ["../x", "..", "/etc/passwd", "a\nb", "a\x1b[31mb", "a\x00b", "a/../../b", "", ".",
                 "\u0085", "\ud800"]


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_a_listed_name_that_would_do_harm_is_refused_and_counted(stand_in, emulator, kind):
    emulator.add({"good": b"1"})
    stand_in.config("RECURSIVE = True")
    listing = [entry(name, kind) for name in HARMFUL_NAMES] + [entry("good")]
    emulator.fault("/ls.(.*&)?path=%2Fhome%2Fshare%2Fgodata%2F(&|$)", patch={
        "DATA": listing, "length": len(listing), "total": len(listing)})
    simple = stand_in.run(SIMPLE)
    assert simple.returncode == 1
    assert simple.err.count("Refused:") == len(HARMFUL_NAMES)
    batch = stand_in.run(BATCH)
    assert batch.returncode == 1
    refused = re.findall(r"(?m)  Refused: (?:(\d+) files, such as )?.*: .*$", batch.err)
    assert sum(int(number or 1) for number in refused) == len(HARMFUL_NAMES)
    assert last_line(batch) == "1 processed, %d failed, 0 not needed" % len(HARMFUL_NAMES)
    said = simple.out + simple.err + batch.out + batch.err
    assert "\x1b" not in said and "\x00" not in said
    assert not any("/ls" in r and "." in r.split("?")[1] for r in emulator.requests())
    items = [i["source_path"] for t in emulator.tasks() for i in t["request"]["DATA"]]
    assert set(items) == {"/home/share/godata/good"}


def test_a_batch_dry_run_names_and_counts_what_is_refused(stand_in, emulator):
    emulator.add({"good": b"1"})
    emulator.fault("/ls", patch={"DATA": [entry("good"), entry("../x")], "total": 2})
    done = stand_in.run(BATCH, "--dry-run")
    assert done.returncode == 1
    assert "would be written outside DOWNLOAD_DIR" in done.err
    assert last_line(done) == "1 to process, 1 refused, 0 not needed"


def test_a_listed_file_without_a_size_or_a_name_is_refused(stand_in, emulator):
    listing = [dict(entry("a"), size=None), dict(entry("b"), name=7)]
    emulator.fault("/ls", patch={"DATA": listing, "total": 2})
    done = stand_in.run(SIMPLE, "--dry-run")
    assert done.returncode == 1
    assert "Refused: 'a' has no size." in done.err and "Refused: '7' is not a name." in done.err


@pytest.mark.parametrize("script", [SIMPLE, BATCH])
def test_output_that_goes_into_head_ends_without_a_word(script, stand_in, emulator):
    emulator.bend(crowds={"/home/share/godata": 20000})
    process = stand_in.start(script, "--dry-run")
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert b"Traceback" not in said and b"Broken" not in said


@pytest.mark.parametrize("script", [SIMPLE, BATCH])
def test_output_onto_a_full_disk_says_so(script, stand_in, emulator):
    emulator.add({"a": b"1"})
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            stand_in.command(script, "--dry-run"), cwd=str(stand_in.folder), env=stand_in.env,
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "[Errno 28] No space left on device"


def test_a_filter_that_fails(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("def is_file_needed(file): return file.sise > 3")
    check(stand_in.run(BATCH), 2, "is_file_needed failed on 'a'", "sise", lines=1)


def test_a_filter_whose_answer_is_neither_true_nor_false(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("class Series:", "    def __eq__(self, other):",
                    "        raise ValueError('The truth value of a Series is ambiguous')",
                    "def is_file_needed(file): return Series()")
    check(stand_in.run(BATCH), 2, "is_file_needed failed on 'a'", "ambiguous", lines=1)


@pytest.mark.parametrize("script,options", [
    (SIMPLE, ["--nonsense"]), (BATCH, ["--limit", "0"]), (BATCH, ["--limit", "x"]),
    ("globus-single-file-download.py", []), ("globus-login.py", ["please"])])
def test_wrong_options(site, script, options):
    done = site.run(script, *options)
    assert done.returncode == 2 and "usage:" in done.err


@pytest.mark.parametrize("script", [SIMPLE, BATCH, "globus-single-file-download.py",
                                    "globus-login.py"])
def test_help_needs_neither_login_nor_settings(fresh_site, script):
    fresh_site.config("NUM_JOBS = 0")
    assert fresh_site.run(script, "--help").returncode == 0


@pytest.mark.parametrize("name,text,words", [
    ("process.sh", "", "is empty."), ("process.sh", "\n\n", "is empty."),
    ("process.sh", "#!/bin/bash\nif true; then\n", "has an error: "),
    ("process.sh", "echo 'no quote\n", "has an error: "),
    ("wrapper.sh", "#!/bin/bash\nmodule load \"samtools\n", "has an error: ")])
def test_a_script_that_cannot_run_is_told_before_the_first_job(name, text, words, stand_in):
    (stand_in.folder / name).write_text(text)
    check(stand_in.run(BATCH), 2, str(stand_in.folder / name), words)
    assert not stand_in.jobs.exists()


@pytest.mark.parametrize("script", [SIMPLE, BATCH])
def test_a_path_without_files_asks_whether_they_are_in_directories(script, stand_in, emulator):
    emulator.add({"sub/a": b"1"})
    done = stand_in.run(script)
    assert done.returncode == 0
    assert "/home/share/godata/ holds no files. Are they in directories below it?" in done.err
