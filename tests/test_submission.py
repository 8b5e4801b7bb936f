"""globus-batch-download.py, "the driver": what a scheduler says of a submission, when it is tried
again, and when the run stops."""
import os
import shlex
import shutil

import hypothesis
import pytest
from conftest import (
    ASK,
    BATCH,
    DIE,
    FIRST_TIME,
    KEEP,
    REFUSED,
    SUBMIT,
    count_calls,
    count_events,
    journal,
    kill_driver_with_a_job,
    last_line,
    processed,
    put_before,
    wait_until,
    with_stand_in,
)
from hypothesis import strategies

# The job has its token: the first one that is submitted.
BEGUN = ('for try in {1..300}; do ! compgen -G "jobs/*/[ae][tn]*.1.*" >/dev/null || break; '
         'sleep 0.1; done')
# Submitted; but the job begins later than the answer comes.
LATER = '(echo "#!/bin/bash"; echo "sleep 2"; cat) | "$real" "$@" >/dev/null'
LONG = {"accepted long after it was killed", "hangs", "a limit of PBS", "a server that ends",
        "out of order", "accepted, but then the scheduler is out of reach",
        "accepted and at work, but then it is killed"}
ONCE_IN = 'mkdir "$0.first" 2>/dev/null && exec "$real" "$@"'  # the first time it works
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


# name: what the first submission does, and what the person is told of it
SUBMISSIONS = {
    "accepted, but then a time-out is reported": (
        [LATER,
         'echo "error: Batch job submission failed: Socket timed out on send/recv operation" >&2',
         "exit 1"],
        "error: Batch job submission failed: Socket timed out on send/recv operation\n"),
    "not accepted, and a time-out is reported": (
        ['echo "error: Socket timed out on send/recv operation" >&2', "exit 1"],
        "error: Socket timed out on send/recv operation\n"),
    "accepted, but then it hangs": ([LATER.replace("sleep 2", "sleep 6"), "exec sleep 100"],
                                    "did not answer within 3 s\n"),
    "accepted and at work, but it hangs": (
        ['"$real" "$@" >/dev/null', BEGUN, "exec sleep 100"], None),
    "hangs": (["exec sleep 100"], "did not answer within 3 s\n"),
    "accepted long after it was killed": (
        ['cat >"$0.script"', '(sleep 6; printf "#!/bin/bash\\nbash %s.script; touch %s.over\\n" '
         '"$0" "$0" | "$real" "$@") >/dev/null 2>&1 &', "exec sleep 100"],
        "did not answer within 3 s\n"),
    "accepted, but prints no id": ([LATER], "(nothing)\n"),
    "accepted and at work, but prints no id": (['"$real" "$@" >/dev/null', BEGUN], None),
    "accepted, but a limit and a time-out are reported": (
        [LATER, 'echo "error: limit of requests reached, waiting" >&2',
         'echo "error: Socket timed out on send/recv operation" >&2', "exit 1"],
        "error: limit of requests reached, waiting; error: Socket timed out on"),
    "a limit of the site": (
        ['echo "error: QOSMaxSubmitJobPerUserLimit" >&2',
         'echo "error: Batch job submission failed: Job violates accounting/QOS policy (job submit'
         ' limit, user\'s size and/or time limits)" >&2', "exit 1"],
        "error: QOSMaxSubmitJobPerUserLimit; error: Batch job submission failed: Job violates"),
    "a limit of PBS": (
        ['echo "qsub: Maximum number of jobs for user me already in complex" >&2', "exit 1"],
        "qsub: Maximum number of jobs for user me already in complex\n"),
    "a server that ends": (
        ['echo "qsub: Request not allowed: Server shutting down" >&2', "exit 1"],
        "qsub: Request not allowed: Server shutting down\n"),
    "out of order": (
        ['echo "cannot connect to server pbshost (errno=15010)" >&2', "exit 162"],
        "cannot connect to server pbshost (errno=15010)\n"),
    "accepted, but then the scheduler is out of reach": (
        [LATER, 'echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2',
         "exit 1"], "sbatch: error: Unable to contact slurm controller (connect failure)\n"),
    "accepted, but then it is killed": ([LATER, 'kill -KILL $$'], "(nothing)\n"),
    "accepted and at work, but then it is killed": (
        ['"$real" "$@" >/dev/null', BEGUN, 'kill -KILL $$'], None),
    "accepted and at work, but refused in words that nobody knows": (
        ['"$real" "$@" >/dev/null', BEGUN, 'echo "error: out of cheese" >&2', "exit 1"], None),
    "a warning, and it succeeds": (
        ['echo "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying" >&2',
         'exec "$real" "$@"'], None),
}


