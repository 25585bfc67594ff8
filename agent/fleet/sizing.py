"""Brings a pool to its size: asks the scaling rule, keeps its decision, starts servers, has idle ones leave.

Owns what the rule can't see in one look: the peaks of demand, and launches that came to nothing.
"""

from __future__ import annotations

from datetime import timedelta

from agent import clock, log
from agent.fleet import replace, scale
from agent.fleet.ground import FLEET, Ground
from agent.fleet.grouping import Grouping
from agent.fleet.reconcile import LAUNCH_LIMIT_S
from agent.fleet.replace import Replacement
from agent.fleet.rollout import drop
from agent.fleet.scale import Answer, Inputs, Peaks
from agent.fleet.view import Condition, Member, PoolView
from agent.model.fleet import Purpose
from agent.store import decisions, machines

# After n launches in a row that came to nothing the next waits n doublings of this, and no longer than that.
_BACKOFF_S = 15.0
_BACKOFF_MAX_S = 900.0
# A decision that changes nothing is kept so often.
_KEEP_S = 600.0

_log = log.get("fleet")


class Sizing:
    """Used by the controller's thread, for one life as leader: it has seen no peaks of before."""

    def __init__(self, ground: Ground, grouping: Grouping) -> None:
        self._ground = ground
        self._grouping = grouping
        self._peaks: dict[str, Peaks] = {}
        self._kept: dict[str, tuple[tuple[object, ...], float]] = {}

    def decide(self, view: PoolView) -> tuple[Inputs, Answer]:
        """Ask the rule about a pool, and remember what it wanted."""
        now_s, span_s = clock.mono(), view.pool.policy.scale_in_after_s
        peaks = self._peaks.setdefault(view.pool.name, Peaks())
        inputs = inputs_of(view, peak=peaks.peak(now_s, span_s), coming=self._grouping.coming(view.pool))
        answer = scale.decide(inputs)
        peaks.note(now_s, answer.wanted, span_s)
        return inputs, answer

    def act(self, view: PoolView, inputs: Inputs, answer: Answer) -> None:
        """Do what the rule says, and what replacing servers asks for beside it."""
        self._keep(view, inputs, answer)
        if inputs.is_paused:
            return
        if answer.start and self._has_image(view):
            self._start(view, answer.start, Purpose.SCALE, answer.reason)
        allowed = max(0, inputs.starts_allowed - answer.start)
        found = replace.plan(view, wanted=answer.wanted, starts_allowed=allowed)
        is_held = view.rollout is not None and view.rollout.is_paused
        if found.outgoing and not is_held:
            # Whoever is replaced leaves when another has come: that makes a pool smaller, too.
            self._replace(view, found, answer)
        elif answer.drain:
            self._drain(view, answer)

    def _replace(self, view: PoolView, found: Replacement, answer: Answer) -> None:
        if found.start and not answer.start:
            self._start(view, found.start, Purpose.REPLACE, f"replaces what is {found.reason}")
        for member in found.leave:
            drop(
                self._ground, member, note=f"replaced: {found.reason}",
                drain_limit_s=view.pool.policy.drain_limit_s,
            )  # fmt: skip

    def _start(self, view: PoolView, count: int, purpose: Purpose, reason: str) -> None:
        pool = view.pool
        if pool.policy.group:
            self._grouping.want_more(pool, count, reason)
            return
        with self._ground.writing() as connection:
            machines.ask(
                connection,
                pool=pool.name,
                provider=pool.provider,
                image_id=str(pool.image_id),
                count=count,
                purpose=purpose,
                by=FLEET,
                launch_limit_s=LAUNCH_LIMIT_S,
                reason=reason,
            )
        _log.info("fleet.start", reason, pool=pool.name, count=count)

    def _drain(self, view: PoolView, answer: Answer) -> None:
        left = answer.drain
        for member in idle_first(view):
            if left == 0:
                return
            left -= self._ground.leave(
                member,
                note="more servers than needed",
                drain_limit_s=view.pool.policy.drain_limit_s,
                only_idle=True,
            )

    def _has_image(self, view: PoolView) -> bool:
        return view.pool.image_id is not None

    def _keep(self, view: PoolView, inputs: Inputs, answer: Answer) -> None:
        """Keep a decision that differs from the last that was kept, and one in ten minutes that does not."""
        name, now_mono = view.pool.name, clock.mono()
        what = (answer.wanted, answer.start, answer.drain, inputs.is_paused, inputs.accepting, inputs.booting)
        former = self._kept.get(name)
        if former is not None and former[0] == what and now_mono - former[1] < _KEEP_S:
            return
        with self._ground.writing() as connection:
            decisions.write(
                connection,
                pool=name,
                rule=scale.RULE,
                inputs=inputs.plain(),
                wanted=answer.wanted,
                start=answer.start,
                drain=answer.drain,
                reason=answer.reason,
            )
        self._kept[name] = (what, now_mono)


def inputs_of(view: PoolView, *, peak: int, coming: int = 0) -> Inputs:
    """Return what the scaling rule goes by; `coming` are servers that a group is to start yet."""
    floor, ceiling = view.pool.policy.bounds(view.at)
    return Inputs(
        waiting=view.waiting,
        # A server that has just come up may build before it has told that it accepts builds.
        running=sum(it.running for it in view.capacity),
        slots=view.slots,
        spare_slots=view.pool.policy.spare_slots,
        floor=floor,
        ceiling=ceiling,
        accepting=sum(it not in view.trial for it in view.of(Condition.ACCEPTING)),
        booting=sum(it not in view.trial for it in view.of(Condition.BOOTING)) + coming,
        unready=view.count(Condition.UNREADY, Condition.DISABLED),
        leaving=view.count(Condition.LEAVING, Condition.ENDING, Condition.DEAD),
        quarantined=view.count(Condition.QUARANTINED),
        trial=len(view.trial),
        peak=peak,
        starts_allowed=starts_allowed(view),
        is_paused=view.pool.paused_why is not None,
    )


def starts_allowed(view: PoolView) -> int:
    """Return how many servers may be started now: one at a time, ever more seldom, while none comes up."""
    failed, last_at = view.failures.get(str(view.pool.image_id), (0, None))
    if failed == 0 or last_at is None:
        return scale.ANY_NUMBER
    wait_s = min(_BACKOFF_S * 2 ** (failed - 1), _BACKOFF_MAX_S)
    is_trying = any(
        it.machine is not None and it.machine.image_id == view.pool.image_id
        for it in view.of(Condition.BOOTING)
    )
    return int(not is_trying and view.at >= last_at + timedelta(seconds=wait_s))


def idle_first(view: PoolView) -> list[Member]:
    """Return who may leave when there are too many: idle, on no trial, not wanted by hand; outdated first, then old."""
    found = [
        it
        for it in view.of(Condition.ACCEPTING)
        if it.machine is not None
        and it.machine.purpose is not Purpose.MANUAL
        and it.running == 0
        and it not in view.trial
    ]
    return sorted(found, key=lambda it: (not replace.is_outdated(view, it), it.began_at))
