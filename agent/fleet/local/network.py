"""The network of local machines: a bridge on the host, a port for each machine, and translation on the way out.

All of it is made when the first machine starts and removed when the last one has gone. The bridge and the table of
nftables are named after `local_dir`, so that two of them on one host don't meet. The host's own rules are not touched.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from agent.fleet.local import address, host_command, state
from agent.fleet.provider import ProviderError

METADATA_ADDRESS = "169.254.169.254"
_LIMIT_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """The network of one `local_dir`.

    `host_net` is a descriptor of the host's network namespace, for a process in another.
    """

    local_dir: Path
    subnet: IPv4Network
    host_net: int | None = None

    @property
    def bridge(self) -> str:
        """The name of its bridge."""
        return f"ba-{hashlib.sha256(os.fsencode(self.local_dir)).hexdigest()[:8]}"

    @property
    def table(self) -> str:
        """The name of its table of nftables."""
        return self.bridge.replace("-", "_")

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock of the network."""
        with state.locked(self.local_dir / "network.lock"):
            yield

    def ensure(self) -> None:
        """Make bridge and translation unless they are there. Hold the lock until the port is made, too."""
        gateway = f"{address.gateway(self.subnet)}/{self.subnet.prefixlen}"
        links = self._links()
        if self.bridge not in links:
            self._refuse_clash()
            self._ip(f"link add {self.bridge} type bridge\n", "make the bridge")
        # The bridge takes no part in any spanning tree and has no IPv6 of its own.
        self._ip(
            f"link set {self.bridge} type bridge forward_delay 0 stp_state 0\n"
            f"address replace {gateway} dev {self.bridge}\n"
            f"link set {self.bridge} up\n",
            "set the bridge up",
        )
        self._run(["nft", "-f", "-"], "translate addresses", stdin=self._rules())
        # Left on when the machines have gone: somebody else may count on it by then.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")

    def attach(self, port: str, machine_pid: int) -> None:
        """Make a machine's port on the bridge, its other end `eth0` in the network namespace of a process."""
        with suppress(ProviderError):  # one that a dead keeper left behind
            self._ip(f"link delete {port}\n", "remove an old port")
        self._ip(
            f"link add {port} type veth peer name eth0 netns {machine_pid}\n"
            f"link set {port} master {self.bridge}\nlink set {port} up\n",
            f"connect {port}",
        )

    def release(self, port: str) -> None:
        """Remove a machine's port, then bridge and translation if it was the last. Hold the lock."""
        if port in self._links():
            with suppress(ProviderError):  # the kernel removes it with the namespace; either may be first
                self._ip(f"link delete {port}\n", f"remove port {port}")
        self.release_if_unused()

    def release_if_unused(self) -> None:
        """Remove bridge and translation if no machine is on it. Hold the lock."""
        if self.bridge not in self._links() or self._links("master", self.bridge):
            return
        self._ip(f"link delete {self.bridge}\n", "remove the bridge")
        self._run(
            ["nft", "-f", "-"],
            "remove the table",
            stdin=f"table ip {self.table}\ndelete table ip {self.table}\n",
        )

    def _links(self, *words: str) -> list[str]:
        text = self._run(["ip", "-json", "link", "show", *words], "list network links")
        return [link["ifname"] for link in json.loads(text or "[]") if "ifname" in link]

    def _refuse_clash(self) -> None:
        for link in json.loads(self._run(["ip", "-json", "-4", "address"], "list addresses") or "[]"):
            for own in link.get("addr_info", ()):
                other = IPv4Network(f"{own['local']}/{own['prefixlen']}", strict=False)
                if other.overlaps(self.subnet):
                    raise ProviderError(
                        f"{self.subnet} is in use on this host ({link['ifname']} has {own['local']}/{own['prefixlen']}); "
                        "set local_subnet to another private subnet"
                    )

    def _rules(self) -> str:
        # Made anew as a whole, in one transaction, so that it is the same whatever was there.
        return (
            f"table ip {self.table}\ndelete table ip {self.table}\ntable ip {self.table} {{\n"
            "  chain postrouting {\n    type nat hook postrouting priority srcnat;\n"
            f'    ip saddr {self.subnet} oifname != "{self.bridge}" masquerade\n  }}\n'
            "  chain forward {\n    type filter hook forward priority filter;\n"
            f'    oifname "{self.bridge}" ct state established,related accept\n'
            f'    iifname "{self.bridge}" accept\n  }}\n}}\n'
        )

    def _ip(self, batch: str, what: str) -> None:
        self._run(["ip", "-batch", "-"], what, stdin=batch)

    def _run(self, argv: Sequence[str], what: str, *, stdin: str = "") -> str:
        if self.host_net is None:
            return host_command.run(argv, what=what, limit_s=_LIMIT_S, stdin=stdin)
        enter = ["nsenter", f"--net=/proc/self/fd/{self.host_net}", *argv]
        return host_command.run(enter, what=what, limit_s=_LIMIT_S, stdin=stdin, keep_fds=(self.host_net,))


def configure_inside(own: str, subnet: IPv4Network) -> None:
    """Give this process' network namespace its addresses and the way out; again after each boot.

    The metadata address lies on the loopback link: it is answered inside the namespace, and never leaves it.
    """
    batch = (
        "link set lo up\n"
        f"address replace {METADATA_ADDRESS}/32 dev lo\n"
        "address flush dev eth0 scope global\n"
        f"address add {own}/{subnet.prefixlen} broadcast + dev eth0\n"
        "link set eth0 up\n"
        f"route replace default via {address.gateway(subnet)}\n"
    )
    host_command.run(
        ["ip", "-batch", "-"], what="set up the machine's network", limit_s=_LIMIT_S, stdin=batch
    )
