"""Defines the rows with a proxy in front of oxicorn. Each row says how the proxy starts, how it reaches oxicorn, and
which losses are the fault of the proxy.

Each proxy has a file in proxies/ with places to fill in: `@port@` (where clients connect), `@dir@` (its folder),
`@upstream@` (oxicorn), `@idle@` and the like. Towards oxicorn, the proxy has its default retries, pools and time
limits. Only its limits towards its clients are long, so that they cause no loss. The client is Python's
http.client, which never retries.
"""

import contextlib
import dataclasses
import functools
import http.client
import os
import pathlib
import re
import shutil
import signal
import ssl
import subprocess
import tempfile

from direct import python
from drive import GET, GUARD, ROOT, TARGET, Broken, Known, Row, certificate, eventually, free_port

HERE = ROOT / "tests/clients/proxies"
WHEELS = TARGET / "clients-proxies"
FRONT = python("http_client", threads=8)
# hitch passes on the protocol of its client, and also the end of an idle connection. http.client does not look for that
# end, so other clients ask through hitch.
THROUGH = {"PROXY v2, HTTP/2": python("pycurl", version="2", threads=8)}


def fill(text, values):
    """Replaces each place `@name@` in the text by its value, which may have places too, or by nothing."""
    while "@" in text and (filled := re.sub(r"@(\w+)@", lambda place: values.get(place[1], ""), text)) != text:
        text = filled
    return text


@dataclasses.dataclass(frozen=True)
class Proxy:
    """A proxy. For each transport, `upstreams` has the values for the proxy's file, or only a text for `@upstream@`.

    In these values, `@to@` stands for oxicorn's port and `@socket@` for its unix socket.
    """

    name: str
    command: tuple
    upstreams: dict
    idle: str = ""  # the proxy's setting for its idle time towards oxicorn; @seconds@ is filled in
    file: str = ""
    tls: bool = False
    environment: tuple = ()
    makes: object = None  # a function (folder, values) that writes more files

    @contextlib.contextmanager
    def before(self, service, transport, idle=None):
        """Runs the proxy in front of the service. Gives the origin that the clients must ask."""
        program = pathlib.Path(self.command[0]).name
        folder, port = pathlib.Path(tempfile.mkdtemp(prefix=f"oxicorn-{program}-")), free_port()
        folder.chmod(0o777)  # some proxies write as users of their own
        upstream = self.upstreams[transport]
        values = {"upstream": upstream} if isinstance(upstream, str) else dict(upstream)
        values |= {"port": str(port), "dir": str(folder), "to": str(service.port), "socket": str(service.socket)}
        values |= {"idle": self.idle, "seconds": str(idle)} if idle else {}
        if self.file:
            (folder / self.file).write_text(fill((HERE / self.file).read_text(), values))
        if self.makes:
            self.makes(folder, values)
        command = [filled for word in self.command if (filled := fill(word, values))]
        environment = (
            os.environ | {"HOME": str(folder)} | {name: fill(value, values) for name, value in self.environment}
        )
        with (folder / "said").open("w") as said:
            try:
                process = GUARD.start(
                    command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
                )
            except OSError as error:
                raise Broken(f"{command[0]}: {error}") from None
        try:
            eventually(lambda: self.serves(process, port, folder), 30, f"{self.name} serves (see {folder})")
            yield f"http{'s' if self.tls else ''}://localhost:{port}"
        finally:
            ends(process)
        shutil.rmtree(folder, ignore_errors=True)

    def serves(self, process, port, folder):
        if process.poll() is not None:
            raise Broken(f"{self.name} has ended (see {folder})")
        if self.tls:
            context = ssl.create_default_context(cafile=certificate() / "ca.pem")
            connection = http.client.HTTPSConnection("localhost", port, timeout=2, context=context)
        else:
            connection = http.client.HTTPConnection("localhost", port, timeout=2)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("HEAD", GET)  # HEAD, because the test counts GET and POST
            return connection.getresponse().status == 200
        return False


def ends(process):
    """Ends the process and its children: they are in one process group, because the process leads its own session."""
    for way in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, way)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    GUARD.forget(process)


def key_and_chain(folder, _):
    """Writes the key and the certificate chain into one file, because hitch reads them from one."""
    pem = "".join((certificate() / name).read_text() for name in ("key.pem", "cert.pem"))
    (folder / "both.pem").write_text(pem)


