"""The traps of attention inside transformers, each with what would be silently wrong.

Letters: B = batch, T = tokens.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from modelling import CPU, MODELS, Spy, built, task_of, workload

from attnbench import Attention, Unsupported, UserError, implementation
from attnbench.train.models.bridge import Builds
from attnbench.train.models.interface import NAME, attach, attend, making_places, places


def asked(model: str, **fields: Any) -> list[str]:
    """What an implementation is asked for by a model, as problems' labels."""
    spy = Spy()
    built(workload(model, **fields), spy)
    return [problem.label.removeprefix("B2 ") for problem in spy.asked]


def body(model: str, attention: Attention | str = "naive") -> Any:
    return built(workload(model), attention).inside.body


def ids(model: str) -> torch.Tensor:
    return task_of(workload(model)).batch(1).inputs["input_ids"]


def test_padding_is_refused_not_ignored() -> None:
    """Trap 1. Broken: no mask registered under the name, so that padding never arrives."""
    kept = torch.ones_like(ids("bert-tiny"))
    kept[:, -3:] = 0
    with pytest.raises(Unsupported, match=r"hides 19 % .*padding\?"):
        body("bert-tiny")(input_ids=ids("bert-tiny"), attention_mask=kept)
    with pytest.raises(Unsupported, match="neither full, causal nor a window"):
        body("gpt2-tiny")(input_ids=ids("gpt2-tiny"), attention_mask=kept)


def test_a_mask_of_ones_is_none() -> None:
    model, given = body("bert-tiny"), ids("bert-tiny")
    with torch.no_grad():
        told = model(input_ids=given, attention_mask=torch.ones_like(given))
        assert torch.equal(told[0], model(input_ids=given)[0])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt2-tiny", ["H4 N16 D16 float32 causal both"]),
        ("llama-tiny", ["H4/2 N16 D16 float32 causal both"]),
        ("bert-tiny", ["H4 N16 D16 float32 full both"]),
        ("vit-tiny", ["H4 N17 D16 float32 full both"]),
        ("bart-tiny", ["H4 N64 D16 float32 full both", "H4 N64 D16 float32 causal both"]),
        (
            "t5-tiny",
            [
                "H4 N64 D16 float32 full both scale=1.0 bias",
                "H4 N64 D16 float32 causal both scale=1.0 bias",
                "H4 N64 D16 float32 full both scale=1.0",
            ],
        ),
    ],
)
def test_a_model_asks_for_what_it_is(model: str, expected: list[str]) -> None:
    """Traps 2, 4 and 5: causal where the module says so, cross-attention full, keys not
    repeated (heads_kv is the model's own), T5's scale of 1 and its bias, but no bias of zeros
    in its attention to the encoder."""
    assert asked(model) == expected


class NoModule(torch.nn.Module):
    """An attention module that says it is causal."""

    is_causal = True


def called(**told: Any) -> list[str]:
    """The masks that the interface function asks for, q of 4 tokens and keys of ``keys``."""
    spy, keys = Spy(), told.pop("keys", 4)
    q, kv = torch.randn(1, 2, told.pop("queries", 4), 8), torch.randn(1, 2, keys, 8)
    module = NoModule()
    with making_places(Builds(spy, CPU)), torch.no_grad():
        attend(module, q, kv, kv, told.pop("mask", None), **told)
    return [f"{p.mask} {p.seqlen_q}×{p.seqlen_k}" for p in spy.asked]


def test_the_keyword_is_causal_comes_before_the_modules_own() -> None:
    assert called() == ["causal 4×4"]
    assert called(is_causal=False) == ["full 4×4"]


def test_one_query_on_a_cache_sees_every_key() -> None:
    """Broken: causal aligned top-left, by which the last token sees the first key alone."""
    assert called(queries=1, keys=7) == ["full 1×7"]


def test_a_causal_prefill_into_a_longer_static_cache_reads_its_beginning() -> None:
    """Broken: aligned bottom-right, by which queries see the empty rest."""
    assert called(keys=9) == ["causal 4×4"]


