"""``s2l diversity`` from the command line: a whole comparison of two tiny models, and every refusal."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s2l_ext import cli
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.evaluation.samples import Sample, SampleFile, read_samples
from s2l_ext.studies.diversity import text as diversity_text
from s2l_ext.studies.diversity.measure import measure
from s2l_ext.studies.diversity.models import Settings
from s2l_ext.studies.diversity.page import as_lines
from s2l_ext.studies.diversity.sets import noise_name, read_set
from s2l_ext.toy.models import SIZES, build_model
from s2l_ext.toy.tokenizer import build_tokenizer
from s2l_ext.toy.world import write_files

pytestmark = pytest.mark.slow

N = 4


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one with another tokenizer, six problems, and ``out`` of one whole run."""
    root = tmp_path_factory.mktemp("diversity")
    for seed, name in enumerate(("small", "large", "foreign")):
        build_model(SIZES["small"], seed).save_pretrained(root / name)
        build_tokenizer().save_pretrained(root / name)
    file = root / "foreign" / "tokenizer.json"
    words = json.loads(file.read_text())
    vocabulary = words["model"]["vocab"]
    first, second = list(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(words))
    write_files(root, 0, {"train": 2, "val": 6, "test": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2L_CACHE_DIR", str(root / "cache"))
        assert cli.main(sampling(root, "--json", "--gradient-problems", "2")) == 0
    return root


def sampling(root: Path, *more: str, models: str = "small,large") -> list[str]:
    """Words of a run that samples; the last of an option counts."""
    named = ",".join(f"{name}={root / name}" for name in models.split(","))
    words = ["diversity", "--models", named, "--data", str(root / "val.parquet"), "--out", str(root / "out")]
    return [*words, "--n", str(N), "--max-tokens", "8", "--engine", "transformers", *more]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2L_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def result(world: Path) -> dict[str, Any]:
    return json.loads((world / "out" / "diversity.json").read_text())


# ---- the whole run ------------------------------------------------------------------------------------------------


def test_models_and_the_learner_s_noise_are_sampled_on_the_same_problems(result) -> None:
    sets = result["sets"]
    assert {name: (v["role"], v["temperature"]) for name, v in sets.items()} == {
        "small": ("explorer", 1.0),
        "large": ("learner", 1.0),
        "large@1.5": ("token_noise", 1.5),
    }
    assert (result["learner"], result["n"], result["num_problems"], result["compared"]) == ("large", N, 6, N)
    assert len({values["fingerprint"]["data"] for values in sets.values()}) == 1
    assert sets["large"]["fingerprint"]["model"] == sets["large@1.5"]["fingerprint"]["model"]
    assert sets["large@1.5"]["entropy"]["value"] > sets["large"]["entropy"]["value"]
    assert sets["small"]["gradients"]["num_problems"] == 2


def test_numbers_are_those_of_the_samples(result) -> None:
    found = result["sets"]["small"]
    samples = list(read_samples(Path(found["samples"])))
    assert len(samples) == 6 * N
    assert found["pass_at_1"]["value"] == pytest.approx(np.mean([sample.correct for sample in samples]))
    assert found["mean_length"]["value"] == pytest.approx(np.mean([len(sample.token_ids) for sample in samples]))
    low, high = found["edit_diversity"]["ci95"]
    assert low <= found["edit_diversity"]["value"] <= high


def test_the_table_and_the_page_say_the_same(world: Path, result) -> None:
    lines = as_lines(result)
    value = result["sets"]["small"]["self_bleu"]["value"]
    assert any(line.startswith("| Self-BLEU") and f"{value:.3f} [" in line for line in lines[0].splitlines())
    assert "Temperature / top-p: small 1 / 1, large 1 / 1, large@1.5 1.5 / 1." in lines
    assert lines[-1] == result["recommendation"]["sentence"]
    page = (world / "out" / "diversity.html").read_text()
    assert page.count("<svg") == 6 and f"{value:.3f} [" in page and f"small, Self-BLEU: {value:.6g} (" in page
    assert "http" not in page and "<img" not in page


def test_a_second_run_draws_nothing_and_finds_the_same(world: Path, result, capsys, monkeypatch) -> None:
    from s2l_ext.evaluation import run

    monkeypatch.setattr(run, "open_engine", lambda *_: pytest.fail("sampled again"))
    assert cli.main(sampling(world, "--json", "--gradient-problems", "2")) == 0
    assert json.loads(capsys.readouterr().out) == result


def test_fewer_problems_leave_the_samples_of_others_out(world: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("s2l_ext.evaluation.run.open_engine", lambda *_: pytest.fail("sampled again"))
    shutil.copytree(world / "out" / "samples", tmp_path / "samples")
    words = sampling(world, "--limit", "3", "--n", "2", "--out", str(tmp_path), "--gradient-problems", "0", "--json")
    assert cli.main(words) == 0
    found = json.loads((tmp_path / "diversity.json").read_text())
    assert (found["num_problems"], found["n"]) == (3, 2)


def test_samples_of_an_earlier_larger_limit_may_be_fewer(world: Path, tmp_path: Path, monkeypatch) -> None:
    """Not of the three problems asked for, so that --n is more than they have."""
    monkeypatch.setattr("s2l_ext.evaluation.run.open_engine", lambda *_: pytest.fail("sampled again"))
    shutil.copytree(world / "out" / "samples", tmp_path / "samples")
    words = sampling(world, "--limit", "3", "--out", str(tmp_path), "--gradient-problems", "0", "--json")
    problems = json.loads((tmp_path / "samples" / "small.json").read_text())["problems"]
    kept = [row["prompt_id"] for row in problems[:3]]
    for path in (tmp_path / "samples").glob("*.jsonl"):
        header, *lines = path.read_text().splitlines(keepends=True)
        few = [line for line in lines if json.loads(line)["prompt_id"] in kept or json.loads(line)["index"] < 2]
        path.write_text("".join([header, *few]))
    assert cli.main(words) == 0
    found = json.loads((tmp_path / "diversity.json").read_text())
    assert (found["num_problems"], found["n"]) == (3, N)


def test_the_learner_may_be_any_model_and_explorers_sample_as_told(world: Path, monkeypatch) -> None:
    asked: dict[str, Any] = {}
    words = sampling(world, "--learner", "small", "--explorer-temperature", "0.7", "--explorer-top-p", "0.95")
    args_of(words, monkeypatch, asked)
    drawn = {name: (e.sampling.temperature, e.sampling.top_p) for name, e in asked["job"].evaluations.items()}
    assert drawn == {"small": (1.0, 1.0), "large": (0.7, 0.95), "small@1.5": (1.5, 1.0)}
    assert {e.sampling.n for e in asked["job"].evaluations.values()} == {N}
    args_of(sampling(world, "--high-temperature", "0", "--chat-option", "a=false", "--limit", "3"), monkeypatch, asked)
    assert [(e.chat_options, e.limit, e.engine) for e in asked["job"].evaluations.values()] == [
        ({"a": False}, 3, "transformers")
    ] * 2
    assert list(asked["job"].evaluations) == ["small", "large"]


def args_of(words: list[str], monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]) -> None:
    from s2l_ext.studies.diversity import job as diversity_command

    monkeypatch.setattr("s2l_ext.cli.diversity.main", lambda args: asked.update(job=diversity_command.job_of(args)))
    assert cli.main(words) == 0


def test_a_name_may_be_left_to_the_folder(world: Path, monkeypatch) -> None:
    asked: dict[str, Any] = {}
    words = sampling(world)
    words[2] = f"{world / 'small'},{world / 'large'}"
    args_of(words, monkeypatch, asked)
    assert asked["job"].models == {"small": str(world / "small"), "large": str(world / "large")}
    assert asked["job"].learner == "large"


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--n", "1"), ("--n 1", "at least 2")),
        (("--compared", "1"), ("--compared 1", "at least 2")),
        (("--compared", "9"), ("--compared 9", "2 to 4")),
        (("--gradient-problems", "-1"), ("--gradient-problems -1", "at least 0")),
        (("--gradient-problems", "0", "--gradient-parameters", "all"), ("no gradients", "Leave one out")),
        (("--coherence", "toi"), ("--coherence='toi' is not a choice", "toy")),
        (("--learner", "medium"), ("--learner medium", "small, large")),
        (("--models", "small={w}/small"), ("--models small", "at least one explorer")),
        (("--models", "a=x,a=y"), ("two models are named a",)),
        (("--models", "a b=x,c=y"), ("--models a b=x", "NAME=MODEL")),
        (("--models", "a=,c=y"), ("--models a=", "NAME=MODEL")),
        (("--models", "small={w}/small,large={w}/nothing"), ("--models large", "no such folder")),
        (("--high-temperature", "0.9"), ("--high-temperature 0.9", "--temperature 1.0")),
        (("--temperature", "0"), ("--temperature 0", "--n")),
        (("--explorer-top-p", "1.5"), ("--top-p 1.5",)),
        (("--data", "{w}/nothing.parquet"), ("nothing.parquet", "no such file")),
    ],
)
def test_arguments_that_cannot_be_are_refused(world: Path, capsys, more, words, monkeypatch) -> None:
    monkeypatch.setattr("s2l_ext.evaluation.run.open_engine", lambda *_: pytest.fail("sampled"))
    assert cli.main(sampling(world, *(word.format(w=world) for word in more))) == 2
    message = capsys.readouterr().err
    assert message.startswith("s2l: error: ") and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("given", "words"),
    [((), ("(none)", "at least one explorer")), (("--models", "a=x,b=y"), ("--data is missing", "--data FILE"))],
)
def test_what_is_missing_is_named(tmp_path, capsys, given, words) -> None:
    assert cli.main(["diversity", "--out", str(tmp_path), *given]) == 2
    message = capsys.readouterr().err
    assert message.startswith("s2l: error: ") and all(word in message for word in words), message
    assert not (tmp_path / "diversity.json").exists()


