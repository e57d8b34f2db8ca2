#!/usr/bin/env python3
"""Builds and runs the image and the compose files: `make soak-docker`.

`make test-docker` calls `run.py BINARY`, which puts an existing binary into the image and compiles nothing. Every check
prints a sentence, and the first check that fails ends the run. The images are named oxicorn-test/… and are kept. The
containers, volumes and networks are named oxicorn-test… and are removed. base-images.sh makes the base images, so the
run needs no registry of images.
"""

import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python/tests"))
import guides  # noqa: E402

WORK = ROOT / "target/docker"
BINARY = sys.argv[1] if len(sys.argv) > 1 else None
# The build arguments of the Dockerfile; tests/docker/compose.yml also passes them on, from the environment.
ARGUMENTS = {
    "RUST": "oxicorn-test/rust",
    "RUNTIME": "oxicorn-test/runtime" if BINARY else "build",
    # That of examples/fastapi.
    "PYTHON": "oxicorn-test/python",
}
# The Makefile puts the Docker plugins buildx and compose into this folder.
os.environ |= {"DOCKER_CONFIG": str(ROOT / "target/docker-client"), "DOCKER_BUILDKIT": "1"} | ARGUMENTS
NAME = "oxicorn-test"
IMAGE = "oxicorn-test/oxicorn"
BUILD = [
    "docker",
    "build",
    "--progress",
    "plain",
    *(f"--build-arg={name}={value}" for name, value in ARGUMENTS.items()),
    "--tag",
]
SIZE_MAX = 30_000_000
GRACE = 45
LOST = (OSError, http.client.HTTPException)


def fail(sentence):
    sys.exit(f"FAILED: {sentence}")


def expect(fact, sentence):
    if not fact:
        for name in docker("ps", "--all", "--filter", f"name={NAME}", "--format", "{{.Names}}").splitlines():
            print(f"the log of {name}:", *logs(name)[-40:], sep="\n", file=sys.stderr)
        fail(sentence)
    print(f"ok: {sentence}", flush=True)


def sh(*command, check=True):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if check and done.returncode:
        fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done


def docker(*arguments, check=True):
    return sh("docker", *arguments, check=check).stdout.strip()


def logs(name):
    done = sh("docker", "logs", name, check=False)
    return (done.stdout + done.stderr).splitlines()


def inspect(what, name=NAME):
    return docker("inspect", "--format", "{{" + what + "}}", name)


def eventually(ask, seconds):
    end = time.monotonic() + seconds
    while not (answer := ask()) and time.monotonic() < end:
        time.sleep(0.1)
    return answer


def request(address, method, path, body=None):
    connection = http.client.HTTPConnection(address, timeout=10)
    with contextlib.closing(connection):
        try:
            connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except LOST:
            return None, b""


def makes_a_fact(address, text):
    status, body = request(address, "POST", "/facts", {"text": text})
    return json.loads(body)["id"] if status == 201 else None


