"""Ring attention across processes against the float64 oracle; and rings broken in one way each."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from shelf import CPU, assert_right, entries, implementation, module_of, solve

from attnbench import Problem, Unsupported, make_inputs
from attnbench.plan import Contender
from attnbench.verify import judge, make_yardstick, passed

SHAPE: dict[str, Any] = {"batch": 1, "heads_q": 4, "heads_kv": 2, "seqlen_q": 13, "head_dim": 16}
BROKEN = {  # what is replaced in rank.py, and by what
    "a chunk is skipped": (
        "elif first_key <= first_row + queries - 1:",
        "elif first_key < first_row:",
    ),
    "no common maximum": (
        "keep = torch.exp(top - _finite(new))",
        "keep = torch.ones_like(top)",
    ),
    "the future is seen": ("if not self.is_causal or", "if True or"),
    "gradients stay where they are": (
        "travelling, pending = self._pass_on(travelling, (source - 1) % self.world)\n"
        "            _wait(pending)",
        "pass",
    ),
    "keys come from the wrong rank": (
        "source = (self.rank - step) % self.world",
        "source = self.rank",
    ),
}
ALONE = ("a chunk is skipped", "no common maximum", "the future is seen")


def part(name: str) -> Any:
    package = module_of("ring").__name__.rpartition(".")[0]
    return importlib.import_module(f"{package}.{name}")


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """Whatever was started for these tests is ended after them."""
    yield
    for running in list(part("ranks")._running.values()):
        running.end()


def broken_script(how: str, folder: Path) -> Path:
    text = Path(part("ranks").SCRIPT).read_text()
    right, wrong = BROKEN[how]
    assert text.count(right) == 1, "the replaced text must be there"
    path = folder / "rank.py"
    path.write_text(text.replace(right, wrong))
    return path


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("one_rank", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_right_alone(module: ModuleType) -> bool:
    """The forward of a ring of one rank: two chunks of 8 tokens, no process."""
    problem = Problem.of(**{**SHAPE, "seqlen_q": 16}, mask="causal", inputs="large")
    inputs = make_inputs(problem, seed=1)
    ring = module.Ring(0, 1, [8, 8], [8, 8], is_causal=True, scale=problem.softmax_scale)
    out = ring.forward(*list(inputs.named().values())[:3])[0]
    return passed(judge(make_yardstick(problem, inputs), {"out": out}))


def is_right(problem: Problem) -> bool:
    execution, inputs = solve("ring", problem, world=2)
    return passed(judge(make_yardstick(problem, inputs), execution.results()))


# ---- right ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask": "causal"},
        {"mask": "causal", "seqlen_q": 16, "heads_kv": 4},
        {"mask": "causal", "seqlen_q": 6, "seqlen_k": 21},
        {"mask": "causal", "seqlen_q": 21, "seqlen_k": 6},  # rows that see no key
        {"mask": "causal", "dtype": "bfloat16", "head_dim_v": 8},
        {"inputs": "large", "scale": 0.3, "dtype": "float64"},
    ],
    ids=str,
)
def test_two_ranks_give_the_oracles_output_and_gradients(changes: dict[str, Any]) -> None:
    assert_right("ring", Problem.of(**{**SHAPE, **changes}, direction="both"), world=2)


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_three_ranks_are_right_too(mask: str) -> None:
    assert_right("ring", Problem.of(**SHAPE, mask=mask, direction="both"), world=3)


def test_every_rank_has_as_much_to_do_under_a_causal_mask() -> None:
    rank, counts = part("rank"), []
    for own in range(4):
        ring = rank.Ring(own, 4, [8] * 8, [8] * 8, is_causal=True, scale=1.0)
        seen = [hidden for source in range(4) for *_, hidden in ring._meetings(source)]
        counts.append(sum(64 if hidden is None else int((~hidden).sum()) for hidden in seen))
    assert counts == [64 * 65 // 2 // 4] * 4


# ---- refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "changes", "reason"),
    [
        ({}, {}, "shares a sequence among two processes or more: ring:world=2"),
        ({"world": 8}, {}, "cuts a sequence into 16 chunks, not 13 tokens"),
        ({"world": 2}, {"mask": "window:window=4"}, "does not do mask window"),
        ({"world": 2}, {"dropout_p": 0.1}, "does not do dropout"),
    ],
)
def test_what_it_cannot_do_it_says(
    options: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unsupported, match=reason.replace("(", r"\(")):
        implementation("ring", **options).supports(Problem.of(**{**SHAPE, **changes}), CPU)


def test_torchs_own_says_why_it_cannot() -> None:
    with pytest.raises(Unsupported, match="no sharding strategy"):
        implementation("ring-torch").supports(Problem.of(**SHAPE), CPU)


def test_its_times_are_never_timings() -> None:
    label = Contender(entries()["ring"], (("world", 2),)).simulated
    assert label == "with its shards sent to other processes and back in each call"
    assert Contender(entries()["ring"]).simulated is None, "refused, not labelled"


# ---- broken --------------------------------------------------------------------------------


def test_a_ring_of_one_is_right_and_shows_each_broken_one(tmp_path: Path) -> None:
    assert is_right_alone(part("rank"))
    for how in ALONE:
        assert not is_right_alone(loaded(broken_script(how, tmp_path))), how


@pytest.mark.slow
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_ring_is_found_out(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part("ranks"), "SCRIPT", broken_script(how, tmp_path))
    problem = Problem.of(**{**SHAPE, "seqlen_q": 16}, mask="causal", direction="both")
    assert not is_right(problem.replace(inputs="large"))
    part("ranks").ranks(2, CPU).end()


@pytest.mark.slow
def test_a_rank_that_dies_is_an_error_and_the_next_call_has_others() -> None:
    problem = Problem.of(**SHAPE)
    execution, _ = solve("ring", problem, world=2)
    before = part("ranks").ranks(2, CPU)
    os.kill(before._processes[1].pid, signal.SIGKILL)
    with pytest.raises((RuntimeError, OSError)):
        execution.step()
    assert all(p.poll() is not None for p in before._processes), "nobody is left behind"
    assert is_right(problem)
    assert part("ranks").ranks(2, CPU) is not before
