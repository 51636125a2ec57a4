"""What a worker tells about a workload before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench import registry
from attnbench.plan import choose
from attnbench.pool import make_task
from attnbench.train import foresee
from attnbench.train.workload import Workload

SMALL = Workload.of(task="copy", seqlen=16, batch=4, d_model=32)


@pytest.fixture(scope="module")
def entries() -> list[registry.Entry]:
    wanted = ("naive", "sparse", "linear_attention")
    return registry.discover([s for s in registry.sources() if s.stem in wanted])


def ask(do: str, task: dict[str, Any]) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    getattr(foresee, do)(task, lambda event, **data: told.append({"event": event, **data}))
    return [event for event in told if event["event"] != "step"]


def refusals(entries: list[registry.Entry], workload: Workload, *specs: str) -> dict[str, Any]:
    task = make_task("foresee", choose(specs, entries), "cpu")
    told = ask("foresee", {**task, "problem": workload.to_json()})
    return {event["who"]: event["reason"] for event in told}


def test_an_implementation_that_cannot_attend_in_the_model_says_why(
    entries: list[registry.Entry],
) -> None:
    """T5 has a learned bias, which a linear method cannot add."""
    shape = Workload.of(model="t5-tiny", task="translation", seqlen=64, batch=2, d_model=32)
    found = refusals(entries, shape, "naive", "linear")
    assert found["naive"] is None
    assert "bias" in found["linear"]
    assert refusals(entries, SMALL, "linear", "window:window=4") == {
        "linear": None, "window:window=4": None,
    }  # fmt: skip


def test_what_nobody_can_do_is_refused_for_everybody(entries: list[registry.Entry]) -> None:
    found = refusals(entries, SMALL.replace(precision="tf32"), "naive", "window")
    assert all("a CPU has none" in str(reason) for reason in found.values())
    odd = refusals(entries, SMALL.replace(task="images"), "naive")
    assert "a square number of patches" in odd["naive"]


def test_a_count_that_fails_is_that_of_one_setting_and_ends_no_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sizes that only the model itself refuses, or that memory cannot hold."""
    build = foresee.build_model

    def fail_at_48(workload: Workload, *words: Any) -> Any:
        if workload.d_model == 48:
            raise RuntimeError("does not divide")
        return build(workload, *words)

    monkeypatch.setattr(foresee, "build_model", fail_at_48)
    shapes = [SMALL.replace(d_model=48), SMALL]
    task = {**make_task("count", [], "cpu"), "problems": [s.to_json() for s in shapes]}
    bad, good = ask("count", task)
    assert (bad["total"], bad["reason"]) == (None, "RuntimeError: does not divide")
    assert good["total"] > 0


def test_captions_that_must_differ_are_counted_too() -> None:
    of = Workload.of(model="pair-tiny", task="pairs", seqlen=17, batch=4)
    (told,) = ask("count", {**make_task("count", [], "cpu"), "problems": [of.to_json()]})
    assert told["reason"] is None


def test_parameters_are_those_of_the_model_and_grow_evenly_with_d_ff() -> None:
    from attnbench.train.attentions import reference
    from attnbench.train.data import make_task as make_data
    from attnbench.train.models import build_model

    widths = [SMALL.replace(d_ff=n) for n in (64, 128, 192)]
    broken = SMALL.replace(task="images")
    task = {"device": "cpu", "problems": [w.to_json() for w in (*widths, SMALL, broken)]}
    told = ask("count", task)
    assert [event["place"] for event in told] == [0, 1, 2, 3, 4]
    one, two, three, usual, none = (event["total"] for event in told)
    assert two - one == three - two == 2 * 2 * 32 * 64  # up and down, of two layers
    assert usual == two, "d_ff is four times d_model, unless it is said"
    assert none is None
    assert "square number" in told[4]["reason"]
    import torch

    model = build_model(SMALL, make_data(SMALL, 0), reference(), torch.device("cpu"), 0)
    assert sum(p.numel() for p in model.parameters()) == usual
