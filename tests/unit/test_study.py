"""Studies: what is refused, numbers worked out by hand, and what is kept of runs."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from s2l_ext.cli import main
from s2l_ext.errors import ConfigError, DataError, ResourceError
from s2l_ext.evaluation.seeds import accuracy_over_seeds, hierarchical, over_seeds, paired
from s2l_ext.launch.compose import compose_config
from s2l_ext.report.run import Run
from s2l_ext.studies.local.run import run_local
from s2l_ext.studies.study import run as study_run
from s2l_ext.studies.study.file import read_study
from s2l_ext.studies.study.results import Result, fingerprint, read_result, spent, write_result
from s2l_ext.studies.study.run import RESULT, Job, Runner, keep_model
from s2l_ext.studies.study.table import cells, rows_of, sentences, sources
from s2l_ext.toy.models import ModelSize, build_model
from s2l_ext.toy.tokenizer import build_tokenizer
from s2l_ext.toy.world import write_files
from s2l_ext.utils.processes import Ended

pytestmark = pytest.mark.slow  # nearly every test composes recipes
SMALL = [
    "data.train_batch_size=2",
    "data.max_response_length=12",
    "data.val_max_samples=3",
    "actor_rollout_ref.rollout.n=2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "trainer.total_training_steps=1",
    "trainer.test_freq=1",
]
STUDY = {
    "name": "tiny",
    "recipe": "grpo/toy",
    "baseline": "grpo",
    "seeds": 2,
    "overrides": SMALL,
    "arms": {"grpo": {}, "s2l_po": {"recipe": "s2l_po/toy"}, "hot": ["actor_rollout_ref.rollout.temperature=1.5"]},
}


@pytest.fixture
def study(tmp_path):
    """Reads :data:`STUDY` with changes."""

    def read(**changes):
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
        return read_study(path)

    return read


# ---- the file -----------------------------------------------------------------------------------------------------


def test_arms_have_the_studys_overrides_before_their_own(study) -> None:
    found = study()
    assert [arm.name for arm in found.arms] == ["grpo", "s2l_po", "hot"] and list(found.seeds) == [1, 2]
    hot = found.arms[2]
    assert hot.cfg.actor_rollout_ref.rollout.temperature == 1.5 and hot.cfg.data.train_batch_size == 2
    assert found.arms[1].recipe == "s2l_po/toy" and found.arms[0].recipe == "grpo/toy"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 1}, r"tiny\.yaml\.seeds=1 is out of range"),
        ({"baseline": "grop"}, r"baseline=grop is no arm\..*grpo"),
        ({"arms": {"grpo": {}}}, r"arms: 1 arm\. A study compares at least two"),
        ({"matched": ["prompt"]}, r"matched: 'prompt' is no quantity\..*prompts"),
        ({"engin": "local"}, r"engin.*engine"),
        ({"arms": {"grpo": {}, "x": {"recipe": "grpo/toi"}}}, r"arms\.x: .*grpo/toi"),
        (
            {"arms": {"grpo": {}, "x": ["algorithm.adv_estimator=rloo"]}},
            r"arms\.x: algorithm\.adv_estimator=rloo: the local",
        ),
        ({"overrides": [3]}, r"overrides\[0\]=3 has the wrong type \(int\): it must be text"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(study, changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(**changes)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.val_files=other.parquet", r"arm x has data\.val_files=other\.parquet, the baseline grpo .*same measure"),
        ("reward.custom_reward_function.name=other", r"arm x has reward\.custom_reward_function\.name=other"),
        ("actor_rollout_ref.rollout.val_kwargs.temperature=0.3", r"val_kwargs\.temperature=0\.3, the baseline grpo 1"),
        ("data.max_response_length=5", r"arm x has data\.max_response_length=5, the baseline grpo"),
        ("trainer.test_freq=-1", r"x has trainer\.test_freq=-1, so its end would not be measured"),
    ],
)
def test_arms_that_are_not_measured_alike_are_refused(study, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(arms={"grpo": {}, "x": [override]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shuffle", "False"),
        ("filter_overlong_prompts", "True"),
        ("prompt_key", "x"),
        ("apply_chat_template_kwargs", "{}"),
    ],
)
def test_what_decides_which_problems_are_asked_is_alike(study, key: str, value: str) -> None:
    given = "{a: 1}" if value == "{}" else value
    with pytest.raises(ConfigError, match=rf"arm x has data\.{key}=.*, the baseline grpo .*same measurement"):
        study(engine="verl", arms={"grpo": {}, "x": [f"++data.{key}={given}"]})


def test_other_arguments_of_the_reward_are_another_measurement(study) -> None:
    with pytest.raises(ConfigError, match=r"arm x has .*reward_kwargs=\{'a': 1\}, the baseline grpo"):
        study(engine="verl", arms={"grpo": {}, "x": ["+reward.custom_reward_function.reward_kwargs.a=1"]})


def test_a_dry_run_of_engine_verl_says_what_verl_could_not_run(study, tmp_path) -> None:
    """The local loop cuts a last micro-batch short."""
    with pytest.raises(ConfigError, match=r"^arm grpo: .*micro_batch_size_per_gpu=64: a worker has 4 rows in a mini-b"):
        Runner(study(engine="verl"), tmp_path / "out").check()


def test_a_dry_run_of_engine_verl_says_which_arm_has_no_place_for_its_explorer(study, tmp_path) -> None:
    mixed = "s2l.explorer={model_path: '${actor_rollout_ref.model.path}', mix_steps: 2}"
    arms = {"mixed": [mixed], "grpo": {}}
    overrides = ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4", "ray_kwargs.ray_init.num_gpus=1"]
    with pytest.raises(ResourceError, match=r"^arm mixed: the run needs 2 GPUs = .*, but 1 are"):
        Runner(study(engine="verl", baseline="mixed", arms=arms, overrides=overrides), tmp_path / "out").check()


@pytest.mark.parametrize("name", [1.5, True, "temp/hot", ".hot", ""])
def test_a_name_that_is_no_folders_is_refused(study, name) -> None:
    for changes in ({"arms": {"grpo": {}, name: {}}}, {"first": {name: {}}}):
        with pytest.raises(ConfigError, match=rf"tiny\.yaml: {name!r} cannot name an arm .* Rename it"):
            study(**changes)


def test_an_arm_that_is_there_twice_is_refused_by_name(study, tmp_path) -> None:
    study()
    path = tmp_path / "tiny.yaml"
    path.write_text(path.read_text() + "  hot: [actor_rollout_ref.rollout.temperature=1.2]\n")
    with pytest.raises(ConfigError, match=r"tiny\.yaml: no YAML \(.*found duplicate key hot"):
        read_study(path)


@pytest.mark.parametrize(
    ("override", "name", "values"),
    [
        ("trainer.total_training_steps=2", "prompts", (4, 2)),
        ("actor_rollout_ref.actor.ppo_epochs=2", "optimizer_steps", (2, 1)),
        ("actor_rollout_ref.rollout.n=4", "rollouts", (8, 4)),
    ],
)
def test_arms_of_another_budget_are_refused_with_both_values(study, override: str, name: str, values) -> None:
    own, base = values
    with pytest.raises(
        ConfigError, match=rf"arm more has {own} {name}, the baseline grpo {base}\. Change .*out of `matched`"
    ):
        study(arms={"grpo": {}, "more": [override]})
    matched = [other for other in ("prompts", "optimizer_steps", "rollouts") if other == "none"]
    assert len(study(arms={"grpo": {}, "more": [override]}, matched=matched).arms) == 2


def test_verl_ends_after_its_epochs_and_steps_that_are_not_known_are_refused(study, tmp_path) -> None:
    """Six rows in batches of two: one epoch is three steps, two epochs are more than five."""
    write_files(tmp_path, 0, {"train": 6, "val": 3, "test": 3})
    data = [f"data.{name}_files={tmp_path / name}.parquet" for name in ("train", "val")]
    base = [*SMALL, *data, "trainer.total_training_steps=5", "trainer.total_epochs=2"]
    arms = {"grpo": {}, "short": ["trainer.total_epochs=1"]}
    with pytest.raises(ConfigError, match=r"arm short has 6 prompts, the baseline grpo 10\. Change .*total_epochs"):
        study(engine="verl", overrides=base, arms=arms)
    assert len(study(overrides=base, arms=arms).arms) == 2, "the local loop has no epochs"
    with pytest.raises(ConfigError, match=r"arms\.x: trainer\.total_training_steps=null: .*engine local .*not known"):
        study(arms={"grpo": {}, "x": ["trainer.total_training_steps=null"]})


def test_arms_of_which_one_drops_groups_are_not_matched_in_what_was_sampled(study) -> None:
    arms = {"grpo": {}, "dapo": ["algorithm.filter_groups.enable=true"]}
    with pytest.raises(ConfigError, match=r"arm dapo .* differ in algorithm\.filter_groups.*prompts, rollouts cannot"):
        study(engine="verl", arms=arms)
    assert len(study(engine="verl", arms=arms, matched=["optimizer_steps"]).arms) == 2


def test_the_learners_tokens_are_those_of_the_steps_that_ran() -> None:
    """Three steps of 2 x 4 rows, of 10, 20 and 30 tokens each, where sixteen steps were set."""
    config = {"data": {"train_batch_size": 2}, "actor_rollout_ref": {"rollout": {"n": 4}}}
    metrics = [(step, {"response_length/mean": 10.0 * step}) for step in (1, 2, 3)]
    ran = Run("short", metrics, [], config=config | {"trainer": {"total_training_steps": 16}})
    assert spent(ran)["learner_tokens"] == (10 + 20 + 30) * 8


def test_tokens_of_explorer_and_guidance_are_not_the_learners() -> None:
    """Step 1 has explorer rows alone; in step 2 the learner sampled 90 tokens, after 25 of guidance in the loss."""
    config = {"data": {"train_batch_size": 2}, "actor_rollout_ref": {"rollout": {"n": 4}}}
    explorers = {"response_length/mean": 10.0, "s2l/source/explorer/tokens": 80.0}
    assert spent(Run("all", [(1, explorers)], [], config=config))["learner_tokens"] == 0
    mixed = {"s2l/source/learner/tokens": 90.0, "s2l/guidance/prefix_tokens_in_loss": 25.0}
    both = Run("both", [(1, explorers), (2, explorers | mixed)], [], config=config)
    assert spent(both)["learner_tokens"] == 90


FIRST = {
    "first": {"teacher": {}, "warm": {"overrides": ["actor_rollout_ref.model.path=first:teacher"]}},
    "arms": {"grpo": {}, "after": ["actor_rollout_ref.model.path=first:warm"]},
    "matched": [],
}


def test_runs_of_first_are_those_that_an_arm_needs(study) -> None:
    found = study(**FIRST)
    after = found.arms[1]
    assert [one.name for one in found.first_of(after)] == ["teacher", "warm"] and not found.first_of(found.baseline)
    assert after.cfg.actor_rollout_ref.model.path == found.baseline.cfg.actor_rollout_ref.model.path
    assert [one.name for one in study(**{**FIRST, "arms": {"grpo": {}, "b": {}}}).runs] == ["grpo", "b"]


def test_through_verl_a_model_that_another_run_takes_is_saved_at_the_end(study, tmp_path) -> None:
    found = study(**FIRST, engine="verl")
    made, by_name = Runner(found, tmp_path), {run.name: run for run in found.runs}
    models = {"teacher": "T", "warm": "W"}
    saving = {
        name: [word for word in made.overrides(Job(run, 1), models) if "save" in word] for name, run in by_name.items()
    }
    contents = "actor_rollout_ref.actor.checkpoint.save_contents=[model,hf_model]"
    assert saving["teacher"] == saving["warm"] == ["trainer.save_freq=1000000000", contents]
    assert saving["grpo"] == saving["after"] == ["trainer.save_freq=-1"], "nobody resumes it"
    assert "actor_rollout_ref.model.path=W" in made.overrides(Job(by_name["after"], 1), models)


def test_an_arm_that_another_takes_is_the_same_run(study, tmp_path) -> None:
    arms = {"grpo": {}, "x": {}, "after": ["actor_rollout_ref.model.path=first:x"]}
    taken, free = (
        study(engine="verl", matched=[], arms={name: arms[name] for name in names})
        for names in (("grpo", "x", "after"), ("grpo", "x"))
    )
    both = [Runner(found, tmp_path)._bare(Job(found.arms[1], 1)).fingerprint for found in (taken, free)]
    assert both[0] == both[1]


def test_whose_model_a_run_takes_is_part_of_it(study, tmp_path) -> None:
    """a and b start alike; x and y take them the other way round."""
    keys = ("actor_rollout_ref.model.path", "s2l.distill.teacher_path")
    arms = {"grpo": {}}
    for name, pair in (("x", "ab"), ("y", "ba")):
        words = [f"{key}=first:{one}" for key, one in zip(keys, pair, strict=True)]
        arms[name] = {"recipe": "sparse_to_dense/stages/opd", "overrides": words}
    found = study(first={"a": {}, "b": ["actor_rollout_ref.rollout.temperature=0.9"]}, arms=arms, matched=[])
    made = Runner(found, tmp_path)
    prints = {arm.name: made._bare(Job(arm, 1)).fingerprint for arm in found.arms}
    assert len(set(prints.values())) == 3


def test_requests_have_seeds_where_the_loop_is_verls_own_and_the_mode_sync(study, tmp_path) -> None:
    key = "actor_rollout_ref.rollout.agent.default_agent_loop"
    arms = {"grpo": {}, "tools": [f"{key}=tool_agent"], "later": ["trainer.v1.trainer_mode=colocate_async"]}
    found = study(engine="verl", arms=arms)
    made = Runner(found, tmp_path)
    loops = [[word for word in made.overrides(Job(arm, 1), {}) if word.startswith(key)] for arm in found.arms]
    assert loops == [[f"{key}=s2l_seeded"], [f"{key}=tool_agent"], []]


def test_a_run_that_others_start_from_must_be_measured_too(study) -> None:
    with pytest.raises(ConfigError, match=r"tiny\.yaml: teacher has trainer\.test_freq=0, so its end would not"):
        study(**{**FIRST, "first": {**FIRST["first"], "teacher": ["trainer.test_freq=0"]}})


def test_of_a_checkpoint_through_verl_the_model_is_left(tmp_path) -> None:
    """Its dtype is that of the model it started from; an older model goes."""
    folder, start = tmp_path / "run", tmp_path / "start"
    with pytest.raises(
        DataError, match=r"run: the run left no model for the runs that take it\. Its log says why: log"
    ):
        keep_model(folder, start)
    for place, dtype in ((folder / "global_step_16/actor/huggingface", "bfloat16"), (start, "float32")):
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps({"dtype": dtype}))
    (folder / "global_step_16/actor/model_world_size_1_rank_0.pt").touch()
    (folder / "latest_checkpointed_iteration.txt").write_text("16")
    (folder / "model").mkdir()
    (folder / "model" / "old").touch()
    keep_model(folder, start)
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*")] == ["model", "model/config.json"]
    assert json.loads((folder / "model" / "config.json").read_text()) == {"dtype": "float32"}


def test_an_arm_that_was_not_asked_for_runs_where_another_takes_its_model(study, tmp_path) -> None:
    arms = {**FIRST["arms"], "later": ["actor_rollout_ref.model.path=first:after"], "x": {}}
    study(**{**FIRST, "arms": arms})
    found = read_study(tmp_path / "tiny.yaml", arms=["later"])
    assert [one.name for one in found.runs] == ["teacher", "warm", "grpo", "after", "later"]
    assert [one.name for one in found.arms] == ["grpo", "later"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"grpo": {}, "x": ["actor_rollout_ref.model.path=first:wram"]}}, r"arms\.x: first:wram.*'warm'"),
        (
            {"first": {"a": ["actor_rollout_ref.model.path=first:b"], "b": {}}},
            r"first\.a: first:b is no run before it",
        ),
        (
            {"arms": {"grpo": {}, "warm": {}}},
            r"tiny\.yaml: warm in `first` and in `arms`\. An arm hands its model on too",
        ),
    ],
)
def test_first_that_cannot_be_meant_is_refused(study, changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(**{**FIRST, **changes})


def test_another_baseline_takes_the_place_of_the_files(study, tmp_path) -> None:
    study()
    assert read_study(tmp_path / "tiny.yaml", baseline="hot").baseline.name == "hot"
    with pytest.raises(ConfigError, match=r"baseline=hto is no arm\..*hot"):
        read_study(tmp_path / "tiny.yaml", baseline="hto")
    with pytest.raises(ConfigError, match=r"--arm=nope is no arm\. Arms: grpo, s2l_po, hot\.$"):
        read_study(tmp_path / "tiny.yaml", arms=["nope"])


def test_a_dry_run_prints_no_json(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["study", "studies/smoke", "--dry-run", "--json"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_no_yaml_and_no_file_are_refused(tmp_path, capsys) -> None:
    (tmp_path / "bad.yaml").write_text("a: [")
    assert main(["study", str(tmp_path / "bad.yaml")]) == 2
    assert "no YAML" in capsys.readouterr().err
    assert main(["study", "studies/smok"]) == 2
    assert "Did you mean 'studies/smoke'" in capsys.readouterr().err


# ---- numbers ------------------------------------------------------------------------------------------------------


def test_an_interval_over_three_seeds() -> None:
    """Standard deviation 0.1, t(2) = 4.3027: half width 4.3027 * 0.1 / sqrt 3."""
    found = over_seeds([0.1, 0.2, 0.3])
    assert found.mean == pytest.approx(0.2) and found.ci95 == pytest.approx((0.2 - 0.24841, 0.2 + 0.24841), abs=1e-4)


def test_a_paired_difference_its_effect_size_and_what_would_show() -> None:
    """Gaps 0.1, 0.2, 0.3: d = 0.2 / 0.1; t(2) at 97.5 % and at 80 % are 4.3027 and 1.0607."""
    found = paired([0.5, 0.7, 0.9], [0.4, 0.5, 0.6])
    assert found.mean == pytest.approx(0.2) and found.effect == pytest.approx(2.0) and not found.clear
    assert found.detectable == pytest.approx((4.3027 + 1.0607) * 0.1 / 3**0.5, rel=1e-3)
    down = paired([0.40, 0.51, 0.62], [0.5, 0.6, 0.7])
    assert down.clear and down.mean == pytest.approx(-0.09) and down.effect == pytest.approx(-9.0)


def test_two_seeds_or_equal_gaps_are_never_clear_and_an_accuracy_ends_at_1() -> None:
    for gaps in ([0.51, 0.62], [0.51, 0.61, 0.71]):
        found = paired(gaps, [0.50, 0.60, 0.70][: len(gaps)])
        assert not found.clear and found.detectable is None
    assert accuracy_over_seeds([0.9, 1.0]).ci95 == (pytest.approx(0.95 - 12.706 * 0.05, abs=1e-3), 1.0)


def test_problems_and_seeds_both_widen_the_bootstrap() -> None:
    """The same seeds' means: with problems that vary inside, the interval is wider."""
    alike = np.array([[0.5] * 4, [0.6] * 4, [0.7] * 4])
    varied = alike + np.array([-0.3, -0.1, 0.1, 0.3])
    low, high = hierarchical(alike)
    assert low == pytest.approx(0.5) and high == pytest.approx(0.7)
    wider = hierarchical(varied)
    assert wider[0] < low and wider[1] > high
    assert hierarchical([np.full(4, 0.2), np.full(3, 0.5)], shared=False) == pytest.approx((0.2, 0.5))


