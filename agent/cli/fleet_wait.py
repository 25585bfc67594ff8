"""Waits for what the fleet's controller does, and shows how far it is: events as they come, one line of status below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from agent.cli import record, watch
from agent.cli.screen import Screen
from agent.model import wording
from agent.model.fleet import FleetEvent, FleetMachine, MachineState, Purpose, Rollout

if TYPE_CHECKING:
    from agent.store.engine import Store

T = TypeVar("T")

_EVENTS_AT_ONCE = 1000


def print_events(store: Store, *, pool: str | None, limit: int, follow: bool, as_json: bool) -> None:
    """Print events of a pool or of all, and go on with those that come. Raises: NotFound."""
    from agent.store import fleet_events, pools

    screen = Screen(is_live=False)
    rhythm = watch.Watch(screen)
    last, size = 0, limit
    with screen.watching("build-agent: stopped following"):
        while True:
            found = rhythm.ask(partial(fleet_events.list_events, store, pool=pool, after_id=last, limit=size))
            if not found and size == limit:
                if pool is not None:
                    # One that is on record no more may still have events.
                    pools.get(store, pool)
                screen.note("nothing has happened yet")
            for it in found:
                screen.write(record.line(it) if as_json else _line(it, has_subject=True, has_date=True))
                last = it.id
            if not follow:
                return
            size = _EVENTS_AT_ONCE
            rhythm.pause(has_news=bool(found))


def wait_rollout(store: Store, rollout_id: str, *, is_quiet: bool) -> Rollout:
    """Wait until a roll-out is over; return it then."""
    from agent.fleet import report
    from agent.fleet.view import Condition
    from agent.store import rollouts

    def look() -> tuple[Rollout, str]:
        rollout = rollouts.get(store, rollout_id)
        view = report.look(store).pool(rollout.pool)
        new = [it for it in view.members if it.machine and it.machine.image_id == rollout.to_image_id]
        ready = sum(it.condition is Condition.ACCEPTING for it in new)
        status = f"{rollout.state.replace('_', ' ')}: {ready} of {wording.count(len(new), 'server')} of the image ready"
        if told := rollout.evidence.get("reason"):
            status += f"; {told}"
        return rollout, status

    stopped = f"build-agent: stopped waiting; roll-out {rollout_id[:8]} goes on"
    return wait(
        store, "rollout", [rollout_id], look, lambda it: it.state.is_over, stopped=stopped, is_quiet=is_quiet
    )


def wait_machines(store: Store, ids: Sequence[str], *, is_quiet: bool) -> list[FleetMachine]:
    """Wait until machines serve, or have turned out not to; return them then."""
    from agent.store import machines

    settled = (MachineState.SERVING, MachineState.LEAVING, MachineState.TERMINATING, MachineState.GONE)

    def look() -> tuple[list[FleetMachine], str]:
        found = [machines.get(store, it) for it in ids]
        ready = sum(it.state is MachineState.SERVING for it in found)
        return found, f"{ready} of {wording.count(len(found), 'server')} ready"

    stopped = "build-agent: stopped waiting; the servers are started all the same"
    return wait(
        store,
        "machine",
        ids,
        look,
        lambda found: all(it.state in settled for it in found),
        stopped=stopped,
        is_quiet=is_quiet,
    )


def wait_size(store: Store, pool: str, *, is_quiet: bool) -> None:
    """Wait until a pool has as many servers as the rule wants."""
    from agent.fleet import report
    from agent.fleet.view import Condition

    def look() -> tuple[bool, str]:
        view = report.look(store).pool(pool)
        wanted = report.plan(view).answer.wanted
        ready = view.of(Condition.ACCEPTING)
        # Those that somebody else or a person has started stay, though they are too many.
        staying = sum(it.machine is None or it.machine.purpose is Purpose.MANUAL for it in ready)
        status = f"{len(ready)} of {wording.count(wanted, 'server')} ready"
        if view.pool.paused_why:
            status += f"; paused by {view.pool.paused_by}: {wording.one_line(view.pool.paused_why)}"
        return len(ready) == max(wanted, staying), status

    stopped = f"build-agent: stopped waiting; the policy stands: build-agent fleet status {pool}"
    wait(store, "pool", [pool], look, bool, stopped=stopped, is_quiet=is_quiet)


def wait(
    store: Store,
    kind: str,
    subjects: Sequence[str],
    look: Callable[[], tuple[T, str]],
    is_over: Callable[[T], bool],
    *,
    stopped: str,
    is_quiet: bool,
) -> T:
    """Return what `look` finds, with its status, once `is_over` says so; events of `subjects` are printed meanwhile."""
    from agent.store import fleet_events

    screen = Screen(is_live=not is_quiet)
    rhythm = watch.Watch(screen)
    last = dict.fromkeys(subjects, 0)
    has_subject = len(last) > 1
    with screen.watching(stopped):
        while True:
            found, status = rhythm.ask(look)
            news = False
            for subject, after in list(last.items()) if not is_quiet else ():
                question = partial(
                    fleet_events.list_events, store, kind=kind, subject_id=subject, after_id=after
                )
                for it in rhythm.ask(question):
                    screen.write(_line(it, has_subject=has_subject, has_date=False))
                    last[subject], news = it.id, True
            if is_over(found):
                return found
            screen.show_status(status)
            rhythm.pause(has_news=news, limit_s=watch.IDLE_S)


def _line(it: FleetEvent, *, has_subject: bool, has_date: bool) -> str:
    subject = f"{it.subject_kind} {it.subject_id[:8]}  " if has_subject else ""
    return f"{wording.local(it.at, has_date=has_date)}  {subject}{wording.one_line(it.text)}\n"
