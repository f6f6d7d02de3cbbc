"""Forward passes and per-rollout gradients against closed forms of a bigram softmax model, and of real tiny models."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from tqdm import tqdm

from s2l_ext.errors import ConfigError
from s2l_ext.evaluation.samples import Sample
from s2l_ext.studies.diversity import gradients as gradient_diagnostics
from s2l_ext.studies.diversity import tokens as diversity_tokens
from s2l_ext.studies.diversity.curves import Bootstrap
from s2l_ext.studies.diversity.gradients import (
    GradientReader,
    count_sketch,
    group_advantages,
    group_statistics,
    problem_statistics,
)
from s2l_ext.studies.diversity.models import Settings, measure_with_models
from s2l_ext.studies.diversity.sets import EXPLORER, LEARNER, NOISE, RowSet
from s2l_ext.studies.diversity.tokens import TokenModel
from s2l_ext.toy.models import SIZES, build_model
from s2l_ext.toy.tokenizer import build_tokenizer

V = 5


class Body(nn.Module):
    """The last hidden state of a token is its one-hot vector, so logits after token u are column u of the matrix."""

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(last_hidden_state=nn.functional.one_hot(input_ids, V).float())


class Bigram(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.base_model, self.scale = Body(), scale
        self.head = nn.Linear(V, V, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.arange(V * V).reshape(V, V) * 0.37 % 2)

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.scale * self.head(self.base_model(input_ids).last_hidden_state))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bigram(monkeypatch: pytest.MonkeyPatch) -> TokenModel:
    monkeypatch.setattr(diversity_tokens, "load_causal_model", lambda *_: Bigram())
    return TokenModel("bigram", Path("bigram"), on_cpu=True)


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def chances(temperature: float) -> np.ndarray:
    """(V, V): column u is the distribution after token u."""
    weight = np.exp((np.arange(V * V).reshape(V, V) * 0.37 % 2) / temperature)
    return weight / weight.sum(axis=0)


def score(model: TokenModel, rows, temperature: float) -> list[np.ndarray]:
    return model.score(rows, temperature, tqdm(disable=True))


# ---- forward passes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("chunk", [1, 100])
def test_log_probabilities_and_entropy_in_closed_form(bigram: TokenModel, temperature: float, chunk: int) -> None:
    bigram.chunk = chunk
    rows = [(ids(0, 1), ids(2, 3, 3)), (ids(4), ids(0))]
    first, second = score(bigram, rows, temperature)
    p = chances(temperature)
    assert first[0] == pytest.approx(np.log([p[2, 1], p[3, 2], p[3, 3]]), abs=1e-5)
    assert first[1] == pytest.approx([-(p[:, u] * np.log(p[:, u])).sum() for u in (1, 2, 3)], abs=1e-5)
    assert second[0] == pytest.approx(np.log([p[0, 4]]), abs=1e-5)
    assert float(bigram.log_prob(*rows[0], temperature)) == pytest.approx(first[0].sum(), abs=1e-5)


def test_a_real_model_batched_and_padded_gives_its_own_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity_tokens, "BATCH_TOKENS", 24)
    reference = build_model(SIZES["small"], 0)
    reference.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    rows = [
        (rng.integers(3, 90, size=p).astype(np.int32), rng.integers(3, 90, size=t)) for p, t in ((3, 9), (5, 2), (2, 5))
    ]
    model = TokenModel("m", tmp_path, on_cpu=True)
    for (prompt, response), found in zip(rows, score(model, rows, 0.7), strict=True):
        whole = torch.tensor(np.concatenate([prompt, response]))[None]
        logits = reference(input_ids=whole).logits[0, len(prompt) - 1 : -1].detach() / 0.7
        expected = logits.log_softmax(-1)[range(len(response)), response]
        assert found[0] == pytest.approx(expected.numpy(), abs=1e-4)


def test_a_model_that_changes_its_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity_tokens, "load_causal_model", lambda *_: Bigram(scale=2.0))
    with pytest.raises(ConfigError, match=r"--models capped=.*output matrix.*Leave the model out"):
        TokenModel("capped", Path("capped"), on_cpu=True)


# ---- gradients ----------------------------------------------------------------------------------------------------


def closed_form(prompt: np.ndarray, response: np.ndarray, temperature: float) -> np.ndarray:
    """Gradient by column u: sum over positions after u of (one-hot of the token - distribution), over T."""
    gradient, p = np.zeros((V, V)), chances(temperature)
    for before, token in zip([prompt[-1], *response[:-1]], response, strict=True):
        gradient[:, before] += (np.eye(V)[token] - p[:, before]) / temperature
    return gradient.flatten()


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_the_score_gradient_in_closed_form(bigram: TokenModel, temperature: float) -> None:
    bigram.chunk = 2
    reader = GradientReader(bigram, None, temperature)
    assert reader.describe() == {"parameters": "all", "count": 25, "sketch": None, "temperature": temperature}
    prompt, responses = ids(0, 1), [ids(2, 3, 3), ids(4), ids(2, 2)]
    expected = np.array([closed_form(prompt, response, temperature) for response in responses])
    assert reader.vector(prompt, responses[0]).numpy() == pytest.approx(expected[0], abs=1e-5)
    assert reader.products(prompt, responses) == pytest.approx(expected @ expected.T, abs=1e-4)


def test_statistics_of_a_group_in_closed_form(bigram: TokenModel) -> None:
    prompt, responses, scores = ids(1), [ids(2), ids(3), ids(2)], [1.0, 0.0, 1.0]
    p = chances(1.0)[:, 1]
    found = problem_statistics(GradientReader(bigram, "all", 1.0).products(prompt, responses), scores)
    g = np.array([np.eye(V)[token] - p for token in (2, 3, 2)])
    assert found["score"]["gradient_norm"] == pytest.approx(math.sqrt((g**2).sum() / 3), rel=1e-4)
    assert found["score"]["mean_gradient_norm"] == pytest.approx(float(np.linalg.norm(g.mean(axis=0))), rel=1e-4)
    weighted = np.array([1 / 3, -2 / 3, 1 / 3])[:, None] / math.sqrt(1 / 3) * g
    trace = weighted.var(axis=0, ddof=1).sum()
    assert found["advantage"]["relative_variance"] == pytest.approx(trace * 3 / (weighted**2).sum(), rel=1e-4)
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in ((weighted[0], weighted[1]), (weighted[0], weighted[2]))
    ]
    assert found["advantage"]["cosine"] == pytest.approx((2 * cosines[0] + cosines[1]) / 3, rel=1e-4)
    assert cosines[1] == pytest.approx(1.0)


def test_advantages_are_grpo_s() -> None:
    assert group_advantages([1, 0, 0, 1]) == pytest.approx(np.array([1, -1, -1, 1]) * 0.5 / math.sqrt(1 / 3), abs=1e-5)


@pytest.mark.parametrize(
    ("vectors", "variance", "cosine", "mean"),
    [
        ([[1, 0], [0, 1]], 1.0, 0.0, math.sqrt(0.5)),
        ([[2, 0], [2, 0], [2, 0]], 0.0, 1.0, 2.0),
        ([[1, 0], [-1, 0]], 2.0, -1.0, 0.0),
        ([[1, 0], [0, 0], [1, 0]], 0.5, 1.0, 2 / 3),
    ],
)
def test_group_statistics_by_hand(vectors, variance: float, cosine: float, mean: float) -> None:
    g = np.array(vectors, dtype=float)
    found = group_statistics(g @ g.T)
    assert found["relative_variance"] == pytest.approx(variance)
    assert found["cosine"] == pytest.approx(cosine)
    assert found["mean_gradient_norm"] == pytest.approx(mean)


def test_a_group_without_advantage_has_no_direction() -> None:
    for score in (1.0, 0.1):  # the mean of three 0.1 is not 0.1
        found = problem_statistics(np.eye(3), [score] * 3)
        assert all(math.isnan(value) for value in found["advantage"].values())
        assert found["score"]["relative_variance"] == pytest.approx(1.0)


@given(st.integers(0, 1000), st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_statistics_are_those_of_the_vectors(seed: int, size: int) -> None:
    g = np.random.default_rng(seed).normal(size=(size, 7))
    found = group_statistics(g @ g.T)
    norms = np.linalg.norm(g, axis=1)
    assert found["relative_variance"] == pytest.approx(g.var(axis=0, ddof=1).sum() / (norms**2).mean())
    assert found["mean_gradient_norm"] == pytest.approx(np.linalg.norm(g.mean(axis=0)))
    pairs = [g[i] @ g[j] / norms[i] / norms[j] for i in range(size) for j in range(i)]
    assert found["cosine"] == pytest.approx(np.mean(pairs))


def test_a_sketch_keeps_products() -> None:
    rng = torch.Generator().manual_seed(3)
    parts = [torch.randn(2, 30_000, generator=rng), torch.randn(2, 20_000, generator=rng)]
    parts = [torch.stack([part[0], 0.6 * part[0] + 0.8 * part[1]]) for part in parts]
    one, two = (count_sketch([part[row] for part in parts], 20_000) for row in (0, 1))
    assert float(one @ two / one.norm() / two.norm()) == pytest.approx(0.6, abs=0.03)
    assert torch.equal(one, count_sketch([part[0] for part in parts], 20_000))
    assert count_sketch([torch.tensor([3.0])], 10).norm() == 3.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("small", "large")):
        build_model(SIZES["small"], seed).save_pretrained(root / name)
        build_tokenizer().save_pretrained(root / name)
    return {name: root / name for name in ("small", "large")}


def test_large_models_take_the_last_block_and_sketch_it(folders, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ids(5, 6), [ids(7, 8, 9), ids(9, 9), ids(4)]
    exact = GradientReader(TokenModel("m", folders["large"], True), "last_layer", 1.0)
    assert exact.describe()["parameters"] == "last_layer"
    assert exact.count == sum(p.numel() for p in exact.model.body.layers[-1].parameters())
    whole = GradientReader(TokenModel("m", folders["large"], True), "all", 1.0)
    assert exact.vector(*rows[0:1], rows[1][0]).numel() == exact.count < whole.count
    expected = exact.products(*rows)
    monkeypatch.setattr(gradient_diagnostics, "ALL_UP_TO", 100)
    monkeypatch.setattr(gradient_diagnostics, "SKETCH_ABOVE", 100)
    sketched = GradientReader(TokenModel("m", folders["large"], True), None, 1.0)
    assert sketched.describe()["parameters"] == "last_layer"
    assert sketched.describe()["sketch"] == gradient_diagnostics.SKETCH_SIZE
    scale = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    assert sketched.products(*rows) / scale == pytest.approx(expected / scale, abs=0.02)


def test_a_model_without_blocks_needs_all_parameters(bigram: TokenModel) -> None:
    with pytest.raises(ConfigError, match=r"--gradient-parameters last_layer: Body .*--gradient-parameters all"):
        GradientReader(bigram, "last_layer", 1.0)


# ---- sets ---------------------------------------------------------------------------------------------------------


def drawn(name: str, role: str, temperature: float, seed: int) -> RowSet:
    rng = np.random.default_rng(seed)
    prompts = {problem: ids(5, 6, 7) for problem in "abc"}
    rows = {
        problem: [
            Sample(problem, i, [], list(rng.integers(3, 90, size=6)), "", False, i % 2, i % 2 > 0, None)
            for i in range(4)
        ]
        for problem in "abc"
    }
    return RowSet(name, name.partition("@")[0], role, Path(name), {"temperature": temperature}, prompts, rows)


@pytest.mark.slow
def test_sets_are_measured_with_their_models(folders) -> None:
    sets = [drawn("small", EXPLORER, 1.0, 0), drawn("large", LEARNER, 1.0, 1), drawn("large@1.5", NOISE, 1.5, 2)]
    chosen = Settings(gradient_problems=2, progress=False)
    found, parameters = measure_with_models(sets, folders, "large", chosen, Bootstrap(3))
    assert parameters is not None and parameters["parameters"] == "all"
    assert "kl_to_learner" not in found["large"]
    model = {name: TokenModel(name, folder, True) for name, folder in folders.items()}
    rows = sets[0].every_row
    mine, its = score(model["small"], rows, 1.0), score(model["large"], rows, 1.0)
    expected = np.concatenate([a[0] - b[0] for a, b in zip(mine, its, strict=True)])
    assert found["small"]["kl_to_learner"]["value"] == pytest.approx(expected.mean(), abs=1e-5)
    assert found["small"]["entropy"]["value"] == pytest.approx(np.concatenate([a[1] for a in mine]).mean(), rel=1e-5)
    by_position = found["small"]["entropy_by_position"]
    assert by_position["starts"] == [1, 2, 3, 4, 6]
    assert by_position["values"][3] == pytest.approx(np.mean([a[1][3:5].mean() for a in mine]), rel=1e-5)
    assert found["large@1.5"]["entropy"]["value"] > found["large"]["entropy"]["value"]
    assert found["small"]["autocorrelation"]["values"][5:] == [None] * 15  # rows have 6 tokens
    gradients = found["small"]["gradients"]
    assert (gradients["num_problems"], gradients["num_with_signal"]) == (2, 2)
    assert gradients["score"]["gradient_norm"]["value"] > 0


def test_an_explorer_that_is_the_learner_differs_in_nothing(folders) -> None:
    sets = [drawn("same", EXPLORER, 1.0, 0), drawn("large", LEARNER, 1.0, 1)]
    chosen = Settings(gradient_problems=0, progress=False)
    same = {"same": folders["large"], "large": folders["large"]}
    found, parameters = measure_with_models(sets, same, "large", chosen, Bootstrap(3))
    assert parameters is None and "gradients" not in found["same"]
    assert found["same"]["kl_to_learner"]["value"] == 0.0
    assert found["same"]["autocorrelation"]["values"] == [None] * 20
    assert found["same"]["autocorrelation_excess"] == {"value": None, "ci95": None}
