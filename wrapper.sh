#!/bin/bash
# The job: download its files, then process and delete each.   usage: wrapper.sh DIR NAME...
# A file that fails is kept, and the others go on; the exit status is that of the last failure.
# Lines #SBATCH, #PBS or #$ may stand here; RESOURCES in config.py wins.

if [ "${1:-}" != --clean ]; then
wrapper_command=("$(realpath -- "${BASH_SOURCE[0]}")" --clean "$@")
[ "${1:-}" != --pack ] || wrapper_command[0]=$2/wrapper.sh # in a job: the driver's copy
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

shift && set +o posix
stopped='' # by a signal to the job, which ends the current step; this script survives to say so
trap 'stopped=129' HUP; trap 'stopped=130' INT; trap 'stopped=143' TERM
trap 'stopped=140' USR2; trap 'stopped=152' XCPU; trap : USR1
names=() todo=() over=() pack='' step=get row=0 worst=0

# In a job, exactly one of job and driver moves the token. (NFS may deny a rename that it has made.)
move() { mv -T -- "$pack/$1" "$pack/$2" 2>/dev/null || [ -e "$pack/$2" ]; }
delete() { [ ${#over[@]} = 0 ] || rm -f -- "${over[@]}"; over=(); }
finish() {
  local end=end.$me.$step.$1 && delete
  [ -z "$pack" ] || move "at.$me.$step" "$end" || move "stop.$me.$step" "$end"
  exit $((${#pack} ? $1 != 0 : $1)) # to some schedulers 99 and 100 have a meaning
}

if [ "$1" = --pack ]; then
  pack=$2 fuse=$4 here=$5 folder=$7 id=${SLURM_JOB_ID:-${PBS_JOBID:-${JOB_ID:-}}}
  me=$3.${id%%[!0-9]*}
  cd -- "$6" && exec </dev/null || exit
  for token in "$pack/at.$me".*.[0-9]*; do # requeued, killed at work on a file: the driver decides
    move "${token##*/}" "end${token##*/at}.137"
  done
  for token in "$pack/ticket.$3" "$pack/at.$me".*.get; do
    new=$me.${HOSTNAME%%.*}-$$-$RANDOM$RANDOM
    if move "${token##*/}" "at.$new.get"; then me=$new && break; fi
  done
  [ -e "$pack/at.$me.get" ] || exit 0 # given up, or somebody else's
  mapfile -t names <"$pack/files" && names=("${names[@]#*$'\t'*$'\t'}") # below size and date
  printf 'wrapper.sh on %s, %(%F %T)T: pack of %s, %s\n' "$HOSTNAME" -1 ${#names[@]} "${names[0]}"
  GLOBUS_SETTINGS=$(<"$pack/settings.json") process=$pack/process.sh
  export GLOBUS_SETTINGS # instead of config.py, which may be another one by now
  cp -- "$here/process.sh" "$process.$$" && chmod 755 "$process.$$" || finish 1
  [ -s "$process.$$" ] && mv -T -- "$process.$$" "$process" || finish 1 # empty while it is saved
  [ -e "$pack/arrived" ] || "$PYTHON" "$here/globus-single-file-download.py" --pack "$pack" ||
    finish "${stopped:-$?}"
  while read -r i _; do [[ $i != +([0-9]) ]] || over[i]=yes; done < <(cat "$pack"/results.* 2>&1)
  while read -r i; do [ -n "${over[i]}" ] || todo+=("$i"); done <"$pack/arrived"
  over=()
else
  here=${0%/*} dir=$1 fuse=0 process=${0%/*}/process.sh && shift
  names=("$@") todo=("${!names[@]}")
  [ -x "$process" ] || chmod u+x "$process"
fi

for i in "${todo[@]}"; do
  [ -z "$stopped" ] || finish "$stopped"
  if [ -n "$pack" ]; then
    move "at.$me.$step" "at.$me.$i" || exit 0 # from here on, the job is at work on this file
    step=$i file=$folder/${names[i]}
    exec >"$pack/$i.log" 2>&1
    until [ -f "$file" ] || [ $SECONDS -gt 60 ]; do sleep 1; done # a shared disk may be late
    [ -f "$file" ] || echo "not on $HOSTNAME: $file. Does this node see that folder?"
  else
    download=("$here/globus-single-file-download.py" --globus-path "$dir" --file "${names[i]}")
    file=$("$PYTHON" "${download[@]}")
    status=$? file=${file##*$'\n'}
    [ $status = 0 ] || { worst=$status && continue; }
    [ -f "$file" ] || echo "wrapper.sh: expected the path of the download, but got: $file" >&2
  fi
  [ -f "$file" ] && GLOBUS_NAME=${names[i]} "$process" "$file"
  status=$?
  [ $status -le 128 ] || sleep 1 # a signal that was for the whole job is no result of the file
  [ $status = 0 ] || [ -z "$stopped" ] || finish "$stopped"
  until [ -z "$pack" ] || echo "$i $status" >>"$pack/results.$me"; do # a full disk? or
    [ -d "$pack" ] || [ ! -d "$here" ] || exit 1 # jobs/ was removed
    sleep 5 && echo >>"$pack/results.$me"
  done
  if [ $status = 0 ]; then
    row=-1000000 over+=("$file" ${pack:+"$pack/$i.log"})
    [ $SECONDS = "${last:-}" ] || delete && last=$SECONDS # once a second
  else
    worst=$status
    [ $((++row)) != "$fuse" ] || finish "$status" # all may fail alike: do not go on
  fi
done
finish "$worst"
