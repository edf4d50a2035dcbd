#!/usr/bin/env bash
# Writes the file to hand in; its name up to the first dot is the name of the image.
set -euo pipefail
cd "$(dirname "$0")"
docker save @tag:latest | gzip -c > "@tag.tar.gz"
ls -lh "@tag.tar.gz"
