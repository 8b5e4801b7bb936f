"""What the environment and the listing bring along, and how long it takes yet."""
import subprocess
import sys

import pytest
from conftest import BATCH, DESTINATION, KEEP, contents, last_line, put_before

SINGLE, SIMPLE, LOGIN = (
    "globus-single-file-download.py", "globus-simple-download.py", "globus-login.py")
PATH = "/home/share/godata/"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="only newer Pythons know PYTHONSAFEPATH")
@pytest.mark.parametrize("script", [SINGLE, SIMPLE, LOGIN, BATCH])
def test_a_safe_path_is_no_problem(script, site):
    site.env["PYTHONSAFEPATH"] = "1"
    assert site.run(script, "--help").returncode == 0


@pytest.mark.skipif(sys.version_info < (3, 11), reason="only newer Pythons know PYTHONSAFEPATH")
def test_a_safe_path_is_no_problem_for_several_names_by_hand(site, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    done = subprocess.run(["bash", str(site.folder / "wrapper.sh"), PATH, "a", "b"],
                          env=dict(site.env, PYTHON=sys.executable, PYTHONSAFEPATH="1"),
                          cwd=str(site.folder), stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("modified", [None, 7])
def test_a_filter_may_compare_a_date_that_globus_does_not_know(modified, stand_in, emulator):
    emulator.fault("/ls", patch={"total": 1, "DATA": [
        {"name": "a", "type": "file", "size": 1, "last_modified": modified}]})
    stand_in.config("def is_file_needed(file): return file.last_modified < '2026'")
    done = stand_in.run(BATCH, "--dry-run")
    assert done.returncode == 0
    assert last_line(done) == "1 to process, 0 refused, 0 not needed"


@pytest.mark.parametrize("files_per_job", [1, 2])
def test_files_without_a_date_go_through_a_batch(files_per_job, stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    emulator.fault("/ls", patch={"total": 2, "DATA": [
        {"name": name, "type": "file", "size": 1, "last_modified": None} for name in "ab"]})
    stand_in.config("FILES_PER_JOB = %d" % files_per_job)
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed", done.out
    assert contents(stand_in.folder / "out") == {"a": b"1", "b": b"2"}


@pytest.mark.long
def test_a_batch_whose_jobs_are_refused_shows_no_time_left(stand_in, emulator, tmp_path):
    emulator.add(dict.fromkeys("abcdef", b"1"))
    full = tmp_path / "full"
    put_before(stand_in, tmp_path, "sbatch", "[ ! -e %s ] || {" % full,
               "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }",
               'exec "$real" "$@"')
    stand_in.config("NUM_JOBS = 1", "POLL_SECONDS = 0.3")
    stand_in.process(*KEEP, '[ "$GLOBUS_NAME" != c ] || touch %s' % full)
    seen = []
    for screen in stand_in.watch(BATCH, columns=160):
        text = " ".join(screen.display)
        if "3 of 6 files, 0 jobs" in text and full.exists() and "did not accept a job" in text:
            seen.append(text.rpartition("3 of 6 files")[2])
            if len(seen) > 3:
                full.unlink()
    assert screen.status == 0
    assert len(seen) > 3 and "left" not in seen[2]


def test_a_download_over_quota_shows_no_time_left(site, emulator):
    emulator.add({"a": b"x" * 500, "b": b"x" * 2000})
    emulator.bend(retry_seconds=0.2, collections={DESTINATION: {"quota": 1000}})
    site.config("import helper", "helper.SLOWEST_POLL = 0.3")
    seen = ""
    for screen in site.watch(SIMPLE, columns=160):
        lines = [line for line in screen.display if "B/s" in line and "over quota" in line]
        if lines and not seen:
            seen = lines[0]
            emulator.bend(collections={DESTINATION: {"quota": None}})
    assert screen.status == 0
    assert "1 of 2 files, 500 B of 2.5 kB" in seen and "left" not in seen
