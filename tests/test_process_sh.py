"""process.sh: what it gets, and one that cannot run is told before the first job."""
import json
import os
import re
from pathlib import Path

import pytest
from conftest import BATCH, KEEP, PATH, check_err, last_line, put_before, run_wrapper


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_process_sh_is_told_before_the_first_job(text, stand_in):
    (stand_in.folder / "process.sh").write_text(text)
    check_err(stand_in.run(BATCH), 2, str(stand_in.folder / "process.sh"), "is empty.")
    assert not stand_in.jobs.exists()


@pytest.mark.parametrize("name,old,new,is_told", [
    ("process.sh", "set -e\n", "if true; then\n", True),
    ("wrapper.sh", "# module load samtools", 'module load "samtools', True),
    ("process.sh", "set -e\n", "shopt -s extglob\nls !(*.txt) +(a|b)\n", False),
    ("process.sh", "#!/bin/bash", "#!/opt/on/the/nodes/only/bash", False)])
def test_an_error_in_a_script_is_told_before_the_first_job_and_decides_nothing(
        name, old, new, is_told, stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.edit(name, old, new)
    done = stand_in.run(BATCH, "--dry-run")
    assert done.returncode == 0 and last_line(done).startswith("1 to process, ")
    assert (f"Does {name} have an error? " in done.err) == is_told, done.err



def test_a_compiled_process_sh_is_no_script_with_an_error(stand_in, emulator):
    emulator.add({"a": b"1"})
    (stand_in.folder / "process.sh").write_bytes(Path("/bin/true").read_bytes())
    done = stand_in.run(BATCH)
    assert "error" not in done.err and last_line(done) == "1 processed, 0 failed, 0 not needed"


def test_a_missing_process_sh_is_said_before_anything_is_submitted(stand_in, emulator):
    emulator.add({"a": b"1"})
    (stand_in.folder / "process.sh").unlink()
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and "process.sh: No such file or directory" in done.err
    assert emulator.tasks() == [] and not stand_in.jobs.exists()


@pytest.mark.parametrize("script", ["process.sh", "wrapper.sh"])
def test_line_ends_of_windows_are_said_before_anything_is_submitted(script, stand_in, emulator):
    emulator.add({"a": b"1"})
    text = (stand_in.folder / script).read_text()
    (stand_in.folder / script).write_bytes(text.replace("\n", "\r\n").encode())
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and "has Windows line endings" in done.err
    assert "sed -i 's/\\r$//' %s" % (stand_in.folder / script) in done.err


def test_an_interpreter_that_is_not_on_this_machine_is_asked_about(stand_in, emulator):
    emulator.add({"a": b"1"})
    (stand_in.folder / "process.sh").write_text("#!/usr/bin/env julia-that-is-not-here\n")
    os.chmod(str(stand_in.folder / "process.sh"), 0o755)
    assert "begins with #!/usr/bin/env julia-that-is-not-here, which is not on" in stand_in.run(
        BATCH).err


UNSTARTED = r"process\.sh: .*(required file not found|bad interpreter)"  # as bash says it


@pytest.mark.parametrize("change,words", [
    (r"printf '#!/bin/bash\r\nexit 0\r\n' >process.sh", UNSTARTED),
    (r"printf '#!/usr/bin/env julia\nx\n' >process.sh", "env: .*julia.*: No such file"),
    (r"printf '#!/opt/no/perl -w\nx\n' >process.sh", UNSTARTED),
], ids=["line ends", "env", "interpreter"])
def test_what_is_wrong_with_process_sh_on_the_node_is_said(
        change, words, stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    stand_in.process("true")
    (stand_in.folder / "process.sh").chmod(0o755)
    put_before(stand_in, tmp_path, "sbatch", change, 'exec "$real" "$@"')
    assert re.search(r"FAILED a: exit status 12[67]: .*" + words, stand_in.run(BATCH).out)


def test_a_process_sh_that_has_gone_stops_the_run_with_its_reason(stand_in, emulator, tmp_path):
    emulator.add({"f%02d" % n: b"1" for n in range(30)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = 4")
    put_before(stand_in, tmp_path, "sbatch", "rm -f process.sh", 'exec "$real" "$@"')
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "STOPPING: 4 files or jobs failed in a row" in done.err
    assert "%s/process.sh': No such file or directory" % stand_in.folder in done.err
    assert "No such file or directory" in done.err.split("STOPPING: ")[1]


@pytest.mark.parametrize("by_hand", [False, True])
def test_process_sh_knows_the_directory_on_the_source_collection(by_hand, stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.process('echo "$GLOBUS_PATH" >path')
    done = run_wrapper(stand_in, "a") if by_hand else stand_in.run(BATCH)
    assert done.returncode == 0
    assert (stand_in.folder / "path").read_text().rstrip("/\n") == PATH.rstrip("/")


def test_nothing_of_the_driver_s_bookkeeping_is_in_process_sh_s_environment(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.process("env -0 >environment", *KEEP)
    assert stand_in.run(BATCH).returncode == 0
    text = (stand_in.folder / "environment").read_bytes().decode()
    env = dict(line.split("=", 1) for line in text.split("\0") if line)
    known = {*stand_in.env, "GLOBUS_NAME", "GLOBUS_PATH", "PYTHON", "SLURM_JOB_ID", "PWD", "OLDPWD",
             "SHLVL", "_"}
    known.add("GLOBUS_SETTINGS")  # for wrapper.sh, if process.sh calls it
    assert set(env) <= known
    assert str(stand_in.jobs) not in json.dumps(
        {name: value for name, value in env.items() if name != "_"})
