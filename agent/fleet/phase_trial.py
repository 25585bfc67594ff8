"""Phases with a fresh server started from the image: it has to pass the checks, join the queue and build."""

from __future__ import annotations

from agent.errors import AgentError, QueueUnavailable
from agent.fleet.phase_server import TRIAL, console_of, forget, launch_as, push_to
from agent.fleet.phase_setup import check_server
from agent.fleet.work import BakeFailed, Work
from agent.model.build import Build, BuildState
from agent.model.image import ReportWhen
from agent.model.server import OrderKind, Server, ServerState
from agent.queue.listen import nudge
from agent.queue.submit import new_build, submit
from agent.store import builds, orders, servers

_ENDED = frozenset({ServerState.STOPPED, ServerState.TERMINATED, ServerState.LOST, ServerState.FAILED})
_LEAVE_S = 10.0
_CANARY = ("echo 'built on a fresh server' >canary", "grep -q fresh canary", "id; uname -a; df -h .")


def queue_of(work: Work) -> str:
    """Return the queue that only the fresh server serves."""
    return f"canary-{work.bake_id[:8]}"


def launch(work: Work) -> None:
    """Start a fresh server from the image, as servers are started: with its settings as user data."""
    data = work.user_data(queues=[queue_of(work)])
    launch_as(work, TRIAL, image=str(work.made["image"]), data=data)


def check(work: Work) -> None:
    """Run the same checks on the fresh server."""
    push_to(work, TRIAL, with_deb=False)
    check_server(work, TRIAL, ReportWhen.FRESH_BOOT)


def canary(work: Work) -> None:
    """Wait until the fresh server has joined its queue by itself, and have it build something there."""
    server = work.wait(lambda: _registered(work), work.limits.trial_s, else_raise=lambda: _absent(work))
    work.say(f"server {server.name} has joined queue {queue_of(work)}: it is {server.state}")
    build_id = work.made.get("canary_build")
    if build_id is None:
        build_id = f"canary-{work.bake_id}"
        work.note(canary_build=build_id)
    document = {"project": "images", "queue": queue_of(work), "steps": list(_CANARY)}
    new = new_build(document, build_id=build_id, by=work.by, max_attempts=1)
    work.persist(lambda: submit(work.store, work.carrier, new))

    def look() -> Build | None:
        build = builds.get(work.store, build_id)
        return build if build.state is BuildState.ENDED else None

    def late() -> AgentError:
        return BakeFailed(f"the fresh server did not end build {build_id} within {work.limits.canary_s:g} s")

    build = work.wait(look, work.limits.canary_s, else_raise=late)
    if build.outcome is None or not build.outcome.is_success:
        raise BakeFailed(f"build {build_id} on the fresh server ended as {build.outcome}: {build.detail}")
    work.say(f"build {build_id} passed on the fresh server")


def finish(work: Work) -> None:
    """Let the fresh server sign off, and end it."""
    server = _registered(work)
    if server is not None and server.state not in _ENDED:
        work.persist(
            lambda: (
                orders.give(
                    work.store,
                    server_id=server.id,
                    kind=OrderKind.TERMINATE,
                    by=work.by,
                    note="the bake is over",
                )
                and None
            )
        )
        try:
            nudge(work.carrier.connection, server.id)
        except QueueUnavailable as error:
            work.say(f"Redis is away ({error}); the server hears of its end with its next heartbeat")
        _await_leave(work)
    forget(work, TRIAL)


def _registered(work: Work) -> Server | None:
    """Return the fresh server as it has registered, once it has."""
    # The fleet's tags make further queues of this one.
    found = [it for it in servers.list_servers(work.store) if queue_of(work) in it.queues]
    return max(found, key=lambda it: it.registered_at) if found else None


def _absent(work: Work) -> AgentError:
    limit = f"{work.limits.trial_s:g} s"
    told = console_of(work, str(work.made[TRIAL]))
    return BakeFailed(f"the fresh server did not join its queue within {limit}{told}")


def _await_leave(work: Work) -> None:
    """Give the fresh server a moment to sign off; it is ended all the same."""

    def look() -> bool | None:
        server = _registered(work)
        return True if server is None or server.state in _ENDED else None

    try:
        work.wait(look, _LEAVE_S, else_raise=lambda: BakeFailed("it has not signed off"))
    except BakeFailed:
        work.say("the fresh server has not signed off; it is ended anyway")
