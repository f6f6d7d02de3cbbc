"""Damage to a checkpoint is found before a model loads."""

import errno
import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from s2l_ext.errors import ResourceError, StateMismatch
from s2l_ext.training import controller_state as state
from s2l_ext.training.checkpoint_files import (
    FILE_NAME,
    check_files,
    check_workers,
    disk_full_explained,
    leave_for_older,
    note_files,
    saved_before,
)
from s2l_ext.training.needed import TRACKER_FILE


@pytest.fixture
def run(tmp_path):
    """Two complete checkpoints, of 4 + 6 bytes each."""
    for step in (2, 4):
        folder = tmp_path / f"global_step_{step}"
        (folder / "actor").mkdir(parents=True)
        (folder / "actor" / "model.pt").write_bytes(b"abcdef")
        (folder / "data.pt").write_bytes(b"abcd")
        note_files(folder)
    (tmp_path / TRACKER_FILE).write_text("4")
    return tmp_path


def test_whole_folders_and_folders_of_verl_alone_pass(run, tmp_path) -> None:
    check_files(run / "global_step_4")
    (run / "global_step_4" / FILE_NAME).unlink()
    (run / "global_step_4" / "data.pt").unlink()
    check_files(run / "global_step_4")
    check_files(None)


def test_sizes_are_noted_but_not_its_own(run) -> None:
    noted = json.loads((run / "global_step_2" / FILE_NAME).read_text())
    assert noted == {"bytes": {"actor/model.pt": 6, "data.pt": 4}}


def test_a_half_written_file_is_named_with_the_older_checkpoint(run) -> None:
    (run / "global_step_4" / "actor" / "model.pt").write_bytes(b"abc")
    with pytest.raises(StateMismatch, match="has 3 bytes, 6 were written") as refused:
        check_files(run / "global_step_4")
    assert f"Write 2 into {run / TRACKER_FILE} and run the same command" in str(refused.value)
    assert "global_step_4/actor/model.pt" in str(refused.value)


def test_checkpoints_of_earlier_starts_count_up_to_the_one_that_is_resumed(tmp_path) -> None:
    """By number, not by name; nothing of a later step, whose files a run that was sent back writes again."""
    for step in (2, 8, 10, 12):
        (tmp_path / f"global_step_{step}" / "actor").mkdir(parents=True)
    (tmp_path / "global_step_6").mkdir()  # verl has deleted its weights
    new = tmp_path / "global_step_11" / "actor"
    kept = [str(tmp_path / f"global_step_{step}" / "actor") for step in (2, 8, 10)]
    assert saved_before(tmp_path / "global_step_10" / "actor", new) == kept


def test_a_start_from_another_runs_checkpoint_leaves_that_run_alone(run, tmp_path) -> None:
    assert saved_before(run / "global_step_4" / "actor", tmp_path / "other" / "global_step_5" / "actor") == []


def test_a_checkpoint_that_is_written_again_is_not_the_latest_meanwhile(run) -> None:
    """A run that was sent back to step 2 and is killed while it writes step 4 again resumes step 2."""
    leave_for_older(run / "global_step_6")
    assert (run / TRACKER_FILE).read_text() == "4", "no other folder concerns it"
    leave_for_older(run / "global_step_4")
    assert (run / TRACKER_FILE).read_text() == "2"
    leave_for_older(run / "global_step_2")
    assert not (run / TRACKER_FILE).exists(), "none is whole before it: such a run starts afresh"
    leave_for_older(run / "elsewhere" / "global_step_2")


def test_a_checkpoint_that_is_written_again_is_not_compared_with_its_old_sizes(run) -> None:
    """verl names it the latest before its sizes are noted."""
    leave_for_older(run / "global_step_4")
    (run / "global_step_4" / "data.pt").write_bytes(b"abcdefgh")
    (run / TRACKER_FILE).write_text("4")
    check_files(run / "global_step_4")


def test_a_missing_file_without_an_older_checkpoint(run) -> None:
    (run / "global_step_4" / "data.pt").unlink()
    (run / "global_step_2" / "data.pt").unlink()
    with pytest.raises(StateMismatch, match="is gone. The checkpoint .* is damaged. No older checkpoint"):
        check_files(run / "global_step_4")


def test_a_missing_folder_is_refused_and_the_older_one_named(run) -> None:
    """verl would start afresh without a word when the folder that its tracker names is gone."""
    shutil.rmtree(run / "global_step_4")
    with pytest.raises(StateMismatch, match=r"global_step_4: no such folder\. .* is damaged\. Write 2 into .*;"):
        check_files(run / "global_step_4")


@pytest.mark.parametrize("content", ["", "{}", '{"bytes": 3}', '{"bytes": {"a": "b"}}', "[]"])
def test_an_unreadable_note_is_named(run, content) -> None:
    (run / "global_step_4" / FILE_NAME).write_text(content)
    with pytest.raises(StateMismatch, match="Delete it to resume without this check"):
        check_files(run / "global_step_4")


