"""Schedules against the number of steps that a run really has. Warnings, one sentence each."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import total_steps, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.config import CurriculumConfig, ExplorerConfig, GuidanceConfig, S2LConfig
from s2l_ext.methods.explorer.schedule import build_schedule
from s2l_ext.methods.guidance.length import guided_sessions
from s2l_ext.methods.guidance.rules import CONTROLLERS
from s2l_ext.methods.kl.rules import needs_accuracy

STEPS_KEY = "trainer.total_training_steps"
FROM_DATA = "rows / train_batch_size x epochs"
LAPPING = ("easy_to_hard", "file_order")
"""Curricula whose passes do not end with a step."""


@dataclass(frozen=True)
class RunSteps:
    """Steps of a run, and where that number comes from."""

    number: int
    source: str


def run_steps(cfg: DictConfig, from_data: int | None) -> RunSteps | None:
    """verl stops at ``trainer.total_training_steps`` or after ``trainer.total_epochs``, whichever comes first.

    Args:
        from_data: full batches of the data's rows times epochs; None where they cannot be counted.

    Returns:
        None if neither is known.
    """
    given = total_steps(cfg)
    if from_data is not None and (given is None or from_data < given):
        return RunSteps(from_data, FROM_DATA)
    return None if given is None else RunSteps(given, STEPS_KEY)


def check_schedules(s2l: S2LConfig, cfg: DictConfig, steps: RunSteps | None, rows: int | None) -> list[str]:
    """What a schedule never comes to.

    Args:
        steps: of the run; None where they are not known.
        rows: of the training data; None where they cannot be counted.

    Raises:
        ConfigError: a guidance length or pass rates that are to follow accuracies would never see one.
    """
    group = whole_number(cfg, "actor_rollout_ref.rollout.n")
    warnings = lone_row_warnings(s2l.explorer, group, steps) if s2l.explorer else []
    if s2l.explorer and steps and steps.source == FROM_DATA and not _already_said(s2l.explorer, group, cfg):
        warnings += schedule_warnings(s2l.explorer, group, steps)
    if s2l.guidance and steps:
        warnings += _stepwise(s2l.guidance, steps)
    warnings += unmoved_warnings(s2l, group, steps)
    if s2l.curriculum and rows:
        warnings += _unfinished_pass(s2l.curriculum, cfg, rows)
    return warnings


def given_steps_warnings(explorer: ExplorerConfig, cfg: DictConfig) -> list[str]:
    """:func:`schedule_warnings` by ``trainer.total_training_steps`` alone, before any data is looked at."""
    steps = run_steps(cfg, None)
    return schedule_warnings(explorer, whole_number(cfg, "actor_rollout_ref.rollout.n"), steps) if steps else []


def _already_said(explorer: ExplorerConfig, group: int, cfg: DictConfig) -> bool:
    steps = run_steps(cfg, None)
    return steps is not None and bool(schedule_warnings(explorer, group, steps))


def schedule_warnings(explorer: ExplorerConfig, group: int, steps: RunSteps) -> list[str]:
    """Whether the hand-over ends inside the run."""
    schedule = build_schedule(explorer.schedule, explorer.mix_steps, group)
    if explorer.schedule == "constant" or not steps.number or schedule.slots(steps.number) == 0:
        return []
    how = "more than" if explorer.mix_steps > steps.number else "all of"
    return [
        f"s2l.explorer.mix_steps={explorer.mix_steps} is {how} the run's {steps.number} steps ({steps.source}): "
        "the explorer never hands over completely."
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


@dataclass(frozen=True)
class Reader:
    """A setting that says whose accuracies move something."""

    setting: str
    value: str
    moves: str
    everything: str
    """The value with which every session counts."""
    own: bool
    """Only sessions of the learner count that no guidance started; else all of the learner's."""

    def sessions(self, group: int, slots: int, guided: int) -> int:
        """Of a group that count, where an explorer samples ``slots`` of them."""
        return group - slots - (min(guided, group - slots) if self.own else 0)


def _readers(s2l: S2LConfig) -> list[Reader]:
    """With ``warm_start`` the pass rates may be meant to stay as they are."""
    guidance, curriculum, found = s2l.guidance, s2l.curriculum, []
    if guidance and guidance.length.type in CONTROLLERS and guidance.length.signal != "every_source":
        signal, moves = guidance.length.signal, f"no length of type={guidance.length.type}"
        found.append(Reader("s2l.guidance.length.signal", signal, moves, "every_source", own=signal == "unguided"))
    learns = curriculum and needs_accuracy(None, curriculum) and curriculum.warm_start is None
    if curriculum and learns and curriculum.rows == "learner":
        found.append(Reader("s2l.curriculum.rows", "learner", "no pass rate", "all", own=True))
    return found


def unmoved_warnings(s2l: S2LConfig, group: int, steps: RunSteps | None) -> list[str]:
    """Steps at which explorer and guidance leave no session whose accuracy moves the guidance length.

    A run that ends before the hand-over may be a trial, so it is warned.

    Raises:
        ConfigError: however long the run, the guidance length or the pass rates never move.
    """
    slots, after = _slots(s2l.explorer, group, steps)
    guided = guided_sessions(s2l.guidance.alpha, group) if s2l.guidance else 0
    warnings = []
    for reader in _readers(s2l):
        who = "explorer and guidance leave" if reader.own else "the explorer leaves"
        taken = f"{reader.setting}={reader.value}: {who} none of a group's {group} sessions to it"
        if reader.sessions(group, after, guided) == 0:
            raise ConfigError(
                f"{taken} at any step, so {reader.moves} would ever move. Set {reader.setting}={reader.everything}, a "
                "smaller s2l.guidance.alpha or an s2l.explorer.schedule that ends."
            )
        still = [step for step, number in enumerate(slots, start=1) if reader.sessions(group, number, guided) == 0]
        if still and (reader.value == "unguided" or len(still) == len(slots)):
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


def ranges(steps: list[int]) -> str:
    """Ascending numbers in words: ``1, 3-5``."""
    starts = [step for step in steps if step - 1 not in steps]
    ends = [step for step in steps if step + 1 not in steps]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _stepwise(guidance: GuidanceConfig, steps: RunSteps) -> list[str]:
    length = guidance.length
    if length.type != "stepwise" or length.every < steps.number:
        return []
    return [
        f"s2l.guidance.length.every={length.every} and the run has {steps.number} steps ({steps.source}): the stepwise "
        f"length never falls. Set it to {max(steps.number // 4, 1)}, which gives four stages, or use type=constant."
    ]


def _unfinished_pass(curriculum: CurriculumConfig, cfg: DictConfig, rows: int) -> list[str]:
    """verl's epoch is ``rows // batch`` steps: where passes go on inside a step, its last epoch ends before them."""
    batch, epochs = whole_number(cfg, "data.train_batch_size"), whole_number(cfg, "trainer.total_epochs")
    if curriculum.type not in LAPPING or total_steps(cfg) is not None or rows % batch == 0 or rows < batch:
        return []
    per_epoch = rows // batch
    wanted = -(-rows * epochs // batch)
    return [
        f"s2l.curriculum.type={curriculum.type}: trainer.total_epochs={epochs} is {per_epoch * epochs} steps of "
        f"{batch} prompts, and the last pass over {rows} leaves out the last {(rows - per_epoch * batch) * epochs} of "
        f"its order. Set {STEPS_KEY}={wanted} and trainer.total_epochs={-(-wanted // per_epoch)} to finish it."
    ]
