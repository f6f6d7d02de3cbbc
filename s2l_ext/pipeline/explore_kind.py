"""Stages of kind ``explore``: a model's rollouts on some prompts, stored for stages that train on them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from s2l_ext.config.limits import limited
from s2l_ext.errors import ConfigError
from s2l_ext.pipeline.accounting import sampling_result
from s2l_ext.pipeline.eval_words import EXPLORATION, understand
from s2l_ext.pipeline.kinds import Command, Place, Prepared, allow_inputs, relative
from s2l_ext.pipeline.other_kinds import S2L, Keeps
from s2l_ext.store.reader import is_store, read_manifest
from s2l_ext.store.stats import stats


@dataclass(frozen=True)
class ExploreOptions:
    """``n`` rollouts a prompt at ``temperature``; ``args`` are more words for ``s2l explore``."""

    n: int = limited(32, at_least=1)
    temperature: float = limited(0.7, at_least=0)
    args: list[Any] = field(default_factory=list)


class Explore(Keeps):
    """``s2l explore``; an interrupted stage keeps every rollout that was graded."""

    options: type = ExploreOptions
    reproducible = False  # responses are stored as they finish

    def prepare(self, place: Place, options: ExploreOptions) -> Prepared:
        allow_inputs(place, {"model": "", "data": ""})
        files = [path for _, path in place.inputs().get("data", [])]
        if not files:
            raise ConfigError(f"stage {place.stage.name}: give inputs.data, the prompts to sample answers for.")
        words = [*("--model", place.one("model")), *(word for file in files for word in ("--data", file))]
        words += ["--out", str(place.run), "--n", str(options.n), "--temperature", f"{options.temperature:g}"]
        words += [str(word) for word in options.args]
        asked = understand(place.stage.name, words, EXPLORATION, "s2l explore")
        return Prepared(
            [Command((*S2L, "explore", *words))],
            settings={**asdict(options), "data": [relative(place.pipeline, file) for file in files]},
            files=asked.files,
            accounting={"accelerators": asked.accelerators, "model": place.one("model")},
        )

    def finished(self, place: Place, prepared: Prepared) -> bool:
        """The store says that its request was carried out."""
        del prepared
        return is_store(place.run) and read_manifest(place.run).complete

    def result(self, place: Place, prepared: Prepared) -> dict[str, Any]:
        said = stats(place.run)
        tokens = said["prompt_tokens"] + said["response_tokens"]
        return {"rollouts": said["responses"], **sampling_result(tokens, prepared.accounting["model"])}
