"""The parts of the glue that can be checked without a run, on verl's own data types."""

import pytest
import torch
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.workers.engine_workers import ActorRolloutRefWorker

from s2l_ext.errors import ConfigError, ResourceError, S2LError, TokenizerMismatch
from s2l_ext.launch.compose import compose_config
from s2l_ext.launch.train import _ask_verl
from s2l_ext.methods.explorer.serving.servers import explorer_config
from s2l_ext.methods.registry import methods_of, parse_s2l
from s2l_ext.training.actor_worker import S2LActorWorker, ratio_sums
from s2l_ext.training.seeded_agent_loop import request_seed
from s2l_ext.training.step import Step, StepRows, require_rows

pytestmark = pytest.mark.contract


def test_what_verl_refuses_is_one_of_our_errors() -> None:
    cfg = compose_config("grpo/toy", ["actor_rollout_ref.actor.ppo_mini_batch_size=64"])
    with pytest.raises(ConfigError, match=r"verl refuses the configuration: .*64"):
        _ask_verl(cfg)


def test_ratio_sums_by_hand() -> None:
    """Ratios 1, 2, 0.5 at clip 0.2: A > 0 clips only 2, A < 0 clips only 0.5; the masked token is not read."""
    log_prob = torch.log(torch.tensor([[1.0, 2.0, 0.5, 7.0]]))
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    for advantage, clipped in ((1.0, 1.0), (-1.0, 1.0), (0.0, 0.0)):
        sums = ratio_sums(log_prob, torch.zeros(1, 4), torch.full((1, 4), advantage), mask, 0.2, 0.2)
        assert {name: float(value) for name, value in sums.items()} == {"ratio": 3.5, "clipped": clipped}


def test_asymmetric_clip_bounds() -> None:
    log_prob = torch.log(torch.tensor([[1.25]]))
    ones = torch.ones(1, 1)
    assert float(ratio_sums(log_prob, torch.zeros(1, 1), ones, ones, 0.2, 0.2)["clipped"]) == 1
    assert float(ratio_sums(log_prob, torch.zeros(1, 1), ones, ones, 0.2, 0.28)["clipped"]) == 0


def test_weights_that_do_not_reach_the_loss_are_an_error(trainer_of) -> None:
    trainer = trainer_of("s2l_po/toy", "s2l.explorer.correction=truncated_is")
    (explorer,) = trainer.methods
    step = Step(1, KVBatchMeta(), {"s2l/source/explorer/ppo_ratio_mean": 1.0}, {}, StepRows([], [], [], None, []))
    with pytest.raises(RuntimeError, match="weights of explorer rows did not reach the loss"):
        explorer.after_update(step)
    step.metrics["s2l/source/explorer/applied_weight_mean"] = 1.5
    explorer.after_update(step)


def explorer_rows(planned: dict[str, int], *sessions: str) -> dict[str, float]:
    """What the driver says of the explorer's sessions: the first ones of every group."""
    names = list(sessions)
    read = StepRows(names, ["learner"] * len(names), [0] * len(names), None, [{}] * len(names))
    ranges = {uid: range(count) for uid, count in planned.items()}
    return require_rows(read, ranges, "explorer", "the explorer failed")


def test_failed_explorer_sessions_are_counted_and_a_dead_explorer_ends_the_run(queue) -> None:
    whole = "a_0_0", "a_1_0", "a_2_0", "b_0_0", "b_1_0", "b_2_0", "pad_0_0"
    two = {"a": 2, "b": 2}
    queue.rows = {name: {"extra_fields": {}} for name in whole}
    read = StepRows.of(queue.batch(padding=("pad_0_0",)), False, False)
    assert read.names == list(whole[:-1]), "padding is of no group"
    assert explorer_rows(two, *read.names) == {"s2l/explorer/missing_rows": 0.0}
    assert explorer_rows(two, "a_1_0", "a_2_0", "b_2_0") == {"s2l/explorer/missing_rows": 3.0}
    uneven = {"a": 2, "b": 0}
    assert explorer_rows(uneven, "a_1_0", "a_2_0", "b_2_0") == {"s2l/explorer/missing_rows": 1.0}
    assert explorer_rows({"a": 0}, "a_2_0") == {"s2l/explorer/missing_rows": 0.0}
    assert explorer_rows(two, "a_0_0", "a_1_0") == {"s2l/explorer/missing_rows": 2.0}, "no row of group b"
    with pytest.raises(S2LError, match="none of the step's 4 explorer sessions gave a row: the explorer failed"):
        explorer_rows(two, "a_2_0", "b_3_0")


