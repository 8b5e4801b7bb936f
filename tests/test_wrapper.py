"""wrapper.sh, by hand and from process.sh: download, process.sh, delete, and its exit status."""
import os
import subprocess
import sys

import pytest
from conftest import (
    BATCH,
    KEEP,
    PATH,
    STRANGE_NAMES,
    contents,
    last_line,
    processed,
    run_wrapper,
)


@pytest.mark.parametrize("name", STRANGE_NAMES[::3] + ["sub dir/$deep's/*"])
def test_wrapper_downloads_processes_and_deletes(site, emulator, name):
    emulator.add({name: b"data"})
    done = run_wrapper(site, name)
    assert done.returncode == 0, done.stderr
    assert site.downloaded() == {}
    result, = contents(site.results).values()
    assert result.decode().endswith("  %s\n" % name)
    assert (site.results / (name + ".sha256")).exists()


def test_wrapper_gives_process_sh_the_absolute_path_and_working_dir(site, emulator):
    emulator.add({"a": b"1"})
    site.process('printf "%s\\n" "$1" "$PWD" >seen')
    run_wrapper(site, "a")
    assert (site.folder / "seen").read_text().split("\n")[:2] == [
        str(site.downloads / "a"), str(site.folder)]


def test_wrapper_ends_with_the_status_of_process_sh_and_keeps_the_file(site, emulator):
    emulator.add({"a": b"1"})
    site.process("exit 3")
    assert run_wrapper(site, "a").returncode == 3
    assert site.downloaded() == {"a": b"1"}


def test_wrapper_ends_with_the_status_of_the_download_and_processes_nothing(site):
    site.process("touch processed")
    assert run_wrapper(site, "nothing").returncode == 1
    assert not (site.folder / "processed").exists()


def test_wrapper_runs_a_process_sh_that_is_not_executable(site, emulator):
    emulator.add({"a": b"1"})
    os.chmod(str(site.folder / "process.sh"), 0o644)
    assert run_wrapper(site, "a").returncode == 0


def test_wrapper_is_content_with_a_process_sh_that_moves_the_file_away(site, emulator):
    emulator.add({"a": b"1"})
    site.process('mv -- "$1" moved')
    assert run_wrapper(site, "a").returncode == 0


def test_wrapper_finds_its_folder_though_cdpath_is_set(site, emulator):
    emulator.add({"a": b"1"})
    env = dict(site.env, PYTHON=sys.executable, CDPATH=str(site.home))
    (site.home / site.folder.name).mkdir()
    done = subprocess.run(["bash", "%s/wrapper.sh" % site.folder.name, PATH, "a"], env=env,
                          cwd=str(site.folder.parent), stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr


BANNERS = {
    "a line": "print('Loading python/3.11')",
    "a path of another file": "print('/etc/passwd')",
    "several lines": "print('\\n*** maintenance on Monday ***\\n/scratch/\\n')",
}
HIDING = {
    "before, without a line feed": "print('/Welcome! ', end='')",
    "at the end": "import atexit; atexit.register(print, '/Welcome!')",
    "no line feed at the end": "import atexit; atexit.register(print, '/Welcome!', end='')",
}


@pytest.mark.parametrize("banner", BANNERS)
def test_what_else_is_printed_on_stdout_is_not_taken_for_the_path(
        banner, site, emulator, tmp_path):
    emulator.add({"it's a": b"data"})
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(BANNERS[banner] + "\n")
    site.env["PYTHONPATH"] = str(tmp_path / "patch")
    done = run_wrapper(site, "it's a")
    assert done.returncode == 0, done.stderr
    assert site.downloaded() == {} and len(contents(site.results)) == 1


@pytest.mark.parametrize("banner", HIDING)
def test_a_path_that_cannot_be_told_from_a_banner_fails_and_deletes_nothing(
        banner, site, emulator, tmp_path):
    emulator.add({"a": b"data"})
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(HIDING[banner] + "\n")
    site.env["PYTHONPATH"] = str(tmp_path / "patch")
    done = run_wrapper(site, "a")
    assert done.returncode == 1
    assert site.downloaded() == {"a": b"data"} and not site.results.exists()
    assert b"/Welcome!" in done.stderr


def test_wrapper_by_hand_takes_several_names_and_ends_with_the_last_failure(site, emulator):
    emulator.add({"a": b"1", "sub/a": b"2", "it's": b"3"})
    site.process('[ "$GLOBUS_NAME" != sub/a ] || exit 7', *KEEP)
    done = run_wrapper(site, "nothing", "a", "sub/a", "it's")
    assert done.returncode == 7, done.stderr
    assert processed(site) == {"a": 1, "it's": 1}
    assert site.downloaded() == {"sub/a": b"2"}


def test_wrapper_takes_no_file_for_another_one_whose_name_ends_alike(site, emulator):
    emulator.add({"sub/a": b"2"})
    site.process(*KEEP)
    assert run_wrapper(site, "a", "sub/a").returncode == 1
    assert processed(site) == {"sub/a": 1}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="only newer Pythons know PYTHONSAFEPATH")
def test_a_safe_path_is_no_problem_for_several_names_by_hand(site, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    done = subprocess.run(["bash", str(site.folder / "wrapper.sh"), PATH, "a", "b"],
                          env=dict(site.env, PYTHON=sys.executable, PYTHONSAFEPATH="1"),
                          cwd=str(site.folder), stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr


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


OLD_WRAPPER = """#!/bin/bash
trap : HUP INT TERM XCPU USR1 USR2
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
export GLOBUS_NAME=$2
file=$("$PYTHON" "$here/globus-single-file-download.py" --globus-path "$1" --file "$2") || exit
bash "$here/process.sh" "$file" || exit
rm -f -- "$file"
"""


def test_an_older_wrapper_is_refused_with_a_message(stand_in, emulator):
    emulator.add({"a": b"1"})
    (stand_in.folder / "wrapper.sh").write_text(OLD_WRAPPER)
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and "wrapper.sh is of an older version" in done.err
    assert "Copy your environment lines" in done.err and emulator.tasks() == []


def add_banner(site, tmp_path, end):
    """Every Python of the site prints this first."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text("print('Welcome!', end=%r)\n" % end)
    site.env["PYTHONPATH"] = str(tmp_path / "patch")


def test_words_on_stdout_change_nothing_for_the_files_of_a_job(packs, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"x" for n in range(6)})
    add_banner(packs, tmp_path, " ")
    assert last_line(packs.run(BATCH)).endswith("6 processed, 0 failed, 0 not needed")
    assert processed(packs) == dict.fromkeys(files, 1)


def test_a_line_on_stdout_changes_nothing_by_hand(site, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    add_banner(site, tmp_path, "\n")
    site.process(*KEEP)
    done = run_wrapper(site, "a", "b")
    assert done.returncode == 0, done.stderr
    assert processed(site) == {"a": 1, "b": 1} and site.downloaded() == {}


def test_wrapper_sh_by_itself_says_what_it_is(site):
    done = subprocess.run([str(site.folder / "wrapper.sh")], stderr=subprocess.PIPE, env=site.env)
    assert done.returncode == 2 and b"usage: wrapper.sh DIR NAME..." in done.stderr
