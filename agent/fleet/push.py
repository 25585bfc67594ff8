"""Brings the set-up scripts and the package to a machine."""

from __future__ import annotations

from agent.fleet.bundle import Bundle
from agent.fleet.remote import Remote


def bring(remote: Remote, bundle: Bundle, *, work: str, setup: str, with_deb: bool) -> None:
    """Put the scripts, and the package, below `setup`; `work` is a folder for what is under way.

    Raises: RemoteError, as on a full disk.
    """
    packed = f"{work}/setup_scripts.tar.gz"
    remote.put(bundle.scripts, packed)
    # Whole or not at all: a folder that was half unpacked when somebody was killed is made anew.
    remote.run(
        f"set -eu; mkdir -p {setup}; cd {setup}; rm -rf setup_scripts.new; mkdir setup_scripts.new; "
        "tar --extract --gzip --no-same-owner --strip-components=1 --directory setup_scripts.new "
        f"--file {packed}; rm -rf setup_scripts; mv setup_scripts.new setup_scripts",
        timeout_s=120,
    )
    if with_deb and bundle.deb is not None:
        remote.put(bundle.deb, deb_path(bundle, setup), mode=0o644)


def deb_path(bundle: Bundle, setup: str) -> str:
    """Return where the package lies on the machine."""
    return f"{setup}/dist/{bundle.deb_name}"
