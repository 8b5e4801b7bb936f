"""What the batch driver makes of schedulers: which one is here, and what their answers mean."""
import os

import pytest
from conftest import (
    BATCH,
    TESTS,
    count_calls,
    last_line,
    load,
    put_before,
    wait_until,
    with_stand_in,
)

read = load("globus-batch-download")


def recorded(name):
    return (TESTS / "data" / name).read_text()


def states(queue):
    return {name: entry.state for name, entry in queue.items()}


@pytest.mark.parametrize("reader,text,number", [
    ("slurm", "123\n", "123"),
    ("slurm", "123;cluster\n", "123;cluster"),
    ("slurm", "some news of the site\n123\n", "123"),
    ("pbs", "4.pbshost\n", "4.pbshost"),
    ("torque", "21.torque-host.example.org\n", "21.torque-host.example.org"),
    ("sge", "481\n", "481"),
])
def test_the_id_is_read_from_what_submit_printed(reader, text, number):
    assert read.SCHEDULERS[reader].read_id(text) == number


@pytest.mark.parametrize("kind", read.SCHEDULERS)
@pytest.mark.parametrize("text", ["", "\n", "Submitted batch job\n", "error 5x", "qsub: 12 no\n"])
def test_no_id_is_read_from_nonsense(kind, text):
    with pytest.raises(ValueError):
        read.SCHEDULERS[kind].read_id(text)


def test_slurms_states_and_reasons():
    queue = read.parse_slurm_queue(recorded("slurm-squeue.txt"))
    assert states(queue) == {
        "gone": "ended", "mem": "ended", "big": "waiting", "later": "waiting", "dep": "held",
        "a|b": "waiting", "held": "held", "run-1": "running"}
    assert queue["dep"] == ("6", "held", "DependencyNeverSatisfied")


@pytest.mark.parametrize("reason", [
    "JobHeldAdmin", "BadConstraints", "launch failed requeued held", "PartitionTimeLimit",
    "AssocMaxWallDurationPerJobLimit", "QOSMaxCpuPerJobLimit", "InvalidAccount",
    "QOSNotAllowed", "PartitionNodeLimit"])
def test_slurms_reasons_that_never_clear(reason):
    text = read.SLURM_HEADING + "\n7|name|PENDING|" + reason + "\n"
    assert states(read.parse_slurm_queue(text)) == {"name": "held"}


@pytest.mark.parametrize("reason", [
    "Priority", "Resources", "QOSMaxJobsPerUserLimit", "AssocGrpCpuLimit", "ReqNodeNotAvail",
    "PartitionDown", "Licenses", "None", "QOSMaxCpuPerUserLimit", "AssocMaxJobsLimit"])
def test_slurms_reasons_that_clear(reason):
    text = read.SLURM_HEADING + "\n7|name|PENDING|" + reason + "\n"
    assert states(read.parse_slurm_queue(text)) == {"name": "waiting"}


def test_a_state_that_nobody_knows_is_alive():
    text = read.SLURM_HEADING + "\n7|name|A_NEW_STATE|None\n"
    assert states(read.parse_slurm_queue(text)) == {"name": "running"}


def test_slurm_names_its_cluster_first_where_one_is_chosen():
    text = "CLUSTER: other\n" + read.SLURM_HEADING + "\n7|name|RUNNING|None\n"
    assert states(read.parse_slurm_queue(text)) == {"name": "running"}


def test_pbs_states():
    queue = read.parse_pbs_queue(recorded("openpbs-qstat-w-u.txt"))
    assert states(queue) == {"gd-abc": "running", "gd-old": "running", "gd-big": "waiting",
                             "gd-held": "held", "gd-hold2": "held"}
    assert queue["gd-big"].id == "10.pbshost"


def test_pbs_comments_are_the_words():
    queue = read.parse_pbs_queue(recorded("openpbs-qstat-s.txt"))
    assert queue["gd-big"] == (
        "10.pbshost", "waiting",
        "Not Running: Insufficient amount of resource: ncpus (R: 8 A: 6 T: 8)")
    assert queue["gd-hold2"].reason == "Job held by root on Mon Nov 23 20:56:58 2026"
    assert queue["gd-held"].reason == "held"  # its comment is --


def test_pbs_says_what_can_never_run():
    queue = read.parse_pbs_queue(recorded("openpbs-qstat-s-never.txt"))
    assert queue["STDIN"].state == "held"
    assert queue["STDIN"].reason.startswith("Can Never Run: Insufficient amount of resource: ncpus")


def test_pbs_finished_jobs_are_gone():
    queue = read.parse_pbs_queue(recorded("openpbs-qstat-x-u.txt"))
    assert set(states(queue).values()) == {"ended"}


