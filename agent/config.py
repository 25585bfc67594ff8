"""Every setting, once: the fields of `Settings`; and how file, environment and command line fill them.

Owns names, defaults, bounds and the words about faults. Knows nothing of who uses a setting, and never
prints the value of a secret or of a name it doesn't know (that may be a secret, misspelt).
"""

# ruff: noqa: RUF009 - the calls in the table declare fields, as dataclasses.field does

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from agent import setting
from agent.errors import SettingsError
from agent.setting import DAY_S, GIB, KIB, MIB, TIB, byte_count, declare, directory, number, seconds, texts

DEFAULT_FILE = Path("/etc/build-agent/agent.toml")
PREFIX = "BUILD_AGENT_"
FILE_VARIABLE = "BUILD_AGENT_CONFIG"
# What whoever shows settings needs beside `masked` and `expected`.
MASK = setting.MASK
size = setting.size
_PASSED_ON = (
    *("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Settings:
    """All settings, for one life of the agent. `load` makes a checked one; the constructor checks nothing.

    Directories left out are made from `state_dir`; `dataclasses.replace` keeps those that are there.
    """

    server_name: str = declare("", "Name of the server; empty: taken from the machine.", setting.NAME)
    slots: int = number(2, 1, 64, "How many builds run at once.")
    queues: tuple[str, ...] = texts(("builds",), 1, "Queues to serve, the most urgent first.", setting.NAME)
    tags: dict[str, str] = declare({}, 'What is special about this server, such as { arch = "arm64" }.')
    cloud: str = declare(
        "auto", "Who knows the machine; auto: EC2 if it answers.", choices=("auto", "ec2", "none")
    )
    metadata_url: str = declare("http://169.254.169.254", "EC2's metadata service.", setting.HTTP_URL)
    redis_url: str = declare(
        "redis://127.0.0.1:6379/0", "Redis, which carries queues.", setting.REDIS_URL, secret=True
    )
    database_url: str = declare(
        "sqlite:////var/lib/build-agent/build-agent.db", "The database.", setting.DATABASE_URL, secret=True
    )
    state_dir: Path = declare(Path("/var/lib/build-agent"), "What the agent keeps on the machine.")
    workspace_dir: Path = directory("workspaces", "Where builds run; the agent empties it.")
    spool_dir: Path = directory("spool", "Output on its way to the database; has to survive a restart.")
    mirror_dir: Path = directory("mirrors", "Mirrors of git repositories.")
    cache_dir: Path = directory("caches", "Caches of builds.")
    artifact_dir: Path = directory("artifacts", "Artifacts of builds.")
    secrets_dir: Path = declare(Path("/etc/build-agent/secrets"), "Secrets of builds.")
    image_file: Path = declare(
        Path("/etc/build-agent/image.json"), "What the image says of itself; may be missing."
    )
    lease_s: float = seconds(
        30, 1, 3600, "Without a heartbeat for so long an attempt is lost and runs elsewhere."
    )
    heartbeat_s: float = seconds(5, 0.1, 1200, "Between two heartbeats; at most a third of lease_s.")
    max_attempts: int = number(3, 1, 100, "Tries at a build that ends for reasons of the infrastructure.")
    stop_limit_s: float = seconds(3600, 0, 7 * DAY_S, "How long the first SIGTERM lets running builds go on.")
    sweep_s: float = seconds(2.5, 0.1, 600, "Between two looks for lost attempts and forgotten builds.")
    shell: tuple[str, ...] = texts(
        ("/bin/bash", "-euo", "pipefail", "-c"), 1, "Program and arguments that get a step's command line."
    )
    step_timeout_s: float = seconds(3600, 0.1, 30 * DAY_S, "Longest step, if the definition names no limit.")
    build_timeout_s: float = seconds(
        7200, 0.1, 30 * DAY_S, "Longest build, if the definition names no limit."
    )
    no_output_timeout_s: float = seconds(
        600, 0.1, 30 * DAY_S, "Longest silence of a step, if the definition names no limit."
    )
    kill_grace_s: float = seconds(10, 0, 1800, "From SIGTERM to SIGKILL; at most half of lease_s.")
    leaked_pipe_wait_s: float = seconds(
        2, 0, 60, "How long to read on when a leftover holds a step's output open."
    )
    environment_allow: tuple[str, ...] = texts(
        _PASSED_ON, 0, "Variables of the agent's environment that steps see.", setting.VARIABLE
    )
    source_roots: tuple[str, ...] = texts(
        (), 0, "Directories on the server that builds may take as their source; empty: none."
    )
    mirror_limit_bytes: int = byte_count(
        20 * GIB, 0, 1024 * TIB, "Disk that git mirrors may take; the least recently used go first."
    )
    git_timeout_s: float = seconds(600, 1, DAY_S, "Longest git command.")
    keep_workspaces: bool = declare(False, "Leave workspaces behind, for a look at them; fills the disk.")
    chunk_bytes: int = byte_count(64 * KIB, 4 * KIB, 64 * KIB, "Most output in one row of the database.")
    flush_gap_ms: int = number(10, 0, 1000, "Output after a pause waits so long for more to come.", "ms")
    spool_limit_bytes: int = byte_count(
        2 * GIB, MIB, 16 * TIB, "Most output on disk; steps wait at the limit."
    )
    output_limit_bytes: int = byte_count(GIB, 0, 16 * TIB, "Most output of one step; 0: no limit.")
    redact_min_length: int = number(6, 1, 64, "Secrets of fewer characters aren't masked in output.")
    cache_limit_bytes: int = byte_count(
        20 * GIB, 0, 1024 * TIB, "Disk that all caches together may take; the least recently used go first."
    )
    min_free_bytes: int = byte_count(GIB, 0, 1024 * TIB, "With less free disk the server takes no build.")
    min_free_inodes: int = number(10_000, 0, 10**12, "With fewer free inodes the server takes no build.")
    min_free_memory_bytes: int = byte_count(
        128 * MIB, 0, 1024 * TIB, "With less free memory the server takes no build."
    )
    max_clock_skew_s: float = seconds(5, 0.1, DAY_S, "Farthest from the clocks of database and Redis.")
    health_address: str = declare(
        "127.0.0.1:9180", "Where health and metrics are served; empty: nowhere.", setting.ADDRESS
    )
    gauges_interval_s: float = seconds(10, 0.1, 3600, "Between two readings of the gauges.")
    metrics_source: str = declare(
        "", "Source that metrics are sent under; empty: the server's name.", setting.NAME
    )
    librato_url: str = declare(
        "https://metrics-api.librato.com/v1/metrics", "Librato's API.", setting.HTTP_URL
    )
    librato_user: str = declare("", "Account at Librato; empty: nothing is sent there.")
    librato_token: str = declare("", "Token of the account at Librato.", secret=True)
    statsd_address: str = declare("", "StatsD server (UDP); empty: nothing is sent there.", setting.ADDRESS)
    log_format: str = declare(
        "auto", "auto: journal if stderr leads there, else text.", choices=("auto", "text", "json", "journal")
    )
    log_level: str = declare(
        "info", "Least severe records that are written.", choices=("debug", "info", "warning", "error")
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.metadata["under"] and getattr(self, each.name) == setting.DERIVED:
                object.__setattr__(self, each.name, self.state_dir / each.metadata["under"])

    def __repr__(self) -> str:
        """Show every setting, secrets masked: logs, tracebacks and debuggers print it."""
        return f"Settings({', '.join(f'{n}={masked(n, getattr(self, n))!r}' for n in TABLE)})"


TABLE: Mapping[str, Field[Any]] = {each.name: each for each in fields(Settings)}
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


def masked(name: str, value: object) -> object:
    """Return a setting's value as people may see it: passwords in URLs masked, other secrets as a whole."""
    if not isinstance(value, str):
        return value
    if "://" in value:
        return setting.mask_url(value)
    return MASK if value and TABLE[name].metadata["secret"] else value


def expected(name: str) -> str:
    """Return in words what a setting takes."""
    return setting.expected(TABLE[name])


class _Rule(NamedTuple):
    """What settings have to be to each other; broken rules are named with the settings they are about."""

    names: tuple[str, ...]
    holds: Callable[[Settings], bool]
    text: str


def _apart(one: str, other: str) -> _Rule:
    def holds(settings: Settings) -> bool:
        first, second = getattr(settings, one), getattr(settings, other)
        # what lies in state_dir is as it should be; what holds it, or another, would empty it
        return not (first.is_relative_to(second) and other != "state_dir") and not second.is_relative_to(
            first
        )

    return _Rule(
        (one, other),
        holds,
        f"{other} must not lie in {one}" + ", nor the other way round" * (other != "state_dir"),
    )


_DIRECTORIES = ("workspace_dir", "spool_dir", "mirror_dir", "cache_dir", "artifact_dir")
_RULES = (
    _Rule(
        ("heartbeat_s", "lease_s"),
        lambda it: it.heartbeat_s * 3 <= it.lease_s + 1e-9,
        "heartbeat_s must be at most a third of lease_s: two heartbeats may fail before a lease ends",
    ),
    _Rule(
        ("kill_grace_s", "lease_s"),
        lambda it: it.kill_grace_s * 2 <= it.lease_s,
        "kill_grace_s must be at most half of lease_s: a server that is cut off ends steps within its lease",
    ),
    _Rule(
        ("spool_limit_bytes", "slots", "chunk_bytes"),
        lambda it: it.spool_limit_bytes >= 4 * it.slots * it.chunk_bytes,
        "spool_limit_bytes must hold four chunks a slot, else slots wait for each other",
    ),
    _Rule(
        ("librato_user", "librato_token"),
        lambda it: bool(it.librato_user) == bool(it.librato_token),
        "Librato needs both or neither",
    ),
    _Rule(("queues",), lambda it: len(set(it.queues)) == len(it.queues), "a queue is named twice"),
    _Rule(
        ("shell",),
        lambda it: re.fullmatch(r"/\S+", it.shell[0]) is not None,
        'the first item must be the absolute path of a program, such as ["/bin/sh", "-c"]',
    ),
    *(_apart(one, other) for one, other in combinations((*_DIRECTORIES, "secrets_dir"), 2)),
    *(_apart(one, "state_dir") for one in _DIRECTORIES),
)


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
    for rule in _RULES:
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
