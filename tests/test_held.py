"""globus-batch-download.py, "the queue": jobs that wait for long, are held, or can never start."""
import os
import subprocess
import time

from conftest import BATCH, KEEP, copy_in_jobs, last_line, put_before, wait_until


def test_jobs_that_wait_for_long_are_told_once_with_the_scheduler_s_words(played):
    played.start("a").step()
    played.jobs["1000"].die("PENDING", "Resources")
    played.poll(50)
    assert "No job is running" not in played.text()
    played.poll(50)
    words = "No job is running; the scheduler says of 1 job: Resources"
    assert [text for text in played.said if "No job is running" in text] == [words]
    assert played.finish() == (1, 0)


def test_a_job_that_is_held_is_told_at_once_and_once(played):
    played.start("a").step()
    played.jobs["1000"].die("PENDING", "JobHeldUser")
    played.poll(9)
    assert [text for text in played.said if "No job is running" in text] == [
        "No job is running; the scheduler says of 1 job: JobHeldUser\n"
        "To release: scontrol release 1000\n"
        "If RESOURCES has to be fixed, stop this script, cancel, and start again: scancel 1000"]


# How a user holds a job from the beginning, and what the driver says of it.
HELD = {"slurm": ("sbatch", "--hold", "JobHeldUser", "To release: scontrol release "),
        "sge": ("qsub", "-h", "state hqw", "To release: qrls ")}


def read_until(driver, begins):
    """Read what a driver says up to a line that begins so; all of it."""
    said = []
    wait_until(lambda: said.append(driver.stderr.readline().decode())
               or said[-1].startswith(begins))
    return said


def test_a_job_that_is_held_is_told_with_its_reason_and_ways_to_release_and_cancel_it_that_work(
        real_cluster, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    command, option, words, release = HELD[real_cluster.scheduler]
    put_before(copy_in_jobs(real_cluster), tmp_path, command,
               'mkdir "$0.1" 2>/dev/null || mkdir "$0.2" 2>/dev/null || exec "$real" "$@"',
               'exec "$real" %s "$@"' % option)
    real_cluster.config("GRACE_SECONDS = 1", "POLL_SECONDS = 0.5")
    driver = real_cluster.start(BATCH)
    said = read_until(driver, "If RESOURCES has to be fixed, ")
    assert "No job is running; the scheduler says of " in said[-3] and words in said[-3]
    assert said[-2].startswith(release)
    release = said[-2].split()[2:]
    one = release[-1]  # of the two
    subprocess.run([word for word in release if not word.isdigit()] + [one], check=True,
                   env=real_cluster.env, stdout=subprocess.DEVNULL)
    said = read_until(driver, "If RESOURCES has to be fixed, ")
    command = said[-1].split(": ", 1)[1].split()
    assert one not in command
    assert os.spawnvpe(os.P_WAIT, command[0], command, real_cluster.env) == 0
    assert driver.communicate()[0].decode().endswith("2 processed, 0 failed, 0 not needed\n")


def test_grid_engines_error_reason_is_told(real_sge, emulator):
    emulator.add({"a": b"1"})
    copy_in_jobs(real_sge).config("GRACE_SECONDS = 1", "RESOURCES = '-wd /nonexistent'")
    driver = real_sge.start(BATCH)
    said = read_until(driver, "If RESOURCES has to be fixed, ")
    driver.terminate()
    driver.communicate()
    assert "No job is running; the scheduler says of 1 job: state Eqw: " in "".join(said)
    assert "error: can't chdir to /nonexistent: No such file" in "".join(said)
    assert "stop this script, cancel, and start again: qdel " in said[-1]
    command = said[-1].split(": ", 1)[1].split()
    assert os.spawnvpe(os.P_WAIT, command[0], command, real_sge.env) == 0
    real_sge.config("RESOURCES = ''")
    done = real_sge.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err


def test_a_job_that_was_requeued_and_held_is_told_with_the_way_to_release_it(real_slurm, emulator):
    emulator.add({"a": b"1"})
    copy_in_jobs(real_slurm).config("RESOURCES = '--requeue'")
    real_slurm.process('if mkdir once; then scontrol requeuehold "$SLURM_JOB_ID"; sleep 100; fi',
                       *KEEP)
    driver = real_slurm.start(BATCH)
    said = read_until(driver, "To release: ")
    assert "No job is running; the scheduler says of 1 job: " in said[-2]
    release = said[-1].split()[2:]
    subprocess.run(release, env=real_slurm.env, check=True)
    time.sleep(3)  # Slurm itself would wait for two minutes
    subprocess.run(["scontrol", "update", "StartTime=now", "JobId=" + release[-1]], check=True,
                   env=real_slurm.env)
    assert driver.communicate()[0].endswith(b"1 processed, 0 failed, 0 not needed\n")
