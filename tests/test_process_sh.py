"""process.sh: what it gets, and one that cannot run is told before the first job."""
import json
import re
import types
from pathlib import Path

import pytest
from conftest import BATCH, KEEP, PATH, check_err, copy_downloads, put_before, run_wrapper
from in_process import load

batch = load("globus-batch-download")


@pytest.fixture
def check(fresh_site, monkeypatch):
    """A function that looks at the site's scripts as the driver does before the first job; what it
    says."""
    said = []
    monkeypatch.setattr(batch.helper, "log", said.append)
    monkeypatch.setattr(batch, "HERE", str(fresh_site.folder))

    def run():
        batch.check_scripts(batch.SCHEDULERS["slurm"], types.SimpleNamespace(RESOURCES=""))
        return "\n".join(said)

    return run


def refusal(check):
    with pytest.raises(batch.helper.UserError) as told:
        check()
    assert told.value.status == 2
    return str(told.value)


def test_good_scripts_are_no_reason_to_say_anything(check):
    assert check() == ""


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_process_sh_is_told(text, fresh_site, check):
    (fresh_site.folder / "process.sh").write_text(text)
    assert refusal(check) == "%s is empty." % (fresh_site.folder / "process.sh")


@pytest.mark.parametrize("name,old,new,is_told", [
    ("process.sh", "set -e\n", "if true; then\n", True),
    ("wrapper.sh", "# module load samtools", 'module load "samtools', True),
    ("process.sh", "set -e\n", "shopt -s extglob\nls !(*.txt) +(a|b)\n", False),
    ("process.sh", "#!/bin/bash", "#!/opt/on/the/nodes/only/bash", False)])
def test_an_error_in_a_script_is_told_and_decides_nothing(
        name, old, new, is_told, fresh_site, check):
    fresh_site.edit(name, old, new)
    said = check()
    assert (f"Does {name} have an error? " in said) == is_told, said


def test_a_compiled_process_sh_is_no_script_with_an_error(fresh_site, check):
    (fresh_site.folder / "process.sh").write_bytes(Path("/bin/true").read_bytes())
    assert check() == ""


@pytest.mark.parametrize("script", ["process.sh", "wrapper.sh"])
def test_line_ends_of_windows_are_told_with_the_command_that_converts_them(
        script, fresh_site, check):
    path = fresh_site.folder / script
    path.write_bytes(path.read_text().replace("\n", "\r\n").encode())
    said = refusal(check)
    assert "has Windows line endings" in said and said.endswith("\nsed -i 's/\\r$//' %s" % path)


def test_an_interpreter_that_is_not_on_this_machine_is_asked_about(fresh_site, check):
    (fresh_site.folder / "process.sh").write_text("#!/usr/bin/env julia-that-is-not-here\n")
    assert "begins with #!/usr/bin/env julia-that-is-not-here, which is not on" in check()


def test_a_missing_process_sh_is_said_before_anything_is_submitted(stand_in, emulator):
    emulator.add({"a": b"1"})
    (stand_in.folder / "process.sh").unlink()
    check_err(stand_in.run(BATCH), 2, "process.sh: No such file or directory")
    assert emulator.tasks() == [] and not stand_in.jobs.exists()


UNSTARTED = r"process\.sh: .*(required file not found|bad interpreter)"  # as bash says it
# {file: text of the process.sh that its job finds, what is said of it}
WRONG = {"ends": (r"#!/bin/bash\r\nexit 0\r\n", UNSTARTED),
         "env": (r"#!/usr/bin/env julia\nx\n", "env: .*julia.*: No such file"),
         "interpreter": (r"#!/opt/no/perl -w\nx\n", UNSTARTED)}


def test_what_is_wrong_with_process_sh_on_the_node_is_said(stand_in, emulator):
    emulator.add(dict.fromkeys(WRONG, b"1"))
    copy_downloads(stand_in)
    stand_in.config("MAX_FAILURES_IN_A_ROW = None", "NUM_JOBS = 1")
    # What each job finds depends on the name of its file.
    stand_in.edit("wrapper.sh", "# module load samtools\n", "case $(<\"$2/files\") in\n%s\nesac\n"
                  % "\n".join("*%s) printf '%s' >process.sh ;;" % (name, text)
                              for name, (text, _) in WRONG.items()))
    said = stand_in.run(BATCH).err
    for name, (_, words) in WRONG.items():
        assert re.search(r"FAILED %s: exit status 12[67]: .*%s" % (name, words), said), said


def test_a_process_sh_that_has_gone_stops_the_run_with_its_reason(stand_in, emulator, tmp_path):
    emulator.add({"f%02d" % n: b"1" for n in range(30)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = 4")
    put_before(stand_in, tmp_path, "sbatch", "rm -f process.sh", 'exec "$real" "$@"')
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "STOPPING: 4 files or jobs failed in a row" in done.err
    assert "%s/process.sh': No such file or directory" % stand_in.folder in done.err
    assert "No such file or directory" in done.err.split("STOPPING: ")[1]


def test_process_sh_knows_the_directory_on_the_source_collection_by_hand(fresh_site, emulator):
    emulator.add({"a": b"1"})
    copy_downloads(fresh_site)
    fresh_site.process('echo "$GLOBUS_PATH" >path')
    assert run_wrapper(fresh_site, "a").returncode == 0
    assert (fresh_site.folder / "path").read_text() == PATH + "\n"


def test_process_sh_s_environment_has_the_path_and_nothing_of_the_driver_s_bookkeeping(
        stand_in, emulator):
    emulator.add({"a": b"1"})
    copy_downloads(stand_in)
    stand_in.process("env -0 >environment", *KEEP)
    assert stand_in.run(BATCH).returncode == 0
    text = (stand_in.folder / "environment").read_bytes().decode()
    env = dict(line.split("=", 1) for line in text.split("\0") if line)
    assert env["GLOBUS_PATH"] == PATH
    known = {*stand_in.env, "GLOBUS_NAME", "GLOBUS_PATH", "PYTHON", "SLURM_JOB_ID", "PWD", "OLDPWD",
             "SHLVL", "_"}
    known.add("GLOBUS_SETTINGS")  # for wrapper.sh, if process.sh calls it
    assert set(env) <= known
    assert str(stand_in.jobs) not in json.dumps(
        {name: value for name, value in env.items() if name != "_"})
