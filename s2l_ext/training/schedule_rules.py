"""Does anything ever see the accuracies that it is to follow, where explorer and guidance take rollouts of a group?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from s2l_ext.config.run_steps import RunSteps, ranges
from s2l_ext.config.verl_settings import whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.explorer.schedule import build_schedule
from s2l_ext.methods.guidance.length import guided_sessions
from s2l_ext.methods.registry import S2LConfig

if TYPE_CHECKING:
    from s2l_ext.methods.explorer.config import ExplorerConfig


@dataclass(frozen=True)
class Reader:
    """A setting that says whose accuracies move something."""

    setting: str
    value: str
    moves: str

    @property
    def unguided(self) -> bool:
        """Only sessions of the learner count that no guidance started; else all of the learner's."""
        return self.value == "learner_unguided"

    def sessions(self, group: int, slots: int, guided: int) -> int:
        """Of a group that count, where an explorer samples ``slots`` of them."""
        return group - slots - (min(guided, group - slots) if self.unguided else 0)


def _readers(s2l: S2LConfig) -> list[Reader]:
    """With ``warm_start`` the pass rates may be meant to stay as they are."""
    guidance, curriculum, found = s2l.guidance, s2l.curriculum, []
    if guidance and guidance.length.follows not in (None, "all"):
        moves = f"no length of type={guidance.length.type}"
        found.append(Reader("s2l.guidance.length.estimate_from", guidance.length.follows, moves))
    if curriculum and curriculum.learns and curriculum.start_file is None and curriculum.estimate_from != "all":
        found.append(Reader("s2l.curriculum.estimate_from", curriculum.estimate_from, "no pass rate"))
    return found


def unmoved_warnings(s2l: S2LConfig, cfg: DictConfig, steps: RunSteps | None) -> list[str]:
    """Steps at which explorer and guidance leave no session whose accuracy moves the guidance length.

    A run that ends before the hand-over may be a trial, so it is warned.

    Raises:
        ConfigError: however long the run, the guidance length or the pass rates never move.
    """
    group = whole_number(cfg, "actor_rollout_ref.rollout.n")
    slots, after = _slots(s2l.explorer, group, steps)
    guided = guided_sessions(s2l.guidance.alpha, group) if s2l.guidance else 0
    warnings = []
    for reader in _readers(s2l):
        who = "explorer and guidance leave" if reader.unguided else "the explorer leaves"
        taken = f"{reader.setting}={reader.value}: {who} none of a group's {group} sessions to it"
        if reader.sessions(group, after, guided) == 0:
            raise ConfigError(
                f"{taken} at any step, so {reader.moves} would ever move. Set {reader.setting}=all, a "
                "smaller s2l.guidance.alpha or an s2l.explorer.schedule that ends."
            )
        still = [step for step, number in enumerate(slots, start=1) if reader.sessions(group, number, guided) == 0]
        if still and ((reader.unguided and reader.moves != "no pass rate") or len(still) == len(slots)):
            warnings.append(f"{taken} at step {ranges(still)}, where {reader.moves} moves.")
    return warnings


def _slots(explorer: ExplorerConfig | None, group: int, steps: RunSteps | None) -> tuple[list[int], int]:
    """The explorer's sessions of a group at every step of the run, and after its schedule; steps that are not known are
    those of the schedule and one more."""
    if explorer is None:
        return [0] * (steps.number if steps else 1), 0
    end = explorer.mix_steps + 1
    schedule = build_schedule(explorer.schedule, explorer.mix_steps, group)
    return schedule.table(steps.number if steps else end), schedule.slots(end)
