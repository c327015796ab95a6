"""A trained run, restored from its workdir without other inputs."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision.core import mesh as mesh_lib
from vision.core import processes
from vision.core import workdir as workdir_lib
from vision.core.config import default_config
from vision.core.errors import UserError
from vision.core.text import AnyPath
from vision.data.identity import check_unchanged
from vision.data.source import Source
from vision.models.base import check_finite, init_variables
from vision.models.layers import shapes_only
from vision.models.registry import create_model
from vision.task.base import Task, task_of
from vision.task.metrics import Selection

if TYPE_CHECKING:
    from vision.core.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
      path: the workdir.
      config: the config of the training, with the mean and standard deviation that were used.
      class_names: names of the K classes.
      image_shape: (H, W, C) of the source's images; None if it varies.
      input_shape: (H, W, C) of the model's input.
      step: step of the checkpoint.
      model: the unbound module.
      task: the task that the model was trained for.
      variables: params and batch_stats, replicated on `mesh`; or only their shapes.
      mesh: all devices.
    """

    path: Path
    config: ConfigDict
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    input_shape: tuple[int, int, int]
    step: int
    model: nn.Module
    task: Task
    variables: Any
    mesh: Mesh


def load_run(workdir: AnyPath, checkpoint: str = 'best', weights: str | None = None) -> Run:
    """Restores the model of a run.

    Args:
      workdir: workdir of a run with at least one checkpoint; the run may still be training.
      checkpoint: 'best' (on the validation split), 'last', or a step.
      weights: 'ema', 'raw', or None for the moving average if there is one.

    Raises:
      UserError: not a workdir, or the checkpoint is missing, belongs to another model, or has
        values that are not finite.
    """
    run = open_run(workdir)
    path, sharding = run.path, mesh_lib.replicated(run.mesh)
    # Restore into abstract arrays that are replicated on all devices.
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), run.variables
    )
    # Restore the weights and check that they are finite.
    with open_checkpoints(path, run.task, run.config.training.best_by) as checkpoints:
        step = checkpoints.find(checkpoint)
        variables = checkpoints.restore_variables(step, template, weights)
        others = [str(s) for s in checkpoints.steps() if s != step]
    try:
        check_finite(variables, f'{path}, checkpoint {step}')
    except UserError as e:
        hint = 'there is no other checkpoint'
        if others:
            hint = f'use another one, like --checkpoint={others[-1]}'
        raise UserError(f'{e}; {hint}') from None
    return dataclasses.replace(run, step=step, variables=variables)


def open_run(workdir: AnyPath) -> Run:
    """Builds the model and the task of a run without weights; `variables` has their shapes.

    Args:
      workdir: workdir of a run, which need not have a checkpoint.

    Raises:
      UserError: not a workdir.
    """
    path = workdir_lib.locate(workdir)
    config, dataset = workdir_lib.read_config(path), workdir_lib.read_json(path, 'dataset.json')
    if config.preprocess.get('normalise') == 'dataset':
        config.preprocess.mean = tuple(dataset['mean'])
        config.preprocess.std = tuple(dataset['std'])
    # Build model and task from the config and `dataset.json`.
    names, image_shape = dataset['class_names'], dataset['image_shape']
    model = create_model(**{'num_classes': len(names)} | config.model.to_dict())
    with shapes_only():
        shapes = jax.eval_shape(
            lambda: init_variables(model, dataset['input_shape'], jax.random.key(0))
        )
    return Run(
        path=path,
        config=config,
        class_names=tuple(names),
        image_shape=tuple(image_shape) if image_shape else None,
        input_shape=tuple(dataset['input_shape']),
        step=0,
        model=model,
        task=task_of(config, names, model.num_classes),
        variables=shapes,
        mesh=mesh_lib.make_mesh(),
    )


def open_checkpoints(path: Path, task: Task, best_by: str | None) -> 'Checkpoints':
    """Opens the checkpoints of a run read-only, ordered by the run's selection metric."""
    from vision.core.checkpoints import Checkpoints  # imports Orbax; pretrained weights need none

    selection = Selection(task, best_by)
    return Checkpoints(path, selection.rank, read_only=True)


