"""The page: one HTML file with everything inside it and nothing to fetch.

Records are untrusted. Every text goes through Jinja's autoescape or, as embedded JSON,
through :func:`embed`; the page's policy allows its own two scripts by their hash and no
request at all.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from attnbench.record import Implementation
from attnbench.report import environments as env
from attnbench.report import simulated as simulated_points
from attnbench.report import strips, tables, training_charts, training_tables, units
from attnbench.report.compile_checks import COLUMNS, CheckView
from attnbench.report.dataset import dataset, filter_values
from attnbench.report.definition import Definition
from attnbench.report.environments import Environment
from attnbench.report.fields import LABELS, label
from attnbench.report.generation_tables import serving
from attnbench.report.pictures import PictureView
from attnbench.report.points import Point
from attnbench.report.profiles import Profile
from attnbench.report.simulated import SimulatedView
from attnbench.report.style import Look
from attnbench.report.sweep import Panel, Scope
from attnbench.report.verdicts import Verdict, verdicts

_TEMPLATES = Path(__file__).parent / "templates"

_TEXTS: Mapping[str, tuple[str, str]] = {
    "verdicts": (
        "Fastest correct implementation",
        "On the largest problem of each kind, among implementations that passed verification "
        "against float64; approximate methods are not ranked among exact ones. Where 95 % "
        "intervals overlap this run cannot tell who is faster, and it is a tie.",
    ),
    "rate": (
        "Throughput",
        "Floating-point operations that the mask keeps ÷ median time of a call; higher is "
        "better. An approximate method does fewer: its rate is effective. Bands and bars are 95 % "
        "intervals of the median. A cross at the foot: the point failed.",
    ),
    "latency": (
        "Latency",
        "Median time of one call; lower is better. Bands and bars are 95 % intervals of the "
        "median. A cross at the foot: the point failed.",
    ),
    "speedup": (
        "Speed-up over the baseline",
        "Time of the baseline ÷ time of the implementation: 2× is twice as fast. Hatched cells "
        "have no time, and say why.",
    ),
    "winners": (
        "Crossovers",
        "Who is fastest at each size. Several names are a tie: their intervals overlap.",
    ),
    "memory": (
        "Peak memory",
        "Highest allocation during one call, beyond the inputs; lower is better.",
    ),
    "error": (
        "Error against float64",
        "Of the output and of each gradient, a mark for each problem. The tolerance is twice "
        "the error of the textbook computation in the same dtype, and a floor; a ring marks an "
        "error past it. The data table has the errors themselves.",
    ),
    "pareto": (
        "What is given up for what",
        "Relative L2 distance from the exact answer against the time of a call, on the largest "
        "problem of each kind; a larger dot takes more memory. A line joins the settings of one "
        "method, a ring marks what nobody beats in all three. An exact implementation is as far "
        "off as its rounding.",
    ),
    "pictures": (
        "Attention pictures",
        "The weights that each method really uses, for one sequence; the first panel is softmax in "
        "float64. Total variation is the distance from it: 0 is the same, 1 is on other keys "
        "altogether, and more takes negative weights. These belong to the machine, and no filter "
        "acts on them.",
    ),
    "throughput": (
        "Training throughput",
        "Tokens of whole training steps (forward, backward, clipping, optimizer, schedule) a "
        "second, with 95 % intervals; higher is better. MFU counts 6N a token and all pairs of "
        "attention (full) or exactly the pairs that the masks keep (causal). Of an approximate "
        "method these are effective, because they count work that was not done; own is by its "
        "own count.",
    ),
    "breakdown": (
        "Where a step goes",
        "Seconds of forward, backward and optimizer, taken apart in a pass of its own that waits "
        "for the device between them, so that together they take a little more than the step that "
        "was timed. The thin bar is attention's share of a step, by the profiler.",
    ),
    "footprint": (
        "Memory of a step by part",
        "Bytes of parameters, gradients and the optimizer's state, and the activations that the "
        "forward keeps for its backward. The thin bar is the peak of everything.",
    ),
    "parity": (
        "Does it learn the same",
        "The loss of every step, from the same seed and batches, and how far it is from the "
        "reference's. Exact implementations must stay within a bound that follows from reruns of "
        "the reference with other rounding; approximate methods are told their distance. A curve "
        "that is the reference's to the bit has no distance to draw. "
        f"Of more than {training_charts.MOST_STEPS} steps, the mean loss and the largest distance "
        "of equal stretches are drawn.",
    ),
    "quality": (
        "Quality beside speed",
        "The task's metrics on validation batches after the last step, and the leading one over "
        "the steps. A character model alone is never the verdict: it rewards locality, and says "
        "little about copying or recall over a distance.",
    ),
    "serving": (
        "Generation with a cache",
        "New tokens a second over whole generations, the time until the first token (the prompt is "
        "read), and from one token to the next, with 95 % intervals; percentiles are of all gaps. "
        "Logits are held against those without a cache, within a bound from reruns of the "
        "reference with other rounding; approximate methods are told their distance.",
    ),
    "telemetry": (
        "The machine meanwhile",
        "While each problem was timed: clocks, temperature and power of the device, and who else "
        "was at work. What was slowed down for heat was timed again; a power limit and other "
        "processes are only noted. What this machine does not tell is not shown.",
    ),
    "support": (
        "Support and failures",
        "How every point ended, in the order of the axis, and why those that are not ok ended so.",
    ),
    "points": ("All points", "Every point with its figures. A click on a heading sorts."),
    "environment": ("Environment", "What the figures were measured on."),
    "reproduce": (
        "Reproduce",
        "The command of a suite measures it again, or resumes it; that of a point is in the "
        "table of all points.",
    ),
}


@dataclass(frozen=True)
class PanelView:
    """A panel as the template needs it."""

    number: int
    title: str
    details: str
    cards: Sequence[Verdict]
    columns: Sequence[Any]
    heat: Sequence[tuple[Look, Sequence[tables.Cell]]]
    winners: Mapping[Any, Verdict]
    statuses: Mapping[str, Sequence[Point]]  # by implementation


@dataclass(frozen=True)
class ScopeView:
    """A scope as the template needs it."""

    number: int
    label: str
    scope: Scope
    machine: str
    counts: Sequence[tuple[str, int]]
    wide: int  # intervals
    measured: str  # when, first and last
    panels: Sequence[PanelView]
    looks: Sequence[Look]  # of the implementations it has
    failures: Sequence[tables.Failure]
    environments: Sequence[Environment]
    implementations: Sequence[Implementation]
    panel_of: Mapping[str, int]  # by the id of a record
    strips: Sequence[tuple[Panel, int, Sequence[strips.Strip]]]
    runs: Mapping[str, Sequence[training_tables.Table]]  # of what runs inside a model, by view


def page(
    definition: Definition,
    scopes: Sequence[Scope],
    looks: Mapping[str, Look],
    environments: Mapping[str, Environment],
    problems: Sequence[str],
    profiles: Sequence[Profile] = (),
    checks: Sequence[CheckView] = (),
    simulated: SimulatedView | None = None,
    pictures: Sequence[PictureView] = (),
) -> str:
    """The HTML text. The same records give the same bytes."""
    bundle, script = _bundle(), _asset("page.js")
    views = [_scope_view(i, scope, scopes, looks, environments) for i, scope in enumerate(scopes)]
    template = _templates().get_template("page.html.j2")
    text: str = template.render(
        definition=definition,
        texts=_TEXTS,
        scopes=views,
        hidden_views=_hidden(definition, scopes, pictures),
        looks=list(looks.values()),
        looks_by_name=looks,
        filters=filter_values(scopes),
        labels=LABELS,
        problems=problems,
        profiles=profiles,
        checks=checks,
        check_columns=COLUMNS,
        simulated=simulated,
        simulated_columns=simulated_points.COLUMNS,
        pictures=pictures,
        statuses=tables.MEANINGS,
        policy=_policy(bundle, script),
        css=Markup(_asset("page.css")),
        bundle=Markup(bundle),
        script=Markup(script),
        data=embed(dataset(definition, scopes, looks)),
    )
    return text


def _hidden(
    definition: Definition, scopes: Sequence[Scope], pictures: Sequence[PictureView]
) -> set[str]:
    """Views that would have nothing to say."""
    kinds = {scope.kind for scope in scopes}
    hidden: set[str] = {view.view for view in definition.views if not kinds & set(view.kinds)}
    hidden.discard("pictures")  # they belong to the machine, and to no suite
    if not any(p.is_approximate for s in scopes if s.kind == "attention" for p in s.points):
        hidden.add("pareto")
    return hidden if pictures else hidden | {"pictures"}


def embed(data: Any) -> Markup:
    """JSON that cannot end its ``<script>``, start a comment, or break a JavaScript line."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _scope_view(
    number: int,
    scope: Scope,
    all_scopes: Sequence[Scope],
    looks: Mapping[str, Look],
    environments: Mapping[str, Environment],
) -> ScopeView:
    points = scope.points
    own = [environments[a] for a in sorted({p.record.environment for p in points})]
    machine = own[0].name
    times = sorted(p.record.time for p in points)
    names = {p.implementation for p in points}
    return ScopeView(
        number,
        scope_label(scope, all_scopes, machine),
        scope,
        machine,
        tables.status_counts(points),
        tables.wide_intervals(points),
        " to ".join(dict.fromkeys((_minute(times[0]), _minute(times[-1])))),
        _panel_views(scope, looks),
        [look for name, look in looks.items() if name in names],
        tables.failures(points, looks),
        own,
        list({p.implementation: p.record.implementation for p in points}.values()),
        {p.record.id: i for i, panel in enumerate(scope.panels) for p in panel.points},
        strips.strips(scope),
        _run_tables(scope, looks),
    )


