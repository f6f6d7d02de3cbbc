"""The ``s2l:`` block: typed, frozen, with the papers' values as defaults. Imports neither verl nor ray nor torch."""

from s2l_ext.config.parse import parse_s2l
from s2l_ext.methods.config import ExplorerConfig, RolloutOptions, S2LConfig

__all__ = ["ExplorerConfig", "RolloutOptions", "S2LConfig", "parse_s2l"]
