"""What is edited while jobs run, and what the environment of jobs does: no file is the worse."""
import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import (
    BATCH,
    KEEP,
    TUTORIAL,
    contents,
    journal,
    last_line,
    processed,
    put_before,
    wait_until,
)

PATH = "/home/share/godata/"
OTHER = "aaaaaaaa-1111-4222-8333-bbbbbbbbbbbb"
NEEDED = "def is_file_needed(file): return not os.path.exists(WORKING_DIR + '/out/' + file.path)"
WAIT = 'touch "begun.$GLOBUS_NAME"; until [ -e go ]; do sleep 0.1; done'


def wait_for(driver, text):
    """Read what a driver says on stderr until it says that; all that it has said."""
    said = ""
    while text not in said:
        line = driver.stderr.readline().decode()
        assert line, "it did not say %r, but: %s" % (text, said)
        said += line
    return said


def end(driver):
    """Wait for a driver; its last line, exit status, and what it said."""
    out, err = (said.decode() for said in driver.communicate(timeout=300))
    assert "Traceback" not in err, err
    return (out.splitlines() or [""])[-1], driver.returncode, out + err


def in_place(path, text):
    """Save as many editors do: the same file, with another content."""
    before = path.stat().st_ino
    with open(str(path), "w", encoding="utf-8") as file:
        file.write(text)
    assert path.stat().st_ino == before


def calls_of(site, tmp_path, name):
    """A function: the command lines with which a command was called."""
    calls = tmp_path / (name + ".calls")
    put_before(site, tmp_path, name, 'printf "%%s\\n" "$*" >>%s' % calls, 'exec "$real" "$@"')
    return lambda: calls.read_text().splitlines() if calls.exists() else []


# ---- config.py ----


def next_data_set(emulator, tmp_path, setting):
    """A second data set, with files of the same names; the line for config.py that chooses it."""
    if setting == "PATH":
        folder, line = emulator.source / "home/share/other", "PATH = '/home/share/other/'"
    else:
        folder, line = tmp_path / "other" / TUTORIAL, "SOURCE_ENDPOINT_ID = %r" % OTHER
        emulator.bend_collection(OTHER, root=str(tmp_path / "other"), display_name="Another one")
    folder.mkdir(parents=True)
    for n in range(5):
        (folder / ("f%d" % n)).write_bytes(b"of the next data set")
    return line


@pytest.mark.parametrize("setting", ["PATH", "SOURCE_ENDPOINT_ID"])
def test_jobs_go_on_with_the_data_set_of_their_driver_when_config_py_is_edited(
        setting, cluster, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(5)})
    line = next_data_set(emulator, tmp_path, setting)
    cluster.config("NUM_JOBS = 2")
    cluster.process(WAIT, *KEEP)
    emulator.bend(slots=1)  # the second job is in its download
    driver = cluster.start(BATCH)
    wait_until(lambda: list(cluster.folder.glob("begun.*")))
    cluster.config(line)
    (cluster.folder / "go").touch()
    last, status, said = end(driver)
    assert (last, status) == ("5 processed, 0 failed, 0 not needed", 0), said
    assert contents(cluster.folder / "out") == files
    assert processed(cluster) == dict.fromkeys(files, 1)


