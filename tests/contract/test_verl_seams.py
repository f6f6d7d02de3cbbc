"""Every method and name of verl 0.9.1 that the trainer, the rollout and the launcher depend on."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import verl.trainer.main_ppo as main_ppo
from verl.experimental.agent_loop import agent_loop as agent_loop_module
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.single_controller.base.decorator import MAGIC_ATTR
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tracking
from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.rollout.llm_server import LLMServerManager
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer
from verl.workers.utils import losses

from s2l_ext.config.modes import TRAINERS
from s2l_ext.training.actor_worker import S2LActorWorker
from s2l_ext.training.agent_loop import S2LAgentLoopWorker
from s2l_ext.training.batch_fields import PREFIX_FIELD, SOURCE_FIELD
from s2l_ext.training.trainer import S2LTrainerMixin
from s2l_ext.training.trainers_by_mode import S2LColocateAsyncTrainer, S2LSeparateAsyncTrainer, S2LTrainer

pytestmark = pytest.mark.contract


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


TRAINER_SEAMS = {
    "_build_replay_buffer": ["self"],
    "_init_dataloader": ["self"],
    "_init_resource_pool_mgr": ["self"],
    "_setup": ["self"],
    "get_llm_client": ["self"],
    "prepare_step": ["self"],
    "_next_train_batch": ["self", "num_prompts"],
    "_reissue_inflight_prompts": ["self", "partition_id"],
    "_balance_batch": ["self", "batch", "metrics", "logging_prefix", "keep_minibatch"],
    "_compute_old_log_prob": ["self", "batch", "metrics"],
    "_compute_advantage": ["self", "batch", "metrics"],
    "_update_actor": ["self", "batch", "metrics"],
    "on_sample_end": ["self"],
    "on_step_end": ["self"],
    "_compute_metrics": ["self", "batch", "metrics", "timing_raw", "global_steps", "epoch"],
    "_val_metrics_update": [
        *("self", "data_sources", "sample_uids", "reward_extra_infos_dict", "sample_turns", "expected_acc_counts")
    ],
    "_save_checkpoint": ["self"],
    "fit": ["self", "agent_loop_manager"],
}


VERLS_TRAINERS = {
    S2LTrainer: PPOTrainerSync,
    S2LColocateAsyncTrainer: PPOTrainerColocateAsync,
    S2LSeparateAsyncTrainer: PPOTrainerSeparateAsync,
}


@pytest.mark.parametrize("ours", VERLS_TRAINERS)
@pytest.mark.parametrize("name", sorted(TRAINER_SEAMS))
def test_trainer_method_has_the_signature_we_override(name: str, ours: type) -> None:
    assert parameters(getattr(VERLS_TRAINERS[ours], name)) == TRAINER_SEAMS[name]
    assert parameters(getattr(ours, name)) == TRAINER_SEAMS[name]


def test_we_override_exactly_the_listed_trainer_methods() -> None:
    inherited = {
        name
        for verls in VERLS_TRAINERS.values()
        for cls in verls.__mro__
        for name in vars(cls)
        if callable(getattr(cls, name, None))
    }
    overridden = {name for name in vars(S2LTrainerMixin) if name in inherited and not name.startswith("__")}
    assert overridden == set(TRAINER_SEAMS)
    assert {name for ours in VERLS_TRAINERS for name in vars(ours) if name in inherited and name[:2] != "__"} == {
        "_setup"
    }


def test_trainers_are_registered_by_the_plugin_each_over_verls_of_its_mode() -> None:
    for ours, verls in VERLS_TRAINERS.items():
        assert TRAINER_REGISTRY[TRAINERS[ours.mode]] is ours and TRAINER_REGISTRY[ours.mode] is verls
        assert issubclass(ours, verls) and ours.__mro__.index(S2LTrainerMixin) < ours.__mro__.index(verls)


def test_base_class_still_takes_any_mode_but_sync_for_asynchronous() -> None:
    source = inspect.getsource(trainer_base)
    assert source.count('self.trainer_mode != "sync"') >= 4


def test_checkpoint_tracker_is_written_after_everything_else() -> None:
    source = inspect.getsource(PPOTrainer._save_checkpoint)
    assert source.index("torch.save(self.train_dataloader.state_dict()") < source.index(
        'latest_checkpointed_iteration.txt"'
    )


def test_tracker_file_names_the_checkpoint_to_resume(tmp_path) -> None:
    from omegaconf import OmegaConf
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    from s2l_ext.training.controller_state import checkpoint_folder

    (tmp_path / "global_step_7").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    config = OmegaConf.create({"trainer": {"resume_mode": "auto", "default_local_dir": str(tmp_path)}})
    assert str(checkpoint_folder(config)) == find_latest_ckpt_path(str(tmp_path))


def test_step_sequence_around_the_metrics_hook() -> None:
    source = inspect.getsource(PPOTrainer.fit)
    order = [
        "self._save_checkpoint()",
        "self.on_step_end()",
        "self._compute_metrics(",
        "tq.kv_clear(",
        "self.logger.log(data=metrics",
    ]
    assert [source.index(call) for call in order] == sorted(source.index(call) for call in order)


def test_validation_ends_in_the_metrics_that_we_add_to() -> None:
    """verl 0.9.1: ``_validate`` returns what ``_val_metrics_update`` makes of all samples; ours adds pass@k only."""
    source = inspect.getsource(PPOTrainer._validate)
    assert source.count("self._val_metrics_update(") == 1 and "return self._val_metrics_update(" in source
    assert "expected_acc_counts=expected_acc_counts" in source
    acc = [1.0, 0.0, 0.0, 0.0]
    samples = (["a"] * 4, ["p"] * 4, {"reward": acc, "score": acc, "acc": acc}, [2] * 4, {("a", "p"): 4})

    class Alone(S2LTrainerMixin):
        def __init__(self) -> None:
            self.global_steps, self.run_log = (
                3,
                SimpleNamespace(append=lambda step, found: logged.append((step, found))),
            )

    logged: list[tuple[int, dict]] = []
    trainer = Alone()
    found, verls = trainer._val_metrics_update(*samples), PPOTrainer._val_metrics_update(trainer, *samples)
    ours = {"s2l/val/a/pass@1": 0.25, "s2l/val/a/pass@2": 0.5, "s2l/val/a/pass@4": 1.0}
    assert found == verls | ours and logged == [(3, found)]
    assert verls["val-core/a/acc/mean@4"] == 0.25 and 0.6 < verls["val-core/a/acc/best@4/mean"] < 0.75


def test_replay_buffer_has_a_poll_interval() -> None:
    assert inspect.signature(ReplayBuffer).parameters["poll_interval"].default == 2.0
    assert "time.sleep(self.poll_interval)" in inspect.getsource(ReplayBuffer._wait_for_next_poll)


def test_agent_loop_worker_class_can_be_unwrapped_from_its_actor() -> None:
    base = AgentLoopWorkerTQ.__ray_metadata__.modified_class
    assert issubclass(S2LAgentLoopWorker, base)
    assert parameters(base._run_agent_loop)[:5] == ["self", "sampling_params", "trajectory", "agent_name", "trace"]
    assert "server_manager=self.llm_client" in inspect.getsource(base._run_agent_loop)
    assert "session_id=i, **prompt" in inspect.getsource(base._run_prompt)
    assert "field.update(kwargs)" in inspect.getsource(base._agent_loop_postprocess)


def test_columns_that_meet_verls_own_parameters_are_refused() -> None:
    from s2l_ext.data.checks import RESERVED_COLUMNS

    base = AgentLoopWorkerTQ.__ray_metadata__.modified_class
    taken = {*parameters(base._run_agent_loop)[1:5], *parameters(base._agent_loop_postprocess)[1:3]}
    assert taken - {"agent_name"} <= RESERVED_COLUMNS
    in_loss = {"response_mask", "rollout_log_probs", "advantages", "old_log_probs"}  # what source_sums reads
    read = {"extra_fields", "rm_scores", "metrics", SOURCE_FIELD, PREFIX_FIELD, *in_loss}
    assert "session_id" in RESERVED_COLUMNS and read <= RESERVED_COLUMNS | {"advantages", "old_log_probs"}


def test_manager_takes_our_worker_class() -> None:
    assert "self.agent_loop_workers_class = AgentLoopWorkerTQ" in inspect.getsource(AgentLoopManagerTQ.__init__)
    assert "agent_loop_manager_class" in inspect.getsource(main_ppo)


def test_launcher_hands_over_to_run_ppo() -> None:
    assert parameters(main_ppo.run_ppo)[:2] == ["config", "task_runner_class"] and main_ppo.TaskRunnerV1


def test_seeded_agent_loop_is_registered_and_matches_its_base() -> None:
    assert agent_loop_module._agent_loop_registry["s2l_seeded"]["_target_"].endswith(
        "seeded_agent_loop.SeededAgentLoop"
    )
    assert parameters(inspect.unwrap(SingleTurnAgentLoop.run)) == ["self", "sampling_params", "priority", "kwargs"]
    assert "SamplingParams(max_tokens=max_tokens, **sampling_params)" in inspect.getsource(vLLMHttpServer.generate)


def test_second_server_group_can_be_named_apart_and_carried() -> None:
    assert "start_rank" in parameters(LLMServerManager.__init__)
    assert parameters(LLMServerManager.get_client) == ["self", "client_cls", "kwargs"]
    assert {"rollout_replicas", "global_load_balancer"} <= {
        name
        for name in ("rollout_replicas", "global_load_balancer")
        if f"self.{name}" in inspect.getsource(LLMServerManager)
    }


def test_vllm_engine_can_be_shut_down_from_its_actor() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM

    assert "self.engine = engine_client" in inspect.getsource(vLLMHttpServer.run_server)
    assert callable(AsyncLLM.shutdown)


def test_actor_worker_builds_its_loss_as_a_partial_with_its_config() -> None:
    assert "self.loss_fn = partial(ppo_loss, config=actor_config)" in inspect.getsource(
        ActorRolloutRefWorker.init_model
    )
    call = "loss_function(\n                    model_output=model_output, data=micro_batch, dp_group="
    assert call in inspect.getsource(transformer_impl)


def test_a_resumed_worker_deletes_what_earlier_starts_saved(tmp_path, monkeypatch) -> None:
    """With verl's own manager and ``max_ckpt_to_keep=2``: steps 2 and 4 were there, 4 is resumed, 6 and 8 are saved."""
    for step in (2, 4):
        (tmp_path / f"global_step_{step}" / "actor").mkdir(parents=True)
    manager = object.__new__(FSDPCheckpointManager)
    manager.previous_saved_paths = []

    def save(self, local_path, hdfs_path=None, global_step=0, max_ckpt_to_keep=None) -> None:
        manager.ensure_checkpoint_capacity(max_ckpt_to_keep)
        Path(local_path).mkdir(parents=True)
        manager.register_checkpoint(local_path, max_ckpt_to_keep)

    monkeypatch.setattr(ActorRolloutRefWorker, "load_checkpoint", lambda *words: None)
    monkeypatch.setattr(ActorRolloutRefWorker, "save_checkpoint", save)
    worker = object.__new__(S2LActorWorker)
    worker.actor = SimpleNamespace(engine=SimpleNamespace(checkpoint_manager=manager))
    worker.load_checkpoint(str(tmp_path / "global_step_4" / "actor"), None, False)
    for step, left in ((6, [4, 6]), (8, [6, 8])):
        worker.save_checkpoint(str(tmp_path / f"global_step_{step}" / "actor"), None, step, max_ckpt_to_keep=2)
        assert sorted(int(p.parent.name[12:]) for p in tmp_path.glob("*/actor")) == left


