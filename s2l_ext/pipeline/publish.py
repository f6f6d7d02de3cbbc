"""``--push-to-hub``: the last model of a pipeline to the Hugging Face hub, checked before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.pipeline.stage import Pipeline, Stage

OPTION = "--push-to-hub"
TOKEN = "HF_TOKEN"  # noqa: S105 - the name of the variable
FIX = f"Look at {TOKEN} (it must be allowed to write there) and at the network (HTTPS_PROXY, HF_ENDPOINT)."


def check_push(repository: str, pipeline: Pipeline, only: str | None) -> Stage:
    """The stage whose model will be pushed: the last that makes one, or ``--only`` one.

    Raises:
        ConfigError: a malformed id, no token, a hub that is switched off, or no model to push.
        ResourceError: the hub does not know the token, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"{OPTION} {repository}: {error} Write OWNER/NAME.") from error
    if repository.count("/") != 1:
        raise ConfigError(f"{OPTION} {repository}: the owner is missing. Write OWNER/NAME.")
    if not os.environ.get(TOKEN):
        raise ConfigError(
            f"{OPTION} {repository}: {TOKEN} is not set. Export a token that may write (it is read from the "
            "environment only), or leave the option out."
        )
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise ConfigError(f"{OPTION} {repository}: HF_HUB_OFFLINE is set. Unset it, or leave the option out.")
    stages = [stage for stage in pipeline.stages if stage.does.makes_model and only in (None, stage.name)]
    if not stages:
        where = f"--only {only}" if only else f"the pipeline {pipeline.name}"
        raise ConfigError(f"{OPTION} {repository}: {where} makes no model. Leave the option out.")
    try:
        HfApi(token=os.environ[TOKEN]).whoami()
    except Exception as error:  # httpx's errors and the hub's own have no common base
        raise ResourceError(f"{OPTION} {repository}: {_reason(error)}. Nothing was started. {FIX}") from error
    return stages[-1]


def push(folder: Path, repository: str) -> str:
    """Upload a model and its card; a repository that does not exist is made private. Returns its address.

    Raises:
        ResourceError: the hub refused or was lost; the model stays where it is.
    """
    from huggingface_hub import HfApi

    hub = HfApi(token=os.environ[TOKEN])
    try:
        address = str(hub.create_repo(repository, private=True, exist_ok=True))
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Model and card of s2l pipeline")
    except Exception as error:
        raise ResourceError(
            f"{OPTION} {repository}: {_reason(error)}. The model is finished: {folder}. {FIX} Then the same command "
            "only pushes."
        ) from error
    return address


def _reason(error: Exception) -> str:
    """The hub's words without the token."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".replace(os.environ[TOKEN], "***").rstrip(".")
