"""The scripts in the process of the tests: as modules; `here`, which runs main() of one; `played`,
the driver a step at a time."""
import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import sys
import threading
import time
import types
import weakref
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
from conftest import (
    BATCH,
    COLLECTION,
    DESTINATION,
    LOGIN,
    PATH,
    SIMPLE,
    SOURCE,
    read_code,
    wait_until,
)


def load(script):
    """A script as a module, for its pure functions."""
    sys.path.insert(0, str(COLLECTION))
    try:
        spec = importlib.util.spec_from_file_location(
            script.replace("-", "_"), str(COLLECTION / (script + ".py")))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(COLLECTION))


@functools.lru_cache(maxsize=None)
def loaded(script):
    """The same, loaded once."""
    return load(script[:-len(".py")])


class Here:
    """The scripts of a site, run by a thread of this process: for what is a function of helper.py,
    whoever calls it, this saves the start of a Python. Settings, and constants that site.config()
    has changed, are the site's. No signals, and no word on an answer that takes long."""

    def __init__(self, site):
        self.site, self.helper = site, loaded(SIMPLE).helper
        self.kept, self.thread, self.is_over = dict(vars(self.helper)), None, threading.Event()
        self.said, self.printed, self.changed = [], io.BytesIO(), contextlib.ExitStack()

    def start(self, script, *options):
        """Begin with main() of a script; itself."""
        self.said, self.printed, self.raised = [], io.BytesIO(), None
        self.is_over.clear()
        self.end_by = SystemExit
        vars(self.helper).update(
            self.kept, HERE=str(self.site.folder), ERRORS=dict(self.kept["ERRORS"]),
            TOLD=types.SimpleNamespace(**vars(self.kept["TOLD"])), ENDING_SIGNALS=(),
            report_silence=contextlib.nullcontext, is_terminal=lambda: False,
            write_to_stderr=lambda text, **_: self.said.append(text),
            time=types.SimpleNamespace(**dict(vars(time), sleep=self.sleep)))
        original, changed = ((folder / "helper.py").read_text(encoding="utf-8")
                             for folder in (COLLECTION, self.site.folder))
        assert changed.startswith(original)  # site.edit() has no effect here
        exec(changed[len(original):], vars(self.helper))
        self.helper.read_config.cache_clear()
        assert sys.getfilesystemencoding() == "utf-8"  # or helper.run_main() starts a new Python
        env = dict(self.site.env, **{name: value for name, value in os.environ.items()
                                     if name.startswith("PYTEST")})
        stdout = io.TextIOWrapper(self.printed, encoding="utf-8", write_through=True)
        self.changed.callback(stdout.detach)
        self.changed.enter_context(contextlib.redirect_stdout(stdout))
        self.changed.enter_context(mock.patch.dict(os.environ, env, clear=True))
        self.thread = threading.Thread(target=self.call, args=(script, list(options)), daemon=True)
        self.thread.start()
        return self

    def call(self, script, options):
        try:
            self.returncode = self.helper.run_main(lambda: loaded(script).main(options))
        except BaseException as error:  # what would be a traceback
            self.raised = error

    def sleep(self, seconds):
        if self.is_over.wait(seconds):
            if self.end_by is KeyboardInterrupt:
                self.is_over.clear()
            raise self.end_by

    @property
    def err(self):
        return "".join(self.said)

    @property
    def out(self):
        return self.stdout.decode(errors="surrogateescape")

    @property
    def stdout(self):
        return self.printed.getvalue()

    @property
    def stderr(self):
        return self.err.encode(errors="backslashreplace")

    def wait_for(self, text):
        """Wait until it says that on stderr."""
        wait_until(lambda: text in self.err or not self.thread.is_alive())
        assert text in self.err, self.err

    def end(self):
        """Wait for its end: itself, with returncode, out and err."""
        self.thread.join(300)
        assert not self.thread.is_alive(), self.err
        self.changed.close()
        if self.raised:
            raise self.raised
        return self

    def run(self, script, *options):
        return self.start(script, *options).end()

    def log_in(self, edit=lambda code: code):
        """Run globus-login.py, and play the person: open each page, type the code."""
        def type_code(prompt):
            print(prompt, end="")
            return edit(read_code(re.findall(r"https?://\S+/authorize\S+", self.out)[-1]))

        vars(loaded(LOGIN))["input"] = type_code
        return self.run(LOGIN)

    def interrupt(self):
        """What a signal does, when it waits the next time."""
        self.end_by = KeyboardInterrupt
        self.is_over.set()

    def stop(self):
        """Leave it, where it waits the next time."""
        self.end_by = SystemExit
        self.is_over.set()
        if self.thread:
            self.thread.join(10)
        self.changed.close()


@pytest.fixture
def here(site):
    """The scripts of that site, in this process."""
    running = Here(site)
    yield running
    running.stop()
    vars(running.helper).clear()
    vars(running.helper).update(running.kept)
    running.helper.read_config.cache_clear()


