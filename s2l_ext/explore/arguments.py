"""Options of ``s2l explore``, and the job that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from s2l_ext.data.tokenizers import trust_option
from s2l_ext.evaluation.arguments import add_trust, chat_option
from s2l_ext.evaluation.benchmarks import load_benchmark
from s2l_ext.evaluation.engines import Machine, Sampling
from s2l_ext.explore.pools import Placement
from s2l_ext.explore.run import Exploration

DEFAULTS: dict[str, Any] = {
    "n": 32,
    "temperature": 0.7,
    "top_p": 0.95,
    "top_k": 0,
    "max_tokens": 2048,
    "seed": 0,
    "engines": 1,
    "dtype": "auto",
    "tensor_parallel": 1,
    "chat_option": [],
}
"""Values of options that were not given: only so can one be refused where it does not apply."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l explore``."""
    parser.epilog = (
        "A killed run goes on where it was: give the same command again. A store that is there with another --n or "
        "other prompts is refused without --only-missing; another model, other sampling or another seed always."
    )
    parser.add_argument("--model", help="Hugging Face folder or hub id with a chat template")
    parser.add_argument("--data", action="append", type=Path, metavar="FILE", help="verl parquet or JSON lines; repeat")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the store: a new folder, or one to go on with")
    parser.add_argument("--n", type=int, help=f"responses a prompt (default {DEFAULTS['n']})")
    parser.add_argument(
        "--only-missing", action="store_true", help="keep what the store has; draw what a larger --n or other data lack"
    )
    parser.add_argument("--merge", nargs="+", type=Path, metavar="DIR", help="write these stores as one into --out")
    parser.add_argument("--stats", type=Path, metavar="DIR", help="say what is in this store")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, without a progress bar")
    _add_sampling(parser)
    _add_engines(parser)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling and grading")
    group.add_argument("--temperature", type=float, help=f"0 is greedy (default {DEFAULTS['temperature']})")
    group.add_argument("--top-p", type=float, help=f"default {DEFAULTS['top_p']}")
    group.add_argument("--top-k", type=int, help="0 is off (default)")
    group.add_argument("--max-tokens", type=int, help=f"longest response (default {DEFAULTS['max_tokens']})")
    group.add_argument("--seed", type=int, help="of all responses; each has its own, by prompt and number (default 0)")
    group.add_argument("--chat-option", action="append", metavar="KEY=VALUE", help="for the chat template; repeat")
    group.add_argument("--benchmark", metavar="NAME|YAML", help="how rows of JSON lines become problems (gsm8k)")
    group.add_argument("--reward", metavar="NAME|pkg.module:function", help="default: by data source")
    group.add_argument("--drop-repeats", action="store_true", help="keep the first of rows that are the same problem")
    group.add_argument("--limit", type=int, metavar="L", help="first L problems of every file")


def _add_engines(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engines")
    group.add_argument("--engines", type=int, metavar="N", help="vLLM engines side by side, with Ray (default 1)")
    group.add_argument("--ray-address", metavar="ADDRESS", help="a Ray cluster, or auto (default: RAY_ADDRESS)")
    group.add_argument("--tensor-parallel", type=int, help="accelerators for one engine (default 1)")
    group.add_argument("--dtype", help="auto: the model's own; float32 without an accelerator")
    add_trust(group)


def job_of(args: argparse.Namespace) -> Exploration:
    value = DEFAULTS | {name: given for name, given in vars(args).items() if given is not None}
    sampling = {name: value[name] for name in ("n", "temperature", "top_p", "top_k", "max_tokens", "seed")}
    return Exploration(
        model=args.model,
        data=tuple(args.data),
        out=args.out,
        sampling=Sampling(**sampling),
        machine=Machine(value["dtype"], value["tensor_parallel"]),
        placement=Placement(value["engines"], args.ray_address),
        only_missing=args.only_missing,
        limit=args.limit,
        drop_repeats=args.drop_repeats,
        reward=args.reward,
        benchmark=None if args.benchmark is None else load_benchmark(args.benchmark),
        chat_options=dict(map(chat_option, value["chat_option"])),
        trust=trust_option(args.trust_remote_code),
    )
