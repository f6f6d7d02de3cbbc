"""Costs of verl's agent-loop worker for every session beside sampling, shared by many sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import hydra
import torch

MOST_SESSIONS = 64
"""In one put: the queue answers no other request meanwhile."""
GATHER_SECONDS = 0.05
"""How long a put waits for others: less than the interval at which verl's buffer looks for new rows."""

Row = Mapping[str, Any]


def construct(config: Mapping[str, Any], **arguments: Any) -> Any:
    """``hydra.utils.instantiate`` for an agent loop. A config with a class and nothing else needs no merging, because
    hydra passes the arguments on unchanged."""
    if set(config) != {"_target_"}:
        return hydra.utils.instantiate(config=config, **arguments)
    return _named(str(config["_target_"]))(**arguments)


@lru_cache
def _named(name: str) -> Any:
    return hydra.utils.get_object(name)


@dataclass(eq=False)
class _Put:
    keys: Sequence[str]
    rows: Sequence[Row]
    tags: Sequence[dict[str, Any]]
    partition_id: str
    form: frozenset[Any]
    written: asyncio.Future[None]


def _form(partition_id: str, rows: Sequence[Row]) -> frozenset[Any]:
    """Rows of one form may share a put: the same columns, tensors of one type and shape but for their length."""
    kinds = {(name, _kind(value)) for row in rows for name, value in row.items()}
    return frozenset({(None, partition_id), *kinds})


def _kind(value: Any) -> Any:
    return (value.dtype, value.shape[1:]) if isinstance(value, torch.Tensor) else None


def _batches(puts: Sequence[_Put]) -> Iterator[list[_Put]]:
    by_form: dict[frozenset[Any], list[_Put]] = {}
    for put in puts:
        by_form.setdefault(put.form, []).append(put)
    for same in by_form.values():
        for first in range(0, len(same), MOST_SESSIONS):
            yield same[first : first + MOST_SESSIONS]


class BatchedPuts:
    """TransferQueue (``queue``, the module) as verl's agent loop sees it. Rows of sessions that end at about the same
    time share a put, a batch that ``to_tensordict`` makes of a list.

    A put costs three requests to the queue's controller and one to its storage, whatever number of rows it has. Every
    caller waits until its own rows are written, as without batches: verl calls a prompt finished only after that.
    """

    def __init__(self, queue: Any, to_tensordict: Callable[[list[Row]], Any]) -> None:
        self._queue, self._to_tensordict = queue, to_tensordict
        self._waiting: list[_Put] = []
        self._writer: asyncio.Task[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    async def async_kv_batch_put(self, keys: Any, fields: Any, tags: Any, partition_id: str) -> None:
        """Returns once the rows are written. ``fields`` is a list of rows, each a dict by column."""
        written = asyncio.get_running_loop().create_future()
        put = _Put(keys, fields, tags, partition_id, _form(partition_id, fields), written)
        self._waiting.append(put)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())
        try:
            await asyncio.shield(put.written)
        except asyncio.CancelledError:
            await self._withdraw(put)
            raise

    async def _withdraw(self, put: _Put) -> None:
        """After a session's time limit none of its rows may be written, because verl clears the group then."""
        if put in self._waiting:
            self._waiting.remove(put)
        else:
            await asyncio.wait([put.written])

    async def _write_all(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_SECONDS)
            puts, self._waiting = self._waiting, []
            for batch in _batches(puts):
                if len(batch) == 1 or not await self._write(batch):
                    await asyncio.gather(*(self._write_one(put) for put in batch))

    async def _write(self, batch: Sequence[_Put]) -> bool:
        """Whether it succeeded; a fault of one session must not fail others in the same put."""
        try:
            await self._put(batch)
        except Exception:
            return False
        for put in batch:
            put.written.set_result(None)
        return True

    async def _write_one(self, put: _Put) -> None:
        try:
            await self._put([put])
        except Exception as error:
            put.written.set_exception(error)
        else:
            put.written.set_result(None)

    async def _put(self, batch: Sequence[_Put]) -> None:
        await self._queue.async_kv_batch_put(
            keys=[key for put in batch for key in put.keys],
            fields=self._to_tensordict([row for put in batch for row in put.rows]),
            tags=[tag for put in batch for tag in put.tags],
            partition_id=batch[0].partition_id,
        )
