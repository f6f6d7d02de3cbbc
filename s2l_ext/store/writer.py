"""A store that is being written: what is there, what a new request may add, and where a response goes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from s2l_ext.errors import ConfigError, DataError, StateMismatch
from s2l_ext.store.journal import FILE_NAME, Journal, cannot_write
from s2l_ext.store.reader import MANIFEST, Manifest, Rollout, RolloutStore, is_store
from s2l_ext.store.shards import clear_leftovers, next_number, write_manifest, write_shard
from s2l_ext.utils.secrets import masked

IDENTITY = ("model", "tokenizer", "dtype", "log_probs", "sampling")
"""What every response of a store depends on; data and rewards are kept problem by problem."""
SHARD_ROWS = 4096
SHARD_BYTES = 32 << 20
KEY = "--out"


class StoreWriter:
    """Opens or makes a store, and adds responses to it. One process at a time.

    Args:
        folder: the store.
        fingerprint: of the responses to come.
        n: responses a prompt.
        problems: digest of each problem, by prompt id.
        only_missing: another ``n`` or other prompts may be asked for than the last time.

    Attributes:
        have: stored indices by prompt id.

    Raises:
        ConfigError: ``n`` is smaller than what the store was asked for.
        StateMismatch: the store's responses depend on something else, or it was made by another request.
        DataError: the folder holds other files, is damaged, in use, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, Any],
        n: int,
        problems: Mapping[str, str],
        only_missing: bool = False,
        shard_rows: int = SHARD_ROWS,
    ) -> None:
        self.folder, self.problems, self._shard_rows = folder, problems, shard_rows
        self._pending: list[tuple[Rollout, str]] = []
        self._bytes = 0
        _make_folder(folder)
        self._journal = Journal(folder)
        try:
            self._open(masked(json.loads(json.dumps(fingerprint))), request_of(n, problems), only_missing)
        except BaseException:
            self._journal.close()
            raise

    def _open(self, fingerprint: dict[str, Any], request: dict[str, Any], only_missing: bool) -> None:
        self.have: dict[str, set[int]] = {}
        if not is_store(self.folder):
            clear_leftovers(self.folder, ())
            self._take_up([], Manifest(fingerprint, request))
            return
        store = RolloutStore(self.folder, KEY)
        there = store.manifest
        if lacking := _lacking(there):
            raise DataError(f"{KEY}={self.folder}: {MANIFEST} is damaged: no usable {lacking}. Restore it from a copy.")
        refuse_other(f"{KEY}={self.folder}", there.fingerprint, fingerprint)
        if not only_missing:
            _refuse_other_request(self.folder, there.request, request)
        _refuse_fewer(self.folder, there.request, request)
        self.have = {name: store.indices(name) for name in store.counts()}
        journal = [row for row in self._journal.read() if row[0].index not in self.have.get(row[0].prompt_id, ())]
        _refuse_other_problems(self.folder, store.problems() | {r.prompt_id: p for r, p in journal}, self.problems)
        clear_leftovers(self.folder, there.shards)
        merged = {name: united(there.fingerprint[name], fingerprint[name]) for name in ("data", "reward")}
        complete = there.complete and there.request == request
        self._take_up(journal, Manifest(there.fingerprint | merged, request, complete, there.shards))

    def _take_up(self, journal: list[tuple[Rollout, str]], manifest: Manifest) -> None:
        self.manifest = manifest
        for rollout, problem in journal:
            self._note(rollout, problem)
        write_manifest(self.folder, manifest)

    def add(self, rollout: Rollout) -> None:
        """Keep a response; after this returns, a kill loses nothing of it.

        Raises:
            DataError: it is there already, or it cannot be written.
        """
        if rollout.index in self.have.get(rollout.prompt_id, ()):
            raise DataError(f"{KEY}={self.folder}: response {rollout.index} of prompt {rollout.prompt_id} came twice.")
        if self.manifest.complete:
            self._save(complete=False)
        problem = self.problems[rollout.prompt_id]
        self._bytes += self._journal.add(rollout, problem)
        self._note(rollout, problem)
        if len(self._pending) >= self._shard_rows or self._bytes >= SHARD_BYTES:
            self.compact()

    def _note(self, rollout: Rollout, problem: str) -> None:
        self._pending.append((rollout, problem))
        self.have.setdefault(rollout.prompt_id, set()).add(rollout.index)

    def compact(self, complete: bool = False) -> None:
        """Make a shard of what the journal holds. A kill in between leaves it in both, or in the journal only."""
        shards = self.manifest.shards
        if self._pending:
            shards = (*shards, write_shard(self.folder, next_number(self.folder, shards), self._pending))
        if (shards, complete) != (self.manifest.shards, self.manifest.complete):
            self._save(shards=shards, complete=complete)
        self._journal.clear()
        self._pending, self._bytes = [], 0

    def finish(self) -> None:
        """The request was carried out: all of it is in shards."""
        self.compact(complete=True)

    def _save(self, **changes: Any) -> None:
        self.manifest = dataclasses.replace(self.manifest, **changes)
        write_manifest(self.folder, self.manifest)

    def close(self) -> None:
        self._journal.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def request_of(n: int, problems: Mapping[str, str]) -> dict[str, Any]:
    """What a run asks for, to compare with what another one asked for."""
    text = "\n".join(f"{name} {problems[name]}" for name in sorted(problems))
    return {"n": n, "prompts": len(problems), "problems": hashlib.sha256(text.encode()).hexdigest()[:16]}


