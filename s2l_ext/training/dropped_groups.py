"""Groups that ``algorithm.filter_groups`` drops still count in the policy's accuracy.

verl drops a group whose rewards are all equal and trains on the others. The accuracy of the others alone hides success
and collapse: with G = 8 a true 0.02 looks like 0.134, 0.95 like 0.851.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import setting
from s2l_ext.methods.registry import S2LConfig, accuracy_settings
from s2l_ext.platforms.patches.training import report_drops
from s2l_ext.training.outcomes import RolloutOutcome
from s2l_ext.training.queue import KVBatchMeta, RowKey
from s2l_ext.training.step import StepRows

CUSTOM_SAMPLER = "trainer.v1.sampler.custom_sampler.name"


def may_drop_groups(cfg: DictConfig) -> bool:
    """A step may have no rows of a prompt that was drawn for it, though no session failed."""
    return bool(setting(cfg, "algorithm.filter_groups.enable") or setting(cfg, CUSTOM_SAMPLER))


class DroppedGroups:
    """Sessions of the finished groups that verl's replay buffer drops before a step, read before they are gone.

    Groups dropped because of their age are left out, as they do not show today's policy; failed ones too.
    """

    def __init__(self, s2l: S2LConfig) -> None:
        self._s2l = s2l
        self._strict = True
        self._outcomes: list[RolloutOutcome] = []

    def watch(self, buffer: Any, cfg: DictConfig) -> None:
        """Listen where a method says an accuracy of the policy and verl's own buffer filters groups."""
        filters = setting(cfg, "algorithm.filter_groups.enable") and not setting(cfg, CUSTOM_SAMPLER)
        follows = bool(accuracy_settings(self._s2l, cfg, of_batch=True))
        if not filters or not (follows or self._s2l.kl or self._s2l.guidance):
            return
        self._strict = follows
        report_drops(buffer, partial(self._read, buffer))

    def _read(self, buffer: Any, partition_id: str, uids: set[str]) -> None:
        rows = {key: tag for key, tag in buffer.partitions[partition_id].items() if RowKey.parse(key).uid in uids}
        if rows:
            batch = KVBatchMeta(partition_id=partition_id, keys=list(rows), tags=list(rows.values()))
            guided = self._s2l.guidance is not None
            read = StepRows.of(batch, self._s2l.mixes_rollouts, guided, with_seconds=False)
            self._outcomes += read.outcomes(self._strict)

    def take(self, metrics: dict[str, Any]) -> list[RolloutOutcome]:
        """Those since the last step; their number goes to ``metrics``."""
        outcomes, self._outcomes = self._outcomes, []
        if outcomes:
            metrics["s2l/filter/rows_counted"] = float(len(outcomes))
        return outcomes
