"""The forward for Hopper: a producer that loads, two consumers that compute.

What a Hopper multiprocessor can do at once, and how this kernel keeps all of it busy:

- **Loads by the tensor memory accelerator (TMA).** One thread asks for a tile; the copy engine
  computes addresses, fills what lies outside of the tensor with zeros, and counts the bytes
  that have arrived on a barrier. So a single warp, the *producer*, feeds the whole block,
  and gives its registers to those who compute.
- **Products by warp groups (wgmma).** Four warps ask for a product of tiles that lie in shared
  memory (the left one may be in registers), and go on; they wait when they need the result.
- **Everything else:** maxima, exponentials, sums. At head_dim 128 the exponentials of a
  block take about half as long as its products (16 a cycle and multiprocessor against 2048
  multiply-adds, when a pair of query and key needs one and 256), so they must run beside them.

A tile of 128 query rows is shared by two *consumers*, warp groups of 64 rows each: both read
every block of keys and values that the producer loads, so that each byte from L2 serves 128
rows. Each consumer overlaps its own softmax with its own products::

    tensor cores   S(0)        S(1) PV(0)       S(2) PV(1)       S(3) PV(2)  …
    softmax              P(0)            P(1)             P(2)

``S(j)``, the logits of block j, is asked for *before* ``PV(j−1)``. When S(j) is there the
softmax P(j) begins while PV(j−1) still runs; only then is PV(j−1) waited for. The price is
registers: S(j), P(j−1) and the output are alive together.

ptxas would undo that: it moves the wait for PV(j−1) up, in front of the softmax, if nothing
between them stops it. The wait for the values of block j, which is a loop, stops it, and
therefore stands there and not where they are first used. ``compile-check`` cannot see this; a
test of the machine code does.

Nothing holds the two consumers in step, so one's softmax may also fall beside the other's
products. Method: Shah et al. 2024, FlashAttention-3, arXiv 2407.08608, algorithm 2; its
ping-pong order of the two consumers, made with named barriers, is not imposed here.

**Barriers.** Keys and values have a ring of STAGES buffers each, and each buffer two barriers:

- ``full``: the producer announces how many bytes will come, the TMA counts them; when all are
  there the phase ends. Both consumers wait for that.
- ``empty``: each consumer arrives once when it has read the buffer; when both have, the phase
  ends. The producer waits for that before it loads again.

Waiting for parity p returns if the phase of parity p is over. The n-th use of a buffer is phase
n of its barriers, so consumers wait on ``full`` with parity ``n & 1``. The producer must
wait for the release after use n − 1, which is ``empty`` with parity ``(n − 1) & 1``, or
``(n & 1) ^ 1``. For n = 0 that asks for the phase before the first, which a new barrier counts
as over: the first loads wait for nobody. The queries of each consumer have one buffer with
such a pair; its n-th use is turn n.

Programs are persistent: there is one for each multiprocessor, and it does tile after tile.
So the producer loads the first blocks of a tile while the last is being finished; it is never
told that a tile ends.

This kernel has been compiled and inspected, and its protocol and arithmetic have been run in
a simulation on CPUs. It has never run on a GPU.

Letters: B = batch, H = heads_q, G = heads_kv; of a consumer: M = its query rows, N = the keys
of a block, D = head_dim and E = head_dim_v, padded.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .schedule import blocks_of, keys_seen_by, place_of, slot_of, tile_of, turns_of
from .softmax import softmax_step

CONSUMERS = gl.constexpr(2)


@gluon.jit(
    do_not_specialize=[
        "heads", "heads_q", "group", "seqlen_q", "seqlen_k", "tiles_of_head", "heads_together",
    ]
)  # fmt: skip
def forward_kernel(
    q_desc, k_desc, v_desc, out_ptr, scale, softcap,
    heads, heads_q, group, seqlen_q, seqlen_k, tiles_of_head, heads_together,
    HEAD_DIM_V: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, DIM: gl.constexpr,
    DIM_V: gl.constexpr, STAGES: gl.constexpr, CAUSAL: gl.constexpr, SOFTCAP: gl.constexpr,
    NEGATIVE: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Writes ``out`` (B, H, M, HEAD_DIM_V), contiguous.

    ``q_desc``, ``k_desc``, ``v_desc`` describe (B, heads, seqlen, dim) in blocks of
    (1, 1, BLOCK_M / 2 or BLOCK_N, DIM or DIM_V). ``scale`` is positive; NEGATIVE says that
    the real one is −scale. ``heads`` is B · H, ``group`` query heads share a key head. Launch
    with 4 warps, which are the first consumer.
    """
    gl.static_assert(STAGES >= 2, "a consumer holds the values of one block and asks for the next")
    HALF_M: gl.constexpr = BLOCK_M // CONSUMERS
    q_smem = gl.allocate_shared_memory(q_desc.dtype, [CONSUMERS, 1, 1, HALF_M, DIM], q_desc.layout)
    k_smem = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 1, 1, BLOCK_N, DIM], k_desc.layout)
    v_smem = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 1, 1, BLOCK_N, DIM_V], v_desc.layout)

    q_full = new_barriers(CONSUMERS, 1)
    q_empty = new_barriers(CONSUMERS, 1)  # each consumer has queries of its own
    k_full = new_barriers(STAGES, 1)
    k_empty = new_barriers(STAGES, CONSUMERS)
    v_full = new_barriers(STAGES, 1)
    v_empty = new_barriers(STAGES, CONSUMERS)

    buffers = (q_smem, k_smem, v_smem)
    barriers = (q_full, q_empty, k_full, k_empty, v_full, v_empty)
    sizes = (heads, heads_q, group, seqlen_q, seqlen_k, tiles_of_head, heads_together)
    # A block starts with the registers of a multiprocessor shared out evenly; from here on the
    # producer gives most of its own away. Numbers are per thread, multiples of 8. The first
    # function has the four warps of the launch, and what registers the others leave.
    gl.warp_specialize(
        [
            (consume, (
                0, buffers, barriers, out_ptr, scale, softcap, sizes,
                HEAD_DIM_V, BLOCK_M, BLOCK_N, DIM, DIM_V, STAGES, CAUSAL, SOFTCAP, NEGATIVE,
            )),
            (consume, (
                1, buffers, barriers, out_ptr, scale, softcap, sizes,
                HEAD_DIM_V, BLOCK_M, BLOCK_N, DIM, DIM_V, STAGES, CAUSAL, SOFTCAP, NEGATIVE,
            )),
            (produce, (
                q_desc, k_desc, v_desc, buffers, barriers, sizes,
                BLOCK_M, BLOCK_N, STAGES, CAUSAL,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


@gluon.jit
def new_barriers(NUMBER: gl.constexpr, ARRIVALS: gl.constexpr):
    """Barriers whose phases end after so many arrivals (and the bytes that were announced)."""
    barriers = gl.allocate_shared_memory(gl.int64, [NUMBER, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(NUMBER):
        mbarrier.init(barriers.index(i), count=ARRIVALS)
    return barriers


# ---- the producer ------------------------------------------------------------------------


@gluon.jit
def produce(
    q_desc, k_desc, v_desc, buffers, barriers, sizes,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Loads what the consumers will read, in their order, as soon as there is room."""
    q_smem, k_smem, v_smem = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    heads, heads_q, group, seqlen_q, seqlen_k, tiles_of_head, heads_together = sizes
    HALF_M: gl.constexpr = BLOCK_M // CONSUMERS
    program = gl.program_id(0)
    programs = gl.num_programs(0)

    step = 0
    for turn in range(turns_of(program, programs, heads * tiles_of_head)):
        tile = tile_of(turn, program, programs)
        row_tile, head = place_of(tile, tiles_of_head, heads, heads_together)
        start = row_tile * BLOCK_M
        b = head // heads_q
        h = head % heads_q
        for i in gl.static_range(CONSUMERS):
            mbarrier.wait(q_empty.index(i), (turn & 1) ^ 1)
            load(q_desc, b, h, start + i * HALF_M, q_full.index(i), q_smem.index(i))

        blocks, _ = blocks_of(start, seqlen_q, seqlen_k, BLOCK_M, BLOCK_N, CAUSAL)
        for j in range(blocks + 1):  # as they are used: keys are one block ahead of values
            if j < blocks:
                stage, phase = slot_of(step + j, STAGES)
                n = (blocks - 1 - j) * BLOCK_N
                mbarrier.wait(k_empty.index(stage), phase ^ 1)
                load(k_desc, b, h // group, n, k_full.index(stage), k_smem.index(stage))
            if j > 0:
                stage, phase = slot_of(step + j - 1, STAGES)
                n = (blocks - j) * BLOCK_N
                mbarrier.wait(v_empty.index(stage), phase ^ 1)
                load(v_desc, b, h // group, n, v_full.index(stage), v_smem.index(stage))
        step += blocks


@gluon.jit
def load(desc, b, h, row, full, buffer):
    """Asks for rows ``row …`` of a head; ``full`` ends its phase when they are in the buffer.

    Rows past the end of the head, and columns past head_dim, arrive as zeros, and count.
    """
    mbarrier.expect(full, desc.block_type.nbytes)
    tma.async_copy_global_to_shared(desc, [b, h, row, 0], full, buffer)


# ---- a consumer --------------------------------------------------------------------------


@gluon.jit
def consume(
    WHICH: gl.constexpr, buffers, barriers, out_ptr, scale, softcap, sizes,
    HEAD_DIM_V: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, DIM: gl.constexpr,
    DIM_V: gl.constexpr, STAGES: gl.constexpr, CAUSAL: gl.constexpr, SOFTCAP: gl.constexpr,
    NEGATIVE: gl.constexpr,
):  # fmt: skip
    """The attention of half of each tile's rows; WHICH says which half."""
    q_smem, k_smem, v_smem = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    heads, _, _, seqlen_q, seqlen_k, tiles_of_head, heads_together = sizes
    HALF_M: gl.constexpr = BLOCK_M // CONSUMERS
    logits_layout: gl.constexpr = accumulator_layout(BLOCK_N)
    out_layout: gl.constexpr = accumulator_layout(DIM_V)
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    q_MD = q_smem.index(WHICH).reshape([HALF_M, DIM])

    step = 0
    for turn in range(turns_of(program, programs, heads * tiles_of_head)):
        tile = tile_of(turn, program, programs)
        row_tile, head = place_of(tile, tiles_of_head, heads, heads_together)
        start = row_tile * BLOCK_M
        blocks, masked = blocks_of(start, seqlen_q, seqlen_k, BLOCK_M, BLOCK_N, CAUSAL)
        start += WHICH * HALF_M
        m = start + gl.arange(0, HALF_M, gl.SliceLayout(1, logits_layout))
        seen_M = gl.minimum(keys_seen_by(m, seqlen_q, seqlen_k, CAUSAL), seqlen_k)

        # The first block: nothing to overlap with yet.
        mbarrier.wait(q_full.index(WHICH), turn & 1)
        stage, phase = slot_of(step, STAGES)
        mbarrier.wait(k_full.index(stage), phase)
        dots_MN = ask_for_dots(q_MD, k_smem.index(stage), BLOCK_N, DIM, logits_layout)
        dots_MN = warpgroup_mma_wait(0, deps=(dots_MN,))
        mbarrier.arrive(k_empty.index(stage), count=1)
        top_M = gl.full([HALF_M], float("-inf"), gl.float32, gl.SliceLayout(1, logits_layout))
        sum_M = gl.full([HALF_M], 0.0, gl.float32, gl.SliceLayout(1, logits_layout))
        acc_ME = gl.zeros([HALF_M, DIM_V], gl.float32, out_layout)
        weights_MN, _, top_M, sum_M = softmax_step(
            dots_MN, top_M, sum_M, (blocks - 1) * BLOCK_N, seen_M, scale, softcap,
            q_MD.dtype, BLOCK_N, SOFTCAP, NEGATIVE, True, logits_layout, out_layout,
        )  # fmt: skip
        mbarrier.wait(v_full.index(stage), phase)

        if CAUSAL:  # otherwise that was the only block that needs a mask
            for j in range(1, masked):
                weights_MN, top_M, sum_M, acc_ME = overlapped_step(
                    weights_MN, top_M, sum_M, acc_ME, q_MD, k_smem, v_smem, barriers, step + j,
                    (blocks - 1 - j) * BLOCK_N, seen_M, scale, softcap, BLOCK_N, DIM, DIM_V, STAGES,
                    SOFTCAP, NEGATIVE, True, logits_layout, out_layout,
                )  # fmt: skip
        for j in range(masked, blocks):
            weights_MN, top_M, sum_M, acc_ME = overlapped_step(
                weights_MN, top_M, sum_M, acc_ME, q_MD, k_smem, v_smem, barriers, step + j,
                (blocks - 1 - j) * BLOCK_N, seen_M, scale, softcap, BLOCK_N, DIM, DIM_V, STAGES,
                SOFTCAP, NEGATIVE, False, logits_layout, out_layout,
            )  # fmt: skip

        # The queries are no longer needed: the next tile's may travel while this one ends.
        mbarrier.arrive(q_empty.index(WHICH), count=1)
        stage, _ = slot_of(step + blocks - 1, STAGES)
        acc_ME = ask_for_output(weights_MN, v_smem.index(stage), acc_ME, BLOCK_N, DIM_V)
        acc_ME = warpgroup_mma_wait(0, deps=(acc_ME,))
        mbarrier.arrive(v_empty.index(stage), count=1)
        step += blocks

        store_rows(out_ptr, acc_ME, sum_M, head, start, seqlen_q, HALF_M, HEAD_DIM_V, DIM_V,
                   out_layout)  # fmt: skip


@gluon.jit
def overlapped_step(
    weights_MN, top_M, sum_M, acc_ME, q_MD, k_smem, v_smem, barriers, step,
    n, seen_M, scale, softcap, BLOCK_N: gl.constexpr, DIM: gl.constexpr, DIM_V: gl.constexpr,
    STAGES: gl.constexpr, SOFTCAP: gl.constexpr, NEGATIVE: gl.constexpr, MASKED: gl.constexpr,
    logits_layout: gl.constexpr, out_layout: gl.constexpr,
):  # fmt: skip
    """Softmax of the block of this step, beside the product of the weights of the last one.

    Takes and returns weights that have not met their values yet, which are in their buffer;
    ``n`` is the block's first key.
    """
    _, _, k_full, k_empty, v_full, v_empty = barriers
    stage, phase = slot_of(step, STAGES)
    last_stage, _ = slot_of(step - 1, STAGES)

    mbarrier.wait(k_full.index(stage), phase)
    dots_MN = ask_for_dots(q_MD, k_smem.index(stage), BLOCK_N, DIM, logits_layout)
    acc_ME = ask_for_output(weights_MN, v_smem.index(last_stage), acc_ME, BLOCK_N, DIM_V)

    # Products end in the order in which they were asked for: with one left, the dots are there.
    dots_MN = warpgroup_mma_wait(1, deps=(dots_MN,))
    mbarrier.arrive(k_empty.index(stage), count=1)
    weights_MN, keep_M, top_M, sum_M = softmax_step(
        dots_MN, top_M, sum_M, n, seen_M, scale, softcap,
        q_MD.dtype, BLOCK_N, SOFTCAP, NEGATIVE, MASKED, logits_layout, out_layout,
    )  # fmt: skip

    mbarrier.wait(v_full.index(stage), phase)  # for the next step; here it fences off the softmax
    acc_ME = warpgroup_mma_wait(0, deps=(acc_ME,))
    mbarrier.arrive(v_empty.index(last_stage), count=1)
    acc_ME = acc_ME * gl.convert_layout(keep_M, gl.SliceLayout(1, out_layout))[:, None]
    return weights_MN, top_M, sum_M, acc_ME


@gluon.jit
def store_rows(
    out_ptr, acc_ME, sum_M, head, start, seqlen_q,
    HALF_M: gl.constexpr, HEAD_DIM_V: gl.constexpr, DIM_V: gl.constexpr, out_layout: gl.constexpr,
):  # fmt: skip
    """Normalises and writes from registers: no buffer to wait for, and rows end where they end.

    A row that sees nothing has the sum 0, and gives zeros.
    """
    sum_M = gl.convert_layout(sum_M, gl.SliceLayout(1, out_layout))
    # Zero whatever was accumulated: values that no row may see can be infinite, 0 · inf is NaN.
    out_ME = gl.where(sum_M[:, None] == 0.0, 0.0, acc_ME / sum_M[:, None])
    row_M = start + gl.arange(0, HALF_M, gl.SliceLayout(1, out_layout))
    col_E = gl.arange(0, DIM_V, gl.SliceLayout(0, out_layout))
    out_ptr += (gl.cast(head, gl.int64) * seqlen_q + start) * HEAD_DIM_V
    offset_ME = (row_M - start)[:, None] * HEAD_DIM_V + col_E[None, :]
    inside_ME = (row_M < seqlen_q)[:, None] & (col_E < HEAD_DIM_V)[None, :]
    gl.store(out_ptr + offset_ME, out_ME.to(out_ptr.dtype.element_ty), mask=inside_ME)


# ---- products ----------------------------------------------------------------------------


@gluon.jit
def ask_for_dots(
    q_MD, k_buffer, BLOCK_N: gl.constexpr, DIM: gl.constexpr, logits_layout: gl.constexpr
):
    """q kᵀ, not waited for; keys are transposed by how they are read."""
    k_DN = k_buffer.reshape([BLOCK_N, DIM]).permute((1, 0))
    HALF_M: gl.constexpr = q_MD.shape[0]
    zeros_MN = gl.zeros([HALF_M, BLOCK_N], gl.float32, logits_layout)
    return warpgroup_mma(q_MD, k_DN, zeros_MN, use_acc=False, is_async=True)


@gluon.jit
def ask_for_output(weights_MN, v_buffer, acc_ME, BLOCK_N: gl.constexpr, DIM_V: gl.constexpr):
    """acc + weights v, not waited for."""
    v_NE = v_buffer.reshape([BLOCK_N, DIM_V])
    return warpgroup_mma(weights_MN, v_NE, acc_ME, is_async=True)


@gluon.constexpr_function
def accumulator_layout(columns):
    """How the 128 threads of a warp group hold 64 rows of so many columns of a product."""
    return gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, columns, 16]
    )
