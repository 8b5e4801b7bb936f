#!/usr/bin/env python3
"""Speed and scale, beside others that do the same work: one run on one machine, ratios first.

    tests/benchmark.py [--small]

Sets up what it needs, as tests/run.sh does: an emulated Globus, a private Slurm, and the peers
globus-cli, snakemake and submitit in environments of their own. Prints a table in Markdown.
--small takes a minute or two, to see that it works; its numbers mean nothing."""
import argparse
import contextlib
import json
import os
import pwd
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

IS_SET_UP = "SET_UP_FOR_BENCHMARK" in os.environ  # else main() sets up, and starts this again
if IS_SET_UP:
    from conftest import DESTINATION, SOURCE, Emulator, Site, count_calls, put_before

TESTS = Path(__file__).resolve().parent
SETUP = """. "$0"/setup.sh
make_venv "$TESTS/requirements.txt"
make_cli
make_peers
start_scheduler
SET_UP_FOR_BENCHMARK=yes "$PY" "$TESTS/benchmark.py" "$@"
"""

MOST_OUTPUT = 4000000  # bytes
# What one run of a command costs. wall, cpu: seconds; memory: MB at the peak; out: the end of its
# stdout.
Cost = namedtuple("Cost", "wall cpu memory out")
Sizes = namedtuple(
    "Sizes", "times files directories jobs few_jobs ended real task_seconds num_jobs packed")
FULL = Sizes(3, 100000, 10, 300, 24, 100000, 100000, 4, (1, 3, 6, 12),
             {1: 60, 20: 1200, 200: 10000})
SMALL = Sizes(1, 1000, 3, 24, 4, 1000, 300, 1, (1, 3), {1: 6, 5: 30})

PATH = "/home/share/godata"
HERE = "import sys; sys.path.insert(0, '.'); import helper; config = helper.load_config(); "
LIST_AND_BUILD = HERE + """
client = helper.transfer_client()
script = __import__("globus-simple-download")
files, refused = script.find_files(client, config)
assert len(script.build(client, config, files)["DATA"]) == %d
"""
BARE = """
import json, os, globus_sdk
with open(os.path.expanduser("~/.wehi-globus-tokens.json")) as file:
    tokens = json.load(file)["transfer.api.globus.org"]
client = globus_sdk.TransferClient(authorizer=globus_sdk.RefreshTokenAuthorizer(
    tokens["refresh_token"], globus_sdk.NativeAppAuthClient(%r),
    access_token=tokens["access_token"], expires_at=tokens["expires_at_seconds"]))
request = globus_sdk.TransferData(source_endpoint=%r, destination_endpoint=%r)
for entry in client.operation_ls(%r, path="/home/share/godata/"):
    if entry["type"] == "file":
        request.add_item("/home/share/godata/" + entry["name"], "/downloads/" + entry["name"])
assert len(request["DATA"]) == %d
"""
SNAKEFILE = """
NAMES = %r
rule all:
    input: expand("done/{name}", name=NAMES)
rule one:
    output: "done/{name}"
    shell: "bash wrapper.sh %s/ {wildcards.name} && touch {output}"
"""
CHUNK = """
id=$("$GLOBUS_CLI" transfer --jmespath task_id -F unix --batch "$1" %s:%s %s:"$PWD/downloads") &&
  "$GLOBUS_CLI" task wait "$id" --polling-interval 1 >/dev/null || exit
while read -r name _; do
  bash process.sh "$PWD/downloads/$name" && rm "downloads/$name" || exit
done <"$1"
touch "$1.done"
"""
CHUNK_SNAKEFILE = """
rule all:
    input: expand("chunks/{n}.done", n=range(%d))
rule chunk:
    input: "chunks/{n}"
    output: "chunks/{n}.done"
    shell: "bash chunk.sh {input}"
"""
CHUNK_SUBMITIT = """
import subprocess, submitit
def work(n):
    subprocess.run(["bash", "chunk.sh", "chunks/%%d" %% n], check=True)
executor = submitit.SlurmExecutor(folder="submitit")
executor.update_parameters(time=10, array_parallelism=6)
for job in executor.map_array(work, range(%d)):
    job.result()
"""
SUBMITIT = """
import subprocess, submitit
def work(name):
    subprocess.run(["bash", "wrapper.sh", %r, name], check=True)
executor = submitit.SlurmExecutor(folder="submitit")
executor.update_parameters(time=10, array_parallelism=8)
for job in executor.map_array(work, %r):
    job.result()
"""


