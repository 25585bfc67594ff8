"""The metrics as Prometheus' text format, for the health endpoint to serve.

A scrape reads the registry; nothing is stored here. prometheus_client is imported with the first scrape: its
import takes 70 ms (it brings http.server and wsgiref), which the agent's start does not wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from agent.metrics.catalogue import CATALOGUE, Counter, Gauge, Metric, Timing
from agent.metrics.reading import CounterValue, GaugeValue, TimingTotals, Totals
from agent.metrics.registry import Metrics

if TYPE_CHECKING:
    from prometheus_client import Metric as Family

# The version every Prometheus reads. The library names 1.0.0, which differs only for names beyond ASCII.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class PrometheusExposition:
    """Render the registry for a scrape; may be called on any thread and by several at once."""

    def __init__(self, metrics: Metrics) -> None:
        """Take the registry; import nothing yet."""
        self._metrics = metrics
        self._generate: Callable[[], bytes] | None = None

    def render(self) -> tuple[bytes, str]:
        """Return the body and its content type."""
        if self._generate is None:
            self._generate = _generator(self._metrics)
        return self._generate(), CONTENT_TYPE


def _generator(metrics: Metrics) -> Callable[[], bytes]:
    from prometheus_client.exposition import generate_latest
    from prometheus_client.registry import Collector, CollectorRegistry

    class RegistryCollector(Collector):
        """Turn the registry into Prometheus' families at each scrape."""

        def collect(self) -> Iterator[Family]:
            series: dict[Metric, list[Totals]] = {}
            for totals in metrics.snapshot():
                series.setdefault(totals.metric, []).append(totals)
            for metric in CATALOGUE:
                yield _family(metric, series.get(metric, []))

    # Its own registry: the library's global one reports the process a second time, under other names.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RegistryCollector())
    return lambda: generate_latest(registry)


def _family(metric: Metric, series: list[Totals]) -> Family:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.utils import floatToGoString

    name, help_text, labels = metric.prometheus_name, metric.help, metric.labels
    match metric:
        case Gauge():
            gauges = GaugeMetricFamily(name, help_text, labels=labels)
            for gauge in series:
                if isinstance(gauge, GaugeValue):
                    gauges.add_metric(gauge.labels, gauge.value)
            return gauges
        case Counter():
            counters = CounterMetricFamily(name, help_text, labels=labels)
            for counter in series:
                if isinstance(counter, CounterValue):
                    counters.add_metric(counter.labels, counter.total)
            return counters
        case Timing():
            bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
            histograms = HistogramMetricFamily(name, help_text, labels=labels)
            for timing in series:
                if isinstance(timing, TimingTotals):
                    buckets = list(zip(bounds, accumulate(timing.bucket_counts), strict=True))
                    histograms.add_metric(timing.labels, buckets, timing.sum)
            return histograms
    raise TypeError(f"metric {metric.name} is of no kind that Prometheus knows")
