"""Short supervised pre-training: first the skill, then a stretch in which the model is often hasty.

The skill is one step of reasoning per operation. In the second stretch only a share of the answers reasons; the rest
are bare right answers, which no tiny model can compute, so it learns to guess. Reinforcement learning then has
something to find: the careful mode, which the model knows and seldom uses.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from s2l_ext.errors import DataError
from s2l_ext.toy.models import build_model, get_size
from s2l_ext.toy.tasks import Problem, get_tier, stream
from s2l_ext.toy.tokenizer import PAD_ID, prompt_ids, response_ids

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import Qwen3ForCausalLM

LOSS_MEMORY = 0.9
POOL_BATCHES = 4


@dataclass(frozen=True)
class PretrainConfig:
    """Everything besides size and seed that determines the weights.

    ``tier_shares`` are pairs of a tier and its share of the examples. In the first stretch all answers are careful; it
    ends once the running loss is below ``skill_loss`` (nats per response token), at most after ``skill_steps``. In the
    second, of ``mode_steps``, ``careful_share`` are, and the learning rates fall to a tenth. ``lr`` is AdamW's, on
    embeddings and norms; Muon on the weight matrices uses ``muon_factor`` times as much.
    """

    tier_shares: tuple[tuple[int, float], ...]
    careful_share: float
    lr: float
    batch_size: int = 32
    skill_steps: int = 400
    mode_steps: int = 60
    skill_loss: float = 0.02
    muon_factor: float = 5.0
    warmup_steps: int = 30
    max_grad_norm: float = 1.0


DEFAULTS: dict[str, PretrainConfig] = {
    "small": PretrainConfig(((0, 0.60), (1, 0.10), (2, 0.10), (3, 0.20)), 0.50, 4e-3, batch_size=48, skill_steps=500),
    "medium": PretrainConfig(((0, 0.91), (1, 0.04), (2, 0.01), (3, 0.04)), 0.35, 3e-3),
    "large": PretrainConfig(((0, 0.60), (1, 0.15), (2, 0.10), (3, 0.15)), 0.90, 2e-3),
}
NATURAL = PretrainConfig(((0, 0.70), (1, 0.12), (2, 0.06), (3, 0.12)), 0.40, 3e-3, batch_size=48, skill_steps=800)
"""Of every size of the natural family: the same problems, mixture, learning rate and loss to reach."""
FAMILIES = ("made", "natural")


def config_of(size: str, family: str) -> PretrainConfig:
    """Of a size that :func:`s2l_ext.toy.models.get_size` knows. Raises DataError for a family that does not exist."""
    if family not in FAMILIES:
        raise DataError(f"family={family!r}: there is no such toy family. Choose one of {', '.join(FAMILIES)}.")
    return DEFAULTS[size] if family == "made" else NATURAL


@dataclass(frozen=True)
class PretrainingResult:
    """The model and how its training went; losses are running means in nats per response token."""

    model: Qwen3ForCausalLM
    skill_steps: int
    skill_loss: float
    mode_loss: float


def pretrain(size: str, config: PretrainConfig, seed: int, progress: bool = True) -> PretrainingResult:
    """Train a fresh model of the named size on one thread; the same weights for the same arguments.

    One thread, because two wait for each other in every one of the many small operations, which on a busy machine
    costs more than the second core gains, and because the sums then do not depend on the number of cores.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _Run(size, config, seed).train(progress)
    finally:
        torch.set_num_threads(threads)


