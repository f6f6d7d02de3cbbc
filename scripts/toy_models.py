"""Make the toy models that come with the package again: the default sizes for seed 0, as float16, measured.

    python scripts/toy_models.py                     # two minutes of CPU time; then commit s2l_ext/toy/weights
    python scripts/toy_models.py --measure-only      # what the models that are there can do

The weights are the same on one machine and one torch build; another may round differently, and then differ in every
digit after a hundred steps. What they can do stays within the sampling error of the table in models.json.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from s2l_ext.toy import describe, prepare
from s2l_ext.toy.cache import SHIPPED, WEIGHTS, build, read_manifest
from s2l_ext.toy.pretrain import DEFAULTS

SIZES, SEED, PROBLEMS, SAMPLES = ("small", "medium"), 0, 64, 16


def main() -> None:
    for size in SIZES if "--measure-only" not in sys.argv else ():
        shutil.rmtree(SHIPPED / size, ignore_errors=True)
        SHIPPED.mkdir(exist_ok=True)
        build(SHIPPED / size, size, DEFAULTS[size], SEED, half=True)
    with tempfile.TemporaryDirectory() as folder:
        measured = describe(prepare(folder, SIZES, SEED), PROBLEMS, SAMPLES)
    manifests = {size: read_manifest(SHIPPED / size) or {} for size in SIZES}
    record = {
        "made_by": "python scripts/toy_models.py",
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "seed": SEED,
        "sha256": {size: manifest["sha256"][WEIGHTS] for size, manifest in manifests.items()},
        "measured_by": f"s2l data toy --out FOLDER --describe --problems {PROBLEMS} --samples {SAMPLES}",
        "measured": measured,
    }
    text = json.dumps(record, indent=1)
    (Path(SHIPPED) / "models.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
