#!/bin/bash
# Your own work on one file.   usage: process.sh FILE
# FILE is the absolute path of the file that has just arrived; it is deleted when this script
# succeeds. The current directory is WORKING_DIR. Any exit status but 0 means that the work failed.
#
# This example writes the file's SHA-256 to results/NAME.sha256. Keep two of its habits:
# quote "$file", and write under another name first, so that a result is whole or not there.
set -e
file=$1
name=${GLOBUS_NAME:-${file##*/}} # below PATH, set by wrapper.sh: sub/folder/x.txt

result=results/$name.sha256
mkdir -p -- "$(dirname -- "$result")"
sum=$(sha256sum <"$file")
printf '%s  %s\n' "${sum%% *}" "$name" >"$result.new"
mv -- "$result.new" "$result"
