"""Phases at the provider: the server is stopped, and the image is made of it."""

from __future__ import annotations

from agent.errors import AgentError
from agent.fleet.phase_server import BUILDER, forget
from agent.fleet.provider import ImageState, MachineState, ProviderImage
from agent.fleet.work import BakeFailed, BakeWaits, Work
from agent.store import bakes


def stop(work: Work) -> None:
    """Shut the server down, so that its disk is whole."""
    remote = work.remotes.pop(BUILDER, None)
    if remote is not None:
        remote.close()
    machine_id = str(work.made[BUILDER])
    work.ask(lambda: work.provider.stop(machine_id))

    def look() -> bool | None:
        found = work.provider.get(machine_id)
        if found is None or found.state in (MachineState.TERMINATING, MachineState.TERMINATED):
            raise BakeFailed(f"server {machine_id} is gone before its image was made")
        return True if found.state is MachineState.STOPPED else None

    def late() -> AgentError:
        return BakeWaits(f"server {machine_id} has not stopped within {work.limits.stop_s:g} s")

    work.wait(look, work.limits.stop_s, else_raise=late)


def make_image(work: Work) -> None:
    """Have the image made and wait for it; one that is there already, made before a kill, is adopted."""
    image = adopted(work) or _create(work)

    def look() -> ProviderImage | None:
        found = work.provider.get_image(image.id)
        if found is None or found.state is ImageState.FAILED:
            raise BakeFailed(
                f"the provider failed to make image {image.id}: {found.reason if found else 'it is gone'}"
            )
        return found if found.state is ImageState.AVAILABLE else None

    def late() -> AgentError:
        limit = f"{work.limits.image_s:g} s"
        return BakeWaits(
            f"image {image.id} is not there after {limit}; it is adopted when the bake is resumed"
        )

    found = work.wait(look, work.limits.image_s, else_raise=late)
    size = f", {found.size_bytes:,} bytes" if found.size_bytes else ""
    work.say(f"image {found.id} is there{size}")
    # Its disk is in the image now.
    forget(work, BUILDER)


def adopted(work: Work) -> ProviderImage | None:
    """Return the image that this bake has made, or is having made, whether or not it came to be on record."""
    found = [
        it
        for it in work.ask(lambda: work.provider.list_images(work.tags))
        if it.state is not ImageState.FAILED
    ]
    if not found:
        return None
    image = sorted(found, key=lambda it: it.state is not ImageState.AVAILABLE)[0]
    work.say(f"image {image.id} has been made for this bake before: it is {image.state}")
    _note(work, image)
    return image


def _create(work: Work) -> ProviderImage:
    machine_id, token = str(work.made[BUILDER]), f"{work.bake_id}-image"
    work.note(image_token=token)
    name = f"build-agent-{work.image.profile}-{work.image.version}-{work.bake_id[:8]}"
    image = work.ask(lambda: work.provider.create_image(machine_id, name=name, tags=work.tags, token=token))
    _note(work, image)
    work.say(f"image {image.id} is being made of server {machine_id}")
    return image


def _note(work: Work, image: ProviderImage) -> None:
    work.made["image"] = image.id
    work.persist(
        lambda: bakes.note_image(work.store, work.bake_id, work.ownership.session, image.id, work.made)
    )
