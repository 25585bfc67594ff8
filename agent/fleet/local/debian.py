"""The base that images are baked from: a Debian as a plain cloud server has it, made by mmdebstrap.

It takes the host's own way to Debian's archive (sources, and certificate authorities that the host's owner added), so
that a mirror or a proxy of the house is used where there is one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from agent import clock
from agent.fleet.local import host_command, layers, state
from agent.fleet.local.rootfs import RootFs
from agent.fleet.provider import ProviderError

BASES = {"debian-12": "bookworm"}
DEFAULT_BASE = "debian-12"
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "udev", "kmod"),
    *("openssh-server", "sudo", "ca-certificates", "python3", "python3-apt"),
    *("iproute2", "iputils-ping", "netbase", "nftables", "procps", "less", "tzdata"),
)
_LIMIT_S = 1200.0
_ROOM_BYTES = 2 << 30
_OWN_AUTHORITIES = Path("/usr/local/share/ca-certificates")
_RECIPE_VERSION = 1
# What must differ from machine to machine is no part of a base.
_HOOKS = (
    'rm -f "$1"/etc/ssh/ssh_host_*',
    ': > "$1/etc/machine-id"; rm -f "$1/var/lib/dbus/machine-id"',
    'echo localhost > "$1/etc/hostname"; rm -f "$1/etc/resolv.conf"',
    'printf "127.0.0.1 localhost\\n::1 localhost ip6-localhost ip6-loopback\\n" > "$1/etc/hosts"',
)


def recipe(base: str, packages: Sequence[str] = PACKAGES) -> str:
    """Return a checksum over what a base is made from."""
    parts = [_RECIPE_VERSION, BASES[base], sorted(packages), _HOOKS]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def make(kept: state.State, base: str, *, packages: Sequence[str] = PACKAGES) -> state.ImageRecord:
    """Make a base unless it is there; another command that makes it is waited for.

    Raises: ProviderError, ProviderUnavailable.
    """
    if base not in BASES:
        raise ProviderError(f"there is no base {base!r}; there are: {', '.join(BASES)}")
    host_command.need("mmdebstrap")
    kept.create()
    with state.locked(kept.images / f".lock-{base}", limit_s=_LIMIT_S):
        there = kept.image(base)
        if there is not None:
            return there
        for folder, _ in kept.abandoned():
            if folder.name == f"{state.MAKING}{base}":
                state.remove_tree(folder)
        layers.check_space(kept.images, _ROOM_BYTES)
        record = state.ImageRecord(
            id=base,
            name=base,
            token="",
            stack=(base,),
            created_at=clock.utc_now().isoformat(),
            recipe=recipe(base, packages),
        )
        with kept.making("images", record) as (folder, lock):
            _bootstrap(folder / "layer", BASES[base], packages, lock)
            kept.finish("images", folder, size_bytes=layers.size_of(folder / "layer"))
    made = kept.image(base)
    if made is None:
        raise ProviderError(f"base {base} was removed while it was made")
    return made


def sources(suite: str, etc: Path = Path("/etc")) -> list[str]:
    """Return the host's lists of sources if it has that suite, else nothing: mmdebstrap then takes deb.debian.org."""
    try:
        is_same = f"VERSION_CODENAME={suite}" in (etc / "os-release").read_text().splitlines()
    except OSError:
        return []
    if not is_same:
        return []
    lists = (etc / "apt/sources.list", etc / "apt/sources.list.d/debian.sources")
    return [str(path) for path in lists if path.exists() and suite in path.read_text(errors="replace")]


def _bootstrap(layer: Path, suite: str, packages: Sequence[str], lock: int) -> None:
    host_command.run(
        [
            *("mmdebstrap", "--mode=root", "--variant=minbase", "--quiet", f"--include={','.join(packages)}"),
            # Empty of what apt only keeps for itself; the lists of packages stay out as well.
            *(f"--customize-hook={hook}" for hook in _HOOKS),
            *(suite, str(layer), *sources(suite)),
        ],
        what=f"make a root filesystem of Debian {suite}",
        limit_s=_LIMIT_S,
        keep_fds=(lock,),
        environ=host_command.proxies(),
    )
    authorities = sorted(_OWN_AUTHORITIES.glob("*.crt"))
    for path in authorities:
        RootFs(layer).write(f"{_OWN_AUTHORITIES}/{path.name}", path.read_bytes())
    if authorities:
        what = "trust the house's authorities"
        host_command.run(["chroot", str(layer), "update-ca-certificates"], what=what, limit_s=60)
