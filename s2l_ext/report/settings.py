"""The configuration of a run in short, and where those of several runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from s2l_ext.config.verl_settings import flattened
from s2l_ext.report.page import table
from s2l_ext.report.run import Run

NO_CONFIG = "no s2l_config.yaml in the folder"
ABSENT = "not set"
LONGEST = 160
SHOWN = (
    "actor_rollout_ref.model.path",
    "data.train_files",
    "data.val_files",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "data.seed",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.temperature",
    "actor_rollout_ref.rollout.top_p",
    "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.use_kl_loss",
    "actor_rollout_ref.actor.kl_loss_coef",
    "algorithm.adv_estimator",
    "trainer.total_training_steps",
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
)


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Text of each configuration's value for the keys whose values are not all equal, in the order of the keys."""
    flat = [flattened(config) for config in configs]
    keys = sorted(set().union(*flat))
    texts = {key: [value_text(values[key]) if key in values else ABSENT for values in flat] for key in keys}
    return {key: found for key, found in texts.items() if len(set(found)) > 1}


def value_text(value: Any) -> str:
    """As YAML would say it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def figures(runs: Sequence[Run]) -> list[Markup]:
    """One run: what matters of its configuration. Several: every key that differs between those that have one."""
    if len(runs) == 1:
        return [_summary(runs[0])]
    known, title = [run for run in runs if run.config], "Configuration that differs"
    missing = [run.name for run in runs if not run.config]
    note = f"Left out, {NO_CONFIG}: {', '.join(missing)}." if missing else ""
    if len(known) < 2:
        return [table(title, ["setting"], [], f"Nothing to compare. {note}")]
    rows = [[key, *texts] for key, texts in differences([run.config for run in known]).items()]
    says = f"{len(rows)} settings differ; all others are the same." if rows else "No setting differs."
    return [table(title, ["setting", *(run.name for run in known)], rows, f"{says} {note}", style="")]


def _summary(run: Run) -> Markup:
    if not run.config:
        return table("Configuration", ["setting", "value"], [], f"Not shown: {NO_CONFIG}.")
    flat = flattened(run.config)
    own = [key for key, value in flat.items() if key.startswith("s2l.") and value is not None]
    rows = [[key, value_text(flat[key])] for key in (*SHOWN, *own) if key in flat]
    says = "The whole of it is in s2l_config.yaml of the run."
    return table("Configuration", ["setting", "value"], rows, says, style="")
