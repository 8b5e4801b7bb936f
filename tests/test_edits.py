"""What is edited while jobs run: they work with the settings and scripts that they were submitted
with."""
import os
import signal

import pytest
from conftest import (
    BATCH,
    KEEP,
    NEEDED,
    PATH,
    SOURCE,
    TUTORIAL,
    calls_of,
    contents,
    copier,
    copy_downloads,
    end,
    journal,
    last_line,
    processed,
    put_before,
    wait_until,
)

OTHER = "aaaaaaaa-1111-4222-8333-bbbbbbbbbbbb"
WAIT = 'touch "begun.$GLOBUS_NAME"; until [ -e go ]; do sleep 0.1; done'


def in_place(path, text):
    """Save as many editors do: the same file, with another content."""
    before = path.stat().st_ino
    with open(str(path), "w", encoding="utf-8") as file:
        file.write(text)
    assert path.stat().st_ino == before


def next_data_set(emulator, tmp_path):
    """Another data set, with files of the same names; the lines for config.py that choose it. What
    comes with one of the lines only is of no data set that was chosen."""
    emulator.bend_collection(OTHER, root=str(tmp_path / "other"), display_name="Another one")
    for folder in (emulator.source / "home/share/other", tmp_path / "other" / TUTORIAL,
                   tmp_path / "other/home/share/other"):
        folder.mkdir(parents=True)
        for n in range(4):
            (folder / ("f%d" % n)).write_bytes(b"of another data set")
    return "PATH = '/home/share/other/'", "SOURCE_ENDPOINT_ID = %r" % OTHER


def test_jobs_go_on_with_the_data_set_of_their_driver_when_config_py_is_edited(
        cluster, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(3)})
    lines = next_data_set(emulator, tmp_path)
    cluster.config("NUM_JOBS = 2")
    cluster.process(WAIT, *KEEP)
    emulator.bend(slots=1)  # the second job is in its download
    driver = cluster.start(BATCH)
    wait_until(lambda: list(cluster.folder.glob("begun.*")))
    cluster.config(*lines)
    (cluster.folder / "go").touch()
    last, status, said = end(driver)
    assert (last, status) == ("3 processed, 0 failed, 0 not needed", 0), said
    assert contents(cluster.folder / "out") == files
    assert processed(cluster) == dict.fromkeys(files, 1)


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
@pytest.mark.long
def test_jobs_that_wait_in_the_queue_while_config_py_is_edited_keep_their_data_set(
        where, stand_in, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(4)})
    lines = next_data_set(emulator, tmp_path)
    go = tmp_path / "go"
    put_before(stand_in, tmp_path, "sbatch",
               '{ echo "until [ -e %s ]; do sleep 0.1; done"; cat; } | "$real" "$@"' % go)
    calls = calls_of(stand_in, tmp_path, "scancel")
    stand_in.config(NEEDED, "DOWNLOAD_BY = %r" % where)
    stand_in.process(*KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: sum(event["event"] == "queued" for event in journal(stand_in)) == 3)
    driver.send_signal(signal.SIGINT)
    assert end(driver)[1] == 130
    text = (stand_in.folder / "config.py").read_text()
    stand_in.config(*lines)
    before = journal(stand_in)
    done = stand_in.run(BATCH)
    assert done.returncode == 2 and "interrupted run" in done.err
    assert "SOURCE_ENDPOINT_ID = %r, not %r" % (SOURCE, OTHER) in done.err
    assert "PATH = %r, not '/home/share/other/'" % PATH in done.err
    command = next(line for line in done.err.splitlines() if line.startswith("scancel "))
    assert sorted(command.split()[1:]) == ["1000", "1001", "1002"]  # of the packs, in their order
    assert str(stand_in.jobs) in done.err
    assert journal(stand_in) == before and calls() == []
    go.touch()
    wait_until(lambda: len(processed(stand_in)) == 3)
    (stand_in.folder / "config.py").write_text(text)
    done = stand_in.run(BATCH)
    assert last_line(done) == "4 processed, 0 failed, 0 not needed"
    assert contents(stand_in.folder / "out") == files
    assert processed(stand_in) == dict.fromkeys(files, 1)


def test_a_link_to_another_config_py_of_the_same_second_and_size_is_the_other_data_set(
        stand_in, emulator):
    assert "PYTHONDONTWRITEBYTECODE" not in stand_in.env
    text = (stand_in.folder / "config.py").read_text() + NEEDED + "\nWORKING_DIR = %r\n" % str(
        stand_in.folder)
    config = stand_in.folder / "config.py"
    config.unlink()
    for name in "12":
        (emulator.source / ("home/share/set" + name)).mkdir()
        (emulator.source / ("home/share/set" + name) / ("of" + name)).write_bytes(b"x")
        path = stand_in.folder / ("generated%s.py" % name)
        path.write_text(text + "PATH = '/home/share/set%s/'\n" % name)
        os.utime(str(path), (1700000000, 1700000000))
    assert len({path.stat().st_size for path in stand_in.folder.glob("generated*")}) == 1
    for name in "12":
        config.symlink_to("generated%s.py" % name)
        done = stand_in.run(BATCH, "--dry-run")
        assert last_line(done) == "1 to process, 0 refused, 0 not needed"
        assert done.out.split()[1] == "of" + name
        config.unlink()


