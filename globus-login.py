#!/usr/bin/env python3
"""Log in to Globus, once, by hand. The other scripts then work for 6 months after their last use.

Prints the URL of a login page, asks for the code that the page shows, and stores the tokens in
~/.wehi-globus-tokens.json, for you alone. Then looks at both collections of config.py."""
import argparse
import os
import sys

import helper


def look_at_source(client, config):
    """Print what PATH holds."""
    files = folders = size = 0
    for entry in client.operation_ls(config.SOURCE_ENDPOINT_ID, path=config.PATH)["DATA"]:
        files += entry["type"] == "file"
        folders += entry["type"] == "dir"
        size += entry["size"] if entry["type"] == "file" else 0
    print(f"Source: {config.PATH} holds {helper.count(files, 'file')} ({helper.size_text(size)}) "
          f"and {helper.count(folders, 'folder')}.")


def look_at_destination(client, config):
    """Print whether DESTINATION_PATH can be used."""
    try:
        client.operation_ls(config.DESTINATION_ENDPOINT_ID, path=config.DESTINATION_PATH, limit=1)
        print(f"Destination: {config.DESTINATION_PATH} is there.")
    except helper.GlobusAPIError as error:
        if error.http_status != 404:
            raise
        print(f"Destination: {config.DESTINATION_PATH} will be made by the first download.")


def look(config):
    """Use both collections as the other scripts will."""
    client = helper.transfer_client()
    for document in helper.check_collections(client, config):
        print("Found: " + helper.printable(str(document["display_name"])))
    look_at_source(client, config)
    look_at_destination(client, config)


def missing_consents(config):
    """Look at both collections; the scopes that one of them still wants, none when all is well."""
    try:
        look(config)
    except helper.GlobusAPIError as error:
        if not error.info.consent_required:
            raise
        return error.info.consent_required.required_scopes
    return []


def log_in(config):
    """Log in, and again while a collection wants a further consent."""
    scopes = [helper.TRANSFER_SCOPE]
    helper.log_in(scopes)
    print(f"You are logged in; the tokens are in {helper.TOKEN_FILE}.")
    for _ in range(3):
        wanted = [scope for scope in missing_consents(config) if scope not in scopes]
        if not wanted:
            return
        print("\nA collection wants one more consent of yours.")
        scopes += wanted
        helper.log_in(scopes)


def log_out():
    """Revoke the tokens and remove their file."""
    client = helper.auth_client()
    for tokens in helper.read_tokens().values():
        for kind in ("refresh_token", "access_token"):
            if tokens.get(kind):
                client.oauth2_revoke_token(tokens[kind])
    if os.path.exists(helper.TOKEN_FILE):
        os.remove(helper.TOKEN_FILE)
    print("You are logged out; no tokens are left on this machine.")


def main(argv=None):
    """Log in or out; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logout", action="store_true", help="revoke and remove the tokens")
    if parser.parse_args(argv).logout:
        log_out()
    else:
        log_in(helper.settings())
    return 0


if __name__ == "__main__":
    sys.exit(helper.run(main))
