"""Context parallelism: attention whose sequence lies in several processes.

``rank`` is what each of them does, ``ranks`` starts them and talks to them, ``attention`` is
what attnbench sees.
"""

from .attention import RingAttention, TorchRing

__all__ = ["RingAttention", "TorchRing"]
