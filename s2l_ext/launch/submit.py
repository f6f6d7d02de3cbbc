"""A job of a running Ray cluster, through Ray's own job server: sent, followed to its end, stopped."""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.launch.cluster import AUTHENTICATE, lacks_token
from s2l_ext.utils.ray_cluster import require_answering

STOPPED, INTERRUPTED = 3, 130
SIGNAL_BASE = 128
RECONNECT_SECONDS, RECONNECT_TRIES = 5.0, 12
STOP_SECONDS = 60.0
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


class JobServer:
    """Ray's job server at an address. Raises ConfigError: an address of another form. Raises ResourceError: nothing, or
    no job server, answers there; so does every method."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--address {address}: give the job server's URL, http://HOST:8265 (Ray's dashboard).")
        fix = "Start the cluster's head with its dashboard (ray start --head), or give --address http://HOST:8265."
        require_answering(address, "the cluster's job server", fix)
        self.address = address
        self._client = self._ask(JobSubmissionClient, address)

    def _ask(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the job client; its many kinds of failure become one."""
        try:
            return call(*args, **kwargs)
        except (requests.RequestException, ConnectionError, KeyError) as error:
            raise ResourceError(f"{self.address} does not answer as a Ray job server ({_one_line(error)}).") from error
        except (RayError, RuntimeError, ValueError) as error:
            reason = AUTHENTICATE if lacks_token(error) else _one_line(error)
            raise ResourceError(f"the job server at {self.address} refuses: {reason}") from error

    def _info(self, job: str) -> Any:
        return self._ask(self._client.get_job_info, job)

    def send(self, words: Sequence[str], environment: Mapping[str, Any]) -> str:
        """Submit an ``s2l`` command, which runs with the Python of the job's environment; returns the job's name."""
        entrypoint = shlex.join(["python", "-m", "s2l_ext.cli", *words])
        return str(self._ask(self._client.submit_job, entrypoint=entrypoint, runtime_env=environment))

    def stop(self, job: str) -> int:
        """Stop a job and wait until it has ended; 0 also if it had ended before."""
        if not self._ask(self._client.stop_job, job):
            print(f"s2l submit: job {job} had ended before: {self._info(job).status.value}")
            return 0
        deadline = time.monotonic() + STOP_SECONDS
        while (status := self._info(job).status.value) not in TERMINAL:
            if time.monotonic() > deadline:
                raise ResourceError(f"job {job} still runs {STOP_SECONDS:.0f} s after it was asked to stop: {status}")
            time.sleep(1.0)
        print(f"s2l submit: job {job}: {status}")
        return 0

    def follow(self, job: str) -> int:
        """Print the job's log until it ends; returns its exit code. Ctrl-C leaves the job running."""
        try:
            self._print_log(job)
            return exit_code(self._info(job))
        except KeyboardInterrupt:
            print(
                f"\ns2l submit: job {job} continues. Its log: ray job logs --address {self.address} --follow {job}   "
                f"Stop it: s2l submit --address {self.address} --stop {job}",
                file=sys.stderr,
            )
            return INTERRUPTED

    def _print_log(self, job: str) -> None:
        """Survives a connection that breaks: the log is sent from its start again, what was printed is skipped."""
        printed = failures = 0

        async def show() -> None:
            nonlocal printed
            seen = 0
            async for chunk in self._client.tail_job_logs(job):
                new = chunk[max(0, printed - seen) :]
                seen += len(chunk)
                print(new, end="", flush=True)
                printed += len(new)

        while True:
            before = printed
            try:
                asyncio.run(show())
                if self._info(job).status.value in TERMINAL:
                    return
                reason = "the connection was closed"
            except (aiohttp.ClientError, RuntimeError, OSError, ResourceError) as error:
                reason = _one_line(error)
            failures = 1 if printed > before else failures + 1
            if failures > RECONNECT_TRIES:
                raise ResourceError(
                    f"lost job {job} at {self.address} ({reason}); it may still run there: ray job status {job}"
                )
            time.sleep(RECONNECT_SECONDS)


def exit_code(info: Any) -> int:
    """0 for a job that succeeded, 3 for a stopped one, else the job's own exit code, or 1 where Ray knows none."""
    status, own = str(info.status.value), info.driver_exit_code
    if status == "SUCCEEDED":
        return 0
    if info.message:
        reason = info.message.strip().partition(", last available logs")[0]  # which were followed
        print(f"s2l submit: {status}: {reason}", file=sys.stderr)
    if status == "STOPPED":
        return STOPPED
    return SIGNAL_BASE - own if own and own < 0 else own or 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
