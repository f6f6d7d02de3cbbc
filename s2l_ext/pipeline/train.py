"""Stages of kind ``train``: ``s2l train`` with the inputs as overrides; its checkpoints let a killed stage continue."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from s2l_ext.config.verl_settings import total_steps
from s2l_ext.data.tokenizers import trust_of
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.launch.compose import compose_config, quoted, require_values
from s2l_ext.launch.job_files import FILES, MODELS
from s2l_ext.methods.distill.rules import TEACHER_KEY
from s2l_ext.methods.explorer.inputs import EXPLORER_KEY
from s2l_ext.methods.registry import S2LConfig, accuracy_settings, parse_s2l
from s2l_ext.pipeline.stage import S2L, Command, Job, Kind, SameTokens, Stage, in_stage
from s2l_ext.report.ledger import SAMPLING, STEP, TOKENS, Ledger, sum_of
from s2l_ext.report.results import Metrics, is_accuracy, read_metrics
from s2l_ext.report.run import Run, read_run
from s2l_ext.training.batch_fields import EXPLORER
from s2l_ext.training.checkpoint_files import exported, last_step
from s2l_ext.training.inputs import LEARNER_KEY, steps_of_run
from s2l_ext.training.judges import own_code
from s2l_ext.training.preflight import gpus_needed
from s2l_ext.training.rules import check_against_verl
from s2l_ext.training.run_log import FILE_NAME as METRICS_FILE
from s2l_ext.training.run_log import TRAINING_MARK, is_validation
from s2l_ext.utils import json_text

CHECKPOINTS = 4
"""Checkpoints that a run makes whose recipe makes none: the last is the stage's output, the others shorten a resume."""

KEPT_CHECKPOINTS = 2
"""Of these so many are kept, unless the recipe says: a kill while one is written leaves the one before."""

UNCOUNTED_SAVE_FREQ = 25
"""Steps between checkpoints where nothing says how many steps there will be."""

INPUT_KEYS: dict[str, tuple[str, ...]] = {
    "model": (LEARNER_KEY,),
    "teacher": (TEACHER_KEY, EXPLORER_KEY),
    "explorer": (EXPLORER_KEY,),
    "store": ("s2l.explorer.store",),
    "data": ("data.train_files",),
    "val": ("data.val_files",),
}
"""Override keys of each input. ``teacher`` is set only in those of the two blocks that the recipe has, and leaves the
explorer's to ``explorer`` where that is given, or to the ``store`` that a recipe without servers reads."""

OWNED = ("trainer.default_local_dir", "trainer.resume_mode", "trainer.resume_from_path")
CHECKPOINT = "actor_rollout_ref.actor.checkpoint"
RESULT_PREFIXES = ("val-core/", "s2l/distill/", "critic/score/mean", "critic/rewards/mean")
ATTEMPTS = "metrics*.jsonl"
"""The run's metrics, those of steps that were repeated, and those of attempts that left no checkpoint."""

PLAIN_VALUE = re.compile(r"[\w./:@%+-]+")


