"""The distillation loss by chunk size, against the bare matrix products and the loss on whole logits, on the CPU.

    python benchmarks/chunk_size.py --tokens 1024
    python benchmarks/gpu_divergences.py            (the same on a GPU)

Each measurement is a fresh process (benchmarks/divergences.py): forward and backward of the reverse KL, vocabulary
151,936, bfloat16. The bare products are those of whole logits: two forward, two backward. One JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from divergences import VOCABULARY, inputs
from measuring import measured, report

from s2l_ext.methods.distill.chunk_size import automatic

HERE = Path(__file__).parent
CHUNKS = [64, 256, 512, 1024]


def child(variant: str, tokens: int, chunk: int) -> dict[str, float]:
    command = [sys.executable, str(HERE / "divergences.py"), "--child", variant, "--tokens", str(tokens)]
    with measured() as cost:
        out = subprocess.run([*command, "--chunk-size", str(chunk)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1]) | {"other_cores": cost.other_cores}


def bare(tokens: int) -> dict[str, float]:
    """In float32, as the CPU makes the products of bfloat16 that keep their sums."""
    given = inputs(tokens, torch.bfloat16)
    parts = [given.hidden, given.weight, given.teacher_hidden, given.teacher_weight]
    hidden, weight, teacher_hidden, teacher_weight = (part.detach().float() for part in parts)
    started, cpu = time.perf_counter(), time.process_time()
    logits = hidden @ weight.T
    _ = logits @ weight, logits.T @ hidden, teacher_hidden @ teacher_weight.T
    return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--chunks", type=int, nargs="+", default=CHUNKS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chosen = automatic(VOCABULARY, torch.bfloat16, torch.device("cpu"))
    rows = [{"variant": "bare products", "tokens": args.tokens, **bare(args.tokens)}]
    rows += [{"variant": "whole logits", **child("naive", args.tokens, 1)}]
    for chunk in sorted({*args.chunks, chosen}):
        rows.append(
            {"variant": "chunks", "chunk": chunk, "auto": chunk == chosen, **child("hidden", args.tokens, chunk)}
        )
    report("chunk_size", rows, args.out)


if __name__ == "__main__":
    main()
