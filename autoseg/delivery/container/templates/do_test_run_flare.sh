#!/usr/bin/env bash
# Runs the image as the organisers do. Usage: ./do_test_run.sh FOLDER_OF_IMAGES
set -euo pipefail
cd "$(dirname "$0")"
images=$(realpath "${1:?usage: ./do_test_run.sh FOLDER with X_0000.nii.gz}")
mkdir -p test/output && chmod 777 test/output
docker run --rm --network none --memory @memory --shm-size @shm \
  --volume "$images:@input:ro" --volume "$PWD/test/output:@output" \
  @tag /bin/bash -c "sh predict.sh"
find test/output -type f
