#!/bin/bash
# What run.sh and demo.sh share: a private virtual environment, and a private Slurm or its stand-in.
# To be sourced. Everything lands in dot-folders of this collection and in one temporary folder.

TESTS=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
COLLECTION=$(dirname -- "$TESTS")
SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/globus-download.XXXXXX")
trap 'leave $?' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '=== %s\n' "$*" >&2; }

leave() {
  stop_slurm
  # Slurm's daemons may still write their last line while the folder goes.
  rm -rf -- "$SCRATCH" 2>/dev/null || { sleep 1; rm -rf -- "$SCRATCH"; }
  exit "$1"
}

may_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

install_packages() {
  say "installing $* (apt-get)"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y --no-install-recommends "$@" >"$SCRATCH/apt.log" 2>&1 && return
  # A fresh machine has no package lists, or old ones.
  apt-get update >"$SCRATCH/apt.log" 2>&1
  apt-get install -y --no-install-recommends "$@" >>"$SCRATCH/apt.log" 2>&1 && return
  tail -n 5 "$SCRATCH/apt.log" >&2
  return 1
}

# Sets PY to the Python of a virtual environment that has what the requirements files name.
make_venv() {
  local python=${PYTHON:-python3} version wanted=("$COLLECTION/requirements.txt" "$@")
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    { say "no $python here: install Python 3.7 or newer"; exit 1; }
  local venv=$COLLECTION/.venv-$version stamp
  PY=$venv/bin/python
  stamp=$(cat -- "${wanted[@]}")
  for file in "$venv"/.made-for-*; do
    [ -x "$PY" ] && [ -f "$file" ] && [[ "$(cat -- "$file")" == *"$stamp"* ]] && return
  done
  say "making a virtual environment in .venv-$version"
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null && may_install; then
    install_packages python3-venv
  fi
  "$python" -m venv --clear "$venv" ||
    { say "no virtual environment: install Debian's python3-venv first"; exit 1; }
  # On Python 3.7 the pip that comes with it may need minutes to find versions that fit.
  "$PY" -m pip install --quiet --disable-pip-version-check --upgrade pip 2>"$SCRATCH/pip.log" ||
    { cat "$SCRATCH/pip.log" >&2; say "pip cannot be upgraded: is PyPI within reach?"; exit 1; }
  "$PY" -m pip install --quiet --disable-pip-version-check "${wanted[@]/#/-r}" 2>"$SCRATCH/pip.log" ||
    { cat "$SCRATCH/pip.log" >&2; say "the requirements cannot be installed"; exit 1; }
  printf '%s\n' "$stamp" >"$venv/.made-for-$#"
}

# Starts a Slurm of our own, or puts executables that run the jobs themselves in its place.
start_scheduler() {
  if ! may_install; then
    use_stand_in "it needs root on Debian or Ubuntu"
  elif ! install_slurm; then
    use_stand_in "its packages cannot be installed"
  elif ! start_slurm; then
    use_stand_in "it did not start: $(grep -h error "$SCRATCH"/slurm/*.log | tail -n 1)"
    stop_slurm
  else
    say "a private Slurm is up: $(sbatch --version)"
    export TEST_SCHEDULER=slurm
  fi
}

use_stand_in() {
  say "LEFT OUT: the real Slurm ($1); stand-ins in tests/stand-in run the jobs instead"
  export PATH="$TESTS/stand-in:$PATH" STAND_IN_DIR="$SCRATCH/stand-in" TEST_SCHEDULER=stand-in
  mkdir -p "$STAND_IN_DIR"
}

install_slurm() {
  if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    install_packages slurm-wlm munge
  fi
}

start_slurm() {
  local host=${HOSTNAME:-$(uname -n)} folder=$SCRATCH/slurm
  host=${host%%.*}
  mkdir -p "$folder/state" "$folder/spool"
  cat >"$folder/slurm.conf" <<CONF
ClusterName=private
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$((20000 + $$ % 20000))
SlurmdPort=$((40000 + $$ % 20000))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=15
AccountingStorageType=accounting_storage/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=16 RealMemory=16000
PartitionName=all Nodes=ALL Default=YES State=UP
CONF
  export SLURM_CONF=$folder/slurm.conf
  if ! munge -n </dev/null >/dev/null 2>&1; then
    mkdir -p /run/munge && chown munge: /run/munge
    runuser -u munge -- munged || return 1
  fi
  slurmctld && slurmd || return 1
  local tries
  for tries in $(seq 300); do
    [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && return
    sleep 0.1
  done
  echo "error: no node is up after $tries tries" >>"$folder/slurmctld.log"
  return 1
}

stop_slurm() {
  [ -f "${SLURM_CONF:-}" ] && [[ "$SLURM_CONF" == "$SCRATCH"/* ]] || return 0
  scancel --quiet --user "$(id -un)" >/dev/null 2>&1
  local daemon
  for daemon in slurmd slurmctld; do
    [ -f "$SCRATCH/slurm/$daemon.pid" ] && kill "$(cat "$SCRATCH/slurm/$daemon.pid")" 2>/dev/null
  done
  unset SLURM_CONF
}