@pytest.mark.parametrize("setting", ["PATH", "SOURCE_ENDPOINT_ID"])
@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
def test_jobs_that_wait_in_the_queue_while_config_py_is_edited_keep_their_data_set(
        where, setting, stand_in, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(5)})
    line = next_data_set(emulator, tmp_path, setting)
    go = tmp_path / "go"
    put_before(stand_in, tmp_path, "sbatch",
               '{ echo "until [ -e %s ]; do sleep 0.1; done"; cat; } | "$real" "$@"' % go)
    calls = calls_of(stand_in, tmp_path, "scancel")
    stand_in.config(NEEDED, "DOWNLOAD_BY = %r" % where)
    stand_in.process(*KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: sum(event["event"] == "queued" for event in journal(stand_in)) == 3)
    driver.send_signal(signal.SIGINT)
    assert end(driver)[1] == 130
    stand_in.config(line)
    before = journal(stand_in)
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert "interrupted run" in done.err and setting + " = " in done.err
    for value in {"PATH": (PATH, "/home/share/other/"), "SOURCE_ENDPOINT_ID": (
            "6c54cade-bde5-45c1-bdea-f4bd71dba2cc", OTHER)}[setting]:
        assert value in done.err
    command = next(line for line in done.err.splitlines() if line.startswith("scancel "))
    assert sorted(command.split()[1:]) == ["1000", "1001", "1002"]  # of the packs, in their order
    assert str(stand_in.jobs) in done.err
    assert journal(stand_in) == before and calls() == []
    go.touch()
    wait_until(lambda: len(processed(stand_in)) == 3)
    stand_in.edit("config.py", line, "")
    done = stand_in.run(BATCH)
    assert last_line(done) == "5 processed, 0 failed, 0 not needed"
    assert contents(stand_in.folder / "out") == files
    assert processed(stand_in) == dict.fromkeys(files, 1)


def test_a_link_to_another_config_py_of_the_same_second_and_size_is_the_other_data_set(
        stand_in, emulator):
    assert "PYTHONDONTWRITEBYTECODE" not in stand_in.env
    text = (stand_in.folder / "config.py").read_text() + NEEDED + "\nWORKING_DIR = %r\n" % str(
        stand_in.folder)
    config = stand_in.folder / "config.py"
    config.unlink()
    for name in "12":
        (emulator.source / ("home/share/set" + name)).mkdir()
        (emulator.source / ("home/share/set" + name) / ("of" + name)).write_bytes(b"x")
        path = stand_in.folder / ("generated%s.py" % name)
        path.write_text(text + "PATH = '/home/share/set%s/'\n" % name)
        os.utime(str(path), (1700000000, 1700000000))
    assert len({path.stat().st_size for path in stand_in.folder.glob("generated*")}) == 1
    stand_in.process(*KEEP)
    for name in "12":
        config.symlink_to("generated%s.py" % name)
        assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
        config.unlink()
    assert processed(stand_in) == {"of1": 1, "of2": 1}


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
def test_a_half_saved_line_in_config_py_while_jobs_run_harms_no_file(where, cluster, emulator):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(8)})
    cluster.config("FILES_PER_JOB = 2", "NUM_JOBS = 2", "DOWNLOAD_BY = %r" % where)
    cluster.process(WAIT, *KEEP)
    driver = cluster.start(BATCH)
    wait_until(lambda: list(cluster.folder.glob("begun.*")))
    cluster.config("PATH = '/home/sh")
    (cluster.folder / "go").touch()
    last, status, said = end(driver)
    assert (last, status) == ("8 processed, 0 failed, 0 not needed", 0), said
    assert contents(cluster.folder / "out") == files
    assert processed(cluster) == dict.fromkeys(files, 1)
    done = cluster.run(BATCH)  # at the next start it is told
    assert done.returncode == 2 and "config.py, line " in done.err


# ---- process.sh and wrapper.sh, edited in place ----


@pytest.mark.parametrize("most", [1, 2])
def test_a_process_sh_that_is_shortened_in_place_harms_no_running_job(most, cluster, emulator):
    emulator.add(dict.fromkeys("abcd", b"x"))
    cluster.config("FILES_PER_JOB = %d" % most, "NUM_JOBS = 1")
    cluster.process(*["# a comment that the next version does without"] * 50, WAIT,
                    "mkdir -p out", 'echo old >"out/$GLOBUS_NAME"')
    driver = cluster.start(BATCH)
    wait_until((cluster.folder / "begun.a").exists)
    in_place(cluster.folder / "process.sh",
             "#!/bin/bash\nmkdir -p out\necho new >\"out/$GLOBUS_NAME\"\n")
    (cluster.folder / "go").touch()
    last, status, said = end(driver)
    assert (last, status) == ("4 processed, 0 failed, 0 not needed", 0), said
    assert contents(cluster.folder / "out") == {
        name: b"old\n" if index < most else b"new\n" for index, name in enumerate("abcd")}


