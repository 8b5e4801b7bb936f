"""globus-batch-download.py, "the queue": jobs that wait for long, are held, or can never start."""
import os
import subprocess
import time

from conftest import BATCH, KEEP, SUBMIT, last_line, put_before, wait_until


def test_jobs_that_wait_for_long_are_told_once_with_the_scheduler_s_words(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue", '"$real" "$@" | sed "s/RUNNING|.*/PENDING|Resources/"')
    stand_in.config("helper.QUIET_SECONDS = 1", "POLL_SECONDS = 0.3")
    stand_in.process("sleep 3")
    done = stand_in.run(BATCH)
    assert done.err.count("No job is running; the scheduler says of 1 job: Resources") == 1
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"


# How a user holds a job from the beginning.
HOLD = {"slurm": "--hold", "sge": "-h"}


def test_a_job_that_is_held_is_told_with_the_way_to_cancel_it_and_goes_on_when_released(
        real_cluster, emulator, tmp_path):
    emulator.add({"a": b"1"})
    kind = real_cluster.scheduler
    put_before(real_cluster, tmp_path, SUBMIT[kind], 'exec "$real" %s "$@"' % HOLD[kind])
    driver = real_cluster.start(BATCH)
    said = []
    wait_until(lambda: said.append(driver.stderr.readline().decode())
               or "No job is running; the scheduler says of 1 job: " in said[-1])
    release = driver.stderr.readline().decode()
    assert driver.stderr.readline().decode().startswith("If RESOURCES has to be fixed, ")
    subprocess.run(release.split()[2:], env=real_cluster.env, check=True,
                   stdout=subprocess.DEVNULL)
    assert driver.communicate()[0].decode().endswith("1 processed, 0 failed, 0 not needed\n")


def test_a_job_that_is_held_is_told_once(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "squeue",
               '"$real" "$@" | sed "s/RUNNING|.*/PENDING|JobHeldUser/"')
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process("sleep 2")
    done = stand_in.run(BATCH)
    assert done.err.count("No job is running; the scheduler says of ") == 1
    assert ("the scheduler says of 1 job: JobHeldUser\nTo release: scontrol release 1000\n"
            "If RESOURCES has to be fixed, stop this script, cancel, and start again: "
            "scancel 1000\n") in done.err


def stuck_message(site, *repair):
    """What the driver says of a job that cannot run; which is then cancelled as it says, and the
    run goes on with these lines in config.py."""
    driver, said = site.start(BATCH), []
    wait_until(lambda: said.append(driver.stderr.readline().decode())
               or said[-1].startswith("If RESOURCES"))
    driver.terminate()
    driver.communicate()
    command = said[-1].split(": ", 1)[1].split()
    assert os.spawnvpe(os.P_WAIT, command[0], command, site.env) == 0
    site.config(*repair)
    done = site.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err
    return "".join(said)


def test_a_job_that_is_held_is_told_with_the_schedulers_reason_and_how_to_release_it(
        real_cluster, emulator, tmp_path):
    emulator.add({"a": b"1"})
    command, option, words, release = {
        "slurm": ("sbatch", "--hold", "JobHeldUser", "To release: scontrol release "),
        "sge": ("qsub", "-h", "state hqw", "To release: qrls "),
    }[real_cluster.scheduler]
    put_before(real_cluster, tmp_path, command, 'mkdir "$0.first" 2>/dev/null || exec "$real" "$@"',
               'exec "$real" %s "$@"' % option)
    real_cluster.config("GRACE_SECONDS = 1", "POLL_SECONDS = 1")
    said = stuck_message(real_cluster)
    assert "No job is running; the scheduler says of 1 job: " + words + "\n" in said
    assert release in said


def test_grid_engines_error_reason_is_told(real_sge, emulator):
    emulator.add({"a": b"1"})
    real_sge.config("GRACE_SECONDS = 1", "RESOURCES = '-wd /nonexistent'")
    said = stuck_message(real_sge, "RESOURCES = ''")
    assert "No job is running; the scheduler says of 1 job: state Eqw: " in said
    assert "error: can't chdir to /nonexistent: No such file" in said
    assert "If RESOURCES has to be fixed, stop this script, cancel, and start again: qdel " in said


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
