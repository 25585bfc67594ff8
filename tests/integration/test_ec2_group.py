"""Auto Scaling groups: the engine against moto's server, and pools of the controller that have one.

Fake, because moto has it not: states of instances that a lifecycle hook holds (put into the answers of
DescribeAutoScalingGroups), CompleteLifecycleAction and RecordLifecycleActionHeartbeat (answered here), and for the
controller a group in memory that starts the world's machines.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from moto.server import ThreadedMotoServer

from agent.fleet.ec2.api import Api
from agent.fleet.ec2.group import AutoScalingGroup
from agent.fleet.ec2.options import Ec2Options
from agent.fleet.group import GroupState, Mate
from agent.fleet.provider import LaunchSpec, ProviderError
from agent.model.fleet import Purpose
from agent.store import fleet_events, machines
from agent.store.engine import Store
from tests.integration.fleet_world import World, away

NAME = "builders"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of moto's server."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Aws:
    """An account with an Auto Scaling group and its launch template."""

    def __init__(self, endpoint: str) -> None:
        session = boto3.session.Session(
            region_name="eu-west-1", aws_access_key_id="test", aws_secret_access_key="test"
        )
        once = Config(retries={"total_max_attempts": 1})
        self.ec2 = session.client("ec2", endpoint_url=endpoint, config=once)
        self.scaling = session.client("autoscaling", endpoint_url=endpoint, config=once)
        self.first, self.second = (it["ImageId"] for it in self.ec2.describe_images()["Images"][:2])
        self.waits: dict[str, str] = {}
        self.answers: list[tuple[str, dict[str, Any]]] = []
        self.refusal: str | None = None
        self._fake_hooks()
        options = Ec2Options(region="eu-west-1")
        self.group = AutoScalingGroup(
            NAME, scaling=Api(options, self.scaling, "autoscaling"), ec2=Api(options, self.ec2)
        )

    def make(self, *, desired: int = 2) -> None:
        """Make the group anew."""
        zone = self.ec2.describe_availability_zones()["AvailabilityZones"][0]["ZoneName"]
        self.template = self.ec2.create_launch_template(
            LaunchTemplateName="builders",
            LaunchTemplateData={"ImageId": self.first, "InstanceType": "t3.micro"},
        )["LaunchTemplate"]["LaunchTemplateId"]
        self.scaling.create_auto_scaling_group(
            AutoScalingGroupName=NAME,
            LaunchTemplate={"LaunchTemplateId": self.template, "Version": "1"},
            MinSize=0,
            MaxSize=5,
            DesiredCapacity=desired,
            AvailabilityZones=[zone],
        )
        for hook, kind in (("coming", "LAUNCHING"), ("going", "TERMINATING")):
            self.scaling.put_lifecycle_hook(
                LifecycleHookName=hook,
                AutoScalingGroupName=NAME,
                LifecycleTransition=f"autoscaling:EC2_INSTANCE_{kind}",
            )

    def forget(self) -> None:
        """Remove the group."""
        self.scaling.delete_auto_scaling_group(AutoScalingGroupName=NAME, ForceDelete=True)
        self.ec2.delete_launch_template(LaunchTemplateName="builders")

    def _fake_hooks(self) -> None:
        def put_states(parsed: dict[str, Any], **_: Any) -> None:
            for group in parsed.get("AutoScalingGroups", ()):
                for it in group["Instances"]:
                    it["LifecycleState"] = self.waits.get(it["InstanceId"], it["LifecycleState"])

        def answer(model: Any, params: dict[str, Any], **_: Any) -> tuple[AWSResponse, dict[str, Any]]:
            self.answers.append((model.name, params["body"]))
            code = 200 if self.refusal is None else 400
            parsed: dict[str, Any] = {"ResponseMetadata": {"HTTPStatusCode": code}}
            if self.refusal is not None:
                parsed["Error"] = {"Code": self.refusal, "Message": "No active Lifecycle Action found"}
            return AWSResponse("http://test", code, {}, None), parsed

        events = self.scaling.meta.events
        events.register("after-call.auto-scaling.DescribeAutoScalingGroups", put_states)
        for name in ("CompleteLifecycleAction", "RecordLifecycleActionHeartbeat"):
            events.register(f"before-call.auto-scaling.{name}", answer)


@pytest.fixture
def aws(endpoint: str) -> Iterator[Aws]:
    """An account with the group."""
    made = Aws(endpoint)
    made.make()
    yield made
    made.forget()


def test_group_tells_its_number_and_its_instances(aws: Aws) -> None:
    state = aws.group.look()
    assert (state.desired, len(state.mates), state.coming) == (2, 2, 0)
    assert {it.image for it in state.mates.values()} == {aws.first}
    assert not any(it.is_protected or it.is_leaving or it.waits_for for it in state.mates.values())


@pytest.mark.parametrize(("wanted", "got"), [(4, 4), (0, 0), (9, 5)])
def test_number_is_set_within_the_groups_own_bounds(aws: Aws, wanted: int, got: int) -> None:
    aws.group.want(wanted)
    assert aws.group.look().desired == got


def test_instances_are_protected_and_no_longer(aws: Aws) -> None:
    first, second = sorted(aws.group.look().mates)
    aws.group.protect([first], on=True)
    mates = aws.group.look().mates
    assert (mates[first].is_protected, mates[second].is_protected) == (True, False)
    aws.group.protect([first], on=False)
    assert not aws.group.look().mates[first].is_protected


def test_end_takes_one_instance_and_wants_one_fewer(aws: Aws) -> None:
    first, second = sorted(aws.group.look().mates)
    aws.group.end(first)
    state = aws.group.look()
    assert (state.desired, list(state.mates)) == (1, [second])


def test_end_of_an_instance_that_is_gone_is_no_fault(aws: Aws) -> None:
    # Moto answers 500 to it; AWS so.
    refused = {"Error": {"Code": "ValidationError", "Message": "Instance Id not found"}}
    answer = {**refused, "ResponseMetadata": {"HTTPStatusCode": 400}}
    aws.scaling.meta.events.register(
        "before-call.auto-scaling.TerminateInstanceInAutoScalingGroup",
        lambda **_: (AWSResponse("http://test", 400, {}, None), answer),
    )
    aws.group.end("i-00000000")
    # One that is there and may not go, as at the group's minimum, is refused aloud.
    with pytest.raises(ProviderError, match="Instance Id not found"):
        aws.group.end(min(aws.group.look().mates))


def test_template_gets_a_version_with_the_image_and_the_group_uses_it(aws: Aws) -> None:
    assert aws.group.image() == aws.first
    aws.group.start_from(aws.second, "# settings")
    assert aws.group.image() == aws.second
    versions = aws.ec2.describe_launch_template_versions(LaunchTemplateId=aws.template)[
        "LaunchTemplateVersions"
    ]
    newest = max(versions, key=lambda it: it["VersionNumber"])["LaunchTemplateData"]
    assert base64.b64decode(newest["UserData"]) == b"# settings"
    assert newest["MetadataOptions"]["HttpTokens"] == "required"
    # Those that run stay. Moto can't start more from such a template.
    assert {it.image for it in aws.group.look().mates.values()} == {aws.first}


@pytest.mark.parametrize(
    ("state", "hook", "is_leaving"),
    [("Pending:Wait", "coming", False), ("Terminating:Wait", "going", True), ("Terminating", None, True)],
)
def test_instance_that_a_hook_holds_is_let_go_by_name(
    aws: Aws, state: str, hook: str | None, is_leaving: bool
) -> None:
    first = min(aws.group.look().mates)
    aws.waits[first] = state
    mate = aws.group.look().mates[first]
    assert (mate.waits_for, mate.is_leaving) == (hook, is_leaving)
    if hook is None:
        return
    aws.group.hold(mate)
    aws.group.complete(mate)
    (held, _), (completed, said) = aws.answers
    assert (held, completed) == ("RecordLifecycleActionHeartbeat", "CompleteLifecycleAction")
    assert (said["LifecycleHookName"], said["InstanceId"], said["LifecycleActionResult"]) == (
        hook,
        first,
        "CONTINUE",
    )
    # Its time is over, or the answer of the first time got lost: nothing is left to do.
    aws.refusal = "ValidationError"
    aws.group.complete(mate)
    aws.refusal = "AccessDenied"
    with pytest.raises(ProviderError):
        aws.group.complete(mate)


def test_group_that_is_not_there_is_named(aws: Aws) -> None:
    options = Ec2Options(region="eu-west-1")
    other = AutoScalingGroup(
        "other", scaling=Api(options, aws.scaling, "autoscaling"), ec2=Api(options, aws.ec2)
    )
    with pytest.raises(ProviderError, match="no Auto Scaling group 'other' in this region"):
        other.look()


# The controller.


class FakeGroup:
    """A group in memory that starts machines of the world by itself, and names what was asked of it."""

    name = NAME

    def __init__(self, world: World) -> None:
        self.world = world
        self.number = 0
        self.from_image = "p-0"
        self.protected: set[str] = set()
        self.waits: dict[str, tuple[bool, str]] = {}
        self.completed: list[str] = []
        self.held: list[str] = []
        self.ended: list[str] = []
        self.wants: list[int] = []
        self.ids: list[str] = []

    def look(self) -> GroupState:
        """Start what is missing, and tell."""
        self.ids = [it for it in self.ids if it in self.world.provider.machines]
        while len(self.ids) < self.number:
            token = f"group-{len(self.world.provider.by_token)}"
            spec = LaunchSpec(image=self.from_image, name=f"i-{token}", token=token)
            self.ids.append(self.world.provider.launch(spec).id)
        mates = {
            it: Mate(
                id=it,
                image=self.world.provider.machines[it].image,
                is_protected=it in self.protected,
                is_leaving=self.waits.get(it, (False, ""))[0],
                waits_for=self.waits[it][1] if it in self.waits else None,
            )
            for it in self.ids
        }
        return GroupState(desired=self.number, mates=mates)

    def want(self, servers: int) -> None:
        """Take a number."""
        self.number = servers
        self.wants.append(servers)

    def protect(self, ids: Collection[str], *, on: bool) -> None:
        """Protect."""
        self.protected = self.protected | set(ids) if on else self.protected - set(ids)

    def end(self, machine_id: str) -> None:
        """End one."""
        if machine_id in self.ids:
            self.number -= 1
            self.ended.append(machine_id)

    def complete(self, mate: Mate) -> None:
        """Let one go on; nothing for a hook that holds it no more."""
        if self.waits.get(mate.id) != (mate.is_leaving, mate.waits_for):
            return
        del self.waits[mate.id]
        self.completed.append(mate.id)
        if mate.is_leaving:
            self.world.provider.machines.pop(mate.id, None)

    def hold(self, mate: Mate) -> None:
        """Prolong."""
        self.held.append(mate.id)

    def image(self) -> str:
        """Return the image."""
        return self.from_image

    def start_from(self, image: str, user_data: str) -> None:
        """Take another image."""
        assert "redis_url" in user_data
        self.from_image = image


@pytest.fixture
def world(store: Store, tmp_path: Path) -> Iterator[World]:
    """A world with one controller."""
    made = World(store, tmp_path)
    yield made
    made.close()


def test_pool_of_a_group_wants_a_number_and_the_group_does_the_rest(world: World) -> None:
    group = world.groups[NAME] = FakeGroup(world)
    world.pool(group=NAME, ceiling=4)
    world.until(lambda: group.from_image == "p-1")
    world.slow["1"] = 0.2
    world.submit(12)
    protected: set[str] = set()

    def look() -> bool:
        protected.update(group.protected)
        return world.ended() == 12

    world.until(look)
    assert max(group.wants) == 4
    assert protected, "none was protected while it built"
    assert {it.purpose for it in world.all_machines()} == {Purpose.GROUP}
    world.until(lambda: group.number == 0 and not world.provider.machines)
    assert len(group.ended) == 4
    assert not group.protected & set(world.provider.machines)
    assert {outcome.value for _, _, outcome in world.ran} == {"passed"}


def test_hooks_are_answered_when_a_server_takes_builds_and_when_nothing_runs_there(world: World) -> None:
    group = world.groups[NAME] = FakeGroup(world)
    world.pool(group=NAME, floor=1)
    world.never_boots.add("1")
    world.until(lambda: group.ids)
    [machine_id] = group.ids
    group.waits[machine_id] = (False, "coming")
    world.until(lambda: group.held == [machine_id])
    assert group.completed == []
    world.never_boots.clear()
    world.until(lambda: group.completed == [machine_id])
    # The group takes it back while it builds: its agent sees that and drains, as real ones do.
    world.slow["1"] = 0.6
    [build_id] = world.submit()
    agent = world.agents[machine_id]
    world.until(lambda: agent.running)
    group.waits[machine_id] = (True, "going")
    from agent.model.server import OrderKind
    from agent.store import orders

    orders.give(world.store, server_id=machine_id, kind=OrderKind.DRAIN, by="aws", note="lifecycle")
    world.run(0.2)
    assert group.completed == [machine_id], "let go under its build"
    world.until(lambda: group.completed == [machine_id, machine_id])
    assert [it for it, _, _ in world.ran] == [build_id]


def test_group_that_cannot_be_asked_is_told_and_starts_nothing_twice(world: World) -> None:
    group = world.groups[NAME] = FakeGroup(world)
    world.pool(group=NAME, floor=2)
    asked = 0
    look = group.look

    def fail() -> GroupState:
        nonlocal asked
        asked += 1
        if asked < 4:
            raise away()
        return look()

    group.look = fail  # type: ignore[method-assign]
    world.until(lambda: len(world.serving()) == 2)
    world.run(0.3)
    # Asked again before the group was seen to have it, it is the same number: it means the same.
    assert set(group.wants) == {2}
    assert world.provider.launches == 2


def test_instance_that_the_group_has_no_more_is_gone(world: World) -> None:
    group = world.groups[NAME] = FakeGroup(world)
    world.pool(group=NAME, floor=1)
    world.until(lambda: len(world.serving()) == 1)
    [first] = world.serving()
    world.provider.machines.pop(str(first.provider_machine_id))
    world.until(lambda: machines.get(world.store, first.id).state == "gone")
    assert machines.get(world.store, first.id).reason == "the group has it no more"
    world.until(lambda: len(world.serving()) == 1)
    assert any("is to have" in it.text for it in fleet_events.list_events(world.store))
    assert group.number == 1
