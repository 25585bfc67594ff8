"""Settings: sources, faults, masks, and the file and documents made from the table."""

from __future__ import annotations

import json
import re
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from agent.cli.config import config as config_group
from agent.cli.config import literal, table, toml
from agent.config import MASK, TABLE, Settings, masked, size
from agent.config_load import DEFAULT_FILE, Loaded, _key_lines, load
from agent.errors import SettingsError

ROOT = Path(__file__).parents[2]
SECRETS = [name for name, each in TABLE.items() if each.metadata["secret"]]
# for every setting a text that differs from the default and what it becomes
OTHER: dict[str, tuple[str, object]] = {
    "server_name": ("b7", "b7"),
    "slots": ("4", 4),
    "queues": ("deploys,builds", ("deploys", "builds")),
    "tags": ("arch=arm64,os=debian", {"arch": "arm64", "os": "debian"}),
    "cloud": ("none", "none"),
    "metadata_url": ("http://127.0.0.1:8111", "http://127.0.0.1:8111"),
    "setup_dir": ("/srv/setup", Path("/srv/setup")),
    "boot_canary": ("off", "off"),
    "when_unfit": ("stay", "stay"),
    "unfit_delay_s": ("10min", 600.0),
    "notice_s": ("2s", 2.0),
    "notice_margin_s": ("1min", 60.0),
    "redis_url": ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    "database_url": ("postgresql://db/builds", "postgresql://db/builds"),
    "lease_s": ("1min", 60.0),
    "heartbeat_s": ("500ms", 0.5),
    "max_attempts": ("5", 5),
    "stop_limit_s": ("1h 30min", 5400.0),
    "sweep_s": ("1.5", 1.5),
    "shell": ('["/bin/sh", "-c"]', ("/bin/sh", "-c")),
    "step_timeout_s": ("2h", 7200.0),
    "build_timeout_s": ("1d", 86400.0),
    "no_output_timeout_s": ("5min", 300.0),
    "kill_grace_s": ("3s", 3.0),
    "leaked_pipe_wait_s": ("0", 0.0),
    "environment_allow": ("", ()),
    "source_roots": ("/srv/src,/srv/vendor", ("/srv/src", "/srv/vendor")),
    "mirror_limit_bytes": ("512MiB", 512 << 20),
    "git_timeout_s": ("90", 90.0),
    "keep_workspaces": ("true", True),
    "chunk_bytes": ("32KiB", 32768),
    "flush_gap_ms": ("20ms", 20),
    "spool_limit_bytes": ("1.5GiB", 1610612736),
    "output_limit_bytes": ("0", 0),
    "redact_min_length": ("8", 8),
    "cache_limit_bytes": ("1TiB", 1 << 40),
    "min_free_bytes": ("5GiB", 5 << 30),
    "min_free_inodes": ("500", 500),
    "min_free_memory_bytes": ("64MiB", 64 << 20),
    "max_clock_skew_s": ("1", 1.0),
    "health_address": ("", ""),
    "gauges_interval_s": ("1min", 60.0),
    "metrics_source": ("b7", "b7"),
    "librato_url": ("https://librato.test/v1", "https://librato.test/v1"),
    "librato_user": ("ops@example.test", "ops@example.test"),
    "librato_token": ("t0ken", "t0ken"),
    "statsd_address": ("[::1]:8125", "[::1]:8125"),
    "fleet_provider": ("ec2", "ec2"),
    "fleet_owner": ("ci-1", "ci-1"),
    "fleet_server_config": ("/etc/build-agent/server.toml", "/etc/build-agent/server.toml"),
    "fleet_cycle_s": ("500ms", 0.5),
    "fleet_list_s": ("1min", 60.0),
    "fleet_images_kept": ("5", 5),
    "deploy_repository": ("https://git.test/ci/agent.git", "https://git.test/ci/agent.git"),
    "deploy_branches": ("main,release", ("main", "release")),
    "deploy_pool": ("linux", "linux"),
    "deploy_profile": ("minimal", "minimal"),
    "deploy_base": ("debian-12", "debian-12"),
    "deploy_package_command": ("make deb", "make deb"),
    "deploy_webhook_address": ("127.0.0.1:9190", "127.0.0.1:9190"),
    "deploy_webhook_secret": ("s3cret", "s3cret"),
    "ec2_region": ("eu-west-1", "eu-west-1"),
    "ec2_endpoint_url": ("https://ec2.internal", "https://ec2.internal"),
    "ec2_subnet": ("subnet-1", "subnet-1"),
    "ec2_security_groups": ("sg-1,sg-2", ("sg-1", "sg-2")),
    "ec2_ssh_cidr": ("198.51.100.7/32", "198.51.100.7/32"),
    "ec2_ssh_address": ("public", "public"),
    "ec2_instance_type": ("c7i.xlarge", "c7i.xlarge"),
    "ec2_instance_profile": ("builder", "builder"),
    "ec2_volume_gib": ("100", 100),
    "ec2_kms_key": ("alias/builds", "alias/builds"),
    "console_address": ("[::1]:8421", "[::1]:8421"),
    "console_url": ("https://builds.example.com", "https://builds.example.com"),
    "console_proxies": ("10.0.0.1,10.0.0.2", ("10.0.0.1", "10.0.0.2")),
    "console_session_s": ("1d", 86400.0),
    "console_idle_s": ("1h", 3600.0),
    "local_dir": ("/srv/machines", Path("/srv/machines")),
    "local_subnet": ("10.9.8.0/24", "10.9.8.0/24"),
    "log_format": ("json", "json"),
    "log_level": ("debug", "debug"),
} | {
    name: (f"/srv/{name}", Path(f"/srv/{name}"))
    for name in (
        "state_dir",
        "workspace_dir",
        "spool_dir",
        "mirror_dir",
        "cache_dir",
        "artifact_dir",
        "secrets_dir",
        "image_file",
    )
}
# these hold only together
PARTNER = {
    "librato_user": {"librato_token": "x"},
    "librato_token": {"librato_user": "x"},
    "deploy_webhook_address": {"deploy_webhook_secret": "x", "deploy_repository": "https://git.test/x.git"},
}


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "agent.toml"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def faults(path: Path | None = None, environ: dict[str, str] | None = None, **overrides: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(path, environ or {}, overrides)
    return str(caught.value).splitlines()


def set_to(**overrides: str) -> Settings:
    return load(None, {}, overrides).settings


class TestSources:
    def test_defaults_hold_without_any_source(self) -> None:
        loaded = load(None, {}, {})
        assert loaded.settings == Settings()
        assert loaded.path is None
        assert set(loaded.origins) == set(TABLE)
        assert not DEFAULT_FILE.exists()

    def test_every_setting_has_a_case_here(self) -> None:
        assert set(OTHER) == set(TABLE)

    @pytest.mark.parametrize("name", TABLE)
    def test_every_setting_is_reachable_from_the_command_line(self, name: str) -> None:
        text, value = OTHER[name]
        loaded = load(None, {}, {name: text} | PARTNER.get(name, {}))
        assert getattr(loaded.settings, name) == value
        assert type(getattr(loaded.settings, name)) is type(getattr(Settings(), name))
        assert loaded.origins[name] == f"--set {name}"

    @pytest.mark.parametrize("name", TABLE)
    def test_every_setting_is_reachable_from_the_environment(self, name: str) -> None:
        text, value = OTHER[name]
        loaded = load(None, {f"BUILD_AGENT_{name.upper()}": text}, PARTNER.get(name, {}))
        assert getattr(loaded.settings, name) == value
        assert loaded.origins[name] == f"environment BUILD_AGENT_{name.upper()}"

    @pytest.mark.parametrize("name", TABLE)
    def test_every_setting_is_reachable_from_the_file(self, name: str, tmp_path: Path) -> None:
        _, value = OTHER[name]
        path = write(tmp_path, f"# a comment\n\n{name} = {literal(name, value)}\n")
        loaded = load(path, {}, PARTNER.get(name, {}))
        assert getattr(loaded.settings, name) == value
        assert loaded.origins[name] == f"{path}:3"

    def test_the_later_source_wins(self, tmp_path: Path) -> None:
        path = write(tmp_path, "slots = 3\nmax_attempts = 4\nlog_level = 'debug'\n")
        environ = {"BUILD_AGENT_SLOTS": "5", "BUILD_AGENT_MAX_ATTEMPTS": "6"}
        settings = load(path, environ, {"slots": "7"}).settings
        assert (settings.slots, settings.max_attempts, settings.log_level) == (7, 6, "debug")

    def test_the_file_named_in_the_environment_is_read_unless_another_is_named(self, tmp_path: Path) -> None:
        named = write(tmp_path, "slots = 3\n")
        environ = {"BUILD_AGENT_CONFIG": str(named)}
        assert load(None, environ, {}).settings.slots == 3
        other = tmp_path / "other.toml"
        other.write_text("slots = 4\n")
        assert load(other, environ, {}).settings.slots == 4

    def test_a_named_file_that_is_missing_is_a_fault(self, tmp_path: Path) -> None:
        path = tmp_path / "nowhere.toml"
        assert faults(path) == [f"{path}: there is no such file"]
        assert faults(None, {"BUILD_AGENT_CONFIG": str(path)}) == [f"{path}: there is no such file"]

    def test_a_file_that_can_not_be_read_is_a_fault(self, tmp_path: Path) -> None:
        assert faults(tmp_path) == [f"{tmp_path}: can't be read: Is a directory"]

    def test_variables_of_others_are_left_alone(self) -> None:
        assert load(None, {"BUILD_AGENTS": "1", "build_agent_slots": "9"}, {}).settings == Settings()

    def test_directories_follow_state_dir_unless_set(self) -> None:
        loaded = load(None, {}, {"state_dir": "/srv/ba", "spool_dir": "/fast/spool"})
        assert loaded.settings.workspace_dir == Path("/srv/ba/workspaces")
        assert loaded.settings.spool_dir == Path("/fast/spool")
        assert loaded.origins["workspace_dir"] == "under state_dir"

    def test_tags_can_be_a_toml_table_in_each_source(self, tmp_path: Path) -> None:
        path = write(tmp_path, 'slots = 3\n[tags]\narch = "arm64"\n')
        assert load(path, {}, {}).settings.tags == {"arch": "arm64"}
        assert set_to(tags='{ note = "a,b=c" }').tags == {"note": "a,b=c"}

    def test_a_byte_order_mark_and_windows_line_ends_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "agent.toml"
        path.write_bytes(b"\xef\xbb\xbfslots = 3\r\nmax_attempts = 0\r\n")
        assert faults(path)[0].startswith(f"{path}:2: max_attempts: ")


class TestFaults:
    def test_all_faults_of_all_sources_are_reported_at_once(self, tmp_path: Path) -> None:
        path = write(tmp_path, 'slot = 2\n\nheartbeat_s = "20s"\nlog_level = "loud"\n')
        environ = {"BUILD_AGENT_SLOTZ": "1", "BUILD_AGENT_CHUNK_BYTES": "3GB"}
        assert faults(path, environ, lease_z="1") == [
            f"{path}:1: unknown setting slot; did you mean slots?",
            f"{path}:4: log_level: expected one of debug, info, warning, error; got 'loud'",
            "environment BUILD_AGENT_SLOTZ: unknown setting; did you mean BUILD_AGENT_SLOTS?",
            "environment BUILD_AGENT_CHUNK_BYTES: chunk_bytes: expected a size from 4KiB to 64KiB, "
            "such as 65536 or \"64KiB\"; got '3GB'",
            "--set lease_z: unknown setting; did you mean lease_s?",
            f"heartbeat_s = 20.0 ({path}:3), lease_s = 30.0 (default): heartbeat_s must be at most a "
            "third of lease_s: two heartbeats may fail before a lease ends",
        ]

    def test_a_bad_value_is_a_fault_even_when_a_later_source_overrides_it(self, tmp_path: Path) -> None:
        path = write(tmp_path, "slots = 0\n")
        assert faults(path, slots="2")[0].startswith(f"{path}:1: slots: expected a whole number from 1 to 64")

    def test_a_broken_file_does_not_hide_faults_elsewhere(self, tmp_path: Path) -> None:
        path = write(tmp_path, "slots = 2\nslots = 3\n")
        found = faults(path, {"BUILD_AGENT_SLOTS": "many"})
        assert found[0].startswith(f"{path}:2: not valid TOML: ")
        assert len(found) == 2

    def test_a_file_that_ends_too_early_names_its_last_line(self, tmp_path: Path) -> None:
        assert faults(write(tmp_path, "slots = 2\nqueues = ["))[0].startswith(f"{tmp_path}/agent.toml:2: ")

    def test_a_name_unlike_any_is_said_to_be_so(self) -> None:
        assert faults(zzzz="1") == ["--set zzzz: unknown setting; no known name is near"]

    def test_a_name_can_not_forge_a_second_fault(self, tmp_path: Path) -> None:
        path = write(tmp_path, '"x\\n/etc/passwd:1: slots" = 1\n')
        assert len(faults(path)) == 1

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            *(
                ("slots", text)
                for text in ("", "0", "65", "2.5", "-1", "two", "1_0", "٣", "true", "nan", "2s")
            ),
            *(
                ("lease_s", text)
                for text in ("", "-1", "inf", "nan", "10 minutes", "30x", "s", "1e3", "30s,")
            ),
            *(("chunk_bytes", text) for text in ("64KB", "64K", "1.00001KiB", "4GiB", "4kib", "64 Ki B")),
            *(("keep_workspaces", text) for text in ("", "yes", "1", "0")),
            *(("queues", text) for text in ("", "a,,b", "a b", "a,a", "[1]", '["a"]\nb = 1', "[", "{}")),
            *(("tags", text) for text in ("a", "=b", "a b=c", "{ a = 1 }", "{")),
            *(("shell", text) for text in ("", "bash,-c", '["/bin/sh -c"]', '["/bin/sh", "a\\u0000b"]')),
            *(("state_dir", text) for text in ("", "relative", "/a/../b", "//a", "/a\nb", "~")),
            *(("environment_allow", text) for text in ("BUILD_AGENT_DATABASE_URL", "A B", "1A", "A=b")),
            *(
                ("health_address", text)
                for text in (":9180", "localhost", "h:99999", "h:", "http://h:1", "::1:9")
            ),
            *(
                ("metadata_url", text)
                for text in ("", "ftp://h", "h", "http://", "http://h:99999", "http://a b")
            ),
            *(("redis_url", text) for text in ("", "http://h", "redis://", "redis://h/x", "redis://:p/w@h")),
            *(
                ("redis_url", text)
                for text in ("unix://", "sentinel://h/service", "sentinel://h:1", "redis://h:0x")
            ),
            *(
                ("database_url", text)
                for text in ("", "mysql://h/d", "postgres://h/d", "sqlite://", "sqlite:///a")
            ),
            *(("fleet_server_config", text) for text in ("server.toml", "/etc/../server.toml", "/etc/..")),
            *(("local_subnet", text) for text in ("", "10.0.0.0", "10.0.0.0/8", "any/24")),
            *(("log_format", text) for text in ("", "xml", "JSON")),
            *(("server_name", text) for text in ("a b", "-a", "a\x1b[2J")),
        ],
    )
    def test_a_malformed_value_is_named_with_what_was_expected(self, name: str, text: str) -> None:
        assert re.search(rf"\b{name}\b", faults(None, {}, **{name: text})[0])

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("slots", "true"),
            ("slots", "2.5"),
            ("slots", "[2]"),
            ("lease_s", "inf"),
            ("lease_s", "nan"),
            ("keep_workspaces", "1"),
            ("server_name", "7"),
            ("queues", "3"),
            ("queues", "[1]"),
            ("tags", "[]"),
            ("state_dir", "1979-05-27"),
            ("min_free_inodes", "1" + "0" * 400),
            ("lease_s", "1" + "0" * 400),
        ],
    )
    def test_a_toml_value_of_another_type_is_a_fault(self, name: str, value: str, tmp_path: Path) -> None:
        assert faults(write(tmp_path, f"{name} = {value}\n"))[0].startswith(
            f"{tmp_path}/agent.toml:1: {name}: "
        )

    @pytest.mark.parametrize(
        "url",
        [
            "redis://h",
            "redis://:p%2Fw@h:6379/1?health_check_interval=5",
            "rediss://u:p@[::1]:6380/0",
            "unix:///run/r.sock?db=2",
            "unix://u:p@/run/r.sock",
            "sentinel://:p@a:26379,b:26379/main/2",
        ],
    )
    def test_the_forms_of_redis_are_taken(self, url: str) -> None:
        assert set_to(redis_url=url).redis_url == url

    @pytest.mark.parametrize(
        ("overrides", "names"),
        [
            ({"heartbeat_s": "11"}, "heartbeat_s lease_s"),
            ({"lease_s": "15", "kill_grace_s": "8"}, "kill_grace_s lease_s"),
            ({"spool_limit_bytes": "1MiB", "slots": "5"}, "spool_limit_bytes slots"),
            ({"librato_user": "ops"}, "librato_user librato_token"),
            (
                {"deploy_webhook_address": "127.0.0.1:1", "deploy_webhook_secret": "x"},
                "deploy_webhook_address deploy_webhook_secret deploy_repository",
            ),
            ({"queues": "a,b,a"}, "queues"),
            ({"shell": "sh,-c"}, "shell"),
            ({"cache_dir": "/var/lib/build-agent/spool"}, "spool_dir cache_dir"),
            ({"cache_dir": "/var/lib/build-agent/spool/c"}, "spool_dir cache_dir"),
            ({"secrets_dir": "/var/lib/build-agent/workspaces/s"}, "workspace_dir secrets_dir"),
            ({"state_dir": "/srv/w/state", "workspace_dir": "/srv/w"}, "workspace_dir state_dir"),
            ({"workspace_dir": "/var/lib/build-agent"}, "workspace_dir state_dir"),
        ],
    )
    def test_settings_that_contradict_each_other_are_a_fault(
        self, overrides: dict[str, str], names: str
    ) -> None:
        found = " ".join(faults(None, {}, **overrides))
        assert all(f"{name} = " in found for name in names.split())

    def test_a_third_and_a_half_of_the_lease_are_allowed(self) -> None:
        assert set_to(lease_s="1.2", heartbeat_s="0.4", kill_grace_s="0.6").heartbeat_s == 0.4

    def test_a_rule_says_nothing_of_a_setting_that_is_faulty_itself(self) -> None:
        assert len(faults(None, {}, lease_s="soon", heartbeat_s="20")) == 1

    @given(st.sampled_from(sorted(TABLE)), st.text())
    def test_any_text_is_taken_or_a_fault_that_is_one_line(self, name: str, text: str) -> None:
        said = f"--set {name}"
        try:
            said = load(None, {}, {name: text} | PARTNER.get(name, {})).origins[name]
        except SettingsError as error:
            said = str(error)
        assert name in said
        assert all(line.isprintable() for line in said.split("\n"))


