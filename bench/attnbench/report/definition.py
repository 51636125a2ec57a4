"""Report definitions: ``reports/*.toml`` says what a report shows, and in which order.

A definition is a title, how to choose the axis, and a list of views with their settings.
A view is of single attentions, of training runs, of generations, or of all of them, and shows
nothing else.
Unknown keys and views are refused with the nearest valid name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attnbench import shelves
from attnbench.errors import UserError, suggest, unknown
from attnbench.report.sweep import AXES
from attnbench.subject import PointKind

_ALL: tuple[PointKind, ...] = ("attention", "training", "generation")


class _View(BaseModel):
    """What every view has. ``title`` and ``note`` replace the built-in texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: ClassVar[tuple[PointKind, ...]] = ("attention",)

    title: str | None = None
    note: str | None = None


class Verdicts(_View):
    """The fastest correct implementation, a card for each panel."""

    kinds = _ALL
    view: Literal["verdicts"]


class Lines(_View):
    """A figure against the axis, with its interval.

    ``share_y`` gives all panels of a view the same vertical axis. ``figure`` also draws it
    as PNG and SVG.
    """

    view: Literal["rate", "latency", "memory"]
    scale: Literal["linear", "log"] | None = None
    share_y: bool = False
    figure: bool = True


class Speedup(_View):
    """Heat map of the baseline's time over everybody's."""

    view: Literal["speedup"]
    figure: bool = True


class Accuracy(_View):
    """Error of output and gradients against float64, with the tolerance.

    Shown as a share of the tolerance, or (``relative_to = "nothing"``) as it is.
    """

    view: Literal["error"]
    measure: Literal["rel_l2", "max_abs", "row_rel"] = "rel_l2"
    relative_to: Literal["tolerance", "nothing"] = "tolerance"
    figure: bool = True


class Pareto(_View):
    """Distance from the answer against time, with the peak memory; for approximate methods.

    Shown where there are any.
    """

    view: Literal["pareto"]
    figure: bool = True


class Pictures(_View):
    """Attention pictures that lie beside the records; shown where there are any."""

    view: Literal["pictures"]


class Winners(_View):
    """Crossover table: who is fastest at every value of the axis."""

    view: Literal["winners"]


class Support(_View):
    """Status of every point, and the reason of those that are not ok."""

    kinds = _ALL
    view: Literal["support"]


class Telemetry(_View):
    """What the machine did while each problem was timed, with the verdict on it."""

    kinds = _ALL
    view: Literal["telemetry"]


class PointsTable(_View):
    """Every point with all its figures and the command that reproduces it."""

    kinds = _ALL
    view: Literal["points"]


class EnvironmentTable(_View):
    """The machines, and where they differ."""

    kinds = _ALL
    view: Literal["environment"]


class Reproduce(_View):
    """How to run it again."""

    kinds = _ALL
    view: Literal["reproduce"]


class OfTraining(_View):
    """What training runs show, as charts and tables: see ``report.training_tables``.

    ``breakdown`` is where a step goes; ``footprint`` its memory by part; ``quality`` the task's
    metrics beside tokens a second.
    """

    kinds = ("training",)
    view: Literal["breakdown", "footprint", "quality"]


class DrawnOfTraining(_View):
    """The same of ``throughput``, tokens a second, and ``parity``, the loss beside the reference's.

    ``figure`` also draws it as PNG and SVG.
    """

    kinds = ("training",)
    view: Literal["throughput", "parity"]
    figure: bool = True


class OfGeneration(_View):
    """What a model that is served with each implementation does: a table of its times."""

    kinds = ("generation",)
    view: Literal["serving"]


View = (
    Verdicts | Lines | Speedup | Accuracy | Pareto | Pictures | Winners | OfTraining
    | DrawnOfTraining | OfGeneration | Telemetry | Support | PointsTable | EnvironmentTable
    | Reproduce
)  # fmt: skip

_BY_NAME: Mapping[str, type[_View]] = {
    "verdicts": Verdicts, "rate": Lines, "latency": Lines, "speedup": Speedup, "memory": Lines,
    "error": Accuracy, "pareto": Pareto, "pictures": Pictures, "winners": Winners,
    "throughput": DrawnOfTraining, "breakdown": OfTraining, "footprint": OfTraining,
    "parity": DrawnOfTraining, "quality": OfTraining, "serving": OfGeneration,
    "telemetry": Telemetry, "support": Support, "points": PointsTable,
    "environment": EnvironmentTable, "reproduce": Reproduce,
}  # fmt: skip
"""Every view by the name that a definition calls it."""


class Definition(BaseModel):
    """One report."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = "attnbench"
    description: str = ""
    axis: str = "auto"
    views: tuple[Annotated[View, Field(discriminator="view")], ...] = Field(min_length=1)


def load_definition(report: str, project: Path | None = None) -> Definition:
    """Read a definition by the name of its file on a ``reports`` shelf, or by its path.

    Raises:
        UserError: there is no such report, or it is not valid; told with file and key.
    """
    path = Path(report) if report.endswith(".toml") else _on_shelf(report, project)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such report definition") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return parse_definition(data, str(path))


def parse_definition(data: Mapping[str, Any], where: str) -> Definition:
    """Check a definition. ``where`` is named in errors."""
    _check_names(data, where)
    try:
        return Definition.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        keys = ".".join(str(part) for part in first["loc"] if part not in _BY_NAME)
        raise UserError(f"{where}: {keys}: {first['msg']}, got {first['input']!r}") from None


def _check_names(data: Mapping[str, Any], where: str) -> None:
    """Refuse unknown names before types are looked at, with the nearest valid one."""
    for key in data:
        if key not in Definition.model_fields:
            raise unknown("key", key, Definition.model_fields, where)
    axis = data.get("axis", "auto")
    if axis not in ("auto", *AXES):
        raise unknown("axis", axis, ("auto", *AXES), where)
    views = data.get("views")
    if not isinstance(views, list) or not all(isinstance(view, dict) for view in views):
        raise UserError(f"{where}: views must be a list of tables ([[views]])")
    for number, view in enumerate(views, start=1):
        name = view.get("view")
        if name not in _BY_NAME:
            raise unknown("view", name, _BY_NAME, f"{where}: views[{number}]")
        allowed = _BY_NAME[name].model_fields
        for key in view:
            if key not in allowed:
                raise unknown("key", key, allowed, f"{where}: view {name!r}")


def _on_shelf(name: str, project: Path | None) -> Path:
    folders = shelves.find("reports", project)
    for folder in folders:
        path = folder / f"{name}.toml"
        if path.is_file():
            return path
    names = sorted({path.stem for folder in folders for path in folder.glob("*.toml")})
    raise UserError(
        f"unknown report {name!r}; found: {', '.join(names) or 'none'}{suggest(name, names)}"
    )
