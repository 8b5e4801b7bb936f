"""The settings. Edit or append lines; of two assignments to the same name the later one wins.

Edits count from the next start of a script; those of wrapper.sh from the next job that is
submitted, those of process.sh from the next job that begins."""
import os

# ---- your login ----

# Where it is stored; if jobs download, on a disk that the compute nodes see too.
TOKEN_FILE = "~/.wehi-globus-tokens.json"

# ---- what to download ----

# Collection to download from, a UUID (here: Globus Tutorial Collection 1).
SOURCE_ENDPOINT_ID = "6c54cade-bde5-45c1-bdea-f4bd71dba2cc"

# Directory on that collection.
PATH = "/home/share/godata/"

# True: also the directories below PATH.
RECURSIVE = False

# ---- where it arrives ----

# Folder where jobs run and keep their state, absolute; by default the folder of this file.
WORKING_DIR = os.path.dirname(os.path.abspath(__file__))

# Collection to download to, a UUID; None = the Globus Connect Personal that is set up here.
DESTINATION_ENDPOINT_ID = None

# Folder where the files arrive, as this cluster's file system names it, absolute.
DOWNLOAD_DIR = None  # None = WORKING_DIR/downloads

# The same folder as the destination collection names it.
DESTINATION_PATH = None  # None = DOWNLOAD_DIR, as with most Globus Connect Personals

# ---- the jobs of globus-batch-download.py ----

# Jobs in the batch system at a time.
NUM_JOBS = 3

# Files per job: one transfer task downloads them, process.sh runs on one after the other.
FILES_PER_JOB = 1

# 'job': each job downloads its files itself; 'driver': globus-batch-download.py does, for compute
# nodes without internet, and submits a job when its files have arrived.
DOWNLOAD_BY = "job"

# Files that may fail one after the other before no more jobs are submitted; None = no limit. After
# half of them the next files are taken from the other end of the list.
MAX_FAILURES_IN_A_ROW = 10

# Bytes on disk at a time: downloads in flight and files that failures left, a number or a text such
# as "500 GB"; None = no limit.
MAX_BYTES = None

# 'auto', 'slurm', 'pbs', 'torque' or 'sge'.
SCHEDULER = "auto"

# Options for sbatch or qsub, one string, split as a shell would: "--time=1:00:00 --mem=4G".
RESOURCES = ""

# Seconds between polls of the scheduler.
POLL_SECONDS = 30

# Seconds that a job that has begun may be missing from the queue, without a result, before it
# counts as lost.
GRACE_SECONDS = 120


def is_file_needed(file):
    """Your filter: False = skip. file.path (relative to PATH), file.size (bytes),
    file.last_modified (text, such as "2026-11-23 08:15:00+00:00")."""
    # What the example process.sh writes; a file that has it is done.
    return not os.path.exists(os.path.join(WORKING_DIR, "results", file.path + ".sha256"))
