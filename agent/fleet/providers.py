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
    try:
        from agent.fleet.ec2.options import of_settings
        from agent.fleet.ec2.provider import Ec2Provider
    except ModuleNotFoundError as error:
        raise ProviderError(
            f"for EC2, {error.name} is needed, which is not here: pip install 'build-agent[aws]'"
        ) from error
    return Ec2Provider(of_settings(settings))
