"""The README: what it shows exists, and its examples run."""
import ast
import gzip
import os
import re
import subprocess
import sys

import pytest
from conftest import BATCH, COLLECTION, KEEP, contents, last_line, load, wait_until

README = (COLLECTION / "README.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"(?m)^    +(\S.*)$", README)) + "\n" + " ".join(
    re.findall(r"`([^`\n]+)`", README))
SCRIPTS = sorted(COLLECTION.glob("*.py"))


def section(title):
    return re.search(r"(?ms)^#+ %s\n(.*?)(^#+ |\Z)" % re.escape(title), README).group(1)


def rows(title):
    """The cells of the last table of a section, without its heading."""
    table = section(title).strip().split("\n\n")[-1].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def block(language):
    return re.search(r"(?s)```%s\n(.*?)```" % language, README).group(1)


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
    assert len(MESSAGES) > 20


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_table_is_one_that_the_scripts_print(message):
    for piece in re.split(r"\.\.\.|\bNAME\b|FILE|\b\d+(?: jobs?| bytes)?\b|: ", message):
        assert piece.strip(" :,=") in SAID


@pytest.mark.parametrize("path", sorted(set(re.findall(
    r"(?:tests/|\.github/)[\w.-]+|\b[\w-]+\.(?:py|sh|txt)\b", CODE + README))))
def test_a_file_that_it_names_exists(path):
    assert (path == "file1.txt"  # of the tutorial collection
            or (COLLECTION / path).exists() or (COLLECTION / "tests" / path).exists())


@pytest.mark.parametrize("command", sorted(set(re.findall(
    r"\./(globus-[\w-]+\.py(?: --[\w-]+)?)", CODE))))
def test_a_command_and_its_option_exist(command, site):
    script, _, option = command.partition(" ")
    done = site.run(script, "--help")
    assert done.returncode == 0
    assert option in done.out


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


def test_its_example_of_a_filter_and_process_sh_run(stand_in, emulator):
    reads = gzip.compress(b"@read\nACGT\n+\nFFFF\n" * 5)
    emulator.add({"a b.fastq.gz": reads, "sub/c.fastq.gz": reads, "sub/c.fastq.gz.md5": b"..."})
    stand_in.config(block("python"), "RECURSIVE = True")
    (stand_in.folder / "process.sh").write_text(block("bash"))
    stand_in.env["PATH"] += ":/usr/bin:/bin"  # zcat, awk
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 1 not needed"
    assert (stand_in.results / "a b.fastq.gz.reads").read_text() == "5\n"
    assert last_line(stand_in.run(BATCH)) == "0 processed, 0 failed, 3 not needed"


def test_its_line_of_resources_works(real_cluster, emulator):
    """With the queue of the private schedulers."""
    title = {"slurm": "Slurm", "sge": "Grid Engine"}[real_cluster.scheduler]
    line = re.search(r"\*\*%s\*\*\n\n +(RESOURCES = .*)\n" % title, README).group(1)
    real_cluster.config(line.replace("short.q", "all.q").replace("short", "all"))
    emulator.add({"a": b"1"})
    done = real_cluster.run(BATCH)
    assert last_line(done) == "1 processed, 0 failed, 0 not needed", done.err


def test_each_help_is_one_screen_with_an_example(site):
    for script in COLLECTION.glob("globus-*.py"):
        lines = site.run(script.name, "--help").out.splitlines()
        assert len(lines) <= 24 and max(map(len, lines)) <= 80
        assert "    ./" + script.name in "\n".join(lines)


# ---- the recipes ----


def recipe(site, title):
    """Set a site up as a recipe says, with its process.sh and its filter."""
    for language, text in re.findall(r"(?s)```(\w+)\n(.*?)```", section(title)):
        if language == "python":
            site.config(text)
        else:
            (site.folder / "process.sh").write_text(text)
    site.env["PATH"] += ":/usr/bin:/bin"


def test_the_recipe_that_keeps_the_files(stand_in, emulator):
    emulator.add({"a b": b"1", "sub/c": b"2"})
    recipe(stand_in, "Keep the files")
    stand_in.config("RECURSIVE = True")
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 0 not needed"
    assert contents(stand_in.folder / "kept") == {"a b": b"1", "sub/c": b"2"}
    assert last_line(stand_in.run(BATCH)) == "0 processed, 0 failed, 2 not needed"


def test_the_recipe_for_pairs_of_files(stand_in, emulator):
    emulator.add({"x_R1.fq": b"1", "x_R2.fq": b"22", "y_R1.fq": b"3", "y_R2.fq": b"44"})
    recipe(stand_in, "Pairs of files in one job")
    stand_in.config("MAX_BYTES = 100")
    assert last_line(stand_in.run(BATCH)) == "2 processed, 0 failed, 2 not needed"
    assert contents(stand_in.results) == {"x_R1.fq.both": b"122", "y_R1.fq.both": b"344"}
    assert contents(stand_in.downloads) == {}


