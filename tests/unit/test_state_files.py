"""Controller state and metrics file: atomic, exact across a restart, refused when they belong to another run."""

import json

import pytest
from omegaconf import OmegaConf

from s2l_ext.errors import ConfigError, StateMismatch
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training import controller_state as state
from s2l_ext.training.needed import TRACKER_FILE
from s2l_ext.training.run_log import RunLog, StepFile


def config(folder, resume_mode="auto", n=16):
    return OmegaConf.create(
        {
            "trainer": {"default_local_dir": str(folder), "resume_mode": resume_mode, "resume_from_path": None},
            "actor_rollout_ref": {"rollout": {"n": n}},
            "data": {"train_batch_size": 1024, "train_files": ["mount/a.parquet", "mount/b.parquet"]},
        }
    )


def explorer(mix_steps=8):
    return parse_s2l({"explorer": {"model_path": "models/small", "mix_steps": mix_steps}})


SETTINGS = state.fingerprint(explorer(), config("."))


def test_fingerprint_holds_what_the_schedule_and_the_draws_depend_on() -> None:
    assert SETTINGS == {
        "explorer.model": "small",
        "explorer.schedule": "linear",
        "explorer.mix_steps": 8,
        "explorer.temperature": 0.7,
        "explorer.top_p": 0.95,
        "explorer.top_k": -1,
        "explorer.baseline": "union",
        "explorer.correction": "none",
        "explorer.is_cap": 2.0,
        "group_size": 16,
        "prompts_per_step": 1024,
        "train_files": ["a.parquet", "b.parquet"],
        "data.sha256": ["mount/a.parquet", "mount/b.parquet"],  # what is not here is known by its address
        "data.train_max_samples": None,
        "data.filter_overlong_prompts": None,
        "data.max_prompt_length": None,
        "data.prompt_key": None,
        "data.shuffle": None,
        "data.seed": None,
        "data.custom_cls": None,
        "data.apply_chat_template_kwargs": None,
    }


def test_fingerprint_has_the_defaults_of_other_variants_so_that_older_checkpoints_resume() -> None:
    found = state.fingerprint(parse_s2l({"kl": {"type": "constant"}}), config("."))
    assert {key: value for key, value in found.items() if key.startswith("kl.")} == {
        "kl.type": "constant",
        "kl.beta": 0.02,
        "kl.rho": "tanh",
        "kl.rho_low": 0.5,
        "kl.rho_high": 1.0,
        "kl.rho_exponent": 2.0,
        "kl.target": None,
        "kl.horizon": 10_000,
        "kl.integral": 0.0,
    }


def checkpoint(folder, step=5, settings=SETTINGS):
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    state.save_state(folder / f"global_step_{step}", settings, {"kl": {"beta": 0.01}})
    return folder / f"global_step_{step}" / state.FILE_NAME


def test_state_comes_back_as_it_was_written(tmp_path) -> None:
    checkpoint(tmp_path)
    assert state.resume_state(explorer(), config(tmp_path)) == {"kl": {"beta": 0.01}}
    assert [path.name for path in (tmp_path / "global_step_5").iterdir()] == [state.FILE_NAME]


def test_fresh_run_has_no_state(tmp_path) -> None:
    assert state.resume_state(explorer(), config(tmp_path)) == {}


def test_disabled_resume_ignores_the_checkpoint(tmp_path) -> None:
    checkpoint(tmp_path, settings={**SETTINGS, "explorer.mix_steps": 3})
    assert state.resume_state(explorer(), config(tmp_path, "disable")) == {}


def test_another_schedule_is_refused_with_both_values(tmp_path) -> None:
    checkpoint(tmp_path)
    with pytest.raises(StateMismatch, match=r"explorer\.mix_steps: checkpoint 8, this run 4"):
        state.resume_state(explorer(mix_steps=4), config(tmp_path))


def test_another_group_size_is_refused_with_both_values(tmp_path) -> None:
    checkpoint(tmp_path)
    with pytest.raises(StateMismatch, match="group_size: checkpoint 16, this run 8"):
        state.resume_state(explorer(), config(tmp_path, n=8))


@pytest.mark.parametrize(("key", "value"), [("seed", 7), ("train_max_samples", 100), ("shuffle", False)])
def test_another_choice_of_rows_is_refused_without_a_curriculum_too(tmp_path, key: str, value: object) -> None:
    checkpoint(tmp_path)
    other = config(tmp_path)
    other.data[key] = value
    with pytest.raises(StateMismatch, match=f"  data.{key}: checkpoint None, this run {value}\n"):
        state.resume_state(explorer(), other)


