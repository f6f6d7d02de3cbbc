"""What a run cost: tokens, FLOPs and seconds by phase and by who did the work.

With P parameters of the learner, P_E of the explorer, P_T of the teacher, and N tokens of a step, prompts and
responses (verl's ``perf/total_num_tokens``), of which the explorer's rows hold N_E:

- sampling ``2 P (N - N_E)`` by the learner and ``2 P_E N_E`` by the explorer;
- ``2 P N`` for the old log-probabilities, and as much for those of the reference, where the run computed them;
- ``2 P_T N`` for a teacher that scores every token;
- training ``6 P N`` for each epoch over the rows, forward and backward.

A matrix product costs 2 FLOPs for each parameter and token; attention over long contexts is left out, a prompt counts
in every row although an engine may cache it, and all experts of a mixture are counted.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from s2l_ext.config.model_files import parameter_count
from s2l_ext.errors import DataError
from s2l_ext.report.run import Run
from s2l_ext.store.reader import read_manifest
from s2l_ext.training.batch_fields import EXPLORER, LEARNER

TOKENS, PROMPT, STEP = "perf/total_num_tokens", "prompt_length/mean", "timing_s/step"
TEACHER = "teacher"
OTHERS = (EXPLORER, TEACHER)
"""Whose work learner-only accounting leaves out."""
MODEL_PATHS = {
    LEARNER: "actor_rollout_ref.model.path",
    EXPLORER: "s2l.explorer.model_path",
    TEACHER: "s2l.distill.teacher_path",
}
SAMPLING, OLD, REFERENCE = "sampling", "old log-probabilities", "reference log-probabilities"
SCORING, TRAINING, WEIGHTS = "scoring", "training", "weights to the sampler"
OTHER, VALIDATION = "rest of the step", "validation"
FILTER_KEY = "algorithm.filter_groups.enable"
"""Groups that this drops are in no metric of a step."""
FORWARD, BOTH = 2, 6
"""FLOPs for each parameter and token: forward, and forward with backward."""


@dataclass(frozen=True)
class Amount:
    """Of one phase; None where it is not known, or where the phase has none."""

    tokens: float | None = None
    flops: float | None = None
    seconds: float | None = None

    def __add__(self, other: Amount) -> Amount:
        return Amount(*map(_plus, (self.tokens, self.flops, self.seconds), (other.tokens, other.flops, other.seconds)))


def _plus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


Entries = dict[tuple[str, str], Amount]
"""By phase and by who did the work."""


@dataclass(frozen=True)
class Totals:
    """Attributes:
    tokens: of rollouts, prompts included; None where the run did not log them.
    flops: None where a model's size is not known.
    accelerator_seconds: None where the configuration is not known.
    """

    tokens: float | None
    flops: float | None
    seconds: float | None
    accelerator_seconds: float | None


@dataclass(frozen=True)
class Ledger:
    """The account of one run, over the training steps that its metrics hold."""

    run: Run

    @cached_property
    def sizes(self) -> dict[str, int | None]:
        """Parameters by model: announced in the plan, or counted in the folders that the configuration names."""
        announced = self.run.plan.get("parameters")
        known = announced if isinstance(announced, dict) else {}
        store = self._read_store()
        named = {who: self.run.places(dotted) for who, dotted in MODEL_PATHS.items()}
        named[EXPLORER] += self.run.located(str(store["model_name"])) if store.get("model_name") else []
        stored = {EXPLORER: store.get("parameters")}
        return {who: known.get(who) or stored.get(who) or _counted(paths) for who, paths in named.items()}

    def _read_store(self) -> dict[str, Any]:
        """Of the model that sampled the stored rollouts which the run took: its name, and its parameters if counted."""
        for place in self.run.places("s2l.explorer.store"):
            with contextlib.suppress(DataError, OSError):
                return read_manifest(place, "s2l.explorer.store").fingerprint
        return {}

    @cached_property
    def steps(self) -> dict[int, Entries]:
        """Entries of every training step that logged its tokens or seconds."""
        steps = ((step, data) for step, data in self.run.by_step.items() if step > 0)
        return {step: self._entries(data) for step, data in steps if TOKENS in data or STEP in data}

    @cached_property
    def entries(self) -> Entries:
        """Sums over the steps, in the order in which a step does them."""
        found: Entries = {}
        for entries in self.steps.values():
            for key, amount in entries.items():
                found[key] = found[key] + amount if key in found else amount
        order = (SAMPLING, OLD, REFERENCE, SCORING, TRAINING, WEIGHTS, OTHER, VALIDATION)
        return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1] != LEARNER)))

    def _entries(self, data: dict[str, float]) -> Entries:
        total, explored = data.get(TOKENS), _explorer_tokens(data)
        own = None if total is None else total - explored
        sampling = [_product(data.get("timing_s/gen"), share) for share in _shares_of_sampling(data)]
        found: Entries = {}
        if own is None or own >= 1:  # of means times rows, which round
            found[SAMPLING, LEARNER] = self._amount(LEARNER, own, FORWARD, sampling[0])
        if explored:
            found[SAMPLING, EXPLORER] = self._amount(EXPLORER, explored, FORWARD, sampling[1])
        if self._has_old_log_probs(data):
            found[OLD, LEARNER] = self._amount(LEARNER, total, FORWARD, data.get("timing_s/old_log_prob"))
        if "timing_s/ref" in data:
            found[REFERENCE, LEARNER] = self._amount(LEARNER, total, FORWARD, data["timing_s/ref"])
        if self._asks_teacher:
            found[SCORING, TEACHER] = self._amount(TEACHER, total, FORWARD, 0.0)
        epochs = self.run.setting("actor_rollout_ref.actor.ppo_epochs", 1)
        found[TRAINING, LEARNER] = self._amount(LEARNER, total, BOTH * epochs, data.get("timing_s/update_actor"))
        if "timing_s/update_weights" in data:
            found[WEIGHTS, LEARNER] = Amount(0.0, 0.0, data["timing_s/update_weights"])
        known = [amount.seconds for amount in found.values() if amount.seconds is not None]
        if STEP in data:
            found[OTHER, LEARNER] = Amount(0.0, 0.0, max(0.0, data[STEP] - sum(known)))
        found[VALIDATION, LEARNER] = Amount(0.0, 0.0, data.get("timing_s/testing", 0.0))
        return found

    def _amount(self, who: str, tokens: float | None, factor: float, seconds: float | None) -> Amount:
        return Amount(tokens, _product(factor, self.sizes[who], tokens), seconds)

    def _has_old_log_probs(self, data: dict[str, float]) -> bool:
        """Distillation leaves them out although verl times the place where they would be."""
        bypassed = self.run.setting("algorithm.rollout_correction.bypass_mode", False)
        return "timing_s/old_log_prob" in data and not bypassed and not self.run.logged("s2l/distill/")

    @cached_property
    def _asks_teacher(self) -> bool:
        """The local loop, and a teacher on servers of its own, log no metric."""
        named = self.run.setting(MODEL_PATHS[TEACHER]) is not None
        return (named or self.run.logged("s2l/distill/")) and self.run.setting("s2l.distill.loss") != "sft"

    def totals(self, all_in: bool) -> Totals:
        """Sums over the phases: of everyone, or without the explorer's and the teacher's work.

        Args:
            all_in: False gives learner-only accounting, in which rollouts of others are free as if cached.
        """
        counted = [amount for (_, who), amount in self.entries.items() if all_in or who not in OTHERS]
        sampled = {who: amount.tokens for (phase, who), amount in self.entries.items() if phase == SAMPLING}
        own = [tokens for who, tokens in sampled.items() if all_in or who not in OTHERS]
        return Totals(
            sum_of(own) if own or not sampled else 0.0,
            sum_of(amount.flops for amount in counted),
            sum_of(amount.seconds for amount in counted),
            self._accelerator_seconds(all_in),
        )

    def spent_until(self, part: Literal["flops", "seconds"], all_in: bool = True) -> dict[int, float]:
        """FLOPs, or wall-clock seconds of steps and validations, from the first step to the end of each; empty where
        they are not known."""
        found, total = {0: 0.0}, 0.0
        for step, entries in self.steps.items():
            spent = sum_of(getattr(amount, part) for (_, who), amount in entries.items() if all_in or who not in OTHERS)
            if spent is None:
                return {}
            total += spent
            found[step] = total
        return found if self.steps else {}

    def _accelerator_seconds(self, all_in: bool) -> float | None:
        """Seconds that accelerators were held, busy or not; the explorer's and the teacher's in all-in accounting only.

        Those of a reward model, a teacher or samplers of their own are held all along; the plan names them."""
        own = _product(self.run.setting("trainer.nnodes"), self.run.setting("trainer.n_gpus_per_node"))
        if own is None or not self.run.series(STEP):
            return None
        announced = self.run.plan.get("accelerators")
        beside = announced if isinstance(announced, dict) else {}
        for who, count in beside.items():
            if isinstance(count, int) and who not in (LEARNER, EXPLORER) and (all_in or not who.startswith(TEACHER)):
                own += count
        held, total = self._explorers_at_first(), 0.0
        for step, seconds in self.run.series(STEP):
            data = self.run.by_step[step]
            testing, after = data.get("timing_s/testing", 0.0), data.get("s2l/explorer/num_gpus", 0.0)
            total += own * (seconds + testing) + (held * seconds + after * testing if all_in else 0.0)
            held = after
        return total

    def _explorers_at_first(self) -> float:
        """Those of the first step are in no metric if they were released after it."""
        slots = self.run.series("s2l/explorer/rollouts_per_group")
        colocated = self.run.setting("s2l.explorer.placement") == "colocated"
        if not slots or not slots[0][1] or self.has_stored_rollouts or colocated:
            return 0.0
        return float(
            _product(*(self.run.setting(f"s2l.explorer.{key}", 1) for key in ("nnodes", "n_gpus_per_node"))) or 0
        )

    @property
    def has_stored_rollouts(self) -> bool:
        """The explorer's rows were sampled before the run."""
        return self.run.setting("s2l.explorer.source") == "offline"

    @property
    def had_help(self) -> bool:
        """An explorer or a teacher worked for the run."""
        return any(who in OTHERS for _, who in self.entries)

    @property
    def unknown_sizes(self) -> list[str]:
        """Models that did work here and whose parameters could not be told."""
        return [who for who in MODEL_PATHS if self.sizes[who] is None and any(who == by for _, by in self.entries)]