def test_the_recipe_for_a_disk_of_the_compute_node(stand_in, emulator, tmp_path):
    emulator.add({"a b": b"2\n1\n"})
    recipe(stand_in, "Local disk of the compute node")
    (tmp_path / "scratch").mkdir()
    stand_in.env["TMPDIR"] = str(tmp_path / "scratch")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert contents(stand_in.results) == {"a b.sorted": b"1\n2\n"}
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_recipe_for_an_argument(stand_in, emulator):
    emulator.add({"a": b"1"})
    line = re.search(r"(?m)^    (export .*)$", section("An argument for process.sh")).group(1)
    stand_in.edit("wrapper.sh", "edit here ----\n", "edit here ----\n" + line + "\n")
    stand_in.process('echo "$REFERENCE" >argument')
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert (stand_in.folder / "argument").read_text() == "/scratch/me/hg38.fa\n"


def test_the_recipe_for_several_cores(real_slurm, emulator):
    emulator.add({"a": b"1"})
    recipe(real_slurm, "Several cores")
    real_slurm.config(re.search(r"RESOURCES = .*", section("Several cores")).group())
    assert last_line(real_slurm.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert contents(real_slurm.results) == {"a.cores": b"4\n"}


def test_the_recipe_for_a_mail_at_the_end(stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    (tmp_path / "bin" / "mail").write_text('#!/bin/bash\n(echo "$@"; cat) >"$0.sent.new"\n'
                                           'mv "$0.sent.new" "$0.sent"\n')
    (tmp_path / "bin" / "mail").chmod(0o755)
    stand_in.env["PATH"] += ":/usr/bin:/bin"
    text = re.search(r"(?s)```bash\n(.*?)```", section("E-mail at the end")).group(1)
    text = text.replace("./globus", sys.executable + " ./globus")
    subprocess.run(["bash", "-c", text], cwd=str(stand_in.folder), env=stand_in.env, check=True)
    sent = tmp_path / "bin" / "mail.sent"
    wait_until(sent.exists)
    assert sent.read_text() == "-s The batch has ended me@example.org\nexit status 0\n"


def test_the_recipe_for_two_batches_side_by_side(stand_in, emulator):
    emulator.add({"a": b"1", "b": b"2"})
    command = re.search(r"(?m)^    (mkdir .*)$", section("Two batches, or another data set"))
    stand_in.env["PATH"] += ":/usr/bin:/bin"
    subprocess.run(["bash", "-c", command.group(1)], cwd=str(stand_in.folder), env=stand_in.env,
                   check=True)
    second = stand_in.folder.parent / "second"
    stand_in.process("until [ -e ../go ]; do sleep 0.1; done", *KEEP)
    first = stand_in.start(BATCH)
    wait_until(lambda: b"submitted" in first.stderr.readline())
    done = subprocess.run([sys.executable, str(second / BATCH)], cwd=str(second),
                          env=stand_in.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout.endswith(b"2 processed, 0 failed, 0 not needed\n"), done.stderr
    (stand_in.folder.parent / "go").touch()
    assert first.communicate()[0].endswith(b"2 processed, 0 failed, 0 not needed\n")


def test_the_recipe_for_the_driver_as_a_job(real_slurm, emulator):
    emulator.add({"a": b"1"})
    command = re.search(r"(?m)^    (sbatch .*)$", section("The driver as a job")).group(1)
    command = command.replace("./globus", sys.executable + " ./globus")
    subprocess.run(["bash", "-c", command.replace("--wrap ", "--wrap '") + "'"], check=True,
                   cwd=str(real_slurm.folder), env=real_slurm.env, stdout=subprocess.DEVNULL)
    log = real_slurm.folder / "batch.log"
    wait_until(lambda: log.exists() and " failed, " in log.read_text())
    assert "1 processed, 0 failed, 0 not needed" in log.read_text()


def test_the_driver_submitted_without_a_wrapping_command_works_too(real_slurm, emulator):
    emulator.add({"a": b"1"})
    real_slurm.env["PATH"] = "%s:%s" % (os.path.dirname(sys.executable), real_slurm.env["PATH"])
    subprocess.run(["sbatch", "--output=batch.log", BATCH], check=True, env=real_slurm.env,
                   cwd=str(real_slurm.folder), stdout=subprocess.DEVNULL)
    log = real_slurm.folder / "batch.log"
    wait_until(lambda: log.exists() and "not needed\n" in log.read_text(), 120)
    assert log.read_text().endswith("1 processed, 0 failed, 0 not needed\n")


def test_wrapper_sh_by_itself_says_what_it_is(site):
    done = subprocess.run([str(site.folder / "wrapper.sh")], stderr=subprocess.PIPE, env=site.env)
    assert done.returncode == 2 and b"usage: wrapper.sh DIR NAME..." in done.stderr
