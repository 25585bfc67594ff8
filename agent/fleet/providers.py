"""Which provider the settings name; each is imported when it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from agent.config import Settings
from agent.fleet.group import Group
from agent.fleet.provider import Provider, ProviderError
from agent.model.fleet import Pool


def make(settings: Settings, name: str | None = None) -> Provider:
    """Return the provider that `name`, or else the settings name. Raises: ProviderError."""
    name = name or settings.fleet_provider
    if name == "local":
        from agent.fleet.local.provider import LocalProvider

        return LocalProvider(settings.local_dir, settings.local_subnet)
    with _aws():
        from agent.fleet.ec2.options import of_settings
        from agent.fleet.ec2.provider import Ec2Provider
    return Ec2Provider(of_settings(settings))


def group(settings: Settings, name: str) -> Group:
    """Return the Auto Scaling group of that name. Raises: ProviderError."""
    with _aws():
        from agent.fleet.ec2.api import Api
        from agent.fleet.ec2.group import AutoScalingGroup
        from agent.fleet.ec2.options import of_settings
    options = of_settings(settings)
    return AutoScalingGroup(name, scaling=Api(options, service="autoscaling"), ec2=Api(options))


def group_of(settings: Settings, pool: Pool) -> Group | None:
    """Return the Auto Scaling group of a pool, if it has one. Raises: ProviderError."""
    return group(settings, pool.policy.group) if pool.policy.group else None


@contextlib.contextmanager
def _aws() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ProviderError(
            f"for EC2, {error.name} is needed, which is not here: pip install 'build-agent[aws]'"
        ) from error
