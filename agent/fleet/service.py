"""The fleet's controller as a process: joins store, queue, providers and settings, and lives until it is told to stop.

Beside the controller runs the leader of the queue, as in every agent: with all servers gone somebody has to find that
out, and queue their builds again.
"""

from __future__ import annotations

import os
import sys
import threading
import uuid
from functools import cache

from agent import log
from agent.config import Settings
from agent.daemon.loop import Loop
from agent.daemon.signals import Signals
from agent.errors import AgentFailed
from agent.fleet import providers, user_data
from agent.fleet.controller import Controller
from agent.fleet.deploy import Deployer, Plan
from agent.fleet.ground import Ground
from agent.fleet.group import Group
from agent.fleet.provider import Provider
from agent.fleet.webhook import Terms, Webhook
from agent.host.sdnotify import Notifier
from agent.metrics.registry import Metrics
from agent.model.fleet import Pool
from agent.queue.carrier import Carrier
from agent.queue.connection import connect
from agent.queue.leader import Leader
from agent.store import schema
from agent.store.engine import Store

_WATCH_S = 1.0
_HANG_S = 120.0

_log = log.get("fleet")


def run(settings: Settings, *, bake_argv: list[str] | None = None) -> int:
    """Run a controller until SIGTERM or Ctrl-C; return the exit code.

    Args:
        bake_argv: the command line of build-agent, with the settings that it was started with.
    Raises: SettingsError; SchemaMismatch; AgentFailed.
    """
    signals, notifier = Signals(), Notifier()
    signals.install()
    user_data.of_servers(settings)
    service = _Service(settings, bake_argv or [sys.executable, "-m", "agent.cli"])
    try:
        service.start()
        notifier.ready("looks after the fleet")
        while signals.stop_count == 0:
            signals.wait(_WATCH_S)
            notifier.alive()
            service.check()
            notifier.status("leads the fleet" if service.controller.is_leading else "another leads the fleet")
    finally:
        notifier.stopping()
        service.close()
    return 0


class _Service:
    def __init__(self, settings: Settings, bake_argv: list[str]) -> None:
        self._settings = settings
        self._bake_argv = bake_argv
        self._store = Store(settings.database_url, pool_size=12)
        schema.check(self._store)
        self._carrier = Carrier(connect(settings.redis_url))
        self._providers = threading.Lock()
        self._made: dict[str, Provider] = {}
        self._group = cache(lambda name: providers.group(settings, name))
        self.controller = Controller(
            self._store,
            self._make_ground,
            self._make_deployer,
            lease_s=settings.lease_s,
            list_s=settings.fleet_list_s,
        )
        life = uuid.uuid4().hex
        self._reaper = Leader(
            store=self._store,
            carrier=self._carrier,
            metrics=Metrics(),
            lease_s=settings.lease_s,
            sweep_s=settings.sweep_s,
            session=lambda: life,
        )
        self._webhook: Webhook | None = None
        self._loops = [
            Loop("controller", self.controller.cycle, interval_s=settings.fleet_cycle_s),
            Loop("reaper", self._reaper.cycle, interval_s=settings.sweep_s),
        ]

    def start(self) -> None:
        """Begin."""
        settings = self._settings
        if settings.deploy_webhook_address:
            terms = Terms(
                secret=settings.deploy_webhook_secret,
                repository=settings.deploy_repository,
                branches=settings.deploy_branches,
                pool=settings.deploy_pool,
            )
            self._webhook = Webhook(settings.deploy_webhook_address, terms, self._store)
        for loop in self._loops:
            loop.start()
        _log.info("fleet.started", cycle_s=settings.fleet_cycle_s)

    def check(self) -> None:
        """Raise what has ended a loop. Raises: AgentFailed."""
        for loop in self._loops:
            if loop.failure is not None:
                raise AgentFailed(f"{loop.name}: {loop.failure}") from loop.failure
            if loop.silent_s > _HANG_S:
                raise AgentFailed(f"{loop.name} hangs: nothing came of it for {_HANG_S:g} s")

    def close(self) -> None:
        """Stop, and let another lead."""
        if self._webhook is not None:
            self._webhook.close()
        for loop in self._loops:
            loop.stop()
        for loop in self._loops:
            loop.join(10.0)
        for resign in (self.controller.close, self._reaper.resign):
            try:
                resign()
            except Exception as error:  # noqa: BLE001 - the lead runs out by itself
                _log.warning("fleet.not_resigned", f"{type(error).__name__}: {error}")
        self._store.dispose()

    def _provider(self, name: str) -> Provider:
        with self._providers:
            if name not in self._made:
                self._made[name] = providers.make(self._settings, name)
            return self._made[name]

    def _group_of(self, pool: Pool) -> Group | None:
        return self._group(pool.policy.group) if pool.policy.group else None

    def _make_ground(self, holder: str, fleet_id: str) -> Ground:
        return Ground(
            store=self._store,
            carrier=self._carrier,
            holder=holder,
            fleet_id=fleet_id,
            owner_tag=self._settings.fleet_owner,
            provider_of=self._provider,
            group_of=self._group_of,
            server_config=lambda: user_data.of_servers(self._settings),
            images_kept=self._settings.fleet_images_kept,
        )

    def _make_deployer(self, ground: Ground) -> Deployer:
        settings = self._settings
        secrets = [*user_data.secrets(user_data.of_servers(settings)), settings.deploy_webhook_secret]
        plan = Plan(
            folder=settings.state_dir / "deployments",
            profile=settings.deploy_profile,
            package=settings.deploy_package_command,
            environment=dict(os.environ),
            base=settings.deploy_base,
            bake_argv=self._bake_argv,
            secrets=[it for it in secrets if it],
        )
        return Deployer(ground, plan)
