"""The rules of the house hold, and the checks that hold them notice when they are broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import architecture

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("check", architecture.CHECKS, ids=lambda c: c.__name__)
def test_the_house_keeps_its_rules(check):
    assert check(ROOT) == []


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("check", architecture.CHECKS, ids=lambda c: c.__name__)
def test_a_clean_tree_passes(check, tmp_path):
    files = {
        "lmkit/__init__.py": '"""Root."""\n',
        "lmkit/types.py": '"""Types."""\n',
        "lmkit/modules/__init__.py": 'from .echo import EchoModule\n\n__all__ = ["EchoModule"]\n',
        "lmkit/modules/echo.py": (
            '"""Echo."""\nfrom .base import LMModule\n\n'
            'class EchoModule(LMModule):\n    """Echo."""\n\n    def __init__(self, model): ...\n'
        ),
        "lmkit/modules/base.py": (
            '"""Base."""\nfrom lightning.pytorch import LightningModule\n'
            "from ..types import Batch\n\n"
            "if TYPE_CHECKING:\n    from .echo import EchoModule\n\n"
            'class LMModule(LightningModule):\n    """Base."""\n'
        ),
        "lmkit/recipes/echo.yaml": "",
        "docs/echo.md": "",
        "tests/modules/test_echo.py": "",
    }
    assert check(plant(tmp_path, files)) == []


BROKEN = {
    "a lower layer imports a higher one": (
        architecture.check_layers,
        {"lmkit/functional/masking.py": "from ..modules import MaskedLMModule\n"},
        "functional must not import lmkit.modules",
    ),
    "an import inside a function counts": (
        architecture.check_layers,
        {"lmkit/datamodules/base.py": "def f():\n    import lmkit.callbacks\n"},
        "datamodules must not import lmkit.callbacks",
    ),
    "modules and data modules meet": (
        architecture.check_layers,
        {"lmkit/modules/base.py": "from lmkit.datamodules import LMDataModule\n"},
        "modules must not import lmkit.datamodules",
    ),
    "functional knows Lightning": (
        architecture.check_layers,
        {"lmkit/functional/masking.py": "from lightning.pytorch import Trainer\n"},
        "functional must not import lightning",
    ),
    "surgery knows Lightning": (
        architecture.check_layers,
        {"lmkit/surgery/base.py": "import pytorch_lightning\n"},
        "surgery must not import pytorch_lightning",
    ),
    "a folder without a layer": (
        architecture.check_layers,
        {"lmkit/extras/thing.py": ""},
        "no place in the table of layers",
    ),
    "help that waits for torch": (
        architecture.check_light,
        {"lmkit/cli.py": "from torch import nn\n"},
        "imports torch at the top",
    ),
    "a cycle": (
        architecture.check_cycles,
        {"lmkit/modules/a.py": "from . import b\n", "lmkit/modules/b.py": "from .a import x\n"},
        "lmkit.modules.a -> lmkit.modules.b -> lmkit.modules.a",
    ),
    "code in a package file": (
        architecture.check_packages,
        {"lmkit/modules/__init__.py": "REGISTRY = {}\n"},
        "only imports and `__all__`",
    ),
    "an unsorted __all__": (
        architecture.check_packages,
        {"lmkit/modules/__init__.py": '__all__ = ["BModule", "AModule"]\n'},
        "is not sorted",
    ),
    "a room for what has no home": (
        architecture.check_files,
        {"lmkit/modules/utils.py": '"""Odds and ends."""\n'},
        "lacks a room",
    ),
    "a long file": (
        architecture.check_files,
        {"lmkit/types.py": '"""Types."""\n' + "x = 1\n" * 300},
        "301 lines",
    ),
    "a file that does not say what it is for": (
        architecture.check_files,
        {"lmkit/types.py": "x = 1\n"},
        "what the file is for",
    ),
    "unfinished work": (
        architecture.check_files,
        {"lmkit/types.py": '"""Types."""\n# TO' + "DO: later\n"},
        "holds TO" + "DO",
    ),
    "a module without its suffix": (
        architecture.check_classes,
        {"lmkit/modules/echo.py": 'class Echo(LMModule):\n    """Echo."""\n'},
        "it is called ...Module",
    ),
    "a module outside its folder": (
        architecture.check_classes,
        {"lmkit/callbacks/echo.py": 'class EchoModule(L.LightningModule):\n    """Echo."""\n'},
        "in modules/",
    ),
    "an exported class without the suffix of its folder": (
        architecture.check_classes,
        {"lmkit/callbacks/__init__.py": '__all__ = ["LossPlot"]\n'},
        "lmkit.callbacks.LossPlot is not called ...Callback",
    ),
    "a class without a docstring": (
        architecture.check_classes,
        {"lmkit/types.py": "class Thing: ...\n"},
        "Thing has no docstring",
    ),
    "options that nobody can list": (
        architecture.check_classes,
        {
            "lmkit/callbacks/x.py": 'class XCallback:\n    """X."""\n'
            "    def __init__(self, **kwargs): ...\n"
        },
        "name every option",
    ),
    "a technique without its card": (
        architecture.check_words,
        {
            "lmkit/modules/echo.py": "class EchoModule(LMModule): ...\n",
            "lmkit/modules/__init__.py": '__all__ = ["EchoModule"]\n',
        },
        "docs/echo.md is missing",
    ),
    "a file named unlike its class": (
        architecture.check_words,
        {
            "lmkit/modules/echo.py": "class ParrotModule(LMModule): ...\n",
            "lmkit/modules/__init__.py": '__all__ = ["ParrotModule"]\n',
        },
        "file and class differ",
    ),
    "mathematics without a test": (
        architecture.check_words,
        {"lmkit/functional/echo.py": "def echo(): ...\n"},
        "tests/functional/test_echo.py is missing",
    ),
    "a path of one machine": (
        architecture.check_paths,
        {"lmkit/types.py": "DATA = '/ho" + "me/ada/data'\n"},
        "names /ho" + "me/ada",
    ),
}


@pytest.mark.parametrize(("check", "files", "complaint"), BROKEN.values(), ids=BROKEN)
def test_a_broken_tree_is_noticed(check, files, complaint, tmp_path):
    assert any(complaint in found for found in check(plant(tmp_path, files)))


@pytest.mark.parametrize("module", ["lmkit", "lmkit.cli"])
def test_importing_costs_no_torch(module):
    slow = sorted(architecture.SLOW)
    code = f"import sys, {module}; print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
