"""Around verl's advantages: which rows share a baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from s2l_ext.training.queue import put_values
from s2l_ext.training.step import Step


@contextmanager
def grouped_by_source(step: Step, changed: Collection[str] = ()) -> Iterator[None]:
    """verl reads ``uid`` from the queue and groups rows by it. Inside this block explorer and learner rows of a prompt
    have different uids. ``changed``: prompts whose rows of the two are not as many as the schedule says. Where that
    leaves a source with a single session, which would have no baseline, the prompt's rows stay one group."""
    keys, sources = step.rows.keys, step.rows.source_B
    uids = [key.uid for key in keys]
    sessions = {(key.uid, key.session, source) for key, source in zip(keys, sources, strict=True)}
    sessions_of = Counter((uid, source) for uid, _session, source in sessions)
    whole = {uid for (uid, _source), count in sessions_of.items() if count == 1 and uid in changed}
    groups = [uid if uid in whole else f"{uid}/{source}" for uid, source in zip(uids, sources, strict=True)]
    put_values(step.batch, "uid", groups, step.rows.names)
    try:
        yield
    finally:
        put_values(step.batch, "uid", uids, step.rows.names)
