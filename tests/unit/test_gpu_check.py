"""``make gpu-check`` without a GPU: it refuses, its steps go on after one that fails, its recipes pass every check."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from s2l_ext.launch import train
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training import before_run

REPOSITORY = Path(__file__).parents[2]
GAP = "s2l/source/learner/kl_sampler_learner_k3"


@pytest.fixture(scope="module")
def gpu_check(module_at):
    return module_at(REPOSITORY / "benchmarks" / "gpu_check.py")


def test_without_a_gpu_nothing_is_run(gpu_check, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(gpu_check, "run", None)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert gpu_check.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "sees no GPU here, so nothing was run" in line and 'pip install ".[gpu]"' in line


def test_a_step_that_does_not_exist_is_named_with_those_that_do(gpu_check, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--only", "grpo,expos"])
    assert gpu_check.main() == 2
    assert "--only expos: no such step. Steps: environment, losses, " in capsys.readouterr().err


def test_steps_come_in_order_of_value_and_the_page_has_them_all(gpu_check):
    names = [step.name for step in gpu_check.steps()]
    want = [
        "environment",
        "losses",
        "loss tests",
        "toy world",
        "vllm",
        "eval",
        "grpo",
        "s2l_po",
        "expo",
        "g2rpo_a",
        "opd",
    ]
    assert names == [*want, "resume"]
    page = (REPOSITORY / "docs" / "gpu.md").read_text()
    assert re.findall(r"^\| `([^`]+)` \| \d+ s \|", page, re.MULTILINE) == names


@pytest.mark.slow
def test_a_failed_step_is_said_and_the_next_ones_run(gpu_check, monkeypatch, tmp_path, capsys):
    def python(code: str) -> tuple[str, ...]:
        return sys.executable, "-c", code

    monkeypatch.setattr(gpu_check, "describe", lambda: {"card": "none"})
    steps = [
        gpu_check.Step("well", python("print(1)"), 30),
        gpu_check.Step("broken", python("raise SystemExit('no kernel image')"), 30),
        gpu_check.Step("slow", python("import time; time.sleep(60)"), 1),
        gpu_check.Step("wrong", python(""), 30, lambda: "it learned nothing"),
        gpu_check.Step("unreadable", python(""), 30, lambda: {}["score"]),
    ]
    assert gpu_check.check(steps, tmp_path) == 1
    shown = capsys.readouterr().out
    assert "PASS well" in shown and "no kernel image\nFAIL broken" in shown and "exit code 1. Log: " in shown
    assert "not finished after 1 s" in shown and "it learned nothing" in shown and "KeyError('score')" in shown
    assert shown.endswith("gpu-check: 1 of 5 passed; failed: broken, slow, wrong, unreadable\n")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [step["passed"] for step in summary["steps"]] == [True, False, False, False, False]


# ---- what a good run shows ------------------------------------------------------------------------------------------


def metrics(count: int, **values: float) -> dict[int, dict[str, float]]:
    return {step: {"rollout_corr/k3_kl": 0.001, **values} for step in range(1, count + 1)}


def explored(*rollouts: int) -> dict[int, dict[str, float]]:
    """As measured on the CPU: where the explorer sampled, all rows together are far apart, the learner's are not."""
    return {
        step: {
            "rollout_corr/k3_kl": 0.02,
            "s2l/source/learner/rows": 8.0 - each,
            "s2l/explorer/rollouts_per_group": each,
        }
        | ({GAP: 0.0001} if each < 8 else {})
        for step, each in enumerate(rollouts, start=1)
    }


@pytest.mark.parametrize(
    "name, found, wrong",
    [
        ("grpo", metrics(4), ""),
        ("grpo", metrics(3), "steps [1, 2, 3], expected 1 to 4"),
        ("grpo", metrics(4) | {4: {"rollout_corr/k3_kl": 0.3}}, "0.001, 0.3] nats per token apart, expected 0.01"),
        ("grpo", metrics(4) | {2: {"rollout_corr/k3_kl": None}}, "[0.001, nan, 0.001, 0.001] nats per token apart"),
        ("grpo", {step: {} for step in range(1, 5)}, "are [] nats per token apart"),
        ("s2l_po", explored(8, 6, 3, 0), ""),
        ("s2l_po", explored(8, 8, 8, 8), "apart"),
        ("s2l_po", explored(8, 6, 6, 0), "the explorer sampled [8, 6, 6, 0] of 8 rollouts, expected [8, 6, 3, 0]"),
        ("expo", metrics(3, **{"s2l/kl/beta": 0.01}), ""),
        ("expo", metrics(3, **{"s2l/kl/beta": 0.0}), "s2l/kl/beta is [0.0, 0.0, 0.0], expected more than 0"),
        (
            "expo",
            metrics(3, **{"s2l/kl/beta": 0.01}) | {3: {"rollout_corr/k3_kl": 0.0, "s2l/kl/beta": None}},
            "0.01, nan]",
        ),
        ("g2rpo_a", metrics(3), "s2l/guidance/length is [nan, nan, nan]"),
        ("opd", {step: {"s2l/distill/reverse_kl": 0.3} for step in (1, 2, 3)}, ""),
    ],
)
def test_what_speaks_against_a_run(gpu_check, monkeypatch, name, found, wrong):
    monkeypatch.setattr(gpu_check, "read", lambda recipe: found)
    said = {step.name: step for step in gpu_check.steps()}[name].wrong()
    assert (wrong in said) if wrong else said == ""


@pytest.mark.parametrize(
    "found, wrong",
    [
        (metrics(4) | {5: {}, 6: {}}, ""),
        (metrics(6, again=1.0), "steps [1, 2, 3, 4, 5, 6], the first 4 made again"),
        (metrics(4), "steps [1, 2, 3, 4], the first 4 kept: expected 5 and 6 more"),
    ],
)
def test_a_resumed_run_keeps_the_steps_before(gpu_check, monkeypatch, found, wrong):
    monkeypatch.setattr(gpu_check, "read", lambda recipe: found)
    monkeypatch.setattr(gpu_check, "_before", {"grpo": metrics(4)})
    said = gpu_check.steps()[-1].wrong()
    assert (wrong in said) if wrong else said == ""


# ---- its recipes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "s2l_po", "expo", "g2rpo_a", "opd", "resume"])
def test_its_recipes_pass_every_check_of_train_on_one_gpu(gpu_check, one_gpu, monkeypatch, name):
    monkeypatch.setattr(before_run, "check_inputs", lambda cfg, s2l: [])
    monkeypatch.setattr(train, "_ask_verl", lambda cfg: None)  # looks for the card; test_compose_recipes asks it
    words = {step.name: step.command for step in gpu_check.steps()}[name]
    recipe, *overrides = words[words.index("--config-name") + 1 :]
    prepared = train.prepare(recipe, overrides)
    assert prepared.plan["platform"] == "cuda"
    assert all("could not be checked before the run" in warning for warning in prepared.warnings)
    cfg, explorer = prepared.cfg, parse_s2l(prepared.cfg.s2l).live_explorer
    assert cfg.trainer.total_training_steps == {"grpo": 4, "s2l_po": 4, "resume": 6}.get(name, 3)
    assert cfg.trainer.default_local_dir == str(gpu_check.RUNS / recipe.removeprefix("gpu_check/"))
    assert cfg.actor_rollout_ref.rollout.calculate_log_probs and cfg.trainer.test_freq == -1
    assert explorer is None or explorer.is_colocated
