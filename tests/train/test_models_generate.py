"""Generation on a cache: the tokens of plain greedy decoding, from whoever attends.

Letters: B = batch, T = tokens, G = heads_kv, D = head_dim.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from modelling import Spy, workload
from torch import nn

from attnbench import Attention, Unsupported, UserError, implementation
from attnbench.train.models.cache import Filled
from attnbench.train.models.generate import Generator, build_generator
from attnbench.train.models.int8 import Int8Linear

NEW = 10


def prompt() -> torch.Tensor:
    return torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))


def generator(model: str, attention: Attention | str, **more: Any) -> Generator:
    if isinstance(attention, str):
        attention = implementation(attention)
    w = workload(model, layers=2)
    return build_generator(w, attention, prompt(), more.pop("new", NEW), 0, vocab=50, **more)


def wilder(made: Generator) -> Generator:
    """Weights at which tokens differ from one another, so that equal tokens say something."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, p in made.reader.body.named_parameters():
            if p.dim() > 1 and "wte" not in name and "lm_head" not in name:
                p.normal_(std=0.3)
    return made


def plain(body: Any) -> torch.Tensor:
    """Greedy decoding by transformers' own attention, all tokens read again for each."""
    body.set_attn_implementation("eager")
    ids = prompt()
    with torch.no_grad():
        for _ in range(NEW):
            new = body(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, new], dim=1)
    return ids[:, 9:]


class Blind(Spy):
    """A cache's step that sees all keys but the newest."""

    kind = "exact"

    def build(self, problem, device):  # type: ignore[no-untyped-def]
        built = super().build(problem, device)
        if problem.seqlen_q > 1:
            return built
        short = super().build(problem.replace(seqlen_k=problem.seqlen_k - 1), device)
        return lambda q, k, v: short(q, k[:, :, :-1], v[:, :, :-1])


@pytest.mark.parametrize("model", ["gpt2-tiny", "llama-tiny"])
def test_tokens_are_those_of_eager_greedy_decoding(model: str) -> None:
    names = ["naive", "sdpa", "sdpa-math", "blockwise", "gathered", "top-k"]
    made = [wilder(generator(model, name)) for name in names]
    tokens = [one.run() for one in made]
    expected = plain(made[0].reader.body)
    assert len(expected.unique()) > 5
    assert all(torch.equal(x, expected) for x in tokens)
    assert not torch.equal(wilder(generator(model, Blind())).run(), expected)  # what it catches


def test_every_length_is_built_before_and_none_later() -> None:
    made = generator("llama-tiny", "naive")
    lengths = [p.seqlen_k for p in made.builds.problems]
    assert lengths == list(range(9, 9 + NEW))
    assert [p.decode for p in made.builds.problems] == [False] + [True] * (NEW - 1)
    made.run()
    assert made.builds.late == []


def test_prefill_and_decode_are_the_whole_generation_and_can_be_repeated() -> None:
    made = wilder(generator("llama-tiny", "sdpa"))
    whole = made.run()
    steps = [made.prefill()] + [made.decode() for _ in range(NEW - 1)]
    assert torch.equal(torch.cat(steps, dim=1), whole)
    assert torch.equal(made.prefill(), whole[:, :1])


@pytest.mark.parametrize("layout", ["BHSD", "BSHD"])
def test_the_cache_is_a_view_of_one_allocation_in_the_plugins_layout(layout: Any) -> None:
    """Broken: every token copies all that came before."""
    cache = Filled(8, layout)
    first, second = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 1, 4)
    keys, _ = cache.update(first, first)
    address = keys.data_ptr()
    keys, values = cache.update(second, 2 * second)
    assert keys.data_ptr() == address
    assert torch.equal(keys, torch.cat([first, second], dim=2))
    assert torch.equal(values, torch.cat([first, 2 * second], dim=2))
    inner = keys if layout == "BHSD" else keys.transpose(1, 2)
    assert inner[0].is_contiguous() == (layout == "BSHD")
    assert inner[0, 0].is_contiguous()


def test_a_sparse_method_keeps_its_causal_pattern_in_a_step() -> None:
    """Broken: random blocks of another pattern than those of the prefill."""

    class Sparse(Spy):
        kind = "approximate"

    spy = Sparse()
    generator("llama-tiny", spy, new=3)
    assert [str(p.mask) for p in spy.asked] == ["causal"] * 3


@pytest.mark.parametrize(
    ("name", "words"), [("linear", "decode step"), ("linformer", "causal has no definition")]
)
def test_who_cannot_decode_refuses(name: str, words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        generator("llama-tiny", name)


def test_a_model_without_a_cache_is_refused() -> None:
    with pytest.raises(UserError, match="bert-tiny has no cache"):
        generator("bert-tiny", "naive")


# ---- weights in int8 -----------------------------------------------------------------------


def test_int8_weights_are_within_half_a_step_of_the_weights() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 8)
    small = Int8Linear(linear)
    back_OI = small.weight_OI.float() * small.scale_O[:, None]  # type: ignore[operator,index]
    step_O1 = linear.weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((back_OI - linear.weight).abs() <= 0.5001 * step_O1).all())
    x = torch.randn(3, 16)
    torch.testing.assert_close(small(x), x @ back_OI.T + linear.bias)


def test_int8_models_hold_no_linear_weight_in_float_and_say_nearly_the_same() -> None:
    for model in ("gpt2-tiny", "llama-tiny"):
        whole, small = (generator(model, "sdpa", weights=w) for w in ("float32", "int8"))
        assert sum(isinstance(m, Int8Linear) for m in small.reader.body.modules()) >= 9
        assert not any(isinstance(m, nn.Linear) for m in small.reader.body.modules())
        with torch.no_grad():
            logits = [
                g.reader.body(input_ids=prompt(), use_cache=False).logits for g in (whole, small)
            ]
        error = float((logits[1] - logits[0]).norm() / logits[0].norm())
        assert 0 < error < 0.02
