"""Log records: an event name, a sentence and the ids it is about, as text, JSON lines or journal fields.

Owns the forms and the set-up. `get(__name__).info("build.started", "on %s", name, build_id=id)` writes one.

Fields are ids, counts, durations and reasons. Never pass step output or the value of an environment variable,
in a field or in a message: logs are kept longer than secrets live, and go where redaction doesn't.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agent.errors import SettingsError

if TYPE_CHECKING:
    from types import ModuleType

FORMATS = ("auto", "text", "json", "journal")
LEVELS = ("debug", "info", "warning", "error")
_ROOT = "agent"
# RQ raises its own level to INFO when it is imported, unless somebody has set one.
_QUIET = ("rq", "rq.worker", "sqlalchemy", "redis")
# line ends of any kind, escapes that steer a terminal, and marks that reorder what is shown
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PLAIN = re.compile(r"[\w.:/@+,%~-]+")
_JSON_OWN = frozenset({"at", "level", "event", "message", "logger", "thread", "exception"})
_JOURNAL_OWN = re.compile("MESSAGE|MESSAGE_ID|EVENT|ERRNO|(?:CODE|SYSLOG|COREDUMP|OBJECT)_.*|[_0-9].*|")
# these repeat the message, and as arguments and exceptions may hold more than it says
_UNSENT = ("CODE_ARGS", "EXCEPTION_INFO", "EXCEPTION_TEXT")


def get(name: str) -> EventLogger:
    """Return the logger of a module; pass `__name__`."""
    return EventLogger(logging.getLogger(name if name.partition(".")[0] == _ROOT else f"{_ROOT}.{name}"))


def setup(settings_log_format: str, level: str) -> None:
    """Send the records of this process to stderr or the journal; a second call replaces the first.

    Args:
        settings_log_format: one of FORMATS. auto: the journal when stderr leads there and systemd-python is
            installed, else text.
        level: one of LEVELS, for the agent's own records; libraries' are written from warning up.
    Raises: SettingsError for another word, and for journal without systemd-python.
    """
    if settings_log_format not in FORMATS or level not in LEVELS:
        expected = f"log_format is one of {', '.join(FORMATS)}, log_level one of {', '.join(LEVELS)}"
        raise SettingsError(f"{expected}; got {settings_log_format!r} and {level!r}")
    handler = _handler(settings_log_format)
    handler.set_name(_ROOT)
    root = logging.getLogger()
    for old in [each for each in root.handlers if each.get_name() == _ROOT]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    severity = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger(_ROOT).setLevel(severity)
    for name in ("", *_QUIET):
        logging.getLogger(name).setLevel(max(severity, logging.WARNING))


class EventLogger:
    """Writes records of one module. Nothing is formatted unless the record is written.

    `event` is a literal such as "build.started"; `message % args` a sentence for people; `fields` the ids.
    """

    __slots__ = ("_fields", "_logger")

    def __init__(self, logger: logging.Logger, fields: Mapping[str, object] | None = None) -> None:
        self._logger = logger
        self._fields = fields or {}

    def bind(self, **fields: object) -> EventLogger:
        """Return a logger that puts these fields into each of its records."""
        return EventLogger(self._logger, {**self._fields, **fields})

    def debug(self, event: str, message: str = "", /, *args: object, **fields: object) -> None:
        """Write what only helps to find a fault."""
        self._write(logging.DEBUG, event, message, args, fields)

    def info(self, event: str, message: str = "", /, *args: object, **fields: object) -> None:
        """Write what happened as it should."""
        self._write(logging.INFO, event, message, args, fields)

    def warning(self, event: str, message: str = "", /, *args: object, **fields: object) -> None:
        """Write what went wrong and is being dealt with."""
        self._write(logging.WARNING, event, message, args, fields)

    def error(self, event: str, message: str = "", /, *args: object, **fields: object) -> None:
        """Write what went wrong and needs a person."""
        self._write(logging.ERROR, event, message, args, fields)

    def exception(self, event: str, message: str = "", /, *args: object, **fields: object) -> None:
        """Write an error with the traceback of the exception being handled."""
        self._write(logging.ERROR, event, message, args, fields, exc_info=True)

    def _write(
        self,
        severity: int,
        event: str,
        message: str,
        args: tuple[object, ...],
        fields: Mapping[str, object],
        *,
        exc_info: bool = False,
    ) -> None:
        if self._logger.isEnabledFor(severity):
            extra = {"event": event, "fields": {**self._fields, **fields}}
            # stacklevel: the caller of info(), not this line, is where the record comes from
            self._logger.log(severity, message, *args, extra=extra, exc_info=exc_info, stacklevel=3)


class TextFormatter(logging.Formatter):
    """One line a record, tracebacks set off: `10:38:27.123Z build.started on b7 build_id=42`."""

    def __init__(self, *, has_time: bool = True) -> None:
        super().__init__()
        self._has_time = has_time

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text in which no value can begin a line or pass for another field."""
        event, fields = _event_of(record)
        parts = [f"{_instant(record):%H:%M:%S.%f}"[:-3] + "Z"] if self._has_time else []
        parts.append(one_line(event))
        if record.levelno != logging.INFO:
            parts.append(f"{record.levelname}:")
        parts.append(one_line(record.getMessage()))
        parts += [f"{one_line(name)}={_quoted(value)}" for name, value in fields.items()]
        trace = [f"    | {one_line(line)}" for line in _traceback(self, record).splitlines()]
        return "\n".join([" ".join(part for part in parts if part), *trace])


