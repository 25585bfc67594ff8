"""Jobs as a hostile or broken program puts them into Redis: refused on the record, and nothing of them runs (F29)."""

from __future__ import annotations

import json
import os
import pickle
import random
import socketserver
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis
from sqlalchemy import select

from agent.model.outcome import Outcome
from agent.queue.job import FUNCTION
from agent.store.tables import attempts as attempts_table
from agent.store.tables import builds as builds_table
from agent.store.tables import printable
from tests import size
from tests.acceptance.farm import Farm
from tests.services import wait_until

QUEUE = b"rq:queue:builds"
IN_HAND = b"rq:queue:builds:intermediate"
BULK = size.of(3000, 10_000)
GOOD = {"project": "test", "steps": ["true"]}
# 100 MB of blanks in 100 kB, which RQ would unpack.
BOMB = zlib.compress(b" " * 100_000_000)


class Canary:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._path),)


@dataclass
class Trap:
    """What must stay as it is: a place that nothing may be written to, a port that nobody may speak to."""

    folder: Path
    port: int = 0
    visits: list[bytes] = field(default_factory=list)

    @property
    def canary(self) -> Path:
        return self.folder / "canary"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def is_untouched(self) -> bool:
        return not self.visits and not list(self.folder.iterdir())


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    folder = tmp_path / "trap"
    folder.mkdir()
    made = Trap(folder)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            made.visits.append(self.rfile.readline())

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        made.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield made
        server.shutdown()
        thread.join()


def push(redis: Redis, job_id: bytes, fields: Mapping[str, Any] | None) -> None:
    """Queue a job as any program can."""
    if fields:
        redis.hset(b"rq:job:" + job_id, mapping=dict(fields))  # type: ignore[arg-type]
    redis.rpush(QUEUE, job_id)


def data_of(*arguments: Any, function: Any = FUNCTION, instance: Any = None, **named: Any) -> bytes:
    return json.dumps([function, instance, list(arguments), named]).encode()


def recorded(farm: Farm) -> dict[str, tuple[str | None, str | None]]:
    """Return outcome and detail of every build on record."""
    query = select(builds_table.c.id, builds_table.c.outcome, builds_table.c.detail)
    with farm.store.read() as connection:
        return {row.id: (row.outcome, row.detail) for row in connection.execute(query)}


def wait_handled(farm: Farm, redis: Redis, timeout_s: float = 60) -> None:
    """Wait until nobody has any of the jobs any more."""
    wait_until(
        lambda: redis.llen(QUEUE) == 0 and redis.llen(IN_HAND) == 0,
        timeout_s,
        lambda: (
            f"{redis.llen(QUEUE)} queued, in hand {redis.lrange(IN_HAND, 0, 9)}\n{farm.agents[0].log()[-3000:]}"
        ),
    )


def assert_takes_builds(farm: Farm) -> None:
    """The agent is alive, and its slots take what is good."""
    assert farm.agents[0].process is not None
    assert farm.agents[0].process.poll() is None, farm.agents[0].log()[-4000:]
    ids = [farm.submit("true") for _ in range(4)]
    assert {farm.wait_ended(build_id, 15).outcome for build_id in ids} == {Outcome.PASSED}


def pickled(trap: Trap) -> bytes:
    return pickle.dumps((FUNCTION, None, (Canary(trap.canary),), {}))


