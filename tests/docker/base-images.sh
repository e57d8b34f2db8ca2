#!/usr/bin/env bash
# base-images.sh debian rust mongo nginx
# Makes the images that tests/docker/run.py builds and runs upon, on a machine that may reach no registry: Debian by debootstrap, Rust by
# adding this machine's own toolchain, MongoDB by adding a mongod, nginx from Debian's packages. All are called oxicorn-test/…, never by
# an official name, so that nobody takes one for the official image; images that are there are left alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=target/docker
mkdir -p "$work"
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT

# Its Dockerfile is what comes in, its files are what lies in $context.
build() {
    docker build --quiet --tag "oxicorn-test/$1" --file - "$context" >/dev/null
    find "$context" -mindepth 1 -delete
}

debian() {
    if [ ! -d "$work/debian" ]; then
        rm -rf "$work/debian.new"
        debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev,libcurl4,libssl3 bookworm "$work/debian.new" \
            >"$work/debootstrap.log"
        mv "$work/debian.new" "$work/debian"
    fi
    tar -C "$work/debian" -c . | docker import - oxicorn-test/debian >/dev/null
}

rust() {
    local toolchain
    toolchain=$(rustc --print sysroot)
    mkdir "$context/bin"
    cp -a "$toolchain"/bin/{cargo,rustc} "$context/bin/"
    cp -a "$toolchain/lib" "$context/"
    # A proxy with an authority of its own may stand between this machine and the registry.
    cp -L /etc/ssl/certs/ca-certificates.crt "$context/"
    build rust <<'DOCKERFILE'
FROM oxicorn-test/debian
COPY . /usr/local/
ENV CARGO_HOME=/usr/local/cargo CARGO_HTTP_CAINFO=/usr/local/ca-certificates.crt
DOCKERFILE
}

mongo() {
    cp target/mongod/fiftyone/db/bin/mongod "$context/"
    build mongo <<'DOCKERFILE'
FROM oxicorn-test/debian
COPY mongod /usr/local/bin/
RUN useradd --system mongodb && mkdir -p /data/db && chown mongodb /data/db
VOLUME /data/db
USER mongodb
DOCKERFILE
}

nginx() {
    # From trixie: `http2 on` is nginx 1.25's, and bookworm has 1.22.
    build nginx <<'DOCKERFILE'
FROM oxicorn-test/debian
RUN echo 'deb http://deb.debian.org/debian trixie main' >/etc/apt/sources.list.d/trixie.list \
    && apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends nginx \
    && rm /etc/nginx/sites-enabled/default
CMD ["nginx", "-g", "daemon off;"]
DOCKERFILE
}

for image in "$@"; do
    docker image inspect "oxicorn-test/$image" >/dev/null 2>&1 || "$image"
done
