"""What there is at EC2: AMIs, snapshots, volumes, key pairs, security groups; found by tag, and removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent import clock
from agent.clock import Deadline
from agent.fleet.ec2 import form
from agent.fleet.ec2.api import Api, Refused
from agent.fleet.provider import Leftover, ProviderError, ProviderUnavailable

# An AMI that was deregistered holds its snapshots for a moment more.
_LETS_GO_S = 30.0
_IN_USE = frozenset({"InvalidSnapshot.InUse", "DependencyViolation", "VolumeInUse"})


class Left:
    """Everything of one account and region but its instances."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._removers: Mapping[str, Callable[[str], None]] = {
            "machine": self._terminate,
            "image": self._delete_image,
            "snapshot": self._delete_snapshot,
            "volume": lambda name: self._delete("delete_volume", "InvalidVolume.NotFound", VolumeId=name),
            "key pair": lambda name: self._delete("delete_key_pair", "InvalidKeyPair.NotFound", KeyName=name),
            "security group": lambda name: self._delete(
                "delete_security_group", "InvalidGroup.NotFound", GroupId=name
            ),
        }

    def image(self, image_id: str) -> Any | None:
        """Return an AMI, `None` when there is none of that id any more."""
        try:
            found = self._api.call("describe_images", ImageIds=[image_id])["Images"]
        except Refused as error:
            if error.code.startswith("InvalidAMIID"):
                return None
            raise
        return found[0] if found and found[0].get("State") != "deregistered" else None

    def images(self, tags: Mapping[str, str]) -> list[Any]:
        """Return the account's own AMIs that carry all these tags."""
        return list(self._api.pages("describe_images", "Images", Owners=["self"], Filters=form.filters(tags)))

    def named(self, name: str) -> list[Any]:
        """Return the account's own AMIs of that name, which are one at most."""
        found = self._api.pages(
            "describe_images", "Images", Owners=["self"], Filters=form.filters({}, name=[name])
        )
        return [it for it in found if it.get("Name") == name]

    def beside_machines(self, tags: Mapping[str, str]) -> list[Leftover]:
        """Return all that carries these tags and is no instance, in the order in which it can be removed."""
        images = self.images(tags)
        names = {str(it["ImageId"]) for it in images}
        of_images = {snapshot for it in images for snapshot in form.snapshots_of(it)}
        by_tag = form.filters(tags)
        found = [_leftover("image", it["ImageId"], it) for it in images]
        found += [
            _leftover("snapshot", it["SnapshotId"], it)
            for it in self._api.pages("describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=by_tag)
            if it["SnapshotId"] not in of_images and not form.names_image(it, names)
        ]
        # What is attached goes with its instance.
        free = form.filters(tags, status=["available"])
        found += [
            _leftover("volume", it["VolumeId"], it)
            for it in self._api.pages("describe_volumes", "Volumes", Filters=free)
        ]
        found += [
            _leftover("key pair", it["KeyName"], it)
            for it in self._api.call("describe_key_pairs", Filters=by_tag)["KeyPairs"]
        ]
        found += [
            _leftover("security group", it["GroupId"], it)
            for it in self._api.pages("describe_security_groups", "SecurityGroups", Filters=by_tag)
        ]
        return [it for it in found if tags.items() <= it.tags.items()]

    def remove(self, leftover: Leftover) -> None:
        """Remove one thing, of whatever kind; nothing when it is gone."""
        if leftover.kind not in self._removers:
            raise ProviderError(f"the provider ec2 makes no {leftover.kind!r}")
        self._removers[leftover.kind](leftover.id)

    def _terminate(self, machine_id: str) -> None:
        self._delete("terminate_instances", "InvalidInstanceID.NotFound", InstanceIds=[machine_id])

    def _delete_image(self, image_id: str) -> None:
        record = self.image(image_id)
        if record is None:
            return
        self._api.call_unless(
            {"InvalidAMIID.NotFound", "InvalidAMIID.Unavailable"}, "deregister_image", ImageId=image_id
        )
        for snapshot in form.snapshots_of(record):
            self._delete_snapshot(snapshot)

    def _delete_snapshot(self, snapshot: str) -> None:
        deadline = Deadline.after(_LETS_GO_S)
        while True:
            try:
                self._delete("delete_snapshot", "InvalidSnapshot.NotFound", SnapshotId=snapshot)
            except ProviderUnavailable:
                if deadline.is_passed:
                    raise
                clock.sleep(1.0)
            else:
                return

    def _delete(self, action: str, gone: str, **words: Any) -> None:
        """Delete something, which may be gone. Raises: ProviderUnavailable while something else uses it."""
        try:
            self._api.call_unless({gone}, action, **words)
        except Refused as error:
            if error.code in _IN_USE:
                raise ProviderUnavailable(f"it is in use yet: {error}") from error
            raise


def _leftover(kind: str, name: str, record: Mapping[str, Any]) -> Leftover:
    return Leftover(kind=kind, id=name, tags=form.tags_of(record))