def _counted(paths: Sequence[Path]) -> int | None:
    for path in paths:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if count := parameter_count(str(path)):
                return count
    return None


def _explorer_tokens(data: dict[str, float]) -> float:
    """Prompts and responses of the explorer's rows; a group's prompt is the same for all of its rows."""
    rows = data.get(f"s2l/source/{EXPLORER}/rows", 0.0)
    if not rows or TOKENS not in data:
        return 0.0
    return min(rows * data.get(PROMPT, 0.0) + data.get(f"s2l/source/{EXPLORER}/tokens", 0.0), data[TOKENS])


def _shares_of_sampling(data: dict[str, float]) -> tuple[float, float]:
    """Learner's and explorer's part of the time that rows took; both sample at once."""
    own, other = (data.get(f"s2l/source/{who}/gen_seconds_sum", 0.0) for who in (LEARNER, EXPLORER))
    return (own / (own + other), other / (own + other)) if own + other else (1.0, 0.0)


def _product(*values: float | None) -> float | None:
    """None where one is unknown."""
    known = [value for value in values if value is not None]
    return float(math.prod(known)) if len(known) == len(values) else None


def sum_of(values: Iterable[float | None]) -> float | None:
    """None where one is unknown, or there are none."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if found and len(known) == len(found) else None


def mean_of(values: Sequence[float | None]) -> float | None:
    """None where one is unknown, or there are none."""
    total = sum_of(values)
    return None if total is None else total / len(values)