def say(text):
    sys.stderr.write(text + "\n")


# ---- measuring ----


def measure(site, *command, **env):
    """The Cost of a command in the site's folder; it has to succeed."""
    with tempfile.TemporaryFile() as out:
        begun = time.monotonic()
        process = subprocess.Popen(command, cwd=str(site.folder), env=dict(site.env, **env),
                                   stdin=subprocess.DEVNULL, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - begun
        process.returncode = status
        # Not all of it: what this process holds counts as memory of the next one that it starts.
        out.seek(max(0, out.seek(0, os.SEEK_END) - MOST_OUTPUT))
        text = out.read().decode(errors="replace")
    if status:
        raise SystemExit(f"{' '.join(map(str, command))[:300]} failed\n{text[-2000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, text)


def median(costs):
    """The medians of several Costs of the same thing."""
    costs = list(costs)
    return Cost(*(statistics.median(getattr(cost, name) for cost in costs)
                  for name in ("wall", "cpu", "memory")), costs[-1].out)


@contextlib.contextmanager
def new_site():
    """A site with the collection, logged in, and an emulator of its own."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        emulator = Emulator(root / "globus")
        try:
            site = Site(root, emulator, os.environ["PATH"])
            site.give_tokens()
            site.env["PYTHON"] = sys.executable
            site.env.pop("PYTHONDONTWRITEBYTECODE", None)  # as it is for users, and for the peers
            yield site, emulator
        finally:
            emulator.stop()


def row(work, against, ours, theirs, goal, unit):
    """A line of the table."""
    ratio = ours / theirs
    verdict = "" if goal is None else f"at most {goal:g}" + (" **missed**" if ratio > goal else "")
    say(f"  {work}: {ratio:.2f} {verdict}")
    return (f"| {work} | {against} | **{ratio:.2f}** | {verdict} | "
            f"{ours:.3g} {unit} / {theirs:.3g} {unit} |")


def cli(site, *arguments):
    """The Cost of a globus-cli command, logged in as a client."""
    return measure(site, os.environ["GLOBUS_CLI"], *arguments,
                   GLOBUS_CLI_CLIENT_ID="4f0448d6-e7e2-4637-bc64-e8f682d1cc77",
                   GLOBUS_CLI_CLIENT_SECRET="any")


# ---- the rows ----


def listing(sizes):
    """A large directory becomes one request."""
    n = sizes.files
    bare = BARE % ("4f0448d6-e7e2-4637-bc64-e8f682d1cc77", SOURCE, DESTINATION, SOURCE, n)
    with new_site() as (site, emulator):
        emulator.bend(crowds={PATH: n})
        pairs = site.folder / "pairs"
        ours, loop, ls, batch = [], [], [], []
        for _ in range(sizes.times):
            ours.append(measure(site, sys.executable, "-c", LIST_AND_BUILD % n))
            loop.append(measure(site, sys.executable, "-c", bare))
            ls.append(cli(site, "ls", f"{SOURCE}:{PATH}"))
            pairs.write_text("".join(f"{name} {name}\n" for name in ls[-1].out.splitlines()))
            batch.append(cli(site, "transfer", "--dry-run", "--batch", str(pairs),
                             f"{SOURCE}:{PATH}", f"{DESTINATION}:/downloads"))
        ours, loop, ls, batch = map(median, (ours, loop, ls, batch))
        what = f"list {n:,} files and build one request"
        yield row(what + ", CPU", "`globus ls` + `globus transfer --batch --dry-run`",
                  ours.cpu, ls.cpu + batch.cpu, 0.10, "s")
        yield row("the same", "bare SDK calls in a loop, no checks", ours.cpu, loop.cpu, 1, "s")
        yield row("the same, peak memory", "`globus ls`", ours.memory, ls.memory, 1, "MB")
        flat = median(dry_run(site) for _ in range(sizes.times))
        for number in range(sizes.directories):
            (emulator.source / PATH.strip("/") / f"d{number}").mkdir()
        emulator.bend(crowds={PATH: 0, **{
            f"{PATH}/d{number}": n for number in range(sizes.directories)}})
        site.config("RECURSIVE = True")
        deep = median(dry_run(site) for _ in range(sizes.times))
        yield row(f"{n * sizes.directories:,} files in {sizes.directories} directories, batch "
                  "`--dry-run`, peak memory", f"{n:,} files in one", deep.memory, flat.memory,
                  1.5, "MB")


def dry_run(site):
    return measure(site, sys.executable, "globus-batch-download.py", "--dry-run")


def one_file(sizes):
    """One small file."""
    with new_site() as (site, emulator):
        emulator.add({f"f{n}": b"x" for n in range(2 * sizes.times)})
        ours, theirs = [], []
        for n in range(sizes.times):
            before = len(emulator.requests())
            ours.append(measure(site, sys.executable, "globus-single-file-download.py",
                                "--globus-path", PATH, "--file", f"f{n}").wall)
            requests = len(emulator.requests()) - before
            name = f"f{sizes.times + n}"
            task = cli(site, "transfer", "--jmespath", "task_id", "-F", "unix",
                       f"{SOURCE}:{PATH}/{name}", f"{DESTINATION}:{site.downloads}/{name}")
            wait = cli(site, "task", "wait", task.out.strip(), "--polling-interval", "1")
            theirs.append(task.wall + wait.wall)
        yield row("one small file, wall time of globus-single-file-download.py",
                  "`globus transfer` then `globus task wait`", statistics.median(ours),
                  statistics.median(theirs), 0.6, "s")
        yield row("requests to Globus for one small file", "the goal", requests, 5, 1, "requests")


def whole_download(sizes):
    """A simple download of many files in one request, submitted and waited for."""
    with new_site() as (site, emulator):
        emulator.add({f"sample-{n:06d}.txt": b"x" for n in range(sizes.real)})
        ours = measure(site, sys.executable, "globus-simple-download.py")
        assert f"{sizes.real:,} sent" in ours.out, ours.out
        say(f"  whole download: {ours}")
        yield (f"| {sizes.real:,} files by globus-simple-download.py, submitted and waited for | | "
               f"| | {ours.cpu:.1f} s CPU, {ours.memory:.0f} MB |")


def restart(sizes):
    """The driver starts on a long journal."""
    with new_site() as (site, _):
        site.jobs.mkdir()
        with open(str(site.jobs / "journal.jsonl"), "w") as file:
            def write(**event):
                file.write(json.dumps(dict(event, time=1)) + "\n")

            write(event="run", run="abcde", version=3, previous={}, identity={
                "SOURCE_ENDPOINT_ID": SOURCE, "PATH": PATH + "/",
                "DOWNLOAD_DIR": str(site.downloads), "WORKING_DIR": os.path.realpath(site.folder),
                "user": pwd.getpwuid(os.getuid()).pw_name, "scheduler": "slurm", "cluster": None})
            for n in range(sizes.ended):
                pack = f"g{n + 1}-abcde"
                write(event="pack", pack=pack, files=[[f"sample-{n:06d}.txt", 1, ""]])
                write(event="submit", pack=pack, attempt=1, results=0)
                write(event="queued", pack=pack, id=str(n))
                write(event="closed", pack=pack, attempt=1, why="", at=None, results=1)
                write(event="over", pack=pack, failed=[], bytes=1)
        journal = (site.jobs / "journal.jsonl").read_bytes()
        costs = []
        for _ in range(sizes.times):
            (site.jobs / "journal.jsonl").write_bytes(journal)
            costs.append(measure(site, sys.executable, "globus-batch-download.py"))
        assert f"{sizes.ended} processed" in costs[-1].out
        yield row(f"start of the driver on a journal of {sizes.ended:,} ended files, wall time",
                  "the goal", median(costs).wall, 2, 1, "s")
        yield row("the same, CPU", "the goal", median(costs).cpu, 1.5, 1, "s")


def many_jobs(sizes):
    """Many short jobs, eight at a time, on the real Slurm."""
    names = [f"f{n:03d}" for n in range(sizes.jobs)]
    with work_site(names) as (site, _):
        by_hand = statistics.median(
            measure(site, "bash", "wrapper.sh", PATH, name).wall for name in names[:5])
        alone = statistics.median(by_sbatch(site, name) for name in names[5:14])
        sbatch = median(measure(site, "sbatch", "--output=/dev/null", "--wrap=true")
                        for _ in range(5)).cpu
    ours = []
    for _ in range(sizes.times):
        with work_site(names) as (site, _):
            ours.append(drive(site, names))
    wall = statistics.median(run.wall for run in ours)
    what = f"{len(names)} jobs whose process.sh sleeps 1 s, NUM_JOBS 8, wall time"
    yield row(what, f"the ideal, {len(names)} x (such a job alone, by `sbatch`) / 8", wall,
              len(names) * alone / 8, 1.15, "s")
    yield row("the same", f"{len(names)} x (`wrapper.sh` alone, without Slurm) / 8", wall,
              len(names) * by_hand / 8, None, "s")
    peers = [("snakemake, Slurm executor, held to 8 jobs", snakemake, sizes.few_jobs),
             ("submitit, an array held to 8 jobs", submitit, sizes.jobs)]
    for name, peer, number in peers:
        costs = []
        for _ in range(sizes.times):
            with work_site(names) as (site, _):
                costs.append(peer(site, names[:number]))
        if all(costs):
            yield row("the same, wall time for a job", f"{name}; {number} jobs",
                      wall / len(names), median(costs).wall / number, 1, "s")
    most = max(run.questions / (1 + run.wall // 30) for run in ours)
    yield row("the same, questions to the scheduler", "one each POLL_SECONDS", most, 1, 1, "each")
    yield row("driver CPU for a job", "one `sbatch` process",
              statistics.median(run.cpu for run in ours) / len(names), sbatch, 1, "s")


def by_sbatch(site, name):
    """Seconds from the submission of a job, that has the cluster to itself, to its end."""
    end = site.folder / (name + ".end")
    script = f"#!/bin/bash\nbash wrapper.sh {PATH} {name} && touch {end}\n"
    begun = time.monotonic()
    subprocess.run(["sbatch", "--output=/dev/null"], input=script.encode(), env=site.env,
                   cwd=str(site.folder), stdout=subprocess.DEVNULL, check=True)
    while not end.exists():
        time.sleep(0.01)
    return time.monotonic() - begun


@contextlib.contextmanager
def work_site(names):
    """A site with small files, and a process.sh that sleeps a second."""
    with new_site() as (site, emulator):
        emulator.add(dict.fromkeys(names, b"x"))
        site.config("NUM_JOBS = 8", "POLL_SECONDS = 30", "SCHEDULER = 'slurm'")
        site.process("sleep 1")
        yield site, emulator


Drive = namedtuple("Drive", "wall cpu questions")


def drive(site, names):
    """What a whole batch costs: wall time, the driver's own CPU, and questions to the queue."""
    questions = count_calls(site, site.home, "squeue")
    begun = time.monotonic()
    driver = site.start("globus-batch-download.py")
    driver.stderr.close()
    cpu = 0
    while True:
        try:
            fields = Path(f"/proc/{driver.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            break
        if fields[0] == "Z":
            break
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        time.sleep(0.2)
    out = driver.communicate()[0].decode()
    wall = time.monotonic() - begun
    assert out.splitlines()[-1] == f"{len(names)} processed, 0 failed, 0 not needed", out
    return Drive(wall, cpu, questions())


def snakemake(site, names):
    """The same jobs by snakemake, which may look as often as it likes."""
    return by_snakemake(site, SNAKEFILE % (names, PATH), 8)


def by_snakemake(site, snakefile, jobs):
    """The Cost of a Snakefile, with so many jobs at a time."""
    (site.folder / "Snakefile").write_text(snakefile)
    # It takes all SLURM_ variables from its jobs, where srun needs this one.
    put_before(site, site.home, "srun", "export SLURM_CONF=" + os.environ["SLURM_CONF"],
               'exec "$real" "$@"')
    return by_peer(site, "snakemake", "--executor", "slurm", "--jobs", str(jobs), "--quiet", "all",
                   "--slurm-status-command", "squeue", "--slurm-no-account",
                   "--seconds-between-status-checks", "1",
                   "--slurm-init-seconds-before-status-checks", "1",
                   "--default-resources", "runtime=10", "mem_mb=100")


def submitit(site, names):
    """The same jobs by submitit."""
    return by_peer(site, "python", "-c", SUBMITIT % (PATH, names))


def by_peer(site, command, *arguments):
    """The Cost of a peer's command; None where there are no peers."""
    peers = os.environ.get("PEERS")
    if not peers:
        say("  LEFT OUT: " + command)
        return None
    return measure(site, os.path.join(peers, command), *arguments,
                   PATH=peers + ":" + site.env["PATH"])


# ---- packs ----

WHOLE = """
import subprocess, sys
from pathlib import Path
subprocess.run([sys.executable, "globus-simple-download.py"], check=True)
for path in sorted(Path("downloads").iterdir()):
    subprocess.run(["bash", "process.sh", str(path)], check=True)
    path.unlink()
"""


def packs(sizes):
    """Many small files: files an hour by FILES_PER_JOB, in both places of download."""
    yield ""
    yield (f"| files of 1 kB, tasks of {sizes.task_seconds} s, NUM_JOBS 6 | files | files an hour "
           "| of the ceiling | driver CPU for a file |")
    yield "| --- | --- | --- | --- | --- |"
    most = max(sizes.packed.values())
    with pack_site(sizes, most) as (site, names):
        (site.folder / "whole.py").write_text(WHOLE)
        ceiling = measure(site, sys.executable, "whole.py")
        assert len(list(site.results.iterdir())) == most, ceiling.out
    rate = most / ceiling.wall
    yield (f"| the ceiling: one request for all, then one loop of process.sh | {most:,} | "
           f"{rate * 3600:,.0f} | 1.00 | |")
    for number, files in sizes.packed.items():
        for where in ("job", "driver"):
            with pack_site(sizes, files) as (site, names):
                site.config(f"FILES_PER_JOB = {number}", f"DOWNLOAD_BY = {where!r}")
                ours = drive(site, names)
            say(f"  {number} files a job, by the {where}: {ours}")
            yield (f"| FILES_PER_JOB = {number}, DOWNLOAD_BY = {where!r} | {files:,} | "
                   f"{files / ours.wall * 3600:,.0f} | {files / ours.wall / rate:.2f} | "
                   f"{ours.cpu / files * 1000:.2f} ms |")


    size = max(sizes.packed)
    for name, peer in (("snakemake, a job for", chunks_by_snakemake),
                       ("submitit, an array of", chunks_by_submitit)):
        with pack_site(sizes, most) as (site, names):
            count = write_chunks(site, names, size)
            cost = peer(site, count)
            assert cost is None or len(list(site.results.iterdir())) == most, cost.out
        if cost:
            say(f"  {name}: {cost}")
            yield (f"| {name} chunks of {size} files, 6 at a time, each with a `globus transfer` | "
                   f"{most:,} | {most / cost.wall * 3600:,.0f} | {most / cost.wall / rate:.2f} | |")


def write_chunks(site, names, size):
    """What a user would write who has no collection of scripts; how many chunks there are."""
    (site.folder / "chunks").mkdir()
    site.downloads.mkdir(exist_ok=True)
    (site.folder / "chunk.sh").write_text(CHUNK % (SOURCE, PATH, DESTINATION))
    starts = range(0, len(names), size)
    for number, start in enumerate(starts):
        (site.folder / "chunks" / str(number)).write_text(
            "".join(f"{name} {name}\n" for name in names[start:start + size]))
    site.env.update(GLOBUS_CLI_CLIENT_ID="4f0448d6-e7e2-4637-bc64-e8f682d1cc77",
                    GLOBUS_CLI_CLIENT_SECRET="any", GLOBUS_CLI=os.environ["GLOBUS_CLI"])
    cli(site, "ls", f"{SOURCE}:{PATH}")  # several first calls at a time are in each other's way
    return len(starts)


def chunks_by_snakemake(site, count):
    return by_snakemake(site, CHUNK_SNAKEFILE % count, 6)


def chunks_by_submitit(site, count):
    return by_peer(site, "python", "-c", CHUNK_SUBMITIT % count)


@contextlib.contextmanager
def pack_site(sizes, number):
    """A site with files of 1 kB and the process.sh that comes with the collection."""
    names = [f"f{n:05d}" for n in range(number)]
    with new_site() as (site, emulator):
        emulator.bend(task_seconds=sizes.task_seconds)
        emulator.add(dict.fromkeys(names, b"x" * 1000))
        site.config("NUM_JOBS = 6", "SCHEDULER = 'slurm'")
        yield site, names


# ---- how many jobs? ----


def how_many(sizes):
    """Files an hour by NUM_JOBS: three tasks at work, each with a fixed cost, and processing."""
    yield ""
    yield (f"| NUM_JOBS, a download takes {sizes.task_seconds} s | files an hour, no processing | "
           f"files an hour, processing takes {3 * sizes.task_seconds} s | "
           "no processing, FILES_PER_JOB = 20 |")
    yield "| --- | --- | --- | --- |"
    for number in sizes.num_jobs:
        rates = []
        for seconds, pack in ((0, 1), (3 * sizes.task_seconds, 1), (0, 20)):
            names = [f"f{n}" for n in range(4 * number * pack)]
            with new_site() as (site, emulator):
                emulator.bend(task_seconds=sizes.task_seconds)
                emulator.add(dict.fromkeys(names, b"x"))
                site.config(f"NUM_JOBS = {number}", "SCHEDULER = 'slurm'",
                            f"FILES_PER_JOB = {pack}", "MAX_FAILURES_IN_A_ROW = None")
                site.process(f"sleep {seconds}")
                rates.append(len(names) / drive(site, names).wall * 3600)
        say(f"  NUM_JOBS = {number}: {rates}")
        yield "| {} | {:,.0f} | {:,.0f} | {:,.0f} |".format(number, *rates)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="only see that it works")
    parser.add_argument("--only", help="only the rows made by this function")
    options = parser.parse_args(argv)
    if not IS_SET_UP:
        return subprocess.run(["bash", "-c", SETUP, str(TESTS), *sys.argv[1:]]).returncode
    sizes = SMALL if options.small else FULL
    lines = ["| work | against | ratio | goal | ours / theirs |", "| --- | --- | --- | --- | --- |"]
    for part in (listing, one_file, many_jobs, restart, whole_download, packs, how_many):
        if options.only in (None, part.__name__):
            say(part.__doc__.splitlines()[0])
            lines += part(sizes)
    if options.small:
        lines.insert(0, "Only to see that it works: these sizes are too small to mean anything.\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
