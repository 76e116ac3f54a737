"""Which adapters of a module are active, with which weights, and merged into its base."""

from __future__ import annotations

from collections.abc import Mapping

from ..modules import LMModule
from ..modules.own_base import become_base
from ..surgery.composition import active_adapters, adapters_of
from ..surgery.composition import use_adapters as switch
from ..surgery.folding import fold, merge, unfold
from .ownership import check_module
from .stored import unmerged

__all__ = [
    "fold_adapters",
    "list_adapters",
    "merge_adapters",
    "unfold_adapters",
    "use_adapters",
]


def list_adapters(module: LMModule) -> dict[str, float]:
    """Return the adapters of a module by name with their weights; those that are off have 0.

    Example:
        >>> from lmkit.modules import MaskedLMModule
        >>> list_adapters(MaskedLMModule({"model_type": "bert", "hidden_size": 8, "vocab_size": 9,
        ...     "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}))
        {}
    """
    check_module(module, "list_adapters", "lmkit.surgery.composition.active_adapters(network)")
    module.configure_model()
    active = active_adapters(module.network)
    return {name: active.get(name, 0.0) for name in adapters_of(module.network)}


def use_adapters(module: LMModule, weights: Mapping[str, float]) -> None:
    r"""Switch a module to some of its adapters; an empty mapping gives the base.

    A weight multiplies what an adapter adds: $W + \sum_a w_a \Delta W_a$ for LoRA and its kin. Of
    (IA)³, prompts and prefixes it is 0 or 1. Checkpoints remember what is active. What is trainable
    stays as it is, and so does the head, of which a module has one.

    Args:
        module: changed in place.
        weights: by name; those that are left out are off.

    Raises:
        TypeError: the module is not lmkit's; names what to call instead.
        ValueError: there is no adapter of a name, or a weight is not possible; nothing is changed.

    Example:
        >>> from lmkit.modules import MaskedLMModule
        >>> from lmkit.surgery.adapter import Adapter
        >>> module = MaskedLMModule({"model_type": "bert", "hidden_size": 8, "vocab_size": 9,
        ...     "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8})
        >>> for name in ("a", "b"):
        ...     module.operate(Adapter(name, "pfeiffer", size=2))
        >>> use_adapters(module, {"a": 0.7})
        >>> list_adapters(module)
        {'a': 0.7, 'b': 0.0}
    """
    check_module(module, "use_adapters", "lmkit.surgery.composition.use_adapters(network, weights)")
    module.configure_model()
    switch(module.network, weights)


def merge_adapters(module: LMModule) -> None:
    """Compute the active adapters of a module into its base, and take all adapters out.

    Low-rank layers become dense ones. The module is then one of the plain architecture with weights
    of its own: nothing is frozen, no surgery of an adapter is in its ledger, and its checkpoints
    hold all weights. To write a model without changing the module,
    `lmkit.export(module, folder, merge=True)`.

    Args:
        module: changed in place.

    Raises:
        TypeError: the module is not lmkit's; names what to call instead.
        ValueError: there is no adapter, or an active one is no change of weights; says which.
    """
    check_module(module, "merge_adapters", "lmkit.surgery.folding.merge(network)")
    module.configure_model()
    merge(module.network)
    become_base(module, unmerged(module.ledger))


def fold_adapters(module: LMModule) -> None:
    """Let the base compute what the active adapters add, which costs nothing then, for a while.

    Until `unfold_adapters` the module cannot switch adapters, train them or write a checkpoint.

    Args:
        module: changed in place.

    Raises:
        TypeError: the module is not lmkit's; names what to call instead.
        ValueError: an active adapter is no change of weights; says which.
    """
    check_module(module, "fold_adapters", "lmkit.surgery.folding.fold(network)")
    module.configure_model()
    fold(module.network)


def unfold_adapters(module: LMModule) -> None:
    """Give the base its own weights back, to the bit."""
    check_module(module, "unfold_adapters", "lmkit.surgery.folding.unfold(network)")
    module.configure_model()
    unfold(module.network)