def test_problems_that_all_seeds_share_do_not_average_out() -> None:
    """Ten seeds of the same two problems, one right and one wrong: a quarter of the draws has twice the wrong one."""
    alike = np.array([[0.0, 1.0]] * 10)
    assert hierarchical(alike) == (0.0, 1.0)
    low, high = hierarchical(alike, shared=False)
    assert 0.1 < low < 0.4 and 0.6 < high < 0.9


# ---- results ------------------------------------------------------------------------------------------------------


def result(arm: str, seed: int, accuracies: list[float], tokens: float = 10.0, error: str = "") -> Result:
    spent = {"learner_tokens": tokens, "flops": 10 * tokens, "seconds": 1.0}
    found = {"toy": accuracies} if not error else {}
    return Result("tiny", arm, "local", seed, 1.5e-4, "f", "c", found, {}, {} if error else spent, error)


def table(study, s2l: list[Result], **changes):
    grpo = [result("grpo", seed, [0.2, value]) for seed, value in ((1, 0.2), (2, 0.4), (3, 0.3))]
    found = study(seeds=3, arms={"grpo": {}, "s2l_po": {"recipe": "s2l_po/toy"}}, **changes)
    return rows_of(found, {"grpo": grpo, "s2l_po": s2l})


def test_three_equal_gaps_of_few_problems_are_not_clear(study) -> None:
    better = [result("s2l_po", seed, [0.8, value]) for seed, value in ((1, 0.2), (2, 0.4), (3, 0.3))]
    row = table(study, better)[1]
    assert row.difference.mean == pytest.approx(0.3) and not row.difference.clear


