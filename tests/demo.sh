#!/bin/bash
# See it work, without a Globus account:   tests/demo.sh
# An emulated Globus with a small tree of files, a login, a simple download, and a batch of a dozen
# files through Slurm. Everything is in a temporary folder and gone at the end.
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

title() { printf '\n\033[1m--- %s ---\033[0m\n' "$*"; }

# Show a command as a user types it, and run it in the user's folder.
type_in() {
  printf '\n\033[1m$ %s\033[0m\n' "$*"
  (cd -- "$USER_FOLDER" && "$@")
}

# Run globus-login.py; open the page that it names, and type the code that the page shows.
log_in() {
  printf '\n\033[1m$ %s\033[0m\n' "./globus-login.py"
  "$PY" -u - "$PY" "$USER_FOLDER/globus-login.py" <<'PYTHON'
import re, subprocess, sys, time, urllib.request

login = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
for line in iter(login.stdout.readline, b""):
    # The prompt has no line of its own in a pipe; the demo has shown it already.
    sys.stdout.write(line.decode().replace("Code: ", "", 1))
    url = re.search(rb"https?://\S+/authorize\S+", line)
    if url:
        with urllib.request.urlopen(url.group().decode()) as page:
            code = re.search(r"auth-code'>(\w+)<", page.read().decode()).group(1)
        time.sleep(1)
        print("\n   [the demo opens that page, which shows the code, and types it for you]")
        print("Code: " + code, flush=True)
        login.stdin.write(code.encode() + b"\n")
        login.stdin.flush()
sys.exit(login.wait())
PYTHON
}

make_files() {
  local data=$SCRATCH/globus/source/home/share/godata n
  mkdir -p "$data/more/deep"
  for n in 1 2 3; do echo "This is file $n." >"$data/file$n.txt"; done
  echo "names may hold anything" >"$data/more/it's \$5, \"ok\".txt"
  for n in $(seq 8); do head -c "$((n * 100000))" /dev/urandom >"$data/more/deep/sample $n.bin"; done
}

# shellcheck disable=SC2119  # no more than what the scripts need
make_venv
start_scheduler
USER_FOLDER=$SCRATCH/collection
mkdir -p "$USER_FOLDER" "$SCRATCH/home/.globusonline/lta"
cp -- "$COLLECTION"/*.py "$COLLECTION"/*.sh "$USER_FOLDER"
make_files
"$PY" "$TESTS/globus_emulator.py" --root "$SCRATCH/globus" >"$SCRATCH/emulator.json" &
EMULATOR=$!
until [ -s "$SCRATCH/emulator.json" ]; do
  kill -0 "$EMULATOR" || { say "the emulator did not start"; exit 1; }
  sleep 0.1
done
read -r URL ID < <("$PY" -c 'import json, sys
answer = json.load(open(sys.argv[1]))
print(answer["url"], answer["destination"])' "$SCRATCH/emulator.json")
export GLOBUS_SDK_SERVICE_URL_AUTH=$URL GLOBUS_SDK_SERVICE_URL_TRANSFER=$URL
export HOME=$SCRATCH/home PATH=${PY%/*}:$PATH
echo "$ID" >"$HOME/.globusonline/lta/client-id.txt" # what Globus Connect Personal writes
begun=$SECONDS

title "1. Log in, once"
log_in || exit

title "2. A simple download"
type_in ./globus-simple-download.py || exit
type_in ls downloads
rm -r -- "$USER_FOLDER/downloads"

title "3. A batch: three jobs at a time, of up to two files; each is deleted when it is processed"
cat >>"$USER_FOLDER/config.py" <<'CONFIG'

RECURSIVE = True
FILES_PER_JOB = 2
POLL_SECONDS = 5
CONFIG
type_in tail -n 3 config.py
type_in cat process.sh
type_in ./globus-batch-download.py --dry-run || exit
type_in ./globus-batch-download.py || exit
type_in find results -type f
type_in ls -A downloads

title "4. The batch again: there is nothing left to do"
type_in ./globus-batch-download.py || exit

kill "$EMULATOR"
say "the demo took $((SECONDS - begun)) s"
