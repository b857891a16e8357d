"""Drop-in recurrent layers: torch.nn's constructors, parameters, state_dict and initialisation, our kernels in ``forward``, and
what torch has not: layer norm, zoneout, recurrent dropout, lengths without packing, resets inside a sequence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dlops import _backend, functional
from dlops._dynamo import traceable
from dlops.functional import _lstm_rules

States: TypeAlias = "Tensor | tuple[Tensor, Tensor]"  # h, or (h, c)


def _each(fn: Callable[[Tensor], Tensor], hx: States) -> States:
    return tuple(fn(state) for state in hx) if isinstance(hx, tuple) else fn(hx)


@traceable
class _Layers(nn.RNNBase):
    """The forward pass of all three, beside the torch.nn module whose checks and messages it uses."""

    _name: str
    _function: Callable[..., tuple[Tensor, ...]]

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: States | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | PackedSequence | None = None,
    ) -> Any:
        if lengths is None and reset is None and self._is_brief(input):
            return super().forward(input, hx)
        if not torch.compiler.is_compiling() and self.weight_hh_l0.is_cuda:
            self._update_flat_weights()
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths, reset)
        if not isinstance(input, Tensor):
            raise TypeError(f"{self._name}: input must be a tensor or a PackedSequence: got {type(input).__name__}")
        if input.dim() not in (2, 3):
            raise ValueError(f"{self._name}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        is_batched, batch_dim = input.dim() == 3, 0 if self.batch_first else 1
        if hx is not None:
            hx = self._checked_states(hx, is_batched)
        if reset is not None:
            _check_reset(self._name, reset, input)
        if not is_batched:
            input = input.unsqueeze(batch_dim)
            hx = None if hx is None else _each(lambda state: state.unsqueeze(1), hx)
            reset = None if reset is None else reset.unsqueeze(batch_dim)
        self._check(input, hx, None)
        if input.size(1 - batch_dim) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        output, states, cells = self._run(input, hx, self.batch_first, lengths=lengths, reset=reset)
        if not is_batched:
            output, states = output.squeeze(batch_dim), _each(lambda state: state.squeeze(1), states)
            cells = None if cells is None else cells.squeeze(batch_dim)
        return (output, states) if cells is None else (output, states, cells)

    def _forward_packed(self, input: PackedSequence, hx: States | None, lengths: Any, reset: Any) -> Any:
        if lengths is not None:
            raise ValueError(
                f"{self._name}: lengths must be None with a PackedSequence, which has its own: got {lengths}"
            )
        data, batch_sizes, sorted_indices, unsorted_indices = input
        hx = None if hx is None else self._checked_states(hx, None)
        self._check(data, hx, batch_sizes)
        if hx is not None:  # in the order of the caller's sequences
            hx = self.permute_hidden(hx, sorted_indices)
        if reset is not None:
            if isinstance(reset, PackedSequence):
                if not torch.equal(reset.batch_sizes, batch_sizes):
                    raise ValueError(f"{self._name}: reset was packed with other lengths than input")
                reset = reset.data
            _check_reset(self._name, reset, data)
        output, states, cells = self._run(data, hx, False, batch_sizes=batch_sizes, reset=reset)
        result = [PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)]
        result.append(self.permute_hidden(states, unsorted_indices))
        if cells is not None:
            result.append(PackedSequence(cells, batch_sizes, sorted_indices, unsorted_indices))
        return tuple(result)

    def _is_brief(self, input: Any) -> bool:
        """Whether torch's forward pass is the faster one, before anything else is asked."""
        cell = self.mode.lower()
        if cell not in _lstm_rules.FEW_STEPS or type(input) is not Tensor or input.dim() != 3:
            return False
        if torch.compiler.is_compiling() or not _backend.is_plain() or self._has_extras():
            return False
        needs_grad = torch.is_grad_enabled() and (input.requires_grad or self.weight_ih_l0.requires_grad)
        return _lstm_rules.is_brief(cell, input, input.shape[1 if self.batch_first else 0], self.hidden_size, needs_grad)

    def _has_extras(self) -> bool:
        return False

    def _run(
        self, input: Tensor, hx: States | None, batch_first: bool, **more: Any
    ) -> tuple[Tensor, States, Tensor | None]:
        """The output, the last states and, where they are wanted, the cell states."""
        output, state = self._call(input, hx, batch_first, **more)
        return output, state, None

    def _call(self, input: Tensor, hx: States | None, batch_first: bool, **more: Any) -> tuple[Tensor, ...]:
        weights = [getattr(self, name) for name in self._flat_weights_names]
        return self._function(
            input, hx, weights, self.bias, self.num_layers, self.dropout, self.training, self.bidirectional, batch_first, **more
        )  # fmt: skip

    def _check(self, input: Tensor, hx: States | None, batch_sizes: Tensor | None) -> None:
        """torch's checks. hx is None for zeros."""
        if hx is None:
            self.check_input(input, batch_sizes)
        else:
            self.check_forward_args(input, hx, batch_sizes)

    def _checked_states(self, hx: Any, is_batched: bool | None) -> States:
        """hx, with as many dimensions as the input needs (None: a PackedSequence, where the size alone is checked)."""
        if not isinstance(hx, Tensor):
            raise TypeError(f"{self._name}: hx must be a tensor: got {type(hx).__name__}")
        dims = 3 if is_batched else 2
        if is_batched is not None and hx.dim() != dims:
            kind = "batched 3-D" if is_batched else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, hx should also be {dims}-D but got {hx.dim()}-D tensor")
        return hx


