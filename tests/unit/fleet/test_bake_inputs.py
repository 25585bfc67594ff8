"""What a bake is given: the settings of servers, the scripts, the package."""

from __future__ import annotations

import subprocess
import tarfile
import tomllib
from io import BytesIO
from pathlib import Path

import pytest

from agent.config_load import load
from agent.errors import NotFound, SettingsError
from agent.fleet import bundle, user_data

GOOD = 'redis_url = "redis://10.0.0.1/0"\ndatabase_url = "postgresql://u:p%40ss@10.0.0.1/b"\n'


def test_user_data_is_a_settings_file_with_the_mark_and_what_is_special(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(
        GOOD + 'slots = 3\nqueues = ["builds"]\nlease_s = "1min"\n[tags]\n"a.b" = "x \\" \\\\ y"\n'
    )
    text = user_data.render(user_data.read(path), queues=["canary-1"])
    assert text.startswith("#build-agent\n")
    document = tomllib.loads(text)
    assert document["queues"] == ["canary-1"]
    assert document["tags"] == {"a.b": 'x " \\ y'}
    (tmp_path / "rendered.toml").write_text(text)
    settings = load(tmp_path / "rendered.toml", {}, {}).settings
    assert (settings.slots, settings.lease_s, settings.queues) == (3, 60.0, ("canary-1",))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("redis_url = ", "not valid TOML"),
        ('redis_url = "redis://h/0"\n', "database_url must be set, as servers reach them"),
        (GOOD + "slotz = 3\n", "slotz"),
    ],
)
def test_server_settings_that_hold_a_fault_are_refused_by_file_and_name(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "server.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=complaint) as raised:
        user_data.read(path)
    assert str(path) in str(raised.value)


def test_server_settings_that_are_not_there_are_missed_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"nowhere.toml: No such file or directory; it becomes the settings"
    ):
        user_data.read(tmp_path / "nowhere.toml")


def test_special_setting_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="slots"):
        user_data.render(tomllib.loads(GOOD), slots=-1)


def test_secrets_of_server_settings_are_known() -> None:
    document = tomllib.loads(GOOD + 'librato_token = "t0ken"\nslots = 2\n')
    assert set(user_data.secrets(document)) == {*tomllib.loads(GOOD).values(), "t0ken"}


def scripts(folder: Path) -> Path:
    """Make a folder of scripts."""
    (folder / "verify").mkdir(parents=True)
    (folder / "setup.sh").write_text("echo\n")
    (folder / "setup.sh").chmod(0o755)
    (folder / "verify" / "run.sh").write_text("echo\n")
    (folder / "pins.sh").write_text(
        "# pins\nexport PYTHON_VERSION=3.11 # as Debian has\nreadonly GO='1.19'\n"
    )
    (folder / "verify" / "__pycache__").mkdir()
    (folder / "verify" / "__pycache__" / "x.pyc").write_bytes(b"x")
    return folder


def test_archive_of_the_same_scripts_is_the_same_to_the_byte(tmp_path: Path) -> None:
    one, other = (bundle.read(scripts(tmp_path / name), None) for name in ("one", "other"))
    assert one.scripts == other.scripts
    (tmp_path / "other" / "setup.sh").write_text("echo 2\n")
    assert bundle.read(tmp_path / "other", None).scripts_sha256 != one.scripts_sha256
    with tarfile.open(fileobj=BytesIO(one.scripts), mode="r:gz") as archive:
        modes = {it.name: it.mode for it in archive.getmembers() if it.isfile()}
    assert modes == {
        "setup_scripts/pins.sh": 0o644,
        "setup_scripts/setup.sh": 0o755,
        "setup_scripts/verify/run.sh": 0o644,
    }
    assert one.pins == {"PYTHON_VERSION": "3.11", "GO": "1.19"}
    assert one.commit is None


def test_commit_of_the_scripts_is_known_and_marked_when_files_differ(tmp_path: Path) -> None:
    folder = scripts(tmp_path / "repository" / "setup_scripts")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run(["git", "-C", folder.parent, *words], check=True, timeout=30)
    commit = bundle.read(folder, None).commit
    assert commit is not None
    assert len(commit) == 40
    (folder / "setup.sh").write_text("echo 2\n")
    assert bundle.read(folder, None).commit == f"{commit}+"


def test_package_is_named_by_its_checksum(tmp_path: Path) -> None:
    package = tmp_path / "build-agent_1_amd64.deb"
    package.write_bytes(b"deb")
    facts = bundle.read(scripts(tmp_path / "one"), package).facts()
    assert facts["deb"] == package.name
    assert facts["deb_sha256"].startswith("9cfa14")


def test_missing_inputs_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        NotFound, match=r"no setup.sh in .*: name the folder of the set-up scripts with --scripts"
    ):
        bundle.find_scripts(tmp_path)
    with pytest.raises(NotFound, match="no Debian package"):
        bundle.find_deb(tmp_path / "none.deb")
