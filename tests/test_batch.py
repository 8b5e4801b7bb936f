"""globus-batch-download.py, with stand-in schedulers and with the real Slurm and Grid Engine."""
import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter

import pytest
from conftest import (
    BATCH,
    KEEP,
    contents,
    count_calls,
    journal,
    last_line,
    load,
    processed,
    put_before,
    strange_tree,
    wait_until,
)


def test_a_tree_of_strange_names_is_processed_once_each_byte_for_byte(cluster, emulator):
    tree = emulator.add(strange_tree())
    cluster.config("RECURSIVE = True", "NUM_JOBS = 6")
    cluster.process(*KEEP)
    done = cluster.run(BATCH)
    assert done.returncode == 0, done.err
    assert last_line(done) == "30 processed, 0 failed, 0 not needed"
    assert contents(cluster.folder / "out") == tree
    assert set(processed(cluster).values()) == {1}


def test_nothing_is_left_behind_but_the_results(every_cluster, emulator):
    emulator.add({"it's a": b"1", "sub/-$b": b"2"})
    every_cluster.config("RECURSIVE = True")
    every_cluster.run(BATCH)
    assert list(every_cluster.downloads.iterdir()) == []
    assert sorted(os.listdir(str(every_cluster.jobs))) == ["driver.lock", "journal.jsonl"]
    assert sorted(contents(every_cluster.results)) == ["it's a.sha256", "sub/-$b.sha256"]


def test_a_second_run_does_nothing(cluster, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    cluster.run(BATCH)
    done = cluster.run(BATCH)
    assert done.returncode == 0
    assert done.out == (
        "2 files not needed: is_file_needed says that they are done, or not wanted\n"
        "0 processed, 0 failed, 2 not needed\n")
    assert len(emulator.tasks()) == 2


@pytest.mark.long
@pytest.mark.parametrize("every_cluster", ["stand-in torque", "stand-in sge"], indirect=True)
def test_nothing_is_left_behind_by_the_other_schedulers(every_cluster, emulator):
    test_nothing_is_left_behind_but_the_results(every_cluster, emulator)


def test_a_failing_process_sh_is_named_with_its_log_and_keeps_the_download(every_cluster, emulator):
    emulator.add({"a": b"1", "bad": b"22", "c": b"3"})
    every_cluster.process('case $1 in */bad) echo "no good data"; exit 3 ;; esac', *KEEP)
    done = every_cluster.run(BATCH)
    assert done.returncode == 1
    assert last_line(done) == "2 processed, 1 failed, 0 not needed"
    failure, = [line for line in done.out.splitlines() if line.startswith("FAILED bad")]
    assert "exit status 3: no good data" in failure
    log = re.search(r"(jobs/.*\.log)\)", failure).group(1)
    assert "no good data" in (every_cluster.folder / log).read_text()
    assert every_cluster.downloaded() == {"bad": b"22"}


def test_a_failed_file_is_tried_again_by_the_next_run(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.process("[ -e mended ] || exit 3", *KEEP)
    assert stand_in.run(BATCH).returncode == 1
    (stand_in.folder / "mended").touch()
    done = stand_in.run(BATCH)
    assert done.returncode == 0
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"


def test_a_file_that_did_not_arrive_is_not_processed(cluster, emulator):
    emulator.add({"a": b"1", "b": b"22"})
    listed = entries("a", "b")
    listed[1]["size"] = 7
    emulator.fault("/ls", patch={"DATA": listed, "total": 2})
    emulator.fault(r"/stat.path=.*b$", patch={"size": 7})
    cluster.config("helper.ARRIVAL_SECONDS = 1")
    cluster.process(*KEEP)
    done = cluster.run(BATCH)
    assert done.returncode == 1
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    assert "came with 2 bytes, but was listed with 7" in done.out
    assert processed(cluster) == {"a": 1}


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
def test_there_are_never_more_than_num_jobs_and_nearly_always_as_many(cluster, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(12)})
    cluster.process("sleep 3", *KEEP)
    sampler = Sampler(cluster)
    sampler.start()
    done = cluster.run(BATCH)
    sampler.is_over = True
    sampler.join()
    assert done.returncode == 0
    counts = sampler.counts
    full = [n for n, number in enumerate(counts) if number == 3]
    assert max(counts) == 3
    busy = counts[full[0]:full[-1] + 1]
    assert sum(busy) / len(busy) > 3 * 0.75, Counter(busy)  # while other tests have the processor


def test_the_queue_is_asked_once_each_poll_seconds(stand_in, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(9)})
    questions = count_calls(stand_in, tmp_path, "squeue")
    stand_in.config("POLL_SECONDS = 2")
    stand_in.process("sleep 0.5", *KEEP)
    begun = time.monotonic()
    assert stand_in.run(BATCH).returncode == 0
    assert 1 <= questions() <= 1 + (time.monotonic() - begun) / 2


