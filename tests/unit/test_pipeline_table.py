"""The last row of a pipeline's table: sums, and what is not known."""

import pytest

from s2l_ext.pipeline.table import final_table


def row(name: str, tokens: int | None, seconds: float | None, flops: float | None) -> dict:
    cost = {"tokens": tokens, "accelerator_seconds": seconds, "flops": flops}
    return {"stage": name, "model": name, "accuracy": {}, "validation_accuracy": None} | cost


@pytest.mark.parametrize(("flops", "total"), [(3e9, "5.00e+09"), (0, "2.00e+09"), (None, "")])
def test_the_total_is_empty_where_a_stages_flops_are_not_known(flops, total: str) -> None:
    """A model that was only evaluated has no cost."""
    rows = [row("base", None, None, None), row("warm_up", 100, 10.0, 2e9), row("opd", 50, 5.0, flops)]
    last = final_table(rows).splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[1:-1]] == ["total", "", "", "150", "15", total]
