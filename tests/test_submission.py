"""globus-batch-download.py, "the driver": what a scheduler says of a submission, when it is tried
again, and when the run stops."""
import errno
import os

import hypothesis
import pytest
from conftest import (
    BATCH,
    FIRST_TIME,
    KEEP,
    REFUSED,
    SIMPLE,
    SUBMIT,
    copy_downloads,
    count_calls,
    count_events,
    last_line,
    processed,
    put_before,
)
from hypothesis import strategies

# In a submission: its job's pack and attempt, by its name; wait until the job has its token.
NAME = ('for word; do case $last in --job-name|-N) name=$word ;; esac; last=$word; done',
        'pack=${name%%.*}-${name#*-} attempt=${name#*.} attempt=${attempt%-*}')
BEGUN = ('for try in {1..300}; do ! compgen -G "jobs/$pack/[ae][tn]*.$attempt.*" >/dev/null || '
         'break; sleep 0.1; done')
# Submitted; but the job begins only when the driver has given it up.
LATER = ('(echo "#!/bin/bash"; echo "for try in {1..300}; do [ -e $PWD/jobs/$pack/ticket.$attempt '
         '] || break; sleep 0.1; done"; cat) | "$real" "$@" >/dev/null')
TIME_OUT = "error: Batch job submission failed: Socket timed out on send/recv operation"
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


# ---- accepted, whatever was said ----


# What the first submissions do, one after the other. Those that differ in words only are below.
SUBMISSIONS = [
    # accepted, but then a time-out is reported
    [LATER, 'echo "%s" >&2' % TIME_OUT, "exit 1"],
    # accepted and at work, but it hangs
    ['"$real" "$@" >/dev/null', BEGUN, "exec sleep 100"],
    # accepted, but then it hangs
    [LATER, "exec sleep 100"],
    # accepted, but prints no id
    [LATER],
    # accepted and at work, but prints no id
    ['"$real" "$@" >/dev/null', BEGUN],
    # accepted and at work, but then it is killed
    ['"$real" "$@" >/dev/null', BEGUN, "kill -KILL $$"],
]


@pytest.mark.long
def test_each_file_is_processed_once_whatever_comes_of_its_submission(cluster, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"x" for n in range(6)})
    command = SUBMIT[cluster.scheduler]
    put_before(copy_downloads(cluster), tmp_path, command, *NAME,
               "n=1; until mkdir $0.$n 2>/dev/null; do n=$((n + 1)); done", "case $n in",
               *["%d) %s ;;" % (n, "\n".join(lines)) for n, lines in enumerate(SUBMISSIONS, 1)],
               '*) exec "$real" "$@" ;; esac')
    seconds = 3 if "STAND_IN_DIR" in cluster.env else 8  # a real job begins later
    cluster.edit(BATCH, "SUBMIT_SECONDS = 300", "SUBMIT_SECONDS = %d" % seconds)
    cluster.config("POLL_SECONDS = 0.5")
    cluster.process(*KEEP)
    done = cluster.run(BATCH)
    assert last_line(done) == "6 processed, 0 failed, 0 not needed"
    assert processed(cluster) == dict.fromkeys(files, 1)
    refusals = done.err.split(REFUSED)[1:]
    for refusal, words in zip(refusals, (
            TIME_OUT + "\n", "%s did not answer within %d s\n" % (command, seconds),
            "(nothing)\n")):
        assert refusal.startswith(words), done.err
        assert "\nThe command was: %s " % command in refusal
        assert "\nTrying again every 0.5 s. If RESOURCES has to be fixed, " in refusal
    assert len(refusals) == 3 and count_events(cluster, "submit") == 9


