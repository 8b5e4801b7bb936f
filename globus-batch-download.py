#!/usr/bin/env python3
"""Download and process all needed files of PATH (see config.py), one job a file.

Run it on the login node. It keeps NUM_JOBS jobs in the scheduler until all
files are done; each job runs wrapper.sh, which downloads its file, runs
process.sh on it, and deletes it. It may be stopped, or killed, and started
again: it goes on where it was.

Example, to try it with three files and then leave the rest to itself:

    ./globus-batch-download.py --limit 3
    nohup ./globus-batch-download.py > batch.log 2>&1 &
"""
import argparse
import collections
import contextlib
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
import tempfile
import time
from xml.etree import ElementTree

import helper

HERE = os.path.dirname(os.path.abspath(__file__))
SUBMIT_SECONDS = 300  # sbatch itself tries for up to 120 s when Slurm is busy
QUEUE_SECONDS = 60
BAR = 8  # characters
GIVEN_UP = "given up by the driver\n"
# Exit statuses of a job that was told to stop: SIGHUP, SIGINT, SIGUSR2, SIGTERM, SIGXCPU.
STOPPED = {129, 130, 140, 143, 152}


# ---- the nouns ----


class Job:
    """A submitted file. It may be in the queue, or on its way there, or gone without a trace."""

    def __init__(self, path, size):
        self.path, self.size = path, size
        self.id = None  # the scheduler's, None until it has told
        self.is_from_before = False  # submitted by a driver that is no more
        self.gone_since = None  # since when the queue does not list it
        self.stopped = None  # the exit status that it left when it was told to stop


class Run:
    """What is known of a run. Each change is a line of the journal before it is acted upon, so
    that a driver that was killed can be replayed from there."""

    def __init__(self, config, scheduler, client):
        self.config, self.scheduler, self.client = config, scheduler, client
        self.folder = os.path.join(config.WORKING_DIR, "jobs")
        self.todo = collections.deque()  # Files
        self.forget()
        self.not_needed = self.beyond_limit = 0
        self.refused = []  # path and why, of what is listed but cannot be downloaded
        self.left_behind = {}  # path: bytes in DOWNLOAD_DIR that no job of ours will delete
        self.stopping = False
        self.next_question = self.next_look = 0
        self.most = config.NUM_JOBS  # what the scheduler takes; fewer after a refusal
        self.waiting_since = None  # since when no job of the queue is at work
        self.doubts_login, self.next_check = False, 0
        self.told = {}  # what the person knows already, by topic
        self.begun = time.monotonic()
        self.ends = collections.deque(maxlen=config.NUM_JOBS)  # when the last jobs ended
        self.ended_at_begin = 0

    def forget(self):
        """Nothing has happened yet."""
        self.name, self.source, self.queue, self.is_finished = None, None, None, True
        self.jobs = {}  # job name: Job, as long as it is not known to have ended
        self.lost = {}  # the same, of jobs that count as failed because they left no trace
        self.processed, self.failed = set(), {}  # paths; path: why
        self.coming = {}  # path: bytes, of failures whose file Globus may still be sending
        self.kept = set()  # names of jobs whose files stay: failed, or given up
        self.number = 0  # of submissions

    def file_of(self, job_name, kind):
        """Path of a job's file: 'log', 'status' (its exit status; 'new' while it is written) or
        'claim' (see job_script())."""
        return os.path.join(self.folder, f"{job_name}.{kind}")

    def replay(self, path):
        """Take up what the journal tells. A last line without its end was never acted upon."""
        with open(path, "r+b") as file:
            whole = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self.apply(json.loads(line.decode()))
            file.truncate(whole)
        for job in self.jobs.values():
            job.is_from_before = True

    def open_journal(self):
        """Go on with the interrupted run, or begin a new one. Raises Problem if the interrupted
        one was about something else."""
        path = os.path.join(self.folder, "journal.jsonl")
        source, queue = [self.config.SOURCE_ENDPOINT_ID, self.config.PATH], which_queue(self.config)
        if os.path.exists(path):
            try:
                self.replay(path)
            except (ValueError, KeyError, TypeError) as error:
                raise helper.Problem(f"{path} is damaged ({error}).\nTo forget that run, cancel "
                                     f"its jobs and remove the folder {self.folder}.", 2)
        if self.is_finished or not self.number:  # over, or nothing came of it
            self.forget()
            with open(path + ".new", "wb"):
                pass
            os.replace(path + ".new", path)
        else:
            self.refuse_another(source, queue)
        self.journal = open(path, "ab", buffering=0)
        self.length = os.fstat(self.journal.fileno()).st_size
        if self.is_finished:
            # A letter and six more: with the number they fit the 15 characters of old servers.
            self.record(event="run", run="g" + secrets.token_hex(3), source=source)
        if self.queue != queue:
            self.record(event="queue", queue=queue)

    def refuse_another(self, source, queue):
        """Raise Problem if the interrupted run is from another source, or has jobs in another
        queue, where they would not be found."""
        if self.source != source:
            raise helper.Problem(
                f"An interrupted run waits here: {self.source[1]} of collection {self.source[0]}.\n"
                "Finish it with those settings first; or, to forget it, cancel its jobs and remove "
                f"the folder {self.folder}.", 2)
        if self.jobs and self.queue not in (None, queue):
            raise helper.Problem(
                f"The interrupted run has jobs in the queue of {' '.join(self.queue)}, but this is "
                f"{' '.join(queue)}.\nStart it as before, or cancel its jobs and remove the folder "
                f"{self.folder}.", 2)

    def record(self, **event):
        """Write an event to the journal, down to the disk; then it has happened."""
        line = json.dumps(event).encode() + b"\n"
        if os.fstat(self.journal.fileno()).st_size != self.length:  # a lock of this host only
            raise helper.Problem(f"Another driver writes to {self.journal.name}. This one stops.")
        if self.journal.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.journal.name)
        os.fsync(self.journal.fileno())
        self.length += len(line)
        self.apply(event)

    def apply(self, event):
        """Change the state by one event."""
        kind, name = event["event"], event.get("job")
        if kind == "run":
            self.forget()
            self.name, self.source, self.is_finished = event["run"], event["source"], False
        elif kind == "queue":  # where jobs go from here on
            self.queue = event["queue"]
        elif kind == "submit":  # about to be submitted
            self.number += 1
            self.jobs[name] = Job(event["path"], event["size"])
        elif kind == "queued":  # accepted by the scheduler
            self.jobs[name].id = event["id"]
        elif kind == "unsent":  # it is not, and never will be, at work
            del self.jobs[name]
            self.kept.add(name)
        elif kind == "ended":
            job = self.jobs.pop(name, None) or self.lost.pop(name)
            if event["reason"] is None:
                self.processed.add(job.path)
                self.failed.pop(job.path, None)
                self.coming.pop(job.path, None)
            else:
                self.failed[job.path] = event["reason"]
                self.kept.add(name)
                if event["status"] is None or event["status"] > 128:
                    self.coming[job.path] = job.size
            if event["status"] is None:
                self.lost[name] = job
        elif kind == "finished":
            self.is_finished = True


