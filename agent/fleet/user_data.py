"""The settings that a server is started with: its user data, a file in agent.toml's form that begins with a mark.

Read from the file that `fleet_server_config` names, checked as settings, and changed where a server is to be special.
"""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent import config_load
from agent.config import TABLE, Settings
from agent.errors import SettingsError
from agent.host.first_boot import HEAD

# What a server that is to become an image is started with: an agent that its base may hold waits for these, joins
# nothing, and does not power the server off for it.
_NOWHERE = {
    "redis_url": "redis://127.0.0.1:1/0",
    "database_url": "postgresql://127.0.0.1:1/none",
    "when_unfit": "stay",
}
_NEEDED = ("redis_url", "database_url")
_HOW = "it becomes the settings of each server that is started, in the form of agent.toml"


def of_servers(settings: Settings) -> dict[str, Any]:
    """Read the file that `fleet_server_config` names. Raises: SettingsError."""
    if not settings.fleet_server_config:
        raise SettingsError(
            "fleet_server_config is not set: it names the file with the settings that servers are started with, "
            "redis_url and database_url as servers reach them among these"
        )
    return read(Path(settings.fleet_server_config))


def read(path: Path) -> dict[str, Any]:
    """Read the settings of servers. Raises: SettingsError that names the file and every fault."""
    try:
        text = path.read_text("utf-8-sig")
        document = tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"fleet_server_config {path}: {error.strerror}; {_HOW}") from error
    except ValueError as error:
        raise SettingsError(f"fleet_server_config {path}: not valid TOML: {error}") from error
    config_load.load(path, {}, {})
    missing = [name for name in _NEEDED if name not in document]
    if missing:
        raise SettingsError(
            f"fleet_server_config {path}: {' and '.join(missing)} must be set, as servers reach them; {_HOW}"
        )
    return document


def render(document: Mapping[str, Any], **special: Any) -> str:
    """Return user data: the settings of servers, with those that are special to this one.

    Raises: SettingsError when the result is no settings.
    """
    text = "\n".join([HEAD, *_lines({**document, **special})]) + "\n"
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        config_load.load(Path(file.name), {}, {})
    return text


def of_builder() -> str:
    """Return the user data of a server that is to become an image: it takes no part in anything."""
    return render(_NOWHERE)


def secrets(document: Mapping[str, Any]) -> list[str]:
    """Return the values that must not be shown."""
    return [
        str(value) for name, value in document.items() if name in TABLE and TABLE[name].metadata["secret"]
    ]


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    tables = {name: value for name, value in document.items() if isinstance(value, Mapping)}
    for name, value in document.items():
        if name not in tables:
            yield f"{name} = {_value(value)}"
    for name, table in tables.items():
        yield f"[{name}]"
        for key, value in table.items():
            # Names of tags may hold a dot, which a bare key must not.
            yield f"{_value(str(key))} = {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    plain = str(value).replace("\\", "\\\\").replace('"', '\\"')
    # Settings hold printable text only; TOML wants control characters by number.
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in plain) + '"'
