"""wrapper.sh, by hand and from process.sh: download, process.sh, delete, and its exit status."""
import os
import subprocess

import pytest
from conftest import (
    BATCH,
    KEEP,
    PATH,
    STRANGE_NAMES,
    contents,
    copier,
    copy_downloads,
    last_line,
    processed,
    run_wrapper,
)
from in_process import load


@pytest.fixture
def copying(fresh_site):
    """A site whose wrapper.sh copies what it is to download."""
    copy_downloads(fresh_site)
    return fresh_site


def check_names(site, names):
    site.emulator.add(dict.fromkeys(names, b"data"))
    done = run_wrapper(site, *names)
    assert done.returncode == 0, done.stderr
    assert site.downloaded() == {}
    assert {name: text.decode().partition("  ")[2] for name, text in contents(
        site.results).items()} == {name + ".sha256": name + "\n" for name in names}


def test_wrapper_downloads_processes_and_deletes_files_of_any_name(copying):
    check_names(copying, STRANGE_NAMES + ["sub dir/$deep's/*"])


def test_wrapper_hands_names_to_python_as_they_are(site):
    check_names(site, ["-rf", "sub dir/$deep's/*"])


def test_wrapper_gives_process_sh_the_absolute_path_and_working_dir(copying, emulator):
    emulator.add({"a": b"1"})
    copying.process('printf "%s\\n" "$1" "$PWD" >seen')
    run_wrapper(copying, "a")
    assert (copying.folder / "seen").read_text().split("\n")[:2] == [
        str(copying.downloads / "a"), str(copying.folder)]


def test_wrapper_runs_a_process_sh_that_is_not_executable(copying, emulator):
    emulator.add({"a": b"1"})
    os.chmod(str(copying.folder / "process.sh"), 0o644)
    assert run_wrapper(copying, "a").returncode == 0


def test_wrapper_is_content_with_a_process_sh_that_moves_the_file_away(copying, emulator):
    emulator.add({"a": b"1"})
    copying.process('mv -- "$1" moved')
    assert run_wrapper(copying, "a").returncode == 0


