"""Attention of libraries that people use: one file each, none of them required.

Nothing here imports a library before a problem is built, so every adapter is listed
everywhere, with what it lacks: package, version or GPU. An adapter passes its arguments and
nothing else; where the library has no name for what is asked, it is refused. ``package`` says
what is installed, ``adapter`` what all adapters have in common.
"""

from __future__ import annotations

from .cudnn_frontend import CudnnFrontend
from .flash_attn_2 import FlashAttn2
from .flash_attn_3 import FlashAttn3
from .flash_attn_4 import FlashAttn4
from .flash_linear_attention import Fla
from .flashinfer import FlashInferDecode, FlashInferPrefill
from .natten import Natten
from .sageattention import SageAttention
from .torch_activated import SdpaFa3, SdpaFa4
from .xformers import XFormers, XFormersCutlass, XFormersFlash, XFormersSplitK

__all__ = [
    "CudnnFrontend",
    "Fla",
    "FlashAttn2",
    "FlashAttn3",
    "FlashAttn4",
    "FlashInferDecode",
    "FlashInferPrefill",
    "Natten",
    "SageAttention",
    "SdpaFa3",
    "SdpaFa4",
    "XFormers",
    "XFormersCutlass",
    "XFormersFlash",
    "XFormersSplitK",
]
