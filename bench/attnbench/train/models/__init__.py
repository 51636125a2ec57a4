"""Models that learn: Hugging Face architectures and our own, with anybody's attention inside.

``presets`` names them; ``hugging`` and ``own`` build them; ``bridge`` makes a plugin a module,
``interface`` brings it into transformers; ``finetune`` says what learns; ``generate`` makes
tokens with what was learned.
"""

from attnbench.train.models.build import build_model

__all__ = ["build_model"]
