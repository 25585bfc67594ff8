"""Phases with a bare server: it is launched, logged in to, and gets the set-up scripts and the package."""

from __future__ import annotations

from agent.errors import AgentError
from agent.fleet import user_data
from agent.fleet.provider import LaunchSpec, Machine, MachineState, SshAccess
from agent.fleet.push import bring
from agent.fleet.work import BakeFailed, Work

BUILDER = "builder"
TRIAL = "trial"
_CONSOLE_LINES = 15


def launch(work: Work) -> None:
    """Start a server from the base."""
    launch_as(work, BUILDER, image=str(work.options["base_id"]), data=user_data.of_builder())


def connect(work: Work) -> None:
    """Log in for the first time, to the host key that the provider knows."""
    answer = work.remote(BUILDER).run(
        '. /etc/os-release; echo "$PRETTY_NAME, Linux $(uname -r), $(uname -m)"'
    )
    work.say(f"logged in: {answer.output.strip()}")
    # An agent that the base holds is not to run while it is replaced, nor to count as a unit that failed.
    work.remote(BUILDER).run(
        "systemctl stop build-agent build-agent-failed 2>/dev/null; systemctl reset-failed", timeout_s=120
    )


def push(work: Work) -> None:
    """Bring the set-up scripts and the Debian package."""
    push_to(work, BUILDER, with_deb=True)


def push_to(work: Work, role: str, *, with_deb: bool) -> None:
    """Put the scripts, and the package, where they belong."""
    remote, bundle, places = work.remote(role), work.bundle, work.places
    bring(remote, bundle, work=places.work, setup=places.setup, with_deb=with_deb)
    work.say(f"set-up scripts: {len(bundle.scripts):,} bytes packed, {bundle.scripts_sha256[:12]}")
    if with_deb and bundle.deb is not None:
        work.say(f"package: {bundle.deb_name}, {len(bundle.deb):,} bytes")


def launch_as(work: Work, role: str, *, image: str, data: str) -> None:
    """Start the server of a role, unless it runs; put on record where SSH answers and with which host keys."""
    work.key.make()
    number = work.made.get(f"{role}_number", 1)
    token = f"{work.bake_id}-{role}-{number}"
    work.note(**{f"{role}_number": number})
    spec = LaunchSpec(
        image=image,
        name=f"{role}-{work.image.version}",
        token=token,
        tags=work.tags,
        user_data=data,
        ssh=SshAccess(public_key=work.key.public(f"bake-{work.bake_id}"), user=work.ssh_user),
    )
    machine = work.ask(lambda: work.provider.launch(spec))
    work.note(**{role: machine.id})
    work.say(f"server {machine.id} from {image}")

    def look() -> tuple[Machine, list[str]] | None:
        found = work.provider.get(machine.id)
        if found is None or found.state in (MachineState.TERMINATING, MachineState.TERMINATED):
            raise BakeFailed(f"server {machine.id} ended while it was started")
        if found.state is not MachineState.RUNNING or found.address is None:
            return None
        keys = list(work.provider.host_keys(machine.id))
        return (found, keys) if keys else None

    def late() -> AgentError:
        limit = f"{work.limits.launch_s:g} s"
        return BakeFailed(f"server {machine.id} did not come up within {limit}{console_of(work, machine.id)}")

    found, host_keys = work.wait(look, work.limits.launch_s, else_raise=late)
    at = {"address": found.address, "port": found.ssh_port, "host_keys": host_keys}
    work.note(**{f"{role}_at": at})
    work.say(f"server {machine.id} runs at {found.address}")


def console_of(work: Work, machine_id: str) -> str:
    """Return the end of what a server wrote to its console, for a message; nothing if that can't be had."""
    try:
        lines = work.provider.console_output(machine_id).strip().splitlines()
    except AgentError:
        return ""
    shown = [line.rstrip() for line in lines[-_CONSOLE_LINES:]]
    return "; its console ends:\n" + "\n".join(shown) if shown else ""


def forget(work: Work, role: str) -> None:
    """End the server of a role and take it off the record; the next one of that role is another."""
    machine_id = work.made.get(role)
    remote = work.remotes.pop(role, None)
    if remote is not None:
        remote.close()
    if machine_id is not None:
        work.ask(lambda: work.provider.terminate(str(machine_id)))
    number = work.made.get(f"{role}_number", 0) + 1
    work.note(**{role: None, f"{role}_at": None, f"{role}_number": number})