@pytest.mark.parametrize("where", ["job", pytest.param("driver", marks=pytest.mark.long)])
def test_a_half_saved_line_in_config_py_while_jobs_run_harms_no_file(where, cluster, emulator):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(4)})
    cluster.config("FILES_PER_JOB = 2", "NUM_JOBS = 1", "DOWNLOAD_BY = %r" % where)
    cluster.process(WAIT, *KEEP)
    driver = cluster.start(BATCH)
    wait_until(lambda: list(cluster.folder.glob("begun.*")))
    cluster.config("PATH = '/home/sh")
    (cluster.folder / "go").touch()
    last, status, said = end(driver)
    assert (last, status) == ("4 processed, 0 failed, 0 not needed", 0), said
    assert contents(cluster.folder / "out") == files
    assert processed(cluster) == dict.fromkeys(files, 1)


def test_a_process_sh_that_is_shortened_in_place_harms_no_running_job(cluster, emulator):
    emulator.add(dict.fromkeys("abcd", b"x"))
    copy_downloads(cluster)
    cluster.config("FILES_PER_JOB = 2", "NUM_JOBS = 1")
    cluster.process(*["# a comment that the next version does without"] * 50, WAIT,
                    "mkdir -p out", 'echo old >"out/$GLOBUS_NAME"')
    driver = cluster.start(BATCH)
    wait_until((cluster.folder / "begun.a").exists)
    in_place(cluster.folder / "process.sh",
             "#!/bin/bash\nmkdir -p out\necho new >\"out/$GLOBUS_NAME\"\n")
    (cluster.folder / "go").touch()
    last, status, said = end(driver)
    assert (last, status) == ("4 processed, 0 failed, 0 not needed", 0), said
    assert contents(cluster.folder / "out") == {
        "a": b"old\n", "b": b"old\n", "c": b"new\n", "d": b"new\n"}


@pytest.mark.parametrize("lines", [
    "if [ -e /modules ]; then\nsource '/half/a/na", "exit 7\n" * 100, None],
    ids=["half a line", "many lines", "half the file"])
def test_environment_lines_that_are_edited_in_place_harm_no_running_job(lines, cluster, emulator):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(2)})  # all of them are at work
    python = copier(copy_downloads(cluster))
    begun, go = cluster.folder / "download", cluster.folder / "go"
    first, rest = python.read_text().split("\n", 1)
    python.write_text("\n".join([
        first, '! grep -q f1 "$3/files" || {', "touch %s; until [ -e %s ]; do sleep 0.1; done"
        % (begun, go), "}", rest]))
    cluster.config("NUM_JOBS = 2")
    cluster.process(WAIT, *KEEP)
    driver = cluster.start(BATCH)
    wait_until((cluster.folder / "begun.f0").exists)  # in process.sh
    wait_until(begun.exists)  # the other one
    text = (cluster.folder / "wrapper.sh").read_text()
    head, behind = text.split("# module load samtools\n")
    if lines is None:  # saved half
        in_place(cluster.folder / "wrapper.sh", head)
    else:
        in_place(cluster.folder / "wrapper.sh", head + lines + behind)
    go.touch()
    last, status, said = end(driver)
    assert (last, status) == ("2 processed, 0 failed, 0 not needed", 0), said
    assert contents(cluster.folder / "out") == files
    assert processed(cluster) == dict.fromkeys(files, 1)


def test_environment_lines_that_are_edited_harm_no_job_that_waits_in_the_queue(
        stand_in, emulator, tmp_path):
    files = emulator.add({"f%d" % n: b"%d" % n for n in range(3)})
    copy_downloads(stand_in)
    go = tmp_path / "go"
    put_before(stand_in, tmp_path, "sbatch",
               '{ echo "until [ -e %s ]; do sleep 0.1; done"; cat; } | "$real" "$@"' % go)
    stand_in.process(*KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: sum(event["event"] == "queued" for event in journal(stand_in)) == 3)
    text = (stand_in.folder / "wrapper.sh").read_text()
    in_place(stand_in.folder / "wrapper.sh", text.replace("# module load samtools", "exit 7"))
    go.touch()
    last, status, said = end(driver)
    assert (last, status) == ("3 processed, 0 failed, 0 not needed", 0), said
    assert processed(stand_in) == dict.fromkeys(files, 1)


def test_an_edit_of_config_py_during_a_run_is_told_once(stand_in, emulator):
    emulator.add({"a": b"1"})
    copy_downloads(stand_in)
    stand_in.config("POLL_SECONDS = 0.2")
    stand_in.process("until [ -e go ]; do sleep 0.1; done")
    driver = stand_in.start(BATCH)
    wait_until(lambda: len(journal(stand_in)) > 3)
    stand_in.config("NUM_JOBS = 7")
    words = b"config.py has changed; it takes effect at the next start."
    wait_until(lambda: words in driver.stderr.readline())
    (stand_in.folder / "go").touch()
    assert words not in driver.communicate()[1]
