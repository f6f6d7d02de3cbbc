"""This package's part in verl's V1 trainer, whatever its mode; each override is one named seam of verl 0.9.1."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

import ray
from omegaconf import DictConfig
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.device import get_resource_name
from verl.workers.rollout.llm_server import LLMServerClient

from s2l_ext.config.modes import most_draws
from s2l_ext.data.prompts import require_enough
from s2l_ext.methods.curriculum.controller import FILE_NAME as CURRICULUM_FILE
from s2l_ext.methods.curriculum.controller import StepPrompts
from s2l_ext.methods.curriculum.sampler import replace_sampler, resumed_sampler
from s2l_ext.methods.distill import controller as distill
from s2l_ext.methods.distill.worker import DistillActorWorker
from s2l_ext.methods.explorer.schedule import build_schedule
from s2l_ext.methods.explorer.serving.health import FaultLedger
from s2l_ext.methods.explorer.serving.lifecycle import ExplorerLife
from s2l_ext.methods.explorer.serving.servers import ExplorerServers
from s2l_ext.methods.explorer.stored_controller import StepRollouts
from s2l_ext.methods.guidance.controller import StepGuidance, resumed_guidance
from s2l_ext.methods.kl.controller import StepKL
from s2l_ext.methods.kl.rules import needs_accuracy
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training import controller_state as state
from s2l_ext.training import label_selectors as placed
from s2l_ext.training.actor_worker import S2LActorWorker
from s2l_ext.training.adapting import adapt, log_like_verl
from s2l_ext.training.batch_fields import carrying
from s2l_ext.training.checkpoint_files import check_files, check_workers, note_files
from s2l_ext.training.corrections import grouped_by_source, take_guidance_for_the_learners, write_importance_weights
from s2l_ext.training.disk_full import disk_full_explained
from s2l_ext.training.evicted import Evicted
from s2l_ext.training.faults import Actors, fallback_rows, own_actors, own_managers, uid_of, watch_sampling
from s2l_ext.training.needed import needed_now, only_validates
from s2l_ext.training.outcomes import Session, row_order, sessions_of, timed_out_rows
from s2l_ext.training.pending_prompts import InFlight, PromptPlan, keep_ages, waiting_prompts
from s2l_ext.training.planning import make_plans, planned_length
from s2l_ext.training.preflight import check_inputs, check_pool, check_warm_start
from s2l_ext.training.registration import require_registered
from s2l_ext.training.reward_probe import check_reward
from s2l_ext.training.row_metrics import (
    explorer_share,
    finish_ratio_sums,
    require_explorer_rows,
    require_learner_rows,
    row_source_metrics,
)
from s2l_ext.training.rules import check_against_verl
from s2l_ext.training.run_log import RunLog, StepFile
from s2l_ext.training.sample_log import FILE_NAME as SAMPLES_FILE
from s2l_ext.training.sample_log import sample_rows
from s2l_ext.training.waiting import waiting_of
from s2l_ext.training.watchdog import Lifeline
from s2l_ext.utils.pass_at_k import validation_pass_at_k

logger = logging.getLogger(__name__)


class S2LMethods(ExplorerLife, PPOTrainer):
    """S2L-PO, EXPO, G2RPO-A and sparse-to-dense on top of GRPO, each in its own block of ``s2l:``.

    ``explorer``: the first ``G_w`` sessions of every group are sampled by a frozen smaller model. ``guidance``: the
    next ``round(alpha G)`` continue a reasoning trace. ``kl``: the coefficient of the KL term is chosen for each step.
    ``curriculum``: the step's prompts are drawn by pass rate. ``distill``: a divergence to a teacher is the loss.
    State kept: controllers in ``s2l_state.json`` beside each checkpoint, guarded by a fingerprint.
    With every feature off each override hands straight on to verl. A trainer names verl's trainer of its mode as its
    second base (see ``s2l_trainer``), and that mode's name in verl.
    """

    mode: str
    actor_worker: type = S2LActorWorker
    distill_worker: type = DistillActorWorker

    def __init__(self, config: DictConfig) -> None:
        require_registered("trainer")
        log_like_verl()
        self.s2l = parse_s2l(config.get("s2l"))
        self.explorer = self.s2l.explorer
        for warning in check_against_verl(self.s2l, config):
            logger.warning(warning)
        if self.s2l.anything_on:
            for warning in [*check_inputs(config, self.s2l), *check_reward(config, self.s2l)]:
                logger.warning(warning)
        check_files(state.checkpoint_folder(config))
        check_workers(state.checkpoint_folder(config), config)
        self.resumed = state.resume_state(self.s2l, config)
        check_warm_start(config, self.s2l, self.resumed)
        self.settings = state.fingerprint(self.s2l, config)
        adapt(config, self.s2l, self.mode)
        self.explorer_servers: ExplorerServers | None = None
        self.explorer_gpus_held = 0
        self.explorer_faults = FaultLedger()
        self.fallen: list[str] = []
        self.evicted = Evicted(self.s2l)
        self.lifeline: Lifeline | None = None
        super().__init__(config)
        explorer, size = self.explorer, config.actor_rollout_ref.rollout.n
        self.schedule = build_schedule(explorer.schedule, explorer.mix_steps, size) if explorer else None
        distills = needed_now(config, self.s2l).distill
        self.distills = bool(distills and distills.in_actor)
        self.step_kl = StepKL(self.s2l.kl, config) if self.s2l.kl else None
        if self.step_kl and "kl" in self.resumed:
            self.step_kl.load_state_dict(self.resumed["kl"])
        self.prompts: StepPrompts | None = None
        self.guidance: StepGuidance | None = None
        self.stored: StepRollouts | None = None
        self.in_flight = InFlight(most_draws(config))
        if "in_flight" in self.resumed:
            self.in_flight.load_state_dict(self.resumed["in_flight"])
        self.step_plans: dict[str, PromptPlan] = {}
        self.sessions: list[Session] = []
        self.updated: tuple[KVBatchMeta, dict[str, Any]] | None = None

    # ---- start-up -------------------------------------------------------------------------------------------

    def _build_replay_buffer(self) -> Any:
        buffer = super()._build_replay_buffer()
        if self.s2l.rollout.poll_interval_s is not None:
            buffer.poll_interval = self.s2l.rollout.poll_interval_s
        self.evicted.watch(buffer, self.config)
        if self.s2l.anything_on or self.s2l.own_manager:
            watch_sampling(buffer, self._check_processes, waiting_of(self))
        return buffer

    def _check_processes(self) -> None:
        if self.explorer_servers:
            self.explorer_servers.check()
        self.lifeline = self.lifeline or Lifeline(Actors(own_actors(self)))
        self.lifeline.check()

    def fit(self, agent_loop_manager: Any) -> None:
        try:
            super().fit(agent_loop_manager)
        finally:
            if self.lifeline:
                self.lifeline.end()

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        if not only_validates(self.config):
            require_enough(len(self.train_dataset), self.config.data.train_batch_size)
        if self.explorer and not self.explorer.is_live:
            self.stored = StepRollouts(self.explorer, self.config.data.get("seed") or 0)
            if "stored_rows" in self.resumed:
                self.stored.load_state_dict(self.resumed["stored_rows"])
        if self.s2l.guidance:
            steps = min(self.total_training_steps, self.steps_per_epoch * self.config.trainer.total_epochs)
            size, saved = self.config.actor_rollout_ref.rollout.n, self.resumed.get("guidance")
            self.guidance = resumed_guidance(self.s2l.guidance, size, steps, saved)
        if self.s2l.curriculum is None:
            return
        sampler = resumed_sampler(self.s2l.curriculum, self.config, self.train_dataset, self.resumed.get("curriculum"))
        self.prompts = StepPrompts(self.s2l.curriculum, sampler)
        self.train_dataloader = replace_sampler(self, sampler)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        if self.explorer:
            held = int(ray.cluster_resources().get(get_resource_name(), 0))
            check_pool(self.config, needed_now(self.config, self.s2l), available=held)
        if self.s2l.own_sessions or self.step_kl or self.distills:
            role = next(iter(self.role_worker_mapping))
            self.role_worker_mapping[role] = ray.remote(self.distill_worker if self.distills else self.actor_worker)
        self.resource_pool_manager = placed.placed_learner(self.resource_pool_manager, self.s2l.placement.learner)

    def _setup(self) -> None:
        early = self._start_explorer_early()
        rewards = own_managers() if self.s2l.anything_on else nullcontext()
        with rewards, early or nullcontext():
            super()._setup()
        folder = Path(self.config.trainer.default_local_dir)
        keep = None if only_validates(self.config) else self.global_steps
        self.run_log = RunLog(folder, resumed_step=keep)
        self.prompt_log = StepFile(folder / CURRICULUM_FILE, resumed_step=keep)
        self.sample_log = StepFile(folder / SAMPLES_FILE, resumed_step=keep)
        if self.explorer and self.explorer.is_live and self._explorer_is_needed():
            self.explorer_servers = early.result() if early else self._start_explorer()
            self.explorer_gpus_held = self.explorer.n_gpus
        self._record_placement()

    def get_llm_client(self) -> LLMServerClient:
        client = super().get_llm_client()
        return client if self.explorer_servers is None else carrying(client, self.explorer_servers.client())

    # ---- drawing prompts ------------------------------------------------------------------------------------

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        """Called once a step; in asynchronous modes also for what is drawn ahead, or in place of what is dropped."""
        batch = super()._next_train_batch(num_prompts)
        slots = self._slots(self.global_steps) if self.explorer else None
        if self.explorer_servers:
            self.explorer_servers.set_step(self.global_steps - 1)
        plans = make_plans(batch, self.global_steps, slots, self.guidance, self.stored, self.prompts)
        self.in_flight.add(plans)
        return batch

    def _reissue_inflight_prompts(self, partition_id: str = "train") -> int:
        sent = super()._reissue_inflight_prompts(partition_id)
        if sent and self.s2l.anything_on:
            keep_ages(self.in_flight)
        return sent

    # ---- one step -------------------------------------------------------------------------------------------

    def _take_plans(self, batch: KVBatchMeta) -> None:
        """The step trains on ``batch``: its prompts' plans, which are of this step or of an earlier one."""
        if self.mode == "sync":
            self.step_plans = self.in_flight.take_all()
            return
        trained = {key.rsplit("_", 2)[0] for key in batch.keys}
        self.step_plans = self.in_flight.take(trained, waiting_prompts(), strict=self.s2l.anything_on)

    def _balance_batch(
        self, batch: KVBatchMeta, metrics: dict, logging_prefix: str = "global_seqlen", keep_minibatch: bool = False
    ) -> KVBatchMeta:
        """Rows arrive in any order and fill mini-batches in that order; what must come out the same again after a
        restart needs the same updates before it."""
        self._take_plans(batch)
        if self.s2l.anything_on:
            batch.reorder(row_order(list(self.step_plans), batch.keys))
        return super()._balance_batch(batch, metrics, logging_prefix, keep_minibatch)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self.distills:
            return batch
        batch = super()._compute_old_log_prob(batch, metrics)
        with_behaviour = self.config.actor_rollout_ref.rollout.calculate_log_probs
        if self.s2l.guidance and self.s2l.guidance.loss_on_guidance and with_behaviour:
            metrics.update(take_guidance_for_the_learners(batch))
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self._observe(batch, metrics)
        if self.distills:
            batch = distill.zero_advantages(batch)
        elif self.explorer and self.explorer.baseline == "per_source":
            with grouped_by_source(batch, changed={uid_of(key) for key in self.fallen}):
                batch = super()._compute_advantage(batch, metrics)
        else:
            batch = super()._compute_advantage(batch, metrics)
        if self.explorer and self.explorer.correction == "truncated_is":
            batch, stats = write_importance_weights(batch, self.explorer.is_cap)
            metrics.update(stats)
        if self.s2l.distill and self.s2l.distill.correct_only:
            batch, stats = distill.leave_out_wrong(batch)
            metrics.update(stats)
        return batch

    def _observe(self, batch: KVBatchMeta, metrics: dict) -> None:
        """Show the step's outcome to the controllers."""
        if self.prompts or self.step_kl or self.guidance:
            needed = bool(needs_accuracy(self.s2l.kl, self.s2l.curriculum, self.s2l.guidance, self.s2l.distill))
            self.sessions = sessions_of(batch, self.s2l.own_sessions, self.guidance is not None, strict=needed)
            self.sessions += self.evicted.take(metrics)
        if self.prompts:
            self.prompts.train_on(self.step_plans)
            self.prompts.observe(self.sessions)
        if self.guidance:
            self.guidance.observe(planned_length(self.step_plans.values()), self.sessions)
        expected = {uid: plan.explorer_rows for uid, plan in self.step_plans.items()}
        if self.explorer:
            metrics.update(require_explorer_rows(batch, expected))
        if self.s2l.anything_on:
            metrics.update(require_learner_rows(batch, expected, self.config.actor_rollout_ref.rollout.n))
        if self.explorer and self.explorer.is_live:
            self.fallen = fallback_rows(batch, expected) if self.explorer.on_failure == "learner" else []
            metrics["s2l/explorer/fallback_rows"] = float(len(self.fallen))
            metrics.update(self._explorer_faults_of_step())
        if self.lifeline:
            metrics["s2l/reward/restarts"] = float(self.lifeline.restarts)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self.step_kl:
            self.step_kl.send(batch, self.sessions)
        batch = super()._update_actor(batch, metrics)
        self.updated = (batch, metrics)
        if self.distills:
            metrics.update(distill.finish_token_sums(metrics))
            return batch
        if self.step_kl:
            self.step_kl.receive(metrics)
        if self.s2l.own_sessions:
            weighted = self.explorer is not None and self.explorer.correction == "truncated_is"
            metrics.update(finish_ratio_sums(metrics, weights_expected=weighted))
        return batch

    def on_step_end(self) -> None:
        super().on_step_end()
        if self.explorer_servers:
            self.explorer_gpus_held = self.explorer_servers.gpus_held
        if self.explorer_servers and not self._explorer_is_needed():
            self.explorer_gpus_held = max(0, self.explorer_gpus_held - self.explorer_servers.stop())
            self.explorer_servers = None

    # ---- what was applied -----------------------------------------------------------------------------------

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        metrics.update(self._own_metrics(batch, global_steps))
        if self.prompts:
            self.prompt_log.write(global_steps, self.prompts.line())
        if self.s2l.rollout.log_groups:
            self.sample_log.write(global_steps, self._samples(batch))
        self.run_log.append(global_steps, metrics)

    def _samples(self, batch: KVBatchMeta) -> dict[str, Any]:
        uids, groups, guided = list(self.step_plans), self.s2l.rollout.log_groups, self.guidance is not None
        return {"rows": sample_rows(batch, uids, self.tokenizer, self.s2l.own_sessions, guided, most=groups)}

    def _own_metrics(self, batch: KVBatchMeta, step: int) -> dict[str, float]:
        metrics = timed_out_rows(batch) if self.s2l.anything_on else {}
        if self.explorer:
            metrics["s2l/explorer/slots"] = mean(plan.slots for plan in self.step_plans.values())
            metrics["s2l/explorer/gpus_held"] = self.explorer_gpus_held
        if self.stored:
            trained = {uid_of(key) for key in batch.keys}  # a synchronous step has plans of filtered groups too
            metrics.update(self.stored.metrics(plan for uid, plan in self.step_plans.items() if uid in trained))
        if self.s2l.own_sessions:
            with_behaviour = self.config.actor_rollout_ref.rollout.calculate_log_probs
            metrics.update(
                row_source_metrics(batch, with_behaviour, self.guidance is not None, with_learner=not self.distills)
            )
        if self.explorer:
            metrics["s2l/explorer/share"] = explorer_share(metrics)
        if self.guidance:
            metrics.update(self.guidance.metrics())
        if self.step_kl:
            metrics.update(self.step_kl.metrics())
        if self.prompts:
            metrics.update(self.prompts.metrics())
        if self.mode != "sync" and self.s2l.anything_on:
            metrics.update(self.in_flight.metrics(step, self.step_plans))
        return metrics

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=None
    ) -> dict[str, float]:
        by_sample = data_sources, sample_uids, reward_extra_infos_dict
        metrics: dict[str, float] = super()._val_metrics_update(*by_sample, sample_turns, expected_acc_counts)
        metrics.update(validation_pass_at_k(*by_sample, expected_acc_counts or {}))
        self.run_log.append(self.global_steps, metrics)
        return metrics

    # ---- checkpoints ----------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        """State first: verl then writes the tracker file that makes the checkpoint the latest."""
        run = Path(self.config.trainer.default_local_dir)
        folder = run / f"global_step_{self.global_steps}"
        with disk_full_explained(run, self.global_steps):
            if self.settings is not None:
                state.save_state(folder, self.settings, self._controllers())
                self._hold_lines()
            super()._save_checkpoint()
            if self.settings is not None:
                note_files(folder)

    def _hold_lines(self) -> None:
        """verl computes metrics after the checkpoint and after validation; a kill in between must not lose the step."""
        if self.updated is None:  # critic warm-up: no update yet
            return
        batch, metrics = self.updated
        held = metrics | self._own_metrics(batch, self.global_steps)
        if not self.config.actor_rollout_ref.rollout.get("moe_load_balance_metrics_interval", 0):  # counts its calls
            elapsed = {"step": sum(self.timing_raw.values()), **self.timing_raw}  # the step's own timer still runs
            epoch = (self.global_steps - 1) // self.steps_per_epoch
            super()._compute_metrics(batch, held, elapsed, self.global_steps, epoch)
        self.run_log.hold_metrics(self.global_steps, held)
        if self.prompts:
            self.prompt_log.hold(self.global_steps, self.prompts.line())
        if self.s2l.rollout.log_groups:
            self.sample_log.hold(self.global_steps, self._samples(batch))

    def _controllers(self) -> dict[str, dict[str, Any]]:
        controllers: dict[str, dict[str, Any]] = {}
        if self.stored:
            controllers["stored_rows"] = self.stored.state_dict()
        if self.step_kl:
            controllers["kl"] = self.step_kl.state_dict()
        if self.guidance:
            controllers["guidance"] = self.guidance.state_dict()
        if self.prompts:
            controllers["curriculum"] = self.prompts.sampler.controller_state()
        if self.mode != "sync":
            controllers["in_flight"] = self.in_flight.state_dict()
        return controllers
