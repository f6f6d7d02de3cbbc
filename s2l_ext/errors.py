"""Errors a person can act on. Each carries one message only, so it survives pickling through Ray."""

from __future__ import annotations


class S2LError(Exception):
    """Anything this package refuses to do; the command line prints it without a traceback."""


class ConfigError(S2LError, ValueError):
    """A setting is unknown, of the wrong type, out of range, or impossible together with another."""


class DataError(S2LError, ValueError):
    """A data file cannot be used as it is."""


class TokenizerMismatch(ConfigError):
    """Two models that must share token sequences do not share a tokenizer."""


class ResourceError(S2LError, RuntimeError):
    """The machine or cluster has less than the configuration needs."""


class StateMismatch(S2LError, RuntimeError):
    """Saved controller state does not belong to this run."""
