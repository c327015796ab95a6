"""Export: a run's model as StableHLO, which runs where there is nothing but JAX and NumPy."""

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
_CHECKED = 64  # images
# Of a probability; what XLA fuses, it rounds to bfloat16 less often.
_TOLERANCE, _TOLERANCE_16_BIT = 1e-4, 5e-2


def export(classifier: Classifier, output: AnyPath) -> dict[str, Any]:
    """Writes a model, its weights and its normalisation, as one file, and checks it.

    The file is a `jax.export.Exported`, serialised. It takes uint8 [B, H, W, C] of the size that
    the model is fed, for any B ≥ 1, and returns probabilities float32 [B, K], on a CPU, GPU or TPU.
    The resizing and cropping before are not in it.

    Args:
      classifier: of a workdir.
      output: the file; written whole or not at all, and only if it passes the check.

    Returns:
      `{'output', 'bytes', 'platforms', 'input' [H, W, C], 'classes' K, 'checked' (images),
      'largest_difference' (of a probability)}`.

    Raises:
      UserError: the file cannot be written, there is no image to check it with, or the model's answers are not finite.
      RuntimeError: what was written does not answer as the model does.
    """
    path = output_file('output', output)
    images = real_images(classifier)
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
    """The classifier, weights included, as a serialised `jax.export.Exported`."""
    from jax import export as jax_export

    # NumPy arrays are constants of the program, and belong to no device.
    variables = jax.tree.map(np.asarray, classifier.variables)
    (batch,) = jax_export.symbolic_shape('batch')
    shape = jax.ShapeDtypeStruct((batch, *classifier.run.input_shape), np.uint8)

    def probabilities(images: jax.Array) -> jax.Array:
        return classifier.probabilities(variables, images)

    with xla_only():  # it is for other machines too
        exported = jax_export.export(jax.jit(probabilities), platforms=PLATFORMS)(shape)
    return bytes(exported.serialize())


def real_images(classifier: Classifier, count: int = _CHECKED) -> np.ndarray:
    """Images of the run's own data as the model is fed them, uint8 [N, H, W, C], N ≤ count.

    Raises:
      UserError: the data are not there.
    """
    source = _any_split(classifier)
    images = np.empty((0, *classifier.run.input_shape), np.uint8)
    for batch in Feed(classifier.run).source(source).batches:
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
        except UserError:  # none, or none of a small folder's images
            continue
    return data.load(classifier.run.config.data, 'train')


def _difference(classifier: Classifier, program: bytes, images: np.ndarray) -> float:
    """The largest difference between the file's probabilities and the model's."""
    from jax import export as jax_export

    ours = np.asarray(jax.jit(classifier.probabilities)(classifier.variables, images))
    if not np.isfinite(ours).all():
        raise UserError(
            f'{classifier.run.path}: the probabilities of images of its own data are not finite; take another --checkpoint'
        )
    theirs = np.asarray(jax_export.deserialize(bytearray(program)).call(images))
    return float(np.abs(theirs - ours).max())
