#!/usr/bin/env python3
"""Download and process all needed files of PATH (see config.py) in batch jobs.

Run it on the login node. It keeps NUM_JOBS jobs in the scheduler until all
files are done; each job runs wrapper.sh, which downloads its files, runs
process.sh on each, and deletes it. It may be stopped, or killed, and started
again: it continues where it stopped, and tries again what has failed.

Example, to try it with three files and then leave the rest to itself:

    ./globus-batch-download.py --limit 3
    nohup ./globus-batch-download.py > batch.log 2>&1 &
"""
import argparse
import collections
import contextlib
import ctypes
import datetime
import errno
import fcntl
import itertools
import json
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from xml.etree import ElementTree

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # PYTHONSAFEPATH leaves it out
sys.path.append(os.getcwd())  # sbatch runs a copy of this script, in the folder of the scripts
import helper

HERE = helper.as_named_here(helper.HERE)
SUBMIT_SECONDS = 300  # sbatch itself tries for up to 120 s when Slurm is busy
QUEUE_SECONDS = 60
BAR = 8  # characters
MOST_REFUSED_POLLS = 3  # before a first job is accepted
MOST_FRUITLESS = 10  # attempts of one pack that bring no result
MOST_SKIPPED = 1000  # files that MAX_BYTES leaves no room for, when a pack is filled
MOST_ASKED_AGAIN = 20  # files; the filter looks at a disk, which may be slow
MOST_LINES = 3  # for failures of one cause at a time
LEAST_SECONDS = 10  # that a job has work for, if there are files
LISTING_SECONDS = 1  # between two looks at the jobs while a listing comes
LOCK_SECONDS = 0.5  # longer than --status holds the lock
JOURNAL_VERSION = 3
DAMAGED = (*helper.MALFORMED, IndexError)  # raised by a damaged journal
TASKS_AT_WORK = 3  # active transfer tasks per user (globus.org, "Transfer limits")


# ---- the schedulers ----

# A kind of scheduler, told by
#   submit          the command that takes a job's script on stdin, with what is to be put in
#   log             lines for the job's script, where the scheduler does not write the log itself
#   id              pattern of a job's id, a line of what submit prints
#   queue           the command that asks for all jobs of the user
#   parse_queue     (text): [QueueEntry, ...], from what queue printed. Lines that it does not know
#                   are passed over; raises ValueError if it may not be the whole answer
#   job_info        the command, to which an id is added, that tells of one job, where it is needed
#   cancel          the command, to which ids are added
#   release         the same, for jobs that are held
#   directive       how a line of options in a job's script begins
#   foreign         options that the driver cannot work with: the job would not be its own
#   cluster         the command that names the cluster, and a pattern for what it says
#   linger_seconds  seconds that a job stays in the queue after its last word
#   is_silent       True if queue prints nothing when there are no jobs, as if it did not answer
#
# Another kind of scheduler needs: an entry in SCHEDULERS, with a function that parses its queue;
# guess_scheduler(); its variable for a job's id in wrapper.sh; what it sets in SET_FOR_A_JOB; its
# name in helper.SETTINGS.
Scheduler = collections.namedtuple(
    "Scheduler", "submit log id queue parse_queue job_info cancel release directive foreign "
    "cluster linger_seconds is_silent")

# What the queue says of a job. state: "waiting", "running", "held" (until somebody releases it),
# "blocked" (it cannot start as it is), "leaving" (its node does not let go) or "ended"; reason: in
# the scheduler's words.
QueueEntry = collections.namedtuple("QueueEntry", "id name state reason")
WAITING = ("waiting", "held", "blocked")  # no node has it

SLURM_HEADING = "JOBID|NAME|STATE|REASON"
SLURM_LINE = re.compile(r"(?m)^(\d[^|\n]*)\|(.*)\|(\w+)\|([^|\n]*)$")
# What the words of a scheduler for a job's state, and Slurm's reason behind them, mean: {state:
# pattern}, and the first one that is found counts.
SLURM_STATES = {
    # Not REVOKED: in a federation the sibling job, in another cluster, runs instead.
    "ended": "^(BOOT_FAIL|CANCELLED|COMPLETED|DEADLINE|FAILED|NODE_FAIL|OUT_OF_MEMORY|PREEMPTED|"
             "TIMEOUT) ",
    "leaving": "^COMPLETING ",
    "held": r"Held|\bheld\b|JobHold|_HOLD\b|SPECIAL_EXIT|special exit",  # whoever did it
    "blocked": "^PENDING (Invalid|.*(BadConstraints|DependencyNeverSatisfied|NotAllowed|"
               "Partition(Time|Node)Limit|MaxWall|MaxTime|Max.*PerJob))",
    "waiting": "^PENDING "}
PBS_STATES = {"waiting": "[QTW]", "held": "H", "ended": "[CFX]"}  # of PBS and Torque
SGE_STATES = {"running": "^[^q]*$", "blocked": "E", "held": "h", "waiting": "q"}  # hr: it runs
PBS_LINE = re.compile(r"(\d\S*) +\S+ +\S+ +(\S+) .* ([A-Z]) +\S+ *")
GRID_ENGINE = re.compile(r"^(\w+/)?\w*GE\b")

# What qstat says of a job that has left the queue.
GONE = re.compile("unknown job|has finished|not exist", re.I)

# Ends that would come again, in plain words, by Slurm's word for the state.
FINAL = {"TIMEOUT": "time limit reached: raise the time in RESOURCES",
         "DEADLINE": "its deadline has passed", "OUT_OF_MEMORY": "out of memory: raise the memory "
         "in RESOURCES", "CANCELLED": "the job was cancelled"}


def read_job_id(pattern, text):
    """The job's id, on a line of its own, whatever else was printed; None if there is none."""
    lines = [line.strip() for line in text.splitlines()]
    ids = [line.partition(";")[0] for line in lines if re.fullmatch(pattern, line)]
    return ids[-1] if ids else None


def state_by(patterns, words):
    """The first state whose pattern is found in a scheduler's words."""
    found = [state for state, pattern in patterns.items() if re.search(pattern, words)]
    return found[0] if found else "running"  # what nobody knows is alive


def parse_slurm_queue(text):
    """The answer of squeue; without its heading it is none."""
    lines = text.split("\n")
    if lines.count(SLURM_HEADING) != 1 or lines[-1]:
        raise ValueError("not the whole answer of squeue")
    entries = []
    for number, name, state, reason in SLURM_LINE.findall(text):
        words = [word for word in (state, reason) if word not in ("PENDING", "None")]
        entries.append(QueueEntry(number, name, state_by(SLURM_STATES, f"{state} {reason}"),
                                  ", ".join(words) or state))
    return entries


def parse_pbs_queue(text):
    """The answer of qstat -u, of PBS (with its comments below the jobs) or of Torque. No jobs:
    nothing is printed, or what the site has to say."""
    heading, dashes, rest = re.sub(r"(?m)^-[- ]+$", "---", text).partition("---\n")
    lines = rest.split("\n")
    if dashes and lines.pop():
        raise ValueError("not the whole answer of qstat")
    entries, is_ours = [], False
    for line in lines:
        match = PBS_LINE.fullmatch(line)
        if match:
            number, name, letter = match.groups()
            entries.append(QueueEntry(number, name, state_by(PBS_STATES, letter),
                                      "held" if letter == "H" else "state " + letter))
        elif is_ours and line.startswith(" "):  # of a comment with several lines the first one
            last = entries.pop()
            entries.append(last._replace(
                state="blocked" if "Can Never Run" in line else last.state,
                reason=line.strip(" -") or last.reason))
        is_ours = bool(match)
    return entries


def parse_sge_queue(text):
    """The answer of qstat -xml."""
    if "<queue_info" not in text or not text.rstrip().endswith("</job_info>"):
        raise ValueError("not the whole answer of qstat")
    entries = []
    for job in re.findall("(?s)<job_list.*?</job_list>", text):
        try:
            tags = ElementTree.fromstring(job)
            number, name, state = (
                tags.find(tag).text or "" for tag in ("JB_job_number", "JB_name", "state"))
        except (ElementTree.ParseError, AttributeError):
            continue
        entries.append(QueueEntry(number, name, state_by(SGE_STATES, state), "state " + state))
    return entries


try:
    USER = pwd.getpwuid(os.getuid()).pw_name
except KeyError:  # nobody knows its name, as in some containers
    USER = str(os.getuid())
TO_LOG = "exec >{log} 2>&1\n"  # PBS would bring the log only when the job has ended
QSUB = ["qsub", "-V", "-r", "n", "RESOURCES", "-S", "/bin/bash", "-N", "{name}", "-o", "/dev/null",
        "-j"]
SCHEDULERS = {
    "slurm": Scheduler(
        # The limits (ulimit) of a login node are not for a job.
        ["sbatch", "--no-requeue", "--propagate=NONE", "RESOURCES", "--parsable", "--output={log}",
         "--job-name", "{name}"], "",
        r"\d+(;\S+)?",
        # --all: also jobs in partitions that are hidden.
        ["squeue", "--user=" + USER, "--all", "--states=all", "--format=%i|%j|%T|%r"],
        parse_slurm_queue,
        None, ["scancel"], ["scontrol", "release"], "#SBATCH",
        "-a -d -h -H -M -V -W --array --cluster --clusters --dependency --help --hold --test-only "
        "--version --wait --wrap",
        (["scontrol", "show", "config"], r"(?m)^ClusterName\s*=\s*(\S+)"), 0.2, False),
    "pbs": Scheduler(
        QSUB + ["oe"], TO_LOG, r"\d+(\.(?=\S*[A-Za-z])\S+)?",  # no date
        ["qstat", "-s", "-w", "-u", USER], parse_pbs_queue, ["qstat"], ["qdel"], ["qrls"], "#PBS",
        "-h -I -J -z", (["qstat", "-B"], r"(?m)^-[- ]+\n(\S+)"), 1, True),
    "sge": Scheduler(
        # -notify: SIGUSR2 before the end, and SIGUSR1 before a mere suspension.
        # -s a: jobs in all states, whatever ~/.sge_qstat says.
        QSUB + ["y", "-terse", "-notify"], TO_LOG + "trap '' USR1\n", r"\d+",
        ["qstat", "-u", USER, "-s", "a", "-xml"], parse_sge_queue, ["qstat", "-j"], ["qdel"],
        ["qrls"], "#$", "-h -help -hold_jid -hold_jid_ad -sync -t -verify", None, 1, False),
}
SCHEDULERS["torque"] = SCHEDULERS["pbs"]._replace(
    queue=["qstat", "-u", USER], foreign="-h -I -t -z")

# Variables that choose the cluster that a scheduler's commands ask.
WHICH_CLUSTER = ("SLURM_CLUSTERS", "PBS_DEFAULT", "PBS_SERVER", "SGE_ROOT", "SGE_CELL")
FINDS_THE_SCHEDULER = {*WHICH_CLUSTER, "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT",
                       "PBS_CONF_FILE", "PBS_EXEC", "SGE_QMASTER_PORT", "SGE_EXECD_PORT",
                       "SGE_CLUSTER_NAME"}
# Every job has the first one, and those that the pattern fits.
SET_FOR_A_JOB = {
    "SLURM_JOB_ID": "SLURM.*", "PBS_JOBID": "PBS_.*",
    "SGE_TASK_ID": "(SGE|JOB)_.*|PE|PE_HOSTFILE|NSLOTS|NHOSTS|NQUEUES|QUEUE|RESTARTED|ARC|REQUEST"}

