#!/bin/bash
# All tests, with one command:   tests/run.sh [--without-schedulers] [options of pytest]
# Sets up what it needs: a virtual environment in a dot-folder and, as root on Debian or Ubuntu,
# a private Slurm and a private Grid Engine. PYTHON=python3.8 tests/run.sh takes another Python.
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

make_venv "$TESTS/requirements.txt"
if [ "${1:-}" = --without-schedulers ]; then
  shift
  say "LEFT OUT: the real Slurm and Grid Engine (--without-schedulers); stand-ins run the jobs"
else
  start_scheduler
  start_grid_engine_too
fi
say "$("$PY" --version), globus-sdk $("$PY" -m pip show globus-sdk 2>/dev/null | sed -n 's/^Version: //p')"
"$PY" -m pytest -n 4 --dist worksteal --rootdir "$TESTS" "${@:-$TESTS}"