def test_pbs_prints_nothing_when_there_are_no_jobs():
    assert read.parse_pbs_queue("") == {}


def test_torques_states():
    assert states(read.parse_pbs_queue(recorded("torque-qstat-u.txt"))) == {
        "g1a2b3c-1": "running", "g1a2b3c-2": "waiting", "g1a2b3c-3": "held", "g1a2b3c-4": "ended",
        "g1a2b3c-5": "running"}


def test_grid_engines_states():
    assert states(read.parse_sge_queue(recorded("sge-qstat.xml"))) == {
        "run-1": "running", "new-one": "running", "stuck": "held", "held": "held",
        "later": "waiting", "waits": "held"}
    assert read.parse_sge_queue(recorded("sge-qstat-none.xml")) == {}


def every_cut(name):
    """A recorded answer, cut off at each place but the ends of lines."""
    text = recorded(name)
    return [text[:n] for n in range(1, len(text) - 1) if text[n - 1] != "\n"]


@pytest.mark.parametrize("kind,name", [
    ("slurm", "slurm-squeue.txt"), ("pbs", "openpbs-qstat-w-u.txt"), ("pbs", "openpbs-qstat-s.txt"),
    ("torque", "torque-qstat-u.txt"), ("sge", "sge-qstat.xml")])
def test_half_an_answer_is_no_information(kind, name):
    for text in every_cut(name):
        with pytest.raises(ValueError):
            read.SCHEDULERS[kind].parse_queue(text)


@pytest.mark.parametrize("kind", read.SCHEDULERS)
@pytest.mark.parametrize("text", [
    "slurm_load_jobs error: Unable to contact slurm controller\n", "<html>down</html>\n",
    "Connection refused\n", "1|2\n", "\0\n", "JOBID|NAME|STATE|REASON\n7|g1-1\n"])
def test_nonsense_is_no_information(kind, text):
    with pytest.raises(ValueError):
        read.SCHEDULERS[kind].parse_queue(text)


@pytest.mark.parametrize("kind", read.SCHEDULERS)
def test_auto_finds(kind, site, tmp_path, emulator):
    emulator.add({"a": b"1"})
    calls = count_calls(with_stand_in(site, tmp_path, kind), tmp_path,
                        "sbatch" if kind == "slurm" else "qsub")
    assert last_line(site.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert calls() == 1


def test_a_qsub_beside_sbatch_is_slurms(stand_in, tmp_path, emulator):
    emulator.add({"a": b"1"})
    stand_in.env["PATH"] = "%s:%s" % (TESTS / "stand-in" / "pbs", stand_in.env["PATH"])
    calls = count_calls(stand_in, tmp_path, "sbatch")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert calls() == 1


def test_the_setting_overrules_the_guess(stand_in, tmp_path, emulator):
    emulator.add({"a": b"1"})
    stand_in.env["PATH"] = "%s:%s" % (TESTS / "stand-in" / "pbs", stand_in.env["PATH"])
    stand_in.config("SCHEDULER = 'pbs'")
    calls = count_calls(stand_in, tmp_path, "qsub")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert calls() == 1


def test_a_qsub_of_no_known_kind_is_said(site, tmp_path):
    with_stand_in(site, tmp_path, "pbs")
    put_before(site, tmp_path, "qstat", "echo usage: qstat; exit 2")
    done = site.run(BATCH)
    assert done.returncode == 2
    assert "SCHEDULER = 'auto'" in done.err


def stuck_message(site):
    """What the driver says of a stuck job, which is cancelled then."""
    driver = site.start(BATCH)
    said = []
    wait_until(lambda: said.append(driver.stderr.readline().decode()) or "cannot begin" in said[-1])
    hint = driver.stderr.readline().decode()
    command = hint.split(": ", 1)[1].split()
    os.spawnvpe(os.P_WAIT, command[0], command, site.env)
    out = driver.communicate()[0].decode()
    assert driver.returncode == 1 and "FAILED a: the job was lost" in out
    return said[-1]


def test_a_job_that_is_held_is_told_with_the_schedulers_reason(real_cluster, emulator):
    emulator.add({"a": b"1"})
    real_cluster.config("GRACE_SECONDS = 1", "RESOURCES = %r" % {
        "slurm": "--hold", "sge": "-h"}[real_cluster.scheduler])
    assert {"slurm": "JobHeldUser", "sge": "state hqw"}[
        real_cluster.scheduler] in stuck_message(real_cluster)


def test_grid_engines_error_reason_is_told(real_sge, emulator):
    emulator.add({"a": b"1"})
    real_sge.config("GRACE_SECONDS = 1", "RESOURCES = '-wd /nonexistent'")
    assert "error: can't chdir to /nonexistent: No such file" in stuck_message(real_sge)
