#!/usr/bin/env python3
"""A Globus of one's own on the loopback interface: Auth and Transfer, and it really copies bytes.

    globus_emulator.py --root FOLDER [--port N]

FOLDER/source is the root of the source collection (Globus Tutorial Collection 1); the destination
is a Globus Connect Personal that sees the whole machine. Prints one JSON line with the URL and the
ids; then set GLOBUS_SDK_SERVICE_URL_AUTH and GLOBUS_SDK_SERVICE_URL_TRANSFER to that URL.
One user, who has already logged in at the identity provider: the login page shows a code at once.

Every answer can be bent while it runs:
    POST /_emulator/world    {...}  merges into the settings in World below (nested dicts too)
    POST /_emulator/faults   {...}  adds a fault, see fault_for(); DELETE removes all
    GET  /_emulator/world, /_emulator/requests, /_emulator/tasks   tell the state
"""
import argparse
import base64
import datetime
import errno
import fnmatch
import hashlib
import html
import http.server
import json
import os
import re
import secrets
import shutil
import socket
import struct
import sys
import threading
import time
import urllib.parse
import uuid

SOURCE = "6c54cade-bde5-45c1-bdea-f4bd71dba2cc"
DESTINATION = "11111111-2222-4333-8444-555555555555"
GUEST = "99999999-8888-4777-8666-555555555555"
USER = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
TRANSFER = "transfer.api.globus.org"
TRANSFER_SCOPE = "urn:globus:auth:scope:transfer.api.globus.org:all"
DATA_ACCESS = "https://auth.globus.org/scopes/%s/data_access"
MOST_ENTRIES = 100000  # of one listing

# Changed through /_emulator/world.
World = {
    "token_life": 172800,  # seconds
    "code_life": 600,
    "slots": 3,  # tasks at work at a time
    "pending_limit": 100,
    "task_seconds": 0.1,  # fixed cost of a task
    "bytes_per_second": None,  # of one task, None = as fast as the disk
    "retry_seconds": 1,  # pause of a task after a fault
    "cancel_seconds": 0,  # until a task whose cancel is accepted is over
    "deadline_hours": 24,
    "speed": 1,  # the emulator's clock against the real one, for deadlines
    "rate_limit": None,  # requests a second, metered over 10 s
    "retry_after": None,  # seconds, told with 429
    "login_refused": False,
    # {"path": regex, "code": "PERMISSION_DENIED", "times": n}: a task failed on this file.
    # Code CORRUPT: the bytes arrive damaged (VERIFY_CHECKSUM if the request asked for it);
    # FILE_SIZE_CHANGED: when they have been sent.
    "troubles": [],
    "json_details": False,  # of error events, instead of text
    "collections": {},
    # {path: n}: directories that list n files which are not there, for large listings
    "crowds": {},
}

lock = threading.RLock()
faults = []
requests = []
codes, access_tokens, refresh_tokens = {}, {}, {}
tasks, submissions = {}, {}
started = time.time()


def collection(entity_type, root, **more):
    """The emulator's settings of a collection; see endpoint_document() for what it makes of it."""
    return dict({
        "entity_type": entity_type, "root": root, "display_name": "A collection",
        "gcp_connected": None, "gcp_paused": None, "paused_message": None, "consent": False,
        # session_policy: authorization_parameters; a login that has them is good for so long
        "session_policy": None, "session_seconds": None, "deleted": False, "high_assurance": False,
        "home": "/", "allowed": None, "quota": None, "list_seconds": 0, "list_limit": None,
        "disable_verify": False, "force_verify": False, "non_functional": False,
    }, **more)


def now():
    """The emulator's time, in seconds."""
    return started + (time.time() - started) * World["speed"]


def iso(seconds, separator="T"):
    """A time as Globus writes it: with T in tasks and events, with a space in listings."""
    moment = datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc)
    return moment.isoformat(sep=separator)


class Refusal(Exception):
    """An error answer."""

    def __init__(self, status, code, message, **more):
        super().__init__(code)
        self.status, self.code, self.message, self.more = status, code, message, more


# ---- Globus Auth ----


def split_scopes(text):
    """['a', 'b[*c *d]'] from 'a b[*c *d]'."""
    scopes, depth, word = [], 0, ""
    for char in text + " ":
        depth += (char == "[") - (char == "]")
        if char == " " and not depth:
            scopes += [word] if word else []
            word = ""
        else:
            word += char
    return scopes


def resource_server(scope):
    """Which service a scope belongs to."""
    if scope in ("openid", "email", "profile", "offline_access"):
        return "auth.globus.org"
    urn = re.match(r"urn:globus:auth:scope:([^:]+):", scope)
    return urn.group(1) if urn else scope.split("/scopes/")[-1].split("/")[0]


def authorize(query, **_):
    """The login page: one is logged in already, so it answers with a code at once."""
    def need(is_fit, message):
        if not is_fit:
            raise Refusal(400, "invalid_request", message, page=True)

    need(query.get("client_id"), "client_id is missing")
    need(query.get("response_type") == "code", "response_type must be code")
    need(query.get("code_challenge_method") == "S256" and query.get("code_challenge"),
         "a native app needs an S256 code_challenge")
    redirect = query.get("redirect_uri", "")
    need(re.match(r"https?://", redirect), "redirect_uri is missing")
    need(query.get("scope"), "scope is missing")
    unknown = [DATA_ACCESS % name for name in re.findall(
        r"scopes/([0-9a-f-]{36})/data_access", query["scope"])
        if World["collections"].get(name, {}).get("entity_type") != "GCSv5_mapped_collection"
        or World["collections"][name]["high_assurance"]]
    need(not unknown, "client_id=%s requested unknown scopes: %s" % (query["client_id"], unknown))
    code = secrets.token_hex(15)
    codes[code] = dict(query, until=time.time() + World["code_life"])
    answer = urllib.parse.urlencode({"code": code, "state": query.get("state", "_default")})
    return 302, {"Location": redirect + ("&" if "?" in redirect else "?") + answer}, ""


def show_code(query, **_):
    """The page that the login ends on."""
    page = ("<!doctype html><title>Globus (emulated)</title><h1>Native App Authorization Code</h1>"
            "<p>Copy this code and paste it into the program that asked for it:</p>"
            "<p><code id='auth-code'>%s</code></p>" % html.escape(query.get("code", "")))
    return 200, {"Content-Type": "text/html; charset=utf-8"}, page


def issue(scope_text, client_id, offline, session=None):
    """The token document for these scopes: one token a resource server, the first on top."""
    session = dict(session or {}, time=time.time())
    by_server = {}
    for scope in split_scopes(scope_text):
        by_server.setdefault(resource_server(re.sub(r"\[.*", "", scope)), []).append(scope)
    documents = []
    for server, scopes in by_server.items():
        refresh = secrets.token_urlsafe(32) if offline else None
        if refresh:
            refresh_tokens[refresh] = {"scopes": scopes, "server": server, "client_id": client_id,
                                       "session": session}
        documents.append(token_document(scopes, server, refresh, session))
    documents[0]["other_tokens"] = documents[1:]
    return documents[0]


