"""What the cloud says of the server's end (F08), by a fake of EC2's metadata service."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from agent import clock
from agent.model.outcome import Outcome
from agent.model.server import ServerState
from agent.store import attempts, servers
from tests.acceptance.farm import AgentProcess, Farm
from tests.fakes.metadata_service import Endpoint, FakeMetadataService
from tests.services import wait_until

INSTANCE = "i-0fa4e000000000001"


@pytest.fixture
def cloud() -> Iterator[FakeMetadataService]:
    """The metadata service of the one instance here."""
    with FakeMetadataService(instance_id=INSTANCE) as service:
        yield service


def start(farm: Farm, cloud: FakeMetadataService, **more: Any) -> AgentProcess:
    return farm.agent("spot", cloud="ec2", metadata_url=cloud.url, notice_s=0.1, **more)


def notify(cloud: FakeMetadataService, seconds: float) -> None:
    """Announce the instance's end."""
    at = clock.utc_now() + timedelta(seconds=seconds)
    cloud.set_spot_action("terminate", at=at.strftime("%Y-%m-%dT%H:%M:%SZ"))


def wait_state(farm: Farm, state: ServerState) -> str:
    """Wait until the record says so; return the reason."""
    wait_until(
        lambda: servers.get(farm.store, INSTANCE).state is state,
        15,
        lambda: str(servers.get(farm.store, INSTANCE)),
    )
    return servers.get(farm.store, INSTANCE).state_reason or ""


def test_f08_spot_notice_gives_back_what_cannot_finish_before_the_end(
    postgres_farm: Farm, cloud: FakeMetadataService
) -> None:
    """Guards: `Parts.read_notice` and the deadline of `Condition.notice`."""
    farm = postgres_farm
    start(farm, cloud, slots=1, notice_margin_s=3)
    build_id = farm.submit("trap 'echo last words; exit 1' TERM; echo begun; sleep 600 & wait")
    farm.wait_running(build_id, printed="begun")
    notify(cloud, 7)
    assert "spot notice: terminate at" in wait_state(farm, ServerState.DRAINING)
    waiting = farm.submit("echo taken elsewhere")
    wait_until(
        lambda: farm.attempts(build_id) == [(1, Outcome.PREEMPTED)], 20, lambda: str(farm.attempts(build_id))
    )
    # Before the instance is gone, and with the notice as its reason.
    (attempt,) = attempts.list_attempts(farm.store, build_id)
    assert "spot notice: terminate at" in (attempt.detail or "")
    assert "last words" in farm.text(build_id, attempt=1)
    wait_state(farm, ServerState.DRAINED)
    # Neither is taken here again, both are by a server that stays.
    assert farm.attempts(waiting) == []
    farm.agent("other")
    assert farm.wait_ended(waiting).outcome is Outcome.PASSED
    farm.wait_running(build_id, attempt=2, printed="begun")


def test_f08_build_that_can_finish_before_the_end_does(sqlite_farm: Farm, cloud: FakeMetadataService) -> None:
    farm = sqlite_farm
    start(farm, cloud, notice_margin_s=3)
    build_id = farm.submit("echo begun; sleep 2; echo finished")
    farm.wait_running(build_id, printed="begun")
    notify(cloud, 60)
    wait_state(farm, ServerState.DRAINING)
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.PASSED)]
    wait_state(farm, ServerState.DRAINED)


def test_f08_server_that_its_group_wants_gone_drains(sqlite_farm: Farm, cloud: FakeMetadataService) -> None:
    farm = sqlite_farm
    cloud.set_target_lifecycle_state("InService")
    agent = start(farm, cloud)
    build_id = farm.submit("echo begun; sleep 2")
    farm.wait_running(build_id, printed="begun")
    cloud.set_target_lifecycle_state("Terminated")
    assert wait_state(farm, ServerState.DRAINING) == "the Auto Scaling group wants this server terminated"
    assert agent.get("/readyz")[0] == 503
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    wait_state(farm, ServerState.DRAINED)


def test_f08_notice_that_is_taken_back_lets_the_server_go_on(
    sqlite_farm: Farm, cloud: FakeMetadataService
) -> None:
    farm = sqlite_farm
    agent = start(farm, cloud)
    notify(cloud, 90)
    wait_state(farm, ServerState.DRAINED)
    cloud.set_spot_action(None)
    wait_state(farm, ServerState.ACCEPTING)
    assert farm.wait_ended(farm.submit("true")).outcome is Outcome.PASSED
    assert "host.notice_withdrawn" in agent.log()


def test_f08_notice_stands_while_the_metadata_service_is_silent(
    sqlite_farm: Farm, cloud: FakeMetadataService
) -> None:
    farm = sqlite_farm
    agent = start(farm, cloud)
    notify(cloud, 90)
    wait_state(farm, ServerState.DRAINED)
    cloud.endpoint = Endpoint.BROKEN
    wait_until(lambda: "loop.waiting" in agent.log(), 10, agent.log)
    assert servers.get(farm.store, INSTANCE).state is ServerState.DRAINED
    cloud.endpoint = Endpoint.ENABLED
    cloud.set_spot_action(None)
    wait_state(farm, ServerState.ACCEPTING)
