"""globus-login.py: the login, what it says of both collections, and --logout."""
import json
import os
import pty
import subprocess

import pytest
from conftest import DESTINATION, LOGIN, SIMPLE, mode, read_code

NO_CODE = "No authorization code was entered. Run globus-login.py by hand, in a terminal."


@pytest.fixture
def stranger(here):
    """The scripts in this process, for one who has not logged in yet."""
    here.site.tokens.unlink()
    return here


# ---- login ----


def test_login_stores_a_refresh_token_for_the_user_alone_and_says_what_it_found(
        fresh_site, emulator):
    emulator.add({"a": b"12345", "b": b"678", "sub/c": b""})
    login = fresh_site.log_in()
    assert login.returncode == 0
    tokens = json.loads(fresh_site.tokens.read_text())
    assert tokens["transfer.api.globus.org"]["refresh_token"]
    assert mode(fresh_site.tokens) == 0o600
    assert "holds 2 files (8 B) and 1 folder" in login.out
    assert "My cluster" in login.out and str(fresh_site.downloads) in login.out


def test_a_wrong_code_is_one_line_and_status_1(fresh_site):
    login = fresh_site.log_in(edit=lambda code: "wrong" + code)
    assert login.returncode == 1
    assert login.out.count("Globus did not accept this code") == 3
    assert "run globus-login.py again for a new one" in login.out
    assert not fresh_site.tokens.exists()


def test_a_mistyped_code_is_asked_for_again_and_may_have_spaces_around(stranger):
    codes = ["wrong", "wr ong"]
    login = stranger.log_in(edit=lambda code: codes.pop() if codes else "  %s \r" % code)
    assert login.returncode == 0
    assert login.out.count("Globus did not accept this code. Copy it once more, whole.") == 2


def test_the_folder_of_the_token_file_is_made_for_its_owner_alone(fresh_site, stranger):
    fresh_site.config("TOKEN_FILE = '~/secrets/of mine/tokens.json'")
    assert stranger.log_in().returncode == 0
    folder = fresh_site.home / "secrets" / "of mine"
    assert (folder / "tokens.json").exists() and folder.stat().st_mode & 0o777 == 0o700


def test_closed_stdin_is_one_line_and_status_1(fresh_site):
    done = fresh_site.run(LOGIN)
    assert done.returncode == 1
    assert done.err.strip() == NO_CODE