# Each by itself: the job's hash, and a word of the reason that must stand on the record.
Make = Callable[[Trap], Mapping[str, Any]]
CASES: dict[str, tuple[Make, str]] = {
    "pickle": (lambda trap: {"data": pickled(trap)}, "pickled"),
    "compressed pickle": (lambda trap: {"data": zlib.compress(pickled(trap))}, "pickled"),
    "pickle in meta and result": (
        lambda trap: {"data": b"\xff", "meta": pickled(trap), "result": pickled(trap)},
        "not JSON",
    ),
    "other function": (
        lambda trap: {"data": data_of(str(trap.canary), function="os.mkdir")},
        "os.mkdir",
    ),
    "method of an instance": (
        lambda trap: {"data": data_of(GOOD, instance={"canary": str(trap.canary)})},
        "function",
    ),
    "no function": (lambda _: {"data": data_of(GOOD, function=None)}, "function"),
    "not JSON": (lambda _: {"data": b"{"}, "not JSON"),
    "not UTF-8": (lambda _: {"data": b"\xff\xfe"}, "not JSON"),
    "empty": (lambda _: {"data": b""}, "not JSON"),
    "other form": (lambda _: {"data": b'{"a": 1}'}, "form"),
    "nested without end": (lambda _: {"data": b"[" * 200_000}, "not JSON"),
    "bomb": (lambda _: {"data": BOMB}, "larger"),
    "two arguments": (lambda _: {"data": data_of(GOOD, GOOD)}, "one argument"),
    "named argument": (lambda _: {"data": data_of(steps=["true"])}, "one argument"),
    "text for a definition": (lambda _: {"data": data_of("steps: [true]")}, "mapping"),
    "later version": (
        lambda _: {"data": data_of(GOOD | {"version": 2, "strategy": {"matrix": []}})},
        "version 2 is newer than this agent reads (1)",
    ),
    "unknown key": (lambda _: {"data": data_of(GOOD | {"step": []})}, "step"),
    "nothing to run": (lambda _: {"data": data_of({"project": "test"})}, "nothing to run"),
    "NUL in text": (lambda _: {"data": data_of(GOOD | {"env": {"A": "a\0b"}})}, "NUL"),
    "lone surrogate": (lambda _: {"data": data_of(GOOD | {"env": {"A": "\ud800"}})}, "env"),
    "not a number": (lambda _: {"data": data_of(GOOD | {"timeout": float("nan")})}, "timeout"),
    "infinity": (lambda _: {"data": data_of(GOOD | {"max_attempts": float("inf")})}, "max_attempts"),
    "number beyond any": (lambda _: {"data": data_of(GOOD | {"timeout": 10**4000})}, "timeout"),
    "no data": (lambda _: {"description": "x"}, "can't be read"),
    "broken date": (lambda _: {"data": data_of(GOOD), "created_at": "yesterday"}, "can't be read"),
    "broken status": (lambda _: {"data": data_of(GOOD), "status": "spinning"}, "can't be read"),
    "broken number": (lambda _: {"data": data_of(GOOD), "result_ttl": "soon"}, "can't be read"),
    "bytes for a name": (lambda _: {"data": data_of(GOOD), "origin": b"\xff"}, "can't be read"),
}


@pytest.mark.slow
def test_f29_each_kind_of_malformed_job_is_refused_for_its_reason(farm: Farm, trap: Trap) -> None:
    redis = farm.carrier.connection
    farm.agent(slots=2)
    ids = {name: name.replace(" ", "-") for name in CASES}
    for name, (make, _) in CASES.items():
        push(redis, ids[name].encode(), make(trap))
    wait_handled(farm, redis)
    found = recorded(farm)
    for name, (_, word) in CASES.items():
        outcome, detail = found.get(ids[name], (None, None))
        assert (name, outcome) == (name, Outcome.REFUSED)
        assert word in (detail or ""), f"{name}: {detail}"
        # Whoever looks through RQ sees it too, for a day.
        assert redis.hget(f"rq:job:{ids[name]}", "status") == b"failed", name
        assert 0 < int(redis.ttl(f"rq:job:{ids[name]}")) <= 24 * 3600, name
    assert trap.is_untouched
    assert_takes_builds(farm)


def test_f29_callbacks_and_webhooks_that_a_job_names_are_not_called(sqlite_farm: Farm, trap: Trap) -> None:
    farm = sqlite_farm
    redis = farm.carrier.connection
    farm.agent(slots=1)
    named: dict[str, Any] = {}
    for kind in ("success", "failure", "stopped"):
        named |= {f"{kind}_callback_name": "os.mkdir", f"{kind}_callback_timeout": 60}
    hooks = [{"url": trap.url, "job_status": status, "timeout": 2} for status in ("finished", "failed")]
    named["webhooks"] = json.dumps(hooks)
    for number, command in enumerate(("true", "false")):
        push(redis, b"build-%d" % number, {"data": data_of(GOOD | {"steps": [command]}), **named})
    outcomes = []
    for number in range(2):
        wait_until(lambda n=number: f"build-{n}" in recorded(farm), 20)
        outcomes.append(farm.wait_ended(f"build-{number}").outcome)
    assert outcomes == [Outcome.PASSED, Outcome.FAILED]
    wait_handled(farm, redis)
    assert_takes_builds(farm)
    assert trap.is_untouched


WEIRD_IDS = [
    b"with space",
    b"with\nnewline",
    b"with\x00nul",
    b"../../../etc/passwd",
    b"caf\xc3\xa9",
    b"caf\xe9",
    b"\xff\xfe\xfd",
    b"\xed\xa0\x80",
    b"x" * 300,
    b"y" * 5000,
    bytes(random.Random(1).choices(range(33, 127), k=5000)),
    b"*",
    b"'; DROP TABLE builds; --",
    b" ",
    b"",
]


