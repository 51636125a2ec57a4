"""A stand-in for nvidia-cudnn-frontend: graphs of SDPA that run on CPU with plain operations.

Like a graph, it reads memory by the strides it was built with.
"""

from __future__ import annotations

from enum import Enum

import torch
from plain import attend, offsets

data_type = Enum("data_type", "HALF BFLOAT16 FLOAT")
heur_mode = Enum("heur_mode", "A B FALLBACK")
diagonal_alignment = Enum("diagonal_alignment", "TOP_LEFT BOTTOM_RIGHT")


class cudnnGraphNotSupportedError(Exception):  # its name there
    pass


def create_handle() -> object:
    return object()


class Tensor:
    def __init__(self, like: torch.Tensor | None = None) -> None:
        self.dim = None if like is None else like.shape
        self.stride = None if like is None else like.stride()

    def set_output(self, is_output):
        return self

    def set_data_type(self, dtype):
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self


class pygraph:  # its name there
    def __init__(
        self, *, io_data_type, intermediate_data_type, compute_data_type, handle=None
    ) -> None:
        self.is_built = False

    def tensor_like(self, tensor):
        return Tensor(tensor)

    def sdpa(
        self, q, k, v, is_inference=None, attn_scale=None, bias=None, use_causal_mask=False,
        diagonal_alignment=diagonal_alignment.TOP_LEFT, diagonal_band_left_bound=None,
        diagonal_band_right_bound=None, dropout=None, name="", generate_stats=None,
    ):  # fmt: skip
        self.inputs, self.backward = (q, k, v), False
        self.outputs = (Tensor(), Tensor() if generate_stats else None)
        self._mask(
            attn_scale, diagonal_alignment, diagonal_band_left_bound, diagonal_band_right_bound
        )
        return self.outputs

    def sdpa_backward(
        self, q, k, v, o, dO, stats, attn_scale=None, bias=None, use_causal_mask=False,
        diagonal_alignment=diagonal_alignment.TOP_LEFT, diagonal_band_left_bound=None,
        diagonal_band_right_bound=None, dropout=None, name="",
    ):  # fmt: skip
        self.inputs, self.backward = (q, k, v, o, dO, stats), True
        self.outputs = (Tensor(), Tensor(), Tensor())
        self._mask(
            attn_scale, diagonal_alignment, diagonal_band_left_bound, diagonal_band_right_bound
        )
        return self.outputs

    def _mask(self, scale, alignment, left, right) -> None:
        self.scale = scale
        seqlens = self.inputs[0].dim[2], self.inputs[1].dim[2]
        ahead = offsets(*seqlens, bottom_right=alignment is diagonal_alignment.BOTTOM_RIGHT)
        self.allowed = torch.ones_like(ahead, dtype=torch.bool)
        if left is not None:
            self.allowed &= -ahead < left
        if right is not None:
            self.allowed &= ahead <= right

    def validate(self):
        assert all(t.dim is not None for t in self.outputs if t is not None)

    def build_operation_graph(self):
        if self.inputs[0].dim[-1] % 8:
            raise cudnnGraphNotSupportedError("hidden_dim should be multiple of 8")

    def create_execution_plans(self, modes):
        assert modes == [heur_mode.A, heur_mode.FALLBACK]

    def check_support(self):
        pass

    def build_plans(self):
        self.is_built = True

    def get_workspace_size(self):
        return 16

    def execute(self, variant_pack, workspace, handle=None):
        assert self.is_built
        assert workspace.numel() == 16
        held = {t: x.as_strided(t.dim, t.stride) for t, x in variant_pack.items()}
        q, k, v = (held[t] for t in self.inputs[:3])
        if not self.backward:
            held[self.outputs[0]].copy_(self._attend(q, k, v))
            if self.outputs[1] is not None:
                held[self.outputs[1]].fill_(7.0)  # only handed on
            return
        assert bool((held[self.inputs[5]] == 7.0).all())
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            out = self._attend(*leaves)
        assert torch.equal(out, held[self.inputs[3]])
        for tensor, gradient in zip(
            self.outputs, torch.autograd.grad(out, leaves, held[self.inputs[4]]), strict=True
        ):
            held[tensor].copy_(gradient)

    def _attend(self, q, k, v):
        return attend(q, k, v, scale=self.scale, allowed_MN=self.allowed)
