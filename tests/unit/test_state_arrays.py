"""Arrays in a checkpoint, and a curriculum that belongs to other data."""

import numpy as np
import pytest
from omegaconf import OmegaConf

from s2l_ext.errors import StateMismatch
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training import controller_state as state
from s2l_ext.training.needed import TRACKER_FILE

RATES = np.array([0.1, 0.5, 1.0])


@pytest.fixture
def run(tmp_path):
    """A checkpoint at step 3 of a run with curriculum and target KL, and its configuration."""
    (tmp_path / "data.parquet").write_bytes(b"rows")
    config = OmegaConf.create(
        {
            "trainer": {"default_local_dir": str(tmp_path), "resume_mode": "auto", "resume_from_path": None},
            "actor_rollout_ref": {"rollout": {"n": 8}},
            "data": {"train_batch_size": 16, "train_files": str(tmp_path / "data.parquet"), "seed": 1},
        }
    )
    s2l = parse_s2l({"kl": {"type": "constant"}, "curriculum": {}})
    save(tmp_path, s2l, config)
    return tmp_path, s2l, config


def save(folder, s2l, config) -> None:
    controllers = {"kl": {"beta": 0.1}, "curriculum": {"rng": {"state": 2**100}, "curriculum": {"pass_rates": RATES}}}
    state.save_state(folder / "global_step_3", state.fingerprint(s2l, config), controllers)
    (folder / TRACKER_FILE).write_text("3")


def test_arrays_and_large_integers_come_back_exactly(run) -> None:
    _, s2l, config = run
    found = state.resume_state(s2l, config)
    assert found["curriculum"]["rng"] == {"state": 2**100}
    np.testing.assert_array_equal(found["curriculum"]["curriculum"]["pass_rates"], RATES)
    assert found["kl"] == {"beta": 0.1}


def test_nothing_partial_is_left_behind(run) -> None:
    folder, _, _ = run
    assert sorted(path.name for path in (folder / "global_step_3").iterdir()) == [state.ARRAYS_NAME, state.FILE_NAME]


def test_damaged_or_missing_arrays_are_refused(run) -> None:
    folder, s2l, config = run
    arrays = folder / "global_step_3" / state.ARRAYS_NAME
    arrays.write_bytes(arrays.read_bytes()[:-1])
    with pytest.raises(StateMismatch, match="s2l_arrays.npz is missing or damaged"):
        state.resume_state(s2l, config)
    arrays.unlink()
    with pytest.raises(StateMismatch, match="s2l_arrays.npz is missing or damaged"):
        state.resume_state(s2l, config)


def test_edited_data_is_refused_with_both_fingerprints_and_the_flag(run) -> None:
    folder, s2l, config = run
    (folder / "data.parquet").write_bytes(b"other rows")
    with pytest.raises(StateMismatch) as refusal:
        state.resume_state(s2l, config)
    message = str(refusal.value)
    assert "data.sha256: checkpoint ['" in message and "this run ['" in message
    assert "s2l.curriculum.on_mismatch=reset" in message


def test_another_order_of_files_is_refused(run) -> None:
    folder, s2l, config = run
    (folder / "more.parquet").write_bytes(b"more")
    config.data.train_files = [str(folder / "more.parquet"), str(folder / "data.parquet")]
    with pytest.raises(StateMismatch, match="data.sha256"):
        state.resume_state(s2l, config)


@pytest.mark.parametrize(("key", "value"), [("seed", 2), ("train_max_samples", 5), ("shuffle", False)])
def test_another_choice_of_rows_is_refused(run, key: str, value: object) -> None:
    _, s2l, config = run
    config.data[key] = value
    with pytest.raises(StateMismatch, match=f"data.{key}"):
        state.resume_state(s2l, config)


@pytest.mark.parametrize("block", [{"sigma": 0.2}, {"type": "uniform"}, {"ema": 0.5}, {"estimate_from": "all"}])
def test_another_curriculum_is_refused(run, block: dict) -> None:
    _, _, config = run
    with pytest.raises(StateMismatch, match=f"curriculum.{next(iter(block))}"):
        state.resume_state(parse_s2l({"kl": {"type": "constant"}, "curriculum": block}), config)


