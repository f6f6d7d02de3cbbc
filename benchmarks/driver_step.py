"""What this package's driver adds to a step at paper size, on made-up rows in a real TransferQueue.

    python benchmarks/driver_step.py                            (1,024 prompts x 16 rollouts, up to 4,096 tokens)
    python benchmarks/driver_step.py --prompts 64 256 1024 --arms all

Measured are the trainer's own overrides and every method's hooks, from the draw to the line in metrics.jsonl. verl's
part of the same methods (advantages, the update, its metrics) is replaced by nothing: it has its cost with or without
this package. One JSON object for each size and arm: seconds, CPU seconds and peak memory of the driver (medians), reads
of the queue and bytes that these fetched.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from measuring import measured, median, report
from real_queue import real_queue
from tqdm import tqdm
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu

from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.curriculum.gaussian import GaussianCurriculum
from s2l_ext.methods.curriculum.sampler import CurriculumSampler
from s2l_ext.methods.registry import accuracy_settings, methods_of, parse_s2l
from s2l_ext.training.dropped_groups import DroppedGroups
from s2l_ext.training.pending_prompts import PendingPrompts
from s2l_ext.training.run_log import RunLog, StepFile
from s2l_ext.training.trainer import S2LTrainerMixin

GROUP, DATA_SET, PUT_ROWS = 16, 17_000, 512
EXPLORER = "+s2l.explorer={model_path: x}"
WEIGHTED = "+s2l.explorer={model_path: x, baseline: per_source, correction: truncated_is}"
GUIDANCE = "+s2l.guidance={length: {type: adaptive}}"
KL, CURRICULUM = "+s2l.kl={type: accuracy}", "+s2l.curriculum={type: gaussian}"
ARMS = {
    "off": [],
    "explorer": [EXPLORER],
    "explorer, per_source, truncated_is": [WEIGHTED],
    "guidance": [GUIDANCE],
    "guidance in the loss": ["+s2l.guidance={length: {type: adaptive}, loss_on_guidance: true}"],
    "kl": [KL],
    "curriculum": [CURRICULUM],
    "distill, correct_only": ["+s2l.distill={teacher_path: x, correct_only: true}"],
    "all": [WEIGHTED, GUIDANCE, KL, CURRICULUM],
}


SUMS = ["tokens", "reward", "advantage", "advantage_squared", "ratio", "clipped", "weight", "is_weight", "is_clamped"]
SUMS += ["sampled", "is_ratio", "is_ratio_max", "k3", "prefix_in_loss", "continuation", "continuation_in_loss"]


class Tokenizer:
    @staticmethod
    def decode(ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))


class WithoutWorkers(PPOTrainerSync):
    """verl's part of a step, left out; the update reports what the workers' loss would."""

    def prepare_step(self) -> dict[str, Any]:
        return {}

    def _next_train_batch(self, num_prompts: int | None = None) -> Any:
        names = [prompt_name(number) for number in range(self.config.data.train_batch_size)]
        for method in self.methods:
            if method.block == "curriculum":
                for _ in names:
                    method.sampler.hand_out()
        return tu.get_tensordict({"uid": np.array(names, dtype=object)})

    def _balance_batch(self, batch: KVBatchMeta, *_: Any, **__: Any) -> KVBatchMeta:
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        beta = batch.extra_info.get("s2l_kl_beta", 0.0)
        metrics |= {"actor/s2l_kl_beta_min": beta, "actor/s2l_kl_beta_max": beta, "actor/kl_loss": 0.01}
        metrics |= {f"actor/s2l_sum/distill/{name}": 1.0 for name in ("tokens", "value")}
        metrics["actor/s2l_sum/rows"] = float(len(batch.keys))
        for kind in ("explorer", "guided", "plain"):
            metrics |= {f"actor/s2l_sum/{kind}/{name}": 1.0 for name in SUMS}
        return batch

    def _compute_metrics(self, *_: Any) -> None:
        return None


class Driver(S2LTrainerMixin, WithoutWorkers):
    mode = "sync"


def prompt_name(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def fill(prompts: int, longest: int) -> tuple[KVBatchMeta, dict[str, float]]:
    """Rows in the queue, and bytes a row of columns that are no tensors."""
    rng, keys, tags, bytes_of = np.random.default_rng(0), [], [], {}
    names = [(prompt_name(number), session) for number in range(prompts) for session in range(GROUP)]
    for start in tqdm(range(0, len(names), PUT_ROWS), desc="rows", leave=False):
        part = names[start : start + PUT_ROWS]
        lengths = rng.integers(longest // 8, longest + 1, len(part))
        columns = row_columns(part, lengths, rng)
        bytes_of = {name: len(pickle.dumps(list(column))) / len(part) for name, column in columns.items()}
        keys += [f"{uid}_{session}_0" for uid, session in part]
        own = [{"response_len": int(length), "seq_len": 200 + int(length)} for length in lengths]
        tags += [{"min_global_steps": 1, "max_global_steps": 1, **tag} for tag in own]
        tensors = token_columns(lengths)
        fields = tu.get_tensordict({**tensors, **columns})
        tq.kv_batch_put(keys=keys[start:], partition_id="train", fields=fields, tags=tags[start:])
    fields = [*tensors, *columns]
    return KVBatchMeta(partition_id="train", keys=keys, tags=tags, fields=fields, extra_info={}), bytes_of


def row_columns(part: list[tuple[str, int]], lengths: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """The first four sessions of a group are the explorer's, the next four guided."""
    chat = [{"role": "user", "content": "What is the sum of all positive integers below 1000? " * 8}]
    right = rng.random(len(part)) < 0.4
    extras = [
        {
            "raw_prompt": chat,
            "turn_scores": [],
            "tool_rewards": [],
            "min_global_steps": 1,
            "max_global_steps": 1,
            "reward_extra_info": {"score": float(one), "acc": float(one), "pred": "499500", "timed_out": 0.0},
        }
        for one in right
    ]
    values = {
        "uid": [uid for uid, _ in part],
        "s2l_source": ["explorer" if session < 4 else "learner" for _, session in part],
        "s2l_prefix_len": [100 if 4 <= session < 8 else 0 for _, session in part],
        "metrics": [{"generate_sequences": float(n) / 50, "tool_calls": 0.0, "compute_score": 0.1} for n in lengths],
        "extra_fields": extras,
        "reward_model": [{"ground_truth": "499500", "style": "rule"}] * len(part),
    }
    return values


