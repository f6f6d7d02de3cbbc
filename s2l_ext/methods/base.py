"""The interface of a method: one block of ``s2l:`` and the hooks that the trainer calls.

A method overrides the hooks that it needs; every other hook does nothing. The trainer calls each hook of every enabled
method, in the order of :data:`s2l_ext.methods.registry.METHODS`. docs/architecture.md shows when in a step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig

from s2l_ext.config.parse import defaults

if TYPE_CHECKING:
    from s2l_ext.methods.registry import S2LConfig
    from s2l_ext.training.inputs import Inputs
    from s2l_ext.training.pending_prompts import Draw
    from s2l_ext.training.step import Step


class Method:
    """One block of ``s2l:``. The block's name is the config key and the metric prefix ``s2l/<block>/``.

    Args:
        config: the parsed block.
        s2l: the whole ``s2l:`` block.
        cfg: verl's whole configuration.
    """

    block: ClassVar[str]
    config_class: ClassVar[Any]
    """A frozen dataclass with the block's keys, or a union of them whose first key selects the variant."""
    may_change: ClassVar[Collection[str]] = ()
    """Keys of the block that a resumed run may change. Every other key must equal the checkpoint's."""
    state_key: ClassVar[str | None] = None
    """Key in ``s2l_state.json``; None is the block's name."""
    skips_old_log_probs = False
    """True if the loss reads no old log-probabilities; they are then not computed."""

    judges_each_row = False
    """True if the method reads accuracy by row, so groups that verl drops before the step do not matter to it."""

    def __init__(self, config: Any, s2l: S2LConfig, cfg: DictConfig) -> None:
        self.config, self.s2l, self.cfg = config, s2l, cfg

    # ---- before a run: nothing is loaded; raise S2LError on the impossible, return warnings -------------------------

    def check(self) -> list[str]:
        """Check the block's keys and verl's settings together. Returns warnings, raises ConfigError."""
        return []

    def check_inputs(self, inputs: Inputs) -> list[str]:
        """Check models and data files, before anything loads. Returns warnings."""
        return []

    def check_start(self, resumed: bool) -> None:
        """Check inputs that only a new run reads, not one that resumes this method's state. Raises DataError."""

    @property
    def needs_accuracy(self) -> str | None:
        """``key=value`` of the setting that reads the verifier's ``acc``; None if none does."""
        return None

    def gpus(self) -> dict[str, int]:
        """Additional GPUs of the method, by holder."""
        return {}

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must share: every key of the block except :attr:`may_change`.

        Keys of other variants have their defaults: a checkpoint of another variant differs in nothing but the tag and
        in what was set.
        """
        settings = defaults(self.config_class) | dataclasses.asdict(self.config)
        return {f"{self.block}.{name}": value for name, value in settings.items() if name not in self.may_change}

    def plan(self, steps: int | None) -> dict[str, Any]:
        """JSON values for ``plan.json``.

        Args:
            steps: of the run; None if unknown.
        """
        return {self.block: dataclasses.asdict(self.config)}

    @classmethod
    def plan_lines(cls, plan: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(label, text) lines of the printed plan, from the values of :meth:`plan`."""
        return [(cls.block, ", ".join(f"{name} {value}" for name, value in plan[cls.block].items()))]

    # ---- start of a run ---------------------------------------------------------------------------------------------

    def adapt(self) -> None:
        """Change verl's configuration as the method needs it."""

    def actor_worker(self) -> type | None:
        """Subclass of :class:`s2l_ext.training.actor_worker.S2LActorWorker`, or None."""
        return None

    def start(self, trainer: Any) -> None:
        """Called when verl has read the data: the number of steps is known, and no model is loaded.

        Args:
            trainer: :class:`s2l_ext.training.trainer.S2LTrainerMixin`; ``trainer.resumed`` has the saved states.
        """

    @contextmanager
    def around_setup(self, trainer: Any) -> Iterator[None]:
        """Wraps verl's loading of models and start of servers."""
        yield

    def with_client(self, client: Any) -> Any:
        """Returns the client of the rollout servers that the agent-loop workers get."""
        return client

    # ---- a step, in this order --------------------------------------------------------------------------------------

    def prepare_step(self) -> None:
        """Called before the step's prompts are sent."""

    def draw(self, draw: Draw) -> None:
        """Write this method's part of the plan of every drawn prompt."""

    def check_alive(self) -> None:
        """Called repeatedly while the step waits for rollouts. Raise S2LError to end the run."""

    def sampled(self) -> None:
        """Called when every rollout of the step is there and the learner's servers sleep."""

    def observe(self, step: Step) -> None:
        """Read the outcomes of the step's rows, before advantages."""

    def advantage(self, step: Step, compute: Callable[[], None]) -> None:
        """Wraps verl's advantages: call ``compute``, or write ``advantages`` and ``returns``; then change them."""
        compute()

    def before_update(self, step: Step) -> None:
        """Put values for the workers' loss into ``step.batch.extra_info``."""

    def after_update(self, step: Step) -> None:
        """Read the workers' metrics in ``step.metrics``."""

    def end_step(self, trainer: Any) -> None:
        """Called after the weights were updated; ``trainer.global_steps`` is the step that ended."""

    def metrics(self, step: Step) -> dict[str, float]:
        """``s2l/<block>/...``: the values that the step applied."""
        return {}

    def line(self) -> dict[str, Any] | None:
        """The step's line of ``<block>.jsonl``; None keeps no such file."""
        return None

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any] | None:
        """State to save: numbers, text, lists, mappings with text keys, numpy arrays. None saves nothing."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; called after :meth:`start`."""
