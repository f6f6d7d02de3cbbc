"""Seeds pooled by ``s2l compare A1 A2 A3 -- B1 B2 B3``: numbers by hand, and what is refused."""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from s2l_ext import cli
from s2l_ext.errors import DataError
from s2l_ext.evaluation.compare import compare_seeds
from s2l_ext.evaluation.seeds import independent
from s2l_ext.report.run import Run
from s2l_ext.report.seeds import Seeds, as_json, difference, figures, pooled, sentences

SAMPLING = {"n": 4, "temperature": 0.6, "seed": 0}


@pytest.fixture
def write(tmp_path: Path):
    """An evaluation of two problems, four samples each; ``model`` None: the name's."""

    def to_file(name: str, correct: list[int], **changes: Any) -> Path:
        rows = [{"prompt_id": f"p{i}", "num_samples": 4, "num_correct": c} for i, c in enumerate(correct)]
        prints = {"model": name, "data": "d", "reward": ["r"], "limit": None, "sampling": SAMPLING} | changes
        accuracy = sum(correct) / 4 / len(correct)
        document = {"model": name, "accuracy": accuracy, "pass_at_k": {"1": accuracy, "4": 1.0}, "problems": rows}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(document | {"fingerprints": prints}))
        return path

    return to_file


@pytest.fixture
def sides(write):
    """Accuracies 0.25, 0.375, 0.5 against 0.5, 0.5, 0.75: gaps 0.25, 0.125, 0.25."""
    a = [write("a1", [1, 1]), write("a2", [1, 2]), write("a3", [2, 2])]
    return a, [write("b1", [2, 2]), write("b2", [2, 2]), write("b3", [3, 3])]


@pytest.mark.slow
def test_seeds_that_pair(sides) -> None:
    """Gaps 0.25, 0.125, 0.25: mean 0.2083, standard deviation 0.07217, t(2) = 4.3027."""
    found = compare_seeds(*sides)
    accuracy = found["measures"]["accuracy"]
    half = 4.3027 * 0.0721688 / 3**0.5
    assert found["paired"] and found["num_problems"] == 2
    assert accuracy["a"]["mean"] == pytest.approx(0.375) and accuracy["b"]["mean"] == pytest.approx(0.58333, abs=1e-5)
    assert accuracy["difference"]["ci95"] == pytest.approx((0.208333 - half, 0.208333 + half), abs=1e-4)
    assert accuracy["difference"]["clear"] and found["sentence"].startswith("B is above A by +0.208 (+0.029 to +0.388")
    assert accuracy["difference"]["detectable"] == pytest.approx((4.3027 + 1.0607) * 0.0721688 / 3**0.5, rel=1e-3)
    low, high = accuracy["a"]["ci95_problems"]
    assert 0.25 <= low < 0.375 < high <= 0.5
    # one or two right of four: pass@4 is 1 everywhere
    assert found["measures"]["pass@4"]["difference"]["mean"] == 0


@pytest.mark.slow
def test_seeds_that_do_not_pair(sides) -> None:
    """Welch by hand: variances 1/64 and 1/48 over 3: error 0.11024; degrees of freedom 3.92, rounded down to 3."""
    a, b = sides
    gap = compare_seeds(a, b, pair=False)["measures"]["accuracy"]["difference"]
    error = (1 / 64 / 3 + 1 / 48 / 3) ** 0.5
    assert gap["ci95"][1] - gap["mean"] == pytest.approx(3.1824 * error, rel=1e-3) and not gap["clear"]
    found = compare_seeds(a[:2], b)
    assert (
        not found["paired"]
        and "2 and 3 seeds" in found["sentence"]
        and "no difference could be shown" in found["sentence"]
    )
    assert independent([0.5, 0.5, 0.5], [0.4, 0.4, 0.4]).clear is False, "equal values tell nothing of what varies"


def test_degrees_of_freedom_that_are_whole_are_not_rounded_down() -> None:
    """Both sides spread alike, so there are 4; rounding makes 3.9999999999999996 of it. Gap 0.19, t(4) = 2.7764."""
    gap = independent([0.501, 0.535, 0.393], [0.311, 0.345, 0.203])
    assert gap.ci95 == pytest.approx((0.022, 0.358), abs=5e-4) and gap.clear


