"""The protocol of packs, without processes: the real driver, a scheduler and jobs that are played,
and hypothesis, which stops, kills, loses and repeats each of them between any two of its steps."""
import collections
import itertools
import os
import random
import re
import shlex
import shutil
import sys
import tempfile
import threading
import time
import types

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from in_process import load

GRACE, POLL = 5, 1  # seconds
UNTIL_IT_SLEEPS = 10 ** 9  # calls
SIZE = 3  # bytes of a file
ALIVE = ("PENDING", "HELD", "RUNNING")
WORDS = ["FAILED", "NODE_FAIL", "PREEMPTED", "TIMEOUT", "OUT_OF_MEMORY", "CANCELLED"]
FINAL = ("time limit", "out of memory", "the job was cancelled")
# Jobs of others, one of them of another folder's run, which are never to be touched.
FOREIGN = "7|g1.1-other|PENDING|None\n8|train|RUNNING|None\n9|g2.1|weird|PENDING|(JobHeldUser)\n"

DRIVER = load("globus-batch-download")
HELPER = DRIVER.helper = load("helper")  # one of its own, which is never put right again


class Killed(BaseException):
    """SIGKILL, where the driver stands."""


# ---- the driver, one call to the operating system after the other ----


class Process:
    """The driver, in a thread that runs only while it is told to."""

    def __init__(self, function):
        self.go, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.calls, self.made, self.is_killed, self.is_over = 0, 0, False, False
        self.result = self.error = self.at = self.until = None

        def body():
            self.go.acquire()
            try:
                self.call("start")
                self.result = function()
            except BaseException as error:  # looked at by World.run_driver()
                self.error = error
            self.is_over = True
            self.back.release()

        self.thread = threading.Thread(target=body, daemon=True)
        self.thread.start()

    def run(self, calls, until=None):
        """Let it do so many calls, of all kinds or of one, but not longer than until it sleeps."""
        self.calls, self.until = calls, until
        self.go.release()
        self.back.acquire()
        if self.is_over:
            self.thread.join()

    def kill(self):
        self.is_killed = True
        if not self.is_over:
            self.run(1)

    def call(self, name):
        """The driver is about to do this; may be that it never does."""
        self.at = name
        if self.is_killed:
            raise Killed
        if self.calls <= 0 and self.until in (None, name):
            self.back.release()
            self.go.acquire()
            if self.is_killed:
                raise Killed
        self.calls -= self.until in (None, name)
        self.made += 1

    def sleep(self):
        self.calls, self.until = 0, None
        self.call("sleep")


class Stub:
    """A module of which some names are other ones."""

    def __init__(self, module, **names):
        self.__dict__.update(names, module=module)

    def __getattr__(self, name):
        return getattr(self.module, name)


class Hooks:
    """What the scripts call instead of the operating system; it goes to the current World."""

    def __init__(self):
        self.world = None

    def traced(self, function, name=None):
        name = name or function.__name__

        def call(*args, **options):
            if self.world.process:  # else it is a check of this test
                self.world.process.call(name)
            return function(*args, **options)

        return call

    def listdir(self, folder):
        """Not at one moment: what is renamed meanwhile may be seen by neither of its names."""
        names = set(os.listdir(folder))
        if self.world.process:
            self.world.process.call("readdir")
        return sorted(names.intersection(os.listdir(folder)))

    def walk(self, folder, topdown):
        return [(here, sorted(folders), sorted(names))
                for here, folders, names in os.walk(folder, topdown=topdown)]

    def rename(self, old, new):
        os.rename(old, new)
        self.world.note_renamed(new)

    def rmtree(self, folder, ignore_errors):
        for here, _, names in HELPER.os.walk(folder, topdown=False):
            for name in names:
                HELPER.os.remove(os.path.join(here, name))
            HELPER.os.rmdir(here)

    def install(self):
        paths = {name: self.traced(getattr(os.path, name))
                 for name in ("exists", "isdir", "getsize")}
        calls = {name: self.traced(getattr(os, name))
                 for name in ("remove", "rmdir", "makedirs", "replace", "link", "stat")}
        our_os = Stub(
            os, path=Stub(os.path, **paths), listdir=self.traced(self.listdir), walk=self.walk,
            rename=self.traced(self.rename), fsync=self.traced(lambda number: None, "fsync"),
            waitpid=lambda pid, flags: self.world.waitpid(pid),
            kill=lambda pid, number: self.world.end_download(pid), getpid=lambda: 1, **calls)
        clock = Stub(time, monotonic=lambda: self.world.now, time=lambda: 1e9 + self.world.now,
                     sleep=lambda seconds: self.world.sleep(seconds))
        for module in (DRIVER, HELPER):
            module.os, module.time = our_os, clock
            module.open = self.traced(open)
        DRIVER.shutil = Stub(shutil, rmtree=self.rmtree)
        DRIVER.secrets = types.SimpleNamespace(choice=lambda text: self.world.random.choice(text))
        DRIVER.run_command = lambda *args, **options: self.world.run_command(*args)
        DRIVER.start_download = lambda config, folder: self.world.start_download(folder)
        DRIVER.install_signal_handlers = lambda driver: None
        DRIVER.print = lambda *texts, **options: self.world.printed.append(" ".join(texts))
        HELPER.log = lambda text: self.world.log.append(text)
        HELPER.TOLD.is_timed = False
        HELPER.is_terminal = lambda: False
        HELPER.show_progress = lambda text: None
        HELPER.cancel_pack = lambda config, folder: None
        append = DRIVER.Journal.append

        def note(journal, event):
            append(journal, event)
            self.world.note_event(event)

        DRIVER.Journal.append = note


