"""The subnet of local machines: which address is the host's, which are taken, which comes next.

Pure arithmetic; whoever takes an address holds the lock of the state.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network

from agent.fleet.provider import ProviderError, ProviderUnavailable


def subnet_of(text: str) -> IPv4Network:
    """Read a private IPv4 subnet of 6 to 65,534 addresses, such as 10.213.0.0/24.

    Raises: ProviderError.
    """
    try:
        subnet = IPv4Network(text)
    except ValueError as error:
        raise ProviderError(
            f"local_subnet {text!r} is no IPv4 subnet: {error}; an example: 10.213.0.0/24"
        ) from error
    if (
        not subnet.is_private
        or subnet.is_link_local
        or subnet.is_loopback
        or not 16 <= subnet.prefixlen <= 29
    ):
        raise ProviderError(
            f"local_subnet {text} must be private and from /16 to /29 in size, such as 10.213.0.0/24"
        )
    return subnet


def gateway(subnet: IPv4Network) -> IPv4Address:
    """Return the host's address in the subnet: the first."""
    return subnet.network_address + 1


def free_address(subnet: IPv4Network, taken: Collection[str]) -> IPv4Address:
    """Return the lowest address that nobody has.

    Raises: ProviderUnavailable when there is none.
    """
    own = gateway(subnet)
    for address in subnet.hosts():
        if address != own and str(address) not in taken:
            return address
    raise ProviderUnavailable(
        f"all {subnet.num_addresses - 3} addresses of {subnet} are taken; terminate a machine or set a larger "
        "local_subnet"
    )
