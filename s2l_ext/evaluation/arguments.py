"""Options of ``s2l eval``, the job that they describe, and those that every command has which samples."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2l_ext.data.hub import HUB, path_or_address
from s2l_ext.data.tokenizers import trust_option
from s2l_ext.errors import ConfigError
from s2l_ext.evaluation.benchmarks import Benchmark, load_benchmark
from s2l_ext.evaluation.engines import ENGINES, Machine, Sampling
from s2l_ext.evaluation.run import Evaluation
from s2l_ext.utils import json_text

DEFAULTS: dict[str, Any] = {"n": 1, "temperature": 0.6, "top_p": 0.95, "top_k": 0, "max_tokens": 2048, "seed": 0}
MACHINE: dict[str, Any] = {"dtype": "auto", "tensor_parallel": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l eval``."""
    parser.add_argument("--model", required=True, help="Hugging Face folder or hub id")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.json", help="samples are kept beside it")
    add_sampling(parser, DEFAULTS)
    parser.add_argument("--k", help="comma-separated k of pass@k and maj@k (default: all up to n)")
    parser.add_argument(
        "--presence-penalty", type=float, default=0.0, help="off the logits of tokens said before (default: 0, off)"
    )
    parser.add_argument("--engine", choices=ENGINES, default="vllm", help="default %(default)s")
    parser.add_argument("--divergence-to", metavar="TEACHER", help="add the reverse KL to this model")
    parser.add_argument(
        "--teacher-rollouts", type=Path, metavar="FILE", help="samples of the teacher; adds the forward KL on them"
    )
    parser.add_argument("--json", action="store_true", help="print the result without its problems as JSON")


def add_sampling(parser: argparse.ArgumentParser, defaults: Mapping[str, Any], given_only: bool = False) -> None:
    """Options of every command that samples. ``given_only``: one that is not given is None, so that it can be refused
    where it does not apply."""
    every = {**MACHINE, **defaults}

    def add(group: Any, name: str, help: str, **more: Any) -> None:
        default = every[name.replace("-", "_")]
        shown = f"{help} (default {default})"
        group.add_argument(f"--{name}", default=None if given_only else default, help=shown, **more)

    data = parser.add_argument_group("data and grading")
    data.add_argument(
        "--data",
        action="append",
        type=path_or_address,
        metavar="FILE|hf://NAME",
        help="verl parquet, or with --benchmark its published rows; repeat",
    )
    data.add_argument("--benchmark", metavar="NAME|YAML", help="how published rows become problems")
    data.add_argument("--reward", metavar="NAME|pkg.module:function", help="default: by data source")
    data.add_argument("--limit", type=int, metavar="L", help="first L problems of every file")
    data.add_argument("--drop-repeats", action="store_true", help="keep the first of rows that are the same problem")
    drawn = parser.add_argument_group("sampling")
    add(drawn, "n", "responses a problem", type=int)
    add(drawn, "temperature", "0 is greedy", type=float)
    add(drawn, "top-p", "0 to 1", type=float)
    add(drawn, "top-k", "0 is off", type=int)
    add(drawn, "max-tokens", "longest response", type=int)
    add(drawn, "seed", "of all responses; each has its own, by problem and number", type=int)
    drawn.add_argument(
        "--chat-option", action="append", metavar="KEY=VALUE", help="argument of the chat template; repeat"
    )
    machine = parser.add_argument_group("engine")
    add(machine, "dtype", "auto: the model's own; float32 without an accelerator")
    add(machine, "tensor-parallel", "accelerators for one vLLM", type=int)
    add_trust(machine)


def add_trust(parser: Any) -> None:
    """The option of every command that loads a model."""
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model folder's own Python code")


def shared(args: argparse.Namespace, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Values of :class:`s2l_ext.evaluation.driver.Job`. Raises ConfigError or DataError for words that say nothing
    usable; no data is opened."""
    value = {**MACHINE, **defaults} | {name: given for name, given in vars(args).items() if given is not None}
    benchmark = None if args.benchmark is None else load_benchmark(args.benchmark)
    return {
        "model": args.model,
        "data": tuple(args.data or _default_data(benchmark)),
        "out": args.out,
        "sampling": Sampling(**{name: value[name] for name in (*defaults, "presence_penalty") if name in value}),
        "machine": Machine(**{name: value[name] for name in MACHINE}),
        "limit": args.limit,
        "drop_repeats": args.drop_repeats,
        "reward": args.reward,
        "benchmark": benchmark,
        "chat_options": dict(map(chat_option, args.chat_option or [])),
        "trust": trust_option(args.trust_remote_code),
    }


def job_of(args: argparse.Namespace) -> Evaluation:
    """Raises ConfigError or DataError for words that say nothing usable; no data is opened."""
    return Evaluation(
        **shared(args, DEFAULTS),
        engine=args.engine,
        ks=_parse_ks(args.k),
        divergence_to=args.divergence_to,
        teacher_rollouts=args.teacher_rollouts,
    )


def _default_data(benchmark: Benchmark | None) -> tuple[str]:
    if benchmark is None or not benchmark.hub:
        why = "without --benchmark" if benchmark is None else f"{benchmark.data_source} names no data set of the hub"
        raise ConfigError(f"--data is missing ({why}). Give --data FILE, or --data hf://owner/name[:config][@split].")
    return (f"{HUB}{benchmark.hub}",)


def _parse_ks(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        raise ConfigError(f"--k {text}: expected whole numbers joined by commas, such as 1,4,16.") from None


def chat_option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError(f"--chat-option {text}: expected KEY=VALUE, such as enable_thinking=false.")
    try:
        return key, json_text.loads(value)
    except ValueError:
        return key, value
