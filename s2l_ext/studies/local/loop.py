"""GRPO and the four methods as a loop of plain PyTorch: no Ray, no verl, no vLLM.

The shortest way to see what each method changes. A :class:`LocalLoop` takes the recipes of ``s2l train`` and does a
step in one process: draw prompts, sample, judge, adapt, update. Schedules, controllers, divergences and rewards are the
package's own; on the same rows it computes the loss and the gradient of verl's workers
(tests/e2e/test_combinations.py). For tiny models only: nothing is sharded, and sampling is transformers' ``generate``.

Shapes: B rows are P prompts times G rollouts; a row has S prompt and T response tokens. V is the vocabulary.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from s2l_ext.methods.curriculum.orders import UniformOrder
from s2l_ext.methods.distill import divergences
from s2l_ext.methods.guidance.client import answer_of, guidance_ids, trace_of
from s2l_ext.methods.guidance.length import guided_sessions
from s2l_ext.methods.guidance.rules import final_share
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.rewards import registry
from s2l_ext.studies.local.losses import (
    clipped_surrogate,
    entropy,
    group_advantages,
    k3,
    picked,
    token_weights,
    truncated_weights,
)
from s2l_ext.studies.local.rows import Batch, Rows, Sampler, generate
from s2l_ext.studies.local.rules import check_local
from s2l_ext.training.batch_fields import EXPLORER, LEARNER
from s2l_ext.training.judges import judge_of_run
from s2l_ext.training.outcomes import RolloutOutcome, batch_accuracy, pass_rates, steady_accuracy

Prompt = dict[str, Any]
"""A row of a data file in verl's layout."""


