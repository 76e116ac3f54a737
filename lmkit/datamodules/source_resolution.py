"""From what the user names (a hub name, files, an object, nothing) to a source for each split."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from .source import expand_files, split_files
from .table_files import file_format

__all__ = ["Files", "is_plain_source", "resolve_sources"]

Files = str | list[str]

# In the order in which a split of lmkit takes the first that a data set has.
_SPLITS = {
    "train": ("train",),
    "val": ("validation", "valid", "val", "dev", "validation_matched"),
    "test": ("test", "test_matched"),
}

Source = TypeVar("Source")


class SourceOptions(Protocol[Source]):
    """How to read: makes a source of files, or of a data set."""

    #: Ends of names, beyond the usual, of files that are read from a folder.
    endings: ClassVar[tuple[str, ...]]

    def of_files(self, files: tuple[Path, ...]) -> Source:
        """Return what is in files."""

    def of_dataset(self, dataset: Any, name: str) -> Source:
        """Return what is in one split of a data set."""

    def of_nothing(self, cache: Path) -> dict[str, Source]:
        """Return the splits that are read when the user names none."""


def resolve_sources(
    source: Any,
    files: dict[str, Files | None],
    options: SourceOptions[Source],
    cache: Path,
    streaming: bool = False,
) -> dict[str, Source]:
    """Return the sources of the splits that there are, among `train`, `val` and `test`.

    Args:
        source: a hub name (`owner/name`, `name/config`, `owner/name/config`), local files, globs
            or folders, a `datasets` object, or `None`: the files, or else what `options` has.
        files: split -> its files, which take the place of that split of `source`.
        options: how to read files.
        cache: folder where the embedded corpus is kept.
        streaming: leave a data set of the hub there, and take iterable ones.

    Raises:
        ValueError: something named is not there, or both `source` and a train file are given.
        TypeError: `source` is of another type.
    """
    if source is not None and files.get("train"):
        raise ValueError(
            f"source={source!r} and train_file={files['train']!r} both name the training text; "
            "give one of them"
        )
    if source is None and not any(files.values()):
        return options.of_nothing(cache)
    sources = {} if source is None else _sources_of(source, options, streaming)
    for split, names in files.items():
        if names:
            found = expand_files(names, f"{split}_file", options.endings)
            sources[split] = options.of_files(found)
    return sources


def is_plain_source(source: Any) -> bool:
    """Return whether a source is plain data: a name, names, or nothing."""
    return (
        source is None
        or isinstance(source, str)
        or (isinstance(source, list) and all(isinstance(name, str) for name in source))
    )


def _sources_of(source: Any, options: SourceOptions[Source], streaming: bool) -> dict[str, Source]:
    if isinstance(source, str | Path) or (
        isinstance(source, Sequence) and all(isinstance(name, str | Path) for name in source)
    ):
        if isinstance(source, str) and _is_hub_name(source):
            data = _load_from_hub(source, streaming)
            return _splits_of(data, source, options, streaming)
        found = expand_files(source, "source", options.endings)
        one_folder = isinstance(source, str | Path) and Path(source).expanduser().is_dir()
        splits = split_files(found) if one_folder else {"train": found}
        return {split: options.of_files(paths) for split, paths in splits.items()}
    return _splits_of(source, "source", options, streaming)


def _is_hub_name(name: str) -> bool:
    path = Path(name).expanduser()
    looks_local = (
        path.exists()
        or glob.has_magic(name)
        or name.startswith((".", "/", "~"))
        or file_format(path) is not None
    )
    return not looks_local and name.count("/") <= 2


def _load_from_hub(name: str, streaming: bool) -> Any:
    import datasets

    how = {"streaming": True} if streaming else {}
    parts = name.split("/")
    # "a/b" is an owner and a name, or a name and a configuration: the former first.
    attempts = [(name,), tuple(parts)] if len(parts) == 2 else [("/".join(parts[:2]), *parts[2:])]
    failures = []
    for attempt in attempts:
        try:
            return datasets.load_dataset(*attempt, **how)
        except Exception as error:  # the hub, the network, pyarrow and scripts each raise their own
            failures.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
    here = [entry.name for entry in Path.cwd().iterdir()]
    near = difflib.get_close_matches(name, here, n=1)
    hint = f" Did you mean the local {near[0]!r}?" if near else ""
    raise ValueError(
        f"source={name!r} is no local file or folder, and cannot be loaded from the Hugging Face "
        f"hub or its cache ({'; '.join(failures)}).{hint} Check the name and the network, or pass "
        "local files, e.g. source='corpus/*.txt'"
    )


def _splits_of(
    data: Any, name: str, options: SourceOptions[Source], streaming: bool
) -> dict[str, Source]:
    import datasets

    iterable = streaming and isinstance(data, datasets.IterableDataset)
    if iterable or isinstance(data, datasets.Dataset):
        return {"train": options.of_dataset(data, name)}
    iterables = streaming and isinstance(data, datasets.IterableDatasetDict)
    if not iterables and not isinstance(data, datasets.DatasetDict):
        raise TypeError(
            "source must be a hub name, files, a datasets.Dataset or a datasets.DatasetDict, got "
            f"{type(data).__name__}; an iterable data set needs streaming=True, or can be written "
            "to files first (to_json) and those passed as train_file"
        )
    sources: dict[str, Source] = {}
    for split, names in _SPLITS.items():
        found = next((theirs for theirs in names if theirs in data), None)
        if found is not None:
            sources[split] = options.of_dataset(data[found], f"{name}[{found}]")
    if not sources:
        raise ValueError(f"{name} has no split named train, validation or test, but {list(data)}")
    return sources
