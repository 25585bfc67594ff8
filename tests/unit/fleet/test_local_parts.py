"""Parts of the local provider that need no machine: addresses, records, layers, files of a root filesystem, documents."""

from __future__ import annotations

import json
import os
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from agent.fleet.local import (
    address,
    console,
    debian,
    first_start,
    host_command,
    layers,
    metadata_service,
    state,
)
from agent.fleet.local.rootfs import RootFs
from agent.fleet.provider import ProviderError, ProviderUnavailable


def machine(folder: Path, **more: object) -> state.MachineRecord:
    values: dict[str, object] = {
        "id": "m-1", "name": "web", "token": "t", "image": "base", "stack": ("base",), "address": "10.0.0.2",
        "subnet": "10.0.0.0/24", "uuid": "u", "launched_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return state.MachineRecord(**values | more)  # type: ignore[arg-type]


# Addresses.


@pytest.mark.parametrize("text", ["10.0.0.0/24", "192.168.7.0/29", "172.16.0.0/16"])
def test_private_subnets_are_taken(text: str) -> None:
    assert str(address.subnet_of(text)) == text


@pytest.mark.parametrize(
    "text", ["8.8.8.0/24", "10.0.0.1/24", "127.0.0.0/24", "169.254.0.0/16", "10.0.0.0/30", "x", ""]
)
def test_other_subnets_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ProviderError, match=r"10\.213\.0\.0/24"):
        address.subnet_of(text)


def test_lowest_free_address_is_given_and_never_the_hosts_own() -> None:
    subnet = IPv4Network("10.0.0.0/29")
    taken: list[str] = []
    for _ in range(5):
        taken.append(str(address.free_address(subnet, taken)))
    assert taken == [f"10.0.0.{number}" for number in range(2, 7)]
    with pytest.raises(ProviderUnavailable, match="terminate a machine"):
        address.free_address(subnet, taken)
    assert str(address.free_address(subnet, set(taken) - {"10.0.0.4"})) == "10.0.0.4"


# Records.


def test_thing_is_there_when_it_is_finished_and_not_before(tmp_path: Path) -> None:
    kept = state.State(tmp_path)
    kept.create()
    with kept.making("machines", machine(tmp_path)) as (folder, _):
        assert kept.machine("m-1") is None
        assert [it.id for it in kept.machine_records(is_making=True)] == ["m-1"]
        kept.finish("machines", folder)
    found = kept.machine("m-1")
    assert found is not None
    assert found.stack == ("base",)


def test_thing_whose_maker_failed_is_gone(tmp_path: Path) -> None:
    kept = state.State(tmp_path)
    kept.create()
    with pytest.raises(RuntimeError), kept.making("machines", machine(tmp_path)):
        raise RuntimeError
    assert list((tmp_path / "machines").iterdir()) == []


def test_folder_of_a_dead_maker_alone_is_abandoned(tmp_path: Path) -> None:
    kept = state.State(tmp_path)
    kept.create()
    dead = kept.machines / f"{state.MAKING}m-2"
    dead.mkdir()
    (dead / "lock").touch()
    with kept.making("machines", machine(tmp_path)):
        assert [folder for folder, _ in kept.abandoned()] == [dead]


@pytest.mark.parametrize("wrong", ["", "..", "../x", "a/b", "-x", "A", "x" * 64, "a\n"])
def test_ids_that_could_be_paths_are_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ProviderError, match="no id"):
        state.State(tmp_path).machine_dir(wrong)


def test_record_of_another_version_is_told(tmp_path: Path) -> None:
    kept = state.State(tmp_path)
    (kept.machines / "m-1").mkdir(parents=True)
    (kept.machines / "m-1/machine.json").write_text(json.dumps({"id": "m-1"}))
    with pytest.raises(ProviderError, match="no record of this version"):
        kept.machine("m-1")


def test_lock_is_had_by_one_and_told_to_others(tmp_path: Path) -> None:
    held = state.try_lock(tmp_path / "lock")
    assert held is not None
    assert state.try_lock(tmp_path / "lock") is None
    assert state.is_locked(tmp_path / "lock")
    with (
        pytest.raises(ProviderUnavailable, match="another command"),
        state.locked(tmp_path / "lock", limit_s=0.05),
    ):
        pass
    os.close(held)
    assert not state.is_locked(tmp_path / "lock")


def test_name_that_is_none_of_a_host_gives_way_to_the_id(tmp_path: Path) -> None:
    assert machine(tmp_path, name="Web-1").host_name == "web-1"
    assert machine(tmp_path, name="bake of shop").host_name == "m-1"


# Layers and files.


def test_stack_is_mounted_from_the_top_down_and_its_absence_told(tmp_path: Path) -> None:
    options = layers.mount_options(("top", "base"), tmp_path / "m")
    assert options.startswith("lowerdir=top/layer:base/layer,upperdir=")
    with pytest.raises(ProviderError, match="stands on top, base"):
        layers.check_stack(tmp_path, ("top", "base"))
    with pytest.raises(ProviderError, match="must not hold commas"):
        layers.mount_options(("base",), tmp_path / "a,b")


