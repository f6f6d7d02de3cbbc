"""The sections of a curriculum from hand-made runs, and the chart kinds they are made of."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape

from s2l_ext.errors import DataError
from s2l_ext.report import curriculum, curves, overview
from s2l_ext.report.charts import (
    MOST_COLUMNS,
    WIDTH,
    Frame,
    Line,
    Values,
    axes,
    by_label,
    chart,
    columns,
    differences,
    heat_map,
    round_range,
    tick_text,
)
from s2l_ext.report.draws import BINS, ChiSquare, chi_square, read_draws, tally
from s2l_ext.report.page import page
from s2l_ext.report.run import CURRICULUM, KL, Run, read_run


def spread(**counts: float) -> list[float]:
    """Twenty zeros, and ``b10=3`` puts 3 into bin 10."""
    values = [0.0] * BINS
    for name, count in counts.items():
        values[int(name[1:])] = count
    return values


def line(step: int, **changes) -> dict:
    fields = {
        "step": step,
        "type": "gaussian",
        "indices": [0, 1],
        "pass_rates": [0.5, None],
        "histogram": spread(b0=10, b10=30),
        "bucket_mass": spread(b0=0.25, b10=0.75),
        "bucket_draws": spread(b0=1, b10=3),
        "visits": [30, 8, 2],
    }
    return fields | changes


def step_metrics(accuracy: float, rho: float, bins: dict[str, float]) -> dict:
    shares = {f"{CURRICULUM}pass_rate_hist/{i:02d}": value for i, value in enumerate(spread(**bins))}
    kl = {KL + "beta": 0.02 * rho, KL + "accuracy": accuracy, KL + "rho": rho, KL + "kl": 0.003}
    rates = {f"{CURRICULUM}pass_rate_{q}": v for q, v in (("mean", 0.4), ("q10", 0.1), ("q25", 0.2), ("q50", 0.4))}
    more = {f"{CURRICULUM}pass_rate_q75": 0.6, f"{CURRICULUM}pass_rate_q90": 0.8}
    return {**shares, **kl, **rates, **more, CURRICULUM + "effective_sample_size": 30.0}


def write(folder: Path, metrics: list[tuple[int, dict]], lines: list[dict] | None) -> Run:
    folder.mkdir(exist_ok=True)
    rows = [json.dumps({"step": step, "data": data}) + "\n" for step, data in metrics]
    (folder / "metrics.jsonl").write_text("".join(rows))
    if lines is not None:
        (folder / "curriculum.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return read_run(folder)


@pytest.fixture
def run(tmp_path) -> Run:
    metrics = [
        (1, step_metrics(0.75, 0.8, {"b10": 1.0})),
        (2, step_metrics(0.25, 0.6, {"b0": 0.2, "b13": 0.8})),
    ]
    return write(tmp_path / "run", metrics, [line(1), line(2)])


def html_of(run: Run) -> str:
    return page(run.name, run.name, curriculum.lead(run), curriculum.sections(run))


def test_the_page_is_balanced_labelled_and_loads_nothing(run, read_page):
    text = html_of(run)
    page = read_page(text)
    drawings = [attrs for tag, attrs in page.elements if tag == "svg" and attrs.get("aria-hidden") != "true"]
    assert len(drawings) == 9
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawings)
    assert len(page.of_class("reading")) == 9
    assert "http" not in text and "<script" not in text and "prefers-color-scheme: dark" in text
    assert [attrs["id"] for tag, attrs in page.elements if tag == "section"] == ["pass_rates", "draws", "kl"]


def test_exact_numbers_appear(run):
    text = html_of(run)
    assert "batch accuracy 0.25, KL coefficient 0.012, KL to the reference (nats per token) 0.003" in text
    assert "effective sample size (prompts) 30, 75.0% of the prompts never seen" in text
    assert "At step 2 the fullest bin is 0.65 to 0.70, with 80.0% of the prompts." in text
    assert "75.0% of the 40 prompts were never seen up to step 2" in text
    assert "effective sample size / prompts, step 2: 0.75" in text
    assert "drawn, 0.50: 6<" in text


def test_heat_map_has_a_cell_for_every_bin_and_is_darkest_where_the_mass_is(run, read_page):
    cells = read_page(curriculum.pass_rate_map(run)).of_class("cell")
    assert len(cells) == 2 * BINS
    shades = np.array([float(cell["fill-opacity"]) for cell in cells]).reshape(2, BINS)
    assert shades[0].argmax() == 10 and shades[0, 10] == 1.0
    assert shades[1].argmax() == 13 and shades[1, 13] == pytest.approx(np.sqrt(0.8), abs=1e-3)
    assert shades[1, 0] == pytest.approx(np.sqrt(0.2), abs=1e-3) and np.count_nonzero(shades) == 3
    ys = [float(cell["y"]) for cell in cells[:BINS]]
    assert ys == sorted(ys, reverse=True)


def test_histogram_comes_from_the_counts_when_the_metrics_have_none(tmp_path):
    run = write(tmp_path / "run", [(1, {CURRICULUM + "pass_rate_mean": 0.4})], [line(1)])
    assert "the fullest bin is 0.50 to 0.55, with 75.0% of the prompts" in html_of(run)


def test_two_thousand_steps_fit_into_the_columns():
    found = columns([(step, [float(step)]) for step in range(1, 2001)])
    assert len(found) <= MOST_COLUMNS
    assert (found[0][:2], found[0][2][0]) == ((1, 17), 9.0)
    assert found[-1][1] == 2000
    assert [first for first, *_ in columns([(5, [1.0]), (500, [1.0])])] == [5, 500]


@pytest.mark.parametrize("rows", [[(7, spread(b3=1.0))], [(step, spread(b3=1.0)) for step in range(1, 61)]])
def test_neighbouring_cells_leave_no_seam(rows, read_page):
    page = read_page(heat_map("Map", "pass rate", "prompts", rows, "See."))
    edges = [(float(cell["x"]), float(cell["width"])) for cell in page.of_class("cell")[::BINS]]
    assert len(edges) == len(rows)
    for (x, width), (following, _) in pairwise(edges):
        assert x + width == pytest.approx(following, abs=1e-9)


def test_a_run_with_kl_alone_has_no_section_about_a_curriculum(tmp_path):
    runs = [write(tmp_path / name, [(1, {KL + "beta": 0.01, KL + "accuracy": 0.5})], None) for name in "ab"]
    found = [section for section in overview.sections(runs) if section.name.startswith(("kl", "pass", "draws"))]
    titles = [(f"kl_{n}", f"KL coefficient and accuracy: {run.name}") for n, run in enumerate(runs, 1)]
    assert [(section.name, section.title) for section in found] == titles
    assert found[0].is_drawn


def test_a_curriculum_alone_and_without_its_file_is_sentences(tmp_path):
    run = write(tmp_path / "run", [(1, {CURRICULUM + "effective_sample_size": 30.0})], None)
    text = html_of(run)
    assert "KL coefficient and accuracy" not in text and text.count(escape(curriculum.NO_DRAWS)) == 2
    assert "effective sample size, step 1: 30" in text


def test_a_curriculum_of_ones_own_without_pass_rates(tmp_path):
    empty = dict.fromkeys(("histogram", "bucket_mass", "bucket_draws", "visits"))
    run = write(tmp_path / "run", [(1, {CURRICULUM + "drawn_prompts": 2})], [line(1, type="mine", **empty)])
    assert html_of(run).count(curriculum.NO_RATES) == 2


def test_an_order_without_weights_shows_its_draws_alone(tmp_path):
    lines = [line(1, type="<uniform>", bucket_mass=None)]
    text = html_of(write(tmp_path / "run", [(1, {CURRICULUM + "visits_mean": 0.1})], lines))
    assert "The order &lt;uniform&gt; draws without weights" in text and "<uniform>" not in text


def test_a_run_that_went_back_counts_each_step_once(tmp_path):
    lines = [line(1), line(2, visits=[1, 1, 1]), line(3), line(2)]
    draws = write(tmp_path / "run", [(1, step_metrics(0.5, 0.7, {"b1": 1.0}))] * 2, lines).draws
    assert [draw.step for draw in draws] == [1, 2]
    assert draws[-1].visits.tolist() == [30, 8, 2]
    assert tally(draws).observed.sum() == 8


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("nonsense", "Expecting value"),
        ('{"step": 2}', "'type'"),
        (json.dumps(line(2, histogram=[1.0])), "histogram must be a list of 20 numbers"),
        (json.dumps(line(2, visits=[-1])), "visits must hold numbers >= 0"),
        (json.dumps(line(2, bucket_mass=spread(b1=float("nan")))), "bucket_mass must hold"),
    ],
)
def test_a_broken_line_is_named(tmp_path, bad, reason):
    path = tmp_path / "curriculum.jsonl"
    path.write_text(f"{json.dumps(line(1))}\n{bad}\n{json.dumps(line(3))}\n")
    with pytest.raises(DataError, match=rf"curriculum\.jsonl:2: not a curriculum line .*{re.escape(reason)}.*Remove"):
        read_draws(path)
    path.write_text(f"{json.dumps(line(1))}\n{bad}")
    assert [draw.step for draw in read_draws(path)] == [1]


def test_expected_draws_are_the_weights_when_the_step_is_the_first():
    draws = read_draws_of([line(1)])
    found = tally(draws)
    assert (found.observed[0], found.observed[10]) == (1, 3)
    assert (found.expected[0], found.expected[10]) == pytest.approx((1.0, 3.0))


def test_expected_draws_count_that_a_prompt_is_taken_once():
    """One prompt of weight 2 and two of weight 1, two drawn: the first is in with 1/2 + 1/2 * 2/3 = 5/6."""
    lines = [line(1, histogram=spread(b0=1, b10=2)), line(2, bucket_mass=spread(b0=0.5, b10=0.5))]
    lines[0]["bucket_mass"] = None
    lines[1]["bucket_draws"] = spread(b0=1, b10=1)
    expected = tally(read_draws_of(lines)).expected
    assert expected.sum() == pytest.approx(2.0)
    assert expected[0] == pytest.approx(5 / 6, abs=0.03)


@pytest.mark.slow
def test_expected_draws_agree_with_a_simulation():
    rng = np.random.default_rng(0)
    prompts, weight = np.array([40, 20]), np.array([1.0, 6.0])
    p = np.repeat(weight, prompts) / (prompts * weight).sum()
    drawn = np.mean([(rng.choice(60, 20, replace=False, p=p) >= 40).sum() for _ in range(3000)])
    mass = prompts * weight / (prompts * weight).sum()
    first = line(1, histogram=spread(b0=40, b10=20), bucket_mass=None)
    second = line(2, bucket_mass=spread(b0=mass[0], b10=mass[1]), bucket_draws=spread(b0=5, b10=15))
    expected = tally(read_draws_of([first, second])).expected
    assert 20 * mass[1] == 15.0 and expected[10] == pytest.approx(drawn, abs=0.1) and drawn < 14


def read_draws_of(lines: list[dict]):
    from s2l_ext.report.draws import _draw

    return [_draw(row) for row in lines]


def test_chi_square_by_hand(tmp_path):
    """30 and 70 seen, 40 and 60 expected: 100/40 + 100/60 = 4.1667; P(chi-square with 1 degree > that) = 0.0412."""
    drawn = line(1, bucket_mass=spread(b2=0.4, b12=0.6), bucket_draws=spread(b2=30, b12=70))
    text = curriculum.draws_by_bucket(write(tmp_path / "run", [(1, {CURRICULUM + "visits_mean": 1.0})], [drawn]))
    assert "Chi-square 4.17, 1 degrees of freedom, p = 0.041 over 100 draws: the draws fit the weights." in text


def test_chi_square_of_draws_without_replacement_by_hand():
    """As above from 80 and 90 prompts: variances 40 * 40/80 and 60 * 30/90, so 100/20 + 100/20 = 10, p = 0.00157."""
    test = chi_square([30, 70], [40, 60], [40 / 80, 30 / 90])
    assert (test.statistic, test.degrees) == (pytest.approx(10.0), 1) and test.p == pytest.approx(0.001565, abs=1e-6)


def test_shares_that_a_step_leaves():
    """Equal weights, 60 of 40 + 80 drawn: half of each bin is left; the step before is not known, so it counts as 1."""
    first = line(1, histogram=spread(b0=40, b10=80), bucket_mass=spread(b0=1.0), bucket_draws=spread(b0=10))
    second = line(2, bucket_mass=spread(b0=1 / 3, b10=2 / 3), bucket_draws=spread(b0=20, b10=40))
    left = tally(read_draws_of([first, second])).left
    assert left[10] == pytest.approx(0.5, abs=1e-6) and left[0] == pytest.approx((10 + 20 * 0.5) / 30, abs=1e-6)
    assert left[5] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [8, 64, 400])
def test_a_true_sampler_that_draws_half_of_the_prompts_is_tested_fairly(drawn):
    """Of 512 prompts in three bins. With the variance of draws with replacement, p is 0.98 on average for half."""
    rng = np.random.default_rng(0)
    prompts, weights = np.array([200, 200, 112]), np.array([1.0, 2.0, 4.0])
    p = np.repeat(weights, prompts) / (prompts * weights).sum()
    mass, bins = prompts * weights / (prompts * weights).sum(), np.repeat([0, 8, 16], prompts)
    first = line(0, histogram=spread(b0=200, b8=200, b16=112), bucket_mass=None)
    found = []
    for _ in range(300):
        draws = []
        for step in range(1, 11):
            taken = np.bincount(bins[rng.choice(512, drawn, replace=False, p=p)], minlength=20)
            row = {"bucket_mass": spread(b0=mass[0], b8=mass[1], b16=mass[2]), "bucket_draws": taken.tolist()}
            draws.append(line(step, histogram=first["histogram"], **row))
        totals = tally(read_draws_of([first, *draws]))
        found.append(chi_square(totals.observed, totals.expected, totals.left).p)
    assert np.median(found) == pytest.approx(0.5, abs=0.1)


def test_what_the_test_says():
    assert "Not enough draws (3)" in curriculum.verdict(ChiSquare(0.0, 0, 1.0), 3)
    assert "p < 0.001 over 90 draws: the draws do not fit" in curriculum.verdict(ChiSquare(50.0, 3, 1e-9), 90)


def test_draws_where_the_weights_are_zero_are_called_out(tmp_path):
    drawn = line(1, bucket_mass=spread(b2=1.0), bucket_draws=spread(b2=30, b12=7))
    run = write(tmp_path / "run", [(1, {CURRICULUM + "visits_mean": 1.0})], [drawn])
    assert "7 of 37 draws fell where the weights are 0" in curriculum.draws_by_bucket(run)


def test_weights_that_nearly_vanish_still_give_numbers():
    first = line(1, histogram=spread(b0=2, b10=500))
    second = line(2, bucket_mass=spread(b0=1.0, b10=1e-300), bucket_draws=spread(b0=2, b10=2))
    assert np.isfinite(tally(read_draws_of([first, second])).expected).all()


def test_visits_stop_at_the_last_that_occurs(run):
    assert ">2+<" in curriculum.visits(run)
    labels, values = [str(i) for i in range(30)], [Values("n", "learner", [1.0] * 30)]
    drawn = by_label("Visits", ("visits", "prompts"), labels, values)
    assert len(re.findall("text-anchor='middle'>[0-9]+<", drawn)) <= 12


def test_names_are_escaped(tmp_path):
    run = write(tmp_path / "<img src=x>", [(1, {KL + "beta": 0.01, KL + "accuracy": 0.5})], None)
    assert "<img" not in html_of(run) and "&lt;img src=x&gt;" in html_of(run)


def test_long_numbers_keep_clear_of_the_name_of_the_axis():
    assert Frame((0, 1), (0, 0.8)).left == 48
    assert Frame((0, 1), (0, 0.015)).left >= 48 + 7


def test_a_wide_number_at_the_right_edge_is_not_cut():
    assert f"x='{WIDTH:.2f}' y='230' text-anchor='end'>2000<" in axes(Frame((0.0, 2000.0), (0.0, 1.0)), "y")


@pytest.mark.parametrize(
    ("value", "text"), [(0.2, "0.2"), (12000, "12000"), (8e6, "8e6"), (0.00012, "1.2e-4"), (1200000, "1.2e6"), (0, "0")]
)
def test_tick_text(value, text):
    assert tick_text(value) == text


def test_very_small_values_have_ticks():
    low, high = round_range([1e-6, 4e-6])
    assert "4e-6" in axes(Frame((0, 1), (low, high)), "beta")


def test_many_points_are_a_line_without_dots():
    points = [(float(step), 0.5) for step in range(2000)]
    assert "<circle" not in chart("A", "y", [Line("a", "learner", points)])
    assert "r='2'" in chart("A", "y", [Line("a", "learner", points[:60])])
    assert "r='3'" in chart("A", "y", [Line("a", "learner", points[:16])])


def test_spread_of_advantages_is_drawn_where_it_was_logged(tmp_path):
    logged = {"s2l/guidance/length": 8.0, "s2l/guidance/advantage_std_guided": 0.9}
    for name, data, count in (("new", logged, 1), ("old", {"s2l/guidance/length": 8.0}, 0)):
        found = curves.sections(write(tmp_path / name, [(1, data), (2, data)], None))
        figures = "".join(figure for section in found for figure in section.figures)
        assert figures.count("<figcaption>Spread of advantages<") == count


def test_doublings_take_equal_places(read_page):
    points = [(float(k), k / 8) for k in range(1, 9)]
    text = chart("pass@k", "share", [Line("a", "learner", points)], x_name="k", doubling=True)
    found = read_page(text)
    at = {attrs["cx"]: attrs["cy"] for attrs in found.of_class("dot")}
    xs = [float(x) for x in at]
    assert xs[1] - xs[0] == pytest.approx(xs[3] - xs[1], abs=0.02) == pytest.approx(xs[7] - xs[3], abs=0.02)
    assert re.findall("text-anchor='middle'>([0-9]+)<", text) == ["1", "2", "4", "8"]
    assert text.count("<i></i>") == 1


def test_a_chart_needs_a_metric_and_a_plan_alone_draws_nothing(tmp_path):
    run = write(tmp_path / "run", [(1, {KL + "beta": 0.01, KL + "target": 0.1, "actor/kl_loss": 0.2})], None)
    (kl,) = curves.sections(run, "of_each_run")
    text = "".join(kl.figures)
    assert "class='line plan planned'" in text and "KL of the update, step 1: 0.2" in text
    assert "Accuracy of the batch" not in text
    alone = write(tmp_path / "alone", [(1, {KL + "beta": 0.01, KL + "target": 0.1})], None)
    assert "KL to the reference" not in "".join(curves.sections(alone, "of_each_run")[0].figures)


def test_a_difference_stands_on_its_own_line_beside_0() -> None:
    """Labels of two letters leave 412 of 460 pixels from x = 28; lines are 22 apart."""
    drawn = differences("At the end", "minus grpo", [("ab", 0.1, (0.05, 0.2)), ("c", -0.2, (-0.2, 0.0))], ["a", "b"])
    assert "cx='337.00' cy='25.00'" in drawn and "cx='28.00' cy='47.00'" in drawn
    assert "points='285.5,25.0 440.0,25.0'" in drawn
    assert "ab: +0.1 (+0.05 to +0.2)" in drawn


def test_differences_that_are_all_0_are_drawn() -> None:
    assert "cx='21.00'" in differences("At the end", "minus grpo", [("c", 0.0, (0.0, 0.0))], ["a"])
