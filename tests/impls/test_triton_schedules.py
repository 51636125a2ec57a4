"""The schedules of the Triton forward: each is right, and each does every tile once."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from fused import BY_NAME
from shelf import CPU, assert_right, implementation, module_of, solve

from attnbench import Case, Problem, Unsupported, make_inputs
from attnbench.battery import run_case
from attnbench.offline.compiling import compile_case
from attnbench.offline.targets import TARGETS as TARGETS_BY_NAME
from attnbench.oracle import reference

SCHEDULES = ("tiles", "persistent", "specialized")


def part(name: str) -> Any:
    return importlib.import_module(f"{module_of('triton').__name__}.{name}")


def scheduled(schedule: str) -> Any:
    return implementation("triton", interpret=True, schedule=schedule)


# ---- each is right -----------------------------------------------------------------------

PROBLEMS = (
    {"seqlen": 64, "mask": "full"},
    {"seqlen": 131, "mask": "causal", "heads": 3, "dtype": "bfloat16"},
    {"seqlen": 150, "mask": "window:window=40", "heads": 4, "heads_kv": 2},
    {"seqlen": 100, "mask": "window:window=9,causal=false", "batch": 2},
    {"seqlen_q": 70, "seqlen_k": 150, "mask": "causal", "heads": 6, "heads_kv": 2},
    {"seqlen_q": 150, "seqlen_k": 33, "mask": "causal"},  # rows that see nothing
    {"seqlen": 90, "head_dim": 40, "head_dim_v": 24, "mask": "causal", "dtype": "float16"},
    {"seqlen": 70, "mask": "causal", "softcap": 3.0, "alibi": True, "direction": "both"},
)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("fields", PROBLEMS, ids=str)
def test_every_schedule_is_right(schedule: str, fields: dict[str, Any]) -> None:
    problem = Problem.of(**{"heads": 2, "head_dim": 16, **fields})
    assert_right("triton", problem, interpret=True, schedule=schedule)


@pytest.mark.parametrize(
    "fields", [{"mask": "document:count=3"}, {"mask": "strided:stride=8"}, {"dropout_p": 0.3}],
    ids=str,
)  # fmt: skip
def test_the_walk_takes_what_the_specialised_cannot(fields: dict[str, Any]) -> None:
    problem = Problem.of(heads=2, seqlen=100, head_dim=16, **fields)
    assert_right("triton", problem, interpret=True, schedule="persistent")


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
def test_the_log_sum_exp_is_that_of_float64(schedule: str) -> None:
    problem = Problem.of(heads=2, seqlen_q=70, seqlen_k=50, head_dim=16, mask="causal")
    inputs = make_inputs(problem, seed=5)
    truth = reference(problem, inputs, gradients=False).lse_BHM
    _, lse = scheduled(schedule).build(problem, CPU).forward(*inputs.qkv())
    torch.testing.assert_close(lse.double() * math.log(2), truth, atol=1e-5, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.parametrize("name", BY_NAME)
def test_the_battery_finds_nothing_wrong(schedule: str, name: str) -> None:
    status = run_case(scheduled(schedule), BY_NAME[name], CPU).status
    assert status == "ok" or (schedule == "specialized" and status == "unsupported")


# ---- the order of tiles ------------------------------------------------------------------


@triton.jit
def order_kernel(seen_ptr, tiles, heads, together, units):
    for unit in tl.range(tl.program_id(0), units, tl.num_programs(0)):
        tile, head = part_tile_at(unit, tiles, heads, together)
        tl.store(seen_ptr + 2 * unit, tile)
        tl.store(seen_ptr + 2 * unit + 1, head)


part_tile_at = part("order").tile_at


def order(tiles: int, heads: int, together: int) -> list[tuple[int, int]]:
    seen = torch.full((tiles * heads, 2), -1, dtype=torch.int32)
    part("interpret").launch_interpreted(
        order_kernel, (5,),
        {"seen_ptr": seen, "tiles": tiles, "heads": heads, "together": together,
         "units": tiles * heads},
    )  # fmt: skip
    return [(int(tile), int(head)) for tile, head in seen]


@pytest.mark.parametrize(
    ("tiles", "heads", "together"), [(1, 1, 1), (4, 6, 2), (3, 7, 3), (5, 4, 4), (2, 5, 4)]
)
def test_each_tile_of_each_head_comes_once_and_the_heaviest_first(
    tiles: int, heads: int, together: int
) -> None:
    seen = order(tiles, heads, together)
    assert sorted(seen) == [(tile, head) for tile in range(tiles) for head in range(heads)]
    for begin in range(0, heads, together):
        section = [tile for tile, head in seen if begin <= head < begin + together]
        assert section == sorted(section, reverse=True)  # the last rows see most
    sections = [head // together for _, head in seen]
    assert sections == sorted(sections)


def test_heads_that_share_keys_are_neighbours() -> None:
    group = 2
    seen = order(tiles=3, heads=8, together=4)
    for first, second in zip(seen[::group], seen[1::group], strict=True):
        assert first[0] == second[0]
        assert first[1] // group == second[1] // group


@triton.jit
def skipping(unit, tiles, heads, together):
    return tiles - 1 - unit % tiles, unit // tiles % (heads - 1)


@triton.jit
def without_the_short_section(unit, tiles, heads, together):
    section = unit // (tiles * together)
    within = unit - section * together * tiles
    return tiles - 1 - within // together, (section * together + within % together) % heads


@pytest.fixture
def unwritten_is_nan() -> Iterator[None]:
    """Memory that nobody writes must not hold an earlier, right answer."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("unwritten_is_nan")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("broken", [skipping, without_the_short_section], ids=lambda f: f.__name__)