@pytest.mark.slow
def test_the_command_reads_options_after_the_files(sides, capsys) -> None:
    a, b = ([str(path) for path in side] for side in sides)
    assert cli.main(["compare", *a, "--", *b, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["paired"]
    assert cli.main(["compare", "--unpaired", *a, "--", *b]) == 0
    said = capsys.readouterr().out
    assert "0.3750 (0.0645 to 0.6855)" in said and "independent (Welch)" in said and "seeds and problems" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a1", "--", "b1", "b2"], "A has 1 file: an interval over seeds needs at least 2"),
        (["a1", "a2", "--", "b1"], "B has 1 file"),
        (["a1", "--unpaired", "b1"], "--unpaired is for seeds of two sides"),
        (["a1", "a2", "b1"], "3 files and no --: give two, or the seeds of two sides"),
        (["a1", "a1", "--", "b1", "b2"], "a1.json is of the same model as"),
        (["a1", "a2", "--", "b1", "other"], "differ in data: d and other"),
        (["a1", "a2", "--", "b1", "more"], "1 are in both|2 are in both"),
        (["a1", "a2", "--", "b1", "b2", "--seed", "-1"], "--seed -1 must be at least 0"),
    ],
)
def test_what_cannot_be_pooled_is_refused(sides, write, words, message, capsys) -> None:
    write("other", [1, 1], data="other")
    write("more", [1, 1, 1])
    folder = sides[0][0].parent
    given = [word if word.startswith("-") else str(folder / f"{word}.json") for word in words]
    given[-1] = words[-1] if words[-1] == "-1" else given[-1]
    assert cli.main(["compare", *given]) == 2

    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_other_sampling_is_refused_unless_allowed(sides, write) -> None:
    a, b = sides
    b[2] = write("b3", [3, 3], sampling=SAMPLING | {"seed": 9})
    with pytest.raises(DataError, match="seed 0 / 9"):
        compare_seeds(a, b)
    assert compare_seeds(a, b, allowed=("seed",))["paired"]


# ---- s2l report -----------------------------------------------------------------------------------------------------

TOY = "val-core/toy/acc/mean@1"


