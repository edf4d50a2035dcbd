#!/usr/bin/env bash
# Builds the image. Usage: ./do_build.sh [STAGE] [options of docker build]
set -euo pipefail
cd "$(dirname "$0")"
stage=()
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then stage=(--target "$1"); shift; fi
docker build --platform=linux/amd64 ${stage[@@]+"${stage[@@]}"} "$@@" --tag @tag .
