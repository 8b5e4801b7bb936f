#!/usr/bin/env python3
"""Download and process all needed files of PATH (see config.py) in batch jobs.

Run it on the login node. It keeps NUM_JOBS jobs in the scheduler until all
files are done; each job runs wrapper.sh, which downloads its files, runs
process.sh on each, and deletes it. It may be stopped, or killed, and started
again: it continues where it stopped.

Example, to try it with three files and then leave the rest to itself:

    ./globus-batch-download.py --limit 3
    nohup ./globus-batch-download.py > batch.log 2>&1 &
"""
import argparse
import collections
import concurrent.futures
import contextlib
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
import tempfile
import threading
import time
from xml.etree import ElementTree

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # without it: PYTHONSAFEPATH
import helper

HERE = helper.as_named_here(os.path.dirname(os.path.abspath(__file__)))
SUBMIT_SECONDS = 300  # sbatch itself tries for up to 120 s when Slurm is busy
QUEUE_SECONDS = 60
HTTP_TIMEOUT = 20  # seconds; once jobs are there, waiting for Globus holds them up
BAR = 8  # characters
VAIN_POLLS = 3  # polls that show none of the submitted jobs, before the first was accepted
MOST_ASKED_AGAIN = 10000  # files; the filter looks at a disk, which may be slow
LEAST_SECONDS = 10  # that a job has work for, if there are files
LISTING_SECONDS = 1  # between two looks at the jobs while a listing comes
HEADING = "wrapper.sh on "  # how the log of a job begins
GIVEN_UP = "given up by the driver\n"
JOURNAL_VERSION = 2
TASKS_AT_WORK = 3  # active transfer tasks per user (globus.org, "Transfer limits")
# Of a job's names; a command line holds 2 MB (a quarter of the usual stack), a script of Slurm 4.
LONGEST_COMMAND = 1000000  # bytes


# ---- the schedulers ----

# A kind of scheduler, told by
#   submit          the command that takes a job's script on stdin, with what is to be put in
#   log             lines for the job's script, where the scheduler does not write the log itself
#   id              pattern of a job's id, a line of what submit prints
#   queue           the command that asks for all jobs of the user
#   parse_queue     (text): {job name: QueueEntry}, from what queue printed. Lines that it does not
#                   know are passed over; raises ValueError if it may not be the whole answer
#   job_info        the command, to which an id is added, that tells of one job, where it is needed
#   cancel          the command, to which ids are added
#   release         the same, for jobs that are held
#   linger_seconds  seconds that a job stays in the queue after it wrote its exit status
#
# Another kind of scheduler needs: an entry in SCHEDULERS, with a function that parses its queue;
# guess_scheduler(); its variables for a job's id and restarts in JOB_SCRIPT; its words in LIMIT and
# UNSURE; its environment in WHICH_CLUSTER and SET_FOR_A_JOB; options that are not for the user in
# FOREIGN_OPTIONS; its name in helper.SETTINGS.
Scheduler = collections.namedtuple(
    "Scheduler", "submit log id queue parse_queue job_info cancel release linger_seconds")

# What the queue says of a job. state: "waiting", "running", "held" (until somebody releases it),
# "blocked" (it cannot start as it is) or "ended"; reason: in the scheduler's words.
QueueEntry = collections.namedtuple("QueueEntry", "id state reason")

SLURM_HEADING = "JOBID|NAME|STATE|REASON"
SLURM_LINE = re.compile(r"(\d[^|]*)\|(.*)\|(\w+)\|([^|]*)")
# What the words of a scheduler for a job's state, and Slurm's reason behind them, mean: {state:
# pattern}, and the first one that is found counts.
SLURM_STATES = {
    # Not REVOKED: in a federation the sibling job, in another cluster, runs instead.
    "ended": "^(BOOT_FAIL|CANCELLED|COMPLETED|DEADLINE|FAILED|NODE_FAIL|OUT_OF_MEMORY|PREEMPTED|"
             "TIMEOUT) ",
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

# ... and of a server that does not exist; no outage if RESOURCES names that server.
NO_SERVER = re.compile("resolve|unknown host", re.I)

# What schedulers say when a limit of the site is reached ...
LIMIT = re.compile(
    "MaxSubmit|MaxJobs|already in (queue|complex)|would exceed|are allowed per", re.I)
# ... and when they are out of order, so that the job may have been accepted all the same.
UNSURE = re.compile(
    "timed out|timeout|time-out|connection|cannot connect|unable to contact|not responding|"
    "no response|temporar|try again later|commlib|unable to send|zero bytes|unexpected message|"
    "broken pipe|interrupted|slurm_load|controller is|in standby|shutting down", re.I)

# What a line of a job's log has that names the setting or the cause of a failure.
CAUSE = re.compile(
    r"^(config\.py|wrapper\.sh): |\b(\w*(error|exception)|no module named|not found|no such|denied|"
    r"failed|cannot|could not|no space|quota|killed|cancelled)\b", re.I)


def read_job_id(pattern, text):
    """The job's id, on a line of its own, whatever else was printed; None if there is none."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if re.fullmatch(pattern, line)), None)


def state_by(patterns, words):
    """The first state whose pattern is found in a scheduler's words."""
    found = [state for state, pattern in patterns.items() if re.search(pattern, words)]
    return found[0] if found else "running"  # what nobody knows is alive


def parse_slurm_queue(text):
    """The answer of squeue. Its heading tells no jobs from no answer; where clusters were named,
    each has a heading of its own, below its name."""
    lines = text.split("\n")
    clusters = sum(line.startswith("CLUSTER: ") for line in lines)
    if lines.count(SLURM_HEADING) < max(1, clusters) or lines[-1]:
        raise ValueError("not the whole answer of squeue")
    entries, cluster = {}, ""
    for line in lines:
        if line.startswith("CLUSTER: "):
            cluster = ";" + line[len("CLUSTER: "):]
        match = SLURM_LINE.fullmatch(line)
        if match:
            number, name, state, reason = match.groups()
            ours = state_by(SLURM_STATES, f"{state} {reason}")
            words = [word for word in (state, reason) if word not in ("PENDING", "None")]
            if ours != "ended" or name not in entries:
                entries[name] = QueueEntry(number + cluster, ours, ", ".join(words) or state)
    return entries


def parse_pbs_queue(text):
    """The answer of qstat -u, of PBS (with its comments below the jobs) or of Torque. No jobs:
    nothing is printed, or what the site has to say."""
    heading, dashes, rest = re.sub(r"(?m)^-[- ]+$", "---", text).partition("---\n")
    lines = rest.split("\n")
    if dashes and lines.pop():
        raise ValueError("not the whole answer of qstat")
    entries, name = {}, None
    for line in lines:
        match = PBS_LINE.fullmatch(line)
        if match:
            number, name, letter = match.groups()
            entries[name] = QueueEntry(number, state_by(PBS_STATES, letter),
                                       "held" if letter == "H" else "state " + letter)
        elif name and line.startswith(" "):
            number, state, reason = entries[name]
            state = "blocked" if "Can Never Run" in line else state
            entries[name] = QueueEntry(number, state, line.strip(" -") or reason)
            name = None  # of a comment with several lines the first one tells
        else:
            name = None
    return entries


def parse_sge_queue(text):
    """The answer of qstat -xml."""
    if "<queue_info" not in text or not text.rstrip().endswith("</job_info>"):
        raise ValueError("not the whole answer of qstat")
    entries = {}
    for job in re.findall("(?s)<job_list.*?</job_list>", text):
        try:
            tags = ElementTree.fromstring(job)
            number, name, state = (
                tags.find(tag).text or "" for tag in ("JB_job_number", "JB_name", "state"))
        except (ElementTree.ParseError, AttributeError):
            continue
        entries[name] = QueueEntry(number, state_by(SGE_STATES, state), "state " + state)
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
        None, ["scancel"], ["scontrol", "release"], 0.2),
    "pbs": Scheduler(
        QSUB + ["oe"], TO_LOG, r"\d+(\.(?=\S*[A-Za-z])\S+)?",  # no date
        ["qstat", "-s", "-w", "-u", USER], parse_pbs_queue, ["qstat"], ["qdel"], ["qrls"], 1),
    "sge": Scheduler(
        # -notify: SIGUSR2 before the end, and SIGUSR1 before a mere suspension.
        # -s a: jobs in all states, whatever ~/.sge_qstat says.
        QSUB + ["y", "-terse", "-notify"], TO_LOG + "trap '' USR1\n", r"\d+",
        ["qstat", "-u", USER, "-s", "a", "-xml"], parse_sge_queue, ["qstat", "-j"], ["qdel"],
        ["qrls"], 1),
}
SCHEDULERS["torque"] = SCHEDULERS["pbs"]._replace(queue=["qstat", "-u", USER])

# The variables that make a scheduler's commands ask another cluster. (Slurm's: named_clusters().)
WHICH_CLUSTER = ("PBS_CONF_FILE", "PBS_DEFAULT", "PBS_SERVER", "SGE_ROOT", "SGE_CELL",
                 "SGE_QMASTER_PORT")
FINDS_THE_SCHEDULER = {*WHICH_CLUSTER, "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS",
                       "SLURM_JWT", "SGE_EXECD_PORT", "SGE_CLUSTER_NAME", "PBS_EXEC"}
# Every job has the first one, and those that the pattern fits.
SET_FOR_A_JOB = {
    "SLURM_JOB_ID": "SLURM.*", "PBS_JOBID": "PBS_.*",
    "SGE_TASK_ID": "(SGE|JOB)_.*|PE|PE_HOSTFILE|NSLOTS|NHOSTS|NQUEUES|QUEUE|RESTARTED|ARC|REQUEST"}

# Options that the driver cannot work with: the job would never run, or never end.
FOREIGN_OPTIONS = {
    "slurm": "-a -d -h -H -V -W --array --dependency --help --hold --test-only --version --wait "
             "--wrap",
    "pbs": "-h -I -J -z", "torque": "-h -I -t -z",
    "sge": "-h -help -hold_jid -hold_jid_ad -sync -t -verify"}


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
    return kind