def test_reset_keeps_the_rest_and_says_so(run, heard) -> None:
    folder, _, config = run
    (folder / "data.parquet").write_bytes(b"other rows")
    s2l = parse_s2l({"kl": {"type": "constant"}, "curriculum": {"on_mismatch": "reset"}})
    assert state.resume_state(s2l, config) == {"kl": {"beta": 0.1}}
    assert "the curriculum starts afresh" in heard.text and "data.sha256" in heard.text


IN_FLIGHT = {"u1": {"step": 3, "index": 7}, "u2": {"step": 3, "index": 40}}


@pytest.mark.parametrize(
    ("plans", "differs", "refused"),
    [
        (IN_FLIGHT, "data.sha256", True),  # row 7 of the new data is another prompt, and row 40 may be none
        (IN_FLIGHT, "train_files", True),
        ({"u1": {"step": 3, "index": None}}, "curriculum.type", True),  # drawn without a curriculum
        (IN_FLIGHT, "curriculum.sigma", False),
        ({}, "data.sha256", False),
    ],
)
def test_a_reset_does_not_take_prompts_in_flight_for_rows_of_other_data(tmp_path, plans, differs, refused) -> None:
    states = {"in_flight": {"plans": plans, "order": list(plans)}}
    state.save_state(tmp_path, {differs: "old"}, states | {"curriculum": {"visits": 2}})
    if not refused:
        assert state.load_state(tmp_path, {differs: "new"}, reset_curriculum=True) == states
        return
    with pytest.raises(StateMismatch, match=f"{len(plans)} prompts of the asynchronous run were drawn and not trained"):
        state.load_state(tmp_path, {differs: "new"}, reset_curriculum=True)


def test_reset_without_a_mismatch_resumes(run) -> None:
    _, _, config = run
    s2l = parse_s2l({"kl": {"type": "constant"}, "curriculum": {"on_mismatch": "reset"}})
    assert "curriculum" in state.resume_state(s2l, config)


def test_reset_does_not_cover_other_methods(run) -> None:
    _, _, config = run
    s2l = parse_s2l({"kl": {"type": "constant", "beta": 0.5}, "curriculum": {"on_mismatch": "reset"}})
    with pytest.raises(StateMismatch, match="kl.beta: checkpoint 0.02, this run 0.5"):
        state.resume_state(s2l, config)


def test_reset_takes_over_a_checkpoint_of_verls_own(run, heard) -> None:
    folder, _, config = run
    (folder / "global_step_3" / state.FILE_NAME).unlink()
    with pytest.raises(StateMismatch, match="missing"):
        state.resume_state(parse_s2l({"curriculum": {}}), config)
    assert state.resume_state(parse_s2l({"curriculum": {"on_mismatch": "reset"}}), config) == {}
    assert "starts the curriculum afresh" in heard.text


def test_warm_start_file_may_be_gone_on_resume(run) -> None:
    _, _, config = run
    s2l = parse_s2l({"kl": {"type": "constant"}, "curriculum": {"warm_start": "gone.jsonl"}})
    assert "curriculum" in state.resume_state(s2l, config)


def test_state_that_cannot_be_saved_names_what_may(tmp_path) -> None:
    with pytest.raises(StateMismatch, match=r"state_dict\(\) may hold numbers"):
        state.save_state(tmp_path, {}, {"curriculum": {"x": object()}})
    with pytest.raises(StateMismatch, match="curriculum.x is an array of Python objects"):
        state.save_state(tmp_path, {}, {"curriculum": {"x": np.array([{}], dtype=object)}})


def test_numpy_numbers_are_numbers(tmp_path) -> None:
    state.save_state(tmp_path, {}, {"curriculum": {"seen": np.int64(3), "share": np.float32(0.5)}})
    assert state.load_state(tmp_path, {}) == {"curriculum": {"seen": 3, "share": 0.5}}


def test_options_with_number_keys_resume(run) -> None:
    folder, _, config = run
    s2l = parse_s2l({"curriculum": {"type": "os:getcwd", "options": {"w": {0: 1.0}}}})
    save(folder, s2l, config)
    assert "curriculum" in state.resume_state(s2l, config)


def test_turning_the_curriculum_off_does_not_advise_a_reset(run) -> None:
    _, _, config = run
    with pytest.raises(StateMismatch) as refusal:
        state.resume_state(parse_s2l({"kl": {"type": "constant"}}), config)
    assert "on_mismatch" not in str(refusal.value)
