"""The provider of machines at EC2, against moto's server; what moto does not do is put before it, answer by answer."""

from __future__ import annotations

import ast
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from moto.server import ThreadedMotoServer

from agent import clock
from agent.fleet.ec2.options import Ec2Options
from agent.fleet.ec2.provider import Ec2Provider
from agent.fleet.provider import (
    TAG_BAKE,
    TAG_OWNER,
    ImageState,
    LaunchSpec,
    MachineState,
    ProviderError,
    ProviderUnavailable,
    SshAccess,
)
from tests.services import wait_until

ROOT = Path(__file__).parents[2]
TAGS = {TAG_OWNER: "build-agent", TAG_BAKE: "bake-1"}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKzmFpiNeKSamkDY1amXgpIkxW88N8Grik5TZ5WftZeA bake"  # nobody has the other half
ACCOUNT = "123456789012"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of moto's server."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Aws:
    """An account with a network, a base image and nothing else, and what was asked of it."""

    def __init__(self, endpoint: str) -> None:
        session = boto3.session.Session(
            region_name="eu-west-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        self.session, self.endpoint = session, endpoint
        self.client = session.client("ec2", endpoint_url=endpoint)
        self.actions: list[str] = []
        self.subnet = self.client.describe_subnets()["Subnets"][0]
        self.base = self._make_base()

    def provider(self, client: Any = None, **options: Any) -> Ec2Provider:
        """Return a provider with these options."""
        client = client or self.new_client()
        client.meta.events.register("before-call.ec2.*", lambda model, **_: self.actions.append(model.name))
        given = {"subnet": self.subnet["SubnetId"], "ssh_cidr": "198.51.100.7/32", "base_owner": ACCOUNT}
        return Ec2Provider(Ec2Options(**{**given, **options}), client)

    def new_client(self) -> Any:
        """Return a client that asks once, with the tags of snapshots that moto's create_image does not know."""
        config = Config(retries={"total_max_attempts": 1})
        client = self.session.client("ec2", endpoint_url=self.endpoint, config=config)
        kept: list[Any] = []

        def keep(params: dict[str, Any], **_: Any) -> dict[str, Any]:
            by_kind = {it["ResourceType"]: it for it in params["TagSpecifications"]}
            kept[:] = [by_kind.pop("snapshot")["Tags"]]
            return {**params, "TagSpecifications": list(by_kind.values())}

        def tag(parsed: dict[str, Any], **_: Any) -> None:
            asked = [parsed["ImageId"]] if "ImageId" in parsed else []
            for image in self.client.describe_images(ImageIds=asked)["Images"] if asked else ():
                for mapping in image["BlockDeviceMappings"]:
                    self.client.create_tags(Resources=[mapping["Ebs"]["SnapshotId"]], Tags=kept[0])

        client.meta.events.register("provide-client-params.ec2.CreateImage", keep)
        client.meta.events.register("after-call.ec2.CreateImage", tag)
        return client

    def answering(self, action: str, *answers: bytes | None) -> Any:
        """Return a client that gets these answers to an action first, `None` for the server's own."""
        client = self.new_client()
        queue = list(answers)

        def answer(request: Any, **_: Any) -> AWSResponse | None:
            body = queue.pop(0) if queue else None
            if body is None:
                return None
            return answer_of(request, body)

        client.meta.events.register(f"before-send.ec2.{action}", answer)
        return client

    def instance(self, machine_id: str) -> Any:
        """Return an instance as EC2 has it."""
        return self.client.describe_instances(InstanceIds=[machine_id])["Reservations"][0]["Instances"][0]

    def _make_base(self) -> str:
        instance = self.client.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1)["Instances"][0]
        image = self.client.create_image(InstanceId=instance["InstanceId"], Name="debian-12-amd64-20260101")
        self.client.terminate_instances(InstanceIds=[instance["InstanceId"]])
        return str(image["ImageId"])


