"""The memory of one accelerator, counted by hand from the shapes of Qwen3-0.6B and Qwen3-8B."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from s2l_ext import cli
from s2l_ext.config.model_shapes import KNOWN, ModelShape, known_shape
from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.launch import train
from s2l_ext.launch.accelerators import GIB, Accelerators, accelerators_here, parse_accelerators
from s2l_ext.launch.memory import Estimate, layer_bytes
from s2l_ext.launch.memory_check import check_memory
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training import before_run

LARGE = Accelerators(8, 1000 * GIB)
SMALL, BIG = "Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-8B-Base"
# 151,936 x 1,024, tied, + 28 x (2 x 1,024 x (2,048 + 1,024) + 3 x 1,024 x 3,072)
SMALL_NUMBERS = 155_582_464 + 28 * 15_728_640
BIG_NUMBERS = 1_244_659_712 + 36 * 192_937_984
# rank 32: 28 x 32 x (2 (1,024 + 2,048) + 2 (1,024 + 1,024) + 3 (1,024 + 3,072))
SMALL_ADAPTERS = 28 * 32 * 22_528
BIG_ADAPTERS = 36 * 32 * (2 * 8192 + 2 * 5120 + 3 * 16_384)
LORA = {
    "actor_rollout_ref__model__lora_rank": 32,
    "actor_rollout_ref__actor__fsdp_config__model_dtype": "bf16",
}
OFFLOAD = {
    "actor_rollout_ref__actor__fsdp_config__param_offload": True,
    "actor_rollout_ref__actor__fsdp_config__optimizer_offload": True,
}


@pytest.fixture
def phases(configured):
    """Phases by name, each a mapping of parts."""

    def of(recipe="grpo/qwen3_8b", model=BIG, gpus=8, card=80 * GIB, one_row=False, **settings):
        settings = {"trainer__n_gpus_per_node": gpus, "actor_rollout_ref__model__path": model} | settings
        cfg = configured(recipe, **settings)
        return {one.name: dict(one.parts) for one in Estimate(cfg, parse_s2l(cfg.s2l), card, one_row).phases()}

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "gpus", "lora", "weights", "trained"),
    [
        (SMALL, 1, {}, 4 * SMALL_NUMBERS, 4 * SMALL_NUMBERS),
        (SMALL, 8, {}, SMALL_NUMBERS / 2, SMALL_NUMBERS / 2),
        (BIG, 1, {}, 4 * BIG_NUMBERS, 4 * BIG_NUMBERS),
        (BIG, 8, {}, BIG_NUMBERS / 2, BIG_NUMBERS / 2),
        (SMALL, 1, LORA, 2 * (SMALL_NUMBERS + SMALL_ADAPTERS), 2 * SMALL_ADAPTERS),
        (BIG, 8, LORA, (BIG_NUMBERS + BIG_ADAPTERS) / 4, BIG_ADAPTERS / 4),
    ],
)
def test_weights_gradients_and_states_are_shared_out(phases, model, gpus, lora, weights, trained):
    update = phases(model=model, gpus=gpus, **lora)["update"]
    assert update["weights"] == weights
    assert update["gradients"] == trained and update["Adam states"] == 2 * trained


def test_offloaded_weights_and_states_come_back_for_an_update(phases):
    found = phases(**OFFLOAD)
    assert set(found["rollout"]) == {"learner's engine"}
    assert found["update"]["weights"] == BIG_NUMBERS / 2 and "Adam states" in found["update"]
    assert "weights" in found["log-probs"] and "Adam states" not in found["log-probs"]


def test_fsdp2s_own_offload_keeps_them_away_from_updates_too(phases):
    update = phases(actor_rollout_ref__actor__fsdp_config__offload_policy=True)["update"]
    assert not {"weights", "gradients", "Adam states"} & set(update)


@pytest.mark.slow
def test_a_micro_batch_of_two_rows_of_4608_tokens(phases):
    found, tokens = phases(), 2 * 4608
    layer = 16 * 4096 + 8 * 12_288 + 4 * 4096 + 4 * 1024  # 184,320 bytes a token
    assert found["update"]["activations"] == tokens * (35 * 2 * 4096 + layer)  # the inputs of 35 layers, and one whole
    assert found["update"]["logits"] == tokens * 151_936 * 6  # bfloat16, and their log-softmax in float32
    assert found["log-probs"]["logits"] == 8 * 4608 * 151_936 * 2
    assert phases(one_row=True)["update"]["logits"] == 4608 * 151_936 * 6
    key = "actor_rollout_ref__model__enable_gradient_checkpointing"
    assert phases(**{key: False})["update"]["activations"] == tokens * 36 * layer
    attention = {"actor_rollout_ref__model__override_config__attn_implementation": "flash_attention_2"}
    assert phases(**attention)["update"]["logits"] == tokens * 151_936 * 2


@pytest.mark.parametrize("name", ["ulysses_sequence_parallel_size", "fsdp_config__ulysses_sequence_parallel_size"])
def test_ulysses_shares_the_tokens_of_a_row_by_either_key(phases, name):
    """8 rows of 4,608 tokens on 8 accelerators."""
    actor = {f"actor_rollout_ref__actor__{name}": 8}
    whole = {"actor_rollout_ref__actor__use_kl_loss": True, f"actor_rollout_ref__ref__{name}": 1}
    assert phases(**actor, **whole)["log-probs"]["logits"] == 8 * 4608 * 151_936 * 2, "the reference's rows are whole"
    assert phases(**actor, **whole | {f"actor_rollout_ref__ref__{name}": 8})["log-probs"]["logits"] == (
        4608 * 151_936 * 2
    )
    assert phases(**actor)["update"]["logits"] == phases(**whole)["update"]["logits"] / 8


def test_dynamic_batches_have_as_many_tokens_as_they_may(phases):
    dynamic = {
        "actor_rollout_ref__actor__use_dynamic_bsz": True,
        "actor_rollout_ref__actor__ppo_max_token_len_per_gpu": 20_000,
    }
    assert phases(**dynamic)["update"]["logits"] == 20_000 * 151_936 * 6
    dynamic["actor_rollout_ref__actor__ppo_max_token_len_per_gpu"] = 1000  # verl refuses it: a row is longer
    assert phases(**dynamic)["update"]["logits"] == 4608 * 151_936 * 6


def test_an_engine_holds_its_share_while_rows_are_sampled(phases):
    found = phases()
    assert found["rollout"]["learner's engine"] == 0.6 * 80 * GIB
    assert "learner's engine" not in found["update"]
    awake = phases(actor_rollout_ref__rollout__free_cache_engine=False)["update"]
    assert awake["learner's engine"] == 0.6 * 80 * GIB


@pytest.mark.slow
def test_a_colocated_explorer_takes_its_share_and_a_dedicated_one_a_card(phases):
    pair = "s2l_po/qwen3_1.7b_to_8b"
    assert phases(pair, gpus=4)["explorer's"] == {"explorer's engine": 0.6 * 80 * GIB}
    shared = {"s2l__explorer": {"model_path": "Qwen/Qwen3-1.7B-Base", "placement": "colocated"}}
    shared["s2l__explorer"]["rollout_overrides"] = {"gpu_memory_utilization": 0.2}
    found = phases(pair, gpus=4, **shared)
    assert found["rollout"]["explorer's engine"] == 0.2 * 80 * GIB and "explorer's" not in found
    assert "explorer's engine" not in found["update"]


@pytest.mark.slow
def test_a_teacher_leaves_its_output_matrix_and_logits_come_in_chunks(phases):
    found = phases("sparse_to_dense/stages/opd_math", model="Qwen/Qwen3-1.7B", trainer__nnodes=1)
    assert set(found) == {"rollout", "update"}  # no old log-probabilities
    assert found["rollout"]["teacher's output matrix"] == 151_936 * 4096 * 2
    chunks = 512 * 151_936 * 4 * 3  # both models' log-probabilities and a gradient
    assert found["update"]["logits"] == chunks + 151_936 * 2048 * 4  # and the gradient of the output matrix


def test_separate_engines_leave_the_learners_card_alone(phases):
    key = {"trainer__v1__trainer_mode": "separate_async", "actor_rollout_ref__rollout__free_cache_engine": False}
    found = phases(**key)
    assert found["update"]["learner's engine"] == 0.6 * 80 * GIB, "by default verl starts servers there too"
    found = phases(**key, actor_rollout_ref__hybrid_engine=False)
    assert found["learner's"] == {"learner's engine": 0.6 * 80 * GIB}
    assert all("learner's engine" not in found[name] for name in ("rollout", "update"))


def test_what_makes_a_part_smaller_in_ways_not_counted_is_not_refused(configured, phases):
    offload = {"actor_rollout_ref__model__enable_activation_offload": True}
    assert phases(**offload)["update"]["activations"] == 2 * 4608 * 184_320  # one layer
    for extra in ({"kv_cache_dtype": "fp8"}, {"quantization": "fp8"}):
        cfg = configured("grpo/qwen3_8b", actor_rollout_ref__rollout__engine_kwargs__vllm=extra)
        assert [one.needed for one in Estimate(cfg, parse_s2l(cfg.s2l), GIB).engines()] == [0]


def test_adapters_of_an_unknown_model_are_not_taken_for_all_weights(phases):
    update = phases(model="someone/own-7B", gpus=1, **LORA)["update"]
    assert update == {"weights": 14e9, "gradients": 0, "Adam states": 0}


# ---- refusals ------------------------------------------------------------------------------------------------------


def checked(configured, accelerators, recipe="grpo/qwen3_8b", **settings):
    cfg = configured(recipe, **settings)
    return check_memory(cfg, parse_s2l(cfg.s2l), accelerators)


def test_what_fits_is_a_table_without_a_warning(configured):
    report = checked(configured, Accelerators(8, 80 * GIB))
    assert report.warnings == []
    assert "  weights                          3.8         3.8         3.8" in report.lines
    assert report.as_dict()["update"]["weights"] == 3.81


def test_what_cannot_fit_is_refused_with_its_largest_parts_and_what_helps(configured):
    settings = {"actor_rollout_ref__rollout__max_model_len": 4608, "trainer__n_gpus_per_node": 1}
    settings |= OFFLOAD | {"actor_rollout_ref__rollout__gpu_memory_utilization": 0.5}
    with pytest.raises(ResourceError) as refusal:
        checked(configured, Accelerators(1, 80 * GIB), **settings)
    message = str(refusal.value)
    assert message.startswith("memory: update needs at least 130.3 GiB of an accelerator that has 80.0, with one row")
    assert "Adam states 61.0, weights 30.5, gradients 30.5" in message
    assert "actor_rollout_ref.model.lora_rank=32 with actor_rollout_ref.actor.fsdp_config.model_dtype=bf16" in message


def test_rollouts_beside_resting_states_are_refused_with_offloading_as_the_fix(configured):
    with pytest.raises(ResourceError, match=r"rollout needs .*optimizer_offload=true.*gpu_memory_utilization"):
        checked(configured, Accelerators(1, 80 * GIB), trainer__n_gpus_per_node=1)


def test_an_engine_whose_share_holds_no_sequence_is_refused(configured):
    settings = {"actor_rollout_ref__rollout__max_model_len": 4608}
    # 2 x 8,190,427,136 + 4,608 x 2 x 36 x 1,024 x 2 = 17.06e9 bytes
    with pytest.raises(
        ResourceError, match=r"is 14\.4 GiB, but the learner's engine needs 15\.9 GiB.*=4608\. Raise it"
    ):
        checked(configured, Accelerators(8, 24 * GIB), **settings)
    assert checked(configured, Accelerators(8, 27 * GIB), **settings, **OFFLOAD).phases


def test_rows_that_may_be_shorter_are_only_warned_of(configured):
    key = "actor_rollout_ref__actor__ppo_micro_batch_size_per_gpu"
    report = checked(configured, Accelerators(8, 80 * GIB), **{key: 16})
    [warning] = report.warnings
    assert (
        warning.startswith("memory: update takes ") and "if all rows of a micro-batch are as long as may be" in warning
    )


def test_a_tight_fit_is_warned_of(configured):
    report = checked(configured, Accelerators(8, 80 * GIB), actor_rollout_ref__rollout__gpu_memory_utilization=0.8)
    assert [line.split(",")[0] for line in report.warnings] == ["memory: rollout takes 75.4 of 80.0 GiB"]


@pytest.mark.slow
def test_an_unknown_model_is_said_in_one_line(configured):
    report = checked(configured, LARGE, actor_rollout_ref__model__path="someone/own-7B")
    assert report.lines[-1] == (
        "memory: someone/own-7B: no config.json here, and no known dense family: weights are counted by the size in "
        "its name, nothing else."
    )
    nothing = checked(configured, LARGE, actor_rollout_ref__model__path="someone/own")
    assert nothing.lines == ["memory: someone/own: no config.json here, and no known dense family: not counted."]


def test_a_recipe_for_the_cpu_is_not_estimated(configured):
    assert checked(configured, LARGE, "grpo/toy").lines == ()


# ---- shapes --------------------------------------------------------------------------------------------------------


def test_known_families_have_the_size_of_their_names():
    assert KNOWN["Qwen3-0.6B"].parameters == SMALL_NUMBERS and KNOWN["Qwen3-8B"].parameters == BIG_NUMBERS
    assert known_shape("Qwen/Qwen3-8B-Base").positions == 32_768 and known_shape("Qwen/Qwen3-8B").positions == 40_960
    assert round(known_shape("meta-llama/Llama-3.1-8B-Instruct").parameters / 1e9, 2) == 8.03  # its model card


@pytest.mark.parametrize(
    "other", [{"num_experts": 128}, {"layer_types": ["linear_attention", "full_attention"]}, {"kv_lora_rank": 512}]
)
def test_other_architectures_are_not_counted_as_dense(other):
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config |= {"vocab_size": 9, "head_dim": 4}
    assert ModelShape.of(config) == ModelShape(8, 1, 8, 8, 8, 9, False)
    assert ModelShape.of({"text_config": config}) == ModelShape.of(config)
    assert ModelShape.of(config | other) is None


def test_a_local_config_is_read(configured, tmp_path):
    config = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    cfg = configured("grpo/qwen3_8b", actor_rollout_ref__model__path=str(tmp_path))
    assert Estimate(cfg, parse_s2l(cfg.s2l), GIB).learner.parameters == 2 * 72 + 2 * 8 * 16 + 3 * 64


@pytest.mark.slow
def test_what_a_layer_keeps_for_backward_is_what_autograd_saves():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }

    def saved(layers: int, tokens: int = 128) -> int:
        config = LlamaConfig(vocab_size=32, num_hidden_layers=layers, attn_implementation="sdpa", **shape)
        model = LlamaForCausalLM(config).bfloat16().train()
        weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one), torch.autocast("cpu", torch.bfloat16):
            model.model(torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
        return sum(size for size, _ in kept.values()) // tokens

    found = (saved(3) - saved(1)) / 2
    expected = layer_bytes(ModelShape(64, 1, 32, 16, 96, 32, False))
    assert expected <= found <= 1.05 * expected


@pytest.mark.slow
def test_without_flash_attention_a_loss_keeps_a_float32_copy_of_the_logits():
    import torch
    from verl.utils.torch_functional import logprobs_from_logits_v2

    logits, kept = torch.randn(7, 11, dtype=torch.bfloat16, requires_grad=True), []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.nbytes) or one, lambda one: one)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        logprobs_from_logits_v2(logits[None].contiguous(), torch.zeros(1, 7, dtype=torch.long))
    assert sum(size for size in kept if size >= 11 * 4) >= 7 * 11 * 4


# ---- --for ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count", "gib"), [("8x80GB", 8, 80), ("1x24gb", 1, 24), ("16 x 141 GB", 16, 141), ("1x79.6GiB", 1, 79.6)]
)
def test_accelerators_by_number_and_size(text, count, gib):
    assert parse_accelerators(text) == Accelerators(count, gib * GIB)


@pytest.mark.parametrize("text", ["", "8", "80GB", "8xGB", "0x80GB", "8x0GB", "8x80MB", "-1x24GB", "8x80GBx", "axb"])
def test_other_forms_are_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"--for .*such as 8x80GB or 1x24GB"):
        parse_accelerators(text)


@pytest.fixture
def login_node(monkeypatch, composed_once):
    """No CUDA may be asked and no Ray started; data and verl are left out (its import looks whether there is CUDA)."""
    monkeypatch.setattr(train, "compose_config", composed_once)
    for name in ("_ask_verl", "_ask_for_manager"):
        monkeypatch.setattr(train, name, lambda cfg: None)
    monkeypatch.setattr(before_run, "check_inputs", lambda cfg, s2l: [])
    for name in ("is_available", "device_count", "get_device_properties"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_: pytest.fail("CUDA was asked"))
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    return lambda accelerators, *more: cli.main(["check", "--for", accelerators, "--config-name", *more])


@pytest.mark.slow
def test_a_login_node_checks_for_other_accelerators(login_node, capsys):
    assert login_node("8x80GB", "grpo/qwen3_8b") == 0
    assert "memory of one accelerator in GiB (80.0 GiB)" in capsys.readouterr().out
    assert login_node("4x80GB", "grpo/qwen3_8b") == 2
    assert "the run needs 8 GPUs = 8 (learner), but 4 are available" in capsys.readouterr().err
    assert login_node("8x16GB", "grpo/qwen3_8b") == 2
    assert "the learner's engine needs 19.8 GiB" in capsys.readouterr().err


@pytest.mark.slow
def test_a_recipe_for_the_cpu_is_not_for_other_accelerators(login_node, capsys):
    assert login_node("1x24GB", "grpo/toy") == 2
    assert "--for 1x24GB with trainer.device=cpu: this recipe takes no accelerator" in capsys.readouterr().err


def test_no_cluster_and_no_machine_without_cuda_is_looked_at(configured, monkeypatch):
    cfg = configured("grpo/qwen3_8b")
    assert accelerators_here(cfg) is None  # no CUDA on this machine
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("torch.cuda.device_count", lambda: pytest.fail("asked"))
    assert accelerators_here(cfg) is None


@pytest.mark.slow
def test_verl_finds_a_vllm_on_a_login_node_with_the_build_for_the_cpu():
    code = (
        "import importlib.metadata as m; from omegaconf import OmegaConf; from s2l_ext.launch import train; "
        "from s2l_ext.launch.accelerators import parse_accelerators as parse; "
        "train._other_platform(OmegaConf.create({'trainer': {'device': 'cuda'}}), parse('1x24GB')); m.version('vllm')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
