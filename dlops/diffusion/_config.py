"""Configs in the format of diffusers: what a scheduler was built with, by attribute and by key, saved as JSON."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

CONFIG_NAME = "scheduler_config.json"
_DEFAULTS = "_use_default_values"  # the arguments that nobody passed: another class has other defaults

T = TypeVar("T", bound="Configured")


class Config(dict):
    """A dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"config has no attribute {name!r}") from None


def _recorded(init: Callable[..., None]) -> Callable[..., None]:
    """`init`, storing its arguments in the config before it runs. Arguments that start with `_` are dropped."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Configured, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **{k: v for k, v in kwargs.items() if not k.startswith("_")})
        passed = set(bound.arguments)
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])  # without self
        self.register_to_config(**arguments, **{_DEFAULTS: sorted(set(arguments) - passed)})
        init(*bound.args, **bound.kwargs)

    return wrapper


class Configured:
    """Base of the schedulers: records the constructor's arguments and loads and saves them."""

    config_name = CONFIG_NAME

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recorded(cls.__init__)  # type: ignore[method-assign]

    @property
    def config(self) -> Config:
        """What the scheduler was built with; `config.name` and `config["name"]`."""
        return self._internal_dict

    def register_to_config(self, **values: Any) -> None:
        """Add `values` to the config."""
        self._internal_dict = Config({**getattr(self, "_internal_dict", {}), **values})

    @classmethod
    def from_config(
        cls: type[T], config: Mapping[str, Any] | Any, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> T | tuple[T, dict[str, Any]]:
        """A scheduler from a config: a mapping, or any scheduler (diffusers' too) whose config is taken over.

        kwargs override the config. Keys that the constructor does not know are kept in the config and otherwise
        ignored; values that the other scheduler only had by default are not taken over. Raises TypeError.
        """
        config = getattr(config, "config", config)
        if not isinstance(config, Mapping):
            raise TypeError(f"{cls.__name__}.from_config: config must be a mapping or a scheduler: got {type(config)}")
        by_default = config.get(_DEFAULTS) or ()
        config = {key: value for key, value in config.items() if key not in by_default and key != _DEFAULTS}
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        arguments = {key: value for key, value in {**config, **kwargs}.items() if key in known}
        scheduler = cls(**arguments)
        hidden = {key: value for key, value in config.items() if key not in arguments}
        if "_class_name" in hidden:
            hidden["_class_name"] = cls.__name__
        scheduler.register_to_config(**hidden)
        if return_unused_kwargs:
            return scheduler, {**{k: v for k, v in kwargs.items() if k not in known}, **hidden}
        return scheduler

    @classmethod
    def from_pretrained(
        cls: type[T], path: str | os.PathLike[str], subfolder: str | None = None, **kwargs: Any
    ) -> T | tuple[T, dict[str, Any]]:
        """A scheduler from `scheduler_config.json` in a local folder. Raises FileNotFoundError; downloads nothing."""
        folder = os.path.join(path, subfolder) if subfolder else os.fspath(path)
        file = os.path.join(folder, cls.config_name)
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{cls.__name__}.from_pretrained: no {cls.config_name} in {folder}")
        with open(file, encoding="utf-8") as stream:
            return cls.from_config(json.load(stream), **kwargs)

    def to_json_string(self) -> str:
        """The config as JSON, in the format of diffusers' `scheduler_config.json`."""

        def plain(value: Any) -> Any:
            return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value

        saved = {key: plain(value) for key, value in self.config.items() if key != _DEFAULTS}
        return json.dumps({**saved, "_class_name": type(self).__name__}, indent=2, sort_keys=True) + "\n"

    def save_config(self, save_directory: str | os.PathLike[str], **unused: Any) -> None:
        """Write `scheduler_config.json` into a folder, which is made if it is missing."""
        os.makedirs(save_directory, exist_ok=True)
        with open(os.path.join(save_directory, self.config_name), "w", encoding="utf-8") as stream:
            stream.write(self.to_json_string())

    save_pretrained = save_config

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"
