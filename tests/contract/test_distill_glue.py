"""Sparse-to-dense's glue on verl's own engine: FSDP2, one process, two tiny models with different paddings."""

from __future__ import annotations

import inspect
import types

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch.distributed.tensor import distribute_tensor
from transformers import AutoModelForCausalLM
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine, FSDPEngineWithLMHead
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.padding import no_padding_2_padding

from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.distill.config import DistillConfig
from s2l_ext.methods.distill.controller import Distill, finish_token_sums
from s2l_ext.methods.distill.worker import (
    STUDENT_ENGINE,
    DistillLoss,
    StudentEngine,
    build_teacher,
    response_tokens,
)
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.toy.models import ModelSize, build_model
from s2l_ext.toy.tokenizer import build_tokenizer
from s2l_ext.training.actor_worker import SUM_PREFIX

pytestmark = [pytest.mark.contract, pytest.mark.slow]

PROMPTS, RESPONSES = [2, 5, 3, 4], [1, 4, 2, 6]
MASKS = [[1], [1, 0, 1, 1], [0, 1], [1, 1, 1, 0, 0, 1]]
LAYOUTS = {"padded": False, "packed": True}
"""``use_remove_padding``. In each micro-batch of two rows the lengths differ, so that no layout is right by chance."""


def nested(rows) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


@pytest.fixture(scope="module", params=list(LAYOUTS))
def layout(request) -> bool:
    return LAYOUTS[request.param]