def find_scheduler(config):
    """The Scheduler of this machine, by config.SCHEDULER, which becomes its name if it was 'auto'.
    Raises UserError (exit status 2) if there is none."""
    if config.SCHEDULER == "auto":
        config.SCHEDULER = guess_scheduler() or "auto"
    kind = SCHEDULERS.get(config.SCHEDULER)
    command = kind.submit[0] if kind else "sbatch or qsub"
    if not shutil.which(command):
        raise helper.UserError(f"config.py: SCHEDULER = {config.SCHEDULER!r}, but there is no "
                               f"{command} here.\nRun this on a login node of the cluster.", 2)
    clusters = plain_env().get("SLURM_CLUSTERS", "")
    if "," in clusters or clusters == "all":
        raise helper.UserError(f"SLURM_CLUSTERS={clusters} names several clusters; the driver "
                               "works with one.", 2)
    return kind


def check_options(scheduler, words, where):
    """Raise UserError (exit status 2) if options hold a command, or an option that makes the job
    something else. where: a name for them."""
    foreign, before = scheduler.foreign.split(), "-x=y"
    is_sge = scheduler.directive == "#$"  # whose options may have several values
    for word in words:
        name = word.split("=")[0] if word.startswith("--") or is_sge else word[:2]
        has_value = "=" in before or not before.startswith("--") and len(before) > 2
        is_command = not word.startswith("-") and has_value and not is_sge
        if word == "--" or is_command or name in foreign or (
                before == "-W" and re.match("(.*,)?(depend|block)=", word)):
            raise helper.UserError(
                f"{where} holds {word!r}. Leave it out: the driver cannot work with commands, "
                "arrays,\njobs that are held or interactive. (A cluster of Slurm is chosen by the "
                "variable SLURM_CLUSTERS.)", 2)
        if "-q" in (before, word[:2]) and "@" in word and not is_sge:
            raise helper.UserError(f"{where} holds {word}. Name the queue only; the server is "
                                   "chosen by the variable PBS_DEFAULT or PBS_SERVER.", 2)
        before = word if word.startswith("-") else "-x=y"


def read_directives(scheduler, script):
    """The options in the lines of a job's script for the scheduler, such as '#SBATCH --mem=4G',
    above its first command."""
    words = []
    for line in leading_comments(script):
        if line.startswith(scheduler.directive):
            try:
                words += shlex.split(line[len(scheduler.directive):], comments=True)
            except ValueError as error:
                raise helper.UserError(f"wrapper.sh: {line}: {error}", 2)
    return words


def leading_comments(script):
    """The lines of a script above its first command."""
    return list(itertools.takewhile(lambda line: line.lstrip()[:1] in ("", "#"),
                                    script.splitlines()))


def cluster_name(scheduler):
    """How the scheduler calls its cluster, with the variables that choose one; None where it does
    not tell."""
    chosen = [f"{name}={value}" for name, value in plain_env().items()
              if name in WHICH_CLUSTER and name[:3] == {"#SBATCH": "SLU", "#$": "SGE"}.get(
                  scheduler.directive, "PBS")]
    if not scheduler.cluster:
        return " ".join(chosen)
    command, pattern = scheduler.cluster
    match = re.search(pattern, run_command(command)[1])
    return " ".join([match.group(1), *chosen]) if match else None


def plain_env():
    """The environment without what would filter the jobs that Slurm's commands show or cancel; its
    clusters by the one name that all of them know."""
    env = {name: value for name, value in os.environ.items()
           if not name.startswith(("SQUEUE_", "SCANCEL_"))}
    clusters = env.pop("SBATCH_CLUSTERS", None) or env.get("SLURM_CLUSTERS")
    return dict(env, SLURM_CLUSTERS=clusters) if clusters else env


def submit_env():
    """The environment for a job: the driver's, without what a scheduler has set for the driver, if
    that is a job itself, and without options of the shell that would change what scripts do."""
    foreign = "|".join(["SHELLOPTS", "BASHOPTS", "POSIXLY_CORRECT", *(
        pattern for sign, pattern in SET_FOR_A_JOB.items() if sign in os.environ)])
    return {name: value for name, value in plain_env().items()
            if name in FINDS_THE_SCHEDULER or not re.fullmatch(foreign, name)}


def guess_scheduler():
    """Which one answers here, by name, or None. A qsub may be a wrapper around Slurm's sbatch."""
    if shutil.which("sbatch"):
        return "slurm"
    if GRID_ENGINE.search(output_of(["qstat", "-help"])):
        return "sge"
    version = output_of(["qstat", "--version"])
    return "pbs" if "pbs_version" in version else "torque" if "ersion:" in version else None


def output_of(command):
    """All that a command of the scheduler says, on stdout and stderr."""
    return "".join(run_command(command)[1:])


def run_command(command, stdin=subprocess.DEVNULL, seconds=QUEUE_SECONDS, env=None):
    """Run a command of the scheduler; its exit status (None: it did not end in time), stdout and
    stderr. It has a session of its own, so a Ctrl-C is not for it."""
    try:
        done = subprocess.run(command, stdin=stdin, capture_output=True, timeout=seconds,
                              start_new_session=True, env=env or plain_env())
    except subprocess.TimeoutExpired:
        return None, "", f"{command[0]} did not answer within {seconds} s"
    except OSError as error:
        return 127, "", f"{command[0]}: {error.strerror}"
    return (done.returncode, done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"))


# ---- the token of an attempt ----

# An attempt is a job for a pack. Who may work on the pack has its token, a file in the pack's
# folder in jobs/, which exactly one of job and driver moves; its name says where the job is:
#   ticket.ATTEMPT                         submitted, not begun
#   at.ATTEMPT.ID.WRITER.STEP              begun; STEP: `get`, or the index of the file at work
#   stop.ATTEMPT.ID.WRITER.STEP            begin no other file: the driver, or the requeued job
#   end.ATTEMPT.ID.WRITER.STEP.STATUS      the job has ended by itself, above 128 by a signal
#   gone.... or lost.... of each of them   the driver: closed, nobody's any more
# ID: the number of the scheduler's id; WRITER: HOST-PID-RANDOM of the wrapper.sh at work.
Token = collections.namedtuple("Token", "name state attempt id writer step status")
# How an attempt has ended. why: None if there is nothing to tell; is_final: another job would end
# like this one, so that the file at work fails at once; may_live: nobody knows whether the job has
# ended, so that this file must not be begun elsewhere.
End = collections.namedtuple("End", "why is_final may_live", defaults=(False, False))
GIVEN_UP = End(None)  # by the driver itself
TOKEN = re.compile(r"(ticket|at|stop|end|gone|lost)\.(\d+)(?:\.(\d*)\.([^.]+)\.(get|\d+)"
                   r"(?:\.(\d+))?)?")


def parse_token(name):
    """The Token with that name; None if it is another file's."""
    match = TOKEN.fullmatch(name)
    if not match:
        return None
    state, attempt, job_id, writer, step, status = match.groups()
    return Token(name, state, int(attempt), job_id, writer,
                 int(step) if step and step.isdigit() else step, int(status) if status else None)


def find_token(names, attempt):
    """The Token of an attempt among the names of files; None if there is none."""
    tokens = filter(None, map(parse_token, names))
    return next((token for token in tokens if token.attempt == attempt), None)


def has_begun_a_file(token):
    """True if a job is, or was at its end, at work on a file."""
    return token is not None and token.step not in (None, "get")


def revoke(folder, attempt):
    """Keep a job from beginning; False if it has begun."""
    try:
        os.rename(os.path.join(folder, f"ticket.{attempt}"),
                  os.path.join(folder, f"gone.{attempt}"))
        return True
    except FileNotFoundError:
        return False


def take_token(folder, token, state):
    """Take that token away from its job, which begins no other file then; False if the job has
    moved it meanwhile: it is alive. state: `gone`, or `lost` for a job that may live on, or `stop`,
    which lets a running one report how its file ended."""
    if token.state in ("gone", "lost"):
        return True
    try:
        os.rename(os.path.join(folder, token.name),
                  os.path.join(folder, state + token.name[token.name.index("."):]))
        return True
    except FileNotFoundError:
        return False


# ---- the journal and the state: what survives a kill ----


class Journal:
    """The events of a run, a JSON object a line, each of them durable before the driver acts on it
    ("queued" and "closed" tell what is done; after a kill before them, the token tells it). Knows
    nothing of what they mean."""

    def __init__(self, path):
        self.path = path

    def read(self, cut):
        """The events. A last line without its end was never acted upon; cut: cut it off."""
        events, mode = [], "r+b" if cut else "rb"
        with contextlib.suppress(FileNotFoundError), open(self.path, mode) as file:
            whole = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                events.append(json.loads(line.decode()))
            if cut:
                file.truncate(whole)
        return events

    def open(self, is_new):
        """Append from here on, to an empty file if it is a new run."""
        if is_new:
            helper.write_whole(self.path, "")
        self.file = open(self.path, "ab", buffering=0)
        self.length = os.fstat(self.file.fileno()).st_size

    def append(self, event):
        """Write an event down to the disk. Raises UserError if somebody else writes there, too."""
        line = json.dumps(event).encode() + b"\n"
        try:
            there, ours = os.stat(self.path), os.fstat(self.file.fileno())
            if (there.st_ino, there.st_size) != (ours.st_ino, self.length):  # no lock across hosts
                raise helper.UserError(f"Another driver writes to {self.path}. This one stops.")
            if self.file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.file.fileno())
        except FileNotFoundError:  # jobs/ was removed
            raise
        except OSError as error:  # what is in the file now, the next start finds out
            raise helper.UserError(f"{error.strerror}: {self.path}\nFix that, and start this "
                                   "script again; it continues where it stopped.")
        self.length += len(line)


class Pack:
    """Files that travel together, while not all of them have a result."""

    def __init__(self, files):
        self.files = files  # Files
        self.attempt = 0  # number of the last submission, accepted or not
        self.jobs = 0  # how many were accepted
        self.is_submitted = False  # the last one is in the scheduler's hands
        self.id = None  # the scheduler's, None until it has told
        self.results_before = 0  # how many there were when the last one was submitted
        self.fruitless = 0  # attempts in a row without a result
        self.kills = collections.Counter()  # index: jobs that were killed at work on that file
        self.failed_before = set()  # indices of files that had failed before the last start
        # The rest is not in the journal.
        self.results = {}  # index: status, words and writer, of helper.read_results()
        self.sizes = {}  # of the files of results, when they were read
        self.missing_since = None  # since when the queue does not list the job
        self.download = None  # process id of the driver's download
        self.failed_downloads = 0  # of those, since this start
        self.next_download = 0
        self.is_adopted = False  # its job was submitted before this start
        self.is_renamed = False  # the queue calls its job by another name

    def left(self):
        """{index: File} of those without a result."""
        return {index: file for index, file in enumerate(self.files) if index not in self.results}

    def failed(self):
        """The indices of files that have failed."""
        return [index for index, (status, _, _) in self.results.items() if status]

    def has_only_failed(self):
        """True if jobs have brought results since this start, and no success among them."""
        results = [status for index, (status, _, writer) in self.results.items()
                   if index not in self.failed_before and not writer.startswith("download-")]
        return bool(results) and all(results)


