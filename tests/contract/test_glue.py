"""The parts of the glue that can be checked without a run, on verl's own data types."""

import torch
import pytest
from omegaconf import OmegaConf

from s2l_ext.compose import compose_config
from s2l_ext.config import parse_s2l
from s2l_ext.rollout.explorer_servers import explorer_config
from s2l_ext.rollout.seeded import request_seed
from s2l_ext.trainer.actor_worker import ratio_sums
from s2l_ext.trainer.row_metrics import finish_ratio_sums

pytestmark = pytest.mark.contract


def test_ratio_sums_by_hand() -> None:
    """Ratios 1, 2, 0.5 at clip 0.2: with A > 0 only 2 is clipped, with A < 0 only 0.5 is; the masked token is not read."""
    log_prob = torch.log(torch.tensor([[1.0, 2.0, 0.5, 7.0]]))
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    for advantage, clipped in ((1.0, 1.0), (-1.0, 1.0), (0.0, 0.0)):
        sums = ratio_sums(log_prob, torch.zeros(1, 4), torch.full((1, 4), advantage), mask, 0.2, 0.2)
        assert {name: float(value) for name, value in sums.items()} == {"ratio": 3.5, "clipped": clipped, "tokens": 3.0}


def test_asymmetric_clip_bounds() -> None:
    log_prob = torch.log(torch.tensor([[1.25]]))
    ones = torch.ones(1, 1)
    assert float(ratio_sums(log_prob, torch.zeros(1, 1), ones, ones, 0.2, 0.2)["clipped"]) == 1
    assert float(ratio_sums(log_prob, torch.zeros(1, 1), ones, ones, 0.2, 0.28)["clipped"]) == 0


def test_sums_are_taken_out_and_divided() -> None:
    sums = {"ratio": 6.0, "clipped": 1.0, "tokens": 4.0}
    metrics = {f"actor/s2l_sum/explorer/{name}": value for name, value in sums.items()} | {"actor/loss": 1.0}
    metrics |= {f"actor/s2l_sum/learner/{name}": 0.0 for name in sums}
    finished = finish_ratio_sums(metrics)
    assert metrics == {"actor/loss": 1.0}
    assert finished == {"s2l/source/explorer/ppo_ratio_mean": 1.5, "s2l/source/explorer/ppo_clip_fraction": 0.25}


def test_request_seeds_differ_by_step_prompt_and_session() -> None:
    seeds = {request_seed(0, step, prompt, session) for step in range(5) for prompt in range(5) for session in range(5)}
    assert len(seeds) == 125
    assert request_seed(0, 1, 2, 3) == request_seed(0, 1, 2, 3) != request_seed(1, 1, 2, 3)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_explorers_engine_has_its_own_model_place_and_overrides() -> None:
    config = compose_config("s2l_po/toy", ["s2l.explorer.rollout_overrides={max_num_seqs: 7}"])
    before = OmegaConf.to_container(config, resolve=True)
    copied = explorer_config(config, parse_s2l(config.s2l).explorer)
    rollout = copied.actor_rollout_ref.rollout
    assert copied.actor_rollout_ref.model.path.endswith("models/small")
    assert (rollout.nnodes, rollout.n_gpus_per_node, rollout.load_format, rollout.max_num_seqs) == (1, 1, "auto", 7)
    assert OmegaConf.to_container(config, resolve=True) == before
