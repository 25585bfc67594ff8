"""Moves build ids between RQ's lists so that none is ever in no list.

RQ moves a job through an intermediate list only while it listens on a single queue; on several it pops, and a
worker that dies then has lost the job (see docs/delivery.md). Here one script looks through all queues
in order and moves, and waiting is done on one queue at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import redis
from redis.exceptions import RedisError
from rq.exceptions import DuplicateJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import JobStatus
from rq.queue import Queue
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import now, utcformat

from agent.queue.connection import COMMAND_TIMEOUT_S, connect, reaching
from agent.queue.job import FUNCTION, SERIALIZER, BuildJob

# Job hashes of ended builds stay for `rq info` and dependents; the record is in the database.
RESULT_TTL_S = 3600
FAILURE_TTL_S = 24 * 3600

_CANCEL_RECORDED = "cancel_recorded"

_TAKE = """
for i, queue in ipairs(KEYS) do
  local id = redis.call('LMOVE', queue, queue .. ':intermediate', 'LEFT', 'RIGHT')
  if id then return {queue, id} end
end
return nil
"""

_GIVE_BACK = """
if redis.call('LREM', KEYS[2], 1, ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[1], ARGV[1])
return 1
"""

# KEYS: job, queue, intermediate, finished, failed, started, canceled, executions of the job, all queues.
# ARGV: id, time, queue's name.
# Returns -1: there is no such job; 0: it is in a list already; 1: queued.
_QUEUE_AGAIN = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if redis.call('LPOS', KEYS[2], ARGV[1]) or redis.call('LPOS', KEYS[3], ARGV[1]) then return 0 end
for _, execution in ipairs(redis.call('ZRANGE', KEYS[8], 0, -1)) do
  redis.call('ZREM', KEYS[6], ARGV[1] .. ':' .. execution)
  redis.call('DEL', 'rq:execution:' .. ARGV[1] .. ':' .. execution)
end
redis.call('DEL', KEYS[8])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZREM', KEYS[5], ARGV[1])
redis.call('ZREM', KEYS[7], ARGV[1])
redis.call('HDEL', KEYS[1], 'started_at', 'ended_at', 'worker_name', 'last_heartbeat', 'exc_info', 'cancel_recorded')
redis.call('HSET', KEYS[1], 'status', 'queued', 'enqueued_at', ARGV[2], 'origin', ARGV[3])
redis.call('PERSIST', KEYS[1])
redis.call('SADD', KEYS[9], KEYS[2])
redis.call('RPUSH', KEYS[2], ARGV[1])
return 1
"""


