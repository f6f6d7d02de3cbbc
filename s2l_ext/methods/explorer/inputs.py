"""Does the explorer fit the run: a smaller sibling of the learner, or a store of its tokens and prompts?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from omegaconf import DictConfig

from s2l_ext.config.model_files import model_shape, parameter_count
from s2l_ext.config.run_steps import run_steps
from s2l_ext.config.verl_settings import GROUP_SIZE, setting, whole_number
from s2l_ext.data.prompts import PromptTable, parquet_table, prompt_ids
from s2l_ext.data.tokenizers import Trust, compare, digest, load_tokenizer, snapshot, token_digest, trust_of
from s2l_ext.errors import ConfigError, DataError, TokenizerMismatch
from s2l_ext.methods.distill.rules import stored_row_warnings
from s2l_ext.methods.explorer.config import LiveExplorer, OfflineExplorer
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.store.reader import RolloutStore
from s2l_ext.training.inputs import LEARNER_KEY, Inputs, check_model_path, prompt_tokens

EXPLORER_KEY = "s2l.explorer.model_path"
LENGTH_KEY = "actor_rollout_ref.rollout.max_model_len"


def check_models(explorer: LiveExplorer, inputs: Inputs) -> list[str]:
    """Compare a live explorer's model with the learner's. Raises ConfigError: no such model folder, or
    one with fewer positions than its engine would have; TokenizerMismatch: the two have different tokens."""
    learner_path = inputs.cfg.actor_rollout_ref.model.path
    check_model_path(EXPLORER_KEY, explorer.model_path, inputs.trust)
    warnings = compare(learner_path, explorer.model_path, LEARNER_KEY, EXPLORER_KEY, inputs.trust, both_render=False)
    warnings += _check_length(explorer, inputs.cfg)
    teaches = inputs.needed.distill is not None
    return warnings if teaches else [*warnings, *_size_warnings(learner_path, explorer.model_path)]


def _check_length(explorer: LiveExplorer, cfg: DictConfig) -> list[str]:
    """vLLM refuses more positions than the model has when its server starts, and takes all where none are asked for."""
    shape = model_shape(explorer.model_path)
    length = explorer.rollout_overrides.get("max_model_len", setting(cfg, LENGTH_KEY))
    if shape and shape.positions and length and length > shape.positions:
        raise ConfigError(
            f"the explorer's engine would have {LENGTH_KEY}={length}, and {EXPLORER_KEY}={explorer.model_path} has "
            f"{shape.positions} positions. Set s2l.explorer.rollout_overrides.max_model_len={shape.positions} or less."
        )
    length = length or (shape and shape.positions)
    needed = whole_number(cfg, "data.max_prompt_length") + whole_number(cfg, "data.max_response_length")
    if not length or length >= needed:
        return []
    return [
        f"the explorer's engine has {length} positions, fewer than data.max_prompt_length + data.max_response_length = "
        f"{needed}: verl ends a response where its row is full, and says nothing. Lower one of these, or raise "
        f"s2l.explorer.rollout_overrides.max_model_len if {EXPLORER_KEY}={explorer.model_path} has them."
    ]


def _size_warnings(learner_path: str, explorer_path: str) -> list[str]:
    learner, explorer = parameter_count(learner_path), parameter_count(explorer_path)
    if learner is None or explorer is None or explorer <= learner:
        return []
    return [
        f"the explorer is larger than the learner: {EXPLORER_KEY}={explorer_path} has {explorer:,} parameters, "
        f"{LEARNER_KEY}={learner_path} has {learner:,}. S2L-PO explores with the smaller sibling; are they swapped?"
    ]


KEY = "s2l.explorer.store"
SHOWN = 3
PROMPTS_COMPARED = 200
"""Prompts whose tokens are compared with those that the store's rollouts continue."""
FIX = "Sample them with `s2l explore --only-missing`"


