"""EXPO on the real stack: beta follows accuracy inside the loss, draws follow the weights. Kills: test_chaos.py."""

import json
import math

import numpy as np
import pytest

from s2l_ext.data.prompts import parquet_table, prompt_ids
from s2l_ext.report.draws import chi_square

BETA, TOTAL, PROMPTS, GROUP = 0.02, 6, 8, 4
WARM_RATES = (0.02, 0.26, 0.51, 0.76, 0.98)
COMMON = (
    f"data.train_batch_size={PROMPTS}",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",  # two mini-batches
    "actor_rollout_ref.actor.ppo_epochs=2",
    "s2l.curriculum.sigma=0.15",  # a uniform draw would be far off within a few steps
    f"trainer.total_training_steps={TOTAL}",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=2",
)
LAUNCHES = [
    {
        "fixture": "run",
        "recipe": "expo/toy",
        "overrides": COMMON,
        "shown_by": "test_every_worker_and_mini_batch_used_this_beta",
    },
]


@pytest.fixture(scope="module")
def warm_start(toy_dir, tmp_path_factory) -> str:
    """Start values that spread over [0, 1], for every training prompt of the toy."""
    files = [toy_dir / name for name in ("train.parquet", *(f"train_tier{tier}.parquet" for tier in (1, 2, 3)))]
    path = tmp_path_factory.mktemp("warm") / "pass_rates.jsonl"
    rows = [
        {"prompt_id": name, "pass_rate": WARM_RATES[position % len(WARM_RATES)]}
        for position, name in enumerate(dict.fromkeys(prompt_ids(parquet_table(files))))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def overrides(small_run, warm_start) -> tuple[str, ...]:
    return (*small_run, *COMMON, f"s2l.curriculum.warm_start={warm_start}")


@pytest.fixture(scope="module")
def run(launch, overrides):
    return launch("expo/toy", *overrides).wait()


# ---- accuracy-conditioned KL -------------------------------------------------------------------------------------


def test_beta_follows_accuracy_by_the_papers_formula_at_every_step(run) -> None:
    accuracies = set()
    for metrics in run.steps().values():
        expected = BETA * (math.tanh(metrics["s2l/kl/accuracy"]) + 1) / 2
        assert metrics["s2l/kl/beta"] == pytest.approx(expected, abs=1e-6)
        accuracies.add(metrics["s2l/kl/accuracy"])
    assert len(accuracies) > 1, "one accuracy cannot show that beta follows it"


def test_every_worker_and_mini_batch_used_this_beta(run) -> None:
    """``actor/kl_coef`` is verl's own metric, a mean over all micro-batches of the coefficient in its loss."""
    for metrics in run.steps().values():
        assert metrics["s2l/kl/beta_reported_low"] == metrics["s2l/kl/beta_reported_high"] == metrics["s2l/kl/beta"]
        assert metrics["actor/kl_coef"] == pytest.approx(metrics["s2l/kl/beta"], rel=1e-9)


def test_accuracy_is_that_of_the_batch_itself(run) -> None:
    """On the toy the reward is correctness, so verl's mean score is an independent witness."""
    for metrics in run.steps().values():
        assert metrics["s2l/kl/accuracy"] == pytest.approx(metrics["critic/score/mean"], abs=1e-6)


def test_the_kl_term_is_alive(run) -> None:
    assert max(metrics["s2l/kl/kl"] for metrics in run.steps().values()) > 0


# ---- the Gaussian curriculum --------------------------------------------------------------------------------------


def test_each_step_trains_on_different_prompts_and_updates_them(run) -> None:
    for step, line in run.draws().items():
        assert len(set(line["indices"])) == PROMPTS
        assert all(rate is not None and 0 <= rate <= 1 for rate in line["pass_rates"])
        assert run.steps()[step]["s2l/curriculum/updated_prompts"] == PROMPTS


def test_pass_rates_of_the_prompts_average_to_the_batch_accuracy(run) -> None:
    for step, line in run.draws().items():
        assert np.mean(line["pass_rates"]) == pytest.approx(run.steps()[step]["s2l/kl/accuracy"], abs=1e-6)


def test_realised_draws_follow_the_weights_and_not_the_uniform(run, capsys) -> None:
    lines = run.draws().values()
    observed = np.sum([line["bucket_draws"] for line in lines], axis=0)
    expected = np.mean([line["bucket_mass"] for line in lines], axis=0)
    uniform = np.mean([line["histogram"] for line in lines], axis=0)
    p, p_uniform = chi_square(observed, expected)[2], chi_square(observed, uniform / uniform.sum())[2]
    with capsys.disabled():
        print(f"\nrealised draws against the weights: p = {p:.3f}; against a uniform draw: p = {p_uniform:.1e}")
    assert p > 1e-3
    assert p_uniform < 1e-3


def test_visits_add_up(run) -> None:
    visits = run.draws()[TOTAL]["visits"]
    assert sum(times * count for times, count in enumerate(visits)) == TOTAL * PROMPTS
    never = run.steps()[TOTAL]["s2l/curriculum/never_seen_share"]
    assert never == pytest.approx(visits[0] / sum(visits))


def test_edited_data_is_refused_on_resume_before_training(run, launch, overrides, toy_dir, tmp_path) -> None:
    """The same prompts in another order: positions would mean other prompts."""
    import pyarrow.parquet as pq

    table = pq.read_table(toy_dir / "train.parquet")
    pq.write_table(table.take(list(range(len(table)))[::-1]), tmp_path / "train.parquet")
    files = [tmp_path / "train.parquet", *(toy_dir / f"train_tier{tier}.parquet" for tier in (1, 2, 3))]
    changed = f"data.train_files=[{','.join(map(str, files))}]"
    refused = launch("expo/toy", *overrides, changed, folder=run.folder)
    assert refused.process.wait(300) == 2
    refused.end()
    assert "data.sha256: checkpoint" in refused.log and "on_mismatch=reset" in refused.log
