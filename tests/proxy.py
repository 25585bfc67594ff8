"""A TCP proxy that can be cut, frozen and slowed: the network's faults, for tests.

Knows nothing of what goes through it.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from pathlib import Path
from typing import Self

# ip(7); not among Python's names.
_IP_FREEBIND = 15


class TcpProxy:
    """Stands between a client and a server and does what networks do.

    Args:
        target: (host, port) or the path of a unix socket.
        host: the address to listen on; this machine need not have it yet.
    """

    def __init__(self, target: tuple[str, int] | Path, *, host: str = "127.0.0.1") -> None:
        self._target = target
        self._host = host
        self._lock = threading.Lock()
        self._flow = threading.Event()
        self._flow.set()
        self._is_closed = threading.Event()
        self._delay_s = 0.0
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener: socket.socket | None = None
        self.port = self._listen(0)

    @property
    def address(self) -> tuple[str, int]:
        """Where clients connect to."""
        return (self._host, self.port)

    @property
    def connection_count(self) -> int:
        """How many connections go through it now."""
        with self._lock:
            return len(self._pairs)

    def cut(self) -> None:
        """Reset every connection and refuse new ones, as a dead server does."""
        self._unlisten()
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for end in pair:
                _reset(end)
        self._flow.set()

    def hang(self) -> None:
        """Pass nothing on and say nothing, as a lost network does; new connections open and stay silent.

        What is sent meanwhile is held and arrives after `restore`, as TCP's own repetition would have it.
        """
        self._flow.clear()

    def delay(self, seconds: float) -> None:
        """Hold each piece of data for so long, in both directions."""
        self._delay_s = seconds

    def restore(self) -> None:
        """End every fault, on the same port."""
        self._delay_s = 0.0
        self._flow.set()
        if self._listener is None:
            self._listen(self.port)

    def close(self) -> None:
        """Close everything; its threads end."""
        self._is_closed.set()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _listen(self, port: int) -> int:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
        listener.bind((self._host, port))
        listener.listen(64)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="proxy-accept", daemon=True).start()
        return int(listener.getsockname()[1])

    def _unlisten(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            # shutdown wakes the accepting thread, which a mere close does not.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # closed by cut
            if not self._connect(client):
                _reset(client)
                client.close()

    def _connect(self, client: socket.socket) -> bool:
        server = socket.socket(socket.AF_UNIX if isinstance(self._target, Path) else socket.AF_INET)
        try:
            server.connect(str(self._target) if isinstance(self._target, Path) else self._target)
        except OSError:
            server.close()
            return False
        pair = (client, server)
        with self._lock:
            self._pairs.add(pair)
        threading.Thread(target=self._relay, args=(pair,), name="proxy-relay", daemon=True).start()
        return True

    def _relay(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Pump both directions until both have ended or one was reset."""
        client, server = pair
        back = threading.Thread(target=self._pump, args=(server, client), name="proxy-back", daemon=True)
        back.start()
        self._pump(client, server)
        back.join()
        with self._lock:
            self._pairs.discard(pair)
        client.close()
        server.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while True:
                # Wait before reading: a hanging peer's buffers fill, as they would in life.
                select.select([source], [], [])
                self._flow.wait()
                data = source.recv(65536)
                if self._delay_s:
                    self._is_closed.wait(self._delay_s)
                self._flow.wait()
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
        except (OSError, ValueError):
            _reset(source)
            _reset(sink)


def _reset(end: socket.socket) -> None:
    """Break a connection off: the peer reads ECONNRESET or the end, never more data."""
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # gone already
