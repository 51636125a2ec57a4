"""Each architecture learns the same with every exact implementation; ours does what it says.

Letters: B = batch, T = tokens, V = vocabulary.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from modelling import MODELS, Laid, built, learned, task_of, workload

from attnbench import Unsupported, UserError
from attnbench.train.models.bridge import LateBuild
from attnbench.train.models.build import Built
from attnbench.train.models.presets import PRESETS, sized
from attnbench.train.workload import Workload

EXACT = ["naive", "sdpa", "sdpa-math", "blockwise", "gathered"]
BIASED = ["naive", "sdpa", "sdpa-math", "blockwise", "gathered", "top-k"]  # top-k keeps all 64 keys


def in_float64(model: Built) -> Built:
    """Its shapes are then built anew, and told."""
    warnings.simplefilter("ignore", LateBuild)
    return model.double()


def worst(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a tensor, in L2; gradients of nothing but noise aside."""
    assert one.keys() == other.keys()
    scale = max(float(x.norm()) for x in other.values())
    return max(
        float((x - other[n]).norm() / max(float(other[n].norm()), 1e-6 * scale))
        for n, x in one.items()
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("ignore::attnbench.train.models.bridge.LateBuild")
def test_loss_and_gradients_are_those_of_transformers_own_attention(model: str) -> None:
    """In float64, the same weights; five implementations on the CPU for each architecture.

    transformers' SDPA, for its ``eager`` takes the softmax in float32.
    """
    w = workload(model)
    names = BIASED if model == "t5-tiny" else EXACT
    for name in names:
        found = in_float64(built(w, name))
        ours = learned(found, w)
        body: Any = found.inside.body
        found.inside.tells_no_mask = False  # that is for plugins alone
        for part in (body.image, body.text) if model == "pair-tiny" else (body,):
            part.set_attn_implementation("sdpa")
        assert worst(ours, learned(found, w)) < 1e-8, name


@pytest.mark.filterwarnings("ignore::attnbench.train.models.bridge.LateBuild")
def test_a_wrong_gradient_of_a_plugin_is_seen_in_the_model() -> None:
    """What the test above catches: dk is not dk."""
    w = workload("bert-tiny")

    class Wrong(Laid):
        is_wrong = True

    right = learned(in_float64(built(w, Laid())), w)
    assert worst(learned(in_float64(built(w, "naive")), w), right) < 1e-8
    assert worst(learned(in_float64(built(w, Wrong())), w), right) > 1e-2


@pytest.mark.parametrize("model", ["own-tiny", "gpt2-tiny"])
def test_the_seed_alone_decides_the_weights(model: str) -> None:
    """Broken: weights that depend on what an implementation draws."""
    w = workload(model)
    weights = [built(w, name, seed=s).state_dict() for name, s in
               (("naive", 0), ("performer", 0), ("naive", 1))]  # fmt: skip
    shared = weights[0].keys() & weights[1].keys()
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in shared)
    assert not all(torch.equal(weights[0][n], weights[2][n]) for n in weights[0])


# ---- our own model -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "objective", "output", "shape"),
    [
        ("text", "causal-lm", "tokens", (2, 16)),
        ("text", "masked-lm", "tokens", (2, 16)),
        ("translation", "seq2seq", "tokens", (2, 64)),
        ("text", "classification", "label", (2,)),
        ("images", "classification", "label", (2,)),
        ("pairs", "matching", "left", (2,)),
    ],
)
def test_our_own_model_takes_the_shape_of_its_objective(
    task: str, objective: str, output: str, shape: tuple[int, ...]
) -> None:
    w = workload("own-tiny", task, objective=objective)
    model = built(w, "naive")
    found = model(**task_of(w).batch(1).inputs)[output]
    assert tuple(found.shape[:-1]) == shape
    unused = [n for n, p in model.named_parameters() if n not in learned(model, w)]
    assert unused == []  # DDP would wait for them


