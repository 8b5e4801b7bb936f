"""Jobs of Slurm in another cluster than this one, and of PBS and Torque at another server, which
variables choose.

The stand-ins know one cluster; two lines on PATH before them make it a far one."""
import signal
import subprocess
import types

import pytest
from conftest import (
    BATCH,
    KEEP,
    copy_downloads,
    last_line,
    processed,
    put_before,
    queued,
    wait_until,
)
from in_process import Played, load

read = load("globus-batch-download")
HEADING = "JOBID|NAME|STATE|REASON"

# sbatch goes where SBATCH_CLUSTERS or SLURM_CLUSTERS says; squeue and scancel where SLURM_CLUSTERS
# does. scancel passes over jobs of other names than SCANCEL_NAME.
SBATCH = ['far=${SBATCH_CLUSTERS:-$SLURM_CLUSTERS}',
          'id=$("$real" "$@") && echo "$id${far:+;far}"']
SQUEUE = ['[ -z "$SLURM_CLUSTERS" ] || echo "CLUSTER: $SLURM_CLUSTERS"',
          'case $SLURM_CLUSTERS in far) exec "$real" "$@" ;; *) echo "%s" ;; esac' % HEADING]
SCANCEL = ['[ "$SLURM_CLUSTERS" != far ] || [ -n "$SCANCEL_NAME" ] || exec "$real" "$@"',
           'echo "scancel: error: Kill job error: Invalid job id" >&2; exit 1']


@pytest.fixture
def far(stand_in, tmp_path):
    """A site whose only jobs are in the cluster far."""
    put_before(stand_in, tmp_path, "sbatch", *SBATCH)
    put_before(stand_in, tmp_path, "squeue", *SQUEUE)
    put_before(stand_in, tmp_path, "scancel", *SCANCEL)
    stand_in.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    return copy_downloads(stand_in)


@pytest.fixture
def env(monkeypatch):
    """The environment of this process, for what the driver reads of it: no cluster is chosen."""
    for name in (*read.WHICH_CLUSTER, "SBATCH_CLUSTERS"):
        monkeypatch.delenv(name, raising=False)
    return types.SimpleNamespace(set=monkeypatch.setenv)


NAMED = [
    {"SBATCH_CLUSTERS": "far"}, {"SLURM_CLUSTERS": "far"},
    {"SLURM_CLUSTERS": "near", "SBATCH_CLUSTERS": "far"},
]


@pytest.mark.parametrize("named", NAMED)
def test_all_commands_go_to_the_cluster_where_sbatch_submits(named, env):
    for name, value in named.items():
        env.set(name, value)
    for found in (read.plain_env(), read.submit_env()):
        assert found["SLURM_CLUSTERS"] == "far" and "SBATCH_CLUSTERS" not in found


def test_no_variable_filters_what_the_commands_of_slurm_show_and_cancel(env):
    env.set("SQUEUE_NAMES", "of_theirs")
    env.set("SCANCEL_NAME", "of_theirs")
    assert not {"SQUEUE_NAMES", "SCANCEL_NAME"}.intersection(read.plain_env())


# What is said of a cluster where the driver cannot choose it: scheduler, options, what is named.
ELSEWHERE = [("slurm", option, "SLURM_CLUSTERS") for option in (
    "-M far", "-Mfar", "--clusters=far", "--clusters far", "--cluster=far")] + [
    (kind, option, "PBS_DEFAULT or PBS_SERVER") for kind in ("pbs", "torque")
    for option in ("-q workq@far", "-q @far", "-qworkq@far")]


@pytest.mark.parametrize("kind,option,variable", ELSEWHERE)
def test_an_option_that_names_a_cluster_or_a_server_is_refused_with_the_variable_that_chooses_it(
        kind, option, variable):
    scheduler = read.SCHEDULERS[kind]
    script = "#!/bin/bash\n%s %s\ntrue\n" % (scheduler.directive, option)
    for words, where in ((option.split(), "config.py: RESOURCES"),
                         (read.read_directives(scheduler, script), "wrapper.sh")):
        with pytest.raises(read.helper.UserError) as refusal:
            read.check_options(scheduler, words, where)
        assert str(refusal.value).startswith(where + " holds ")
        assert "chosen by the\nvariable " + variable in str(refusal.value) or (
            "chosen by the variable " + variable in str(refusal.value))
        assert refusal.value.status == 2


