"""What approximate methods are held to, and how far they are from what was asked for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers import measure, write_suite

from attnbench import Attention, Problem, make_inputs, registry
from attnbench.battery import CASES, run_case
from attnbench.claim import claim_of
from attnbench.distance import shown_weights, weights_distance
from attnbench.execution import Execution
from attnbench.masks import Mask, Window
from attnbench.oracle import reference, softmax_weights
from attnbench.record import Record
from attnbench.session import open_session

CPU = torch.device("cpu")
METHODS = '''
import torch
from attnbench import Attention, register
from attnbench.masks import Window
from torch.nn.functional import scaled_dot_product_attention as attend

class Band(Attention):
    """Keeps a band of the pairs."""
    kind = "approximate"
    features = frozenset({"backward"})
    options = {"window": 4}
    lies = 0

    def own_mask(self, problem):
        return Window(window=self.options["window"], causal=False)

    def flops(self, problem):
        return super().flops(problem)

    def build(self, problem, device):
        width = self.options["window"] + self.lies
        n = torch.arange(problem.seqlen_k)
        mask = (n[:, None] - n).abs() < width
        return lambda q, k, v: attend(q, k, v, attn_mask=mask)

    def exact_options(self, problem):
        return {"window": problem.seqlen_k}

@register("band")
class Honest(Band):
    pass

@register("band-too-wide")
class TooWide(Band):
    """Says it has a band, and looks one further."""
    lies = 1

@register("mean")
class Mean(Attention):
    """The mean of the values, whatever the queries."""
    kind = "approximate"
    features = frozenset()

    def flops(self, problem):
        return problem.batch * problem.heads_q * problem.seqlen_k * problem.head_dim_v

    def build(self, problem, device):
        return lambda q, k, v: v.mean(dim=2, keepdim=True).expand_as(q).contiguous()

@register("squares")
class Squares(Mean):
    """No weighted sum of values."""
    def build(self, problem, device):
        return lambda q, k, v: attend(q, k, v) * v.square().mean()
'''


def naive() -> Attention:
    shelf = registry.sources(Path("/nonexistent"))
    source = next(s for s in shelf if s.stem == "naive")
    (entry,) = registry.discover([source])
    return registry.load(entry)()


class Band(Attention):
    kind = "approximate"
    features = frozenset()

    def own_mask(self, problem: Problem) -> Mask | None:
        return Window(window=4, causal=False)


def test_a_sparse_method_is_held_to_its_own_mask_and_others_to_nothing() -> None:
    p = Problem.of(heads=2, head_dim=8, seqlen=16)
    claim = claim_of(Band(), p)
    assert (claim.problem.mask, claim.is_exact, claim.is_problems_own) == (
        Window(window=4, causal=False), True, False,
    )  # fmt: skip
    same = claim_of(Band(), p.replace(mask=Window(window=4, causal=False)))
    assert same.is_problems_own
    assert Band().flops(p) == claim.problem.flops() < p.flops()
    assert Band().ideal_bytes(p) == claim.problem.ideal_bytes()


def test_a_mask_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Band, "own_mask", lambda self, problem: "window")
    with pytest.raises(TypeError, match=r"own_mask\(\) must return a mask or None, got str"):
        claim_of(Band(), Problem.of(heads=2, head_dim=8, seqlen=16))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    project = tmp_path_factory.mktemp("project")
    (project / "impls").mkdir()
    (project / "impls" / "methods.py").write_text(METHODS)
    impls = ["naive", "band", "band:window=16", "band-too-wide", "mean", "squares"]
    file = write_suite(project, impls, dtype="float32")
    with open_session(project, "cpu", lock=False) as session:
        return {spec: r for (spec, _), r in measure(session, file, project).items()}


def test_a_claim_is_verified_as_strictly_as_an_exact_answer(records: dict[str, Record]) -> None:
    assert records["band"].status == "ok", records["band"].reason
    assert records["band"].accuracy["out"].rel_l2 < 1e-6  # type: ignore[operator]
    assert records["band-too-wide"].status == "incorrect"


def test_the_distance_is_that_from_what_was_asked_for(records: dict[str, Record]) -> None:
    far, none = records["band"].distance["out"], records["band:window=16"].distance["out"]
    assert far.rel_l2 is not None
    assert far.cosine is not None
    assert 0.2 < far.rel_l2 < 2
    assert 0.2 < far.cosine < 0.99
    assert none.rel_l2 == pytest.approx(0, abs=1e-6)
    assert none.cosine == pytest.approx(1)
    assert records["naive"].distance == {}
    assert records["naive"].flops is None


def test_a_method_says_its_own_flops(records: dict[str, Record]) -> None:
    p = Problem.from_json(records["mean"].problem)
    assert records["mean"].flops == p.batch * p.heads_q * p.seqlen_k * p.head_dim_v
    assert records["band"].flops == p.replace(mask=Window(window=4, causal=False)).flops()


def test_weights_are_as_far_from_softmax_as_they_are(records: dict[str, Record]) -> None:
    p = Problem.from_json(records["mean"].problem)
    inputs = make_inputs(p, 0)
    weights_hMN = softmax_weights(p, inputs, torch.arange(p.seqlen_q))
    expected = (weights_hMN - 1 / p.seqlen_k).abs().sum(-1).mean() / 2
    assert records["mean"].weights_tv == pytest.approx(float(expected), rel=1e-5)
    assert records["band:window=16"].weights_tv == pytest.approx(0, abs=1e-6)
    assert records["squares"].weights_tv is None  # its output is no weighted sum of values


@pytest.mark.parametrize("mask", ["full", "causal", "window:window=5"])
def test_the_weights_that_are_shown_are_those_that_are_used(mask: str) -> None:
    p = Problem.of(heads=4, heads_kv=2, head_dim=8, seqlen=21, mask=mask, softcap=5.0, alibi=True)
    inputs = make_inputs(p, 3)
    rows_m = torch.tensor([0, 7, 20])
    seen_hmN = shown_weights(Execution(naive(), p, CPU), inputs, rows_m)
    truth_hmN = softmax_weights(p, inputs, rows_m)
    assert torch.allclose(seen_hmN, truth_hmN, atol=1e-6)
    values_hNE = inputs.v_BGNE[0].double().repeat_interleave(2, dim=0)
    out_hmE = reference(p, inputs, gradients=False).out_BHME[0][:, rows_m]
    assert torch.allclose(truth_hmN @ values_hNE, out_hmE, atol=1e-12)


def test_no_weights_are_looked_at_where_it_takes_too_long_or_dropout_hides_them() -> None:
    p = Problem.of(heads=1, head_dim=8, seqlen=8 * 129)
    execution = Execution(naive(), p, CPU)
    assert weights_distance(execution, make_inputs(p, 0)) is None


@pytest.mark.parametrize("name", ["seqlen-65-gradients", "mask-causal"])
def test_the_battery_turns_the_knob_and_verifies_the_claim(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnbench import plugin

    monkeypatch.setattr(plugin, "declared", [])
    namespace: dict[str, object] = {"__name__": "methods"}
    exec(METHODS, namespace)
    honest, liar = (namespace[n]() for n in ("Honest", "TooWide"))  # type: ignore[operator]
    case = next(c for c in CASES if c.name == name)
    if name == "mask-causal":  # the knob makes it dense, which is not what a causal mask asks for
        assert run_case(honest, case, CPU).status == "incorrect"
        return
    result = run_case(honest, case, CPU)
    assert result.status == "ok", result.reason
    assert math.isfinite(result.accuracy["dq"].rel_l2 or math.nan)
    assert run_case(liar, case, CPU).status == "incorrect"
