"""A job that lives twice, is lost, killed, stuck or another one; a driver that is not listened to:
each file has its one result all the same."""
import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import termios
import threading
import time

import pytest
from conftest import (
    BATCH,
    KEEP,
    contents,
    journal,
    last_line,
    processed,
    put_before,
    wait_until,
)

NEEDED = "def is_file_needed(file): return not os.path.exists(WORKING_DIR + '/out/' + file.path)"
ID = {"slurm": "SLURM_JOB_ID", "sge": "JOB_ID"}
# The Nth time that a file is begun: begun.NAME.N appears, and it waits while hold.NAME.N exists.
HOLD = ('n=1; until mkdir "begun.$GLOBUS_NAME.$n" 2>/dev/null; do n=$((n + 1)); done',
        'while [ -e "hold.$GLOBUS_NAME.$n" ]; do sleep 0.1; done')
# The end of a job, of the stand-in for Slurm, in the middle of process.sh.
KILL = ('end() { echo "$1" >"$STAND_IN_DIR/$SLURM_JOB_ID/state"',
        'kill -KILL -- "-$(cat "$STAND_IN_DIR/$SLURM_JOB_ID/pid")"; }')


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


def begun(site):
    """{file: how often it was begun}, by a process.sh with HOLD."""
    times = {}
    for path in site.folder.glob("begun.*"):
        name = path.name.split(".")[1]
        times[name] = times.get(name, 0) + 1
    return times


def hold(site, name, time=1):
    path = site.folder / ("hold.%s.%d" % (name, time))
    path.touch()
    return path


def is_begun(site, name, time=1):
    return (site.folder / ("begun.%s.%d" % (name, time))).exists


def queued(site):
    """The ids of jobs that were accepted."""
    return [event["id"] for event in journal(site) if event["event"] == "queued"]


def state_of(tmp_path, job):
    return (tmp_path / "stand-in" / str(job) / "state").read_text().strip()


def calls_of(site, tmp_path, name):
    """A function: the command lines with which a command was called."""
    calls = tmp_path / (name + ".calls")
    put_before(site, tmp_path, name, 'printf "%%s\\n" "$*" >>%s' % calls, 'exec "$real" "$@"')
    return lambda: calls.read_text().splitlines() if calls.exists() else []


def hold_jobs(site, tmp_path):
    """A folder: while it has a file `all`, or `gN`, jobs (of pack N) are PENDING."""
    folder = tmp_path / "pending"
    folder.mkdir()
    put_before(site, tmp_path, "sbatch",
               'for word; do [ "$last" != --job-name ] || name=$word; last=$word; done',
               '{ echo "while [ -e %s/all ] || [ -e %s/${name%%%%.*} ]; do sleep 0.1; done"'
               % (folder, folder),
               'echo "touch %s/begun.\\$SLURM_JOB_ID"; cat; } | "$real" "$@"' % folder)
    put_before(site, tmp_path, "squeue",
               '"$real" "$@" | while IFS="|" read -r id name state reason; do',
               '[ "$state" != RUNNING ] || [ -e %s/begun.$id ] ||' % folder,
               '{ state=PENDING; reason=Priority; }; echo "$id|$name|$state|$reason"; done')
    return folder


def hide_first_job(site, tmp_path):
    """A file: while it exists, the queue does not show the first job."""
    path = tmp_path / "hidden"
    put_before(site, tmp_path, "squeue", '[ -e %s ] || exec "$real" "$@"' % path,
               '"$real" "$@" | grep -v "^1000|"')
    return path


# ---- a job that lives twice ----


