"""The fleet's controller: one loop that looks at everything on record, and takes each thing one step on.

Any number may run; one leads. A cycle reads, asks the providers in the background, and writes small guarded steps; it can
be killed between any two of them, and whoever leads next goes on from what is on record.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent import clock, log
from agent.clock import Deadline
from agent.errors import AgentError, StoreUnavailable
from agent.fleet import view as views
from agent.fleet.deploy import Deployer
from agent.fleet.ground import Ground
from agent.fleet.grouping import Grouping
from agent.fleet.hands import Hands
from agent.fleet.reconcile import Reconciler
from agent.fleet.retention import Retention
from agent.fleet.rollout import Rollouts
from agent.fleet.sizing import Sizing
from agent.fleet.view import Condition, PoolView
from agent.model.fleet import FleetMachine
from agent.store import decisions, fleet_events, fleet_survey, lead, machines
from agent.store.engine import Store
from agent.store.fleet_survey import FleetSurvey
from agent.store.lead import Lead, LeadLost

_ACCOUNT_S = 60.0
_TIDY_S = 600.0
_EVENTS_KEPT = 200_000

_log = log.get("fleet")


class Controller:
    """One controller; `cycle` is called over and over by one thread, and may raise StoreUnavailable.

    Args:
        make_ground: makes what a life as leader stands on, given its name and the fleet's id.
        lease_s: a leader that is silent for so long is taken for dead.
        list_s: how often the providers are asked what they have.
    """

    def __init__(
        self,
        store: Store,
        make_ground: Callable[[str, str], Ground],
        make_deployer: Callable[[Ground], Deployer],
        *,
        lease_s: float,
        list_s: float,
    ) -> None:
        self._store = store
        self._make_ground = make_ground
        self._make_deployer = make_deployer
        self._lease_s = lease_s
        self._list_s = list_s
        self._name = f"{socket.gethostname()}, {uuid.uuid4().hex[:8]}"
        self._seen: tuple[Lead, float] | None = None
        self._life: _Life | None = None

    @property
    def is_leading(self) -> bool:
        """Whether this one leads."""
        return self._life is not None

    def cycle(self) -> None:
        """Lead if nobody else does, and then take everything one step on."""
        if self._life is None:
            self._life = self._take()
        if self._life is None:
            return
        try:
            self._life.cycle()
        except LeadLost:
            _log.warning("fleet.lead_lost")
            self._end_life()
        except StoreUnavailable:
            # Nobody can lead without the database; whether this one still does shows when it is back.
            raise

    def close(self) -> None:
        """Let another lead at once."""
        if self._life is not None:
            holder = self._life.ground.holder
            self._end_life()
            lead.resign(self._store, holder)

    def _end_life(self) -> None:
        if self._life is not None:
            self._life.close()
        self._life = self._seen = None

    def _take(self) -> _Life | None:
        """Take the lead from nobody, or from one whose beat has stood still for its whole lease."""
        now = lead.look(self._store)
        if now.holder is not None:
            former = self._seen
            if former is None or (former[0].holder, former[0].beat) != (now.holder, now.beat):
                self._seen = (now, clock.mono())
                return None
            if clock.mono() - former[1] < now.lease_s:
                return None
        holder = uuid.uuid4().hex
        if not lead.take(self._store, now, holder=holder, name=self._name, lease_s=self._lease_s):
            return None
        _log.info("fleet.lead_taken", was=now.holder_name or "nobody")
        ground = self._make_ground(holder, now.fleet_id)
        return _Life(ground, self._make_deployer(ground), list_s=self._list_s)


class _Life:
    """One life as leader."""

    def __init__(self, ground: Ground, deployer: Deployer, *, list_s: float) -> None:
        self.ground = ground
        self.hands = Hands()
        self._reconciler = Reconciler(ground, self.hands)
        self._grouping = Grouping(ground, self.hands)
        self._sizing = Sizing(ground, self._grouping)
        self._rollouts = Rollouts(ground)
        self._retention = Retention(ground, self.hands)
        self._deployer = deployer
        self._list_s = list_s
        self._list_at = Deadline.after(0)
        self._account_at = Deadline.after(_ACCOUNT_S)
        self._tidy_at = Deadline.after(0)
        self._told: dict[str, str] = {}
        self._orphans: dict[str, list[str]] = {}
        self._took_s = 0.0

    def close(self) -> None:
        """Let go of what runs."""
        self._deployer.close()
        self.hands.close()

    def cycle(self) -> None:
        """Look at everything, and take each thing one step on."""
        began_mono = clock.mono()
        lead.beat(self.ground.store, self.ground.holder, self._status())
        # First what the providers have brought, then the record: what they were asked for is on it.
        done = list(self.hands.collect())
        survey = fleet_survey.look(self.ground.store)
        by_id = {it.id: it for it in survey.machines}
        for it in done:
            self._reconciler.take(it, by_id)
            if it.key[0] == "list" and it.fault is None:
                self._take_listing(it.key[1], survey, by_id)
            self._retention.take(it)
            self._grouping.take(it, survey)
        if done:
            survey = fleet_survey.look(self.ground.store)
        self._ask_providers(survey)
        seen = views.pools_of(survey)
        for view in seen:
            self._step_pool(view)
        self._say("queues", _words_of_unserved(views.unserved(survey, seen)))
        self._guarded("deployments", self._deployer.step)
        self._keep_books(seen)
        self._took_s = clock.mono() - began_mono

    def _step_pool(self, view: PoolView) -> None:
        name = view.pool.name

        def step() -> None:
            self._reconciler.settle(view)
            inputs, answer = self._sizing.decide(view)
            self._rollouts.step(view, wanted=answer.wanted)
            self._sizing.act(view, inputs, answer)
            self._grouping.settle(view)

        self._guarded(f"pool {name}", step)
        if view.pool.image_id is None and (view.waiting or view.pool.policy.floor):
            self._say(f"image of {name}", f"pool {name} has no image: build-agent fleet rollout {name} IMAGE")
        else:
            self._say(f"image of {name}", "")

    def _guarded(self, what: str, step: Callable[[], None]) -> None:
        """Do a step whose fault must not keep the others from theirs."""
        try:
            step()
        except (LeadLost, StoreUnavailable):
            raise
        except AgentError as error:
            self._say(what, f"{what}: {error}")
        except Exception as error:  # noqa: BLE001 - told, and tried again with the next cycle
            _log.exception("fleet.step_failed", what=what)
            self._say(what, f"{what}: {type(error).__name__}: {error}")
        else:
            self._say(what, "")

    def _say(self, what: str, text: str) -> None:
        """Tell of a fault once, and when it is over; `""` says that there is none."""
        if text == self._told.get(what, ""):
            return
        if text:
            self._told[what] = text
            _log.warning("fleet.fault", text)
        else:
            del self._told[what]
            _log.info("fleet.fault_over", what=what)

    def _ask_providers(self, survey: FleetSurvey) -> None:
        if not self._list_at.is_passed:
            return
        self._list_at = Deadline.after(self._list_s)
        names = {it.provider for it in survey.pools} | {it.provider for it in survey.machines}
        self._reconciler.list_all(sorted(names))
        self._grouping.ask(survey.pools)

    def _take_listing(self, provider: str, survey: FleetSurvey, by_id: Mapping[str, FleetMachine]) -> None:
        known = [it for it in survey.machines if it.provider == provider]
        self._reconciler.count_missed(provider, known, survey.at)
        self._orphans[provider] = self._reconciler.end_orphans(provider, by_id)

    def _keep_books(self, seen: Sequence[PoolView]) -> None:
        if self._account_at.is_passed:
            self._account_at = Deadline.after(_ACCOUNT_S)
            states = {
                it.machine.id: (str(it.condition), it.condition is Condition.ACCEPTING and it.running == 0)
                for view in seen
                for it in view.members
                if it.machine is not None
            }
            with self.ground.writing() as connection:
                machines.account(connection, states)
        if self._tidy_at.is_passed:
            self._tidy_at = Deadline.after(_TIDY_S)
            with self.ground.writing() as connection:
                decisions.forget(connection)
                machines.forget(connection)
                fleet_events.forget(connection, keep=_EVENTS_KEPT)
            self._guarded("retention", self._retention.step)

    def _status(self) -> dict[str, Any]:
        """Return what people are told of how the controller does."""
        faults = [f"provider {name}: {why}" for name, why in sorted(self._reconciler.faults.items())]
        orphans = [it for found in self._orphans.values() for it in found]
        return {
            "problems": [*self._told.values(), *faults],
            "orphans": orphans,
            "cycle_s": round(self._took_s, 3),
        }


def _words_of_unserved(unserved: Mapping[str, int]) -> str:
    return "; ".join(
        f"{count} builds wait in queue {name}, which no pool and no server serves"
        for name, count in sorted(unserved.items())
    )
