#!/usr/bin/env bash
# Runs the image as the platform does, on each folder of test/input. `autoseg rehearse` checks more.
set -euo pipefail
cd "$(dirname "$0")"
method=$(docker image inspect --format '{{ index .Config.Labels "@label" }}' @tag)
flags=(--network none --memory @memory --memory-swap @memory --shm-size @shm --pids-limit 256 --cap-drop ALL
  --security-opt no-new-privileges --volume "$PWD/model:@model:ro")
mkdir -p test/output
for case in test/input/*; do
  out="$PWD/test/output/$(basename "$case")"
  rm -rf "$out" && mkdir -p "$out" && chmod 777 "$out"
  mounts=(--volume "$PWD/$case:@input:ro" --volume "$out:@output")
  if [ "$method" = exec ]; then
    docker run --rm "${flags[@@]}" "${mounts[@@]}" @tag
  else
    id=$(docker run --detach "${flags[@@]}" "${mounts[@@]}" @tag)
    trap 'docker rm --force "$id" >/dev/null' EXIT
    ask() { docker exec "$id" python3 -c "
import http.client
c = http.client.HTTPConnection('127.0.0.1', @port, timeout=$3)
c.request('$1', '$2')
print(c.getresponse().status)" 2>/dev/null || true; }
    for _ in $(seq 100); do [ "$(ask GET /health 10)" = 200 ] && break; sleep 3; done
    status=$(ask POST /invoke 3600)
    docker logs "$id"
    docker rm --force "$id" >/dev/null
    trap - EXIT
    [ "$status" = 201 ] || { echo "POST /invoke answered $status, not 201"; exit 1; }
  fi
  echo "Outputs of $case:"
  find "$out" -type f
done