def start_again(site, job):
    """Start a job's script once more, as a scheduler does that has lost sight of its node."""
    script = next(site.jobs.glob("*/wrapper.sh"))
    env = dict(site.env, **{ID[site.scheduler]: job.split(";")[0]})
    return subprocess.Popen(["bash", str(script)], cwd=str(site.folder), env=env,
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("at", ["f0", "f1", "f2", "f3"])
def test_a_requeued_job_whose_first_incarnation_lives_on(at, cluster, emulator):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(4)})
    cluster.config("FILES_PER_JOB = 4", "NUM_JOBS = 1", NEEDED)
    cluster.process(*HOLD, '[ "$GLOBUS_NAME" != f1 ] || { echo no good; exit 3; }', *KEEP)
    one = hold(cluster, at)
    driver = cluster.start(BATCH)
    wait_until(is_begun(cluster, at))
    second = start_again(cluster, wait_until(lambda: queued(cluster))[0])
    assert second.wait(60) == 0  # the driver decides; it works on nothing that may be at work
    one.unlink()
    last, status, said = end(driver)
    assert (last, status) == ("3 processed, 1 failed, 0 not needed", 1), said
    assert "FAILED f1: exit status 3: no good" in said
    good = {name: content for name, content in files.items() if name != "f1"}
    assert processed(cluster) == dict.fromkeys(good, 1)
    assert contents(cluster.folder / "out") == good
    assert begun(cluster) == dict.fromkeys(files, 1)
    assert last_line(cluster.run(BATCH)) == "0 processed, 1 failed, 3 not needed"


# ---- whose run, and whose job ----


def kill_with_a_job_at_work(site):
    driver = site.start(BATCH)
    wait_until(is_begun(site, "a"))
    wait_until(lambda: queued(site))
    driver.kill()
    driver.communicate()
    return journal(site)


def test_another_cluster_s_run_is_refused_and_nothing_is_cancelled(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("NUM_JOBS = 1", "GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    stand_in.process(*HOLD, *KEEP)
    calls, held = calls_of(stand_in, tmp_path, "scancel"), hold(stand_in, "a")
    before, path = kill_with_a_job_at_work(stand_in), stand_in.env["PATH"]
    put_before(stand_in, tmp_path, "scontrol", 'echo "ClusterName             = elsewhere"')
    put_before(stand_in, tmp_path, "squeue", "echo 'JOBID|NAME|STATE|REASON'")
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert "stand-in" in done.err and "elsewhere" in done.err and str(stand_in.jobs) in done.err
    assert calls() == [] and journal(stand_in) == before
    assert state_of(tmp_path, 1000) == "RUNNING"
    for name in ("scontrol", "squeue"):
        (tmp_path / "before" / name).unlink()
    stand_in.env["PATH"] = path
    held.unlink()
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1, "b": 1}


def test_another_user_s_run_is_refused(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    stand_in.process(*HOLD, *KEEP)
    calls, held = calls_of(stand_in, tmp_path, "scancel"), hold(stand_in, "a")
    path = stand_in.jobs / "journal.jsonl"
    kill_with_a_job_at_work(stand_in)
    text = path.read_text()
    first, _, rest = text.partition("\n")
    run = json.loads(first)
    user, run["identity"]["user"] = run["identity"]["user"], "a colleague"
    path.write_text(json.dumps(run) + "\n" + rest)
    before = journal(stand_in)
    done = stand_in.run(BATCH)
    assert done.returncode == 2
    assert "'a colleague'" in done.err and repr(user) in done.err
    assert str(stand_in.jobs) in done.err
    assert calls() == [] and journal(stand_in) == before
    path.write_text(text)
    held.unlink()
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1}


@pytest.mark.parametrize("state", ["RUNNING", "PENDING"])
def test_an_unrelated_job_with_the_id_of_ours_is_never_cancelled(
        state, stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    stand_in.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3", "MAX_FAILURES_IN_A_ROW = 2")
    stand_in.process(*HOLD, '[ -e fixed ] || [ "$GLOBUS_NAME" = a ] || exit 3', *KEEP)
    calls = calls_of(stand_in, tmp_path, "scancel")
    held, waits = hold(stand_in, "a"), [hold(stand_in, "b"), hold(stand_in, "c")]
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | sed "s/|theirs|RUNNING/|theirs|%s/"'
               % state)
    kill_with_a_job_at_work(stand_in)
    # The controller is set up afresh: no job is left, and ids begin again.
    wait_until(lambda: len(begun(stand_in)) == 3)
    for folder in list((tmp_path / "stand-in").iterdir()):
        os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)
        shutil.rmtree(str(folder))
    for path in [held, *waits]:
        path.unlink()
    theirs = subprocess.run(["sbatch", "--parsable", "--job-name", "theirs"], env=stand_in.env,
                            input=b"#!/bin/bash\nsleep 1000\n", stdout=subprocess.PIPE, check=True)
    assert theirs.stdout == b"1000\n"
    driver = stand_in.start(BATCH)
    wait_for(driver, "STOPPING")  # b and c have failed
    driver.send_signal(signal.SIGINT)
    last, status, said = end(driver)
    assert status == 130, said
    assert not any("1000" in call for call in calls())
    assert state_of(tmp_path, 1000) == "RUNNING"
    subprocess.run(["scancel", "1000"], env=stand_in.env, check=True)  # its owner
    (stand_in.folder / "fixed").touch()
    done = stand_in.run(BATCH)
    assert last_line(done) == "3 processed, 0 failed, 0 not needed", done.err
    assert processed(stand_in) == {"a": 1, "b": 1, "c": 1}
    assert len(calls()) == 1