def test_accuracy_by_data_source_is_a_table_of_its_own(study) -> None:
    """Means of toy 0.2 and 0.3 over two seeds, of hard 0 and 0; none for a single source."""
    runs = [result("grpo", 1, [0.1, 0.3]), result("grpo", 2, [0.2, 0.4]), result("grpo", 3, [], error="exit code 1")]
    found = study(arms={"grpo": {}, "hot": {}})
    runs[:2] = [dataclasses.replace(run, accuracies=run.accuracies | {"hard": [0.0]}) for run in runs[:2]]
    head, rows = sources(found, {"grpo": runs, "hot": runs[:1]})
    assert head == ["arm", "hard", "toy"] and rows[0][:2] == ["grpo", "0.000 (0.000 to 0.000)"]
    assert rows[0][2] == "0.250 (0.000 to 0.885)" and rows[1][1:] == ["too few seeds"] * 2
    more = [*runs[:2], result("grpo", 3, [0.3])]
    assert sources(found, {"grpo": more, "hot": []})[1][0][1] == "0.000 (0.000 to 0.000), 2 of 3 seeds"
    one = [dataclasses.replace(run, accuracies={"toy": [1.0]}) for run in runs[:2]]
    assert sources(found, {"grpo": one, "hot": one})[1] == []


