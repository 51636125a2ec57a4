"""What is asked of a device in many places: to finish, and what NVML calls it."""

from __future__ import annotations

import torch


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished everything; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def nvml_uuid(device: torch.device) -> str | None:
    """``GPU-…``: NVML counts all GPUs, torch those that ``CUDA_VISIBLE_DEVICES`` leaves.

    None for a CPU.
    """
    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
