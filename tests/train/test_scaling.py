"""Scaling efficiency: by hand, and absent with its reason where nothing can be said."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import workload

from attnbench.record import Implementation, Record, Samples
from attnbench.train.derived import mfu_datasheet
from attnbench.train.figures import (
    Breakdown,
    MemoryParts,
    ModelFlops,
    Parameters,
    Parity,
    Ranks,
    Training,
)
from attnbench.train.scaling import in_words, scaling
from attnbench.train.workload import Workload


def record(of: Workload, step_s: float = 0.1, **changes: Any) -> Record:
    """A step of 1000 tokens a process, known to ± 10 %."""
    world = of.processes
    parity = Parity(ok=True, reference="naive", steps=1, batch=4, reruns=5, rule="")
    training = Training(
        batch=4 * world,
        tokens=1000 * world,
        learned_steps=1,
        losses=[1.0],
        parity=parity,
        flops=ModelFlops(dense=10**9 * world, attention_full=0, attention_causal=0),
        parameters=Parameters(total=1, embedding=0, trainable=1),
        breakdown=Breakdown(forward_s=1, backward_s=1, optimizer_s=1, method=""),
        memory=MemoryParts(
            parameters_bytes=1, gradients_bytes=1, optimizer_bytes=1, activations_bytes=1,
            peak_bytes=4, method="",
        ),
        ranks=Ranks(processes=world, backend="gloo", devices=["cpu"] * world,
                    peak_bytes=[4] * world, method="") if world > 1 else None,
    )  # fmt: skip
    samples = Samples(
        clock="host", times_s=[[[step_s]]], median_s=step_s, low_s=0.9 * step_s,
        high_s=1.1 * step_s, converged=True,
    )  # fmt: skip
    told: dict[str, Any] = {
        "kind": "training", "id": "x", "suite": "s", "time": "", "attnbench": "0", "device": "cpu",
        "implementation": Implementation(name="naive"), "problem": of.to_json(),
        "problem_id": of.id, "status": "ok", "samples": samples, "training": training,
        "environment": "e", **changes,
    }  # fmt: skip
    return Record(**told)


ALONE, SHARED = workload(), workload(parallel="ddp", processes=2)
FAILED: dict[str, Any] = {"status": "oom", "reason": "no", "samples": None, "training": None}


def test_efficiency_is_tokens_over_ranks_times_tokens_of_one() -> None:
    shared = record(SHARED, 0.125)
    found = scaling(shared, [shared, record(ALONE, 0.1)])
    assert found.efficiency is not None
    assert found.efficiency.median == pytest.approx(0.8)
    assert found.efficiency.low == pytest.approx(0.8 * 0.9 / 1.1)
    assert found.efficiency.high == pytest.approx(0.8 * 1.1 / 0.9)
    assert found.rank_tokens_per_s is not None
    assert found.rank_tokens_per_s.median == pytest.approx(8000)
    assert in_words(found) == "80% [65%–98%] of 2 × one process"


@pytest.mark.parametrize(
    ("shared", "others", "reason"),
    [
        (record(SHARED), [], "no record of the same workload in one process"),
        (record(SHARED), [record(ALONE.replace(lr=0.5))], "no record of the same workload"),
        (record(SHARED), [record(ALONE, device="cuda:0")], "no record of the same workload"),
        (record(SHARED), [record(ALONE, **FAILED)], "in one process it is oom"),
        (record(SHARED, **FAILED), [record(ALONE)], "not measured: oom"),
        (record(ALONE), [record(ALONE)], "a single process"),
    ],
)
def test_what_is_not_known_is_absent_with_its_reason(
    shared: Record, others: list[Record], reason: str
) -> None:
    found = scaling(shared, others)
    assert found.efficiency is None
    assert reason in in_words(found)


def test_the_same_environment_is_preferred() -> None:
    old, new = record(ALONE, 0.2, environment="other"), record(ALONE, 0.1)
    found = scaling(record(SHARED, 0.1), [old, new])
    assert found.efficiency is not None
    assert found.efficiency.median == pytest.approx(1)


def test_the_peak_of_several_ranks_is_that_of_all_their_devices() -> None:
    h200 = {"identity": {"hardware": {"gpu": "NVIDIA H200"}}}
    one, two = (mfu_datasheet(record(of), h200) for of in (ALONE, SHARED))
    assert one is not None
    assert two is not None
    assert two.peak == 2 * one.peak
    assert two.full == pytest.approx(one.full), "twice the tokens on twice the devices"