def token_document(scopes, server, refresh, session):
    """A new access token, as Auth tells of it. A refresh renews no session."""
    access = secrets.token_urlsafe(36)
    access_tokens[access] = {"scopes": scopes, "server": server, "refresh": refresh,
                             "session": session,
                             "until": time.time() + World["token_life"]}
    document = {"access_token": access, "scope": " ".join(re.sub(r"\[.*", "", s) for s in scopes),
                "expires_in": World["token_life"], "token_type": "Bearer",
                "resource_server": server, "state": "_default", "other_tokens": []}
    if refresh:
        document["refresh_token"] = refresh
    return document


def invalid_grant():
    """What Auth answers to a code or refresh token that is not good (any more)."""
    return 400, {}, {"error": "invalid_grant"}


def token(form, headers, **_):
    """Exchange a code, refresh, or (for globus-cli) log in as a client."""
    kind = form.get("grant_type")
    if World["login_refused"]:
        return invalid_grant()
    if kind == "authorization_code":
        code = codes.pop(form.get("code"), None)
        if not code or code["until"] < time.time():
            return invalid_grant()
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if (challenge != code["code_challenge"] or form.get("client_id") != code["client_id"]
                or form.get("redirect_uri") != code["redirect_uri"]):
            return invalid_grant()
        session = {key: value for key, value in code.items() if key.startswith("session_required")}
        return 200, {}, issue(code["scope"], code["client_id"],
                              code.get("access_type") == "offline", session)
    if kind == "refresh_token":
        known = refresh_tokens.get(form.get("refresh_token"))
        if not known or known["client_id"] != form.get("client_id"):
            return invalid_grant()
        return 200, {}, token_document(known["scopes"], known["server"], form["refresh_token"],
                                       known["session"])
    if kind == "client_credentials" and headers.get("Authorization", "").startswith("Basic "):
        return 200, {}, issue(form.get("scope", TRANSFER_SCOPE), "client", False)
    return 400, {}, {"error": "unsupported_grant_type"}


def revoke(form, **_):
    """A revoked refresh token takes its access tokens along."""
    gone = form.get("token")
    refresh_tokens.pop(gone, None)
    access_tokens.pop(gone, None)
    for access in [a for a, known in access_tokens.items() if known["refresh"] == gone]:
        del access_tokens[access]
    return 200, {}, {"active": False}


def userinfo(**_):
    """The one user."""
    return 200, {}, {"sub": USER, "preferred_username": "researcher@example.org",
                     "name": "A Researcher", "email": "researcher@example.org"}


# ---- Transfer: collections ----


def bearer(headers):
    """What is known of the bearer token. A token that is not good is refused."""
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    known = access_tokens.get(value)
    if (scheme != "Bearer" or not known or known["until"] < time.time()
            or known["server"] != TRANSFER):
        raise Refusal(401, "ClientError.AuthenticationFailed", "Token is not active")
    return known


def find_collection(name):
    """The collection of that id."""
    known = World["collections"].get(name)
    if not known:
        raise Refusal(404, "EndpointNotFound", "No such endpoint '%s'" % name)
    if known["deleted"]:
        raise Refusal(404, "EndpointDeleted", "Endpoint '%s' has been deleted" % name)
    return known


def check_access(name, token):
    """Refuse what wants a consent or a login of another kind; the collection if all is well."""
    known = find_collection(name)
    if known["consent"] and not any(DATA_ACCESS % name in scope for scope in token["scopes"]):
        wanted = ["%s[*%s]" % (TRANSFER_SCOPE, DATA_ACCESS % name)]
        raise Refusal(403, "ConsentRequired", "Missing required data_access consent",
                      required_scopes=wanted, authorization_parameters={
                          "session_message": "Missing required data_access consent",
                          "required_scopes": wanted})
    wanted, session = known["session_policy"] or {}, token["session"]
    is_met = all(session.get(key) == (",".join(map(str, value)) if isinstance(value, list)
                                      else str(value))
                 for key, value in wanted.items() if key.startswith("session_required"))
    is_fresh = time.time() - session["time"] < (known["session_seconds"] or 1e9)
    if wanted and not (is_met and is_fresh):
        status, code = ((403, "AuthPolicyFailed") if known["high_assurance"] else
                        (502, "ExternalError.DirListingFailed.LoginFailed"))
        raise Refusal(status, code, "Login failed", authorization_parameters=wanted)
    return known


def local_path(known, path):
    """The folder or file on this machine; PermissionError where the collection does not show it."""
    path = re.sub(r"^/?~(?=/|$)", known["home"].rstrip("/"), path or known["home"]) or "/"
    path = "/".join(map(file_name, os.path.normpath("/" + path).split("/")))
    real = os.path.normpath(known["root"] + "/" + path.lstrip("/"))
    if known["allowed"] is not None and not any(
            (real + "/").startswith(a.rstrip("/") + "/") for a in known["allowed"]):
        raise PermissionError(errno.EACCES, "Path not allowed", path)
    return real


def shown_name(name):
    """A file's name as Globus shows it: bytes that are no UTF-8 as Latin-1, after a U+FFFD."""
    data = os.fsencode(name)
    return name if data.decode(errors="replace") == name else "\ufffd" + data.decode("latin-1")


def file_name(shown):
    """The reverse of shown_name()."""
    data = shown[1:].encode("latin-1", "replace")
    is_bytes = shown.startswith("\ufffd") and shown_name(os.fsdecode(data)) == shown
    return os.fsdecode(data) if is_bytes else shown


