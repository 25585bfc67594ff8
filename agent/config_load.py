"""Fill the settings from their sources: defaults, file, environment, command line; the later wins.

Owns where a value came from and the words about one that can't be used. Knows no setting by name, and never prints the
value of a secret or of a name it doesn't know (that may be a secret, misspelt).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from agent import setting
from agent.config import RULES, TABLE, Settings, expected, masked
from agent.errors import SettingsError

DEFAULT_FILE = Path("/etc/build-agent/agent.toml")
PREFIX = "BUILD_AGENT_"
FILE_VARIABLE = "BUILD_AGENT_CONFIG"
_VARIABLES = {PREFIX + name.upper(): name for name in TABLE}


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """Checked settings, where each came from, the file read (if any) and what is allowed but unwise."""

    settings: Settings
    origins: dict[str, str]
    path: Path | None = None
    warnings: tuple[str, ...] = ()


class _Given(NamedTuple):
    name: str
    raw: object
    origin: str


def _key_lines(text: str) -> dict[str, int]:
    """Find the line, from 1, at which each top-level key of a valid document begins.

    tomllib tells none. A statement is the fewest lines that parse by themselves: a string or list that goes
    over several lines doesn't until it is closed, and no complete statement is the beginning of a longer one.
    """
    import tomllib

    lines, found, table, start = text.replace("\r\n", "\n").split("\n"), dict[str, int](), "", 0
    for end in range(1, len(lines) + 1):
        try:
            statement = tomllib.loads("\n".join(lines[start:end]))
        except ValueError:
            continue
        for name in statement:
            is_header = lines[start].lstrip().startswith("[")
            table = name if is_header else table
            found.setdefault(table or name, start + 1)
        start = end
    return found


def _from_file(
    path: Path | None, environ: Mapping[str, str], faults: list[str]
) -> tuple[Path | None, int, list[_Given]]:
    named = path or (Path(environ[FILE_VARIABLE]) if environ.get(FILE_VARIABLE) else None)
    import tomllib

    file, text = named or DEFAULT_FILE, ""
    try:
        with file.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            text = stream.read().decode("utf-8-sig")
        document = tomllib.loads(text)
        lines = _key_lines(text)
    except FileNotFoundError:
        if named:
            faults.append(f"{file}: there is no such file")
    except OSError as error:
        faults.append(f"{file}: can't be read: {error.strerror}")
    except ValueError as error:
        at = re.search(r"at line ([0-9]+)", str(error))
        faults.append(f"{file}:{at[1] if at else text.count(chr(10)) + 1}: not valid TOML: {error}")
    else:
        return file, mode, [_Given(name, raw, f"{file}:{lines[name]}") for name, raw in document.items()]
    return None, 0, []


def _unknown(given: _Given) -> str:
    import difflib

    is_variable = given.origin.startswith("environment")
    name = given.name.removeprefix(PREFIX).lower().replace("-", "_")
    near = difflib.get_close_matches(name, TABLE, n=1)
    what = "unknown setting" if given.origin.endswith(given.name) else f"unknown setting {given.name}"
    if not near:
        return f"{given.origin}: {what}; no known name is near"
    return f"{given.origin}: {what}; did you mean {PREFIX + near[0].upper() if is_variable else near[0]}?"


def _malformed(given: _Given) -> str:
    is_secret = TABLE[given.name].metadata["secret"]
    got = "a secret that is not shown" if is_secret else repr(masked(given.name, given.raw))
    got = f"{got[:60]}..." if len(got) > 60 else got
    return f"{given.origin}: {given.name}: expected {expected(given.name)}; got {got}"


def _warnings(mode: int, given: Iterable[_Given], settings: Settings, path: Path | None) -> list[str]:
    said = []
    secrets = [
        it.name for it in given if TABLE[it.name].metadata["secret"] and masked(it.name, it.raw) != it.raw
    ]
    if mode & 0o004 and secrets:
        said.append(
            f"{path}: everyone may read it and it holds secrets ({', '.join(secrets)}); chmod 0640 {path}"
        )
    if mode & 0o002:
        said.append(
            f"{path}: everyone may write it, so everyone may run commands as the agent; chmod 0640 {path}"
        )
    said += [
        f"tags: {name} is the name of a setting; a setting stands above [tags]"
        for name in settings.tags
        if name in TABLE
    ]
    return said


def load(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, str]) -> Loaded:
    """Fill the settings from defaults, file, environment and command line; the later source wins.

    Args:
        path: the file, which must exist; `None`: BUILD_AGENT_CONFIG, else the default file, if it exists.
        environ: variables; only BUILD_AGENT_* are looked at.
        overrides: name to text, of `--set name=value`.
    Raises: SettingsError that names every fault there is, also in values that a later source overrides.
    """
    faults: list[str] = []
    file, mode, in_file = _from_file(path, environ, faults)
    given = [
        *in_file,
        *(
            _Given(_VARIABLES.get(key, key), value, f"environment {key}")
            for key, value in environ.items()
            if key.startswith(PREFIX) and key != FILE_VARIABLE
        ),
        *(_Given(name, value, f"--set {name}") for name, value in overrides.items()),
    ]
    values: dict[str, Any] = {}
    origins = {name: "under state_dir" if it.metadata["under"] else "default" for name, it in TABLE.items()}
    faulty = set()
    for each in given:
        if each.name not in TABLE:
            faults.append(_unknown(each))
            continue
        try:
            values[each.name] = setting.parse(TABLE[each.name], each.raw)
            origins[each.name] = each.origin
        except (ValueError, TypeError):
            faults.append(_malformed(each))
            faulty.add(each.name)
    settings = Settings(**values)
    for rule in RULES:
        # a rule about a setting that is faulty itself would only repeat that fault
        if faulty.isdisjoint(rule.names) and not rule.holds(settings):
            about = ", ".join(f"{n} = {masked(n, getattr(settings, n))} ({origins[n]})" for n in rule.names)
            faults.append(f"{about}: {rule.text}")
    if faults:
        # names and values may hold anything: one line a fault, whatever is in them
        raise SettingsError(
            "\n".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in f) for f in faults)
        )
    return Loaded(
        settings=settings,
        origins=origins,
        path=file,
        warnings=tuple(_warnings(mode, in_file, settings, file)),
    )
