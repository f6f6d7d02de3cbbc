"""Rows of a step that should be there and are not."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from s2l_ext.errors import S2LError
from s2l_ext.training.step import StepRows

logger = logging.getLogger(__name__)


def require_rows(
    rows: StepRows, planned: Mapping[str, range], who: str, cause: str, filtered: bool = False
) -> dict[str, float]:
    """Count sessions that failed; verl trains on a group without the rows of its failed sessions.

    Args:
        planned: numbers of the sessions that ``who`` was to sample, by prompt uid.
        filtered: verl may have dropped groups, so one without a row counts for nothing.

    Returns:
        ``s2l/<who>/missing_rows``.

    Raises:
        S2LError: there were such sessions and not one of their rows arrived.
    """
    arrived = {key[:2] for key in rows.keys}
    uids = {uid for uid, _ in arrived} if filtered else planned.keys()
    sessions = {(uid, number) for uid in uids for number in planned[uid]}
    wanted, missing = len(sessions), len(sessions - arrived)
    if wanted and missing == wanted:
        raise S2LError(
            f"none of the step's {wanted} {who} sessions gave a row: {cause}. The error is "
            "in the log above ('Error in _run_prompt'). Restart with the same command to resume from the checkpoint."
        )
    if missing:
        logger.warning("%d of %d %s rows are missing: their sessions failed", missing, wanted, who)
    return {f"s2l/{who}/missing_rows": float(missing)}
