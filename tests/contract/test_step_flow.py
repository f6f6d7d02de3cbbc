"""What the trainer's own methods do around verl's, each checked with verl's method in the middle replaced."""

from types import SimpleNamespace

import pytest
import transfer_queue as tq
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from s2l_ext.errors import DataError
from s2l_ext.methods.curriculum.config import CurriculumConfig
from s2l_ext.methods.curriculum.controller import StepPrompts
from s2l_ext.methods.curriculum.orders import FileOrder
from s2l_ext.methods.curriculum.sampler import CurriculumSampler
from s2l_ext.methods.explorer.serving import lifecycle as explorer_life
from s2l_ext.methods.guidance import controller as guided
from s2l_ext.methods.kl.config import KLConfig
from s2l_ext.methods.kl.controller import StepKL
from s2l_ext.training import controller_state as state
from s2l_ext.training import trainer as methods
from s2l_ext.training.batch_fields import KL_BETA_FIELD
from s2l_ext.training.outcomes import Session
from s2l_ext.training.pending_prompts import PromptPlan

pytestmark = pytest.mark.contract


def rows(*keys: str) -> KVBatchMeta:
    return KVBatchMeta(partition_id="train", keys=list(keys), tags=[{} for _ in keys])


@pytest.fixture
def verls(monkeypatch):
    """``verls("_update_actor", does)``: verl's method of that name."""
    return lambda name, does: monkeypatch.setattr(PPOTrainer, name, does)


# ---- rows and plans -----------------------------------------------------------------------------------------------


def test_rows_are_put_in_order_before_verl_balances_them(trainer_of, verls) -> None:
    verls("_balance_batch", lambda self, batch, metrics, prefix, keep: (list(batch.keys), prefix, keep))
    trainer = trainer_of("s2l_po/toy")
    trainer.in_flight.add({"b": PromptPlan(1), "a": PromptPlan(1)})
    found = trainer._balance_batch(rows("a_1_0", "a_0_0", "b_0_0"), {}, "prefix", True)
    assert found == (["b_0_0", "a_0_0", "a_1_0"], "prefix", True)
    assert list(trainer.step_plans) == ["b", "a"] and len(trainer.in_flight) == 0


def test_an_asynchronous_step_takes_the_plans_of_its_own_prompts(trainer_of, verls, monkeypatch) -> None:
    """Of four prompts that were drawn: two are in the step, one still waits, one was dropped."""
    verls("_balance_batch", lambda self, batch, *_: batch)
    monkeypatch.setattr(tq, "kv_list", lambda partition: {partition: {"late": {"is_prompt": True}}})
    trainer = trainer_of("s2l_po/toy")
    trainer.mode = "colocate_async"
    trainer.in_flight.add({uid: PromptPlan(1) for uid in ("late", "x_y", "gone", "a")})
    trainer._balance_batch(rows("a_0_0", "x_y_0_0", "a_1_0"), {})
    assert list(trainer.step_plans) == ["x_y", "a"] and list(trainer.in_flight.plans) == ["late"]
    assert trainer.in_flight.evicted == 1


@pytest.mark.parametrize(("sent", "features", "kept"), [(2, True, 1), (0, True, 0), (2, False, 0)])
def test_prompts_sent_again_keep_their_age(trainer_of, verls, monkeypatch, sent: int, features: bool, kept) -> None:
    calls: list[object] = []
    monkeypatch.setattr(methods, "keep_ages", calls.append)
    verls("_reissue_inflight_prompts", lambda self, partition_id: sent)
    trainer = trainer_of("s2l_po/toy" if features else "grpo/toy")
    assert trainer._reissue_inflight_prompts() == sent
    assert calls == [trainer.in_flight] * kept


def test_plans_in_flight_are_logged_where_steps_overlap(trainer_of) -> None:
    for recipe, mode, logged in (("expo/toy", "sync", 0), ("expo/toy", "separate_async", 4), ("grpo/toy", "x", 0)):
        trainer = trainer_of(recipe)
        trainer.mode = mode
        assert len([name for name in trainer._own_metrics(rows(), 3) if "/plan/" in name]) == logged, (recipe, mode)


