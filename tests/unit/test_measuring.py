"""The helper that benchmarks share: ratios of pairs, and none beside other work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def measuring(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measuring

    yield measuring
    sys.modules.pop("measuring")


def test_a_ratio_is_the_median_of_the_pairs(measuring):
    own = [measuring.Cost(seconds=n) for n in (2.0, 9.0, 3.0)]
    other = [measuring.Cost(seconds=n) for n in (1.0, 3.0, 3.0)]
    assert measuring.ratio(own, other) == {"ratio": 2.0}


def test_a_busy_machine_says_so_in_place_of_a_ratio(measuring):
    own, other = [measuring.Cost(seconds=2.0)], [measuring.Cost(seconds=1.0, other_cores=1.3)]
    found = measuring.ratio(own, other)
    assert "ratio" not in found and "other processes used 1.3 of" in found["busy"]


def test_memory_and_time_of_a_block_are_its_own(measuring):
    with measuring.measured() as cost:
        block = bytearray(80_000_000)
        block[::4096] = b"x" * len(block[::4096])
    assert 79 < cost.peak_mb < 120 and cost.cpu_seconds > 0 and cost.seconds > 0


def test_arms_alternate_and_the_first_round_is_not_counted(measuring):
    order: list[str] = []
    found = measuring.paired({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [len(costs) for costs in found.values()] == [2, 2]


def test_the_table_shows_cpu_seconds_alone_where_the_machine_was_busy(measuring):
    from bench import table

    line = {"benchmark": "store_scale", "what": "open", "seconds": 9.0, "cpu_seconds": 1.5, "peak_mb": 100.0}
    assert "| store_scale | open | 9.00 | 1.50 | 100 |" in table([line | {"other_cores": 0.1}])
    assert "| busy: 1.2 other cores | 1.50 |" in table([line | {"other_cores": 1.2}])
    sys.modules.pop("bench")
