import argparse
import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
import torch
from transformers import Qwen3ForCausalLM

from s2l_ext.cli.data_toy import add_arguments, main
from s2l_ext.data.checks import check_parquet
from s2l_ext.errors import DataError
from s2l_ext.toy import cache, pretrain, tasks, world
from s2l_ext.toy.tokenizer import EOS_ID, prompt_ids, response_ids

USUAL = dict(pretrain.DEFAULTS)
FEW_STEPS = pretrain.PretrainConfig(
    tier_shares=((0, 0.5), (3, 0.5)), careful_share=0.5, lr=4e-3, batch_size=4, skill_steps=2, mode_steps=1
)


@pytest.fixture(autouse=True)
def quick_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2L_CACHE_DIR", str(tmp_path / "cache"))
    for size in ("small", "medium", "large"):
        monkeypatch.setitem(pretrain.DEFAULTS, size, FEW_STEPS)
    monkeypatch.setattr(world, "ROWS", {"train": 12, "val": 6, "test": 6})


@pytest.fixture
def script(module_at: Callable[..., ModuleType]) -> ModuleType:
    return module_at(Path(__file__).parents[2] / "scripts" / "toy_models.py")


def weights(model: Qwen3ForCausalLM) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.mark.slow
def test_same_seed_same_weights_other_seed_others() -> None:
    first, again, other = (
        weights(pretrain.pretrain("small", FEW_STEPS, seed, progress=False).model) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.slow
def test_pretraining_lowers_the_loss_and_leaves_the_thread_count() -> None:
    config = dataclasses.replace(FEW_STEPS, skill_steps=25, warmup_steps=5, batch_size=8, careful_share=1.0)
    threads = torch.get_num_threads()
    short = pretrain.pretrain("small", dataclasses.replace(config, skill_steps=1), 0, progress=False)
    longer = pretrain.pretrain("small", config, 0, progress=False)
    assert longer.mode_loss < short.mode_loss - 0.5
    assert torch.get_num_threads() == threads


def test_the_skill_stretch_ends_early_once_learned() -> None:
    config = dataclasses.replace(FEW_STEPS, skill_steps=5, skill_loss=100.0)
    assert pretrain.pretrain("small", config, 0, progress=False).skill_steps == 1


def test_loss_counts_response_tokens_only() -> None:
    problems = tasks.sample(0, "train", 3, 0)
    ids, mask = pretrain.make_batch(problems, random.Random(0), careful_share=0.0)
    width = len("<") + len("\\boxed{1}") + len(">") + 1
    assert mask.sum(dim=1).tolist() == [width] * 3
    assert all(row[m][-1] == EOS_ID for row, m in zip(ids, mask, strict=True))


def test_padding_does_not_change_the_loss() -> None:
    model = pretrain.pretrain("small", FEW_STEPS, 0, progress=False).model
    problems = sorted(tasks.sample(0, "train", 8, 0), key=lambda problem: len(problem.question))
    ids, mask = pretrain.make_batch([problems[0], problems[-1]], random.Random(0), 1.0)
    alone = [pretrain.make_batch([problem], random.Random(0), 1.0) for problem in (problems[0], problems[-1])]
    counts = [int(m.sum()) for _, m in alone]
    losses = [float(pretrain.response_loss(model, *batch).detach()) for batch in alone]
    expected = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)
    assert ids.shape[0] == 2
    assert float(pretrain.response_loss(model, ids, mask).detach()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-3},
        {"careful_share": 0.6},
        {"mode_steps": 9},
        {"tier_shares": ((0, 0.4), (3, 0.6))},
        {"skill_loss": 0.5},
    ],
)
def test_key_changes_with_every_hyper_parameter(change: dict[str, object]) -> None:
    key = cache.content_key("small", FEW_STEPS, 0)
    assert key == cache.content_key("small", FEW_STEPS, 0)
    assert key != cache.content_key("small", dataclasses.replace(FEW_STEPS, **change), 0)


def test_key_changes_with_size_seed_and_the_tiers_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {cache.content_key("small", FEW_STEPS, 0), cache.content_key("medium", FEW_STEPS, 0)}
    keys.add(cache.content_key("small", FEW_STEPS, 1))
    monkeypatch.setitem(tasks.TIERS, 3, dataclasses.replace(tasks.TIERS[3], operations=(2,)))
    keys.add(cache.content_key("small", FEW_STEPS, 0))
    assert len(keys) == 4


