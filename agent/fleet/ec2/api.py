"""Calls of EC2's API: made by way of boto3, their failures put into the words of providers.

Source of the codes: "Error codes for the Amazon EC2 API" (EC2 API Reference).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import boto3
from botocore import exceptions as boto
from botocore.config import Config

from agent.fleet.ec2.options import Ec2Options
from agent.fleet.provider import ProviderError, ProviderUnavailable

POLICY = "packaging/aws/iam-policy.json"
_AWAY = frozenset(
    {
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "InternalError",
        "InternalFailure",
        "ServiceUnavailable",
        "Unavailable",
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "InsufficientAddressCapacity",
    }
)
_FORBIDDEN = frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"})
_CREDENTIALS = frozenset({"AuthFailure", "InvalidClientTokenId", "ExpiredToken", "RequestExpired"})
_FAR = (boto.HTTPClientError, boto.ConnectionError)
_NOBODY = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
_HOW = "boto3 looks for credentials in the environment, ~/.aws and the instance's role"


class Refused(ProviderError):
    """EC2 has refused a call; `code` says why, in its words."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class Api:
    """EC2, or another service of AWS, in one region. Thread-safe, as boto3's clients are.

    Raises: ProviderError without a region.
    """

    def __init__(self, options: Ec2Options, client: Any = None, service: str = "ec2") -> None:
        self.client = client or _client(options, service)

    def call(self, action: str, **words: Any) -> Any:
        """Make one call, `run_instances` for one. Raises: Refused; ProviderError; ProviderUnavailable."""
        try:
            return getattr(self.client, action)(**words)
        except (boto.BotoCoreError, boto.ClientError) as error:
            raise _told(action, error) from error

    def call_unless(self, codes: Collection[str], action: str, **words: Any) -> Any:
        """Make one call; return `None` where it is refused with one of `codes`, as what is there or gone already is."""
        try:
            return self.call(action, **words)
        except Refused as error:
            if error.code in codes:
                return None
            raise

    def pages(self, action: str, key: str, **words: Any) -> Iterator[Any]:
        """Yield the items of a list, over all its pages. Raises: as `call`."""
        try:
            for page in self.client.get_paginator(action).paginate(**words):
                yield from page[key]
        except (boto.BotoCoreError, boto.ClientError) as error:
            raise _told(action, error) from error


def _client(options: Ec2Options, service: str) -> Any:
    config = Config(
        # Waiting is ours: it has to end when a bake is cancelled.
        retries={"mode": "standard", "total_max_attempts": 2},
        connect_timeout=10,
        read_timeout=60,
        user_agent_extra="build-agent",
    )
    try:
        return boto3.session.Session(region_name=options.region or None).client(
            service, endpoint_url=options.endpoint_url or None, config=config
        )
    except boto.NoRegionError as error:
        raise ProviderError("EC2: no region: set ec2_region, or AWS_REGION in the environment") from error
    except (boto.BotoCoreError, ValueError) as error:
        raise ProviderError(f"EC2: {error}") from error


def _told(action: str, error: boto.BotoCoreError | boto.ClientError) -> ProviderError:
    """Say a failure in the words of providers: refused, or away."""
    name = "".join(word.title() for word in action.split("_"))
    if isinstance(error, _NOBODY):
        return ProviderError(f"EC2: {error}; {_HOW}")
    if isinstance(error, _FAR):
        return ProviderUnavailable(f"EC2 can't be reached: {error}")
    if isinstance(error, boto.ClientError):
        return _refusal(name, error.response)
    return ProviderError(f"EC2, {name}: {error}")


def _refusal(name: str, response: Mapping[str, Any]) -> ProviderError:
    """Say an answer of EC2 that is an error."""
    fault = response.get("Error", {})
    code = str(fault.get("Code", ""))
    # The encoded message of a refusal is hundreds of characters that only a permission more can read.
    said = re.sub(r"\s*Encoded authorization failure message:.*", "", fault.get("Message", ""))
    if code in _AWAY or response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
        return ProviderUnavailable(f"EC2, {name}: {code}: {said}")
    if code in _FORBIDDEN:
        return Refused(f"EC2 does not allow ec2:{name}; {POLICY} has what is needed: {said}", code)
    if code in _CREDENTIALS:
        return Refused(f"EC2 does not accept the credentials ({code}): {said}; {_HOW}", code)
    return Refused(f"EC2, {name}: {code}: {said}", code)