def test_dry_run_lists_what_is_needed_and_submits_nothing(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"22", "c": b"333"})
    stand_in.config("def is_file_needed(file): return file.size > 1")
    done = stand_in.run(BATCH, "--dry-run")
    assert done.returncode == 0
    assert [line.split() for line in done.out.splitlines()] == [
        ["2", "b"], ["3", "c"], "2 to process, 0 refused, 1 not needed".split()]
    assert not stand_in.jobs.exists()


def test_the_filter_sees_path_size_and_date(stand_in, emulator):
    emulator.add({"sub/a": b"123"})
    stand_in.config("RECURSIVE = True", "def is_file_needed(file):",
                    "    print(repr((file.path, file.size, file.last_modified)))",
                    "    return False")
    done = stand_in.run(BATCH)
    assert re.match(r"\('sub/a', 3, '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00'\)", done.out)
    assert last_line(done) == "0 processed, 0 failed, 1 not needed"


def test_limit_processes_that_many(stand_in, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(5)})
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH, "--limit", "2")) == "2 processed, 0 failed, 0 not needed"
    assert len(processed(stand_in)) == 2


def test_an_empty_directory_is_well(stand_in):
    done = stand_in.run(BATCH)
    assert done.returncode == 0
    assert last_line(done) == "0 processed, 0 failed, 0 not needed"


def test_resources_that_can_never_work_stop_the_run_with_the_schedulers_words(cluster, emulator):
    emulator.add({"a": b"1"})
    cluster.config("RESOURCES = '--nonsense=3'")
    done = cluster.run(BATCH)
    assert done.returncode == 1
    words = {"slurm": "sbatch: unrecognized option '--nonsense=3'",
             "sge": 'qsub: invalid option argument "--nonsense=3"'}
    assert words[cluster.scheduler] in done.err
    assert "RESOURCES" in done.err