class Load:
    """Clients that never retry. A request is lost if it was sent and not answered with 200.

    A client that cannot connect has sent no request, so it has lost none.
    """

    def __init__(self, address, path, clients):
        self.address, self.path = address, path
        self.sent, self.answered, self.lost, self.over = 0, 0, [], False
        self.threads = [threading.Thread(target=self.client, daemon=True) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def client(self):
        connection = None
        while not self.over:
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(self.address, timeout=30)
                    connection.connect()
            except OSError:
                connection = None
                time.sleep(0.02)
                continue
            try:
                self.sent += 1
                connection.request("GET", self.path)
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    self.answered += 1
                else:
                    self.lost.append(f"status {answer.status}")
                # Forgets the connection: otherwise http.client would silently open a new one.
                if answer.will_close:
                    connection = None
            except LOST as error:
                self.lost.append(repr(error))
                connection.close()
                connection = None
        if connection:
            connection.close()

    def end(self):
        self.over = True
        for thread in self.threads:
            thread.join()

    def none_lost(self, during):
        lost = f"{len(self.lost)} are lost {self.lost[:3]}"
        expect(not self.lost and self.answered, f"{during}: of {self.sent} requests for {self.path} {lost}")


def needs():
    if not shutil.which("docker"):
        fail("docker is missing: apt-get install docker.io")
    for ask in (["version"], ["buildx", "version"], ["compose", "version"]):
        done = sh("docker", *ask, check=False)
        if done.returncode:
            fail(f"`docker {' '.join(ask)}` says: {done.stderr.strip().splitlines()[-1]}")


def tags_are_pinned():
    files = [ROOT / "Dockerfile", *ROOT.glob("docker-compose*.yml"), *(ROOT / "examples/fastapi").glob("[Dc]o*")]
    images = [
        image
        for file in files
        for image in re.findall(r"^(?:ARG (?:RUST|PYTHON)=| *image: )([^\s*&]+)", file.read_text(), re.MULTILINE)
    ]
    loose = [image for image in images if not re.search(r":v?\d+\.\d+", image)]
    expect(len(images) == 6 and not loose, f"every base image has a version of at least two numbers: {images}")


def packs_the_binary():
    """Makes an image with the given binary. It replaces the Dockerfile's stage `build`, so nothing is compiled."""
    with tempfile.TemporaryDirectory() as folder:
        sh("deploy/docker/runtime.sh", BINARY, f"{folder}/runtime")
        docker("image", "rm", "--force", ARGUMENTS["RUNTIME"], check=False)
        with subprocess.Popen(["tar", "-C", folder, "-c", "runtime"], stdout=subprocess.PIPE) as tar:
            subprocess.run(
                ["docker", "import", "-", ARGUMENTS["RUNTIME"]], stdin=tar.stdout, stdout=subprocess.DEVNULL, check=True
            )


def build():
    began = time.monotonic()
    if BINARY:
        packs_the_binary()
    done = sh(*BUILD, IMAGE, ".")
    (WORK / "build.log").write_text(done.stdout + done.stderr)
    print(f"ok: docker build, {time.monotonic() - began:.0f} s", flush=True)
    size = int(docker("image", "inspect", "--format", "{{.Size}}", IMAGE))
    expect(size <= SIZE_MAX, f"the image has {size / 1e6:.1f} MB, at most {SIZE_MAX / 1e6:.0f}")

    if not BINARY:
        a_changed_source_compiles_oxicorn_alone()


def a_changed_source_compiles_oxicorn_alone():
    # The changed source does not compile. cargo still names what it compiles, and the test need not wait for linking.
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(ROOT, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("target", ".git"))
        with open(f"{copy}/src/lib.rs", "a") as source:
            source.write('compile_error!("a source was changed");\n')
        done = sh(*BUILD, IMAGE, copy, check=False)
    said = done.stdout + done.stderr
    compiled = set(re.findall(r"Compiling (\S+)", said))
    expect(
        "a source was changed" in said and compiled == {"oxicorn"},
        f"after the change of a source it compiles {compiled}",
    )


def run(*options):
    """Starts the container and returns its address in the bridge network.

    The published port is not used: it leads to Docker's proxy, which accepts connections even when nothing serves.
    """
    remove()
    docker(
        "run", "--detach", "--name", NAME, "--publish", "127.0.0.1::8000", "--stop-timeout", str(GRACE), *options, IMAGE
    )
    published = docker("port", NAME, "8000").splitlines()[0]
    expect(
        eventually(lambda: request(published, "GET", "/health")[0] == 200, 30),
        f"docker run {' '.join(options)}: it serves",
    )
    return inspect(".NetworkSettings.IPAddress") + ":8000"


def remove():
    docker("rm", "--force", "--volumes", NAME, check=False)


def processes():
    """Returns the pid outside the container, the uid and the title of each process."""
    return [line.split(None, 2) for line in docker("top", NAME, "-eo", "pid,uid,args").splitlines()[1:]]


def reloads_and_upgrades(address):
    load = Load(address, "/debug/sleep/5", 8)
    pid = inspect(".State.Pid")
    for name, word in [("HUP", "reloaded"), ("USR2", "upgraded")]:
        docker("kill", "--signal", name, NAME)
        expect(
            eventually(lambda: any(f"event={word} " in line for line in logs(NAME)), 60),
            f"docker kill -s {name}: {word}",
        )
    load.end()
    load.none_lost("a reload and an upgrade")
    expect(
        inspect(".State.Running") == "true" and inspect(".State.Pid") == pid,
        "the container runs on, with the same PID 1",
    )


def as_it_is():
    address = run("--env", "OXICORN_SERVICE__DEBUG=true")
    expect(eventually(lambda: inspect(".State.Health.Status") == "healthy", 30), "docker inspect: healthy")
    uids = {uid for _, uid, _ in processes()}
    expect(uids == {"1000"}, f"every process runs as uid 1000 {uids}")
    expect(makes_a_fact(address, "in a container"), "a fact is written to the volume")
    reloads_and_upgrades(address)

    # Makes an orphan: when the master of a second supervisor is killed, its worker becomes a child of PID 1.
    docker(
        "exec",
        "--detach",
        NAME,
        "/usr/local/bin/oxicorn",
        "--bind",
        "127.0.0.1:9000",
        "--name",
        "second",
        "--workers",
        "1",
    )

    def second(role):
        return [int(pid) for pid, _, args in processes() if f"oxicorn: {role}" in args and "[second]" in args]

    expect(eventually(lambda: second("worker"), 20), "a second supervisor runs in the container")
    orphans = second("worker")
    os.kill(second("master")[0], signal.SIGKILL)
    # Looks into /proc, because `docker top` would not show a zombie that PID 1 has not reaped.
    gone = eventually(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in orphans), 20)
    expect(gone, f"PID 1 reaps its orphans {orphans}")

    short, long = Load(address, "/debug/sleep/50", 8), Load(address, "/debug/sleep/3000", 4)
    eventually(lambda: short.answered > 50 and long.sent >= 4, 20)
    began = time.monotonic()
    docker("stop", NAME)
    took = time.monotonic() - began
    short.end()
    long.end()
    short.none_lost("docker stop")
    long.none_lost("docker stop")
    code = inspect(".State.ExitCode")
    expect(took < GRACE and code == "0", f"docker stop took {took:.1f} s of {GRACE}; exit code {code}")


