"""``manifest.json``, and what every stage would do now: the one place that decides between skip, resume and run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from s2l_ext import __version__
from s2l_ext.config.parse import parse_block
from s2l_ext.errors import DataError, S2LError, StateMismatch
from s2l_ext.pipeline.checks import (
    TrainPrompts,
    check_overlaps,
    compare_tokenizers,
    is_here,
    read_prompts,
    require_input,
)
from s2l_ext.pipeline.stage import Pipeline, SameTokens, Source, Stage, StageBlock
from s2l_ext.training.checkpoint_files import last_step
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
    """Entries of the stages by name; every change is on disk when its method returns. ``order``: the file's stages;
    one that was renamed or taken out keeps its entry."""

    def __init__(self, folder: Path, name: str, order: Sequence[str] = ()) -> None:
        self.path, self.name, self.order = folder / FILE_NAME, name, list(order)
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
        return {"schema_version": SCHEMA_VERSION, "pipeline": self.name, "order": self.order, "stages": stages}

    def _write(self) -> None:
        write_atomically(self.path, json.dumps(masked(self.to_dict()), indent=1) + "\n")


def _read(path: Path) -> dict[str, Entry]:
    if not path.exists():
        return {}
    try:
        document = json_text.loads(path.read_text())
        if (version := document["schema_version"]) != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {version!r}, this version reads {SCHEMA_VERSION}")
        return {name: parse_block(Entry, entry, name) for name, entry in document["stages"].items()}
    except (AttributeError, KeyError, OSError, S2LError, TypeError, ValueError) as error:
        raise StateMismatch(
            f"{path} cannot be read ({error!r}). Restore it from a copy, use the version that wrote it, or choose "
            "another --out to begin anew."
        ) from error


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
        self.manifest = Manifest(pipeline.out, pipeline.name, [stage.name for stage in self.stages])
        self.digests = Digests(pipeline.out / ".digests.json")
        self.jobs = {stage.name: stage.prepare() for stage in self.stages}
        self._prompts: dict[tuple[str, ...], TrainPrompts] = {}
        self._compared: dict[SameTokens, list[str]] = {}
        """Warnings of the tokenizers that were compared."""

    def renew(self, finished: Stage) -> None:
        """Make the stages ready again that take from a finished one: its data says how many steps they have."""
        self.jobs |= {stage.name: stage.prepare() for stage in self.stages if finished.name in stage.upstream}

    @property
    def warnings(self) -> list[str]:
        """Warnings of all stages, each once; after :meth:`check` also those of the models that are there."""
        found = [f"stage {name}: {warning}" for name, job in self.jobs.items() for warning in job.warnings]
        return list(dict.fromkeys([*found, *chain(*self._compared.values())]))

    # ---- checks ---------------------------------------------------------------------------------------------------

    def check(self, remade: Sequence[str] = ()) -> None:
        """Everything that is wrong before running, seen from the files that are there.

        Args:
            remade: stages that are made again whatever their output looks like.
        """
        decisions = self.decisions(remade)
        for stage in self.stages:
            self.check_inputs(stage, made=False)
            for file in self.jobs[stage.name].files:
                if is_here(file) and not Path(file).expanduser().exists():
                    raise DataError(f"stage {stage.name}: data file {file} does not exist. Make it, or set another.")
            if decisions[stage.name].damaged:
                raise DataError(
                    f"output of stage {stage.name}: {decisions[stage.name].why}. Put the file back, or make it again "
                    f"with --from {stage.name}."
                )
        self.check_final(decisions)

    def check_inputs(self, stage: Stage, made: bool) -> None:
        """Inputs that finished stages ``made`` (a part that a reference names may not be there), or none makes."""
        for name, given in stage.given.items():
            for source in given:
                if made == (source.stage is not None) and (made or is_here(source.path)):
                    require_input(stage.name, name, source.path)

    def check_final(self, decisions: Decisions) -> list[str]:
        """Labels and tokenizers, as far as the files are there and no stage will change them.

        Returns:
            Warnings that :attr:`warnings` did not have before.
        """
        unsure = [stage.result_folder for stage in self.stages if decisions[stage.name].action != "skip"]
        final = [s for s in self.stages if not _any_below(self.jobs[s.name].train_files, unsure)]
        prompts = [self.prompts_of(stage) for stage in final]
        check_overlaps([each for each in prompts if each], self.pipeline.allow_label_overlap)
        new: dict[SameTokens, str] = {}
        for name, job in self.jobs.items():
            for (key_a, path_a), (key_b, path_b), trusted in job.same_tokens:
                a, b = self.first_model(path_a), self.first_model(path_b)
                pair = ((key_a, a), (key_b, b), trusted)
                there = all(Path(path).expanduser().is_dir() for path in (a, b)) and not _any_below((a, b), unsure)
                if there and pair not in self._compared:
                    new.setdefault(pair, name)
        found = compare_tokenizers(new)
        self._compared |= found
        return list(chain(*found.values()))

    def first_model(self, path: str) -> str:
        """The model whose tokenizer a stage's model has: the one that its training, or that before it, began with."""
        givers = {str(stage.result_folder): stage for stage in self.stages if stage.does.makes_model}
        while path in givers and givers[path].paths("model"):
            path = givers[path].one("model")
        return path

    def prompts_of(self, stage: Stage) -> TrainPrompts | None:
        """Prompts of a stage's train files; None for a stage that has none, or none yet."""
        job = self.jobs[stage.name]
        files = [Path(file).expanduser() for file in job.train_files]
        if not files or not all(file.is_file() for file in files):
            return None
        key = (stage.name, *map(self.digests.file, files))
        if key not in self._prompts:
            self._prompts[key] = read_prompts(stage.name, job.labels, files)
        return self._prompts[key]

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
        return self._decide_unchanged(stage, entry)

    def _decide_unchanged(self, stage: Stage, entry: Entry) -> Decision:
        if entry.status == "done":
            wrong = self.digests.damage(stage.result_folder, entry.files)
            return Decision("run", wrong, True, True) if wrong else Decision("skip", "finished, nothing changed")
        if entry.status == "ran":
            return Decision("export", "its command ended well, the output is not exported yet")
        word = "failed" if entry.status == "failed" else "interrupted"
        step, total = last_step(stage.run), self.jobs[stage.name].steps
        if step is None:
            return Decision("resume", f"{word}, no checkpoint yet" if stage.does.makes_model else word)
        return Decision("resume", f"{word} at step {step}{f' of {total}' if total else ''}")

    # ---- fingerprints ---------------------------------------------------------------------------------------------

    def parts(self, stage: Stage) -> dict[str, str]:
        """Digests of everything that decides a stage's result; its inputs must be finished."""
        job = self.jobs[stage.name]
        written = {item.name: getattr(stage, item.name) for item in fields(StageBlock) if item.name != "name"}
        return {
            "stage": digest_of(stage.relative(json.dumps(written, sort_keys=True, default=str))),
            "recipe": digest_of(job.settings),
            "s2l_ext": __version__,
            **{f"input {name}": self._input_digest(given) for name, given in stage.given.items()},
            **{f"file {_file_name(stage, file, job.files)}": self.digests.of(file) for file in job.files},
        }

    def _input_digest(self, sources: Sequence[Source]) -> str:
        """Of a stage's output its fingerprint and the content; of anything else the content."""
        found = []
        for source in sources:
            content, giver = self.digests.of(source.path), self.manifest.entries.get(source.stage or "")
            found.append(digest_of([giver.fingerprint if giver else None, content]) if source.stage else content)
        return found[0] if len(found) == 1 else digest_of(found)


def _file_name(stage: Stage, file: str, files: Sequence[str]) -> str:
    """What a fingerprint calls a file: its name, or its path where another file has the name too."""
    name = Path(file).name
    return stage.relative(file) if any(Path(each).name == name for each in {*files} - {file}) else name


def _any_below(paths: Sequence[str], folders: Sequence[Path]) -> bool:
    return any(Path(path).expanduser().is_relative_to(folder) for path in paths for folder in folders)