def pretrained_run(source: str, name: str | None = None, classify: bool = True) -> Run:
    """Returns a `Run` with ImageNet weights: model, classes and preprocessing, without data.

    Args:
      source: a `.safetensors` or `.pth` file of torchvision or timm, 'hf:org/name', or the name
        of packaged weights, such as 'efficientnet_lite0'.
      name: name of the model in the registry; guessed from the source by default.
      classify: whether the source must have ImageNet's classifier; False to embed only.

    Raises:
      UserError: the source cannot be read, or its tensors do not match the model.
    """
    from vision.models.weights import pretrained

    run = open_pretrained(source, name)
    # Start from zeros instead of random values: the pretrained weights replace all values that
    # prediction uses, and drawing random values would take longer than reading the weights.
    variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), run.variables)
    read = pretrained.load_pretrained(
        source, run.config.model.name, variables, new_head=not classify
    )
    return dataclasses.replace(run, variables=mesh_lib.put_replicated(read, run.mesh))


def open_pretrained(source: str, name: str | None = None) -> Run:
    """Builds the model that belongs to ImageNet weights; `variables` has the shapes of these.

    Args:
      source, name: see `pretrained_run`.

    Raises:
      UserError: the model cannot be guessed from the source.
    """
    from vision.models.weights import pretrained
    from vision.models.weights.fold import structure

    name = name or pretrained.guess_name(source)
    fed = pretrained.pretrained_input(name, source)
    # Use the preprocessing with which the weights were trained.
    config = default_config()
    config.model.name = name
    resize = f'resize_small({fed.resize}, {fed.method!r})'
    config.preprocess.eval = f'decode|{resize}|central_crop({fed.crop})'
    config.preprocess.mean, config.preprocess.std = fed.mean, fed.std
    config.evaluation.batch_size = 32
    arguments = pretrained.model_arguments(name, source)
    config.model.update(arguments)
    model = create_model(name, num_classes=len(pretrained.IMAGENET_CLASSES), **arguments)
    input_shape = (fed.crop, fed.crop, 3)
    return Run(
        path=Path(source),
        config=config,
        class_names=pretrained.IMAGENET_CLASSES,
        image_shape=None,
        input_shape=input_shape,
        step=0,
        model=model,
        task=task_of(config, pretrained.IMAGENET_CLASSES, model.num_classes),
        variables={'batch_stats': {}, **structure(model, input_shape).shapes},
        mesh=mesh_lib.make_mesh(),
    )


def check_data(run: Run, source: Source, split: str | None = None) -> None:
    """Checks that a run's data are still those that it was trained on.

    Args:
      run: the result of `load_run`.
      source: the data.
      split: split whose examples must be unchanged; None to check classes and shape only.

    Raises:
      UserError: the classes, the image shape or the examples have changed; names the change.
    """
    was, now = run.class_names, source.class_names
    if was != now:
        # Name one missing class and one new class.
        gone, new = ([n for n in a if n not in b] for a, b in ((was, now), (now, was)))
        differ = [f'{what} {names[0]!r}' for what, names in (('lost', gone), ('has', new)) if names]
        raise UserError(
            f'{source.name} has {len(now)} classes and {run.path} was trained on {len(was)}: '
            f'the data {" and ".join(differ) or "has them in another order"} now. '
            'Use the data that it was trained on, or evaluate on this as another data set: '
            '--eval.data.path=… finds the classes by name'
        )
    check_shape(run, source)
    # Compare ids and content of the split's examples with those recorded by the run.
    if split is not None:
        advice = (
            'Use the data that it was trained on, or evaluate on this as another data set, named '
            'with --eval.data.path=… or --eval.data.name=…'
        )
        examples = {split: list(source.identities())}
        processes.on_first(lambda: check_unchanged(run.path, {}, examples, advice))


def check_shape(run: Run, source: Source) -> None:
    """Raises UserError if a source's images do not have the shape that the run was trained on."""
    shape = None if source.encoded else source.image_shape
    if shape is not None and run.image_shape is not None and shape != run.image_shape:
        raise UserError(
            f'{source.name} has images of shape {list(shape)}, but {run.path} was trained on '
            f'{list(run.image_shape)}'
        )
