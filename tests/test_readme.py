"""The README: what it shows exists, and its examples run."""
import ast
import gzip
import os
import re
import runpy
import shutil
import subprocess
import sys
import types

import pytest
from conftest import BATCH, COLLECTION, KEEP, contents, copy_downloads, last_line, wait_until
from in_process import load

README = (COLLECTION / "README.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"(?m)^    +(\S.*)$", README)) + "\n" + " ".join(
    re.findall(r"`([^`\n]+)`", README))
SCRIPTS = sorted(COLLECTION.glob("*.py"))
CONFIG = (COLLECTION / "config.py").read_text(encoding="utf-8")
SYSTEM = ":/usr/bin:/bin"  # what a user's PATH has, too


def section(title):
    return re.search(r"(?ms)^#+ %s\n(.*?)(^#+ |\Z)" % re.escape(title), README).group(1)


def topic(title):
    """What follows a title in bold, up to the next one or the end of the section."""
    return re.search(r"(?ms)^(\*\*%s.*?)(\n\n\*\*|^#+ |\Z)" % re.escape(title), README).group(1)


def rows(title):
    """The cells of the last table of a section, without its heading."""
    table = [line for line in section(title).splitlines() if line.startswith("|")]
    heading = max(number for number, line in enumerate(table) if line.startswith("| ---"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[heading + 1:]]


def blocks(text):
    """The fenced blocks of code."""
    return re.findall(r"(?s)```\w+\n(.*?)```", text)


def indented(text):
    """The indented lines of code."""
    return re.findall(r"(?m)^    (.*)$", text)


def in_line(text, start):
    """The code in a line of text that begins like this."""
    return re.search("`(%s[^`]*)`" % re.escape(start), text).group(1)


def replacements(text):
    """What is to be replaced by what."""
    return re.findall(r"replace\s+`([^`]+)`\s+by\s+`([^`]+)`", text)


def texts(path):
    """All texts of a script; the pieces of an f-string with ... between them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(getattr(part, "value", "") if not isinstance(part, ast.FormattedValue)
                          else "..." for part in node.values)
        elif isinstance(getattr(node, "value", getattr(node, "s", None)), str):
            yield node.value if isinstance(getattr(node, "value", None), str) else node.s


SAID = "\n".join(text for path in SCRIPTS for text in texts(path))
MESSAGES = [message for cells in rows("What you see, and what it means")
            for message in re.findall("`([^`]+)`", cells[0])]


def test_the_table_of_messages_is_read_here():
    assert len(MESSAGES) > 5


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_table_is_one_that_the_scripts_print(message):
    for piece in re.split(r"\.\.\.|\bNAME\b|FILE|\b\d+(?: jobs?| bytes)?\b|: ", message):
        assert piece.strip(" :,=") in SAID


@pytest.mark.parametrize("path", sorted(set(re.findall(
    r"(?:tests/|\.github/)[\w.-]+|\b[\w-]+\.(?:py|sh|txt)\b", CODE + README))))
def test_a_file_that_it_names_exists(path):
    assert (path in ("file1.txt", "skip.txt")  # of the tutorial collection; of a recipe
            or path in SAID  # a file that the scripts write
            or (COLLECTION / path).exists() or (COLLECTION / "tests" / path).exists())


def help_of(script, capsys, monkeypatch):
    """What a script says with --help, on a screen of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [script])
    with pytest.raises(SystemExit) as end:
        load(script[:-len(".py")]).main(["--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(set(re.findall(
    r"\./(globus-[\w-]+\.py(?: --[\w-]+)?)", CODE))))
def test_a_command_and_its_option_exist(command, capsys, monkeypatch):
    script, _, option = command.partition(" ")
    assert option in help_of(script, capsys, monkeypatch)


@pytest.mark.parametrize("script", [
    path.name for path in SCRIPTS if path.name.startswith("globus-")])
def test_each_help_is_one_screen_with_an_example(script, capsys, monkeypatch):
    lines = help_of(script, capsys, monkeypatch).splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert "    ./" + script in "\n".join(lines)


