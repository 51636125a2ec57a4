"""What is shipped: the wheel's contents, its entry points, the pins, the licence."""

from __future__ import annotations

import configparser
import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import attnbench

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "bench", "impls", "suites", "reports")


def files_below(folder, suffixes=("",)):
    """Names of files, relative, without what Python leaves behind."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name.endswith(suffixes)
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what is shipped, with rendered pages and other debris in it."""
    tree = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__", "out")
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=ignore)
        else:
            shutil.copy(source, tree / name)
    for debris in ("reports/out/quick/index.html", "impls/__pycache__/naive.cpython-311.pyc"):
        (tree / debris).parent.mkdir(parents=True)
        (tree / debris).write_text("debris")
    return tree


@pytest.fixture(scope="module")
def wheel(tree):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tree / "dist"]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (path,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def dist_info(wheel, name):
    return wheel.read(f"attnbench-{attnbench.__version__}.dist-info/{name}").decode()


# ---- the wheel -------------------------------------------------------------------------


def test_nothing_is_importable_but_attnbench(wheel):
    """So that an install can never shadow a user's own bench, impls or tests."""
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"attnbench", f"attnbench-{attnbench.__version__}.dist-info"}


def test_the_package_and_the_shelves_are_in_it_and_no_debris(wheel, tree):
    found = {name for name in wheel.namelist() if name.startswith("attnbench/")}
    expected = {f"attnbench/{name}" for name in files_below(tree / "bench" / "attnbench")}
    for shelf in ("impls", "suites", "reports"):
        names = files_below(tree / shelf) - {"out/quick/index.html"}
        assert names, f"the shelf {shelf} is empty"
        expected |= {f"attnbench/_shelves/{shelf}/{name}" for name in names}
    assert found == expected
    assert {"attnbench/py.typed", "attnbench/_shelves/impls/naive.py"} <= found
    assert "attnbench/_shelves/suites/quick.toml" in found


def test_the_entry_points_lead_to_something(wheel):
    points = configparser.ConfigParser()
    points.read_string(dist_info(wheel, "entry_points.txt"))
    assert dict(points["console_scripts"]) == {"attnbench": "attnbench.cli:main"}
    assert dict(points["pytest11"]) == {"attnbench": "attnbench.pytest_plugin"}
    for module in ("cli", "pytest_plugin"):
        assert f"attnbench/{module}.py" in wheel.namelist()


def test_an_installed_wheel_finds_its_own_shelves(wheel, tmp_path):
    """Unpacked elsewhere and run in an empty folder, with the checkout out of sight."""
    wheel.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    code = (
        "import attnbench, attnbench.shelves as s; print(attnbench.__file__)\n"
        "for kind in ('impls', 'suites', 'reports'): print(s.builtin(kind), *s.find(kind))\n"
        "from attnbench.cli import main; main(['list', 'suites'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "empty", capture_output=True, text=True,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    package, *shelves = run.stdout.splitlines()[:4]
    assert package == str(tmp_path / "site" / "attnbench" / "__init__.py")
    for line, kind in zip(shelves, ("impls", "suites", "reports"), strict=True):
        folder = str(tmp_path / "site" / "attnbench" / "_shelves" / kind)
        assert line == f"{folder} {folder}"
    assert "quick" in run.stdout


def test_the_metadata_tell_version_python_and_licence(wheel):
    told = Parser().parsestr(dist_info(wheel, "METADATA"))
    assert told["Version"] == attnbench.__version__
    assert told["Requires-Python"] == ">=3.11"
    assert told["License-Expression"] == "Apache-2.0"
    assert dist_info(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    assert "# attnbench" in told.get_payload()


def test_the_licence_is_the_whole_text_of_apache_2():
    text = (ROOT / "LICENSE").read_bytes()
    wanted = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256(text).hexdigest() == wanted


# ---- dependencies ----------------------------------------------------------------------


def requirements():
    """Every package that pyproject names, in the core, an extra or the build."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    parsed = [Requirement(line) for line in [*PROJECT["dependencies"], *extras, *build]]
    return [r for r in parsed if r.name != "attnbench"]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    told = [line for line in lines if line and not line.startswith("#")]
    for line in told:
        assert re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", line), line  # exact, and no address
    return [tuple(line.split("==")) for line in told]


def test_every_dependency_is_pinned_exactly_once():
    names = [canonicalize_name(name) for name, _ in pins()]
    assert sorted(set(names)) == sorted(names)
    assert {canonicalize_name(r.name) for r in requirements()} <= set(names)


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_pin_lies_in_the_range_that_pyproject_supports(requirement):
    assert requirement.specifier.contains(dict(pins())[canonicalize_name(requirement.name)])


def test_the_measuring_core_needs_little():
    """It installs on a bare GPU box; pages, training and clusters are extras."""
    core = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert core == {"numpy", "nvidia-ml-py", "pydantic", "rich", "torch", "triton"}
    assert {
        "report",
        "export",
        "pytest",
        "xformers",
        "train",
        "ray",
        "slurm",
        "peers",
        "dev",
    } == set(PROJECT["optional-dependencies"])


def test_torch_and_triton_are_pinned_as_a_pair():
    """Which triton a torch asks for, by the metadata of its CUDA wheel. Add a line to move on."""
    asked = {"2.13.0": "3.7.1"}
    assert dict(pins())["triton"] == asked[dict(pins())["torch"]]


def test_the_pinned_triton_is_the_one_that_torch_asks_for():
    installed = importlib.metadata.version("torch")
    wanted = [
        r
        for r in map(Requirement, importlib.metadata.requires("torch") or [])
        if r.name in ("triton", "pytorch-triton")
    ]
    if not wanted:
        pytest.skip(f"torch {installed} is no CUDA build: it asks for no triton")
    if installed.partition("+")[0] != dict(pins())["torch"]:
        pytest.skip(f"torch {installed} is not the pinned {dict(pins())['torch']}")
    assert all(r.specifier.contains(dict(pins())["triton"]) for r in wanted)


# ---- the public names ------------------------------------------------------------------


@pytest.mark.parametrize("name", attnbench.__all__)
def test_every_public_name_loads(name):
    assert getattr(attnbench, name) is not None


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'attnbench' has no attribute 'nothing'"):
        _ = attnbench.nothing


def test_importing_attnbench_imports_no_torch():
    code = "import sys, attnbench; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