HOOKS = Hooks()
HOOKS.install()


# ---- wrapper.sh and the download, one step after the other ----


def read_lines(path):
    try:
        with open(path) as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def add_line(path, text):
    with open(path, "a") as file:
        file.write(text + "\n")


def size_of(path):
    return os.path.getsize(path) if os.path.exists(path) else None


class Actor:
    """What runs on a node; `yield` stands wherever it may be killed, or something else happen."""

    def __init__(self, world, folder):
        self.world, self.folder = world, folder
        self.downloads = os.path.join(world.downloads, os.path.basename(folder))
        self.paths = [line.split("\t", 2)[2] for line in read_lines(folder + "/files")]
        self.how = "well"  # it goes on
        self.stopped = None  # exit status for the signal that it got
        self.file = None  # process.sh runs on it
        self.steps = self.run()
        self.is_alive, self.status = True, None

    def advance(self, steps, how):
        """Do so many steps; True if it goes on."""
        self.how = how
        for _ in range(steps):
            if not self.is_alive:
                break
            try:
                next(self.steps)
            except StopIteration as end:
                self.is_alive, self.file, self.status = False, None, end.value or 0
            except FileNotFoundError:  # its folder has been removed
                assert not os.path.exists(self.folder)
                self.is_alive, self.file, self.status = False, None, 1

    def kill(self):
        self.is_alive, self.steps = False, iter(())
        self.file = None

    def with_results(self):
        """Indices of the files that have a result."""
        return {int(line.split()[0]) for name in os.listdir(self.folder)
                if name.startswith("results.") for line in read_lines(f"{self.folder}/{name}")
                if line}

    def download(self):
        """globus-single-file-download.py --pack, without what is Globus's; its exit status."""
        done, arrived = self.with_results(), []
        if len(done) < len(self.paths):
            add_line(self.folder + "/submission.1", "{}")
        name = f"results.download-node-{self.world.next_number()}"
        for index, path in enumerate(self.paths):
            yield
            if self.stopped or self.how in ("login", "badly"):
                add_line(f"{self.folder}/{self.log}", "why the download failed")
                return self.stopped or (HELPER.NEEDS_LOGIN if self.how == "login" else 1)
            if index in done:
                continue
            if path in self.world.unreadable:
                add_line(f"{self.folder}/{name}", f"{index} 1 permission denied")
                continue
            place = os.path.join(self.downloads, path)
            if size_of(place) != SIZE:
                os.makedirs(os.path.dirname(place), exist_ok=True)
                with open(place, "w") as file:
                    file.write("x" * SIZE)
            arrived.append(index)
        yield
        with open(self.folder + "/arrived.new", "w") as file:
            file.writelines(f"{index}\n" for index in arrived)
        os.replace(self.folder + "/arrived.new", self.folder + "/arrived")
        return 0


class Download(Actor):
    """A download of the driver's."""

    log = "download.log"

    def run(self):
        return (yield from self.download())