@pytest.mark.parametrize("when", ["in its download", "in process.sh"])
@pytest.mark.parametrize("lines", [
    "if [ -e /modules ]; then\nsource '/half/a/na", "exit 7\n" * 100, None],
    ids=["half a line", "many lines", "half the file"])
def test_environment_lines_that_are_edited_in_place_harm_no_running_job(
        lines, when, cluster, emulator):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(2)})  # all of them are at work
    cluster.config("NUM_JOBS = 2")
    cluster.process(WAIT, *KEEP)
    emulator.bend(slots=0 if when == "in its download" else 3)
    driver = cluster.start(BATCH)
    wait_until(lambda: len(emulator.tasks() if when == "in its download"
                           else list(cluster.folder.glob("begun.*"))) == 2)
    text = (cluster.folder / "wrapper.sh").read_text()
    head, behind = text.split("# module load samtools\n")
    if lines is None:  # saved half
        in_place(cluster.folder / "wrapper.sh", head)
    else:
        in_place(cluster.folder / "wrapper.sh", head + lines + behind)
    emulator.bend(slots=3)
    (cluster.folder / "go").touch()
    last, status, said = end(driver)
    assert (last, status) == ("2 processed, 0 failed, 0 not needed", 0), said
    assert contents(cluster.folder / "out") == files
    assert processed(cluster) == dict.fromkeys(files, 1)


def test_environment_lines_that_are_edited_harm_no_job_that_waits_in_the_queue(
        stand_in, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(3)})
    go = tmp_path / "go"
    put_before(stand_in, tmp_path, "sbatch",
               '{ echo "until [ -e %s ]; do sleep 0.1; done"; cat; } | "$real" "$@"' % go)
    stand_in.process(*KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: sum(event["event"] == "queued" for event in journal(stand_in)) == 3)
    text = (stand_in.folder / "wrapper.sh").read_text()
    in_place(stand_in.folder / "wrapper.sh", text.replace("# module load samtools", "exit 7"))
    go.touch()
    last, status, said = end(driver)
    assert (last, status) == ("3 processed, 0 failed, 0 not needed", 0), said
    assert processed(stand_in) == dict.fromkeys(files, 1)


# ---- wrapper.sh, called by process.sh ----


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
def test_a_process_sh_that_calls_wrapper_sh_for_a_mate_keeps_the_results_of_both_right(
        where, cluster, emulator):
    emulator.add({"f%d" % n: b"%d" % n for n in range(6)})
    emulator.add({"mates/f%d" % n: b"mate of %d" % n for n in range(6) if n != 2})
    cluster.config("FILES_PER_JOB = 3", "NUM_JOBS = 2", "DOWNLOAD_BY = %r" % where)
    cluster.process(
        'case $GLOBUS_NAME in mates/f3) echo "no mate for me"; exit 4 ;; mates/*) ;;',
        '*) ./wrapper.sh %s "mates/$GLOBUS_NAME" || exit' % PATH,
        '[ "$GLOBUS_NAME" != f1 ] || exit 3 ;;', "esac", *KEEP)
    done = cluster.run(BATCH)
    assert last_line(done) == "3 processed, 3 failed, 0 not needed", done.err
    assert "FAILED f1: exit status 3" in done.err
    assert "FAILED f2: exit status 1" in done.err  # its mate is not there
    assert "FAILED f3: exit status 4: no mate for me" in done.err
    assert contents(cluster.folder / "out") == {
        "f0": b"0", "f4": b"4", "f5": b"5", "mates/f0": b"mate of 0", "mates/f1": b"mate of 1",
        "mates/f4": b"mate of 4", "mates/f5": b"mate of 5"}
    assert set(processed(cluster).values()) == {1}
    assert cluster.downloaded() == {"f1": b"1", "f2": b"2", "f3": b"3", "mates/f3": b"mate of 3"}


