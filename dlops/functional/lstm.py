"""Recurrent cells and whole sequences: LSTM, GRU and the plain RNN, with what cuDNN's have not."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dlops.functional._lstm import network
from dlops.functional._lstm_cell import cell_step
from dlops.functional._lstm_checks import Extras

Pair = tuple[Tensor, Tensor]


def lstm(
    input: Tensor, hx: Pair | None, params: Sequence[Tensor], has_biases: bool, num_layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool, *, batch_sizes: Tensor | None = None, lengths: Tensor | None = None,
    reset: Tensor | None = None, zoneout: tuple[float, float] = (0.0, 0.0), recurrent_dropout: float = 0.0,
    norms: Sequence[Sequence[Tensor]] | None = None, return_all_states: bool = False, variant: str | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """``torch.lstm``: LSTM layers over whole sequences (Hochreiter & Schmidhuber 1997, forget gate of Gers et al. 2000).

    Equations, and those of every extra: :func:`dlops.reference.lstm.step`. L layers, D directions, H hidden units, P the width of
    h (H, or that of a projection), T steps, B samples.

    Args:
        input: [T, B, I], [B, T, I] with batch_first, or with batch_sizes the packed [rows, I].
        hx: (h0 [L D, B, P], c0 [L D, B, H]), or None: zeros.
        params: for every layer and direction w_ih [4 H, I or D P], w_hh [4 H, P], with biases b_ih, b_hh [4 H], with a projection
            w_hr [P, H]; as ``torch.nn.LSTM`` holds them.
        has_biases, num_layers, dropout, train, bidirectional, batch_first: as ``torch.lstm``'s. dropout: between layers. In eval
            mode (train=False) nothing is drawn.
        batch_sizes: int64 [T] on the CPU, of a PackedSequence.
        lengths: int64 [B], 0 to T, in any order: what lies beyond is neither read nor written but as zeros, and costs nothing on
            the CPU. The state returned is that after each sample's last element.
        reset: bool, shaped like input without its features: the state is zero before that element.
        zoneout: probabilities with which values of h and of c stay as they were (Krueger et al. 2016); in eval mode, the
            expectation.
        recurrent_dropout: probability with which W_hh does not see a value of h, the same ones in the whole sequence (Gal &
            Ghahramani 2016).
        norms: layer normalisation (Ba et al. 2016, equations 20-22): for every layer and direction (norm_ih [4 H],
            norm_hh [4 H], cell_weight [H], cell_bias [H]).
        return_all_states: also return c after every step of the last layer.
        variant: "cells" or "fused_cell" on the CPU; "cells", "fused_cell" or "persistent" on CUDA. None: the fastest.

    Returns:
        (output [T, B, D P] (laid out as input), h_n [L D, B, P], c_n [L D, B, H]), and with return_all_states cells [T, B, D H].

    Raises:
        TypeError: an argument that must be a tensor is none.
        ValueError, RuntimeError: shapes, dtypes, devices or values that do not fit, named.
    """
    extras = Extras(batch_sizes, lengths, reset, zoneout, recurrent_dropout, norms, return_all_states, variant)
    made = network(
        "lstm", input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, extras
    )
    return made if return_all_states else made[:3]


def gru(
    input: Tensor, hx: Tensor | None, params: Sequence[Tensor], has_biases: bool, num_layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool, *, batch_sizes: Tensor | None = None, lengths: Tensor | None = None,
    reset: Tensor | None = None, zoneout: float = 0.0, recurrent_dropout: float = 0.0,
    norms: Sequence[Sequence[Tensor]] | None = None, variant: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``torch.gru``: layers of GRU (Cho et al. 2014; the reset gate acts behind W_hn h, as in cuDNN).

    Arguments and errors as :func:`lstm`'s; hx is h0 [L D, B, H], zoneout one probability, norms (norm_ih [3 H], norm_hh [3 H]).

    Returns:
        (output [T, B, D H], h_n [L D, B, H]).
    """
    extras = Extras(batch_sizes, lengths, reset, (zoneout, 0.0), recurrent_dropout, norms, False, variant)
    return network(
        "gru", input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, extras
    )[:2]


def rnn_tanh(
    input: Tensor, hx: Tensor | None, params: Sequence[Tensor], has_biases: bool, num_layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool, *, batch_sizes: Tensor | None = None, lengths: Tensor | None = None,
    reset: Tensor | None = None, variant: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``torch.rnn_tanh``: h = tanh(W_ih x + W_hh h + biases) (Elman 1990). Arguments, results and errors as :func:`gru`'s."""
    extras = Extras(batch_sizes, lengths, reset, variant=variant)
    return network(
        "rnn_tanh", input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, extras
    )[:2]


def rnn_relu(
    input: Tensor, hx: Tensor | None, params: Sequence[Tensor], has_biases: bool, num_layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool, *, batch_sizes: Tensor | None = None, lengths: Tensor | None = None,
    reset: Tensor | None = None, variant: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``torch.rnn_relu``: :func:`rnn_tanh` with relu in the place of tanh."""
    extras = Extras(batch_sizes, lengths, reset, variant=variant)
    return network(
        "rnn_relu", input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, extras
    )[:2]


def lstm_cell(
    input: Tensor, hx: Pair, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None, *,
    variant: str | None = None,
) -> Pair:  # fmt: skip
    """``torch.lstm_cell``: one step of an LSTM.

    Args:
        input: [B, I]. hx: (h [B, H], c [B, H]).
        w_ih: [4 H, I], gates in the order i, f, g, o. w_hh: [4 H, H]. b_ih, b_hh: [4 H] or None.
        variant: "fused_cell" (CPU): products and gates in one kernel, on packed weights; "gates": the products by torch, all else
            in one kernel (what training and CUDA take). None: the faster.

    Returns:
        (h, c), each [B, H].

    Raises:
        TypeError: an argument that must be a tensor is none.
        ValueError, RuntimeError: shapes, dtypes or devices that do not fit, named.
    """
    h, c = hx
    return cell_step("lstm", input, h, c, w_ih, w_hh, b_ih, b_hh, variant)


def gru_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None, *,
    variant: str | None = None,
) -> Tensor:  # fmt: skip
    """``torch.gru_cell``: one step of a GRU. hx: h [B, H]; w_ih [3 H, I], gates in the order r, z, n. Otherwise as
    :func:`lstm_cell`; returns h."""
    return cell_step("gru", input, hx, None, w_ih, w_hh, b_ih, b_hh, variant)[0]


def rnn_tanh_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None, *,
    variant: str | None = None,
) -> Tensor:  # fmt: skip
    """``torch.rnn_tanh_cell``: one step of a plain RNN. w_ih [H, I]; otherwise as :func:`gru_cell`."""
    return cell_step("rnn_tanh", input, hx, None, w_ih, w_hh, b_ih, b_hh, variant)[0]


def rnn_relu_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None, *,
    variant: str | None = None,
) -> Tensor:  # fmt: skip
    """``torch.rnn_relu_cell``: :func:`rnn_tanh_cell` with relu."""
    return cell_step("rnn_relu", input, hx, None, w_ih, w_hh, b_ih, b_hh, variant)[0]