def test_a_cluster_at_the_top_of_wrapper_sh_stops_the_driver_before_it_does_anything(far):
    far.edit("wrapper.sh", "#!/bin/bash\n", "#!/bin/bash\n#SBATCH --clusters=far\n")
    done = far.run(BATCH)
    assert done.returncode == 2 and not done.out and not far.jobs.exists()
    assert "wrapper.sh holds '--clusters=far'. " in done.err and "SLURM_CLUSTERS" in done.err


@pytest.mark.parametrize("names", ["near,far", "all"])
def test_several_clusters_are_refused(names, env, monkeypatch):
    env.set("SLURM_CLUSTERS", names)
    monkeypatch.setattr(read.shutil, "which", lambda command: "/usr/bin/" + command)
    with pytest.raises(read.helper.UserError) as refusal:
        read.find_scheduler(types.SimpleNamespace(SCHEDULER="slurm"))
    assert str(refusal.value) == (
        "SLURM_CLUSTERS=%s names several clusters; the driver works with one." % names)
    assert refusal.value.status == 2


@pytest.mark.long
def test_a_run_in_another_cluster_is_stopped_forgotten_and_taken_up_there(far, emulator):
    emulator.add({"a": b"1"})
    far.process("touch begun; until [ -e go ]; do sleep 0.1; done", *KEEP)
    far.env.update(SBATCH_CLUSTERS="far", SLURM_CLUSTERS="near")
    driver = far.start(BATCH)
    wait_until((far.folder / "begun").exists)
    wait_until(lambda: queued(far))
    driver.send_signal(signal.SIGTERM)
    assert b"To cancel: SLURM_CLUSTERS=far scancel 1000\n" in driver.communicate()[1]
    far.env.pop("SBATCH_CLUSTERS")
    done = far.run(BATCH)
    assert done.returncode == 2
    assert "cancel its jobs:\nSLURM_CLUSTERS=far scancel 1000\n" in done.err
    far.env["SLURM_CLUSTERS"] = "far"
    driver = far.start(BATCH)
    wait_until(lambda: b"Resuming" in driver.stderr.readline())
    subprocess.run(["sleep", "1.5"], check=True)  # some polls
    (far.folder / "go").touch()
    out, err = driver.communicate()
    assert out.endswith(b"1 processed, 0 failed, 0 not needed\n"), err
    assert processed(far) == {"a": 1} and b"ended early" not in err


def test_one_that_was_given_up_is_cancelled_in_its_cluster(far, emulator, tmp_path):
    """The first submission hangs, and is given up; yet its job, 1000, waits in the queue."""
    emulator.add({"a": b"1"})
    far.env.update(SLURM_CLUSTERS="far", SCANCEL_NAME="of_theirs")
    (tmp_path / "hang").mkdir()
    put_before(far, tmp_path / "hang", "sbatch",
               'mkdir "$0.first" 2>/dev/null || exec "$real" "$@"',
               'cat >/dev/null; echo "exec sleep 100" | "$real" "$@" >/dev/null; exec sleep 100')
    put_before(far, tmp_path / "hang", "squeue",
               '"$real" "$@" | sed "/^1000|/s/RUNNING|None/PENDING|Priority/"')
    far.edit(BATCH, "SUBMIT_SECONDS = 300", "SUBMIT_SECONDS = 1")
    state = tmp_path / "stand-in" / "1000" / "state"
    far.process("until grep -q CANCELLED %s; do sleep 0.1; done" % state, *KEEP)
    done = far.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err
    assert state.read_text() == "CANCELLED\n" and processed(far) == {"a": 1}


def test_a_job_that_is_revoked_here_is_at_work_in_its_federation(played):
    played.start("a", GRACE_SECONDS=0).step()
    played.jobs["1000"].begin(0)
    played.jobs["1000"].state = "REVOKED"
    played.poll(4)
    assert played.count("closed") == 0 and "early" not in played.text()


def test_jobs_at_another_pbs_server_are_not_looked_for_at_this_one(tmp_path, monkeypatch, env):
    played = Played(tmp_path, monkeypatch, "pbs")
    qstat = played.plays["qstat"]
    played.plays["qstat"] = lambda command: qstat(command) if command != ["qstat", "-B"] else (
        0, "Server     Max  Tot\n---------- ---- ----\npbshost       0    1\n", "")
    env.set("PBS_SERVER", "far")
    played.start("a").step()
    played.kill()
    env.set("PBS_SERVER", "near")
    with pytest.raises(read.helper.UserError) as refusal:
        played.start()
    assert refusal.value.status == 2
    assert ("cluster = 'pbshost PBS_SERVER=far', not 'pbshost PBS_SERVER=near'"
            in str(refusal.value))
    assert "\nPBS_SERVER=far qdel 1000.pbshost\n" in str(refusal.value)
