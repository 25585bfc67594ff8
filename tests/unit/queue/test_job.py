"""Jobs are bytes from outside: what is no build is refused with its reason, and nothing of it is run."""

from __future__ import annotations

import contextlib
import json
import pickle
import zlib
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import JobRefused
from agent.model.outcome import Outcome
from agent.queue import intake
from agent.queue.job import (
    FUNCTION,
    RAW_LIMIT_BYTES,
    SERIALIZER,
    BuildJob,
    read_job,
    record_refused,
    show_refused,
)
from agent.store import builds
from agent.store.engine import Store

# A machine under load takes its time; what is found has to hold at any speed.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

DEFINITION = {"project": "shop", "steps": ["make"]}
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def made(data: bytes) -> BuildJob:
    job = BuildJob("build-1", connection=fakeredis.FakeRedis(), serializer=SERIALIZER)
    job.data = data
    return job


def job_of(*call: Any) -> BuildJob:
    return made(json.dumps(call).encode())


def refusal(job: BuildJob) -> str:
    with pytest.raises(JobRefused) as caught:
        job.definition()
    return str(caught.value)


# What a job carries.


@pytest.mark.parametrize(
    ("arguments", "keywords"), [([DEFINITION], {}), ([], {"definition": DEFINITION}), ((DEFINITION,), {})]
)
def test_definition_is_the_one_argument(arguments: Any, keywords: dict[str, Any]) -> None:
    assert job_of(FUNCTION, None, arguments, keywords).definition() == DEFINITION


@pytest.mark.parametrize(("arguments", "keywords"), [([], {}), ([None], {}), ([], {"definition": None})])
def test_job_without_a_definition_means_the_one_on_record(
    arguments: list[Any], keywords: dict[str, Any]
) -> None:
    assert job_of(FUNCTION, None, arguments, keywords).definition() is None


@pytest.mark.parametrize(
    "name", ["os.system", "agent.queue.intake", "agent.queue.intake.build2", "", 7, None]
)
def test_other_function_is_refused_by_name(name: Any) -> None:
    text = refusal(job_of(name, None, ["rm -rf /"], {}))
    assert repr(str(name)) in text
    assert FUNCTION in text


def test_long_function_name_is_cut() -> None:
    assert len(refusal(job_of("x" * 100_000, None, [], {}))) < 400


def test_method_of_an_instance_is_refused() -> None:
    assert "this agent runs only" in refusal(job_of(FUNCTION, {"a": 1}, [DEFINITION], {}))


