"""Runs what the plan says, one stage after the other, and writes down every change before the next."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from s2l_ext.config.model_files import is_local
from s2l_ext.errors import ConfigError, DataError, ResourceError
from s2l_ext.pipeline.checks import require_model
from s2l_ext.pipeline.plan import FILE_NAME, Decision, Entry, Plan
from s2l_ext.pipeline.stage import Command, Job, Stage
from s2l_ext.pipeline.table import Progress
from s2l_ext.utils import json_text
from s2l_ext.utils.digests import Digests, digest_of
from s2l_ext.utils.files import to_disk, write_atomically
from s2l_ext.utils.processes import CommandFailed, end_marked, run_supervised
from s2l_ext.utils.run_lock import held

LOG_FILE, CARD_FILE = "log.txt", "README.md"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[str]:
    """Hold the output folder; yields the token that marks this run's processes.

    A lock whose process is gone is taken over, after the processes that it left have been ended.

    Raises:
        ResourceError: another pipeline works in the folder; names its process id and host.
    """
    token = uuid.uuid4().hex
    way_out = "Wait for it or choose another --out"
    with held(folder, "pipeline", way_out, token, lambda left: end_marked(str(left.get("token")))):
        yield token


class Runner:
    """Runs a plan's stages. ``token`` marks the processes that it starts."""

    def __init__(self, plan: Plan, token: str, progress: Progress) -> None:
        self.plan, self.token, self.progress = plan, token, progress

    def run(self, only: str | None = None) -> None:
        """Every stage that is not finished, or ``only`` one, whose inputs must be finished.

        Raises:
            CommandFailed: a command ended with an error; stages before it stay finished.
            S2LError: an input, labels or the disk rule a stage out.
        """
        for number, stage in enumerate(self.plan.stages, start=1):
            if only not in (None, stage.name):
                continue
            decisions = self.plan.decisions()
            decision = decisions[stage.name]
            self.progress.announce(number, stage.name, decision)
            if decision.action == "wait":
                raise ConfigError(f"--only {stage.name}: {decision.why}. Run the pipeline without --only first.")
            if decision.action != "skip":
                self.plan.check_inputs(stage, made=True)
                for warning in self.plan.check_final(decisions):
                    self.progress.say(f"warning: {warning}")
                self._run_stage(stage, decision)
                self.plan.renew(stage)
            self.plan.digests.save()

    def _run_stage(self, stage: Stage, decision: Decision) -> None:
        job, entry = self.plan.jobs[stage.name], self._open_entry(stage, decision)
        done = decision.action == "export" or (decision.action == "resume" and stage.does.finished(stage, job))
        for command in [] if done else job.commands:
            self._run_command(stage, command, entry)
        entry.status = "ran"
        self.plan.manifest.put(stage.name, entry)
        self._finish(stage, job, entry)

    def _open_entry(self, stage: Stage, decision: Decision) -> Entry:
        """The stage's entry for this attempt, on disk before anything runs."""
        entry = self.plan.manifest.entries.get(stage.name)
        if decision.action == "run" or entry is None:
            kept = set_aside(stage.folder)
            if kept and entry:
                write_atomically(kept / "manifest_entry.json", json.dumps(asdict(entry), indent=1))
            if stage.does.makes_model:
                set_aside(stage.result_folder)
            parts = self.plan.parts(stage)
            entry = Entry("running", digest_of(parts), parts, cost={"attempts": 0, "wall_seconds": 0.0})
        else:
            entry.cost["wall_seconds"] += _unwritten_seconds(entry, stage.folder / LOG_FILE)
        if decision.action != "export":
            entry.status = "running"
        entry.cost["attempts"] += 1
        entry.cost["open_since"] = time.time()
        stage.run.mkdir(parents=True, exist_ok=True)
        self.plan.manifest.put(stage.name, entry)
        return entry

    def _run_command(self, stage: Stage, command: Command, entry: Entry) -> None:
        """Run a command, unless its result is there and whole."""
        if command.gives is not None:
            with contextlib.suppress(OSError, ValueError):
                json_text.loads(command.gives.read_text())
                return
        log = stage.folder / LOG_FILE
        tick = partial(self.progress.tick, stage.run, self.plan.jobs[stage.name].steps)
        code = run_supervised(command.words, log, tick, marker=self.token).returncode
        if code != 0:
            entry.status = "failed"
            _close_attempt(entry)
            self.plan.manifest.put(stage.name, entry)
            raise CommandFailed(f"stage {stage.name}", code, log)

    def _finish(self, stage: Stage, job: Job, entry: Entry) -> None:
        """Export what the stage made, and write down its result and cost."""
        kind, target, result = stage.does, stage.relative(stage.result_folder), stage.does.result(stage)
        if kind.makes_model:
            self.progress.say(f"{stage.name}: exporting {target}")
            model = kind.exported(stage)
            write_card(model, stage, self.plan)
            files = export(model, stage.result_folder, self.plan.digests, stage.name)
        else:
            files = self.plan.digests.folder(stage.run)
        output = {"files": files, "sha256": digest_of(files)}
        prompts, sha256 = self.plan.prompts_of(stage), self.plan.digests.of
        entry.result = {
            "inputs": {
                name: [{"from": s.ref, "path": stage.relative(s.path), "sha256": sha256(s.path)} for s in given]
                for name, given in stage.given.items()
            },
            "output": {"path": target, **(output if kind.reproducible else {})},
            "labels": prompts.to_dict() if prompts else None,
            **result,
        }
        _close_attempt(entry)
        entry.cost |= {} if kind.reproducible else output
        if job.accelerators is not None:
            seconds = kind.accelerator_seconds(stage, job, entry.cost["wall_seconds"])
            entry.cost |= {"accelerators": job.accelerators, "accelerator_seconds": seconds}
        entry.status = "done"
        self.plan.manifest.put(stage.name, entry)


