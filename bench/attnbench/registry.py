"""Finds implementations, and explains the ones that cannot be used.

Three sources, none with a private door: the built-in shelf, the ``impls/`` folder of the
current project (and ``--impls-dir``), and entry points of installed packages in the group
``attnbench.impls``. Finding means importing, and somebody's module may raise, hang or
crash; so this runs inside a worker process, and what it hands on is plain data
(:class:`Entry`). A plugin that fails becomes an unavailable entry with file, line and
reason, and the rest goes on.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from attnbench import plugin, shelves
from attnbench.errors import in_words
from attnbench.neighbours import of_its_time
from attnbench.spec import Value

GROUP = "attnbench.impls"


@dataclass(frozen=True)
class Source:
    """One thing to import: a file or folder of a shelf, or an entry point."""

    origin: str  # "built-in", "project", or "package NAME VERSION"
    stem: str  # what to call it if it cannot be imported
    path: str = ""
    entry_point: str = ""  # "module" or "module:attribute"
    revision: str = ""  # commit that git brought it out of; empty for what lies there now
    stands_for: str = ""  # then, the shelf it was taken from


@dataclass(frozen=True)
class Entry:
    """What is known about one implementation; plain data, safe to send and store."""

    name: str
    source: Source
    file: str
    line: int
    reason: str | None = None  # why it is unavailable; None if it can be used
    kind: str = "exact"
    layout: str = "BHSD"
    options: dict[str, Value] = field(default_factory=dict)
    simulators: dict[str, str] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    version: str | None = None
    paper: str | None = None
    summary: str = ""
    source_sha256: str | None = None

    @property
    def code(self) -> str | None:
        """What tells this code from another: its own source, and the library it calls."""
        return f"{self.source_sha256} {self.version}" if self.version else self.source_sha256

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Entry:
        """The inverse of :meth:`to_json`."""
        source = Source(**data["source"])
        return cls(**{**data, "source": source, "features": tuple(data["features"])})


def sources(project: Path | None = None, extra: Iterable[Path] = ()) -> list[Source]:
    """Everything that may hold implementations, in order of precedence: built-in first.

    A project's file that is the same as a built-in one (a clone of attnbench beside an
    installed copy) counts once.
    """
    folders = {"built-in": [shelves.builtin("impls")]}
    folders["project"] = [
        f for f in shelves.find("impls", project) if f != shelves.builtin("impls")
    ]
    folders["project"] += [f.resolve() for f in extra]
    found: list[Source] = []
    digests: set[str] = set()
    for origin, shelf_folders in folders.items():
        for path in _plugin_paths(shelf_folders):
            try:
                code = digest(path)
            except OSError:  # a dangling link, no permission: importing it will say so
                code = str(path)
            if code not in digests:
                digests.add(code)
                found.append(Source(origin, path.stem, path=str(path)))
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name):
        package = point.dist
        origin = f"package {package.name} {package.version}" if package else "package"
        found.append(Source(origin, point.name, entry_point=point.value))
    return found


def sources_at(shelf: Path, present: Path, origin: str, revision: str) -> list[Source]:
    """What may hold implementations in a shelf that git brought out of a revision.

    Args:
        shelf: where it lies.
        present: the shelf as it is now.
        origin: as in :class:`Source`.
        revision: the commit.
    """
    return [
        Source(origin, path.stem, str(path), revision=revision, stands_for=str(present))
        for path in _plugin_paths([shelf])
    ]


def source_digest(path: Path) -> str:
    """SHA-256 of an implementation's code: its file or folder, and what any file may use.

    That is whatever lies on the shelf and is no implementation (``_common.py``, ``csrc/``),
    documents and tests aside: another neighbour is another code.

    Raises:
        OSError: something cannot be read.
    """
    shelf = path.parent
    plugins = set(_plugin_paths([shelf]))
    beside = [
        p
        for p in sorted(shelf.iterdir())
        if p not in plugins
        and p.suffix != ".md"
        and not p.name.startswith((".", "__pycache__", "conftest", "test_"))
    ]
    own = digest(path)
    if not beside:
        return own
    return hashlib.sha256("".join([own, *map(digest, beside)]).encode()).hexdigest()


def discover(
    found: Iterable[Source], announce: Callable[[Source], None] = lambda source: None
) -> list[Entry]:
    """Import every source and list what it registered, sorted by name.

    Args:
        found: from :func:`sources`.
        announce: called before each import, so that a crash can be blamed.
    """
    from attnbench import guard  # noqa: F401 - imports torch, which is no plugin's time

    entries: dict[str, Entry] = {}
    unavailable: list[Entry] = []
    for source in found:
        announce(source)
        for entry in _entries_of(source):
            first = entries.get(entry.name)
            if entry.reason is None and first is not None:
                if (entry.file, entry.line) == (first.file, first.line):
                    continue  # two entry points, or a file and an entry point, lead to it
                reason = f"the name {entry.name!r} is taken by {first.file}:{first.line}"
                entry = replace(entry, reason=reason)
            if entry.reason is None:
                entries[entry.name] = entry
            else:
                unavailable.append(entry)
    return by_name([*entries.values(), *unavailable])


def by_name(entries: Iterable[Entry]) -> list[Entry]:
    """Sorted by name, each name once: an unavailable entry gives way, and is called by its file."""
    named: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda e: (e.reason is not None, e.name)):
        name = entry.name
        if name in named:
            name = f"{name} ({Path(entry.file).name}:{entry.line})"
        if name in named:
            name = f"{entry.name} ({entry.file}:{entry.line})"
        named.setdefault(name, replace(entry, name=name))
    return sorted(named.values(), key=lambda e: e.name)


def load(entry: Entry) -> type[plugin.Attention]:
    """The class behind an available entry, imported in this process."""
    for declaration in _import(entry.source):
        if declaration.name == entry.name and declaration.fault is None:
            return declaration.cls
    raise plugin.Unsupported(f"{entry.file} no longer registers {entry.name!r}")


def registered(source: Source, name: str) -> type[plugin.Attention] | None:
    """The class that a source registers by a name; None if it does not, or cannot be imported."""
    try:
        declarations = _import(source)
    except Exception:  # listed as unavailable, with the reason; nothing to somebody else
        return None
    sound = (d.cls for d in declarations if d.name == name and d.fault is None)
    return next(sound, None)


def make(told: dict[str, Any]) -> plugin.Attention:
    """The implementation that a worker's task names, with its options."""
    return load(Entry.from_json(told["entry"]))(**told["options"])


