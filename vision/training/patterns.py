"""Which parameters a pattern of the config names: for weight decay, rates and freezing.

A pattern is a regular expression that is searched for in a parameter's name, its path with slashes
('layer1_0/conv1/kernel'), or the word 'backbone': all but the classifier and its auxiliary heads.
"""

import math
import re
from typing import Any

import jax
from ml_collections import ConfigDict

from vision.core.errors import UserError
from vision.models.weights.pretrained import is_head

BACKBONE = 'backbone'


def matches(pattern: str, params: Any) -> Any:
    """A PyTree like `params`: True for the parameters that the pattern names."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _names(pattern, path), params)


def lr_factors(config: ConfigDict, params: Any) -> Any:
    """A PyTree like `params`: the factor of each parameter's rate, 0 for what `freeze` names.

    Of several patterns the first that names a parameter counts.
    """
    factors = [(config.freeze, 0.0)] if config.freeze else []
    factors += list(config.lr_factors.items())

    def of(path: tuple) -> float:
        return next((factor for pattern, factor in factors if _names(pattern, path)), 1.0)

    return jax.tree_util.tree_map_with_path(lambda path, _: of(path), params)


def check(config: ConfigDict) -> None:
    """Checks what can be checked of the patterns without a model.

    Raises:
      UserError: no regular expression, or a factor that is none.
    """
    for key, pattern in _patterns(config):
        try:
            re.compile(pattern)
        except (re.error, TypeError) as e:
            raise UserError(f'{key}: {pattern!r} is no regular expression: {e}') from None
    for pattern, factor in config.lr_factors.items():
        number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not number or not 0 <= factor < math.inf:
            raise UserError(f'lr_factors: {factor!r} of {pattern!r} must be a number, 0 or more')


def check_model(config: ConfigDict, params: Any) -> None:
    """Checks the patterns against a model's parameters (or their shapes).

    Raises:
      UserError: a pattern that names none of them, or nothing is left to be trained.
    """
    check(config)
    for key, pattern in _patterns(config):
        if not any(jax.tree.leaves(matches(pattern, params))):
            names = [
                '/'.join(_path(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)
            ]
            some = ', '.join(names[:3])
            raise UserError(f'{key}: {pattern!r} names no parameter of the model ({some}, …)')
    if not any(jax.tree.leaves(lr_factors(config, params))):
        raise UserError('freeze and lr_factors leave no parameter to be trained')


def _patterns(config: ConfigDict) -> list[tuple[str, str]]:
    """The config's patterns, each with the key that it stands at."""
    found = [('freeze', config.freeze)] if config.freeze else []
    found += [('lr_factors', pattern) for pattern in config.lr_factors]
    if config.weight_decay or config.optimizer.get('weight_decay'):
        found.append(('weight_decay_pattern', config.weight_decay_pattern))
    return found


def _names(pattern: str, path: tuple) -> bool:
    if pattern == BACKBONE:
        return not is_head(_path(path))
    return re.search(pattern, '/'.join(_path(path))) is not None


def _path(path: tuple) -> tuple[str, ...]:
    return tuple(key.key for key in path)
