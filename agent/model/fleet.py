"""The fleet: pools of servers with their policies, the machines asked for, decisions, roll-outs, deployments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.model.policy import Policy


class MachineState(StrEnum):
    """Where a machine stands that the fleet has asked for; each state ends by a deadline or by what is seen."""

    WANTED = "wanted"
    BOOTING = "booting"
    SERVING = "serving"
    LEAVING = "leaving"
    TERMINATING = "terminating"
    GONE = "gone"


class Purpose(StrEnum):
    """Why a machine was asked for."""

    SCALE = "scale"
    MANUAL = "manual"
    CANARY = "canary"
    REPLACE = "replace"
    GROUP = "group"


class RolloutKind(StrEnum):
    """A roll-out tries its image first; a roll-back goes to one that is known to be good, at once."""

    ROLLOUT = "rollout"
    ROLLBACK = "rollback"


class RolloutState(StrEnum):
    """How far a roll-out is. `going_back`: its image is given up and its servers are being replaced."""

    CANARY = "canary"
    ROLLING = "rolling"
    GOING_BACK = "going_back"
    DONE = "done"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens."""
        return self in (RolloutState.DONE, RolloutState.ROLLED_BACK, RolloutState.ABORTED)


class StageName(StrEnum):
    """The stages of a deployment of the fleet itself, in their order."""

    TEST = "test"
    PACKAGE = "package"
    BAKE = "bake"
    ROLLOUT = "rollout"


class StageState(StrEnum):
    """Where a stage of a deployment stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"


class DeploymentState(StrEnum):
    """Whether a deployment goes on."""

    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """One row of `pools`: servers of one kind, which read the same queues and are started from one image.

    `paused_why` keeps the controller from starting and draining anything by itself.
    """

    name: str
    provider: str
    queues: Sequence[str]
    image_id: str | None
    previous_image_id: str | None
    policy: Policy
    paused_why: str | None
    paused_by: str | None
    created_at: datetime
    created_by: str
    changed_at: datetime
    changed_by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetMachine:
    """One row of `machines`: what the fleet has asked a provider for. `id` is the token of its launch.

    `deadline_at` is when the state must have come to its end. `fault` says why it never served.
    """

    id: str
    pool: str
    provider: str
    name: str
    provider_machine_id: str | None
    image_id: str | None
    state: MachineState
    purpose: Purpose
    reason: str | None
    fault: str | None
    rollout_id: str | None
    server_id: str | None
    created_at: datetime
    created_by: str
    changed_at: datetime
    deadline_at: datetime | None
    served_at: datetime | None
    ended_at: datetime | None

    @property
    def is_there(self) -> bool:
        """Whether it serves, or is to serve soon."""
        return self.state in (MachineState.WANTED, MachineState.BOOTING, MachineState.SERVING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One row of `decisions`: what the scaling rule made of its inputs; the rule run again on them gives the same."""

    id: int
    pool: str
    at: datetime
    rule: int
    inputs: Mapping[str, Any]
    wanted: int
    start: int
    drain: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One row of `rollouts`. `evidence` is what it is judged by, as it was when it was looked at last."""

    id: str
    pool: str
    kind: RolloutKind
    from_image_id: str | None
    to_image_id: str
    state: RolloutState
    is_paused: bool
    is_hastened: bool
    evidence: Mapping[str, Any]
    reason: str | None
    created_at: datetime
    created_by: str
    changed_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetEvent:
    """One row of `fleet_events`: something that happened to a machine, a roll-out or a deployment, in plain words."""

    id: int
    at: datetime
    subject_kind: str
    subject_id: str
    pool: str | None
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One row of `deployment_stages`. `output_id` names what has its output: a build, or a roll-out."""

    deployment_id: str
    name: StageName
    state: StageState
    output_id: str | None
    detail: str | None
    started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """One row of `deployments`: a commit of the fleet's own sources on its way into its servers."""

    id: str
    pool: str
    repository: str
    commit: str
    branch: str | None
    state: DeploymentState
    image_id: str | None
    detail: str | None
    delivery_id: str | None
    created_at: datetime
    created_by: str
    changed_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Hours:
    """What servers of one image spent in one state within an hour: `seconds`, and those in which none of them built."""

    hour: datetime
    pool: str
    image_id: str | None
    state: str
    seconds: float
    idle_seconds: float