class Train(Kind):
    """GRPO, warm-up and distillation alike: the recipe says which."""

    needs_recipe = True
    makes_model = True

    def prepare(self, stage: Stage, options: Any) -> Job:
        with in_stage(stage.name):  # what s2l train would refuse, before any other stage has run
            given = [*stage.shared, *stage.overrides]
            if owned := [each for each in given if each.lstrip("+~").partition("=")[0] in OWNED]:
                raise ConfigError(
                    f"{owned[0]}: the pipeline sets {', '.join(OWNED)}, so that stages resume and do not write over "
                    "each other. Remove the override."
                )
            cfg = compose_config(str(stage.recipe), given)
            settings = dict(_input_settings(stage, cfg))
            _apply(stage, cfg, settings)
            own = _own_settings(stage, cfg)
            _apply(stage, cfg, own)
            words = [f"{_plus(key)}{key}={_hydra(value)}" for key, value in (settings | own).items()]
            return _job(stage, cfg, Command((*S2L, "train", "--config-name", str(stage.recipe), *given, *words)))

    def finished(self, stage: Stage, job: Job) -> bool:
        """The last checkpoint is complete, and its step has its line of metrics and its validation."""
        step = last_step(stage.run)
        if job.steps is None or step != job.steps or not (stage.run / METRICS_FILE).is_file():
            return False
        found = [data for number, data in read_metrics(stage.run / METRICS_FILE) if number == step]
        validates = (job.settings.get("trainer", {}).get("test_freq") or 0) > 0
        return any(TRAINING_MARK in data for data in found) and (not validates or any(map(is_validation, found)))

    def exported(self, stage: Stage) -> Path:
        step = last_step(stage.run)
        if step is None:
            raise DataError(
                f"stage {stage.name}: {stage.run} holds no checkpoint, so there is no model to pass on. The log "
                f"says why: {stage.folder / 'log.txt'}"
            )
        trained = [number for number, data in read_metrics(stage.run / METRICS_FILE) if TRAINING_MARK in data]
        if step < max(trained, default=0):
            raise DataError(
                f"stage {stage.name}: {stage.run} was trained to step {max(trained)}, and its last checkpoint is of "
                f"step {step}. Make the stage again with --from {stage.name}."
            )
        return exported(stage.run, step, *map(Path, stage.paths("model")))

    def result(self, stage: Stage) -> dict[str, Any]:
        """Final metrics, steps, tokens and estimated FLOPs; the same however often the run was interrupted."""
        run = read_run(stage.run)
        tokens = sum(data.get(TOKENS, 0.0) for step, data in run.by_step.items() if step > 0)
        return {
            "steps": run.steps,
            "tokens": int(tokens),
            "accuracy": _final_accuracy(run),
            "metrics": _final_metrics(run),
            "flops": _flops(Ledger(run)),
        }

    def accelerator_seconds(self, stage: Stage, job: Job, wall_seconds: float) -> float:
        """Of all steps, those that were repeated after an interruption included."""
        run = read_run(stage.run)
        attempts = [part for file in sorted(run.folder.glob(ATTEMPTS)) for part in _attempts(read_metrics(file))]
        ledgers = [Ledger(replace(run, metrics=part)) for part in attempts]
        return sum(ledger.totals(all_in=True).accelerator_seconds or 0.0 for ledger in ledgers)


