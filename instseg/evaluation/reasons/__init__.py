"""Why a detector scores what it scores: what it gets wrong, where, and what that costs."""

from instseg.evaluation.reasons.outcomes import ImageOutcome
from instseg.evaluation.reasons.reasons import CategoryReasons, Reasons, find_reasons

__all__ = ["CategoryReasons", "ImageOutcome", "Reasons", "find_reasons"]
