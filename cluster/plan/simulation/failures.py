"""Cost of failures: checkpoint intervals of Young and Daly, and the share of time that trains steps which are kept (goodput).

Failures are assumed to be independent, with exponential times between them, and to end the whole group of workers. J. W. Young,
"A first order approximation to the optimum checkpoint interval" (1974); J. T. Daly, "A higher order estimate of the optimum
checkpoint interval for restart dumps" (2006).
"""

from math import exp, expm1, sqrt

MOST_FAILURES = (
    500.0  # expected per attempt, beyond which an attempt succeeds with a probability that is no longer a number
)


def young_seconds(stall: float, mtbf: float) -> float:
    """Return Young's interval between checkpoints.

    Args:
        stall: seconds for which training waits for a checkpoint.
        mtbf: mean seconds between failures of any host.
    """
    return sqrt(2.0 * stall * mtbf)


def daly_seconds(stall: float, mtbf: float) -> float:
    """Return Daly's interval between checkpoints, of training without the stall. The arguments are those of young_seconds."""
    if stall >= 2.0 * mtbf:
        return mtbf
    root = sqrt(stall / (2.0 * mtbf))
    return young_seconds(stall, mtbf) * (1.0 + root / 3.0 + root * root / 9.0) - stall


def goodput_of(interval: float, stall: float, recovery: float, mtbf: float) -> float:
    """Return the share of time in which steps are trained that are kept.

    An interval and its checkpoint are repeated until no failure hits them. The expected time for that is
    mtbf exp(recovery / mtbf) (exp((interval + stall) / mtbf) - 1) (Daly 2006).

    Args:
        interval: seconds of training between checkpoints.
        stall: seconds for which training waits for a checkpoint.
        recovery: seconds from a failure to the first step, including work before the checkpoint that is trained again.
        mtbf: mean seconds between failures of any host.
    """
    attempt = (interval + stall) / mtbf
    if attempt + recovery / mtbf > MOST_FAILURES:
        return 0.0
    return interval / (mtbf * exp(recovery / mtbf) * expm1(attempt))
