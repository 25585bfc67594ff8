"""Hears what is said over Redis: RQ's commands to each slot, and nudges to read orders and cancels now.

Nothing depends on a message arriving: orders and cancels stand in the database and are read with each heartbeat.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import redis
from redis.exceptions import RedisError
from rq.command import PUBSUB_CHANNEL_TEMPLATE

from agent import clock, log
from agent.queue.connection import reaching

# redis-py's own thread dies on a network that swallows packets; a ping that gets no answer tells it.
PING_S = 15.0
_log = log.get("listener")


def nudge_channel(server_id: str) -> str:
    """Return the channel on which a server is asked to read its orders."""
    return f"build-agent:nudge:{server_id}"


def nudge(connection: redis.Redis, server_id: str) -> None:
    """Ask a server to read its orders and cancels now; if it can't be reached, its heartbeat does.

    Raises: QueueUnavailable.
    """
    with reaching():
        connection.publish(nudge_channel(server_id), "")


class Listener:
    """One subscription for the whole agent. `cycle` is called by one loop, over and over."""

    def __init__(
        self,
        connection: redis.Redis,
        *,
        server_id: str,
        workers: Mapping[str, Callable[[Mapping[str, Any]], None]],
        on_nudge: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._nudges = nudge_channel(server_id)
        self._workers = {PUBSUB_CHANNEL_TEMPLATE % name: handle for name, handle in workers.items()}
        self._on_nudge = on_nudge
        self._pubsub: Any = None
        self._heard_at_mono = 0.0
        self._pinged_at_mono = 0.0

    def cycle(self, timeout_s: float = 5.0) -> None:
        """Handle the next message, or wait up to `timeout_s` for one.

        Raises: QueueUnavailable; the next call subscribes anew.
        """
        try:
            with reaching():
                message = self._next_message(timeout_s)
        except Exception:
            self.close()
            raise
        if message is None:
            return
        channel = message["channel"].decode()
        if channel == self._nudges:
            self._on_nudge()
        elif channel in self._workers:
            self._command(channel, message["data"])

    def _next_message(self, timeout_s: float) -> dict[str, Any] | None:
        now_mono = clock.mono()
        if self._pubsub is None:
            self._pubsub = self._connection.pubsub()  # type: ignore[no-untyped-call]
            self._pubsub.subscribe(self._nudges, *self._workers)
            self._heard_at_mono = self._pinged_at_mono = now_mono
        if now_mono - self._pinged_at_mono >= PING_S:
            if self._heard_at_mono < self._pinged_at_mono:
                raise redis.exceptions.TimeoutError("no answer to a ping on the command channel")
            self._pubsub.ping()
            self._pinged_at_mono = now_mono
        message: dict[str, Any] | None = self._pubsub.get_message(timeout=timeout_s)
        if message is not None:
            self._heard_at_mono = clock.mono()
        return message if message is not None and message["type"] == "message" else None

    def _command(self, channel: str, data: bytes) -> None:
        try:
            command = json.loads(data)
            self._workers[channel](command)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # Anybody who reaches Redis may publish anything.
            _log.warning("listener.bad_command", f"{type(error).__name__}: {error}", channel=channel)

    def close(self) -> None:
        """Give up the subscription."""
        if self._pubsub is not None:
            try:
                self._pubsub.close()
            except (RedisError, OSError):
                _log.debug("listener.close_failed")
            self._pubsub = None
