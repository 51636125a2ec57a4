"""Are our low-rank and local methods as fast as the libraries that people use for them?

Ours and theirs have the same matrices, features, landmarks or window, see the same inputs in
the layout each likes, and are timed in the same interleaved rounds, forward and backward. The
figure is ours ÷ theirs, round by round: below 1 ours is faster. Where memory happens to lie makes
a process differ from the next by up to a tenth, of ours or of theirs: several are asked, each
with the matches in another order, and each counts once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from peers import Peer, of_linformer, of_local, of_nystrom, of_performer
from proof import Proof, Row
from solving import rounds_of, solve

from attnbench.execution import Execution
from attnbench.measure.sampling import Budget
from attnbench.problem import Problem
from attnbench.stats import process_interval


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
DIRECTIONS = ("forward", "backward")
PROCESSES = 5
_BUDGET = Budget(
    precision=0.01, min_rounds=9, samples=3, warmup_s=0.2, warmup_cap_s=1.0, steady_share=0.05,
    max_s=2.5,
)  # fmt: skip
Ratios = Mapping[tuple[int, str], Sequence[float]]  # by index of the match and direction


def prove(seqlen: int = SEQLEN, processes: int = PROCESSES) -> list[Proof]:
    """Forward and backward, against every library, in one fresh process after another."""
    passes = []
    for seed in range(processes):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            passes.append(pool.submit(one_pass, seqlen, seed).result())
    return [
        Proof(
            f"rivals_{direction}",
            f"Time of ours ÷ the library's, {direction}; B1 H4 D64 N{seqlen} float32; "
            f"{processes} processes",
            [as_row(match, [p[i, direction] for p in passes]) for i, match in enumerate(MATCHES)],
        )
        for direction in DIRECTIONS
    ]


def one_pass(seqlen: int, seed: int) -> Ratios:
    """Ours ÷ the library's in every round of every match, in this process."""
    order = [(i, direction) for i in range(len(MATCHES)) for direction in DIRECTIONS]
    random.Random(seed).shuffle(order)
    return {(i, direction): _ratios(MATCHES[i], seqlen, direction) for i, direction in order}


def _ratios(match: Match, seqlen: int, direction: str) -> list[float]:
    problem = Problem.of(heads=4, head_dim=64, seqlen=seqlen, mask=match.mask, direction=direction)
    ours = solve(match.spec, problem)
    peer = match.peer(ours.built, problem)
    rounds = rounds_of({"ours": ours.step, "theirs": call_of(peer, ours)}, _BUDGET)
    return [a / b for a, b in zip(rounds["ours"], rounds["theirs"], strict=True)]


def as_row(match: Match, processes: Sequence[Sequence[float]]) -> Row:
    """Ours must not be slower: the interval may reach above 1, its median may not."""
    ratio = process_interval([[[x] for x in ratios] for ratios in processes])
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
