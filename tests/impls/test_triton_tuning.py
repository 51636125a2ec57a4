"""Choosing configurations by a made-up clock: what is chosen, kept, read back, and when."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from shelf import CPU, implementation, module_of

from attnbench import Problem, make_inputs
from attnbench.oracle import reference

PROBLEM = Problem.of(heads=1, seqlen=20, head_dim=16, mask="causal")  # a tile: many calls


def part(name: str) -> Any:
    return importlib.import_module(f"{module_of('triton').__name__}.{name}")


def built(problem: Problem = PROBLEM, schedule: str = "auto") -> Any:
    return implementation("triton", interpret=True, schedule=schedule).build(problem, CPU)


class Clock:
    """Says that one schedule, or one width of blocks, is the fastest; counts what it timed."""

    def __init__(self, attention: Any, fastest: Callable[[Any], bool]) -> None:
        self.attention, self.fastest = attention, fastest
        self.timed: list[str] = []

    def __call__(self, calls: Sequence[Callable[[], object]]) -> list[float]:
        seconds = []
        for call in calls:
            call()  # each call puts its own configuration in place
            config = self.attention.configs.forward
            self.timed.append(str(config))
            seconds.append(1.0 if self.fastest(config) else 2.0)
        return seconds


def tuned(
    folder: Path, fastest: str, problem: Problem = PROBLEM, schedule: str = "auto"
) -> tuple[Any, Clock]:
    attention = built(problem, schedule)
    clock = Clock(attention, lambda config: config.schedule == fastest)
    inputs = make_inputs(problem, seed=0)
    part("tuning").tune(attention, inputs, schedule=schedule, timer=clock, folder=folder)
    return attention, clock


@pytest.mark.parametrize("fastest", ["tiles", "persistent", "specialized"])
def test_the_fastest_is_chosen_and_found_again(fastest: str, tmp_path: Path) -> None:
    attention, clock = tuned(tmp_path, fastest)
    assert attention.configs.forward.schedule == fastest
    assert attention.choices["forward"].endswith(f"{fastest} (tuned)")
    assert clock.timed
    again, silent = tuned(tmp_path, "nothing is timed")
    assert again.configs.forward == attention.configs.forward
    assert again.strided == attention.strided
    assert silent.timed == []


def test_what_was_tuned_is_right(tmp_path: Path) -> None:
    attention, _ = tuned(tmp_path, "specialized")
    inputs = make_inputs(PROBLEM, seed=3)
    truth = reference(PROBLEM, inputs, gradients=False).out_BHME
    torch.testing.assert_close(attention(*inputs.qkv()).double(), truth, atol=2e-6, rtol=1e-5)


def test_beside_a_specialised_choice_the_best_other_one_is_known(tmp_path: Path) -> None:
    attention = built()

    def clock(calls: Sequence[Callable[[], object]]) -> list[float]:
        seconds = {"tiles": 3.0, "persistent": 2.0, "specialized": 1.0}
        found = []
        for call in calls:
            call()
            found.append(seconds[attention.configs.forward.schedule])
        return found

    part("tuning").tune(attention, make_inputs(PROBLEM, seed=0), timer=clock, folder=tmp_path)
    assert attention.configs.forward.schedule == "specialized"
    assert attention.strided.schedule == "persistent"


@pytest.mark.parametrize("schedule", ["tiles", "persistent", "specialized"])
def test_a_schedule_that_is_asked_for_stays(schedule: str, tmp_path: Path) -> None:
    attention, _ = tuned(tmp_path, "tiles", schedule=schedule)
    assert attention.configs.forward.schedule == schedule


@pytest.mark.parametrize("text", ["", '{"key": {"kern', "[1]", "null", '{"chosen": "1x1"}', "\x00"])
def test_a_torn_or_foreign_file_counts_as_none(text: str, tmp_path: Path) -> None:
    tuned(tmp_path, "tiles")
    for path in tmp_path.iterdir():
        path.write_text(text)
    attention, clock = tuned(tmp_path, "persistent")
    assert clock.timed
    assert attention.configs.forward.schedule == "persistent"
    assert tuned(tmp_path, "tiles")[1].timed == []  # it was written anew


def test_a_file_of_another_key_or_choice_is_not_believed(tmp_path: Path) -> None:
    tuned(tmp_path, "tiles")
    paths = sorted(tmp_path.iterdir())
    told = [json.loads(path.read_text()) for path in paths]
    for path, one in zip(paths, told, strict=True):
        path.write_text(json.dumps({**one, "chosen": "999x999 w1 s1 tiles"}))
    assert tuned(tmp_path, "persistent")[1].timed
    for path, one in zip(paths, told, strict=True):
        path.write_text(json.dumps({**one, "key": {**one["key"], "device": "another"}}))
    assert tuned(tmp_path, "persistent")[1].timed


def test_every_write_is_whole_and_leaves_no_part(tmp_path: Path) -> None:
    tuned(tmp_path, "tiles")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}
    told = json.loads(next(tmp_path.iterdir()).read_text())
    assert set(told) == {"key", "chosen", "seconds"}
    assert told["chosen"] in told["seconds"]


def test_a_folder_that_cannot_be_written_costs_no_result(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="tuning is not kept"):
        attention, _ = tuned(tmp_path / "file", "persistent")
    assert attention.configs.forward.schedule == "persistent"


@pytest.mark.parametrize(
    "changes",
    [{"seqlen_q": 19}, {"batch": 2}, {"mask": "full"}, {"dtype": "float16"}, {"softcap": 2.0},
     {"alibi": True}, {"head_dim_v": 32}],
    ids=str,
)  # fmt: skip
def test_another_problem_is_tuned_anew(changes: dict[str, Any], tmp_path: Path) -> None:
    tuned(tmp_path, "tiles")
    assert tuned(tmp_path, "tiles", PROBLEM.replace(**changes))[1].timed


def test_what_does_not_matter_is_found_again(tmp_path: Path) -> None:
    tuned(tmp_path, "tiles")
    assert tuned(tmp_path, "tiles", PROBLEM.replace(scale=0.3))[1].timed == []


@pytest.mark.parametrize("what", ["source", "triton", "device", "candidates"])
def test_another_source_triton_or_device_is_tuned_anew(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(tmp_path, "tiles")
    key_of = part("tuning").key_of
    monkeypatch.setattr(part("tuning"), "key_of", lambda *a: {**key_of(*a), what: ["another"]})
    assert tuned(tmp_path, "tiles")[1].timed


def test_the_source_of_every_kernel_that_is_timed_is_in_the_key() -> None:
    """Triton's ``cache_key`` is of a kernel and of all that it calls."""
    attention, forward = built(), part("forward")
    expected = {
        "forward": [forward.forward_kernel, part("specialized").specialized_kernel],
        "dkdv": [part("dkdv").dkdv_kernel],
        "dq": [part("dq").dq_kernel],
    }
    for kernel, sources in expected.items():
        key = part("tuning").key_of(attention, kernel, ())
        assert key["source"] == [source.cache_key for source in sources]


