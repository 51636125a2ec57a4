"""A Hopper multiprocessor of Python: runs the Gluon kernel's own source, and catches its races.

Triton's interpreter cannot run Gluon. Here the functions of a kernel are run as Python, with
stand-ins for what they use of Gluon: tensors are numpy arrays, and the partitions of
``warp_specialize`` are threads of which one runs at a time, chosen by a seed at every
operation that others could see. What is asynchronous is as late and as early as it may be:

- a TMA load fills the buffer with NaN when it is asked for, and with the data at a random
  later time; only then the barrier has its bytes;
- a product reads its operands when it is asked for *and* when it is waited for; if they are
  not the same, somebody overwrote what was being read;
- an accumulator cannot be used before it was waited for: it is no array until then;
- a barrier completes a phase after its arrivals and announced bytes; one too many is a fault.

When no thread can go on the kernel hangs. Programs run one after another.
"""

from __future__ import annotations

import random
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gluon_values import (
    Array,
    Barrier,
    Barriers,
    Buffer,
    Descriptor,
    Fault,
    Pointer,
    tensor,
)

# ---- threads, one at a time --------------------------------------------------------------


class Scheduler:
    """Runs agents until each has ended; which goes on is drawn anew at every ``pause``."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.late: list[Callable[[], None]] = []  # loads under way
        self.turn = threading.Condition()
        self.me = threading.local()  # the number of the agent that a thread is
        self.running: int | None = None
        self.waiting: dict[int, Callable[[], bool]] = {}  # what each agent waits for
        self.fault: BaseException | None = None

    def run(self, agents: Sequence[Callable[[], None]]) -> None:
        self.waiting = {i: lambda: True for i in range(len(agents))}
        threads = [
            threading.Thread(target=self._live, args=(i, agent), daemon=True)
            for i, agent in enumerate(agents)
        ]
        for thread in threads:
            thread.start()
        with self.turn:
            self._next()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        while self.late and self.fault is None:
            self.late.pop(0)()
        if self.fault is not None:
            raise self.fault

    def pause(self, until: Callable[[], bool] = lambda: True) -> None:
        """Let others go on; come back when it is true."""
        with self.turn:
            self.waiting[self.me.number] = until
            self._next()
            self._wait_for_turn()

    def _live(self, mine: int, agent: Callable[[], None]) -> None:
        self.me.number = mine
        try:
            with self.turn:
                self._wait_for_turn()
            with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
                agent()  # errstate is each thread's own
        except _Stopped:
            return
        except BaseException as error:
            self.fault = self.fault or error
        with self.turn:
            del self.waiting[mine]
            self._next()

    def _wait_for_turn(self) -> None:
        while self.running != self.me.number:
            if self.fault is not None:
                raise _Stopped
            self.turn.wait(60)
        if self.fault is not None:
            raise _Stopped

    def _next(self) -> None:
        """Choose who runs; loads arrive in between."""
        while self.fault is None and self.waiting:
            ready = [i for i, until in self.waiting.items() if until()]
            if self.late and (not ready or self.random.random() < 0.3):
                self.late.pop(self.random.randrange(len(self.late)))()
                continue
            if not ready:
                self.fault = Fault("hangs: every warp group waits")
                break
            self.running = self.random.choice(ready)
            break
        self.turn.notify_all()


class _Stopped(BaseException):
    """Another thread has found a fault."""


# ---- the kernel's world ------------------------------------------------------------------


class Pending:
    """An accumulator of which the product has not been waited for."""

    def __init__(self, machine: Machine, left: Any, right: Buffer, acc: Any) -> None:
        self.left, self.right, self.acc = left, right, acc
        self.began = self._operands()
        machine.pending().append(self)

    def _operands(self) -> tuple[Any, Any]:
        left = self.left.data if isinstance(self.left, Buffer) else self.left
        return np.array(left), np.array(self.right.data)

    def result(self) -> Array:
        for before, after in zip(self.began, self._operands(), strict=True):
            if not np.array_equal(before, after, equal_nan=True):
                raise Fault("a product's operand changed while it was read")
        product = np.matmul(*self.began)
        return tensor(product if self.acc is None else self.acc + product)


class Machine:
    """Runs one kernel.

    Args:
        kernel: a ``gluon.jit`` function.
        seed: of what is left to chance.
        source: edits of the kernel's source, pairs of texts, to see that a fault is found;
            each must occur once.
    """

    def __init__(self, kernel: Any, seed: int, source: Sequence[tuple[str, str]] = ()) -> None:
        self.random = random.Random(seed)
        self.scheduler = Scheduler(seed)
        self.kernel = as_python(kernel, self._replacements(), source)
        self.products: dict[int, list[Pending]] = {}
        self.program = (0, 1)

    def launch(self, programs: int, **arguments: Any) -> None:
        """Program after program; each writes what is its own."""
        for program in range(programs):
            self.program = (program, programs)
            self.kernel(**arguments)

    def pending(self) -> list[Pending]:
        return self.products.setdefault(threading.get_ident(), [])

    def _replacements(self) -> dict[str, Any]:
        names = (
            "allocate_shared_memory", "arange", "warp_specialize", "program_id", "num_programs",
            "where", "maximum", "minimum", "max", "sum", "exp2", "full", "zeros", "cast", "store",
            "convert_layout", "static_range", "SliceLayout", "DotOperandLayout",
            "NVMMADistributedLayout", "static_assert",
        )  # fmt: skip
        gl = types.SimpleNamespace(**{name: getattr(self, f"gl_{name}") for name in names})
        gl.float32, gl.int64, gl.constexpr = "float32", "int64", None
        return {
            "gl": gl,
            "mbarrier": types.SimpleNamespace(
                MBarrierLayout=lambda: "barriers", init=self.init, wait=self.wait,
                arrive=self.arrive, expect=self.expect,
            ),
            "tma": types.SimpleNamespace(async_copy_global_to_shared=self.load),
            "warpgroup_mma": self.mma,
            "warpgroup_mma_wait": self.mma_wait,
        }  # fmt: skip

    # ---- barriers, loads, products -------------------------------------------------------

    def init(self, barrier: Barrier, count: int) -> None:
        barrier.count = barrier.left = count

    def wait(self, barrier: Barrier, phase: int) -> None:
        self.scheduler.pause(lambda: barrier.is_over(phase))

    def arrive(self, barrier: Barrier, count: int) -> None:
        for _ in range(count):
            barrier.arrive()
        self.scheduler.pause()

    def expect(self, barrier: Barrier, number: int) -> None:
        barrier.bytes += number
        barrier.arrive()

    def load(self, desc: Descriptor, corner: Any, barrier: Barrier, buffer: Buffer) -> None:
        data = desc.block(corner)
        buffer.data[...] = np.nan

        def come() -> None:
            buffer.data[...] = data
            barrier.add_bytes(-desc.block_type.nbytes)

        self.scheduler.late.append(come)
        self.scheduler.pause()

    def mma(self, a: Any, b: Buffer, acc: Any, *, use_acc: bool = True, is_async: bool) -> Pending:
        assert is_async
        pending = Pending(self, a, b, acc if use_acc else None)
        self.scheduler.pause()
        return pending

    def mma_wait(self, outstanding: int, deps: Sequence[Pending]) -> Array:
        self.scheduler.pause()
        pending = self.pending()
        done, pending[:] = (
            pending[: len(pending) - outstanding],
            pending[len(pending) - outstanding :],
        )
        (wanted,) = deps
        if wanted not in done:
            raise Fault("a product is used that was not waited for")
        results = [product.result() for product in done]
        return results[done.index(wanted)]

    # ---- gl ------------------------------------------------------------------------------

    def gl_warp_specialize(self, functions: Any, warps: Any, registers: Any) -> None:
        assert len(functions) == len(warps) + 1 == len(registers) + 1
        self.scheduler = Scheduler(self.random.randrange(2**32))
        self.scheduler.run([lambda f=f, a=a: f(*a) for f, a in functions])

    def gl_allocate_shared_memory(self, dtype: Any, shape: Sequence[int], layout: Any) -> Any:
        if layout == "barriers":
            return Barriers(shape[0])
        return Buffer(np.full(shape, np.nan, dtype=np.float32), dtype)

    def gl_store(self, pointer: Pointer, value: Array, mask: Any) -> None:
        where = np.broadcast_to(pointer.offset, mask.shape)[mask]
        pointer.data[where] = value[mask]
        pointer.written[where] += 1

    def gl_program_id(self, axis: int) -> int:
        return self.program[0]

    def gl_num_programs(self, axis: int) -> int:
        return self.program[1]

    gl_static_range = staticmethod(range)
    gl_where = staticmethod(lambda c, a, b: tensor(np.where(c, _single(a), _single(b))))
    gl_maximum = staticmethod(lambda a, b: tensor(np.fmax(a, b)))
    gl_minimum = staticmethod(lambda a, b: tensor(np.minimum(a, b)))
    gl_max = staticmethod(lambda x, axis: tensor(np.fmax.reduce(x, axis)))
    gl_sum = staticmethod(lambda x, axis: tensor(np.add.reduce(x, axis)))
    gl_exp2 = staticmethod(lambda x: tensor(np.exp2(x)))
    gl_full = staticmethod(lambda shape, v, dtype, layout: tensor(np.full(shape, v, np.float32)))
    gl_zeros = staticmethod(lambda shape, dtype, layout: tensor(np.zeros(shape, np.float32)))
    gl_arange = staticmethod(lambda a, b, layout: tensor(np.arange(a, b)))
    gl_cast = staticmethod(lambda x, dtype: x)
    gl_convert_layout = staticmethod(lambda x, layout: x)
    gl_SliceLayout = gl_DotOperandLayout = gl_NVMMADistributedLayout = staticmethod(
        lambda *a, **k: None
    )

    @staticmethod
    def gl_static_assert(condition: bool, text: str = "") -> None:
        assert condition, text


def _single(x: Any) -> Any:
    return np.float32(x) if isinstance(x, float) else x


def as_python(
    function: Any, replacements: dict[str, Any], source: Sequence[tuple[str, str]] = ()
) -> Callable[..., Any]:
    """A ``gluon.jit`` function as Python, and so all that it calls, with stand-ins for Gluon.

    Args:
        function: the kernel, or any function of its modules.
        replacements: globals to put in the place of those it has.
        source: pairs of texts, what to find once in all the sources and what to put there.
    """
    unused = [old for old, _ in source]
    made: dict[int, Any] = {}

    def convert(value: Any) -> Any:
        python = getattr(value, "fn", None)
        if not isinstance(python, types.FunctionType):
            return getattr(value, "value", value)  # a constexpr is its value
        if id(value) not in made:
            namespace: dict[str, Any] = {}
            made[id(value)] = lambda *a, **k: namespace[python.__name__](*a, **k)
            text = "from __future__ import annotations\n" + value.src
            for old, new in source:
                if old in text:
                    assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
                    text = text.replace(old, new)
                    unused.remove(old)
            own = {
                name: replacements.get(name) or convert(python.__globals__[name])
                for name in python.__code__.co_names
                if name in python.__globals__
            }
            namespace |= own
            exec(compile(text, f"<{python.__name__}>", "exec"), namespace)
        return made[id(value)]

    result = convert(function)
    assert not unused, f"not found: {unused}"
    return result