def test_a_cached_model_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache.pretrained_folder("small", 0, progress=False)
    monkeypatch.setattr(cache, "pretrain", None)
    assert cache.pretrained_folder("small", 0, progress=False) == folder


@pytest.mark.slow
def test_an_interrupted_build_leaves_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache, "build_tokenizer", interrupt)
        cache.pretrained_folder("small", 0, progress=False)
    left = list((cache.cache_root() / "toy").iterdir())
    assert [path.suffix for path in left] == [".lock"]
    assert (cache.pretrained_folder("small", 0, progress=False) / "model.safetensors").is_file()


def test_what_a_killed_build_left_is_removed() -> None:
    name = f"small-{cache.content_key('small', FEW_STEPS, 0)}"
    leftover = cache.cache_root() / "toy" / f".{name}-abc"
    leftover.mkdir(parents=True)
    cache.pretrained_folder("small", 0, progress=False)
    assert not leftover.exists()


def test_two_callers_that_want_one_model_train_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = cache.cache_root().parent / "trained"

    def count(*arguments: object) -> pretrain.PretrainingResult:
        with open(trained, "a") as file:
            file.write("x")
        return pretrain.pretrain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "pretrain", count)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: cache.pretrained_folder("small", 0, progress=False), range(2)))
    assert folders[0] == folders[1]
    assert trained.read_text() == "x"


@pytest.mark.slow
def test_prepare_writes_models_and_files_and_a_second_call_keeps_them(tmp_path: Path) -> None:
    made = world.prepare(tmp_path / "out", ("small", "medium"), progress=False)
    before = made.models["small"].stat().st_mtime_ns
    again = world.prepare(tmp_path / "out", ("small", "medium"), progress=False)
    assert made == again
    assert made.models["small"].stat().st_mtime_ns == before
    assert set(made.models) == {"small", "medium"}
    assert len(made.files) == 12
    table = pq.read_table(made.files["val_tier2"])
    assert table.num_rows == 6
    assert set(table["tier"].to_pylist()) == {2}
    assert Qwen3ForCausalLM.from_pretrained(made.models["small"]).num_parameters() == 113472


def test_prepared_files_pass_the_data_check_and_share_no_question(tmp_path: Path) -> None:
    files = world.write_files(tmp_path, seed=3)
    questions = []
    for path in files.values():
        rows = check_parquet(path)
        prompts = pq.read_table(path)["prompt"].to_pylist()
        assert rows == len(prompts)
        questions += [prompt[0]["content"] for prompt in prompts]
    assert len(questions) == len(set(questions)) == 4 * (12 + 6 + 6)


@pytest.mark.slow
def test_another_seed_replaces_models_and_files(tmp_path: Path) -> None:
    first = world.prepare(tmp_path / "out", ("small",), seed=0, progress=False)
    key = json.loads((first.models["small"] / cache.MANIFEST).read_text())["key"]
    train = pq.read_table(first.files["train"])
    second = world.prepare(tmp_path / "out", ("small",), seed=1, progress=False)
    assert json.loads((second.models["small"] / cache.MANIFEST).read_text())["key"] != key
    assert pq.read_table(second.files["train"]) != train


def test_bad_arguments_are_refused_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "pretrain", None)
    with pytest.raises(DataError, match=r"size='huge'.*small, medium, large"):
        world.prepare(tmp_path / "out", ("small", "huge"))
    with pytest.raises(DataError, match=r"family='nature'.*made, natural"):
        world.prepare(tmp_path / "out", ("small",), family="nature")
    with pytest.raises(DataError, match="give a list"):
        world.prepare(tmp_path / "out", "small")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: cannot be written"):
        world.prepare(tmp_path / "file", ("small",))
    assert not (tmp_path / "out").exists()


def test_the_natural_family_has_one_recipe_and_a_name_of_its_own(tmp_path: Path, monkeypatch) -> None:
    """Every size is asked for with the same configuration, and stands beside the others as natural_<size>."""
    asked = []

    def folder(size: str, seed: int, config: pretrain.PretrainConfig, progress: bool) -> Path:
        asked.append(config)
        return cache.SHIPPED / "small"

    monkeypatch.setattr(world, "pretrained_folder", folder)
    made = world.prepare(tmp_path / "out", ("small", "medium", "large"), family="natural")
    assert list(made.models) == ["natural_small", "natural_medium", "natural_large"]
    assert asked == [pretrain.NATURAL] * 3 and (tmp_path / "out" / "models" / "natural_large" / "config.json").is_file()


