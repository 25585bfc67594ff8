"""How the former life of the agent ended, as systemd saw it: the unit's ExecStopPost leaves it in the state directory."""

from __future__ import annotations

from pathlib import Path

from agent import log

NAME = "former-end"
_log = log.get("agent")


def read(state_dir: Path) -> str | None:
    """Return the words of $SERVICE_RESULT, $EXIT_CODE and $EXIT_STATUS, such as "watchdog killed KILL".

    `None` where there is no note, as without systemd. An end that was not a success is told to the log, once a life.
    """
    try:
        words = " ".join((state_dir / NAME).read_text("utf-8", "replace")[:200].split())
    except OSError:
        return None
    if words and not words.startswith("success"):
        _log.warning("agent.former_end", words)
    return words or None
