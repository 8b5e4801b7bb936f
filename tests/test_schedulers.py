"""globus-batch-download.py, "the schedulers": which one is here, and what their answers mean."""
import types

import hypothesis
import pytest
from conftest import (
    BATCH,
    KEEP,
    TESTS,
    bare_path,
    check_err,
    copy_downloads,
    count_calls,
    last_line,
    put_before,
    with_stand_in,
)
from hypothesis import strategies
from in_process import load

read = load("globus-batch-download")


def recorded(name):
    return (TESTS / "data" / name).read_text()


def states(queue):
    return {entry.name: entry.state for entry in queue}


def called(name, queue):
    """The only entry of a job with that name."""
    found, = [entry for entry in queue if entry.name == name]
    return found


@pytest.mark.parametrize("reader,text,number", [
    ("slurm", "123\n", "123"),
    ("slurm", "123;cluster\n", "123"),
    ("slurm", "some news of the site\n123\n", "123"),
    ("slurm", "123\nsome news of 2026\n", "123"),
    ("pbs", "4.pbshost\n", "4.pbshost"),
    ("torque", "21.torque-host.example.org\n", "21.torque-host.example.org"),
    ("pbs", "Welcome\n25.11.2026\n4.pbshost\n25.11.2026\n", "4.pbshost"),
    ("sge", "481\n", "481"),
    ("sge", "warning: no suitable queues\n481\nhave a nice day\n", "481"),
])
def test_the_id_is_read_from_what_submit_printed(reader, text, number):
    assert read.read_job_id(read.SCHEDULERS[reader].id, text) == number


@pytest.mark.parametrize("kind", read.SCHEDULERS)
@pytest.mark.parametrize("text", ["", "\n", "Submitted batch job\n", "error 5x", "qsub: 12 no\n"])
def test_no_id_is_read_from_nonsense(kind, text):
    assert read.read_job_id(read.SCHEDULERS[kind].id, text) is None


def test_slurms_states_and_reasons():
    queue = read.parse_slurm_queue(recorded("slurm-squeue.txt"))
    assert states(queue) == {
        "gone": "ended", "mem": "ended", "big": "waiting", "later": "waiting", "dep": "blocked",
        "a|b": "waiting", "held": "held", "run-1": "running"}
    assert called("dep", queue) == ("6", "dep", "blocked", "DependencyNeverSatisfied")


@pytest.mark.parametrize("reason", [
    "BadConstraints", "PartitionTimeLimit",
    "AssocMaxWallDurationPerJobLimit", "QOSMaxCpuPerJobLimit", "InvalidAccount",
    "QOSNotAllowed", "PartitionNodeLimit"])
def test_slurms_reasons_that_never_clear(reason):
    text = read.SLURM_HEADING + "\n7|name|PENDING|" + reason + "\n"
    assert states(read.parse_slurm_queue(text)) == {"name": "blocked"}


@pytest.mark.parametrize("state,reason", [
    ("PENDING", "JobHeldAdmin"), ("PENDING", "JobHeldUser"), ("PENDING", "JobHoldMaxRequeue"),
    ("PENDING", "launch failed requeued held"), ("PENDING", "job requeued in held state"),
    ("REQUEUE_HOLD", "None"), ("SPECIAL_EXIT", "None")])
def test_slurms_words_for_jobs_that_are_held(state, reason):
    text = read.SLURM_HEADING + f"\n7|name|{state}|{reason}\n"
    assert states(read.parse_slurm_queue(text)) == {"name": "held"}


@pytest.mark.parametrize("reason", [
    "Priority", "Resources", "QOSMaxJobsPerUserLimit", "AssocGrpCpuLimit", "ReqNodeNotAvail",
    "PartitionDown", "Licenses", "None", "QOSUsageThreshold",
    "ReqNodeNotAvail, sheldon1", "QOSMaxCpuPerUserLimit", "AssocMaxJobsLimit"])
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
    assert called("gd-big", queue).id == "10.pbshost"


def test_pbs_comments_are_the_words():
    queue = read.parse_pbs_queue(recorded("openpbs-qstat-s.txt"))
    assert called("gd-big", queue) == (
        "10.pbshost", "gd-big", "waiting",
        "Not Running: Insufficient amount of resource: ncpus (R: 8 A: 6 T: 8)")
    assert called("gd-hold2", queue).reason == "Job held by root on Mon Nov 23 20:56:58 2026"
    assert called("gd-held", queue).reason == "held"  # its comment is --


def test_pbs_says_what_can_never_run():
    queue = read.parse_pbs_queue(recorded("openpbs-qstat-s-never.txt"))
    entry = called("STDIN", queue)
    assert entry.state == "blocked"
    assert entry.reason.startswith("Can Never Run: Insufficient amount of resource: ncpus")


