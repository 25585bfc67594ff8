"""How a job's definition and the one in the repository become one.

Owns who wins. Works on the documents of definitions that are valid already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# What a repository's file can't say: the server, the code and the secrets are chosen before its first byte
# is read, and who may push to a branch must not be who grants its builds a secret.
_JOB_ONLY = frozenset(
    {"version", "project", "source", "definition_file", "secrets", "queue", "tags", "max_attempts"}
)


def merge_documents(file: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """Join the documents of two valid definitions; `file` is taken apart for it.

    What the job says wins, whole key by whole key; only `env` is joined name by name, and a variable of
    the job also wins over those of the file's pipelines and steps.
    """
    for key in _JOB_ONLY:
        file.pop(key, None)
    if job.keys() & {"steps", "pipelines"}:  # two forms of one key
        file.pop("steps", None)
        file.pop("pipelines", None)
    env = job.get("env", {})
    for inner in _inner_envs(file):
        for name in env.keys() & inner.keys():
            del inner[name]
    if "env" in file:
        job = {**job, "env": {**file["env"], **env}}
    return {**file, **job}


def _inner_envs(document: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Find every `env` below the top level of a valid document."""
    pipelines = [*document.get("pipelines", {}).values(), *document.get("deploy", {}).values()]
    steps = [*document.get("setup", ()), *document.get("steps", ())]
    for pipeline in pipelines:
        steps.extend(pipeline["steps"])
    yield from (part["env"] for part in [*pipelines, *steps] if isinstance(part, dict) and "env" in part)
