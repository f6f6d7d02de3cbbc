"""What git says of this package's own clone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import s2l_ext
from s2l_ext.utils.digests import digest_of


def code_version() -> str:
    """The clone's commit, with a digest of what the package changed or added since; the version of an installed
    package."""
    added = git_of_clone("ls-files", "--others", "--exclude-standard", "--", "s2l_ext")
    changed = git_of_clone("diff", "HEAD", "--", "s2l_ext") + added
    commit = git_of_clone("rev-parse", "--short=12", "HEAD") or s2l_ext.__version__
    return f"{commit}+{digest_of(changed)[:8]}" if changed else commit


def git_of_clone(*words: str) -> str:
    """Output of ``git WORDS`` in the clone; "" for an installed package, wherever it lies, and where git fails."""
    clone = Path(s2l_ext.__file__).parents[1]
    if not (clone / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", str(clone), *words], capture_output=True, text=True)  # noqa: S607 - the user's
    return done.stdout.strip() if done.returncode == 0 else ""
