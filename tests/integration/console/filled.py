"""A database with something of everything that pages show."""

from __future__ import annotations

from agent import clock
from agent.fleet import start
from agent.model import policy as policies
from agent.model.build import StepStarted
from agent.model.fleet import RolloutKind
from agent.model.server import OrderKind
from agent.store import builds, orders, output, pools, rollouts
from agent.store.engine import Store
from tests.integration.conftest_store import cut, make_build, make_server, running
from tests.integration.fleet_world import put_image

PRINTED = b"\x1b[32mgreen\x1b[0m and plain\nsecond line\n50%\r100%\n"


def fill(store: Store, text: str, printed: bytes = PRINTED) -> None:
    """Put it on record, with `text` wherever a text comes from people, repositories or programs."""
    make_server(store, name=f"{text} 1", tags={"os": text.partition("\0")[0]}, queues=["builds"])
    orders.give(store, server_id="server-1", kind=OrderKind.QUARANTINE, by=text, note=text)
    orders.give(store, server_id="server-1", kind=OrderKind.RESUME, by=text, note=text)
    ref = running(store, project=text, branch=text, commit=text, created_by=text)
    began_at = clock.utc_now()
    step = StepStarted(
        step=0, pipeline=text, pipeline_class="test", name=text, command=text, started_at=began_at
    )
    output.apply(store, [(ref, step), *((ref, chunk) for chunk in cut(printed, len(printed)))])
    make_build(store, "build-2", project=text)
    builds.request_cancel(store, "build-2", by=text, why=text)
    make_build(store, "build-3", project=text, queue="nobody's")
    image_id = put_image(store, text.partition("\0")[0], "p-1")
    policy = policies.read({})
    pools.create(store, name="linux", provider="local", queues=["builds"], policy=policy, by=text)
    rollouts.begin(store, "linux", image_id, kind=RolloutKind.ROLLOUT, by=text, why=text)
    start.start(store, pool_name="linux", image_id=None, count=1, by=text, why=text)
    pools.pause(store, "linux", by=text, why=text)
