"""An engine without a model, and `s2l explore` with it: what tests run, kill and run again.

As a program, `python explore_stand_in.py MODEL DATA OUT N`: for each line on stdin a new process explores, with shards
of 7 responses. Its process id and, when it ended, its exit status are written to stdout. The imports, most of the time
that a start takes, are done once.
"""

from __future__ import annotations

import functools
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from s2l_ext.evaluation.engines import Request, Response, Sampling
from s2l_ext.evaluation.model_folder import open_model
from s2l_ext.explore import run
from s2l_ext.explore.run import Exploration
from s2l_ext.store.writer import StoreWriter
from s2l_ext.toy.tokenizer import EOS_ID, encode

SHARD_ROWS = 7


def response_to(request: Request) -> Response:
    """What the stand-in draws: all from the request's seed, so that two runs can be compared."""
    draw = random.Random(request.seed)
    ids = [*encode(f"\\boxed{{{draw.randrange(10)}}}"), EOS_ID]
    return Response(request, ids, False, [-draw.random() for _ in ids])


class StandIn:
    """Answers three requests a step, in mixed order, each step after ``pause_s``; notes what it was asked."""

    def __init__(self, pause_s: float = 0.0, stop_after: int | None = None) -> None:
        self.pause_s, self.stop_after = pause_s, stop_after
        self.asked: list[tuple[str, int]] = []

    def open(self, *setup: Any) -> StandIn:
        return self

    def draw(self, requests: Iterable[Request]) -> Iterator[list[Response]]:
        waiting = list(requests)
        random.Random(len(waiting)).shuffle(waiting)
        while waiting:
            some, waiting = waiting[:3], waiting[3:]
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            time.sleep(self.pause_s)
            self.asked += [(request.prompt_id, request.index) for request in some]
            yield [response_to(request) for request in some]

    def close(self) -> None:
        pass


def main(model: str, data: str, out: str, n: str) -> None:
    run.StoreWriter = functools.partial(StoreWriter, shard_rows=SHARD_ROWS)  # type: ignore[misc,assignment]
    sampling = Sampling(n=int(n), temperature=0.7, max_tokens=32)
    job = Exploration(model=model, data=(Path(data),), out=Path(out), sampling=sampling)
    run.explore(job, progress=False, open_engines=StandIn(pause_s=0.03).open)


def serve(model: str, *rest: str) -> None:
    open_model(model)
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            main(model, *rest)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
