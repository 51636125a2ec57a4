"""``attnbench picture``: the weights that methods really use, and one clear line for a mistake."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from attnbench import cli
from attnbench.commands import opening
from attnbench.errors import UserError
from attnbench.inputs import make_inputs
from attnbench.pictures.capture import capture
from attnbench.pictures.facts import facts_of, notes
from attnbench.pictures.figure import draw_picture
from attnbench.pictures.paint import colours, png
from attnbench.pictures.result import LONGEST, Picture, PictureFile, is_picture, read_picture
from attnbench.pictures.tensors import read_tensors
from attnbench.problem import Problem
from attnbench.report.pictures import write_page
from attnbench.session import Session, open_session

METHODS = """
import os, time
import torch
from torch.nn.functional import scaled_dot_product_attention as attend
from attnbench import Unsupported, register

@register("right", features=("gqa", "cross", "head_dim_v", "scale"))
def right(q, k, v, problem):
    mask = problem.mask.dense(problem.seqlen_q, problem.seqlen_k)
    return attend(q, k, v, attn_mask=mask, enable_gqa=True, scale=problem.softmax_scale)

@register("elsewhere")
def elsewhere(q, k, v, problem):
    return attend(q, k.flip(2), v)

@register("short")
def short(q, k, v, problem):
    return attend(q, k, v) * 0.9

@register("peeks")
def peeks(q, k, v, problem):
    return attend(q, k, v)

@register("signed")
def signed(q, k, v, problem):
    return 2 * attend(q, k, v) - v.mean(2, keepdim=True)

@register("not-linear")
def not_linear(q, k, v, problem):
    return attend(q, k, v).relu()

@register("restless")
def restless(q, k, v, problem):
    return attend(q + torch.randn_like(q), k, v)

@register("nan")
def nan(q, k, v, problem):
    return attend(q, k, v) + float("nan")

@register("picky")
def picky(q, k, v, problem):
    raise Unsupported("only on <b>Tuesdays</b>")

@register("crashes")
def crashes(q, k, v, problem):
    os.abort()

@register("hangs")
def hangs(q, k, v, problem):
    time.sleep(600)
"""
SMALL = ["--set", "heads=2", "--set", "seqlen=24", "--set", "head_dim=8"]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    project = tmp_path_factory.mktemp("project")
    (project / "impls").mkdir()
    (project / "impls" / "methods.py").write_text(METHODS)
    (project / "impls" / "broken.py").write_text("import nothing_of_this_name\n")
    with open_session(project, "cpu", lock=False) as opened:
        yield opened


@pytest.fixture
def picture(session: Session, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command in this process, in the session that is open already."""

    @contextmanager
    def already_open(*words: Any, **more: Any) -> Iterator[Session]:
        yield session

    monkeypatch.setattr(opening, "open_session", already_open)
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *words: cli.main(["picture", *map(str, words)])


def made(folder: Path) -> Picture:
    found = read_picture(folder)
    assert found is not None
    return found


