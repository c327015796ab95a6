"""Reproduces the papers' figures: trains the named rows over several seeds and prints the table.

    python -m experiments.reproduce [ROW…] [--seeds=3] [--mnist=FOLDER] [--data_dir=DIR]

Examples:
    python -m experiments.reproduce                                    show the measured rows
    python -m experiments.reproduce mnist-lenet5 --mnist=FOLDER        train and measure one row
    python -m experiments.reproduce cifar10-resnet20 --seeds=3,4 --dtype=bfloat16

`--seeds=3` stands for the seeds 0, 1 and 2. `--seeds=3,4` stands for these two seeds, which are
added to those that the table has. The same command continues runs that were stopped. TFDS downloads
the data if no folder of IDX files is given.
"""

import importlib
import re
from pathlib import Path
from typing import Any

from absl import flags

from vision.core import cli
from vision.core.errors import UserError, unknown
from vision.core.text import json_text

cli.heading('The runs')
SEEDS = flags.DEFINE_list(
    'seeds', ['3'], 'How many seeds of each row, as 3, or which ones, as 0,1,2.'
)
DTYPE = flags.DEFINE_enum(
    'dtype',
    None,
    ['float32', 'bfloat16'],
    "Data type that the models compute in (default: the config's).",
)
WORKDIR = flags.DEFINE_string('workdir', 'runs/reproduce', 'Folder for the workdirs of the runs.')
cli.heading('The data')
MNIST = flags.DEFINE_string('mnist', None, "Folder of MNIST's four IDX files.")
FASHION = flags.DEFINE_string('fashion_mnist', None, "Folder of Fashion-MNIST's four IDX files.")
DATA_DIR = flags.DEFINE_string('data_dir', None, 'Folder of TFDS, for ImageNet and CIFAR-10.')
cli.heading('The table')
RESULTS = flags.DEFINE_string('results', 'results', 'Folder for the figures of all rows.')
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the table is printed.')

_LECUN, _HE = 'LeCun 1998, MNIST', 'He 2015, CIFAR-10'
_FASHION = "Fashion-MNIST's list"
# The fields of a row are its name, config, paper and published error. If the paper's test differs
# from the config's, two more fields follow: the name of the evaluation in config.evals that follows
# the paper's protocol, and the metric.
ROWS = (
    ('digits-lenet5', 'configs/digits_lenet5.py', 'scikit-learn digits', '–'),
    ('mnist-lenet5', 'configs/mnist_lenet5.py:plain', _LECUN, '0.95 %'),
    ('mnist-lenet5-distorted', 'configs/mnist_lenet5.py', _LECUN, '0.8 %'),
    ('mnist-lenet5-1998', 'configs/mnist_lenet5.py:1998', _LECUN, '0.95 %'),
    ('mnist-lenet5-1998-cosine', 'configs/mnist_lenet5.py:1998-cosine', _LECUN, '0.95 %'),
    ('mnist-lenet5-1998-distorted', 'configs/mnist_lenet5.py:1998-distorted', _LECUN, '0.8 %'),
    ('mnist-best', 'configs/mnist_best.py', 'our own recipe', 'aim 0.3 %'),
    ('fashion-lenet5', 'configs/fashion_mnist_lenet5.py', _FASHION, '8.4 … 12.4 % (flips: 6.1 %)'),
    ('fashion-vgg11-bn', 'configs/fashion_mnist.py:vgg11_bn', _FASHION, '6.5 % (VGG-16)'),
    ('fashion-googlenet', 'configs/fashion_mnist.py:googlenet', _FASHION, '6.3 %'),
    ('fashion-resnet20', 'configs/fashion_mnist.py:resnet20', _FASHION, '–'),
    ('fashion-resnet18', 'configs/fashion_mnist.py:resnet18', _FASHION, '5.1 % (ResNet-18)'),
    ('cifar10-resnet20', 'configs/cifar10_resnet.py:20', _HE, '8.75 %'),
    ('cifar10-resnet32', 'configs/cifar10_resnet.py:32', _HE, '7.51 %'),
    ('cifar10-resnet44', 'configs/cifar10_resnet.py:44', _HE, '7.17 %'),
    ('cifar10-resnet56', 'configs/cifar10_resnet.py:56', _HE, '6.97 %'),
    ('cifar10-resnet110', 'configs/cifar10_resnet.py:110', _HE, '6.61 ± 0.16 %'),
    ('cifar10-resnet1202', 'configs/cifar10_resnet.py:1202', _HE, '7.93 %'),
    ('imagenet-alexnet', 'configs/imagenet_alexnet.py', 'Krizhevsky 2012', '40.7 %', 'ten_crop'),
    ('imagenet-vgg16', 'configs/imagenet_vgg.py:16', 'Simonyan 2014', '25.6 %', 'dense_384'),
    ('imagenet-vgg19', 'configs/imagenet_vgg.py:19', 'Simonyan 2014', '25.5 %', 'dense_384'),
    (
        'imagenet-googlenet',
        'configs/imagenet_googlenet.py',
        'Szegedy 2014',
        '10.07 % top-5',
        None,
        'top5',
    ),
    ('imagenet-inception-v3', 'configs/imagenet_inception_v3.py', 'Szegedy 2015', '21.2 %'),
    ('imagenet-resnet18', 'configs/imagenet_resnet.py:18', 'He 2015', '27.88 %', 'ten_crop'),
    ('imagenet-resnet34a', 'configs/imagenet_resnet.py:34a', 'He 2015', '25.03 %', 'ten_crop'),
    ('imagenet-resnet34b', 'configs/imagenet_resnet.py:34b', 'He 2015', '24.52 %', 'ten_crop'),
    ('imagenet-resnet34c', 'configs/imagenet_resnet.py:34c', 'He 2015', '24.19 %', 'ten_crop'),
    ('imagenet-resnet50', 'configs/imagenet_resnet.py:50', 'He 2015', '22.85 %', 'ten_crop'),
    ('imagenet-resnet101', 'configs/imagenet_resnet.py:101', 'He 2015', '21.75 %', 'ten_crop'),
    ('imagenet-resnet152', 'configs/imagenet_resnet.py:152', 'He 2015', '21.43 %', 'ten_crop'),
    ('imagenet-resnet50-v1', 'configs/imagenet_resnet.py:50-v1', 'torchvision V1', '23.87 %'),
    ('imagenet-resnet50-v2', 'configs/imagenet_resnet.py:50-v2', 'torchvision V2', '19.14 %'),
)


