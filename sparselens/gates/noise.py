"""Uniform noise for the gates: fresh from torch's generator, or a function of its place in a run.

`RowNoise` gives whole tensors to the eager gates. Fused attention asks for each number where it needs it: two words
per row (`row_words`), mixed with the key's number (`uniform_at`). Words depend on the seed, the step, the layer, the
row of the global batch, the head and the query; so neither tiles nor a split of the batch change a number.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Uniform = Float[Tensor, "batch head query_pos key_pos"]
Noise = Callable[[int, torch.Size, torch.device], Float[Tensor, "batch head query_pos key_pos"]]
Words = Int[Tensor, "word=2 batch head query_pos"]  # 32 bits each

_SMALLEST = 2.0**-25  # half a step of float32's torch.rand: keeps log(u) and u / (u + ...) finite
_WORD = 2**32 - 1
_STEP = 0x9E3779B9  # so that zeros do not stay zeros
# lowbias32, https://github.com/skeeto/hash-prospector. The second is 0x846CA68B: as a negative number its products with
# 32 bits fit into 64, and mean the same modulo 2**32
_FACTORS = (0x7FEB352D, 0x846CA68B - 2**32)


def uniform_noise(layer: int, shape: torch.Size, device: torch.device) -> Uniform:  # noqa: ARG001 - of type Noise
    """Fresh uniform numbers in (0, 1) from the device's default generator, as dropout draws them."""
    return torch.rand(shape, device=device).clamp_min_(_SMALLEST)


def seed_from(*parts: int) -> int:
    """One seed from several numbers, without patterns between neighbours. 32 bits: CPU generators ignore the rest."""
    key = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big")


@dataclass(frozen=True)
class RowNoise:
    """Uniform numbers in (0, 1) that depend only on (seed, step, layer, row of the global batch).

    However the rows are split over processes, micro-batches or a checkpointed recomputation, a row meets the same
    noise; so a resumed run, a run in two processes and a run in one are the same run. Fused attention meets the same
    noise on every device; eager attention on a CPU draws other numbers, from a generator that is faster there.
    """

    seed: int
    step: int
    first_row: int = 0

    def __call__(self, layer: int, shape: torch.Size, device: torch.device) -> Uniform:
        """The numbers of one layer for `shape[0]` rows from `first_row` on."""
        seed = seed_from(self.seed, self.step, layer)
        if device.type == "cpu":
            return _uniform_on_cpu(seed, self.first_row, shape)
        return hashed_uniform(row_words(seed, self.first_row, shape, device), shape[-1])


def words_of(noise: Noise, layer: int, shape: torch.Size, device: torch.device) -> Words:
    """What fused attention makes its noise of. Noise that knows no rows gives a fresh seed from torch's generator."""
    if isinstance(noise, RowNoise):
        return row_words(seed_from(noise.seed, noise.step, layer), noise.first_row, shape, device)
    return row_words(int(torch.randint(2**32, ())), 0, shape, device)  # drawn on the CPU, so as not to wait for the GPU


def row_words(seed: int, first_row: int, shape: torch.Size, device: torch.device) -> Words:
    """Two words for every (row, head, query) of `shape`: one could be the same, or nearly so, for two of many rows."""
    words = torch.tensor([seed, seed ^ 0x5BD1E995]).reshape(2, 1, 1, 1).to(device, non_blocking=True)
    starts = (first_row, 0, 0)
    for axis, (start, size) in enumerate(zip(starts, shape[:3], strict=True)):
        place = torch.arange(start, start + size, device=device).reshape([-1 if i == axis else 1 for i in range(3)])
        words = _mixed((words ^ place) + _STEP & _WORD)
    return words


def uniform_at(word: Tensor, other: Tensor, key: Tensor) -> Tensor:
    """The numbers of a row with these two words at these keys; all three broadcast. The middles of 2**23 equal steps.

    The second word enters between two rounds, so that no two rows have the same numbers in another order.
    """
    bits = word ^ key
    bits = (bits ^ (bits >> 16)) * _FACTORS[0] & _WORD
    bits = bits ^ other
    bits = (bits ^ (bits >> 15)) * _FACTORS[1] & _WORD
    bits = bits ^ (bits >> 16)
    return ((bits >> 9).to(torch.float32) + 0.5) * 2.0**-23


def hashed_uniform(words: Words, keys: int) -> Uniform:
    """All the numbers that fused attention meets, as one tensor."""
    return uniform_at(words[0, ..., None], words[1, ..., None], torch.arange(keys, device=words.device))


def _mixed(word: Tensor) -> Tensor:
    word = (word ^ (word >> 16)) * _FACTORS[0] & _WORD
    word = (word ^ (word >> 15)) * _FACTORS[1] & _WORD
    return word ^ (word >> 16)


def _uniform_on_cpu(seed: int, first_row: int, shape: torch.Size) -> Uniform:
    """Every row at its place in one stream of NumPy's PCG64, which can jump there and is far faster than torch's.

    16 random bits each, since drawing them is what noise costs: the middles of 2**16 equal steps. So a gate opens with
    its stated probability to within 2**-17, and the logistic noise that the numbers stand for ends at +-11.8.
    """
    numbers = math.prod(shape[1:])
    draws = (numbers + 3) // 4  # 64 bits each
    bits = np.random.PCG64(seed).advance(first_row * draws).random_raw(shape[0] * draws).view(np.int16)
    uniform = torch.from_numpy(bits).float().add_(2.0**15 + 0.5).mul_(2.0**-16)
    return uniform.view(shape[0], -1)[:, :numbers].reshape(shape)