class _Raw:
    """A body as urllib3 has it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, *_args: object, **_words: object) -> Iterator[bytes]:
        yield self._body


def answer_of(request: Any, body: bytes) -> AWSResponse:
    """Return an answer as botocore has it."""
    status = 503 if b"Unavailable" in body else 400 if b"<Errors>" in body else 200
    return AWSResponse(request.url, status, {}, _Raw(body))


EMPTY = b"<Response><imagesSet/></Response>"


def refusal(code: str, message: str = "no") -> bytes:
    """Return EC2's answer to what it refuses."""
    text = f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors></Response>"
    return text.encode()


@pytest.fixture
def aws(endpoint: str) -> Aws:
    """A fresh account."""
    import requests

    requests.post(f"{endpoint}/moto-api/reset", timeout=10)
    return Aws(endpoint)


def spec(aws: Aws, **more: Any) -> LaunchSpec:
    """Return what is launched."""
    given: dict[str, Any] = {"image": aws.base, "name": "builder", "token": "bake-1-builder-1", "tags": TAGS}
    return LaunchSpec(**{**given, **more})


def test_machine_is_encrypted_tagged_and_answers_metadata_v2_alone(aws: Aws) -> None:
    provider = aws.provider(instance_type="c7i.large", volume_gib=60)
    asked: list[dict[str, Any]] = []
    provider._api.client.meta.events.register(
        "provide-client-params.ec2.RunInstances", lambda params, **_: asked.append(params)
    )
    machine = provider.launch(spec(aws, user_data="#build-agent\nslots = 2\n", ssh=SshAccess(public_key=KEY)))
    assert machine.tags.items() >= {**TAGS, "Name": "builder"}.items()
    assert (machine.name, machine.image) == ("builder", aws.base)
    found = aws.instance(machine.id)
    assert found["InstanceType"] == "c7i.large"
    assert found["SubnetId"] == aws.subnet["SubnetId"]
    assert found["MetadataOptions"]["HttpTokens"] == "required"
    assert found["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    (volume,) = aws.client.describe_volumes(Filters=[{"Name": "tag:" + TAG_BAKE, "Values": ["bake-1"]}])[
        "Volumes"
    ]
    assert (volume["Encrypted"], volume["Size"], volume["VolumeType"]) == (True, 60, "gp3")
    assert found["BlockDeviceMappings"][0]["Ebs"]["DeleteOnTermination"] is True
    assert base64.b64decode(asked[0]["UserData"]) == b"#build-agent\nslots = 2\n"
    assert 0 < len(asked[0]["ClientToken"]) <= 64
    (group,) = aws.client.describe_security_groups(GroupIds=[found["SecurityGroups"][0]["GroupId"]])[
        "SecurityGroups"
    ]
    (rule,) = group["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"], rule["IpRanges"][0]["CidrIp"]) == (22, 22, "198.51.100.7/32")
    assert found["KeyName"].startswith("build-agent-")


def test_server_ends_with_its_power_and_a_builder_stays(aws: Aws) -> None:
    provider = aws.provider(security_groups=("sg-1",))
    asked: list[dict[str, Any]] = []
    provider._api.client.meta.events.register(
        "provide-client-params.ec2.RunInstances", lambda params, **_: asked.append(params)
    )
    groups = aws.client.create_security_group(GroupName="g", Description="g", VpcId=aws.subnet["VpcId"])
    provider = aws.provider(provider._api.client, security_groups=(groups["GroupId"],))
    provider.launch(spec(aws))
    provider.launch(spec(aws, token="other", ssh=SshAccess(public_key=KEY)))
    assert [it["InstanceInitiatedShutdownBehavior"] for it in asked] == ["terminate", "stop"]
    assert "KeyName" not in asked[0]
    # No group is made where there are some.
    assert asked[1]["SecurityGroupIds"] == [groups["GroupId"]]


def test_public_address_is_asked_for_where_that_is_logged_in_to(aws: Aws) -> None:
    machine = aws.provider(has_public_address=True).launch(spec(aws, ssh=SshAccess(public_key=KEY)))
    found = aws.instance(machine.id)
    assert aws.provider(has_public_address=True).get(machine.id).address == found["PublicIpAddress"]  # type: ignore[union-attr]
    assert aws.provider().get(machine.id).address == found["PrivateIpAddress"]  # type: ignore[union-attr]