def locked_down():
    address = run(
        "--env", "OXICORN_SERVICE__DEBUG=true", "--read-only", "--tmpfs", "/tmp", "--tmpfs", "/data:uid=1000",
        "--cap-drop=ALL", "--security-opt=no-new-privileges",
    )  # fmt: skip
    expect(makes_a_fact(address, "read-only"), "read-only and without capabilities, a fact is written")
    reloads_and_upgrades(address)
    remove()


def compose(*files):
    """Returns the `docker compose` command for these compose files, without a subcommand."""
    return [
        "docker",
        "compose",
        "--project-directory",
        ".",
        "--project-name",
        NAME,
        *(part for file in files for part in ("--file", file)),
    ]


PLAIN = compose("docker-compose.yml", "tests/docker/compose.yml")
PROD = compose(
    "docker-compose.yml", "docker-compose.prod.yml", "tests/docker/compose.yml", "tests/docker/compose.prod.yml"
)
TRAEFIK = compose(
    "docker-compose.yml", "docker-compose.traefik.yml", "tests/docker/compose.yml", "tests/docker/compose.traefik.yml"
)


def port(command, service, inside):
    return sh(*command, "port", service, str(inside)).stdout.strip()


UP = ["up", "--build", "--wait", "--wait-timeout", "90"]


def composed():
    for overlay in ("prod", "traefik"):
        sh(*compose("docker-compose.yml", f"docker-compose.{overlay}.yml"), "config", "--quiet")
        print(f"ok: docker compose accepts docker-compose.{overlay}.yml", flush=True)

    sh(*PLAIN, *UP)
    containers = [json.loads(line) for line in sh(*PLAIN, "ps", "--all", "--format", "json").stdout.splitlines()]
    states = {one["Service"]: one["Health"] or f"{one['State']} {one['ExitCode']}" for one in containers}
    expect(
        states == {"mongo": "healthy", "migrate": "exited 0", "backend": "healthy"},
        f"docker compose up --build --wait: {states}",
    )
    backend = port(PLAIN, "backend", 8000)
    ready = json.loads(request(backend, "GET", "/ready")[1] or "{}")
    expect(ready.get("checks") == {"database": "ok"}, f"the backend answers {ready}")
    fact = makes_a_fact(backend, "it survives")
    expect(fact, "a fact is written to MongoDB")
    sh(*PLAIN, "down")
    sh(*PLAIN, *UP)
    status, _ = request(port(PLAIN, "backend", 8000), "GET", f"/facts/{fact}")
    expect(status == 200, "the fact is still there after down and up")
    sh(*PLAIN, "down")

    tls = WORK / "tls"
    tls.mkdir(exist_ok=True)
    sh("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=example.org", "-addext",
       "subjectAltName=DNS:example.org", "-keyout", f"{tls}/privkey.pem", "-out", f"{tls}/fullchain.pem")  # fmt: skip
    behind(PROD, "nginx", "--cacert", f"{tls}/fullchain.pem")
    behind(TRAEFIK, "traefik", "--insecure")


