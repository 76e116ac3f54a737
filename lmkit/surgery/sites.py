"""Where a transformer layer keeps its projections, whatever its architecture calls them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from .base import NothingMatchedError, match_modules

__all__ = ["ROLES", "base_name", "find_sites", "match_sites"]

#: What a projection is for, and how its dotted name ends: BERT and RoBERTa, DeBERTa, MPNet, ALBERT,
#: DistilBERT, ModernBERT, GPT-2, GPT-NeoX, Llama and its kin, T5, BART, ViT. Some compute query,
#: key and value in one projection, which then has the three roles.
ROLES: dict[str, str] = {
    "query": r"query(_proj)?|attn\.q|q_lin|q_proj|\w+Attention\.q",
    "key": r"key(_proj)?|attn\.k|k_lin|k_proj|\w+Attention\.k",
    "value": r"value(_proj)?|attn\.v|v_lin|v_proj|\w+Attention\.v",
    "attention_output": r"attention\.output\.dense|attn\.o|attention\.dense|out_lin|attn\.Wo"
    r"|attn\.c_proj|o_proj|out_proj|\w+Attention\.o",
    "ffn_input": r"intermediate\.dense|\d+\.ffn|ffn\.lin1|mlp\.Wi|mlp\.c_fc|mlp\.dense_h_to_4h"
    r"|mlp\.gate_proj|mlp\.up_proj|DenseReluDense\.wi(_\d)?|fc1",
    "ffn_output": r"\d+\.output\.dense|ffn_output|ffn\.lin2|mlp\.Wo|mlp\.c_proj"
    r"|mlp\.dense_4h_to_h|mlp\.down_proj|DenseReluDense\.wo|fc2",
}
_FUSED = r"|attn\.Wqkv|attn\.c_attn|attention\.query_key_value"
# Layers stand in lists, whose names are numbers. A head may call its own as attention calls its
# projections: RoBERTa's `classifier.out_proj`.
_IN_A_LAYER = r"(?:.*\.)?\d+\."


def base_name(name: str) -> str:
    """Return the name that a weight had before its layer was wrapped.

    Whatever wraps a layer keeps it as its `base_layer`.

    Example:
        >>> base_name("layer.0.query.base_layer.weight")
        'layer.0.query.weight'
    """
    return re.sub(r"\.base_layer(?=\.|$)", "", name)


def find_sites(network: nn.Module, roles: Sequence[str]) -> dict[str, nn.Module]:
    """Find the projections with some roles in all layers, those that are wrapped too.

    Args:
        network: of any architecture whose names are known.
        roles: of `ROLES`.

    Returns:
        Linear layers (or what wraps them) by dotted name, in the order of the network; never empty.

    Raises:
        ValueError: there is no such role.
        NothingMatchedError: the network has no projection of one of the roles; names what it has.

    Example:
        >>> layer = nn.ModuleDict({"q_proj": nn.Linear(2, 2), "v_proj": nn.Linear(2, 2)})
        >>> list(find_sites(nn.ModuleList([layer]), ["query"]))
        ['0.q_proj']
    """
    candidates = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) or hasattr(module, "base_layer")
    }
    # A network without layers is itself one.
    inside = [name for name in candidates if re.match(_IN_A_LAYER, name)] or list(candidates)
    found: set[str] = set()
    for role in roles:
        if role not in ROLES:
            raise ValueError(f"there is no role {role!r}; there are {', '.join(ROLES)}")
        fused = _FUSED if role in ("query", "key", "value") else ""
        ending = re.compile(rf"(?:.*\.)?(?:{ROLES[role]}{fused})")
        here = {name for name in inside if ending.fullmatch(name)}
        if not here:
            ends = sorted({name.rsplit(".", 1)[-1] for name in candidates})
            raise NothingMatchedError(
                f"the network has no projection that is known as {role}; it has the linear layers "
                f"{', '.join(ends[:12]) or '(none)'}: give their names as patterns"
            )
        found |= here
    return {name: module for name, module in candidates.items() if name in found}


def match_sites(network: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """Find linear layers by roles, by `"all"`, or by patterns of names.

    Args:
        network: where to look.
        targets: roles of `ROLES`; `"all"` for the projections of all roles; or shell patterns for
            names, as `match_modules` takes them.

    Returns:
        Linear layers (or what wraps them) by dotted name, in the order of the network; never empty.

    Raises:
        NothingMatchedError: a target matches nothing; names it and what is near.

    Example:
        >>> layer = nn.ModuleDict({"q_proj": nn.Linear(2, 2), "gate": nn.Linear(2, 2)})
        >>> list(match_sites(nn.ModuleList([layer]), ["query", "ga*"]))
        ['0.q_proj', '0.gate']
    """
    found: dict[str, nn.Module] = {}
    for target in targets:
        if target == "all":
            try:
                found |= find_sites(network, list(ROLES))
            except NothingMatchedError as error:
                roles = ", ".join(ROLES)
                raise NothingMatchedError(f"'all' stands for {roles}, and {error}") from None
        elif target in ROLES:
            found |= find_sites(network, [target])
        else:
            matched = match_modules(network, [target])
            linear = {
                name: module
                for name, module in matched.items()
                if isinstance(module, nn.Linear | Conv1D) or hasattr(module, "base_layer")
            }
            if not linear:
                kinds = sorted({type(module).__name__ for module in matched.values()})
                raise NothingMatchedError(
                    f"{target!r} matches {', '.join(list(matched)[:3])} ({', '.join(kinds)}), and "
                    "no linear layer"
                )
            found |= linear
    order = [name for name, _ in network.named_modules() if name in found]
    return {name: found[name] for name in order if not name.endswith(".base_layer")}
