"""Kill -9 at random moments and a full disk, all four adaptive states at once: the run ends as one nobody touched.

``make chaos`` is the long form: 12 steps, five kills, three seeds. The driver alone dies, or everything at once, in
start-up or in a random step, at a random phase of it. Checkpoints are written every other step, so steps are repeated.
Where a small disk can be mounted (as root) it is also full at one of the checkpoints, in the long form.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.long, pytest.mark.timeout(3 * 3600)]  # one fixture launches many times

LONG = "S2L_CHAOS_KILLS" in os.environ
KILLS = int(os.environ.get("S2L_CHAOS_KILLS", "1"))
SEEDS = [int(seed) for seed in os.environ.get("S2L_CHAOS_SEEDS", "1").split(",")]
STEPS = int(os.environ.get("S2L_CHAOS_STEPS", "6"))
PROMPTS, GROUP, SAVE_FREQ = 4, 4, 2
IN_START_UP = 0.2 if LONG else 0.0
RECORD = os.environ.get("S2L_CHAOS_RECORD")
DISK_MIB, LEFT_MIB = 512, 4
OVERRIDES = (
    f"data.train_batch_size={PROMPTS}",
    "data.train_max_samples=32",
    "data.seed=1",
    f"s2l.explorer.mix_steps={STEPS // 2}",  # plain rows of the learner, with which the length moves, from the third
    "s2l.guidance.length.initial=40",
    "s2l.guidance.length.max_length=48",
    "+s2l.kl={type: accuracy, beta: 0.02}",
    "+s2l.curriculum={type: gaussian, center: 0.5, sigma: 0.35, ema: 0.5}",
    "actor_rollout_ref.actor.use_kl_loss=true",
    "actor_rollout_ref.actor.kl_loss_type=low_var_kl",
    f"trainer.total_training_steps={STEPS}",
    f"trainer.save_freq={SAVE_FREQ}",
)
MACHINE = ("timing_", "perf/", "seconds", "_ms")
ROUNDING = ("rollout_corr/", "training/rollout_probs_diff")
"""The sampler's log-probabilities against the learner's: where both are one model, float32's last digits are left."""
RECIPE = "combined/g2rpo_a_s2l"
LAUNCHES = [
    {
        "fixture": "chaos",
        "recipe": RECIPE,
        "overrides": OVERRIDES,
        "shown_by": "test_plans_and_controllers_have_the_same_values_at_every_step",
        "rows": {"resume after kill -9": "test_every_other_number_is_the_same_too"},
    },
]


@dataclass
class Chaos:
    """What was done to a run, and the launch that ended it."""

    seed: int
    faults: list[str] = field(default_factory=list)
    repeated: int = 0
    kept: dict[int, dict] = field(default_factory=dict)
    last: object = None


def checkpoint(folder: Path) -> int:
    tracker = folder / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text()) if tracker.exists() else 0


def kill(run, chance: random.Random, aim: int) -> str:
    """After so many seconds of start-up, or within seconds after step ``aim - 1`` was logged."""
    if chance.random() < IN_START_UP:
        where = f"start-up, second {pause(chance, 5, 70):.0f}"
    else:
        wait_for_step(run, aim)
        where = f"step {aim}, {pause(chance, 0, 2.5):.1f} s in"
    assert run.process.poll() is None, f"the run was over before the kill ({where})\n{run.log[-3000:]}"
    if chance.random() < 0.5:
        run.kill_9()
        return f"driver: {where}"
    run.end()
    run.process.wait(60)
    return f"all processes: {where}"


def pause(chance: random.Random, least: float, most: float) -> float:
    seconds = chance.uniform(least, most)
    time.sleep(seconds)
    return seconds


def fill_disk(run, aim: int) -> str:
    """The next checkpoint does not fit; the run ends by itself, says so, and leaves the last one whole."""
    wait_for_step(run, aim)
    free = os.statvfs(run.folder).f_bavail * os.statvfs(run.folder).f_frsize
    ballast = run.folder / "ballast"
    ballast.write_bytes(bytes(free - LEFT_MIB * 2**20))
    before = checkpoint(run.folder)
    code = run.process.wait(600)
    run.end()
    ballast.unlink()
    assert code == 2, run.log[-6000:]
    assert "could not be written to" in run.log and "Free space there" in run.log
    assert checkpoint(run.folder) == before
    return f"full disk: step {aim}"


def wait_for_step(run, aim: int) -> None:
    """Until this launch trains and every step before ``aim`` is logged."""
    run.wait_for(lambda: "Training Progress" in run.log and max(run.steps(), default=0) >= aim - 1)