def test_kernels_of_the_backward_are_timed_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = part("config")
    more = {"dkdv": config.Config(16, 32, 1, 1), "dq": config.Config(32, 16, 1, 1)}
    offered = part("launch").FusedAttention.offered

    def with_more(self: Any, kernel: str, schedule: str = "auto") -> Any:
        found = offered(self, kernel, schedule)
        return (*found, more[kernel]) if kernel in more else found[:1]

    monkeypatch.setattr(part("launch").FusedAttention, "offered", with_more)
    problem = PROBLEM.replace(direction="both")
    attention = built(problem)

    def clock(calls: Sequence[Callable[[], object]]) -> list[float]:
        for call in calls:
            call()
        return [2.0] * (len(calls) - 1) + [1.0]

    inputs = make_inputs(problem, seed=0)
    part("tuning").tune(attention, inputs, timer=clock, folder=tmp_path)
    assert (attention.configs.dkdv, attention.configs.dq) == (more["dkdv"], more["dq"])
    assert attention.choices["dkdv"] == "16x32 w1 s1 tiles (tuned)"
    q, k, v = (x.requires_grad_() for x in inputs.qkv())
    gradients = torch.autograd.grad(attention(q, k, v), (q, k, v), inputs.grad_out_BHME)
    truth = reference(problem, make_inputs(problem, seed=0), gradients=True)
    for got, right in zip(gradients, (truth.dq_BHMD, truth.dk_BGND, truth.dv_BGNE), strict=True):
        torch.testing.assert_close(got.double(), right, atol=1e-5, rtol=1e-4)