def test_same_token_is_the_same_machine_key_and_group(aws: Aws) -> None:
    wanted = spec(aws, ssh=SshAccess(public_key=KEY))
    first = aws.provider().launch(wanted)
    assert aws.provider().launch(wanted).id == first.id
    # A kill between the key pair and the machine: the key and the group are found.
    aws.client.terminate_instances(InstanceIds=[first.id])
    second = aws.provider().launch(wanted)
    assert second.id != first.id
    assert len(aws.client.describe_key_pairs()["KeyPairs"]) == 1


def test_machine_goes_through_its_states(aws: Aws) -> None:
    provider = aws.provider()
    machine = provider.launch(spec(aws))
    assert provider.get(machine.id).state is MachineState.RUNNING  # type: ignore[union-attr]
    assert [it.id for it in provider.list_machines(TAGS)] == [machine.id]
    assert provider.list_machines({TAG_BAKE: "another"}) == []
    provider.stop(machine.id)
    assert provider.get(machine.id).state is MachineState.STOPPED  # type: ignore[union-attr]
    provider.terminate(machine.id)
    provider.terminate(machine.id)
    assert provider.get(machine.id).state is MachineState.TERMINATED  # type: ignore[union-attr]
    assert provider.list_machines(TAGS) == []
    assert provider.get("i-0123456789abcdef0") is None
    provider.terminate("i-0123456789abcdef0")


def test_machine_that_ec2_does_not_know_yet_is_not_gone(aws: Aws) -> None:
    client = aws.answering("DescribeInstances", None, refusal("InvalidInstanceID.NotFound"), None)
    provider = aws.provider(client)
    machine = provider.launch(spec(aws))
    with pytest.raises(ProviderUnavailable, match=f"does not know {machine.id} yet"):
        provider.get(machine.id)
    assert provider.get(machine.id) is not None


def test_newest_base_of_debian_is_found(aws: Aws) -> None:
    made = [("ami-1", "2026-01-01"), ("ami-2", "2026-03-01"), ("ami-3", "2026-02-01")]
    items = "".join(
        f"<item><imageId>{name}</imageId><creationDate>{day}T10:00:00.000Z</creationDate></item>"
        for name, day in made
    )
    answer = f"<Response><imagesSet>{items}</imagesSet></Response>".encode()
    assert aws.provider(aws.answering("DescribeImages", answer)).base_image("") == "ami-2"


def test_base_is_debians_own_or_what_is_named(aws: Aws) -> None:
    assert aws.provider().base_image("debian-12") == aws.base
    assert aws.provider().base_image(aws.base) == aws.base
    for base, said in (
        ("ami-00000000000000000", "has no image ami-0000"),
        ("debian-99", "no base 'debian-99'"),
    ):
        with pytest.raises(ProviderError, match=said):
            aws.provider().base_image(base)
    with pytest.raises(ProviderError, match=r"no image debian-12-amd64-\* of 1 in this region"):
        aws.provider(base_owner="1").base_image("debian-12")


