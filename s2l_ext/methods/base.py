"""What a method is: one block of ``s2l:``, and what the trainer asks of it.

A method overrides the hooks that it needs; every other hook does nothing. The trainer calls each hook of every method
that is on, in the order of :data:`s2l_ext.methods.registry.METHODS`. docs/architecture.md shows when in a step.
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
    """One block of ``s2l:``. Its name is the config key and the metric prefix ``s2l/<block>/``.

    Args:
        config: the parsed block.
        s2l: the whole ``s2l:`` block.
        cfg: verl's whole configuration.
    """

    block: ClassVar[str]
    config_class: ClassVar[Any]
    """A frozen dataclass with the block's keys, or a union of such that their first key tells apart."""
    may_change: ClassVar[Collection[str]] = ()
    """Keys of the block that a resumed run may change; every other key must be the checkpoint's."""
    state_key: ClassVar[str | None] = None
    """Key in ``s2l_state.json``; None is the block's name."""
    skips_old_log_probs = False
    """The loss reads no old log-probabilities, so they are not computed."""

    judges_each_row = False
    """The accuracy is read row by row, so that groups which verl drops before the step do not matter."""

    def __init__(self, config: Any, s2l: S2LConfig, cfg: DictConfig) -> None:
        self.config, self.s2l, self.cfg = config, s2l, cfg

    # ---- before a run: nothing is loaded; raise S2LError on the impossible, return warnings -------------------------

    def check(self) -> list[str]:
        """Rules among the block's own keys and against verl's settings."""
        return []

    def check_inputs(self, inputs: Inputs) -> list[str]:
        """Look at models and data files."""
        return []

    def check_start(self, resumed: bool) -> None:
        """Look at what only a run reads that does not resume this method's state."""

    @property
    def needs_accuracy(self) -> str | None:
        """``key=value`` of the setting that reads the verifier's ``acc``; None if none does."""
        return None

    def gpus(self) -> dict[str, int]:
        """GPUs of the method's own, by who holds them."""
        return {}

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must share: every key of the block but those in :attr:`may_change`.

        Keys of other variants have their defaults: a checkpoint of another variant differs in nothing but the tag and
        in what was set.
        """
        settings = defaults(self.config_class) | dataclasses.asdict(self.config)
        return {f"{self.block}.{name}": value for name, value in settings.items() if name not in self.may_change}

    def plan(self, steps: int | None) -> dict[str, Any]:
        """JSON values for ``s2l_plan.json``.

        Args:
            steps: of the run; None if unknown.
        """
        return {self.block: dataclasses.asdict(self.config)}

    @classmethod
    def plan_lines(cls, plan: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(label, text) lines of the printed plan, from what :meth:`plan` gave."""
        return [(cls.block, ", ".join(f"{name} {value}" for name, value in plan[cls.block].items()))]

    # ---- start of a run ---------------------------------------------------------------------------------------------

    def adapt(self) -> None:
        """Set what the method needs in verl's configuration."""

    def actor_worker(self) -> type | None:
        """Subclass of :class:`s2l_ext.training.actor_worker.S2LActorWorker`; None needs none."""
        return None

    def start(self, trainer: Any) -> None:
        """verl has read the data, so the number of steps is known; no model is loaded.

        Args:
            trainer: :class:`s2l_ext.training.trainer.S2LTrainerMixin`; ``trainer.resumed`` has the saved states.
        """

    @contextmanager
    def around_setup(self, trainer: Any) -> Iterator[None]:
        """Around verl's loading of models and start of servers."""
        yield

    def with_client(self, client: Any) -> Any:
        """The client of the rollout servers, as the agent-loop workers get it."""
        return client

    # ---- a step, in this order --------------------------------------------------------------------------------------

    def prepare_step(self) -> None:
        """Before the step's prompts are sent."""

    def draw(self, draw: Draw) -> None:
        """Write this method's part into the plan of every prompt that was drawn."""

    def check_alive(self) -> None:
        """Asked again and again while the step waits for rollouts; raise S2LError to end it."""

    def sampled(self) -> None:
        """Every rollout of the step is there; the learner's servers sleep."""

    def observe(self, step: Step) -> None:
        """See the outcome of the step's rows, before advantages."""

    def advantage(self, step: Step, compute: Callable[[], None]) -> None:
        """Around verl's advantages: call ``compute`` or write ``advantages`` and ``returns``, then change them."""
        compute()

    def before_update(self, step: Step) -> None:
        """Put into ``step.batch.extra_info`` what the workers' loss reads."""

    def after_update(self, step: Step) -> None:
        """See the workers' metrics in ``step.metrics``."""

    def end_step(self, trainer: Any) -> None:
        """The weights are updated; ``trainer.global_steps`` is the step that ended."""

    def metrics(self, step: Step) -> dict[str, float]:
        """``s2l/<block>/...``: what the step applied."""
        return {}

    def line(self) -> dict[str, Any] | None:
        """The step's line of ``<block>.jsonl``; None keeps no such file."""
        return None

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any] | None:
        """Numbers, text, lists, mappings with text keys and numpy arrays; None keeps nothing."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; called after :meth:`start`."""
