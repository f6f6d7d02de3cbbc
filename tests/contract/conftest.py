"""Shared by the contract tests of a step: rows in a stand-in for the TransferQueue, and a trainer without workers."""

import functools
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu

from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import accuracy_settings, methods_of, parse_s2l
from s2l_ext.training.dropped_groups import DroppedGroups
from s2l_ext.training.pending_prompts import PendingPrompts
from s2l_ext.training.trainers_by_mode import S2LTrainer


@pytest.fixture(scope="session")
def composed() -> Callable[..., DictConfig]:
    """``compose_config`` that gives a copy of what it composed before."""
    once = functools.cache(lambda name, *overrides: pickle.dumps(compose_config(name, list(overrides))))
    return lambda name, *overrides: pickle.loads(once(name, *overrides))


class Queue:
    """Rows by key, each a dictionary of columns, read and written as the TransferQueue's batches are."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def batch(self, padding: tuple[str, ...] = ()) -> KVBatchMeta:
        """All rows, in the order in which they were put."""
        lengths = [len(row.get("response_mask", [])) for row in self.rows.values()]
        tags = [{"is_padding": key in padding, "response_len": n} for key, n in zip(self.rows, lengths, strict=True)]
        return KVBatchMeta(partition_id="train", keys=list(self.rows), tags=tags)

    def get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        assert partition_id == "train"
        names = [name for name in select_fields if name in self.rows[keys[0]]]
        return tu.get_tensordict({name: self._column([self.rows[key][name] for key in keys]) for name in names})

    @staticmethod
    def _column(values: list[Any]) -> Any:
        if isinstance(values[0], list):
            rows = [torch.tensor(value, dtype=torch.float32) for value in values]
            return torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        return values

    def put(self, keys: list[str], partition_id: str, fields: TensorDict) -> KVBatchMeta:
        assert partition_id == "train"
        for name in fields.keys():  # noqa: SIM118 - iterating a TensorDict gives its rows
            column = fields[name]
            values = [one.tolist() for one in column.unbind()] if torch.is_tensor(column) else list(column)
            for key, value in zip(keys, values, strict=True):
                self.rows[key][name] = value
        return KVBatchMeta(partition_id="train", keys=keys, tags=[{} for _ in keys], fields=list(fields.keys()))

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows.values()]


@pytest.fixture
def queue(monkeypatch) -> Queue:
    rows = Queue()
    monkeypatch.setattr(tq, "kv_batch_get", rows.get)
    monkeypatch.setattr(tq, "kv_batch_put", rows.put)
    return rows


@pytest.fixture(scope="session")
def method_of() -> Callable[[Any, str], Any]:
    """``method_of(trainer, block)``: the trainer's method of that block."""
    return lambda trainer, block: next(method for method in trainer.methods if method.block == block)


@pytest.fixture
def trainer_of(composed) -> Callable[..., Any]:
    """``trainer_of(recipe, *overrides)``: our synchronous trainer as it is before its first step, without workers."""

    def make(recipe: str, *overrides: str) -> Any:
        trainer = S2LTrainer.__new__(S2LTrainer)
        trainer.config = composed(recipe, *overrides)
        trainer.s2l = parse_s2l(trainer.config.s2l)
        trainer.methods = methods_of(trainer.s2l, trainer.config)
        trainer.needs_accuracy = bool(accuracy_settings(trainer.s2l, trainer.config))
        trainer.resumed, trainer.step_plans, trainer.method_logs = {}, {}, []
        trainer.watchdog = trainer.current = trainer.updated = None
        trainer.pending, trainer.global_steps, trainer.dropped_groups = PendingPrompts(), 1, DroppedGroups(trainer.s2l)
        return trainer

    return make


class Servers(SimpleNamespace):
    """An explorer's servers that write down what they are told."""

    def __init__(self, gpus: int, freed: int) -> None:
        super().__init__(num_gpus=gpus, freed=freed, steps=[], stopped=0)

    def set_step(self, step: int) -> None:
        self.steps.append(step)

    def stop(self) -> int:
        self.stopped += 1
        return self.freed


@pytest.fixture
def servers() -> type[Servers]:
    return Servers


@pytest.fixture
def prompts_drawn() -> Callable[..., TensorDict]:
    """What verl's loader gives for some uids."""
    return lambda *uids: tu.get_tensordict({"uid": np.array(uids, dtype=object)})
