"""Step 6, predict: a trained run answers for new images, in memory or in files."""

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

_LONGEST = 1000  # characters of a path in a message
_NOT_FINITE = "the model's probabilities are not finite"

# One image or several: paths, encoded bytes, `PIL.Image`s, arrays uint8 [H, W, C] or [H, W]; an array
# uint8 [N, H, W, C]. Paths, bytes and Pillow's images are of any size. Arrays are as the run's source
# would give them, before preprocessing: of its own size where it has one.
Images = Any


class Classifier:
    """A trained model and the preprocessing that it was evaluated with.

    Calls may come from several threads. They take what people have in hand, one image or several:
    paths, encoded bytes, `PIL.Image`s, and uint8 arrays as the run's source would give them (before
    preprocessing). One image counts as N = 1.

    Attributes:
      class_names: K names, in the order of the probabilities.
      run: what was read: config, shapes, variables.
    """

    def __init__(self, run: Run | AnyPath, fold: bool = True):
        """Takes a run, or its workdir; `fold` folds BatchNorm into the convolutions: faster, equal within 1e-4."""
        run = run if isinstance(run, Run) else load_run(run)
        self.class_names, self.run = run.class_names, run
        self.model, self.variables = run.model, run.variables
        if fold:
            # On the host: on the device each shape's arithmetic would be compiled.
            trained = jax.device_get(run.variables)
            folded, variables = fold_batch_norm(run.model, trained, run.input_shape)
            self.model, self.variables = folded, mesh_lib.put_replicated(variables, run.mesh)
        self._feed, self._computed = Feed(run), Stream(run)

    @classmethod
    def from_workdir(
        cls, workdir: AnyPath, checkpoint: str = 'best', fold: bool = True
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
        cls, source: AnyPath, model: str | None = None, fold: bool = True
    ) -> 'Classifier':
        """Reads ImageNet weights of torchvision or timm, or a workdir.

        Args:
          source: a workdir, a `.safetensors` or `.pth` file, 'hf:org/name', or the name of
            packaged weights: 'efficientnet_lite0', …'lite2'.
          model: the model's name in the registry; by default what the source's name begins with.
          fold: fold BatchNorm into the convolutions.

        Raises:
          UserError: the source cannot be read, or its tensors are not the model's.
        """
        source = source if isinstance(source, str) else os.fsdecode(as_path(source))
        if os.path.isdir(source):
            return cls.from_workdir(source, fold=fold)
        return cls(pretrained_run(source, model), fold)

    def __call__(self, images: Images) -> np.ndarray:
        """Classifies images.

        Args:
          images: N, in any of the forms that `Images` names.

        Returns:
          Probabilities, float32 [N, K].

        Raises:
          UserError: images of another type or shape than the model can take, or one that cannot
            be read.
        """
        return self._probabilities(self._feed.gather(images)[0])

    def predict(
        self, images: Images, top_k: int = 5
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """Names the likeliest classes of images.

        Args:
          images: as for a call.
          top_k: how many classes are named, at most K.

        Returns:
          `[(class, probability), …]`, the likeliest first; of several images a list of such lists.

        Raises:
          UserError: as for a call; or probabilities that are not finite.
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
        """Describes images by vectors: for search, or for a classifier of one's own.

        Args:
          images: as for a call.
          endpoint: a stage of the model, or 'logits'; `features` is what the last layer sees. The
            maps of a stage [H, W, D] are averaged over their positions.

        Returns:
          float32 [N, D].

        Raises:
          UserError: as for a call; or an unknown endpoint.
        """
        source, _ = self._feed.gather(images)
        if not source.num_examples:
            return np.empty((0, self.embedding_size(endpoint)), np.float32)
        return self._collect(source, functools.partial(self.embedding, endpoint=endpoint))

    def embedding_size(self, endpoint: str = 'features') -> int:
        """The length D of the vectors that `embed` returns; UserError for an unknown endpoint."""
        embedding = functools.partial(self.embedding, endpoint=endpoint)
        one = jax.ShapeDtypeStruct((1, *self.run.input_shape), np.uint8)
        return jax.eval_shape(embedding, self.variables, one).shape[1]

    def explain(
        self,
        images: Images,
        classes: Sequence[int] | np.ndarray | int | None = None,
        stage: str | None = None,
    ) -> np.ndarray:
        """Shows where in each image the evidence for a class lies (Grad-CAM).

        Args:
          images: as for a call.
          classes: int [N], or one for all; by default each image's likeliest.
          stage: whose maps are weighted; by default the last with more than one position.

        Returns:
          Heat maps, float32 [N, H, W] in 0 … 1, of the size that the model is fed; all 0 where
          nothing speaks for the class.

        Raises:
          UserError: as for a call; or an unknown stage or class.
        """
        source, _ = self._feed.gather(images)
        count = source.num_examples
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
        function = functools.partial(self._explanation, stage=stage)
        maps = self._collect(source, function, wanted[:, None], operator.itemgetter('maps'))
        return maps[:, 0]

    def classify_files(
        self, paths: AnyPath | Iterable[AnyPath], top_k: int = 5
    ) -> Iterator[dict[str, Any]]:
        """Classifies image files, folders and globs, in a stream.

        Args:
          paths: files (answered even if they are no images), folders (every image below), globs;
            one or several.
          top_k: how many classes a prediction names, at most K.

        Yields:
          For each file `{'path', 'predictions': [{'class', 'index', 'probability'}, …], 'error'}`,
          the likeliest class first; `error` is None or the reason, and then there are none.

        Raises:
          UserError: a folder or glob without images.
        """
        return self.classify_source(files(paths), top_k)

    def classify_source(self, source: FileSource, top_k: int = 5) -> Iterator[dict[str, Any]]:
        """`classify_files` for files that were listed before."""
        at_least_one('top_k', top_k)
        fed = self._feed.source(source)
        for start, probabilities, mask in self._computed(self.variables, fed, self.probabilities):
            for i, (row, real) in enumerate(zip(probabilities, mask, strict=True)):
                path = source.paths[start + i]
                error = None if real else fed.corrupt()[path]
                if error is None and not np.isfinite(row).all():
                    error = _NOT_FINITE
                named = [] if error else self._named(row, top_k)
                predictions = [
                    {'class': self.class_names[c], 'index': c, 'probability': p} for c, p in named
                ]
                yield {'path': str(Path(path)), 'predictions': predictions, 'error': error}

    def embed_source(
        self, source: Source, endpoint: str = 'features'
    ) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str]]]:
        """Describes files or a split by vectors, in a stream; what cannot be read is left out.

        Yields:
          For each batch the images' indices in the source (int64 [n]), their vectors
          (float32 [n, D]), and why others of the batch could not be read, by index.
        """
        fed = self._feed.source(source)
        embedding = functools.partial(self.embedding, endpoint=endpoint)
        for start, vectors, mask in self._computed(self.variables, fed, embedding):
            good = (mask > 0) & np.isfinite(vectors).all(axis=1)
            failed = {
                start + int(i): _reason(fed, source, start + int(i)) for i in np.flatnonzero(~good)
            }
            yield start + np.flatnonzero(good), vectors[good], failed

    def explain_source(self, source: Source, top_k: int = 3) -> Iterator[Explanation]:
        """Explains the likeliest classes of files or a split, in a stream; see `explain`.

        What cannot be read is left out.
        """
        fed = self._feed.source(source)
        ranks = -1 - np.arange(min(at_least_one('top_k', top_k), self._k), dtype=np.int32)
        wanted = np.broadcast_to(ranks, (source.num_examples, len(ranks)))
        for start, outputs, mask in self._computed(self.variables, fed, self._explanation, wanted):
            for i in np.flatnonzero(mask):
                # By logits, as the maps are: small probabilities may be equal, to zero.
                order = np.argsort(-outputs['logits'][i][: self._k], kind='stable')[: len(ranks)]
                yield Explanation(
                    index=start + int(i),
                    image=np.clip(np.rint(outputs['image'][i]), 0, 255).astype(np.uint8),
                    classes=order.astype(np.int32),
                    probabilities=outputs['probabilities'][i][order],
                    maps=outputs['maps'][i],
                )

    def probabilities(self, variables: Any, images: jax.Array) -> jax.Array:
        """The classifier as a pure function.

        Args:
          variables: the classifier's own.
          images: [B, H, W, C] in 0 … 255, of the size that the model is fed.

        Returns:
          Probabilities float32 [B, K].
        """
        outputs, _ = self.model.apply(variables, self._normalised(images), train=False)
        return self.run.task.probabilities(outputs)

    def embedding(self, variables: Any, images: jax.Array, endpoint: str) -> jax.Array:
        """`embed` as a pure function; arguments as for `probabilities`, returns float32 [B, D]."""
        logits, endpoints = self.model.apply(variables, self._normalised(images), train=False)
        known = {**endpoints, 'logits': logits}
        if endpoint not in known:
            raise unknown('endpoint', endpoint, known)
        x = known[endpoint].astype(jnp.float32)
        return x.mean(axis=(1, 2)) if x.ndim == 4 else x.reshape(len(x), -1)

    @functools.cached_property
    def digest(self) -> str:
        """Of the run's variables: which weights these are."""
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

    def _named(self, probabilities: np.ndarray, top_k: int) -> list[tuple[int, float]]:
        """The classes that a prediction names, with their probabilities."""
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
        """The outputs for images that must all be readable, or a part `of` them: [N, …]."""
        fed = self._feed.source(source)
        parts = []
        for _, outputs, _ in self._computed(self.variables, fed, function, extra):
            for name, reason in fed.corrupt().items():
                # Text that was meant as an image's data, in base64, may be of megabytes.
                shown = name if len(name) < _LONGEST else f'{name[:60]}…'
                raise UserError(f'{shown} cannot be read: {reason}')
            parts.append(of(outputs))
        return np.concatenate(parts)


def _reason(fed: Fed, source: Source, index: int) -> str:
    """Why an example has no vector."""
    return fed.corrupt().get(source.name_of(index), "the model's features are not finite")
