"""A curriculum under verl's data loader: it decides which prompts a step trains on.

State kept: the curriculum's, the random generator, and drawn prompts that the loader has not fetched yet. A synchronous
run has none of these, because a checkpoint is written between steps and the loader does not fetch ahead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from omegaconf import DictConfig
from torch.utils.data import Sampler
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.utils.dataset.rl_dataset import collate_fn

from s2l_ext.data.prompts import dataset_table, match_pass_rates, prompt_ids, read_pass_rates, require_enough
from s2l_ext.errors import ConfigError, StateMismatch
from s2l_ext.methods.curriculum.config import CurriculumConfig
from s2l_ext.methods.curriculum.gaussian import Curriculum
from s2l_ext.training.controller_state import check_saveable

logger = logging.getLogger(__name__)


class CurriculumSampler(Sampler[int]):
    """Yields the prompts of one step after another, without end: ``step_size`` different ones of ``num_prompts``. A
    step is drawn when the loader fetches its first prompt. In a synchronous run the pass rates have the step before by
    then."""

    def __init__(self, curriculum: Curriculum, num_prompts: int, step_size: int, seed: int | None = None) -> None:
        self.curriculum = curriculum
        self.num_prompts = num_prompts
        self.step_size = step_size
        self.rng = np.random.default_rng(0 if seed is None else seed)
        self.waiting: list[int] = []
        self._handed: list[int] = []

    def __len__(self) -> int:
        return self.num_prompts

    def __iter__(self) -> Iterator[int]:
        return _Prompts(self)

    def draw_step(self) -> list[int]:
        """The prompts of the next step, in the order in which the loader fetches them."""
        drawn = np.asarray(self.curriculum.draw(self.step_size, self.rng))
        self._check(drawn)
        return [int(index) for index in drawn]

    def hand_out(self) -> int:
        """The next prompt; a new step is drawn when the last one is used up."""
        if not self.waiting:
            self.waiting = self.draw_step()
        self._handed.append(self.waiting.pop(0))
        return self._handed[-1]

    def take_handed(self) -> list[int]:
        """Prompts fetched since the last call, in their order."""
        handed, self._handed = self._handed, []
        return handed

    def _check(self, drawn: np.ndarray) -> None:
        if drawn.dtype.kind not in "iu":
            raise ConfigError(
                f"s2l.curriculum: {type(self.curriculum).__name__}.draw({self.step_size}, rng) gave {drawn.dtype}; it "
                "must give whole numbers, positions in the data set."
            )
        distinct = np.unique(drawn)
        in_range = distinct.size and distinct[0] >= 0 and distinct[-1] < self.num_prompts
        if drawn.shape != (self.step_size,) or distinct.size != self.step_size or not in_range:
            raise ConfigError(
                f"s2l.curriculum: {type(self.curriculum).__name__}.draw({self.step_size}, rng) gave {drawn.size} "
                f"prompts, {distinct.size} of them different; it must give {self.step_size} different numbers from 0 "
                f"to {self.num_prompts - 1}."
            )

    def controller_state(self) -> dict[str, Any]:
        """For ``s2l_state.json``."""
        state = {"rng": self.rng.bit_generator.state, "curriculum": self.curriculum.state_dict()}
        return {**state, "waiting": list(self.waiting)} if self.waiting else state

    def load_controller_state(self, state: dict[str, Any]) -> None:
        """Continue where the checkpoint ends. Raises StateMismatch: the state is another class's or belongs to another
        number of prompts."""
        try:
            self.rng.bit_generator.state = state["rng"]
            self.curriculum.load_state_dict(state["curriculum"])
            self.waiting = [int(index) for index in state.get("waiting", [])]
        except (KeyError, ValueError, TypeError) as error:
            raise StateMismatch(
                f"the checkpoint's curriculum state does not fit this run: {type(error).__name__}: {error}. "
                "s2l.curriculum.on_mismatch=reset keeps the model and starts the curriculum afresh."
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """For verl's ``data.pt``. Empty, so that the loader neither fast-forwards nor keeps a second copy."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do: see :meth:`load_controller_state`."""


class _Prompts(Iterator[int]):
    """A step's prompts one by one. Has torchdata's state methods, because StatefulDataLoader replays an iterator
    without them; there is nothing to keep."""

    def __init__(self, sampler: CurriculumSampler) -> None:
        self.sampler = sampler

    def __next__(self) -> int:
        return self.sampler.hand_out()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return None


def build_sampler(
    config: CurriculumConfig, cfg: DictConfig, dataset: Any, saved: dict[str, Any] | None = None
) -> CurriculumSampler:
    """The sampler of a run that continues ``saved``, or of a fresh one. Raises DataError: fewer prompts than a step
    needs, no usable tiers, or a warm-start file of other prompts; ConfigError: your own class; StateMismatch: the saved
    state does not fit, and ``on_mismatch`` is ``error``."""
    step_size, seed = cfg.data.train_batch_size, cfg.data.get("seed")
    require_enough(len(dataset), step_size)
    sampler = CurriculumSampler(config.build(dataset, seed), len(dataset), step_size, seed)
    check_saveable({"curriculum": sampler.controller_state()})
    if saved is not None:
        try:
            sampler.load_controller_state(saved)
            return sampler
        except StateMismatch as error:
            if config.on_mismatch == "error":
                raise
            logger.warning("%s The curriculum starts afresh.", error)
            return build_sampler(config, cfg, dataset)
    if config.start_file is not None:
        _warm_start(sampler.curriculum, config.start_file, cfg, dataset)
    return sampler


def _warm_start(curriculum: Any, path: str, cfg: DictConfig, dataset: Any) -> None:
    ids, rates_by_id = prompt_ids(dataset_table(dataset), cfg.data.prompt_key), read_pass_rates(path)
    positions, rates = match_pass_rates(rates_by_id, ids, path, strict=False)
    curriculum.set_pass_rates(positions, rates)
    found = len(positions), len(dataset), path, len(rates_by_id)
    logger.info("warm start: %d of %d prompts start with their pass rate from %s, which has %d", *found)


def replace_sampler(trainer: Any, sampler: CurriculumSampler) -> StatefulDataLoader:
    """verl's training data loader with another sampler; everything else as in ``PPOTrainer._init_dataloader``."""
    data = trainer.config.data
    return StatefulDataLoader(
        dataset=trainer.train_dataset,
        batch_size=data.get("gen_batch_size", None) or data.train_batch_size,
        num_workers=0,  # a worker would fetch ahead, with pass rates that lack this step
        drop_last=True,
        collate_fn=collate_fn,
        sampler=sampler,
    )
