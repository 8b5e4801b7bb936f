#!/bin/bash
# What run.sh and demo.sh share: a private virtual environment, and a private Slurm or its stand-in.
# What is started here notes its process id in a file, and is ended by that id.
# To be sourced. Everything lands in dot-folders of this collection and in one temporary folder.

# Begin again in an environment from nothing: what this machine exports would hide faults that every
# newcomer meets, or make some. What passes leads to the network, or is a choice of run.sh's user.
if [ -z "${IS_CLEAN:-}" ] && [ -f "$0" ]; then
  kept=(IS_CLEAN=yes LANG=C.UTF-8)
  for name in HOME PATH TERM TMPDIR PYTHON SOAK_SEED SOAK_MINUTES KILLS KILL_SEED HYPOTHESIS_RANDOM http_proxy https_proxy \
    no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE \
    CURL_CA_BUNDLE PIP_CERT PIP_CONFIG_FILE PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS; do
    [ -z "${!name:-}" ] || kept+=("$name=${!name}")
  done
  exec env -i "${kept[@]}" bash "$0" "$@"
fi
umask 022 # the schedulers' daemons refuse folders that nobody else may enter

TESTS=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
COLLECTION=$(dirname -- "$TESTS")
SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/globus-download.XXXXXX")
trap 'leave $?' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 141' PIPE
trap 'exit 143' TERM

say() { printf '=== %s\n' "$*" >&2; }

leave() {
  trap '' HUP INT PIPE TERM # a second Ctrl-C would leave half of it
  stop_all
  # A job that was killed may still write its last line while the folder goes.
  rm -rf -- "$SCRATCH" 2>/dev/null || { sleep 1; rm -rf -- "$SCRATCH"; }
  report_installed
  exit "$1"
}

