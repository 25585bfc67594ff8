"""A slot: capacity for one build at a time, and an RQ worker to everybody who looks through RQ.

RQ's `SimpleWorker` is what `rq info` shows and what RQ's commands speak to. How a job gets from the queue to
a process is ours: RQ's own way loses jobs popped from several queues, fences nothing, and gives up on the
first Redis time-out. The order that matters is take (id in the intermediate list) -> pass the gate -> claim in the
database -> run -> the database has the end -> tell RQ. A crash between any two leaves a build that the sweep
or the reaper finds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.exceptions import RedisError
from rq import worker_registration
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.worker import SimpleWorker
from rq.worker.base import WorkerStatus

from agent import clock, log
from agent.build.attempt import AttemptSummary
from agent.build.cancel import CancelToken
from agent.errors import JobRefused, QueueUnavailable, StoreUnavailable
from agent.metrics import catalogue as gauge
from agent.metrics.registry import Metrics
from agent.model.build import Claim
from agent.model.outcome import Outcome
from agent.queue import intake
from agent.queue.carrier import Carrier, Waiter
from agent.queue.connection import reaching
from agent.queue.gate import Gate
from agent.queue.job import SERIALIZER, BuildJob, check_on_record, read_job, refuse, refusing
from agent.queue.lease import Lease
from agent.queue.no_penalty import NoDeathPenalty
from agent.queue.submit import new_build
from agent.store import builds
from agent.store.engine import Store

# One command per slot and this many seconds while nothing comes; a stop wakes the slot sooner.
WAIT_S = 20
# On several queues a slot waits on one at a time, in turn: this is how long a build in another may lie.
WAIT_AMONG_SEVERAL_S = 1
# How long RQ shows a worker after its last heartbeat. Ours come every minute, from the Redis heartbeat.
WORKER_TTL_S = 180

_log = log.get("slot")

Runner = Callable[[Claim, CancelToken], AttemptSummary]


class BuildNotPassed(Exception):
    """What RQ is told of a build that did not pass, so that its dependents don't run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotPlan:
    """What a slot works with."""

    index: int
    server_id: str
    server_name: str
    queues: Sequence[str]
    max_attempts: int
    carrier: Carrier
    waiter: Waiter
    store: Store
    gate: Gate
    lease: Lease
    metrics: Metrics
    run: Runner


