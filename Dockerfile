# The reference service, or the pattern for a service of your own: replace the binary's name.
#   docker build -t oxicorn:0.1.0 .
#   docker run -p 8000:8000 -v facts:/data --stop-timeout 45 oxicorn:0.1.0
# --stop-timeout has to be above workers.graceful_timeout (30 s), or Docker kills what is still draining after ten seconds.
# It also runs with --read-only --tmpfs /tmp --tmpfs /data:uid=1000 --cap-drop=ALL --security-opt=no-new-privileges.

# --build-arg RUST=… names a mirror's, or a toolchain of your own.
ARG RUST=rust:1.91-slim-bookworm

FROM $RUST AS build
# Its gcc and libc6-dev are all that SQLite, mimalloc and ring want, and its ca-certificates go into the image.
WORKDIR /build

# The dependencies, in a layer that a change of the sources leaves alone. Targets that are not the binary are not needed,
# and cargo would ask for their files.
COPY Cargo.toml Cargo.lock ./
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    sed -i '/^\[\[\(example\|test\|bench\)\]\]/,/^$/d' Cargo.toml \
    && mkdir src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --bin oxicorn \
    && rm -r src

COPY src src
# Cargo goes by the time of change, and COPY keeps that of the checkout.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    find src -exec touch {} + \
    && cargo build --release --locked --bin oxicorn \
    && strip -o /oxicorn target/release/oxicorn

# What the binary needs and nothing else: glibc's own files, certificates of the public authorities, a user, two folders.
# glibc and not musl: see README, "In a container".
COPY deploy/docker/supervisor.toml /runtime/etc/oxicorn/supervisor.toml
RUN set -eu; cd /runtime; \
    mkdir -p usr/local/bin etc/ssl/certs tmp data; \
    cp /oxicorn usr/local/bin/; \
    for file in $(ldd /oxicorn | grep -o '/[^ ]*'); do mkdir -p ".$(dirname "$file")"; cp -L "$file" ".$file"; done; \
    cp /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/; \
    echo 'root:x:0:0::/:/none\noxicorn:x:1000:1000::/data:/none' > etc/passwd; \
    echo 'root:x:0:\noxicorn:x:1000:' > etc/group; \
    echo 'hosts: files dns' > etc/nsswitch.conf; \
    chmod 1777 tmp; chmod 750 data; chown 1000:1000 data

FROM scratch
LABEL org.opencontainers.image.title="oxicorn" \
      org.opencontainers.image.description="Pre-fork HTTP supervisor with a reference service" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /runtime/ /
USER 1000:1000
# ./supervisor.toml is read from here: mount your own over it.
WORKDIR /etc/oxicorn
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["/usr/local/bin/oxicorn", "health"]
ENTRYPOINT ["/usr/local/bin/oxicorn"]