# ---- the schedulers ----

# A kind of scheduler, told by
#   submit      the command that takes a job's script on stdin, with what is to be put in
#   log         lines for the job's script, where the scheduler does not write the log itself
#   read_id     (text): the job's id, from what submit printed
#   queue       the command that asks for all jobs of the user
#   read_queue  (text): {job name: Entry}, from what queue printed
#   about_one   the command, to which an id is added, that tells of one job, where it is needed
#   cancel      the command, to which ids are added
#   leaves      seconds that a job stays in the queue after it wrote its exit status
# The two that read raise ValueError when the text is not what the scheduler prints.
Scheduler = collections.namedtuple(
    "Scheduler", "submit log read_id queue read_queue about_one cancel leaves")

# What the queue says of a job. state: "waiting", "running", "stuck" (it will not begin by itself)
# or "gone"; words: the scheduler's own.
Entry = collections.namedtuple("Entry", "id state words")

SLURM_HEADING = "JOBID|NAME|STATE|REASON"
# Not REVOKED: of a federation's job the sibling in another cluster is at work.
SLURM_GONE = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL",
              "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
SLURM_STUCK = re.compile(
    "JobHeld|BadConstraints|DependencyNeverSatisfied|NotAllowed|^Invalid|launch failed|"
    "Partition(Time|Node)Limit|MaxWall|MaxTime|MaxNodePerJob|MaxCpuPerJob|Max.*PerJob")
PBS_STATES = {"Q": "waiting", "W": "waiting", "T": "waiting", "H": "stuck", "F": "gone",
              "C": "gone", "X": "gone"}  # of PBS and Torque; any other letter: running
GRID_ENGINE = re.compile(r"^(\w+/)?\w*GE\b")

# What qstat says of a job that has left the queue.
GONE = re.compile("unknown job|has finished|not exist", re.I)

# What schedulers say when a limit of the site is reached ...
LIMIT = re.compile(
    "MaxSubmit|MaxJobs|already in (queue|complex)|would exceed|are allowed per", re.I)
# ... and when they are out of order, so that the job may have been accepted all the same.
UNSURE = re.compile(
    "timed out|timeout|time-out|connection|cannot connect|unable to contact|not responding|"
    "no response|temporar|try again later|commlib|unable to send|zero bytes|unexpected message|"
    "broken pipe|interrupted|slurm_load|controller is|in standby|shutting down", re.I)


def read_slurm_id(text):
    """'123', or '123;cluster' where the job went to another cluster than this one."""
    return whole_match(r"(\d+(;\S+)?)", text.strip().split("\n")[-1])


def read_slurm_queue(text):
    """The answer of squeue. Its heading tells no jobs from no answer; where clusters were named,
    each has a heading of its own, below its name."""
    if text.count(SLURM_HEADING + "\n") != max(1, text.count("CLUSTER: ")) or text[-1:] != "\n":
        raise ValueError("not an answer of squeue")
    entries, cluster = {}, ""
    for line in filter(None, text.split("\n")):
        if line.startswith("CLUSTER: "):
            cluster = ";" + line[len("CLUSTER: "):]
        if line.startswith("CLUSTER: ") or line == SLURM_HEADING:
            continue
        number, rest = line.split("|", 1)
        number += cluster
        name, state, reason = rest.rsplit("|", 2)
        if state == "PENDING":
            ours = "stuck" if SLURM_STUCK.search(reason) else "waiting"
            entries[name] = Entry(number, ours, reason)
        elif state not in SLURM_GONE:
            entries[name] = Entry(number, "running", state)
        else:
            entries.setdefault(name, Entry(number, "gone", state))
    return entries


def read_pbs_id(text):
    """'123.server'."""
    return whole_match(r"(\d+(\.\S+)?)", text.strip().split("\n")[-1])


def read_pbs_queue(text):
    """The answer of qstat -u, of PBS (with its comments below the jobs) or of Torque. No jobs:
    nothing is printed."""
    heading, dashes, rest = re.sub(r"(?m)^-[- ]+$", "---", text).partition("---\n")
    lines = rest.split("\n")
    if text and (not dashes or lines.pop()):
        raise ValueError("not an answer of qstat")
    entries, name = {}, None
    for line in filter(None, lines):
        if line.startswith(" "):
            number, state, words = entries[name]
            if "Can Never Run" in line:
                state = "stuck"
            entries[name] = Entry(number, state, line.strip(" -") or words)
            continue
        number, _user, _queue, name, *_, letter, _elapsed = line.split()
        whole_match(r"(\d+).*", number)  # or it is no line of a job
        words = "held" if letter == "H" else "state " + letter
        entries[name] = Entry(number, PBS_STATES.get(letter, "running"), words)
    return entries


def read_sge_id(text):
    """'123'."""
    return whole_match(r"(\d+)", text.strip().split("\n")[-1])