def test_what_cannot_be_shown_is_said_so(study) -> None:
    noisy = [result("s2l_po", seed, [0.2, value]) for seed, value in ((1, 0.3), (2, 0.3), (3, 0.4))]
    said = sentences(table(study, noisy))
    assert (
        said[0].startswith("s2l_po: no difference could be shown, +0.017 (") and "four of five such studies" in said[0]
    )


def test_seeds_that_do_not_tell_ask_for_more(study) -> None:
    alike = [result("s2l_po", seed, [0.8, value]) for seed, value in ((1, 0.2), (2, 0.4), (3, 0.3))]
    rows = table(study, alike)
    assert sentences(rows)[0].endswith("3 seeds). Give more seeds: these do not tell how much it varies.")
    assert cells(rows[1])[-4:] == ["", "10", "100", "1"]


def test_a_failed_run_is_named_and_the_rest_stands(study) -> None:
    runs = [
        result("s2l_po", 1, [0.8, 0.3]),
        result("s2l_po", 2, [0.8, 0.5]),
        result("s2l_po", 3, [], error="exit code 1"),
    ]
    rows = table(study, runs)
    assert rows[1].seeds == (1, 2) and rows[1].difference.mean == pytest.approx((0.35 + 0.35) / 2)
    assert "s2l_po, seed 3: no result (exit code 1)." in sentences(rows)
    assert cells(rows[1])[:3] == ["s2l_po", "0.00015", "2, 1 failed"]


