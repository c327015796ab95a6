"""AutoAugment, RandAugment and TrivialAugmentWide: which transformation, how strong, how likely.

The transformations are in `vision.preprocess.ops.enhance`. Magnitudes are torchvision's, which are
those of the papers' code but for RandAugment's scale: 30 is the strongest here, as in the paper's
text. All three keep the size: uint8 [H, W, 3] in and out.
"""

from typing import Any

import numpy as np

from vision.core.startup import tf_cpu
from vision.preprocess.ops.enhance import NAMES, apply_one
from vision.preprocess.ops.registry import Rng
from vision.preprocess.opstring import check_choice

_SIGNED = {
    'ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate',
    'Brightness', 'Color', 'Contrast', 'Sharpness',
}  # fmt: skip
_TRANSLATION = 150 / 331  # of the side, at most (AutoAugment's code, for 331 pixels)


def _magnitudes(bins: int, wide: bool) -> np.ndarray:
    """The magnitude of each level of each transformation: float64 [len(NAMES), bins].

    Translations are in pixels if wide, else in fractions of the image's side.
    """
    geometric = {'Shear': 0.99, 'Translate': 32.0, 'Rotate': 135.0}
    if not wide:
        geometric = {'Shear': 0.3, 'Translate': _TRANSLATION, 'Rotate': 30.0}
    levels = np.arange(bins) / (bins - 1)
    table = np.zeros((len(NAMES), bins))
    for row, name in zip(table, NAMES, strict=True):
        if name.rstrip('XY') in geometric:
            row[:] = levels * geometric[name.rstrip('XY')]
        elif name in _SIGNED:
            row[:] = levels * (0.99 if wide else 0.9)
        elif name == 'Posterize':
            row[:] = 8 - np.round(levels * (6 if wide else 4))
        elif name == 'Solarize':
            row[:] = 255 * (1 - levels)
    return table


def _pixels(image: Any, wide: bool) -> Any:
    """By what to multiply each transformation's magnitude: the side, for fractions of it."""
    tf = tf_cpu()
    height, width = (tf.cast(s, tf.float64) for s in tf.unstack(tf.shape(image)[:2]))
    one = tf.constant(1.0, tf.float64)
    sides = {} if wide else {'TranslateX': width, 'TranslateY': height}
    return tf.stack([sides.get(name, one) for name in NAMES])


def _index(names: tuple[str, ...]) -> np.ndarray:
    return np.array([NAMES.index(name) for name in names], np.int32)


_RANDAUGMENT = (
    'Identity', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate', 'Brightness', 'Color',
    'Contrast', 'Sharpness', 'Posterize', 'Solarize', 'AutoContrast', 'Equalize',
)  # fmt: skip


def randaugment(image: Any, rng: Rng, num_layers: int = 2, magnitude: int = 9) -> Any:
    """Some transformations of 14, each equally likely, all of one magnitude (arXiv:1909.13719).

    Args:
      num_layers: how many follow one another, N, at most 16.
      magnitude: 0 … 30, M.

    Returns:
      uint8 [H, W, 3].
    """
    tf = tf_cpu()
    values = tf.constant(_magnitudes(31, wide=False)[:, magnitude]) * _pixels(image, wide=False)
    choices = tf.constant(_index(_RANDAUGMENT))
    for _ in range(num_layers):
        chosen = choices[rng.below(len(_RANDAUGMENT))]
        image = apply_one(image, chosen, _signed(rng, chosen, values[chosen]))
    return image


def trivialaugment_wide(image: Any, rng: Rng) -> Any:
    """One transformation of 14, of a random strength, wide range (arXiv:2103.10158, section 3).

    Returns:
      uint8 [H, W, 3].
    """
    tf = tf_cpu()
    chosen = tf.constant(_index(_RANDAUGMENT))[rng.below(len(_RANDAUGMENT))]
    value = tf.constant(_magnitudes(31, wide=True))[chosen, rng.below(31)]
    return apply_one(image, chosen, _signed(rng, chosen, value))


def autoaugment(image: Any, rng: Rng, policy: str = 'imagenet') -> Any:
    """One of 25 learned pairs of transformations (arXiv:1805.09501, tables 7 and 9).

    Args:
      policy: 'imagenet' or 'cifar10'.

    Returns:
      uint8 [H, W, 3].
    """
    tf = tf_cpu()
    check_choice('autoaugment', 'policy', policy, tuple(POLICIES))
    indices, probabilities, levels = _policy_arrays(policy)
    values = tf.constant(_magnitudes(10, wide=False)) * _pixels(image, wide=False)[:, None]
    pair = rng.below(len(indices))
    for place in range(2):
        chosen = tf.constant(indices)[pair, place]
        value = values[chosen, tf.constant(levels)[pair, place]]
        happens = rng.uniform() < tf.constant(probabilities)[pair, place]
        signed = _signed(rng, chosen, value)
        chosen = tf.where(happens, chosen, NAMES.index('Identity'))
        image = apply_one(image, chosen, signed)
    return image


