"""The toy side by side: arguments, what a step costs, the table, and that TRL is given the recipes' settings."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import pytest

from s2l_ext.launch.compose import compose_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("measuring", "start_up", "side_by_side", "trl_toy")


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def toy(tmp_path):
    for size in ("small", "medium", "large"):
        (tmp_path / "models" / size).mkdir(parents=True)
    (tmp_path / "train.parquet").touch()
    return tmp_path


def line(arm: str, cpu: float, other: float = 0.0, **more: object) -> dict[str, object]:
    found = {"arm": arm, "first_step_s": 90.0, "first_step_cpu_s": 200.0, "step_s": 9.0, "step_cpu_s": cpu}
    return {**found, "peak_mb": 5000, "accuracy": 0.9, "other_cores": other, **more}


def test_the_table_has_medians_and_the_ratio_to_verl(module):
    lines = [line("off", 10.0), line("off", 9.0), line("off", 11.0), line("verl", 20.0), line("opd", 3.0)]
    rows = module("side_by_side").table(lines).splitlines()
    titles = [cell.strip() for cell in rows[0].split("|")[1:-1]]
    assert len(titles) == rows[1].count("---") == 10
    assert rows[2] == "| verl alone | 1 | 90 | 200 | 9.0 | 20.00 |  | 5000 | 0.90 | 0.0 |"
    assert (
        rows[3] == "| s2l_ext, all off | 3 | 90 | 200 | 9.0 | 10.00 | 0.500 | 5000 | 0.90, 0.90, 0.90 | 0.0, 0.0, 0.0 |"
    )
    assert rows[4].split("|")[7].strip() == ""  # another recipe than verl's


def test_beside_other_work_there_is_no_ratio(module):
    rows = module("side_by_side").table([line("off", 10.0, other=1.2), line("verl", 20.0)]).splitlines()
    assert rows[3].split("|")[7].strip() == "busy" and "| 1.2 |" in rows[3]


def test_a_step_is_the_mean_without_the_first_two_and_the_last(module):
    start_up = module("start_up")
    cpu = {1: 50.0, 2: 60.0, 3: 62.0, 4: 64.0, 5: 90.0}
    old = start_up.Seen("old", 0.0, (90.0, 0.0), {step: (value, 0.0) for step, value in cpu.items()})
    late = start_up.Seen("late", 0.0, (9.0, 9.0), {4: (1.0, 1.0), 5: (9.0, 9.0)})  # started in step 4
    run = start_up.Watched(
        {1: old, 2: late}, {1: 30.0, 2: 40.0, 3: 44.0, 4: 50.0, 5: 99.0}, {2: 1000.0, 4: 1011.0}, 7.4
    )
    found = module("side_by_side").costs(run, 5)
    assert found["step_s"] == 5.0 and found["step_cpu_s"] == 3.0 and found["other_cores"] == 0.5
    assert (found["first_step_s"], found["first_step_cpu_s"], found["peak_mb"], found["processes"]) == (30, 50, 7, 2)
    json.dumps(found)


def test_memory_of_a_process_is_read_from_proc(module):
    assert module("start_up").memory(os.getpid()) > 10


def test_accuracy_is_the_last_that_the_run_wrote(module, tmp_path):
    told = [{"step": 0, "data": {"val-core/toy_chain/acc/mean@1": 0.3}}, {"step": 1, "data": {"actor/loss": 0.1}}]
    told.append({"step": 2, "data": {"val-core/toy_chain/acc/mean@1": 0.8}})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    assert module("side_by_side").accuracy(tmp_path) == 0.8


def test_arguments_of_the_comparison(module, toy, tmp_path):
    arguments = module("side_by_side").arguments
    with pytest.raises(SystemExit, match="--steps 3: steps from 3 to the last but one count"):
        arguments(["--toy", str(toy), "--steps", "3"])
    with pytest.raises(SystemExit, match="no models there. s2l data toy --out"):
        arguments(["--toy", str(tmp_path / "none")])
    assert "trl" not in arguments(["--toy", str(toy)]).only
    assert "trl" in arguments(["--toy", str(toy), "--trl-python", "trl_env/bin/python"]).only


def test_arguments_of_trls_arm(module, toy):
    arguments = module("trl_toy").arguments
    assert arguments(["distill", "--toy", str(toy)]).steps == 16
    (toy / "models" / "large").rmdir()
    arguments(["grpo", "--toy", str(toy)])
    with pytest.raises(SystemExit, match="models/large is not there. Make it: s2l data toy"):
        arguments(["distill", "--toy", str(toy)])
    with pytest.raises(SystemExit, match="--steps 2: steps are counted from 3 on"):
        arguments(["grpo", "--toy", str(toy), "--steps", "2"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "recipe"), [("grpo", "grpo/toy"), ("distill", "sparse_to_dense/stages/opd")], ids=("grpo", "distill")
)
def test_trl_is_given_the_settings_of_the_recipe(module, kind, recipe):
    trl_toy = module("trl_toy")
    cfg, given = compose_config(recipe, []), trl_toy.settings(kind, 16, 0, Path("out"))
    actor, rollout = cfg.actor_rollout_ref.actor, cfg.actor_rollout_ref.rollout
    rows = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    assert rows == cfg.data.train_batch_size * rollout.n == actor.ppo_mini_batch_size * rollout.n
    assert given["per_device_train_batch_size"] == actor.ppo_micro_batch_size_per_gpu and rollout.n == trl_toy.GROUP
    assert (given["learning_rate"], given["weight_decay"]) == (actor.optim.lr, actor.optim.weight_decay)
    assert given["lr_scheduler_type"] == actor.optim.lr_scheduler_type
    assert given["max_grad_norm"] == actor.optim.clip_grad
    assert given["max_completion_length"] == cfg.data.max_response_length
    assert (given["temperature"], given["top_p"]) == (rollout.temperature, rollout.top_p)
    assert Path(cfg.actor_rollout_ref.model.path).name == trl_toy.KINDS[kind]["model"]
    assert actor.loss_agg_mode == "token-mean" and not actor.use_kl_loss  # TRL's loss_type dapo, beta 0


def test_each_prompt_of_a_step_comes_as_often_as_a_group_is_large(module):
    given = [{"prompt": number} for number in range(5)]
    found = [row["prompt"] for row in module("trl_toy").repeated(given, steps=2, prompts=4, seed=0)]
    assert len(found) == 64 and all(len(set(found[at : at + 8])) == 1 for at in range(0, 64, 8))
    assert sorted(found[:40:8]) == [0, 1, 2, 3, 4]


def test_the_summary_of_trls_arm_leaves_the_first_steps_out(module):
    lines = [{"training/global_step": n, "timing_s/step": float(n), "cpu_s/step": 1.0} for n in (1, 2, 3, 5)]
    lines[0]["critic/score/mean"] = 0.25
    found = module("trl_toy").summary(lines, {16: 0.91, 0: 0.3})
    assert found == {"step_s": 4.0, "step_cpu_s": 1.0, "accuracy": {"0": 0.3, "16": 0.91}, "score": [0.25]}
