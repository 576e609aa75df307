"""The audit's rows, and how a printed figure is compared with a computed one."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

CONFIRMED = "confirmed"
CORRECTED = "corrected"
NOT_COMPARABLE = "not comparable"
NOT_RECOMPUTABLE = "not recomputable"
VERDICTS = {
    CONFIRMED: "computed or measured anew, it is what is said, to the digits given",
    CORRECTED: "computed or measured anew, it is something else, which stands beside it",
    NOT_COMPARABLE: "figures of unlike things stand side by side: units, programs, data or machines differ",
    NOT_RECOMPUTABLE: "what it takes is not here; the row says what is missing",
}


@dataclass(frozen=True)
class Row:
    """A claim, what is said, what was found here, one of `VERDICTS`, and why, in sentences."""

    claim: str
    says: str
    measured: str
    verdict: str
    why: str = ""


def agrees(printed, value):
    """Whether a value, rounded to the decimals of a printed figure such as "0.9" or "132", is that figure."""
    printed = Decimal(printed)
    return Decimal(repr(float(value))).quantize(printed, rounding=ROUND_HALF_UP) == printed


def judged(printed, value):
    """The verdict on a printed figure."""
    return CONFIRMED if agrees(printed, value) else CORRECTED


def half_digit(printed):
    """The largest rounding error of a printed figure: 0.5 for "47", 0.00005 for "0.6347"."""
    return float(Decimal(1).scaleb(Decimal(printed).as_tuple().exponent) / 2)
