"""The policy of a pool: how many servers, when they come and go, how an image is tried. Read from JSON, with bounds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, time
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from agent.errors import SettingsError

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SERVERS_MAX = 20_000
_Servers = Annotated[int, Field(ge=0, le=_SERVERS_MAX)]
_Seconds = Annotated[float, Field(ge=0, le=366 * 86400, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Window(_Model):
    """A time of the week with bounds of its own. `start` equal to `end` is the whole day; one over midnight begins on
    its day and ends on the next.
    """

    days: tuple[str, ...] = _DAYS
    start: str = "00:00"
    end: str = "00:00"
    zone: str = "UTC"
    floor: _Servers | None = None
    ceiling: _Servers | None = None

    @field_validator("days")
    @classmethod
    def _known_days(cls, days: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [day for day in days if day not in _DAYS]
        if unknown or not days:
            raise ValueError(f"days are {', '.join(_DAYS)}; not {', '.join(unknown) or 'none'}")
        return days

    @field_validator("start", "end")
    @classmethod
    def _a_time(cls, text: str) -> str:
        if not re.fullmatch(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]", text):
            raise ValueError(f"{text!r} is no time of the day such as 08:30")
        return text

    @field_validator("zone")
    @classmethod
    def _a_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"{name!r} is no time zone such as Europe/Berlin") from error
        return name

    def holds(self, at: datetime) -> bool:
        """Whether the window is open at an instant."""
        local = at.astimezone(ZoneInfo(self.zone))
        start, end = time.fromisoformat(self.start), time.fromisoformat(self.end)
        today, yesterday = _DAYS[local.weekday()], _DAYS[local.weekday() - 1]
        now = local.time()
        if start < end:
            return today in self.days and start <= now < end
        if start == end and start == time():
            return today in self.days
        return (today in self.days and now >= start) or (yesterday in self.days and now < end)


class Policy(_Model):
    """How a pool is kept. Durations in seconds; every field has a default, so `{}` is a policy.

    slots: of one server, until servers have told theirs.
    floor, ceiling: servers at least and at most; the surplus of a roll-out may go `surge` over it.
    spare_slots: free slots to have ready.
    schedule: windows of the week with other bounds; the first that is open counts.
    scale_in_after_s: for so long fewer servers must have been enough before one is drained.
    boot_limit_s: a server must take builds so soon after its launch; until then it counts as capacity.
    drain_limit_s: what still runs on a server that leaves is given back after this.
    unready_limit_s: a server that says for so long that it can't build is replaced.
    max_age_s: servers are replaced when they get older, few at once; 0: never.
    surge: servers more than needed while others are replaced, as a share of those needed, at least one.
    canary_share: part of the pool that tries a new image, at least one server.
    canary_limit_s: after that, a trial that nothing speaks against is over though few builds came.
    group: name of an EC2 Auto Scaling group that starts and ends the servers; empty: they are started one by one.
    size: type of the machines, in the provider's words; empty: the provider's default.
    """

    slots: Annotated[int, Field(ge=1, le=1024)] = 2
    floor: _Servers = 0
    ceiling: _Servers = 10
    spare_slots: Annotated[int, Field(ge=0, le=100_000)] = 0
    schedule: tuple[Window, ...] = ()
    scale_in_after_s: _Seconds = 300.0
    boot_limit_s: Annotated[float, Field(ge=1, le=86400)] = 600.0
    drain_limit_s: _Seconds = 7200.0
    unready_limit_s: _Seconds = 900.0
    max_age_s: _Seconds = 0.0
    surge: Annotated[float, Field(ge=0, le=1)] = 0.25
    canary_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    canary_limit_s: _Seconds = 3600.0
    group: Annotated[str, Field(max_length=255)] = ""
    size: Annotated[str, Field(max_length=64)] = ""

    @model_validator(mode="after")
    def _in_order(self) -> Policy:
        for window in (None, *self.schedule):
            floor, ceiling = self._bounds(window)
            if floor > ceiling:
                raise ValueError(f"floor {floor} is over ceiling {ceiling}")
        return self

    def bounds(self, at: datetime) -> tuple[int, int]:
        """Return (floor, ceiling) at an instant."""
        return self._bounds(next((it for it in self.schedule if it.holds(at)), None))

    def surge_of(self, servers: int) -> int:
        """Return how many servers more than needed there may be while others are replaced."""
        return max(1, round(servers * self.surge))

    def _bounds(self, window: Window | None) -> tuple[int, int]:
        floor = None if window is None else window.floor
        ceiling = None if window is None else window.ceiling
        return self.floor if floor is None else floor, self.ceiling if ceiling is None else ceiling


def read(document: Mapping[str, Any]) -> Policy:
    """Read a policy. Raises: SettingsError that names each fault."""
    try:
        return Policy.model_validate(dict(document))
    except ValidationError as error:
        faults = []
        for it in error.errors():
            where = ".".join(str(part) for part in it["loc"])
            told = it["msg"].removeprefix("Value error, ")
            if it["type"] == "extra_forbidden":
                told = f"there is no such thing in a policy; it has {', '.join(Policy.model_fields)}"
            faults.append(f"{where}: {told}" if where else told)
        raise SettingsError(f"policy: {'; '.join(faults)}") from error


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Read parts of a policy as people type them, `name=value`. Raises: SettingsError."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise SettingsError(f"policy: {word!r}: expected NAME=VALUE, such as max_age_s=86400")
        try:
            found[name.strip()] = json.loads(text)
        except ValueError:
            found[name.strip()] = text
    return found
