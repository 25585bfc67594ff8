"""The catalogue: well-formed, unique names everywhere, and docs/metrics.md word for word."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.metrics_core import Metric as Family

from agent.metrics.catalogue import AGENT_CPU, CATALOGUE, SLOTS_TOTAL, SPOOL_BYTES, Counter, Gauge, Timing
from agent.metrics.librato_format import clean_name

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


def docs_row(metric: object) -> str:
    """The line of the table in docs/metrics.md that a metric must have."""
    assert isinstance(metric, Gauge | Counter | Timing)
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    cells = [f"`{metric.name}`", f"`{metric.prometheus_name}`", metric.kind, metric.unit, labels, metric.help]
    return "| " + " | ".join(cells).replace("|  |", "| |") + " |"


def test_docs_hold_every_metric_with_its_unit_and_help_and_no_other() -> None:
    expected = [docs_row(metric) for metric in CATALOGUE]
    found = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    assert found == expected, "docs/metrics.md must hold these rows:\n" + "\n".join(expected)


def test_names_are_dotted_words_that_librato_takes_as_they_are() -> None:
    for metric in CATALOGUE:
        assert re.fullmatch(r"[a-z]+(\.[a-z]+(_[a-z]+)*)+", metric.name), metric.name
        assert clean_name(metric.name) == metric.name
        assert metric.help.endswith(".")
        assert metric.help[0].isupper()
        assert "|" not in metric.help
        assert metric.unit


def test_names_are_unique_in_every_sink() -> None:
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)
    samples = [
        name + suffix
        for metric in CATALOGUE
        for name in [metric.prometheus_name]
        for suffix in (("_bucket", "_sum", "_count") if isinstance(metric, Timing) else ("",))
    ]
    assert len(set(samples)) == len(samples)


def test_label_values_appended_to_a_name_never_make_another_metrics_name() -> None:
    labelled = [metric.name for metric in CATALOGUE if metric.labels]
    for metric in CATALOGUE:
        assert not any(metric.name.startswith(f"{name}.") for name in labelled), metric.name


def test_prometheus_names_follow_its_conventions() -> None:
    assert SPOOL_BYTES.prometheus_name == "build_agent_spool_bytes"
    assert AGENT_CPU.prometheus_name == "build_agent_cpu_seconds_total"
    assert SLOTS_TOTAL.prometheus_name == "build_agent_slots"
    for metric in CATALOGUE:
        name = metric.prometheus_name
        assert Family(name, metric.help, "unknown").name == name
        assert re.fullmatch(r"build_agent(_[a-z]+)+", name)
        assert name.endswith("_total") == isinstance(metric, Counter)
        assert not isinstance(metric, Timing) or name.endswith("_seconds")


def test_buckets_ascend_and_labels_are_well_formed() -> None:
    for metric in CATALOGUE:
        assert all(re.fullmatch(r"[a-z]+", label) and label != "le" for label in metric.labels)
        assert all(len(values) == len(metric.labels) for values in metric.known)
        if isinstance(metric, Timing):
            assert list(metric.buckets) == sorted(set(metric.buckets))
            assert metric.buckets[0] > 0