def blame(source: Source, reason: str) -> Entry:
    """The unavailable entry for a source that could not be imported at all."""
    return Entry(source.stem, source, source.path or source.entry_point, 0, reason)


def _entries_of(source: Source) -> list[Entry]:
    try:
        declarations = _import(source)
    except BaseException as error:  # SystemExit too; a user's Ctrl-C does not reach a worker
        file, line = _origin_of(error, source)
        return [replace(blame(source, _say(error)), file=file, line=line)]
    if not declarations:
        return [blame(source, "registers no implementation (no @register call)")]
    seen: dict[str, plugin.Declaration] = {}
    entries = []
    for declaration in declarations:
        entry = _entry(declaration, source)
        if declaration.name in seen and entry.reason is None:
            reason = f"registers {entry.name!r} twice, first in line {seen[entry.name].line}"
            entry = replace(entry, reason=reason)
        seen.setdefault(declaration.name, declaration)
        entries.append(entry)
    return entries


def _entry(declaration: plugin.Declaration, source: Source) -> Entry:
    cls = declaration.cls
    is_sound = declaration.fault is None
    return Entry(
        name=declaration.name,
        source=source,
        file=declaration.file,
        line=declaration.line,
        reason=declaration.fault,
        kind=cls.kind,
        layout=cls.layout,
        options=dict(cls.options) if is_sound else {},
        simulators=dict(cls.simulators) if is_sound else {},
        features=tuple(sorted(cls.features)) if is_sound else (),
        version=cls.version,
        paper=cls.source,
        summary=next(iter((cls.__doc__ or "").strip().splitlines()), "") if is_sound else "",
        source_sha256=_code_of(source, Path(declaration.file)),
    )


def _code_of(source: Source, file: Path) -> str | None:
    """The digest of a source's code; None if there is no file to read."""
    if source.path:
        return source_digest(Path(source.path))
    return digest(file) if file.exists() else None


_loaded: dict[Source, list[plugin.Declaration]] = {}


def _import(source: Source) -> list[plugin.Declaration]:
    """Import a source once; return what it declared.

    Raises:
        Meddling: importing it changed what others depend on.
    """
    if source not in _loaded:
        from attnbench.guard import Guard  # needs torch, which whoever only lists does not

        before, guard = len(plugin.declared), Guard()
        try:
            module = _import_shelved(source) if source.path else _import_point(source)
            guard.check()
        finally:
            guard.restore()
        fresh = plugin.declared[before:]
        _loaded[source] = fresh or [d for d in plugin.declared if d.module == module.__name__]
    return _loaded[source]


def _import_point(source: Source) -> ModuleType:
    name, _, attribute = source.entry_point.partition(":")
    module = importlib.import_module(name.strip())
    if attribute and not hasattr(module, attribute.strip()):
        raise AttributeError(f"module {name!r} has no attribute {attribute.strip()!r}")
    return module


def _import_shelved(source: Source) -> ModuleType:
    path = Path(source.path)
    if not source.revision:
        return _import_file(path)
    with of_its_time(path.parent, Path(source.stands_for)):
        return _import_file(path, f"_at_{source.revision[:8]}")


def _import_file(path: Path, version: str = "") -> ModuleType:
    """Import a shelf file or folder under a name of its own."""
    name = f"attnbench_impls.{path.stem.replace('-', '_')}_{digest(path)[:8]}{version}"
    is_folder = path.is_dir()
    spec = importlib.util.spec_from_file_location(
        name,
        path / "__init__.py" if is_folder else path,
        submodule_search_locations=[str(path)] if is_folder else None,
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _plugin_paths(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            is_module = path.suffix == ".py" or (path / "__init__.py").is_file()
            if is_module and not path.name.startswith(("_", ".", "conftest", "test_")):
                yield path


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder (kernels are not all Python), names included.

    What is written about the code (``.md``) is no code.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        name = file.relative_to(path.parent)
        if "__pycache__" in name.parts or file.name.startswith(".") or file.suffix == ".md":
            continue
        digest.update(str(name).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _origin_of(error: BaseException, source: Source) -> tuple[str, int]:
    """File and line in the plugin where an import failed."""
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno or 0
    frames = traceback.extract_tb(error.__traceback__)
    if source.path:
        blamed = [f for f in frames if f.filename.startswith(source.path)]
    else:
        here = str(Path(__file__).parent)
        blamed = [f for f in frames if "importlib" not in f.filename and here not in f.filename]
    if blamed:
        return blamed[-1].filename, blamed[-1].lineno or 0
    return source.path or source.entry_point, 0


def _say(error: BaseException) -> str:
    return f"fails to import: {in_words(error)}"