def read_sge_queue(text):
    """The answer of qstat -xml."""
    try:
        answer = ElementTree.fromstring(text)
        found = [[job.find(tag).text for tag in ("JB_job_number", "JB_name", "state")]
                 for job in answer.iter("job_list")]
    except (ElementTree.ParseError, AttributeError) as error:
        raise ValueError(str(error))
    if answer.find("queue_info") is None:
        raise ValueError("not an answer of qstat")
    entries = {}
    for number, name, state in found:
        ours = "stuck" if "E" in state or "h" in state else "waiting" if "q" in state else "running"
        entries[name] = Entry(number, ours, "state " + state)
    return entries


def whole_match(pattern, text):
    """The first group of a pattern that has to fit the whole text."""
    match = re.fullmatch(pattern, text)
    if not match:
        raise ValueError("unexpected: " + text)
    return match.group(1)


try:
    USER = pwd.getpwuid(os.getuid()).pw_name
except KeyError:  # nobody knows its name, as in some containers
    USER = str(os.getuid())
TO_LOG = "exec >{log} 2>&1\n"  # PBS would bring the log only when the job has ended
QSUB = ["qsub", "-V", "-r", "n", "RESOURCES", "-S", "/bin/bash", "-N", "{name}", "-o", "/dev/null",
        "-j"]
SCHEDULERS = {
    "slurm": Scheduler(
        ["sbatch", "--no-requeue", "RESOURCES", "--parsable", "--output={log}",
         "--job-name", "{name}"], "",
        read_slurm_id,
        # --all: also jobs in partitions that are hidden.
        ["squeue", "--user=" + USER, "--all", "--states=all", "--format=%i|%j|%T|%r"],
        read_slurm_queue,
        None, "scancel", 0.1),
    "pbs": Scheduler(
        QSUB + ["oe"], TO_LOG, read_pbs_id,
        ["qstat", "-s", "-w", "-u", USER], read_pbs_queue, ["qstat"], "qdel", 1),
    "torque": Scheduler(
        QSUB + ["oe"], TO_LOG, read_pbs_id,
        ["qstat", "-u", USER], read_pbs_queue, ["qstat"], "qdel", 1),
    "sge": Scheduler(
        # -notify: SIGUSR2 before the end, and SIGUSR1 before a mere suspension.
        # -s a: jobs in all states, whatever ~/.sge_qstat says.
        QSUB + ["y", "-terse", "-notify"], TO_LOG + "trap '' USR1\n", read_sge_id,
        ["qstat", "-u", USER, "-s", "a", "-xml"], read_sge_queue, ["qstat", "-j"], "qdel", 1),
}

# The variables that make a scheduler's commands ask another cluster. (Slurm's: named_clusters().)
WHICH_CLUSTER = {"slurm": (), "pbs": ("PBS_CONF_FILE", "PBS_DEFAULT", "PBS_SERVER"),
                 "torque": ("PBS_DEFAULT",), "sge": ("SGE_ROOT", "SGE_CELL", "SGE_QMASTER_PORT")}


def find_scheduler(config):
    """The Scheduler of this machine; config.SCHEDULER becomes its name, if it was 'auto'. Raises
    Problem (exit status 2) if there is none."""
    name = guess_scheduler() if config.SCHEDULER == "auto" else config.SCHEDULER
    command = SCHEDULERS[name].submit[0] if name else "sbatch or qsub"
    if not shutil.which(command):
        raise helper.Problem(f"config.py: SCHEDULER = {config.SCHEDULER!r}, but there is no "
                             f"{command} here.\nRun this on a login node of the cluster.", 2)
    config.SCHEDULER = name
    return SCHEDULERS[name]


def which_queue(config):
    """Whose queue the scheduler's commands ask: ['slurm'], ['slurm', 'SLURM_CLUSTERS=other']."""
    chosen = [(name, os.environ.get(name)) for name in WHICH_CLUSTER[config.SCHEDULER]]
    if config.SCHEDULER == "slurm":
        chosen.append(("SLURM_CLUSTERS", named_clusters(config)))
    elif config.SCHEDULER in ("pbs", "torque"):
        chosen.append(("server", named_server(config)))
    return [config.SCHEDULER] + [f"{name}={value}" for name, value in chosen if value]


def named_clusters(config):
    """The clusters to which sbatch is sent, 'a,b', or '' for this one; squeue and scancel know
    neither SBATCH_CLUSTERS nor what is in RESOURCES."""
    names = os.environ.get("SBATCH_CLUSTERS") or os.environ.get("SLURM_CLUSTERS") or ""
    return option_value(config, "M", "--clusters") or names


def named_server(config):
    """The server of 'qsub -q queue@server', as '@server'; '' for the default one."""
    at = option_value(config, "q").partition("@")
    return at[1] + at[2]


def option_value(config, letter, name="--"):
    """The value of an option in RESOURCES, given as -M value, -Mvalue, --name value or
    --name=value, the name perhaps shortened; '' if it is not there."""
    found, options = "", iter(shlex.split(config.RESOURCES))
    for word in options:
        begin, equals, value = word.partition("=")
        if word.startswith("--") and len(begin) > 4 and name.startswith(begin):
            found = value if equals else next(options, "")
        elif word.startswith("-" + letter):
            found = word[2:] or next(options, "")
    return found


def cancel_commands(run, ids):
    """The commands that cancel jobs, one for each cluster that they are in."""
    by_cluster = {}
    for job_id in ids:
        number, _, cluster = job_id.partition(";")
        by_cluster.setdefault(cluster, []).append(number)
    return [[run.scheduler.cancel, *([f"--clusters={cluster}"] if cluster else []), *numbers]
            for cluster, numbers in by_cluster.items()]


def cancel(run, ids):
    """Cancel jobs."""
    for command in cancel_commands(run, ids):
        call(command, env=plain_env("SCANCEL_"))


def shown_cancel(run, ids):
    """The same for a person, to copy."""
    return "; ".join(" ".join(command) for command in cancel_commands(run, ids))


