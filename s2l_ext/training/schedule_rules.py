"""Does anything ever see the accuracies that it is to follow, where explorer and guidance take rollouts of a group?"""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from s2l_ext.config.run_steps import RunSteps, ranges
from s2l_ext.config.verl_settings import GROUP_SIZE, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.guidance.length import guided_sessions
from s2l_ext.methods.guidance.rules import final_share
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.training.outcomes import EstimateFrom


def _readers(s2l: S2LConfig) -> Iterator[tuple[str, EstimateFrom, str]]:
    """Settings that say whose accuracies move something: key, value, and what would not move.

    With ``warm_start`` the pass rates may be meant to stay as they are.
    """
    guidance, curriculum = s2l.guidance, s2l.curriculum
    if guidance and guidance.length.follows not in (None, "all"):
        moves = f"no length of type={guidance.length.type}"
        yield "s2l.guidance.length.estimate_from", guidance.length.follows, moves
    if curriculum and curriculum.learns and curriculum.start_file is None and curriculum.estimate_from != "all":
        yield "s2l.curriculum.estimate_from", curriculum.estimate_from, "no pass rate"


def unmoved_warnings(s2l: S2LConfig, cfg: DictConfig, steps: RunSteps | None) -> list[str]:
    """Steps at which explorer and guidance leave no session whose accuracy moves the guidance length. A run that ends
    before the hand-over may be a trial, so it is warned. Raises ConfigError: however long the run, the guidance length
    or the pass rates never move."""
    group = whole_number(cfg, GROUP_SIZE)
    slots, after = _slots(s2l, group, steps)
    warnings = []
    for key, value, moves in _readers(s2l):
        unguided = value == "learner_unguided"
        waits = "guidance" in key and s2l.guidance and final_share(s2l.guidance, s2l.explorer, group) is not None
        guided = guided_sessions(s2l.guidance.alpha, group) if s2l.guidance and (unguided or waits) else 0
        who = "explorer and guidance leave" if unguided else "the explorer leaves"
        of = f"{group - guided} unguided" if waits else f"{group}"
        taken = f"{key}={value}: {who} none of a group's {of} sessions to it"
        if after + guided >= group:
            raise ConfigError(
                f"{taken} at any step, so {moves} would ever move. Set {key}=all, a smaller s2l.guidance.alpha or an "
                "s2l.explorer.schedule that ends."
            )
        still = [step for step, number in enumerate(slots, start=1) if number + guided >= group]
        if still and ((unguided and moves != "no pass rate") or len(still) == len(slots)):
            warnings.append(f"{taken} at step {ranges(still)}, where {moves} moves.")
    return warnings


def _slots(s2l: S2LConfig, group: int, steps: RunSteps | None) -> tuple[list[int], int]:
    """The explorer's sessions of a group at every step of the run, and after its schedule; steps that are not known are
    those of the schedule and one more."""
    if s2l.explorer is None:
        return [0] * (steps.number if steps else 1), 0
    end, schedule = s2l.explorer.mix_steps + 1, s2l.explorer.build(group)
    return schedule.table(steps.number if steps else end), schedule.slots(end)