class Incarnation(Actor):
    """wrapper.sh, as one start of a job."""

    log = "log"

    def __init__(self, world, job):
        self.job, self.me, self.step = job, f"{job.attempt}.{job.number}", "get"
        self.at = None  # index of the file whose token it has, until it has reported
        super().__init__(world, job.folder)

    def move(self, old, new):
        try:
            os.rename(f"{self.folder}/{old}", f"{self.folder}/{new}")
            return True
        except FileNotFoundError:
            return False

    def has_token(self):
        return os.path.exists(f"{self.folder}/at.{self.me}.{self.step}")

    def finish(self, status):
        if self.at is not None:
            self.world.note_death(self, "by a signal")
        for path in self.over:
            yield
            if os.path.exists(path):
                os.remove(path)
        yield
        end = f"end.{self.me}.{self.step}.{status}"
        if not self.move(f"at.{self.me}.{self.step}", end):
            yield
            self.move(f"stop.{self.me}.{self.step}", end)
        return int(status != 0)

    def run(self):
        self.over, self.paths, worst, row = [], [], 0, 0
        yield
        if not os.path.isdir(self.folder):
            return 0
        names = sorted(name for name in os.listdir(self.folder)
                       if name.startswith(f"at.{self.me}."))
        for name in [name for name in names if not name.endswith(".get")]:
            yield  # requeued: who was at work may live on
            self.move(name, "stop" + name[len("at"):])
        names = [name for name in names if name.endswith(".get")]
        for name in [f"ticket.{self.job.attempt}", *names]:
            me = f"{self.me}.node-1-{self.world.next_number()}"
            yield
            if self.move(name, f"at.{me}.get"):
                self.me = me
                break
        else:
            return 0
        yield
        self.paths = [line.split("\t", 2)[2] for line in read_lines(self.folder + "/files")]
        if self.how == "badly":
            return (yield from self.finish(1))
        yield
        if not os.path.exists(self.folder + "/arrived"):
            status = yield from self.download()
            if status:
                return (yield from self.finish(self.stopped or status))
        yield
        done = self.with_results()
        yield
        todo = [int(line) for line in read_lines(self.folder + "/arrived")]
        for index in [index for index in todo if index not in done]:
            yield
            if self.stopped:
                return (yield from self.finish(self.stopped))
            if not self.move(f"at.{self.me}.{self.step}", f"at.{self.me}.{index}"):
                return (yield from self.finish(0))
            self.step = self.at = index
            path = os.path.join(self.downloads, self.paths[index])
            yield
            if os.path.exists(path):
                status = yield from self.process(self.paths[index], path)
            else:
                status = 1
                self.world.check_not_there(self, self.paths[index])
            yield
            if status and self.stopped:
                return (yield from self.finish(self.stopped))
            yield
            if not os.path.isdir(self.folder):
                return 1
            add_line(f"{self.folder}/results.{self.me}", f"{index} {status}")
            self.world.note_reported(self, self.paths[index], status)
            self.at = None
            if status:
                worst, row = status, row + 1
                if row == self.job.fuse:
                    return (yield from self.finish(status))
            else:
                self.over.append(path)
                row = -10 ** 6
        return (yield from self.finish(worst))

    def process(self, path, place):
        """process.sh; its exit status."""
        self.world.check_begin(self, path, place)
        self.file = path
        yield
        if self.how == "roughly" and os.path.exists(place):  # it changes its file
            add_line(place, "changed")
        elif self.how == "moving" and os.path.exists(place):  # away, before its work is done
            os.remove(place)
        yield
        self.file = None
        if self.stopped:
            return self.stopped
        if self.how == "badly":
            self.world.failed.add(path)
            return 1
        self.world.note_processed(self, path)
        return 0


class Job:
    """A job, as its scheduler knows it."""

    def __init__(self, world, number, name, script):
        words = shlex.split(next(line for line in script.splitlines() if "--pack" in line))
        self.world, self.number, self.name, self.script = world, number, name, script
        self.folder, self.attempt, self.fuse = words[3], int(words[4]), int(words[5])
        self.state, self.is_listed, self.start = "PENDING", True, world.starts
        self.incarnations = []
        self.absent_since = 0  # since when no answer has listed it as alive; None: it has
        self.is_forgotten = self.was_hidden = False

    def living(self):
        return [one for one in self.incarnations if one.is_alive]

    def begin(self):
        self.state = "RUNNING"
        self.incarnations.append(Incarnation(self.world, self))

    def end(self, state):
        for one in self.living():
            self.world.note_death(one, state)
            one.kill()
        # Of two incarnations of a job it is not known which one the word is about.
        for one in self.incarnations:
            if one.at is not None:
                self.world.words[one.paths[one.at]].add(state)
        self.state = state

    def note_ends(self):
        if self.state == "RUNNING" and not self.living():
            self.state = "FAILED" if self.incarnations[-1].status else "COMPLETED"


# ---- the world around the driver ----


