#!/bin/bash
# The job: download its files, then process and delete each; a file that fails is kept.
# By hand, file by file:   wrapper.sh DIR NAME...   (the exit status is that of the last failure)
# Lines #SBATCH, #PBS or #$ may stand here; RESOURCES in config.py wins.

if [ "${1:-}" != --clean ]; then
wrapper_command=("$(realpath -- "${BASH_SOURCE[0]}")" --clean "$PWD" "$@")
[ "${1:-}" != --pack ] || wrapper_command[0]=$2/wrapper.sh # in a job: the driver's copy
# ---- the environment of your jobs: edit here ----
# module load samtools
# source /path/to/another/venv/bin/activate; PYTHON=python3
PYTHON=${PYTHON:-python3} # the batch driver sets PYTHON to the Python that runs it
# -------------------------------------------------
export PYTHON
# What follows runs in a clean shell, without the options, traps and functions of this one.
POSIXLY_CORRECT=1 # no function named exec or trap comes before the builtin
\trap - HUP INT TERM USR1 USR2 XCPU
\exec /bin/bash -p "${wrapper_command[@]}"
fi

cd -- "$2" && shift 2 && set +o posix || exit
# The names of variables begin with _ where one that you export could have the same.
_stopped='' # by a signal to the job, which ends the current step; this script survives to say so
trap '_stopped=129' HUP; trap '_stopped=130' INT; trap '_stopped=143' TERM
trap '_stopped=140' USR2; trap '_stopped=152' XCPU; trap : USR1
_names=() _todo=() _results=() _over=() _pack='' _step=get _failures=0 _worst=0

# In a job, exactly one of job and driver moves the token. (NFS may deny a rename that it has made.)
move() { mv -T -- "$_pack/$1" "$_pack/$2" 2>/dev/null || [ -e "$_pack/$2" ]; }
delete() { [ ${#_over[@]} = 0 ] || rm -f -- "${_over[@]}"; _over=(); }
finish() {
  local end=end.$_job.$_step.$1 && delete
  [ -z "$_pack" ] || move "at.$_job.$_step" "$end" || move "stop.$_job.$_step" "$end"
  exit $((${#_pack} ? $1 != 0 : $1)) # to some schedulers 99 and 100 have a meaning
}

if [ "$1" = --pack ]; then
  # As job_script() in globus-batch-download.py gives them.
  _pack=$2 _attempt=$3 _most_failures=$4 _here=$5 _working_dir=$6 _folder=$7 _dir=$8
  _id=${SLURM_JOB_ID:-${PBS_JOBID:-${JOB_ID:-}}}
  _job=$_attempt.${_id%%[!0-9]*}
  cd -- "$_working_dir" && exec </dev/null || exit
  for _token in "$_pack/at.$_job".*.[0-9]*; do # requeued: who was at work may live on
    move "${_token##*/}" "stop${_token##*/at}"
  done
  for _token in "$_pack/ticket.$_attempt" "$_pack/at.$_job".*.get; do
    _new=$_job.${HOSTNAME%%.*}-$$-$RANDOM$RANDOM
    if move "${_token##*/}" "at.$_new.get"; then _job=$_new && break; fi
  done
  [ -e "$_pack/at.$_job.get" ] || exit 0 # given up, or somebody else's
  mapfile -t _names <"$_pack/files" && _names=("${_names[@]#*$'\t'*$'\t'}") # below size and date
  printf 'wrapper.sh on %s, %(%F %T)T: pack of %s, %s\n' "$HOSTNAME" -1 ${#_names[@]} "${_names[0]}"
  GLOBUS_SETTINGS=$(<"$_pack/settings.json") _process=$_pack/process.sh
  export GLOBUS_SETTINGS # instead of config.py, which may be another one by now
  cp -- "$_here/process.sh" "$_process.$$" && chmod 755 "$_process.$$" || finish 1
  [ -s "$_process.$$" ] || { echo "process.sh is empty" && finish 1; } # while it is saved, perhaps
  mv -T -- "$_process.$$" "$_process" || finish 1
  # Unless the driver has downloaded it.
  [ -e "$_pack/arrived" ] || "$PYTHON" "$_here/globus-single-file-download.py" --pack "$_pack" ||
    finish "${_stopped:-$?}"
  for _file in "$_pack"/results.*; do
    while LC_ALL=C read -r _i _status _; do # whole lines, of bytes: a reason may name any file
      [[ ! $_i:$_status =~ ^[0-9]+:[0-9]+$ ]] || _results[10#$_i]=$_status
    done <"$_file"
  done 2>/dev/null
  while read -r _i; do [ -n "${_results[_i]}" ] || _todo+=("$_i"); done <"$_pack/arrived"
else
  if [ $# -lt 2 ]; then
    echo "usage: wrapper.sh DIR NAME...   (globus-batch-download.py submits it as a job)" >&2
    exit 2
  fi
  _here=${0%/*} _dir=$1 _most_failures=0 _process=${0%/*}/process.sh && shift
  _names=("$@") _todo=("${!_names[@]}")
  [ -x "$_process" ] || chmod u+x "$_process"
fi

for _i in "${_todo[@]}"; do
  [ -z "$_stopped" ] || finish "$_stopped"
  if [ -n "$_pack" ]; then
    move "at.$_job.$_step" "at.$_job.$_i" || finish 0 # from here on, it is at work on this file
    _step=$_i _file=$_folder/${_names[_i]}
    exec >"$_pack/$_i.log" 2>&1
    # In the first minute of a job, a shared disk may show late what another node has written.
    until [ -f "$_file" ] || [ $SECONDS -gt 60 ]; do sleep 1; done
    [ -f "$_file" ] || echo "the file is not there: does $HOSTNAME see ${_file%/*}?"
  else
    _download=("$_here/globus-single-file-download.py" --globus-path "$_dir" --file "${_names[_i]}")
    _file=$("$PYTHON" "${_download[@]}")
    _status=$? _file=${_file##*$'\n'}
    [ $_status = 0 ] || { _worst=$_status && continue; }
    [ -f "$_file" ] || echo "wrapper.sh: expected the path of the download, but got: $_file" >&2
  fi
  [ -f "$_file" ] && GLOBUS_PATH=$_dir GLOBUS_NAME=${_names[_i]} "$_process" "$_file"
  _status=$?
  [ $_status -le 128 ] || sleep 1 # a signal that was for the whole job is no result of the file
  [ $_status = 0 ] || [ -z "$_stopped" ] || finish "$_stopped"
  # Until it is written: the disk may be full. But if jobs/ was removed, nobody reads it.
  until [ -z "$_pack" ] || echo "$_i $_status" >>"$_pack/results.$_job"; do
    [ -d "$_pack" ] || [ ! -d "$_here" ] || exit 1
    sleep 5 && echo >>"$_pack/results.$_job"
  done
  if [ $_status = 0 ]; then
    _most_failures=0 _over+=("$_file" ${_pack:+"$_pack/$_i.log"})
    [ $SECONDS = "${_last:-}" ] || delete && _last=$SECONDS # once a second
  else
    _worst=$_status
    # So many, and no success before: all may fail alike.
    [ $((++_failures)) != "$_most_failures" ] || finish "$_status"
  fi
done
finish "$_worst"