def token_columns(lengths: np.ndarray) -> dict[str, torch.Tensor]:
    offsets = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]))
    total = int(offsets[-1])

    def jagged(values: torch.Tensor) -> torch.Tensor:
        return torch.nested.nested_tensor_from_jagged(values, offsets)

    scores = torch.zeros(total)
    scores[offsets[1:] - 1] = 1.0
    return {
        "prompts": torch.nested.nested_tensor_from_jagged(
            torch.ones(200 * len(lengths), dtype=torch.int64), torch.arange(len(lengths) + 1) * 200
        ),
        "responses": jagged(torch.randint(150_000, (total,))),
        "response_mask": jagged(torch.ones(total, dtype=torch.int64)),
        "rm_scores": jagged(scores),
        "rollout_log_probs": jagged(-torch.rand(total)),
        "old_log_probs": jagged(-torch.rand(total)),
        "advantages": jagged(torch.randn(total)),
    }


class Reads:
    """Counts calls of the queue's read, and bytes that it gave."""

    def __init__(self, bytes_of: dict[str, float]) -> None:
        self.bytes_of, self.get, self.count, self.bytes = bytes_of, tq.kv_batch_get, 0, 0.0
        tq.kv_batch_get = self

    def __call__(self, **arguments: Any) -> Any:
        found = self.get(**arguments)
        self.count += 1
        for name in found.keys():  # noqa: SIM118 - iterating a TensorDict gives its rows
            column = found[name]
            tensor = column.values() if torch.is_tensor(column) and column.is_nested else column
            self.bytes += tensor.nbytes if torch.is_tensor(tensor) else self.bytes_of[name] * len(found)
        return found

    def take(self) -> tuple[int, float]:
        taken, self.count, self.bytes = (self.count, self.bytes), 0, 0.0
        return taken


