"""What the experiments on ImageNet (ILSVRC-2012) share; by itself, ResNet-18 for 90 epochs.

    python -m experiments.train --config=configs/imagenet.py --workdir=runs/imagenet

The data set must be prepared by hand (tensorflow.org/datasets/catalog/imagenet2012); then
`--config.data.data_dir=DIR`. 1 % of train is held out to select on; the 50,000 validation images,
whose labels are public, are reported as test. ResNet-18 follows torchvision's recipe (69.758 % right) but decays the kernels
only and begins each block's last scale at 0 (Goyal et al. 2017, arXiv:1706.02677). A folder of photos does as well:
`--config.data.source=folder --config.data.path=FOLDER`. Not measured here: no such data, no such time.
"""

from ml_collections import ConfigDict

from vision.core.config import default_config


def get_config() -> ConfigDict:
    """The data, the crops and the constants that all have; SGD, 90 epochs of batch 256."""
    config = default_config()
    config.model = ConfigDict({'name': 'resnet18'})
    config.data.source, config.data.name = 'tfds', 'imagenet2012'
    splits = {'train': 'train[:99%]', 'validation': 'train[99%:]', 'test': 'validation'}
    config.data.splits = ConfigDict(splits)
    config.preprocess.train = 'decode|random_resized_crop(224)|flip_lr'
    config.preprocess.eval = 'decode|resize_small(256)|central_crop(224)'
    config.preprocess.mean = (0.485, 0.456, 0.406)
    config.preprocess.std = (0.229, 0.224, 0.225)
    config.optimizer.lr = 0.1
    config.weight_decay = 1e-4
    config.schedule = step_schedule(('30 epochs', '60 epochs'))
    config.training.batch_size = 256
    config.training.duration = '90 epochs'
    config.training.log_every = '100 steps'
    return config


def step_schedule(at: tuple[str, ...], factor: float = 0.1) -> ConfigDict:
    """The rate times `factor` at each of the durations."""
    return ConfigDict({'name': 'step', 'warmup': '0 steps', 'at': at, 'factor': factor})