class World:
    """A folder, a scheduler, nodes, a clock; and what must never be seen there."""

    def __init__(self, files=4, files_per_job=2, num_jobs=1, most_failures=None, by="job",
                 unreadable=(), is_blind=False):
        self.root = tempfile.mkdtemp()
        self.downloads = self.root + "/downloads"
        for name in ("wrapper.sh", "process.sh"):
            with open(f"{self.root}/{name}", "w") as file:
                file.write("#!/bin/bash\n# --clean\n")
        os.makedirs(self.root + "/jobs")
        self.files = [HELPER.File(f"f{number}", SIZE, "today", None) for number in range(files)]
        self.unreadable = {f"f{number}" for number in unreadable if number < files}
        self.was_unreadable = set(self.unreadable)
        self.is_blind = is_blind  # is_file_needed always says yes
        self.config = types.SimpleNamespace(
            SOURCE_ENDPOINT_ID="source", PATH="/data/", RECURSIVE=True, DESTINATION_ENDPOINT_ID="d",
            DOWNLOAD_DIR=self.downloads, DESTINATION_PATH=self.downloads, WORKING_DIR=self.root,
            NUM_JOBS=num_jobs, FILES_PER_JOB=files_per_job, DOWNLOAD_BY=by,
            MAX_FAILURES_IN_A_ROW=most_failures, TOKEN_FILE="t", MAX_BYTES=None, SCHEDULER="slurm",
            RESOURCES="", VERIFY_CHECKSUM=True, POLL_SECONDS=POLL,
            GRACE_SECONDS=GRACE, is_file_needed=self.is_needed)
        self.random, self.number, self.now, self.starts = random.Random(1), 100, 1000.0, 0
        self.jobs, self.late, self.active = [], [], {}
        self.submit_mode, self.queue_mode = "accepts", "answers"
        self.log, self.printed, self.run = [], [], None
        self.driver = self.process = self.outcome = None
        # What has happened, for the checks.
        self.successes = []  # (path, Incarnation, run)
        self.reported = collections.defaultdict(list)  # path: (Incarnation, status)
        self.deaths = collections.defaultdict(list)  # path: how jobs at work on it have ended
        self.words = collections.defaultdict(set)  # path: words of the queue for its jobs' ends
        self.failed = set()  # paths on which process.sh has failed
        self.not_needed = set()  # paths, in this start
        self.lost = {}  # (folder, attempt): the start in which it was given up as lost
        self.vain = collections.Counter()  # pack: jobs and downloads without a result
        self.results = {}  # pack: how many there were at its last submission
        self.checked = set()
        self.is_accepted = False
        HOOKS.world, HELPER.HERE, DRIVER.HERE = self, self.root, self.root

    def close(self):
        if self.process:
            self.process.kill()
            self.driver.journal.file.close()
        shutil.rmtree(self.root)

    def next_number(self):
        self.number += 1
        return self.number

    # -- the driver --

    def start_driver(self):
        """Start it, as main() does."""
        self.starts += 1
        self.is_accepted, self.outcome = False, None
        self.not_needed.clear()
        self.checked.clear()
        self.driver = driver = DRIVER.Driver(self.config, DRIVER.SCHEDULERS["slurm"], [])
        driver.journal.file = open(os.devnull)

        def main():
            with self.driver.journal.file:
                return DRIVER.batch(driver, DRIVER.read_journal(driver), self.files, None)

        self.process = Process(main)

    def run_driver(self, calls=UNTIL_IT_SLEEPS, until=None):
        """Let it do so many calls; look at how it ended, if it has."""
        process = self.process
        process.run(calls, until)
        self.check_failures()
        if not process.is_over:
            return
        self.process, error = None, process.error
        for one in self.active.values():
            one.kill()
        self.active.clear()
        self.driver.journal.file.close()
        if error is None:
            self.outcome = process.result
            if self.outcome != 130 and not self.driver.is_halted:
                self.check_none_forgotten()
        elif isinstance(error, HELPER.UserError):
            self.outcome = str(error)
            if "has accepted no job" in self.outcome:
                assert not self.is_accepted and not self.driver.state.submitted(), self.outcome
            else:
                assert "why the download failed" in self.outcome, self.outcome
        else:
            raise error

    def kill_driver(self, is_torn=False):
        """SIGKILL; is_torn: of what it has just written to the journal, half is on the disk."""
        process, self.process = self.process, None
        process.kill()
        self.driver.journal.file.close()
        for one in self.active.values():
            one.kill()
        self.active.clear()
        if is_torn and process.at == "fsync":
            path = self.root + "/jobs/journal.jsonl"
            with open(path, "rb") as file:
                text = file.read()
            os.truncate(path, len(text) - len(text.splitlines(True)[-1]) // 2)

    def sleep(self, seconds):
        self.now += seconds
        self.process.sleep()

    def is_needed(self, file):
        answer = self.is_blind or not self.is_done(file.path)
        if not answer:
            self.not_needed.add(file.path)
        return answer

    def is_done(self, path):
        return any(path == done for done, _, _ in self.successes)

    def start_download(self, folder):
        self.process.call("fork")
        pid = self.next_number()
        self.active[pid] = Download(self, folder)
        return pid

    def waitpid(self, pid):
        one = self.active[pid]
        if one.is_alive:
            return 0, 0
        del self.active[pid]
        self.vain[os.path.basename(one.folder)] += one.status != 0
        return pid, one.status << 8

    def end_download(self, pid):
        self.process.call("kill")
        self.active[pid].kill()
        self.active[pid].status = 1

    # -- the scheduler --

    def run_command(self, command, stdin=None, *_):
        self.process.call(command[0])
        answer = getattr(self, command[0])(command, stdin)
        self.process.call("answer of " + command[0])
        return answer

    def scontrol(self, command, stdin):
        return 0, "ClusterName = c\n", ""

    def sbatch(self, command, stdin):
        job = Job(self, self.next_number(), command[command.index("--job-name") + 1],
                  stdin.read().decode())
        mode = self.submit_mode
        if mode == "refuses":
            return 1, "", "sbatch: error: no"
        (self.late if mode == "accepts late" else self.jobs).append(job)
        if mode == "accepts twice":
            job = Job(self, self.next_number(), job.name, job.script)
            self.jobs.append(job)
        if mode in ("accepts", "accepts twice"):
            self.is_accepted = True
            return 0, f"{job.number}\n", ""
        return (0, "motd\n", "") if mode == "does not tell" else (None, "", "did not answer")

    def squeue(self, command, stdin):
        if self.queue_mode == "is silent":
            return 1, "", "squeue: error"
        lines = DRIVER.SLURM_HEADING + "\n" + FOREIGN
        for job in self.jobs:
            is_listed = job.is_listed and not job.is_forgotten
            is_seen_alive = is_listed and job.state in ALIVE
            if is_listed:
                state = "PENDING|JobHeldUser" if job.state == "HELD" else job.state + "|None"
                lines += f"{job.number}|{job.name}|{state}\n"
            if self.queue_mode == "answers":
                job.absent_since = None if is_seen_alive else (
                    self.now if job.absent_since is None else job.absent_since)
        return 0, lines if self.queue_mode == "answers" else lines[:-5], ""

    def scancel(self, command, stdin):
        ours = {str(job.number): job for job in self.jobs}
        for number in command[1:]:
            assert number in ours, f"a job of somebody else was cancelled: {number}"
            job = ours[number]
            assert not any(one.file for one in job.living()), (
                f"job {job.name} was cancelled at work on {[one.file for one in job.living()]}")
            if job.state in ALIVE:
                job.end("CANCELLED")
        return 0, "", ""

    # -- what is seen --

    def note_event(self, event):
        if event["event"] == "run":
            self.run = event["run"]
        elif event["event"] == "submit":
            self.results[event["pack"]] = event["results"]
        elif event["event"] == "closed":
            self.vain[event["pack"]] += event["results"] == self.results.get(event["pack"])

    def note_renamed(self, new):
        lost = re.fullmatch(r"lost\.(\d+)\..*", os.path.basename(new))
        if lost:
            self.lost[os.path.dirname(new), int(lost.group(1))] = self.starts

    def note_death(self, one, word):
        if one.at is not None:
            self.deaths[one.paths[one.at]].append(word)

    def note_processed(self, one, path):
        self.successes.append((path, one, self.run))

    def note_reported(self, one, path, status):
        self.reported[path].append((one, status))

    def incarnations(self):
        return [one for job in self.jobs for one in job.living()]

    def may_meet(self, one, other):
        """True if both may have the same file: they are one requeued job; or the other one was
        given up as lost in an earlier start than that which submitted this one."""
        return one.job is other.job or self.lost.get(
            (other.folder, other.job.attempt), 10 ** 9) < one.job.start

    def check_begin(self, one, path, place):
        """process.sh is about to begin with a file."""
        for other in self.incarnations():
            assert other.file != path or self.may_meet(one, other), (
                f"{path} is in two jobs at a time: {other.job.name} and {one.job.name}")
        for done, other, run in self.successes:
            is_again = done == path and not self.may_meet(one, other)
            if is_again and self.is_blind:
                is_again = run == self.run and (other, 0) in self.reported[path]
            assert not is_again, (
                f"{path} begins again in {one.job.name}, after a success in {other.job.name}")
        is_same_job = any(other.job is one.job for other, _ in self.reported[path])
        is_failed = self.process and path in self.driver.failures and one.job.start == self.starts
        assert not is_failed or is_same_job, f"{path} has failed, and begins in {one.job.name}"
        assert size_of(place) == SIZE or len(one.job.incarnations) > 1, (
            f"{path} begins half processed in {one.job.name}")

    def check_not_there(self, one, path):
        """A file that had arrived is not there."""
        assert not one.has_token() or len(one.job.incarnations) > 1, (
            f"{path} is not there for {one.job.name}")

    def check_tokens(self):
        tokens = [name for here in os.listdir(self.root + "/jobs")
                  if os.path.isdir(f"{self.root}/jobs/{here}")
                  for name in os.listdir(f"{self.root}/jobs/{here}") if name.startswith("at.")]
        assert len(tokens) <= self.config.NUM_JOBS, tokens
        if self.process:
            assert len(self.driver.state.submitted()) <= self.config.NUM_JOBS

    def check_failures(self):
        """Each file has failed for a reason that the contract allows."""
        for path, failure in list(self.driver.failures.items()):
            if (path, failure.words) in self.checked:
                continue
            self.checked.add((path, failure.words))
            words, deaths = failure.words, self.deaths[path]
            is_lost = any(
                job.absent_since is not None and self.now - job.absent_since >= GRACE
                and (job.folder, job.attempt) in self.lost for job in self.jobs)
            assert (words.startswith("exit status") and path in self.failed
                    or words == "permission denied" and path in self.was_unreadable
                    or words.startswith("killed twice") and len(deaths) > 1
                    or words.startswith(FINAL) and self.words[path].intersection(WORDS[3:])
                    or words.startswith(("the job was lost", "given up")) and is_lost
                    or "ended without a result" in words and max(self.vain.values()) >= 10
                    ), f"{path} has failed: {words}; ends: {deaths}"

    def check_none_forgotten(self):
        """The driver has ended by itself."""
        paths = {file.path for file in self.files}
        driver = self.driver
        processed = {path for path, _, run in self.successes if run == self.run}
        assert driver.state.processed <= processed
        assert paths == driver.state.processed | set(driver.failures) | self.not_needed
        assert not driver.state.processed & set(driver.failures)
        status, failed = self.outcome, len(driver.failures)
        assert status == (1 if failed else 0)
        assert self.printed[-1].startswith(
            f"{len(driver.state.processed)} processed, {failed} failed, "), self.printed[-1]
        replayed = DRIVER.State()
        for event in DRIVER.Journal(driver.journal.path).read(cut=False):
            replayed.apply(event)
        assert replayed.processed == driver.state.processed and not replayed.packs
        # A job that was lost, or its file tried again elsewhere, may have had a late success.
        late = {path for path, one, _ in self.successes
                if (one.folder, one.job.attempt) in self.lost}
        if self.is_blind:  # nobody can tell that its job was killed after the success
            processed = {path for path, one, run in self.successes
                         if run == self.run and (one, 0) in self.reported[path]}
        assert processed - driver.state.processed <= late | self.not_needed

    # -- letting it run --

    def advance(self, resting=None):
        """Let everything go on for half a second, but for one Incarnation."""
        self.advance_jobs(resting)
        if not self.process:
            self.start_driver()
        self.run_driver()
        self.now += 0.5
        self.check_tokens()

    def advance_jobs(self, resting=None):
        for job in self.jobs:
            if job.state == "PENDING":
                job.begin()
            for one in job.living():
                one.advance(5 if one is not resting else 0, "well")
            job.note_ends()
        for one in list(self.active.values()):
            one.advance(5, "well")

    def settle(self):
        """Let everything run to its end: each file is processed, and nothing is left."""
        self.submit_mode, self.queue_mode = "accepts", "answers"
        self.jobs += self.late
        self.late = []
        self.unreadable = set()
        for job in self.jobs:
            job.state = "PENDING" if job.state == "HELD" else job.state
        for _ in range(3000):
            self.advance()
            if self.outcome == 0:
                break
        assert self.outcome == 0, (self.outcome, self.log[-20:])
        assert {path for path, _, _ in self.successes} == {file.path for file in self.files}
        if not self.is_blind:  # the next start finds nothing to do, and removes what was kept
            self.start_driver()
            self.run_driver()
            assert self.outcome == 0, self.outcome
            left = [name for folder in (self.downloads, self.root + "/jobs")
                    for name in os.listdir(folder) if name.startswith("g")]
            # A second incarnation, or one that was given up, may download late.
            late = {os.path.basename(job.folder) for job in self.jobs if len(job.incarnations) > 1
                    or job.was_hidden}
            assert late.issuperset(left), left


# ---- the rules ----

numbers = st.integers(0, 5)
manners = st.sampled_from(["well", "well", "well", "roughly", "badly"])


class Protocol(RuleBasedStateMachine):
    """Whatever happens, in whatever order."""

    world = None

    @initialize(files=st.integers(1, 6), files_per_job=st.integers(1, 3),
                num_jobs=st.integers(1, 2), most_failures=st.sampled_from([None, None, 2, 4]),
                by=st.sampled_from(["job", "job", "driver"]), is_blind=st.booleans(),
                unreadable=st.sets(numbers, max_size=1))
    def begin(self, **how):
        self.world = World(**how)

    def teardown(self):
        if self.world:
            try:
                if not sys.exc_info()[0]:  # it has gone well so far
                    self.world.settle()
            finally:
                self.world.close()

    def pick(self, number, is_fit):
        """One of the jobs, or None."""
        jobs = [job for job in self.world.jobs if is_fit(job)]
        return jobs[-1 - number % len(jobs)] if jobs else None

    @invariant()
    def few_have_a_token(self):
        if self.world:
            self.world.check_tokens()

    # -- the driver --

    @precondition(lambda self: not self.world.process)
    @rule()
    def start(self):
        self.world.start_driver()
        self.world.run_driver()

    @precondition(lambda self: self.world.process)
    @rule(calls=st.one_of(st.just(UNTIL_IT_SLEEPS), st.integers(1, 100)))
    def drive(self, calls):
        self.world.run_driver(calls)

    @precondition(lambda self: self.world.process)
    @rule(is_torn=st.booleans())
    def kill_driver(self, is_torn):
        self.world.kill_driver(is_torn)

    @precondition(lambda self: self.world.process)
    @rule(calls=st.integers(1, 100))
    def drive_and_kill(self, calls):
        self.world.run_driver(calls)
        if self.world.process:
            self.world.kill_driver()

    @precondition(lambda self: self.world.process)
    @rule(name=st.sampled_from(["rename", "listdir", "replace", "fsync", "squeue", "scancel",
                                "answer of squeue", "sbatch", "answer of sbatch", "open"]),
          nth=st.integers(0, 3), number=numbers, steps=st.integers(1, 25),
          is_requeued=st.booleans(), is_killed=st.booleans())
    def drive_up_to(self, name, nth, number, steps, is_requeued, is_killed):
        """While the driver is about to do this, a job begins, or goes on."""
        self.world.run_driver(nth, name)
        if is_requeued:
            self.requeue(number)
        self.begin_job(number)
        self.work(number, steps, "well")
        if is_killed and self.world.process:
            self.world.kill_driver()

    @precondition(lambda self: self.world.process)
    @rule()
    def interrupt(self):
        self.world.driver.stopping = True

    # -- the clock --

    @rule(seconds=st.sampled_from([0.3, 1, 2, GRACE + 1]))
    def tick(self, seconds):
        self.world.now += seconds

    @rule(rounds=st.integers(1, 6))
    def go_on(self, rounds):
        for _ in range(rounds):
            self.world.advance()

    # -- the scheduler --

    @rule(mode=st.sampled_from(["accepts", "accepts", "refuses", "accepts late", "accepts twice",
                                "does not tell", "does not answer"]))
    def submissions(self, mode):
        self.world.submit_mode = mode

    @rule(mode=st.sampled_from(["answers", "answers", "is silent", "is cut"]))
    def queue(self, mode):
        self.world.queue_mode = mode

    @precondition(lambda self: self.world.late)
    @rule()
    def arrive_late(self):
        self.world.jobs.append(self.world.late.pop())

    # -- the jobs --

    @rule(number=numbers)
    def begin_job(self, number):
        job = self.pick(number, lambda job: job.state == "PENDING")
        if job:
            job.begin()

    @rule(number=numbers)
    def hold_or_release(self, number):
        job = self.pick(number, lambda job: job.state in ("PENDING", "HELD"))
        if job:
            job.state = "PENDING" if job.state == "HELD" else "HELD"

    @rule(number=numbers, steps=st.integers(1, 30), how=manners)
    def work(self, number, steps, how):
        found = self.world.incarnations()
        if found:
            one = found[-1 - number % len(found)]
            one.advance(steps, how)
            one.job.note_ends()

    @precondition(lambda self: self.world.active)
    @rule(number=numbers, steps=st.integers(1, 9), how=st.sampled_from(["well", "badly", "login"]))
    def download(self, number, steps, how):
        found = list(self.world.active.values())
        found[number % len(found)].advance(steps, how)

    @rule(number=numbers, status=st.sampled_from([140, 143]))
    def signal(self, number, status):
        found = self.world.incarnations()
        if found:
            found[-1 - number % len(found)].stopped = status

    @rule(number=numbers, word=st.sampled_from(WORDS), is_forgotten=st.booleans())
    def kill_job(self, number, word, is_forgotten):
        job = self.pick(number, lambda job: job.state in ALIVE)
        if job:
            job.end(word)
            job.is_forgotten = is_forgotten

    @rule(number=numbers)
    def forget(self, number):
        job = self.pick(number, lambda job: job.state not in ALIVE)
        if job:
            job.is_forgotten = True

    @rule(number=numbers)
    def lose_or_find(self, number):
        job = self.pick(number, lambda job: job.state in ALIVE)
        if job:
            job.is_listed, job.was_hidden = not job.is_listed, True

    @rule(number=numbers)
    def requeue(self, number):
        job = self.pick(number, lambda job: job.incarnations and not job.is_forgotten)
        if job:
            job.state = "PENDING"


# ---- what chance finds too seldom: something happens at a certain call ----


def at_each_call(scenario):
    """Run a scenario, a generator, again and again. Where it yields a World and a function, the
    driver runs up to its nth call, for each n until it sleeps, and the function is called. Then all
    goes on, but for the Incarnation that the function gives; at last that one, too."""
    for nth in itertools.count():
        for world, happens in scenario():
            try:
                world.run_driver(nth)
                at = world.process.at if world.process else "sleep"
                resting = happens()
                for _ in range(30):
                    world.advance(resting)
                world.settle()
            except AssertionError as error:
                raise AssertionError(f"at call {nth}, {at}: {error}\n" + "\n".join(world.log))
            finally:
                world.close()
        if at == "sleep":
            return


def work_up_to_a_file(job):
    """Let a job go on until process.sh runs, or it ends; its Incarnation. None: it never begins."""
    if job.state != "PENDING" and not job.living():
        return None
    if job.state == "PENDING":
        job.begin()
    one = job.incarnations[-1]
    while one.is_alive and not one.file:
        one.advance(1, "well")
    return one


def up_to(world, name, times=1):
    """Let the driver run until it is about to do something for the nth time."""
    while times:
        world.run_driver(0, name)
        times -= world.process.at == name
        world.now += 0.5


def arrived(most_failures=None):
    """A World where the driver's downloads have arrived, and their two jobs are in the queue."""
    world = World(4, 2, 2, most_failures, "driver")
    world.start_driver()
    while len(world.jobs) < 2:
        world.run_driver()
        for one in world.active.values():
            one.advance(9, "well")
        world.now += 0.5
    return world


@pytest.mark.long
def test_no_file_is_in_two_jobs_if_one_moves_its_token_while_the_driver_looks():
    def scenario():
        world = arrived()
        job = world.jobs[0]
        job.begin()
        while not [name for name in os.listdir(job.folder) if name.endswith(".get")]:
            job.incarnations[0].advance(1, "well")
        yield world, lambda: work_up_to_a_file(job)

    at_each_call(scenario)


@pytest.mark.long
def test_no_file_is_in_two_jobs_if_one_is_requeued_while_the_driver_closes_it():
    def scenario():
        world = arrived()
        job = world.jobs[0]
        work_up_to_a_file(job)
        job.end("NODE_FAIL")
        up_to(world, "answer of squeue", 2)

        def requeue():
            job.state = "PENDING"
            return work_up_to_a_file(job)

        yield world, requeue

    at_each_call(scenario)


@pytest.mark.long
def test_no_file_is_in_two_jobs_if_one_lives_on_whose_requeued_job_ends_and_is_not_listed():
    def scenario():
        world = arrived()
        job = world.jobs[0]
        one = work_up_to_a_file(job)
        job.state = "PENDING"
        job.begin()
        job.incarnations[-1].advance(99, "well")
        job.is_listed, job.was_hidden = False, True
        yield world, lambda: one

    at_each_call(scenario)


@pytest.mark.long
def test_no_file_is_in_two_jobs_if_one_that_ended_by_itself_is_requeued():
    def scenario():
        world = arrived()
        job = world.jobs[0]
        job.begin()
        job.incarnations[0].advance(99, "badly")
        job.note_ends()

        def requeue():
            job.state = "PENDING"
            return work_up_to_a_file(job)

        yield world, requeue

    at_each_call(scenario)


@pytest.mark.long
def test_no_file_is_in_two_jobs_if_one_begins_late_while_it_is_given_up():
    def scenario():
        world = World(4, 2, 2, by="driver")
        world.start_driver()
        world.submit_mode = "accepts late"
        while not world.late:
            world.run_driver(0, "answer of sbatch")
            for one in world.active.values():
                one.advance(9, "well")
            world.now += 0.5
        world.kill_driver()
        world.submit_mode = "accepts"
        world.start_driver()
        up_to(world, "answer of squeue")

        def begin():
            world.jobs.append(world.late.pop())
            return work_up_to_a_file(world.jobs[-1])

        yield world, begin

    at_each_call(scenario)


@pytest.mark.long
def test_no_file_is_in_two_jobs_if_one_of_two_jobs_of_one_submission_has_the_token():
    def scenario():
        world = World(1, 1, 2)
        world.submit_mode = "accepts twice"
        world.start_driver()
        while len(world.jobs) < 2:
            world.run_driver()
            world.now += 0.5
        world.submit_mode = "accepts"
        one = work_up_to_a_file(world.jobs[0])
        world.jobs[1].begin()  # the one of which the scheduler told
        yield world, lambda: one

    at_each_call(scenario)


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.long
def test_a_halt_cancels_no_job_at_work_that_has_just_begun(is_killed):
    def scenario():
        world = arrived(most_failures=1)
        world.jobs[0].begin()
        world.jobs[0].incarnations[0].advance(99, "badly")
        while not world.driver.is_halted:
            world.run_driver(1)

        def begin():
            one = work_up_to_a_file(world.jobs[1])
            if is_killed and world.process:
                world.run_driver(0, "scancel")
            if is_killed and world.process:
                world.kill_driver()
            return one

        yield world, begin

    at_each_call(scenario)


@pytest.mark.long
def test_a_job_killed_once_after_process_sh_has_moved_its_file_fails_no_file():
    def scenario():
        world = arrived()
        one = work_up_to_a_file(world.jobs[0])
        one.advance(1, "moving")
        world.jobs[0].end("NODE_FAIL")
        yield world, lambda: None

    at_each_call(scenario)


@pytest.mark.long
def test_no_file_begins_again_if_a_job_killed_before_its_report_is_requeued():
    def scenario():
        world = arrived()
        job = world.jobs[0]
        one = work_up_to_a_file(job)
        while not world.is_done("f0"):
            one.advance(1, "well")
        job.end("NODE_FAIL")

        def requeue():
            job.state = "PENDING"
            return work_up_to_a_file(job)

        yield world, requeue

    at_each_call(scenario)


@pytest.mark.parametrize("by, step", [
    ("job", 9), ("driver", 9), pytest.param("job", 1, marks=pytest.mark.long),
    pytest.param("driver", 1, marks=pytest.mark.long)])
def test_the_driver_may_be_killed_at_every_call(by, step):
    for nth in itertools.count(0, step):
        world = World(4, 2, 2, by=by)
        world.start_driver()
        while world.process and world.process.made < nth:
            world.run_driver(nth - world.process.made)
            world.advance_jobs()
            world.now += 0.5
        is_last = not world.process
        try:
            if world.process:
                world.kill_driver(is_torn=nth % 2 == 0)
            world.settle()
        finally:
            world.close()
        if is_last:
            return


def run(number, seed=0):
    """Try so many examples: the same ones each time, others with HYPOTHESIS_RANDOM=1."""
    machine = type("Machine", (Protocol,), {})
    if not os.environ.get("HYPOTHESIS_RANDOM"):
        hypothesis.seed(seed)(machine)
    run_state_machine_as_test(machine, settings=settings(
        max_examples=number, stateful_step_count=40, deadline=None, database=None,
        report_multiple_bugs=False, suppress_health_check=list(HealthCheck)))


def test_whatever_is_killed_lost_or_repeated_each_file_is_processed_once():
    run(40)


@pytest.mark.timeout(600)
@pytest.mark.long
def test_whatever_is_killed_lost_or_repeated_many_times():
    run(1500, seed=1)