def test_a_curriculum_alone_learns_from_the_steps_sessions(queue, trainer_of) -> None:
    trainer = trainer_of("expo/toy", "s2l.kl=null")
    trainer.config.actor_rollout_ref.rollout.n = 1
    trainer.prompts = StepPrompts(CurriculumConfig(type="file_order"), CurriculumSampler(FileOrder(4, ema=0.5), 4, 2))
    trainer.step_plans = {"a": PromptPlan(1, index=3)}
    queue.rows = {"a_0_0": {"extra_fields": {"reward_extra_info": {"score": 0.0, "acc": 1.0}}}}
    trainer._observe(queue.batch(), {})
    assert trainer.prompts.sampler.curriculum.pass_rates.rates.tolist() == [0.5, 0.5, 0.5, 0.75]


@pytest.mark.parametrize(
    ("settings", "refused"), [([], True), (["s2l.kl.type=constant", "s2l.curriculum=null"], False)]
)
def test_an_accuracy_out_of_range_is_an_error_where_accuracies_count(queue, trainer_of, settings, refused) -> None:
    trainer = trainer_of("expo/toy", *settings)
    trainer.config.actor_rollout_ref.rollout.n = 1
    trainer.step_kl, trainer.step_plans = StepKL(trainer.s2l.kl, trainer.config), {"a": PromptPlan(1)}
    queue.rows = {"a_0_0": {"extra_fields": {"reward_extra_info": {"score": 0.0, "acc": 1.5}}}}
    if not refused:
        trainer._observe(queue.batch(), {})
        assert trainer.sessions == [Session("a", None, "learner")]
        return
    with pytest.raises(DataError, match=r"acc=1\.5"):
        trainer._observe(queue.batch(), {})


# ---- the update ---------------------------------------------------------------------------------------------------


def test_the_coefficient_goes_to_the_workers_before_the_update_and_comes_back_after(trainer_of, verls) -> None:
    def update(self, batch, metrics):
        beta = batch.extra_info[KL_BETA_FIELD]
        metrics |= {"actor/s2l_kl_beta_min": beta, "actor/s2l_kl_beta_max": beta, "actor/kl_loss": 0.5}
        return batch

    verls("_update_actor", update)
    trainer = trainer_of("expo/toy")
    trainer.step_kl = StepKL(KLConfig(type="constant", beta=0.03), trainer.config)
    trainer.sessions = [Session("a", 1.0, "learner")]
    metrics: dict[str, float] = {}
    batch = trainer._update_actor(rows("a_0_0"), metrics)
    assert metrics == {"actor/kl_loss": 0.5} and trainer.updated == (batch, metrics)
    assert trainer.step_kl.metrics()["s2l/kl/beta_reported_high"] == 0.03


SUMS = {f"actor/s2l_sum/explorer/{name}": value for name, value in {"ratio": 3, "clipped": 1, "tokens": 2}.items()}


@pytest.mark.parametrize(("correction", "fails"), [("none", False), ("truncated_is", True)])
def test_weights_are_expected_of_the_loss_where_they_were_written(trainer_of, verls, correction, fails) -> None:
    verls("_update_actor", lambda self, batch, metrics: metrics.update(SUMS) or batch)
    trainer = trainer_of("s2l_po/toy", f"s2l.explorer.correction={correction}")
    metrics: dict[str, float] = {}
    if fails:
        with pytest.raises(RuntimeError, match="did not reach the loss"):
            trainer._update_actor(rows(), metrics)
        return
    trainer._update_actor(rows(), metrics)
    assert metrics == {"s2l/source/explorer/ppo_ratio_mean": 1.5, "s2l/source/explorer/ppo_clip_fraction": 0.5}


