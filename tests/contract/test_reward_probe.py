"""A reward function is asked before models load whether it says how correct an answer is."""

import functools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.reward_probe import check_reward

pytestmark = pytest.mark.contract

BODIES = {
    "good": "return {'score': 0.1, 'acc': 0.0}",
    "bare": "return 0.5",
    "no_acc": "return {'score': 0.5, 'format': 1}",
    "none_acc": "return {'score': 0.5, 'acc': None}",
    "by_source": "return {'score': 1, 'acc': 1.0} if data_source == 'mine' else 0.3",
    "crash": "raise ValueError('needs a server')",
    "no_score": "return {'reward': 1.0, 'acc': 1.0}",
    "below_0": "return {'score': 1.0, 'acc': -1.0}",
    "a_word": "return {'score': 1.0, 'acc': 'yes'}",
    "row": "assert (data_source, ground_truth, solution_str) == ('mine', '4', '')\n    return {'acc': 1.0, 'score': 1}",
}


@functools.cache
def expo() -> DictConfig:
    return compose_config("expo/toy", [])


@pytest.fixture
def asked(tmp_path):
    """``asked("body", async_=False, **settings)`` -> warnings."""
    rows = [{"data_source": "mine", "prompt": [], "reward_model": {"ground_truth": "4"}, "extra_info": {"index": 1}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")

    def run(body: str, async_: bool = False, **settings: object) -> list[str]:
        head = "async def" if async_ else "def"
        code = f"{head} f(data_source, solution_str, ground_truth, extra_info=None):\n    {BODIES[body]}\n"
        (tmp_path / f"{body}.py").write_text(code)
        cfg = expo().copy()
        with open_dict(cfg):
            cfg.data.train_files = [str(tmp_path / "train.parquet")]
            cfg.reward.custom_reward_function.path = str(tmp_path / f"{body}.py")
            cfg.reward.custom_reward_function.name = "f"
            for name, value in settings.items():
                OmegaConf.update(cfg, name.replace("__", "."), value, force_add=True)
        return check_reward(cfg, parse_s2l(cfg.s2l))

    return run


@pytest.mark.parametrize("async_", [False, True])
def test_a_reward_with_acc_passes(asked, async_: bool) -> None:
    assert asked("good", async_) == []


def test_it_is_asked_with_a_row_of_the_data(asked) -> None:
    assert asked("row") == []


@pytest.mark.parametrize("async_", [False, True])
def test_a_bare_number_is_refused(asked, async_: bool) -> None:
    with pytest.raises(
        ConfigError, match=r"and s2l.kl.type=accuracy needs .*bare.py .data_source mine. returns a bare float \(0.5\)"
    ):
        asked("bare", async_)


@pytest.mark.parametrize("body", ["no_acc", "none_acc"])
def test_a_mapping_without_acc_is_refused_with_its_keys(asked, body: str) -> None:
    with pytest.raises(ConfigError, match="returns only score, .*Add 'acc'"):
        asked(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("no_score", "returns reward, acc and no score"),
        ("below_0", r"needs acc in \[0, 1\], and .* returns acc=-1.0"),
        ("a_word", "returns acc='yes'"),
    ],
)
def test_an_answer_that_verl_or_a_controller_could_not_take_is_refused(asked, body: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(body)


@pytest.fixture
def written(asked, tmp_path):
    """``written(code, name)``: the check with a reward function of this code, with nothing that needs it and so not
    asked."""

    def run(code: str, name: str = "f", **settings: object) -> list[str]:
        (tmp_path / "own.py").write_text(code)
        place = {"path": str(tmp_path / "own.py"), "name": name}
        given = {f"reward__custom_reward_function__{key}": value for key, value in place.items()}
        return asked("good", **{**OFF, **given, **settings})

    return run


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(solution_str, ground_truth): return 1.0", "unexpected keyword argument 'data_source'"),
        ("class f: pass", "cannot be called as verl does"),
        ("def g(): pass", "cannot be loaded"),
    ],
)
def test_a_function_that_verl_could_not_call_is_refused_without_a_method_too(written, code: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        written(code)


def test_a_function_with_options_of_its_own_passes(written) -> None:
    code = "def f(data_source, solution_str, ground_truth, extra_info=None, *, weight): return weight"
    assert written(code, reward__custom_reward_function__reward_kwargs={"weight": 2.0}) == []
    with pytest.raises(ConfigError, match="missing a required argument: 'weight'"):
        written(code)


REGISTERS = """
from verl.experimental.reward_loop.reward_manager import register
@register("registered_by_the_reward")
class Mine: pass
def f(**_): return 1.0
"""


def test_a_manager_that_the_functions_file_registers_is_found(written) -> None:
    """verl loads the function first, for this purpose."""
    assert written(REGISTERS, reward__reward_manager__name="registered_by_the_reward") == []


def test_a_manager_of_ones_own_may_call_the_function_otherwise(written, tmp_path) -> None:
    (tmp_path / "manager.py").write_text("class Mine: pass")
    manager = {"reward__reward_manager__source": "importlib", "reward__reward_manager__name": "Mine"}
    manager["reward__reward_manager__module__path"] = str(tmp_path / "manager.py")
    assert written("def f(texts): return [1.0 for _ in texts]", **manager) == []


def test_a_coroutine_that_verl_would_not_await_is_refused(written) -> None:
    code = "async def g(**_): return {'score': 1.0, 'acc': 1.0}\ndef f(**given): return g(**given)"
    with pytest.raises(ConfigError, match="not declared `async def`"):
        written(code, s2l__kl={"beta": 0.02})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward__reward_manager__name": "prime"}, "reward.reward_manager.name=prime: verl cannot load it"),
        (
            {
                "reward__reward_manager__name": "dapo",
                "reward__reward_kwargs": {"overlong_buffer_cfg": {"enable": True, "len": 4, "penalty_factor": 1.0}},
            },
            "needs .reward.reward_kwargs.max_resp_len",
        ),
    ],
)
def test_a_manager_that_verl_could_not_make_is_refused(written, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        written("def f(**_): return 1.0", **settings)


def test_a_number_will_do_where_nothing_needs_acc_and_an_empty_answer_may_fail(asked) -> None:
    assert asked("bare", **OFF) == asked("crash", **OFF) == asked("no_acc", **OFF) == []


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", r"own.py .data_source mine. gives the reward None, and verl takes a number only"),
        ("'1.0'", "gives the reward '1.0'"),
        ("(1.0, True)", r"gives the reward \(1.0, True\)"),
        ("{'score': [1.0]}", r"gives the reward \[1.0\]"),
        ("{'acc': 1.0}", "returns acc and no score"),
    ],
)
def test_a_reward_that_is_no_number_is_refused_without_a_method_too(written, returned: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        written(f"def f(**_): return {returned}")


@pytest.mark.parametrize("returned", ["True", "1", "numpy.float32(0.5)", "torch.tensor(0.5)"])
def test_any_kind_of_number_is_a_reward(written, returned: str) -> None:
    assert written(f"import numpy, torch\ndef f(**_): return {returned}") == []


def test_a_function_whose_signature_python_does_not_know_passes(written) -> None:
    assert written("f = max") == []


@pytest.mark.parametrize(
    ("returned", "metric", "refused"),
    [
        ("{'score': 1.0}", "acc", True),
        ("{'score': 1.0}", "format", True),
        ("{'score': 1.0, 'format': 1}", "format", False),
        ("{'score': 1.0}", "reward", False),
        ("1.0", "acc", False),  # verl's managers take a bare number for it
    ],
)
def test_a_metric_of_groups_that_the_reward_does_not_give_is_refused(written, returned, metric, refused) -> None:
    groups = {"algorithm__filter_groups": {"enable": True, "metric": metric, "max_num_gen_batches": 2}}
    code = f"def f(**_): return {returned}"
    if not refused:
        assert written(code, **groups) == []
        return
    with pytest.raises(ConfigError, match=rf"^algorithm.filter_groups.metric={metric}: .* returns only score\. Add"):
        written(code, **groups)


def test_a_reward_that_cannot_answer_is_a_warning(asked) -> None:
    assert "could not be asked with an empty answer (ValueError: needs a server)" in asked("crash")[0]


def test_a_function_that_is_not_there_is_refused(asked) -> None:
    with pytest.raises(ConfigError, match="g of .* cannot be loaded"):
        asked("good", reward__custom_reward_function__name="g")


def test_a_reward_model_alone_is_refused(asked) -> None:
    pool = {"reward__reward_model__enable": True, "reward__reward_model__enable_resource_pool": True}
    with pytest.raises(ConfigError, match="reward.reward_model gives a score only"):
        asked("good", reward__custom_reward_function__path=None, **pool)
    with pytest.raises(ConfigError, match="enable_resource_pool=True"):
        asked("good", reward__reward_model__enable=True)


def test_every_data_source_is_asked(asked, tmp_path) -> None:
    """One of them answers with a bare number."""
    rows = [{"data_source": name, "prompt": [], "reward_model": {"ground_truth": "4"}} for name in ("mine", "theirs")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "second.parquet")
    files = [str(tmp_path / "train.parquet"), str(tmp_path / "second.parquet")]
    with pytest.raises(ConfigError, match="data_source theirs. returns a bare float"):
        asked("by_source", data__train_files=files)


def test_files_that_are_no_parquet_are_not_read(asked, tmp_path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    assert "could not be checked before the run" in asked("good", data__train_files=str(tmp_path / "train.jsonl"))[0]


# ---- data that verl has no reward for ------------------------------------------------------------------------------


@pytest.fixture
def verls_own(asked, tmp_path):
    """With verl's own reward: ``verls_own(train, val)``, data sources of the training and of the validation rows."""

    def run(train: list[str], val: list[str], **settings: object) -> list[str]:
        paths = {}
        for name, sources in (("train", train), ("val", val)):
            rows = [{"data_source": source, "prompt": [], "reward_model": {"ground_truth": "4"}} for source in sources]
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}_own.parquet")
            paths[f"data__{name}_files"] = str(tmp_path / f"{name}_own.parquet")
        return asked("good", reward__custom_reward_function__path=None, **paths, **settings)

    return run


OFF = {"s2l__kl": None, "s2l__curriculum": None}


def test_rows_that_verls_own_reward_knows_pass(verls_own) -> None:
    assert verls_own(["openai/gsm8k"], ["aime_2024", "openai/gsm8k"], **OFF) == []


@pytest.mark.parametrize("settings", [{}, OFF])
def test_rows_that_verls_own_reward_does_not_know_are_refused_with_file_and_fix(verls_own, settings) -> None:
    with pytest.raises(DataError, match=r"^data.train_files: verl has no reward for data_source mine, .* Set rew"):
        verls_own(["openai/gsm8k", "mine"], ["openai/gsm8k"], **settings)
    with pytest.raises(DataError, match=r"^data.val_files: verl has no reward for data_source mine, theirs, and"):
        verls_own(["openai/gsm8k"], ["mine", "theirs"], **settings)


def test_a_reward_of_ones_own_is_asked_for_no_source(verls_own, tmp_path) -> None:
    (tmp_path / "manager.py").write_text("class Mine: pass")
    manager = {"reward__reward_manager__source": "importlib", "reward__reward_manager__name": "Mine"}
    manager["reward__reward_manager__module__path"] = str(tmp_path / "manager.py")
    assert verls_own(["mine"], ["mine"], **manager, **OFF) == []


def test_verls_own_reward_that_returns_a_number_is_refused(verls_own) -> None:
    with pytest.raises(ConfigError, match="data_source openai/gsm8k. returns a bare float"):
        verls_own(["openai/gsm8k"], ["openai/gsm8k"])
