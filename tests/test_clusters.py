"""Jobs of Slurm in another cluster than this one, and of PBS and Torque at another server, which
variables choose.

The stand-ins know one cluster; two lines on PATH before them make it a far one."""
import subprocess

import pytest
from conftest import BATCH, KEEP, last_line, processed, put_before, wait_until, with_stand_in

HEADING = "JOBID|NAME|STATE|REASON"

# sbatch goes where SBATCH_CLUSTERS or SLURM_CLUSTERS says; squeue and scancel where SLURM_CLUSTERS
# does.
SBATCH = ['far=${SBATCH_CLUSTERS:-$SLURM_CLUSTERS}',
          'id=$("$real" "$@") && echo "$id${far:+;far}"']
SQUEUE = ['[ -z "$SLURM_CLUSTERS" ] || echo "CLUSTER: $SLURM_CLUSTERS"',
          'case $SLURM_CLUSTERS in far) exec "$real" "$@" ;; *) echo "%s" ;; esac' % HEADING]
SCANCEL = ['[ "$SLURM_CLUSTERS" != far ] || exec "$real" "$@"',
           'echo "scancel: error: Kill job error: Invalid job id" >&2; exit 1']


@pytest.fixture
def far(stand_in, tmp_path):
    """A site whose only jobs are in the cluster far."""
    put_before(stand_in, tmp_path, "sbatch", *SBATCH)
    put_before(stand_in, tmp_path, "squeue", *SQUEUE)
    put_before(stand_in, tmp_path, "scancel", *SCANCEL)
    stand_in.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    return stand_in


NAMED = {
    "SBATCH_CLUSTERS": {"SBATCH_CLUSTERS": "far"},
    "SLURM_CLUSTERS": {"SLURM_CLUSTERS": "far"},
    "both": {"SLURM_CLUSTERS": "near", "SBATCH_CLUSTERS": "far"},
}


