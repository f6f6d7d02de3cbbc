"""Options of ``s2l eval``, and the job that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from s2l_ext.data.tokenizers import trust_option
from s2l_ext.errors import ConfigError
from s2l_ext.evaluation.benchmarks import Benchmark, load_benchmark
from s2l_ext.evaluation.engines import ENGINES, Machine, Sampling
from s2l_ext.evaluation.rows import HUB
from s2l_ext.evaluation.run import Evaluation
from s2l_ext.utils import json_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l eval``."""
    parser.add_argument("--model", required=True, help="Hugging Face folder or hub id")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        type=_data,
        metavar="FILE|hf://NAME",
        help="verl parquet; with --benchmark its rows as JSON lines, CSV, parquet or from the hub; repeat",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.json", help="samples are kept beside it")
    parser.add_argument("--benchmark", metavar="NAME|YAML", help="how published rows become problems")
    parser.add_argument("--reward", metavar="NAME|pkg.module:function", help="default: by data source")
    parser.add_argument("--limit", type=int, metavar="L", help="first L problems of every file")
    parser.add_argument("--drop-repeats", action="store_true", help="keep the first of rows that are the same problem")
    _add_sampling(parser)
    parser.add_argument("--divergence-to", metavar="TEACHER", help="add the reverse KL to this model")
    parser.add_argument("--teacher-rollouts", type=Path, metavar="FILE", help="its samples; add the forward KL on them")
    parser.add_argument("--json", action="store_true", help="print the result without its problems as JSON")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n", type=int, default=1, help="samples a problem (default %(default)s)")
    parser.add_argument("--k", help="comma-separated k of pass@k and maj@k (default: all up to n)")
    parser.add_argument("--temperature", type=float, default=0.6, help="0 is greedy (default %(default)s)")
    parser.add_argument("--top-p", type=float, default=0.95, help="default %(default)s")
    parser.add_argument("--top-k", type=int, default=0, help="0 is off (default)")
    parser.add_argument(
        "--presence-penalty", type=float, default=0.0, help="off the logits of tokens said before (default: 0, off)"
    )
    parser.add_argument("--max-tokens", type=int, default=2048, help="longest response (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--engine", choices=ENGINES, default="vllm", help="default %(default)s")
    parser.add_argument(
        "--chat-option", action="append", default=[], metavar="KEY=VALUE", help="for the chat template; repeat"
    )
    parser.add_argument("--dtype", default="auto", help="auto: the model's own; float32 without an accelerator")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="accelerators for one vLLM (default 1)")
    add_trust(parser)


def add_trust(parser: Any) -> None:
    """The option of every command that loads a model."""
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model folder's own Python code")


def job_of(args: argparse.Namespace) -> Evaluation:
    """Raises ConfigError or DataError for words that say nothing usable; no data is opened."""
    benchmark = None if args.benchmark is None else load_benchmark(args.benchmark)
    return Evaluation(
        model=args.model,
        data=tuple(args.data) or _from_hub(benchmark),
        out=args.out,
        sampling=Sampling(
            args.n, args.temperature, args.top_p, args.top_k, args.max_tokens, args.seed, args.presence_penalty
        ),
        engine=args.engine,
        machine=Machine(args.dtype, args.tensor_parallel),
        limit=args.limit,
        drop_repeats=args.drop_repeats,
        ks=_ks(args.k),
        reward=args.reward,
        benchmark=benchmark,
        chat_options=dict(map(chat_option, args.chat_option)),
        divergence_to=args.divergence_to,
        teacher_rollouts=args.teacher_rollouts,
        trust=trust_option(args.trust_remote_code),
    )


def _data(text: str) -> Path | str:
    return text if text.startswith(HUB) else Path(text)


def _from_hub(benchmark: Benchmark | None) -> tuple[str]:
    if benchmark is None or not benchmark.hub:
        why = "without --benchmark" if benchmark is None else f"{benchmark.data_source} names no data set of the hub"
        raise ConfigError(f"--data is missing ({why}). Give --data FILE, or --data hf://owner/name[:config][@split].")
    return (f"{HUB}{benchmark.hub}",)


def _ks(text: str | None) -> tuple[int, ...] | None:
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