def test_wrapper_finds_its_folder_though_cdpath_is_set(copying, emulator):
    emulator.add({"a": b"1"})
    env = dict(copying.env, CDPATH=str(copying.home))
    (copying.home / copying.folder.name).mkdir()
    done = subprocess.run(["bash", "%s/wrapper.sh" % copying.folder.name, PATH, "a"], env=env,
                          cwd=str(copying.folder.parent), stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr


BANNERS = {
    "a line": "echo 'Loading python/3.11'",
    "a path of another file": "echo /etc/passwd",
    "several lines": "printf '\\n*** maintenance on Monday ***\\n/scratch/\\n\\n'",
}
HIDING = {
    "before, without a line feed": "printf '/Welcome! '",
    "at the end": "trap 'echo /Welcome!' EXIT",
    "no line feed at the end": "trap 'printf /Welcome!' EXIT",
}


def add_banner(python, command):
    """Let what downloads print something."""
    first, rest = python.read_text().split("\n", 1)
    python.write_text("\n".join([first, command, rest]))


@pytest.mark.parametrize("banner", BANNERS)
def test_what_else_is_printed_on_stdout_is_not_taken_for_the_path(banner, fresh_site, emulator):
    emulator.add({"it's a": b"data", "b": b"2"})
    add_banner(copier(copy_downloads(fresh_site)), BANNERS[banner])
    done = run_wrapper(fresh_site, "it's a", "b")
    assert done.returncode == 0, done.stderr
    assert fresh_site.downloaded() == {} and len(contents(fresh_site.results)) == 2


@pytest.mark.parametrize("banner", HIDING)
def test_a_path_that_cannot_be_told_from_a_banner_fails_and_deletes_nothing(
        banner, fresh_site, emulator):
    emulator.add({"a": b"data"})
    add_banner(copier(copy_downloads(fresh_site)), HIDING[banner])
    done = run_wrapper(fresh_site, "a")
    assert done.returncode == 1
    assert fresh_site.downloaded() == {"a": b"data"} and not fresh_site.results.exists()
    assert b"/Welcome!" in done.stderr


def test_wrapper_by_hand_takes_several_names_and_ends_with_the_last_failure(site, emulator):
    emulator.add({"a": b"1", "sub/a": b"2"})
    site.process('[ "$GLOBUS_NAME" != sub/a ] || exit 7', *KEEP)
    done = run_wrapper(site, "nothing", "sub/a", "a")
    assert done.returncode == 7, done.stderr
    assert processed(site) == {"a": 1}
    assert site.downloaded() == {"sub/a": b"2"}


def test_wrapper_ends_with_the_status_of_the_download_and_processes_nothing(
        fresh_site, emulator):
    emulator.add({"a": b"1"})
    add_banner(copier(copy_downloads(fresh_site)), "exit 9")
    fresh_site.process(*KEEP)
    assert run_wrapper(fresh_site, "a").returncode == 9
    assert processed(fresh_site) == {}


def test_wrapper_takes_no_file_for_another_one_whose_name_ends_alike(copying, emulator):
    emulator.add({"sub/a": b"2"})
    copying.process(*KEEP)
    assert run_wrapper(copying, "a", "sub/a").returncode == 1
    assert processed(copying) == {"sub/a": 1}


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
def test_a_process_sh_that_calls_wrapper_sh_for_a_mate_keeps_the_results_of_both_right(
        where, cluster, emulator):
    emulator.add({"f%d" % n: b"%d" % n for n in range(5)})
    emulator.add({"mates/f%d" % n: b"mate of %d" % n for n in (0, 2, 3, 4)})
    cluster.config("FILES_PER_JOB = 5", "NUM_JOBS = 1", "DOWNLOAD_BY = %r" % where)
    cluster.process(
        'case $GLOBUS_NAME in mates/f3) echo "no mate for me"; exit 4 ;; mates/*) ;;',
        '*) ./wrapper.sh %s "mates/$GLOBUS_NAME" || exit' % PATH,
        '[ "$GLOBUS_NAME" != f2 ] || exit 3 ;;', "esac", *KEEP)
    done = cluster.run(BATCH)
    assert last_line(done) == "2 processed, 3 failed, 0 not needed", done.err
    assert "FAILED f1: exit status 1" in done.err  # its mate is not there
    assert "FAILED f2: exit status 3" in done.err
    assert "FAILED f3: exit status 4: no mate for me" in done.err
    assert contents(cluster.folder / "out") == {
        "f0": b"0", "f4": b"4", "mates/f0": b"mate of 0", "mates/f2": b"mate of 2",
        "mates/f4": b"mate of 4"}
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


def test_an_older_wrapper_is_refused_with_a_message(tmp_path, monkeypatch):
    batch = load("globus-batch-download")
    monkeypatch.setattr(batch, "HERE", str(tmp_path))
    (tmp_path / "wrapper.sh").write_text(OLD_WRAPPER)
    with pytest.raises(batch.helper.UserError, match="wrapper.sh is of an older version") as told:
        batch.check_scripts(batch.SCHEDULERS["slurm"], None)
    assert told.value.status == 2 and "Copy your environment lines" in str(told.value)


def test_words_of_a_true_python_on_stdout_change_nothing_for_a_job_nor_by_hand(
        packs, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"x" for n in range(5)})
    (tmp_path / "patch").mkdir()
    packs.config("NUM_JOBS = 1")
    packs.env["PYTHONPATH"] = str(tmp_path / "patch")
    banner = tmp_path / "patch" / "sitecustomize.py"
    banner.write_text("print('Welcome!', end=' ')\n")
    assert last_line(packs.run(BATCH)).endswith("5 processed, 0 failed, 0 not needed")
    banner.write_text("print('Welcome!')\n")
    done = run_wrapper(packs, "f1")
    assert done.returncode == 0, done.stderr
    assert processed(packs) == dict(dict.fromkeys(files, 1), f1=2)
    assert packs.downloaded() == {}


def test_wrapper_sh_by_itself_says_what_it_is(fresh_site):
    done = subprocess.run([str(fresh_site.folder / "wrapper.sh")], env=fresh_site.env,
                          stderr=subprocess.PIPE)
    assert done.returncode == 2 and b"usage: wrapper.sh DIR NAME..." in done.stderr
