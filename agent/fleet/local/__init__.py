"""Machines on this host: systemd-nspawn over layers of overlayfs, each with a network and metadata of its own."""
