#!/bin/bash
# The job: download its files, then process and delete each.   usage: wrapper.sh DIR NAME...
# A file that fails is kept, and the others go on; the exit status is that of the last failure.
# Lines #SBATCH, #PBS or #$ may stand here; RESOURCES in config.py wins.

if [ "${1:-}" != --clean ]; then
wrapper_command=("${BASH_SOURCE[0]}" --clean "$@")
[ "${1:-}" != --pack ] || wrapper_command[0]=$2/wrapper.sh # a job: the driver's copy
# ---- the environment of your jobs: edit here ----
# module load samtools
# source /path/to/another/venv/bin/activate; PYTHON=python3
PYTHON=${PYTHON:-python3} # the batch driver sets PYTHON to the Python that runs it
# -------------------------------------------------
export PYTHON
# What follows runs in a clean shell, without the options, traps and functions of this one.
POSIXLY_CORRECT=1 # for this shell, exec is exec, whatever functions there are
\trap - HUP INT TERM USR1 USR2 XCPU
\exec /bin/bash -p "${wrapper_command[@]}"
fi

set +o posix
# A signal to the job ends the current step; this script survives to say so.
stopped=
trap 'stopped=129' HUP; trap 'stopped=130' INT; trap 'stopped=143' TERM
trap 'stopped=140' USR2; trap 'stopped=152' XCPU; trap : USR1
names=() files=() todo=() over=() pack='' step=get row=0 worst=0

# In a job, exactly one of job and driver moves the token. (NFS may deny a rename that it has made.)
move() { mv -T -- "$pack/$1" "$pack/$2" 2>/dev/null || [ -e "$pack/$2" ]; }
enter() { [ -z "$pack" ] || move "at.$me.$step" "at.$me.$1" || exit 0; step=$1; }
finish() {
  delete
  [ -z "$pack" ] || move "at.$me.$step" "end.$me.$step.$1" || move "stop.$me.$step" "end.$me.$step.$1"
  exit $((${#pack} ? $1 != 0 : $1)) # to some schedulers 99 and 100 have a meaning
}
delete() { [ ${#over[@]} = 0 ] || rm -f -- "${over[@]}"; over=(); }
report() { # a line of results; on a full disk again and again, unless jobs/ was removed
  until [ -z "$pack" ] || echo "$*" >>"$pack/results.$me"; do
    [ -d "$pack" ] || [ ! -d "$here" ] || exit 1
    sleep 5
    echo >>"$pack/results.$me"
  done
}

shift
if [ "$1" = --pack ]; then
  pack=$2 attempt=$3 fuse=$4 here=$5 folder=$7 id=${SLURM_JOB_ID:-${PBS_JOBID:-${JOB_ID:-}}}
  me=$attempt.${id%%[!0-9]*}
  cd -- "$6" && exec </dev/null || exit
  for token in "$pack/ticket.$attempt" "$pack/at.$me".* "$pack/end.$me".*; do # after a requeue
    new=$me.${HOSTNAME%%.*}-$$-$RANDOM$RANDOM
    if move "${token##*/}" "at.$new.get"; then me=$new && break; fi
  done
  [ -e "$pack/at.$me.get" ] || exit 0 # given up, or somebody else's
  GLOBUS_SETTINGS=$(<"$pack/settings.json") # not config.py, which may be another one by now
  export GLOBUS_SETTINGS
  while IFS=$'\t' read -r _ _ name; do names+=("$name") files+=("$folder/$name"); done <"$pack/files"
  printf 'wrapper.sh on %s, %(%F %T)T: %s\n' "$HOSTNAME" -1 "${names[0]} (${#names[@]} in this pack)"
  process=("$pack/process.sh")
  cp -- "$here/process.sh" "$pack/process.$$" && chmod 755 "$pack/process.$$" &&
    mv -T -- "$pack/process.$$" "${process[0]}" || finish 1
  [ -e "$pack/arrived" ] || "$PYTHON" "$here/globus-single-file-download.py" --pack "$pack" ||
    finish "${stopped:-$?}"
  while read -r i _; do [[ $i != +([0-9]) ]] || has_result[i]=yes; done < <(cat "$pack"/results.* 2>&1)
  while read -r i; do [ -n "${has_result[i]}" ] || todo+=("$i"); done <"$pack/arrived"
else
  here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd) || exit
  dir=$1 fuse=0 && shift
  printf 'wrapper.sh on %s, %(%F %T)T: %s\n' "$HOSTNAME" -1 "$1${2:+ and $(($# - 1)) more}" >&2
  names=("$@") todo=("${!names[@]}") process=("$here/process.sh") options=()
  for name; do options+=(--file "$name"); done
  said=$("$PYTHON" "$here/globus-single-file-download.py" --globus-path "$dir" "${options[@]}"
    echo "/$?")
  mapfile -t files <<<"$said" # its last lines, whatever else was said
  status=${files[-1]#/} files=("${files[@]:${#files[@]} - 1 < $# ? 0 : ${#files[@]} - 1 - $#}")
  [ "$status" = 0 ] || [ $# -gt 1 ] || exit "$status"
  IFS='#! ' read -ra words <"$here/process.sh"
  [ -x "${process[0]}" ] || process=("${words[@]:-bash}" "${process[0]}")
fi

for i in "${todo[@]}"; do
  [ -z "$stopped" ] || finish "$stopped"
  enter "$i"
  until [ -e "${files[i]}" ] || [ -z "$pack" ] || [ $SECONDS -gt 60 ]; do sleep 1; done # it may come late
  log=${pack:+$pack/$i.log}
  if [ ! -e "${files[i]}" ]; then
    status=1 && report "$i" 1 "not on $HOSTNAME: ${files[i]}. Does this node see that folder?"
  else
    GLOBUS_NAME=${names[i]} "${process[@]}" "${files[i]}" >>"${log:-/dev/stdout}" 2>&1
    status=$?
    [ $status -le 128 ] || sleep 1 # a signal that was for the whole job is no result of the file
    [ $status = 0 ] || [ -z "$stopped" ] || finish "$stopped"
    report "$i" $status
  fi
  if [ $status = 0 ]; then
    row=no over+=("${files[i]}" ${log:+"$log"})
    [ $SECONDS = "${last:-}" ] || delete && last=$SECONDS # once a second
  else
    worst=$status
    [ "$row" = no ] || [ $((++row)) != "$fuse" ] || finish "$status" # perhaps all fail: do not go on
  fi
done
finish "$worst"
