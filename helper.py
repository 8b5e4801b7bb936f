"""What the four scripts share: errors, settings, tokens, listing, transfer tasks."""
import array
import contextlib
import fcntl
import functools
import gc
import glob
import itertools
import json
import marshal
import math
import os
import re
import select
import shlex
import shutil
import signal
import stat
import sys
import time
import tokenize
import traceback
import types
import unicodedata
import warnings
import zlib
from collections import deque, namedtuple
from difflib import get_close_matches

# Imports and listings make many objects and no garbage, and looking for it takes time.
gc.set_threshold(100000)
# cryptography warns that Python 3.7 and 3.8 are old; the user cannot fix that here.
warnings.filterwarnings("ignore", message="Python 3", module="globus_sdk|jwt|cryptography")
LEAST_SDK = (3, 41)  # globus-sdk
sdk_problem = None
try:
    import ssl  # noqa: F401 (some Pythons are built without)

    import globus_sdk  # whose other names are loaded when they are needed
    if tuple(map(int, re.findall(r"\d+", globus_sdk.__version__)[:2])) < LEAST_SDK:
        raise ImportError(f"globus-sdk {globus_sdk.__version__}, in {globus_sdk.__path__[0]}, is "
                          "too old for these scripts: they need {}.{} or newer".format(*LEAST_SDK))
    from globus_sdk import GlobusAPIError, GlobusError, NetworkError
    from globus_sdk.authorizers import GlobusAuthorizer
except KeyboardInterrupt:  # it may take long on a shared disk
    sys.exit(130)
except ImportError as error:  # told by read_config(), so that --help works
    sdk_problem, GlobusAuthorizer, GlobusError = error, object, ()
gc.freeze()  # imported objects stay: the collector need not visit them at exit either

# The native app that asks for the login; README.md says how to register one of your own.
CLIENT_ID = "4f0448d6-e7e2-4637-bc64-e8f682d1cc77"
TRANSFER = "transfer.api.globus.org"
TRANSFER_SCOPE = "urn:globus:auth:scope:transfer.api.globus.org:all"
# Globus Auth does not know the application that asks, whatever its user does.
CLIENT_REFUSED = ("invalid_client", "unauthorized_client")

FROZEN = "GLOBUS_SETTINGS"  # in the environment of a job: the driver's settings, as JSON
HERE = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(HERE, "venv")  # as README.md has it

# What is read of each entry of a listing; Transfer leaves out the rest.
FIELDS = "DATA,total,name,type,size,last_modified,link_target"

# Control characters, and what is no text at all; but not the bytes of a name that is not UTF-8.
CONTROL = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udc7f\udd00-\udfff]")
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # such bytes, as Python writes them
LONGEST_NAME = 255  # bytes, of a file system
UUID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

# Ctrl-C, and what schedulers send before they end a job.
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2, signal.SIGXCPU)

QUIET_SECONDS = 60  # between two lines of progress in a log
SOONEST_POLL, SLOWEST_POLL = 0.25, 30  # seconds
STOP_SECONDS = 60  # upper limit for a cancel; Slurm kills a job 30 s (KillWait) after SIGTERM
CANCEL_SECONDS = 5  # a cancelled task that has not ended by then is reported
ENDED = ("SUCCEEDED", "FAILED")  # task statuses
MOST_ENTRIES = 100000  # of one listing
HTTP_TIMEOUT = 300  # seconds; a directory of 100,000 files may take a minute to list
MOST_EMPTY_ROUNDS = 3  # tasks in a row that failed and brought none of their files
MOST_REFUSALS = 3  # of access tokens, one after the other
FOLDER_SECONDS = 300  # for which one subdirectory that cannot be listed holds up the others
LIST_SECONDS = 30  # for which the lists of a task that has ended may be short
SILENCE = 60  # seconds without an answer before this is reported
ARRIVAL_SECONDS = 60  # a shared file system may show a new file this late

# Globus's codes for why a task does not move, or a file did not arrive (globus.org, "Event Document
# error codes"): what it means, "" = Globus's own words, and after how many seconds without progress
# the task is given up, None = never. Globus itself would go on trying for a day or more.
ERRORS = {
    "INACTIVE": ("suspended until you log in again and resume it on its page in the web app", None),
    "Queued": ("queued at Globus, which works on three transfer tasks of yours at a time", None),
    "GC_NOT_CONNECTED": ("Globus Connect Personal is not running", None),
    "GC_PAUSED": ("Globus Connect Personal is paused", None),
    **dict.fromkeys(("PAUSED", "PAUSED_BY_ADMIN"),
                    ("paused by an administrator of the collection", None)),
    "CONNECT_FAILED": ("the collection's server cannot be reached, Globus keeps trying", None),
    "ENDPOINT_TOO_BUSY": ("the collection's server is too busy, Globus keeps trying", None),
    "VERIFY_CHECKSUM": ("a checksum did not match, Globus sends the file again", None),
    "FILE_SIZE_CHANGED": ("a file changes while it is sent, Globus sends it again", None),
    "AUTH": ("the collection's server refuses your login", 300),
    "NO_CREDENTIALS": ("Globus has no credentials of yours for the collection", 300),
    "INVALID_SERVICE_CREDENTIAL": ("the certificate of the collection's server is not valid; "
                                   "its administrator has to fix it", 3600),
    "ACL_CHANGED": ("your permissions on the collection have changed", 60),
    "LIMIT_EXCEEDED": ("a limit of the collection's server is exceeded", 3600),
    "ENDPOINT_ERROR": ("the collection's server reports an error", 3600),
    "PERMISSION_DENIED": ("permission denied", 60),
    "FILE_NOT_FOUND": ("file not found", 10),
    "NO_SPACE_LEFT": ("no space left at the destination", 60),
    "QUOTA_EXCEEDED": ("over quota at the destination", 60),
    **dict.fromkeys(("CLOCK", "GSI_DN_MISMATCH", "INTERNAL_ERROR", "MPU_NOT_FOUND", "NO_PHYSICALS",
                     "UNKNOWN"), ("", 3600)),
    **dict.fromkeys(("FILE_ACCESS", "NO_APPEND_FILESYSTEM"), ("", 60)),
    **dict.fromkeys(("IS_A_DIRECTORY", "IS_A_FILE", "NOT_A_DIRECTORY", "NOT_A_FILE",
                     "NOT_A_SYMLINK", "INVALID_PATH_NAME", "INVALID_SYMLINK", "AMBIGUOUS_PATH"),
                    ("", 10)),
}
UNKNOWN = ("", None)
# What to do about one's own.
GCP = {"GC_NOT_CONNECTED": "start it: globusconnectpersonal -start &",
       "GC_PAUSED": "resume it: globusconnectpersonal -unpause"}
# Why a file did not arrive, where Globus does not say it of this file.
NO_REASON = "no reason given"
TASK_FAILED = ""  # the task as a whole did
UNTOLD = "Globus does not tell whether it has arrived"
CANCELLED = "cancelled, because it cannot succeed: "
NOT_ENDED = "Globus has accepted the cancel request, but the task has not ended"
STALE_STATUS_SECONDS = 900  # Globus may show an old error this long without a new attempt
FATAL_CHECKSUMS = 5  # give up after so many of these errors while no file is finished:
MISMATCHES = {"VERIFY_CHECKSUM", "FILE_SIZE_CHANGED"}
# With these the same bytes are sent again and again: more of them are no progress.
RETRANSMITTING = MISMATCHES | {"NO_SPACE_LEFT", "QUOTA_EXCEEDED"}
# Permanent errors of a collection's server, by code or message.
PERMANENT = re.compile(
    "NotDirectory|PermissionDenied|Path not allowed|LoginFailed|SizeLimit|Exists|NotFound|"
    "File name too long|Input/output error")
TASK = {"status": str, "task_id": str}  # what the scripts rely on in a task document
# What globus-sdk and the scripts raise when an answer of Globus is malformed.
MALFORMED = (AttributeError, KeyError, TypeError, ValueError)

# One entry of a listing. path: below PATH; size: bytes; refused: why not to download it, or None.
File = namedtuple("File", "path size last_modified refused")

# Where files come from and go to: a directory of the source collection, a folder as this machine
# names it, and the same folder as the destination collection names it.
Place = namedtuple("Place", "source folder destination")


# ---- telling ----

# What this process has told so far, and how.
TOLD = types.SimpleNamespace(
    is_timed=False,  # lines begin with the time, in a log with the date
    unwritten=deque(maxlen=10000),  # what stderr did not take yet, bytes
    progress="",  # the line of progress on a terminal
    progress_logged=time.monotonic(),  # when one was written to a log
    waiting_path=None,  # of the file that tells the batch driver for what its download waits
    outages=0)  # how many; after one wait_for_task() tells its own reason again


class UserError(Exception):
    """A foreseeable problem: what is wrong and what to do, in a line or two."""

    def __init__(self, text, status=1):
        super().__init__(text)
        self.status = status


class LoginNeeded(UserError):
    """The same, where a login is what helps."""


def run_main(main):
    """Run a script's main(); every way it can end is made an exit status here."""
    try:
        return run_to_the_end(main)
    finally:
        write_to_stderr("", is_last=True)


