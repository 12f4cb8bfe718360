"""Logs: one line per event on standard error, for people (``console``) or programs (``json``).

The only door to structlog; everybody else asks `get_logger`. Rules:

- An event is a dotted word (``http.request``) with named fields. Times are UTC.
- Fields bound with `bind_context` (the request id) are on every line of their thread or task.
- Fields named like a value (``password``, ``authorization`` ...) are struck out whatever they hold, and so
  is every value that a `Redactor` holds. Control characters are escaped: one event can not forge another.
- The standard library's loggers (gunicorn, urllib3, kubernetes ...) go through the same formatter. Libraries
  that could write requests are never below WARNING, even when we are at DEBUG.
- Of an exception, ours or one that a library hands to its logger, only `describe` is written: its message
  may quote what it failed on. What is worth telling of an error of ours, its catcher logs as fields.

What is not here: the audit log (`telemetry.audit`), which is made of such lines.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, Protocol, TextIO, cast

import structlog

from secretsvc.telemetry.redaction import STRUCK_OUT, Redactor

LogFormat = Literal["console", "json"]

QUIET_LIBRARIES = ("urllib3", "requests", "hvac", "kubernetes", "client", "aiohttp", "asyncio", "werkzeug")
"""Loggers that are never below WARNING. ``client`` is the kubernetes client's own, by its own name."""

_VALUE_NAMES = frozenset(
    {
        "secret",
        "password",
        "passwd",
        "token",
        "auth",
        "authorization",
        "proxy_authorization",
        "cookie",
        "set_cookie",
        "secret_id",
        "client_token",
        "x_vault_token",
        "identitytoken",
        "identity_token",
        "registrytoken",
        "private_key",
        "dockerconfigjson",
        "kek",
    }
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MULTI_LINE = frozenset({"stack"})
_MAX_FRAMES = 20


class Logger(Protocol):
    """What modules log with. ``event`` is a dotted word, the rest are its fields."""

    def debug(self, event: str, **fields: object) -> None:
        """Record what only a developer asks for."""
        ...

    def info(self, event: str, **fields: object) -> None:
        """Record what happened."""
        ...

    def warning(self, event: str, **fields: object) -> None:
        """Record what someone may have to look at."""
        ...

    def error(self, event: str, **fields: object) -> None:
        """Record what someone has to look at."""
        ...


def get_logger(name: str) -> Logger:
    """Return the logger of a module, by the module's ``__name__``."""
    return cast("Logger", structlog.stdlib.get_logger(name))


def configure(level: str, log_format: LogFormat, redactor: Redactor, stream: TextIO | None = None) -> None:
    """Send all logs of this process to ``stream``, by default standard error.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``, for our own lines.
        log_format: ``console`` or ``json``.
        redactor: knows the values to strike out.
        stream: where lines go.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    target = stream if stream is not None else sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(_formatter(log_format, redactor, colours=target.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_common(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def adopt(*names: str) -> None:
    """Take loggers that made handlers of their own (gunicorn's) back into ours."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def bind_context(**fields: str) -> None:
    """Forget what was bound, and put ``fields`` on every further line of this thread or task."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**fields)


def describe(error: BaseException) -> dict[str, object]:
    """Return what may be logged of an error nobody foresaw: types and code places, never its message."""
    chain: list[str] = []
    while isinstance(error, BaseExceptionGroup):  # a task group's: the first error tells where
        chain.append(type(error).__qualname__)
        error = error.exceptions[0]
    seen: BaseException | None = error
    while seen is not None and len(chain) < _MAX_FRAMES:
        chain.append(type(seen).__qualname__)
        seen = seen.__cause__ or seen.__context__
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": " < ".join(chain), "places": places}


# --- The parts ------------------------------------------------------------------------------------


def _common() -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _describe_exception,
        _strike_out_by_name,
        _escape_controls,
    ]


def _describe_exception(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace ``exc_info``, in any of the forms that loggers take, by what may be told of it."""
    given = event.pop("exc_info", None)
    if given and not isinstance(given, tuple | BaseException):
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event.update({name: value for name, value in describe(error).items() if name not in event})
    return event


def _formatter(log_format: LogFormat, redactor: Redactor, *, colours: bool) -> logging.Formatter:
    """Strike out values twice: before rendering, which would escape them again, and in the finished line."""

    def strike_out(_logger: object, _method: str, event: Any) -> Any:  # noqa: ANN401  # structlog's own type
        return _cleaned(event, redactor)

    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer(default=repr)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=colours)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_common(),
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            strike_out,
            renderer,
            strike_out,
        ],
    )


def _cleaned(value: Any, redactor: Redactor) -> Any:  # noqa: ANN401  # any field's value
    if isinstance(value, str):
        return redactor.clean(value)
    if isinstance(value, Mapping):
        return {name: _cleaned(inner, redactor) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(inner, redactor) for inner in value]
    return value


def _strike_out_by_name(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    return {name: _without_values(name, value) for name, value in event.items()}


def _without_values(name: object, value: object) -> object:
    if str(name).lower().replace("-", "_").lstrip(".") in _VALUE_NAMES:
        return STRUCK_OUT
    if isinstance(value, Mapping):
        return {key: _without_values(key, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_values("", inner) for inner in value]
    return value


def _escape_controls(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str) and name not in _MULTI_LINE:
            event[name] = _CONTROL.sub(_escaped, value)
    return event


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")
