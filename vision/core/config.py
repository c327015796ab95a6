"""The keys that every experiment has, with their defaults; reading a config back; comparing two.

A file in `configs/` starts from `default_config()`, sets what its paper sets and adds nothing
but arguments of the model, the source, the optimizer and the schedule. The result is locked: a
key that is not here, nor in the file, is refused on the command line.
"""

import json
import math
import os
import re
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vision.core import durations
from vision.core.errors import UserError, unknown

# What may differ when a run goes on in its workdir: stopping, logging and keeping; also `evals`.
MAY_DIFFER = (
    'training.stop_after',
    'training.patience',
    'training.log_every',
    'training.keep',
    'training.shard',  # where arrays lie, as the number of devices may change, too
)


class Config(ConfigDict):
    """A ConfigDict whose section `update` has its name, where ConfigDict has a method.

    `--config.update.name=sam` needs the attribute. Code reads `config['update']`, since a config
    that was read back from JSON is a plain ConfigDict.
    """

    @property
    def update(self) -> ConfigDict:  # type: ignore[override]
        """The section `update`."""
        return self['update']


def default_config() -> ConfigDict:
    """Returns the config that every experiment starts from."""
    config = Config()
    config.seed = 0  # decides everything: parameters, order, augmentation, dropout

    # Trained weights to start from: a workdir, a .safetensors or .pth file, or 'hf:org/name'.
    config.init_from = placeholder(str)
    # What of the model stays as it is: 'backbone' (all but the classifier), which then runs as in
    # evaluation, or a regular expression on parameter names ('conv1|layer1').
    config.freeze = placeholder(str)

    # The model's name in the registry, or 'package.module:Class'; all other keys are its arguments.
    config.model = ConfigDict({'name': 'lenet5'})

    # The source's name; all other keys are its arguments (vision.data.SOURCES).
    config.data = ConfigDict({'source': 'digits', 'cache': 'none', 'max_corrupt': 0.01})
    # Repeated augmentation: so many views of an image in an epoch, which then shows fewer images.
    config.data.repeats = 1
    # In how many draws each slot of a training batch holds its image: with V > 1 the batch has images
    # [B, V, H, W, C], for tasks that compare views.
    config.data.views = 1

    config.preprocess = ConfigDict()
    config.preprocess.train = ''  # op strings, e.g. 'decode|random_resized_crop(224)|flip_lr'
    config.preprocess.eval = ''
    # 'constants', or 'dataset': the training split's own mean and std replace those below.
    config.preprocess.normalise = 'constants'
    config.preprocess.mean = (0.0,)  # per channel, of pixels scaled to 0 … 1
    config.preprocess.std = (1.0,)
    # Mixing within a batch: alpha of mixup's and CutMix's Beta distribution; 0 for none. Where both
    # are given, each batch gets one of them.
    config.preprocess.mixup = 0.0
    config.preprocess.cutmix = 0.0

    config.loss = ConfigDict()
    config.loss.name = 'softmax_cross_entropy'
    config.loss.label_smoothing = 0.0
    config.loss.aux_weight = 0.3  # of each auxiliary head's loss (GoogLeNet .3, Inception-v3 .4)
    config.loss.class_weights = ()  # one for each class, as in torch's CrossEntropyLoss; (): all 1

    # What the model is trained for and judged by: 'classification', 'multilabel', or 'package.module:Class';
    # other keys are its arguments (vision.task).
    config.task = ConfigDict({'name': 'classification'})

    # What the optimizer gets: 'gradient', 'sam', or 'package.module:function'; other keys are its
    # arguments (vision.training.update).
    config['update'] = ConfigDict({'name': 'gradient'})

    # An optax optimizer by name; other keys than these are its arguments (vision.training.optimizer).
    config.optimizer = ConfigDict({'name': 'sgd', 'lr': 0.1, 'momentum': 0.9, 'nesterov': False})
    # The batch that lr is for: the rate is lr times training.batch_size over it.
    config.optimizer.lr_for_batch = placeholder(int)
    config.optimizer.clip_norm = placeholder(float)  # of the whole gradient, at most
    config.optimizer.clip_value = placeholder(float)  # of each of its values, at most
    # The rate of some parameters is `optimizer.lr` times a factor: {'backbone': 0.1}, or by a regular
    # expression on their names; the first that fits counts.
    config.lr_factors = ConfigDict()
    config.weight_decay = 0.0
    config.weight_decay_pattern = 'kernel$'  # a regular expression on parameter names
    # 'l2' (in the gradient), 'decoupled' (times the rate: SGDW, AdamW) or 'default': the optimizer's
    # own form where it has one (adamw, lamb), else L2.
    config.weight_decay_form = 'default'
    # constant, cosine, linear, step, exponential or plateau; other keys are its arguments.
    config.schedule = ConfigDict({'name': 'cosine', 'warmup': '0 steps'})

    config.training = ConfigDict()
    config.training.batch_size = 128  # of the global batch
    config.training.accumulate = 1  # in how many parts it is computed, to save memory
    # Parameters and optimizer state: 'data' (on every device) or 'fsdp' (a share of each on each).
    config.training.shard = 'data'
    config.training.duration = '10 epochs'
    config.training.eval_every = '1 epochs'  # on the validation split; a checkpoint is kept with it
    config.training.checkpoint_every = '1000 steps'
    config.training.keep = 2  # the last N checkpoints, and the best on the validation split
    # The metric that the best checkpoint is chosen by, that patience and a plateau follow; by default the
    # task's first.
    config.training.best_by = placeholder(str)
    config.training.log_every = '50 steps'
    # An average of the parameters, which is then what is selected and predicted with: exponential, or
    # Polyak's uniform one from so far on ('80 epochs').
    config.training.ema_decay = 0.0
    config.training.polyak_from = placeholder(str)
    config.training.stop_after = placeholder(str)  # stop early; the schedules stay as they are
    # How long the validation split may see nothing better before the run ends: '10 epochs'.
    config.training.patience = placeholder(str)

    # For each device: what a device computes, and so every bit of it, is the same on any number.
    config.evaluation = ConfigDict({'batch_size': 256})
    # Evaluations beside the run's own test split, by name: entries as `default_eval()` has them, of
    # which only what differs is written, {'v2': {'data': {'name': 'imagenet_v2'}}}.
    config.evals = ConfigDict()
    return config