def definition(problem: Problem, q: torch.Tensor, k: torch.Tensor) -> NDArray[np.float64]:
    """softmax(q kᵀ · scale) of one sequence, written naively."""
    k = k.repeat_interleave(q.shape[0] // k.shape[0], dim=0).double()
    logits = q.double() @ k.mT * problem.softmax_scale
    hidden = ~problem.mask.dense(problem.seqlen_q, problem.seqlen_k)
    weights: NDArray[np.float64] = logits.masked_fill(hidden, -torch.inf).softmax(-1).numpy()
    return weights


def test_weights_of_reference_and_method_are_those_of_the_definition(
    picture: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["--set", "heads=4", "--set", "heads_kv=2", "--set", "seqlen=24",
             "--set", "head_dim=8", "--set", "mask=causal"]  # fmt: skip
    assert picture("right", *words, "--head", "3", "--head", "1", "--out", out) == 0
    problem = Problem.of(heads=4, heads_kv=2, seqlen=24, head_dim=8, mask="causal")
    inputs = make_inputs(problem, 0)
    wanted = definition(problem, inputs.q_BHMD[0], inputs.k_BGND[0])[[3, 1]]
    shown = made(out)
    assert shown.told.heads == (3, 1)
    np.testing.assert_allclose(shown.weights[0], wanted, atol=1e-6)
    np.testing.assert_allclose(shown.weights[1], wanted, atol=1e-6)
    assert shown.forbidden_MN.sum() == 24 * 23 // 2
    for facts in shown.told.panels[1].facts:
        assert facts.tv < 1e-6
        assert notes(facts, shown.told.epsilon) == []


def test_methods_that_attend_elsewhere_or_not_as_softmax_does_are_told(
    picture: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert picture("elsewhere", "short", "signed", *SMALL, "--out", out) == 0
    shown = made(out)
    (elsewhere,), (short,), (signed,) = (p.facts for p in shown.told.panels[1:])
    assert elsewhere.tv > 0.1  # its rows sum to 1: only the distance and the picture show it
    assert notes(elsewhere, shown.told.epsilon) == []
    assert not np.allclose(shown.weights[1], shown.weights[0], atol=1e-2)
    assert notes(short, shown.told.epsilon) == ["rows do not sum to 1, but to 0.9"]
    assert short.tv == pytest.approx(0.05, abs=1e-4)
    (told,) = notes(signed, shown.told.epsilon)
    assert told.startswith("negative weights, to -0.0")
    assert [shown.is_signed(n) for n in range(4)] == [False, False, False, True]
    said = capsys.readouterr().out
    assert "rows do not sum to 1, but to 0.9" in said
    for text in ("rows do not sum to 1, but to 0.9", told):
        assert text in (out / "index.html").read_text(encoding="utf-8")


def test_weight_on_keys_that_the_mask_forbids_is_told_and_drawn(
    picture: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert picture("peeks", *SMALL, "--set", "mask=causal", "--out", out) == 0
    shown = made(out)
    (facts,) = shown.told.panels[1].facts
    assert any("on keys that the mask forbids" in note for note in notes(facts, 1e-7))
    scale = colours(shown, 0, signed=False)
    assert scale is not None
    reference, peeking = (scale.levels(shown.weights[n][0], shown.forbidden_MN) for n in (0, 1))
    assert (reference[shown.forbidden_MN] == 255).all()  # hatched
    assert (peeking[shown.forbidden_MN] < 254).all()  # coloured


def test_methods_without_weights_say_why_in_their_panels_and_take_nobody_down(
    picture: Any, tmp_path: Path
) -> None:
    reasons = {
        "picky": "unsupported: only on <b>Tuesdays</b>",
        "broken": "unavailable: ",
        "not-linear": "incorrect: has no weights to show: its output is not the weights that",
        "restless": "so that they change with v or from call to call",
        "nan": "incorrect: NaN or infinite weights: 1152 of 1152 pairs",
        "crashes": "crash: the worker process was killed by SIGABRT",
    }
    out = tmp_path / "out"
    assert picture(*reasons, "right", *SMALL, "--out", out) == 1
    shown = made(out)
    assert set(shown.weights) == {0, 7}
    for panel in shown.told.panels[1:7]:
        assert reasons[panel.name] in (panel.reason or "")
    html = (out / "index.html").read_text(encoding="utf-8")
    assert html.count('<img src="data:image/png') == 3  # two methods and the colours
    assert "only on &lt;b&gt;Tuesdays" in html


@pytest.mark.slow
def test_a_method_that_hangs_is_given_up_and_the_next_one_is_drawn(
    picture: Any, tmp_path: Path
) -> None:
    assert picture("hangs", "right", *SMALL, "--timeout", "1", "--out", tmp_path / "out") == 1
    shown = made(tmp_path / "out")
    assert shown.told.panels[1].reason == "timeout: no sign of life for 1 s; killed"
    assert set(shown.weights) == {0, 2}


@pytest.mark.slow
def test_what_cannot_be_done_is_no_fault_but_a_picture_of_nobody_is(
    picture: Any, tmp_path: Path
) -> None:
    assert picture("picky", "right", *SMALL, "--out", tmp_path / "two") == 0
    assert picture("picky", *SMALL, "--out", tmp_path / "one") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rihgt"], "did you mean 'right'?"),
        (["right", "--set", "seqln=4"], "unknown key 'seqln'"),
        (["right", "--set", "seqlen=513"],
         "seqlen_q 513 is too long for a picture, where each weight is a pixel; allowed: up to "
         "512"),
        (["right", "--set", "seqlen_q=8", "--set", "seqlen_k=4096"], "seqlen_k 4096 is too long"),
        (["right", "--set", "direction=both"], "a picture does not show direction 'both'"),
        (["right", "--set", "dropout_p=0.1"], "does not show dropout"),
        (["right", "--set", "level=layer"], "does not show level 'layer'"),
        (["right", *SMALL, "--head", "2"], "--head 2: the problem has 2 heads, from 0"),
        (["right", *SMALL, "--heads", "3"], "--heads 3: the problem has 2 heads"),
        (["right", "--set", "heads=16", "--heads", "9"], "9 heads are too many; allowed: up to 8"),
        (["right", "--heads", "0"], "must be a whole number from 1, got '0'"),
        (["right", "--heads", "1", "--head", "0"], "not allowed with argument --heads"),
        (["right", "--scale", "lin"], "did you mean 'linear'?"),
        (["right", "--tensors", "nowhere.npz"], "--tensors nowhere.npz: no such file"),
        (["right", "--tensors", "q.csv"], "must end in .npz, .pt, .safetensors"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line_and_exit_2(
    words: list[str], message: str, picture: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert picture(*words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert message in told
    assert LONGEST == 512


def test_a_folder_that_is_no_picture_is_left_alone(
    picture: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert picture("right", *SMALL, "--out", tmp_path) == 2
    assert "exists and is no picture" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def folders(session: Session) -> set[Path]:
    return {p for p in session.project.glob("results/*/pictures/*") if p.is_dir()}


def test_files_lie_beside_the_records_and_are_named(
    picture: Any, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    before = folders(session)
    assert picture("right", *SMALL, "--heads", "2") == 0
    told = capsys.readouterr().out
    (folder,) = folders(session) - before
    names = {"picture.json", "weights.npz", "index.html",
             "head-0.png", "head-0.svg", "head-1.png", "head-1.svg"}  # fmt: skip
    assert {file.name for file in folder.iterdir()} == names
    assert all(str(folder / name) in told for name in names)
    assert Image.open(folder / "head-0.png").width > 800
    assert "--heads 2" in json.loads((folder / "picture.json").read_text())["command"]


@pytest.mark.slow
def test_the_same_request_replaces_its_picture_and_another_does_not(
    picture: Any, session: Session
) -> None:
    before = folders(session)
    for scale, count in (("log", 1), ("log", 1), ("linear", 2)):
        words = ["--set", "heads=1", "--set", "seqlen=8", "--set", "head_dim=8"]
        assert picture("right", *words, "--scale", scale) == 0
        assert len(folders(session) - before) == count
    assert all(map(is_picture, folders(session)))


def test_the_same_weights_give_the_same_bytes(picture: Any, tmp_path: Path) -> None:
    assert picture("right", "signed", *SMALL, "--out", tmp_path / "first") == 0
    (tmp_path / "again").mkdir()
    draw_picture(made(tmp_path / "first"), tmp_path / "again")
    write_page(made(tmp_path / "first"), tmp_path / "again" / "index.html")
    for name in ("head-0.png", "head-0.svg", "index.html"):
        first, again = ((tmp_path / folder / name).read_bytes() for folder in ("first", "again"))
        assert first == again, name


# ---- a model's layer ------------------------------------------------------------------------


def layer(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"q": (1, 4, 10, 8), "k": (1, 2, 12, 8), "v": (1, 2, 12, 6)}
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_a_layers_tensors_come_from_a_file_of_each_format(suffix: str, tmp_path: Path) -> None:
    file, tensors = tmp_path / f"layer{suffix}", layer()
    if suffix == ".npz":
        np.savez(file, **{n: x.numpy() for n, x in tensors.items()})  # type: ignore[arg-type]
    elif suffix == ".pt":
        torch.save(tensors, file)
    else:
        pytest.importorskip("safetensors.torch").save_file(tensors, file)
    torch.testing.assert_close(read_tensors(file), tensors, rtol=0, atol=0)


def test_a_layer_is_pictured_with_its_own_q_and_k(picture: Any, tmp_path: Path) -> None:
    file, tensors, out = tmp_path / "layer.pt", layer(), tmp_path / "out"
    torch.save(tensors, file)
    words = ["--tensors", file, "--set", "scale=0.5", "--head", "3", "--out", out]
    assert picture("right", *words) == 0
    shown = made(out)
    problem = Problem.from_json(shown.told.problem)
    assert (problem.heads_q, problem.heads_kv, problem.seqlen_q, problem.seqlen_k) == (4, 2, 10, 12)
    assert problem.head_dim_v == 6
    wanted = definition(problem, tensors["q"][0], tensors["k"][0])[[3]]
    np.testing.assert_allclose(shown.weights[0], wanted, atol=1e-6)
    np.testing.assert_allclose(shown.weights[1], wanted, atol=1e-6)
    assert shown.told.title.startswith("layer.pt: ")


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ({"k": None}, [], "has no tensor 'k'; it has: q, v"),
        ({"q": torch.zeros(4, 10, 8)}, [], "q must be (batch, heads, seqlen, head_dim), got"),
        ({"q": torch.zeros(1, 4, 10, 6)}, [], "shapes do not fit: q (1, 4, 10, 6)"),
        ({"q": torch.zeros(1, 3, 10, 8)}, [], "H a multiple of G"),
        ({"q": torch.full((1, 4, 10, 8), torch.nan)}, [], "q has NaN or infinite values"),
        ({"q": torch.zeros(1, 4, 10, 8, dtype=torch.int64)}, [], "q has dtype int64"),
        ({"q": torch.zeros(1, 4, 600, 8)}, [], "seqlen_q 600 is too long"),
        ({}, ["--set", "seqlen=8"], "--set seqlen: with --tensors the shapes"),
    ],
)
def test_tensors_that_are_no_attention_are_refused(
    change: dict[str, Any], more: list[str], message: str, picture: Any, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tensors = {n: x for n, x in {**layer(), **change}.items() if x is not None}
    torch.save(tensors, tmp_path / "layer.pt")
    assert picture("right", "--tensors", tmp_path / "layer.pt", *more) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert message in told


def test_a_file_that_would_run_code_or_is_damaged_is_refused(
    picture: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"q": Evil()}, tmp_path / "evil.pt")
    for name in ("junk.pt", "junk.npz", "junk.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 no such thing")
    for file in sorted(tmp_path.glob("*.*")):
        assert picture("right", "--tensors", file) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "cannot be read" in told
    assert not (tmp_path / "ran").exists()


class Layer(torch.nn.Module):
    """Two projections and torch's attention, twice: once inside what is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = x.reshape(1, 5, 2, 8).transpose(1, 2)
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
        out: torch.Tensor = self.inner(x, x, x, need_weights=False)[0]
        return out


def test_capture_takes_the_q_and_k_of_the_watched_module_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Layer(), torch.randn(1, 5, 16)
    original = torch.nn.functional.scaled_dot_product_attention
    with capture(model.inner) as calls:
        model(x)
    assert torch.nn.functional.scaled_dot_product_attention is original
    (call,) = calls
    weights = (call.q_BHMD @ call.k_BGND.mT / 8**0.5).softmax(-1)
    _, wanted = model.inner(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(weights, wanted)
    call.save(tmp_path / "layer.pt")
    assert set(torch.load(tmp_path / "layer.pt")) == {"q", "k", "v"}


def test_capture_of_a_module_that_does_not_attend_or_has_its_own_mask_is_told(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match="Linear made no call"), capture(torch.nn.Linear(2, 2)):
        pass
    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(1, 5, 16)
    with capture(attention) as calls:
        attention(x, x, x, need_weights=False, attn_mask=torch.ones(5, 5).triu(1).bool())
    with pytest.raises(UserError, match="without padding"):
        calls[0].save(tmp_path / "layer.pt")


# ---- facts and colours ----------------------------------------------------------------------


def test_a_row_that_sees_no_key_counts_neither_for_sums_nor_for_distance() -> None:
    reference = np.array([[0.0, 0.0], [0.5, 0.5]])
    forbidden = np.array([[True, True], [False, False]])
    facts = facts_of(reference, reference, forbidden)
    assert (facts.sum_low, facts.sum_high, facts.tv, facts.forbidden) == (1, 1, 0, 0)
    wrong = np.array([[0.3, 0.0], [0.5, 0.5]])
    assert facts_of(wrong, reference, forbidden).forbidden == pytest.approx(0.3)


def test_rounding_of_low_precision_is_no_fault() -> None:
    rounded = np.full((1, 3), 0.3340)  # 1/3 in bfloat16
    facts = facts_of(rounded, np.full((1, 3), 1 / 3), np.zeros((1, 3), dtype=np.bool_))
    assert notes(facts, 2**-7) == []
    assert notes(facts, 2**-23) == ["rows do not sum to 1, but to 1.002"]


def test_zero_forbidden_and_small_weights_have_looks_of_their_own() -> None:
    forbidden = np.array([[False, False, False, True]])
    weights = np.array([[1.0, 1e-9, 0.0, 0.0]], dtype=np.float32)
    facts = facts_of(weights.astype(np.float64), weights, forbidden)
    told: Any = {
        "attnbench": "1", "title": "t", "problem": {}, "heads": (0,), "scale": "log",
        "epsilon": 1e-7, "device": "cpu", "command": "",
        "panels": [{"name": "r", "facts": [facts]}],
    }  # fmt: skip
    shown = Picture(PictureFile.model_validate(told), {0: weights[None]}, forbidden)
    scale = colours(shown, 0, signed=False)
    assert scale is not None
    levels = scale.levels(weights, forbidden)
    assert levels.tolist() == [[253, 0, 254, 255]]
    image = Image.open(io.BytesIO(png(levels, scale.palette()))).convert("RGBA")
    alphas = [image.getpixel((x, 0))[3] for x in range(4)]  # type: ignore[index]
    assert alphas == [255, 255, 255, 0]