def test_a_name_of_ones_own_in_resources_hides_no_job(cluster, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    cluster.config("GRACE_SECONDS = 1", "RESOURCES = %r" % {
        "slurm": "--job-name=mine --output=mine.log", "sge": "-N mine -o mine.log"}[
            cluster.scheduler])
    cluster.process("sleep 3", *KEEP)
    done = cluster.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed", done.out
    assert not (cluster.folder / "mine.log").exists()


def test_the_run_goes_on_once_resources_are_mended(cluster, emulator):
    emulator.add({"a": b"1"})
    cluster.config("RESOURCES = '--nonsense=3'")
    cluster.run(BATCH)
    cluster.config("RESOURCES = %r" % {"slurm": "--time=5", "sge": "-l h_rt=300"}[
        cluster.scheduler])
    assert last_line(cluster.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_a_job_runs_with_the_python_and_environment_of_the_driver(cluster, emulator):
    emulator.add({"a": b"1"})
    cluster.env["MY_OWN"] = "it's here"
    cluster.process('printf "%s\\n" "$PYTHON" "$MY_OWN" >seen')
    assert cluster.run(BATCH).returncode == 0
    assert (cluster.folder / "seen").read_text() == cluster.command("")[0] + "\nit's here\n"


@pytest.mark.parametrize("name", ["it's 100% \"my\" $dir", "it's 100% back\\slash"])
def test_a_working_dir_with_a_strange_name_is_fine(name, cluster, emulator):
    emulator.add({"a": b"1"})
    place = cluster.folder / name
    cluster.config("WORKING_DIR = %r" % str(place))
    cluster.process(*KEEP)
    done = cluster.run(BATCH)
    assert done.returncode == 0, done.err
    assert contents(place / "out") == {"a": b"1"}


@pytest.mark.parametrize("env", [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}], ids=str)
def test_names_are_utf8_whatever_the_environment_says(env, stand_in, emulator):
    emulator.add({"gr\u00fc\u00df": b"1"})
    stand_in.env.update(env)
    assert "gr\u00fc\u00df" in stand_in.run(BATCH, "--dry-run").out
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert contents(stand_in.folder / "out") == {"gr\u00fc\u00df": b"1"}


def test_ctrl_c_leaves_the_jobs_and_tells_how_to_go_on_and_how_to_cancel(every_cluster, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    every_cluster.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = every_cluster.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    wait_until(lambda: b"(job" in driver.stderr.readline())
    driver.send_signal(signal.SIGINT)
    err = driver.communicate()[1].decode()
    (every_cluster.folder / "go").touch()
    assert driver.returncode == 130 and "Traceback" not in err
    assert "Start this script again" in err and re.search(r"(scancel|qdel) \d+\S* \d+", err)
    done = every_cluster.run(BATCH)
    assert last_line(done) == "4 processed, 0 failed, 0 not needed"
    assert set(processed(every_cluster).values()) == {1}


def test_a_killed_driver_started_again_takes_up_its_jobs(every_cluster, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    every_cluster.process("sleep 1", *KEEP)
    driver = every_cluster.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    driver.kill()
    driver.communicate()
    done = every_cluster.run(BATCH)
    assert "Resuming the interrupted run" in done.err
    assert last_line(done) == "4 processed, 0 failed, 0 not needed"
    assert processed(every_cluster) == {"f%d" % n: 1 for n in range(4)}


def test_a_second_driver_is_refused(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    first = stand_in.start(BATCH)
    wait_until(lambda: b"(job" in first.stderr.readline())
    second = stand_in.run(BATCH)
    (stand_in.folder / "go").touch()
    assert second.returncode == 1
    assert second.err.startswith("Another globus-batch-download.py is running in %s, on %s as "
                                 "process %d, since 20" % (
                                     stand_in.folder, os.uname().nodename, first.pid))
    first.communicate()
    assert first.returncode == 0 and processed(stand_in) == {"a": 1}


def test_a_damaged_journal_stops_the_driver_with_the_way_out(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.jobs.mkdir()
    (stand_in.jobs / "journal.jsonl").write_text(
        '{"event": "run", "run": "abcde", "version": 3, "identity": {}}\n{"event": "submit"}\n')
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert "journal.jsonl is damaged" in done.err and "remove the folder" in done.err
    assert emulator.tasks() == []


def test_a_second_writer_of_the_journal_stops_the_driver(stand_in, emulator):
    """As where locks hold on one host only, and a driver was started on another one."""
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("NUM_JOBS = 1")
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    with open(str(stand_in.jobs / "journal.jsonl"), "a") as file:
        file.write("\n")
    assert b"Another driver writes to " in driver.communicate()[1]
    assert driver.returncode == 1


def test_what_a_killed_driver_did_not_clear_away_is_gone_after_the_next(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("NUM_JOBS = 1")
    stand_in.process('[ "$GLOBUS_NAME" = a ] || sleep 2', *KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"processed a" in driver.stderr.readline())
    driver.kill()
    driver.communicate()
    name = next(event["pack"] for event in journal(stand_in) if event["event"] == "pack")
    for folder in (stand_in.jobs / name, stand_in.downloads / name):
        folder.mkdir(exist_ok=True)
        (folder / "log").write_text("left behind")
    assert stand_in.run(BATCH).returncode == 0
    assert sorted(os.listdir(str(stand_in.jobs))) == ["driver.lock", "journal.jsonl"]
    assert list(stand_in.downloads.iterdir()) == []
    assert processed(stand_in) == {"a": 1, "b": 1}


def test_an_interrupted_run_of_another_path_is_not_mixed_up(stand_in, emulator):
    emulator.add({"a": b"1", "sub/b": b"2"})
    stand_in.process("sleep 1")
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"(job" in driver.stderr.readline())
    driver.kill()
    driver.communicate()
    stand_in.config("PATH = '/home/share/godata/sub'")
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert ("There is an interrupted run here, with PATH = '/home/share/godata/', not "
            "'/home/share/godata/sub/'.\n" in done.err)
    job = next(event["id"] for event in journal(stand_in) if event["event"] == "queued")
    assert "scancel " + job in done.err and "remove the folder %s" % stand_in.jobs in done.err


def test_a_run_of_which_nothing_came_is_forgotten_when_path_is_mended(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("PATH = '/home/share/gdata'")
    assert stand_in.run(BATCH).returncode == 2
    stand_in.config("PATH = '/home/share/godata'")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_jobs_of_an_interrupted_run_are_not_looked_for_on_another_cluster(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue", '[ "$SLURM_CLUSTERS" != other ] || exec "$real" "$@"',
               "echo 'JOBID|NAME|STATE|REASON'")
    stand_in.config("GRACE_SECONDS = 0")
    stand_in.process("touch begun; until [ -e go ]; do sleep 0.1; done", *KEEP)
    there = dict(stand_in.env, SLURM_CLUSTERS="other")
    here, stand_in.env = stand_in.env, there
    driver = stand_in.start(BATCH)
    wait_until((stand_in.folder / "begun").exists)
    driver.kill()
    driver.communicate()
    stand_in.env = here
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert ("There is an interrupted run here, with cluster = 'stand-in SLURM_CLUSTERS=other', not "
            "'stand-in'.\n" in done.err)
    (stand_in.folder / "go").touch()
    stand_in.env = there
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1}


def test_a_larger_file_than_max_bytes_fails_with_that_reason(stand_in, emulator):
    emulator.add({"a": b"1", "big": b"x" * 2000})
    stand_in.config("MAX_BYTES = 1000")
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert "FAILED big: is larger than MAX_BYTES (2 kB)\n" in done.out
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"


def test_a_bar_on_a_terminal_shows_how_far_it_is(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    seen = ["\n".join(screen.display) for screen in stand_in.watch(BATCH)]
    for line in (r"0:00:\d\d \[\.{8}] 0 of 2 files, 2 jobs in the queue",
                 r"0:00:\d\d \[#{8}] 2 of 2 files, 0 jobs"):
        assert any(re.search("(?m)^" + line, text) for text in seen)
    assert not any("submitted" in s for s in seen)


def test_what_matters_most_fits_80_columns_and_the_bar_takes_what_is_left():
    with_bar = load("globus-batch-download").with_bar
    text = "123,456 of 270,000 files, 1,234 failed, ~12.5 h left, 100 jobs in the queue"
    assert with_bar("12:34:56", text, 0.5, 76)[:76] == (
        "12:34:56 123,456 of 270,000 files, 1,234 failed, ~12.5 h left, 100 jobs in t")
    assert with_bar("0:00:01", "1 of 2 files", 0.5, 76) == "0:00:01 [####....] 1 of 2 files"
    assert with_bar("0:00:01", "x" * 60, 0.5, 76) == "0:00:01 [##...] " + "x" * 60


def test_a_log_gets_a_line_of_progress_each_minute(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("helper.QUIET_SECONDS = 0.5")
    stand_in.process("sleep 2")
    done = stand_in.run(BATCH)
    assert re.search(r"(?m)^[\d-]{10} [\d:]{8}  0 of 1 file, 1 job in the queue$", done.err)


class Disk(threading.Thread):
    """Measures DOWNLOAD_DIR, again and again."""

    def __init__(self, site):
        super().__init__(daemon=True)
        self.site, self.most, self.is_over = site, 0, False

    def run(self):
        while not self.is_over:
            # What is there in both looks was there, at that size, at the moment between them.
            first, second = self.sizes(), self.sizes()
            self.most = max(self.most, sum(
                min(size, second[path]) for path, size in first.items() if path in second))
            time.sleep(0.01)

    def sizes(self):
        found = {}
        for folder, _, names in os.walk(str(self.site.downloads)):
            for path in (os.path.join(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    found[path] = os.path.getsize(path)
        return found


def run_with_disk(site):
    disk = Disk(site)
    disk.start()
    done = site.run(BATCH)
    disk.is_over = True
    disk.join()
    return done, disk.most


@pytest.mark.long
def test_downloads_in_flight_never_exceed_max_bytes(cluster, emulator):
    emulator.add({"f%d" % n: b"x" * 1000 * (1 + n % 3) for n in range(12)})
    cluster.config("NUM_JOBS = 8", "MAX_BYTES = 5000")
    cluster.process("sleep 0.5", *KEEP)
    done, most = run_with_disk(cluster)
    assert last_line(done) == "12 processed, 0 failed, 0 not needed"
    assert 3000 < most <= 5000


def test_files_that_failures_leave_count_for_max_bytes(stand_in, emulator):
    emulator.add({"f%d" % n: b"x" * 1000 for n in range(8)})
    stand_in.config("NUM_JOBS = 8", "MAX_BYTES = 4000")
    stand_in.process("case $1 in *f[01]) exit 3 ;; esac", "sleep 0.5", *KEEP)
    done, most = run_with_disk(stand_in)
    assert last_line(done) == "6 processed, 2 failed, 0 not needed"
    assert 2000 < most <= 4000


def test_what_a_pack_that_is_not_over_has_left_counts_for_max_bytes(stand_in, emulator):
    emulator.add({"f%d" % n: b"x" * 1000 for n in range(9)})
    stand_in.config("NUM_JOBS = 1", "FILES_PER_JOB = 3", "DOWNLOAD_BY = 'driver'",
                    "MAX_BYTES = 6000")
    stand_in.process("case $1 in *f[01]) exit 3 ;; *) sleep 1.5 ;; esac", *KEEP)
    done, most = run_with_disk(stand_in)
    assert last_line(done) == "7 processed, 2 failed, 0 not needed"
    assert 4000 < most <= 6000


def fill_the_disk(site, emulator):
    """A run that stops because failures have left no room; the command that makes room again."""
    emulator.add({"f%d" % n: b"x" * 1000 for n in range(5)})
    site.config("NUM_JOBS = 1", "MAX_BYTES = 2500")
    site.process("exit 3")
    done, most = run_with_disk(site)
    assert done.returncode == 1 and most == 2000
    assert "leaves no room for another file within MAX_BYTES" in done.err
    command = done.err.splitlines()[-1]
    assert command == "rm -r " + " ".join(
        sorted(str(folder) for folder in site.downloads.iterdir()))
    site.process(*KEEP)
    return command


def test_a_disk_full_of_failures_stops_the_run_and_it_goes_on_once_there_is_room_again(
        stand_in, emulator):
    command = fill_the_disk(stand_in, emulator)
    subprocess.run(command, shell=True, check=True)
    done, most = run_with_disk(stand_in)
    assert last_line(done) == "5 processed, 0 failed, 0 not needed"
    assert most <= 2500 and set(processed(stand_in).values()) == {1}


def test_failures_that_fill_the_disk_are_tried_again_where_they_are(stand_in, emulator):
    """They are there already, so that they need no more room."""
    fill_the_disk(stand_in, emulator)
    done, most = run_with_disk(stand_in)
    assert done.returncode == 0, done.err
    assert last_line(done) == "5 processed, 0 failed, 0 not needed"
    assert most <= 2500 and len(emulator.tasks()) == 5
    assert processed(stand_in) == {"f%d" % n: 1 for n in range(5)}


def test_what_runs_of_another_source_left_counts_for_max_bytes(stand_in, emulator):
    emulator.add({"sub/left": b"x" * 2000, "a": b"x" * 1000})
    stand_in.config("MAX_BYTES = 2500", "PATH = '/home/share/godata/sub'")
    stand_in.process("exit 3")
    assert stand_in.run(BATCH).returncode == 1
    stand_in.config("PATH = '/home/share/godata'")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "leaves no room" in done.err
    assert stand_in.downloaded() == {"left": b"x" * 2000}
    subprocess.run(done.err.splitlines()[-1], shell=True, check=True)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_the_bytes_that_the_task_of_a_killed_job_still_brings_count_for_max_bytes(
        stand_in, emulator):
    """Nothing of the file is on the disk yet; the next attempt takes the task over."""
    emulator.add({"a": b"x" * 2000, "b": b"x" * 2000})
    emulator.bend(slots=0)
    stand_in.config("NUM_JOBS = 2", "MAX_BYTES = 3000", "GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    stand_in.process(*KEEP)
    driver = stand_in.start(BATCH)
    wait_until(emulator.tasks)
    job = next((stand_in.folder.parent / "stand-in").glob("*"))
    os.killpg(int((job / "pid").read_text()), signal.SIGKILL)
    (job / "state").write_text("FAILED\n")
    wait_until(lambda: sum(event["event"] == "queued" for event in journal(stand_in)) == 2)
    assert sum(event["event"] == "pack" for event in journal(stand_in)) == 1
    assert len(emulator.tasks()) == 1
    disk = Disk(stand_in)
    disk.start()
    emulator.bend(slots=3)
    out = driver.communicate()[0]
    disk.is_over = True
    disk.join()
    assert out.endswith(b"2 processed, 0 failed, 0 not needed\n") and disk.most <= 2000
    assert len(emulator.tasks()) == 2 and processed(stand_in) == {"a": 1, "b": 1}


def test_a_file_that_has_grown_does_not_break_max_bytes(stand_in, emulator):
    emulator.add({"a": b"x" * 1000, "grows": b"x" * 1000})
    emulator.fault("/stat.*grows", patch={"size": 5000})
    stand_in.config("MAX_BYTES = 2500")
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    assert "has grown from 1,000 to 5,000 bytes since it was listed" in done.out
    assert len(emulator.tasks()) == 1


def entries(*names, kind="file"):
    """Entries of a listing."""
    return [{"name": name, "type": kind, "size": 1, "last_modified": "2026-11-23 08:15:00+00:00"}
            for name in names]


def test_files_of_one_name_are_refused_counted_and_named(stand_in, emulator):
    """As object stores list them: of two files of one name, who knows which one comes?"""
    emulator.add({"a": b"1", "b": b"2"})
    emulator.fault("/ls", patch={"DATA": entries("a", "b", "b"), "total": 3})
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert ("FAILED 2 files: is listed more than once, or is a folder's name, too\n  b\n  b\n"
            in done.out)
    assert last_line(done) == "1 processed, 2 failed, 0 not needed" and done.returncode == 1
    assert processed(stand_in) == {"a": 1}
    assert last_line(stand_in.run(BATCH, "--dry-run")) == "1 to process, 2 refused, 0 not needed"


def test_a_file_with_the_name_of_a_folder_is_refused_and_the_folder_comes(stand_in, emulator):
    emulator.add({"a": b"1", "x/b": b"2"})
    emulator.fault("/ls", times=1, patch={
        "DATA": entries("a", "x") + entries("x", kind="dir"), "total": 3})
    stand_in.config("RECURSIVE = True")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert "FAILED x: is listed more than once, or is a folder's name, too\n" in done.out
    assert last_line(done) == "2 processed, 1 failed, 0 not needed"


def test_a_folder_that_is_listed_twice_is_listed_once(stand_in, emulator):
    emulator.add({"x/b": b"2"})
    emulator.fault("/ls", times=1, patch={"DATA": entries("x", "x", kind="dir"), "total": 2})
    stand_in.config("RECURSIVE = True")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


@pytest.mark.parametrize("name,why", [
    ("\u00fc" * 128, "is longer than the 255 bytes that a file's name may have"),
    ("a/b", "holds a slash"),
], ids=["too long", "slash"])
def test_a_name_that_no_file_can_have_there_is_refused(name, why, stand_in, emulator):
    emulator.add({"a": b"1"})
    emulator.fault("/ls", patch={"DATA": entries("a", name), "total": 2})
    done = stand_in.run(BATCH)
    assert "FAILED %s: %s\n" % (name, why) in done.out
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"


def test_a_name_of_255_bytes_is_fine(stand_in, emulator):
    name = "\u00fc" * 120 + "x" * 15
    emulator.add({name: b"1"})
    stand_in.process("true")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_files_beyond_the_limit_are_counted_so_that_the_numbers_add_up(stand_in, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(5)})
    done = stand_in.run(BATCH, "--limit", "2")
    assert done.out.splitlines()[-2:] == [
        "3 files left out by --limit",
        "2 processed, 0 failed, 0 not needed"]


# As a file system without flock has it.
NO_FLOCK = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


@pytest.fixture
def no_flock(stand_in, tmp_path):
    """The site on a file system that does not support flock."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(NO_FLOCK)
    stand_in.env["PYTHONPATH"] = str(tmp_path / "patch")
    return stand_in


def test_a_second_driver_without_flock_is_warned_and_the_first_one_stops(no_flock, emulator):
    """Nothing keeps it out; but of two writers of the journal one notices."""
    emulator.add({"a": b"1", "b": b"2"})
    no_flock.config("NUM_JOBS = 1")
    no_flock.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    first = no_flock.start(BATCH)
    wait_until(lambda: b"(job" in first.stderr.readline())
    no_flock.config("NUM_JOBS = 2")
    second = no_flock.start(BATCH)
    assert b"No flock in " in second.stderr.readline()
    wait_until(lambda: b"submitted b" in second.stderr.readline())
    second.send_signal(signal.SIGSTOP)
    (no_flock.folder / "go").touch()
    assert b"Another driver writes to " in first.communicate()[1] and first.returncode == 1
    second.send_signal(signal.SIGCONT)
    assert second.communicate()[0].endswith(b"2 processed, 0 failed, 0 not needed\n")
    assert second.returncode == 0 and processed(no_flock) == {"a": 1, "b": 1}


def test_a_second_driver_that_begins_while_the_first_one_lists_is_noticed_without_flock(
        no_flock, emulator):
    """Both take the run for a new one, and only one of them may go on."""
    emulator.add({"a": b"1", "sub/b": b"2"})
    emulator.fault("/ls.*sub", times=1, delay=20)
    no_flock.config("RECURSIVE = True")
    no_flock.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    first = no_flock.start(BATCH)
    wait_until(lambda: journal(no_flock))
    second = no_flock.start(BATCH)
    wait_until(lambda: b"(job" in second.stderr.readline())
    (no_flock.folder / "go").touch()
    assert second.communicate()[0].endswith(b"2 processed, 0 failed, 0 not needed\n")
    assert b"Another driver writes to " in first.communicate()[1]
    assert first.returncode == 1
    assert processed(no_flock) == {"a": 1, "sub/b": 1}


def test_a_killed_driver_keeps_nobody_out_without_flock(no_flock, emulator):
    emulator.add({"a": b"1"})
    no_flock.process("sleep 2", *KEEP)
    first = no_flock.start(BATCH)
    wait_until(lambda: b"(job" in first.stderr.readline())
    first.kill()
    first.wait()
    assert last_line(no_flock.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert processed(no_flock) == {"a": 1}