def test_a_divergence_is_reported_by_token(trainer_of, verls) -> None:
    sums = {"actor/s2l_sum/distill/reverse_kl": 3.0, "actor/s2l_sum/distill/tokens": 4.0}
    verls("_update_actor", lambda self, batch, metrics: metrics.update(sums) or batch)
    trainer = trainer_of("s2l_po/toy")
    trainer.distills = True
    metrics: dict[str, float] = {}
    trainer._update_actor(rows(), metrics)
    assert metrics == {"s2l/distill/reverse_kl": 0.75, "s2l/distill/tokens": 4.0}


# ---- the explorer's life ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    ["s2l=null", "s2l.explorer.placement=colocated", "s2l.explorer={source: offline, store: x, mix_steps: 3}"],
    ids=["no explorer", "colocated", "stored rollouts"],
)
def test_only_live_servers_on_gpus_of_their_own_start_early(trainer_of, monkeypatch, settings: str) -> None:
    monkeypatch.setattr(state, "checkpoint_folder", lambda config: None)
    monkeypatch.setattr(explorer_life, "EarlyStart", lambda start, placed: "started")
    trainer = trainer_of("s2l_po/toy", settings)
    trainer.schedule = SimpleNamespace(slots=lambda step: 1)
    assert trainer._start_explorer_early() is None


def test_the_explorer_of_one_step_alone_starts_with_a_fresh_run(trainer_of, monkeypatch) -> None:
    monkeypatch.setattr(state, "checkpoint_folder", lambda config: None)
    monkeypatch.setattr(explorer_life, "EarlyStart", lambda start, placed: "started")
    trainer = trainer_of("s2l_po/toy")
    trainer.schedule = SimpleNamespace(slots=lambda step: int(step == 1))
    assert trainer._start_explorer_early() == "started"


def test_the_learner_is_placed_when_all_of_its_pools_are(trainer_of) -> None:
    trainer = trainer_of("s2l_po/toy")
    assert not trainer._learner_is_placed()
    for groups, placed in (([], False), ([None], False), (["g", None], False), (["g", "h"], True)):
        pools = {str(number): SimpleNamespace(pgs=one) for number, one in enumerate(groups)}
        trainer.resource_pool_manager = SimpleNamespace(resource_pool_dict=pools)
        assert trainer._learner_is_placed() == placed, groups


@pytest.mark.parametrize("placement", ["dedicated", "colocated"])
def test_servers_start_where_the_recipe_says(trainer_of, monkeypatch, placement: str) -> None:
    made = lambda kind: lambda *arguments: (kind, *arguments)  # noqa: E731
    monkeypatch.setattr(explorer_life, "ExplorerServers", made("dedicated"))
    monkeypatch.setattr(explorer_life, "ColocatedServers", made("colocated"))
    trainer = trainer_of("s2l_po/toy", f"s2l.explorer.placement={placement}")
    actor = explorer_life.ACTOR_ROLES[1]
    trainer.resource_pool_manager = SimpleNamespace(mapping={"other": 0, actor: 1}, get_resource_pool=lambda role: role)
    expected = [placement, trainer.config, trainer.explorer, trainer.explorer_faults]
    assert list(trainer._start_explorer()) == expected + [actor] * (placement == "colocated")


def test_placement_is_written_again_after_a_restart_only(trainer_of, monkeypatch) -> None:
    written: list[tuple] = []
    monkeypatch.setattr(explorer_life.placed, "record", lambda *arguments: written.append(arguments))
    trainer = trainer_of("s2l_po/toy")
    trainer._explorer_faults_of_step()
    assert written == []
    trainer.explorer_faults.restarts = 1
    for _ in range(2):
        trainer._explorer_faults_of_step()
    assert [rank for _, rank in written] == [1000]


def test_sessions_get_the_explorers_client_while_it_runs(trainer_of, verls, monkeypatch) -> None:
    verls("get_llm_client", lambda self: "verl's")
    monkeypatch.setattr(methods, "carrying", lambda client, explorer: (client, explorer))
    trainer = trainer_of("s2l_po/toy")
    assert trainer.get_llm_client() == "verl's"
    trainer.explorer_servers = SimpleNamespace(client=lambda: "the explorer's")
    assert trainer.get_llm_client() == ("verl's", "the explorer's")