def run_to_the_end(main):
    """What main() returns, or the exit status for the exception that ended it."""
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, raise_interrupt)
    if sys.getfilesystemencoding() != "utf-8":  # file names are UTF-8, whatever the locale
        os.execve(sys.executable, [sys.executable, *sys.argv], dict(os.environ, PYTHONUTF8="1"))
    if sys.stdout:  # whatever PYTHONIOENCODING says; wrapper.sh reads a file name there
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape",
                               line_buffering=True)  # in one log with stderr, in order
    try:
        status = main()
        if sys.stdout:
            sys.stdout.flush()
        return status
    except UserError as problem:
        log(str(problem))
        return problem.status
    except GlobusError as error:
        log(describe_error(error))
        return 1
    except KeyboardInterrupt:
        log("Interrupted.")
        return 130
    except OSError as error:  # disk full, no permission, ...
        # What is left for stdout, which may be closed, cannot be written there.
        with contextlib.suppress(OSError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # such as: ... --dry-run | head
            log(f"{error.strerror}: {error.filename}" if error.filename else str(error))
        return 1


def raise_interrupt(number, frame):
    """The handler of a signal that is to end the script. Further ones are ignored: they would break
    off what the first one has begun, such as cancelling a task."""
    for other in ENDING_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def log(text):
    """A line on stderr; none where that is closed or its disk full, and the work goes on."""
    if TOLD.is_timed:
        pattern = "%H:%M:%S" if is_terminal() else "%Y-%m-%d %H:%M:%S"
        text = f"{time.strftime(pattern)}  {text}"
    show_progress("")
    write_to_stderr(escape_control_chars(text) + "\n")


def log_lines(lines):
    """Each of them, if there are any."""
    for line in lines:
        log(line)


def write_to_stderr(text, is_last=False):
    """Write, unless that would block: a terminal stopped by Ctrl-S, or a pipe that nobody reads,
    gets the text later, and holds nothing up. is_last: wait until all is written."""
    if not sys.stderr:
        return
    if text:
        TOLD.unwritten.append(text.encode(sys.stderr.encoding or "utf-8", "backslashreplace"))
    with contextlib.suppress(OSError, ValueError):  # it is closed, or its disk is full
        while TOLD.unwritten:
            try:
                written = os.write(stderr_of_our_own(), TOLD.unwritten[0])
            except BlockingIOError:
                if not is_last:
                    return
                select.select([], [stderr_of_our_own()], [])
                continue
            rest = TOLD.unwritten.popleft()[written:]
            TOLD.unwritten.extendleft([rest] if rest else [])


@functools.lru_cache(maxsize=None)
def stderr_of_our_own():
    """A descriptor for stderr that does not block, nor makes it so for others that have it."""
    stderr = sys.stderr.fileno()
    mode = os.fstat(stderr).st_mode
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{stderr}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    return stderr


def report_waiting(reason):
    """Say for what a script waits; in a pack's download, to the batch driver, too."""
    log("Waiting: " + reason)
    if TOLD.waiting_path:
        write_whole(TOLD.waiting_path, reason)


def report_resumed():
    """Say that what the script has waited for has come."""
    log("Resumed.")
    if TOLD.waiting_path:
        remove_if_there(TOLD.waiting_path)


def show_progress(text):
    """Say how far it is: on the last line of a terminal; in a log as a line, once a minute."""
    write_to_stderr("")  # what could not be written before
    if not is_terminal():
        if text and time.monotonic() - TOLD.progress_logged >= QUIET_SECONDS:
            TOLD.progress_logged = time.monotonic()
            log(text)
        return
    line = escape_control_chars(text)[:terminal_width()]
    before = TOLD.progress
    if line != before and (not line or not TOLD.unwritten):
        # Spaces over what is left of the last text: a dumb terminal knows no code for that.
        TOLD.progress = line
        write_to_stderr("\r" + line.ljust(len(before)) + "\r" + line)


def terminal_width():
    """How many columns a line may have: some terminals say 0, and ^C has to fit, too."""
    return (shutil.get_terminal_size().columns or 80) - 4


def is_terminal():
    """True if stderr is a terminal."""
    return bool(sys.stderr) and sys.stderr.isatty()


def escape_control_chars(text):
    """The text, with what could drive a terminal written as escapes (line feeds excepted)."""
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs", "Cf")
                   else c.encode("unicode_escape").decode() for c in text)


def plural(number, noun, nouns=None):
    """'1 file', '12,345 files'."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def format_bytes(size):
    """Bytes as a person reads them: '14 B', '1.2 GB' (powers of 1000, as Globus shows them)."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size} B" if units[0] == "B" else f"{size:.3g} {units[0]}"


def parse_bytes(text):
    """The bytes that a text such as '500 GB' or '1.5TB' stands for; or the text itself."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([kMGTP]?)B", text.strip(), re.I)
    if not match:
        return text
    return int(float(match.group(1)) * 1000 ** " KMGTP".index(match.group(2).upper() or " "))


def format_duration(seconds):
    """'40 s', '12 min', '3.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def describe_error(error):
    """An error of globus-sdk in plain words, with Globus's code and request id."""
    if isinstance(error, NetworkError):
        cause = error.underlying_exception
        if "Header" in type(cause).__name__:  # its message would reveal the token
            cause = error
        return f"Globus cannot be reached: {root_cause(cause)}"
    if not isinstance(error, GlobusAPIError):
        return first_line(str(error))
    code, message, login = error_code(error), error_message(error), reauth_reason(error)
    request = get_text(error_document(error), "request_id")
    details = f"({join_texts(', ', str(error.http_status), code, request)})"
    if error.http_status == 413 or error.http_status == 400 and re.search(
            "(?i)too ?(large|many)|maximum|limit of", all_of_message(error)):
        return (f"The request is too large for Globus: {message} {details} Transfer fewer files at "
                "a time: with globus-batch-download.py, a smaller FILES_PER_JOB or a narrower "
                "PATH.")
    if not code:
        return ("no answer from Globus itself, only from a server in between: "
                f"{message} (HTTP {error.http_status})")
    if code in CLIENT_REFUSED:
        return (f"Globus does not accept CLIENT_ID = {CLIENT_ID!r} in helper.py, as which these "
                f"scripts log in: {message}. README.md says how to register another.")
    return f"{login} Log in again: globus-login.py  {details}" if login else (
        f"Globus says: {message} {details}")


