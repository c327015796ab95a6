"""A ResNet from scratch on a data set of TFDS; the data set follows the colon.

Paper: He et al. 2015, "Deep residual learning for image recognition" (arXiv:1512.03385), section
4.2 for CIFAR (ResNet-20, padded by 4, cropped, flipped), section 3.4 for the others (ResNet-18;
ImageNet: ResNet-50).

    python -m experiments.train --config=configs/tfds_resnet.py:cifar10 --workdir=runs/cifar10
    …:cifar100  …:imagenette  …:cats_vs_dogs  …:oxford_flowers102
    …:imagenet2012 --config.data.data_dir=DIR     prepared by hand, see tensorflow.org/datasets

Result: not run here. ResNet-20 on CIFAR-10 in the paper: 8.75 % test error.
Cost: not measured; the data sets must be downloaded.
Deviations: a cosine schedule; Inception's crops in training, as in torchvision's recipe, and the
central crop in evaluation. Validation images are held out of the training split. If the labels of a
data set's test split are not public, its validation split is used as the test split.
"""

from ml_collections import ConfigDict

from vision.core.config import default_config
from vision.core.errors import unknown

_SMALL = ('cifar10', 'cifar100')
# Our train, validation and test splits in the notation of TFDS.
_SPLITS = {
    'imagenette': ('train[:90%]', 'train[90%:]', 'validation'),
    'cats_vs_dogs': ('train[:80%]', 'train[80%:90%]', 'train[90%:]'),
    'oxford_flowers102': ('train', 'validation', 'test'),
    'imagenet2012': ('train[:99%]', 'train[99%:]', 'validation'),
}


def get_config(name: str = 'cifar10') -> ConfigDict:
    """Returns the config for one of the data sets."""
    if name not in (*_SMALL, *_SPLITS):
        raise unknown('data set of tfds_resnet.py', name, [*_SMALL, *_SPLITS])
    config = default_config()
    config.data.source, config.data.name = 'tfds', name
    config.preprocess.normalise = 'dataset'
    config.optimizer.lr = 0.1
    config.weight_decay = 1e-4
    config.schedule.warmup = '1 epochs'
    if name in _SMALL:
        config.model = ConfigDict({'name': 'resnet20'})
        config.data.in_memory, config.data.validation = True, 5000
        config.preprocess.train = 'random_crop(32, padding=4)|flip_lr'
        config.training.batch_size = 128
        config.training.duration = '64000 steps'
        config.evaluation.batch_size = 500
        return config
    imagenet = name == 'imagenet2012'
    config.model = ConfigDict({'name': 'resnet50' if imagenet else 'resnet18'})
    splits = dict(zip(('train', 'validation', 'test'), _SPLITS[name], strict=True))
    config.data.splits = ConfigDict(splits)
    config.preprocess.train = 'decode|random_resized_crop(224)|flip_lr'
    config.preprocess.eval = 'decode|resize_small(256)|central_crop(224)'
    if imagenet:  # use the known constants; computing them would read 1.3 million images
        config.preprocess.normalise = 'constants'
        config.preprocess.mean = (0.485, 0.456, 0.406)
        config.preprocess.std = (0.229, 0.224, 0.225)
    config.training.batch_size = 256 if imagenet else 64
    config.training.duration = '90 epochs'
    config.evaluation.batch_size = 64
    return config
