"""``triton``: fused attention in Triton, forward and backward, for every feature of a problem.

``forward``, ``dkdv``, ``dq`` and ``dbias`` hold the kernels and are made to be read
(``backward`` tells how gradients come about); ``specialized`` is the forward for sm_90 and
later, ``decode`` that for few queries, ``tiles``, ``order`` and ``dropout`` what they share,
``masks`` how a mask reaches them, ``config`` how they are cut, ``schedules`` which of it a
problem may have, ``prepared`` what a problem has made once, ``launch`` how kernels are called,
``operator`` how torch sees it, ``tuning`` which configuration is the fastest, ``cases`` what is
compiled to check them. On a CPU they run only when asked, in Triton's interpreter
(``triton:interpret=true``): for correctness, thousands of times slower than anything.

Triton is imported when a problem is built: it takes a second that others need not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from attnbench import Attention, Case, Problem, Unsupported, make_inputs, register

if TYPE_CHECKING:
    from .operator import TorchAttention

_LARGEST_DIM = 256
_SCHEDULES = ("auto", "tiles", "persistent", "specialized")
_CAPABILITY = (8, 0)  # Ampere: bfloat16, asynchronous copies
_CAPABILITY_FP8 = (8, 9)  # Ada: tensor cores for 8-bit floats
_FP8 = "float8_e4m3fn"


def _version() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


@register("triton")
class Triton(Attention):
    """Fused attention in Triton: online softmax, any mask, deterministic backward.

    Options:
        interpret: run in Triton's interpreter; only on a CPU.
        fp32: how float32 products are taken, ``ieee`` or ``tf32``.
        schedule: of the forward: ``tiles`` (a program for each), ``persistent`` (programs that
            walk over tiles), ``specialized`` (loads by a warp of their own, sm_90 and later), or
            ``auto``. Strides that no descriptor can have are read by the best other schedule
            where ``specialized`` was chosen, and few queries by a kernel of their own; what
            runs is told by ``choices``.
        tune: time the configurations in ``build()`` and take the fastest, which is remembered
            in ``ATTNBENCH_TUNING_DIR`` or ``~/.cache/attnbench/tuning``. Otherwise, and in
            the interpreter, where times mean nothing, the default ones run.
    """

    features = Attention.features | {"alibi", "bias", "softcap", "dropout"}
    dtypes = ("float32", "bfloat16", "float16", _FP8)
    devices = ("cuda", "cpu")
    options = {"interpret": False, "fp32": "ieee", "schedule": "auto", "tune": True}
    simulators = {"interpret": "in Triton's interpreter"}
    version = _version()
    source = "Dao 2023, FlashAttention-2, arXiv 2307.08691; kernels written here"

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        if self.options["fp32"] not in ("ieee", "tf32"):
            raise Unsupported(f"option fp32 is ieee or tf32, not {self.options['fp32']}")
        if self.options["schedule"] not in _SCHEDULES:
            allowed, found = ", ".join(_SCHEDULES), self.options["schedule"]
            raise Unsupported(f"option schedule is one of {allowed}, not {found}")
        for name in ("head_dim", "head_dim_v"):
            if getattr(problem, name) > _LARGEST_DIM:
                raise Unsupported(f"does {name} up to {_LARGEST_DIM}")
        if problem.dtype == _FP8 and problem.direction != "forward":
            raise Unsupported(f"{_FP8}: forward only, as 8 bits hold no gradients; take bfloat16")
        if device.type == "cpu":
            self._supports_cpu()
        elif self.options["interpret"]:
            raise Unsupported("option interpret is for a CPU; this device runs the kernels")
        else:
            _supports_gpu(problem, device)

    def _supports_cpu(self) -> None:
        if not self.options["interpret"]:
            raise Unsupported(
                "Triton has no CPU backend; interpret=true runs the kernels in its interpreter, "
                "to check them, not to time them"
            )
        if self.options["fp32"] == "tf32":
            raise Unsupported("the interpreter has no tf32; leave option fp32 out")

    def build(self, problem: Problem, device: torch.device) -> Callable[..., Any]:
        from .operator import TorchAttention

        interpret = bool(self.options["interpret"])
        attention = TorchAttention(
            problem,
            device,
            precision=str(self.options["fp32"]),
            interpret=interpret,
            schedule=str(self.options["schedule"]),
        )
        if not interpret:
            self._prepare(attention)
        return attention

    @classmethod
    def compile_cases(cls) -> Iterable[Case]:
        from .cases import cases

        return cases()

    def _prepare(self, attention: TorchAttention) -> None:
        """Choose and compile now what would otherwise be compiled while timed."""
        from .tuning import tune

        problem = attention.problem
        inputs = make_inputs(problem, seed=0, device=attention.device)
        bias = _drawn_bias(problem, attention.device)
        if self.options["tune"]:
            tune(attention, inputs, *bias, schedule=str(self.options["schedule"]))
        wants_grad = problem.direction != "forward"
        given = [x.requires_grad_(wants_grad) for x in (*inputs.qkv(), *bias)]
        with torch.set_grad_enabled(wants_grad):
            out = attention(*given)
        if wants_grad:
            torch.autograd.grad(out, given, inputs.grad_out_BHME)


def _drawn_bias(problem: Problem, device: torch.device) -> tuple[torch.Tensor, ...]:
    """A learned bias (H, M, N) where the problem has one, which no inputs hold."""
    if not problem.bias:
        return ()
    shape = (problem.heads_q, problem.seqlen_q, problem.seqlen_k)
    generator = torch.Generator(device).manual_seed(0)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device=device)
    return (drawn.to(problem.torch_dtype),)


def _supports_gpu(problem: Problem, device: torch.device) -> None:
    is_fp8 = problem.dtype == _FP8
    if torch.version.hip is not None:
        if is_fp8:
            raise Unsupported(f"does {_FP8} on NVIDIA only: gfx942's 8-bit floats are e4m3fnuz")
        return
    capability = torch.cuda.get_device_capability(device)
    needed = _CAPABILITY_FP8 if is_fp8 else _CAPABILITY
    if capability < needed:
        found, least = (".".join(map(str, c)) for c in (capability, needed))
        what = f"{_FP8} " if is_fp8 else ""
        raise Unsupported(f"{what}needs compute capability {least} or later, this is {found}")
