"""q, k and v of a model's layer, out of a file: ``.npz``, ``.pt`` or ``.safetensors``.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, D = head_dim,
E = head_dim_v.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnbench.errors import UserError, message
from attnbench.inputs import Inputs, make_inputs
from attnbench.problem import DTYPES, Problem

FORMATS = (".npz", ".pt", ".safetensors")
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, TypeError, pickle.UnpicklingError,
               zipfile.BadZipFile)  # fmt: skip
_TAKEN = ("batch", "heads", "heads_q", "heads_kv", "seqlen", "seqlen_q", "seqlen_k", "head_dim",
          "head_dim_v", "d_model", "inputs", "preset")  # fmt: skip


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """``q`` (B,H,M,D), ``k`` (B,G,N,D) and, if the file has it, ``v`` (B,G,N,E), on the CPU.

    Other tensors in the file are left alone. Nothing of a ``.pt`` file is executed.

    Raises:
        UserError: it cannot be read, lacks q or k, or their shapes or dtypes do not fit.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"--tensors {path}: must end in {', '.join(FORMATS)}")
    try:
        found = _load(path)
    except FileNotFoundError:
        raise UserError(f"--tensors {path}: no such file") from None
    except UserError:
        raise
    except _UNREADABLE as error:
        raise UserError(f"--tensors {path}: cannot be read: {message(error)}") from None
    tensors: dict[str, Any] = {n: found[n] for n in ("q", "k", "v") if n in found}
    for name in ("q", "k"):
        if name not in tensors:
            names = ", ".join(sorted(map(str, found))) or "nothing"
            raise UserError(f"--tensors {path}: has no tensor {name!r}; it has: {names}")
    _check(path, tensors)
    return tensors


def layer_problem_words(tensors: Mapping[str, torch.Tensor], overrides: Sequence[str]) -> list[str]:
    """The ``key=value`` texts of the problem that tensors and ``--set`` describe together.

    Raises:
        UserError: ``--set`` names what the tensors say themselves.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in _TAKEN:
            raise UserError(f"--set {key}: with --tensors the shapes and contents are the file's")
    q, k = tensors["q"], tensors["k"]
    v = tensors.get("v", k)
    told = {
        "batch": q.shape[0], "heads_q": q.shape[1], "heads_kv": k.shape[1],
        "seqlen_q": q.shape[2], "seqlen_k": k.shape[2], "head_dim": q.shape[3],
        "head_dim_v": v.shape[3], "dtype": f'"{_name(q.dtype)}"',
    }  # fmt: skip
    return [*(f"{key}={value}" for key, value in told.items()), *overrides]


def layer_inputs(
    problem: Problem, tensors: Mapping[str, torch.Tensor], seed: int, device: torch.device
) -> Inputs:
    """Inputs of a problem with the layer's q and k in its dtype; v is drawn where it lacks."""
    drawn = make_inputs(problem, seed, device)
    own = {n: x.to(device, problem.torch_dtype).contiguous() for n, x in tensors.items()}
    return Inputs(own["q"], own["k"], own.get("v", drawn.v_BGNE), drawn.grad_out_BHME)


def _load(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            wanted = {n: arrays[n] if n in ("q", "k", "v") else None for n in arrays.files}
        return {n: x if x is None else torch.from_numpy(x) for n, x in wanted.items()}
    if path.suffix == ".pt":
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not a dict of tensors")
        return found
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"--tensors {path}: needs safetensors: pip install safetensors") from None
    try:
        loaded: dict[str, Any] = load_file(path)
    except SafetensorError as error:
        raise ValueError(message(error)) from None
    return loaded


def _check(path: Path, tensors: Mapping[str, Any]) -> None:
    """Raise UserError unless the tensors are those of one attention."""
    for name, x in tensors.items():
        if not isinstance(x, torch.Tensor) or x.dim() != 4 or 0 in x.shape:
            shape = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise UserError(
                f"--tensors {path}: {name} must be (batch, heads, seqlen, head_dim), got {shape}"
            )
        if _name(x.dtype) not in DTYPES:
            raise UserError(f"--tensors {path}: {name} has dtype {_name(x.dtype)}; "
                            f"allowed: {', '.join(DTYPES)}")  # fmt: skip
        if not bool(x.float().isfinite().all()):
            raise UserError(f"--tensors {path}: {name} has NaN or infinite values")
    q, k = tensors["q"], tensors["k"]
    v = tensors.get("v", k)
    fits = q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3] and v.shape[:3] == k.shape[:3]
    if not fits or q.shape[1] % k.shape[1]:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise UserError(
            f"--tensors {path}: shapes do not fit: {shapes}; wanted q (B,H,M,D), k (B,G,N,D), "
            "v (B,G,N,E), H a multiple of G"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
