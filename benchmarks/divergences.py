"""Peak memory of the distillation loss, forward and backward, with a 151936-token vocabulary.

    python benchmarks/divergences.py
    python benchmarks/divergences.py --tokens 2048 --seconds 30 --json

Each measurement is a fresh process: the high-water mark of its resident memory minus what it held with its inputs
(hidden states, output matrices, the teacher's top tokens) in place. Sizes double up to --tokens as long as the next one
should fit into half the free memory and into --seconds; beyond that the table continues the line through the last two
sizes (two are always measured) and says so. Variants:

  hidden        reverse KL by divergence_from_hidden: both output matrices applied chunk by chunk
  naive         reverse KL by autograd on both models' whole logits, float32 log_softmax
  verl_topk     verl's forward KL on the teacher's 128 likeliest tokens, the student's logits whole
  verl_chunked  the same with verl's use_chunked_topk, in chunks of --chunk-size tokens (verl's default: 4096)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch
from tqdm import tqdm

VOCABULARY, STUDENT_WIDTH, TEACHER_WIDTH, TOP_K = 151936, 1024, 2048, 128
FIRST = 256
MEGABYTE = 1e6


def inputs(tokens: int, dtype: torch.dtype, vocabulary: int = VOCABULARY) -> SimpleNamespace:
    """Filled in place, so that making them leaves no high-water mark."""

    def uniform(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype).uniform_(-scale, scale)

    return SimpleNamespace(
        hidden=uniform(tokens, STUDENT_WIDTH).requires_grad_(),
        weight=uniform(vocabulary, STUDENT_WIDTH, scale=STUDENT_WIDTH**-0.5).requires_grad_(),
        teacher_hidden=uniform(tokens, TEACHER_WIDTH),
        teacher_weight=uniform(vocabulary, TEACHER_WIDTH, scale=TEACHER_WIDTH**-0.5),
        topk_ids=torch.randint(vocabulary, (tokens, TOP_K)),
        topk_log_probs=torch.full((tokens, TOP_K), -8.0),
    )


def hidden(given: SimpleNamespace, chunk_size: int) -> torch.Tensor:
    from s2l_ext.methods.distill.divergences import divergence_from_hidden

    return divergence_from_hidden(
        given.hidden, given.weight, given.teacher_hidden, given.teacher_weight, chunk_size=chunk_size
    ).value


def naive(given: SimpleNamespace, chunk_size: int) -> torch.Tensor:
    with torch.no_grad():
        log_q = torch.log_softmax((given.teacher_hidden @ given.teacher_weight.T).float(), -1)
    log_p = torch.log_softmax((given.hidden @ given.weight.T).float(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def verl(use_chunked_topk: bool) -> Callable[[SimpleNamespace, int], torch.Tensor]:
    def loss(given: SimpleNamespace, chunk_size: int) -> torch.Tensor:
        from verl.trainer.distillation.fsdp.losses import compute_forward_kl_topk

        settings = SimpleNamespace(
            use_chunked_topk=use_chunked_topk, chunked_topk_chunk_size=chunk_size, log_prob_min_clamp=None
        )
        nested = [
            torch.nested.as_nested_tensor([item], layout=torch.jagged)
            for item in (given.topk_log_probs, given.topk_ids)
        ]
        student = (given.hidden @ given.weight.T).unsqueeze(0)
        config = SimpleNamespace(distillation_loss=settings)
        return compute_forward_kl_topk(student, *nested, config, "thd")["distillation_losses"]

    return loss


VARIANTS = {"hidden": hidden, "naive": naive, "verl_topk": verl(False), "verl_chunked": verl(True)}


def child(variant: str, tokens: int, dtype: str, chunk_size: int) -> dict[str, float]:
    """One measurement, in this process. A small first pass loads modules and thread pools."""
    VARIANTS[variant](inputs(2, getattr(torch, dtype), 2 * TOP_K), chunk_size).sum().backward()
    given = inputs(tokens, getattr(torch, dtype))
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    VARIANTS[variant](given, chunk_size).sum().backward()
    taken = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return {"tokens": tokens, "peak_mb": (_status("VmHWM") - before) / MEGABYTE, **taken}


def _status(field: str) -> int:
    """Bytes; ``5`` written to clear_refs makes VmHWM start again from what is resident."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def measure(variant: str, args: argparse.Namespace) -> list[dict[str, float]]:
    """At doubling sizes, until the next would take too much memory or time."""
    done: list[dict[str, float]] = []
    tokens = min(FIRST, args.tokens)
    while True:
        command = [sys.executable, __file__, "--child", variant, "--tokens", str(tokens), "--dtype", args.dtype]
        command += ["--chunk-size", str(args.chunk_size)]
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if out.returncode:
            raise SystemExit(f"{variant} with {tokens} tokens ended with exit code {out.returncode}: out of memory?")
        done.append(json.loads(out.stdout.splitlines()[-1]))
        tqdm.write(f"{variant}: {done[-1]}", file=sys.stderr)
        following = min(2 * tokens, args.tokens)
        growth = following / tokens
        needed = extrapolated(done, following) if len(done) > 1 else growth * done[-1]["peak_mb"]
        fits = needed * MEGABYTE < psutil.virtual_memory().available / 2
        slow = len(done) > 1 and growth * done[-1]["seconds"] > args.seconds
        if following == tokens or not fits or slow:
            return done
        tokens = following


