"""A real console, served on loopback, and a real browser before it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, sync_playwright

from agent.config import Settings
from agent.console import application, password
from agent.model.person import Role
from agent.queue.carrier import Carrier
from agent.queue.connection import connect
from agent.store import users
from agent.store.engine import Store
from tests.services import free_port, wait_until

PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class Site:
    """A console that is served, with an operator `ann` and a viewer `vic`."""

    url: str
    store: Store


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The system's Chromium; nothing is downloaded."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs chromium: make test installs it")
    with sync_playwright() as playwright:
        # Its sandbox needs a user that is not root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def site(sqlite_url: str, redis_url: str, tmp_path: Path) -> Iterator[Site]:
    """A console on an empty database."""
    store = Store(sqlite_url, pool_size=8)
    made = password.make(PASSWORD)
    for name, role in (("ann", Role.OPERATOR), ("vic", Role.VIEWER)):
        users.add(store, name, role, by="tests", password_hash=made)
    port = free_port()
    with connect(redis_url) as client:
        app = application.make(Settings(), store, Carrier(client))
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        wait_until(lambda: server.started, 20)
        yield Site(f"http://127.0.0.1:{port}", store)
        server.should_exit = True
        thread.join(10)
    store.dispose()
