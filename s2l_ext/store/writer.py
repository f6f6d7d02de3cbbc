"""A store that is being written: what is there, what a new request may add, and where a response goes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from s2l_ext.errors import ConfigError, DataError, StateMismatch
from s2l_ext.store import shards
from s2l_ext.store.reader import MANIFEST, Manifest, Rollout, RolloutStore, is_store
from s2l_ext.utils.jsonl import Journal, whole_lines
from s2l_ext.utils.secrets import masked

JOURNAL = "journal.jsonl"
IDENTITY = ("model", "tokenizer", "dtype", "log_probs", "sampling")
"""What every response of a store depends on; data and rewards are kept problem by problem."""
KEY = "--out"
REST = -1
"""In place of a shard's number: responses outside this request, or whose shard is there already."""


class StoreWriter:
    """Opens or makes a store, and adds responses to it. One process at a time.

    A shard has all missing responses of a fixed slice of the prompts: which response ends first, or a kill, does not
    change it. ``journal.jsonl`` has the responses that no shard has yet; ``have`` are stored indices by prompt id.

    ``n`` counts responses a prompt, ``problems`` has digests by prompt id, ``shard_rows`` bounds a shard of more than
    one prompt. ``only_missing``: another ``n`` or other prompts may be requested than the last time. Raises
    ConfigError: ``n`` is smaller than the store's request; StateMismatch: the store has other responses or another
    request; DataError: the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, Any],
        n: int,
        problems: Mapping[str, str],
        only_missing: bool = False,
        shard_rows: int = shards.SHARD_ROWS,
    ) -> None:
        self.folder, self.problems = folder, problems
        self.have: dict[str, set[int]] = defaultdict(set)
        self._lines: dict[int, list[bytes]] = defaultdict(list)
        _refuse_foreign_files(folder)
        self._journal = Journal(folder / JOURNAL, "another `s2l explore` writes this store")
        try:
            request = request_of(n, problems)
            self.manifest, rows = self._open(masked(json.loads(json.dumps(fingerprint))), request, only_missing)
            self._slice(n, shards.prompts_of_a_shard(n, self.manifest.fingerprint["sampling"], shard_rows))
            self._save()
            for rollout, line in rows:
                self._note(rollout, line)
        except BaseException:
            self.close()
            raise

    def _open(
        self, fingerprint: dict[str, Any], request: dict[str, Any], only_missing: bool
    ) -> tuple[Manifest, list[tuple[Rollout, bytes]]]:
        """The manifest of the run to come, and responses of the journal that no shard has."""
        if not is_store(self.folder):
            shards.clear_leftovers(self.folder, ())
            return Manifest(fingerprint, request), []
        store = RolloutStore(self.folder, KEY)
        there = store.manifest
        if lacking := _first_lacking(there):
            raise DataError(f"{KEY}={self.folder}: {MANIFEST} is damaged: no usable {lacking}. Restore it from a copy.")
        refuse_other(f"{KEY}={self.folder}", there.fingerprint, fingerprint)
        if not only_missing:
            _refuse_other_request(self.folder, there.request, request)
        _refuse_fewer(self.folder, there.request, request)
        self.have.update((name, store.indices(name)) for name in store.counts())
        rows = rows_without_shard(store)
        journal = {rollout.prompt_id: problem for rollout, problem, _ in rows}
        _refuse_other_problems(self.folder, store.problems() | journal, self.problems)
        self._journal.cut()
        shards.clear_leftovers(self.folder, there.shards)
        merged = {name: united(there.fingerprint[name], fingerprint[name]) for name in ("data", "reward")}
        complete = there.complete and there.request == request
        manifest = Manifest(there.fingerprint | merged, request, complete, there.shards)
        return manifest, [(rollout, line) for rollout, _, line in rows]

    def _slice(self, n: int, prompts: int) -> None:
        """Number the shards to come: of each prompt its shard, of each shard how many responses it still lacks."""
        missing = {name: len(set(range(n)) - self.have.get(name, set())) for name in self.problems}
        parts = shards.slices([name for name, count in missing.items() if count], prompts)
        numbered = dict(zip(shards.free_numbers(self.folder), parts, strict=False))
        self._shard_of = {name: number for number, part in numbered.items() for name in part}
        self._left = {number: sum(missing[name] for name in part) for number, part in numbered.items()}

    def add(self, rollout: Rollout) -> None:
        """Keep a response; after this returns, a kill loses nothing of it. Raises DataError: it is there already, or
        cannot be written."""
        if rollout.index in self.have.get(rollout.prompt_id, ()):
            raise DataError(f"{KEY}={self.folder}: response {rollout.index} of prompt {rollout.prompt_id} came twice.")
        if self.manifest.complete:
            self._save(complete=False)
        line = shards.encode(rollout, self.problems[rollout.prompt_id])
        self._journal.add(line)
        self._note(rollout, line)

    def _note(self, rollout: Rollout, line: bytes) -> None:
        number = self._shard_of.get(rollout.prompt_id, REST)
        number = number if number in self._left else REST
        self.have[rollout.prompt_id].add(rollout.index)
        self._lines[number].append(line)
        if number != REST:
            self._left[number] -= 1
            if not self._left[number]:
                self._write_shard(number)

    def _write_shard(self, number: int) -> None:
        """Make a shard. A kill in between leaves its responses in the journal too, or there only."""
        free = (each for each in shards.free_numbers(self.folder) if each not in self._left)
        rows = list(map(shards.decode, self._lines[number]))
        shard = shards.write_shard(self.folder, next(free) if number == REST else number, rows)
        self._save(shards=tuple(sorted((*self.manifest.shards, shard), key=lambda each: each.name)))
        del self._lines[number]
        self._left.pop(number, None)
        self._journal.replace(line for lines in self._lines.values() for line in lines)

    def compact(self) -> None:
        """Make shards of all that the journal holds, whole slices or not."""
        for number in sorted(self._lines):
            self._write_shard(number)

    def finish(self) -> None:
        """The request was carried out: all of it is in shards."""
        self.compact()
        if not self.manifest.complete:
            self._save(complete=True)

    def _save(self, **changes: Any) -> None:
        self.manifest = dataclasses.replace(self.manifest, **changes)
        shards.write_manifest(self.folder, self.manifest)

    def close(self) -> None:
        self._journal.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(folder: Path) -> Iterator[tuple[Rollout, str, bytes]]:
    """Responses that were graded and may be in no shard, the digests of their problems, and their lines. Raises
    DataError: a whole line is damaged."""
    path = folder / JOURNAL
    for number, line in whole_lines(path):
        try:
            yield (*shards.decode(line), line)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}:{number}: not a response ({error}). Remove that line; its response is drawn again."
            ) from error


def rows_without_shard(store: RolloutStore) -> list[tuple[Rollout, str, bytes]]:
    """What :func:`read_journal` gives of a store and no shard has; a store without a journal has none."""
    if not (store.folder / JOURNAL).is_file():
        return []
    return [row for row in read_journal(store.folder) if row[0].index not in store.indices(row[0].prompt_id)]


def request_of(n: int, problems: Mapping[str, str]) -> dict[str, Any]:
    """A run's request, to compare with another's."""
    text = "\n".join(f"{name} {problems[name]}" for name in sorted(problems))
    return {"n": n, "prompts": len(problems), "problems": hashlib.sha256(text.encode()).hexdigest()[:16]}


def united(there: list[Any], here: list[Any]) -> list[Any]:
    """Both lists' items, each once, in order."""
    return there + [item for item in here if item not in there]


