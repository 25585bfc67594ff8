"""One build on one server: source, workspace, steps as subprocess trees, and how they end."""
