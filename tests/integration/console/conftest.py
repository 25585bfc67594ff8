"""A console on a real database, asked as browsers and programs ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient

from agent.config import Settings
from agent.console import application, password
from agent.model.person import Role
from agent.queue.carrier import Carrier
from agent.queue.connection import connect
from agent.store import users
from agent.store.engine import Store

PASSWORD = "correct horse battery"
URL = "http://console.test"
# One hash for everybody: to make one takes as long as a failed sign-in is to take.
_HASH = password.make(PASSWORD)

Browser = Callable[..., TestClient]


@pytest.fixture
def carrier(redis_url: str) -> Iterator[Carrier]:
    """An empty queue."""
    with connect(redis_url) as client:
        yield Carrier(client)


@pytest.fixture
def browser(store: Store, carrier: Carrier) -> Iterator[Browser]:
    """Makes browsers: of nobody, or of somebody of a role who is signed in."""
    made: list[TestClient] = []

    def make(role: Role | None = None, **settings: object) -> TestClient:
        site = application.make(Settings(**settings), store, carrier)  # type: ignore[arg-type]
        client = TestClient(
            site, base_url=str(settings.get("console_url", URL)), follow_redirects=False,
            raise_server_exceptions=False, headers={"sec-fetch-site": "same-origin"},
        )  # fmt: skip
        made.append(client)
        if role is not None:
            name = f"{role}-{len(made)}"
            users.add(store, name, role, by="tests", password_hash=_HASH)
            answer = client.post("/sign-in", data={"name": name, "password": PASSWORD})
            assert answer.status_code == 303, answer.text
        return client

    yield make
    for client in made:
        client.close()