def test_somebody_elses_page_is_kept(world: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "diversity.html").write_text("mine")
    assert cli.main(sampling(world, "--out", str(tmp_path))) == 2
    assert "diversity.html: not made by s2l" in capsys.readouterr().err
    assert (tmp_path / "diversity.html").read_text() == "mine"


def test_a_missing_extra_is_named(world: Path, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(diversity_text, "find_spec", lambda module: None if module == "sacrebleu" else object())
    assert cli.main(sampling(world, "--out", str(tmp_path))) == 2
    message = capsys.readouterr().err
    assert "sacrebleu" in message and "pip install 's2l-ext[diversity]'" in message


def test_a_folder_that_cannot_be_written(world: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(sampling(world, "--out", str(tmp_path / "file" / "out"))) == 2
    assert "cannot be written" in capsys.readouterr().err


# ---- files --------------------------------------------------------------------------------------------------------


def write(path: Path, counts: dict[str, int], prompt: tuple[int, ...] = (1, 2), **fingerprint: Any) -> Path:
    header = {"model": "m", "data": "d", "temperature": 1.0, "top_p": 1.0, **fingerprint}
    with SampleFile(path, header) as file:
        for problem, count in counts.items():
            for i in reversed(range(count)):
                file.add(
                    Sample(problem, i, list(prompt), [3, 4 + i], f"a b c {i}", False, float(i == 0), i == 0, str(i))
                )
    return path


def test_samples_are_taken_in_the_order_of_their_index(tmp_path: Path) -> None:
    found = read_set("a", "b", write(tmp_path / "a", {"p": 3, "q": 4}), 2, ["p", "q"])
    assert [row.answer for row in found.rows["p"]] == ["0", "1"] and found.n == 2
    assert (found.prompts["q"], found.rows["q"][1].token_ids) == ([1, 2], [3, 5])


def test_problems_are_paired_though_files_order_them_otherwise(tmp_path: Path) -> None:
    first = read_set("a", "b", write(tmp_path / "a", {"p": 2, "q": 2}), 2, ["p", "q"])
    second = read_set("b", "b", write(tmp_path / "b", {"q": 2, "p": 2}), 2, ["q", "p"])
    found = measure([first, second], "b", {}, Settings(progress=False))
    # Equal samples: no pairing gives another difference than 0, a wrong one gives an interval that is not.
    verdict = found["recommendation"]["sentence"]
    assert "+0.000 [+0.000, +0.000]" in verdict
    assert found["sets"]["a"]["distinct_answers"]["value"] == 1.0
    assert found["sets"]["a"]["edit_diversity"]["value"] == 0.5


def test_a_response_without_tokens_is_refused(tmp_path: Path) -> None:
    with SampleFile(tmp_path / "a", {"temperature": 1.0}) as file:
        file.add(Sample("p", 0, [1], [], "", False, 0.0, False, None))
    with pytest.raises(DataError, match="sample 0 of problem p has no tokens"):
        read_set("a", "b", tmp_path / "a", 1, ["p"])


def test_models_of_another_tokenizer_are_refused(world: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("s2l_ext.evaluation.run.open_engine", lambda *_: pytest.fail("sampled"))
    assert cli.main(sampling(world, "--out", str(tmp_path), models="foreign,small")) == 2
    message = capsys.readouterr().err
    assert "--models small=" in message and "--models foreign=" in message and "do not share a tokenizer" in message


def test_one_problem_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 problem; .* at least 2"):
        measure([read_set("a", "a", write(tmp_path / "a", {"p": 2}), 2, ["p"])], "a", {}, Settings(progress=False))


def test_names_say_the_temperature() -> None:
    assert noise_name("large", 1.5) == "large@1.5"
    with pytest.raises(ConfigError, match="--compared 3: expected 2 to 2"):
        Settings(compared=3).compared_of(2)
