"""verl's synchronous V1 trainer with the methods of this package; each override is one named seam of verl 0.9.1."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.workers.rollout.llm_server import LLMServerClient

from s2l_ext import state
from s2l_ext.algorithms.explorer import LinearAnnealing
from s2l_ext.config import parse_s2l
from s2l_ext.config.checks import AGENT_LOOP_MANAGER, check_against_verl
from s2l_ext.preflight import check_inputs, check_pool
from s2l_ext.registration import TRAINER_NAME, require_registered
from s2l_ext.rollout.explorer_servers import ExplorerServers
from s2l_ext.rollout.plan import SLOTS_FIELD, TwoModelClient
from s2l_ext.trainer.actor_worker import S2LActorWorker
from s2l_ext.trainer.corrections import grouped_by_source, write_importance_weights
from s2l_ext.trainer.row_metrics import finish_ratio_sums, require_explorer_rows, row_source_metrics
from s2l_ext.trainer.run_log import RunLog

logger = logging.getLogger(__name__)


@register_trainer(TRAINER_NAME)
class S2LTrainer(PPOTrainerSync):
    """S2L-PO on top of GRPO (arXiv 2605.30789).

    The one change versus GRPO: the first ``G_w`` sessions of every group are sampled by a frozen smaller model.
    State kept: none for the schedule (a function of the step); the fingerprint in ``s2l_state.json`` guards it.
    With every feature off each override hands straight on to verl.
    """

    def __init__(self, config: DictConfig) -> None:
        require_registered("trainer")
        _log_like_verl()
        self.s2l = parse_s2l(config.get("s2l"))
        self.explorer = self.s2l.explorer
        for warning in check_against_verl(self.s2l, config):
            logger.warning(warning)
        if self.explorer:
            for warning in check_inputs(config, self.s2l):
                logger.warning(warning)
        state.resume_state(self.s2l, config)
        _adapt(config, explorer_on=self.explorer is not None)
        self.explorer_servers: ExplorerServers | None = None
        self.explorer_gpus_held = 0
        super().__init__(config)
        group_size = config.actor_rollout_ref.rollout.n
        self.schedule = LinearAnnealing(self.explorer.mix_steps, group_size) if self.explorer else None

    # ---- start-up -------------------------------------------------------------------------------------------

    def _build_replay_buffer(self) -> Any:
        buffer = super()._build_replay_buffer()
        if self.s2l.rollout.poll_interval_s is not None:
            buffer.poll_interval = self.s2l.rollout.poll_interval_s
        return buffer

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        if self.explorer:
            check_pool(self.config, self.s2l, available=int(ray.cluster_resources().get("GPU", 0)))
            role = next(iter(self.role_worker_mapping))
            self.role_worker_mapping[role] = ray.remote(S2LActorWorker)

    def _setup(self) -> None:
        super()._setup()
        self.run_log = RunLog(Path(self.config.trainer.default_local_dir), resumed_step=self.global_steps)
        if self.explorer and self._slots(self.global_steps + 1) > 0:
            self.explorer_servers = ExplorerServers(self.config, self.explorer)
            self.explorer_gpus_held = self.explorer.n_gpus

    def get_llm_client(self) -> LLMServerClient:
        if self.explorer_servers is None:
            return super().get_llm_client() if not self.explorer else self._two_model_client(None)
        return self._two_model_client(self.explorer_servers.client())

    def _two_model_client(self, explorer: LLMServerClient | None) -> TwoModelClient:
        return self.llm_server_manager.get_client(client_cls=TwoModelClient, explorer=explorer)

    # ---- one step -------------------------------------------------------------------------------------------

    def _slots(self, step: int) -> int:
        return self.schedule.slots(step) if self.schedule else 0

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        batch = super()._next_train_batch(num_prompts)
        if self.explorer:
            tu.assign_non_tensor_data(batch, SLOTS_FIELD, self._slots(self.global_steps))
        if self.explorer_servers:
            self.explorer_servers.set_step(self.global_steps - 1)
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if not self.explorer:
            return super()._compute_advantage(batch, metrics)
        metrics.update(require_explorer_rows(batch, self._slots(self.global_steps)))
        if self.explorer.baseline == "per_source":
            with grouped_by_source(batch):
                batch = super()._compute_advantage(batch, metrics)
        else:
            batch = super()._compute_advantage(batch, metrics)
        if self.explorer.correction == "truncated_is":
            batch, stats = write_importance_weights(batch, self.explorer.is_cap)
            metrics.update(stats)
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._update_actor(batch, metrics)
        if self.explorer:
            metrics.update(finish_ratio_sums(metrics, weights_expected=self.explorer.correction == "truncated_is"))
        return batch

    def on_step_end(self) -> None:
        super().on_step_end()
        if self.explorer_servers and self._slots(self.global_steps + 1) == 0:
            self.explorer_gpus_held -= self.explorer_servers.stop()
            self.explorer_servers = None

    # ---- what was applied -----------------------------------------------------------------------------------

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        if self.explorer:
            metrics["s2l/explorer/slots"] = self._slots(global_steps)
            metrics["s2l/explorer/gpus_held"] = self.explorer_gpus_held
            with_behaviour = self.config.actor_rollout_ref.rollout.calculate_log_probs
            metrics.update(row_source_metrics(batch, with_behaviour))
        self.run_log.append(global_steps, metrics)

    def _validate(self) -> dict[str, float]:
        metrics = super()._validate()
        self.run_log.append(self.global_steps, metrics)
        return metrics

    # ---- checkpoints ----------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        """State first: verl then writes the tracker file that makes the checkpoint the latest."""
        settings = state.fingerprint(self.s2l, self.config)
        if settings is not None:
            folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
            state.save_state(folder, settings, controllers={})
        super()._save_checkpoint()


def _log_like_verl() -> None:
    """Send this package's log lines where verl's task runner sends its own; the root logger shows warnings only."""
    verl_logger, own = logging.getLogger("verl"), logging.getLogger("s2l_ext")
    own.handlers, own.propagate = verl_logger.handlers, verl_logger.propagate
    own.setLevel(verl_logger.level)


def _adapt(config: DictConfig, explorer_on: bool) -> None:
    """Base class behaviour hangs on ``trainer_mode == "sync"``: any other name is taken for asynchronous."""
    with open_dict(config):
        config.trainer.v1.trainer_mode = "sync"
        if explorer_on:
            config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = AGENT_LOOP_MANAGER
