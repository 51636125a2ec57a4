"""What tests of shared training have in common: two gloo ranks without torchrun, and breaking them.

The ranks come from a fork server that has torch imported once, so that each test takes a
second instead of ten.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

from attnbench.train.workload import Workload

_LIMIT_S = 120.0


def learn_shared(of: Workload, name: str = "naive", broken: str = "") -> list[dict[str, Any]]:
    """By rank, what it learned: losses, evaluations, and sums of the parameters it ended with.

    Args:
        of: with parallel and processes.
        name: of the attention.
        broken: what to break; see ``_break``.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["attnbench.train.ranks.trainer", "transformers", "sharing"])
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(rank, folder, of.to_json(), name, broken))
            for rank in range(of.processes)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(_LIMIT_S)
            rank.kill()
        texts = [Path(folder, f"{rank}.json").read_text() for rank in range(of.processes)]
        return [json.loads(text) for text in texts]


def _rank(rank: int, folder: str, fields: dict[str, Any], name: str, broken: str) -> None:
    import torch
    import torch._dynamo.utils
    import torch.distributed as dist
    from tiny import attention

    from attnbench.train import anatomy
    from attnbench.train.attentions import reference
    from attnbench.train.learning import learn
    from attnbench.train.models import build_model
    from attnbench.train.ranks.trainer import RankTrainer, Share, agree_on_losses, share_of

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    of = Workload.from_json(fields)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=of.processes)
    group = dist.group.WORLD
    assert group is not None
    try:
        task = Share(of, 0, rank, group)
        solver = reference() if name == "naive" else attention(name)
        torch.manual_seed(0)
        device = torch.device("cpu")
        model = build_model(share_of(of), task.own, solver, device, 0)
        trainer = RankTrainer(of, model.train(), device, group)
        _break(broken, trainer, task)
        curve = learn(trainer, task, rank * (of.dropout > 0))
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
        told: dict[str, Any] = {
            "losses": agree_on_losses(curve.losses, group),
            "evaluations": [e.model_dump() for e in curve.evaluations],
            "sums": [float(p.detach().double().sum()) for p in whole],
            "skipped": getattr(trainer, "skipped", 0),
            "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
            "held": sum(anatomy._bytes(p) for p in model.parameters()),
        }
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}"}
    Path(folder, f"{rank}.json").write_text(json.dumps(told))
    if "error" not in told:  # a rank that failed must not wait for the others
        dist.barrier()
    os._exit(0)


def _break(how: str, trainer: Any, task: Any) -> None:
    """Make shared training wrong in one way."""
    import torch.distributed as dist

    if how == "no averaging":  # each rank learns from its own rows alone
        trainer._call = trainer.model
    elif how == "same rows":  # every rank takes the first one's
        task._rank = 0
    elif how == "own mean":  # losses weighted by what each rank predicts, not all
        from attnbench.train.ranks import trainer as module

        module._over_ranks = lambda counts, group: counts
    elif how == "summed":  # gradients added up where their mean is needed

        def doubled(loss: Any) -> None:
            (loss * dist.get_world_size()).backward()

        trainer.backward = doubled
        trainer.workload = trainer.workload.replace(clip=0.0)
    elif how == "overflow":  # a gradient of rank 1's own part is infinite
        trainer.update = _overflowing(trainer)
    elif how:
        raise ValueError(how)


def _overflowing(trainer: Any) -> Any:
    import torch.distributed as dist

    update, scaler = trainer.update, trainer._scaler
    trainer.skipped = 0

    def spoilt() -> None:
        if dist.get_rank() == 1 or trainer.workload.parallel == "ddp":
            grad = trainer.parameters[-1].grad
            getattr(grad, "to_local", lambda: grad)().fill_(float("inf"))
        before = scaler.get_scale()
        update()
        trainer.skipped += scaler.get_scale() < before

    return spoilt
