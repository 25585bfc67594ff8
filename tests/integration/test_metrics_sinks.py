"""The sinks over real sockets: Librato down, slow, refusing and limiting; StatsD over UDP; a real scrape.

`FakeLibrato` is our own small HTTP server that plays Librato's v1 API as its documentation tells it. It is a
fake: it shows what the agent sends and how the agent takes each answer, not what Librato would make of it.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import re
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent import clock
from agent.metrics.catalogue import (
    BUILDS_ENDED,
    BUILDS_RUNNING,
    CATALOGUE,
    OUTPUT_BYTES,
    OUTPUT_LAG_SECONDS,
    QUEUE_WAITING,
    READINGS_DROPPED,
    SPOOL_BYTES,
    STEP_SECONDS,
    Timing,
)
from agent.metrics.librato import BATCH_LIMIT, QUEUE_LIMIT, LibratoSink
from agent.metrics.prometheus import CONTENT_TYPE, PrometheusExposition
from agent.metrics.pump import Pump, open_sinks
from agent.metrics.reading import CounterValue, GaugeValue, Reading
from agent.metrics.registry import Metrics
from agent.metrics.statsd import DATAGRAM_LIMIT, StatsdSink
from tests.services import free_port, wait_until

USER, TOKEN = "ops@example.com", "s3cret-tökén"
AT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@dataclass
class Answer:
    """What the fake answers; `gate` holds the answer back until it is set."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    gate: threading.Event | None = None