# End all that was started here, and wait until it has ended.
stop_all() {
  local job pid
  for job in "$SCRATCH"/stand-in/*; do
    [ "$(cat -- "$job/state" 2>/dev/null)" = RUNNING ] || continue
    pid=$(<"$job/pid") && is_ours "$pid" && kill -KILL -- "-$pid"
  done
  stop_slurm
  stop_grid_engine
  stop_process "$SCRATCH/emulator.pid"
}

# End the process whose id is in that file.
stop_process() {
  local pid
  pid=$(cat -- "$1" 2>/dev/null) || return 0
  if is_ours "$pid" && kill "$pid"; then
    until_true has_ended "$pid" || kill -KILL "$pid"
  fi
  rm -f -- "$1"
}

# An id may be another process's by now; all that are started here name this folder.
is_ours() { grep -qsaF -- "$SCRATCH/" "/proc/$1/cmdline" "/proc/$1/environ"; }

has_ended() { ! kill -0 "$1" 2>/dev/null; }

# Leave $SCRATCH and what was started; its file `environment` leads another shell there.
keep_running() {
  trap - EXIT HUP INT PIPE TERM
  declare -px HOME PATH GLOBUS_SDK_SERVICE_URL_{AUTH,TRANSFER} SLURM_CONF STAND_IN_DIR \
    2>/dev/null >"$SCRATCH/environment"
  printf 'Still running, in %s:\n' "$SCRATCH"
  (cd -- "$SCRATCH" && grep -H . -- *.pid | sed 's/^/  /; s/\.pid:/, process /')
  report_installed
}

# End what keep_running has left in a folder, and remove the folder.
end_kept() {
  local kept
  kept=$(CDPATH='' cd -- "$1" 2>/dev/null && pwd) && [ -f "$kept/environment" ] &&
    [ -f "$kept/emulator.pid" ] || { say "nothing was left running in $1"; exit 2; }
  # shellcheck source=/dev/null
  . "$kept/environment"
  rmdir -- "$SCRATCH"
  SCRATCH=$kept
  leave 0
}

may_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

INSTALLED="" # packages that were not here before
install_packages() {
  local package new=""
  say "installing $* (apt-get)"
  for package; do dpkg -s "$package" >/dev/null 2>&1 || new+=" $package"; done
  export DEBIAN_FRONTEND=noninteractive
  # A fresh machine has no package lists, or old ones.
  if apt-get install -y --no-install-recommends "$@" >"$SCRATCH/apt.log" 2>&1 ||
    { apt-get update && apt-get install -y --no-install-recommends "$@"; } >"$SCRATCH/apt.log" 2>&1
  then
    INSTALLED+=$new
  else
    tail -n 5 "$SCRATCH/apt.log" >&2
    return 1
  fi
}

report_installed() {
  [ -n "$INSTALLED" ] || return 0
  say "apt-get has installed$INSTALLED; to remove: apt-get purge --autoremove$INSTALLED"
  [[ "$INSTALLED" != *munge* ]] || ! munge -n </dev/null >/dev/null 2>&1 ||
    say "a munged is running that the package munge has started; it goes with the package"
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

# Sets GLOBUS_CLI to a globus-cli in an environment of its own; it judges the emulator.
make_cli() {
  local venv=$COLLECTION/.venv-cli
  export GLOBUS_CLI=$venv/bin/globus
  [ ! -x "$GLOBUS_CLI" ] || return 0
  say "making a virtual environment for globus-cli in .venv-cli"
  "$PY" -m venv --clear "$venv" && "$venv/bin/python" -m pip install --quiet \
    --disable-pip-version-check globus-cli 2>"$SCRATCH/pip.log" && return
  say "LEFT OUT: what globus-cli says of the emulator ($(tail -n 1 "$SCRATCH/pip.log"))"
  rm -rf -- "$venv"
  GLOBUS_CLI=
}

# Sets PEERS to the commands of snakemake and submitit, for the benchmark.
make_peers() {
  local venv=$COLLECTION/.venv-peers
  export PEERS=$venv/bin
  [ ! -x "$PEERS/snakemake" ] || return 0
  say "making a virtual environment for snakemake and submitit in .venv-peers"
  "$PY" -m venv --clear "$venv" && "$venv/bin/python" -m pip install --quiet \
    --disable-pip-version-check snakemake snakemake-executor-plugin-slurm submitit \
    2>"$SCRATCH/pip.log" && return
  say "LEFT OUT: snakemake and submitit ($(tail -n 1 "$SCRATCH/pip.log"))"
  rm -rf -- "$venv"
  PEERS=
}

# Starts an emulated Globus, with its source collection in $SCRATCH/globus/source, and directs the
# scripts to it; HOME becomes one where its destination is the Globus Connect Personal.
start_emulator() {
  local started=$SCRATCH/emulator.json pid url destination
  setsid "$PY" "$TESTS/globus_emulator.py" --root "$SCRATCH/globus" </dev/null >"$started" \
    2>"$SCRATCH/emulator.log" & # a terminal that is closed does not end it
  pid=$! && echo "$pid" >"$SCRATCH/emulator.pid" && disown
  until [ -s "$started" ]; do
    kill -0 "$pid" 2>/dev/null || { cat "$SCRATCH/emulator.log" >&2; exit 1; }
    sleep 0.1
  done
  read -r url destination < <("$PY" -c 'import json, sys
print("{url} {destination}".format(**json.load(sys.stdin)))' <"$started")
  export GLOBUS_SDK_SERVICE_URL_AUTH=$url GLOBUS_SDK_SERVICE_URL_TRANSFER=$url HOME=$SCRATCH/home
  mkdir -p "$HOME/.globusonline/lta"
  echo "$destination" >"$HOME/.globusonline/lta/client-id.txt"
}

# Starts a Slurm of our own, or puts executables that run the jobs themselves in its place.
# $TEST_SCHEDULERS names the real schedulers that are up.
export TEST_SCHEDULERS=""
start_scheduler() {
  if ! may_install; then
    use_stand_in "it needs root on Debian or Ubuntu"
  elif ! install_slurm; then
    use_stand_in "its packages cannot be installed"
  elif ! start_slurm; then
    use_stand_in "it did not start: $(grep -his error "$SCRATCH"/slurm/*.log | tail -n 1)"
    stop_slurm
  else
    say "a private Slurm is up: $(sbatch --version)"
    TEST_SCHEDULERS+=" slurm"
  fi
}

# Starts a Grid Engine of our own, for the tests.
start_grid_engine_too() {
  if ! may_install; then
    say "LEFT OUT: the real Grid Engine (it needs root on Debian or Ubuntu)"
  elif ! install_grid_engine || ! start_grid_engine >"$SCRATCH/sge.log" 2>&1; then
    say "LEFT OUT: the real Grid Engine (it did not start: $(tail -n 1 "$SCRATCH"/*.log))"
  else
    say "a private Grid Engine is up: $(qstat -help | head -n 1)"
    TEST_SCHEDULERS+=" sge"
  fi
}

use_stand_in() {
  say "LEFT OUT: the real Slurm ($1); stand-ins in tests/stand-in run the jobs instead"
  export PATH="$TESTS/stand-in/slurm:$PATH" STAND_IN_DIR="$SCRATCH/stand-in"
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
AuthInfo=socket=$folder/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$SCRATCH/slurmctld.pid
SlurmdPidFile=$SCRATCH/slurmd.pid
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
  # On its own, slurmd asks how cgroups are mounted and ends where they are not, or only in part, as
  # in a chroot or a container; nothing here needs them.
  echo CgroupPlugin=cgroup/v1 >"$folder/cgroup.conf"
  export SLURM_CONF=$folder/slurm.conf
  # --force: nobody else can reach its socket, which is as it should be.
  (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
  munged --force --socket="$folder/munge" --key-file="$folder/munge.key" \
    --pid-file="$SCRATCH/munged.pid" --log-file="$folder/munged.log" \
    --seed-file="$folder/munge.seed" 2>/dev/null || return 1
  slurmctld && slurmd || return 1
  local tries
  for tries in $(seq 300); do
    [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && return
    sleep 0.1
  done
  echo "error: no node is up after $tries tries" >>"$folder/slurmctld.log"
  return 1
}

has_no_jobs() { [ -z "$(squeue --noheader 2>&1)" ]; }

stop_slurm() {
  [ -f "${SLURM_CONF:-}" ] && [[ "$SLURM_CONF" == "$SCRATCH"/* ]] || return 0
  # Its jobs would outlive the daemons.
  if scancel --quiet --user "$(id -un)" >/dev/null 2>&1; then until_true has_no_jobs; fi
  local daemon
  for daemon in slurmd slurmctld munged; do stop_process "$SCRATCH/$daemon.pid"; done
  unset SLURM_CONF
}

install_grid_engine() {
  if [ ! -x /usr/lib/gridengine/sge_qmaster ] || [ ! -x /usr/lib/gridengine/sge_execd ]; then
    debconf-set-selections <<'ANSWERS'
gridengine-master shared/gridengineconfig boolean true
gridengine-master shared/gridenginemaster string localhost
gridengine-master shared/gridenginecell string default
ANSWERS
    install_packages gridengine-master gridengine-exec gridengine-client
  fi
}

OURS="" # process ids of the Grid Engine that was started here
# Debian's Grid Engine has its places in /var; it gets one host, this one, and one queue.
start_grid_engine() {
  export SGE_ROOT=/var/lib/gridengine SGE_CELL=default
  local common=$SGE_ROOT/$SGE_CELL/common host folder=$SCRATCH/sge
  host=$(uname -n)
  mkdir -p "$folder"
  echo "localhost ${host%%.*}" >"$common/host_aliases"
  echo localhost >"$common/act_qmaster"
  local other_master other_execd
  other_master=$(pgrep -x sge_qmaster)
  /etc/init.d/gridengine-master start
  until_true qconf -sh || return 1
  [ -n "$other_master" ] || OURS+=" $(pgrep -x sge_qmaster)"

  # It refuses root unless told otherwise, and schedules every 15 s as it comes.
  change_file global -sconf -Mconf 's/^(min_uid|min_gid) .*/\1 0/; s/^max_u_jobs .*/max_u_jobs 0/'
  change_file sched -ssconf -Msconf \
    's/^schedule_interval .*/schedule_interval 0:0:1/; s/^(flush_(submit|finish)_sec) .*/\1 1/'
  qconf -as localhost
  {
    echo hostname localhost
    for key in load_scaling complex_values user_lists xuser_lists projects xprojects \
      usage_scaling report_variables; do echo "$key NONE"; done
  } >"$folder/host"
  qconf -Ae "$folder/host" || qconf -se localhost || return 1
  write_queue >"$folder/queue"
  qconf -Aq "$folder/queue" || qconf -Mq "$folder/queue" || return 1
  qmod -cq all.q # the error that a job leaves there if it is killed with its daemons
  other_execd=$(pgrep -x sge_execd)
  /etc/init.d/gridengine-exec start
  if [ -z "$other_execd" ] && until_true pgrep -x sge_execd; then
    OURS="$(pgrep -x sge_execd) $OURS"
  fi
  # shellcheck disable=SC2016  # that shell expands them
  until_true bash -c 'qstat -f | grep -q "^all.q@.* lx-" && ! qstat -f -qs auE | grep -q "^all.q@"'
}

