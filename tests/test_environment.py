"""The environment of jobs: that of the driver, and whatever the environment lines of wrapper.sh and
start-up files do to the shell."""
import json
import os
import resource
import shutil
import subprocess
import types

import pytest
from conftest import (
    BATCH,
    KEEP,
    PATH,
    contents,
    copy_downloads,
    journal,
    last_line,
    processed,
    put_before,
    run_wrapper,
)
from in_process import load

batch = load("globus-batch-download")

# ---- that of the driver ----


def test_a_job_runs_with_the_python_and_environment_of_the_driver(cluster, emulator):
    emulator.add({"a": b"1"})
    cluster.env["MY_OWN"] = "it's here"
    cluster.process('printf "%s\\n" "$PYTHON" "$MY_OWN" >seen')
    assert cluster.run(BATCH).returncode == 0
    assert (cluster.folder / "seen").read_text() == cluster.command("")[0] + "\nit's here\n"


def test_a_folder_has_the_name_that_the_shell_gives_it(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    link = tmp_path / "home-by-another-name"
    link.symlink_to(stand_in.folder.parent)
    named = link / stand_in.folder.name
    folder = put_before(stand_in, tmp_path, "sbatch", 'tee "$0.script" | "$real" "$@"')
    os.symlink("/usr/bin/tee", str(tmp_path / "bin" / "tee"))
    stand_in.env["PWD"] = str(named)
    stand_in.edit("wrapper.sh", "edit here ----\n", "edit here ----\ncd /\n")
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err
    script = (folder / "sbatch.script").read_text()
    pack, = {event["pack"] for event in journal(stand_in) if "pack" in event}
    assert (f"\nset -- --pack {named}/jobs/{pack} 1 3 {named} {named} {named}/downloads/{pack} "
            in script)
    assert str(stand_in.folder) not in script


# What the scheduler has set for a driver that is a job itself, and what is to be kept.
IN_A_JOB = {
    "slurm": ({"SLURM_JOB_ID": "1", "SLURM_MEM_PER_NODE": "1"}, {"SLURM_CONF": "/kept"}),
    "pbs": ({"PBS_JOBID": "1.a", "PBS_NODEFILE": "/nowhere"}, {"PBS_CONF_FILE": "/kept"}),
    "sge": ({"SGE_TASK_ID": "undefined", "JOB_ID": "1", "JOB_NAME": "x", "SGE_STDIN_PATH": "x"},
            {"SGE_CELL": "kept"}),
}


@pytest.mark.parametrize("kind", IN_A_JOB)
def test_what_the_scheduler_set_for_the_driver_is_left_out(kind, monkeypatch):
    foreign, kept = IN_A_JOB[kind]
    for name, value in {**foreign, **kept}.items():
        monkeypatch.setenv(name, value)
    env = batch.submit_env()
    assert not env.keys() & foreign.keys()
    assert kept.items() <= env.items()


def test_nothing_that_the_scheduler_set_for_the_driver_reaches_its_jobs(stand_in, emulator):
    emulator.add({"a": b"1"})
    copy_downloads(stand_in)
    foreign, kept = IN_A_JOB["slurm"]
    stand_in.env.update({**foreign, **kept})
    stand_in.process("env >../env")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    lines = (stand_in.folder.parent / "env").read_text().splitlines()
    env = dict(line.split("=", 1) for line in lines if "=" in line)
    assert not [name for name, value in foreign.items() if env.get(name) == value]
    assert kept.items() <= env.items()


@pytest.mark.parametrize("name", ["SHELLOPTS", "BASHOPTS", "POSIXLY_CORRECT"])
def test_options_of_the_shell_that_are_exported_are_left_out(name, monkeypatch):
    monkeypatch.setenv(name, "errexit")
    assert name not in batch.submit_env()


def test_a_driver_that_is_a_job_has_jobs_that_can_use_srun(real_slurm, emulator):
    emulator.add({"a": b"1"})
    real_slurm.env.update(SLURM_JOB_ID="1", SLURM_MEM_PER_NODE="1", SLURM_MEM_PER_CPU="1")
    real_slurm.process("srun true", *KEEP)
    assert last_line(real_slurm.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_the_limits_of_the_login_node_are_not_for_jobs(real_slurm, emulator):
    emulator.add({"a": b"1"})
    real_slurm.process("ulimit -t >limit")
    driver = subprocess.run(
        real_slurm.command(BATCH), cwd=str(real_slurm.folder), env=real_slurm.env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (500, 500)))
    assert driver.returncode == 0, driver.stderr
    assert (real_slurm.folder / "limit").read_text() == "unlimited\n"


def test_a_full_tmp_does_no_harm(stand_in, emulator):
    emulator.add({"a": b"1"})
    copy_downloads(stand_in)
    stand_in.config("import tempfile", "tempfile.tempdir = '/nonexistent'")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


# ---- environment lines ----


NAMES = ("_ a attempt dir download duplicates f file files folder fuse GLOBUS_NAME here i id last "
         "line log me move name names new options over pack process row said script status step "
         "stopped todo token url word words worst wrapper_command").split()
SHOUT = '%s() { builtin echo "this is %s $*"; return 1; }; export -f %s'
# {what they do: what is sourced there}
ENVIRONMENTS = {
    "shift": "shift; shift 2>/dev/null",
    "set --": "set -- /etc one two three",
    "set -e": "set -e",
    "set -u": "set -u",
    "set -euo pipefail, exported": "set -euo pipefail; export SHELLOPTS",
    "set -f and nullglob": "set -f; shopt -s nullglob failglob extglob",
    "set -a": "set -a",
    "set -x": "set -x",
    "posix": "set -o posix",
    "cd": "cd /",
    "CDPATH": "export CDPATH=/:/tmp",
    "IFS": "IFS=",
    "IFS, exported": "export IFS=/0f",
    "a trap at the end": "trap 'echo bye; exit 5' EXIT",
    "a trap on errors": "set -E; trap 'exit 6' ERR",
    "a trap of each command": "set -T; shopt -s extdebug; trap 'echo at $LINENO' DEBUG RETURN",
    "signals ignored": "trap '' TERM INT HUP USR1 USR2 XCPU PIPE",
    "a function cd that lists": 'cd() { builtin cd "$@" && ls -a; }; export -f cd',
    "a function cd that fails": SHOUT.replace("%s", "cd"),
    "functions rm and mv": SHOUT.replace("%s", "rm") + "; " + SHOUT.replace("%s", "mv"),
    "a function exec": SHOUT.replace("%s", "exec"),
    "functions trap, shift and set": "; ".join(
        SHOUT.replace("%s", name) for name in ("trap", "shift", "set")),
    "functions of other names": "; ".join(SHOUT.replace("%s", name) for name in (
        "cat", "chmod", "cp", "echo", "read", "sleep", "finish", "move", "delete")),
    "aliases": "shopt -s expand_aliases; alias exec=false trap=false shift=false cd=false rm=false",
    "variables": "; ".join("%s=1" % name for name in NAMES if name != "wrapper_command"),
    "variables, exported": "; ".join(
        "export %s='x y'" % name for name in NAMES if name != "wrapper_command"),
    "words on stdout": "echo 'Loading samtools/1.2'; echo /etc/passwd; printf 'no line feed'",
    "stdin, read and closed": "cat >/dev/null; exec <&-",
    "a last command that fails": "false",
}


def bend_environment(site, text):
    """Environment lines that source a script, as `conda activate` does."""
    script = site.folder.parent / "environment.sh"
    script.write_text(text + "\n")
    site.edit("wrapper.sh", "# module load samtools\n", "source %s\n" % script)


def strict_process(site):
    """A process.sh that looks where it is, and fails on f1 and f4."""
    site.process('[ "$PWD" = %s ] || { echo "in $PWD"; exit 9; }' % site.folder,
                 '[ $# = 1 ] && [ -f "$1" ] || exit 8',
                 "case $GLOBUS_NAME in f1) exit 3 ;; f4) exit 4 ;; esac",
                 *(line.replace("mkdir", "command mkdir").replace("cp", "command cp")
                   .replace("printf", "builtin printf") for line in KEEP))


FILES = {"f%d" % n: b"%d" % n for n in range(6)}
GOOD = {name: content for name, content in FILES.items() if name not in ("f1", "f4")}


@pytest.fixture
def copying(fresh_site):
    """A site whose jobs copy what they download, and where nobody has logged in."""
    copy_downloads(fresh_site)
    return fresh_site


def run_job(site, files, monkeypatch, is_there=False, head=":"):
    """Run a job, without scheduler and driver, for a pack of some files, {name: content}; the
    folder of the pack. is_there: the driver has downloaded them; head: what a start-up file of the
    job's shell does."""
    monkeypatch.setattr(batch, "HERE", str(site.folder))
    folder, scheduler = site.jobs / "g1-abcde", batch.SCHEDULERS["slurm"]
    config = types.SimpleNamespace(
        MAX_FAILURES_IN_A_ROW=None, WORKING_DIR=str(site.folder), PATH=PATH,
        DOWNLOAD_DIR=str(site.downloads), DESTINATION_PATH=str(site.downloads))
    batch.helper.write_pack(str(folder), [
        batch.helper.File(name, len(files[name]), "2026-11-23", None) for name in files], [])
    for name in files if is_there else ():
        path = site.downloads / folder.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])
    if is_there:
        (folder / "arrived").write_text("".join("%d\n" % n for n in range(len(files))))
    script = batch.job_script(scheduler, config, batch.read_wrapper(), str(folder), 1)
    (folder / "settings.json").write_text(
        json.dumps({"PATH": PATH, "DOWNLOAD_DIR": str(site.downloads)}))
    (folder / "wrapper.sh").write_text(script)
    (folder / "ticket.1").touch()
    (site.folder.parent / "script").write_text(head + "\n" + script)
    with open(str(folder / "log"), "wb") as log:
        subprocess.run(["bash", str(site.folder.parent / "script")], cwd=str(site.folder),
                       env=dict(site.env, SLURM_JOB_ID="7"), stdin=subprocess.DEVNULL, stdout=log,
                       stderr=log)
    return folder