def logits_of(w: Workload, ids: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
    model = built(w, "naive")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # at its start a model hardly looks around
        return model.eval()(input_ids=ids, **more)["tokens"]


@pytest.mark.parametrize(("objective", "is_causal"), [("causal-lm", True), ("masked-lm", False)])
def test_a_decoder_does_not_look_ahead_and_an_encoder_does(objective: str, is_causal: bool) -> None:
    w = workload("own-tiny", "copy", objective=objective)
    ids = task_of(w).batch(0).inputs["input_ids"]
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 5
    before, after = logits_of(w, ids)[:, :-1], logits_of(w, changed)[:, :-1]
    assert torch.equal(before, after) == is_causal


@pytest.mark.parametrize("position", ["none", "sinusoidal", "learned", "relative", "rope", "alibi"])
def test_a_position_encoding_tells_orders_apart(position: str) -> None:
    """Without one, an encoder says the same of the last token in whatever order come the rest."""
    w = workload("own-tiny", "copy", objective="masked-lm", position=position)
    ids = task_of(w).batch(0).inputs["input_ids"].clone()
    ids[:, :8] = torch.arange(8) % 5
    turned = torch.cat([ids[:, :8].flip(1), ids[:, 8:]], dim=1)
    same = torch.allclose(logits_of(w, ids)[:, -1], logits_of(w, turned)[:, -1], atol=1e-5)
    assert same == (position == "none")


@pytest.mark.parametrize("field", [{"activation": x} for x in ("relu", "gelu", "silu")]
                         + [{"norm": x} for x in ("layernorm", "rmsnorm")])  # fmt: skip
def test_activation_and_norm_are_what_is_asked(field: dict[str, Any]) -> None:
    w = workload("own-tiny", **field)
    model: Any = built(w, "naive").inside
    block = model.parts.stacks[0][0]
    if "norm" in field:
        assert type(block.norm_1).__name__.lower() == field["norm"]
        assert type(model.parts.norms[0]) is type(block.norm_1)
    else:
        x = torch.tensor([-1.0, 2.0])
        assert torch.equal(block.act(x), getattr(torch.nn.functional, field["activation"])(x))


def test_alibi_and_a_relative_bias_are_asked_of_the_implementation() -> None:
    for position in ("alibi", "relative"):
        with pytest.raises(Unsupported, match="does not do"):
            built(workload("own-tiny", position=position), "linear")


@pytest.mark.parametrize("model", ["own-tiny", "gpt2-tiny", "t5-tiny", "pair-tiny"])
def test_checkpointing_gives_the_same_gradients(model: str) -> None:
    w = workload(model)
    plain = learned(built(w, "blockwise").train(), w)
    saved = w.replace(checkpointing=True)
    assert worst(learned(built(saved, "blockwise").train(), w), plain) < 1e-4


@pytest.mark.parametrize("model", ["own-tiny", "gpt2-tiny"])
def test_checkpointing_saves_less(model: str) -> None:
    """Broken: an option that changes nothing."""

    def saved(w: Workload) -> int:
        model, total = built(w, "naive").train(), [0]

        def pack(x: torch.Tensor) -> torch.Tensor:
            total[0] += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(**task_of(w).batch(1).inputs)
        return total[0]

    w = workload(model)
    assert saved(w.replace(checkpointing=True)) < 0.6 * saved(w)


def test_evaluation_of_a_whole_batch_is_prepared_too() -> None:
    w = workload("own-tiny", batch=4, accumulation=2, dropout=0.1)
    model = built(w, "naive")
    model.eval()(**task_of(w).batch(0, "validation").inputs)
    assert model.builds.late == []
    assert [(p.batch, p.dropout_p) for p in model.builds.problems] == [(2, 0.1), (4, 0.0)]


# ---- presets ---------------------------------------------------------------------------------


def test_a_workload_changes_sizes_and_the_rest_follows() -> None:
    preset = sized(workload("llama-tiny", layers=3, heads=8, d_model=128))
    assert (preset.layers, preset.heads, preset.heads_kv) == (3, 8, 4)
    assert (preset.d_model, preset.d_ff) == (128, 384)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "gtp2-tiny"}, "did you mean 'gpt2-tiny'"),
        ({"model": "gpt2-tiny", "heads_kv": 2}, "no heads_kv"),
        ({"model": "gpt2-tiny", "position": "rope"}, "an option of our own models"),
        ({"model": "gpt2-tiny", "heads": 5}, "not divisible by heads 5"),
        ({"model": "t5-tiny"}, "not made for objective causal-lm"),
        ({"model": "vit-tiny"}, "not made for objective causal-lm"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        built(Workload.of(task="text", seqlen=16, batch=2, **fields), "naive")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions"),
    [("gpt2-124m", 124.5), ("bert-base", 109.5), ("t5-small", 60.5), ("vit-base", 85.8)],
)
def test_published_sizes_have_their_published_parameters(name: str, millions: float) -> None:
    """Within two per cent: positions, heads and pictures are the task's."""
    family = PRESETS[name].family
    task = {"t5": "translation", "vit": "images"}.get(family, "text")
    fields: dict[str, Any] = {"seqlen": {"vit": 197}.get(family, 512), "batch": 1}
    if family == "bert":
        fields["objective"] = "masked-lm"
    w = Workload.of(model=name, task=task, **fields)
    assert built(w, "naive").counts.total / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["own-tiny", "gpt2-tiny", "llama-tiny", "bert-tiny", "t5-tiny"])
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_one_graph_and_gives_the_same(model: str) -> None:
    w = workload(model)
    plain = learned(built(w, "sdpa").train(), w)
    compiled = built(w, "sdpa").train()
    compiled.compile(fullgraph=True, dynamic=False)
    assert worst(learned(compiled, w), plain) < 1e-4
