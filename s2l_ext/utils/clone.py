"""What git says of this package's own clone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import s2l_ext


def git_of_clone(*words: str) -> str:
    """Output of ``git WORDS`` in the clone; "" for an installed package, wherever it lies, and where git fails."""
    clone = Path(s2l_ext.__file__).parents[1]
    if not (clone / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", str(clone), *words], capture_output=True, text=True)  # noqa: S607 - the user's
    return done.stdout.strip() if done.returncode == 0 else ""
