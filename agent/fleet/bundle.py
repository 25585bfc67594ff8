"""What a bake brings to the server: the set-up scripts as one archive, the Debian package, and what is known of both.

The archive of the same scripts is the same to the byte, so its checksum names them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shlex
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import NotFound

PACKAGED = Path("/usr/share/build-agent/setup_scripts")
_CHECKOUT = Path(__file__).resolve().parents[2]
_LEFT_OUT = frozenset({"__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache"})
_PIN = re.compile(r"^\s*(?:readonly |export |declare -r )*([A-Za-z_][A-Za-z0-9_]*)=(.*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """The inputs of a bake. `scripts` is a tar archive, `deb` the package's file; `None` for a bake without one."""

    scripts: bytes
    scripts_sha256: str
    pins: Mapping[str, str]
    commit: str | None
    deb: bytes | None = None
    deb_name: str | None = None
    deb_sha256: str | None = None

    @property
    def digest(self) -> str:
        """A short name of these inputs and no others."""
        return hashlib.sha256(f"{self.scripts_sha256} {self.deb_sha256}".encode()).hexdigest()[:12]

    def facts(self) -> dict[str, Any]:
        """Return what names these inputs, for the record."""
        return {
            "commit": self.commit,
            "scripts_sha256": self.scripts_sha256,
            "deb": self.deb_name,
            "deb_sha256": self.deb_sha256,
        }


def find_scripts(given: Path | None) -> Path:
    """Return the folder of the set-up scripts: the given one, the checkout's, or the package's. Raises: NotFound."""
    for folder in (given,) if given is not None else (_CHECKOUT / "setup_scripts", PACKAGED):
        if (folder / "setup.sh").is_file():
            return folder
    where = given or f"{_CHECKOUT / 'setup_scripts'} or {PACKAGED}"
    raise NotFound(f"no setup.sh in {where}: name the folder of the set-up scripts with --scripts")


def find_deb(given: Path | None) -> Path:
    """Return the Debian package: the given one, or the newest in the checkout's dist/. Raises: NotFound."""
    if given is not None:
        if not given.is_file():
            raise NotFound(f"no Debian package {given}")
        return given
    found = sorted((_CHECKOUT / "dist").glob("build-agent_*.deb"), key=lambda it: it.stat().st_mtime)
    if not found:
        raise NotFound("no Debian package of build-agent: make one with make deb, or name one with --deb")
    return found[-1]


def read(scripts: Path, deb: Path | None) -> Bundle:
    """Read the inputs of a bake. Raises: NotFound."""
    archive = _archive(scripts)
    package = None if deb is None else deb.read_bytes()
    pins = scripts / "pins.sh"
    return Bundle(
        scripts=archive,
        scripts_sha256=hashlib.sha256(archive).hexdigest(),
        pins=read_pins(pins.read_text()) if pins.is_file() else {},
        commit=_commit(scripts),
        deb=package,
        deb_name=None if deb is None else deb.name,
        deb_sha256=None if package is None else hashlib.sha256(package).hexdigest(),
    )


def read_pins(text: str) -> dict[str, str]:
    """Return the versions that a shell file assigns, as the shell would read plain words and quotes."""
    pins = {}
    for name, value in _PIN.findall(text):
        try:
            words = shlex.split(value, comments=True)
        except ValueError:
            continue
        pins[name] = words[0] if words else ""
    return pins


def _archive(folder: Path) -> bytes:
    buffer = io.BytesIO()
    # No instants and no names of users: they would make the same scripts another archive.
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if _LEFT_OUT.intersection(name.parts) or not (path.is_file() or path.is_dir()):
                continue
            entry = tarfile.TarInfo(f"setup_scripts/{name}")
            if path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
                continue
            data = path.read_bytes()
            entry.size, entry.mode = len(data), 0o755 if os.access(path, os.X_OK) else 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _commit(folder: Path) -> str | None:
    """Return the commit that the scripts lie in, with `+` when files differ from it; `None` outside a checkout."""

    def git(*words: str) -> str:
        safe = ("-c", f"safe.directory={folder.resolve().parent}")
        done = subprocess.run(
            ["git", *safe, "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
