"""`build-agent completion`: the script that lets a shell complete commands, options, builds and servers."""

from __future__ import annotations

import click

_VARIABLE = "_BUILD_AGENT_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes a shell complete commands, builds and servers.

    bash: build-agent completion bash > /etc/bash_completion.d/build-agent. zsh: put it into a file _build-agent of
    a folder in $fpath. fish: ~/.config/fish/completions/build-agent.fish.
    """
    from click.shell_completion import get_completion_class

    from agent.cli import NAME, cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    # Not `source()`: for bash that starts a bash to ask for its version, which says nothing of the one meant.
    script = kind(cli, {}, NAME, _VARIABLE)
    click.echo(script.source_template % script.source_vars())