def test_size_counts_a_hard_link_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 10_000)
    before = layers.size_of(tmp_path)
    os.link(tmp_path / "one", tmp_path / "two")
    assert layers.size_of(tmp_path) == before >= 10_000


def test_f30_link_in_an_image_is_not_followed_out_of_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_text("secret")
    inner = tmp_path / "image"
    inner.mkdir()
    (inner / "etc").symlink_to(outside)
    (inner / "motd").symlink_to(outside / "passwd")
    root = RootFs(inner)
    for act in (
        lambda: root.read("/etc/passwd"),
        lambda: root.write("/etc/passwd", b"x"),
        lambda: root.read("/motd"),
        lambda: root.read("/../outside/passwd"),
        lambda: root.names("/etc"),
    ):
        with pytest.raises(ProviderError):
            act()
    assert (outside / "passwd").read_text() == "secret"
    # A file in place of a link takes its name, and leaves what it led to.
    root.write("/motd", b"hello")
    assert (inner / "motd").read_text() == "hello"
    assert (outside / "passwd").read_text() == "secret"


@pytest.mark.root
def test_first_start_lets_in_once_and_makes_a_host_key(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc/ssh").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    record = machine(tmp_path, ssh_user="root", ssh_key="ssh-ed25519 AAAA me")
    first_start.prepare(record, tmp_path)
    key = (root / "etc/ssh/ssh_host_ed25519_key").read_bytes()
    assert (root / "root/.ssh/authorized_keys").read_text() == "ssh-ed25519 AAAA me\n"
    assert (root / "etc/hostname").read_text() == "web\n"
    first_start.prepare(record, tmp_path)
    assert (root / "etc/ssh/ssh_host_ed25519_key").read_bytes() == key


@pytest.mark.root
def test_user_that_the_image_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "root/etc").mkdir(parents=True)
    with pytest.raises(ProviderError, match="no user 'admin'"):
        first_start.prepare(machine(tmp_path, ssh_user="admin", ssh_key="k"), tmp_path)


def test_resolver_on_the_hosts_loopback_gives_way_to_the_real_one(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.53\n")
    (tmp_path / "real").write_text("nameserver 10.9.9.9\n")
    assert first_start.resolver(tmp_path, tmp_path / "real") == b"nameserver 10.9.9.9\n"
    assert first_start.resolver(tmp_path, tmp_path / "none") == b"nameserver 127.0.0.53\n"


def test_console_keeps_the_newest(tmp_path: Path) -> None:
    with console.Console(tmp_path) as it:
        for number in range(60_000):
            it.say(f"line {number:06d} of the console")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_200_000
    assert console.read(tmp_path, 200).endswith("line 059999 of the console\n")
    assert len(console.read(tmp_path, 200)) == 200


# Documents and commands.


def test_document_file_is_read_again_when_it_was_replaced(tmp_path: Path) -> None:
    file = metadata_service.DocumentFile(tmp_path / "metadata.json")
    assert file() == {}
    state.write_json(tmp_path / "metadata.json", {"user-data": "one"})
    assert file()["user-data"] == "one"
    state.write_json(tmp_path / "metadata.json", {"user-data": "two"})
    assert file()["user-data"] == "two"
    (tmp_path / "metadata.json").write_text("{")
    assert file()["user-data"] == "two"


def test_closed_tags_are_gone_from_the_documents() -> None:
    opened = metadata_service.with_tags({"a": "1"}, {"k": "v"})
    assert opened["meta-data/tags/instance/k"] == "v"
    assert metadata_service.with_tags(opened, None) == {"a": "1"}


def test_failed_command_says_what_was_tried_and_what_it_said() -> None:
    with pytest.raises(ProviderError, match=r"could not count: bash ended with 3: no\b"):
        host_command.run(["bash", "-c", "echo no >&2; exit 3"], what="count", limit_s=10)
    with pytest.raises(ProviderUnavailable, match=r"longer than 0\.2 s"):
        host_command.run(["sleep", "60"], what="wait", limit_s=0.2)
    with pytest.raises(ProviderError, match="apt install no-such-program"):
        host_command.run(["no-such-program"], what="start", limit_s=1)


def test_base_is_another_when_its_recipe_is() -> None:
    assert debian.recipe("debian-12") == debian.recipe("debian-12")
    assert debian.recipe("debian-12", ("systemd",)) != debian.recipe("debian-12")


def test_sources_are_the_hosts_own_only_where_it_is_the_same_debian(tmp_path: Path) -> None:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "apt/sources.list").write_text("deb http://mirror.house/debian bookworm main\n")
    (tmp_path / "os-release").write_text("VERSION_CODENAME=bookworm\n")
    assert debian.sources("bookworm", tmp_path) == [str(tmp_path / "apt/sources.list")]
    (tmp_path / "os-release").write_text("VERSION_CODENAME=noble\n")
    assert debian.sources("bookworm", tmp_path) == []
