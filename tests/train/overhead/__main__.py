"""What the timed step costs beside a loop written by hand: ``python tests/train/overhead``.

The same model learns the same batches twice: by ``Trainer.step``, as training suites time it,
and by the few lines that anybody would write (nanoGPT's loop). Rounds of both are interleaved
in random order; the ratio of each round's medians is one number, and their median with its
95 % interval is printed. The claim: at least 0.98 of the tokens a second of the loop by hand.
Exit code 0 if the whole interval is above that, 1 if not.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from attnbench.measure.sampling import Budget, sample
from attnbench.stats import median_interval
from attnbench.train.attentions import reference
from attnbench.train.clock import StepClock
from attnbench.train.data import make_task
from attnbench.train.optim import lr_at, make_optimizer
from attnbench.train.roles import IGNORED, Batch
from attnbench.train.setup import make_trainer
from attnbench.train.workload import Workload

LEAST = 0.98
_RING = 4
_SEED = 0


def by_hand(
    workload: Workload, batches: Sequence[Batch], device: torch.device
) -> Callable[[], None]:
    """The loop of nanoGPT, one step a call."""
    model = make_trainer(workload, reference(), device, _SEED).model
    optimizer = make_optimizer(workload, model)
    steps, ring = itertools.count(), itertools.cycle(batches)

    def step() -> None:
        batch, number = next(ring), next(steps)
        lr = lr_at(workload, min(number, workload.steps - 1))
        for group in optimizer.param_groups:
            group["lr"] = lr
        logits_BTV = model(**batch.inputs)["tokens"]
        targets_BT = batch.targets["tokens"]
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), workload.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def as_timed(
    workload: Workload, batches: Sequence[Batch], device: torch.device
) -> Callable[[], None]:
    """What training suites time."""
    trainer = make_trainer(workload, reference(), device, _SEED)
    ring = itertools.cycle([trainer.put(batch) for batch in batches])

    def step() -> None:
        trainer.step(next(ring))

    return step


def compare(workload: Workload, device: torch.device, rounds: int) -> tuple[float, float, float]:
    """Tokens a second of the timed step ÷ those of the loop by hand: median and 95 % interval."""
    task = make_task(workload, _SEED)
    batches = [
        Batch(
            {name: x.to(device) for name, x in batch.inputs.items()},
            {name: x.to(device) for name, x in batch.targets.items()},
            batch.tokens,
        )
        for batch in (task.batch(i) for i in range(_RING))
    ]
    calls = {
        "hand": by_hand(workload, batches, device),
        "timed": as_timed(workload, batches, device),
    }
    budget = Budget(precision=1e-6, min_rounds=rounds, samples=5, warmup_s=0.5, max_s=1e-9)
    taken = sample(calls, StepClock(device), budget, _SEED)
    ratios = [
        statistics.median(hand) / statistics.median(timed)
        for hand, timed in zip(taken["hand"].rounds, taken["timed"].rounds, strict=True)
    ]
    found = median_interval([[ratio] for ratio in ratios])
    return found.median, found.low, found.high


def main() -> int:
    """0 if the claim is kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="gpt2-tiny")
    parser.add_argument("--seqlen", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=200)
    words = parser.parse_args()
    workload = Workload.of(model=words.model, task="text", seqlen=words.seqlen, batch=words.batch)
    median, low, high = compare(workload, torch.device(words.device), words.rounds)
    print(
        f"{workload.label}: timed step at {median:.4f} [{low:.4f}, {high:.4f}] of the tokens/s of "
        f"a loop by hand, at least {LEAST} wanted, over {words.rounds} rounds"
    )
    return 0 if low >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
