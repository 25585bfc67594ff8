"""`build-agent logs`: what a build printed, or prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli import argument
from agent.cli.context import Context

if TYPE_CHECKING:
    from agent.cli.follow import Choice, Viewer
    from agent.cli.screen import Screen
    from agent.store.engine import Store


@click.command()
@argument.build
@click.option(
    "-f", "--follow", is_flag=True, help="Go on until the build has ended; exit 1 if it did not pass."
)
@click.option("--step", metavar="N|NAME", help="Only this step: its number, its name or PIPELINE/NAME.")
@click.option(
    "--attempt", type=click.IntRange(min=1), metavar="N", help="This attempt; the newest by default."
)
@click.option(
    "--tail", type=click.IntRange(min=0), metavar="N", help="Begin with the last N lines of what is there."
)
@click.option("--raw", is_flag=True, help="Write the bytes as they were printed, and nothing else.")
@argument.as_json
@click.pass_obj
def logs(
    obj: Context,
    *,
    build: str,
    follow: bool,
    step: str | None,
    attempt: int | None,
    tail: int | None,
    raw: bool,
    as_json: bool,
) -> int:
    """Print the output of a build.

    Step by step, of the newest attempt. With --follow as it comes, over every further attempt; Ctrl-C ends the
    following and not the build. On a terminal colours are kept and invalid UTF-8 is replaced; in a pipe there
    is plain text. With --json each line of output is an object, and so is each thing that happens.
    """
    if raw and as_json:
        raise click.UsageError("--raw and --json exclude each other: bytes may not be JSON.")
    from agent.cli.follow import Choice
    from agent.errors import NotFound

    found = obj.find_build(build)
    number = attempt or found.attempt
    if attempt is not None and attempt > found.attempt and not follow:
        has = f"it has had {found.attempt}" if found.attempt else "no server has taken it yet"
        raise NotFound(f"build {found.id} has no attempt {attempt}: {has}")
    choice = Choice(step)
    if follow:
        return follow_to_end(
            obj.store,
            found.id,
            first=number,
            is_only=attempt is not None,
            choice=choice,
            tail=tail,
            raw=raw,
            as_json=as_json,
        )
    from agent.cli.follow import Follower
    from agent.cli.screen import Screen

    screen = Screen(is_live=False)
    viewer = _viewer(screen, choice, raw=raw, as_json=as_json)
    if number == 0:
        _tell_there_is_nothing(screen, viewer, found.id, obj.store)
        return 0
    with screen.watching("build-agent: interrupted; there is more"):
        Follower(obj.store, viewer, screen, choice=choice, tail=tail).show(found, number)
    return 0


def follow_to_end(
    store: Store,
    build_id: str,
    *,
    first: int,
    is_only: bool = False,
    choice: Choice | None = None,
    tail: int | None = None,
    raw: bool = False,
    as_json: bool = False,
) -> int:
    """Show a build from attempt `first` on until it has ended; return the exit code that tells how."""
    from agent.cli.follow import ALL, Follower
    from agent.cli.screen import Screen
    from agent.model import wording

    screen = Screen(is_live=not raw and not as_json)
    viewer = _viewer(screen, choice or ALL, raw=raw, as_json=as_json)
    short = wording.short_id(build_id)
    stopped = f"build-agent: stopped following; build {short} goes on. To end it: build-agent cancel {short}"
    with screen.watching(stopped):
        follower = Follower(store, viewer, screen, choice=choice or ALL, tail=tail)
        outcome = follower.follow(build_id, first, is_only=is_only)
    return 0 if outcome is not None and outcome.is_success else 1


def _viewer(screen: Screen, choice: Choice, *, raw: bool, as_json: bool) -> Viewer:
    from agent.cli.transcript import Transcript
    from agent.cli.viewer import JsonLines, RawBytes

    if raw:
        return RawBytes(screen)
    if as_json:
        return JsonLines(screen)
    return Transcript(screen, has_headings=choice.word is None)


def _tell_there_is_nothing(screen: Screen, viewer: Viewer, build_id: str, store: Store) -> None:
    """Say of a build that no server has taken how it stands."""
    from agent.model.build import BuildState
    from agent.store import builds

    build = builds.get(store, build_id)
    if build.state is BuildState.ENDED:
        viewer.build_ended(build)
    else:
        screen.note(f"build-agent: build {build_id} is {build.state}: it has printed nothing yet")