def test_its_table_has_all_settings_as_they_come():
    config = load("config")
    names = {node.id for node in ast.walk(ast.parse((COLLECTION / "config.py").read_text()))
             if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    shown = {}
    for name, default, _ in rows("The settings"):
        shown[re.match(r"`(\w+)", name).group(1)] = re.match("`([^`]+)`", default)
    assert set(shown) == {name for name in names if name.isupper()} | {"is_file_needed"}
    for name, default in shown.items():
        if default and default.group(1) != "config.py":
            assert ast.literal_eval(default.group(1)) == getattr(config, name)


def test_its_links_into_itself_lead_somewhere():
    titles = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
              for title in re.findall(r"(?m)^#+ (.*)$", README)}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= titles


def test_it_has_at_most_350_lines_wrapped_at_120_columns():
    lines = README.splitlines()
    assert len(lines) <= 350
    assert max(len(line) for line in lines if not line.startswith("|")) <= 120


def test_its_numbers_of_jobs_follow_from_its_formula():
    text = topic("4. `NUM_JOBS`")
    assert "`3 x (download + processing) / download`, plus two or three" in " ".join(text.split())
    assert list(map(int, re.findall(r"\*\*(\d+)\*\*", text))) == [
        3 * (1 + processing) + 3 for processing in (0, 1, 3)]


def test_its_ratios_are_those_that_were_measured():
    speed = (COLLECTION / "tests" / "SPEED.md").read_text(encoding="utf-8")
    shown = re.search(r"--only packs`([^\[]*)", README).group(1)
    measured = dict(re.findall(
        r'FILES_PER_JOB = (\d+), DOWNLOAD_BY = "job" \|[^|]*\|[^|]*\| ([\d.]+)', speed))
    assert re.findall(r"\d+\.\d\d", shown) == list(measured.values())
    assert set(measured) <= set(re.findall(r"\d+", shown))
    listing, jobs = re.search(
        r"(?s)takes (0\.\d+) .*?is\s+(\d\.\d+) of the ideal", README).groups()
    assert re.search(r"list 100,000 files.*\*\*%s\*\*" % listing, speed)
    assert re.search(r"300 jobs.*the ideal.*\*\*%s\*\*" % jobs, speed)


def test_the_benchmarks_that_made_its_numbers_exist():
    benchmark = (COLLECTION / "tests" / "benchmark.py").read_text(encoding="utf-8")
    speed = (COLLECTION / "tests" / "SPEED.md").read_text(encoding="utf-8")
    names = re.findall(r"benchmark\.py --only (\w+)", README + speed)
    assert len(names) > 2
    for name in names:
        assert "\ndef %s(sizes):" % name in benchmark


# ---- the first batch ----


def is_needed(site, path):
    """What the filter in config.py says of a file."""
    config = runpy.run_path(str(site.folder / "config.py"))
    return config["is_file_needed"](types.SimpleNamespace(path=path, size=1))


def test_its_example_of_a_filter_and_process_sh_run(stand_in, emulator):
    process, function = blocks(section("Your first batch"))
    reads = gzip.compress(b"@read\nACGT\n+\nFFFF\n" * 5)
    copy_downloads(stand_in)
    emulator.add({"a b.fastq.gz": reads, "sub/c.fastq.gz": reads, "sub/c.fastq.gz.md5": b"..."})
    stand_in.config(function, "RECURSIVE = True")
    (stand_in.folder / "process.sh").write_text(process)
    stand_in.env["PATH"] += SYSTEM  # zcat, awk
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 1 not needed"
    assert (stand_in.results / "a b.fastq.gz.reads").read_text() == "5\n"
    assert not is_needed(stand_in, "a b.fastq.gz") and not is_needed(stand_in, "sub/c.fastq.gz")
    assert is_needed(stand_in, "sub/d.fastq.gz")


def test_its_table_tells_what_process_sh_gets(stand_in, emulator):
    names = [re.match(r"`\$(\w+)`", name).group(1) for name, _ in rows("Your first batch")]
    assert names[0] == "1"
    emulator.add({"run1/a.fastq.gz": b"1"})
    stand_in.config("RECURSIVE = True")
    stand_in.process("printf '%s\\n' \"$PWD\" " + " ".join('"$%s"' % name for name in names)
                     + " >got")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    got = dict(zip(["PWD", *names], (stand_in.folder / "got").read_text().splitlines()))
    place = got.pop("1")
    assert place.startswith(str(stand_in.downloads)) and place.endswith("/run1/a.fastq.gz")
    got["GLOBUS_PATH"] = got["GLOBUS_PATH"].rstrip("/")
    assert got == {"PWD": str(stand_in.folder), "GLOBUS_NAME": "run1/a.fastq.gz",
                   "GLOBUS_PATH": "/home/share/godata", "PYTHON": sys.executable}