def test_pbs_finished_jobs_are_gone():
    queue = read.parse_pbs_queue(recorded("openpbs-qstat-x-u.txt"))
    assert set(states(queue).values()) == {"ended"}


def test_pbs_prints_nothing_when_there_are_no_jobs():
    assert read.parse_pbs_queue("") == []


def test_torques_states():
    assert states(read.parse_pbs_queue(recorded("torque-qstat-u.txt"))) == {
        "g1a2b3c-1": "running", "g1a2b3c-2": "waiting", "g1a2b3c-3": "held", "g1a2b3c-4": "ended",
        "g1a2b3c-5": "running"}


def test_grid_engines_states():
    assert states(read.parse_sge_queue(recorded("sge-qstat.xml"))) == {
        "run-1": "running", "new-one": "running", "stuck": "blocked", "held": "held",
        "later": "waiting", "waits": "held"}
    assert read.parse_sge_queue(recorded("sge-qstat-none.xml")) == []


def every_cut(name):
    """A recorded answer, cut off at each place but the ends of lines."""
    text = recorded(name)
    return [text[:n] for n in range(1, len(text) - 1) if text[n - 1] != "\n"]


@pytest.mark.parametrize("kind,name", [
    ("slurm", "slurm-squeue.txt"), ("pbs", "openpbs-qstat-w-u.txt"), ("pbs", "openpbs-qstat-s.txt"),
    ("torque", "torque-qstat-u.txt"), ("sge", "sge-qstat.xml")])
def test_half_an_answer_is_no_information(kind, name):
    for text in every_cut(name):
        assert is_no_information(kind, text) or text.endswith("</job_info>"), text


@pytest.mark.parametrize("kind", read.SCHEDULERS)
@pytest.mark.parametrize("text", [
    "slurm_load_jobs error: Unable to contact slurm controller\n", "<html>down</html>\n",
    "Connection refused\n", "1|2\n", "\0\n"])
def test_nonsense_is_no_information(kind, text):
    assert is_no_information(kind, text)


def is_no_information(kind, text):
    """True if an answer is not understood; or, of PBS, which prints nothing when there are no jobs,
    if it is empty for the driver, which asks about one of them then."""
    try:
        return not read.SCHEDULERS[kind].parse_queue(text) and kind in ("pbs", "torque")
    except ValueError:
        return True


RECORDED = {"slurm": "slurm-squeue.txt", "pbs": "openpbs-qstat-s.txt",
            "torque": "torque-qstat-u.txt", "sge": "sge-qstat.xml"}


@pytest.mark.parametrize("kind", RECORDED)
@hypothesis.given(data=strategies.data())
@hypothesis.settings(deadline=None, max_examples=150)
def test_a_line_that_nobody_knows_changes_no_other_jobs_state(kind, data):
    parse, text = read.SCHEDULERS[kind].parse_queue, recorded(RECORDED[kind])
    known = parse(text)
    lines = text.split("\n")
    foreign = data.draw(strategies.text())
    # Between two lines; of XML between two jobs, where it is no tag.
    places = [n for n, line in enumerate(lines[:-1])
              if kind != "sge" or "<job_list" in line]
    place = data.draw(strategies.sampled_from(places))
    if kind == "sge":
        foreign = foreign.replace("<", "").replace(">", "")
    heard = parse("\n".join([*lines[:place], foreign, *lines[place:]]))
    # The reason of a job of PBS is the line below it.
    ids = {entry.id for entry in known}
    assert [entry[:3] for entry in heard if entry.id in ids] == [entry[:3] for entry in known]


@pytest.mark.parametrize("kind,text,expected", [
    ("slurm", "news of the site\n" + read.SLURM_HEADING + "\n7|two\nlines|RUNNING|None\n"
     "8|g1-1|RUNNING|None\n", {"g1-1": "running"}),
    ("sge", recorded("sge-qstat.xml").replace("<JB_name>run-1<", "<JB_name>\x01<"),
     {"new-one": "running"}),
    ("pbs", recorded("openpbs-qstat-s.txt").replace(
        "   Job held by root on Mon Nov 23 20:57:00 2026", "   no licence today\nasked: 3\n9 b"),
     {"gd-abc": "running", "gd-old": "running"}),
    ("pbs", "maintenance on Tuesday\n" + recorded("openpbs-qstat-s.txt"), {"gd-abc": "running"}),
])
def test_foreign_lines_are_passed_over(kind, text, expected):
    queue = states(read.SCHEDULERS[kind].parse_queue(text))
    assert expected.items() <= queue.items()


def test_a_job_of_grid_engine_without_a_state_is_running():
    text = recorded("sge-qstat.xml").replace("<state>r</state>", "<state/>")
    assert states(read.parse_sge_queue(text))["run-1"] == "running"


def test_a_job_of_grid_engine_that_may_not_be_restarted_is_running():
    text = recorded("sge-qstat.xml").replace("<state>r</state>", "<state>hr</state>")
    assert states(read.parse_sge_queue(text))["run-1"] == "running"


