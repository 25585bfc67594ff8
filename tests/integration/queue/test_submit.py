"""Submitting: the record comes first, and a Redis that is away costs no build."""

from __future__ import annotations

from agent.model.build import BuildState
from agent.queue.carrier import Carrier
from agent.queue.connection import connect
from agent.queue.private import PrivateRedis
from agent.queue.submit import new_build, submit
from agent.store import builds
from agent.store.engine import Store

DEFINITION = {"project": "shop", "steps": ["make"]}


def test_build_is_on_record_and_queued(store: Store, carrier: Carrier) -> None:
    done = submit(store, carrier, new_build(DEFINITION, by="ann"))
    assert done.is_queued
    assert carrier.waiting("builds") == [done.build.id]
    build = builds.get(store, done.build.id)
    assert (build.state, build.project, build.created_by) == (BuildState.QUEUED, "shop", "ann")
    assert build.definition == DEFINITION


def test_submitting_an_id_again_changes_nothing(store: Store, carrier: Carrier) -> None:
    first = submit(store, carrier, new_build(DEFINITION, build_id="build-1"))
    again = submit(store, carrier, new_build(DEFINITION | {"project": "other"}, build_id="build-1"))
    assert again.build == first.build
    assert carrier.waiting("builds") == ["build-1"]


def test_absent_redis_leaves_the_build_on_record(store: Store, private_redis: PrivateRedis) -> None:
    carrier = Carrier(connect(private_redis.url))
    private_redis.stop()
    done = submit(store, carrier, new_build(DEFINITION))
    assert not done.is_queued
    assert [build.id for build in builds.queued(store)] == [done.build.id]
    carrier.connection.close()
