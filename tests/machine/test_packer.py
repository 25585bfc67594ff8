"""Packer's template: the `null` builder on a booted machine, `amazon-ebs` against moto with its SSH at another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.ec2.models import ec2_backends
from moto.server import ThreadedMotoServer

from agent.fleet.key import KeyFile
from agent.fleet.provider import SshAccess
from tests.machine.bakery import write_small_scripts
from tests.machine.machine import BootedMachine

ROOT = Path(__file__).parents[2]
ACCOUNT = "123456789012"
TEMPLATE = ROOT / "packaging/packer"
Boot = Callable[..., BootedMachine]


def packer(*words: str | Path, limit_s: float = 400.0) -> subprocess.CompletedProcess[str]:
    """Run packer, which asks nobody whether there is a newer one."""
    if shutil.which("packer") is None:
        pytest.skip("needs packer: make test installs it")
    environ = {
        **os.environ,
        "CHECKPOINT_DISABLE": "1",
        "PACKER_NO_COLOR": "1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    argv = ["packer", *map(str, words)]
    return subprocess.run(
        argv, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False
    )


def variables(**values: str | Path) -> list[str]:
    """Return variables as packer takes them."""
    return [word for name, value in values.items() for word in ("-var", f"{name}={value}")]


@pytest.fixture
def key(tmp_path: Path) -> KeyFile:
    """A key pair to log in with."""
    made = KeyFile(tmp_path, "packer")
    made.make()
    return made


def key_path(tmp_path: Path) -> Path:
    """Return the file of the private key."""
    return tmp_path / "packer" / "key"


def test_template_is_in_packers_own_form() -> None:
    done = packer("fmt", "-check", "-diff", TEMPLATE)
    assert (done.returncode, done.stdout) == (0, ""), done


@pytest.mark.usefixtures("key")
def test_template_holds_for_both_builders(tmp_path: Path) -> None:
    given = variables(deb=ROOT / "README.md", ssh_host="192.0.2.1", ssh_key=key_path(tmp_path))
    done = packer("validate", *given, TEMPLATE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_bare_machine_is_set_up_checked_and_scrubbed(
    boot: Boot, package: Path, key: KeyFile, tmp_path: Path
) -> None:
    machine = boot(ssh=SshAccess(public_key=key.public("packer")))
    given = variables(
        version="v1", profile="minimal", deb=package, report=tmp_path, ssh_user="root", commit="0123abc",
        ssh_host=str(machine.now.address), ssh_key=key_path(tmp_path),
    )  # fmt: skip
    done = packer("build", "-only=null.server", *given, TEMPLATE)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["failed"], report["profile"]) == (0, "minimal")
    assert "<testcase" in (tmp_path / "junit.xml").read_text()
    image = json.loads(machine.run("cat /etc/build-agent/image.json"))
    assert (image["version"], image["profile"], image["commit"]) == ("v1", "minimal", "0123abc")
    assert machine.attempt("test -s /etc/machine-id")[0] == 1
    assert machine.run("cat /root/.ssh/authorized_keys 2>/dev/null || true") == ""


@pytest.fixture
def ec2() -> Iterator[str]:
    """The address of an EC2 with a base image of Debian's name and nothing else."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_image_is_made_of_an_instance(
    boot: Boot, package: Path, key: KeyFile, tmp_path: Path, ec2: str
) -> None:
    # The real scripts have had their turn above.
    scripts = write_small_scripts(tmp_path / "setup_scripts")
    for path in scripts.rglob("*.sh"):
        path.chmod(0o755)
    machine = boot(ssh=SshAccess(public_key=key.public("packer")))
    client = boto3.session.Session(
        region_name="eu-west-1", aws_access_key_id="test", aws_secret_access_key="test"
    ).client("ec2", endpoint_url=ec2)
    bare = client.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    base = client.create_image(InstanceId=bare, Name="debian-12-amd64-20260101")["ImageId"]
    # moto has no images on EBS but its own.
    ec2_backends[ACCOUNT]["eu-west-1"].amis[base].root_device_type = "ebs"
    given = variables(
        version="v1", profile="minimal", deb=package, report=tmp_path, ssh_user="root", endpoint=ec2,
        base_owner=ACCOUNT, scripts=scripts, ssh_host=str(machine.now.address), ssh_key=key_path(tmp_path),
    )  # fmt: skip
    done = packer("build", "-only=amazon-ebs.server", *given, TEMPLATE)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    (image,) = client.describe_images(
        Owners=["self"], Filters=[{"Name": "tag-key", "Values": ["build-agent:image"]}]
    )["Images"]
    assert image["Name"] == "build-agent-minimal-v1"
    assert {it["Key"]: it["Value"] for it in image["Tags"]} == {
        "Name": "build-agent-minimal-v1",
        "build-agent:owner": "build-agent",
        "build-agent:image": "minimal-v1",
    }
    states = [
        it["State"]["Name"] for r in client.describe_instances()["Reservations"] for it in r["Instances"]
        if it["InstanceId"] != bare
    ]  # fmt: skip
    assert states == ["terminated"]
