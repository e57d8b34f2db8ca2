"""The logging configuration of Gunicorn (`logconfig_dict`, `logconfig_json`, `logconfig`) and Uvicorn (`--log-config`).

Owns: applying it in each worker and in the helper process, over the loggers that `_logging` has prepared. Refuses: the
log and the access log of oxicorn itself, which are Rust's.
"""

import configparser
import http
import importlib.util
import json
import logging
import os

from .. import _logging

_STREAM = {"class": "logging.StreamHandler", "formatter": "generic"}

#: The keys that Gunicorn adds to a configuration which lacks them.
_GUNICORN = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "INFO", "handlers": ["console"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["error_console"], "propagate": True},
        "gunicorn.access": {"level": "INFO", "handlers": ["console"], "propagate": True},
    },
    "handlers": {
        "console": {**_STREAM, "stream": "ext://sys.stdout"},
        "error_console": {**_STREAM, "stream": "ext://sys.stderr"},
    },
    "formatters": {
        "generic": {
            "format": "%(asctime)s [%(process)d] [%(levelname)s] %(message)s",
            "datefmt": "[%Y-%m-%d %H:%M:%S %z]",
            "class": "logging.Formatter",
        }
    },
}

#: What a file for Uvicorn may name, and what takes its place where Uvicorn is not installed.
_FORMATTERS = {
    "uvicorn.logging.DefaultFormatter": "oxicorn._compat.logconfig.DefaultFormatter",
    "uvicorn.logging.ColourizedFormatter": "oxicorn._compat.logconfig.DefaultFormatter",
    "uvicorn.logging.AccessFormatter": "oxicorn._compat.logconfig.AccessFormatter",
}


class LogConfigError(Exception):
    """The logging configuration is wrong. The text is the whole sentence."""


class DefaultFormatter(_logging.UvicornFormatter):
    """Uvicorn's formatter, without colours."""

    def __init__(self, fmt=None, datefmt=None, style="%", use_colors=None):
        super().__init__(fmt, datefmt, style)


class AccessFormatter(DefaultFormatter):
    """Uvicorn's formatter of access records: it knows the parts of their message."""

    def formatMessage(self, record):
        client, method, path, version, status = record.args
        phrase = next((one.phrase for one in http.HTTPStatus if one == status), "")
        record.client_addr, record.status_code = client, f"{status} {phrase}"
        record.request_line = f"{method} {path} HTTP/{version}"
        return super().formatMessage(record)


def apply(about, values):
    """Configures the loggers. `about` is what a worker gets to know, and `values` has Gunicorn's settings."""
    _logging.access_format = values["access_log_format"]
    if _name(values):
        _configure(*_gunicorn(values))
    if about.get("log_config"):
        _configure(*_uvicorn(about["log_config"]))
    if about.get("log_level") is not None:
        level = about["log_level"]
        for name in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
            logging.getLogger(name).setLevel(_logging.LEVELS.get(level, level.upper()))
    if about.get("access_log") is False:
        logger = logging.getLogger("uvicorn.access")
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.propagate = False


def settle_access(about, values, collected):
    """Switches the access log of oxicorn off if the configuration has handlers of its own for the records of requests,
    because each request would have two lines."""
    try:
        read = [("gunicorn.access", *_gunicorn(values))] if _name(values) else []
        read += [("uvicorn.access", *_uvicorn(about["log_config"]))] if about.get("log_config") else []
    except LogConfigError as error:
        collected.problem("logging", str(error))
        return
    for logger, origin, config in read:
        if logger in _loggers(config):
            collected.put("log.access", "off", origin, "flag")
            collected.note(origin, "info", f"has a line for each request, by the logger {logger}: log.access is off")


def _loggers(config):
    if isinstance(config, dict):
        return config.get("loggers", ())
    return [config.get(section, "qualname", fallback="") for section in config.sections()]


def _name(values):
    """Returns the name of the setting that counts, if one is given."""
    return next((name for name in ("logconfig_dict", "logconfig_json", "logconfig") if values.get(name)), None)


def _gunicorn(values):
    """Returns the name of the configuration for messages, and its content."""
    name = _name(values)
    value = values[name]
    if name == "logconfig_dict":
        return name, {**_GUNICORN, **value}
    origin = f"{name} {value}"
    if name == "logconfig_json":
        return origin, {**_GUNICORN, **_read(origin, value, json.load)}
    defaults = {"__file__": value, "here": os.path.dirname(value)}
    return origin, _read(origin, value, lambda file: _ini(file, defaults))


def _uvicorn(path):
    origin = f"--log-config {path}"
    if path.endswith(".json"):
        return origin, _read(origin, path, json.load)
    if path.endswith((".yaml", ".yml")):
        try:
            import yaml
        except ImportError:
            raise LogConfigError(f"{origin}: the package PyYAML is not installed") from None
        return origin, _read(origin, path, yaml.safe_load)
    return origin, _read(origin, path, lambda file: _ini(file, {}))


def _ini(file, defaults):
    config = configparser.ConfigParser(defaults)
    config.read_file(file)
    return config


def _read(origin, path, load):
    try:
        with open(path, encoding="utf-8") as file:
            config = load(file)
    except Exception as error:
        # Each format has exceptions of its own.
        raise LogConfigError(f"{origin}: {type(error).__name__}: {_first_line(error)}") from error
    if not isinstance(config, (dict, configparser.RawConfigParser)):
        raise LogConfigError(f"{origin}: it is no table of names")
    return config


def _configure(origin, config):
    import logging.config

    try:
        if isinstance(config, dict):
            logging.config.dictConfig(_replaced(config))
            return
        for section in config.sections():
            name = config.get(section, "class", raw=True, fallback="")
            if section.startswith("formatter_") and _is_absent(name):
                config.set(section, "class", _FORMATTERS[name])
        logging.config.fileConfig(config, disable_existing_loggers=False)
    except Exception as error:
        cause = error.__cause__ or error
        raise LogConfigError(f"{origin}: {_first_line(error)}: {type(cause).__name__}: {_first_line(cause)}") from error


def _first_line(error):
    return next(iter(str(error).splitlines()), "")


def _replaced(config):
    """Returns the configuration, with formatters in the place of Uvicorn's if that is not installed."""
    formatters = {}
    for name, formatter in config.get("formatters", {}).items():
        formatters[name] = {
            key: _FORMATTERS[value] if key in ("()", "class") and _is_absent(value) else value
            for key, value in formatter.items()
        }
    return {**config, "formatters": formatters}


def _is_absent(name):
    return isinstance(name, str) and name in _FORMATTERS and importlib.util.find_spec("uvicorn") is None
