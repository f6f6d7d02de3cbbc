"""TRL on the toy: GRPOTrainer as `grpo/toy`, DistillationTrainer as `sparse_to_dense/stages/opd`. One JSON object.

TRL runs with newer packages than verl allows: an environment of its own, outside the repository.

    python3.11 -m venv trl_env
    trl_env/bin/pip install --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu \\
        trl==1.16.0 transformers==5.24.0 datasets==5.2.0 accelerate pandas pyarrow
    s2l data toy --out outputs/toy --sizes small,medium,large
    PYTHONPATH=. trl_env/bin/python benchmarks/trl_toy.py grpo --toy outputs/toy --out outputs/trl_grpo
    PYTHONPATH=. trl_env/bin/python benchmarks/trl_toy.py distill --toy outputs/toy --out outputs/trl_distill

Of this repository it imports the reward alone. It writes `metrics.jsonl`, a line a step as a run of `s2l train`, and
`trl_toy.json`. A step's seconds are from its begin to its end, without validation. Validation samples one answer at
temperature 1 for each of the first 256 problems of val.parquet, as the recipes do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from s2l_ext.rewards.toy import compute_score

FIRST_COUNTED, VALIDATED = 3, 256
MICRO_BATCH = 64
KINDS: dict[str, dict[str, Any]] = {
    "grpo": {"model": "medium", "lr": 1.5e-4, "prompts": 16},
    "distill": {"model": "small", "lr": 1e-3, "prompts": 32},
}
"""Model, prompts a step and learning rate of the two recipes."""
GROUP = 8


def settings(kind: str, steps: int, seed: int, out: Path) -> dict[str, Any]:
    """Keyword arguments that both of TRL's configurations share: those of `grpo/toy`, in TRL's names."""
    chosen = KINDS[kind]
    return {
        "output_dir": str(out),
        "max_steps": steps,
        "seed": seed,
        "learning_rate": chosen["lr"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": MICRO_BATCH,
        "gradient_accumulation_steps": chosen["prompts"] * GROUP // MICRO_BATCH,
        "max_completion_length": 64,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def rows(path: Path) -> list[dict[str, Any]]:
    import pandas

    table = pandas.read_parquet(path).to_dict("records")
    return [{"prompt": list(row["prompt"]), "truth": row["reward_model"]["ground_truth"]} for row in table]


def repeated(given: list[dict[str, Any]], steps: int, prompts: int, seed: int) -> list[dict[str, Any]]:
    """DistillationTrainer has one rollout a prompt: each prompt GROUP times, in a drawn order of prompts."""
    import random

    order: list[dict[str, Any]] = []
    while len(order) < steps * prompts:
        order += random.Random(seed + len(order)).sample(given, len(given))
    return [row for row in order[: steps * prompts] for _ in range(GROUP)]


def reward(completions: list[Any], truth: list[str], **_: Any) -> list[float]:
    texts = [one[0]["content"] for one in completions]
    return [compute_score("toy", text, gold)["score"] for text, gold in zip(texts, truth, strict=True)]


def accuracy(model: Any, tokenizer: Any, problems: list[dict[str, Any]], seed: int) -> float:
    """Share of right answers, one sampled answer each."""
    import torch

    chats = [tokenizer.apply_chat_template(r["prompt"], add_generation_prompt=True, tokenize=False) for r in problems]
    tokenizer.padding_side = "left"
    batch = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        found = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            max_new_tokens=64,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    texts = tokenizer.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [compute_score("toy", text, row["truth"])["acc"] for text, row in zip(texts, problems, strict=True)]
    return sum(right) / len(right)


def trainer_of(kind: str, args: argparse.Namespace, callback: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer

    chosen, given = KINDS[kind], rows(args.toy / "train.parquet")
    path = str(args.toy / "models" / chosen["model"])
    common = settings(kind, args.steps, args.seed, args.out)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    shared = {"model": path, "processing_class": tokenizer, "callbacks": [callback]}
    if kind == "grpo":
        from trl import GRPOConfig, GRPOTrainer

        config = GRPOConfig(**common, num_generations=GROUP, beta=0.0, loss_type="dapo", scale_rewards="group")
        return GRPOTrainer(args=config, reward_funcs=reward, train_dataset=Dataset.from_list(given), **shared)
    from trl import DistillationConfig, DistillationTrainer

    exact = {"dtype": "float32"}  # without it the teacher is loaded as its file says, the student in float32
    config = DistillationConfig(**common, beta=1.0, shuffle_dataset=False, teacher_model_init_kwargs=exact)
    prompts = [{"prompt": row["prompt"]} for row in repeated(given, args.steps, chosen["prompts"], args.seed)]
    teacher = str(args.toy / "models" / "large")
    return DistillationTrainer(teacher_model=teacher, args=config, train_dataset=Dataset.from_list(prompts), **shared)


def recorder(args: argparse.Namespace, problems: list[dict[str, Any]]) -> Any:
    """A callback that writes `metrics.jsonl`."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.began: tuple[float, float] = (0.0, 0.0)
            self.cost: tuple[float, float] = (0.0, 0.0)
            self.lines: list[dict[str, float]] = []
            self.accuracies: dict[int, float] = {}

        def validate(self, step: int, model: Any, tokenizer: Any) -> dict[str, float]:
            self.accuracies[step] = accuracy(model, tokenizer, problems, args.seed)
            return {"val-core/toy_chain/acc/mean@1": self.accuracies[step]}

        def on_train_begin(self, _: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if args.test_freq > 0 and args.before:
                self.write(0, self.validate(0, model, kwargs["processing_class"]))

        def on_step_begin(self, _: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began = (time.perf_counter(), time.process_time())

        def on_step_end(self, _: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.cost = (time.perf_counter() - self.began[0], time.process_time() - self.began[1])

        def on_log(self, _: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **kwargs: Any) -> None:
            if "loss" not in logs:
                return
            data = {"training/global_step": state.global_step, "timing_s/step": self.cost[0]}
            data |= {"cpu_s/step": self.cost[1], "actor/loss": logs["loss"]}
            if "reward" in logs:
                data["critic/score/mean"] = logs["reward"]
            last = state.global_step == args.steps
            if args.test_freq > 0 and (last or state.global_step % args.test_freq == 0):
                data |= self.validate(state.global_step, model, kwargs["processing_class"])
            self.lines.append(data)
            self.write(state.global_step, data)

        def write(self, step: int, data: dict[str, float]) -> None:
            with open(args.out / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step, "data": data}) + "\n")

    return Recorder()


def summary(lines: list[dict[str, float]], accuracies: dict[int, float]) -> dict[str, Any]:
    """Medians over the steps from the third on, and accuracy by step."""
    counted = [line for line in lines if line["training/global_step"] >= FIRST_COUNTED]
    return {
        "step_s": round(statistics.median(line["timing_s/step"] for line in counted), 3),
        "step_cpu_s": round(statistics.median(line["cpu_s/step"] for line in counted), 3),
        "accuracy": {str(step): round(value, 4) for step, value in sorted(accuracies.items())},
        "score": [round(line["critic/score/mean"], 4) for line in lines if "critic/score/mean" in line],
    }


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--toy", type=Path, default=Path("outputs/toy"), help="folder that s2l data toy made")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-freq", type=int, default=4, help="steps between validations; 0: none at all")
    parser.add_argument("--before", action=argparse.BooleanOptionalAction, default=True, help="validate first too")
    parser.add_argument("--out", type=Path, default=Path("outputs/trl_toy"))
    args = parser.parse_args(words)
    if args.steps < FIRST_COUNTED:
        raise SystemExit(f"--steps {args.steps}: steps are counted from {FIRST_COUNTED} on; give more.")
    needed = [args.toy / "train.parquet", args.toy / "models" / KINDS[args.kind]["model"]]
    needed += [args.toy / "models" / "large"] if args.kind == "distill" else []
    for path in needed:
        if not path.exists():
            raise SystemExit(f"{path} is not there. Make it: s2l data toy --out {args.toy} --sizes small,medium,large")
    return args


def main() -> None:
    started = time.time()
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "metrics.jsonl").unlink(missing_ok=True)
    callback = recorder(args, rows(args.toy / "val.parquet")[:VALIDATED])
    trainer = trainer_of(args.kind, args, callback)
    ready, load = time.time() - started, os.getloadavg()[0]
    trainer.train()
    found = {"kind": args.kind, "seed": args.seed, "ready_s": round(ready, 1), "load": round(load, 2)}
    found |= summary(callback.lines, callback.accuracies) | {"peak_mb": round(peak_mb(), 0)}
    (args.out / "trl_toy.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def peak_mb() -> float:
    """Most resident memory of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    main()