def driver_of(overrides: list[str], prompts: int, folder: Path) -> Driver:
    """Our trainer as it is before its first step, without workers."""
    driver = Driver.__new__(Driver)
    driver.config = compose_config(
        "grpo/toy",
        [
            *overrides,
            f"data.train_batch_size={prompts}",
            f"actor_rollout_ref.rollout.n={GROUP}",
            "actor_rollout_ref.rollout.calculate_log_probs=true",
        ],
    )
    driver.s2l = parse_s2l(driver.config.s2l)
    driver.methods = methods_of(driver.s2l, driver.config)
    driver.needs_accuracy = bool(accuracy_settings(driver.s2l, driver.config))
    driver.watchdog = driver.current = driver.updated = None
    driver.pending, driver.step_plans, driver.resumed = PendingPrompts(), {}, {}
    driver.global_steps, driver.dropped_groups, driver.tokenizer = 1, DroppedGroups(driver.s2l), Tokenizer()
    driver.run_log, driver.sample_log = RunLog(folder, None), StepFile(folder / "samples.jsonl", None)
    driver.total_training_steps, driver.steps_per_epoch, driver.method_logs = 100, 16, []
    for method in driver.methods:
        if method.block == "curriculum":
            method.sampler = CurriculumSampler(GaussianCurriculum(DATA_SET), DATA_SET, prompts)
            driver.method_logs = [(method, StepFile(folder / "curriculum.jsonl", None))]
        elif method.block != "explorer":
            method.start(driver)
    return driver


def one_step(driver: Driver, batch: KVBatchMeta) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    driver.prepare_step()
    driver._next_train_batch()
    batch = driver._balance_batch(batch, metrics)
    batch = driver._compute_advantage(batch, metrics)
    batch = driver._update_actor(batch, metrics)
    driver._compute_metrics(batch, metrics, {}, driver.global_steps, 0)
    return metrics


def row_of(arm: str, prompts: int, args: SimpleNamespace, filled: tuple[KVBatchMeta, Reads]) -> dict[str, Any]:
    batch, reads = filled
    with tempfile.TemporaryDirectory() as folder:
        driver, costs = driver_of(ARMS[arm], prompts, Path(folder)), []
        for number in range(args.rounds + 1):
            fresh = KVBatchMeta(keys=list(batch.keys), tags=list(batch.tags), partition_id="train", fields=batch.fields)
            with measured() as cost:
                one_step(driver, fresh)
            count, fetched = reads.take()
            costs += [cost] if number else []
    cost = median(costs)
    return {
        "arm": arm,
        "prompts": prompts,
        "rows": len(batch.keys),
        "tokens": sum(tag["response_len"] for tag in batch.tags),
        "seconds": cost.seconds,
        "cpu_seconds": cost.cpu_seconds,
        "peak_mb": cost.peak_mb,
        "queue_reads": count,
        "mb_fetched": fetched / 1e6,
        "bytes_per_row": fetched / len(batch.keys),
        "other_cores": cost.other_cores,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1024])
    parser.add_argument("--tokens", type=int, default=4096, help="of the longest response; the shortest has an eighth")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=3, help="after one that is not counted")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with real_queue():
        for prompts in args.prompts:
            batch, bytes_of = fill(prompts, args.tokens)
            reads = Reads(bytes_of)
            for arm in args.arms:
                report("driver_step", [row_of(arm, prompts, args, (batch, reads))], args.out)
            tq.kv_batch_get = reads.get
            tq.kv_clear(keys=batch.keys, partition_id="train")


if __name__ == "__main__":
    main()
