"""Orders of prompts that do not depend on pass rates: verl's shuffle, easy to hard, and the order of the file.

The baselines of EXPO's curriculum (arXiv 2605.09923). The change versus GRPO is the order alone; ``UniformOrder`` has
none. State kept: pass rates and visits, for the report; the position in the epoch; ``UniformOrder`` also the state of
its random generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from s2l_ext.methods.curriculum.gaussian import check_draw
from s2l_ext.methods.curriculum.pass_rates import Indices, PassRates, section


class FileOrder:
    """Prompts in the order of the file, again and again: every prompt once in each pass.

    A pass does not end with a step: the N % n prompts left at its end open the step that starts the next pass. ``ema``:
    share of the old pass rate that an update keeps, in [0, 1). Raises ConfigError: an argument is out of range.
    """

    def __init__(self, num_prompts: int, ema: float = 0.9) -> None:
        self.num_prompts = num_prompts
        self.pass_rates = PassRates(num_prompts, ema=ema)
        self.position = 0

    def draw(self, n: int, rng: np.random.Generator) -> Indices:
        """(n,) next prompts, all different; ``rng`` is not used. Raises ValueError: ``n`` is below 1 or above the
        number of prompts."""
        check_draw(n, self.num_prompts)
        if self.position == self.num_prompts:
            self.position = 0
        drawn_n = self._order()[(self.position + np.arange(n)) % self.num_prompts]
        end = self.position + n
        self.position = end if end <= self.num_prompts else end - self.num_prompts
        return drawn_n

    def _order(self) -> Indices:
        """(N,) prompts of a pass."""
        return np.arange(self.num_prompts, dtype=np.int64)

    def update(self, indices: ArrayLike, pass_rates: ArrayLike) -> None:
        """Keep track of pass rates (n,) of ``indices`` (n,); the order does not depend on them. Raises ValueError: a
        prompt that does not exist or is given twice, or a pass rate that is NaN or outside [0, 1]."""
        self.pass_rates.update(indices, pass_rates)

    def set_pass_rates(self, indices: ArrayLike, pass_rates: ArrayLike) -> None:
        """Replace pass rates (n,) without counting a visit. Raises ValueError: as in :meth:`update`."""
        self.pass_rates.set_rates(indices, pass_rates)

    def metrics(self) -> dict[str, float]:
        """Those of :class:`PassRates` and ``epoch_position`` (prompts of this pass drawn so far)."""
        return {**self.pass_rates.metrics(), "epoch_position": float(self.position)}

    def state_dict(self) -> dict[str, Any]:
        """Pass rates, visits and the position in the pass."""
        return {"pass_rates": self.pass_rates.state_dict(), "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`. Raises ValueError: another number of prompts, a part is missing or damaged.
        Nothing is loaded."""
        position = section(state, "position")
        if not 0 <= position <= self.num_prompts:
            raise ValueError(f"saved position {position} is outside the {self.num_prompts} prompts of a pass")
        self.pass_rates.load_state_dict(section(state, "pass_rates"))
        self.position = int(position)


class EasyToHard(FileOrder):
    """Prompts by tier, easiest first, in file order within a tier, the same in every pass. ``tiers``: (N,) rank of each
    prompt, easiest smallest."""

    def __init__(self, tiers: Sequence[int] | Indices, ema: float = 0.9) -> None:
        super().__init__(len(tiers), ema)
        self._sorted_N: Indices = np.argsort(np.asarray(tiers), kind="stable").astype(np.int64)

    def _order(self) -> Indices:
        return self._sorted_N


class UniformOrder(FileOrder):
    """verl's own shuffle, prompt for prompt: one ``torch.randperm`` per epoch (verl's ``create_rl_sampler``).

    As in verl, an epoch is ``N // n`` steps and the N % n prompts left at its end are dropped, others in every epoch.
    ``seed``: ``data.seed``; None leaves torch's fixed default seed, as verl does.
    """

    def __init__(self, num_prompts: int, seed: int | None = None, ema: float = 0.9) -> None:
        super().__init__(num_prompts, ema)
        self._generator = torch.Generator()
        if seed is not None:
            self._generator.manual_seed(seed)
        self._start_epoch()

    def draw(self, n: int, rng: np.random.Generator) -> Indices:
        """(n,) next prompts of the epoch; ``rng`` is not used. Raises ValueError: ``n`` is below 1 or above the number
        of prompts."""
        check_draw(n, self.num_prompts)
        if self.position + n > self.num_prompts:
            self._start_epoch()
            self.position = 0
        return super().draw(n, rng)

    def _start_epoch(self) -> None:
        self._epoch_start = self._generator.get_state()
        self._shuffled_N: Indices = torch.randperm(self.num_prompts, generator=self._generator).numpy()

    def _order(self) -> Indices:
        return self._shuffled_N

    def metrics(self) -> dict[str, float]:
        """Those of :class:`FileOrder`, and the effective sample size, which is N."""
        return {**super().metrics(), "effective_sample_size": float(self.num_prompts)}

    def state_dict(self) -> dict[str, Any]:
        """That of :class:`FileOrder`, and the generator's (uint8) at the start of the epoch."""
        return {**super().state_dict(), "generator": self._epoch_start.numpy().copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`. Raises ValueError: another number of prompts, a part is missing or damaged.
        Nothing is loaded."""
        saved = np.asarray(section(state, "generator"), dtype=np.uint8)
        if saved.size != self._epoch_start.numel():
            raise ValueError(f"saved generator state has {saved.size} bytes, torch's has {self._epoch_start.numel()}")
        super().load_state_dict(state)
        self._generator.set_state(torch.from_numpy(saved.copy()))
        self._start_epoch()
