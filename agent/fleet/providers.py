"""Which provider the settings name; each is imported when it is asked for."""

from __future__ import annotations

from agent.config import Settings
from agent.fleet.provider import Provider, ProviderError


def make(settings: Settings, name: str | None = None) -> Provider:
    """Return the provider that `name`, or else the settings name. Raises: ProviderError."""
    name = name or settings.fleet_provider
    if name == "local":
        from agent.fleet.local.provider import LocalProvider

        return LocalProvider(settings.local_dir, settings.local_subnet)
    raise ProviderError(f"no provider {name!r}: local")
