"""Real tensors pass, whatever their strides; autograd's expanded gradients do, too."""

from __future__ import annotations

import torch

from attnbench.watch.storage import not_real


def test_every_way_of_laying_out_real_memory_passes() -> None:
    x = torch.randn(2, 3, 5, 7)
    whole = torch.randn(2, 5, 3, 21)
    for real in (
        x, x.transpose(1, 2), x.permute(3, 1, 0, 2), x[..., ::2], whole[..., 7:14].transpose(1, 2),
        x[:1, :1], x[:, :, 1:2], torch.empty(0, 3), torch.tensor(1.0),
        x.clone().requires_grad_() * 2,
    ):  # fmt: skip
        assert not_real("x", real) is None, (real.shape, real.stride())


def test_an_expanded_tensor_is_a_gradient_but_no_output() -> None:
    x = torch.randn(1, 3, 1, 7).expand(2, 3, 5, 7)
    assert "elements share memory" in (not_real("out", x) or "")
    assert not_real("dv", x, may_repeat=True) is None


def test_a_tensor_of_vmap_is_lazy() -> None:
    seen = []
    torch.vmap(lambda x: seen.append(not_real("out", x)) or x)(torch.randn(2, 3))
    assert "a wrapper of functorch" in str(seen[0])
