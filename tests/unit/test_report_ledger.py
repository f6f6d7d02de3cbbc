"""The cost of a run, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from s2l_ext import cli
from s2l_ext.errors import DataError
from s2l_ext.report import cost
from s2l_ext.report.ledger import Amount, Ledger, Totals
from s2l_ext.report.run import Run

CONFIG = {"trainer": {"nnodes": 1, "n_gpus_per_node": 2}, "s2l": {"explorer": {"nnodes": 1, "n_gpus_per_node": 3}}}
KEY = "val-core/toy/acc/mean@1"
PLAN = {"parameters": {"learner": 1000, "explorer": 100, "teacher": 5000}}
MIXED = {
    "perf/total_num_tokens": 100,
    "prompt_length/mean": 5.0,
    "s2l/source/explorer/rows": 4,
    "s2l/source/explorer/tokens": 20,  # with 4 prompts of 5 tokens: 40 of the 100
    "s2l/source/explorer/gen_seconds_sum": 10.0,
    "s2l/source/learner/gen_seconds_sum": 30.0,
    "s2l/explorer/rollouts_per_group": 4,
    "s2l/explorer/num_gpus": 0,
    "timing_s/gen": 10.0,
    "timing_s/old_log_prob": 2.0,
    "timing_s/update_actor": 5.0,
    "timing_s/update_weights": 1.0,
    "timing_s/step": 20.0,
    "timing_s/testing": 4.0,
}
PLAIN = {
    "perf/total_num_tokens": 50,
    "s2l/explorer/rollouts_per_group": 0,
    "s2l/explorer/num_gpus": 0,
    "timing_s/gen": 3.0,
}
PLAIN |= {"timing_s/old_log_prob": 1.0, "timing_s/update_actor": 2.0, "timing_s/step": 6.5}


def run(*steps: dict, config: dict = CONFIG, plan: dict = PLAN) -> Run:
    return Run("run", [*enumerate(steps, start=1)], [], Path("run"), config, plan)


def test_one_step_by_hand():
    entries = Ledger(run(MIXED)).entries
    assert list(entries.items()) == [
        (("sampling", "learner"), Amount(60, 120_000, 7.5)),
        (("sampling", "explorer"), Amount(40, 8_000, 2.5)),
        (("old log-probabilities", "learner"), Amount(100, 200_000, 2.0)),
        (("training", "learner"), Amount(100, 600_000, 5.0)),
        (("weights to the sampler", "learner"), Amount(0, 0, 1.0)),
        (("rest of the step", "learner"), Amount(0, 0, 2.0)),
        (("validation", "learner"), Amount(0, 0, 4.0)),
    ]


def test_the_two_accounts_differ_by_the_explorers_work():
    ledger = Ledger(run(MIXED, PLAIN))
    # step 2: 50 tokens x 1000 x (2 + 2 + 6) = 500,000; the explorer's 3 GPUs were held in step 1 alone
    assert ledger.totals(all_in=True) == Totals(150, 928_000 + 500_000, 24 + 6.5, 2 * (24 + 6.5) + 3 * 20)
    assert ledger.totals(all_in=False) == Totals(110, 920_000 + 500_000, 24 + 6.5 - 2.5, 2 * (24 + 6.5))
    assert ledger.spent_until("flops") == {0: 0, 1: 928_000, 2: 1_428_000}
    assert ledger.spent_until("flops", all_in=False) == {0: 0, 1: 920_000, 2: 1_420_000}
    assert ledger.spent_until("seconds") == {0: 0, 1: 24, 2: 30.5}
    assert ledger.had_help and not Ledger(run(PLAIN)).had_help


def test_seconds_add_up_to_the_steps_and_the_validation():
    ledger = Ledger(run(MIXED, PLAIN))
    assert sum(amount.seconds for amount in ledger.entries.values()) == pytest.approx(20 + 4 + 6.5)


def test_a_reference_costs_a_forward_pass_and_epochs_multiply_training():
    config = {"actor_rollout_ref": {"actor": {"ppo_epochs": 3}}}
    entries = Ledger(run({**PLAIN, "timing_s/ref": 0.5}, config=config)).entries
    assert entries["reference log-probabilities", "learner"] == Amount(50, 100_000, 0.5)
    assert entries["training", "learner"].flops == 3 * 300_000
    assert entries["rest of the step", "learner"].seconds == pytest.approx(0.0)


def test_distillation_asks_a_teacher_and_has_no_old_log_probabilities():
    """verl times the place of the old log-probabilities although nothing is computed there."""
    step = {**PLAIN, "s2l/distill/value": 0.1}
    entries = Ledger(run(step)).entries
    assert entries["scoring", "teacher"] == Amount(50, 2 * 5000 * 50, 0.0)
    assert ("old log-probabilities", "learner") not in entries
    assert Ledger(run(step)).totals(all_in=False).flops == 50 * 1000 * 8
    sft = Ledger(run(step, config={"s2l": {"distill": {"loss": "sft"}}}))
    assert ("scoring", "teacher") not in sft.entries and sft.totals(True).flops == 50 * 1000 * 8


def test_bypassed_old_log_probabilities_cost_nothing():
    config = {"algorithm": {"rollout_correction": {"bypass_mode": True}}}
    assert ("old log-probabilities", "learner") not in Ledger(run(PLAIN, config=config)).entries


def test_a_step_of_the_explorer_alone_leaves_the_learner_nothing_to_sample():
    step = {**MIXED, "s2l/source/explorer/rows": 16}
    ledger = Ledger(run(step))
    assert ledger.entries["sampling", "explorer"].tokens == 100
    assert ("sampling", "learner") not in ledger.entries
    assert ledger.totals(all_in=False).tokens == 0.0


def test_an_unknown_size_makes_its_flops_unknown_and_no_others():
    ledger = Ledger(run(MIXED, plan={"parameters": {"learner": 1000, "explorer": None}}))
    assert ledger.entries["sampling", "explorer"] == Amount(40, None, 2.5)
    assert ledger.totals(all_in=True).flops is None and ledger.spent_until("flops") == {}
    assert ledger.totals(all_in=False).flops == 920_000
    assert ledger.unknown_sizes == ["explorer"]


def test_an_explorer_on_the_learners_gpus_holds_none_of_its_own():
    explorer = {"placement": "colocated", "nnodes": 1, "n_gpus_per_node": 3}
    steps = [MIXED | {"timing_s/step": 100.0, "timing_s/testing": 0.0}] * 2
    colocated = run(*steps, config=CONFIG | {"s2l": {"explorer": explorer}})
    assert Ledger(colocated).totals(True).accelerator_seconds == 2 * 2 * 100
    dedicated = run(*steps)
    assert Ledger(dedicated).totals(True).accelerator_seconds == 2 * 2 * 100 + 3 * 100, "released after the first step"


def test_an_explorer_that_is_not_released_is_held_during_a_validation():
    """Learner and explorer with 4 GPUs each: 8 x 500 s of validation after step 1; released after step 2, 4 x 500."""
    config = {"trainer": {"nnodes": 1, "n_gpus_per_node": 4}, "s2l": {"explorer": {"n_gpus_per_node": 4}}}
    steps = [MIXED | {"timing_s/step": 100.0, "s2l/explorer/num_gpus": gpus} for gpus in (4, 0)]
    for at, tested, all_in in ((0, 500.0, 8 * 500), (1, 500.0, 4 * 500)):
        one = [step | {"timing_s/testing": tested if place == at else 0.0} for place, step in enumerate(steps)]
        ledger = Ledger(run(*one, config=config))
        assert ledger.totals(all_in=True).accelerator_seconds == 2 * 8 * 100 + all_in
        assert ledger.totals(all_in=False).accelerator_seconds == 2 * 4 * 100 + 4 * 500


@pytest.mark.parametrize("placement", ["server", "local"])
def test_a_teacher_on_servers_or_in_the_local_loop_reads_every_token_though_it_logs_no_metric(placement):
    distill = {"teacher_path": "t", "teacher_placement": placement, "loss": "forward_kl"}
    scored = Ledger(run(PLAIN, config=CONFIG | {"s2l": {"distill": distill}})).entries
    assert scored["scoring", "teacher"] == Amount(50, 2 * 5000 * 50, 0.0)
    without = Ledger(run(PLAIN, config=CONFIG | {"s2l": {"distill": {"loss": "sft"}}})).entries
    assert ("scoring", "teacher") not in without


def test_a_run_that_drops_groups_says_that_they_are_not_counted():
    for config, said in ((CONFIG, False), (CONFIG | {"algorithm": {"filter_groups": {"enable": True}}}, True)):
        assert ("filter_groups dropped are not counted" in cost.figures([run(PLAIN, config=config)])[0]) is said


def test_without_a_configuration_accelerators_are_not_known():
    assert Ledger(run(PLAIN, config={})).totals(True).accelerator_seconds is None


def test_accuracy_is_drawn_against_what_was_spent():
    runs = []
    for name, parameters in (("a", PLAN["parameters"]), ("b", {})):
        steps = [(0, {KEY: 0.25}), (1, MIXED), (1, {KEY: 0.5}), (2, PLAIN), (2, {KEY: 0.75})]
        runs.append(Run(name, steps, [], Path(name), CONFIG, {"parameters": parameters}))
    learner_only, all_in, seconds = cost.curves(runs)
    assert "a, at 920000: 0.5" in learner_only and "a, at 1.42e+06: 0.75" in learner_only
    assert "a, at 1.428e+06: 0.75" in all_in and "b, at" not in all_in
    assert "b, at 30.5: 0.75" in seconds and "a, at 0: 0.25" in seconds
    (both,) = cost.curves(runs[:1])
    assert "learner-only, at 920000: 0.5" in both and "all-in, at 928000: 0.5" in both
    assert cost.curves(runs[1:]) == []


def test_sizes_come_from_the_folders_that_the_configuration_names(tmp_path):
    """A moved run finds the model beside it; 2 x 3 numbers in the weights."""
    model = tmp_path / "moved" / "models" / "small"
    model.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    config = {
        "trainer": {"default_local_dir": "/gone/run"},
        "actor_rollout_ref": {"model": {"path": "/gone/models/small"}},
        "s2l": {"explorer": {"model_path": "Qwen/Qwen3-0.6B"}, "distill": {"teacher_path": "/gone/models/none"}},
    }
    one = dataclasses.replace(run(PLAIN, config=config, plan={}), folder=tmp_path / "moved" / "run")
    assert Ledger(one).sizes == {"learner": 6, "explorer": 600_000_000, "teacher": None}


def test_stored_rollouts_hold_no_gpus_and_are_sized_by_the_model_that_made_them(monkeypatch):
    def read(folder: Path, key: str) -> SimpleNamespace:
        if folder != Path("/data/store"):
            raise DataError("no store")
        return SimpleNamespace(fingerprint=said)

    said: dict[str, object] = {"model_name": "Qwen/Qwen3-1.7B"}
    monkeypatch.setattr("s2l_ext.report.ledger.read_manifest", read)
    config = {"trainer": CONFIG["trainer"], "s2l": {"explorer": {"source": "offline", "store": "/data/store"}}}
    ledger = Ledger(run(MIXED, config=config, plan={"parameters": {"learner": 1000, "explorer": None}}))
    assert ledger.sizes["explorer"] == 1_700_000_000
    assert ledger.entries["sampling", "explorer"].flops == 2 * 1_700_000_000 * 40
    assert ledger.totals(all_in=True).accelerator_seconds == 2 * 24
    (_, phases) = cost.figures([ledger.run])
    assert "were stored before the run" in phases
    said |= {"model_name": "small", "parameters": 111_168}  # a folder that only the store's maker had
    assert Ledger(run(MIXED, config=config, plan={})).sizes["explorer"] == 111_168
    config["s2l"]["explorer"]["store"] = "/gone"
    assert Ledger(run(MIXED, config=config, plan={})).sizes["explorer"] is None


def test_the_page_shows_both_accounts_and_says_what_is_not_known(tmp_path, capsys):
    for name, steps, parameters in (("a", [MIXED, PLAIN], PLAN["parameters"]), ("b", [PLAIN, PLAIN], {})):
        (tmp_path / name).mkdir()
        lines = [{"step": step, "data": data} for step, data in enumerate(steps, start=1)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / name / "s2l_config.yaml").write_text(json.dumps(CONFIG))
        (tmp_path / name / "plan.json").write_text(json.dumps({"parameters": parameters}))
    folders = [str(tmp_path / name) for name in ("a", "b")]
    assert cli.main(["report", *folders, "--out", str(tmp_path / "out"), "--json"]) == 0
    costs = [found["cost"] for found in json.loads(capsys.readouterr().out)["runs"]]
    assert costs[0]["all_in"]["flops"] == 1_428_000 and costs[0]["learner_only"]["flops"] == 1_420_000
    assert costs[1]["all_in"] == {"tokens": 100, "flops": None, "seconds": 13.0, "accelerator_seconds": 26.0}
    text = (tmp_path / "out" / "index.html").read_text()
    assert "FLOPs of b are not known: the parameters of learner (not named)" in text
    assert "0.426 ×" in text  # 13 of a's 30.5 seconds
    assert "Parameters: learner 1,000, explorer 100." in text and "2 × parameters" in text and "6 ×" in text
