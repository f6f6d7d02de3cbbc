"""Patches of every run, whatever its accelerator. verl is imported inside: it loads our trainers, which load this."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import wrapt
from omegaconf import DictConfig

from s2l_ext.platforms.patches import patch

CPU_TILE, GPU_TILE = 2**16, 2**26
"""Logits of one call: few enough for a core's cache; 128 MB of an accelerator's memory in bfloat16."""

TRANSFER = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"


def hook() -> None:
    """Have verl's modules of the first two patches changed after their import, in whatever process."""
    wrapt.register_post_import_hook(take_rows_together, "verl.utils.torch_functional")
    wrapt.register_post_import_hook(name_sockets_by_cluster, TRANSFER)


@patch(
    "verl.utils.torch_functional:logprobs_from_logits_v2",
    ends_with="test_platform_seams.py::test_verl_still_takes_log_probabilities_row_by_row_and_ours_are_the_same",
)
def take_rows_together(functional: ModuleType) -> None:
    """Without flash-attn verl takes log-probabilities one token at a time, to save memory. With a small
    vocabulary the calls are most of the cost; a tile of tokens gives the same bits."""
    import torch

    upstream = functional.logprobs_from_logits_v2

    @functools.wraps(upstream)
    def logprobs_from_logits_v2(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if not len(logits):
            return upstream(logits, labels)
        rows = max(1, (CPU_TILE if logits.device.type == "cpu" else GPU_TILE) // logits[0].numel())
        places = labels.unsqueeze(-1)
        if logits.dtype in (torch.float32, torch.float64):
            chosen = torch.gather(logits, -1, places).squeeze(-1)
            return chosen - torch.cat([torch.logsumexp(tile, -1) for tile in logits.split(rows)])
        tiles = zip(logits.split(rows), places.split(rows), strict=True)
        return torch.cat([torch.log_softmax(tile, -1).gather(-1, place) for tile, place in tiles]).squeeze(-1)

    functional.logprobs_from_logits_v2 = logprobs_from_logits_v2


@patch(
    f"{TRANSFER}:BucketedWeightSender.__init__",
    f"{TRANSFER}:BucketedWeightReceiver.__init__",
    ends_with="test_two_runs_on_one_machine.py::test_upstream_still_names_sockets_by_the_job_id_alone",
    upstream="verl-project/verl#6233",
)
def name_sockets_by_cluster(transfer: ModuleType) -> None:
    """verl names them by Ray's job id, 01000000 in every cluster that a run starts for itself: two runs on one machine
    would read each other's weights."""

    def named(original: Callable) -> Callable:
        @functools.wraps(original)
        def initialize(self: Any, zmq_handle: str, *args: Any, **kwargs: Any) -> None:
            original(self, f"{zmq_handle}.{os.environ.get('RAY_RAYLET_PID', '')}", *args, **kwargs)

        return initialize

    for end in (transfer.BucketedWeightSender, transfer.BucketedWeightReceiver):
        end.__init__ = named(end.__init__)


@patch(
    "verl.trainer.ppo.v1:get_trainer_cls",
    "verl.trainer.ppo.v1.trainer_base:get_trainer_cls",
    ends_with="test_mode_seams.py::test_verls_table_of_trainers_still_takes_classes_only",
)
def load_before_trainers_are_looked_up(load: Callable[[], None]) -> None:
    """verl's table of trainers takes classes only. To enter ours when verl's are imported would import our modules in
    the middle of an import of one of them. ``load``, which enters them, is called when a trainer is asked for."""
    from verl.trainer.ppo import v1

    upstream = v1.get_trainer_cls

    def get_trainer_cls(name: str) -> type:
        load()
        return upstream(name)

    v1.get_trainer_cls = v1.trainer_base.get_trainer_cls = get_trainer_cls


@patch(
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer.__init__",
    ends_with="test_mode_seams.py::test_verls_own_trainer_still_passes_over_our_block",
)
def check_before_every_trainer(check: Callable[[Any, DictConfig], None]) -> None:
    """verl's own trainers pass over the block ``s2l`` without a word. ``check`` gets a trainer and its configuration
    first."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    upstream = PPOTrainer.__init__

    @functools.wraps(upstream)
    def initialize(self: Any, config: DictConfig) -> None:
        check(self, config)
        upstream(self, config)

    PPOTrainer.__init__ = initialize


@patch(
    "verl.single_controller.ray.base:placement_group",
    ends_with="test_placement_seams.py::test_verl_asks_for_groups_under_the_name_we_replace_and_with_no_selector",
)
def replace_placement_group(ours: Callable[..., Any]) -> None:
    """verl's pools ask Ray for placement groups without label selectors, and wait for them without a time limit."""
    import ray
    from verl.single_controller.ray import base

    if base.placement_group is ray.util.placement_group:
        base.placement_group = ours


@patch(
    "verl.trainer.ppo.v1.trainer_base:RewardLoopManager",
    "verl.trainer.ppo.v1.trainer_base:LLMServerManager",
    "verl.trainer.ppo.v1.trainer_separate_async:LLMServerManager",
    ends_with="test_fault_seams.py::test_the_learners_router_is_made_where_we_make_it",
)
@contextmanager
def replace_managers(reward_loop: type, servers: type) -> Iterator[None]:
    """verl's trainers name the classes of their managers in their modules and take no others. Within the block they
    build ours: reward workers that Ray starts again, a router on the trainer's node."""
    from verl.trainer.ppo.v1 import trainer_base, trainer_separate_async

    with (
        mock.patch.multiple(trainer_base, RewardLoopManager=reward_loop, LLMServerManager=servers),
        mock.patch.object(trainer_separate_async, "LLMServerManager", servers),
    ):
        yield


@patch(
    "verl.trainer.ppo.v1.trainer_separate_async:logger",
    ends_with="test_mode_seams.py::test_verls_line_without_hybrid_replicas_is_still_faulty",
)
@contextmanager
def silence_faulty_line() -> Iterator[None]:
    """With ``actor_rollout_ref.hybrid_engine=False`` verl calls ``logger.info(..., flush=True)``, a TypeError unless
    that logger is silent."""
    from verl.trainer.ppo.v1 import trainer_separate_async

    level = trainer_separate_async.logger.level
    trainer_separate_async.logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        trainer_separate_async.logger.setLevel(level)


@patch(
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer._wait_for_next_poll",
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer.sample",
    ends_with="test_fault_seams.py::test_replay_buffers_wait_at_one_place",
)
def watch_sampling(
    buffer: Any, begin: Callable[[], None], wait: Callable[[int, str], None], check: Callable[[], None]
) -> None:
    """verl waits for sessions without a time limit. When sessions fail it says only that there are no rows. The buffer,
    a user's class too, calls ``begin`` before each batch, ``check`` and ``wait`` (unfinished prompts, partition)
    whenever it waits, and ``check`` when it ends, with an error too."""
    upstream_wait, upstream_sample = buffer._wait_for_next_poll, buffer.sample

    def wait_for_next_poll(partition_id: str, *args: Any, **kwargs: Any) -> Any:
        check()
        wait(len(buffer.pending_keys[partition_id]) + len(buffer.running_keys[partition_id]), partition_id)
        return upstream_wait(partition_id, *args, **kwargs)

    def sample(*args: Any, **kwargs: Any) -> Any:
        begin()
        try:
            return upstream_sample(*args, **kwargs)
        finally:
            check()

    buffer._wait_for_next_poll, buffer.sample = wait_for_next_poll, sample


@patch(
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer._evict_terminal_groups",
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer._clear_groups",
    ends_with="test_dropped_groups.py::test_dropped_groups_count_as_what_they_were",
)
def report_drops(buffer: Any, dropped: Callable[[str, set[str]], None]) -> None:
    """verl drops groups whose rewards are all alike without a word. ``dropped`` is told partition and uids before they
    are gone; failed groups and those that are too old are left out."""
    evict, clear = buffer._evict_terminal_groups, buffer._clear_groups
    stale: set[str] = set()

    def evict_terminal_groups(global_steps: int, partition_id: str, reasons: Any) -> Any:
        stale.update(reasons[0])
        try:
            return evict(global_steps, partition_id, reasons)
        finally:
            stale.clear()

    def clear_groups(partition_id: str, uids: set[str]) -> None:
        if partition_id != "val":
            dropped(partition_id, (uids & buffer.finished_keys[partition_id]) - stale)
        clear(partition_id, uids)

    buffer._evict_terminal_groups, buffer._clear_groups = evict_terminal_groups, clear_groups


@patch(
    "verl.experimental.agent_loop.agent_loop:hydra.utils.instantiate",
    ends_with="test_session_cost.py::test_verl_still_merges_a_configuration_for_every_session",
)
def construct_sessions(construct: Callable[..., Any]) -> None:
    """verl has hydra make the agent loop of every session, which merges its arguments through OmegaConf first."""
    from verl.experimental.agent_loop import agent_loop

    agent_loop.hydra = SimpleNamespace(utils=SimpleNamespace(instantiate=construct))


@patch(
    "verl.trainer.ppo.v1.agent_loop_tq:tq.async_kv_batch_put",
    "verl.trainer.ppo.v1.agent_loop_tq:list_of_dict_to_tensordict",
    ends_with="test_session_cost.py::test_verl_still_writes_every_session_by_itself",
)
def share_puts(batched: Callable[[Any, Callable[..., Any]], Any]) -> None:
    """verl writes every session's rows to its queue by themselves. ``batched`` takes the queue's module and what makes
    a batch of rows, and gives what stands for the module; rows reach it as they are."""
    from verl.trainer.ppo.v1 import agent_loop_tq

    if agent_loop_tq.list_of_dict_to_tensordict is not list:
        agent_loop_tq.tq = batched(agent_loop_tq.tq, agent_loop_tq.list_of_dict_to_tensordict)
        agent_loop_tq.list_of_dict_to_tensordict = list


@patch("torch.nn:Linear.forward", ends_with="test_distill_glue.py::test_verls_engine_still_asks_for_whole_logits")
def replace_forward(layer: Any, forward: Callable[..., Any]) -> None:
    """A model of transformers makes logits of the whole vocabulary before a loss sees anything. Its output layer, one
    instance, computes what the divergence to a teacher needs instead."""
    layer.forward = forward