@pytest.mark.slow
def test_f29_weird_ids_are_refused_and_leave_nothing_in_redis(farm: Farm, trap: Trap) -> None:
    redis = farm.carrier.connection
    farm.agent(slots=2)
    for job_id in WEIRD_IDS:
        push(redis, job_id, {"data": data_of(GOOD | {"steps": [f"touch {trap.canary}"]})})
    wait_handled(farm, redis, 20)
    assert redis.lrange(QUEUE, 0, -1) == []
    assert redis.lrange(IN_HAND, 0, -1) == []
    found = recorded(farm)
    assert len(found) == len(WEIRD_IDS)
    assert {outcome for outcome, _ in found.values()} == {Outcome.REFUSED}
    assert all(detail for _, detail in found.values())
    assert_takes_builds(farm)


def test_f29_id_without_a_job_and_without_a_record_is_refused(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    redis = farm.carrier.connection
    farm.agent(slots=1)
    push(redis, b"nobody-knows-me", None)
    wait_until(lambda: "nobody-knows-me" in recorded(farm), 20)
    build = farm.build("nobody-knows-me")
    assert build.outcome is Outcome.REFUSED
    assert "no build of its id is on record" in (build.detail or "")
    wait_handled(farm, redis)


def test_f29_key_of_another_type_under_a_jobs_name_is_refused(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    redis = farm.carrier.connection
    farm.agent(slots=1)
    redis.set("rq:job:a-string", "x")
    redis.rpush("rq:job:a-list", "x", "y")
    redis.zadd("rq:job:a-sorted-set", {"x": 1})
    names = ["a-string", "a-list", "a-sorted-set"]
    for name in names:
        push(redis, name.encode(), None)
    wait_handled(farm, redis, 20)
    found = recorded(farm)
    assert {name: found[name][0] for name in names} == dict.fromkeys(names, Outcome.REFUSED)
    assert_takes_builds(farm)


def test_f29_job_for_a_build_that_ended_or_runs_changes_nothing(sqlite_farm: Farm, trap: Trap) -> None:
    farm = sqlite_farm
    redis = farm.carrier.connection
    farm.agent(slots=2)
    ended = farm.submit("true")
    farm.wait_ended(ended)
    running = farm.submit("echo up; sleep 2")
    farm.wait_running(running, printed="up")
    for build_id in (ended, running):
        push(redis, build_id.encode(), {"data": pickled(trap)})
    wait_handled(farm, redis)
    assert farm.build(ended).outcome is Outcome.PASSED
    assert farm.wait_ended(running).outcome is Outcome.PASSED
    assert farm.attempts(running) == [(1, Outcome.PASSED)]
    assert trap.is_untouched


def test_f29_numbers_in_a_good_jobs_hash_do_not_disturb_its_end(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    redis = farm.carrier.connection
    farm.agent(slots=1)
    hostile: list[dict[str, Any]] = [
        {"result_ttl": -5, "failure_ttl": -5, "ttl": -5},
        {"retries_left": 3, "retry_intervals": '["soon", null]', "number_of_retries": 9},
        {"repeats_left": 3, "repeat_intervals": '["soon"]'},
        {"timeout": 1, "group_id": b"g", "enqueue_at_front": 1},
        {"dependency_ids": '["a", "b"]', "allow_dependency_failures": 1},
        {"last_heartbeat": "2020-01-01T00:00:00Z", "worker_name": "x", "status": "finished"},
        {"started_at": "2020-01-01T00:00:00Z", "ended_at": "2020-01-01T00:00:00Z"},
        {"timeout": "-1", "description": "\u202e" * 1000},
    ]
    expected = {}
    for number, fields in enumerate(hostile):
        for command, outcome in (("true", Outcome.PASSED), ("false", Outcome.FAILED)):
            name = f"{command}-{number}"
            redis.sadd(f"rq:job:{name}:dependents", "no-such-job", "\u202e")
            push(redis, name.encode(), {"data": data_of(GOOD | {"steps": [command]}), **fields})
            expected[name] = outcome
    wait_until(lambda: expected.keys() <= recorded(farm).keys(), 30, lambda: farm.agents[0].log()[-3000:])
    for name, outcome in expected.items():
        build = farm.wait_ended(name)
        # Only a hash that can't be read is refused; what RQ would do by it is nobody's business here.
        assert build.outcome in (outcome, Outcome.REFUSED), name
    wait_handled(farm, redis)
    assert_takes_builds(farm)


def random_value(dice: random.Random, depth: int = 0) -> Any:
    """Return any JSON value, among them those that databases and parsers stumble over."""
    if depth < 4 and dice.random() < 0.4:
        if dice.random() < 0.5:
            return [random_value(dice, depth + 1) for _ in range(dice.randrange(4))]
        return {random_text(dice): random_value(dice, depth + 1) for _ in range(dice.randrange(4))}
    scalars = [
        None,
        True,
        0,
        -1,
        2**63,
        -(2**70),
        10**400,
        1e308,
        float("nan"),
        float("inf"),
        random_text(dice),
    ]
    return dice.choice(scalars)


def random_text(dice: random.Random) -> str:
    alphabet = "abc/.-_ \0\n\r\t\x7f\x1b'\"\\{}$\u202e\ud800\udfff\ufffe\U0001f600"
    words = ["project", "steps", "run", "version", "env", "source", "git", "deploy", "__proto__", "true"]
    if dice.random() < 0.5:
        return dice.choice(words)
    return "".join(dice.choices(alphabet, k=dice.choice((0, 1, 3, 10, 300))))


def random_job(dice: random.Random, trap: Trap) -> dict[str, Any] | None:
    """Return the hash of a job that no agent should run."""
    kind = dice.randrange(8)
    if kind == 0:
        data = dice.randbytes(dice.choice((0, 1, 10, 1000)))
    elif kind == 1:
        data = pickled(trap)
    elif kind == 2:
        data = data_of(
            str(trap.canary), function=dice.choice(["os.mkdir", "os.system", "agent.cli.main", ""])
        )
    elif kind == 3:
        data = json.dumps(random_value(dice)).encode()
    elif kind == 4:
        data = data_of(random_value(dice))
    elif kind == 5:
        # Right but for one thing.
        step = {"run": f"mkdir {trap.canary}", random_text(dice): random_value(dice)}
        step["no-such-key"] = random_value(dice)
        data = data_of(GOOD | {"steps": [step]})
    elif kind == 6:
        data = data_of(GOOD | {"version": dice.randrange(2, 1000), "x": random_value(dice)})
    else:
        return (
            None
            if dice.random() < 0.3
            else {random_text(dice).encode("utf-8", "replace").decode() or "f": b"x"}
        )
    if dice.random() < 0.3:
        data = zlib.compress(data)
    fields: dict[str, Any] = {"data": data}
    names = ["created_at", "status", "timeout", "meta", "result", "webhooks", "dependency_ids", "origin"]
    for name in dice.sample(names, dice.choice((0, 0, 1, 3))):
        fields[name] = dice.choice(
            [dice.randbytes(6), pickled(trap), json.dumps(random_value(dice)).encode()]
        )
    return fields


@pytest.mark.slow
def test_f29_thousands_of_malformed_jobs_run_nothing_and_hold_up_nobody(farm: Farm, trap: Trap) -> None:
    redis = farm.carrier.connection
    agent = farm.agent(slots=2)
    dice = random.Random(29)
    pipeline = redis.pipeline(transaction=False)
    expected = set()
    for number in range(BULK):
        job_id = f"bad-{number}"
        if dice.random() < 0.1:
            job_id += random_text(dice)[:50]
        raw = job_id.encode("utf-8", "surrogatepass")
        push(pipeline, raw, random_job(dice, trap))
        expected.add(printable(raw.decode("utf-8", "surrogateescape")))
        if number == BULK // 2:
            pipeline.execute()
            # Behind the first half, before the second: it waits its turn and runs.
            good = farm.submit("echo good")
    pipeline.execute()
    rss_before = psutil.Process(agent.pid).memory_info().rss
    wait_handled(farm, redis, 100)
    assert farm.wait_ended(good).outcome is Outcome.PASSED
    found = recorded(farm)
    assert expected <= found.keys(), sorted(expected - found.keys())[:5]
    refused = {found[job_id] for job_id in expected}
    assert {outcome for outcome, _ in refused} == {Outcome.REFUSED}
    assert all(detail for _, detail in refused)
    with farm.store.read() as connection:
        claimed = connection.execute(select(attempts_table.c.build_id)).scalars().all()
    assert claimed == [good]
    assert trap.is_untouched
    assert psutil.Process(agent.pid).memory_info().rss - rss_before < 64 << 20
    assert_takes_builds(farm)
    assert agent.get("/readyz")[0] == 200
