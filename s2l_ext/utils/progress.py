"""One progress bar for a whole command: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass
from typing import TextIO

from tqdm import tqdm

PLAIN_SECONDS = 15.0
UNITS = 1000


@dataclass(frozen=True)
class Phase:
    """A stretch of the bar: ``share`` of its length, and how long it usually takes."""

    name: str
    share: float
    usual_seconds: float

    def guess(self, seconds: float) -> float:
        """Fraction done after ``seconds`` when nothing reports progress: moves always, never arrives."""
        return 1.0 - math.exp(-1.5 * seconds / self.usual_seconds)


class Progress:
    """Phases in order; ``update`` may be called often. The bar never goes back. ``phases``: their shares add up to 1.
    ``stream``: where to draw, stderr by default."""

    def __init__(self, phases: list[Phase], stream: TextIO | None = None) -> None:
        self.phases = {phase.name: phase for phase in phases}
        self.seconds: dict[str, float] = {}
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        layout = "{percentage:3.0f}% |{bar:24}| {elapsed} {desc}"
        # nrows: a pseudo-terminal that says it has 0 rows would otherwise hide the bar
        self._bar = tqdm(total=UNITS, file=self._stream, bar_format=layout, ncols=100, nrows=20, disable=not self._live)
        self._done = self._position = 0.0
        self._phase: Phase | None = None
        self._phase_started = self._last_plain = self._started = time.monotonic()

    def start(self, name: str, text: str = "") -> None:
        """End the phase before, begin the next."""
        self._end_phase()
        self._phase = self.phases[name]
        self._phase_started = time.monotonic()
        self._last_plain = 0.0
        self.update(0.0, text or name)

    def update(self, fraction: float | None, text: str) -> None:
        """``fraction`` of the running phase, or None to guess from the clock."""
        assert self._phase is not None
        if fraction is None:
            fraction = self._phase.guess(time.monotonic() - self._phase_started)
        self._position = max(self._position, self._done + self._phase.share * min(fraction, 1.0))
        self._show(text)

    def close(self, text: str, finished: bool = True) -> None:
        self._end_phase()
        self._position = 1.0 if finished else self._position
        self._last_plain = 0.0
        self._show(text)
        self._bar.close()

    def _end_phase(self) -> None:
        if self._phase is None:
            return
        self.seconds[self._phase.name] = time.monotonic() - self._phase_started
        self._done += self._phase.share
        self._phase = None

    def _columns(self) -> int:
        """Width of the terminal; 100 where it says 0, as a container's pseudo-terminal does."""
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 100
        except OSError:
            return 100

    def _show(self, text: str) -> None:
        if self._live:
            self._bar.n = round(self._position * UNITS)
            self._bar.ncols = self._columns()
            self._bar.set_description_str(text, refresh=False)
            self._bar.refresh()
        elif time.monotonic() - self._last_plain >= PLAIN_SECONDS or self._last_plain == 0.0:
            self._last_plain = time.monotonic()
            elapsed = int(self._last_plain - self._started)
            print(f"{self._position:4.0%} {elapsed // 60:02d}:{elapsed % 60:02d} {text}", file=self._stream, flush=True)
