"""globus-batch-download.py, "reporting": failures and their reasons, the logs of jobs, the summary
at the end."""
import os
import re
import subprocess

import pytest
from conftest import BATCH, HOLD, KEEP, KILL, begun, last_line, put_before, queued, wait_until
from in_process import load

DRIVER = load("globus-batch-download")
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def test_the_end_names_data_time_bytes_rate_and_retries(copying, emulator):
    emulator.add(dict.fromkeys("abc", b"xyz"))
    copying.config("POLL_SECONDS = 0.3")
    copying.process('[ "$GLOBUS_NAME" != b ] || mkdir once || exit 0', '[ ! -d once ] || '
                     '[ "$GLOBUS_NAME" != b ] || kill -9 $PPID', *KEEP)
    done = copying.run(BATCH)
    assert done.returncode == 0
    assert re.fullmatch(r"Run \w{5}, %s to %s, from\n"
                        r"/home/share/godata/ on collection [0-9a-f-]{36}\n"
                        r"3 of 3 files processed, 0 failed\.\n"
                        r"Since the start at %s: 3 files, 9 B in \d+ s, \d+ B/s, 1 retry\n"
                        r"3 processed, 0 failed, 0 not needed\n" % (TIME, TIME, TIME), done.out)
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.long
def test_jobs_that_are_cancelled_together_are_one_line(copying, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(7)})
    copying.config("NUM_JOBS = 7", "POLL_SECONDS = 2", "MAX_FAILURES_IN_A_ROW = None")
    copying.process("touch begun.$GLOBUS_NAME; exec sleep 60")
    driver = copying.start(BATCH)
    wait_until(lambda: len(list(copying.folder.glob("begun.*"))) == len(queued(copying)) == 7)
    subprocess.run(["scancel", *queued(copying)], check=True, env=copying.env)
    out, err = driver.communicate()
    told = re.findall(r"FAILED (?:(\d+) files, such as )?f\d\d: the job was cancelled "
                      r"\(on \S+, jobs/\S+/log\)\n", err.decode())
    # Unless a poll comes in between, it is one line; of two parts, one has at least four.
    assert sum(int(number or 1) for number in told) == 7 and len(told) < 7, err
    assert out.decode().splitlines()[-1] == "0 processed, 7 failed, 0 not needed"


def failures(number, words="exit status 3", node="node1"):
    return [DRIVER.Failure("f%d" % n, words, "jobs/g%d-abcde/log" % n, node)
            for n in range(number)]


def test_few_failures_have_a_line_each_and_many_of_one_cause_one_line_the_most_frequent_first():
    few, many = failures(3), failures(4, "the job was cancelled")
    assert DRIVER.failure_lines(few + many) == [
        "FAILED 4 files, such as f0: the job was cancelled (on node1, jobs/g0-abcde/log)",
        *["FAILED f%d: exit status 3 (on node1, jobs/g%d-abcde/log)" % (n, n) for n in range(3)]]


def test_causes_differ_in_words_only_not_in_names_numbers_paths_and_nodes():
    assert DRIVER.by_cause([
        DRIVER.Failure("f1", "exit status 3: no f1 at 12:30 on node7", None, "node7"),
        DRIVER.Failure("f2", "exit status 3: no f2 at 12:31 on node8", None, "node8"),
        DRIVER.Failure("f3", "exit status 4: no f3 at 12:31 on node8", None, "node8")]) == [
            [("f1", "exit status 3: no f1 at 12:30 on node7", None, "node7"),
             ("f2", "exit status 3: no f2 at 12:31 on node8", None, "node8")],
            [("f3", "exit status 4: no f3 at 12:31 on node8", None, "node8")]]


def test_a_node_is_named_only_where_all_failures_of_a_cause_were_there():
    line, = DRIVER.failure_lines(failures(4))
    assert "(on node1, " in line
    line, = DRIVER.failure_lines(failures(2) + failures(2, node="node2"))
    assert "node" not in line


def test_failures_of_one_reason_are_one_group_that_fits_a_screen(copying, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(40)})
    copying.config("MAX_FAILURES_IN_A_ROW = None", "FILES_PER_JOB = 20", "NUM_JOBS = 2")
    copying.process("echo no $GLOBUS_NAME; exit 3")
    done = copying.run(BATCH)
    assert re.match(r"FAILED 40 files: exit status 3: no FILE \(all on %s\)\n"
                    % os.uname().nodename.split(".")[0], done.out)
    logs = re.findall(r"(?m)^  f\d\d  (jobs/g\d+-\w{5}/\d+\.log)$", done.out)
    assert len(logs) > 5 and all((copying.folder / log).exists() for log in logs)
    assert len(done.out.splitlines()) <= 24 and "more files" in done.out
    told = re.findall(r"FAILED (?:(\d+) files, such as )?f\d\d: exit status 3: no f\d\d \(on \S+, ",
                      done.err)
    assert sum(int(number or 1) for number in told) == 40 and len(told) < 40


