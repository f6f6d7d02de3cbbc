"""What the trainer's own methods do around verl's, each checked with verl's method in the middle replaced."""

import inspect
from types import SimpleNamespace

import pytest
import transfer_queue as tq
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from s2l_ext.errors import DataError, StateMismatch
from s2l_ext.methods.base import Method
from s2l_ext.methods.curriculum.controller import Curriculum
from s2l_ext.methods.curriculum.orders import FileOrder
from s2l_ext.methods.curriculum.sampler import CurriculumSampler
from s2l_ext.methods.distill import advantages as distill_advantages
from s2l_ext.methods.explorer import controller as exploring
from s2l_ext.methods.explorer.serving import client as clients
from s2l_ext.methods.explorer.serving import lifecycle
from s2l_ext.methods.guidance import behaviour_log_probs
from s2l_ext.methods.guidance import controller as guided
from s2l_ext.training import controller_state, needed, trainers_by_mode
from s2l_ext.training import trainer as trainers
from s2l_ext.training.batch_fields import KL_BETA_FIELD
from s2l_ext.training.outcomes import RolloutOutcome
from s2l_ext.training.pending_prompts import PromptPlan
from s2l_ext.training.run_log import RunLog
from s2l_ext.training.step import Step, StepRows

pytestmark = pytest.mark.contract

STORE = ("s2l.explorer.source=offline", "s2l.explorer.store=x", "s2l.explorer.mix_steps=3")
OFFLINE = ("~s2l.explorer.model_path", *STORE)


def rows(*keys: str) -> KVBatchMeta:
    return KVBatchMeta(partition_id="train", keys=list(keys), tags=[{} for _ in keys])


def step_of(batch: KVBatchMeta, *sessions: RolloutOutcome) -> Step:
    """A step whose rows were read before."""
    names = list(batch.keys)
    read = StepRows(names, ["learner"] * len(names), [0] * len(names), None, [{}] * len(names))
    return Step(1, batch, {}, {}, read, list(sessions))


@pytest.fixture
def verls(monkeypatch):
    """``verls("_update_actor", does)``: verl's method of that name."""
    return lambda name, does: monkeypatch.setattr(PPOTrainer, name, does)


# ---- rows and plans -----------------------------------------------------------------------------------------------


def test_rows_are_put_in_order_before_verl_balances_them(trainer_of, verls) -> None:
    verls("_balance_batch", lambda self, batch, metrics, prefix, keep: (list(batch.keys), prefix, keep))
    trainer = trainer_of("s2l_po/toy")
    trainer.pending.add({"b": PromptPlan(1), "a": PromptPlan(1)})
    found = trainer._balance_batch(rows("a_1_0", "a_0_0", "b_0_0"), {}, "prefix", True)
    assert found == (["b_0_0", "a_0_0", "a_1_0"], "prefix", True)
    assert list(trainer.step_plans) == ["b", "a"] and len(trainer.pending) == 0


def test_an_asynchronous_step_takes_the_plans_of_its_own_prompts(trainer_of, verls, monkeypatch) -> None:
    """Of four prompts that were drawn: two are in the step, one still waits, one was dropped."""
    verls("_balance_batch", lambda self, batch, *_: batch)
    monkeypatch.setattr(tq, "kv_list", lambda partition: {partition: {"late": {"is_prompt": True}}})
    trainer = trainer_of("s2l_po/toy")
    trainer.mode = "colocate_async"
    trainer.pending.add({uid: PromptPlan(1) for uid in ("late", "x_y", "gone", "a")})
    trainer._balance_batch(rows("a_0_0", "x_y_0_0", "a_1_0"), {})
    assert list(trainer.step_plans) == ["x_y", "a"] and list(trainer.pending.plans) == ["late"]
    assert trainer.pending.dropped == 1


