"""The keys and values of earlier positions, kept for decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class KVCache:
    """Keys and values of a growing batch of sequences, in memory that is allocated once.

    Args:
        batch: sequences.
        heads: key and value heads (Hk; fewer than the query heads under grouped-query attention).
        capacity: positions that each sequence has room for.
        head_dim: width of a key; value_dim: width of a value (default: the same).
        dtype, device: of keys and values; default torch's.

    Attributes:
        keys [batch, heads, capacity, head_dim], values [batch, heads, capacity, value_dim]. What lies past a sequence's
        length is undefined, and never read by :func:`dlops.functional.attention_decode`.
        lengths: int32 [batch] on `device`: filled positions of each sequence.

    Holds no gradients: what `append` writes is cut off from its history.

    Example::

        cache = KVCache(batch, kv_heads, 4096, 128, dtype=torch.bfloat16)
        keys, values = cache.append(k, v)  # [batch, kv_heads, new, 128]
        out = dlops.functional.attention_decode(q, keys, values, cache.lengths)

    Rows of `q` stand at the end of their sequence, so every sequence must have got the same number of new positions. Prompts
    of different lengths, appended with `counts`, attend by ``scaled_dot_product_attention(q, k, v, is_causal=True)`` instead.

    Raises:
        ValueError: a size that is not positive.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        capacity: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        value_dim = head_dim if value_dim is None else value_dim
        sizes = dict(batch=batch, heads=heads, capacity=capacity, head_dim=head_dim, value_dim=value_dim)
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"KVCache: {name} must be positive: got {size}")
        with torch.inference_mode(False):  # tensors made in inference mode could not be written outside of it
            self.keys = torch.zeros(batch, heads, capacity, head_dim, dtype=dtype, device=device)
            self.values = torch.zeros(batch, heads, capacity, value_dim, dtype=dtype, device=device)
            self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        self._filled = [0] * batch  # `lengths`, where reading it does not wait for a GPU

    @property
    def batch(self) -> int:
        return self.keys.shape[0]

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    @property
    def length(self) -> int:
        """Of the longest sequence."""
        return max(self._filled)

    def append(self, k: Tensor, v: Tensor, counts: Sequence[int] | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Writes the next positions of every sequence behind what it has.

        Args:
            k: [batch, heads, new, head_dim]. v: [batch, heads, new, value_dim].
            counts: [batch]: how many of the new positions each sequence really has, the first ones (padding on the
                right); default: all. A tensor on a GPU is waited for.

        Returns:
            (keys, values): views [batch, heads, length, ...] of the cache up to the longest sequence.

        Raises:
            ValueError: shapes, dtypes, devices or counts that do not fit.
            RuntimeError: a sequence has no room for `new` more positions; nothing is written then.
        """
        for name, x, buffer in (("k", k, self.keys), ("v", v, self.values)):
            b, h, _, d = buffer.shape
            if x.dim() != 4 or (x.shape[0], x.shape[1], x.shape[3]) != (b, h, d):
                raise ValueError(f"KVCache.append: {name} has shape {list(x.shape)}, expected [{b}, {h}, new, {d}]")
            if x.dtype is not buffer.dtype or x.device != buffer.device:
                raise ValueError(
                    f"KVCache.append: {name} is {x.dtype} on {x.device}, the cache {buffer.dtype} on {buffer.device}"
                )
        new = k.shape[2]
        if v.shape[2] != new:
            raise ValueError(f"KVCache.append: k has {new} new positions, v {v.shape[2]}")
        grown = self._counted(counts, new)
        for b, filled in enumerate(self._filled):
            if filled + new > self.capacity:
                raise RuntimeError(
                    f"KVCache.append: sequence {b} has {filled} of {self.capacity} positions filled, {new} more do not fit"
                )
        with torch.no_grad():
            if len(set(self._filled)) == 1:
                at = slice(self._filled[0], self._filled[0] + new)
                self.keys[:, :, at] = k.detach()
                self.values[:, :, at] = v.detach()
            else:
                for b, filled in enumerate(self._filled):
                    self.keys[b, :, filled : filled + new] = k[b].detach()
                    self.values[b, :, filled : filled + new] = v[b].detach()
            self._set([filled + count for filled, count in zip(self._filled, grown)])
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def reset(self, sequence: int | None = None) -> None:
        """Empties the cache, or one sequence of it.

        Raises:
            IndexError: no such sequence.
        """
        if sequence is None:
            return self._set([0] * self.batch)
        if not -self.batch <= sequence < self.batch:
            raise IndexError(f"KVCache.reset: sequence {sequence} of a batch of {self.batch}")
        filled = list(self._filled)
        filled[sequence] = 0
        return self._set(filled)

    def reorder(self, order: Sequence[int] | Tensor) -> None:
        """Sequence b becomes what sequence order[b] was: beam search's choice of beams, which may repeat and drop some.

        Args:
            order: [batch], in the range of the batch.

        Raises:
            ValueError: another number of entries; an entry out of range.
        """
        chosen = [int(b) for b in (order.tolist() if isinstance(order, Tensor) else order)]
        if len(chosen) != self.batch or not all(0 <= b < self.batch for b in chosen):
            raise ValueError(f"KVCache.reorder: order must be {self.batch} numbers from 0 to {self.batch - 1}: got {chosen}")
        index = torch.tensor(chosen, device=self.keys.device)
        with torch.no_grad():
            for buffer in (self.keys, self.values):
                part = buffer[:, :, : self.length]
                part.copy_(part.index_select(0, index))
            self._set([self._filled[b] for b in chosen])

    def _counted(self, counts: Sequence[int] | Tensor | None, new: int) -> list[int]:
        if counts is None:
            return [new] * self.batch
        listed = [int(n) for n in (counts.tolist() if isinstance(counts, Tensor) else counts)]
        if len(listed) != self.batch or not all(0 <= n <= new for n in listed):
            raise ValueError(f"KVCache.append: counts must be {self.batch} numbers from 0 to {new}: got {listed}")
        return listed

    def _set(self, filled: list[int]) -> None:
        if len(set(filled)) == 1:
            self.lengths.fill_(filled[0])
        else:
            self.lengths.copy_(torch.tensor(filled, dtype=torch.int32))
        self._filled = filled

    def __repr__(self) -> str:
        b, h, capacity, d = self.keys.shape
        return (
            f"KVCache(batch={b}, heads={h}, capacity={capacity}, head_dim={d}, value_dim={self.values.shape[3]}, "
            f"dtype={self.keys.dtype}, device={self.keys.device}, length={self.length})"
        )