def error_document(error):
    """The document that came with an error of Globus; {} if it was something else. globus-sdk's own
    fields take it for granted what is in it."""
    try:
        document = json.loads(error.text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def error_code(error):
    """Transfer's or Auth's code for an error; empty for the page or document of some server in
    between, which tells nothing of what Globus knows."""
    document = error_document(error)
    return get_text(document, "code") or get_text(document, "error")


def error_message(error):
    """The words of an error in one line; of the many of a collection's server, what tells most."""
    document = error_document(error)
    page = re.sub("<[^>]*>", " ", re.sub("(?s)<(style|script).*?</\\1>", "", error.text))
    text = next((document[name] for name in ("message", "error_description", "error")
                 if get_text(document, name)), page)
    server = parse_server_error(text)
    if not server["words"]:
        return first_line(text)
    head = re.sub(r"(Command Failed: |, )?Error \(.*", "", first_line(text))
    return (join_texts(": ", head, server["words"])
            + (f" ({server['name']})" if server["name"] else ""))


def parse_server_error(text):
    """What the error of a collection's server tells, be it text or JSON: a dict of the words that
    tell most, the collection's name and id, and the file, each may be empty."""
    text = re.sub(r"%0D%0A|\\r\\n|\r\n", "\n", text)  # FTP's line ends, also written out
    fields = dict(re.findall(
        r"(?m)^(?:\d{3}[- ])?(Endpoint|File|Message|GridFTP-[\w-]+): (.*\S)", text))
    noise = r"(?:\d{3}[- ])?(?:GlobusError:|GridFTP-|End\.)|2\d\d[- ]"  # and banners
    replies = re.findall(rf"(?m)^(?!{noise})(?:\d{{3}}[- ])?(.*[a-z].*)",
                         text.partition("\nDetails: ")[2])
    words = [fields.get("GridFTP-Message"), fields.get("GridFTP-Error-String"), *replies[-1:],
             re.sub("(?i)fatal ftp response", "", fields.get("Message", ""))]
    path = re.search(r'"(?:\w+_)?(?:file|path)": *'
                     r'("(?:[^"\\]|\\["\\/bfnrt]|\\u[0-9a-f]{4})+")', text)
    name, _, place = fields.get("Endpoint", "").rpartition(" (")
    return {"words": next(map(first_line, filter(None, words)), ""), "name": name,
            "id": place.rstrip(")"),
            "file": fields.get("File") or (json.loads(path.group(1), strict=False) if path else "")}


def all_of_message(error):
    """Code and message of an error, all lines of them."""
    return f"{error_code(error)} {error_document(error).get('message')}"


def root_cause(error):
    """What the exception at the bottom of one of requests says; above it stand long URLs."""
    inner = [e for e in (getattr(error, "reason", None), *error.args) if isinstance(e, Exception)]
    if inner:
        return root_cause(inner[0])
    # Without the connection that it is about, such as HTTPSConnection(host='...', port=443)
    text = re.sub(r"^(<[^>]*>|\w+\([^)]*\)): ", "", first_line(str(error)))
    if "CERTIFICATE_VERIFY_FAILED" in text:
        text += ". Does your site need GLOBUS_SDK_VERIFY_SSL=/path/to/its/certificates.pem?"
    return text


def is_token_refused(error):
    """True if Globus does not accept the access token; it has said so with a 400, too."""
    return error.http_status == 401 or error_code(error).endswith("AuthenticationFailed")


def reauth_reason(error):
    """Why a new login is what helps, for an error of Globus; None if it would not help."""
    code = error_code(error)
    if not code:
        return None
    if code == "invalid_grant" or is_token_refused(error):
        return "Globus no longer accepts the stored login (revoked, or unused for 6 months)."
    if code == "ConsentRequired":
        return "The collection requires your consent (data_access)."
    session = error_document(error).get("authorization_parameters")
    if isinstance(session, dict) and session:
        message = get_text(session, "session_message")
        return ("The collection requires you to re-authenticate (your session has expired, or its "
                f"policy requires another login{': ' + message if message else ''}).")
    return None


def join_texts(separator, *texts):
    """Those of the texts that say something, each of them once."""
    return separator.join(dict.fromkeys(filter(None, texts)))


def first_line(text):
    """The first line that says something, cut to a readable length."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "(nothing)")
    return line if len(line) <= 200 else line[:200] + " ..."


# ---- settings ----


def a_number(words, least, most=math.inf, types=(int, float), or_none=False):
    """The check, and the words, for a setting that is a number."""
    def is_fit(value):
        return or_none if value is None else (
            isinstance(value, types) and not isinstance(value, bool) and least <= value <= most)

    return is_fit, words


def one_of(*values):
    """The check, and the words, for a setting with these values."""
    words = f"one of {', '.join(map(repr, values))}" if len(values) > 2 else (
        " or ".join(map(repr, values)))
    return lambda value: value in values, "must be " + words


def is_uuid(value):
    """True for a UUID that is one: Globus was seen to give zeros."""
    return bool(UUID.fullmatch(str(value)) and str(value).strip("0-"))


def is_path(value):
    return isinstance(value, str) and value.startswith("/") and not CONTROL.search(value)


def is_command_line(value):
    try:
        shlex.split(value)
        return not CONTROL.search(value)
    except (AttributeError, ValueError):  # it is no text, or has an open quote
        return False


# Each setting: what its value has to be, and the words for one that is not.
SETTINGS = {
    **dict.fromkeys(
        ("SOURCE_ENDPOINT_ID", "DESTINATION_ENDPOINT_ID"),
        (is_uuid, "is not the UUID of a collection, such as 6c54cade-bde5-45c1-bdea-f4bd71dba2cc")),
    **dict.fromkeys(
        ("PATH", "WORKING_DIR", "DOWNLOAD_DIR", "DESTINATION_PATH"),
        (is_path, "must be an absolute path, which begins with a slash, in quotes, without control "
                  "characters")),
    "TOKEN_FILE": (lambda value: isinstance(value, str) and is_path(os.path.expanduser(value)),
                   "must be an absolute path, in quotes; it may begin with ~"),
    "RECURSIVE": one_of(True, False),
    "NUM_JOBS": a_number("must be an integer of at least 1", 1, types=int),
    "FILES_PER_JOB": a_number("must be an integer from 1 to 5000", 1, 5000, types=int),
    "DOWNLOAD_BY": one_of("job", "driver"),
    "MAX_FAILURES_IN_A_ROW": a_number("must be an integer of at least 1, or None", 1, types=int,
                                      or_none=True),
    "MAX_BYTES": a_number('must be a number of bytes, a text such as "500 GB", or None', 1,
                          or_none=True),
    "SCHEDULER": one_of("auto", "slurm", "pbs", "torque", "sge"),
    "RESOURCES": (is_command_line, "must be one line of text that can be split as a shell would"),
    "POLL_SECONDS": a_number("must be a number of seconds", 0.1),
    "GRACE_SECONDS": a_number("must be a number of seconds", 0),
    "is_file_needed": (callable, "must be a function"),
}
def load_config():
    """The settings, checked, with None replaced by what it stands for; in a job those that the
    batch driver had when it submitted the job, whatever config.py says by now.

    Raises UserError (exit status 2), which names the setting that is not valid."""
    config = read_config()
    if FROZEN in os.environ:
        return config
    for name in [name for name in vars(config) if name.isupper() and name not in SETTINGS]:
        close = get_close_matches(name, SETTINGS, 1, 0.84)
        require(config, name, not close or name.rstrip("_0123456789") in SETTINGS,  # such as PATH2
                f"is not a setting; did you mean {''.join(close)}?")
    for name in SETTINGS:
        require(config, name, hasattr(config, name), "is missing; see the original config.py")
    fill_in(config)
    for name in SETTINGS:
        read_setting(name)
    work, downloads = os.path.realpath(config.WORKING_DIR), os.path.realpath(config.DOWNLOAD_DIR)
    login = os.path.dirname(os.path.realpath(token_file()))
    require(config, "DOWNLOAD_DIR", not is_in(downloads, os.path.join(work, "jobs")) and not any(
        is_in(folder, downloads) for folder in (os.path.realpath(HERE), work, login)),
        "is where the scripts, their state or your login are, which a download could overwrite; "
        "it must be a folder of its own")
    require_writable(config, "DOWNLOAD_DIR")
    return config


@functools.lru_cache(maxsize=None)
def read_config():
    """What config.py defines, unchecked, read once: its source, because Python takes the bytecode
    of another file of the same second and size for its own. Raises UserError."""
    if sdk_problem and sdk_problem.name in ("ssl", "_ssl"):
        raise UserError(f"{sys.executable} was built without SSL ({sdk_problem}): use another "
                        "Python.")
    if sdk_problem:
        raise UserError(f"{sdk_problem}. Activate the environment that has what the scripts need:\n"
                        + environment_command())
    if FROZEN in os.environ:
        return types.SimpleNamespace(**json.loads(os.environ[FROZEN]))
    config = types.ModuleType("config")
    config.__file__ = os.path.join(HERE, "config.py")
    try:
        with tokenize.open(config.__file__) as file:
            exec(compile(file.read(), config.__file__, "exec"), vars(config))
    except Exception as error:  # the user's own code: anything can happen
        raise config_error(error)
    return config


def environment_command():
    """The command for the environment beside the scripts, the one that is active, or else a new
    one; systems forbid pip outside of one."""
    activate = f". {shlex.quote(VENV)}/bin/activate"
    install = f"pip install -r {shlex.quote(os.path.join(HERE, 'requirements.txt'))}"
    if os.path.isdir(VENV) and os.path.realpath(VENV) != os.path.realpath(sys.prefix):
        return activate
    if sys.prefix != sys.base_prefix:
        return f"{shlex.quote(sys.executable)} -m {install}"
    return f"python3 -m venv {shlex.quote(VENV)} && {activate} && {install}"


def require(config, name, is_fit, what):
    if not is_fit:
        value = f" = {getattr(config, name)!r:.100}" if hasattr(config, name) else ""
        raise UserError(f"config.py: {name}{value} {what}", 2)


def fill_in(config):
    """Replace None by what it stands for, and names of folders by those to go by."""
    real = config.WORKING_DIR
    if real == os.path.dirname(os.path.abspath(config.__file__)):
        config.WORKING_DIR = as_named_here(real)
    if config.DESTINATION_PATH is None:  # by its real name: labels of tasks go by it
        config.DESTINATION_PATH = config.DOWNLOAD_DIR or os.path.join(str(real), "downloads")
    if config.DOWNLOAD_DIR is None:
        config.DOWNLOAD_DIR = os.path.join(str(config.WORKING_DIR), "downloads")
    if config.DESTINATION_ENDPOINT_ID is None:
        config.DESTINATION_ENDPOINT_ID = globus_sdk.LocalGlobusConnectPersonal().endpoint_id
        require(config, "DESTINATION_ENDPOINT_ID", config.DESTINATION_ENDPOINT_ID,
                "means the Globus Connect Personal of this machine, but none is set up here.\n"
                "Set it up (globusconnectpersonal -setup --no-gui), or write its UUID there.")
    config.RESOURCES = config.RESOURCES or ""
    config.VERIFY_CHECKSUM = True  # until choose_verification()
    if isinstance(config.MAX_BYTES, str):
        config.MAX_BYTES = parse_bytes(config.MAX_BYTES)
    for name in ("PATH", "DESTINATION_PATH"):
        if isinstance(getattr(config, name), str):
            setattr(config, name, plain_path(getattr(config, name)))


def as_named_here(folder):
    """The folder by the name that the user's shell has for it: its real one, which Python prefers,
    may be another one on each machine, as of a home folder that is a link."""
    for name in filter(os.path.isabs, (os.environ.get("PWD", ""), os.path.dirname(sys.argv[0]))):
        while not is_in(folder, os.path.realpath(name)):
            name = os.path.dirname(name)
        below = os.path.relpath(folder, os.path.realpath(name))
        named = os.path.normpath(os.path.join(name, below))
        if named != folder == os.path.realpath(named):
            return named
    return folder


def is_in(path, folder):
    """True if a path is that folder, or below it; both are real ones."""
    return os.path.commonpath([path, folder]) == os.path.commonpath([folder])


def require_writable(config, name):
    """Raise UserError (exit status 2) if that folder cannot be made or written."""
    place = getattr(config, name)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    require(config, name, os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK),
            f"cannot be made or written: {place} is not a folder that you may write to")


def freeze(config):
    """The settings as the text that FROZEN holds, with what choose_verification() has set."""
    names = [name for name in SETTINGS if name.isupper()]
    return json.dumps({name: getattr(config, name) for name in [*names, "VERIFY_CHECKSUM"]})


def read_setting(name):
    """One setting, checked; of config.py nothing else may be right."""
    config, (is_fit, what) = read_config(), SETTINGS[name]
    require(config, name, is_fit(getattr(config, name, None)), what)
    return getattr(config, name)


def token_file():
    """The path of the token file."""
    return os.path.expanduser(read_setting("TOKEN_FILE"))


def config_error(error, what=""):
    """The UserError for an exception in config.py: its line, and its type."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if os.path.basename(frame.filename) == "config.py"]
    words = str(error)
    if isinstance(error, SyntaxError) and os.path.basename(error.filename or "") == "config.py":
        lines, words = [error.lineno], error.msg  # str(error) names the line, too
    return UserError(f"config.py, line {lines[-1] if lines else '?'}: {what}"
                     f"{type(error).__name__}: {words}", 2)


# ---- names ----


def name_problem(path):
    """Why a path below PATH must not be downloaded; None for a good one."""
    if not isinstance(path, str):
        return "is not a name"
    if CONTROL.search(path):
        return "holds a control character"
    parts = path.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        return "would be written outside DOWNLOAD_DIR"
    if max(map(len, map(os.fsencode, parts))) > LONGEST_NAME:
        return f"is longer than the {LONGEST_NAME} bytes that a file's name may have"
    return None


def local_path(path):
    """A path of Globus as Python writes it. Globus shows a name that is not UTF-8 as Latin-1,
    after a U+FFFD (globus.org, "File operations", "Path encoding")."""
    def decode(match):
        local = os.fsdecode(match.group(1).encode("latin-1"))
        return local if NOT_UTF8.search(local) else match.group()  # it begins with U+FFFD itself

    if "\ufffd" not in path:
        return path
    return re.sub("(?<![^/])\ufffd([\0-.0-\xff]+)(?![^/])", decode, path)


def globus_path(path):
    """The reverse of local_path()."""
    if path.isascii():  # which is quick
        return path
    return re.sub(f"[^/]*{NOT_UTF8.pattern}[^/]*",
                  lambda name: "\ufffd" + os.fsencode(name.group()).decode("latin-1"), path)


def plain_path(path):
    """An absolute path without the // and /./ that Globus would leave out of its answers."""
    return re.sub(r"/(\.?(/|\Z))+", "/", path)


def join(directory, path):
    """The path below a directory of a collection, with one slash between."""
    return directory.rstrip("/") + "/" + path


# ---- tokens ----


def read_tokens(path=None):
    """The token file: a dict by resource server, empty if there is no file.

    Raises UserError if the file is not what globus-login.py writes."""
    path = path or token_file()
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                try:
                    os.fchmod(file.fileno(), 0o600)
                    log(f"{path} was readable by others; its mode is now 0600.")
                except OSError as error:
                    log(f"{path} is readable by others, and chmod failed: {error.strerror}.")
            tokens = json.load(file)
        for stored in tokens.values():
            secrets = "".join(stored.get(name) or "" for name in ("access_token", "refresh_token"))
            if not re.fullmatch("[!-~]*", secrets) or not isinstance(
                    stored.get("expires_at_seconds") or 0, (int, float)):
                raise ValueError
    except FileNotFoundError:
        return {}
    except MALFORMED:
        raise UserError(f"{path} does not hold tokens. Remove it and log in again: globus-login.py")
    return tokens


def store_tokens(by_resource_server):
    """Merge new tokens into the token file, which at every moment is whole and yours alone; if
    there are none, only see that this can be done."""
    new = new_name(os.path.realpath(token_file()))
    with token_lock():
        tokens = read_tokens()
        for server, fresh in by_resource_server.items():  # which may leave out the refresh token
            fresh = {name: value for name, value in fresh.items() if value is not None}
            tokens[server] = {**tokens.get(server, {}), **fresh}
        try:
            with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w",
                      encoding="utf-8") as file:
                json.dump(tokens, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            if by_resource_server:
                os.replace(new, os.path.realpath(token_file()))
        finally:
            remove_if_there(new)


@contextlib.contextmanager
def token_lock():
    """One writer at a time, so that a merge loses nothing. What killed writers left is removed."""
    with open(os.open(token_file() + ".lock", os.O_CREAT | os.O_WRONLY, 0o600), "w") as lock:
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
            for path in unfinished_token_files():
                remove_if_there(path)
        yield


def unfinished_token_files():
    """What killed writers have left beside the token file."""
    return glob.glob(glob.escape(os.path.realpath(token_file())) + ".new*")


def remove_if_there(path):
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def make_client(kind, timeout, **options):
    """A client of globus-sdk, with a timeout in seconds. Raises UserError (exit status 2) if a
    variable in the environment that globus-sdk reads is not valid."""
    try:
        client = kind(app_name="globus-download", **options)
    except ValueError as error:
        raise UserError(f"A GLOBUS_SDK_ variable in the environment is not valid: {error}", 2)
    client.transport.http_timeout = timeout
    # Once, in silence; then retry() goes on. Version 4 has a retry_config beside the transport.
    (getattr(client, "retry_config", None) or client.transport).max_retries = 1
    return client


def auth_client():
    """The client for Globus Auth."""
    return make_client(globus_sdk.NativeAppAuthClient, 60, client_id=CLIENT_ID)


def transfer_client():
    """A TransferClient with the stored tokens, renewed when they expire. Raises UserError if there
    are none."""
    return make_client(globus_sdk.TransferClient, HTTP_TIMEOUT, authorizer=StoredTokenAuthorizer())


def transfer_tokens():
    """The stored tokens for Globus Transfer. Raises UserError if there are none."""
    if unfinished_token_files():
        with contextlib.suppress(OSError), token_lock():
            pass  # which removes them, unless their writer is still at work
    tokens = read_tokens().get(TRANSFER, {})
    if not tokens.get("refresh_token"):
        raise LoginNeeded(
            f"You are not logged in to Globus: there is no login in {token_file()}. Run "
            "globus-login.py first; or, if you have, set TOKEN_FILE in config.py to a path on a "
            f"disk that {os.uname().nodename} can see.")
    return tokens


class StoredTokenAuthorizer(GlobusAuthorizer):
    """Shows Globus the stored access token, and renews it when it has expired or was refused, if
    nobody else has. RefreshTokenAuthorizer would cling to the login that it began with, and loads
    so much code that a job would spend a third of its start on it."""

    def __init__(self):
        self.tokens = transfer_tokens()

    def is_valid(self):
        """True if there is an access token that is good for a minute yet."""
        return self.tokens.get("access_token") and (
            time.time() < (self.tokens.get("expires_at_seconds") or 0) - 60)

    def get_authorization_header(self):
        if not self.is_valid():
            self.renew()
        return "Bearer " + self.tokens["access_token"]

    def handle_missing_authorization(self):
        self.tokens["expires_at_seconds"] = 0
        return True  # with another token

    def renew(self):
        """Take the token of another process, or of a later login; if there is none, get a new one,
        and store it unless the user has logged out, or in again, meanwhile."""
        old = self.tokens.get("access_token")
        with contextlib.suppress(OSError, UserError):  # a home folder out of reach for a moment
            self.tokens = transfer_tokens()
        if self.is_valid() and self.tokens["access_token"] != old:
            return
        login = self.tokens["refresh_token"]
        new = auth_client().oauth2_refresh_token(login).by_resource_server[TRANSFER]
        self.tokens = dict(new, refresh_token=new.get("refresh_token") or login)
        try:
            if read_tokens().get(TRANSFER, {}).get("refresh_token") == login:
                store_tokens({TRANSFER: new})
        except (OSError, UserError) as error:
            log(f"The renewed tokens cannot be stored in {token_file()}: {error}")


# ---- asking Globus ----


class Transient(Exception):
    """A temporary failure of Globus or of the network: the same request may succeed later."""

    def __init__(self, reason, seconds=0):
        super().__init__(reason)
        self.seconds = seconds  # that Globus asks for before the next try


def attempt(call, *arguments, required=None, **options):
    """The answer of a call to Globus, which has the required fields, {name: type}. Raises Transient
    where asking again later may help, and otherwise the error."""
    for refusals in range(MOST_REFUSALS + 1):
        try:
            with report_silence():
                answer = call(*arguments, **options)
            validate(answer, required or {})
            return answer
        except (GlobusAPIError, NetworkError) as error:
            # With a tried error before it, a 401 keeps globus-sdk from renewing the access token;
            # and the one that another process has stored may be refused as well.
            if (isinstance(error, GlobusAPIError) and is_token_refused(error)
                    and refusals < MOST_REFUSALS):
                call.__self__.authorizer.handle_missing_authorization()
                continue
            if not is_transient(error):
                raise
            at = f", at {options['path']}" if options.get("path") else ""
            wanted = str((getattr(error, "headers", None) or {}).get("Retry-After"))
            raise Transient(describe_error(error) + at,
                            min(int(wanted), 600) if wanted.isdecimal() else 0) from None
        except MALFORMED as error:
            raise Transient(f"Globus sent an unexpected answer ({type(error).__name__})") from None


def retry(call, *arguments, **options):
    """The same, tried again for as long as it takes. Raises what trying again cannot fix."""
    return keep_trying(attempt, call, *arguments, **options)


def keep_trying(function, *arguments, **options):
    """What the function returns once it does not raise Transient any more; says so."""
    reported = None
    for pause in backoff(2, 60):
        try:
            answer = function(*arguments, **options)
        except Transient as trouble:
            key = re.sub(r"\(.*\)", "", str(trouble))  # the request id is always another
            if key != reported:
                report_waiting(f"{trouble}. Trying again until it works.")
                reported = key
                TOLD.outages += 1
            time.sleep(max(pause, trouble.seconds))
        else:
            if reported:
                report_resumed()
            return answer


def try_once(call, *arguments, **options):
    """The answer of a call that only brings words for the person, {} if there is none."""
    try:
        return attempt(call, *arguments, **options)
    except (GlobusError, Transient):
        return {}


def validate(document, required):
    """Raise ValueError unless the document has these fields, {name: type or UUID}; a list is one of
    documents."""
    for name, kind in required.items():
        value = document.get(name)
        if not (is_uuid(value) if kind is UUID else isinstance(value, kind)):
            raise ValueError(f"{name} is {value!r:.50}")
        if kind is list and not set(map(type, value)) <= {dict}:
            raise ValueError(f"{name} does not hold documents")


def get_number(document, name):
    """A number in one of Globus's documents; 0 if there is none."""
    value = document.get(name)
    return value if isinstance(value, (int, float)) else 0


def get_text(document, name):
    """A text of one of Globus's documents as one readable line; empty if there is none."""
    text = document.get(name)
    return first_line(text) if text and isinstance(text, str) else ""


@contextlib.contextmanager
def report_silence():
    """Say so when an answer takes long."""
    def report(number, frame):
        log(f"Waiting: no answer from Globus in {SILENCE} s. A long listing may take minutes.")

    signal.signal(signal.SIGALRM, report)
    signal.setitimer(signal.ITIMER_REAL, SILENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def is_transient(error):
    """True for an error that may disappear when the request is repeated."""
    if isinstance(error, NetworkError):
        # requests says by a ValueError that a proxy, or an address, is set wrongly.
        return not isinstance(error.underlying_exception, ValueError)
    if not error_code(error):
        return error.http_status != 413  # which says that the request is too large
    if re.search("GCDisconnected|TooManyPendingJobs|OperationPaused", error_code(error)):
        return True
    # 502 tells also of the collection's own server; some of that is final.
    return (error.http_status in (408, 429, 500, 502, 503, 504)
            and not reauth_reason(error) and not PERMANENT.search(all_of_message(error)))


def backoff(first, longest, growth=1.5):
    """Seconds to wait between tries: first, then longer and longer."""
    while True:
        yield first
        first = min(first * growth, longest)


# ---- collections and listings ----


def find_collections(client, config):
    """The endpoint documents of source and destination, {setting's name: document}. Raises
    UserError, which names the setting, if one is none that can be used."""
    documents = {}
    for name in ("SOURCE_ENDPOINT_ID", "DESTINATION_ENDPOINT_ID"):
        try:
            document = retry(client.get_endpoint, getattr(config, name),
                             required={"DATA_TYPE": str})
        except GlobusAPIError as error:
            require(config, name, error.http_status not in (404, 410),
                    "is not a collection that Globus knows.\n" + describe_error(error))
            raise
        require(config, name, document.get("non_functional") is not True,
                f"is {title_of(document)}, an endpoint, which holds no files itself. Take the UUID "
                "of one of its\ncollections, from https://app.globus.org/collections")
        documents[name] = document
    return documents


def choose_verification(config, documents):
    """Set config.VERIFY_CHECKSUM, by what both collections allow. Raises UserError if one demands
    what the other one forbids."""
    forbid, demand = (
        [title_of(document) for document in documents.values() if document.get(field) is True]
        for field in ("disable_verify", "force_verify"))
    config.VERIFY_CHECKSUM = not forbid
    if forbid and demand:
        raise UserError(f"{demand[0]} demands that checksums are compared (force_verify), and "
                        f"{forbid[0]} allows none (disable_verify).\nNothing can be transferred "
                        "until the administrator of one changes that.")
    if forbid:
        log(f"{forbid[0]} allows no checksums (disable_verify): what has arrived is known by size "
            "and time only.")


def title_of(document):
    """The name of a collection, from its document."""
    return get_text(document, "display_name") or "a collection without a name"


def check_collections(client, config):
    """See that both collections exist and are up; their endpoint documents.

    Raises UserError, which names the setting or says how to start Globus Connect Personal."""
    documents = find_collections(client, config)
    for name, document in documents.items():
        where = f"{title_of(document)} ({name}, {getattr(config, name)})"
        trouble = gcp_trouble(document)
        if trouble:
            owner = document if name == "SOURCE_ENDPOINT_ID" else None
            raise UserError(f"{where}:\n{ERRORS[trouble][0]}; {gcp_advice(trouble, owner)}")
        if document.get("high_assurance"):
            minutes = document.get("authentication_timeout_mins") or "few"
            log(f"High-assurance collection: {where}.\nIt requires you to re-authenticate every "
                f"{minutes} minutes; run globus-login.py again when it does.")
    choose_verification(config, documents)
    return documents


def gcp_trouble(document):
    """The code for why a Globus Connect Personal is not up, from its document; None if it is, or if
    the collection is something else."""
    if document.get("gcp_connected") is False:
        return "GC_NOT_CONNECTED"
    return "GC_PAUSED" if document.get("gcp_paused") else None


def gcp_advice(code, source):
    """What to do about a Globus Connect Personal. source: the document of the source collection, if
    it is that one, which its owner has to fix; or None."""
    if source is None:
        return GCP[code]
    owner = get_text(source, "owner_string") or get_text(source, "contact_email")
    return (f"it is the source, {title_of(source)}, whose owner"
            f"{', ' + owner + ',' if owner else ''} has to start it")


def check_destination(client, config):
    """True if DESTINATION_PATH is there; a download would make it. Raises UserError if the
    collection does not show it, or shows no directory."""
    try:
        entry = retry(client.operation_stat, config.DESTINATION_ENDPOINT_ID,
                      path=globus_path(config.DESTINATION_PATH), required={"type": str})
    except GlobusAPIError as error:
        if error.http_status == 404:
            return False
        refuse_access(client, config.DESTINATION_ENDPOINT_ID, error,
                      f"You may not use DESTINATION_PATH = {config.DESTINATION_PATH!r}.")
        raise
    require(config, "DESTINATION_PATH", entry["type"] != "file", "is a file there")
    return True


def refuse_access(client, collection, error, text):
    """Raise UserError if a collection refuses a folder to the identity that is logged in: the text,
    and what to change, or who that is and who may."""
    refusal = re.search("LoginFailed|PermissionDenied|Path not allowed", all_of_message(error))
    if not refusal or reauth_reason(error):
        return
    kind = get_text(try_once(client.get_endpoint, collection), "entity_type")
    if kind.startswith("GCP") and refusal.group() != "LoginFailed":
        advice = ("Globus Connect Personal shows only your home folder: add this one to "
                  "~/.globusonline/lta/config-paths, and start it again.")
    else:
        found = try_once(client.endpoint_search, filter_scope="my-endpoints", limit=1,
                         required={"DATA": list}).get("DATA")
        me = get_text(found[0], "owner_string") if found else (
            "the identity on app.globus.org/settings")
        domains = re.search(r'"allowed_domains": *\[([^]]+)\]', all_of_message(error))
        advice = (f"You are logged in as {me}. Log in with an identity"
                  f"{' of ' + domains.group(1) if domains else ''} that has access, or ask the "
                  "collection's administrator.")
    raise UserError(f"{text} {advice}\n{describe_error(error)}")


class Files:
    """A queue of Files, open at both ends, for a million of them in little memory: those in the
    middle are compressed by the thousand."""

    def __init__(self):
        self.first, self.middle, self.last, self.count = deque(), deque(), deque(), 0

    def __len__(self):
        return self.count

    def append(self, file):
        self.last.append(tuple(file))
        self.count += 1
        if len(self.last) >= 2000:
            block = [self.last.popleft() for _ in range(1000)]
            self.middle.append(zlib.compress(marshal.dumps(block), 1))

    def appendleft(self, file):
        self.first.appendleft(tuple(file))
        self.count += 1

    def popleft(self):
        return self.take(self.first, self.last, deque.popleft)

    def pop(self):
        return self.take(self.last, self.first, deque.pop)

    def take(self, near, far, pop):
        """The File at one end: from that end's part, the next block, or what the other end has."""
        if not near and self.middle:
            near.extend(marshal.loads(zlib.decompress(pop(self.middle))))
        elif not near:
            near.extend(far)
            far.clear()
        self.count -= 1
        return File(*pop(near))


def list_files(client, config):
    """Yield a File for each file in PATH, and below it if RECURSIVE; a name or a subdirectory that
    cannot be used is one with a reason in `refused`. Raises UserError if PATH is no directory."""
    folders, left_out, is_empty = [""], [], True
    while folders:
        folder = folders.pop()
        try:
            entries, repeated = read_folder(client, config, folder)
        except (GlobusAPIError, UserError) as error:
            if not folder or isinstance(error, GlobusAPIError) and reauth_reason(error):
                raise
            yield File(folder, 0, None, "cannot be listed: " + describe_error(error))
            continue
        found = []
        while entries:
            (path, size, modified, (refused, kind, is_link)) = entries.popleft()
            file = File(path, size, modified, refused)
            is_empty = False
            if kind == "file" or not isinstance(kind, str):
                yield file if path not in repeated else file._replace(
                    refused="is listed more than once, or is a folder's name, too")
            elif kind != "dir":
                left_out.append(f"{first_line(path)} ({first_line(kind)})")
            elif refused:
                yield file
            elif is_link:  # as in Globus's own recursion: it could go round for ever
                left_out.append(f"{first_line(path)} (a link to a directory)")
            else:
                found.append(path + "/")
        folders.extend(reversed(list(dict.fromkeys(found))))
    if is_empty and not config.RECURSIVE:
        log(f"{config.PATH} holds no files. Are they in directories below it? (RECURSIVE = True)")
    if left_out:
        log("Skipped, neither file nor directory: " + ", ".join(left_out[:5])
            + (f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""))


def read_folder(client, config, folder):
    """The entries of one folder, as Files whose `refused` holds reason, type, and whether it is a
    link; and the paths that are there more than once."""
    entries, hashes = Files(), array.array("q")
    for entry in list_directory(client, config, folder):
        kind = entry.get("type")
        if config.RECURSIVE or kind != "dir":
            file = parse_entry(folder, entry)
            hashes.append(hash(file.path))
            kind = kind if isinstance(kind, str) else None
            entries.append(file._replace(
                refused=(file.refused, kind, entry.get("link_target") is not None)))
    hashes = sorted(hashes)
    twice = {one for one, other in zip(hashes, hashes[1:]) if one == other}
    repeated, seen = set(), set()
    for _ in range(len(entries) if twice else 0):
        file = entries.popleft()
        entries.append(file)
        if hash(file.path) in twice:
            repeated.update({file.path} & seen)
            seen.add(file.path)
    return entries, repeated


def parse_entry(folder, entry):
    """An entry of a listing as a File."""
    name, size, modified = entry.get("name"), entry.get("size"), entry.get("last_modified")
    name = local_path(name) if isinstance(name, str) else name
    refused = name_problem(name)
    if not refused and "/" in name:
        refused = "holds a slash"
    if not refused and not isinstance(entry.get("type"), str):
        refused = "has no type"
    if not isinstance(size, int) or size < 0:
        size, refused = 0, refused or (None if entry.get("type") == "dir" else "has no size")
    return File(folder + str(name), size, modified if isinstance(modified, str) else "", refused)


def list_directory(client, config, folder=""):
    """Yield the entries of PATH, or of a folder below it, as dicts. One request brings at most
    100,000, and `total` says how many there are. Raises UserError if something is wrong with PATH
    itself."""
    path, seen, total, query = join(config.PATH, folder), 0, None, {"fields": FIELDS}
    while total is None or seen < total:
        query["offset"] = seen
        try:
            answer = keep_trying(list_once, client, config, folder, query, time.monotonic())
        except GlobusAPIError as error:
            if error.http_status == 400 and query.pop("fields", None):
                continue  # without the fields that it does not know
            if not folder:
                code = error_code(error)
                require(config, "PATH", "NotDirectory" not in code, "is a file, not a directory.")
                require(config, "PATH", error.http_status != 404,
                        "is not on the source collection.\n" + describe_error(error))
                refuse_access(client, config.SOURCE_ENDPOINT_ID, error,
                              f"You may not read PATH = {config.PATH!r}.")
            raise
        if "fields" in query and any(
                entry.get("name") is None or entry.get("type") is None for entry in answer["DATA"]):
            del query["fields"]  # nor these
            continue
        yield from answer["DATA"]
        here, was, total = len(answer["DATA"]), total, answer.get("total")
        del answer  # before the next one comes: it may be large
        seen += here
        if not isinstance(total, int):  # then a full page may be followed by another one
            total = None if here == MOST_ENTRIES else seen
        elif not here and seen < total:
            raise UserError(f"The listing of {path} is incomplete: {seen} of {total} entries. "
                            "Try again.")
        elif was not in (None, total):
            log(f"{path} changed while it was listed; start again later for what may be missing.")


def list_once(client, config, folder, query, since):
    """A page of a folder's listing. Raises Transient if it may come later, and UserError if this
    folder alone, while PATH can be listed, has not come for FOLDER_SECONDS."""
    def ls(call, path, query):
        return call(client.operation_ls, config.SOURCE_ENDPOINT_ID, path=globus_path(path),
                    query_params=query, required={"DATA": list})

    is_late = folder and time.monotonic() > since + FOLDER_SECONDS
    is_alone = is_late and ls(try_once, config.PATH, {"limit": 1})
    try:
        return ls(attempt, join(config.PATH, folder), query)
    except Transient as trouble:
        if is_alone:
            raise UserError(str(trouble)) from None
        raise


def stat_file(client, collection, path):
    """The File with that path on a collection. Raises UserError, whose text begins with a verb, if
    there is none, or none of a known size."""
    try:
        entry = retry(client.operation_stat, collection, path=globus_path(path),
                      required={"type": str})
    except GlobusAPIError as error:
        if error.http_status != 404:
            raise
        raise UserError(f"is not on the source collection. {describe_error(error)}")
    if entry["type"] != "file":
        raise UserError(f"is not a file ({get_text(entry, 'type')})")
    if not isinstance(entry.get("size"), int):
        raise UserError("has no size in the listing")
    return File(path, entry["size"], entry.get("last_modified"), None)


# ---- transfer tasks ----


def build_transfer(config, submission_id, label, place, paths, **options):
    """A request to transfer files, given as paths in a Place. With its submission id it is safe to
    send again: Globus makes one task of it."""
    request = globus_sdk.TransferData(
        source_endpoint=config.SOURCE_ENDPOINT_ID,
        destination_endpoint=config.DESTINATION_ENDPOINT_ID, submission_id=submission_id,
        label=task_label(label, place.destination), verify_checksum=config.VERIFY_CHECKSUM,
        sync_level="checksum" if config.VERIFY_CHECKSUM else "mtime",
        skip_source_errors=True,  # one unreadable file does not hold up the others
        **options)
    source, destination = join(place.source, ""), join(place.destination, "")
    for path in paths:
        request.add_item(globus_path(source + path), globus_path(destination + path),
                         recursive=False)
    return request


def submission_id(client):
    """A new submission id."""
    return retry(client.get_submission_id, required={"value": UUID})["value"]


def task_label(text, destination):
    """A task's label, of 128 characters at most: another one for another text or destination."""
    # Globus has refused labels for other characters than these.
    words = re.sub("[^A-Za-z0-9 ,_-]", "_", text)[:109].strip()
    return f"{words} {checksum(text)} {checksum(destination.rstrip('/'))}"


def checksum(text):
    return f"{zlib.crc32(text.encode(errors='surrogatepass')):08x}"


def submit(client, request):
    """Submit the request; the task's id."""
    return keep_trying(submit_once, client, request)


def submit_once(client, request):
    """The same, tried once. Raises Transient if it may succeed later."""
    try:
        return attempt(client.submit_transfer, request, required={"task_id": UUID})["task_id"]
    except GlobusAPIError as error:
        if error_code(error) != "Conflict":
            raise
    task_id = find_duplicate_task(client, request)
    if not task_id:
        raise Transient("another transfer task of yours has the same paths")
    return task_id


def find_duplicate_task(client, request, ask=retry):
    """The id of an unfinished task with this request's label and collections, or None. ask: see
    unfinished_tasks()."""
    wanted = request["label"], request["source_endpoint"], request["destination_endpoint"]
    for task in unfinished_tasks(client, ask):
        found = tuple(map(task.get, ("label", "source_endpoint_id", "destination_endpoint_id")))
        if found == wanted and is_uuid(task.get("task_id")):
            log(f"Globus already has this transfer, as task {task['task_id']}.")
            return task["task_id"]
    return None


def unfinished_tasks(client, ask):
    """The documents of the user's unfinished tasks, of which Globus allows a hundred. With
    ask=try_once none if it does not answer at once."""
    found = ask(client.task_list, limit=200, filter="status:ACTIVE,INACTIVE",
                required={"DATA": list}).get("DATA", [])
    return [task for task in found if task.get("status") not in ENDED]


def wait_for_task(client, task_id, progress):
    """The task document, once the task has ended, and why it failed, None if it SUCCEEDED.
    progress(task, reason) is called at each look. Why a task does not move is told when it
    changes; one that cannot succeed is cancelled."""
    reported, before, cause, cancelled = None, None, None, None
    is_fatal, since, pause = stall_detector(), (None, time.monotonic()), SOONEST_POLL / 2
    while True:
        time.sleep(pause)
        outages = TOLD.outages
        task = retry(client.get_task, task_id, required=TASK)
        reported = reported if outages == TOLD.outages else None  # "Resumed." was said since
        if task["status"] in ENDED:
            failure = failure_reason(client, task)
            if reported and not failure:
                report_resumed()
            return task, CANCELLED + cause if cause and failure else failure
        reason = waiting_reason(task)
        if cause:
            reason = NOT_ENDED if time.monotonic() > cancelled + CANCEL_SECONDS else reported
        if reason and reason != reported:
            detail = "" if cause else status_detail(client, task_id, task)
            report_waiting(f"{reason}{detail}  (task {task_id})")
            reported, trouble = reason, get_text(task, "nice_status")
            before = work_done(task, trouble)
        elif reported and not reason and work_done(task, trouble) != before:
            report_resumed()
            reported = None
        progress(task, reason)
        if not cause and is_fatal(task):
            cause = failure_reason(client, task)
            retry(client.cancel_task, task_id)
            cancelled, since = time.monotonic(), (None, time.monotonic())
        is_queued = get_text(task, "nice_status") == "Queued"
        if since[0] != is_queued:
            since = is_queued, time.monotonic()
        pause = next_pause(is_queued, time.monotonic() - since[1])


def next_pause(is_queued, seconds):
    """Seconds to the next look at a task that has been like this for so long. Only three are not
    queued; a hundred that are have to share the 20 requests a second that Globus allows."""
    least, share, most = (1, 0.25, 10) if is_queued else (SOONEST_POLL, 0.05, SLOWEST_POLL)
    return min(max(least, share * seconds), most)


def files_done(task):
    """How many files of a task are done: transferred or skipped."""
    return get_number(task, "files_transferred") + get_number(task, "files_skipped")


def work_done(task, status):
    """What changes as a task with that trouble moves; bytes that are sent again do not count."""
    is_resent = status in RETRANSMITTING
    return files_done(task), None if is_resent else get_number(task, "bytes_transferred")


def stall_detector():
    """A function that is True of a task document once the task can't succeed any more."""
    stuck, since, faults_before = None, None, None

    def is_fatal(task):
        nonlocal stuck, since, faults_before
        status, now, faults = (get_text(task, "nice_status"), time.monotonic(),
                               get_number(task, "faults"))
        if status in ("", "OK", "Queued"):  # Globus tries again just now, or will
            return False
        now_stuck = MISMATCHES if status in MISMATCHES else status, work_done(task, status)
        if now_stuck != stuck:  # the time with another trouble does not count
            stuck, since, faults_before = now_stuck, now, faults
        if status in MISMATCHES:
            return faults - faults_before >= FATAL_CHECKSUMS
        seconds = ERRORS.get(status, UNKNOWN)[1]
        # A task that waits for its turn shows its last trouble for a while.
        return seconds is not None and now - since >= (
            seconds if faults > faults_before else STALE_STATUS_SECONDS)

    return is_fatal


def waiting_reason(task):
    """A few words on why an unfinished task does not move; None if it does."""
    status = get_text(task, "nice_status")
    if task.get("is_paused"):
        status = "PAUSED"
    elif task["status"] == "INACTIVE" and status in ("", "OK"):
        status = "INACTIVE"
    if status in ("", "OK"):
        return None
    description = get_text(task, "nice_status_short_description") or "Globus gives no reason"
    return ERRORS.get(status, UNKNOWN)[0] or f"{description} ({status}), Globus keeps trying"


def status_detail(client, task_id, task):
    """What follows the reason for which a task waits: the administrator's message, the file that
    it failed on, whose turn it is, and when it is given up."""
    said, status = "", get_text(task, "nice_status")
    if task.get("is_paused"):
        info = try_once(client.task_pause_info, task_id, required={"pause_rules": list})
        said = join_texts(", ", *(get_text(info, f"{side}_pause_message{kind}")
                                  for side in ("source", "destination") for kind in ("", "_share")),
                          *(get_text(rule, "message") for rule in info.get("pause_rules", [])))
    elif status in GCP:
        documents = {side: try_once(client.get_endpoint, task.get(side + "_endpoint_id"))
                     for side in ("source", "destination")}
        is_source = gcp_trouble(documents["source"]) and not gcp_trouble(documents["destination"])
        return "; " + gcp_advice(status, documents["source"] if is_source else None)
    elif get_number(task, "faults") and status != "Queued":
        said = join_texts(", ", *last_error(client, task)[1:])
    seconds = ERRORS.get(status, UNKNOWN)[1]
    return (f": {said}" if said else "") + (
        f"; given up after {format_duration(seconds)} without progress" if seconds else "")


def last_error(client, task):
    """Of the event that tells best what a task has failed on, the description, the file, and which
    collection's server says what; each may be empty. The newest one with the task's own trouble
    counts, or else the newest that names a file: the end itself (CANCELED, EXPIRED) names none."""
    events = try_once(client.task_event_list, task["task_id"], limit=20, required={"DATA": list},
                      query_params={"filter": "is_error:1"}).get("DATA", [])
    told = [(event, parse_server_error(str(event.get("details")))) for event in events]
    status = get_text(task, "nice_status")
    fits = [one for one in told if get_text(one[0], "code") == status]
    event, server = next(iter(fits or [one for one in told if one[1]["file"]] or told),
                         ({}, parse_server_error("")))
    sides = [f"on the {side} collection ({server['name']})" for side in ("source", "destination")
             if server["id"] and task.get(side + "_endpoint_id") == server["id"]]
    return (get_text(event, "description"), get_text(server, "file"),
            join_texts(": ", *sides[:1], server["words"]))


def failure_reason(client, task):
    """Why a task failed, or what it failed on, in one line; None if it SUCCEEDED."""
    if task["status"] == "SUCCEEDED":
        return None
    error = task.get("fatal_error")
    error = error if isinstance(error, dict) else {}
    code = get_text(error, "code") or get_text(task, "nice_status")
    description, file, server = last_error(client, task)
    said = join_texts(
        ", ", ERRORS.get(code, UNKNOWN)[0] or get_text(error, "description")
        or get_text(task, "nice_status_short_description"),
        get_text(task, "canceled_by_admin_message"), file or description, server)
    # It no longer tries.
    return re.sub(", Globus (keeps trying|sends (it|the file) again)", "",
                  said or NO_REASON)


# ---- what has arrived ----


def outcomes(client, place, files, task):
    """{path: why} of those Files that a task which has ended did not bring, or did not prove to be
    whole; why may be TASK_FAILED or UNTOLD. Whether those of which Globus says nothing are there is
    for the caller."""
    is_success, skips = task["status"] == "SUCCEEDED", get_number(task, "subtasks_skipped_errors")
    if is_success and not skips:
        return {}
    skipped = named_files(client.task_skipped_errors, place, task, skips)
    missing = {path: skip_reason(error) for path, error in skipped.items()}
    if not is_success or len(skipped) < skips:
        count = get_number(task, "files_transferred")
        sent = named_files(client.task_successful_transfers, place, task, count)
        absent = set() if is_success else {file.path for file in missing_files(files, place.folder)}
        rest = [file.path for file in files if file.path not in missing
                and (file.path not in sent or file.path in absent)]
        why = TASK_FAILED if len(skipped) >= skips and len(sent) >= count else UNTOLD
        if is_success:
            why = NO_REASON if len(rest) == skips - len(skipped) else UNTOLD
        missing.update(dict.fromkeys(rest, why))
    return {file.path: missing[file.path] for file in files if file.path in missing}


def skip_reason(error):
    """Words on the document of a file that was left behind by a task."""
    code = get_text(error, "error_code")
    return (ERRORS.get(code, UNKNOWN)[0]
            or parse_server_error(str(error.get("error_details")))["words"]
            or code.lower().replace("_", " ") or NO_REASON)


def named_files(call, place, task, count):
    """{path: document} of the files that a list of an ended task names. As long as it names fewer
    than the task counts it is asked again for a while: too early it may be short, or an error."""
    deadline = time.monotonic() + LIST_SECONDS
    for pause in backoff(0.5, 5):
        found = dict(task_files(call, place, task))
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(pause)


def path_in(place, source, destination):
    """The path below a Place of a file that Globus calls like this, on either side; None for a
    file that is not there, or not told."""
    for path, folder in ((source, place.source), (destination, place.destination)):
        start = join(folder, "")
        if isinstance(path, str) and path.startswith(start):
            return local_path(path[len(start):])
    return None


def stuck_file(client, place, task):
    """The path of the file that a task failed on; None if it does not say."""
    file = last_error(client, task)[1]
    return path_in(place, file, file)


def task_files(call, place, task):
    """Yield path and document of each file that a list of the task names; who has no role on a
    collection is not told the path there."""
    marker = None
    while True:
        try:
            page = retry(call, task["task_id"], required={"DATA": list},
                         query_params={"marker": marker} if marker else {})
        except GlobusAPIError as error:  # then nothing is known of these files
            if reauth_reason(error):
                raise
            return
        for document in page["DATA"]:
            path = path_in(place, document.get("source_path"), document.get("destination_path"))
            if path is not None:
                yield path, document
        marker = page.get("next_marker")
        if not marker:
            return


def size_of(path):
    """A file's size in bytes, or None if it cannot be seen."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def missing_files(files, folder):
    """Those Files that are not in the folder at their size."""
    return [f for f in files if size_of(os.path.join(folder, f.path)) != f.size]


def wait_for_files(files, folder):
    """Those Files that are not in the folder at their size, even after a minute."""
    deadline = time.monotonic() + ARRIVAL_SECONDS
    for pause in backoff(0.1, 5):
        files = missing_files(files, folder)
        if not files or time.monotonic() > deadline:
            return files
        time.sleep(pause)


def missing_reason(place, file):
    """Words, beginning with a verb, on a File that Globus says has arrived, but has not."""
    here = size_of(os.path.join(place.folder, file.path))
    if here is not None:
        return (f"came with {plural(here, 'byte')}, but was listed with {file.size:,}: did it "
                "change on the source collection? Start again.")
    return (f"has arrived, says Globus, but is not in {place.folder}. Is {place.destination} the "
            "same folder, as the destination collection names it? (DOWNLOAD_DIR, DESTINATION_PATH)")


# ---- downloading files ----


def download_files(client, config, place, names):
    """By hand: {name: why} of files that have not arrived whole. Whatever ends it, no task is left
    behind."""
    files, failed = find_files(client, config, place, dict.fromkeys(names))
    empty_rounds = 0
    while files:
        request = build_request(config, submission_id(client), place, files)
        missing, failure = transfer_files(client, config, place, request, files, False)
        empty_rounds = empty_rounds + 1 if failure and len(missing) == len(files) else 0
        if empty_rounds == MOST_EMPTY_ROUNDS:  # all have the same trouble
            missing = {path: why or failure for path, why in missing.items()}
        failed.update((path, why) for path, why in missing.items() if why is not None)
        files = [file for file in files if missing.get(file.path, "") is None]
    return failed


def find_files(client, config, place, sizes):
    """The Files, and {name: why} of those that cannot be downloaded. sizes: {name: bytes as it was
    listed, or None}; such a size will do, unless there is a limit."""
    files, failed = [], {}
    for name, size in sizes.items():
        path, problem = join(place.source, name), name_problem(name)
        try:
            if problem:
                raise UserError(problem)
            file = File(name, size, None, None)
            if size is None or config.MAX_BYTES is not None:
                file = stat_file(client, config.SOURCE_ENDPOINT_ID, path)._replace(path=name)
            if config.MAX_BYTES is not None and size is not None and file.size > size:
                raise UserError(f"has grown from {size:,} to {file.size:,} bytes since it was "
                                "listed, which may exceed MAX_BYTES; the next run will process it")
            files.append(file)
        except (UserError, GlobusAPIError) as error:
            if isinstance(error, GlobusAPIError) and reauth_reason(error):
                raise
            failed[name] = describe_error(error)
    return files, failed


def build_request(config, submission, place, files):
    """The request that brings these Files."""
    label = f"batch download {plural(len(files), 'file')} from {place.source}"
    return build_transfer(
        config, submission, label if len(files) > 1 else "batch download " + files[0].path,
        place, [file.path for file in files],
        notify_on_succeeded=False, notify_on_failed=False, notify_on_inactive=False)


def transfer_files(client, config, place, request, files, is_left_running, is_new=True):
    """Submit the request for these Files, and wait: {path: why} of those that have not arrived
    whole, and why the task failed, None if it did not, or expired.

    why is None for those to be asked for again: Globus does not tell what became of them, or the
    task says nothing about them, because it was stuck at another file, or expired, or was cancelled
    before it was taken over, or what it brought is not there any more.

    is_left_running: a task that this script does not see the end of goes on, to be taken over;
    is_new: False for one that is being taken over."""
    try:
        task, failure = run_task(client, request, is_left_running, is_new)
    except GlobusAPIError as error:  # of several files, who knows which one it is about?
        if reauth_reason(error) or not is_left_running or len(request["DATA"]) > 1:
            raise
        return {files[0].path: describe_error(error)}, None
    missing = outcomes(client, place, files, task)
    code = get_text(task.get("fatal_error") or {}, "code")
    if code == "EXPIRED":
        log(f"The transfer task {task['task_id']} expired; it is submitted again.")
    is_verdict = code != "EXPIRED" and (code != "CANCELED" or is_new)  # not somebody's cancel
    is_stuck = (failure or "").startswith(CANCELLED) and len(request["DATA"]) > 1
    stuck = stuck_file(client, place, task) if is_stuck else None
    for path, why in missing.items():
        if why == TASK_FAILED:
            is_its = is_verdict and (not is_stuck or path == stuck)
            missing[path] = without_names(failure, place, path) if is_its else None
        elif why == UNTOLD:
            missing[path] = None
    sent = [file for file in files if file.path not in missing]
    for path, why in unfit_files(client, config, place, sent, task).items():
        missing[path] = why if is_new else None
    if not failure and None in missing.values() and is_new:
        failure = UNTOLD
    return missing, None if code == "EXPIRED" else failure


def without_names(words, place, path):
    """Why a task failed, without the names of a file that is named already."""
    for folder in (place.source, place.destination):
        words = re.sub(rf", {re.escape(join(folder, globus_path(path)))}(?=,|$)", "", words)
    return words


def unfit_files(client, config, place, files, task):
    """{path: why} of those Files that a task says it has brought, and that are not here at the size
    that was listed. It may have changed since. Or it is no real size, as of a document that the
    source exports: then what Globus has compared, and sees at the destination, is the file."""
    unfit, fit = {}, []
    for file in wait_for_files(files, place.folder):
        unfit[file.path] = missing_reason(place, file)
        here = size_of(os.path.join(place.folder, file.path))
        with contextlib.suppress(UserError, GlobusAPIError):
            source, destination = (
                stat_file(client, collection, join(folder, file.path)).size for collection, folder
                in ((config.SOURCE_ENDPOINT_ID, place.source),
                    (config.DESTINATION_ENDPOINT_ID, place.destination)))
            # A limit is reckoned with the size that was listed.
            may_be = source == file.size or source == here and config.MAX_BYTES is None
            if here == destination and may_be and task.get("verify_checksum") is True:
                del unfit[file.path]
                fit.append(file.path)
    if fit:
        log(f"{plural(len(fit), 'file')} came with another size than was listed, such as {fit[0]}; "
            "Globus has compared the checksums.")
    return unfit


def run_task(client, request, is_left_running, is_new):
    """The document of the request's task, at its end, and why it failed or None. An error that
    trying again cannot fix leaves no task behind; nor does anything else, unless
    it is_left_running."""
    task_id = None
    try:
        task_id = submit(client, request)
        return wait_for_task(client, task_id, lambda task, reason: None)
    except BaseException as error:
        is_final = isinstance(error, GlobusAPIError) and not reauth_reason(error)
        if is_final and task_id and not is_new and error.http_status in (403, 404):
            raise LoginNeeded(  # it may be at work, and cannot be cancelled
                "The transfer that is under way is not to be seen with this login; log in as "
                f"whoever began it: globus-login.py. {describe_error(error)}") from None
        if is_final and task_id is None:  # refused; but an earlier try may have been accepted
            task_id = find_duplicate_task(client, request, try_once)
        is_refused = task_id is None and isinstance(error, GlobusAPIError)
        if (is_final or not is_left_running) and not is_refused:
            stop_task(client, request, task_id)
        raise


def stop_task(client, request, task_id):
    """Cancel the task. Outages are waited out, but not for longer than STOP_SECONDS: the scheduler
    soon kills this script."""
    deadline, is_accepted, reported = time.monotonic() + STOP_SECONDS, False, None
    client.transport.http_timeout = 30  # Globus's documentation allows a cancel 10 s
    for pause in backoff(0.25, 5):
        try:
            # Stopped in the middle of submitting: the same request again tells the task's id.
            task_id = task_id or client.submit_transfer(request)["task_id"]
            is_accepted = is_accepted or client.cancel_task(task_id) is not None
            status = client.get_task(task_id)["status"]
            if status in ENDED:
                break
            reason, may_wait = NOT_ENDED, True
        except (GlobusError, UserError, *MALFORMED, OSError) as error:
            reason = describe_error(error)
            may_wait = not isinstance(error, GlobusAPIError) or (
                is_transient(error) if task_id else not error_code(error))
        if not may_wait or time.monotonic() > deadline:
            task = f"the transfer task {task_id}" if task_id else "a task, if there is one,"
            log(f"Stopped, but {task} could not be cancelled: {reason}\n"
                "See https://app.globus.org/activity")
            return
        if reason != reported and time.monotonic() > deadline - STOP_SECONDS + CANCEL_SECONDS:
            log(f"Cancelling the transfer task {task_id}: {reason}.")
            reported = reason
        time.sleep(pause)
    log(f"Stopped; the transfer task {task_id} "
        + ("had succeeded." if status == "SUCCEEDED" else "is cancelled."))


# ---- packs ----

# A pack's files, in its folder in WORKING_DIR/jobs/:
#   files          a line each: size, date and path, with tabs between; its number is its index
#   settings.json  of the driver, at the last submission or download
#   moved          indices of files that came from the folder of an earlier pack
#   submission.N   the Nth transfer: submission id, and what it carries; written before its use
#   arrived        indices of the files that have arrived, processed ones too; appears when all that
#                  can arrive has, and goes if one of them has to be sent again
#   results.*      lines `INDEX STATUS [WORDS]`, a file for each writer; 0 = processed
#   waiting        for what the download waits
#   wrapper.sh     the job; process.sh: as it was when the job began
#   log            what the last job said; INDEX.log: what process.sh said of one file
#   download.log   what the driver's downloads of it said (DOWNLOAD_BY = 'driver')
# and the token of each attempt, see globus-batch-download.py.

NEEDS_LOGIN = 3  # exit status of a pack's download
RESULT = re.compile(r"(?ma)^(\d{1,9}) (\d{1,9})(?: (.*))?\n")  # a whole line


def new_name(path):
    """A name beside a file, of this process, for what is to take its place."""
    return f"{path}.new-{os.uname().nodename}-{os.getpid()}"


def write_whole(path, text):
    """Write a file so that it appears whole."""
    new = new_name(path)
    with open(new, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.replace(new, path)


def read_text(path):
    """The text of a file; None if there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return file.read()
    except FileNotFoundError:
        return None


def read_lines(path):
    """The whole lines of a file; [] if there is none."""
    return (read_text(path) or "").split("\n")[:-1]


def write_pack(folder, files, moved):
    """Write down what a pack consists of."""
    os.makedirs(folder, exist_ok=True)
    write_whole(os.path.join(folder, "moved"), "".join(f"{index}\n" for index in moved))
    write_whole(os.path.join(folder, "files"), "".join(
        f"{file.size}\t{CONTROL.sub('', file.last_modified or '')}\t{file.path}\n"
        for file in files))


def read_pack(folder):
    """The Files of a pack."""
    fields = (line.split("\t", 2) for line in read_lines(os.path.join(folder, "files")))
    return [File(path, int(size), modified, None) for size, modified, path in fields]


def read_indices(folder, name):
    """The indices that one of a pack's files lists, a set."""
    return {int(line) for line in read_lines(os.path.join(folder, name)) if line.isdecimal()}


def read_results(folder, names=None):
    """{index: (exit status, words, name of the writer)} of a pack's files. Of several results a
    success counts, then the first one."""
    results = {}
    for name in sorted(names if names is not None else os.listdir(folder)):
        if not name.startswith("results."):
            continue
        for index, status, words in RESULT.findall(read_text(os.path.join(folder, name)) or ""):
            if status == "0" or int(index) not in results:
                results[int(index)] = (int(status), words, name[len("results."):])
    return results


def add_result(folder, writer, index, status, words=""):
    """Write the result of one file."""
    # On a new line, whatever a full disk has left of the last one.
    line = "\n" + " ".join([str(index), str(status), *words.split()]) + "\n"
    with open(os.path.join(folder, "results." + writer), "ab") as file:
        file.write(os.fsencode(line))


def pack_place(config, folder):
    """The Place of a pack: in DOWNLOAD_DIR it has a folder of its own."""
    name = os.path.basename(folder)
    return Place(config.PATH, os.path.join(config.DOWNLOAD_DIR, name),
                 join(config.DESTINATION_PATH, name))


def read_submission(folder, number):
    """The Nth transfer of a pack: its submission id, the indices of the files that it carries, and
    where it brings them; None if there is none."""
    try:
        with open(os.path.join(folder, f"submission.{number}"), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def claim_submission(folder, number, submission):
    """Write down the Nth transfer of a pack before it is used. Of two that do so at once the first
    one's counts: what is written down by now."""
    path = os.path.join(folder, f"submission.{number}")
    new = new_name(path)
    write_whole(new, json.dumps(submission))
    with contextlib.suppress(FileExistsError):
        os.link(new, path)
    os.remove(new)
    return read_submission(folder, number)


def new_submission(client, config, folder, number, wanted, to):
    """The Nth transfer of a pack, for those of the wanted files, {index: File}, that can be
    downloaded, None if that is none; and {path: why} of the others."""
    found, failed = find_files(client, config, pack_place(config, folder), {
        file.path: file.size for file in wanted.values()})
    carried = [index for index, file in wanted.items() if file.path not in failed]
    return (claim_submission(folder, number, {
        "id": submission_id(client), "files": carried, "to": to}) if found else None), failed


def pack_request(config, folder, submission, files):
    """The request of a pack's transfer."""
    return build_request(config, submission["id"], pack_place(config, folder),
                         [files[index] for index in submission["files"]])


def download_pack(config, folder):
    """Bring what a pack has left, and write down what has arrived, and why the rest has not. A
    transfer that an earlier attempt began is taken over: the same request brings the same task.
    Raises GlobusAPIError or UserError where something is wrong that is no single file's fault."""
    client, place, files = transfer_client(), pack_place(config, folder), read_pack(folder)
    TOLD.waiting_path = os.path.join(folder, "waiting")
    remove_if_there(TOLD.waiting_path)
    writer, results = f"download-{os.uname().nodename}-{os.getpid()}", read_results(folder)
    left = {index: file for index, file in enumerate(files) if index not in results}
    moved, empty_rounds = read_indices(folder, "moved"), 0
    # What a job has worked on had arrived before, in an earlier download.
    arrived = {index for index, (_, _, author) in results.items()
               if author != "driver" and not author.startswith("download-")}
    to = [config.DESTINATION_ENDPOINT_ID, place.destination]
    for number in itertools.count(1):
        submission, failed = read_submission(folder, number), {}
        is_new = submission is None
        if is_new:
            arrived.update(index for index in moved.intersection(left)
                           if not missing_files([files[index]], place.folder))
            wanted = {index: file for index, file in left.items() if index not in arrived}
            submission, failed = new_submission(client, config, folder, number, wanted, to)
        if submission:
            asked = {index: left[index] for index in submission["files"] if index in left}
            moved.difference_update(submission["files"])  # the transfer writes over them
            request = pack_request(config, folder, submission, files)
            missing = dict.fromkeys((file.path for file in asked.values()), None)
            if submission["to"] != to:  # DESTINATION_PATH has changed since: it is sent anew
                stop_task(client, request, None)
            elif asked:
                missing, failure = transfer_files(
                    client, config, place, request, list(asked.values()), True, is_new)
                is_empty = is_new and failure and len(missing) == len(asked)
                empty_rounds = empty_rounds + 1 if is_empty else 0
            failed.update((path, why) for path, why in missing.items() if why is not None)
            arrived.update(index for index, file in asked.items() if file.path not in missing)
        for index in [index for index, file in left.items() if file.path in failed]:
            add_result(folder, writer, index, 1, failed[left.pop(index).path])
        if not submission:
            break
        if empty_rounds == MOST_EMPTY_ROUNDS and left:  # no verdict on the others
            raise UserError(failure)
    write_whole(os.path.join(folder, "arrived"), "".join(f"{i}\n" for i in sorted(arrived)))
    remove_if_there(TOLD.waiting_path)


def pack_status(config, folder):
    """Run download_pack(); the exit status, NEEDS_LOGIN if a login is what helps."""
    try:
        download_pack(config, folder)
    except LoginNeeded as problem:
        log(str(problem))
        return NEEDS_LOGIN
    except GlobusAPIError as error:
        if not reauth_reason(error):
            raise
        log(describe_error(error))
        return NEEDS_LOGIN
    return 0


def cancel_pack(config, folder):
    """Cancel the transfers of a pack that is given up, so that they write nothing any more."""
    client, files = transfer_client(), read_pack(folder)
    for number in itertools.count(1):
        submission = read_submission(folder, number)
        if not submission:
            return
        stop_task(client, pack_request(config, folder, submission, files), None)
