"""Print a manual page made from the program: man.py build-agent.1 CLI.md | man.py agent.toml.5.

Run by the Python of the package's virtual environment. Commands and options are click's, exit codes those of docs/cli.md,
settings those of `build-agent config template`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from agent import __version__
from agent.cli import NAME, cli
from agent.cli.config import toml

FILES = """\
/etc/build-agent/agent.toml: settings, see agent.toml(5).
/etc/build-agent/secrets/: secrets of builds, one file each.
/var/lib/build-agent/: what the agent keeps: output on its way to the database, workspaces, mirrors, caches, artifacts.
/usr/share/doc/build-agent/: the handbook: docs/README.md names its parts.
"""
ENVIRONMENT = """\
BUILD_AGENT_<NAME>: a setting, over the settings file. Names are those of agent.toml(5) in capitals.
BUILD_AGENT_CONFIG: the settings file, instead of /etc/build-agent/agent.toml.
NO_COLOR: no colours, whatever the terminal.
"""


def escape(text: str) -> str:
    """Return text that roff(7) prints as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    text = text.replace("^", "\\(ha").replace("~", "\\(ti")
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


def prose(text: str) -> Iterator[str]:
    """Yield paragraphs, each line end within one a space."""
    for index, paragraph in enumerate(re.split(r"\n\s*\n", text.replace("\b", "").strip())):
        if index:
            yield ".PP"
        yield escape(" ".join(paragraph.split()))


def tagged(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    """Yield a list of terms in bold, each with its explanation."""
    for term, explanation in pairs:
        yield ".TP"
        yield f"\\fB{escape(term)}\\fR"
        yield escape(" ".join(explanation.split())) or "\\&"


def head(title: str, section: int, about: str, summary: str) -> Iterator[str]:
    """Yield the beginning of a page; its date is that of the sources."""
    at = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    version = f"build\\-agent {escape(__version__)}"
    yield f'.TH "{escape(title)}" {section} "{at:%Y-%m-%d}" "{version}" "{escape(about)}"'
    yield ".SH NAME"
    yield f"{escape(title)} \\- {escape(summary)}"


def options(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield what a command takes, in the words of its help."""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            yield record


def commands(
    group: click.Group, context: click.Context, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command, click.Context]]:
    """Yield every command that can be called, groups entered, in the order of the help."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, context, name)
        if isinstance(command, click.Group):
            yield from commands(command, inner, (*path, name))
        else:
            yield (*path, name), command, inner


def exit_codes(handbook: str) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table of exit codes in docs/cli.md."""
    _, _, rest = handbook.partition("### Exit codes")
    for line in rest.partition("\n#")[0].splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        if len(cells) == 2 and cells[0].isdigit():
            yield cells[0], cells[1]


def command_page(handbook: str) -> Iterator[str]:
    """Yield the lines of build-agent(1)."""
    root = click.Context(cli, info_name=NAME)
    yield from head(NAME, 1, "User Commands", "takes builds from a queue, runs them and reports them")
    yield ".SH SYNOPSIS"
    yield (
        f"\\fB{escape(NAME)}\\fR [\\fB\\-\\-config\\fR \\fIFILE\\fR] [\\fB\\-\\-set\\fR \\fINAME=VALUE\\fR]... "
        "\\fICOMMAND\\fR [\\fIOPTIONS\\fR]"
    )
    yield ".SH DESCRIPTION"
    yield from prose(cli.help or "")
    yield ".SH OPTIONS"
    yield from tagged(options(cli, root))
    yield from tagged(iter([("-h, --help", "Show what there is, behind a command too.")]))
    yield ".SH COMMANDS"
    for path, command, context in commands(cli, root, ()):
        usage = " ".join(command.collect_usage_pieces(context))
        yield f'.SS "{escape(" ".join(path))} {escape(usage)}"'
        yield from prose(command.help or "")
        yield from tagged(options(command, context))
    yield ".SH EXIT STATUS"
    yield from tagged(exit_codes(handbook))
    for title, lines in (("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)):
        yield f".SH {title}"
        yield from tagged(tuple(line.split(": ", 1)) for line in lines.splitlines())  # type: ignore[misc]
    yield ".SH SEE ALSO"
    yield ".BR agent.toml (5),"
    yield ".BR systemctl (1)"


def settings_page(text: str) -> Iterator[str]:
    """Yield the lines of agent.toml(5), made from the file of comments."""
    yield from head("agent.toml", 5, "File Formats", "settings of build-agent")
    blocks = text.strip().split("\n\n")
    yield ".SH DESCRIPTION"
    yield from prose(
        "The settings of build-agent(1), in TOML, in /etc/build-agent/agent.toml. Sources, the later wins: defaults, "
        "this file, environment BUILD_AGENT_<NAME>, --set name=value. An unknown or malformed setting ends every "
        "command, and the agent, with code 78."
    )
    yield ".PP"
    yield from prose(
        "The file may hold passwords: keep it owned by root, of the group build-agent, with mode 0640. Try it with "
        "build-agent config check; build-agent config show --origin tells where each value comes from. The agent "
        "reads it when it starts."
    )
    for block in blocks[1:]:
        if title := re.fullmatch(r"# --- (.+) ---", block):
            yield f".SH {escape(title[1].upper())}"
            continue
        *comment, assignment = block.splitlines()
        name, _, default = assignment.removeprefix("#").partition(" = ")
        words = " ".join(line.removeprefix("# ") for line in comment)
        yield from tagged(iter([(name, f"{words} Default: {default}")]))
    yield ".SH SEE ALSO"
    yield ".BR build\\-agent (1)"


def main() -> None:
    """Print the page that is asked for."""
    match sys.argv[1:]:
        case ["build-agent.1", handbook]:
            lines = command_page(Path(handbook).read_text("utf-8"))
        case ["agent.toml.5"]:
            lines = settings_page(toml())
        case _:
            sys.exit("usage: man.py build-agent.1 CLI.md | man.py agent.toml.5")
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
