#!/usr/bin/env python3
"""The image and the compose file, really built and really run: `make test-docker`.

Every check is one function; the first that fails ends the run with its sentence. All images, containers and volumes it makes
carry the prefix `oxicorn-test`, and are removed at the end.
"""
import http.client
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The client of Debian's docker.io can ask its engine for BuildKit without a plugin.
DOCKER = os.environ.get("DOCKER", "docker")
IMAGE = "oxicorn:0.1.0"
NAME = "oxicorn-test"
SIZE_MAX = 30 * 1000 * 1000
GRACE = 45
FAILED_TO_CONNECT = (ConnectionError, http.client.HTTPException, OSError)


def sh(*command, check=True, **options):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    if check and done.returncode:
        sys.exit(f"FAILED: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done


def docker(*arguments, **options):
    return sh(DOCKER, *arguments, **options).stdout.strip()


def expect(fact, sentence):
    if not fact:
        print(docker("logs", NAME, check=False), file=sys.stderr)
        sys.exit(f"FAILED: {sentence}")
    print(f"ok: {sentence}", flush=True)


def eventually(ask, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.1)
    return None


def request(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except FAILED_TO_CONNECT:
        return None, b""
    finally:
        connection.close()


def serves(port, path="/health"):
    return request(port, "GET", path)[0] == 200


class Load:
    """Clients that never retry; what is not answered 200 is lost."""

    def __init__(self, port, path, clients=8):
        self.port, self.path = port, path
        self.answered, self.lost, self.refused, self.over = 0, [], 0, False
        self.threads = [threading.Thread(target=self.client) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def client(self):
        connection = None
        while not self.over:
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                try:
                    connection.connect()
                except OSError:
                    # Never accepted: nothing of ours is lost. Docker's proxy refuses once the container is gone.
                    self.refused += 1
                    connection = None
                    time.sleep(0.02)
                    continue
            try:
                connection.request("GET", self.path)
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    self.answered += 1
                else:
                    self.lost.append(f"status {answer.status}")
                if answer.will_close:
                    connection.close()
                    connection = None
            except FAILED_TO_CONNECT as error:
                self.lost.append(repr(error))
                connection.close()
                connection = None

    def end(self):
        self.over = True
        for thread in self.threads:
            thread.join()


def run(*options, command=(), port=8000, name=NAME):
    docker("rm", "--force", "--volumes", name, check=False)
    docker("run", "--detach", "--name", name, "--publish", f"127.0.0.1:{port}:8000", *options, IMAGE, *command)
    expect(eventually(lambda: serves(port), 30), f"it serves with {' '.join(options) or 'no options'}")


def build():
    environment = {**os.environ, "DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}
    began = time.monotonic()
    sh(DOCKER, "build", "--tag", IMAGE, ".", env=environment)
    print(f"first build: {time.monotonic() - began:.0f} s", flush=True)
    size = int(docker("image", "inspect", "--format", "{{.Size}}", IMAGE))
    expect(size <= SIZE_MAX, f"the image has {size / 1e6:.1f} MB, at most {SIZE_MAX / 1e6:.0f}")
    main = ROOT / "src/main.rs"
    before = main.read_text()
    try:
        main.write_text(before + "\n// changed\n")
        again = sh(DOCKER, "build", "--tag", IMAGE, ".", env=environment)
    finally:
        main.write_text(before)
    output = again.stdout + again.stderr
    expect("Compiling oxicorn" in output, "a changed source is compiled")
    expect("Compiling hyper" not in output, "a changed source leaves the dependencies as they were compiled")


def as_it_is():
    run("--stop-timeout", str(GRACE), "--env", "OXICORN_SERVICE__DEBUG=true")
    expect(eventually(lambda: docker("inspect", "--format", "{{.State.Health.Status}}", NAME) == "healthy", 30), "docker calls it healthy")
    pids = docker("top", NAME, "-eo", "pid,uid,stat,args").splitlines()[1:]
    expect(len(pids) >= 2 and all(line.split()[1] == "1000" for line in pids), "every process runs as uid 1000")
    expect(request(8000, "POST", "/facts", {"text": "in a container"})[0] == 201, "a fact is written to the volume")

    load = Load(8000, "/debug/sleep/5")
    for signal, word in [("HUP", "reloaded"), ("USR2", "upgraded")]:
        docker("kill", "--signal", signal, NAME)
        said = eventually(lambda: f"event={word}" in sh(DOCKER, "logs", NAME).stderr, 60)
        expect(said, f"SIG{signal} to PID 1: {word}")
    expect(docker("inspect", "--format", "{{.State.Running}}", NAME) == "true", "the container outlives both")
    load.end()
    expect(not load.lost and load.answered > 100, f"through both, of {load.answered} requests none is lost {load.lost[:3]}")

    # An orphan: a second supervisor whose master is killed leaves its workers to PID 1.
    docker("exec", "--detach", NAME, "/usr/local/bin/oxicorn", "--bind", "127.0.0.1:9000", "--name", "second", "--workers", "1")
    def second(word):
        return [line for line in docker("top", NAME, "-eo", "pid,stat,args").splitlines() if "[second]" in line and word in line]
    expect(eventually(lambda: second("worker"), 20), "a second supervisor runs inside")
    os.kill(int(second("master")[0].split()[0]), 9)
    gone = eventually(lambda: not second(""), 20)
    zombies = [line for line in docker("top", NAME, "-eo", "pid,stat,args").splitlines()[1:] if line.split()[1].startswith("Z")]
    expect(gone and not zombies, f"PID 1 reaps orphans {zombies}")

    load = Load(8000, "/debug/sleep/50")
    eventually(lambda: load.answered > 50, 20)
    began = time.monotonic()
    docker("stop", NAME)
    took = time.monotonic() - began
    load.end()
    state = json.loads(docker("inspect", "--format", "{{json .State}}", NAME))
    expect(not load.lost, f"docker stop under load: of {load.answered} requests none is lost {load.lost[:3]}")
    expect(took < GRACE and state["ExitCode"] == 0, f"docker stop took {took:.1f} s of {GRACE}, exit code {state['ExitCode']}")


def locked_down():
    run("--read-only", "--tmpfs", "/tmp", "--tmpfs", "/data:uid=1000", "--cap-drop=ALL", "--security-opt=no-new-privileges")
    expect(request(8000, "POST", "/facts", {"text": "read-only"})[0] == 201, "read-only, without capabilities: a fact is written")
    docker("rm", "--force", "--volumes", NAME)


def composed():
    compose = ["docker-compose", "--project-name", NAME, "--file", "docker-compose.yml", "--file", "tests/docker/compose.yml"]
    try:
        sh(*compose, "up", "--detach", "--no-build")
        expect(eventually(lambda: serves(8000, "/ready"), 60), "docker compose up: ready, on MongoDB")
        status, body = request(8000, "POST", "/facts", {"text": "it survives"})
        expect(status == 201, "a fact is written to MongoDB")
        sh(*compose, "down")
        sh(*compose, "up", "--detach", "--no-build")
        expect(eventually(lambda: serves(8000, "/ready"), 60), "down, and up again: ready")
        fact = json.loads(body)["id"]
        expect(request(8000, "GET", f"/facts/{fact}")[0] == 200, "the fact survives down and up")
    finally:
        sh(*compose, "down", "--volumes", check=False)


try:
    sh("tests/docker/base-images.sh", env={**os.environ, "DOCKER": DOCKER})
    build()
    as_it_is()
    locked_down()
    composed()
finally:
    docker("rm", "--force", "--volumes", NAME, check=False)
print("docker: all as promised")
