"""How many steps a run really has, and where that number comes from."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import total_steps

STEPS_KEY = "trainer.total_training_steps"


FROM_DATA = "rows / train_batch_size x epochs"


@dataclass(frozen=True)
class RunSteps:
    """Steps of a run, and where that number comes from."""

    number: int
    source: str


def run_steps(cfg: DictConfig, from_data: int | None) -> RunSteps | None:
    """verl stops at ``trainer.total_training_steps`` or after ``trainer.total_epochs``, whichever comes first.
    ``from_data``: full batches of the data's rows times epochs; None where they cannot be counted. None if neither is
    known."""
    given = total_steps(cfg)
    if from_data is not None and (given is None or from_data < given):
        return RunSteps(from_data, FROM_DATA)
    return None if given is None else RunSteps(given, STEPS_KEY)


def ranges(steps: list[int]) -> str:
    """Ascending numbers in words: ``1, 3-5``."""
    starts = [step for step in steps if step - 1 not in steps]
    ends = [step for step in steps if step + 1 not in steps]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