@pytest.mark.parametrize("sends", [True, False])
def test_prompts_sent_again_keep_their_age(trainer_of, verls, monkeypatch, sends: bool) -> None:
    """Of two plans, one prompt is in verl's queue. A worker that has it writes its tags too."""
    said: list[tuple] = []
    monkeypatch.setattr(tq, "kv_list", lambda partition: {partition: {"a": {"is_prompt": True}, "trained_0_0": {}}})
    monkeypatch.setattr(tq, "kv_batch_put", lambda keys, partition_id, tags: said.append((keys, partition_id, tags)))
    monkeypatch.setattr(tq, "kv_clear", lambda keys, partition_id: said.append(("cleared", keys)))
    verls("_reissue_inflight_prompts", lambda self, _: (sends and self.agent_loop_manager.generate_sequences("a")) or 2)
    trainer = trainer_of("s2l_po/toy")
    manager = trainer.agent_loop_manager = SimpleNamespace(generate_sequences=lambda batch: said.append((batch,)))
    trainer.mode = "colocate_async"
    trainer.pending.add({"a": PromptPlan(4), "trained": PromptPlan(3)})
    assert trainer._reissue_inflight_prompts() == 2 and trainer.agent_loop_manager is manager
    dated = (["a"], "train", [{"global_steps": 4}])
    assert said == [("cleared", ["trained_0_0"]), *([dated, ("a",)] if sends else [])]


def test_plans_in_flight_are_logged_where_steps_overlap(trainer_of) -> None:
    for recipe, mode, logged in (("expo/toy", "sync", 0), ("expo/toy", "separate_async", 4), ("grpo/toy", "x", 0)):
        trainer = trainer_of(recipe, *["s2l.curriculum=null"] * (recipe == "expo/toy"))
        trainer.mode = mode
        trainer.current = step_of(rows("a_0_0")) if trainer.methods else None
        assert len([name for name in trainer._own_metrics(3) if "/async/" in name]) == logged, (recipe, mode)


def outcome(acc: float) -> dict[str, object]:
    return {"rm_scores": [0.0], "extra_fields": {"reward_extra_info": {"score": 0.0, "acc": acc}}}


def test_a_curriculum_alone_learns_from_the_steps_sessions(queue, trainer_of, method_of) -> None:
    trainer = trainer_of("expo/toy", "s2l.kl=null", "s2l.curriculum.type=file_order")
    trainer.config.actor_rollout_ref.rollout.n = 1
    curriculum = method_of(trainer, "curriculum")
    curriculum.sampler = CurriculumSampler(FileOrder(4, ema=0.5), 4, 2)
    trainer.step_plans = {"a": PromptPlan(1, index=3)}
    queue.rows = {"a_0_0": outcome(1.0)}
    trainer._observe(queue.batch(), {})
    assert curriculum.sampler.curriculum.pass_rates.rates.tolist() == [0.5, 0.5, 0.5, 0.75]


@pytest.mark.parametrize(
    ("settings", "refused"), [([], True), (["s2l.kl.type=constant", "s2l.curriculum=null"], False)]
)
def test_an_accuracy_out_of_range_is_an_error_where_accuracies_count(queue, trainer_of, settings, refused) -> None:
    trainer = trainer_of("expo/toy", *settings)
    trainer.config.actor_rollout_ref.rollout.n = 1
    trainer.step_plans = {"a": PromptPlan(1)}
    queue.rows = {"a_0_0": outcome(1.5)}
    if not refused:
        assert trainer._observe(queue.batch(), {}).outcomes == [RolloutOutcome("a", None, "learner")]
        return
    with pytest.raises(DataError, match=r"acc=1\.5"):
        trainer._observe(queue.batch(), {})


# ---- the update ---------------------------------------------------------------------------------------------------


def test_the_coefficient_goes_to_the_workers_before_the_update_and_comes_back_after(
    trainer_of, verls, method_of
) -> None:
    def update(self, batch, metrics):
        beta = batch.extra_info[KL_BETA_FIELD]
        metrics |= {"actor/s2l_kl_beta_min": beta, "actor/s2l_kl_beta_max": beta, "actor/kl_loss": 0.5}
        return batch

    verls("_update_actor", update)
    trainer = trainer_of("expo/toy", "s2l.kl.type=constant", "s2l.kl.beta=0.03")
    kl = method_of(trainer, "kl")
    kl.start(trainer)
    trainer.current = step_of(rows("a_0_0"), RolloutOutcome("a", 1.0, "learner"))
    metrics: dict[str, float] = {}
    batch = trainer._update_actor(rows("a_0_0"), metrics)
    assert metrics == {"actor/kl_loss": 0.5} and trainer.updated == (batch, metrics)
    assert kl.metrics(trainer.current)["s2l/kl/beta_reported_high"] == 0.03


