"""Stages of kind ``explore``: a model's rollouts on some prompts, stored for stages that train on them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from s2l_ext.config.limits import limited
from s2l_ext.config.model_files import parameter_count
from s2l_ext.errors import ConfigError
from s2l_ext.pipeline.evaluate import sampling, sampling_words
from s2l_ext.pipeline.stage import S2L, Command, Kind, Place, Prepared
from s2l_ext.report.ledger import FORWARD
from s2l_ext.store.reader import is_store, read_manifest
from s2l_ext.store.stats import stats


@dataclass(frozen=True)
class ExploreOptions:
    """``n`` rollouts a prompt at ``temperature``; ``args`` are more words for ``s2l explore``."""

    n: int = limited(32, at_least=1)
    temperature: float = limited(0.7, at_least=0)
    args: list[Any] = field(default_factory=list)


class Explore(Kind):
    """``s2l explore``; an interrupted stage keeps every rollout that was graded."""

    options: type = ExploreOptions
    reproducible = False  # responses are stored as they finish

    def prepare(self, place: Place, options: ExploreOptions) -> Prepared:
        place.allow_inputs("model", "data")
        if not place.paths("data"):
            raise ConfigError(f"stage {place.stage.name}: give inputs.data, the prompts to sample answers for.")
        words = sampling_words(place, place.one("model"), str(place.run), options)
        return sampling(place, "explore", asdict(options), [Command((*S2L, "explore", *words))], words)

    def finished(self, place: Place, prepared: Prepared) -> bool:
        """The store says that its request was carried out."""
        del prepared
        return is_store(place.run) and read_manifest(place.run).complete

    def result(self, place: Place, prepared: Prepared) -> dict[str, Any]:
        del prepared
        said, size = stats(place.run), parameter_count(place.one("model"))
        tokens = said["prompt_tokens"] + said["response_tokens"]
        flops = None if size is None else float(FORWARD * size * tokens)
        return {"rollouts": said["responses"], "tokens": tokens, "flops": {"sampling": flops, "total": flops}}
