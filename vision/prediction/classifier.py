"""Step 6, predict: a trained run answers for new images, in memory or in files."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.data.source import ArraySource, FileSource
from vision.evaluation.run import Run, load_run, pretrained_run
from vision.models.fold import fold_batch_norm
from vision.preprocess import device, inputs
from vision.preprocess.device import Batch, normalise


class Classifier:
    """A trained model and the preprocessing that it was evaluated with.

    Calls may come from several threads. Batches are padded to one size a call, a power of two up
    to `evaluation.batch_size`, so that few shapes are ever compiled.

    Attributes:
      class_names: K names, in the order of the probabilities.
    """

    def __init__(self, run: Run, fold: bool = True):
        """Takes a run; `fold` folds BatchNorm into the convolutions: faster, equal within 1e-4."""
        self.class_names = run.class_names
        self._run = run
        self._model, self._variables = run.model, run.variables
        if fold:
            folded, variables = fold_batch_norm(run.model, run.variables, run.input_shape)
            self._model, self._variables = folded, mesh_lib.put_replicated(variables, run.mesh)
        self._apply = jax.jit(self._probabilities, out_shardings=mesh_lib.replicated(run.mesh))

    @classmethod
    def from_workdir(
        cls, workdir: str | os.PathLike, checkpoint: str = 'best', fold: bool = True
    ) -> 'Classifier':
        """Reads a run.

        Args:
          workdir: of the run.
          checkpoint: 'best', 'last' or a step.
          fold: fold BatchNorm into the convolutions.

        Raises:
          UserError: no such run or checkpoint.
        """
        return cls(load_run(workdir, checkpoint), fold)

    @classmethod
    def from_pretrained(
        cls, source: str, model: str | None = None, fold: bool = True
    ) -> 'Classifier':
        """Reads ImageNet weights of torchvision or timm, or a workdir.

        Args:
          source: a `.safetensors` or `.pth` file, 'hf:org/name', or a workdir.
          model: the model's name in the registry; by default what the source's name begins with.
          fold: fold BatchNorm into the convolutions.

        Raises:
          UserError: the source cannot be read, or its tensors are not the model's.
        """
        if os.path.isdir(source):
            return cls.from_workdir(source, fold=fold)
        return cls(pretrained_run(source, model), fold)

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Classifies images that are in memory.

        Args:
          images: uint8 [N, H, W, C], as the run's source would give them: before preprocessing.

        Returns:
          Probabilities, float32 [N, K].

        Raises:
          UserError: images of another type or shape than the model can take.
        """
        images = self._checked(np.asarray(images))
        if not len(images):
            return np.empty((0, len(self.class_names)), np.float32)
        source = ArraySource('images', self.class_names, images, np.zeros(len(images), np.int32))
        return np.concatenate([p[m > 0] for p, m in self._run_model(self._array_batches(source))])

    def classify_files(
        self, paths: Sequence[str | os.PathLike], top_k: int = 5
    ) -> Iterator[dict[str, Any]]:
        """Classifies image files, folders and globs, in a stream.

        Args:
          paths: files (answered even if they are no images), folders (every image below), globs.
          top_k: how many classes a prediction names, at most K.

        Yields:
          For each file `{'path', 'predictions': [{'class', 'index', 'probability'}, …], 'error'}`,
          the likeliest class first; `error` is None or the reason, and then there are none.

        Raises:
          UserError: a folder or glob without images.
        """
        from vision.data.folder import files

        source = files([os.fspath(p) for p in paths])
        batches, corrupt = self._file_batches(source)
        done = 0
        for probabilities, mask in self._run_model(batches):
            for row, real in zip(probabilities, mask, strict=True):
                if done == source.num_examples:
                    break
                path = source.paths[done]
                error = None if real else corrupt()[path]
                yield self._prediction(path, row, error, top_k)
                done += 1

    def _probabilities(self, variables: Any, images: jax.Array) -> jax.Array:
        preprocess = self._run.config.preprocess
        x = normalise(images, preprocess.mean, preprocess.std)
        logits, _ = self._model.apply(variables, x, train=False)
        return jax.nn.softmax(logits)

    def _run_model(self, batches: Iterator[Batch]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the probabilities [B, K] and the mask [B] of each batch, one batch behind."""
        previous = None
        for batch in batches:
            shape = batch['image'].shape[1:]
            if shape != self._run.input_shape:
                raise UserError(
                    f'preprocessing makes images of {list(shape)}; '
                    f'the model was trained on {list(self._run.input_shape)}'
                )
            current = self._apply(self._variables, batch['image']), batch['mask']
            if previous is not None:
                yield jax.device_get(previous)
            previous = current
        if previous is not None:
            yield jax.device_get(previous)

    def _array_batches(self, source: ArraySource) -> Iterator[Batch]:
        ops, size = self._run.config.preprocess.eval, self._batch_size(source.num_examples)
        if not inputs.on_device(source, ops):
            yield from inputs.EvalBatches(source, ops, size, self._run.mesh)
            return
        size *= self._run.mesh.size
        for start in range(0, source.num_examples, size):
            yield self._device_batch(source.images[start : start + size], size)

    def _device_batch(self, images: np.ndarray, size: int, mask: np.ndarray | None = None) -> Batch:
        """Preprocesses up to `size` images on the device, padded to that many."""
        real = np.ones(len(images), bool) if mask is None else mask > 0
        ids = np.full(size, -1)
        ids[: len(images)] = np.where(real, np.arange(len(images)), -1)
        padded = np.zeros((size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        source = ArraySource('images', self.class_names, padded, np.zeros(size, np.int32))
        ops = self._run.config.preprocess.eval
        split = device.DeviceSplit(source, ops, 0, self._run.mesh)
        return split.batch(ids, np.zeros(size, np.int64))

    def _file_batches(
        self, source: FileSource
    ) -> tuple[Iterator[Batch], Callable[[], dict[str, str]]]:
        """Batches of files, and what says which of those so far could not be read, and why."""
        run, size = self._run, self._batch_size(source.num_examples)
        ops = run.config.preprocess.eval
        if run.image_shape is None or not device.can_run(ops):
            every = inputs.EvalBatches(source, ops, size, run.mesh, skip_corrupt=True)
            return iter(every), lambda: every.corrupt
        # The run's source had images of one size in memory: bring files to that size first.
        from vision.preprocess import pipeline

        size *= run.mesh.size
        height, width, channels = run.image_shape
        decoded = pipeline.eval_batches(
            source,
            f'decode(channels={channels})|resize({height}, {width})',
            batch_size=size,
            skip_corrupt=True,
        )
        batches = (self._device_batch(b['image'], size, b['mask']) for b in decoded)
        return batches, lambda: decoded.corrupt

    def _batch_size(self, num_examples: int) -> int:
        """For each device: a power of two, up to what evaluation uses."""
        share = -(-num_examples // self._run.mesh.size)
        return min(self._run.config.evaluation.batch_size, 1 << (share - 1).bit_length())

    def _checked(self, images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(
                f'images must be uint8 [N, H, W, C], not {images.dtype} {list(images.shape)}'
            )
        expected = self._run.image_shape
        if expected is not None and images.shape[1:] != expected and len(images):
            raise UserError(
                f'images of {list(images.shape[1:])}; the run was trained on images of '
                f'{list(expected)}: resize them, or give their files'
            )
        return images

    def _prediction(
        self, path: str, probabilities: np.ndarray, error: str | None, top_k: int
    ) -> dict[str, Any]:
        order: Iterable[int] = [] if error else np.argsort(-probabilities, kind='stable')[:top_k]
        predictions = [
            {
                'class': self.class_names[i],
                'index': int(i),
                'probability': float(probabilities[i]),
            }
            for i in order
        ]
        return {'path': str(Path(path)), 'predictions': predictions, 'error': error}