def test_its_commands_for_a_first_batch_run(stand_in, emulator):
    copy_downloads(stand_in)
    emulator.add({"file%d.txt" % n: b"%d" % n for n in range(1, 6)})
    by_hand, dry_run, few, all_of_it = indented(topic("5. Try it"))
    stand_in.env["PATH"] = "%s:%s%s" % (
        os.path.dirname(sys.executable), stand_in.env["PATH"], SYSTEM)

    def type_in(command):
        return subprocess.run(["bash", "-c", command], cwd=str(stand_in.folder), env=stand_in.env,
                              stdout=subprocess.PIPE, check=True).stdout.decode()

    type_in(by_hand)
    assert set(contents(stand_in.results)) == {"file1.txt.sha256"}
    assert type_in(dry_run).endswith("4 to process, 0 refused, 1 not needed\n")
    assert type_in(few).endswith("3 processed, 0 failed, 1 not needed\n")
    type_in(all_of_it + " wait")
    assert (stand_in.folder / "batch.log").read_text().endswith(
        "1 processed, 0 failed, 4 not needed\n")
    assert contents(stand_in.downloads) == {}


def test_what_takes_effect_when(stand_in, emulator):
    """Edits during a run: process.sh and wrapper.sh count from the next job, config.py does not."""
    copy_downloads(stand_in)
    emulator.add({"a": b"1", "b": b"2"})
    stand_in.config("NUM_JOBS = 1")
    stand_in.process("touch begun; until [ -e go ]; do sleep 0.1; done",
                     'echo "$GLOBUS_NAME first $EDITED" >>seen')
    driver = stand_in.start(BATCH)
    wait_until((stand_in.folder / "begun").exists)
    stand_in.process('echo "$GLOBUS_NAME second $EDITED" >>seen')
    stand_in.edit("wrapper.sh", "edit here ----\n", "edit here ----\nexport EDITED=yes\n")
    stand_in.config('PATH = "/nowhere/"')
    (stand_in.folder / "go").touch()
    assert driver.communicate()[0].endswith(b"2 processed, 0 failed, 0 not needed\n")
    assert (stand_in.folder / "seen").read_text() == "a first \nb second yes\n"


# ---- what a run shows ----


# What differs from one run to the next: a pattern for such words, and one for what they may be.
VARIABLE = [(r"jobs/\S+(?=\))|node\d+|login\d+", r"\S+"),
            (r"\d[\d.]* [kMGT]?B", r"[\d.]+ [kMGT]?B"), (r"\d+ (?:min|s)\b", r"[\d.]+ (?:min|s)"),
            (r"jobs?\b", "jobs?"), (r"files?\b", "files?"), (r"\d+", r"\d+")]


def as_pattern(line):
    """A pattern for lines like this one of the README."""
    pattern = ""
    while line:
        for word, others in VARIABLE:
            match = re.match(word, line)
            if match:
                pattern, line = pattern + others, line[match.end():]
                break
        else:
            pattern, line = pattern + re.escape(line[0]), line[1:]
    return pattern


def test_a_failure_and_the_status_look_as_it_shows_them(stand_in, emulator):
    copy_downloads(stand_in)
    emulator.add({"run1/a.fastq.gz": b"1", "run1/b.fastq.gz": b"2", "run1/c.fastq.gz": b"3"})
    stand_in.config("RECURSIVE = True", "NUM_JOBS = 1")
    stand_in.process('case $GLOBUS_NAME in *a.*) echo "gzip: unexpected end of file"; exit 1 ;;',
                     "*c.*) touch begun; until [ -e go ]; do sleep 0.1; done ;; esac")
    driver = stand_in.start(BATCH)
    wait_until((stand_in.folder / "begun").exists)
    status = stand_in.run(BATCH, "--status").out.splitlines()
    (stand_in.folder / "go").touch()
    log = driver.communicate()[1].decode().splitlines()
    shown = indented(section("Watch it"))[1:]
    assert len(shown) == len(status) == 4
    for line, real in zip(shown, status):
        assert re.fullmatch(as_pattern(line), real)
    failed = as_pattern(indented(section("When it fails"))[0])
    assert any(re.search(r"\d  %s$" % failed, line) for line in log), log


