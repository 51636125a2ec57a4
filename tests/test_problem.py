"""Problem: what it refuses, what it is called, and what it says attention must cost.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys

import pytest
import torch

from attnbench.errors import UserError
from attnbench.masks import MASKS, Causal, Full, Window, parse_mask
from attnbench.plugin import FEATURES
from attnbench.problem import DTYPE_ALIASES, DTYPES, Problem, read_dtype

BIG = {
    "heads": 32,
    "heads_kv": 8,
    "seqlen": 4096,
    "head_dim": 128,
    "dtype": "bf16",
    "scale": 1,
    "softcap": 30,
}


# ---- construction ----------------------------------------------------------------------


def test_short_names_set_what_they_stand_for():
    p = Problem.of(heads=12, seqlen=1024, d_model=768)
    assert (p.heads_q, p.heads_kv) == (12, 12)
    assert (p.seqlen_q, p.seqlen_k) == (1024, 1024)
    assert (p.head_dim, p.head_dim_v, p.d_model) == (64, 64, 768)


def test_followers_give_way_to_what_is_said():
    p = Problem.of(heads=12, heads_kv=4, seqlen_q=1, seqlen_k=99, head_dim=32, head_dim_v=16)
    assert (p.heads_q, p.heads_kv) == (12, 4)
    assert (p.seqlen_q, p.seqlen_k) == (1, 99)
    assert (p.head_dim, p.head_dim_v) == (32, 16)
    assert Problem.of(seqlen_q=7).seqlen_k == 7
    assert Problem.of(seqlen_k=7).seqlen_q == Problem.seqlen_q
    assert Problem.of(heads_q=2).heads_kv == 2
    assert Problem.of(head_dim=32).head_dim_v == 32


def test_d_model_without_heads_is_shared_by_the_default_heads():
    assert Problem.of(d_model=256).head_dim == 256 // Problem.heads_q


@pytest.mark.parametrize("alias", [*DTYPE_ALIASES, *DTYPES, "torch.float16", torch.bfloat16])
def test_every_name_of_a_dtype_becomes_torchs_own(alias):
    p = Problem(dtype=alias)
    assert p.dtype in DTYPES
    assert p.torch_dtype is getattr(torch, p.dtype)
    assert p.element_bytes == p.torch_dtype.itemsize


@pytest.mark.parametrize(
    ("short", "full"),
    [("bf16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("fp32", "float32"),
     ("fp64", "float64"), ("fp8", "float8_e4m3fn")],
)  # fmt: skip
def test_short_names_of_dtypes(short, full):
    assert read_dtype(short) == full


def test_masks_are_read_in_every_form():
    window = Window(window=3)
    for given in ("window:window=3", {"kind": "window", "window": 3}, window):
        assert Problem(mask=given).mask == window


def test_replace_checks_again():
    p = Problem.of(heads=8)
    assert p.replace(heads_kv=2).heads_kv == 2
    assert p.heads_kv == 8
    with pytest.raises(UserError, match="not a multiple of heads_kv 3"):
        p.replace(heads_kv=3)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"batch": 0}, "batch must be a positive integer, got 0"),
        ({"heads": -1}, "heads_q must be a positive integer, got -1"),
        ({"heads_kv": 0}, "heads_kv must be a positive integer, got 0"),
        ({"seqlen": 1.0}, "seqlen_q must be a positive integer, got 1.0"),
        ({"seqlen_k": "64"}, "seqlen_k must be a positive integer, got '64'"),
        ({"head_dim": True}, "head_dim must be a positive integer, got True"),
        ({"head_dim_v": None}, "head_dim_v must be a positive integer, got None"),
        ({"heads": 8, "heads_kv": 3}, "heads_q 8 is not a multiple of heads_kv 3"),
        ({"heads": 2, "heads_kv": 4}, "heads_q 2 is not a multiple of heads_kv 4"),
        ({"d_model": 770, "heads": 12}, "d_model 770 is not divisible by heads 12"),
        ({"d_model": 0}, "d_model must be a positive integer, got 0"),
        ({"d_model": 64.0}, "d_model must be a positive integer, got 64.0"),
        ({"d_model": 64, "heads": 0}, "heads_q must be a positive integer, got 0"),
        (
            {"d_model": 64, "head_dim": 8},
            "give either d_model or head_dim, got d_model 64 and head_dim 8",
        ),
        ({"heads": 4, "heads_q": 8}, "give either heads or heads_q, got heads 4 and heads_q 8"),
        (
            {"seqlen": 4, "seqlen_k": 8},
            "give either seqlen or seqlen_k, got seqlen 4 and seqlen_k 8",
        ),
        ({"dtype": "float31"}, "unknown dtype 'float31'; allowed: float64, float32"),
        ({"dtype": "float31"}, "did you mean 'float32'?"),
        ({"dtype": 16}, "unknown dtype 16"),
        ({"mask": "casual"}, "did you mean 'causal'?"),
        ({"mask": "window:window=0"}, "window must be positive, got 0"),
        ({"mask": "document:lengths=3+4"}, "lengths add up to 7, seqlen is 512"),
        ({"mask": None}, "mask must be a name or a table with 'kind', got None"),
        ({"dropout_p": 1.0}, "dropout_p must be a finite number ≥ 0 and < 1, got 1.0"),
        ({"dropout_p": -0.1}, "dropout_p must be a finite number ≥ 0 and < 1, got -0.1"),
        ({"dropout_p": "0.1"}, "dropout_p must be a finite number ≥ 0 and < 1, got '0.1'"),
        ({"dropout_p": False}, "dropout_p must be a finite number ≥ 0 and < 1, got False"),
        ({"scale": math.nan}, "scale must be a finite number, got nan"),
        ({"scale": math.inf}, "scale must be a finite number, got inf"),
        ({"scale": 10**400}, "scale must be a finite number, got 1000"),
        ({"scale": [1]}, "scale must be a finite number, got [1]"),
        ({"softcap": 0}, "softcap must be a finite number > 0, got 0"),
        ({"alibi": 1}, "alibi must be true or false, got 1"),
        ({"decode": "yes"}, "decode must be true or false, got 'yes'"),
        ({"direction": "backwards"}, "unknown direction 'backwards'; allowed: forward, backward"),
        ({"level": "block"}, "unknown level 'block'; allowed: op, layer"),
        ({"inputs": "zeros"}, "unknown inputs 'zeros'; allowed: normal, large, peaky"),
        ({"decode": True, "direction": "both"}, "decode has no backward; direction is 'both'"),
        ({"decode": True, "seqlen_q": 9, "seqlen_k": 8}, "seqlen_q 9 must not exceed the cache's"),
        ({"sequence": 8}, "unknown problem field 'sequence'; allowed: batch"),
        ({"head_dims": 8}, "did you mean 'head_dim'?"),
    ],
)
def test_a_wrong_problem_is_told_with_field_and_value(fields, says):
    with pytest.raises(UserError) as error:
        Problem.of(**fields)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


# ---- identity --------------------------------------------------------------------------

PINNED = {
    "44136fa355b3678a": {},
    "f761a3ee5d3f073a": {
        "batch": 2,
        "heads": 12,
        "d_model": 768,
        "seqlen": 1024,
        "dtype": "bf16",
        "mask": "causal",
        "direction": "both",
    },
    "089dcb3bf6ddc01b": dict(BIG, mask="window:window=1024", dropout_p=0.1, alibi=True),
}


@pytest.mark.parametrize("wanted", PINNED)
def test_ids_never_change(wanted):
    """Published results are found by these; a new id for an old problem orphans them."""
    assert Problem.of(**PINNED[wanted]).id == wanted


def test_the_id_is_the_same_in_a_fresh_process():
    fields = {**BIG, "mask": "document:count=7"}
    code = f"from attnbench.problem import Problem; print(Problem.of(**{fields!r}).id, end='')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == Problem.of(**fields).id


CHANGES = [
    {"batch": 2}, {"heads_q": 16}, {"heads_kv": 4}, {"seqlen_q": 64}, {"seqlen_k": 1024},
    {"head_dim": 32}, {"head_dim_v": 32}, {"dtype": "bf16"}, {"mask": "causal"},
    {"mask": "window"}, {"mask": "window:window=9"}, {"mask": "document:count=2"},
    {"mask": "document:count=2,seed=1"}, {"dropout_p": 0.1}, {"scale": 0.5}, {"scale": 0.0},
    {"softcap": 30.0}, {"alibi": True}, {"direction": "backward"}, {"direction": "both"},
    {"decode": True}, {"level": "layer"}, {"inputs": "large"}, {"bias": True},
    {"level": "layer", "position": "rope"}, {"level": "layer", "batch": 2, "padding": 0.5},
]  # fmt: skip


def test_every_field_makes_another_problem():
    problems = [Problem(), *(Problem().replace(**change) for change in CHANGES)]
    assert len({p.id for p in problems}) == len(problems)
    assert len({p.label for p in problems}) == len(problems)
    assert len(set(problems)) == len(problems)
    told = {name for change in CHANGES for name in change}
    assert told == set(Problem().to_json())


@pytest.mark.parametrize("fields", [{"scale": 1}, {"softcap": 30}, {"dropout_p": 0}])
def test_equal_problems_have_equal_ids(fields):
    """1 from TOML and 1.0 from JSON are one problem."""
    whole, real = Problem(**fields), Problem(**{k: float(v) for k, v in fields.items()})
    assert whole == real
    assert whole.id == real.id
    assert whole.to_json() == real.to_json()
    assert str(whole.label) == str(real.label)


def test_the_id_holds_only_what_differs_from_the_default():
    """So a field or a mask option added later does not rename older problems."""
    assert Problem(mask=Window(window=256, causal=True)).id == Problem(mask="window").id
    assert Problem(batch=1, mask=Full()).id == Problem().id


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_json_reads_back(change):
    p = Problem().replace(**change)
    text = json.dumps(p.to_json(), allow_nan=False)
    again = Problem.from_json(json.loads(text))
    assert again == p
    assert again.id == p.id
    assert hash(again) == hash(p)


def test_a_problem_travels_to_a_worker():
    p = Problem.of(**BIG, mask="document:count=7")
    assert pickle.loads(pickle.dumps(p)) == p


def test_the_label_tells_the_shape_and_what_is_unusual():
    assert Problem().label == "B1 H8 N512 D64 float32 full forward"
    p = Problem.of(
        heads=8, heads_kv=2, seqlen_q=1, seqlen_k=99, head_dim=64, head_dim_v=32, dtype="bf16",
        mask="causal", dropout_p=0.1, scale=0.5, softcap=30, alibi=True, bias=True, decode=True,
        inputs="peaky",
    )  # fmt: skip
    assert p.label == (
        "B1 H8/2 N1×99 D64/32 bfloat16 causal forward dropout=0.1 scale=0.5 softcap=30.0 "
        "alibi bias decode peaky"
    )
    layer = Problem.of(batch=2, level="layer", position="rope", padding=0.25)
    assert layer.label.endswith("forward layer position=rope padding=0.25")


def test_features_are_what_plain_attention_does_not_need():
    assert Problem().features == frozenset()
    needs = {
        "backward": {"direction": "both"}, "gqa": {"heads_kv": 2}, "cross": {"seqlen_k": 600},
        "head_dim_v": {"head_dim_v": 32}, "scale": {"scale": 1.0}, "dropout": {"dropout_p": 0.1},
        "softcap": {"softcap": 9.0}, "alibi": {"alibi": True}, "decode": {"decode": True},
        "bias": {"bias": True},
    }  # fmt: skip
    for feature, change in needs.items():
        assert Problem().replace(**change).features == {feature}
    assert set(needs) == set(FEATURES)  # each has words for people


def test_the_softmax_scale_is_one_over_root_head_dim_unless_given():
    assert Problem.of(head_dim=16).softmax_scale == 0.25
    assert Problem.of(head_dim=16, scale=2).softmax_scale == 2.0
    assert Problem.of(head_dim=16, scale=0).softmax_scale == 0.0


# ---- FLOPs -----------------------------------------------------------------------------


def test_flops_of_full_attention_by_hand():
    """QKᵀ and PV: two products of M·N·D multiply-adds; backward five: 2.5 ×."""
    p = Problem.of(batch=2, heads=3, seqlen_q=5, seqlen_k=7, head_dim=11)
    assert p.flops() == 4 * 2 * 3 * 5 * 7 * 11 == 9240
    assert p.replace(direction="backward").flops() == 23100
    assert p.replace(direction="both").flops() == 9240 + 23100


def test_flops_with_another_head_dim_of_v_by_hand():
    p = Problem.of(heads=1, seqlen=3, head_dim=5, head_dim_v=7)
    assert p.flops() == 2 * 9 * 5 + 2 * 9 * 7  # QKᵀ; PV
    # logits again, dQ, dK over D; dP, dV over E
    assert p.replace(direction="backward").flops() == 2 * 9 * (3 * 5 + 2 * 7)


@pytest.mark.parametrize("N", [1, 2, 127, 128, 4096])
def test_causal_flops_are_exact_not_half(N):
    p = Problem.of(heads=1, seqlen=N, head_dim=64, mask="causal")
    assert p.flops() == 4 * 64 * (N * (N + 1) // 2)


@pytest.mark.parametrize(("N", "W"), [(1, 1), (64, 1), (64, 16), (64, 64), (4096, 1024)])
def test_sliding_window_flops(N, W):
    p = Problem.of(heads=1, seqlen=N, head_dim=32, mask=Window(window=W))
    assert p.flops() == 4 * 32 * (N * W - W * (W - 1) // 2)


def test_gqa_has_the_flops_of_its_query_heads():
    assert Problem.of(heads=8, heads_kv=2).flops() == Problem.of(heads=8).flops()


def test_decode_flops_are_one_row_of_every_head():
    p = Problem.of(
        batch=3, heads=8, heads_kv=2, seqlen_q=1, seqlen_k=1000, mask="causal", decode=True
    )
    assert p.flops() == 4 * 3 * 8 * 1000 * 64


def test_layer_flops_add_the_projections_by_hand():
    op = Problem.of(batch=2, heads=4, heads_kv=2, seqlen=3, head_dim=5)
    layer = op.replace(level="layer")
    # d_model 20; Wq, Wo: 20 → 20; Wk, Wv: 20 → 10; six tokens
    projections = 2 * 6 * 20 * (20 + 20 + 10 + 10)
    assert layer.flops() == op.flops() + projections
    both = layer.replace(direction="both")
    assert both.flops() == op.replace(direction="both").flops() + 3 * projections


def test_a_layers_decode_step_projects_its_new_tokens_only():
    op = Problem.of(heads=2, seqlen_q=1, seqlen_k=1000, head_dim=5, mask="causal", decode=True)
    assert op.replace(level="layer").flops() == op.flops() + 2 * 10 * (4 * 10)


MASKS_TO_COUNT = [
    "full", "causal", "window:window=5", "window:window=5,causal=false", "prefix:prefix=4",
    "document:count=3", "document:count=3,causal=false", "strided:stride=4",
    "strided:causal=false,stride=4", "block_sparse:block=4", "block_sparse:block=4,causal=true",
    "block_sparse:block=8,blocks_kept=1-0+1-1", "bigbird:block=4,random_blocks=1",
    "bigbird:block=4,causal=true", "fixed:stride=4,summary=2", "dilated:window=3,dilation=2",
]  # fmt: skip
assert {parse_mask(mask).kind for mask in MASKS_TO_COUNT} == set(MASKS)


@pytest.mark.parametrize("mask", MASKS_TO_COUNT)
@pytest.mark.parametrize(("M", "N"), [(19, 19), (6, 19), (1, 19), (19, 6)])
def test_flops_and_bytes_of_every_mask_against_the_dense_mask(mask, M, N):
    try:
        p = Problem.of(
            batch=2, heads=6, heads_kv=3, seqlen_q=M, seqlen_k=N, head_dim=8, head_dim_v=5,
            dtype="bf16", mask=mask,
        )  # fmt: skip
    except UserError:
        return  # this mask does not fit these lengths
    dense_MN = p.mask.dense(M, N)
    pairs = 12 * int(dense_MN.sum())
    assert p.flops() == 2 * pairs * (8 + 5)
    assert p.replace(direction="backward").flops() == 2 * pairs * (3 * 8 + 2 * 5)

    # Elements that have to move, by walking over rows and columns.
    q = sum(8 for row in dense_MN for _ in range(12) if row.any())
    k = sum(8 for column in dense_MN.T for _ in range(6) if column.any())
    v = k * 5 // 8
    seen_out = q * 5 // 8
    out, dq, dk, dv = 12 * M * 5, 12 * M * 8, 6 * N * 8, 6 * N * 5
    lse_bytes = 12 * M * 4
    forward = 2 * (q + k + v + out) + lse_bytes
    backward = 2 * (q + k + v + seen_out + seen_out + dq + dk + dv) + lse_bytes
    assert p.ideal_bytes() == forward
    assert p.replace(direction="backward").ideal_bytes() == backward
    assert p.replace(direction="both").ideal_bytes() == forward + backward


# ---- bytes -----------------------------------------------------------------------------


def test_bytes_by_hand():
    p = Problem.of(heads=1, seqlen=10, head_dim=4)
    assert p.ideal_bytes() == 4 * (40 + 40 + 40 + 40) + 4 * 10
    # q, k, v, out, grad_out in; dq, dk, dv out; LSE in
    assert p.replace(direction="backward").ideal_bytes() == 4 * 8 * 40 + 4 * 10


@pytest.mark.parametrize(("dtype", "size"), [("fp64", 8), ("fp32", 4), ("bf16", 2), ("fp8", 1)])
def test_bytes_follow_the_dtype_but_the_lse_stays_float32(dtype, size):
    p = Problem.of(heads=1, seqlen=10, head_dim=4, dtype=dtype)
    assert p.ideal_bytes() == size * 160 + 4 * 10


def test_gqa_reads_each_key_head_once():
    p = Problem.of(heads=8, heads_kv=2, seqlen=10, head_dim=4, dtype="bf16")
    assert p.ideal_bytes() == 2 * (8 * 40 + 2 * 40 + 2 * 40 + 8 * 40) + 4 * 8 * 10


def test_decode_reads_the_cache_and_only_what_the_window_sees_of_it():
    p = Problem.of(heads=1, seqlen_q=1, seqlen_k=1000, head_dim=4, mask="causal", decode=True)
    assert p.ideal_bytes() == 4 * (4 + 2 * 4000 + 4) + 4
    assert p.replace(mask="window:window=100").ideal_bytes() == 4 * (4 + 2 * 400 + 4) + 4


def test_layer_bytes_are_weights_and_hidden_states():
    p = Problem.of(heads=2, heads_kv=1, seqlen=10, head_dim=4, level="layer")  # d_model 8
    weights, hidden = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8, 10 * 8
    lse = 4 * 2 * 10
    assert p.ideal_bytes() == 4 * (weights + hidden + hidden) + lse
    # weights, hidden and the gradient of the output in; gradients of weights and hidden out
    backward = 4 * (weights + hidden + hidden + weights + hidden) + lse
    assert p.replace(direction="backward").ideal_bytes() == backward


def test_layer_bytes_of_cross_attention_read_both_hidden_states():
    p = Problem.of(heads=2, seqlen_q=10, seqlen_k=30, head_dim=4, level="layer")
    assert p.ideal_bytes() == 4 * (4 * 64 + (10 + 30) * 8 + 10 * 8) + 4 * 2 * 10


def test_layer_bytes_of_a_decode_step_read_the_cache():
    p = Problem.of(
        heads=2, seqlen_q=1, seqlen_k=30, head_dim=4, mask="causal", decode=True, level="layer"
    )
    assert p.ideal_bytes() == 4 * (4 * 64 + 8 + 8 + 2 * 2 * 30 * 4) + 4 * 2


def test_counting_a_long_problem_is_quick_and_exact():
    """Counts come from formulas: a walk over these 10¹⁰ pairs would not end in this test."""
    p = Problem.of(heads=1, seqlen=131072, head_dim=64, mask=Causal())
    assert p.flops() == 4 * 64 * (131072 * 131073 // 2)
    for mask in ("strided", "bigbird", "block_sparse", "document:count=50"):
        assert 0 < p.replace(mask=mask).flops() < p.replace(mask="full").flops()


def test_costs_are_whole_numbers_fit_for_json():
    for mask in MASKS_TO_COUNT:
        if "blocks_kept" not in mask:
            p = Problem.of(seqlen=64, mask=mask, direction="both")
            assert type(p.flops()) is int
            assert type(p.ideal_bytes()) is int


def test_a_problem_does_not_import_torch():
    code = "import sys; from attnbench.problem import Problem; p = Problem(mask='causal')"
    code += "; p.id, p.label, p.flops(), p.ideal_bytes(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
