"""What the models of a toy world can do before any reinforcement learning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from s2l_ext.errors import DataError
from s2l_ext.rewards.toy import compute_score
from s2l_ext.toy.models import without_shard_bars
from s2l_ext.toy.tasks import TIERS, Problem, sample
from s2l_ext.toy.tokenizer import EOS_ID, PAD_ID, build_tokenizer, prompt_ids
from s2l_ext.toy.world import ToyWorld
from s2l_ext.utils.pass_at_k import pass_at_k

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

MAX_RESPONSE = 80
MAX_ROWS = 512


def describe(
    world: ToyWorld,
    n_problems: int = 64,
    k: int = 16,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    tiers: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Sample ``k`` responses to each of ``n_problems`` test problems, per tier and model.

    Returns:
        One row per tier and model: the share of responses that reason, accuracy of those and of the others (None
        where there are none), pass@1, pass@k, mean response length in tokens and share of unfinished responses.
    """
    if n_problems < 1 or k < 1:
        raise DataError(f"n_problems={n_problems}, k={k}: both must be at least 1.")
    rows = []
    for tier in TIERS if tiers is None else tiers:
        problems = sample(tier, "test", n_problems, seed)
        for size, path in world.models.items():
            model = load_model(path)
            responses = generate(model, problems, k, seed, temperature, top_p)
            numbers = _summarize(problems, responses)
            rows.append({"tier": tier, "model": size, "parameters": model.num_parameters(), **numbers})
    return rows


def load_model(path: Path) -> Qwen3ForCausalLM:
    """A toy model in float32, ready to sample from."""
    import torch
    from transformers import Qwen3ForCausalLM

    with without_shard_bars():
        return Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def generate(
    model: Qwen3ForCausalLM, problems: list[Problem], k: int, seed: int, temperature: float = 1.0, top_p: float = 1.0
) -> list[list[list[int]]]:
    """``k`` sampled responses (token ids, up to the end of the turn) to every problem."""
    import torch

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
            output = cast(Any, model).generate(
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


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    if not rows:
        return "(no rows)"
    header = list(rows[0])
    body = [[_format_cell(row[name]) for name in header] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in body)) for i, name in enumerate(header)]
    lines = [header, ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _format_cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
