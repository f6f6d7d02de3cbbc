"""The model card of an exported model: what it was made of, how, and what came out. No path of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import s2l_ext
from s2l_ext.config.model_files import is_local
from s2l_ext.data.hub import HUB
from s2l_ext.pipeline.plan import Plan
from s2l_ext.pipeline.stage import Stage
from s2l_ext.utils.clone import git_of_clone
from s2l_ext.utils.digests import digest_of
from s2l_ext.utils.files import write_atomically
from s2l_ext.utils.secrets import masked

CARD_FILE = "README.md"
FOLDERS = re.compile(r"(?<![\w.~:/])~?/(?:[^\s,'\"\]/]+/)+")
"""The folders of an absolute path; its last part stays."""


def write_card(folder: Path, stage: Stage, plan: Plan, result: dict[str, Any]) -> None:
    """Write ``README.md`` with the hub's metadata into a finished model's folder; the same for the same inputs.

    Args:
        result: what the stage's kind says of it: steps, tokens, metrics.
    """
    from huggingface_hub import ModelCardData

    base, license_name = _base(plan, stage)
    data = ModelCardData(
        base_model=base if not is_local(base) else None,
        datasets=sorted({re.split("[:@]", ref.removeprefix(HUB))[0] for ref in _hub_data(plan, stage)}) or None,
        library_name="transformers",
        license=license_name,
        tags=["s2l_ext", "verl"],
    )
    rows = _rows(stage, plan, base, license_name, result)
    cells = {name: FOLDERS.sub("", str(masked(value))).replace("|", "\\|") for name, value in rows.items()}
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {cell} |" for name, cell in cells.items())])
    title = f"Stage {stage.name} of the pipeline {plan.pipeline.name}"
    write_atomically(folder / CARD_FILE, f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{table}\n")


def _rows(stage: Stage, plan: Plan, base: str, license_name: str | None, result: dict[str, Any]) -> dict[str, str]:
    others = {name: ", ".join(stage.paths(name)) for name in ("teacher", "explorer")}
    files = [f"{Path(file).name} (SHA-256 {plan.digests.of(file)})" for file in plan.jobs[stage.name].train_files]
    metrics = {key: f"{value:.4g}" for key, value in result.get("metrics", {}).items() if value is not None}
    rows: dict[str, str] = {
        "base model": base,
        **others,
        "data": "; ".join([*_hub_data(plan, stage), *files]),
        "recipe": f"{stage.recipe} {' '.join([*stage.shared, *stage.overrides])}" if stage.recipe else stage.kind,
        "settings, SHA-256": digest_of(plan.jobs[stage.name].settings),
        "steps": f"{result['steps']}, {result['tokens']} tokens" if "steps" in result else "",
        "metrics": "; ".join(f"{key} {value}" for key, value in metrics.items()),
        "code": f"s2l_ext {s2l_ext.__version__}{_commit()}",
        "licence": license_name or f"that of the base model, {base}, and of the data",
    }
    return {name: value for name, value in rows.items() if value}


def _base(plan: Plan, stage: Stage) -> tuple[str, str | None]:
    """Hub id or folder of the model that the first stage began with, and its licence where its card says one."""
    from huggingface_hub import metadata_load

    settings: Any = plan.jobs[stage.name].settings
    own = settings.get("actor_rollout_ref", {}).get("model", {}).get("path", "unknown")
    path = plan.first_model((stage.paths("model") or [own])[0])
    card = Path(path).expanduser() / CARD_FILE
    known = (metadata_load(card) or {}) if card.is_file() else {}
    return str(known.get("base_model", path)), known.get("license")


def _hub_data(plan: Plan, stage: Stage) -> Iterator[str]:
    """Addresses of the hub that its data came from, through the stages before it."""
    for name in ("data", "store"):
        for source in stage.sources(name):
            if source.path.startswith(HUB):
                yield source.path
            elif source.stage:
                yield from _hub_data(plan, plan.pipeline.stage(source.stage))


def _commit() -> str:
    """The commit of a clone; nothing for an installed package."""
    found = git_of_clone("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return f", commit {found}" if found else ""