def _check_reset(name: str, reset: Any, input: Tensor) -> None:
    if not isinstance(reset, Tensor):
        raise TypeError(f"{name}: reset must be a tensor: got {type(reset).__name__}")
    if reset.dtype != torch.bool:
        raise ValueError(f"{name}: reset must be of torch.bool: got {reset.dtype}")
    if reset.shape != input.shape[:-1]:
        raise ValueError(
            f"{name}: reset has shape {list(reset.shape)}, expected {list(input.shape[:-1])}, input's without the features"
        )
    if reset.device != input.device:
        raise ValueError(f"{name}: reset is on {reset.device}, expected {input.device}, where input is")


class _Extended(_Layers):
    """Adds what LSTM and GRU have beyond torch. The attributes are on the class too: modules that `accelerate` swapped in have
    none of their own."""

    layer_norm: bool = False
    zoneout: Any
    recurrent_dropout: float = 0.0
    init: str | None = None
    T_max: float | None = None
    _norm_names: Sequence[tuple[str, ...]] = ()  # of every layer and direction
    _norm_parts: tuple[str, ...] = ("norm_ih", "norm_hh")

    def __init__(
        self,
        *args: Any,
        layer_norm: bool = False,
        zoneout: Any = None,
        recurrent_dropout: float = 0.0,
        init: str | None = None,
        T_max: float | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer_norm, bool):
            raise TypeError(f"{self._name}: layer_norm must be a bool: got {layer_norm!r}")
        if not _is_share(recurrent_dropout):
            raise ValueError(f"{self._name}: recurrent_dropout must be a number in [0, 1): got {recurrent_dropout!r}")
        zoneout = self._checked_zoneout(zoneout)
        self._check_init(init, T_max)
        super().__init__(*args, **kwargs)
        if init is not None and not self.bias:
            raise ValueError(f'{self._name}: init="chrono" sets biases, but bias is False')
        self.layer_norm, self.zoneout, self.recurrent_dropout = layer_norm, zoneout, float(recurrent_dropout)
        self.init, self.T_max = init, T_max
        if layer_norm:
            self._add_norms()
        self._reset_extras()

    def _check_init(self, init: Any, T_max: Any) -> None:
        if init not in (None, "chrono"):
            raise ValueError(f'{self._name}: init must be None or "chrono": got {init!r}')
        if init is None and T_max is not None:
            raise ValueError(f'{self._name}: T_max belongs to init="chrono", but init is None: got T_max {T_max!r}')
        if init is not None and not (
            isinstance(T_max, (int, float)) and not isinstance(T_max, bool) and 2 <= T_max < math.inf
        ):
            raise ValueError(
                f'{self._name}: init="chrono" needs T_max, the longest dependency in steps, at least 2: got {T_max!r}'
            )

    def _checked_zoneout(self, zoneout: Any) -> Any:
        raise NotImplementedError

    def _add_norms(self) -> None:
        gate_size = self.weight_hh_l0.shape[0]
        like = {"device": self.weight_hh_l0.device, "dtype": self.weight_hh_l0.dtype}
        self._norm_names = []
        for weights in self._all_weights:
            suffix = weights[0].removeprefix("weight_ih")  # _l0, or _l0_reverse
            names = tuple(part + suffix for part in self._norm_parts)
            for name in names:
                size = self.hidden_size if "cell" in name else gate_size
                self.register_parameter(name, nn.Parameter(torch.empty(size, **like)))
            self._norm_names.append(names)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._reset_extras()  # torch's constructor comes here before there are any

    @torch.no_grad()
    def _reset_extras(self) -> None:
        for names in self._norm_names:
            for name in names:
                getattr(self, name).fill_(0 if "bias" in name else 1)
        if self.init == "chrono":
            for weights in self._all_weights:
                self._chrono(getattr(self, weights[2]), getattr(self, weights[3]))

    def _chrono(self, bias_ih: Tensor, bias_hh: Tensor) -> None:
        """Tallec & Ollivier 2018, section 2: gates that forget after 1 to T_max steps."""
        raise NotImplementedError

    def _has_extras(self) -> bool:
        return bool(self.layer_norm or self.recurrent_dropout or self.zoneout != type(self).zoneout)

    def _norms(self) -> list[tuple[Tensor, ...]] | None:
        if not self.layer_norm:
            return None
        return [tuple([getattr(self, name) for name in names]) for names in self._norm_names]

    def _call(self, input: Tensor, hx: States | None, batch_first: bool, **more: Any) -> tuple[Tensor, ...]:
        if self.zoneout != type(self).zoneout:
            more["zoneout"] = self.zoneout
        if self.recurrent_dropout:
            more["recurrent_dropout"] = self.recurrent_dropout
        return super()._call(input, hx, batch_first, norms=self._norms(), **more)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        for name in ("layer_norm", "zoneout", "recurrent_dropout", "init", "T_max", "return_all_states"):
            value = getattr(self, name, None)
            if value != getattr(type(self), name, None):
                text += f", {name}={value!r}"
        return text


