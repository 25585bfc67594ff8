"""First boot: settings from user data, whole or not at all; and a machine that is set up in part is refused."""

from __future__ import annotations

import grp
import os
import stat
import threading
from pathlib import Path

import pytest

from agent import config_load
from agent.config import Settings
from agent.errors import AgentFailed, ServerUnfit, SettingsError
from agent.host import first_boot, former_end
from tests.fakes.metadata_service import Endpoint, FakeMetadataService
from tests.services import wait_until

GOOD = '#build-agent\nslots = 3\nqueues = ["fast"]\n'
GROUP = grp.getgrgid(os.getgid()).gr_name


def settings(tmp_path: Path, **more: object) -> Settings:
    values = {"setup_dir": tmp_path / "setup", "image_file": tmp_path / "image.json"} | more
    return Settings(**values)  # type: ignore[arg-type]


def apply(text: str | None, path: Path) -> bool:
    return first_boot.apply_user_data(text, path, group=GROUP)


def test_user_data_becomes_the_settings_of_root_and_the_agents_group(tmp_path: Path) -> None:
    path = tmp_path / "etc/agent.toml"
    assert apply(GOOD, path)
    assert config_load.load(path, {}, {}).settings.slots == 3
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert found.st_gid == os.getgid()
    assert not apply(GOOD, path)
    assert apply(GOOD.replace("3", "4"), path)
    assert [it.name for it in path.parent.iterdir()] == ["agent.toml"]


@pytest.mark.parametrize("text", [None, "", "#cloud-config\n", "#!/bin/sh\n", "slots = 3\n"])
def test_user_data_of_others_is_left_alone(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("slots = 1\n")
    assert not apply(text, path)
    assert path.read_text() == "slots = 1\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("#build-agent\nslot = 3\n", r"user data:2: unknown setting slot; did you mean slots\?"),
        ("#build-agent\n\nslots = 'many'\n", "user data:3: slots"),
        ("#build-agent\nslots = \n", "user data:2: not valid TOML"),
    ],
)
def test_malformed_user_data_names_its_line_and_changes_nothing(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("slots = 1\n")
    with pytest.raises(SettingsError, match=told):
        apply(text, path)
    assert path.read_text() == "slots = 1\n"
    assert [it.name for it in tmp_path.iterdir()] == ["agent.toml"]


def test_secret_in_malformed_user_data_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        apply('#build-agent\nlibrato_token = ["hunter2"]\n', tmp_path / "agent.toml")
    assert "hunter2" not in str(caught.value)


def test_machine_without_the_agents_group_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(AgentFailed, match="no group no-such-group: install the package"):
        first_boot.apply_user_data(GOOD, tmp_path / "agent.toml", group="no-such-group")


def test_machine_that_is_set_up_in_part_is_refused_with_how_far_it_came(tmp_path: Path) -> None:
    first_boot.refuse_unfinished(settings(tmp_path))
    (tmp_path / "setup").mkdir()
    (tmp_path / "setup/unfinished").write_text(
        "The set-up of profile full has not come\nto its good end: 45\n"
    )
    with pytest.raises(ServerUnfit, match="full has not come to its good end: 45") as caught:
        first_boot.run(settings(tmp_path), tmp_path / "agent.toml", fetch=lambda _: GOOD)
    assert caught.value.exit_code == 78
    assert not (tmp_path / "agent.toml").exists()


def test_metadata_service_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    found: list[str | None] = []
    with FakeMetadataService() as service:
        service.set_user_data(GOOD)
        service.endpoint = Endpoint.BROKEN
        on_ec2 = settings(tmp_path, cloud="ec2", metadata_url=service.url)
        asking = threading.Thread(target=lambda: found.append(first_boot.fetch_user_data(on_ec2)))
        asking.start()
        wait_until(lambda: len(service.requests) >= 2, 10, "it to ask again")
        assert found == []
        service.endpoint = Endpoint.ENABLED
        asking.join(20)
    assert found == [GOOD]


def test_server_from_an_image_asks_elsewhere_too_and_one_made_by_hand_does_not(tmp_path: Path) -> None:
    with FakeMetadataService() as service:
        service.set_user_data(GOOD)
        here = settings(tmp_path, metadata_url=service.url)
        assert first_boot.fetch_user_data(here, root=tmp_path) is None
        assert service.requests == []
        here.image_file.write_text("{}")
        assert first_boot.fetch_user_data(here, root=tmp_path) == GOOD
        without = settings(tmp_path, metadata_url=service.url, cloud="none")
        assert first_boot.fetch_user_data(without, root=tmp_path) is None


def test_former_end_is_told_when_it_was_no_success(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert former_end.read(tmp_path) is None
    (tmp_path / former_end.NAME).write_text("success exited 0\n")
    assert former_end.read(tmp_path) == "success exited 0"
    assert caplog.records == []
    (tmp_path / former_end.NAME).write_text("watchdog killed KILL\n")
    assert former_end.read(tmp_path) == "watchdog killed KILL"
    assert "watchdog killed KILL" in caplog.text