class TestNumbers:
    @given(st.integers(0, 1 << 50))
    @example(0)
    def test_a_size_is_read_back_as_it_is_shown(self, count: int) -> None:
        assert set_to(min_free_bytes=size(count)).min_free_bytes == count

    @given(st.integers(0, 6), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
    def test_a_duration_in_several_units_is_their_sum(self, d: int, h: int, m: int, s: int) -> None:
        expected = ((d * 24 + h) * 60 + m) * 60 + s
        assert set_to(stop_limit_s=f"{d}d {h}h{m}min {s}s").stop_limit_s == expected


KEYS = st.from_regex(r"[a-z]{1,6}", fullmatch=True)
VALUES = st.sampled_from(
    [
        "1",
        "'x'",
        '"""\na = 1\n\n# no comment\n[b]\n"""',
        "[\n  1, # one\n\n  2,\n]",
        "'''\n]'''",
        '"# \\" ="',
        "{ a = 1 }",
        "[[1],\n[2]]",
        "1979-05-27",
        '"""a\\\n   b"""',
    ]
)


class TestLines:
    @given(
        st.lists(
            st.tuples(KEYS, VALUES, st.sampled_from(["", "\n", "# c = 1\n", "  # x\n\n"])),
            unique_by=lambda it: it[0],
        )
    )
    def test_every_key_is_found_on_the_line_it_begins_on(self, parts: list[tuple[str, str, str]]) -> None:
        text, expected = "", {}
        for key, value, before in parts:
            text += before
            expected[key] = text.count("\n") + 1
            text += f"{key} = {value}  # end\n"
        assert set(tomllib.loads(text)) == set(expected)
        assert _key_lines(text) == expected

    def test_a_table_and_quoted_and_dotted_keys_have_the_line_of_their_first_word(self) -> None:
        text = '"a" = 1\nb.c = 1\nb.d = 2\n[tags]\na = "not a"\n[[list]]\nx = 1\n[list.y]\n'
        assert _key_lines(text) == {"a": 1, "b": 2, "tags": 4, "list": 6}


PASSWORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Z")), min_size=1).map(
    lambda it: f"S3CR{it}T"
)


