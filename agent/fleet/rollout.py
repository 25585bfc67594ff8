"""Roll-outs, a step in each cycle: try the image on a few servers, let builds judge it, replace the others, or go back.

    canary      some servers of the new image beside the others; builds decide (`judge`)
    rolling     the pool's image is the new one: servers of another are replaced; builds go on being judged
    going_back  the image is given up: its servers leave, the pool's image is the old one

Every step is one transaction, so a controller that is killed leaves a roll-out as it was before a step or after it.
"""

from __future__ import annotations

from datetime import timedelta

from agent import log
from agent.errors import StateConflict
from agent.fleet import judge, replace
from agent.fleet.ground import FLEET, Ground
from agent.fleet.judge import Evidence, Verdict
from agent.fleet.reconcile import LAUNCH_LIMIT_S, TERMINATE_LIMIT_S
from agent.fleet.view import Condition, Member, PoolView
from agent.model.fleet import MachineState, Purpose, Rollout, RolloutKind, RolloutState
from agent.model.image import ImageState
from agent.store import fleet_survey, images, machines, pools, rollouts

# Launches in a row that came to nothing before an image is given up.
_FAILED_LAUNCHES = 2
# What the image in use is remembered by: so many attempts, not older than this.
_OLD_SAMPLES = 500
_OLD_AGE = timedelta(days=14)

_log = log.get("fleet")


