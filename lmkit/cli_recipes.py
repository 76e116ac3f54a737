"""The configs of a command line: files, and the words of the packaged recipes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["RECIPES", "find_recipe", "headline", "nearest", "recipes", "resolve_configs"]

RECIPES = Path(__file__).parent / "recipes"


def recipes() -> dict[str, Path]:
    """Return the packaged recipes: files by word."""
    return {path.stem: path for path in sorted(RECIPES.rglob("*.yaml"))}


def find_recipe(word: str) -> Path:
    """Find a config file by its path, or a packaged recipe by its word.

    Raises:
        FileNotFoundError: there is neither; names the nearest recipe.

    Example:
        >>> find_recipe("masked_lm").name
        'masked_lm.yaml'
    """
    path = Path(word)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"there is no config file {word}")
    known = recipes()
    if word not in known:
        raise FileNotFoundError(
            f"there is no file and no recipe {word!r}{nearest(word, known)} "
            "(lmkit recipes lists all)"
        )
    return known[word]


def resolve_configs(words: Sequence[str]) -> tuple[list[str], str | None, list[Path]]:
    """Replace the words of recipes by their files.

    Returns:
        The words; the word of the first recipe or file; and all files.

    Raises:
        FileNotFoundError: there is no such file or recipe.
        ValueError: a file is no YAML, or an option has no value.
    """
    resolved, name = list(words), None
    configs: list[Path] = []
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option not in ("-c", "--config"):
            continue
        if not equals:
            place, value = place + 1, words[place + 1] if place + 1 < len(words) else ""
            if not value:
                raise ValueError(f"{option} needs a config file or the word of a recipe")
        path = find_recipe(value)
        _check_yaml(path)
        resolved[place] = f"{option}={path}" if equals else str(path)
        name = name or path.stem
        configs.append(path)
    return resolved, name, configs


def headline(path: Path) -> str:
    """Return the first line of a recipe, which says what it is for."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def nearest(word: str, known: Iterable[str]) -> str:
    """Return how an error goes on about a word that is not known."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def _check_yaml(path: Path) -> None:
    import yaml

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _loader())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"{path}, line {line}: {_problem(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold settings such as 'model:' and 'data:'")


def _problem(error: Any) -> str:
    import yaml

    known = isinstance(error, yaml.constructor.ConstructorError)
    return str(error.problem) if known else f"this is no YAML: {error.problem}"


def _loader() -> Any:
    """Make a loader that refuses a key twice, where YAML's own takes the last one."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                name = str(key.value)
                if name in seen and name != "<<":
                    problem = f"{name!r} stands twice here: give each its own name"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(name)
            return super().construct_mapping(node, deep)

    return Loader
