"""Named sizes: the values of a paper, and the small ones that the course recipes train."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

Network = TypeVar("Network", bound="Presets")


class Presets:
    """Gives a network class ``from_preset``. Goes before ``nn.Module`` among the bases."""

    #: name -> keyword arguments of the constructor
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    @classmethod
    def from_preset(cls: type[Network], name: str, **overrides: Any) -> Network:
        """The network with the sizes of preset `name`; `overrides` replace single arguments.

        Raises:
            ValueError: there is no such preset.
        """
        if name not in cls.PRESETS:
            known = ", ".join(repr(preset) for preset in cls.PRESETS)
            raise ValueError(f"{cls.__name__}: no preset {name!r}, expected one of {known}")
        return cls(**{**cls.PRESETS[name], **overrides})
