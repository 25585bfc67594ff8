"""Immutable build servers: the agent, its queue, its store and its commands."""

__version__ = "0.1.0"
