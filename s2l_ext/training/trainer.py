"""verl's V1 trainer with methods, for every mode. Each override is one named method of verl 0.9.1.

The trainer knows no method by name. It calls the hooks of the enabled methods, in the registry's order. With every
method off each override calls verl unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import AdaptiveKLController
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.device import get_resource_name
from verl.workers.rollout.llm_server import LLMServerClient

from s2l_ext.config.modes import most_draws
from s2l_ext.data.prompts import require_enough
from s2l_ext.methods.base import Method
from s2l_ext.methods.brought import checked_value
from s2l_ext.methods.registry import accuracy_settings, methods_of, parse_s2l
from s2l_ext.platforms.patches.training import watch_sampling
from s2l_ext.training import controller_state, label_selectors
from s2l_ext.training.actor_worker import S2LActorWorker, extending_all
from s2l_ext.training.before_run import check_before_run
from s2l_ext.training.checkpoint_files import disk_full_explained, leave_for_older, note_files
from s2l_ext.training.dropped_groups import DroppedGroups, may_drop_groups
from s2l_ext.training.faults import Actors, ActorWatchdog, own_actors, own_managers
from s2l_ext.training.needed import needed_now, only_validates
from s2l_ext.training.pending_prompts import Draw, PendingPrompts, PromptPlan
from s2l_ext.training.preflight import check_pool
from s2l_ext.training.queue import KVBatchMeta, RowKey, clear_trained_rows, dated_when_sent, waiting_prompts
from s2l_ext.training.registration import log_like_verl, require_registered
from s2l_ext.training.reward_probe import check_reward
from s2l_ext.training.run_log import RunLog, StepFile
from s2l_ext.training.sample_log import FILE_NAME as SAMPLES_FILE
from s2l_ext.training.sample_log import sample_rows
from s2l_ext.training.source_statistics import guidance_statistics, row_statistics, take_sums, token_statistics
from s2l_ext.training.step import Step, StepRows, require_rows, row_order
from s2l_ext.training.verl_rules import AGENT_LOOP_MANAGER
from s2l_ext.training.waiting import Waiting
from s2l_ext.utils.pass_at_k import validation_pass_at_k

logger = logging.getLogger(__name__)

GROUP = "actor_rollout_ref"


class S2LTrainerMixin(PPOTrainer):
    """Mixed in before verl's trainer of one mode (see ``trainers_by_mode``). ``mode`` is verl's name of that mode.

    State kept: methods' controllers in ``s2l_state.json`` beside each checkpoint, guarded by a fingerprint.
    """

    mode: str
    detached_workers: Mapping[Any, type] | None = None
    """Actor worker -> the class to use instead; None uses it unchanged."""

    def __init__(self, config: DictConfig) -> None:
        require_registered("trainer")
        log_like_verl()
        self.s2l = parse_s2l(config.get("s2l"))
        self.methods = methods_of(self.s2l, config)
        warnings, self.resumed = check_before_run(config, self.s2l, inputs=bool(self.methods))
        for warning in [*warnings, *check_reward(config, self.s2l)]:
            logger.warning(warning)
        self.settings = controller_state.fingerprint(self.s2l, config)
        self.needs_accuracy = bool(accuracy_settings(self.s2l, config))
        self._adapt(config)  # before verl's constructor, which reads the mode and builds the replay buffer
        self.dropped_groups = DroppedGroups(self.s2l)
        self.watchdog: ActorWatchdog | None = None
        super().__init__(config)
        self.pending = PendingPrompts(most_draws(config))
        if "in_flight" in self.resumed:
            self.pending.load_state_dict(self.resumed["in_flight"])
        if self._adaptive_kl and "kl_in_reward" in self.resumed:
            self._adaptive_kl.value = self.resumed["kl_in_reward"]["value"]
        self.step_plans: dict[str, PromptPlan] = {}
        self.current: Step | None = None
        self.updated: tuple[KVBatchMeta, dict[str, Any]] | None = None

    def _adapt(self, config: DictConfig) -> None:
        """Apply what methods need. verl's base class reads ``trainer.v1.<mode>`` by verl's name of the mode."""
        with open_dict(config):
            config.trainer.v1.trainer_mode = self.mode
            if self.s2l.own_manager:
                config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = AGENT_LOOP_MANAGER
        for method in self.methods:
            method.adapt()

    # ---- start-up -------------------------------------------------------------------------------------------

    def _build_replay_buffer(self) -> Any:
        buffer = super()._build_replay_buffer()
        if self.s2l.rollout.poll_interval_s is not None:
            buffer.poll_interval = self.s2l.rollout.poll_interval_s
        self.dropped_groups.watch(buffer, self.config)
        if self.methods or self.s2l.own_manager:
            waiting = Waiting(self.s2l.rollout.session_timeout_s)
            watch_sampling(buffer, waiting.begin, waiting.look, self._check_processes)
        return buffer

    def _check_processes(self) -> None:
        for method in self.methods:
            method.check_alive()
        self.watchdog = self.watchdog or ActorWatchdog(Actors(own_actors(self)))
        self.watchdog.check()

    @property
    def _adaptive_kl(self) -> AdaptiveKLController | None:
        """verl's coefficient of ``algorithm.use_kl_in_reward``, where it changes from step to step."""
        found = getattr(self, "kl_ctrl_in_reward", None)
        return found if isinstance(found, AdaptiveKLController) else None

    def fit(self, agent_loop_manager: Any) -> None:
        if self._owes_validation():
            self.config.trainer.val_before_train = True
        try:
            super().fit(agent_loop_manager)
        finally:
            if self.watchdog:
                self.watchdog.end()

    def _owes_validation(self) -> bool:
        """Whether the run was killed between the checkpoint that it resumes and that step's validation."""
        step, every = self.global_steps, self.config.trainer.test_freq
        due = step > 0 and every > 0 and (step % every == 0 or step >= self.total_training_steps)
        return due and not (self.config.trainer.get("val_only") or self.run_log.is_validated(step))

    def _init_dataloader(self) -> None:
        # verl starts its workers after this, and loads its checkpoint of the data loader after them: bad data is
        # found before models load, and the curriculum's sampler has its state before the first fetch
        super()._init_dataloader()
        # where the epochs end the run, verl would neither save nor validate its last step
        last = self.steps_per_epoch * self.config.trainer.total_epochs
        self.total_training_steps = min(self.total_training_steps, last)
        if not only_validates(self.config):
            require_enough(len(self.train_dataset), self.config.data.train_batch_size)
        for method in self.methods:
            method.start(self)
            name = method.state_key or method.block
            if name in self.resumed:
                method.load_state_dict(self.resumed[name])
            else:
                controller_state.refuse_lost(method)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        if self.methods:
            available = int(ray.cluster_resources().get(get_resource_name(), 0))
            check_pool(self.config, needed_now(self.config, self.s2l), available)
        # verl builds its workers from this mapping right after; its first role is the actor's in every mode
        workers = [worker for method in self.methods if (worker := method.actor_worker())]
        if self.methods:
            worker = extending_all(workers or [S2LActorWorker])
            role = next(iter(self.role_worker_mapping))
            self.role_worker_mapping[role] = ray.remote((self.detached_workers or {}).get(worker, worker))
        self.resource_pool_manager = label_selectors.placed_learner(
            self.resource_pool_manager, self.s2l.placement.learner
        )

    def _setup(self) -> None:
        with ExitStack() as stack:
            for method in self.methods:
                stack.enter_context(method.around_setup(self))
            with own_managers() if self.methods else nullcontext():  # only this start builds our managers
                super()._setup()
        folder = Path(self.config.trainer.default_local_dir)
        keep = None if only_validates(self.config) else self.global_steps
        self.run_log = RunLog(folder, resumed_step=keep)
        self.sample_log = StepFile(folder / SAMPLES_FILE, resumed_step=keep)
        kept = [method for method in self.methods if type(method).line is not Method.line]
        self.method_logs = [(method, StepFile(folder / f"{method.block}.jsonl", keep)) for method in kept]
        label_selectors.record(folder)

    def get_llm_client(self) -> LLMServerClient:
        client = super().get_llm_client()
        for method in self.methods:
            client = method.with_client(client)
        return client

    # ---- drawing prompts ------------------------------------------------------------------------------------

    def prepare_step(self) -> dict[str, Any]:
        # verl's own prepare_step sends the prompts, so sessions start before on_sample_begin
        for method in self.methods:
            method.prepare_step()
        return super().prepare_step()

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        """Called once a step. In asynchronous modes also for prompts drawn ahead, and to replace dropped ones."""
        draw = Draw(super()._next_train_batch(num_prompts), self.global_steps)
        for method in self.methods:
            method.draw(draw)
        self.pending.add(draw.plans())
        return draw.batch

    def _reissue_inflight_prompts(self, partition_id: str = "train") -> int:
        """verl resets the age of prompts that it re-sends after a restart. Restore it from their plans, so that the
        oldest are still trained on first and the staleness limit still applies."""
        if self.mode == "sync":
            return super()._reissue_inflight_prompts(partition_id)
        clear_trained_rows()
        with dated_when_sent(self, {uid: plan.step for uid, plan in self.pending.plans.items()}):
            return super()._reissue_inflight_prompts(partition_id)

    def on_sample_end(self) -> None:
        super().on_sample_end()  # the learner's servers sleep now; a colocated explorer must too, before the update
        for method in self.methods:
            method.sampled()

    # ---- one step -------------------------------------------------------------------------------------------

    def _take_plans(self, batch: KVBatchMeta) -> None:
        """Plans of the prompts that the step trains on: of this step, or of the earlier one that drew them."""
        if self.mode == "sync":
            self.step_plans = self.pending.pop_all()
            return
        trained = {RowKey.parse(name).uid for name in batch.keys}
        self.step_plans = self.pending.pop_trained(trained, waiting_prompts(), strict=bool(self.methods))

    def _balance_batch(
        self, batch: KVBatchMeta, metrics: dict, logging_prefix: str = "global_seqlen", keep_minibatch: bool = False
    ) -> KVBatchMeta:
        """Fix the order of rows: they arrive in any order and fill mini-batches in it, and a resumed run must make the
        same updates. It must come before verl's part, which pads the batch and splits it over the workers."""
        self._take_plans(batch)
        if self.methods:
            batch.reorder(row_order(list(self.step_plans), batch.keys))
        return super()._balance_batch(batch, metrics, logging_prefix, keep_minibatch)

    @property
    def _skips_old_log_probs(self) -> bool:
        return any(method.skips_old_log_probs for method in self.methods)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """The learner's old log-probabilities, on explorer rows too.

        PPO's clip bounds one update of the learner: its ratio is the new policy over the learner before the update. It
        must start at 1. The explorer's log-probabilities would start it at pi_learner / pi_explorer, and the clip would
        drop tokens before anything was learned. verl's ``bypass_mode`` does that, so rules refuse it. The sampler's own
        values stay in ``rollout_log_probs``, where the correction ``truncated_is`` reads them.
        """
        if self._skips_old_log_probs:
            return batch
        return super()._compute_old_log_prob(batch, metrics)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self.watchdog:
            metrics["s2l/reward/restarts"] = float(self.watchdog.restarts)
        if not self.methods:
            return super()._compute_advantage(batch, metrics)
        step = self._observe(batch, metrics)

        def compute() -> None:
            step.batch = super(S2LTrainerMixin, self)._compute_advantage(step.batch, step.metrics)

        # verl applies its rollout correction inside its advantages, so a method must act around the whole of it; the
        # first method of the registry is the outermost
        for method in reversed(self.methods):
            compute = partial(method.advantage, step, compute)
        compute()
        return step.batch

    def _observe(self, batch: KVBatchMeta, metrics: dict) -> Step:
        """Read the step's rows once and show them to every method. Rewards and old log-probabilities are there now."""
        rows = StepRows.of(batch, self.s2l.mixes_rollouts, self.s2l.guidance is not None)
        step = self.current = Step(self.global_steps, batch, metrics, self.step_plans, rows)
        step.old_log_probs, step.filtered = not self._skips_old_log_probs, may_drop_groups(self.config)
        step.outcomes = rows.outcomes(strict=self.needs_accuracy) + self.dropped_groups.take(metrics)
        size = self.config.actor_rollout_ref.rollout.n
        learners = {uid: range(plan.explorer_rows, size) for uid, plan in self.step_plans.items()}
        for method in self.methods:
            method.observe(step)
        metrics.update(require_rows(rows, learners, "learner", "its server or its router failed", step.filtered))
        return step

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self.current:
            self.current.batch, self.current.metrics = batch, metrics
        self._call(lambda method, step: method.before_update(step))
        batch = super()._update_actor(self.current.batch if self.current else batch, metrics)
        self.updated = (batch, metrics)
        metrics.update(self._token_metrics(metrics, len(batch)))
        self._call(lambda method, step: method.after_update(step))
        return batch

    def _call(self, hook: Callable[[Any, Step], None]) -> None:
        for method in self.methods:
            assert self.current is not None
            hook(method, self.current)

    def on_step_end(self) -> None:
        super().on_step_end()
        for method in self.methods:
            method.end_step(self)

    # ---- what was applied -----------------------------------------------------------------------------------

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        metrics.update(self._own_metrics(global_steps))
        for method, log in self.method_logs:
            log.write(global_steps, method.line() or {})
        if self.s2l.rollout.log_groups:
            self.sample_log.write(global_steps, self._samples(batch))
        self.run_log.append(global_steps, metrics)

    def _samples(self, batch: KVBatchMeta) -> dict[str, Any]:
        # verl clears the step's rows from the queue right after _compute_metrics
        groups, guided, uids = self.s2l.rollout.log_groups, self.s2l.guidance is not None, list(self.step_plans)
        return {"rows": sample_rows(batch, uids, self.tokenizer, self.s2l.mixes_rollouts, guided, most=groups)}

    def _own_metrics(self, number: int) -> dict[str, float]:
        step = self.current
        if step is None:
            return {}
        metrics = step.rows.timed_out() | (row_statistics(step.rows) if self.s2l.mixes_rollouts else {})
        for method in self.methods:
            metrics.update(checked_value(method, "metrics", method.metrics(step), dict))
        if self.mode != "sync":
            metrics.update(self.pending.metrics(number, self.step_plans))
        return metrics

    def _token_metrics(self, metrics: dict, rows: int) -> dict[str, float]:
        """From the sums that the workers' loss reported; empty where all rollouts are of one kind."""
        sums = take_sums(metrics, rows)
        if not sums or self.current is None:
            return {}
        found = token_statistics(sums, self.current.rows)
        return found | (guidance_statistics(sums, self.current.rows) if self.s2l.guidance else {})

    def _val_metrics_update(
        self,
        data_sources: Any,
        sample_uids: Any,
        reward_extra_infos_dict: Any,
        sample_turns: Any,
        expected_acc_counts: Any = None,
    ) -> dict[str, float]:
        by_sample = data_sources, sample_uids, reward_extra_infos_dict
        metrics: dict[str, float] = super()._val_metrics_update(*by_sample, sample_turns, expected_acc_counts)
        metrics.update(validation_pass_at_k(*by_sample, expected_acc_counts or {}))
        self.run_log.append(self.global_steps, metrics)
        return metrics

    # ---- checkpoints ----------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        """State first: verl writes the tracker file last, and only that makes the checkpoint the latest."""
        run = Path(self.config.trainer.default_local_dir)
        folder = run / f"global_step_{self.global_steps}"
        with disk_full_explained(run, self.global_steps):
            leave_for_older(folder)
            if self.settings is not None:
                controller_state.save_state(folder, self.settings, self._controllers())
            self._hold_lines()
            super()._save_checkpoint()
            if self.settings is not None:
                note_files(folder)

    def _hold_lines(self) -> None:
        """Store the step's lines with the checkpoint: verl logs metrics only after checkpoint and validation. A kill in
        between must not lose the step."""
        if self.updated is None:  # critic warm-up: no update yet
            return
        batch, metrics = self.updated
        so_far = metrics | self._own_metrics(self.global_steps)
        if not self.config.actor_rollout_ref.rollout.get("moe_load_balance_metrics_interval", 0):  # counts its calls
            elapsed = {"step": sum(self.timing_raw.values()), **self.timing_raw}  # the step's own timer still runs
            epoch = (self.global_steps - 1) // self.steps_per_epoch
            super()._compute_metrics(batch, so_far, elapsed, self.global_steps, epoch)
        self.run_log.hold_metrics(self.global_steps, so_far)
        for method, log in self.method_logs:
            log.hold(self.global_steps, method.line() or {})
        if self.s2l.rollout.log_groups:
            self.sample_log.hold(self.global_steps, self._samples(batch))

    def _controllers(self) -> dict[str, dict[str, Any]]:
        states: dict[str, dict[str, Any]] = {}
        for method in self.methods:
            state = checked_value(method, "state_dict", method.state_dict(), (dict, type(None)))
            states |= {} if state is None else {method.state_key or method.block: state}
        if self.mode != "sync":
            states["in_flight"] = self.pending.state_dict()
        if self._adaptive_kl:
            states["kl_in_reward"] = {"value": self._adaptive_kl.value}
        return states
