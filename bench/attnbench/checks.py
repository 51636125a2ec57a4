"""What the conformance battery does with one implementation on one problem.

Each check is a function that takes a :class:`Trial` and returns if all is well. What it
raises says what is not: ``Wrong`` or ``WrongOutput`` for a wrong answer, ``Unsupported``
for none, anything else for an error of the implementation.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch

from attnbench.attention import Attention, Unsupported
from attnbench.claim import claim_of
from attnbench.inputs import Inputs
from attnbench.layer.inside import asked
from attnbench.level import execution_of, inputs_of, yardstick_of
from attnbench.problem import Problem
from attnbench.record import TensorAccuracy
from attnbench.verify import Yardstick, explain, judge, passed

Tensors = Mapping[str, torch.Tensor]

_SEED = 20171206  # any; the day "Attention Is All You Need" reached its present form


class Wrong(Exception):
    """The implementation gave a wrong answer; the text says how."""


@dataclass
class Trial:
    """One implementation, one problem, one device; built on construction."""

    implementation: Attention
    problem: Problem
    device: torch.device
    accuracy: dict[str, TensorAccuracy] = field(default_factory=dict)
    note: str | None = None  # worth telling, though nothing is wrong

    def __post_init__(self) -> None:
        self._execution = execution_of(self.implementation, self.problem, self.device)
        self.claim = claim_of(self.implementation, self.problem, is_apart=self.is_apart)

    @property
    def is_apart(self) -> bool:
        """Whether sequences of a padded layer are solved one after another."""
        return self._execution.is_apart

    @property
    def is_approximate(self) -> bool:
        """Its distance from the problem's answer is its own business; its manners are not."""
        return self.implementation.kind == "approximate"

    def inputs(self, seed: int = _SEED) -> Inputs:
        """Fresh inputs of the problem; a layer's are not looked into, only handed on."""
        return cast(Inputs, inputs_of(self.problem, seed, self.device))

    def answer(self, inputs: Inputs) -> Tensors:
        """Load, run once, and copy the results, which a later run may overwrite."""
        self._execution.load(inputs)
        return self.again()

    def again(self) -> Tensors:
        """Run once more on what is loaded."""
        self._execution.step()
        return {name: x.clone() for name, x in self._execution.results().items()}

    def expect_right(self, inputs: Inputs, results: Tensors) -> None:
        """Compare with the oracle; the inputs must be as they were."""
        changed = self._execution.changed_input()
        if changed is not None:
            raise Wrong(f"it overwrote its input {changed}")
        yardstick = self._yardstick(inputs)
        self.accuracy = judge(yardstick, results, approximate=not self.claim.is_exact)
        if not passed(self.accuracy):
            raise Wrong(explain(self.accuracy))

    def expect_same(self, what: str, inputs: Inputs, first: Tensors, second: Tensors) -> None:
        """Two results that must agree: within what the oracle allows, or better to the bit."""
        worst = 0.0
        for name, standard in self._yardstick(inputs).standards.items():
            difference = (first[name] - second[name]).abs().nan_to_num(float("inf"))
            largest = float(difference.max())
            worst = max(worst, largest)
            limit = standard.allowed.max_abs
            if largest > limit:
                raise Wrong(f"{what}: {name} changes by {largest:.2g} ({limit:.2g} is allowed)")
        if worst > 0:
            self.note = f"{what}: not to the bit, results change by up to {worst:.2g}"

    def _yardstick(self, inputs: Inputs) -> Yardstick:
        keep = self._execution.keep_mask() if self.problem.dropout_p > 0 else None
        return yardstick_of(self.claim.problem, inputs, keep)


# ---- the answer --------------------------------------------------------------------------


def right(trial: Trial) -> None:
    """The answer is right; with the knob at exact, an approximate method's too."""
    inputs = trial.inputs()
    trial.expect_right(inputs, trial.answer(inputs))
    if trial.is_approximate:
        _right_when_exact(trial)


def right_twice(trial: Trial) -> None:
    """The second of two calls is as right as the first: nothing piles up."""
    inputs = trial.inputs()
    trial.answer(inputs)
    trial.expect_right(inputs, trial.again())


def right_on_slices_of_qkv(trial: Trial) -> None:
    """The answer is right for q, k and v that are slices of one tensor."""
    _right_on(as_slices_of_qkv, trial)


def right_on_expanded(trial: Trial) -> None:
    """The answer is right for inputs with strides of 0."""
    _right_on(as_expanded, trial)


def _right_on(view: Callable[[Inputs], Inputs], trial: Trial) -> None:
    inputs = view(trial.inputs())
    trial.expect_right(inputs, trial.answer(inputs))


def right_on_new_contents(trial: Trial) -> None:
    """New contents at the same addresses give the new answer, not a remembered one."""
    trial.answer(trial.inputs())
    fresh = trial.inputs(_SEED + 1)
    trial.expect_right(fresh, trial.answer(fresh))