class Waiter:
    """Waits for a build on one queue at a time, over a connection of its own; one thread waits."""

    def __init__(self, url: str, *, longest_wait_s: float) -> None:
        self._client_id: int | None = None
        self._client = connect(url, timeout_s=longest_wait_s + COMMAND_TIMEOUT_S)
        self._client.connection_pool.connection_kwargs["redis_connect_func"] = self._note_id

    def _note_id(self, connection: Any) -> None:
        """Learn this connection's id, by which another can end its wait."""
        connection.on_connect()
        connection.send_command("CLIENT", "ID")
        self._client_id = int(connection.read_response())

    def wait(self, queue: str, timeout_s: int) -> str | None:
        """Wait for an id and move it to the intermediate list; `None` when none came or `wake` was called.

        Raises: QueueUnavailable; an id may then be in the intermediate list, where the sweep finds it.
        """
        key = Queue.redis_queue_namespace_prefix + queue
        intermediate = IntermediateQueue.get_intermediate_queue_key(key)
        with reaching():
            try:
                found: Any = self._client.blmove(key, intermediate, timeout_s, "LEFT", "RIGHT")
            except RedisError:
                # The answer may still come: the connection that it would come over is not used again.
                self._client.connection_pool.disconnect()
                raise
        return None if found is None else _text(found)

    @property
    def client_id(self) -> int | None:
        """The connection's id, by which `Carrier.wake` ends its wait; `None` before its first command."""
        return self._client_id

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class Carrier:
    """The lists of builds in Redis. Thread-safe as the client is; every method raises QueueUnavailable."""

    def __init__(self, connection: redis.Redis) -> None:
        self.connection = connection
        self._take = connection.register_script(_TAKE)
        self._give_back = connection.register_script(_GIVE_BACK)
        self._queue_again = connection.register_script(_QUEUE_AGAIN)

    def queue(self, name: str) -> Queue:
        """Return RQ's queue of that name, which reads jobs as `BuildJob` and JSON only."""
        return Queue(name, connection=self.connection, job_class=BuildJob, serializer=SERIALIZER)

    def take(self, queues: Sequence[str]) -> tuple[str, str] | None:
        """Move the next id of the first queue that has one to its intermediate list; (queue, id) or None."""
        with reaching():
            found = self._take(keys=[Queue.redis_queue_namespace_prefix + name for name in queues])
        if found is None:
            return None
        return _name(found[0]), _text(found[1])

    def give_back(self, queue: str, build_id: str) -> bool:
        """Put an id in hand back at the head of its queue; whether it was in hand."""
        key = Queue.redis_queue_namespace_prefix + queue
        with reaching():
            keys = [key, IntermediateQueue.get_intermediate_queue_key(key)]
            return bool(self._give_back(keys=keys, args=[build_id]))

    def forget(self, queue: str, build_id: str) -> None:
        """Drop an id in hand: the database says that there is nothing to run."""
        key = Queue.redis_queue_namespace_prefix + queue
        with reaching():
            self.connection.lrem(IntermediateQueue.get_intermediate_queue_key(key), 1, build_id)

    def publish(self, build_id: str, queue_name: str) -> bool:
        """Queue a build that stands on record; whether it was not queued already.

        Sent twice it is queued once: redis-py may have sent a command again after a lost reply.
        """
        queue = self.queue(queue_name)
        with reaching():
            try:
                queue.enqueue(
                    FUNCTION,
                    job_id=build_id,
                    unique=True,
                    job_timeout=-1,
                    result_ttl=RESULT_TTL_S,
                    failure_ttl=FAILURE_TTL_S,
                    description=f"build {build_id}",
                )
            except DuplicateJobError:
                return self._publish_again(queue, build_id)
        return True

    def _publish_again(self, queue: Queue, build_id: str) -> bool:
        keys = [
            BuildJob.key_for(build_id),
            queue.key,
            queue.intermediate_queue_key,
            queue.finished_job_registry.key,
            queue.failed_job_registry.key,
            queue.started_job_registry.key,
            queue.canceled_job_registry.key,
            f"rq:executions:{build_id}",
            Queue.redis_queues_keys,
        ]
        return int(self._queue_again(keys=keys, args=[build_id, utcformat(now()), queue.name])) == 1

    def is_cancelled(self, build_id: str) -> bool:
        """Whether somebody has cancelled a job by RQ's own means and it is not on record yet."""
        with reaching():
            status, recorded = self.connection.hmget(BuildJob.key_for(build_id), ["status", _CANCEL_RECORDED])
        return status is not None and _text(status) == JobStatus.CANCELED and recorded is None

    def note_cancel(self, build_id: str) -> None:
        """Note that a cancel of RQ's is on record: a build that is retried later is not cancelled by it again."""
        with reaching():
            self.connection.hset(BuildJob.key_for(build_id), _CANCEL_RECORDED, "1")

    def waiting(self, queue: str) -> list[str]:
        """Return the ids that wait in a queue, next first."""
        key = Queue.redis_queue_namespace_prefix + queue
        with reaching():
            return [_text(item) for item in self.connection.lrange(key, 0, -1)]

    def in_hand(self, queue: str) -> list[str]:
        """Return the ids that somebody has taken and not yet begun."""
        key = IntermediateQueue.get_intermediate_queue_key(Queue.redis_queue_namespace_prefix + queue)
        with reaching():
            return [_text(item) for item in self.connection.lrange(key, 0, -1)]

    def is_suspended(self) -> bool:
        """Whether `rq suspend` has stopped all workers."""
        with reaching():
            return bool(self.connection.exists(WORKERS_SUSPENDED))

    def wake(self, waiters: Iterable[Waiter]) -> None:
        """End waits that are under way as if they had timed out; a build that came first is handed out all the same.

        One round trip for all: a Redis that hangs costs its caller one time-out, not one for each slot.
        """
        pipeline = self.connection.pipeline(transaction=False)
        for waiter in waiters:
            if waiter.client_id is not None:
                pipeline.client_unblock(waiter.client_id)
        with contextlib.suppress(RedisError):
            pipeline.execute(raise_on_error=False)

    def ping(self) -> None:
        """Ask Redis whether it is there."""
        with reaching():
            self.connection.ping()

    def clock(self) -> float:
        """Return Redis's wall clock, seconds since the epoch."""
        with reaching():
            seconds, micros = self.connection.time()
        return float(seconds) + float(micros) / 1e6


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _name(key: bytes | str) -> str:
    return _text(key).removeprefix(Queue.redis_queue_namespace_prefix)
