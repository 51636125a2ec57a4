"""A plugin inside a model: differentiable attention at the places where a model attends.

Plugins are built per problem, models call attention with tensors. Between the two stands
``Attends``, one module a place, so that what a method learns (Linformer's E and F) is a part
of the model, of its own for each layer, and known to the optimizer. ``Builds`` makes what is
built, once, and shares between places what has no state. Everything slow belongs into the
preparation (``prepare``) before the first step; a shape that appears later is built then, and
told (``Builds.late``).

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from attnbench.attention import Attention, Layout, Unsupported
from attnbench.layouts import from_layout
from attnbench.problem import Direction, Problem
from attnbench.train.models.calls import Call, Used, differentiable, raise_precision


class LateBuild(UserWarning):
    """An implementation was built for a new shape in the middle of a run."""


class Shape(NamedTuple):
    """What tells one build from another; plain values, cheap to make in every call."""

    batch: int
    heads_q: int
    heads_kv: int
    seqlen_q: int
    seqlen_k: int
    head_dim: int
    head_dim_v: int
    dtype: torch.dtype
    mask: str  # as in a suite: "full", "causal", "window:window=256"
    scale: float | None
    dropout_p: float
    softcap: float | None
    alibi: bool
    decode: bool
    bias: bool  # a learned one, given as a fourth tensor

    def problem(self, direction: Direction) -> Problem:
        """The attention problem of this shape."""
        fields = self._asdict()
        fields["dtype"] = str(self.dtype).removeprefix("torch.")
        if self.scale is not None and abs(self.scale * self.head_dim**0.5 - 1) < 1e-6:
            fields["scale"] = None  # the usual one: nothing to ask of an implementation
        return Problem.of(**fields, direction=direction)


@dataclass
class Builds:
    """What one implementation has built for one model.

    Attributes:
        attention: the implementation, with its options.
        device: where.
        direction: ``both`` for a model that learns, ``forward`` for one that generates.
        seed: of learned and random state; places draw one after the other.
        problems: those built so far, in order.
        late: labels of those that were built after :meth:`seal`.
    """

    attention: Attention
    device: torch.device
    direction: Direction = "both"
    seed: int = 0
    problems: list[Problem] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    _shared: dict[Shape, Any] = field(default_factory=dict)
    _drawn: int = 0
    _is_sealed: bool = False

    @property
    def step_mask(self) -> str:
        """The mask of a single query on a cache, the last one, which sees every key.

        A method with a pattern of its own must still know that it is a causal one.
        """
        return "full" if self.attention.kind == "exact" else "causal"

    def seal(self) -> None:
        """The preparation is over: what is built from now on is late, and told."""
        self._is_sealed = True

    def get(self, shape: Shape) -> Any:
        """What the implementation builds for a shape; a module is built anew for each place.

        Raises:
            Unsupported: the implementation cannot do this problem, or has no such bias.
        """
        if shape in self._shared:
            return self._shared[shape]
        problem = shape.problem(self.direction)
        self.attention.supports(problem, self.device)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.autocast(self.device.type, enabled=False):
            torch.manual_seed(self.seed + self._drawn)
            built = self.attention.build(problem, self.device)
        if problem not in self.problems:
            self.problems.append(problem)
            self._tell(problem)
        if isinstance(built, nn.Module):
            self._drawn += 1
            raise_precision(built)
        else:
            self._shared[shape] = built
        return built

    def _tell(self, problem: Problem) -> None:
        if self._is_sealed:
            self.late.append(problem.label)
            told = f"{self.attention.name} is built for {problem.label} in the middle of a run"
            warnings.warn(told, LateBuild, stacklevel=2)


class Attends(nn.Module):
    """One place of a model where attention happens.

    Submodules ``built_0`` … are what the implementation built as modules, with the
    parameters that it learns; builds for other shapes share them.
    """

    def __init__(self, builds: Builds) -> None:
        super().__init__()
        self.builds = builds
        self.layout: Layout = builds.attention.layout
        self._calls: dict[Shape, Call] = {}
        self._built: dict[Shape, Any] = {}

    @property
    def problems(self) -> list[Problem]:
        """What was attended to here, in the order of the first calls."""
        return [shape.problem(self.builds.direction) for shape in self._calls]

    @property
    def used(self) -> dict[Problem, Any]:
        """What is called here, by problem, as ``build`` would return it: to be verified as it is.

        A module is this place's own, and comes as :class:`Used`; all else is shared.
        """
        return {
            shape.problem(self.builds.direction): Used(x) if isinstance(x, nn.Module) else x
            for shape, x in self._built.items()
        }

    def forward(
        self,
        q_BHMD: torch.Tensor,
        k_BGND: torch.Tensor,
        v_BGNE: torch.Tensor,
        *,
        mask: str = "full",
        scale: float | None = None,
        dropout_p: float = 0.0,
        softcap: float | None = None,
        alibi: bool = False,
        decode: bool = False,
        bias_HMN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``(B, H, M, E)``, in the dtype of autocast, where it is on, or that of v.

        Under autocast q and k may come in float32 (RoPE and norms promote) and v in half
        precision. All are given to the implementation in the one dtype, with autocast off
        inside: it does what it does when it is measured alone.

        Raises:
            Unsupported: the implementation cannot do this shape.
        """
        dtype, is_cast = v_BGNE.dtype, torch.is_autocast_enabled(q_BHMD.device.type)
        if is_cast:
            dtype = torch.get_autocast_dtype(q_BHMD.device.type)
        tensors = [x.to(dtype) for x in (q_BHMD, k_BGND, v_BGNE)]
        shape = Shape(
            q_BHMD.shape[0], q_BHMD.shape[1], k_BGND.shape[1], q_BHMD.shape[2], k_BGND.shape[2],
            q_BHMD.shape[3], v_BGNE.shape[3], dtype, mask, scale, dropout_p, softcap,
            alibi, decode, bias_HMN is not None,
        )  # fmt: skip
        given = [_to_layout(x, self.layout, is_cache=decode) for x in tensors]
        if bias_HMN is not None:
            given.append(bias_HMN.to(dtype).contiguous())
        call = self._calls.get(shape)
        if call is None:
            call = self._prepare(shape)
        with torch.autocast(q_BHMD.device.type, enabled=False) if is_cast else nullcontext():
            out = call(*given)
        return from_layout(out, self.layout, shape.batch)

    def _prepare(self, shape: Shape) -> Call:
        if torch.compiler.is_compiling():
            raise RuntimeError(f"attention of shape {shape} must be prepared before compiling")
        built = self.builds.get(shape)
        if isinstance(built, nn.Module):
            self._keep(built, shape)
        call = differentiable(built)
        if self.builds.direction == "forward":
            call = torch.no_grad()(call)  # what has no backward must not seem to have one
        self._calls[shape], self._built[shape] = call, built
        return call

    def _keep(self, built: nn.Module, shape: Shape) -> None:
        """Register a module; its parameters are those of the first one built here.

        Raises:
            Unsupported: they have another shape, so what was learned cannot serve here.
        """
        first = next(self.children(), None)
        learned = {} if first is None else dict(first.named_parameters())
        for name, parameter in list(built.named_parameters()):
            if first is None:
                break
            own = learned.get(name)
            if own is None or own.shape != parameter.shape:
                was = "nothing" if own is None else tuple(own.shape)
                raise Unsupported(
                    f"its learned {name} is {tuple(parameter.shape)} at {shape.seqlen_q} queries "
                    f"and {shape.seqlen_k} keys, but {was} where it was learned"
                )
            owner, _, leaf = name.rpartition(".")
            setattr(built.get_submodule(owner), leaf, own)
        self.add_module(f"built_{len(self._modules)}", built)


