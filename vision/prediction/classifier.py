"""The classifier of a trained run: predictions, embeddings and heat maps for new images."""

import functools
import hashlib
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision.core import mesh as mesh_lib
from vision.core.errors import UserError, at_least_one, unknown
from vision.core.text import AnyPath, as_path
from vision.data.source import FileSource, Source
from vision.evaluation.run import Run, load_run, pretrained_run
from vision.models.weights.fold import fold_batch_norm
from vision.prediction import gradcam
from vision.prediction.feed import Fed, Feed, files
from vision.prediction.gradcam import Explanation
from vision.prediction.stream import Stream
from vision.task import Task

_GEM, _POWER = ':gem', 3.0  # ending of an endpoint whose feature maps have a generalized mean
_FEW = 4  # maximum number of images for which full optimisation takes longer than it saves
_LONGEST = 1000  # characters of a path that a message shows in full
_NOT_FINITE = "the model's probabilities are not finite"

# One image or several: paths, encoded bytes, `PIL.Image`s, uint8 arrays [H, W, C] or [H, W], or one
# uint8 array [N, H, W, C]. Files and `PIL.Image`s may have any size. Arrays must look like the
# run's training data before preprocessing, with the same shape if that data has a fixed shape.
Images = Any


class Classifier:
    """A trained model together with its evaluation preprocessing.

    The methods accept one image or several: paths, encoded bytes, `PIL.Image`s, and uint8 arrays in
    the format of the run's data before preprocessing. One image counts as N = 1. The methods are
    thread-safe.

    Attributes:
      class_names: K names, in the order of the probabilities.
      run: the loaded run, with its config, shapes and variables.
    """

    def __init__(self, run: Run | AnyPath, fold: bool = True):
        """Builds a classifier from a run or a workdir.

        Args:
          run: a loaded run, or the path of a workdir.
          fold: fold BatchNorm into the convolutions. This is faster; probabilities change by at
            most 1e-4.
        """
        run = run if isinstance(run, Run) else load_run(run)
        self.class_names, self.run = run.class_names, run
        self.model, self.variables = run.model, run.variables
        if fold:
            # Fold on the host: on the device, the arithmetic would be compiled for each shape.
            trained = jax.device_get(run.variables)
            folded, variables = fold_batch_norm(run.model, trained, run.input_shape)
            self.model, self.variables = folded, mesh_lib.put_replicated(variables, run.mesh)
        self._feed, self._computed = Feed(run), Stream(run)

    @classmethod
    def from_workdir(
        cls, workdir: AnyPath, checkpoint: str = 'best', fold: bool = True
    ) -> 'Classifier':
        """Loads a classifier from a workdir.

        Args:
          workdir: the directory that training wrote.
          checkpoint: 'best', 'last' or a step.
          fold: fold BatchNorm into the convolutions.

        Raises:
          UserError: the run or the checkpoint does not exist.
        """
        return cls(load_run(workdir, checkpoint), fold)

    @classmethod
    def from_pretrained(
        cls, source: AnyPath, model: str | None = None, fold: bool = True, classify: bool = True
    ) -> 'Classifier':
        """Loads a classifier from torchvision or timm ImageNet weights, or from a workdir.

        Args:
          source: a workdir, a `.safetensors` or `.pth` file, 'hf:org/name', or the name of
            packaged weights: 'efficientnet_lite0', 'efficientnet_lite1' or 'efficientnet_lite2'.
          model: the model's name in the registry. By default it is inferred from the beginning of
            the source's name.
          fold: fold BatchNorm into the convolutions.
          classify: whether the source must have ImageNet's classifier; False to embed only.

        Raises:
          UserError: the source cannot be read, or its tensors do not match the model.
        """
        source = source if isinstance(source, str) else os.fsdecode(as_path(source))
        if os.path.isdir(source):
            return cls.from_workdir(source, fold=fold)
        return cls(pretrained_run(source, model, classify), fold)

    @property
    def classifies(self) -> bool:
        """True if the task has class probabilities; without them, a model only embeds."""
        return type(self.run.task).probabilities is not Task.probabilities

    def expect(self, num_images: int) -> None:
        """Sets the number of images that this process will classify; call it before the first one.

        For up to 4 images, programs are compiled in a fraction of the time, and run slower on CPUs
        (`docs/performance.md`). Probabilities change by at most 1e-4.
        """
        if num_images <= _FEW:
            self._computed.compile_quickly()

    def __call__(self, images: Images) -> np.ndarray:
        """Classifies images.

        Args:
          images: N images in any form listed at `Images`.

        Returns:
          Probabilities, float32 [N, K].

        Raises:
          UserError: an image cannot be read, or has a type or shape that the model does not accept.
        """
        return self._probabilities(self._feed.gather(images)[0])

    def predict(
        self, images: Images, top_k: int = 5
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """Returns the most probable classes of images.

        Args:
          images: as for `__call__`.
          top_k: the number of classes to return, at most K.

        Returns:
          `[(class, probability), …]` in order of decreasing probability. For several images, a list
          of such lists.

        Raises:
          UserError: as for `__call__`, or the probabilities are not finite.
        """
        at_least_one('top_k', top_k)
        source, one = self._feed.gather(images)
        answers = []
        for i, row in enumerate(self._probabilities(source)):
            if not np.isfinite(row).all():
                raise UserError(f'{source.name_of(i)}: {_NOT_FINITE}')
            answers.append([(self.class_names[c], p) for c, p in self._named(row, top_k)])
        return answers[0] if one else answers

    def embed(self, images: Images, endpoint: str = 'features') -> np.ndarray:
        """Computes embeddings of images, for search or as features of another classifier.

        Args:
          images: as for `__call__`.
          endpoint: a stage of the model, or 'logits'. 'features' is the input of the last layer.
            Feature maps [H, W, D] are averaged over their positions; 'STAGE:gem' is their
            generalized mean (Radenović et al. 2018, "Fine-tuning CNN image retrieval with no human
            annotation", section 3.2), with p = 3.

        Returns:
          float32 [N, D].

        Raises:
          UserError: as for `__call__`, or the endpoint is unknown.
        """
        source, _ = self._feed.gather(images)
        if not source.num_examples:
            return np.empty((0, self.embedding_size(endpoint)), np.float32)
        return self._collect(source, functools.partial(self.embedding, endpoint=endpoint))

    def embedding_size(self, endpoint: str = 'features') -> int:
        """Returns the length D of `embed`'s vectors; raises UserError for an unknown endpoint."""
        embedding = functools.partial(self.embedding, endpoint=endpoint)
        # Trace the model on shapes only; nothing is computed.
        one = jax.ShapeDtypeStruct((1, *self.run.input_shape), np.uint8)
        return jax.eval_shape(embedding, self.variables, one).shape[1]

    def explain(
        self,
        images: Images,
        classes: Sequence[int] | np.ndarray | int | None = None,
        stage: str | None = None,
    ) -> np.ndarray:
        """Computes a Grad-CAM heat map of one class for each image.

        Args:
          images: as for `__call__`.
          classes: int [N], or one class for all images. The default is the most probable class of
            each image.
          stage: the stage whose feature maps are weighted. By default the last stage with more than
            one position.

        Returns:
          Heat maps, float32 [N, H, W] in 0 … 1, where H and W are the model's input size. A map is
          0 everywhere if no position supports the class.

        Raises:
          UserError: as for `__call__`, or the stage or a class is unknown.
        """
        source, _ = self._feed.gather(images)
        count = source.num_examples
        # Broadcast the classes to one for each image; −1 stands for the most probable class.
        try:
            wanted = np.asarray(-1 if classes is None else classes)
            if wanted.size and wanted.dtype.kind not in 'iu':
                raise ValueError
            wanted = np.broadcast_to(wanted.astype(np.int32), (count,))
        except ValueError:
            raise UserError(
                f'classes must be one number, or one for each of {count} images'
            ) from None
        if classes is not None and count and not 0 <= wanted.min() <= wanted.max() < self._k:
            raise UserError(f'classes must be in 0 … {self._k - 1}, not {np.asarray(classes)}')
        if not count:
            return np.empty((0, *self.run.input_shape[:2]), np.float32)
        # One class for each image: the second axis of the maps has length 1.
        function = functools.partial(self._explanation, stage=stage)
        maps = self._collect(source, function, wanted[:, None], operator.itemgetter('maps'))
        return maps[:, 0]

    def classify_files(
        self, paths: AnyPath | Iterable[AnyPath], top_k: int = 5
    ) -> Iterator[dict[str, Any]]:
        """Classifies image files, folders and globs, and yields each prediction when it is ready.

        Args:
          paths: one or several files, folders (searched recursively) or globs. A file that is named
            explicitly gets a result even if it is not an image.
          top_k: the number of classes of each prediction, at most K.

        Yields:
          For each file `{'path', 'predictions': [{'class', 'index', 'probability'}, …], 'error'}`,
          the most probable class first. `error` is None, or the reason why `predictions` is empty.

        Raises:
          UserError: a folder or glob has no images.
        """
        return self.classify_source(files(paths), top_k)

    def classify_source(self, source: FileSource, top_k: int = 5) -> Iterator[dict[str, Any]]:
        """Classifies the files of a source; yields the same dictionaries as `classify_files`."""
        at_least_one('top_k', top_k)
        fed = self._feed.source(source)
        for start, probabilities, mask in self._computed(self.variables, fed, self.probabilities):
            for i, (row, real) in enumerate(zip(probabilities, mask, strict=True)):
                # A file that could not be read has mask 0; its reason is recorded by path.
                path = source.paths[start + i]
                error = None if real else fed.corrupt()[path]
                if error is None and not np.isfinite(row).all():
                    error = _NOT_FINITE
                predictions = [] if error else self.predictions(row, top_k)
                yield {'path': str(Path(path)), 'predictions': predictions, 'error': error}

    def predictions(self, probabilities: np.ndarray, top_k: int = 5) -> list[dict[str, Any]]:
        """Returns the predictions of one image, as `classify_files` yields them.

        Args:
          probabilities: float32 [K].
          top_k: the number of classes, at most K.
        """
        return [
            {'class': self.class_names[c], 'index': c, 'probability': p}
            for c, p in self._named(probabilities, top_k)
        ]

    def embed_source(
        self, source: Source, endpoint: str = 'features'
    ) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str]]]:
        """Computes embeddings of the files or split of a source, batch by batch.

        Yields:
          For each batch: the source indices of its readable images (int64 [n]), their vectors
          (float32 [n, D]), and a dict from the index of each failed image to the reason.
        """
        fed = self._feed.source(source)
        embedding = functools.partial(self.embedding, endpoint=endpoint)
        for start, vectors, mask in self._computed(self.variables, fed, embedding):
            # An image fails if it cannot be read or if its vector is not finite.
            good = (mask > 0) & np.isfinite(vectors).all(axis=1)
            failed = {
                start + int(i): _reason(fed, source, start + int(i)) for i in np.flatnonzero(~good)
            }
            yield start + np.flatnonzero(good), vectors[good], failed

    def embed_prepared(
        self, images: Iterable[np.ndarray | None], count: int, endpoint: str = 'features'
    ) -> Iterator[np.ndarray]:
        """Computes embeddings of images that `prepare` has preprocessed.

        Args:
          images: `count` results of `prepare`, or None for images that could not be read.
          count: the number of images.
          endpoint: as for `embed`.

        Yields:
          The vectors of each batch, float32 [n, D]; those for None are undefined.
        """
        embedding = functools.partial(self.embedding, endpoint=endpoint)
        for _, vectors, _ in self._computed(
            self.variables, self._feed.prepared(images, count), embedding
        ):
            yield vectors

    def answer_prepared(
        self, images: Iterable[np.ndarray], count: int, endpoint: str = 'features'
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Classifies and embeds images in one forward pass.

        Args:
          images: `count` results of `prepare` or `prepare_encoded`.
          count: the number of images.
          endpoint: as for `embed`.

        Yields:
          The probabilities of each batch, float32 [n, K], and the vectors, float32 [n, D].
        """
        answers = functools.partial(self._answers, endpoint=endpoint)
        for _, outputs, _ in self._computed(
            self.variables, self._feed.prepared(images, count), answers
        ):
            yield outputs

    @property
    def prepare(self) -> Callable[[np.ndarray], np.ndarray]:
        """The part of the preprocessing that runs on the host; see `Feed.prepare`."""
        return self._feed.prepare

    @property
    def prepare_encoded(self) -> Callable[[bytes], np.ndarray]:
        """The host's part of the preprocessing of one image file; see `Feed.prepare_encoded`."""
        return self._feed.prepare_encoded

    @property
    def channels(self) -> int:
        """The number of channels of a decoded image, 3 or 1."""
        return self._feed.channels

    def explain_source(self, source: Source, top_k: int = 3) -> Iterator[Explanation]:
        """Yields the heat maps of the `top_k` most probable classes for each image of a source.

        Images that cannot be read are skipped. See `explain`.
        """
        fed = self._feed.source(source)
        ranks = -1 - np.arange(min(at_least_one('top_k', top_k), self._k), dtype=np.int32)
        wanted = np.broadcast_to(ranks, (source.num_examples, len(ranks)))
        for start, outputs, mask in self._computed(self.variables, fed, self._explanation, wanted):
            for i in np.flatnonzero(mask):
                # Sort by logits, as the maps are sorted: two small probabilities may both be 0.
                order = np.argsort(-outputs['logits'][i][: self._k], kind='stable')[: len(ranks)]
                yield Explanation(
                    index=start + int(i),
                    image=np.clip(np.rint(outputs['image'][i]), 0, 255).astype(np.uint8),
                    classes=order.astype(np.int32),
                    probabilities=outputs['probabilities'][i][order],
                    maps=outputs['maps'][i],
                )

    def probabilities(self, variables: Any, images: jax.Array) -> jax.Array:
        """Computes probabilities as a pure function, for `jax.jit` and export.

        Args:
          variables: the classifier's `variables`.
          images: [B, H, W, C] in 0 … 255, of the model's input size.

        Returns:
          Probabilities float32 [B, K].
        """
        outputs, _ = self.model.apply(variables, self._normalised(images), train=False)
        return self.run.task.probabilities(outputs)

    def embedding(self, variables: Any, images: jax.Array, endpoint: str) -> jax.Array:
        """Computes embeddings, float32 [B, D], as a pure function of variables and images."""
        return self._outputs(variables, images, endpoint)[1]

    @functools.cached_property
    def digest(self) -> str:
        """Fingerprint of the run's weights: 16 hexadecimal digits of a SHA-256 hash."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.run.variables):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    @property
    def _k(self) -> int:
        return len(self.class_names)

    def _explanation(
        self, variables: Any, images: jax.Array, classes: jax.Array, stage: str | None = None
    ) -> dict[str, jax.Array]:
        maps, logits = gradcam.grad_cam(
            self.model, variables, self._normalised(images), classes, stage
        )
        return {
            'maps': gradcam.enlarge(maps, *images.shape[1:3]),
            'logits': logits,
            'probabilities': self.run.task.probabilities(logits),
            'image': images,
        }

    def _normalised(self, images: jax.Array) -> jax.Array:
        return self.run.task.normalise(images)

    def _answers(
        self, variables: Any, images: jax.Array, endpoint: str
    ) -> tuple[jax.Array, jax.Array]:
        """Computes probabilities [B, K] and embeddings [B, D]."""
        logits, vectors = self._outputs(variables, images, endpoint)
        return self.run.task.probabilities(logits), vectors

    def _outputs(
        self, variables: Any, images: jax.Array, endpoint: str
    ) -> tuple[jax.Array, jax.Array]:
        """Computes logits [B, K] and embeddings [B, D]; works for tasks without probabilities."""
        logits, endpoints = self.model.apply(variables, self._normalised(images), train=False)
        return logits, _vectors({**endpoints, 'logits': logits}, endpoint)

    def _named(self, probabilities: np.ndarray, top_k: int) -> list[tuple[int, float]]:
        """Returns the (class index, probability) pairs of a prediction."""
        named = self.run.task.named(probabilities, top_k)
        return [(int(c), float(probabilities[c])) for c in named]

    def _probabilities(self, source: Source) -> np.ndarray:
        if not source.num_examples:
            return np.empty((0, self._k), np.float32)
        return self._collect(source, self.probabilities)

    def _collect(
        self,
        source: Source,
        function: Callable,
        extra: np.ndarray | None = None,
        of: Callable = lambda outputs: outputs,
    ) -> np.ndarray:
        """Concatenates `of(outputs)` over all batches, [N, …]; every image must be readable."""
        fed = self._feed.source(source)
        parts = []
        for _, outputs, _ in self._computed(self.variables, fed, function, extra):
            for name, reason in fed.corrupt().items():
                # Shorten the name: it may be megabytes of base64 that was passed as a path.
                shown = name if len(name) < _LONGEST else f'{name[:60]}…'
                raise UserError(f'{shown} cannot be read: {reason}')
            parts.append(of(outputs))
        return np.concatenate(parts)


def _vectors(known: dict[str, jax.Array], endpoint: str) -> jax.Array:
    """Returns the vectors of an endpoint, float32 [B, D]; see `Classifier.embed`."""
    name, gem = endpoint.removesuffix(_GEM), endpoint.endswith(_GEM)
    if name not in known:
        raise unknown('endpoint', name, known)
    x = known[name].astype(jnp.float32)
    if gem and x.ndim != 4:
        maps = ', '.join(k for k, v in known.items() if v.ndim == 4)
        raise UserError(f'{endpoint}: {name} has no positions to pool; use one of {maps}')
    if gem:
        from vision.models.resnet import power_pool

        return power_pool(x, _POWER)
    # Average feature maps over their positions; flatten anything else.
    return x.mean(axis=(1, 2)) if x.ndim == 4 else x.reshape(len(x), -1)


def _reason(fed: Fed, source: Source, index: int) -> str:
    """Returns the reason why an example has no vector."""
    return fed.corrupt().get(source.name_of(index), "the model's features are not finite")
