"""With every feature off, and with EXPO neutralised, `s2l train` does what verl's own `main_ppo` does, step by step.

Neutralised: rho = 1 and the uniform order. The runs have a KL term, so that its coefficient is compared as well.
vLLM's scheduling decides which request draws which random number, so both runs use the seeded agent loop: every
request carries a seed made of (rollout.seed, step, prompt, session). Rows may still arrive in another order, which
changes the order of float sums; hence a tolerance.
"""

import json
import sys

import pytest

STEPS = 3
COMPARED = (
    "critic/score/mean",
    "critic/advantages/max",
    "response_length/mean",
    "actor/loss",
    "actor/kl_loss",
    "actor/kl_coef",
    "actor/pg_loss",
    "actor/grad_norm",
    "actor/entropy",
)


OVERRIDES = (
    f"trainer.total_training_steps={STEPS}",
    "data.train_batch_size=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",  # one: verl fills several in the order in which rows arrive
    "actor_rollout_ref.actor.use_kl_loss=true",
    "actor_rollout_ref.model.use_remove_padding=true",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=600",
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=600",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=600",
    "actor_rollout_ref.actor.clip_ratio_high=0.28",
    "actor_rollout_ref.actor.entropy_coeff=0.01",
    "algorithm.norm_adv_by_std_in_grpo=false",
)
EXPO = (
    "s2l.kl={type: accuracy, beta: 0.02, rho: linear, rho_low: 1.0, rho_high: 1.0}",
    "s2l.curriculum={type: uniform}",
)
LAUNCHES = [
    {"fixture": "both", "recipe": "grpo/toy", "overrides": OVERRIDES, "shown_by": "test_same_metric_at_every_step"},
    {
        "fixture": "neutral",
        "recipe": "grpo/toy",
        "overrides": (*OVERRIDES, *EXPO),
        "shown_by": "test_neutralised_expo_is_grpo_at_every_step",
    },
]


@pytest.fixture(scope="module")
def overrides(small_run):
    return (*small_run, *OVERRIDES)


@pytest.fixture(scope="module")
def both(launch, overrides, monkeypatch_module):
    ours = launch("grpo/toy", *overrides, "actor_rollout_ref.actor.kl_loss_coef=0.02").wait()
    vanilla_log = ours.folder / "vanilla.jsonl"
    monkeypatch_module.setenv("VERL_FILE_LOGGER_PATH", str(vanilla_log))
    monkeypatch_module.setenv("VERL_PLATFORM", "cpu")
    command = [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        f"--config-path={ours.folder}",
        "--config-name=s2l_config",
    ]
    launch("", "trainer.v1.trainer_mode=sync", "trainer.logger=[console,file]", command=command).wait()
    vanilla = {line["step"]: line["data"] for line in map(json.loads, vanilla_log.read_text().splitlines())}
    return ours.steps(), vanilla


@pytest.fixture(scope="module")
def neutral(launch, overrides):
    return launch("grpo/toy", *overrides, *EXPO).wait().steps()


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_the_comparison_is_not_vacuous(both) -> None:
    ours, vanilla = both
    assert sorted(ours) == sorted(vanilla) == list(range(1, STEPS + 1))
    assert any(
        abs(vanilla[step]["actor/pg_loss"]) > 1e-6 and vanilla[step]["actor/grad_norm"] > 1e-4 for step in vanilla
    )


@pytest.mark.parametrize("metric", COMPARED)
def test_same_metric_at_every_step(both, metric: str) -> None:
    ours, vanilla = both
    for step in range(1, STEPS + 1):
        assert ours[step][metric] == pytest.approx(vanilla[step][metric], rel=1e-5, abs=1e-6), f"step {step}"


@pytest.mark.parametrize("metric", COMPARED)
def test_neutralised_expo_is_grpo_at_every_step(both, neutral, metric: str) -> None:
    grpo, _ = both
    for step in range(1, STEPS + 1):
        assert neutral[step][metric] == pytest.approx(grpo[step][metric], rel=1e-5, abs=1e-6), f"step {step}"


def test_neutralised_expo_really_ran(neutral) -> None:
    for metrics in neutral.values():
        assert metrics["s2l/kl/rho"] == 1.0 and metrics["s2l/kl/beta_reported_low"] == 0.02
        assert metrics["s2l/curriculum/updated_prompts"] == 8


def test_no_metric_of_verl_is_lost_and_none_of_ours_appears(both) -> None:
    ours, vanilla = both
    assert set(ours[STEPS]) == set(vanilla[STEPS])
    assert not [name for name in ours[STEPS] if name.startswith("s2l/")]
