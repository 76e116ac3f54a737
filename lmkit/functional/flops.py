"""Floating-point operations of a Transformer in training, and what processors are rated at."""

from __future__ import annotations

__all__ = ["rated_flops", "training_flops_per_token"]

# Dense bfloat16 (float16 where there is none), in TFLOP/s, from the makers' data sheets; the
# longest name that occurs in the device's name counts.
_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10": 125.0,
    "A10G": 70.0,
    "A6000": 154.8,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 3090": 71.0,
    "RTX 4090": 165.2,
    "RTX 5090": 209.5,
    "V100": 125.0,
    "T4": 65.0,
}


def training_flops_per_token(
    layer_weights: int,
    head_weights: int,
    layers: int,
    width: int,
    context: float,
    share: float,
    crossed: tuple[float, float] = (1.0, 1.0),
    trained: tuple[float, float] = (1.0, 1.0),
) -> float:
    r"""Count the operations of forward and backward per real token.

    $2 W (1 + b + t) + 4 c h n (1 + 2 b) + 2 W_h p (1 + b_h + t_h)$: two for each weight of the $n$
    layers, $W$ in all; two products with $c$ other tokens of width $h$ in each layer; and two for
    each weight $W_h$ of the head, which only the share $p$ of the tokens reaches. Backwards, the
    gradient of a layer's input costs as much again, and is needed only in the share $b$ of the
    weights that something trained stands below; and so does the gradient of the weights, in the
    share $t$ that is trained. The products of attention have two inputs. With all weights trained
    this is three times the forward. Lookups of embeddings, normalizations and softmax are not
    counted. For BERT's layers $W = n(4h^2 + 2hi)$ with $i$ the width of the feed-forward part, and
    $W_h = h^2 + hV$ (as arXiv:2204.02311, appendix B, counts, with the head by its share).

    Args:
        layer_weights: $W$, weights of all linear maps outside the head.
        head_weights: $W_h$.
        layers: $n$.
        width: $h$, the width of queries and keys over all heads.
        context: $c$, tokens that a token attends to, on average.
        share: $p$ in `[0, 1]`, of tokens that the head sees; 1 for a causal model.
        crossed: $b$ and $b_h$ in `[0, 1]`, of the weights that the gradient goes through.
        trained: $t$ and $t_h$ in `[0, 1]`, of the weights that learn.

    Example:
        >>> bert = 12 * (4 * 768**2 + 2 * 768 * 3072), 768**2 + 768 * 30522
        >>> round(training_flops_per_token(*bert, 12, 768, 128, 0.15) / 1e6)
        545
        >>> head_alone = {"crossed": (0.0, 0.0), "trained": (0.0, 1.0)}
        >>> round(training_flops_per_token(*bert, 12, 768, 128, 0.15, **head_alone) / 1e6)
        189
    """
    back, head_back = (1 + b + t for b, t in zip(crossed, trained, strict=True))
    attention = 4 * context * width * layers * (1 + 2 * crossed[0])
    return 2 * layer_weights * back + attention + 2 * head_weights * share * head_back


def rated_flops(device_name: str) -> float | None:
    """Return the dense half-precision FLOP/s that a GPU is rated at; `None` for an unknown one.

    Example:
        >>> rated_flops("NVIDIA H200")
        989000000000000.0
    """
    words = device_name.replace("-", " ").split()
    known = [name for name in _TFLOPS if _occurs(name.split(), words)]
    return _TFLOPS[max(known, key=len)] * 1e12 if known else None


def _occurs(name: list[str], words: list[str]) -> bool:
    return any(words[i : i + len(name)] == name for i in range(len(words)))