@pytest.mark.parametrize("accelerator", ["GPU", "NPU"])
def test_explorer_pool_larger_than_the_live_cluster_is_refused_before_any_worker_starts(
    monkeypatch, accelerator
) -> None:
    import ray

    from s2l_ext.training.trainers_by_mode import S2LTrainer

    config = compose_config("s2l_po/toy", ["s2l.explorer.n_gpus_per_node=3"])
    trainer = S2LTrainer.__new__(S2LTrainer)
    trainer.config, trainer.s2l = config, parse_s2l(config.s2l)
    trainer.methods = methods_of(trainer.s2l, config)
    monkeypatch.setattr("s2l_ext.training.trainer.get_resource_name", lambda: accelerator)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {accelerator: 2.0})
    with pytest.raises(ResourceError, match=r"needs 4 GPUs = 1 \(learner\) \+ 3 \(explorer\), but 2 are available"):
        trainer._init_resource_pool_mgr()


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("expo/toy", ["s2l.kl=null"]),
        ("grpo/toy", ["+s2l.distill={teacher_path: x, loss: sampled_k1, teacher_placement: server}"]),
        ("grpo/toy", []),
    ],
)
def test_one_count_of_checkpoints_with_every_method_and_verls_own_with_none(trainer_of, monkeypatch, recipe, overrides):
    """Also with a method that brings no actor worker."""
    monkeypatch.setattr("s2l_ext.training.trainer.check_pool", lambda *_: None)
    monkeypatch.setattr("ray.cluster_resources", dict)
    trainer = trainer_of(recipe, *overrides)
    trainer._init_resource_pool_mgr()
    (worker, *_) = trainer.role_worker_mapping.values()
    wanted = S2LActorWorker if trainer.methods else ActorRolloutRefWorker
    assert worker.__ray_metadata__.modified_class.__mro__[1] is wanted


def test_trainer_started_by_verl_compares_tokenizers_itself(monkeypatch) -> None:
    from s2l_ext.training import before_run
    from s2l_ext.training import trainers_by_mode as s2l_trainer

    config = compose_config("s2l_po/toy", [])
    monkeypatch.setattr(before_run, "check_inputs", lambda *_: (_ for _ in ()).throw(TokenizerMismatch("differ")))
    with pytest.raises(TokenizerMismatch):
        s2l_trainer.S2LTrainer(config)


def test_request_seeds_differ_by_step_prompt_and_session() -> None:
    seeds = {request_seed(0, step, prompt, session) for step in range(5) for prompt in "abcde" for session in range(5)}
    assert len(seeds) == 125
    assert request_seed(0, 1, "a", 3) == 0x433C1BFD, "crc32 of 0/1/a/3: the same in every process and release"
    assert request_seed(1, 1, "a", 3) != request_seed(0, 1, "a", 3)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_explorers_engine_has_its_own_model_place_and_overrides() -> None:
    config = compose_config("s2l_po/toy", ["s2l.explorer.rollout_overrides={max_num_seqs: 7}"])
    before = OmegaConf.to_container(config, resolve=True)
    copied = explorer_config(config, parse_s2l(config.s2l).explorer)
    rollout = copied.actor_rollout_ref.rollout
    assert copied.actor_rollout_ref.model.path.endswith("models/small")
    assert (rollout.nnodes, rollout.n_gpus_per_node, rollout.load_format, rollout.max_num_seqs) == (1, 1, "auto", 7)
    assert copied.actor_rollout_ref.model.lora_rank == 0 and copied.actor_rollout_ref.model.tokenizer_path is None
    assert OmegaConf.to_container(config, resolve=True) == before


def test_the_explorers_engine_has_no_part_that_is_the_learners_alone() -> None:
    rollout = "actor_rollout_ref.rollout"
    of_learner = [f"{rollout}.expert_parallel_size=4", f"{rollout}.prometheus.enable=true"]
    of_learner.append("actor_rollout_ref.model.mtp.enable_rollout=true")
    config = compose_config("s2l_po/toy", of_learner)
    copied = explorer_config(config, parse_s2l(config.s2l).explorer).actor_rollout_ref.rollout
    assert (copied.expert_parallel_size, copied.mtp.enable_rollout, copied.prometheus.enable) == (1, False, False)
    own = compose_config("s2l_po/toy", [*of_learner, "s2l.explorer.rollout_overrides={expert_parallel_size: 2}"])
    assert explorer_config(own, parse_s2l(own.s2l).explorer).actor_rollout_ref.rollout.expert_parallel_size == 2


@pytest.mark.parametrize(("placement", "place"), [("dedicated", (3, 5)), ("colocated", (2, 4))])
def test_a_colocated_explorer_has_the_learners_nodes_and_one_of_its_own_has_its_own(placement: str, place) -> None:
    explorer = f"s2l.explorer={{model_path: x, placement: {placement}, nnodes: 3, n_gpus_per_node: 5}}"
    config = compose_config("s2l_po/toy", ["trainer.nnodes=2", "trainer.n_gpus_per_node=4", explorer])
    rollout = explorer_config(config, parse_s2l(config.s2l).explorer).actor_rollout_ref.rollout
    assert (rollout.nnodes, rollout.n_gpus_per_node) == place