@pytest.mark.parametrize("content", ["", "four", "-1"])
def test_a_torn_tracker_is_named(run, content) -> None:
    (run / TRACKER_FILE).write_text(content)
    trainer = {"resume_mode": "auto", "default_local_dir": str(run), "resume_from_path": None}
    with pytest.raises(StateMismatch, match="newest complete global_step_N"):
        state.checkpoint_folder(OmegaConf.create({"trainer": trainer}))


# ---- a full disk ----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_named_with_the_last_complete_step(run) -> None:
    message = r"step 6 .* Step 4 is the last complete one. Free space"
    with pytest.raises(ResourceError, match=message), disk_full_explained(run, 6):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("tracker", ["", "four", "4"])
def test_a_torn_tracker_or_a_deleted_step_hides_neither_message_nor_what_is_left(run, tracker) -> None:
    (run / TRACKER_FILE).write_text(tracker)
    (run / "global_step_4" / "actor" / "model.pt").unlink()
    with pytest.raises(ResourceError, match="Step 2 is the last complete one"), disk_full_explained(run, 6):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_checkpoint_without_notes_counts_by_verls_tracker(run) -> None:
    for step in (2, 4):
        (run / f"global_step_{step}" / FILE_NAME).unlink()
    with pytest.raises(ResourceError, match="Step 4 is the last complete one"), disk_full_explained(run, 6):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_torchs_short_write_counts_when_the_last_checkpoint_would_not_fit(run, monkeypatch) -> None:
    free = SimpleNamespace(free=SIZE_OF_LAST - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(ResourceError, match="could not be written"), disk_full_explained(run, 6):
        raise RuntimeError("unexpected pos 64 vs 0")
    free.free = SIZE_OF_LAST
    with pytest.raises(RuntimeError, match="unexpected pos"), disk_full_explained(run, 6):
        raise RuntimeError("unexpected pos 64 vs 0")


def test_the_cause_inside_a_worker_is_looked_at(run) -> None:
    worker = RuntimeError("task failed")
    worker.cause = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ResourceError), disk_full_explained(run, 6):
        raise worker


def test_before_the_first_checkpoint(tmp_path) -> None:
    with pytest.raises(ResourceError, match="No checkpoint is complete yet"), disk_full_explained(tmp_path, 1):
        raise OSError(errno.EDQUOT, "quota")


SIZE_OF_LAST = 4 + 6 + len(json.dumps({"bytes": {"actor/model.pt": 6, "data.pt": 4}}, indent=1)) + 1


# ---- another number of workers --------------------------------------------------------------------------------------


def learner(gpus: int, nodes: int = 1, strategy: str = "fsdp2"):
    trainer = {"nnodes": nodes, "n_gpus_per_node": gpus}
    return OmegaConf.create({"trainer": trainer, "actor_rollout_ref": {"actor": {"strategy": strategy}}})


@pytest.fixture
def of_eight(tmp_path):
    """A checkpoint that eight workers wrote."""
    folder = tmp_path / "global_step_8"
    (folder / "actor").mkdir(parents=True)
    for rank in range(8):
        (folder / "actor" / f"model_world_size_8_rank_{rank}.pt").write_bytes(b"x")
    note_files(folder)
    return folder


def test_the_number_of_workers_is_in_the_names_of_their_files(of_eight) -> None:
    check_workers(of_eight, learner(8))
    check_workers(of_eight, learner(4, nodes=2))
    check_workers(of_eight, learner(4, strategy="megatron"))  # resharded by torch
    check_workers(None, learner(4))


def test_a_checkpoint_without_weights_is_refused(tmp_path) -> None:
    """verl's loader passes over contents that are not there: step and schedules would go on with a new model."""
    (tmp_path / "global_step_2" / "actor" / "huggingface").mkdir(parents=True)
    with pytest.raises(StateMismatch, match=r"has no model_world_size_\*.pt, so verl would go on from step 2 with the"):
        check_workers(tmp_path / "global_step_2", learner(1))
    check_workers(tmp_path / "global_step_2", learner(1, strategy="megatron"))


@pytest.mark.parametrize("seen", ["files", "list"])
def test_another_number_is_refused_with_the_way_on(of_eight, seen) -> None:
    """Also where this machine sees the list only: each node may hold its own workers' files."""
    if seen == "list":
        shutil.rmtree(of_eight / "actor")
    else:
        (of_eight / FILE_NAME).unlink()
    with pytest.raises(StateMismatch) as refused:
        check_workers(of_eight, learner(4))
    assert str(refused.value) == (
        f"{of_eight}/actor/model_world_size_8_rank_0.pt: 8 workers wrote this checkpoint, and this run has 4 "
        "(trainer.nnodes x trainer.n_gpus_per_node), which verl cannot resume from it. Resume with 8, or start a new "
        f"run from its weights: `python -m verl.model_merger merge --backend fsdp --local_dir {of_eight}/actor "
        "--target_dir DIR`, then actor_rollout_ref.model.path=DIR in another trainer.default_local_dir."
    )


def test_verl_names_its_files_so() -> None:
    """The words are verl's source."""
    spec = importlib.util.find_spec("verl")
    text = Path(spec.submodule_search_locations[0], "utils", "checkpoint", "fsdp_checkpoint_manager.py").read_text()
    assert 'f"model_world_size_{self.world_size}_rank_{self.rank}.pt"' in text