@pytest.mark.parametrize("how", NAMED)
def test_jobs_in_another_cluster_are_not_lost(how, far, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    far.env.update(NAMED[how])
    far.process("sleep 2", *KEEP)
    done = far.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed", done.err
    assert processed(far) == {"a": 1, "b": 1}
    assert "ended early" not in done.err


@pytest.mark.parametrize("option", ["-M far", "-Mfar", "--clusters=far", "--clusters far",
                                    "--cluster=far"])
def test_a_cluster_in_resources_is_refused_with_the_variable_that_chooses_it(option, far):
    far.config("RESOURCES = %r" % option)
    done = far.run(BATCH)
    assert done.returncode == 2 and not done.out
    assert "config.py: RESOURCES holds %r. " % option.split()[0] in done.err
    assert "A cluster of Slurm is chosen by the variable SLURM_CLUSTERS" in done.err
    assert not far.jobs.exists()


def test_a_cluster_at_the_top_of_wrapper_sh_is_refused_too(far):
    far.edit("wrapper.sh", "#!/bin/bash\n", "#!/bin/bash\n#SBATCH --clusters=far\n")
    done = far.run(BATCH)
    assert done.returncode == 2 and not far.jobs.exists()
    assert "wrapper.sh holds '--clusters=far'. " in done.err and "SLURM_CLUSTERS" in done.err


def test_jobs_in_another_cluster_are_taken_up(far, emulator):
    emulator.add({"a": b"1"})
    far.process("touch begun; until [ -e go ]; do sleep 0.1; done", *KEEP)
    far.env["SBATCH_CLUSTERS"] = "far"
    driver = far.start(BATCH)
    wait_until((far.folder / "begun").exists)
    driver.kill()
    driver.communicate()
    driver = far.start(BATCH)
    wait_until(lambda: b"Resuming" in driver.stderr.readline())
    subprocess.run(["sleep", "1.5"], check=True)  # some polls
    (far.folder / "go").touch()
    assert driver.communicate()[0].endswith(b"1 processed, 0 failed, 0 not needed\n")
    assert processed(far) == {"a": 1}


def test_one_that_was_given_up_is_cancelled_in_its_cluster(far, emulator, tmp_path):
    emulator.add({"a": b"1"})
    far.env["SLURM_CLUSTERS"] = "far"
    give_up_a_waiting_job(far, tmp_path)
    far.process("sleep 2", *KEEP)
    done = far.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err
    assert (tmp_path / "stand-in" / "1000" / "state").read_text() == "CANCELLED\n"
    assert processed(far) == {"a": 1}


def give_up_a_waiting_job(site, tmp_path):
    """The first submission hangs, and is given up; yet its job, 1000, waits in the queue."""
    folder = tmp_path / "hang"
    folder.mkdir()
    put_before(site, folder, "sbatch", 'mkdir "$0.first" 2>/dev/null || exec "$real" "$@"',
               'cat >/dev/null; echo "exec sleep 100" | "$real" "$@" >/dev/null; exec sleep 100')
    put_before(site, folder, "squeue",
               '"$real" "$@" | sed "/^1000|/s/RUNNING|None/PENDING|Priority/"')
    site.edit(BATCH, "SUBMIT_SECONDS = 300", "SUBMIT_SECONDS = 1")
    site.config("POLL_SECONDS = 0.3")


def test_the_command_to_cancel_names_the_cluster(far, emulator):
    emulator.add({"a": b"1"})
    far.env["SBATCH_CLUSTERS"] = "far"
    far.process("touch begun; sleep 3")
    driver = far.start(BATCH)
    wait_until((far.folder / "begun").exists)
    driver.terminate()
    assert b"To cancel: SLURM_CLUSTERS=far scancel 1000\n" in driver.communicate()[1]


@pytest.mark.parametrize("names", ["near,far", "all"])
def test_several_clusters_are_refused(names, far):
    far.env["SLURM_CLUSTERS"] = names
    done = far.run(BATCH)
    assert done.returncode == 2 and not far.jobs.exists()
    assert done.err == (
        "SLURM_CLUSTERS=%s names several clusters; the driver works with one.\n" % names)


def test_the_command_to_forget_a_run_names_its_cluster(far, emulator):
    emulator.add({"a": b"1"})
    far.env["SLURM_CLUSTERS"] = "far"
    far.process("touch begun; until [ -e go ]; do sleep 0.1; done", *KEEP)
    driver = far.start(BATCH)
    wait_until((far.folder / "begun").exists)
    driver.kill()
    driver.communicate()
    far.env["SLURM_CLUSTERS"] = "near"
    done = far.run(BATCH)
    (far.folder / "go").touch()
    assert done.returncode == 2
    assert "cancel its jobs:\nSLURM_CLUSTERS=far scancel 1000\n" in done.err


def test_a_variable_that_filters_what_scancel_cancels_is_not_obeyed(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    stand_in.env["SCANCEL_NAME"] = "of_theirs"
    give_up_a_waiting_job(stand_in, tmp_path)
    put_before(stand_in, tmp_path, "scancel", '[ -n "$SCANCEL_NAME" ] || exec "$real" "$@"')
    stand_in.process("sleep 2", *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err
    assert (tmp_path / "stand-in" / "1000" / "state").read_text() == "CANCELLED\n"


def test_a_job_that_is_revoked_here_is_at_work_in_its_federation(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | sed "s/RUNNING/REVOKED/"')
    stand_in.config("GRACE_SECONDS = 0", "POLL_SECONDS = 0.3")
    stand_in.process("sleep 2", *KEEP)
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


@pytest.mark.parametrize("kind", ["pbs", "torque"])
@pytest.mark.parametrize("option", ["-q workq@far", "-q @far", "-qworkq@far"])
def test_a_queue_at_another_server_is_refused_with_the_variable_that_chooses_it(
        option, kind, site, tmp_path):
    with_stand_in(site, tmp_path, kind)
    site.config("RESOURCES = %r" % option)
    done = site.run(BATCH)
    assert done.returncode == 2 and not done.out
    assert done.err.startswith("config.py: RESOURCES holds ")
    assert "the server is chosen by the variable PBS_DEFAULT or PBS_SERVER" in done.err
    assert not site.jobs.exists()


def test_jobs_at_another_pbs_server_are_not_looked_for_at_this_one(site, emulator, tmp_path):
    with_stand_in(site, tmp_path, "pbs")
    emulator.add({"a": b"1"})
    site.process("touch begun; sleep 2", *KEEP)
    site.env["PBS_SERVER"] = "far"
    driver = site.start(BATCH)
    wait_until((site.folder / "begun").exists)
    driver.kill()
    driver.communicate()
    site.env["PBS_SERVER"] = "near"
    done = site.run(BATCH)
    assert done.returncode == 2
    assert "cluster = 'pbshost PBS_SERVER=far', not 'pbshost PBS_SERVER=near'" in done.err
    assert "qdel 1000.pbshost\n" in done.err