def _signed(rng: Rng, chosen: Any, value: Any) -> Any:
    """Turns the sign of a magnitude with probability one half, where it has one."""
    tf = tf_cpu()
    signed = tf.constant([name in _SIGNED for name in NAMES])[chosen]
    return tf.where(signed & rng.chance(0.5), -value, value)


def _policy_arrays(policy: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = [[part.split() for part in line.split(',')] for line in POLICIES[policy]]
    indices = np.array([[NAMES.index(name) for name, _, _ in pair] for pair in parts], np.int32)
    probabilities = np.array([[float(p) for _, p, _ in pair] for pair in parts])
    levels = np.array([[int(level) for _, _, level in pair] for pair in parts], np.int32)
    return indices, probabilities, levels


# Name, probability, level of 0 … 9 (0 where the transformation has no strength).
POLICIES = {
    'imagenet': (
        'Posterize 0.4 8, Rotate 0.6 9',
        'Solarize 0.6 5, AutoContrast 0.6 0',
        'Equalize 0.8 0, Equalize 0.6 0',
        'Posterize 0.6 7, Posterize 0.6 6',
        'Equalize 0.4 0, Solarize 0.2 4',
        'Equalize 0.4 0, Rotate 0.8 8',
        'Solarize 0.6 3, Equalize 0.6 0',
        'Posterize 0.8 5, Equalize 1.0 0',
        'Rotate 0.2 3, Solarize 0.6 8',
        'Equalize 0.6 0, Posterize 0.4 6',
        'Rotate 0.8 8, Color 0.4 0',
        'Rotate 0.4 9, Equalize 0.6 0',
        'Equalize 0.0 0, Equalize 0.8 0',
        'Invert 0.6 0, Equalize 1.0 0',
        'Color 0.6 4, Contrast 1.0 8',
        'Rotate 0.8 8, Color 1.0 2',
        'Color 0.8 8, Solarize 0.8 7',
        'Sharpness 0.4 7, Invert 0.6 0',
        'ShearX 0.6 5, Equalize 1.0 0',
        'Color 0.4 0, Equalize 0.6 0',
        'Equalize 0.4 0, Solarize 0.2 4',
        'Solarize 0.6 5, AutoContrast 0.6 0',
        'Invert 0.6 0, Equalize 1.0 0',
        'Color 0.6 4, Contrast 1.0 8',
        'Equalize 0.8 0, Equalize 0.6 0',
    ),
    'cifar10': (
        'Invert 0.1 0, Contrast 0.2 6',
        'Rotate 0.7 2, TranslateX 0.3 9',
        'Sharpness 0.8 1, Sharpness 0.9 3',
        'ShearY 0.5 8, TranslateY 0.7 9',
        'AutoContrast 0.5 0, Equalize 0.9 0',
        'ShearY 0.2 7, Posterize 0.3 7',
        'Color 0.4 3, Brightness 0.6 7',
        'Sharpness 0.3 9, Brightness 0.7 9',
        'Equalize 0.6 0, Equalize 0.5 0',
        'Contrast 0.6 7, Sharpness 0.6 5',
        'Color 0.7 7, TranslateX 0.5 8',
        'Equalize 0.3 0, AutoContrast 0.4 0',
        'TranslateY 0.4 3, Sharpness 0.2 6',
        'Brightness 0.9 6, Color 0.2 8',
        'Solarize 0.5 2, Invert 0.0 0',
        'Equalize 0.2 0, AutoContrast 0.6 0',
        'Equalize 0.2 0, Equalize 0.6 0',
        'Color 0.9 9, Equalize 0.6 0',
        'AutoContrast 0.8 0, Solarize 0.2 8',
        'Brightness 0.1 3, Color 0.7 0',
        'Solarize 0.4 5, AutoContrast 0.9 0',
        'TranslateY 0.9 9, TranslateY 0.7 9',
        'AutoContrast 0.9 0, Solarize 0.8 3',
        'Equalize 0.8 0, Invert 0.1 0',
        'TranslateY 0.7 9, AutoContrast 0.9 0',
    ),
}
