"""The console as a process: serves the application until it is told to stop."""

from __future__ import annotations

import threading

import uvicorn

from agent import log
from agent.clock import Deadline
from agent.config import Settings
from agent.console import application
from agent.daemon.signals import Signals
from agent.errors import AgentFailed
from agent.host.sdnotify import Notifier
from agent.queue.carrier import Carrier
from agent.queue.connection import connect
from agent.store import schema
from agent.store.engine import Store

_WATCH_S = 1.0
_START_S = 30.0
_STOP_S = 5
_POOL = 20

_log = log.get("console")


def run(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Raises: SchemaMismatch; StoreUnavailable; AgentFailed when the address can't be had.
    """
    host, _, port = settings.console_address.rpartition(":")
    store = Store(settings.database_url, pool_size=_POOL)
    schema.check(store)
    server = uvicorn.Server(
        uvicorn.Config(
            application.make(settings, store, Carrier(connect(settings.redis_url))),
            host=host.strip("[]"),
            port=int(port),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.console_proxies),
            forwarded_allow_ips=list(settings.console_proxies),
            # Whoever follows a build has a request open for hours.
            timeout_graceful_shutdown=_STOP_S,
        )
    )
    signals, notifier = Signals(), Notifier()
    signals.install()
    # In a thread of its own uvicorn leaves signals alone.
    thread = threading.Thread(target=server.run, name="console", daemon=True)
    thread.start()
    _wait_started(server, thread, settings.console_address)
    _log.info("console.started", address=settings.console_address)
    notifier.ready(f"serves {settings.console_address}")
    while signals.stop_count == 0:
        signals.wait(_WATCH_S)
        if not thread.is_alive():
            raise AgentFailed("the console's server has ended by itself; its log says why")
        notifier.alive()
    notifier.stopping()
    server.should_exit = True
    thread.join(_STOP_S + 5)
    store.dispose()
    return 0


def _wait_started(server: uvicorn.Server, thread: threading.Thread, address: str) -> None:
    deadline = Deadline.after(_START_S)
    while not server.started:
        if not thread.is_alive() or deadline.is_passed:
            raise AgentFailed(
                f"the console can't listen on {address}: another process may have it (setting console_address)"
            )
        thread.join(0.05)
