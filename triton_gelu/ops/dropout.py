"""The operators with dropout of their result, of those without: see `core/dropout.py`."""

from __future__ import annotations

from ..core.dropout import DropoutOp
from .bias_geglu import BIAS_GEGLU
from .bias_gelu import BIAS_GELU
from .bias_gelu_mul import BIAS_GELU_MUL

BIAS_GELU_DROPOUT = DropoutOp(BIAS_GELU)
BIAS_GEGLU_DROPOUT = DropoutOp(BIAS_GEGLU)
BIAS_GELU_MUL_DROPOUT = DropoutOp(BIAS_GELU_MUL)