def _to_layout(x_BHSD: torch.Tensor, layout: Layout, *, is_cache: bool) -> torch.Tensor:
    """A view in the layout, copied only where the layout promises other strides.

    Models hold ``(batch, seqlen, heads, dim)`` in memory. BHSD is given as the view it is;
    BSHD and packed are contiguous, which costs nothing where the model's own are. A cache
    stays a view of a longer one, as a problem with ``decode`` has it.
    """
    if layout == "BHSD":
        return x_BHSD
    x_BSHD = x_BHSD.transpose(1, 2)
    if layout == "BSHD":
        return x_BSHD if is_cache else x_BSHD.contiguous()
    return x_BSHD.flatten(0, 1).contiguous()


def prepare(
    model: nn.Module,
    builds: Builds,
    part: Mapping[str, torch.Tensor],
    whole: Mapping[str, torch.Tensor],
    autocast: torch.dtype | None = None,
) -> None:
    """Build attention at every place of a model, for every shape of a run.

    Args:
        model: with :class:`Attends` at its places, or places that make one when first called.
        builds: of the model; sealed afterwards.
        part: inputs as in training: of one part of a step, on the model's device.
        whole: inputs as in evaluation.
        autocast: the dtype that training will run in, if any.

    Raises:
        Unsupported: the implementation cannot do what the model needs.
    """
    was_training = model.training
    devices = [builds.device] if builds.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.no_grad(),
        torch.autocast(builds.device.type, autocast, enabled=autocast is not None),
    ):
        for is_training, inputs in ((True, part), (False, whole)):
            model.train(is_training)
            model(**inputs)
    model.train(was_training)
    builds.seal()
