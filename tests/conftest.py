"""The emulator, a site with the collection as a user has it, the schedulers, and what several files
of tests share."""
import fcntl
import functools
import json
import os
import pty
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
import unicodedata
import urllib.request
from collections import Counter
from pathlib import Path

import pyte
import pytest
from hypothesis import HealthCheck, Phase

# What is ignored here, such as SIGHUP under nohup and SIGINT in the background, would be ignored by
# all that the tests start; for a signal that has a handler here they begin with the default.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda *_: None)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.umask(0o022)

pytest_plugins = ["in_process"]

TESTS = Path(__file__).parent
COLLECTION = TESTS.parent
SOURCE = "6c54cade-bde5-45c1-bdea-f4bd71dba2cc"
DESTINATION = "11111111-2222-4333-8444-555555555555"
TUTORIAL = "home/share/godata"

BATCH = "globus-batch-download.py"
SIMPLE, SINGLE = "globus-simple-download.py", "globus-single-file-download.py"
LOGIN = "globus-login.py"
PATH = "/home/share/godata/"
KEEP = ('mkdir -p -- "out/$(dirname -- "$GLOBUS_NAME")"',
        'cp -- "$1" "out/$GLOBUS_NAME"',
        'printf "%s\\n" "$GLOBUS_NAME" >>processed')

# process.sh, killing the job's script above it
DIE = "touch killed; kill -KILL $PPID $$"
# The end of a job, of the stand-in for Slurm, in the middle of process.sh.
KILL = ('end() { echo "$1" >"$STAND_IN_DIR/$SLURM_JOB_ID/state"',
        'kill -KILL -- "-$(cat "$STAND_IN_DIR/$SLURM_JOB_ID/pid")"; }')
# The Nth time that a file is begun: begun.NAME.N appears, and it waits while hold.NAME.N exists.
HOLD = ('n=1; until mkdir "begun.$GLOBUS_NAME.$n" 2>/dev/null; do n=$((n + 1)); done',
        'while [ -e "hold.$GLOBUS_NAME.$n" ]; do sleep 0.1; done')
NEEDED = "def is_file_needed(file): return not os.path.exists(WORKING_DIR + '/out/' + file.path)"

ONE = (SINGLE, "--globus-path", PATH, "--file", "a")
EVERY_SCRIPT = pytest.mark.parametrize("script,options", [
    ("globus-login.py", ()), ("globus-simple-download.py", ()), (BATCH, ()),
    ("globus-single-file-download.py", ("--globus-path", "/x", "--file", "y"))])
BOTH_DOWNLOADS = pytest.mark.parametrize("script", [SIMPLE, BATCH])
# Settings with which a task that cannot succeed is given up within seconds.
QUICK = ("import helper", "helper.ERRORS = {code: (words, seconds and 1) for code, (words, "
         "seconds) in helper.ERRORS.items()}",
         "helper.SLOWEST_POLL = 0.5", "helper.ARRIVAL_SECONDS = 1")

SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "torque": "qsub", "sge": "qsub"}
# For put_before: what follows is done by the first call only.
FIRST_TIME = 'mkdir "$0.first" 2>/dev/null || exec "$real" "$@"'
REFUSED = "The scheduler did not accept a job: "

# For hypothesis. A whole site serves all examples; each one takes seconds, so that none is made
# smaller. The same ones each time; HYPOTHESIS_RANDOM=1 for others.
FEW = {"deadline": None, "derandomize": not os.environ.get("HYPOTHESIS_RANDOM"),
       "phases": [Phase.explicit, Phase.generate], "database": None,
       "suppress_health_check": list(HealthCheck)}

STRANGE_NAMES = [
    "with space", "it's", 'a"b', "$HOME", "-rf", "star*?[x]", "ünïcødé", ".hidden", "semi;colon",
    "back\\slash", "#hash", "a&b|c", "`tick`", "~tilde", "$(touch pwned)", "new~1", " leading",
    "trailing ", "日本語.txt", "%41%%j", "{a,b}", "<in>", "(round)", "!bang", "=equal", "@at",
    "--file", "*", "'", "e\u0301",
]


