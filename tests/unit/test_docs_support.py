"""docs/support.md says what composing says, and names tests that run what they are named for."""

from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def matrix(module_at) -> ModuleType:
    return module_at(Path(__file__).parents[2] / "scripts" / "support_matrix.py")


@pytest.fixture(scope="module")
def known(matrix: ModuleType) -> list:
    return matrix.launches()


def test_the_page_is_what_composing_says(matrix: ModuleType) -> None:
    assert matrix.PAGE.read_text() == matrix.page(), "run `make docs-support` and read what changed"


def test_no_method_is_without_a_launch(matrix: ModuleType, known: list) -> None:
    for column in matrix.COLUMNS:
        assert any(column.holds(launch.s2l) for launch in known), column.name


def test_a_launch_counts_for_what_it_sets_only(matrix: ModuleType, known: list) -> None:
    rows = {row.name: row for row in matrix.ROWS}
    packed = [launch for launch in known if launch.cfg.actor_rollout_ref.model.use_remove_padding]
    padded = [launch for launch in known if not launch.cfg.actor_rollout_ref.model.use_remove_padding]
    assert packed and padded
    row = rows["`use_remove_padding`"]
    assert all(row.of(launch.cfg) for launch in packed) and not any(row.of(launch.cfg) for launch in padded)


def test_a_refused_cell_has_the_message_of_the_checks(matrix: ModuleType) -> None:
    columns, rows = ({one.name: one for one in group} for group in (matrix.COLUMNS, matrix.ROWS))
    message = matrix.message_of(rows["tool agent, several turns"], columns["explorer, offline"])
    assert message is not None and "a stored rollout has one turn" in message
    assert matrix.message_of(rows["tool agent, several turns"], columns["guidance"]) is None


def test_verl_takes_the_settings_of_every_row(matrix: ModuleType) -> None:
    """Else "composes" would be true for our checks alone."""
    from s2l_ext.launch.train import _ask_verl

    for row in matrix.ROWS:
        if matrix.message_of(row, matrix.COLUMNS[0]) is None:
            _ask_verl(matrix.cell_config(row, matrix.COLUMNS[0]))


def test_a_test_of_what_is_refused_is_an_error(matrix: ModuleType, known: list) -> None:
    row = matrix.Row("never", {"actor_rollout_ref.model.lora.rank": 8}, holds=lambda cfg: True)
    with pytest.raises(LookupError, match="runs what is refused"):
        matrix.cell(row, matrix.COLUMNS[0], known, matrix.Notes(), matrix.Notes())


def test_a_launch_that_names_a_missing_test_is_an_error(matrix: ModuleType, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "conftest.py").write_text("SMALL_RUN = ()\n")
    launch = '{"fixture": "run", "recipe": "grpo/toy", "overrides": (), "shown_by": "test_gone"}'
    (tmp_path / "test_one.py").write_text(f"LAUNCHES = [{launch}]\n\n\ndef test_other(run): ...\n")
    monkeypatch.setattr(matrix, "E2E", tmp_path)
    with pytest.raises(LookupError, match=r"test_one.py: LAUNCHES names test_gone, which does not use run"):
        matrix.launches()
