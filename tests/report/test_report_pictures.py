"""Attention pictures that lie beside the records are on their page; damaged ones are not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_records import sweep, write_run

from attnbench.pictures.facts import facts_of
from attnbench.pictures.result import FILE, PAGE, WEIGHTS, Panel, Picture, PictureFile
from attnbench.record import Record
from attnbench.report import pictures, render
from attnbench.report.pictures import find_pictures, write_page

HOSTILE = "</p><script>alert(1)</script>"


def put_picture(
    records: Path, name: str = "a", *, title: str = "B1 H1 N6", seqlen: int = 6, **changes: Any
) -> Path:
    """A picture of softmax, a method with a negative weight, and one that cannot run."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(seqlen), seqlen)
    signed = weights * 1.5 - 0.5 / seqlen
    forbidden = np.zeros((seqlen, seqlen), dtype=np.bool_)
    told = PictureFile.model_validate({
        "attnbench": "1", "title": title, "problem": {}, "heads": (2,), "scale": "log",
        "epsilon": 1e-7, "device": "cpu", "command": "attnbench picture signed refuses",
        "panels": [
            Panel(name="softmax, float64", facts=(facts_of(weights, weights, forbidden),)),
            Panel(name="signed", facts=(facts_of(signed, weights, forbidden),)),
            Panel(name="refuses", reason=f"unsupported: {HOSTILE}"),
        ],
        **changes,
    })  # fmt: skip
    shown = {0: weights[None].astype(np.float32), 1: signed[None].astype(np.float32)}
    folder = records / "pictures" / name
    folder.mkdir(parents=True)
    picture = Picture(told, shown, forbidden)
    picture.write(folder)
    write_page(picture, folder / PAGE)
    return folder


def some(suite: str = "quick") -> list[Record]:
    return sweep(suite, ("naive",), seqlens=(128,), dtypes=("float32",), masks=("full",))


def page(file: Path, out: Path) -> str:
    """The page of a report that has this view alone."""
    definition = file.parent / "only.toml"
    definition.write_text('[[views]]\nview = "pictures"\n', encoding="utf-8")
    return render([file], out, report=str(definition)).page.read_text(encoding="utf-8")


def section(html: str) -> str:
    (found,) = re.findall(
        r'<section id="[^"]*" class="view view-pictures".*?</section>', html, re.S
    )
    return str(found)


def test_the_page_has_the_pictures_beside_its_records_once_for_all_suites(tmp_path: Path) -> None:
    file = write_run(tmp_path, [*some(), *some("other")])
    folder = put_picture(file.parent)
    html = page(file, tmp_path / "out")
    shown = section(html)
    assert shown.count("<details class=") == 1
    for text in (
        "B1 H1 N6", "Head 2", "signed", "total variation", "no distribution",
        "attnbench picture signed refuses", "weight, of methods with negative ones",
    ):  # fmt: skip
        assert text in shown
    assert len(re.findall(r'<img src="data:image/png;base64,', shown)) == 4  # with two bars
    (address,) = re.findall(r'href="([^"]*)">Its own page', shown)
    assert (tmp_path / "out" / address).resolve() == (folder / PAGE).resolve()
    assert "img-src data:" in html
    assert HOSTILE not in html
    assert "unsupported: &lt;/p&gt;" in shown


def test_without_pictures_there_is_no_view(tmp_path: Path) -> None:
    html = page(write_run(tmp_path, some()), tmp_path / "out")
    assert "view-pictures" not in html
    assert "Attention pictures" not in html


def _cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:200])


def _pickled(folder: Path) -> None:
    np.savez(folder / WEIGHTS, forbidden=np.array([object()]), allow_pickle=True)


def _other_shape(folder: Path) -> None:
    arrays = dict(np.load(folder / WEIGHTS))
    arrays["panel_1"] = arrays["panel_1"][:, :3]
    np.savez(folder / WEIGHTS, **arrays)


def _not_finite(folder: Path) -> None:
    arrays = dict(np.load(folder / WEIGHTS))
    arrays["panel_1"][0, 0, 0] = np.nan
    np.savez(folder / WEIGHTS, **arrays)


def _no_reference(folder: Path) -> None:
    arrays = dict(np.load(folder / WEIGHTS))
    del arrays["panel_0"]
    np.savez(folder / WEIGHTS, **arrays)


def _no_json(folder: Path) -> None:
    (folder / FILE).write_text('{"heads": 3}')


@pytest.mark.parametrize(
    "damage", [_cut, _pickled, _other_shape, _not_finite, _no_reference, _no_json]
)
def test_a_damaged_picture_is_left_out_and_the_others_stay(damage: Any, tmp_path: Path) -> None:
    damage(put_picture(tmp_path, "a", title="damaged"))
    put_picture(tmp_path, "b", title="whole")
    file = write_run(tmp_path, some())
    assert file.parent == tmp_path
    assert [view.title for view in find_pictures([tmp_path, file], tmp_path)] == ["whole"]


def test_what_is_too_large_for_the_page_is_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_run(tmp_path, some())
    for name in ("a", "b"):
        put_picture(file.parent, name, title=f"picture {name}", seqlen=24)
    first, second = find_pictures([file], tmp_path)
    assert second.heads
    monkeypatch.setattr(pictures, "_MOST_BYTES", first.size + 10)
    shown = section(page(file, tmp_path / "out"))
    assert shown.count("Too large for this page.") == 1
    assert shown.count("Its own page") == 2
    assert "picture b" in shown


def test_the_pictures_own_page_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    html = (put_picture(tmp_path, title=HOSTILE) / PAGE).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "default-src 'none'" in html
    assert not re.search(r'(src|href)="(?!data:image/png)', html)
    assert "&lt;script&gt;" in html
