"""Models with Python of their own (InternLM2.5): refused by name of the setting without it, usable with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from omegaconf import DictConfig

from s2l_ext.cli import main
from s2l_ext.data.tokenizers import Trust, compare, load_tokenizer
from s2l_ext.errors import ConfigError, TokenizerMismatch
from s2l_ext.evaluation.model_folder import model_digest, open_model
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.preflight import check_inputs

TEXT = "brings Python code of its own, which runs only where it is allowed. Read the code, then set"


@pytest.fixture(scope="module")
def own_code_model(module_at) -> ModuleType:
    return module_at(Path(__file__).with_name("own_code_model.py"))


@pytest.fixture(scope="module")
def world(tmp_path_factory, own_code_model) -> Path:
    folder = tmp_path_factory.mktemp("own_code")
    for name in ("learner", "explorer"):
        own_code_model.make_model(folder / name)
    row = {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": "1+1"}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
    }
    pd.DataFrame([row] * 64).to_parquet(folder / "rows.parquet")
    return folder


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory) -> Iterator[None]:
    """One for all tests: transformers imports the copies in it as one package."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("modules")
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
        yield


def run_on(world: Path, configured, **settings: object) -> DictConfig:
    paths = {
        "actor_rollout_ref__model__path": str(world / "learner"),
        "s2l__explorer__model_path": str(world / "explorer"),
        "s2l__explorer__rollout_overrides": {"max_model_len": 64},  # the positions that this model has
        "data__max_prompt_length": 32,
        "data__max_response_length": 32,
        "data__train_files": str(world / "rows.parquet"),
        "data__val_files": str(world / "rows.parquet"),
    }
    return configured("s2l_po/toy", **{**paths, **settings})


def test_without_the_setting_the_refusal_names_it(world, configured) -> None:
    cfg = run_on(world, configured)
    with pytest.raises(ConfigError) as refused:
        check_inputs(cfg, parse_s2l(cfg.s2l))
    assert str(refused.value) == (
        f"actor_rollout_ref.model.path={world / 'learner'} {TEXT} actor_rollout_ref.model.trust_remote_code=True."
    )


def test_with_the_setting_the_pair_is_compared_and_passes(world, configured) -> None:
    cfg = run_on(world, configured, actor_rollout_ref__model__trust_remote_code=True)
    assert check_inputs(cfg, parse_s2l(cfg.s2l)) == []


def test_a_tokenizer_alone_can_need_code(world, tmp_path) -> None:
    """A known model kind with a tokenizer class of its own, as ChatGLM's descendants have."""
    path = str(world / "learner")
    with pytest.raises(TokenizerMismatch) as refused:
        compare(path, path, "a.path", "b.path")
    assert str(refused.value) == f"a.path={path} {TEXT} actor_rollout_ref.model.trust_remote_code=True."
    tokenizer = load_tokenizer(path, "a.path", Trust(True))
    assert tokenizer.encode("1+1") == [4, 13, 4] and tokenizer.decode([4, 13, 4]) == "1+1"


def test_a_command_names_its_option(world) -> None:
    with pytest.raises(ConfigError) as refused:
        open_model(str(world / "learner"), trust=Trust(False, "--trust-remote-code"))
    assert str(refused.value) == f"--model={world / 'learner'} {TEXT} --trust-remote-code."


def test_code_is_part_of_a_models_digest(world, tmp_path, own_code_model) -> None:
    own_code_model.make_model(tmp_path / "m")
    before = model_digest(tmp_path / "m")
    with open(tmp_path / "m" / "modeling_tiny.py", "a") as file:
        file.write("# another model\n")
    assert model_digest(tmp_path / "m") != before


@pytest.mark.slow
def test_such_a_model_is_evaluated(world, tmp_path, capsys) -> None:
    words = ["eval", "--model", str(world / "learner"), "--data", str(world / "rows.parquet"), "--limit", "1"]
    words += ["--out", str(tmp_path / "out.json"), "--engine", "transformers", "--max-tokens", "4"]
    words += ["--reward", "s2l_ext.rewards.math:compute_score"]
    assert main(words) != 0
    assert f"--model={world / 'learner'} {TEXT} --trust-remote-code." in capsys.readouterr().err
    assert main([*words, "--trust-remote-code"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["num_problems"] == 1


@pytest.mark.parametrize("recipe", ["s2l_po/toy", "sparse_to_dense/stages/opd"])
def test_explorer_and_teacher_are_loaded_with_the_learners_setting(configured, recipe) -> None:
    """Both are made from a copy of the learner's model block."""
    from s2l_ext.methods.explorer.serving.servers import point_to_model

    model = configured(recipe, actor_rollout_ref__model__trust_remote_code=True).actor_rollout_ref.model
    model.lora.rank = model.lora_rank = 8
    model.lora.adapter_path = "adapter"
    point_to_model(model, "another")
    assert (model.path, model.trust_remote_code) == ("another", True)
    lora = model.lora_rank, model.lora.rank, model.lora.adapter_path
    assert lora == (0, 0, None), "the learner's adapter is not theirs"


def test_verls_teacher_servers_cannot_run_it(rules) -> None:
    settings = {"s2l__distill__loss": "forward_kl", "actor_rollout_ref__model__trust_remote_code": True}
    recipe = rules("sparse_to_dense/stages/opd")
    assert recipe.refused(**settings, s2l__distill__teacher_placement="server") == (
        "s2l.distill.teacher_placement=server with actor_rollout_ref.model.trust_remote_code=True: verl's teacher "
        "servers load no "
        "code of a model's own. Set s2l.distill.teacher_placement=local."
    )
