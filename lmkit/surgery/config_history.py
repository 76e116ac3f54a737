"""What a network's config said before surgeries changed it, so that they can be done again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = [
    "config_changes",
    "config_data",
    "config_remembered",
    "earlier_config",
    "original_config",
    "settings_now",
]

# Set on a network: what its config said before the first surgery that changed it.
_MARK = "_config_before"


def config_data(config: Any) -> dict[str, Any]:
    """Return a config as plain data, all of it."""
    data: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return data


@contextmanager
def config_remembered(network: Any) -> Iterator[None]:
    """Remember what the config says, if a surgery inside the block changes it.

    Of what is changed several times the first value counts.

    Args:
        network: of transformers; others have no config, and nothing is done.
    """
    config = getattr(network, "config", None)
    if config is None:
        yield
        return
    before = config_data(config)
    yield
    after, known = config_data(network.config), config_changes(network)
    changed, added = known.get("changed", {}), known.get("added", [])
    for key in sorted(before.keys() | after.keys()):
        if key in changed or key in added:
            continue
        if key not in before:
            added.append(key)
        elif key not in after or before[key] != after[key]:
            changed[key] = before[key]
    if changed or added:
        setattr(network, _MARK, {"changed": changed, "added": added})


def config_changes(network: Any) -> dict[str, Any]:
    """Return what surgeries changed in the config of a network.

    Returns:
        `changed`: the settings as they were at first; `added`: the names of those that were not
        there. Plain data, empty if nothing was changed.
    """
    known: Mapping[str, Any] = getattr(network, _MARK, {})
    return {word: known[word].copy() for word in known}


def original_config(network: Any) -> dict[str, Any]:
    """Return the config, as plain data, that gives the network on which all surgeries are done.

    What is no structure, such as the names of classes, is as it is now.
    """
    return _undone(config_data(network.config), config_changes(network))


def settings_now(network: Any) -> dict[str, Any]:
    """Return what the config says now of that which surgeries changed."""
    known, now = config_changes(network), config_data(network.config)
    names = (*known.get("changed", ()), *known.get("added", ()))
    return {name: now[name] for name in names if name in now}


def earlier_config(config: Any, changes: Mapping[str, Any] | None) -> Any:
    """Return a config as it was before changes.

    Args:
        config: as it is now.
        changes: of `config_changes`, or nothing.
    """
    if not changes:
        return config
    return type(config).from_dict(_undone(config_data(config), changes))


def _undone(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    added, changed = changes.get("added", ()), changes.get("changed", {})
    return {name: value for name, value in data.items() if name not in added} | dict(changed)
