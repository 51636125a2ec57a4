"""A stand-in for flashinfer: ragged prefill and single decode on CPU, with plain operations."""

from __future__ import annotations

import torch
from plain import attend, offsets


class BatchPrefillWithRaggedKVCacheWrapper:
    def __init__(
        self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, qo_indptr_buf=None,
        kv_indptr_buf=None, custom_mask_buf=None, mask_indptr_buf=None, backend="auto",
        jit_args=None, jit_kwargs=None,
    ) -> None:  # fmt: skip
        assert float_workspace_buffer.dtype == torch.uint8
        assert kv_layout == "NHD"

    def plan(
        self, qo_indptr, kv_indptr, num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo=None,
        custom_mask=None, packed_custom_mask=None, causal=False, pos_encoding_mode="NONE",
        use_fp16_qk_reduction=False, window_left=-1, logits_soft_cap=None, sm_scale=None,
        rope_scale=None, rope_theta=None, q_data_type="float16", kv_data_type=None,
        o_data_type=None,
    ) -> None:  # fmt: skip
        assert qo_indptr.dtype == kv_indptr.dtype == torch.int32
        self.starts = (qo_indptr.tolist(), kv_indptr.tolist())
        self.shapes = ((num_qo_heads, head_dim_qk), (num_kv_heads, head_dim_qk))
        self.dtype = q_data_type
        self.options = (causal, window_left, logits_soft_cap, sm_scale)

    def run(self, q, k, v, *args, out=None, lse=None, return_lse=False):
        assert (tuple(q.shape[1:]), tuple(k.shape[1:])) == self.shapes
        assert q.dtype == self.dtype
        queries, keys = self.starts
        assert (len(q), len(k)) == (queries[-1], keys[-1])
        outs = [
            _one(q[queries[i] : queries[i + 1]], k[keys[i] : keys[i + 1]],
                 v[keys[i] : keys[i + 1]], *self.options)
            for i in range(len(keys) - 1)
        ]  # fmt: skip
        return torch.cat(outs)


def single_decode_with_kv_cache(
    q, k, v, kv_layout="NHD", pos_encoding_mode="NONE", use_tensor_cores=False, q_scale=None,
    k_scale=None, v_scale=None, window_left=-1, logits_soft_cap=None, sm_scale=None,
    rope_scale=None, rope_theta=None, return_lse=False,
):  # fmt: skip
    assert (q.ndim, k.ndim, kv_layout) == (2, 3, "NHD")
    return _one(q[None], k, v, False, window_left, logits_soft_cap, sm_scale)[0]


def _one(q, k, v, causal, window_left, soft_cap, scale):
    ahead = offsets(len(q), len(k))
    allowed = ahead <= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
    if window_left >= 0:
        allowed &= ahead >= -window_left
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = attend(q, k, v, scale=scale, allowed_MN=allowed, softcap=soft_cap or 0.0)
    return out[0].transpose(0, 1)
