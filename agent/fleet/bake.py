"""The bake: from a bare server to an image that has proved itself. Runs the phases in order, or from where one was left.

Owns what becomes of a bake that ends early. What is wrong with the image fails it, and everything made is removed. What
is only away (provider, network, database) leaves it as it is, to be resumed. A kill is as if nothing was said: the
record tells the next command where to go on.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import __version__, clock, log
from agent.errors import AgentError, StateConflict
from agent.fleet import owner, phase_image, phase_server, phase_setup, phase_trial, sweep, user_data
from agent.fleet.bundle import Bundle
from agent.fleet.key import KeyFile
from agent.fleet.owner import BakeCancelled, BakeTaken, Ownership
from agent.fleet.provider import TAG_BAKE, TAG_OWNER, Provider, ProviderUnavailable
from agent.fleet.recording import Recording, secrets_of
from agent.fleet.remote import RemoteRefused
from agent.fleet.work import BakeFailed, Limits, Observer, Places, Work
from agent.model.image import Bake, Image, NewImage, Phase, ReportWhen
from agent.model.outcome import Outcome
from agent.queue.carrier import Carrier
from agent.store import bakes, images
from agent.store.engine import Store

_log = log.get("bake")

_PHASES: Mapping[Phase, tuple[Callable[[Work], None], str]] = {
    Phase.LAUNCH: (phase_server.launch, "start a server from the base"),
    Phase.SSH: (phase_server.connect, "log in"),
    Phase.PUSH: (phase_server.push, "bring the set-up scripts and the package"),
    Phase.SETUP: (phase_setup.setup, "setup_scripts/setup.sh"),
    Phase.VERIFY: (phase_setup.verify, "setup_scripts/verify/run.sh"),
    Phase.SCRUB: (phase_setup.scrub, "setup_scripts/scrub.sh, and --check"),
    Phase.STOP: (phase_image.stop, "shut the server down"),
    Phase.IMAGE: (phase_image.make_image, "make the image"),
    Phase.TRIAL: (phase_trial.launch, "start a fresh server from the image"),
    Phase.RECHECK: (phase_trial.check, "setup_scripts/verify/run.sh on the fresh server"),
    Phase.CANARY: (phase_trial.canary, "a build through the queue on the fresh server"),
    Phase.FINISH: (phase_trial.finish, "end the fresh server"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """What bakes stand on, the same for each that a command works at."""

    store: Store
    carrier: Carrier
    provider: Provider
    observer: Observer
    by: str
    server_config: Mapping[str, Any]
    key_folder: Path
    owner_tag: str = "build-agent"
    ssh_user: str = "root"
    heartbeat_s: float = 5.0
    lease_s: float = 30.0
    limits: Limits = field(default_factory=Limits)
    places: Places = field(default_factory=Places)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is to be baked. `base` is what to start from, in the user's words, `base_id` the provider's own name of it."""

    profile: str
    version: str
    base: str
    base_id: str


def begin(ground: Ground, request: Request, bundle: Bundle) -> str:
    """Put a bake and its image on record; return the bake's id. Raises: StateConflict when the version is taken."""
    bake_id, image_id = str(uuid.uuid4()), f"img-{uuid.uuid4().hex[:12]}"
    image = NewImage(
        id=image_id,
        version=request.version,
        provider=ground.provider.name,
        profile=request.profile,
        base=request.base,
        by=ground.by,
    )
    options = {
        "version": request.version,
        "profile": request.profile,
        "base": request.base,
        "base_id": request.base_id,
        **bundle.facts(),
    }
    bakes.create(ground.store, bake_id, image, options)
    return bake_id


def run(ground: Ground, bake_id: str, bundle: Bundle, *, keep: bool = False) -> Image:
    """Work at a bake until it is over; return its image, verified.

    Args:
        keep: leave the server of a bake that fails or is interrupted, for a look at it.
    Raises: BakeFailed when the image is not good; an error that is retriable when the bake can be resumed; BakeCancelled;
        BakeTaken and StateConflict when another works at it; KeyboardInterrupt.
    """
    bake = bakes.get(ground.store, bake_id)
    _check_inputs(bake, bundle)
    owner.await_death(ground.store, bake, lease_s=ground.lease_s, tell=ground.observer.said)
    work = _take(ground, bake, bundle)
    try:
        _go_through(work, bake.phase)
    except BaseException as error:
        _end_early(ground, work, error, keep=keep)
        raise
    return _end_well(ground, work)


