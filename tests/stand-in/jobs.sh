#!/bin/bash
# What the stand-in schedulers share: they really run a job's script, in the background.
# State is in $STAND_IN_DIR, a folder a job: name, state, pid, script. To be sourced.

# Make a job of that name, with the script that comes on stdin; sets id and job.
new_job() {
  id=1000
  until mkdir "$STAND_IN_DIR/$id" 2>/dev/null; do
    [ -d "$STAND_IN_DIR" ] || { echo "unable to contact the scheduler" >&2; exit 1; }
    id=$((id + 1))
  done
  job=$STAND_IN_DIR/$id
  cat >"$job/script"
  printf '%s' "$1" >"$job/name"
  echo RUNNING >"$job/state"
}

# Run it in that folder, its output in that file.
run_job() {
  # shellcheck disable=SC2016  # that shell expands them
  setsid bash -c '
    cd "$1"
    bash "$2/script" >"$3" 2>&1 </dev/null && state=COMPLETED || state=FAILED
    echo $state >"$2/state.new" && mv "$2/state.new" "$2/state"
  ' stand-in-job "$1" "$job" "$2" >/dev/null 2>&1 </dev/null &
  echo $! >"$job/pid"
}

# Call a function with id, name and state of each job that is known.
each_job() {
  local folder
  for folder in "$STAND_IN_DIR"/[0-9]*; do
    [ ! -f "$folder/state" ] ||
      "$1" "${folder##*/}" "$(<"$folder/name")" "$(<"$folder/state")"
  done
}

# End a job: a signal to all of it, SIGKILL some seconds later.
cancel_job() {
  local folder=$STAND_IN_DIR/${1%%.*} pid
  [ -f "$folder/pid" ] || return 1
  pid=$(<"$folder/pid")
  echo CANCELLED >"$folder/state.new" && mv "$folder/state.new" "$folder/state"
  kill "-$2" -- "-$pid" 2>/dev/null
  (sleep 10; kill -KILL -- "-$pid") >/dev/null 2>&1 </dev/null &
}