def plain_env(prefix):
    """The environment without the variables that would filter what a command of Slurm shows, or
    cancels."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefix)}


def guess_scheduler():
    """Which one answers here, by name, or None. A qsub may be a wrapper around Slurm's sbatch."""
    if shutil.which("sbatch"):
        return "slurm"
    if GRID_ENGINE.search(said_by(["qstat", "-help"])):
        return "sge"
    version = said_by(["qstat", "--version"])
    if "pbs_version" in version:
        return "pbs"
    return "torque" if "ersion:" in version else None


def said_by(command):
    """All that a command of the scheduler says, on stdout and stderr."""
    return "".join(call(command)[1:])


def call(command, text="", seconds=QUEUE_SECONDS, env=None):
    """Run a command of the scheduler; its exit status, stdout and stderr. None instead of an exit
    status: it did not end in time. It has a session of its own, so a Ctrl-C is not for it, and its
    input in a file, so that it gets all of it even if this driver is killed meanwhile."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        try:
            done = subprocess.run(command, stdin=file, capture_output=True, timeout=seconds,
                                  start_new_session=True, env=env)
        except subprocess.TimeoutExpired:
            return None, "", f"{command[0]} did not answer within {seconds} s"
        except OSError as error:
            return 127, "", f"{command[0]}: {error.strerror}"
    return (done.returncode, done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"))


# ---- submitting ----


def job_script(run, job_name, file):
    """The job: wrapper.sh in WORKING_DIR, its exit status in a file that is whole or not there.

    Whoever makes the claim file first decides: the job, which writes its id into it and works
    (again, if it is requeued), or the driver, which gave it up. So a job that a scheduler accepts
    long after it said no, or lost and found again, does nothing. (An empty claim file comes of a
    full disk: that job fails.)

    A scheduler may begin a job again, also long after its end; Slurm and Grid Engine count that
    (`restarts`, 00 at a first start), PBS and Torque do not. Then the journal tells whether the run
    goes on and the job has not ended. A signal ends wrapper.sh; the job itself stays to write the
    exit status down."""
    def quoted(kind):
        return shlex.quote(run.file_of(job_name, kind))

    log = run.scheduler.log.format(log=quoted("log"))
    wrapper = shlex.quote(os.path.join(HERE, "wrapper.sh"))
    is_over = f'"(ended|unsent)", "job": "{job_name}"'
    journal = shlex.quote(run.journal.name)
    return f"""#!/bin/bash
trap : HUP INT TERM XCPU USR1 USR2
{log}id=${{SLURM_JOB_ID:-${{PBS_JOBID:-$JOB_ID}}}}
restarts=${{SLURM_RESTART_COUNT:-0}}${{RESTARTED:-0}}${{PBS_JOBID:+?}}
(set -o noclobber; echo "$id" >{quoted("claim")}) 2>/dev/null || restarts=1
[ "$(cat {quoted("claim")})" = "$id" ] || {{ [ -s {quoted("claim")} ]; exit; }}
for try in {{1..60}}; do # it is empty for a moment when a run begins
  ! read -r first <{journal} || break
  sleep 1
done
[[ $first == *{shlex.quote(f'"run": "{run.name}"')}* ]] || {{ # of another run: ours is over
  [ -z "$first" ] || rm -f {quoted("claim")} {quoted("log")}
  exit
}}
if [ "$restarts" != 00 ]; then # perhaps requeued; had it come to its end?
  ! grep -qsE {shlex.quote(is_over)} {journal} || exit 0
  [ "$(cat {quoted("status")} 2>/dev/null)" != 0 ] || exit 0
  rm -f {quoted("status")}
fi
export PYTHON={shlex.quote(sys.executable)} PYTHONUTF8=1 GLOBUS_SIZE={file.size}
cd {shlex.quote(run.config.WORKING_DIR)} &&
  bash {wrapper} {shlex.quote(run.config.PATH)} {shlex.quote(file.path)} </dev/null
status=$?
for try in {{1..60}}; do # the disk may be full for a while
  echo $status >{quoted("new")} && mv {quoted("new")} {quoted("status")} && break
  sleep 5
done
[ $status = 0 ] # not the status itself: to some schedulers 99 and 100 have a meaning
"""


def submit_command(run, job_name):
    """The command that submits a job of this name."""
    # In the log's name a % would be one of Slurm's patterns, unless there is a \\ to mark it.
    log = run.file_of(job_name, "log")
    log = log.replace("\\", "\\\\") if "\\" in log else log.replace("%", "%%")
    command = []
    for word in run.scheduler.submit:
        command += (shlex.split(run.config.RESOURCES) if word == "RESOURCES" else
                    [word.format(log=log, name=job_name)])
    return command


def submit(run, file):
    """Submit one file. Raises Problem, in the scheduler's words, if that can never work."""
    job_name = f"{run.name}-{run.number + 1}"
    run.record(event="submit", job=job_name, path=file.path, size=file.size)
    run.left_behind.pop(file.path, None)
    command = submit_command(run, job_name)
    status, output, errors = call(command, job_script(run, job_name, file), SUBMIT_SECONDS)
    try:
        job_id = run.scheduler.read_id(output) if status == 0 else None
    except ValueError:
        job_id = None
    if job_id:
        run.record(event="queued", job=job_name, id=job_id)
        tell_event(f"submitted {file.path} (job {job_id})")
        if len(run.jobs) == run.config.NUM_JOBS:
            run.told.pop("submit", None)
    else:
        understand_refusal(run, job_name, command, status, errors or output)
        run.most = len(run.jobs)  # until the queue answers; an end of a job makes room


