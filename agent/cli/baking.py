"""What `build-agent images bake` does: reads what is asked for, begins or resumes a bake, and says how it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.bake_display import BakeDisplay, Silent
from agent.cli.context import Context
from agent.cli.screen import Screen
from agent.errors import NotFound, StateConflict

if TYPE_CHECKING:
    from agent.fleet.bake import Ground, Request
    from agent.fleet.provider import Provider
    from agent.fleet.work import Observer
    from agent.model.image import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The options of the command, as given."""

    provider: str | None
    profile: str
    base: str
    version: str | None
    scripts: Path | None
    deb: Path | None
    keep: bool
    resume: str | None


def bake(obj: Context, asked: Asked, *, has_output: bool, is_quiet: bool) -> Image:
    """Bake an image and return it, verified. Raises: what agent.fleet.bake.run does; SettingsError; NotFound."""
    from agent.cli.need import needing
    from agent.model import wording
    from agent.store import bakes

    with needing("the bake"):
        from agent.fleet import bake as baking
        from agent.fleet import bundle, providers
    screen = Screen(is_live=not is_quiet)
    display: Observer = Silent() if is_quiet else BakeDisplay(screen, has_output=has_output)
    inputs = bundle.read(bundle.find_scripts(asked.scripts), bundle.find_deb(asked.deb))
    resumed = bakes.find(obj.store, asked.resume) if asked.resume else None
    ground = _ground(
        obj, providers.make(obj.settings, resumed.provider if resumed else asked.provider), display
    )
    if resumed is not None:
        bake_id = resumed.id
    else:
        if not is_quiet:
            screen.show_status("looking for the base")
        bake_id = baking.begin(ground, _request(obj, asked, ground.provider), inputs)
    if not is_quiet:
        screen.hide_status()
        short = wording.short_id(bake_id)
        version = bakes.get(obj.store, bake_id).options["version"]
        screen.write(f"image {version}; its log: build-agent logs --follow {short}\n")
    try:
        image = baking.run(ground, bake_id, inputs, keep=asked.keep)
    except BaseException:
        screen.close()
        if not is_quiet and bakes.get(obj.store, bake_id).state == "interrupted":
            screen.note(f"to go on: build-agent images bake --resume {wording.short_id(bake_id)}")
        raise
    if not is_quiet:
        screen.close()
        total = wording.duration(sum(image.provenance["durations"].values()))
        click.echo(f"image {image.version} is verified: {image.provider_image_id}, {total}")
    return image


def _ground(obj: Context, provider: Provider, display: Observer) -> Ground:
    from agent.fleet import bake as baking
    from agent.fleet import key, user_data

    settings = obj.settings
    return baking.Ground(
        store=obj.store,
        carrier=obj.carrier,
        provider=provider,
        observer=display,
        by=obj.actor,
        server_config=user_data.of_servers(settings),
        key_folder=key.default_folder(),
        owner_tag=settings.fleet_owner,
        ssh_user=provider.ssh_user,
        heartbeat_s=settings.heartbeat_s,
        lease_s=settings.lease_s,
    )


def _request(obj: Context, asked: Asked, provider: Provider) -> Request:
    from agent.fleet import bake as baking
    from agent.store import images

    base_id, base = "", asked.base
    if base:
        try:
            image = images.find(obj.store, base)
        except NotFound:
            image = None
        if image is not None:
            if image.provider != provider.name or image.provider_image_id is None:
                raise StateConflict(f"image {image.version} is not at provider {provider.name}")
            if image.state not in images.USABLE:
                raise StateConflict(f"image {image.version} is {image.state}: nothing is made of it")
            base_id, base = image.provider_image_id, image.version
    base_id = base_id or provider.base_image(base)
    version = asked.version or _next_version(obj, provider.name, asked.profile)
    return baking.Request(profile=asked.profile, version=version, base=base or base_id, base_id=base_id)


def _next_version(obj: Context, provider: str, profile: str) -> str:
    """Return the day, in UTC, and the first number that is free."""
    from agent import clock
    from agent.store import images

    day = clock.utc_now().date().isoformat()
    taken = {it.version for it in images.list_images(obj.store, provider=provider, profile=profile)}
    return next(name for number in range(1, len(taken) + 2) if (name := f"{day}.{number}") not in taken)
