"""One rank of a ring: holds a shard of the sequence, passes keys and values on, attends.

Run as a script, one process a rank, by ``ranks``: ``rank.py FD RANK WORLD DEVICE STORE``. Each rank
has two chunks of the sequence, one from its beginning and one from its end, so that under a
causal mask all have equally much to do. Keys and values go once around the ring, point to
point, the next ones on their way while the present ones are attended; parts of the softmax
are merged by their largest logit and their sum. In the backward the gradients of keys and
values travel along with them, and once more than they, home to the rank whose they are.

Letters: B = batch, H = heads_q, G = heads_kv, R = query heads that share a key head,
M = queries of this rank, N = keys of a rank, D = head_dim, E = head_dim_v; m and n are those of
one chunk.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

Tensors = list[torch.Tensor]


class Span(NamedTuple):
    """A chunk: where it lies in a rank's shard, and the position of its first token."""

    rows: slice
    first: int


def chunks_of(rank: int, world: int) -> tuple[int, int]:
    """The two of 2·world chunks that a rank holds."""
    return rank, 2 * world - 1 - rank


def spans_of(rank: int, world: int, lengths: Sequence[int], offset: int) -> list[Span]:
    """A rank's chunks, of a sequence that is cut into so long ones and begins at ``offset``."""
    spans, at = [], 0
    for chunk in chunks_of(rank, world):
        spans.append(Span(slice(at, at + lengths[chunk]), offset + sum(lengths[:chunk])))
        at += lengths[chunk]
    return spans


