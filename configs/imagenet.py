"""ResNet-18 on ImageNet (ILSVRC-2012), and the data of all `imagenet_*` configs.

Paper: He et al. 2015 (arXiv:1512.03385); the recipe is torchvision's (references/classification):
SGD, 90 epochs of batch 256, learning rate .1 divided by 10 at 30 and 60 epochs.

    python -m experiments.train --config=configs/imagenet.py --workdir=runs/imagenet
    … --config.data.data_dir=DIR     the prepared data set
    … --config.data.source=folder --config.data.path=FOLDER     photos, FOLDER/CLASS/*.jpg

Result: not run here. torchvision's top-1 accuracy: 69.758 %.
Cost: not measured; the data set must be prepared by hand
(tensorflow.org/datasets/catalog/imagenet2012).
Deviations: only kernels are decayed, and the last scale of each block is initialised to 0 (Goyal et
al. 2017, arXiv:1706.02677). 1 % of the training images is held out to select the checkpoint. The
50,000 validation images, whose labels are public, are used as the test split.
"""

from ml_collections import ConfigDict

from vision.core.config import default_config


def get_config() -> ConfigDict:
    """Returns the config of the experiment."""
    config = default_config()
    config.model = ConfigDict({'name': 'resnet18'})
    set_data(config)
    config.preprocess.train = 'decode|random_resized_crop(224)|flip_lr'
    config.preprocess.eval = 'decode|resize_small(256)|central_crop(224)'
    config.preprocess.mean = (0.485, 0.456, 0.406)
    config.preprocess.std = (0.229, 0.224, 0.225)
    config.optimizer.lr = 0.1
    config.weight_decay = 1e-4
    config.schedule = ConfigDict({'name': 'step', 'warmup': '0 steps'})
    config.schedule.at, config.schedule.factor = ('30 epochs', '60 epochs'), 0.1
    config.training.batch_size = 256
    config.training.duration = '90 epochs'
    config.training.log_every = '100 steps'
    return config


def set_data(config: ConfigDict) -> None:
    """Sets `config.data` to ILSVRC-2012: 1 % of train held out, the validation split as test."""
    config.data.source, config.data.name = 'tfds', 'imagenet2012'
    splits = {'train': 'train[:99%]', 'validation': 'train[99%:]', 'test': 'validation'}
    config.data.splits = ConfigDict(splits)