def test_seeds_that_lack_a_pair_or_some_problems_leave_a_row(study) -> None:
    """The baseline failed on seed 3, so two of three seeds pair; seed 2 has one problem fewer."""
    grpo = [result("grpo", 1, [0.2, 0.4]), result("grpo", 2, [0.3]), result("grpo", 3, [], error="exit code 1")]
    own = [result("hot", 1, [0.4, 0.6]), result("hot", 2, [0.8]), result("hot", 3, [0.9, 0.7])]
    found = study(seeds=3, arms={"grpo": {}, "hot": STUDY["arms"]["hot"]})
    row = rows_of(found, {"grpo": grpo, "hot": own})[1]
    assert row.seeds == (1, 2, 3) and row.difference.mean == pytest.approx((0.2 + 0.5) / 2)
    assert row.sentence.startswith("hot: no difference could be shown, +0.350 (") and ", 2 seeds)" in row.sentence
    assert 0.4 < row.ci95_problems[0] < 0.7 < row.ci95_problems[1] < 0.9


def test_what_was_to_be_matched_and_is_not_is_said(study) -> None:
    runs = [result("s2l_po", seed, [0.8, 0.3], tokens=5.0) for seed in (1, 2, 3)]
    rows = table(study, runs, matched=["prompts", "learner_tokens"])
    assert rows[1].unmatched == {"learner_tokens": 0.5}
    assert "s2l_po is not matched in learner_tokens: 0.50 x the baseline's." in sentences(rows)


