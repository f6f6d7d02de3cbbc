"""Make the toy models that come with the package again: the default sizes for seed 0, as float16, measured.

    python scripts/toy_models.py                     # two minutes of CPU time; then commit s2l_ext/toy/weights
    python scripts/toy_models.py --measure-only      # what the models that are there can do
    python scripts/toy_models.py --of outputs/toy/models --temperature 0.7 --top-p 0.95      # the models of a folder

The weights are the same on one machine and one torch build; another may round differently, and then differ in every
digit after a hundred steps. What they can do stays within the sampling error of the table in models.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import Qwen3ForCausalLM
from transformers.utils import logging

from s2l_ext.rewards.toy import compute_score
from s2l_ext.toy import prepare
from s2l_ext.toy.cache import SHIPPED, WEIGHTS, build, read_manifest
from s2l_ext.toy.pretrain import DEFAULTS
from s2l_ext.toy.tasks import TIERS, Problem, sample
from s2l_ext.toy.tokenizer import EOS_ID, PAD_ID, build_tokenizer, prompt_ids
from s2l_ext.utils.pass_at_k import pass_at_k

SIZES, SEED, PROBLEMS, SAMPLES = ("small", "medium"), 0, 64, 16
MAX_RESPONSE = 80
MAX_ROWS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure-only", action="store_true", help="make none anew")
    parser.add_argument("--of", type=Path, help="print what the models of this folder can do, change nothing")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="of each tier, with --of")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="for each problem, with --of")
    parser.add_argument("--temperature", type=float, default=1.0, help="with --of")
    parser.add_argument("--top-p", type=float, default=1.0, help="with --of")
    args = parser.parse_args()
    if args.of:
        models = {path.parent.name: path.parent for path in sorted(args.of.glob("*/config.json"))}
        rows = describe(models, args.problems, args.samples, TIERS, args.temperature, args.top_p)
        print(json.dumps(rows, indent=1))
    else:
        record(make=not args.measure_only)


def record(make: bool) -> None:
    for size in SIZES if make else ():
        shutil.rmtree(SHIPPED / size, ignore_errors=True)
        SHIPPED.mkdir(exist_ok=True)
        build(SHIPPED / size, size, DEFAULTS[size], SEED, half=True)
    with tempfile.TemporaryDirectory() as folder:
        measured = describe(prepare(folder, SIZES, SEED).models)
    manifests = {size: read_manifest(SHIPPED / size) or {} for size in SIZES}
    found = {
        "made_by": "python scripts/toy_models.py",
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "seed": SEED,
        "sha256": {size: manifest["sha256"][WEIGHTS] for size, manifest in manifests.items()},
        "measured_by": "python scripts/toy_models.py --measure-only",
        "measured": measured,
    }
    text = json.dumps(found, indent=1)
    (Path(SHIPPED) / "models.json").write_text(text + "\n")
    print(text)


def describe(
    models: Mapping[str, Path],
    n_problems: int = PROBLEMS,
    k: int = SAMPLES,
    tiers: Iterable[int] = TIERS,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[dict[str, Any]]:
    """A row per tier and model: the share of ``k`` responses to each of ``n_problems`` test problems that reason,
    accuracy of those and of the others (None where there are none), pass@1, pass@k, mean response length in tokens and
    share of unfinished responses."""
    rows = []
    for tier in tiers:
        problems = sample(tier, "test", n_problems, SEED)
        for size, path in models.items():
            model = load_model(path)
            numbers = _summarize(problems, generate(model, problems, k, SEED, temperature, top_p))
            rows.append({"tier": tier, "model": size, "parameters": model.num_parameters(), **numbers})
    return rows


def load_model(path: Path) -> Qwen3ForCausalLM:
    """A toy model in float32, ready to sample from."""
    logging.disable_progress_bar()
    return Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def generate(
    model: Qwen3ForCausalLM,
    problems: list[Problem],
    k: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[list[list[int]]]:
    """``k`` sampled responses (token ids, up to the end of the turn) to every problem."""
    prompts = [prompt_ids(problem.question) for problem in problems]
    order = sorted(range(len(problems)), key=lambda index: len(prompts[index]))
    chunk = max(1, MAX_ROWS // k)
    found: dict[int, list[list[int]]] = {}
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(order), chunk):
            indices = order[start : start + chunk]
            width = len(prompts[indices[-1]])
            ids = torch.tensor([[PAD_ID] * (width - len(prompts[index])) + prompts[index] for index in indices])
            output = model.generate(
                input_ids=ids,
                attention_mask=(ids != PAD_ID).long(),
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                top_k=0,
                num_return_sequences=k,
                max_new_tokens=MAX_RESPONSE,
            )
            rows = [row[: row.index(EOS_ID) + 1] if EOS_ID in row else row for row in output[:, width:].tolist()]
            found |= {index: rows[place * k : (place + 1) * k] for place, index in enumerate(indices)}
    return [found[index] for index in range(len(problems))]


def _summarize(problems: list[Problem], responses: list[list[list[int]]]) -> dict[str, Any]:
    tokenizer = build_tokenizer()
    by_mode: dict[bool, list[float]] = {True: [], False: []}
    counts, k = [], len(responses[0])
    for problem, group in zip(problems, responses, strict=True):
        scores = [compute_score("", text, problem.answer) for text in tokenizer.batch_decode(group)]
        for score in scores:
            by_mode[bool(score["careful"])].append(score["acc"])
        counts.append(round(sum(score["acc"] for score in scores)))
    every = [response for group in responses for response in group]
    return {
        "p_careful": len(by_mode[True]) / len(every),
        "accuracy_careful": fmean(by_mode[True]) if by_mode[True] else None,
        "accuracy_hasty": fmean(by_mode[False]) if by_mode[False] else None,
        "pass@1": sum(counts) / len(every),
        f"pass@{k}": fmean(pass_at_k(k, correct, k) for correct in counts),
        "length": fmean(map(len, every)),
        "unfinished": fmean(response[-1] != EOS_ID for response in every),
    }


if __name__ == "__main__":
    main()