# The changes that a test makes in the shipped files: ports, paths and the name. Traefik must not ask any server for a
# certificate.
SHIPPED = {
    "traefik.yml": {
        r'":80"': '"127.0.0.1:@plain@"', r'":443"': '"127.0.0.1:@port@"', "/etc/traefik/": "@dir@/", "/acme/": "@dir@/",
        "tlsChallenge: {}": "tlsChallenge: {}\n      caServer: https://127.0.0.1:9/none",
    },
    "dynamic.yml": {
        r"example\.org": "localhost", "http://backend:8000": "@upstream@",
        r"idleConnTimeout: \d+s": "@idle@",
    },
}  # fmt: skip
OUR_CERTIFICATE = (
    "\ntls: {stores: {default: {defaultCertificate: {certFile: @tls@/cert.pem, keyFile: @tls@/key.pem}}}}\n"
)


def shipped(folder, values):
    """Writes the files of deploy/traefik with the changes in `SHIPPED`."""
    values = {"plain": str(free_port()), "tls": str(certificate()), **values}
    for name, changes in SHIPPED.items():
        text = (ROOT / "deploy/traefik" / name).read_text()
        for old, new in changes.items():
            if new == "@idle@" and "idle" not in values:
                continue
            text, found = re.subn(old, new, text)
            if not found:
                raise Broken(f"deploy/traefik/{name} does not hold {old} any more")
        text += OUR_CERTIFICATE if name == "dynamic.yml" else ""
        (folder / name).write_text(fill(text, values))


ENVOY = "address: {socket_address: {address: 127.0.0.1, port_value: @to@}}"
ENVOY_V2 = (
    "transport_socket: {name: envoy.transport_sockets.upstream_proxy_protocol, typed_config: {"
    '"@type": type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, '
    "config: {version: V2}, transport_socket: {name: raw, typed_config: {"
    '"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}'
)
HTTP1, HTTP2 = "http_protocol_options: {}", "http2_protocol_options: {}"
TCP, UNIX = "127.0.0.1:@to@", "unix:@socket@"
CADDY = {"HTTP/1.1": TCP, "unix": "unix/@socket@", "h2c": f"h2c://{TCP}"}
CADDY_RUN = ("run", "--config", "Caddyfile")
CADDY_HOME = (("XDG_CONFIG_HOME", "@dir@"), ("XDG_DATA_HOME", "@dir@"))

PROXIES = [
    Proxy(
        "nginx", ("nginx", "-p", "@dir@", "-c", "nginx.conf", "-e", "said"), {"HTTP/1.1": TCP, "unix": UNIX},
        "keepalive_timeout @seconds@s;", "nginx.conf",
    ),
    Proxy(
        "HAProxy", ("haproxy", "-db", "-f", "haproxy.cfg"),
        {
            "HTTP/1.1": TCP, "unix": "@socket@", "h2c": f"{TCP} proto h2", "PROXY v2": f"{TCP} send-proxy-v2",
            "PROXY v2, h2c": f"{TCP} send-proxy-v2 proto h2",
        },
        "pool-purge-delay 1s", "haproxy.cfg",
    ),
    Proxy(
        "Apache", ("apache2", "-X", "-f", "@dir@/apache.conf"),
        {"HTTP/1.1": f"http://{TCP}/", "unix": "unix:@socket@|http://localhost/", "h2c": f"h2c://{TCP}/"},
        "ttl=@seconds@", "apache.conf",
    ),
    Proxy("Caddy 2.6", ("/usr/bin/caddy", *CADDY_RUN), CADDY, "keepalive @seconds@s", "Caddyfile",
        environment=CADDY_HOME),
    Proxy("Caddy 2.11", (f"{WHEELS}/bin/caddy", *CADDY_RUN), CADDY, "keepalive @seconds@s", "Caddyfile",
        environment=CADDY_HOME),
    Proxy(
        "Varnish",
        (
            "varnishd", "-F", "-n", "@dir@", "-a", "127.0.0.1:@port@", "-f", "@dir@/varnish.vcl", "-s", "malloc,16m",
            "-p", "timeout_idle=3600", "@idle@",
        ),
        {
            "HTTP/1.1": '.host = "127.0.0.1"; .port = "@to@";', "unix": '.path = "@socket@";',
            "PROXY v2": '.host = "127.0.0.1"; .port = "@to@"; .proxy_header = 2;',
        },
        "-pbackend_idle_timeout=@seconds@", "varnish.vcl",
    ),
    Proxy(
        "Squid", ("squid", "-N", "-f", "squid.conf"), {"HTTP/1.1": "127.0.0.1 parent @to@ 0"},
        "server_idle_pconn_timeout @seconds@ seconds", "squid.conf",
    ),
    Proxy(
        "lighttpd", ("lighttpd", "-D", "-f", "lighttpd.conf"),
        {"HTTP/1.1": '"host" => "127.0.0.1", "port" => @to@', "unix": '"host" => "@socket@"'}, file="lighttpd.conf",
    ),
    Proxy(
        "nghttpx", ("nghttpx", "--conf=nghttpx.conf"),
        {"HTTP/1.1": "127.0.0.1,@to@", "unix": UNIX, "h2c": "127.0.0.1,@to@;;proto=h2"},
        "backend-keep-alive-timeout=@seconds@s", "nghttpx.conf",
    ),
    Proxy(
        "hitch", ("hitch", "--config=hitch.conf"),
        {"PROXY v2": "[127.0.0.1]:@to@", "PROXY v2, HTTP/2": "[127.0.0.1]:@to@", "PROXY v2, unix": "@socket@"},
        file="hitch.conf", tls=True, makes=key_and_chain,
    ),
    Proxy(
        "Envoy", (f"{WHEELS}/envoy/_bin/envoy", "-c", "envoy.yaml", "--concurrency", "1",
        "--disable-hot-restart", "--log-level", "warning"),
        {
            "HTTP/1.1": {"upstream": ENVOY, "protocol": HTTP1},
            "unix": {"upstream": "address: {pipe: {path: @socket@}}", "protocol": HTTP1},
            "h2c": {"upstream": ENVOY, "protocol": HTTP2},
            "PROXY v2": {"upstream": ENVOY, "protocol": HTTP1, "transport_socket": ENVOY_V2},
        },
        "common_http_protocol_options: {idle_timeout: @seconds@s}", "envoy.yaml",
    ),
    Proxy(
        "Traefik, deploy/traefik", (f"{WHEELS}/bin/traefik", "--configFile=traefik.yml"),
        {"HTTP/1.1": f"http://{TCP}", "h2c": f"h2c://{TCP}"},
        "idleConnTimeout: @seconds@s", tls=True, makes=shipped,
    ),
]  # fmt: skip

