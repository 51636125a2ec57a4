"""The environment: what the figures were measured on, kept in a file beside the records.

``identity`` is what makes two runs comparable (hardware, driver, software); its hash is
part of every point's id. ``context`` is worth knowing but changes nothing about the
point: the commit, clocks and limits at the time. The file is named by the hash of all of
it, so it never changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from attnbench import __version__


def describe(device: str) -> dict[str, Any]:
    """Identity and context of this machine for a device (``cpu``, ``cuda:0``). Needs torch."""
    import numpy
    import torch

    from attnbench.measure import pinning

    software = {
        "attnbench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "cudnn": _cudnn_version(),
        "numpy": numpy.__version__,
    }
    hardware: dict[str, Any] = {
        "device": device,
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(_memory_bytes() / 2**30),
        "kernel": platform.release(),
    }
    context: dict[str, Any] = {"git": _git(), "os": _os_name()}
    if device == "cpu":
        context["threads"] = pinning.describe()
    if device.startswith("cuda"):
        gpu_identity, context["gpu"] = _gpu(torch.device(device))
        hardware |= gpu_identity
    return {"identity": {"hardware": hardware, "software": software}, "context": context}


def machine_id(environment: dict[str, Any]) -> str:
    """12 hex digits of what makes runs comparable."""
    return _digest(environment["identity"])


def address(environment: dict[str, Any]) -> str:
    """12 hex digits of all of it: the name of its file."""
    return _digest(environment)


def machine_name(environment: dict[str, Any]) -> str:
    """A folder name for this machine: the GPU's name, else the CPU's."""
    hardware = environment["identity"]["hardware"]
    name = hardware.get("gpu") or f"cpu-{hardware['cpu']}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def gpu_uuid(environment: dict[str, Any]) -> str | None:
    """The GPU's name at NVML (``GPU-…``); None without one, or without NVML."""
    uuid = environment["context"].get("gpu", {}).get("uuid", "")
    return uuid if uuid.startswith(("GPU-", "MIG-")) else None


def save(environment: dict[str, Any], folder: Path) -> str:
    """Write the file (once) and return its address."""
    name = address(environment)
    path = folder / f"environment-{name}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(environment, indent=1, sort_keys=True) + "\n")
        partial.replace(path)
    return name


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """The environment at an address beside the records, or None if it is not there."""
    path = folder / f"environment-{name}.json"
    if not path.is_file():
        return None
    data = json.loads(path.read_text())
    return data if isinstance(data, dict) else None


def of_machine(environment: dict[str, Any], folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(address, environment) of each file in a folder that tells of the same machine.

    Damaged files are left out: whoever reads records tells of them.
    """
    machine = machine_id(environment)
    for path in sorted(folder.glob("environment-*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            is_same = machine_id(data) == machine
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if is_same:
            yield path.stem.removeprefix("environment-"), data


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cudnn_version() -> int | None:
    import torch

    if not torch.cuda.is_available():
        return None
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _git() -> dict[str, Any] | None:
    """Commit of the current folder's repository, and whether a tracked file differs from it."""

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10)
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": commit, "dirty": bool(changed)} if commit else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def _gpu(device: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What torch and NVML say about a GPU: (identity, context)."""
    import torch

    from attnbench.device import nvml_uuid

    properties = torch.cuda.get_device_properties(device)
    identity: dict[str, Any] = {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
    }
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(nvml_uuid(device))
    except Exception as error:
        return identity, {"nvml": f"not available: {error}"}
    context = {}
    for name, read in (
        ("power_limit_w", lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        ("sm_max_mhz", lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)),
        ("sm_clock_mhz", lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
        ("memory_clock_mhz", lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)),
        ("temperature_c", lambda: pynvml.nvmlDeviceGetTemperature(handle, 0)),
        ("ecc", lambda: bool(pynvml.nvmlDeviceGetEccMode(handle)[0])),
        ("uuid", lambda: pynvml.nvmlDeviceGetUUID(handle)),
    ):  # fmt: skip
        try:
            context[name] = read()
        except pynvml.NVMLError as error:
            context[name] = f"not available: {error}"
    identity["driver"] = pynvml.nvmlSystemGetDriverVersion()
    return identity, context
