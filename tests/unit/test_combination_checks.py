"""Combinations that verl, or a method, would take in another way than the configuration says."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ext.errors import ConfigError
from s2l_ext.methods.explorer.serving.servers import explorer_config
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.verl_rules import check_columns

LORA = "actor_rollout_ref__model__lora_rank"
NESTED = "actor_rollout_ref__model__lora__rank"
ADAPTER = "actor_rollout_ref__model__lora_adapter_path"
STRATEGY = "actor_rollout_ref__actor__strategy"
MEGATRON = {
    STRATEGY: "megatron",
    "actor_rollout_ref__ref__strategy": "megatron",
    "actor_rollout_ref__actor__fsdp_config": None,
    "actor_rollout_ref__ref__fsdp_config": None,
}


# ---- LoRA ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_megatrons_spelling_of_lora_is_refused_with_fsdp(rules, strategy: str) -> None:
    assert rules("expo/toy").refused(**{NESTED: 8, STRATEGY: strategy}) == (
        f"actor_rollout_ref.model.lora.rank=8 with actor.strategy={strategy}: FSDP reads "
        "actor_rollout_ref.model.lora_rank, so all weights would be trained. Set actor_rollout_ref.model.lora_rank=8 "
        "and leave lora.rank out."
    )


@pytest.mark.slow
def test_an_adapter_that_would_not_reach_samplers_on_other_gpus_is_refused(rules) -> None:
    samplers = {"nnodes": 1, "n_gpus_per_node": 1, "checkpoint_engine__backend": "s2l_cpu"}
    separate = {f"actor_rollout_ref__rollout__{name}": value for name, value in samplers.items()}
    separate["trainer__v1__trainer_mode"] = "separate_async"
    separate["trainer__v1__separate_async__parameter_sync_step"] = 1
    said = rules("grpo/toy").refused(**separate, **{LORA: 8})
    assert said.startswith("LoRA with trainer.v1.trainer_mode=separate_async: verl sends samplers")
    assert "Set +actor_rollout_ref.model.lora.merge=true" in said
    rules("grpo/toy").check(**separate, **{LORA: 8, "actor_rollout_ref__model__lora__merge": True})
    rules("grpo/toy").check(trainer__v1__trainer_mode="colocate_async", **{LORA: 8})


def test_fsdps_spelling_of_lora_is_refused_with_megatron(rules) -> None:
    assert rules("grpo/toy").refused(**{LORA: 8, **MEGATRON}) == (
        "actor_rollout_ref.model.lora_rank=8 with actor.strategy=megatron: Megatron reads "
        "actor_rollout_ref.model.lora.rank, so all weights would be trained. Set actor_rollout_ref.model.lora.rank=8 "
        "and leave lora_rank out."
    )


@pytest.mark.slow
def test_settings_of_fsdp_are_refused_with_megatron_before_verl_fails_on_them(rules) -> None:
    words = rules("s2l_po/qwen3_1.7b_to_8b").refused(**{STRATEGY: "megatron"})
    assert words == (
        "actor_rollout_ref.actor.fsdp_config is set, by verl's default or by the recipe, and "
        "actor_rollout_ref.actor.strategy=megatron does not know it. Add model_engine=megatron "
        "~actor_rollout_ref.actor.fsdp_config to the command."
    )


def test_an_adapter_under_fsdp1_on_the_cpu_is_refused(rules) -> None:
    assert rules("grpo/toy").refused(**{LORA: 8, STRATEGY: "fsdp"}) == (
        "actor_rollout_ref.model.lora_rank=8 with actor.strategy=fsdp on the CPU: verl hands vLLM an adapter without "
        "weights, and the run hangs. Set actor_rollout_ref.actor.strategy=fsdp2."
    )
    rules("grpo/toy").check(**{LORA: 8, STRATEGY: "fsdp", "trainer__device": "cuda"})


def test_an_adapter_that_fsdp_would_not_load_is_refused(rules) -> None:
    assert rules("grpo/toy").refused(**{ADAPTER: "/adapters/first"}) == (
        "actor_rollout_ref.model.lora_adapter_path=/adapters/first with actor_rollout_ref.model.lora_rank=0: FSDP "
        "loads no adapter at rank 0. Set actor_rollout_ref.model.lora_rank to the adapter's rank."
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {LORA: 8},
        {LORA: 8, ADAPTER: "/adapters/first"},
        {NESTED: 8, **MEGATRON},
        {LORA: 8, NESTED: 8, **MEGATRON},
    ],
)
def test_the_spelling_that_the_engine_reads_is_taken(rules, settings: dict) -> None:
    rules("s2l_po/toy").check(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", [LORA, NESTED])
def test_the_explorers_engine_waits_for_no_adapter(configured, name: str) -> None:
    cfg = configured("s2l_po/toy", **{name: 8})
    model = explorer_config(cfg, parse_s2l(cfg.s2l).explorer).actor_rollout_ref.model
    assert (model.lora_rank, model.lora.rank) == (0, 0)
    assert cfg.actor_rollout_ref.model.lora_rank + cfg.actor_rollout_ref.model.lora.rank == 8, (
        "the learner keeps its own"
    )


@pytest.mark.slow
def test_what_verls_settings_do_not_know_is_one_message() -> None:
    from s2l_ext.launch.compose import compose_config
    from s2l_ext.launch.train import _ask_verl

    cfg = compose_config(
        "grpo/toy", ["actor_rollout_ref.actor.strategy=fsdp2", "+actor_rollout_ref.actor.unheard_of=1"]
    )
    with pytest.raises(ConfigError, match=r"^verl refuses the configuration: .*unheard_of") as refusal:
        _ask_verl(cfg)
    assert "\n" not in str(refusal.value)


# ---- turns and other media ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stored_rollouts_in_several_turns_are_refused(rules) -> None:
    words = rules("s2l_po/toy_offline").refused(actor_rollout_ref__rollout__agent__default_agent_loop="tool_agent")
    assert words == (
        "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent with s2l.explorer.source=offline: a stored "
        "rollout has one turn, and the loop asks for more. Set s2l.explorer.source=live, or name single_turn_agent "
        "there."
    )


@pytest.mark.slow
def test_a_row_that_names_a_loop_of_several_turns_is_refused_too(configured, tmp_path: Path) -> None:
    from s2l_ext.training.inputs import Inputs
    from s2l_ext.training.preflight import _check_media

    rows = [
        {"prompt": [{"role": "user", "content": "1+1"}], "agent_name": name} for name in ("s2l_seeded", "tool_agent")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    cfg = configured("s2l_po/toy_offline", data__train_files=str(tmp_path / "train.parquet"))
    with pytest.raises(
        ConfigError, match=r"^column agent_name of data\.train_files=tool_agent with s2l\.explorer\.source="
    ):
        _check_media(Inputs(cfg, parse_s2l(cfg.s2l)))
    live = configured("s2l_po/toy", data__train_files=str(tmp_path / "train.parquet"))
    _check_media(Inputs(live, parse_s2l(live.s2l)))


def test_stored_rollouts_need_no_engine_of_vllms(rules) -> None:
    rules("s2l_po/toy_offline").check(actor_rollout_ref__rollout__name="sglang", s2l__explorer__store="store")
    assert "the explorer's servers are vLLM's" in rules("s2l_po/toy").refused(actor_rollout_ref__rollout__name="sglang")


@pytest.mark.slow
def test_an_adapter_saved_as_a_whole_model_is_refused(rules) -> None:
    save = {"actor_rollout_ref__actor__checkpoint__save_contents": ["model", "optimizer", "extra", "hf_model"]}
    assert rules("sparse_to_dense/stages/opd").refused(**{LORA: 8}, **save) == (
        "actor_rollout_ref.actor.checkpoint.save_contents has hf_model with actor_rollout_ref.model.lora_rank=8: verl "
        "0.9.1 writes base and adapter under names that no loader supports. Leave hf_model out (`s2l pipeline` cannot "
        "pass such a model on)."
    )
    rules("sparse_to_dense/stages/opd").check(**save)


def test_a_live_explorer_may_take_several_turns(rules) -> None:
    rules("s2l_po/toy").check(actor_rollout_ref__rollout__agent__default_agent_loop="tool_agent")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "feature"),
    [
        ("g2rpo_a/toy", "s2l.guidance"),
        ("s2l_po/toy_offline", "s2l.explorer.source=offline"),
        ("sparse_to_dense/stages/opd", "s2l.distill.teacher_placement=local"),
    ],
)
@pytest.mark.parametrize(("key", "column"), [("image_key", "images"), ("video_key", "videos")])
def test_pictures_and_videos_are_refused_where_only_text_is_known(
    configured, recipe: str, feature: str, key: str, column: str
) -> None:
    cfg = configured(recipe)
    with pytest.raises(ConfigError, match=rf"^data\.{key}={column}: the data has this column\. {re.escape(feature)} "):
        check_columns({"prompt", column}, parse_s2l(cfg.s2l), cfg)
    check_columns({"prompt", "pictures"}, parse_s2l(cfg.s2l), cfg)


@pytest.mark.parametrize("recipe", ["grpo/toy", "s2l_po/toy", "expo/toy"])
def test_pictures_pass_where_nothing_reads_the_prompts_tokens(configured, recipe: str) -> None:
    cfg = configured(recipe)
    check_columns({"prompt", "images"}, parse_s2l(cfg.s2l), cfg)


@pytest.mark.slow
def test_the_columns_are_those_of_the_training_files(configured, tmp_path: Path) -> None:
    from s2l_ext.training.inputs import Inputs
    from s2l_ext.training.preflight import _check_media

    row = {"prompt": [{"role": "user", "content": "<image>what?"}], "images": ["picture"]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    cfg = configured("g2rpo_a/toy", data__train_files=str(tmp_path / "train.parquet"))
    with pytest.raises(ConfigError, match=r"^data\.image_key=images: the data has this column\. s2l\.guidance "):
        _check_media(Inputs(cfg, parse_s2l(cfg.s2l)))