def understand_refusal(run, job_name, command, status, said):
    """What follows from a submission that gave no id: look for the job, wait, or give up."""
    said = "; ".join(filter(None, said.splitlines()))
    words = helper.first_line(said)
    for word in re.split("[ =,]+", run.config.RESOURCES):
        said = said.replace(word, "") if UNSURE.search(word) else said  # not the scheduler's own
    if status is None or status <= 0 or UNSURE.search(said) or not give_up(run, job_name):
        # It may have been accepted all the same: the next answer of the queue tells.
        tell_once(run, "submit", f"It is not clear whether the scheduler took a job: {words}\n"
                  "Looking for it in the queue.")
        return
    send_again(run, job_name)
    if LIMIT.search(said):
        remove_traces(run, job_name)  # for sure not accepted; else the claim keeps it out
    if LIMIT.search(said) or "limit" in said and run.jobs:
        tell_once(run, "submit", f"The scheduler takes no more jobs for now: {words}\n"
                  "Trying again when a job has ended, or it has answered.")
        return
    command = " ".join(map(shlex.quote, command))
    raise helper.Problem(f"The scheduler refuses the job: {words}\nThe command was: {command}\n"
                         "Mend RESOURCES in config.py and start again; nothing is lost.")


def give_up(run, job_name):
    """True if the job had not begun, and now never will."""
    try:
        with open(run.file_of(job_name, "claim"), "x") as file:
            file.write(GIVEN_UP)
        return True
    except FileExistsError:
        return read(run.file_of(job_name, "claim")) == GIVEN_UP


def find_fitting(run, files):
    """The place of the first of the files that fits into MAX_BYTES, beside what is in flight and
    what was left behind; None if there is none."""
    room = run.config.MAX_BYTES
    if room is None:
        return 0
    room -= sum(run.left_behind.values()) + sum(job.size for job in run.jobs.values())
    return next((place for place, file in enumerate(files)
                 if file.size - run.left_behind.get(file.path, 0) <= room), None)


def has_room(run):
    """True if the scheduler may get one more job."""
    now = time.monotonic()
    leaving = sum(now - end < run.scheduler.leaves for end in run.ends)
    return len(run.jobs) + leaving < min(run.config.NUM_JOBS, run.most)


def fill(run):
    """Submit files while there are free places."""
    while run.todo and has_room(run) and not run.stopping:
        place = find_fitting(run, itertools.islice(run.todo, 1000))
        if place is None and (run.jobs or time.monotonic() < run.next_look):
            return
        if place is None:
            measure_left_behind(run)
            place = find_fitting(run, run.todo)
        if place is None and run.coming:
            tell_once(run, "coming", "Waiting: transfer tasks of jobs that were killed still bring "
                      f"{helper.count(len(run.coming), 'file')}, and MAX_BYTES leaves no room for "
                      "more.\nThey can be cancelled on https://app.globus.org/activity")
            run.next_look = time.monotonic() + run.config.POLL_SECONDS
            return
        if place is None:
            raise helper.Problem(
                f"What is in {run.config.DOWNLOAD_DIR} leaves no room for another file within "
                "MAX_BYTES.\nRemove what failures left there, or raise MAX_BYTES, and start "
                "again; nothing is lost.")
        file = run.todo[place]
        del run.todo[place]
        submit(run, file)


# ---- the end of jobs ----


def collect(run):
    """Take in the exit statuses that jobs have written; how many jobs have ended."""
    before = len(run.jobs)
    files = set(os.listdir(run.folder))  # one look for all jobs
    for name in [name for name in [*run.jobs, *run.lost] if f"{name}.status" in files]:
        text = read(run.file_of(name, "status"))
        if text is None:
            continue  # it began again just now
        status = int(text) if text.strip().isdigit() else 255
        if status in STOPPED and name in run.jobs:
            run.jobs[name].stopped = status  # cancelled, or requeued: the queue knows
        else:
            end(run, name, status)
    return before - len(run.jobs)


def end(run, job_name, status, reason=None):
    """A job has ended: with an exit status, or (None) lost for a reason."""
    job = run.jobs.get(job_name) or run.lost[job_name]
    if status:
        reason = f"exit status {status}"
    if reason:
        words = last_line(run.file_of(job_name, "log"))
        reason += (": " + words if words else "") + f" ({run.file_of(job_name, 'log')})"
    run.record(event="ended", job=job_name, status=status, reason=reason)
    run.ends.append(time.monotonic())
    run.waiting_since = None
    run.doubts_login |= status == 1  # what a download that Globus refuses ends with
    if reason:
        note_left_behind(run, job.path, run.coming.get(job.path, 0))
        helper.tell(timed(f"FAILED {job.path}: {reason}"))
    else:
        tell_event("processed " + job.path)
        remove_traces(run, job_name)


def remove_traces(run, job_name):
    """Remove the files of a job that went well."""
    for kind in ("log", "status", "new", "claim"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(run.file_of(job_name, kind))


def note_left_behind(run, path, coming=0):
    """Count what a failure left in DOWNLOAD_DIR, or the bytes that may still be coming."""
    size = helper.size_of(os.path.join(run.config.DOWNLOAD_DIR, path))
    run.left_behind[path] = max(size or 0, coming)


def measure_left_behind(run):
    """Count what failures, and earlier runs, left in DOWNLOAD_DIR, if there is a limit; and what
    the tasks of jobs that were killed still bring."""
    if run.config.MAX_BYTES is None:
        return
    run.left_behind.clear()
    if run.coming:
        labels = {helper.words(task, "label") for task in helper.unfinished_tasks(run.client)}
        run.coming = {path: size for path, size in run.coming.items()
                      if label_of(run, path) in labels}
    in_flight = {job.path for job in run.jobs.values()}
    for folder, _, names in os.walk(run.config.DOWNLOAD_DIR):
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), run.config.DOWNLOAD_DIR)
            if path not in in_flight:
                note_left_behind(run, path)
    for path, size in run.coming.items():
        note_left_behind(run, path, size)


def label_of(run, path):
    """The label of the transfer task of a file's job."""
    source = helper.join(run.config.PATH, path)
    return helper.task_label(helper.job_label(source), run.config.DESTINATION_PATH)


def read(path):
    """The text of a file, or None if there is none."""
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return None