FASTAPI = [
    "docker",
    "compose",
    "--project-directory",
    "examples/fastapi",
    "--project-name",
    f"{NAME}-fastapi",
    "--file",
    "examples/fastapi/compose.yaml",
    "--file",
    "tests/docker/compose.fastapi.yml",
]


def fastapi():
    """The example of a FastAPI app: its image, and its compose file with MongoDB."""
    sh("tests/docker/base-images.sh", "python")
    sh(*FASTAPI, *UP)
    name = f"{NAME}-fastapi-facts-1"
    expect(inspect(".State.Health.Status", name) == "healthy", "examples/fastapi: healthy by `oxicorn health`")
    uids = {line.split()[1] for line in docker("top", name, "-eo", "pid,uid").splitlines()[1:]}
    expect(uids == {"1000"}, f"examples/fastapi: every process runs as uid 1000 {uids}")
    address = port(FASTAPI, "facts", 8000)
    fact = makes_a_fact(address, "it survives")
    expect(fact, "examples/fastapi: a fact is written to MongoDB")

    # The address in the bridge network, because the published port leads to Docker's proxy.
    networks = json.loads(docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", name))
    load = Load(next(iter(networks.values()))["IPAddress"] + ":8000", f"/facts/{fact}", 4)
    docker("kill", "--signal", "HUP", name)
    expect(
        eventually(lambda: any("event=reloaded " in line for line in logs(name)), 60),
        "examples/fastapi: docker kill -s HUP: reloaded",
    )
    load.end()
    load.none_lost("examples/fastapi: a reload")

    began = time.monotonic()
    docker("stop", name)
    took, code = time.monotonic() - began, inspect(".State.ExitCode", name)
    expect(took < GRACE and code == "0", f"examples/fastapi: docker stop took {took:.1f} s; exit code {code}")
    sh(*FASTAPI, "up", "--wait", "--wait-timeout", "90")
    status, _ = request(port(FASTAPI, "facts", 8000), "GET", f"/facts/{fact}")
    expect(status == 200, "examples/fastapi: the fact is still there after stop and up")
    sh(*FASTAPI, "down", "--volumes")


# The pages with a Dockerfile, the heading under which it stands, and the project for which it is made.
MOVED = [
    ("from-gunicorn.md", "A Dockerfile for FastAPI", "shop"),
    ("from-gunicorn.md", "A Dockerfile for Django", "mysite"),
    ("from-uvicorn.md", "A Dockerfile", "shop"),
]


def moved():
    """The Dockerfiles of the guides, and a compose file with nginx, as they are after the move."""
    with tempfile.TemporaryDirectory() as folder:
        for page, heading, project in MOVED:
            at = project_with(f"{folder}/{len(os.listdir(folder))}", page, heading, project)
            image = f"oxicorn-test/{project}"
            sh("docker", "build", "--quiet", "--tag", image, at)
            remove()
            docker("run", "--detach", "--name", NAME, "--stop-timeout", str(GRACE), image)
            healthy = eventually(lambda: inspect(".State.Health.Status") == "healthy", 60)
            expect(healthy, f"{page}, {heading}: healthy by `oxicorn health`")
            began = time.monotonic()
            docker("stop", NAME)
            took, code = time.monotonic() - began, inspect(".State.ExitCode")
            expect(took < GRACE and code == "0", f"{page}: docker stop took {took:.1f} s; exit code {code}")
        remove()
        page, heading, project = MOVED[0]
        composed_as_in(page, project_with(f"{folder}/composed", page, heading, project))


def project_with(folder, page, heading, project):
    """Makes a folder with a project and its Dockerfile, and returns its path."""
    shutil.copytree(ROOT / "python/tests/apps/guides" / project, folder)
    dockerfile = guides.block(page, heading, "Dockerfile").after
    pathlib.Path(folder, "Dockerfile").write_text(dockerfile.replace("python:3.12-slim", ARGUMENTS["PYTHON"]))
    return folder


def composed_as_in(page, folder):
    for name in ("compose.yaml", "nginx.conf"):
        text = guides.block(page, "Compose, with nginx in front", name).after
        pathlib.Path(folder, name).write_text(text)
    command = ["docker", "compose", "--project-name", f"{NAME}-guides", "--project-directory", folder]
    command += ["--file", f"{folder}/compose.yaml", "--file", "tests/docker/compose.guides.yml"]
    try:
        sh(*command, *UP)
        address = port(command, "nginx", 80)
        answer = eventually(lambda: request(address, "GET", "/") == (200, b'{"hello":"world"}'), 30)
        expect(answer, f"{page}: through nginx of its compose file")
        seen = json.loads(request(address, "GET", "/client")[1])
        expect(seen["client"] != address_of(command, "nginx"), f"{page}: the app sees the client of nginx: {seen}")
    finally:
        sh(*command, "down", "--volumes", check=False)


def address_of(command, service):
    """Returns the address of a service in the network of its compose file."""
    container = sh(*command, "ps", "--quiet", service).stdout.strip()
    (network,) = json.loads(inspect("json .NetworkSettings.Networks", container)).values()
    return network["IPAddress"]


def behind(command, proxy, *trust):
    """Starts the services of the compose files and checks them through this proxy."""
    sh(*command, *UP)
    https, plain = (port(command, proxy, inside).rpartition(":")[2] for inside in (443, 80))

    def curl(published, url, wanted):
        inside = 443 if url.startswith("https") else 80
        connect = f"example.org:{inside}:127.0.0.1:{published}"
        options = [*trust, "--connect-to", connect, "--write-out", wanted]
        return sh("curl", "--silent", *options, url, check=False).stdout

    wanted = '{"status":"alive"} HTTP/2'
    answer = eventually(lambda: curl(https, "https://example.org/health", " HTTP/%{http_version}") == wanted, 20)
    expect(answer, f"through {proxy}, over TLS: {wanted}")
    answer = curl(https, "https://example.org/metrics", " %{http_code}")
    expect(answer.endswith(" 404"), f"through {proxy} the metrics are not served: {answer.splitlines()[-1]}")
    answer = curl(plain, "http://example.org/a", r"\n%{redirect_url}").splitlines()[-1]
    expect(answer == "https://example.org/a", f"plain HTTP is redirected to {answer}")
    seen = eventually(
        lambda: [line.split()[0] for line in logs(f"{NAME}-backend-1") if "GET /health" in line and "curl" in line], 10
    )
    expect(set(seen) == {"172.30.0.1"}, f"the backend sees the client of {proxy}, not {proxy}: {seen}")
    sh(*command, "down", "--volumes")


def clean():
    remove()
    for command in (PROD, TRAEFIK, FASTAPI):
        sh(*command, "down", "--volumes", "--remove-orphans", check=False)


def belongings():
    """Returns the test's containers and networks, and all volumes: one without a name cannot be recognized."""
    named = [["ps", "--all"], ["network", "ls"]]
    theirs = [docker(*ask, "--quiet", "--filter", f"name={NAME}") for ask in named]
    return set(" ".join([docker("volume", "ls", "--quiet"), *theirs]).split())


signal.signal(signal.SIGTERM, lambda *_: sys.exit("FAILED: ended by SIGTERM"))
needs()
WORK.mkdir(parents=True, exist_ok=True)
clean()
before, began = belongings(), time.monotonic()
try:
    tags_are_pinned()
    # These images are made during the compilation, because the compiler needs neither the network nor the disk.
    with concurrent.futures.ThreadPoolExecutor(1) as others:
        made = others.submit(sh, "tests/docker/base-images.sh", "mongo", "nginx", "traefik")
        if not BINARY:
            sh("tests/docker/base-images.sh", "rust")
        build()
        made.result()
    print(f"ok: all images, {time.monotonic() - began:.0f} s", flush=True)
    as_it_is()
    locked_down()
    composed()
    fastapi()
    moved()
finally:
    clean()
expect(belongings() <= before, f"nothing is left behind {belongings() - before}")
print(f"docker: all checks passed, {time.monotonic() - began:.0f} s")