def test_a_stop_prints_no_command_that_would_cancel_a_job_of_another_name(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process(*HOLD, *KEEP)
    hold(stand_in, "a")
    put_before(stand_in, tmp_path, "squeue",
               '"$real" "$@" | sed "s/^1000|[^|]*|/1000|theirs|/"')
    driver = stand_in.start(BATCH)
    said = wait_for(driver, "theirs")
    driver.send_signal(signal.SIGINT)
    last, status, rest = end(driver)
    assert status == 130
    assert "To cancel: " not in rest or "1000" not in rest.split("To cancel: ")[1], said


def test_a_job_of_ours_that_its_owner_renames_is_neither_lost_nor_cancelled(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3", "NUM_JOBS = 1")
    stand_in.process(*HOLD, *KEEP)
    calls, held = calls_of(stand_in, tmp_path, "scancel"), hold(stand_in, "a")
    put_before(stand_in, tmp_path, "squeue",
               '"$real" "$@" | sed "s/^1000|[^|]*|/1000|a name of mine|/"; echo >>%s'
               % (tmp_path / "polls"))
    driver = stand_in.start(BATCH)
    wait_until(is_begun(stand_in, "a"))
    polls = (tmp_path / "polls").read_bytes
    before = len(polls())
    wait_until(lambda: len(polls()) > before + 3)
    held.unlink()
    last, status, said = end(driver)
    assert (last, status) == ("2 processed, 0 failed, 0 not needed", 0), said
    assert calls() == []
    assert begun(stand_in) == {"a": 1, "b": 1}


# ---- a lost job that lives on ----


def lose_f0(site, tmp_path):
    """A driver that has called the job at work on f0 lost, while it works."""
    site.config("FILES_PER_JOB = 2", "NUM_JOBS = 1", "GRACE_SECONDS = 0", "POLL_SECONDS = 0.3",
                NEEDED)
    site.process(*HOLD, '[ -f "$1" ] || [ $n = 1 ] || { echo "it is gone"; exit 44; }', *KEEP)
    hidden = hide_first_job(site, tmp_path)
    put_before(site, tmp_path, "scancel", "exit 1")
    held = hold(site, "f0")
    driver = site.start(BATCH)
    wait_until(is_begun(site, "f0"))
    wait_until(lambda: queued(site))
    hidden.touch()
    wait_for(driver, "FAILED f0: the job was lost")
    return driver, held


def test_a_lost_job_that_lives_on_deletes_nothing_of_a_later_pack(stand_in, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(4)})
    driver, held = lose_f0(stand_in, tmp_path)
    again = hold(stand_in, "f0", 2)
    last, status, said = end(driver)
    assert (last, status) == ("3 processed, 1 failed, 0 not needed", 1), said
    assert begun(stand_in) == dict.fromkeys(files, 1)  # not in another job of this run
    driver = stand_in.start(BATCH)
    wait_until(is_begun(stand_in, "f0", 2))
    held.unlink()
    wait_until(lambda: state_of(tmp_path, 1000) != "RUNNING")  # it succeeds, and deletes
    assert stand_in.downloaded() == {"f0": b"0"}
    again.unlink()
    last, status, said = end(driver)
    assert (last, status) == ("1 processed, 0 failed, 3 not needed", 0), said
    assert contents(stand_in.folder / "out") == files
    assert processed(stand_in) == dict(dict.fromkeys(files, 1), f0=2)
    assert stand_in.downloaded() == {}


def test_the_late_success_of_a_lost_job_counts(stand_in, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(4)})
    rest = hold(stand_in, "f1")
    driver, held = lose_f0(stand_in, tmp_path)
    wait_until(is_begun(stand_in, "f1"))
    held.unlink()
    wait_for(driver, "processed f0")
    rest.unlink()
    last, status, said = end(driver)
    assert (last, status) == ("4 processed, 0 failed, 0 not needed", 0), said
    assert processed(stand_in) == dict.fromkeys(files, 1)
    assert last_line(stand_in.run(BATCH)) == "0 processed, 0 failed, 4 not needed"


