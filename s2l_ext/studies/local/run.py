"""A recipe run by the local loop into a folder that ``s2l report`` reads as one of ``s2l train``."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from s2l_ext.data.reading import read_parquet
from s2l_ext.studies.local.loop import LocalLoop, Prompt
from s2l_ext.studies.local.rows import Rows, Sampler, generate
from s2l_ext.studies.study.results import MODEL, VALIDATIONS
from s2l_ext.training.batch_fields import EXPLORER, LEARNER
from s2l_ext.utils.files import write_atomically


def run_local(cfg: DictConfig, folder: Path) -> None:
    """Train, and validate before, every ``trainer.test_freq`` steps and at the end.

    Writes ``s2l_config.yaml``, ``plan.json``, ``metrics.jsonl`` and ``validation/<step>.jsonl``.

    Raises:
        ConfigError: the recipe has a setting that the loop does not know.
        DataError: a data file cannot be read.
    """
    seed = int(cfg.data.get("seed") or 0)
    loop = LocalLoop(cfg, read_prompts(cfg.data.train_files, int(cfg.data.train_max_samples), seed))
    held_out = read_prompts(cfg.data.val_files, int(cfg.data.val_max_samples), seed)
    last, every = int(cfg.trainer.total_training_steps), int(cfg.trainer.test_freq)
    _begin(cfg, folder, loop)
    with open(folder / "metrics.jsonl", "w") as file:
        if cfg.trainer.val_before_train:
            _write(file, 0, _validate(loop, held_out, folder, 0))
        for number in tqdm(range(1, last + 1), desc="steps"):
            rows, metrics = loop.step(number)
            metrics |= {"training/global_step": float(number)} | _counts(loop, rows)
            if number == last or (every > 0 and number % every == 0):
                metrics |= _validate(loop, held_out, folder, number)
            _write(file, number, metrics)
    if int(cfg.trainer.save_freq) > 0:
        loop.learner.save_pretrained(folder / MODEL)
        loop.tokenizer.save_pretrained(folder / MODEL)


def read_prompts(files: Any, most: int, seed: int) -> list[Prompt]:
    """Rows of parquet files; with ``most`` above 0 no more than that, those that verl draws with the seed."""
    paths = [files] if isinstance(files, str) else list(files)
    rows = [row for path in paths for _, row in read_parquet(Path(path))]
    if 0 < most < len(rows):
        rows = [rows[index] for index in np.random.default_rng(seed).choice(len(rows), size=most, replace=False)]
    return rows


def _begin(cfg: DictConfig, folder: Path, loop: LocalLoop) -> None:
    (folder / VALIDATIONS).mkdir(parents=True, exist_ok=True)
    kept = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    with open_dict(kept):
        kept.trainer.default_local_dir = str(folder)
        kept.trainer.validation_data_dir = str(folder / VALIDATIONS)
    write_atomically(folder / "s2l_config.yaml", OmegaConf.to_yaml(kept))
    models = {LEARNER: loop.learner, EXPLORER: loop.explorer, "teacher": loop.teacher}
    sizes = {who: model.num_parameters() for who, model in models.items() if model is not None}
    write_atomically(folder / "plan.json", json.dumps({"parameters": sizes, "engine": "local"}, indent=1))


def _counts(loop: LocalLoop, rows: Rows) -> dict[str, float]:
    """Tokens by who sampled them, under the names from which ``s2l report`` makes FLOPs."""
    counted: dict[str, Any] = {
        "perf/total_num_tokens": sum(rows.tokens_B),
        "prompt_length/mean": np.mean([*map(len, rows.prompts)]),
    }
    for source in (LEARNER, EXPLORER):
        own = [count for count, name in zip(rows.sampled_B, rows.source_B, strict=True) if name == source]
        counted |= {f"s2l/source/{source}/rows": len(own), f"s2l/source/{source}/tokens": sum(own)}
    phases = {"timing_s/old_log_prob": not loop.s2l.distill, "timing_s/ref": loop.reference is not None}
    return {name: float(value) for name, value in counted.items()} | {
        name: 0.0 for name, done in phases.items() if done
    }


def _validate(loop: LocalLoop, problems: Sequence[Prompt], folder: Path, step: int) -> dict[str, float]:
    """Accuracy of each data source, and the dump that verl writes."""
    options, started = loop.rollout.val_kwargs, time.perf_counter()
    times, temperature = int(options.n), float(options.temperature)  # verl does not read do_sample
    repeated = [row for row in problems for _ in range(times)]
    starts = [loop.prompt_ids(row) for row in repeated]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(loop.seed)
        sampler = Sampler(loop.learner, temperature, float(options.top_p))
        sampled = generate(sampler, starts, [loop.budget] * len(starts), loop.tokenizer)
    outputs, inputs = loop.texts([ids for ids, _ in sampled]), loop.texts(starts)
    accuracies: dict[str, list[float]] = defaultdict(list)
    with open(folder / VALIDATIONS / f"{step}.jsonl", "w") as file:
        for row, prompt, output in zip(repeated, inputs, outputs, strict=True):
            score, acc = loop.grade(output, row)
            accuracies[row["data_source"]].append(acc)
            truth = row["reward_model"]["ground_truth"]
            line = {"input": prompt, "output": output, "gts": truth, "score": score, "acc": acc, "step": step}
            file.write(json.dumps(line | {"data_source": row["data_source"]}) + "\n")
    means = {f"val-core/{name}/acc/mean@{times}": float(np.mean(values)) for name, values in accuracies.items()}
    return means | {"timing_s/testing": time.perf_counter() - started}


def _write(file: Any, step: int, metrics: dict[str, float]) -> None:
    file.write(json.dumps({"step": step, "data": metrics}) + "\n")
    file.flush()
