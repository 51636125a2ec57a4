from __future__ import annotations

from typing import Any

import peers
import pytest
import torch
from definition import assert_as_defined, counted, defined, errors, expanded, mutant, said
from shelf import CPU, Operations, assert_right, implementation, module_of, solve

from attnbench import Problem, Unsupported, make_inputs

SMALL = Problem.of(
    batch=2, heads=4, heads_kv=2, seqlen_q=29, seqlen_k=37, head_dim=8, head_dim_v=12,
    dtype="float64", scale=0.5,
)  # fmt: skip


def definition(built: Any) -> Any:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k_few = torch.einsum("nr,bhnd->bhrd", built.mix_k_Nr.detach().double(), expanded(k, SMALL))
        v_few = torch.einsum("nr,bhnd->bhrd", built.mix_v_Nr.detach().double(), expanded(v, SMALL))
        weights = (torch.einsum("bhmd,bhrd->bhmr", q, k_few) * SMALL.softmax_scale).softmax(-1)
        return torch.einsum("bhmr,bhrd->bhmd", weights, v_few)

    return attend


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("rank", "shared"), [(9, False), (20, False), (20, True)])
def test_it_is_what_its_definition_says(dtype: str, rank: int, shared: bool) -> None:
    p = SMALL.replace(dtype=dtype)
    assert_as_defined("linformer", p, definition, rank=rank, shared=shared)


def test_it_is_what_the_linformer_library_computes() -> None:
    p = Problem.of(batch=2, heads=3, seqlen=24, head_dim=8, dtype="float64", direction="both")
    execution, inputs = solve("linformer", p, rank=5)
    peer = peers.of_linformer(execution.built, p)

    def call(*qkv: torch.Tensor) -> torch.Tensor:
        return peer.to_bhsd(peer.call(*map(peer.to_layout, qkv)), 3)

    assert max(errors(execution.results(), defined(call, inputs)).values()) < 1e-12


@pytest.mark.parametrize("rank", [1, 15, 16, 40])
def test_a_nan_in_a_query_stays_one_however_few_the_mixtures(rank: int) -> None:
    """Torch's flash for CPUs makes 0 of it where a vector has room for more keys."""
    p = Problem.of(heads=2, seqlen=40, head_dim=8)
    q, k, v = make_inputs(p, 0).qkv()
    q[0, 1, 7, 3] = float("nan")
    layout = (x.transpose(1, 2) for x in (q, k, v))
    with torch.no_grad():
        out_BMHE: Any = implementation("linformer", rank=rank).build(p, CPU)(*layout)
    assert bool(out_BMHE[0, 7, 1].isnan().all())
    assert int(out_BMHE.isnan().any(dim=-1).sum()) == 1


def test_with_each_key_its_own_mixture_it_is_dense_attention() -> None:
    p = SMALL.replace(dtype="float32", direction="both")
    assert_right("linformer", p, **implementation("linformer").exact_options(p))


def test_means_are_those_of_equal_segments() -> None:
    mix_rN = module_of("linformer")._begin("mean", 3, 7)
    assert mix_rN.tolist() == [
        pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0]),
        [0, 0, 0, 0.5, 0.5, 0, 0],
        [0, 0, 0, 0, 0, 0.5, 0.5],
    ]
    assert torch.equal(module_of("linformer")._begin("mean", 5, 5), torch.eye(5))


def test_projections_are_parameters_that_learn_and_begin_by_torchs_seed() -> None:
    p = Problem.of(heads=2, seqlen=16, head_dim=8, direction="both")
    first, second = (solve("linformer", p, rank=4)[0].built for _ in range(2))
    assert {n: tuple(x.shape) for n, x in first.named_parameters()} == {
        "mix_k_Nr": (16, 4), "mix_v_Nr": (16, 4),
    }  # fmt: skip
    assert torch.equal(first.mix_k_Nr, second.mix_k_Nr)
    assert not torch.equal(first.mix_k_Nr, first.mix_v_Nr)
    q, k, v = (torch.randn(1, 16, 2, 8) for _ in range(3))
    first(q, k, v).square().sum().backward()
    assert all(bool(x.grad.any()) for x in first.parameters())
    shared = implementation("linformer", rank=4, shared=True).build(p, CPU)
    assert len(list(shared.parameters())) == 1
    wide = implementation("linformer", rank=256).build(p.replace(seqlen_k=2048), CPU)
    assert float(wide.mix_k_Nr.detach().std()) == pytest.approx(256**-0.5, rel=0.02)


@pytest.mark.parametrize(
    ("before", "after", "dtype"),
    [
        ("_mixed(self.mix_v_Nr, v_BNGE)", "_mixed(self.mix_k_Nr, v_BNGE)", "float64"),
        ("scale=self.scale", "scale=None", "bfloat16"),  # which goes through SDPA
        ("k_BGrD * scale", "k_BGrD", "float64"),
        ("mix_Nr.mT @ x_BNGD", "mix_Nr.flip(0).mT @ x_BNGD", "float64"),
    ],
)
def test_a_broken_one_is_found(
    before: str, after: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = mutant(module_of("linformer"), before, after)
    monkeypatch.setattr(module_of("linformer"), "Mixed", broken.Mixed)
    with pytest.raises(AssertionError):
        assert_as_defined("linformer", SMALL.replace(dtype=dtype), definition, rank=20)


def test_without_a_backward_the_output_is_the_same() -> None:
    """Then SDPA attends, in every precision."""
    p = SMALL.replace(dtype="float64")
    outs = [solve("linformer", p.replace(direction=d), rank=9)[0].results()["out"]
            for d in ("forward", "both")]  # fmt: skip
    torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)


def test_flops_are_those_of_the_products_that_run_and_the_logits_again() -> None:
    forward, both = said(implementation("linformer", rank=9), SMALL)
    ran_forward, ran_both = counted("linformer", SMALL, rank=9)
    assert forward == ran_forward
    again = 2 * 2 * 4 * 29 * 9 * 8  # a fused backward makes them; FlopCounterMode saw it unfused
    assert both == ran_both + again
    per_head = Problem.of(heads=1, seqlen=64, head_dim=8)
    assert implementation("linformer", rank=4).flops(per_head) == 8 * 64 * 4 * 8
    more = implementation("linformer", rank=4).ideal_bytes(per_head) - per_head.ideal_bytes()
    assert more == 2 * 4 * 64 * 4


def test_nothing_of_size_seqlen_squared_exists() -> None:
    p = Problem.of(heads=1, seqlen=1024, head_dim=16, direction="both")
    execution, _ = solve("linformer", p, rank=32)
    with Operations() as ran:
        execution.step()
    assert max(made for _, made in ran.seen) <= 1024 * 32


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"mask": "causal"}, {}, "mask causal has no definition: each of Linformer's keys"),
        ({"decode": True}, {}, "does not do a decode step"),
        ({"softcap": 2.0}, {}, "does not do softcap"),
        ({}, {"projections": "identity", "rank": 9}, "identity needs rank = seqlen_k 37, got 9"),
        ({}, {"projections": "max"}, "projections are random, mean, identity, got 'max'"),
        ({}, {"projections": "mean", "rank": 99}, "no 99 segments can be cut from 37 keys"),
        ({}, {"rank": 0}, "rank must be at least 1, got 0"),
    ],
)
def test_what_has_no_definition_is_refused(
    changes: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unsupported, match=reason):
        implementation("linformer", **options).supports(SMALL.replace(**changes), CPU)