SUMS = {
    "explorer/ratio": 3.0,
    "explorer/clipped": 1.0,
    "explorer/tokens": 2.0,
    "explorer/reward": 4.0,
    "explorer/read": 1.0,
}
SUMS["rows"] = 1.0


@pytest.mark.parametrize(("correction", "fails"), [("none", False), ("truncated_is", True)])
def test_weights_are_expected_of_the_loss_where_they_were_asked_for(trainer_of, verls, correction, fails) -> None:
    """Sums of one of four rows in the mean, as two workers with two mini-batches give them."""
    sums = {f"actor/s2l_sum/{name}": value for name, value in SUMS.items()}
    verls("_update_actor", lambda self, batch, metrics: metrics.update(sums) or batch)
    trainer = trainer_of("s2l_po/toy", f"s2l.explorer.correction={correction}")
    trainer.current = step_of(rows("a_0_0", "a_1_0", "a_2_0", "a_3_0"))
    trainer.current.rows.source_B[:] = ["explorer"] * 4
    metrics: dict[str, float] = {}
    if fails:
        with pytest.raises(RuntimeError, match="weights of explorer rows did not reach the loss"):
            trainer._update_actor(trainer.current.batch, metrics)
        return
    trainer._update_actor(trainer.current.batch, metrics)
    means = {"ppo_ratio_mean": 1.5, "ppo_clip_fraction": 0.5, "reward_mean": 4.0, "response_length_mean": 2.0}
    assert metrics == {f"s2l/source/explorer/{name}": value for name, value in means.items()}


def test_a_divergence_is_reported_by_token(trainer_of, verls) -> None:
    sums = {"actor/s2l_sum/distill/reverse_kl": 3.0, "actor/s2l_sum/distill/tokens": 4.0}
    verls("_update_actor", lambda self, batch, metrics: metrics.update(sums) or batch)
    trainer = trainer_of("s2l_po/toy", "s2l.distill={teacher_path: x}")
    trainer.current = step_of(rows())
    metrics: dict[str, float] = {}
    trainer._update_actor(rows(), metrics)
    assert metrics == {"s2l/distill/reverse_kl": 0.75, "s2l/distill/tokens": 4.0}


# ---- the explorer's life ------------------------------------------------------------------------------------------


@pytest.fixture
def living(trainer_of, method_of):
    """``living(*overrides)`` -> an S2L-PO trainer and the life of its explorer, which has one slot at every step."""

    def make(*overrides: str):
        trainer = trainer_of("s2l_po/toy", *overrides)
        explorer = method_of(trainer, "explorer")
        explorer.life = lifecycle.ExplorerLifecycle(explorer.config, lambda step: 1, trainer)
        return trainer, explorer.life

    return make


@pytest.mark.parametrize(
    "settings",
    [["s2l=null"], ["s2l.explorer.placement=colocated"], OFFLINE],
    ids=["no explorer", "colocated", "stored rollouts"],
)
def test_only_live_servers_on_gpus_of_their_own_start_early(trainer_of, monkeypatch, settings: list[str]) -> None:
    monkeypatch.setattr(needed, "checkpoint_folder", lambda config: None)
    monkeypatch.setattr(lifecycle, "EarlyStart", lambda start, placed: pytest.fail("started early"))
    monkeypatch.setattr(lifecycle, "ColocatedServers", lambda *arguments: SimpleNamespace(arguments=arguments))
    trainer = trainer_of("s2l_po/toy", *settings)
    manager = SimpleNamespace(mapping={lifecycle.ACTOR_ROLES[0]: 1}, get_resource_pool=lambda role: role)
    trainer.global_steps = 0
    for method in trainer.methods:
        with method.around_setup(trainer):
            trainer.resource_pool_manager = manager
    lives = [method.life for method in trainer.methods if method.life]
    assert len(lives) == ("colocated" in settings[0]) and all(life.servers is not None for life in lives)


