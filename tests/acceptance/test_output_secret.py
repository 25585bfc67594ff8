"""No secret of a build reaches any row, file or log, in whatever form and pieces a step prints it (F23)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from urllib.parse import quote, urlsplit, urlunsplit

import pytest
from sqlalchemy import select

from agent.model.outcome import Outcome
from agent.queue.private import PrivateRedis
from agent.store import steps, tables
from tests.acceptance.farm import AgentProcess, Farm
from tests.services import TcpProxy, wait_until

SECRETS = {
    "TOKEN": "ghp_k3J9xQ2mVt7LpR4sWz81",
    # Each begins in the other's end.
    "FRONT": "alpha-bravo-charlie-delta",
    "BACK": "charlie-delta-echo-foxtrot",
    "QUOTED": 'pa"ss\\w/o&r+d =\u00fc%27<x>',
    "KEY": "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\nq8w=\n"
    "-----END PRIVATE KEY-----",
}
# Too short, and too common: masking them would make the log unreadable.
PLAIN = {"SHORT": "abc", "STAGE": "production"}
LATE = "late-" + hashlib.sha256(b"made in the step").hexdigest()[:24]
EARLIER = "prefix-" + hashlib.sha256(b"its beginning is printed first").hexdigest()[:24]

# Each split of each secret, as two writes with a pause between them, so that they are two reads.
SPLITS = dedent("""
    import os, sys, time
    for name in sys.argv[1:]:
        secret = os.environ[name].encode()
        for at in range(1, len(secret)):
            os.write(1, b"<" + secret[:at])
            time.sleep(0.002)
            os.write(1, secret[at:] + b">\\n")
            time.sleep(0.002)
""")
FORMS = dedent("""
    import base64, json, os, sys
    from urllib.parse import quote
    for name in sys.argv[1:]:
        secret = os.environ[name]
        raw = secret.encode()
        print(json.dumps({"password": secret}), json.dumps(secret, ensure_ascii=False))
        print(quote(secret), quote(secret, safe=""), "https://ann:" + quote(secret, safe="") + "@host/")
        for before in ("", "x", "xy", "user:"):
            print(base64.b64encode(before.encode() + raw).decode())
            print(base64.urlsafe_b64encode(before.encode() + raw + b"tail").decode())
        print(raw.hex(), raw.hex().upper())
        print(secret * 3)
""")
DRIBBLE = dedent("""
    import os, sys, time
    for byte in os.environ[sys.argv[1]].encode():
        os.write(1, bytes([byte]))
        time.sleep(0.001)
    os.write(1, b"\\n")
""")
REGISTER = dedent("""
    import hashlib, os, time
    late = "late-" + hashlib.sha256(b"made in the step").hexdigest()[:24]
    with open(os.environ["BUILD_SECRETS_FILE"], "a") as file:
        file.write(late + "\\n")
    print("now", late, "and", late[::-1])
    earlier = "prefix-" + hashlib.sha256(b"its beginning is printed first").hexdigest()[:24]
    os.write(1, earlier[:9].encode())
    time.sleep(0.1)
    with open(os.environ["BUILD_SECRETS_FILE"], "a") as file:
        file.write(earlier + "\\n")
    os.write(1, earlier[9:].encode() + b"\\n")
