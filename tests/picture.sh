#!/bin/bash
# The README's picture of a run on a terminal, from a real one:   tests/picture.sh
# Writes .github/batch.svg: the screen in the middle of a batch on an emulated Globus.
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

make_venv "$TESTS/requirements.txt"
start_scheduler
mkdir -p "$COLLECTION/.github"
cd -- "$TESTS" && SCRATCH=$SCRATCH "$PY" - >"$SCRATCH/batch.svg" <<'PYTHON' || exit
import html, os, re
from pathlib import Path
from conftest import BATCH, Emulator, Site

COLUMNS, WIDTH, HEIGHT = 90, 8.4, 18  # characters, and pixels of one
root = Path(os.environ["SCRATCH"])
emulator = Emulator(root / "globus")
emulator.add({"sample-%02d.bam" % n: b"x" * (n * 12345 + 100) for n in range(1, 13)})
site = Site(root, emulator, os.environ["PATH"])
site.give_tokens()
site.process("sleep 4", '[ "$GLOBUS_NAME" != sample-03.bam ] || { echo "no header"; exit 3; }')
rows = ["$ ./globus-batch-download.py --dry-run"]
rows += site.run(BATCH, "--dry-run").out.splitlines()[-3:]
rows += ["$ ./globus-batch-download.py"]
picture = None
for screen in site.watch(BATCH, columns=130):
    if picture is None and re.search(r"] [78] of 12 .* left", "\n".join(screen.display)):
        picture = [line.rstrip() for line in screen.display if line.strip()]
emulator.stop()

rows = (rows + [line.replace(str(site.folder), "/scratch/me") for line in picture])
print('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-size="14" '
      'font-family="monospace"><rect width="100%%" height="100%%" rx="6" fill="#222"/>'
      % (COLUMNS * WIDTH + 20, len(rows) * HEIGHT + 20))
for number, row in enumerate(rows, 1):
    print('<text x="10" y="%d" fill="%s" xml:space="preserve">%s</text>' % (
        number * HEIGHT + 5, "#fff" if row.startswith("$") else "#bbb", html.escape(row)))
print("</svg>")
PYTHON
mv -- "$SCRATCH/batch.svg" "$COLLECTION/.github/batch.svg"
say "made .github/batch.svg"
