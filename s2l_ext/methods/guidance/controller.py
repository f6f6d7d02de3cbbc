"""G2RPO-A in a run: which rollouts of a group are guided, by how many tokens, and what the length follows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from s2l_ext.config.parse import defaults
from s2l_ext.config.verl_settings import GROUP_SIZE, setting, whole_number
from s2l_ext.data.tokenizers import load_tokenizer
from s2l_ext.methods.base import Method
from s2l_ext.methods.guidance.config import AnyLength, GuidanceConfig
from s2l_ext.methods.guidance.length import guided_sessions
from s2l_ext.methods.guidance.rules import build_length, check_guidance, check_stages, final_share
from s2l_ext.methods.guidance.trace_checks import check_traces, rollouts_digest
from s2l_ext.training.batch_fields import GUIDED_FIELD, LENGTH_FIELD, PREFIX_FIELD
from s2l_ext.training.inputs import LEARNER_KEY
from s2l_ext.training.outcomes import RolloutOutcome, steady_accuracy
from s2l_ext.training.pending_prompts import PromptPlan

if TYPE_CHECKING:
    from s2l_ext.training.inputs import Inputs
    from s2l_ext.training.pending_prompts import Draw
    from s2l_ext.training.step import Step


class Guidance(Method):
    block = "guidance"
    config_class = GuidanceConfig
    may_change = frozenset({"teacher_rollouts"})  # compared by content

    config: GuidanceConfig

    def __init__(self, config: GuidanceConfig, s2l: Any, cfg: DictConfig) -> None:
        super().__init__(config, s2l, cfg)
        self.group_size = whole_number(cfg, GROUP_SIZE)
        self.applied: dict[str, float] = {}

    def check(self) -> list[str]:
        return check_guidance(self.config, self.cfg)

    def check_inputs(self, inputs: Inputs) -> list[str]:
        warnings = check_stages(self.config, inputs.steps) if inputs.steps else []
        if inputs.table is None:
            key = f"s2l.guidance.trace={self.config.trace}"
            return [*warnings, f"{key}: traces of data that is not parquet are looked at when sampled."]
        tokenizer = load_tokenizer(self.cfg.actor_rollout_ref.model.path, LEARNER_KEY, inputs.trust)
        return [*warnings, *check_traces(inputs.table, self.config, tokenizer, self.cfg.data.prompt_key)]

    @property
    def needs_accuracy(self) -> str | None:
        return f"s2l.guidance.length.type={self.config.length.type}" if self.config.length.follows else None

    def fingerprint(self) -> dict[str, Any]:
        settings = super().fingerprint()
        length = defaults(AnyLength) | settings.pop("guidance.length")
        if self.config.teacher_rollouts is not None:
            settings["guidance.teacher_rollouts.sha256"] = rollouts_digest(self.config.teacher_rollouts)
        return settings | {f"guidance.length.{name}": value for name, value in length.items()}

    @classmethod
    def plan_lines(cls, plan: Mapping[str, Any]) -> list[tuple[str, str]]:
        guidance = plan["guidance"]
        named = sorted((name, value) for name, value in guidance["length"].items() if name != "type")
        length = ", ".join(f"{name} {value}" for name, value in named if value is not None)
        loss = "in the loss" if guidance["loss_on_guidance"] else "masked"
        sessions = f"{guided_sessions(guidance['alpha'], plan['group_size'])} of {plan['group_size']} sessions"
        return [("guidance", f"{sessions}, {guidance['length']['type']} length ({length}), guidance tokens {loss}")]

    def actor_worker(self) -> type:
        from s2l_ext.training.actor_worker import S2LActorWorker

        return S2LActorWorker

    def start(self, trainer: Any) -> None:
        """T of the decays is the number of steps that the run really has; 0 where a validation has too few prompts."""
        self.rule = build_length(self.config.length, max(trainer.total_training_steps, 1))

    def draw(self, draw: Draw) -> None:
        """After the explorer has taken its rollouts of the group."""
        guided = min(guided_sessions(self.config.alpha, self.group_size), self.group_size - draw.slots)
        for field, name, value in ((GUIDED_FIELD, "guided", guided), (LENGTH_FIELD, "length", self.rule.at(draw.step))):
            draw.send(field, draw.same(value))
            draw.note(name, draw.same(value))

    def observe(self, step: Step) -> None:
        """Take in a step's outcome; an adaptive rule then has the length of the prompts that are drawn next. A step
        without a row that counts (``estimate_from``) leaves the rule as it is. Raises DataError: the rule reads
        accuracies and the reward function gave none."""
        mark_later_outputs(step)
        recorded = setting(self.cfg, "actor_rollout_ref.rollout.calculate_log_probs")
        if self.config.loss_on_guidance and recorded and step.old_log_probs:
            from s2l_ext.methods.guidance.behaviour_log_probs import take_guidance_for_the_learners

            step.metrics.update(take_guidance_for_the_learners(step))
        self.learn(planned_length(step.plans.values()), step.outcomes)

    def learn(self, length: float, sessions: list[RolloutOutcome]) -> None:
        """The part of :meth:`observe` that moves the length. ``length``: tokens that the step's rows were planned with;
        a mean where they were drawn at several steps."""
        self.applied = {"length": float(length), **statistics(sessions)}
        if self.config.length.follows is None:
            return
        seen = [session for session in sessions if session.counts_for(self.config.length.follows)]
        share = final_share(self.config, self.s2l.explorer, self.group_size)
        accuracy = steady_accuracy(seen, share, f"s2l.guidance.length.type={self.config.length.type}")
        self.applied["estimate_rows"] = 0.0 if accuracy is None else float(len(seen))
        if accuracy is not None:
            self.applied["accuracy"] = accuracy
            self.rule.observe(accuracy, used_length=length)

    def metrics(self, step: Step) -> dict[str, float]:
        return {f"s2l/guidance/{name}": value for name, value in {**self.applied, **self.rule.metrics()}.items()}

    def state_dict(self) -> dict[str, Any]:
        return self.rule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rule.load_state_dict(state)


def mark_later_outputs(step: Step) -> None:
    """Guidance stands at the head of a session's first output; the workers' loss reads -1 on rows of later ones."""
    keyed = zip(step.rows.keys, step.rows.names, step.rows.session_prefix_B, strict=True)
    later = [name for key, name, length in keyed if key.output and length]
    if later:
        from s2l_ext.training.queue import put_values

        put_values(step.batch, PREFIX_FIELD, [-1] * len(later), later)


def planned_length(plans: Collection[PromptPlan]) -> float:
    """Guidance tokens that a step's rows were drawn with: the mean over prompts that have guided sessions, over all
    prompts where the explorer has every session."""
    guided = [plan.length for plan in plans if plan.guided]
    return mean(guided or [plan.length for plan in plans])


def statistics(sessions: list[RolloutOutcome]) -> dict[str, float]:
    """Rows, applied lengths, accuracies and groups with a learning signal, guided and not.

    A group has a signal if its accuracies differ: without one GRPO's advantages are all 0.
    """
    guided = [session for session in sessions if session.prefix_len]
    plain = [session for session in sessions if session.counts_for("learner_unguided")]
    numbers = {"guided_rows": float(len(guided)), "groups_with_signal": share_with_signal(sessions)}
    if guided:
        lengths = [session.prefix_len for session in guided]
        numbers |= {"applied_mean": float(np.mean(lengths)), "applied_min": min(lengths), "applied_max": max(lengths)}
    numbers |= _mean_accuracy("acc_guided", guided) | _mean_accuracy("acc_unguided", plain)
    if plain:
        numbers["unguided_groups_with_signal"] = share_with_signal(plain)
    return {name: float(value) for name, value in numbers.items()}


def _mean_accuracy(name: str, sessions: list[RolloutOutcome]) -> dict[str, float]:
    values = [session.acc for session in sessions if session.acc is not None]
    return {name: float(np.mean(values))} if values else {}


def share_with_signal(sessions: list[RolloutOutcome]) -> float:
    """Share of groups whose sessions differ in accuracy, 0..1."""
    groups: dict[str, set[float | None]] = defaultdict(set)
    for session in sessions:
        groups[session.uid].add(session.acc)
    return float(np.mean([len(values) > 1 for values in groups.values()])) if groups else 0.0