class TestSecrets:
    @given(PASSWORDS)
    def test_a_password_in_a_url_never_shows(self, password: str) -> None:
        shown = str(masked("redis_url", f"redis://user:{quote(password, safe='')}@host:6379/0"))
        assert shown == f"redis://user:{MASK}@host:6379/0"

    @given(PASSWORDS)
    @example("S3CR/a@b:c@T")
    def test_a_password_that_nobody_encoded_shows_neither_head_nor_tail(self, password: str) -> None:
        # `?name=` within a password is a parameter to every reader of URLs
        shown = str(masked("database_url", f"postgresql://user:{password.replace('?', '')}@host/db"))
        assert shown == f"postgresql://user:{MASK}@host/db"

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis://host:6379/0", "redis://host:6379/0"),
            ("redis://:p@host", "redis://:***@host"),
            ("redis://user@host", "redis://user@host"),
            ("unix:///s?db=1&password=p", "unix:///s?db=1&password=***"),
            ("unix:///s?p%61ssword=a@b&db=1", "unix:///s?p%61ssword=***&db=1"),
            (
                "postgresql:///d?host=h&sslpassword=p&passfile=/f",
                "postgresql:///d?host=h&sslpassword=***&passfile=/f",
            ),
            ("sentinel://u:p@a:1,b:2/main/0", "sentinel://u:***@a:1,b:2/main/0"),
            ("postgresql://us/er:p@h/d", "postgresql://us/er:***@h/d"),
            ("not a url, a password", "***"),
            ("", ""),
        ],
    )
    def test_of_a_url_only_the_secret_is_masked(self, url: str, shown: str) -> None:
        assert masked("redis_url", url) == shown

    def test_settings_show_no_secret_when_printed(self) -> None:
        settings = Settings(
            redis_url="redis://:hunter2@h", database_url="postgresql://u:hunter2@h/d", librato_token="hunter2"
        )
        assert "hunter2" not in f"{settings!r} {settings} {Loaded(settings=settings, origins={})}"
        assert "slots=2" in repr(settings)

    @pytest.mark.parametrize("name", SECRETS)
    def test_a_fault_of_a_secret_does_not_show_it(self, name: str, tmp_path: Path) -> None:
        found = faults(write(tmp_path, f'{name} = "ftp://u:hunter2@h\\n"\n'))
        assert len(found) == 1
        assert name in found[0]
        assert "hunter2" not in found[0]

    @pytest.mark.parametrize("value", ['["hunter2"]', '{ password = "hunter2" }'])
    def test_a_fault_of_a_secret_of_another_type_does_not_show_it(self, value: str, tmp_path: Path) -> None:
        (found,) = faults(write(tmp_path, f"redis_url = {value}\n"))
        assert "redis_url: expected redis://" in found
        assert "hunter2" not in found

    def test_the_value_of_an_unknown_name_is_not_shown(self) -> None:
        assert "hunter2" not in faults(librato_tokn="hunter2")[0]


