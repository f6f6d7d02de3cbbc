"""The list of methods, in the order in which a run calls their hooks, and the ``s2l:`` block as a whole.

Your own method is an entry point of the group ``s2l.methods``: its name is the block, its value
``package.module:Class`` a subclass of :class:`s2l_ext.methods.base.Method`. Its hooks come after those of this list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from s2l_ext.config.limits import limited
from s2l_ext.config.parse import ROOT, parse_block, to_plain
from s2l_ext.config.resolve import resolve
from s2l_ext.methods.brought import own_methods
from s2l_ext.methods.curriculum.config import AnyCurriculum
from s2l_ext.methods.distill.config import DistillConfig
from s2l_ext.methods.explorer.config import AnyExplorer, LiveExplorer, OfflineExplorer
from s2l_ext.methods.guidance.config import GuidanceConfig
from s2l_ext.methods.kl.config import AnyKL

if TYPE_CHECKING:
    from s2l_ext.methods.base import Method

METHODS = {
    "explorer": "s2l_ext.methods.explorer.controller:Explorer",
    "guidance": "s2l_ext.methods.guidance.controller:Guidance",
    "curriculum": "s2l_ext.methods.curriculum.controller:Curriculum",
    "kl": "s2l_ext.methods.kl.controller:KL",
    "distill": "s2l_ext.methods.distill.controller:Distill",
}
"""Block -> class, in the order of hooks: guidance takes rollouts that the explorer left. Imported when first needed."""


@dataclass(frozen=True)
class RolloutOptions:
    """Rollouts of every method."""

    poll_interval_s: float | None = limited(None, above=0)
    """Seconds between looks for finished groups; null keeps verl's 2 s."""
    log_groups: int = limited(1, at_least=0)
    """Groups of every step that are written to ``samples.jsonl``."""
    session_timeout_s: float | None = limited(None, above=0)
    """A training session of the learner fails after so many seconds, its reward included; null waits
    without a limit, as verl does."""


@dataclass(frozen=True)
class PlacementConfig:
    """Label selectors of the nodes that may hold a role, as in ``ray start --labels pool=explorer``. Values are
    Ray's ``value``, ``!value``, ``in(a, b)``, ``!in(a, b)``."""

    learner: dict[str, Any] | None = None
    """Selector of the learner's nodes; null lets Ray choose."""
    explorer: dict[str, Any] | None = None
    """Selector of the explorer's nodes; null lets Ray choose."""


@dataclass(frozen=True)
class S2LConfig:
    """The whole block. A method that is None is off. ``others``: blocks of your own methods, by name."""

    explorer: AnyExplorer | None = None
    """S2L-PO; null is off."""
    kl: AnyKL | None = None
    """EXPO's KL coefficient; null is off."""
    curriculum: AnyCurriculum | None = None
    """EXPO's choice of prompts; null is off."""
    guidance: GuidanceConfig | None = None
    """G2RPO-A; null is off."""
    distill: DistillConfig | None = None
    """Sparse-to-dense; null is off."""
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    """Rollouts of every method."""
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    """Nodes of learner and explorer."""
    others: dict[str, Any] = field(default_factory=dict, metadata={"internal": True})

    @property
    def blocks(self) -> dict[str, Any]:
        """Configurations of the methods that are on, by block, in the order of their hooks."""
        own = {block: getattr(self, block) for block in METHODS}
        return {block: config for block, config in (own | self.others).items() if config is not None}

    @property
    def live_explorer(self) -> LiveExplorer | None:
        """The explorer, if it samples during the run."""
        return self.explorer if isinstance(self.explorer, LiveExplorer) else None

    @property
    def offline_explorer(self) -> OfflineExplorer | None:
        """The explorer, if its rows were sampled before."""
        return self.explorer if isinstance(self.explorer, OfflineExplorer) else None

    @property
    def any_method_on(self) -> bool:
        """Any method; ``rollout`` and ``placement`` change no training."""
        return bool(self.blocks)

    @property
    def mixes_rollouts(self) -> bool:
        """Rollouts of a group differ in who samples them or what they start from."""
        return self.explorer is not None or self.guidance is not None

    @property
    def own_manager(self) -> bool:
        """Rollouts are run by this package's agent-loop workers."""
        return self.mixes_rollouts or self.rollout.session_timeout_s is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for YAML or JSON; :func:`parse_s2l` reads them back."""
        plain = dataclasses.asdict(self)
        others = plain.pop("others")
        return plain | others


def methods_of(s2l: S2LConfig, cfg: DictConfig) -> list[Method]:
    """One object for each method that is on, in the order of hooks."""
    return [method_class(block)(config, s2l, cfg) for block, config in s2l.blocks.items()]


def accuracy_settings(s2l: S2LConfig, cfg: DictConfig, of_batch: bool = False) -> list[str]:
    """``key=value`` of settings that read the verifier's ``acc``. ``of_batch``: only those that follow the accuracy of
    many rows together."""
    methods = [method for method in methods_of(s2l, cfg) if not (of_batch and method.judges_each_row)]
    return [needed for method in methods if (needed := method.needs_accuracy)]


def brought() -> dict[str, type[Method]]:
    """Classes of installed packages, by block."""
    return own_methods(frozenset(item.name for item in dataclasses.fields(S2LConfig)))


def method_class(block: str) -> type[Method]:
    """The class of a block: this package's, or one that an installed package brings."""
    if block in METHODS:
        return resolve(METHODS[block], f"s2l.{block}", ())
    return brought()[block]


def parse_s2l(block: Mapping[str, Any] | DictConfig | None) -> S2LConfig:
    """Validate the ``s2l:`` block.

    Args:
        block: the block as composed; None is an empty block (every feature off).

    Raises:
        ConfigError: unknown key, wrong type, value out of range, or a required value that is missing.
    """
    plain, known = to_plain(block, ROOT), brought()
    if not isinstance(plain, Mapping):
        return parse_block(S2LConfig, plain, ROOT)  # says what a block is
    own = {name: value for name, value in plain.items() if name in known}
    others: dict[str, Any] = {
        name: parse_block(known[name].config_class, value, f"{ROOT}.{name}")
        for name, value in own.items()
        if value is not None
    }
    rest = {name: value for name, value in plain.items() if name not in own}
    return dataclasses.replace(parse_block(S2LConfig, rest, ROOT), others=others)
