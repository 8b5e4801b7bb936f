#!/bin/bash
# The job: download one file, process it, delete it.   usage: wrapper.sh DIR NAME
# A step that fails ends it with that step's exit status, and leaves the file.

# ---- the environment of your jobs: edit here ----
# module load samtools
# source /path/to/another/venv/bin/activate; PYTHON=python3
PYTHON=${PYTHON:-python3} # the batch driver sets PYTHON to the Python that runs it
# -------------------------------------------------

# A signal to the whole job ends the step at work; this script stays to pass its status on.
trap : HUP INT TERM XCPU USR1 USR2
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd) || exit
export GLOBUS_NAME=$2

said=$("$PYTHON" "$here/globus-single-file-download.py" --globus-path "$1" --file "$2") || exit
file=
while IFS= read -r line; do # a module or a start-up file may have said something, too
  [[ $line != /*/"$2" || ! -f $line ]] || file=$line
done <<<"$said"
[ -n "$file" ] || { echo "wrapper.sh: the path of the download did not come, but: $said" >&2; exit 1; }

if [ -x "$here/process.sh" ]; then
  "$here/process.sh" "$file" || exit
else
  bash "$here/process.sh" "$file" || exit
fi

rm -f -- "$file" # process.sh may have moved it away