# ---- a driver without processes ----


class Played:
    """The driver in this process, a step at a time: for what it makes of a scheduler's words, of
    tokens, and of time. Scheduler, jobs and clock are played; the files in jobs/ are real."""

    def __init__(self, root, monkeypatch, kind="slurm"):
        self.module, self.scheduler = loaded(BATCH), loaded(BATCH).SCHEDULERS[kind]
        self.kind, self.now, self.number, self.folder = kind, 1000.0, 1000, root / "jobs"
        self.jobs = {}  # id: PlayedJob, as the scheduler knows them
        self.calls, self.said = [], []
        self.processed = Counter()
        # name of a command: what answers (command) with exit status, stdout, stderr
        self.plays = {self.scheduler.submit[0]: self.accept, self.scheduler.queue[0]: self.list,
                      self.scheduler.cancel[0]: self.cancel,
                      "scontrol": lambda command: (0, "ClusterName = here\n", "")}
        self.config = types.SimpleNamespace(
            SOURCE_ENDPOINT_ID=SOURCE, DESTINATION_ENDPOINT_ID=DESTINATION, PATH=PATH,
            RECURSIVE=False, DOWNLOAD_DIR=str(root / "downloads"), WORKING_DIR=str(root),
            DESTINATION_PATH=str(root / "downloads"), NUM_JOBS=3, FILES_PER_JOB=1, SCHEDULER=kind,
            DOWNLOAD_BY="job", MAX_FAILURES_IN_A_ROW=None, MAX_BYTES=None, RESOURCES="",
            TOKEN_FILE="", VERIFY_CHECKSUM=True, POLL_SECONDS=1, GRACE_SECONDS=5,
            is_file_needed=lambda file: True)
        self.folder.mkdir(parents=True)
        clock = types.SimpleNamespace(**vars(time))
        clock.monotonic, clock.sleep = lambda: self.now, lambda seconds: self.pass_by(seconds)
        monkeypatch.setattr(self.module, "time", clock)
        monkeypatch.setattr(os, "fsync", lambda number: None)  # a tenth of a second on a busy disk
        monkeypatch.setattr(self.module, "run_command", self.run_command)
        monkeypatch.setattr(self.module.helper, "log", self.said.append)
        monkeypatch.setattr(self.module.helper, "show_progress", lambda text: None)

    # -- the driver --

    def start(self, *names, **settings):
        """Start a driver with these files at the source; another one resumes its run."""
        vars(self.config).update(settings)
        if names:
            self.files = [self.module.helper.File(name, 1, "today", None) for name in names]
        self.driver = driver = self.module.Driver(
            self.config, self.scheduler, self.config.RESOURCES.split())
        is_new = self.module.read_journal(driver)
        self.module.begin(driver, is_new)
        self.module.plan(driver, self.files, None)
        driver.append("listed", refused=0, total=len(self.files))
        return self

    def kill(self):
        """SIGKILL to the driver."""
        self.driver.journal.file.close()

    def step(self):
        self.driver.step()
        self.pass_by(0.1)

    def poll(self, times=1):
        """Let so many POLL_SECONDS pass."""
        for _ in range(times):
            self.now = max(self.now, self.driver.next_poll)
            self.step()

    def pass_by(self, seconds):
        self.now += seconds

    def finish(self, *, polls=50):
        """Let all that can go well go well, to the end; the last numbers: processed, failed."""
        while self.driver.pending or self.driver.state.packs:
            for job in list(self.jobs.values()):
                job.work()
            self.poll()
            polls -= 1
            assert polls, self.said
        return self.driver.state.count(), self.driver.count_failed()

    def text(self):
        """All that the driver has said."""
        return "\n".join(self.said) + "\n"

    def count(self, event):
        lines = (self.folder / "journal.jsonl").read_text().splitlines()
        return [json.loads(line)["event"] for line in lines].count(event)

    # -- the scheduler --

    def run_command(self, command, stdin=None, seconds=None, env=None):
        self.calls.append(command)
        return self.plays[command[0]](command)

    def called(self, name):
        """The command lines with which a command was called."""
        return [command for command in self.calls if command[0] == name]

    def accept(self, command):
        name = command[1 + max(command.index(word) for word in ("--job-name", "-N")
                               if word in command)]
        number, self.number = str(self.number), self.number + 1
        self.jobs[number] = PlayedJob(self, number, name)
        return 0, number + (".pbshost" if self.scheduler.submit[-1] == "oe" else "") + "\n", ""

    def list(self, command):
        """The answer of the queue. PBS and Grid Engine list none that has ended."""
        rows = [(number, job.name, job.state, job.reason) for number, job in self.jobs.items()]
        if self.kind == "slurm":
            return 0, "\n".join([self.module.SLURM_HEADING, *map("|".join, rows), ""]), ""
        letters = {"PENDING": "Q", "RUNNING": "R"}
        rows = [row for row in rows if row[2] in letters or self.kind == "torque"]
        if command != self.scheduler.queue:  # about one of them
            return (0, "yes\n", "") if rows else (153, "", "jobs do not exist\n")
        if self.kind == "sge":
            return 0, "<job_info>\n<queue_info>\n" + "".join(
                "<job_list><JB_job_number>%s</JB_job_number><JB_name>%s</JB_name><state>%s</state>"
                "</job_list>\n" % (number, name, {"PENDING": "qw"}.get(state, "r"))
                for number, name, state, _ in rows) + "</queue_info>\n</job_info>\n", ""
        return 0, "----\n" * bool(rows) + "".join(
            "%s.pbshost me workq %s 1 1 1 -- -- %s 00:00\n" % (
                number, name, letters.get(state, "C")) for number, name, state, _ in rows), ""

    def cancel(self, command):
        for number in command[1:]:
            self.jobs[number.split(".")[0]].state = "CANCELLED"
        return 0, "", ""


