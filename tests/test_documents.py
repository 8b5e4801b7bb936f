"""helper.py, "asking Globus": documents with fields that are missing or something else, made by
hypothesis."""
import copy
import json
import urllib.request

import pytest
from conftest import FEW, ONE, PATH, SIMPLE, SINGLE, SOURCE, assert_tame
from hypothesis import given, settings
from hypothesis import strategies as st

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.just(10 ** 30), st.floats(allow_nan=False),
    st.lists(st.integers(), max_size=2), st.just({}), st.just([{}]), st.just([None]),
    st.text(max_size=20), st.just("x" * 100000),
    st.sampled_from(["\x1b[2J", "../../x", "/etc/passwd", "a\0b", "a\nb", "\ud800", "$(touch x)"]))


@st.composite
def broken(draw, document):
    """The document, with some of its fields gone, or something else."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 4))):
        at = document
        while isinstance(at.get("DATA"), list) and at["DATA"] and isinstance(
                at["DATA"][0], dict) and draw(st.booleans()):
            at = at["DATA"][0]
        if at:
            key = draw(st.sampled_from(sorted(at)))
            if draw(st.booleans()):
                del at[key]
            else:
                at[key] = draw(ODD)
    return document


CALLS = {
    "GET /v0.10/endpoint/" + SOURCE: "v0.10/endpoint/" + SOURCE,
    "/ls": "v0.10/operation/endpoint/%s/ls?path=%s" % (SOURCE, PATH),
    "/stat": "v0.10/operation/endpoint/%s/stat?path=%sa" % (SOURCE, PATH),
    "/submission_id": "v0.10/submission_id",
    "POST /v0.10/transfer": None,
    "GET /v0.10/task/[^/]*$": "v0.10/task/%s",
    "/event_list": "v0.10/task/%s/event_list",
    "/task_list": "v0.10/task_list",
    "/skipped_errors": "v0.10/task/%s/skipped_errors",
    "/pause_info": "v0.10/task/%s/pause_info",
}


@pytest.fixture
def true_answers(site, here, emulator):
    """{call: a true answer to it}."""
    emulator.add({"a": b"1", "b": b"2"})
    emulator.bend(troubles=[{"path": "b$", "code": "FILE_NOT_FOUND"}], retry_seconds=0.1)
    site.config("import helper, itertools", "helper.backoff = lambda *_: itertools.repeat(0.1)",
                "helper.ARRIVAL_SECONDS = 0.5",
                "helper.ERRORS = {code: (words, seconds and 0.5) for code, (words, seconds) "
                "in helper.ERRORS.items()}")
    here.run(SIMPLE)
    token = json.loads(site.tokens.read_text())["transfer.api.globus.org"]["access_token"]
    answers, task = {}, emulator.tasks()[0]["task_id"]
    for call, path in CALLS.items():
        if path:
            request = urllib.request.Request(
                emulator.url + path.replace("task/%s", "task/" + task),
                headers={"Authorization": "Bearer " + token})
            with urllib.request.urlopen(request) as answer:
                answers[call] = json.load(answer)
        else:
            answers[call] = {"DATA_TYPE": "transfer_result", "code": "Accepted", "message": "ok",
                             "submission_id": task, "task_id": task}
    return answers


@pytest.mark.long
@settings(max_examples=25, **FEW)
@given(data=st.data())
def test_a_broken_document_is_a_clear_end_or_waited_out(
        data, true_answers, site, here, emulator):
    emulator.clear_faults()
    call = data.draw(st.sampled_from(sorted(CALLS)))
    document = data.draw(broken(true_answers[call]))
    emulator.fault(call, times=1, status=200, json=document)
    before = outside(site)
    script, options = data.draw(st.sampled_from(
        [(SIMPLE, []), (SINGLE, ["--globus-path", PATH, "--file", "a"]),
         (SINGLE, ["--globus-path", PATH, "--file", "b"])]))
    done = here.run(script, *options)  # raises what would be a traceback
    assert done.returncode in (0, 1)
    assert_tame(done)
    assert max(map(len, done.err.split("\n"))) < 5000
    assert outside(site) == before


ERRORS = [(status, code) for status in (400, 403, 404, 409, 410, 429, 500, 502, 503) for code in (
    "ClientError.NotFound", "ConsentRequired", "ExternalError.DirListingFailed.LoginFailed",
    "Conflict")] + [(401, "ClientError.AuthenticationFailed")]


@pytest.mark.timeout(600)
@pytest.mark.long
@settings(max_examples=40, **FEW)
@given(data=st.data())
def test_a_broken_error_document_is_a_clear_end_or_waited_out_and_leaves_no_task(
        data, true_answers, here, emulator):
    emulator.clear_faults()
    emulator.bend(troubles=[])
    call = data.draw(st.sampled_from(sorted(CALLS) + ["/cancel", "/oauth2/token"]))
    status, code = data.draw(st.sampled_from(ERRORS))
    document = {"code": code, "message": "no", "request_id": "x", "resource": "/",
                "required_scopes": ["s"], "errors": [{"status": 1, "title": "t", "detail": "d"}],
                "authorization_parameters": {"session_message": "m", "required_scopes": ["s"],
                                             "session_required_policies": ["p"]}}
    document = data.draw(st.one_of(broken(document), ODD))
    emulator.fault(call, times=data.draw(st.integers(1, 3)), status=status, json=document)
    if call == "/oauth2/token":
        emulator.ask("POST", "expire")
    for script, options in [(SIMPLE, []), (SINGLE, ["--globus-path", PATH, "--file", "b"])]:
        done = here.run(script, *options)  # raises what would be a traceback
        assert done.returncode in (0, 1, 2)
        assert_tame(done)
        assert script == SIMPLE or all(t["status"] != "ACTIVE" for t in emulator.tasks())


def outside(site):
    """What lies in the user's account beside the downloads."""
    return {path for path in site.folder.parent.rglob("*")
            if site.downloads not in (path, *path.parents) and "__pycache__" not in str(path)
            and ".wehi" not in path.name}


@pytest.mark.long
@settings(max_examples=15, **FEW)
@given(answer=st.one_of(ODD, st.dictionaries(st.sampled_from(
    ["error", "access_token", "scope", "expires_in", "other_tokens", "resource_server"]), ODD)))
def test_a_broken_answer_to_a_token_request_leaves_the_tokens_whole(
        answer, site, here, emulator):
    emulator.clear_faults()
    emulator.add({"a": b"1"})
    emulator.ask("POST", "expire")
    tokens = json.loads(site.tokens.read_text())
    tokens["transfer.api.globus.org"]["expires_at_seconds"] = 1
    site.tokens.write_text(json.dumps(tokens))
    if "repeat" not in (site.folder / "helper.py").read_text():
        site.config("helper.backoff = lambda *_: itertools.repeat(0.1)")
    emulator.fault("/oauth2/token", times=1, status=200, json=answer)
    done = here.run(*ONE)
    assert done.returncode == 0, done.err
    assert_tame(done)
    stored = json.loads(site.tokens.read_text())["transfer.api.globus.org"]
    assert stored["refresh_token"] == tokens["transfer.api.globus.org"]["refresh_token"]