# ---- jobs/ is removed ----


@pytest.mark.parametrize("where", ["process.sh", "download"])
def test_jobs_end_when_their_folder_is_removed_and_so_does_the_driver(where, stand_in, emulator,
                                                                      tmp_path):
    emulator.add({"f%d" % n: b"%d" % n for n in range(6)})
    stand_in.config("FILES_PER_JOB = 2", "NUM_JOBS = 3")
    stand_in.process(*HOLD, *KEEP)
    held = [hold(stand_in, "f%d" % n) for n in range(6)]
    emulator.bend(slots=0 if where == "download" else 3)
    driver = stand_in.start(BATCH)
    wait_until(lambda: len(begun(stand_in) if where == "process.sh" else emulator.tasks()) == 3)
    os.rename(str(stand_in.jobs), str(tmp_path / "removed"))
    shutil.rmtree(str(tmp_path / "removed"))
    last, status, said = end(driver)
    assert status == 1
    assert str(stand_in.jobs) in said and "removed" in said
    assert not stand_in.jobs.exists()
    emulator.bend(slots=3)
    for path in held:
        path.unlink()
    wait_until(lambda: all(state_of(tmp_path, job) != "RUNNING" for job in (1000, 1001, 1002)))
    assert len(begun(stand_in)) == (3 if where == "process.sh" else 0)
    assert not stand_in.jobs.exists()


# ---- jobs that wait ----