def _is_share(p: Any) -> bool:
    return isinstance(p, (int, float)) and not isinstance(p, bool) and 0 <= p < 1


class LSTM(_Extended, nn.LSTM):
    """``torch.nn.LSTM``; ``forward(input, hx, lengths=..., reset=...)``.

    Args:
        input_size, hidden_size, num_layers, ...: as in ``torch.nn.LSTM``.
        layer_norm: LayerNorm of W_ih x, of W_hh h and of the cell state that h is made of (Ba et al. 2016, equations 20 to
            22), with parameters norm_ih_l0, norm_hh_l0 [4 H], norm_cell_weight_l0 and norm_cell_bias_l0 [H], and so on.
        zoneout: (h, c), the probabilities that an element of h and of c stays as it was (Krueger et al. 2016). Not
            training, the expectation.
        recurrent_dropout: the probability that an element of the h that W_hh multiplies is zero, by one mask for the whole
            sequence (Gal & Ghahramani 2016).
        init: None or "chrono": forget gates' biases log(U[1, T_max - 1]), input gates' the negative (Tallec & Ollivier 2018).
        T_max: of "chrono": the longest dependency, in steps.
        return_all_states: the result is (output, (h_n, c_n), cells), with the last layer's c after every step, as output.

    Shape:
        input [T, B, I], [B, T, I] with batch_first, [T, I], or a PackedSequence. lengths: int64 or int32 [B], or a list, in any
        order, 0 to T: output is zeros past them, and h_n and c_n are those of the last element. reset: bool, like input
        without features (of a PackedSequence: packed likewise, or [rows] in the order of its data): h and c are zeros before
        an element where it is set, in either direction.

    Masks of dropout and zoneout are drawn of torch's generator in the layout of the input: with batch_first they are not those
    that torch.nn.LSTM draws. While gradients are recorded the output is needed for them and must not be written to.

    Raises:
        ValueError, RuntimeError, TypeError: as ``torch.nn.LSTM``; extras, lengths or reset that do not fit.
    """

    _name = "LSTM"
    _function = staticmethod(functional.lstm)
    _norm_parts = ("norm_ih", "norm_hh", "norm_cell_weight", "norm_cell_bias")
    zoneout: tuple[float, float] = (0.0, 0.0)
    return_all_states: bool = False

    def __init__(self, *args: Any, return_all_states: bool = False, **kwargs: Any) -> None:
        if not isinstance(return_all_states, bool):
            raise TypeError(f"LSTM: return_all_states must be a bool: got {return_all_states!r}")
        super().__init__(*args, **kwargs)
        self.return_all_states = return_all_states

    def _run(
        self, input: Tensor, hx: States | None, batch_first: bool, **more: Any
    ) -> tuple[Tensor, States, Tensor | None]:
        if self.return_all_states:
            output, h, c, cells = self._call(input, hx, batch_first, return_all_states=True, **more)
            return output, (h, c), cells
        output, h, c = self._call(input, hx, batch_first, **more)
        return output, (h, c), None

    def _checked_states(self, hx: Any, is_batched: bool | None) -> States:
        states = tuple(hx) if isinstance(hx, (tuple, list)) else hx
        if not (isinstance(states, tuple) and all(isinstance(state, Tensor) for state in states)):
            raise TypeError(f"LSTM: hx must be (h_0, c_0), two tensors: got {type(hx).__name__}")
        if len(states) != 2:
            raise RuntimeError(f"LSTM: hx must be (h_0, c_0), two tensors: got {len(states)}")
        dims = 3 if is_batched else 2
        if is_batched is not None and (states[0].dim() != dims or states[1].dim() != dims):
            kind = "batched 3-D" if is_batched else "unbatched 2-D"
            got = f"({states[0].dim()}-D, {states[1].dim()}-D)"
            raise RuntimeError(f"For {kind} input, hx and cx should also be {dims}-D but got {got} tensors")
        return states

    def _checked_zoneout(self, zoneout: Any) -> tuple[float, float]:
        if zoneout is None:
            return 0.0, 0.0
        if not (isinstance(zoneout, (tuple, list)) and len(zoneout) == 2 and all(_is_share(p) for p in zoneout)):
            raise ValueError(f"LSTM: zoneout must be (h, c), two numbers in [0, 1): got {zoneout!r}")
        return float(zoneout[0]), float(zoneout[1])

    def _chrono(self, bias_ih: Tensor, bias_hh: Tensor) -> None:
        input_gate, forget_gate = bias_ih[: self.hidden_size], bias_ih[self.hidden_size : 2 * self.hidden_size]
        forget_gate.copy_(nn.init.uniform_(forget_gate, 1, self.T_max - 1).log())
        input_gate.copy_(-forget_gate)
        bias_hh[: 2 * self.hidden_size] = 0


