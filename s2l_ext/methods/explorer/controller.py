"""S2L-PO in a run: which sessions the explorer samples, their baseline, and their importance weights."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import GROUP_SIZE, setting, whole_number
from s2l_ext.methods.base import Method
from s2l_ext.methods.explorer.config import AnyExplorer, LiveExplorer, OfflineExplorer
from s2l_ext.methods.explorer.inputs import check_models, check_store
from s2l_ext.methods.explorer.rules import check_explorer, schedule_warnings_of_run
from s2l_ext.methods.explorer.stored_rollouts import StoredRollouts
from s2l_ext.store.reader import RolloutStore
from s2l_ext.training.batch_fields import EXPLORER, IS_CAP_FIELD, LEARNER, SLOTS_FIELD

if TYPE_CHECKING:
    from s2l_ext.methods.explorer.serving.lifecycle import ExplorerLifecycle
    from s2l_ext.methods.explorer.serving.servers import ExplorerServers
    from s2l_ext.training.inputs import Inputs
    from s2l_ext.training.pending_prompts import Draw
    from s2l_ext.training.step import Step

logger = logging.getLogger(__name__)

STEPS_SHOWN = 32


class Explorer(Method):
    block = "explorer"
    config_class = AnyExplorer
    state_key = "stored_rows"
    may_change = (
        *("model_path", "source", "store", "on_exhausted"),  # compared by name or content, or only of what is left
        *("placement", "nnodes", "n_gpus_per_node", "tensor_model_parallel_size", "rollout_overrides"),
        *("on_failure", "max_restarts", "restart_backoff_s", "start_timeout_s"),
        *("health_interval_s", "health_timeout_s", "request_timeout_s"),
    )

    config: AnyExplorer

    def __init__(self, config: AnyExplorer, s2l: Any, cfg: DictConfig) -> None:
        super().__init__(config, s2l, cfg)
        self.life: ExplorerLifecycle | None = None
        self.stored: StoredRollouts | None = None
        self.changed_uids: set[str] = set()

    def check(self) -> list[str]:
        return check_explorer(self.config, self.cfg)

    def check_inputs(self, inputs: Inputs) -> list[str]:
        warnings = schedule_warnings_of_run(self.config, self.cfg, inputs.steps)
        if not inputs.needed.explorer:
            return warnings
        if isinstance(self.config, LiveExplorer):
            return warnings + check_models(self.config, inputs)
        return warnings + check_store(self.cfg, inputs.needed, inputs.files)

    def gpus(self) -> dict[str, int]:
        return {"explorer": self.config.n_gpus} if self.config.n_gpus else {}

    def fingerprint(self) -> dict[str, Any]:
        if isinstance(self.config, LiveExplorer):
            return {"explorer.model": Path(self.config.model_path).name, **super().fingerprint()}
        digest = RolloutStore(self.config.store, verify=False).digest
        return {"explorer.source": "offline", "explorer.store.sha256": digest, **super().fingerprint()}

    def plan(self, steps: int | None) -> dict[str, Any]:
        size = whole_number(self.cfg, GROUP_SIZE)
        slots = self.config.build(size).table(steps or self.config.mix_steps)
        share = sum(slots) / (size * steps) if steps else None
        derived = {"gpus": self.config.n_gpus, "slots": slots, "share_of_rollouts": share}
        return {self.block: dataclasses.asdict(self.config) | derived}

    @classmethod
    def plan_lines(cls, plan: Mapping[str, Any]) -> list[tuple[str, str]]:
        explorer = plan["explorer"]
        return [("explorer", _sampler_line(explorer)), ("slots", _slot_line(explorer, plan["group_size"]))]

    # Ray, verl and vLLM are imported inside the hooks, so that the configuration alone needs none of them

    def actor_worker(self) -> type:
        from s2l_ext.training.actor_worker import S2LActorWorker

        return S2LActorWorker

    def start(self, trainer: Any) -> None:
        if isinstance(self.config, OfflineExplorer):
            counts = RolloutStore(self.config.store, verify=False).counts()  # preflight has read every byte of it
            self.stored = StoredRollouts(counts, self.config.on_exhausted, setting(self.cfg, "data.seed") or 0)

    @contextmanager
    def around_setup(self, trainer: Any) -> Iterator[None]:
        from s2l_ext.methods.explorer.serving.lifecycle import ExplorerLifecycle

        if isinstance(self.config, LiveExplorer):
            self.life = ExplorerLifecycle(self.config, self.slots, trainer)
        with self.life.around_setup() if self.life else nullcontext():
            yield

    @property
    def servers(self) -> ExplorerServers | None:
        """Those of a live explorer that a step still needs."""
        return self.life.servers if self.life else None

    def with_client(self, client: Any) -> Any:
        """The learner's client, with the explorer's for the sessions that are its own."""
        if self.servers is None:
            return client
        from s2l_ext.methods.explorer.serving.client import carrying

        return carrying(client, self.servers.client())

    def slots(self, step: int) -> int:
        """Explorer sessions of every group at ``step``, counted from 1."""
        return self.config.build(whole_number(self.cfg, GROUP_SIZE)).slots(step)

    def prepare_step(self) -> None:
        if self.servers:
            self.servers.wake_up()

    def sampled(self) -> None:
        if self.servers:
            self.servers.sleep()

    def check_alive(self) -> None:
        if self.servers:
            self.servers.check()

    def draw(self, draw: Draw) -> None:
        draw.slots = self.slots(draw.step)
        draw.send(SLOTS_FIELD, draw.same(draw.slots))
        draw.note("slots", draw.same(draw.slots))
        if self.servers:
            self.servers.set_step(draw.step - 1)
        if self.stored:
            self.stored.draw(draw)

    def observe(self, step: Step) -> None:
        from s2l_ext.training.step import require_rows

        planned = {uid: range(plan.explorer_rows) for uid, plan in step.plans.items()}
        step.metrics.update(require_rows(step.rows, planned, "explorer", "the explorer failed", step.filtered))
        self.changed_uids = self._changed(step)
        if self.life is None or not isinstance(self.config, LiveExplorer):
            return
        uids = self._fallback_rows(step, planned) if self.config.on_failure == "learner" else []
        step.metrics["s2l/explorer/fallback_rows_failure"] = float(len(uids))
        step.metrics.update(self.life.step_metrics())

    def _changed(self, step: Step) -> set[str]:
        """Prompts whose explorer and learner rows are not as many as the schedule says: sessions failed, the learner
        took them over, or the store had too few."""
        size = whole_number(self.cfg, GROUP_SIZE)
        rows = zip(step.rows.keys, step.rows.source_B, strict=True)
        sampled = {(key.uid, key.session, source) for key, source in rows}
        sessions = Counter((uid, source) for uid, _, source in sampled)
        due = {uid: (plan.slots, size - plan.slots) for uid, plan in step.plans.items()}
        return {uid for uid, counts in due.items() if (sessions[uid, EXPLORER], sessions[uid, LEARNER]) != counts}

    @staticmethod
    def _fallback_rows(step: Step, planned: Mapping[str, range]) -> list[str]:
        """Prompts of rows that the plan gave to the explorer and the learner sampled."""
        keys = zip(step.rows.keys, step.rows.source_B, strict=True)
        sources = [(key.uid, source) for key, source in keys if key.session in planned[key.uid]]
        fallback = [uid for uid, source in sources if source == LEARNER]
        if fallback:
            logger.info("%d of %d explorer rows were sampled by the learner", len(fallback), len(sources))
        return fallback

    def advantage(self, step: Step, compute: Callable[[], None]) -> None:
        from s2l_ext.methods.explorer.advantage_groups import grouped_by_source

        apart = self.config.baseline == "per_source"
        with grouped_by_source(step, changed=self.changed_uids) if apart else nullcontext():
            compute()

    def before_update(self, step: Step) -> None:
        """The workers compute importance weights inside the loss, where the log-probabilities are."""
        if self.config.correction == "truncated_is":
            step.batch.extra_info[IS_CAP_FIELD] = self.config.is_cap

    def after_update(self, step: Step) -> None:
        """The workers report the weight that each source's tokens had in the loss."""
        if self.config.correction != "truncated_is":
            return
        for name in [name for name in step.metrics if name.endswith("/ppo_ratio_mean") and "s2l/source/" in name]:
            source = name.split("/")[2]
            if f"s2l/source/{source}/applied_weight_mean" not in step.metrics:
                raise RuntimeError(f"importance weights of {source} rows did not reach the loss of the actor workers")

    def end_step(self, trainer: Any) -> None:
        if self.life:
            self.life.end_step()

    def metrics(self, step: Step) -> dict[str, float]:
        trained = {key.uid for key in step.rows.keys}  # a synchronous step has plans of filtered groups too
        return {
            "s2l/explorer/rollouts_per_group": mean(plan.slots for plan in step.plans.values()),
            "s2l/explorer/num_gpus": self.life.num_gpus if self.life else 0,
            "s2l/explorer/fraction": step.rows.source_B.count(EXPLORER) / len(step.rows.source_B),
            **(self.stored.metrics(step.plans[uid] for uid in step.plans if uid in trained) if self.stored else {}),
        }

    def state_dict(self) -> dict[str, Any] | None:
        return self.stored.state_dict() if self.stored else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.stored:
            self.stored.load_state_dict(state)


def _sampler_line(explorer: dict[str, Any]) -> str:
    how = f"baseline {explorer['baseline']}, correction {explorer['correction']}"
    if explorer["source"] == "offline":
        return f"rollouts stored in {explorer['store']} (on_exhausted={explorer['on_exhausted']}), no GPU, {how}"
    where = "the learner's GPUs, in turns" if explorer["placement"] == "colocated" else f"{explorer['gpus']} GPU(s)"
    return (
        f"{explorer['model_path']}, {where} {explorer['placement']}, temperature "
        f"{explorer['temperature']:g}, top-p {explorer['top_p']:g}, {how}"
    )


def _slot_line(explorer: dict[str, Any], group_size: int) -> str:
    slots = explorer["slots"]
    more = f" ... ({len(slots)} steps)" if len(slots) > STEPS_SHOWN else ""
    table = " ".join(str(count) for count in slots[:STEPS_SHOWN])
    share = explorer["share_of_rollouts"]
    total = "" if share is None else f"; {share:.1%} of all rollouts"
    return f"{table}{more}  (explorer sessions of {group_size}, step by step{total})"
