"""What commands share: the settings as the command line gives them, the store, the queue, who is asking."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent import config_load
from agent.config import Settings
from agent.errors import NotFound, StateConflict

if TYPE_CHECKING:
    from agent.model.build import Build
    from agent.model.image import Image
    from agent.model.server import Server
    from agent.queue.carrier import Carrier
    from agent.store.engine import Store


class Context:
    """Made once for a command; everything is read or connected when it is first asked for."""

    def __init__(self, config_path: Path | None, settings: tuple[str, ...]) -> None:
        self._config_path = config_path
        self._overrides: dict[str, str] = {}
        for item in settings:
            name, equals, value = item.partition("=")
            if not equals:
                raise click.BadParameter(f"{item!r}: expected NAME=VALUE", param_hint="--set")
            self._overrides[name] = value

    def argv(self) -> list[str]:
        """Return the command line of another build-agent with the same settings."""
        words = [sys.executable, "-m", "agent.cli"]
        if self._config_path is not None:
            words += ["--config", str(self._config_path)]
        return words + [
            word for name, value in self._overrides.items() for word in ("--set", f"{name}={value}")
        ]

    def load(self) -> config_load.Loaded:
        """Return the settings and where each comes from. Raises: SettingsError."""
        return config_load.load(self._config_path, os.environ, self._overrides)

    @cached_property
    def settings(self) -> Settings:
        """The settings."""
        return self.load().settings

    @cached_property
    def store(self) -> Store:
        """The database, its schema checked. Raises: StoreUnavailable, SchemaMismatch."""
        from agent.store import schema
        from agent.store.engine import Store

        store = Store(self.settings.database_url, pool_size=2)
        schema.check(store)
        return store

    @cached_property
    def carrier(self) -> Carrier:
        """The queue."""
        import logging

        from agent.queue.carrier import Carrier
        from agent.queue.connection import connect

        # What goes wrong with Redis is said by the command, in its own words, not by a log record as well.
        logging.getLogger("agent").addHandler(logging.NullHandler())
        return Carrier(connect(self.settings.redis_url))

    @property
    def actor(self) -> str:
        """Who asks, for the record: user and machine."""
        return f"{_user()}@{socket.gethostname()}"

    def find_build(self, word: str) -> Build:
        """Return the build whose id is or begins with `word`. Raises: NotFound; StateConflict for several."""
        from agent.store import builds

        try:
            return builds.find(self.store, word)
        except NotFound as error:
            raise NotFound(f"{error}; build-agent builds lists the newest") from None

    def find_server(self, word: str) -> Server:
        """Return the server that `word` names: its name or id, or the beginning of either.

        Raises: NotFound; StateConflict for several.
        """
        from agent.store import servers

        try:
            return servers.get(self.store, word)
        except NotFound:
            named = [it for it in servers.list_servers(self.store) if word and it.name.startswith(word)]
            found = [it for it in named if it.state not in servers.GONE] or named
            if not found:
                raise NotFound(f"no server {word!r}; build-agent servers --all lists them") from None
            if len(found) > 1:
                names = ", ".join(f"{it.name} ({it.id})" for it in found[:5])
                raise StateConflict(f"several servers begin with {word!r}: {names}") from None
            return found[0]

    def find_image(self, word: str) -> Image:
        """Return the image that `word` names: its version or id, or the beginning of the id.

        Raises: NotFound; StateConflict for several.
        """
        from agent.store import images

        try:
            return images.find(self.store, word)
        except NotFound as error:
            raise NotFound(f"{error}; build-agent images list --all lists them") from None


def _user() -> str:
    if sudo_user := os.environ.get("SUDO_USER"):
        return sudo_user
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run us as a number that no passwd file knows.
        return f"uid {os.getuid()}"