def results_of(folder):
    """{index: exit status} of a pack whose job has ended by itself; else what it said."""
    token = batch.find_token(os.listdir(str(folder)), 1)
    if token.state != "end":
        return token.name, (folder / "log").read_text()
    return {index: result[0] for index, result in
            batch.helper.read_results(str(folder)).items()}


def check_strict(site, folder):
    assert results_of(folder) == {0: 0, 1: 3, 2: 0, 3: 0, 4: 4, 5: 0}
    assert contents(site.folder / "out") == GOOD
    assert processed(site) == dict.fromkeys(GOOD, 1)
    assert site.downloaded() == {"f1": b"1", "f4": b"4"}


@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_environment_lines_change_no_result(what, copying, emulator, monkeypatch):
    emulator.add(FILES)
    bend_environment(copying, ENVIRONMENTS[what])
    strict_process(copying)
    check_strict(copying, run_job(copying, FILES, monkeypatch))
    for folder in ("out", "jobs", "downloads"):
        shutil.rmtree(str(copying.folder / folder))
    (copying.folder / "processed").unlink()
    check_strict(copying, run_job(copying, FILES, monkeypatch, is_there=True))


@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_environment_lines_change_no_result_by_hand(what, copying, emulator):
    emulator.add(FILES)
    bend_environment(copying, ENVIRONMENTS[what])
    strict_process(copying)
    done = run_wrapper(copying, "f0", "f1", "f2")
    assert done.returncode == 3, done.stderr.decode()
    assert contents(copying.folder / "out") == {"f0": b"0", "f2": b"2"}
    assert processed(copying) == {"f0": 1, "f2": 1}
    assert copying.downloaded() == {"f1": b"1"}


