"""The hidden-state divergences on a GPU: memory, time, share of what the device can do, agreement with float64.

    python benchmarks/gpu_divergences.py            (a step of make gpu-check)

bfloat16, 8192 tokens, 151936 tokens of vocabulary, hidden 1024 (student) and 2048 (teacher). The bound on the time of a
forward and backward is max(FLOP / matmul rate, bytes / copy rate), both rates measured on the device first:

    FLOP  = 2 N V (4 H + 2 D)        student: forward, again in backward, two gradients; teacher: forward, twice
    bytes = 28 N V + (N / chunk) V (8 H + 2 (3 H + 2 D))
            logits written and read once per model and pass (2 bytes), their gradient written once and read twice
            (4 bytes); each chunk reads and writes the weight's gradient (4 bytes) and reads the matrices (2 bytes)

The same time is also given as a multiple of the bare products: logits of both models and the student's two gradients,
as four whole products without a loss.

Exits with 2 without a GPU, with 1 if a value or a gradient is further than 2 % from float64 on a slice.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

from s2l_ext.methods.distill.chunk_size import automatic
from s2l_ext.methods.distill.divergences import divergence_from_hidden

STUDENT_WIDTH, TEACHER_WIDTH = 1024, 2048
SLICE, TOLERANCE = 32, 0.02
CURVE = (256, 1024, 4096)
KINDS = ("reverse_kl", "forward_kl", "jsd", "sft")


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Shortest of some calls, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def rates() -> tuple[float, float]:
    """FLOP/s of a large bfloat16 product and bytes/s of a large copy."""
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    source = torch.empty(2**29, device="cuda")
    target = torch.empty_like(source)
    return 2 * 8192**3 / seconds(lambda: square @ square), 2 * source.nbytes / seconds(lambda: target.copy_(source))


def bound(args: argparse.Namespace, chunk: int, flops: float, bandwidth: float) -> float:
    """Seconds that a forward and backward take at least; see the formula above."""
    entries = args.tokens * args.vocabulary
    work = 2 * entries * (4 * STUDENT_WIDTH + 2 * TEACHER_WIDTH)
    per_chunk = args.vocabulary * (8 * STUDENT_WIDTH + 2 * (3 * STUDENT_WIDTH + 2 * TEACHER_WIDTH))
    return max(work / flops, (28 * entries + args.tokens / chunk * per_chunk) / bandwidth)


def inputs(args: argparse.Namespace) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shapes = [(args.tokens, STUDENT_WIDTH), (args.vocabulary, STUDENT_WIDTH)]
    shapes += [(args.tokens, TEACHER_WIDTH), (args.vocabulary, TEACHER_WIDTH)]
    scales = [1.0, 2 * STUDENT_WIDTH**-0.5, 1.0, 2 * TEACHER_WIDTH**-0.5]
    made = [
        torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_(0, scale)
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    return *made, torch.randint(args.vocabulary, (args.tokens,), device="cuda")


def bare_products(
    hidden: torch.Tensor, weight: torch.Tensor, teacher: torch.Tensor, teacher_weight: torch.Tensor
) -> None:
    """Logits of both models and the student's two gradients, whole and without any loss: what cannot be saved."""
    logits = hidden @ weight.T
    logits @ weight, logits.T @ hidden, teacher @ teacher_weight.T


def step(kind: str, chunk_size: int, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Value and the gradients of hidden states and matrix."""
    hidden, weight = (tensor.detach().requires_grad_() for tensor in tensors[:2])
    value = divergence_from_hidden(
        hidden, weight, *tensors[2:4], kind=kind, chunk_size=chunk_size, labels_N=tensors[4]
    ).value
    return value.detach(), *torch.autograd.grad(value.sum(), (hidden, weight))


def deviation(kind: str, chunk_size: int, tensors: tuple[torch.Tensor, ...]) -> float:
    """Largest relative distance of value and gradients to float64 on the first tokens."""
    hidden, weight, teacher_hidden, teacher_weight, labels = tensors
    cut = hidden[:SLICE], weight, teacher_hidden[:SLICE], teacher_weight, labels[:SLICE]
    exact = tuple(tensor.double() for tensor in cut[:4]) + cut[4:]
    pairs = zip(step(kind, chunk_size, cut), step(kind, chunk_size, exact), strict=True)
    return max(float((got.double() - want).norm() / want.norm()) for got, want in pairs)


def measure(kind: str, chunk: int, tensors: tuple[torch.Tensor, ...], least: float, bare: float) -> dict[str, object]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    taken = seconds(lambda: step(kind, chunk, tensors))
    return {
        "kind": kind,
        "chunk": chunk,
        "peak_mb": (torch.cuda.max_memory_allocated() - before) / 1e6,
        "seconds": taken,
        "share_of_bound": least / taken if kind != "sft" else None,
        "times_bare_products": taken / bare if kind != "sft" else None,
        "deviation_from_float64": deviation(kind, chunk, tensors),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--chunk-size", type=int, help="default: what chunk_size=auto chooses; 256 to 4096 beside it")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: not run (torch.cuda.is_available() is false)", file=sys.stderr)
        raise SystemExit(2)
    flops, bandwidth = rates()
    tensors = inputs(args)
    bare = seconds(lambda: bare_products(*tensors[:4]))
    chosen = args.chunk_size or automatic(args.vocabulary, torch.bfloat16, tensors[0].device)
    pairs = [(kind, chosen) for kind in KINDS] + [(KINDS[0], chunk) for chunk in CURVE if not args.chunk_size]
    least = {chunk: bound(args, chunk, flops, bandwidth) for _, chunk in pairs}
    results = [measure(kind, chunk, tensors, least[chunk], bare) for kind, chunk in tqdm(pairs, disable=None)]
    device = {"name": torch.cuda.get_device_name(), "flop_per_s": flops, "bytes_per_s": bandwidth}
    print(
        json.dumps(
            {
                "device": device,
                "arguments": vars(args),
                "chunk": chosen,
                "bound_s": least[chosen],
                "bare_products_s": bare,
            }
            | {"results": results},
            indent=1,
        )
    )
    if any(float(str(result["deviation_from_float64"])) > TOLERANCE for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
