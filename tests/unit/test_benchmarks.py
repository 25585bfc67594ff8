"""The benchmarks' arithmetic and the page they write; what they measure is theirs alone."""

from __future__ import annotations

import pytest

from benchmarks import page
from benchmarks.figure import Effort, Report, Row, Samples, at_least, at_most, percentile, ratios


def _row(*samples: float, **fields: object) -> Row:
    defaults: dict[str, object] = {"name": "speed", "unit": "x", "samples": samples, "meaning": "how fast"}
    return Row(**defaults | fields)  # type: ignore[arg-type]


def _section(title: str, *samples: float) -> str:
    report = Report(words="Words.", rows=[_row(*samples)])
    return page.section(title, report, circumstances="Measured: on a machine.")


def test_ratio_is_taken_within_each_round() -> None:
    assert ratios([10.0, 40.0], [5.0, 10.0]) == [2.0, 4.0]


def test_ratio_of_rounds_that_do_not_match_is_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1), (0.901, 91)])
def test_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_median_is_not_moved_by_one_bad_round() -> None:
    assert _row(2.0, 2.2, 900.0).median == 2.2


@pytest.mark.parametrize(
    ("target", "value", "is_met"),
    [
        (at_most(20), 20.0, True),
        (at_most(20), 20.1, False),
        (at_least(2.5), 2.5, True),
        (at_least(2.5), 2.4, False),
        (None, 1.0, None),
    ],
)
def test_target_is_compared_with_the_median(target: object, value: float, is_met: bool | None) -> None:
    assert _row(value, target=target).is_met is is_met


def test_quick_effort_picks_the_small_size() -> None:
    assert [Effort(rounds=1, is_quick=quick).pick(100, 7) for quick in (False, True)] == [100, 7]


def test_samples_are_collected_by_key() -> None:
    found = Samples()
    found.add(ours=1.0, theirs=2.0)
    found.add(ours=3.0, theirs=4.0)
    assert (found["ours"], found["theirs"]) == ([1.0, 3.0], [2.0, 4.0])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1_234_567, "1,230,000"),
        (1000, "1,000"),
        (999.6, "1,000"),
        (235.4, "235"),
        (12.34, "12.3"),
        (2.567, "2.57"),
        (0.0, "0.00"),
    ],
)
def test_numbers_have_three_figures(value: float, expected: str) -> None:
    assert page.number(value) == expected


def test_table_shows_median_spread_target_and_verdict() -> None:
    rows = [
        _row(2.0, 3.0, 4.0, target=at_least(2.5)),
        _row(7.0, name="lag", unit="ms", target=at_most(5)),
    ]
    assert page.table(Report(words="", rows=rows)) == [
        "| what  |  median | least to greatest | target  |        |",
        "| ----- | ------: | ----------------: | ------- | ------ |",
        "| speed |  3.00 x |      2.00 to 4.00 | ≥ 2.5 x | met    |",
        "| lag   | 7.00 ms |         one round | ≤ 5 ms  | missed |",
    ]


def test_section_explains_every_row() -> None:
    text = _section("Speed", 1.0)
    assert "- **speed**: how fast" in text
    assert "*Measured: on a machine.*" in text


def test_page_keeps_the_sections_that_did_not_run() -> None:
    order = ["First", "Second", "Third"]
    old = page.whole(
        page.merge("", {"Third": _section("Third", 3.0), "First": _section("First", 1.0)}, order=order),
        subjects=["a", "b"],
    )
    merged = page.merge(
        old, {"Second": _section("Second", 2.0), "First": _section("First", 9.0)}, order=order
    )
    assert [line for line in merged.splitlines() if line.startswith("## ")] == [
        "## First",
        "## Second",
        "## Third",
    ]
    assert "9.00 x" in merged
    assert "1.00 x" not in merged
    assert "3.00 x" in merged


def test_page_written_twice_is_the_same() -> None:
    sections = {"First": _section("First", 1.0)}
    once = page.whole(page.merge("", sections, order=["First"]), subjects=["a"])
    assert page.whole(page.merge(once, sections, order=["First"]), subjects=["a"]) == once