class GRU(_Extended, nn.GRU):
    """``torch.nn.GRU``; ``forward(input, hx, lengths=..., reset=...)``.

    Args:
        input_size, hidden_size, num_layers, ...: as in ``torch.nn.GRU``.
        layer_norm: LayerNorm of W_ih x and of W_hh h, with parameters norm_ih_l0, norm_hh_l0 [3 H], and so on.
        zoneout: the probability that an element of h stays as it was, a number or (h,).
        recurrent_dropout, init, T_max: as in :class:`LSTM`; "chrono" sets the update gates' biases to log(U[1, T_max - 1]).

    Shape, errors:
        As :class:`LSTM`.
    """

    _name = "GRU"
    _function = staticmethod(functional.gru)
    zoneout: float = 0.0

    def _checked_zoneout(self, zoneout: Any) -> float:
        if zoneout is None:
            return 0.0
        p = zoneout[0] if isinstance(zoneout, (tuple, list)) and len(zoneout) == 1 else zoneout
        if not _is_share(p):
            raise ValueError(f"GRU: zoneout must be a number in [0, 1), or (h,): got {zoneout!r}")
        return float(p)

    def _chrono(self, bias_ih: Tensor, bias_hh: Tensor) -> None:
        update_gate = slice(self.hidden_size, 2 * self.hidden_size)
        bias_ih[update_gate] = nn.init.uniform_(bias_ih[update_gate], 1, self.T_max - 1).log()
        bias_hh[update_gate] = 0


class RNN(_Layers, nn.RNN):
    """``torch.nn.RNN``; ``forward(input, hx, lengths=..., reset=...)``, which :class:`LSTM` tells of."""

    _name = "RNN"

    def _function(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return (functional.rnn_tanh if self.mode == "RNN_TANH" else functional.rnn_relu)(*args, **kwargs)
