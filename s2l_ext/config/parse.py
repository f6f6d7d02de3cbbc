"""From a mapping to frozen dataclasses, driven by their annotations; every refusal names the full dotted key."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s2l_ext.config.limits import Limits
from s2l_ext.config.nearest import did_you_mean, nearest
from s2l_ext.errors import ConfigError

ROOT = "s2l"
MISSING = "???"
Parsed = TypeVar("Parsed")


def parse_block(kind: type[Parsed], block: Mapping[str, Any] | DictConfig | None, root: str) -> Parsed:
    """Validate a block against any frozen dataclass; ``root`` begins messages' keys. Raises ConfigError: unknown key,
    wrong type, value out of range, or a required value that is missing."""
    known = list(valid_keys(kind, root)) if root == ROOT else []
    return cast(Parsed, _parse_value(kind, to_plain(block, root), root, None, known))


def valid_keys(kind: Any, prefix: str) -> Iterator[str]:
    """Every dotted key of a block, parents and the keys of every variant included; none of a plain value."""
    for name, hint in {name: hint for block in _blocks(kind) for name, hint in _hints(block).items()}.items():
        yield f"{prefix}.{name}"
        yield from valid_keys(hint, f"{prefix}.{name}")


def defaults(kind: Any) -> dict[str, Any]:
    """Default of every key of a block, the keys of every variant included; None for a key that has none."""
    items = [item for block in reversed(_blocks(kind)) for item in dataclasses.fields(block)]
    made = {item.name: item.default_factory() for item in items if callable(item.default_factory)}
    return {item.name: None if _required(item) else item.default for item in items} | made


def refuse_changed(block: Any, names: Iterable[str], key: str, why: str) -> None:
    """Raise ConfigError for one of the keys ``names`` of ``block`` that another of its keys leaves unread, unless it
    has its default. ``key`` is the block's; ``why`` says the setting that leaves them unread, and the reason."""
    default = defaults(type(block))
    for name in names:
        value = getattr(block, name)
        if value != default[name]:
            raise ConfigError(f"{key}.{name}={value} would be ignored with {why}. Leave it out.")


def to_plain(block: Mapping[str, Any] | DictConfig | None, root: str) -> Any:
    """The block without OmegaConf; an empty one for None. Raises ConfigError for an interpolation that fails."""
    if block is None:
        return {}
    try:
        return OmegaConf.to_container(block, resolve=True) if OmegaConf.is_config(block) else block
    except OmegaConfBaseException as error:
        raise ConfigError(f"{root}: {str(error).splitlines()[0]}") from error


def _parse_dataclass(kind: type, value: Any, key: str, known: Sequence[str]) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong_type(key, value, f"a block with the keys {', '.join(_hints(kind))}")
    hints = _hints(kind)
    for name in value:
        if name not in hints:
            raise _unknown(f"{key}.{name}", list(hints), known)
    parsed = {}
    for item in dataclasses.fields(kind):
        if item.name not in hints:
            continue
        item_key = f"{key}.{item.name}"
        given = value.get(item.name, MISSING)
        if _required(item) and given in (None, MISSING):
            what = item.metadata.get("what")
            fix = f"Set it to {what}." if what else f"Set {item_key}=..."
            raise ConfigError(f"{item_key} is missing: it has no default. {fix}")
        if given != MISSING:
            limits = item.metadata.get("limits")
            parsed[item.name] = _parse_value(hints[item.name], given, item_key, limits, known)
    return kind(**parsed)