def _no_constant(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


class FakeLibrato:
    """Plays Librato on a free port: checks credentials and the form of each request, answers by script."""

    def __init__(self, port: int = 0) -> None:
        self.script: deque[Answer] = deque()
        self.requests: list[tuple[str, Any]] = []
        self.tried_mono: list[float] = []
        self.faults: list[str] = []
        self.connection_count = 0
        self.is_annotations_down = False
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                fake.connection_count += 1
                super().setup()

            def do_POST(self) -> None:
                fake.tried_mono.append(clock.mono())
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = fake.answer_to(self.path, dict(self.headers), body)
                if answer.gate is not None:
                    answer.gate.wait(30)
                try:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(answer.body)))
                    self.end_headers()
                    self.wfile.write(answer.body)
                except OSError:
                    self.close_connection = True  # the agent did not wait

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def answer_to(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Check the request and keep it if it is taken."""
        try:
            assert (
                headers["Authorization"] == "Basic " + base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
            )
            assert headers["Content-Type"] == "application/json"
            assert headers["User-Agent"].startswith("build-agent/")
            content = json.loads(body, parse_constant=_no_constant)
            if path == "/v1/metrics":
                assert 1 <= len(content["gauges"]) <= BATCH_LIMIT
                assert all(self._is_measurement(it) for it in content["gauges"]), content
            else:
                assert re.fullmatch(r"/v1/annotations/[A-Za-z0-9.:_-]{1,255}", path)
        except (AssertionError, KeyError, ValueError) as error:
            self.faults.append(repr(error))
            return Answer(400)
        if self.is_annotations_down and "/annotations/" in path:
            return Answer(503)
        answer = self.script.popleft() if self.script else Answer()
        if 200 <= answer.status < 300:
            self.requests.append((path, content))
        return answer

    @staticmethod
    def _is_measurement(it: dict[str, Any]) -> bool:
        keys = set(it) - {"attributes"}
        many = {"count", "sum", "min", "max", "sum_squares"}
        common = {"name", "source", "measure_time"}
        return keys in (common | {"value"}, common | many) and isinstance(it["measure_time"], int)

    def gauges(self) -> list[dict[str, Any]]:
        """All measurements taken, in order."""
        return [
            it for path, content in list(self.requests) if path == "/v1/metrics" for it in content["gauges"]
        ]

    def close(self) -> None:
        """Stop and give the port back."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def librato() -> Iterator[FakeLibrato]:
    fake = FakeLibrato()
    yield fake
    fake.close()
    assert fake.faults == []


@contextmanager
def sink_to(url: str, **settings: Any) -> Iterator[LibratoSink]:
    """A sink with a short back-off, closed at the end."""
    quick: dict[str, Any] = {"retry_first_s": 0.02, "retry_limit_s": 0.1, "source": "web 1"}
    sink = LibratoSink(url=url, user=USER, token=TOKEN, **(quick | settings))
    try:
        yield sink
    finally:
        sink.close(1.0)


def running(value: float) -> list[Reading]:
    return [GaugeValue(metric=BUILDS_RUNNING, labels=(), value=value)]


def many(count: int) -> list[Reading]:
    return [GaugeValue(metric=BUILDS_RUNNING, labels=(), value=number) for number in range(count)]


def has_dropped(sink: StatsdSink, count: int) -> bool:
    return sink.dropped_count == count


def within_s(call: Callable[[], object]) -> float:
    """How long a call took."""
    start = clock.mono()
    call()
    return clock.mono() - start


def test_every_kind_of_reading_arrives_at_librato(librato: FakeLibrato) -> None:
    metrics = Metrics()
    sinks = open_sinks(
        librato_url=librato.url, librato_user=USER, librato_token=TOKEN, statsd_address="", source="web 1"
    )
    pump = Pump(metrics, sinks, 10)
    metrics.set(BUILDS_RUNNING, 3)
    metrics.add(BUILDS_ENDED, 2, outcome="passed")
    metrics.observe(STEP_SECONDS, 1.0)
    metrics.observe(STEP_SECONDS, 3.0)
    pump.close(5.0)
    found = {it["name"]: it for it in librato.gauges()}
    assert found["builds.running"]["value"] == 3
    assert found["builds.ended.passed"]["value"] == 2
    assert {key: found["steps.duration"][key] for key in ("count", "sum", "min", "max", "sum_squares")} == {
        "count": 2, "sum": 4.0, "min": 1.0, "max": 3.0, "sum_squares": 10.0,
    }  # fmt: skip
    assert {it["source"] for it in found.values()} == {"web_1"}
    assert all(abs(it["measure_time"] - clock.utc_now().timestamp()) < 60 for it in found.values())


def test_nonsense_never_leaves(librato: FakeLibrato) -> None:
    metrics = Metrics()
    with sink_to(librato.url) as sink:
        for value in (math.nan, math.inf, -math.inf):
            metrics.set(BUILDS_RUNNING, value)
            metrics.add(OUTPUT_BYTES, value)
            metrics.observe(STEP_SECONDS, value)
            sink.publish([*metrics.take(), *running(value)], AT)
        sink.close(5.0)
    # The fake refuses a body with NaN or Infinity, and fails the test at its end.
    assert {it["name"] for it in librato.gauges()} == {it.name for it in CATALOGUE if _is_bare_counter(it)}
    assert all(math.isfinite(it["value"]) for it in librato.gauges())
    assert sink.dropped_count == 3


def _is_bare_counter(metric: object) -> bool:
    return getattr(metric, "kind", "") == "counter" and not getattr(metric, "labels", ())


def test_readings_leave_in_batches_librato_takes(librato: FakeLibrato) -> None:
    with sink_to(librato.url) as sink:
        sink.publish(many(1000), AT)
        wait_until(lambda: len(librato.gauges()) == 1000)
    assert [it["value"] for it in librato.gauges()] == list(range(1000))
    assert len(librato.requests) == 4
    assert librato.connection_count == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_passing_refusal_is_tried_again_and_nothing_lost(librato: FakeLibrato, status: int) -> None:
    librato.script.extend([Answer(status)] * 3)
    with sink_to(librato.url) as sink:
        for value in range(5):
            sink.publish(running(value), AT)
        wait_until(lambda: len(librato.gauges()) == 5)
        assert sink.dropped_count == 0
    assert [it["value"] for it in librato.gauges()] == list(range(5))


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_retry_after_is_honoured(librato: FakeLibrato, kind: str) -> None:
    # A date knows whole seconds only: two seconds ahead is a wait of more than one.
    later = clock.utc_now() + timedelta(seconds=2)
    wish = "1" if kind == "seconds" else later.strftime("%a, %d %b %Y %H:%M:%S GMT")
    librato.script.append(Answer(429, {"Retry-After": wish}))
    with sink_to(librato.url) as sink:
        sink.publish(running(1), AT)
        wait_until(lambda: len(librato.gauges()) == 1)
    first, second = librato.tried_mono
    assert second - first >= 0.9


def test_malformed_request_is_dropped_counted_and_the_next_goes_on(librato: FakeLibrato) -> None:
    librato.script.append(Answer(400, body=b'{"errors":{"params":{"name":["is invalid"]}}}'))
    with sink_to(librato.url) as sink:
        sink.publish(many(3), AT)
        wait_until(lambda: sink.dropped_count == 3)
        sink.publish(running(7), AT)
        wait_until(lambda: [it["value"] for it in librato.gauges()] == [7])


def test_redirect_is_not_followed(librato: FakeLibrato) -> None:
    librato.script.append(Answer(302, {"Location": f"http://127.0.0.1:{librato.port}/elsewhere"}))
    with sink_to(librato.url) as sink:
        sink.publish(many(3), AT)
        wait_until(lambda: sink.dropped_count == 3)
    assert len(librato.tried_mono) == 1


def test_wrong_credentials_are_named_once_without_the_token_and_not_hammered(
    librato: FakeLibrato, caplog: pytest.LogCaptureFixture
) -> None:
    librato.script.extend([Answer(401)] * 50)
    with sink_to(librato.url) as sink, caplog.at_level(logging.DEBUG, "agent"):
        for value in range(50):
            sink.publish(running(value), AT)
        wait_until(lambda: "librato_token" in caplog.text)
        assert within_s(lambda: sink.close(5.0)) < 2.0, "close does not wait a minute for better credentials"
    assert len(librato.tried_mono) == 1
    assert len([it for it in caplog.records if "librato_token" in it.getMessage()]) == 1
    assert TOKEN not in caplog.text
    assert sink.dropped_count == 50


def test_librato_down_for_an_hour_costs_nothing_but_the_wait() -> None:
    port = free_port()
    with sink_to(f"http://127.0.0.1:{port}/v1/metrics") as sink:
        worst_s = 0.0
        for number in range(360):
            at = AT + timedelta(seconds=10 * number)
            worst_s = max(worst_s, within_s(partial(sink.publish, many(60), at)))
        assert sink.dropped_count == 0
        assert worst_s < 1.0
        fake = FakeLibrato(port)
        try:
            wait_until(lambda: len(fake.gauges()) == 360 * 60, 30.0)
        finally:
            fake.close()
    stamps = [it["measure_time"] for it in fake.gauges()]
    assert fake.faults == []
    assert stamps == sorted(stamps)
    assert (stamps[0], stamps[-1]) == (int(AT.timestamp()), int(AT.timestamp()) + 3590)


def test_full_queue_drops_the_oldest_and_counts_them() -> None:
    port = free_port()
    with sink_to(f"http://127.0.0.1:{port}/v1/metrics", queue_limit=500) as sink:
        for value in range(800):
            sink.publish(running(value), AT)
        wait_until(lambda: sink.waiting_count + sink.dropped_count == 800)
        fake = FakeLibrato(port)
        try:
            wait_until(lambda: len(fake.gauges()) >= 500)
        finally:
            fake.close()
        assert sink.dropped_count == 300
    assert [it["value"] for it in fake.gauges()] == list(range(300, 800))


def test_queue_holds_an_hour_of_every_series() -> None:
    metrics = Metrics()
    for metric in CATALOGUE:
        if isinstance(metric, Timing):
            metrics.observe(metric, 1.0)
    # Gauges do not stand before they are set; the bound counts every metric once and 40 label values more.
    assert (len(CATALOGUE) + 40) * 360 <= QUEUE_LIMIT
    assert len(metrics.take()) <= len(CATALOGUE)


def test_slow_librato_holds_neither_publisher_nor_close(librato: FakeLibrato) -> None:
    gate = threading.Event()
    librato.script.append(Answer(gate=gate))
    try:
        with sink_to(librato.url) as sink:
            sink.publish(running(1), AT)
            wait_until(lambda: librato.tried_mono)
            assert max(within_s(lambda: sink.publish(many(60), AT)) for _ in range(20)) < 0.5
            assert within_s(lambda: sink.close(0.5)) < 2.0
            assert sink.dropped_count == 1200
    finally:
        gate.set()


def test_answer_that_never_comes_is_tried_again(librato: FakeLibrato) -> None:
    gate = threading.Event()
    librato.script.append(Answer(503, gate=gate))
    try:
        with sink_to(librato.url, read_timeout_s=0.2) as sink:
            sink.publish(running(1), AT)
            wait_until(lambda: len(librato.gauges()) == 1)
    finally:
        gate.set()
    assert len(librato.tried_mono) == 2


def test_close_sends_what_waits(librato: FakeLibrato) -> None:
    librato.script.append(Answer(503))
    with sink_to(librato.url, retry_first_s=30.0, retry_limit_s=30.0) as sink:
        sink.publish(many(700), AT)
        wait_until(lambda: librato.tried_mono)
        # Our own back-off of up to 30 s ends with the close: the last readings get their last try.
        assert within_s(lambda: sink.close(10.0)) < 5.0
    assert len(librato.gauges()) == 700
    assert sink.dropped_count == 0


def test_close_ends_in_its_limit_with_librato_down_and_says_what_was_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with sink_to(f"http://127.0.0.1:{free_port()}/v1/metrics") as sink:
        sink.publish(many(10), AT)
        assert within_s(lambda: sink.close(0.5)) < 2.0
        assert sink.dropped_count == 10
        sink.publish(many(5), AT)
        assert sink.dropped_count == 15
    assert "10 readings were not sent" in caplog.text


def test_outage_is_logged_at_its_start_and_end_only(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with caplog.at_level(logging.INFO, "agent"), sink_to(f"http://127.0.0.1:{port}/v1/metrics") as sink:
        for value in range(50):
            sink.publish(running(value), AT)
        wait_until(lambda: "can't be reached" in caplog.text)
        fake = FakeLibrato(port)
        try:
            wait_until(lambda: len(fake.gauges()) == 50)
            wait_until(lambda: "takes readings again" in caplog.text)
        finally:
            fake.close()
    assert [it.levelname for it in caplog.records] == ["WARNING", "INFO"]


def test_deployment_becomes_an_annotation(librato: FakeLibrato) -> None:
    with sink_to(librato.url) as sink:
        Pump(Metrics(), [sink], 10).annotate(
            "deploys/production shop",
            title="shop 4f2c1a9",
            description="by ann",
            start_at=AT,
            end_at=AT + timedelta(seconds=90),
        )
        wait_until(lambda: librato.requests)
    start = int(AT.timestamp())
    assert librato.requests[0] == (
        "/v1/annotations/deploys_production_shop",
        {
            "title": "shop 4f2c1a9",
            "source": "web_1",
            "description": "by ann",
            "start_time": start,
            "end_time": start + 90,
        },
    )


def test_annotations_that_fail_do_not_hold_gauges_up(librato: FakeLibrato) -> None:
    def is_annotated() -> bool:
        return any(path != "/v1/metrics" for path, _ in librato.requests)

    librato.is_annotations_down = True
    with sink_to(librato.url) as sink:
        sink.annotate("deploys", title="one", start_at=AT)
        sink.publish(many(700), AT)
        wait_until(lambda: len(librato.gauges()) == 700)
        assert not is_annotated()
        librato.is_annotations_down = False
        wait_until(is_annotated)
        assert sink.dropped_count == 0


def test_what_librato_drops_shows_in_a_scrape(librato: FakeLibrato) -> None:
    librato.script.append(Answer(400))
    metrics = Metrics()
    metrics.set(BUILDS_RUNNING, 1)
    with sink_to(librato.url) as sink:
        pump = Pump(metrics, [sink], 10)
        pump.cycle()
        wait_until(lambda: sink.dropped_count)
        pump.cycle()
        dropped = sink.dropped_count
    text = PrometheusExposition(metrics).render()[0].decode()
    assert f'{READINGS_DROPPED.prometheus_name}{{sink="librato"}} {float(dropped)}' in text.splitlines()


def test_scrape_is_what_prometheus_own_parser_reads() -> None:
    metrics = Metrics()
    metrics.set(SPOOL_BYTES, 2**40)
    metrics.set(QUEUE_WAITING, 4, queue='odd "queue"\\\n')
    metrics.add(BUILDS_ENDED, 2, outcome="passed")
    for seconds in (0.1, 0.25, 400.0):
        metrics.observe(OUTPUT_LAG_SECONDS, seconds)
    body, content_type = PrometheusExposition(metrics).render()
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert content_type == CONTENT_TYPE
    for metric in CATALOGUE:
        family = families[metric.prometheus_name.removesuffix("_total")]
        assert family.documentation == metric.help
        assert family.type == {"timing": "histogram"}.get(metric.kind, metric.kind)
    assert samples[("build_agent_spool_bytes",)] == 2**40
    assert samples["build_agent_queue_waiting_builds", ("queue", 'odd "queue"\\\n')] == 4
    assert samples["build_agent_builds_ended_total", ("outcome", "passed")] == 2
    assert samples["build_agent_builds_ended_total", ("outcome", "lost")] == 0
    lag = "build_agent_output_lag_seconds"
    assert samples[f"{lag}_bucket", ("le", "0.1")] == 1
    assert samples[f"{lag}_bucket", ("le", "0.25")] == 2
    assert samples[f"{lag}_bucket", ("le", "60.0")] == 2
    assert samples[f"{lag}_bucket", ("le", "+Inf")] == samples[(f"{lag}_count",)] == 3
    assert samples[(f"{lag}_sum",)] == pytest.approx(400.35)
    assert all(math.isfinite(value) for value in samples.values())


def test_scrapes_take_nothing_from_the_pump() -> None:
    metrics = Metrics()
    exposition = PrometheusExposition(metrics)
    metrics.add(OUTPUT_BYTES, 5)
    assert exposition.render() == exposition.render()
    assert [it.increase for it in metrics.take() if it.metric is OUTPUT_BYTES] == [5]


def test_agent_without_librato_imports_neither_requests_nor_prometheus_client() -> None:
    program = """
import sys
from agent.metrics import machine, prometheus, pump, registry
metrics = registry.Metrics()
prometheus.PrometheusExposition(metrics)
pump.open_sinks(librato_url="", librato_user="", librato_token="", statsd_address="127.0.0.1:9", source="s")
print(sorted({"requests", "prometheus_client"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def statsd_socket() -> Iterator[socket.socket]:
    """A StatsD that only listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(10)
        yield listener


def test_statsd_gets_gauges_growth_and_timings(statsd_socket: socket.socket) -> None:
    metrics = Metrics()
    (sink,) = open_sinks(
        librato_url="",
        librato_user="",
        librato_token="",
        statsd_address=f"127.0.0.1:{statsd_socket.getsockname()[1]}",
        source="web.1:a",
    )
    metrics.set(BUILDS_RUNNING, 3)
    metrics.add(BUILDS_ENDED, 2, outcome="passed")
    metrics.observe(STEP_SECONDS, 1.5)
    Pump(metrics, [sink], 10).close(5.0)
    assert statsd_socket.recv(65536).decode().split("\n") == [
        "build_agent.web_1_a.builds.running:3|g",
        "build_agent.web_1_a.builds.ended.passed:2|c",
        "build_agent.web_1_a.steps.duration:1500|ms",
    ]
    assert sink.dropped_count == 0


def test_statsd_splits_into_datagrams_that_fit_a_frame(statsd_socket: socket.socket) -> None:
    sink = StatsdSink(address=f"127.0.0.1:{statsd_socket.getsockname()[1]}", source="web-1")
    sink.publish(many(200), AT)
    sink.close(5.0)
    lines: list[str] = []
    while len(lines) < 200:
        datagram = statsd_socket.recv(65536)
        assert len(datagram) <= DATAGRAM_LIMIT
        lines += datagram.decode().split("\n")
    assert lines == [f"build_agent.web-1.builds.running:{number}|g" for number in range(200)]


def test_statsd_survives_a_name_without_address_and_finds_it_later(
    statsd_socket: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[str] = []

    def resolve(_host: str, port: int, **_: object) -> list[Any]:
        if not answers:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (answers[0], port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    sink = StatsdSink(address=f"statsd.invalid:{statsd_socket.getsockname()[1]}", source="web-1")
    for count in (1, 2):
        sink.publish(running(1), AT)
        wait_until(partial(has_dropped, sink, count))
    answers.append("127.0.0.1")
    sink.publish(running(5), AT)
    assert statsd_socket.recv(65536) == b"build_agent.web-1.builds.running:5|g"
    sink.close(5.0)
    assert sink.dropped_count == 2
    assert caplog.text.count("has no address") == 1


def test_statsd_whose_resolver_hangs_holds_neither_publisher_nor_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        gate.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    sink = StatsdSink(address="statsd.invalid:8125", source="web-1")
    try:
        assert max(within_s(lambda: sink.publish(many(500), AT)) for _ in range(50)) < 0.5
        assert within_s(lambda: sink.close(0.2)) < 2.0
        assert sink.dropped_count > 0
    finally:
        gate.set()


def test_counts_of_many_threads_all_arrive(librato: FakeLibrato) -> None:
    metrics = Metrics()
    with sink_to(librato.url) as sink:
        pump = Pump(metrics, [sink], 0.01)

        def count() -> None:
            for _ in range(2_000):
                metrics.add(OUTPUT_BYTES, 1)

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            pump.cycle()
        for thread in threads:
            thread.join()
        pump.close(10.0)
    sent = sum(it["value"] for it in librato.gauges() if it["name"] == OUTPUT_BYTES.name)
    total = [
        it.total for it in metrics.snapshot() if isinstance(it, CounterValue) and it.metric is OUTPUT_BYTES
    ]
    assert [sent] == total == [8_000]