def torment(launch, overrides, seed: int, folder: Path, disk_is_small: bool) -> Chaos:
    chance = random.Random(seed)
    chaos = Chaos(seed)
    disk = disk_is_small and LONG
    count = KILLS + disk
    full = chance.randrange(count) if disk else None
    for number, aim in enumerate(sorted(chance.sample(range(2, STEPS + 1), count))):
        run = launch(RECIPE, *overrides, folder=folder)
        chaos.faults.append(fill_disk(run, aim) if number == full else kill(run, chance, aim))
        saved = checkpoint(folder)
        chaos.repeated += max(run.steps(), default=0) - saved
        chaos.kept = {step: metrics for step, metrics in run.steps().items() if step <= saved} | chaos.kept
    chaos.last = launch(RECIPE, *overrides, folder=folder).wait()
    return chaos


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory) -> Iterator[Path | None]:
    """A folder on a disk of its own that can be filled, where this user may mount one."""
    folder = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "s2l_chaos", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    yield folder if mounted else None
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def overrides(small_run) -> tuple[str, ...]:
    return (*small_run, *OVERRIDES)


@pytest.fixture(scope="module")
def untouched(launch, overrides):
    return launch(RECIPE, *overrides).wait()


@pytest.fixture(scope="module", params=SEEDS, ids=lambda seed: f"seed{seed}")
def chaos(request, launch, overrides, untouched, small_disk, tmp_path_factory) -> Chaos:
    folder = (small_disk or tmp_path_factory.mktemp("chaos")) / f"seed{request.param}"
    folder.mkdir()
    done = torment(launch, overrides, request.param, folder, small_disk is not None)
    with open(RECORD, "a") if RECORD else contextlib.nullcontext(sys.stdout) as out:
        print(f"\nchaos, seed {done.seed}: {'; '.join(done.faults)}. {done.repeated} steps repeated.", file=out)
    return done


def numbers(run) -> dict[int, dict]:
    """Every logged number of every step but those of the machine."""
    kept = {}
    for step, metrics in run.steps().items():
        kept[step] = {key: value for key, value in metrics.items() if not any(word in key for word in MACHINE)}
    return kept


@pytest.mark.skipif(not LONG, reason="the disk is filled in the long form: make chaos")
def test_the_disk_was_full_once_beside_the_kills(chaos, small_disk) -> None:
    if small_disk is None:
        pytest.skip("a disk of its own that can be filled needs root and mount")
    assert [fault.startswith("full disk") for fault in chaos.faults].count(True) == 1
    assert len(chaos.faults) == KILLS + 1


def test_every_step_is_there_once_and_no_row_is_lost(chaos) -> None:
    run = chaos.last
    steps = [line["step"] for line in run.lines() if "training/global_step" in line["data"]]
    assert steps == list(range(1, STEPS + 1)) == sorted(run.draws())
    rows = [sum(m[f"s2l/source/{who}/rows"] for who in ("explorer", "learner")) for m in run.steps().values()]
    assert rows == [PROMPTS * GROUP] * STEPS


def test_steps_before_the_last_checkpoint_are_left_as_they_were(chaos) -> None:
    steps = chaos.last.steps()
    assert {step: steps[step] for step in chaos.kept} == chaos.kept


def test_the_same_prompts_are_drawn(chaos, untouched) -> None:
    assert chaos.last.draws() == untouched.draws()
    drawn = [tuple(line["indices"]) for line in untouched.draws().values()]
    assert len(set(drawn)) > 1, "one draw again and again could not show that the draws are the same"


def test_plans_and_controllers_have_the_same_values_at_every_step(chaos, untouched) -> None:
    names = (
        "s2l/explorer/rollouts_per_group",
        "s2l/guidance/length",
        "s2l/guidance/accuracy",
        "s2l/kl/beta",
        "s2l/kl/accuracy",
    )
    for name in names:
        expected = {step: metrics.get(name) for step, metrics in untouched.steps().items()}
        assert {step: metrics.get(name) for step, metrics in chaos.last.steps().items()} == expected, name
        assert len(set(expected.values())) > 1, f"{name} never moves here"


def test_every_other_number_is_the_same_too(chaos, untouched) -> None:
    expected, found = numbers(untouched), numbers(chaos.last)
    for step in expected:
        for key, value in expected[step].items():
            slack = 1e-5 if key.startswith(ROUNDING) else 1e-7
            assert found[step][key] == pytest.approx(value, rel=1e-4, abs=slack), f"step {step}: {key}"


def test_the_last_states_are_equal(chaos, untouched) -> None:
    mine, theirs = (run.folder / f"global_step_{STEPS}" for run in (chaos.last, untouched))
    assert json.loads((mine / "s2l_state.json").read_text()) == json.loads((theirs / "s2l_state.json").read_text())
    mine_arrays, their_arrays = np.load(mine / "s2l_arrays.npz"), np.load(theirs / "s2l_arrays.npz")
    assert sorted(mine_arrays) == sorted(their_arrays) != []
    for name in their_arrays:
        np.testing.assert_array_equal(mine_arrays[name], their_arrays[name])


def test_the_last_weights_are_equal(chaos, untouched) -> None:
    mine, theirs = (weights(run.folder / f"global_step_{STEPS}" / "actor") for run in (chaos.last, untouched))
    assert sorted(mine) == sorted(theirs) != []
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The learner's parameters as FSDP wrote them; DTensors only when torch.distributed is there to read them."""
    (path,) = folder.glob("model_world_size_1_rank_0.pt")
    loaded = torch.load(path, weights_only=False)
    return {name: getattr(tensor, "_local_tensor", tensor) for name, tensor in loaded.items()}
