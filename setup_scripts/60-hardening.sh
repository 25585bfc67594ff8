#!/usr/bin/env bash
# Closes what a build server has no use for: passwords over ssh, core dumps, the metadata service for build users.
set -euo pipefail
# shellcheck source=setup_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'USAGE'
usage: 60-hardening.sh [--profile minimal|full]

Hardens sshd, the kernel's settings, core dumps and the way to the metadata service.
USAGE
}

harden_ssh() {
    put /etc/ssh/sshd_config.d/10-build-agent.conf <<'CONF'
# Keys alone: passwords are guessed.
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxAuthTries 4
X11Forwarding no
AllowAgentForwarding no
# A dead client is gone after two minutes.
ClientAliveInterval 60
ClientAliveCountMax 2
CONF
    # sshd asks for a key and a directory even when it only looks; an image has no host keys.
    mkdir -p /run/sshd
    ssh-keygen -q -t ed25519 -N '' -f "$scratch/key" </dev/null
    sshd -t -h "$scratch/key" || fail "sshd does not take its settings; the lines above say why"
    if is_booted && systemctl --quiet is-active ssh.service; then
        systemctl reload ssh.service
    fi
}

# The order of loading is that of names: after Debian's own.
harden_kernel() {
    put /etc/sysctl.d/90-build-agent.conf <<'CONF'
# Builds look at their own processes and at nothing of the kernel's.
kernel.dmesg_restrict = 1
kernel.kptr_restrict = 2
kernel.yama.ptrace_scope = 1
kernel.unprivileged_bpf_disabled = 1
# No core of a process that held secrets, and none into a file.
fs.suid_dumpable = 0
kernel.core_pattern = |/bin/false
# Links and pipes in /tmp that another user laid there.
fs.protected_symlinks = 1
fs.protected_hardlinks = 1
fs.protected_fifos = 2
fs.protected_regular = 2
# A server has one way to the network and believes nobody about others.
net.ipv4.conf.all.rp_filter = 2
net.ipv4.conf.all.accept_redirects = 0
net.ipv4.conf.all.send_redirects = 0
net.ipv4.conf.all.accept_source_route = 0
net.ipv6.conf.all.accept_redirects = 0
# Test runners that watch files, and rootless containers, need more than a desktop.
fs.inotify.max_user_watches = 524288
fs.inotify.max_user_instances = 1024
user.max_user_namespaces = 15000
CONF
    if is_booted; then
        # Each that the kernel here refuses, as in a container, is told and no fault.
        sysctl --quiet --load /etc/sysctl.d/90-build-agent.conf 2>&1 | sed 's/^/not here: /' || true
    fi
}

no_core_dumps() {
    put /etc/security/limits.d/90-build-agent.conf <<<'* hard core 0'
    put /etc/systemd/system.conf.d/90-build-agent.conf <<'CONF'
[Manager]
# A core holds what a build's environment held.
DefaultLimitCORE=0
CONF
    put /etc/systemd/coredump.conf.d/90-build-agent.conf <<'CONF'
[Coredump]
Storage=none
ProcessSizeMax=0
CONF
}

# The credentials of the server's role are at the metadata address, for whoever asks. Only root and the agent may.
close_metadata() {
    put /etc/nftables.d/10-build-agent.nft <<'CONF'
table inet build_agent {
    chain output {
        type filter hook output priority filter; policy accept;
        ip daddr 169.254.169.254 meta skuid != { "root", "build-agent" } counter reject with icmpx admin-prohibited
        ip6 daddr fd00:ec2::254 meta skuid != { "root", "build-agent" } counter reject with icmpx admin-prohibited
    }
}
CONF
    put /etc/nftables.conf 0755 <<'CONF'
#!/usr/sbin/nft -f
# Written by build-agent's set-up; rules are in /etc/nftables.d. Nothing but our own table is replaced: container engines
# have theirs.
table inet build_agent
delete table inet build_agent
include "/etc/nftables.d/*.nft"
CONF
    # Its own way of starting flushes all rules; enabled, it is at work before the network is there.
    put /etc/systemd/system/nftables.service.d/10-build-agent.conf <<'CONF'
[Unit]
# In a container that may not set rules the unit is passed over instead of failing.
ConditionCapability=CAP_NET_ADMIN

[Service]
ExecReload=
ExecReload=/usr/sbin/nft -f /etc/nftables.conf
ExecStop=
ExecStop=-/usr/sbin/nft delete table inet build_agent
CONF
    if nft -c -f /etc/nftables.conf 2>"$scratch/nft"; then
        enable nftables.service
    else
        systemctl --quiet enable nftables.service
        say "nft does not work here and now ($(head -n 1 "$scratch/nft")); the rule is loaded at boot where it does"
    fi
}

begin "$@"
install_packages
harden_ssh
harden_kernel
no_core_dumps
close_metadata