def check_options(config):
    """Raise UserError (exit status 2) if RESOURCES holds a command, or an option that makes the job
    something else."""
    foreign = ["", "--", *FOREIGN_OPTIONS[config.SCHEDULER].split()]
    for option, value in resource_options(config):
        is_shortened = option.startswith("--") and len(option) > 4 and any(
            name.startswith(option) for name in foreign)
        if option in foreign or is_shortened or (
                option == "-W" and re.search("(^|,)(depend|block)=", value)):
            raise helper.UserError(
                f"config.py: RESOURCES holds {f'{option} {value}'.strip()!r}. Leave it out: the "
                "driver cannot\nwork with commands, arrays, jobs that are held or interactive.", 2)


def resource_options(config):
    """The options in RESOURCES, [(name, value), ...]; a word that belongs to none has no name."""
    options, is_sge = [], config.SCHEDULER == "sge"  # whose options may have several values
    for word in shlex.split(config.RESOURCES):
        if word.startswith("--"):
            name, _, value = word.partition("=")
            options.append((name, value))
        elif word.startswith("-"):
            options.append((word, "") if is_sge else (word[:2], word[2:]))
        elif options and options[-1][0] and (is_sge or not options[-1][1]):
            options[-1] = options[-1][0], word
        else:
            options.append(("", word))
    return options


def which_queue(config):
    """Whose queue the scheduler's commands ask: ['slurm'], ['slurm', 'SLURM_CLUSTERS=other']."""
    prefix = {"slurm": "SLURM_", "sge": "SGE_"}.get(config.SCHEDULER, "PBS_")
    prefix = "PBS_DEFAULT" if config.SCHEDULER == "torque" else prefix
    chosen = [(name, os.environ.get(name)) for name in WHICH_CLUSTER if name.startswith(prefix)]
    chosen += [("SLURM_CLUSTERS", named_clusters(config)), ("server", named_server(config))]
    return [config.SCHEDULER] + [f"{name}={value}" for name, value in chosen if value]


def named_clusters(config):
    """The clusters to which sbatch is sent, 'a,b', or '' for this one. squeue and scancel know
    neither SBATCH_CLUSTERS nor RESOURCES."""
    if config.SCHEDULER != "slurm":
        return ""
    options = dict(resource_options(config))
    return (options.get("-M") or options.get("--clusters") or options.get("--cluster")
            or os.environ.get("SBATCH_CLUSTERS") or os.environ.get("SLURM_CLUSTERS") or "")


def named_server(config):
    """The server of PBS or Torque that 'qsub -q queue@server' names, as '@server', or ''."""
    if config.SCHEDULER not in ("pbs", "torque"):
        return ""
    _, at, server = dict(resource_options(config)).get("-q", "").partition("@")
    return at + server


def commands_for(command, ids):
    """The commands that cancel or release jobs, one for each cluster that they are in."""
    by_cluster = {}
    for job_id in ids:
        number, _, cluster = job_id.partition(";")
        by_cluster.setdefault(cluster, []).append(number)
    return [[command[0], *([f"--clusters={cluster}"] if cluster else []), *command[1:], *numbers]
            for cluster, numbers in by_cluster.items()]


def cancel(scheduler, ids):
    """Cancel jobs."""
    for command in commands_for(scheduler.cancel, ids):
        run_command(command)


def shown_command(command, ids):
    """A command for jobs as a person can copy it."""
    return "; ".join(" ".join(one) for one in commands_for(command, ids))


def plain_env():
    """The environment without what would filter the jobs that Slurm's commands show or cancel."""
    return {name: value for name, value in os.environ.items()
            if not name.startswith(("SQUEUE_", "SCANCEL_"))}


def submit_env():
    """The environment for a job: the driver's, without what a scheduler has set for the driver, if
    that is a job itself, and without options of the shell that would change what scripts do."""
    foreign = "|".join(["SHELLOPTS", "BASHOPTS", "POSIXLY_CORRECT", *(
        pattern for sign, pattern in SET_FOR_A_JOB.items() if sign in os.environ)])
    return {name: value for name, value in os.environ.items()
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


# ---- the job ----

# A job's files in WORKING_DIR/jobs/, each NAME and a dot before it:
#   claim       whoever makes it decides whether the job runs: its id (JOB_SCRIPT), or GIVEN_UP
#   results     an exit status for each file that has ended, in order (wrapper.sh)
#   downloaded  its files are there: from here on each fails by itself (wrapper.sh)
#   working     the name of the file that process.sh works on (wrapper.sh)
#   status      the exit status of a job that a signal has ended (JOB_SCRIPT)
#   closed      the driver has given up on it: wrapper.sh begins no other file
#   log         what it said
# and one for all of them, `halted`: too many files fail, wrapper.sh begins no other one.

# What a job does, after a head of assignments (see job_script()). Its results are a file with a
# line for each file of the job, in order: the exit status. A job that a signal has ended leaves
# fewer lines, and its exit status in the status file.
JOB_SCRIPT = r"""
count_results() { # whole lines
  local n=0
  while read -r _; do n=$((n + 1)); done <"$job.results"
  echo $n
} 2>/dev/null
id=${SLURM_JOB_ID:-${PBS_JOBID:-$JOB_ID}}
# Slurm and Grid Engine count restarts (00 = a first start), PBS and Torque do not.
restarts=${SLURM_RESTART_COUNT:-0}${RESTARTED:-0}${PBS_JOBID:+?}
# Exactly one of job and driver creates the claim file. (An empty one comes of a full disk.)
(set -o noclobber; echo "$id" >"$job.claim") 2>/dev/null || restarts=1
[ "$(cat "$job.claim")" = "$id" ] || { [ -s "$job.claim" ]; exit; } # it fails if that is empty
for _ in {1..60}; do # the journal is empty for a moment when a run begins
  ! read -r first <"$journal" || break
  sleep 1
done
[[ $first == *"$run"* ]] || { # of another run: ours is over
  [ -z "$first" ] || rm -f "$job.claim" "$log"
  exit
}
done=$(count_results) # before the journal, where they are before the driver removes the file
if [[ $(tail -n 1 "$journal") == '{"event": "finished"'* ]]; then # accepted long after, say
  [ "$restarts" = 1 ] || rm -f "$job.claim" "$log"
  exit 0
fi
if [ "$restarts" != 00 ]; then # perhaps requeued, perhaps long after its end
  ! grep -qsE "$is_over" "$journal" || exit 0
  rm -f "$job.status" "$job.downloaded" "$job.working"
fi
[ "$done" -lt ${#names[@]} ] || exit 0
export GLOBUS_JOB=$job GLOBUS_SIZES="${sizes[*]:done}" PYTHONUTF8=1
cd "$working_dir" && bash "$wrapper" "$dir" "${names[@]:done}" </dev/null
status=$?
case $status in
  129 | 130 | 137 | 140 | 143 | 152) # wrapper.sh's, and SIGKILL: does the job begin again?
    for _ in {1..60}; do # the disk may be full for a while
      echo $status >"$job.new" && mv "$job.new" "$job.status" && break
      sleep 5
    done ;;
  *) # a wrapper.sh that ended early, or one from before FILES_PER_JOB
    missing=$((${#names[@]} - $(count_results)))
    [ $missing = 0 ] || ! grep -qsE "$is_over" "$journal" || missing=0 # the driver has them
    # A success without a result is an old wrapper.sh's; or BASH_ENV has exited.
    [ $status != 0 ] || [ $missing = 0 ] || ! grep -qs GLOBUS_JOB "$wrapper" || status=1
    for ((; missing > 0; missing--)); do
      until echo $status >>"$job.results"; do sleep 5; done
    done ;;
esac
[ $status = 0 ] # not the status itself: to some schedulers 99 and 100 have a meaning
"""


def job_script(driver, name, job):
    """The job: a head of assignments, then JOB_SCRIPT."""
    config, last = driver.config, len(job.files) - 1
    head = {
        "job": os.path.join(driver.folder, name), "log": driver.file_of(name, "log"),
        "journal": driver.journal.path, "run": f'"run": "{driver.state.run}"',
        "is_over": f'"(closed", "job": "{name}"|result", "job": "{name}", "i": {last},)',
        "working_dir": config.WORKING_DIR, "wrapper": os.path.join(HERE, "wrapper.sh"),
        "dir": config.PATH}
    exports = {
        "PYTHON": sys.executable, "GLOBUS_DESTINATION": config.DESTINATION_ENDPOINT_ID,
        "GLOBUS_DOWNLOAD_DIR": config.DOWNLOAD_DIR,
        "GLOBUS_DESTINATION_PATH": config.DESTINATION_PATH,
        "GLOBUS_DOWNLOAD_BY": "driver" if job.is_downloaded else "job"}
    lines = [f"{key}={shlex.quote(value)}" for key, value in head.items()]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in exports.items()]
    lines.append(f"names=({' '.join(shlex.quote(path) for path, _ in job.files)})")
    lines.append(f"sizes=({' '.join(str(size) for _, size in job.files)})")
    log = driver.scheduler.log.format(log=shlex.quote(driver.file_of(name, "log")))
    # Before the scheduler's own lines: Grid Engine's mere suspensions are to be ignored.
    traps = "#!/bin/bash\ntrap : HUP INT TERM XCPU USR1 USR2\n"
    return traps + log + "\n".join(lines) + JOB_SCRIPT


def submit_command(scheduler, config, log, job_name):
    """The command that submits a job of this name."""
    # In the log's name a % would be one of Slurm's patterns, unless there is a \\ to mark it.
    log = log.replace("\\", "\\\\") if "\\" in log else log.replace("%", "%%")
    command = []
    for word in scheduler.submit:
        command += (shlex.split(config.RESOURCES) if word == "RESOURCES" else
                    [word.format(log=log, name=job_name)])
    return command


# ---- the journal and the state: what survives a kill ----


