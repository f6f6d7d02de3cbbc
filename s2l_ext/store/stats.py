"""What is in a store, in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from s2l_ext.store.reader import RolloutStore
from s2l_ext.store.writer import rows_without_shard

BINS = 10
COLUMNS = ("prompt_ids", "token_ids", "log_probs", "truncated", "score")


def stats(folder: Path, verify: bool = True) -> dict[str, Any]:
    """Counts, pass rates, lengths in tokens, truncation and log-probabilities of a store. Raises DataError: no store,
    or a damaged one; ``verify`` compares checksums.

    ``pass_rate_histogram`` has ten bins of width 0.1; ``never_right`` and ``always_right`` count prompts at its ends.
    ``journal`` counts graded responses that no shard has yet; no other number counts them.
    """
    store = RolloutStore(folder, "--stats", verify)
    counts, rates = [*store.counts().values()], np.array([*store.pass_rates().values()])
    parts = [_measure_shard(folder.expanduser() / shard.name) for shard in store.manifest.shards]
    lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(part.pop("lengths") for part in parts)])
    sums = {name: sum(part[name] for part in parts) for name in ("prompt_tokens", "truncated", "log_prob", "score")}
    responses, tokens = int(lengths.size), int(lengths.sum())
    return {
        "model": store.fingerprint["model_name"],
        "judge": store.fingerprint.get("reward"),
        "complete": store.complete,
        "asked": store.manifest.request["n"],
        "prompts": len(counts),
        "responses": responses,
        "responses_per_prompt": {"min": min(counts, default=0), "max": max(counts, default=0)},
        "pass_rate": _divide(float(rates.sum()), rates.size),
        "pass_rate_histogram": _histogram(rates),
        "never_right": int((rates == 0).sum()),
        "always_right": int((rates == 1).sum()),
        "mean_score": _divide(sums["score"], responses),
        "prompt_tokens": sums["prompt_tokens"],
        "response_tokens": tokens,
        "length": _summarize_lengths(lengths),
        "truncation_rate": _divide(sums["truncated"], responses),
        "log_prob_per_token": _divide(sums["log_prob"], tokens),
        "journal": len(rows_without_shard(store)),
        "shards": len(parts),
        "bytes": sum(shard.size for shard in store.manifest.shards),
        "fingerprint": store.fingerprint,
    }


def _measure_shard(path: Path) -> dict[str, Any]:
    table = pq.read_table(path, columns=list(COLUMNS))
    flat = pc.list_flatten(table["log_probs"]).cast(pa.float64())
    return {
        "lengths": pc.list_value_length(table["token_ids"]).to_numpy(),
        "prompt_tokens": pc.sum(pc.list_value_length(table["prompt_ids"])).as_py() or 0,
        "truncated": pc.sum(table["truncated"]).as_py() or 0,
        "log_prob": pc.sum(flat).as_py() or 0.0,
        "score": pc.sum(table["score"]).as_py() or 0.0,
    }


def _histogram(rates: NDArray[np.float64]) -> list[int]:
    """A rate at an edge, such as 3 of 10, begins its bin; the last bin holds 1."""
    found: list[int] = np.bincount(np.minimum((rates * BINS).astype(int), BINS - 1), minlength=BINS).tolist()
    return found


def _divide(total: float, count: int) -> float | None:
    return total / count if count else None


def _summarize_lengths(lengths: NDArray[np.int64]) -> dict[str, float]:
    if not lengths.size:
        return {}
    quantiles = {f"p{q}": float(np.percentile(lengths, q)) for q in (50, 90, 99)}
    return {"mean": float(lengths.mean()), **quantiles, "max": float(lengths.max())}


def as_lines(found: dict[str, Any]) -> list[str]:
    """The numbers as a person reads them."""
    waiting = (
        f"journal      {found['journal']} graded responses in the journal, in no other number: the same `s2l explore` "
        "command finishes them"
    )
    journal = [waiting] if found["journal"] else []
    if not found["responses"]:
        return [f"{found['model']}: no response {'in a shard ' if journal else ''}yet", *journal]
    per, length = found["responses_per_prompt"], found["length"]
    rate = "none" if found["pass_rate"] is None else f"{found['pass_rate']:.4f}"
    several = str(per["min"]) if per["min"] == per["max"] else f"{per['min']} to {per['max']}"
    state = "complete" if found["complete"] else f"not complete: {found['asked']} of each were requested"
    widest = max(found["pass_rate_histogram"]) or 1
    return [
        f"model        {found['model']}",
        f"responses    {found['responses']}, {several} for each of {found['prompts']} prompts ({state})",
        f"pass rate    {rate}; {found['never_right']} prompts never right, {found['always_right']} always",
        *(
            f"  {low / BINS:.1f} to {(low + 1) / BINS:.1f}  {count:>7} {'#' * round(40 * count / widest)}"
            for low, count in enumerate(found["pass_rate_histogram"])
        ),
        f"tokens       {found['response_tokens']} in responses, {found['prompt_tokens']} in their prompts",
        f"length       mean {length['mean']:.1f}, median {length['p50']:g}, 90 % within {length['p90']:g}, longest "
        f"{length['max']:g}; {found['truncation_rate']:.1%} truncated",
        f"log-prob     {found['log_prob_per_token']:.4f} a token",
        f"judge        {', '.join(found['judge'] or ['unknown'])}",
        f"on disk      {found['bytes'] / 1e6:.2f} MB in {found['shards']} shards",
        *journal,
    ]
