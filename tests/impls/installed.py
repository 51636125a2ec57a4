"""Stand-ins of libraries, put where an installed package would be, and taken away again."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shelf import implementation

STAND_INS = Path(__file__).parent / "stand_ins"
Install = Callable[..., None]

DISTRIBUTIONS = {
    "flash_attn_2": ("flash_attn", "2.8.3"),
    "flash_attn_3": ("flash_attn_3", "3.0.0b1"),
    "flash_attn_4": ("flash_attn_4", "4.0.0b5"),
    "sageattention": ("sageattention", "2.2.0"),
    "natten": ("natten", "0.21.6"),
    "fla": ("flash_linear_attention", "0.5.2"),
    "flashinfer": ("flashinfer_python", "0.6.18"),
    "cudnn": ("nvidia_cudnn_frontend", "1.23.0"),
    "xformers": ("xformers", "0.0.35"),
}
"""By folder of ``stand_ins``: the distribution's name and version."""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """A function that installs a stand-in for the duration of a test."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    before = dict(sys.modules)

    def put(stand_in: str, version: str | None = None, *, only_metadata: bool = False) -> None:
        name, usual = DISTRIBUTIONS[stand_in]
        number = version or usual
        if not only_metadata:
            shutil.copytree(STAND_INS / stand_in, site, dirs_exist_ok=True)
        info = site / f"{name}-{number}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {number}\n"
        (info / "METADATA").write_text(text)
        importlib.invalidate_caches()

    yield put
    for name, module in list(sys.modules.items()):
        if name not in before and str(site) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters take a CPU, where the stand-ins run."""
    library = next(c for c in type(implementation("natten")).__mro__ if c.__name__ == "Library")
    monkeypatch.setattr(library, "devices", ("cpu",))