@pytest.mark.long
def test_a_submission_that_arrives_long_after_it_was_killed_begins_nothing(
        cluster, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"x" for n in range(3)})
    command = SUBMIT[cluster.scheduler]
    put_before(copy_downloads(cluster), tmp_path, command, FIRST_TIME, 'cat >"$0.script"',
               '(sleep 4; printf "#!/bin/bash\\nbash %s.script; touch %s.over\\n" "$0" "$0" '
               '| "$real" "$@") >/dev/null 2>&1 &', "exec sleep 100")
    cluster.edit(BATCH, "SUBMIT_SECONDS = 300", "SUBMIT_SECONDS = 1")
    over = tmp_path / "before" / (command + ".over")
    # It begins while the next one is at work. A real scheduler may keep it waiting, until the
    # driver cancels it.
    cluster.process("until [ -e '%s' ] || [ $SECONDS -gt 15 ]; do sleep 0.1; done" % over, *KEEP)
    done = cluster.run(BATCH)
    assert last_line(done) == "3 processed, 0 failed, 0 not needed"
    assert processed(cluster) == dict.fromkeys(files, 1)
    assert done.err.count(REFUSED + command + " did not answer within 1 s\n") == 1
    assert over.exists() or "STAND_IN_DIR" not in cluster.env


# name: exit status, stdout and stderr of the first submission; what the person is told of it
ANSWERS = {
    "nothing": (0, "", "", "(nothing)\n"),
    "killed": (-9, "", "", "(nothing)\n"),
    "a time-out": (1, "", TIME_OUT + "\n", TIME_OUT + "\n"),
    "no end": (None, "", "sbatch did not answer within 300 s",
               "sbatch did not answer within 300 s\n"),
    "an id, and an exit status": (1, "1000\n", "", "1000\n"),
    "a limit and a time-out": (
        1, "", "error: limit of requests reached, waiting\n" + TIME_OUT,
        "error: limit of requests reached, waiting; " + TIME_OUT + "\n"),
    "a limit of the site": (
        1, "", "error: QOSMaxSubmitJobPerUserLimit\nerror: Batch job submission failed: Job "
        "violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "error: QOSMaxSubmitJobPerUserLimit; error: Batch job submission failed: Job violates "
        "accounting/QOS policy (job submit limit, user's size and/or time limits)\n"),
    "a limit of PBS": (
        1, "", "qsub: Maximum number of jobs for user me already in complex",
        "qsub: Maximum number of jobs for user me already in complex\n"),
    "a server that ends": (1, "", "qsub: Request not allowed: Server shutting down",
                           "qsub: Request not allowed: Server shutting down\n"),
    "out of order": (162, "", "cannot connect to server pbshost (errno=15010)",
                     "cannot connect to server pbshost (errno=15010)\n"),
    "out of reach": (
        1, "", "sbatch: error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Unable to contact slurm controller (connect failure)\n"),
    "words that nobody knows": (1, "", "error: out of cheese", "error: out of cheese\n"),
}


def first_submission(played, answer, happens):
    """The first submission has this answer; happens: what comes of it, a function of the job. It is
    None for one that never comes to the queue."""
    def play(command):
        played.plays[command[0]] = played.accept
        if happens:
            played.accept(command)
            happens(played.jobs["1000"])
        return answer

    played.plays[played.scheduler.submit[0]] = play


@pytest.mark.parametrize("is_accepted", [False, True])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_submission_that_seems_to_have_failed_is_told_and_its_job_does_nothing(
        name, is_accepted, played):
    status, out, err, words = ANSWERS[name]
    first_submission(played, (status, out, err), (lambda job: None) if is_accepted else None)
    played.start("a", "b", "c").step()
    assert played.text().count(REFUSED) == 1
    assert REFUSED + words + "The command was: sbatch --no-requeue " in played.text()
    assert ("\nTrying again every 1 s. If RESOURCES has to be fixed, stop this script, edit\n"
            "config.py, and start again.\n") in played.text()
    assert not is_accepted or not played.jobs["1000"].begin()
    assert played.finish() == (3, 0)
    assert played.processed == {"a": 1, "b": 1, "c": 1} and played.count("submit") == 4


