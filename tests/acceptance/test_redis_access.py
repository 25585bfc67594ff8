"""A Redis as operators should have it: TLS alone, certificates that are checked, and the ACL user of docs/security.md."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.errors import QueueUnavailable
from agent.model.outcome import Outcome
from agent.queue.carrier import Carrier
from agent.queue.connection import connect
from agent.queue.private import spawn_bound
from tests.acceptance.farm import Farm
from tests.services import free_port, wait_until

SECURITY = Path(__file__).parents[2] / "docs/security.md"


@dataclass(frozen=True)
class GuardedRedis:
    """Where it is; `admin` may do everything, `url` is what an agent is given."""

    url: str
    admin: Any


def documented_rights() -> list[str]:
    """Return the rules of the user that docs/security.md tells operators to make."""
    line = re.search(r"^ACL SETUSER build-agent on >secret (.+)$", SECURITY.read_text(), re.MULTILINE)
    assert line, "docs/security.md names no ACL user"
    return line[1].split()


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that is its own authority; return it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "redis.crt", folder / "redis.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[GuardedRedis]:
    """A Redis that speaks TLS alone and knows the documented user."""
    certificate, key = write_certificate(tmp_path)
    port = free_port()
    argv = ["redis-server", "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", ""]
    argv += ["--dir", str(tmp_path), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    argv += ["--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no"]
    with (tmp_path / "redis.log").open("wb") as log:
        server = spawn_bound(argv, env={"PATH": os.environ["PATH"]}, log=log)
    admin: Any = redis.Redis(host="127.0.0.1", port=port, ssl=True, ssl_ca_certs=str(certificate))
    try:
        wait_until(lambda: _answers(admin), 20, (tmp_path / "redis.log").read_text)
        admin.execute_command("ACL", "SETUSER", "build-agent", "on", ">secret", *documented_rights())
        url = f"rediss://build-agent:secret@127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
        yield GuardedRedis(url, admin)
    finally:
        admin.close()
        server.kill()
        server.wait(10)


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_build_runs_through_tls_as_the_documented_user(
    guarded: GuardedRedis, tmp_path: Path, sqlite_url: str
) -> None:
    farm = Farm(tmp_path / "farm", redis_url=guarded.url, database_url=sqlite_url)
    try:
        agent = farm.agent("guarded")
        passed, cancelled = farm.submit("echo through the tunnel"), farm.submit("sleep 600")
        assert farm.wait_ended(passed).outcome is Outcome.PASSED
        assert "through the tunnel" in farm.text(passed)
        farm.wait_running(cancelled)
        agent.stop()
        assert farm.attempts(cancelled) == [(1, Outcome.PREEMPTED)]
        # What the user was refused, and where: nothing the agent does may need a right that is not documented.
        assert guarded.admin.execute_command("ACL", "LOG") == []
    finally:
        farm.close()


def test_certificate_of_nobody_known_is_refused(guarded: GuardedRedis) -> None:
    carrier = Carrier(connect(guarded.url.partition("?")[0]))
    with pytest.raises(QueueUnavailable, match="certificate verify failed"):
        carrier.ping()


def test_documented_user_reaches_no_key_of_others_and_administers_nothing(guarded: GuardedRedis) -> None:
    client: Any = connect(guarded.url)
    for words in (("GET", "others"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("SHUTDOWN",)):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*words)
    client.close()