@pytest.mark.parametrize(
    ("arguments", "keywords", "words"),
    [
        ([DEFINITION, 1], {}, "the job has 2"),
        ([DEFINITION], {"definition": DEFINITION}, "the job has 2"),
        ([], {"other": DEFINITION}, "one argument, the build definition"),
        (["make"], {}, "the definition is a mapping; the job has str"),
        ([[DEFINITION]], {}, "the job has list"),
        ("make", {}, "not a list and a mapping"),
        ([], [], "not a list and a mapping"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_wrong(arguments: Any, keywords: Any, words: str) -> None:
    assert words in refusal(job_of(FUNCTION, None, arguments, keywords))


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was opened",)


def test_pickle_is_refused_unopened() -> None:
    text = refusal(made(pickle.dumps((FUNCTION, None, (_Bomb(),), {}))))
    assert text == "the job is pickled, and pickles are never opened here: enqueue with serializer='json'"


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"not json", b"[" * 100_000])
def test_what_is_not_json_is_refused(data: bytes) -> None:
    assert "not JSON" in refusal(made(data)) or "function" in refusal(made(data))


@pytest.mark.parametrize("data", [b"{}", b"[]", b"[1]", b"null", b"7", b'["a", null, [], {}, 5]'])
def test_json_of_another_form_is_refused_with_the_form(data: bytes) -> None:
    assert refusal(made(data)) == (
        "the job's data is not RQ's form [function, instance, arguments, keyword arguments]"
    )


@patient
@given(data=_json.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
def test_anything_is_a_definition_a_refusal_or_none(data: bytes) -> None:
    found: Any = None
    with contextlib.suppress(JobRefused):
        found = made(data).definition()
    assert found is None or isinstance(found, dict)


# What stands in Redis.


@pytest.fixture
def connection() -> redis.Redis:
    return fakeredis.FakeRedis()


def put(connection: redis.Redis, **fields: Any) -> None:
    data = json.dumps([FUNCTION, None, [DEFINITION], {}]).encode()
    values: dict[Any, Any] = {"data": zlib.compress(data), **fields}
    connection.hset(BuildJob.key_for("build-1"), mapping=values)


def read(connection: redis.Redis) -> BuildJob:
    job = read_job(connection, "builds", "build-1")
    assert job is not None
    return job


def test_job_is_read_with_the_queue_it_was_taken_from(connection: redis.Redis) -> None:
    put(connection, origin="somewhere else")
    job = read(connection)
    assert job.definition() == DEFINITION
    assert job.origin == "builds"


def test_job_that_redis_has_lost_stands_on_record(connection: redis.Redis) -> None:
    assert read(connection).definition() is None


def test_what_rq_would_import_or_call_is_dropped(connection: redis.Redis) -> None:
    put(
        connection,
        success_callback_name="os.abort",
        failure_callback_name="os.abort",
        stopped_callback_name="os.abort",
        webhooks=json.dumps([{"url": "http://example.com"}]),
    )
    job = read(connection)
    assert (job.success_callback, job.failure_callback, job.stopped_callback) == (None, None, None)
    assert job.webhooks == []


@pytest.mark.parametrize(
    "fields",
    [
        {"created_at": "yesterday"},
        {"status": "wobbly"},
        {"timeout": "soon"},
        {"result_ttl": "x"},
        {"enqueued_at": b"\xff"},
        {"success_callback_timeout": "x"},
    ],
)
def test_hash_that_rq_trips_over_is_refused(connection: redis.Redis, fields: dict[str, Any]) -> None:
    put(connection, **fields)
    with pytest.raises(JobRefused, match="the job can't be read"):
        read_job(connection, "builds", "build-1")


def test_hash_without_data_is_refused(connection: redis.Redis) -> None:
    connection.hset(BuildJob.key_for("build-1"), "status", "queued")
    with pytest.raises(JobRefused, match="can't be read"):
        read_job(connection, "builds", "build-1")


def test_key_of_another_kind_is_refused_not_taken_for_a_fault_of_redis(connection: redis.Redis) -> None:
    """Taken for one, the id would come back from the intermediate list for ever."""
    connection.set(BuildJob.key_for("build-1"), "a string")
    with pytest.raises(JobRefused, match="something else than a job"):
        read_job(connection, "builds", "build-1")


@pytest.mark.parametrize("build_id", ["a b", "a/b", "ä", "", "\N{REPLACEMENT CHARACTER}"])
def test_id_that_rq_does_not_know_is_refused(connection: redis.Redis, build_id: str) -> None:
    with pytest.raises(JobRefused, match="the job's id is not one"):
        read_job(connection, "builds", build_id)


def test_nothing_is_read_while_rq_is_suspended(connection: redis.Redis) -> None:
    put(connection)
    connection.set("rq:suspended", 1)
    assert read_job(connection, "builds", "build-1") is None


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    store = Store(sqlite_url)
    yield store
    store.dispose()


def test_refusal_is_on_record_with_the_beginning_of_the_job(connection: redis.Redis, store: Store) -> None:
    connection.hset(BuildJob.key_for("build-1"), "data", b"\x80x" * RAW_LIMIT_BYTES)
    record_refused(store, connection, "builds", "build-1", "because")
    build = builds.get(store, "build-1")
    assert (build.state, build.outcome, build.detail) == ("ended", Outcome.REFUSED, "because")
    assert build.definition == {"raw": repr((b"\x80x" * RAW_LIMIT_BYTES)[:RAW_LIMIT_BYTES])}


@pytest.mark.parametrize("build_id", ["a string's key", "", "x" * 5000, "\0", "ä"], ids=range(5))
def test_refusal_of_any_id_is_on_record(connection: redis.Redis, store: Store, build_id: str) -> None:
    connection.set(BuildJob.key_for(build_id), "a string, no hash")
    record_refused(store, connection, "builds", build_id, "because")
    [build] = builds.list_builds(store)
    assert build.outcome is Outcome.REFUSED
    assert build.definition == {}


def test_refused_job_shows_as_failed_in_rq(connection: redis.Redis) -> None:
    put(connection)
    show_refused(connection, "builds", "build-1", "because")
    job = BuildJob.fetch("build-1", connection=connection, serializer=SERIALIZER)
    assert job.get_status() == "failed"
    assert "build-1" in job.failed_job_registry.get_job_ids()
    assert connection.ttl(job.key) > 0
    result = job.latest_result()
    assert result is not None
    assert result.exc_string == "because"


def test_key_of_another_kind_is_not_listed_as_a_failed_job(connection: redis.Redis) -> None:
    connection.set(BuildJob.key_for("build-1"), "a string")
    show_refused(connection, "builds", "build-1", "because")
    assert connection.get(BuildJob.key_for("build-1")) == b"a string"
    assert connection.keys("rq:failed:*") == []


@pytest.mark.parametrize("build_id", ["a b", "build-1"])
def test_showing_a_refusal_never_raises(build_id: str) -> None:
    server = fakeredis.FakeServer()
    server.connected = False
    connection = fakeredis.FakeRedis(server=server)
    show_refused(connection, "builds", build_id, "because")
    assert not server.connected


# The function itself.


def test_build_outside_a_slot_says_where_it_runs() -> None:
    with pytest.raises(JobRefused, match="run `build-agent run`"):
        intake.build(DEFINITION)


def test_job_runs_what_its_slot_does_and_never_what_it_names() -> None:
    mark = intake.in_slot.set(lambda: {"build": "build-1"})
    try:
        assert job_of(FUNCTION, None, [DEFINITION], {}).perform() == {"build": "build-1"}
        with pytest.raises(JobRefused):
            job_of("os.abort", None, [], {}).perform()
    finally:
        intake.in_slot.reset(mark)