def test_the_progress_looks_as_it_shows_it(stand_in, emulator):
    copy_downloads(stand_in)
    emulator.add(dict.fromkeys("abc", b"xyz"))
    stand_in.config("NUM_JOBS = 1")
    stand_in.process('[ "$GLOBUS_NAME" != b ] || exit 1',
                     '[ "$GLOBUS_NAME" != c ] || until [ -e go ]; do sleep 0.1; done')
    shown = as_pattern(indented(section("Watch it"))[0])
    for screen in stand_in.watch(BATCH, columns=120):
        if any(re.search(r"\] %s *$" % shown, line) for line in screen.display):
            (stand_in.folder / "go").touch()
    assert (stand_in.folder / "go").exists() and screen.status == 1


def test_its_line_of_resources_works(real_cluster, emulator):
    """With the queue of the private schedulers."""
    title = {"slurm": "Slurm", "sge": "Grid Engine"}[real_cluster.scheduler]
    line, = re.findall(r"(?m)^    (RESOURCES = .*)  # %s$" % title, section("Your scheduler"))
    real_cluster.config(line.replace("short.q", "all.q").replace("short", "all"))
    emulator.add({"a": b"1"})
    done = real_cluster.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err


# ---- the recipes ----


def edit_config(site, text):
    """Edit config.py as a recipe says."""
    edits = replacements(text)
    assert edits
    for old, new in edits:
        assert CONFIG.count(old) == 1  # so that it is clear what is meant
        site.edit("config.py", old, new)
    site.env["PATH"] += SYSTEM


def test_the_recipe_that_skips_bad_files(stand_in, emulator):
    copy_downloads(stand_in)
    emulator.add({"good": b"1", "bad one": b"2"})
    stand_in.edit("process.sh", "set -e\n", 'set -e\n[ "$GLOBUS_NAME" = good ] || exit 1\n')
    assert last_line(stand_in.run(BATCH)) == "1 processed, 1 failed, 0 not needed"
    text = topic("Bad files")
    edit_config(stand_in, text)
    stand_in.config(blocks(text)[0])
    subprocess.run(["bash", "-c", in_line(text, "cut ")], cwd=str(stand_in.folder),
                   env=stand_in.env, check=True)
    assert last_line(stand_in.run(BATCH)) == "0 processed, 0 failed, 2 not needed"


def test_the_recipe_that_keeps_the_files(stand_in, emulator):
    copy_downloads(stand_in)
    emulator.add({"a b": b"1", "sub/c": b"2"})
    text = topic("Keep the files")
    edit_config(stand_in, text)
    with open(str(stand_in.folder / "process.sh"), "a") as file:
        file.write("\n".join(indented(text)) + "\n")
    stand_in.config("RECURSIVE = True")
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"
    assert contents(stand_in.folder / "kept") == {"a b": b"1", "sub/c": b"2"}
    assert set(contents(stand_in.results)) == {"a b.sha256", "sub/c.sha256"}
    assert not is_needed(stand_in, "a b") and not is_needed(stand_in, "sub/c")


def test_the_recipe_for_pairs_of_files(stand_in, emulator):
    emulator.add({"x_R1.fq": b"1", "x_R2.fq": b"22", "y_R1.fq": b"3", "y_R2.fq": b"44"})
    text = topic("Pairs of files")
    edit_config(stand_in, text)
    stand_in.process("set -e", *indented(text), "mkdir -p results",
                     'cat "$1" "$mate" >"results/$GLOBUS_NAME.sha256"')
    stand_in.config("MAX_BYTES = 100")
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 2 not needed"
    assert contents(stand_in.results) == {"x_R1.fq.sha256": b"122", "y_R1.fq.sha256": b"344"}
    assert contents(stand_in.downloads) == {}