def _input_settings(stage: Stage, cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Override key and path, or list of paths for an input that was given as a list."""
    for name in stage.given:
        paths = stage.paths(name)
        for key in _keys(stage, name, cfg):
            yield key, paths if isinstance(stage.inputs[name], list) or len(paths) > 1 else paths[0]


def _keys(stage: Stage, name: str, cfg: DictConfig) -> list[str]:
    """The keys that an input sets."""
    if name not in INPUT_KEYS:
        raise ConfigError(
            f"inputs.{name}: a train stage takes {', '.join(INPUT_KEYS)}. Set another key in the stage's overrides."
        )
    stored = OmegaConf.select(cfg, "s2l.explorer.source") == "offline"
    others = INPUT_KEYS["explorer"] if name == "teacher" and ("explorer" in stage.given or stored) else ()
    blocks = {key: key.rpartition(".")[0] for key in INPUT_KEYS[name]}
    keys = [key for key, block in blocks.items() if key not in others and OmegaConf.select(cfg, block) is not None]
    if not keys:
        raise ConfigError(
            f"inputs.{name}: recipe {stage.recipe} has no {' nor '.join(blocks.values())} to give it to. Take the "
            "input away, or use a recipe that has one."
        )
    return keys


def _own_settings(stage: Stage, cfg: DictConfig) -> dict[str, Any]:
    """Where the run writes, that it resumes, and checkpoints with a Hugging Face folder."""
    save, load = (list(OmegaConf.select(cfg, f"{CHECKPOINT}.{what}_contents")) for what in ("save", "load"))
    settings: dict[str, Any] = {
        "trainer.default_local_dir": str(stage.run),
        "trainer.resume_mode": "auto",
        f"{CHECKPOINT}.save_contents": [*save, *(["hf_model"] if "hf_model" not in save else [])],
        f"{CHECKPOINT}.load_contents": load,
    }
    if (cfg.trainer.save_freq or 0) <= 0:
        steps = _count_steps(cfg)
        settings["trainer.save_freq"] = UNCOUNTED_SAVE_FREQ if steps is None else max(1, steps // CHECKPOINTS)
    if cfg.trainer.max_actor_ckpt_to_keep is None:
        settings["trainer.max_actor_ckpt_to_keep"] = KEPT_CHECKPOINTS
    return settings


def _count_steps(cfg: DictConfig) -> int | None:
    """Steps of the run: the recipe's, or fewer if the data ends before them, once the data is there."""
    if all(Path(path).expanduser().is_file() for path in _as_list(cfg.data.train_files)):
        with contextlib.suppress(OSError, pa.ArrowException):  # the check of labels says what is wrong with the file
            steps = steps_of_run(cfg)
            return None if steps is None else steps.number
    return total_steps(cfg)


def _apply(stage: Stage, cfg: DictConfig, settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        try:
            with open_dict(cfg) if _plus(key) else contextlib.nullcontext():
                OmegaConf.update(cfg, key, value)
        except (OmegaConfBaseException, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{key} cannot be set in {stage.recipe}: {reason}") from error


def _plus(key: str) -> str:
    """The block s2l may get any key; its parser refuses wrong ones."""
    return "++" if key.startswith("s2l.") else ""


def _hydra(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    text = str(value)
    return text if PLAIN_VALUE.fullmatch(text) else quoted(text)


def _job(stage: Stage, cfg: DictConfig, command: Command) -> Job:
    require_values(cfg)
    s2l = parse_s2l(cfg.s2l)
    warnings = check_against_verl(s2l, cfg)
    plain = json.dumps(OmegaConf.to_container(cfg, resolve=True), sort_keys=True, default=str)
    train, val = (_as_list(cfg.data.get(key)) for key in ("train_files", "val_files"))
    return Job(
        commands=[command],
        settings=json_text.loads(stage.relative(plain)),
        files=[path for path in (*train, *val, *_named(stage, cfg)) if not path.startswith(f"{stage.out}/")],
        train_files=train,
        labels=s2l.distill is None or bool(accuracy_settings(s2l, cfg)),  # a loss toward a teacher needs none
        steps=_count_steps(cfg),
        accelerators=sum(gpus_needed(cfg, s2l).values()),
        warnings=warnings,
        same_tokens=_same_tokens(cfg, s2l),
    )


def _named(stage: Stage, cfg: DictConfig) -> list[str]:
    """Local models, stores and source files that recipe or overrides name, and no input."""
    given = {path for name in stage.given for path in stage.paths(name)}
    paths = dict.fromkeys([*own_code(cfg), *(OmegaConf.select(cfg, key) for key in (*MODELS, *FILES))])
    return [path for path in paths if path and path not in given and Path(path).expanduser().exists()]


def _same_tokens(cfg: DictConfig, s2l: S2LConfig) -> list[SameTokens]:
    """The stage's model beside every model that it shares token sequences with."""
    model = (LEARNER_KEY, cfg.actor_rollout_ref.model.path)
    others = {
        TEACHER_KEY: s2l.distill.teacher_path if s2l.distill else None,
        EXPLORER_KEY: s2l.live_explorer.model_path if s2l.live_explorer else None,
    }
    return [(model, (key, path), trust_of(cfg).code) for key, path in others.items() if path is not None]


def _as_list(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(path) for path in value]


# ---- results ------------------------------------------------------------------------------------------------------


def _attempts(lines: Metrics) -> list[Metrics]:
    """The timed steps, in parts in which they rise: every resume adds its repeated steps to one file."""
    parts: list[Metrics] = []
    for step, data in lines:
        if STEP in data:
            if not parts or step <= parts[-1][-1][0]:
                parts.append([])
            parts[-1].append((step, data))
    return parts


def _final_accuracy(run: Run) -> float | None:
    """Mean over the data sources of the last validation; None when there was none."""
    found = [[v for key, v in data.items() if is_accuracy(key) and v is not None] for _, data in run.metrics]
    last = next((values for values in reversed(found) if values), None)
    return float(np.mean(last)) if last else None


def _final_metrics(run: Run) -> dict[str, Any]:
    """Last value of every metric that tells what was learned; seconds do not."""
    final = {key: value for _, data in run.metrics for key, value in data.items() if key.startswith(RESULT_PREFIXES)}
    return {key: value for key, value in sorted(final.items()) if "timing" not in key and "seconds" not in key}


def _flops(ledger: Ledger) -> dict[str, float | None]:
    """By phase and in all; None where a model's size cannot be told. A stage that stored rollouts has paid for them."""
    paid = {key: amount.flops for key, amount in ledger.entries.items() if amount.flops != 0.0}
    if ledger.has_stored_rollouts:
        paid.pop((SAMPLING, EXPLORER), None)
    found = {name: sum_of(flops for (phase, _), flops in paid.items() if phase == name) for name, _ in paid}
    return {**found, "total": sum_of(found.values()) if found else 0}