def clean_env(**more):
    """The environment of what the tests start, from nothing: what this machine happens to export
    would hide faults, or make some."""
    kept = ("SLURM_CONF", "SGE_ROOT", "SGE_CELL",  # set by setup.sh
            "COLLECTION", "COVERAGE_PROCESS_START", "COVERAGE_FILE", "TMPDIR")
    return dict({name: os.environ[name] for name in kept if name in os.environ},
                LANG="C.UTF-8", PATH=os.environ["PATH"], **more)


# Reads a folder a line, and forks an emulator for it: a tenth of what it costs to start one.
FORKER = """if True:
    import json, os, signal, sys
    import globus_emulator
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    for line in sys.stdin:
        root = json.loads(line)
        pid = os.fork()
        if not pid:
            os.environ["HOME"] = root
            print(os.getpid(), flush=True)
            os._exit(globus_emulator.main(["--root", root]))
"""


@functools.lru_cache(maxsize=None)
def emulator_forker():
    """The process that forks emulators: one for each that runs tests. It ends with that one."""
    return subprocess.Popen(
        [sys.executable, "-c", FORKER], cwd=str(TESTS), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env=dict(clean_env(), COVERAGE_PROCESS_START=""))


class Emulator:
    """A running globus_emulator.py, and the ways to bend it."""

    def __init__(self, root):
        self.source = root / "source"
        (self.source / TUTORIAL).mkdir(parents=True)
        forker = emulator_forker()
        forker.stdin.write(json.dumps(str(root)).encode() + b"\n")
        forker.stdin.flush()
        self.pid = int(forker.stdout.readline())
        self.url = json.loads(forker.stdout.readline())["url"]

    def add(self, files):
        """Put files into PATH: a dict of name and bytes."""
        for name, content in files.items():
            path = self.source / TUTORIAL / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return files

    def ask(self, method, path, document=None):
        request = urllib.request.Request(
            self.url + "_emulator/" + path, method=method, data=json.dumps(document).encode(),
            headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def bend(self, **world):
        """Change the world, such as slots=1."""
        return self.ask("POST", "world", world)

    def bend_collection(self, name, **settings):
        return self.bend(collections={name: settings})

    def fault(self, match, **fault):
        return self.ask("POST", "faults", dict(fault, match=match))

    def clear_faults(self):
        return self.ask("DELETE", "faults")

    def requests(self):
        return self.ask("GET", "requests")

    def tasks(self):
        return self.ask("GET", "tasks")

    def stop(self):
        os.kill(self.pid, signal.SIGKILL)


class Site:
    """A user's account on a cluster: HOME, a copy of the collection, Globus Connect Personal."""

    def __init__(self, root, emulator, path):
        self.home, self.folder = root / "home", root / "collection"
        self.emulator = emulator
        self.downloads, self.results = self.folder / "downloads", self.folder / "results"
        self.jobs, self.scheduler = self.folder / "jobs", None
        self.tokens = self.home / ".wehi-globus-tokens.json"
        gcp = self.home / ".globusonline" / "lta"
        gcp.mkdir(parents=True)
        (gcp / "client-id.txt").write_text(DESTINATION + "\n")
        self.folder.mkdir()
        for file in COLLECTION.iterdir():
            if file.is_file() and not file.name.startswith("."):
                shutil.copy2(str(file), str(self.folder))
        self.env = dict(clean_env(
            HOME=str(self.home), GLOBUS_SDK_SERVICE_URL_AUTH=emulator.url,
            GLOBUS_SDK_SERVICE_URL_TRANSFER=emulator.url), PATH=path)
        self.config("POLL_SECONDS = 1")

    def config(self, *lines):
        """Append lines to config.py, as a user may; "helper.X = Y" changes a constant of the
        scripts, in jobs too."""
        with open(str(self.folder / "helper.py"), "a", encoding="utf-8") as file:
            file.writelines(line.replace("helper.", "") + "\n" for line in lines
                            if line.startswith("helper."))
        lines = [line for line in lines if not line.startswith(("helper.", "import helper"))]
        with open(str(self.folder / "config.py"), "a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")

    def process(self, *lines):
        """Write a process.sh."""
        (self.folder / "process.sh").write_text("#!/bin/bash\n" + "\n".join(lines) + "\n")

    def edit(self, name, old, new):
        """Replace a text of the copied collection."""
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def give_tokens(self):
        self.tokens.write_text(json.dumps(self.emulator.ask("POST", "tokens")))
        self.tokens.chmod(0o600)

    def command(self, script, *options):
        return [sys.executable, str(self.folder / script)] + list(options)

    def start(self, script, *options):
        """Start a script; a Popen with both outputs in pipes."""
        return subprocess.Popen(
            self.command(script, *options), cwd=str(self.folder), env=self.env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, script, *options, stdin=b"", timeout=300):
        """Run a script to its end. No script may ever end with a traceback."""
        done = subprocess.run(
            self.command(script, *options), cwd=str(self.folder), env=self.env, input=stdin,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout)
        done.out, done.err = (
            said.decode(errors="surrogateescape") for said in (done.stdout, done.stderr))
        assert "Traceback" not in done.err, done.err
        return done

    def watch(self, script, *options, columns=80, lines=24):
        """Run a script in a terminal: yields its screen, a pyte.Screen, as it changes, with all
        that was ever written there in its `said`. At the end its `status` is the exit status."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        process = subprocess.Popen(self.command(script, *options), cwd=str(self.folder),
                                   env=self.env, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        screen = pyte.Screen(columns, lines)
        screen.said = ""
        stream = pyte.ByteStream(screen)
        with open(ours, "rb", buffering=0) as terminal:
            while True:
                try:
                    said = terminal.read(4096)
                except OSError:  # the script has ended
                    break
                stream.feed(said)
                screen.said += said.decode(errors="replace")
                yield screen
        screen.status = process.wait()
        yield screen

    def log_in(self, edit=lambda code: code, pages=1, timeout=60):
        """Run globus-login.py and play the person: open each page, type the code."""
        process = subprocess.Popen(
            self.command("globus-login.py"), cwd=str(self.folder), env=self.env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = b""
        for line in iter(process.stdout.readline, b""):
            said += line
            url = re.search(rb"https?://\S+/authorize\S+", line)
            if url:
                code = read_code(url.group().decode())
            if url or b"once more, whole" in line:
                process.stdin.write(edit(code).encode() + b"\n")
                process.stdin.flush()
        process.wait(timeout)
        process.stdin.close()
        process.out = said.decode()
        assert "Traceback" not in process.out, process.out
        return process

    def downloaded(self):
        """{path: bytes} of the files that are there, without the folders of packs."""
        return {re.sub(r"^g\d+-\w{5}/", "", path): content
                for path, content in contents(self.downloads).items()}


def read_code(url):
    """The code on the login page."""
    with urllib.request.urlopen(url) as page:
        return re.search(r"auth-code'>(\w+)<", page.read().decode()).group(1)


def contents(folder):
    """{relative path: bytes} of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def strange_tree():
    """30 files with names that trip up shells, three levels deep."""
    folders = ["", "sub dir/", "sub dir/$deep's/"]
    return {folders[n % 3] + name: ("content of %s\n" % name).encode() * (n + 1)
            for n, name in enumerate(STRANGE_NAMES)}


def processed(site):
    """How often each file was processed, by a process.sh that ends with KEEP."""
    path = site.folder / "processed"
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


def journal(site):
    """The events of the journal."""
    path = site.jobs / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line.decode()) for line in lines]