class Rollouts:
    """Takes the open roll-out of a pool one step on."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def step(self, view: PoolView, *, wanted: int) -> None:
        """Do what there is to do in this cycle.

        Args:
            wanted: how many servers the scaling rule wants.
        """
        rollout = view.rollout
        if rollout is None or view.pool.paused_why:
            return
        try:
            match rollout.state:
                case RolloutState.CANARY if not rollout.is_paused:
                    self._try(view, rollout, wanted)
                case RolloutState.ROLLING if not rollout.is_paused:
                    self._roll(view, rollout, wanted)
                case RolloutState.GOING_BACK:
                    self._go_back(view, rollout)
        except StateConflict as error:
            # Somebody has moved it in this very moment; the next cycle sees how it stands.
            _log.info("fleet.rollout_moved", str(error), pool=view.pool.name)

    # The trial.

    def _try(self, view: PoolView, rollout: Rollout, wanted: int) -> None:
        if rollout.is_hastened:
            self._accept(rollout, "hastened: not tried to the end")
            return
        if self._gives_up_launching(view, rollout):
            return
        share = max(1, round(max(wanted, 1) * view.pool.policy.canary_share))
        # Those among them that are late have not failed yet, and are not replaced before they have.
        tried = [it.machine for it in view.members if it.machine and it.machine.rollout_id == rollout.id]
        there = sum(it.is_there for it in tried)
        missing = share - there
        failed, _ = view.failures.get(rollout.to_image_id, (0, None))
        if missing > 0 and (failed == 0 or there == 0):
            self._start_trial(view, rollout, 1 if failed else missing)
        evidence = self._weigh(view, rollout)
        if evidence.verdict is Verdict.BAD:
            self._give_up(rollout, evidence.reason)
        elif evidence.verdict is Verdict.GOOD:
            self._accept(rollout, evidence.reason)
        elif self._is_over(view):
            self._decide_at_limit(rollout, evidence)

    def _start_trial(self, view: PoolView, rollout: Rollout, count: int) -> None:
        with self._ground.writing() as connection:
            rollouts.check_open(connection, rollout)
            machines.ask(
                connection,
                pool=view.pool.name,
                provider=view.pool.provider,
                image_id=rollout.to_image_id,
                count=count,
                purpose=Purpose.CANARY,
                by=FLEET,
                launch_limit_s=LAUNCH_LIMIT_S,
                reason=f"tries the image of roll-out {rollout.id[:8]}",
                rollout_id=rollout.id,
            )

    def _weigh(self, view: PoolView, rollout: Rollout) -> Evidence:
        """Judge the new image by what has ended on it since the roll-out began, and keep what that rests on."""
        ground, name = self._ground, view.pool.name
        with ground.store.read() as connection:
            new = fleet_survey.read_samples(connection, name, rollout.to_image_id, since=rollout.created_at)
            old = (
                []
                if rollout.from_image_id is None
                else fleet_survey.read_samples(
                    connection,
                    name,
                    rollout.from_image_id,
                    since=view.at - _OLD_AGE,
                    limit=_OLD_SAMPLES,
                )
            )
        evidence = judge.judge(new, old)
        if evidence.plain() != dict(rollout.evidence):
            told = f"{evidence.verdict}: {evidence.reason}"
            is_news = evidence.tried != rollout.evidence.get("tried")
            with ground.writing() as connection:
                rollouts.note_evidence(connection, rollout, evidence.plain(), told if is_news else None)
        return evidence

    @staticmethod
    def _is_over(view: PoolView) -> bool:
        served = [it.machine.served_at for it in view.trial if it.machine and it.machine.served_at]
        limit = timedelta(seconds=view.pool.policy.canary_limit_s)
        return bool(served) and view.at >= min(served) + limit

    def _decide_at_limit(self, rollout: Rollout, evidence: Evidence) -> None:
        if evidence.infrastructure_ratio <= 0 and evidence.failed_ratio <= 0:
            self._accept(
                rollout, f"the trial's time is over, and nothing speaks against it: {evidence.reason}"
            )
        else:
            self._give_up(rollout, f"the trial's time is over, and it is not proved good: {evidence.reason}")

    def _accept(self, rollout: Rollout, reason: str) -> None:
        with self._ground.writing() as connection:
            rollouts.move(connection, rollout, RolloutState.ROLLING, reason=reason)
            pools.set_image(connection, rollout.pool, rollout.to_image_id, by=FLEET, why=reason)
            machines.end_trial(connection, rollout.id)

    # Replacing.

    def _roll(self, view: PoolView, rollout: Rollout, wanted: int) -> None:
        if rollout.kind is RolloutKind.ROLLOUT:
            if self._gives_up_launching(view, rollout):
                return
            evidence = self._weigh(view, rollout)
            if evidence.verdict is Verdict.BAD and not rollout.is_hastened:
                self._give_up(rollout, evidence.reason)
                return
        if any(self._is_in_the_way(view, it) for it in view.members):
            return
        ready = sum(
            it.condition is Condition.ACCEPTING and not replace.is_outdated(view, it) for it in view.members
        )
        if ready >= wanted:
            with self._ground.writing() as connection:
                told = f"{ready} on the image, none on another"
                rollouts.move(connection, rollout, RolloutState.DONE, reason=told)

    @staticmethod
    def _is_in_the_way(view: PoolView, member: Member) -> bool:
        return replace.is_outdated(view, member) and member.condition in (
            Condition.BOOTING,
            Condition.ACCEPTING,
            Condition.UNREADY,
        )

    # Back.

    def _gives_up_launching(self, view: PoolView, rollout: Rollout) -> bool:
        failed, _ = view.failures.get(rollout.to_image_id, (0, None))
        if failed < _FAILED_LAUNCHES:
            return False
        self._give_up(rollout, f"{failed} servers in a row that were started from it never took builds")
        return True

    def _give_up(self, rollout: Rollout, reason: str) -> None:
        """Take the image for bad, and go back to the one before."""
        with self._ground.writing() as connection:
            rollouts.move(connection, rollout, RolloutState.GOING_BACK, reason=reason)
            if rollout.from_image_id is not None:
                pools.set_image(connection, rollout.pool, rollout.from_image_id, by=FLEET, why=reason)
                pools.forget_previous(connection, rollout.pool, rollout.to_image_id, by=FLEET)
            images.change(
                connection,
                rollout.to_image_id,
                to=ImageState.BAD,
                only_from=images.USABLE,
                by=FLEET,
                reason=f"roll-out {rollout.id[:8]}: {reason}",
            )
        _log.warning("fleet.rollout_given_up", reason, pool=rollout.pool, image=rollout.to_image_id)

    def _go_back(self, view: PoolView, rollout: Rollout) -> None:
        """Have every server of the image leave, at once: none may spoil another build."""
        left = [
            it
            for it in view.members
            if it.machine is not None
            and it.machine.image_id == rollout.to_image_id
            and it.machine.state in (MachineState.WANTED, MachineState.BOOTING, MachineState.SERVING)
        ]
        note = f"roll-out {rollout.id[:8]} goes back"
        for member in left:
            drop(self._ground, member, note=note, drain_limit_s=view.pool.policy.drain_limit_s)
        if not left:
            with self._ground.writing() as connection:
                is_bad = images.read(connection, rollout.to_image_id).state is ImageState.BAD
                state = RolloutState.ROLLED_BACK if is_bad else RolloutState.ABORTED
                rollouts.move(connection, rollout, state, reason=rollout.reason or note)


def drop(ground: Ground, member: Member, *, note: str, drain_limit_s: float) -> None:
    """Have a member leave: one that takes builds is drained, one that does not yet is ended."""
    machine = member.machine
    if machine is None:
        return
    if machine.state is MachineState.SERVING and member.server is not None:
        ground.leave(member, note=note, drain_limit_s=drain_limit_s, only_idle=False)
    else:
        ground.move(machine, MachineState.TERMINATING, reason=note, limit_s=TERMINATE_LIMIT_S)
