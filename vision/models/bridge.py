"""NNX modules as models: Flax's bridge wraps a user-defined NNX class in a linen module."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
from flax import nnx
from flax.core import FrozenDict

from vision.core.errors import UserError
from vision.models.base import Endpoints

# Collections of `nnx.Param`, `nnx.BatchStat`, `nnx.Perturbation` and `nnx.Intermediate`.
_COLLECTIONS = {'params', 'batch_stats', 'perturbations', 'intermediates'}


class _Bridged(nnx.bridge.ToLinen):
    """An NNX model as a linen module; each call builds the NNX module and fills in the variables.

    The items of an `nnx.List` have text keys among the variables ('0', '1', …), as in linen.
    """

    def __call__(  # type: ignore[override]
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, Endpoints]:
        """Returns (logits, endpoints), after the module's `train()` or `eval()`."""
        return super().__call__(images, train=train, nnx_method=_call)

    @property
    def variables(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The variables in the layout of the NNX module."""
        return _with_keys(super().variables, lambda key: int(key) if key.isdigit() else key)

    def put_variable(self, col: str, name: str, value: Any) -> None:
        """Stores a variable of the NNX module."""
        if col not in _COLLECTIONS:
            raise UserError(
                f'model {type(self).__name__}: {name} has variables of the collection {col!r}; '
                'only nnx.Param and nnx.BatchStat are trained and saved'
            )
        super().put_variable(col, name, _with_keys(value, str))


def from_nnx(cls: type[nnx.Module], arguments: Mapping[str, Any]) -> nnx.bridge.ToLinen:
    """Returns a linen module that calls `cls(**arguments, rngs=…)(images, train)`."""
    return _kind(cls)(cls, kwargs=FrozenDict(arguments))


@cache
def _kind(cls: type[nnx.Module]) -> type[_Bridged]:
    """Returns a linen class with the name and the published shape of an NNX class."""
    kept = ('__doc__', 'input_shape', 'default_classes')
    kind: Any = type(
        cls.__name__, (_Bridged,), {k: getattr(cls, k) for k in kept if hasattr(cls, k)}
    )
    return kind


def _call(module: Any, images: jax.Array, train: bool) -> Any:
    """Calls a module in training or evaluation mode."""
    (module.train if train else module.eval)()
    return module(images, train=train)


def _with_keys(tree: Any, convert: Callable[[Any], Any]) -> Any:
    """Converts the keys of nested mappings."""
    if not isinstance(tree, Mapping):
        return tree
    return {convert(key): _with_keys(value, convert) for key, value in tree.items()}
