"""``chunk_size: auto``: tokens whose logits fill a tile, and what is done where no memory is known."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from s2l_ext.config.parse import parse_block
from s2l_ext.errors import ConfigError
from s2l_ext.methods.distill import chunk_size
from s2l_ext.methods.distill.config import DistillConfig, tile_tokens
from s2l_ext.methods.distill.divergences import divergence_from_hidden


@pytest.mark.parametrize(
    ("vocabulary", "size", "free", "tokens"),
    [
        (151_936, 4, None, 512),  # 320 MB / 0.608 MB = 526
        (151_936, 4, 80 * 10**9, 512),
        (151_936, 8, None, 256),
        (151_936, 4, 10**9, 128),  # half of 1 GB in five tiles: 100 MB
        (49_152, 4, None, 1600),
        (151_936, 4, 10**7, 1),
        (151_936, 4, 0, 1),
    ],
)
def test_a_chunk_fills_a_tile(vocabulary, size, free, tokens):
    assert tile_tokens(vocabulary, size, free) == tokens


@pytest.mark.parametrize(
    ("free", "tokens", "words"),
    [
        (None, 256, "the free memory of cpu is not known, so 256"),
        (8 * 10**9, 512, r"512 .*151936, 8\.0 GB"),
    ],
    ids=["unknown", "known"],
)
def test_what_was_chosen_is_logged(monkeypatch, caplog, free, tokens, words):
    monkeypatch.setattr(chunk_size, "free_memory", lambda device: free)
    with caplog.at_level(logging.INFO, chunk_size.__name__):
        assert chunk_size.automatic(151_936, torch.bfloat16, torch.device("cpu")) == tokens
    (record,) = caplog.records
    assert re.search(words, record.getMessage())


def test_free_memory_is_asked_of_the_device():
    assert chunk_size.free_memory(torch.device("cpu")) > 10**8
    assert chunk_size.free_memory(torch.device("meta")) is None


def test_the_loss_chooses_where_no_chunk_is_given(monkeypatch):
    asked = []
    monkeypatch.setattr("s2l_ext.methods.distill.chunked_lm_head.automatic", lambda *given: asked.append(given) or 2)
    hidden, weight = torch.randn(5, 3), torch.randn(7, 3)
    found = divergence_from_hidden(hidden, weight, hidden, weight)
    assert asked == [(7, torch.float32, torch.device("cpu"))] and found.value.shape == (5,)


@pytest.mark.parametrize(
    ("given", "words"),
    [("automatic", "must be a whole number, or auto"), (0, "out of range: it must be >= 1"), (1.5, "a whole number")],
)
def test_other_words_and_numbers_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        parse_block(DistillConfig, {"chunk_size": given}, "s2l.distill")


@pytest.mark.parametrize("given", ["auto", 64])
def test_auto_or_a_number(given):
    assert parse_block(DistillConfig, {"chunk_size": given}, "s2l.distill").chunk_size == given
    assert DistillConfig().chunk_size == "auto"
