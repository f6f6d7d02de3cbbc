"""``s2l data traces-as-store``: reasoning traces as a store's rows, for SFT on them (arXiv 2508.13023, SFT column).

A trace becomes the one response of its prompt: its tokens after the chat template's generation prompt, and the end
token. No model sampled it, so it has no log-probabilities; only ``s2l.distill.loss=sft`` reads such a store.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2l_ext.data.checks import check_parquet
from s2l_ext.data.prompts import parquet_table, prompt_ids, values_at
from s2l_ext.data.reading import require_file
from s2l_ext.data.tokenizers import NO_TRUST, Trust, digest, snapshot, token_digest, trust_option
from s2l_ext.data.traces import TAIL_TOKENS, after_prompt
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.evaluation.arguments import add_trust, chat_option
from s2l_ext.evaluation.model_folder import Model, open_model
from s2l_ext.methods.guidance.trace_checks import trace_fault
from s2l_ext.store.reader import Rollout, is_store
from s2l_ext.store.writer import StoreWriter
from s2l_ext.utils.digests import digest_of, sha256_file


@dataclass(frozen=True)
class TraceStore:
    """``trace`` is the dotted name of the column; ``without_trace`` "drop" leaves rows without a usable one out."""

    model: str
    data: tuple[Path, ...]
    out: Path
    trace: str = "extra_info.trace"
    without_trace: str = "error"
    chat_options: dict[str, Any] = field(default_factory=dict)
    trust: Trust = NO_TRUST


def write(job: TraceStore) -> dict[str, int]:
    """Write the store; returns ``rows``, ``dropped`` and ``tokens``. Raises DataError: the folder holds something, or
    no row has a usable trace; ConfigError: no such model."""
    if job.out.is_dir() and any(job.out.iterdir()):
        what = "a store" if is_store(job.out) else "files"
        raise DataError(f"--out {job.out}: the folder holds {what}. Give a new folder.")
    for path in job.data:
        require_file(path, "--data")
        check_parquet(path)
    model = open_model(job.model, trust=job.trust)
    rows = list(_make_rollouts(job, model))
    kept = [row for row in rows if row is not None]
    if not kept:
        raise DataError(f"--trace {job.trace}: none of the {len(rows)} rows has a usable trace.")
    problems = {rollout.prompt_id: problem for rollout, problem in kept}
    with StoreWriter(job.out, _fingerprint(job, model), 1, problems) as store:
        for rollout, _ in kept:
            store.add(rollout)
        store.finish()
    tokens = sum(len(rollout.token_ids) for rollout, _ in kept)
    return {"rows": len(kept), "dropped": len(rows) - len(kept), "tokens": tokens}


def _make_rollouts(job: TraceStore, model: Model) -> Iterator[tuple[Rollout, str] | None]:
    table = parquet_table(list(job.data))
    names, chats = prompt_ids(table), table.read("prompt")
    seen: set[str] = set()
    for row, (name, chat, trace) in enumerate(
        zip(names, chats, values_at(table, job.trace, "--trace"), strict=True), start=1
    ):
        if name in seen:
            raise DataError(f"--data: row {row} is prompt {name} a second time. Keep one row of each problem.")
        seen.add(name)
        fault = trace_fault(trace)
        if fault and job.without_trace == "error":
            raise DataError(f"--data: row {row} has {fault}. Correct it, or set --without-trace drop.")
        yield None if fault else _make_rollout(name, model.prompt_ids(chat, job.chat_options), trace, model)


def _make_rollout(name: str, prompt: list[int], trace: str, model: Model) -> tuple[Rollout, str]:
    text = after_prompt(trace.strip(), str(model.tokenizer.decode(prompt[-TAIL_TOKENS:])))
    ids = [*model.tokenizer.encode(text, add_special_tokens=False), model.stop_ids[0]]
    problem = digest_of([prompt, trace])[:16]
    return Rollout(name, 0, 0, prompt, ids, [0.0] * len(ids), False, 0.0, None, text), problem


def _fingerprint(job: TraceStore, model: Model) -> dict[str, Any]:
    tokens = snapshot(str(model.folder), "--model", job.trust)
    sampling = {"temperature": 0, "top_p": 1.0, "top_k": 0, "seed": 0, "chat_options": job.chat_options}
    return {
        "traces": job.trace,
        "model_name": f"traces of {job.trace}",
        "tokenizer": digest(tokens),
        "tokens": token_digest(tokens),
        "log_probs": "none",
        "sampling": sampling,
        "data": [{"name": path.name, "sha256": sha256_file(path)} for path in job.data],
        "reward": [],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l data traces-as-store``."""
    add = parser.add_argument
    add("--model", required=True, help="the learner, whose tokenizer and chat template are used")
    add("--data", type=Path, nargs="+", required=True, metavar="FILE", help="verl parquet with traces")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the store")
    add("--trace", default="extra_info.trace", help="column of the traces (default: %(default)s)")
    add("--without-trace", choices=("error", "drop"), default="error", help="rows without one (default: %(default)s)")
    add("--chat-option", action="append", default=[], metavar="KEY=VALUE", help="argument of the chat template; repeat")
    add_trust(parser)
    add("--json", action="store_true", help="print the report as JSON")


def main(args: argparse.Namespace) -> int:
    """``s2l data traces-as-store``. Returns the exit status; unusable input raises DataError."""
    other = [path for path in args.data if path.suffix != ".parquet"]
    if other:
        raise ConfigError(f"--data {other[0]}: expected verl parquet. `s2l data` makes it.")
    options = dict(map(chat_option, args.chat_option))
    trust = trust_option(args.trust_remote_code)
    found = write(TraceStore(args.model, tuple(args.data), args.out, args.trace, args.without_trace, options, trust))
    if args.json:
        print(json.dumps(found | {"out": str(args.out)}))
    else:
        print(
            f"{found['rows']} traces ({found['tokens']} tokens) written to {args.out}, {found['dropped']} rows dropped"
        )
    return 0