def test_the_recipe_for_a_disk_of_the_compute_node(stand_in, emulator, tmp_path):
    copy_downloads(stand_in)
    emulator.add({"a b": b"2\n1\n"})
    text = topic("Local disk of the compute node")
    old = re.search("replace `([^`]+)` by:", text).group(1)
    stand_in.edit("process.sh", old + "\n", "\n".join(indented(text)) + '\necho "$file" >used\n')
    (tmp_path / "scratch").mkdir()
    stand_in.env["TMPDIR"] = str(tmp_path / "scratch")
    stand_in.env["PATH"] += SYSTEM
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert set(contents(stand_in.results)) == {"a b.sha256"}
    assert (stand_in.folder / "used").read_text().startswith(str(tmp_path / "scratch"))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_recipe_for_python(stand_in, emulator):
    copy_downloads(stand_in)
    emulator.add({"a b": b"1\n2\n3\n", "sub/c": b"1\n"})
    text = topic("Python, R")
    edit_config(stand_in, text)
    (stand_in.folder / "process.sh").write_text(blocks(text)[0])
    stand_in.config("RECURSIVE = True")
    stand_in.env["PATH"] = "%s:%s" % (os.path.dirname(sys.executable), stand_in.env["PATH"])
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"
    assert contents(stand_in.results) == {"a b.lines": b"3\n", "sub/c.lines": b"1\n"}
    assert not is_needed(stand_in, "a b") and not is_needed(stand_in, "sub/c")


def test_the_recipe_for_an_argument(stand_in, emulator):
    copy_downloads(stand_in)
    emulator.add({"a": b"1"})
    text = topic("An argument for")
    where = re.search('"(.*?)"', text[text.index("below"):]).group(1) + " ----\n"
    stand_in.edit("wrapper.sh", where, where + in_line(text, "export ") + "\n")
    stand_in.process("echo %s >argument" % in_line(text, '"$'))
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert (stand_in.folder / "argument").read_text() == "/scratch/me/hg38.fa\n"