def test_an_unwritable_cache_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("S2L_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(DataError, match="S2L_CACHE_DIR"):
        cache.pretrained_folder("small", 0, progress=False)


def test_somebody_elses_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out" / "models" / "small").mkdir(parents=True)
    with pytest.raises(DataError, match="exists and is no toy world"):
        world.prepare(tmp_path / "out", ("small",), progress=False)


def test_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert main(parser.parse_args(["--out", str(tmp_path / "o"), "--sizes", "small", "--json"])) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["models"]) == ["small"] and {"train", "test_tier3"} <= printed["files"].keys()


def test_describe_counts_careful_and_hasty_apart(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scripted(model: object, problems: list[tasks.Problem], *rest: object) -> list[list[list[int]]]:
        return [[response_ids("1+1=2", problem.answer), response_ids("", "x")] for problem in problems[:-1]] + [
            [response_ids("1+1=2", "x"), response_ids("", "x")]
        ]

    monkeypatch.setattr(script, "generate", scripted)
    made = world.prepare(tmp_path / "out", ("small",), progress=False)
    (row,) = script.describe(made.models, n_problems=4, k=2, tiers=[0])
    assert (row["p_careful"], row["accuracy_careful"], row["accuracy_hasty"]) == (0.5, 0.75, 0.0)
    assert (row["pass@1"], row["pass@2"]) == (0.375, 0.75)
    assert row["length"] == (len(response_ids("1+1=2", "7")) + len(response_ids("", "x"))) / 2
    assert row["unfinished"] == 0.0


@pytest.mark.slow
def test_sampling_is_seeded(script: ModuleType) -> None:
    model = pretrain.pretrain("small", FEW_STEPS, 0, progress=False).model
    problems = tasks.sample(0, "test", 3, 0)
    assert script.generate(model, problems, 2, seed=1) == script.generate(model, problems, 2, seed=1)
    assert script.generate(model, problems, 2, seed=1) != script.generate(model, problems, 2, seed=2)


@pytest.mark.slow
def test_batched_sampling_follows_the_models_own_greedy_choice(script: ModuleType) -> None:
    model = pretrain.pretrain("small", FEW_STEPS, 0, progress=False).model
    problems = [tasks.from_question(question) for question in ("1+2-3=?", "1+2-3*4+5^6-7=?")]
    sampled = script.generate(model, problems, 1, seed=0, temperature=1e-3)
    for problem, (response,) in zip(problems, sampled, strict=True):
        ids = prompt_ids(problem.question)
        for token in response[:5]:
            logits = model(torch.tensor([ids])).logits[0, -1]
            assert logits[token] > logits.max() - 0.02
            ids.append(token)


SHIPPED_SIZES = ("small", "medium")
RECORD = json.loads((cache.SHIPPED / "models.json").read_text())


@pytest.fixture
def usual_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hyper-parameters of every day, so that the models that come with the package are the ones asked for."""
    for size in USUAL:
        monkeypatch.setitem(pretrain.DEFAULTS, size, USUAL[size])


@pytest.mark.parametrize("size", SHIPPED_SIZES)
def test_shipped_weights_are_the_bytes_that_were_measured(size: str) -> None:
    file = cache.SHIPPED / size / cache.WEIGHTS
    assert cache.sha256_file(file) == RECORD["sha256"][size]
    assert (cache.read_manifest(cache.SHIPPED / size) or {})["sha256"][cache.WEIGHTS] == RECORD["sha256"][size]
    assert {row["tier"] for row in RECORD["measured"] if row["model"] == size} == set(tasks.TIERS)
    assert sum(path.stat().st_size for path in cache.SHIPPED.rglob("*.safetensors")) < 3e6


@pytest.mark.parametrize("size", SHIPPED_SIZES)
def test_default_seed_trains_nothing(size: str, usual_models: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when something that determines the weights changes: then run scripts/toy_models.py."""
    monkeypatch.setattr(cache, "pretrain", None)
    assert cache.pretrained_folder(size, 0) == cache.SHIPPED / size
    with pytest.raises(TypeError):
        cache.pretrained_folder(size, 1)


def test_shipped_models_are_whole_models_in_float32(usual_models: None, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = world.prepare(tmp_path / "out", SHIPPED_SIZES)
    for size, folder in made.models.items():
        model = Qwen3ForCausalLM.from_pretrained(folder)
        assert model.dtype == torch.float32
        assert {model.num_parameters()} == {row["parameters"] for row in RECORD["measured"] if row["model"] == size}
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chat = [{"role": "user", "content": "1+1=?"}]
        assert tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == prompt_ids("1+1=?")


@pytest.mark.slow
def test_shipped_models_can_what_the_record_says(script: ModuleType, usual_models: None, tmp_path: Path) -> None:
    """A part of the measurement, far outside sampling error only when the weights are others."""
    made = world.prepare(tmp_path / "out", ("small",))
    (row,) = script.describe(made.models, n_problems=16, k=8, tiers=[0])
    (recorded,) = [row for row in RECORD["measured"] if (row["tier"], row["model"]) == (0, "small")]
    assert row["pass@1"] == pytest.approx(recorded["pass@1"], abs=0.2)
    assert row["accuracy_careful"] > 0.75


@pytest.mark.slow
@pytest.mark.long
def test_shipped_weights_come_from_the_command_that_the_record_names(script: ModuleType, tmp_path: Path) -> None:
    """A minute of pre-training. Another processor (two of one kind, too) or torch rounds differently: then all but
    the weights is the same, and what the model can do agrees."""
    assert RECORD["made_by"] == "python scripts/toy_models.py"
    folder = tmp_path / "small"
    cache.build(folder, "small", USUAL["small"], RECORD["seed"], progress=False, half=True)
    if cache.sha256_file(folder / cache.WEIGHTS) == RECORD["sha256"]["small"]:
        return
    made, shipped = (json.loads((one / cache.MANIFEST).read_text()) for one in (folder, cache.SHIPPED / "small"))
    assert made["key"] == shipped["key"], "of size, seed and everything that pre-training is told"
    assert made["sha256"] | {cache.WEIGHTS: ""} == shipped["sha256"] | {cache.WEIGHTS: ""}
    (row,) = script.describe({"small": folder}, tiers=[0])
    assert 0.3 < row["pass@1"] < 0.7 and row["accuracy_careful"] > 0.8


@pytest.mark.parametrize("name", [cache.WEIGHTS, "config.json"])
def test_a_damaged_shipped_model_is_refused(
    name: str, usual_models: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cache.SHIPPED, tmp_path / "weights")
    monkeypatch.setattr(cache, "SHIPPED", tmp_path / "weights")
    assert cache.pretrained_folder("small", 0) == tmp_path / "weights" / "small"
    file = tmp_path / "weights" / "small" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=rf"weights/small/{name}: damaged.*SHA-256 is \w+….*pip install"):
        cache.pretrained_folder("small", 0)
    file.unlink()
    with pytest.raises(DataError, match=rf"{name}: damaged.*it is missing.*pip install"):
        cache.pretrained_folder("small", 0)


def test_another_model_in_the_place_of_an_installed_one_is_refused(usual_models: None, tmp_path: Path) -> None:
    made = world.prepare(tmp_path / "out", SHIPPED_SIZES)
    shutil.copyfile(made.models["medium"] / cache.WEIGHTS, made.models["small"] / cache.WEIGHTS)
    with pytest.raises(DataError, match=r"models/small/model.safetensors: .*not the toy model.*Remove the folder"):
        world.prepare(tmp_path / "out", SHIPPED_SIZES)
    shutil.rmtree(made.models["small"])
    assert world.prepare(tmp_path / "out", SHIPPED_SIZES) == made


@pytest.mark.slow
def test_a_damaged_model_of_the_cache_is_refused_and_made_again_once_removed() -> None:
    folder = cache.pretrained_folder("small", 0, progress=False)
    (folder / cache.WEIGHTS).write_bytes(b"")
    with pytest.raises(DataError, match=r"model.safetensors: damaged.*Remove the folder; it is made again"):
        cache.pretrained_folder("small", 0, progress=False)
    (folder / cache.MANIFEST).write_text("{")
    with pytest.raises(DataError, match=rf"{cache.MANIFEST}: damaged.*it is made again"):
        cache.pretrained_folder("small", 0, progress=False)
    shutil.rmtree(folder)
    assert cache.pretrained_folder("small", 0, progress=False) == folder
