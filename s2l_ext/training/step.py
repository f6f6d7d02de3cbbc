"""One step as every method sees it: its rows, read from the queue once, the plans of its prompts, and its metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from s2l_ext.errors import S2LError
from s2l_ext.training.batch_fields import LEARNER, PREFIX_FIELD, SOURCE_FIELD
from s2l_ext.training.outcomes import RolloutOutcome, accuracy_of
from s2l_ext.training.pending_prompts import PromptPlan
from s2l_ext.training.queue import KVBatchMeta, RowKey, is_padding, read, real_keys

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepRows:
    """Rows that a step trains on, in the batch's order; padding is left out. (B,) each: keys in the queue, who sampled
    the row, guidance tokens of its session, seconds of generation (None where rows do not say them), what the reward
    and the agent loop said beside it, and response tokens (None as the seconds)."""

    names: list[str]
    source_B: list[str]
    session_prefix_B: list[int]
    seconds_B: list[float] | None
    extra_B: list[dict[str, Any]]
    length_B: list[int] | None = None

    @classmethod
    def of(cls, batch: KVBatchMeta, mixed: bool, guided: bool, with_seconds: bool = True) -> StepRows:
        """Read them, without their tokens: these stay where they are. Rows of a ``mixed`` step carry their source, else
        all are the learner's, and seconds of generation; those of a ``guided`` one the number of their guidance
        tokens."""
        names, timed = real_keys(batch), mixed and with_seconds
        fields = [
            "extra_fields",
            *[SOURCE_FIELD] * mixed,
            *["metrics"] * timed,
            *[PREFIX_FIELD] * guided,
        ]
        rows = read(batch, fields, names)
        return cls(
            names,
            list(rows[SOURCE_FIELD]) if mixed else [LEARNER] * len(names),
            [int(value) for value in rows[PREFIX_FIELD]] if guided else [0] * len(names),
            [float(one["generate_sequences"]) for one in rows["metrics"]] if "metrics" in rows else None,
            [dict(extra) for extra in rows["extra_fields"]],
            [int(tag["response_len"]) for tag in batch.tags if not is_padding(tag)] if timed else None,
        )

    @cached_property
    def keys(self) -> list[RowKey]:
        """(B,) parsed."""
        return [RowKey.parse(name) for name in self.names]

    @property
    def prefix_len_B(self) -> list[int]:
        """(B,) guidance tokens at the head of the row: a session's first output has them all."""
        return [length if key.output == 0 else 0 for key, length in zip(self.keys, self.session_prefix_B, strict=True)]

    @property
    def acc_B(self) -> np.ndarray | None:
        """(B,) the verifier's accuracy; None when the reward function gave a row none."""
        values = [accuracy_of(extra, strict=False) for extra in self.extra_B]
        return None if any(value is None for value in values) else np.array(values, dtype=float)

    def outcomes(self, strict: bool = True) -> list[RolloutOutcome]:
        """The step's sessions and their verdicts, each by its last output. ``strict``: an accuracy that is no number in
        [0, 1] is an error; else it counts as none. Raises DataError: such an accuracy."""
        last: dict[tuple[str, int], int] = {}
        for place, key in enumerate(self.keys):
            best = last.get(key[:2])
            if best is None or self.keys[best].output < key.output:
                last[key[:2]] = place
        return [
            RolloutOutcome(uid, accuracy_of(self.extra_B[at], strict), self.source_B[at], self.session_prefix_B[at])
            for (uid, _), at in last.items()
        ]

    def timed_out(self) -> dict[str, float]:
        """``s2l/reward/timed_out``: rows whose judge ran out of time, of rewards that say so."""
        values = [(extra.get("reward_extra_info") or {}).get("timed_out") for extra in self.extra_B]
        counted = [bool(value) for value in values if value is not None]
        return {"s2l/reward/timed_out": float(sum(counted))} if counted else {}


@dataclass
class Step:
    """What the hooks of a step share.

    Attributes:
        number: counted from 1.
        batch: the rows in the queue; a hook that writes a column puts the new batch here.
        metrics: of the step, verl's and ours.
        plans: by prompt uid, in the order of the draws.
        rows: read once, before advantages.
        outcomes: of the rows and of groups that verl dropped because their rewards were alike.
        old_log_probs: they were computed, because the loss reads them.
        filtered: plans may be of groups that verl dropped, for example because their rewards were alike.
    """

    number: int
    batch: KVBatchMeta
    metrics: dict[str, Any]
    plans: dict[str, PromptPlan]
    rows: StepRows
    outcomes: list[RolloutOutcome] = field(default_factory=list)
    old_log_probs: bool = True
    filtered: bool = False


def require_rows(
    rows: StepRows, planned: Mapping[str, range], who: str, cause: str, filtered: bool = False
) -> dict[str, float]:
    """``s2l/<who>/missing_rows``: sessions that failed, of those ``planned`` by prompt uid; verl trains on a group
    without their rows. ``filtered``: verl may have dropped groups, so one without a row counts for nothing. Raises
    S2LError: not one of the sessions' rows arrived."""
    arrived = {key[:2] for key in rows.keys}
    uids = {uid for uid, _ in arrived} if filtered else planned.keys()
    sessions = {(uid, number) for uid in uids for number in planned[uid]}
    wanted, missing = len(sessions), len(sessions - arrived)
    if wanted and missing == wanted:
        raise S2LError(
            f"none of the step's {wanted} {who} sessions gave a row: {cause}. The error is "
            "in the log above ('Error in _run_prompt'). Restart with the same command to resume from the checkpoint."
        )
    if missing:
        logger.warning("%d of %d %s rows are missing: their sessions failed", missing, wanted, who)
    return {f"s2l/{who}/missing_rows": float(missing)}


def row_order(uids: Sequence[str], names: Sequence[str]) -> list[int]:
    """Places of the rows sorted by prompt as ``uids`` lists them (others last), session and output."""
    rank = {uid: number for number, uid in enumerate(uids)}
    keys = [RowKey.parse(name) for name in names]
    by_draw = [(rank.get(key.uid, len(rank)), key.session, key.output) for key in keys]
    return sorted(range(len(names)), key=by_draw.__getitem__)
