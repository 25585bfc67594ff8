#!/usr/bin/env bash
# Frees a server of all that is its own, before an image is made of it: identity, keys, tokens, histories, logs, caches.
# One table says what that is, for the clean-up and for the check, so neither knows of something that the other does not.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: scrub.sh [--check] [--root DIR]

Removes what must not be in an image. The server is good for nothing afterwards but to be stopped.

  --check     change nothing: print each leftover as "path: why", and end with 1 if there is one
  --root DIR  a root filesystem other than /

Exit codes: 0 done, or nothing found; 1 a leftover, or a server that must not become an image; 64 wrong words.
USAGE
}

root='' check=no found=0

while (($#)); do
    case $1 in
        --check) check=yes ;;
        --root)
            [[ $# -ge 2 && -d $2 ]] || {
                usage >&2
                exit 64
            }
            root=$(realpath "$2")
            root=${root%/}
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            usage >&2
            exit 64
            ;;
    esac
    shift
done

fail() {
    printf 'scrub.sh: %s\n' "$*" >&2
    exit 1
}

# tell PATH WHY: a leftover, by its path in the image, with what a terminal would obey made harmless.
tell() {
    local path=${1#"$root"}
    printf '%s: %s\n' "${path//[[:cntrl:]]/?}" "$2"
    found=$((found + 1))
}

# What one path is to come to: not there at all, or without a byte in it.
remove() {
    if [[ $check == yes ]]; then
        tell "$1" "$2"
    else
        rm -rf --one-file-system -- "$1"
    fi
}
truncate_file() {
    [[ -s $1 && -f $1 ]] || return 0
    if [[ $check == yes ]]; then
        tell "$1" "$2"
    else
        : >"$1"
    fi
}

# gone WHY PATTERN..: nothing may be there.
gone() {
    local why=$1 pattern path
    shift
    for pattern in "$@"; do
        while IFS= read -r path; do
            remove "$path" "$why"
        done < <(compgen -G "$root$pattern" || true)
    done
}

# bare WHY FOLDER..: the folder may be there, with nothing in it; hidden names count.
bare() {
    local why=$1 folder
    shift
    for folder in "$@"; do
        gone "$why" "$folder/*" "$folder/.[!.]*"
    done
}

# Homes of people and services, by /etc/passwd and by where they lie; the agent's own is emptied as a whole.
homes() {
    {
        echo /root
        (cd "$root/" && compgen -G 'home/*' | sed 's,^,/,') || true
        awk -F: '$6 ~ /^\/(home|root|srv|opt|var\/lib)\/./ {print $6}' "$root/etc/passwd" 2>/dev/null || true
    } | grep -vxE '/var/lib/build-agent/?' | sort -u
}

identity() {
    truncate_file "$root/etc/machine-id" 'identity: every server of the image would be the same machine'
    if [[ ! -L $root/var/lib/dbus/machine-id ]]; then
        gone 'identity: every server of the image would be the same machine' /var/lib/dbus/machine-id
    fi
    gone 'ssh host key: whoever has one server of the image could pose as all others' '/etc/ssh/ssh_host_*'
    gone 'random seed: servers would begin with the same randomness' /var/lib/systemd/random-seed /var/lib/urandom/random-seed
    gone 'key that systemd encrypts credentials with' /var/lib/systemd/credential.secret
    gone 'name of the server that the image was made on' /etc/hostname
    bare 'instance data of cloud-init: it would take itself for a machine that was set up' /var/lib/cloud
    gone 'network of the server that the image was made on' /etc/udev/rules.d/70-persistent-net.rules \
        /etc/network/interfaces.d/50-cloud-init /etc/netplan/50-cloud-init.yaml
    bare 'DHCP lease of another machine' /var/lib/dhcp /var/lib/dhcpcd /var/lib/dhcpcd5 /var/lib/NetworkManager \
        /var/lib/systemd/network
}

agent() {
    gone 'registration of the agent that ran here' /var/lib/build-agent/server-id /var/lib/build-agent/life
    bare 'spool: output of builds of another server' /var/lib/build-agent/spool
    bare 'secret of builds' /etc/build-agent/secrets
    local path
    # What has been named above is not named again.
    while IFS= read -r path; do
        remove "$path" 'state of the agent that ran here'
    done < <(find "$root/var/lib/build-agent" -mindepth 1 -maxdepth 1 ! -name spool ! -name server-id ! -name life 2>/dev/null)
    # Reports of the checks may stay: they say what was seen and hold no identity.
    while IFS= read -r path; do
        remove "$path" 'left by the set-up'
    done < <(find "$root/var/lib/build-agent-setup" -mindepth 1 -maxdepth 1 ! -name 'report*' 2>/dev/null)
    # Settings are given to a server when it starts; those of user data were given to the one that was baked.
    local settings=$root/etc/build-agent/agent.toml
    if [[ -f $settings && $(head -n 1 "$settings") == '#build-agent'* ]]; then
        gone 'settings of another server' /etc/build-agent/agent.toml
    fi
}

people() {
    local home
    while IFS= read -r home; do
        gone 'key: who holds it could log in to every server of the image' "$home/.ssh/authorized_keys*"
        gone 'private key or what ssh knows of hosts' "$home/.ssh/id_*" "$home/.ssh/known_hosts*" "$home/.ssh/config"
        gone 'history of what somebody typed' "$home/.*_history" "$home/.lesshst" "$home/.viminfo" "$home/.wget-hsts" \
            "$home/.python_history" "$home/.local/share/nano" "$home/.sudo_as_admin_successful"
        gone 'token or password' "$home/.netrc" "$home/.npmrc" "$home/.pypirc" "$home/.pip" "$home/.config/pip" \
            "$home/.docker" "$home/.config/containers/auth.json" "$home/.git-credentials" "$home/.config/git/credentials" \
            "$home/.config/gh" "$home/.aws" "$home/.config/gcloud" "$home/.azure" "$home/.kube" "$home/.gem/credentials" \
            "$home/.m2/settings.xml" "$home/.gradle/gradle.properties" "$home/.composer/auth.json" \
            "$home/.config/composer/auth.json" "$home/.cargo/credentials*" "$home/.gnupg" "$home/.pgpass" "$home/.my.cnf" \
            "$home/.yarnrc.yml" "$home/.boto" "$home/.s3cfg"
        gone 'cache' "$home/.cache" "$home/.npm"
    done < <(homes)
    gone 'token or password' /etc/apt/auth.conf '/etc/apt/auth.conf.d/*' /run/containers/0/auth.json
}

# What a person put there on purpose is not removed behind his back: it is named, and the image is not made.
credentials() {
    local path line
    while IFS= read -r path; do
        [[ -f $path ]] || continue
        while IFS= read -r line; do
            tell "$path" "line $line holds a password or token; take it out of the image by hand"
        done < <(grep -niE '^[^#]*([a-z+]+://[^/@[:space:]]*:[^/@[:space:]]+@|_authToken|(password|passwd|token|secret)[a-z_]*"?[[:space:]]*[=:][[:space:]]*"?[^"[:space:]])' \
            "$path" 2>/dev/null | cut -d : -f 1)
    done < <(
        shopt -s nullglob
        printf '%s\n' "$root"/etc/{environment,pip.conf,npmrc,gitconfig,apt/sources.list} "$root"/etc/build-agent/*.toml \
            "$root"/etc/apt/{sources.list.d,apt.conf.d}/* "$root"/etc/profile.d/*
    )
}

traces() {
    gone 'log of another server' '/var/log/journal/*' '/var/log/*.[0-9]' '/var/log/*.gz' '/var/log/*/*.gz' '/var/log/*/*.[0-9]'
    local path
    while IFS= read -r path; do
        truncate_file "$path" 'log of another server'
    done < <(find "$root/var/log" -xdev -type f -size +0 ! -path "$root/var/log/journal/*" 2>/dev/null)
    gone 'cache of packages' '/var/cache/apt/archives/*.deb' '/var/cache/apt/archives/partial/*' '/var/cache/apt/*.bin' \
        '/var/lib/apt/lists/*_*' '/var/lib/apt/lists/partial/*' '/var/cache/debconf/*-old' '/var/lib/dpkg/*-old'
    bare 'mail to people of another server' /var/mail /var/spool/mail
    gone 'program that forbids services to start' /usr/sbin/policy-rc.d
    # Folders that services and X keep here are made anew at each boot, by systemd-tmpfiles.
    while IFS= read -r path; do
        remove "$path" 'temporary file'
    done < <(find "$root/tmp" "$root/var/tmp" -mindepth 1 -maxdepth 1 ! -name 'systemd-private-*' ! -name '.*-unix' 2>/dev/null)
}

refuse() {
    if [[ -e $root/var/lib/build-agent-setup/unfinished ]]; then
        fail "/var/lib/build-agent-setup/unfinished: the set-up has not come to its good end; run setup.sh again"
    fi
    if [[ -z $root && -d /run/systemd/system ]] && systemctl --quiet is-active build-agent.service; then
        fail "build-agent is running and would write what is removed; stop it first: systemctl stop build-agent"
    fi
}

# What writes while it is cleaned away.
quiet() {
    [[ -z $root && -d /run/systemd/system ]] || return 0
    journalctl --quiet --relinquish-var || true
    systemctl --quiet stop systemd-random-seed.service 2>/dev/null || true
}

if [[ $check == no ]]; then
    [[ $EUID -eq 0 || -n $root ]] || fail "run it as root"
    refuse
    quiet
fi
for part in identity agent people traces; do
    [[ $check == yes ]] || echo "scrub: $part"
    "$part"
done
if [[ $check == yes ]]; then
    credentials
    if ((found)); then
        exit 1
    fi
    echo "nothing is left of the server that the image is made on"
else
    mkdir -p "$root/etc"
    : >"$root/etc/machine-id"
    sync -f "$root/etc"
    echo "scrub: done; look with scrub.sh --check"
fi