def extrapolated(done: list[dict[str, float]], tokens: int) -> float:
    """MB on the line through the two largest sizes."""
    if len(done) == 1:
        return done[0]["peak_mb"] * tokens / done[0]["tokens"]
    left, right = done[-2:]
    slope = (right["peak_mb"] - left["peak_mb"]) / (right["tokens"] - left["tokens"])
    return right["peak_mb"] + slope * (tokens - right["tokens"])


def bend(done: list[dict[str, float]]) -> float | None:
    """Relative difference of the largest size to the line through the two before it."""
    if len(done) < 3:
        return None
    return done[-1]["peak_mb"] / extrapolated(done[:-1], int(done[-1]["tokens"])) - 1


def cache_bytes(tokens: int, dtype: str) -> dict[str, int]:
    """What a micro-batch's teacher outputs occupy: storage of tensors that are made but not touched."""
    widths = {"hidden": TEACHER_WIDTH, "logits": VOCABULARY}
    return {
        name: torch.empty(tokens, width, dtype=getattr(torch, dtype)).untyped_storage().nbytes()
        for name, width in widths.items()
    }


def table(results: dict[str, list[dict[str, float]]], cache: dict[str, int], args: argparse.Namespace) -> str:
    lines = [
        f"| variant | peak MB by tokens (measured) | bend at the largest size | MB at {args.tokens} tokens |",
        "|---|---|---|---|",
    ]
    for variant, done in results.items():
        measured = ", ".join(f"{point['tokens']}: {point['peak_mb']:.0f}" for point in done)
        curve = bend(done)
        reached = done[-1]["tokens"] == args.tokens
        whole = f"{extrapolated(done, args.tokens):.0f} ({'measured' if reached else 'linear extrapolation'})"
        lines.append(f"| {variant} | {measured} | {'-' if curve is None else f'{curve:+.1%}'} | {whole} |")
    ratio = cache["logits"] / cache["hidden"]
    lines.append(
        f"\nTeacher cache of {args.tokens} tokens, {args.dtype}: hidden states {cache['hidden'] / MEGABYTE:.1f} MB, "
        f"logits {cache['logits'] / MEGABYTE:.1f} MB ({ratio:.1f} times)."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--seconds", type=float, default=60.0, help="longest single measurement to start")
    parser.add_argument("--chunk-size", type=int, default=256)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--variant", action="append", choices=list(VARIANTS), help="may be repeated; all by default")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=list(VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.tokens, args.dtype, args.chunk_size)))
        return
    results = {variant: measure(variant, args) for variant in tqdm(args.variant or VARIANTS, disable=None)}
    cache = cache_bytes(args.tokens, args.dtype)
    if args.json:
        print(json.dumps({"arguments": vars(args), "results": results, "cache_bytes": cache}))
    else:
        print(table(results, cache, args))


if __name__ == "__main__":
    main()
