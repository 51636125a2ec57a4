"""What else may not get worse: status, memory, accuracy; and which kernels ran."""

from __future__ import annotations

import pytest
from made_records import record

from attnbench.gate import kernel_change, regressions
from attnbench.record import OTHERS, Memory, TensorAccuracy

MIB = 2**20


def memory(peak: int | None, method: str = "torch", **more: int) -> Memory:
    return Memory(peak_bytes=peak, method=method, **more)


def accuracy(**errors: float | None) -> dict[str, TensorAccuracy]:
    told = {"rel_l2": 1e-4, "rel_l2_allowed": 1e-3, "max_abs": 1e-4}
    return {"out": TensorAccuracy(ok=True, **(told | errors))}


def kinds(base, new) -> list[str]:
    return [r.kind for r in regressions(base, new)]


def test_equal_records_have_not_got_worse() -> None:
    assert regressions(record(), record()) == ()


@pytest.mark.parametrize(
    "status", ["incorrect", "unsupported", "unavailable", "oom", "timeout", "crash", "error"]
)
def test_whatever_is_not_ok_any_more_is_a_failure_with_its_reason(status: str) -> None:
    (found,) = regressions(record(), record(status=status))
    assert (found.kind, found.text) == ("failure", f"ok → {status}: because of {status}")


def test_a_failure_that_was_there_before_is_no_regression() -> None:
    assert kinds(record(status="oom"), record(status="crash")) == []
    assert kinds(record(status="oom"), record()) == []


@pytest.mark.parametrize(
    ("before", "after", "is_worse"),
    [
        (100 * MIB, 106 * MIB, True),
        (100 * MIB, 104 * MIB, False),  # under 5 %
        (2 * MIB, 3 * MIB, False),  # half as much again, but only 1 MiB
        (2 * MIB, 3 * MIB + 1, True),
        (0, 2 * MIB, True),  # from nothing there is no percentage
        (106 * MIB, 100 * MIB, False),
        (None, 100 * MIB, False),
        (100 * MIB, None, False),
    ],
)
def test_memory_counts_from_5_percent_and_1_mib(before, after, is_worse) -> None:
    base, new = record(memory=memory(before)), record(memory=memory(after))
    assert kinds(base, new) == ["memory"] * is_worse


def test_memory_says_which_and_by_how_much() -> None:
    base = record(memory=memory(10 * MIB, saved_bytes=8 * MIB))
    new = record(memory=memory(10 * MIB, saved_bytes=16 * MIB))
    (found,) = regressions(base, new)
    assert found.text == "memory saved for backward 8.0 MiB → 16.0 MiB, +100.0%"


def test_memory_of_two_methods_is_not_compared() -> None:
    assert kinds(record(memory=memory(MIB)), record(memory=memory(90 * MIB, "other"))) == []


@pytest.mark.parametrize(
    ("before", "after", "is_worse"),
    [
        (1e-4, 3e-4, True),
        (1e-4, 1.9e-4, False),  # grew by less than a tenth of what is allowed
        (5e-4, 7e-4, False),  # less than 1.5 times
        (0.0, 2e-4, True),
        (3e-4, 1e-4, False),
    ],
)
def test_accuracy_counts_from_half_as_much_again_and_a_tenth_of_the_tolerance(
    before: float, after: float, is_worse: bool
) -> None:
    base, new = (record(accuracy=accuracy(rel_l2=e)) for e in (before, after))
    assert kinds(base, new) == ["accuracy"] * is_worse


def test_accuracy_names_the_tensor_and_only_its_worst_error() -> None:
    base = record(accuracy=accuracy(max_abs_allowed=1e-2, max_abs=1e-3))
    new = record(accuracy=accuracy(max_abs_allowed=1e-2, max_abs=9e-3, rel_l2=3e-4))
    (found,) = regressions(base, new)
    assert found.text == "out max_abs 1.0e-03 → 9.0e-03 of 1.0e-02 allowed"


def test_an_approximate_method_may_not_get_worse_unseen() -> None:
    """It has no tolerance: a gate that divides by one would let everything pass."""
    free = {"rel_l2_allowed": None, "naive_rel_l2": 1e-6}
    base = record(accuracy=accuracy(rel_l2=0.02, **free))
    worse, alike = (record(accuracy=accuracy(rel_l2=e, **free)) for e in (0.04, 0.025))
    assert kinds(base, worse) == ["accuracy"]
    assert kinds(base, alike) == []


def test_tensors_of_one_side_only_are_not_compared() -> None:
    assert kinds(record(accuracy=accuracy()), record(accuracy=accuracy() | {"dq": _bad()})) == []


def _bad() -> TensorAccuracy:
    return TensorAccuracy(ok=True, rel_l2=1.0, rel_l2_allowed=1e-3, max_abs=1.0)


def ran(*names: str) -> list[dict[str, object]]:
    return [{"name": name, "count": 1} for name in names]


def test_kernels_that_came_and_went_are_named_and_order_does_not_matter() -> None:
    base, new = record(kernels=ran("gemm", "softmax")), record(kernels=ran("flash", "gemm"))
    change = kernel_change(base, new)
    assert change is not None
    assert (change.gone, change.added) == (("softmax",), ("flash",))
    assert kernel_change(base, record(kernels=ran("softmax", "gemm"))) is None


def test_a_kernel_that_may_be_among_the_summed_ones_is_no_change() -> None:
    summed = {"name": OTHERS, "time_s": 0.1, "names": 3}
    short, long = ({"name": name, "time_s": s} for name, s in (("copy", 0.05), ("gemm", 0.5)))
    both = record(kernels=[long, short]), record(kernels=[long, summed])
    assert kernel_change(*both) is None
    change = kernel_change(record(kernels=[long, short]), record(kernels=[summed]))
    assert change is not None
    assert (change.gone, change.added) == (("gemm",), ())


def test_a_side_that_does_not_tell_its_kernels_shows_no_change() -> None:
    assert kernel_change(record(kernels=ran("gemm")), record()) is None
    assert kernel_change(record(), record(kernels=ran("gemm"))) is None
    assert kernel_change(record(kernels=[{"count": 1}]), record(kernels=[{"count": 2}])) is None
