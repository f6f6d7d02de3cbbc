"""Tests run on the platform this machine has; verl reads the choice when it is first imported."""

import logging
import os

import pytest
import torch
from hypothesis import settings

from s2l_ext.platforms import CPU_ENVIRONMENT

if not torch.cuda.is_available():
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("any machine", deadline=None)  # a busy one takes longer for an example
settings.load_profile("any machine")


@pytest.fixture
def heard(caplog, monkeypatch):
    """``caplog`` for this package's log lines, whatever earlier tests did to logging: a trainer sends them where verl's
    go, and vLLM's logging set-up switches existing loggers off."""
    for name, logger in logging.Logger.manager.loggerDict.items():
        if name.split(".")[0] == "s2l_ext" and isinstance(logger, logging.Logger):
            monkeypatch.setattr(logger, "disabled", False)
            monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger="s2l_ext")
    return caplog
