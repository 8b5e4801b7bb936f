#!/bin/bash
# The job: download its files, then process and delete each.   usage: wrapper.sh DIR NAME...
# A file that fails is kept, and the others go on; the exit status is that of the last failure.

# ---- the environment of your jobs: edit here ----
# module load samtools
# source /path/to/another/venv/bin/activate; PYTHON=python3
PYTHON=${PYTHON:-python3} # the batch driver sets PYTHON to the Python that runs it
# -------------------------------------------------

# A signal to the job ends the current step; this script survives to report it.
stopped=
trap 'stopped=129' HUP
trap 'stopped=130' INT
trap 'stopped=140' USR2
trap 'stopped=143' TERM
trap 'stopped=152' XCPU
trap : USR1
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd) || exit
dir=$1 && shift
printf 'wrapper.sh on %s, %(%F %T)T: %s\n' "$HOSTNAME" -1 "$1${2:+ and $(($# - 1)) more}" >&2
folder=${GLOBUS_DOWNLOAD_DIR:-} # set by the driver, with GLOBUS_JOB and GLOBUS_DOWNLOAD_BY
if [ -z "$folder" ] && [ $# -gt 1 ]; then # by hand
  said=$(cd -- "$here" && "$PYTHON" -c 'import sys; sys.path.insert(0, ""); import helper
print(helper.load_config().DOWNLOAD_DIR)')
  folder=${said##*$'\n'}
fi
declare -A arrived # /NAME: local path; the slash, because @ and * would mean all
failure=0

download() {
  local name line options=()
  for name; do options+=(--file "$name"); done
  said=$("$PYTHON" "$here/globus-single-file-download.py" --globus-path "$dir" "${options[@]}")
  failure=$?
  problem="expected the path of the download, but got: $said"
  local IFS=$'\n' LC_ALL=C # names need not be UTF-8
  set -f
  for line in $said; do # a module or a start-up file may have said something, too
    name=${line#"$folder"/}
    [ -n "$folder" ] || [ $# != 1 ] || [[ $line != /*/"$1" ]] || name=$1
    [[ $line != /* || ! -f $line ]] || arrived["/$name"]=$line
  done
  set +f
}

process() {
  local run=("$here/process.sh") status
  export GLOBUS_NAME=$1
  [ -x "$here/process.sh" ] || run=(bash "$here/process.sh")
  "${run[@]}" "${arrived["/$1"]}"
  status=$?
  [ $status = 0 ] || explain $status
  return $status
}

# After bash's own error message, say what is wrong with process.sh itself.
explain() {
  local first words
  [ -f "$here/process.sh" ] || echo "wrapper.sh: there is no $here/process.sh" >&2
  IFS= read -r first 2>/dev/null <"$here/process.sh" || return
  read -ra words <<<"${first#"#!"}"
  [[ ${words[0]} != */env ]] || words=("${words[@]:1}")
  if [[ $first == *$'\r' ]]; then
    echo "wrapper.sh: process.sh has Windows line endings; README.md says how to convert it" >&2
  elif [[ $1 == 12[67] && $first == "#!"* ]] && ! command -v "${words[0]}" >/dev/null; then
    echo "wrapper.sh: process.sh needs ${words[0]}, which is not on $HOSTNAME" >&2
  fi
}

# End here if a signal has ended the step with this exit status: it is no result of a file. (SIGKILL
# is: it comes to process.sh alone when memory runs out.)
end_if_stopped() {
  case $1 in 129 | 130 | 140 | 143 | 152) exit "$1" ;; esac
  [ "$1" = 0 ] || [ -z "$stopped" ] || exit "$stopped"
}

# The driver has not given this job up, nor is the run over, and the files of its jobs gone.
is_wanted() {
  [ ! -e "$GLOBUS_JOB.closed" ] && [ -e "$GLOBUS_JOB.claim" ]
}

# Report a file's exit status to the driver, a line each. On a full disk, keep trying.
report() {
  until [ -z "${GLOBUS_JOB:-}" ] || echo "$1" >>"$GLOBUS_JOB.results"; do sleep 5; done
}

if [ "${GLOBUS_DOWNLOAD_BY:-job}" = driver ]; then
  problem="no such file in $folder. Does this node see it?"
  for name; do # a shared file system may show a file late
    until [ -f "$folder/$name" ] || [ $SECONDS -gt 60 ]; do sleep 1; done
    [ ! -f "$folder/$name" ] || arrived["/$name"]=$folder/$name
  done
else
  download "$@"
  end_if_stopped $failure
fi
unset GLOBUS_SIZES # process.sh may download, too
[ -z "${GLOBUS_JOB:-}" ] || : >"$GLOBUS_JOB.downloaded" # from here on a file fails alone

worst=0
for name; do
  [ -z "$stopped" ] || exit "$stopped"
  if [ -n "${GLOBUS_JOB:-}" ]; then
    [ ! -e "${GLOBUS_JOB%/*}/halted" ] && is_wanted || exit 143 # halted: because every file fails
    until echo "$name" >"$GLOBUS_JOB.working"; do sleep 5; done
    is_wanted || exit 143 # the driver closes a job before it reads what the job works on
  fi
  [ $# = 1 ] || echo "== $name" >&2
  if [ -n "${arrived["/$name"]}" ]; then
    process "$name"
    status=$?
  elif [ $failure = 0 ]; then
    echo "wrapper.sh: $problem" >&2
    status=1
  else
    status=$failure
  fi
  end_if_stopped "$status"
  if [ "$status" = 0 ]; then
    rm -f -- "${arrived["/$name"]}" # process.sh may have moved it away
  else
    worst=$status
  fi
  report "$status"
done
exit "$worst"