# What differs in words only is not tried on the real ones.
REAL = ("accepted, but then a time-out is reported", "accepted and at work, but it hangs", "hangs",
        "accepted long after it was killed", "accepted, but prints no id")


@pytest.mark.parametrize("cluster,fault", [
    pytest.param(kind, fault, marks=[pytest.mark.long] * (fault in LONG)
                 + [pytest.mark.real] * (" " not in kind))
    for kind in ("stand-in slurm", "slurm", "sge") for fault in SUBMISSIONS
    if " " in kind or fault in REAL], indirect=["cluster"])
def test_each_file_is_processed_once_though_a_submission_is(fault, cluster, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(4)})
    lines, words = SUBMISSIONS[fault]
    put_before(cluster, tmp_path, SUBMIT[cluster.scheduler], FIRST_TIME, *lines)
    cluster.edit(BATCH, "SUBMIT_SECONDS = 300", "SUBMIT_SECONDS = 3")
    over = tmp_path / "before" / (SUBMIT[cluster.scheduler] + ".over")
    is_late = fault == "accepted long after it was killed"  # it begins while the next one is at it
    wait = "until [ -e '%s' ] || [ $SECONDS -gt 15 ]; do sleep 0.1; done" % over
    cluster.process(*[wait] * is_late, *KEEP)
    done = cluster.run(BATCH)
    assert last_line(done) == "4 processed, 0 failed, 0 not needed"
    assert processed(cluster) == {"f%d" % n: 1 for n in range(4)}
    assert done.err.count(REFUSED) == (1 if words else 0)
    if words:
        refusal = done.err.split(REFUSED)[1]
        assert words in refusal[:refusal.index("\n") + 1]
        assert "\nThe command was: %s " % SUBMIT[cluster.scheduler] in refusal
        assert "\nTrying again every 1 s. If RESOURCES has to be fixed, " in refusal
    else:
        assert "sbatch: error" not in done.err and count_events(cluster, "submit") == 4
    # A real scheduler may keep the late one waiting, until the driver cancels it.
    if not is_late or "STAND_IN_DIR" in cluster.env:
        assert over.exists() == is_late