def test_login_in_a_terminal_shows_the_url_and_takes_the_code(fresh_site):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(fresh_site.command(LOGIN), env=fresh_site.env,
                               stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    screen = b""
    while b"Code: " not in screen:
        screen += os.read(ours, 4096)
    url = next(w for w in screen.decode().split() if "/authorize?" in w)
    os.write(ours, read_code(url).encode() + b"\n")
    assert process.wait(60) == 0
    os.close(ours)


def test_login_keeps_tokens_of_other_resource_servers(fresh_site, stranger):
    fresh_site.tokens.write_text(json.dumps({"auth.globus.org": {"refresh_token": "old"}}))
    stranger.log_in()
    tokens = json.loads(fresh_site.tokens.read_text())
    assert tokens["auth.globus.org"] == {"refresh_token": "old"}
    assert "transfer.api.globus.org" in tokens


def test_a_path_that_is_not_there_is_named_by_login_too(fresh_site, stranger):
    fresh_site.config("PATH = '/nowhere/'")
    login = stranger.log_in()
    assert login.returncode == 2
    assert "config.py: PATH = '/nowhere/' is not on the source collection." in login.err


def test_a_destination_that_is_a_file_is_named(fresh_site, stranger):
    fresh_site.config("DESTINATION_PATH = WORKING_DIR + '/config.py'")
    login = stranger.log_in()
    assert login.returncode == 2
    assert "config.py: DESTINATION_PATH = " in login.err and "is a file there" in login.err


def test_login_without_an_input_says_to_run_it_by_hand(fresh_site):
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" <&-', "-", *fresh_site.command(LOGIN)],
        env=fresh_site.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().strip() == NO_CODE


def test_login_names_a_destination_that_may_not_be_read(stranger, emulator):
    emulator.bend_collection(DESTINATION, allowed=["/elsewhere"])
    login = stranger.log_in()
    assert login.returncode == 1
    assert "You may not use DESTINATION_PATH = " in login.err and "config-paths" in login.err


def test_login_asks_globus_nothing_when_a_setting_makes_no_sense(fresh_site, stranger, emulator):
    fresh_site.config("NUM_JOBS = 0")
    assert stranger.run(LOGIN).returncode == 2
    assert emulator.requests() == []


def test_login_names_a_personal_endpoint_that_is_not_running(stranger, emulator):
    emulator.bend_collection(DESTINATION, gcp_connected=False)
    login = stranger.log_in()
    assert login.returncode == 1
    assert "globusconnectpersonal -start" in login.err


@pytest.mark.parametrize("status", [400, 401])
def test_a_client_id_that_globus_does_not_know_is_named(status, stranger, emulator):
    emulator.fault("/oauth2/token", status=status, json={"error": "invalid_client"})
    login = stranger.log_in()
    assert login.returncode == 1 and "this code" not in login.out
    assert "Globus does not accept CLIENT_ID = '4f0448d6-" in login.err


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_code_that_is_no_text_is_a_wrong_code(locale, fresh_site):
    fresh_site.env.update(LANG=locale, LC_ALL=locale)
    done = fresh_site.run(LOGIN, stdin=b"abc\xff\n")
    assert done.returncode == 1
    assert "Globus did not accept this code" in done.out


def test_a_missing_home_is_found_out_before_the_code_is_asked_for(fresh_site, stranger):
    fresh_site.config("TOKEN_FILE = '/proc/nowhere/tokens.json'")
    done = stranger.run(LOGIN)
    assert done.returncode == 1 and "Code: " not in done.out
    assert ("cannot be stored in /proc/nowhere/tokens.json: No such file or directory"
            in done.err)


def test_a_full_home_is_found_out_before_the_code_is_asked_for(fresh_site):
    # Files may not grow at all: what a quota does.
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 0; exec "$@"', "-", *fresh_site.command(LOGIN)],
        env=dict(fresh_site.env, PYTHONDONTWRITEBYTECODE="yes"), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 1 and b"Code: " not in done.stdout
    assert b"cannot be stored in " + bytes(fresh_site.tokens) in done.stderr
    assert not fresh_site.tokens.exists()


# ---- logout ----


def test_logout_revokes_the_tokens_and_removes_the_file(site, here):
    saved = site.tokens.read_bytes()
    assert site.run(LOGIN, "--logout").returncode == 0
    assert not site.tokens.exists()
    site.tokens.write_bytes(saved)
    done = here.run(SIMPLE)
    assert done.returncode == 1 and LOGIN in done.err


def test_logout_removes_the_file_though_globus_does_not_revoke(site, here, emulator):
    emulator.fault("/revoke", status=403, json={"error": "unauthorized_client"})
    done = here.run(LOGIN, "--logout")
    assert done.returncode == 1 and not site.tokens.exists()
    assert "did not revoke" in done.err


UNFINISHED = [".wehi-globus-tokens.json.new", ".wehi-globus-tokens.jsonk3_x9ab1"]


@pytest.mark.parametrize("name", UNFINISHED)
def test_logout_revokes_and_removes_what_a_killed_script_left_beside_the_tokens(name, site, here):
    left = site.home / name
    left.write_text(json.dumps(site.emulator.ask("POST", "tokens")))
    saved = left.read_bytes()
    assert here.run(LOGIN, "--logout").returncode == 0
    assert not list(site.home.glob(".wehi*"))
    site.tokens.write_bytes(saved)
    assert LOGIN in here.run(SIMPLE).err


def test_logout_removes_half_a_token_file_of_a_killed_script(site, here):
    (site.home / UNFINISHED[0]).write_text('{"transfer.api')
    assert here.run(LOGIN, "--logout").returncode == 0
    assert not (site.home / UNFINISHED[0]).exists()


def test_logout_without_a_login_is_well(stranger):
    assert stranger.run(LOGIN, "--logout").returncode == 0


def test_logout_removes_a_token_file_that_is_linked(site, here, emulator):
    real = site.home / "elsewhere.json"
    site.tokens.rename(real)
    site.tokens.symlink_to(real)
    assert here.run(LOGIN, "--logout").returncode == 0
    assert not real.exists() and not os.path.lexists(str(site.tokens))
