"""Who a server is: on a made-up machine (etc/ and sys/ below a temporary root) and on fake EC2."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.config import Settings
from agent.errors import AgentFailed, SettingsError
from agent.host.identity import application_machine_id, identify, looks_like_ec2
from agent.host.metadata import MetadataUnavailable
from tests.fakes.metadata_service import Endpoint, FakeMetadataService

MACHINE = "3d1219c7c4c5404aaa1f6d2a48adfda4"
OTHER_MACHINE = "0123456789abcdef0123456789abcdef"

Make = Callable[..., Settings]


def machine(path: Path, machine_id: str | None = MACHINE, **dmi: str) -> Path:
    (path / "etc").mkdir(parents=True, exist_ok=True)
    folder = path / "sys/class/dmi/id"
    folder.mkdir(parents=True, exist_ok=True)
    if machine_id is None:
        (path / "etc/machine-id").unlink(missing_ok=True)
    else:
        (path / "etc/machine-id").write_text(machine_id + "\n")
    for name, text in dmi.items():
        (folder / name).write_text(text + "\n")
    return path


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(**given: object) -> Settings:
        fields = {"state_dir": tmp_path / "state", "image_file": tmp_path / "image.json", "cloud": "none"}
        return Settings(**{**fields, **given})  # type: ignore[arg-type]

    return made


@pytest.fixture
def service() -> Iterator[FakeMetadataService]:
    tags = {"Name": "x", "build-agent:queues": "fast,slow", "build-agent:slots": "4"}
    with FakeMetadataService(tags=tags) as fake:
        yield fake


def test_id_is_the_same_after_a_restart(make: Make, tmp_path: Path) -> None:
    root = machine(tmp_path / "m")
    first, second = identify(make(), root=root), identify(make(), root=root)
    assert first == second
    assert json.loads((tmp_path / "state/server-id").read_text())["id"] == first.id


def test_id_does_not_give_the_machine_id_away(make: Make, tmp_path: Path) -> None:
    found = identify(
        make(), root=machine(tmp_path / "m", product_uuid="C0FFEE00-1111-2222-3333-444455556666")
    )
    assert len(found.id) == 32
    assert MACHINE not in (tmp_path / "state/server-id").read_text()
    assert "c0ffee00" not in (tmp_path / "state/server-id").read_text().lower()


def test_two_agents_of_one_machine_are_two_servers(make: Make, tmp_path: Path) -> None:
    root = machine(tmp_path / "m")
    assert identify(make(state_dir=tmp_path / "a"), root=root).id != identify(make(), root=root).id


def test_stored_id_serves_when_machine_id_is_gone(make: Make, tmp_path: Path) -> None:
    root = machine(tmp_path / "m")
    before = identify(make(), root=root)
    for lost in (None, "", "uninitialized", "0" * 32):
        assert identify(make(), root=machine(root, lost)).id == before.id


def test_stored_id_of_another_machine_is_not_used(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = identify(make(), root=machine(tmp_path / "m"))
    with caplog.at_level(logging.WARNING):
        after = identify(make(), root=machine(tmp_path / "m", OTHER_MACHINE))
    assert after.id != before.id
    assert json.loads((tmp_path / "state/server-id").read_text())["id"] == after.id
    assert [vars(record)["event"] for record in caplog.records] == ["identity.stored_id_ignored"]


def test_copied_state_on_other_hardware_is_not_used(make: Make, tmp_path: Path) -> None:
    identify(make(), root=machine(tmp_path / "m", product_uuid="1111"))
    with pytest.raises(AgentFailed, match="systemd-machine-id-setup"):
        identify(make(), root=machine(tmp_path / "m", None, product_uuid="2222"))


def test_copied_state_in_another_directory_is_not_used(make: Make, tmp_path: Path) -> None:
    identify(make(), root=machine(tmp_path / "m"))
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    with pytest.raises(AgentFailed, match="copy"):
        identify(make(state_dir=tmp_path / "copy"), root=machine(tmp_path / "m", None))


def test_stored_instance_id_is_not_used_off_ec2(
    make: Make, tmp_path: Path, service: FakeMetadataService
) -> None:
    identify(make(cloud="ec2", metadata_url=service.url), root=machine(tmp_path / "m"))
    with pytest.raises(AgentFailed, match="server-id"):
        identify(make(), root=machine(tmp_path / "m", None))


@pytest.mark.parametrize("broken", [b"", b"{", b'"x"', b'{"id": 7}', b'{"id": ""}', b"\xff\xfe"])
def test_broken_stored_id_is_written_anew(make: Make, tmp_path: Path, broken: bytes) -> None:
    root = machine(tmp_path / "m")
    before = identify(make(), root=root)
    (tmp_path / "state/server-id").write_bytes(broken)
    assert identify(make(), root=root) == before
    assert json.loads((tmp_path / "state/server-id").read_text())["id"] == before.id


def test_state_directory_that_takes_nothing_is_survived(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    found = identify(make(state_dir=tmp_path / "file/state"), root=machine(tmp_path / "m"))
    assert found.id
    assert [vars(record)["event"] for record in caplog.records] == [
        "identity.stored_id_unreadable",
        "identity.not_kept",
    ]


def test_no_machine_id_at_all_says_what_to_do(make: Make, tmp_path: Path) -> None:
    with pytest.raises(AgentFailed, match=r"etc/machine-id .* systemd-machine-id-setup"):
        identify(make(), root=machine(tmp_path / "m", None))


@pytest.mark.skipif(not shutil.which("systemd-id128"), reason="needs systemd-id128")
def test_hash_is_the_one_of_systemd() -> None:
    here = Path("/etc/machine-id").read_text().strip()
    command = ["systemd-id128", "machine-id", "--app-specific=ba06f335ae714394be75f04df59652fb"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert application_machine_id(here).hex() == told


def test_instance_is_the_identity_on_ec2(make: Make, tmp_path: Path, service: FakeMetadataService) -> None:
    root = machine(tmp_path / "m", sys_vendor="Amazon EC2")
    found = identify(make(cloud="auto", metadata_url=service.url), root=root)
    assert (found.id, found.name) == ("i-0fa4e000000000001", "ip-10-0-1-7")
    assert (found.image_id, found.image_version) == ("ami-0fa4e000000000001", None)
    assert found.host["cloud"] == "ec2"
    assert found.host["tags"] == {"queues": "fast,slow", "slots": "4"}
    assert found.host["availability_zone"] == "eu-west-1a"


def test_copied_instance_gets_its_own_id(make: Make, tmp_path: Path, service: FakeMetadataService) -> None:
    root = machine(tmp_path / "m")
    settings = make(cloud="ec2", metadata_url=service.url)
    identify(settings, root=root)
    service.documents["meta-data/instance-id"] = "i-0fa4e000000000002"
    assert identify(settings, root=root).id == "i-0fa4e000000000002"


def test_unreachable_ec2_never_falls_back_to_the_machine_id(
    make: Make, tmp_path: Path, service: FakeMetadataService
) -> None:
    service.endpoint = Endpoint.DISABLED
    root = machine(tmp_path / "m", sys_vendor="Amazon EC2")
    with pytest.raises(MetadataUnavailable, match=r"cloud = auto.*cloud = none") as caught:
        identify(make(cloud="auto", metadata_url=service.url), root=root)
    assert caught.value.is_retriable
    with pytest.raises(MetadataUnavailable, match="cloud = ec2"):
        identify(make(cloud="ec2", metadata_url=service.url), root=root)


def test_auto_asks_nobody_on_a_machine_that_is_not_ec2(
    make: Make, tmp_path: Path, service: FakeMetadataService
) -> None:
    root = machine(tmp_path / "m", sys_vendor="QEMU")
    assert identify(make(cloud="auto", metadata_url=service.url), root=root).host["cloud"] == "none"
    assert service.requests == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("class/dmi/id/sys_vendor", "Amazon EC2", True),
        ("class/dmi/id/bios_vendor", "Amazon EC2", True),
        ("class/dmi/id/product_uuid", "EC2E1916-9099-7CAF-FD21-012345ABCDEF", True),
        ("class/dmi/id/product_uuid", "45E12AEC-DCD1-B213-94ED-012345ABCDEF", True),
        ("hypervisor/uuid", "ec2e1916-9099-7caf-fd21-012345abcdef", True),
        ("class/dmi/id/sys_vendor", "QEMU", False),
        ("class/dmi/id/product_uuid", "45E12AEB-DCD1-B213-94ED-012345ABCDEF", False),
        ("hypervisor/uuid", "", False),
    ],
)
def test_ec2_is_known_by_firmware_and_hypervisor(
    tmp_path: Path, name: str, text: str, expected: bool
) -> None:
    path = tmp_path / "sys" / name
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n")
    assert looks_like_ec2(tmp_path) is expected


def test_set_name_wins(make: Make, tmp_path: Path) -> None:
    assert identify(make(server_name="blue-1"), root=machine(tmp_path / "m")).name == "blue-1"


def test_image_file_wins_over_the_ami(make: Make, tmp_path: Path, service: FakeMetadataService) -> None:
    (tmp_path / "image.json").write_text('{"id": "base-7", "version": "2026.05.1", "base": "debian-13"}')
    found = identify(make(cloud="ec2", metadata_url=service.url), root=machine(tmp_path / "m"))
    assert (found.image_id, found.image_version) == ("base-7", "2026.05.1")
    assert found.host["image"] == {"base": "debian-13"}
    assert found.host["ami_id"] == "ami-0fa4e000000000001"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "line 1 column 1"),
        (b'{"id": ', "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "object"),
        (b"{}", "id must be"),
        (b'{"id": 7}', "id must be"),
        (b'{"id": "a", "version": 7}', "version must be"),
        (b" " * (1 << 20) + b"{}", "over"),
    ],
)
def test_broken_image_file_is_named(make: Make, tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "image.json").write_bytes(content)
    with pytest.raises(SettingsError, match=complaint) as caught:
        identify(make(), root=machine(tmp_path / "m"))
    assert str(tmp_path / "image.json") in str(caught.value)


def test_image_path_that_is_a_directory_is_named(make: Make, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"image_file .* directory"):
        identify(make(image_file=tmp_path), root=machine(tmp_path / "m"))


def test_host_is_plain_json(make: Make, tmp_path: Path) -> None:
    root = machine(tmp_path / "m")
    (root / "etc/os-release").write_text('ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n')
    host = identify(make(), root=root).host
    assert json.loads(json.dumps(host)) == host
    assert host["memory_bytes"] > 0
    assert host["tags"] == {}
    assert host["os"] == "Debian GNU/Linux 13 (trixie)"


@pytest.mark.parametrize("text", [b"", b"PRETTY_NAME='x", b"\xff"])
def test_unreadable_os_release_is_no_fault(make: Make, tmp_path: Path, text: bytes) -> None:
    root = machine(tmp_path / "m")
    (root / "etc/os-release").write_bytes(text)
    assert identify(make(), root=root).host["os"] is None
