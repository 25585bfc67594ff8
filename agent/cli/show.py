"""`build-agent show`: all that is on record of one build."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import click

from agent.cli import argument
from agent.cli.context import Context
from agent.model.build import Attempt, Build, BuildState, Step

if TYPE_CHECKING:
    from agent.store.engine import Store

_STEPS = ("step", "pipeline", "name", "result", "took", "output")


@click.command()
@argument.build
@click.option("--wait", is_flag=True, help="First wait until it has ended; exit 1 if it did not pass.")
@argument.as_json
@click.pass_obj
def show(obj: Context, *, build: str, wait: bool, as_json: bool) -> int:
    """Show a build with its attempts and steps."""
    from agent.cli import record
    from agent.store import attempts, servers, steps

    found = obj.find_build(build)
    if wait:
        found = wait_until_ended(obj.store, found.id, as_json=as_json)
    tries = attempts.list_attempts(obj.store, found.id)
    parts = {it.number: steps.list_steps(obj.store, found.id, it.number) for it in tries}
    if as_json:
        document = record.plain(found) | {
            "definition": found.definition,
            "attempts": [record.plain(it) | {"steps": record.plain(parts[it.number])} for it in tries],
        }
        record.echo(document)
    else:
        names = {it.id: it.name for it in servers.list_servers(obj.store)} if tries else {}
        _print(found, tries, parts, names)
    has_failed = found.outcome is None or not found.outcome.is_success
    return 1 if wait and has_failed else 0


def wait_until_ended(store: Store, build_id: str, *, as_json: bool) -> Build:
    """Wait for a build's end, with its status on a terminal; return it then."""
    from agent.cli import watch
    from agent.cli.screen import Screen
    from agent.cli.transcript import Transcript
    from agent.model import wording
    from agent.store import builds, steps

    screen = Screen(is_live=not as_json)
    status = Transcript(screen, has_headings=False)
    rhythm = watch.Watch(screen)
    short = wording.short_id(build_id)
    stopped = f"build-agent: stopped waiting; build {short} goes on. To end it: build-agent cancel {short}"
    with screen.watching(stopped):
        while True:
            build = rhythm.ask(lambda: builds.get(store, build_id))
            if build.state is BuildState.ENDED:
                return build
            if build.state is BuildState.QUEUED:
                status.waiting(build)
            else:
                found = rhythm.ask(partial(steps.list_steps, store, build_id, build.attempt))
                status.running(build, [it for it in found if it.state == "running"])
            rhythm.pause(has_news=False, limit_s=watch.IDLE_S)


def _print(
    build: Build, tries: Sequence[Attempt], parts: dict[int, list[Step]], servers: dict[str, str]
) -> None:
    from agent import clock
    from agent.cli import table
    from agent.model import wording

    now = clock.utc_now()
    for name, value in _facts(build, now):
        click.echo(f"{name:<10}{wording.one_line(value)}")
    for attempt in tries:
        click.echo()
        server = servers.get(attempt.server_id, attempt.server_id)
        took = wording.duration(((attempt.ended_at or now) - attempt.started_at).total_seconds())
        words = wording.outcome(attempt.outcome, attempt.detail) if attempt.outcome else "runs"
        click.echo(f"attempt {attempt.number}  {wording.one_line(words)}")
        began = wording.local(attempt.started_at)
        click.echo(f"  on {server}, slot {attempt.slot}, from {began} for {took}")
        if attempt.deploy_begun_at is not None:
            click.echo(f"  a deploy began at {wording.local(attempt.deploy_begun_at)}")
        if parts[attempt.number]:
            columns = [table.Column(it, is_elastic=it in ("name", "result", "output")) for it in _STEPS]
            table.show(columns, [_row(it, now) for it in parts[attempt.number]])


def _facts(build: Build, now: datetime) -> list[tuple[str, str]]:
    from agent.model import wording

    facts = [("build", build.id), ("project", build.project)]
    words = wording.outcome(build.outcome, build.detail) if build.outcome else wording.state(build)
    facts.append(("state", words))
    if build.cancel_requested_at is not None and build.outcome is None:
        facts.append(("cancel", f"asked by {build.cancel_by}, {wording.ago(build.cancel_requested_at, now)}"))
    if source := wording.source(build):
        facts.append(("source", source))
    if build.message:
        facts.append(("message", build.message.partition("\n")[0]))
    facts.append(("queue", build.queue))
    by = f" by {build.created_by}" if build.created_by else ""
    facts.append(("created", f"{wording.local(build.created_at)} ({wording.ago(build.created_at, now)}){by}"))
    if build.started_at is not None:
        ran = wording.duration(((build.ended_at or now) - build.started_at).total_seconds())
        waited = wording.duration((build.started_at - build.created_at).total_seconds())
        facts.append(("times", f"waited {waited}, ran {ran}"))
    facts.append(("attempts", f"{build.attempt} of {build.attempts_allowed} allowed"))
    return facts


def _row(step: Step, now: datetime) -> list[str]:
    from agent.model import wording

    took = wording.duration(((step.ended_at or now) - step.started_at).total_seconds())
    result = wording.outcome(step.outcome, step.detail) if step.outcome else "runs"
    output = wording.account(step.account) if step.state == "ended" else "-"
    return [str(step.step), step.pipeline, wording.one_line(step.name, 60), result, took, output]