class Journal:
    """The events of a run, a JSON object a line. Write-ahead: each is durable before it takes
    effect. Knows nothing of what they mean."""

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
            with open(self.path + ".new", "wb"):
                pass
            os.replace(self.path + ".new", self.path)
        self.file = open(self.path, "ab", buffering=0)
        self.length = os.fstat(self.file.fileno()).st_size

    def append(self, events):
        """Write events down to the disk. Raises UserError if somebody else writes there, too.
        Their keys stay in order: JOB_SCRIPT looks for 'event', 'job' and 'i' at the beginning."""
        lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
        try:
            if os.fstat(self.file.fileno()).st_size != self.length:  # a lock of this host only
                raise helper.UserError(f"Another driver writes to {self.path}. This one stops.")
            if self.file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.file.fileno())
        except OSError as error:  # what is in the file now, the next start finds out
            raise helper.UserError(f"{error.strerror}: {self.path}\nFix that, and start this "
                                   "script again; it continues where it stopped.")
        self.length += len(lines)


class Job:
    """Files that travel together: first, where the driver downloads, in a transfer task, then in
    the scheduler."""

    def __init__(self, files):
        self.files = files  # [path, bytes] each
        self.done = 0  # so many of them have a result
        self.step = "transfer"  # then "arrived", then "submitted"
        self.submission_id = None  # of the driver's transfer task
        self.is_downloaded = False  # by that one
        self.id = None  # the scheduler's, None until it has told
        self.is_incoming = False  # it was killed while Globus was sending its files

    def left(self):
        """The files without a result."""
        return self.files[self.done:]


class State:
    """What is known of a run; changed by apply() only, live and at a restart. A needed file is
    processed, failed, in one open job, or pending."""

    def __init__(self):
        self.run = self.source = self.queue = self.resources = self.folder = None
        self.is_accepted = False  # the scheduler has taken a job for this queue, with these options
        self.settings = {}  # of the last start
        self.number = 0  # of jobs so far
        self.jobs = {}  # name: Job, while it is open
        self.lost = {}  # name: Job, closed with files that failed with it; a result may come yet
        self.processed, self.failed = set(), {}  # paths; path: why
        self.kept = set()  # names of the closed jobs whose files in jobs/ stay

    def apply(self, event):
        """Change the state by one event of the journal."""
        kind, name = event["event"], event.get("job")
        job = self.jobs.get(name) or self.lost.get(name)
        if kind == "run":
            self.run, self.source = event["run"], event["source"]
            self.folder, self.settings = event.get("folder"), event.get("settings", {})
        elif kind == "settings":  # from here on
            self.settings = event["settings"]
        elif kind == "queue":  # where jobs go from here on
            self.queue, self.resources = event["queue"], event.get("resources")
            self.is_accepted = False
        elif kind == "download":  # about to be asked of Globus
            job = self.open(name, event["files"])
            job.submission_id = event["submission_id"]
        elif kind == "arrived":
            job.step, job.is_downloaded = "arrived", True
            self.failed.update(event["failed"])
            job.files = event["files"]  # what is neither among them nor failed is pending again
            if not job.files:
                del self.jobs[name]
        elif kind == "submit":  # about to be submitted
            job = job or self.open(name, event["files"])
            job.step = "submitted"
        elif kind == "queued":  # accepted by the scheduler
            job.id, self.is_accepted = event["id"], True
        elif kind == "result":
            self.add_result(name, job, event["i"], event["reason"])
        elif kind == "closed":  # it will never work again
            self.close(name, event)

    def open(self, name, files):
        self.number += 1
        self.jobs[name] = Job(files)
        return self.jobs[name]

    def add_result(self, name, job, i, reason):
        """File i of a job is processed, or has failed for a reason."""
        path = job.files[i][0]
        if reason is None:
            self.processed.add(path)
            self.failed.pop(path, None)
        else:
            self.failed[path] = reason
            self.kept.add(name)
        job.done = max(job.done, i + 1)
        if job.done == len(job.files):
            self.jobs.pop(name, None)

    def close(self, name, event):
        """A job ends early: some of its files have failed, the rest is pending again; or, of a job
        that never began and whose files have arrived, in its heir."""
        job = self.jobs.pop(name)
        self.kept.add(name)
        self.failed.update(event["failed"])
        if event["failed"]:
            self.lost[name] = job
        if event.get("in_transfer"):
            job.is_incoming = True
        if event.get("heir"):
            heir = self.open(event["heir"], job.left())
            heir.step, heir.is_downloaded = "arrived", True

    def has_left_anything(self):
        """True if a next start has something to resume."""
        return bool(self.jobs or self.processed or self.failed)

    def known(self):
        """Paths of all files that are not pending."""
        return {path for job in self.jobs.values() for path, _ in job.left()}.union(
            self.processed, self.failed)


# ---- the driver: what lives as long as the process ----


