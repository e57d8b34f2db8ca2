#!/usr/bin/env bash
# base-images.sh rust mongo nginx traefik
# Makes the base images for tests/docker/run.py, so that a machine needs no registry of images. Debian comes from
# debootstrap, Rust from this machine's toolchain, MongoDB from a mongod, nginx from Debian's packages, and Traefik from
# the program in a Python wheel. The names begin with oxicorn-test/, so that no image is mistaken for an official one.
# Existing images are kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=target/docker
mkdir -p "$work"
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT

# build NAME: builds the image oxicorn-test/NAME. The Dockerfile comes from stdin, its files from $context.
build() {
    docker build --quiet --tag "oxicorn-test/$1" --file - "$context" >/dev/null
    find "$context" -mindepth 1 -delete
}

# debian SUITE PACKAGES: makes an image of this Debian release with these packages.
debian() {
    has "$1" && return
    if [ ! -d "$work/$1" ]; then
        rm -rf "$work/$1.new"
        debootstrap --variant=minbase --include="$2" "$1" "$work/$1.new" "$(tests/docker/mirror.sh)" >"$work/$1.log"
        mv "$work/$1.new" "$work/$1"
    fi
    tar -C "$work/$1" -c . | docker import - "oxicorn-test/$1" >/dev/null
}

# The bookworm image is for compiling, the trixie image for serving. nginx is from trixie, because `http2 on` needs
# nginx 1.25 and bookworm has 1.22.
bookworm() { debian bookworm ca-certificates,gcc,libc6-dev; }
trixie() { debian trixie libcurl4t64,libssl3t64,nginx,passwd; }

rust() {
    bookworm
    local toolchain
    toolchain=$(rustc --print sysroot)
    mkdir "$context/bin"
    cp -a "$toolchain"/bin/{cargo,rustc} "$context/bin/"
    cp -a "$toolchain/lib" "$context/"
    # Copies this machine's certificate authorities: a proxy with an authority of its own may be before the registry of
    # crates.
    cp -L /etc/ssl/certs/ca-certificates.crt "$context/"
    build rust <<'DOCKERFILE'
FROM oxicorn-test/bookworm
COPY . /usr/local/
ENV CARGO_HOME=/usr/local/cargo CARGO_HTTP_CAINFO=/usr/local/ca-certificates.crt
DOCKERFILE
}

mongo() {
    trixie
    cp target/mongod/fiftyone/db/bin/mongod "$context/"
    build mongo <<'DOCKERFILE'
FROM oxicorn-test/trixie
COPY mongod /usr/local/bin/
RUN useradd --system mongodb && mkdir -p /data/db && chown mongodb /data/db
VOLUME /data/db
USER mongodb
DOCKERFILE
}

nginx() {
    trixie
    build nginx <<'DOCKERFILE'
FROM oxicorn-test/trixie
RUN rm /etc/nginx/sites-enabled/default
CMD ["nginx", "-g", "daemon off;"]
DOCKERFILE
}

traefik() {
    ln target/clients-proxies/bin/traefik "$context/" 2>/dev/null || cp target/clients-proxies/bin/traefik "$context/"
    build traefik <<'DOCKERFILE'
FROM scratch
COPY traefik /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/traefik"]
DOCKERFILE
}

has() { docker image inspect "oxicorn-test/$1" >/dev/null 2>&1; }

for image in "$@"; do
    has "$image" || "$image"
done
