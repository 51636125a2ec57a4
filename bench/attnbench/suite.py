"""Suites: what to measure, read from TOML and checked to the last key.

A suite names implementations (globs, with options to taste), a grid over any field of
``Problem`` (of ``Workload`` where it is of the kind ``training``, of ``Generation`` where of
``generation``) and single points.
Everything that cannot be meant is refused with file, key, value and the nearest valid name;
what merely cannot be done by some implementation is left to it to say (``unsupported``).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from attnbench import settings, shelves
from attnbench.attention import Kind
from attnbench.errors import UserError, unknown
from attnbench.presets import PRESETS
from attnbench.problem import Problem
from attnbench.settings import Measure, Verify
from attnbench.spec import Value
from attnbench.subject import PointKind, Subject, keys_of, make_subject

if TYPE_CHECKING:
    from attnbench.tune.table import Tune

_TABLES = ("measure", "verify")
_RIVALS = {  # giving one of these with --set replaces the others
    "heads": ("heads_q", "heads_kv"),
    "seqlen": ("seqlen_q", "seqlen_k"),
    "d_model": ("head_dim",),
    "head_dim": ("d_model",),
}

Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True)
class Suite:
    """A checked suite: every problem (workload, generation) is valid."""

    name: str
    path: Path
    title: str
    baseline: str
    impls: tuple[str, ...]
    kinds: tuple[Kind, ...]  # of implementations that ``impls`` may name
    problems: tuple[Subject, ...]
    measure: Measure
    verify: Verify
    options: Mapping[str, Value]  # of whoever has them, given by --set
    kind: PointKind = "attention"
    tune: Tune | None = None  # what ``attnbench tune`` searches, from this suite's one workload

    @property
    def digest(self) -> str:
        """8 hex digits of what is measured and how; runs with the same digest can resume."""
        told = [
            self.name,
            [p.id for p in self.problems],
            self.measure.model_dump(),
            self.verify.model_dump(),
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]


def set_keys(kind: PointKind) -> tuple[str, ...]:
    """What ``--set`` takes beside options of implementations."""
    return (*keys_of(kind), *(f"{table}.KEY" for table in _TABLES))


class _File(BaseModel):
    """The shape of the TOML file; the grid and points are checked key by key later."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: str
    kind: PointKind = "attention"
    baseline: str = ""
    impls: list[str] = ["*"]
    kinds: list[Kind] = list(get_args(Kind))
    grid: dict[str, Any] = {}
    points: list[dict[str, Any]] = []
    measure: dict[str, Any] = {}
    verify: dict[str, Any] = {}
    tune: dict[str, Any] | None = None
    _options: dict[str, Value] = PrivateAttr(default_factory=dict)  # by --set alone


def find_suite(name: str, project: Path | None = None) -> Path:
    """The file of a suite given by path or by name (looked up on the shelves).

    Raises:
        UserError: there is none; says which there are.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{name}: no such suite file")
        return path
    known = list_suites(project)
    if name not in known:
        raise unknown("suite", name, known)
    return known[name]


def list_suites(project: Path | None = None) -> dict[str, Path]:
    """All suites by name; a project's own wins over a built-in one."""
    found: dict[str, Path] = {}
    for shelf in reversed(shelves.find("suites", project)):
        found |= {path.stem: path for path in sorted(shelf.glob("*.toml"))}
    return dict(sorted(found.items()))


def kind_of(path: Path) -> PointKind:
    """The kind that a suite's file says; attention where it cannot be read, to be told later."""
    try:
        told = tomllib.loads(path.read_text()).get("kind")
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        told = None
    kinds: tuple[PointKind, ...] = get_args(PointKind)
    return next((kind for kind in kinds if kind == told), "attention")


def load_suite(
    path: Path, overrides: Sequence[str] = (), preset: settings.Preset | None = None
) -> Suite:
    """Read and check a suite.

    Args:
        path: the TOML file.
        overrides: ``key=value`` texts (``--set``): a problem field, ``measure.KEY`` or
            ``verify.KEY``, or else an option of implementations, whose name is checked when
            they are chosen; the value is TOML, or a bare word.
        preset: how well to measure, instead of what the suite says; overrides still win.

    Raises:
        UserError: anything that cannot be meant, with file, key, value, nearest name.
    """
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    file = validate_table(_File, data, path, "")
    if preset is not None:
        file.measure.update(settings.PRESETS[preset])
    for override in overrides:
        _apply(file, override)
    for key in ("impls", "kinds"):
        if not getattr(file, key):
            raise UserError(f"{path}: {key} is empty; it needs at least one")
    problems = _expand(file, path)
    measure = validate_table(Measure, file.measure, path, "measure")
    if file.kind != "attention" and measure.cache == "cold":
        raise UserError(
            f'{path}: [measure]: cache = "cold": in kind = "{file.kind}" each call finds the '
            "caches as the one before left them; leave it out"
        )
    return Suite(
        name=path.stem,
        path=path,
        title=file.title,
        baseline=file.baseline,
        impls=tuple(file.impls),
        kinds=tuple(file.kinds),
        problems=problems,
        measure=measure,
        verify=validate_table(Verify, file.verify, path, "verify"),
        options=dict(file._options),
        kind=file.kind,
        tune=None if file.tune is None else _tune(path, file.tune),
    )


