"""Sequences of a padded layer that are attended one after another: right, claimed, told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from made_layers import CPU, Plain, judged, of, wrong

from attnbench import Attention, ForwardBackward, Problem, Unsupported
from attnbench.battery import CASES, run_case
from attnbench.claim import claim_of
from attnbench.execution import WrongOutput
from attnbench.layer import apart
from attnbench.layer.execution import Layer, LayerExecution
from attnbench.layer.inputs import make_layer_inputs
from attnbench.layer.multi_head import MultiHeadAttention
from attnbench.layer.verify import make_layer_yardstick
from attnbench.masks import Document, Mask, Packed, Window
from attnbench.verify import judge

PADDED: dict[str, Any] = {"padding": 0.4}  # of 13 tokens: 13, 8 and 3
ALIKE: dict[str, Any] = {"padding": 0.05, "batch": 4}  # 13, 13, 12 and 12


class Alone(Plain):
    """One sequence at a time; several have to be asked for one by one."""

    masks = ("full", "causal")


class Band(Plain):
    """Takes any mask for none, and keeps a band of the pairs."""

    kind = "approximate"
    lies = 0

    def own_mask(self, problem: Problem) -> Mask | None:
        return Window(window=4, causal=problem.mask.is_causal)

    def build(self, problem: Problem, device: torch.device) -> Callable[..., torch.Tensor]:
        band = Window(window=4 + self.lies, causal=problem.mask.is_causal)
        return super().build(problem.replace(mask=band), device)

    def exact_options(self, problem: Problem) -> None:
        return None


def held(implementation: Attention, problem: Problem) -> set[str]:
    """The tensors in which it misses what it claims."""
    execution = LayerExecution(implementation, problem, CPU)
    claim = claim_of(implementation, problem, is_apart=execution.is_apart)
    assert claim.is_exact
    inputs = make_layer_inputs(problem, 1)
    execution.load(inputs)
    execution.step()
    return wrong(judge(make_layer_yardstick(claim.problem, inputs), execution.results()))


# ---- the answer --------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["none", "sinusoidal", "learned", "relative", "rope", "alibi"])
@pytest.mark.parametrize("shape", [PADDED, {**PADDED, "mask": "causal", "heads_kv": 2}, ALIKE])
def test_sequences_one_by_one_give_the_answer(shape: dict[str, Any], position: str) -> None:
    execution = LayerExecution(Alone(), of(**shape, position=position), CPU)
    assert execution.is_apart
    assert wrong(judged(execution)) == set()


@pytest.mark.parametrize("layout", ["BHSD", "BSHD", "packed"])
def test_each_call_has_one_sequence_in_the_layout_that_was_asked_for(layout: str) -> None:
    """With a backward of its own too, and contiguous."""
    told: list[tuple[int, ...]] = []

    class Own(Alone):
        features = Attention.features

        def build(self, problem: Problem, device: torch.device) -> ForwardBackward:
            attend = super().build(problem, device)

            def turned(x: torch.Tensor) -> torch.Tensor:
                x = x[None] if layout == "packed" else x
                return x if layout == "BHSD" else x.transpose(1, 2)

            def back(x: torch.Tensor) -> torch.Tensor:
                x = x if layout == "BHSD" else x.transpose(1, 2)
                return x[0] if layout == "packed" else x

            def forward(*given: torch.Tensor) -> Any:
                told.append(tuple(given[0].shape))
                assert all(x.is_contiguous() for x in given)
                with torch.enable_grad():
                    leaves = [x.detach().requires_grad_() for x in given]
                    out = back(attend(*map(turned, leaves)))
                return out.detach().contiguous(), (leaves, out)

            def backward(saved: Any, grad: torch.Tensor) -> Any:
                return torch.autograd.grad(saved[1], saved[0], grad)

            return ForwardBackward(forward, backward)

    Own.layout = layout  # type: ignore[assignment]
    assert wrong(judged(LayerExecution(Own(), of(**PADDED), CPU))) == set()
    shapes = {"BHSD": [1, 4, 0, 8], "BSHD": [1, 0, 4, 8], "packed": [0, 4, 8]}
    assert told == [tuple(n or length for n in shapes[layout]) for length in (13, 8, 3)]


def test_who_takes_documents_has_them_in_one_call() -> None:
    execution = LayerExecution(Plain(), of(**PADDED), CPU)
    assert not execution.is_apart
    assert execution.choices == {}


# ---- broken on purpose -------------------------------------------------------------------


def test_sequences_that_see_each_other_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens go into the first sequence's call."""

    class Together(apart.OneByOne):
        def __call__(self, *given: torch.Tensor) -> torch.Tensor:
            q, k, v = (x.transpose(1, 2) for x in given)
            out: torch.Tensor = ((q @ k.mT * 8**-0.5).softmax(-1) @ v).transpose(1, 2)
            return out

    monkeypatch.setattr(apart, "OneByOne", Together)
    found = wrong(judged(LayerExecution(Alone(), of(**PADDED), CPU)))
    assert found >= {"out", "dx", "dwq", "dwk", "dwv", "dwo"}


