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
import contextlib
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # without it: PYTHONSAFEPATH
import helper


def look_at_source(client, config):
    """Print what PATH holds."""
    counts, size = collections.Counter(), 0
    try:
        for entry in helper.list_directory(client, config, config.PATH):
            kind, bytes_here = str(entry.get("type")), entry.get("size")
            counts[kind] += 1
            size += bytes_here if kind == "file" and isinstance(bytes_here, int) else 0
    except helper.GlobusAPIError as error:
        helper.explain_listing_error(client, config, error)
        raise
    print(f"Source: {config.PATH} holds {helper.plural(counts['file'], 'file')} "
          f"({helper.format_bytes(size)}) and {helper.plural(counts['dir'], 'folder')}.")


def look_at_destination(client, config):
    """Print whether DESTINATION_PATH can be used."""
    is_there = helper.check_destination(client, config)
    print(f"Destination: {config.DESTINATION_PATH} "
          + ("exists." if is_there else "will be created by the first download."))


def look(config):
    """Use both collections as the other scripts will."""
    client = helper.transfer_client()
    for document in helper.check_collections(client, config):
        print("Found: " + helper.escape_control_chars(helper.get_text(document, "display_name")))
    look_at_source(client, config)
    look_at_destination(client, config)


def log_in(config):
    """Log in, and again while a collection wants a further consent or a fresh login."""
    scopes, session = [helper.TRANSFER_SCOPE], {}
    helper.log_in(scopes)
    print(f"You are logged in; the tokens are in {helper.token_file()}.")
    for times in range(5):  # two collections may want a consent and a session each
        try:
            look(config)
            return
        except helper.GlobusAPIError as error:
            more_scopes, more_session = helper.required_login(error)
            if times == 4 or not more_scopes and not more_session:
                raise
            print(f"\nOnce more: {helper.escape_control_chars(helper.reauth_reason(error))}\n")
        scopes += [scope for scope in more_scopes if scope not in scopes]
        session.update(more_session)
        helper.log_in(scopes, session)


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
    unfinished = helper.unfinished_token_files()  # of scripts that were killed
    for path in [token_file, *unfinished]:
        with contextlib.suppress(*[helper.UserError] if path in unfinished else []):
            errors += revoke(client, helper.read_tokens(path))
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
