"""Numbers as people read them: every figure of the report is written here.

Units follow a no-break space, the minus is a true minus, and what is not known (or not finite) is a dash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TypeGuard

MINUS, SPACE, UNKNOWN = "\u2212", "\u00a0", "\u2013"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 4) -> str:
    """At least `digits` significant digits and never an exponent: 0.8123, 12.35, 1,234."""
    if not known(value):
        return UNKNOWN
    decimals = 0 if value == 0 else max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 9)}f}".replace("-", MINUS)


def flops(value: float | None) -> str:
    return _scaled(value, 1000, ("FLOPs", "KFLOPs", "MFLOPs", "GFLOPs", "TFLOPs"))


def macs(value: float | None) -> str:
    return _scaled(value, 1000, ("MACs", "KMACs", "MMACs", "GMACs", "TMACs"))


def count(value: float | None) -> str:
    """Parameters and the like: 231 K."""
    return _scaled(value, 1000, ("", "K", "M", "G", "T"))


def size(value: float | None) -> str:
    """Bytes, in powers of 1024."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def milliseconds(value: float | None) -> str:
    return f"{number(value, 3)}{SPACE}ms" if known(value) else UNKNOWN


def millijoules(value: float | None) -> str:
    return f"{number(value, 3)}{SPACE}mJ" if known(value) else UNKNOWN


def seconds(value: float | None) -> str:
    """A duration: 42 s, 3 min 05 s, 2 h 07 min."""
    if not known(value):
        return UNKNOWN
    whole = round(value)
    if whole < 60:
        return f"{number(value, 2)}{SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{SPACE}min {whole % 60:02d}{SPACE}s"
    return f"{whole // 3600}{SPACE}h {whole % 3600 // 60:02d}{SPACE}min"


def moment(text: str) -> str:
    """An ISO date and time as a person writes it: 23 November 2026, 21:40 UTC; other text is left as it is."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{when.day} {when:%B %Y, %H:%M %Z}".rstrip()


def times(value: float | None) -> str:
    """A factor: 1.94×."""
    return f"{number(value, 3)}×" if known(value) else UNKNOWN


def percent(value: float | None) -> str:
    """Percentage points without a sign: 0.43 %, 12.1 %."""
    return f"{_percentage(abs(value))}{SPACE}%" if known(value) else UNKNOWN


def signed_percent(value: float | None) -> str:
    """A change in percent, always signed unless it rounds to zero: +0.43 %, −60.2 %."""
    if not known(value):
        return UNKNOWN
    digits = _percentage(abs(value))
    sign = "" if float(digits.replace(",", "")) == 0 else "+" if value > 0 else MINUS
    return f"{sign}{digits}{SPACE}%"


def scientific(value: float | None) -> str:
    """Small errors: 1.2 × 10⁻⁶."""
    if not known(value):
        return UNKNOWN
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    power = str(int(exponent)).translate(_SUPERSCRIPTS)
    return f"{mantissa}{SPACE}×{SPACE}10{power}".replace("-", MINUS)


def relative(before: float | None, after: float | None) -> float | None:
    """Relative change in percent; None when it has no meaning."""
    if not known(before) or not known(after) or before == 0:
        return None
    return 100 * (after - before) / abs(before)


def _percentage(value: float) -> str:
    return f"{value:,.{1 if value >= 10 else 2}f}"


def _scaled(value: float | None, base: int, units: Sequence[str]) -> str:
    if not known(value):
        return UNKNOWN
    step = 0
    while abs(value) >= base and step < len(units) - 1:
        value, step = value / base, step + 1
    digits = number(value, 3) if step else f"{value:,.0f}"
    return f"{digits}{SPACE}{units[step]}".rstrip(SPACE)


FILTERS = {
    each.__name__: each
    for each in (
        number,
        flops,
        macs,
        count,
        size,
        milliseconds,
        millijoules,
        seconds,
        moment,
        times,
        percent,
        signed_percent,
        scientific,
    )
}
