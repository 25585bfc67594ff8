"""The key pair of a bake: made for it alone, kept in a file of whoever bakes so that a resumed bake can log in.

The private key is in no database, log or argument; it is deleted when the bake is over.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


class KeyFile:
    """The key pair of one bake, in `folder`."""

    def __init__(self, folder: Path, bake_id: str) -> None:
        self._folder = folder / bake_id
        self.path = self._folder / "key"

    @property
    def is_there(self) -> bool:
        """Whether the private key is on this machine."""
        return self.path.is_file()

    def make(self) -> None:
        """Make the key pair unless it is there."""
        if self.is_there:
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        private = Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
        )
        partial = self.path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private)
        partial.rename(self.path)

    def private(self) -> str:
        """Return the private key, in OpenSSH's form."""
        return self.path.read_text()

    def public(self, comment: str) -> str:
        """Return the public key, one line in OpenSSH's form."""
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key

        key = load_ssh_private_key(self.path.read_bytes(), password=None)
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return f"{public.decode()} {comment}"

    def delete(self) -> None:
        """Delete the key pair."""
        shutil.rmtree(self._folder, ignore_errors=True)


def default_folder() -> Path:
    """Return where whoever runs the command keeps the keys of bakes: XDG's state directory, or root's own."""
    if os.geteuid() == 0:
        return Path("/var/lib/build-agent-bakes")
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "build-agent" / "bakes"