def last_line(path):
    """The last words of a log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 2000))
            lines = [line for line in file.read().decode(errors="replace").splitlines()
                     if line.strip()]
    except OSError:
        return ""
    return helper.first_line(lines[-1]) if lines else ""


# ---- the queue ----


def ask_queue(run):
    """{job name: Entry}, or None if the scheduler gave no answer that can be understood."""
    run.next_question = time.monotonic() + run.config.POLL_SECONDS
    clusters = clusters_of(run)
    command = run.scheduler.queue + [named_server(run.config)] * (
        run.config.SCHEDULER in ("pbs", "torque"))
    # SQUEUE_PARTITION and the like would hide some of the jobs.
    env = plain_env("SQUEUE_")
    if clusters:
        env["SLURM_CLUSTERS"] = ",".join(clusters)
    status, output, errors = call(list(filter(None, command)), env=env)
    entries = None
    if status == 0:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entries = run.scheduler.read_queue(output)
    if len(clusters) > 1 and not all(f"CLUSTER: {name}\n" in output for name in clusters):
        entries = None  # one of them is silent
    if entries is None or not entries and not is_empty(run):
        words = helper.first_line(errors or output)
        tell_once(run, "queue", f"The scheduler gives no answer ({command[0]}: {words}).\n"
                  f"Asking again every {run.config.POLL_SECONDS:g} s.", errors or "nonsense")
        return None
    run.told.pop("queue", None)
    return entries


def clusters_of(run):
    """The clusters of Slurm in which jobs may be, by name; none of them where it has but one."""
    if run.config.SCHEDULER != "slurm":
        return []
    names = named_clusters(run.config).split(",")
    names += [(job.id or "").partition(";")[2] for job in run.jobs.values()]
    return sorted({name.strip() for name in names} - {""})


def is_empty(run):
    """True if the scheduler means it when it lists nothing: silence is PBS's way to say that
    there are no jobs, so it is asked about one of them."""
    ids = [job.id for job in run.jobs.values() if job.id]
    if not ids or not run.scheduler.about_one:
        return True
    return GONE.search(said_by(run.scheduler.about_one + ids[:1])) is not None


def look_at_queue(run):
    """Find out which jobs are in the queue, and which are gone."""
    entries, now = ask_queue(run), time.monotonic()
    collect(run)  # what ended meanwhile
    if entries is None:
        return
    for name, job in list(run.jobs.items()):
        entry = entries.get(name)
        if entry and job.id is None:
            run.record(event="queued", job=name, id=entry.id)
        if entry and entry.state != "gone":
            job.gone_since, job.is_from_before, job.stopped = None, False, None
        elif job.stopped:
            end(run, name, job.stopped)
        elif job.id is None and give_up(run, name):
            send_again(run, name)
        elif job.gone_since is None:
            job.gone_since = now
        elif now - job.gone_since >= run.config.GRACE_SECONDS:
            lose(run, name, entry)
    run.most = run.config.NUM_JOBS
    cancel_given_up(run, entries)
    ours = [entries[name] for name in run.jobs if name in entries]
    tell_stuck(run, ours)
    tell_waiting(run, ours)


def send_again(run, job_name):
    """Put a job's file back to the front."""
    job = run.jobs[job_name]
    run.record(event="unsent", job=job_name)
    run.todo.appendleft(helper.File(job.path, job.size, None, None))


def lose(run, job_name, entry):
    """A job is gone and left no exit status."""
    give_up(run, job_name)  # should it come back after all
    if run.jobs[job_name].id:  # ... or should the queue be wrong
        cancel(run, [run.jobs[job_name].id])
    if run.jobs[job_name].is_from_before:
        send_again(run, job_name)
        return
    words = f"the scheduler says {entry.words}" if entry else "it is not in the queue any more"
    end(run, job_name, None, "the job was lost: no exit status, and " + words)


def cancel_given_up(run, entries):
    """Cancel what the scheduler accepted after all, long after it said no; it would do nothing,
    but it has a place in the queue."""
    ids = [entry.id for name, entry in entries.items() if entry.state != "gone"
           and name in run.kept and read(run.file_of(name, "claim")) == GIVEN_UP]
    if ids:
        cancel(run, ids)


def tell_stuck(run, entries):
    """Say which jobs are stuck, when they change."""
    stuck = [entry for entry in entries if entry.state == "stuck"]
    ids = shown_cancel(run, [entry.id for entry in stuck])
    if not stuck:
        run.told.pop("stuck", None)
    elif run.told.get("stuck") != ids:
        run.told["stuck"] = ids
        helper.tell(f"{helper.count(len(stuck), 'job')} cannot begin: {why_stuck(run, stuck)}\n"
                    "Mend the cause, or cancel (they count as failed then): "
                    + ids)


def why_stuck(run, stuck):
    """The scheduler's words on jobs that are stuck; of Grid Engine also what it says of the first
    of them alone."""
    words = ", ".join(sorted({entry.words for entry in stuck}))
    if run.scheduler.about_one:
        text = said_by(run.scheduler.about_one + [stuck[0].id])
        errors = re.findall(r"(?m)^error reason\s+\d+:\s+(.*)", text)
        words += ": " + errors[0] if errors else ""
    return words


def tell_waiting(run, entries):
    """Say why jobs wait, when for a while none of them is at work."""
    waiting = [entry for entry in entries if entry.state == "waiting"]
    if not waiting or len(waiting) < len(entries):
        run.waiting_since = None
        run.told.pop("waiting", None)
        return
    run.waiting_since = run.waiting_since or time.monotonic()
    if time.monotonic() - run.waiting_since >= helper.QUIET_SECONDS:
        words = ", ".join(sorted({entry.words for entry in waiting}))
        tell_once(run, "waiting", "No job is at work; the scheduler says of "
                  f"{helper.count(len(waiting), 'job')}: {words}", words)


