"""What the driver does with a scheduler's words, lines and states that it does not know, and in
the surroundings of real login nodes: it goes by rules, so that the unknown does no harm."""
import os
import resource
import shlex
import shutil
import signal
import subprocess
import time

import hypothesis
import pytest
from conftest import (
    BATCH,
    KEEP,
    journal,
    last_line,
    processed,
    put_before,
    wait_until,
    with_stand_in,
)
from hypothesis import strategies

# process.sh: the job is killed at work on the file.
DIE = "touch killed; kill -KILL $PPID $$"

ONCE_IN = 'mkdir "$0.first" 2>/dev/null && exec "$real" "$@"'  # the first time it works

REFUSED = "The scheduler did not accept a job: "

# What schedulers were seen to say in the middle of a run.
REFUSALS = [
    "sbatch: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n"
    "sbatch: fatal: Could not establish a configuration source",
    "sbatch: error: Munge encode failed: Failed to access \"/run/munge/munge.socket.2\": No such "
    "file or directory\nsbatch: error: slurm_send_node_msg: g_slurm_auth_create failed",
    "sbatch: error: Batch job submission failed: Required partition not available (inactive or "
    "drain)",
    "sbatch: error: AssocGrpSubmitJobsLimit\nsbatch: error: Batch job submission failed: Job "
    "violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
    "qsub: Invalid credential", "qsub: Unknown queue", "",
]


def refuse(site, tmp_path, name, words):
    """Let submissions be refused in these words, one after the other, after a first one that was
    accepted; then all are accepted again. Returns the file that tells how many were refused."""
    folder = put_before(
        site, tmp_path, name, ONCE_IN, 'n=$(($(cat "$0.n") + 1)); echo $n >"$0.n"',
        '[ -e "$0.words.$n" ] || exec "$real" "$@"', 'cat "$0.words.$n" >&2; exit 1')
    (folder / (name + ".n")).write_text("0\n")
    for number, text in enumerate(words, 1):
        (folder / f"{name}.words.{number}").write_text(text + "\n", encoding="utf-8")
    return folder / (name + ".n")


def unknown_words(number):
    """Texts that nobody thought of; the same ones each time."""
    drawn = []

    @hypothesis.given(strategies.text())
    @hypothesis.settings(max_examples=number, derandomize=True, database=None)
    def draw(text):
        drawn.append(text)

    draw()
    return drawn