def _chosen(blocks: Sequence[type], value: Any, key: str) -> type:
    """The variant that the tag, a block's first key, names; without a tag the first one.

    A variant whose tag is any text stands for every name that no other variant has.
    """
    if len(blocks) == 1 or not isinstance(value, Mapping):
        return blocks[0]
    tag = dataclasses.fields(blocks[0])[0].name
    names = {name: block for block in blocks for name in get_args(_hints(block)[tag])}
    given = next(iter(names)) if value.get(tag, MISSING) == MISSING else value[tag]
    own = next((block for block in blocks if _hints(block)[tag] is str), None)
    chosen = next((block for name, block in names.items() if name == given), own)
    if chosen is None:
        raise _no_choice(list(names), given, f"{key}.{tag}")
    others = {name: [block for block in blocks if name in _hints(block)] for name in value}
    foreign = {name: owners for name, owners in others.items() if owners and chosen not in owners}
    for name, owners in foreign.items():
        has = " or ".join(str(one) for one, block in names.items() if block in owners) or "pkg.module:Name"
        raise ConfigError(
            f"{key}.{name}: {tag}={given} does not have this key, {tag}={has} does."
            f"{did_you_mean(given, names) if chosen is own else ''} Leave it out; if the recipe sets it, add "
            f"{' '.join(f'~{key}.{one}' for one in foreign)}. Keys of {key}: {', '.join(_hints(chosen))}."
        )
    return chosen


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    """Types by key; a field that is ``internal`` is no key."""
    hints = get_type_hints(kind)
    return types.MappingProxyType(
        {item.name: hints[item.name] for item in dataclasses.fields(kind) if not item.metadata.get("internal")}
    )


def _required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _parse_value(hint: Any, value: Any, key: str, limits: Limits | None, known: Sequence[str]) -> Any:
    alternatives = [option for option in _alternatives(hint) if option is not type(None)]
    if value is None and len(alternatives) < len(_alternatives(hint)):
        return None
    if blocks := _blocks(hint):
        return _parse_dataclass(_chosen(blocks, value, key), value, key, known)
    *words, kind = sorted(alternatives, key=lambda option: get_origin(option) is not Literal)
    choices = [choice for word in words for choice in get_args(word)]
    if value in choices:
        return value
    if choices and isinstance(value, str):
        raise _wrong_type(key, value, f"{_TYPE_NAMES[kind]}, or {' or '.join(choices)}")
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise _no_choice([str(choice) for choice in get_args(kind)], value, key)
    parsed = _parse_plain(get_origin(kind) or kind, value, key)
    for number, item in enumerate(parsed if get_args(kind) == (str,) else ()):
        _parse_plain(str, item, f"{key}[{number}]")
    if limits is not None and not limits.allow(parsed):
        raise ConfigError(f"{key}={value!r} is out of range: it must be {limits.describe()}.")
    return parsed


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _no_choice(names: list[str], value: Any, key: str) -> ConfigError:
    return ConfigError(f"{key}={value!r} is not a choice. Choose from: {', '.join(names)}.{did_you_mean(value, names)}")


def _parse_plain(kind: type, value: Any, key: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    matches = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    if not matches or (isinstance(value, float) and not math.isfinite(value)):
        raise _wrong_type(key, value, _TYPE_NAMES[kind])
    if kind is str and not value.strip():
        raise ConfigError(f"{key} is empty. Set {key}=...")
    return value


_TYPE_NAMES = {
    int: "a whole number",
    float: "a finite number",
    str: "text (quote it if it looks like a number)",
    bool: "true or false",
    dict: "a mapping of keys to values",
    list: "a list",
}


def _blocks(hint: Any) -> list[type]:
    """The variants of a block: one, or several that a tag tells apart; none for a plain value."""
    return [cast(type, option) for option in _alternatives(hint) if dataclasses.is_dataclass(option)]


def _wrong_type(key: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{key}={value!r} has the wrong type ({type(value).__name__}): it must be {wanted}.")


def _unknown(key: str, siblings: list[str], known: Sequence[str]) -> ConfigError:
    """Suggests a near spelling in the same block, else the same name or a near one in another block of ``known``."""
    parent, name = key.rsplit(".", 1)
    elsewhere = {candidate.rsplit(".", 1)[1]: candidate for candidate in known}
    near = nearest(name, siblings)
    other = nearest(name, elsewhere)
    suggestion = f"{parent}.{near}" if near else elsewhere[other] if other else None
    hint = f" Did you mean '{suggestion}'?" if suggestion else ""
    return ConfigError(f"{key}: unknown key.{hint} Keys of {parent}: {', '.join(siblings)}.")
