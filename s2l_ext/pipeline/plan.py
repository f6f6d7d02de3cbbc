"""``manifest.json``, and what every stage would do now: the one place that decides between skip, resume and run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from s2l_ext import __version__
from s2l_ext.config.parse import parse_block
from s2l_ext.errors import DataError, S2LError, StateMismatch
from s2l_ext.pipeline.checks import Seen, check_overlaps, compare_tokenizers, is_here, require_input, seen_by
from s2l_ext.pipeline.stage import Pipeline, Place, SameTokens, Stage
from s2l_ext.pipeline.train import last_step
from s2l_ext.utils import json_text
from s2l_ext.utils.digests import Digests, digest_of
from s2l_ext.utils.files import write_atomically
from s2l_ext.utils.secrets import masked

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"

Status = Literal["running", "ran", "failed", "done", "invalid"]
"""``ran``: the command ended well, its output is not exported yet. ``invalid``: done once, to be made again."""
Action = Literal["skip", "run", "resume", "export", "wait"]


@dataclass
class Entry:
    """One stage in the manifest.

    Attributes:
        parts: digests of everything that decides the result; ``fingerprint`` is the digest of all.
        result: what depends on the inputs alone: equal for a pipeline that was interrupted and one that was not.
        cost: seconds, attempts and files that hold seconds, which differ from run to run.
    """

    status: Status
    fingerprint: str
    parts: dict[str, Any]
    result: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of the files of a finished stage's output, wherever they are kept."""
        found: dict[str, str] = self.result["output"].get("files") or self.cost.get("files", {})
        return found


