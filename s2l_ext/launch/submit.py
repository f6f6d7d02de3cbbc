"""``s2l submit``: any ``s2l`` command as a job of a running Ray cluster, through Ray's own job server.

What does not hang on the cluster is checked here first: the recipe composes, its settings agree, what it names by a
relative path goes along, and no secret does. Models, data and accelerators are looked at where the job runs.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from s2l_ext.errors import ConfigError, ResourceError

FAILED, STOPPED, INTERRUPTED = 1, 3, 130
SIGNAL_BASE = 128
RECONNECT_SECONDS, RECONNECT_TRIES = 5.0, 12
STOP_SECONDS = 60.0
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


# ---- what is sent ---------------------------------------------------------------------------------------------------


def runtime_env(
    path: Path | None, working_dir: Path | None, names: Sequence[str], shell: Mapping[str, str]
) -> dict[str, Any]:
    """Ray's runtime environment from its file, a working folder and named variables; nothing else of the shell.

    Raises:
        ConfigError: an unreadable file, a folder that does not exist, a variable that is not set, given twice or
            secret.
    """
    environment = _read(path) if path else {}
    _refuse_secrets(environment, f"--runtime-env {path}: ")
    if working_dir is not None:
        if "working_dir" in environment:
            raise ConfigError(f"--working-dir {working_dir}: {path} has a working_dir too. Leave one of them out.")
        if not working_dir.is_dir():
            raise ConfigError(f"--working-dir {working_dir}: no such folder.")
        environment["working_dir"] = str(working_dir)
    variables = environment.get("env_vars") or {}
    for name in names:
        if name in variables:
            raise ConfigError(f"--env {name}: {path} sets it too, or it is given twice. Leave one of them out.")
        variables[name] = _value(name, shell)
    return {**environment, "env_vars": variables} if variables else environment


def _value(name: str, shell: Mapping[str, str]) -> str:
    named, _, given = name.partition("=")
    _refuse_secrets({"env_vars": {named: given or shell.get(named) or "not set"}}, "--env ")
    if "=" in name:
        raise ConfigError(
            f"--env {named}=...: give the name alone; the value is the shell's, so that it stands in no command line. "
            "A value of the job's own can stand in the file of --runtime-env."
        )
    if name not in shell:
        raise ConfigError(f"--env {name}: not set in this shell. Run `export {name}=...` first.")
    return shell[name]


def _refuse_secrets(environment: Mapping[str, Any], where: str) -> None:
    """Ray shows a runtime environment on its dashboard and writes it to its logs."""
    from s2l_ext.utils.secrets import secret_setting, secret_variable

    variables = environment.get("env_vars") or {}
    named = next((name for name, value in variables.items() if secret_variable(str(name), str(value or ""))), None)
    other = secret_setting({key: value for key, value in environment.items() if key != "env_vars"})
    if named or other:
        raise ConfigError(
            f"{where}{named or other} holds what looks like a secret: a job's runtime environment stands on Ray's "
            "dashboard and in its logs. Take it out, and set it where the nodes' Ray starts, which hands its own "
            f"environment on to the job: `export {named or 'NAME'}=...` before `ray start` or sbatch, a secretKeyRef "
            "with KubeRay (examples/ray_submit)."
        )


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--runtime-env {path}: cannot be read ({_one_line(error)}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("env_vars") or {}, dict):
        raise ConfigError(
            f"--runtime-env {path}: must be a mapping such as `working_dir: .`, and env_vars in it a mapping of names."
        )
    for name, value in (content.get("env_vars") or {}).items():
        if not isinstance(value, str):
            raise ConfigError(f"--runtime-env {path}: env_vars.{name} is no text, as Ray wants it. Put it in quotes.")
    return content


def check_recipe(
    name: str, overrides: Sequence[str], folders: Sequence[Path], environment: Mapping[str, Any]
) -> list[str]:
    """Warnings about a training run that is to be sent with a runtime environment.

    Raises:
        ConfigError: a recipe that does not compose or contradicts itself, a secret in it, or a file that stays here.
    """
    from omegaconf import OmegaConf

    from s2l_ext.launch.cluster import refuse_own_sizes
    from s2l_ext.launch.compose import compose_config
    from s2l_ext.launch.job_files import left_behind, variables_of_the_job
    from s2l_ext.methods.registry import parse_s2l
    from s2l_ext.training.rules import check_against_verl
    from s2l_ext.utils.secrets import refuse_secrets

    working_dir = environment.get("working_dir")
    with variables_of_the_job(environment.get("env_vars") or {}):
        cfg = compose_config(name, overrides, folders)
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        refuse_secrets(plain)
        for key, path in [("--config-name", Path(name)), *(("--config-dir", path) for path in folders)]:
            _require_sent(key, path, working_dir)
        refuse_own_sizes(cfg, "a job joins the cluster that it is sent to")
        warnings = check_against_verl(parse_s2l(cfg.s2l), cfg)
        return [*warnings, *left_behind(cfg, working_dir), *_relative_folder(cfg.trainer.default_local_dir)]


def _require_sent(key: str, path: Path, working_dir: str | None) -> None:
    """A file or folder named relative to here must be at the same place in what the job gets."""
    is_file_here = path.exists() and (path.is_dir() if key == "--config-dir" else path.suffix in (".yaml", ".yml"))
    if path.is_absolute() or not is_file_here or (working_dir and "://" in working_dir):
        return
    if working_dir is None or not (Path(working_dir) / path).exists():
        raise ConfigError(
            f"{key} {path} is on this machine only. Send it along: --working-dir . (a folder in which {path} is at "
            "that place), or give an absolute path on storage that the cluster's nodes share."
        )


def _relative_folder(folder: str) -> list[str]:
    if Path(folder).is_absolute() or "://" in folder:
        return []
    return [
        f"trainer.default_local_dir={folder} is relative: on the cluster it is below the job's own folder, which goes "
        "with the job. Give a path on storage that all nodes share, so that a run can be resumed."
    ]


# ---- the job server -------------------------------------------------------------------------------------------------


def job_client(address: str) -> Any:
    """Ray's job client.

    Raises:
        ConfigError: an address of another form.
        ResourceError: nothing, or no job server, answers there.
    """
    from s2l_ext.launch.cluster import require_answering

    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--address {address}: give the job server's URL, http://HOST:8265 (Ray's dashboard).")
    fix = "Start the cluster's head with its dashboard (ray start --head), or give --address http://HOST:8265."
    require_answering(address, "the cluster's job server", fix)
    from ray.job_submission import JobSubmissionClient

    return _ask(JobSubmissionClient, address, address)


def send(client: Any, address: str, words: Sequence[str], environment: Mapping[str, Any]) -> str:
    """Submit an ``s2l`` command, which runs with the Python of the job's environment; returns the job's name."""
    entrypoint = shlex.join(["python", "-m", "s2l_ext.cli", *words])
    return str(_ask(client.submit_job, address, entrypoint=entrypoint, runtime_env=environment))


def _ask(call: Any, server: str, *args: Any, **kwargs: Any) -> Any:
    """Call the job client; its many kinds of failure become one."""
    import requests
    from ray.exceptions import RayError

    from s2l_ext.launch.cluster import AUTHENTICATE, lacks_token

    try:
        return call(*args, **kwargs)
    except (requests.RequestException, ConnectionError, KeyError) as error:
        raise ResourceError(f"{server} does not answer as a Ray job server ({_one_line(error)}).") from error
    except (RayError, RuntimeError, ValueError) as error:
        reason = AUTHENTICATE if lacks_token(error) else _one_line(error)
        raise ResourceError(f"the job server at {server} refuses: {reason}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def stop(client: Any, job: str, address: str) -> int:
    """Stop a job and wait until it has ended; 0 also if it had ended before."""
    if not _ask(client.stop_job, address, job):
        print(f"s2l submit: job {job} had ended before: {_status(client, job, address)}")
        return 0
    deadline = time.monotonic() + STOP_SECONDS
    while (status := _status(client, job, address)) not in TERMINAL:
        if time.monotonic() > deadline:
            raise ResourceError(f"job {job} still runs {STOP_SECONDS:.0f} s after it was asked to stop: {status}")
        time.sleep(1.0)
    print(f"s2l submit: job {job}: {status}")
    return 0


def _status(client: Any, job: str, address: str) -> str:
    return str(_ask(client.get_job_info, address, job).status.value)


def follow(client: Any, job: str, address: str) -> int:
    """Print the job's log until it ends; returns its exit code. Ctrl-C leaves the job running."""
    try:
        _print_log(client, job, address)
        return exit_code(_ask(client.get_job_info, address, job))
    except KeyboardInterrupt:
        print(
            f"\ns2l submit: job {job} goes on. Its log: ray job logs --address {address} --follow {job}   "
            f"Stop it: s2l submit --address {address} --stop {job}",
            file=sys.stderr,
        )
        return INTERRUPTED


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
    return FAILED if not own else SIGNAL_BASE - own if own < 0 else own


def _print_log(client: Any, job: str, address: str) -> None:
    """Survives a connection that breaks: the log is sent from its start again, what was printed is skipped."""
    import aiohttp

    log = _Log()
    failures = 0
    while True:
        before = log.printed
        try:
            asyncio.run(log.show(client.tail_job_logs(job)))
            if _status(client, job, address) in TERMINAL:
                return
            reason = "the connection was closed"
        except (aiohttp.ClientError, RuntimeError, OSError, ResourceError) as error:
            reason = _one_line(error)
        failures = 1 if log.printed > before else failures + 1
        if failures > RECONNECT_TRIES:
            raise ResourceError(f"lost job {job} at {address} ({reason}); it may go on there: ray job status {job}")
        time.sleep(RECONNECT_SECONDS)


class _Log:
    """A log that is printed once, however often it is sent."""

    def __init__(self) -> None:
        self.printed = 0

    async def show(self, chunks: Any) -> None:
        seen = 0
        async for chunk in chunks:
            new = chunk[max(0, self.printed - seen) :]
            seen += len(chunk)
            print(new, end="", flush=True)
            self.printed += len(new)