def _run_tables(
    scope: Scope, looks: Mapping[str, Look]
) -> Mapping[str, Sequence[training_tables.Table]]:
    if scope.kind == "training":
        return {view: training_tables.tables(view, scope, looks) for view in training_tables.VIEWS}
    return {"serving": serving(scope, looks)} if scope.kind == "generation" else {}


def scope_label(scope: Scope, all_scopes: Sequence[Scope], machine: str) -> str:
    """The suite, with as much of machine and device as it takes to tell scopes apart."""
    same_suite = [s for s in all_scopes if s.suite == scope.suite]
    if len(same_suite) == 1:
        return scope.suite
    same_machine = [s for s in same_suite if s.machine == scope.machine]
    label = f"{scope.suite} · {machine}"
    if len(same_machine) > 1:
        return f"{label} · {scope.device}"
    return f"{label} ({scope.machine[:6]})"


def _minute(time: str) -> str:
    """``2026-01-02T03:04:05Z`` as people write it; any other text as it is."""
    found = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:[\d.]+)?(Z|\+00:00)$", time)
    return f"{found[1]} {found[2]} UTC" if found else time


def _panel_views(scope: Scope, looks: Mapping[str, Look]) -> list[PanelView]:
    cards: dict[int, list[Verdict]] = {}
    for number, verdict in tables.cards(scope):
        cards.setdefault(number, []).append(verdict)
    views = []
    for number, panel in enumerate(scope.panels):
        statuses: dict[str, list[Point]] = {}
        for point in panel.points:
            statuses.setdefault(point.implementation, []).append(point)
        view = PanelView(
            number,
            panel.title or "All points",
            " · ".join(label(k, v) for k, v in scope.details(panel).items()),
            cards[number],
            tables.panel_values(scope, panel),
            tables.heat_rows(scope, panel, looks),
            {v.x: v for v in verdicts(scope, panel)},
            statuses,
        )
        views.append(view)
    return views


@functools.cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, extensions=["jinja2.ext.loopcontrols"],
    )  # fmt: skip
    environment.globals.update(
        figures=tables.figures, glyphs=tables.GLYPHS, differences=env.differences,
        in_common=env.in_common, has_ceilings=env.has_ceilings, count=units.count,
        commands=tables.suite_commands,
        ratio=units.ratio, label=label, signals=strips.signals, strip_signals=strips.SIGNALS,
        strip_size=(strips.WIDTH, strips.HEIGHT), stacked=training_charts.PARTS,
        over=training_charts.OVER, metric_title=training_charts.metric_title,
        is_local_only=training_tables.is_local_only,
    )  # fmt: skip
    return environment


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, out of vl-convert's wheel."""
    text: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return text


@functools.cache
def _asset(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """A Content-Security-Policy: these scripts, inline styles, and not one request."""
    hashes = (
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    )
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"