""")


def forms_of(secret: str) -> set[bytes]:
    """Return the forms of a secret that may stand nowhere."""
    raw = secret.encode()
    forms = {raw, raw.hex().encode(), raw.hex().upper().encode()}
    forms |= {json.dumps(secret, ensure_ascii=ascii_only)[1:-1].encode() for ascii_only in (True, False)}
    forms |= {quote(secret).encode(), quote(secret, safe="").encode()}
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + raw)
        # What does not depend on what stands beside it.
        forms.add(encoded[-(-8 * before // 6) : 8 * (before + len(raw)) // 6])
    lines = [line.encode() for line in secret.split("\n") if len(line) >= 8 and "-----" not in line]
    forms |= set(lines)
    return forms | {form.replace(b"\n", b"\r\n") for form in forms}


FORBIDDEN = {form for secret in (*SECRETS.values(), LATE) for form in forms_of(secret)}


def provide(agent: AgentProcess, secrets: Mapping[str, str]) -> None:
    folder = agent.folder / "secrets"
    folder.mkdir(parents=True, mode=0o700)
    for name, value in secrets.items():
        path = folder / name
        path.write_text(value)
        path.chmod(0o600)


def every_row(farm: Farm) -> bytes:
    """Return all that the database holds, as bytes; the chunks of a step joined, and apart."""
    parts: list[bytes] = []
    with farm.store.read() as connection:
        for table in tables.metadata.sorted_tables:
            order = list(table.primary_key.columns)
            for row in connection.execute(select(table).order_by(*order)).mappings():
                for value in row.values():
                    if isinstance(value, bytes):
                        parts.append(value)
                    elif not isinstance(value, int | float | None):
                        parts += [
                            b"\x00",
                            str(value).encode(),
                            b"\x00",
                            json.dumps(value, default=str).encode(),
                        ]
    return b"".join(parts)


def every_file(folder: Path) -> bytes:
    """Return all that lies in a folder's files, the secrets' own left out."""
    found = [path for path in folder.rglob("*") if path.is_file() and "secrets" not in path.parts[-2:]]
    return b"".join(path.read_bytes() for path in found)


def assert_clean(data: bytes, what: str) -> None:
    leaked = sorted(form for form in FORBIDDEN if form in data)
    assert not leaked, f"{what} holds {leaked[:3]}"


def script(folder: Path, name: str, source: str) -> str:
    path = folder / name
    path.write_text(source)
    return f"python3 {path}"


@pytest.mark.slow
def test_f23_no_row_file_or_log_holds_a_secret(farm: Farm, tmp_path: Path) -> None:
    agent = farm.agent(start=False)
    provide(agent, SECRETS | PLAIN)
    agent.start()
    names = " ".join(SECRETS)
    splits = script(tmp_path, "splits.py", SPLITS)
    build_id = farm.submit(
        {
            "secrets": [*SECRETS, *PLAIN],
            "pipelines": {
                "splits": {"steps": [f"{splits} TOKEN FRONT", f"{splits} QUOTED"]},
                "key": {"steps": [f"{splits} KEY", {"run": f"{splits} KEY", "pty": True}]},
                "forms": {
                    "steps": [
                        f"{script(tmp_path, 'forms.py', FORMS)} {names}",
                        f"{script(tmp_path, 'dribble.py', DRIBBLE)} TOKEN",
                        'echo "$FRONT${BACK#charlie-delta}"; echo "$FRONT$BACK$TOKEN"',
                        {"run": 'printf "%s\\n" "$KEY"; cat <<< "$KEY"; env', "pty": True},
                        'env; set -x; : "$TOKEN" "$QUOTED"; echo "$KEY" | base64; echo "$TOKEN" | xxd -p || true',
                        'echo "stage $STAGE, $SHORT"',
                        script(tmp_path, "register.py", REGISTER),
                        {"run": 'echo "name $TOKEN"; exit 3', "name": "last"},
                    ]
                },
            },
        }
    )
    build = farm.wait_ended(build_id)
    assert build.outcome is Outcome.FAILED
    assert "exit code 3" in (build.detail or "")
    assert_clean(every_row(farm), "the database")
    assert_clean(agent.log_path.read_bytes(), "the agent's log")
    assert_clean(every_file(agent.state_dir), "the state directory")
    # What is no secret is left as it was, and so is what stands around a secret.
    text = farm.text(build_id)
    assert "stage production, abc\n" in text
    split_lines = farm.text(build_id, step=1).splitlines()
    assert len(split_lines) == sum(len(SECRETS[name]) - 1 for name in ("TOKEN", "FRONT"))
    assert len(set(split_lines)) == 1, "the mask depends on where the secret was split"
    assert LATE[::-1] in text
    # What was printed before the registration stays; whole it is nowhere.
    assert EARLIER not in text
    accounts = [item.account for item in steps.list_steps(farm.store, build_id, 1)]
    assert sum(account.masked_count for account in accounts) > 200


@pytest.mark.slow
def test_f23_spool_on_disk_holds_no_secret(
    tmp_path: Path, redis_server: PrivateRedis, postgres_url: str
) -> None:
    parts = urlsplit(postgres_url)
    with TcpProxy(("127.0.0.1", parts.port or 5432)) as proxy:
        farm = Farm(tmp_path / "farm", redis_url=redis_server.url, database_url=postgres_url)
        through = urlunsplit(parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}"))
        agent = farm.agent(start=False, database_url=through)
        provide(agent, SECRETS)
        try:
            agent.start()
            go = tmp_path / "go"
            step = f"echo up; until [ -e {go} ]; do sleep 0.05; done; "
            step += script(tmp_path, "forms.py", FORMS) + f" {' '.join(SECRETS)}; echo through"
            build_id = farm.submit({"secrets": list(SECRETS), "steps": [step]})
            farm.wait_running(build_id, printed="up")
            proxy.hang()
            go.touch()
            wait_until(
                lambda: b"through" in every_file(agent.state_dir / "spool"), 20, "the output in the spool"
            )
            assert_clean(every_file(agent.state_dir / "spool"), "the spool")
            proxy.restore()
            assert farm.wait_ended(build_id).outcome is Outcome.PASSED
            assert_clean(every_row(farm), "the database")
        finally:
            farm.close()


def test_secret_that_is_not_on_the_server_refuses_the_build_by_name(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    agent = farm.agent(start=False)
    provide(agent, {"TOKEN": "a-token-of-some-length"})
    agent.start()
    build = farm.wait_ended(farm.submit({"secrets": ["TOKEN", "NO_SUCH", "NOR_THIS"], "steps": ["echo no"]}))
    assert build.outcome is Outcome.REFUSED
    assert "'NO_SUCH', 'NOR_THIS'" in (build.detail or "")
    assert farm.attempts(build.id) == [(1, Outcome.REFUSED)]
    assert farm.text(build.id) == ""


def test_secret_that_every_user_of_the_server_may_read_is_refused(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    agent = farm.agent(start=False)
    provide(agent, {"TOKEN": "a-token-of-some-length"})
    (agent.folder / "secrets" / "TOKEN").chmod(0o644)
    agent.start()
    build = farm.wait_ended(farm.submit({"secrets": ["TOKEN"], "steps": ["echo no"]}))
    assert build.outcome is Outcome.REFUSED
    assert "chmod" in (build.detail or "")