@pytest.mark.parametrize("name", ["init_model", "load_checkpoint", "save_checkpoint"])
def test_what_the_actor_worker_overrides_is_sent_to_the_workers_as_in_verl(name: str) -> None:
    ours, theirs = getattr(S2LActorWorker, name), getattr(ActorRolloutRefWorker, name)
    assert getattr(ours, MAGIC_ATTR) == getattr(theirs, MAGIC_ATTR)


def test_verl_counts_checkpoints_of_one_start_only() -> None:
    """When this fails, verl remembers them itself: drop the two overrides."""
    source = inspect.getsource(FSDPCheckpointManager.load_checkpoint) + inspect.getsource(
        BaseCheckpointManager.__init__
    )
    assert "previous_saved_paths = []" in source and source.count("previous_saved_paths") == 1


def test_kl_term_reads_its_coefficient_from_the_configuration_and_reports_it() -> None:
    source = inspect.getsource(losses.ppo_loss)
    assert "policy_loss += kl_loss * config.kl_loss_coef" in source
    assert 'metrics["kl_coef"] = config.kl_loss_coef' in source


def test_extra_info_set_before_the_update_travels_with_it() -> None:
    source = inspect.getsource(PPOTrainer._update_actor)
    assert "batch.extra_info.update(extra_info)" in source and "update_actor(batch)" in source