def test_pending_jobs_that_are_cancelled_fail_no_file_and_do_not_halt_the_run(
        stand_in, emulator, tmp_path):
    files = emulator.add({"f%02d" % n: b"x" for n in range(12)})
    stand_in.config("FILES_PER_JOB = 2", "MAX_FAILURES_IN_A_ROW = 2", "POLL_SECONDS = 0.3")
    stand_in.process(*KEEP)
    pending = hold_jobs(stand_in, tmp_path)
    (pending / "all").touch()
    driver = stand_in.start(BATCH)
    for jobs in (3, 6):
        wait_until(lambda jobs=jobs: len(queued(stand_in)) == jobs)
        subprocess.run(["scancel", *queued(stand_in)[-3:]], env=stand_in.env, check=True)
    wait_until(lambda: len(queued(stand_in)) == 9)
    (pending / "all").unlink()
    last, status, said = end(driver)
    assert (last, status) == ("12 processed, 0 failed, 0 not needed", 0), said
    assert processed(stand_in) == dict.fromkeys(files, 1)
    assert "FAILED" not in said and "STOPPING" not in said and "compute nodes" not in said
    assert "cancelled" in said


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_pending_jobs_cancelled_while_no_driver_runs_fail_no_file(
        is_forgotten, stand_in, emulator, tmp_path):
    files = emulator.add({"f%02d" % n: b"x" for n in range(6)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = 2", "POLL_SECONDS = 0.3")
    stand_in.process(*KEEP)
    pending = hold_jobs(stand_in, tmp_path)
    (pending / "all").touch()
    driver = stand_in.start(BATCH)
    wait_until(lambda: len(queued(stand_in)) == 3)
    driver.send_signal(signal.SIGINT)
    assert end(driver)[1] == 130
    subprocess.run(["scancel", *queued(stand_in)], env=stand_in.env, check=True)
    if is_forgotten:  # by the scheduler, after some minutes
        shutil.rmtree(str(tmp_path / "stand-in"))
        (tmp_path / "stand-in").mkdir()
    (pending / "all").unlink()
    stand_in.config("RESOURCES = '--time=7'")
    done = stand_in.run(BATCH)
    assert last_line(done) == "6 processed, 0 failed, 0 not needed", done.err
    assert "STOPPING" not in done.err
    assert processed(stand_in) == dict.fromkeys(files, 1)


def test_a_halt_is_told_at_once_and_jobs_that_have_not_begun_are_cancelled(
        stand_in, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"x" for n in range(10)})
    stand_in.config("NUM_JOBS = 4", "MAX_FAILURES_IN_A_ROW = 3", "POLL_SECONDS = 0.3", NEEDED)
    stand_in.process(*HOLD, '[ -e fixed ] || [ "$GLOBUS_NAME" = f0 ] || { echo broken; exit 5; }',
                     *KEEP)
    held, pending = hold(stand_in, "f0"), hold_jobs(stand_in, tmp_path)
    (pending / "g2").touch()
    (pending / "g1").touch()
    driver = stand_in.start(BATCH)
    wait_until(lambda: queued(stand_in))
    (pending / "g1").unlink()
    said = wait_for(driver, "STOPPING")
    said += wait_for(driver, "again")  # to the end of what is told
    assert "MAX_FAILURES_IN_A_ROW = 3" in said and "exit status 5: broken" in said
    assert held.exists()  # f0 is at work
    waiting = next(path.parent.name for path in (tmp_path / "stand-in").glob("*/name")
                   if path.read_text().startswith("g2."))
    wait_until(lambda: state_of(tmp_path, waiting) == "CANCELLED", 10)
    assert driver.poll() is None and held.exists()
    jobs = len(list((tmp_path / "stand-in").glob("*/name")))
    held.unlink()
    last, status, rest = end(driver)
    assert status == 1 and last.startswith("1 processed, "), rest
    assert 3 <= int(last.split()[2]) <= 4  # two jobs were at work beside f0
    assert len(list((tmp_path / "stand-in").glob("*/name"))) == jobs
    assert (said + rest).count("STOPPING") == 1
    assert "FAILED f1:" not in said + rest
    (stand_in.folder / "fixed").touch()
    (pending / "g2").unlink()
    assert last_line(stand_in.run(BATCH)) == "10 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == dict.fromkeys(files, 1)


def test_a_killed_job_that_is_stuck_in_completing_is_told_and_does_not_hold_its_slot(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    stand_in.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.3", "NUM_JOBS = 1")
    stand_in.process(*HOLD, *KEEP)
    hold(stand_in, "a")
    put_before(stand_in, tmp_path, "squeue",
               '"$real" "$@" | sed "s/^\\(1000|.*|\\)FAILED|/\\1COMPLETING|/"')
    driver = stand_in.start(BATCH)
    wait_until(is_begun(stand_in, "a"))
    wait_until(lambda: queued(stand_in))
    (tmp_path / "stand-in" / "1000" / "state").write_text("FAILED\n")
    os.killpg(int((tmp_path / "stand-in" / "1000" / "pid").read_text()), signal.SIGKILL)
    killer = threading.Timer(60, driver.kill)
    killer.start()
    last, status, said = end(driver)
    killer.cancel()
    assert (last, status) == ("2 processed, 1 failed, 0 not needed", 1), said
    assert "COMPLETING" in said
    assert processed(stand_in) == {"b": 1, "c": 1}


def test_a_job_that_has_ended_and_that_the_queue_lists_for_ever_holds_its_slot_for_a_while_only(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.3", "NUM_JOBS = 1")
    stand_in.process("sleep 1", *KEEP)
    seen = tmp_path / "seen"
    put_before(stand_in, tmp_path, "squeue", 'said=$("$real" "$@")',
               'grep "^1000|.*|RUNNING|" <<<"$said" >>%s' % seen,
               'grep -v "^1000|" <<<"$said"', "head -n 1 %s" % seen)
    driver = stand_in.start(BATCH)
    killer = threading.Timer(60, driver.kill)
    killer.start()
    last, status, said = end(driver)
    killer.cancel()
    assert (last, status) == ("2 processed, 0 failed, 0 not needed", 0), said
    assert said.count("The scheduler still lists jobs that ended a while ago: 1000. No slot") == 1


# ---- nobody listens ----


def many_files(site, emulator):
    files = emulator.add({"%04d-%s" % (n, "x" * 180): b"x" for n in range(800)})
    site.config("FILES_PER_JOB = 200", "MAX_FAILURES_IN_A_ROW = None",
                "def is_file_needed(file): return not os.path.exists(WORKING_DIR + '/processed')")
    site.process('echo "$GLOBUS_NAME" >>processed', "case $GLOBUS_NAME in *7-*) exit 3 ;; esac")
    return files


def is_finished(site):
    """True if the driver has seen the end of all files."""
    events = journal(site)
    return events and events[-1]["event"] == "finished"


def test_a_pipe_that_nobody_reads_does_not_hold_up_the_loop(stand_in, emulator):
    files = many_files(stand_in, emulator)
    driver = stand_in.start(BATCH)
    wait_until(lambda: is_finished(stand_in), 120)
    assert processed(stand_in) == dict.fromkeys(files, 1)
    last, status, said = end(driver)
    assert (last, status) == ("720 processed, 80 failed, 0 not needed", 1)
    assert said.count("  processed ") == 720  # what was said is there, later
    assert len(said) > 100000  # more than a pipe holds


@pytest.mark.parametrize("how", ["not read", "stopped"])
def test_a_terminal_that_does_not_take_more_does_not_hold_up_the_loop(how, stand_in, emulator):
    files = many_files(stand_in, emulator)
    ours, theirs = pty.openpty()
    driver = subprocess.Popen(stand_in.command(BATCH), cwd=str(stand_in.folder), env=stand_in.env,
                              stdin=theirs, stdout=theirs, stderr=theirs)
    if how == "stopped":  # what Ctrl-S does
        termios.tcflow(theirs, termios.TCOOFF)
    wait_until(lambda: is_finished(stand_in), 120)
    assert processed(stand_in) == dict.fromkeys(files, 1)
    if how == "stopped":
        termios.tcflow(theirs, termios.TCOON)
    os.close(theirs)
    said = []
    with open(ours, "rb", buffering=0) as terminal:
        try:
            for text in iter(lambda: terminal.read(4096), b""):
                said.append(text)
        except OSError:
            pass  # the script has ended
    assert driver.wait(60) == 1
    said = b"".join(said).decode()
    assert said.rstrip().endswith("720 processed, 80 failed, 0 not needed"), said[-500:]
    assert "Traceback" not in said


def test_a_tiny_pipe_that_is_read_slowly_loses_nothing(stand_in, emulator):
    emulator.add({"f%03d" % n: b"x" for n in range(300)})
    stand_in.config("FILES_PER_JOB = 100", "MAX_FAILURES_IN_A_ROW = None")
    stand_in.process('echo "$GLOBUS_NAME" >>processed')
    ours, theirs = os.pipe()
    fcntl.fcntl(ours, 1031, 4096)  # F_SETPIPE_SZ
    driver = subprocess.Popen(stand_in.command(BATCH), cwd=str(stand_in.folder), env=stand_in.env,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    said = b""
    with open(ours, "rb", buffering=0) as pipe:
        for text in iter(lambda: pipe.read(100), b""):
            said += text
            time.sleep(0.005)
    out = driver.communicate()[0].decode()
    assert out.endswith("300 processed, 0 failed, 0 not needed\n") and driver.returncode == 0
    assert said.decode().count("  processed f") == 300


# ---- reasons, and where ----


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


LIMIT = ['echo "sbatch: error: AssocGrpSubmitJobsLimit" >&2',
         'echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy '
         '(job submit limit, user\'s size and/or time limits)" >&2', "exit 1"]


def test_a_first_submission_that_meets_a_limit_twice_is_tried_again(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_before(
        stand_in, tmp_path, "sbatch",
        'mkdir "$0.1" 2>/dev/null || mkdir "$0.2" 2>/dev/null || exec "$real" "$@"', *LIMIT)
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert (last_line(done), done.returncode) == ("2 processed, 0 failed, 0 not needed", 0)
    assert done.err.count("AssocGrpSubmitJobsLimit") == 1
    assert "Job violates accounting/QOS policy" in done.err and "sbatch --" in done.err
    assert "Fix" not in done.err
    assert processed(stand_in) == {"a": 1, "b": 1}


def test_a_limit_that_lasts_stops_the_run_with_its_words(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    calls = tmp_path / "sbatch.calls"
    put_before(stand_in, tmp_path, "sbatch", "echo >>%s" % calls, *LIMIT)
    stand_in.config("POLL_SECONDS = 0.3")
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and calls.read_bytes().count(b"\n") == 3
    assert "AssocGrpSubmitJobsLimit" in done.err.splitlines()[-2]
    (tmp_path / "before" / "sbatch").unlink()
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1, "b": 1}


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
@pytest.mark.parametrize("also", ["", '; ln -s /etc "${1%/*}/link"'], ids=["files", "a link"])
def test_side_files_go_with_their_pack_so_that_max_bytes_has_room(also, where, stand_in, emulator):
    emulator.add({"a": b"x" * 60, "sub/b": b"x" * 60, "c": b"x" * 60, "d": b"x" * 60})
    stand_in.config("MAX_BYTES = 125", "FILES_PER_JOB = 2", "RECURSIVE = True", NEEDED,
                    "DOWNLOAD_BY = %r" % where)
    stand_in.process('head -c 500 /dev/zero >"$1.bai"; mkdir "$1.work"; echo >"$1.work/x y"',
                     'echo >"${1%/*}/tmp.$$"' + also,
                     '[ -e fixed ] || [ "$GLOBUS_NAME" != c ] || exit 3', *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "3 processed, 1 failed, 0 not needed", done.err
    assert stand_in.downloaded() == {"c": b"x" * 60}
    assert len(list(stand_in.downloads.rglob("*"))) == 2  # the file, and its pack's folder
    (stand_in.folder / "fixed").touch()
    emulator.add({"e": b"x" * 60})
    tasks = len(emulator.tasks())
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 3 not needed", done.err
    assert list(stand_in.downloads.iterdir()) == []
    assert processed(stand_in) == {"a": 1, "sub/b": 1, "c": 1, "d": 1, "e": 1}
    sent = [item["source_path"] for task in emulator.tasks()[tasks:]
            for item in task["request"]["DATA"]]
    assert not any(path.endswith("/c") for path in sent)  # it was there already


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


# ---- files that kill, and bad neighbours ----


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
@pytest.mark.parametrize("killers", ["f0", "f4", "f2 f3"])
def test_a_file_that_kills_its_job_each_time_fails_alone(killers, where, stand_in, emulator):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(10)})
    stand_in.config("FILES_PER_JOB = 5", "NUM_JOBS = 2", "POLL_SECONDS = 0.3",
                    "DOWNLOAD_BY = %r" % where)
    stand_in.process(*KILL, *HOLD, 'case " %s " in *" $GLOBUS_NAME "*) end FAILED ;; esac'
                     % killers, *KEEP)
    done = stand_in.run(BATCH)
    killers = killers.split()
    assert last_line(done) == "%d processed, %d failed, 0 not needed" % (
        10 - len(killers), len(killers)), done.err
    for name in killers:
        assert "FAILED %s: killed twice while it was processed" % name in done.err
    assert begun(stand_in) == {name: 2 if name in killers else 1 for name in files}
    assert processed(stand_in) == {name: 1 for name in files if name not in killers}
    assert stand_in.downloaded() == {name: files[name] for name in killers}


@pytest.mark.parametrize("most", [1, 5])
def test_bad_neighbours_at_the_beginning_of_the_listing_do_not_halt_a_healthy_batch(
        most, stand_in, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(40)})
    stand_in.config("MAX_FAILURES_IN_A_ROW = 10", "FILES_PER_JOB = %d" % most)
    stand_in.process('case $GLOBUS_NAME in f0?|f1[0-4]) exit 3 ;; esac', *KEEP)
    done = stand_in.run(BATCH)
    assert "STOPPING" not in done.err, done.err
    assert last_line(done) == "25 processed, 15 failed, 0 not needed"
    assert processed(stand_in) == {name: 1 for name in files if name > "f14"}
