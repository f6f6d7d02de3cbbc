"""Tests run on the platform this machine has; verl reads the choice when it is first imported."""

import os

import torch

from s2l_ext.platform import CPU_ENVIRONMENT

if not torch.cuda.is_available():
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