class State:
    """What is known of a run; changed by apply() only, live and at a restart. A needed file is
    processed, or in one open pack, or pending, or it has failed since this start. (What had failed
    before in a pack that is still open is pending again, or in another pack.)"""

    def __init__(self):
        self.run, self.identity, self.run_begun = None, {}, None
        self.number = 0  # of packs so far
        self.packs = {}  # name: Pack, while it is open
        self.processed = set()  # paths, of packs that are over
        self.bytes = 0  # of those
        self.failed = set()  # paths, of packs that are over, since the last start
        self.start = self.listed = None  # the last events of these kinds
        self.retries = 0  # jobs for packs that had one before, since the last start
        self.time = 0  # of the last event

    def apply(self, event):
        """Change the state by one event of the journal."""
        kind, name, self.time = event["event"], event.get("pack"), event["time"]
        pack = self.packs.get(name)
        if kind == "run":
            self.run, self.identity, self.run_begun = event["run"], event["identity"], self.time
        elif kind == "start":  # of a driver, which tries again what has failed
            self.start, self.failed, self.retries = event, set(), 0
            for other, indices in event["failed"].items():
                self.packs[other].failed_before = set(indices)
        elif kind == "listed":
            self.listed = event
        elif kind == "pack":  # about to be set up
            self.number += 1
            self.packs[name] = Pack([helper.File(*file, None) for file in event["files"]])
        elif kind == "submit":  # about to be submitted
            pack.attempt, pack.results_before = event["attempt"], event["results"]
            pack.is_submitted, pack.id = True, None
        elif kind == "queued":  # accepted by the scheduler
            if pack.id is None:
                pack.jobs += 1
                self.retries += pack.jobs > 1
            pack.id = event["id"]
        elif kind == "closed":  # the attempt will never work again
            pack.is_submitted, pack.id = False, None
            if event["results"] is not None and event["why"]:  # neither refused nor given up
                is_fruitless = event["results"] == pack.results_before
                pack.fruitless = pack.fruitless + 1 if is_fruitless else 0
            if event["at"] is not None:
                pack.kills[event["at"]] += 1
        elif kind == "over":  # each file has a result
            failed = set(event["failed"])
            self.processed.update(file.path for index, file in enumerate(pack.files)
                                  if index not in failed)
            self.failed.update(pack.files[index].path for index in failed - pack.failed_before)
            self.bytes += event["bytes"]
            del self.packs[name]

    def submitted(self):
        """{name: Pack} of those with a job in the scheduler's hands."""
        return {name: pack for name, pack in self.packs.items() if pack.is_submitted}

    def ahead(self):
        """{name: Pack} of those that are downloaded by the driver, or wait for a slot."""
        return {name: pack for name, pack in self.packs.items() if not pack.is_submitted}

    def count(self):
        """How many files are processed by now."""
        return len(self.processed) + sum(
            len(pack.results) - len(pack.failed()) for pack in self.packs.values())

    def numbers(self):
        """How many files, and bytes, are processed by now, and how many have failed since the last
        start."""
        failed, size = len(self.failed), self.bytes
        for pack in self.packs.values():
            failed += len(set(pack.failed()) - pack.failed_before)
            size += sum(file.size for index, file in enumerate(pack.files)
                        if pack.results.get(index, (1,))[0] == 0)
        return self.count(), size, failed


# ---- packs ----


def take_files(pending, most, space, share, is_from_the_end, bytes_of, most_skipped):
    """The next Files for a pack: at most so many. The first one fits into space, the others into
    what is left of share, bytes; [] if none of the next ones fits."""
    pack, skipped = [], []
    take, give_back = (pending.pop, pending.append) if is_from_the_end else (
        pending.popleft, pending.appendleft)
    while pending and len(pack) < most and len(skipped) < most_skipped:
        file = take()
        if bytes_of(file) <= (share if pack else space):
            pack.append(file)
            share -= bytes_of(file)
            continue
        skipped.append(file)
        if pack:
            break
    for file in reversed(skipped):
        give_back(file)
    return pack


