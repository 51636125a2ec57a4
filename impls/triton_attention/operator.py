"""How torch sees the attention: two operators with fakes, gradients and FLOPs.

An operator takes tensors and a *key*, the problem and the options as JSON. By the key it
finds the attention that was built, or builds it again: a compiled graph may come from
torch's cache on disk, in a process where nothing was built, and may outlive what was.

- ``…::forward(q, k, v, bias, key) → (out, lse, seed)``; the seed is that of dropout, int64
  ``(1,)``, empty without dropout. It is a result because the backward and ``keep_mask`` need
  the very number that was drawn. The bias is None unless the problem has a learned one.
- ``…::backward(q, k, v, bias, out, lse, seed, grad_out, key, wants_dbias) → (dq, dk, dv,
  dbias)``; dbias is empty unless it is wanted.

FLOPs are those of ``Problem.flops()``: of the pairs that the mask keeps.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, D = head_dim,
E = head_dim_v.
"""

from __future__ import annotations

import functools
import json
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from attnbench import Problem

from .launch import FusedAttention
from .outputs import check_inputs, dense_like, new_results

# Named after the folder as the registry loaded it, with the hash of its contents: a copy of
# this plugin, or another revision beside it, must not take over the operators of this one.
_NAMESPACE = f"attnbench_{__package__.rpartition('.')[2]}"
_TAGS = (
    torch.Tag.nondeterministic_seeded,  # two calls with dropout are not one call
    torch.Tag.needs_exact_strides,  # the kernels take any: nothing is to be copied for them
)
_MOST_REBUILT = 64


class TorchAttention(FusedAttention):
    """A :class:`FusedAttention` to call as ``(q, k, v[, bias]) → out``, in any of torch's worlds.

    In eager mode an ``autograd.Function`` is called rather than the operators: the way
    through torch's dispatcher and its Python wrappers doubles the host's time of a forward
    (20 µs more, with a backward 50, kernels left out, on one CPU), and a decode step is not
    longer than that. torch.compile leaves none of it in what it makes. Where a dispatch mode
    watches (``FlopCounterMode``, fake tensors, selective checkpointing) it has to see the
    operators, or it would see nothing.

    Args:
        problem: what to solve.
        device: where.
        options: the other arguments of :class:`FusedAttention`, of JSON's types.
    """

    def __init__(self, problem: Problem, device: torch.device, **options: Any) -> None:
        super().__init__(problem, _indexed(device), **options)
        self.key = json.dumps({"problem": problem.to_json(), "options": options}, sort_keys=True)
        _built[self.key, self.device] = self

    def __call__(
        self, q_BHMD: Tensor, k_BGND: Tensor, v_BGNE: Tensor, bias_HMN: Tensor | None = None
    ) -> Tensor:
        """Attend; autograd can differentiate it once.

        Raises:
            ValueError: a tensor is not of the problem's shape and dtype, or elsewhere; or a
                learned bias is missing or superfluous.
        """
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
            out_BHME, _, seed = forward(q_BHMD, k_BGND, v_BGNE, bias_HMN, self.key)
            if self.problem.dropout_p > 0:
                self.seed = seed
        else:
            out_BHME = _Attend.apply(  # type: ignore[no-untyped-call]
                q_BHMD, k_BGND, v_BGNE, bias_HMN, self
            )
        attended: Tensor = out_BHME
        return attended


# ---- from a key to an attention ----------------------------------------------------------

_built: weakref.WeakValueDictionary[tuple[str, torch.device], TorchAttention]
_built = weakref.WeakValueDictionary()


def _attention(key: str, device: torch.device) -> FusedAttention:
    return _built.get((key, device)) or _rebuilt(key, device)


@functools.lru_cache(_MOST_REBUILT)
def _rebuilt(key: str, device: torch.device) -> TorchAttention:
    """Kept here: nobody else has it."""
    return TorchAttention(_problem(key), device, **json.loads(key)["options"])


@functools.lru_cache
def _problem(key: str) -> Problem:
    return Problem.from_json(json.loads(key)["problem"])


def _indexed(device: torch.device) -> torch.device:
    """As tensors name it: ``cuda:0`` for ``cuda``."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


# ---- operators ---------------------------------------------------------------------------


@torch.library.custom_op(f"{_NAMESPACE}::forward", mutates_args=(), tags=_TAGS)
def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, key: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``out`` (B, H, M, E), the LSE in base 2 float32 (B, H, M), the seed of dropout."""
    attention = _attention(key, q.device)
    out_BHME, lse_BHM = attention.forward(q, k, v, bias)
    seed = attention.seed
    return out_BHME, lse_BHM, _no_seed(q) if seed is None else seed


@forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, key: str
) -> tuple[Tensor, Tensor, Tensor]:
    problem = _problem(key)
    check_inputs(problem, q.device, q, k, v, bias)
    has_seed = problem.dropout_p > 0
    return *new_results(problem, q), q.new_empty(1, dtype=torch.int64) if has_seed else _no_seed(q)


@torch.library.custom_op(f"{_NAMESPACE}::backward", mutates_args=(), tags=_TAGS[1:])
def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    seed: Tensor,
    grad: Tensor,
    key: str,
    wants_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv and dbias for what ``forward`` was given and returned."""
    attention = _attention(key, q.device)
    dq, dk, dv, dbias = attention.backward(
        (q, k, v), out, lse, seed if len(seed) else None, grad, bias, wants_dbias=wants_dbias
    )
    return dq, dk, dv, q.new_empty(0) if dbias is None else dbias


@backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    seed: Tensor,
    grad: Tensor,
    key: str,
    wants_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (dense_like(x, x.shape[3]) for x in (q, k, v))
    if bias is None or not wants_dbias:
        return dq, dk, dv, q.new_empty(0)
    return dq, dk, dv, dense_like(bias, bias.shape[2])


def _no_seed(q: Tensor) -> Tensor:
    return q.new_empty(0, dtype=torch.int64)


# ---- gradients ---------------------------------------------------------------------------


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q_BHMD, k_BGND, v_BGNE, bias_HMN, ctx.key = inputs
    _, lse_BHM, seed = output
    ctx.save_for_backward(q_BHMD, k_BGND, v_BGNE, bias_HMN, *output)
    ctx.mark_non_differentiable(lse_BHM, seed)
    ctx.set_materialize_grads(False)  # no zeros for the gradient of the LSE, which has none


def _gradients(ctx: Any, grad_BHME: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_BHME is None:
        return None, None, None, None, None
    wants_dbias = ctx.needs_input_grad[3]
    dq, dk, dv, dbias = backward(*ctx.saved_tensors, grad_BHME, ctx.key, wants_dbias)
    return dq, dk, dv, dbias if wants_dbias else None, None


forward.register_autograd(_gradients, setup_context=_keep_for_backward)


class _Attend(torch.autograd.Function):
    """The same without operators: see :class:`TorchAttention`."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BHMD: Tensor,
        k_BGND: Tensor,
        v_BGNE: Tensor,
        bias_HMN: Tensor | None,
        attention: TorchAttention,
    ) -> Tensor:
        out_BHME, lse_BHM = attention.forward(q_BHMD, k_BGND, v_BGNE, bias_HMN)
        ctx.save_for_backward(q_BHMD, k_BGND, v_BGNE, bias_HMN, out_BHME, lse_BHM)
        ctx.attention, ctx.seed = attention, attention.seed
        return out_BHME

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHME: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, bias_HMN, out_BHME, lse_BHM = ctx.saved_tensors
        attention, seed, wants_dbias = ctx.attention, ctx.seed, ctx.needs_input_grad[3]
        dbias_HMN: Tensor | None
        if torch._C._len_torch_dispatch_stack():  # it may have come after the forward
            seed = _no_seed(lse_BHM) if seed is None else seed
            dq_BHMD, dk_BGND, dv_BGNE, dbias_HMN = backward(
                *inputs, bias_HMN, out_BHME, lse_BHM, seed, grad_BHME, attention.key, wants_dbias
            )
        else:
            dq_BHMD, dk_BGND, dv_BGNE, dbias_HMN = attention.backward(
                tuple(inputs), out_BHME, lse_BHM, seed, grad_BHME, bias_HMN, wants_dbias=wants_dbias
            )
        return dq_BHMD, dk_BGND, dv_BGNE, dbias_HMN if wants_dbias else None, None


# ---- FLOPs -------------------------------------------------------------------------------


@register_flop_formula(getattr(torch.ops, _NAMESPACE).forward)
def _flops_forward(q: Any, k: Any, v: Any, bias: Any, key: str, **_: Any) -> int:
    return _problem(key).replace(direction="forward").flops()


@register_flop_formula(getattr(torch.ops, _NAMESPACE).backward)
def _flops_backward(
    q: Any,
    k: Any,
    v: Any,
    bias: Any,
    out: Any,
    lse: Any,
    seed: Any,
    grad: Any,
    key: str,
    wants_dbias: bool,
    **_: Any,
) -> int:
    return _problem(key).replace(direction="backward", decode=False).flops()