class Driver:
    """Keeps the jobs coming. The journal has what must survive; here are timers, what is pending,
    and what the person knows already. Its methods are the loop, and all that changes the journal;
    the functions below prepare, ask and tell."""

    def __init__(self, config, scheduler, client):
        self.config, self.scheduler, self.client = config, scheduler, client
        self.folder = os.path.join(config.WORKING_DIR, "jobs")
        self.state = State()
        self.journal = Journal(os.path.join(self.folder, "journal.jsonl"))
        self.pending = collections.deque()  # Files
        self.previous = None  # source of the last run, if another one begins
        self.earlier = {}  # path: line of failed.txt, of files that have not been tried since
        self.not_needed = self.beyond_limit = 0
        self.refused = []  # path and why, of what is listed but cannot be downloaded
        self.leftover_bytes = {}  # path: bytes in DOWNLOAD_DIR that no job of ours will delete
        self.adopted = set()  # names of jobs from before a restart that the queue has not shown
        self.missing_since = {}  # job name: since when the queue does not list it
        self.submit_limit = config.NUM_JOBS  # what the scheduler takes; fewer after a refusal
        self.failures_in_a_row = []  # their reasons
        self.has_succeeded = False  # a file, since this start
        self.stopping = self.is_listing = False
        self.vain_polls, self.submit_words = 0, ""  # before the first acceptance
        self.next_poll = self.next_look = 0
        self.waiting_since = None  # since when no job of the queue is running
        self.login_suspect, self.next_check = False, 0
        self.told = {}  # what the person knows already, by topic
        self.begun = time.monotonic()
        self.ends = collections.deque(maxlen=config.NUM_JOBS)  # when the last jobs ended
        self.last_end, self.pace_from = self.begun, (self.begun, 0)  # time, files ended by then
        self.downloads, self.next_id = {}, None  # name: Future of a pack in transfer

    def file_of(self, job_name, kind):
        """Path of a job's file: 'log', 'claim', 'results', 'status' ('new' while it is written; see
        JOB_SCRIPT), 'downloaded', 'working' or 'closed' (see wrapper.sh)."""
        return os.path.join(self.folder, f"{job_name}.{kind}")

    def append(self, *events):
        """Write events to the journal; then they have happened."""
        self.journal.append(events)
        for event in events:
            self.state.apply(event)

    @property
    def is_halted(self):
        """True once so many files have failed in a row that the next ones would fail, too."""
        most = self.config.MAX_FAILURES_IN_A_ROW
        return most is not None and len(self.failures_in_a_row) >= most

    def submitted(self):
        """{name: Job} of the jobs that are in the scheduler's hands."""
        return {name: job for name, job in self.state.jobs.items() if job.step == "submitted"}

    def new_name(self):
        return f"{self.state.run}-{self.state.number + 1}"

    def fill_slots(self):
        """Submit jobs while there are free places."""
        while self.has_slot():
            name = next((name for name, job in self.state.jobs.items() if job.step == "arrived"),
                        None)
            if name:
                self.submit(name, None)
                continue
            if self.config.DOWNLOAD_BY == "driver" or not self.pending:
                return
            pack = take_pack(self, self.config.NUM_JOBS - len(self.submitted()))
            if not pack:
                return
            self.submit(self.new_name(), [[file.path, file.size] for file in pack])

    def has_slot(self):
        """True if the scheduler may get one more job."""
        if self.stopping or self.is_halted:
            return False
        now = time.monotonic()
        leaving = sum(now - end < self.scheduler.linger_seconds for end in self.ends)
        limit = min(self.config.NUM_JOBS, self.submit_limit)
        return len(self.submitted()) + leaving < limit

    def submit(self, name, files):
        """Submit a job of these files; None: its files have arrived. Raises UserError, in the
        scheduler's words, if that can never work."""
        self.append({"event": "submit", "job": name, "files": files})
        job = self.state.jobs[name]
        forget_leftovers(self, job.files)
        command = submit_command(self.scheduler, self.config, self.file_of(name, "log"), name)
        try:
            # A file: it gets the whole script even if this driver is killed meanwhile.
            with tempfile.TemporaryFile(dir=self.folder) as script:
                script.write(os.fsencode(job_script(self, name, job)))
                script.seek(0)
                status, output, errors = run_command(command, script, SUBMIT_SECONDS, submit_env())
        except OSError:  # a full disk: nothing was submitted
            self.submit_limit = len(self.submitted()) - 1  # without it; until the next poll
            if self.revoke(name):
                self.take_back(name, "its script could not be written")
            raise
        job_id = read_job_id(self.scheduler.id, output) if status == 0 else None
        if job_id:
            self.append({"event": "queued", "job": name, "id": job_id})
            what = (job.files[0][0] if len(job.files) == 1 else
                    helper.plural(len(job.files), "file"))
            tell_event(f"submitted {what} (job {job_id})")
            if len(self.submitted()) == self.config.NUM_JOBS:
                self.told.pop("submit", None)
        else:
            self.handle_submit_failure(name, command, status, output, errors)
            if status != 0:
                self.submit_limit = len(self.submitted())  # until the queue answers, or a job ends

    def handle_submit_failure(self, name, command, status, output, errors):
        """What follows from a submission that gave no id: look for the job, wait, or give up."""
        words = self.submit_words = both_ends(output + "\n" + errors)
        # A banner on stdout decides nothing.
        said = without_values(errors if errors.strip() else output, self.config.RESOURCES)
        is_outage = UNSURE.search(said) and not (
            NO_SERVER.search(said) and named_server(self.config))
        # No exit status: it was not over in time; 0: without an id; below 0: it was killed.
        if status is None or status <= 0 or is_outage or not self.revoke(name):
            # It may have been accepted all the same: the next answer of the queue tells.
            self.tell_once("submit", "It is not clear whether the scheduler accepted a job: "
                           f"{words}\nLooking for it in the queue.")
            return
        self.take_back(name, words)
        is_limit = LIMIT.search(said)
        if is_limit:
            self.remove_job_files(name)  # for sure not accepted; else the claim keeps it out
        if not (is_limit or self.state.is_accepted or "limit" in said and self.submitted()):
            raise helper.UserError(
                f"The scheduler refuses the job: {words}\n"
                f"The command was: {' '.join(map(shlex.quote, command))}\n"
                "Fix RESOURCES in config.py, to fit the limits of its queue or partition,"
                "\nand start again; nothing is lost.")
        self.tell_once("submit", f"The scheduler accepts no more jobs for now: {words}\nTrying "
                       f"again every {self.config.POLL_SECONDS:g} s, and when a job has ended.")

    def revoke(self, name):
        """Keep a job from beginning, if that is not done; False if it has begun. Exactly one of job
        and driver creates the claim file."""
        path = self.file_of(name, "claim")
        try:
            file = open(path, "x")
        except FileExistsError:
            return read(path) == GIVEN_UP
        try:
            with file:
                file.write(GIVEN_UP)
        except OSError:  # a full disk: an empty claim would be nobody's
            os.remove(path)
            raise
        return True

    def take_back(self, name, why):
        """A job that never began, and never will: its files are the next ones."""
        job = self.state.jobs[name]
        heir = self.new_name() if job.is_downloaded else None
        self.append({"event": "closed", "job": name, "why": why, "failed": {}, "heir": heir})
        if not heir:
            self.put_back(job.left())

    def put_back(self, files):
        """Files that are pending again."""
        self.pending.extendleft(helper.File(path, size, None, None)
                                for path, size in reversed(files))
        for path, _ in files:
            note_leftover(self, path)

    def collect_results(self):
        """Take in what jobs have reported; how many jobs have ended."""
        before, there = len(self.state.jobs), set(os.listdir(self.folder))
        for name in self.submitted():
            if name + ".results" in there:
                self.read_results(name)
        return before - len(self.state.jobs)

    def read_results(self, name):
        """Take in the results of one job that are new. Only whole lines count."""
        job = self.state.jobs.get(name) or self.state.lost[name]
        lines = (read(self.file_of(name, "results")) or "").split("\n")[:-1]
        events = []
        for i, line in list(enumerate(lines[:len(job.files)]))[job.done:]:
            status, path = int(line) if line.strip().isdigit() else 255, job.files[i][0]
            # A file of a lost job has failed already, unless it went well after all.
            if name in self.state.jobs or (status == 0 and path in self.state.failed):
                reason = f"exit status {status}" + words_on(self, name, path) if status else None
                events.append({"event": "result", "job": name, "i": i, "status": status,
                               "reason": reason})
        if not events:
            return
        self.append(*events)
        self.last_end = time.monotonic()
        for event in events:
            path, reason = job.files[event["i"]][0], event["reason"]
            if reason:
                self.login_suspect |= event["status"] == 1
                self.tell_failures({path: reason})
                continue
            self.has_succeeded = True
            if not self.is_halted:
                self.failures_in_a_row.clear()
            tell_event("processed " + path)
            note_leftover(self, path)  # a wrapper.sh of the user's may keep it
        if job.done == len(job.files):
            self.job_ended(name)

    def read_lost_results(self):
        """Jobs that were lost may have worked on after all."""
        for name in self.state.lost:
            self.read_results(name)

    def job_ended(self, name):
        """A place is free."""
        self.ends.append(time.monotonic())
        self.missing_since.pop(name, None)
        self.waiting_since = None
        if name not in self.state.kept:
            self.remove_job_files(name)

    def tell_failures(self, failed):
        """Tell of files that have just failed, {path: why}, and count them; those with a common
        cause, such as the end of their job, as one."""
        causes = set()
        for path, reason in failed.items():
            helper.log(f"FAILED {path}: {reason}")
            causes.add(cause_of(path, reason))
            note_leftover(self, path)
        self.failures_in_a_row += causes

    def remove_job_files(self, name):
        """Remove the files of a job that went well."""
        for kind in ("log", "results", "status", "new", "downloaded", "working", "closed", "claim"):
            with contextlib.suppress(OSError):
                os.remove(self.file_of(name, kind))

    def poll(self):
        """Find out which jobs are in the queue, and which are gone."""
        entries = query_queue(self)
        self.collect_results()  # what ended meanwhile
        self.read_lost_results()
        if entries is None:
            return
        gone, is_vain = {}, False
        for name, job in self.submitted().items():
            entry = entries.get(name)
            if name in self.adopted and read(self.file_of(name, "claim")) == GIVEN_UP:
                self.take_back(name, "given up")  # by a driver that was killed at that
                continue
            if entry and entry.id and job.id is None:
                self.append({"event": "queued", "job": name, "id": entry.id})
            if entry and entry.state != "ended":
                self.missing_since.pop(name, None)
                self.adopted.discard(name)
            elif job.id is None and self.revoke(name):
                self.take_back(name, "it never came to the queue")
                is_vain = not self.state.is_accepted
            else:
                gone[name] = self.why_gone(name, entry)
        gone = {name: why for name, why in gone.items() if why}
        jobs = [self.state.jobs[name] for name in gone]
        cancel(self.scheduler, [job.id for job in jobs if job.id])  # the queue may be wrong
        for name, why in gone.items():
            self.close(name, why)
        self.vain_polls += is_vain
        if self.vain_polls == VAIN_POLLS:
            raise helper.UserError(
                f"The scheduler has accepted no job so far, in {VAIN_POLLS} tries: "
                f"{self.submit_words}\nFix that, and start this script again; nothing is lost.")
        self.submit_limit = self.config.NUM_JOBS
        cancel_given_up(self, entries)
        ours = [entries[name] for name in self.submitted() if name in entries]
        report_held(self, ours)
        report_waiting(self, ours)

    def why_gone(self, name, entry):
        """Why a job that the queue does not show, or shows as ended, will not report any more; None
        while it may."""
        status, now = read(self.file_of(name, "status")), time.monotonic()
        words = f"the scheduler says {entry.reason}" if entry else "it is not in the queue any more"
        if status:  # a signal has ended it, and the scheduler does not begin it again
            return f"exit status {status.strip()}"
        since = self.missing_since.setdefault(name, now)
        if entry and since < now and self.revoke(name):
            return words  # and it never began
        if now - since >= self.config.GRACE_SECONDS:
            return "the job was lost: no exit status, and " + words
        return None

    def close(self, name, why):
        """A job has ended, or is gone, without a result for each file. What was at work has failed,
        the rest is pending again:

        it has not begun              all, or it might be submitted for ever; but none if it comes
                                      from before a restart: it may have been cancelled with care
        it has begun to download      all, because Globus may still be sending them
        it has downloaded             the file that wrapper.sh has named in `working`, if any

        Its wrapper.sh, if it lives after all, begins no other file."""
        job = self.state.jobs[name]
        with open(self.file_of(name, "closed"), "w"):
            pass
        # An empty claim: its writer was killed, or had a full disk, and does nothing.
        has_begun = not self.revoke(name) and read(self.file_of(name, "claim")) != ""
        self.read_results(name)
        if name not in self.state.jobs:
            return
        if not has_begun:
            why = (f"the job never started: {why}. Can the compute nodes see, and write, "
                   f"{self.config.WORKING_DIR}? Does a start-up file of your shell exit?")
        is_downloaded = job.is_downloaded or os.path.exists(self.file_of(name, "downloaded"))
        at_work = job.left()
        if not has_begun and name in self.adopted:
            at_work = []
        elif has_begun and is_downloaded:
            working = read(self.file_of(name, "working")) or ""
            at_work = [file for file in at_work[:1] if working == file[0] + "\n"]
        rest = job.left()[len(at_work):]
        failed = {path: why + words_on(self, name, path) for path, _ in at_work}
        self.append({"event": "closed", "job": name, "why": why, "failed": failed,
                     "in_transfer": has_begun and not is_downloaded})
        self.put_back(rest)
        self.tell_failures(failed)
        if has_begun and not is_downloaded:
            for path, size in at_work:
                note_leftover(self, path, size)
        self.job_ended(name)

    def tell_once(self, topic, text, gist=None):
        """Say it, unless its gist (the text, as a rule) is what was said last on this topic."""
        if self.told.get(topic) != (gist or text):
            self.told[topic] = gist or text
            helper.log(text)

    def count_failed(self):
        """How many of the files that were listed failed, or were refused."""
        return len(self.state.failed) + len(self.refused)

    def main_loop(self):
        """Keep the jobs coming until all files are done, or until stopped."""
        state = self.state
        self.begun = time.monotonic()
        self.pace_from = self.begun, len(state.processed) + self.count_failed()
        pauses = helper.backoff(0.05, 0.5, 1.05)  # seconds; short again when something has ended
        while not self.stopping and (self.submitted() if self.is_halted else
                                     self.pending or state.jobs):
            if self.login_suspect and time.monotonic() >= self.next_check:
                check_login(self)
            if self.step():
                pauses = helper.backoff(0.05, 0.5, 1.05)
            show_progress(self)
            time.sleep(next(pauses))
        self.read_lost_results()

    def step(self):
        """Take in what has happened, and submit jobs; how many have ended. A disk that is out of
        order for a moment is told, and tried again."""
        try:
            ended = self.collect_results()
            if time.monotonic() >= self.next_poll:
                self.poll()
                report_stall(self)
            halted = os.path.join(self.folder, "halted")
            if self.is_halted and not os.path.exists(halted):
                with open(halted, "w"):
                    pass  # for wrapper.sh: the jobs end after their file in process.sh
            self.fill_slots()  # first: trouble with downloads is not to hold up what has arrived
            if not self.is_listing:
                keep_downloading(self)
            self.told.pop("disk", None)
            return ended
        except FileNotFoundError:  # jobs/ was removed
            raise
        except OSError as error:
            place = error.filename or self.folder
            self.tell_once("disk", f"Waiting: {error.strerror or error}: {place}. Trying again.")
            return 0


