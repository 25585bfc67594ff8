"""The machine under the agent: who it is, whether it can build, its processes, its service manager."""
