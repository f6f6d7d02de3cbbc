"""``s2l data toy``: write the toy world into a folder."""

from __future__ import annotations

import argparse
import json

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
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def main(args: argparse.Namespace) -> int:
    sizes = [size.strip() for size in args.sizes.split(",") if size.strip()]
    world = prepare(args.out, sizes, args.seed, not args.json, args.family)
    print(json.dumps(_as_json(world)) if args.json else _as_text(world))
    return 0


def _as_json(world: ToyWorld) -> dict[str, object]:
    return {
        "root": str(world.root),
        "models": {size: str(path) for size, path in world.models.items()},
        "files": {name: str(path) for name, path in world.files.items()},
    }


def _as_text(world: ToyWorld) -> str:
    lines = [f"model {size}: {path}" for size, path in world.models.items()]
    return "\n".join([*lines, f"data: {len(world.files)} files in {world.root}, such as {world.files['train'].name}"])
