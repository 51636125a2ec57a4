"""Student's t and the two gamma functions that verdicts need; scipy is not in the core.

Accurate to about ten digits in the range used here (degrees of freedom ≥ 1), tested
against published tables.
"""

from __future__ import annotations

import functools
import math

_TINY = 1e-300
_STEPS = 300  # of the continued fraction; it converges in a few dozen


def t_two_sided(t: float, df: float) -> float:
    """Probability that |T| ≥ |t| for Student's t with ``df`` degrees of freedom."""
    square = t * t
    return _incomplete_beta(df / 2, 0.5, df / (df + square), square / (df + square))


@functools.lru_cache(maxsize=4096)
def t_quantile(confidence: float, df: float) -> float:
    """The t whose interval ±t holds ``confidence`` (0.95) of Student's distribution."""
    low, high = 0.0, 1.0
    while t_two_sided(high, df) > 1 - confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if t_two_sided(middle, df) > 1 - confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def digamma(x: float) -> float:
    """d/dx ln Γ(x), x > 0: recurrence up to 6, then the asymptotic series (A&S 6.3.18)."""
    shift = 0.0
    while x < 6:
        shift -= 1 / x
        x += 1
    square = 1 / (x * x)
    series = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
    return shift + math.log(x) - 0.5 / x - series


def trigamma(x: float) -> float:
    """The derivative of :func:`digamma` (A&S 6.4.12)."""
    shift = 0.0
    while x < 6:
        shift += 1 / (x * x)
        x += 1
    square = 1 / (x * x)
    series = square * (1 / 6 - square * (1 / 30 - square * (1 / 42 - square / 30)))
    return shift + 1 / x + square / 2 + series / x


def trigamma_inverse(y: float) -> float:
    """The x > 0 with trigamma(x) = y > 0, by bisection on a logarithmic scale."""
    low, high = 1e-8, 1e8
    for _ in range(120):
        middle = math.sqrt(low * high)
        if trigamma(middle) > y:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22).

    ``rest`` is 1 − x, told apart because subtracting would lose its digits near x = 1.
    """
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # there the fraction of the complement converges faster
        return 1 - _incomplete_beta(b, a, rest, x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log(rest)
    return math.exp(log_front) / (a * _beta_fraction(a, b, x))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """1 + d₁/(1 + d₂/(1 + …)), by the modified Lentz algorithm."""
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1, _STEPS):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + term * d or _TINY)
        c = 1 + term / c or _TINY
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
