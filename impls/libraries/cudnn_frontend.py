"""``cudnn-frontend``: cuDNN's fused attention through NVIDIA's own Python front end.

The graphs of the forward and of the backward are built once for the shapes and strides of a
problem; what the cuDNN on this machine does not support, it refuses in its own words.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

from typing import Any

import torch

from attnbench import ForwardBackward, Problem, Unsupported, make_inputs, register

from .adapter import Built, Library
from .package import Package

PACKAGE = Package(
    "nvidia-cudnn-frontend", "cudnn", (1, 12), "pip install nvidia-cudnn-frontend"
)  # fmt: skip
Tensors = tuple[torch.Tensor, ...]


@register("cudnn-frontend")
class CudnnFrontend(Library):
    """cuDNN's SDPA graphs, forward and backward, through nvidia-cudnn-frontend."""

    package = PACKAGE
    layout = "BHSD"
    masks = ("full", "causal", "window")
    version = PACKAGE.version()
    source = "https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html"

    def prepare(self, problem: Problem, device: torch.device) -> Built:
        cudnn: Any = PACKAGE.load()
        try:
            graphs = _Graphs(cudnn, problem, device)
        except cudnn.cudnnGraphNotSupportedError as error:
            raise Unsupported(f"cuDNN refuses: {' '.join(str(error).split())}") from error
        return ForwardBackward(graphs.forward, graphs.backward)


class _Graphs:
    """Both graphs of one problem."""

    def __init__(self, cudnn: Any, problem: Problem, device: torch.device) -> None:
        mask: Any = problem.mask
        self.cudnn, self.device, self.handle = cudnn, device, cudnn.create_handle()
        inputs = make_inputs(problem, seed=0, device=device)
        self.likes = inputs.qkv()
        self.out_like = torch.empty_like(inputs.grad_out_BHME)
        self.lse_like = self.out_like.new_empty(*self.out_like.shape[:3], 1, dtype=torch.float32)
        self.wants_grad = problem.direction != "forward"
        self.options: dict[str, Any] = {"attn_scale": problem.softmax_scale}
        if mask.kind != "full":
            self.options["diagonal_alignment"] = cudnn.diagonal_alignment.BOTTOM_RIGHT
            self.options["diagonal_band_right_bound"] = 0 if mask.is_causal else mask.window - 1
        if mask.kind == "window":  # keys j with i − j < left_bound are kept
            self.options["diagonal_band_left_bound"] = mask.window
        half = {"float16": "HALF", "bfloat16": "BFLOAT16"}[problem.dtype]
        self.io_type = getattr(cudnn.data_type, half)
        self.ahead = self._forward_graph()
        self.back = self._backward_graph() if self.wants_grad else None

    def forward(self, *qkv: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        given = [_laid_out(x, like) for x, like in zip(qkv, self.likes, strict=True)]
        out_BHME, lse_BHM1 = torch.empty_like(self.out_like), torch.empty_like(self.lse_like)
        results = (out_BHME, lse_BHM1) if self.wants_grad else (out_BHME,)
        self._execute(self.ahead, (*given, *results))
        return out_BHME, (*given, *results)

    def backward(self, saved: Tensors, grad_BHME: torch.Tensor) -> Tensors3:
        assert self.back is not None, "built for the forward alone"
        gradients = tuple(torch.empty_like(x) for x in self.likes)
        grad = _laid_out(grad_BHME, self.out_like)
        self._execute(self.back, (*saved, grad, *gradients))
        return gradients[0], gradients[1], gradients[2]

    def _forward_graph(self) -> tuple[Any, list[Any]]:
        graph, inputs = self._graph(self.likes)
        q, k, v = inputs
        out, lse = graph.sdpa(
            name="sdpa", q=q, k=k, v=v, generate_stats=self.wants_grad, **self.options
        )
        outputs = [_output(out, self.out_like)]
        if self.wants_grad:
            outputs.append(_output(lse, self.lse_like))
            lse.set_data_type(self.cudnn.data_type.FLOAT)
        return self._finish(graph), [*inputs, *outputs]

    def _backward_graph(self) -> tuple[Any, list[Any]]:
        likes = (*self.likes, self.out_like, self.lse_like, self.out_like)
        graph, inputs = self._graph(likes)
        names = ("q", "k", "v", "o", "stats", "dO")
        gradients = graph.sdpa_backward(
            name="sdpa_backward", **dict(zip(names, inputs, strict=True)), **self.options
        )
        outputs = [_output(x, like) for x, like in zip(gradients, self.likes, strict=True)]
        return self._finish(graph), [*inputs, *outputs]

    def _graph(self, likes: Tensors) -> tuple[Any, list[Any]]:
        wide = self.cudnn.data_type.FLOAT
        graph = self.cudnn.pygraph(
            io_data_type=self.io_type, intermediate_data_type=wide, compute_data_type=wide,
            handle=self.handle,
        )  # fmt: skip
        return graph, [graph.tensor_like(x) for x in likes]

    def _finish(self, graph: Any) -> Any:
        modes = self.cudnn.heur_mode
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([modes.A, modes.FALLBACK])
        graph.check_support()
        graph.build_plans()
        return graph

    def _execute(self, planned: tuple[Any, list[Any]], tensors: Tensors) -> None:
        graph, names = planned
        if self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device).cuda_stream
            self.cudnn.set_stream(handle=self.handle, stream=stream)
        size = graph.get_workspace_size()
        workspace = torch.empty(size, dtype=torch.uint8, device=self.device)
        pairs = dict(zip(names, tensors, strict=True))
        graph.execute(pairs, workspace, handle=self.handle)


Tensors3 = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _output(tensor: Any, like: torch.Tensor) -> Any:
    tensor.set_output(True).set_dim(list(like.shape)).set_stride(list(like.stride()))
    return tensor


def _laid_out(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """In the strides that the graph was built for, copied if they are others.

    A graph does not look at the strides of what it is given.
    """
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)