@dataclass
class FakeContext:
    """Stands for the object that agent.cli.context puts on click's context."""

    path: Path | None = None
    environ: dict[str, str] = field(default_factory=dict)

    def load(self) -> Loaded:
        return load(self.path, self.environ, {})


def run(context: FakeContext, *arguments: str) -> Any:
    entry = click.Group("build-agent", commands={"config": config_group})
    return CliRunner().invoke(entry, ["config", *arguments], obj=context)


class TestCommands:
    def test_check_is_content_with_defaults(self) -> None:
        result = run(FakeContext(), "check")
        assert (result.exit_code, result.stderr) == (0, "")
        assert "settings are good" in result.stdout

    def test_check_ends_with_the_fault(self, tmp_path: Path) -> None:
        result = run(FakeContext(write(tmp_path, "slot = 1\n")), "check")
        assert isinstance(result.exception, SettingsError)
        assert result.exception.exit_code == 78

    def test_check_warns_of_a_secret_that_everyone_may_read(self, tmp_path: Path) -> None:
        path = write(tmp_path, 'redis_url = "redis://:hunter2@h"\n', 0o644)
        result = run(FakeContext(path), "check")
        assert result.exit_code == 0
        assert f"warning: {path}: everyone may read it and it holds secrets (redis_url)" in result.stderr
        assert "hunter2" not in result.output

    @pytest.mark.parametrize(
        ("text", "mode"), [('redis_url = "redis://:p@h"', 0o640), ('redis_url = "redis://h"', 0o644)]
    )
    def test_check_does_not_warn_without_reason(self, text: str, mode: int, tmp_path: Path) -> None:
        path = write(tmp_path, text, mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert run(FakeContext(path), "check").stderr == ""

    def test_check_warns_of_a_secret_in_the_file_that_the_environment_overrides(self, tmp_path: Path) -> None:
        path = write(tmp_path, 'redis_url = "redis://:p@h"\n', 0o644)
        context = FakeContext(path, {"BUILD_AGENT_REDIS_URL": "redis://h"})
        assert "holds secrets (redis_url)" in run(context, "check").stderr

    def test_check_warns_of_a_file_that_everyone_may_write(self, tmp_path: Path) -> None:
        assert "everyone may write it" in run(FakeContext(write(tmp_path, "", 0o602)), "check").stderr

    def test_check_warns_of_a_setting_that_became_a_tag(self, tmp_path: Path) -> None:
        path = write(tmp_path, '[tags]\narch = "arm64"\nlog_level = "debug"\n')
        assert "tags: log_level is the name of a setting" in run(FakeContext(path), "check").stderr

    def test_show_prints_what_reads_back_as_the_same_settings(self, tmp_path: Path) -> None:
        text = 'slots = 3\nlease_s = 12.5\nheartbeat_s = 1\nkill_grace_s = 1\nqueues = ["a", "b"]\n'
        text += 'tags = { x = "quo\\"te\\\\" }\n'
        settings = FakeContext(write(tmp_path, text)).load().settings
        shown = run(FakeContext(tmp_path / "agent.toml"), "show", "--origin").stdout
        assert load(write(tmp_path, shown), {}, {}).settings == settings
        assert f"slots = 3  # {tmp_path}/agent.toml:1\n" in shown

    def test_show_masks_secrets(self) -> None:
        environ = {
            "BUILD_AGENT_REDIS_URL": "redis://u:hunter2@h/0",
            "BUILD_AGENT_DATABASE_URL": "postgresql://h/d?user=u&password=hunter2",
            "BUILD_AGENT_LIBRATO_USER": "ops",
            "BUILD_AGENT_LIBRATO_TOKEN": "hunter2",
        }
        for options in ([], ["--json"], ["--origin"], ["--origin", "--json"]):
            shown = run(FakeContext(environ=environ), "show", *options).output
            assert "hunter2" not in shown
            assert f"redis://u:{MASK}@h/0" in shown

    def test_show_as_json_gives_values_and_origins(self, tmp_path: Path) -> None:
        context = FakeContext(write(tmp_path, "chunk_bytes = '4KiB'\n"))
        shown = json.loads(run(context, "show", "--json", "--origin").stdout)
        assert shown["chunk_bytes"] == {"value": 4096, "origin": f"{context.path}:1"}
        assert shown["state_dir"] == {"value": "/var/lib/build-agent", "origin": "default"}
        assert set(shown) == set(TABLE)
        assert json.loads(run(context, "show", "--json").stdout)["chunk_bytes"] == 4096


class TestDocuments:
    def test_the_packaged_file_is_the_one_made_from_the_table(self) -> None:
        # else: build-agent config template > packaging/agent.toml
        assert (ROOT / "packaging/agent.toml").read_text() == toml() == run(FakeContext(), "template").stdout

    def test_the_packaged_file_as_it_is_sets_nothing(self) -> None:
        assert tomllib.loads(toml()) == {}

    def test_the_packaged_file_holds_the_defaults_when_its_comments_are_taken_away(
        self, tmp_path: Path
    ) -> None:
        text = re.sub(r"^#(?=\w)", "", toml(), flags=re.M)
        loaded = load(write(tmp_path, text), {}, {})
        assert loaded.settings == Settings()
        assert all(origin.startswith(f"{tmp_path}/agent.toml:") for origin in loaded.origins.values())

    def test_the_documented_table_is_the_one_made_from_the_settings(self) -> None:
        # else: put the output of build-agent config template --markdown between the marks
        page = (ROOT / "docs/configuration.md").read_text()
        inner = page.split("<!-- begin: build-agent config template --markdown -->\n")[1].split(
            "<!-- end -->"
        )[0]
        assert inner.strip() == table().strip() == run(FakeContext(), "template", "--markdown").stdout.strip()

    def test_every_setting_is_documented_once(self) -> None:
        names = re.findall(r"^\| `(\w+)` \|", table(), flags=re.M)
        assert names == list(TABLE)

    def test_the_example_of_the_documentation_holds(self, tmp_path: Path) -> None:
        page = (ROOT / "docs/configuration.md").read_text()
        example_text = re.search(r"```toml\n(.*?)```", page, flags=re.S)
        assert example_text is not None
        assert load(write(tmp_path, example_text[1]), {}, {}).settings.step_timeout_s == 7200

    def test_every_setting_is_described_and_every_number_bounded(self) -> None:
        for name, each in TABLE.items():
            assert each.metadata["help"].endswith("."), name
            assert "|" not in each.metadata["help"], name
            if each.type in ("int", "float"):
                assert each.metadata["low"] <= getattr(Settings(), name) <= each.metadata["high"], name
            if name.endswith(("_s", "_ms", "_bytes")) and name != "tags":
                assert each.metadata["unit"] == name.rpartition("_")[2], name