class JsonFormatter(logging.Formatter):
    """One JSON object a line; fields stand beside `at`, `level`, `event`, `message`, `logger`, `thread`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of ASCII JSON."""
        import json

        event, fields = _event_of(record)
        shown: dict[str, Any] = {
            "at": _instant(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": event,
            "message": record.getMessage(),
            "logger": record.name,
            "thread": record.threadName,
        }
        shown |= {
            f"field_{name}" if name in _JSON_OWN else name: _plain(value) for name, value in fields.items()
        }
        if trace := _traceback(self, record):
            shown["exception"] = trace
        return json.dumps(shown)


class _StderrHandler(logging.Handler):
    """Writes to what is stderr at that moment, each record in one call so that processes don't mix lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - logging's own rule: a record that can't be written ends no build
            self.handleError(record)


def one_line(text: str) -> str:
    """Return the text with line ends, terminal escapes and reordering marks written out as escapes."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def _handler(log_format: str) -> logging.Handler:
    if log_format in ("auto", "journal"):
        journal = _journal_module()
        if journal is not None and (log_format == "journal" or _leads_to_journal()):
            return _journal_handler(journal)
        if log_format == "journal":
            raise SettingsError(
                "log_format: journal needs systemd-python: install build-agent[systemd] or Debian's "
                "python3-systemd, or take text or json"
            )
    handler = _StderrHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    return handler


def _journal_module() -> ModuleType | None:
    try:
        # the submodule: a folder systemd/ in the working directory passes for the package
        return importlib.import_module("systemd.journal")
    except ImportError:
        return None


def _leads_to_journal() -> bool:
    """Whether stderr is the stream that JOURNAL_STREAM names; shells in a unit inherit the name.

    Source: systemd.exec(5), $JOURNAL_STREAM: "<device>:<inode>" of the stream.
    """
    named = os.environ.get("JOURNAL_STREAM")
    if not named:
        return False
    try:
        stderr = os.fstat(2)
    except OSError:
        return False
    return named == f"{stderr.st_dev}:{stderr.st_ino}"


def _journal_handler(journal: ModuleType) -> logging.Handler:
    # positional only: a record that another handler has formatted has an attribute `message`
    def send(text: str, /, **attributes: Any) -> None:
        """Pass on the handler's fields and ours, in upper case; no other attributes."""
        sent = {name: value for name, value in attributes.items() if name.isupper() and name not in _UNSENT}
        event, fields = attributes.get("event", attributes.get("name", "")), attributes.get("fields", {})
        for name, value in fields.items():
            key = re.sub(r"[^A-Z0-9_]", "_", name.upper())[:58]
            is_taken = key in sent or _JOURNAL_OWN.fullmatch(key)
            sent[f"FIELD_{key}" if is_taken else key] = one_line(str(value))
        journal.send(text, EVENT=event, **sent)

    handler: logging.Handler = journal.JournalHandler(SYSLOG_IDENTIFIER="build-agent", sender_function=send)
    handler.setFormatter(TextFormatter(has_time=False))
    return handler


def _event_of(record: logging.LogRecord) -> tuple[str, Mapping[str, object]]:
    """Return event and fields; a library's record has its logger's name for an event."""
    return getattr(record, "event", record.name), getattr(record, "fields", {})


def _instant(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[0]:
        return formatter.formatException(record.exc_info)
    return record.exc_text or ""


def _quoted(value: object) -> str:
    import json

    text = str(value)
    return text if _PLAIN.fullmatch(text) else one_line(json.dumps(text, ensure_ascii=False))


def _plain(value: object) -> object:
    """Return what JSON knows; an infinite number, which it doesn't, as text."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    return str(value)
