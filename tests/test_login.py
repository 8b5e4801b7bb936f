"""globus-login.py, and what becomes of its tokens."""
import json
import os
import pty
import shutil
import signal
import stat
import subprocess
import time

import pytest
from conftest import DESTINATION, SOURCE, STRANGE_NAMES, may_trace, read_code, wait_until

NO_CODE = "No authorization code was entered. Run globus-login.py by hand, in a terminal."


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_login_stores_a_refresh_token_for_the_user_alone(fresh_site):
    assert fresh_site.log_in().returncode == 0
    tokens = json.loads(fresh_site.tokens.read_text())
    assert tokens["transfer.api.globus.org"]["refresh_token"]
    assert mode(fresh_site.tokens) == 0o600


def test_login_says_what_it_found_on_both_collections(fresh_site, emulator):
    emulator.add({"a": b"12345", "b": b"678", "sub/c": b""})
    out = fresh_site.log_in().out
    assert "holds 2 files (8 B) and 1 folder" in out
    assert "My cluster" in out and str(fresh_site.downloads) in out


def test_login_fetches_a_missing_consent_in_the_same_run(fresh_site, emulator):
    emulator.bend_collection(SOURCE, consent=True)
    login = fresh_site.log_in()
    assert login.returncode == 0
    assert login.out.count("authorize?") == 2
    assert "holds 0 files" in login.out


def test_downloads_work_after_a_consent(fresh_site, emulator):
    emulator.add({"a": b"x"})
    emulator.bend_collection(SOURCE, consent=True)
    fresh_site.log_in()
    assert fresh_site.run("globus-simple-download.py").returncode == 0


def test_a_wrong_code_is_one_line_and_status_1(fresh_site):
    login = fresh_site.log_in(edit=lambda code: "wrong" + code)
    assert login.returncode == 1
    assert login.out.count("Globus did not accept this code") == 3
    assert "run globus-login.py again for a new one" in login.out
    assert not fresh_site.tokens.exists()


def test_a_mistyped_code_is_asked_for_again(fresh_site):
    codes = ["wrong", "wr ong"]
    login = fresh_site.log_in(edit=lambda code: codes.pop() if codes else code)
    assert login.returncode == 0
    assert login.out.count("Globus did not accept this code. Copy it once more, whole.") == 2


def test_the_folder_of_the_token_file_is_made_for_its_owner_alone(fresh_site):
    fresh_site.config("TOKEN_FILE = '~/secrets/of mine/tokens.json'")
    assert fresh_site.log_in().returncode == 0
    folder = fresh_site.home / "secrets" / "of mine"
    assert (folder / "tokens.json").exists() and folder.stat().st_mode & 0o777 == 0o700


def test_a_code_may_be_pasted_with_spaces_around(fresh_site):
    assert fresh_site.log_in(edit=lambda code: "  %s \r" % code).returncode == 0


def test_closed_stdin_is_one_line_and_status_1(fresh_site):
    done = fresh_site.run("globus-login.py")
    assert done.returncode == 1
    assert done.err.strip() == NO_CODE


