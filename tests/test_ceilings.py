"""Ceilings of the machine that runs the tests: sane in themselves, never in seconds."""

from __future__ import annotations

import pytest
import torch

from attnbench.measure import ceilings as module
from attnbench.measure.ceilings import measure_ceilings, sm_clock
from attnbench.roofline import Ceilings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured() -> Ceilings:
    """Measured in a hurry, small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FIRST_BYTES", {"cpu": 1 << 20})
        patch.setattr(module, "_LAST_BYTES", 8 << 20)
        patch.setattr(module, "_SIDES", {"cpu": (64, 128)})
        patch.setattr(module, "_BURST_S", 1e-4)
        return measure_ceilings(CPU, dtypes=("float32", "tf32", "bfloat16"), budget_s=0.2)


def test_every_rate_has_an_interval_and_a_best_above_its_median(measured: Ceilings) -> None:
    assert set(measured.bandwidth) == {"copy", "read"}
    assert set(measured.matmul) == {"float32", "bfloat16"}
    for rate in (*measured.bandwidth.values(), *measured.matmul.values()):
        assert 0 < rate.low <= rate.median <= rate.high
        assert rate.best >= rate.median
        assert rate.clock_mhz is None
    # Anything that runs torch copies more than 10 MB/s and multiplies at more than 1 MFLOPS.
    assert measured.bandwidth["copy"].best > 1e7
    assert measured.matmul["float32"].best > 1e6


def test_what_a_device_cannot_do_is_absent_with_the_reason(measured: Ceilings) -> None:
    assert measured.absent["tf32"] == "RuntimeError: this device has no TF32"


def test_the_cache_has_a_size_or_a_reason(measured: Ceilings) -> None:
    assert (measured.cache_bytes is None) == ("cache_bytes" in measured.absent)


def test_what_was_multiplied_is_told(measured: Ceilings) -> None:
    assert measured.matmul["float32"].what.split()[0] in ("64×64×64", "128×128×128")
    assert "MiB" in measured.bandwidth["copy"].what


def test_the_clock_beside_each_round_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_BYTES", {"cpu": 1 << 16})
    monkeypatch.setattr(module, "_LAST_BYTES", 1 << 16)
    monkeypatch.setattr(module, "_SIDES", {"cpu": (16,)})
    monkeypatch.setattr(module, "_BURST_S", 1e-6)
    clocks = iter(range(1000, 2000))
    found = measure_ceilings(
        CPU, dtypes=("float32",), budget_s=0.01, read_clock_mhz=lambda: float(next(clocks))
    )
    assert found.matmul["float32"].clock_mhz is not None
    assert 1000 <= found.matmul["float32"].clock_mhz < 1100


def test_without_nvml_there_is_no_clock() -> None:
    assert sm_clock(None)() is None


def test_the_product_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(torch, "mm", lambda a, b, out: seen.append((a, b)))
    for name, layout in (("bfloat16", "NN"), ("float32", "NT")):
        module._product(name, 32, layout, CPU)()
        a_NN, b_NN = seen[-1]
        assert a_NN.shape == b_NN.shape == (32, 32)
        assert a_NN.dtype == b_NN.dtype == getattr(torch, name)
        assert b_NN.is_contiguous() == (layout == "NN")
        assert a_NN.float().std() == pytest.approx(1.0, abs=0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_multiplies_faster_in_shorter_types() -> None:
    found = measure_ceilings(torch.device("cuda:0"), budget_s=3.0)
    assert found.matmul["bfloat16"].median > 2 * found.matmul["float32"].median
    assert found.bandwidth["read"].median > 1e11