def main(argv: list[str]) -> None:
    """Trains the named rows, and writes and prints the table of all rows."""
    known = [name for name, *_ in ROWS]
    for name in argv[1:]:
        if name not in known:
            raise unknown('row', name, known)
    from vision.core.progress import phase
    from vision.core.text import print_table

    with phase('starting'):
        from vision.studies import reproduction as reproduce

    # Check the flags before any training.
    seeds = _seeds(SEEDS.value)
    rows = [reproduce.Row(*row) for row in ROWS]
    results = Path(RESULTS.value)
    if not argv[1:] and not results.is_dir():
        raise UserError(f'--results={results}: no such folder')
    # Train the named rows, and write the table after each of them.
    for row in (row for row in rows if row.name in argv[1:]):
        reproduce.reproduce(row, _config(row), seeds, Path(WORKDIR.value), results, _command(row))
        reproduce.write_markdown(reproduce.table(rows, results), results / 'table.md')
    measured = reproduce.table(rows, results)
    if FORMAT.value == 'json':
        print(json_text(measured))
    else:
        print_table(reproduce.rich_table(measured))


def _config(row: Any) -> Any:
    file, _, argument = row.config.partition(':')
    module = importlib.import_module(file.removesuffix('.py').replace('/', '.'))
    config = module.get_config(*([argument] if argument else []))
    # Set the location of the data and the dtype from the flags.
    data = config.data
    folder = {'mnist': MNIST.value, 'fashion_mnist': FASHION.value}.get(data.get('name'))
    with data.unlocked():
        if folder:
            data.source, data.path = 'idx', folder
        elif data.source == 'tfds' and DATA_DIR.value:
            data.data_dir = DATA_DIR.value
    if DTYPE.value:
        with config.model.unlocked():
            config.model.dtype = DTYPE.value
    return config


def _seeds(words: list[str]) -> list[int]:
    """Returns the seeds: '3' is a number of seeds, '0,1,2' are seeds, and '3,' is one seed."""
    named = len(words) > 1
    words = words[:-1] if named and not words[-1] else words
    if not words or not all(re.fullmatch(r'\d+', word) for word in words):
        raise UserError(f'--seeds={",".join(words)} must be whole numbers: 3, or 0,1,2')
    if named:
        return list(dict.fromkeys(map(int, words)))
    if int(words[0]) == 0:
        raise UserError('--seeds=0 is none; --seeds=1 is seed 0')
    return list(range(int(words[0])))


def _command(row: Any) -> str:
    """Returns the command that reproduces a row, without seeds and the user's folders."""
    dtype = f' --dtype={DTYPE.value}' if DTYPE.value else ''
    return f'python -m experiments.reproduce {row.name}{dtype}'


if __name__ == '__main__':
    cli.run(main)