def tell_stall(run):
    """When all jobs at work wait for Globus, say why, in the words of their logs."""
    lines = [last_line(run.file_of(name, "log")) for name in run.jobs]
    if any(lines) and all(line.startswith("Waiting: ") for line in lines if line):
        reasons = sorted({line[len("Waiting: "):].split("  (task ")[0] for line in lines if line})
        tell_once(run, "stall", "All jobs wait: " + "; ".join(reasons))
    else:
        run.told.pop("stall", None)


# ---- telling ----


def tell_once(run, topic, text, gist=None):
    """Say it, unless its gist (the text, as a rule) is what was said last on this topic."""
    if run.told.get(topic) != (gist or text):
        run.told[topic] = gist or text
        helper.tell(text)


def tell_event(text):
    """A line an event, where there is no bar."""
    if not helper.is_screen():
        helper.tell(timed(text))


def timed(text):
    """The text, after the time of day."""
    return f"{time.strftime('%H:%M:%S')}  {text}"


def show_progress(run):
    """How far the run is: a bar with its clock on a terminal, a line now and then in a log."""
    now, ended = time.monotonic(), len(run.processed) + count_failed(run)
    total = ended + len(run.jobs) + len(run.todo)
    text = (f"{ended:,} of {helper.count(total, 'file')}, "
            f"{helper.count(len(run.jobs), 'job')} in the queue")
    if count_failed(run):
        text += f", {count_failed(run):,} failed"
    text += time_left(run, ended, total, now)
    if not helper.is_screen():
        helper.show(timed(text))
        return
    full = BAR * ended // total if total else BAR
    helper.show(f"{clock(now - run.begun)} [{'#' * full:.<{BAR}}] {text}")


def time_left(run, ended, total, now):
    """', ~12 min left' at the pace so far; nothing before each place had two files, or at the
    end."""
    fresh = ended - run.ended_at_begin
    if fresh < 2 * run.config.NUM_JOBS or ended == total:
        return ""
    last = run.ends[-1]  # up to then the pace is known
    seconds = (last - run.begun) / fresh * (total - ended) - (now - last)
    return f", ~{helper.duration(max(seconds, 1))} left"


def clock(seconds):
    """'0:07', '12:34', '1:23:45'."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def print_summary(run):
    """The failures with their logs, and the numbers."""
    helper.show("")
    for path, reason in [*run.refused, *run.failed.items()]:
        print(f"FAILED {helper.printable(path)}: {helper.printable(reason)}")
    if run.beyond_limit:
        print(f"{helper.count(run.beyond_limit, 'more file')} needed, beyond --limit")
    print(f"{len(run.processed)} processed, {count_failed(run)} failed, "
          f"{run.not_needed} not needed", flush=True)


def count_failed(run):
    """How many of the files that were listed failed, or were refused."""
    return len(run.failed) + len(run.refused)


def print_how_to_go_on(run):
    """What to do after a stop."""
    ids = [job.id for job in run.jobs.values() if job.id]
    helper.tell(f"Stopped. {helper.count(len(ids), 'job')} left in the queue; "
                "to go on with them and the rest, start this script again.")
    if ids:
        helper.tell("To cancel them: " + shown_cancel(run, ids))


# ---- what is to be done ----


def is_needed(config, file):
    """The user's filter. Raises Problem if it stumbles."""
    try:
        return bool(config.is_file_needed(file))
    except Exception as error:  # the user's own code: anything can happen
        raise helper.Problem(f"config.py: is_file_needed stumbles over {file.path!r}: "
                             f"{type(error).__name__}: {error}", 2)


def sorted_out(config, files):
    """Yield each File with what becomes of it: True (needed), False, or why it cannot be."""
    for number, file in enumerate(files):
        if number % 1000 == 0:
            helper.show("Listing: " + helper.count(number, "file"))
        if file.refused:
            yield file, file.refused
        elif not is_needed(config, file):
            yield file, False
        elif config.MAX_BYTES is not None and file.size > config.MAX_BYTES:
            yield file, f"is larger ({helper.size_text(file.size)}) than MAX_BYTES"
        else:
            yield file, True


def dry_run(config, files, limit):
    """Print what a run would do; the exit status."""
    counts = collections.Counter()
    for file, fate in sorted_out(config, files):
        counts[fate if isinstance(fate, bool) else None] += 1
        if fate is True and (limit is None or counts[True] <= limit):
            print(f"{file.size:14,}  {helper.printable(file.path)}")
        elif fate and fate is not True:
            helper.tell(f"Refused: {file.path!r} {fate}.")
    helper.show("")
    needed = counts[True] if limit is None else min(limit, counts[True])
    print(f"{needed} to process, {counts[None]} refused, {counts[False]} not needed")
    return 1 if counts[None] else 0


def plan(run, files, limit):
    """Fill the list of what is to be done, from all files but those of the journal."""
    known = {job.path for job in run.jobs.values()} | run.processed | set(run.failed)
    room = float("inf") if limit is None else max(0, limit - len(known))
    for file, fate in sorted_out(run.config, files):
        if file.path in known:
            continue
        if fate is False:
            run.not_needed += 1
        elif fate is True:
            if len(run.todo) < room:
                run.todo.append(file)
            else:
                run.beyond_limit += 1
        else:
            run.refused.append((file.path, fate))
            helper.tell(timed(f"FAILED {file.path}: {fate}"))
    helper.show("")


# ---- one driver at a time ----


