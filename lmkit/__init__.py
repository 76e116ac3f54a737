"""lmkit: every technique that improves a language model as one PyTorch Lightning part."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .__about__ import __version__
from .import_noise import quieten_imports

if TYPE_CHECKING:
    from . import adapters as adapters
    from . import attacks as attacks
    from . import report as report
    from . import transforms as transforms
    from .back_translation import back_translate as back_translate
    from .exporting import export as export
    from .launcher import tune_process as tune_process
    from .loading import load as load
    from .trainer import Trainer as Trainer
    from .transfer import transferability as transferability
    from .trimming import trim_vocabulary as trim_vocabulary

__all__ = [
    "Trainer",
    "__version__",
    "adapters",
    "attacks",
    "back_translate",
    "export",
    "load",
    "report",
    "transferability",
    "transforms",
    "trim_vocabulary",
    "tune_process",
]

quieten_imports()

_PACKAGES = ("adapters", "attacks", "report", "transforms")

_HOMES = {
    "Trainer": "trainer",
    "back_translate": "back_translation",
    "export": "exporting",
    "load": "loading",
    "transferability": "transfer",
    "trim_vocabulary": "trimming",
    "tune_process": "launcher",
}


def __getattr__(name: str) -> Any:
    # PEP 562: `import lmkit` stays free of torch (over a second) until something needs it.
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'lmkit' has no attribute {name!r}")