def test_the_explorer_of_one_step_alone_starts_with_a_fresh_run(living, monkeypatch) -> None:
    monkeypatch.setattr(needed, "checkpoint_folder", lambda config: None)
    monkeypatch.setattr(lifecycle, "EarlyStart", lambda start, placed: "started")
    _, life = living()
    life.slots = lambda step: int(step == 1)
    assert life._start_early() == "started"


def test_the_learner_is_placed_when_all_of_its_pools_are(living) -> None:
    trainer, life = living()
    assert not life._learner_is_placed()
    for groups, placed in (([], False), ([None], False), (["g", None], False), (["g", "h"], True)):
        pools = {str(number): SimpleNamespace(pgs=one) for number, one in enumerate(groups)}
        trainer.resource_pool_manager = SimpleNamespace(resource_pool_dict=pools)
        assert life._learner_is_placed() == placed, groups


@pytest.mark.parametrize("placement", ["dedicated", "colocated"])
def test_servers_start_where_the_recipe_says(living, monkeypatch, placement: str) -> None:
    made = lambda kind: lambda *arguments: (kind, *arguments)  # noqa: E731
    monkeypatch.setattr(lifecycle, "ExplorerServers", made("dedicated"))
    monkeypatch.setattr(lifecycle, "ColocatedServers", made("colocated"))
    trainer, life = living(f"s2l.explorer.placement={placement}")
    actor = lifecycle.ACTOR_ROLES[1]
    trainer.resource_pool_manager = SimpleNamespace(mapping={"other": 0, actor: 1}, get_resource_pool=lambda role: role)
    expected = [placement, trainer.config, trainer.s2l.explorer, life.faults]
    assert list(life._start()) == expected + [actor] * (placement == "colocated")


def test_placement_is_written_again_after_a_restart_only(living, monkeypatch) -> None:
    written: list[tuple] = []
    monkeypatch.setattr(lifecycle.label_selectors, "record", lambda *arguments: written.append(arguments))
    _, life = living()
    life.step_metrics()
    assert written == []
    life.faults.restarts = 1
    for _ in range(2):
        life.step_metrics()
    assert len(written) == 1


def test_sessions_get_the_explorers_client_while_it_runs(living, verls, monkeypatch) -> None:
    verls("get_llm_client", lambda self: "verl's")
    monkeypatch.setattr(clients, "carrying", lambda client, explorer: (client, explorer))
    trainer, life = living()
    assert trainer.get_llm_client() == "verl's"
    life.servers = SimpleNamespace(client=lambda: "the explorer's")
    assert trainer.get_llm_client() == ("verl's", "the explorer's")


# ---- what is kept -------------------------------------------------------------------------------------------------


class Log:
    """Stands where a log file stands."""

    def __init__(self) -> None:
        self.lines: list[tuple] = []

    def __getattr__(self, name: str):
        return lambda step, fields: self.lines.append((name, step, dict(fields)))


class Numbered(Method):
    """A method that says one number and keeps a line."""

    def metrics(self, step: Step) -> dict[str, float]:
        return {"drawn": 7.0}

    def line(self) -> dict[str, object]:
        return {"indices": [1]}


