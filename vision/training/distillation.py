"""Distillation: a model learns from the labels and from the outputs of a trained teacher."""

import dataclasses
import functools
import os
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.core.config_keys import Range
from vision.core.errors import UserError, similar
from vision.evaluation.run import Run, load_run, open_pretrained, open_run, pretrained_run
from vision.models.weights.packages import is_packaged
from vision.task.base import Apply, Examples, Outcome
from vision.task.classification import Classification
from vision.task.losses import softmax_cross_entropy


@dataclasses.dataclass(frozen=True)
class Distillation(Classification):
    """Classification with a second loss towards the outputs of a teacher.

    Touvron et al. 2021 (DeiT, arXiv:2012.12877), equations 2 and 3, without the distillation token:
    the model has one classifier, as in section 5.2's 'usual distillation'. Answers, metrics and the
    loss of the labels are those of `Classification`. The teacher runs in evaluation mode on the
    student's augmented and mixed images, normalised with the teacher's mean and standard deviation.
    The weights of the teacher are part of `TrainState.extra`: with `training.shard='fsdp'` they are
    sharded and gathered like the student's, and a resumed run restores them from its checkpoint. It
    reads only the teacher's model and preprocessing from the source. Evaluation and
    prediction do not need the teacher.

    Args:
      teacher: a workdir (its best checkpoint), a `.safetensors` or `.pth` file, 'hf:org/name', or
        the name of packaged weights. Except for workdirs, it has ImageNet's 1,000 classes, and only
        their number is compared with the data's.
      kind: 'hard' (equation 3): (1 − λ) L + λ CE(student, the teacher's most likely class);
        'soft' (equation 2; Hinton et al. 2015): (1 − λ) L + λ τ² KL(teacher ‖ student) of the
        probabilities at temperature τ. L is `config.loss`.
      weight: λ; 0.5 in equation 3, and 0.1 in the paper's soft distillation.
      temperature: τ of soft distillation.
    """

    teacher: str
    kind: Literal['hard', 'soft'] = 'hard'
    weight: Annotated[float, Range(low=0, high=1)] = 0.5
    temperature: Annotated[float, Range(above=0)] = 3.0

    @functools.cached_property
    def _run(self) -> Run:
        """The teacher's model, task and input, with the shapes of its weights."""
        source = self.teacher
        exists = source.startswith('hf:') or is_packaged(source) or os.path.exists(source)
        if not exists:
            raise UserError(f'{self._title}: no such file or workdir{similar(source)}')
        # The first use is in `init`, which is traced. Reading must not become part of the trace.
        with jax.ensure_compile_time_eval():
            return open_run(source) if os.path.isdir(source) else open_pretrained(source)

    @property
    def _title(self) -> str:
        return f'task.teacher={self.teacher}'

    def init(self, model: nn.Module, variables: Any, key: jax.Array) -> Any:
        """Returns zeros in the shapes of the teacher's `params` and `batch_stats`.

        Raises:
          UserError: the teacher's model cannot be read, or has other classes than the data.
        """
        names = self.settings.class_names
        if self.settings.num_outputs != len(names):
            raise UserError(
                f'model.num_classes={self.settings.num_outputs}: distillation needs as many '
                f'outputs as the data has classes, {len(names)}'
            )
        run = self._run
        if not isinstance(run.task, Classification):
            raise UserError(f'{self._title} was trained for the task {type(run.task).__name__}')
        # A file of weights has no class names, so only the number of classes is compared.
        known = run.class_names if os.path.isdir(self.teacher) else names
        if len(run.class_names) != len(names) or known != names:
            raise UserError(
                f'{self._title} has {len(run.class_names)} classes ({_some(run.class_names)}) and '
                f'the data {len(names)} ({_some(names)}): they must be the same, in the same order'
            )
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), run.variables)

    def read(self) -> Any:
        """Reads the teacher's `params` and `batch_stats`.

        Raises:
          UserError: the weights cannot be read, or do not fit the model.
        """
        source = self.teacher
        run = load_run(source) if os.path.isdir(source) else pretrained_run(source)
        return jax.device_get(run.variables)

    def loss(
        self, apply: Apply, examples: Examples, extra: Any, key: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        """Returns (1 − λ) · the loss of the labels + λ · the mean distance to the teacher.

        The sums are those of `Classification` and `distillation`, the distance to the teacher.
        """
        logits, endpoints, batch_stats = apply(examples['image'], key)
        objective, sums = self.label_loss(logits, endpoints, examples)
        taught = jax.lax.stop_gradient(self._teach(examples['image'], extra))
        distance = jnp.sum(self._distance(logits, taught) * examples['mask'])
        objective = (1 - self.weight) * objective + self.weight * distance / examples['count']
        return objective, Outcome({**sums, 'distillation': distance}, batch_stats, extra)

    def _distance(self, logits: jax.Array, taught: jax.Array) -> jax.Array:
        """Returns the loss of the student's logits [B, K] towards the teacher's, float32 [B]."""
        if self.kind == 'hard':
            return softmax_cross_entropy(
                logits, jax.nn.one_hot(taught.argmax(-1), logits.shape[-1])
            )
        # KL(p ‖ q) = Σ p (log p − log q).
        student, teacher = (
            jax.nn.log_softmax(x.astype(jnp.float32) / self.temperature) for x in (logits, taught)
        )
        return self.temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)

    def _teach(self, images: jax.Array, variables: Any) -> jax.Array:
        """Returns the teacher's logits [B, K] for images that are normalised for the student.

        Raises:
          UserError: the teacher cannot take images of this size or number of channels.
        """
        run, shape = self._run, images.shape[1:]
        own, theirs = self.settings, run.task.settings
        if (own.mean, own.std) != (theirs.mean, theirs.std):
            mean, std, mean_t, std_t = map(
                jnp.asarray, (own.mean, own.std, theirs.mean, theirs.std)
            )
            images = (images * std + (mean - mean_t)) / std_t
        # If the teacher was trained on images of another size, its model may raise any error at
        # trace time.
        try:
            outputs, _ = run.model.apply(variables, images, train=False)
        except Exception as e:
            if shape == run.input_shape:
                raise
            reason = (str(e) or type(e).__name__).strip().splitlines()[0]
            raise UserError(
                f'{self._title} was trained on images of {_size(run.input_shape)} and does not '
                f'take {_size(shape)}: {reason:.160}'
            ) from None
        return outputs[:, : len(own.class_names)]


def _some(names: tuple[str, ...]) -> str:
    """Returns the first class names for a message."""
    return ', '.join(names[:3]) + (', …' if len(names) > 3 else '')


def _size(shape: tuple[int, ...]) -> str:
    """Returns (H, W, C) as text."""
    return 'x'.join(map(str, shape))
