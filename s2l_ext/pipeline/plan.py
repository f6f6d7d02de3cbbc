"""What every stage would do now, and why: the one place that decides between skip, resume and run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from s2l_ext import __version__
from s2l_ext.config.model_files import is_local
from s2l_ext.data.tokenizers import Trust, compare
from s2l_ext.errors import DataError
from s2l_ext.pipeline.digests import Digests, damage, digest_of
from s2l_ext.pipeline.export import require_model
from s2l_ext.pipeline.graph import check_names, ordered, upstream
from s2l_ext.pipeline.kinds import Place, Prepared, SameTokens, in_stage, kind_of, output_folder, prepare, relative
from s2l_ext.pipeline.labels import Seen, check_overlaps, seen_by
from s2l_ext.pipeline.manifest import Entry, Manifest, output_files
from s2l_ext.pipeline.schema import Pipeline, Stage
from s2l_ext.pipeline.train_kind import last_step

DATA_SUFFIXES = (".parquet", ".json", ".jsonl")
MODEL_INPUTS = ("model", "teacher", "explorer", "models")
Action = Literal["skip", "run", "resume", "export", "wait"]


@dataclass(frozen=True)
class Decision:
    """``wait``: an input is not finished, so nothing can be said yet. ``stale``: an earlier result is set aside.

    ``damaged``: nothing changed, but the output is not what the stage wrote.
    """

    action: Action
    why: str
    stale: bool = False
    damaged: bool = False


class Plan:
    """A checked pipeline with what is known of its stages.

    Raises:
        ConfigError, DataError: on construction, for everything that can be refused before anything runs.
    """

    def __init__(self, pipeline: Pipeline, manifest: Manifest, digests: Digests) -> None:
        check_names(pipeline)
        for stage in pipeline.stages:
            kind_of(stage)
        self.pipeline, self.manifest, self.digests = pipeline, manifest, digests
        self.stages = ordered(pipeline)
        self._seen: dict[tuple[str, ...], Seen] = {}
        self._compared: set[SameTokens] = set()
        self._differ: list[str] = []
        self.prepared: dict[str, Prepared] = {stage.name: prepare(pipeline, stage) for stage in self.stages}

    def renew(self, finished: Stage) -> None:
        """Make the stages ready again that take from a finished one: its data says how many steps they have."""
        for stage in self.stages:
            if finished.name in upstream(self.pipeline, stage):
                self.prepared[stage.name] = prepare(self.pipeline, stage)

    @property
    def warnings(self) -> list[str]:
        """Warnings of all stages, each once; after :meth:`check` also those of the models that are there."""
        found = [f"stage {s.name}: {warning}" for s in self.stages for warning in self.prepared[s.name].warnings]
        return list(dict.fromkeys([*found, *self._differ]))

    def place(self, stage: Stage) -> Place:
        return Place(self.pipeline, stage)

    # ---- checks ---------------------------------------------------------------------------------------------------

    def check(self, remade: Sequence[str] = ()) -> None:
        """Everything that speaks against running, seen from the files that are there.

        Args:
            remade: stages that are made again whatever their output looks like.
        """
        decisions = self.decisions(remade)
        for stage in self.stages:
            self._check_outside(stage)
            if decisions[stage.name].damaged:
                raise DataError(
                    f"output of stage {stage.name}: {decisions[stage.name].why}. Put the file back, or make it again "
                    f"with --from {stage.name}."
                )
        self.check_final(decisions)

    def check_final(self, decisions: Mapping[str, Decision]) -> list[str]:
        """Labels and tokenizers, as far as the files are there and no stage will change them.

        Returns:
            Warnings that :attr:`warnings` did not have before.
        """
        self._check_labels(decisions)
        found = self._check_tokenizers(decisions)
        self._differ += found
        return found

    def _check_tokenizers(self, decisions: Mapping[str, Decision]) -> list[str]:
        """Raise TokenizerMismatch for models that share token sequences, as far as they are there and final; warn of
        chat templates that differ."""
        unsure = [self.output(stage) for stage in self.stages if decisions[stage.name].action != "skip"]
        found: dict[SameTokens, str] = {}
        for stage in self.stages:
            for (key_a, path_a), (key_b, path_b), trusted in self.prepared[stage.name].same_tokens:
                pair = (key_a, self._first_model(path_a)), (key_b, self._first_model(path_b)), trusted
                paths = [Path(path).expanduser() for _, path in pair[:2]]
                final = not any(path.is_relative_to(folder) for path in paths for folder in unsure)
                if final and pair not in self._compared and all(path.is_dir() for path in paths):
                    found.setdefault(pair, stage.name)
        warnings = _compare_apart(found)
        self._compared.update(found)
        return warnings

    def _first_model(self, path: str) -> str:
        """The model whose tokenizer a stage's model has: the one that its training, or that before it, began with."""
        givers = {str(self.output(stage)): stage for stage in self.stages if kind_of(stage).makes_model}
        while path in givers and givers[path].inputs.get("model"):
            path = self.place(givers[path]).one("model")
        return path

    def _check_outside(self, stage: Stage) -> None:
        """Inputs and data files that no stage makes."""
        for name, group in self.place(stage).inputs().items():
            for source, path in group:
                if source.stage is None and _is_here(path):
                    require_input(stage, name, path)
        for file in self.prepared[stage.name].files:
            if _is_here(file) and not Path(file).expanduser().is_file():
                raise DataError(f"stage {stage.name}: data file {file} does not exist. Make it, or set another.")

    def check_inside(self, stage: Stage) -> None:
        """Inputs that finished stages made: a part that a reference names may not be there."""
        for name, group in self.place(stage).inputs().items():
            for source, path in group:
                if source.stage is not None:
                    require_input(stage, name, path)

    def _check_labels(self, decisions: Mapping[str, Decision]) -> None:
        """Raise DataError for missing labels, or labels that two stages read, as far as the files are final."""
        open_stages = {name for name, decision in decisions.items() if decision.action != "skip"}
        known = [self.seen_by(stage) for stage in self.stages if not open_stages.intersection(self.data_from(stage))]
        check_overlaps([seen for seen in known if seen], self.pipeline.allow_label_overlap)

    def data_from(self, stage: Stage) -> list[str]:
        """Stages in whose folders a stage's train files are."""
        files = self.prepared[stage.name].train_files
        givers = [(giver.name, f"{self.output(giver)}/") for giver in self.stages]
        return [name for name, folder in givers if any(file.startswith(folder) for file in files)]

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
            needs = upstream(self.pipeline, stage)
            found[stage.name] = self.decide(
                stage, [name for name in needs if found[name].action != "skip"], stage.name in remade
            )
        return found

    def decide(self, stage: Stage, waits_for: Sequence[str] = (), remade: bool = False) -> Decision:
        """What happens to a stage now, given the inputs that are not finished."""
        entry = self.manifest.get(stage.name)
        if waits_for:
            stale = entry is not None and entry.status in ("done", "invalid")
            return Decision("wait", f"{'made again after' if stale else 'waits for'} {', '.join(waits_for)}", stale)
        if entry is None:
            return Decision("run", "never run")
        if entry.status == "invalid" or remade:
            return Decision("run", "asked for with --from", stale=True)
        changed = self._changes(stage, entry)
        return Decision("run", changed, stale=True) if changed else self._same(stage, entry)

    def _same(self, stage: Stage, entry: Entry) -> Decision:
        """A stage whose fingerprint did not change."""
        if entry.status == "done":
            wrong = damage(self.digests, self.output(stage), output_files(entry))
            return Decision("run", wrong, True, True) if wrong else Decision("skip", "finished, nothing changed")
        if entry.status == "ran":
            return Decision("export", "its command ended well, the output is not exported yet")
        word = "failed" if entry.status == "failed" else "interrupted"
        return Decision("resume", f"{word}{self._at_step(stage)}")

    def _at_step(self, stage: Stage) -> str:
        step, total = last_step(self.place(stage).run), self.prepared[stage.name].steps
        if step is None:
            return ", no checkpoint yet" if kind_of(stage).makes_model else ""
        return f" at step {step}{f' of {total}' if total else ''}"

    # ---- fingerprints ---------------------------------------------------------------------------------------------

    def parts(self, stage: Stage) -> dict[str, str]:
        """Digests of everything that decides a stage's result; its inputs must be finished."""
        prepared = self.prepared[stage.name]
        definition = relative(self.pipeline, json.dumps({**asdict(stage), "name": ""}, sort_keys=True, default=str))
        return {
            "stage": digest_of(definition),
            "recipe": digest_of(prepared.settings),
            "s2l_ext": __version__,
            **{f"input {name}": digest for name, digest in self._input_digests(stage)},
            **{f"file {Path(file).name}": self.digests.path_digest(file) for file in prepared.files},
        }

    def _input_digests(self, stage: Stage) -> Iterator[tuple[str, str]]:
        for name, group in self.place(stage).inputs().items():
            found = [self.input_digest(source.stage, path) for source, path in group]
            yield name, found[0] if len(found) == 1 else digest_of(found)

    def input_digest(self, stage: str | None, path: str) -> str:
        """Of a finished stage's output: its fingerprint and the content; of anything else the content."""
        content = self.digests.path_digest(path)
        if stage is None:
            return content
        entry = self.manifest.get(stage)
        return digest_of([entry.fingerprint if entry else None, content])

    def _changes(self, stage: Stage, entry: Entry) -> str:
        """Names of the parts that differ; empty when the fingerprint is the same."""
        now = self.parts(stage)
        if digest_of(now) == entry.fingerprint:
            return ""
        names = sorted(key for key in now.keys() | entry.parts.keys() if now.get(key) != entry.parts.get(key))
        return f"changed: {', '.join(names)}"

    def output(self, stage: Stage) -> Path:
        return output_folder(self.pipeline, stage)


def _compare_apart(pairs: Mapping[SameTokens, str]) -> list[str]:
    """Compare in a process that ends: tokenizers bring torch along, which the pipeline would hold while stages run."""
    if not pairs:
        return []
    found: list[str] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as worker:
        for ((key_a, path_a), (key_b, path_b), trusted), stage in pairs.items():
            with in_stage(stage):
                warnings = worker.submit(compare, path_a, path_b, key_a, key_b, Trust(trusted), False).result()
            found += [f"stage {stage}: {warning}" for warning in warnings]
    return found


def _is_here(path: str) -> bool:
    """Whether a path means a file of this machine; models may be hub ids, data files may not."""
    return "://" not in path and (Path(path).suffix in DATA_SUFFIXES or is_local(path))


def require_input(stage: Stage, name: str, path: str) -> None:
    """Raise DataError for an input that is not there, or a model's folder that is not complete."""
    where, local = f"stage {stage.name}: inputs.{name}", Path(path).expanduser()
    if not local.exists():
        raise DataError(f"{where}: {path} does not exist. Correct the reference, or models and splits.")
    if local.is_dir() and name in MODEL_INPUTS:
        require_model(local, where)
