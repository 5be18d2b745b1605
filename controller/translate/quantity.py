# SPDX-License-Identifier: Apache-2.0
"""Weights as Kubernetes quantities (`500m`, `1`, `1.5`, `2k`), made whole numbers.

Source: apimachinery resource.Quantity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

MAX_WEIGHT = 2**31 - 1
_QUANTITY = re.compile(r"\+?(\d{1,12}(?:\.\d{0,9})?|\.\d{1,9})(m|k|Ki|M|Mi|G|Gi|)")
_FACTORS = {
    "": Fraction(1),
    "m": Fraction(1, 1000),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
}


def parse_quantity(raw: object) -> Fraction | None:
    """Return the number, 0 or more; None: it is none."""
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return None
    found = _QUANTITY.fullmatch(str(raw).strip())
    return None if found is None else Fraction(found[1]) * _FACTORS[found[2]]


def whole_weights(weights: Iterable[Fraction]) -> list[int]:
    """Return whole numbers in the same proportion: thousandths where one of them is a part.

    None that is more than 0 becomes 0.
    """
    given = list(weights)
    if any(weight.denominator != 1 for weight in given):
        given = [weight * 1000 for weight in given]
    greatest = max(given, default=Fraction(0))
    if greatest > MAX_WEIGHT:
        given = [weight * MAX_WEIGHT / greatest for weight in given]
    return [max(1, round(weight)) if weight else 0 for weight in given]