def test_an_order_that_leaves_tiles_out_is_found(
    schedule: str, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "specialized" if schedule == "specialized" else "forward"
    monkeypatch.setattr(part(where), "tile_at", broken)
    monkeypatch.setattr(part("prepared"), "heads_together", lambda *a: 2)
    problem = Problem.of(heads=3, seqlen=130, head_dim=16, mask="causal")
    execution, inputs = solve("triton", problem, interpret=True, schedule=schedule)
    out = execution.results()["out"].double()
    truth = reference(problem, inputs, gradients=False).out_BHME
    assert not torch.allclose(out, truth, atol=1e-3)


@pytest.mark.usefixtures("unwritten_is_nan")
def test_a_walk_that_ends_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = part("launch").FusedAttention
    launch = fused._launch

    def broken(self: Any, kernel: Any, programs: int, config: Any, **right: Any) -> None:
        if right.get("PERSISTENT"):  # a wrong total: the last tiles have nobody
            right["units"] = right["units"] - 2
        launch(self, kernel, programs, config, **right)

    monkeypatch.setattr(fused, "_launch", broken)
    case = BY_NAME["seqlen-65"]
    assert run_case(scheduled("persistent"), case, CPU).status == "incorrect"
    assert run_case(scheduled("tiles"), case, CPU).status == "ok"


def test_persistent_programs_are_as_many_as_the_processors_hold() -> None:
    launched: list[int] = []
    problem = Problem.of(heads=4, seqlen=300, head_dim=16)
    attention = scheduled("persistent").build(problem, CPU)
    attention._launch = lambda kernel, programs, config, **a: launched.append(programs)
    attention.forward(*make_inputs(problem, seed=0).qkv())
    assert launched == [8]  # of 20 tiles; the interpreter's machine has 8 processors


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "programs"),
    [(255, 98_304, 8, 1), (128, 65_536, 8, 2), (64, 1_000, 4, 8), (255, 1_000, 4, 2)],
)
def test_programs_a_processor_holds(registers: int, shared: int, warps: int, programs: int) -> None:
    class Compiled:
        n_regs = registers
        metadata = type("Metadata", (), {"num_warps": warps, "shared": shared})

        def _init_handles(self) -> None:
            pass

    machine = part("schedules").Machine("sm_90", 132, 50 << 20, 228 * 1024, 2048)
    assert machine.resident(Compiled()) == programs


