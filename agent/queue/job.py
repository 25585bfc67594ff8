"""RQ's envelope of a build, opened with care: a job is bytes from outside.

A job may name any function, carry a pickle, or ask RQ to import a callback. None of that happens here: the
only function is `FUNCTION`, the only serializer JSON, and what RQ would import by name is dropped on reading.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import redis
from redis.exceptions import RedisError, ResponseError
from rq.exceptions import DeserializationError
from rq.job import Job
from rq.results import Result
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import current_timestamp

from agent import log
from agent.errors import JobRefused, NotFound, QueueUnavailable, StoreRejected, StoreUnavailable
from agent.model.definition_issue import MAX_DOCUMENT_BYTES
from agent.queue.connection import reaching
from agent.store import builds
from agent.store.engine import Store

FUNCTION = "agent.queue.intake.build"
SERIALIZER = "json"
# What a refused job held, for the person who looks: the beginning is enough to know whose it was.
RAW_LIMIT_BYTES = 4096
REFUSED_TTL_S = 24 * 3600
# An id is a key in the database, whose index takes some 2,700 bytes, and stands in every line about the build.
ID_LENGTH_MAX = 200
# A definition as JSON, which escapes what it likes to, and RQ's form around it.
DATA_LIMIT_BYTES = 4 * MAX_DOCUMENT_BYTES
# What a job of ours holds: its id says all.
_ON_RECORD = json.dumps([FUNCTION, None, [], {}]).encode()

_log = log.get("queue")


class BuildJob(Job):
    """A job that can only be a build."""

    def restore(self, raw_data: Any) -> Any:
        """Read the job's hash, without the callbacks and webhooks that RQ would import or call.

        Raises: JobRefused when it is too large, or would be once unpacked; whatever RQ trips over.
        """
        fields = dict(raw_data)
        if (packed := fields.get(b"data")) is not None:
            # RQ unpacks it whatever comes out, which may be gigabytes; empty, it leaves that to us.
            fields[b"data"] = b""
        super().restore(fields)
        if packed is not None:
            self.data = _unpacked(packed)
        self._success_callback_name = None
        self._failure_callback_name = None
        self._stopped_callback_name = None
        self.webhooks = []

    def definition(self) -> Mapping[str, Any] | None:
        """Return the definition that the job carries; `None` when it stands on record under the job's id.

        Raises: JobRefused with the reason.
        """
        try:
            name, args, kwargs = self.func_name, self.args, self.kwargs
        except (DeserializationError, ValueError, TypeError) as error:
            raise JobRefused(_why_unreadable(self.data)) from error
        if self.instance is not None or name != FUNCTION:
            raise JobRefused(
                f"the job names the function {str(name)[:200]!r}; this agent runs only {FUNCTION}"
            )
        return _single_argument(args, kwargs)

    def _execute(self) -> Any:
        """Run the build in the slot of this thread, never what the job names."""
        from agent.queue import intake

        return intake.build(self.definition())


def read_job(connection: redis.Redis, queue_name: str, build_id: str) -> BuildJob | None:
    """Return the job of that id, `None` while RQ's workers are suspended.

    An id whose job Redis has lost is a job as well: all of it stands on record.

    Raises: JobRefused, QueueUnavailable.
    """
    if not 0 < len(build_id) <= ID_LENGTH_MAX:
        raise JobRefused(
            f"the job's id is not one: it has {len(build_id)} characters, not 1 to {ID_LENGTH_MAX}"
        )
    try:
        job = BuildJob(build_id, connection=connection, serializer=SERIALIZER)
    except ValueError as error:
        raise JobRefused(f"the job's id is not one: {error}") from error
    with reaching():
        pipeline = connection.pipeline(transaction=False)
        pipeline.hgetall(job.key)
        pipeline.exists(WORKERS_SUSPENDED)
        fields, is_suspended = pipeline.execute(raise_on_error=False)
        if isinstance(fields, ResponseError) and str(fields).startswith("WRONGTYPE"):
            raise JobRefused("the job's key in Redis holds something else than a job")
        for answer in (fields, is_suspended):
            if isinstance(answer, RedisError):
                raise answer
    if is_suspended:
        return None
    try:
        job.restore(fields or {b"data": _ON_RECORD})
    except JobRefused:
        raise
    except Exception as error:  # bytes from outside: whatever RQ trips over is a refusal
        raise JobRefused(f"the job can't be read: {type(error).__name__}: {error}") from error
    job.origin = queue_name
    return job


@contextlib.contextmanager
def refusing(build_id: str) -> Iterator[None]:
    """Refuse a job for whatever it trips up: it is bytes from outside, and must neither end the agent nor stay.

    Raises: JobRefused; of other errors only those that say that Redis or the database is away.
    """
    try:
        yield
    except (JobRefused, StoreUnavailable, QueueUnavailable, RedisError):
        raise
    except StoreRejected as error:
        raise JobRefused(str(error)) from error
    except Exception as error:
        _log.exception("job.fault", f"{type(error).__name__}: {error}", build=_id_on_record(build_id))
        raise JobRefused(f"the agent stumbles over the job: {type(error).__name__}") from error


def check_on_record(store: Store, build_id: str) -> None:
    """Look whether a job that holds no definition is that of a build on record. Raises: JobRefused."""
    try:
        builds.get(store, build_id)
    except NotFound as error:
        raise JobRefused("the job holds no definition, and no build of its id is on record") from error


def refuse(store: Store, connection: redis.Redis, queue_name: str, build_id: str, reason: str) -> None:
    """Say that a job is no build, and why: on record, then in RQ. Raises: StoreUnavailable."""
    record_refused(store, connection, queue_name, build_id, reason)
    show_refused(connection, queue_name, build_id, reason)


def record_refused(
    store: Store, connection: redis.Redis, queue_name: str, build_id: str, reason: str
) -> None:
    """Put on record why a job is no build, with the beginning of what it held, as Python shows bytes.

    Raises: StoreUnavailable.
    """
    data = None
    with contextlib.suppress(RedisError):
        data = connection.hget(BuildJob.key_for(build_id), "data")
    known_as = _id_on_record(build_id)
    raw = repr(data[:RAW_LIMIT_BYTES]) if isinstance(data, bytes) else None
    _log.warning("job.refused", reason, build=known_as, queue=queue_name)
    try:
        builds.refuse(store, known_as, project="(unknown)", queue=queue_name, reason=reason, raw=raw)
    except StoreRejected as error:
        _log.warning("job.refusal_lost", str(error), build=known_as)


def _id_on_record(build_id: str) -> str:
    """Return the id under which a refused job is recorded: its own, unless that is none or too long."""
    if len(build_id) <= ID_LENGTH_MAX:
        return build_id or "(empty)"
    digest = hashlib.sha256(build_id.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{build_id[:100]}~{digest}"


def show_refused(connection: redis.Redis, queue_name: str, build_id: str, reason: str) -> None:
    """Show a refused job as failed to people who look through RQ; nothing of it is deserialized."""
    with contextlib.suppress(RedisError, ValueError):
        job = BuildJob(build_id, connection=connection, serializer=SERIALIZER)
        job.origin = queue_name
        # Alone, first: what is no hash shall not be listed as a job.
        connection.hset(job.key, mapping={"status": "failed", "origin": queue_name})
        with connection.pipeline() as pipeline:
            pipeline.expire(job.key, REFUSED_TTL_S)
            # Not by the registry's own `add`, which saves the job anew and for that has to know its data.
            pipeline.zadd(job.failed_job_registry.key, {job.id: current_timestamp() + REFUSED_TTL_S})
            Result.create_failure(job, REFUSED_TTL_S, exc_string=reason, pipeline=pipeline)
            pipeline.execute()


def _unpacked(data: bytes) -> bytes:
    """Return a job's data, which RQ packs with zlib; what isn't packed as it is."""
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(data, DATA_LIMIT_BYTES + 1)
    except zlib.error:
        plain = data
    if len(plain) > DATA_LIMIT_BYTES:
        raise JobRefused(f"the job's data is larger than {DATA_LIMIT_BYTES} bytes")
    return plain


def _single_argument(args: object, kwargs: object) -> Mapping[str, Any] | None:
    if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
        raise JobRefused("the job's arguments are not a list and a mapping")
    values = [*args, *kwargs.values()]
    if len(values) > 1 or set(kwargs) - {"definition"}:
        raise JobRefused(f"{FUNCTION} takes one argument, the build definition; the job has {len(values)}")
    if not values or values[0] is None:
        return None
    if not isinstance(values[0], dict):
        raise JobRefused(f"the definition is a mapping; the job has {type(values[0]).__name__}")
    return values[0]


def _why_unreadable(data: object) -> str:
    if isinstance(data, bytes) and data[:1] == b"\x80":
        return "the job is pickled, and pickles are never opened here: enqueue with serializer='json'"
    try:
        json.loads(data if isinstance(data, bytes | str) else b"")
    except (ValueError, RecursionError):
        return "the job's data is not JSON: enqueue with serializer='json'"
    return "the job's data is not RQ's form [function, instance, arguments, keyword arguments]"