def test_a_configuration_that_the_device_refuses_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = part("tuning")
    attention = built()
    launch = attention._launch

    def refusing(kernel: Any, programs: int, config: Any, **arguments: Any) -> None:
        if config.schedule == "specialized":
            raise tuning.OutOfResources(300_000, 232_448, "shared memory")
        launch(kernel, programs, config, **arguments)

    monkeypatch.setattr(attention, "_launch", refusing)
    clock = Clock(attention, lambda config: config.schedule == "persistent")
    tuning.tune(attention, make_inputs(PROBLEM, seed=0), timer=clock, folder=tmp_path)
    assert attention.configs.forward.schedule == "persistent"
    assert not any("specialized" in timed for timed in clock.timed)


def test_any_other_failure_of_a_configuration_is_told(tmp_path: Path) -> None:
    attention = built()

    def broken(*words: Any, **arguments: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    attention._launch = broken
    with pytest.raises(RuntimeError, match="illegal memory access"):
        part("tuning").tune(attention, make_inputs(PROBLEM, seed=0), folder=tmp_path)


def test_tuning_draws_no_random_numbers_from_those_after_it(tmp_path: Path) -> None:
    problem = PROBLEM.replace(dropout_p=0.3)
    torch.manual_seed(7)
    expected = torch.rand(3)
    attention = built(problem)
    torch.manual_seed(7)
    part("tuning").tune(
        attention, make_inputs(problem, seed=0), folder=tmp_path,
        timer=lambda calls: [float(call() is None) for call in calls],
    )  # fmt: skip
    torch.testing.assert_close(torch.rand(3), expected)


def test_only_build_tunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with a made-up clock: what is called afterwards asks no clock, reads no file."""
    triton = implementation("triton", interpret=True)
    attention = triton.build(PROBLEM, CPU)
    assert attention.choices["forward"].endswith("(default)")  # times mean nothing here
    asked: list[int] = []

    def clock(calls: Sequence[Callable[[], object]]) -> list[float]:
        asked.append(len(calls))
        return [float(-n) for n, _ in enumerate(calls)]

    tuning = part("tuning")
    monkeypatch.setattr(tuning, "time_on_device", clock)
    monkeypatch.setenv("ATTNBENCH_TUNING_DIR", str(tmp_path))
    triton._prepare(attention)
    assert asked
    assert list(tmp_path.iterdir())
    before, choices = list(asked), dict(attention.choices)
    for name in ("tune", "_read", "_measure"):
        monkeypatch.setattr(tuning, name, None)
    attention(*make_inputs(PROBLEM, seed=2).qkv())
    assert asked == before
    assert dict(attention.choices) == choices


def test_without_tune_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = implementation("triton", interpret=True, tune=False)
    attention = triton.build(PROBLEM, CPU)
    monkeypatch.setattr(part("tuning"), "tune", None)
    triton._prepare(attention)
    assert attention.choices["forward"].endswith("(default)")


# ---- the clock ---------------------------------------------------------------------------


class FakeEvent:
    """A CUDA event whose clock is a number that calls move on."""

    now_ms = 0.0

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = FakeEvent.now_ms

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


def test_the_clock_tells_each_calls_median_and_interleaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    order: list[int] = []

    def taking(number: int, milliseconds: float) -> Callable[[], None]:
        def call() -> None:
            slow = len(order) > 400 and len(order) % 97 == 0  # now and then disturbed
            FakeEvent.now_ms += milliseconds * (50 if slow else 1)
            order.append(number)

        return call

    found = part("tuning").time_on_device([taking(0, 1.0), taking(1, 0.25)])
    assert found == pytest.approx([1e-3, 0.25e-3])
    turns = [now for last, now in itertools.pairwise(order) if now != last]
    assert len(turns) > 8
