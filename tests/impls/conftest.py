"""What the tests of the implementations share."""

from __future__ import annotations

from installed import install, on_cpu

__all__ = ["install", "on_cpu"]
