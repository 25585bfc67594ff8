"""The error tree. Each class says whether trying again may help and which exit code a command ends with.

Owns no behaviour; imports nothing of the project.
"""

from __future__ import annotations

from typing import ClassVar


class AgentError(Exception):
    """Root of every error the project raises on purpose; its text is written for a person."""

    is_retriable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 70


class SettingsError(AgentError):
    """A setting is unknown, malformed or contradicts another."""

    exit_code = 78


class DefinitionError(AgentError):
    """A build definition can't be read; the text names line, column and what was expected."""

    exit_code = 65


class NotFound(AgentError):
    """What was named does not exist."""

    exit_code = 66


class StateConflict(AgentError):
    """What was asked does not fit the state the thing is in."""

    exit_code = 73


class StoreError(AgentError):
    """The database did not do what was asked."""

    exit_code = 69


class StoreUnavailable(StoreError):
    """The database can't be reached or timed out; nothing was written."""

    is_retriable = True


class StoreRejected(StoreError):
    """The database refused the data itself; sending the same again will not help."""

    exit_code = 70


class SchemaMismatch(StoreError):
    """The database's schema is not the one this version knows."""

    exit_code = 78


class QueueUnavailable(AgentError):
    """Redis can't be reached or timed out."""

    is_retriable = True
    exit_code = 69


class JobRefused(AgentError):
    """A job is not one this agent may run: malformed, of a later version, or naming another function."""

    exit_code = 65


class SourceError(AgentError):
    """The source can't be had as the definition names it: no such commit, repository or folder."""


class SourceUnavailable(AgentError):
    """The source can't be had now: the network or the machine failed, not the definition."""

    is_retriable = True
    exit_code = 69


class WorkspaceError(AgentError):
    """A workspace could not be made, filled or removed."""

    is_retriable = True


class SecretError(AgentError):
    """A secret that a definition names is not to be had on this server."""


class AgentFailed(AgentError):
    """The daemon can't go on; the text is the reason it stops with."""


class ServerUnfit(AgentError):
    """This server must not take builds: it is set up in part, or can't run one. Starting it again will not help."""

    exit_code = 78
