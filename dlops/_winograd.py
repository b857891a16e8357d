"""Whether 3x3 convolutions may be computed by Winograd's minimal filtering."""

from __future__ import annotations

import os

MODES = ("auto", "f2", "off")


def _checked(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"winograd: got {mode!r}, expected one of {', '.join(MODES)}")
    return mode


_current: str = _checked(os.environ.get("DLOPS_WINOGRAD") or "auto")


class winograd:
    """``dlops.winograd(mode)`` chooses how 3x3 convolutions may be computed, from now on; as a context manager it restores.

    ``"auto"``: by Winograd's F(4x4, 3x3) where that is the faster one (Lavin & Gray 2015, section 4; 2.25 to 4 times fewer
    multiplications). In float32 its rms error is about 1e-6 of the result's rms: up to twice that of torch's channels_last
    convolution; weight gradients have 0.5 to 1.8 times the error of torch's NCHW path and 3 to 6 times that of its
    channels_last one. It is relative to the largest value of a 6x6 tile of the input: results that would be exactly 0 or
    integers are so to about 1e-7 of that value, and Inf and NaN spread over the 4x4 outputs of their tiles. ``"f2"``: by
    F(2x2, 3x3) at most, with the error of a plain sum. ``"off"``: never. Always off for float64.

    The environment variable ``DLOPS_WINOGRAD`` sets the initial mode; ``variant="winograd"`` asks for it in one call.
    ``dlops.winograd.current()`` is the mode in use.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(self, mode: str) -> None:
        global _current
        self._previous = _current
        _current = _checked(mode)

    def __enter__(self) -> winograd:
        return self

    def __exit__(self, *exc: object) -> None:
        global _current
        _current = self._previous

    @staticmethod
    def current() -> str:
        return _current