def test_a_step_is_held_with_verls_numbers_before_they_are_written(trainer_of, verls, monkeypatch) -> None:
    """Step 8 of 4 a pass is of epoch 1; the step's own timer still runs: 2 + 3 seconds."""

    def verls_metrics(self, batch, metrics, timing, step, epoch):
        metrics.update(epoch=epoch, step=step, seconds=timing["step"])

    verls("_compute_metrics", verls_metrics)
    monkeypatch.setattr(trainers, "sample_rows", lambda batch, uids, *_, most: uids[:most])
    trainer = trainer_of("grpo/toy", "s2l.rollout.log_groups=2")
    numbered, log = Numbered(None, trainer.s2l, trainer.config), Log()
    trainer.methods, trainer.method_logs = [numbered], [(numbered, log)]
    trainer.run_log, trainer.sample_log, trainer.tokenizer = Log(), Log(), None
    trainer.step_plans = {uid: PromptPlan(5) for uid in "cab"}
    trainer.current = step_of(rows("a_0_0"))
    trainer.global_steps, trainer.steps_per_epoch, trainer.timing_raw = 8, 4, {"gen": 2.0, "update": 3.0}
    trainer._hold_lines()
    assert trainer.run_log.lines == [], "no update yet"
    trainer.updated = (rows(), {"actor/loss": 1.0})
    trainer._hold_lines()
    numbers = {"actor/loss": 1.0, "drawn": 7.0, "epoch": 1, "step": 8, "seconds": 5.0}
    assert trainer.run_log.lines == [("hold_metrics", 8, numbers)]
    assert log.lines == [("hold", 8, {"indices": [1]})]
    assert trainer.sample_log.lines == [("hold", 8, {"rows": ["c", "a"]})]
    assert trainer.updated[1] == {"actor/loss": 1.0}, "verl's own numbers of the step are not touched"
    metrics: dict[str, float] = {}
    trainer._compute_metrics(rows(), metrics, {"step": 6.0}, 5, 1)
    assert trainer.run_log.lines[1] == ("append", 5, {"drawn": 7.0, "epoch": 1, "step": 5, "seconds": 6.0})
    assert log.lines[1] == ("write", 5, {"indices": [1]})
    assert trainer.sample_log.lines[1] == ("write", 5, {"rows": ["c", "a"]})


def test_state_and_lines_are_there_before_verl_makes_the_checkpoint_the_latest(trainer_of, verls, monkeypatch) -> None:
    order: list[object] = []
    verls("_save_checkpoint", lambda self: order.append("verl"))
    saved = lambda folder, settings, what: order.append((folder.name, settings, what))  # noqa: E731
    monkeypatch.setattr(controller_state, "save_state", saved)
    monkeypatch.setattr(trainers, "note_files", lambda folder: order.append(folder.name))
    trainer = trainer_of("s2l_po/toy")
    trainer._hold_lines = lambda: order.append("lines")
    trainer.global_steps, trainer.settings = 7, {"group": 4}
    trainer._save_checkpoint()
    assert order == [("global_step_7", {"group": 4}, {}), "lines", "verl", "global_step_7"]
    order.clear()
    trainer.settings = None
    trainer._save_checkpoint()
    assert order == ["lines", "verl"], "the baseline loses no line either"


ALL_ON = (
    *OFFLINE,
    "s2l.guidance={alpha: 0.5}",
    "s2l.curriculum={type: file_order}",
    "s2l.kl={type: constant}",
)


def test_every_controller_is_saved_under_its_name(trainer_of, method_of) -> None:
    trainer = trainer_of("s2l_po/toy")
    assert trainer._controllers() == {}
    trainer = trainer_of("s2l_po/toy", *ALL_ON)
    explorer, kl, guidance = (method_of(trainer, block) for block in ("explorer", "kl", "guidance"))
    said = {name: {name: 1} for name in ("rows", "beta", "length", "rates")}
    explorer.stored = SimpleNamespace(state_dict=lambda: said["rows"])
    kl.controller = SimpleNamespace(state_dict=lambda: said["beta"])
    guidance.state_dict = lambda: said["length"]
    method_of(trainer, "curriculum").sampler = SimpleNamespace(controller_state=lambda: said["rates"])
    names = {"stored_rows": "rows", "kl": "beta", "guidance": "length", "curriculum": "rates"}
    assert trainer._controllers() == {block: said[name] for block, name in names.items()}
    trainer.mode = "separate_async"
    trainer.pending.add({"a": PromptPlan(2)})
    assert trainer._controllers()["in_flight"]["order"] == ["a"]