class PlayedJob:
    """A job of a Played scheduler. It waits until it begins."""

    def __init__(self, played, number, name):
        self.played, self.number, self.name = played, number, name
        self.state, self.reason = "PENDING", "Priority"
        pack, self.attempt, run = re.split(r"[.-]", name)
        self.folder, self.token = played.folder / (pack + "-" + run), "ticket." + self.attempt

    def move(self, token):
        """True if it has its token, which has another name then."""
        try:
            (self.folder / self.token).rename(self.folder / token)
        except FileNotFoundError:
            return False
        self.token = token
        return True

    def begin(self, step="get"):
        """It is at work on the file with that index, or at the download; False if it may not."""
        self.state, self.reason = "RUNNING", "None"
        return self.move("at.%s.%s.node-1-2.%s" % (self.attempt, self.number, step))

    def report(self, index=0, status=0):
        """It is done with a file."""
        self.played.module.helper.add_result(
            str(self.folder), "%s.%s.node-1-2" % (self.attempt, self.number), index, status)

    def end(self, status=0, state=None):
        """It ends by itself."""
        self.move("end" + self.token[self.token.index("."):] + ".%d" % status)
        self.state = state or ("FAILED" if status else "COMPLETED")

    def die(self, state="FAILED", reason="None"):
        """It is killed."""
        self.state, self.reason = state, reason

    def work(self):
        """From its beginning to its end, all goes well."""
        if self.state != "PENDING":
            return
        is_ours = self.begin()
        helper = self.played.module.helper
        done = helper.read_results(str(self.folder)) if is_ours else {}
        for index, file in enumerate(helper.read_pack(str(self.folder)) if is_ours else []):
            if index not in done:
                self.begin(index)
                self.played.processed[file.path] += 1
                self.report(index)
        if is_ours:
            self.end()
        self.state = "COMPLETED"


@pytest.fixture
def played(tmp_path, monkeypatch):
    return Played(tmp_path, monkeypatch)
def make_driver(module, folder, **settings):
    """A Driver in this process, below a folder, whose run has begun; nothing is asked or called."""
    config = load("config")
    for name, value in dict({
            "WORKING_DIR": str(folder), "DOWNLOAD_DIR": str(folder / "downloads"),
            "DESTINATION_PATH": str(folder / "downloads"), "VERIFY_CHECKSUM": True,
            "PATH": PATH}, **settings).items():
        setattr(config, name, value)
    driver = module.Driver(config, module.SCHEDULERS["slurm"], [])
    (folder / "jobs").mkdir()
    driver.journal.open(True)
    weakref.finalize(driver, lambda journal: journal.file.close(), driver.journal)
    driver.append("run", version=module.JOURNAL_VERSION, run="abcde", previous={}, identity={})
    driver.append("start", done=0, bytes=0, failed={})
    return driver


def add_pack(driver, *paths, size=1):
    """Set up a pack of files for such a driver; its name."""
    name = "g%d-abcde" % (driver.state.number + 1)
    driver.append("pack", pack=name, files=[[path, size, None] for path in paths])
    driver.set_up(name)
    return name


def leave_failure(driver, path, size=1):
    """A pack of such a driver that is over, and whose file has failed; its name."""
    name, helper = add_pack(driver, path, size=size), sys.modules["helper"]
    folder, place = Path(driver.path(name)), Path(driver.place(name).folder)
    place.mkdir(parents=True)
    (place / path).write_bytes(b"x" * size)
    (folder / "settings.json").write_text(helper.freeze(driver.config))
    for written in ("arrived", "log", "0.log"):
        (folder / written).write_text("0\n")
    helper.add_result(str(folder), "1.2.node-3-4", 0, 3)
    driver.take_results(name, os.listdir(str(folder)))
    driver.finish(name)
    driver.kept.clear()
    return name
