"""Does a store of explorer rollouts fit the run: its tokens, its prompts, and enough rollouts of each?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from s2l_ext.algorithms.explorer import build_schedule
from s2l_ext.config.schema import ExplorerConfig, S2LConfig
from s2l_ext.data.prompts import parquet_table, prompt_ids
from s2l_ext.data.rollout_store import RolloutStore
from s2l_ext.data.tokenizers import digest, snapshot
from s2l_ext.errors import ConfigError, DataError, TokenizerMismatch

KEY = "s2l.explorer.store"
LEARNER_KEY = "actor_rollout_ref.model.path"
SHOWN = 3
FIX = "Sample them with `s2l explore --only-missing`"


def check_store(cfg: DictConfig, s2l: S2LConfig, files: Sequence[Path]) -> list[str]:
    """Look at the store, whole, before a model loads.

    Args:
        files: the training data as local parquet; empty if its prompts cannot be listed here.

    Returns:
        Warnings, one sentence each.

    Raises:
        DataError: no store, a damaged one, or one of other prompts or of too few rollouts.
        TokenizerMismatch: it was sampled with other tokens than the learner's.
        ConfigError: its rollouts are greedy, and a divergence is taken on them.
    """
    explorer = s2l.explorer
    assert explorer is not None and explorer.store is not None
    store = RolloutStore(explorer.store, KEY)
    _check_tokenizer(store, str(cfg.actor_rollout_ref.model.path))
    sampling = store.fingerprint["sampling"]
    if s2l.distill is not None and s2l.distill.loss != "sft" and sampling["temperature"] == 0:
        raise ConfigError(
            f"{KEY}={explorer.store} was sampled at temperature 0: its rows are no samples, so no average over them is "
            f"s2l.distill.loss={s2l.distill.loss}. Sample again with `s2l explore --temperature 1`."
        )
    if not files:
        return [f"{KEY}={explorer.store}: prompts of data that is not parquet are looked for when they are drawn."]
    most = max(build_schedule(explorer.schedule, explorer.mix_steps, cfg.actor_rollout_ref.rollout.n).table(1))
    return check_counts(store.counts(), prompt_ids(parquet_table(list(files)), cfg.data.prompt_key), explorer, most)


def check_counts(counts: Mapping[str, int], ids: Sequence[str], explorer: ExplorerConfig, most: int) -> list[str]:
    """Whether every prompt has what its group may ask for.

    Args:
        counts: stored rollouts by prompt id.
        ids: the training prompts'.
        most: explorer sessions of a group at the first step.
    """
    place = f"{KEY}={explorer.store}"
    absent = [name for name in ids if not counts.get(name)]
    if len(absent) == len(ids):
        raise DataError(
            f"{place} holds {len(counts)} prompts and none of the {len(ids)} of data.train_files ({_first(ids)}): it "
            "belongs to another data set. Point it at this data's store, or sample one with `s2l explore --data`."
        )
    if explorer.too_few == "learner":
        short = [name for name in ids if counts.get(name, 0) < most]
        text = f"{place} has fewer than {most} rollouts of {len(short)} of {len(ids)} prompts"
        rest = "the learner samples the rest of their groups (s2l.explorer.too_few=learner)."
        return [f"{text}; {rest}"] if short else []
    if absent:
        raise DataError(
            f"{place} has no rollout of {len(absent)} of {len(ids)} prompts ({_first(absent)}). {FIX}, or set "
            "s2l.explorer.too_few=learner."
        )
    short = [name for name in ids if counts[name] < most]
    if short and explorer.too_few == "error":
        raise DataError(
            f"{place} has fewer than the {most} rollouts that a group may take of {len(short)} of {len(ids)} prompts "
            f"({_first(short)}: {counts[short[0]]}). {FIX} --n {most}, or set s2l.explorer.too_few to reuse or learner."
        )
    return []


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _check_tokenizer(store: RolloutStore, learner: str) -> None:
    if store.fingerprint["tokenizer"] == digest(snapshot(learner, LEARNER_KEY)):
        return
    raise TokenizerMismatch(
        f"{KEY}={store.folder} was sampled by {store.fingerprint.get('model_name')}, whose vocabulary, special ids or "
        f"chat template differ from {LEARNER_KEY}={learner}'s. Its tokens would be read as others; sample a store with "
        "a model of the learner's family."
    )