def _close_attempt(entry: Entry) -> None:
    """A clock that was set back in between takes nothing away from earlier attempts."""
    now = time.time()
    entry.cost["wall_seconds"] += max(0.0, now - entry.cost.pop("open_since", now))


def _unwritten_seconds(entry: Entry, log: Path) -> float:
    """Seconds of an attempt that no process recorded: until its last output."""
    since = entry.cost.pop("open_since", None)
    if since is None or not log.exists():
        return 0.0
    return max(0.0, log.stat().st_mtime - since)


# ---- a model, linked or copied: whole or not there -----------------------------------------------------------------


def write_card(folder: Path, stage: Stage, plan: Plan) -> None:
    """Write the model card, ``README.md``. Base model and licence are those of the base's own card."""
    from huggingface_hub import ModelCardData, metadata_load

    settings: Any = plan.jobs[stage.name].settings
    own = settings.get("actor_rollout_ref", {}).get("model", {}).get("path", "unknown")
    path = plan.first_model((stage.paths("model") or [own])[0])
    card = Path(path).expanduser() / CARD_FILE
    known = (metadata_load(card) or {}) if card.is_file() else {}
    base = str(known.get("base_model", path))
    data = ModelCardData(base_model=None if is_local(base) else base, license=known.get("license"))
    title = f"Stage {stage.name} of the pipeline {plan.pipeline.name}"
    write_atomically(folder / CARD_FILE, f"---\n{data.to_yaml()}\n---\n\n# {title}\n\nSee {FILE_NAME}.\n")


def export(source: Path, target: Path, digests: Digests, stage: str) -> dict[str, str]:
    """Link or copy a Hugging Face folder: temporary folder, fsync, checksums, rename.

    Returns:
        SHA-256 of every file, by relative name.

    Raises:
        DataError: ``source`` is no complete model, or a copy differs from its original.
        ResourceError: no space, or the folder cannot be written. Nothing half-written is left under ``target``.
    """
    require_model(source, f"stage {stage}")
    wanted = digests.folder(source)
    if target.is_dir() and digests.folder(target) == wanted:
        return wanted  # exported before, by a run that was killed before it could say so
    partial = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    try:
        for file in (path for path in source.rglob("*") if path.is_file()):
            copy = partial / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy_file(file, copy)
        if damage := digests.damage(partial, wanted):
            raise DataError(f"stage {stage}: {damage}. Check the disk and run the pipeline again.")
        set_aside(target)
        os.rename(partial, target)
        to_disk(target.parent)
    except OSError as error:
        free = shutil.disk_usage(target.parent).free if target.parent.is_dir() else 0
        raise ResourceError(
            f"stage {stage}: its model cannot be written to {target}: {error.strerror or error} "
            f"({free / 1e9:.2f} GB free). Training is finished and kept: make space and run the pipeline again, "
            "without --from: it goes on from here."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return digests.folder(target)


def copy_file(file: Path, copy: Path) -> None:
    """A hard link, or a copy where the file system has none; waits until the disk has it."""
    try:
        os.link(file.resolve(), copy)
    except OSError:
        shutil.copy2(file, copy)
    to_disk(copy)


def set_aside(path: Path) -> Path | None:
    """Rename to ``<name>.stale-N``, the first N that is free; None when there is nothing."""
    if not path.exists():
        return None
    number = 1
    while (kept := path.with_name(f"{path.name}.stale-{number}")).exists():
        number += 1
    return path.rename(kept)
