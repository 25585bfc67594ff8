"""The webhook: what is believed, what is ignored, what is refused; over HTTP, with a real listener."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from agent.fleet import webhook
from agent.fleet.webhook import Terms, Webhook, sign
from agent.model import policy as policies
from agent.store import deployments, pools
from agent.store.engine import Store

COMMIT = "a" * 40
TERMS = Terms(secret="s3cret", repository="https://git.test/ci/agent.git", branches=("main",), pool="linux")


def push(**changed: Any) -> bytes:
    """The body of a push."""
    document = {"ref": "refs/heads/main", "after": COMMIT, "repository": {"full_name": "ci/agent"}}
    return json.dumps({**document, **changed}).encode()


class Caller:
    """Sends deliveries."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(self, body: bytes, *, path: str = webhook.PATH, **headers: str) -> tuple[int, dict[str, Any]]:
        """Return status and answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        given = {
            "X-Hub-Signature-256": sign(TERMS.secret, body),
            "X-GitHub-Event": "push",
            "X-GitHub-Delivery": "d-1",
        }
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, body, given | named)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        connection.close()
        return answer.status, found


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    """A database with the pool."""
    made = Store(sqlite_url)
    pools.create(made, name="linux", provider="local", queues=["builds"], policy=policies.read({}), by="ann")
    yield made
    made.dispose()


@pytest.fixture
def caller(store: Store) -> Iterator[Caller]:
    """A listener, and somebody to call it."""
    listener = Webhook("127.0.0.1:0", TERMS, store)
    yield Caller(listener.port)
    listener.close()


def test_push_begins_a_deployment_with_its_stages(caller: Caller, store: Store) -> None:
    status, answer = caller.send(push())
    assert status == 202
    found = deployments.get(store, answer["deployment"])
    assert (found.commit, found.branch, found.created_by) == (COMMIT, "main", "webhook, delivery d-1")
    assert [it.name for it in deployments.list_stages(store, found.id)] == [
        "test",
        "package",
        "bake",
        "rollout",
    ]


def test_delivery_that_is_sent_again_begins_nothing_even_under_another_id(
    caller: Caller, store: Store
) -> None:
    first = caller.send(push())[1]["deployment"]
    assert caller.send(push())[1]["deployment"] == first
    assert caller.send(push(), X_GitHub_Delivery="d-2")[1]["deployment"] == first
    assert len(deployments.list_deployments(store)) == 1
    assert caller.send(push(after="b" * 40))[1]["deployment"] != first


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "sha256=",
        sign("other", push()),
        sign(TERMS.secret, push(after="b" * 40)),
        "sha256=\xff",
        "sha1=abc",
    ],
)
def test_forged_signature_is_refused(caller: Caller, store: Store, signature: str) -> None:
    status, answer = caller.send(push(), X_Hub_Signature_256=signature)
    assert (status, answer) == (401, {"error": "the signature is missing or wrong"})
    assert deployments.list_deployments(store) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"ref": "refs/heads/feature"}, "branch 'feature' is not deployed"),
        ({"ref": "refs/tags/main"}, "branch 'refs/tags/main' is not deployed"),
        ({"after": "0" * 40}, "the branch was deleted"),
        ({"after": "--upload-pack=x"}, "the branch was deleted"),
        ({"repository": {"full_name": "evil/agent"}}, "repository 'evil/agent' is not the one"),
        ({"repository": {"full_name": "gent"}}, "repository 'gent' is not the one"),
    ],
)
def test_what_is_not_deployed_is_ignored_with_a_reason(
    caller: Caller, store: Store, changed: dict[str, Any], told: str
) -> None:
    status, answer = caller.send(push(**changed))
    assert status == 202
    assert told in answer["ignored"]
    assert deployments.list_deployments(store) == []


def test_other_events_and_pings(caller: Caller) -> None:
    assert caller.send(b"{}", X_GitHub_Event="ping") == (200, {"ok": True})
    assert "only a push" in caller.send(b"{}", X_GitHub_Event="issues")[1]["ignored"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"ref": 1}', b"\xff\xfe"])
def test_body_that_is_no_push_is_named(caller: Caller, body: bytes) -> None:
    assert caller.send(body)[0] == 400


def test_other_paths_and_bodies_without_end_are_refused(caller: Caller) -> None:
    assert caller.send(push(), path="/")[0] == 404
    assert caller.send(push(), Content_Length=str(1 << 30))[0] == 413
