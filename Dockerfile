# The reference service, or the pattern for a service of your own: replace the binary's name.
#   docker build -t oxicorn:0.1.0 .
#   docker run -p 8000:8000 -v facts:/data --stop-timeout 45 oxicorn:0.1.0
# --stop-timeout has to be above workers.graceful_timeout (30 s), or Docker kills what is still draining after ten seconds.
# It also runs with --read-only --tmpfs /tmp --tmpfs /data:uid=1000 --cap-drop=ALL --security-opt=no-new-privileges.

# --build-arg RUST=… names a mirror's, or a toolchain of your own.
ARG RUST=rust:1.91-slim-bookworm
# --build-arg RUNTIME=… names an image with a folder /runtime that deploy/docker/runtime.sh made: then nothing is compiled here.
ARG RUNTIME=build

FROM $RUST AS build
# Its gcc and libc6-dev are all that SQLite, mimalloc and ring want, and its ca-certificates go into the image.
WORKDIR /build

# The dependencies, in a layer that a change of the sources leaves alone. Targets that are not the binary are not needed,
# and cargo would ask for their files; testkit and fuzz are for tests only, and stay empty.
COPY Cargo.toml Cargo.lock ./
COPY service/Cargo.toml service/
COPY testkit/Cargo.toml testkit/
COPY fuzz/Cargo.toml fuzz/
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    sed -i '/^\[\[\(example\|test\|bench\)\]\]/,/^$/d' service/Cargo.toml \
    && mkdir src service/src testkit/src && touch src/lib.rs testkit/src/lib.rs && echo 'fn main() {}' > service/src/main.rs \
    && cargo build --release --locked --bin oxicorn \
    && rm -r src service/src

COPY src src
COPY service/src service/src
# Cargo goes by the time of change, and COPY keeps that of the checkout.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    find src service/src -exec touch {} + \
    && cargo build --release --locked --bin oxicorn

COPY deploy/docker deploy/docker
RUN deploy/docker/runtime.sh target/release/oxicorn /runtime

FROM $RUNTIME AS runtime

FROM scratch
LABEL org.opencontainers.image.title="oxicorn" \
      org.opencontainers.image.description="Pre-fork HTTP supervisor with a reference service" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=runtime /runtime/ /
USER 1000:1000
# ./supervisor.toml is read from here: mount your own over it.
WORKDIR /etc/oxicorn
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["/usr/local/bin/oxicorn", "health"]
ENTRYPOINT ["/usr/local/bin/oxicorn"]