def test_a_job_that_is_accepted_long_after_it_was_given_up_is_cancelled(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_before(stand_in, tmp_path, "sbatch", 'if mkdir "$0.first" 2>/dev/null; then',
               'cat >"$0.script"; printf "%q " "$@" >"$0.args"',
               'echo "error: Socket timed out on send/recv operation" >&2; exit 1; fi',
               'if mkdir "$0.second" 2>/dev/null; then',
               'echo "sleep 100; bash $0.script" | eval "\"$real\" $(cat "$0.args")"; fi >&2',
               'exec "$real" "$@"')
    put_before(stand_in, tmp_path, "squeue",
               '"$real" "$@" | sed "/^1000|/s/RUNNING|None/PENDING|Priority/"')
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process('for try in {1..300}; do', 'sleep 0.1',
                     '! grep -qs CANCELLED "$STAND_IN_DIR"/*/state || exit 0', "done", "exit 1")
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed"
    assert (tmp_path / "stand-in" / "1000" / "state").read_text() == "CANCELLED\n"


def test_a_job_that_had_begun_is_not_submitted_again_though_nobody_told_its_id(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    put_before(stand_in, tmp_path, "sbatch", '"$real" "$@" >/dev/null', BEGUN)
    put_before(stand_in, tmp_path, "squeue", "echo 'JOBID|NAME|STATE|REASON'")
    stand_in.config("GRACE_SECONDS = 1")
    stand_in.process("echo >>begun", DIE)
    done = stand_in.run(BATCH)
    assert last_line(done) == "0 processed, 1 failed, 0 not needed"
    assert "FAILED a: the job was lost: no exit status" in done.out and REFUSED not in done.err
    assert (stand_in.folder / "begun").read_text() == "\n"
    assert count_events(stand_in, "submit") == 1


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


# ---- refused, and tried again ----


def test_a_scheduler_that_is_down_is_waited_for(cluster, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    down, calls = tmp_path / "down", tmp_path / "questions"
    down.touch()
    for command in (SUBMIT[cluster.scheduler], ASK[cluster.scheduler]):
        put_before(cluster, tmp_path, command, "[ -e %s ] || exec \"$real\" \"$@\"" % down,
                   "[ %s != %s ] || echo >>%s" % (command, ASK[cluster.scheduler], calls),
                   'echo "error: Unable to contact slurm controller (connect failure)" >&2; exit 1')
    driver = cluster.start(BATCH)
    wait_until(lambda: b"does not answer" in driver.stderr.readline())
    calls.write_text("")
    wait_until(lambda: calls.read_text().count("\n") >= 5)  # more often than refusals count
    down.unlink()
    out, err = driver.communicate()
    assert out.decode().splitlines()[-1] == "2 processed, 0 failed, 0 not needed"
    assert err.count(b"Unable to contact") <= 2  # once from each command, and not at every poll


def test_a_job_that_is_refused_is_tried_again_no_more_often_than_the_queue_is_asked(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    limit = tmp_path / "limit"
    limit.touch()
    put_before(stand_in, tmp_path, "sbatch", 'mkdir "$0.first" 2>/dev/null && exec "$real" "$@"',
               '[ -e %s ] || exec "$real" "$@"' % limit,
               "echo >>%s" % limit, 'echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1')
    questions = count_calls(stand_in, tmp_path, "squeue")
    stand_in.config("POLL_SECONDS = 0.3", "NUM_JOBS = 1")
    driver = stand_in.start(BATCH)
    wait_until(lambda: len(limit.read_text()) >= 5)  # more often than stops a run that begins
    assert len(limit.read_text()) <= questions() + 1  # and once when the job had ended
    limit.unlink()
    out, err = driver.communicate()
    assert out.endswith(b"2 processed, 0 failed, 0 not needed\n")
    assert err.decode().count(REFUSED + "error: QOSMaxSubmitJobPerUserLimit\n") == 1


@pytest.mark.long
def test_a_limit_below_num_jobs_is_told_once_and_leaves_nothing_behind(
        stand_in, emulator, tmp_path):
    emulator.add({"f%02d" % n: b"x" for n in range(20)})
    put_before(stand_in, tmp_path, "sbatch", 'if grep -qs RUNNING "$STAND_IN_DIR"/*/state; then',
               'echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi', 'exec "$real" "$@"')
    stand_in.config("POLL_SECONDS = 0.5")
    done = stand_in.run(BATCH)
    assert last_line(done) == "20 processed, 0 failed, 0 not needed"
    assert done.err.count(REFUSED) == 1
    assert sorted(os.listdir(str(stand_in.jobs))) == ["driver.lock", "journal.jsonl"]


LIMIT = ['echo "sbatch: error: AssocGrpSubmitJobsLimit" >&2',
         'echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy '
         '(job submit limit, user\'s size and/or time limits)" >&2', "exit 1"]


def test_a_first_submission_that_meets_a_limit_twice_is_tried_again(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    put_before(
        stand_in, tmp_path, "sbatch",
        'mkdir "$0.1" 2>/dev/null || mkdir "$0.2" 2>/dev/null || exec "$real" "$@"', *LIMIT)
    stand_in.config("POLL_SECONDS = 0.3")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert (last_line(done), done.returncode) == ("2 processed, 0 failed, 0 not needed", 0)
    assert done.err.count("AssocGrpSubmitJobsLimit") == 1
    assert "Job violates accounting/QOS policy" in done.err and "sbatch --" in done.err
    assert "Fix" not in done.err
    assert processed(stand_in) == {"a": 1, "b": 1}


def test_a_refusal_after_a_job_was_accepted_is_told_once_and_tried_again(
        stand_in, emulator, tmp_path):
    emulator.add({"f%d" % n: b"x" for n in range(8)})
    put_before(stand_in, tmp_path, "sbatch", 'echo >>"$0.calls"',
               'case $(wc -l <"$0.calls") in 3|4|5) echo "error: out of cheese" >&2; exit 1;; esac',
               'exec "$real" "$@"')
    (tmp_path / "bin" / "wc").symlink_to(shutil.which("wc"))
    stand_in.config("NUM_JOBS = 2", "POLL_SECONDS = 0.3")
    stand_in.process(*KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "8 processed, 0 failed, 0 not needed"
    assert done.err.count("The scheduler did not accept a job: error: out of cheese\n"
                          "The command was: sbatch ") == 1
    assert done.err.count("out of cheese") == 1
    assert sum(event["event"] == "closed" and event["why"] == "refused"
               for event in journal(stand_in)) == 3


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


def test_a_run_whose_first_job_was_refused_is_not_in_the_way(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("RESOURCES = '--nonsense=3'", "POLL_SECONDS = 0.2")
    assert stand_in.run(BATCH).returncode == 1
    assert stand_in.run("globus-simple-download.py").returncode == 0
    stand_in.config("RESOURCES = ''", "PATH = '/home/share'", "RECURSIVE = True")
    done = stand_in.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err
    assert "interrupted" not in done.err


# ---- refused, and the run stops ----


def test_the_run_stops_with_the_words_if_nothing_is_accepted_in_three_polls(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    tries = tmp_path / "tries"
    put_before(stand_in, tmp_path, "sbatch", "echo >>%s" % tries,
               'echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1')
    stand_in.config("POLL_SECONDS = 0.3")
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and len(tries.read_text()) == 3
    assert done.err.count(REFUSED + "error: QOSMaxSubmitJobPerUserLimit\n") == 1
    assert ("The scheduler has accepted no job in 3 tries: error: QOSMaxSubmitJobPerUserLimit\n"
            in done.err)
    (tmp_path / "before" / "sbatch").unlink()
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"


def test_an_option_that_sounds_like_an_outage_stops_the_run_all_the_same(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("RESOURCES = '--timeout=60'", "POLL_SECONDS = 0.3")
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert ("The scheduler has accepted no job in 3 tries: sbatch: unrecognized option "
            "'--timeout=60'; Try" in done.err)
    assert "Fix that, often RESOURCES in config.py, and start this script again" in done.err


def test_a_limit_that_lasts_stops_the_run_with_its_words(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    calls = tmp_path / "sbatch.calls"
    put_before(stand_in, tmp_path, "sbatch", "echo >>%s" % calls, *LIMIT)
    stand_in.config("POLL_SECONDS = 0.3")
    done = stand_in.run(BATCH)
    assert done.returncode == 1 and calls.read_bytes().count(b"\n") == 3
    assert "AssocGrpSubmitJobsLimit" in done.err.splitlines()[-2]
    (tmp_path / "before" / "sbatch").unlink()
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"
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
