"""Models whose logits are not their output matrix times their last hidden state, and adapters: what is refused, and
how the engines see it under FSDP2, with two ranks too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from s2l_ext.errors import ConfigError
from s2l_ext.methods.distill.output_layer import amplified, largest_difference, tolerance
from s2l_ext.methods.distill.worker import OutputLayer
from s2l_ext.studies.diversity.tokens import TokenModel

pytestmark = [pytest.mark.contract, pytest.mark.slow]

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}


def tiny(family: str, **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **options))


SCALED = [
    ("gemma2", {"final_logit_softcapping": 30.0}),
    ("cohere", {"logit_scale": 0.0625}),
    ("granite", {"logits_scaling": 8.0}),
    ("falcon_h1", {"lm_head_multiplier": 0.5, **MAMBA}),
    ("recurrent_gemma", {"logits_soft_cap": 30.0}),
]
PLAIN = [
    ("llama", {}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("cohere", {"logit_scale": 1.0}),
]


@pytest.mark.parametrize(("family", "options"), SCALED, ids=[family for family, _ in SCALED])
def test_a_model_that_changes_its_logits_is_refused_whatever_its_setting_is_called(family, options) -> None:
    model = tiny(family, **options)
    with pytest.raises(ConfigError) as refused:
        OutputLayer(model, "some/model").require_plain_logits(model)
    message = str(refused.value)
    assert message.startswith("some/model: its logits are not its output matrix times its last hidden state")
    assert "largest difference" in message and "Use another model family" in message


@pytest.mark.parametrize(("family", "options"), PLAIN, ids=[family for family, _ in PLAIN])
def test_a_plain_output_layer_passes_and_stays_as_it_was(family, options) -> None:
    model = tiny(family, **options)
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    OutputLayer(model, "some/model").require_plain_logits(model)
    assert torch.equal(model(ids).logits, before)


def test_rounding_of_bfloat16_is_no_other_distribution(monkeypatch) -> None:
    """A second kernel may round the largest logit, 50, to a neighbour 0.25 away; a cap moves it by much more."""
    model = tiny("llama").bfloat16()
    layer = OutputLayer(model, "some/model")
    plain = layer._plain
    monkeypatch.setattr(layer, "_plain", lambda hidden: plain(hidden) * (1 + 2**-7))
    layer.require_plain_logits(model)
    monkeypatch.setattr(layer, "_plain", lambda hidden: 30 * torch.tanh(plain(hidden) / 30))
    with pytest.raises(ConfigError, match="its logits are not its output matrix"):
        layer.require_plain_logits(model)
    assert (tolerance(torch.float32), tolerance(torch.bfloat16)) == (1e-3, 2**-6)


def test_forward_passes_in_chunks_refuse_the_same_models(tmp_path) -> None:
    """``s2l diversity`` asks the same question of its models."""
    for family, options in (("gemma2", {"final_logit_softcapping": 30.0}), ("qwen3", {"tie_word_embeddings": True})):
        tiny(family, **options).save_pretrained(tmp_path / family)
    TokenModel("plain", tmp_path / "qwen3", on_cpu=True)
    with pytest.raises(ConfigError, match=r"--models capped=.*gemma2: its logits are not .* largest difference 0\.4"):
        TokenModel("capped", tmp_path / "gemma2", on_cpu=True)


def test_a_layer_that_the_forward_pass_does_not_call_is_refused() -> None:
    model, other = tiny("llama"), tiny("llama")
    with pytest.raises(ConfigError, match="largest difference inf"):
        OutputLayer(other, "some/model").require_plain_logits(model)


def test_the_difference_is_a_share_of_the_largest_logit() -> None:
    product = torch.tensor([[1.0, -4.0, 2.0]])
    assert largest_difference(torch.tensor([[1.0, -4.0, 3.0]]), product) == 0.25
    assert largest_difference(product[:, :2], product) == float("inf")
    assert largest_difference(product * torch.nan, product) == float("inf")


def test_amplified_states_reach_a_cap_and_the_layer_forgets_them() -> None:
    layer = torch.nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    hidden = torch.tensor([[0.01, 0.01]])
    with amplified(layer):
        assert torch.allclose(layer(hidden), torch.tensor([[25.0, -50.0]]))
    assert torch.allclose(layer(hidden), torch.tensor([[0.01, -0.02]]))


def test_an_output_layer_with_a_bias_is_refused() -> None:
    model = tiny("llama")
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(40))
    with pytest.raises(ConfigError, match="has a bias"):
        OutputLayer(model, "some/model")


@pytest.mark.parametrize("wrap", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_an_adapter_around_the_output_layer_is_refused_though_it_starts_as_zero(wrap) -> None:
    model = get_peft_model(tiny("llama"), LoraConfig(r=2, **({"target_modules": ["q_proj"]} | wrap)))
    with pytest.raises(ConfigError, match="an adapter wraps the output layer"):
        OutputLayer(model, "some/model")


def test_verls_adapter_leaves_the_output_layer_alone() -> None:
    model = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert any("lora_A" in name for name, _ in model.named_parameters())
    OutputLayer(model, "some/model").require_plain_logits(model)


# ---- on two ranks -------------------------------------------------------------------------------------------------

TWO_RANKS = """
import sys, torch
from s2l_ext.errors import ConfigError
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.distill.worker import build_teacher
from omegaconf import OmegaConf
rank, store, *paths = sys.argv[1:]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
config = compose_config("grpo/toy", []).actor_rollout_ref
OmegaConf.resolve(config)
for path in paths:
    try:
        whole = build_teacher(config, path).weight_W_D
        print("passed", tuple(whole.shape), flush=True)
    except ConfigError as error:
        print("refused", error, flush=True)
torch.distributed.destroy_process_group()
"""


def test_every_rank_says_the_same_under_fsdp2(tmp_path) -> None:
    from s2l_ext.toy.tokenizer import build_tokenizer

    paths = []
    for family, options in (SCALED[0], PLAIN[2]):
        paths.append(tmp_path / f"{family}_{options['final_logit_softcapping']}")
        tiny(family, **options).save_pretrained(paths[-1])
        build_tokenizer().save_pretrained(paths[-1])
    words = [sys.executable, "-c", TWO_RANKS]
    ranks = [
        subprocess.Popen(
            [*words, str(rank), str(tmp_path / "store"), *map(str, paths)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        said, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors[-3000:]
        assert f"refused {paths[0]}: its logits are not" in said, errors[-3000:]
        assert "passed (40, 16)" in said
