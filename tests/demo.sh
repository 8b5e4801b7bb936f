#!/bin/bash
# See it work, without a Globus account:   tests/demo.sh [--keep | --end FOLDER]
# An emulated Globus, a login, a simple download, and a batch that is interrupted and in which a file
# fails. Everything is in a temporary folder, which is removed at the end. --keep leaves it there,
# and says how to go on by hand; --end FOLDER ends what --keep has left running.
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

[ -t 1 ] && BOLD=$'\e[1m' PLAIN=$'\e[0m' || BOLD='' PLAIN=''
announce() { printf '\n%s--- %s ---%s\n' "$BOLD" "$*" "$PLAIN"; }

# type_in COMMAND [STATUS]: run it in the user's folder; it has to end with that exit status.
type_in() {
  local status=0
  printf '\n%s$ %s%s\n' "$BOLD" "$1" "$PLAIN"
  (cd -- "$USER_FOLDER" && bash -c "$1") || status=$?
  [ "$status" = 0 ] || echo "[exit status $status]"
  [ "$status" = "${2:-0}" ] || { say "the exit status should have been ${2:-0}"; exit 1; }
}

# Play the person who logs in: open the page that is named, and type (3) the code that it shows.
log_in() {
  local line code
  while IFS= read -r line; do
    printf '%s\n' "${line#Code: }"
    [[ $line == http*/authorize* ]] || continue
    code=$("$PY" -c 'import re, sys, urllib.request as web
print(re.search(r"auth-code.>(\w+)<", web.urlopen(sys.argv[1]).read().decode()).group(1))' "$line")
    printf '\n[the demo opens that page, and types the code that it shows]\nCode: %s\n' "$code"
    echo "$code" >&3
  done
}

# Play the person who asks how it is doing, once some files are processed, and then interrupts it.
interrupt() {
  local command="./globus-batch-download.py --status" answer
  cd -- "$USER_FOLDER" || exit
  until answer=$($command) &&
    [[ $answer =~ ^([2-9]|10)\ of.*job.*sample.*\ as\ process\ ([0-9]+) ]]; do
    sleep 0.5 && [ -d "$USER_FOLDER" ] || exit
  done
  printf '\n\n[in another terminal]\n%s$ %s%s\n%s\n' "$BOLD" "$command" "$PLAIN" "$answer"
  printf '\n[the demo presses Ctrl-C]\n'
  kill -INT "${BASH_REMATCH[2]}"
}

make_files() {
  local data=$SCRATCH/globus/source/home/share n
  mkdir -p "$data/godata" "$data/samples"
  for n in 1 2 3; do echo "This is file $n." >"$data/godata/file$n.txt"; done
  for n in {01..12}; do seq "$n" 10000 | gzip >"$data/samples/sample-$n.txt.gz"; done
  seq 10000 >"$data/samples/sample-10.txt.gz" # somebody forgot to compress it
}

case ${1:-} in
  '' | --keep) ;;
  --end) end_kept "${2:-}" ;;
  *) say "usage: tests/demo.sh [--keep | --end FOLDER]" && exit 2 ;;
esac

# shellcheck disable=SC2119  # no more than what the scripts need
make_venv
start_scheduler
make_files
start_emulator
USER_FOLDER=$SCRATCH/collection
export PATH=${PY%/*}:$PATH
mkdir -p "$USER_FOLDER"
cp -- "$COLLECTION"/*.py "$COLLECTION"/*.sh "$USER_FOLDER"

announce "1. Log in, once"
keyboard=$SCRATCH/keyboard && mkfifo "$keyboard"
# shellcheck disable=SC2094  # it is a fifo
(set -o pipefail && type_in ./globus-login.py <"$keyboard" | log_in 3>"$keyboard") || exit

announce "2. A simple download: all files of a directory"
type_in ./globus-simple-download.py
type_in "ls downloads"

announce "3. A batch: each job downloads a file, processes it, and deletes it"
cat >"$USER_FOLDER/process.sh" <<'PROCESS'
#!/bin/bash
set -eo pipefail
result=results/$GLOBUS_NAME.lines
mkdir -p "$(dirname "$result")"
sleep 2  # your work takes longer
zcat "$1" | wc -l >"$result.new"
mv "$result.new" "$result"
PROCESS
cat >>"$USER_FOLDER/config.py" <<'CONFIG'

PATH = "/home/share/samples/"

def is_file_needed(file):
    result = os.path.join(WORKING_DIR, "results", file.path + ".lines")
    return not os.path.exists(result)
CONFIG
type_in "cat process.sh"
type_in "tail -n 5 config.py"
type_in "./globus-batch-download.py --dry-run"

announce "4. Ask how it is doing, and interrupt it: its jobs go on"
interrupt &
type_in ./globus-batch-download.py 130

announce "5. Start it again: it resumes. One file fails, the others are processed"
type_in ./globus-batch-download.py 1
type_in "head -n 3 jobs/*/0.log downloads/*/sample-10.txt.gz"

announce "6. That file is not compressed: fix process.sh, and start again"
type_in "sed -i 's/zcat/zcat -f/' process.sh"
type_in ./globus-batch-download.py
type_in "grep . results/*"

if [ "${1:-}" != --keep ]; then
  stop_all
  say "the end, after $SECONDS s. Nothing is left running; ${PY%/bin/*} is kept for the next time"
  exit
fi
announce "Go on by hand"
keep_running
printf '\nFor example, in bash in a new terminal:\n\n'
printf '    . %q\n    cd %q\n' "$SCRATCH/environment" "$USER_FOLDER"
printf '    %s\n' "rm results/sample-0*" "./globus-batch-download.py" \
  "./globus-batch-download.py --status"
printf '\nTo end all of it, and remove that folder:\n\n    %q --end %q\n\n' \
  "$TESTS/demo.sh" "$SCRATCH"
