"""Uniform noise for the gates: drawn from torch's generator, or a deterministic function of the place in a run.

`RowNoise` gives eager gates whole tensors. Fused attention computes each number where it needs it, by mixing two words
per row (`row_words`) with the index of the key (`uniform_at`). The words depend on the seed, the step, the layer, the
row of the global batch, the head and the query, so neither tiling nor splitting the batch changes a number.
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

_SMALLEST = 2.0**-25  # half a step of float32's torch.rand; keeps log(u) and u / (u + ...) finite
_WORD = 2**32 - 1
_STEP = 0x9E3779B9  # the hash maps 0 to 0, so add a constant first
# lowbias32, https://github.com/skeeto/hash-prospector. The second factor is 0x846CA68B, written as a negative number:
# equal modulo 2**32, and its products with 32-bit numbers fit into 64 bits
_FACTORS = (0x7FEB352D, 0x846CA68B - 2**32)


def uniform_noise(layer: int, shape: torch.Size, device: torch.device) -> Uniform:  # noqa: ARG001 - of type Noise
    """Uniform numbers in (0, 1) from the device's default generator, as dropout uses."""
    return torch.rand(shape, device=device).clamp_min_(_SMALLEST)


def seed_from(*parts: int) -> int:
    """Hash several numbers into one 32-bit seed (CPU generators ignore higher bits); nearby inputs are unrelated."""
    key = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big")


@dataclass(frozen=True)
class RowNoise:
    """Uniform numbers in (0, 1) that depend only on (seed, step, layer, row of the global batch).

    A row gets the same noise however rows are split over processes or micro-batches, and again when it is recomputed
    for a checkpointed gradient. So a resumed run, a run in one process and a run in two are the same run. Fused
    attention gets the same noise on every device; eager attention on a CPU uses a different, faster generator.
    """

    seed: int
    step: int
    first_row: int = 0

    def __call__(self, layer: int, shape: torch.Size, device: torch.device) -> Uniform:
        """The noise of one layer for `shape[0]` rows, starting at `first_row`."""
        seed = seed_from(self.seed, self.step, layer)
        if device.type == "cpu":
            return _uniform_on_cpu(seed, self.first_row, shape)
        return hashed_uniform(row_words(seed, self.first_row, shape, device), shape[-1])


def words_of(noise: Noise, layer: int, shape: torch.Size, device: torch.device) -> Words:
    """Seeds of the noise of fused attention; for noise other than `RowNoise`, drawn from torch's generator."""
    if isinstance(noise, RowNoise):
        return row_words(seed_from(noise.seed, noise.step, layer), noise.first_row, shape, device)
    return row_words(int(torch.randint(2**32, ())), 0, shape, device)  # drawn on the CPU: no wait for the GPU


def row_words(seed: int, first_row: int, shape: torch.Size, device: torch.device) -> Words:
    """Two words for every (row, head, query) of `shape`: among many rows, a single word could collide."""
    words = torch.tensor([seed, seed ^ 0x5BD1E995]).reshape(2, 1, 1, 1).to(device, non_blocking=True)
    starts = (first_row, 0, 0)
    for axis, (start, size) in enumerate(zip(starts, shape[:3], strict=True)):
        place = torch.arange(start, start + size, device=device).reshape([-1 if i == axis else 1 for i in range(3)])
        words = _mixed((words ^ place) + _STEP & _WORD)
    return words


def uniform_at(word: Tensor, other: Tensor, key: Tensor) -> Tensor:
    """The noise of rows with these two words at these keys (all three broadcast): midpoints of 2**23 equal intervals.

    The second word enters between two rounds, so that no row has the same numbers as another in a different order.
    """
    bits = word ^ key
    bits = (bits ^ (bits >> 16)) * _FACTORS[0] & _WORD
    bits = bits ^ other
    bits = (bits ^ (bits >> 15)) * _FACTORS[1] & _WORD
    bits = bits ^ (bits >> 16)
    return ((bits >> 9).to(torch.float32) + 0.5) * 2.0**-23


def hashed_uniform(words: Words, keys: int) -> Uniform:
    """All the noise of fused attention as one tensor."""
    return uniform_at(words[0, ..., None], words[1, ..., None], torch.arange(keys, device=words.device))


def _mixed(word: Tensor) -> Tensor:
    word = (word ^ (word >> 16)) * _FACTORS[0] & _WORD
    word = (word ^ (word >> 15)) * _FACTORS[1] & _WORD
    return word ^ (word >> 16)


def _uniform_on_cpu(seed: int, first_row: int, shape: torch.Size) -> Uniform:
    """Every row at its place in one stream of NumPy's PCG64, which can jump ahead and is far faster than torch's.

    Drawing bits is the main cost, so each number has 16: midpoints of 2**16 equal intervals. A gate's probability of
    opening is therefore exact to within 2**-17, and the logistic noise made from these numbers stays within +-11.8.
    """
    numbers = math.prod(shape[1:])
    draws = (numbers + 3) // 4  # 64 bits each
    bits = np.random.PCG64(seed).advance(first_row * draws).random_raw(shape[0] * draws).view(np.int16)
    uniform = torch.from_numpy(bits).float().add_(2.0**15 + 0.5).mul_(2.0**-16)
    return uniform.view(shape[0], -1)[:, :numbers].reshape(shape)