class _Run:
    def __init__(self, size: str, config: PretrainConfig, seed: int) -> None:
        self.config, self.size = config, size
        self.model = build_model(get_size(size), seed)
        self.optimizers = _optimizers(self.model, config)
        self.base_rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.rng = random.Random(f"{seed}/{size}")
        self.batches = similar_lengths(self.rng, mixture(self.rng, config.tier_shares), config.batch_size)

    def train(self, progress: bool) -> PretrainingResult:
        config = self.config
        self.model.train()
        with tqdm(total=config.skill_steps + config.mode_steps, disable=not progress, unit="step") as bar:
            warm_up = ((1.0, min(1.0, step / config.warmup_steps)) for step in range(1, config.skill_steps + 1))
            steps, skill_loss = self._learn("skill", warm_up, bar, enough=config.skill_loss)
            bar.total = bar.n + config.mode_steps
            decay = (1.0 - 0.9 * step / config.mode_steps for step in range(1, config.mode_steps + 1))
            _, mode_loss = self._learn("modes", ((config.careful_share, rate) for rate in decay), bar)
        self.model.eval()
        return PretrainingResult(self.model, steps, skill_loss, mode_loss)

    def _learn(
        self, name: str, plan: Iterator[tuple[float, float]], bar: tqdm[Any], enough: float = 0.0
    ) -> tuple[int, float]:
        """One stretch; its steps and running loss, which ends it early below ``enough``. ``plan`` gives each step's
        share of careful answers and factor of the learning rates.
        """
        bar.set_description(f"pre-training {self.size}: {name}")
        step, running = 0, float("nan")
        for step, (careful_share, rate) in enumerate(plan, start=1):
            loss = self._step(careful_share, rate)
            running = loss if step == 1 else LOSS_MEMORY * running + (1 - LOSS_MEMORY) * loss
            bar.update()
            bar.set_postfix(loss=f"{running:.3f}")
            if running < enough:
                break
        return step, running

    def _step(self, careful_share: float, rate: float) -> float:
        import torch

        for optimizer, base in zip(self.optimizers, self.base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = base * rate
        loss = response_loss(self.model, *make_batch(next(self.batches), self.rng, careful_share))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.item())


def mixture(rng: random.Random, tier_shares: tuple[tuple[int, float], ...]) -> Iterator[Problem]:
    """Problems of the train split without end, each from a tier drawn by its share."""
    streams = [stream(rng, get_tier(tier), "train") for tier, _ in tier_shares]
    weights = [share for _, share in tier_shares]
    while True:
        yield next(rng.choices(streams, weights)[0])


def similar_lengths(rng: random.Random, problems: Iterator[Problem], batch_size: int) -> Iterator[list[Problem]]:
    """Batches of problems of about the same length, so that little is padded, in random order."""
    while True:
        pool = sorted(islice(problems, POOL_BATCHES * batch_size), key=lambda problem: len(problem.question))
        starts = list(range(0, len(pool), batch_size))
        rng.shuffle(starts)
        yield from (pool[start : start + batch_size] for start in starts)


def make_batch(problems: Sequence[Problem], rng: random.Random, careful_share: float) -> tuple[Tensor, Tensor]:
    """Token ids (B, T), padded on the right, and a mask (B, T) that is True on response tokens."""
    import torch

    rows = []
    for problem in problems:
        reasoning = ",".join(problem.steps) if rng.random() < careful_share else ""
        rows.append((prompt_ids(problem.question), response_ids(reasoning, problem.answer)))
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.tensor([_pad(prompt + answer, width, PAD_ID) for prompt, answer in rows])
    mask = torch.tensor([_pad([0] * len(prompt) + [1] * len(answer), width, 0) for prompt, answer in rows])
    return ids, mask.bool()


def _pad(values: list[int], width: int, value: int) -> list[int]:
    return values + [value] * (width - len(values))


def response_loss(model: Qwen3ForCausalLM, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy over response tokens. Padding is on the right, so causal attention needs no mask for it."""
    from torch.nn.functional import cross_entropy

    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    targets = mask[:, 1:]
    return cross_entropy(model.lm_head(hidden[targets]), ids[:, 1:][targets])


def _optimizers(model: Qwen3ForCausalLM, config: PretrainConfig) -> list[Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest: about half the steps AdamW alone takes."""
    from torch.optim import AdamW, Muon

    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        Muon(matrices, lr=config.muon_factor * config.lr, weight_decay=0.0),
        AdamW(others, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