def united(there: list[Any], here: list[Any]) -> list[Any]:
    """Both lists' items, each once, in order."""
    return there + [item for item in here if item not in there]


def refuse_other(place: str, there: Mapping[str, Any], here: Mapping[str, Any], now: str = "now") -> None:
    """Raise StateMismatch naming the first thing that responses depend on and that differs."""
    first, second = _flat(there), _flat(here)
    for name in dict.fromkeys([*first, *second]):
        if first.get(name) != second.get(name):
            was, is_now = (f"{e.get(name)} ({f.get('model_name')})" for e, f in ((first, there), (second, here)))
            raise StateMismatch(
                f"{place}: its responses were drawn with another {name}: {was}, {now} {is_now}. Use the same, or "
                "another folder."
            )


def _flat(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: fingerprint.get(name) for name in IDENTITY if name != "sampling"}
    return plain | dict(fingerprint.get("sampling") or {})


def _make_folder(folder: Path) -> None:
    if folder.is_dir() and not is_store(folder):
        others = sorted(path.name for path in folder.iterdir() if not _is_beginning(path))
        if others:
            raise DataError(f"{KEY}={folder}: holds {', '.join(others[:3])} and no {MANIFEST}. Choose another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _is_beginning(path: Path) -> bool:
    """What a run leaves that was killed before it had a manifest."""
    return path.name.endswith(".partial") or (path.name == FILE_NAME and path.stat().st_size == 0)


def _lacking(manifest: Manifest) -> str | None:
    """The first thing that a run which goes on relies on and that is not there, or of another type."""
    wanted = {"n": int, "prompts": int, "problems": str}
    kinds = {"tokenizer": str, "sampling": dict, "data": list, "reward": list}
    asked, drawn = manifest.request, manifest.fingerprint
    lacking = [f"request.{name}" for name, kind in wanted.items() if not isinstance(asked.get(name), kind)]
    lacking += [f"fingerprint.{name}" for name, kind in kinds.items() if not isinstance(drawn.get(name), kind)]
    return next(iter(lacking), None)


def _refuse_other_request(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    different = [name for name in ("n", "problems") if there[name] != here[name]]
    if not different:
        return
    asked = {"n": "{n} responses a prompt", "problems": "{prompts} prompts, of digest {problems}"}[different[0]]
    raise StateMismatch(
        f"{KEY}={folder}: the store was asked for {asked.format(**there)}; now for {asked.format(**here)}. "
        "--only-missing keeps what is there and draws the rest; or choose another --out."
    )


def _refuse_fewer(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    if here["n"] < there["n"]:
        raise ConfigError(
            f"--n {here['n']} is too small: {KEY}={folder} was asked for {there['n']} responses a prompt. Give --n "
            f"{there['n']} or more, or choose another --out."
        )


def _refuse_other_problems(folder: Path, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    changed = sorted(name for name in there.keys() & here.keys() if there[name] != here[name])
    if changed:
        raise StateMismatch(
            f"{KEY}={folder}: {len(changed)} prompts have responses that were drawn or graded with another prompt, "
            f"ground truth or reward under the same id: {', '.join(changed[:3])}. Choose another --out."
        )