# All that a Python which is started there can notice.
FELT = "; ".join(ENVIRONMENTS[what] for what in (
    "set -a", "IFS, exported", "signals ignored", "functions of other names",
    "variables, exported", "words on stdout", "stdin, read and closed"))


def test_environment_lines_change_no_download(stand_in, emulator):
    emulator.add(FILES)
    bend_environment(stand_in, FELT)
    stand_in.config("FILES_PER_JOB = 3", "NUM_JOBS = 2")
    strict_process(stand_in)
    done = stand_in.run(BATCH)
    assert last_line(done) == "4 processed, 2 failed, 0 not needed", done.err
    assert "FAILED f1: exit status 3" in done.err and "FAILED f4: exit status 4" in done.err
    assert contents(stand_in.folder / "out") == GOOD
    assert processed(stand_in) == dict.fromkeys(GOOD, 1)
    assert stand_in.downloaded() == {"f1": b"1", "f4": b"4"}


def test_environment_lines_change_no_download_by_hand(site, emulator):
    emulator.add({"f0": b"0"})
    bend_environment(site, FELT)
    strict_process(site)
    done = run_wrapper(site, "f0")
    assert done.returncode == 0, done.stderr.decode()
    assert contents(site.folder / "out") == {"f0": b"0"} and site.downloaded() == {}