def test_data_loader_is_built_as_we_rebuild_it() -> None:
    source = inspect.getsource(PPOTrainer._init_dataloader)
    assert "batch_size=gen_batch_size," in source and "drop_last=True" in source and "collate_fn=collate_fn" in source
    assert (
        'gen_batch_size = self.config.data.get("gen_batch_size", None) or self.config.data.train_batch_size' in source
    )
    assert "self.steps_per_epoch = len(self.train_dataset) // self.config.data.train_batch_size" in source
    assert "self.train_dataloader_it = iter(self.train_dataloader)" in inspect.getsource(
        PPOTrainer._fetch_one_gen_batch
    )


def test_a_bare_reward_is_still_recorded_as_accuracy() -> None:
    """Why such a reward is refused where accuracy counts."""
    from verl.experimental.reward_loop.reward_manager import naive

    assert 'reward_extra_info["acc"] = score' in inspect.getsource(naive)


def test_policy_loss_multiplies_in_the_row_weights_we_write() -> None:
    assert 'fields.append("rollout_is_weights")' in inspect.getsource(losses.ppo_loss)
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla

    assert "pg_losses = pg_losses * rollout_is_weights" in inspect.getsource(compute_policy_loss_vanilla)


def test_file_logger_still_truncates_on_resume() -> None:
    assert 'open(self.filepath, "wb"' in inspect.getsource(tracking.FileLogger)


def test_exported_models_are_still_called_bfloat16() -> None:
    """Why ``s2l pipeline`` writes the dtype of the model that a stage started from into its export."""
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    source = inspect.getsource(FSDPCheckpointManager.save_checkpoint)
    assert "model_config, torch_dtype=torch.bfloat16" in source and '"huggingface"' in source


def test_gradients_are_clipped_by_the_optimizers_key() -> None:
    """``actor.grad_clip``, of which rules warn, is read by no engine."""
    assert "self.optimizer_config.clip_grad" in inspect.getsource(transformer_impl.FSDPEngine.optimizer_step)
    assert "grad_clip" not in inspect.getsource(transformer_impl)