def _tune(path: Path, data: Mapping[str, Any]) -> Tune:
    from attnbench.tune.table import read_tune  # which few suites have

    return read_tune(path, data)


def one_problem(overrides: Sequence[str]) -> Problem:
    """The problem that ``key=value`` texts (``--set``) describe; the rest is as Problem has it.

    Raises:
        UserError: anything that cannot be meant, or that means several problems.
    """
    file = _File(title="", points=[{}])
    for override in overrides:
        _apply(file, override)
    if file.measure or file.verify:
        raise UserError("--set: measure and verify belong to a suite; here is nothing to sample")
    for key in file._options:
        raise unknown("key", key, keys_of("attention"), "--set")
    combinations = list(_combinations("attention", file.points[0], "--set"))
    if len(combinations) > 1:
        raise UserError(f"--set: describes {len(combinations)} problems; give each key one value")
    problem = _subject("attention", combinations[0], "--set")
    assert isinstance(problem, Problem)
    return problem


def _expand(file: _File, path: Path) -> tuple[Subject, ...]:
    """Every problem of the grid and the points, once, in order."""
    if not file.grid and not file.points:
        raise UserError(f"{path}: nothing to measure; it needs a [grid] or [[points]]")
    problems: dict[Subject, None] = {}
    tables = [("[grid]", file.grid)] * bool(file.grid)
    tables += [("[[points]]", point) for point in file.points]
    for where, table in tables:
        if not table:
            raise UserError(f"{path}: {where}: is empty; it needs at least one key")
        for fields in _combinations(file.kind, table, f"{path}: {where}"):
            problems[_subject(file.kind, fields, f"{path}: {where}")] = None
    return tuple(problems)


def _combinations(
    kind: PointKind, table: Mapping[str, Any], where: str
) -> Iterable[dict[str, Any]]:
    for key, value in table.items():
        if key not in keys_of(kind):
            raise unknown("key", key, keys_of(kind), where)
        if value == []:
            raise UserError(f"{where}: {key} is an empty list; nothing would be measured")
    lists = [value if isinstance(value, list) else [value] for value in table.values()]
    return [dict(zip(table, values, strict=True)) for values in itertools.product(*lists)]


def _with_preset(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of a preset under those that were given beside it."""
    preset = fields.pop("preset", None)
    if preset is not None:
        if not isinstance(preset, str) or preset not in PRESETS:
            raise unknown("preset", preset, PRESETS, where)
        base = dict(PRESETS[preset])
        for key in fields:
            for rival in _RIVALS.get(key, ()):
                base.pop(rival, None)
        if fields.keys() & {"seqlen_q", "seqlen_k"}:
            base.pop("seqlen", None)
        fields = {**base, **fields}
    return fields


def _subject(kind: PointKind, fields: dict[str, Any], where: str) -> Subject:
    if kind == "attention":
        fields = _with_preset(fields, where)
    try:
        return make_subject(kind, fields)
    except UserError as error:
        told = ", ".join(f"{k} = {_toml(v)}" for k, v in fields.items())
        raise UserError(f"{where}: {error} (in {told})") from error


def _apply(file: _File, override: str) -> None:
    """One ``--set key=value`` onto the file."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set {override!r}: must look like key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table, dot, inner = key.partition(".")
    if dot:
        if table not in _TABLES:
            raise unknown("table", table, _TABLES, f"--set {key}")
        getattr(file, table)[inner] = value
        return
    if key not in keys_of(file.kind):
        if not isinstance(value, Value):
            raise unknown("key", key, set_keys(file.kind), "--set")
        file._options[key] = value
        return
    for fields in [file.grid] * bool(file.grid) + file.points:
        for rival in _RIVALS.get(key, ()) if file.kind == "attention" else ():
            fields.pop(rival, None)
        fields[key] = value


def validate_table(
    model: type[Settings], data: Mapping[str, Any], path: Path, table: str
) -> Settings:
    """Check a table against its model; the first fault becomes one clear line."""
    where = f"{path}: [{table}]" if table else str(path)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown("key", key, model.model_fields, where) from error
        if first["type"] == "missing":
            raise UserError(f"{where}: {key} is missing") from error
        message = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        raise UserError(f"{where}: {key} = {_toml(first['input'])}: {message}") from error


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
