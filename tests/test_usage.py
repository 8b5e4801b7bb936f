"""The scripts as commands: options, --help, what is written where, and the Python and globus-sdk
that they run with."""
import re
import subprocess
import sys
import types

import pytest
from conftest import BATCH, LOGIN, SIMPLE, SINGLE, check_err
from in_process import load

SCRIPTS = (SINGLE, SIMPLE, LOGIN, BATCH)
# Runs each of the scripts with --help, as its own start would.
HELP = """if True:
    import runpy, sys
    path = list(sys.path)
    for script in sys.argv[1:]:
        sys.argv[:] = [script, "--help"]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            assert end.code == 0, script
        sys.path[:] = path
        sys.modules.pop("helper")
"""


@pytest.mark.parametrize("script", [SIMPLE, pytest.param(BATCH, marks=pytest.mark.long)])
def test_output_that_goes_into_head_ends_without_a_word(script, stand_in, emulator):
    emulator.bend(crowds={"/home/share/godata": 20000})
    process = stand_in.start(script, "--dry-run")
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert b"Traceback" not in said and b"Broken" not in said


@pytest.mark.parametrize("script", [SIMPLE, pytest.param(BATCH, marks=pytest.mark.long)])
def test_output_onto_a_full_disk_says_so(script, stand_in, emulator):
    emulator.add({"a": b"1"})
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            stand_in.command(script, "--dry-run"), cwd=str(stand_in.folder), env=stand_in.env,
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "[Errno 28] No space left on device"


def run_main(script, *options):
    """The exit status of a script's main() that does not get beyond its options."""
    with pytest.raises(SystemExit) as end:
        load(script[:-len(".py")]).main(list(options))
    return end.value.code


@pytest.mark.parametrize("script,options", [
    (SIMPLE, ["--nonsense"]), (BATCH, ["--limit", "0"]), (BATCH, ["--limit", "x"]), (SINGLE, []),
    (LOGIN, ["please"])])
def test_wrong_options(script, options, capsys):
    assert run_main(script, *options) == 2
    assert "usage:" in capsys.readouterr().err


def test_a_wrong_option_is_told_with_the_usage_before_globus_is_asked(fresh_site, emulator):
    check_err(fresh_site.run(BATCH, "--limit", "0"), 2, "usage:", "--limit must be at least 1",
              lines=3)
    assert emulator.requests() == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_neither_login_nor_settings(script, capsys, monkeypatch):
    module = load(script[:-len(".py")])
    monkeypatch.setattr(module.helper, "read_config", None)
    monkeypatch.setattr(module.helper, "read_tokens", None)
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0 and "usage:" in capsys.readouterr().out


def help_of_each(site):
    """What a Python says that runs each of the scripts with --help."""
    return subprocess.run(
        [sys.executable, "-c", HELP, *(str(site.folder / script) for script in SCRIPTS)],
        env=site.env, stdout=subprocess.PIPE, check=True).stdout.decode()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="only newer Pythons know PYTHONSAFEPATH")
def test_a_safe_path_is_no_problem(fresh_site):
    fresh_site.env["PYTHONSAFEPATH"] = "1"
    assert help_of_each(fresh_site).count("usage:") == 4


def test_help_works_without_globus_sdk(fresh_site, tmp_path):
    (tmp_path / "globus_sdk.py").write_text("raise ImportError('No module globus_sdk')")
    fresh_site.env["PYTHONPATH"] = str(tmp_path)
    assert help_of_each(fresh_site).count("usage:") == 4


# ---- a Python, or a globus-sdk, that will not do ----


def problem(helper):
    """What reading the settings says."""
    with pytest.raises(helper.UserError) as told:
        helper.read_config()
    assert told.value.status == 1
    return str(told.value)


@pytest.mark.parametrize("version", ["2.0.1", "3.20.0", "3.40"])
def test_an_old_globus_sdk_is_one_line_with_the_command(version, monkeypatch):
    old = types.ModuleType("globus_sdk")
    old.__version__, old.__path__ = version, ["/old/globus_sdk"]
    monkeypatch.setitem(sys.modules, "globus_sdk", old)
    first, command = problem(load("helper")).splitlines()
    assert first.startswith("globus-sdk %s, in /old/globus_sdk, is too old for these scripts: they "
                            "need 3.41 or newer. Activate" % version)
    assert "pip install -r" in command


def test_a_python_without_ssl_is_told(tmp_path, monkeypatch):
    (tmp_path / "ssl.py").write_text(
        "raise ImportError(\"No module named '_ssl'\", name='_ssl')\n")
    monkeypatch.delitem(sys.modules, "ssl")
    monkeypatch.syspath_prepend(str(tmp_path))
    said = problem(load("helper"))
    assert "was built without SSL (No module named '_ssl'): use another Python." in said


def test_without_globus_sdk_a_script_ends_with_the_command_that_installs_it(site, tmp_path):
    (tmp_path / "globus_sdk.py").write_text("raise ImportError('No module globus_sdk')")
    site.env["PYTHONPATH"] = str(tmp_path)
    check_err(site.run(BATCH), 1, "No module globus_sdk. Activate the environment that has what "
              "the scripts need:", "pip install -r %s" % (site.folder / "requirements.txt"))


def test_an_environment_beside_the_scripts_is_to_be_activated(tmp_path, monkeypatch):
    helper = load("helper")
    monkeypatch.setattr(helper, "VENV", str(tmp_path))
    assert helper.environment_command() == ". %s/bin/activate" % tmp_path


def test_no_pip_outside_an_environment_is_advised(tmp_path, monkeypatch):
    helper = load("helper")
    monkeypatch.setattr(helper, "VENV", str(tmp_path / "venv"))
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert re.fullmatch(r"python3 -m venv .* && \. .*/activate && pip install .*",
                        helper.environment_command())


def test_a_variable_of_globus_sdk_that_makes_no_sense_is_said(site, monkeypatch):
    words = "A GLOBUS_SDK_ variable in the environment is not valid: "
    site.env["GLOBUS_SDK_HTTP_TIMEOUT"] = "abc"
    check_err(site.run(SIMPLE), 2, words)
    monkeypatch.setenv("GLOBUS_SDK_HTTP_TIMEOUT", "abc")
    helper = load("helper")  # globus-login.py has a client of its own
    with pytest.raises(helper.UserError, match=words) as told:
        helper.auth_client()
    assert told.value.status == 2
