"""Philox-4x32: random bits that are a function of a key and a counter, in PyTorch's integer operations.

From Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011, whose tests it passes from 7
rounds on. Whoever knows the key can compute the bits of any place again, so that nothing else has to be saved.
"""

from __future__ import annotations

from typing import Any

ROUNDS = 7
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
WORD = 0xFFFFFFFF

Words = tuple[Any, ...]
"""Unsigned numbers of 32 bits: integers, or int64 tensors of them, which broadcast."""


def philox(key: Words, counter: Words, rounds: int = ROUNDS) -> Words:
    """The four words of a key of two words and a counter of four."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(rounds):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # modulo 2^64, whatever its sign
        c0, c1 = ((second >> 32) & WORD) ^ c1 ^ k0, second & WORD
        c2, c3 = ((first >> 32) & WORD) ^ c3 ^ k1, first & WORD
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def words_of(number: Any) -> Words:
    """The low and the high word of a number of 64 bits."""
    return number & WORD, (number >> 32) & WORD
