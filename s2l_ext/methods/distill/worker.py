"""The actor worker of sparse-to-dense: a frozen teacher beside the student, and an output layer that gives divergences.

A micro-batch goes through the teacher first. The teacher's output layer returns its last hidden states. Then it goes
through the student, whose output layer turns both models' hidden states into per-token numbers, chunk by chunk. That
happens inside the forward pass, because FSDP has the weight whole only there. Outside of the loss the student's output
layer is the ordinary one.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.device import get_device_id, get_device_name
from verl.utils.memory_utils import aggressive_empty_cache
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import TrainingWorker

from s2l_ext.errors import ConfigError
from s2l_ext.methods.distill.chunk_size import automatic
from s2l_ext.methods.distill.config import CHUNK, DistillConfig
from s2l_ext.methods.distill.divergences import TokenDivergence, divergence_from_hidden, policy_gradient_k1
from s2l_ext.methods.distill.output_layer import amplified, largest_difference, probe_ids, tolerance
from s2l_ext.methods.explorer.serving.servers import point_to_model
from s2l_ext.platforms.patches.training import replace_forward
from s2l_ext.training.actor_worker import S2LActorWorker, as_metrics
from s2l_ext.training.batch_fields import DISTILL_BLOCK, SOURCE_FIELD, SUM_PREFIX
from s2l_ext.training.source_sums import source_sums

STUDENT_ENGINE = "s2l_student"

REPORTED = ("forward_kl", "reverse_kl", "student_entropy", "agreement", "student_log_prob", "teacher_log_prob")
VALUE = "value"
WITHOUT_TEACHER = (VALUE, "student_entropy", "student_log_prob")


class ResponseTokens(NamedTuple):
    """The N response tokens of a micro-batch that its mask keeps, and where each one is predicted.

    ``row_N``, ``column_N``: in the (B, T) response; ``packed_N``, ``padded_N``: the position whose output predicts the
    token, in sequences laid end to end and in (B, longest); ``labels_N``: the token.
    """

    row_N: torch.Tensor
    column_N: torch.Tensor
    packed_N: torch.Tensor
    padded_N: torch.Tensor
    labels_N: torch.Tensor


def response_tokens(data: TensorDict) -> ResponseTokens:
    """Locate them. ``data``: nested ``input_ids``, ``responses`` and ``response_mask``, as verl's engines get them."""
    starts = data["input_ids"].offsets()
    lengths_B = data["responses"].offsets().diff()
    rows = torch.arange(len(lengths_B), device=lengths_B.device)
    row = torch.repeat_interleave(rows, lengths_B)
    column = torch.arange(len(row), device=row.device) - data["responses"].offsets()[:-1][row]
    packed = starts[1:][row] - lengths_B[row] - 1 + column
    padded = row * int(starts.diff().max()) + packed - starts[:-1][row]
    kept = data["response_mask"].values().bool()
    found = (row, column, packed, padded, data["responses"].values())
    return ResponseTokens(*(values[kept].to(get_device_id()) for values in found))