def endpoint_document(name):
    """All fields of an endpoint document."""
    known = find_collection(name)
    is_gcp = known["entity_type"].startswith("GCP")
    document = dict.fromkeys((
        "acl_server", "authentication_assurance_timeout", "authentication_policy_id",
        "authentication_timeout_mins", "contact_email", "contact_info", "default_directory",
        "department", "description", "expire_time", "force_encryption_reason", "gcs_version",
        "gcs_manager_url", "globus_connect_setup_key", "host_endpoint", "host_endpoint_id",
        "host_endpoint_display_name", "host_path", "https_server", "info_link", "keywords",
        "last_accessed_time", "local_user_info_available", "location",
        "mapped_collection_display_name", "mapped_collection_id", "max_concurrency",
        "max_parallelism", "myproxy_dn", "myproxy_server", "oauth_server", "organization",
        "preferred_concurrency", "preferred_parallelism", "s3_owner_activated", "s3_url",
        "sharing_target_endpoint", "sharing_target_root_path", "subscription_id", "tlsftp_server",
        "user_message", "user_message_link", "subscription_admin_verified",
        "non_functional_endpoint_id", "non_functional_endpoint_display_name"))
    document.update(
        DATA_TYPE="endpoint", id=name, display_name=known["display_name"], name=name,
        canonical_name="u_emulated#" + name, username="u_emulated", owner_id=USER,
        owner_string="researcher@example.org", entity_type=known["entity_type"],
        is_globus_connect=is_gcp, gcp_connected=known["gcp_connected"],
        gcp_paused=known["gcp_paused"], high_assurance=known["high_assurance"],
        gcs_version=None if is_gcp else "5.4.10", activated=False, expires_in=-1,
        is_go_storage=False, network_use="normal", s3_owner_activated=False, mfa_required=False,
        my_effective_roles=["administrator"] if is_gcp else [],
        DATA=[{"DATA_TYPE": "server", "id": 1, "hostname": None if is_gcp else "data.example.org",
               "port": 443, "scheme": None if is_gcp else "gsiftp", "subject": None, "uri": None,
               "is_connected": False if is_gcp else True, "is_paused": False,
               "incoming_data_port_start": None, "incoming_data_port_end": None,
               "outgoing_data_port_start": None, "outgoing_data_port_end": None}])
    if known["high_assurance"] and known["session_seconds"]:
        document["authentication_timeout_mins"] = int(known["session_seconds"] / 60)
    for name in ("disable_verify", "force_verify", "non_functional"):
        document[name] = known[name]
    for name in ("acl_available", "acl_editable", "in_use", "force_encryption", "public",
                 "shareable", "requester_pays", "disable_anonymous_writes", "user_message_enabled",
                 "french_english_bilingual"):
        document[name] = False
    return document


def endpoint(match, headers, **_):
    """GET /endpoint/ID"""
    bearer(headers)
    return 200, {}, endpoint_document(match.group(1))


def endpoint_search(query, headers, **_):
    """GET /endpoint_search: the user's own collections."""
    bearer(headers)
    found = [endpoint_document(name) for name, known in World["collections"].items()
             if known["entity_type"].startswith("GCP")]
    return 200, {}, page_of(found, query, "endpoint_list", 25)


def file_document(name, path):
    """One entry of a listing."""
    info = os.lstat(path)
    document = dict.fromkeys(("link_target", "link_size", "link_user", "link_group",
                              "link_last_modified"))
    kind, target = "other", None
    if os.path.islink(path):
        target = os.readlink(path)
        document.update(link_target=target, link_size=info.st_size, link_user="user",
                        link_group="group", link_last_modified=iso(info.st_mtime, " "))
        kind = "invalid_symlink"
        if os.path.exists(path):
            info = os.stat(path)
    if target is None or kind != "invalid_symlink" or os.path.exists(path):
        kinds = {0o100000: "file", 0o040000: "dir", 0o020000: "chr", 0o060000: "blk",
                 0o010000: "pipe"}
        kind = kinds.get(info.st_mode & 0o170000, "other")
    document.update(DATA_TYPE="file", name=shown_name(name), type=kind, size=info.st_size,
                    last_modified=iso(info.st_mtime, " "), user="user", group="group",
                    permissions="%04o" % (info.st_mode & 0o7777))
    return document


def check_up(known, name, what):
    """Refuse an operation on a collection that is offline, paused or not readable."""
    where = "'%s' (%s)" % (known["display_name"], name)
    if known["gcp_connected"] is False:
        raise Refusal(502, "ExternalError.%s.GCDisconnected" % what,
                      "The GCP endpoint is not currently connected to Globus: " + where)
    if known["gcp_paused"]:
        raise Refusal(502, "ExternalError.%s.GCPaused" % what, "The GCP is paused: " + where)


def operation_failed(error, known, name, what):
    """A Refusal for an OSError, with the several lines that Globus writes."""
    def say(first):
        return "%s, Error (%s)\nEndpoint: %s (%s)\n%s" % (
            first, what, known["display_name"], name, server_said(error.strerror))
    if isinstance(error, PermissionError):
        return Refusal(403, "EndpointPermissionDenied", say("Permission denied"))
    if isinstance(error, NotADirectoryError):
        return Refusal(502, "ExternalError.DirListingFailed.NotDirectory", say("Not a directory"))
    if isinstance(error, FileExistsError):
        return Refusal(502, "ExternalError.MkdirFailed.Exists", say("Path already exists"))
    if isinstance(error, FileNotFoundError):
        return Refusal(404, "NotFound" if what == "stat" else "ClientError.NotFound",
                       say("Path not found"))
    return Refusal(502, "EndpointError", say("Endpoint error"))


def server_said(words):
    """What the server of a collection says with an error, FTP's line ends written out."""
    return ("Server: 192.0.2.1:443\nCommand: MLST /\nMessage: Fatal FTP Response\n---\nDetails: "
            "550-GlobusError: v=1 c=SOME\\r\\n550-GridFTP-Errno: 1\\r\\n550-GridFTP-Reason: System "
            "error in stat\\r\\n550-GridFTP-Error-String: %s\\r\\n550 End.\\r\\n\n" % words)


def fits_filter(document, text):
    """The filter grammar of ls: key:value/key:value, patterns ~ = ! on names, date ranges."""
    for clause in text.split("/"):
        key, _, value = clause.partition(":")
        if key == "last_modified":
            begin, _, end = value.partition(",")
            fits = (not begin or document[key] >= begin) and (not end or document[key] <= end)
        else:
            is_negated = value.startswith("!")
            value = value.lstrip("!")
            is_glob = value.startswith("~")
            fits = any(
                fnmatch.fnmatchcase(str(document.get(key)), one) if is_glob
                else str(document.get(key)) == one for one in value.lstrip("~=").split(","))
            fits = fits != is_negated
        if not fits:
            return False
    return True


def crowd(number):
    """So many entries of files that are not there."""
    one = dict.fromkeys(("link_target", "link_size", "link_user", "link_group",
                         "link_last_modified"), None)
    one.update(DATA_TYPE="file", type="file", size=1000000, permissions="0644", user="user",
               group="group", last_modified="2026-11-23 08:15:00+00:00")
    return [dict(one, name="sample-%06d.fastq.gz" % n) for n in range(number)]


