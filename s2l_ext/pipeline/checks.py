"""What is wrong with a stage: labels that are missing or read twice, tokenizers that differ, inputs not there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from s2l_ext.config.model_files import is_local
from s2l_ext.data.prompts import parquet_table, prompt_ids
from s2l_ext.data.tokenizers import Trust, compare
from s2l_ext.errors import DataError
from s2l_ext.pipeline.stage import SameTokens, in_stage
from s2l_ext.utils import json_text
from s2l_ext.utils.digests import digest_of

DATA_SUFFIXES = (".parquet", ".json", ".jsonl")
MODEL_INPUTS = ("model", "teacher", "explorer", "models")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
INDEX = "model.safetensors.index.json"
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")


# ---- labels -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainPrompts:
    """Prompts of one stage's train files. ``used``: its loss reads their labels."""

    stage: str
    used: bool
    ids: frozenset[str]

    def to_dict(self) -> dict[str, Any]:
        """For the manifest: number of different prompts and a digest of their sorted ids."""
        return {"used": self.used, "prompts": len(self.ids), "prompt_ids_sha256": digest_of(sorted(self.ids))}


def read_prompts(stage: str, used: bool, files: Sequence[Path]) -> TrainPrompts:
    """Prompts of the files.

    Raises:
        DataError: a file cannot be read, or lacks labels that the stage's loss reads.
    """
    with in_stage(stage):
        return TrainPrompts(stage, used, frozenset(name for path in files for name in _read_ids(path, used)))


def _read_ids(path: Path, used: bool) -> list[str]:
    table = parquet_table([path])
    ids = prompt_ids(table)
    rewards = table.read("reward_model") if "reward_model" in table.names else [None] * len(ids)
    labelled = [isinstance(reward, dict) and reward.get("ground_truth") is not None for reward in rewards]
    if used and not all(labelled):
        raise DataError(
            f"{path}: {labelled.count(False)} of {len(ids)} rows have no reward_model.ground_truth, first row "
            f"{labelled.index(False)}, and the stage's reward needs it. Add the labels."
        )
    return ids


def check_overlaps(prompts: Iterable[TrainPrompts], allowed: bool) -> None:
    """Raise DataError when two stages read labels of the same prompts, unless the pipeline allows it."""
    for first, second in combinations([stage for stage in prompts if stage.used], 2):
        shared = first.ids & second.ids
        if shared and not allowed:
            raise DataError(
                f"stages {first.stage} and {second.stage} both learn from the labels of {len(shared)} prompts (of "
                f"{len(first.ids)} and {len(second.ids)}). Give them halves from a stage of kind split (1H, 2H), or "
                "set allow_label_overlap: true."
            )


# ---- tokenizers ---------------------------------------------------------------------------------------------------


def compare_tokenizers(pairs: Mapping[SameTokens, str]) -> dict[SameTokens, list[str]]:
    """Warnings of chat templates that differ. Raises TokenizerMismatch with the stage's name.

    In a process that ends: tokenizers bring torch along, which the pipeline would hold while stages run.
    """
    if not pairs:
        return {}
    found = {}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as worker:
        for pair, stage in pairs.items():
            (key_a, path_a), (key_b, path_b), trusted = pair
            with in_stage(stage):
                warnings = worker.submit(compare, path_a, path_b, key_a, key_b, Trust(trusted), False).result()
            found[pair] = [f"stage {stage}: {warning}" for warning in warnings]
    return found


# ---- inputs -------------------------------------------------------------------------------------------------------


def is_here(path: str) -> bool:
    """Whether a path means a file of this machine; models may be hub ids, data files may not."""
    return "://" not in path and (Path(path).suffix in DATA_SUFFIXES or is_local(path))


def require_input(stage: str, name: str, path: str) -> None:
    """Raise DataError for an input that is not there, or a model's folder that is not complete."""
    where, local = f"stage {stage}: inputs.{name}", Path(path).expanduser()
    if not local.exists():
        raise DataError(f"{where}: {path} does not exist. Correct the reference, or models and splits.")
    if local.is_dir() and name in MODEL_INPUTS:
        require_model(local, where)


def require_model(folder: Path, what: str) -> None:
    """Raise DataError unless a folder holds configuration, weights (all that an index lists) and a tokenizer."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        missing.append("weights (*.safetensors)")
    if not any((folder / name).is_file() for name in TOKENIZER):
        missing.append("a tokenizer (tokenizer.json)")
    missing += [name for name in _indexed(folder) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{what}: {folder} is no complete Hugging Face model: {', '.join(missing)} missing.")


def _indexed(folder: Path) -> list[str]:
    try:
        return sorted(set(json_text.loads((folder / INDEX).read_text())["weight_map"].values()))
    except FileNotFoundError:
        return []
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / INDEX}: not an index of weights ({error!r}). Restore it from a copy.") from error
