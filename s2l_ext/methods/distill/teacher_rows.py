"""Are the rows that a divergence is taken on drawn from the teacher's own distribution?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from s2l_ext.methods.distill.config import DistillConfig

if TYPE_CHECKING:
    from s2l_ext.methods.explorer.config import LiveExplorer


def check_teacher_rows(distill: DistillConfig, explorer: LiveExplorer) -> list[str]:
    """Warnings about a live explorer's rows; stored ones are checked with their store."""
    sampling = {name: getattr(explorer, name) for name in ("temperature", "top_p", "top_k")}
    fix = f"Set s2l.explorer.temperature={distill.temperature:g}, top_p=1 and top_k=-1."
    warnings = sampling_warnings(distill, sampling, "s2l.explorer samples", fix)
    if distill.loss != "sft" and distill.teacher_path not in (None, explorer.model_path):
        warnings.append(
            f"s2l.explorer.model_path={explorer.model_path} is not s2l.distill.teacher_path={distill.teacher_path}: "
            f"s2l.distill.loss={distill.loss} compares with one model on rows that another sampled. Set both alike."
        )
    return warnings


def sampling_warnings(distill: DistillConfig, sampling: Mapping[str, Any], who: str, fix: str) -> list[str]:
    """Whether rows of ``sampling`` (``temperature``, ``top_p``, ``top_k``) are samples of what the loss compares with.

    Args:
        who: begins the sentence, for instance ``s2l.explorer samples``.
        fix: ends it.
    """
    temperature, top_p, top_k = sampling["temperature"], sampling.get("top_p", 1.0), sampling.get("top_k", 0)
    found = [f"temperature {temperature:g}"] if temperature != distill.temperature else []
    found += [f"top-p {top_p:g}"] if top_p < 1 else []
    found += [f"top-k {top_k}"] if top_k > 0 else []
    if distill.loss == "sft" or not found:
        return []
    return [
        f"{who} at {', '.join(found)}: s2l.distill.loss={distill.loss} is then no average over the teacher's own "
        f"distribution at s2l.distill.temperature={distill.temperature:g} (the paper: 1, no truncation). {fix}"
    ]


def stored_row_warnings(distill: DistillConfig, fingerprint: Mapping[str, Any], place: str) -> list[str]:
    """The same of a store of rollouts, by the fingerprint that ``s2l explore`` gave it."""
    fix = f"Sample again with `s2l explore --temperature {distill.temperature:g} --top-p 1 --top-k 0`."
    warnings = sampling_warnings(distill, fingerprint["sampling"], f"{place} was sampled", fix)
    sampler, teacher = str(fingerprint.get("model_name")), distill.teacher_path
    if distill.loss != "sft" and teacher and _last(sampler) != _last(teacher):
        warnings.append(
            f"{place} was sampled by {sampler}, s2l.distill.teacher_path={teacher} is another name: s2l.distill.loss="
            f"{distill.loss} compares with one model on rows that another sampled. Sample again with the teacher."
        )
    return warnings


def _last(name: str) -> str:
    """A folder's name or a hub id's: a store keeps no paths."""
    return name.rstrip("/").rpartition("/")[2]