# ---- what is kept -------------------------------------------------------------------------------------------------


class Log:
    """Stands where a log file stands."""

    def __init__(self) -> None:
        self.lines: list[tuple] = []

    def __getattr__(self, name: str):
        return lambda step, fields: self.lines.append((name, step, dict(fields)))


def test_a_step_is_held_with_verls_numbers_before_they_are_written(trainer_of, verls, monkeypatch) -> None:
    """Step 8 of 4 a pass is of epoch 1; the step's own timer still runs: 2 + 3 seconds."""

    def verls_metrics(self, batch, metrics, timing, step, epoch):
        metrics.update(epoch=epoch, step=step, seconds=timing["step"])

    verls("_compute_metrics", verls_metrics)
    monkeypatch.setattr(methods, "sample_rows", lambda batch, uids, *_, most: uids[:most])
    trainer = trainer_of("expo/toy", "s2l.rollout.log_groups=2")
    trainer.run_log, trainer.prompt_log, trainer.sample_log, trainer.tokenizer = Log(), Log(), Log(), None
    trainer.step_plans = {uid: PromptPlan(5) for uid in "cab"}
    trainer.prompts = SimpleNamespace(metrics=lambda: {"drawn": 7.0}, line=lambda: {"indices": [1]})
    trainer.global_steps, trainer.steps_per_epoch, trainer.timing_raw = 8, 4, {"gen": 2.0, "update": 3.0}
    trainer._hold_lines()
    assert trainer.run_log.lines == [], "no update yet"
    trainer.updated = (rows(), {"actor/loss": 1.0})
    trainer._hold_lines()
    numbers = {"actor/loss": 1.0, "drawn": 7.0, "epoch": 1, "step": 8, "seconds": 5.0}
    assert trainer.run_log.lines == [("hold_metrics", 8, numbers)]
    assert trainer.prompt_log.lines == [("hold", 8, {"indices": [1]})]
    assert trainer.sample_log.lines == [("hold", 8, {"rows": ["c", "a"]})]
    assert trainer.updated[1] == {"actor/loss": 1.0}, "verl's own numbers of the step are not touched"
    metrics: dict[str, float] = {}
    trainer._compute_metrics(rows(), metrics, {"step": 6.0}, 5, 1)
    assert trainer.run_log.lines[1] == ("append", 5, {"drawn": 7.0, "epoch": 1, "step": 5, "seconds": 6.0})
    assert trainer.prompt_log.lines[1] == ("write", 5, {"indices": [1]})
    assert trainer.sample_log.lines[1] == ("write", 5, {"rows": ["c", "a"]})


def test_state_and_lines_are_there_before_verl_makes_the_checkpoint_the_latest(trainer_of, verls, monkeypatch) -> None:
    order: list[object] = []
    verls("_save_checkpoint", lambda self: order.append("verl"))
    monkeypatch.setattr(state, "save_state", lambda folder, settings, what: order.append((folder.name, settings, what)))
    monkeypatch.setattr(methods, "note_files", lambda folder: order.append(folder.name))
    trainer = trainer_of("s2l_po/toy")
    trainer._hold_lines = lambda: order.append("lines")
    trainer.global_steps, trainer.settings = 7, {"group": 4}
    trainer._save_checkpoint()
    assert order == [("global_step_7", {"group": 4}, {}), "lines", "verl", "global_step_7"]
    order.clear()
    trainer.settings = None
    trainer._save_checkpoint()
    assert order == ["verl"]


def test_every_controller_is_saved_under_its_name(trainer_of) -> None:
    trainer = trainer_of("s2l_po/toy")
    assert trainer._controllers() == {}
    trainer.stored = SimpleNamespace(state_dict=lambda: "rows")
    trainer.step_kl = SimpleNamespace(state_dict=lambda: "beta")
    trainer.guidance = SimpleNamespace(state_dict=lambda: "length")
    trainer.prompts = SimpleNamespace(sampler=SimpleNamespace(controller_state=lambda: "rates"))
    names = {"stored_rows": "rows", "kl": "beta", "guidance": "length", "curriculum": "rates"}
    assert trainer._controllers() == names
    trainer.mode = "separate_async"
    trainer.in_flight.add({"a": PromptPlan(2)})
    assert trainer._controllers()["in_flight"]["order"] == ["a"]