def test_verls_adaptive_coefficient_of_the_reward_goes_on(composed, monkeypatch) -> None:
    kl = ("s2l.kl=null", "algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.kl_coef=0.5")
    saved: dict[str, dict] = {}
    monkeypatch.setattr(trainers, "check_before_run", lambda *_, **__: ([], saved))
    monkeypatch.setattr(trainers, "check_reward", lambda *_: [])
    monkeypatch.setattr(Curriculum, "state_dict", lambda self: None)
    for kind, found, kept in (("adaptive", 0.125, {"value": 0.125}), ("fixed", 0.5, None)):
        saved |= {"kl_in_reward": {"value": 0.125}}
        trainer = trainers_by_mode.S2LTrainer(composed("expo/toy", *kl, f"algorithm.kl_ctrl.type={kind}"))
        assert trainer.kl_ctrl_in_reward.value == found and trainer._controllers().get("kl_in_reward") == kept


def test_a_method_whose_state_is_gone_does_not_start_afresh(trainer_of, verls, tmp_path) -> None:
    verls("_init_dataloader", lambda self: None)
    kl = ("s2l.kl={type: adaptive_target, target: 0.1}", "s2l.curriculum=null")
    trainer = trainer_of("expo/toy", *kl, f"trainer.default_local_dir={tmp_path}")
    trainer.total_training_steps, trainer.steps_per_epoch, trainer.train_dataset = 9, 9, range(64)
    trainer._init_dataloader()
    (tmp_path / needed.TRACKER_FILE).write_text("4")
    with pytest.raises(StateMismatch, match=r"global_step_4/s2l_state.json has no state of kl, which would start"):
        trainer._init_dataloader()
    trainer.resumed = {"kl": trainer.methods[0].state_dict()}
    trainer._init_dataloader()


@pytest.mark.parametrize(("steps", "last"), [(100, 16), (12, 12)])
def test_a_run_that_its_epochs_end_knows_its_last_step(trainer_of, verls, steps: int, last: int) -> None:
    """verl saves and validates at the last step, which it tells by one number alone."""
    assert "is_last_step = self.global_steps >= self.total_training_steps\n" in inspect.getsource(PPOTrainer.fit)
    given = {"total_training_steps": steps, "steps_per_epoch": 8, "train_dataset": range(64)}
    verls("_init_dataloader", lambda self: vars(self).update(given))
    trainer = trainer_of("grpo/toy", "trainer.total_epochs=2")
    trainer._init_dataloader()
    assert trainer.total_training_steps == last


@pytest.mark.parametrize(
    ("step", "lines", "validates"),
    [
        (0, [], False),
        (4, [(4, {"training/global_step": 4}), (2, {"val-core/toy/acc/mean@1": 0.5})], True),
        (4, [(4, {"val-core/toy/acc/mean@1": 0.5})], False),
        (6, [], False),
        (10, [], True),
    ],
)
def test_a_validation_that_a_kill_took_is_made_up_for(trainer_of, verls, tmp_path, step, lines, validates) -> None:
    """Of a run of ten steps that validates every fourth and the last."""
    asked: list[bool] = []
    verls("fit", lambda self, manager: asked.append(self.config.trainer.val_before_train))
    trainer = trainer_of("grpo/toy", "trainer.val_before_train=false", "trainer.test_freq=4")
    trainer.global_steps, trainer.total_training_steps, trainer.run_log = step, 10, RunLog(tmp_path, 0)
    for at, data in lines:
        trainer.run_log.append(at, data)
    trainer.fit(None)
    assert asked == [validates]


def test_what_was_saved_is_loaded_again(trainer_of, verls, monkeypatch, method_of) -> None:
    loaded: list[object] = []
    verls("_init_dataloader", lambda self: None)
    part = lambda *arguments: SimpleNamespace(  # noqa: E731
        arguments=arguments, load_state_dict=loaded.append
    )
    monkeypatch.setattr(exploring, "StoredRollouts", part)
    monkeypatch.setattr(exploring, "RolloutStore", lambda folder, verify: SimpleNamespace(counts=lambda: folder))
    monkeypatch.setattr(guided, "build_length", part)
    monkeypatch.setattr(guided.Guidance, "load_state_dict", lambda self, state: loaded.append(state))
    trainer = trainer_of("s2l_po/toy", *OFFLINE, ALL_ON[len(OFFLINE)], "data.seed=6", "trainer.total_epochs=2")
    trainer.total_training_steps, trainer.steps_per_epoch, trainer.train_dataset = 9, 3, range(64)
    trainer.resumed = {"stored_rows": "rows", "guidance": "length"}
    trainer._init_dataloader()
    assert loaded == ["rows", "length"]
    explorer, guidance = method_of(trainer, "explorer"), method_of(trainer, "guidance")
    assert explorer.stored.arguments == (trainer.s2l.explorer.store, "error", 6)
    assert guidance.rule.arguments == (trainer.s2l.guidance.length, 6), "two passes of three steps"
    assert guidance.group_size == trainer.config.actor_rollout_ref.rollout.n
    OmegaConf.update(trainer.config, "data.seed", None)
    trainer.resumed = {}
    trainer._init_dataloader()
    assert len(loaded) == 2 and explorer.stored.arguments == (trainer.s2l.explorer.store, "error", 0)
    live = trainer_of("s2l_po/toy")
    live.total_training_steps, live.steps_per_epoch, live.train_dataset = 9, 3, range(64)
    live._init_dataloader()
    (explorer,) = live.methods
    assert explorer.stored is None