def test_image_is_made_once_for_a_token_and_goes_with_its_snapshots(aws: Aws) -> None:
    provider = aws.provider()
    machine = provider.launch(spec(aws))
    provider.stop(machine.id)
    made = provider.create_image(machine.id, name="image-1", tags=TAGS, token="t")
    again = provider.create_image(machine.id, name="image-1", tags=TAGS, token="t")
    assert (made.id, again.state) == (again.id, ImageState.AVAILABLE)
    assert [it.id for it in provider.list_images(TAGS)] == [made.id]
    record = aws.client.describe_images(ImageIds=[made.id])["Images"][0]
    snapshot = record["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    # What an image consists of is no leftover beside it.
    assert [it.kind for it in provider.leftovers(TAGS)] == ["machine", "image"]
    provider.delete_image(made.id)
    provider.delete_image(made.id)
    assert provider.get_image(made.id) is None
    assert not [
        it
        for it in aws.client.describe_snapshots(OwnerIds=["self"])["Snapshots"]
        if it["SnapshotId"] == snapshot
    ]


def test_name_that_another_image_has_is_refused_in_words(aws: Aws) -> None:
    client = aws.answering("CreateImage", refusal("InvalidAMIName.Duplicate", "AMI name image-1 is in use"))
    provider = aws.provider(client)
    machine = provider.launch(spec(aws))
    aws.client.create_image(InstanceId=machine.id, Name="image-1")
    said = "CreateImage: InvalidAMIName.Duplicate: AMI name image-1 is in use"
    with pytest.raises(ProviderError, match=said):
        provider.create_image(machine.id, name="image-1", tags=TAGS, token="t")


def test_image_that_ec2_does_not_list_yet_is_neither_gone_nor_made_twice(aws: Aws) -> None:
    provider = aws.provider()
    machine = provider.launch(spec(aws))
    client = aws.answering("DescribeImages", None, refusal("InvalidAMIID.NotFound"))
    provider = aws.provider(client)
    made = provider.create_image(machine.id, name="image-1", tags=TAGS, token="t")
    assert made.state is ImageState.PENDING
    with pytest.raises(ProviderUnavailable, match=f"does not know {made.id} yet"):
        provider.get_image(made.id)
    # Asked anew after a kill: by its tag it is not there yet, and its name is taken.
    client = aws.answering("CreateImage", refusal("InvalidAMIName.Duplicate"))
    client.meta.events.register(
        "before-send.ec2.DescribeImages", lambda request, **_: answer_of(request, EMPTY)
    )
    with pytest.raises(ProviderUnavailable, match="does not show image image-1 yet"):
        aws.provider(client).create_image(machine.id, name="image-1", tags=TAGS, token="t")
    again = aws.provider().create_image(machine.id, name="image-1", tags=TAGS, token="t")
    assert (again.id, again.state) == (made.id, ImageState.AVAILABLE)


def test_wildcards_in_tags_are_letters(aws: Aws) -> None:
    provider = aws.provider()
    machine = provider.launch(spec(aws, tags={TAG_OWNER: "build-agent"}))
    provider.create_image(machine.id, name="image-1", tags={TAG_OWNER: "build-agent"}, token="t")
    assert provider.leftovers({TAG_OWNER: "build-*"}) == []


def test_snapshot_of_an_image_that_does_not_name_it_yet_is_no_leftover(aws: Aws) -> None:
    provider = aws.provider()
    machine = provider.launch(spec(aws))
    made = provider.create_image(machine.id, name="image-1", tags=TAGS, token="t")
    volume = aws.client.describe_volumes()["Volumes"][0]["VolumeId"]
    words = [{"ResourceType": "snapshot", "Tags": [{"Key": k, "Value": v} for k, v in TAGS.items()]}]
    for image in (made.id, "ami-00000000000000000"):
        said = f"Created by CreateImage({machine.id}) for {image}"
        aws.client.create_snapshot(VolumeId=volume, Description=said, TagSpecifications=words)
    assert [it.kind for it in provider.leftovers(TAGS)] == ["machine", "image", "snapshot"]


def test_image_that_failed_says_why(aws: Aws) -> None:
    answer = (
        b"<Response><imagesSet><item><imageId>ami-1</imageId><imageState>failed</imageState><name>n</name>"
        b"<stateReason><code>Client.InternalError</code><message>the snapshot failed</message></stateReason>"
        b"</item></imagesSet></Response>"
    )
    found = aws.provider(aws.answering("DescribeImages", answer)).get_image("ami-1")
    assert found is not None
    assert (found.state, found.reason) == (ImageState.FAILED, "the snapshot failed")


def test_snapshot_that_its_image_still_holds_is_asked_for_again(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "sleep", lambda _seconds: None)
    client = aws.answering("DeleteSnapshot", *[refusal("InvalidSnapshot.InUse")] * 3)
    provider = aws.provider(client)
    machine = provider.launch(spec(aws))
    made = provider.create_image(machine.id, name="image-1", tags=TAGS, token="t")
    provider.delete_image(made.id)
    assert [it.kind for it in provider.leftovers(TAGS)] == ["machine"]
    assert aws.actions.count("DeleteSnapshot") == 4


def test_snapshots_of_an_image_that_a_killed_command_deregistered_are_leftovers(aws: Aws) -> None:
    provider = aws.provider()
    machine = provider.launch(spec(aws))
    made = provider.create_image(machine.id, name="image-1", tags=TAGS, token="t")
    aws.client.deregister_image(ImageId=made.id)
    (snapshot,) = [it for it in provider.leftovers(TAGS) if it.kind == "snapshot"]
    provider.remove(snapshot)
    assert [it.kind for it in provider.leftovers(TAGS)] == ["machine"]


def test_everything_that_a_launch_makes_is_found_by_tag_and_removed(aws: Aws) -> None:
    provider = aws.provider()
    machine = provider.launch(spec(aws, ssh=SshAccess(public_key=KEY)))
    provider.create_image(machine.id, name="image-1", tags=TAGS, token="t")
    volume = aws.client.create_volume(
        AvailabilityZone=aws.subnet["AvailabilityZone"],
        Size=8,
        TagSpecifications=[
            {"ResourceType": "volume", "Tags": [{"Key": k, "Value": v} for k, v in TAGS.items()]}
        ],
    )
    others = provider.launch(spec(aws, token="other", tags={TAG_OWNER: "build-agent"}))
    found = provider.leftovers(TAGS)
    assert [it.kind for it in found] == ["machine", "image", "volume", "key pair", "security group"]
    assert volume["VolumeId"] in {it.id for it in found}
    assert all(it.tags.items() >= TAGS.items() for it in found)

    def sweep() -> bool:
        for it in provider.leftovers(TAGS):
            provider.remove(it)
        return not provider.leftovers(TAGS)

    wait_until(sweep, 20)
    for it in found:
        provider.remove(it)
    assert provider.get(others.id) is not None


def test_group_of_a_machine_that_is_not_gone_yet_is_told_as_in_use(aws: Aws) -> None:
    client = aws.answering("DeleteSecurityGroup", refusal("DependencyViolation", "it has a dependent object"))
    provider = aws.provider(client)
    provider.launch(spec(aws, ssh=SshAccess(public_key=KEY)))
    (group,) = [it for it in provider.leftovers(TAGS) if it.kind == "security group"]
    with pytest.raises(ProviderUnavailable, match="it is in use yet"):
        provider.remove(group)


def test_without_a_group_or_addresses_it_says_what_to_set(aws: Aws) -> None:
    provider = aws.provider(ssh_cidr="")
    with pytest.raises(ProviderError, match=r"set ec2_security_groups .* or ec2_ssh_cidr"):
        provider.launch(spec(aws, ssh=SshAccess(public_key=KEY)))


CONSOLE = """\
ci-info: no authorized SSH keys fingerprints found for user admin.
-----BEGIN SSH HOST KEY KEYS-----
ssh-ed25519 AAAAOLD root@old
-----END SSH HOST KEY KEYS-----
[   12.1] cloud-init[512]: rebooted
-----BEGIN SSH HOST KEY KEYS-----
ecdsa-sha2-nistp256 AAAAE2VjZHNh= root@ip-10-0-0-1
ssh-ed25519 AAAAC3NzaC1lZDI1 root@ip-10-0-0-1
-----END SSH HOST KEY KEYS-----
"""


def console(text: str) -> bytes:
    """Return EC2's answer with a console."""
    body = base64.b64encode(text.encode()).decode()
    return f"<Response><instanceId>i-1</instanceId><output>{body}</output></Response>".encode()


def test_host_keys_are_those_that_the_console_shows_last(aws: Aws) -> None:
    provider = aws.provider(aws.answering("GetConsoleOutput", console("booting"), console(CONSOLE)))
    assert provider.host_keys("i-1") == []
    assert provider.host_keys("i-1") == [
        "ecdsa-sha2-nistp256 AAAAE2VjZHNh=",
        "ssh-ed25519 AAAAC3NzaC1lZDI1",
    ]


def test_console_of_a_type_that_has_no_latest_is_that_of_the_boot(aws: Aws) -> None:
    provider = aws.provider(
        aws.answering("GetConsoleOutput", refusal("UnsupportedOperation"), console("booted"))
    )
    assert provider.console_output("i-1") == "booted"


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        ("RequestLimitExceeded", ProviderUnavailable, "RequestLimitExceeded"),
        ("InsufficientInstanceCapacity", ProviderUnavailable, "InsufficientInstanceCapacity"),
        ("Unavailable", ProviderUnavailable, "Unavailable"),
        (
            "UnauthorizedOperation",
            ProviderError,
            r"does not allow ec2:RunInstances; packaging/aws/iam-policy.json",
        ),
        ("InvalidClientTokenId", ProviderError, "does not accept the credentials"),
        ("VcpuLimitExceeded", ProviderError, "RunInstances: VcpuLimitExceeded: no$"),
        ("IdempotentParameterMismatch", ProviderError, "IdempotentParameterMismatch"),
    ],
)
def test_refusal_is_told_apart_from_what_is_away(
    aws: Aws, code: str, kind: type[ProviderError], said: str
) -> None:
    answer = refusal(code, "no Encoded authorization failure message: abc")
    provider = aws.provider(aws.answering("RunInstances", answer))
    with pytest.raises(ProviderError, match=said) as raised:
        provider.launch(spec(aws))
    assert type(raised.value) is kind or (kind is ProviderError and not raised.value.is_retriable)
    assert "abc" not in str(raised.value)


