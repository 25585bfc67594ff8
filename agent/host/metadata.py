"""A client for the EC2 instance metadata service, version 2 only.

Standard library only, to keep the agent's import light, and http.client because it never uses a proxy: a
proxy would answer with its own instance's identity. Knows the service's paths and answers, not what the agent
makes of them. Source: "Use the Instance Metadata Service to access instance metadata" (EC2 User Guide).
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar
from urllib.parse import quote, urlsplit

from agent.clock import Deadline
from agent.errors import AgentError, SettingsError

_TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path
_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
_TOKEN_HEADER = "X-aws-ec2-metadata-token"  # noqa: S105 - a name
_BODY_LIMIT_BYTES = 64 * 1024  # user data, the largest answer, is at most 16 KiB


class MetadataUnavailable(AgentError):
    """The metadata service can't be reached, is switched off or does not answer as it should."""

    is_retriable: ClassVar[bool] = True
    exit_code: ClassVar[int] = 69


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """What the service says of the instance; what it leaves out is None."""

    id: str
    ami_id: str | None
    type: str | None
    availability_zone: str | None
    region: str | None
    local_ipv4: str | None
    hostname: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SpotAction:
    """A spot notice: `action` is stop, hibernate or terminate and happens at `at`."""

    action: str
    at: datetime


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    renew: Deadline


class MetadataClient:
    """One instance's metadata. Safe to share between threads; each request is its own connection."""

    def __init__(self, url: str, *, timeout_s: float = 1.0, token_ttl_s: int = 21_600) -> None:
        """Name the service; nothing is sent yet.

        Args:
            url: http://host[:port], IPv6 in brackets.
            timeout_s: for connecting and for each read. The service is a hop away and answers in a few ms.
            token_ttl_s: 1 to 21600, the life of a token.
        Raises: SettingsError for another form of address.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or 80
        except ValueError as error:
            raise SettingsError(f"metadata_url: {url!r}: {error}") from error
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
            raise SettingsError(f"metadata_url: expected http://host[:port], not {url!r}")
        self._url = url.rstrip("/")
        self._host, self._port = parts.hostname, port
        self._timeout_s = timeout_s
        self._ttl_s = token_ttl_s
        self._token: _Token | None = None
        self._token_lock = threading.Lock()

    def get(self, path: str) -> str | None:
        """Return the text at `path` below /latest/, None where the service has none (404).

        A token the service no longer takes (401) is replaced once: an instance that was hibernated, or an
        image of a running agent, wakes up with a token of another life.

        Raises: MetadataUnavailable; trying again later may help.
        """
        token = self._valid_token()
        status, _, body = self._request("GET", f"/latest/{path}", {_TOKEN_HEADER: token.text})
        if status == 401:
            token = self._valid_token(refused=token)
            status, _, body = self._request("GET", f"/latest/{path}", {_TOKEN_HEADER: token.text})
        if status == 404:
            return None
        if status != 200:
            raise MetadataUnavailable(f"metadata service {self._url} answered {status} for {path}")
        return body

    def instance(self) -> Instance:
        """Return who the instance is.

        Raises: MetadataUnavailable.
        """
        found = self.get("meta-data/instance-id")
        if not found or not found.strip():
            raise MetadataUnavailable(f"metadata service {self._url} names no instance-id")
        return Instance(
            id=found.strip(),
            ami_id=self.get("meta-data/ami-id"),
            type=self.get("meta-data/instance-type"),
            availability_zone=self.get("meta-data/placement/availability-zone"),
            region=self.get("meta-data/placement/region"),
            local_ipv4=self.get("meta-data/local-ipv4"),
            hostname=self.get("meta-data/hostname"),
        )

    def tags(self) -> dict[str, str]:
        """Return the instance's tags; empty too where the launch template does not open them to the metadata.

        Raises: MetadataUnavailable.
        """
        keys = (self.get("meta-data/tags/instance") or "").splitlines()
        values = ((key, self.get(f"meta-data/tags/instance/{quote(key, safe='')}")) for key in keys if key)
        return {key: value for key, value in values if value is not None}  # None: removed since the list

    def spot_action(self) -> SpotAction | None:
        """Return the notice that this spot instance will be taken back, None while there is none.

        Raises: MetadataUnavailable, also for a notice that can't be read.
        """
        text = self.get("meta-data/spot/instance-action")
        if text is None:
            return None
        try:
            notice = json.loads(text)
            at = datetime.fromisoformat(notice["time"])
            return SpotAction(action=str(notice["action"]), at=at if at.tzinfo else at.replace(tzinfo=UTC))
        except (ValueError, KeyError, TypeError) as error:
            raise MetadataUnavailable(f"spot notice of {self._url} can't be read: {text[:200]!r}") from error

    def target_lifecycle_state(self) -> str | None:
        """Return where Auto Scaling wants the instance (InService, Terminated ..), None outside a group.

        Raises: MetadataUnavailable.
        """
        text = self.get("meta-data/autoscaling/target-lifecycle-state")
        return text.strip() if text else None

    def user_data(self) -> str | None:
        """Return the text the instance was launched with, None without one.

        Raises: MetadataUnavailable.
        """
        return self.get("user-data")

    def _valid_token(self, refused: _Token | None = None) -> _Token:
        """Return a token that is good for a while: a new one if the present is `refused` or nearly over."""
        with self._token_lock:  # held over the request, so that many threads fetch one token, not many
            if self._token is None or self._token is refused or self._token.renew.is_passed:
                self._token = self._new_token()
            return self._token

    def _new_token(self) -> _Token:
        # The life is counted from before the request, and a tenth (a minute at most) is left unused, so a
        # token never ends on its way.
        renew = Deadline.after(self._ttl_s - min(60.0, self._ttl_s / 10))
        status, reason, body = self._request(
            "PUT", _TOKEN_PATH, {_TTL_HEADER: str(self._ttl_s), "Content-Length": "0"}
        )
        if status == 403:
            raise MetadataUnavailable(
                f"metadata service {self._url} is switched off for this instance (403); "
                "set HttpEndpoint to enabled in the instance's metadata options"
            )
        if status != 200 or not body.strip():
            raise MetadataUnavailable(f"metadata service {self._url} gave no token: {status} {reason}")
        return _Token(body.strip(), renew)

    def _request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str, str]:
        import http.client  # only here: elsewhere than on EC2 nobody asks

        line = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            line.request(method, path, headers={**headers, "Connection": "close"})
            answer = line.getresponse()
            body = answer.read(_BODY_LIMIT_BYTES + 1)
        except TimeoutError as error:
            # A token's answer travels no further than the hop limit: behind a container's bridge none comes.
            hint = (
                "; in a container the instance's HttpPutResponseHopLimit must be 2" if method == "PUT" else ""
            )
            raise MetadataUnavailable(
                f"metadata service {self._url}: no answer to {method} {path} in {self._timeout_s:g} s{hint}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise MetadataUnavailable(f"metadata service {self._url}: {method} {path}: {error!r}") from error
        finally:
            line.close()
        if len(body) > _BODY_LIMIT_BYTES:
            raise MetadataUnavailable(
                f"metadata service {self._url}: {path} is over {_BODY_LIMIT_BYTES} bytes"
            )
        return answer.status, answer.reason, body.decode("utf-8", errors="replace")