class Slot(SimpleWorker):
    """One slot, served by one thread."""

    death_penalty_class = NoDeathPenalty

    def __init__(self, plan: SlotPlan) -> None:
        super().__init__(
            [plan.carrier.queue(name) for name in plan.queues],
            name=f"{plan.server_name}.{plan.index}",
            connection=plan.carrier.connection,
            job_class=BuildJob,
            serializer=SERIALIZER,
            worker_ttl=WORKER_TTL_S,
            log_job_description=False,
            # It would speak to Redis, which need not be there yet.
            prepare_for_work=False,
        )
        self.hostname, self.pid = socket.gethostname(), os.getpid()
        self._plan = plan
        self._stopping = threading.Event()
        self._turn = plan.index
        self._token: CancelToken | None = None
        self._claim: Claim | None = None
        self._started_mono = 0.0
        self._job: Job | None = None
        self._is_born = False
        self.typical_s: float | None = None  # how long builds of this project usually run; set while draining

    # What the daemon asks and says; any thread.

    @property
    def claim(self) -> Claim | None:
        """The build in the slot, `None` when idle."""
        return self._claim

    @property
    def running_s(self) -> float:
        """How long the build in the slot has been running."""
        return clock.mono() - self._started_mono if self._claim else 0.0

    def holds(self, build_id: str) -> bool:
        """Whether this build is in the slot."""
        return self._claim is not None and self._claim.ref.build_id == build_id

    def end(
        self, outcome: Outcome, detail: str, *, build: tuple[str, int] | None, grace_s: float | None
    ) -> bool:
        """End what runs in the slot, if it is the attempt `build` (any, for `None`); whether it was."""
        claim, token = self._claim, self._token
        if claim is None or token is None:
            return False
        if build is not None and build != (claim.ref.build_id, claim.ref.number):
            return False
        token.request(outcome, detail, grace_s=grace_s)
        return True

    def stop(self) -> None:
        """Take nothing more; `serve` returns when the build in the slot has ended."""
        self._stopping.set()

    @property
    def is_stopping(self) -> bool:
        """Whether the slot takes nothing more."""
        return self._stopping.is_set()

    @property
    def waiter(self) -> Waiter:
        """What the slot waits for the queue with."""
        return self._plan.waiter

    def kill_horse(self, sig: Any = None) -> None:  # noqa: ARG002 - RQ's signature
        """Answer RQ's stop-job and kill-horse: cancel the build."""
        self.end(Outcome.CANCELLED, "through RQ", build=None, grace_s=None)

    def _set_connection(self, connection: redis.Redis) -> redis.Redis:
        """Keep the client's own time-outs: RQ would make every command wait as long as a blocking one."""
        return connection

    # The thread.

    def serve(self) -> None:
        """Take and run builds until `stop`. Every failure of Redis or the database is waited out here.

        Raises: whatever else happens; the daemon then ends with that reason.
        """
        waits = clock.backoff()
        while not self._stopping.is_set():
            try:
                if not self._is_born:
                    self._be_born()
                self._serve_once()
                waits = clock.backoff()
            except (QueueUnavailable, RedisError) as error:
                _log.warning("slot.redis_away", str(error), slot=self.name)
                self._stopping.wait(next(waits))
            except StoreUnavailable as error:
                self._plan.gate.close(f"database: {error}")
                _log.warning("slot.database_away", str(error), slot=self.name)
                self._stopping.wait(next(waits))
        self._is_born = False  # or the next heartbeat would show it again
        with contextlib.suppress(RedisError):
            self.register_death()  # type: ignore[no-untyped-call]

    def _be_born(self) -> None:
        """Show up in RQ, in one transaction: who has no key when somebody looks, RQ takes off its list."""
        self.birth_date = self.last_heartbeat = clock.utc_now()
        with reaching(), self.connection.pipeline() as pipeline:
            pipeline.delete(self.key, self.executions_key)
            pipeline.hset(self.key, mapping=self.serialize())
            pipeline.expire(self.key, WORKER_TTL_S)
            self.set_state(WorkerStatus.IDLE, pipeline=pipeline)
            worker_registration.register(self, pipeline)
            pipeline.execute()
        self._is_born = True

    def _serve_once(self) -> None:
        if not self._plan.gate.wait_open(1.0):
            return
        taken = self._next()
        if taken is None:
            return
        queue_name, build_id = taken
        if self._stopping.is_set() or not self._plan.gate.try_enter():
            self._plan.carrier.give_back(queue_name, build_id)
            return
        try:
            self._work_on(queue_name, build_id)
        finally:
            self._plan.gate.leave()

    def _next(self) -> tuple[str, str] | None:
        """Return the next build of the first queue that has one; wait a while when none has."""
        plan = self._plan
        taken = plan.carrier.take(plan.queues)
        if taken is not None:
            return taken
        # Idle slots wait on different queues, so that with as many slots as queues none has to wait its turn.
        name = plan.queues[self._turn % len(plan.queues)]
        self._turn += 1
        build_id = plan.waiter.wait(name, WAIT_S if len(plan.queues) == 1 else WAIT_AMONG_SEVERAL_S)
        return None if build_id is None else (name, build_id)

    def _work_on(self, queue_name: str, build_id: str) -> None:
        """Claim the build and run it, or say why not. What is in hand is put back if the database is away."""
        plan = self._plan
        sent_mono = clock.mono()
        try:
            with refusing(build_id):
                job = read_job(self.connection, queue_name, build_id)
                claim = None if job is None else self._claim_build(job, queue_name)
        except JobRefused as error:
            self._refuse(queue_name, build_id, str(error))
            return
        except StoreUnavailable:
            plan.carrier.give_back(queue_name, build_id)
            raise
        if job is None:
            plan.carrier.give_back(queue_name, build_id)
            plan.gate.close("suspended through RQ")
            return
        if claim is None:
            if builds.is_waiting(plan.store, build_id):
                # It is this server that may not have it: an order stands, or its life is over.
                plan.carrier.give_back(queue_name, build_id)
                plan.gate.close("the database gives this server no builds: an order stands")
            else:
                plan.carrier.forget(queue_name, build_id)
            return
        plan.metrics.observe(gauge.CLAIM_SECONDS, clock.mono() - sent_mono)
        self._run(job, plan.carrier.queue(queue_name), claim)

    def _claim_build(self, job: BuildJob, queue_name: str) -> Claim | None:
        """Write the build of a job from another program, then claim."""
        plan = self._plan
        definition = job.definition()
        if definition is not None:
            # The record comes first, also for a build that only Redis knew.
            new = new_build(
                definition, build_id=job.id, queue=queue_name, by="rq", max_attempts=plan.max_attempts
            )
            builds.create(plan.store, new)
            if new.queue != queue_name:
                # It asks for tags: it goes to the queue of the servers that have them.
                plan.carrier.forget(queue_name, job.id)
                plan.carrier.publish(job.id, new.queue)
                return None
        claim = builds.claim(
            plan.store, job.id, server_id=plan.server_id, session=plan.lease.session, slot=plan.index
        )
        if claim is None and definition is None:
            check_on_record(plan.store, job.id)
        return claim

    def _refuse(self, queue_name: str, build_id: str, reason: str) -> None:
        plan = self._plan
        refuse(plan.store, self.connection, queue_name, build_id, reason)
        plan.metrics.add(gauge.BUILDS_ENDED, 1, outcome=Outcome.REFUSED)
        plan.carrier.forget(queue_name, build_id)

    def _run(self, job: BuildJob, queue: Queue, claim: Claim) -> None:
        self._token = token = CancelToken()
        self._started_mono = clock.mono()
        self.typical_s = None
        self._claim = claim
        self._job = job
        execution = self._tell_rq_started(job)
        mark = intake.in_slot.set(lambda: self._run_claimed(claim, token))
        try:
            try:
                result: Any = job.perform()
            except BuildNotPassed as error:
                result = error
            self._tell_rq_ended(job, queue, execution, claim, result)
        finally:
            intake.in_slot.reset(mark)
            self._claim = None
            self._job = None
            self._token = None
            token.close()

    def _run_claimed(self, claim: Claim, token: CancelToken) -> Mapping[str, Any]:
        """Run the build to the point where the database has its end; what `intake.build` returns or raises."""
        ended = self._plan.run(claim, token)
        summary: dict[str, Any] = {"build": claim.ref.build_id, "attempt": claim.ref.number}
        if not ended.applied:
            # The attempt was taken from us: another has it, and RQ's view of the job is no longer ours to write.
            return summary | {"outcome": None, "requeued": False}
        summary |= {"outcome": ended.outcome, "requeued": ended.requeued}
        if not ended.requeued and not ended.outcome.is_success:
            raise BuildNotPassed(f"{ended.outcome}: {ended.detail or 'see build-agent show'}")
        return summary

    # RQ's view. None of it decides anything, so none of it may stop a build.

    def _tell_rq_started(self, job: BuildJob) -> Execution | None:
        """Write RQ's side of a start in one transaction, and take the id out of the intermediate list."""
        try:
            with self.connection.pipeline() as pipeline:
                ttl = self.get_heartbeat_ttl(job)
                self.heartbeat(pipeline=pipeline)
                execution = Execution.create(job, ttl, pipeline=pipeline, worker_name=self.name)
                self.set_state(WorkerStatus.BUSY, pipeline=pipeline)
                job.prepare_for_execution(self.name, pipeline=pipeline)
                pipeline.lrem(self._plan.carrier.queue(job.origin).intermediate_queue_key, 1, job.id)
                pipeline.execute()
        except RedisError as error:
            _log.warning("slot.rq_start_untold", str(error), build=job.id)
            return None
        job.started_at = clock.utc_now()
        self.executions[execution.id] = execution
        return execution

    def _tell_rq_ended(
        self, job: BuildJob, queue: Queue, execution: Execution | None, claim: Claim, result: Any
    ) -> None:
        """Write RQ's side of an end; tried until Redis takes it, for nothing can be taken from it before."""
        waits = clock.backoff()
        while True:
            try:
                self._write_end(job, queue, execution, claim, result)
            except (RedisError, QueueUnavailable) as error:
                _log.warning("slot.rq_end_untold", str(error), build=job.id)
                if self._stopping.wait(next(waits)):
                    break
                continue
            except Exception as error:  # noqa: BLE001 - RQ trips over what others wrote into the job's hash
                _log.warning("slot.rq_end_failed", f"{type(error).__name__}: {error}", build=job.id)
            break
        if execution is not None:
            self.executions.pop(execution.id, None)

    def _write_end(
        self, job: BuildJob, queue: Queue, execution: Execution | None, claim: Claim, result: Any
    ) -> None:
        job.ended_at = clock.utc_now()
        if isinstance(result, BuildNotPassed):
            self.handle_job_failure(job, queue, exc_string=str(result), execution=execution)
        elif result["outcome"] is None or result["requeued"] or execution is None:
            with self.connection.pipeline() as pipeline:
                if execution is not None:
                    execution.delete(job=job, pipeline=pipeline)
                # A start that RQ was not told of leaves the id in hand.
                pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
                pipeline.execute()
            if result["requeued"]:
                self._plan.carrier.publish(claim.ref.build_id, claim.queue)
        else:
            job._result = result
            self.handle_job_success(job, queue, queue.started_job_registry, execution)
        self._stopped_job_id = None
        self.set_state(WorkerStatus.IDLE)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:  # noqa: ARG002 - RQ's signature
        """Return how long RQ takes a running job for alive without word; `show_life` comes every minute."""
        return WORKER_TTL_S

    def show_life(self) -> None:
        """Renew RQ's view of the slot, all of it each time: Redis may have lost any part.

        Raises: QueueUnavailable.
        """
        if not self._is_born:
            return
        with reaching(), self.connection.pipeline() as pipeline:
            self.heartbeat(pipeline=pipeline)
            pipeline.hset(self.key, mapping=self.serialize() | {"state": self.get_state()})
            pipeline.expire(self.key, WORKER_TTL_S)
            worker_registration.register(self, pipeline)
            job = self._job
            for execution in list(self.executions.values()):
                if job is not None:
                    execution.heartbeat(job.started_job_registry, WORKER_TTL_S, pipeline=pipeline)
            pipeline.execute()
