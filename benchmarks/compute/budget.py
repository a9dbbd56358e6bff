"""When a run must stop, and at which shares of its budget it is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from benchmarks.api import Positive, UserError

Kind = Literal["flops", "queries", "nfe", "steps", "seconds"]

#: Kinds of budget, and the counter in the records that each one limits.
BUDGETS: dict[str, str] = {
    "flops": "flops",
    "queries": "reward_queries",
    "nfe": "nfe",
    "steps": "optimizer_steps",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Budget:
    """How much one cell may spend: floating-point operations, reward queries, denoiser
    evaluations, optimizer steps or device seconds."""

    kind: Kind
    amount: Positive

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``flops=4e13`` and the like; anything else is an error."""
        kind, _, amount = text.partition("=")
        try:
            value = float(amount)
        except ValueError:
            value = -1.0
        if kind not in BUDGETS or not 0 < value < float("inf"):
            raise UserError(
                f"--budget {text}: write KIND=AMOUNT with a positive amount and a KIND of "
                f"{', '.join(BUDGETS)}"
            )
        return cls(cast(Kind, kind), value)

    def __str__(self) -> str:
        short = f"{self.amount:g}"
        amount = short if float(short) == self.amount else repr(self.amount)
        return f"{self.kind}={amount}".replace("e+", "e")

    def times(self, factor: float) -> Budget:
        """So many times the amount. Raises UserError for a factor below 1."""
        if not 1 <= factor < float("inf"):
            raise UserError(f"budget_factor is {factor:g}; it must be at least 1")
        return Budget(self.kind, self.amount * factor)

    def reached(self, share: float, spent: float) -> bool:
        """Whether a share of the budget is used up when the share ``spent`` is.

        Where a step may cost nothing, such as an update that asks the reward nothing, only going
        beyond shows that no further step fits.
        """
        return spent > share or (spent == share and self.kind != "queries")


#: Shares of the budget at which every method is evaluated; evenly spaced in the logarithm after the
#: base model.
FRACTIONS = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def fractions(factor: float) -> tuple[float, ...]:
    """Shares of ``factor`` budgets that cost what ``FRACTIONS`` of one budget cost, then doubled.

    Of 8 budgets: 0, 1/128, 1/64, 1/32, 1/16, 1/8, 1/4, 1/2 and 1.
    """
    if factor == 1:
        return FRACTIONS
    found = [share / factor for share in FRACTIONS]
    while 2 * found[-1] < 1:
        found.append(2 * found[-1])
    return (*found, 1.0)