def default_eval() -> ConfigDict:
    """An entry of `config.evals`, and what `--eval.KEY=VALUE` sets: the run's own test split."""
    entry = ConfigDict()
    entry.split = 'test'
    # Keys of config.data that differ. One that has a source, name or path is another data set:
    # its classes are found in the run's by name.
    entry.data = ConfigDict()
    # A paper's test protocol (vision.evaluation.protocols), instead of preprocess.eval: 'ten_crop',
    # 'crops_144', 'multi_scale_crops', 'dense(256, 384, 512)'.
    entry.protocol = placeholder(str)
    entry.ops = placeholder(str)  # an op string instead of preprocess.eval; it may end in views
    entry.weights = placeholder(str)  # 'raw', or 'ema', which is taken where there is one
    # 'data': of another data set, the logits of its own classes are compared; 'all': of all classes.
    entry.classes = 'data'
    return entry


def check(config: ConfigDict) -> None:
    """Checks what can be checked before any data is read.

    Raises:
      UserError: a key missing or too many, a duration or number that makes no sense.
    """
    default = default_config()
    for key in default:
        if key not in config:
            raise UserError(f'config.{key} is missing; start from default_config()')
    for key in config:
        if key not in default:
            raise unknown('config key', key, default.keys())
    for section in ('model', 'data', 'optimizer', 'schedule', 'loss', 'task', 'update'):
        name = 'source' if section == 'data' else 'name'
        if name not in config[section]:
            raise UserError(
                f'config.{section}.{name} is missing; set single keys, as in --config.{section}.{name}=…'
            )
    for section in ('preprocess', 'loss', 'training', 'evaluation'):
        for key in default[section]:
            if key not in config[section]:
                raise UserError(f'config.{section}.{key} is missing')
    for section in ('preprocess', 'training', 'evaluation'):  # the others' own code checks theirs
        for key in config[section]:
            if key not in default[section]:
                raise unknown(f'key of config.{section}', key, default[section].keys())
    for name, entry in config.get('evals', {}).items():
        complete_eval(entry, f'config.evals.{name}')
    training = config.training
    for key in ('duration', 'eval_every', 'checkpoint_every', 'log_every'):
        if durations.parse(training[key], f'training.{key}')[0] <= 0:
            raise UserError(f'training.{key}={training[key]!r} must be above 0')
    for key in ('stop_after', 'patience'):
        if training[key] is not None and durations.parse(training[key], f'training.{key}')[0] <= 0:
            raise UserError(f'training.{key}={training[key]!r} must be above 0')
    if training.polyak_from is not None:
        durations.parse(training.polyak_from, 'training.polyak_from')
        if training.ema_decay:
            raise UserError(
                'training.ema_decay and training.polyak_from: only one can be averaged by'
            )
    if training.shard not in ('data', 'fsdp'):
        raise unknown('training.shard', training.shard, ('data', 'fsdp'))
    _check_range('seed', config.seed, 0, 2**32)
    _check_range('training.keep', training.keep, 1, None)
    _check_range('training.ema_decay', training.ema_decay, 0, 1)
    _check_range('training.accumulate', training.accumulate, 1, None)
    _check_range('training.batch_size', training.batch_size, 1, None)
    _check_range('evaluation.batch_size', config.evaluation.batch_size, 1, None)
    _check_range('loss.label_smoothing', config.loss.label_smoothing, 0, 1)
    _check_range('loss.aux_weight', config.loss.aux_weight, 0, None)
    _check_range('weight_decay', config.weight_decay, 0, None)
    _check_range('optimizer.lr', config.optimizer.get('lr'), 0, None)
    for key in ('lr_for_batch', 'clip_norm', 'clip_value'):
        if config.optimizer.get(key) is not None:
            _check_above_zero(f'optimizer.{key}', config.optimizer[key])
    repeats = config.data.get('repeats', 1)
    if not isinstance(repeats, int) or not 1 <= repeats <= training.batch_size:
        raise UserError(
            f'data.repeats={repeats!r} must be a whole number from 1 to training.batch_size'
        )
    views = config.data.get('views', 1)
    if not isinstance(views, int) or views < 1:
        raise UserError(f'data.views={views!r} must be a whole number from 1 on')
    _check_preprocess(config.preprocess)


