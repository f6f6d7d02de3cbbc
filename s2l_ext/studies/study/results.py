"""What a study keeps of a run: a small file, which may come from another machine; and what a run may cost."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from s2l_ext.config.run_steps import STEPS_KEY, run_steps
from s2l_ext.config.verl_settings import flattened
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.evaluation.model_folder import model_digest
from s2l_ext.report.ledger import Ledger
from s2l_ext.report.run import Run, read_run
from s2l_ext.report.seeds import COUNTED
from s2l_ext.training.batch_fields import LEARNER
from s2l_ext.training.inputs import steps_of_run
from s2l_ext.training.judges import own_code
from s2l_ext.utils import json_text
from s2l_ext.utils.digests import digest_of, file_digests
from s2l_ext.utils.files import write_atomically

VALIDATIONS = "validation"
MODEL = "model"
"""Folder of the learner at the end, with ``trainer.save_freq`` above 0."""
ALL = ""
"""Name of the curve over all data sources."""
IGNORED = ("trainer", "ray_kwargs", "transfer_queue")
"""Parts of the configuration that say where and how a run is run, beside the report's ``COUNTED`` of them."""

BEFORE = {
    "prompts": "trainer.total_training_steps, trainer.total_epochs or data.train_batch_size",
    "optimizer_steps": "trainer.total_training_steps, actor.ppo_mini_batch_size or actor.ppo_epochs",
    "rollouts": "actor_rollout_ref.rollout.n, or what changes prompts",
}
"""Quantities that the configuration tells, and what changes them."""
AFTER = ("learner_tokens", "flops")
"""Quantities that a finished run tells: tokens that the learner sampled, FLOPs of everyone by the report's model."""


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        fingerprint: of configuration, models and data files; runs of an arm share it.
        commit: of the code; "" where it is not known.
        accuracies: data source -> accuracy of each held-out problem, in the order of their texts.
        curve: data source (``ALL``: over all) -> (step, mean accuracy).
        spent: quantities of :data:`AFTER`, and seconds, with those of all runs that it takes a model of, each once.
        error: why there is no result; "" for a run that ended well.
        own: what it spent itself.
        asked: digest of the held-out problems; runs whose seeds draw others of a longer file differ in it.
    """

    study: str
    arm: str
    engine: str
    seed: int
    learning_rate: float
    fingerprint: str
    commit: str
    accuracies: dict[str, list[float]] = field(default_factory=dict)
    curve: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    spent: dict[str, float | None] = field(default_factory=dict)
    error: str = ""
    own: dict[str, float | None] = field(default_factory=dict)
    asked: str = ""

    @property
    def problems(self) -> list[float]:
        """Accuracy of every problem."""
        return [acc for _, values in sorted(self.accuracies.items()) for acc in values]


def fingerprint(cfg: DictConfig) -> str:
    """16 hex digits of what determines a run, seed and learning rate left out."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    counted = {key: value for key, value in flattened(plain).items() if key.startswith(COUNTED)}
    kept = {name: value for name, value in plain.items() if name not in IGNORED}
    kept["data"] = {name: value for name, value in plain["data"].items() if not name.endswith("_files")}
    kept["data"]["seed"] = None
    kept["actor_rollout_ref"]["actor"]["optim"]["lr"] = None
    kept["actor_rollout_ref"]["rollout"] |= {"trace": None, "prometheus": None}
    blocks = [kept["s2l"].get(name) or {} for name in ("explorer", "distill")]
    for model in (kept["actor_rollout_ref"]["model"], *blocks):
        for key in ("path", "model_path", "teacher_path"):
            # a hub id stands for itself
            if model.get(key) and (folder := Path(model[key]).expanduser()).is_dir():
                model[key] = model_digest(folder)
    files = [cfg.data.train_files, cfg.data.val_files]
    paths = [str(path) for one in files for path in ([one] if isinstance(one, str) else one)]
    paths += own_code(cfg)
    kept.pop("toy_dir", None)
    return digest_of([kept, counted, file_digests(paths)])[:16]


def planned(cfg: DictConfig, engine: str) -> dict[str, int]:
    """Of the quantities :data:`BEFORE`, those of the whole run. Raises ConfigError where its steps are not known."""
    found = run_steps(cfg, None)  # the local loop has no epochs
    if engine == "verl":
        with suppress(OSError, ValueError):  # what is wrong with a file is said before the first run
            found = steps_of_run(cfg)
    if found is None:
        raise ConfigError(f"{STEPS_KEY}=null: how many steps engine {engine} does is not known. Set a whole number.")
    steps, batch = found.number, int(cfg.data.train_batch_size)
    actor, group = cfg.actor_rollout_ref.actor, int(cfg.actor_rollout_ref.rollout.n)
    updates = math.ceil(batch / int(actor.ppo_mini_batch_size)) * int(actor.ppo_epochs)
    return {"prompts": steps * batch, "optimizer_steps": steps * updates, "rollouts": steps * batch * group}


def spent(run: Run) -> dict[str, float | None]:
    """Of the quantities :data:`AFTER`, and wall-clock seconds; None for what the run does not tell."""
    totals = Ledger(run).totals(all_in=True)
    own = [value for _, value in run.series(f"s2l/source/{LEARNER}/tokens")]
    by_source = any(key.startswith("s2l/source/") for key in run.metric_names)
    if not by_source:  # every row is the learner's
        rows = run.setting("data.train_batch_size") * run.setting("actor_rollout_ref.rollout.n")
        own = [mean * rows for _, mean in run.series("response_length/mean")]
    return {"learner_tokens": sum(own) if own or by_source else None, "flops": totals.flops, "seconds": totals.seconds}


def measured(folder: Path) -> dict[str, Any]:
    """Accuracies of the last validation, the curve, and what the run spent."""
    run = read_run(folder)
    validations = run.dumps
    if not validations:
        raise DataError(f"{folder / VALIDATIONS}: no validation was dumped, so there is nothing to compare.")
    last = validations[max(validations)]
    _check_whole(run, max(validations))
    groups = last.groupby(last["source"].fillna("all"))["accuracy"]
    asked = digest_of([*map(str, last.index)])
    accuracies = {str(name): [float(value) for value in values] for name, values in groups}
    curve: dict[str, list[tuple[int, float]]] = {ALL: []}
    for step, table in sorted(validations.items()):
        curve[ALL].append((step, float(table["accuracy"].mean())))
        for name, values in table.groupby(table["source"].fillna("all"))["accuracy"]:
            curve.setdefault(str(name), []).append((step, float(values.mean())))
    return {"accuracies": accuracies, "curve": curve, "own": spent(run), "asked": asked}


def _check_whole(run: Run, step: int) -> None:
    """Raises DataError for a dump without the sessions that failed, which verl logs as wrong. One of several sources
    that it does not name cannot be compared."""
    logged = [key for key in run.keys if step in dict(run.series(key))]
    if len(logged) > 1 and run.dumps[step]["source"].isna().all():
        return
    for key in logged:
        if run.problems(key, step) is None:
            raise DataError(
                f"{run.folder / VALIDATIONS}: the mean of step {step} is not what the run logged as {key}. Sessions "
                "failed (its log names them), or the validation data have a prompt twice: remove it."
            )


def write_result(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(result)) + "\n")


def read_result(path: Path) -> Result:
    """Raises DataError for a file that is not what :func:`write_result` wrote."""
    try:
        content = json_text.loads(path.read_text(encoding="utf-8"))
        return Result(**content)
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no result of a study ({error}). Remove it, and the study runs it again.") from error