# ---- the environment lines ----

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


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_environment_lines_change_no_result(what, where, stand_in, emulator):
    emulator.add(FILES)
    bend_environment(stand_in, ENVIRONMENTS[what])
    stand_in.config("FILES_PER_JOB = 3", "NUM_JOBS = 2", "DOWNLOAD_BY = %r" % where)
    strict_process(stand_in)
    done = stand_in.run(BATCH)
    assert last_line(done) == "4 processed, 2 failed, 0 not needed", done.err
    assert "FAILED f1: exit status 3" in done.err and "FAILED f4: exit status 4" in done.err
    assert contents(stand_in.folder / "out") == GOOD
    assert processed(stand_in) == dict.fromkeys(GOOD, 1)
    assert stand_in.downloaded() == {"f1": b"1", "f4": b"4"}


def run_wrapper(site, *names):
    return subprocess.run(
        ["bash", str(site.folder / "wrapper.sh"), PATH, *names], cwd=str(site.folder),
        env=dict(site.env, PYTHON=sys.executable), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_environment_lines_change_no_result_by_hand(what, site, emulator):
    emulator.add(FILES)
    bend_environment(site, ENVIRONMENTS[what])
    strict_process(site)
    done = run_wrapper(site, "f0", "f1", "f2")
    assert done.returncode == 3, done.stderr.decode()
    assert contents(site.folder / "out") == {"f0": b"0", "f2": b"2"}
    assert processed(site) == {"f0": 1, "f2": 1}
    assert site.downloaded() == {"f1": b"1"}


STARTUP = "echo Welcome; IFS=x; set -u; CDPATH=/; rm() { return 1; }; mv() { return 1; }"


@pytest.mark.parametrize("how", ["BASH_ENV", "exported functions"])
def test_a_start_up_file_changes_no_result(how, stand_in, emulator, tmp_path):
    emulator.add(FILES)
    startup = tmp_path / "startup"
    startup.write_text({
        "BASH_ENV": STARTUP, "exported functions": "\n".join(
            SHOUT.replace("%s", name)
            for name in ("cd", "rm", "mv", "exec", "trap", "cp", "move"))}[how] + "\n")
    # For the shells of a job, not for the stand-in's.
    put_before(stand_in, tmp_path, "sbatch", '{ echo ". %s; %s"; cat; } | "$real" "$@"' % (
        startup, "export BASH_ENV=%s" % startup if how == "BASH_ENV" else ":"))
    stand_in.config("FILES_PER_JOB = 3", "NUM_JOBS = 2")
    strict_process(stand_in)
    done = stand_in.run(BATCH)
    assert last_line(done) == "4 processed, 2 failed, 0 not needed", done.err
    assert contents(stand_in.folder / "out") == GOOD
    assert stand_in.downloaded() == {"f1": b"1", "f4": b"4"}


@pytest.mark.parametrize("by_hand", [False, True])
def test_what_environment_lines_export_reaches_process_sh_unchanged(by_hand, stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    names = [name for name in NAMES if name not in (
        "_", "GLOBUS_NAME", "GLOBUS_PATH", "wrapper_command")]
    bend_environment(stand_in, "\n".join(
        ["export %s=mine-%s" % (name, name) for name in names]
        + ["tool() { echo 'of a module'; }; export -f tool"]))
    stand_in.config("FILES_PER_JOB = 2")
    stand_in.process("wrong=0", *["[ \"${%s-}\" = mine-%s ] || { echo '%s is' \"${%s-unset}\"; "
                                  "wrong=9; }" % ((name,) * 4) for name in names],
                     "[ \"$(tool)\" = 'of a module' ] || exit 8", "[ $wrong = 0 ] || exit 9",
                     *KEEP)
    if by_hand:
        done = run_wrapper(stand_in, "a", "b")
        assert done.returncode == 0, done.stdout.decode()
    else:
        done = stand_in.run(BATCH)
        assert last_line(done) == "2 processed, 0 failed, 0 not needed", {
            path: (stand_in.jobs / path).read_bytes() for path in contents(stand_in.jobs)
            if path.endswith("0.log")}
    assert processed(stand_in) == {"a": 1, "b": 1}


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


# ---- lines for the scheduler at the top of wrapper.sh ----


def put_at_the_top(site, *lines):
    text = (site.folder / "wrapper.sh").read_text()
    (site.folder / "wrapper.sh").write_text(
        text.replace("#!/bin/bash\n", "#!/bin/bash\n" + "\n".join(lines) + "\n", 1))


def test_sbatch_lines_at_the_top_of_wrapper_sh_are_honoured_and_resources_wins(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    calls = calls_of(stand_in, tmp_path, "sbatch")
    put_at_the_top(stand_in, "#SBATCH --time=5 # minutes", "", "# a comment",
                   "#SBATCH --mem=2G", "##SBATCH --mem=9G")
    text = (stand_in.folder / "wrapper.sh").read_text()
    (stand_in.folder / "wrapper.sh").write_text(text + "#SBATCH --mem=7G\n")  # too late
    stand_in.config("RESOURCES = '--time=7'")
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"
    for call in calls():
        options = [word for word in call.split() if word.startswith(("--time", "--mem"))]
        assert options == ["--time=5", "--mem=2G", "--time=7"]  # the last one counts
    assert len(calls()) == 2
    assert processed(stand_in) == {"a": 1, "b": 1}
    for script in (tmp_path / "stand-in").glob("*/script"):  # nor are they read once more
        assert not [line for line in script.read_text().split("\n\\exec", 1)[0].splitlines()
                    if line.startswith("#SBATCH")]


def test_a_name_or_an_output_there_does_not_hide_a_job(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_at_the_top(stand_in, "#SBATCH --job-name=mine --output=/nowhere/%j")
    stand_in.process('[ "$GLOBUS_NAME" != b ] || exit 3', *KEEP)
    done = stand_in.run(BATCH)
    if done.returncode == 2:
        assert "wrapper.sh" in done.err and processed(stand_in) == {}
        return
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    run = journal(stand_in)[0]["run"]
    names = [path.read_text() for path in (tmp_path / "stand-in").glob("*/name")]
    assert len(names) == 2 and all(name.endswith("-" + run) for name in names)


@pytest.mark.parametrize("option", [
    "--array=1-2", "-a 1-2", "-a1-2", "--clusters=far", "-M far", "--wait", "-W", "--hold", "-H",
    "--test-only", "--dependency=afterok:1", "-d afterok:1", "--wrap=ls"])
def test_an_option_at_the_top_of_wrapper_sh_that_makes_it_another_job_is_refused(
        option, stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    calls = calls_of(stand_in, tmp_path, "sbatch")
    put_at_the_top(stand_in, "#SBATCH --time=5 " + option)
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert "wrapper.sh" in done.err and option.split()[0] in done.err
    assert calls() == [] and emulator.tasks() == [] and not stand_in.jobs.exists()


def test_lines_for_the_scheduler_in_process_sh_are_told_once(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    calls = calls_of(stand_in, tmp_path, "sbatch")
    stand_in.process("#SBATCH --mem=2G", "#SBATCH --time=5", *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed"
    assert done.err.count("#SBATCH") == 1 and "process.sh" in done.err
    assert len(calls()) == 2 and not any("--mem" in call for call in calls())
