"""The rules of the house as functions from a tree of files to a list of complaints.

Each check reads source with `ast` and imports nothing, so it sees imports inside functions and
under `TYPE_CHECKING` too, and can be tried on a small broken tree.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

#: What each layer may import from lmkit, besides itself and the version; from the ground up.
LAYERS: dict[str, set[str]] = {
    "__about__": set(),
    "types": set(),
    "cache": set(),
    "onnx_session": set(),
    "tokenization": set(),
    "dashboard": set(),
    "figures": set(),
    "functional": {"types"},
    "surgery": {"types", "functional"},
    "transforms": {"types", "functional", "tokenization"},
    "datamodules": {"types", "cache", "functional", "tokenization", "transforms"},
    "modules": {
        "types",
        "cache",
        "figures",
        "functional",
        "onnx_session",
        "surgery",
        "tokenization",
    },
    "adapters": {"types", "functional", "surgery", "tokenization", "modules"},
    "comparison": {"functional", "modules"},
    "onnx_int8": {"functional", "surgery"},
    "onnx_file": {"functional", "surgery", "modules", "comparison", "onnx_int8", "onnx_session"},
    "loading": {"types", "functional", "surgery", "tokenization", "modules", "adapters"},
    "attacks": {"types", "cache", "functional", "tokenization", "transforms", "modules", "loading"},
    "export_network": {"functional", "surgery", "modules", "adapters", "comparison"},
    "exporting": {
        "functional",
        "surgery",
        "tokenization",
        "modules",
        "adapters",
        "loading",
        "onnx_file",
        "export_network",
    },
    "callbacks": {
        "types",
        "functional",
        "surgery",
        "modules",
        "adapters",
        "loading",
        "exporting",
        "dashboard",
    },
}

#: Layers above all others: they may import anything, and only each other may import them.
TOP = {
    "back_translation",
    "back_translation_filter",
    "back_translation_rows",
    "chain",
    "chain_options",
    "cli",
    "cli_callbacks",
    "cli_checkpoint",
    "cli_config",
    "cli_export",
    "cli_parser",
    "cli_probe",
    "cli_tasks",
    "cli_tools",
    "cli_noise",
    "cli_recipes",
    "lightning_cli",
    "import_noise",
    "journal",
    "launcher",
    "model_names",
    "quickstart",
    "recipes",
    "report",
    "trainer",
    "transfer",
    "translators",
    "trimming",
    "trimming_check",
    "__main__",
    "__init__",
}

#: Libraries that a layer must do without, anywhere in its files.
FORBIDDEN: dict[str, set[str]] = {
    "functional": {"lightning", "pytorch_lightning", "transformers", "tokenizers", "datasets"},
    "surgery": {"lightning", "pytorch_lightning"},
    "tokenization": {"lightning", "pytorch_lightning"},
    "transforms": {"lightning", "pytorch_lightning"},
}

#: Slow libraries that these files may import only inside a function, so that `--help` is quick.
LIGHT = (
    "__init__.py",
    "__about__.py",
    "__main__.py",
    "chain.py",
    "chain_options.py",
    "model_names.py",
    "cli.py",
    "cli_probe.py",
    "cli_recipes.py",
    "cli_tools.py",
    "launcher.py",
)
SLOW = {"torch", "lightning", "pytorch_lightning", "transformers", "datasets", "torchmetrics"}

#: The suffix that says what a public class of the folder is.
SUFFIXES = {
    "modules": ("Module", "Loss"),
    "datamodules": ("DataModule",),
    "callbacks": ("Callback", "Checkpoint"),
}

#: A base class by the end of its name, and the folder where its children live.
HOMES = {"LightningModule": "modules", "LMModule": "modules", "DataModule": "datamodules"}

NAMELESS = {"utils.py", "helpers.py", "common.py", "misc.py"}
MAX_LINES = 300


def sources(root: Path) -> Iterator[Path]:
    """Every Python file of the package."""
    return (p for p in sorted((root / "lmkit").rglob("*.py")) if "__pycache__" not in p.parts)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(name: str) -> str:
    """`lmkit.modules.base` -> `modules`; `lmkit` itself -> `__init__`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(root: Path, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of all that a file imports, wherever in the file it does.

    `from .x import y` gives `lmkit.x.y` when that is a file, else `lmkit.x`.
    """
    name = module_name(root, path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                target = root.joinpath(*base.split("."), alias.name)
                is_file = target.with_suffix(".py").is_file() or (target / "__init__.py").is_file()
                yield node.lineno, f"{base}.{alias.name}" if is_file else base


def public(nodes: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    for node in nodes:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def exported(path: Path) -> list[str]:
    """The names in `__all__`."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def check_layers(root: Path) -> list[str]:
    """Imports point downwards only, and each layer does without the libraries above it."""
    found = []
    for path in sources(root):
        layer = layer_of(module_name(root, path))
        if layer not in LAYERS and layer not in TOP:
            found.append(f"{path.name}: `{layer}` has no place in the table of layers")
            continue
        allowed = LAYERS.get(layer, set()) | {layer, "__about__"}
        for line, name in imports(root, path):
            where = f"{path.relative_to(root)}:{line}"
            library, target = name.split(".")[0], layer_of(name)
            if library in FORBIDDEN.get(layer, set()):
                found.append(f"{where}: {layer} must not import {library}")
            elif library == "lmkit" and layer in LAYERS and target not in allowed:
                found.append(f"{where}: {layer} must not import lmkit.{target}")
    return found


def check_light(root: Path) -> list[str]:
    """The files on the way to `lmkit --help` import nothing slow when they are loaded."""
    found = []
    for path in (root / "lmkit" / name for name in LIGHT):
        if not path.is_file():
            continue
        for node in tree_of(path).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                slow = SLOW & {m.split(".")[0] for m in modules}
                found += [f"{path.name}:{node.lineno}: imports {m} at the top" for m in slow]
    return found


def check_cycles(root: Path) -> list[str]:
    """No file imports itself by way of others."""
    graph: dict[str, set[str]] = {}
    for path in sources(root):
        # What is imported for annotations only is not imported when the program runs.
        typing = _typing_lines(path)
        found_here = {n for line, n in imports(root, path) if line not in typing}
        graph[module_name(root, path)] = {n for n in found_here if n.startswith("lmkit")}
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            found.append(" -> ".join((*trail[trail.index(name) :], name)))
        elif name not in done:
            for following in sorted(graph.get(name, ())):
                visit(following, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
    return found


def _typing_lines(path: Path) -> set[int]:
    blocks = (
        node
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {line for b in blocks for line in range(b.lineno, (b.end_lineno or b.lineno) + 1)}


def check_packages(root: Path) -> list[str]:
    """A package file holds a docstring, relative imports and a sorted `__all__`, nothing else."""
    found = []
    for path in sources(root):
        if path.name != "__init__.py" or path.parent == root / "lmkit":
            continue
        for node in tree_of(path).body:
            is_doc = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_import = isinstance(node, ast.ImportFrom) and node.level > 0
            is_all = (
                isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
            )
            if not (is_doc or is_import or is_all):
                found.append(f"{path.relative_to(root)}:{node.lineno}: only imports and `__all__`")
        names = exported(path)
        # ruff's order: CONSTANTS, Classes, functions.
        if names != sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n)):
            found.append(f"{path.relative_to(root)}: `__all__` is not sorted")
    return found


def check_files(root: Path) -> list[str]:
    """Files are short, have a name that says something and a first sentence, and are finished."""
    found = []
    for path in sources(root):
        text, where = path.read_text(encoding="utf-8"), path.relative_to(root)
        if path.name in NAMELESS:
            found.append(f"{where}: a thing without a home shows that the house lacks a room")
        if (lines := text.count("\n")) > MAX_LINES:
            found.append(f"{where}: {lines} lines, {MAX_LINES} at most")
        if path.name != "__init__.py" and not ast.get_docstring(tree_of(path)):
            found.append(f"{where}: the first sentence must say what the file is for")
        found += [f"{where}: holds {m}" for m in re.findall(r"\b(?:TODO|FIXME)\b", text)]
    return found


def check_classes(root: Path) -> list[str]:
    """Public things have docstrings; suffix and folder say a class's role; options are named."""
    found = []
    for path in sources(root):
        folder = layer_of(module_name(root, path))
        for node in public(tree_of(path).body):
            where = f"{path.relative_to(root)}:{node.lineno}: {node.name}"
            if not ast.get_docstring(node):
                found.append(f"{where} has no docstring")
            if isinstance(node, ast.FunctionDef):
                continue
            for base in (ast.unparse(b).split("[")[0].split(".")[-1] for b in node.bases):
                home = next((HOMES[end] for end in HOMES if base.endswith(end)), None)
                if home and (folder != home or not node.name.endswith(SUFFIXES[home])):
                    found.append(
                        f"{where} is a {base}: it is called ...{SUFFIXES[home][0]}, in {home}/"
                    )
            if folder in SUFFIXES:
                found += [f"{where} {complaint}" for complaint in _constructor(node)]
    for folder, suffixes in SUFFIXES.items():
        package = root / "lmkit" / folder / "__init__.py"
        for name in exported(package) if package.is_file() else []:
            if name[0].isupper() and not name.endswith((*suffixes, "Error", "Warning")):
                found.append(f"lmkit.{folder}.{name} is not called ...{suffixes[0]}")
    return found


def _constructor(node: ast.ClassDef) -> Iterator[str]:
    for item in node.body:
        if not (isinstance(item, ast.FunctionDef) and item.name == "__init__"):
            continue
        if item.args.vararg or item.args.kwarg:
            yield "takes *args or **kwargs: name every option"


def check_words(root: Path) -> list[str]:
    """One technique is one word, the same in every folder; mathematics and callbacks have tests."""
    wanted: dict[str, list[str]] = {}
    found = []
    for folder, suffix in (("modules", "Module"), ("datamodules", "DataModule")):
        for path in sorted((root / "lmkit" / folder).glob("*.py")):
            names = [n.name.removesuffix(suffix) for n in public(tree_of(path).body)]
            names = [n for n in names if f"{n}{suffix}" in exported(path.parent / "__init__.py")]
            word = path.stem
            if word == "base" or not names:
                continue
            if not any(name.lower() == word.replace("_", "") for name in names):
                found.append(f"{folder}/{word}.py holds {', '.join(names)}: file and class differ")
            wanted.setdefault(word, [f"lmkit/recipes/{word}.yaml", f"docs/{word}.md"])
            wanted[word].append(f"tests/{folder}/test_{word}.py")
    for folder in ("functional", "surgery", "callbacks"):
        for path in sorted((root / "lmkit" / folder).glob("[!_]*.py")):
            if any(public(tree_of(path).body)):
                wanted.setdefault(path.stem, []).append(f"tests/{folder}/test_{path.stem}.py")
    for word, names in wanted.items():
        found += [f"{word}: {name} is missing" for name in names if not (root / name).is_file()]
    return found


def check_paths(root: Path) -> list[str]:
    """No file names a folder of somebody's machine."""
    # Put together here, so that this file does not hold what it looks for.
    folders = "|".join(("work", "root", "home", "Users"))
    machine = re.compile(rf"(?<![\w.:/])/(?:{folders})/\w+")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0")[:-1] if listed.returncode == 0 else None
    files = [root / n for n in names] if names else list(sources(root))
    found = []
    for path in (p for p in files if p.is_file()):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if match := machine.search(line):
                found.append(f"{path.relative_to(root)}:{number}: names {match[0]}")
    return found


CHECKS: list[Callable[[Path], list[str]]] = [
    check_layers,
    check_light,
    check_cycles,
    check_packages,
    check_files,
    check_classes,
    check_words,
    check_paths,
]