# ---- runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_files(root, 0, {"train": 6, "val": 3, "test": 3})
    for number, name in enumerate(("small", "medium")):
        build_model(ModelSize(32, 1), number).save_pretrained(root / "models" / name)
        build_tokenizer().save_pretrained(root / "models" / name)
    return root


@pytest.fixture
def runner(study, world, tmp_path, monkeypatch):
    """A study of two arms whose runs happen in this process; ``runner.started`` counts them."""
    started = []

    def here(command, log, on_tick, environment=None):
        words = command[command.index("--config-name") + 1 :]
        started.append(words)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("boom\n")
        if "actor_rollout_ref.rollout.temperature=9" in words:
            return Ended(3, 0.0, 0)
        cfg = compose_config(words[0], words[1:])
        run_local(cfg, Path(cfg.trainer.default_local_dir))
        return Ended(0, 0.0, 0)

    monkeypatch.setattr(study_run, "run_supervised", here)
    monkeypatch.setenv("S2L_TOY_DIR", str(world))

    def make(out: Path = tmp_path / "out", **changes) -> Runner:
        arms = {"grpo": {}, "s2l_po": {"recipe": "s2l_po/toy"}}
        made = Runner(study(**({"arms": arms} | changes)), out)
        made.started = started
        return made

    return make


def _as_json(results: dict[str, list[Result]]) -> str:
    """All but the seconds, which a run that was done again has its own of."""
    plain = {name: [dataclasses.asdict(one) for one in runs] for name, runs in results.items()}
    return json.dumps(
        {
            name: [one | {"spent": one["spent"] | {"seconds": 0}, "own": None} for one in runs]
            for name, runs in plain.items()
        }
    )


@pytest.mark.slow
def test_finished_runs_are_kept_and_a_failed_one_is_done_again(runner, tmp_path) -> None:
    first = runner()
    results = first.run()
    assert len(first.started) == 4 and [one.seed for one in results["s2l_po"]] == [1, 2]
    assert all(one.spent["seconds"] > 0 and one.spent["flops"] > 0 for runs in results.values() for one in runs)
    assert all(len(one.problems) == 3 for runs in results.values() for one in runs)
    # seed by seed, so that a study that is stopped has whole pairs
    assert [next(word for word in words if word.startswith("data.seed")) for words in first.started] == [
        "data.seed=1",
        "data.seed=1",
        "data.seed=2",
        "data.seed=2",
    ]
    path = next((tmp_path / "out" / "runs" / "grpo").glob("*-seed2/result.json"))
    write_result(path, dataclasses.replace(read_result(path), error="killed"))
    again = runner().run()
    assert len(first.started) == 5 and _as_json(again) == _as_json(results)


