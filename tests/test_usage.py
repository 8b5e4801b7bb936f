"""The scripts as commands: options, --help, what is written where, and the Python and globus-sdk
that they run with."""
import os
import re
import subprocess
import sys

import pytest
from conftest import BATCH, EVERY_SCRIPT, LOGIN, SIMPLE, SINGLE


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


@pytest.mark.skipif(sys.version_info < (3, 11), reason="only newer Pythons know PYTHONSAFEPATH")
@pytest.mark.parametrize("script", [SINGLE, SIMPLE, LOGIN, BATCH])
def test_a_safe_path_is_no_problem(script, site):
    site.env["PYTHONSAFEPATH"] = "1"
    assert site.run(script, "--help").returncode == 0


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


@pytest.fixture
def no_sdk(site, tmp_path):
    """The site with a Python that has no globus-sdk."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "globus_sdk.py").write_text("raise ImportError('No module globus_sdk')")
    site.env["PYTHONPATH"] = str(tmp_path / "empty")
    return site


@EVERY_SCRIPT
def test_help_works_without_globus_sdk(script, options, no_sdk):
    assert "usage:" in no_sdk.run(script, "--help").out


def test_an_environment_beside_the_scripts_is_to_be_activated(no_sdk):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(no_sdk.folder / "venv")],
                   check=True)
    done = no_sdk.run(BATCH)
    assert done.returncode == 1
    assert done.err.splitlines()[1:] == [". %s/venv/bin/activate" % no_sdk.folder]


def test_no_pip_outside_an_environment_is_advised(no_sdk):
    python = os.path.join(sys.base_prefix, "bin", "python3")
    done = subprocess.run([python, BATCH], cwd=str(no_sdk.folder), env=no_sdk.env,
                          stderr=subprocess.PIPE)
    command = done.stderr.decode().splitlines()[1]
    assert re.fullmatch(r"python3 -m venv .* && \. .*/activate && pip install .*", command)


def test_a_variable_of_globus_sdk_that_makes_no_sense_is_said(site):
    site.env["GLOBUS_SDK_HTTP_TIMEOUT"] = "abc"
    for script in ("globus-login.py", "globus-simple-download.py"):
        done = site.run(script)
        assert done.returncode == 2
        assert done.err.startswith("A GLOBUS_SDK_ variable in the environment is not valid: ")
