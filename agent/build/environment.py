"""The environment of a step: a short list let in from the agent's, the standard variables, what the user said.

The agent's own environment may hold credentials, so nothing of it passes that is not named in the setting
`environment_allow`.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping

from agent.build.attempt import AttemptContext
from agent.model.plan import PlannedPipeline, PlannedStep

# What a login shell on Debian has; a daemon started by systemd has less.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def base(context: AttemptContext) -> dict[str, str]:
    """Return the variables that every process of the attempt has."""
    files = context.files
    user = _user_name()
    variables = {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8"}
    variables |= {name: os.environ[name] for name in context.settings.environment_allow if name in os.environ}
    variables |= {
        "HOME": str(files.home),
        "TMPDIR": str(files.tmp),
        "USER": user,
        "LOGNAME": user,
        "SHELL": context.settings.shell[0],
        "CI": "true",
        "BUILD_ID": context.ref.build_id,
        "BUILD_ATTEMPT": str(context.ref.number),
        "BUILD_PROJECT": context.claim.project,
        "BUILD_QUEUE": context.claim.queue,
        "BUILD_SERVER": context.shop.server_name,
        "BUILD_WORKSPACE": str(files.source),
    }
    if context.secrets_file is not None:
        variables["BUILD_SECRETS_FILE"] = str(context.secrets_file.path)
    known = {"BUILD_COMMIT": context.commit, "BUILD_BRANCH": context.branch}
    return variables | {name: value for name, value in known.items() if value}


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user that only a container's start has named
        return str(os.getuid())


def of_step(
    context: AttemptContext, pipeline: PlannedPipeline, step: PlannedStep, secrets: Mapping[str, str]
) -> dict[str, str]:
    """Return a step's variables; what the definition says wins over the standard ones it may set."""
    variables = base(context) | {
        "BUILD_PIPELINE": pipeline.name,
        "BUILD_STEP": str(step.step),
        "BUILD_STEP_NAME": step.name,
        "TERM": "xterm-256color" if step.pty else "dumb",
    }
    if pipeline.environment:
        variables["BUILD_ENVIRONMENT"] = pipeline.environment
    return variables | dict(secrets) | dict(step.env)
