"""The server's log, on standard error: lines for people, or lines of JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any


class _TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO answered path=/v1/completions status=200`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        fields = " ".join(f"{name}={_word(value)}" for name, value in _fields(record).items() if value is not None)
        line = " ".join(filter(None, (_time(record), record.levelname, record.getMessage(), fields)))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    """A JSON object on each line: time, level, message, and the fields of the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        told: dict[str, Any] = {"time": _time(record), "level": record.levelname, "message": record.getMessage()}
        told |= _fields(record)
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def set_up_logging(form: str) -> None:
    """Sends the server's log to standard error.

    Args:
        form: "text" or "json".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    for name, level in (("neo_tf", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z"


def _word(value: Any) -> str:
    """A value without spaces or line breaks, which would make another line or field of the log."""
    text = str(value)
    return text if text.isprintable() and " " not in text and '"' not in text else json.dumps(text)