# ---- packs ----


def take_pack(driver, free):
    """The next files for a job, when so many places are free; [] if none fits for now. Guided
    self-scheduling: packs get smaller as fewer files are left, so that no place idles while
    another one has a long pack before it."""
    index = first_that_fits(driver, itertools.islice(driver.pending, 1000))  # it is asked often
    if index is None:
        if driver.state.jobs or driver.is_listing or time.monotonic() < driver.next_look:
            return []
        measure_leftovers(driver)
        index = first_that_fits(driver, driver.pending)
        if index is None:
            tell_no_room(driver)
            return []
    share = -(-len(driver.pending) // driver.config.NUM_JOBS)
    # Yet no pack is over at once: a transfer task takes seconds, however little it brings.
    least = int(LEAST_SECONDS / seconds_per_file(driver) / driver.config.NUM_JOBS)
    most = min(driver.config.FILES_PER_JOB, max(share, least))
    if not driver.has_succeeded and driver.config.MAX_FAILURES_IN_A_ROW:  # no more at stake
        most = min(most, max(1, driver.config.MAX_FAILURES_IN_A_ROW // driver.config.NUM_JOBS))
    space, names, pack = room(driver) / free, 0, []
    driver.pending.rotate(-index)
    while driver.pending and len(pack) < most:
        file = driver.pending[0]
        space -= bytes_of(driver, file)
        names += len(os.fsencode(file.path)) + 32  # two pointers, --file, quotes
        if pack and (space < 0 or names > LONGEST_COMMAND):
            break
        pack.append(driver.pending.popleft())
    driver.pending.rotate(index)
    return pack


def seconds_per_file(driver):
    """The pace of all jobs together, so far; infinite at the beginning."""
    begun, before = driver.pace_from
    fresh = len(driver.state.processed) + driver.count_failed() - before
    is_known = fresh > 0 and driver.last_end > begun
    return (driver.last_end - begun) / fresh if is_known else float("inf")


# ---- start or resume ----


def read_journal(driver, cut=True):
    """Read the journal; True if a new run begins. Raises UserError if the interrupted one cannot
    be resumed like this. cut: see Journal.read()."""
    state = driver.state
    forget = f"To forget that run, cancel its jobs and remove the folder {driver.folder}."
    try:
        events = driver.journal.read(cut)
        first = events[0] if events else {}
        is_finished = not events or events[-1]["event"] == "finished"
        if not is_finished and first.get("version", 1) != JOURNAL_VERSION:
            raise helper.UserError(f"{driver.journal.path} is of another version of these scripts."
                                   f"\nFinish that run with them. {forget}", 2)
        has_results = any(event["event"] == "result" for event in events)
        driver.previous = first.get("source" if has_results else "previous")
        for event in [] if is_finished else events:
            state.apply(event)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise helper.UserError(f"{driver.journal.path} is damaged ({error}).\n{forget}", 2)
    if state.has_left_anything():
        refuse_copy(driver)
        refuse_another(driver)
        return False
    driver.state = State()  # nothing came of it, such as after a refusal of the first job
    return True


def refuse_copy(driver):
    """Raise UserError if the interrupted run is another folder's, of which this is a copy."""
    folder, here = driver.state.folder, helper.jobs_folder(driver.config)
    if folder in (None, here) or os.path.exists(folder) and os.path.samefile(folder, here):
        return
    paths, mark = [driver.folder], os.path.join(driver.config.DOWNLOAD_DIR, helper.MARK)
    is_copied = driver.state.settings.get("DOWNLOAD_DIR") != driver.config.DOWNLOAD_DIR
    if is_copied and os.path.islink(mark):
        paths.append(mark)
    raise helper.UserError(
        f"The interrupted run here is that of {os.path.dirname(folder)}, copied or moved.\n"
        "Its jobs work there. Resume it there, or start again here, after:\n"
        f"rm -r {' '.join(map(shlex.quote, paths))}", 2)


def refuse_another(driver):
    """Raise UserError if the interrupted run is from another source, or has jobs in another
    queue, where they would not be found."""
    state, queue = driver.state, which_queue(driver.config)
    if driver.submitted() and state.queue not in (None, queue):
        text = (f"The interrupted run has jobs in the queue of {' '.join(state.queue)}, but this is"
                f" {' '.join(queue)}.\nStart it as before")
    elif changed_settings(driver, "DOWNLOAD_DIR") and any(
            job.step != "submitted" or job.is_downloaded for job in state.jobs.values()):
        text = (f"Files of the interrupted run are downloaded already.\n"
                f"{changed_settings(driver)}.\nFinish it with those settings first")
    elif not is_source(driver.config, state.source):
        text = (f"There is an interrupted run here: {state.source[1]} of collection "
                f"{state.source[0]}.\n{changed_settings(driver)}.\n"
                "Finish it with those settings first")
    else:
        return
    ids = job_ids(driver)
    jobs = f":\n{shown_command(driver.scheduler.cancel, ids)}\n" if ids else " "
    raise helper.UserError(f"{text}; or, to forget it, cancel its jobs{jobs}and remove the folder "
                           f"{driver.folder}", 2)


def is_source(config, source):
    """True if a run was from this collection and directory."""
    return (config.SOURCE_ENDPOINT_ID == source[0]
            and config.PATH.rstrip("/") == source[1].rstrip("/"))


def job_ids(driver):
    """The scheduler's ids of the open jobs, as far as it has told them."""
    return [job.id for job in driver.state.jobs.values() if job.id]


def changed_settings(driver, wanted=""):
    """'It had PATH = '/a', not '/b'; ...', or nothing; of one setting, or of all."""
    was = driver.state.settings
    changes = [f"{name} = {was[name]!r}, not {now!r}" for name, now in
               helper.settings_of(driver.config).items()
               if was.get(name, now) != now and wanted in ("", name)]
    return "It had " + "; ".join(changes) if changes else ""


def tell_interrupted(driver):
    """Say that an interrupted run is resumed, and what has changed since."""
    state, ids, changes = driver.state, job_ids(driver), changed_settings(driver)
    moving = sum(job.step == "transfer" for job in state.jobs.values())
    text = (f"Resuming the interrupted run: {len(state.processed):,} processed, "
            f"{len(state.failed):,} failed, {helper.plural(len(state.jobs) - moving, 'job')}")
    text += f" ({' '.join(ids)})" if ids else ""
    text += f", {helper.plural(moving, 'transfer')}." if moving else "."
    text += f"\n{changes}; submitted jobs keep that." if changes else ""
    helper.log(text)


def open_journal(driver, is_new):
    """Resume the interrupted run, or begin a new one."""
    config, state = driver.config, driver.state
    driver.journal.open(is_new)
    if is_new:
        # A letter and six more: with the number they fit the 15 characters of old servers.
        driver.append({"event": "run", "run": "g" + secrets.token_hex(3),
                       "source": [config.SOURCE_ENDPOINT_ID, config.PATH],
                       "version": JOURNAL_VERSION,
                       "previous": driver.previous, "settings": helper.settings_of(config),
                       "folder": helper.jobs_folder(config)})
    queue = which_queue(config)
    if [state.queue, state.resources] != [queue, config.RESOURCES]:
        driver.append({"event": "queue", "queue": queue, "resources": config.RESOURCES})
    if not is_new:
        tell_interrupted(driver)
        driver.adopted = set(driver.submitted())
        if changed_settings(driver):
            driver.append({"event": "settings", "settings": helper.settings_of(config)})


def clean_jobs_folder(driver):
    """Remove what jobs of runs that are over, or of a driver that was killed, left in jobs/, but
    the logs that failed.txt names. What a failed job of this run left keeps a late one out."""
    failed = read(driver.file_of("failed", "txt")) or ""
    for entry in os.listdir(driver.folder):
        name, _, kind = entry.partition(".")
        is_needed_yet = name in driver.state.jobs or name in driver.state.kept or (
            kind == "log" and entry in failed)
        if re.fullmatch(r"g[0-9a-f]{6}-\d+", name) and not is_needed_yet:
            helper.remove_if_there(os.path.join(driver.folder, entry))


def take_folder(driver):
    """Mark DOWNLOAD_DIR as this batch's. Raises UserError if something else uses it."""
    helper.mark_folder(driver.config)
    if driver.state.number:  # it has been ours
        return
    task_id = helper.find_download(driver.client, driver.config, "download")
    if task_id:
        raise helper.UserError(
            "A task of globus-simple-download.py still downloads into DOWNLOAD_DIR = "
            f"{driver.config.DOWNLOAD_DIR}.\nWait for its end, or cancel it: "
            f"https://app.globus.org/activity/{task_id}", 2)


# ---- MAX_BYTES ----


def room(driver):
    """Bytes that MAX_BYTES leaves, beside what is in flight and what was left behind."""
    if driver.config.MAX_BYTES is None:
        return float("inf")
    return driver.config.MAX_BYTES - sum(driver.leftover_bytes.values()) - sum(
        size for job in driver.state.jobs.values() for _, size in job.left())


def bytes_of(driver, file):
    """What a file takes beside what is there of it already."""
    return file.size - driver.leftover_bytes.get(file.path, 0)


def first_that_fits(driver, files):
    """Index of the first of the files that fits into MAX_BYTES; None if there is none."""
    left = room(driver)
    return next((index for index, file in enumerate(files) if bytes_of(driver, file) <= left),
                None)


def tell_no_room(driver):
    """Nothing is in flight, and still no file fits. Raises UserError if nothing will change it."""
    coming = sum(len(job.left()) for job in driver.state.lost.values() if job.is_incoming)
    if not coming:
        raise helper.UserError(
            f"What is in {driver.config.DOWNLOAD_DIR} leaves no room for another file within "
            "MAX_BYTES.\nRemove files there, or raise MAX_BYTES, and start again.")
    driver.tell_once("coming", "Waiting: transfer tasks of jobs that were killed still bring "
                     f"{helper.plural(coming, 'file')}, and MAX_BYTES leaves no room for more.\n"
                     "They can be cancelled on https://app.globus.org/activity")
    driver.next_look = time.monotonic() + driver.config.POLL_SECONDS


def measure_leftovers(driver):
    """Count what failures, and earlier runs, left in DOWNLOAD_DIR, if there is a limit; and
    what the tasks of jobs that were killed still bring."""
    config = driver.config
    if config.MAX_BYTES is None:
        return
    driver.leftover_bytes.clear()
    for folder, _, names in os.walk(config.DOWNLOAD_DIR):
        for name in names:
            note_leftover(driver, os.path.relpath(os.path.join(folder, name), config.DOWNLOAD_DIR))
    incoming = [job for job in driver.state.lost.values() if job.is_incoming]
    is_coming = incoming and helper.find_download(driver.client, config, "batch download")
    for job in incoming:
        job.is_incoming = bool(is_coming)  # else its task has ended
        for path, size in job.left() if job.is_incoming else []:
            note_leftover(driver, path, size)
    for job in driver.state.jobs.values():
        forget_leftovers(driver, job.left())


def note_leftover(driver, path, coming=0):
    """Count what a failure left in DOWNLOAD_DIR, or the bytes that may still be coming; only if
    there is a limit."""
    if driver.config.MAX_BYTES is None:
        return
    size = helper.size_of(os.path.join(driver.config.DOWNLOAD_DIR, path))
    driver.leftover_bytes[path] = max(size or 0, coming)


def forget_leftovers(driver, files):
    """What is there of files that are on their way counts with their job."""
    for path, _ in files:
        driver.leftover_bytes.pop(path, None)


# ---- the driver downloads ----


def keep_downloading(driver):
    """Begin downloads, and take in those that have ended; never waits."""
    for name, job in list(driver.state.jobs.items()):
        if job.step == "transfer" and name not in driver.downloads:  # a stopped driver's
            driver.downloads[name] = beside(download_pack, driver, job, True)
    for name in [name for name, download in driver.downloads.items() if download.done()]:
        take_arrivals(driver, name, driver.downloads.pop(name))
    while may_download(driver):
        driver.next_id, future = None, driver.next_id or beside(
            helper.submission_id, driver.client)
        submission_id = future.done() and result_of(future)
        ahead = sum(job.step != "submitted" for job in driver.state.jobs.values())
        pack = submission_id and take_pack(driver, 2 * driver.config.NUM_JOBS - ahead)
        if not pack:
            driver.next_id = future
            return
        name, files = driver.new_name(), [[file.path, file.size] for file in pack]
        driver.append({"event": "download", "job": name, "files": files,
                       "submission_id": submission_id})
        forget_leftovers(driver, files)
        driver.downloads[name] = beside(download_pack, driver, driver.state.jobs[name], False)
        tell_event(f"downloading {helper.plural(len(files), 'file')}")


def may_download(driver):
    """True if one more pack may be asked for."""
    steps = [job.step for job in driver.state.jobs.values()]
    return (driver.config.DOWNLOAD_BY == "driver" and driver.pending and not driver.stopping
            and not driver.is_halted and steps.count("transfer") < TASKS_AT_WORK
            and len(steps) - steps.count("submitted") < 2 * driver.config.NUM_JOBS)


def beside(function, *arguments):
    """A Future of what a function returns, or raises, in a thread, which ends with this process.
    Such threads change nothing here: what has begun is in the journal."""
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # it is raised where the result is wanted
            future.set_exception(error)
        finally:
            helper.log.waiting.pop(threading.get_ident(), None)

    try:
        threading.Thread(target=run, daemon=True, name=helper.DOWNLOAD).start()
    except RuntimeError as error:  # a limit of the login node: step() tries again
        raise OSError(errno.EAGAIN, str(error))
    return future


def result_of(future):
    """What a Future has. Raises UserError if a login is what helps."""
    try:
        return future.result()
    except helper.GlobusAPIError as error:
        if helper.reauth_reason(error):
            raise login_wanted(error)
        raise


def download_pack(driver, job, is_resumed):
    """Download the files of a job: {path: why} of those that have not arrived, and the paths of
    those that its task has not come to. With its submission id it may be begun again; then its
    task tells what became of each file, not what is on the source collection by now."""
    client, config = driver.client, driver.config
    files, failed = [helper.File(path, size, None, None) for path, size in job.files], {}
    if not is_resumed:
        files, failed = helper.find_files(client, config, config.PATH, dict(map(tuple, job.files)))
    if files:
        missing, rest = helper.transfer_files(client, config, config.PATH, files,
                                              job.submission_id, is_resumed)
        rest = {file.path for file in rest}
        failed.update((path, why) for path, why in missing.items() if path not in rest)
        return failed, rest
    return failed, set()


def take_arrivals(driver, name, download):
    """A download has ended: its job may be submitted."""
    job, unsure = driver.state.jobs[name], []
    try:
        failed, rest = result_of(download)
    except helper.GlobusAPIError as error:
        unsure = job.files  # its task may not have been cancelled
        failed, rest = {path: helper.describe_error(error) for path, _ in job.files}, set()
        driver.client.transport.http_timeout = HTTP_TIMEOUT  # cancelling has shortened it
    back = [file for file in job.files if file[0] in rest]
    files = [file for file in job.files if file[0] not in failed and file[0] not in rest]
    driver.append({"event": "arrived", "job": name, "files": files, "failed": failed})
    driver.put_back(back)
    for path, why in failed.items():  # each counts: the next pack may have as many
        driver.tell_failures({path: why})
    for path, size in unsure:
        note_leftover(driver, path, size)


# ---- the queue ----


def query_queue(driver):
    """{job name: QueueEntry}, or None if the scheduler gave no answer that can be understood."""
    config, scheduler = driver.config, driver.scheduler
    driver.next_poll = time.monotonic() + config.POLL_SECONDS
    command, env = scheduler.queue + [named_server(config)], plain_env()
    # The clusters of Slurm in which jobs may be, by name; none where it has but one.
    clusters = named_clusters(config).split(",")
    clusters += [job_id.partition(";")[2] for job_id in job_ids(driver)]
    clusters = sorted({name.strip() for name in clusters} - {""})
    if clusters:
        env["SLURM_CLUSTERS"] = ",".join(clusters)
    status, output, errors = run_command(list(filter(None, command)), env=env)
    entries = None
    if status == 0:
        with contextlib.suppress(ValueError):
            entries = scheduler.parse_queue(output)
    is_whole = len(clusters) < 2 or all(f"CLUSTER: {name}\n" in output for name in clusters)
    if entries is None or not is_whole or not entries and not confirm_empty(driver, output):
        driver.tell_once("queue", f"The scheduler does not answer ({command[0]}: "
                         f"{helper.first_line(errors or output)}).\n"
                         f"Asking again every {config.POLL_SECONDS:g} s.", errors or "nonsense")
        return None
    driver.told.pop("queue", None)
    for name in driver.submitted().keys() - entries.keys():
        # On a line that cannot be read, perhaps; then it is not gone.
        if re.search(rf"(?<![\w-]){name}(?![\w-])", output):
            entries[name] = QueueEntry(None, "running", "")
    return entries


def cancel_given_up(driver, entries):
    """Cancel what the scheduler accepted after all, long after it said no; it would do nothing,
    but it has a place in the queue."""
    ids = [entry.id for name, entry in entries.items() if entry.id and entry.state != "ended"
           and name in driver.state.kept and read(driver.file_of(name, "claim")) == GIVEN_UP]
    if ids:
        cancel(driver.scheduler, ids)


def forget_claims(driver):
    """Remove the claims of jobs that were given up: the journal keeps them out, too."""
    for name in driver.state.kept:
        with contextlib.suppress(OSError):
            if read(driver.file_of(name, "claim")) == GIVEN_UP:
                os.remove(driver.file_of(name, "claim"))


def confirm_empty(driver, output):
    """True if an empty answer means an empty queue. PBS prints nothing at all when there are no
    jobs, so it is asked about one of them."""
    ids = job_ids(driver)
    if not driver.scheduler.job_info:
        return True
    if not ids:  # there is text, perhaps nonsense: what has not begun never will
        return not output.strip() or all(map(driver.revoke, driver.submitted()))
    return GONE.search(output_of(driver.scheduler.job_info + ids[:1])) is not None


# ---- telling ----


def check_login(driver):
    """After a failure: was it the login? Then all further jobs would fail as well. Raises
    UserError if a login is what helps."""
    config = driver.config
    driver.login_suspect, driver.next_check = False, time.monotonic() + config.POLL_SECONDS
    for is_sure in (False, True):  # a first error may be the old access token's
        try:
            for collection, path in ((config.SOURCE_ENDPOINT_ID, config.PATH),
                                     (config.DESTINATION_ENDPOINT_ID, config.DESTINATION_PATH)):
                driver.client.operation_stat(collection, path=helper.globus_path(path))
            return
        except helper.GlobusAPIError as error:
            if not helper.reauth_reason(error):
                return
            if is_sure:
                raise login_wanted(error)
        except (helper.NetworkError, *helper.MALFORMED, OSError):
            return


def login_wanted(error):
    """What to do about an error of Globus against which a login helps."""
    return helper.UserError(f"{helper.describe_error(error)}\nThen start this script again; it "
                            "continues with its jobs and the remaining files.")


def report_held(driver, entries):
    """Say which jobs are held, or cannot start, and what to do, when they change."""
    for state, what in (("held", "held"), ("blocked", "cannot start")):
        stuck = [entry for entry in entries if entry.state == state]
        ids = [entry.id for entry in stuck]
        if ids == driver.told.get(state, []):
            continue
        driver.told[state] = ids
        if ids:
            words = ", ".join(sorted({entry.reason for entry in stuck}))
            advice = ("To release: " + shown_command(driver.scheduler.release, ids)
                      if state == "held" else
                      "Fix the cause, often RESOURCES in config.py, and start again.")
            helper.log(f"{helper.plural(len(ids), 'job')} {what}: {words}"
                       f"{error_reason(driver.scheduler, ids[0])}\n{advice}\n"
                       "To cancel (their files then count as failed): "
                       + shown_command(driver.scheduler.cancel, ids))


def error_reason(scheduler, job_id):
    """': why Grid Engine could not start a job', or nothing."""
    text = output_of(scheduler.job_info + [job_id]) if scheduler.job_info else ""
    match = re.search(r"(?m)^error reason\s+\d+:\s+(.*)", text)
    return f": {match.group(1)}" if match else ""


def report_waiting(driver, entries):
    """Report why jobs wait, once none of them has been running for a minute."""
    if not entries or any(entry.state != "waiting" for entry in entries):
        driver.waiting_since = None
        driver.told.pop("waiting", None)
        return
    driver.waiting_since = driver.waiting_since or time.monotonic()
    if time.monotonic() - driver.waiting_since >= helper.QUIET_SECONDS:
        words = ", ".join(sorted({entry.reason for entry in entries}))
        driver.tell_once("waiting", "No job is running; the scheduler says of "
                         f"{helper.plural(len(entries), 'job')}: {words}", words)


def report_stall(driver):
    """When all downloads of jobs wait for Globus, say why, in the words of their logs."""
    lines = [last_words(driver.file_of(name, "log")) for name, job in driver.submitted().items()
             if not job.is_downloaded]
    if any(lines) and all(line.startswith("Waiting: ") for line in lines if line):
        reasons = {line[len("Waiting: "):].split("  (task ")[0] for line in lines if line}
        driver.tell_once("stall", "All downloads wait: " + "; ".join(sorted(reasons)))
    else:
        driver.told.pop("stall", None)


def show_progress(driver):
    """How far the run is: a bar with its clock on a terminal, a line now and then in a log."""
    now, ended = time.monotonic(), len(driver.state.processed) + driver.count_failed()
    total, queued = ended + count_left(driver), len(driver.submitted())
    others = len(driver.state.jobs) - queued
    text = f"{ended:,} of {helper.plural(total, 'file')}, "
    text += f"{helper.plural(queued, 'job')} in the queue"
    text += f", {helper.plural(others, 'transfer')}" if others else ""
    text += f", {driver.count_failed():,} failed" if driver.count_failed() else ""
    text += time_left(driver, ended, total, now)
    if helper.is_terminal():
        bar = "#" * (BAR * ended // total if total else BAR)
        clock = datetime.timedelta(seconds=int(now - driver.begun))
        helper.show_progress(f"{clock} [{bar:.<{BAR}}] {text}")
    else:
        helper.show_progress(text)


def count_left(driver):
    """How many files are neither processed nor failed."""
    return len(driver.pending) + sum(len(job.left()) for job in driver.state.jobs.values())


def time_left(driver, ended, total, now):
    """', ~12 min left' at the pace so far; nothing before each place had two files, at the end, or
    when all is at a standstill; then the pace begins anew."""
    topics = set(driver.told)
    is_stalled = topics & {"stall", "waiting"} or (  # or if all downloads wait
        0 < len(driver.downloads) == len(helper.log.waiting) and not driver.submitted())
    if is_stalled or "submit" in topics and not driver.state.jobs:
        driver.pace_from = now, ended
    if ended - driver.pace_from[1] < 2 * driver.config.NUM_JOBS or ended == total:
        return ""
    # The pace is known up to the last end.
    seconds = seconds_per_file(driver) * (total - ended) - (now - driver.last_end)
    return f", ~{helper.format_duration(max(seconds, 1))} left"


def print_summary(driver, is_over):
    """The failures with their logs, where everything is, and the numbers."""
    helper.show_progress("")
    config, failures = driver.config, [*driver.refused, *driver.state.failed.items()]
    print_failures(failures)
    try:
        path = write_failures(driver, failures)
    except OSError as error:  # the numbers are to be said even so
        path = f"not written ({error.strerror})"
    if failures:
        print(f"All failures: {path}\nTheir files are kept in {config.DOWNLOAD_DIR}\n"
              f"Their logs are in {driver.folder}")
        if is_over:
            print("The next start tries them again.")
    if driver.state.processed:
        print(f"Results are where process.sh writes them, in {config.WORKING_DIR}")
    print_numbers(driver, f"{len(driver.state.processed)} processed, {len(failures)} failed, "
                  f"{driver.not_needed} not needed")


def print_numbers(driver, text):
    """The last line, below what the other numbers leave out."""
    if driver.beyond_limit:
        print(f"{helper.plural(driver.beyond_limit, 'file')} left out by --limit")
    print(text, flush=True)


def cause_of(path, reason):
    """A reason without its file and log, to count equal ones."""
    reason = re.sub(r" \(/.*\)$", "", reason)
    if path not in reason:
        return reason
    return re.sub(rf"(?<!\w){re.escape(path)}(?!\w)", "FILE", reason)


def print_failures(failures):
    """The failures by cause, the most frequent first, with as many names as fit a screen."""
    groups, hidden = {}, len(failures)
    for path, reason in failures:
        groups.setdefault(cause_of(path, reason), []).append((path, reason))
    rows = max(10, shutil.get_terminal_size().lines - 10)
    largest = sorted(groups.items(), key=lambda group: len(group[1]), reverse=True)[:rows // 2]
    for cause, group in largest:
        shown = group[:max(1, rows // len(largest) - 1)]
        hidden -= len(shown)
        lines = [f"FAILED {path}: {reason}" for path, reason in shown]
        if len(group) > 1:
            logs = [re.findall(r"([^/]*\.log)\)$", reason) for _, reason in shown]
            lines = [f"FAILED {helper.plural(len(group), 'file')}: {cause}"]
            lines += ["  ".join(["", path, *log]) for (path, _), log in zip(shown, logs)]
        print(helper.escape_control_chars("\n".join(lines)))
    if hidden:
        print(f"... and {helper.plural(hidden, 'more file')}")


def write_failures(driver, failures):
    """Write all failures, path and reason, to a file, whose path is returned; also those of earlier
    runs that have not been tried since. The logs of those that have succeeded go away."""
    path = driver.file_of("failed", "txt")
    processed = set(map(helper.escape_control_chars, driver.state.processed))
    lines = {name: line for name, line in driver.earlier.items() if name not in processed}
    for failure in failures:
        name, reason = (helper.escape_control_chars(text).replace("\n", "\\n") for text in failure)
        lines[name] = f"{name}\t{reason}"
    with open(path + ".new", "w") as file:
        file.writelines(line + "\n" for line in lines.values())
    os.replace(path + ".new", path)
    clean_jobs_folder(driver)
    if not lines:
        os.remove(path)
    return path


def tell_disagreement(driver, files):
    """Say so if the filter still wants some of these that have been processed."""
    asked = [file for file in files if file.path in driver.state.processed][:MOST_ASKED_AGAIN]
    try:
        again = [file.path for file in asked if is_needed(driver.config, file)]
    except helper.UserError as problem:
        helper.log(str(problem))
        return
    if again:
        helper.log(f"is_file_needed still wants {len(again):,} of the "
                   f"{helper.plural(len(asked), 'processed file')}, such as {again[0]}.\n"
                   "The next run would process them again: does it look for what process.sh "
                   "writes?")


def print_how_to_go_on(driver):
    """What to do after a stop."""
    ids, jobs = job_ids(driver), len(driver.submitted())
    unknown = f" ({jobs - len(ids)} not yet confirmed)" if jobs > len(ids) else ""
    helper.log(f"Stopped. {helper.plural(jobs, 'job')} left in the queue{unknown}.\n"
               "Start this script again to continue.")
    if ids:
        helper.log("To cancel them: " + shown_command(driver.scheduler.cancel, ids))
    tell_transfers(driver)


def tell_transfers(driver):
    """What becomes of the driver's transfer tasks once it has ended."""
    tasks = sum(job.step == "transfer" for job in driver.state.jobs.values())
    if tasks:
        helper.log(f"{helper.plural(tasks, 'transfer task')} of this script will go on, "
                   "but jobs for their files are submitted only after the next start.\n"
                   "To cancel them: https://app.globus.org/activity")


def print_halt(driver):
    """Why no more jobs are submitted."""
    row = driver.failures_in_a_row
    reason, times = collections.Counter(row).most_common(1)[0]
    helper.log(f"Stopped, because {len(row)} files failed in a row, {times} of them with: "
               f"{reason}\nFix the cause, and start this script again; it continues with the "
               f"{helper.plural(count_left(driver), 'file')} left.\nWhen these are done, one more "
               "start tries again what has failed.")
    tell_transfers(driver)


# ---- commands, logs and clocks ----


def both_ends(text):
    """The beginning and the end of what a scheduler says, in one line, without its usage text: the
    reason may stand below a banner, or above a hint."""
    said = re.split(r"(?im)^\s*usage:", text)[0].strip() or text
    lines = [line.strip() for line in said.splitlines() if line.strip(" []")]
    lines = lines if len(lines) < 4 else [lines[0], "...", lines[-1]]
    return "; ".join(map(helper.first_line, lines)) or "(nothing)"


def without_values(text, resources):
    """What a scheduler says without the values of the user's options: a partition called unlimited
    is no limit."""
    for value in re.split("[ =,@]+", resources):
        text = text.replace(value, "") if len(value) > 2 else text
    return text


def read(path):
    """The text of a file, or None if there is none."""
    try:
        with open(path, errors="surrogateescape") as file:  # as file names are read
            return file.read()
    except FileNotFoundError:
        return None


def words_on(driver, name, path):
    """': the cause, or the last words, of a job's log on a file (the log's path)'."""
    job = driver.state.jobs.get(name) or driver.state.lost[name]
    words = last_words(driver.file_of(name, "log"), path if len(job.files) > 1 else None, CAUSE)
    log = driver.file_of(name, "log")
    return (": " + words if words else "") + (f" ({log})" if os.path.exists(log) else "")


def last_words(path, name=None, pattern=""):
    """The last line of a log that has the pattern, or else the last one; of a job with several
    files, on the file of that name."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - (2000 if name is None else 200000)))
            lines = [line for line in os.fsdecode(file.read()).splitlines()
                     if line.strip() not in ("", helper.RESUMED) and not line.startswith(HEADING)]
    except OSError:
        return ""
    if name is not None:
        lines = lines_on(name, lines)
    found = [line for line in lines if re.search(pattern, line)] or lines
    return helper.first_line(found[-1]) if found else ""


def lines_on(name, lines):
    """The lines of a log on one of several files: below its heading, from wrapper.sh; or what the
    download says of it, or of all."""
    section = []
    sections = {"": section}  # heading: lines
    for line in lines:
        if line.startswith("== "):
            section = sections[line[len("== "):]] = []
        else:
            section.append(line)
    about = [line for line in lines if line.startswith(name + ": ")]
    return sections.get(name) or about or sections[""]


def tell_event(text):
    """A line an event, where there is no bar."""
    if not helper.is_terminal():
        helper.log(text)


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
    """Sort the files that are listed, except those that the journal knows. Returns the Files to
    process, which are pending now, and those that cannot be downloaded."""
    config, known, needed, refused = driver.config, driver.state.known(), [], []
    most = float("inf") if limit is None else limit - len(known)
    lines = (read(driver.file_of("failed", "txt")) or "").split("\n")[:-1]
    driver.earlier = {line.partition("\t")[0]: line for line in lines}
    next_look = time.monotonic() + LISTING_SECONDS
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
            driver.earlier.pop(helper.escape_control_chars(file.path), None)
        elif file.refused or config.MAX_BYTES is not None and file.size > config.MAX_BYTES:
            refused.append(file)
            driver.refused.append((file.path, file.refused or "is larger than MAX_BYTES"))
        elif len(needed) < most:
            needed.append(file)
            driver.pending.append(file)
        else:
            driver.beyond_limit += 1
    helper.show_progress("")
    return needed, refused


def dry_run(driver, files, limit):
    """Print what a run would do; the exit status."""
    try:
        if not read_journal(driver, cut=False):  # a driver may be at work
            tell_interrupted(driver)
    except helper.UserError as problem:
        helper.log(f"A run would not start: {problem}")
        driver.state = State()
    needed, refused = plan(driver, files, limit)
    tell_left_out(driver, refused)
    for file in needed:
        print(f"{file.size:14,}  {helper.escape_control_chars(file.path)}")
    print_numbers(driver, f"{len(needed):,} to process, {len(refused):,} refused, "
                  f"{driver.not_needed:,} not needed")
    return 1 if refused else 0


def tell_begin(driver, files):
    """The first lines of a log: what it is about."""
    config, size = driver.config, sum(file.size for file in files)
    limit = None if config.MAX_BYTES is None else helper.format_bytes(config.MAX_BYTES)
    helper.log(
        f"{helper.plural(len(files), 'file')} to process ({helper.format_bytes(size)}), "
        f"{driver.not_needed:,} not needed, from\n"
        f"{config.PATH} on collection {config.SOURCE_ENDPOINT_ID}\n"
        f"{config.SCHEDULER}, NUM_JOBS = {config.NUM_JOBS}, FILES_PER_JOB = "
        f"{config.FILES_PER_JOB}, DOWNLOAD_BY = {config.DOWNLOAD_BY!r}\n"
        f"RESOURCES = {config.RESOURCES!r}, MAX_BYTES = {limit}")


def tell_left_out(driver, refused):
    """Say which Files cannot be downloaded (of all that are too large, the largest), and if the
    results that the filter sees may be those of another data set."""
    large = [file for file in refused if not file.refused]
    for file in refused:
        if file.refused:
            helper.log(f"Refused: {file.path!r} {file.refused}.")
    if large:
        largest = max(large, key=lambda file: file.size)
        helper.log(f"Refused: {helper.plural(len(large), 'file')} larger than MAX_BYTES, the "
                   f"largest: {largest.path!r} ({helper.format_bytes(largest.size)}).")
    if driver.not_needed and driver.previous and not is_source(driver.config, driver.previous):
        helper.log(f"The last run here was for {driver.previous[1]} of collection "
                   f"{driver.previous[0]}.\nis_file_needed skips "
                   f"{helper.plural(driver.not_needed, 'file')} of this one. If names repeat in "
                   "both,\ngive each a folder for its results, or a copy of the scripts.")


# ---- one driver at a time ----


@contextlib.contextmanager
def lock(folder):
    """Keep a second driver out. Raises UserError if there is one already."""
    owner = None
    with open(os.path.join(folder, "driver.lock"), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise helper.UserError("Another globus-batch-download.py is running in "
                                   + os.path.dirname(folder))
        except OSError as error:
            helper.log(f"No flock in {folder} ({error.strerror}); the file driver.owner there "
                       "keeps a second driver out instead.")
            owner = os.path.join(folder, "driver.owner")
            take_owner_file(owner)
        try:
            yield
        finally:
            if owner:
                helper.remove_if_there(owner)


def take_owner_file(path):
    """Make the file that names this process. Raises UserError if another one, which may be alive,
    has made it."""
    me, owner = f"{os.uname().nodename} as process ", read(path) or ""
    if owner.startswith(me) and not os.path.exists("/proc/" + owner[len(me):]):  # it was killed
        helper.remove_if_there(path)
    try:
        with open(path, "x") as file:
            file.write(me + str(os.getpid()))
        time.sleep(1)  # of two that removed a file at once, the later one's is there
        is_mine = read(path) == me + str(os.getpid())
    except FileExistsError:
        is_mine = False
    if not is_mine:
        raise helper.UserError("Another globus-batch-download.py is running here, on "
                               f"{read(path) or 'some machine'}.\nIf it no longer runs, remove "
                               f"{path}")


# ---- the whole ----


def remove_empty_folders(config, paths):
    """Remove the folders that processed files left empty in DOWNLOAD_DIR."""
    for parent in {os.path.dirname(path) for path in paths}:
        with contextlib.suppress(OSError):  # not empty, or gone
            while parent:
                os.rmdir(os.path.join(config.DOWNLOAD_DIR, parent))
                parent = os.path.dirname(parent)


def install_signal_handlers(driver):
    """At the first signal finish what is in hand; a second one is obeyed at once."""
    def stop(number, frame):
        driver.stopping = True
        signal.signal(number, signal.default_int_handler)

    for number in helper.ENDING_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def check_scripts(config):
    """Raise UserError (exit status 2) for what would make every job fail."""
    for name in ("wrapper.sh", "process.sh"):
        path = os.path.join(HERE, name)
        try:
            with open(path, encoding="utf-8", errors="replace", newline="") as file:
                script = file.read()
        except OSError as error:
            raise helper.UserError(f"{path}: {error.strerror}. Each job runs it.", 2)
        if "\r\n" in script:
            raise helper.UserError(f"{path} has Windows line endings, which bash does not "
                                   f"accept. Convert it:\nsed -i 's/\\r$//' {path}", 2)
        first = re.match(r"#! *(?:\S*/env +)?(\S+).*", script)
        if first and not shutil.which(first.group(1)):
            helper.log(f"{path} begins with {first.group()}, which is not on this machine; is it "
                       "on the compute nodes?")
        if name == "wrapper.sh" and "GLOBUS_JOB" not in script and (
                config.FILES_PER_JOB > 1 or config.DOWNLOAD_BY == "driver"):
            raise helper.UserError(f"{path} is an older version, which downloads one file "
                                   "per job. Copy your environment lines into the new one, or "
                                   "leave FILES_PER_JOB = 1 and DOWNLOAD_BY = 'job'.", 2)


def batch(driver, is_new, files, limit):
    """Run the batch, or resume it; the exit status."""
    config, state, halted = driver.config, driver.state, os.path.join(driver.folder, "halted")
    os.makedirs(config.DOWNLOAD_DIR, exist_ok=True)
    helper.log.is_timed = True
    try:
        open_journal(driver, is_new)
        clean_jobs_folder(driver)
        take_folder(driver)
        measure_leftovers(driver)
        helper.remove_if_there(halted)
        driver.is_listing = not is_new
        needed, refused = plan(driver, files, limit)
        driver.is_listing = False
        tell_begin(driver, needed)
        tell_left_out(driver, refused)
        install_signal_handlers(driver)
        driver.client.transport.http_timeout = HTTP_TIMEOUT
        driver.main_loop()
    except KeyboardInterrupt:
        driver.stopping = True
    except (helper.UserError, helper.GlobusError):
        tell_transfers(driver)
        raise
    finally:
        if not state.has_left_anything():
            helper.unmark_folder(config)
    if driver.stopping:
        print_how_to_go_on(driver)
        return 130
    if driver.pending or state.jobs:
        print_summary(driver, False)
        print_halt(driver)
        return 1
    remove_empty_folders(config, state.processed)
    helper.remove_if_there(halted)
    driver.append({"event": "finished"})
    forget_claims(driver)
    helper.unmark_folder(config)
    tell_disagreement(driver, needed)
    print_summary(driver, True)
    return 1 if driver.count_failed() else 0


def parse(argv):
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="only list what would be processed")
    parser.add_argument("--limit", metavar="N", type=int,
                        help="process at most N files, to try it out")
    options = parser.parse_args(argv)
    if options.limit is not None and options.limit < 1:
        parser.error("--limit must be at least 1")
    return options


def main(argv=None):
    """Check that all is fit to run, list, and run the batch; the exit status."""
    options = parse(argv)
    config = helper.load_config()
    if helper.copied_venv():
        helper.log(f"The environment {helper.VENV} is a copy that runs {helper.copied_venv()}. "
                   f"Create it again:\n{helper.environment_command()}")
    client = helper.transfer_client()
    scheduler = find_scheduler(config)
    check_options(config)
    helper.check_collections(client, config)
    helper.check_destination(client, config)
    driver = Driver(config, scheduler, client)
    if options.dry_run:
        return dry_run(driver, helper.list_files(client, config), options.limit)
    check_scripts(config)
    files = helper.list_files(client, config)
    helper.require_writable(config, "WORKING_DIR")
    os.makedirs(driver.folder, exist_ok=True)
    with lock(driver.folder):
        is_new = read_journal(driver)
        helper.refuse_batches(config, helper.jobs_folder(config))
        return batch(driver, is_new, files, options.limit)


if __name__ == "__main__":
    sys.exit(helper.run_main(main))
