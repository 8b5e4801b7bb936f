"""Source and destination: what kinds there are, whose turn it is, how files are compared."""
import pytest
from conftest import BATCH, DESTINATION, KEEP, SOURCE, contents, last_line, wait_until

SIMPLE = "globus-simple-download.py"
SINGLE = ("globus-single-file-download.py", "--globus-path", "/home/share/godata", "--file", "a")


@pytest.mark.parametrize("command", [[SIMPLE], list(SINGLE), [BATCH]], ids=lambda c: c[0])
def test_the_uuid_of_an_endpoint_is_refused_with_where_its_collections_are(
        command, stand_in, emulator):
    emulator.bend_collection(SOURCE, non_functional=True, display_name="Big Endpoint")
    done = stand_in.run(*command)
    assert done.returncode == 2
    assert done.err == (
        "config.py: SOURCE_ENDPOINT_ID = '%s' is Big Endpoint, an endpoint, which holds no files "
        "itself. Take the UUID of one of its\ncollections, from "
        "https://app.globus.org/collections\n" % SOURCE)


def test_a_source_that_is_somebody_elses_and_off_is_told_with_whose_turn_it_is(site, emulator):
    emulator.bend_collection(SOURCE, gcp_connected=False, display_name="Laptop")
    done = site.run(SIMPLE)
    assert done.returncode == 1
    assert done.err.endswith("Globus Connect Personal is not running; it is the source, Laptop, "
                             "whose owner, researcher@example.org, has to start it\n")


def test_so_is_one_that_is_switched_off_while_it_sends(site, emulator):
    emulator.add({"a": b"1" * 5000})
    emulator.bend(bytes_per_second=10000, retry_seconds=0.2)
    emulator.bend_collection(SOURCE, gcp_connected=True, display_name="Laptop")
    process = site.start(SIMPLE)
    wait_until(emulator.tasks)
    emulator.bend_collection(SOURCE, gcp_connected=False)
    line = process.stderr.readline()
    while b"Waiting" not in line:
        line = process.stderr.readline()
    assert line.startswith(
        b"Waiting: Globus Connect Personal is not running; it is the source, Laptop, "
        b"whose owner, researcher@example.org, has to start it  (task ")
    emulator.bend_collection(SOURCE, gcp_connected=True)
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize("script", [SIMPLE, "single", "job", "driver"])
def test_a_collection_without_checksums_is_read_by_size_and_time(script, stand_in, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    emulator.bend_collection(SOURCE, disable_verify=True, display_name="Tape")
    if script == "single":
        done = stand_in.run(*SINGLE)
    elif script == SIMPLE:
        done = stand_in.run(SIMPLE)
    else:
        stand_in.config("DOWNLOAD_BY = %r" % script)
        stand_in.process(*KEEP)
        done = stand_in.run(BATCH)
        assert last_line(done) == "2 processed, 0 failed, 0 not needed", done.err
        assert contents(stand_in.folder / "out") == {"a": b"1", "b": b"22"}
    assert done.returncode == 0, done.err
    assert done.err.count("Tape allows no checksums (disable_verify)") == 1
    assert {task["verify_checksum"] for task in emulator.tasks()} == {False}


def test_a_collection_that_demands_checksums_and_one_that_allows_none_are_refused(site, emulator):
    emulator.bend_collection(SOURCE, disable_verify=True, display_name="Tape")
    emulator.bend_collection(DESTINATION, force_verify=True, display_name="Disk")
    done = site.run(SIMPLE)
    assert done.returncode == 1
    assert done.err.startswith("Disk demands that checksums are compared (force_verify), and Tape "
                               "allows none (disable_verify).")


@pytest.mark.parametrize("fault", [
    {"status": 502, "json": {"code": "ExternalError.DirListingFailed.ConnectFailed",
                             "message": "no"}},
    {"status": 504, "text": "<html>Gateway Time-out</html>"}, {"drop": "before"},
], ids=["502", "504", "no answer"])
def test_a_subdirectory_that_can_never_be_listed_is_refused_and_the_rest_arrives(
        fault, site, emulator):
    emulator.add({"a": b"1", "bad/b": b"2", "good/c": b"3"})
    emulator.fault("ls.*bad", **fault)
    site.config("RECURSIVE = True", "helper.FOLDER_SECONDS = 3")
    done = site.run(SIMPLE)
    assert done.returncode == 1
    assert "Refused: 'bad/' cannot be listed: " in done.err
    assert site.downloaded() == {"a": b"1", "good/c": b"3"}


def test_an_outage_of_all_of_globus_refuses_no_subdirectory(site, emulator):
    emulator.add({"a": b"1", "sub/b": b"2"})
    emulator.fault("/ls", skip=1, times=6, status=503, text="<html>maintenance</html>")
    site.config("RECURSIVE = True", "helper.FOLDER_SECONDS = 1")
    done = site.run(SIMPLE)
    assert done.returncode == 0, done.err
    assert site.downloaded() == {"a": b"1", "sub/b": b"2"}


@pytest.mark.parametrize("version", ["2.0.1", "3.20.0", "3.40"])
def test_an_old_globus_sdk_is_one_line_with_the_command(version, site, tmp_path):
    package = tmp_path / "old" / "globus_sdk"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = %r\n" % version)
    site.env["PYTHONPATH"] = str(package.parent)
    done = site.run(SIMPLE)
    assert done.returncode == 1
    first, command = done.err.splitlines()
    assert first.startswith("globus-sdk %s, in %s, is too old for these scripts: they need 3.41 or "
                            "newer. Activate" % (version, package))
    assert "pip install -r" in command


def test_a_python_without_ssl_is_told(site, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "ssl.py").write_text(
        "raise ImportError(\"No module named '_ssl'\", name='_ssl')\n")
    site.env["PYTHONPATH"] = str(tmp_path / "old")
    done = site.run(SIMPLE)
    assert done.returncode == 1
    assert "was built without SSL (No module named '_ssl'): use another Python." in done.err
