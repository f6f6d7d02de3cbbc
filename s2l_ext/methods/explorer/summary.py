"""The explorer's lines of the printed plan."""

from __future__ import annotations

from typing import Any

from s2l_ext.methods.explorer.config import AnyExplorer, OfflineExplorer
from s2l_ext.methods.explorer.schedule import build_schedule

STEPS_SHOWN = 32


def explorer_plan(explorer: AnyExplorer, group_size: int, steps: int | None) -> dict[str, Any]:
    schedule = build_schedule(explorer.schedule, explorer.mix_steps, group_size)
    slots = schedule.table(steps or explorer.mix_steps)
    return {
        "source": explorer.source,
        **_sampled_by(explorer),
        "gpus": explorer.n_gpus,
        "baseline": explorer.baseline,
        "correction": explorer.correction,
        "schedule": explorer.schedule,
        "mix_steps": explorer.mix_steps,
        "slots": slots,
        "share_of_rollouts": sum(slots) / (group_size * steps) if steps else None,
    }


def explorer_lines(explorer: dict[str, Any], group_size: int) -> list[tuple[str, str]]:
    """(label, text) of what :func:`explorer_plan` gave."""
    return [("explorer", _line(explorer)), ("slots", _slot_line(explorer, group_size))]


def _sampled_by(explorer: AnyExplorer) -> dict[str, Any]:
    if isinstance(explorer, OfflineExplorer):
        return {"store": explorer.store, "on_exhausted": explorer.on_exhausted}
    names = ("placement", "temperature", "top_p")
    return {"model": explorer.model_path, **{name: getattr(explorer, name) for name in names}}


def _line(explorer: dict[str, Any]) -> str:
    how = f"baseline {explorer['baseline']}, correction {explorer['correction']}"
    if explorer["source"] == "offline":
        return f"rollouts stored in {explorer['store']} (on_exhausted={explorer['on_exhausted']}), no GPU, {how}"
    where = "the learner's GPUs, in turns" if explorer["placement"] == "colocated" else f"{explorer['gpus']} GPU(s)"
    return (
        f"{explorer['model']}, {where} {explorer['placement']}, temperature "
        f"{explorer['temperature']:g}, top-p {explorer['top_p']:g}, {how}"
    )


def _slot_line(explorer: dict[str, Any], group_size: int) -> str:
    slots = explorer["slots"]
    more = f" ... ({len(slots)} steps)" if len(slots) > STEPS_SHOWN else ""
    table = " ".join(str(count) for count in slots[:STEPS_SHOWN])
    share = explorer["share_of_rollouts"]
    total = "" if share is None else f"; {share:.1%} of all rollouts"
    return f"{table}{more}  (explorer sessions of {group_size}, step by step{total})"