def test_two_jobs_of_one_name_are_two():
    text = read.SLURM_HEADING + "\n7|name|RUNNING|None\n8|name|PENDING|Priority\n"
    assert [entry[:3] for entry in read.parse_slurm_queue(text)] == [
        ("7", "name", "running"), ("8", "name", "waiting")]


# What the queue lists, the id that was told or None, the id that is found for a job g1.1-abcde.
OURS = [
    ([("7", "g1.1-abcde")], "7", "7"),
    ([("7", "of-mine")], "7", "7"),  # renamed
    ([("7", "g1.1-abcde")], None, "7"),  # nobody told its id
    ([("8", "g1.1-abcde")], "7", None),  # the same name, but another job
    ([("8", "g1.1-abcde"), ("7", "of-mine")], "7", "7"),
    ([("7", "of-mine")], None, None),
    ([("", "g1.1-abcde")], "7", ""),  # on a line that cannot be read
    ([("71", "of-mine"), ("17", "of-mine")], "7", None),
    ([("7.pbshost", "g1.1-abcde")], "7.pbshost.example.org", "7.pbshost"),
]


@pytest.mark.parametrize("listed,told,found", OURS)
def test_a_job_is_found_by_its_id_or_by_its_name_while_that_is_all_that_is_known(
        listed, told, found):
    entries = [read.QueueEntry(number, name, "running", "") for number, name in listed]
    entry = read.entry_of(entries, told, "g1.1-abcde")
    assert (entry and entry.id) == found


@pytest.fixture
def found(tmp_path, monkeypatch):
    """A function that looks for a scheduler on a PATH with some of the stand-ins, in their order;
    what SCHEDULER becomes, and the Scheduler."""
    path = bare_path(tmp_path)
    monkeypatch.setenv("STAND_IN_DIR", str(tmp_path))

    def find(*kinds, setting="auto"):
        folders = [str(TESTS / "stand-in" / kind) for kind in kinds]
        monkeypatch.setenv("PATH", ":".join([*folders, path]))
        config = types.SimpleNamespace(SCHEDULER=setting)
        scheduler = read.find_scheduler(config)
        return config.SCHEDULER, scheduler

    return find


@pytest.mark.parametrize("kind", read.SCHEDULERS)
def test_auto_finds(kind, found):
    assert found(kind) == (kind, read.SCHEDULERS[kind])


def test_a_qsub_beside_sbatch_is_slurms(found):
    assert found("pbs", "slurm") == ("slurm", read.SCHEDULERS["slurm"])


def test_the_setting_overrules_the_guess(found):
    assert found("pbs", "slurm", setting="pbs") == ("pbs", read.SCHEDULERS["pbs"])


def test_a_qsub_of_no_known_kind_is_said(found, tmp_path):
    for name, line in (("qsub", ""), ("qstat", "echo usage: qstat; exit 2")):
        (tmp_path / "bin" / name).write_text("#!/bin/bash\n" + line + "\n")
        (tmp_path / "bin" / name).chmod(0o755)
    with pytest.raises(read.helper.UserError, match="SCHEDULER = 'auto', but") as told:
        found()
    assert told.value.status == 2


@pytest.mark.parametrize("setting,command", [("auto", "sbatch or qsub"), ("slurm", "sbatch")])
def test_no_scheduler(setting, command, found):
    with pytest.raises(read.helper.UserError) as told:
        found(setting=setting)
    assert told.value.status == 2
    assert str(told.value).splitlines() == [
        "config.py: SCHEDULER = '%s', but there is no %s here." % (setting, command),
        "Run this on a login node of the cluster."]


def test_no_scheduler_is_told_before_globus_is_asked(site, emulator):
    check_err(site.run(BATCH), 2, "SCHEDULER", "no sbatch")
    assert emulator.requests() == []


def test_the_scheduler_that_was_found_gets_the_job(site, emulator, tmp_path):
    emulator.add({"a": b"1"})
    copy_downloads(with_stand_in(site, tmp_path, "torque"))
    calls = count_calls(site, tmp_path, "qsub")
    assert last_line(site.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert calls() == 1


def test_an_empty_queue_of_grid_engine_is_an_answer_without_any_job_of_ours(
        site, emulator, tmp_path):
    with_stand_in(site, tmp_path, "sge")
    emulator.add({"a": b"1"})
    put_before(site, tmp_path, "qsub", "mkdir once 2>/dev/null || exec \"$real\" \"$@\"",
               "echo 'no more jobs for you' >&2; exit 1")
    site.config("POLL_SECONDS = 0.3")
    copy_downloads(site)
    site.process(*KEEP)
    done = site.run(BATCH)
    assert "no more jobs for you" in done.err and "does not answer" not in done.err
    assert last_line(done) == "1 processed, 0 failed, 0 not needed"
