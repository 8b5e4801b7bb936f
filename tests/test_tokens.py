"""helper.py, "tokens": TOKEN_FILE, how tokens are stored, renewed by many scripts at once, and kept
secret."""
import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from conftest import (
    BATCH,
    ONE,
    SIMPLE,
    check_err,
    last_line,
    may_trace,
    mode,
    wait_for,
    wait_until,
)

# ---- TOKEN_FILE ----


@pytest.mark.parametrize("script,options", [(SIMPLE, ()), (BATCH, ()), (ONE[0], ONE[1:])])
def test_no_tokens(stand_in, script, options):
    stand_in.tokens.unlink()
    check_err(stand_in.run(script, *options), 1, "not logged in", "globus-login.py", lines=1)


def test_revoked_tokens(site, here):
    tokens = json.loads(site.tokens.read_text())
    tokens["transfer.api.globus.org"].update(refresh_token="gone", expires_at_seconds=1)
    site.tokens.write_text(json.dumps(tokens))
    check_err(here.run(SIMPLE), 1, "no longer accepts the stored login", "globus-login.py")


@pytest.mark.parametrize("text", ["not JSON", "[]", "", '{"a": 3}', "\udcff"])
def test_a_token_file_that_holds_something_else(site, here, text):
    site.tokens.write_bytes(text.encode("utf-8", "surrogateescape"))
    check_err(here.run(SIMPLE), 1, "does not hold tokens", "globus-login.py", lines=1)


def test_login_and_logout_use_it(fresh_site, tmp_path):
    fresh_site.config("TOKEN_FILE = '~/of mine.json'")
    assert fresh_site.log_in().returncode == 0
    stored = fresh_site.home / "of mine.json"
    assert stored.stat().st_mode & 0o777 == 0o600 and not fresh_site.tokens.exists()
    assert fresh_site.run("globus-login.py", "--logout").returncode == 0
    assert not stored.exists()


def test_a_job_that_does_not_see_the_tokens_says_where_it_looked(stand_in, emulator):
    emulator.add({"a": b"1"})
    stand_in.edit("wrapper.sh", "\nPYTHON=", "\nexport HOME=/nowhere\nPYTHON=")
    done = stand_in.run(BATCH)
    assert done.returncode == 1
    assert "there is no login in /nowhere/.wehi-globus-tokens.json" in done.err
    assert "on a disk that %s can see" % os.uname().nodename in done.err
    assert "start this script again; it continues" in done.err


def test_a_job_that_does_not_see_the_home_folder_knows_the_destination_and_the_tokens(
        stand_in, emulator, tmp_path):
    emulator.add({"a": b"1"})
    stand_in.tokens.rename(tmp_path / "tokens.json")
    stand_in.config("TOKEN_FILE = %r" % str(tmp_path / "tokens.json"))
    stand_in.edit("wrapper.sh", "\nPYTHON=", "\nexport HOME=/nowhere\nPYTHON=")
    assert last_line(stand_in.run(BATCH)) == "1 processed, 0 failed, 0 not needed"
    assert not stand_in.tokens.exists()


def test_tokens_of_the_older_scripts_with_a_refresh_token_alone_work(site, here, emulator):
    emulator.add({"a": b"x"})
    tokens = json.loads(site.tokens.read_text())["transfer.api.globus.org"]
    site.tokens.write_text(json.dumps(
        {"transfer.api.globus.org": {"refresh_token": tokens["refresh_token"]}}))
    assert here.run(SIMPLE).returncode == 0


def test_a_token_file_that_others_may_read_is_mended_with_a_warning(site, here):
    site.tokens.chmod(0o644)
    done = here.run(SIMPLE)
    assert "was readable by others" in done.err
    assert mode(site.tokens) == 0o600


