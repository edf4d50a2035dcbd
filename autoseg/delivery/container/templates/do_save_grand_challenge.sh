#!/usr/bin/env bash
# Writes the two files to upload: the image and the model.
set -euo pipefail
cd "$(dirname "$0")"
docker save @tag | gzip -c > "@tag.tar.gz"
tar -czf model.tar.gz -C model .
ls -lh "@tag.tar.gz" model.tar.gz
