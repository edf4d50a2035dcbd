#!/usr/bin/env bash
# Sends the image to the registry of your Synapse project. Usage: ./do_save.sh PROJECT_ID
set -euo pipefail
target="docker.synapse.org/${1:?usage: ./do_save.sh PROJECT_ID, e.g. syn12345}/@tag"
docker tag @tag "$target"
docker push "$target"
