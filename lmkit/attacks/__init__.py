"""Texts that a classifier takes for another class, searched for word by word."""

from .base import Attack
from .character import CharacterAttack
from .results import AttackReport, AttackResult, WordChange
from .word import WordAttack

__all__ = [
    "Attack",
    "AttackReport",
    "AttackResult",
    "CharacterAttack",
    "WordAttack",
    "WordChange",
]
