"""The StatsD sink: UDP datagrams, sent and forgotten.

Source of the format: etsy/statsd, docs/metric_types.md. StatsD knows no source, so the server's name is part
of each name: `build_agent.<server>.<metric>`; without it one server's gauge would overwrite another's.
"""

from __future__ import annotations

import re
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from agent import clock, log
from agent.errors import SettingsError
from agent.metrics.reading import CounterValue, GaugeValue, Reading, TimingInterval

_log = log.get(__name__)

# An Ethernet frame of 1,500 bytes less IPv6 and UDP headers and some room for tunnels: the value StatsD's own
# documentation gives for a network, and no datagram is ever cut into fragments.
DATAGRAM_LIMIT = 1432
DEFAULT_PORT = 8125
# A StatsD that moved is found within a minute; a resolver that is down is not asked more often than readings
# come.
RESOLVE_EVERY_S = 60.0
# StatsD has no notion of time, so old readings are worth nothing; a few cycles while the resolver hangs.
QUEUE_LIMIT = 200
_NAME_LIMIT = 200
_FORBIDDEN = re.compile(r"[^A-Za-z0-9._-]")


class StatsdSink:
    """Send readings to a StatsD server from an own thread: asking for its address may hang."""

    name = "statsd"

    def __init__(self, *, address: str, source: str) -> None:
        """Start the sender's thread.

        Args:
            address: "host:port", "[v6]:port" or "host".
            source: the server's name, in any characters.
        Raises: SettingsError when `address` is no address.
        """
        self._host, self._port = parse_address(address)
        self._prefix = f"build_agent.{_clean(source).replace('.', '_') or 'unnamed'}."
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._dropped_count = 0
        self._is_closing = False
        self._socket: socket.socket | None = None
        self._target: tuple[socket.AddressFamily, Any] | None = None
        self._fresh = clock.Deadline.after(0)
        self._fault = ""
        self._thread = threading.Thread(target=self._run, name="statsd", daemon=True)
        self._thread.start()

    @property
    def dropped_count(self) -> int:
        """Datagrams that could not be handed to the network. What the network loses nobody knows."""
        with self._changed:
            return self._dropped_count

    def publish(self, readings: Sequence[Reading], at: datetime) -> None:  # noqa: ARG002 - it takes no time
        """Queue readings."""
        datagrams = list(pack(line for reading in readings for line in encode(reading, self._prefix)))
        with self._changed:
            self._waiting.extend(datagrams)
            while len(self._waiting) > QUEUE_LIMIT:
                self._waiting.popleft()
                self._dropped_count += 1
            self._changed.notify_all()

    def close(self, limit_s: float) -> None:
        """Send what is waiting, for at most `limit_s` seconds, and end."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(limit_s)

    # Below: the sender's thread.

    def _run(self) -> None:
        while (datagrams := self._next()) is not None:
            try:
                failed = self._send(datagrams)
            except Exception:  # noqa: BLE001 - a surprise costs these datagrams, never the thread
                _log.exception("statsd.broken", "sending failed in an unforeseen way")
                failed = len(datagrams)
            with self._changed:
                self._dropped_count += failed
        if self._socket is not None:
            self._socket.close()

    def _next(self) -> list[bytes] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            datagrams = list(self._waiting)
            self._waiting.clear()
            return datagrams or None

    def _send(self, datagrams: list[bytes]) -> int:
        """Send what can be sent; return how many could not."""
        self._resolve()
        if self._target is None or self._socket is None:
            return len(datagrams)
        failed, fault = 0, ""
        for datagram in datagrams:
            try:
                self._socket.sendto(datagram, self._target[1])
            except OSError as error:  # no route, no buffer, a firewall: a later cycle has better luck or not
                failed, fault = failed + 1, error.strerror or type(error).__name__
        self._tell(fault)
        return failed

    def _resolve(self) -> None:
        """Look the address up when it is due; an old address outlives a resolver that fails."""
        if self._target is not None and not self._fresh.is_passed:
            return
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that IDNA does not take
            self._tell(f"{self._host} has no address: {error}")
            return
        self._fresh = clock.Deadline.after(RESOLVE_EVERY_S)
        family, _, _, _, target = found[0]
        if self._socket is None or self._target is None or family != self._target[0]:
            if self._socket is not None:
                self._socket.close()
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        self._target = (family, target)

    def _tell(self, fault: str) -> None:
        """Log a change of fortune once."""
        if fault and fault != self._fault:
            _log.warning("statsd.fault", "StatsD: %s; readings are dropped", fault)
        elif self._fault and not fault:
            _log.info("statsd.back", "readings leave for StatsD again")
        self._fault = fault


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of "host:port", "[v6]:port" or "host".

    Raises: SettingsError.
    """
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0 or parts.netloc != address or "@" in address:
        raise SettingsError(f"statsd_address must be like statsd.example.com:8125, not {address!r}")
    return host, port or DEFAULT_PORT


def encode(reading: Reading, prefix: str) -> Iterator[bytes]:
    """Yield the lines of one reading; a line holds two where StatsD must see both in order."""
    name = (prefix + _clean(reading.dotted_name))[:_NAME_LIMIT]
    if isinstance(reading, GaugeValue):
        value = _number(reading.value)
        # A sign means "change by" to StatsD, so a negative gauge is set from 0.
        yield (f"{name}:0|g\n{name}:{value}|g" if value.startswith("-") else f"{name}:{value}|g").encode()
    elif isinstance(reading, CounterValue):
        if reading.increase:
            yield f"{name}:{_number(reading.increase)}|c".encode()
    elif isinstance(reading, TimingInterval):
        rate = (
            "" if reading.count == len(reading.samples) else f"|@{len(reading.samples) / reading.count:.6g}"
        )
        for seconds in reading.samples:
            yield f"{name}:{_number(seconds * 1000)}|ms{rate}".encode()


def pack(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield datagrams of at most DATAGRAM_LIMIT bytes with the lines in order."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        if held and size + 1 + len(line) > DATAGRAM_LIMIT:
            yield b"\n".join(held)
            held, size = [], 0
        size += len(line) + bool(held)
        held.append(line)
    if held:
        yield b"\n".join(held)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("_", text)


def _number(value: float) -> str:
    """Return a decimal without an exponent, which not every StatsD reads."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
