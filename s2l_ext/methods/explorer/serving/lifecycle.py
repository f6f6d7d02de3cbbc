"""When the explorer's servers start, sleep and wake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verl.trainer.ppo.utils import Role

from s2l_ext.methods.explorer.config import ExplorerConfig
from s2l_ext.methods.explorer.serving.colocated import ColocatedServers
from s2l_ext.methods.explorer.serving.early_start import EarlyStart
from s2l_ext.methods.explorer.serving.health import FaultLedger
from s2l_ext.methods.explorer.serving.servers import ExplorerServers
from s2l_ext.training import label_selectors as placed
from s2l_ext.training.needed import only_validates, steps_done
from s2l_ext.training.pending_prompts import InFlight

ACTOR_ROLES = (Role.Actor, Role.ActorRolloutRef, Role.ActorRollout)


class ExplorerLife:
    """Part of the trainer; what it reads is set by :class:`~s2l_ext.training.trainer.S2LMethods`."""

    config: Any
    mode: str
    explorer: ExplorerConfig | None
    explorer_faults: FaultLedger
    explorer_servers: ExplorerServers | None
    resource_pool_manager: Any
    schedule: Any
    in_flight: InFlight
    global_steps: int
    placed_after: int

    def _slots(self, step: int) -> int:
        return self.schedule.slots(step) if self.schedule else 0

    def _explorer_is_needed(self) -> bool:
        """By the next step's prompts, or by those that were drawn before; no validation asks it."""
        if only_validates(self.config):
            return False
        return self._slots(self.global_steps + 1) > 0 or self.in_flight.need_explorer

    def _start_explorer(self) -> ExplorerServers:
        assert self.explorer is not None
        if not self.explorer.is_colocated:
            return ExplorerServers(self.config, self.explorer, self.explorer_faults)
        manager = self.resource_pool_manager
        role = next(role for role in ACTOR_ROLES if role in manager.mapping)
        return ColocatedServers(self.config, self.explorer, self.explorer_faults, manager.get_resource_pool(role))

    def _start_explorer_early(self) -> EarlyStart[ExplorerServers] | None:
        """Beside the learner's engines, where the checkpoint's step alone says whether it will be needed.

        Engines of one accelerator start one after the other: each measures the memory that is free.
        """
        explorer = self.explorer
        if explorer is None or not explorer.is_live or explorer.is_colocated or self.mode != "sync":
            return None
        is_needed = not only_validates(self.config) and self._slots(steps_done(self.config) + 1) > 0
        return EarlyStart(self._start_explorer, self._learner_is_placed) if is_needed else None

    def _learner_is_placed(self) -> bool:
        manager = getattr(self, "resource_pool_manager", None)
        pools = list(manager.resource_pool_dict.values()) if manager else []
        return pools != [] and all(pool.pgs is not None for pool in pools)

    def _record_placement(self) -> None:
        self.placed_after = self.explorer_faults.restarts
        placed.record(Path(self.config.trainer.default_local_dir))

    def _explorer_faults_of_step(self) -> dict[str, float]:
        """What failed since the last step. A server that was started again may be on another node."""
        if self.explorer_faults.restarts != self.placed_after:
            self._record_placement()
        return self.explorer_faults.step_metrics()

    def prepare_step(self) -> dict[str, Any]:
        """verl sends the step's prompts here, so sessions start before ``on_sample_begin``; the learner has its new
        weights and its key-value cache since the last step's end."""
        if isinstance(self.explorer_servers, ColocatedServers):
            self.explorer_servers.wake_up()
        prepared: dict[str, Any] = super().prepare_step()  # type: ignore[misc]
        return prepared

    def on_sample_end(self) -> None:
        super().on_sample_end()  # type: ignore[misc]
        if isinstance(self.explorer_servers, ColocatedServers):
            self.explorer_servers.sleep()
