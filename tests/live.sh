#!/bin/bash
# Hold what the scripts and the emulator assume of Globus against the real one:   tests/live.sh
# For a person with an account who has run globus-login.py; never part of the tests. It sends three
# files of some bytes between the tutorial collections, or between yours (--help), asks for tasks
# and cancels its own, and writes what it saw to live.json: no tokens, but names of collections.
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

make_venv "$TESTS/requirements.txt"
"$PY" "$TESTS/live.py" "$@"
