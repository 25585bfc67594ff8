"""The catalogue of images and the bakes: one owner at a time, one way to `verified`, everything in the audit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent.errors import NotFound, StateConflict
from agent.model.build import AttemptRef, BuildState
from agent.model.image import BakeState, Image, ImageReport, ImageState, NewImage, Owner, Phase, ReportWhen
from agent.model.outcome import Outcome
from agent.model.server import ServerState
from agent.store import attempts, audit, bakes, builds, images, servers
from agent.store.engine import Store
from tests.integration.conftest_store import ended, lose, make_server, race

BAKE = "bake-0001"


def begin(store: Store, bake_id: str = BAKE, image_id: str = "img-000001", **fields: Any) -> None:
    """Record a bake with its image."""
    defaults: dict[str, Any] = {
        "version": "1.0",
        "provider": "local",
        "profile": "minimal",
        "base": "debian-12",
        "by": "ann",
    }
    image = NewImage(id=image_id, **defaults | fields)
    bakes.create(
        store, bake_id, image, {"version": image.version, "profile": image.profile, "commit": "c0ffee"}
    )


def take(store: Store, session: str = "life-1", bake_id: str = BAKE) -> AttemptRef:
    """Own a bake, as a command does."""
    make_server(store, bakes.server_of(bake_id), session, queues=[], slots=1)
    return bakes.take(store, bake_id, Owner(session=session, name=f"{session} of ann"), by="ann")


def verified(store: Store, number: int = 1, **fields: Any) -> Image:
    """An image whose bake has passed."""
    bake_id, image_id = f"bake-{number:04}", f"img-{number:06}"
    begin(store, bake_id, image_id, **{"version": f"{number}.0", **fields})
    take(store, f"life-{number}", bake_id)
    bakes.succeed(store, bake_id, f"life-{number}", provenance={"commit": "c0ffee"}, by="ann")
    return images.get(store, image_id)


def actions(store: Store, subject: str) -> list[str]:
    return [entry.action for entry in reversed(audit.list_entries(store, subject_id=subject))]


def test_bake_is_on_record_with_its_image_before_anything_is_made(store: Store) -> None:
    begin(store)
    bake, image = bakes.get(store, BAKE), images.get(store, "img-000001")
    assert (bake.phase, bake.state, bake.made, bake.session) == (
        Phase.LAUNCH,
        BakeState.INTERRUPTED,
        {},
        None,
    )
    assert (image.state, image.version, image.provider_image_id) == (ImageState.BAKING, "1.0", None)
    assert actions(store, "img-000001") == ["image.bake"]


def test_version_is_taken_until_its_bake_fails(store: Store) -> None:
    begin(store)
    with pytest.raises(StateConflict, match="--version"):
        begin(store, "bake-0002", "img-000002")
    with pytest.raises(NotFound):
        bakes.get(store, "bake-0002")
    begin(store, "bake-0003", "img-000003", provider="ec2")
    bakes.fail(store, BAKE, None, error="it did not boot", provenance={}, by="ann")
    begin(store, "bake-0002", "img-000002")
    assert images.find(store, "img-000002").state is ImageState.BAKING


def test_bakes_of_one_version_at_once_make_one(store: Store) -> None:
    results = race(*(lambda n=n: begin(store, f"bake-{n:04}", f"img-{n:06}") for n in range(6)))
    assert [type(it) for it in results if it is not None] == [StateConflict] * 5
    assert len(images.list_images(store)) == len(bakes.list_bakes(store)) == 1


def test_owner_has_the_log_of_the_bake_as_a_running_build(store: Store) -> None:
    begin(store)
    ref = take(store)
    build = builds.get(store, BAKE)
    assert (ref.number, build.state, build.project, build.commit) == (
        1,
        BuildState.RUNNING,
        "images",
        "c0ffee",
    )
    bake = bakes.get(store, BAKE)
    assert (bake.state, bake.session, bake.owner_name, bake.owner_beat) == (
        BakeState.RUNNING,
        "life-1",
        "life-1 of ann",
        0,
    )
    assert builds.queued(store) == []


def test_owner_that_died_is_followed_by_the_next_attempt(store: Store) -> None:
    begin(store)
    first = take(store)
    bakes.record(store, BAKE, "life-1", phase=Phase.SETUP, made={"builder": "m-1"})
    make_server(store, bakes.server_of(BAKE), "life-2", queues=[], slots=1)
    attempts.close_orphans(store, server_id=bakes.server_of(BAKE), session="life-2", why="killed")
    second = bakes.take(store, BAKE, Owner(session="life-2", name="bob"), by="bob")
    assert (first.number, second.number) == (1, 2)
    bake = bakes.get(store, BAKE)
    assert (bake.phase, bake.made, bake.session) == (Phase.SETUP, {"builder": "m-1"}, "life-2")
    writes: list[Callable[[], None]] = [
        lambda: bakes.record(store, BAKE, "life-1", phase=Phase.VERIFY),
        lambda: bakes.note_image(store, BAKE, "life-1", "ami-1", {}),
        lambda: bakes.succeed(store, BAKE, "life-1", provenance={}, by="ann"),
        lambda: bakes.fail(store, BAKE, "life-1", error="no", provenance={}, by="ann"),
    ]
    for write in writes:
        with pytest.raises(StateConflict):
            write()
    bakes.interrupt(store, BAKE, "life-1", error="no", by="ann")
    assert bakes.get(store, BAKE) == bake
    assert "bake.resume" in actions(store, BAKE)


def test_of_two_who_take_a_bake_over_one_gets_it(store: Store) -> None:
    begin(store)
    results = race(*(lambda n=n: take(store, f"life-{n}") for n in range(4)))
    [won] = [it for it in results if isinstance(it, AttemptRef)]
    assert {type(it) for it in results if it is not won} == {StateConflict}
    assert bakes.get(store, BAKE).session == won.session


def test_owner_taken_for_dead_leaves_a_bake_that_can_be_resumed(store: Store) -> None:
    begin(store)
    ref = take(store)
    lose(store, bakes.server_of(BAKE))
    assert bakes.get(store, BAKE).owner_beat is None
    attempts.close_lost(store, ref, why="lease ran out")
    build = builds.get(store, BAKE)
    # Nobody but a bake's owner could run it: it must not wait in a queue.
    assert (build.state, build.outcome) == (BuildState.ENDED, Outcome.LOST)
    assert take(store, "life-2").number == 2


def test_interrupted_bake_is_free_and_says_why(store: Store) -> None:
    begin(store)
    ref = take(store)
    bakes.interrupt(store, BAKE, "life-1", error="no network", by="ann")
    attempts.end(store, ref, ended(Outcome.INFRASTRUCTURE))
    bake = bakes.get(store, BAKE)
    assert (bake.state, bake.error, bake.session, bake.owner_beat) == (
        BakeState.INTERRUPTED,
        "no network",
        None,
        None,
    )
    assert take(store, "life-2").number == 2
    assert bakes.get(store, BAKE).error is None


def test_image_is_verified_by_its_bake_alone(store: Store) -> None:
    begin(store)
    take(store)
    bakes.note_image(store, BAKE, "life-1", "ami-1", {"image": "ami-1"})
    bakes.succeed(store, BAKE, "life-1", provenance={"commit": "c0ffee"}, by="ann")
    image, bake = images.get(store, "img-000001"), bakes.get(store, BAKE)
    assert (image.state, image.provenance, image.provider_image_id) == (
        ImageState.VERIFIED,
        {"commit": "c0ffee"},
        "ami-1",
    )
    assert image.verified_at is not None
    assert (bake.state, bake.session, bake.made) == (BakeState.PASSED, None, {"image": "ami-1"})
    assert bake.ended_at is not None
    assert actions(store, image.id) == ["image.bake", "image.verified"]


def test_failed_bake_fails_its_image_and_is_over(store: Store) -> None:
    begin(store)
    take(store)
    bakes.fail(store, BAKE, "life-1", error="check git failed", provenance={"commit": "c"}, by="ann")
    image = images.get(store, "img-000001")
    assert (image.state, image.reason, image.verified_at) == (ImageState.FAILED, "check git failed", None)
    with pytest.raises(StateConflict, match="ended"):
        take(store, "life-2")
    with pytest.raises(StateConflict, match="ended"):
        bakes.fail(store, BAKE, None, error="again", provenance={}, by="ann")
    with pytest.raises(StateConflict):
        bakes.record(store, BAKE, "life-1", phase=Phase.VERIFY)


def test_bake_that_somebody_took_is_not_settled_from_outside(store: Store) -> None:
    begin(store)
    take(store)
    with pytest.raises(StateConflict, match="another"):
        bakes.fail(store, BAKE, None, error="swept", provenance={}, by="bob")
    assert images.get(store, "img-000001").state is ImageState.BAKING


def test_reports_are_kept_per_run_the_last_of_each(store: Store) -> None:
    begin(store)
    checks = [
        {"name": "git", "outcome": "failed"},
        {"name": "ruby", "outcome": "passed"},
        {"name": "browser", "outcome": "skipped"},
        {"name": "disk", "outcome": "error"},
    ]
    for ran, report in (
        (ReportWhen.FRESH_BOOT, {"checks": []}),
        (ReportWhen.BAKE, {"checks": []}),
        (ReportWhen.BAKE, {"checks": checks}),
    ):
        images.store_report(
            store, ImageReport(image_id="img-000001", ran=ran, junit="<testsuite/>", report=report)
        )
    at_bake, fresh = images.list_reports(store, "img-000001")
    assert (at_bake.ran, fresh.ran) == (ReportWhen.BAKE, ReportWhen.FRESH_BOOT)
    assert (at_bake.failed_checks, fresh.failed_checks) == (["git", "disk"], [])
    assert at_bake.stored_at is not None


def test_images_are_found_by_id_version_and_beginning(store: Store) -> None:
    image = verified(store)
    for word in ("img-000001", "img-0", "1.0"):
        assert images.find(store, word) == image
    for word in ("img", "2.0", "", "img-%"):
        with pytest.raises(NotFound):
            images.find(store, word)
    verified(store, 2, version="1.0", provider="ec2")
    with pytest.raises(StateConflict, match=r"img-000001.*img-000002"):
        images.find(store, "1.0")
    assert images.find(store, "img-000001") == image


def test_version_that_failed_yields_to_the_one_that_did_not(store: Store) -> None:
    begin(store)
    bakes.fail(store, BAKE, None, error="no", provenance={}, by="ann")
    assert images.find(store, "1.0").id == "img-000001"
    verified(store, 2, version="1.0")
    assert images.find(store, "1.0").id == "img-000002"


def test_images_are_listed_newest_first_and_by_what_they_are(store: Store) -> None:
    verified(store, 1)
    verified(store, 2, profile="full")
    begin(store, "bake-0003", "img-000003", version="3.0")
    assert [it.id for it in images.list_images(store)] == ["img-000003", "img-000002", "img-000001"]
    assert [it.id for it in images.list_images(store, profile="full")] == ["img-000002"]
    assert [it.id for it in images.list_images(store, states=[ImageState.VERIFIED], limit=1)] == [
        "img-000002"
    ]
    assert images.list_images(store, provider="ec2") == []


def test_retired_image_starts_nothing_and_cannot_be_retired_twice(store: Store) -> None:
    image = verified(store)
    retired = images.retire(store, image.id, by="bob", reason="old ruby")
    assert (retired.state, retired.reason, retired.changed_by) == (ImageState.RETIRED, "old ruby", "bob")
    assert retired.state not in images.USABLE
    assert retired.verified_at == image.verified_at
    with pytest.raises(StateConflict, match="retired"):
        images.retire(store, image.id, by="bob")
    with pytest.raises(NotFound):
        images.retire(store, "img-999999", by="bob")


def test_image_in_the_making_or_in_use_is_not_retired(store: Store) -> None:
    begin(store)
    with pytest.raises(StateConflict, match="baking"):
        images.retire(store, "img-000001", by="bob")
    image = verified(store, 2)
    with store.begin() as connection:
        images.change(connection, image.id, to=ImageState.CURRENT, only_from={ImageState.VERIFIED}, by="bob")
    with pytest.raises(StateConflict, match="current"):
        images.retire(store, image.id, by="bob")


def test_retiring_at_once_succeeds_once(store: Store) -> None:
    image = verified(store)
    results = race(*(lambda: images.retire(store, image.id, by="bob") for _ in range(5)))
    assert sorted(type(it).__name__ for it in results) == ["Image"] + ["StateConflict"] * 4
    assert actions(store, image.id).count("image.retired") == 1


def test_bakes_are_found_by_beginning_and_by_image(store: Store) -> None:
    begin(store)
    assert bakes.find(store, "bake").id == bakes.find(store, "img-000001").id == BAKE
    begin(store, "bake-0002", "img-000002", version="2.0")
    with pytest.raises(StateConflict, match=r"bake-0001.*bake-0002"):
        bakes.find(store, "bake")
    with pytest.raises(NotFound, match="4 characters"):
        bakes.find(store, "bak")


def test_bakes_are_listed_by_whether_they_have_ended(store: Store) -> None:
    begin(store)
    verified(store, 2)
    assert [it.id for it in bakes.list_bakes(store, is_settled=False)] == [BAKE]
    assert [it.id for it in bakes.list_bakes(store, is_settled=True)] == ["bake-0002"]
    assert bakes.list_bakes(store, provider="ec2") == []
    assert len(bakes.list_bakes(store)) == 2


def test_owner_that_signed_off_owns_nothing(store: Store) -> None:
    begin(store)
    take(store)
    servers.leave(
        store,
        server_id=bakes.server_of(BAKE),
        session="life-1",
        state=ServerState.STOPPED,
        reason="the command has ended",
    )
    assert bakes.get(store, BAKE).owner_beat is None
    bakes.note_swept(store, BAKE, removed=["machine m-1"], by="ann")
    assert actions(store, BAKE)[-1] == "bake.sweep"