def test_heads_of_a_section_fit_the_cache_and_share_their_keys_whole() -> None:
    together = part("schedules").heads_together
    long = Problem.of(batch=2, heads=16, heads_kv=4, seqlen=16384, head_dim=128, dtype="bfloat16")
    pair_bytes = 16384 * 256 * 2
    assert together(long, l2_bytes=2 * 3 * pair_bytes) == 3 * 4
    assert together(long, l2_bytes=1) == 4
    assert together(long, l2_bytes=1 << 40) == 2 * 16


# ---- descriptors -------------------------------------------------------------------------

SPECIALIZABLE = Problem.of(heads=2, seqlen=70, head_dim=16, mask="causal")


def test_strides_that_no_descriptor_can_have_take_the_other_schedule() -> None:
    attention = scheduled("specialized").build(SPECIALIZABLE, CPU)
    launched: list[str] = []
    launch = attention._launch

    def noted(kernel: Any, programs: int, config: Any, **arguments: Any) -> None:
        launched.append(config.schedule)
        launch(kernel, programs, config, **arguments)

    attention._launch = noted
    q, k, v = make_inputs(SPECIALIZABLE, seed=1).qkv()
    padded = torch.zeros(*k.shape[:3], 17)[..., :16].copy_(k)  # rows of 68 bytes
    whole = attention(q, k, v)
    torch.testing.assert_close(attention(q, padded, v), whole, atol=1e-6, rtol=1e-5)
    assert launched == ["specialized", "tiles"]
    told = attention.choices
    assert "specialized" in told["forward"]
    assert "tiles" in told["forward, strides that no descriptor can have"]


@pytest.mark.parametrize(
    ("make", "takes"),
    [
        (lambda: torch.zeros(2, 3, 8, 16), True),
        (lambda: torch.zeros(2, 8, 3, 16).transpose(1, 2), True),  # BSHD
        (lambda: torch.zeros(2, 1, 8, 16).expand(2, 3, 8, 16), True),  # one head for all
        (lambda: torch.zeros(2, 3, 1, 16).expand(2, 3, 8, 16), False),  # one row for all
        (lambda: torch.zeros(2, 3, 16, 8).transpose(2, 3), False),
        (lambda: torch.zeros(2, 3, 8, 17)[..., :16], False),
        (lambda: torch.zeros(2, 3, 8, 20)[..., 1:17], False),  # rows begin at 4 bytes
        (lambda: torch.zeros(2, 3, 8, 20)[..., 4:20], True),
    ],
)
def test_which_tensors_descriptors_can_have(make: Any, takes: bool) -> None:
    assert part("schedules").takes_descriptors(make()) is takes


def test_the_descriptors_allocator_is_gone_after_the_launch() -> None:
    from triton.runtime import _allocation

    before = _allocation._allocator.get()
    asked: list[tuple[torch.device, int]] = []

    def launch() -> None:
        room = _allocation._allocator.get()(384, 128, None)
        asked.append((room.device, room.numel()))

    part("launch")._with_room_for_descriptors(launch, CPU)
    assert asked == [(CPU, 384)]
    assert _allocation._allocator.get() is before


# ---- what is offered ---------------------------------------------------------------------

TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dim", [16, 64, 80, 128, 256])
@pytest.mark.parametrize("element_bytes", [2, 4])
def test_candidates_begin_with_the_default_and_none_comes_twice(
    target: str, dim: int, element_bytes: int
) -> None:
    config = part("config")
    for kernel in config.KERNELS:
        found = config.candidates(kernel, dim, element_bytes, target)
        assert found[0] == getattr(config.configs(dim, element_bytes, target), kernel)
        assert len(set(found)) == len(found)
        assert len({str(c) for c in found}) == len(found)
        if kernel != "forward" or target not in ("sm_90", "sm_100") or element_bytes == 4:
            assert all(c.schedule != "specialized" for c in found)


