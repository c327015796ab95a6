"""Declarations of all config keys: type, range, default and meaning.

`default_config()`, the checks, `--explain` and docs/configs.md are generated from these tables. An
open section may have further keys: the arguments of the function or class that it names, with the
types of their annotations. This module also finds such functions and checks their arguments.
"""

import importlib
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, NewType

from vision.core import durations
from vision.core.errors import UserError, nearest, unknown

Duration = NewType('Duration', str)  # '20 epochs', '5000 steps', '1e6 examples'
Pattern = NewType('Pattern', str)  # a regular expression
Share = NewType('Share', str)  # '10%', 0.1, or a number of examples
Fold = NewType('Fold', str)  # '2/5'
Factors = tuple[tuple[Pattern, float], ...]

# Open sections. Each has a key that names a function or class, and takes its arguments as keys.
OPEN = ('model', 'data', 'task', 'loss', 'update', 'optimizer', 'schedule')

# Types in words, for messages and documentation.
_NAMES = {
    int: 'a whole number',
    float: 'a number',
    str: 'text',
    dict: 'a section',
    Duration: "a duration ('20 epochs')",
    Share: "a share ('10%', 0.1) or a number of examples",
    Fold: "a fold ('2/5')",
    Pattern: 'a regular expression',
    tuple[float, ...]: 'a tuple of numbers',
    Factors: "a tuple of pairs of pattern and factor, such as (('backbone', 0.1),), with factors",
}


class Range(NamedTuple):
    """Bounds of a number, or of each number in a tuple.

    Function arguments are annotated with it: `Annotated[float, Range(low=0)]`.

    Attributes:
      low, high: inclusive bounds.
      above, below: exclusive bounds.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        if self == Range(low=self.low):
            return f'{self.low} or more'
        if self == Range(above=self.above):
            return f'above {self.above}'
        left = f'[{self.low}' if self.above is None else f'({self.above}'
        return f'in {left}, {self.below})' if self.high is None else f'in {left}, {self.high}]'

    def holds(self, value: Any) -> bool:
        """True if all numbers of a value are finite and within the bounds."""
        return all(
            abs(number) < math.inf
            and (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
            for number in _numbers(value)
        )


class Key(NamedTuple):
    """Declaration of a config key.

    Attributes:
      name: the name with its section: 'training.keep'.
      type: a type annotation: `float | None`, `Literal['data', 'fsdp']`, `Duration`.
      default: the value in `default_config()`.
      meaning: one line for the documentation.
      low, above, below: bounds, as in `Range`.
      required: True if the key must be present in an open section that is replaced as a whole.
        Other missing keys get their defaults.
    """

    name: str
    type: Any
    default: Any
    meaning: str
    low: float | None = None
    above: float | None = None
    below: float | None = None
    required: bool = False

    @property
    def section(self) -> str:
        """The part of the name before the last dot; '' for top-level keys."""
        return self.name.rpartition('.')[0]

    @property
    def leaf(self) -> str:
        """The name without its section."""
        return self.name.rpartition('.')[2]

    @property
    def optional(self) -> bool:
        """True if the value may be None."""
        return type(None) in typing.get_args(self.type)

    @property
    def kind(self) -> Any:
        """The type of values that are not None."""
        return typing.get_args(self.type)[0] if self.optional else self.type

    @property
    def range(self) -> Range:
        """The bounds of the key's numbers."""
        return Range(low=self.low, above=self.above, below=self.below)

    def describe(self) -> str:
        """The type and range in words: 'a number in [0, 1)'."""
        # Word the range as '… of 0 or more', '… in [0, 1)' or '… above 0'.
        words = _NAMES.get(self.kind) or describe(self.kind)
        if self.range != Range():
            words += f' of {self.range}' if self.range == Range(low=self.low) else f' {self.range}'
        return words + (' or None' if self.optional else '')

    def check(self, value: Any) -> None:
        """Raises UserError, naming the key and the value, if the key cannot have this value."""
        if value is None and self.optional:
            return
        if typing.get_origin(self.kind) is Literal:
            choices = typing.get_args(self.kind)
            if value not in choices:
                raise unknown(self.name, value, choices)
            return
        # Check the type. Some types have a text form that is parsed.
        numbers = value
        if self.kind is Duration:
            numbers = durations.parse(value, self.name)[0]
        elif self.kind is Share:
            durations.parse_share(value, self.name)
        elif self.kind is Fold:
            durations.parse_fold(value, self.name)
        elif not fits(value, self.kind):
            raise UserError(
                f'{self.name}={value!r} has the wrong type; it must be {self.describe()}'
            )
        # Check the range; a tuple may be empty only if its default is.
        empty = value == () and self.default != ()
        if empty or not self.range.holds(numbers):
            raise UserError(f'{self.name}={value!r} must be {self.describe()}')
        # Check that regular expressions compile.
        for pattern in _patterns(value, self.kind):
            try:
                re.compile(pattern)
            except re.error as e:
                raise UserError(
                    f'{self.name}: {pattern!r} is not a regular expression: {e}'
                ) from None


