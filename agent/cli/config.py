"""`build-agent config`: check and show the settings, print the file and the table made from them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import click

from agent.config import TABLE, Settings, expected, masked, size
from agent.config_load import Loaded

# each group begins with the setting it is under
_GROUPS = {
    "server_name": "Server",
    "redis_url": "Queue and database",
    "state_dir": "Directories and files",
    "setup_dir": "Boot",
    "lease_s": "Delivery",
    "shell": "Steps",
    "chunk_bytes": "Output",
    "min_free_bytes": "Preflight",
    "health_address": "Health and metrics",
    "fleet_provider": "Machines and images",
    "fleet_cycle_s": "Fleet",
    "deploy_repository": "Deployment of the fleet",
    "console_address": "Console",
    "local_dir": "Machines on this host",
    "ec2_region": "Machines at EC2",
    "log_format": "Logs",
}
_HEAD = """\
# Settings of build-agent, each with its default. Made by `build-agent config template`.
# Sources, the later wins: defaults, this file, environment BUILD_AGENT_<NAME>, --set name=value.
# When it holds secrets: chown root:build-agent, chmod 0640.
# Try it with `build-agent config check`; all about settings: docs/configuration.md.
"""


class Context(Protocol):
    """What the commands here need of click's context object."""

    def load(self) -> Loaded:
        """Return the settings as file, environment and command line give them."""


@click.group()
def config() -> None:
    """Check and show the settings."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_obj
def check(obj: Context, as_json: bool) -> None:
    """Say whether the settings hold; warn of what is allowed but unwise."""
    loaded = obj.load()
    if as_json:
        path = str(loaded.path) if loaded.path else None
        click.echo(json.dumps({"path": path, "warnings": loaded.warnings}, indent=2))
        return
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"settings are good: {loaded.path or 'no file was read'}")


@config.command()
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_obj
def show(obj: Context, origin: bool, as_json: bool) -> None:
    """Print every setting as it holds; passwords and tokens are masked."""
    loaded = obj.load()
    values = {name: masked(name, getattr(loaded.settings, name)) for name in TABLE}
    if as_json:
        plain = {name: _jsonable(value) for name, value in values.items()}
        document = {n: {"value": v, "origin": loaded.origins[n]} if origin else v for n, v in plain.items()}
        click.echo(json.dumps(document, indent=2))
        return
    for name, value in values.items():
        line = f"{name} = {literal(name, value)}"
        click.echo(f"{line}  # {loaded.origins[name]}" if origin else line)


@config.command()
@click.option("--markdown", is_flag=True, help="Print the table of docs/configuration.md instead.")
def template(markdown: bool) -> None:
    """Print agent.toml with every setting commented out: its default, and what it takes."""
    click.echo(table() if markdown else toml(), nl=False)


def toml() -> str:
    """Return packaging/agent.toml: every setting as a comment that holds when its `#` is taken away."""
    parts = [_HEAD]
    for group, names in _grouped():
        parts.append(f"\n# --- {group} ---\n")
        for name in names:
            about = f"{TABLE[name].metadata['help']} Takes {expected(name)}."
            lines = textwrap.wrap(about, 100, break_on_hyphens=False, break_long_words=False)
            parts.append("\n" + "".join(f"# {line}\n" for line in lines))
            parts.append(f"#{name} = {literal(name, getattr(Settings(), name))}\n")
    return "".join(parts)


def table() -> str:
    """Return the tables of docs/configuration.md in Markdown, one a group."""
    parts = []
    for group, names in _grouped():
        rows = ["| setting | default | takes | what it is |", "|---|---|---|---|"]
        for name in names:
            known = TABLE[name].metadata
            default = f"`{literal(name, getattr(Settings(), name))}`"
            default = f"`state_dir`/{known['under']}" if known["under"] else default
            about = f"{known['help']} Secret." if known["secret"] else known["help"]
            rows.append(f"| `{name}` | {default} | {expected(name)} | {about} |")
        parts.append("\n".join([f"### {group}", "", *rows, ""]))
    return "\n".join(parts)


def literal(name: str, value: object) -> str:
    """Return a value of a setting as TOML, sizes in the largest unit without a fraction."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value and TABLE[name].metadata["unit"] == "bytes":
        return f'"{size(value)}"'
    if isinstance(value, int | float):
        return f"{value:.12g}" if isinstance(value, float) else str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_text(item) for item in value)}]"
    if isinstance(value, dict):
        items = ", ".join(f"{_text(key)} = {_text(item)}" for key, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    return _text(value)


def _text(value: object) -> str:
    # settings are printable texts, for which the quoting of JSON and TOML is one
    return json.dumps(str(value), ensure_ascii=False)


def _jsonable(value: object) -> Any:
    return str(value) if isinstance(value, Path) else value


def _grouped() -> Iterator[tuple[str, list[str]]]:
    """Yield each group with its settings, in the order of the table."""
    names = list(TABLE)
    starts = [*(names.index(name) for name in _GROUPS), len(names)]
    for group, start, end in zip(_GROUPS.values(), starts, starts[1:], strict=False):
        yield group, names[start:end]
