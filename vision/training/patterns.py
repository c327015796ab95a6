"""Parameters by pattern: for weight decay, rates and freezing.

A pattern is a regular expression that is searched for in a parameter's name, its path with slashes
('layer1_0/conv1/kernel'), or the word 'backbone': all but the classifier and its auxiliary heads.
"""

import dataclasses
import re
from typing import Any

import jax

from vision.core.errors import UserError
from vision.models.base import is_head

BACKBONE = 'backbone'


def matches(pattern: str, params: Any) -> Any:
    """A PyTree like `params`: True for the parameters that the pattern names."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _names(pattern, path), params)


@dataclasses.dataclass(frozen=True)
class RateFactors:
    """Factors of the learning rate by parameter; false if all are 1.

    Attributes:
      freeze: pattern of the parameters that are not trained, or None: factor 0.
      lr_factors: patterns and factors, of which the first that names a parameter counts.
    """

    freeze: str | None = None
    lr_factors: tuple[tuple[str, float], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.freeze or self.lr_factors)

    def of(self, params: Any) -> Any:
        """A PyTree like `params`: the factor of each parameter's rate."""
        factors = [(self.freeze, 0.0)] if self.freeze else []
        factors += self.lr_factors

        def factor_of(path: tuple) -> float:
            return next((factor for pattern, factor in factors if _names(pattern, path)), 1.0)

        return jax.tree_util.tree_map_with_path(lambda path, _: factor_of(path), params)

    def check(self, params: Any) -> None:
        """Checks the patterns against a model's parameters (or their shapes).

        Raises:
          UserError: a pattern that names none of them, or nothing is left to be trained.
        """
        if self.freeze:
            check('freeze', self.freeze, params)
        for pattern, _ in self.lr_factors:
            check('lr_factors', pattern, params)
        if not any(jax.tree.leaves(self.of(params))):
            raise UserError('freeze and lr_factors leave no parameter to be trained')


def check(key: str, pattern: str, params: Any) -> None:
    """Raises UserError, with the config's key, if a pattern names no parameter of a model."""
    if not any(jax.tree.leaves(matches(pattern, params))):
        names = ['/'.join(_path(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        some = ', '.join(names[:3])
        raise UserError(f'{key}: {pattern!r} names no parameter of the model ({some}, …)')


def _names(pattern: str, path: tuple) -> bool:
    if pattern == BACKBONE:
        return not is_head(_path(path))
    return re.search(pattern, '/'.join(_path(path))) is not None


def _path(path: tuple) -> tuple[str, ...]:
    return tuple(key.key for key in path)
