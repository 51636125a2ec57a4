"""What is wrong in a layer is found, by the tensors in which it shows; what is right passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from made_layers import CPU, Plain, judged, of, wrong

from attnbench.errors import UserError
from attnbench.layer.contents import draw_layer_signs
from attnbench.layer.core import Core
from attnbench.layer.execution import Layer, LayerExecution
from attnbench.layer.inputs import make_layer_inputs
from attnbench.layer.multi_head import MultiHeadAttention
from attnbench.plugin import Attention, Unsupported
from attnbench.problem import Problem
from attnbench.watch.watcher import Watch

POSITIONS = ["none", "sinusoidal", "learned", "relative", "rope", "alibi"]
SHAPES: list[dict[str, Any]] = [
    {}, {"mask": "causal"}, {"heads_kv": 2}, {"head_dim_v": 4}, {"seqlen_k": 17},
    {"padding": 0.4}, {"padding": 0.4, "mask": "causal"}, {"dtype": "bfloat16", "seqlen": 64},
    {"dtype": "float16"}, {"inputs": "large"}, {"inputs": "correlated"},
]  # fmt: skip


def shaped(**changes: Any) -> Any:
    if "seqlen" in changes:
        changes["seqlen_q"] = changes.pop("seqlen")
    return of(**changes)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_right_layer_passes(shape: dict[str, Any], position: str) -> None:
    problem = shaped(**shape, position=position)
    assert wrong(judged(LayerExecution(Plain(), problem, CPU))) == set()


def test_a_right_layer_passes_with_more_queries_than_keys() -> None:
    problem = of(seqlen_q=9, seqlen_k=4)
    assert problem.lengths == (9,) * problem.batch
    assert wrong(judged(LayerExecution(Plain(), problem, CPU))) == set()


def test_a_right_layer_of_single_tokens_passes() -> None:
    """With one key dq and dk are zero but for rounding, of which the largest tokens make most."""

    class Fused(Plain):
        def build(self, problem: Problem, device: torch.device) -> Core:
            mask_MN = problem.mask.dense(problem.seqlen_q, problem.seqlen_k, device)
            attend = torch.nn.functional.scaled_dot_product_attention
            return lambda q, k, v: attend(q, k, v, attn_mask=mask_MN)

    problem = of(batch=2, seqlen_q=1, padding=0.5)
    execution = LayerExecution(Fused(), problem, CPU)
    for seed in range(100):
        assert wrong(judged(execution, seed)) == set()


# ---- broken on purpose -------------------------------------------------------------------


class Transposed(MultiHeadAttention):
    """Wo the wrong way round, which fits because it is square."""

    def forward(self, *states: torch.Tensor) -> torch.Tensor:
        wo = self.wo.weight
        self.wo.weight = torch.nn.Parameter(torch.eye(len(wo)))
        inner = super().forward(*states)
        self.wo.weight = wo
        return inner @ wo


class TurnsValues(MultiHeadAttention):
    """RoPE on v too."""

    def __init__(self, problem: Any, core: Core, device: torch.device) -> None:
        def turned(q: Any, k: Any, v: Any) -> torch.Tensor:
            return core(q, k, self._turned(v, 1))

        super().__init__(problem, turned, device)


class SeesPadding(MultiHeadAttention):
    """Looks at padding as at anything else."""

    def forward(self, *states: torch.Tensor) -> torch.Tensor:
        x_BMC = states[0]
        whole = self.problem.replace(padding=0.0)
        core = Plain().build(whole.core, CPU)
        q, k, v = (
            w(x_BMC).unflatten(-1, (4, -1)).transpose(1, 2) for w in (self.wq, self.wk, self.wv)
        )
        y_BMC: torch.Tensor = self.wo(core(q, k, v).transpose(1, 2).flatten(2))
        return y_BMC


class NoBias(MultiHeadAttention):
    """Forgets the relative bias."""

    def _bias(self) -> tuple[torch.Tensor, ...]:
        return (0 * super()._bias()[0],)


class NoTurn(MultiHeadAttention):
    """Turns queries and forgets keys."""

    def _turned(self, x_BSHD: torch.Tensor, side: int) -> torch.Tensor:
        return super()._turned(x_BSHD, side) if side == 0 else x_BSHD


class NothingAdded(MultiHeadAttention):
    """Forgets what is added to the hidden states, but keeps it in the graph."""

    def _placed(self, x_BSC: torch.Tensor, side: int) -> torch.Tensor:
        return x_BSC + 0 * super()._placed(x_BSC, side)


class NoGradientOfWk(MultiHeadAttention):
    """Wk is detached, but for a term of no size."""

    def __init__(self, problem: Any, core: Core, device: torch.device) -> None:
        super().__init__(problem, core, device)
        self.wk.register_forward_hook(lambda m, given, out: out.detach() + 0 * out)


class SharesHeads(MultiHeadAttention):
    """Gives each group of queries the key head of another."""

    def __init__(self, problem: Any, core: Core, device: torch.device) -> None:
        super().__init__(problem, lambda q, k, v: core(q, k.flip(2), v.flip(2)), device)


@pytest.mark.parametrize(
    ("broken", "changes", "shows"),
    [
        (Transposed, {}, {"out", "dx", "dwo", "dwv"}),
        (TurnsValues, {"position": "rope"}, {"out", "dwv", "dwo"}),
        (SeesPadding, {"padding": 0.4}, {"out", "dx", "dwk", "dwv"}),
        (NoBias, {"position": "relative"}, {"out", "dtable"}),
        (NoTurn, {"position": "rope"}, {"out", "dwq", "dwk"}),
        (NothingAdded, {"position": "sinusoidal"}, {"out", "dwq"}),
        (NothingAdded, {"position": "learned"}, {"out", "dtable"}),
        (NoGradientOfWk, {}, {"dx", "dwk"}),
        (SharesHeads, {"heads_kv": 2}, {"out", "dwk", "dwv"}),
    ],
)
def test_what_is_broken_on_purpose_is_caught(
    broken: Callable[..., Layer], changes: dict[str, Any], shows: set[str]
) -> None:
    class Broken(LayerExecution):
        def _around(self, core: Core, device: torch.device) -> Layer:
            return broken(self.problem, core, device)

    found = wrong(judged(Broken(Plain(), of(**changes), CPU)))
    assert found >= shows
    assert ("out" in shows) == ("out" in found)


def test_a_weight_without_a_gradient_is_named() -> None:
    class Cut(LayerExecution):
        def _around(self, core: Core, device: torch.device) -> Layer:
            layer = super()._around(core, device)
            layer.wk.register_forward_hook(lambda m, given, out: out.detach())  # type: ignore[attr-defined]
            return layer

    with pytest.raises(Exception, match="dwk is None"):
        judged(Cut(Plain(), of(), CPU))


# ---- manners -----------------------------------------------------------------------------


@pytest.mark.parametrize("position", POSITIONS)
def test_new_signs_give_new_contents_whose_truth_is_known(position: str) -> None:
    problem = of(position=position, heads_kv=2, mask="causal")
    execution = LayerExecution(Plain(), problem, CPU)
    execution.load(make_layer_inputs(problem, 0))
    execution.step()
    before = {name: x.clone() for name, x in execution.results().items()}
    loaded = {name: x.clone() for name, x in execution.loaded.items()}
    signs = draw_layer_signs(problem, CPU, torch.Generator().manual_seed(0))
    execution.change_signs(signs.by_name)
    same = {name for name, x in execution.loaded.items() if torch.equal(x, loaded[name])}
    kept = {"sinusoidal": {"x"}, "relative": {"table"}}  # what a sign would change the truth of
    assert same == kept.get(position, set())
    assert execution.changed_input() is None
    execution.step()
    after = signs.apply(execution.results())
    assert all(torch.equal(after[name], x) for name, x in before.items())


@pytest.mark.parametrize("position", POSITIONS)
def test_gradients_that_new_signs_leave_as_they_were_are_not_held_against_a_layer(
    position: str,
) -> None:
    """A relative bias's dtable and the dx beside sines have one sign, which half of all share."""

    class LastBits(Plain):
        """Not the same to the bit in each call, so that every inspection looks closely."""

        def build(self, problem: Problem, device: torch.device) -> Core:
            attend = super().build(problem, device)
            return lambda *given: (out := attend(*given)) + 1e-7 * torch.randn(out.shape)

    problem = of(position=position)
    execution = LayerExecution(LastBits(), problem, CPU)
    watch = Watch(execution, CPU)
    execution.load(make_layer_inputs(problem, 0))
    watch.loaded()
    execution.step()
    for _ in range(8):
        watch.inspect()


