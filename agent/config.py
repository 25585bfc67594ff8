"""Every setting, once: the fields of `Settings`, and what they have to be to each other.

Owns names, defaults, bounds and rules. Knows nothing of who uses a setting, nor of where its value came from
(`config_load`).
"""

# ruff: noqa: RUF009 - the calls in the table declare fields, as dataclasses.field does

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from agent import setting
from agent.setting import DAY_S, GIB, KIB, MIB, TIB, byte_count, declare, directory, number, seconds, texts

# What whoever shows settings needs beside `masked` and `expected`.
MASK = setting.MASK
size = setting.size
_PASSED_ON = (
    *("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Settings:
    """All settings, for one life of the agent. `config_load.load` makes a checked one; the constructor checks nothing.

    Directories left out are made from `state_dir`; `dataclasses.replace` keeps those that are there.
    """

    server_name: str = declare("", "Name of the server; empty: taken from the machine.", setting.NAME)
    slots: int = number(2, 1, 64, "How many builds run at once.")
    queues: tuple[str, ...] = texts(("builds",), 1, "Queues to serve, the most urgent first.", setting.NAME)
    tags: dict[str, str] = declare({}, 'What is special about this server, such as { arch = "arm64" }.')
    cloud: str = declare(
        "auto", "Who knows the machine; auto: EC2 if it answers.", choices=("auto", "ec2", "none")
    )
    metadata_url: str = declare("http://169.254.169.254", "EC2's metadata service.", setting.HTTP_URL)
    notice_s: float = seconds(
        5, 0.1, 60, "Between two looks for notices of the cloud that the server is to go."
    )
    notice_margin_s: float = seconds(
        20, 0, 110, "How long before the server's announced end what still runs is given back."
    )
    redis_url: str = declare(
        "redis://127.0.0.1:6379/0", "Redis, which carries queues.", setting.REDIS_URL, secret=True
    )
    database_url: str = declare(
        "sqlite:////var/lib/build-agent/build-agent.db", "The database.", setting.DATABASE_URL, secret=True
    )
    state_dir: Path = declare(Path("/var/lib/build-agent"), "What the agent keeps on the machine.")
    workspace_dir: Path = directory("workspaces", "Where builds run; the agent empties it.")
    spool_dir: Path = directory("spool", "Output on its way to the database; has to survive a restart.")
    mirror_dir: Path = directory("mirrors", "Mirrors of git repositories.")
    cache_dir: Path = directory("caches", "Caches of builds.")
    artifact_dir: Path = directory("artifacts", "Artifacts of builds.")
    secrets_dir: Path = declare(Path("/etc/build-agent/secrets"), "Secrets of builds.")
    image_file: Path = declare(
        Path("/etc/build-agent/image.json"), "What the image says of itself; may be missing."
    )
    setup_dir: Path = declare(
        Path("/var/lib/build-agent-setup"),
        "Where set-up scripts keep their state; an unfinished one bars the agent.",
    )
    boot_canary: str = declare(
        "auto",
        "A build before the server joins; auto: where the image file is there.",
        choices=("auto", "on", "off"),
    )
    when_unfit: str = declare(
        "auto",
        "What a server does that can't join; auto: powers off where the image file is there.",
        choices=("auto", "poweroff", "stay"),
    )
    unfit_delay_s: float = seconds(300, 60, DAY_S, "From the word that a server powers off to the end.")
    lease_s: float = seconds(
        30, 1, 3600, "Without a heartbeat for so long an attempt is lost and runs elsewhere."
    )
    heartbeat_s: float = seconds(5, 0.1, 1200, "Between two heartbeats; at most a third of lease_s.")
    max_attempts: int = number(3, 1, 100, "Tries at a build that ends for reasons of the infrastructure.")
    stop_limit_s: float = seconds(3600, 0, 7 * DAY_S, "How long the first SIGTERM lets running builds go on.")
    sweep_s: float = seconds(2.5, 0.1, 600, "Between two looks for lost attempts and forgotten builds.")
    shell: tuple[str, ...] = texts(
        ("/bin/bash", "-euo", "pipefail", "-c"), 1, "Program and arguments that get a step's command line."
    )
    step_timeout_s: float = seconds(3600, 0.1, 30 * DAY_S, "Longest step, if the definition names no limit.")
    build_timeout_s: float = seconds(
        7200, 0.1, 30 * DAY_S, "Longest build, if the definition names no limit."
    )
    no_output_timeout_s: float = seconds(
        600, 0.1, 30 * DAY_S, "Longest silence of a step, if the definition names no limit."
    )
    kill_grace_s: float = seconds(10, 0, 1800, "From SIGTERM to SIGKILL; at most half of lease_s.")
    leaked_pipe_wait_s: float = seconds(
        2, 0, 60, "How long to read on when a leftover holds a step's output open."
    )
    environment_allow: tuple[str, ...] = texts(
        _PASSED_ON, 0, "Variables of the agent's environment that steps see.", setting.VARIABLE
    )
    source_roots: tuple[str, ...] = texts(
        (), 0, "Directories on the server that builds may take as their source; empty: none."
    )
    mirror_limit_bytes: int = byte_count(
        20 * GIB, 0, 1024 * TIB, "Disk that git mirrors may take; the least recently used go first."
    )
    git_timeout_s: float = seconds(600, 1, DAY_S, "Longest git command.")
    keep_workspaces: bool = declare(False, "Leave workspaces behind, for a look at them; fills the disk.")
    chunk_bytes: int = byte_count(64 * KIB, 4 * KIB, 64 * KIB, "Most output in one row of the database.")
    flush_gap_ms: int = number(10, 0, 1000, "Output after a pause waits so long for more to come.", "ms")
    spool_limit_bytes: int = byte_count(
        2 * GIB, MIB, 16 * TIB, "Most output on disk; steps wait at the limit."
    )
    output_limit_bytes: int = byte_count(GIB, 0, 16 * TIB, "Most output of one step; 0: no limit.")
    redact_min_length: int = number(6, 1, 64, "Secrets of fewer characters aren't masked in output.")
    cache_limit_bytes: int = byte_count(
        20 * GIB, 0, 1024 * TIB, "Disk that all caches together may take; the least recently used go first."
    )
    min_free_bytes: int = byte_count(GIB, 0, 1024 * TIB, "With less free disk the server takes no build.")
    min_free_inodes: int = number(10_000, 0, 10**12, "With fewer free inodes the server takes no build.")
    min_free_memory_bytes: int = byte_count(
        128 * MIB, 0, 1024 * TIB, "With less free memory the server takes no build."
    )
    max_clock_skew_s: float = seconds(5, 0.1, DAY_S, "Farthest from the clocks of database and Redis.")
    health_address: str = declare(
        "127.0.0.1:9180", "Where health and metrics are served; empty: nowhere.", setting.ADDRESS
    )
    gauges_interval_s: float = seconds(10, 0.1, 3600, "Between two readings of the gauges.")
    metrics_source: str = declare(
        "", "Source that metrics are sent under; empty: the server's name.", setting.NAME
    )
    librato_url: str = declare(
        "https://metrics-api.librato.com/v1/metrics", "Librato's API.", setting.HTTP_URL
    )
    librato_user: str = declare("", "Account at Librato; empty: nothing is sent there.")
    librato_token: str = declare("", "Token of the account at Librato.", secret=True)
    statsd_address: str = declare("", "StatsD server (UDP); empty: nothing is sent there.", setting.ADDRESS)
    fleet_provider: str = declare("local", "Who has the machines.", choices=("local", "ec2"))
    fleet_owner: str = declare(
        "build-agent", "Tag of everything that is made at the provider; others' is left alone.", setting.NAME
    )
    fleet_server_config: str = declare(
        "", "File with the settings that servers are started with; needed to bake images.", setting.FILE
    )
    fleet_cycle_s: float = seconds(2, 0.1, 300, "How often the controller looks at the fleet.")
    fleet_list_s: float = seconds(10, 0.5, 3600, "How often providers are asked which machines they have.")
    fleet_images_kept: int = number(
        0,
        0,
        1000,
        "Good images of a profile that are kept; older ones that nothing uses are deleted; 0: none is.",
    )
    deploy_repository: str = declare("", "Git repository that the fleet's own images are made of.")
    deploy_branches: tuple[str, ...] = texts(("main",), 1, "Branches whose pushes are deployed.")
    deploy_pool: str = declare("default", "Pool that deployments roll out to.", setting.NAME)
    deploy_profile: str = declare("full", "Profile of the images that are made.", choices=("minimal", "full"))
    deploy_base: str = declare("", "What those images start from, as images bake --from; empty: its default.")
    deploy_package_command: str = declare(
        "packaging/deb/build.sh --output dist",
        "Command in a checkout that puts the Debian package into dist/.",
    )
    deploy_webhook_address: str = declare(
        "", "Where pushes are told, in GitHub's form; empty: nowhere.", setting.ADDRESS
    )
    deploy_webhook_secret: str = declare("", "What pushes are signed with.", secret=True)
    console_address: str = declare("127.0.0.1:8420", "Where the console is served.", setting.ADDRESS)
    console_url: str = declare(
        "",
        "How people reach the console, as https://builds.example.com; empty: by its address, without TLS.",
        setting.URL_OR_NOT,
    )
    console_proxies: tuple[str, ...] = texts(
        (), 0, "Addresses of proxies that are believed who a request comes from; empty: none."
    )
    console_session_s: float = seconds(
        14 * DAY_S, 60, 366 * DAY_S, "Longest time that somebody stays signed in."
    )
    console_idle_s: float = seconds(DAY_S, 60, 366 * DAY_S, "A session that nobody used for so long is over.")
    local_dir: Path = declare(
        Path("/var/lib/build-agent-machines"), "Where the local provider keeps machines and images."
    )
    local_subnet: str = declare(
        "10.213.0.0/24",
        "Private network of local machines; its first address is this host's.",
        setting.SUBNET,
    )
    ec2_region: str = declare("", "Region of EC2; empty: as boto3 finds it, by AWS_REGION for one.")
    ec2_endpoint_url: str = declare(
        "", "Endpoint of EC2's API, as of a VPC; empty: AWS's own.", setting.URL_OR_NOT
    )
    ec2_subnet: str = declare("", "Subnet of machines; empty: the default one of the region.")
    ec2_security_groups: tuple[str, ...] = texts(
        (), 0, "Security groups of machines; none: one for each that is logged in to.", setting.NAME
    )
    ec2_ssh_cidr: str = declare(
        "", "Addresses that may log in while an image is made; for groups that are made."
    )
    ec2_ssh_address: str = declare(
        "private", "Which address of a machine is logged in to.", choices=("private", "public")
    )
    ec2_instance_type: str = declare("m6i.large", "Type of instances.", setting.NAME)
    ec2_instance_profile: str = declare("", "Instance profile of machines; empty: none.")
    ec2_volume_gib: int = number(
        40, 8, 16384, "Size of a machine's volume in GiB; an image's own if that is larger."
    )
    ec2_kms_key: str = declare("", "Key that volumes are encrypted with; empty: the account's default.")
    log_format: str = declare(
        "auto", "auto: journal if stderr leads there, else text.", choices=("auto", "text", "json", "journal")
    )
    log_level: str = declare(
        "info", "Least severe records that are written.", choices=("debug", "info", "warning", "error")
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.metadata["under"] and getattr(self, each.name) == setting.DERIVED:
                object.__setattr__(self, each.name, self.state_dir / each.metadata["under"])

    def __repr__(self) -> str:
        """Show every setting, secrets masked: logs, tracebacks and debuggers print it."""
        return f"Settings({', '.join(f'{n}={masked(n, getattr(self, n))!r}' for n in TABLE)})"


TABLE: Mapping[str, Field[Any]] = {each.name: each for each in fields(Settings)}


def masked(name: str, value: object) -> object:
    """Return a setting's value as people may see it: passwords in URLs masked, other secrets as a whole."""
    if not isinstance(value, str):
        return value
    if "://" in value:
        return setting.mask_url(value)
    return MASK if value and TABLE[name].metadata["secret"] else value


def expected(name: str) -> str:
    """Return in words what a setting takes."""
    return setting.expected(TABLE[name])


class Rule(NamedTuple):
    """What settings have to be to each other; broken rules are named with the settings they are about."""

    names: tuple[str, ...]
    holds: Callable[[Settings], bool]
    text: str


def _apart(one: str, other: str) -> Rule:
    def holds(settings: Settings) -> bool:
        first, second = getattr(settings, one), getattr(settings, other)
        # what lies in state_dir is as it should be; what holds it, or another, would empty it
        return not (first.is_relative_to(second) and other != "state_dir") and not second.is_relative_to(
            first
        )

    return Rule(
        (one, other),
        holds,
        f"{other} must not lie in {one}" + ", nor the other way round" * (other != "state_dir"),
    )


_DIRECTORIES = ("workspace_dir", "spool_dir", "mirror_dir", "cache_dir", "artifact_dir")
RULES = (
    Rule(
        ("heartbeat_s", "lease_s"),
        lambda it: it.heartbeat_s * 3 <= it.lease_s + 1e-9,
        "heartbeat_s must be at most a third of lease_s: two heartbeats may fail before a lease ends",
    ),
    Rule(
        ("kill_grace_s", "lease_s"),
        lambda it: it.kill_grace_s * 2 <= it.lease_s,
        "kill_grace_s must be at most half of lease_s: a server that is cut off ends steps within its lease",
    ),
    Rule(
        ("spool_limit_bytes", "slots", "chunk_bytes"),
        lambda it: it.spool_limit_bytes >= 4 * it.slots * it.chunk_bytes,
        "spool_limit_bytes must hold four chunks a slot, else slots wait for each other",
    ),
    Rule(
        ("librato_user", "librato_token"),
        lambda it: bool(it.librato_user) == bool(it.librato_token),
        "Librato needs both or neither",
    ),
    Rule(
        ("deploy_webhook_address", "deploy_webhook_secret", "deploy_repository"),
        lambda it: not it.deploy_webhook_address or bool(it.deploy_webhook_secret and it.deploy_repository),
        "the webhook needs deploy_webhook_secret and deploy_repository: whoever reaches it could deploy otherwise",
    ),
    Rule(("queues",), lambda it: len(set(it.queues)) == len(it.queues), "a queue is named twice"),
    Rule(
        ("shell",),
        lambda it: re.fullmatch(r"/\S+", it.shell[0]) is not None,
        'the first item must be the absolute path of a program, such as ["/bin/sh", "-c"]',
    ),
    *(_apart(one, other) for one, other in combinations((*_DIRECTORIES, "secrets_dir"), 2)),
    *(_apart(one, "state_dir") for one in _DIRECTORIES),
)
