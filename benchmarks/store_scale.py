"""A store of stored rollouts at paper size: open it, draw a step, read the step's responses, resume.

    python benchmarks/store_scale.py                        (17,000 prompts x 32 responses; 1,024 x 8 a step)

Responses are short (64 tokens): only reading and checking them depends on their length. One JSON object a line.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from measuring import measured, report
from tqdm import tqdm

from s2l_ext.methods.explorer.stored_rollouts import StoredRollouts
from s2l_ext.store.reader import SCHEMA, Manifest, Rollout, RolloutStore, Shard
from s2l_ext.store.shards import ROW_GROUP, shard_name, write_manifest
from s2l_ext.store.writer import StoreWriter, request_of
from s2l_ext.utils.digests import sha256_file

STEP, SLOTS, SHARD_PROMPTS, TOKENS = 1024, 8, 128, 64
FINGERPRINT = {"tokenizer": "t", "model_name": "m", "sampling": {"max_tokens": TOKENS}, "data": [], "reward": []}


def fill(folder: Path, prompts: int, responses: int) -> dict[str, str]:
    """A store in which every prompt's responses are alike; returns the digests of its problems."""
    problems = {f"prompt-{number:06d}": "0123456789abcdef" for number in range(prompts)}
    one = Rollout("", 0, 7, list(range(100)), list(range(TOKENS)), [-0.5] * TOKENS, False, 1.0, 1.0, "text " * 40)
    rows = [vars(one) | {"index": number % responses, "problem": "0123456789abcdef"} for number in range(responses)]
    group, shards, names = pa.Table.from_pylist(rows, SCHEMA), [], list(problems)
    for number, start in enumerate(tqdm(range(0, prompts, SHARD_PROMPTS), desc="shards", leave=False)):
        part = names[start : start + SHARD_PROMPTS]
        table = pa.concat_tables([group] * len(part)).combine_chunks()
        ids = pa.array([name for name in part for _ in range(responses)])
        path = folder / shard_name(number)
        pq.write_table(table.set_column(0, "prompt_id", ids), path, row_group_size=ROW_GROUP, compression="zstd")
        shards.append(Shard(path.name, sha256_file(path), path.stat().st_size, len(table)))
    write_manifest(folder, Manifest(FINGERPRINT, request_of(responses, problems), True, tuple(shards)))
    return problems


def draw(sampler: StoredRollouts, names: list[str]) -> list[tuple[str, int]]:
    return [(name, number) for name in names for number in sampler.take(name, SLOTS).indices]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[17_000])
    parser.add_argument("--responses", type=int, default=32)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for prompts in args.prompts:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            problems, found = fill(folder, prompts, args.responses), {}
            with measured() as found["open"]:
                store = RolloutStore(folder, verify=False)
            with measured() as found["open and check every byte"]:
                RolloutStore(folder)
            names = list(problems)[:: max(1, prompts // STEP)][:STEP]
            sampler = StoredRollouts(store.counts(), "reuse", 0)
            with measured() as found["draw a step"]:
                drawn = draw(sampler, names)
            with measured() as found["read a step's responses"]:
                for name, number in drawn:
                    store.rollout(name, number)
            with measured() as found["resume writing"], StoreWriter(folder, FINGERPRINT, args.responses, problems):
                pass
        rows = [{"what": what, "prompts": prompts, "responses": args.responses, **vars(c)} for what, c in found.items()]
        report("store_scale", rows, args.out)


if __name__ == "__main__":
    main()