def _check_preprocess(preprocess: ConfigDict) -> None:
    if preprocess.normalise not in ('constants', 'dataset'):
        raise unknown('preprocess.normalise', preprocess.normalise, ('constants', 'dataset'))
    for key, low in (('mean', -math.inf), ('std', 0.0)):
        values = tuple(preprocess[key])
        if not values or any(isinstance(v, str) or not low < v < math.inf for v in values):
            what = 'numbers above 0' if key == 'std' else 'numbers'
            raise UserError(
                f'preprocess.{key}={values} must be {what}, one for each channel or one'
            )
    for key in ('mixup', 'cutmix'):
        _check_range(f'preprocess.{key}', preprocess[key], 0, None)


def complete_eval(entry: ConfigDict, name: str = '--eval') -> ConfigDict:
    """An entry of `config.evals` with its defaults.

    Args:
      entry: what differs from `default_eval()`.
      name: what it is called in messages.

    Raises:
      UserError: a key that entries do not have, or a value that makes no sense.
    """
    complete = default_eval()
    if not re.fullmatch(r'[\w.-]+', name):  # files are called by it
        raise UserError(f'{name!r}: the names of evaluations have letters, digits, _ and - only')
    if not isinstance(entry, ConfigDict):
        raise UserError(f"{name}={entry!r} must be a dict, as {{'split': 'validation'}}")
    for key, value in entry.items():
        if key not in complete:
            raise unknown(f'key of {name}', key, complete.keys())
        try:
            complete[key] = value
        except TypeError:
            raise UserError(f'{name}.{key}={value!r} is of the wrong type') from None
    if complete.protocol and complete.ops:
        raise UserError(f'{name}: give either a protocol or ops, not both')
    for key, known in (('weights', ('ema', 'raw', None)), ('classes', ('data', 'all'))):
        if complete[key] not in known:
            raise unknown(f'{name}.{key}', complete[key], [k for k in known if k])
    return complete


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy whose paths are absolute, so that a run finds its data from any folder.

    `config.data` may have been replaced as a whole: how images are read is as by default then.
    `--config.init_from=` and `--config.freeze=` take back what the file sets.
    """
    config = config.copy_and_resolve_references()
    for key in ('init_from', 'freeze'):
        if config[key] in ('', 'None'):  # the command line has no other way to say None
            config[key] = None
    with config.unlocked():
        for key in ('cache', 'max_corrupt', 'repeats', 'views'):
            if key not in config.data:
                config.data[key] = default_config().data[key]
    for data in (config.data, *(e.get('data', {}) for e in config.get('evals', {}).values())):
        for key in ('path', 'data_dir'):
            if data.get(key):
                data[key] = os.path.abspath(os.path.expanduser(data[key]))
    if config.init_from and os.path.exists(os.path.expanduser(config.init_from)):
        config.init_from = os.path.abspath(os.path.expanduser(config.init_from))
    return config


def to_json(config: ConfigDict) -> str:
    """The config as JSON, keys in their order."""
    return json.dumps(config.to_dict(), indent=2) + '\n'


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote, here or in an older version.

    Lists become tuples again. Sections and keys that are newer than the text get their defaults.
    """
    config, default = ConfigDict(_tuples(json.loads(text))), default_config()
    for key in ('evals', 'task', 'update'):
        if key not in config:
            config[key] = default[key]
    for key in ('repeats', 'views') if 'data' in config else ():
        if key not in config.data:
            config.data[key] = default.data[key]
    if 'training' in config and 'best_by' not in config.training:
        config.training.best_by = None
    return config


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lists, a phrase a key, what two configs differ in, but for what may differ."""
    before, after = _flatten(old.to_dict()), _flatten(new.to_dict())
    phrases = []
    for key in dict.fromkeys([*before, *after]):
        free = key in MAY_DIFFER or key.startswith('evals.')
        if not free and before.get(key) != after.get(key):
            phrases.append(f'{key} is {before.get(key)!r} there and {after.get(key)!r} here')
    return phrases


def _check_range(key: str, value: Any, low: float, high: float | None) -> None:
    if not _is_number(value) or value < low or (high is not None and value >= high):
        bounds = f'at least {low}' if high is None else f'in [{low}, {high})'
        raise UserError(f'{key}={value!r} must be a number {bounds}')


def _check_above_zero(key: str, value: Any) -> None:
    if not _is_number(value) or value <= 0:
        raise UserError(f'{key}={value!r} must be a number above 0')


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, f'{prefix}{key}.')
            if isinstance(value, dict)
            else {prefix + key: _tuples(list(value)) if isinstance(value, list | tuple) else value}
        )
    return flat
