"""One kernel, in one configuration, that must compile: what an implementation hands in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from attnbench.errors import UserError, unknown
from attnbench.offline.launch import specialize
from attnbench.offline.targets import EXPECTATIONS, TARGETS, Target


@dataclass(frozen=True)
class Case:
    """A Triton kernel with the types and values it is compiled for, and what must come out.

    Attributes:
        name: tells it from the other cases of its implementation.
        kernel: a ``triton.jit`` function, or a Gluon one; not the ``autotune`` or
            ``heuristics`` object around it, which has it as ``.fn``.
        signature: Triton's type of every argument that is no constexpr: ``*bf16``, ``i32``,
            ``fp32``, ``tensordesc<bf16[128, 64]>``. Pointers are taken to be multiples of
            16 bytes, as torch's are.
        constexprs: values of the other arguments; None for a pointer that is left out.
        num_warps, num_stages: as in ``triton.Config``; Triton may add warps of its own.
        expects: names of :data:`~attnbench.offline.targets.EXPECTATIONS`.
        spill_budget_bytes: of local memory a thread that registers may spill to.
        targets: names of :data:`~attnbench.offline.targets.TARGETS`; None is every target
            that can have what is expected (TMA is nothing that sm_80 could have).
        multiples_of_16: integer arguments that Triton will find to be such, as strides are.
        maxnreg: most registers a thread, as in ``triton.Config``; NVIDIA only.

    Raises:
        UserError: an unknown name, or an expectation that a named target cannot meet.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    expects: frozenset[str] = frozenset()
    spill_budget_bytes: int = 0
    targets: tuple[str, ...] | None = None
    multiples_of_16: frozenset[str] = frozenset()
    maxnreg: int | None = None

    @classmethod
    def of_launch(
        cls,
        name: str,
        kernel: Any,
        arguments: Mapping[str, Any],
        *,
        num_warps: int,
        num_stages: int,
        expects: frozenset[str] = frozenset(),
        spill_budget_bytes: int = 0,
        targets: tuple[str, ...] | None = None,
        maxnreg: int | None = None,
    ) -> Case:
        """The case that a launch would compile, from the very arguments it would have.

        Args:
            name, kernel, num_warps, num_stages, expects: as in the class, and so are
                spill_budget_bytes, targets, maxnreg.
            arguments: of the kernel, by name: tensors (best on torch's ``meta`` device, where
                they take no memory), numbers, None, and the constexprs.

        Raises:
            UserError: an argument too many or too few, or a kernel that is interpreted.
        """
        found = specialize(kernel, arguments, f"case {name!r}")
        return cls(
            name, kernel, found.signature, found.constexprs, num_warps, num_stages, expects,
            spill_budget_bytes, targets, found.multiples_of_16, maxnreg,
        )  # fmt: skip

    def __post_init__(self) -> None:
        where = f"case {self.name!r}"
        for name in self.expects:
            if name not in EXPECTATIONS:
                raise unknown("expectation", name, EXPECTATIONS, where)
        for name in self.targets or ():
            if name not in TARGETS:
                raise unknown("target", name, TARGETS, where)
            if lacking := sorted(self.expects - TARGETS[name].features):
                raise UserError(f"{where}: {name} cannot have {', '.join(lacking)}")
            if self.maxnreg is not None and not TARGETS[name].is_nvidia:
                raise UserError(f"{where}: maxnreg is nothing that {name} has")

    @property
    def compiled_for(self) -> tuple[Target, ...]:
        """The targets it is for."""
        if self.targets is not None:
            return tuple(TARGETS[name] for name in self.targets)
        return tuple(
            target
            for target in TARGETS.values()
            if self.expects <= target.features and (self.maxnreg is None or target.is_nvidia)
        )

    @property
    def kernel_name(self) -> str:
        """Of the kernel's function."""
        return str(getattr(self.kernel, "__name__", self.kernel))


def checked_cases(offered: Iterable[Any]) -> tuple[Case, ...]:
    """What ``compile_cases()`` of an implementation returned.

    Raises:
        UserError: something in it is no case, or two have one name.
    """
    cases: dict[str, Case] = {}
    for case in offered:
        if not isinstance(case, Case):
            raise UserError(f"offers {case!r}, which is no attnbench.offline.Case")
        if case.name in cases:
            raise UserError(f"offers two cases of the name {case.name!r}")
        cases[case.name] = case
    return tuple(cases.values())