def test_outputs_of_two_sequences_that_are_swapped_are_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Swapped(apart.OneByOne):
        def __call__(self, *given: torch.Tensor) -> torch.Tensor:
            first, second, rest = super().__call__(*given).split([13, 13, 24], dim=1)
            return torch.cat([second, first, rest], dim=1)

    monkeypatch.setattr(apart, "OneByOne", Swapped)
    found = wrong(judged(LayerExecution(Alone(), of(**ALIKE), CPU)))
    assert found >= {"out", "dx", "dwo"}


def test_the_bias_of_another_place_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same shape, from beside the diagonal."""

    def off(bias_HTT: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
        return [bias_HTT[:, -length:, :length] for length in lengths]

    monkeypatch.setattr(apart, "_diagonal", off)
    assert "out" in wrong(judged(LayerExecution(Alone(), of(**PADDED, position="relative"), CPU)))


def test_numbers_where_there_is_padding_are_caught() -> None:
    class Leaves(MultiHeadAttention):
        def _unpacked(self, y_TC: torch.Tensor, shape: torch.Size) -> torch.Tensor:
            return super()._unpacked(y_TC, shape) + 1e-3 * (super()._unpacked(y_TC, shape) == 0)

    class Broken(LayerExecution):
        def _around(self, core: Any, device: torch.device) -> Layer:
            return Leaves(self.problem, core, device)

    assert "out" in wrong(judged(Broken(Alone(), of(**PADDED), CPU)))


# ---- claims ------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("shape", [PADDED, ALIKE], ids=str)
def test_an_own_mask_is_claimed_for_each_sequence(mask: str, shape: dict[str, Any]) -> None:
    """Held to it as strictly as ever; a band that is one wider is caught."""
    assert held(Band(), of(**shape, mask=mask)) == set()

    class TooWide(Band):
        lies = 1

    assert held(TooWide(), of(**shape, mask=mask)) >= {"out", "dx", "dwv", "dwo"}


def test_the_claim_is_packed_and_counts_the_pairs_of_each() -> None:
    problem = of(**PADDED)
    claim = claim_of(Band(), problem, is_apart=True)
    band = Window(window=4, causal=False)
    assert claim.problem.core.mask == Packed((13, 8, 3), (band,) * 3)
    alone = (of(batch=1, seqlen_q=n, mask=band).flops() for n in (13, 8, 3))
    assert claim.problem.flops() == sum(alone)
    assert claim.problem.ideal_bytes() == problem.ideal_bytes()  # every token is seen
    assert not claim.is_problems_own


def test_a_mask_may_depend_on_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    def own_mask(self: Band, problem: Problem) -> Mask:
        return Window(window=1 + problem.seqlen_k // 4, causal=False)

    def build(self: Band, problem: Problem, device: torch.device) -> Any:
        return Plain.build(self, problem.replace(mask=self.own_mask(problem)), device)

    monkeypatch.setattr(Band, "own_mask", own_mask)
    monkeypatch.setattr(Band, "build", build)
    assert held(Band(), of(**PADDED)) == set()


def test_a_mask_that_is_the_problems_is_no_claim_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Band, "own_mask", lambda self, problem: problem.mask)
    problem = of(**PADDED)
    assert not LayerExecution(Band(), problem, CPU).is_apart  # it keeps documents apart
    for is_apart in (False, True):
        assert claim_of(Band(), problem, is_apart=is_apart).is_problems_own
    assert isinstance(problem.core.mask, Document)
    monkeypatch.setattr(Band, "own_mask", lambda self, problem: None)
    assert not claim_of(Band(), problem, is_apart=True).is_exact
    monkeypatch.setattr(Band, "own_mask", lambda self, problem: "band")
    with pytest.raises(TypeError, match="must return a mask or None, got str"):
        claim_of(Band(), problem, is_apart=True)


@pytest.mark.parametrize("name", ["layer-padding", "layer-padding-rope-gradients"])
def test_the_battery_turns_the_knob_for_each_length_or_says_that_it_cannot(name: str) -> None:
    class Turned(Band):
        options = {"window": 4}

        def own_mask(self, problem: Problem) -> Mask:
            return Window(window=int(self.options["window"]), causal=problem.mask.is_causal)

        def build(self, problem: Problem, device: torch.device) -> Any:
            return Plain.build(self, problem.replace(mask=self.own_mask(problem)), device)

        def exact_options(self, problem: Problem) -> Any:
            return {"window": problem.seqlen_k}

    class Picky(Turned):
        def supports(self, problem: Problem, device: torch.device) -> None:
            if 4 != self.options["window"] != problem.seqlen_k:
                raise Unsupported("another length")

    class Short(Turned):
        def exact_options(self, problem: Problem) -> Any:
            return {"window": 13}  # enough for the last sequence alone

    case = next(c for c in CASES if c.name == name)
    told = run_case(Turned(), case, CPU)
    assert (told.status, told.reason) == ("ok", None)
    told = run_case(Picky(), case, CPU)
    assert (told.status, told.reason) == (
        "ok", "no one setting makes all lengths exact: another length (the sequence of 13 tokens)",
    )  # fmt: skip
    assert run_case(Short(), case, CPU).status == "incorrect"


# ---- dropout -----------------------------------------------------------------------------


class Drops(Alone):
    """Reveals its dropout mask, of the last call."""

    features = Alone.features | {"dropout"}
    reveals = True

    def build(self, problem: Problem, device: torch.device) -> Any:
        p, generator = problem, torch.Generator().manual_seed(3)

        def attend(q: Any, k: Any, v: Any) -> torch.Tensor:
            shape = (p.batch, p.heads_q, p.seqlen_q, p.seqlen_k)
            keep = torch.rand(shape, generator=generator) >= p.dropout_p
            attend.kept = keep if self.reveals else torch.ones_like(keep)  # type: ignore[attr-defined]
            weights = (q @ k.mT * p.softmax_scale).softmax(-1)
            out: torch.Tensor = weights * keep / (1 - p.dropout_p) @ v
            return out

        attend.keep_mask = lambda: attend.kept  # type: ignore[attr-defined]
        return attend


def test_dropout_is_verified_by_the_masks_of_all_calls() -> None:
    """Also where sequences are equally long: the first call's mask is not the last one's."""
    problem = of(**ALIKE, dropout_p=0.3)
    execution, inputs = LayerExecution(Drops(), problem, CPU), make_layer_inputs(problem, 1)
    execution.load(inputs)
    execution.step()
    keep = execution.keep_mask()
    yardstick = make_layer_yardstick(problem, inputs, keep)
    assert wrong(judge(yardstick, execution.results())) == set()
    assert keep is not None
    yardstick = make_layer_yardstick(problem, inputs, keep.flip(-1))
    assert "out" in wrong(judge(yardstick, execution.results()))


def test_a_dropout_mask_of_one_sequence_that_cannot_be_is_refused() -> None:
    """It would hardly show among the pairs of all sequences."""
    problem = of(**PADDED, dropout_p=0.3)

    class Hides(Drops):
        reveals = False

    execution = LayerExecution(Hides(), problem, CPU)
    execution.load(make_layer_inputs(problem, 1))
    execution.step()
    with pytest.raises(WrongOutput, match=r"dropout kept 100\.00% of the weights"):
        execution.keep_mask()


def test_dropout_that_is_not_revealed_cannot_be_verified() -> None:
    class Silent(Drops):
        def build(self, problem: Problem, device: torch.device) -> Any:
            attend = super().build(problem, device)
            return lambda q, k, v: attend(q, k, v)

    problem = of(**PADDED, dropout_p=0.3)
    assert LayerExecution(Silent(), problem, CPU).keep_mask() is None


# ---- told and refused --------------------------------------------------------------------


def test_it_is_told_with_what_each_length_chose() -> None:
    class Chooses(Alone):
        def build(self, problem: Problem, device: torch.device) -> Any:
            attend = super().build(problem, device)
            attend.choices = {"tile": problem.seqlen_q // 2}  # type: ignore[attr-defined]
            return attend

    assert LayerExecution(Chooses(), of(**PADDED), CPU).choices == {
        "padding": "3 sequences, one call each and not one for all: "
        "does not do mask document (does: full, causal)",
        "tile (13 tokens)": 6, "tile (8 tokens)": 4, "tile (3 tokens)": 1,
    }  # fmt: skip


def test_one_that_refuses_only_when_it_builds_is_asked_for_each_sequence_too() -> None:
    class Late(Plain):
        def build(self, problem: Problem, device: torch.device) -> Any:
            if problem.mask.kind == "document":
                raise Unsupported("no kernel takes this mask")
            return super().build(problem, device)

    execution = LayerExecution(Late(), of(**PADDED), CPU)
    assert str(execution.choices["padding"]).endswith("for all: no kernel takes this mask")
    assert wrong(judged(execution)) == set()


def test_a_sequence_that_is_refused_is_refused_in_its_own_words() -> None:
    class Long(Alone):
        least = 5

        def supports(self, problem: Problem, device: torch.device) -> None:
            super().supports(problem, device)
            if problem.seqlen_q < self.least:
                raise Unsupported(f"needs {self.least} tokens")

    with pytest.raises(Unsupported, match=r"^needs 5 tokens \(the sequence of 3 tokens\)$"):
        LayerExecution(Long(), of(**PADDED), CPU)
    Long.least = 50
    with pytest.raises(Unsupported, match=r"^needs 50 tokens$"):
        LayerExecution(Long(), of(**PADDED), CPU)
    with pytest.raises(Unsupported, match=r"^does not do softcap$"):
        LayerExecution(Alone(), of(**PADDED, softcap=2.0), CPU)


def test_what_is_built_for_sequences_is_checked() -> None:
    class OneForAll(Alone):
        def build_sequences(self, problems: Any, device: torch.device) -> Any:
            return [self.build(problems[0], device)]

    class Nothing(Alone):
        def build(self, problem: Problem, device: torch.device) -> Any:
            return None

    with pytest.raises(TypeError, match=r"build_sequences\(\) returned 1 for 3 sequences"):
        LayerExecution(OneForAll(), of(**PADDED), CPU)
    with pytest.raises(TypeError, match="must return a callable"):
        LayerExecution(Nothing(), of(**PADDED), CPU)


def test_equal_lengths_are_built_once() -> None:
    built: list[int] = []

    class Counts(Alone):
        def build(self, problem: Problem, device: torch.device) -> Any:
            built.append(problem.seqlen_q)
            return super().build(problem, device)

    LayerExecution(Counts(), of(**ALIKE), CPU)
    assert built == [13, 12]
