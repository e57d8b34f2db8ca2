"""Promise: Gunicorn's and Uvicorn's command lines mean here what they mean there, and what cannot is told. The tables
have every setting of the installed versions."""

import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from harness import command
from oxicorn import _compat
from oxicorn._compat import commandline, gunicorn, uvicorn
from oxicorn._compat.collected import Collected

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Read:
    def __init__(self, line, environ):
        reading = _compat.read(shlex.split(line), environ)
        self.dialect, self.words = reading.dialect, shlex.join(reading.words)
        self.compat = json.loads(reading.compat) if reading.compat else None
        got = self.compat or {"settings": [], "notes": [], "problems": []}
        self.settings = {entry["key"]: entry["value"] for entry in got["settings"]}
        self.origins = {entry["key"]: (entry["origin"], entry["strength"]) for entry in got["settings"]}
        self.notes = {note["origin"]: note["text"] for note in got["notes"]}
        self.problems = {problem["origin"]: problem["text"] for problem in got["problems"]}


def read(line, **environ):
    return Read(line, environ)


@pytest.mark.parametrize("line", [
    "app:app",
    "app:app -w 4 --bind 127.0.0.1:9000 -t 2m",
    "run app:app -w4 --access-logfile -",
    "status --json",
    "-c supervisor.toml check app:app --deep",
    "app:app --mistake",
    "",
])
def test_an_own_line_stays_as_it_is(line):
    got = read(line)
    assert (got.dialect, got.words, got.compat) == ("oxicorn", line, None)


@pytest.mark.parametrize("line, dialect, words, settings", [
    (
        "main:app --host 0.0.0.0 --port 80 --workers 4 --log-format json", "uvicorn",
        "main:app --log-format json",
        {"server.bind": "0.0.0.0:80", "workers.count": "4", "log.access": "-"},
    ),
    (
        "app.main:app -w 4 -k uvicorn.workers.UvicornWorker -b 0.0.0.0:80 --timeout 120 --log-level warning",
        "gunicorn",
        "app.main:app",
        {"python.interface": "asgi", "workers.count": "4", "server.bind": "0.0.0.0:80", "workers.timeout": "120",
         "log.level": "warning"},
    ),
    (
        "myproject.wsgi -b unix:/run/x.sock -m 007 -k gthread --threads 4 -e A=1 -e B=2", "gunicorn", "myproject.wsgi",
        {"server.bind": "unix:/run/x.sock", "server.unix_mode": "0660", "workers.count": "1",
         "python.interface": "wsgi", "python.threads": "4", "python.raw_env": '["A=1", "B=2"]'},
    ),
    (
        "main:create_app --factory --uds /tmp/x.sock --no-access-log --no-proxy-headers", "uvicorn",
        "'main:create_app()'",
        {"server.bind": "unix:/tmp/x.sock", "server.unix_mode": "0666", "workers.count": "1", "log.access": "off",
         "http.forwarded_allow_ips": ""},
    ),
])
def test_a_foreign_line_becomes_settings(line, dialect, words, settings):  # fmt: skip
    got = read(line)
    assert (got.dialect, got.words, got.problems) == (dialect, words, {})
    assert got.settings == settings
    assert got.compat["argv"] == shlex.split(line)


# ---- the tables ----


def test_the_table_has_every_setting_of_gunicorn_with_its_flags_and_default():
    config = importlib.import_module("gunicorn.config")
    from gunicorn import __version__

    assert gunicorn.VERSION == __version__
    theirs = {setting.name: setting for setting in config.KNOWN_SETTINGS}
    assert set(gunicorn.OPTIONS) == set(theirs)
    # The machine, the environment and the version of Python decide these.
    differ = {"bind", "workers", "user", "group", "chdir", "ssl_version", "control_socket", "forwarded_allow_ips"}
    for name, option in gunicorn.OPTIONS.items():
        setting = theirs[name]()
        assert option.flags == tuple(setting.cli or ()), name
        switch = setting.action in ("store_true", "store_const")
        assert switch == (option.kind in gunicorn.SWITCHES), name
        assert (setting.action == "append") == (option.kind == "list"), name
        if option.kind != "hook" and name not in differ:
            assert option.default == (setting.value or option.default), name
        assert option.text or option.how == "same", name


