"""``python -m s2l_ext.studies.local train --config-name RECIPE [OVERRIDE...]``: a recipe by the local loop."""

from __future__ import annotations

import argparse
from pathlib import Path

from s2l_ext.utils.refusal import run_cli


def main(args: argparse.Namespace) -> int:
    from s2l_ext.launch.compose import compose_config
    from s2l_ext.studies.local.run import run_local

    cfg = compose_config(args.config_name, args.overrides)
    run_local(cfg, Path(cfg.trainer.default_local_dir))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m s2l_ext.studies.local", description=__doc__)
    parser.add_argument("command", choices=["train"])
    parser.add_argument("--config-name", required=True, metavar="RECIPE")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    raise SystemExit(run_cli(main, parser.parse_intermixed_args()))