class Manifest:
    """Entries of the stages by name; every change is on disk when its method returns."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.name = folder / FILE_NAME, name
        self.entries = _read(self.path)

    def put(self, stage: str, entry: Entry) -> None:
        self.entries[stage] = entry
        self._write()

    def invalidate(self, stages: list[str]) -> None:
        """Stages that are made again although their fingerprint did not change."""
        for stage in self.entries.keys() & set(stages):
            self.entries[stage].status = "invalid"
        self._write()

    def to_dict(self) -> dict[str, Any]:
        stages = {name: asdict(entry) for name, entry in self.entries.items()}
        return {"schema_version": SCHEMA_VERSION, "pipeline": self.name, "stages": stages}

    def _write(self) -> None:
        write_atomically(self.path, json.dumps(masked(self.to_dict()), indent=1) + "\n")


def _read(path: Path) -> dict[str, Entry]:
    if not path.exists():
        return {}
    try:
        document = json_text.loads(path.read_text())
        version = document["schema_version"]
        if version == SCHEMA_VERSION:
            return {name: parse_block(Entry, entry, name) for name, entry in document["stages"].items()}
    except (AttributeError, KeyError, OSError, S2LError, TypeError, ValueError) as error:
        raise StateMismatch(
            f"{path} cannot be read ({error!r}). Restore it from a copy, or choose another --out to begin anew."
        ) from error
    raise StateMismatch(
        f"{path}: schema_version is {version!r}, this version reads {SCHEMA_VERSION}. Use the version that wrote it, "
        "or choose another --out."
    )


@dataclass(frozen=True)
class Decision:
    """``wait``: an input is not finished, so nothing can be said yet. ``stale``: an earlier result is set aside.

    ``damaged``: nothing changed, but the output is not what the stage wrote.
    """

    action: Action
    why: str
    stale: bool = False
    damaged: bool = False


Decisions = Mapping[str, Decision]


class Plan:
    """A checked pipeline with what is known of its stages.

    Raises:
        ConfigError, DataError: on construction, for everything that can be refused without looking at inputs.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.stages = pipeline, pipeline.stages
        self.manifest, self.digests = Manifest(pipeline.out, pipeline.name), Digests(pipeline.out / ".digests.json")
        self.prepared = {stage.name: self.place(stage).prepare() for stage in self.stages}
        self._seen: dict[tuple[str, ...], Seen] = {}
        self._compared: set[SameTokens] = set()
        self._differ: list[str] = []

    def renew(self, finished: Stage) -> None:
        """Make the stages ready again that take from a finished one: its data says how many steps they have."""
        for stage in self.stages:
            if finished.name in stage.upstream:
                self.prepared[stage.name] = self.place(stage).prepare()

    @property
    def warnings(self) -> list[str]:
        """Warnings of all stages, each once; after :meth:`check` also those of the models that are there."""
        found = [f"stage {s.name}: {warning}" for s in self.stages for warning in self.prepared[s.name].warnings]
        return list(dict.fromkeys([*found, *self._differ]))

    def place(self, stage: Stage) -> Place:
        return Place(self.pipeline, stage)

    # ---- checks ---------------------------------------------------------------------------------------------------

    def check(self, remade: Sequence[str] = ()) -> None:
        """Everything that is wrong before running, seen from the files that are there.

        Args:
            remade: stages that are made again whatever their output looks like.
        """
        decisions = self.decisions(remade)
        for stage in self.stages:
            self.check_inputs(stage, made=False)
            for file in self.prepared[stage.name].files:
                if is_here(file) and not Path(file).expanduser().is_file():
                    raise DataError(f"stage {stage.name}: data file {file} does not exist. Make it, or set another.")
            if decisions[stage.name].damaged:
                raise DataError(
                    f"output of stage {stage.name}: {decisions[stage.name].why}. Put the file back, or make it again "
                    f"with --from {stage.name}."
                )
        self.check_final(decisions)

    def check_inputs(self, stage: Stage, made: bool) -> None:
        """Inputs that finished stages ``made`` (a part that a reference names may not be there), or none makes."""
        for name, group in self.place(stage).inputs().items():
            for source, path in group:
                if made == (source.stage is not None) and (made or is_here(path)):
                    require_input(stage.name, name, path)

    def check_final(self, decisions: Decisions) -> list[str]:
        """Labels and tokenizers, as far as the files are there and no stage will change them.

        Returns:
            Warnings that :attr:`warnings` did not have before.
        """
        unsure = [self.pipeline.output(stage) for stage in self.stages if decisions[stage.name].action != "skip"]
        final = [s for s in self.stages if not _any_below(self.prepared[s.name].train_files, unsure)]
        check_overlaps([seen for s in final if (seen := self.seen_by(s))], self.pipeline.allow_label_overlap)
        pairs: dict[SameTokens, str] = {}
        for stage in self.stages:
            for (key_a, path_a), (key_b, path_b), trusted in self.prepared[stage.name].same_tokens:
                paths = self._first_model(path_a), self._first_model(path_b)
                there = all(Path(path).expanduser().is_dir() for path in paths)
                pair = (key_a, paths[0]), (key_b, paths[1]), trusted
                if there and not _any_below(paths, unsure) and pair not in self._compared:
                    pairs.setdefault(pair, stage.name)
        found = compare_tokenizers(pairs)
        self._compared.update(pairs)
        self._differ += found
        return found

    def _first_model(self, path: str) -> str:
        """The model whose tokenizer a stage's model has: the one that its training, or that before it, began with."""
        givers = {str(self.pipeline.output(stage)): stage for stage in self.stages if stage.does.makes_model}
        while path in givers and givers[path].inputs.get("model"):
            path = self.place(givers[path]).one("model")
        return path

    def seen_by(self, stage: Stage) -> Seen | None:
        """Prompts of a stage's train files; None for a stage that has none, or none yet."""
        prepared = self.prepared[stage.name]
        files = [Path(file).expanduser() for file in prepared.train_files]
        if not files or not all(file.is_file() for file in files):
            return None
        key = (stage.name, *map(self.digests.file, files))
        if key not in self._seen:
            self._seen[key] = seen_by(stage.name, prepared.labels, files)
        return self._seen[key]

    # ---- decisions ------------------------------------------------------------------------------------------------

    def decisions(self, remade: Sequence[str] = ()) -> dict[str, Decision]:
        """What happens to every stage now, in order."""
        found: dict[str, Decision] = {}
        for stage in self.stages:
            waits_for = [name for name in stage.upstream if found[name].action != "skip"]
            found[stage.name] = self._decide(stage, waits_for, stage.name in remade)
        return found

    def _decide(self, stage: Stage, waits_for: Sequence[str], remade: bool) -> Decision:
        entry = self.manifest.entries.get(stage.name)
        if waits_for:
            stale = entry is not None and entry.status in ("done", "invalid")
            return Decision("wait", f"{'made again after' if stale else 'waits for'} {', '.join(waits_for)}", stale)
        if entry is None:
            return Decision("run", "never run")
        if entry.status == "invalid" or remade:
            return Decision("run", "asked for with --from", stale=True)
        now = self.parts(stage)
        if digest_of(now) != entry.fingerprint:
            names = sorted(key for key in now.keys() | entry.parts.keys() if now.get(key) != entry.parts.get(key))
            return Decision("run", f"changed: {', '.join(names)}", stale=True)
        return self._same(stage, entry)

    def _same(self, stage: Stage, entry: Entry) -> Decision:
        """A stage whose fingerprint did not change."""
        if entry.status == "done":
            wrong = self.digests.damage(self.pipeline.output(stage), entry.files)
            return Decision("run", wrong, True, True) if wrong else Decision("skip", "finished, nothing changed")
        if entry.status == "ran":
            return Decision("export", "its command ended well, the output is not exported yet")
        word = "failed" if entry.status == "failed" else "interrupted"
        return Decision("resume", f"{word}{self._at_step(stage)}")

    def _at_step(self, stage: Stage) -> str:
        step, total = last_step(self.place(stage).run), self.prepared[stage.name].steps
        if step is None:
            return ", no checkpoint yet" if stage.does.makes_model else ""
        return f" at step {step}{f' of {total}' if total else ''}"

    # ---- fingerprints ---------------------------------------------------------------------------------------------

    def parts(self, stage: Stage) -> dict[str, str]:
        """Digests of everything that decides a stage's result; its inputs must be finished."""
        prepared = self.prepared[stage.name]
        return {
            "stage": digest_of(self.pipeline.relative(json.dumps(stage.definition, sort_keys=True, default=str))),
            "recipe": digest_of(prepared.settings),
            "s2l_ext": __version__,
            **{f"input {name}": digest for name, digest in self._input_digests(stage)},
            **{f"file {Path(file).name}": self.digests.of(file) for file in prepared.files},
        }

    def _input_digests(self, stage: Stage) -> Iterator[tuple[str, str]]:
        """Of a stage's output its fingerprint and the content; of anything else the content."""
        for name, group in self.place(stage).inputs().items():
            found = []
            for source, path in group:
                content, giver = self.digests.of(path), self.manifest.entries.get(source.stage or "")
                of_stage = [giver.fingerprint if giver else None, content]
                found.append(digest_of(of_stage) if source.stage else content)
            yield name, found[0] if len(found) == 1 else digest_of(found)


def _any_below(paths: Sequence[str], folders: Sequence[Path]) -> bool:
    return any(Path(path).expanduser().is_relative_to(folder) for path in paths for folder in folders)
