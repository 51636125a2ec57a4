"""What a training run has to tell, figure by figure, as text for page and summary.

A figure that a run does not have is an empty text.
"""

from __future__ import annotations

from attnbench.report import metrics, units
from attnbench.report.points import Point
from attnbench.report.sweep import Panel
from attnbench.stats import Interval
from attnbench.train.derived import Mfu
from attnbench.train.figures import Parity, Training

TOKENS = (
    units.Unit("tokens/s", 1.0), units.Unit("k tokens/s", 1e3), units.Unit("M tokens/s", 1e6),
)  # fmt: skip
NONE = "–"
"""What a cell says that has no figure."""


def part(point: Point) -> Training | None:
    """The figures of a run that is ok."""
    return point.record.training if point.record.status == "ok" else None


# ---- speed -------------------------------------------------------------------------------


def rate_text(point: Point) -> str:
    """``34.8 k tokens/s [34.2, 44.2]``; nothing where it was not timed."""
    rate = point.trained.tokens_per_s if point.trained else None
    return units.interval(rate, TOKENS) if rate is not None else ""


def against_text(point: Point) -> str:
    """``1.23× [1.20, 1.26] faster``: tokens/s over the baseline's, and what that says."""
    if point.speedup is None:
        return ""
    if point.is_baseline:
        return "baseline"
    return f"{units.ratio_interval(point.speedup)} {verdict(point.speedup)}"


def verdict(ratio: Interval) -> str:
    """``faster``, ``slower``, or ``tie`` where the interval holds 1."""
    if ratio.low > 1:
        return "faster"
    return "slower" if ratio.high < 1 else "tie"


def mfu_text(mfu: Mfu | None, convention: str) -> str:
    """``41.2 %``; of an approximate method ``41.2 % effective``, but for its ``own`` count.

    ``teacher`` is what the teacher's forward takes, and is in none of the others.

    Nothing where there is no such count.
    """
    share: float | None = getattr(mfu, convention, None)
    if mfu is None or share is None:
        return ""
    is_done = convention in ("own", "teacher") or not mfu.is_effective
    return percent(share) + ("" if is_done else " effective")


def percent(share: float) -> str:
    """``41.2 %``."""
    return f"{units.number(100 * share)} %"


def mfu_cell(point: Point, convention: str) -> str:
    """The share of the measured ceiling, and that of the datasheet's peak beside it."""
    if point.trained is None:
        return NONE
    measured, datasheet = point.trained.measured, point.trained.datasheet
    text, beside = mfu_text(measured, convention) or NONE, mfu_text(datasheet, convention)
    return f"{text} ({beside} of datasheet)" if beside else text


def joules_text(point: Point) -> str:
    """``1.95 mJ``; nothing where it was not measured."""
    joules = point.joules_per_token
    return "" if joules is None else units.quantity(joules, units.JOULES)


def attention_text(training: Training) -> str:
    """``31.0 % of a step``, or why that is not told."""
    share, absent = training.breakdown.attention_share, training.breakdown.attention_absent
    if share is not None:
        return f"{percent(share)} of a step"
    return f"not told: {absent}" if absent else "not told"


# ---- what was learned ---------------------------------------------------------------------


def parity_text(parity: Parity) -> str:
    """``ok``, ``NO``, or that an approximate method is not judged."""
    if parity.ok is None:
        return "not judged: approximate"
    return "ok" if parity.ok else "NO"


def deviation_text(parity: Parity) -> str:
    """The largest deviation of a step's loss, in nats."""
    if parity.max_deviation is None:
        return "not finite"
    return units.scientific(parity.max_deviation)


def allowed_text(parity: Parity) -> str:
    """``1.2e-06 of 4.1e-05 in step 17 (0.029)``: where most of what was allowed was used.

    To an approximate method nothing is allowed or forbidden.
    """
    if (
        parity.ok is None
        or parity.allowed is None
        or parity.deviation is None
        or parity.ratio is None
    ):
        return NONE
    used = f"{units.scientific(parity.deviation)} of {units.scientific(parity.allowed)}"
    return f"{used} in step {parity.step} ({units.number(parity.ratio, 2)})"


def metric_names(panel: Panel) -> list[str]:
    """The metrics that any run of a panel has, the leading one first."""
    runs = [training for point in panel.points if (training := part(point)) is not None]
    return metrics.ordered(name for r in runs for e in r.evaluations[-1:] for name in e.metrics)


def reached(point: Point, training: Training) -> int | None:
    """The steps after which an evaluation first reached the workload's target."""
    target = point.fields.get("target")
    if not isinstance(target, (int, float)) or not target:
        return None
    for evaluation in training.evaluations:
        name = metrics.leading(evaluation.metrics)
        value = evaluation.metrics[name] if name is not None else None
        if name is None or value is None:
            continue
        if value >= target if metrics.metric(name).maximize else value <= target:
            return evaluation.step
    return None


def metric_target(panel: Panel) -> str:
    """``99.0 % token accuracy``: what a workload stops at."""
    names, target = metric_names(panel), panel.points[0].fields.get("target")
    if not names or not isinstance(target, (int, float)):
        return "the target"
    return f"{metrics.text(names[0], float(target))} {metrics.metric(names[0]).label}"


# ---- all of it --------------------------------------------------------------------------


def texts(point: Point) -> dict[str, str]:
    """What a tooltip and the table of all points tell of a run, beside time and memory."""
    training = part(point)
    if training is None:
        return {}
    parts = training.breakdown
    seconds = {
        "forward": parts.forward_s, "backward": parts.backward_s, "optimizer": parts.optimizer_s,
    }  # fmt: skip
    last = training.evaluations[-1].metrics if training.evaluations else {}
    own = ["own"] if point.is_approximate else []
    teacher = ["teacher"] if training.flops.teacher is not None else []
    found = {
        "rate": rate_text(point),
        "mfu": ", ".join(
            f"{convention} {mfu_cell(point, convention)}"
            for convention in ("full", "causal", *own, *teacher)
        ),
        "batch": f"{training.batch} ({units.count(training.tokens, 'token')} a step)",
        "step": ", ".join(f"{n} {units.quantity(s, units.SECONDS)}" for n, s in seconds.items()),
        "attention": attention_text(training),
        "loss": units.number(training.losses[-1], 5) if training.losses else "",
        "parity": f"{parity_text(training.parity)}, {deviation_text(training.parity)} apart",
        "metrics": ", ".join(
            f"{metrics.metric(n).label} {metrics.text(n, last[n])}" for n in metrics.ordered(last)
        ),
    }
    return {name: text for name, text in found.items() if text}