def _check_inputs(bake: Bake, bundle: Bundle) -> None:
    for name, value in bundle.facts().items():
        if name != "commit" and bake.options.get(name) != value:
            raise StateConflict(
                f"bake {bake.id} was begun with another {name.replace('_', ' ')}; resume it with what it was begun "
                f"with, or remove it: build-agent images sweep {bake.id[:8]}"
            )


def _take(ground: Ground, bake: Bake, bundle: Bundle) -> Work:
    image = images.get(ground.store, bake.image_id)
    ownership = Ownership(
        ground.store,
        ground.carrier,
        bake,
        version=image.version,
        heartbeat_s=ground.heartbeat_s,
        lease_s=ground.lease_s,
    )
    ref = ownership.take(by=ground.by)
    _log.info("bake.begun", bake=bake.id, image=image.id, phase=bake.phase, attempt=ref.number)
    secrets = secrets_of(user_data.secrets(ground.server_config))
    return Work(
        store=ground.store,
        carrier=ground.carrier,
        provider=ground.provider,
        bake_id=bake.id,
        image=image,
        options=bake.options,
        bundle=bundle,
        user_data=lambda **special: user_data.render(ground.server_config, **special),
        owner_tag=ground.owner_tag,
        by=ground.by,
        key=KeyFile(ground.key_folder, bake.id),
        ownership=ownership,
        recording=Recording(ground.store, ref, secrets=secrets),
        observer=ground.observer,
        limits=ground.limits,
        places=ground.places,
        ssh_user=ground.ssh_user,
        made=dict(bakes.get(ground.store, bake.id).made),
    )


def _go_through(work: Work, phase: Phase) -> None:
    """Run the phases, from the one on record on or from an earlier one whose work is gone."""
    for each in list(Phase)[_entry(work, phase).number :]:
        work.check()
        work.enter(each)
        _run_phase(work, each)


def _entry(work: Work, phase: Phase) -> Phase:
    """Return where to go on: not in a server that is gone, or that no longer lets us in."""
    if phase in (Phase.STOP, Phase.IMAGE):
        if phase_image.adopted(work) is not None:
            return Phase.IMAGE
        return phase if work.machine(phase_server.BUILDER) is not None else _anew(work, phase_server.BUILDER)
    if phase.number > Phase.TRIAL.number:
        return phase if _is_open(work, phase_server.TRIAL) else _anew(work, phase_server.TRIAL)
    if Phase.LAUNCH.number < phase.number < Phase.STOP.number:
        is_open = _is_open(work, phase_server.BUILDER) and not work.made.get("scrub_began")
        return phase if is_open else _anew(work, phase_server.BUILDER)
    if phase.number <= Phase.TRIAL.number and not work.key.is_there:
        # Begun on another machine: a server that knows that machine's key is of no use here.
        return _anew(work, phase_server.BUILDER if phase is Phase.LAUNCH else phase_server.TRIAL)
    return phase


def _is_open(work: Work, role: str) -> bool:
    if not work.key.is_there or work.machine(role) is None or f"{role}_at" not in work.made:
        return False
    try:
        work.remote(role)
    except RemoteRefused:
        return False
    return True


def _anew(work: Work, role: str) -> Phase:
    """Give up the server of a role, and say with which phase the next one begins."""
    phase_server.forget(work, role)
    if role == phase_server.BUILDER:
        work.note(scrub_began=None)
        return Phase.LAUNCH
    return Phase.TRIAL


def _run_phase(work: Work, phase: Phase) -> None:
    function, what = _PHASES[phase]
    work.recording.begin(phase, what)
    work.observer.phase_begun(phase)
    began_mono = clock.mono()
    try:
        function(work)
    except Exception as error:
        outcome = Outcome.INFRASTRUCTURE if _is_resumable(error) else Outcome.FAILED
        work.recording.end(outcome, str(error))
        work.observer.phase_ended(phase, clock.mono() - began_mono, work.recording.mask(str(error)))
        raise
    seconds = clock.mono() - began_mono
    work.recording.end(Outcome.PASSED, None)
    work.note(durations={**work.made.get("durations", {}), phase.value: round(seconds, 3)})
    work.observer.phase_ended(phase, seconds, None)
    _log.info("bake.phase_ended", bake=work.bake_id, phase=phase, seconds=round(seconds, 3))


