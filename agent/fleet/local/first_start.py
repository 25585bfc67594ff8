"""What a machine's disk is given before it boots: who it is, where it asks for names, who may log in.

The first start alone writes the key of whoever may log in and the machine's own host key; an image has neither.
Everything is written again after a crash in the middle, with the same result.
"""

from __future__ import annotations

from pathlib import Path

from agent.fleet.local import state
from agent.fleet.local.rootfs import RootFs
from agent.fleet.provider import ProviderError

_MARK = "prepared"
_HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
_STUBS = (b"nameserver 127.", b"nameserver ::1")


def prepare(record: state.MachineRecord, folder: Path) -> None:
    """Fit the mounted disk at `root` out for this machine.

    Raises: ProviderError for a disk that has no such user, or whose folders are links.
    """
    root = RootFs(folder / "root")
    root.write("/etc/resolv.conf", resolver())
    if (folder / _MARK).exists():
        return
    root.write("/etc/hostname", f"{record.host_name}\n".encode())
    root.write("/etc/hosts", _hosts(root.read("/etc/hosts") or b"127.0.0.1 localhost\n", record.host_name))
    if record.ssh_key:
        _let_in(root, record)
        _give_host_key(root)
    (folder / _MARK).touch()


def resolver(etc: Path = Path("/etc"), stub_source: Path = Path("/run/systemd/resolve/resolv.conf")) -> bytes:
    """Return the host's name servers, as a machine can use them: a stub on loopback is the host's alone."""
    try:
        own = (etc / "resolv.conf").read_bytes()
        return (
            stub_source.read_bytes() if any(stub in own for stub in _STUBS) and stub_source.exists() else own
        )
    except OSError:
        return b""


def _hosts(old: bytes, name: str) -> bytes:
    """Return /etc/hosts with the machine's own name in it, in Debian's way (127.0.1.1)."""
    kept = [line for line in old.splitlines() if not line.startswith(b"127.0.1.1")]
    return b"\n".join([*kept, f"127.0.1.1 {name}".encode()]) + b"\n"


def _let_in(root: RootFs, record: state.MachineRecord) -> None:
    uid, gid, home = _account(root, record.ssh_user)
    path = f"{home.rstrip('/')}/.ssh/authorized_keys"
    line = record.ssh_key.encode() + b"\n"
    before = root.read(path) or b""
    if line not in before.splitlines(keepends=True):
        before += b"\n" if before and not before.endswith(b"\n") else b""
        root.write(path, before + line, mode=0o600, owner=(uid, gid), folder_mode=0o700)


def _account(root: RootFs, user: str) -> tuple[int, int, str]:
    for line in (root.read("/etc/passwd") or b"").decode("utf-8", "replace").splitlines():
        fields = line.split(":")
        if len(fields) == 7 and fields[0] == user and fields[2].isdecimal() and fields[3].isdecimal():
            return int(fields[2]), int(fields[3]), fields[5] or "/"
    raise ProviderError(
        f"the image has no user {user!r}, so nobody could log in; name one that it has, such as root"
    )


def _give_host_key(root: RootFs) -> None:
    if any(name.startswith("ssh_host_") for name in root.names("/etc/ssh")):
        return
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    form = serialization.PublicFormat.OpenSSH
    root.write(
        f"{_HOST_KEY}.pub", key.public_key().public_bytes(serialization.Encoding.OpenSSH, form) + b"\n"
    )
    root.write(_HOST_KEY, private, mode=0o600)