def start_a_download_that_waits(here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    here.start(SIMPLE).wait_for("Waiting")


def test_a_token_file_out_of_reach_does_not_end_what_is_at_work(site, here, emulator):
    start_a_download_that_waits(here, emulator)
    site.tokens.unlink()
    site.tokens.mkdir()
    emulator.ask("POST", "expire")
    emulator.bend(slots=3)
    done = here.end()
    assert "cannot be stored" in done.err
    assert done.returncode == 0


def test_tokens_never_appear_in_output(site, emulator):
    emulator.add({"a": b"x"})
    words = [token for token in json.loads(site.tokens.read_text())[
        "transfer.api.globus.org"].values() if isinstance(token, str) and len(token) > 30]
    secrets = [word for word in words if not word.startswith("urn:")]
    assert len(secrets) == 2
    said = ""
    for script in (SIMPLE, BATCH):
        done = site.run(script)
        said += done.out + done.err
    assert not any(secret in said for secret in secrets)


def test_a_token_file_with_loose_rights_that_cannot_be_changed_is_used(
        site, here, emulator, monkeypatch):
    def fchmod(*_):
        raise OSError(30, "Read-only file system")

    emulator.add({"a": b"1"})
    site.tokens.chmod(0o644)
    monkeypatch.setattr(os, "fchmod", fchmod)
    done = here.run(SIMPLE)
    assert done.returncode == 0 and "yours alone" not in done.err
    assert "is readable by others, and chmod failed: Read-only file system." in done.err


# ---- renewed and stored ----


def test_an_expired_access_token_is_renewed_and_stored(site, here, emulator):
    emulator.add({"a": b"x"})
    tokens = json.loads(site.tokens.read_text())
    old = tokens["transfer.api.globus.org"]["access_token"]
    tokens["transfer.api.globus.org"]["expires_at_seconds"] = 1
    tokens["auth.globus.org"] = {"refresh_token": "other"}
    site.tokens.write_text(json.dumps(tokens))
    assert here.run(SIMPLE).returncode == 0
    new = json.loads(site.tokens.read_text())
    assert new["transfer.api.globus.org"]["access_token"] != old
    assert new["auth.globus.org"] == {"refresh_token": "other"}
    assert mode(site.tokens) == 0o600


def test_a_renewal_without_a_refresh_token_keeps_the_old_one(site, here, emulator):
    emulator.add({"a": b"1"})
    tokens = json.loads(site.tokens.read_text())
    old = tokens["transfer.api.globus.org"]["refresh_token"]
    tokens["transfer.api.globus.org"]["expires_at_seconds"] = 1
    site.tokens.write_text(json.dumps(tokens))
    emulator.fault("/oauth2/token", patch={"refresh_token": None})
    assert here.run(SIMPLE, "--dry-run").returncode == 0
    assert json.loads(site.tokens.read_text())["transfer.api.globus.org"]["refresh_token"] == old


def test_renewed_tokens_that_cannot_be_stored_are_told_and_used(site, here, emulator):
    emulator.add({"a": b"1"})
    tokens = json.loads(site.tokens.read_text())
    tokens["transfer.api.globus.org"]["expires_at_seconds"] = 1
    site.tokens.write_text(json.dumps(tokens))
    (site.home / ".wehi-globus-tokens.json.lock").mkdir()
    done = here.run(SIMPLE)
    assert done.returncode == 0
    assert "The renewed tokens cannot be stored" in done.err


@pytest.mark.long
def test_a_new_login_is_taken_up_and_kept_by_a_script_that_had_renewed_the_old_one(
        site, here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    site.config("import helper", "helper.SLOWEST_POLL = 0.2")
    here.start(SIMPLE).wait_for("Waiting")
    first = site.tokens.read_bytes()
    emulator.ask("POST", "expire")
    wait_until(lambda: site.tokens.read_bytes() != first)
    assert site.run("globus-login.py", "--logout").returncode == 0
    site.give_tokens()
    fresh = json.loads(site.tokens.read_text())["transfer.api.globus.org"]
    looks = len(emulator.requests())
    wait_until(lambda: len(emulator.requests()) > looks + 2)
    emulator.ask("POST", "expire")
    wait_until(lambda: fresh["access_token"] not in site.tokens.read_text())
    emulator.bend(slots=3)
    done = here.end()
    assert done.returncode == 0, done.err
    now = json.loads(site.tokens.read_text())["transfer.api.globus.org"]
    assert now["refresh_token"] == fresh["refresh_token"]


def test_a_token_refused_right_after_another_error_is_renewed_all_the_same(here, emulator):
    emulator.add({"a": b"1"})
    emulator.ask("POST", "expire")
    emulator.fault("GET", times=1, status=500, json={"code": "InternalError", "message": "oh"})
    done = here.run(SIMPLE)
    assert done.returncode == 0 and "Log in" not in done.err


@pytest.mark.long
def test_a_script_whose_token_expires_takes_the_one_that_another_has_renewed(site, here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    tokens = json.loads(site.tokens.read_text())
    end = time.time() + 8  # it is renewed a minute before it expires
    tokens["transfer.api.globus.org"]["expires_at_seconds"] = end + 60
    site.tokens.write_text(json.dumps(tokens))
    here.start(SIMPLE)
    wait_until(emulator.tasks)
    site.give_tokens()
    wait_until(lambda: time.time() > end)
    emulator.bend(slots=3)
    done = here.end()
    assert done.err.count("Waiting") == 1
    assert done.returncode == 0
    assert not any("oauth2/token" in request for request in emulator.requests())


def test_a_refused_token_gives_way_to_the_one_that_another_process_has_renewed(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    process = site.start(SIMPLE)
    wait_for(process, "Waiting")
    process.send_signal(signal.SIGSTOP)  # it must not ask between the next two lines
    emulator.ask("POST", "expire")
    site.give_tokens()
    process.send_signal(signal.SIGCONT)
    emulator.bend(slots=3)
    assert process.communicate() and process.returncode == 0
    assert not any("oauth2/token" in request for request in emulator.requests())


@pytest.mark.long
def test_thirty_processes_renew_at_once_and_the_token_file_stays_whole(site, emulator):
    emulator.add({"a": b"1"})
    tokens = json.loads(site.tokens.read_text())
    tokens["transfer.api.globus.org"]["expires_at_seconds"] = 1
    tokens["auth.globus.org"] = {"refresh_token": "other"}
    site.tokens.write_text(json.dumps(tokens))
    running = [site.start(SIMPLE, "--dry-run") for _ in range(30)]

    def is_over():
        now = json.loads(site.tokens.read_text())  # fails if it is ever torn
        assert now["auth.globus.org"] == {"refresh_token": "other"}
        assert mode(site.tokens) == 0o600
        return all(process.poll() is not None for process in running)

    wait_until(is_over)
    for process in running:
        assert process.communicate()[1].count(b"\n") == 1
        assert process.returncode == 0


def test_a_renewal_with_an_unknown_client_id_names_it_and_not_the_login(here, emulator):
    emulator.ask("POST", "expire")
    emulator.fault("/oauth2/token", status=401, json={"error": "invalid_client"})
    done = here.run(SIMPLE)
    assert done.returncode == 1
    assert "CLIENT_ID = '4f0448d6-" in done.err and "Log in again" not in done.err


def test_a_400_for_missing_credentials_renews_the_token_as_a_401_does(here, emulator):
    emulator.add({"a": b"1"})
    refusal = {"code": "ClientError.AuthenticationFailed", "message": "No credentials supplied"}
    emulator.fault("/v0.10/", times=1, status=400, json=refusal)
    assert here.run(SIMPLE).returncode == 0
    assert any("oauth2/token" in request for request in emulator.requests())
    emulator.fault("/v0.10/", status=400, json=refusal)
    assert "Log in again: globus-login.py" in here.run(SIMPLE).err


# ---- killed ----


@pytest.mark.skipif(not may_trace(), reason="strace is not installed, or not allowed to trace")
@pytest.mark.parametrize("call", ["openat", "write", "fsync", "rename", "unlink"])
@pytest.mark.long
def test_killed_while_it_stores_tokens_it_leaves_nothing_that_the_next_script_does_not_clear(
        call, site, here, emulator):
    emulator.add({"a": b"1"})
    site.env["PYTHONDONTWRITEBYTECODE"] = "yes"  # a step more or less is another step
    fine = json.loads(site.tokens.read_text())
    expired = {server: dict(tokens, expires_at_seconds=1) for server, tokens in fine.items()}
    command = site.command(SIMPLE, "--dry-run")
    for number in count_from_tokens(site, expired, call, command):
        site.tokens.write_text(json.dumps(expired))
        strace(site, command, os.devnull, "-e", "trace=" + call,
               "-e", "inject=%s:signal=KILL:when=%d" % (call, number))
        assert json.loads(site.tokens.read_text())  # whole, the old or the new one
        assert here.run(SIMPLE, "--dry-run").returncode == 0
        assert {path.name for path in site.home.glob(".wehi*")} <= {
            ".wehi-globus-tokens.json", ".wehi-globus-tokens.json.lock"}


def strace(site, command, log, *options):
    subprocess.run([shutil.which("strace"), "-qq", "-o", log, *options, *command], env=site.env,
                   cwd=str(site.folder), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, check=False)


def count_from_tokens(site, expired, call, command):
    """The numbers of those system calls of a script that come with the new tokens."""
    site.tokens.write_text(json.dumps(expired))
    log = site.home.parent / "calls"
    strace(site, command, str(log), "-e", "trace=" + call + ",openat")
    lines = log.read_text(errors="replace").splitlines()
    begin = next(n for n, line in enumerate(lines) if "tokens.json.lock" in line)
    calls = [line.startswith(call + "(") for line in lines]
    return range(sum(calls[:begin]) + 1, min(sum(calls), sum(calls[:begin]) + 8) + 1)