def test_masks_given_as_tensors_are_read_back() -> None:
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    window = causal & ~causal.tril(-2)
    assert called(mask=causal[None, None]) == ["causal 4×4"]
    assert called(mask=torch.ones(1, 1, 4, 4, dtype=torch.bool)) == ["full 4×4"]
    assert called(mask=window[None, None], sliding_window=2) == ["window:window=2 4×4"]
    with pytest.raises(Unsupported, match="neither full, causal nor a window"):
        called(mask=window[None, None], sliding_window=3)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"s_aux": torch.zeros(2)}, "sinks"),
        ({"output_attentions": True}, "weights"),
        ({"cu_seq_lens_q": torch.zeros(2)}, "packed"),
    ],
)
def test_what_would_change_the_result_is_refused(told: dict[str, Any], words: str) -> None:
    """Trap 9 among them: plugins return no weights."""
    with pytest.raises(Unsupported, match=words):
        called(**told)


def test_a_linear_method_refuses_t5() -> None:
    """Trap 5. Broken: the bias dropped, and another model trained."""
    with pytest.raises(Unsupported, match="learned bias"):
        built(workload("t5-tiny"), "linear")


def test_the_bias_of_t5_learns() -> None:
    model = built(workload("t5-tiny"), "blockwise")
    batch = task_of(workload("t5-tiny")).batch(1)
    model(**batch.inputs)["tokens"].square().mean().backward()
    tables = [p for n, p in model.named_parameters() if "relative_attention_bias" in n]
    assert len(tables) == 2
    assert all(bool(p.grad.any()) for p in tables if p.grad is not None)
    assert all(p.grad is not None for p in tables)


@pytest.mark.parametrize("name", ["sdpa-flash", "org/kernel"])
def test_no_name_leads_transformers_to_a_kernel_of_its_own(name: str) -> None:
    """Trap 6: a "/" means a kernel on the hub, "flash" one of its own. Names never go there."""

    class Named(Spy):
        pass

    Named.name = name
    assert asked("gpt2-tiny")
    assert body("gpt2-tiny", Named()).config._attn_implementation == NAME


def test_flex_says_that_it_has_no_backward_on_a_cpu() -> None:
    """Trap 7."""
    with pytest.raises(Unsupported, match="no backward on CPU"):
        built(workload("gpt2-tiny"), "flex")


def test_learned_state_is_there_before_the_optimizer() -> None:
    """Trap 8."""
    names = [n for n, _ in built(workload("bert-tiny"), "linformer").named_parameters()]
    assert sum("mix_k_Nr" in name for name in names) == 2


def test_a_model_that_bypasses_the_interface_is_refused() -> None:
    """Trap 10. Broken: a speed of BigBird's own attention under a plugin's name."""
    from transformers import BigBirdConfig, BigBirdModel

    config = BigBirdConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32, attention_type="original_full",
    )  # fmt: skip
    given = {"input_ids": torch.zeros(1, 8, dtype=torch.int64)}
    with pytest.raises(UserError, match="BigBirdModel bypasses"):
        attach(BigBirdModel(config), Builds(implementation("naive"), CPU), given, given)


def test_a_module_without_a_place_says_so() -> None:
    with pytest.raises(RuntimeError, match="never attached"):
        attend(NoModule(), *(torch.randn(1, 2, 4, 8) for _ in range(3)), None)


def test_every_attention_of_every_model_goes_through_the_plugin() -> None:
    """Broken: some layers attended by the plugin, others by transformers itself."""
    found = {model: len(places(built(workload(model), "naive"))) for model in MODELS}
    assert found == {
        "gpt2-tiny": 2, "llama-tiny": 2, "bert-tiny": 2, "vit-tiny": 2, "pair-tiny": 4,
        "t5-tiny": 6, "bart-tiny": 6,
    }  # fmt: skip


def test_neither_torchvision_nor_timm_is_imported() -> None:
    """Trap 11: they bring another torch."""
    built(workload("vit-tiny"), "naive")
    assert not {"torchvision", "timm"} & set(sys.modules)


def test_presets_cost_no_torch() -> None:
    script = "import sys, attnbench.train.models.presets; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_packed_sequences_are_refused_not_joined() -> None:
    """Positions that begin anew hide one document from the other, and no plugin is told so."""
    given = ids("llama-tiny")
    positions = torch.arange(16).remainder(8).expand(2, -1)
    with pytest.raises(Unsupported, match="neither full, causal nor a window"):
        body("llama-tiny")(input_ids=given, position_ids=positions)
