"""The model card of an exported model: the hub's metadata of its base. What it was made of is in the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from s2l_ext.config.model_files import is_local
from s2l_ext.pipeline.plan import FILE_NAME, Plan
from s2l_ext.pipeline.stage import Stage
from s2l_ext.utils.files import write_atomically

CARD_FILE = "README.md"


def write_card(folder: Path, stage: Stage, plan: Plan) -> None:
    """Write ``README.md`` into a finished model's folder. Base model and licence are those of the base's own card."""
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