def test_the_recipe_for_several_cores(real_slurm, emulator):
    emulator.add({"a": b"1"})
    resources, cores = indented(topic("Several cores"))
    real_slurm.config(resources)
    real_slurm.process(cores, 'echo "$cores" >cores')
    assert last_line(real_slurm.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert (real_slurm.folder / "cores").read_text() == "4\n"


@pytest.mark.parametrize("name", ["SLURM_CPUS_PER_TASK", "NCPUS", "PBS_NP", "NSLOTS"])
def test_the_number_of_cores_is_that_of_each_scheduler(name):
    for env, number in (({name: "4"}, b"4\n"), ({}, b"1\n")):
        assert subprocess.run(
            ["/bin/bash", "-c", indented(topic("Several cores"))[1] + '\necho "$cores"'],
            env=env, stdout=subprocess.PIPE).stdout == number


def test_the_recipe_for_a_mail_at_the_end(stand_in, emulator, tmp_path):
    copy_downloads(stand_in)
    emulator.add({"a": b"1"})
    (tmp_path / "bin" / "mail").write_text('#!/bin/bash\n(echo "$@"; cat) >"$0.sent.new"\n'
                                           'mv "$0.sent.new" "$0.sent"\n')
    (tmp_path / "bin" / "mail").chmod(0o755)
    stand_in.env["PATH"] += SYSTEM
    text = "\n".join(indented(topic("E-mail at the end")))
    text = text.replace("./globus", sys.executable + " ./globus")
    subprocess.run(["bash", "-c", text], cwd=str(stand_in.folder), env=stand_in.env, check=True)
    sent = tmp_path / "bin" / "mail.sent"
    wait_until(sent.exists)
    first, *_, numbers, last = sent.read_text().splitlines()
    assert first == "-s The batch has ended me@example.org"
    assert (numbers, last) == ("1 processed, 0 failed, 0 not needed", "exit status 0")


def test_the_recipe_for_two_batches_side_by_side(stand_in, emulator):
    copy_downloads(stand_in)
    emulator.add({"a": b"1", "b": b"2"})
    command = in_line(topic("Two batches"), "mkdir ")
    stand_in.env["PATH"] += SYSTEM
    subprocess.run(["bash", "-c", command], cwd=str(stand_in.folder), env=stand_in.env, check=True)
    second = stand_in.folder.parent / "second"
    stand_in.process("until [ -e ../go ]; do sleep 0.1; done", *KEEP)
    first = stand_in.start(BATCH)
    wait_until(lambda: b"submitted" in first.stderr.readline())
    done = subprocess.run([sys.executable, str(second / BATCH)], cwd=str(second),
                          env=stand_in.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout.endswith(b"2 processed, 0 failed, 0 not needed\n"), done.stderr
    (stand_in.folder.parent / "go").touch()
    assert first.communicate()[0].endswith(b"2 processed, 0 failed, 0 not needed\n")


def submit_driver(site, *edits):
    """Submit the driver as a job as the recipe says."""
    command, = indented(topic("The driver as a job"))
    for old, new in edits:
        assert old in command
        command = command.replace(old, new)
    env = dict(site.env, PATH="%s:%s" % (os.path.dirname(sys.executable), site.env["PATH"]))
    subprocess.run(["bash", "-c", command], check=True, cwd=str(site.folder), env=env,
                   stdout=subprocess.DEVNULL)


def test_the_recipe_for_the_driver_as_a_job(real_slurm, emulator):
    emulator.add({"a": b"1"})
    submit_driver(real_slurm)
    log = real_slurm.folder / "batch.log"
    wait_until(lambda: log.exists() and "not needed\n" in log.read_text(), 120)
    assert log.read_text().endswith("1 processed, 0 failed, 0 not needed\n")


@pytest.mark.timeout(600)
@pytest.mark.long
def test_a_driver_that_is_longer_than_its_walltime_is_submitted_again(real_slurm, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    real_slurm.config("NUM_JOBS = 1")
    real_slurm.process("until [ -e go ]; do sleep 0.1; done", *KEEP)
    submit_driver(real_slurm, ("--time=7-0", "--time=0:01"))
    log = real_slurm.folder / "batch.log"
    wait_until(lambda: log.exists() and "Start this script again to continue." in log.read_text(),
               180)
    (real_slurm.folder / "go").touch()
    submit_driver(real_slurm)
    wait_until(lambda: "not needed\n" in log.read_text(), 120)
    assert "Resuming the interrupted run: " in log.read_text()
    assert log.read_text().endswith("2 processed, 0 failed, 0 not needed\n")
    assert sorted((real_slurm.folder / "processed").read_text().splitlines()) == ["a", "b"]


# ---- updates ----


@pytest.fixture
def clone(tmp_path):
    """A function that runs a command in a user's clone, which has edits, of a repository that has
    changed since."""
    if not shutil.which("git"):
        pytest.skip("no git here")
    names = {"GIT_%s_%s" % (who, what): "me@example.org" for who in ("AUTHOR", "COMMITTER")
             for what in ("NAME", "EMAIL")}
    env = dict(names, PATH=os.environ["PATH"], HOME=str(tmp_path), GIT_CONFIG_NOSYSTEM="1")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"

    def run(command, folder=ours):
        return subprocess.run(["bash", "-ec", command], cwd=str(folder), env=env, check=True,
                              stdout=subprocess.PIPE).stdout.decode()

    theirs.mkdir()
    for name in ("config.py", "process.sh", "helper.py"):
        shutil.copy(str(COLLECTION / name), str(theirs))
    run("git init -q; git add .; git commit -qm first", theirs)
    run("git clone -q theirs ours", tmp_path)
    run('sed -i "s/^RECURSIVE = .*/RECURSIVE = True/" config.py; echo "# mine" >>process.sh')
    run('sed -i "s/^POLL_SECONDS = .*/POLL_SECONDS = 60/" config.py; git commit -qam next', theirs)
    return run


def check_update(run):
    config = run("cat config.py process.sh")
    assert "RECURSIVE = True" in config and "# mine" in config and "POLL_SECONDS = 60" in config


def test_the_recipe_for_an_update(clone):
    clone(in_line(topic("Update, with edits"), "git stash"))
    check_update(clone)


def test_the_recipe_for_an_update_of_committed_edits(clone):
    clone("git commit -qam mine")
    clone(in_line(topic("Update, with edits"), "git pull"))
    check_update(clone)
    assert re.fullmatch(r"[0-9a-f]{7,}\n", clone(in_line(README, "git describe")))
