#!/usr/bin/env bash
# hey puts the port into the server name of its TLS handshake.
#
# Expected: for https://localhost:8443/ the ClientHello carries the name
#   "localhost", and for https://127.0.0.1:8443/ none: RFC 6066, 3, allows only
#   a DNS name there, and no address. Go's own HTTP client does that by itself.
# Happens: hey sets the name itself, to the Host with its port. So it sends
#   "localhost:8443" and "127.0.0.1:8443", with -h2 and without. It does not
#   check the certificate, so its user does not see it with OpenSSL servers. A
#   rustls server (granian) answers each handshake with the alert
#   illegal_parameter, and answers curl at the same port.
# Why it matters: a load test of a TLS server on any port but 443 measures
#   another certificate or virtual host than the one that is meant, or fails
#   with "tls: illegal parameter", which looks like a fault of the server.
#   `-host localhost` helps: it sends the name without the port.
# Seen: hey 0.1.4-2+b4 of Debian 12, granian 2.8.9, CPython 3.11.7, 2026-11-27.
set -eu
dir=$(mktemp -d)
pid=
trap 'if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi; rm -rf "$dir"' EXIT
