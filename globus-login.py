#!/usr/bin/env python3
"""Log in to Globus, once, by hand; it lasts 6 months after the last use.

Prints the URL of a login page, asks for the code that the page shows, and
stores the tokens in TOKEN_FILE (see config.py), for you alone. Then looks at
both collections of config.py.

Example:

    ./globus-login.py
"""
import argparse
import collections
import glob
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # without it: PYTHONSAFEPATH
import helper

# What a collection may want of a login (globus_sdk, NativeAppAuthClient).
SESSION = ("session_required_identities", "session_required_single_domain",
           "session_required_policies", "session_required_mfa")
MOST_CODES = 3  # that are tried for one page


def look_at_source(client, config):
    """Print what PATH holds."""
    counts, size = collections.Counter(), 0
    for entry in helper.list_directory(client, config):
        kind, bytes_here = str(entry.get("type")), entry.get("size")
        counts[kind] += 1
        size += bytes_here if kind == "file" and isinstance(bytes_here, int) else 0
    print(f"{config.PATH} holds {helper.plural(counts['file'], 'file')} "
          f"({helper.format_bytes(size)}) and {helper.plural(counts['dir'], 'folder')}.")


def look(config):
    """Use both collections as the other scripts will, and print what they hold."""
    client = helper.transfer_client()
    names = [helper.escape_control_chars(helper.get_text(document, "display_name"))
             for document in helper.check_collections(client, config).values()]
    print(f"Source: {names[0]}")
    look_at_source(client, config)
    print(f"Destination: {names[1]}")
    is_there = helper.check_destination(client, config)
    print(f"{config.DESTINATION_PATH} "
          + ("exists." if is_there else "will be created by the first download."))


def log_in(config):
    """Log in, and again while a collection wants a further consent or a fresh login."""
    scopes, session = [helper.TRANSFER_SCOPE], {}
    ask_for_code(scopes, session)
    print(f"You are logged in; the tokens are in {helper.token_file()}.")
    for times in range(5):  # two collections may want a consent and a session each
        try:
            look(config)
            return
        except helper.GlobusAPIError as error:
            more_scopes, more_session = required_login(error)
            if times == 4 or not more_scopes and not more_session:
                raise
            print(f"\nOnce more: {helper.escape_control_chars(helper.reauth_reason(error))}\n")
        scopes += [scope for scope in more_scopes if scope not in scopes]
        session.update(more_session)
        ask_for_code(scopes, session)


def required_login(error):
    """What an error of Globus wants of the next login: scopes, and the options of a session."""
    document = helper.error_document(error)
    wanted = document.get("authorization_parameters")
    wanted = wanted if isinstance(wanted, dict) else {}
    scopes = texts(document.get("required_scopes")) or texts(wanted.get("required_scopes"))
    session = {name: texts(wanted.get(name)) for name in SESSION if texts(wanted.get(name))}
    if wanted.get("session_required_mfa") is True:
        session["session_required_mfa"] = True
    if wanted and not scopes and not session or wanted.get("prompt") == "login":
        session["prompt"] = "login"
    return scopes, session


def texts(value):
    """The texts of a list, or of one text with commas; [] if it is something else."""
    value = value.split(",") if isinstance(value, str) else value
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def ask_for_code(scopes, session):
    """Show the URL of the login page, ask for the code, store the tokens (refresh tokens, which
    last 6 months after their last use). Raises UserError if there is nobody to ask."""
    try:
        os.makedirs(os.path.dirname(os.path.realpath(helper.token_file())), 0o700, exist_ok=True)
        helper.store_tokens({})
    except OSError as error:
        raise helper.UserError(f"Your login cannot be stored in {helper.token_file()}: "
                               f"{error.strerror}. Make room there, or set another TOKEN_FILE in "
                               "config.py.")
    client = helper.auth_client()
    client.oauth2_start_flow(requested_scopes=scopes, refresh_tokens=True)
    print("Open this page in a browser, log in, and copy the code that it shows:\n\n"
          f"{client.oauth2_get_authorize_url(**session)}\n")
    for _ in range(MOST_CODES):
        try:
            code = input("Code: ").strip()
            tokens = code and exchange(client, code)
        except (EOFError, RuntimeError):  # no more input, or none at all
            print()
            raise helper.UserError("No authorization code was entered. Run globus-login.py by "
                                   "hand, in a terminal.")
        except UnicodeError:
            code, tokens = "?", None
        if tokens:
            helper.store_tokens(tokens)
            return
        print("Globus did not accept this code. Copy it once more, whole." if code else
              "Nothing was entered.")
    raise helper.UserError("A code works once, for a few minutes; run globus-login.py again for a "
                           "new one.")


def exchange(client, code):
    """The tokens for a code, by resource server; None if Globus does not accept it."""
    try:
        return code.isprintable() and client.oauth2_exchange_code_for_tokens(
            code).by_resource_server
    except UnicodeError:
        return None
    except helper.MALFORMED as error:
        raise helper.UserError(
            f"Globus sent an unexpected answer ({type(error).__name__}). Try again.")
    except helper.GlobusAPIError as error:
        if error.http_status in (400, 401, 403) and helper.error_code(error) not in (
                "", *helper.CLIENT_REFUSED):
            return None
        raise


def revoke(client, by_resource_server):
    """Revoke all of these tokens; the errors that there were, such as of another client id."""
    errors = []
    for tokens in by_resource_server.values():
        for kind in ("refresh_token", "access_token"):
            try:
                if tokens.get(kind):
                    client.oauth2_revoke_token(tokens[kind])
            except helper.GlobusAPIError as error:
                errors.append(error)
    return errors


def log_out():
    """Revoke the tokens and remove their file."""
    token_file = helper.token_file()
    client, errors = helper.auth_client(), []
    # What scripts that were killed have left; older ones named it by eight more characters.
    unfinished = helper.unfinished_token_files() + glob.glob(
        glob.escape(os.path.realpath(token_file)) + "[a-z0-9_]" * 8)
    for path in [token_file, *unfinished]:
        try:
            errors += revoke(client, helper.read_tokens(path))
        except helper.UserError:  # half a file, perhaps
            if path == token_file:
                raise
    for path in [os.path.realpath(token_file), token_file, *unfinished]:
        helper.remove_if_there(path)  # it may be a link
    print("You are logged out; no tokens are left on this machine.")
    if errors:
        raise helper.UserError("Globus did not revoke all of them; do it on "
                               "app.globus.org/settings/consents. "
                               + helper.describe_error(errors[0]))


def main(argv=None):
    """Log in or out; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logout", action="store_true", help="revoke and remove the tokens")
    if parser.parse_args(argv).logout:
        log_out()
    else:
        log_in(helper.load_config())
    return 0


if __name__ == "__main__":
    sys.exit(helper.run_main(main))