def test_specialised_candidates_have_the_shape_that_triton_specialises() -> None:
    config = part("config")
    for dim in (16, 64, 128, 256):
        for c in config.candidates("forward", dim, 2, "sm_90"):
            assert c.schedule != "specialized" or (c.block_m, c.num_warps) == (128, 4)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"mask": "document:count=3"}, "mask by bounds"),
        ({"mask": "strided:stride=8"}, "mask by blocks"),
        ({"dropout_p": 0.1}, "dropout"),
        ({"bias": True}, "learned bias"),
        ({"head_dim": 18, "dtype": "bfloat16"}, "16 bytes"),
    ],
)
def test_what_cannot_be_specialised_is_refused_when_asked_and_else_left_out(
    fields: dict[str, Any], reason: str
) -> None:
    problem = Problem.of(**{"heads": 2, "seqlen": 64, "head_dim": 16, **fields})
    with pytest.raises(Unsupported, match=f"schedule=specialized.*{reason}"):
        scheduled("specialized").build(problem, CPU)
    offered = scheduled("auto").build(problem, CPU).offered("forward")
    assert [config.schedule for config in offered] == ["tiles", "persistent"]


@pytest.mark.parametrize("target", ["sm_80", "sm_89", "gfx942"])
def test_older_targets_have_nothing_specialised(target: str) -> None:
    problem = Problem.of(heads=2, seqlen=64, head_dim=64, dtype="bfloat16")
    with pytest.raises(Unsupported, match=f"{target} with bfloat16 has none"):
        part("schedules").offered(problem, "forward", "specialized", target, "band")


@pytest.mark.parametrize(
    ("capability", "target"),
    [((8, 0), "sm_80"), ((8, 6), "sm_89"), ((8, 9), "sm_89"), ((9, 0), "sm_90"),
     ((10, 0), "sm_100"), ((10, 3), "sm_100"), ((12, 0), "sm_89")],
)  # fmt: skip
def test_each_capability_has_a_target(capability: tuple[int, int], target: str) -> None:
    assert part("schedules").target_of(capability) == target


def test_a_schedule_that_there_is_not_is_told() -> None:
    with pytest.raises(Unsupported, match="one of auto, tiles, persistent, specialized, not best"):
        scheduled("best").supports(SPECIALIZABLE, CPU)


def test_choices_tell_what_runs() -> None:
    problem = SPECIALIZABLE.replace(direction="both")
    told = scheduled("auto").build(problem, CPU).choices
    assert list(told) == ["forward", "dkdv", "dq"]
    assert told["forward"].endswith("tiles (default)")
    assert (
        scheduled("persistent")
        .build(problem, CPU)
        .choices["forward"]
        .endswith("persistent (as asked)")
    )
    few = Problem.of(heads=2, seqlen_q=1, seqlen_k=100, head_dim=16)
    assert "shares of the keys" in scheduled("auto").build(few, CPU).choices["forward"]


# ---- compiled ----------------------------------------------------------------------------


def compiled(dim: int, num_warps: int, config: Any) -> Any:
    """Figures of the specialised kernel for sm_90, from the arguments of a launch."""
    problem = Problem.of(heads=4, heads_kv=2, seqlen=256, head_dim=dim, mask="causal",
                         dtype="bfloat16")  # fmt: skip
    attention = scheduled("specialized").build(problem, CPU)
    taken: dict[str, Any] = {}
    attention._launch = lambda kernel, programs, config, **arguments: taken.update(arguments)
    attention.forward(*make_inputs(problem, seed=0).qkv())
    taken |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    case = Case.of_launch(
        "specialized", part("specialized").specialized_kernel, taken,
        num_warps=num_warps, num_stages=config.num_stages, targets=("sm_90",),
    )  # fmt: skip
    return compile_case(case, TARGETS_BY_NAME["sm_90"]).figures


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 128])
def test_on_sm_90_the_loop_is_specialised_with_full_rate_products_and_no_spills(dim: int) -> None:
    offered = part("config").candidates("forward", dim, 2, "sm_90")
    for config in (c for c in offered if c.schedule == "specialized"):
        found = compiled(dim, config.num_warps, config)
        assert (found.loops_specialized, found.spill_bytes) == (1, 0), str(config)
        assert {"HGMMA", "UTMALDG"} <= set(found.instructions)
        assert found.shared_bytes <= TARGETS_BY_NAME["sm_90"].shared_bytes


@pytest.mark.slow
def test_with_eight_warps_the_loop_would_be_left_as_it_was() -> None:
    config = part("config").candidates("forward", 64, 2, "sm_90")[-1]
    assert compiled(64, 8, config).loops_specialized == 0
