"""How much memory of one accelerator a run takes, from the models' configurations.

What is there when, in verl 0.9.1 (nothing here imports it):

- ``workers/engine/fsdp/transformer_impl.py``: FSDP keeps weights in ``model_dtype`` (float32), shared out over the
  accelerators, and a layer at a time whole in bfloat16. Gradients and Adam's two states have the weights' type; with
  LoRA the adapters alone have them. The reference and the teacher are forward only: their weights wait on the host.
- ``workers/engine/base.py`` ``BaseEngineCtx``: ``param_offload`` and ``optimizer_offload`` bring everything back for an
  update, so they free memory while rows are sampled. ``offload_policy`` keeps it on the host.
- ``utils/torch_functional.py`` ``logprobs_from_logits``: logits of a whole micro-batch, and without flash-attn their
  log-softmax in float32. With fused kernels neither; ``s2l.distill`` makes logits by chunks.
- ``workers/rollout/vllm_rollout/vllm_async_server.py``: engines on the learner's accelerators sleep between rollouts
  (``free_cache_engine``); awake they hold ``gpu_memory_utilization`` of it, with room for at least one sequence of
  ``max_model_len``, or of all the positions that the model has.

Only what is certain to be there is counted. CUDA's own memory, fragments, masks and vLLM's graphs come on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from s2l_ext.config.model_files import is_local, model_shape, parameter_count
from s2l_ext.config.model_shapes import ModelShape
from s2l_ext.config.modes import learner_samples
from s2l_ext.config.row_split import model_parallel_gpus
from s2l_ext.config.verl_settings import gpus_at, setting, whole_number
from s2l_ext.methods.distill.config import tile_tokens
from s2l_ext.methods.registry import S2LConfig

ACTOR, ROLLOUT, REF, MODEL = (f"actor_rollout_ref.{name}" for name in ("actor", "rollout", "ref", "model"))
HALF, SINGLE = 2, 4
BYTES = {"fp32": SINGLE, "float32": SINGLE}
"""Of a number; every other type that verl takes has two."""

SMALLER_ENGINE = {"quantization", "kv_cache_dtype", "cpu_offload_gb", "max_model_len"}
"""Options of vLLM that make an engine smaller in ways that are not counted."""


@dataclass(frozen=True)
class Model:
    """``parameters``: None where nothing tells; ``shape``: None where only the name tells a size."""

    path: str
    parameters: int | None
    shape: ModelShape | None

    @classmethod
    def at(cls, path: str) -> Model:
        shape = model_shape(path)
        by_shape = shape is not None and not is_local(path)  # a hub id's name is rounded; local headers are exact
        return cls(path, shape.parameters if shape and by_shape else parameter_count(path), shape)


@dataclass(frozen=True)
class Phase:
    """A time of a step, with bytes of one accelerator by what holds them."""

    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Engine:
    """A vLLM engine: ``key`` begins its settings, ``needed`` are bytes for its weights and one longest sequence."""

    name: str
    key: str
    share: float
    length: int | None
    needed: float


class Estimate:
    """A run's phases on one accelerator. ``card``: bytes of an accelerator, of which engines take shares. ``one_row``:
    micro-batches of one row of the longest length, in place of as many as they may have."""

    def __init__(self, cfg: DictConfig, s2l: S2LConfig, card: float, one_row: bool = False) -> None:
        self.cfg, self.s2l, self.card, self.one_row = cfg, s2l, card, one_row
        self.learner = Model.at(setting(cfg, f"{MODEL}.path"))
        self.explorer = s2l.live_explorer
        self.distill = s2l.distill if s2l.distill and s2l.distill.in_actor else None
        self.teacher = Model.at(self.distill.teacher_path) if self.distill and self.distill.teacher_path else None
        self.trains_only = not learner_samples(cfg)
        self.rank = int(setting(cfg, f"{MODEL}.lora_rank") or 0)

    def phases(self) -> list[Phase]:
        """Those of the learner's accelerators, then of others. Empty when nothing is known of the learner."""
        if self.learner.parameters is None:
            return []
        found = [Phase("rollout", self._resting() | ({} if self.trains_only else self._awake()))]
        if self.distill is None:
            found.append(Phase("log-probs", self._resting(False) | self._asleep() | self._forward()))
        found.append(Phase("update", self._training() | self._asleep() | self._backward()))
        for engine in self.engines():
            if engine.name not in self._here():
                found.append(Phase(f"{engine.name}'s", {f"{engine.name}'s engine": engine.share * self.card}))
        return found

    # ---- weights and what belongs to them ----------------------------------------------------------------------------

    def _training(self) -> dict[str, float]:
        if setting(self.cfg, f"{ACTOR}.fsdp_config.offload_policy"):
            return self._teacher_part()
        size, shards = (
            BYTES.get(str(setting(self.cfg, f"{ACTOR}.fsdp_config.model_dtype") or "fp32"), HALF),
            self._shards(),
        )
        total = self.learner.parameters or 0
        trained = (self.learner.shape.adapters(self.rank) if self.learner.shape else 0) if self.rank else total
        weights = (total + trained * bool(self.rank)) * size
        held = {"weights": weights, "gradients": trained * size, "Adam states": 2 * trained * size}
        return {name: value / shards for name, value in held.items()} | self._teacher_part()

    def _resting(self, optional_weights: bool = True) -> dict[str, float]:
        """What of it stays between updates."""
        held = self._training()
        held.pop("gradients", None)
        if optional_weights and setting(self.cfg, f"{ACTOR}.fsdp_config.param_offload"):
            held.pop("weights", None)
        if setting(self.cfg, f"{ACTOR}.fsdp_config.optimizer_offload"):
            held.pop("Adam states", None)
        return held

    def _teacher_part(self) -> dict[str, float]:
        shape = self.teacher.shape if self.teacher else None
        return {"teacher's output matrix": shape.matrix * HALF} if shape else {}

    def _shards(self) -> int:
        world = gpus_at(self.cfg, "trainer")
        size = int(setting(self.cfg, f"{ACTOR}.fsdp_config.fsdp_size") or -1)
        return size if 0 < size < world else world

    # ---- a micro-batch -----------------------------------------------------------------------------------------------

    def _backward(self) -> dict[str, float]:
        shape, tokens = self.learner.shape, self._tokens(f"{ACTOR}.ppo_micro_batch_size_per_gpu", f"{ACTOR}.ppo_max")
        if shape is None:
            return {}
        gathered = max(shape.matrix, shape.layer) * HALF * (1 if self.rank else 2)
        kept = (
            shape.hidden * HALF if setting(self.cfg, f"{MODEL}.enable_gradient_checkpointing") else layer_bytes(shape)
        )
        if setting(self.cfg, f"{MODEL}.enable_activation_offload"):
            kept = 0
        activations = tokens * ((shape.layers - 1) * kept + layer_bytes(shape))
        return {"gathered layer": gathered, "activations": activations, "logits": self._loss_logits(shape, tokens)}

    def _loss_logits(self, shape: ModelShape, tokens: float) -> float:
        if self.distill:
            models, chunk = 2 if self.teacher else 1, self.distill.chunk_size
            chunk = tile_tokens(shape.vocab, SINGLE) if chunk == "auto" else chunk
            return chunk * shape.vocab * SINGLE * (models + 1) + shape.matrix * SINGLE * (not self.rank)
        if setting(self.cfg, f"{MODEL}.use_fused_kernels"):
            return 0
        flash = setting(self.cfg, f"{MODEL}.override_config.attn_implementation") in (None, "flash_attention_2")
        return tokens * shape.vocab * (HALF if flash else HALF + SINGLE)

    def _forward(self) -> dict[str, float]:
        """Of log-probabilities, the learner's with their entropy, which is fused where it is compiled."""
        shape = self.learner.shape
        if shape is None or setting(self.cfg, f"{MODEL}.use_fused_kernels"):
            return {}
        eager = not setting(self.cfg, f"{ACTOR}.fsdp_config.use_torch_compile")
        tokens = self._tokens(f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu", f"{ROLLOUT}.log_prob_max")
        logits = tokens * shape.vocab * (HALF + 2 * SINGLE * eager)
        if setting(self.cfg, f"{ACTOR}.use_kl_loss") or setting(self.cfg, "algorithm.use_kl_in_reward"):
            others = self._tokens(f"{REF}.log_prob_micro_batch_size_per_gpu", f"{REF}.log_prob_max", REF)
            logits = max(logits, others * shape.vocab * HALF)
        return {"gathered layer": max(shape.matrix, shape.layer) * HALF, "logits": logits}

    def _tokens(self, rows_key: str, most_key: str, role: str = ACTOR) -> float:
        """Tokens of the longest micro-batch on one accelerator of ``role``."""
        row = whole_number(self.cfg, "data.max_prompt_length") + whole_number(self.cfg, "data.max_response_length")
        parts = model_parallel_gpus(self.cfg, role)
        if self.one_row:
            return row / parts
        if setting(self.cfg, f"{ACTOR}.use_dynamic_bsz"):
            return max(row / parts, setting(self.cfg, f"{most_key}_token_len_per_gpu") or 0)
        return row / parts * int(setting(self.cfg, rows_key) or 1)

    # ---- engines -----------------------------------------------------------------------------------------------------

    def engines(self) -> Iterator[Engine]:
        """The learner's, then a live explorer's."""
        rollout = self.cfg.actor_rollout_ref.rollout
        yield self._engine("learner", ROLLOUT, self.learner, rollout)
        if self.explorer:
            own = {**rollout, "tensor_model_parallel_size": self.explorer.tensor_model_parallel_size}
            own |= self.explorer.rollout_overrides
            yield self._engine("explorer", "s2l.explorer.rollout_overrides", Model.at(self.explorer.model_path), own)

    def _engine(self, name: str, key: str, model: Model, rollout: Any) -> Engine:
        shape, size = model.shape, BYTES.get(str(rollout.get("dtype")), HALF)
        length = rollout.get("max_model_len") or (shape.positions if shape else None)
        cache = 2 * shape.layers * shape.key * size * (length or 0) if shape else 0
        parts = int(rollout.get("tensor_model_parallel_size") or 1) * int(
            rollout.get("pipeline_model_parallel_size") or 1
        )
        smaller = rollout.get("quantization") or SMALLER_ENGINE & set(
            (rollout.get("engine_kwargs") or {}).get("vllm") or ()
        )
        needed = 0.0 if smaller else ((model.parameters or 0) * size + cache) / parts
        return Engine(name, key, float(rollout.get("gpu_memory_utilization")), length, needed)

    def _here(self) -> set[str]:
        """Engines on the learner's accelerators."""
        here = set() if self.trains_only else {"learner"}
        return here | ({"explorer"} if self.explorer and self.explorer.is_colocated else set())

    def _awake(self) -> dict[str, float]:
        here = self._here()
        return {f"{one.name}'s engine": one.share * self.card for one in self.engines() if one.name in here}

    def _asleep(self) -> dict[str, float]:
        sleeps = self.trains_only or setting(self.cfg, f"{ROLLOUT}.free_cache_engine")
        return {} if sleeps else self._awake()

    # ---- what is not known -------------------------------------------------------------------------------------------

    def unknown(self) -> list[str]:
        """One line for each model of which only a part is known."""
        own = [Model.at(self.explorer.model_path)] if self.explorer else []
        lines = []
        for model in dict.fromkeys([self.learner, *own, *([self.teacher] if self.teacher else [])]):
            if model.shape is None:
                what = (
                    "weights are counted by the size in its name, nothing else" if model.parameters else "not counted"
                )
                lines.append(f"{model.path}: no config.json here, and no known dense family: {what}.")
        return lines


def layer_bytes(shape: ModelShape) -> int:
    """Bytes a token that autograd keeps of one layer in bfloat16 with sdpa, without checkpointing.

    Llama's layer of transformers: ``tests/unit/test_memory.py`` counts the saved tensors. Qwen3's norms of queries and
    keys come on top (9 % at Qwen3-0.6B).
    """
    return 16 * shape.hidden + 8 * shape.intermediate + 4 * shape.query + 4 * shape.key
