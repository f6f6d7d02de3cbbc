"""Several stores of one explorer as one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.store.reader import Manifest, Rollout, RolloutStore, Shard
from s2l_ext.store.shards import SHARD_ROWS, prompts_of_a_shard, slices, write_manifest, write_shard
from s2l_ext.store.writer import JOURNAL, refuse_other, request_of, rows_without_shard, united
from s2l_ext.utils.files import staged, writable

KEY = "--merge"


def merge(folders: Sequence[Path], out: Path, shard_rows: int = SHARD_ROWS) -> dict[str, int]:
    """Write the responses of all stores into a new one, which appears whole or not at all; returns the number of
    ``responses``, of ``prompts``, and of ``duplicates`` that were left out. Raises ConfigError: the folders; DataError:
    a store that is damaged or has responses in no shard, or two that differ under one prompt and index; StateMismatch:
    their responses depend on different things."""
    if len({folder.resolve() for folder in folders}) < max(len(folders), 2):
        raise ConfigError(f"{KEY} {' '.join(map(str, folders))}: expected two or more different stores.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is there already. A merged store is a new folder.")
    stores = [RolloutStore(folder, KEY) for folder in folders]
    for store in stores:
        _refuse_unfinished(store)
    for store in stores[1:]:
        refuse_other(f"{KEY} {stores[0].folder}", stores[0].fingerprint, store.fingerprint, f"in {store.folder}")
    problems = _unite_problems(stores)
    n = max(store.manifest.request["n"] for store in stores)
    prompts = prompts_of_a_shard(n, stores[0].fingerprint["sampling"], shard_rows)
    with writable(out.parent, "Choose another --out."), staged(out) as stage:
        shards = [
            write_shard(
                stage, number, [(row, problems[name]) for name in names for row in _unite_responses(stores, name)]
            )
            for number, names in enumerate(slices(list(problems), prompts))
        ]
        write_manifest(stage, _make_manifest(stores, problems, n, shards))
    written = sum(shard.rows for shard in shards)
    read = sum(shard.rows for store in stores for shard in store.manifest.shards)
    return {"responses": written, "prompts": len(problems), "duplicates": read - written}


def _refuse_unfinished(store: RolloutStore) -> None:
    waiting = len(rows_without_shard(store))
    if waiting:
        raise DataError(
            f"{KEY} {store.folder}: {waiting} graded responses are in {JOURNAL} and in no shard: its run was stopped, "
            "or still runs. Finish it with the same `s2l explore` command, then merge."
        )


def _unite_problems(stores: Sequence[RolloutStore]) -> dict[str, str]:
    """Digests by prompt id; the same prompt must be the same problem everywhere."""
    problems: dict[str, str] = {}
    for store in stores:
        for name, problem in store.problems().items():
            if problems.setdefault(name, problem) != problem:
                raise DataError(
                    f"{KEY}: prompt {name} of {store.folder} was drawn or graded with another prompt, ground truth or "
                    "reward than in a store before it. They cannot be one store."
                )
    return problems


def _unite_responses(stores: Sequence[RolloutStore], name: str) -> list[Rollout]:
    """The prompt's responses of all stores by index, each once."""
    found: dict[int, tuple[Rollout, RolloutStore]] = {}
    for store in stores:
        for rollout in store.rollouts(name):
            first, owner = found.setdefault(rollout.index, (rollout, store))
            if first != rollout:
                raise DataError(
                    f"{KEY}: {owner.folder} and {store.folder} hold different responses {rollout.index} of prompt "
                    f"{name}. Stores to merge hold different prompts, or the same responses."
                )
    return [found[index][0] for index in sorted(found)]


def _make_manifest(
    stores: Sequence[RolloutStore], problems: dict[str, str], n: int, shards: Sequence[Shard]
) -> Manifest:
    """Requests the most that a store requested; complete if every prompt has that."""
    lists: dict[str, list[Any]] = {
        name: reduce(united, (store.fingerprint[name] for store in stores)) for name in ("data", "reward")
    }
    indices = (set().union(*(store.indices(name) for store in stores)) for name in problems)
    complete = all(store.complete for store in stores) and all(set(range(n)) <= found for found in indices)
    return Manifest(stores[0].fingerprint | lists, request_of(n, problems), complete, tuple(shards))
