"""The reward as verl 0.9.1 calls it: loaded by its path, through its naive and DAPO managers, sync and awaited."""

from __future__ import annotations

import asyncio
import inspect
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

pytestmark = pytest.mark.slow
RUN = Path(__file__).parents[2] / "examples" / "verl_math_reward" / "run.sh"


class Letters:
    """One token a character."""

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(each) for each in ids)


def a_row(text, gold, width):
    from verl import DataProto

    ids = [ord(character) for character in text]
    responses = torch.tensor([ids + [0] * (width - len(ids))])
    mask = torch.tensor([[1] * 3 + [1] * len(ids) + [0] * (width - len(ids))])
    extra = {"data_source": ["gsm8k"], "reward_model": [{"ground_truth": gold}], "extra_info": [{"index": 0}]}
    return DataProto.from_dict(
        {"responses": responses, "attention_mask": mask},
        {name: np.array(value, dtype=object) for name, value in extra.items()},
    )


def scored(cfg, text, gold, width=64):
    from verl.trainer.ppo.reward import load_reward_manager

    async def run():
        manager = load_reward_manager(cfg, Letters(), reward_router_address="host:1", reward_model_tokenizer=None)
        manager.loop = asyncio.get_running_loop()
        return await manager.run_single(a_row(text, gold, width))

    return asyncio.run(run())


def config(name, manager="naive", reward_kwargs=None, manager_kwargs=None):
    function = {"path": "pkg://s2l_ext.rewards.math", "name": name, "reward_kwargs": reward_kwargs or {}}
    chosen = {"source": "register", "name": manager}
    reward = {"custom_reward_function": function, "reward_manager": chosen, "reward_kwargs": manager_kwargs or {}}
    return OmegaConf.create({"reward": reward})


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
def test_verl_calls_it_and_knows_whether_to_await(name):
    from verl.trainer.ppo.reward import get_custom_reward_fn

    cfg = config(name, reward_kwargs={"format_weight": 0.5, "match_types": ["latex", "expr"]})
    assert inspect.iscoroutinefunction(get_custom_reward_fn(cfg)) is name.endswith("async")
    found = scored(cfg, "so \\boxed{\\frac{4}{8}+x}", "x+1/2")
    assert found["reward_score"] == 1.5
    assert found["reward_extra_info"] == {
        "score": 1.5,
        "acc": 1.0,
        "format_ok": 1.0,
        "extracted": "\\frac{4}{8}+x",
        "timed_out": 0.0,
    }


def test_an_unknown_keyword_reaches_the_user():
    from s2l_ext.errors import ConfigError

    with pytest.raises(ConfigError, match=r"formt_weight: unknown key.*'reward_kwargs\.format_weight'"):
        scored(config("compute_score", reward_kwargs={"formt_weight": 0.5}), "\\boxed{72}", "72")


def test_verls_dapo_manager_takes_the_overlong_part_off():
    buffer = {"enable": True, "len": 10, "penalty_factor": 1.0, "log": True}
    cfg = config("compute_score_async", "dapo", manager_kwargs={"max_resp_len": 20, "overlong_buffer_cfg": buffer})
    found = scored(cfg, "aaaa \\boxed{72}", "72")  # 15 tokens, 10 are free
    assert float(found["reward_score"]) == 0.5
    assert found["reward_extra_info"]["acc"] == 1.0


def test_a_name_of_the_registry_works_under_verl():
    cfg = config("compute_score", reward_kwargs={"reward": "math", "extraction": "tags"})
    cfg.reward.custom_reward_function.path = "pkg://s2l_ext.rewards.registry"
    found = scored(cfg, "<answer>72</answer>", "72")
    assert (found["reward_score"], found["reward_extra_info"]["extracted"]) == (1.0, "72")


def test_the_example_composes_and_scores(monkeypatch):
    import verl.trainer
    from hydra import compose, initialize_config_dir
    from verl.experimental.reward_loop.reward_loop import migrate_legacy_reward_impl

    text = RUN.read_text(encoding="utf-8").partition("verl.trainer.main_ppo")[2]
    words = [word for word in shlex.split(text) if word not in ("$@", "\n")]
    with initialize_config_dir(str(Path(verl.trainer.__file__).parent / "config"), version_base=None):
        cfg = migrate_legacy_reward_impl(compose("ppo_trainer", overrides=words))
    found = scored(cfg, "\\boxed{72}" + "a" * 1782, "72", width=2048)  # 1792 tokens, 1536 are free
    assert float(found["reward_score"]) == pytest.approx(1.1 - 0.5)
    assert found["reward_extra_info"]["format_ok"] == 1.0
