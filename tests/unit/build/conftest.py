"""An attempt on parts that are all real, without a daemon: what tests of steps and pipelines run in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.build.artifacts import Artifacts
from agent.build.attempt import AttemptContext, Shop
from agent.build.cache import Caches
from agent.build.cancel import CancelToken
from agent.build.mirror import Mirrors
from agent.build.secrets import SecretDirectory
from agent.build.workspace import Workspaces
from agent.config import Settings
from agent.metrics.registry import Metrics
from agent.model.build import AttemptRef, Claim
from agent.output.redact import Redactor
from agent.output.spool import Spool
from agent.store.engine import Store

MakeContext = Callable[..., AttemptContext]


@pytest.fixture
def make_context(tmp_path: Path) -> Iterator[MakeContext]:
    """Make the context of an attempt with a workspace; `settings` are those of agent.toml."""
    made: list[AttemptContext] = []

    def make(*, claim: Mapping[str, Any] | None = None, **settings: Any) -> AttemptContext:
        context = _make(tmp_path, settings, claim or {})
        made.append(context)
        return context

    yield make
    for context in made:
        context.token.close()
        context.shop.store.dispose()


def _make(folder: Path, chosen: Mapping[str, Any], claimed: Mapping[str, Any]) -> AttemptContext:
    settings = Settings(state_dir=folder / "state", secrets_dir=folder / "secrets", **chosen)
    settings.state_dir.mkdir(exist_ok=True)
    shop = Shop(
        settings=settings,
        # Reached by no test here: it connects on first use.
        store=Store(f"sqlite:///{folder / 'unused.db'}"),
        spool=Spool(settings.spool_dir, limit_bytes=settings.spool_limit_bytes),
        metrics=Metrics(),
        workspaces=Workspaces(settings.workspace_dir),
        mirrors=Mirrors(settings.mirror_dir),
        caches=Caches(settings.cache_dir, 1 << 30),
        artifacts=Artifacts(settings.artifact_dir),
        secrets=SecretDirectory(settings.secrets_dir),
        server_name="server-one",
        life="0" * 32,
        guardian_acted_since=lambda mono: False,
        annotate=lambda stream, **words: None,
        leaving=threading.Event(),
    )
    fields: dict[str, Any] = {
        "ref": AttemptRef(build_id="build-1", number=2, session="life-1"),
        "definition": {"project": "shop"},
        "queue": "builds",
        "project": "shop",
        "branch": None,
        "commit": None,
        "queued_at": datetime(2026, 5, 4, tzinfo=UTC),
    }
    claim = Claim(**fields | dict(claimed))
    return AttemptContext(
        shop=shop,
        claim=claim,
        token=CancelToken(),
        attempt_log=shop.spool.open(claim.ref),
        redactor=Redactor(),
        workspace=shop.workspaces.create(claim.ref.build_id, claim.ref.number),
        commit=claim.commit,
        branch=claim.branch,
    )