@pytest.mark.parametrize("by_hand", [False, True])
def test_what_environment_lines_export_reaches_process_sh_unchanged(
        by_hand, copying, emulator, monkeypatch):
    files = emulator.add({"a": b"1", "b": b"2"})
    names = [name for name in NAMES if name not in (
        "_", "GLOBUS_NAME", "GLOBUS_PATH", "wrapper_command")]
    bend_environment(copying, "\n".join(
        ["export %s=mine-%s" % (name, name) for name in names]
        + ["tool() { echo 'of a module'; }; export -f tool"]))
    copying.process("wrong=0", *["[ \"${%s-}\" = mine-%s ] || { echo '%s is' \"${%s-unset}\"; "
                                 "wrong=9; }" % ((name,) * 4) for name in names],
                    "[ \"$(tool)\" = 'of a module' ] || exit 8", "[ $wrong = 0 ] || exit 9",
                    *KEEP)
    if by_hand:
        done = run_wrapper(copying, *files)
        assert done.returncode == 0, done.stdout.decode()
    else:
        folder = run_job(copying, files, monkeypatch)
        assert results_of(folder) == {0: 0, 1: 0}, (folder / "0.log").read_text()
    assert processed(copying) == {"a": 1, "b": 1}


# ---- start-up files ----


STARTUP = "echo Welcome; IFS=x; set -u; CDPATH=/; rm() { return 1; }; mv() { return 1; }"


@pytest.mark.parametrize("how", ["BASH_ENV", "exported functions"])
def test_a_start_up_file_changes_no_result(how, copying, emulator, tmp_path, monkeypatch):
    emulator.add(FILES)
    startup = tmp_path / "startup"
    startup.write_text({
        "BASH_ENV": STARTUP, "exported functions": "\n".join(
            SHOUT.replace("%s", name)
            for name in ("cd", "rm", "mv", "exec", "trap", "cp", "move"))}[how] + "\n")
    strict_process(copying)
    check_strict(copying, run_job(copying, FILES, monkeypatch, head=". %s; %s" % (
        startup, "export BASH_ENV=%s" % startup if how == "BASH_ENV" else ":")))


def test_a_start_up_file_that_exits_is_no_success(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    start_up = tmp_path / "profile"
    start_up.write_text('case $0 in */script) exit 0 ;; esac\n')
    stand_in.env["BASH_ENV"] = str(start_up)
    stand_in.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.3", "MAX_FAILURES_IN_A_ROW = 2")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "STOPPING: 2 files or jobs failed in a row" in done.err
    assert ("2 of them with: the job never started: the scheduler says COMPLETED. Can the compute "
            "nodes see, and write, " in done.err)
    assert "Does a start-up file of your shell exit?" in done.err
    assert last_line(done).startswith("0 processed, ") and not processed(stand_in)
    assert not [event for event in journal(stand_in) if event["event"] == "over"]


def test_a_start_up_file_that_exits_where_wrapper_sh_begins_harms_no_job(
        copying, emulator, tmp_path, monkeypatch):
    files = emulator.add({"a": b"1"})
    start_up = tmp_path / "profile"
    start_up.write_text("case $0 in */wrapper.sh) exit 0 ;; esac\n")
    copying.env["BASH_ENV"] = str(start_up)
    copying.process(*KEEP)
    assert results_of(run_job(copying, files, monkeypatch)) == {0: 0}
    assert processed(copying) == {"a": 1}
