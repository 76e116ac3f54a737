"""Words of a text changed at random, before they become tokens."""

from .apply import example_rng, transform_answer, transform_tagged, transform_text
from .base import Transform, Transformed, WordTransform
from .combine import Chain, OneOf, Sometimes, transforms_from
from .contextual import ContextualReplacement
from .eda import EDA
from .edits import Edit, replay, span_after
from .embedding_neighbours import EmbeddingNeighbours
from .identity import IdentitySwap
from .masking import SpanMasking, TokenDropout
from .noise import CharacterNoise
from .protection import Protection
from .random_words import RandomDeletion, RandomSwap
from .schedule import Ramp
from .specs import transform_from
from .spelling import SpellingErrors
from .substitution import RandomSubstitution
from .synonyms import RandomInsertion, SynonymReplacement
from .words import Words, split_words

__all__ = [
    "EDA",
    "Chain",
    "CharacterNoise",
    "ContextualReplacement",
    "Edit",
    "EmbeddingNeighbours",
    "IdentitySwap",
    "OneOf",
    "Protection",
    "Ramp",
    "RandomDeletion",
    "RandomInsertion",
    "RandomSubstitution",
    "RandomSwap",
    "Sometimes",
    "SpanMasking",
    "SpellingErrors",
    "SynonymReplacement",
    "TokenDropout",
    "Transform",
    "Transformed",
    "WordTransform",
    "Words",
    "example_rng",
    "replay",
    "span_after",
    "split_words",
    "transform_answer",
    "transform_from",
    "transform_tagged",
    "transform_text",
    "transforms_from",
]
