"""The keys of a config, one declaration each: type, range, default and meaning; and what they name.

`default_config()`, the checks, `--explain` and docs/configs.md are made from these tables. The other keys
of an open section are arguments of the function or class that the section names, and have the types that are
annotated there.
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
from vision.core.errors import UserError, unknown

Duration = NewType('Duration', str)  # '20 epochs', '5000 steps', '1e6 examples'
Pattern = NewType('Pattern', str)  # a regular expression
Share = NewType('Share', str)  # '10%', 0.1, or a number of examples
Fold = NewType('Fold', str)  # '2/5'
Factors = tuple[tuple[Pattern, float], ...]

# Open sections; each has a key that names a function or class.
OPEN = ('model', 'data', 'task', 'loss', 'update', 'optimizer', 'schedule')

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
    Factors: "a tuple of pairs, as (('backbone', 0.1),), with factors",
}


class Range(NamedTuple):
    """Bounds of a number, or of each number in a tuple; arguments have it as `Annotated[float, Range(low=0)]`.

    Attributes:
      low, high: the least value and the greatest.
      above, below: what it must be more and less than.
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
        """True if all numbers in a value are finite and within the bounds."""
        return all(
            abs(number) < math.inf
            and (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
            for number in _numbers(value)
        )


class Key(NamedTuple):
    """A key of a config.

    Attributes:
      name: with its section: 'training.keep'.
      type: as in an annotation: `float | None`, `Literal['data', 'fsdp']`, `Duration`.
      default: of `default_config()`.
      meaning: one line.
      low, above, below: as of `Range`.
      required: whether a section that is replaced as a whole must have it; others get the default.
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
        """The name's part before the dot; '' for keys of the whole config."""
        return self.name.rpartition('.')[0]

    @property
    def leaf(self) -> str:
        """The name without its section."""
        return self.name.rpartition('.')[2]

    @property
    def optional(self) -> bool:
        """True if None is a value."""
        return type(None) in typing.get_args(self.type)

    @property
    def kind(self) -> Any:
        """The type of values that are not None."""
        return typing.get_args(self.type)[0] if self.optional else self.type

    @property
    def range(self) -> Range:
        """The bounds of its numbers."""
        return Range(low=self.low, above=self.above, below=self.below)

    def describe(self) -> str:
        """The type and range in words: 'a number in [0, 1)'."""
        words = _NAMES.get(self.kind) or describe(self.kind)
        if self.range != Range():
            words += f' of {self.range}' if self.range == Range(low=self.low) else f' {self.range}'
        return words + (' or None' if self.optional else '')

    def check(self, value: Any) -> None:
        """Raises UserError, one line that names the key and the value, unless it can have this value."""
        if value is None and self.optional:
            return
        if typing.get_origin(self.kind) is Literal:
            choices = typing.get_args(self.kind)
            if value not in choices:
                raise unknown(self.name, value, choices)
            return
        numbers = value
        if self.kind is Duration:
            numbers = durations.parse(value, self.name)[0]
        elif self.kind is Share:
            durations.parse_share(value, self.name)
        elif self.kind is Fold:
            durations.parse_fold(value, self.name)
        elif not fits(value, self.kind):
            raise UserError(
                f'{self.name}={value!r} is of the wrong type; it must be {self.describe()}'
            )
        empty = value == () and self.default != ()
        if empty or not self.range.holds(numbers):
            raise UserError(f'{self.name}={value!r} must be {self.describe()}')
        for pattern in _patterns(value, self.kind):
            try:
                re.compile(pattern)
            except re.error as e:
                raise UserError(f'{self.name}: {pattern!r} is no regular expression: {e}') from None


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in a value or its tuples."""
    if isinstance(value, tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield value


def _patterns(value: Any, kind: Any) -> list[str]:
    if kind == Factors:
        return [pattern for pattern, _ in value]
    return [value] if kind is Pattern else []


# fmt: off
KEYS = (
    Key('seed', int, 0, 'Decides everything random: parameters, order, augmentation, dropout', low=0, below=2**32),
    Key('init_from', str | None, None, "Trained weights to start from: a workdir, a .safetensors or .pth file, 'hf:org/name', or 'efficientnet_lite0' (lite1, lite2)"),
    Key('freeze', Pattern | None, None, "Parameters that are not trained: 'backbone' (all but the classifier, which then runs as in evaluation) or a regular expression on their names; running statistics of layers that are frozen stay, too"),
    Key('lr_factors', Factors, (), "Factors of the rate of some parameters, by 'backbone' or regular expressions on names; the first that matches counts", low=0),
    Key('weight_decay', float, 0.0, 'Weight decay', low=0),
    Key('weight_decay_pattern', Pattern, 'kernel$', 'Parameters that weight decay acts on: a regular expression on their names'),
    Key('weight_decay_form', Literal['default', 'l2', 'decoupled'], 'default', "'l2': in the gradient; 'decoupled': times the rate (SGDW, AdamW); 'default': the optimizer's own where it has one (adamw, lamb), else L2"),

    Key('model.name', str, 'lenet5', "Model in the registry, or 'package.module:Class'", required=True),

    Key('data.source', str, 'digits', 'Source in the registry (vision.data.SOURCES)', required=True),
    Key('data.cache', Literal['none', 'raw', 'decoded'], 'none', "Images that are kept in the host's memory; 'raw': encoded"),
    Key('data.max_corrupt', float, 0.01, 'Fraction of images that may be unreadable before the run stops', low=0),
    Key('data.validation', Share | None, None, "Validation split that is taken from train: '10%', 0.1, or a number of examples; None: 10 % of folders and lists that have none"),
    Key('data.test', Share | None, None, 'Test split of folders and lists, likewise'),
    Key('data.fold', Fold | None, None, "'2/5': the second of five parts of a folder or list is the test split"),
    Key('data.rules', int, 2, 'Version of the rules for order and splits of folders and lists; 1 is that of runs begun before', low=1, below=3),
    Key('data.repeats', int, 1, 'Repeated augmentation: views of an image in an epoch, which then shows fewer images', low=1),
    Key('data.views', int, 1, 'Views of an image in an example, for tasks that compare them', low=1),

    Key('task.name', str, 'classification', "What the model is trained for and judged by: 'classification', 'multilabel' or 'package.module:Class'", required=True),

    Key('preprocess.train', str, '', "Op string for training, as 'decode|random_resized_crop(224)|flip_lr'"),
    Key('preprocess.eval', str, '', 'Op string for evaluation and prediction'),
    Key('preprocess.normalise', Literal['constants', 'dataset'], 'constants', "'dataset': mean and std of the training split replace the two below"),
    Key('preprocess.mean', tuple[float, ...], (0.0,), 'Mean per channel, or one for all, of pixels scaled to 0 … 1'),
    Key('preprocess.std', tuple[float, ...], (1.0,), 'Standard deviation, likewise', above=0),
    Key('preprocess.mixup', float, 0.0, "Alpha of mixup's Beta distribution, 0 for none; with cutmix, each batch gets one of the two", low=0),
    Key('preprocess.cutmix', float, 0.0, "Alpha of CutMix's Beta distribution, 0 for none", low=0),

    Key('loss.name', str, 'softmax_cross_entropy', "Loss in the registry, or 'package.module:function'", required=True),
    Key('loss.label_smoothing', float, 0.0, 'Share of the uniform distribution in the targets', low=0, below=1),
    Key('loss.aux_weight', float, 0.3, "Weight of each auxiliary head's loss (GoogLeNet .3, Inception-v3 .4)", low=0),
    Key('loss.class_weights', tuple[float, ...], (), "One weight for each class, as in torch's CrossEntropyLoss; (): all 1", low=0),

    Key('update.name', str, 'gradient', "From the loss to what the optimizer gets: 'gradient', 'sam' or 'package.module:function'", required=True),

    Key('optimizer.name', str, 'sgd', "Optax's optimizer of that name", required=True),
    Key('optimizer.lr', float, 0.1, 'Rate after the warm-up', low=0, required=True),
    Key('optimizer.lr_for_batch', int | None, None, 'Batch that lr is for: the rate is lr · training.batch_size / lr_for_batch', above=0),
    Key('optimizer.clip_norm', float | None, None, 'Upper bound of the norm of the whole gradient', above=0),
    Key('optimizer.clip_value', float | None, None, "Upper bound of each of the gradient's values", above=0),

    Key('schedule.name', str, 'cosine', 'Schedule in the registry (vision.training.schedules.SCHEDULES)', required=True),
    Key('schedule.warmup', Duration, '0 steps', 'Time in which the rate rises from 0 to optimizer.lr in a straight line'),

    Key('training.batch_size', int, 128, 'Examples of a step, over all devices', low=1),
    Key('training.accumulate', int, 1, 'Parts that a batch is computed in, to save memory', low=1),
    Key('training.shard', Literal['data', 'fsdp'], 'data', "Parameters and optimizer state: 'data' on every device, 'fsdp' a share on each"),
    Key('training.duration', Duration, '10 epochs', 'Length of the run', above=0),
    Key('training.eval_every', Duration, '1 epochs', 'Time between evaluations of the validation split; a checkpoint is written with each', above=0),
    Key('training.checkpoint_every', Duration, '1000 steps', 'Time between further checkpoints', above=0),
    Key('training.keep', int, 2, 'Last checkpoints that are kept, beside the best', low=1),
    Key('training.best_by', str | None, None, "Validation metric that the best checkpoint is chosen by, and that patience and a plateau follow; None: the task's first"),
    Key('training.log_every', Duration, '50 steps', 'Time between log records', above=0),
    Key('training.ema_decay', float, 0.0, 'Decay of an exponential average of the parameters, which is then evaluated and selected; 0 for none', low=0, below=1),
    Key('training.polyak_from', Duration | None, None, "Start of Polyak's uniform average, instead"),
    Key('training.stop_after', Duration | None, None, 'Early stop; the schedules stay as they are', above=0),
    Key('training.patience', Duration | None, None, 'Time without a better validation figure after which the run ends', above=0),

    Key('evaluation.batch_size', int, 256, 'Examples for each device, so that its figures have the same bits on any number of devices', low=1),

    Key('evals', dict, {}, "Evaluations beside the run's own test split, by name; each has those of the keys below that differ"),
)

EVAL_KEYS = (
    Key('split', str, 'test', 'train, validation or test'),
    Key('data', dict, {}, "Keys of config.data that differ; with a source, name or path it is another data set, whose classes are found in the run's by name"),
    Key('protocol', str | None, None, "A paper's test protocol instead of preprocess.eval: 'ten_crop', 'crops_144', 'multi_scale_crops', 'dense(256, 384, 512)'"),
    Key('ops', str | None, None, 'Op string instead of preprocess.eval; it may end in views'),
    Key('weights', Literal['ema', 'raw'] | None, None, "'raw', or 'ema', which is taken where there is one"),
    Key('classes', Literal['data', 'all'], 'data', "Logits that are compared on another data set: of its own classes, or 'all'"),
)
# fmt: on

# Arguments of the default optimizer that the default config has.
SGD = {'momentum': 0.9, 'nesterov': False}


def declared(section: str) -> list[str]:
    """The names of a section's declared keys."""
    return [key.leaf for key in KEYS if key.section == section]


def own_arguments(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an open section that are arguments of what it names."""
    return {name: value for name, value in values.items() if name not in declared(section)}


def python_type(kind: Any) -> type:
    """The Python type of a declared type: str for `Duration` and for choices of text."""
    if typing.get_origin(kind) is Literal:
        return type(typing.get_args(kind)[0])
    return getattr(kind, '__supertype__', kind)


def find(kind: str, name: str, known: Mapping[str, Callable | str]) -> Callable:
    """Returns what a config names: an entry of a registry, or a user's own.

    Args:
      kind: 'model', 'update', …, for the message.
      name: a key of `known`, or 'package.module:name'.
      known: the registry; an entry 'package.module:name' is imported when it is asked for.

    Raises:
      UserError: there is no such entry, module or name, or it cannot be called.
    """
    entry = known.get(name, name)
    if not isinstance(entry, str):
        return entry
    if ':' not in entry:
        raise unknown(kind, name, known)
    name = entry
    module_name, _, attribute = name.partition(':')
    try:
        module = importlib.import_module(module_name)
    except UserError:
        raise
    except Exception as e:  # a user's module may raise anything
        from vision.core.own_code import place_of

        place = place_of(e)
        why = str(e) if place is None else f'{place}: {type(e).__name__}: {e}'
        raise UserError(f'{kind} {name!r}: cannot import {module_name!r} ({why})') from e
    found = getattr(module, attribute, None)
    if found is None:
        raise UserError(f'{kind} {name!r}: module {module_name!r} has no {attribute!r}')
    if not callable(found):
        raise UserError(f'{kind} {name!r} is no class or function but {type(found).__name__}')
    return found


def check_arguments(
    what: str, function: Callable, known: list[str], arguments: Mapping[str, Any]
) -> None:
    """Checks keyword arguments before a function gets them.

    Args:
      what: the function's name for the message: "schedule 'step'".
      function: whose annotations count.
      known: the arguments that may be given.
      arguments: by name.

    Raises:
      UserError: an argument that is not known, of another type or out of its range.
    """
    hints = type_hints(function)
    for key, value in arguments.items():
        if key not in known:
            raise unknown(f'argument of {what}', key, known)
        if key not in hints:
            continue
        if not fits(value, hints[key]):
            raise UserError(f'{what}: {key}={value!r} is not {describe(hints[key])}')
        for bounds in getattr(hints[key], '__metadata__', ()):
            if isinstance(bounds, Range) and not bounds.holds(value):
                raise UserError(f'{what}: {key}={value!r} must be {bounds}')


def type_hints(function: Callable) -> dict[str, Any]:
    """The annotated types of a function or class, by argument."""
    while isinstance(function, partial):
        function = function.func
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # a user's own class may annotate as it likes
        return {}


def fits(value: Any, hint: Any) -> bool:
    """True if the value is of the annotated type, for the types that configs can hold; `Range` aside."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin is typing.Literal:
        return any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in arguments)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        parts = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return len(value) == len(parts) and all(map(fits, value, parts))
    hint = getattr(hint, '__supertype__', hint)  # of a NewType
    if hint not in (dict, bool, int, float, str, type(None)):
        return True
    of_type = isinstance(value, int | float if hint is float else hint)
    return of_type and (hint is bool or not isinstance(value, bool))


def describe(hint: Any) -> str:
    """'one of 1, 2' or 'of type bool': what `fits` asks for."""
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