def test_the_number_of_arguments_of_each_hook_is_gunicorns():
    config = importlib.import_module("gunicorn.config")
    from gunicorn import util

    theirs = {setting.name: setting for setting in config.KNOWN_SETTINGS}
    for name, counts in gunicorn.HOOK_ARGUMENTS.items():
        assert counts[0] == util.get_arity(theirs[name].default), name


def test_the_table_has_every_option_of_uvicorn_with_its_flags_and_default():
    main = importlib.import_module("uvicorn.main").main
    from uvicorn import __version__

    assert uvicorn.VERSION == __version__
    theirs = {parameter.name: parameter for parameter in main.params}
    assert set(uvicorn.OPTIONS) == set(theirs)
    for name, option in uvicorn.OPTIONS.items():
        parameter = theirs[name]
        if parameter.param_type_name == "option":
            assert option.flags == (*parameter.opts, *parameter.secondary_opts), name
            assert (option.kind in uvicorn.SWITCHES) == parameter.is_flag, name
            assert (option.kind == "list") == parameter.multiple, name
        default = parameter.to_info_dict().get("default")
        assert option.default == (None if str(default).startswith("Sentinel") else default), name
        assert option.text or option.how == "same", name


@pytest.mark.needs_oxicorn
def test_oxicorns_own_flags_are_those_of_its_help():
    text = ""
    for words in ((), ("check",), ("config",)):
        text += subprocess.run([*command(), *words, "--help"], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^ {2,6}(-\w, )?(--[\w-]+)( <)?", text, re.MULTILINE)
    assert {long for _, long, _ in found} == set(_compat.OWN_FLAGS)
    assert {short[:2]: long for short, long, _ in found if short} == _compat.OWN_SHORTS
    for _, long, value in found:
        assert (_compat.OWN_FLAGS[long] == "-") == (not value), long
    commands = set(re.findall(r"^  (\w+)  ", text, re.MULTILINE)) | {"completions", "man", "import"}
    assert commands == set(_compat.COMMANDS)


def test_every_key_of_the_tables_exists():
    page = (REFERENCE / "settings.md").read_text() + (REFERENCE / "python.md").read_text()
    for option in [*gunicorn.OPTIONS.values(), *uvicorn.OPTIONS.values()]:
        if "." in option.key and "`" not in option.key:
            section, name = option.key.split(".")
            assert f"| `{option.key}` |" in page or (section == "python" and f"| `{name}` |" in page), option.key


# ---- what each kind of word means ----


@pytest.mark.parametrize("line, dialect", [
    ("app:app -w 4 -k sync", "gunicorn"),
    ("app:app --threads 2", "gunicorn"),
    ("app:app --host ::", "uvicorn"),
    ("app:app --ssl-keyfile k --ssl-certfile c", "uvicorn"),
    ("app:app --log-level debug --host 0.0.0.0 -k sync", "uvicorn"),
    ("-c conf.py app:app", "gunicorn"),
    ("-c python:conf app:app", "gunicorn"),
    ("app:app -c file:conf", "gunicorn"),
    ("app:app -c conf -k sync", "gunicorn"),
    ("app:app -c supervisor.toml -k sync", "gunicorn"),
    ("app:app -c conf", "oxicorn"),
    ("app:app --root-path /x", "oxicorn"),
    ("run:app -k sync", "gunicorn"),
])
def test_the_first_flag_that_one_server_has_decides(line, dialect):
    assert read(line).dialect == dialect


def test_variables_decide_too():
    assert read("app:app", GUNICORN_CMD_ARGS="-w 2").dialect == "gunicorn"
    assert read("app:app", UVICORN_PORT="80").dialect == "uvicorn"
    assert read("app:app", UVICORN_SERVICE_HOST="10.0.0.1").dialect == "oxicorn", "no option has this name"
    got = read("app:app --host ::", GUNICORN_CMD_ARGS="-w 2")
    assert got.dialect == "uvicorn" and "not read" in got.notes["GUNICORN_CMD_ARGS"]
    got = read("app:app -k sync", UVICORN_PORT="80")
    assert got.dialect == "gunicorn" and "not read" in got.notes["UVICORN_PORT"]


def test_gunicorn_cmd_args_are_weaker_than_flags():
    got = read("app:app -t 7", GUNICORN_CMD_ARGS="--timeout 60 --workers=3 -e A=1")
    assert got.origins["workers.timeout"] == ("--timeout", "flag") and got.settings["workers.timeout"] == "7"
    assert got.origins["workers.count"] == ("GUNICORN_CMD_ARGS: --workers", "env")
    got = read("app:app", GUNICORN_CMD_ARGS="--mistake --bind 'a b")
    assert "GUNICORN_CMD_ARGS: --mistake" in got.problems


def test_uvicorns_variables_are_weaker_than_options():
    got = read("main:app --port 9000", UVICORN_PORT="80", UVICORN_HOST="0.0.0.0", UVICORN_ACCESS_LOG="false")
    assert got.settings["server.bind"] == "0.0.0.0:9000" and got.origins["server.bind"][1] == "flag"
    assert got.settings["log.access"] == "off" and got.origins["log.access"] == ("env UVICORN_ACCESS_LOG", "env")
    got = read("", UVICORN_APP="main:create", UVICORN_FACTORY="1")
    assert got.settings["python.app"] == "main:create()"
    assert read("app:app", UVICORN_PORT="tcp://10.0.0.1:80").problems == {
        "UVICORN_PORT=tcp://10.0.0.1:80": '"tcp://10.0.0.1:80" is not a whole number',
    }


@pytest.mark.parametrize("words, address", [
    ("-b 0.0.0.0", "0.0.0.0:8000"),
    ("-b localhost:80", "localhost:80"),
    ("-b :80", ":80"),
    ("-b tcp://127.0.0.1:80", "127.0.0.1:80"),
    ("-b [::]:80", "[::]:80"),
    ("-b [::1]", "[::1]"),
    ("-b fd://3", "fd://3"),
    ("-b unix:///run/x.sock", "unix:/run/x.sock"),
    ("-b unix:x.sock --chdir app", "unix:app/x.sock"),
    ("-b a:1 --bind=b:2", "a:1,b:2"),
    ("--host 127.0.0.2", "127.0.0.2:8000"),
    ("--port 80", "127.0.0.1:80"),
    ("--host :: --port 80", "[::]:80"),
    ("--uds /run/x.sock --port 80", "unix:/run/x.sock"),
    ("--fd 3", "fd://3"),
])
def test_addresses(words, address):
    assert read(f"app:app -k sync {words}").settings["server.bind"] == address


@pytest.mark.parametrize("words, key, value", [
    ("-b unix:x -m 18", "server.unix_mode", "0644"),
    ("-b unix:x -m 022", "server.unix_mode", "0644"),
    ("-b unix:x --umask=0o27", "server.unix_mode", "0640"),
    ("--keep-alive 0", "http.keep_alive", "1ms"),
    ("--graceful-timeout 0", "workers.graceful_timeout", "1s"),
    ("-t 0", "workers.timeout", "0"),
    ("-t 2m", "workers.timeout", "2m"),
    ("-w auto", "workers.count", "auto"),
    ("-w 2n+1", "workers.count", "2n+1"),
    ("-w=3", "workers.count", "3"),
    ("-w3", "workers.count", "3"),
    ("--proxy-protocol", "server.proxy_protocol", "auto"),
    ("--proxy-protocol v2", "server.proxy_protocol", "v2"),
    ("--no-control-socket", "control.socket", "off"),
    ("--pid run/x.pid --chdir app", "process.pidfile", "app/run/x.pid"),
    ("--access-logfile - --chdir app", "log.access", "-"),
    ("--pythonpath a,b", "python.pythonpath", '["a", "b"]'),
    ("--certfile both.pem", "tls.keyfile", "both.pem"),
    ("--cert-reqs 2 --ca-certs ca.pem", "tls.client_ca", "ca.pem"),
    ("--http-protocols h1", "http.http2", "false"),
    ("--http-protocols h2,h1", "http.http2", "true"),
    ("--log-file x.log", "log.file", "x.log"),
    ("--error-logfile x.log", "log.file", "x.log"),
    ("--access-logformat '%(h)s'", "log.access_format", "%(h)s"),
    ("--threads 8", "python.threads", "8"),
    ("-k gevent", "python.threads", "32"),
    ("-k gevent --threads 8", "python.threads", "8"),
    ("-k egg:gunicorn#gthread", "python.interface", "wsgi"),
    ("-k uvicorn_worker.UvicornWorker", "python.interface", "asgi"),
    ("-k uvicorn.workers.UvicornH11Worker", "python.interface", "asgi"),
    ("-k asgi", "python.interface", "asgi"),
    ("--asgi-lifespan off", "python.lifespan", "off"),
    ("--paste /x/app.ini#web --paste-global a=b", "python.app",
     "paste.deploy:loadapp('config:/x/app.ini#web', global_conf={'a': 'b'})"),
    ("--reload-include x --timeout-keep-alive 0", "http.keep_alive", "1ms"),
    ("--interface wsgi", "python.threads", "10"),
    ("--interface asgi3", "python.interface", "asgi"),
    ("--ws-ping-interval 2.5", "python.ws_ping_interval", "2.5"),
    ("--ws-per-message-deflate false", "python.ws_per_message_deflate", "false"),
    ("--forwarded-allow-ips 10.0.0.1,/run/x.sock --host ::", "http.forwarded_allow_ips", "10.0.0.1"),
])  # fmt: skip
def test_values(words, key, value):
    got = read(f"app:app {words} -e A=1")
    assert (got.settings[key], got.problems, got.words) == (value, {}, "app:app")


@pytest.mark.parametrize("words, origin, text", [
    ("--preload", "--preload", "has no effect yet"),
    ("-k gevent", "-k gevent", "green threads, 32"),
    ("--timeout 9 -k sync", "--timeout 9", "http.request_timeout"),
    ("--worker-tmp-dir /dev/shm", "--worker-tmp-dir /dev/shm", "shared memory"),
    ("--statsd-host x:1", "--statsd-host x:1", "metrics_path"),
    ("--log-syslog -R", "--log-syslog", "no syslog"),
    ("--loop uvloop", "--loop uvloop", "asyncio on tokio"),
    ("--http httptools", "--http httptools", "one parser"),
    ("--ws none", "--ws none", "the app still gets them"),
    ("--header X:1", "--header X:1", "no header is added"),
    ("--no-date-header", "--no-date-header", "always sent"),
    ("--reload", "--reload", "oxicorn reload"),
    ("--log-config x.ini", "--log-config x.ini", "applied in each worker"),
    ("--graceful-timeout 0 -k sync", "--graceful-timeout 0", "1 second"),
])
def test_what_is_not_the_same_is_told(words, origin, text):
    assert text in read(f"app:app {words}").notes[origin]


@pytest.mark.parametrize("words", [
    "-k uvicorn.workers.UvicornWorker", "-k sync --threads 4", "--host 0.0.0.0 --loop asyncio --http auto --ws auto",
    "--no-use-colors --host 0.0.0.0", "--proxy-headers --no-server-header", "--lifespan on", "--max-requests 5 -k asgi",
])
def test_what_is_the_same_is_not_told(words):
    got = read(f"app:app {words}")
    assert got.compat and (got.notes, got.problems) == ({}, {})


@pytest.mark.parametrize("words, origin, text", [
    ("-D", "-D", "foreground"),
    ("-RD", "-D", "foreground"),
    ("-k gevnt", "-k gevnt", '"gevnt" is not known'),
    ("-k app.workers.Mine", "-k app.workers.Mine", "not known"),
    ("--dirty-app x:Y", "--dirty-app x:Y", "task queue"),
    ("--protocol uwsgi", "--protocol uwsgi", "proxy_pass"),
    ("--threads many", "--threads many", '"many" is not a whole number'),
    ("--cert-reqs 1", "--cert-reqs 1", "cannot be optional"),
    ("--cert-reqs 2", "--cert-reqs 2", "missing: --ca-certs"),
    ("--proxy-protocol --proxy-allow-from 10.0.0.1", "--proxy-allow-from 10.0.0.1", "one list"),
    ("--interface asgi2", "--interface asgi2", "ASGI 2"),
    ("--loop mine:factory", "--loop mine:factory", "of your own"),
    ("--ssl-keyfile-password x", "--ssl-keyfile-password x", "encrypted"),
    ("--lifespan maybe", "--lifespan maybe", "none of auto, on, off"),
    ("--factory", "--factory", "names no factory"),
    ("--threads", "--threads", "a value is missing"),
])
def test_what_cannot_be_is_refused(words, origin, text):
    line = f"app {words}" if words == "--factory" else f"app:app {words}"
    assert text in read(line).problems[origin]


def test_the_default_of_one_worker_holds_for_a_foreign_command_only(folder):
    assert read("app:app -k sync").settings["workers.count"] == "1"
    assert read("app:app --port 80").settings["workers.count"] == "1"
    assert "workers.count" not in read("app:app -k sync", WEB_CONCURRENCY="3").settings
    assert "workers.count" not in read("app:app --root-path /x").settings
    (folder / ".env").write_text("WEB_CONCURRENCY=3\n")
    assert "workers.count" not in read("app:app --port 80 --env-file .env").settings
    assert read("app:app --port 80 --env-file none").settings["workers.count"] == "1"
    (folder / "supervisor.toml").touch()
    assert "workers.count" not in read("app:app -k sync").settings
    assert "server.unix_mode" not in read("app:app -k sync -b unix:x").settings
    assert "log.access" not in read("app:app --port 80").settings


def test_flags_of_oxicorn_stay_for_its_own_command_line():
    got = read("app:app --port 80 --log-format json --boot-timeout=5 --mistake --limit-concurrency 3")
    assert got.words == "app:app --log-format json --boot-timeout=5 --mistake"
    assert got.settings["http.limit_concurrency"] == "3"
    assert read("app:app --reload-dir x --check-config -v").words == "app:app --check-config --version"


def test_a_configuration_is_found_as_gunicorn_finds_it(folder):
    assert read("app:app").compat is None
    (folder / "gunicorn.conf.py").touch()
    assert read("app:app").compat["configuration"] == "gunicorn.conf.py"
    assert read("app:app").dialect == "gunicorn"
    assert read("app:app -c other.py").compat["configuration"] == "other.py"
    assert read("app:app", GUNICORN_CMD_ARGS="-c third.py").compat["configuration"] == "third.py"
    assert read("app:app --port 80").compat["configuration"] is None, "Uvicorn reads no such file"
    assert read("app:app -c supervisor.toml").compat is None
    assert read("app:app", OXICORN_CONFIG="x.toml").compat is None
    (folder / "supervisor.toml").touch()
    assert read("app:app").compat is None
    assert read("app:app -k sync").compat["configuration"] is None
    worker = read("app:app -c other.py -t 7 -e A=1").compat["worker"]
    assert worker == {"folder": str(folder), "configuration": "other.py", "cfg": {"timeout": 7, "raw_env": ["A=1"]}}


def test_the_file_of_paste_may_configure_the_loggers(folder):
    ini = folder / "app.ini"
    ini.write_text("[app:main]\nuse = egg:x\n")
    assert "worker" not in read("--paste app.ini").compat
    ini.write_text("[app:main]\nuse = egg:x\n[loggers]\nkeys = root\n[handlers]\nkeys =\n[formatters]\nkeys =\n")
    got = read("--paste app.ini#main")
    assert got.compat["worker"]["cfg"]["logconfig"] == str(ini) and "each worker" in got.notes["--paste app.ini#main"]
    assert read(f"--paste {ini} --log-config other.ini").compat["worker"]["cfg"]["logconfig"] == "other.ini"


def test_commands_come_first(folder):
    (folder / "gunicorn.conf.py").touch()
    for line in ("status --json", "-c conf.py reload", "stop", "health /x", "scale +1"):
        got = read(line, GUNICORN_CMD_ARGS="-n shop --preload -D")
        assert got.settings["process.name"] == "shop" and (got.notes, got.problems) == ({}, {}), line
        assert got.compat["configuration"] == ("conf.py" if "conf.py" in line else "gunicorn.conf.py")
        assert got.words == line.replace("-c conf.py ", "")
    assert read("help check").compat is None
    assert read("check app:app -k sync --deep").words == "check app:app --deep"
    assert read("run run:app -k sync").words == "run run:app"


def test_the_folder_of_the_app(folder):
    got = read("main:app --app-dir src")
    assert (got.words, got.settings["python.pythonpath"]) == ("main:app", '["src"]')
    (folder / "src").mkdir()
    (folder / "src" / "main.py").touch()
    assert read("main:app --app-dir src").words == "main:app"
    (folder / "main.py").touch()
    got = read("main:app --app-dir src")
    assert got.words == "src/main.py:app" and "python.pythonpath" not in got.settings


# ---- what the other servers themselves read ----

#: Values that these settings take, if not any value of their kind.
EXAMPLES = {
    "asgi_lifespan": "on", "asgi_loop": "uvloop", "header_map": "refuse", "http2_cleartext": "both",
    "http2_max_frame_size": "20000", "http2_max_concurrent_streams": "7",
    "http_parser": "python", "http_protocols": "h2,h1", "reload_engine": "poll",
    "chdir": "/tmp", "cert_reqs": "2", "reload_extra_files": "/etc/hosts",
    "interface": "wsgi", "lifespan": "off", "log_level": "debug", "reload_dirs": "/tmp", "env_file": "/etc/hosts",
    "log_config": "/etc/hosts",
}  # fmt: skip
OF_KIND = {
    "int": ["7", "0"], "count": ["7"], "octal": ["022", "18", "0o27", "0"], "text": [" a b ", "x=y"], "class": ["sync"],
    "commas": ["10.0.0.1, ::1"], "float": ["2.5", "3"], "truth": ["false", "1", "on"], "list": ["a=1"], "user": ["7"],
}  # fmt: skip


def lines_of(table):
    """Returns a line for each flag of a table and each kind of value."""
    for option in table.OPTIONS.values():
        for flag in option.flags:
            if option.kind in table.SWITCHES:
                yield option, [flag]
                continue
            if option.kind in ("proxy", "any") or option.name in ("config", "version", "statsd_host"):
                continue
            for value in [EXAMPLES[option.name]] if option.name in EXAMPLES else OF_KIND[option.kind]:
                yield option, [flag, value]
                yield option, [f"{flag}={value}"]
                if not flag.startswith("--"):
                    yield option, [f"{flag}{value}"]
                if option.kind == "list":
                    yield option, [flag, value, flag, value]


def our_value(table, option, words):
    """The value that is read from a line with one flag."""
    dialect = "gunicorn" if table is gunicorn else "uvicorn"
    given = {"gunicorn": {}, "uvicorn": {}}
    for part in commandline.split(words):
        commandline._take_flag(part, dialect, given, Collected())
    return given[dialect][option.name].value


def test_every_flag_is_read_as_gunicorn_reads_it(monkeypatch):
    config = importlib.import_module("gunicorn.config")
    checked = 0
    for option, words in lines_of(gunicorn):
        if words[0] in ("--check-config", "--print-config"):
            continue
        cfg = config.Config(prog="gunicorn")
        theirs = vars(cfg.parser().parse_args(words))[option.name]
        cfg.set(option.name, theirs)
        theirs, ours = cfg.settings[option.name].get(), our_value(gunicorn, option, words)
        if option.kind == "commas" and isinstance(theirs, str):
            theirs = gunicorn.read_value(option, theirs)
        assert str(ours) == str(theirs), words
        checked += 1
    assert checked > 250, checked


def test_every_option_is_read_as_uvicorn_reads_it():
    main = importlib.import_module("uvicorn.main").main
    checked = 0
    for option, words in lines_of(uvicorn):
        if option.name == "version":
            continue
        theirs = main.make_context("uvicorn", ["app:app", *words], auto_envvar_prefix=None).params[option.name]
        ours = our_value(uvicorn, option, words)
        if option.kind == "commas":
            theirs = [item.strip() for item in theirs.split(",")]
        assert ours == (list(theirs) if option.kind == "list" else theirs), words
        checked += 1
    assert checked > 100, checked


def test_every_variable_is_read_as_uvicorn_reads_it(monkeypatch):
    main = importlib.import_module("uvicorn.main").main
    for option in uvicorn.OPTIONS.values():
        switch = option.kind in uvicorn.SWITCHES
        for value in ["true", "0"] if switch else [EXAMPLES.get(option.name) or OF_KIND[option.kind][0].strip()]:
            if option.name in ("version", "app"):
                continue
            with monkeypatch.context() as patch:
                patch.setenv(f"UVICORN_{option.name.upper()}", value)
                theirs = main.make_context("uvicorn", ["app:app"], auto_envvar_prefix="UVICORN").params[option.name]
            given = {"gunicorn": {}, "uvicorn": {}}
            environ = {f"UVICORN_{option.name.upper()}": value}
            commandline._take_variables("uvicorn", [], environ, given, Collected())
            ours = given["uvicorn"][option.name].value
            if option.kind == "commas":
                theirs = [item.strip() for item in theirs.split(",")]
            assert ours == (list(theirs) if option.kind == "list" else theirs), (option.name, value)