def test_what_was_saved_is_loaded_again(trainer_of, verls, monkeypatch) -> None:
    loaded: list[object] = []
    verls("_init_dataloader", lambda self: None)
    part = lambda *arguments: SimpleNamespace(arguments=arguments, load_state_dict=loaded.append)  # noqa: E731
    monkeypatch.setattr(methods, "StepRollouts", part)
    monkeypatch.setattr(guided, "StepGuidance", part)
    stored = "s2l.explorer={source: offline, store: x, mix_steps: 3}"
    trainer = trainer_of("s2l_po/toy", stored, "s2l.guidance={alpha: 0.5}", "data.seed=6", "trainer.total_epochs=2")
    trainer.total_training_steps, trainer.steps_per_epoch, trainer.train_dataset = 9, 3, range(64)
    trainer.resumed = {"stored_rows": "rows", "guidance": "length"}
    trainer._init_dataloader()
    assert loaded == ["rows", "length"] and trainer.prompts is None
    group_size = trainer.config.actor_rollout_ref.rollout.n
    assert trainer.stored.arguments == (trainer.explorer, 6)
    assert trainer.guidance.arguments == (trainer.s2l.guidance, group_size, 6), "two passes of three steps"
    OmegaConf.update(trainer.config, "data.seed", None)
    trainer.resumed = {}
    trainer._init_dataloader()
    assert len(loaded) == 2 and trainer.stored.arguments == (trainer.explorer, 0)
    live = trainer_of("s2l_po/toy")
    live.resumed, live.train_dataset = {}, range(64)
    live._init_dataloader()
    assert live.stored is None and live.guidance is None


@pytest.mark.parametrize(
    ("settings", "called"),
    [
        (["s2l.kl=null", "s2l.curriculum=null", "s2l.guidance={alpha: 0.5}"], []),
        (["s2l={distill: {teacher_path: x, correct_only: false}}"], []),
        (["s2l={distill: {teacher_path: x, correct_only: true}}"], ["leave_out_wrong"]),
    ],
    ids=["guidance alone", "every row", "correct rows only"],
)
def test_nothing_but_what_is_asked_for_touches_verls_advantages(
    trainer_of, verls, monkeypatch, settings, called
) -> None:
    found: list[str] = []
    verls("_compute_advantage", lambda self, batch, metrics: batch)
    for module, name in ((methods, "write_importance_weights"), (methods.distill, "leave_out_wrong")):
        monkeypatch.setattr(module, name, lambda batch, *_, name=name: found.append(name) or (batch, {name: 1.0}))
    trainer = trainer_of("expo/toy", *settings)
    trainer._observe = lambda batch, metrics: None
    metrics: dict[str, float] = {}
    batch = rows("a_0_0")
    assert trainer._compute_advantage(batch, metrics) is batch and found == list(metrics) == called


@pytest.mark.parametrize(("in_loss", "recorded", "taken"), [(True, True, 1), (True, False, 0), (False, True, 0)])
def test_guidance_tokens_get_the_learners_log_probs_where_the_loss_reads_them(
    trainer_of, verls, monkeypatch, in_loss: bool, recorded: bool, taken: int
) -> None:
    verls("_compute_old_log_prob", lambda self, batch, metrics: batch)
    monkeypatch.setattr(methods, "take_guidance_for_the_learners", lambda batch: {"taken": 1.0})
    trainer = trainer_of("s2l_po/toy", f"s2l.guidance={{alpha: 0.5, loss_on_guidance: {in_loss}}}")
    trainer.config.actor_rollout_ref.rollout.calculate_log_probs = recorded
    metrics: dict[str, float] = {}
    trainer._compute_old_log_prob(rows("a_0_0"), metrics)
    assert metrics == {"taken": 1.0} if taken else metrics == {}
