"""How machines are made at EC2, as the settings say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.config import Settings

# Debian's own account: https://wiki.debian.org/Cloud/AmazonEC2Image
DEBIAN = "136693071363"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ec2Options:
    """Settings of the provider.

    Empty means: region, credentials and profile as boto3 finds them; no instance profile; the account's own key for
    volumes. Without `security_groups` one is made for each machine that is logged in to, open to `ssh_cidr`.
    """

    region: str = ""
    endpoint_url: str = ""
    subnet: str = ""
    security_groups: Sequence[str] = ()
    ssh_cidr: str = ""
    instance_type: str = "m6i.large"
    instance_profile: str = ""
    volume_gib: int = 40
    kms_key: str = ""
    has_public_address: bool = False
    base_owner: str = DEBIAN


def of_settings(settings: Settings) -> Ec2Options:
    """Return what the settings say."""
    return Ec2Options(
        region=settings.ec2_region,
        endpoint_url=settings.ec2_endpoint_url,
        subnet=settings.ec2_subnet,
        security_groups=settings.ec2_security_groups,
        ssh_cidr=settings.ec2_ssh_cidr,
        instance_type=settings.ec2_instance_type,
        instance_profile=settings.ec2_instance_profile,
        volume_gib=settings.ec2_volume_gib,
        kms_key=settings.ec2_kms_key,
        has_public_address=settings.ec2_ssh_address == "public",
    )
