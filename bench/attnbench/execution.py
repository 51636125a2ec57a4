"""One implementation at work on one problem: the hinge between plugins and measurement.

Whatever a plugin returned from ``build()`` (a function, a module, a forward and backward
of its own, in any layout) is here given one face: ``load`` inputs, ``step`` the timed
call, read ``results``. Converting layouts and checking types happen outside ``step``.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch

from attnbench.building import build, choices_of
from attnbench.inputs import AnyInputs
from attnbench.layouts import from_layout, layout_shape, to_layout
from attnbench.plugin import Attention, ForwardBackward, Unsupported
from attnbench.problem import Problem
from attnbench.watch.storage import not_real

_GONE_THROUGH = "backward through the graph a second time"  # autograd's words


class WrongOutput(Exception):
    """The implementation returned something that cannot be the answer."""


class Execution:
    """One implementation, built for one problem on one device.

    Attributes:
        choices: what ``build()`` chose for itself, as the implementation tells it.
        is_apart: whether the sequences of a padded layer are solved one after another.

    Raises:
        Unsupported: by the implementation, from ``supports()`` or ``build()``.
    """

    is_apart = False

    def __init__(
        self, implementation: Attention, problem: Problem, device: torch.device, seed: int = 0
    ) -> None:
        self.problem = problem
        self.implementation = implementation
        self.built = self._build(device, seed)
        self.choices = choices_of(self._plugins)
        self._layout = implementation.layout
        self._names: tuple[str, ...] = ("q", "k", "v")  # what there are gradients of
        self._tensors: list[torch.Tensor] = []  # these in the layout, and grad_out
        self._original: AnyInputs | None = None
        self._signs: Mapping[str, torch.Tensor] | None = None  # of what is loaded
        self._out: Any = None
        self._saved: Any = None
        self._gradients: tuple[Any, ...] = ()

    def _build(self, device: torch.device, seed: int) -> Any:
        """What the implementation builds for the problem."""
        if self.problem.bias:
            raise Unsupported(
                "a bias is handed over by a layer: level = 'layer' with position = 'relative'"
            )
        return build(self.implementation, self.problem, device, seed)

    @property
    def _plugins(self) -> Any:
        """What is the implementation's own of ``built``."""
        return self.built

    # ---- around the timed call -------------------------------------------------------

    def load(self, inputs: AnyInputs) -> None:
        """Put inputs in place, in the implementation's layout (untimed).

        A second load writes new contents to the same addresses, so that an implementation
        which remembers outputs by address, identity or version is found out. For the
        backward alone the forward is run here.
        """
        self._place(inputs)
        self._original, self._signs = inputs, None
        self._out, self._gradients = None, ()
        needs_grad = self.problem.direction != "forward" and not self._is_own
        for tensor in self._leaves:
            tensor.requires_grad_(needs_grad)
        if self.problem.direction == "backward":
            self._forward()

    def _place(self, inputs: AnyInputs) -> None:
        fresh = [to_layout(x, self._layout) for x in inputs.named().values()]
        if self._tensors and not any(0 in x.stride() for x in self._tensors):
            for own, new in zip(self._tensors, fresh, strict=True):
                own.data.copy_(new)  # .data: no version counter tells of it
        else:
            self._tensors = fresh

    @property
    def _leaves(self) -> Sequence[torch.Tensor]:
        """What autograd is asked for the gradients of."""
        return self._tensors[:-1]

    def twin(self) -> Self:
        """The same built callable over inputs of its own that hold the same contents."""
        assert self._original is not None, "load first"
        twin = copy.copy(self)
        twin._tensors = []
        twin.load(self._original)
        return twin

    @property
    def loaded(self) -> dict[str, torch.Tensor]:
        """What the implementation is given (q, k, v, grad_out), as views in BHSD."""
        batch = self.problem.batch
        return {
            name: from_layout(x.data, self._layout, batch)
            for name, x in zip((*self._names, "grad_out"), self._tensors, strict=True)
        }

    @property
    def has_result(self) -> bool:
        """Whether a step was made since contents were loaded, changed or forgotten."""
        if self.problem.direction == "forward":
            return self._out is not None
        return not (isinstance(self._gradients, tuple) and self._gradients == ())

    @property
    def returned(self) -> list[torch.Tensor]:
        """The tensors of the last step, as they were returned; nobody needs them any more.

        Not the output if the backward is timed alone, which may be made from it again.
        """
        last: list[Any] = [*self._gradients]
        if self.problem.direction != "backward":
            last.append(self._out)
        return [x.detach() for x in last if type(x) is torch.Tensor]

    def change_signs(self, signs: Mapping[str, torch.Tensor]) -> None:
        """Multiply what was loaded by ±1 in place, by name (untimed); the last results are dropped.

        Not on top of earlier signs but instead of them. For the backward alone, grad_out
        changes only when the forward has been run again.
        """
        before, self._signs = self._signs, signs
        loaded = self.loaded

        def change(name: str) -> None:
            loaded[name].mul_(signs[name] if before is None else signs[name] * before[name])

        for name in self._names:
            change(name)
        self.forget()
        if self.problem.direction == "backward":
            self._forward()
        change("grad_out")

    def forget(self) -> None:
        """Drop every result, those of the forward that a backward alone begins with too."""
        self._gradients, self._out, self._saved = (), None, None

    def forget_last(self) -> None:
        """Drop what the last step returned; a backward alone keeps the forward it begins with."""
        self._gradients = ()
        if self.problem.direction != "backward":
            self._out, self._saved = None, None

    def prepare(self) -> None:
        """As after ``load``: nothing is left but what the timed call begins with."""
        self.forget()
        if self.problem.direction == "backward":
            self._forward()

    def drop_saved(self) -> None:
        """Let go of what the forward saved for the backward; the output itself stays."""
        self._saved = None
        if isinstance(self._out, torch.Tensor):
            self._out = self._out.detach()

    def results(self) -> dict[str, torch.Tensor]:
        """Output (and gradients) of the last step, checked and in BHSD.

        Raises:
            WrongOutput: not a plain tensor, or of a wrong shape, dtype or device.
        """
        p = self.problem
        self._check_out()
        named: dict[str, Any] = {"out": self._out}
        if p.direction != "forward":
            named |= self._named_gradients()
        for name, tensor in named.items():
            if (fault := not_real(name, tensor, may_repeat=name != "out")) is not None:
                raise WrongOutput(fault)
        return {
            name: from_layout(tensor.detach(), self._layout, p.batch)
            for name, tensor in named.items()
        }

    def _named_gradients(self) -> dict[str, torch.Tensor]:
        """The gradients of the last step by name, of the right shapes."""
        if not isinstance(self._gradients, (tuple, list)) or len(self._gradients) != 3:
            raise WrongOutput("the backward must return (dq, dk, dv)")
        named = {f"d{name}": x for name, x in zip(self._names, self._gradients, strict=True)}
        for (name, x), given in zip(named.items(), self._tensors, strict=False):
            self._check(name, x, tuple(given.shape))
        return named

    def changed_input(self) -> str | None:
        """The name of an input that the implementation overwrote, or None."""
        if self._original is None:
            return None
        given = self._original.named()
        for name, own in self.loaded.items():
            x = given[name]
            same = own if self._signs is None else own * self._signs[name]
            if not torch.equal(_bits(same), _bits(x)):
                return name
        return None

    def keep_mask(self) -> torch.Tensor | None:
        """Which weights the last call's dropout kept, ``(B,H,M,N)``; None if not revealed."""
        reveal = getattr(self._plugins, "keep_mask", None)
        mask: torch.Tensor | None = reveal() if reveal is not None else None
        return mask

    # ---- the timed calls -------------------------------------------------------------

    @property
    def _is_own(self) -> bool:
        return isinstance(self.built, ForwardBackward)

    @property
    def step(self) -> Callable[[], None]:
        """The timed call. ``load`` first."""
        if self.problem.direction == "forward":
            return self._step_forward
        return self._backward if self.problem.direction == "backward" else self._step_both

    def forward(self) -> None:
        """The forward of the timed call (untimed, for the backward alone)."""
        if self.problem.direction == "forward":
            self._step_forward()
        else:
            self._forward()

    def backward(self) -> None:
        """The backward of the timed call, after :meth:`forward`."""
        self._backward()

    def _step_forward(self) -> None:
        with torch.no_grad():
            self._forward()

    def _step_both(self) -> None:
        self._forward()
        self._backward()

    def _forward(self) -> None:
        given = self._tensors[:-1]
        if isinstance(self.built, ForwardBackward):
            self._out, self._saved = self.built.forward(*given)
        else:
            self._out = self.built(*given)

    def _backward(self) -> None:
        grad_out = self._tensors[-1]
        if isinstance(self.built, ForwardBackward):
            self._gradients = self.built.backward(self._saved, grad_out)
        else:
            retain = self.problem.direction == "backward"
            try:
                self._gradients = torch.autograd.grad(
                    self._out, self._leaves, grad_out, retain_graph=retain, allow_unused=True
                )
            except Exception as error:
                self._check_out()
                if _GONE_THROUGH in str(error):
                    raise WrongOutput(
                        "returned the output of an earlier call: autograd has gone through its "
                        "graph before"
                    ) from None
                if (changed := self.changed_input()) is not None:
                    raise WrongOutput(f"it overwrote its input {changed}") from None
                if not self._out.requires_grad:
                    raise WrongOutput(
                        "the output has no graph for autograd to go back through: leave 'backward' "
                        "out of the features, or return a ForwardBackward from build()"
                    ) from None
                raise

    def _check_out(self) -> None:
        self._check("out", self._out, self._out_shape())

    def _out_shape(self) -> tuple[int, ...]:
        p = self.problem
        return layout_shape((p.batch, p.heads_q, p.seqlen_q, p.head_dim_v), self._layout)

    def _check(self, name: str, tensor: Any, shape: tuple[int, ...]) -> None:
        if tensor is None:
            raise WrongOutput(f"{name} is None")
        if type(tensor) is not torch.Tensor:
            raise WrongOutput(f"{name} is a {type(tensor).__name__}, not a torch.Tensor")
        expected_dtype = self._tensors[0].dtype
        if tuple(tensor.shape) != shape:
            raise WrongOutput(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype != expected_dtype:
            raise WrongOutput(f"{name} has dtype {tensor.dtype}, expected {expected_dtype}")
        if tensor.device != self._tensors[0].device:
            raise WrongOutput(f"{name} is on {tensor.device}, expected {self._tensors[0].device}")


def _bits(x: torch.Tensor) -> torch.Tensor:
    """The raw bits, so that equal NaNs compare equal."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(integers[x.element_size()])
