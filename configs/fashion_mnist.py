"""Small VGG, GoogLeNet and ResNets on Fashion-MNIST; the model follows the colon.

Papers: Xiao, Rasul and Vollgraf 2017 (arXiv:1708.07747), the data set, whose authors list
accuracies: VGG-16 93.5, GoogLeNet 93.7, ResNet-18 94.9, DenseNet-BC 95.4, WRN-40-4 96.7 %; He et
al. 2015, section 4.2; Simonyan and Zisserman 2014; Szegedy et al. 2014.

    python -m experiments.train --config=configs/fashion_mnist.py:resnet20 --workdir=runs/fashion
    … --config.data.source=idx --config.data.path=FOLDER     the four IDX files, no internet

Result: test error (results/table.md); minutes per seed on an NVIDIA H100 shared by up to 20 runs:
    resnet20    6.27 ± 0.06 %, 3 seeds,  3 min
    vgg11_bn    6.54 ± 0.21 %, 3 seeds,  2 min   half as wide as published
    googlenet   6.72 ± 0.12 %, 5 seeds,  7 min   a quarter as wide, 8 epochs
    resnet18    5.06 ± 0.08 %, 3 seeds, 11 min   half as wide, 40 epochs, cutout (arXiv:1708.04552)
Cost of an epoch on one CPU core: googlenet 15 and resnet20 5 minutes (without AVX-512), vgg11_bn 3
minutes (with AVX-512).
Deviations: one recipe for all models (SGD, cosine, padded crops, flips, moving average); stems for
small images; BatchNorm in VGG and GoogLeNet; one linear layer in VGG; no auxiliary heads in
GoogLeNet.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vision.core.config import default_config
from vision.core.errors import unknown

_MODELS = {
    'resnet20': {},
    'vgg11_bn': {'stem': 'small', 'width': 0.5},
    'googlenet': {'stem': 'small', 'aux_heads': False, 'width': 0.25},
    'resnet18': {'stem': 'small', 'widths': (32, 64, 128, 256)},
}


def get_config(model: str = 'resnet20') -> ConfigDict:
    """Returns the config with this model."""
    if model not in _MODELS:
        raise unknown('model of fashion_mnist.py', model, _MODELS)
    config = default_config()
    config.model = ConfigDict({'name': model} | _MODELS[model])
    set_data(config)
    config.preprocess.train = 'random_crop(28, padding=2)|flip_lr'
    config.preprocess.mean = (0.286,)
    config.preprocess.std = (0.353,)
    config.optimizer.lr = 0.1
    config.optimizer.nesterov = True
    config.weight_decay = 5e-4
    config.schedule.warmup = '1 epochs'
    config.training.batch_size = 128
    # An epoch of GoogLeNet takes three times as long as an epoch of the other models.
    config.training.duration = '8 epochs' if model == 'googlenet' else '15 epochs'
    config.training.log_every = '100 steps'
    config.training.ema_decay = 0.999
    config.evaluation.batch_size = 1000
    if model == 'resnet18':
        config.preprocess.train += '|cutout(8)'
        config.training.duration = '40 epochs'
    return config


def set_data(config: ConfigDict, validation: int = 5000) -> None:
    """Sets `config.data` to Fashion-MNIST, with `validation` training images held out."""
    config.data.source = 'tfds'
    config.data.name = 'fashion_mnist'
    config.data.in_memory = True
    config.data.path = placeholder(str)
    config.data.validation = validation
    config.data.class_names = (
        'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat',
        'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
    )  # fmt: skip
