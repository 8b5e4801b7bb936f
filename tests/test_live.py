"""tests/live.sh, against the emulator."""
import json
import subprocess
import sys

import pytest
from conftest import DESTINATION, TESTS


def test_what_is_assumed_of_globus_holds_of_the_emulator(site, emulator, tmp_path):
    emulator.add({"file1.txt": b"one\n", "file2.txt": b"two\n", "file3.txt": b"three\n"})
    emulator.bend(task_seconds=0.3, retry_seconds=0.3)
    done = subprocess.run(
        [sys.executable, str(TESTS / "live.py"), "--destination", DESTINATION,
         "--to", str(site.downloads), "--age", "0.1", "--output", str(tmp_path / "live.json")],
        env=site.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said = done.stdout.decode()
    assert done.returncode == 0, said + done.stderr.decode()
    assert "NOT HELD" not in said and said.count("  held: ") == 25
    seen = json.loads((tmp_path / "live.json").read_text())
    assert all(one["holds"] for one in seen["assumptions"])
    assert site.tokens.read_text() not in json.dumps(seen)


@pytest.mark.long
def test_an_assumption_that_does_not_hold_is_told_with_status_1(site, emulator, tmp_path):
    emulator.add({"file1.txt": b"one\n", "file2.txt": b"two\n"})
    emulator.fault("/ls", patch={"total": 7})
    done = subprocess.run(
        [sys.executable, str(TESTS / "live.py"), "--destination", DESTINATION,
         "--to", str(site.downloads), "--age", "0", "--output", str(tmp_path / "live.json")],
        env=site.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert "  NOT HELD: `total` counts the entries\n" in done.stdout.decode()
