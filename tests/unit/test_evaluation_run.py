"""A whole evaluation with a tiny model: sampling by transformers, resuming, divergences, refusals. vLLM is in e2e."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from s2l_ext import cli
from s2l_ext.cli.eval import as_lines
from s2l_ext.errors import ConfigError, DataError, StateMismatch, TokenizerMismatch
from s2l_ext.evaluation import run
from s2l_ext.evaluation.benchmarks import Problem, load_benchmark
from s2l_ext.evaluation.divergence import ratio_error
from s2l_ext.evaluation.driver import Inputs
from s2l_ext.evaluation.engines import Request, Response, Sampling
from s2l_ext.evaluation.forward import PresencePenalty, SeededChoice
from s2l_ext.evaluation.grading import MATH, load_reward
from s2l_ext.evaluation.model_folder import Model
from s2l_ext.evaluation.run import Evaluation, evaluate
from s2l_ext.evaluation.samples import read_samples
from s2l_ext.toy.models import SIZES, build_model
from s2l_ext.toy.tokenizer import EOS_ID, build_tokenizer, encode
from s2l_ext.toy.world import write_files

N = 4


def save(folder: Path, seed: int) -> Path:
    build_model(SIZES["small"], seed).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Beside other processes two threads wait for each other in every small operation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [save(root / f"m{seed}", seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("data"), 0, {"train": 2, "val": 6, "test": 2})["val"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2L_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def job(models: list[Path], data: Path, tmp_path: Path):
    def of(name: str = "a", **changes: Any) -> Evaluation:
        sampling = Sampling(
            **{"n": N, "temperature": 1.0, "top_p": 0.9, "max_tokens": 8, **changes.pop("sampling", {})}
        )
        base = {"model": str(models[0]), "data": (data,), "engine": "transformers", "sampling": sampling}
        return Evaluation(**{**base, "out": tmp_path / f"{name}.json", **changes})

    return of


class Scripted:
    """An engine that answers from a function and counts what it was asked."""

    def __init__(self, answer, stop_after: int | None = None) -> None:
        self.answer, self.stop_after = answer, stop_after
        self.asked: list[tuple[str, int]] = []

    def draw(self, requests: Sequence[Request]) -> Iterator[list[Response]]:
        for request in requests:
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append((request.prompt_id, request.index))
            text = self.answer(request.index)
            yield [Response(request, encode(text) + ([] if "cut" in text else [EOS_ID]), "cut" in text)]

    def close(self) -> None:
        pass


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch):
    def install(answer=lambda index: "\\boxed{1}", stop_after: int | None = None) -> Scripted:
        engine = Scripted(answer, stop_after)
        monkeypatch.setattr(run, "open_engine", lambda *rest: engine)
        return engine

    return install


# ---- numbers ------------------------------------------------------------------------------------------------------


def test_the_numbers_come_from_the_samples(job, scripted) -> None:
    scripted(lambda index: "cut" if index == 3 else f"\\boxed{{{index}}}")
    result = evaluate(job(), progress=False)
    assert json.loads(job().out.read_text()) == result
    rows = result["problems"]
    assert len(rows) == result["num_problems"] == 6
    assert all(row["num_samples"] == N and row["num_truncated"] == 1 for row in rows)
    assert all(row["lengths"] == [len("\\boxed{0}") + 1] * 3 + [3] for row in rows)
    assert result["accuracy"] == sum(row["num_correct"] for row in rows) / 24
    assert result["truncation_rate"] == 0.25
    assert list(result["pass_at_k"]) == list(result["maj_at_k"]) == ["1", "2", "3", "4"]
    assert result["fingerprints"]["sampling"]["temperature"] == 1.0
    assert result["fingerprints"]["reward"] == ["s2l_ext.rewards.toy:compute_score"]
    assert result["by_data_source"]["toy_chain"]["accuracy"] == result["accuracy"]
    assert len(list(read_samples(job().samples_path))) == 24


def test_chosen_ks(job, scripted) -> None:
    scripted()
    assert list(evaluate(job(ks=(1, 4)), progress=False)["pass_at_k"]) == ["1", "4"]


def test_accuracy_by_level_and_tier(job, scripted, tmp_path, models) -> None:
    levels = [10, 2, 2, None]
    rows = [
        {"unique_id": f"t/{n}", "problem": f"{n}=?", "answer": str(min(n, 1)), "level": v} for n, v in enumerate(levels)
    ]
    rows[3]["tier"] = "hard"
    path = tmp_path / "m.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    scripted(lambda index: "\\boxed{1}" if index else "\\boxed{0}")
    asked = job("levels", data=(path,), benchmark=load_benchmark("math500"))
    result = evaluate(asked, progress=False)
    assert list(result["by_level"]) == ["2", "10"] and list(result["by_tier"]) == ["hard"]
    assert [result["by_level"][name]["accuracy"] for name in ("2", "10")] == [0.75, 0.25]
    assert [result["by_level"][name]["num_problems"] for name in ("2", "10")] == [2, 1]
    assert [row.get("level") for row in result["problems"]] == ["10", "2", "2", None]
    lines = as_lines(result, asked.out)
    assert "level 10: accuracy 0.2500, 1 problems" in lines and "level 2: accuracy 0.7500 ± 0.0000, 2 problems" in lines


# ---- going on -----------------------------------------------------------------------------------------------------


def test_an_interrupted_evaluation_goes_on_without_repeating(job, scripted) -> None:
    first = scripted(stop_after=9)
    with pytest.raises(KeyboardInterrupt):
        evaluate(job(), progress=False)
    assert not job().out.exists()
    second = scripted()
    result = evaluate(job(), progress=False)
    assert len(first.asked) == 9 and len(second.asked) == 15
    assert len({*first.asked, *second.asked}) == 24
    assert result["num_samples"] == 24
    assert scripted().asked == [] and evaluate(job(), progress=False)["accuracy"] == result["accuracy"]


def test_more_samples_and_problems_keep_those_there(job, scripted) -> None:
    scripted()
    evaluate(job(limit=2, sampling={"n": 2}), progress=False)
    more = scripted()
    assert evaluate(job(), progress=False)["num_samples"] == 24
    assert len(more.asked) == 20
    assert evaluate(job(limit=2, sampling={"n": 2}), progress=False)["num_samples"] == 4


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sampling": {"temperature": 0.5}}, "temperature"),
        ({"sampling": {"seed": 1}}, "seed"),
        ({"sampling": {"max_tokens": 9}}, "max_tokens"),
        ({"reward": "s2l_ext.rewards.math:compute_score"}, "reward"),
        ({"chat_options": {"enable_thinking": False}}, "chat_options"),
        ({"engine": "vllm"}, "engine"),
    ],
)
def test_other_settings_are_refused(job, scripted, changes: dict[str, Any], name: str) -> None:
    scripted()
    evaluate(job(), progress=False)
    with pytest.raises(StateMismatch, match=f"another {name}: "):
        evaluate(job(**changes), progress=False)


def test_another_model_and_other_data_are_refused(job, scripted, models, data: Path, tmp_path: Path) -> None:
    scripted()
    evaluate(job(), progress=False)
    with pytest.raises(StateMismatch, match="another model: "):
        evaluate(job(model=str(models[1])), progress=False)
    with pytest.raises(StateMismatch, match="another data: "):
        evaluate(job(data=(data.with_name("test.parquet"),)), progress=False)
    moved = shutil.copytree(models[0], tmp_path / "moved")
    assert evaluate(job(model=str(moved)), progress=False)["num_samples"] == 24


@pytest.mark.parametrize("place", ["{}/mine.py", "mine_of_the_evaluation:compute_score"])
def test_an_edited_reward_is_refused(job, scripted, tmp_path: Path, monkeypatch, place: str) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    files = [tmp_path / name for name in ("mine.py", "mine_of_the_evaluation.py")]
    for file in files:
        file.write_text("def compute_score(**call): return 0.0\n")
    scripted()
    mine = job(reward=place.format(tmp_path))
    assert evaluate(mine, progress=False)["fingerprints"] == evaluate(mine, progress=False)["fingerprints"]
    for file in files:
        file.write_text("def compute_score(**call): return 1.0\n")
    with pytest.raises(StateMismatch, match=r"another reward: .*mine.* \(sha256 \w{16}\)'\], now \['.*mine"):
        evaluate(mine, progress=False)


def test_a_result_that_cannot_be_written_loses_no_sample(job, scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*rest: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    scripted()
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"cannot be written \(No space left"):
        patch.setattr("s2l_ext.utils.files.os.replace", full)
        evaluate(job(), progress=False)
    assert not job().out.exists()
    again = scripted()
    assert evaluate(job(), progress=False)["num_samples"] == 24
    assert again.asked == []


def test_an_interrupted_write_leaves_the_old_result_whole(job, scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted()
    evaluate(job(limit=2), progress=False)
    before = job().out.read_bytes()

    def interrupted(*rest: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("s2l_ext.utils.files.os.fsync", interrupted)
        evaluate(job(), progress=False)
    assert job().out.read_bytes() == before
    assert evaluate(job(), progress=False)["num_problems"] == 6


def test_rows_of_the_hub_are_evaluated_and_their_change_is_noticed(job, scripted, monkeypatch, tmp_path) -> None:
    rows = [{"unique_id": f"test/{i}", "problem": f"{i}+1=?", "answer": str(i + 1)} for i in range(3)]
    clone = tmp_path / "HuggingFaceH4" / "MATH-500" / "test.jsonl"
    clone.parent.mkdir(parents=True)
    clone.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("S2L_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    hub = {"data": ("hf://HuggingFaceH4/MATH-500@test",), "benchmark": load_benchmark("math500")}
    scripted(lambda index: f"\\boxed{{{index}}}")
    result = evaluate(job(**hub), progress=False)
    assert result["data"] == ["hf://HuggingFaceH4/MATH-500@test"]
    assert [row["prompt_id"] for row in result["problems"]] == ["test/0", "test/1", "test/2"]
    assert result["accuracy"] == 0.25 and list(result["by_data_source"]) == ["math500"]
    assert evaluate(job(**hub), progress=False)["fingerprints"] == result["fingerprints"]
    clone.write_text(clone.read_text().replace('"answer": "1"', '"answer": "22"'))
    with pytest.raises(StateMismatch, match="another data: "):
        evaluate(job(**hub), progress=False)


# ---- sampling with transformers -----------------------------------------------------------------------------------


def tokens(job: Evaluation) -> dict[tuple[str, int], list[int]]:
    evaluate(job, progress=False)
    return {(sample.prompt_id, sample.index): sample.token_ids for sample in read_samples(job.samples_path)}


def test_a_sample_does_not_depend_on_what_is_drawn_beside_it(job) -> None:
    every = tokens(job("all"))
    few = tokens(job("few", limit=2, sampling={"n": 2}))
    assert few == {key: every[key] for key in few}
    assert len(set(map(tuple, every.values()))) > 12
    assert tokens(job("other", sampling={"seed": 1})) != every


def test_greedy_batches_follow_the_models_own_choice(job, models) -> None:
    from transformers import Qwen3ForCausalLM

    greedy = job("greedy", sampling={"n": 1, "temperature": 0.0})
    evaluate(greedy, progress=False)
    model = Qwen3ForCausalLM.from_pretrained(models[0], dtype=torch.float32)
    for sample in read_samples(greedy.samples_path):
        ids = list(sample.prompt_ids)
        for token in sample.token_ids:
            assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
        assert sample.truncated == (sample.token_ids[-1] != EOS_ID)


def test_seeded_choice_has_the_right_frequencies() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    rows = 4000
    choice = SeededChoice(list(range(rows)), temperature=1.0, top_p=0.9, top_k=0)
    chosen = choice(torch.zeros(rows, 1, dtype=torch.long), logits.repeat(rows, 1)).argmax(dim=1)
    shares = torch.bincount(chosen, minlength=4) / rows
    assert shares.tolist() == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0], abs=0.03)
    only = SeededChoice([0], temperature=1.0, top_p=1.0, top_k=1)(torch.zeros(1, 1), torch.tensor([[0.1, 2.0, 1.0]]))
    assert int(only.argmax()) == 1


def test_the_presence_penalty_is_taken_off_what_the_response_has_said_once() -> None:
    prompt_and_response = torch.tensor([[3, 3, 1, 1, 0], [2, 0, 4, 1, 2]])
    logits = torch.tensor([[0.5, -1.0, 2.0, 3.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    found = PresencePenalty(1.5, prompt_length=2)(prompt_and_response, logits)
    assert found.tolist() == [[-1.0, -2.5, 2.0, 3.0, 0.0], [1.0, -0.5, -0.5, 1.0, -0.5]]
    assert PresencePenalty(1.5, prompt_length=5)(prompt_and_response, logits).tolist() == logits.tolist()


def test_greedy_batches_with_a_presence_penalty(job, models) -> None:
    from transformers import Qwen3ForCausalLM

    greedy = job("penalty", sampling={"n": 1, "temperature": 0.0, "presence_penalty": 2.0})
    result = evaluate(greedy, progress=False)
    assert result["fingerprints"]["sampling"]["presence_penalty"] == 2.0
    assert "presence_penalty" not in Sampling().as_settings()
    model = Qwen3ForCausalLM.from_pretrained(models[0], dtype=torch.float32)
    changed = 0
    for sample in read_samples(greedy.samples_path):
        said: list[int] = []
        for token in sample.token_ids:
            logits = model(torch.tensor([[*sample.prompt_ids, *said]])).logits[0, -1]
            plain = int(logits.argmax())
            for earlier in set(said):
                logits[earlier] -= 2.0
            assert int(logits.argmax()) == token
            changed += token != plain
            said.append(token)
    assert changed


def test_a_presence_penalty_out_of_range_is_refused(job) -> None:
    with pytest.raises(ConfigError) as refusal:
        evaluate(job(sampling={"presence_penalty": 2.5}), progress=False)
    assert str(refusal.value) == ("--presence-penalty 2.5: expected a number from -2 to 2, as vLLM takes; 0 is off.")


# ---- divergences --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_divergences_equal_those_computed_by_hand(job, models) -> None:
    from transformers import Qwen3ForCausalLM

    teacher = job("teacher", model=str(models[1]), sampling={"n": 1})
    evaluate(teacher, progress=False)
    student = job("student", sampling={"n": 2}, divergence_to=str(models[1]), teacher_rollouts=teacher.samples_path)
    result = evaluate(student, progress=False)
    p, q = (Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32) for path in models)
    for key, path, (first, second) in (
        ("reverse_kl_per_token", student.samples_path, (p, q)),
        ("forward_kl_per_token", teacher.samples_path, (q, p)),
    ):
        sums, counts = [], []
        for sample in read_samples(path):
            ids = torch.tensor([sample.prompt_ids + sample.token_ids])
            part = slice(len(sample.prompt_ids) - 1, -1)
            with torch.inference_mode():
                log_a, log_b = (m(ids).logits[0, part].double().log_softmax(-1) for m in (first, second))
            sums.append(float((log_a.exp() * (log_a - log_b)).sum()))
            counts.append(len(sample.token_ids))
        assert result[key] == pytest.approx(sum(sums) / sum(counts), rel=1e-4)
        assert result[f"{key}_standard_error"] == pytest.approx(ratio_error(sums, counts), rel=1e-3)
        assert result[f"{key}_rows"] == len(sums)
    assert result["reverse_kl_per_token"] > 0


@pytest.mark.parametrize(
    ("prompt", "text", "right"),
    [
        ("assistant\n<think>\n", "so \\boxed{18}. Wait, let me", False),
        ("assistant\n<think>", "so \\boxed{18}. Wait, let me", False),
        ("assistant\n<think>\n", "so 3</think>\\boxed{18}", True),
        ("assistant\n<think>\n\n</think>\n\n", "so \\boxed{18}", True),
        ("assistant\n", "so \\boxed{18}", True),
    ],
)
def test_an_answer_in_thinking_that_the_template_opened_is_none(prompt: str, text: str, right: bool) -> None:
    tokenizer = build_tokenizer()
    model = Model("m", Path(), tokenizer, (EOS_ID,), None)
    problem = Problem("a", "f:1", [], "gsm8k", "18", reward=MATH)
    prompts = {"a": tokenizer.encode(prompt, add_special_tokens=False)}
    inputs = Inputs((), {"a": problem}, {MATH: load_reward("math")}, model, prompts, 99)
    ids = tokenizer.encode(text, add_special_tokens=False)
    _, said, grade = inputs.graded(Response(Request("a", 0, prompts["a"], 0), ids, False))
    assert (said, grade.correct, grade.answer) == (text, right, "18" if right else None)


def test_a_model_is_not_far_from_itself(job, models) -> None:
    result = evaluate(job(sampling={"n": 1}, divergence_to=str(models[0])), progress=False)
    assert result["reverse_kl_per_token"] == pytest.approx(0.0, abs=1e-6)
    assert "forward_kl_per_token" not in result
    assert result["fingerprints"]["divergence_to"] == result["fingerprints"]["model"]
    found = result | {"reverse_kl_per_token": 0.5, "reverse_kl_per_token_standard_error": None}
    assert "reverse_kl_per_token 0.5000" in as_lines(found, Path("r")), "of one row the error is not known"


def test_ratio_error_is_the_usual_one_for_rows_of_one_length() -> None:
    values = [1.0, 2.0, 4.0, 7.0]
    usual = torch.tensor(values).std() / 2
    assert ratio_error([3 * value for value in values], [3] * 4) == pytest.approx(float(usual), rel=1e-6)
    assert ratio_error([1.0], [2]) is None


def test_a_teacher_that_does_not_fit_is_refused_before_sampling(job, scripted, models, tmp_path: Path) -> None:
    engine = scripted()
    other = shutil.copytree(models[1], tmp_path / "other")
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": settings["eos_token"]}))
    with pytest.raises(TokenizerMismatch, match="--divergence-to"):
        evaluate(job(divergence_to=str(other)), progress=False)
    rendering = shutil.copytree(models[1], tmp_path / "rendering")
    (rendering / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(TokenizerMismatch, match="chat template:"):  # its own samples began with its own prompts
        evaluate(job(divergence_to=str(rendering), teacher_rollouts=tmp_path / "none.jsonl"), progress=False)
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        evaluate(job(divergence_to=str(models[1]), teacher_rollouts=tmp_path / "none.jsonl"), progress=False)
    with pytest.raises(ConfigError, match="--teacher-rollouts needs --divergence-to"):
        evaluate(job(teacher_rollouts=tmp_path / "none.jsonl"), progress=False)
    assert engine.asked == []


def test_a_teacher_that_only_scores_may_render_chats_otherwise(job, scripted, models, tmp_path: Path, capsys) -> None:
    scripted()
    other = shutil.copytree(models[1], tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    evaluate(job(divergence_to=str(other)), progress=False)
    assert f"s2l: warning: --divergence-to={other} has another chat template" in capsys.readouterr().err


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limit": 0}, ["--limit 0", "at least 1"]),
        ({"sampling": {"n": 0}}, ["--n 0"]),
        ({"sampling": {"seed": -1}}, ["--seed -1"]),
        ({"sampling": {"max_tokens": 0}}, ["--max-tokens 0"]),
        ({"sampling": {"temperature": 0.0}}, ["--temperature 0", "--n 4", "--n 1"]),
        ({"sampling": {"temperature": -1.0}}, ["--temperature -1.0"]),
        ({"sampling": {"top_p": 0.0}}, ["--top-p 0.0"]),
        ({"sampling": {"max_tokens": 5000}}, ["--max-tokens 5000", "2048"]),
        ({"ks": (1, 8)}, ["--k 8", "--n is 4"]),
        ({"engine": "sglang"}, ["--engine sglang", "vllm"]),
        ({"data": ("hf://org/set",)}, ["--data hf://org/set needs --benchmark"]),
    ],
)
def test_impossible_settings_are_refused(job, scripted, changes: dict[str, Any], words: list[str]) -> None:
    scripted()
    with pytest.raises((ConfigError, DataError)) as refusal:
        evaluate(job(**changes), progress=False)
    assert all(word in str(refusal.value) for word in words)


def remove(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def sharded(folder: Path) -> None:
    """What verl saves without hf_model: a tokenizer beside the workers' files."""
    remove("config.json", "model.safetensors")(folder)
    (folder / "model_world_size_1_rank_0.pt").write_bytes(b"x")