@pytest.fixture
def batch(layout) -> TensorDict:
    """Four sequences as verl's engines get them."""
    random = torch.Generator().manual_seed(0)
    draw = [torch.randint(4, 20, (p + r,), generator=random) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    fields = {
        "input_ids": nested(draw),
        "position_ids": nested([torch.arange(len(row)) for row in draw]),
        "prompts": nested([row[:p] for row, p in zip(draw, PROMPTS, strict=True)]),
        "responses": nested([row[p:] for row, p in zip(draw, PROMPTS, strict=True)]),
        "response_mask": nested(MASKS),
        "loss_mask": nested(MASKS),
    }
    data = TensorDict(fields, batch_size=4)
    settings = {
        "temperature": 1.0,
        "use_remove_padding": layout,
        "use_dynamic_bsz": False,
        "micro_batch_size_per_gpu": 2,
        "global_batch_size": 4,
    }
    tu.assign_non_tensor(data, **settings)
    return data


# ---- where tokens are ---------------------------------------------------------------------------------------------


def test_tokens_lie_where_verl_looks_for_their_log_probs(batch) -> None:
    """verl cuts the response out of a packed output; here the output is its own position."""
    tokens = response_tokens(batch)
    assert tokens.packed_N.tolist() == [1, 7, 9, 10, 15, 20, 21, 22, 25]  # rows start at 0, 3, 12, 17
    assert tokens.padded_N.tolist() == [1, 14, 16, 17, 23, 33, 34, 35, 38]  # rows start at 0, 10, 20, 30
    positions = torch.arange(batch["input_ids"].values().numel())
    packed = torch.nested.nested_tensor_from_jagged(positions, batch["input_ids"].offsets())
    expected_B_T = no_padding_2_padding(packed, batch)
    assert torch.equal(expected_B_T[tokens.row_N, tokens.column_N], tokens.packed_N)
    assert torch.equal(batch["input_ids"].values()[tokens.packed_N + 1], tokens.labels_N)
    assert len(tokens.row_N) == sum(map(sum, MASKS))
    padded = batch["input_ids"].to_padded_tensor(-1).flatten()
    assert torch.equal(padded[tokens.padded_N + 1], tokens.labels_N)


# ---- the engines --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A student whose output matrix has 4 more rows than the teacher's, and another width."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), build_tokenizer()
    paths = {}
    for name, width, padding, seed in (("student", 32, 4, 1), ("teacher", 64, 0, 2)):
        model = build_model(ModelSize(width, 2), seed)
        model.resize_token_embeddings(len(tokenizer) + padding, mean_resizing=False)
        with torch.no_grad():  # far enough apart for a divergence to be seen
            for parameter in model.parameters():
                parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
        paths[name] = str(folder / name)
        model.save_pretrained(paths[name])
        tokenizer.save_pretrained(paths[name])
    return paths


@pytest.fixture(scope="module")
def rank_zero(tmp_path_factory):
    """A process group of one."""
    store = tmp_path_factory.mktemp("store") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def actor(models, rank_zero, layout):
    return build_actor(models, layout)


def build_actor(models, layout: bool, *overrides: str):
    """verl's training worker around our engine, as the actor worker makes it, without Ray."""
    own = [f"actor_rollout_ref.model.path={models['student']}", f"actor_rollout_ref.model.use_remove_padding={layout}"]
    config = compose_config("grpo/toy", [*own, *overrides]).actor_rollout_ref
    OmegaConf.resolve(config)
    from verl.utils.config import omega_conf_to_dataclass

    model = omega_conf_to_dataclass(config.model)
    model.model_type = STUDENT_ENGINE
    engine_config = omega_conf_to_dataclass(config.actor.fsdp_config)
    object.__setattr__(engine_config, "strategy", "fsdp2")
    engine_config.use_remove_padding = model.use_remove_padding
    optimizer, checkpoint = (omega_conf_to_dataclass(config.actor[name]) for name in ("optim", "checkpoint"))
    object.__setattr__(optimizer, "total_training_steps", 1)
    engine = EngineRegistry.new(STUDENT_ENGINE, "fsdp2", model, engine_config, optimizer, checkpoint)
    engine.initialize()
    return types.SimpleNamespace(engine=engine, teacher=build_teacher(config, models["teacher"]))


def expected(models, batch, loss: str, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over response tokens and its gradient for the student's output matrix, by autograd in float64."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(models[name]).double() for name in ("student", "teacher"))
    values = []
    for ids, prompt, mask in zip(batch["input_ids"].unbind(), PROMPTS, MASKS, strict=True):
        logits_S, logits_T = student(ids[None]).logits[0], teacher(ids[None]).logits[0].detach()
        shared = min(logits_S.shape[-1], logits_T.shape[-1])
        log_p = torch.log_softmax(logits_S[prompt - 1 : -1, :shared] / temperature, -1)
        log_q = torch.log_softmax(logits_T[prompt - 1 : -1, :shared] / temperature, -1)
        sampled_p = log_p.gather(-1, ids[prompt:, None])[:, 0]
        sampled_q = log_q.gather(-1, ids[prompt:, None])[:, 0]
        value = {
            "reverse_kl": (log_p.exp() * (log_p - log_q)).sum(-1),
            "forward_kl": (log_q.exp() * (log_q - log_p)).sum(-1),
            "sft": -sampled_p,
            "sampled_k1": (sampled_p - sampled_q).detach() * sampled_p,
        }[loss]
        values.append(value[torch.tensor(mask).bool()])
    mean = torch.cat(values).mean()
    mean.backward()
    return mean.detach(), student.lm_head.weight.grad


@pytest.mark.parametrize(
    ("loss", "temperature"),
    [("reverse_kl", 1.0), ("forward_kl", 1.0), ("reverse_kl", 2.0), ("sampled_k1", 1.0), ("sft", 1.0)],
)
def test_loss_and_gradient_through_the_engine_are_the_formulas(actor, models, batch, loss, temperature) -> None:
    engine = actor.engine
    engine.distill, engine.teacher = DistillConfig("x", loss, temperature=temperature, chunk_size=3), actor.teacher
    engine.optimizer_zero_grad()
    with engine.train_mode():
        output = engine.forward_backward_batch(batch, DistillLoss("token-mean", None))
        gradient = engine.module.lm_head.weight.grad.full_tensor().double()
    value, wanted = expected(models, batch, loss, temperature)
    assert sum(output["loss"]) == pytest.approx(value.item(), rel=1e-4)
    assert (gradient - wanted).norm() <= 1e-4 * wanted.norm() and wanted.norm() > 0
    sums = {name: Metric.aggregate_dp([metric]) for name, metric in _merged(output["metrics"]).items()}
    finished = finish_token_sums({f"actor/{name}": total for name, total in sums.items()})
    assert finished["s2l/distill/tokens"] == sum(map(sum, MASKS))
    for name in ("forward_kl", "reverse_kl"):
        plain = expected(models, batch, name, temperature)[0]
        assert finished[f"s2l/distill/{name}"] == pytest.approx(plain.item(), rel=1e-4)


def test_the_loss_sees_an_adapter_and_trains_nothing_else(models, rank_zero, batch, layout) -> None:
    """LoRA on every linear layer but the output layer, as verl's default has it."""
    adapted = build_actor(models, layout, "actor_rollout_ref.model.lora_rank=2")
    engine = adapted.engine
    engine.distill, engine.teacher = DistillConfig("x", "reverse_kl", chunk_size=3), adapted.teacher

    def step() -> tuple[float, dict[str, torch.Tensor]]:
        engine.optimizer_zero_grad()
        with engine.train_mode():
            output = engine.forward_backward_batch(batch.clone(), DistillLoss("token-mean", None))
            found = {name: p.grad.full_tensor() for name, p in weights.items() if p.grad is not None}
        return sum(output["loss"]), found

    weights = dict(engine.module.named_parameters())
    base, gradients = step()
    assert base == pytest.approx(expected(models, batch, "reverse_kl", 1.0)[0].item(), rel=1e-4), "it starts as zero"
    assert gradients and all("lora_" in name for name in gradients)
    assert not any("lora_" in name for name, _ in adapted.teacher.module.named_parameters())
    name, slope = max(((name, float(g.norm() ** 2)) for name, g in gradients.items()), key=lambda pair: pair[1])
    rate = 1e-3 / slope**0.5
    with torch.no_grad():
        weights[name].copy_(weights[name] - rate * distribute_tensor(gradients[name], weights[name].device_mesh))
    assert step()[0] - base == pytest.approx(-rate * slope, rel=0.05), "the loss did not follow the adapter"


def _merged(metrics: dict) -> dict[str, Metric]:
    """One metric of the list that an engine keeps, an entry for each micro-batch."""
    assert all(name.startswith(SUM_PREFIX) for name in metrics)
    return {
        name: entries if isinstance(entries, Metric) else Metric.chain(entries) for name, entries in metrics.items()
    }


def test_log_probs_outside_the_loss_are_verls_own(actor, models, batch) -> None:
    with actor.engine.eval_mode(), torch.no_grad():
        found = actor.engine.infer_batch(batch.clone())["model_output"]["log_probs"]
    student = AutoModelForCausalLM.from_pretrained(models["student"])
    for ids, row in zip(batch["input_ids"].unbind(), found.unbind(), strict=True):
        log_p = torch.log_softmax(student(ids[None]).logits[0], -1)
        assert torch.allclose(row[:-1], log_p[:-1].gather(-1, ids[1:, None])[:, 0], atol=1e-4)


def test_a_step_without_tokens_in_the_loss_changes_nothing(actor, batch) -> None:
    for name in ("response_mask", "loss_mask"):
        batch[name] = nested([[0] * len(row) for row in MASKS])
    engine = actor.engine
    engine.distill, engine.teacher = DistillConfig("x"), actor.teacher
    engine.optimizer_zero_grad()
    with engine.train_mode():
        output = engine.forward_backward_batch(batch, DistillLoss("token-mean", None))
    assert sum(output["loss"]) == 0.0
    gradients = [p.grad.full_tensor() for p in engine.module.parameters() if p.grad is not None]
    assert all(torch.count_nonzero(gradient) == 0 for gradient in gradients)


def test_without_a_teacher_nothing_is_reported_that_needs_one(actor, batch) -> None:
    engine = actor.engine
    engine.distill, engine.teacher = DistillConfig(None, "sft"), None
    engine.optimizer_zero_grad()
    with engine.train_mode():
        output = engine.forward_backward_batch(batch, DistillLoss("token-mean", None, has_teacher=False))
    sums = {f"actor/{name}": Metric.aggregate_dp([metric]) for name, metric in _merged(output["metrics"]).items()}
    found = finish_token_sums(sums)
    names = {"value", "student_entropy", "student_log_prob", "tokens", "chunk_size"}
    assert set(found) == {f"s2l/distill/{name}" for name in names}
    assert found["s2l/distill/value"] == pytest.approx(-found["s2l/distill/student_log_prob"])


# ---- the driver ---------------------------------------------------------------------------------------------------


def test_means_are_over_tokens_also_where_workers_have_less_than_one_each() -> None:
    """Two tokens of 3 nats among eight workers, whose mean verl hands on."""
    finished = finish_token_sums({"actor/s2l_sum/distill/value": 6 / 8, "actor/s2l_sum/distill/tokens": 2 / 8})
    assert finished == {"s2l/distill/value": 3.0, "s2l/distill/tokens": 0.25}
    nothing = finish_token_sums({"actor/s2l_sum/distill/value": 0.0, "actor/s2l_sum/distill/tokens": 0.0})
    assert nothing["s2l/distill/value"] == 0.0


def test_workers_that_trained_with_another_loss_are_noticed() -> None:
    with pytest.raises(RuntimeError, match="another one"):
        finish_token_sums({"actor/loss": 1.0})


# ---- seams --------------------------------------------------------------------------------------------------------


def test_engine_seams() -> None:
    assert list(inspect.signature(FSDPEngineWithLMHead.forward_step).parameters) == list(
        inspect.signature(StudentEngine.forward_step).parameters
    )
    assert list(inspect.signature(FSDPEngineWithLMHead.prepare_model_outputs).parameters) == list(
        inspect.signature(StudentEngine.prepare_model_outputs).parameters
    )
    assert "EngineRegistry.new(\n            model_type=self.config.model_type" in inspect.getsource(
        TrainingWorker.__init__
    )
    assert 'self.model_config.model_type == "language_model"' in inspect.getsource(FSDPEngine._build_module)
    assert "self.actor = self.actor_worker_cls(config=actor_training_config)" in inspect.getsource(
        ActorRolloutRefWorker.init_model
    )


def test_verls_engine_still_asks_for_whole_logits() -> None:
    assert "output.logits" in inspect.getsource(FSDPEngineWithLMHead.prepare_model_outputs)


def test_verl_counts_tokens_by_the_mask_that_correct_only_changes() -> None:
    assert 'data["loss_mask"].sum()' in inspect.getsource(FSDPEngine.forward_backward_batch)


def test_an_update_needs_no_old_log_probs_of_verl() -> None:
    assert "old_log_prob" not in inspect.getsource(PPOTrainer._update_actor)


# ---- verl's own teacher servers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "mode", "gradient"), [("forward_kl", "forward_kl_topk", False), ("sampled_k1", "k1", True)]
)
def test_server_placement_is_verls_distillation(loss, mode, gradient) -> None:
    from verl.utils.config import omega_conf_to_dataclass

    config = compose_config("grpo/toy", [])
    settings = DistillConfig(
        "some/teacher", loss, teacher_placement="server", n_gpus_per_node=4, tensor_model_parallel_size=2
    )
    Distill(settings, S2LConfig(distill=settings), config).adapt()
    found = omega_conf_to_dataclass(config.distillation)
    assert found.enabled and (found.nnodes, found.n_gpus_per_node) == (1, 4)
    assert found.distillation_loss.loss_mode == mode and found.distillation_loss.use_policy_gradient is gradient
    assert found.distillation_loss.use_task_rewards is False
    teacher = found.teacher_models["default"]
    assert (teacher.model_path, teacher.num_replicas, teacher.inference.tensor_model_parallel_size) == (
        "some/teacher",
        2,
        2,
    )
    assert "s2l_distill" not in config.actor_rollout_ref


def test_verl_drops_the_gradient_of_a_token_whose_top_k_sum_is_negative(batch) -> None:
    """The reason of a warning (verl#7855): q = (0.6, 0.4) of the teacher, p = (0.95, 0.05) of the student, k = 1."""
    from verl.trainer.distillation.fsdp.losses import kl_divergence
    from verl.trainer.distillation.losses import compute_forward_kl_topk

    log_p = torch.tensor([[0.95, 0.05]]).log().requires_grad_()
    sum_1 = kl_divergence(log_q=log_p[:, :1], log_p=torch.tensor([[0.6]]).log())
    assert sum_1.item() == pytest.approx(-0.275719, rel=1e-5)  # 0.6 log(0.6 / 0.95); with the tail it is 0.556057
    ids = batch["input_ids"]
    rows = torch.nested.nested_tensor_from_jagged(sum_1.expand(len(ids.values())), ids.offsets())
    output = {"distillation_losses": rows, "student_mass": rows.detach(), "teacher_mass": rows.detach()}
    (loss_B_T, _) = compute_forward_kl_topk(None, None, output, batch)
    loss_B_T.sum().backward()
    assert torch.count_nonzero(loss_B_T) == 0 and torch.count_nonzero(log_p.grad) == 0
