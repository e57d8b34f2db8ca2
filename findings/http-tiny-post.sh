#!/usr/bin/env bash
# Each POST of Perl's HTTP::Tiny on a kept connection takes 40 ms longer.
#
# Expected: on one connection over loopback a small POST takes as long as a GET,
#   well below a millisecond.
# Happens: HTTP::Tiny writes the head and the body of a request in two steps and
#   does not set TCP_NODELAY. So the kernel holds the body back until the other
#   side has acknowledged the head (Nagle), and the other side waits 40 ms with
#   that, as it has nothing to send yet.
#   With keep_alive => 0 it does not show: a new connection acknowledges at once.
# Why it matters: the server seems slow, for this client and for POST only, and
#   its own times and its load show nothing. A pool of connections, which is to
#   make a client faster, makes it a hundred times slower here.
# Seen: libhttp-tiny-perl 0.082-2 of Debian 12, Perl 5.36.0, Linux, CPython 3.11.7,
#   2026-11-27.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -q -o APT::Sandbox::User=root download libhttp-tiny-perl=0.082-2 >apt.log 2>&1 || { cat apt.log; exit 1; }
dpkg -x libhttp-tiny-perl_*.deb root
cat > client.pl <<'E'
use HTTP::Tiny;
use Time::HiRes "time";
my ($port, $keep) = @ARGV;
my $http = HTTP::Tiny->new(keep_alive => $keep, timeout => 20);
my @medians;
for my $method ("GET", "POST") {
    my @waits;
    for (1 .. 40) {
        my $start = time;
        my $answer = $http->request($method, "http://127.0.0.1:$port/", $method eq "POST" ? {content => "x" x 100} : {});
        die $answer->{content} unless $answer->{success};
        push @waits, time - $start;
    }
    push @medians, sprintf "%.1f", 1000 * (sort { $a <=> $b } @waits)[20];
}
print "@medians $HTTP::Tiny::VERSION $^V";
E
cat > try.py <<'E'
import platform, re, socket, subprocess, sys, threading

def serve(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = b""
    with connection:
        while more := connection.recv(65536):
            data += more
            while found := re.match(rb"(?s)(.*?)\r\n\r\n", data):
                length = re.search(rb"(?i)content-length: *(\d+)", found[1])
                end = found.end() + int(length[1] if length else 0)
                if len(data) < end:
                    break
                data = data[end:]
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

def accept(listener):
    while True:
        threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()

listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=accept, args=[listener], daemon=True).start()

def medians(keep):
    command = ["perl", "client.pl", str(listener.getsockname()[1]), keep]
    get, post, version, perl = subprocess.run(command, check=True, capture_output=True, text=True, timeout=50).stdout.split()
    return float(get), float(post), version, perl

kept, new = medians("1"), medians("0")
print(f"HTTP::Tiny {kept[2]}, Perl {kept[3]}, CPython {platform.python_version()}")
print("guess: GET and POST below 1 ms")
print(f"seen: kept connection: median of 40 GET {kept[0]} ms, POST {kept[1]} ms")
print(f"seen: new connections: median of 40 GET {new[0]} ms, POST {new[1]} ms")
same = kept[2] == "0.082" and kept[0] < 20 < 30 < kept[1] and max(new[:2]) < 20
sys.exit(None if same else "the behaviour has changed")
E
PERL5LIB=$dir/root/usr/share/perl5 python3 try.py
echo "as described"