def ls(match, query, queries, headers, **_):
    """GET /operation/endpoint/ID/ls"""
    name = match.group(1)
    known = check_access(name, bearer(headers))
    check_up(known, name, "DirListingFailed")
    path = query.get("path") or known["home"]
    time.sleep(known["list_seconds"])
    try:
        folder = local_path(known, path)
        with os.scandir(folder) as entries:
            entries = sorted(entry.name for entry in entries)
        if not os.access(folder, os.R_OK) or _is_denied(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        if known["list_limit"] and len(entries) > known["list_limit"]:
            raise Refusal(502, "ExternalError.DirListingFailed.SizeLimit", "Directory too large")
        found = [file_document(entry, os.path.join(folder, entry)) for entry in entries]
        found += crowd(World["crowds"].get(path.rstrip("/"), 0))
    except OSError as error:
        raise operation_failed(error, known, name, "list")
    if query.get("show_hidden", "1").lower() in ("0", "false"):
        found = [document for document in found if not document["name"].startswith(".")]
    if queries.get("filter"):
        found = [document for document in found
                 if any(fits_filter(document, text) for text in queries["filter"])]
    for key in reversed(query.get("orderby", "").split(",") if query.get("orderby") else []):
        key, _, direction = key.strip().partition(" ")
        found.sort(key=lambda document: document.get(key) or "",
                   reverse=direction.upper() == "DESC")
    limit = min(int(query.get("limit", MOST_ENTRIES)), MOST_ENTRIES)
    offset = int(query.get("offset", 0))
    page = found[offset:offset + limit]
    if query.get("fields"):
        wanted = set(query["fields"].split(","))
        page = [{key: value for key, value in document.items() if key in wanted}
                for document in page]
    return 200, {}, {
        "DATA_TYPE": "file_list", "endpoint": name, "path": path.rstrip("/") + "/",
        "absolute_path": path.rstrip("/") + "/", "rename_supported": True,
        "symlink_supported": False, "length": len(page), "total": len(found), "DATA": page}


def _is_denied(path):
    """True where a trouble denies a path at listing, too (root may read everything)."""
    return any(trouble["code"] == "PERMISSION_DENIED" and re.search(trouble["path"], path)
               for trouble in World["troubles"])


def stat(match, query, headers, **_):
    """GET /operation/endpoint/ID/stat"""
    name = match.group(1)
    known = check_access(name, bearer(headers))
    check_up(known, name, "StatFailed")
    try:
        path = local_path(known, query.get("path"))
        return 200, {}, file_document(os.path.basename(path), path)
    except OSError as error:
        raise operation_failed(error, known, name, "stat")


def mkdir(match, document, headers, **_):
    """POST /operation/endpoint/ID/mkdir"""
    name = match.group(1)
    known = check_access(name, bearer(headers))
    check_up(known, name, "MkdirFailed")
    try:
        os.mkdir(local_path(known, document["path"]))
    except OSError as error:
        raise operation_failed(error, known, name, "mkdir")
    return 202, {}, {"DATA_TYPE": "mkdir_result", "code": "DirectoryCreated",
                     "message": "The directory was created successfully"}


# ---- Transfer: tasks ----


class Trouble(Exception):
    """What a task failed on: an event code, and the file."""

    def __init__(self, code, path, is_source=False):
        super().__init__(code)
        self.code, self.path, self.is_source = code, path, is_source


class Task(threading.Thread):
    """One transfer task, at work by itself."""

    def __init__(self, request):
        super().__init__(daemon=True)
        self.id = str(uuid.uuid4())
        self.request = request
        for item in request["DATA"]:  # it tells of them so
            item["source_path"] = re.sub(r"/(\./|/)+", "/", item["source_path"])
        self.begun = now()
        self.deadline = request.get("deadline") or iso(
            self.begun + World["deadline_hours"] * 3600)
        self.status, self.code, self.completed = "ACTIVE", "Queued", None
        self.fatal, self.cancelled = None, threading.Event()
        self.label = request.get("label")
        self.numbers = dict.fromkeys(("files", "directories", "symlinks", "files_skipped",
                                      "files_transferred", "faults", "bytes_transferred",
                                      "bytes_checksummed"), 0)
        self.subtasks = {"pending": 1, "retrying": 0, "succeeded": 0, "failed": 0,
                         "expired": 0, "canceled": 0, "skipped_errors": 0}
        self.events, self.moved, self.skipped = [], [], []
        self.paths = {(request["source_endpoint"], item["source_path"],
                       request["destination_endpoint"], item["destination_path"])
                      for item in request["DATA"]}

    # The document

    def document(self):
        """GET /task/ID"""
        request, ends = self.request, ("source_endpoint", "destination_endpoint")
        is_over = self.status != "ACTIVE"
        nice = None if is_over else self.code
        seconds = max(0.1, (self.completed or now()) - self.begun)
        paused = None if is_over else self.pause()
        document = {
            "DATA_TYPE": "task", "task_id": self.id, "owner_id": USER, "type": "TRANSFER",
            "status": self.status, "request_time": iso(self.begun), "deadline": self.deadline,
            "completion_time": self.completed and iso(self.completed),
            "fatal_error": self.fatal, "label": self.label, "command": "API 0.10",
            "username": "u_emulated", "is_paused": bool(paused),
            "is_ok": None if is_over else nice in ("OK", "Queued"),
            "nice_status": nice, "nice_status_short_description": nice and describe(nice),
            "nice_status_details": None, "nice_status_expires_in": None if is_over else -1,
            "effective_bytes_per_second": int(self.numbers["bytes_transferred"] / seconds),
            "subtasks_total": sum(self.subtasks.values()),
            "sync_level": request.get("sync_level"), "filter_rules": request.get("filter_rules"),
            "recursive_symlinks": request.get("recursive_symlinks") or "ignore",
            "history_deleted": False, "canceled_by_admin": None, "canceled_by_admin_message": None,
            "source_base_path": None, "destination_base_path": None, "source_local_user": None,
            "source_local_user_status": "NO_PERMISSION", "destination_local_user": None,
            "destination_local_user_status": "NO_PERMISSION",
        }
        for end in ends:
            name = request[end]
            document[end] = "u_emulated#" + name
            document[end + "_id"] = name
            document[end + "_display_name"] = World["collections"][name]["display_name"]
        for flag in ("encrypt_data", "verify_checksum", "delete_destination_extra",
                     "preserve_timestamp", "skip_source_errors", "fail_on_quota_errors"):
            document[flag] = bool(request.get(flag))
        document.update(self.numbers)
        document.update(("subtasks_" + key, value) for key, value in self.subtasks.items())
        return document

    def event(self, code, details="", is_error=False):
        """Note an event, the newest first."""
        self.events.insert(0, {"DATA_TYPE": "event", "code": code, "description": describe(code),
                               "details": details, "is_error": is_error, "time": iso(now())})

    def end(self, status, code, details=""):
        """Reach a terminal state."""
        with lock:
            self.status, self.completed = status, now()
            self.subtasks["pending"] = self.subtasks["retrying"] = 0
            self.subtasks["succeeded"] = 2 if status == "SUCCEEDED" else 0
            if status == "FAILED":
                self.fatal = {"code": code, "description": describe(code)}
                kind = {"CANCELED": "canceled", "EXPIRED": "expired"}.get(code, "failed")
                self.subtasks[kind] = 1
            if self.skipped:
                self.event("SKIPPED_ERRORS", is_error=True)
            self.event(code, details, status == "FAILED")

    # The work

    def run(self):
        """Wait for a slot, work, stumble, try again."""
        details = {"type": "transfer", "concurrency": 2, "parallelism": 4, "pipelining": 20}
        self.event("STARTED", json.dumps(details))
        todo = list(self.request["DATA"])
        while self.status == "ACTIVE":
            trouble = None
            with Slot(self) as has_slot:
                if has_slot:
                    try:
                        self.work(todo)
                        self.end("SUCCEEDED", "SUCCEEDED", json.dumps(
                            {"files_succeeded": self.numbers["files_transferred"]}))
                    except Trouble as error:
                        trouble = error
            if trouble:
                self.stumble(trouble)
                self.rest(World["retry_seconds"])

    def rest(self, seconds):
        """Pause; and see whether the task was cancelled or has expired."""
        self.cancelled.wait(seconds)
        if self.status != "ACTIVE":
            return
        if self.cancelled.is_set():
            self.end("FAILED", "CANCELED", "Canceled by the task owner")
        elif iso(now()) >= self.deadline:
            self.end("FAILED", "EXPIRED")

    def stumble(self, trouble):
        """A fault: told in the document and the events, and tried again; the slot is free."""
        if trouble.code in ("CANCELED", "EXPIRED"):
            return
        if trouble.code == "EXTERNAL_CHECKSUM_MISMATCH":
            self.numbers["faults"] += 1
            self.end("FAILED", trouble.code, "File: " + trouble.path)
            return
        with lock:
            self.code = trouble.code
            self.numbers["faults"] += trouble.code not in ("PAUSED",)
            side = "source" if trouble.is_source else "destination"
            name = self.request[side + "_endpoint"]
            details = ("Error (transfer)\nEndpoint: %s (%s)\nServer: 192.0.2.1:443\nFile: %s\n"
                       "Command: RETR\nMessage: Fatal FTP Response\n---\nDetails: 550-GlobusError: "
                       "v=1 c=%s\\r\\n550 End.\\r\\n\n" % (
                           World["collections"][name]["display_name"], name, trouble.path,
                           trouble.code))
            if World["json_details"]:
                details = json.dumps(
                    {"context": [{"operation": "transfer", "path": trouble.path}], "error": {
                        "body": "550-GlobusError: v=1 c=%s%%0D%%0A550 End.%%0D%%0A" % trouble.code,
                        "code": 550}}, indent=1)
            self.event(trouble.code, details, True)

    def pause(self):
        """The message of the administrator who paused a collection, None as a rule."""
        for end in ("source_endpoint", "destination_endpoint"):
            message = World["collections"][self.request[end]]["paused_message"]
            if message:
                return message
        return None

    def check(self):
        """Between two pieces of work: may it go on?"""
        if self.cancelled.is_set():
            self.end("FAILED", "CANCELED", "Canceled by the task owner")
            raise Trouble("CANCELED", "")
        if iso(now()) >= self.deadline:
            self.end("FAILED", "EXPIRED")
            raise Trouble("EXPIRED", "")
        for end in ("source_endpoint", "destination_endpoint"):
            known = World["collections"][self.request[end]]
            for key, bad, code in (("gcp_connected", False, "GC_NOT_CONNECTED"),
                                   ("gcp_paused", True, "GC_PAUSED")):
                if known[key] is bad:
                    raise Trouble(code, "", end == "source_endpoint")
        if self.pause():
            raise Trouble("PAUSED", "")

    def work(self, todo):
        """Work off the items; what is done is taken from the list, so that a retry goes on."""
        self.check()
        self.code = "OK"
        self.cancelled.wait(World["task_seconds"])
        while todo:
            self.check()
            item = todo[0]
            source = World["collections"][self.request["source_endpoint"]]
            destination = World["collections"][self.request["destination_endpoint"]]
            try:
                pairs = list(self.pairs_of(item, source, destination))
            except Trouble as trouble:
                self.skip_or_raise(trouble, item)
                pairs = []
            self.numbers["files"] = max(self.numbers["files"], self.numbers["files_transferred"]
                                        + self.numbers["files_skipped"] + len(pairs))
            for pair in pairs:
                self.check()
                try:
                    self.copy(item, *pair)
                except Trouble as trouble:
                    self.skip_or_raise(trouble, item)
            del todo[0]

    def skip_or_raise(self, trouble, item):
        """With skip_source_errors some errors of the source are left behind."""
        may_skip = self.request.get("skip_source_errors") and trouble.is_source
        if not (may_skip and trouble.code in ("PERMISSION_DENIED", "FILE_NOT_FOUND",
                                              "AMBIGUOUS_PATH")):
            raise trouble
        self.subtasks["skipped_errors"] += 1
        self.skipped.append({
            "DATA_TYPE": "skipped_error", "error_code": trouble.code, "error_time": iso(now()),
            "error_details": urllib.parse.quote("550-GlobusError: c=" + trouble.code),
            "source_path": trouble.path, "destination_path": item["destination_path"],
            "is_directory": False, "is_symlink": False, "is_delete_destination_extra": False,
            "external_checksum": None, "checksum_algorithm": None})

    def pairs_of(self, item, source, destination):
        """Yield source and destination of each file of an item, as paths of the collections."""
        begin, end = item["source_path"], item["destination_path"]
        trouble = self.trouble_with(begin, is_late=False)
        if trouble:
            raise Trouble(trouble["code"], begin, trouble.get("is_source", True))
        try:
            real = local_path(source, begin)
        except PermissionError:
            raise Trouble("PERMISSION_DENIED", begin, True)
        if not os.path.exists(real):
            raise Trouble("FILE_NOT_FOUND", begin, True)
        is_folder, wanted = os.path.isdir(real), item.get("recursive")
        if is_folder and wanted is False:
            raise Trouble("IS_A_DIRECTORY", begin, True)
        if not is_folder and wanted:
            raise Trouble("NOT_A_DIRECTORY", begin, True)
        if not is_folder:
            yield begin, end
            return
        for folder, folders, names in os.walk(real):
            self.numbers["directories"] += 1
            folders.sort()
            below = os.path.relpath(folder, real)
            for name in sorted(names):
                if not os.path.islink(os.path.join(folder, name)):
                    part = os.path.normpath(os.path.join(below, name))
                    yield begin.rstrip("/") + "/" + part, end.rstrip("/") + "/" + part

    def trouble_with(self, path, is_late):
        """The trouble that was set for this file, counted off; None as a rule. is_late: with the
        bytes, not before them."""
        with lock:
            for trouble in World["troubles"]:
                if ((trouble["code"] in ("CORRUPT", "FILE_SIZE_CHANGED")) == is_late
                        and trouble.get("times", 1) > 0 and re.search(trouble["path"], path)):
                    if "times" in trouble:
                        trouble["times"] -= 1
                    return trouble
        return None

    def copy(self, item, begin, end):
        """Bring one file over."""
        request = self.request
        source = World["collections"][request["source_endpoint"]]
        known = World["collections"][request["destination_endpoint"]]
        try:
            here = local_path(source, begin)
            with open(here, "rb"):
                pass
        except PermissionError:
            raise Trouble("PERMISSION_DENIED", begin, True)
        except FileNotFoundError:
            raise Trouble("FILE_NOT_FOUND", begin, True)
        try:
            there = local_path(known, end)
            if os.path.isdir(there):
                raise Trouble("IS_A_DIRECTORY", end)
            if self.is_in_sync(here, there):
                self.numbers["files_skipped"] += 1
                return
            if known["quota"] is not None and os.path.getsize(here) > known["quota"]:
                raise Trouble("QUOTA_EXCEEDED", end)
            os.makedirs(os.path.dirname(there), exist_ok=True)
            code = (self.trouble_with(begin, is_late=True) or {}).get("code")
            self.copy_bytes(here, there, code == "CORRUPT")
            if code == "FILE_SIZE_CHANGED":
                os.truncate(there, 0)  # it is no longer what it was
                raise Trouble(code, begin, True)
        except OSError as error:
            code = {errno.ENOSPC: "NO_SPACE_LEFT", errno.EDQUOT: "QUOTA_EXCEEDED",
                    errno.ENOTDIR: "NOT_A_DIRECTORY", errno.EEXIST: "NOT_A_DIRECTORY"}
            raise Trouble(code.get(error.errno, "PERMISSION_DENIED"), end)
        self.verify(item, begin, here, there)
        if request.get("preserve_timestamp"):
            shutil.copystat(here, there)
        size = os.path.getsize(there)
        self.numbers["files_transferred"] += 1
        self.moved.append({"DATA_TYPE": "successful_transfer", "source_path": begin,
                           "destination_path": end, "size": size, "checksum": None,
                           "checksum_algorithm": None, "dynamic": False})

    def copy_bytes(self, here, there, is_corrupt):
        """Copy in pieces, at the speed that was set, as long as the task may go on."""
        with open(here, "rb") as reader, open(there, "wb") as writer:
            speed = World["bytes_per_second"]
            piece = 1 << 20 if not speed else max(1, int(speed / 20))
            while True:
                data = reader.read(piece)
                if not data:
                    break
                self.check()
                writer.write(b"\0" * len(data) if is_corrupt else data)
                writer.flush()
                self.numbers["bytes_transferred"] += len(data)
                if World["bytes_per_second"]:
                    self.cancelled.wait(len(data) / World["bytes_per_second"])

    def is_in_sync(self, here, there):
        """True where the sync level says that nothing is to be sent."""
        level = self.request.get("sync_level")
        if level is None or not os.path.exists(there):
            return False
        return (int(level) == 0
                or os.path.getsize(here) == os.path.getsize(there) and (
                    int(level) == 1
                    or int(level) == 2 and os.path.getmtime(here) <= os.path.getmtime(there)
                    or int(level) == 3 and digest(here) == digest(there)))

    def verify(self, item, begin, here, there):
        """The checksums that the request asks for."""
        wanted = item.get("external_checksum")
        if wanted and digest(there, item.get("checksum_algorithm") or "MD5") != wanted.lower():
            raise Trouble("EXTERNAL_CHECKSUM_MISMATCH", begin)
        if self.request.get("verify_checksum"):
            self.numbers["bytes_checksummed"] += os.path.getsize(here)
            if digest(here) != digest(there):
                raise Trouble("VERIFY_CHECKSUM", begin)


def digest(path, algorithm="sha256"):
    """The checksum of a file, in hexadecimal."""
    result = hashlib.new(algorithm.lower().replace("-", ""))
    with open(path, "rb") as file:
        for data in iter(lambda: file.read(1 << 20), b""):
            result.update(data)
    return result.hexdigest()


def describe(code):
    """The words that go with an event code."""
    words = {"VERIFY_CHECKSUM": "checksum verification failed", "Queued": "Queued", "OK": "OK",
             "GC_NOT_CONNECTED": "Globus Connect not connected", "CANCELED": "canceled"}
    return words.get(code, code.lower().replace("_", " "))


class Slot:
    """One of the places for tasks at work; a context manager, true if the task got it."""

    taken = 0
    free = threading.Condition()

    def __init__(self, task):
        self.task, self.has = task, False

    def __enter__(self):
        with Slot.free:
            while Slot.taken >= World["slots"] and self.task.status == "ACTIVE":
                if self.task.code == "OK":
                    self.task.code = "Queued"
                self.task.rest(0)
                Slot.free.wait(0.05)
            self.has = self.task.status == "ACTIVE"
            Slot.taken += self.has
        return self.has

    def __exit__(self, *_):
        with Slot.free:
            Slot.taken -= self.has
            Slot.free.notify()


def submission_id(headers, **_):
    """GET /submission_id"""
    bearer(headers)
    return 200, {}, {"DATA_TYPE": "submission_id", "value": str(uuid.uuid4())}


def submit(document, headers, **_):
    """POST /transfer"""
    token = bearer(headers)
    name = document.get("submission_id")
    if not name:
        raise Refusal(400, "ClientError.BadRequest", "Missing required field 'submission_id'")
    with lock:
        if name in submissions:
            return 200, {}, transfer_result("Duplicate", name, submissions[name])
        if not document.get("DATA"):
            raise Refusal(400, "ClientError.BadRequest.NoTransferItems",
                          "A transfer requires at least one item")
        if len(document.get("label") or "") > 128:
            raise Refusal(400, "ClientError.BadRequest", "label is too long")
        if re.search("[^A-Za-z0-9 ,_-]", document.get("label") or ""):  # in 2022 it did
            raise Refusal(400, "ClientError.BadRequest", "Invalid label characters")
        for end in ("source_endpoint", "destination_endpoint"):
            known = check_access(document.get(end), token)
            if known["gcp_connected"] is False:
                raise Refusal(409, "GCDisconnectedException",
                              "The Globus Connect Personal endpoint '%s (%s)' is not currently "
                              "connected to Globus" % (known["display_name"], document[end]))
            for flag, is_bad in (("disable_verify", True), ("force_verify", False)):
                if known[flag] and bool(document.get("verify_checksum")) is is_bad:
                    raise Refusal(400, "ClientError.BadRequest", "%s is set on '%s'" % (
                        flag, known["display_name"]))
        active = [task for task in tasks.values() if task.status == "ACTIVE"]
        if len(active) >= World["pending_limit"]:
            raise Refusal(409, "ClientError.Conflict.TooManyPendingJobs",
                          "You have too many pending tasks")
        task = Task(document)
        if any(task.paths == other.paths for other in active):
            raise Refusal(409, "Conflict",
                          "A transfer with identical paths has not yet completed")
        task.start()  # before anybody can find it, and cancel what has not begun
        tasks[task.id] = task
        submissions[name] = task.id
    return 202, {}, transfer_result("Accepted", name, task.id)


def transfer_result(code, submission, task):
    """The answer to a submission."""
    message = {"Accepted": "The transfer has been accepted and a task has been created and queued "
                           "for execution",
               "Duplicate": "A transfer with this submission_id has already been accepted"}[code]
    return {"DATA_TYPE": "transfer_result", "code": code, "message": message,
            "submission_id": submission, "task_id": task,
            "task_link": {"DATA_TYPE": "link", "href": "task/%s?format=json" % task,
                          "rel": "related", "resource": "task", "title": "related task"}}


def find_task(name, headers):
    """The task of that id."""
    bearer(headers)
    if name not in tasks:
        raise Refusal(404, "ClientError.NotFound", "No task found with id '%s'" % name)
    return tasks[name]


def get_task(match, headers, **_):
    """GET /task/ID"""
    with lock:
        return 200, {}, find_task(match.group(1), headers).document()


def update_task(match, document, headers, **_):
    """PUT /task/ID"""
    task = find_task(match.group(1), headers)
    task.label = document.get("label", task.label)
    task.deadline = document.get("deadline", task.deadline)
    return 200, {}, {"DATA_TYPE": "result", "code": "Updated",
                     "message": "Updated the task successfully."}


def cancel(match, headers, **_):
    """POST /task/ID/cancel"""
    task = find_task(match.group(1), headers)
    if task.status != "ACTIVE":
        return 200, {}, {"DATA_TYPE": "result", "code": "TaskComplete",
                         "message": "The task completed before the cancel request was processed."}
    if World["cancel_seconds"]:
        threading.Timer(World["cancel_seconds"], task.cancelled.set).start()
        return 202, {}, {"DATA_TYPE": "result", "code": "CancelAccepted",
                         "message": "The cancel request was accepted."}
    task.cancelled.set()
    task.join(10)
    return 200, {}, {"DATA_TYPE": "result", "code": "Canceled",
                     "message": "The task has been cancelled successfully."}


def page_of(found, query, kind, default):
    """A page by limit and offset."""
    limit, offset = int(query.get("limit", default)), int(query.get("offset", 0))
    page = found[offset:offset + limit]
    return {"DATA_TYPE": kind, "length": len(page), "limit": limit, "offset": offset,
            "total": len(found), "DATA": page}


def events(match, query, headers, **_):
    """GET /task/ID/event_list"""
    task = find_task(match.group(1), headers)
    wanted = re.match(r"is_error:([01])", query.get("filter", ""))
    found = [event for event in list(task.events)
             if not wanted or event["is_error"] == (wanted.group(1) == "1")]
    return 200, {}, page_of(found, query, "event_list", 10)


def by_marker(found, query, kind):
    """A page by marker, of which the last has none to follow."""
    marker, most = int(query.get("marker") or 0), 100
    following = marker + most if marker + most < len(found) else None
    return {"DATA_TYPE": kind, "marker": marker, "next_marker": following,
            "DATA": found[marker:marker + most]}


def successful(match, query, headers, **_):
    """GET /task/ID/successful_transfers"""
    return 200, {}, by_marker(find_task(match.group(1), headers).moved, query,
                              "successful_transfers")


def skipped(match, query, headers, **_):
    """GET /task/ID/skipped_errors"""
    return 200, {}, by_marker(find_task(match.group(1), headers).skipped, query, "skipped_errors")


def pause_info(match, headers, **_):
    """GET /task/ID/pause_info"""
    task = find_task(match.group(1), headers)
    document = {"DATA_TYPE": "pause_info_limited", "pause_rules": []}
    for side in ("source", "destination"):
        name = task.request[side + "_endpoint"]
        message = World["collections"][name]["paused_message"]
        document[side + "_pause_message"] = message
        document[side + "_pause_message_share"] = None
        if message:
            document["pause_rules"].append({
                "DATA_TYPE": "pause_rule_limited", "id": str(uuid.uuid4()), "message": message,
                "start_time": iso(now()), "endpoint_id": name, "identity_id": None,
                "endpoint_display_name": World["collections"][name]["display_name"],
                "pause_ls": False, "pause_mkdir": False, "pause_rename": False,
                "pause_task_delete": False, "pause_task_transfer_write": True,
                "pause_task_transfer_read": True})
    return 200, {}, document


def task_list(query, headers, **_):
    """GET /task_list, the newest first"""
    bearer(headers)
    with lock:
        found = [task.document() for task in reversed(list(tasks.values()))]
    for clause in filter(None, query.get("filter", "").split("/")):
        key, _, values = clause.partition(":")
        values = values.lstrip("=").split(",")
        found = [document for document in found if str(document.get(key)) in values]
    return 200, {}, page_of(found, query, "task_list", 10)


# ---- the emulator's own pages ----


def merge(old, new):
    """Merge a dict into another, nested ones too."""
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            merge(old[key], value)
        else:
            old[key] = value


def world(document, **_):
    """GET and POST /_emulator/world"""
    with lock:
        new = document or {}
        for name in new.get("collections", {}):
            World["collections"].setdefault(name, collection("GCSv5_mapped_collection", "/"))
        merge(World, new)
        return 200, {}, World


def add_fault(document, **_):
    """POST /_emulator/faults"""
    with lock:
        faults.append(document)
    return 200, {}, faults


def clear_faults(**_):
    """DELETE /_emulator/faults"""
    with lock:
        faults.clear()
    return 200, {}, faults


def tell_requests(**_):
    """GET /_emulator/requests: 'METHOD path' of each request so far."""
    return 200, {}, requests


def tell_tasks(**_):
    """GET /_emulator/tasks"""
    with lock:
        return 200, {}, [dict(task.document(), request=task.request) for task in tasks.values()]


def mint_tokens(**_):
    """POST /_emulator/tokens: a login without its pages, as the token file holds it."""
    document = issue(TRANSFER_SCOPE, "4f0448d6-e7e2-4637-bc64-e8f682d1cc77", True)
    document["expires_at_seconds"] = int(time.time()) + World["token_life"]
    return 200, {}, {document["resource_server"]: document}


def expire_tokens(**_):
    """POST /_emulator/expire: every access token has expired."""
    for known in access_tokens.values():
        known["until"] = 0
    return 200, {}, {}


def age_sessions(**_):
    """POST /_emulator/age: every login was long ago."""
    for known in [*access_tokens.values(), *refresh_tokens.values()]:
        known["session"]["time"] = 0
    return 200, {}, {}


V = r"/(?:v0\.10/)?"
ROUTES = [(method, re.compile(pattern + "$"), function) for method, pattern, function in (
    ("GET", "/v2/oauth2/authorize", authorize),
    ("GET", "/v2/web/auth-code", show_code),
    ("POST", "/v2/oauth2/token", token),
    ("POST", "/v2/oauth2/token/revoke", revoke),
    ("GET", "/v2/oauth2/userinfo", userinfo),
    ("GET", V + "endpoint/([^/]+)", endpoint),
    ("GET", V + "endpoint_search", endpoint_search),
    ("GET", V + "operation/endpoint/([^/]+)/ls", ls),
    ("GET", V + "operation/endpoint/([^/]+)/stat", stat),
    ("POST", V + "operation/endpoint/([^/]+)/mkdir", mkdir),
    ("GET", V + "submission_id", submission_id),
    ("POST", V + "transfer", submit),
    ("GET", V + "task_list", task_list),
    ("GET", V + "task/([^/]+)", get_task),
    ("PUT", V + "task/([^/]+)", update_task),
    ("POST", V + "task/([^/]+)/cancel", cancel),
    ("GET", V + "task/([^/]+)/event_list", events),
    ("GET", V + "task/([^/]+)/successful_transfers", successful),
    ("GET", V + "task/([^/]+)/skipped_errors", skipped),
    ("GET", V + "task/([^/]+)/pause_info", pause_info),
    ("GET", "/_emulator/world", world),
    ("POST", "/_emulator/world", world),
    ("POST", "/_emulator/faults", add_fault),
    ("DELETE", "/_emulator/faults", clear_faults),
    ("GET", "/_emulator/requests", tell_requests),
    ("GET", "/_emulator/tasks", tell_tasks),
    ("POST", "/_emulator/tokens", mint_tokens),
    ("POST", "/_emulator/expire", expire_tokens),
    ("POST", "/_emulator/age", age_sessions),
)]


# ---- the server ----


def fault_for(line):
    """The first fault that matches 'METHOD path?query', counted off.

    {"match": regex, "times": n (default: always), "skip": n (let that many pass first),
     "delay": seconds, "status": n, "json": document or "text": "...", "headers": {...},
     "drop": "before" or "after" (the answer is lost, the work is done),
     "patch": {...} (merged into the true answer)}"""
    with lock:
        for fault in faults:
            if fault.get("times", 1) <= 0 or not re.search(fault["match"], line):
                continue
            if fault.get("skip", 0) > 0:
                fault["skip"] -= 1
                continue
            if "times" in fault:
                fault["times"] -= 1
            return dict(fault)
    return {}


def is_too_fast():
    """True beyond the rate limit, metered over ten seconds."""
    limit = World["rate_limit"]
    if not limit:
        return False
    recent = [t for t in is_too_fast.times if t > time.time() - 10]
    is_too_fast.times = recent + [time.time()]
    return len(recent) >= limit * 10


is_too_fast.times = []


class Handler(http.server.BaseHTTPRequestHandler):
    """Routes, faults, errors."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self):
        """One request."""
        url = urllib.parse.urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = "%s %s" % (self.command, self.path)
        is_own = url.path.startswith("/_emulator/")
        fault = {}
        if not is_own:
            requests.append(line)
            fault = fault_for(line)
        time.sleep(fault.get("delay", 0))
        if fault.get("drop") == "before":
            return self.drop()
        if "status" in fault:
            answer = fault["status"], fault.get("headers", {}), fault.get(
                "json", fault.get("text", ""))
        elif not is_own and is_too_fast():
            headers = {"Retry-After": str(World["retry_after"])} if World["retry_after"] else {}
            answer = 429, headers, error_document("TooManyRequests", "Slow down", url.path)
        else:
            answer = self.answer(url, body)
            if "patch" in fault and isinstance(answer[2], dict):
                merge(answer[2], fault["patch"])
        if fault.get("drop") == "after":
            return self.drop()
        return self.send(*answer)

    def answer(self, url, body):
        """Find the function for a path and call it."""
        queries = urllib.parse.parse_qs(url.query, keep_blank_values=True)
        given = {"query": {key: values[-1] for key, values in queries.items()},
                 "queries": queries, "headers": self.headers, "form": {}, "document": None}
        try:
            if "json" in self.headers.get("Content-Type", ""):
                given["document"] = json.loads(body.decode() or "null")
            elif body:
                given["form"] = dict(urllib.parse.parse_qsl(body.decode()))
            for method, pattern, function in ROUTES:
                match = pattern.match(url.path)
                if match and method == self.command:
                    status, headers, document = function(match=match, **given)
                    if isinstance(document, dict) and "DATA_TYPE" in document:
                        document.setdefault("request_id", request_id())
                        document.setdefault("resource", url.path)
                    return status, headers, document
            raise Refusal(404, "ClientError.NotFound", "No such resource")
        except Refusal as refusal:
            if refusal.more.get("page"):
                return refusal.status, {"Content-Type": "text/html"}, html.escape(refusal.message)
            return refusal.status, {}, dict(
                error_document(refusal.code, refusal.message, url.path), **refusal.more)
        except (KeyError, TypeError, ValueError) as error:
            return 400, {}, error_document("ClientError.BadRequest", repr(error), url.path)

    def send(self, status, headers, content):
        """Write an answer."""
        if isinstance(content, str):
            data, kind = content.encode("utf-8", "surrogateescape"), "text/html; charset=utf-8"
        else:
            data, kind = json.dumps(content).encode(), "application/json"
        self.send_response(status)
        for name, value in dict({"Content-Type": kind}, **headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def drop(self):
        """Break the connection, with a reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def handle_one_request(self):
        """As the base class does; a client that went away is no news."""
        try:
            super().handle_one_request()
        except (ConnectionError, BrokenPipeError, ValueError):
            self.close_connection = True

    def finish(self):
        """As the base class does; the connection may be gone."""
        try:
            super().finish()
        except (OSError, ValueError):
            pass

    def log_message(self, *_):
        """No log; /_emulator/requests tells."""

    do_GET = do_POST = do_PUT = do_DELETE = handle_any


class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection."""

    daemon_threads = True
    request_queue_size = 256


def request_id():
    """Nine letters and digits."""
    return secrets.token_urlsafe(9).replace("-", "a").replace("_", "b")[:9]


def error_document(code, message, path):
    """The body of every error of Transfer."""
    return {"code": code, "message": message, "request_id": request_id(),
            "resource": re.sub(r"^/v0\.10", "", path)}


def main(argv=None):
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args(argv)
    source = os.path.join(os.path.abspath(options.root), "source")
    os.makedirs(source, exist_ok=True)
    World["collections"].update({
        SOURCE: collection("GCSv5_mapped_collection", source,
                           display_name="Globus Tutorial Collection 1", home="/home/researcher"),
        DESTINATION: collection("GCP_mapped_collection", "/", display_name="My cluster",
                                gcp_connected=True, gcp_paused=False,
                                home=os.path.expanduser("~")),
        GUEST: collection("GCSv5_guest_collection", source, display_name="A guest collection"),
    })
    server = Server(("127.0.0.1", options.port), Handler)
    print(json.dumps({"url": "http://127.0.0.1:%d/" % server.server_address[1],
                      "source": SOURCE, "destination": DESTINATION, "guest": GUEST}), flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
