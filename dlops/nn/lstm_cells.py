"""Drop-in recurrent cells, one time step each: torch.nn's constructors, parameters, state_dict and initialisation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from dlops import _backend, functional


class _Cell(nn.RNNCellBase):
    def _weights(self) -> tuple[Tensor | None, ...]:
        """w_ih, w_hh, b_ih, b_hh. A look into the dict costs a fifth of an attribute's way through Module.__getattr__."""
        parameters = self._parameters
        try:
            return parameters["weight_ih"], parameters["weight_hh"], parameters["bias_ih"], parameters["bias_hh"]
        except KeyError:  # parametrized, pruned, or a replica
            return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh


    def _is_torchs(self, input: Any) -> bool:
        """Where gradients are recorded torch's cell is the faster one (`_lstm_rules.slower_cell`), and this the shortest way."""
        if not torch.is_grad_enabled() or type(input) is not Tensor or not input.is_cpu or torch.compiler.is_compiling():
            return False
        weight = self._parameters.get("weight_ih")
        return (input.requires_grad or (weight is not None and weight.requires_grad)) and _backend.is_plain()


def _check_dims(name: str, argument: str, value: Any, what: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: {what} must be a tensor: got {type(value).__name__}")
    if value.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected {argument} to be 1D or 2D, got {value.dim()}D instead")


class LSTMCell(_Cell, nn.LSTMCell):
    """``torch.nn.LSTMCell``.

    Shape:
        input [B, I] or [I]; hx and the result (h, c), each [B, H] or [H].

    Raises:
        ValueError, RuntimeError, TypeError: as ``torch.nn.LSTMCell``.
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if self._is_torchs(input):
            return nn.LSTMCell.forward(self, input, hx)
        _check_dims("LSTMCell", "input", input, "input")
        is_batched = input.dim() == 2
        if not is_batched:
            input = input.unsqueeze(0)
        if hx is None:
            zeros = torch.zeros(input.size(0), self.hidden_size, dtype=input.dtype, device=input.device)
            hx = zeros, zeros
        else:
            h, c = hx
            _check_dims("LSTMCell", "hx[0]", h, "hx[0]")
            _check_dims("LSTMCell", "hx[1]", c, "hx[1]")
            hx = (h, c) if is_batched else (h.unsqueeze(0), c.unsqueeze(0))
        h, c = functional.lstm_cell(input, hx, *self._weights())
        return (h, c) if is_batched else (h.squeeze(0), c.squeeze(0))


class _OneState(_Cell):
    def _forward(self, name: str, function: Any, input: Tensor, hx: Tensor | None) -> Tensor:
        _check_dims(name, "input", input, "input")
        if hx is not None:
            _check_dims(name, "hidden", hx, "hx")
        is_batched = input.dim() == 2
        if not is_batched:
            input = input.unsqueeze(0)
        if hx is None:
            hx = torch.zeros(input.size(0), self.hidden_size, dtype=input.dtype, device=input.device)
        elif not is_batched:
            hx = hx.unsqueeze(0)
        h = function(input, hx, *self._weights())
        return h if is_batched else h.squeeze(0)


class GRUCell(_OneState, nn.GRUCell):
    """``torch.nn.GRUCell``: input [B, I] or [I]; hx and the result [B, H] or [H]."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if self._is_torchs(input):
            return nn.GRUCell.forward(self, input, hx)
        return self._forward("GRUCell", functional.gru_cell, input, hx)


class RNNCell(_OneState, nn.RNNCell):
    """``torch.nn.RNNCell``: input [B, I] or [I]; hx and the result [B, H] or [H]."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if self._is_torchs(input):
            return nn.RNNCell.forward(self, input, hx)
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        function = functional.rnn_tanh_cell if self.nonlinearity == "tanh" else functional.rnn_relu_cell
        return self._forward("RNNCell", function, input, hx)
