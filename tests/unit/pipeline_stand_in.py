"""``s2l pipeline`` with stages that train nothing but behave as real ones do: checkpoints, metrics, resume.

``python pipeline_stand_in.py pipeline FILE ...`` is the command; with ``STAND_IN_PAUSE=NAME:STEP`` the stage NAME stops
after STEP, says so in ``<run>/paused`` and waits to be killed; ``export:NAME`` pauses in the middle of an export.
"""

import hashlib
import json
import os
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True)
class Options:
    steps: int = 3
    fail: bool = False
    words: list = field(default_factory=list)


def fake_kinds():
    from s2l_ext.pipeline.commands import Evaluate
    from s2l_ext.pipeline.stage import Command, Job, Kind
    from s2l_ext.pipeline.train import Train

    class StandInTrain(Train):
        options = Options

        def prepare(self, stage, options):
            inputs = {name: stage.paths(name) for name in stage.given}
            job = {"run": str(stage.run), "steps": options.steps, "name": stage.name, "fail": options.fail}
            words = (sys.executable, __file__, "train", json.dumps(job | {"inputs": inputs}), *stage.overrides)
            return Job(
                [Command(words)],
                settings={"recipe": stage.recipe, "steps": options.steps, "overrides": stage.overrides},
                train_files=inputs.get("data", []),
                labels="teacher" not in inputs,
                steps=options.steps,
                accelerators=2,
            )

    class StandInEvaluate(Evaluate):
        def prepare(self, stage, options):
            job = super().prepare(stage, options)
            models = [command.words[command.words.index("--model") + 1] for command in job.commands]
            words = [(sys.executable, __file__, "evaluate", path) for path in models]
            fakes = [Command((*w, str(c.gives)), c.gives) for w, c in zip(words, job.commands, strict=True)]
            return replace(job, commands=fakes)

    class StandInToy(Kind):
        options = Options

        def prepare(self, stage, options):
            return Job([Command((sys.executable, __file__, "toy", str(stage.run)))])

    return {"train": StandInTrain(), "evaluate": StandInEvaluate(), "toy": StandInToy()}


def write_model(folder: Path, text: str) -> Path:
    """A Hugging Face folder of four parameters whose weights are made of ``text``."""
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    weights = hashlib.sha256(text.encode()).digest()[:16]
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + weights)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def pause(name: str, step: int, run: Path) -> None:
    if os.environ.get("STAND_IN_PAUSE") != f"{name}:{step}":
        return
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={}, start_new_session=True)
    (run / "paused").write_text(f"{os.getpid()} {orphan.pid}")
    time.sleep(60)


def train(job: dict, *words: str) -> None:
    run, start = (
        Path(job["run"]),
        "".join(
            hashlib.sha256((Path(path) / "model.safetensors").read_bytes()).hexdigest()
            for name in ("model", "teacher")
            for path in job["inputs"].get(name, [])
        ),
    )
    teachers = job["inputs"].get("teacher", [])
    config = {
        "trainer": {"nnodes": 1, "n_gpus_per_node": 2},
        "actor_rollout_ref": {"model": {"path": job["inputs"]["model"][0]}},
        "s2l": {"distill": {"teacher_path": teachers[0]}} if teachers else {},
    }
    (run / "s2l_config.yaml").write_text(json.dumps(config))
    tracker, metrics = run / "latest_checkpointed_iteration.txt", run / "metrics.jsonl"
    done = int(tracker.read_text()) if tracker.exists() else 0
    kept = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= done] if done else []
    metrics.write_text("".join(f"{line}\n" for line in kept))
    for step in range(done + 1, job["steps"] + 1):
        if job["fail"]:
            print("\n".join(f"line {number}" for number in range(40)))
            sys.exit("out of luck")
        write_model(run / f"global_step_{step}" / "actor" / "huggingface", f"{start}{words}{step}")
        tracker.write_text(str(step))
        data = {"training/global_step": step, "perf/total_num_tokens": 100 * step, "timing_s/step": time.time() % 7}
        data |= {"s2l/distill/loss": 1 / step} if teachers else {}
        with open(metrics, "a") as file:
            file.write(json.dumps({"step": step, "data": data | {"val-core/toy/acc/mean@1": step / 10}}) + "\n")
        pause(job["name"], step, run)


def evaluate(model: str, out: str) -> None:
    content = (Path(model) / "model.safetensors").read_bytes()
    result = {"accuracy": content[-1] / 255, "standard_error": 0.01, "problems": [1, 2], "seconds": time.time()}
    Path(out).write_text(json.dumps(result))
    pause("table", len(list(Path(out).parent.glob("*.json"))), Path(out).parent)


def toy(out: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for size in ("medium", "large"):
        write_model(Path(out) / "models" / size, size)
    pause("toy", 1, Path(out))
    rows = [
        {"prompt": [{"role": "user", "content": f"{n}=?"}], "reward_model": {"ground_truth": str(n)}} for n in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(rows), Path(out) / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:2]), Path(out) / "test.parquet")


def pause_in_export() -> None:
    """After the first file of the export that ``STAND_IN_PAUSE=export:NAME`` names."""
    from s2l_ext.pipeline import runner

    copy_file, wanted = runner.copy_file, os.environ.get("STAND_IN_PAUSE", "")

    def copy(file: Path, target: Path) -> None:
        copy_file(file, target)
        if wanted.startswith("export:") and target.parent.name == f"{wanted.partition(':')[2]}.tmp":
            (target.parents[2] / "paused").write_text(f"{os.getpid()}")
            time.sleep(60)

    runner.copy_file = copy


def main(words: list[str]) -> int:
    if words[0] == "train":
        train(json.loads(words[1]), *words[2:])
    elif words[0] == "evaluate":
        evaluate(*words[1:])
    elif words[0] == "toy":
        toy(words[1])
    else:
        from s2l_ext.cli import main as s2l
        from s2l_ext.pipeline.file import KINDS

        KINDS.update(fake_kinds())
        pause_in_export()
        return s2l(words)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
