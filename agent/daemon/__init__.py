"""The daemon: puts the parts together, keeps them running, and takes them apart in order."""