def test_endpoint_that_nobody_answers_at_is_away(aws: Aws) -> None:
    client = aws.session.client("ec2", endpoint_url="http://127.0.0.1:1")
    with pytest.raises(ProviderUnavailable, match="EC2 can't be reached"):
        aws.provider(client).get("i-1")


def test_missing_region_and_credentials_say_where_they_are_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(ProviderError, match="no region: set ec2_region"):
        Ec2Provider(Ec2Options())
    provider = Ec2Provider(Ec2Options(region="eu-west-1", endpoint_url="http://127.0.0.1:1"))
    with pytest.raises(ProviderError, match="boto3 looks for credentials in the environment"):
        provider.get("i-1")


def test_policy_holds_every_action_that_is_called_and_no_other() -> None:
    called = set()
    for path in (ROOT / "agent/fleet/ec2").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                called.add("".join(word.title() for word in node.value.split("_")))
    document = json.loads((ROOT / "packaging/aws/iam-policy.json").read_text())
    allowed = set()
    for statement in document["Statement"]:
        actions = statement["Action"]
        allowed |= set([actions] if isinstance(actions, str) else actions)
    of_ec2 = {it.removeprefix("ec2:") for it in allowed if it.startswith("ec2:")}
    known = boto3.session.Session().client("ec2", region_name="eu-west-1").meta.service_model.operation_names
    # CreateTags is asked for by calls that tag what they make.
    assert of_ec2 == (called & set(known)) | {"CreateTags"}
    scaling = boto3.session.Session().client("autoscaling", region_name="eu-west-1").meta.service_model
    of_scaling = {it.removeprefix("autoscaling:") for it in allowed if it.startswith("autoscaling:")}
    assert of_scaling == called & set(scaling.operation_names)
    others = {it for it in allowed if not it.startswith(("ec2:", "kms:", "autoscaling:"))}
    assert others == {"iam:PassRole"}
    looks = next(it for it in document["Statement"] if it["Sid"] == "Look")
    assert all(it.partition(":")[2].startswith("Describe") for it in looks["Action"])
    for statement in document["Statement"]:
        if statement["Resource"] == "*" and statement is not looks:
            assert "Condition" in statement, statement["Sid"]
