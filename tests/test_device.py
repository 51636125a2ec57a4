"""A device is waited for where it works by itself, and known to NVML by its UUID."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from attnbench.device import nvml_uuid, synchronize

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


def test_a_gpu_is_waited_for_and_a_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    synchronize(CPU)
    assert waited == []
    synchronize(GPU)
    assert waited == [GPU]


def test_the_uuid_is_written_as_nvml_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = {GPU: SimpleNamespace(uuid="7d3e0000-0000")}
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    assert nvml_uuid(GPU) == "GPU-7d3e0000-0000"
    assert nvml_uuid(CPU) is None