def empty_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, ["there is no such folder"]),
        (remove("config.json"), ["no config.json", "tokenizer.json"]),
        (remove("model.safetensors"), ["no weights"]),
        (remove("tokenizer.json", "tokenizer_config.json"), ["no tokenizer", "Copy the tokenizer"]),
        (remove("chat_template.jinja"), ["no chat template", "chat_template.jinja"]),
        (empty_config, ["config.json cannot be read"]),
        (sharded, ["has verl's FSDP shards: `python -m verl.model_merger merge --backend fsdp --local_dir /"]),
    ],
)
def test_a_model_folder_that_cannot_be_used_is_refused(
    job, scripted, models, tmp_path: Path, damage, words: list[str]
) -> None:
    scripted()
    folder = shutil.copytree(models[0], tmp_path / "model")
    damage(folder)
    with pytest.raises(ConfigError) as refusal:
        evaluate(job(model=str(folder)), progress=False)
    assert all(word in str(refusal.value) for word in (f"--model {folder}", *words))


def test_command(job, scripted, models, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripted()
    out = tmp_path / "c.json"
    words = ["eval", "--model", str(models[0]), "--data", str(data), "--out", str(out), "--n", "2", "--max-tokens", "8"]
    assert cli.main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["num_samples"] == 12 and "problems" not in printed
    assert cli.main([*words, "--k", "1,2"]) == 0
    assert "standard error over problems" in capsys.readouterr().out
    assert cli.main([*words, "--n", "10", "--k", "1,5,10"]) == 0
    assert "pass@k     1: 0.0000 ± 0.0000  5: 0.0000 ± 0.0000  10: " in capsys.readouterr().out, "all that were asked"
    for bad in (["--n", "3", "--k", "x"], ["--chat-option", "a"], ["--benchmark", "x"], ["--limit", "0"]):
        assert cli.main([*words, *bad]) == 2
        assert "s2l: error: --" in capsys.readouterr().err