VERSIONS = {
    "nginx": ["nginx", "-v"], "HAProxy": ["haproxy", "-v"], "Apache": ["apache2", "-v"],
    "Caddy": ["/usr/bin/caddy", "version"],
    "Varnish": ["varnishd", "-V"], "Squid": ["squid", "-v"], "lighttpd": ["lighttpd", "-v"],
    "nghttpx": ["nghttpx", "--version"],
    "hitch": ["hitch", "--version"],
}  # fmt: skip
V2 = {"server__proxy_protocol": '"v2"'}
REWINDS = Known("Go has written the body to a connection that has just got a GOAWAY, and cannot write it twice", 0.01)
REFUSES = Known("mod_proxy_http2 answers 502 for a stream that crosses a GOAWAY, and retries nothing", 0.01)
DRAINS = ("reload", "recycle", "upgrade", "scale")
GO = {f"{event} POST": REWINDS for event in DRAINS}
CUTS = Known("hitch closes its client as soon as the server has ended its own side, and resets bytes on the way", 0.001)
KNOWN = {
    ("Caddy 2.6", "h2c"): GO, ("Caddy 2.11", "h2c"): GO, ("Traefik, deploy/traefik", "h2c"): GO,
    ("Apache", "h2c"): dict.fromkeys(DRAINS, REFUSES), ("hitch", "PROXY v2, HTTP/2"): dict.fromkeys(DRAINS, CUTS),
}  # fmt: skip
SHORT = {("nginx", "HTTP/1.1"), ("HAProxy", "h2c"), ("Caddy 2.6", "unix")}


def behind(proxy, service, _, transport):
    with proxy.before(service, transport) as origin:
        yield origin, None


def row(proxy, transport):
    load = THROUGH.get(transport, python("requests", threads=8)) if proxy.name == "hitch" else FRONT
    return Row(
        proxy.name, transport, load,
        settings={"log__access_exclude": '["/ready"]', **(V2 if "v2" in transport else {})},
        front=contextlib.contextmanager(functools.partial(behind, proxy, transport=transport)),
        known=KNOWN.get((proxy.name, transport), {}), short=(proxy.name, transport) in SHORT,
    )  # fmt: skip


ROWS = [row(proxy, transport) for proxy in PROXIES for transport in proxy.upstreams]