def test_other_rows_under_the_same_name_are_refused_and_another_mount_is_not(tmp_path) -> None:
    runs = [config(tmp_path) for _ in range(3)]
    for run, rows in zip(runs, (b"openr1", b"openr1", b"s1k"), strict=True):
        (folder := tmp_path / str(len(list(tmp_path.iterdir())))).mkdir()
        (folder / "train.parquet").write_bytes(rows)
        run.data.train_files = str(folder / "train.parquet")
    checkpoint(tmp_path, settings=state.fingerprint(explorer(), runs[0]))
    assert state.resume_state(explorer(), runs[1]) == {"kl": {"beta": 0.01}}
    with pytest.raises(StateMismatch, match=r"data\.sha256: checkpoint \['.*'\], this run \['"):
        state.resume_state(explorer(), runs[2])


def test_a_checkpoint_without_the_content_of_its_data_is_refused_by_that_key(tmp_path) -> None:
    checkpoint(tmp_path, settings={key: value for key, value in SETTINGS.items() if key != "data.sha256"})
    with pytest.raises(StateMismatch, match=r"data\.sha256: checkpoint None, this run \['mount/a.parquet'"):
        state.resume_state(explorer(), config(tmp_path))


def test_teachers_rollouts_are_compared_by_content(tmp_path) -> None:
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text)
    same, moved, other = (
        state.fingerprint(parse_s2l({"guidance": {"teacher_rollouts": str(tmp_path / name)}}), config(tmp_path))
        for name in "abc"
    )
    assert same == moved
    assert [key for key in same if same[key] != other[key]] == ["guidance.teacher_rollouts.sha256"]


def test_feature_switched_off_on_resume_is_refused(tmp_path) -> None:
    checkpoint(tmp_path)
    with pytest.raises(StateMismatch, match=r"explorer\.mix_steps: checkpoint 8, this run None"):
        state.resume_state(parse_s2l(None), config(tmp_path))


def test_feature_switched_on_on_resume_is_refused(tmp_path) -> None:
    checkpoint(tmp_path).unlink()
    with pytest.raises(StateMismatch, match="is missing"):
        state.resume_state(explorer(), config(tmp_path))


def test_everything_off_before_and_after_is_fine(tmp_path) -> None:
    checkpoint(tmp_path).unlink()
    assert state.resume_state(parse_s2l(None), config(tmp_path)) == {}


@pytest.mark.parametrize("text", ['{"schema_version": 1, "finger', "", "[]", "\x00"])
def test_corrupt_state_is_named(tmp_path, text: str) -> None:
    checkpoint(tmp_path).write_text(text)
    with pytest.raises(StateMismatch, match=r"s2l_state\.json"):
        state.resume_state(explorer(), config(tmp_path))


@pytest.mark.parametrize(
    ("written", "read", "says"),
    [
        ('"beta": 0.01', '"beta": 0.09', "its controllers are not what was written"),
        ('"controllers": {', '"controllers": {"other": {}, ', "its controllers are not what was written"),
        ('"beta": 0.01', '"beta": NaN', "a controller's state holds NaN, from which no run can go on"),
    ],
)
def test_a_state_whose_numbers_changed_is_refused(tmp_path, written: str, read: str, says: str) -> None:
    path = checkpoint(tmp_path)
    path.write_text(path.read_text().replace(written, read))
    with pytest.raises(StateMismatch, match=rf"s2l_state\.json.*{says}"):
        state.resume_state(explorer(), config(tmp_path))


def test_a_state_with_nan_is_not_written(tmp_path) -> None:
    with pytest.raises(StateMismatch, match="holds NaN"):
        state.save_state(tmp_path / "nan", SETTINGS, {"kl": {"beta": float("nan")}})
    state.save_state(tmp_path, SETTINGS, {"kl": {"limit": float("inf"), "by_step": {2: 0.5, 10: 0.25}}})
    assert state.load_state(tmp_path, SETTINGS) == {"kl": {"limit": float("inf"), "by_step": {"2": 0.5, "10": 0.25}}}


def test_a_checkpoint_of_an_earlier_version_has_no_digest(tmp_path) -> None:
    path = checkpoint(tmp_path)
    document = json.loads(path.read_text())
    del document["sha256"]
    path.write_text(json.dumps(document))
    assert state.resume_state(explorer(), config(tmp_path)) == {"kl": {"beta": 0.01}}


