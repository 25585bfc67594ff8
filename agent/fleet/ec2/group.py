"""An EC2 Auto Scaling group as the engine of a pool, and the launch template that it starts instances from.

The group is the operator's own: subnets, type, network, hooks. Ours are its number, the protection of its instances, the
answers to its hooks, and the versions of its template that name another image. Sources: EC2 Auto Scaling User Guide,
"Lifecycle hooks" and "Instance scale-in protection".
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from typing import Any

from agent.fleet.ec2.api import Api, Refused
from agent.fleet.group import GroupState, Mate
from agent.fleet.provider import ProviderError

# As many as SetInstanceProtection takes.
_PROTECTED_AT_ONCE = 50
_WAITING = ("Pending:Wait", "Terminating:Wait")


class AutoScalingGroup:
    """One group. `scaling` calls EC2 Auto Scaling, `ec2` EC2. Raises: as `Api`."""

    def __init__(self, name: str, *, scaling: Api, ec2: Api) -> None:
        self.name = name
        self._scaling = scaling
        self._ec2 = ec2

    def want(self, servers: int) -> None:
        """Say how many; the group's own bounds hold."""
        record = self._record()
        bounded = max(int(record["MinSize"]), min(servers, int(record["MaxSize"])))
        self._scaling.call(
            "set_desired_capacity",
            AutoScalingGroupName=self.name,
            DesiredCapacity=bounded,
            HonorCooldown=False,
        )

    def look(self) -> GroupState:
        """Return the group's number and its instances, those among them that a hook holds."""
        record = self._record()
        images = self._images([it["InstanceId"] for it in record["Instances"]])
        mates = [
            Mate(
                id=it["InstanceId"],
                image=images.get(it["InstanceId"], ""),
                is_protected=bool(it["ProtectedFromScaleIn"]),
                is_leaving=it["LifecycleState"].startswith(("Terminat", "Detach")),
                waits_for=self._hook(it["LifecycleState"]),
            )
            for it in record["Instances"]
        ]
        return GroupState(desired=int(record["DesiredCapacity"]), mates={it.id: it for it in mates})

    def protect(self, ids: Collection[str], *, on: bool) -> None:
        """Protect instances from the group's scale-in, or no longer."""
        every = sorted(ids)
        for start in range(0, len(every), _PROTECTED_AT_ONCE):
            self._scaling.call(
                "set_instance_protection",
                AutoScalingGroupName=self.name,
                InstanceIds=every[start : start + _PROTECTED_AT_ONCE],
                ProtectedFromScaleIn=on,
            )

    def end(self, machine_id: str) -> None:
        """End an instance and want one fewer."""
        try:
            self._scaling.call(
                "terminate_instance_in_auto_scaling_group",
                InstanceId=machine_id,
                ShouldDecrementDesiredCapacity=True,
            )
        except Refused as error:
            # Gone, or the group's already: at its smallest it may not want one fewer, and starts another.
            if error.code != "ValidationError":
                raise
            record = self._record()
            if machine_id in {it["InstanceId"] for it in record["Instances"]}:
                self._scaling.call(
                    "terminate_instance_in_auto_scaling_group",
                    InstanceId=machine_id,
                    ShouldDecrementDesiredCapacity=False,
                )

    def complete(self, mate: Mate) -> None:
        """Let an instance go on that a hook holds."""
        self._answer(mate, "complete_lifecycle_action", LifecycleActionResult="CONTINUE")

    def hold(self, mate: Mate) -> None:
        """Ask for the hook's time once more."""
        self._answer(mate, "record_lifecycle_action_heartbeat")

    def image(self) -> str:
        """Return the AMI of the template's version that the group uses."""
        return str(self._template_data().get("ImageId", ""))

    def start_from(self, image: str, user_data: str) -> None:
        """Make a version of the template with another AMI the one that the group uses."""
        template = self._template()
        made = self._ec2.call(
            "create_launch_template_version",
            LaunchTemplateId=template["LaunchTemplateId"],
            SourceVersion=str(template["Version"]),
            VersionDescription=f"build-agent: {image}",
            LaunchTemplateData={
                "ImageId": image,
                "UserData": base64.b64encode(user_data.encode()).decode(),
                "MetadataOptions": {
                    "HttpTokens": "required",
                    "HttpPutResponseHopLimit": 1,
                    "HttpEndpoint": "enabled",
                    "InstanceMetadataTags": "enabled",
                },
            },
        )
        self._scaling.call(
            "update_auto_scaling_group",
            AutoScalingGroupName=self.name,
            LaunchTemplate={
                "LaunchTemplateId": template["LaunchTemplateId"],
                "Version": str(made["LaunchTemplateVersion"]["VersionNumber"]),
            },
        )

    def _answer(self, mate: Mate, action: str, **more: str) -> None:
        try:
            self._scaling.call(
                action,
                AutoScalingGroupName=self.name,
                LifecycleHookName=mate.waits_for,
                InstanceId=mate.id,
                **more,
            )
        except Refused as error:
            # No such action any more: its time is over, or it was completed by an answer that got lost.
            if error.code != "ValidationError":
                raise

    def _hook(self, state: str) -> str | None:
        """Return the hook that holds an instance in a state."""
        if state not in _WAITING:
            return None
        kind = "LAUNCHING" if state.startswith("Pending") else "TERMINATING"
        hooks = self._scaling.call("describe_lifecycle_hooks", AutoScalingGroupName=self.name)
        names = [
            it["LifecycleHookName"]
            for it in hooks["LifecycleHooks"]
            if it["LifecycleTransition"].endswith(kind)
        ]
        return str(names[0]) if names else None

    def _images(self, ids: Collection[str]) -> dict[str, str]:
        if not ids:
            return {}
        found = self._ec2.pages("describe_instances", "Reservations", InstanceIds=sorted(ids))
        return {it["InstanceId"]: it["ImageId"] for each in found for it in each["Instances"]}

    def _record(self) -> Mapping[str, Any]:
        found = self._scaling.call("describe_auto_scaling_groups", AutoScalingGroupNames=[self.name])
        if not found["AutoScalingGroups"]:
            raise ProviderError(f"EC2 has no Auto Scaling group {self.name!r} in this region")
        record: Mapping[str, Any] = found["AutoScalingGroups"][0]
        return record

    def _template(self) -> Mapping[str, Any]:
        record = self._record()
        template: Mapping[str, Any] | None = record.get("LaunchTemplate")
        if template is None:
            raise ProviderError(f"Auto Scaling group {self.name} has no launch template of its own")
        return template

    def _template_data(self) -> Mapping[str, Any]:
        template = self._template()
        found = self._ec2.call(
            "describe_launch_template_versions",
            LaunchTemplateId=template["LaunchTemplateId"],
            Versions=[str(template["Version"])],
        )
        data: Mapping[str, Any] = found["LaunchTemplateVersions"][0]["LaunchTemplateData"]
        return data