def check_store(cfg: DictConfig, s2l: S2LConfig, files: Sequence[Path]) -> list[str]:
    """Check the whole store before a model loads; returns warnings. ``files``: the training data as local parquet;
    empty if its prompts cannot be listed here. Raises DataError: no store, a damaged one, or one of other prompts,
    other prompt tokens or of too few rollouts; TokenizerMismatch: other tokens than the learner's; ConfigError: its
    rollouts are greedy or traces, and the loss is an average over them."""
    explorer = s2l.explorer
    assert isinstance(explorer, OfflineExplorer)
    store = RolloutStore(explorer.store, KEY)
    warnings = _check_tokenizer(store, str(cfg.actor_rollout_ref.model.path), trust_of(cfg))
    _refuse_traces(store, s2l)
    sampling = store.fingerprint["sampling"]
    if s2l.distill is not None and s2l.distill.loss != "sft" and sampling["temperature"] == 0:
        raise ConfigError(
            f"{KEY}={explorer.store} was sampled at temperature 0: its rows are no samples, so no average over them is "
            f"s2l.distill.loss={s2l.distill.loss}. Sample again with `s2l explore --temperature 1`."
        )
    if not store.complete:
        warnings.append(
            f"{KEY}={store.folder} is not complete: `s2l explore` was interrupted, and responses outside of shards are "
            "not read. Run the same command again, then train."
        )
    if s2l.distill is not None:
        warnings += stored_row_warnings(s2l.distill, store.fingerprint, f"{KEY}={explorer.store}")
    if not files:
        return [
            *warnings,
            f"{KEY}={explorer.store}: prompts of data that is not parquet are looked for when they are drawn.",
        ]
    table = parquet_table(list(files))
    _check_prompt_tokens(store, table, cfg)
    ids, counts = prompt_ids(table, cfg.data.prompt_key), store.counts()
    kept = _prompts_read(ids, cfg)
    if kept is None:
        _require_some(counts, ids, explorer)
        return [
            *warnings,
            f"{KEY}={explorer.store}: data.train_max_samples takes prompts at random; whether each has its rollouts is "
            "seen when they are drawn.",
        ]
    slots = explorer.build(whole_number(cfg, GROUP_SIZE))
    warnings += check_counts(counts, kept, explorer, max(slots.table(1)))
    steps_of_a_pass = max(len(kept) // whole_number(cfg, "data.train_batch_size"), 1)
    steps = run_steps(cfg, steps_of_a_pass * whole_number(cfg, "trainer.total_epochs"))
    once = steps_of_a_pass if s2l.curriculum is None else 1
    return warnings + run_out_warnings(counts, kept, explorer, slots.table(steps.number if steps else 0), once)


def _refuse_traces(store: RolloutStore, s2l: S2LConfig) -> None:
    """No model sampled them: they have no log-probabilities, and no advantage or divergence is an average over them."""
    if "traces" in store.fingerprint and (s2l.distill is None or s2l.distill.loss != "sft"):
        loss = "the policy gradient" if s2l.distill is None else f"s2l.distill.loss={s2l.distill.loss}"
        raise ConfigError(
            f"{KEY}={store.folder} holds reasoning traces that no model sampled, which {loss} cannot use. Set "
            "s2l.distill.loss=sft, or sample a store with `s2l explore`."
        )


def _prompts_read(ids: Sequence[str], cfg: DictConfig) -> Sequence[str] | None:
    """The prompts that verl reads; None where it chooses them at random."""
    most = setting(cfg, "data.train_max_samples") or -1
    if not 0 < most < len(ids):
        return ids
    return None if setting(cfg, "data.shuffle") else ids[:most]


def check_counts(counts: Mapping[str, int], ids: Sequence[str], explorer: OfflineExplorer, most: int) -> list[str]:
    """Whether every prompt of ``ids`` has enough stored rollouts (``counts``, by prompt id) for its group, which takes
    ``most`` at the first step. A prompt that is there several times may have as many groups in that step."""
    place = f"{KEY}={explorer.store}"
    _require_some(counts, ids, explorer)
    total, times = len(set(ids)), None if explorer.on_exhausted == "reuse" else Counter(ids)
    absent = [name for name in dict.fromkeys(ids) if not counts.get(name)]
    short, each, wanted = _short(counts, times or dict.fromkeys(ids, 1), most)
    if explorer.on_exhausted == "learner":
        text = f"{place} has fewer than {most} rollouts{each} of {len(short)} of {total} prompts"
        rest = "the learner samples the rest of their groups (s2l.explorer.on_exhausted=learner)."
        return [f"{text}; {rest}"] if short else []
    if absent:
        raise DataError(
            f"{place} has no rollout of {len(absent)} of {total} prompts ({_first(absent)}). {FIX}, or set "
            "s2l.explorer.on_exhausted=learner."
        )
    if not short:
        return []
    text = (
        f"{place} has fewer than the {most} rollouts that a group may take{each} of {len(short)} of {total} prompts "
        f"({_first(short)}: {counts[short[0]]})"
    )
    if explorer.on_exhausted == "error":
        raise DataError(f"{text}. {FIX} --n {wanted}, or set s2l.explorer.on_exhausted to reuse or learner.")
    return [f"{text}: a group holds the same rollout several times (s2l.explorer.on_exhausted=reuse)."]


def run_out_warnings(
    counts: Mapping[str, int], ids: Sequence[str], explorer: OfflineExplorer, slots: Sequence[int], once: int
) -> list[str]:
    """Whether rollouts may run out in the middle of a run that stops then. ``slots``: explorer sessions of a group,
    step by step. ``once``: steps in which a row is drawn at most once."""
    most = sum(max(slots[start : start + once]) for start in range(0, len(slots), once))
    short, each, wanted = _short(counts, Counter(ids), most)
    if not short or explorer.on_exhausted != "error":
        return []
    return [
        f"{KEY}={explorer.store}: a prompt may be asked for {most} rollouts{each} in this run's {len(slots)} steps, "
        f"and {len(short)} of {len(set(ids))} prompts have fewer ({_first(short)}: {counts[short[0]]}); the step that "
        f"finds too few left ends the run (s2l.explorer.on_exhausted=error). {FIX} --n {wanted}, or set it to reuse or "
        "learner."
    ]


def _short(counts: Mapping[str, int], times: Mapping[str, int], most: int) -> tuple[list[str], str, int]:
    """Prompts with fewer rollouts than ``most`` for every time that the data has them; words for that where it is
    several; and how many rollouts are enough."""
    short = [name for name, rows in times.items() if counts.get(name, 0) < most * rows]
    again = max((times[name] for name in short), default=1)
    return short, f" for each of up to {again} rows with its prompt" if again > 1 else "", most * again


def _require_some(counts: Mapping[str, int], ids: Sequence[str], explorer: OfflineExplorer) -> None:
    if not any(counts.get(name) for name in ids):
        raise DataError(
            f"{KEY}={explorer.store} holds {len(counts)} prompts and none of the {len(ids)} of data.train_files "
            f"({_first(ids)}): it belongs to another data set. Point it at this data's store, or sample one with "
            "`s2l explore --data`."
        )


def _check_prompt_tokens(store: RolloutStore, table: PromptTable, cfg: DictConfig) -> None:
    """A worker would refuse each such session, hours later and one by one."""
    counts, ids = store.counts(), prompt_ids(table, cfg.data.prompt_key)
    rows = zip(ids, table.read(cfg.data.prompt_key), strict=True)
    tokens_of = prompt_tokens(cfg, load_tokenizer(cfg.actor_rollout_ref.model.path, LEARNER_KEY, trust_of(cfg)))
    for name, chat in islice(((n, c) for n, c in rows if counts.get(n) and isinstance(c, list)), PROMPTS_COMPARED):
        here, there = tokens_of(chat), store.rollout(name, 0).prompt_ids
        if here != there and len(here) <= whole_number(cfg, "data.max_prompt_length"):
            raise DataError(
                f"{KEY}={store.folder}: this run's prompt {name} has {len(here)} tokens, its stored rollouts were "
                f"sampled from {len(there)} other ones (--chat-option "
                f"{store.fingerprint['sampling'].get('chat_options') or 'none'}). The text, the chat template or "
                "data.apply_chat_template_kwargs changed; set them back, or sample again with `s2l explore`."
            )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _check_tokenizer(store: RolloutStore, learner: str, trust: Trust) -> list[str]:
    """The sampler rendered its prompts itself: where only templates differ, the prompts' tokens decide."""
    here, sampler = snapshot(learner, LEARNER_KEY, trust), store.fingerprint.get("model_name")
    if store.fingerprint["tokenizer"] == digest(here):
        return []
    if store.fingerprint.get("tokens") == token_digest(here):
        return [
            f"{KEY}={store.folder} was sampled by {sampler}, whose chat template differs from "
            f"{LEARNER_KEY}={learner}'s. Its rows are used where both make the same tokens of a prompt; a session of "
            "another prompt fails."
        ]
    raise TokenizerMismatch(
        f"{KEY}={store.folder} was sampled by {sampler}, whose vocabulary, special ids or chat template differ from "
        f"{LEARNER_KEY}={learner}'s. Its tokens would be read as others; sample a store with a model of the learner's "
        "family."
    )
