"""What is looked at before Ray starts, on a tiny world of two model folders and two parquet files."""

from __future__ import annotations

import functools
import json
import pickle
import re
import shutil
import struct
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from s2l_ext.data.prompts import parquet_table, prompt_ids
from s2l_ext.errors import ConfigError, DataError, ResourceError, TokenizerMismatch
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.curriculum.controller import Curriculum
from s2l_ext.methods.curriculum.rules import check_warm_start
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.inputs import steps_of_run
from s2l_ext.training.preflight import check_inputs, check_own_pool, check_pool

TOKENS = ["<pad>", "<unk>", "<eos>", "a", "b"]


def make_model(folder: Path, width: int, tokens: list[str] = TOKENS) -> None:
    """A Qwen3 folder without weights: config, tokenizer, and a safetensors header of ``width`` x 10 parameters."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}))
    header = json.dumps({"w": {"dtype": "F32", "shape": [width, 10], "data_offsets": [0, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def write_rows(path: Path, count: int, **changes: object) -> None:
    row = {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": "1+1"}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        **changes,
    }
    pd.DataFrame([{key: value for key, value in row.items() if value is not None}] * count).to_parquet(path)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_model(tmp_path / "models" / "medium", width=9)
    make_model(tmp_path / "models" / "small", width=1)
    write_rows(tmp_path / "train.parquet", 64)
    write_rows(tmp_path / "val.parquet", 4)
    monkeypatch.setenv("S2L_TOY_DIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


@functools.cache
def toy_recipe() -> DictConfig:
    return compose_config("s2l_po/toy", [])


def composed(*settings: str) -> DictConfig:
    cfg = pickle.loads(
        pickle.dumps(toy_recipe())
    )  # as fast as eight copy(); interpolations such as S2L_TOY_DIR are resolved when read
    with open_dict(cfg):
        cfg.merge_with_dotlist(list(settings))
    return cfg


def look(*overrides: str) -> list[str]:
    cfg = composed(*overrides)
    s2l = parse_s2l(cfg.s2l)
    check_own_pool(cfg, s2l)
    return check_inputs(cfg, s2l)


@pytest.mark.slow
def test_a_sound_world_passes_without_a_warning(world):
    assert look() == []


@pytest.mark.slow
@pytest.mark.parametrize("key", ["actor_rollout_ref.model.path", "s2l.explorer.model_path"])
def test_missing_model_path_names_key_path_and_fix(world, key):
    path = world / "models" / "absent"
    with pytest.raises(ConfigError) as refusal:
        look(f"{key}={path}")
    assert str(refusal.value) == (
        f"{key}={path}: no such folder. Run `s2l data toy --out {world}` to make the toy models."
    )


def test_a_missing_model_of_the_natural_family_names_its_command(world):
    with pytest.raises(ConfigError, match=f"Run `s2l data toy --out {world} --family natural --sizes small` to make"):
        look(f"s2l.explorer.model_path={world / 'models' / 'natural_small'}")


def test_an_explorer_with_fewer_positions_than_the_learners_engine_is_refused(world):
    path = world / "models" / "small" / "config.json"
    sizes = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "vocab_size": 5,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes | {"max_position_embeddings": 512}))
    length = "actor_rollout_ref.rollout.max_model_len"
    with pytest.raises(ConfigError) as refusal:
        look(f"{length}=513")
    assert str(refusal.value) == (
        f"the explorer's engine would have {length}=513, and s2l.explorer.model_path={world}/models/small has 512 "
        "positions. Set s2l.explorer.rollout_overrides.max_model_len=512 or less."
    )
    look(f"{length}=512")
    look(f"{length}=513", "s2l.explorer.rollout_overrides={max_model_len: 400}")
    asked = [f"{length}=null", "data.max_prompt_length=64"]
    (warning,) = [one for one in look(*asked, "data.max_response_length=449") if "positions" in one]
    assert warning.startswith(
        "the explorer's engine has 512 positions, fewer than data.max_prompt_length + data.max_response_length = 513: "
        "verl ends a response where its row is full"
    )
    assert not [one for one in look(*asked, "data.max_response_length=448") if "positions" in one]


def test_a_folder_without_a_model(world):
    (world / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"config.json is missing"):
        look(f"actor_rollout_ref.model.path={world / 'empty'}")


def test_another_tokenizer_is_refused_and_shown(world):
    make_model(world / "models" / "other", width=1, tokens=["<pad>", "<unk>", "<eos>", "b", "a"])
    with pytest.raises(TokenizerMismatch, match="id 3 / id 4") as refusal:
        look(f"s2l.explorer.model_path={world / 'models' / 'other'}")
    assert "actor_rollout_ref.model.path" in str(refusal.value) and "s2l.explorer.model_path" in str(refusal.value)


def test_a_larger_explorer_warns_with_both_sizes(world):
    medium, small = world / "models" / "medium", world / "models" / "small"
    (warning,) = look(f"actor_rollout_ref.model.path={small}", f"s2l.explorer.model_path={medium}")
    assert "larger than the learner" in warning and "90 parameters" in warning and f"{small} has 10." in warning


def test_an_explorer_of_the_same_size_does_not_warn(world):
    assert look(f"s2l.explorer.model_path={world / 'models' / 'medium'}") == []


def test_a_pool_larger_than_the_machine_names_both_numbers(world):
    with pytest.raises(ResourceError) as refusal:
        look("s2l.explorer.n_gpus_per_node=3")
    assert "needs 4 GPUs = 1 (learner) + 3 (explorer), but 2 are available" in str(refusal.value)
    assert "Set ray_kwargs.ray_init.num_gpus=4" in str(refusal.value)


def test_nodes_count_in_the_pool(world):
    with pytest.raises(ResourceError, match=r"needs 5 GPUs = 1 \(learner\) \+ 4 \(explorer\), but 2"):
        look("s2l.explorer.n_gpus_per_node=2", "s2l.explorer.nnodes=2")


def test_the_teacher_of_verls_own_distillation_counts_in_the_pool(world):
    own = ["distillation.enabled=true", "distillation.nnodes=1", "distillation.n_gpus_per_node=4"]
    with pytest.raises(ResourceError, match=r"needs 6 GPUs = 1 \(learner\) \+ 1 \(explorer\) \+ 4 \(verl's teacher\)"):
        look(*own)


def test_the_learner_alone_can_be_too_large(world):
    with pytest.raises(ResourceError, match=r"needs 3 GPUs = 3 \(learner\), but 2"):
        look("s2l.explorer=null", "trainer.n_gpus_per_node=3")


def test_a_cluster_is_left_to_the_trainer(world):
    assert look("s2l.explorer.n_gpus_per_node=3", "ray_kwargs.ray_init.address=auto") == []


def test_a_cluster_named_by_the_environment_is_left_to_the_trainer(world, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert look("s2l.explorer.n_gpus_per_node=3") == []


def test_gpus_of_this_machine_count_unless_a_ray_cluster_runs_here(world, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("RAY_TMPDIR", str(world))
    settings = ["ray_kwargs.ray_init.num_gpus=null", "s2l.explorer.n_gpus_per_node=2", "trainer.device=cuda"]
    with pytest.raises(ResourceError, match=r"needs 3 GPUs .* but 2 are available. Lower trainer.n_gpus_per_node"):
        look(*settings)
    (world / "ray").mkdir()
    (world / "ray" / "ray_current_cluster").write_text("head:6379")
    assert look(*settings) == []


def test_the_trainers_question_takes_the_clusters_answer(world):
    cfg = composed("s2l.explorer.n_gpus_per_node=3")
    check_pool(cfg, parse_s2l(cfg.s2l), available=4)
    with pytest.raises(ResourceError, match="but 3 are available"):
        check_pool(cfg, parse_s2l(cfg.s2l), available=3)


def test_missing_data_file_names_key_and_fix(world):
    (world / "val.parquet").unlink()
    with pytest.raises(DataError, match=r"data\.val_files=.*val\.parquet: no such file. Run `s2l data toy --out "):
        look()


@pytest.mark.parametrize(
    ("file", "fix"),
    [
        ("data/gsm8k/train.parquet", "Check the path; `s2l data gsm8k` makes GSM8K's (docs/data.md)."),
        ("data/dapo-math-17k.parquet", "Check the path (docs/data.md)."),
    ],
)
def test_the_command_of_gsm8k_is_named_for_its_files_alone(world, file, fix):
    with pytest.raises(DataError, match=re.escape(f"data.train_files={file}: no such file. {fix}")):
        look(f"data.train_files={file}")


@pytest.mark.parametrize(("column", "shown"), [("prompt", "prompt"), ("reward_model", "reward_model")])
def test_data_without_a_column_names_file_and_column(world, column, shown):
    write_rows(world / "train.parquet", 3, **{column: None})
    with pytest.raises(DataError, match=rf"train\.parquet: .*'{shown}' is missing"):
        look()


def test_data_with_a_bad_row_names_the_row(world):
    good = pd.read_parquet(world / "train.parquet")
    bad = good.iloc[:1].assign(reward_model=[{"style": "rule", "ground_truth": ""}])
    pd.concat([good.iloc[:5], bad]).to_parquet(world / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: row 5, column 'reward_model.ground_truth'"):
        look()


def test_several_files_are_all_checked(world):
    write_rows(world / "more.parquet", 3, prompt=None)
    with pytest.raises(DataError, match=r"more\.parquet"):
        look(f"data.train_files=[{world / 'train.parquet'},{world / 'more.parquet'}]")


def test_own_dataset_classes_read_their_own_columns(world):
    write_rows(world / "train.parquet", 3, prompt=None)
    assert look("data.custom_cls.path=pkg://mine", "data.custom_cls.name=Mine") == []


def test_steps_that_the_data_gives_are_compared_with_the_schedule(world):
    settings = [
        "trainer.total_training_steps=null",
        "trainer.total_epochs=3",
        "data.train_batch_size=32",
    ]  # 64 rows: 6 steps
    (warning,) = look(*settings)
    assert "mix_steps=8" in warning and "6 steps" in warning
    assert look(*settings, "s2l.explorer.mix_steps=6") == []
    both = [*settings[1:], "trainer.total_training_steps=300"]
    assert look(*both) == [warning]
    assert look(*both, "s2l.explorer.mix_steps=6") == []


# ---- what a curriculum reads --------------------------------------------------------------------------------------


def with_curriculum(*settings: str) -> list[str]:
    return look("data.train_batch_size=32", "s2l.explorer=null", *settings)


def test_fewer_prompts_than_a_step_is_refused(world):
    write_rows(world / "train.parquet", 31)
    with pytest.raises(DataError, match=r"31 prompts, fewer than data\.train_batch_size=32"):
        with_curriculum("s2l.curriculum={type: gaussian}")


@pytest.mark.slow
@pytest.mark.parametrize("block", ["s2l.explorer.mix_steps=8", "s2l.explorer=null"])
def test_without_a_curriculum_too_an_epoch_needs_a_step(world, block):
    """verl would divide by its 0 steps an epoch once all models have loaded."""
    write_rows(world / "train.parquet", 31)
    with pytest.raises(DataError) as refused:
        look("data.train_batch_size=32", block)
    assert str(refused.value) == (
        "data.train_files has 31 prompts, fewer than data.train_batch_size=32: an epoch has whole batches only, so it "
        "would have no step. Lower data.train_batch_size or add prompts."
    )
    assert look("data.train_batch_size=31", block) == []
    assert look("data.train_batch_size=32", block, "trainer.val_only=true") == []


@pytest.mark.slow
@pytest.mark.parametrize("other", ["{world}/more.jsonl", "hdfs://cluster/more.parquet"])
def test_rows_of_files_that_cannot_be_counted_are_not_counted_as_none(world, other):
    """31 rows here and any number there: neither a refusal nor a number of steps follows."""
    write_rows(world / "train.parquet", 31)
    (world / "more.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "1+1"}]}) + "\n")
    files = f"data.train_files=[{world}/train.parquet,{other.format(world=world)}]"
    assert look("data.train_batch_size=32", "s2l.explorer=null", files) == []
    cfg = compose_config(
        "grpo/toy", [files, "data.train_batch_size=4", "trainer.total_epochs=1", "trainer.total_training_steps=100"]
    )
    assert steps_of_run(cfg).number == 100


def test_a_validation_alone_asks_for_no_explorer(world):
    shutil.rmtree(world / "models" / "small")
    with pytest.raises(ConfigError, match=r"s2l\.explorer\.model_path=.*: no such folder"):
        look()
    assert look("trainer.val_only=true", "ray_kwargs.ray_init.num_gpus=1") == []


def test_ray_is_not_believed_to_have_more_gpus_than_the_machine(world, monkeypatch):
    settings = ["trainer.device=cuda", "ray_kwargs.ray_init.num_gpus=2"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ResourceError) as refused:
        look(*settings)
    assert str(refused.value) == (
        "the run needs 2 GPUs = 1 (learner) + 1 (explorer), but 1 are available. Lower trainer.n_gpus_per_node or "
        "s2l.explorer.n_gpus_per_node, or start on more GPUs."
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert look(*settings) == []
    with pytest.raises(ResourceError, match="needs 2 GPUs .* but 1 are"):  # fewer than the machine has, as asked
        look("trainer.device=cuda", "ray_kwargs.ray_init.num_gpus=1")


def test_train_max_samples_counts(world):
    with pytest.raises(DataError, match="31 prompts"):
        with_curriculum("s2l.curriculum={type: gaussian}", "data.train_max_samples=31")


def test_missing_tier_column_is_refused_with_the_columns(world):
    with pytest.raises(DataError, match="no column tier. Columns: data_source, prompt, reward_model"):
        with_curriculum("s2l.curriculum={type: easy_to_hard}")


def test_unknown_tiers_are_listed(world):
    write_rows(world / "train.parquet", 32, source="aops_forum")
    tiers = "s2l.curriculum={type: easy_to_hard, tier_column: source, tier_order: [cn_contest, olympiads]}"
    with pytest.raises(DataError, match="32 of 32 .* does not list: 'aops_forum'. Listed: cn_contest, olympiads"):
        with_curriculum(tiers)
    assert with_curriculum(tiers.replace("[cn_contest", "[aops_forum, cn_contest")) == []


def test_warm_start_of_other_prompts_is_refused(world):
    rates = world / "rates.jsonl"
    rates.write_text("".join(json.dumps({"prompt_id": f"p{n}", "pass_rate": 0.5}) + "\n" for n in range(4)))
    cfg = composed("s2l.explorer=null", f"s2l.curriculum={{type: gaussian, warm_start: {rates}}}")
    with pytest.raises(DataError, match="4 of 4 prompt ids are not in the training data, first: p0, p1, p2"):
        check_warm_start(parse_s2l(cfg.s2l).curriculum, cfg)
    Curriculum(parse_s2l(cfg.s2l).curriculum, parse_s2l(cfg.s2l), cfg).check_start(resumed=True)
    write_rows(world / "train.parquet", 32, extra_info={"id": "p1"})
    rates.write_text(json.dumps({"prompt_id": "p1", "pass_rate": 0.5}))
    check_warm_start(parse_s2l(cfg.s2l).curriculum, cfg)


def test_a_wrong_keyword_of_the_mathematics_reward_is_refused_before_models_load():
    from s2l_ext.training.preflight import _check_reward_keywords

    def keywords(path: str, **given: object) -> None:
        function = {"path": path, "name": "compute_score", "reward_kwargs": given}
        _check_reward_keywords(OmegaConf.create({"reward": {"custom_reward_function": function}}))

    keywords("pkg://s2l_ext.rewards.math", extraction="boxed")
    keywords("my_reward.py", anything=1)
    keywords("pkg://s2l_ext.rewards.registry", reward="toy", anything=1)
    for path, more in (
        ("pkg://s2l_ext.rewards.math", {}),
        ("pkg://s2l_ext/rewards/quantity", {}),
        ("pkg://s2l_ext.rewards.registry", {"reward": "math"}),
    ):
        with pytest.raises(ConfigError, match="extractoin"):
            keywords(path, extractoin="boxed", **more)
    for name in ("mathh", None):
        with pytest.raises(ConfigError, match="mathh|must be a name"):
            keywords("pkg://s2l_ext.rewards.registry", reward=name)


def test_a_store_of_more_prompts_than_the_run_has_gives_start_values(world, tmp_path):
    from s2l_ext.store.reader import Manifest, Rollout
    from s2l_ext.store.shards import write_manifest, write_shard

    files = parquet_table([Path(composed("s2l.explorer=null").data.train_files)])
    for name, names in (("more", [prompt_ids(files)[0], "elsewhere"]), ("other", ["elsewhere"])):
        folder = tmp_path / name
        folder.mkdir()
        rows = [(Rollout(one, 0, 0, [1], [2], [0.0], False, 1.0, 1.0, "x"), "") for one in names]
        shard = write_shard(folder, 0, rows)
        write_manifest(folder, Manifest({}, {"n": 1, "prompts": len(names), "problems": ""}, True, (shard,)))
        cfg = composed("s2l.explorer=null", f"s2l.curriculum={{type: gaussian, warm_start: {folder}}}")
        if name == "more":
            check_warm_start(parse_s2l(cfg.s2l).curriculum, cfg)
        else:
            with pytest.raises(DataError, match="1 of 1 prompt ids are not in the training data"):
                check_warm_start(parse_s2l(cfg.s2l).curriculum, cfg)


@pytest.mark.parametrize("key", ["s2l.explorer.model_path", "s2l.distill.teacher_path"])
def test_another_chat_template_of_a_model_that_gets_ids_is_a_warning(world, key):
    other = world / "models" / "other"
    make_model(other, width=9)
    (other / "chat_template.jinja").write_text("{{ messages }}")
    settings = ["s2l.explorer=null"] if "distill" in key else []
    (warning,) = look(*settings, f"{key}={other}")
    assert warning.startswith(f"{key}={other} has another chat template than actor_rollout_ref.model.path=")


@pytest.mark.parametrize(
    ("size", "key"), [("medium", "actor_rollout_ref.model.path"), ("small", "s2l.explorer.model_path")]
)
def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(world, size, key):
    config = world / "models" / size / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 4}))
    with pytest.raises(TokenizerMismatch, match=rf"{key}=.*ids up to 4, its model 4 rows"):
        look()


def test_a_template_with_todays_date_is_warned_of(world):
    cfg = composed()
    with open_dict(cfg):
        cfg.actor_rollout_ref.model.custom_chat_template = "{{ strftime_now('%Y') }}{{ messages[0]['content'] }}"
    assert any("writes today's date" in warning for warning in check_inputs(cfg, parse_s2l(cfg.s2l)))


# ---- prompts and data.max_prompt_length ----------------------------------------------------------------------------


@pytest.fixture
def chats(world):
    """Prompts of 3 and 7 characters, one token each, with a template that adds two; one chat is no text."""
    from s2l_ext.toy.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if add_generation_prompt %}{{ end or '=>' }}{% endif %}"
    for name in ("medium", "small"):
        tokenizer.save_pretrained(world / "models" / name)
    write_rows(world / "short.parquet", 40)
    write_rows(world / "long.parquet", 1, prompt=[{"role": "user", "content": "1+2+3+4"}])
    write_rows(world / "media.parquet", 31, prompt=[{"role": "user", "content": [{"type": "image", "text": "1" * 99}]}])
    return [world / f"{name}.parquet" for name in ("short", "long", "media")]


def look_at(files, most: int, *overrides: str) -> list[str]:
    names = ",".join(map(str, files))
    found = look(f"data.train_files=[{names}]", f"data.max_prompt_length={most}", *overrides)
    return [warning for warning in found if "max_prompt_length" in warning]


@pytest.mark.parametrize(
    ("end", "thinking", "warned"),
    [("<think>\n", "auto", 1), ("<think>\n", "opened", 0), ("<think></think>", "auto", 0), ("", "auto", 0)],
)
def test_a_template_that_opens_the_thinking_is_warned_of(chats, end, thinking, warned):
    cfg = composed(f"data.train_files=[{chats[0]}]")
    with open_dict(cfg):
        cfg.actor_rollout_ref.model.custom_chat_template = "{{ messages[0]['content'] }}" + end
        cfg.reward.custom_reward_function.path = "pkg://s2l_ext.rewards.math"
        cfg.reward.custom_reward_function.reward_kwargs = {"thinking": thinking}
    found = [warning for warning in check_inputs(cfg, parse_s2l(cfg.s2l)) if "opens the thinking" in warning]
    assert len(found) == warned


def test_prompts_that_fit_are_not_mentioned(chats):
    assert look_at(chats[:2], 9) == [] and look_at(chats[:1], 5) == []


def test_a_prompt_that_verl_would_cut_is_said_with_its_length(chats):
    (warning,) = look_at(chats[:2], 8)
    assert warning.startswith(
        "data.max_prompt_length=8: verl cuts off the beginning of longer prompts, and the longest"
    )
    assert "has 9 tokens. Set data.max_prompt_length=9, or data.filter_overlong_prompts=true" in warning


def test_validation_data_is_measured_as_well(chats):
    files = f"data.train_files=[{chats[0]}]", f"data.val_files=[{chats[0]},{chats[1]}]"
    (warning,) = (line for line in look(*files, "data.max_prompt_length=5") if "max_prompt" in line)
    assert "the longest of data.val_files has 9 tokens" in warning


def test_rows_that_verl_leaves_out_are_not_cut(chats):
    assert look_at(chats[:2], 8, "data.filter_overlong_prompts=true") == []


@pytest.mark.parametrize("filters", ["true", "false"])
def test_data_of_which_no_prompt_fits_is_refused(chats, filters):
    with pytest.raises(
        DataError, match=r"^data.max_prompt_length=4: no prompt .* the shortest has 5 tokens. Set .*=9,"
    ):
        look_at(chats[:2], 4, f"data.filter_overlong_prompts={filters}")


def test_the_templates_options_count(chats):
    (warning,) = look_at(chats[:2], 9, "data.apply_chat_template_kwargs={end: '====>'}")
    assert "the longest of data.train_files has 12 tokens" in warning


def test_a_chat_with_media_is_not_measured(chats):
    assert look_at([chats[2]], 5) == []


def test_a_template_that_refuses_a_prompt_is_said(chats, world):
    template = "{{ raise_exception('no user speaks here') if messages[0]['content'] | length > 3 }}"
    found = look(
        f"data.train_files=[{chats[0]},{chats[1]}]",
        f"data.val_files=[{chats[0]}]",
        f"actor_rollout_ref.model.custom_chat_template={json.dumps(template)}",
    )
    refused = [warning for warning in found if "refuses a prompt" in warning]
    assert refused == [
        "data.train_files: the learner's chat template refuses a prompt, and verl applies it: no user speaks here"
    ]
