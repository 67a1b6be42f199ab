"""How well the entropy of the predictions orders the cases of an evaluation by their Dice."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import spearmanr

_FEWEST = 4  # cases; a rank correlation of fewer says nothing


def order_sentence(dice: Mapping[str, float], entropy: Mapping[str, float]) -> str:
    """Spearman's rank correlation of two figures of the cases, as a sentence; empty with fewer than four cases.

    Cases with a NaN are left out. Where all cases have the same figure, there is no order.

    Args:
        dice: mean Dice of each case.
        entropy: mean entropy of its predicted foreground.
    """
    known = [case for case in dice if not np.isnan([dice[case], entropy[case]]).any()]
    x, y = ([values[case] for case in known] for values in (entropy, dice))
    if len(known) < _FEWEST or len(set(x)) == 1 or len(set(y)) == 1:
        return ""
    correlation = float(spearmanr(x, y).statistic)
    return (
        f"The entropy of the predicted foreground orders {len(known)} cases by their Dice with a rank correlation of "
        f"{correlation:.2f} (Spearman; -1: the higher, the lower the Dice; 0: at random)."
    )