@contextlib.contextmanager
def lock(folder):
    """Keep a second driver out. Raises Problem if there is one already."""
    owner = None
    with open(os.path.join(folder, "driver.lock"), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise helper.Problem("Another globus-batch-download.py is at work in "
                                 + os.path.dirname(folder))
        except OSError as error:
            helper.tell(f"No flock in {folder} ({error.strerror}); the file driver.owner there "
                        "keeps a second driver out instead.")
            owner = os.path.join(folder, "driver.owner")
            own(owner)
        try:
            yield
        finally:
            if owner:
                os.remove(owner)


def own(path):
    """Put this process's name into a file, where flock is not supported. Raises Problem if
    another process, which may be alive, has its name there."""
    other = read(path)
    if other:
        host, _boot, pid, _start = other.split()
        if host != os.uname().nodename or identity(pid) == other:
            raise helper.Problem(f"Another globus-batch-download.py is at work here, on {host} as "
                                 f"process {pid}.\nIf it is no more, remove {path}")
    me = identity(os.getpid())
    with open(f"{path}.{os.getpid()}", "w") as file:
        file.write(me)
    os.replace(f"{path}.{os.getpid()}", path)
    time.sleep(1)  # of two that came at once, the later one's name is there
    if read(path) != me:
        raise helper.Problem("Another globus-batch-download.py has just begun here.")


def identity(pid):
    """What no other process has, now or later: host, boot, number and start; None without one."""
    stat = read(f"/proc/{pid}/stat")
    if stat is None:
        return None
    boot = read("/proc/sys/kernel/random/boot_id").strip()
    start = stat.rpartition(")")[2].split()[19]  # field 22 of proc(5)
    return f"{os.uname().nodename} {boot} {pid} {start}"


# ---- the whole ----


def take_up(run):
    """After a restart: say so, and clear away what the last driver did not come to."""
    ended = len(run.processed) + len(run.failed)
    if not run.jobs and not ended:
        return
    helper.tell("Going on with the interrupted run: "
                f"{helper.count(ended, 'file')} done, "
                f"{helper.count(len(run.jobs), 'job')} on the way.")
    for entry in os.listdir(run.folder):
        name = entry.partition(".")[0]
        if name.startswith(run.name + "-") and name not in run.jobs and name not in run.kept:
            remove_traces(run, name)


def take_folder(run):
    """Mark DOWNLOAD_DIR as this batch's. Raises Problem if something else uses it."""
    helper.mark_folder(run.config)
    if run.number:  # it has been ours
        return
    task_id = helper.find_simple_download(run.client, run.config)
    if task_id:
        helper.unmark_folder(run.config)
        raise helper.Problem(
            "A task of globus-simple-download.py still downloads into DOWNLOAD_DIR = "
            f"{run.config.DOWNLOAD_DIR},\nwhere a batch deletes the files. Wait for its end, or "
            f"cancel it: https://app.globus.org/activity/{task_id}", 2)


def remove_empty_folders(run):
    """Remove the folders that processed files left empty in DOWNLOAD_DIR."""
    parents = {os.path.dirname(path) for path in run.processed} - {""}
    for parent in parents:
        while parent:
            try:
                os.rmdir(os.path.join(run.config.DOWNLOAD_DIR, parent))
            except OSError:
                break  # not empty, or gone
            parent = os.path.dirname(parent)


def drive(run):
    """Keep the jobs coming until all files are done, or until stopped."""
    run.begun, run.ended_at_begin = time.monotonic(), len(run.processed) + count_failed(run)
    pauses = helper.pauses(0.05, 0.5, 1.05)  # an end is seen at most a twentieth too late
    while (run.todo or run.jobs) and not run.stopping:
        if collect(run):
            pauses = helper.pauses(0.05, 0.5, 1.05)
        if time.monotonic() >= run.next_question:
            look_at_queue(run)
            tell_stall(run)
        if run.doubts_login and time.monotonic() >= run.next_check:
            check_login(run)
        fill(run)
        show_progress(run)
        time.sleep(next(pauses))


def check_login(run):
    """After a failure: was it the login? Then all further jobs would fail as well. Raises Problem
    if a login is what helps."""
    run.doubts_login, run.next_check = False, time.monotonic() + run.config.POLL_SECONDS
    for is_sure in (False, True):  # a first error may be the old access token's
        try:
            run.client.operation_stat(run.config.SOURCE_ENDPOINT_ID, path=run.config.PATH)
            run.client.operation_stat(run.config.DESTINATION_ENDPOINT_ID,
                                      path=run.config.DESTINATION_PATH)
            return
        except helper.GlobusAPIError as error:
            if not helper.why_log_in(error):
                return
            if is_sure:
                raise helper.Problem(f"{helper.explain(error)}\nThen start this script again; it "
                                     "goes on with its jobs and the files that are left.")
        except (helper.NetworkError, *helper.NONSENSE, OSError):
            return


def stop_gently(run):
    """At the first signal finish what is in hand; a second one is obeyed at once."""
    def stop(number, frame):
        run.stopping = True
        signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def batch(config, scheduler, client, files, limit):
    """Run the batch, or go on with it; the exit status."""
    run = Run(config, scheduler, client)
    os.makedirs(run.folder, exist_ok=True)
    os.makedirs(config.DOWNLOAD_DIR, exist_ok=True)
    with lock(run.folder):
        run.open_journal()
        take_up(run)
        plan(run, files, limit)
        take_folder(run)
        measure_left_behind(run)
        helper.tune(client, 20, 1)  # from here on waiting would hold up the jobs
        stop_gently(run)
        drive(run)
        if run.stopping:
            print_how_to_go_on(run)
            return 130
        remove_empty_folders(run)
        run.record(event="finished")
        helper.unmark_folder(config)
        print_summary(run)
    return 1 if count_failed(run) else 0


def parse(argv):
    """The options."""
    def number(text):
        if int(text) < 1:
            raise argparse.ArgumentTypeError("must be a number from 1 up")
        return int(text)

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="only list what would be processed")
    parser.add_argument("--limit", metavar="N", type=number,
                        help="process at most N files, to try it out")
    return parser.parse_args(argv)


def main(argv=None):
    """Check that all is fit to run, list, and run the batch; the exit status."""
    options = parse(argv)
    config = helper.settings()
    client = helper.transfer_client()
    scheduler = find_scheduler(config)
    helper.check_collections(client, config)
    helper.check_destination(client, config)
    if not options.dry_run:
        helper.refuse_batches(config, helper.jobs_folder(config))
    files = helper.list_files(client, config)
    if options.dry_run:
        return dry_run(config, files, options.limit)
    return batch(config, scheduler, client, files, options.limit)


if __name__ == "__main__":
    sys.exit(helper.run(main))
