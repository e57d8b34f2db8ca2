#!/bin/sh
# image.sh BINARY IMAGE
# Makes a docker image with the binary and the libraries that it needs, without a Dockerfile and without a build.
set -eu
binary=$1 image=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Removes containers that an earlier, failed run has left.
docker ps --quiet --filter "ancestor=$image" | xargs --no-run-if-empty docker rm --force >/dev/null
"$(dirname "$0")/../../deploy/docker/runtime.sh" "$binary" "$folder"
docker image rm --force "$image" >/dev/null 2>&1 || true
tar -C "$folder" -c . | docker import --change 'USER 1000:1000' --change 'WORKDIR /etc/oxicorn' - "$image" >/dev/null
