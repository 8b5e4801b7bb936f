"""A collection that wants more of the login: a consent, or to re-authenticate."""
import pytest
from conftest import (
    BATCH,
    BOTH_DOWNLOADS,
    DESTINATION,
    KEEP,
    ONE,
    SIMPLE,
    SOURCE,
    check_err,
    last_line,
    output_of,
    processed,
    wait_until,
)


@BOTH_DOWNLOADS
def test_a_missing_consent(stand_in, emulator, script):
    emulator.bend_collection(SOURCE, consent=True)
    check_err(stand_in.run(script), 1, "requires your consent", "globus-login.py", lines=1)


def test_login_fetches_a_missing_consent_in_the_same_run(fresh_site, emulator):
    emulator.bend_collection(SOURCE, consent=True)
    login = fresh_site.log_in()
    assert login.returncode == 0
    assert login.out.count("authorize?") == 2
    assert "holds 0 files" in login.out


POLICY = {"session_required_policies": ["12345678-1234-1234-1234-123456789012"],
          "session_message": "Log in with your institute"}
# name: (settings of the source collection, what is said)
LOGINS = {
    "a consent": ({"consent": True}, "The collection requires your consent (data_access)."),
    "a policy": ({"session_policy": POLICY},
                 "The collection requires you to re-authenticate (your session has expired, or its "
                 "policy requires another login: Log in with your institute)."),
    "a policy of a high-assurance collection": (
        {"session_policy": POLICY, "high_assurance": True}, "requires you to re-authenticate"),
    "a session that has timed out": (
        {"session_policy": {"prompt": "login"}, "high_assurance": True, "session_seconds": 60},
        "your session has expired"),
    "multi-factor authentication": (
        {"session_policy": {"session_required_mfa": True}}, "requires you to re-authenticate"),
}


@pytest.mark.parametrize("name,command", [
    *((name, ONE) for name in LOGINS), ("a policy", [SIMPLE]), ("a policy", [BATCH])])
def test_every_script_says_to_log_in_again_for(name, command, stand_in, here, emulator):
    emulator.add({"a": b"1"})
    settings, words = LOGINS[name]
    emulator.ask("POST", "age")
    emulator.bend_collection(SOURCE, **settings)
    done = here.run(*command)
    assert done.returncode == 1
    assert words in done.err and "Log in again: globus-login.py  (" in done.err
    assert emulator.tasks() == []


@pytest.mark.parametrize("name", LOGINS)
def test_one_run_of_login_heals(name, site, here, emulator):
    emulator.add({"a": b"1"})
    emulator.ask("POST", "age")
    emulator.bend_collection(SOURCE, **LOGINS[name][0])
    login = here.log_in()
    assert login.returncode == 0, login.out
    done = here.run(*ONE)
    assert (done.out, done.err) == (str(site.downloads / "a") + "\n", "")
    assert here.run(SIMPLE).returncode == 0


def test_a_high_assurance_collection_is_named_with_how_long_a_login_lasts(here, emulator):
    emulator.add({"a": b"1"})
    emulator.bend_collection(SOURCE, high_assurance=True, session_seconds=1800)
    done = here.run(SIMPLE)
    assert done.returncode == 0
    assert done.err.startswith("High-assurance collection: Globus Tutorial Collection 1 (SOURCE")
    assert "It requires you to re-authenticate every 30 minutes" in done.err


def test_one_run_of_login_heals_what_two_collections_want(here, emulator):
    emulator.bend_collection(SOURCE, session_policy={"session_required_policies": ["p"]},
                             consent=True)
    emulator.bend_collection(DESTINATION,
                             session_policy={"session_required_single_domain": ["example.org"]})
    login = here.log_in()
    assert login.returncode == 0, login.out


def test_a_batch_stops_when_the_destination_wants_a_fresh_login(stand_in, emulator):
    emulator.add({"f%02d" % n: b"x" for n in range(6)})
    stand_in.config("POLL_SECONDS = 0.3", "NUM_JOBS = 2")
    driver = stand_in.start(BATCH)
    wait_until(lambda: any(task["status"] == "SUCCEEDED" for task in emulator.tasks()))
    emulator.bend_collection(DESTINATION, session_policy=POLICY, session_seconds=1e-9)
    said = output_of(driver)
    assert driver.returncode == 1
    assert "Then start this script again; it continues where it stopped" in said


def test_login_gives_up_on_a_collection_that_is_never_content(here, emulator):
    emulator.bend_collection(SOURCE, session_policy=POLICY, session_seconds=1e-9)
    login = here.log_in()
    assert login.returncode == 1
    assert login.out.count("Open this page") == 5
    assert "Log in with your institute" in login.err.splitlines()[-1]


@pytest.mark.long
def test_a_login_that_lapses_in_the_middle_stops_the_driver_not_every_file(stand_in, emulator):
    files = emulator.add({"f%02d" % n: b"x" for n in range(9)})
    stand_in.config("POLL_SECONDS = 2")
    stand_in.process(*KEEP)
    driver = stand_in.start(BATCH)
    wait_until(lambda: b"processed" in driver.stderr.readline())
    emulator.bend_collection(SOURCE, session_policy=POLICY)
    said = output_of(driver)
    assert driver.returncode == 1
    assert "Log in again: globus-login.py" in said and "start this script again" in said
    assert "FAILED" not in said
    assert stand_in.log_in().returncode == 0
    done = stand_in.run(BATCH)
    assert done.returncode == 0, done.err
    assert last_line(done) == "9 processed, 0 failed, 0 not needed"
    assert processed(stand_in) == dict.fromkeys(files, 1)
