"""Export of a run's model as StableHLO, which needs only JAX and NumPy to run."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision.core.errors import UserError
from vision.core.text import AnyPath, output_file
from vision.data import registry as data
from vision.data.source import Source
from vision.models.layers import xla_only
from vision.prediction.classifier import Classifier
from vision.prediction.feed import Feed

PLATFORMS = ('cpu', 'cuda', 'tpu')
_CHECKED, _DRAWN = 64, 8  # number of a run's images, and of drawn images, for the check
# Largest allowed difference of a probability. In bfloat16 differences depend on what XLA fuses,
# because values inside a fusion are not rounded.
_TOLERANCE, _TOLERANCE_16_BIT = 1e-4, 5e-2


def export(classifier: Classifier, output: AnyPath) -> dict[str, Any]:
    """Writes a model with its weights and normalisation to one file, and checks the file.

    The file is a serialised `jax.export.Exported`. It maps uint8 [B, H, W, C] of the model's input
    size, for any B ≥ 1, to probabilities float32 [B, K], and runs on CPU, GPU and TPU. Resizing and
    cropping are not included.

    Args:
      classifier: any classifier.
      output: the file. It is written completely or not at all, and only if it passes the check.

    Returns:
      `{'output', 'bytes', 'platforms', 'input' [H, W, C], 'classes' K, 'checked' (the number of
      images), 'largest_difference' (of a probability)}`.

    Raises:
      UserError: the file cannot be written, no image is available for the check, or the model's
        probabilities are not finite.
      RuntimeError: the exported program's probabilities differ from the model's.
    """
    path = output_file('output', output)
    # Write to a temporary file, check what was written, and only then move it into place.
    images = _check_images(classifier)
    program = serialise(classifier)
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
        temporary.write_bytes(program)
        difference = _difference(classifier, temporary.read_bytes(), images)
        exact = jnp.dtype(classifier.model.dtype).itemsize > 2
        if not difference <= (_TOLERANCE if exact else _TOLERANCE_16_BIT):
            raise RuntimeError(f'the exported model differs from the model by {difference:.1e}')
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f'--output={path}: {e.strerror}') from None
    finally:
        temporary.unlink(missing_ok=True)
    return {
        'output': str(path),
        'bytes': len(program),
        'platforms': list(PLATFORMS),
        'input': list(classifier.run.input_shape),
        'classes': len(classifier.class_names),
        'checked': len(images),
        'largest_difference': difference,
    }


def serialise(classifier: Classifier) -> bytes:
    """Returns the classifier with its weights as a serialised `jax.export.Exported`."""
    from jax import export as jax_export

    # NumPy arrays become constants of the program that are bound to no device.
    variables = jax.tree.map(np.asarray, classifier.variables)
    (batch,) = jax_export.symbolic_shape('batch')
    shape = jax.ShapeDtypeStruct((batch, *classifier.run.input_shape), np.uint8)

    def probabilities(images: jax.Array) -> jax.Array:
        return classifier.probabilities(variables, images)

    # Leave out the CPU kernels of `vision.models.cpu`: the program must run on other platforms.
    with xla_only():
        exported = jax_export.export(jax.jit(probabilities), platforms=PLATFORMS)(shape)
    return bytes(exported.serialize())


def _check_images(classifier: Classifier) -> np.ndarray:
    """Returns images for the check: from the run's data, or drawn if the run has no data."""
    if classifier.run.path.is_dir():
        return real_images(classifier)
    # Pretrained weights: coarse squares with noise.
    height, width, channels = classifier.run.input_shape
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (_DRAWN, 8, 8, channels))
    squares = coarse[:, np.arange(height) * 8 // height][:, :, np.arange(width) * 8 // width]
    noise = rng.integers(-32, 33, squares.shape)
    return np.clip(squares + noise, 0, 255).astype(np.uint8)


def real_images(classifier: Classifier, count: int = _CHECKED) -> np.ndarray:
    """Returns up to `count` preprocessed images of the run's data, uint8 [N, H, W, C].

    Raises:
      UserError: the data are missing, or no image can be read.
    """
    source = _any_split(classifier)
    images = np.empty((0, *classifier.run.input_shape), np.uint8)
    for batch in Feed(classifier.run).source(source).batches:
        # The mask leaves out padding and images that cannot be read.
        fed = np.asarray(batch['image'])[np.asarray(batch['mask']) > 0]
        rounded = np.clip(np.rint(fed), 0, 255).astype(np.uint8)
        images = np.concatenate([images, rounded])[:count]
        if len(images) == count:
            break
    if not len(images):
        raise UserError(f'{source.name} has no readable image to check the exported model with')
    return images


def _any_split(classifier: Classifier) -> Source:
    for split in ('test', 'validation'):
        try:
            return data.load(classifier.run.config.data, split)
        except UserError:  # the data set has no such split
            continue
    return data.load(classifier.run.config.data, 'train')


def _difference(classifier: Classifier, program: bytes, images: np.ndarray) -> float:
    """Returns the largest difference between the program's and the model's probabilities."""
    from jax import export as jax_export

    ours = np.asarray(jax.jit(classifier.probabilities)(classifier.variables, images))
    if not np.isfinite(ours).all():
        raise UserError(
            f'{classifier.run.path}: the probabilities of images of its own data are not finite; '
            'choose another --checkpoint'
        )
    exported = np.asarray(jax_export.deserialize(bytearray(program)).call(images))
    return float(np.abs(exported - ours).max())