@pytest.mark.slow
def test_a_study_that_is_stopped_ends_its_runs_and_begins_no_other(study, tmp_path, monkeypatch) -> None:
    """Real processes; the interrupt comes while the first two of four sleep."""
    made = Runner(study(), tmp_path / "out", jobs=2)
    monkeypatch.setattr(study_run.sys, "executable", str(tmp_path / "sleep.sh"))
    (tmp_path / "sleep.sh").write_text("#!/bin/sh\nexec sleep 100\n")
    (tmp_path / "sleep.sh").chmod(0o755)
    began = time.monotonic()
    monkeypatch.setattr(study_run, "as_completed", lambda running: _interrupted(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert time.monotonic() - began < 60, "it did not wait for the sleepers"
    assert len(list((tmp_path / "out").rglob("log.txt"))) == 2 and not list((tmp_path / "out").rglob("result.json"))


def _interrupted(out: Path):
    while len(list(out.rglob("log.txt"))) < 2:
        time.sleep(0.05)
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_failed_arm_has_its_last_line(runner) -> None:
    bad = {"grpo": {}, "bad": ["actor_rollout_ref.rollout.temperature=9"]}
    results = runner(arms=bad).run()
    assert results["bad"][0].error.startswith("exit code 3: boom (see ") and not results["grpo"][0].error


@pytest.mark.slow
def test_a_model_is_made_once_a_seed_and_its_cost_counts_once(runner, tmp_path) -> None:
    """after takes warm, which takes teacher; last takes after. Each counts its own and those before it."""
    takes = "actor_rollout_ref.model.path=first:"
    changes = {
        **FIRST,
        "arms": {"grpo": {}, "after": [f"{takes}warm"], "again": [f"{takes}warm"], "last": [f"{takes}after"]},
    }
    made = runner(**changes)
    results = made.run()
    assert len(made.started) == 2 * (2 + 4)
    out = tmp_path / "out"
    warm = out / "first" / "warm" / "lr0.00015-seed2"
    words = next(words for words in made.started if any(f"runs/after/{warm.name}" in word for word in words))
    assert f"{takes[:-6]}{warm / 'model'}" in words and (warm / "model" / "config.json").is_file()
    assert (out / "runs" / "after" / warm.name / "model").is_dir()
    own = {name: read_result(out / "first" / name / warm.name / "result.json").own for name in ("teacher", "warm")}
    own |= {name: results[name][1].own for name in results}
    for name, before in (("grpo", ()), ("after", ("teacher", "warm")), ("last", ("teacher", "warm", "after"))):
        for what in ("learner_tokens", "flops", "seconds"):
            assert results[name][1].spent[what] == pytest.approx(sum(own[one][what] for one in (name, *before)))
    runner(**changes).run()
    assert len(made.started) == 12
    assert results["after"][0].fingerprint != results["grpo"][0].fingerprint
    shutil.rmtree(out / "runs" / "after" / warm.name / "model")  # as `cp` of small files leaves it
    runner(**changes).run()
    assert len(made.started) == 12, "all results are there, so nobody takes the model"
    (out / "runs" / "last" / warm.name / "result.json").unlink()
    runner(**changes).run()
    assert [
        next(word for word in words if "default_local_dir" in word).split("/runs/")[1] for words in made.started[12:]
    ] == [f"{name}/{warm.name}" for name in ("after", "last")]


@pytest.mark.slow
def test_a_run_while_the_code_changed_has_no_result(runner, monkeypatch) -> None:
    made = runner()
    versions = iter([made.commit, "edited", "edited"])
    monkeypatch.setattr(study_run, "code_version", lambda: next(versions, made.commit))
    errors = [one.error for arm in made.run().values() for one in arm]
    assert errors.count("") == len(errors) - 1
    assert f"the code changed while it ran: it began at {made.commit}, now edited" in errors


@pytest.mark.slow
def test_an_arm_whose_first_run_failed_says_which(runner) -> None:
    broken = {**FIRST, "first": {"teacher": {}, "warm": ["actor_rollout_ref.rollout.temperature=9"]}}
    results = runner(**broken).run()
    assert results["after"][0].error.startswith("first:warm failed: exit code 3") and not results["grpo"][0].error


@pytest.mark.slow
def test_what_others_left_is_taken_over_or_refused(runner, tmp_path) -> None:
    """A copied folder is not run again; a result of another study, code, engine or data is refused by name."""
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    made = runner(elsewhere)
    made.run()
    shutil.copytree(elsewhere / "runs", out / "runs")
    before = len(made.started)
    runner(out).run()
    assert len(made.started) == before
    path = next((out / "runs").glob("*/*-seed1/result.json"))
    kept = read_result(path)
    for name in ("study", "fingerprint", "commit", "engine"):
        write_result(path, dataclasses.replace(kept, **{name: "other"}))
        with pytest.raises(DataError, match=rf"is of another {name} \('other', this study has .*Remove the folder"):
            runner(out).run()


def test_a_kept_result_must_be_of_the_seed_and_rate_of_its_folder(study, tmp_path) -> None:
    found = study()
    made, job = Runner(found, tmp_path), Job(found.arms[0], 2)
    for name, other in (("seed", 1), ("learning_rate", 1.5000001e-4)):
        write_result(tmp_path / job.place / RESULT, dataclasses.replace(made._bare(job), **{name: other}))
        with pytest.raises(DataError, match=rf"is of another {name} \({other}, this study has "):
            made._kept(job)


def test_a_dry_run_counts_the_runs_that_would_not_be_done_again(study, tmp_path) -> None:
    """grpo has one good run and a failed one, hot none."""
    found = study(arms={"grpo": {}, "hot": STUDY["arms"]["hot"]})
    made = Runner(found, tmp_path)
    for seed, error in ((1, ""), (2, "exit code 1")):
        job = Job(found.arms[0], seed)
        kept = dataclasses.replace(made._bare(job), accuracies={"toy": [0.4]}, error=error)
        write_result(tmp_path / job.place / RESULT, kept)
    said = made.planned_lines()
    assert said[1].endswith("; 1 runs are there") and said[2].endswith("; 0 runs are there")


def test_seed_and_learning_rate_are_not_in_the_fingerprint_and_data_are(world, monkeypatch) -> None:
    monkeypatch.setenv("S2L_TOY_DIR", str(world))

    def of(*overrides: str) -> str:
        return fingerprint(compose_config("s2l_po/toy", [*SMALL, *overrides]))

    assert of() == of("data.seed=7", "actor_rollout_ref.actor.optim.lr=1", "trainer.default_local_dir=x")
    assert of() != of("actor_rollout_ref.rollout.temperature=1.1")
    assert of() != of("trainer.total_training_steps=2")
    learned = ("trainer.total_epochs=2", "trainer.critic_warmup=2", "trainer.v1.trainer_mode=colocate_async")
    assert of() not in map(of, learned)
    assert of() != of("data.val_files=${toy_dir}/test.parquet")
    assert of() != of("s2l.explorer.mix_steps=9")


@pytest.mark.parametrize("key", ["reward.custom_reward_function.path={0}", "s2l.kl={{type: accuracy, rho: '{0}:rho'}}"])
def test_a_users_own_code_counts_by_its_content(world, monkeypatch, tmp_path, key: str) -> None:
    monkeypatch.setenv("S2L_TOY_DIR", str(world))
    own, found = tmp_path / "own.py", set()
    for text in ("def rho(accuracy): return 1.0\n", "def rho(accuracy): return 0.5\n"):
        own.write_text(text)
        found.add(fingerprint(compose_config("s2l_po/toy", [*SMALL, key.format(own)])))
    assert len(found) == 2


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ("grpo/toy", "actor_rollout_ref.model.path"),
        ("s2l_po/toy", "s2l.explorer.model_path"),
        ("smollm2/opd", "s2l.distill.teacher_path"),
    ],
)
def test_models_count_by_their_content_wherever_they_lie(tmp_path, monkeypatch, recipe: str, key: str) -> None:
    monkeypatch.setenv("S2L_CACHE_DIR", str(tmp_path / "cache"))

    def of(path: str) -> str:
        return fingerprint(compose_config(recipe, [f"{key}={path}"]))

    for place, weights in (("a/step_10", b"first"), ("b/step_20", b"other"), ("c/step_30", b"first")):
        (tmp_path / place / "model").mkdir(parents=True)
        (tmp_path / place / "model" / "model.safetensors").write_bytes(weights)
    first, other, again = (of(str(tmp_path / place / "model")) for place in ("a/step_10", "b/step_20", "c/step_30"))
    assert first == again != other
    (tmp_path / "c/step_30/model/model.safetensors").write_bytes(b"trained on")
    assert of(str(tmp_path / "c/step_30/model")) not in (first, other)
    assert of("Qwen/Qwen3-8B") != of("other/Qwen3-8B")


@pytest.mark.slow
def test_the_command_writes_table_page_and_numbers(runner, tmp_path, capsys) -> None:
    runner()
    assert main(["study", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out"), "--arm", "s2l_po"]) == 0
    said = capsys.readouterr().out
    assert "| s2l_po | 0.00015       | 2     |" in said and "study.html" in said
    kept = json.loads((tmp_path / "out" / "study.json").read_text())
    assert set(kept["arms"]) == {"grpo", "s2l_po"} and kept["arms"]["grpo"]["difference"] is None
    assert set(kept["arms"]["grpo"]["by_seed"]) == {"1", "2"}
    assert "<svg" in (tmp_path / "out" / "study.html").read_text()
    assert main(["study", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "s2l_po: s2l_po/toy, 2 prompts, 1 optimizer_steps, 4 rollouts; 2 runs are there" in capsys.readouterr().out