# change_file NAME SHOW MODIFY EXPRESSION: edit a part of Grid Engine's configuration.
change_file() {
  qconf "$2" | sed -E "$4" >"$folder/$1" && qconf "$3" "$folder/$1"
}

write_queue() {
  printf '%s %s\n' qname all.q hostlist localhost seq_no 0 nsuspend 1 suspend_interval 00:05:00 \
    priority 0 min_cpu_interval 00:05:00 processors UNDEFINED qtype BATCH rerun FALSE slots 16 \
    tmpdir /tmp shell /bin/bash shell_start_mode unix_behavior notify 00:00:20 \
    initial_state default
  local key
  for key in load_thresholds suspend_thresholds ckpt_list pe_list prolog epilog starter_method \
    suspend_method resume_method terminate_method owner_list user_lists xuser_lists \
    subordinate_list complex_values projects xprojects calendar; do echo "$key NONE"; done
  for key in rt cpu fsize data stack core rss vmem; do printf '%s INFINITY\n' "s_$key" "h_$key"; done
}

# Try a command again until it succeeds, for 30 s.
until_true() {
  local tries
  for tries in $(seq 300); do
    "$@" >/dev/null 2>&1 && return 0 # in a trap a mere `return` gives the status before it
    sleep 0.1
  done
  echo "$* failed $tries times"
  return 1
}

stop_grid_engine() {
  [ -n "${SGE_ROOT:-}" ] && [ -d "$SCRATCH/sge" ] || return 0
  qdel -u "$(id -un)" >/dev/null 2>&1
  # shellcheck disable=SC2086  # process ids
  [ -z "$OURS" ] || kill $OURS 2>/dev/null # those that began them have ended
  local pid # the next start is not to take it for another one's
  for pid in $OURS; do until_true has_ended "$pid"; done
}