@pytest.mark.long
@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_no_refusal_stops_a_run_that_has_begun(kind, site, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2", "c": b"3"})
    words = REFUSALS + unknown_words(20)
    refused = refuse(with_stand_in(site, tmp_path, kind), tmp_path,
                     "sbatch" if kind == "slurm" else "qsub", words)
    site.config("POLL_SECONDS = 0.1", "NUM_JOBS = 1")
    site.process(*KEEP)
    done = site.run(BATCH)
    assert last_line(done) == "3 processed, 0 failed, 0 not needed", done.err
    assert processed(site) == {"a": 1, "b": 1, "c": 1}
    assert int(refused.read_text()) > len(words)
    assert sorted(os.listdir(str(site.jobs))) == ["driver.lock", "journal.jsonl"]


def kill_driver_with_a_job(site):
    """Kill the driver when its first job is queued, which waits for a file `go`."""
    site.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = site.start(BATCH)
    wait_until(lambda: any(event["event"] == "queued" for event in journal(site)))
    driver.kill()
    driver.communicate()


def test_refusals_after_a_restart_do_not_stop_a_run_that_has_a_job_in_the_queue(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    refused = refuse(stand_in, tmp_path, "sbatch", ["out of cheese"] * 6)
    stand_in.config("POLL_SECONDS = 0.2", "NUM_JOBS = 1")
    kill_driver_with_a_job(stand_in)
    stand_in.config("NUM_JOBS = 2")
    driver = stand_in.start(BATCH)
    wait_until(lambda: int(refused.read_text() or 0) > 6)  # empty while it is written
    (stand_in.folder / "go").touch()
    out, err = driver.communicate()
    assert out.endswith(b"2 processed, 0 failed, 0 not needed\n"), err
    assert err.decode().count(REFUSED + "out of cheese\n") == 1
    assert processed(stand_in) == {"a": 1, "b": 1}


def test_other_resources_than_those_that_were_accepted_may_stop_the_run(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("NUM_JOBS = 1", "POLL_SECONDS = 0.2")
    kill_driver_with_a_job(stand_in)
    (stand_in.folder / "go").touch()
    stand_in.config("RESOURCES = '--nonsense=3'")
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert ("The scheduler has accepted no job in 3 tries: sbatch: unrecognized option "
            "'--nonsense=3'; Try " in done.err)
    assert processed(stand_in) == {"a": 1}
    stand_in.config("RESOURCES = ''")
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1, "b": 1}


def test_a_run_whose_first_job_was_refused_is_not_in_the_way(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("RESOURCES = '--nonsense=3'", "POLL_SECONDS = 0.2")
    assert stand_in.run(BATCH).returncode == 1
    assert stand_in.run("globus-simple-download.py").returncode == 0
    stand_in.config("RESOURCES = ''", "PATH = '/home/share'", "RECURSIVE = True")
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err
    assert "interrupted" not in done.err


def test_a_folder_in_jobs_of_a_run_that_is_over_goes_away(stand_in, emulator):
    emulator.add({"a": b"1"})
    folder = stand_in.jobs / "g4-abcde"
    folder.mkdir(parents=True)
    for name in ("files", "moved", "gone.1", "end.2.7.node-1-2.0.0", "log", "0.log", "arrived"):
        (folder / name).write_text("")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert sorted(os.listdir(str(stand_in.jobs))) == ["driver.lock", "journal.jsonl"]


@pytest.mark.parametrize("gone", ["files", "settings.json", "arrived", "results"])
def test_a_folder_in_jobs_that_was_half_removed_when_the_driver_was_killed_goes_away(
        gone, stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.process("exit 3")
    assert last_line(stand_in.run(BATCH)) == "0 processed, 1 failed, 0 not needed"
    removed = list(stand_in.jobs.glob("g*/%s*" % gone))
    assert removed
    shutil.rmtree(str(next(stand_in.downloads.glob("g*"))))  # which goes first
    for path in removed:
        path.unlink()
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err
    assert sorted(os.listdir(str(stand_in.jobs))) == ["driver.lock", "journal.jsonl"]
    assert not stand_in.downloaded()


# name: RESOURCES, what the first submission says, what the person is told
FIRST_REFUSALS = {
    "a partition that sounds like a limit": (
        "-p unlimited", "sbatch: error: invalid partition specified: unlimited",
        "invalid partition specified: unlimited"),
    "a queue that sounds like an outage": (
        "-q timeout", "qsub: Unknown queue timeout", "qsub: Unknown queue timeout"),
    "the reason below a banner": (
        "", "\n".join(f"* line {n} of the banner *" for n in range(10)) + "\nout of cheese",
        "* Connections to this cluster are monitored *; ...; out of cheese"),
    "a banner on stdout that sounds like an outage": (
        "", "sbatch: error: out of cheese", "out of cheese"),
    "the reason above a usage text": (
        "", "qsub: illegal -N value\nusage: qsub [-a date_time]\n\t[-c interval]\n  qsub --version",
        "monitored *; qsub: illegal -N value\n"),
}


@pytest.mark.parametrize("name", FIRST_REFUSALS)
def test_refusals_from_the_first_one_on_stop_the_run_with_their_reason(
        name, stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    resources, words, told = FIRST_REFUSALS[name]
    put_before(stand_in, tmp_path, "sbatch", "echo '* Connections to this cluster are monitored *'",
               f"echo {shlex.quote(words)} >&2; exit 1")
    stand_in.config(f"RESOURCES = {resources!r}", "POLL_SECONDS = 0.2")
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert done.err.count(REFUSED) == 1
    refusal, end = done.err.split(REFUSED)[1].split("has accepted no job in 3 tries: ")
    assert told in refusal.split("\nThe command was: sbatch ")[0] + "\n"
    assert told in end.split("\nFix that, often RESOURCES in config.py, ")[0] + "\n"


def test_a_server_that_there_is_not_is_no_outage(site, emulator, tmp_path):
    emulator.add({"a": b"1"})
    with_stand_in(site, tmp_path, "torque")
    put_before(site, tmp_path, "qsub",
               "echo 'Can not resolve name for server nosuch. (rc = -2 - )' >&2",
               "echo 'qsub: cannot connect to server nosuch (errno=15010)' >&2; exit 162")
    site.env["PBS_DEFAULT"] = "nosuch"
    site.config("POLL_SECONDS = 0.2")
    done = site.run(BATCH)
    assert done.returncode == 1
    assert ("accepted no job in 3 tries: Can not resolve name for server nosuch. (rc = -2 - ); "
            "qsub: cannot connect to server nosuch (errno=15010)\n" in done.err)


def test_a_notice_behind_the_id_does_no_harm(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "sbatch", '"$real" "$@"; echo "Maintenance on Tuesday at 5"')
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
    assert REFUSED not in done.err


def test_a_submission_without_an_id_whose_job_has_begun_costs_no_slot(
        stand_in, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(3)})
    put_before(stand_in, tmp_path, "sbatch", '"$real" "$@" >/dev/null',
               'name=${@: -1}; pack=${name%%.*}-${name#*-}',
               'until compgen -G "jobs/$pack/at.1.*" >/dev/null; do sleep 0.05; done')
    stand_in.config("POLL_SECONDS = 2")
    stand_in.process("sleep 3", *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "3 processed, 0 failed, 0 not needed"
    events = [event["event"] for event in journal(stand_in)]
    assert [event for event in events if event in ("submit", "queued")] == (
        ["submit"] * 3 + ["queued"] * 3)
    assert REFUSED not in done.err and processed(stand_in) == {"f%d" % n: 1 for n in range(3)}


def test_a_submission_that_brings_no_job_to_the_queue_is_not_tried_for_ever(
        stand_in, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(3)})
    put_before(stand_in, tmp_path, "sbatch", "echo swallowed by a hook of the site")
    stand_in.config("POLL_SECONDS = 0.2")
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert "has accepted no job in 3 tries: swallowed by a hook of the site\n" in done.err


OPTIONS = [
    ("slurm", "--array=1-3"), ("slurm", "-a 1-3"), ("slurm", "--hold"),
    ("slurm", "-H"), ("slurm", "--wrap=true"), ("slurm", "--dependency=singleton"),
    ("slurm", "--test-only"), ("slurm", "-W"), ("slurm", "--time=1:00 job.sh"),
    ("pbs", "-- /bin/true"), ("pbs", "-J 1-3"), ("pbs", "-h"), ("pbs", "-I"), ("pbs", "-z"),
    ("pbs", "-W depend=afterok:1"), ("pbs", "-W group_list=x,block=true"),
    ("pbs", "-l walltime=1:00:00 job.sh"), ("torque", "-t 1-3"),
    ("sge", "-t 1-3"), ("sge", "-h"), ("sge", "-hold_jid 5"), ("sge", "-sync y")]


@pytest.mark.parametrize("kind,resources", OPTIONS)
def test_options_that_make_another_job_are_named_before_the_first_job(
        kind, resources, site, tmp_path):
    with_stand_in(site, tmp_path, kind)
    site.config(f"RESOURCES = {resources!r}")
    done = site.run(BATCH)
    assert done.returncode == 2
    assert done.err.startswith("config.py: RESOURCES holds '") and len(done.err.splitlines()) == 2


@pytest.mark.parametrize("kind,resources", [
    ("slurm", "-p short --time 1:00:00 --mem=4G -A me --exclusive --wait-all-nodes=1 -N 1"),
    ("pbs", "-l select=1:ncpus=1 -q a -W group_list=x -p -5 -A me"),
    ("sge", "-pe smp 4 -binding set linear:1 -l h_vmem=4G -v A=b -hard -p -100 -terse")])
def test_other_options_are_the_users_own(kind, resources, site, tmp_path):
    with_stand_in(site, tmp_path, kind)
    site.config(f"RESOURCES = {resources!r}")
    assert site.run(BATCH, "--dry-run").returncode == 0


# ---- the queue ----

FOREIGN = {
    "a name with a line feed": ("slurm", '"$real" "$@"; echo "7|two"; echo "lines|RUNNING|None"'),
    "a notice before the heading": ("slurm", 'echo "Maintenance on Tuesday"; "$real" "$@"'),
    "a notice of PBS": ("pbs", 'echo "Maintenance on Tuesday"; "$real" "$@"'),
    "a comment with many lines": (
        "pbs", 'out=$("$real" "$@"); if [ -n "$out" ]; then echo "$out"; else echo "---"; fi; '
        'echo "99.pbshost root workq theirs -- 1 1 -- -- Q --"; echo "   no licence"; '
        'echo "asked for: 3"; echo; echo "9 there are"'),
    "a name that is no XML": ("sge", '"$real" "$@" | sed "s/^ *<queue_info>/&<job_list><JB_name>'
                                     '\\x01<\\/JB_name><\\/job_list>/"'),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_lines_hide_neither_jobs_nor_that_one_is_gone(name, site, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    kind, line = FOREIGN[name]
    with_stand_in(site, tmp_path, kind)
    put_before(site, tmp_path, "squeue" if kind == "slurm" else "qstat",
               '[[ "$*" != *version* && "$*" != *help* ]] || exec "$real" "$@"', line)
    site.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    site.process("case $1 in *a) %s ;; esac; sleep 1" % DIE, *KEEP)
    done = site.run(BATCH)
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    words = {"slurm": "killed twice while it was processed: the scheduler says FAILED"}.get(
        kind, "the job was lost: no exit status, and it is not in the queue any more")
    assert "FAILED a: " + words in done.err
    assert processed(site) == {"b": 1}


def test_a_job_on_a_line_that_cannot_be_read_is_not_lost(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | sed "s/|RUNNING|None$/ RUNNING/"')
    stand_in.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.2")
    stand_in.process("sleep 2", *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
    assert "ended early" not in done.err


def test_a_job_that_was_requeued_and_held_is_told_with_the_way_to_release_it(real_slurm, emulator):
    emulator.add({"a": b"1"})
    real_slurm.config("RESOURCES = '--requeue'")
    real_slurm.process('if mkdir once; then scontrol requeuehold "$SLURM_JOB_ID"; sleep 100; fi',
                       *KEEP)
    driver, said = real_slurm.start(BATCH), []
    wait_until(lambda: said.append(driver.stderr.readline().decode())
               or said[-1].startswith("To release: "))
    assert "No job is running; the scheduler says of 1 job: " in said[-2]
    release = said[-1].split()[2:]
    subprocess.run(release, env=real_slurm.env, check=True)
    time.sleep(3)  # Slurm itself would wait for two minutes, see test_faults.py
    subprocess.run(["scontrol", "update", "StartTime=now", "JobId=" + release[-1]], check=True,
                   env=real_slurm.env)
    assert driver.communicate()[0].endswith(b"1 processed, 0 failed, 0 not needed\n")


def test_a_job_that_never_began_is_told_at_once_without_a_log_that_is_not_there(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "sbatch", 'cat >/dev/null',
               'for option; do shift; [[ $option = --output* ]] || set -- "$@" "$option"; done',
               'echo "exit 1" | "$real" "$@"')
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | sed "s/None$/JobLaunchFailure/"')
    stand_in.config("GRACE_SECONDS = 1000", "POLL_SECONDS = 0.3", "MAX_FAILURES_IN_A_ROW = 2")
    done = stand_in.run(BATCH)
    words = ("the job never started: the scheduler says FAILED, JobLaunchFailure. Can the compute "
             "nodes see, and write, WORKING_DIR?")
    assert done.returncode == 1 and done.err.count(f"ended early: {words}") == 1
    assert "STOPPING: 2 files or jobs failed in a row" in done.err
    assert "2 of them with: the job never started: the scheduler says FAILED, Job" in done.err
    assert "/log" not in done.err and "/log" not in done.out


# ---- the login node ----


def test_a_folder_has_the_name_that_the_shell_gives_it(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    link = tmp_path / "home-by-another-name"
    link.symlink_to(stand_in.folder.parent)
    named = link / stand_in.folder.name
    folder = put_before(stand_in, tmp_path, "sbatch", 'tee "$0.script" | "$real" "$@"')
    os.symlink("/usr/bin/tee", str(tmp_path / "bin" / "tee"))
    stand_in.env["PWD"] = str(named)
    stand_in.edit("wrapper.sh", "edit here ----\n", "edit here ----\ncd /\n")
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err
    script = (folder / "sbatch.script").read_text()
    pack, = {event["pack"] for event in journal(stand_in) if "pack" in event}
    assert (f"\nset -- --pack {named}/jobs/{pack} 1 3 {named} {named} {named}/downloads/{pack} "
            in script)
    assert str(stand_in.folder) not in script


IN_A_JOB = {
    "slurm": ({"SLURM_JOB_ID": "1", "SLURM_MEM_PER_NODE": "1"}, {"SLURM_CONF": "/kept"}),
    "pbs": ({"PBS_JOBID": "1.a", "PBS_NODEFILE": "/nowhere"}, {"PBS_CONF_FILE": "/kept"}),
    "sge": ({"SGE_TASK_ID": "undefined", "JOB_ID": "1", "JOB_NAME": "x", "SGE_STDIN_PATH": "x"},
            {"SGE_CELL": "kept"}),
}


@pytest.mark.parametrize("kind", IN_A_JOB)
def test_what_the_scheduler_set_for_the_driver_is_not_for_its_jobs(
        kind, site, emulator, tmp_path):
    emulator.add({"a": b"1"})
    foreign, kept = IN_A_JOB[kind]
    with_stand_in(site, tmp_path, kind).env.update({**foreign, **kept})
    site.process("env >../env")
    assert last_line(site.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    env = dict(line.split("=", 1) for line in (site.folder.parent / "env").read_text().splitlines()
               if "=" in line)
    assert not [name for name, value in foreign.items() if env.get(name) == value]
    assert kept.items() <= env.items()


def test_a_driver_that_is_a_job_has_jobs_that_can_use_srun(real_slurm, emulator):
    emulator.add({"a": b"1"})
    real_slurm.env.update(SLURM_JOB_ID="1", SLURM_MEM_PER_NODE="1", SLURM_MEM_PER_CPU="1")
    real_slurm.process("srun true", *KEEP)
    assert last_line(real_slurm.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_the_limits_of_the_login_node_are_not_for_jobs(real_slurm, emulator):
    emulator.add({"a": b"1"})
    real_slurm.process("ulimit -t >limit")
    driver = subprocess.run(
        real_slurm.command(BATCH), cwd=str(real_slurm.folder), env=real_slurm.env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (500, 500)))
    assert driver.returncode == 0, driver.stderr
    assert (real_slurm.folder / "limit").read_text() == "unlimited\n"


@pytest.mark.parametrize("number", [signal.SIGXCPU, signal.SIGUSR2, signal.SIGTERM])
def test_a_driver_that_is_ended_by_its_own_walltime_says_how_to_go_on(number, stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"submitted" in driver.stderr.readline())
    driver.send_signal(number)
    err = driver.communicate()[1].decode()
    assert driver.returncode == 130
    assert "Stopped. 1 job left in the queue.\nStart this script again to continue" in err
    (stand_in.folder / "go").touch()
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_a_full_tmp_does_no_harm(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("import tempfile", "tempfile.tempdir = '/nonexistent'")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


def test_a_journal_that_cannot_be_written_for_a_moment_ends_the_driver_and_loses_no_file(
        stand_in, emulator):
    emulator.add({"f%d" % n: b"x" for n in range(6)})
    stand_in.config("import errno", "real, calls = os.fstat, []", "def fstat(fd):",
                    "    calls.append(1)",
                    "    if len(calls) == 12 and not os.path.exists('once'):",
                    "        open('once', 'w'); raise OSError(errno.EIO, os.strerror(errno.EIO))",
                    "    return real(fd)", "os.fstat = fstat")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and f"Input/output error: {stand_in.jobs}/journal" in done.err
    assert last_line(stand_in.run(BATCH)) == "6 processed, 0 failed, 0 not needed"
    assert set(processed(stand_in).values()) == {1}


STALE = """
import os, errno
real, left = os.listdir, [3]
def listdir(path="."):
    journal = os.path.join(path, "..", "journal.jsonl")
    if "/jobs/g" in str(path) and left[0] and '"queued"' in open(journal).read():
        left[0] -= 1
        raise OSError(errno.%s, os.strerror(errno.%s), path)
    return real(path)
os.listdir = listdir
"""


@pytest.mark.parametrize("code", ["ESTALE", "EIO"])
def test_a_disk_that_is_out_of_order_for_a_moment_is_told_and_waited_for(
        code, stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config(STALE % (code, code))
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
    assert done.err.count("Waiting: ") == 1
    pack, = {event["pack"] for event in journal(stand_in) if "pack" in event}
    assert f": {stand_in.jobs}/{pack}. Trying again.\n" in done.err


# ---- a resumed run ----


def interrupted_run(site, emulator):
    """A run with one job that has ended since its driver was killed; the next listing is slow."""
    site.edit(BATCH, "LISTING_SECONDS = 1", "LISTING_SECONDS = 0")
    kill_driver_with_a_job(site)
    (site.folder / "go").touch()
    wait_until(lambda: list(site.jobs.glob("g*/end.*")))
    emulator.bend_collection("6c54cade-bde5-45c1-bdea-f4bd71dba2cc", list_seconds=1)


@pytest.mark.long
def test_jobs_end_and_begin_while_the_listing_of_a_resumed_run_still_comes(stand_in, emulator):
    emulator.add({f"d{n}/f": b"x" for n in range(4)})
    stand_in.config("RECURSIVE = True", "NUM_JOBS = 1", "POLL_SECONDS = 0.2",
                    "def is_file_needed(file):",
                    "    open('asked', 'a').write(file.path + chr(10)); return True")
    interrupted_run(stand_in, emulator)
    asked = stand_in.folder / "asked"
    asked.unlink()
    driver, said = stand_in.start(BATCH), []
    wait_until(lambda: said.append(driver.stderr.readline()) or b"submitted" in said[-1])
    assert any(b"Resuming the interrupted run: 1 processed, 1 job (1000)." in line for line in said)
    assert "d3/f" not in asked.read_text()
    assert driver.communicate()[0].endswith(b"4 processed, 0 failed, 0 not needed\n")
    assert asked.read_text().startswith("d1/f\nd2/f\nd3/f\n")
    assert set(processed(stand_in).values()) == {1}


def test_a_signal_is_obeyed_while_the_listing_of_a_resumed_run_comes(stand_in, emulator):
    emulator.add({f"d{n:02d}/f": b"x" for n in range(20)})
    stand_in.config("RECURSIVE = True", "NUM_JOBS = 1")
    interrupted_run(stand_in, emulator)
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"Resuming" in driver.stderr.readline())
    begun = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    assert b"Stopped. " in driver.communicate()[1]
    assert driver.returncode == 130 and time.monotonic() - begun < 10


@pytest.mark.long
def test_no_room_for_what_is_listed_so_far_does_not_stop_a_resumed_run(stand_in, emulator):
    emulator.add({"d0/f": b"x" * 10, "d1/f": b"x" * 200, "d2/f": b"x" * 900, "d3/f": b"x"})
    stand_in.config("RECURSIVE = True", "NUM_JOBS = 1", "MAX_BYTES = 1000")
    interrupted_run(stand_in, emulator)
    stand_in.process("[[ $1 != */d1/f ]] || exit 3", *KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "leaves no room for another file" in done.err
    assert f"\nrm -r {stand_in.downloads}/g" in done.err
    assert processed(stand_in) == {"d0/f": 1, "d3/f": 1}


# ---- shells ----


def test_options_of_the_shell_that_are_exported_do_not_reach_the_job(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("FILES_PER_JOB = 2", "NUM_JOBS = 1", "MAX_FAILURES_IN_A_ROW = None")
    stand_in.process("case $1 in *a) exit 3 ;; esac", *KEEP)
    stand_in.env["SHELLOPTS"] = "errexit"
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    assert "FAILED a: exit status 3" in done.err and processed(stand_in) == {"b": 1}


def test_a_start_up_file_that_exits_is_no_success(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    start_up = tmp_path / "profile"
    start_up.write_text('case $0 in */script) exit 0 ;; esac\n')
    stand_in.env["BASH_ENV"] = str(start_up)
    stand_in.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.3", "MAX_FAILURES_IN_A_ROW = 2")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and "STOPPING: 2 files or jobs failed in a row" in done.err
    assert ("2 of them with: the job never started: the scheduler says COMPLETED. Can the compute "
            "nodes see, and write, " in done.err)
    assert "Does a start-up file of your shell exit?" in done.err
    assert last_line(done).startswith("0 processed, ") and not processed(stand_in)
    assert not [event for event in journal(stand_in) if event["event"] == "over"]


def test_a_start_up_file_that_exits_where_wrapper_sh_begins_harms_no_job(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    start_up = tmp_path / "profile"
    start_up.write_text('case $0 in */wrapper.sh) exit 0 ;; esac\n')
    stand_in.env["BASH_ENV"] = str(start_up)
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == {"a": 1}


def test_a_lost_job_does_not_blame_the_last_word_of_a_wait_that_is_over(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | grep -v FAILED')
    stand_in.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.3")
    stand_in.process("echo Resumed. >&2", DIE)
    done = stand_in.run(BATCH)
    assert "FAILED a: the job was lost: no exit status" in done.out
    assert "Resumed." not in done.out


def test_a_lost_job_that_lives_on_does_nothing_more_when_the_next_run_has_begun(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | grep -v "^1000|"')  # the first job
    put_before(stand_in, tmp_path, "scancel", "exit 1")
    stand_in.config("FILES_PER_JOB = 2", "NUM_JOBS = 1", "MAX_FAILURES_IN_A_ROW = None",
                    "GRACE_SECONDS = 5", "POLL_SECONDS = 0.3")
    stand_in.process("case $1 in *a) until [ -e go ]; do sleep 0.1; done ;; esac", *KEEP)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 1 failed, 0 not needed"
    stand_in.config("def is_file_needed(file):", "    return False")
    assert last_line(stand_in.run(BATCH)) == "0 processed, 0 failed, 2 not needed"
    (stand_in.folder / "go").touch()
    states = [path / "state" for path in (tmp_path / "stand-in").iterdir()]
    wait_until(lambda: not any("RUNNING" in state.read_text() for state in states))
    assert processed(stand_in) == {"a": 1, "b": 1}
