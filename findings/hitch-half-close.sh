#!/usr/bin/env bash
# hitch ends both directions when the server behind ends only its own.
#
# Expected: a server has sent its last byte and shuts down its side (FIN), but
#   still reads. The TLS proxy sends close_notify to the client and goes on with
#   what the client sends: in TLS 1.3 close_notify ends one direction only (RFC
#   8446, 6.1), as FIN does in TCP.
# Happens: hitch closes both connections at once, so nothing that the client
#   sends from then on reaches the server. It reads an orderly end, as if the
#   client had left. HAProxy in mode tcp goes on.
# Why it matters: a server closes a connection in two steps, first its own side,
#   so that a client that still sends does not lose the last answer by a reset
#   (RFC 9112, 9.6). Behind hitch the first step is the whole close. What is on
#   its way is lost, such as the rest of an HTTP/2 request that the server would
#   still serve after its GOAWAY. So a server must send its FIN only when it
#   expects nothing any more.
# Seen: hitch 1.7.2-1+b1 of Debian 12, haproxy 2.6.12-1+deb12u4 to compare,
#   CPython 3.11.7, 2026-11-27.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" trustme==1.2.1 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
cd "$dir"
apt-get -q -o APT::Sandbox::User=root download hitch=1.7.2-1+b1 libev4 haproxy=2.6.12-1+deb12u4 liblua5.3-0 libopentracing-c-wrapper0 libopentracing1 >apt.log 2>&1 || { cat apt.log; exit 1; }
for package in *.deb; do dpkg -x "$package" root; done
cat > try.py <<'E'
import os, platform, socket, ssl, subprocess, sys, threading, time
import trustme

authority = trustme.CA()
authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path("both.pem")
trusts = ssl.create_default_context()
authority.configure_trust(trusts)

def through(write, command, half):
    """What the server reads of three words, the last two sent after its answer (and, if half, its FIN)."""
    listener = socket.create_server(("127.0.0.1", 0))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    write(port, listener.getsockname()[1])
    proxy = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                raw = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                time.sleep(0.1)
        client = trusts.wrap_socket(raw, server_hostname="localhost")
        client.sendall(b"one ")
        server, _ = listener.accept()
        server.settimeout(10)
        read = server.recv(100)
        server.sendall(b"answer")
        if half:
            server.shutdown(socket.SHUT_WR)
        client.recv(100)
        time.sleep(0.5)
        try:
            client.sendall(b"two ")
            client.sendall(b"three")
        except OSError:
            pass
        while len(read) < 13 and (more := server.recv(100)):
            read += more
        return read.decode().strip()
    finally:
        proxy.terminate()
        proxy.wait()

def hitch(port, behind):
    user = 'user = "nobody"\ngroup = "nogroup"\n' if os.getuid() == 0 else ""
    with open("hitch.conf", "w") as f:
        f.write(f'frontend = "[127.0.0.1]:{port}"\nbackend = "[127.0.0.1]:{behind}"\npem-file = "both.pem"\nworkers = 1\ndaemon = off\n{user}')

def haproxy(port, behind):
    times = "timeout connect 9s\n timeout client 1h\n timeout server 1h"
    with open("haproxy.cfg", "w") as f:
        f.write(f"listen a\n mode tcp\n {times}\n bind 127.0.0.1:{port} ssl crt both.pem\n server a 127.0.0.1:{behind}\n")

print("hitch 1.7.2-1+b1, haproxy 2.6.12-1+deb12u4, trustme 1.2.1, CPython", platform.python_version())
print("guess: the server reads: one two three, always")
log = open("proxies.log", "w")
programs = {hitch: ["root/usr/sbin/hitch", "--config=hitch.conf"], haproxy: ["root/usr/sbin/haproxy", "-db", "-f", "haproxy.cfg"]}
seen = []
for write, command in programs.items():
    for half in (False, True):
        seen.append(through(write, command, half))
        print(f"seen: {write.__name__}: {'after its FIN' if half else 'without FIN'} the server reads: {seen[-1]}")
sys.exit(None if seen == ["one two three", "one", "one two three", "one two three"] else "the behaviour has changed")
E
LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu PYTHONPATH=$dir/lib python3 try.py
echo "as described"
