"""An hour of bad weather squeezed into a minute or two: 200 files, 8 jobs, faults by a seed."""
import contextlib
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import BATCH, DESTINATION, SOURCE, contents, last_line, processed, wait_until

HTML = "<html>maintenance</html>"
ANY = "/v0.10/"
# What may happen, for some seconds at a time; all of it passes.
FAULTS = [
    {"match": ANY, "status": 503, "text": HTML},
    {"match": ANY, "status": 502, "text": ""},
    {"match": ANY, "status": 429, "text": "", "headers": {"Retry-After": "1"}},
    {"match": ANY, "drop": "before"},
    {"match": ANY, "drop": "after"},
    {"match": "POST", "drop": "after"},
    {"match": ANY, "delay": 1.5},
    {"match": ANY, "status": 200, "text": HTML},
    {"match": "oauth2/token", "status": 500, "text": HTML},
]
WORLDS = [
    {"slots": 0}, {"pending_limit": 2}, {"token_life": 61}, {"bytes_per_second": 1000},
    {"rate_limit": 2},
    {"collections": {DESTINATION: {"gcp_connected": False}}},
    {"collections": {DESTINATION: {"gcp_paused": True}}},
    {"collections": {SOURCE: {"paused_message": "an hour off"}}},
    {"troubles": [{"path": "[05]$", "code": "CONNECT_FAILED"}]},
    {"troubles": [{"path": "[16]$", "code": "PERMISSION_DENIED", "is_source": False}]},
    {"troubles": [{"path": "[27]$", "code": "CORRUPT", "times": 3}]},
    {"troubles": [{"path": "[38]$", "code": "ENDPOINT_TOO_BUSY"}]},
]
FAIR = {"slots": 3, "pending_limit": 100, "token_life": 172800, "bytes_per_second": None,
        "rate_limit": None, "troubles": [], "collections": {
            DESTINATION: {"gcp_connected": True, "gcp_paused": False},
            SOURCE: {"paused_message": None}}}


class Weather(threading.Thread):
    """Bad for a moment, fair for a moment, and so on, once a file is there."""

    def __init__(self, emulator, seed, sign):
        super().__init__(daemon=True)
        self.sign = sign
        self.emulator, self.chance, self.is_over = emulator, random.Random(seed), threading.Event()
        self.storms = 0

    def run(self):
        wait_until(lambda: self.sign.exists() or self.is_over.is_set())
        while not self.is_over.wait(self.chance.uniform(0.2, 1)):
            self.storms += 1
            if self.chance.random() < 0.5:
                self.emulator.fault(**self.chance.choice(FAULTS))
            else:
                self.emulator.bend(**self.chance.choice(WORLDS))
            self.is_over.wait(self.chance.uniform(0.5, 3))
            self.emulator.clear_faults()
            self.emulator.bend(**FAIR)
            if self.chance.random() < 0.3:
                self.emulator.ask("POST", "expire")


def choose_seed():
    """By chance, or as SOAK_SEED says; printed where pytest-xdist shows it, which is not stdout."""
    seed = int(os.environ.get("SOAK_SEED") or random.randrange(1000000))
    print("SOAK_SEED=%d" % seed, file=sys.stderr)
    return seed


@pytest.mark.long
@pytest.mark.timeout(600)
def test_200_files_come_through_bad_weather_each_of_them_once(stand_in, emulator):
    seed = choose_seed()
    files = emulator.add({"f%03d" % n: (b"%d " % n) * 100 for n in range(200)})
    emulator.bend(retry_seconds=0.2, task_seconds=0.05)
    stand_in.config("NUM_JOBS = 8", "helper.patient = helper.backoff",
                    "helper.backoff = lambda first, longest, *growth: "
                    "patient(first / 20, longest / 20, *growth)",
                    "helper.HTTP_TIMEOUT = 1")
    stand_in.process('cp -- "$1" "$GLOBUS_NAME.new"', 'mkdir -p out',
                     'mv -- "$GLOBUS_NAME.new" "out/$GLOBUS_NAME"',
                     'printf "%s\\n" "$GLOBUS_NAME" >>processed')
    weather = Weather(emulator, seed, stand_in.jobs / "journal.jsonl")
    weather.start()
    done = stand_in.run(BATCH, timeout=540)
    weather.is_over.set()
    weather.join()
    assert done.returncode == 0, done.err[-3000:]
    assert last_line(done) == "200 processed, 0 failed, 0 not needed", done.out
    assert processed(stand_in) == dict.fromkeys(files, 1)
    assert contents(stand_in.folder / "out") == files
    assert len(emulator.tasks()) == 200  # no lost answer has made a second task
    print(weather.storms, "storms")