def _right_when_exact(trial: Trial) -> None:
    longest, *others = asked(trial.problem, is_apart=trial.is_apart)
    given = trial.implementation.exact_options(longest)
    if given is None:
        return
    cls = type(trial.implementation)
    try:
        exact = Trial(cls(**{**trial.implementation.options, **given}), trial.problem, trial.device)
    except Unsupported as refusal:
        if not others:
            raise
        trial.note = f"no one setting makes all lengths exact: {refusal}"
        return
    inputs = exact.inputs()
    accuracy = judge(yardstick_of(trial.problem, inputs), exact.answer(inputs))
    if not passed(accuracy):
        options = ", ".join(f"{key}={value}" for key, value in given.items())
        raise Wrong(f"with {options} it should be exact: {explain(accuracy)}")


# ---- manners -----------------------------------------------------------------------------


def repeats(trial: Trial) -> None:
    """The same call twice gives the same answer."""
    inputs = trial.inputs()
    trial.expect_same("run to run", inputs, trial.answer(inputs), trial.again())


def keeps_batch_apart(trial: Trial) -> None:
    """The answer for batch element 0 does not depend on batch element 1."""
    _change_neighbour(trial, lambda x: -3 * x)


def keeps_nan_apart(trial: Trial) -> None:
    """NaN in batch element 1 stays there."""
    _change_neighbour(trial, lambda x: x * float("nan"))


def _change_neighbour(trial: Trial, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    inputs = trial.inputs()
    changed = [x.clone() for x in _tensors(inputs)]
    for x in changed:
        x[1] = change(x[1])
    before, after = trial.answer(inputs), trial.answer(Inputs(*changed))
    first = Trial(trial.implementation, trial.problem.replace(batch=1), trial.device)
    alone = Inputs(*(x[:1] for x in _tensors(inputs)))
    first.expect_same(
        "batch element 0 beside another element 1",
        alone,
        {name: x[:1] for name, x in before.items()},
        {name: x[:1] for name, x in after.items()},
    )
    trial.note = first.note


def spreads_nan_of_q(trial: Trial) -> None:
    """A NaN in a query makes its output row NaN."""
    inputs = trial.inputs()
    q_BHMD = inputs.q_BHMD.clone()
    row = trial.problem.seqlen_q // 2
    q_BHMD[0, 0, row, 3] = float("nan")
    out_BHME = trial.answer(replace(inputs, q_BHMD=q_BHMD))["out"]
    _expect_no_number("q", out_BHME[0, 0, row : row + 1])


def spreads_nan_of_k(trial: Trial) -> None:
    """A NaN in a key makes every output row NaN that may see the key."""
    inputs = trial.inputs()
    k_BGND = inputs.k_BGND.clone()
    k_BGND[0, 0, trial.problem.seqlen_k // 2, 3] = float("nan")
    _expect_no_number("k", _seeing(trial, trial.answer(replace(inputs, k_BGND=k_BGND))))


def spreads_nan_of_v(trial: Trial) -> None:
    """A NaN value makes every output row NaN that may see its key."""
    inputs = trial.inputs()
    v_BGNE = inputs.v_BGNE.clone()
    v_BGNE[0, 0, trial.problem.seqlen_k // 2] = float("nan")
    _expect_no_number("v", _seeing(trial, trial.answer(replace(inputs, v_BGNE=v_BGNE))))


def _seeing(trial: Trial, results: Tensors) -> torch.Tensor:
    """The output rows of head 0 that may see the middle key."""
    if not trial.claim.is_exact:
        raise Unsupported("an approximate method may never look at that key")
    p = trial.claim.problem
    sees_M = p.mask.dense(p.seqlen_q, p.seqlen_k, trial.device)[:, p.seqlen_k // 2]
    return results["out"][0, 0, sees_M]


def _expect_no_number(where: str, rows_mE: torch.Tensor) -> None:
    lies = rows_mE.isfinite().any(dim=-1)
    if bool(lies.any()):
        raise Wrong(
            f"NaN in {where} becomes a finite number in {int(lies.sum())} of {len(lies)} rows "
            f"that see it, for example {float(rows_mE[rows_mE.isfinite()][0]):.4g}"
        )


# ---- strides -----------------------------------------------------------------------------


def as_slices_of_qkv(inputs: Inputs) -> Inputs:
    """q, k and v as one linear layer leaves them: slices of ``(B, S, 3, H, D)``, transposed."""
    qkv_BS3HD = torch.stack([x.transpose(1, 2) for x in inputs.qkv()], dim=2)
    q, k, v = (qkv_BS3HD[:, :, i].transpose(1, 2) for i in range(3))
    grad = inputs.grad_out_BHME.transpose(1, 2).contiguous().transpose(1, 2)
    return Inputs(q, k, v, grad)


def as_expanded(inputs: Inputs) -> Inputs:
    """k and v shared by the whole batch, grad_out by all heads, without copies (stride 0)."""
    q, k, v = inputs.qkv()
    grad = inputs.grad_out_BHME[:, :1].expand_as(inputs.grad_out_BHME)
    return Inputs(q, k[:1].expand_as(k), v[:1].expand_as(v), grad)


def _tensors(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    return (*inputs.qkv(), inputs.grad_out_BHME)