def _numbers(value: Any) -> Iterator[float]:
    """Yields the numbers in a value, including those in nested tuples."""
    if isinstance(value, tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield value


def _patterns(value: Any, kind: Any) -> list[str]:
    """Returns the regular expressions in a value of a declared type."""
    if kind == Factors:
        return [pattern for pattern, _ in value]
    return [value] if kind is Pattern else []


# fmt: off
KEYS = (
    Key('seed', int, 0, 'Seed of all randomness: initial parameters, order of the examples, augmentation, dropout', low=0, below=2**32),
    Key('init_from', str | None, None, "Pretrained weights to start from: a workdir, a .safetensors or .pth file, 'hf:org/name', or 'efficientnet_lite0' (lite1, lite2)"),
    Key('freeze', Pattern | None, None, "Parameters to freeze: a regular expression on their names, or 'backbone' for all but the classifier; a frozen backbone runs in evaluation mode, and frozen layers keep their running statistics"),
    Key('lr_factors', Factors, (), "Factors on the learning rate of groups of parameters, as pairs of a regular expression on names (or 'backbone') and a factor; the first match counts", low=0),
    Key('layer_decay', float | None, None, "Layer-wise learning rate decay: the learning rate of a layer is that of the layer above it times this factor, beginning at the classifier, as in BEiT and ConvNeXt", above=0, below=1),
    Key('weight_decay', float, 0.0, 'Coefficient of weight decay', low=0),
    Key('weight_decay_pattern', Pattern, 'kernel$', 'Regular expression on the names of the parameters that weight decay applies to'),
    Key('weight_decay_form', Literal['default', 'l2', 'decoupled'], 'default', "'l2' adds the decay to the gradient; 'decoupled' subtracts it from the parameters, times the learning rate (SGDW, AdamW); 'default' uses the optimizer's built-in form if it has one (adamw, lamb), otherwise L2"),

    Key('model.name', str, 'lenet5', "Name of a registered model, or 'package.module:Class'", required=True),

    Key('data.source', str, 'digits', "Name of a registered source (vision.data.SOURCES), or 'package.module:Class'", required=True),
    Key('data.cache', Literal['none', 'raw', 'decoded'], 'none', "Images to keep in host memory: 'raw' (encoded) or 'decoded'"),
    Key('data.max_corrupt', float, 0.01, 'Fraction of images that may be unreadable; with more the run stops', low=0),
    Key('data.validation', Share | None, None, "Part of the training split to use for validation: '10%', 0.1, or a number of examples; None takes 10 % of folders and lists that have no validation split"),
    Key('data.test', Share | None, None, 'Part of a folder or list to use as the test split, in the same form'),
    Key('data.fold', Fold | None, None, "Fold of cross-validation: with '2/5' the second of five parts of a folder or list is the test split"),
    Key('data.rules', int, 2, 'Version of the rules that order and split folders and lists; 1 is for runs that were started with it', low=1, below=3),
    Key('data.repeats', int, 1, 'Repeated augmentation: number of augmented views of each image in an epoch, which then shows fewer different images', low=1),
    Key('data.views', int, 1, 'Number of augmented views of an image in each example, for tasks that compare views', low=1),

    Key('task.name', str, 'classification', "Task, which defines targets, outputs and metrics: 'classification', 'multilabel', 'distillation' or 'package.module:Class'", required=True),

    Key('preprocess.train', str, '', "Preprocessing ops for training, for example 'decode|random_resized_crop(224)|flip_lr'"),
    Key('preprocess.eval', str, '', 'Preprocessing ops for evaluation and prediction'),
    Key('preprocess.normalise', Literal['constants', 'dataset'], 'constants', "Source of mean and std: 'constants' are the two keys below, 'dataset' computes them on the training split"),
    Key('preprocess.mean', tuple[float, ...], (0.0,), 'Mean of the pixels, scaled to 0 … 1: one value per channel, or one for all'),
    Key('preprocess.std', tuple[float, ...], (1.0,), 'Standard deviation of the pixels, in the same form', above=0),
    Key('preprocess.mixup', float, 0.0, "Alpha of mixup's Beta distribution; 0 turns mixup off. With cutmix, each batch gets one of the two at random", low=0),
    Key('preprocess.cutmix', float, 0.0, "Alpha of CutMix's Beta distribution; 0 turns CutMix off", low=0),

    Key('loss.name', str, 'softmax_cross_entropy', "Name of a registered loss, or 'package.module:function'", required=True),
    Key('loss.label_smoothing', float, 0.0, 'Weight of the uniform distribution in the targets', low=0, below=1),
    Key('loss.aux_weight', float, 0.3, "Weight of the loss of each auxiliary head (GoogLeNet 0.3, Inception-v3 0.4)", low=0),
    Key('loss.class_weights', tuple[float, ...], (), "Weight of each class, as in torch's CrossEntropyLoss; () weights all classes by 1", low=0),

    Key('update.name', str, 'gradient', "Computation of the update that the optimizer gets: 'gradient', 'sam' (sharpness-aware minimisation) or 'package.module:function'", required=True),

    Key('optimizer.name', str, 'sgd', "Name of an optimizer in Optax", required=True),
    Key('optimizer.lr', float, 0.1, 'Learning rate after the warm-up', low=0, required=True),
    Key('optimizer.lr_for_batch', int | None, None, 'Batch size that lr refers to: the learning rate is lr · training.batch_size / lr_for_batch', above=0),
    Key('optimizer.clip_norm', float | None, None, 'Upper bound on the global norm of the gradient', above=0),
    Key('optimizer.clip_value', float | None, None, "Upper bound on the absolute value of each element of the gradient", above=0),

    Key('schedule.name', str, 'cosine', 'Name of a registered learning rate schedule (vision.training.schedules.SCHEDULES)', required=True),
    Key('schedule.warmup', Duration, '0 steps', 'Length of the linear warm-up from 0 to optimizer.lr'),

    Key('training.batch_size', int, 128, 'Number of examples per step, over all devices', low=1),
    Key('training.accumulate', int, 1, 'Gradient accumulation: number of parts that a batch is computed in, to save memory', low=1),
    Key('training.shard', Literal['data', 'fsdp'], 'data', "Layout of parameters and optimizer state: 'data' copies them to every device, 'fsdp' splits them over the devices"),
    Key('training.duration', Duration, '10 epochs', 'Length of the run', above=0),
    Key('training.eval_every', Duration, '1 epochs', 'Time between evaluations on the validation split; a checkpoint is written after each', above=0),
    Key('training.checkpoint_every', Duration, '1000 steps', 'Time between additional checkpoints', above=0),
    Key('training.keep', int, 2, 'Number of newest checkpoints to keep, beside the best', low=1),
    Key('training.best_by', str | None, None, "Validation metric that selects the best checkpoint and that patience and the plateau schedule watch; None is the task's first metric"),
    Key('training.steps_per_call', int | None, None, 'Maximum number of steps that the device takes in one call, for data that are preprocessed on the device; None is 100 on accelerators and 1 on CPUs', low=1),
    Key('training.log_every', Duration, '50 steps', 'Time between log records', above=0),
    Key('training.ema_decay', float, 0.0, 'Decay of an exponential moving average of the parameters, which is then used in evaluation; 0 keeps no average', low=0, below=1),
    Key('training.polyak_from', Duration | None, None, 'Time at which a uniform (Polyak) average of the parameters starts, in place of ema_decay'),
    Key('training.stop_after', Duration | None, None, 'Time after which the run stops early; the learning rate schedule does not change', above=0),
    Key('training.patience', Duration | None, None, 'Early stopping: time without improvement of the validation metric after which the run ends', above=0),

    Key('evaluation.batch_size', int, 256, 'Number of examples per device; results are then bit-identical on any number of devices', low=1),

    Key('evals', dict, {}, "Additional evaluations by name, beside the run's own test split; each sets those of the keys below that differ"),
)

EVAL_KEYS = (
    Key('split', str, 'test', "Split to evaluate: train, validation, test (default), or 'all': every split of a folder or list, together"),
    Key('data', dict, {}, "Keys of config.data that differ; a source, name or path selects another data set, whose classes are matched with the run's by name"),
    Key('protocol', str | None, None, "Test protocol of a paper, in place of preprocess.eval: 'ten_crop', 'crops_144', 'multi_scale_crops', 'dense(256, 384, 512)'"),
    Key('ops', str | None, None, 'Preprocessing ops in place of preprocess.eval; the last op may make several views'),
    Key('weights', Literal['ema', 'raw'] | None, None, "Weights to evaluate: 'ema' (moving average) or 'raw'; None is the moving average if there is one"),
    Key('classes', Literal['data', 'all'], 'data', "Logits to compare on another data set: 'data' for those of its own classes, or 'all'"),
)
# fmt: on

# Arguments of the default optimizer in the default config.
SGD = {'momentum': 0.9, 'nesterov': False}


def declared(section: str) -> list[str]:
    """The names of a section's declared keys."""
    return [key.leaf for key in KEYS if key.section == section]


def own_arguments(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of an open section that are arguments of the function that it names."""
    return {name: value for name, value in values.items() if name not in declared(section)}


def python_type(kind: Any) -> type:
    """The Python type of a declared type, for example str for `Duration` and text choices."""
    if typing.get_origin(kind) is Literal:
        return type(typing.get_args(kind)[0])
    return getattr(kind, '__supertype__', kind)


def find(kind: str, name: str, known: Mapping[str, Callable | str]) -> Callable:
    """Returns the function or class that a config names.

    Args:
      kind: 'model', 'update', …, for messages.
      name: a key of the registry `known`, or 'package.module:name' for user-defined code.
      known: the registry; its entries are callables, or 'package.module:name' to import on demand.

    Raises:
      UserError: there is no such entry, module or name, or it is not callable.
    """
    # A registered callable is returned; other names are imported.
    entry = known.get(name, name)
    if not isinstance(entry, str):
        return entry
    if ':' not in entry:
        raise unknown(kind, name, known)
    # Import 'package.module:name'.
    name = entry
    module_name, _, attribute = name.partition(':')
    try:
        module = importlib.import_module(module_name)
    except UserError:
        raise
    except Exception as e:  # user-defined code may raise anything
        from vision.core.own_code import place_of

        place = place_of(e)
        why = str(e) if place is None else f'{place}: {type(e).__name__}: {e}'
        raise UserError(f'{kind} {name!r}: cannot import {module_name!r} ({why})') from e
    # Look up the attribute.
    found = getattr(module, attribute, None)
    if found is None:
        guess = nearest(attribute, vars(module))
        hint = f'; did you mean {guess!r}?' if guess else ''
        raise UserError(f'{kind} {name!r}: module {module_name!r} has no {attribute!r}{hint}')
    if not callable(found):
        raise UserError(f'{kind} {name!r} must be a class or function, not {type(found).__name__}')
    return found


def check_arguments(
    what: str, function: Callable, known: list[str], arguments: Mapping[str, Any]
) -> None:
    """Checks keyword arguments against the annotations of a function.

    Args:
      what: the function's name in messages: "schedule 'step'".
      function: any function, class or partial.
      known: names of the arguments that may be given.
      arguments: values by name.

    Raises:
      UserError: an argument is unknown, has the wrong type or is out of range.
    """
    hints = type_hints(function)
    for key, value in arguments.items():
        if key not in known:
            # The misspelt key may also be the section's `name`.
            raise unknown(f'argument of {what}', key, known, ['name'])
        if key not in hints:
            continue
        if not fits(value, hints[key]):
            raise UserError(f'{what}: {key}={value!r} is not {describe(hints[key])}')
        # Check the range in the annotation.
        for bounds in getattr(hints[key], '__metadata__', ()):
            if isinstance(bounds, Range) and not bounds.holds(value):
                raise UserError(f'{what}: {key}={value!r} must be {bounds}')


def type_hints(function: Callable) -> dict[str, Any]:
    """Returns the annotated types of a function or class by argument name."""
    while isinstance(function, partial):
        function = function.func
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # user-defined code may have annotations of any form
        return {}


def fits(value: Any, hint: Any) -> bool:
    """True if a value has the annotated type, for types that a config can hold.

    Unknown types accept every value. `Range` is not checked.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin is typing.Literal:
        return any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in arguments)
    # Any member of a union suffices.
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in arguments)
    # A tuple type lists a type for each position, or one type for any number of values.
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        parts = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return len(value) == len(parts) and all(map(fits, value, parts))
    hint = getattr(hint, '__supertype__', hint)  # the type behind a NewType
    if hint not in (dict, bool, int, float, str, type(None)):
        return True
    # An int is a valid float, but a bool is not a valid int.
    of_type = isinstance(value, int | float if hint is float else hint)
    return of_type and (hint is bool or not isinstance(value, bool))


def describe(hint: Any) -> str:
    """Describes the type that `fits` requires: 'one of 1, 2' or 'of type bool'."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return ', '.join([describe(arguments[0]), *map(str, arguments[1:])])
    if origin is typing.Literal:
        return 'one of ' + ', '.join(repr(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(describe(a) for a in arguments)
    if origin is tuple:
        return f'a tuple of {getattr(arguments[0], "__name__", arguments[0])}'
    if hint is type(None):
        return 'None'
    return f'of type {getattr(hint, "__name__", hint)}'