def _run(folder: Path, seed: int, accuracy: float, score: float, temperature: float = 1.0) -> str:
    """A run of four steps with a validation before and after, its two problems in the dump."""
    (folder / "validation").mkdir(parents=True)
    lines = [(0, {TOY: 0.25}), (4, {TOY: accuracy, "critic/score/mean": score})]
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "data": d}) + "\n" for s, d in lines))
    config = {
        "data": {"seed": seed, "val_files": []},
        "actor_rollout_ref": {"rollout": {"temperature": temperature}},
        "trainer": {"default_local_dir": str(folder), "total_training_steps": 4},
    }
    (folder / "s2l_config.yaml").write_text(json.dumps(config))
    rows = [{"input": f"p{at}", "output": "", "acc": acc} for at, acc in enumerate((accuracy - 0.1, accuracy + 0.1))]
    (folder / "validation" / "4.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def _seeds(root: Path) -> list[str]:
    base = [_run(root / f"grpo_seed_{s}", s, acc, 0.1 * s) for s, acc in ((1, 0.3), (2, 0.4), (3, 0.5))]
    return base + [_run(root / f"hot_seed_{s}", s, acc, 0.2, 1.5) for s, acc in ((3, 0.75), (1, 0.5), (2, 0.65))]


@pytest.mark.slow
def test_a_report_draws_seeds_of_one_configuration_as_one(tmp_path, capsys) -> None:
    """Gaps by seed 0.2, 0.25, 0.25: mean 0.2333, half width 4.3027 * 0.02887 / sqrt 3 = 0.0717."""
    assert cli.main(["report", *_seeds(tmp_path), "--out", str(tmp_path / "page"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    grpo, hot = found["seeds"]
    assert (grpo["name"], hot["name"]) == ("grpo", "hot") and len(found["runs"]) == 6
    assert grpo["accuracy"][TOY]["mean"] == pytest.approx(0.4) and "difference" not in grpo["accuracy"][TOY]
    assert grpo["accuracy"][TOY]["ci95"] == pytest.approx([0.4 - 0.24841, 0.4 + 0.24841], abs=1e-4)
    low, high = grpo["accuracy"][TOY]["ci95_problems"]
    assert 0.199 < low < 0.3 and 0.5 < high < 0.601, "problems widen it beyond the seeds' 0.3 to 0.5"
    gap = hot["accuracy"][TOY]["difference"]
    assert gap["mean"] == pytest.approx(0.23333, abs=1e-4) and gap["ci95"][0] == pytest.approx(0.1616, abs=1e-3)
    text = (tmp_path / "page" / "index.html").read_text()
    assert "hot on toy is above grpo by +0.233 (+0.162 to +0.305, paired over 3 seeds)." in text
    assert text.count("class='band ") == 4, "accuracy and reward of both, each with its interval over seeds"
    assert "grpo, 3 seeds; hot, 3 seeds." in text


@pytest.fixture
def group():
    """``group("A", {1: {8: 0.3, 16: 0.6}})``: by seed, held-out accuracy by step."""

    def make(name: str, runs: dict[int, dict[int, float]]) -> Seeds:
        def run(seed: int, points: dict[int, float]) -> Run:
            metrics = [(step, {TOY: value}) for step, value in points.items()]
            return Run(f"{name}{seed}", metrics, [], Path(name), {"data": {"seed": seed}})

        return Seeds(name, tuple(run(seed, points) for seed, points in runs.items()))

    return make


def test_an_unfinished_seed_is_compared_at_the_step_that_the_table_shows(group) -> None:
    """A ends at 0.5, 0.5, 0.625; step 8 of B is 0.25, 0.5, 0.5: gaps -0.25, 0, -0.125."""
    a = group("A", {1: {8: 0.1, 16: 0.5}, 2: {8: 0.2, 16: 0.5}, 3: {8: 0.3, 16: 0.625}})
    b = group("B", {1: {8: 0.25, 16: 0.9}, 2: {8: 0.5}, 3: {8: 0.5, 16: 0.9}})
    gap = difference(a, b, TOY)
    half = 4.30265 * 0.125 / 3**0.5
    assert (
        gap is not None and gap.mean == -0.125 and gap.ci95 == pytest.approx((-0.125 - half, -0.125 + half), abs=1e-4)
    )
    (said,) = sentences([a, b])
    numbers = "-0.125 (-0.436 to +0.186, paired over 3 seeds)"
    assert said.startswith(f"B on toy at step 8: no difference could be shown, {numbers}")
    assert as_json([a, b])[1]["accuracy"][TOY]["step"] == 8 and sentences([a, a])[0].startswith("A on toy: no")


def test_a_sentence_counts_the_seeds_that_pair(group) -> None:
    """Gaps 0.25 + s/32: mean 0.3125, half width 4.3027 * 0.03125 / sqrt 3 = 0.0776."""
    few = group("few", {seed: {16: 0.25 + seed / 32} for seed in (1, 2, 3)})
    many = group("many", {seed: {16: 0.5 + seed / 16} for seed in (6, 5, 4, 3, 2, 1)})
    assert sentences([few, many]) == ["many on toy is above few by +0.312 (+0.235 to +0.390, paired over 3 seeds)."]
    others = group("others", {seed: {16: 0.5 + seed / 16} for seed in (7, 8)})
    assert "3 and 2 independent seeds (Welch)" in sentences([few, others])[0]


@pytest.mark.parametrize(
    ("other_data_seeds", "half", "how"),
    [
        ((3, 1, 2), 0.0717, "paired over 3 seeds"),
        # variances 0.01 and 0.0158333 over 3: error 0.0927961; degrees of freedom 3.80, rounded down to 3
        ((1, 1, 1), 0.2953, "3 and 3 independent seeds (Welch)"),
        ((None, 1, 2), 0.2953, "3 and 3 independent seeds (Welch)"),
    ],
)
def test_where_other_seeds_differ_the_datas_pair_and_the_page_says_how(other_data_seeds, half, how) -> None:
    """By data seed 1, 2, 3: 0.5, 0.65, 0.75 against 0.3, 0.4, 0.5."""

    def side(name: str, data_seeds, first: int, values) -> Seeds:
        def run(at: int) -> Run:
            rollout = {"rollout": {"seed": first + at}}
            config = {"data": {"seed": data_seeds[at]}, "actor_rollout_ref": rollout}
            return Run(f"{name}{at}", [(4, {TOY: values[at]})], [], Path(name), config)

        return Seeds(name, tuple(map(run, range(3))))

    a, b = side("a", (1, 2, 3), 10, (0.3, 0.4, 0.5)), side("b", other_data_seeds, 20, (0.75, 0.5, 0.65))
    gap = difference(a, b, TOY)
    assert gap is not None and gap.mean == pytest.approx(0.23333, abs=1e-4)
    assert gap.ci95[1] - gap.mean == pytest.approx(half, abs=1e-3)
    assert f", {how})" in sentences([a, b])[0] and f", {how})" in figures([a, b])[0]


def test_seeds_that_share_no_validation_step_are_not_compared(group) -> None:
    assert group("A", {1: {4: 0.5}, 2: {8: 0.5}}).keys == []


def test_a_report_keeps_apart_what_is_no_other_seed(tmp_path, capsys) -> None:
    """The same seed twice, another setting, or a run without a configuration."""
    runs = [_run(tmp_path / name, seed, 0.5, 0.1, t) for name, seed, t in (("a", 1, 1.0), ("b", 1, 1.0), ("c", 2, 1.5))]
    for name in ("d", "e"):
        runs.append(_run(tmp_path / name, 1, 0.5, 0.1))
        (tmp_path / name / "s2l_config.yaml").unlink()
    assert cli.main(["report", *runs, "--out", str(tmp_path / "page"), "--json"]) == 0
    assert "seeds" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("trainer", "configurations"),
    [
        ([{"v1": {"trainer_mode": "sync"}}, {"v1": {"trainer_mode": "colocate_async"}}], 2),
        ([{"v1": {"sampler": {"max_off_policy_threshold": n}}} for n in (1, 8)], 2),
        ([{"total_training_steps": None, "total_epochs": n} for n in (1, 2)], 2),
        ([{"critic_warmup": n} for n in (0, 5)], 2),
        ([{"n_gpus_per_node": n} for n in (1, 8)], 1),
    ],
)
def test_what_the_trainer_changes_in_learning_keeps_runs_apart(trainer, configurations: int) -> None:
    configs = [{"data": {"seed": seed}, "trainer": own} for seed, own in enumerate(trainer)]
    runs = [Run(str(at), [(1, {TOY: 0.5})], [], Path(), config) for at, config in enumerate(configs)]
    assert len(pooled(runs)) == configurations


@pytest.mark.slow
def test_a_report_compares_seeds_with_a_single_run(tmp_path, capsys) -> None:
    runs = [*_seeds(tmp_path)[:3], _run(tmp_path / "other", 1, 0.9, 0.1, 1.5)]
    assert cli.main(["report", *runs, "--out", str(tmp_path / "page"), "--json"]) == 0
    grpo, other = json.loads(capsys.readouterr().out)["seeds"]
    assert len(grpo["runs"]) == 3 and other["accuracy"][TOY] == {"mean": 0.9, "step": 4, "ci95_problems": None}


@pytest.mark.slow
def test_many_seeds_of_few_configurations_fit_on_a_page(tmp_path, capsys) -> None:
    runs = [_run(tmp_path / f"seed{s}", s, 0.5, 0.1) for s in range(30)]
    assert cli.main(["report", *runs, "--out", str(tmp_path / "page")]) == 0


def test_no_other_command_changes_its_words() -> None:
    """``s2l data toy`` imports a function of the world: a hook of the same name took its words once."""
    hooked = [name for name, command in cli.COMMANDS.items() if hasattr(import_module(command.module), "rewrite_words")]
    assert hooked == [("compare",)]