def pack_size(files_left, config, seconds_per_file):
    """How many files the next pack gets. Guided self-scheduling: packs get smaller as fewer files
    are left, so that no slot idles while another one has a long pack before it; but not so small
    that they are done within seconds, which a transfer task takes, however little it brings."""
    share = -(-files_left // config.NUM_JOBS)
    least = int(LEAST_SECONDS / seconds_per_file / config.NUM_JOBS)
    return min(config.FILES_PER_JOB, max(share, least))


def job_name(pack, attempt):
    """The name of a job in the queue: of pack g12-abcde g12.1-abcde. With 15 characters, it fits
    old servers; what differs stands first."""
    number, _, run = pack.partition("-")
    return f"{number}.{attempt}-{run}"


def job_script(scheduler, config, wrapper, folder, attempt):
    """The job: wrapper.sh, with a head behind its first lines of comments. Their options are on
    the command line, see read_directives()."""
    comments = leading_comments(wrapper)
    lines = [re.sub(r"^(#)(SBATCH|PBS|\$)", r"\1 \2", line) for line in comments]
    most_failures = 0 if config.MAX_FAILURES_IN_A_ROW is None else max(
        1, config.MAX_FAILURES_IN_A_ROW // config.NUM_JOBS)
    words = [folder, attempt, most_failures, HERE, config.WORKING_DIR,
             helper.pack_place(config, folder).folder, config.PATH]
    lines += ['if [ "${1:-}" != --clean ]; then',
              scheduler.log.format(log=shlex.quote(os.path.join(folder, "log"))).rstrip("\n"),
              "set -- --pack " + " ".join(shlex.quote(str(word)) for word in words),
              f"export PYTHON={shlex.quote(sys.executable)}", "fi"]
    return "\n".join(lines + wrapper.splitlines()[len(comments):]) + "\n"


def submit_command(scheduler, options, log, name):
    """The command that submits a job of this name, with the user's options."""
    # In the log's name a % would be one of Slurm's patterns, unless there is a \\ to mark it.
    log = log.replace("\\", "\\\\") if "\\" in log else log.replace("%", "%%")
    command = []
    for word in scheduler.submit:
        command += options if word == "RESOURCES" else [word.format(log=log, name=name)]
    return command


def config_path():
    return os.path.join(helper.HERE, "config.py")


def version_of(path):
    """What differs after an edit of a file; None if it is not there."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_ino, found.st_size, found.st_mtime_ns


def read_wrapper():
    """The text of wrapper.sh. Raises OSError while it is being saved."""
    path = os.path.join(HERE, "wrapper.sh")
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    if "--clean" not in text:
        raise OSError(errno.EAGAIN, "is empty, or of another version", path)
    return text


def remove_all_but(folder, paths):
    """Remove a folder, but for the files with these paths in it."""
    kept = {os.path.join(folder, path) for path in paths}
    for here, folders, names in os.walk(folder, topdown=False):
        for name in names:
            if os.path.join(here, name) not in kept:
                helper.remove_if_there(os.path.join(here, name))
        for path in (os.path.join(here, name) for name in folders):
            with contextlib.suppress(OSError):  # it is not empty
                (os.remove if os.path.islink(path) else os.rmdir)(path)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def start_download(config, folder):
    """Begin the download of a pack in a process of its own, which ends with this one; its id."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.closerange(3, 1024)  # the lock and the journal are the driver's
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        os.setsid()
        log = os.open(os.path.join(folder, "download.log"),
                      os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for number in (1, 2):
            os.dup2(log, number)
        helper.TOLD.is_timed, helper.TOLD.progress = False, ""
        helper.TOLD.unwritten.clear()
        helper.stderr_of_our_own.cache_clear()
        if os.getppid() == parent:
            status = helper.run_main(lambda: helper.pack_status(config, folder))
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


# What has failed. words: why; log: the path of a log, below WORKING_DIR, or None; node: where, or
# None.
Failure = collections.namedtuple("Failure", "path words log node")


def failure_of(folder, place, index, file, result):
    """The Failure of a file of a pack, from its result."""
    status, words, writer = result
    log = os.path.join(folder, f"{index}.log")
    node = re.search(r"^(?!download-).*\.([^.]+)-\d+-\d+$", writer)
    if words:
        logs = [os.path.join(folder, name) for name in ("download.log", "log")]
        is_its = writer.startswith("download-") or not os.path.exists(logs[1])
        log = logs[0] if is_its and helper.size_of(logs[0]) else logs[1]
    else:
        said = last_line(log)
        said = said.replace(os.path.join(place.folder, file.path), file.path)
        words = f"exit status {status}" + (": " + said if said else "")
    is_there, below = os.path.exists(log), os.path.dirname(os.path.dirname(folder))
    return Failure(file.path, words, os.path.relpath(log, below) if is_there else None,
                   node and node.group(1))


def last_line(path):
    """The last line of a log that says something, or ''."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 2000))
            lines = [line for line in os.fsdecode(file.read()).splitlines() if line.strip()]
    except OSError:
        return ""
    line = re.sub(r"^/.*/wrapper\.sh: line \d+: |/.*/(?=process\.sh: )", "",
                  lines[-1].strip()) if lines else ""
    return line if len(line) <= 200 else "... " + line[-200:]  # the reason stands at the end


def login_needed(said):
    """The UserError for a download that only a login helps."""
    return helper.UserError(f"{said}\nThen start this script again; it continues where it stopped.")


def without_name(words, path):
    """Words without the name of the file that they are about."""
    return words if path.isdigit() else re.sub(rf"(?<!\w){re.escape(path)}(?!\w)", "FILE", words)


def cause_of(words, path=None):
    """A reason without what differs from one failure to the next: words with a digit or a slash,
    such as ids, times, paths and nodes, and the file's own name."""
    words = without_name(words, path) if path else words
    head = re.match(r"exit status \d+", words)
    rest = words[head.end():] if head else words
    return (head.group() if head else "") + re.sub(r"\S*[\d/]\S*", "...", rest)


# ---- the driver: what lives as long as the process ----


# A file that failed, in the folder of a pack that is over, in DOWNLOAD_DIR as it was then.
Kept = collections.namedtuple("Kept", "pack folder path size last_modified")


class Driver:
    """Keeps the jobs coming. The journal has what must survive; here are timers, what is pending,
    and what was reported already. Its methods are the loop, and all that changes the journal; the
    functions below prepare, ask and report."""

    def __init__(self, config, scheduler, options):
        self.config, self.scheduler, self.options = config, scheduler, options
        self.folder = os.path.join(config.WORKING_DIR, "jobs")
        self.state = State()
        self.journal = Journal(os.path.join(self.folder, "journal.jsonl"))
        self.pending = helper.Files()
        self.kept = {}  # path: Kept, what failures left in DOWNLOAD_DIR; of others NAME/path
        self.failures = {}  # path: Failure, since this start
        self.unreported = []  # Failures of which no line has been written
        self.fresh = []  # Files that were processed since this start, the first ones
        self.check_filter_at = float("inf")  # when to ask the filter whether they still are needed
        self.refused = []  # Failures, of what is listed but cannot be downloaded
        self.not_needed = self.beyond_limit = self.processed_here = self.bytes_here = 0
        self.in_a_row = []  # causes of failures since the last success
        self.is_accepted = False  # a job, since this start
        self.halt_causes = []  # in_a_row, once it was too long
        self.is_halted = self.has_halted = self.is_listing = self.stopping = False
        self.is_submitting = False  # sbatch or qsub has been asked
        self.may_submit, self.refusal, self.refused_polls = True, "", 0
        self.next_poll = 0
        self.ghosts = 0  # jobs in the queue that were given up, or have just ended
        self.ended = {}  # name of a job that has told its end, lately or still listed: when
        self.quiet_since = None  # since when no job of the queue is running
        self.reported = {}  # topic: text
        self.stall = None  # why all downloads waited at the last poll
        self.previous = {}  # the identity of the last run, if another one begins
        self.config_version = version_of(config_path())
        self.begun = self.last_end = time.monotonic()

    # -- asking --

    def path(self, name):
        """A pack's folder in jobs/."""
        return os.path.join(self.folder, name)

    def place(self, name):
        return helper.pack_place(self.config, self.path(name))

    def has_arrived(self, name):
        """True if all of a pack that can arrive is there."""
        return os.path.exists(os.path.join(self.path(name), "arrived"))

    def token_of(self, name):
        """The Token of a pack's last attempt; None if it is just being moved."""
        return find_token(os.listdir(self.path(name)), self.state.packs[name].attempt)

    def said(self, name):
        """The last line of what a pack's job said."""
        return last_line(os.path.join(self.path(name), "log"))

    def count_failed(self):
        """How many files have failed since this start."""
        return len(self.failures) + len(self.refused)

    def count_left(self):
        """How many needed files have no result."""
        return len(self.pending) + sum(len(pack.files) - len(pack.results)
                                       for pack in self.state.packs.values())

    def room(self):
        """Bytes that MAX_BYTES leaves, beside what is in flight and what was left behind; a pack's
        files are surely gone only when it is over."""
        if self.config.MAX_BYTES is None:
            return float("inf")
        return (self.config.MAX_BYTES - sum(file.size for file in self.kept.values())
                - sum(file.size for pack in self.state.packs.values() for file in pack.files))

    def seconds_per_file(self):
        """The pace of all jobs together; infinite at the beginning."""
        ended = self.processed_here + len(self.failures)
        is_known = ended and self.last_end > self.begun
        return (self.last_end - self.begun) / ended if is_known else float("inf")

    def has_slot(self):
        """True if the scheduler may get one more job."""
        if self.stopping or self.is_halted or not self.may_submit:
            return False
        now = time.monotonic()
        leaving = sum(now - end < self.scheduler.linger_seconds for end in self.ended.values())
        return len(self.state.submitted()) + leaving + self.ghosts < self.config.NUM_JOBS

    # -- acting --

    def append(self, event, **fields):
        """Write an event to the journal; then it has happened."""
        event = dict({"event": event}, **fields, time=int(time.time()))
        self.journal.append(event)
        self.state.apply(event)

    def fill_slots(self):
        """Submit jobs while there are free slots."""
        while self.has_slot():
            name = self.next_pack()
            if not name:
                return
            self.submit(name)

    def next_pack(self):
        """The next pack to be submitted, None if there is none for now. A new one, or one that is
        being downloaded, comes before those that had failures only, of which as many may wait as
        there are slots, or all if many fail; and then before those whose last job brought nothing,
        too."""
        by_job = self.config.DOWNLOAD_BY == "job"
        ready = [name for name, pack in self.state.ahead().items()
                 if pack.download is None and pack.left() and (by_job or self.has_arrived(name))]
        packs, is_unlucky = self.state.packs, self.has_bad_luck()
        failed = [name for name in ready if packs[name].has_only_failed()]
        late = failed if is_unlucky or len(failed) < self.config.NUM_JOBS else []
        first = [name for name in ready if not (
            name in late or is_unlucky and packs[name].fruitless)]
        if first:
            return first[0]
        if by_job:
            new = self.new_pack(self.config.NUM_JOBS - len(self.state.submitted()))
            return next(filter(None, [new, *ready]), None)
        is_more_coming = any(pack.left() and name not in ready
                             for name, pack in self.state.ahead().items())
        return ready[0] if ready and not is_more_coming else None

    def has_bad_luck(self):
        """True if half of the failures that stop the run have come in a row."""
        most = self.config.MAX_FAILURES_IN_A_ROW
        return most is not None and 2 * len(self.in_a_row) >= most > 1

    def new_pack(self, free):
        """Take pending files for a new pack, and set it up; its name, None if there are none, or no
        room. free: how many more packs may be made now, which share the room."""
        most = pack_size(len(self.pending), self.config, self.seconds_per_file())
        if not self.pending or self.is_listing and most < self.config.FILES_PER_JOB:
            return None  # while more files are listed, a pack is to be full
        space, is_idle = max(0, self.room()), not self.state.packs and not self.is_listing
        files = take_files(self.pending, most, space, space / max(free, 1), self.has_bad_luck(),
                           self.bytes_of, len(self.pending) if is_idle else MOST_SKIPPED)
        if not files and is_idle:
            self.is_halted = self.has_halted = True  # no job is left for halt() to stop
            self.report_once("halt", describe_no_room(self.config, self.kept.values()))
        if not files:
            return None
        name = f"g{self.state.number + 1}-{self.state.run}"
        self.append("pack", pack=name, files=[file[:3] for file in files])
        self.set_up(name)
        return name

    def set_up_if_needed(self, name):
        """Set a pack up whose folder a disk out of order, or a kill, has left half made."""
        if not os.path.exists(os.path.join(self.path(name), "files")):
            self.set_up(name)

    def is_kept(self, file):
        """True if an earlier pack has left a file, and it has not changed at the source since."""
        return self.kept.get(file.path, ())[2:] == file[:3]

    def bytes_of(self, file):
        """What a file takes beside what is there of it already."""
        return 0 if self.is_kept(file) else file.size

    def set_up(self, name):
        """Make a pack's folder, and move there what earlier packs have left of its files."""
        folder, place, moved = self.path(name), self.place(name), {}
        pack = self.state.packs[name]
        for index, file in enumerate(pack.files):
            if self.is_kept(file):
                moved[index] = self.kept[file.path].folder
        done = helper.read_indices(folder, "moved") if os.path.isdir(folder) else set()
        helper.write_pack(folder, pack.files, done.union(moved))
        for index, old in moved.items():
            path = pack.files[index].path
            new = os.path.join(place.folder, path)
            with contextlib.suppress(OSError):  # it is gone: then it is sent again
                os.makedirs(os.path.dirname(new), exist_ok=True)
                os.rename(os.path.join(old, path), new)
        kept = [self.kept.pop(file.path) for file in pack.files if file.path in self.kept]
        self.tidy([old.pack for old in kept])

    def tidy(self, names):
        """Remove what packs that are over have left, and nobody wants any more."""
        kept = {}
        for file in self.kept.values():
            kept.setdefault(file.pack, []).append(file.path)
        for name in set(names):
            remove_all_but(self.place(name).folder, kept.get(name, []))
            if name not in kept and not os.path.exists(self.place(name).folder):
                shutil.rmtree(self.path(name), ignore_errors=True)

    def submit(self, name):
        """Submit a job for what a pack has left."""
        self.set_up_if_needed(name)
        pack, folder = self.state.packs[name], self.path(name)
        attempt, script = pack.attempt + 1, os.path.join(folder, "wrapper.sh")
        wrapper = read_wrapper()
        options = read_directives(self.scheduler, wrapper) + self.options
        helper.write_whole(os.path.join(folder, "settings.json"), helper.freeze(self.config))
        helper.write_whole(script, job_script(
            self.scheduler, self.config, wrapper, folder, attempt))
        helper.write_whole(os.path.join(folder, f"ticket.{attempt}"), "")
        self.append("submit", pack=name, attempt=attempt, results=len(pack.results))
        pack.missing_since, pack.is_adopted, pack.is_renamed = None, False, False
        command = submit_command(self.scheduler, options, os.path.join(folder, "log"),
                                 job_name(name, attempt))
        with open(script, "rb") as file:
            self.is_submitting = True
            status, output, errors = run_command(command, file, SUBMIT_SECONDS, submit_env())
            self.is_submitting = False
        job_id = read_job_id(self.scheduler.id, output) if status == 0 else None
        if job_id:
            self.append("queued", pack=name, id=job_id)
            self.is_accepted = True
            self.report_event(f"submitted {describe_left(pack)} (job {job_id})")
        elif revoke(folder, attempt):  # whatever was said, it will never begin
            self.append("closed", pack=name, attempt=attempt, why="refused", at=None, results=None)
            self.may_submit, self.refusal = False, both_ends(output + "\n" + errors)
            self.report_once("submit", "The scheduler did not accept a job: "
                             f"{self.refusal}\nThe command was: "
                             f"{' '.join(map(shlex.quote, command))}\n"
                             f"Trying again every {self.config.POLL_SECONDS:g} s. If RESOURCES has "
                             "to be fixed, stop this script, edit\nconfig.py, and start again.",
                             self.refusal)

    def look(self):
        """Take in what jobs have done since the last look; how many have ended."""
        ended = 0
        for name, pack in list(self.state.packs.items()):
            if pack.is_submitted or pack.download:
                names = os.listdir(self.path(name))
                token = find_token(names, pack.attempt) if pack.is_submitted else None
                self.take_results(name, names)
                ended += bool(pack.is_submitted) and self.look_at_token(name, pack, token)
            if pack.download is None and not pack.is_submitted and not pack.left():
                self.finish(name)
        if ended:
            self.may_submit = True
        return ended

    def look_at_token(self, name, pack, token):
        """Close an attempt that has ended by itself, or that was given up by a driver that was
        killed then; True if it has ended."""
        if token is None:  # just being moved: a listing is not of one moment
            return False
        if token.state in ("gone", "lost"):
            return self.close(name, token, End(None, may_live=token.state == "lost"))
        # One that a signal has ended stays open until the queue is asked, which may tell why.
        if token.state != "end" or token.status > 128 and pack.left():
            return False
        if token.status == helper.NEEDS_LOGIN and token.step == "get":
            self.close(name, token, GIVEN_UP)
            raise login_needed(self.said(name))
        why = self.said(name) or f"exit status {token.status}"
        return self.close(name, token, End(why, is_final=True))

    def take_results(self, name, names):
        """Take in the new results of a pack."""
        pack, folder = self.state.packs[name], self.path(name)
        sizes = {other: helper.size_of(os.path.join(folder, other)) for other in names
                 if other.startswith("results.")}
        if sizes == pack.sizes:
            return
        fresh, pack.sizes = helper.read_results(folder, sizes), sizes
        for index, result in fresh.items():
            if index >= len(pack.files) or pack.results.get(index, (1,))[0] == 0 or (
                    index in pack.results and result[0]):
                continue
            pack.results[index] = result
            self.last_end = time.monotonic()
            path = pack.files[index].path
            if result[0] == 0:
                self.failures.pop(path, None)
                self.in_a_row.clear()
                self.processed_here += 1
                self.bytes_here += pack.files[index].size
                self.keep_fresh(pack.files[index])
                self.report_event("processed " + path)
            else:
                self.add_failure(failure_of(
                    folder, self.place(name), index, pack.files[index], result))

    def keep_fresh(self, file):
        """Note one of the first files that were processed, to ask the filter about them once."""
        if len(self.fresh) < MOST_ASKED_AGAIN and self.check_filter_at:
            self.fresh.append(file)
            self.check_filter_at = time.monotonic() + helper.ARRIVAL_SECONDS

    def check_filter(self):
        """Say so if the filter still wants files that were processed a while ago."""
        self.check_filter_at = 0  # not again
        report_disagreement(self.config, self.fresh)

    def add_failure(self, failure):
        """A file has failed."""
        self.failures[failure.path] = failure
        self.unreported.append(failure)
        self.count_failure(cause_of(failure.words, failure.path))

    def count_failure(self, cause):
        """Count a failure; too many in a row halt the run."""
        self.in_a_row.append(cause)
        most = self.config.MAX_FAILURES_IN_A_ROW
        if most is not None and len(self.in_a_row) >= most and not self.is_halted and (
                self.count_left()):
            self.is_halted, self.halt_causes = True, list(self.in_a_row)

    def close(self, name, token, end):
        """An attempt is over. Its token is taken away before the results are read, so that they are
        the last ones; then the file at work is charged, if it has to be; the rest comes again.
        False if the job has moved its token meanwhile: it is alive."""
        pack, folder = self.state.packs[name], self.path(name)
        if not token and self.token_of(name) or token and not take_token(
                folder, token, "lost" if end.may_live else "gone"):
            return False
        pack.sizes = {}  # read them, whatever a cache of the file system says of their sizes
        self.take_results(name, os.listdir(folder))
        at = token.step if token and token.step in pack.left() else None
        if at is not None:
            self.charge(name, token, end)
        self.append("closed", pack=name, attempt=pack.attempt, why=end.why, at=at,
                    results=len(pack.results))
        if token and token.state == "end":
            self.ended[job_name(name, pack.attempt)] = time.monotonic()
        self.may_submit, pack.missing_since = True, None
        if pack.left() and end.why and not self.is_halted:
            self.begin_again(name, token, end)
        return True

    def charge(self, name, token, end):
        """A job has ended at work on a file:
            the filter wants it no more    processed: it was killed between success and report
            time, memory, owner ended it   failed
            the job may live               failed in this run; the next start tries it again
            anything else                  begun again at the first time, failed at the second
        """
        pack, folder, at = self.state.packs[name], self.path(name), token.step
        why = end.why or "its job was given up"
        writer = "driver." + token.writer  # tells failure_of() the node
        if not self.is_still_needed(pack.files[at]):
            helper.add_result(folder, writer, at, 0)
        elif end.is_final or end.may_live:
            helper.add_result(folder, writer, at, 1, why)
        elif pack.kills[at]:
            helper.add_result(folder, writer, at, 1, f"killed twice while it was processed: {why}")
        self.take_results(name, os.listdir(folder))
        if at in pack.left() and helper.missing_files([pack.files[at]], self.place(name).folder):
            helper.remove_if_there(os.path.join(folder, "arrived"))  # not whole: it is sent again

    def begin_again(self, name, token, end):
        """An attempt has ended before its pack was over: count one without a result as a failure in
        a row, and say that the pack comes again, or give it up."""
        pack, why = self.state.packs[name], end.why
        has_begun = token is not None and token.step is not None
        if has_begun and token.step == "get":
            waiting = helper.read_text(os.path.join(self.path(name), "waiting"))
            why += f", while it waited: {waiting}" if waiting else ""
        # A job that did not begin, and was submitted before this start, may have been cancelled by
        # its owner.
        if pack.fruitless and (has_begun or not (end.is_final or pack.is_adopted)):
            self.count_failure(cause_of(why))
        if self.is_halted:
            return
        if pack.fruitless >= MOST_FRUITLESS:
            self.give_up(name, why)
        elif pack.fruitless or token is None or token.state != "end":
            helper.log(f"The job of {name} ended early: {why}.\nIts "
                       f"{helper.plural(len(pack.left()), 'file')} without a result will be "
                       "submitted again.")

    def is_still_needed(self, file):
        """The user's filter; True if it fails."""
        try:
            return is_needed(self.config, file)
        except helper.UserError as problem:
            self.report_once("filter", str(problem))
            return True

    def give_up(self, name, why):
        """A pack whose attempts bring no result, again and again: its files have failed."""
        helper.cancel_pack(self.config, self.path(name))  # may take STOP_SECONDS
        for index in self.state.packs[name].left():
            helper.add_result(self.path(name), "driver", index, 1,
                              f"{MOST_FRUITLESS} attempts ended without a result: {why}")
        self.take_results(name, os.listdir(self.path(name)))

    def finish(self, name):
        """All files of a pack have a result: what was processed goes, with the pack's folders; what
        has failed stays, its logs until the next start, its file until a new pack takes it."""
        pack, folder = self.state.packs[name], self.path(name)
        failed = pack.failed()
        size = sum(file.size for index, file in enumerate(pack.files) if index not in failed)
        self.append("over", pack=name, failed=failed, bytes=size)
        here, place = helper.read_indices(folder, "arrived").intersection(failed), self.place(name)
        for index in here - pack.failed_before:  # those are pending again, or in a new pack
            file = pack.files[index]
            if helper.size_of(os.path.join(place.folder, file.path)) is not None:
                self.kept[file.path] = Kept(name, place.folder, *file[:3])
        if failed:
            remove_all_but(place.folder, [
                file.path for file in self.kept.values() if file.pack == name])
        else:
            self.tidy([name])

    # -- the driver's own downloads --

    def keep_downloading(self):
        """Begin downloads, and take in those that have ended; never waits."""
        for name, pack in self.state.packs.items():
            if pack.download:
                self.take_in_download(name, pack)
        if self.config.DOWNLOAD_BY != "driver":
            return
        while not (self.stopping or self.is_halted):
            waiting = [name for name, pack in self.state.ahead().items() if not pack.download]
            missing = [name for name in waiting
                       if self.state.packs[name].left() and not self.has_arrived(name)]
            active = sum(pack.download is not None for pack in self.state.packs.values())
            ready = [name for name in missing
                     if self.state.packs[name].next_download <= time.monotonic()]
            free = 2 * self.config.NUM_JOBS - len(self.state.ahead())
            if active >= TASKS_AT_WORK or not ready and free < 1:
                return
            name = ready[0] if ready else self.new_pack(free)
            if not name:
                return
            self.set_up_if_needed(name)
            helper.write_whole(os.path.join(self.path(name), "settings.json"),
                               helper.freeze(self.config))
            pack = self.state.packs[name]
            pack.download = start_download(self.config, self.path(name))
            self.report_event("downloading " + describe_left(pack))

    def take_in_download(self, name, pack):
        """Note that a download has ended; one that did not do its work is begun again."""
        ended, status = os.waitpid(pack.download, os.WNOHANG)
        if not ended:
            return
        pack.download = None
        self.take_results(name, os.listdir(self.path(name)))
        if not self.has_arrived(name):
            said = last_line(os.path.join(self.path(name), "download.log"))
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == helper.NEEDS_LOGIN:
                raise login_needed(said)
            pack.next_download = time.monotonic() + self.config.POLL_SECONDS
            pack.failed_downloads += 1
            self.count_failure(cause_of(said))
            if pack.failed_downloads < MOST_FRUITLESS or self.is_halted:
                helper.log(f"The download of {name} ended early: {said}.\nIt will be tried again.")
            else:
                self.give_up(name, said)

    def stop_downloads(self):
        """End the driver's downloads; their transfer tasks go on, and are taken over."""
        for pack in self.state.packs.values():
            if pack.download:
                with contextlib.suppress(OSError):
                    os.kill(pack.download, signal.SIGKILL)
                    os.waitpid(pack.download, 0)
                pack.download = None

    # -- the queue --

    def poll(self):
        """Find out which jobs are in the queue, and which are gone. Without an answer, attempts
        that a signal has ended stay open, and after a refusal nothing is submitted."""
        self.next_poll = time.monotonic() + self.config.POLL_SECONDS
        tokens = {name: self.token_of(name) for name in self.state.submitted()}
        entries = self.ask_queue()
        self.look()  # what ended meanwhile
        if entries is None:
            return
        found = {}
        for name, pack in self.state.submitted().items():
            entry = entry_of(entries, at_work(pack, tokens[name]), job_name(name, pack.attempt))
            if entry and pack.id is None and entry.id:
                self.append("queued", pack=name, id=entry.id)
                self.is_accepted = True
            pack.is_renamed = bool(entry and entry.name != job_name(name, pack.attempt))
            if pack.is_renamed:
                self.report_once(f"name {name}", f"Job {entry.id} is called {entry.name} by now; "
                                 "it counts as this driver's until it ends.")
            found[name] = entry
        for name, entry in found.items():
            self.look_at_entry(name, entry, tokens[name])
        self.cancel_ghosts(entries)
        if version_of(config_path()) not in (None, self.config_version):
            self.report_once("config", "config.py has changed; it takes effect at the next start.")
        ours = [entry for entry in found.values() if entry and entry.id]
        self.report_queue(ours)
        self.report_stall()
        if not self.may_submit and not self.is_accepted and not self.state.submitted():
            self.refused_polls += 1
            if self.refused_polls >= MOST_REFUSED_POLLS:
                raise helper.UserError(
                    f"The scheduler has accepted no job in {MOST_REFUSED_POLLS} tries: "
                    f"{self.refusal}\nFix that, often RESOURCES in config.py, and start this "
                    "script again; nothing is lost.")
        self.may_submit = True

    def look_at_entry(self, name, entry, token):
        """Close an attempt whose job is over, as the queue says."""
        pack, now = self.state.packs[name], time.monotonic()
        if entry and entry.state not in ("ended", "leaving"):
            pack.missing_since = None
            return
        if pack.is_renamed and entry.state == "ended":
            entry = entry._replace(reason="that it has ended, under another name")
        pack.missing_since = pack.missing_since or now
        end = end_of(entry, token, pack.id is not None, now - pack.missing_since,
                     self.config.GRACE_SECONDS, self.said(name))
        if end:
            self.close(name, token, end)

    def ask_queue(self):
        """[QueueEntry, ...], or None if the scheduler gave no answer that can be understood."""
        scheduler = self.scheduler
        status, output, errors = run_command(scheduler.queue)
        entries = None
        if status == 0:
            with contextlib.suppress(ValueError):
                entries = scheduler.parse_queue(output)
        if entries is None or scheduler.is_silent and not entries and not self.is_empty():
            self.report_once("queue", f"The scheduler does not answer ({scheduler.queue[0]}: "
                             f"{helper.first_line(errors or output)}).\nAsking again every "
                             f"{self.config.POLL_SECONDS:g} s.", errors or "nonsense")
            return None
        self.reported.pop("queue", None)
        # A job on a line that cannot be read is not gone.
        for name, pack in self.state.submitted().items():
            ours = job_name(name, pack.attempt)
            if not any(entry.name == ours for entry in entries) and re.search(
                    rf"(?<![\w-]){re.escape(ours)}(?![\w-])", output):
                entries.append(QueueEntry(pack.id or "", ours, "running", ""))
        return entries

    def is_empty(self):
        """True if no jobs in an answer means that there are none: a scheduler that is silent then
        is asked about one of ours. (If none of ours is known to it, nothing is given up for it.)"""
        ids = [pack.id for pack in self.state.submitted().values() if pack.id]
        return not ids or GONE.search(output_of(self.scheduler.job_info + ids[:1])) is not None

    def cancel_ghosts(self, entries):
        """Cancel jobs of this run that were given up, but wait in the queue."""
        current = {job_name(name, pack.attempt) for name, pack in self.state.submitted().items()}
        ghosts = [entry for entry in entries if entry.state not in ("ended", "leaving")
                  and entry.name not in current
                  and re.fullmatch(rf"g\d+\.\d+-{self.state.run}", entry.name)]
        # A scheduler that does not notice the end of a job holds its slot for a while only.
        listed, now = {entry.name for entry in entries}, time.monotonic()
        self.ended = {name: end for name, end in self.ended.items()
                      if name in listed or now - end < self.config.GRACE_SECONDS}
        stale = [entry for entry in ghosts
                 if now - self.ended.get(entry.name, now) >= self.config.GRACE_SECONDS]
        self.ghosts = len(ghosts) - len(stale)
        if stale:
            ids = " ".join(entry.id for entry in stale)
            self.report_once("stale", "The scheduler still lists jobs that ended a while ago: "
                             f"{ids}. No slot is held for them any more.")
        self.cancel([entry.id for entry in ghosts if entry.state in WAITING])

    def stop_job(self, folder, attempt):
        """Let a job begin no other file; its Token, as it was, None if somebody has removed it."""
        for _ in range(100):
            token = find_token(os.listdir(folder), attempt)  # None if it is just being moved
            if token and (token.state not in ("ticket", "at") or take_token(
                    folder, token, "gone" if token.state == "ticket" else "stop")):
                return token
            time.sleep(0.01)
        return None

    def halt(self):
        """Too many files fail: jobs that have not begun a file are cancelled, and those that wait
        again, killed at work and requeued; the others end their file and begin no other."""
        self.report_once("halt", describe_halt(
            self.halt_causes, self.config.MAX_FAILURES_IN_A_ROW))
        report_transfers(self.state)
        self.stop_downloads()
        # Before the queue is asked, so that a job that begins meanwhile is not taken for requeued.
        before = {name: self.token_of(name) for name in self.state.submitted()}
        entries, ids = self.ask_queue() or [], []
        try:
            for name, pack in self.state.submitted().items():
                token = self.stop_job(self.path(name), pack.attempt)
                ours = [entry for entry in entries if entry.id and entry.state != "ended"
                        and entry.name == job_name(name, pack.attempt)]
                is_requeued = has_begun_a_file(before[name]) and ours and all(
                    entry.state in WAITING for entry in ours)
                if is_requeued or token and token.state != "end" and not has_begun_a_file(token):
                    ids += [entry.id for entry in ours]
                    self.close(name, self.token_of(name), GIVEN_UP)
        finally:  # also if a disk is out of order meanwhile
            self.cancel(ids)
        self.has_halted = True

    def cancel(self, ids):
        if ids:
            run_command(self.scheduler.cancel + ids)

    def shown_command(self, command, ids):
        """A command for jobs as a person can copy it, with the variables that choose the cluster,
        which stand behind its name."""
        cluster = self.state.identity.get("cluster") if self.scheduler.cluster else None
        return " ".join([*(cluster or "").split()[1:], *command, *ids])

    # -- the loop --

    def main_loop(self):
        """Keep the jobs coming until all files are done, or until stopped."""
        if not (self.processed_here or self.failures):  # during a listing, after a restart
            self.begun = self.last_end = time.monotonic()
        pauses = helper.backoff(0.05, 0.5, 1.2)
        while not self.stopping and (self.state.submitted() if self.is_halted else
                                     self.pending or self.state.packs):
            if self.step():
                pauses = helper.backoff(0.05, 0.5, 1.2)  # short again
            show_progress(self)
            time.sleep(next(pauses))

    def step(self):
        """Take in what has happened, and submit jobs; how many have ended. A disk that is out of
        order for a moment is reported, and tried again."""
        try:
            ended = self.look()
            if time.monotonic() >= self.next_poll:
                self.poll()
            if self.check_filter_at and time.monotonic() >= self.check_filter_at:
                self.check_filter()
            self.fill_slots()  # first: trouble with downloads is not to hold up what has arrived
            self.keep_downloading()
            self.report_failures()
            if self.is_halted and not self.has_halted:
                self.halt()
            self.reported.pop("disk", None)
            return ended
        except FileNotFoundError:
            if os.path.isdir(self.folder):
                raise
            raise helper.UserError(f"{self.folder} was removed. The run is forgotten; its jobs end "
                                   "by themselves.")
        except OSError as error:
            self.report_once("disk", f"Waiting: {error.strerror or error}: "
                             f"{error.filename or self.folder}. Trying again.")
            return 0
        finally:
            self.report_failures()

    # -- reporting --

    def report_once(self, topic, text, key=None):
        """Log it, unless its key (the text, as a rule) is what was reported last on this topic."""
        if self.reported.get(topic) != (key or text):
            self.reported[topic] = key or text
            helper.log(text)

    def report_failures(self):
        """A line for each failure since the last time."""
        helper.log_lines(failure_lines(self.unreported))
        self.unreported.clear()

    def report_event(self, text):
        """A line an event, where there is no bar."""
        if not helper.is_terminal():
            helper.log(text)

    def report_queue(self, entries):
        """Report what the scheduler says of the jobs, when it changes and none has been running for
        a minute; at once, if they are held or cannot start."""
        if not entries or any(entry.state == "running" for entry in entries):
            self.quiet_since = None
            self.reported.pop("waiting", None)
            return
        self.quiet_since = self.quiet_since or time.monotonic()
        stuck = [entry for entry in entries if entry.state in ("held", "blocked")]
        if not stuck and time.monotonic() - self.quiet_since < helper.QUIET_SECONDS:
            return
        words = ", ".join(sorted({entry.reason for entry in entries}))
        held = [entry.id for entry in stuck if entry.state == "held"]
        lines = ["No job is running; the scheduler says of "
                 f"{helper.plural(len(entries), 'job')}: {words}"]
        if held:
            lines.append("To release: " + self.shown_command(self.scheduler.release, held))
        if stuck:
            lines[0] += error_reason(self.scheduler, stuck[0].id)
            lines.append("If RESOURCES has to be fixed, stop this script, cancel, and start again: "
                         + self.shown_command(self.scheduler.cancel,
                                              [entry.id for entry in stuck]))
        self.report_once("waiting", "\n".join(lines), words + str(sorted(held)))

    def report_stall(self):
        """When all downloads wait for Globus, say why."""
        reasons = []
        for name, pack in self.state.packs.items():
            token = self.token_of(name) if pack.is_submitted else None
            if pack.download or token and token.step == "get":
                lines = helper.read_text(os.path.join(self.path(name), "waiting"))
                reasons.append(lines.split("  (task ")[0] if lines else None)
            elif token and token.state == "at":
                return
        causes = {cause_of(reason or ""): reason for reason in reasons}
        before, self.stall = self.stall, (
            (sorted(causes), self.last_end) if reasons and all(reasons) else None)
        if self.stall and self.stall == before:  # and no file has ended since the last poll
            self.report_once("stall", "All downloads wait: " + "; ".join(sorted(causes.values())))
        else:
            self.reported.pop("stall", None)


# ---- the queue ----


def number_of(job_id):
    """What of a job's id is the same in all that the scheduler says."""
    return re.match(r"\d*", job_id).group()


def at_work(pack, token):
    """The id of the job that has the token of a pack: of two that came of one submission, it may be
    the one of which the scheduler did not tell."""
    return token.id if pack.id and token and token.id else pack.id


def entry_of(entries, job_id, name):
    """The QueueEntry of a job: by its id, or by its name while that is all that is known, or the
    line of its id cannot be read; None if there is none."""
    if job_id:
        for entry in entries:
            if number_of(entry.id) == number_of(job_id):
                return entry
    return next((entry for entry in entries if entry.name == name and not (
        job_id and entry.id)), None)


def end_of(entry, token, is_known, seconds, grace, said):
    """The End of an attempt whose job the queue does not list as alive; None while that is not
    sure, because a shared file system may show late what the job has done.

    entry: of the queue, or None; token: as it was before the queue was asked; is_known: the
    scheduler has told the job's id; seconds: since the queue said so first; said: the job's last
    word."""
    word = entry.reason.split(",")[0] if entry else ""
    told = FINAL.get(word) or (
        f"the scheduler says {entry.reason}" if entry else "it is not in the queue any more")
    is_leaving, is_late = entry is not None and entry.state == "leaving", seconds >= grace
    if token is None:  # just being moved; or somebody has removed it
        return End("its token is gone") if seconds > grace else None
    if token.state == "end" and not is_leaving:
        return End(FINAL.get(word) or f"ended by signal {token.status - 128}"
                   + (f" ({word})" if word else ""), word in FINAL)
    if token.state == "ticket" and not is_known and not entry:  # it never came to the queue
        return GIVEN_UP
    if seconds == 0 or is_leaving and not is_late:
        return None
    if token.state == "ticket" and word != "CANCELLED":
        return End(f"the job never started: {told}{': ' + said if said else ''}. Can the compute "
                   "nodes see, and write, WORKING_DIR? Does a start-up file of your shell exit?",
                   word in FINAL)
    untold = f"no exit status, and {told}"
    if entry and entry.state == "ended":
        return End(FINAL.get(word, untold), word in FINAL)
    return End("the job was lost: " + untold, may_live=has_begun_a_file(token)) if is_late else None


def error_reason(scheduler, job_id):
    """': why Grid Engine could not start a job', or nothing."""
    text = output_of(scheduler.job_info + [job_id]) if scheduler.job_info else ""
    match = re.search(r"(?m)^error reason\s+\d+:\s+(.*)", text)
    return f": {match.group(1)}" if match else ""


def both_ends(text):
    """The first and the last line of what a scheduler says: the reason may stand below a banner, or
    above a hint."""
    said = re.split(r"(?im)^\s*usage:", text)[0].strip() or text
    lines = [line.strip() for line in said.splitlines() if line.strip(" []")]
    lines = lines if len(lines) < 4 else [lines[0], "...", lines[-1]]
    return "; ".join(map(helper.first_line, lines)) or "(nothing)"


# ---- reporting ----


def describe_left(pack):
    """What a pack has left: its file, or how many."""
    left = list(pack.left().values())
    return left[0].path if len(left) == 1 else helper.plural(len(left), "file")


def failure_lines(failures, word="FAILED"):
    """Lines that tell Failures, those with the most frequent cause first; many with the same cause,
    such as jobs that were cancelled together, are one line."""
    lines = []
    for group in by_cause(failures):
        if len(group) <= MOST_LINES:
            lines += [f"{word} {describe_failure(failure)}" for failure in group]
        else:
            one = group[0] if len({failure.node for failure in group}) == 1 else group[0]._replace(
                node=None)  # a node that fails every job is named
            lines.append(f"{word} {len(group):,} files, such as {describe_failure(one)}")
    return lines


def by_cause(failures):
    """Lists of those Failures that have one cause, the most frequent first."""
    groups = {}
    for failure in failures:
        groups.setdefault(cause_of(failure.words, failure.path), []).append(failure)
    return sorted(groups.values(), key=len, reverse=True)


def describe_failure(failure):
    """A Failure in a line."""
    where = helper.join_texts(", ", failure.node and "on " + failure.node, failure.log)
    path = failure.path.replace("\n", "\\n")
    return f"{path}: {failure.words}" + (f" ({where})" if where else "")


def describe_halt(causes, most):
    """Why no more jobs are submitted, and how to go on."""
    cause, times = collections.Counter(causes).most_common(1)[0]
    return (f"STOPPING: {len(causes)} files or jobs failed in a row (MAX_FAILURES_IN_A_ROW = "
            f"{most}), {times} of them with: {cause}\nNo more jobs are submitted; running jobs "
            "finish their current file. Fix the cause, and\nstart this script again: it tries all "
            "of them again, and goes on with the rest.")


def describe_no_room(config, kept):
    """Why no file fits into MAX_BYTES any more, and how to go on."""
    folders = " ".join(sorted({  # a pattern for each run
        shlex.quote(os.path.dirname(file.folder)) + "/g*-" + file.pack.partition("-")[2]
        for file in kept}))
    return (f"STOPPING: what failures left in {config.DOWNLOAD_DIR} leaves no room for another "
            "file within MAX_BYTES.\nRemove what you do not need, or raise MAX_BYTES, and start "
            f"again:\nrm -r {folders}")


def show_progress(driver):
    """How far the run is, what matters most first: with a clock, and a bar if there is room for it,
    on a terminal; a line now and then in a log."""
    done, failed, ahead = driver.state.count(), driver.count_failed(), len(driver.state.ahead())
    total = done + failed + driver.count_left()
    text = f"{done:,} of {helper.plural(total, 'file')}, "
    text += f"{failed:,} failed, " if failed else ""
    text += time_left(driver, done + failed, total)
    text += f"{helper.plural(len(driver.state.submitted()), 'job')} in the queue"
    text += f", {helper.format_bytes(driver.bytes_here)}" if driver.bytes_here else ""
    text += f", {helper.plural(ahead, 'pack')} ahead" if ahead else ""
    if helper.is_terminal():
        so_far = datetime.timedelta(seconds=int(time.monotonic() - driver.begun))
        text = with_bar(str(so_far), text, done / total if total else 1, helper.terminal_width())
    helper.show_progress(text)


def with_bar(so_far, text, share, columns):
    """A clock, a bar as long as there is room for, and the text."""
    size = min(BAR, columns - len(f"{so_far} [] {text}"))
    if size < 3:
        return f"{so_far} {text}"
    return f"{so_far} [{'#' * int(size * share):.<{size}}] {text}"


def time_left(driver, ended, total):
    """'~12 min left, ' at the pace so far; nothing before each slot had two files, at the end, or
    when all is at a standstill."""
    here = driver.processed_here + len(driver.failures)
    if here < 2 * driver.config.NUM_JOBS or ended == total or driver.is_halted or (
            {"stall", "waiting"} & set(driver.reported)) or (
            "submit" in driver.reported and not driver.state.submitted()):
        return ""
    seconds = driver.seconds_per_file() * (total - ended) - (time.monotonic() - driver.last_end)
    return f"~{helper.format_duration(max(seconds, 1))} left, "


def print_summary(driver):
    """The failures with their logs, where everything is, and the numbers."""
    helper.show_progress("")
    helper.write_to_stderr("", is_last=True)  # what is printed now comes last
    config, failures = driver.config, [*driver.refused, *driver.failures.values()]
    print_failures(failures)
    try:
        path = write_failures(driver.folder, failures)
    except OSError as error:  # the numbers are to be said even so
        path = f"not written ({error.strerror})"
    if failures:
        print(f"All failures: {path}\nThe next start tries them again. Until then their logs are "
              f"kept, there, and\ntheir files, in {config.DOWNLOAD_DIR}")
    if driver.state.listed["total"]:
        print(describe_run(driver.state, int(time.time())))
        print(describe_numbers(driver.state, int(time.time())))
    if driver.not_needed:
        print(f"{helper.plural(driver.not_needed, 'file')} not needed: is_file_needed says that "
              "they are done, or not wanted")
    print_numbers(driver.beyond_limit, f"{driver.state.count()} processed, {len(failures)} failed, "
                  f"{driver.not_needed} not needed")


def describe_run(state, now):
    """What a run is, and when it was."""
    identity = state.identity
    return (f"Run {state.run}, {clock(state.run_begun)} to {clock(now)}, from\n"
            f"{identity['PATH']} on collection {identity['SOURCE_ENDPOINT_ID']}")


def describe_numbers(state, now):
    """How far a run is: all of it, and what was done since the last start."""
    (done, size, failed), begun = state.numbers(), state.start["time"]
    seconds, here = max(now - begun, 1), size - state.start["bytes"]
    return (f"{done:,} of {helper.plural(state.listed['total'], 'file')} processed, "
            f"{failed + state.listed['refused']:,} failed.\nSince the start at {clock(begun)}: "
            f"{helper.plural(done - state.start['done'], 'file')}, {helper.format_bytes(here)} in "
            f"{helper.format_duration(seconds)}, {helper.format_bytes(here // seconds)}/s"
            + (f", {helper.plural(state.retries, 'retry', 'retries')}" if state.retries else ""))


def clock(seconds):
    """A time as a person reads it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def print_numbers(beyond_limit, text):
    """The last line, below what the other numbers leave out."""
    if beyond_limit:
        print(f"{helper.plural(beyond_limit, 'file')} left out by --limit")
    print(text, flush=True)


def print_failures(failures):
    """The failures by cause, the most frequent first, with as many names as fit a screen."""
    rows, hidden = max(10, shutil.get_terminal_size().lines - 10), len(failures)
    largest = by_cause(failures)[:rows // 2]
    for group in largest:
        shown = group[:max(1, rows // len(largest) - 1)]
        hidden -= len(shown)
        lines = ["FAILED " + describe_failure(failure) for failure in shown]
        if len(group) > 1:
            nodes = {failure.node for failure in group} - {None}
            where = f" (all on {nodes.pop()})" if len(nodes) == 1 else ""
            words = without_name(group[0].words, group[0].path)
            lines = [f"FAILED {helper.plural(len(group), 'file')}: {words}{where}"]
            lines += [f"  {failure.path}  {failure.log or ''}".rstrip() for failure in shown]
        for line in lines:
            print(helper.escape_control_chars(line.replace("\n", "\\n")))
    if hidden:
        print(f"... and {helper.plural(hidden, 'more file')}")


def write_failures(folder, failures):
    """Write all failures, path and reason, to a file, whose path is returned."""
    path = os.path.join(folder, "failed.txt")
    lines = ("\t".join(helper.escape_control_chars(text).replace("\n", "\\n")
                       for text in (failure.path, failure.words)) for failure in failures)
    if failures:
        helper.write_whole(path, "".join(line + "\n" for line in lines))
    return path


def report_disagreement(config, files):
    """Say so if the filter still wants some of these that have been processed."""
    try:
        again = sorted(file.path for file in files if is_needed(config, file))
    except helper.UserError as problem:
        helper.log(str(problem))
        return
    if again:
        helper.log(f"is_file_needed still wants {len(again):,} of the "
                   f"{helper.plural(len(files), 'processed file')}, such as {again[0]}.\n"
                   "The next run would process them again: does it look for what process.sh "
                   "writes?")


def report_stop(driver):
    """What to do after a stop."""
    packs = driver.state.submitted().values()
    ids = [pack.id for pack in packs if pack.id and not pack.is_renamed]
    unknown = f" ({len(packs) - len(ids)} not yet confirmed)" if len(packs) > len(ids) else ""
    helper.log(f"Stopped. {helper.plural(len(packs), 'job')} left in the queue{unknown}.\n"
               "Start this script again to continue.")
    if ids:
        helper.log("To cancel: " + driver.shown_command(driver.scheduler.cancel, ids))


def report_transfers(state):
    """What becomes of the driver's transfer tasks once it has ended."""
    tasks = sum(bool(pack.download) for pack in state.packs.values())
    if tasks:
        helper.log(f"{helper.plural(tasks, 'transfer task')} of this script will go on, "
                   "but jobs for their files are submitted only after the next start.\n"
                   "To cancel: https://app.globus.org/activity")


# ---- what is to be done ----


def is_needed(config, file):
    """The user's filter. Raises UserError if it fails, or does not answer True or False."""
    try:
        answer = config.is_file_needed(file)
        if answer in (True, False):
            return bool(answer)
    except Exception as error:  # the user's own code: anything can happen
        raise helper.config_error(error, f"is_file_needed failed on {file.path!r}: ")
    line = getattr(getattr(config.is_file_needed, "__code__", None), "co_firstlineno", "?")
    raise helper.UserError(f"config.py, line {line}: is_file_needed({file.path!r}) returned "
                           f"{answer!r:.100}; it must return True or False.", 2)


def plan(driver, files, limit):
    """Sort the files that are listed: those to process are pending now; how many bytes they are.
    What earlier packs have left of files that are not needed any more, or not like this, goes."""
    config, old = driver.config, driver.kept
    pending = driver.pending if limit is None else helper.Files()
    known = driver.state.processed.union(
        file.path for pack in driver.state.packs.values() for file in pack.left().values())
    known.update(pack.files[index].path for pack in driver.state.packs.values()
                 for index, result in pack.results.items() if result[0] == 0)
    next_look, unwanted, size = time.monotonic() + LISTING_SECONDS, [], 0
    for number, file in enumerate(files):
        if number % 1000 == 0:
            helper.show_progress("Listing: " + helper.plural(number, "file"))
        if driver.is_listing and time.monotonic() >= next_look:  # jobs go on meanwhile
            driver.step()
            next_look = time.monotonic() + LISTING_SECONDS
        if file.path in known:
            continue
        if not file.refused and not is_needed(config, file):
            driver.not_needed += 1
            unwanted += [file.path] if file.path in old else []
        elif file.refused or config.MAX_BYTES is not None and file.size > config.MAX_BYTES:
            driver.refused.append(Failure(
                file.path, file.refused or "is larger than MAX_BYTES "
                f"({helper.format_bytes(file.size)})", None, None))
        else:
            pending.append(file)
            size += file.size
            unwanted += [file.path] if file.path in old and not driver.is_kept(file) else []
    if limit is not None:
        driver.beyond_limit, size = len(pending), 0
        for file in take_spread(pending, max(0, limit - len(known))):
            driver.pending.append(file)
            driver.beyond_limit, size = driver.beyond_limit - 1, size + file.size
    helper.show_progress("")
    return size, unwanted


def take_spread(files, most):
    """At most so many of the Files in a queue, evenly spread, so that a trial meets more than the
    first ones; the others are forgotten."""
    total = len(files)
    for number in range(total):
        file = files.popleft()
        if number * most // total != (number + 1) * most // total:
            yield file


def find_kept(driver):
    """Find what packs that are over have left in DOWNLOAD_DIR; what was not removed before a kill
    goes. Those of another source stay, and count for MAX_BYTES, until a run from there."""
    names, others = [], driver.state.packs
    for name in os.listdir(driver.folder):
        folder = driver.path(name)
        if not re.fullmatch(r"g\d+-\w{5}", name) or name in others:
            continue
        names.append(name)
        settings = json.loads(helper.read_text(os.path.join(folder, "settings.json")) or "{}")
        is_ours = all(settings.get(key) == getattr(driver.config, key)
                      for key in ("SOURCE_ENDPOINT_ID", "PATH", "DOWNLOAD_DIR"))
        files, arrived = helper.read_pack(folder), helper.read_indices(folder, "arrived")
        for index, (status, _, _) in helper.read_results(folder).items():
            if not (settings and status and index in arrived and index < len(files)):
                continue
            file, place = files[index], os.path.join(settings["DOWNLOAD_DIR"], name)
            if not helper.missing_files([file], place):
                driver.kept[file.path if is_ours else f"{name}/{file.path}"] = Kept(
                    name, place, *file[:3])
    driver.tidy(names)


def dry_run(driver, files, limit):
    """Print what a run would do; the exit status."""
    try:
        is_new, (holder, is_held) = read_journal(driver, cut=False), lock_holder(driver.folder)
        if is_held:
            helper.log(f"The driver is running, {holder}; this is what it has left.")
        elif not is_new:
            report_resume(driver.state)
    except helper.UserError as problem:
        helper.log(f"A run would not start: {problem}")
        driver.state = State()
    plan(driver, files, limit)
    helper.log_lines(failure_lines(driver.refused, "Refused:"))
    report_previous(driver.previous, driver.config, driver.not_needed)
    count = len(driver.pending)
    for _ in range(count):
        file = driver.pending.popleft()
        print(f"{file.size:14,}  {helper.escape_control_chars(file.path)}")
    print_numbers(driver.beyond_limit, f"{count:,} to process, {len(driver.refused):,} refused, "
                  f"{driver.not_needed:,} not needed")
    return 1 if driver.refused else 0


def report_begin(driver, size):
    """The first lines of a log: what it is about."""
    config = driver.config
    limit = None if config.MAX_BYTES is None else helper.format_bytes(config.MAX_BYTES)
    total = len(driver.pending) + driver.beyond_limit
    known = driver.state.count() + driver.count_left() - len(driver.pending)
    helper.log(
        (f"{len(driver.pending):,} of " if driver.beyond_limit else "")
        + f"{helper.plural(total, 'file')} to process ({helper.format_bytes(size)}), "
        f"{driver.not_needed:,} not needed"
        + (f",\n{known:,} processed or in the queue" if known else "") + ", from\n"
        f"{config.PATH} on collection {config.SOURCE_ENDPOINT_ID}\n"
        f"{config.SCHEDULER}, NUM_JOBS = {config.NUM_JOBS}, FILES_PER_JOB = "
        f"{config.FILES_PER_JOB}, DOWNLOAD_BY = {config.DOWNLOAD_BY!r}\n"
        f"RESOURCES = {config.RESOURCES!r}, MAX_BYTES = {limit}")


# ---- start or resume ----


def identity_of(config, scheduler):
    """What has to be the same when an interrupted run is resumed."""
    return {"SOURCE_ENDPOINT_ID": config.SOURCE_ENDPOINT_ID, "PATH": config.PATH.rstrip("/") + "/",
            "DOWNLOAD_DIR": config.DOWNLOAD_DIR,
            "WORKING_DIR": os.path.realpath(config.WORKING_DIR), "user": USER,
            "scheduler": config.SCHEDULER, "cluster": cluster_name(scheduler)}


def read_journal(driver, cut=True):
    """Read the journal; True if a new run begins: if there is none, or the last one is finished,
    with failures or without, or nothing has come of it. Raises UserError if an interrupted one
    cannot be resumed like this. cut: see Journal.read()."""
    forget = f"To forget that run, cancel its jobs and remove the folder {driver.folder}"
    try:
        events = driver.journal.read(cut)
        first = events[0] if events else {}
        is_finished = not events or events[-1]["event"] == "finished"
        if not is_finished and first.get("version", 1) != JOURNAL_VERSION:
            raise helper.UserError(f"{driver.journal.path} is of another version of these scripts."
                                   f"\nFinish that run with them. {forget}", 2)
        for event in events if first.get("version") == JOURNAL_VERSION else []:
            driver.state.apply(event)
    except DAMAGED as error:
        raise helper.UserError(f"{driver.journal.path} is damaged ({error}).\n{forget}", 2)
    if not is_finished and (driver.state.processed or any(
            pack.is_submitted or has_begun(driver.path(name))
            for name, pack in driver.state.packs.items())):
        refuse_another(driver, identity_of(driver.config, driver.scheduler))
        return False
    driver.previous = driver.state.identity if driver.state.processed else first.get("previous", {})
    driver.state = State()  # nothing came of it, such as after a refusal of the first job
    return True


def has_begun(folder):
    """True if somebody has worked on a pack."""
    return os.path.isdir(folder) and any(
        name.startswith(("results.", "submission.")) for name in os.listdir(folder))


def refuse_another(driver, identity):
    """Raise UserError if the interrupted run is another source's, user's, cluster's or folder's."""
    was = driver.state.identity
    differs = [f"{name} = {was.get(name)!r}, not {value!r}" for name, value in identity.items()
               if was.get(name) != value and not (name == "cluster" and None in (
                   value, was.get(name)))]
    if not differs:
        return
    ids = [pack.id for pack in driver.state.submitted().values() if pack.id]
    is_copy = was.get("WORKING_DIR") != identity["WORKING_DIR"]  # its jobs are not to be cancelled
    jobs = "," if is_copy or not ids else (
        f", cancel its jobs:\n{driver.shown_command(driver.scheduler.cancel, ids)}\nand")
    raise helper.UserError(
        f"There is an interrupted run here, with {'; '.join(differs)}.\nFinish it as it was begun; "
        f"or, to forget it{jobs} remove the folder {driver.folder}", 2)


def report_resume(state):
    """Say that an interrupted run is resumed."""
    packs = state.submitted().values()
    ids = [pack.id for pack in packs if pack.id]
    helper.log(f"Resuming the interrupted run: {state.count():,} processed, "
               f"{helper.plural(len(packs), 'job')}{' (' + ' '.join(ids) + ')' if ids else ''}.")


def resume(driver):
    """Take up the packs of the interrupted run; what has failed in them is tried again."""
    for name, pack in list(driver.state.packs.items()):
        folder = driver.path(name)
        if pack.attempt:
            driver.set_up_if_needed(name)
        else:
            driver.set_up(name)
        pack.is_adopted = pack.is_submitted
        pack.results = {
            index: result for index, result in helper.read_results(folder).items()
            if index < len(pack.files)}
        pack.sizes = {other: helper.size_of(os.path.join(folder, other))
                      for other in os.listdir(folder) if other.startswith("results.")}
        token = find_token(os.listdir(folder), pack.attempt)
        if token and pack.is_submitted and token.status == helper.NEEDS_LOGIN and (
                token.step == "get"):
            driver.close(name, token, GIVEN_UP)  # it was reported then
    report_resume(driver.state)


# ---- how it is doing ----


def status(working_dir):
    """Print how far the run is, whether a driver is at work, and what its jobs do, from the files
    in jobs/ alone; the exit status."""
    folder, state = os.path.join(working_dir, "jobs"), State()
    journal = Journal(os.path.join(folder, "journal.jsonl"))
    try:
        for event in journal.read(cut=False):
            state.apply(event)
    except DAMAGED as error:
        raise helper.UserError(f"{journal.path} is damaged, or of another version ({error!r}).")
    holder, is_held = lock_holder(folder)
    lines = []
    for name, pack in state.packs.items():
        with contextlib.suppress(FileNotFoundError):  # it is just over
            pack.results = helper.read_results(os.path.join(folder, name))
            if pack.is_submitted:
                lines.append(f"  job {pack.id or '?'}  "
                             + describe_job(os.path.join(folder, name), pack))
    if state.listed:
        print(describe_numbers(state, int(time.time()) if is_held else state.time))
    else:
        print(f"Nothing has been listed yet, in {folder}.")
    print("\n".join([*lines, f"The driver is running, {holder}." if is_held else
                     f"No driver is running{'; the last one was ' + holder if holder else ''}."]))
    return 0


def describe_job(folder, pack):
    """What a job is doing, where and since when: since its token was renamed."""
    token = find_token(os.listdir(folder), pack.attempt)
    if token is None or token.state == "ticket":
        return "in the queue"
    since = ""
    with contextlib.suppress(FileNotFoundError):
        since = ", since " + clock(os.stat(os.path.join(folder, token.name)).st_ctime)
    if token.state not in ("at", "stop"):
        return "has ended" + since
    what = "downloading " + describe_left(pack) if token.step == "get" else (
        pack.files[token.step].path)
    return f"on {token.writer.rsplit('-', 2)[0]}  {helper.escape_control_chars(what)}{since}"


# ---- one driver at a time ----


def lock_holder(folder):
    """Who holds the lock of a folder, or held it last ('' for nobody); and whether it is held."""
    try:
        with open(os.path.join(folder, "driver.lock")) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip(), True
            except OSError:  # no flock here: nobody knows
                pass
            return file.read().strip(), False
    except FileNotFoundError:
        return "", False


def try_lock(file):
    """Lock a file; False if somebody else has. Raises OSError where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


@contextlib.contextmanager
def lock(folder):
    """Keep a second driver out. Raises UserError if there is one already."""
    path = os.path.join(folder, "driver.lock")
    with open(path, "a+") as file:
        try:
            is_ours = try_lock(file)
            if not is_ours:
                time.sleep(LOCK_SECONDS)
                is_ours = try_lock(file)
        except OSError as error:
            is_ours = True
            helper.log(f"No flock in {folder} ({error.strerror}): see to it that no second driver "
                       "is started here.")
        if not is_ours:
            file.seek(0)
            raise helper.UserError(
                f"Another globus-batch-download.py is running in {os.path.dirname(folder)}, "
                f"{file.read().strip() or 'on some host'}.\nHow it is doing: "
                "globus-batch-download.py --status")
        file.truncate(0)
        file.write(f"on {os.uname().nodename} as process {os.getpid()}, since "
                   f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


# ---- the whole ----


def install_signal_handlers(driver):
    """At the first signal finish what is in hand; a second one is obeyed at once."""
    def stop(number, frame):
        driver.stopping = True
        signal.signal(number, signal.default_int_handler)
        if driver.is_submitting:
            helper.log(f"Stopping, as soon as {driver.scheduler.submit[0]} has answered. (A second "
                       "Ctrl-C does not wait for it.)")

    for number in helper.ENDING_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def check_scripts(scheduler, config):
    """Raise UserError (exit status 2) for what would make every job fail."""
    for name in ("wrapper.sh", "process.sh"):
        path = os.path.join(HERE, name)
        try:
            with open(path, encoding="utf-8", errors="replace", newline="") as file:
                script = file.read()
        except OSError as error:
            raise helper.UserError(f"{path}: {error.strerror}. Each job runs it.", 2)
        if "\r\n" in script and script.startswith("#!"):
            raise helper.UserError(f"{path} has Windows line endings, which bash does not "
                                   "accept. Convert it:\n"
                                   f"sed -i 's/\\r$//' {shlex.quote(path)}", 2)
        first = re.match(r"#! *(?:\S*/env +)?(\S+).*", script)
        shell = first.group(1) if first else ""  # such as a compiled program
        if not script.strip():
            raise helper.UserError(f"{path} is empty.", 2)
        if os.path.basename(shell) == "bash" and shutil.which(shell):
            status, _, errors = run_command([shell, "-O", "extglob", "-n", path])
            if status:  # no refusal: to what a script sets for its own parsing, -n is blind
                helper.log(f"Does {name} have an error? {helper.first_line(errors)}")
        if first and not shutil.which(first.group(1)):
            helper.log(f"{path} begins with {first.group()}, which is not on this machine; is it "
                       "on the compute nodes?")
        if name == "wrapper.sh" and "--clean" not in script:
            raise helper.UserError(f"{path} is of an older version. Copy your environment lines "
                                   "into the new one.", 2)
        if name == "wrapper.sh":
            check_options(scheduler, read_directives(scheduler, script), "wrapper.sh")
        elif any(line.startswith(scheduler.directive) for line in leading_comments(script)):
            helper.log(f"The {scheduler.directive} lines in process.sh have no effect there. Move "
                       "them to the top of wrapper.sh, or to RESOURCES in config.py.")
    check_options(scheduler, shlex.split(config.RESOURCES), "config.py: RESOURCES")


def begin(driver, is_new):
    """Begin a run in the journal, or resume it; what earlier packs have left is known then."""
    driver.journal.open(is_new)
    if is_new:
        run = "".join(secrets.choice("abcdefghijkmnpqrstuvwxyz23456789") for _ in range(5))
        driver.append("run", version=JOURNAL_VERSION, run=run, previous=driver.previous,
                      identity=identity_of(driver.config, driver.scheduler))
    find_kept(driver)
    if not is_new:
        resume(driver)
    done, size, _ = driver.state.numbers()
    driver.append("start", done=done, bytes=size, failed={
        name: pack.failed() for name, pack in driver.state.packs.items()})


def batch(driver, is_new, files, limit):
    """Run the batch, or resume it; the exit status."""
    config = driver.config
    os.makedirs(config.DOWNLOAD_DIR, exist_ok=True)
    helper.TOLD.is_timed = True
    try:
        begin(driver, is_new)
        driver.is_listing = not is_new  # jobs of an interrupted run go on meanwhile
        size, unwanted = plan(driver, files, limit)
        driver.is_listing = False
        driver.tidy([driver.kept.pop(path).pack for path in unwanted if path in driver.kept])
        helper.remove_if_there(os.path.join(driver.folder, "failed.txt"))  # of the last start
        driver.append("listed", refused=len(driver.refused), total=(
            driver.state.count() + driver.count_failed() + driver.count_left()))
        report_begin(driver, size)
        helper.log_lines(failure_lines(driver.refused, "Refused:"))
        report_previous(driver.previous, config, driver.not_needed)
        install_signal_handlers(driver)  # until here a signal ends it at once, as it ends a listing
        driver.main_loop()
    except KeyboardInterrupt:
        driver.stopping = True
    finally:
        report_transfers(driver.state)
        driver.stop_downloads()
    if driver.stopping:
        report_stop(driver)
        return 130
    if not driver.pending and not driver.state.packs:
        driver.append("finished")
    if driver.check_filter_at:
        driver.check_filter()
    print_summary(driver)
    return 1 if driver.count_failed() or driver.is_halted else 0


def report_previous(was, config, not_needed):
    """Say so if the results that the filter sees may be those of another data set."""
    if not_needed and was and (was["SOURCE_ENDPOINT_ID"], was["PATH"]) != (
            config.SOURCE_ENDPOINT_ID, helper.join(config.PATH, "")):
        helper.log(f"The last run here was for {was['PATH']} of collection "
                   f"{was['SOURCE_ENDPOINT_ID']}.\nis_file_needed skips "
                   f"{helper.plural(not_needed, 'file')} of this one. If names repeat in "
                   "both,\ngive each a folder for its results, or a copy of the scripts.")


def parse(argv):
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="only list what would be processed")
    parser.add_argument("--status", action="store_true",
                        help="only tell how a run in this folder is doing")
    parser.add_argument("--limit", metavar="N", type=int,
                        help="process at most N files, to try it out")
    options = parser.parse_args(argv)
    if options.limit is not None and options.limit < 1:
        parser.error("--limit must be at least 1")
    return options


def main(argv=None):
    """Check that all is fit to run, list, and run the batch; the exit status."""
    options = parse(argv)
    if options.status:
        return status(helper.read_setting("WORKING_DIR"))
    config = helper.load_config()
    client = helper.transfer_client()
    scheduler = find_scheduler(config)
    check_scripts(scheduler, config)
    helper.check_collections(client, config)
    helper.check_destination(client, config)
    driver = Driver(config, scheduler, shlex.split(config.RESOURCES))
    if options.dry_run:
        return dry_run(driver, helper.list_files(client, config), options.limit)
    files = helper.list_files(client, config)  # nothing is listed yet: plan() does, file by file
    helper.require_writable(config, "WORKING_DIR")
    os.makedirs(driver.folder, exist_ok=True)
    with lock(driver.folder):
        return batch(driver, read_journal(driver), files, options.limit)


if __name__ == "__main__":
    sys.exit(helper.run_main(main))
