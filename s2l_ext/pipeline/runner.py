"""Runs what the plan says, one stage after the other, and writes down every change before the next."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from s2l_ext.errors import ConfigError
from s2l_ext.pipeline.accounting import training_seconds
from s2l_ext.pipeline.digests import digest_of
from s2l_ext.pipeline.export import export, set_aside
from s2l_ext.pipeline.kinds import Command, Place, Prepared, kind_of, relative
from s2l_ext.pipeline.manifest import Entry
from s2l_ext.pipeline.plan import Decision, Plan
from s2l_ext.pipeline.process import run_guarded
from s2l_ext.pipeline.progress import Progress
from s2l_ext.pipeline.schema import Stage
from s2l_ext.utils import json_text
from s2l_ext.utils.files import write_atomically

LOG_FILE = "log.txt"


class StageFailed(Exception):
    """A stage's command ended with an error; carries its log."""

    def __init__(self, stage: str, returncode: int, log: Path) -> None:
        super().__init__(f"stage {stage} failed with exit code {returncode}.")
        self.log = log


class Runner:
    """Runs a plan's stages. ``token`` marks the processes that it starts."""

    def __init__(self, plan: Plan, token: str, progress: Progress) -> None:
        self.plan, self.token, self.progress = plan, token, progress

    def run(self, only: str | None = None) -> None:
        """Every stage that is not finished, or ``only`` one, whose inputs must be finished.

        Raises:
            StageFailed: a command ended with an error; stages before it stay finished.
            S2LError: an input, labels or the disk speak against a stage.
        """
        for number, stage in enumerate(self.plan.stages, start=1):
            if only not in (None, stage.name):
                continue
            decisions = self.plan.decisions()
            decision = decisions[stage.name]
            self.progress.stage(number, stage.name, decision)
            if decision.action == "wait":
                raise ConfigError(f"--only {stage.name}: {decision.why}. Run the pipeline without --only first.")
            if decision.action != "skip":
                self.plan.check_inside(stage)
                for warning in self.plan.check_final(decisions):
                    self.progress.say(f"warning: {warning}")
                self._run(stage, decision)
                self.plan.renew(stage)
            self.plan.digests.save()

    def _run(self, stage: Stage, decision: Decision) -> None:
        place, prepared = self.plan.place(stage), self.plan.prepared[stage.name]
        entry = self._open(stage, decision)
        done = decision.action == "export" or (decision.action == "resume" and kind_of(stage).finished(place, prepared))
        for command in [] if done else prepared.commands:
            self._command(place, command, entry)
        entry.status = "ran"
        self.plan.manifest.put(stage.name, entry)
        self._finish(place, prepared, entry)

    # ---- before ---------------------------------------------------------------------------------------------------

    def _open(self, stage: Stage, decision: Decision) -> Entry:
        """The stage's entry for this attempt, on disk before anything runs."""
        place, manifest = self.plan.place(stage), self.plan.manifest
        earlier = manifest.get(stage.name)
        if decision.action == "run" or earlier is None:
            self._set_aside(place, earlier)
            parts = self.plan.parts(stage)
            entry = Entry("running", digest_of(parts), parts, cost={"attempts": 0, "wall_seconds": 0.0})
        else:
            entry = earlier
            entry.cost["wall_seconds"] += _unwritten_seconds(entry, place.folder / LOG_FILE)
        if decision.action != "export":
            entry.status = "running"
        entry.cost["attempts"] += 1
        entry.cost["open_since"] = time.time()
        place.run.mkdir(parents=True, exist_ok=True)
        manifest.put(stage.name, entry)
        return entry

    def _set_aside(self, place: Place, earlier: Entry | None) -> None:
        kept = set_aside(place.folder)
        if kept and earlier:
            write_atomically(kept / "manifest_entry.json", json.dumps(asdict(earlier), indent=1))
        if kind_of(place.stage).makes_model:
            set_aside(self.plan.output(place.stage))

    # ---- while ----------------------------------------------------------------------------------------------------

    def _command(self, place: Place, command: Command, entry: Entry) -> None:
        if command.gives is not None and _is_given(command.gives):
            return
        log = place.folder / LOG_FILE
        tick = partial(self.progress.tick, place.run, self.plan.prepared[place.stage.name].steps)
        code = run_guarded(command.words, log, self.token, tick)
        if code != 0:
            entry.status = "failed"
            _close_attempt(entry)
            self.plan.manifest.put(place.stage.name, entry)
            raise StageFailed(place.stage.name, code, log)

    # ---- after ----------------------------------------------------------------------------------------------------

    def _finish(self, place: Place, prepared: Prepared, entry: Entry) -> None:
        kind, name = kind_of(place.stage), place.stage.name
        source, target = kind.exported(place), self.plan.output(place.stage)
        if kind.makes_model:
            self.progress.say(f"{name}: exporting {relative(place.pipeline, target)}")
            files = export(source, target, self.plan.digests, name)
        else:
            files = self.plan.digests.folder(source)
        output = {"files": files, "sha256": digest_of(files)}
        entry.result = {
            "inputs": self._inputs(place),
            "output": {"path": relative(place.pipeline, target), **(output if kind.reproducible else {})},
            "labels": seen.to_dict() if (seen := self.plan.seen_by(place.stage)) else None,
            **kind.result(place, prepared),
        }
        _close_attempt(entry)
        entry.cost |= {} if kind.reproducible else output
        if (count := prepared.accounting.get("accelerators")) is not None:
            trained = kind.makes_model
            seconds = training_seconds(place.run, count) if trained else count * entry.cost["wall_seconds"]
            entry.cost |= {"accelerators": count, "accelerator_seconds": seconds}
        entry.status = "done"
        self.plan.manifest.put(name, entry)

    def _inputs(self, place: Place) -> dict[str, Any]:
        return {
            name: [
                {"from": source.ref, "path": relative(place.pipeline, path), "sha256": self._content(path)}
                for source, path in group
            ]
            for name, group in place.inputs().items()
        }

    def _content(self, path: str) -> str:
        return self.plan.digests.path_digest(path)


def _is_given(path: Path) -> bool:
    """Whether a command's result is there and whole."""
    try:
        json_text.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True


def _close_attempt(entry: Entry) -> None:
    """A clock that was set back in between takes nothing away from earlier attempts."""
    now = time.time()
    entry.cost["wall_seconds"] += max(0.0, now - entry.cost.pop("open_since", now))


def _unwritten_seconds(entry: Entry, log: Path) -> float:
    """Seconds of an attempt that nobody lived to write down: until its last output."""
    since = entry.cost.pop("open_since", None)
    if since is None or not log.exists():
        return 0.0
    return max(0.0, log.stat().st_mtime - since)
