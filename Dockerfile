# The image of the reference service. For a service of your own, replace the name of the binary.
#   docker build -t oxicorn:0.1.0 .
#   docker run -p 8000:8000 -v facts:/data --stop-timeout 45 oxicorn:0.1.0
# --stop-timeout must be longer than workers.graceful_timeout (30 s). Docker's default kills after 10 s.
# The image also runs with --read-only --tmpfs /tmp --tmpfs /data:uid=1000 --cap-drop=ALL
# --security-opt=no-new-privileges.

# --build-arg RUST=… selects another image with a Rust toolchain, such as one of a mirror.
ARG RUST=rust:1.91-slim-bookworm
# --build-arg RUNTIME=… selects an image with a folder /runtime that deploy/docker/runtime.sh made. Then nothing is
# compiled.
ARG RUNTIME=build

FROM $RUST AS build
# SQLite, mimalloc and ring need only gcc and libc6-dev, which this image has. Its ca-certificates go into the final
# image.
WORKDIR /build

# The dependencies, in a layer that a change of the sources does not rebuild. No part of testkit, fuzz and python
# is in the program, so their manifests are enough, with an empty library.
COPY Cargo.toml Cargo.lock ./
COPY service/Cargo.toml service/
COPY testkit/Cargo.toml testkit/
COPY fuzz/Cargo.toml fuzz/
COPY python/Cargo.toml python/
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    mkdir src service/src testkit/src python/src && touch src/lib.rs testkit/src/lib.rs python/src/lib.rs && echo 'fn main() {}' > service/src/main.rs \
    && cargo build --release --locked --bin oxicorn \
    && rm -r src service/src

COPY src src
COPY service/src service/src
# Cargo compares times of change, and COPY keeps those of the checkout.
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
# supervisor.toml is read from here. Mount your own file over it.
WORKDIR /etc/oxicorn
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["/usr/local/bin/oxicorn", "health"]
ENTRYPOINT ["/usr/local/bin/oxicorn"]
