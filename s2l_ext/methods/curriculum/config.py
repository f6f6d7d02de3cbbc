"""The block ``s2l.curriculum``: one class for each ``type``. Curricula are imported when one is built."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from s2l_ext.config.limits import limited
from s2l_ext.config.resolve import resolve
from s2l_ext.errors import ConfigError
from s2l_ext.training.outcomes import EstimateFrom

if TYPE_CHECKING:
    from s2l_ext.methods.curriculum.gaussian import Curriculum

CURRICULA = ("gaussian", "uniform", "easy_to_hard", "file_order")
GROUP = "s2l.curricula"
METHODS = ("draw", "update", "state_dict", "load_state_dict")


@dataclass(frozen=True)
class CurriculumConfig(ABC):
    """Which prompts a step trains on."""

    learns: ClassVar[bool] = False
    """The draw follows accuracies."""
    shuffles: ClassVar[bool] = False
    """The draw is another than ``data.shuffle=False`` asks for."""
    laps: ClassVar[bool] = False
    """Passes do not end with a step."""

    type: str
    """``gaussian``: the paper's, around a pass rate. ``uniform``: at random. ``easy_to_hard``: by tiers.
    ``file_order``: as the file has them. Or your own class, as ``pkg.module:Class`` or an entry point."""
    estimate_from: EstimateFrom = "learner_unguided"
    """Rows that estimate pass rates. ``learner_unguided``: the learner's rows without guidance. ``learner``: all
    of the learner's. ``all``: every row."""
    on_mismatch: Literal["error", "reset"] = "error"
    """When a checkpoint's curriculum has other data or another type. ``error``: the run is refused. ``reset``: pass
    rates start anew."""

    @property
    def start_file(self) -> str | None:
        """A file of start values; None: every prompt starts alike."""
        return None

    @abstractmethod
    def build(self, dataset: Any, seed: int | None) -> Curriculum:
        """Who draws the prompts of verl's ``dataset``, after its filters. Raises DataError: no usable tiers;
        ConfigError: your own class cannot be built or lacks a method."""


@dataclass(frozen=True)
class RatedConfig(CurriculumConfig):
    """A curriculum that keeps a pass rate for each prompt."""

    ema: float = limited(0.9, at_least=0, below=1)
    """Share of the old pass rate that an update keeps."""
    warm_start: str | None = None
    """First pass rates: a store of ``s2l explore``, or a file with the columns ``prompt_id`` and ``pass_rate``.
    With null every prompt starts at 0.5."""

    @property
    def start_file(self) -> str | None:
        return self.warm_start


@dataclass(frozen=True)
class GaussianConfig(RatedConfig):
    """EXPO: prompts are drawn with weight exp(-(pass rate - center)^2 / (2 sigma^2))."""

    learns = True
    shuffles = True

    type: Literal["gaussian"] = "gaussian"
    center: float = limited(0.5, at_least=0, at_most=1)
    """Pass rate with the largest weight."""
    sigma: float = limited(0.35, above=0)
    """Width of the curve; a larger one draws more evenly."""

    def build(self, dataset: Any, seed: int | None) -> Curriculum:
        from s2l_ext.methods.curriculum.gaussian import GaussianCurriculum

        return GaussianCurriculum(len(dataset), center=self.center, sigma=self.sigma, ema=self.ema)


@dataclass(frozen=True)
class UniformConfig(RatedConfig):
    """Every prompt has the same weight."""

    shuffles = True

    type: Literal["uniform"] = "uniform"

    def build(self, dataset: Any, seed: int | None) -> Curriculum:
        from s2l_ext.methods.curriculum.orders import UniformOrder

        return UniformOrder(len(dataset), seed=seed, ema=self.ema)


@dataclass(frozen=True)
class EasyToHardConfig(RatedConfig):
    """All prompts of a tier before the next tier."""

    laps = True

    type: Literal["easy_to_hard"] = "easy_to_hard"
    tier_column: str = "tier"
    """Column with the tiers."""
    tier_order: list[Any] | None = None
    """Tiers, easiest first; null sorts numbers."""

    def build(self, dataset: Any, seed: int | None) -> Curriculum:
        from s2l_ext.data.prompts import dataset_table, tiers_of
        from s2l_ext.methods.curriculum.orders import EasyToHard

        return EasyToHard(tiers_of(dataset_table(dataset), self.tier_column, self.tier_order), ema=self.ema)


@dataclass(frozen=True)
class FileOrderConfig(RatedConfig):
    """Prompts in the order of the file."""

    laps = True

    type: Literal["file_order"] = "file_order"

    def build(self, dataset: Any, seed: int | None) -> Curriculum:
        from s2l_ext.methods.curriculum.orders import FileOrder

        return FileOrder(len(dataset), ema=self.ema)


@dataclass(frozen=True, kw_only=True)
class OwnCurriculumConfig(CurriculumConfig):
    """Your own class draws the prompts."""

    learns = True

    type: str
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the class."""

    def build(self, dataset: Any, seed: int | None) -> Curriculum:
        """Called with ``num_prompts``, the options, and ``dataset`` if it has a parameter of that name."""
        kind = self.named()
        arguments = {"num_prompts": len(dataset), **self.options}
        try:
            if "dataset" in inspect.signature(kind).parameters:
                arguments["dataset"] = dataset
            curriculum = kind(**arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"s2l.curriculum.type={self.type} cannot be built with {', '.join(arguments)}: {error}. Its arguments "
                "come from s2l.curriculum.options."
            ) from error
        missing = [name for name in METHODS if not callable(getattr(curriculum, name, None))]
        if missing:
            raise ConfigError(f"s2l.curriculum.type={self.type} lacks {', '.join(missing)}; see docs/extending.md.")
        return curriculum

    def named(self) -> Any:
        """The class. Raises ConfigError if there is none."""
        return resolve(self.type, "s2l.curriculum.type", CURRICULA, GROUP)


AnyCurriculum = GaussianConfig | UniformConfig | EasyToHardConfig | FileOrderConfig | OwnCurriculumConfig
"""Distinguished by ``type``; the first is the default, the last has every other name."""