def last_line(done):
    return done.out.splitlines()[-1]


def put_before(site, tmp_path, name, *lines):
    """Put an executable before the real one on PATH; it finds that one as $real."""
    folder = tmp_path / "before"
    folder.mkdir(exist_ok=True)
    others = [place for place in site.env["PATH"].split(":") if place != str(folder)]
    (folder / name).write_text(
        "#!/bin/bash\nreal=%s\n" % find(others, name) + "\n".join(lines) + "\n")
    (folder / name).chmod(0o755)
    site.env["PATH"] = ":".join([str(folder), *others])
    return folder


def find(folders, name):
    return next(folder + "/" + name for folder in folders
                if os.access(folder + "/" + name, os.X_OK))


def count_calls(site, tmp_path, name):
    """A function that tells how often a command was called."""
    calls = tmp_path / (name + ".calls")
    put_before(site, tmp_path, name, "echo >>%s" % calls, 'exec "$real" "$@"')
    return lambda: calls.read_bytes().count(b"\n") if calls.exists() else 0


def wait_until(condition, seconds=60):
    """Wait for a condition; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("it did not happen within %d s" % seconds)


def check_err(done, status, *words, lines=2):
    """The exit status, and all words in a line or two on stderr."""
    assert done.returncode == status, done.err
    assert all(word in done.err for word in words), done.err
    assert len(done.err.splitlines()) <= lines, done.err


def run_single(site, name, directory=PATH):
    return site.run("globus-single-file-download.py", "--globus-path", directory, "--file", name)


def run_wrapper(site, *names):
    return subprocess.run(
        ["bash", str(site.folder / "wrapper.sh"), PATH, *names], cwd=str(site.folder),
        env=dict(site.env, PYTHON=sys.executable), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def start_script(site, script):
    options = {SINGLE: ["--globus-path", PATH, "--file", "a"]}
    return site.start(script, *options.get(script, []))


def output_of(process):
    """What it said on both outputs."""
    out, err = process.communicate(timeout=300)
    assert b"Traceback" not in err, err
    return out.decode() + err.decode()


def cancel_task(site):
    """Cancel the first task, as its owner may in the web app."""
    token = json.loads(site.tokens.read_text())["transfer.api.globus.org"]["access_token"]
    urllib.request.urlopen(urllib.request.Request(
        "%sv0.10/task/%s/cancel" % (site.emulator.url, site.emulator.tasks()[0]["task_id"]),
        method="POST", data=b"", headers={"Authorization": "Bearer " + token}))


def gcp(**settings):
    return {"collections": {DESTINATION: settings}}


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


def kill(driver):
    driver.kill()
    driver.communicate()


def let_go(site):
    (site.folder / "go").touch()


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


def count_events(site, kind):
    return [event["event"] for event in journal(site)].count(kind)


def state_of(tmp_path, job):
    return (tmp_path / "stand-in" / str(job) / "state").read_text().strip()


def calls_of(site, tmp_path, name):
    """A function: the command lines with which a command was called."""
    calls = tmp_path / (name + ".calls")
    put_before(site, tmp_path, name, 'printf "%%s\\n" "$*" >>%s' % calls, 'exec "$real" "$@"')
    return lambda: calls.read_text().splitlines() if calls.exists() else []


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def is_harmful(name):
    return any(unicodedata.category(c) in ("Cc", "Cs") for c in name)


def assert_tame(done):
    """Nothing that drives a terminal was printed."""
    said = (done.stdout + done.stderr).decode(errors="surrogateescape")
    assert not any(is_harmful(c) for c in said.replace("\n", "")), said


@pytest.fixture(params=["job", pytest.param("driver", marks=pytest.mark.long)])
def packs(request, stand_in):
    """A site whose jobs carry up to five files, downloaded by the job or by the driver."""
    stand_in.config("FILES_PER_JOB = 5", "NUM_JOBS = 2", "DOWNLOAD_BY = %r" % request.param)
    stand_in.process(*KEEP)
    return stand_in


# In the place of Python, for what is not about downloads: it copies what a pack, or a wrapper.sh by
# hand, wants. With -p, what an environment does to other shells does nothing to this one.
COPIER = r"""#!/bin/bash -p
LC_ALL=C # names are bytes
source=%s downloads=${1%%/*}/downloads
[[ ! $GLOBUS_SETTINGS =~ '"DOWNLOAD_DIR": "'([^\"]*) ]] || downloads=${BASH_REMATCH[1]}
get() { [ -f "$1" ] && mkdir -p -- "${2%%/*}" && cp -- "$1" "$2"; }
if [ "$2" = --pack ]; then
  [[ $GLOBUS_SETTINGS =~ '"PATH": "'([^\"]*) ]] && source+=${BASH_REMATCH[1]}
  folder=$downloads/${3##*/} index=0
  while IFS= read -r line; do
    name=${line#*$'\t'*$'\t'}
    if [ -e "$folder/$name" ] || grep -qs "^$index [0-9]" "$3"/results.* ||
      get "$source/$name" "$folder/$name"; then echo $index; fi
    index=$((index + 1))
  done <"$3/files" >"$3/arrived.new"
  mv -- "$3/arrived.new" "$3/arrived"
else # by hand: --globus-path DIR --file NAME
  get "$source$3/$5" "$downloads/$5" && printf '%%s\n' "$downloads/$5"
fi
"""


def copier(site):
    return site.folder.parent / "copier"


def copy_downloads(site):
    """Let wrapper.sh download without Python and Globus, where neither is what a test is about: a
    start of Python takes most of the time of a short job. The site."""
    copier(site).write_text(COPIER % site.emulator.source)
    copier(site).chmod(0o755)
    site.edit("wrapper.sh", "\nPYTHON=", "\nPYTHON=%s\n: " % copier(site))
    return site


@pytest.fixture
def copying(stand_in):
    """The site with the stand-in for Slurm, whose jobs copy their files."""
    return copy_downloads(stand_in)


def entries(*names, kind="file"):
    """Entries of a listing."""
    return [{"name": name, "type": kind, "size": 1, "last_modified": "2026-11-23 08:15:00+00:00"}
            for name in names]


def may_trace():
    """True where strace can kill a script at its n-th system call of a kind."""
    return shutil.which("strace") and subprocess.run(
        ["strace", "-qq", "-o", os.devnull, "true"], stderr=subprocess.DEVNULL).returncode == 0


def pytest_collection_modifyitems(items):
    """Those that take longest begin first, so that none is left over at the end: pytest-xdist gives
    each worker a part of the list."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    marks = ["real", "long", "timeout"]
    items.sort(reverse=True, key=lambda item: max([0] + [
        place for place, mark in enumerate(marks, 1) if item.get_closest_marker(mark)]))
    items[:] = [item for worker in range(workers) for item in items[worker::workers]]


@pytest.fixture
def emulator(tmp_path):
    running = Emulator(tmp_path / "globus")
    yield running
    running.stop()


@pytest.fixture
def fresh_site(tmp_path, emulator):
    """A site without scheduler where nobody has logged in yet."""
    site = Site(tmp_path, emulator, bare_path(tmp_path))
    yield site
    # A job that outlives its test would try to reach the emulator for ever, and take up a slot.
    cancel_real_jobs(site)
    for pid in (tmp_path / "stand-in").glob("*/pid"):
        try:
            if (pid.parent / "state").read_text() == "RUNNING\n":
                os.killpg(int(pid.read_text()), signal.SIGKILL)
        except (OSError, ValueError):
            pass  # it has ended


# How to list a real scheduler's jobs; number and run of each; how to cancel some.
REAL = {
    "slurm": (["squeue", "-h", "--format=%i %j"], r"(?m)^(\d+) \S*-(\w{5})$", "scancel"),
    "sge": (["qstat", "-xml"],
            r"(?s)_number>(\d+)<(?:(?!_number>\d).)*?-(\w{5})</JB_name>", "qdel"),
}


def cancel_real_jobs(site):
    """Cancel what the batches of a site have left in a real scheduler."""
    if site.scheduler not in os.environ.get("TEST_SCHEDULERS", "").split():
        return
    ask, pattern, cancel = REAL[site.scheduler]
    path = site.jobs / "journal.jsonl"
    runs = set(re.findall(r'"run": "(\w{5})"', path.read_text() if path.exists() else ""))
    listed = subprocess.run(ask, stdout=subprocess.PIPE).stdout.decode()
    ids = [number for number, run in re.findall(pattern, listed) if run in runs]
    if ids:
        subprocess.run([cancel, *ids], stdout=subprocess.DEVNULL)


def bare_path(tmp_path):
    """A PATH without any scheduler: what the scripts call, and no more."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "sh", "cat", "mv", "rm", "mkdir", "dirname", "sha256sum", "sleep", "env",
                 "cp", "touch", "rmdir", "setsid", "date", "kill", "sed", "grep", "seq", "head",
                 "tail", "chmod", "ln", "realpath"):
        found = shutil.which(tool)
        if found:
            (folder / tool).symlink_to(found)
    return str(folder)


@pytest.fixture
def site(fresh_site):
    """A site where the user has logged in."""
    fresh_site.give_tokens()
    return fresh_site


@pytest.fixture
def stand_in(site, tmp_path):
    """The site with the stand-in for Slurm."""
    return with_stand_in(site, tmp_path, "slurm")


def with_stand_in(site, tmp_path, kind):
    """The site with executables that behave as a scheduler's, and really run the jobs."""
    site.env["PATH"] = "%s:%s" % (TESTS / "stand-in" / kind, site.env["PATH"])
    site.env["STAND_IN_DIR"] = str(tmp_path / "stand-in")
    (tmp_path / "stand-in").mkdir()
    site.scheduler = kind
    return site


def with_cluster(site, kind):
    """The site with a real scheduler, which tests/run.sh has started."""
    if kind not in os.environ.get("TEST_SCHEDULERS", "").split():
        pytest.skip("no private %s; tests/run.sh starts one where it may" % kind)
    site.env["PATH"] = os.environ["PATH"]
    site.scheduler = kind
    site.config("SCHEDULER = %r" % kind)  # two real ones are on this PATH
    # Grid Engine sets HOME itself, to the true one.
    site.edit("wrapper.sh", "\nPYTHON=", "\nexport HOME=%s\nPYTHON=" % site.home)
    return site


def kinds(stand_ins, real):
    """The parameters of a fixture: stand-ins, and real schedulers."""
    return (["stand-in " + kind for kind in stand_ins]
            + [pytest.param(kind, marks=pytest.mark.real) for kind in real])


@pytest.fixture(params=kinds(["slurm"], ["slurm", "sge"]))
def cluster(request, site, tmp_path):
    """The site with a scheduler: a stand-in, and the real ones."""
    return make_cluster(request.param, site, tmp_path)


# To the driver Torque is PBS with another text, and Grid Engine is there for real.
@pytest.fixture(params=kinds(["slurm", "pbs"], ["slurm", "sge"]))
def every_cluster(request, site, tmp_path):
    """The site with each scheduler that there is, real or not."""
    return make_cluster(request.param, site, tmp_path)


@pytest.fixture(params=kinds([], ["slurm", "sge"]))
def real_cluster(request, site, tmp_path):
    """The site with each real scheduler."""
    return make_cluster(request.param, site, tmp_path)


@pytest.fixture(params=kinds([], ["slurm"]))
def real_slurm(request, site, tmp_path):
    """The site with the real Slurm."""
    return make_cluster(request.param, site, tmp_path)


@pytest.fixture(params=kinds([], ["sge"]))
def real_sge(request, site, tmp_path):
    """The site with the real Grid Engine."""
    return make_cluster(request.param, site, tmp_path)


def make_cluster(kind, site, tmp_path):
    if kind.startswith("stand-in "):
        return with_stand_in(site, tmp_path, kind.split()[1])
    return with_cluster(site, kind)