@pytest.mark.parametrize(
    ("settings", "called"),
    [
        (["s2l.kl=null", "s2l.curriculum=null", "s2l.guidance={alpha: 0.5}"], []),
        (["s2l={distill: {teacher_path: x, teacher_placement: server, correct_only: false}}"], []),
        (["s2l={distill: {teacher_path: x, teacher_placement: server, correct_only: true}}"], ["leave_out_wrong"]),
    ],
    ids=["guidance alone", "every row", "correct rows only"],
)
def test_nothing_but_what_is_asked_for_touches_verls_advantages(
    trainer_of, verls, monkeypatch, settings, called
) -> None:
    found: list[str] = []
    verls("_compute_advantage", lambda self, batch, metrics: batch)
    leave_out = lambda step: found.append("leave_out_wrong") or {"leave_out_wrong": 1.0}  # noqa: E731
    monkeypatch.setattr(distill_advantages, "leave_out_wrong", leave_out)
    trainer = trainer_of("expo/toy", *settings)
    batch = rows("a_0_0")
    step = step_of(batch)
    trainer._observe = lambda batch, metrics: step
    assert trainer._compute_advantage(batch, step.metrics) is batch and found == list(step.metrics) == called


@pytest.mark.parametrize(
    ("in_loss", "recorded", "distill", "taken"),
    [(True, True, None, 1), (True, False, None, 0), (False, True, None, 0), (True, True, "{teacher_path: x}", 0)],
)
def test_guidance_tokens_get_the_learners_log_probs_where_the_loss_reads_them_before_verls_advantages(
    queue, trainer_of, verls, monkeypatch, in_loss: bool, recorded: bool, distill: str | None, taken: int, method_of
) -> None:
    """A divergence as the loss reads no old log-probabilities, so that none were computed."""
    order: list[str] = []
    verls("_compute_advantage", lambda self, batch, metrics: order.append("verl") or batch)
    monkeypatch.setattr(distill_advantages, "zero_advantages", lambda batch: order.append("zero") or batch)
    take = lambda step: order.append("taken") or {"taken": 1.0}  # noqa: E731
    monkeypatch.setattr(behaviour_log_probs, "take_guidance_for_the_learners", take)
    guidance = f"{{alpha: 0.5, loss_on_guidance: {in_loss}}}"
    trainer = trainer_of(
        "g2rpo_a/toy",
        *(f"s2l.{block}={value}" for block, value in (("guidance", guidance), ("distill", distill)) if value),
    )
    trainer.config.actor_rollout_ref.rollout.calculate_log_probs = recorded
    trainer.config.actor_rollout_ref.rollout.n = 1
    trainer.total_training_steps, trainer.steps_per_epoch = 9, 3
    method_of(trainer, "guidance").start(trainer)
    trainer.step_plans = {"a": PromptPlan(1)}
    queue.rows = {"a_0_0": outcome(1.0) | {"s2l_source": "learner", "s2l_prefix_len": 0}}
    metrics: dict[str, float] = {}
    trainer._compute_advantage(queue.batch(), metrics)
    assert order == ["taken"] * taken + ["zero" if distill else "verl"] and metrics.get("taken", 0) == taken
