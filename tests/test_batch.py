"""globus-batch-download.py, "the driver" and "the whole": a run from its first file to its last,
with NUM_JOBS jobs in the system. What goes wrong on the way is in files of its own: README.md."""
import json
import os
import re
import subprocess
import threading
import time

import pytest
from conftest import (
    BATCH,
    KEEP,
    NEEDED,
    contents,
    copy_downloads,
    entries,
    last_line,
    processed,
    strange_tree,
)


def test_a_tree_of_strange_names_is_processed_once_each_byte_for_byte(cluster, emulator):
    tree = emulator.add(strange_tree())
    cluster.config("RECURSIVE = True", "NUM_JOBS = 6", "FILES_PER_JOB = 5")
    cluster.process(*KEEP)
    done = cluster.run(BATCH)
    assert done.returncode == 0, done.err
    assert last_line(done) == "30 processed, 0 failed, 0 not needed"
    assert contents(cluster.folder / "out") == tree
    assert set(processed(cluster).values()) == {1}


def test_nothing_is_left_behind_but_the_results_and_a_second_run_does_nothing(
        every_cluster, emulator):
    emulator.add({"it's a": b"1", "sub/-$b": b"2"})
    every_cluster.config("RECURSIVE = True")
    every_cluster.run(BATCH)
    assert list(every_cluster.downloads.iterdir()) == []
    assert sorted(os.listdir(str(every_cluster.jobs))) == ["driver.lock", "journal.jsonl"]
    assert sorted(contents(every_cluster.results)) == ["it's a.sha256", "sub/-$b.sha256"]
    done = every_cluster.run(BATCH)
    assert done.returncode == 0
    assert done.out == (
        "2 files not needed: is_file_needed says that they are done, or not wanted\n"
        "0 processed, 0 failed, 2 not needed\n")
    assert len(emulator.tasks()) == 2


@pytest.mark.long
@pytest.mark.parametrize("every_cluster", ["stand-in torque", "stand-in sge"], indirect=True)
def test_nothing_is_left_behind_by_the_other_schedulers(every_cluster, emulator):
    test_nothing_is_left_behind_but_the_results_and_a_second_run_does_nothing(
        every_cluster, emulator)


def test_a_failing_process_sh_is_named_with_its_log_keeps_the_download_and_is_tried_again(
        every_cluster, emulator):
    emulator.add({"a": b"1", "bad": b"22", "c": b"3"})
    every_cluster.config("FILES_PER_JOB = 3", "NUM_JOBS = 1", NEEDED)
    every_cluster.process('case $1 in */bad) [ -e mended ] || { echo "no good data"; exit 3; } ;; '
                          'esac', *KEEP)
    done = every_cluster.run(BATCH)
    assert done.returncode == 1
    assert last_line(done) == "2 processed, 1 failed, 0 not needed"
    failure, = [line for line in done.out.splitlines() if line.startswith("FAILED bad")]
    assert "exit status 3: no good data" in failure
    log = re.search(r"(jobs/.*\.log)\)", failure).group(1)
    assert "no good data" in (every_cluster.folder / log).read_text()
    assert every_cluster.downloaded() == {"bad": b"22"}
    (every_cluster.folder / "mended").touch()
    done = every_cluster.run(BATCH)
    assert done.returncode == 0
    assert last_line(done) == "1 processed, 0 failed, 2 not needed"


def test_a_file_that_did_not_arrive_is_not_processed(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    listed = entries("a", "b")
    listed[1]["size"] = 7
    emulator.fault("/ls", patch={"DATA": listed, "total": 2})
    emulator.fault(r"/stat.path=.*b$", patch={"size": 7})
    stand_in.config("helper.ARRIVAL_SECONDS = 1", "FILES_PER_JOB = 2", "NUM_JOBS = 1")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    assert "came with 2 bytes, but was listed with 7" in done.out
    assert processed(stand_in) == {"a": 1}


class Sampler(threading.Thread):
    """Counts our jobs in squeue, again and again."""

    def __init__(self, site):
        super().__init__(daemon=True)
        self.site, self.counts, self.is_over = site, [], False

    def run(self):
        while not self.is_over:
            command = {"slurm": ["squeue", "-h", "--format=%i|%j|%T|%r"],
                       "sge": ["qstat", "-xml"]}[self.site.scheduler]
            text = subprocess.check_output(command, env=self.site.env).decode()
            self.counts.append(sum("-" + self.run_name() in line for line in text.splitlines()))
            time.sleep(0.02)

    def run_name(self):
        try:
            with open(str(self.site.jobs / "journal.jsonl")) as file:
                return json.loads(file.readline())["run"]
        except (OSError, ValueError):
            return "no run yet"


@pytest.mark.long
def test_there_are_never_more_than_num_jobs_and_a_free_slot_does_not_wait_for_the_next_poll(
        cluster, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(9)})
    copy_downloads(cluster).config("POLL_SECONDS = 100")
    cluster.process("sleep 2", *KEEP)
    sampler, begun = Sampler(cluster), time.monotonic()
    sampler.start()
    done = cluster.run(BATCH)
    sampler.is_over = True
    sampler.join()
    assert last_line(done) == "9 processed, 0 failed, 0 not needed"
    assert max(sampler.counts) == 3
    assert time.monotonic() - begun < 100  # each slot was free two times


def test_an_empty_directory_is_well(stand_in):
    done = stand_in.run(BATCH)
    assert done.returncode == 0
    assert last_line(done) == "0 processed, 0 failed, 0 not needed"


@pytest.mark.parametrize("name", ["it's 100% \"my\" $dir", "it's 100% back\\slash"])
def test_a_working_dir_with_a_strange_name_is_fine(name, cluster, emulator):
    emulator.add({"a": b"1"})
    place = cluster.folder / name
    cluster.config("WORKING_DIR = %r" % str(place))
    cluster.process(*KEEP)
    done = cluster.run(BATCH)
    assert done.returncode == 0, done.err
    assert contents(place / "out") == {"a": b"1"}
