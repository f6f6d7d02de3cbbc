"""The trainer started by verl's own command: two FSDP workers, per-source baseline, truncated importance weights."""

import re
import sys

import pytest
from omegaconf import OmegaConf

from s2l_ext.compose import compose_config

GROUP, PROMPTS, TOTAL = 4, 4, 3
SLOTS = [4, 2, 0]


@pytest.fixture(scope="module")
def run(launch, small_run, toy_dir, tmp_path_factory):
    config = compose_config("grpo/toy", [*small_run, f"trainer.total_training_steps={TOTAL}"])
    plain = OmegaConf.to_container(config, resolve=False)
    del plain["s2l"]
    folder = tmp_path_factory.mktemp("verl_way")
    OmegaConf.save(OmegaConf.create(plain), folder / "verl_only.yaml")
    command = [sys.executable, "-m", "verl.trainer.main_ppo", f"--config-path={folder}", "--config-name=verl_only"]
    return launch(
        "",
        "trainer.v1.trainer_mode=s2l",
        f"+s2l.explorer.model_path={toy_dir}/models/small",
        "+s2l.explorer.mix_steps=3",
        "+s2l.explorer.baseline=per_source",
        "+s2l.explorer.correction=truncated_is",
        "+s2l.explorer.is_cap=1.5",
        "trainer.n_gpus_per_node=2",
        "ray_kwargs.ray_init.num_gpus=3",
        command=command,
        folder=folder,
    ).wait()


def test_every_step_ran_with_the_schedule(run) -> None:
    assert [run.steps()[step]["s2l/explorer/slots"] for step in (1, 2, 3)] == SLOTS


def test_two_training_workers_and_three_vllm_servers(run) -> None:
    """With RAY_DEDUP_LOGS=0 every process that logs anything shows its pid."""
    workers = set(re.findall(r"\(WorkerDict pid=(\d+)\)", run.log))
    servers = set(re.findall(r"\(vLLMHttpServer pid=(\d+)\)", run.log))
    assert len(workers) == 2
    assert len(servers) == 3


def test_each_source_has_its_own_baseline(run) -> None:
    for step in (1, 2, 3):
        metrics = run.steps()[step]
        for source in ("explorer", "learner"):
            if metrics[f"s2l/source/{source}/rows"]:
                assert metrics[f"s2l/source/{source}/advantage_mean"] == pytest.approx(0, abs=1e-4)


def test_weights_are_capped_on_explorer_rows_and_one_elsewhere(run) -> None:
    mixed = run.steps()[2]
    assert 0 < mixed["s2l/source/explorer/is_weight_mean"] <= 1.5
    assert mixed["s2l/source/explorer/is_weight_mean"] != pytest.approx(1.0, abs=1e-3)
    assert 0 < mixed["s2l/source/explorer/is_clamped_fraction"] < 1
    assert mixed["s2l/source/learner/is_weight_mean"] == 1.0
    assert run.steps()[1]["s2l/source/explorer/sampler_ratio_max"] > 1.5


def test_the_loss_on_both_workers_multiplied_in_these_weights(run) -> None:
    """What the workers report from inside the loss equals what the driver wrote, at every step."""
    for step in (1, 2, 3):
        metrics = run.steps()[step]
        for source in ("explorer", "learner"):
            if metrics[f"s2l/source/{source}/rows"]:
                written = metrics[f"s2l/source/{source}/is_weight_mean"]
                assert metrics[f"s2l/source/{source}/applied_weight_mean"] == pytest.approx(written, rel=1e-5)


def test_servers_stopped(run) -> None:
    assert [run.steps()[step]["s2l/explorer/gpus_held"] for step in (1, 2, 3)] == [1, 0, 0]
