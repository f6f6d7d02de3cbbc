"""The ``s2l:`` block as a whole: one field for each method, and what belongs to none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from s2l_ext.config.limits import limited
from s2l_ext.config.parse import ROOT, parse_block
from s2l_ext.methods.curriculum.config import CurriculumConfig
from s2l_ext.methods.distill.config import DistillConfig
from s2l_ext.methods.explorer.config import ExplorerConfig
from s2l_ext.methods.guidance.config import GuidanceConfig
from s2l_ext.methods.kl.config import KLConfig


@dataclass(frozen=True)
class RolloutOptions:
    """``poll_interval_s``: seconds between looks for finished groups; None keeps verl's own 2 s. ``log_groups``: groups
    of every step that are written to ``samples.jsonl``, to be read. ``session_timeout_s``: a training session that the
    learner samples fails after so many seconds, its reward included; None waits for ever, as verl does."""

    poll_interval_s: float | None = limited(None, above=0)
    log_groups: int = limited(1, at_least=0)
    session_timeout_s: float | None = limited(None, above=0)


@dataclass(frozen=True)
class PlacementConfig:
    """Label selectors of the nodes that may hold a role, as in ``ray start --labels pool=explorer``; values are Ray's
    ``value``, ``!value``, ``in(a, b)``, ``!in(a, b)``. None lets Ray choose."""

    learner: dict[str, Any] | None = None
    explorer: dict[str, Any] | None = None


@dataclass(frozen=True)
class S2LConfig:
    """The whole block. A feature that is None is off."""

    explorer: ExplorerConfig | None = None
    kl: KLConfig | None = None
    curriculum: CurriculumConfig | None = None
    guidance: GuidanceConfig | None = None
    distill: DistillConfig | None = None
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    placement: PlacementConfig = field(default_factory=PlacementConfig)

    @property
    def anything_on(self) -> bool:
        """Any feature that changes training; ``rollout`` and ``placement`` change none."""
        features = (self.explorer, self.kl, self.curriculum, self.guidance, self.distill)
        return any(feature is not None for feature in features)

    @property
    def own_sessions(self) -> bool:
        """Sessions of a group differ in who samples them or what they start from."""
        return self.explorer is not None or self.guidance is not None

    @property
    def own_manager(self) -> bool:
        """Sessions are run by this package's agent-loop workers."""
        return self.own_sessions or self.rollout.session_timeout_s is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for YAML or JSON; :func:`s2l_ext.methods.registry.parse_s2l` reads them back."""
        return dataclasses.asdict(self)


def parse_s2l(block: Mapping[str, Any] | DictConfig | None) -> S2LConfig:
    """Validate the ``s2l:`` block.

    Args:
        block: the block as composed; None is an empty block (every feature off).

    Raises:
        ConfigError: unknown key, wrong type, value out of range, or a required value that is missing.
    """
    return parse_block(S2LConfig, block, ROOT)