class OutputLayer:
    """A model's output layer, which can be replaced for a while by another function of the hidden states."""

    def __init__(self, module: torch.nn.Module, path: str) -> None:
        self.path = path
        self.layer = cast(Any, module).get_output_embeddings()
        if getattr(self.layer, "bias", None) is not None:
            raise ConfigError(
                f"{path}: the output layer has a bias, which s2l.distill.teacher_placement=local does not add. Use "
                "another family."
            )
        if hasattr(self.layer, "base_layer") or hasattr(self.layer, "modules_to_save"):
            raise ConfigError(
                f"{path}: an adapter wraps the output layer, which s2l.distill.teacher_placement=local would read "
                "without it. Leave lm_head out of actor_rollout_ref.model.target_modules."
            )
        self._plain = self.layer.forward
        self._instead: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
        replace_forward(self.layer, self._forward)

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._plain(hidden) if self._instead is None else self._instead(hidden, self.layer.weight)

    @contextmanager
    def replaced(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Within the block: ``function(hidden, weight)`` instead of the product."""
        self._instead = function
        try:
            yield
        finally:
            self._instead = None

    @torch.no_grad()
    def require_plain_logits(self, module: torch.nn.Module) -> None:
        """Compare the model's logits with its last hidden states times its output matrix. Every rank must call it: FSDP
        gathers weights from all of them. Raises ConfigError: they differ, so the loss would be of another distribution
        than the one that is sampled."""
        products: list[torch.Tensor] = []

        def watch(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            products.append(hidden @ weight.T)
            return self._plain(hidden)

        with amplified(self.layer), self.replaced(watch):
            logits = module(input_ids=probe_ids(get_device_id()), use_cache=False).logits
        difference = largest_difference(logits, products[0]) if products else float("inf")
        if not products or difference > tolerance(products[0].dtype):
            raise ConfigError(
                f"{self.path}: its logits are not its output matrix times its last hidden state (a cap or a scale; "
                f"largest difference {difference:.2g} of the largest logit). s2l.distill.teacher_placement=local "
                "computes them "
                "itself and would learn another distribution. Use another model family, or teacher_placement=server."
            )

    def whole_weight(self, dtype: torch.dtype) -> torch.Tensor:
        """(V, H), gathered from all ranks; every rank must call it."""
        weight = self.layer.weight.detach().to(get_device_id(), dtype)
        return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _picked(hidden: torch.Tensor, tokens: ResponseTokens) -> torch.Tensor:
    """(N, H) of (1, tokens, H) without padding or (B, longest, H) with it."""
    index = tokens.packed_N if hidden.shape[0] == 1 else tokens.padded_N
    return hidden.flatten(0, 1)[index]


def casting(engine: FSDPEngineWithLMHead) -> AbstractContextManager[Any]:
    """The autocast that verl's own forward step has."""
    dtype = engine._autocast_dtype
    return nullcontext() if dtype == torch.float32 else torch.autocast(get_device_name(), dtype=dtype)


def checked_output_layer(engine: FSDPEngineWithLMHead) -> OutputLayer:
    """The layer, after a forward pass that showed that it makes the logits."""
    output = OutputLayer(engine.module, engine.model_config.path)
    with engine.eval_mode(), casting(engine):
        output.require_plain_logits(engine.module)
    return output


class TeacherEngine(FSDPEngineWithLMHead):
    """Forward-only; returns last hidden states, never logits."""

    def initialize(self) -> None:
        super().initialize()
        self.output = checked_output_layer(self)
        self.weight_W_D = self.output.whole_weight(self._autocast_dtype)

    @torch.no_grad()
    def hidden(self, micro_batch: TensorDict, tokens: ResponseTokens) -> torch.Tensor:
        """(N, D) last hidden states where the response tokens are predicted."""
        inputs, _ = self.prepare_model_inputs(micro_batch=micro_batch.to(get_device_id()))
        with self.eval_mode(), casting(self), self.output.replaced(lambda hidden, _: _picked(hidden, tokens)):
            return self.module(**inputs, use_cache=False).logits


class StudentEngine(FSDPEngineWithLMHead):
    """verl's engine. While a loss is computed its output layer returns one row of numbers for each response token."""

    def __init__(self, model_config: Any, *args: Any, **kwargs: Any) -> None:
        model_config.model_type = "language_model"  # undo our registry name: verl branches on verl's own
        super().__init__(model_config, *args, **kwargs)
        self.teacher: TeacherEngine | None = None
        self.distill: DistillConfig | None = None
        self.chunk_size: int | None = None
        self._tokens: ResponseTokens | None = None

    def initialize(self) -> None:
        super().initialize()
        self.output = checked_output_layer(self)

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        if loss_function is None:
            return super().forward_step(micro_batch, loss_function, forward_only)
        self._tokens = tokens = response_tokens(micro_batch)
        teacher_hidden_N_D = self.teacher.hidden(micro_batch, tokens) if self.teacher else None
        with self.output.replaced(functools.partial(self._compare, teacher_hidden_N_D)):
            try:
                return super().forward_step(micro_batch, loss_function, forward_only)
            finally:
                self._tokens = None

    def _compare(self, teacher_hidden_N_D: torch.Tensor | None, hidden: torch.Tensor, weight: torch.Tensor) -> Any:
        assert self.distill is not None and self._tokens is not None
        teacher_weight = self.teacher.weight_W_D if self.teacher else None
        shared = min(len(weight), len(teacher_weight)) if teacher_weight is not None else len(weight)
        if self.chunk_size is None:  # chosen at the first loss, when the memory of the forward pass is in use
            given = self.distill.chunk_size
            self.chunk_size = automatic(shared, weight.dtype, weight.device) if given == "auto" else given
        found = divergence_from_hidden(
            _picked(hidden, self._tokens),
            weight,
            teacher_hidden_N_D,
            teacher_weight,
            kind="sft" if self.distill.loss == "sampled_k1" else self.distill.loss,
            temperature=self.distill.temperature,
            beta=self.distill.jsd_beta,
            chunk_size=self.chunk_size,
            labels_N=self._tokens.labels_N,
            vocab_size=shared,
        )
        return _columns(found, self.distill.loss)

    def prepare_model_outputs(
        self, output: Any, output_args: Any, micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, Any]:
        if self._tokens is None:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        return {"token_numbers": output.logits, "tokens": self._tokens, "chunk_size": self.chunk_size}


def _columns(found: TokenDivergence, loss: str) -> torch.Tensor:
    """(N, 1 + len(REPORTED)): the value that is trained on, then what is reported; NaN where there is no teacher."""
    value = found.value
    if loss == "sampled_k1":
        value = policy_gradient_k1(-value, cast(torch.Tensor, found.teacher_log_prob))
    missing = torch.full_like(found.value, torch.nan, requires_grad=False)
    reported = [missing if (column := getattr(found, name)) is None else column for name in REPORTED]
    return torch.stack([value, *(column.to(value.dtype) for column in reported)], dim=-1)


for _device in ("cuda", "npu", "cpu"):
    EngineRegistry.register(STUDENT_ENGINE, ["fsdp2"], device=_device)(StudentEngine)


class DistillLoss:
    """Token divergences aggregated as ``loss_agg_mode`` says, over the rows of all workers."""

    def __init__(self, loss_agg_mode: str, loss_scale_factor: float | None, has_teacher: bool = True) -> None:
        self.loss_agg_mode, self.loss_scale_factor = loss_agg_mode, loss_scale_factor
        self.has_teacher = has_teacher

    def __call__(self, model_output: Any, data: TensorDict, dp_group: Any = None) -> tuple[torch.Tensor, dict]:
        numbers, tokens = model_output["token_numbers"], model_output.pop("tokens")
        chunk = {f"{SUM_PREFIX}/distill/{CHUNK}": Metric(AggregationType.MAX, model_output.pop("chunk_size", 0))}
        shape = (len(data["responses"].offsets()) - 1, int(data["responses"].offsets().diff().max()))
        value_B_T = numbers.new_zeros(shape).index_put((tokens.row_N, tokens.column_N), numbers[:, 0])
        mask_B_T = numbers.new_zeros(shape).index_put((tokens.row_N, tokens.column_N), numbers.new_ones(len(numbers)))
        loss = agg_loss(
            value_B_T,
            mask_B_T,
            self.loss_agg_mode,
            dp_size=data["dp_size"],
            batch_num_tokens=max(1, data["batch_num_tokens"]),
            global_batch_size=data["global_batch_size"],
            loss_scale_factor=cast(Any, self.loss_scale_factor),
        )
        by_source = source_sums(data) if SOURCE_FIELD in data else {}
        return loss, token_sums(numbers.detach(), self.has_teacher) | chunk | as_metrics(by_source)


def token_sums(numbers: torch.Tensor, has_teacher: bool) -> dict[str, Metric]:
    """Sums over tokens; the driver divides them by the number of tokens (``distill.finish_token_sums``)."""
    sums = dict(zip((VALUE, *REPORTED), numbers.double().sum(dim=0), strict=True))
    if not has_teacher:
        sums = {name: total for name, total in sums.items() if name in WITHOUT_TEACHER}
    sums["tokens"] = numbers.new_tensor(len(numbers))
    return {f"{SUM_PREFIX}/distill/{name}": Metric(AggregationType.SUM, value) for name, value in sums.items()}


class StudentWorker(TrainingWorker):
    """verl's training worker with :class:`StudentEngine`."""

    def __init__(self, config: TrainingWorkerConfig) -> None:
        super().__init__(dataclasses.replace(config, model_type=STUDENT_ENGINE))


class DistillActorWorker(S2LActorWorker):
    """The actor trained against a frozen teacher; sampling, weight sync and checkpoints are verl's."""

    actor_worker_cls = StudentWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[attr-defined]
    def init_model(self) -> None:
        super().init_model()
        block = cast(dict[str, Any], OmegaConf.to_container(self.config[DISTILL_BLOCK], resolve=True))
        distill, worker = DistillConfig(**block), cast(Any, self.actor)
        engine = worker.engine
        engine.distill = distill
        engine.teacher = build_teacher(self.config, distill.teacher_path) if distill.teacher_path else None
        actor = self.config.actor
        worker.set_loss_fn(DistillLoss(actor.loss_agg_mode, actor.get("loss_scale_factor"), engine.teacher is not None))
        aggressive_empty_cache(force_sync=True)  # as verl does at its end: vLLM takes what is free


def build_teacher(config: DictConfig, path: str) -> TeacherEngine:
    """The teacher on the actor's devices, with the engine settings of ``actor_rollout_ref.ref``."""
    model = copy.deepcopy(config.model)
    point_to_model(model, path)
    OmegaConf.update(model, "enable_gradient_checkpointing", False)
    model_config = omega_conf_to_dataclass(model)
    engine_config = omega_conf_to_dataclass(config.ref.fsdp_config)
    object.__setattr__(engine_config, "strategy", "fsdp2")
    object.__setattr__(engine_config, "forward_only", True)
    engine_config.use_remove_padding = model_config.use_remove_padding
    no_optimizer: Any = None
    teacher = TeacherEngine(model_config, engine_config, no_optimizer, omega_conf_to_dataclass(config.actor.checkpoint))
    teacher.initialize()
    return teacher
