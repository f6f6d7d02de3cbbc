"""A checkpoint that did not fit on the disk: torch names neither the disk nor a fix."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from s2l_ext.errors import ResourceError
from s2l_ext.training.checkpoint_files import last_complete

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def disk_full_explained(run: Path, step: int) -> Iterator[None]:
    """Turn the failure of a write to a full disk into one message; other errors pass as they are.

    Raises:
        ResourceError: the disk that holds ``run`` has no room for the checkpoint of ``step``.
    """
    try:
        yield
    except Exception as error:
        free, wanted = shutil.disk_usage(run).free, _size_of_last(run)
        if not (_says_full(error) or free < wanted):
            raise
        raise ResourceError(
            f"the checkpoint of step {step} could not be written to {run}: {_mib(free)} are free on that disk"
            f"{f', the last one takes {_mib(wanted)}' if wanted else ''}. {_last(run)} Free space there "
            "(trainer.max_actor_ckpt_to_keep=2 keeps no more than are needed) and run the same command again."
        ) from error


def _says_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if "No space left on device" in str(error):
            return True
        error = getattr(error, "cause", None) or error.__cause__
    return False


def _last(run: Path) -> str:
    step = last_complete(run)
    return f"Step {step} is the last complete one." if step else "No checkpoint is complete yet."


def _size_of_last(run: Path) -> int:
    """Bytes of the last complete checkpoint; 0 where there is none."""
    folder = run / f"global_step_{last_complete(run)}"
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