class LocalLoop:
    """A run of a recipe in this process.

    Args:
        cfg: a composed recipe. A setting that this loop does not know is refused.
        prompts: rows that it may train on.

    Raises:
        ConfigError: such a setting, or a block that is not valid.
    """

    def __init__(self, cfg: DictConfig, prompts: list[Prompt]) -> None:
        self.cfg, self.s2l, self.prompts = cfg, parse_s2l(cfg.s2l), prompts
        check_local(cfg, self.s2l)
        self.rollout, self.actor = cfg.actor_rollout_ref.rollout, cfg.actor_rollout_ref.actor
        self.group_size, self.batch_size = int(self.rollout.n), int(cfg.data.train_batch_size)
        self.budget, self.seed = int(cfg.data.max_response_length), int(cfg.data.get("seed") or 0)
        self.reward = registry.synchronous(judge_of_run(cfg))
        self._load_models()
        self._build_controllers()
        options = self.actor.optim
        self.optimizer = torch.optim.AdamW(
            self.learner.parameters(), options.lr, tuple(options.betas), weight_decay=options.weight_decay
        )

    def _load_models(self) -> None:
        from transformers import AutoTokenizer

        explorer, distill, path = self.s2l.live_explorer, self.s2l.distill, self.cfg.actor_rollout_ref.model.path
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.learner = load(path)
        self.reference = frozen(copy.deepcopy(self.learner)) if self.actor.use_kl_loss else None
        self.explorer = frozen(load(explorer.model_path)) if explorer else None
        self.teacher = frozen(load(distill.teacher_path)) if distill and distill.teacher_path else None

    def _build_controllers(self) -> None:
        s2l, explorer = self.s2l, self.s2l.explorer
        self.schedule = explorer and explorer.build(self.group_size)
        self.length = s2l.guidance.length.build(int(self.cfg.trainer.total_training_steps)) if s2l.guidance else None
        self.kl = s2l.kl.build(self.batch_size * self.group_size) if s2l.kl else None
        block, prompts = s2l.curriculum, _Dataset(self.prompts)
        self.curriculum = block.build(prompts, self.seed) if block else UniformOrder(len(prompts), seed=self.seed)
        self.rng = np.random.default_rng(self.seed)

    # ---- one step ---------------------------------------------------------------------------------------------------

    def step(self, number: int) -> tuple[Rows, dict[str, float]]:
        """Draw, sample, judge, adapt, update; ``number`` counts from 1. Returns the rows and the step's metrics."""
        started = time.perf_counter()
        drawn = [int(index) for index in self.curriculum.draw(self.batch_size, self.rng)]
        rows = self.sample([self.prompts[index] for index in drawn], number)
        sampled = time.perf_counter()
        metrics = self.observe(rows, number, drawn) | self.update(rows)
        ended = time.perf_counter()
        seconds = {"gen": sampled - started, "update_actor": ended - sampled, "step": ended - started}
        return rows, metrics | {f"timing_s/{name}": value for name, value in seconds.items()}

    # ---- sample and judge -------------------------------------------------------------------------------------------

    def plan(self, number: int) -> tuple[int, int]:
        """Of a group's rollouts: how many the explorer samples, and how many of the others start from guidance."""
        slots = self.schedule.slots(number) if self.schedule else 0
        guided = guided_sessions(self.s2l.guidance.alpha, self.group_size) if self.s2l.guidance else 0
        return slots, min(guided, self.group_size - slots)

    def sample(self, prompts: Sequence[Prompt], number: int) -> Rows:
        """G rollouts of every prompt: the explorer's first, then guided ones, then the learner's from the prompt."""
        rows, (slots, guided) = Rows(), self.plan(number)
        for place, row in enumerate(prompts):
            ids = self.prompt_ids(row)
            guidance = self._guidance(row, ids, number) if guided else []
            for session in range(self.group_size):
                source = EXPLORER if session < slots else LEARNER
                rows.add(ids, guidance if slots <= session < slots + guided else [], source, place)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 100_003 + number)
            own = float(self.rollout.temperature), float(self.rollout.top_p)
            self._continue(rows, LEARNER, Sampler(self.learner, *own))
            if explorer := self.s2l.live_explorer:
                self._continue(rows, EXPLORER, Sampler(self.explorer, explorer.temperature, explorer.top_p))
        for text, place in zip(self.texts(rows.responses), rows.prompt_B, strict=True):
            score, acc = self.grade(text, prompts[place])
            rows.score_B.append(score)
            rows.acc_B.append(acc)
        return rows

    def _continue(self, rows: Rows, source: str, sampler: Sampler) -> None:
        chosen = [place for place, name in enumerate(rows.source_B) if name == source]
        starts = [rows.prompts[place] + rows.responses[place] for place in chosen]
        limits = [self.budget - rows.guidance_B[place] for place in chosen]
        sampled = generate(sampler, starts, limits, self.tokenizer)
        for place, (ids, log_probs) in zip(chosen, sampled, strict=True):
            rows.responses[place] += ids
            rows.sampler_log_probs[place] += log_probs

    def _guidance(self, row: Prompt, prompt: list[int], number: int) -> list[int]:
        block = self.s2l.guidance
        trace = trace_of(row, block.trace) if block else None
        if block is None or self.length is None or trace is None:
            return []
        tokens = self.length.at(number)
        return guidance_ids(trace, self.tokenizer, prompt, tokens, block, self.budget, answer_of(row))

    def prompt_ids(self, row: Prompt) -> list[int]:
        """A long prompt loses its beginning, as in verl."""
        chat = self.tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer.encode(chat, add_special_tokens=False))[-self.cfg.data.max_prompt_length :]

    def texts(self, responses: list[list[int]]) -> list[str]:
        return list(self.tokenizer.batch_decode(responses, skip_special_tokens=True))

    def grade(self, text: str, row: Prompt) -> tuple[float, float]:
        """Score and accuracy of a response."""
        extra, truth = row.get("extra_info"), row["reward_model"]["ground_truth"]
        verdict = self.reward(data_source=row["data_source"], solution_str=text, ground_truth=truth, extra_info=extra)
        given = verdict if isinstance(verdict, dict) else {"score": verdict, "acc": verdict}
        return float(given["score"]), float(given["acc"])

    # ---- adapt ------------------------------------------------------------------------------------------------------

    def observe(self, rows: Rows, number: int, drawn: Sequence[int]) -> dict[str, float]:
        """Show the step's outcomes to every controller, and choose the step's KL coefficient.

        Args:
            drawn: places in ``prompts`` of the step's prompts.
        """
        outcomes, metrics = rows.outcomes, {"critic/score/mean": float(np.mean(rows.score_B))}
        if self.schedule:
            metrics["s2l/explorer/rollouts_per_group"] = float(self.plan(number)[0])
        if self.length is not None:
            metrics["s2l/guidance/length"] = float(self.length.at(number))
            self._observe_length(outcomes, self.length.at(number))
        if self.s2l.curriculum is not None:
            rates = pass_rates(outcomes, self.s2l.curriculum.estimate_from)
            indices = [drawn[int(place)] for place in rates]
            self.curriculum.update(np.array(indices, dtype=np.int64), np.array(list(rates.values())))
        self.beta = float(self.actor.kl_loss_coef) if self.actor.use_kl_loss else 0.0
        if self.kl is not None:
            self.beta = metrics["s2l/kl/beta"] = self.kl.coefficient(batch_accuracy(outcomes, "s2l.kl"))
        return metrics

    def _observe_length(self, outcomes: list[RolloutOutcome], used: int) -> None:
        guidance = self.s2l.guidance
        follows = guidance.length.follows if guidance else None
        if guidance is None or follows is None or self.length is None:
            return
        seen = [one for one in outcomes if one.counts_for(follows)]
        share = final_share(guidance, self.s2l.explorer, self.group_size)
        accuracy = steady_accuracy(seen, share, "s2l.guidance.length")
        if accuracy is not None:
            self.length.observe(accuracy, used_length=used)

    # ---- update -----------------------------------------------------------------------------------------------------

    def update(self, rows: Rows) -> dict[str, float]:
        """One optimizer step for each mini-batch and epoch. Returns means over them."""
        batch, advantage_B = self.pack(rows), self.advantages(rows)
        size, told = int(self.actor.ppo_mini_batch_size) * self.group_size, defaultdict(list)
        several = len(rows.prompts) > size or self.actor.ppo_epochs > 1
        old_B_T = self._old_log_probs(batch, several)
        weight_B_T = self._importance_weights(rows, batch, old_B_T)
        for _ in range(int(self.actor.ppo_epochs)):
            for start in range(0, len(rows.prompts), size):
                part = slice(start, min(start + size, len(rows.prompts)))
                for name, value in self._optimizer_step(batch, advantage_B, old_B_T, weight_B_T, part).items():
                    told[name].append(value)
        metrics = {name: float(np.mean(values)) for name, values in told.items()}
        if self.kl is not None:
            self.kl.observe(metrics["actor/kl_loss"])
        return metrics

    def pack(self, rows: Rows) -> Batch:
        guidance, distill = self.s2l.guidance, self.s2l.distill
        with_guidance = guidance is None or guidance.loss_on_guidance
        return Batch.of(rows, self.tokenizer.pad_token_id, with_guidance, bool(distill and distill.correct_only))

    def advantages(self, rows: Rows) -> Tensor:
        """(B,) of GRPO. S2L-PO's ``baseline: per_source`` makes two groups of a prompt's rows."""
        split = self.s2l.explorer is not None and self.s2l.explorer.baseline == "per_source"
        groups = [(place, name if split else "") for place, name in zip(rows.prompt_B, rows.source_B, strict=True)]
        return group_advantages(torch.tensor(rows.score_B), groups, self.cfg.algorithm.norm_adv_by_std_in_grpo)

    def _old_log_probs(self, batch: Batch, several: bool) -> Tensor | None:
        """(B, T) of the learner before the update, whichever model sampled. None where the only ratio is 1."""
        explorer = self.s2l.explorer
        if self.s2l.distill or not (several or (explorer and explorer.correction == "truncated_is")):
            return None
        with torch.no_grad():
            parts = [self.log_probs(self.learner, batch.part(at)) for at in self._micro(slice(0, len(batch.ids_B_L)))]
        return torch.cat(parts)

    def _importance_weights(self, rows: Rows, batch: Batch, old_B_T: Tensor | None) -> Tensor | None:
        """(B, T) of S2L-PO's ``correction: truncated_is``."""
        explorer, width = self.s2l.explorer, batch.mask_B_T.shape[1]
        if explorer is None or explorer.correction != "truncated_is" or old_B_T is None:
            return None
        sampler_B_T = torch.tensor([row + [0.0] * (width - len(row)) for row in rows.sampler_log_probs])
        is_explorer_B = torch.tensor([source == EXPLORER for source in rows.source_B])
        return truncated_weights(old_B_T, sampler_B_T, batch.mask_B_T * is_explorer_B[:, None], explorer.is_cap)

    def _optimizer_step(
        self, batch: Batch, advantage_B: Tensor, old_B_T: Tensor | None, weight_B_T: Tensor | None, part: slice
    ) -> dict[str, float]:
        """Accumulate over micro-batches, clip, step."""
        share_B_T = token_weights(batch.mask_B_T[part], self.actor.loss_agg_mode)
        sums: dict[str, float] = defaultdict(float)
        self.optimizer.zero_grad()
        for at in self._micro(part):
            old, weight = (None if values is None else values[at] for values in (old_B_T, weight_B_T))
            share = share_B_T[at.start - part.start : at.stop - part.start]
            total = torch.zeros(())
            for name, (coefficient, value_B_T) in self.losses(batch.part(at), advantage_B[at], old, weight).items():
                summed = (value_B_T * share).sum()
                sums[name] += float(summed.detach())
                total = total + coefficient * summed
            total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), float(self.actor.optim.clip_grad))
        self.optimizer.step()
        return {**sums, "actor/grad_norm": float(norm)}

    def _micro(self, part: slice) -> list[slice]:
        size = int(self.actor.ppo_micro_batch_size_per_gpu)
        return [slice(at, min(at + size, part.stop)) for at in range(part.start, part.stop, size)]

    def losses(
        self, batch: Batch, advantage_B: Tensor, old_B_T: Tensor | None, weight_B_T: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        """Terms of the loss by name: coefficient, and (B, T) values."""
        logits_B_T_V = batch.logits(self.learner, self.temperature)
        log_prob_B_T = picked(logits_B_T_V, batch.response_B_T)
        if self.s2l.distill:
            return {"actor/loss": (1.0, self._divergence(logits_B_T_V, log_prob_B_T, batch))}
        old_B_T = log_prob_B_T.detach() if old_B_T is None else old_B_T
        value_B_T = clipped_surrogate(log_prob_B_T, old_B_T, advantage_B[:, None], *self._clips)
        terms = {"actor/pg_loss": (1.0, value_B_T if weight_B_T is None else value_B_T * weight_B_T)}
        if self.reference is not None:
            with torch.no_grad():
                reference_B_T = self.log_probs(self.reference, batch)
            terms["actor/kl_loss"] = (self.beta, k3(log_prob_B_T, reference_B_T))
        if self.actor.entropy_coeff:
            terms["actor/entropy_loss"] = (-float(self.actor.entropy_coeff), entropy(logits_B_T_V))
        return terms

    def _divergence(self, logits_B_T_V: Tensor, log_prob_B_T: Tensor, batch: Batch) -> Tensor:
        """(B, T) what sparse-to-dense puts in the place of the policy gradient."""
        block = self.s2l.distill
        assert block is not None
        if block.loss == "sft":
            return -log_prob_B_T
        with torch.no_grad():
            teacher_B_T_V = batch.logits(self.teacher, self.temperature)
        if block.loss == "sampled_k1":
            return divergences.policy_gradient_k1(log_prob_B_T, picked(teacher_B_T_V, batch.response_B_T))
        if block.loss == "jsd":
            return divergences.jsd(logits_B_T_V, teacher_B_T_V, batch.mask_B_T, block.jsd_beta)
        loss = divergences.forward_kl if block.loss == "forward_kl" else divergences.reverse_kl
        return loss(logits_B_T_V, teacher_B_T_V, batch.mask_B_T)

    def log_probs(self, model: Any, batch: Batch) -> Tensor:
        """(B, T) of the response tokens."""
        return picked(batch.logits(model, self.temperature), batch.response_B_T)

    @property
    def temperature(self) -> float:
        """That the loss divides logits by."""
        return self.s2l.distill.temperature if self.s2l.distill else float(self.rollout.temperature)

    @property
    def _clips(self) -> tuple[float, float, float]:
        """Lower and upper clip of the ratio, and the dual clip."""
        actor = self.actor
        low = actor.clip_ratio if actor.clip_ratio_low is None else actor.clip_ratio_low
        high = actor.clip_ratio if actor.clip_ratio_high is None else actor.clip_ratio_high
        return float(low), float(high), float(actor.clip_ratio_c)


class _Dataset:
    """Rows as the curricula read verl's data set."""

    def __init__(self, rows: list[Prompt]) -> None:
        self.rows, self.dataframe = rows, self
        self.column_names = list(rows[0]) if rows else []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]


def load(path: str) -> Any:
    """A causal language model in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def frozen(model: Any) -> Any:
    return model.eval().requires_grad_(False)
