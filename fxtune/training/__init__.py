"""Training a tuned model: what recipes and data say, on accelerate, to be gone on with exactly after a kill."""

from __future__ import annotations

from fxtune.training.denoising import denoised, with_model
from fxtune.training.evaluating import accelerator, evaluate
from fxtune.training.order import seed_of
from fxtune.training.run import Run, told_beside
from fxtune.training.tokenizing import tokenizer_of
from fxtune.training.tune import tune

__all__ = ["Run", "accelerator", "denoised", "evaluate", "seed_of", "tokenizer_of", "told_beside", "tune", "with_model"]
