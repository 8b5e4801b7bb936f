"""RESOURCES, and the lines for the scheduler at the top of wrapper.sh."""
import shlex
import types

import pytest
from conftest import BATCH, KEEP, calls_of, check_err, copy_downloads, journal, last_line, processed
from in_process import load

batch = load("globus-batch-download")


@pytest.mark.long
def test_resources_that_can_never_work_stop_the_run_with_the_schedulers_words_until_mended(
        cluster, emulator):
    emulator.add({"a": b"1"})
    cluster.config("RESOURCES = '--nonsense=3'")
    done = cluster.run(BATCH)
    assert done.returncode == 1
    words = {"slurm": "sbatch: unrecognized option '--nonsense=3'",
             "sge": 'qsub: invalid option argument "--nonsense=3"'}
    assert words[cluster.scheduler] in done.err
    assert "RESOURCES" in done.err
    cluster.config("RESOURCES = %r" % {"slurm": "--time=5", "sge": "-l h_rt=300"}[
        cluster.scheduler])
    assert last_line(cluster.run(BATCH)) == "1 processed, 0 failed, 0 not needed"


@pytest.mark.long
def test_a_name_of_ones_own_in_resources_hides_no_job(cluster, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    cluster.config("GRACE_SECONDS = 1", "RESOURCES = %r" % {
        "slurm": "--job-name=mine --output=mine.log", "sge": "-N mine -o mine.log"}[
            cluster.scheduler])
    cluster.process("sleep 3", *KEEP)
    done = cluster.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed", done.out
    assert not (cluster.folder / "mine.log").exists()


OPTIONS = [
    ("slurm", "--array=1-3"), ("slurm", "-a 1-3"), ("slurm", "--hold"),
    ("slurm", "-H"), ("slurm", "--wrap=true"), ("slurm", "--dependency=singleton"),
    ("slurm", "--test-only"), ("slurm", "-W"), ("slurm", "--time=1:00 job.sh"),
    ("pbs", "-- /bin/true"), ("pbs", "-J 1-3"), ("pbs", "-h"), ("pbs", "-I"), ("pbs", "-z"),
    ("pbs", "-W depend=afterok:1"), ("pbs", "-W group_list=x,block=true"),
    ("pbs", "-l walltime=1:00:00 job.sh"), ("torque", "-t 1-3"),
    ("sge", "-t 1-3"), ("sge", "-h"), ("sge", "-hold_jid 5"), ("sge", "-sync y")]


def refusal(call, *arguments):
    with pytest.raises(batch.helper.UserError) as told:
        call(*arguments)
    assert told.value.status == 2
    return str(told.value)


@pytest.mark.parametrize("kind,resources", OPTIONS)
def test_options_that_make_another_job_are_named(kind, resources):
    said = refusal(batch.check_options, batch.SCHEDULERS[kind], shlex.split(resources), "there")
    assert said.startswith("there holds '") and len(said.splitlines()) == 2
    assert said.split("'")[1] in shlex.split(resources)


def test_options_that_make_another_job_are_told_before_the_first_job(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.config("RESOURCES = '--time=5 --array=1-3'")
    check_err(stand_in.run(BATCH), 2, "config.py: RESOURCES holds '--array=1-3'. Leave it out")
    assert emulator.tasks() == [] and not stand_in.jobs.exists()


@pytest.mark.parametrize("kind,resources", [
    ("slurm", "-p short --time 1:00:00 --mem=4G -A me --exclusive --wait-all-nodes=1 -N 1"),
    ("pbs", "-l select=1:ncpus=1 -q a -W group_list=x -p -5 -A me"),
    ("sge", "-pe smp 4 -binding set linear:1 -l h_vmem=4G -v A=b -hard -p -100 -terse")])
def test_other_options_are_the_users_own(kind, resources):
    batch.check_options(batch.SCHEDULERS[kind], shlex.split(resources), "there")


def put_at_the_top(site, *lines):
    text = (site.folder / "wrapper.sh").read_text()
    (site.folder / "wrapper.sh").write_text(
        text.replace("#!/bin/bash\n", "#!/bin/bash\n" + "\n".join(lines) + "\n", 1))


def test_sbatch_lines_at_the_top_of_wrapper_sh_are_honoured_and_resources_wins(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    copy_downloads(stand_in)
    calls = calls_of(stand_in, tmp_path, "sbatch")
    put_at_the_top(stand_in, "#SBATCH --time=5 # minutes", "", "# a comment",
                   "#SBATCH --mem=2G", "##SBATCH --mem=9G")
    text = (stand_in.folder / "wrapper.sh").read_text()
    (stand_in.folder / "wrapper.sh").write_text(text + "#SBATCH --mem=7G\n")  # too late
    stand_in.config("RESOURCES = '--time=7'")
    stand_in.process(*KEEP)
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"
    for call in calls():
        options = [word for word in call.split() if word.startswith(("--time", "--mem"))]
        assert options == ["--time=5", "--mem=2G", "--time=7"]  # the last one counts
    assert len(calls()) == 2
    assert processed(stand_in) == {"a": 1, "b": 1}
    for script in (tmp_path / "stand-in").glob("*/script"):  # nor are they read once more
        assert not [line for line in script.read_text().split("\n\\exec", 1)[0].splitlines()
                    if line.startswith("#SBATCH")]


def test_a_name_or_an_output_there_does_not_hide_a_job(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    copy_downloads(stand_in)
    put_at_the_top(stand_in, "#SBATCH --job-name=mine --output=/nowhere/%j")
    stand_in.process('[ "$GLOBUS_NAME" != b ] || exit 3', *KEEP)
    done = stand_in.run(BATCH)
    if done.returncode == 2:
        assert "wrapper.sh" in done.err and processed(stand_in) == {}
        return
    assert last_line(done) == "1 processed, 1 failed, 0 not needed"
    run = journal(stand_in)[0]["run"]
    names = [path.read_text() for path in (tmp_path / "stand-in").glob("*/name")]
    assert len(names) == 2 and all(name.endswith("-" + run) for name in names)


@pytest.mark.parametrize("option", [
    "--array=1-2", "-a 1-2", "-a1-2", "--clusters=far", "-M far", "--wait", "-W", "--hold", "-H",
    "--test-only", "--dependency=afterok:1", "-d afterok:1", "--wrap=ls"])
def test_an_option_at_the_top_of_wrapper_sh_that_makes_it_another_job_is_refused(
        option, fresh_site, monkeypatch):
    put_at_the_top(fresh_site, "#SBATCH --time=5 " + option)
    monkeypatch.setattr(batch, "HERE", str(fresh_site.folder))
    config = types.SimpleNamespace(RESOURCES="")
    said = refusal(batch.check_scripts, batch.SCHEDULERS["slurm"], config)
    assert said.startswith("wrapper.sh holds %r. " % option.split()[0])


def test_lines_for_the_scheduler_in_process_sh_are_told_once(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1", "b": b"2"})
    copy_downloads(stand_in)
    calls = calls_of(stand_in, tmp_path, "sbatch")
    stand_in.process("#SBATCH --mem=2G", "#SBATCH --time=5", *KEEP)
    done = stand_in.run(BATCH)
    assert last_line(done) == "2 processed, 0 failed, 0 not needed"
    assert done.err.count("#SBATCH") == 1 and "process.sh" in done.err
    assert len(calls()) == 2 and not any("--mem" in call for call in calls())
