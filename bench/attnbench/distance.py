"""How far an approximate method is from the answer that was asked for: what it gives up.

Of the output and each gradient the relative L2 distance and the cosine; of the attention
itself the total variation between the weights that the method really uses and those of
softmax. Nobody has to reveal weights for that: an output is a weighted sum of values, so
that values which are columns of the identity matrix make it show them.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, E = head_dim_v;
m = some of the M rows, h = the heads of one batch entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from attnbench.execution import Execution
from attnbench.inputs import Inputs
from attnbench.oracle import softmax_weights
from attnbench.problem import Problem
from attnbench.record import Distance, finite
from attnbench.verify import Yardstick

_ROWS = 64  # of each head, whose weights are looked at
_MOST_CALLS = 128  # that looking at weights may take
LINEAR = 0.05
"""How far ``weights @ v`` may be from the output, relative: low precision is no fault."""


def distances(yardstick: Yardstick, results: Mapping[str, torch.Tensor]) -> dict[str, Distance]:
    """Of each tensor from the truth, in float64.

    Args:
        yardstick: of the problem that was asked for.
        results: in BHSD, by the names of its tensors.
    """
    found: dict[str, Distance] = {}
    for name, standard in yardstick.standards.items():
        truth = standard.truth
        got = results[name].detach().to(truth.device, torch.float64)
        error, norms = (got - truth).norm(), got.norm() * truth.norm()
        found[name] = Distance(
            rel_l2=finite(float(error / truth.norm())),
            cosine=finite(float((got * truth).sum() / norms)),
            max_abs=finite(float((got - truth).abs().max())),
        )
    return found


def weights_distance(execution: Execution, inputs: Inputs) -> float | None:
    """Mean total variation, 0 to 1 for weights that are distributions, of some rows' weights.

    Half the sum of ``|weight − softmax weight|`` over the keys. Loads contents of its own
    into the execution.

    Args:
        execution: of a forward.
        inputs: of the problem's shapes.

    Returns:
        None where the output is no weighted sum of values (the weights that it shows do not
        make the output from ``inputs``), with dropout, or where it would take too long.
    """
    p = execution.problem
    calls = -(-p.seqlen_k // p.head_dim_v)
    if p.direction != "forward" or p.dropout_p > 0 or p.decode or calls > _MOST_CALLS:
        return None
    rows_m = torch.linspace(0, p.seqlen_q - 1, min(_ROWS, p.seqlen_q)).long()
    shown_hmN = shown_weights(execution, inputs, rows_m)
    if missed(execution, inputs, rows_m, shown_hmN) > LINEAR:
        return None
    truth_hmN = softmax_weights(p, inputs, rows_m)
    return finite(float((shown_hmN - truth_hmN).abs().sum(dim=-1).mean()) / 2)


def shown_weights(execution: Execution, inputs: Inputs, rows_m: torch.Tensor) -> torch.Tensor:
    """The weights that an execution uses, float64 (h, m, N), of the first batch entry.

    Args:
        execution: of a forward; it is called ⌈N / E⌉ times.
        inputs: whose q and k count.
        rows_m: which query rows.
    """
    p: Problem = execution.problem
    columns = []
    for start in range(0, p.seqlen_k, p.head_dim_v):
        count = min(p.head_dim_v, p.seqlen_k - start)
        value_BGNE = torch.zeros_like(inputs.v_BGNE)
        value_BGNE[:, :, torch.arange(start, start + count), torch.arange(count)] = 1.0
        columns.append(_rows(execution, replace(inputs, v_BGNE=value_BGNE), rows_m)[..., :count])
    return torch.cat(columns, dim=-1)


def missed(
    execution: Execution, inputs: Inputs, rows_m: torch.Tensor, shown_hmN: torch.Tensor
) -> float:
    """How far the output of ``inputs`` is from the weights that were shown times its values.

    Relative, in the L2 norm, over some rows of the first batch entry. More than
    :data:`LINEAR`: the output is no weighted sum of values, or its weights change from
    call to call, and what was shown are not its weights. Not a number where one of the
    two has such.

    Args:
        execution: of a forward; it is called once.
        inputs: whose q and k made it show the weights.
        rows_m: which query rows.
        shown_hmN: by :func:`shown_weights`.
    """
    p = execution.problem
    out_hmE = _rows(execution, inputs, rows_m)
    values_hNE = inputs.v_BGNE[0].double().repeat_interleave(p.heads_q // p.heads_kv, dim=0)
    miss = (shown_hmN @ values_hNE - out_hmE).norm()
    return float(miss / out_hmE.norm()) if miss else 0.0


def _rows(execution: Execution, inputs: Inputs, rows_m: torch.Tensor) -> torch.Tensor:
    """Some rows of the output of the first batch entry, float64 (h, m, E)."""
    execution.load(inputs)
    execution.step()
    out_hME = execution.results()["out"][0]
    return out_hME[:, rows_m.to(out_hME.device)].double()
