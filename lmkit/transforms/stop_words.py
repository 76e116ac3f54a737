"""English words that carry grammar rather than meaning."""

from __future__ import annotations

__all__ = ["STOP_WORDS"]

_WORDS = """
a an the this that these those such same other another each every either neither both all any some
few many much more most less least several enough own
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself
she her hers herself it its itself they them their theirs themselves one ones who whom whose which
what whatever whoever someone anyone everyone somebody anybody everybody something anything
everything
am is are was were be been being have has had having do does did doing done can could may might must
shall should will would ought need dare used let
and or but nor so yet if then else than because as until while although though whereas unless since
whether once
of at by for with about against between into through during before after above below to from up
down in out on off over under upon onto within across along around behind beside besides beyond
near toward towards via per amid among
not no never again further here there where when why how only just too very also even still already
always ever now quite rather almost
"""
_SHORT = ("'s", "'m", "'re", "'ve", "'d", "'ll", "s", "t", "d", "ll", "m", "o", "re", "ve", "y")

#: In small letters. What was shortened, such as `it's`, is taken care of by its apostrophe.
STOP_WORDS = frozenset(_WORDS.split()) | frozenset(_SHORT)