def _is_resumable(error: BaseException) -> bool:
    """Whether the fault says nothing against the image: what is away comes back, and our own mistakes get mended."""
    return error.is_retriable if isinstance(error, AgentError) else isinstance(error, Exception)


def _end_early(ground: Ground, work: Work, error: BaseException, *, keep: bool) -> None:
    """Leave the bake as it can be resumed, or settle it and remove what it made."""
    is_interrupt = isinstance(error, KeyboardInterrupt)
    why = "interrupted (Ctrl-C)" if is_interrupt else work.recording.mask(str(error) or type(error).__name__)
    _log.warning("bake.ended_early", why, bake=work.bake_id)
    try:
        if isinstance(error, BakeTaken):
            return
        if not isinstance(error, Exception) and not is_interrupt:
            return  # the process is told to end at once: as if it were killed
        if _is_resumable(error) or (is_interrupt and keep):
            _leave(work, why)
        else:
            _settle_failed(work, error, why)
            if not keep:
                _remove_all(ground, work, keep_image=False)
    finally:
        work.close()
        work.ownership.end()


def _leave(work: Work, why: str) -> None:
    with contextlib.suppress(AgentError):
        # If even this can't be said, the record stands as it would after a kill, which is as good.
        bakes.interrupt(work.store, work.bake_id, work.ownership.session, error=why, by=work.by)
    resume = f"build-agent images bake --resume {work.bake_id[:8]}"
    work.recording.close(Outcome.INFRASTRUCTURE, f"{why}; to go on: {resume}")


def _settle_failed(work: Work, error: BaseException, why: str) -> None:
    outcome = Outcome.FAILED
    if isinstance(error, BakeCancelled | KeyboardInterrupt):
        outcome = Outcome.CANCELLED
    elif isinstance(error, BakeFailed) and error.is_disk_full:
        outcome = Outcome.DISK_FULL
    facts = _provenance(work)
    bakes.fail(work.store, work.bake_id, work.ownership.session, error=why, provenance=facts, by=work.by)
    work.recording.close(outcome, why)


def _end_well(ground: Ground, work: Work) -> Image:
    try:
        facts = _provenance(work)
        work.persist(
            lambda: bakes.succeed(
                work.store, work.bake_id, work.ownership.session, provenance=facts, by=work.by
            )
        )
        work.recording.close(Outcome.PASSED, None)
        _log.info("bake.passed", bake=work.bake_id, image=work.image.id, version=work.image.version)
        _remove_all(ground, work, keep_image=True)
    finally:
        work.close()
        work.ownership.end()
    return images.get(work.store, work.image.id)


def _remove_all(ground: Ground, work: Work, *, keep_image: bool) -> None:
    """Remove what the bake made; what can't be removed now is left for `images sweep`, and said."""
    try:
        removed = sweep.remove(
            work.provider,
            {TAG_OWNER: work.owner_tag, TAG_BAKE: work.bake_id},
            keep_image=keep_image,
            limit_s=ground.limits.sweep_s,
            tell=ground.observer.said,
        )
    except AgentError as error:
        said = f"not everything was removed: {error}; later: build-agent images sweep {work.bake_id[:8]}"
        ground.observer.said(said)
        _log.error("bake.left_behind", str(error), bake=work.bake_id)
        if not isinstance(error, ProviderUnavailable):
            raise
        return
    if removed:
        bakes.note_swept(work.store, work.bake_id, removed=removed, by=work.by)
    work.key.delete()


def _provenance(work: Work) -> dict[str, Any]:
    reports = {it.ran: it.report for it in images.list_reports(work.store, work.image.id)}
    newest = reports.get(ReportWhen.FRESH_BOOT) or reports.get(ReportWhen.BAKE) or {}
    return {
        "bake": work.bake_id,
        "agent": __version__,
        **work.bundle.facts(),
        "pins": dict(work.bundle.pins),
        "base": work.image.base,
        "base_id": work.options.get("base_id"),
        "durations": work.made.get("durations", {}),
        "canary_build": work.made.get("canary_build"),
        "checks": {str(ran): len(report.get("checks", ())) for ran, report in reports.items()},
        "versions": newest.get("versions", {}),
        "packages": newest.get("packages", {}),
    }
