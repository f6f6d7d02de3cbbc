"""``s2l data toy``: write the toy world into a folder and, on request, measure it."""

from __future__ import annotations

import argparse
import json

from s2l_ext.toy.measure import describe, format_table
from s2l_ext.toy.models import SIZES
from s2l_ext.toy.pretrain import FAMILIES
from s2l_ext.toy.world import ToyWorld, prepare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, help="folder for models/<size> and the parquet files")
    parser.add_argument("--sizes", default="small,medium", help=f"comma-separated, of {', '.join(SIZES)}")
    parser.add_argument(
        "--family",
        choices=FAMILIES,
        default="made",
        help="natural: sizes pre-trained alike, as models/natural_<size> (default made: each with its own examples)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the data and of pre-training (default 0)")
    parser.add_argument(
        "--describe", action="store_true", help="sample from every model on every tier and print a table"
    )
    parser.add_argument("--problems", type=int, default=64, help="test problems per tier for --describe (default 64)")
    parser.add_argument("--samples", type=int, default=16, help="responses per problem for --describe (default 16)")
    parser.add_argument("--temperature", type=float, default=1.0, help="for --describe (default 1.0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="for --describe (default 1.0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def main(args: argparse.Namespace) -> int:
    sizes = [size.strip() for size in args.sizes.split(",") if size.strip()]
    world = prepare(args.out, sizes, args.seed, not args.json, args.family)
    rows = None
    if args.describe:
        rows = describe(world, args.problems, args.samples, args.seed, args.temperature, args.top_p)
    print(json.dumps(_as_json(world, rows)) if args.json else _as_text(world, rows))
    return 0


def _as_json(world: ToyWorld, rows: list[dict[str, object]] | None) -> dict[str, object]:
    return {
        "root": str(world.root),
        "models": {size: str(path) for size, path in world.models.items()},
        "files": {name: str(path) for name, path in world.files.items()},
        "describe": rows,
    }


def _as_text(world: ToyWorld, rows: list[dict[str, object]] | None) -> str:
    lines = [f"model {size}: {path}" for size, path in world.models.items()]
    lines += [f"data: {len(world.files)} files in {world.root}, such as {world.files['train'].name}"]
    return "\n".join(lines + ([format_table(rows)] if rows else []))