@pytest.mark.parametrize("name", ANSWERS)
def test_a_job_that_has_begun_was_accepted_whatever_was_said(name, played):
    first_submission(played, ANSWERS[name][:3], lambda job: job.begin())
    played.start("a", "b", "c").step()
    assert played.count("submit") == 3 and played.count("queued") == 2
    played.poll()
    assert played.count("queued") == 3
    played.jobs["1000"].report()
    played.jobs["1000"].end()
    assert played.finish() == (3, 0)
    assert REFUSED not in played.text() and played.count("submit") == 3


def test_a_warning_of_a_submission_that_succeeds_is_not_told(played):
    played.plays["sbatch"] = lambda command: played.accept(command)[:2] + (
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",)
    played.start("a").step()
    assert played.count("queued") == 1 and "sbatch: error" not in played.text()


@pytest.mark.parametrize("state,reason", [
    ("PENDING", "Priority"), ("PENDING", "JobHeldUser"), ("PENDING", "BadConstraints")])
def test_a_job_that_waits_in_the_queue_after_it_was_given_up_is_cancelled(state, reason, played):
    first_submission(played, (1, "", TIME_OUT), lambda job: job.die(state, reason))
    played.start("a", "b").step()
    played.poll()
    assert played.called("scancel") == [["scancel", "1000"]]
    assert played.finish() == (2, 0)


def test_a_job_that_was_given_up_and_has_begun_is_not_cancelled_but_holds_a_slot(played):
    """It ends by itself, at once."""
    first_submission(played, (1, "", TIME_OUT), lambda job: job.die("RUNNING"))
    played.start("a", "b", NUM_JOBS=1).step()
    played.poll(2)
    assert not played.called("scancel") and len(played.jobs) == 1
    played.jobs["1000"].state = "COMPLETED"
    assert played.finish() == (2, 0)


def test_a_job_that_had_begun_is_not_submitted_again_though_nobody_told_its_id(played):
    first_submission(played, (0, "", ""), lambda job: job.begin() and job.begin(0))
    played.start("a").step()
    played.jobs.clear()
    played.poll(8)
    assert played.driver.failures["a"].words.startswith("the job was lost: no exit status")
    assert played.count("submit") == 1 and REFUSED not in played.text()


def test_a_submission_that_brings_no_job_to_the_queue_is_not_tried_for_ever(played):
    played.plays["sbatch"] = lambda command: (0, "swallowed by a hook of the site\n", "")
    words = stop_of(played.start("a", "b", "c"))
    assert "has accepted no job in 3 tries: swallowed by a hook of the site\n" in words


# ---- refused, and tried again ----


def refuse(played, *texts):
    """Let the next submissions be refused in these words; then all are accepted again."""
    rest = list(texts)

    def play(command):
        return (1, "", rest.pop(0)) if rest else played.accept(command)

    played.plays[played.scheduler.submit[0]] = play
    return rest


def test_a_scheduler_that_is_down_is_waited_for(played):
    words = "error: Unable to contact slurm controller (connect failure)"
    played.plays["sbatch"] = played.plays["squeue"] = lambda command: (1, "", words)
    played.start("a", "b").poll(6)  # more often than refusals count
    assert played.text().count("Unable to contact") == 2  # once from each command
    assert "The scheduler does not answer (squeue: %s)" % words in played.text()
    played.plays.update(sbatch=played.accept, squeue=played.list)
    assert played.finish() == (2, 0)


def test_a_job_that_is_refused_is_tried_again_no_more_often_than_the_queue_is_asked(played):
    played.start("a", "b", NUM_JOBS=1).step()
    refused = refuse(played, *["error: QOSMaxSubmitJobPerUserLimit"] * 5)
    played.jobs["1000"].work()
    while refused:  # more of them than stop a run that begins
        played.step()
        assert len(played.called("sbatch")) <= len(played.called("squeue")) + 2  # at the job's end
    assert played.finish() == (2, 0)
    assert played.text().count(REFUSED + "error: QOSMaxSubmitJobPerUserLimit\n") == 1


@pytest.mark.long
def test_a_limit_below_num_jobs_is_told_once_and_leaves_nothing_behind(
        copying, emulator, tmp_path):
    emulator.add({"f%02d" % n: b"x" for n in range(6)})
    put_before(copying, tmp_path, "sbatch", 'if grep -qs RUNNING "$STAND_IN_DIR"/*/state; then',
               'echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi', 'exec "$real" "$@"')
    copying.config("POLL_SECONDS = 0.3")
    done = copying.run(BATCH)
    assert last_line(done) == "6 processed, 0 failed, 0 not needed"
    assert done.err.count(REFUSED) == 1
    assert sorted(os.listdir(str(copying.jobs))) == ["driver.lock", "journal.jsonl"]


LIMIT = ("sbatch: error: AssocGrpSubmitJobsLimit\nsbatch: error: Batch job submission failed: Job "
         "violates accounting/QOS policy (job submit limit, user's size and/or time limits)")


def test_a_first_submission_that_meets_a_limit_twice_is_tried_again(played):
    refuse(played, LIMIT, LIMIT)
    assert played.start("a", "b").finish() == (2, 0)
    assert played.text().count("AssocGrpSubmitJobsLimit") == 1
    assert "Job violates accounting/QOS policy" in played.text()
    assert "Fix that" not in played.text() and played.processed == {"a": 1, "b": 1}


def test_a_refusal_after_a_job_was_accepted_is_told_once_and_tried_again(played):
    played.start("a", "b", "c", NUM_JOBS=2).step()
    refuse(played, *["error: out of cheese"] * 3)
    assert played.finish() == (3, 0)
    assert played.text().count("The scheduler did not accept a job: error: out of cheese\n"
                               "The command was: sbatch ") == 1
    assert played.text().count("out of cheese") == 1
    assert played.count("closed") == 6 and not list(played.folder.glob("g*"))


def unknown_words(number):
    """Texts that nobody thought of; the same ones each time."""
    drawn = []

    @hypothesis.given(strategies.text())
    @hypothesis.settings(max_examples=number, derandomize=True, database=None)
    def draw(text):
        drawn.append(text)

    draw()
    return drawn


def test_no_refusal_stops_a_run_that_has_begun(played):
    played.start("a", "b", "c", NUM_JOBS=1).step()
    words = REFUSALS + unknown_words(30)
    refused = refuse(played, *words)
    assert played.finish(polls=200) == (3, 0)
    assert not refused and played.count("submit") == 3 + len(words)
    assert played.processed == {"a": 1, "b": 1, "c": 1}
    assert os.listdir(str(played.folder)) == ["journal.jsonl"]


def test_refusals_after_a_restart_do_not_stop_a_run_that_has_a_job_in_the_queue(played):
    played.start("a", "b", NUM_JOBS=1).step()
    played.kill()
    refuse(played, *["out of cheese"] * 6)
    played.start(NUM_JOBS=2).poll(7)
    assert played.text().count(REFUSED + "out of cheese\n") == 1
    assert played.finish() == (2, 0) and played.processed == {"a": 1, "b": 1}


# ---- refused, and the run stops ----


def stop_of(played):
    """In which words the driver ends, after three tries."""
    with pytest.raises(played.module.helper.UserError) as stop:
        played.poll(6)
    played.kill()
    assert len(played.called("sbatch")) == 3
    return str(stop.value)


def test_a_run_stops_with_the_words_if_nothing_is_accepted_and_is_in_nobodys_way(
        copying, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    tries = count_calls(copying, tmp_path, "sbatch")
    copying.config("POLL_SECONDS = 0.3", "RESOURCES = '--timeout=60'")  # it is no outage
    done = copying.run(BATCH)
    assert done.returncode == 1 and tries() == 3
    words = "sbatch: unrecognized option '--timeout=60'; Try "
    assert done.err.count(REFUSED + words) == 1
    assert "The scheduler has accepted no job in 3 tries: " + words in done.err
    assert "\nFix that, often RESOURCES in config.py, and start this script again" in done.err
    assert copying.run(SIMPLE).returncode == 0
    copying.config("RESOURCES = ''", "PATH = '/home/share'", "RECURSIVE = True")
    done = copying.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed", done.err
    assert "interrupted" not in done.err


def test_a_limit_that_lasts_stops_the_run_with_its_words(played):
    played.plays["sbatch"] = lambda command: (1, "", LIMIT)
    words = stop_of(played.start("a", "b"))
    assert "has accepted no job in 3 tries: sbatch: error: AssocGrpSubmitJobsLimit; " in words
    assert words.endswith(
        "\nFix that, often RESOURCES in config.py, and start this script again; nothing is lost.")
    played.plays["sbatch"] = played.accept
    assert played.start().finish() == (2, 0) and played.processed == {"a": 1, "b": 1}
    assert "interrupted" not in played.text()


def test_other_resources_than_those_that_were_accepted_may_stop_the_run(played):
    played.start("a", "b", NUM_JOBS=1).step()
    played.kill()
    played.calls.clear()
    played.jobs["1000"].work()
    played.plays["sbatch"] = lambda command: (1, "", "sbatch: unrecognized option '--nonsense=3'")
    words = stop_of(played.start(RESOURCES="--nonsense=3"))
    assert "accepted no job in 3 tries: sbatch: unrecognized option '--nonsense=3'\n" in words
    assert "--nonsense=3" in played.called("sbatch")[-1] and played.processed == {"a": 1}
    played.plays["sbatch"] = played.accept
    assert played.start(RESOURCES="").finish() == (2, 0) and played.processed == {"a": 1, "b": 1}


# name: RESOURCES, what each submission says on stderr, what the person is told
FIRST_REFUSALS = {
    "a partition that sounds like a limit": (
        "-p unlimited", "sbatch: error: invalid partition specified: unlimited",
        "invalid partition specified: unlimited\n"),
    "a queue that sounds like an outage": (
        "-q timeout", "qsub: Unknown queue timeout", "qsub: Unknown queue timeout\n"),
    "the reason below a banner": (
        "", "\n".join("* line %d of the banner *" % n for n in range(10)) + "\nout of cheese",
        "* Connections to this cluster are monitored *; ...; out of cheese\n"),
    "a banner on stdout that sounds like an outage": (
        "", "sbatch: error: out of cheese", "out of cheese\n"),
    "the reason above a usage text": (
        "", "qsub: illegal -N value\nusage: qsub [-a date_time]\n\t[-c interval]\n  qsub --version",
        "monitored *; qsub: illegal -N value\n"),
    "a server that there is not": (
        "", "Can not resolve name for server nosuch. (rc = -2 - )\nqsub: cannot connect to server "
        "nosuch (errno=15010)", "* Connections to this cluster are monitored *; Can not resolve "
        "name for server nosuch. (rc = -2 - ); qsub: cannot connect to server nosuch "
        "(errno=15010)\n"),
}


@pytest.mark.parametrize("name", FIRST_REFUSALS)
def test_refusals_from_the_first_one_on_stop_the_run_with_their_reason(name, played):
    resources, said, told = FIRST_REFUSALS[name]
    played.plays["sbatch"] = lambda command: (
        162, "* Connections to this cluster are monitored *\n", said)
    words = stop_of(played.start("a", RESOURCES=resources))
    assert played.text().count(REFUSED) == 1
    refusal = played.text().split(REFUSED)[1]
    assert refusal[:refusal.index("The command was: sbatch ")].endswith(told)
    end = words.split("has accepted no job in 3 tries: ")[1]
    assert end[:end.index("Fix that, often RESOURCES in config.py, ")].endswith(told)



def test_a_disk_that_is_full_when_a_pack_is_set_up_is_waited_for_at_each_poll(played, monkeypatch):
    def refuse(path, **_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded", path)

    played.start("a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "makedirs", refuse)
        played.poll(3)
    assert played.text().count("Waiting: Disk quota exceeded") == 1
    assert played.finish() == (1, 0)
