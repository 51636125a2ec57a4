"""Are our low-rank and local methods as fast as the libraries that people use for them?

Ours and theirs have the same matrices, features, landmarks or window, see the same inputs in
the layout each likes, and are timed in the same interleaved rounds, forward and backward. The
figure is ours ÷ theirs, round by round: below 1 ours is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from growth import ratio_of
from peers import Peer, of_linformer, of_local, of_nystrom, of_performer
from proof import Proof, Row
from solving import rounds_of, solve

from attnbench.execution import Execution
from attnbench.measure.sampling import Budget
from attnbench.problem import Problem


@dataclass(frozen=True)
class Match:
    """One of ours and the library that does the same."""

    spec: str
    library: str
    peer: Callable[[Any, Problem], Peer]
    mask: str = "full"


MATCHES = (
    Match("performer:features=256", "performer-pytorch", of_performer),
    Match("performer:features=256", "performer-pytorch", of_performer, "causal"),
    Match("nystrom:landmarks=64", "nystrom-attention", of_nystrom),
    Match("linformer:rank=128", "linformer", of_linformer),
    Match("window:window=129", "local-attention", of_local(128), "causal"),
    Match("window:window=129", "local-attention", of_local(128)),
)
SEQLEN = 4096
_BUDGET = Budget(
    precision=0.01, min_rounds=15, samples=3, warmup_s=0.2, warmup_cap_s=1.0, steady_share=0.05,
    max_s=8.0,
)  # fmt: skip


def prove(seqlen: int = SEQLEN) -> list[Proof]:
    """Forward and backward, against every library."""
    return [
        Proof(
            f"rivals_{direction}",
            f"Time of ours ÷ the library's, {direction}; B1 H4 D64 N{seqlen} float32",
            [_row(match, seqlen, direction) for match in MATCHES],
        )
        for direction in ("forward", "backward")
    ]


def _row(match: Match, seqlen: int, direction: str) -> Row:
    problem = Problem.of(heads=4, head_dim=64, seqlen=seqlen, mask=match.mask, direction=direction)
    ours = solve(match.spec, problem)
    peer = match.peer(ours.built, problem)
    rounds = rounds_of({"ours": ours.step, "theirs": call_of(peer, ours)}, _BUDGET)
    return as_row(match, rounds["ours"], rounds["theirs"])


def as_row(match: Match, ours_s: Sequence[float], theirs_s: Sequence[float]) -> Row:
    """Ours must not be slower: the interval may reach above 1, its median may not."""
    ratio = ratio_of(ours_s, theirs_s)
    figure = f"{ratio.median:.3f} ({ratio.low:.3f} – {ratio.high:.3f})"
    return Row(f"{match.spec}, {match.mask} ÷ {match.library}", figure, "≤ 1", ratio.median <= 1)


def call_of(peer: Peer, ours: Execution) -> Callable[[], None]:
    """The library's forward, or its backward, on the inputs that ours has."""
    q, k, v, grad = (peer.to_layout(x) for x in ours.loaded.values())

    def forward() -> None:
        with torch.no_grad():
            peer.call(q, k, v)

    if ours.problem.direction == "forward":
        return forward
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = peer.call(*leaves)

    def backward() -> None:
        torch.autograd.grad(out, leaves, grad, retain_graph=True)

    return backward
