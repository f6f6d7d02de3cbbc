"""What a run's samples.jsonl says of its rows, and the loss that these rows make. Read through the fixture
``saved_rows``: with pytest's import mode tests cannot import their neighbours."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from statistics import mean, stdev

BUDGET = 64
"""``data.max_response_length`` of the toy recipes."""


def rows_by_step(run) -> dict[int, list[dict]]:
    """Rows of ``samples.jsonl`` by step; all of the step with ``s2l.rollout.log_groups`` large enough."""
    lines = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    return {line["step"]: line["rows"] for line in lines}


def groups(rows: Iterable[dict]) -> dict[str, list[dict]]:
    found = defaultdict(list)
    for row in rows:
        found[row["uid"]].append(row)
    return dict(found)


def tokens(row: dict) -> int:
    """Response tokens that the model wrote: a character each, the marks of its thinking too; less than the budget ends
    with one more."""
    placed, own = (len(re.sub("</?think>", "#", row[name])) for name in ("guidance", "response"))
    return own + (placed + own < BUDGET)


def advantages(rows: list[dict], by_std: bool = True) -> list[float]:
    """GRPO's of each row, as verl computes them: the sample standard deviation, 1e-6 added to it."""
    scores = {uid: [row["score"] for row in group] for uid, group in groups(rows).items()}
    scales = {uid: stdev(values) + 1e-6 if by_std else 1.0 for uid, values in scores.items()}
    return [(row["score"] - mean(scores[row["uid"]])) / scales[row["uid"]] for row in rows]


def aggregated(values: list[float], lengths: list[int], mode: str, factor: float = 1.0) -> float:
    """Of rows whose tokens have one value each, what verl's ``loss_agg_mode`` makes."""
    sums = [value * length for value, length in zip(values, lengths, strict=True)]
    return {
        "token-mean": sum(sums) / sum(lengths),
        "token-sum": sum(sums),
        "seq-mean-token-sum": mean(sums),
        "seq-mean-token-sum-norm": mean(sums) / factor,
        "seq-mean-token-mean": mean(values),
    }[mode]


def policy_loss(rows: list[dict], mode: str, by_std: bool = True, factor: float = 1.0) -> float:
    """``actor/pg_loss`` of a step's only update, where every ratio is 1."""
    losses = [-value for value in advantages(rows, by_std)]
    return aggregated(losses, [tokens(row) for row in rows], mode, factor)


def replayed(loop, run) -> dict[int, dict[str, float]]:
    """What the local loop makes of the rows of a run's ``samples.jsonl``, by step: it observes them and updates its own
    learner. All rows of every step must be there."""
    found = {}
    for step, rows in rows_by_step(run).items():
        local, uids = _local_rows(loop, rows), list(groups(rows))
        trained = run.steps()[step]["perf/total_num_tokens"]
        assert sum(local.tokens_B) == trained, f"step {step}: a row's text has lost special tokens"
        found[step] = loop.observe(local, step, list(range(len(uids)))) | loop.update(local)
    return found


def _local_rows(loop, rows: list[dict]):
    from s2l_ext.studies.local.rows import Rows

    found, uids = Rows(), list(groups(rows))
    for row in rows:
        question = row["prompt"].removeprefix("user\n").removesuffix("\nassistant\n").strip()
        prompt = loop.prompt_ids({"prompt": [{"role": "user", "content": question}]})
        placed, own = (loop.tokenizer.encode(row[name], add_special_tokens=False) for name in ("guidance", "response"))
        found.add(prompt, placed, row["source"], uids.index(row["uid"]))
        ended = len(placed) + len(own) < BUDGET
        found.responses[-1] += own + [loop.tokenizer.eos_token_id] * ended
        found.score_B.append(row["score"])
        found.acc_B.append(row["acc"])
    return found
