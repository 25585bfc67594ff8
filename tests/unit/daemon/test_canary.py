"""The boot canary: it runs where a build could, and says what is wrong where none could."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import Settings
from agent.daemon import canary
from agent.errors import ServerUnfit

LIFE = "0" * 32


def settings(tmp_path: Path, **more: object) -> Settings:
    values = {
        "state_dir": tmp_path / "state",
        "workspace_dir": tmp_path / "workspaces",
        "setup_dir": tmp_path / "setup",
        "image_file": tmp_path / "image.json",
    } | more
    return Settings(**values)  # type: ignore[arg-type]


def test_canary_passes_and_leaves_nothing(tmp_path: Path) -> None:
    assert canary.run(settings(tmp_path), life=LIFE) > 0
    assert [it for it in (tmp_path / "workspaces").rglob("*") if it.is_file()] == []


@pytest.mark.parametrize(
    ("shell", "told"),
    [
        (
            ("/bin/bash", "-c", "echo no git here; exit 3", "sh"),
            "ended with 3, so this server can't build: no git here",
        ),
        (("/bin/false",), "ended with 1, so this server can't build: it printed nothing"),
        (("/bin/true",), "ended with 0, so this server can't build"),
        (("/no/such/shell", "-c"), "can't be started: No such file or directory: /no/such/shell"),
    ],
)
def test_canary_that_fails_says_how(tmp_path: Path, shell: tuple[str, ...], told: str) -> None:
    with pytest.raises(ServerUnfit, match=told) as caught:
        canary.run(settings(tmp_path, shell=shell), life=LIFE)
    assert caught.value.exit_code == 78


def test_canary_without_a_workspace_says_so(tmp_path: Path) -> None:
    (tmp_path / "workspaces").write_text("a file in its place")
    with pytest.raises(ServerUnfit, match="has no workspace"):
        canary.run(settings(tmp_path), life=LIFE)


def test_canary_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "LIMIT_S", 0.3)
    with pytest.raises(ServerUnfit, match=r"did not end in 0\.3 s"):
        canary.run(settings(tmp_path, shell=("/bin/bash", "-c", "sleep 600", "sh")), life=LIFE)


def test_server_from_an_image_runs_it_unless_told_otherwise(tmp_path: Path) -> None:
    broken: dict[str, object] = {"shell": ("/bin/false",)}
    canary.admit(settings(tmp_path, **broken), life=LIFE)
    (tmp_path / "image.json").write_text("{}")
    with pytest.raises(ServerUnfit):
        canary.admit(settings(tmp_path, **broken), life=LIFE)
    canary.admit(settings(tmp_path, boot_canary="off", **broken), life=LIFE)
    (tmp_path / "image.json").unlink()
    with pytest.raises(ServerUnfit):
        canary.admit(settings(tmp_path, boot_canary="on", **broken), life=LIFE)


def test_machine_that_is_set_up_in_part_is_not_let_in(tmp_path: Path) -> None:
    (tmp_path / "setup").mkdir()
    (tmp_path / "setup/unfinished").write_text("to do: 50-agent")
    with pytest.raises(ServerUnfit, match="to do: 50-agent"):
        canary.admit(settings(tmp_path), life=LIFE)
