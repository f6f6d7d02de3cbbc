"""Data sets of the Hugging Face hub by name, ``hf://owner/name[:config][@split]``, as a local parquet file.

``datasets`` loads them: a folder of that name in the working directory, such as a clone, takes the hub's place.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.utils.files import cache_root, replacing

HUB = "hf://"
ADDRESS = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
REACH = "Set HF_ENDPOINT to a mirror or HTTPS_PROXY; HF_HUB_OFFLINE=1 spares the retries. "
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def path_or_address(text: str) -> Path | str:
    """argparse's type of a file that may be on the hub: ``Path`` would make ``hf:/`` of ``hf://``."""
    return text if text.startswith(HUB) else Path(text)


def local_file(data: str | Path, option: str, prefer: str | None = None) -> Path:
    """The file itself, or the rows of ``hf://owner/name[:config][@split]`` as a parquet file in the cache; its name
    says data set, config and split. ``option`` is what errors call it; ``prefer`` the split where the address names
    none.
    """
    if not str(data).startswith(HUB):
        return Path(data).expanduser()
    found = ADDRESS.fullmatch(str(data).removeprefix(HUB))
    if found is None:
        raise ConfigError(f"{option} {data}: expected hf://owner/name, hf://owner/name:config or ...@split.")
    try:
        return _fetch(f"{option} {data}", found["name"], found["config"], found["split"] or "", prefer or "")
    except (ConfigError, DataError):
        raise
    except Exception as error:  # whatever ``datasets`` raises
        raise DataError(f"{option} {data}: {_explained(error, option, found['name'])}") from error


def _fetch(where: str, name: str, config: str | None, split: str, prefer: str) -> Path:
    """Config and split are looked up before any rows are downloaded."""
    import datasets

    configs = datasets.get_dataset_config_names(name)
    config = config or datasets.get_dataset_default_config_name(name) or ""
    _require_known(where, "config", config, configs, f"{HUB}{name}:{{}}")
    splits = datasets.get_dataset_split_names(name, config)
    split = split or (splits[0] if len(splits) == 1 else prefer if prefer in splits else "")
    _require_known(where, "split", split, splits, f"{HUB}{name}:{config}@{{}}")
    path = cache_root() / "hub" / f"{name.replace('/', '--')}--{config}--{split}.parquet"
    rows = datasets.load_dataset(name, config, split=split)
    try:
        with replacing(path) as partial:
            rows.to_parquet(str(partial))
    except OSError as error:
        raise DataError(f"{where}: {path} cannot be written ({error.strerror}). Free disk space there.") from error
    return path


def _require_known(where: str, what: str, value: str, known: list[str], address: str) -> None:
    if value not in known:
        problem = f"there is no {what} '{value}'.{did_you_mean(value, known)}" if value else f"it has several {what}s."
        raise DataError(f"{where}: {problem} Choose one: {', '.join(address.format(each) for each in known)}.")


def _explained(error: Exception, option: str, name: str) -> str:
    """What is wrong, and what to do about it."""
    from datasets.exceptions import DatasetNotFoundError

    reason = " ".join(str(error).split())[:300]
    page = f"https://huggingface.co/datasets/{name}"
    if isinstance(error, DatasetNotFoundError) and "gated" in reason:
        fix = f"Accept its terms at {page}, and set HF_TOKEN to a token of that account."
    elif isinstance(error, DatasetNotFoundError):
        fix = f"Look at {page} for the spelling. A private set needs HF_TOKEN."
    else:
        offline = next((key for key in OFFLINE if os.environ.get(key)), None)
        reach = f"{offline} is set, and the set is not in the cache ($HF_HOME): unset it where there is a network. "
        fix = ((reach if offline else REACH) if isinstance(error, ConnectionError) else "") + (
            f"Without the hub: `hf download {name} --repo-type dataset --local-dir {name}` elsewhere, then give "
            f"{option} the files, or put the folder at {Path.cwd() / name}."
        )
    return f"the hub gave no rows of {name} ({type(error).__name__}: {reason}). {fix}"
