"""The ``generation`` part of a record: when the tokens came, whether they are right, bytes.

Only what was measured or counted; tokens a second and percentiles are derived on load
(``train.generation.derived``).
"""

from __future__ import annotations

from pydantic import model_validator

from attnbench.record_part import Part
from attnbench.samples import Samples


class Agreement(Part):
    """How far the logits are from those without a cache; see ``train.generation.truth``."""

    ok: bool | None  # None: an approximate method; its distance is told, not judged
    reference: str
    max_error: float | None = None  # of a logit; None if one is not finite
    ratio: float | None = None  # the largest of error ÷ what was allowed there
    sequence: int | None = None  # where that was: of the batch,
    token: int | None = None  # and which new one; the prompt says number 0
    error: float | None = None  # there
    allowed: float | None = None  # there
    places: int  # that were compared: sequences × new tokens
    reruns: int  # of the reference, from which the bound was found
    rule: str  # how, in words


class ServingMemory(Part):
    """Bytes of one generation by what they are for."""

    weights_bytes: int  # buffers included, and what an implementation has learned
    cache_counted_bytes: int  # keys and values of all tokens read, by the model's sizes
    cache_bytes: int  # that are allocated for them
    working_bytes: int  # the highest point beyond weights and cache
    method: str

    @property
    def peak_bytes(self) -> int:
        """Everything at the highest point."""
        return self.weights_bytes + self.cache_bytes + self.working_bytes


class Generated(Part):
    """One generation.

    The record's own samples are of whole generations; these are of their parts, stamped in
    the same calls. All have the same rounds.
    """

    first: Samples  # until the first token is there: the prompt is read
    rest: Samples  # from there until the last one
    between: Samples  # from one token to the next; thinned evenly by rank in each round
    gaps: int  # between tokens that were measured; ``between`` keeps so many or fewer
    agreement: Agreement
    memory: ServingMemory
    parameters: int  # of the model; tied ones count once
    flops: int  # products of a whole generation; an approximate method's by its own formula
    prefill_flops: int | None = None  # of these, until the first token is there
    build_s: float  # the first generation, with everything that had to be built for it

    @model_validator(mode="after")
    def _plausible(self) -> Generated:
        kept = sum(len(round_) for process in self.between.times_s for round_ in process)
        if kept > self.gaps:
            raise ValueError("there cannot be more gaps kept than were measured")
        return self