def test_an_old_result_is_still_noticed() -> None:
    problem = of(position="relative")
    execution = LayerExecution(Plain(), problem, CPU)
    watch = Watch(execution, CPU)
    inputs = make_layer_inputs(problem, 0)
    execution.load(inputs)
    watch.loaded()
    execution.step()
    watch.inspect()
    old = {name: x.clone() for name, x in execution.results().items()}
    watch.turn_begins("measure")  # with new contents
    execution.results = lambda: old  # type: ignore[method-assign]
    watch.results()
    assert "is that of other inputs" in str(watch.old_output())


def test_a_changed_weight_is_noticed() -> None:
    execution = LayerExecution(Plain(), of(), CPU)
    execution.load(make_layer_inputs(of(), 0))
    execution.built.wo.weight.data[0, 0] += 1
    assert execution.changed_input() == "wo"


def test_a_twin_has_weights_of_its_own() -> None:
    execution = LayerExecution(Plain(), of(position="learned"), CPU)
    execution.load(make_layer_inputs(execution.problem, 0))
    execution.step()
    twin = execution.twin()
    execution.built.wq.weight.data.zero_()
    twin.step()
    assert twin.changed_input() is None
    assert torch.equal(twin.results()["out"], execution.results()["out"])


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_each_direction_answers_what_it_is_asked(direction: str) -> None:
    accuracy = judged(LayerExecution(Plain(), of(direction=direction), CPU))
    assert wrong(accuracy) == set()
    gradients = [] if direction == "forward" else ["dx", "dwq", "dwk", "dwv", "dwo"]
    assert list(accuracy) == ["out", *gradients]