class Ring:
    """Attention of one rank's queries to the keys of all.

    Args:
        rank, world: which of how many.
        lengths_q, lengths_k: of the 2·world chunks of queries and of keys.
        is_causal: aligned bottom-right, as FlashAttention ≥ 2.1.
        scale: of the logits.
    """

    def __init__(
        self, rank: int, world: int, lengths_q: list[int], lengths_k: list[int],
        is_causal: bool, scale: float,
    ) -> None:  # fmt: skip
        self.rank, self.world, self.is_causal, self.scale = rank, world, is_causal, scale
        self.rows = spans_of(rank, world, lengths_q, sum(lengths_k) - sum(lengths_q))
        self.keys = [spans_of(r, world, lengths_k, 0) for r in range(world)]

    def forward(self, q_BHMD: torch.Tensor, k_BGND: torch.Tensor, v_BGNE: torch.Tensor) -> Tensors:
        """The output (B, H, M, E); the largest logit and the sum of each row (B, G, R, M, 1)."""
        q_BGRMD = self._queries(q_BHMD, k_BGND)
        acc_BGRME = q_BGRMD.new_zeros(*q_BGRMD.shape[:-1], v_BGNE.shape[-1])
        top_BGRM1 = q_BGRMD.new_full((*q_BGRMD.shape[:-1], 1), float("-inf"))
        sum_BGRM1 = torch.zeros_like(top_BGRM1)
        for source, (k, v) in self._around([k_BGND, v_BGNE]):
            for rows, keys, hidden_mn in self._meetings(source):
                logits_BGRmn = self._logits(q_BGRMD[..., rows, :], k[..., keys, :], hidden_mn)
                acc, top, total = (x[..., rows, :] for x in (acc_BGRME, top_BGRM1, sum_BGRM1))
                new = torch.maximum(top, logits_BGRmn.amax(dim=-1, keepdim=True))
                weights_BGRmn = torch.exp(logits_BGRmn - _finite(new))
                keep = torch.exp(top - _finite(new))
                total.mul_(keep).add_(weights_BGRmn.sum(dim=-1, keepdim=True))
                acc.mul_(keep).add_(weights_BGRmn @ v[:, :, None, keys].to(acc.dtype))
                top.copy_(new)
        sum_BGRM1.masked_fill_(sum_BGRM1 == 0, 1.0)  # a row that sees no key is zero
        out_BHME = (acc_BGRME / sum_BGRM1).flatten(1, 2).to(q_BHMD.dtype)
        return [out_BHME, _finite(top_BGRM1), sum_BGRM1]

    def backward(
        self,
        q_BHMD: torch.Tensor,
        k_BGND: torch.Tensor,
        v_BGNE: torch.Tensor,
        out_BHME: torch.Tensor,
        top_BGRM1: torch.Tensor,
        sum_BGRM1: torch.Tensor,
        grad_BHME: torch.Tensor,
    ) -> Tensors:
        """The gradients of this rank's q, k and v."""
        q_BGRMD, grad_BGRME = self._queries(q_BHMD, k_BGND), self._queries(grad_BHME, v_BGNE)
        delta_BGRM1 = (grad_BGRME * self._queries(out_BHME, v_BGNE)).sum(dim=-1, keepdim=True)
        dq_BGRMD, work = torch.zeros_like(q_BGRMD), q_BGRMD.dtype
        travelling = [torch.zeros_like(x, dtype=work) for x in (k_BGND, v_BGNE)]
        for source, (k, v) in self._around([k_BGND, v_BGNE]):
            dk, dv = travelling
            for rows, keys, hidden_mn in self._meetings(source):
                q, grad = q_BGRMD[..., rows, :], grad_BGRME[..., rows, :]
                logits_BGRmn = self._logits(q, k[..., keys, :], hidden_mn)
                weights_BGRmn = torch.exp(logits_BGRmn - top_BGRM1[..., rows, :])
                weights_BGRmn /= sum_BGRM1[..., rows, :]
                dweights_BGRmn = grad @ v[:, :, None, keys].to(work).mT
                dlogits_BGRmn = weights_BGRmn * (dweights_BGRmn - delta_BGRM1[..., rows, :])
                dlogits_BGRmn *= self.scale
                dq_BGRMD[..., rows, :] += dlogits_BGRmn @ k[:, :, None, keys].to(work)
                dk[..., keys, :] += (dlogits_BGRmn.mT @ q).sum(dim=2)
                dv[..., keys, :] += (weights_BGRmn.mT @ grad).sum(dim=2)
            travelling, pending = self._pass_on(travelling, (source - 1) % self.world)
            _wait(pending)
        dk_BGND, dv_BGNE = (x.to(k_BGND.dtype) for x in travelling)
        return [dq_BGRMD.flatten(1, 2).to(q_BHMD.dtype), dk_BGND, dv_BGNE]

    def _around(self, own: Tensors) -> Iterator[tuple[int, Tensors]]:
        """Every rank's keys and values, one's own first, with whose they are."""
        held = own
        for step in range(self.world):
            source = (self.rank - step) % self.world
            coming: Tensors = []
            pending: list[Any] = []
            if step + 1 < self.world:
                coming, pending = self._pass_on(held, (source - 1) % self.world)
            yield source, held
            _wait(pending)
            held = coming

    def _pass_on(self, held: Tensors, coming_from: int) -> tuple[Tensors, list[Any]]:
        """Send to the next rank, receive what the previous one holds: the shard of one rank."""
        count = sum(span.rows.stop - span.rows.start for span in self.keys[coming_from])
        held = [x.contiguous() for x in held]
        coming = [x.new_empty(*x.shape[:2], count, x.shape[3]) for x in held]
        following, previous = (self.rank + 1) % self.world, (self.rank - 1) % self.world
        operations = [dist.P2POp(dist.isend, x, following) for x in held]
        operations += [dist.P2POp(dist.irecv, x, previous) for x in coming]
        return coming, dist.batch_isend_irecv(operations)

    def _meetings(self, source: int) -> Iterator[tuple[slice, slice, torch.Tensor | None]]:
        """Chunks of own queries and of another's keys that meet, and what is hidden in them."""
        for rows, first_row in self.rows:
            for keys, first_key in self.keys[source]:
                queries, count = rows.stop - rows.start, keys.stop - keys.start
                if not self.is_causal or first_key + count - 1 <= first_row:
                    yield rows, keys, None
                elif first_key <= first_row + queries - 1:
                    row_m1 = first_row + torch.arange(queries)[:, None]
                    yield rows, keys, first_key + torch.arange(count) > row_m1

    def _queries(self, x_BHMD: torch.Tensor, like_BGND: torch.Tensor) -> torch.Tensor:
        """By key head, in the working precision."""
        work = torch.promote_types(x_BHMD.dtype, torch.float32)
        return torch.unflatten(x_BHMD, 1, (like_BGND.shape[1], -1)).to(work)

    def _logits(
        self, q_BGRmD: torch.Tensor, k_BGnD: torch.Tensor, hidden_mn: torch.Tensor | None
    ) -> torch.Tensor:
        logits_BGRmn = q_BGRmD @ k_BGnD[:, :, None].to(q_BGRmD.dtype).mT * self.scale
        if hidden_mn is None:
            return logits_BGRmn
        return logits_BGRmn.masked_fill(hidden_mn.to(logits_BGRmn.device), float("-inf"))


def _finite(top: torch.Tensor) -> torch.Tensor:
    """Rows that have seen no key yet: their weights are 0, and no difference of infinities."""
    return top.masked_fill(top == float("-inf"), 0.0)


def _wait(pending: list[Any]) -> None:
    for operation in pending:
        operation.wait()


def main() -> None:
    """Answer calls until there are no more, each by the method of that name."""
    rank, world, device = int(sys.argv[2]), int(sys.argv[3]), torch.device(sys.argv[4])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=sys.argv[5], rank=rank, world_size=world)
    torch.set_num_threads(1)
    calls = Connection(int(sys.argv[1]))
    while True:
        try:
            name, told, tensors = pickle.loads(calls.recv_bytes())
        except EOFError:  # whoever asked is gone
            return
        try:
            with torch.no_grad():
                ring = Ring(rank, world, **told)
                found = getattr(ring, name)(*(x.to(device) for x in tensors))
            answer: Tensors | str = [x.cpu() for x in found]
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        # Not send(): torch would pass file descriptors on, which needs a common ancestor.
        calls.send_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    main()