def test_newer_schema_is_refused(tmp_path) -> None:
    path = checkpoint(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(StateMismatch, match="schema_version is 99"):
        state.resume_state(explorer(), config(tmp_path))


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file.json"
    state.write_atomically(path, "old")
    monkeypatch.setattr("s2l_ext.utils.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        state.write_atomically(path, "new")
    assert path.read_text() == "old"


def steps(folder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_run_log_keeps_checkpointed_steps_and_drops_those_that_repeat(tmp_path) -> None:
    log = RunLog(tmp_path, resumed_step=0)
    for step in (1, 2, 3, 4):
        log.append(step, {"loss": 0.5})
    RunLog(tmp_path, resumed_step=2).append(3, {"loss": 0.25})
    assert steps(tmp_path) == [1, 2, 3]
    dropped = (tmp_path / "metrics.dropped.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in dropped] == [3, 4], "an earlier step may have been resumed by hand"


def test_evaluation_alone_leaves_the_log(tmp_path) -> None:
    log = RunLog(tmp_path, resumed_step=0)
    for step in (1, 2, 3):
        log.append(step, {"loss": 0.5})
    RunLog(tmp_path, resumed_step=None).append(1, {"val": 0.9})
    assert steps(tmp_path) == [1, 2, 3, 1]


def test_a_step_killed_between_checkpoint_and_its_line_is_not_lost(tmp_path) -> None:
    log = RunLog(tmp_path, resumed_step=0)
    log.append(1, {"training/global_step": 1, "loss": 0.5})
    log.hold_metrics(2, {"loss": 0.25})
    log.append(2, {"val": 0.9})  # validation had its line already
    RunLog(tmp_path, resumed_step=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1] == {"step": 2, "data": {"training/global_step": 2, "loss": 0.25}} and len(lines) == 3


def test_a_held_line_is_used_once_and_only_for_its_step(tmp_path) -> None:
    log = RunLog(tmp_path, resumed_step=0)
    log.hold_metrics(1, {"loss": 0.25})
    log.append(1, {"training/global_step": 1, "loss": 0.5})
    log.append(2, {"training/global_step": 2, "loss": 0.5})
    for resumed in (2, 1):
        RunLog(tmp_path, resumed_step=resumed)
        assert steps(tmp_path) == list(range(1, resumed + 1))
    log.hold_metrics(3, {"loss": 0.125})
    RunLog(tmp_path, resumed_step=1)
    assert steps(tmp_path) == [1], "the checkpoint of step 3 is not the one that the run goes on from"


def test_lines_of_prompts_are_held_as_well(tmp_path) -> None:
    log = StepFile(tmp_path / "curriculum.jsonl", resumed_step=0)
    log.write(1, {"indices": [1]})
    log.hold(2, {"indices": [2]})
    StepFile(tmp_path / "curriculum.jsonl", resumed_step=2)
    lines = (tmp_path / "curriculum.jsonl").read_text().splitlines()
    assert [json.loads(line)["indices"] for line in lines] == [[1], [2]]


def test_the_first_line_is_held_before_there_is_a_file(tmp_path) -> None:
    StepFile(tmp_path / "curriculum.jsonl", resumed_step=0).hold(1, {"indices": [1]})
    StepFile(tmp_path / "curriculum.jsonl", resumed_step=1).write(2, {"indices": [2]})
    lines = (tmp_path / "curriculum.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "indices": [1]}, {"step": 2, "indices": [2]}]


def test_run_log_survives_a_torn_last_line(tmp_path) -> None:
    RunLog(tmp_path, resumed_step=0).append(1, {"loss": 0.5})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "da')
    RunLog(tmp_path, resumed_step=1).append(2, {"loss": 0.25})
    assert steps(tmp_path) == [1, 2]


def test_fresh_run_sets_an_earlier_log_aside(tmp_path) -> None:
    for value in (0.5, 0.25):
        RunLog(tmp_path, resumed_step=0).append(1, {"loss": value})
    RunLog(tmp_path, resumed_step=0)
    assert steps(tmp_path) == []
    kept = [json.loads((tmp_path / f"metrics.{number}.jsonl").read_text()) for number in (1, 2)]
    assert [line["data"]["loss"] for line in kept] == [0.5, 0.25]


def test_a_fresh_run_in_a_used_folder_goes_on_from_nothing_of_the_earlier_one(tmp_path) -> None:
    """Killed before its first checkpoint, it would resume the earlier run's, and take its line of that step."""
    RunLog(tmp_path, resumed_step=0).hold_metrics(2, {"loss": 0.5})
    StepFile(tmp_path / "curriculum.jsonl", resumed_step=0).hold(2, {"indices": [1]})
    (tmp_path / TRACKER_FILE).write_text("2")
    RunLog(tmp_path, resumed_step=0)
    StepFile(tmp_path / "curriculum.jsonl", resumed_step=0)
    kept = {"metrics.jsonl": "", "latest_checkpointed_iteration.1.txt": "2"}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == kept


def test_evaluation_alone_cuts_a_torn_last_line(tmp_path) -> None:
    RunLog(tmp_path, resumed_step=0).append(1, {"loss": 0.5})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "da')
    RunLog(tmp_path, resumed_step=None).append(1, {"val": 0.9})
    assert steps(tmp_path) == [1, 1]


def test_resume_path_without_a_path(tmp_path) -> None:
    with pytest.raises(ConfigError, match="resume_from_path"):
        state.resume_state(explorer(), config(tmp_path, "resume_path"))


def test_run_log_writes_plain_numbers(tmp_path) -> None:
    import numpy as np
    import torch

    log = RunLog(tmp_path, resumed_step=0)
    log.append(1, {"a": np.float32(0.5), "b": torch.tensor(2), "c": float("nan"), "d": "text", "e": {"x": 1}})
    assert json.loads(log.path.read_text())["data"] == {"a": 0.5, "b": 2, "c": None, "d": "text"}