def test_the_same_seed_gives_the_same_inputs_and_another_others() -> None:
    one, same, other = (make_layer_inputs(of(), seed).named() for seed in (0, 0, 1))
    assert all(torch.equal(x, same[name]) for name, x in one.items())
    assert not any(torch.equal(x, other[name]) for name, x in one.items())


# ---- refusals ----------------------------------------------------------------------------


def test_a_decode_step_and_what_the_op_inside_cannot_do_are_refused_with_the_reason() -> None:
    decode = of(seqlen_q=1, seqlen_k=9, decode=True, direction="forward", mask="causal")
    with pytest.raises(Unsupported, match="measure it at level 'op'"):
        LayerExecution(Plain(), decode, CPU)

    class Unbiased(Plain):
        features = Attention.features

    with pytest.raises(Unsupported, match="a learned bias"):
        LayerExecution(Unbiased(), of(position="relative"), CPU)
    LayerExecution(Unbiased(), of(position="rope"), CPU)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"level": "op", "position": "rope"}, "position 'rope' belongs to level 'layer'"),
        ({"level": "op", "padding": 0.1}, "padding 0.1 belongs to level 'layer'"),
        ({"alibi": True}, "takes alibi as position = 'alibi'"),
        ({"bias": True}, "takes bias as position = 'relative'"),
        ({"inputs": "needle"}, "unknown inputs of level 'layer' 'needle'"),
        ({"dtype": "fp8"}, "has no float8_e4m3fn"),
        ({"position": "ropey"}, "unknown position 'ropey'"),
        ({"position": "rope", "head_dim": 7}, "head_dim must be even, got 7"),
        ({"position": "rope", "seqlen_k": 9}, "before the first key"),
        ({"padding": 0.6}, "padding must be at most 0.5, got 0.6"),
        ({"padding": 0.2, "batch": 1}, "needs a batch of 2 or more"),
        ({"padding": 0.2, "mask": "window"}, "goes with mask full or causal"),
        ({"padding": 0.2, "seqlen_k": 20}, "is for self-attention"),
    ],
)
def test_a_layer_that_cannot_be_is_refused_in_one_line(fields: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        of(**fields)
