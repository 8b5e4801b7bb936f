#!/bin/bash
# All tests, with one command:   tests/run.sh [--without-schedulers | --coverage | --soak N] [pytest's options]
# Sets up what it needs: a virtual environment in a dot-folder and, as root on Debian or Ubuntu,
# a private Slurm and a private Grid Engine. PYTHON=python3.8 tests/run.sh takes another Python.
# --soak MINUTES sends batches through weather, kills and edits, on each scheduler, by a printed seed
# (SOAK_SEED).
# KILLS=all tests/run.sh -k killed_before kills driver and jobs at each system call, not at some.
# --coverage counts which lines of the scripts run, in whatever process, without the schedulers.
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

make_venv "$TESTS/requirements.txt"
is_counted=
if [ "${1:-}" = --soak ]; then
  export SOAK_MINUTES=$2
  shift 2
  set -- -s -k as_somebody_wants "$@"
fi
if [ "${1:-}" = --coverage ]; then
  is_counted=yes
  export COLLECTION COVERAGE_PROCESS_START=$TESTS/coverage.ini COVERAGE_FILE=$SCRATCH/coverage/lines
fi
if [ "${1:-}" = --without-schedulers ] || [ "${1:-}" = --coverage ]; then
  shift
  say "LEFT OUT: the real Slurm and Grid Engine, and tests that take long; stand-ins run the jobs"
  set -- -m "not long" "$@"
else
  # It kills the driver at every step.
  command -v strace >/dev/null || { may_install && install_packages strace; } ||
    say "LEFT OUT: the kill at every system call (strace is not installed)"
  make_cli
  start_scheduler
  start_grid_engine_too
fi
say "$("$PY" --version), globus-sdk $("$PY" -m pip show globus-sdk 2>/dev/null | sed -n 's/^Version: //p')"
cd -- "$TESTS" && "$PY" -m pytest -n 10 --dist worksteal "$@" || exit

if [ -n "$is_counted" ]; then
  unset COVERAGE_PROCESS_START
  "$PY" -m coverage combine --quiet --rcfile=coverage.ini "$SCRATCH/coverage" &&
    "$PY" -m coverage report --rcfile=coverage.ini
fi
