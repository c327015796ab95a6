"""The augmentation policies AutoAugment, RandAugment, TrivialAugmentWide and 3-Augment.

The transformations of the first three are in `vision.preprocess.ops.enhance`. The magnitudes are
torchvision's. They agree with the papers' code, except that RandAugment's strongest magnitude is
30, as in the paper's text. All policies take and return uint8 [H, W, 3].
"""

from typing import Any

import numpy as np

from vision.core.startup import tf_cpu
from vision.preprocess.ops.color import grey
from vision.preprocess.ops.enhance import NAMES, apply_one
from vision.preprocess.ops.registry import Rng
from vision.preprocess.ops.resampling import to_uint8
from vision.preprocess.opstring import check_choice

# Transformations whose magnitude gets a random sign.
_SIGNED = {
    'ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate',
    'Brightness', 'Color', 'Contrast', 'Sharpness',
}  # fmt: skip
# Largest translation as a fraction of the side (150 of 331 pixels in AutoAugment's code).
_TRANSLATION = 150 / 331


def _magnitudes(bins: int, wide: bool) -> np.ndarray:
    """Returns the magnitude of each transformation at each level, float64 [len(NAMES), bins].

    Translations are in pixels if `wide` is true, otherwise in fractions of the image's side.
    """
    geometric = {'Shear': 0.99, 'Translate': 32.0, 'Rotate': 135.0}
    if not wide:
        geometric = {'Shear': 0.3, 'Translate': _TRANSLATION, 'Rotate': 30.0}
    levels = np.arange(bins) / (bins - 1)
    table = np.zeros((len(NAMES), bins))
    # The magnitude grows with the level, except where a smaller value is stronger.
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
    """Returns factors that convert each transformation's magnitude from fractions to pixels."""
    tf = tf_cpu()
    height, width = (tf.cast(s, tf.float64) for s in tf.unstack(tf.shape(image)[:2]))
    one = tf.constant(1.0, tf.float64)
    sides = {} if wide else {'TranslateX': width, 'TranslateY': height}
    return tf.stack([sides.get(name, one) for name in NAMES])


def _index(names: tuple[str, ...]) -> np.ndarray:
    """Returns the indices of transformations in NAMES."""
    return np.array([NAMES.index(name) for name in names], np.int32)


# The transformations of RandAugment and TrivialAugmentWide.
_RANDAUGMENT = (
    'Identity', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate', 'Brightness', 'Color',
    'Contrast', 'Sharpness', 'Posterize', 'Solarize', 'AutoContrast', 'Equalize',
)  # fmt: skip


def randaugment(
    image: Any, rng: Rng, num_layers: int = 2, magnitude: int = 9, probability: float = 1.0
) -> Any:
    """Applies N of 14 equally likely transformations with one magnitude (arXiv:1909.13719).

    Args:
      num_layers: number N of transformations, at most 16.
      magnitude: magnitude M, 0 … 30.
      probability: probability that a drawn transformation is applied; timm's is 0.5.

    Returns:
      uint8 [H, W, 3].
    """
    tf = tf_cpu()
    values = tf.constant(_magnitudes(31, wide=False)[:, magnitude]) * _pixels(image, wide=False)
    choices = tf.constant(_index(_RANDAUGMENT))
    # The transformations are drawn with replacement.
    for _ in range(num_layers):
        chosen = choices[rng.below(len(_RANDAUGMENT))]
        signed = _signed(rng, chosen, values[chosen])
        # With probability 1 no further number is drawn.
        if probability < 1:
            chosen = tf.where(rng.chance(probability), chosen, NAMES.index('Identity'))
        image = apply_one(image, chosen, signed)
    return image


def trivialaugment_wide(image: Any, rng: Rng) -> Any:
    """Applies one of 14 transformations with a random magnitude from a wide range.

    Implements TrivialAugment with the wide augmentation space (arXiv:2103.10158, section 3).

    Returns:
      uint8 [H, W, 3].
    """
    tf = tf_cpu()
    chosen = tf.constant(_index(_RANDAUGMENT))[rng.below(len(_RANDAUGMENT))]
    value = tf.constant(_magnitudes(31, wide=True))[chosen, rng.below(31)]
    return apply_one(image, chosen, _signed(rng, chosen, value))


