"""Does the explorer's share end within the run? Warnings, one sentence each."""

from __future__ import annotations

from omegaconf import DictConfig

from s2l_ext.config.run_steps import FROM_DATA, RunSteps, ranges, run_steps
from s2l_ext.config.verl_settings import whole_number
from s2l_ext.methods.explorer.config import ExplorerConfig
from s2l_ext.methods.explorer.schedule import build_schedule


def given_steps_warnings(explorer: ExplorerConfig, cfg: DictConfig) -> list[str]:
    """:func:`schedule_warnings` by ``trainer.total_training_steps`` alone, before any data is read."""
    steps = run_steps(cfg, None)
    return schedule_warnings(explorer, whole_number(cfg, "actor_rollout_ref.rollout.n"), steps) if steps else []


def schedule_warnings_of_run(explorer: ExplorerConfig, cfg: DictConfig, steps: RunSteps | None) -> list[str]:
    """The same by the steps that the run really has, unless the settings alone have said it."""
    group = whole_number(cfg, "actor_rollout_ref.rollout.n")
    warnings = lone_row_warnings(explorer, group, steps)
    if steps and steps.source == FROM_DATA and not given_steps_warnings(explorer, cfg):
        warnings += schedule_warnings(explorer, group, steps)
    return warnings


def schedule_warnings(explorer: ExplorerConfig, group: int, steps: RunSteps) -> list[str]:
    """Whether the hand-over ends inside the run."""
    schedule = build_schedule(explorer.schedule, explorer.mix_steps, group)
    if explorer.schedule == "constant" or not steps.number or schedule.slots(steps.number) == 0:
        return []
    how = "more than" if explorer.mix_steps > steps.number else "all of"
    return [
        f"s2l.explorer.mix_steps={explorer.mix_steps} is {how} the run's {steps.number} steps ({steps.source}): "
        "the explorer's share never reaches 0."
    ]


def lone_row_warnings(explorer: ExplorerConfig, group: int, steps: RunSteps | None) -> list[str]:
    """Steps of the run at which a group has one row of a source, whose baseline would be its own."""
    if explorer.baseline != "per_source" or explorer.schedule == "constant":
        return []
    last = explorer.mix_steps if steps is None else min(explorer.mix_steps, steps.number)
    table = build_schedule(explorer.schedule, explorer.mix_steps, group).table(last)
    alone = [step for step, slots in enumerate(table, start=1) if 1 in (slots, group - slots)]
    if not alone:
        return []
    return [
        f"s2l.explorer.baseline=per_source leaves one row of a source alone in its group at step "
        f"{ranges(alone)}: it has no baseline, so verl makes its reward its advantage."
    ]
