"""Images taken out of use, and deleted where that is asked for."""

from __future__ import annotations

from agent.fleet.provider import Provider
from agent.model.image import Image, ImageState
from agent.store import images
from agent.store.engine import Store


def retire(store: Store, image: Image, provider: Provider | None, *, by: str, reason: str | None) -> Image:
    """Retire an image; with its provider, delete it there. One that is retired already may still be deleted.

    Raises: StateConflict for one that servers are started from by default, or whose bake goes on; ProviderError when
        something at the provider stands on it: it is retired then, and not deleted.
    """
    if image.state is not ImageState.RETIRED:
        images.retire(store, image.id, by=by, reason=reason)
    if provider is not None and image.provider_image_id is not None:
        provider.delete_image(image.provider_image_id)
        images.note_deleted(store, image.id, by=by)
    return images.get(store, image.id)
