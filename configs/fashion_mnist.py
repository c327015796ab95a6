"""Today's small forms of VGG, GoogLeNet and ResNet on Fashion-MNIST, the model named behind the colon.

Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST". The data set's own list, accuracy: two convolutions with
pooling 87.6 … 91.6 % (93.9 % with flips), VGG-16 93.5, GoogLeNet 93.7, ResNet-18 94.9, DenseNet-BC 95.4,
WRN-40-4 96.7. ResNet: He et al. 2015 (ResNet-20: section 4.2);
VGG: Simonyan and Zisserman 2014 with BatchNorm, one linear layer after its convolutions; GoogLeNet: Szegedy et al. 2014 with
BatchNorm, no auxiliary heads; each with its usual stem for small images. VGG and ResNet-18 are half as wide as published,
GoogLeNet a quarter.

    python -m experiments.train --config=configs/fashion_mnist.py:resnet20 --workdir=runs/fashion
    …:vgg11_bn  …:googlenet  …:resnet18
    … --config.data.source=idx --config.data.path=FOLDER     the four IDX files, no internet

One recipe for what a CPU can train: SGD with momentum, a cosine over 15 epochs (8 for GoogLeNet, whose epoch takes three
times as long), padded crops and flips, a moving average. ResNet-18 is for the best figure: 40 epochs, and squares of 8
pixels cut out (DeVries and Taylor 2017).
LeNet-5 has its own file, `fashion_mnist_lenet5.py`. Test accuracy, three seeds: resnet18 94.94 ± 0.08 %, resnet20
93.73 ± 0.06 %, vgg11_bn 93.46 ± 0.21 %; five: googlenet 93.28 ± 0.12 % (`results/table.md`).
On a CPU core without AVX-512 an epoch of GoogLeNet takes 15 minutes (2.1 s a step), of ResNet-20 5 (0.64 s); of VGG 3 with
AVX-512.
"""

from ml_collections import ConfigDict

from configs import fashion_mnist_lenet5
from vision.core.errors import unknown

_MODELS = {
    'resnet20': {},
    'vgg11_bn': {'stem': 'small', 'width': 0.5},
    'googlenet': {'stem': 'small', 'aux_heads': False, 'width': 0.25},
    'resnet18': {'stem': 'small', 'widths': (32, 64, 128, 256)},
}


def get_config(model: str = 'resnet20') -> ConfigDict:
    """The experiment with this model."""
    if model not in _MODELS:
        raise unknown('model of fashion_mnist.py', model, _MODELS)
    config = fashion_mnist_lenet5.get_config()
    config.model = ConfigDict({'name': model} | _MODELS[model])
    config.preprocess.train = 'random_crop(28, padding=2)|flip_lr'
    config.preprocess.eval = ''
    config.preprocess.mean = (0.286,)
    config.preprocess.std = (0.353,)
    config.optimizer.lr = 0.1
    config.optimizer.nesterov = True
    config.training.duration = '8 epochs' if model == 'googlenet' else '15 epochs'
    config.training.ema_decay = 0.999
    if model == 'resnet18':
        config.preprocess.train += '|cutout(8)'
        config.training.duration = '40 epochs'
    return config
