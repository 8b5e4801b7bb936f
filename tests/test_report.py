"""globus-batch-download.py, "reporting": failures and their reasons, the logs of jobs, the summary
at the end."""
import os
import re
import subprocess

import pytest
from conftest import BATCH, HOLD, KEEP, KILL, begun, journal, last_line, put_before, wait_until

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def test_the_end_names_data_time_bytes_rate_and_retries(stand_in, emulator):
    emulator.add(dict.fromkeys("abc", b"xyz"))
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process('[ "$GLOBUS_NAME" != b ] || mkdir once || exit 0', '[ ! -d once ] || '
                     '[ "$GLOBUS_NAME" != b ] || kill -9 $PPID', *KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 0
    assert re.fullmatch(r"Run \w{5}, %s to %s, from\n"
                        r"/home/share/godata/ on collection [0-9a-f-]{36}\n"
                        r"3 of 3 files processed, 0 failed\.\n"
                        r"Since the start at %s: 3 files, 9 B in \d+ s, \d+ B/s, 1 retry\n"
                        r"3 processed, 0 failed, 0 not needed\n" % (TIME, TIME, TIME), done.out)
    assert max(map(len, done.out.splitlines())) <= 80


def test_jobs_that_are_cancelled_together_are_one_line(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(12)})
    stand_in.config("NUM_JOBS = 12", "POLL_SECONDS = 3", "MAX_FAILURES_IN_A_ROW = None")
    stand_in.process("touch begun.$GLOBUS_NAME; exec sleep 60")
    driver = stand_in.start(BATCH)
    wait_until(lambda: len(list(stand_in.folder.glob("begun.*"))) == 12)
    ids = [event["id"] for event in journal(stand_in) if event["event"] == "queued"]
    subprocess.run(["scancel", *ids], check=True, env=stand_in.env)
    out, err = driver.communicate()
    told = re.findall(r"FAILED (?:(\d+) files, such as )?f\d\d: the job was cancelled "
                      r"\(on \S+, jobs/\S+/log\)\n", err.decode())
    # Unless a poll comes in between, it is one line.
    assert sum(int(number or 1) for number in told) == 12 and len(told) < 7, err
    assert out.decode().splitlines()[-1] == "0 processed, 12 failed, 0 not needed"


def test_failures_of_one_reason_are_one_group_that_fits_a_screen(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(40)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = None", "FILES_PER_JOB = 20", "NUM_JOBS = 2")
    stand_in.process("echo no $GLOBUS_NAME; exit 3")
    done = stand_in.run(BATCH)
    assert re.match(r"FAILED 40 files: exit status 3: no FILE \(all on %s\)\n"
                    % os.uname().nodename.split(".")[0], done.out)
    logs = re.findall(r"(?m)^  f\d\d  (jobs/g\d+-\w{5}/\d+\.log)$", done.out)
    assert len(logs) > 5 and all((stand_in.folder / log).exists() for log in logs)
    assert len(done.out.splitlines()) <= 24 and "more files" in done.out
    told = re.findall(r"FAILED (?:(\d+) files, such as )?f\d\d: exit status 3: no f\d\d \(on \S+, ",
                      done.err)
    assert sum(int(number or 1) for number in told) == 40 and len(told) < 40


def test_the_end_names_a_file_with_all_failures(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(3)})
    stand_in.process("exit 3")
    path = re.search("All failures: (.*)", stand_in.run(BATCH).out).group(1)
    with open(path) as file:
        assert sorted(line.split("\t")[0] for line in file) == ["f00", "f01", "f02"]


def test_the_end_says_where_everything_is_and_that_failures_are_tried_again(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"1"})
    stand_in.process("[ $GLOBUS_NAME = a ]")
    out = stand_in.run(BATCH).out
    words = ("All failures: %s/failed.txt\nThe next start tries them again. Until then their logs "
             "are kept, there, and\ntheir files, in %s\n")
    assert words % (stand_in.jobs, stand_in.downloads) in out


def test_the_log_of_a_job_begins_with_its_file_and_host(stand_in, emulator):
    emulator.add({"a b": b"1"})
    stand_in.process("exit 3")
    log = re.search(r"(jobs/.*\.log)\)", stand_in.run(BATCH).err).group(1)
    with open(str((stand_in.folder / log).parent / "log")) as file:
        assert re.fullmatch(r"wrapper\.sh on %s, \d{4}-[\d-]+ [\d:]+: pack of 1, a b"
                            % os.uname().nodename, file.readline().rstrip("\n"))


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("signal_first", [False, True])
def test_twelve_jobs_over_their_time_limit_are_one_group_in_the_summary(
        signal_first, most, stand_in, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(12)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = None", "POLL_SECONDS = 0.3",
                    "FILES_PER_JOB = %d" % most)
    stand_in.process(
        *KILL, *HOLD, 'echo "slurmstepd: error: *** JOB $SLURM_JOB_ID ON node$n$RANDOM CANCELLED '
        'AT $(date +%FT%T) DUE TO TIME LIMIT ***" >>"${0%/*}/log"',
        *(['echo TIMEOUT >"$STAND_IN_DIR/$SLURM_JOB_ID/state"',
           'kill -TERM -- "-$(cat "$STAND_IN_DIR/$SLURM_JOB_ID/pid")"; sleep 100']
          if signal_first else ["end TIMEOUT"]))
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert last_line(done) == "0 processed, 12 failed, 0 not needed", done.err
    lines = [line for line in done.out.splitlines() if line.startswith("FAILED ")]
    assert len(lines) == 1 and lines[0].startswith("FAILED 12 files: time limit reached"), done.out
    assert "RESOURCES" in lines[0]
    assert begun(stand_in) == dict.fromkeys(files, 1)  # not tried again in this run


BLACK_HOLES = {
    "process.sh fails": ("exit 5", "exit status 5"),
    "its jobs are killed": ("end NODE_FAIL", "killed twice"),
    "its jobs run out of memory": ("end OUT_OF_MEMORY", "out of memory"),
}


@pytest.mark.parametrize("how", BLACK_HOLES)
def test_a_node_that_fails_every_job_at_once_is_named_in_the_report(
        how, stand_in, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(8)})
    act, words = BLACK_HOLES[how]
    # Even ids run on one node, odd ones on the other; of each file always the same one.
    put_before(stand_in, tmp_path, "sbatch",
               'for word; do [ "$last" != --job-name ] || name=$word; last=$word; done',
               'name=${name%%.*}; name=${name#g}; export HOSTNAME=good3.cluster.org',
               '[ $((name % 2)) = 0 ] || HOSTNAME=bad7.cluster.org', 'exec "$real" "$@"')
    stand_in.config("MAX_FAILURES_IN_A_ROW = None", "NUM_JOBS = 2", "POLL_SECONDS = 0.3")
    stand_in.process(*KILL, '[[ $HOSTNAME != bad7* ]] || %s' % act, *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "4 processed, 4 failed, 0 not needed", done.err
    group = next(line for line in done.out.splitlines() if line.startswith("FAILED 4 files: "))
    assert words in group and "bad7" in group and "good3" not in group, done.out