def autoaugment(image: Any, rng: Rng, policy: str = 'imagenet') -> Any:
    """Applies one of 25 learned pairs of transformations (arXiv:1805.09501, tables 7 and 9).

    Args:
      policy: 'imagenet' or 'cifar10'.

    Returns:
      uint8 [H, W, 3].
    """
    tf = tf_cpu()
    check_choice('autoaugment', 'policy', policy, tuple(POLICIES))
    indices, probabilities, levels = _policy_arrays(policy)
    values = tf.constant(_magnitudes(10, wide=False)) * _pixels(image, wide=False)[:, None]
    # Choose a pair, and apply each of its two transformations with its own probability.
    pair = rng.below(len(indices))
    for place in range(2):
        chosen = tf.constant(indices)[pair, place]
        value = values[chosen, tf.constant(levels)[pair, place]]
        # A transformation that is not applied is replaced by Identity.
        happens = rng.uniform() < tf.constant(probabilities)[pair, place]
        signed = _signed(rng, chosen, value)
        chosen = tf.where(happens, chosen, NAMES.index('Identity'))
        image = apply_one(image, chosen, signed)
    return image


def three_augment(image: Any, rng: Rng) -> Any:
    """Converts to grey, solarizes or blurs, each as likely (3-Augment, arXiv:2204.07118, 3.3).

    Solarization inverts values of 128 or more. The blur is Gaussian, with a standard deviation
    drawn uniformly from 0.1 … 2 pixels; outside the image, the border's pixels are repeated. The
    colour jitter that follows in the paper is `brightness(0.3)|contrast(0.3)|saturation(0.3)`.

    Returns:
      uint8 [H, W, 3].
    """
    tf = tf_cpu()
    chosen, sigma = rng.below(3), rng.uniform(0.1, 2.0)
    branches = [
        lambda: tf.broadcast_to(to_uint8(grey(image)), tf.shape(image)),
        lambda: tf.where(image >= 128, 255 - image, image),
        lambda: _blur(image, tf.cast(sigma, tf.float32)),
    ]
    return tf.ensure_shape(tf.switch_case(chosen, branches), image.shape)


def _blur(image: Any, sigma: Any) -> Any:
    """Smooths uint8 [H, W, C] by a Gaussian of at most 2 pixels."""
    tf = tf_cpu()
    radius = 8  # four standard deviations of the strongest blur
    kernel = tf.exp(-0.5 * (tf.range(-radius, radius + 1, dtype=tf.float32) / sigma) ** 2)
    kernel /= tf.reduce_sum(kernel)
    # Treat the channels as a batch of grey images; smooth columns, then rows.
    channels = tf.transpose(tf.cast(image, tf.float32), [2, 0, 1])[..., None]
    for axis, shape in ((1, (-1, 1, 1, 1)), (2, (1, -1, 1, 1))):
        size = tf.shape(channels)[axis]
        inside = tf.clip_by_value(tf.range(-radius, size + radius), 0, size - 1)
        channels = tf.gather(channels, inside, axis=axis)
        channels = tf.nn.conv2d(channels, tf.reshape(kernel, shape), 1, 'VALID')
    return to_uint8(tf.transpose(channels[..., 0], [1, 2, 0]))


def _signed(rng: Rng, chosen: Any, value: Any) -> Any:
    """Negates a magnitude with probability 0.5, if the transformation's magnitudes are signed."""
    tf = tf_cpu()
    signed = tf.constant([name in _SIGNED for name in NAMES])[chosen]
    return tf.where(signed & rng.chance(0.5), -value, value)


def _policy_arrays(policy: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the indices, probabilities and levels of a policy, each [25, 2]."""
    parts = [[part.split() for part in line.split(',')] for line in POLICIES[policy]]
    indices = np.array([[NAMES.index(name) for name, _, _ in pair] for pair in parts], np.int32)
    probabilities = np.array([[float(p) for _, p, _ in pair] for pair in parts])
    levels = np.array([[int(level) for _, _, level in pair] for pair in parts], np.int32)
    return indices, probabilities, levels


# Each entry has the name, the probability and the level, 0 … 9, of two transformations. The level
# is 0 for transformations without a magnitude.
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