def refuse_other(place: str, there: Mapping[str, Any], here: Mapping[str, Any], now: str = "now") -> None:
    """Raise StateMismatch naming the first thing that responses depend on and that differs."""
    first, second = _flatten_identity(there), _flatten_identity(here)
    for name in dict.fromkeys([*first, *second]):
        if first.get(name) != second.get(name):
            was, is_now = (f"{e.get(name)} ({f.get('model_name')})" for e, f in ((first, there), (second, here)))
            raise StateMismatch(
                f"{place}: its responses were drawn with another {name}: {was}, {now} {is_now}. Use the same, or "
                "another folder."
            )


def _flatten_identity(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: fingerprint.get(name) for name in IDENTITY if name != "sampling"}
    return plain | dict(fingerprint.get("sampling") or {})


def _refuse_foreign_files(folder: Path) -> None:
    if folder.is_dir() and not is_store(folder):
        others = sorted(path.name for path in folder.iterdir() if not _is_beginning(path))
        if others:
            raise DataError(f"{KEY}={folder}: holds {', '.join(others[:3])} and no {MANIFEST}. Choose another folder.")


def _is_beginning(path: Path) -> bool:
    """What a run leaves that was killed before it had a manifest."""
    return path.name.endswith(".partial") or (path.name == JOURNAL and path.stat().st_size == 0)


def _first_lacking(manifest: Manifest) -> str | None:
    """The first thing that a continued run relies on and that is not there, or of another type."""
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
        f"{KEY}={folder}: the store was made for {asked.format(**there)}, now {asked.format(**here)} are requested. "
        "--only-missing keeps the existing responses and draws the rest. Or choose another --out."
    )


def _refuse_fewer(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    if here["n"] < there["n"]:
        raise ConfigError(
            f"--n {here['n']} is too small: {KEY}={folder} was made for {there['n']} responses a prompt. Give --n "
            f"{there['n']} or more, or choose another --out."
        )


def _refuse_other_problems(folder: Path, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    changed = sorted(name for name in there.keys() & here.keys() if there[name] != here[name])
    if changed:
        raise StateMismatch(
            f"{KEY}={folder}: {len(changed)} prompts have responses that were drawn or graded with another prompt, "
            f"ground truth or reward under the same id: {', '.join(changed[:3])}. Choose another --out."
        )
