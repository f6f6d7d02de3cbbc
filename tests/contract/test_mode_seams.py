"""What the asynchronous trainer modes depend on in verl 0.9.1, and the engine that carries weights without a GPU."""

import inspect
import subprocess
import sys

import pytest
import torch
from omegaconf import open_dict
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineManager, CheckpointEngineRegistry
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.trainer.ppo.v1 import trainer_separate_async
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient, LLMServerClient

from s2l_ext.config.modes import CPU_ENGINE
from s2l_ext.errors import ConfigError
from s2l_ext.methods.explorer.serving.client import carrying
from s2l_ext.platforms.object_store_engine import ObjectStoreEngine, buckets
from s2l_ext.training.trainers_by_mode import DetachedActorWorker, DetachedDistillWorker, S2LSeparateAsyncTrainer

pytestmark = pytest.mark.contract


def source(thing) -> str:
    return inspect.getsource(thing)


# ---- verl's own trainers ------------------------------------------------------------------------------------------


def test_verls_table_of_trainers_still_takes_classes_only() -> None:
    with pytest.raises(TypeError, match="PPOTrainer subclass"):
        register_trainer("named")("package.module.Class")


@pytest.mark.slow
def test_a_module_that_our_trainers_import_can_be_the_first_import_and_verl_finds_our_trainers() -> None:
    code = (
        "import s2l_ext.training.trainer\n"
        "from verl.trainer.ppo.v1 import get_trainer_cls\n"
        "print(get_trainer_cls('s2l').__module__, get_trainer_cls('sync').__name__)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.split()[-2:] == ["s2l_ext.training.trainers_by_mode", "PPOTrainerSync"], ran.stderr


def test_verls_own_trainer_still_passes_over_our_block(composed) -> None:
    trainer = PPOTrainerSync.__new__(PPOTrainerSync)
    PPOTrainer.__init__.__wrapped__(trainer, composed("s2l_po/toy", "trainer.v1.trainer_mode=sync"))
    assert trainer.config.s2l.explorer.mix_steps == 8


@pytest.mark.parametrize(
    ("recipe", "trainer", "given", "on", "fix"),
    [
        ("s2l_po/toy", PPOTrainerSync, "sync", "explorer", "s2l"),
        ("expo/toy", PPOTrainerColocateAsync, "colocate_async", "curriculum, kl", "s2l_colocate_async"),
        ("expo/toy", PPOTrainerSync, "my_own", "curriculum, kl", "s2l"),
    ],
)
def test_a_method_that_verls_own_trainer_would_not_read_is_refused(composed, recipe, trainer, given, on, fix) -> None:
    with pytest.raises(ConfigError, match=rf"^trainer.v1.trainer_mode={given}: .* turns on {on}\. Set .*={fix}, or"):
        trainer(config=composed(recipe, f"trainer.v1.trainer_mode={given}"))


def test_verls_own_trainer_starts_with_every_method_off_and_without_the_block(composed) -> None:
    off = composed("grpo/toy", "trainer.v1.trainer_mode=sync")
    assert PPOTrainerSync(config=off).config is off
    without = composed("grpo/toy", "trainer.v1.trainer_mode=sync")
    with open_dict(without):
        del without.s2l
    assert PPOTrainerSync(config=without).config is without


# ---- plans in verl's queue ----------------------------------------------------------------------------------------


def test_columns_of_a_prompt_are_kept_in_the_queue_and_values_of_the_batch_are_not() -> None:
    assert "if not isinstance(batch.get(key), NonTensorData)" in source(PPOTrainer._submit_batch_to_rollout)


def test_prompts_sent_again_are_read_whole_and_handed_to_the_agent_loops() -> None:
    """Why they keep their plan without any code of ours."""
    text = source(PPOTrainer._reissue_inflight_prompts)
    assert "batch = tq.kv_batch_get(keys=inflight_uids, partition_id=partition_id)" in text
    assert "self.agent_loop_manager.generate_sequences(batch)" in text
    assert '"status": "pending", "global_steps": self.global_steps}' in text, "why date_prompts is needed"
    fit = source(PPOTrainer.fit)
    assert fit.index("self._reissue_inflight_prompts()") < fit.index("self.on_train_begin()")


def test_every_prompt_is_drawn_through_the_method_we_override() -> None:
    for method in (PPOTrainer._add_prompts_to_generate, PPOTrainer._add_batch_to_generate):
        assert "self._next_train_batch(" in source(method)
    assert "refill_fn=self._add_prompts_to_generate" in source(PPOTrainer._build_replay_buffer)
    assert "self._add_prompts_to_generate(missing_prompts)" in source(PPOTrainer._add_async_warmup_batches)


def test_a_prompt_leaves_the_queue_when_it_is_trained_on_or_dropped() -> None:
    assert "tq.kv_clear(partition_id=partition_id, keys=selected_prompt_uids)" in source(
        ReplayBuffer._materialize_batch
    )
    assert "keys=[*uids, *trajectory_keys]" in source(ReplayBuffer._clear_groups)
    step = source(PPOTrainer._step_once)
    order = ["self.replay_buffer.sample(", "self._balance_batch(", "self._compute_old_log_prob("]
    assert [step.index(call) for call in order] == sorted(step.index(call) for call in order)


def test_age_is_bounded_as_the_plan_says() -> None:
    assert "- prompt_global_steps_snapshot.get(uid, global_steps) + 1" in source(ReplayBufferAsync.sample)
    assert "span <= self.max_off_policy_threshold for span in selected_spans" in source(ReplayBufferAsync.sample)
    assert ">= self.max_off_policy_threshold" in source(ReplayBufferAsync._has_enough_samples)
    assert "key=lambda key: prompt_global_steps_snapshot.get(key, 0)" in source(ReplayBuffer._select_prompt_uids)


def test_asynchronous_modes_fetch_prompt_by_prompt() -> None:
    """A refill is of any number: the curriculum hands out a draw in parts."""
    text = source(PPOTrainer._init_dataloader)
    assert 'requires_exact_refill = self.trainer_mode != "sync"' in text
    assert "self.config.data.gen_batch_size = 1" in text


# ---- servers and clients ------------------------------------------------------------------------------------------


def test_only_the_learners_replicas_are_aborted_between_steps() -> None:
    assert "for r in self.replicas]" in source(CheckpointEngineManager.abort_replicas)
    assert "self.checkpoint_manager.abort_replicas()" in source(PPOTrainerColocateAsync.on_sample_end)
    assert "self.checkpoint_manager.resume_generation_replicas()" in source(PPOTrainerColocateAsync.on_step_end)


def test_any_client_of_verls_can_carry_the_explorers() -> None:
    explorer = LLMServerClient(config=None)
    for client_class in (LLMServerClient, FullyAsyncLLMServerClient):
        assert carrying(client_class(config=None), explorer).explorer is explorer
    assert "client_cls=FullyAsyncLLMServerClient" in source(PPOTrainerColocateAsync.get_llm_client)
    assert "self.standalone_server_manager.get_client" in source(PPOTrainerSeparateAsync.get_llm_client)


def test_an_aborted_request_goes_on_with_what_is_left_of_its_budget() -> None:
    """Guidance lowers ``max_tokens`` once; the rest of a session's resumptions is verl's."""
    text = source(inspect.unwrap(FullyAsyncLLMServerClient.generate))
    assert "prompt_ids=prompt_ids + final_output.token_ids" in text
    assert "sampling_params[limit_key] = original_max_tokens - len(final_output.token_ids)" in text


# ---- separate_async -----------------------------------------------------------------------------------------------


def test_our_detached_workers_can_keep_copies_and_have_our_loss() -> None:
    for worker in (DetachedActorWorker, DetachedDistillWorker):
        assert issubclass(worker, DetachActorWorker) and issubclass(worker, ActorRolloutRefWorker)
        assert worker.save_model_to_cpu is DetachActorWorker.save_model_to_cpu
        assert worker.init_model is not ActorRolloutRefWorker.init_model
    assert "ActorRolloutRefWorker.__init__(self, config, role" in source(DetachActorWorker.__init__)
    assert "ray.remote(DetachActorWorker)" in source(PPOTrainerSeparateAsync._init_resource_pool_mgr)


def test_verls_line_without_hybrid_replicas_is_still_faulty() -> None:
    """Remove ``silence_faulty_line`` when this fails."""
    assert "flush=True" in source(PPOTrainerSeparateAsync._setup)
    assert S2LSeparateAsyncTrainer._setup is not PPOTrainerSeparateAsync._setup
    with pytest.raises(TypeError, match="flush"):
        trainer_separate_async.logger.error("said", flush=True)


def test_what_verl_asserts_in_its_task_runner_is_what_we_refuse_before() -> None:
    text = source(PPOTrainerSeparateAsync.__init__)
    assert "train_batch_size == parameter_sync_step * ppo_mini_batch_size" in text
    assert 'checkpoint_engine.backend != "naive"' in text and text.count("assert ") == 5


# ---- weights without a GPU ----------------------------------------------------------------------------------------


def test_the_engine_is_registered_and_has_verls_interface() -> None:
    assert CheckpointEngineRegistry.get(CPU_ENGINE) is ObjectStoreEngine
    for name in CheckpointEngine.__abstractmethods__ - {"init_process_group"}:
        ours = list(inspect.signature(getattr(ObjectStoreEngine, name)).parameters)
        assert ours == list(inspect.signature(getattr(CheckpointEngine, name)).parameters)
    text = source(CheckpointEngineManager.update_weights)
    order = ["self.build_process_group(rollout)", "+ rollout.update_weights(", '["finalize"]']
    assert [text.index(call) for call in order] == sorted(text.index(call) for call in order)


def test_buckets_hold_whole_tensors_in_order_within_their_size() -> None:
    weights = [(f"w{size}", torch.full((size,), float(size))) for size in (2, 3, 50, 1, 1)]
    made = list(buckets(iter(weights), size=4 * 5))
    assert [[name for name, _ in bucket] for bucket in made] == [["w2", "w3"], ["w50"], ["w1", "w1"]]
    assert all(torch.equal(tensor, torch.full((int(name[1:]),), float(name[1:]))) for b in made for name, tensor in b)
    assert list(buckets(iter([]), size=1)) == []
