"""Builds: recorded once, found, paged, refused, cancelled, retried."""

from __future__ import annotations

import pytest

from agent.errors import NotFound, StateConflict, StoreRejected
from agent.model.build import BuildState, NewBuild
from agent.model.outcome import Outcome
from agent.store import attempts, audit, builds
from agent.store.engine import Store
from tests.integration.conftest_store import claim, ended, make_build, make_server, race, running


def test_build_is_recorded_once(store: Store) -> None:
    def submit(queue: str) -> bool:
        return builds.create(store, NewBuild(id="build-1", project="shop", queue=queue, definition={"a": 1}))

    results = race(*(lambda n=n: submit(f"queue-{n}") for n in range(8)))
    assert results.count(True) == 1
    assert results.count(False) == 7
    build = builds.get(store, "build-1")
    assert build.queue == f"queue-{results.index(True)}"
    assert (build.state, build.attempt, build.created_at) == (BuildState.QUEUED, 0, build.queued_at)
    assert build.created_at.utcoffset() is not None


def test_text_that_no_database_holds_is_stored_readably(store: Store) -> None:
    make_build(store, message="a\0b \udc80 ü")
    assert builds.get(store, "build-1").message == "a\N{SYMBOL FOR NULL}b \\udc80 ü"


def test_build_is_found_by_a_prefix_that_no_other_has(store: Store) -> None:
    for build_id in ("abcd-1", "abcd-2", "abcd", "ABCE-1"):
        make_build(store, build_id)
    assert builds.find(store, "abcd").id == "abcd"
    assert builds.find(store, "abcd-2").id == "abcd-2"
    assert builds.find(store, "ABCE").id == "ABCE-1"
    with pytest.raises(StateConflict, match="abcd-1, abcd-2"):
        builds.find(store, "abcd-")
    for unknown in ("abc", "abce", "abc%", ""):
        with pytest.raises(NotFound):
            builds.find(store, unknown)


def test_pages_hold_every_build_once_newest_first(store: Store) -> None:
    made = [make_build(store, f"{'aB'[n % 2]}-{n}", project="ab"[n % 2]) for n in range(11)]
    seen: list[str] = []
    before = None
    while page := builds.list_builds(store, before=before, limit=3):
        seen += [build.id for build in page]
        before = (page[-1].created_at, page[-1].id)
    assert sorted(seen) == sorted(made)
    stamps = [(build.created_at, build.id) for build in builds.list_builds(store)]
    assert stamps == sorted(stamps, reverse=True)
    assert [build.id for build in builds.list_builds(store, project="b")] == [
        it for it in seen if it[0] == "B"
    ]


def test_lists_and_counts_know_states(store: Store) -> None:
    ref = running(store, "build-1")
    running(store, "build-2")
    make_build(store, "build-3", queue="other")
    attempts.end(store, ref, ended(Outcome.FAILED))
    assert [it.id for it in builds.list_builds(store, state=BuildState.RUNNING)] == ["build-2"]
    assert [it.id for it in builds.list_builds(store, outcome=Outcome.FAILED)] == ["build-1"]
    assert [it.id for it in builds.list_builds(store, queue="other")] == ["build-3"]
    assert builds.count_by_state(store) == {BuildState.QUEUED: 1, BuildState.RUNNING: 1}
    [waiting] = builds.queued(store)
    assert (waiting.id, waiting.queue) == ("build-3", "other")


def test_refused_job_is_on_record_with_what_it_was(store: Store) -> None:
    builds.refuse(store, "odd", project="?", queue="builds", reason="not JSON", raw="\0\ud800" + "x" * 99_999)
    build = builds.get(store, "odd")
    assert (build.state, build.outcome, build.detail) == ("ended", Outcome.REFUSED, "not JSON")
    assert build.definition["raw"].startswith("\N{SYMBOL FOR NULL}\\ud800xxx")
    assert len(build.definition["raw"]) < 20_000


def test_refusal_ends_a_queued_build_and_leaves_others_alone(store: Store) -> None:
    running(store, "runs")
    attempts.end(store, running(store, "ended"), ended())
    make_build(store, "waits")
    for build_id in ("runs", "ended", "waits"):
        builds.refuse(store, build_id, project="?", queue="?", reason="forged", raw=None)
    outcomes = {build.id: (build.state, build.outcome) for build in builds.list_builds(store)}
    assert outcomes == {
        "runs": ("running", None),
        "ended": ("ended", Outcome.PASSED),
        "waits": ("ended", Outcome.REFUSED),
    }


def test_key_too_long_for_an_index_is_refused_not_retried(postgres_url: str) -> None:
    store = Store(postgres_url)
    try:
        with pytest.raises(StoreRejected):
            make_build(store, "".join(chr(0x4E00 + n) for n in range(9000)))
        assert builds.list_builds(store) == []
    finally:
        store.dispose()


def test_f17_cancel_in_every_state(store: Store) -> None:
    with pytest.raises(NotFound):
        builds.request_cancel(store, "build-1", by="ann")
    make_server(store)
    make_build(store)
    make_build(store, "build-2")
    assert builds.request_cancel(store, "build-2", by="ann", why="wrong branch") == "cancelled"
    cancelled = builds.get(store, "build-2")
    assert (cancelled.outcome, cancelled.cancel_by) == (Outcome.CANCELLED, "ann")
    assert "wrong branch" in (cancelled.detail or "")
    with pytest.raises(StateConflict, match="already ended"):
        builds.request_cancel(store, "build-2", by="bob")
    assert claim(store) is not None
    assert builds.request_cancel(store, "build-1", by="ann") == "requested"
    first = builds.get(store, "build-1")
    assert builds.request_cancel(store, "build-1", by="bob") == "requested"
    assert builds.get(store, "build-1") == first
    done = [(it.actor, it.subject_id) for it in audit.list_entries(store) if it.action == "build.cancel"]
    assert done == [("bob", "build-1"), ("ann", "build-1"), ("ann", "build-2")]


def test_retry_queues_an_ended_build_with_new_attempts(store: Store) -> None:
    ref = running(store, attempts_allowed=1)
    with pytest.raises(StateConflict, match="running"):
        builds.retry(store, "build-1", by="ann", max_attempts=2)
    builds.request_cancel(store, "build-1", by="ann")
    attempts.end(store, ref, ended(Outcome.CANCELLED))
    before = builds.get(store, "build-1")
    build = builds.retry(store, "build-1", by="bob", max_attempts=2)
    assert build == builds.get(store, "build-1")
    assert (build.state, build.outcome, build.detail, build.ended_at) == ("queued", None, None, None)
    assert (build.attempt, build.attempts_allowed) == (1, 3)
    assert (build.cancel_requested_at, build.cancel_by) == (None, None)
    assert build.queued_at > before.queued_at
    assert claim(store) is not None
    assert audit.list_entries(store, actor="bob")[0].detail == {"was": "cancelled"}


def test_passed_build_is_retried_only_with_force(store: Store) -> None:
    attempts.end(store, running(store), ended(Outcome.PASSED))
    with pytest.raises(StateConflict, match="passed"):
        builds.retry(store, "build-1", by="ann", max_attempts=1)
    assert builds.retry(store, "build-1", by="ann", max_attempts=1, force=True).state is BuildState.QUEUED
    with pytest.raises(NotFound):
        builds.retry(store, "nobody", by="ann", max_attempts=1)