# ---- for as long as somebody wants:   tests/run.sh --soak MINUTES ----


WORK = ['exec 9>"lock.$GLOBUS_NAME" && %s -n 9 || exit 9' % shutil.which("flock"),
        "sleep 0.$((RANDOM % 5))",
        'mkdir -p out && cp -- "$1" "$GLOBUS_NAME.new" && mv -- "$GLOBUS_NAME.new" '
        '"out/$GLOBUS_NAME"']
NEEDED = """
def is_file_needed(file):
    return not os.path.exists(os.path.join(WORKING_DIR, "out", file.path))
"""


def jobs_of(site):
    """The processes that run wrapper.sh for a site."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if b"--pack\0" + os.fsencode(str(site.jobs)) in words:
                found.append(int(process.name))
    return found


def trouble(site, chance, driver):
    """Kill the driver, or a job, or edit what a user may edit at any time."""
    act = chance.choice(["driver", "job", "job", "config.py", "process.sh"])
    with contextlib.suppress(ProcessLookupError):
        if act == "driver":
            driver.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT]))
        elif act == "job":
            for job in jobs_of(site)[:1]:
                os.kill(job, chance.choice([signal.SIGKILL, signal.SIGTERM]))
        elif act == "config.py":
            site.config("# edited")
        else:
            site.process(*WORK, "# edited %d" % chance.randrange(1000))


def soak(site, emulator, chance, name):
    """One batch, in a folder of its own, through weather, kills and edits, until all is done."""
    files = {"f%02d" % n: (b"%d " % n) * 100 for n in range(60)}
    folder = "home/share/" + name
    for path, data in files.items():
        (emulator.source / folder).mkdir(exist_ok=True)
        (emulator.source / folder / path).write_bytes(data)
    shutil.rmtree(str(site.folder / "out"), ignore_errors=True)
    where, size = chance.choice(["job", "driver"]), chance.choice([1, 5, 20])
    site.config("PATH = %r" % ("/" + folder), "FILES_PER_JOB = %d" % size, NEEDED,
                "DOWNLOAD_BY = %r" % where, "NUM_JOBS = 6", "POLL_SECONDS = 0.5",
                "GRACE_SECONDS = 5", "MAX_FAILURES_IN_A_ROW = None")
    site.process(*WORK)
    weather = Weather(emulator, chance.random(), site.jobs / "journal.jsonl")
    weather.start()
    starts, is_over = 0, False
    while not is_over:
        starts += 1
        driver = site.start(BATCH)
        said = threading.Thread(target=driver.communicate, daemon=True)
        said.start()
        while driver.poll() is None and starts < 30:
            time.sleep(chance.uniform(0.2, 2))
            trouble(site, chance, driver)
        driver.wait()
        # SIGINT: before the interpreter has begun
        assert driver.returncode in (0, 1, 130, -signal.SIGKILL, -signal.SIGINT), name
        assert starts < 60, name
        is_over = contents(site.folder / "out") == files
    weather.is_over.set()
    weather.join()
    assert site.run(BATCH).returncode == 0  # it ends what a killed one has left
    done = site.run(BATCH)
    assert last_line(done) == "0 processed, 0 failed, 60 not needed", (name, done.err)
    assert site.downloaded() == {} and list(site.jobs.glob("g*")) == []
    assert "exit status 9" not in done.out, "a file was in two jobs at a time"
    return where, size, starts


@pytest.mark.skipif("SOAK_MINUTES" not in os.environ, reason="tests/run.sh --soak MINUTES")
@pytest.mark.timeout(0)
def test_batches_come_through_weather_kills_and_edits_for_as_long_as_somebody_wants(
        cluster, emulator):
    seed = choose_seed()
    end = time.monotonic() + 60 * float(os.environ["SOAK_MINUTES"])
    chance, rounds = random.Random(seed), 0
    cluster.config("helper.patient = helper.backoff", "helper.HTTP_TIMEOUT = 1",
                   "helper.backoff = lambda first, longest, *growth: "
                   "patient(first / 20, longest / 20, *growth)")
    emulator.bend(retry_seconds=0.2, task_seconds=0.05)
    while time.monotonic() < end:
        rounds += 1
        print(rounds, *soak(cluster, emulator, chance, "round%d" % rounds), flush=True)