def test_the_end_says_where_everything_is_and_that_failures_are_tried_again(copying, emulator):
    emulator.add({"a b": b"1", "b": b"1", "c": b"1"})
    copying.process('[ "$GLOBUS_NAME" = b ]')
    done = copying.run(BATCH)
    words = ("All failures: %s/failed.txt\nThe next start tries them again. Until then their logs "
             "are kept, there, and\ntheir files, in %s\n")
    assert words % (copying.jobs, copying.downloads) in done.out
    listed = (copying.jobs / "failed.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in listed) == ["a b", "c"]
    log = re.search(r"FAILED a b: .*(jobs/.*)/\d+\.log\)", done.err).group(1)
    with open(str(copying.folder / log / "log")) as file:
        assert re.fullmatch(r"wrapper\.sh on %s, \d{4}-[\d-]+ [\d:]+: pack of 1, a b"
                            % os.uname().nodename, file.readline().rstrip("\n"))


@pytest.mark.parametrize("signal_first,most", [
    (False, 1), pytest.param(True, 3, marks=pytest.mark.long)])
@pytest.mark.long
def test_jobs_over_their_time_limit_are_one_group_in_the_summary(
        signal_first, most, copying, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(4 * most)})
    copying.config("MAX_FAILURES_IN_A_ROW = None", "POLL_SECONDS = 0.3",
                   "FILES_PER_JOB = %d" % most)
    copying.process(
        *KILL, *HOLD, 'echo "slurmstepd: error: *** JOB $SLURM_JOB_ID ON node$n$RANDOM CANCELLED '
        'AT $(date +%FT%T) DUE TO TIME LIMIT ***" >>"${0%/*}/log"',
        *(['echo TIMEOUT >"$STAND_IN_DIR/$SLURM_JOB_ID/state"',
           'kill -TERM -- "-$(cat "$STAND_IN_DIR/$SLURM_JOB_ID/pid")"; sleep 100']
          if signal_first else ["end TIMEOUT"]))
    done = copying.run(BATCH)
    assert done.returncode == 1
    assert last_line(done) == "0 processed, %d failed, 0 not needed" % len(files), done.err
    lines = [line for line in done.out.splitlines() if line.startswith("FAILED ")]
    assert len(lines) == 1, done.out
    assert lines[0].startswith("FAILED %d files: time limit reached" % len(files)), done.out
    assert "RESOURCES" in lines[0]
    assert begun(copying) == dict.fromkeys(files, 1)  # not tried again in this run


@pytest.mark.parametrize("name", ["at.1.7.node-1-2.0", "end.1.7.node-1-2.0.143"])
@pytest.mark.parametrize("word,why", [
    ("TIMEOUT", "time limit reached: raise the time in RESOURCES"),
    ("OUT_OF_MEMORY", "out of memory: raise the memory in RESOURCES")])
def test_the_reason_of_the_scheduler_counts_whether_a_signal_came_first_or_not(word, why, name):
    entry = DRIVER.QueueEntry("7", "g1.1-abcde", "ended", word)
    assert DRIVER.end_of(entry, DRIVER.parse_token(name), True, 1, 100, "CANCELLED AT 12:30") == (
        why, True, False)


BLACK_HOLES = {
    "process.sh fails": ("exit 5", "exit status 5"),
    "its jobs are killed": ("end NODE_FAIL", "killed twice"),
}


@pytest.mark.parametrize("how", BLACK_HOLES)
@pytest.mark.long
def test_a_node_that_fails_every_job_at_once_is_named_in_the_report(
        how, copying, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(6)})
    act, words = BLACK_HOLES[how]
    # Even ids run on one node, odd ones on the other; of each file always the same one.
    put_before(copying, tmp_path, "sbatch",
               'for word; do [ "$last" != --job-name ] || name=$word; last=$word; done',
               'name=${name%%.*}; name=${name#g}; export HOSTNAME=good3.cluster.org',
               '[ $((name % 2)) = 0 ] || HOSTNAME=bad7.cluster.org', 'exec "$real" "$@"')
    copying.config("MAX_FAILURES_IN_A_ROW = None", "NUM_JOBS = 2", "POLL_SECONDS = 0.3")
    copying.process(*KILL, '[[ $HOSTNAME != bad7* ]] || %s' % act, *KEEP)
    done = copying.run(BATCH)
    assert last_line(done) == "3 processed, 3 failed, 0 not needed", done.err
    group = next(line for line in done.out.splitlines() if line.startswith("FAILED 3 files: "))
    assert words in group and "bad7" in group and "good3" not in group, done.out
