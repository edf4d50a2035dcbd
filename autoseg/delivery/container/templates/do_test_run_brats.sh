#!/usr/bin/env bash
# Runs the image as the organisers do. Usage: ./do_test_run.sh FOLDER_OF_CASES
set -euo pipefail
cd "$(dirname "$0")"
cases=$(realpath "${1:?usage: ./do_test_run.sh FOLDER with CASE/CASE-t1n.nii.gz ...}")
mkdir -p test/output
docker run --rm --network none --memory @memory --shm-size @shm \
  --volume "$cases:@input:ro" --volume "$PWD/test/output:@output" @tag
find test/output -type f
