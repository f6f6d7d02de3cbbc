"""Which labelled prompts each stage learns from: counted, checked for labels, and kept apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa

from s2l_ext.data.prompts import parquet_table, prompt_ids
from s2l_ext.errors import DataError
from s2l_ext.pipeline.digests import digest_of


@dataclass(frozen=True)
class Seen:
    """Prompts of one stage's train files. ``used``: its loss reads their labels."""

    stage: str
    used: bool
    ids: frozenset[str]

    def to_dict(self) -> dict[str, Any]:
        """For the manifest: number of different prompts and a digest of their sorted ids."""
        return {"used": self.used, "prompts": len(self.ids), "prompt_ids_sha256": digest_of(sorted(self.ids))}


def seen_by(stage: str, used: bool, files: Iterable[Path]) -> Seen:
    """Prompts of the files.

    Raises:
        DataError: a file cannot be read, or lacks labels that the stage's loss reads.
    """
    ids: set[str] = set()
    for path in files:
        ids.update(_read(stage, path, used))
    return Seen(stage, used, frozenset(ids))


def _read(stage: str, path: Path, used: bool) -> list[str]:
    try:
        table = parquet_table([path])
        rewards = table.read("reward_model") if "reward_model" in table.names else None
        ids = prompt_ids(table)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"stage {stage}: {path}: not a parquet file ({' '.join(str(error).split())[:200]}).") from error
    if used:
        _require_labels(stage, path, rewards, len(ids))
    return ids


def _require_labels(stage: str, path: Path, rewards: list[Any] | None, rows: int) -> None:
    values = rewards or [None] * rows
    missing = [row for row, value in enumerate(values) if not isinstance(value, dict) or _empty(value)]
    if missing:
        raise DataError(
            f"stage {stage}: {path}: {len(missing)} of {rows} rows have no reward_model.ground_truth, first row "
            f"{missing[0]}, and the stage's reward needs it. Add the labels, or set labels: false for a loss without."
        )


def _empty(reward: dict[str, Any]) -> bool:
    return reward.get("ground_truth") is None


def check_overlaps(seen: Iterable[Seen], allowed: bool) -> None:
    """Raise DataError when two stages read labels of the same prompts, unless the pipeline allows it."""
    users = [stage for stage in seen if stage.used]
    for first, second in combinations(users, 2):
        shared = first.ids & second.ids
        if shared and not allowed:
            raise DataError(
                f"stages {first.stage} and {second.stage} both learn from the labels of {len(shared)} prompts (of "
                f"{len(first.ids)} and {len(second.ids)}). Give them halves from a stage of kind split (1H, 2H), or "
                "set allow_label_overlap: true."
            )