def test_login_in_a_terminal_shows_the_url_and_takes_the_code(fresh_site):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(fresh_site.command("globus-login.py"), env=fresh_site.env,
                               stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    screen = b""
    while b"Code: " not in screen:
        screen += os.read(ours, 4096)
    url = next(w for w in screen.decode().split() if "/authorize?" in w)
    os.write(ours, read_code(url).encode() + b"\n")
    assert process.wait(60) == 0
    os.close(ours)


def test_login_keeps_tokens_of_other_resource_servers(fresh_site):
    fresh_site.tokens.write_text(json.dumps({"auth.globus.org": {"refresh_token": "old"}}))
    fresh_site.log_in()
    tokens = json.loads(fresh_site.tokens.read_text())
    assert tokens["auth.globus.org"] == {"refresh_token": "old"}
    assert "transfer.api.globus.org" in tokens


def test_logout_revokes_the_tokens_and_removes_the_file(site):
    saved = site.tokens.read_bytes()
    assert site.run("globus-login.py", "--logout").returncode == 0
    assert not site.tokens.exists()
    site.tokens.write_bytes(saved)
    done = site.run("globus-simple-download.py")
    assert done.returncode == 1 and "globus-login.py" in done.err


def test_logout_removes_the_file_though_globus_does_not_revoke(site, emulator):
    emulator.fault("/revoke", status=403, json={"error": "unauthorized_client"})
    done = site.run("globus-login.py", "--logout")
    assert done.returncode == 1 and not site.tokens.exists()
    assert "did not revoke" in done.err


UNFINISHED = [".wehi-globus-tokens.json.new", ".wehi-globus-tokens.jsonk3_x9ab1"]


@pytest.mark.parametrize("name", UNFINISHED)
def test_logout_revokes_and_removes_what_a_killed_script_left_beside_the_tokens(name, site):
    left = site.home / name
    left.write_text(json.dumps(site.emulator.ask("POST", "tokens")))
    saved = left.read_bytes()
    assert site.run("globus-login.py", "--logout").returncode == 0
    assert not list(site.home.glob(".wehi*"))
    site.tokens.write_bytes(saved)
    assert "globus-login.py" in site.run("globus-simple-download.py").err


def test_logout_removes_half_a_token_file_of_a_killed_script(site):
    (site.home / UNFINISHED[0]).write_text('{"transfer.api')
    assert site.run("globus-login.py", "--logout").returncode == 0
    assert not (site.home / UNFINISHED[0]).exists()


@pytest.mark.skipif(not may_trace(), reason="strace is not installed, or not allowed to trace")
@pytest.mark.parametrize("call", ["openat", "write", "fsync", "rename", "unlink"])
@pytest.mark.long
def test_killed_while_it_stores_tokens_it_leaves_nothing_that_the_next_script_does_not_clear(
        call, site, emulator):
    emulator.add({"a": b"1"})
    site.env["PYTHONDONTWRITEBYTECODE"] = "yes"  # a step more or less is another step
    fine = json.loads(site.tokens.read_text())
    expired = {server: dict(tokens, expires_at_seconds=1) for server, tokens in fine.items()}
    command = site.command("globus-simple-download.py", "--dry-run")
    for number in count_from_tokens(site, expired, call, command):
        site.tokens.write_text(json.dumps(expired))
        strace(site, command, os.devnull, "-e", "trace=" + call,
               "-e", "inject=%s:signal=KILL:when=%d" % (call, number))
        assert json.loads(site.tokens.read_text())  # whole, the old or the new one
        assert site.run("globus-simple-download.py", "--dry-run").returncode == 0
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


def test_logout_without_a_login_is_well(fresh_site):
    assert fresh_site.run("globus-login.py", "--logout").returncode == 0


def test_an_expired_access_token_is_renewed_and_stored(site, emulator):
    emulator.add({"a": b"x"})
    tokens = json.loads(site.tokens.read_text())
    old = tokens["transfer.api.globus.org"]["access_token"]
    tokens["transfer.api.globus.org"]["expires_at_seconds"] = 1
    tokens["auth.globus.org"] = {"refresh_token": "other"}
    site.tokens.write_text(json.dumps(tokens))
    assert site.run("globus-simple-download.py").returncode == 0
    new = json.loads(site.tokens.read_text())
    assert new["transfer.api.globus.org"]["access_token"] != old
    assert new["auth.globus.org"] == {"refresh_token": "other"}
    assert mode(site.tokens) == 0o600


def test_tokens_of_the_older_scripts_with_a_refresh_token_alone_work(site, emulator):
    emulator.add({"a": b"x"})
    tokens = json.loads(site.tokens.read_text())["transfer.api.globus.org"]
    site.tokens.write_text(json.dumps(
        {"transfer.api.globus.org": {"refresh_token": tokens["refresh_token"]}}))
    assert site.run("globus-simple-download.py").returncode == 0


def test_a_renewal_without_a_refresh_token_keeps_the_old_one(site, emulator):
    emulator.add({"a": b"1"})
    tokens = json.loads(site.tokens.read_text())
    old = tokens["transfer.api.globus.org"]["refresh_token"]
    tokens["transfer.api.globus.org"]["expires_at_seconds"] = 1
    site.tokens.write_text(json.dumps(tokens))
    emulator.fault("/oauth2/token", patch={"refresh_token": None})
    assert site.run("globus-simple-download.py", "--dry-run").returncode == 0
    assert json.loads(site.tokens.read_text())["transfer.api.globus.org"]["refresh_token"] == old


def test_renewed_tokens_that_cannot_be_stored_are_told_and_used(site, emulator):
    emulator.add({"a": b"1"})
    tokens = json.loads(site.tokens.read_text())
    tokens["transfer.api.globus.org"]["expires_at_seconds"] = 1
    site.tokens.write_text(json.dumps(tokens))
    (site.home / ".wehi-globus-tokens.json.lock").mkdir()
    done = site.run("globus-simple-download.py")
    assert done.returncode == 0
    assert "The renewed tokens cannot be stored" in done.err


def test_a_new_login_is_taken_up_and_kept_by_a_script_that_had_renewed_the_old_one(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    site.config("import helper", "helper.SLOWEST_POLL = 0.2")
    process = site.start("globus-simple-download.py")
    wait_until(lambda: b"Waiting" in process.stderr.readline())
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
    assert process.wait() == 0, process.communicate()
    now = json.loads(site.tokens.read_text())["transfer.api.globus.org"]
    assert now["refresh_token"] == fresh["refresh_token"]


def test_logout_removes_a_token_file_that_is_linked(site, emulator):
    real = site.home / "elsewhere.json"
    site.tokens.rename(real)
    site.tokens.symlink_to(real)
    assert site.run("globus-login.py", "--logout").returncode == 0
    assert not real.exists() and not os.path.lexists(str(site.tokens))


def test_a_path_that_is_not_there_is_named_by_login_too(fresh_site):
    fresh_site.config("PATH = '/nowhere/'")
    login = fresh_site.log_in()
    assert login.returncode == 2
    assert "config.py: PATH = '/nowhere/' is not on the source collection." in login.out


def test_a_destination_that_is_a_file_is_named(fresh_site):
    fresh_site.config("DESTINATION_PATH = WORKING_DIR + '/config.py'")
    login = fresh_site.log_in()
    assert login.returncode == 2
    assert "config.py: DESTINATION_PATH = " in login.out and "is a file there" in login.out


def test_login_without_an_input_says_to_run_it_by_hand(fresh_site):
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" <&-', "-", *fresh_site.command("globus-login.py")],
        env=fresh_site.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().strip() == NO_CODE


def test_a_variable_of_globus_sdk_that_makes_no_sense_is_said(site):
    site.env["GLOBUS_SDK_HTTP_TIMEOUT"] = "abc"
    for script in ("globus-login.py", "globus-simple-download.py"):
        done = site.run(script)
        assert done.returncode == 2
        assert done.err.startswith("A GLOBUS_SDK_ variable in the environment is not valid: ")


def test_a_token_refused_right_after_another_error_is_renewed_all_the_same(site, emulator):
    emulator.add({"a": b"1"})
    emulator.ask("POST", "expire")
    emulator.fault("GET", times=1, status=500, json={"code": "InternalError", "message": "oh"})
    done = site.run("globus-simple-download.py")
    assert done.returncode == 0 and "Log in" not in done.err


def test_login_names_a_destination_that_may_not_be_read(fresh_site, emulator):
    emulator.bend_collection(DESTINATION, allowed=["/elsewhere"])
    login = fresh_site.log_in()
    assert login.returncode == 1
    assert "You may not use DESTINATION_PATH = " in login.out and "config-paths" in login.out


def test_a_token_file_that_others_may_read_is_mended_with_a_warning(site):
    site.tokens.chmod(0o644)
    done = site.run("globus-simple-download.py")
    assert "was readable by others" in done.err
    assert mode(site.tokens) == 0o600


@pytest.mark.long
def test_a_script_whose_token_expires_takes_the_one_that_another_has_renewed(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    tokens = json.loads(site.tokens.read_text())
    end = time.time() + 8  # it is renewed a minute before it expires
    tokens["transfer.api.globus.org"]["expires_at_seconds"] = end + 60
    site.tokens.write_text(json.dumps(tokens))
    process = site.start("globus-simple-download.py")
    wait_until(emulator.tasks)
    site.give_tokens()
    wait_until(lambda: time.time() > end)
    emulator.bend(slots=3)
    assert process.communicate()[1].count(b"Waiting") == 1
    assert process.returncode == 0
    assert not any("oauth2/token" in request for request in emulator.requests())


def start_a_download_that_waits(site, emulator):
    emulator.add({"a": b"1"})
    emulator.bend(slots=0)
    process = site.start("globus-simple-download.py")
    wait_until(lambda: b"Waiting" in process.stderr.readline())
    return process


def test_a_refused_token_gives_way_to_the_one_that_another_process_has_renewed(site, emulator):
    process = start_a_download_that_waits(site, emulator)
    process.send_signal(signal.SIGSTOP)  # it must not ask between the next two lines
    emulator.ask("POST", "expire")
    site.give_tokens()
    process.send_signal(signal.SIGCONT)
    emulator.bend(slots=3)
    assert process.communicate() and process.returncode == 0
    assert not any("oauth2/token" in request for request in emulator.requests())


def test_a_token_file_out_of_reach_does_not_end_what_is_at_work(site, emulator):
    process = start_a_download_that_waits(site, emulator)
    site.tokens.unlink()
    site.tokens.mkdir()
    emulator.ask("POST", "expire")
    emulator.bend(slots=3)
    assert b"cannot be stored" in process.communicate()[1]
    assert process.returncode == 0


@pytest.mark.long
def test_a_hundred_processes_renew_at_once_and_the_token_file_stays_whole(site, emulator):
    emulator.add(dict.fromkeys(STRANGE_NAMES, b"x"))
    tokens = json.loads(site.tokens.read_text())
    tokens["transfer.api.globus.org"]["expires_at_seconds"] = 1
    tokens["auth.globus.org"] = {"refresh_token": "other"}
    site.tokens.write_text(json.dumps(tokens))
    running = [site.start("globus-simple-download.py", "--dry-run") for _ in range(100)]

    def is_over():
        now = json.loads(site.tokens.read_text())  # fails if it is ever torn
        assert now["auth.globus.org"] == {"refresh_token": "other"}
        assert mode(site.tokens) == 0o600
        return all(process.poll() is not None for process in running)

    wait_until(is_over)
    for process in running:
        assert process.communicate()[1].count(b"\n") == 1
        assert process.returncode == 0


def test_tokens_never_appear_in_output(site, emulator):
    emulator.add({"a": b"x"})
    words = [token for token in json.loads(site.tokens.read_text())[
        "transfer.api.globus.org"].values() if isinstance(token, str) and len(token) > 30]
    secrets = [word for word in words if not word.startswith("urn:")]
    assert len(secrets) == 2
    said = ""
    for script in ("globus-simple-download.py", "globus-batch-download.py"):
        done = site.run(script)
        said += done.out + done.err
    assert not any(secret in said for secret in secrets)


def test_login_asks_globus_nothing_when_a_setting_makes_no_sense(fresh_site, emulator):
    fresh_site.config("NUM_JOBS = 0")
    assert fresh_site.run("globus-login.py").returncode == 2
    assert emulator.requests() == []


def test_login_names_a_personal_endpoint_that_is_not_running(fresh_site, emulator):
    emulator.bend_collection(DESTINATION, gcp_connected=False)
    login = fresh_site.log_in()
    assert login.returncode == 1
    assert "globusconnectpersonal -start" in login.out


@pytest.mark.parametrize("status", [400, 401])
def test_a_client_id_that_globus_does_not_know_is_named(status, fresh_site, emulator):
    emulator.fault("/oauth2/token", status=status, json={"error": "invalid_client"})
    login = fresh_site.log_in()
    assert login.returncode == 1 and "this code" not in login.out
    assert "Globus does not accept CLIENT_ID = '4f0448d6-" in login.out


def test_a_renewal_with_an_unknown_client_id_names_it_and_not_the_login(site, emulator):
    emulator.ask("POST", "expire")
    emulator.fault("/oauth2/token", status=401, json={"error": "invalid_client"})
    done = site.run("globus-simple-download.py")
    assert done.returncode == 1
    assert "CLIENT_ID = '4f0448d6-" in done.err and "Log in again" not in done.err


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_code_that_is_no_text_is_a_wrong_code(locale, fresh_site):
    fresh_site.env.update(LANG=locale, LC_ALL=locale)
    done = fresh_site.run("globus-login.py", stdin=b"abc\xff\n")
    assert done.returncode == 1
    assert "Globus did not accept this code" in done.out


def test_a_missing_home_is_found_out_before_the_code_is_asked_for(fresh_site):
    fresh_site.config("TOKEN_FILE = '/proc/nowhere/tokens.json'")
    done = fresh_site.run("globus-login.py", stdin=b"code\n")
    assert done.returncode == 1 and "Code: " not in done.out
    assert ("cannot be stored in /proc/nowhere/tokens.json: No such file or directory"
            in done.err)


def test_a_full_home_is_found_out_before_the_code_is_asked_for(fresh_site):
    # Files may not grow at all: what a quota does.
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 0; exec "$@"', "-", *fresh_site.command("globus-login.py")],
        env=dict(fresh_site.env, PYTHONDONTWRITEBYTECODE="yes"), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 1 and b"Code: " not in done.stdout
    assert b"cannot be stored in " + bytes(fresh_site.tokens) in done.stderr
    assert not fresh_site.tokens.exists()


def test_a_400_for_missing_credentials_renews_the_token_as_a_401_does(site, emulator):
    emulator.add({"a": b"1"})
    refusal = {"code": "ClientError.AuthenticationFailed", "message": "No credentials supplied"}
    emulator.fault("/v0.10/", times=1, status=400, json=refusal)
    assert site.run("globus-simple-download.py").returncode == 0
    assert any("oauth2/token" in request for request in emulator.requests())
    emulator.fault("/v0.10/", status=400, json=refusal)
    assert "Log in again: globus-login.py" in site.run("globus-simple-download.py").err


def test_a_token_file_with_loose_rights_that_cannot_be_changed_is_used(site, emulator, tmp_path):
    emulator.add({"a": b"1"})
    site.tokens.chmod(0o644)
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(
        "import os\ndef fchmod(*_): raise OSError(30, 'Read-only file system')\n"
        "os.fchmod = fchmod\n")
    site.env["PYTHONPATH"] = str(tmp_path / "patch")
    done = site.run("globus-simple-download.py")
    assert done.returncode == 0 and "yours alone" not in done.err
    assert "is readable by others, and chmod failed: Read-only file system." in done.err
