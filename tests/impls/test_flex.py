"""FlexAttention. Compiling takes seconds a problem, so most of this is slow."""

from __future__ import annotations

import pytest
import torch
from shelf import CPU, assert_right, implementation, module_of

from attnbench import Problem, Unsupported

SMALL = {"batch": 2, "heads": 4, "heads_kv": 2, "seqlen_q": 70, "seqlen_k": 90, "head_dim": 32}


def test_no_backward_on_a_cpu_is_said_before_anything_is_compiled() -> None:
    with pytest.raises(Unsupported, match="no backward on CPU"):
        implementation("flex").supports(Problem.of(direction="both"), CPU)


@pytest.mark.parametrize(
    ("extras", "expected"),
    [
        ({"softcap": 2.0}, 2 * torch.tanh(torch.tensor(0.75))),
        ({"alibi": True}, torch.tensor(1.5 - 0.25 * 2)),
        ({"alibi": True, "softcap": 2.0}, 2 * torch.tanh(torch.tensor(0.75)) - 0.25 * 2),
    ],
)
def test_extras_change_a_score_as_defined(
    extras: dict[str, object], expected: torch.Tensor
) -> None:
    """Of eight heads, head 1 has slope 1/4; of four queries on six keys, query 3 is at key 5."""
    problem = Problem.of(heads=8, seqlen_q=4, seqlen_k=6, head_dim=16, **extras)
    score_mod = module_of("flex")._score_mod(problem, CPU)
    index = [torch.tensor(i) for i in (0, 1, 3, 3)]
    assert score_mod(torch.tensor(1.5), *index) == pytest.approx(float(expected))


def test_without_extras_there_is_no_score_mod() -> None:
    assert module_of("flex")._score_mod(Problem.of(), CPU) is None


def test_what_torch_cannot_compile_is_unsupported_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        raise torch._dynamo.exc.BackendCompilerFailed(
            None, NotImplementedError("not on Tuesdays"), None
        )

    monkeypatch.setattr(torch, "compile", lambda attend, **_: attend)
    problem = Problem.of(heads=1, seqlen=4, head_dim=8)
    with pytest.raises(Unsupported, match=r"^FlexAttention does not compile: .*not on Tuesdays"):
        module_of("flex")._compile(refuses, problem, CPU)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask": "causal"},
        {"mask": "causal", "seqlen_k": 33},
        {"mask": "window:window=9", "dtype": "bfloat16"},
        {"mask": "bigbird:block=16"},
        {"mask": "document:count=3", "seqlen_k": 70},
        {"softcap": 2.0, "alibi": True, "mask": "causal", "scale": 0.3},
        {"head_dim_v": 48},
        {"seqlen_q": 1, "decode": True},
    ],
    ids=str,
)
def test_compiled_on_a_cpu_it_is_right(changes: dict[str, object]) -> None:
    assert_right("flex", Problem.of(**{**SMALL, **changes}))
    assert torch._dynamo.config.recompile_limit == 64
    assert torch._functorch.config.donated_buffer is False
