"""Old images deleted, where that is asked for: never one in use, never the last good ones, never one that is not ours.

An image is ours if it carries, at its provider, the tags that the bake gave it. One that something stands on there, as a
layer or a launch template, is refused by the provider and stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from agent import log
from agent.fleet import retire
from agent.fleet.ground import FLEET, Ground
from agent.fleet.hands import Done, Hands
from agent.fleet.provider import TAG_IMAGE, TAG_OWNER
from agent.model.image import Image, ImageState
from agent.store import images, usage

_DELETABLE = (ImageState.VERIFIED, ImageState.BAD, ImageState.RETIRED)

_log = log.get("fleet")


class Retention:
    """Used by the controller's thread."""

    def __init__(self, ground: Ground, hands: Hands) -> None:
        self._ground = ground
        self._hands = hands

    def step(self) -> None:
        """Have the images deleted that are over what is kept; nothing while keeping is not limited."""
        for image in surplus(self._ground):
            self._hands.do("delete image", image.id, self._deleting(image))

    def take(self, done: Done) -> None:
        """Tell how a deletion went."""
        if done.key[0] != "delete image":
            return
        if done.fault is None:
            if done.answer:
                _log.info("fleet.image_deleted", image=done.key[1])
        else:
            _log.warning("fleet.image_kept", str(done.fault), image=done.key[1])

    def _deleting(self, image: Image) -> Callable[[], bool]:
        ground = self._ground

        def call() -> bool:
            provider = ground.provider_of(image.provider)
            seen = provider.get_image(str(image.provider_image_id))
            ours = {TAG_OWNER: ground.owner_tag, TAG_IMAGE: image.id}
            if seen is not None and not ours.items() <= seen.tags.items():
                return False
            if retire.in_templates(ground.store, image, ground.group_of):
                return False
            why = f"more than {ground.images_kept} good images"
            retired = retire.retire(ground.store, image, by=FLEET, reason=why)
            retire.delete(ground.store, retired, provider, ground.group_of, by=FLEET)
            return True

        return call


def surplus(ground: Ground) -> list[Image]:
    """Return the images that may be deleted: of each provider and profile all but the last good ones and those in use."""
    if not ground.images_kept:
        return []
    kinds: dict[tuple[str, str], list[Image]] = defaultdict(list)
    for it in images.list_images(ground.store):
        kinds[(it.provider, it.profile)].append(it)
    found = []
    with ground.store.read() as connection:
        for of_kind in kinds.values():
            good = [it for it in of_kind if it.state in images.USABLE]
            kept = {it.id for it in good[: ground.images_kept]}
            found += [
                it
                for it in of_kind
                if it.state in _DELETABLE
                and it.provider_image_id is not None
                and it.id not in kept
                and not usage.of(connection, it.id)
            ]
    return found
