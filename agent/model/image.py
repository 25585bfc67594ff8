"""Machine images and the bakes that make them, as they stand in the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class ImageState(StrEnum):
    """Where an image stands. Only one that is verified, current or previous may start servers."""

    BAKING = "baking"
    VERIFIED = "verified"
    FAILED = "failed"
    CURRENT = "current"
    PREVIOUS = "previous"
    RETIRED = "retired"
    BAD = "bad"


class ReportWhen(StrEnum):
    """When the checks of an image were run: on the server it is made of, or on a fresh one started from it."""

    BAKE = "bake"
    FRESH_BOOT = "fresh_boot"


class BakeState(StrEnum):
    """Whether a bake goes on. `interrupted`: nobody works at it, what it made is there, it can be resumed."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    PASSED = "passed"
    FAILED = "failed"


class Phase(StrEnum):
    """The phases of a bake, in their order."""

    LAUNCH = "launch"
    SSH = "ssh"
    PUSH = "push"
    SETUP = "setup"
    VERIFY = "verify"
    SCRUB = "scrub"
    STOP = "stop"
    IMAGE = "image"
    TRIAL = "trial"
    RECHECK = "recheck"
    CANARY = "canary"
    FINISH = "finish"

    @property
    def number(self) -> int:
        """Its place in the order, from 0; the number of its step in the bake's record."""
        return list(Phase).index(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewImage:
    """What is known of an image when its bake begins."""

    id: str
    version: str
    provider: str
    profile: str
    base: str
    by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """One row of `images`. `provider_image_id` is the provider's own id, once it has made the image."""

    id: str
    version: str
    provider: str
    provider_image_id: str | None
    profile: str
    base: str
    state: ImageState
    reason: str | None
    provenance: Mapping[str, Any]
    created_at: datetime
    created_by: str
    verified_at: datetime | None
    changed_at: datetime
    changed_by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageReport:
    """One row of `image_reports`: what the checks said, as JUnit and as their own JSON."""

    image_id: str
    ran: ReportWhen
    junit: str
    report: Mapping[str, Any]
    stored_at: datetime | None = None

    @property
    def failed_checks(self) -> list[str]:
        """Names of the checks that did not pass; what was skipped is none of them."""
        return [
            str(it.get("name"))
            for it in self.report.get("checks", ())
            if it.get("outcome") not in ("passed", "skipped")
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """Who works at a bake: a session with a heartbeat, and the process, for whoever is on the same machine."""

    session: str
    name: str
    process: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bake:
    """One row of `bakes`; its id is also that of the build that holds its log.

    `options` is what was asked for. `made` is what exists at the provider because of it: written before and after each
    thing is made. `owner_beat` counts while the owner lives; `None` when nobody works at it.
    """

    id: str
    image_id: str
    provider: str
    phase: Phase
    state: BakeState
    options: Mapping[str, Any]
    made: Mapping[str, Any]
    error: str | None
    session: str | None
    owner_name: str | None
    owner_process: Mapping[str, Any]
    owner_beat: int | None
    created_at: datetime
    created_by: str
    changed_at: datetime
    ended_at: datetime | None
