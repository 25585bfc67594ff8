"""Images taken out of use, and deleted where that is asked for."""

from __future__ import annotations

from collections.abc import Callable

from agent.errors import StateConflict
from agent.fleet.group import Group
from agent.fleet.provider import Provider
from agent.model.fleet import Pool
from agent.model.image import Image, ImageState
from agent.store import images, pools, usage
from agent.store.engine import Store

GroupOf = Callable[[Pool], Group | None]


def retire(store: Store, image: Image, *, by: str, reason: str | None) -> Image:
    """Retire an image, if it is not retired yet.

    Raises: StateConflict for one that a pool or a roll-out uses, or whose bake goes on.
    """
    if image.state is not ImageState.RETIRED:
        images.retire(store, image.id, by=by, reason=reason)
    return images.get(store, image.id)


def delete(store: Store, image: Image, provider: Provider, group_of: GroupOf, *, by: str) -> Image:
    """Delete a retired image at its provider.

    Raises: StateConflict while servers or a group's launch template use it; ProviderError when something else at the
        provider stands on it.
    """
    if image.provider_image_id is None:
        return image
    with store.read() as connection:
        users = usage.of(connection, image.id)
    users += in_templates(store, image, group_of)
    if users:
        raise StateConflict(f"image {image.version} is not deleted while it is in use: {'; '.join(users)}")
    provider.delete_image(image.provider_image_id)
    images.note_deleted(store, image.id, by=by)
    return images.get(store, image.id)


def in_templates(store: Store, image: Image, group_of: GroupOf) -> list[str]:
    """Return in words the groups that start their instances from an image. Raises: ProviderError."""
    found = []
    for pool in pools.list_pools(store):
        group = group_of(pool)
        if group is not None and group.image() == image.provider_image_id:
            found.append(f"the launch template of group {group.name}")
    return found
