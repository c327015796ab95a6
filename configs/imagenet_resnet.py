"""ResNet on ImageNet: 18, 34a, 34b, 34c (shortcuts A, B, C), 50, 101, 152, or 50-v1, 50-v2.

Paper: He et al. 2015, "Deep residual learning for image recognition" (arXiv:1512.03385), 3.4.

    python -m experiments.train --config=configs/imagenet_resnet.py:50 --workdir=runs/resnet50

Result: not run. Paper's top-1 error of 50: 22.85 % with ten crops (`evals.ten_crop`; all depths are
in results/table.md); the authors' code with one crop: 24.7, 23.6, 23.0 % (50, 101, 152).
torchvision's recipes of 90 and 600 epochs: 23.870 % (50-v1), 19.142 % (50-v2).
Cost: not measured; 600,000 steps of batch 256 with the paper's recipe.
Deviations: 1 % of the training images is held out. Paper's recipe: channel means are subtracted,
not pixel means; biases and norms are not decayed. 50-v2: see the comment below.
"""

from ml_collections import ConfigDict

from configs.imagenet import set_data
from vision.core.config import default_config
from vision.core.errors import unknown

_PAPER = {
    '18': {'name': 'resnet18', 'shortcut': 'A', 'zero_init_residual': False},
    '34a': {'name': 'resnet34_a'},
    '34b': {'name': 'resnet34_b'},
    '34c': {'name': 'resnet34_c'},
    '50': {'name': 'resnet50_v1'},
    '101': {'name': 'resnet101_v1'},
    '152': {'name': 'resnet152_v1'},
}
_TORCHVISION = ('50-v1', '50-v2')


def get_config(variant: str = '50') -> ConfigDict:
    """Returns the config with this depth and recipe."""
    if variant not in (*_PAPER, *_TORCHVISION):
        raise unknown('variant of imagenet_resnet.py', variant, [*_PAPER, *_TORCHVISION])
    config = default_config()
    set_data(config)
    config.preprocess.eval = 'decode|resize_small(256)|central_crop(224)'
    config.preprocess.mean = (0.485, 0.456, 0.406)
    config.preprocess.std = (0.229, 0.224, 0.225)
    config.optimizer.lr = 0.1
    config.weight_decay = 1e-4
    config.training.batch_size = 256
    config.training.log_every = '100 steps'
    if variant in _PAPER:
        config.model = ConfigDict(_PAPER[variant])
        config.preprocess.train = 'decode|scale_jitter(256, 480)|random_crop(224)|flip_lr|pca_noise'
        config.preprocess.std = (1 / 255,)  # the mean is subtracted in pixels
        config.evals.ten_crop = ConfigDict({'protocol': 'ten_crop'})
        # A plateau is 5 epochs without a better validation metric.
        config.schedule = ConfigDict({'name': 'plateau', 'warmup': '0 steps', 'patience': 5})
        config.training.duration = '600000 steps'
        return config
    # Unlike Goyal et al., torchvision does not initialise the last scale of each block to zero.
    config.model = ConfigDict({'name': 'resnet50', 'zero_init_residual': False})
    if variant == '50-v1':
        config.preprocess.train = 'decode|random_resized_crop(224)|flip_lr'
        config.weight_decay_pattern = ''  # all parameters: norms and biases, too
        config.schedule = ConfigDict({'name': 'step', 'warmup': '0 steps'})
        config.schedule.at, config.schedule.factor = ('30 epochs', '60 epochs'), 0.1
        config.training.duration = '90 epochs'
    else:
        # torchvision's references/classification, 'ResNet50_Weights.IMAGENET1K_V2'. Deviations:
        # erased boxes get random pixels, not grey; the warm-up begins at 0, not .005; the EMA is
        # updated at each step, not each 32nd, and faster at first, as (1 + t) / (10 + t); BatchNorm
        # and mixup see the whole batch of 1024, not the 128 images of a GPU.
        config.preprocess.train = (
            'decode|random_resized_crop(176)|flip_lr|trivialaugment_wide'
            '|random_erasing(0.1, area=(0.02, 0.33))'
        )
        config.preprocess.eval = 'decode|resize_small(232)|central_crop(224)'
        config.preprocess.mixup, config.preprocess.cutmix = 0.2, 1.0
        config.data.repeats = 4  # an epoch shows a quarter of the images
        config.loss.label_smoothing = 0.1
        config.optimizer.lr = 0.5
        config.weight_decay = 2e-5
        config.weight_decay_pattern = '(kernel|fc/bias)$'
        config.schedule = ConfigDict({'name': 'cosine', 'warmup': '5 epochs'})
        config.training.batch_size = 1024
        config.training.duration = '600 epochs'
        # torchvision: 1 - .00002 * 8 * 128 * 32 / 600 at each 32nd step.
        config.training.ema_decay = 1 - 0.00002 * 1024 / 600
    return config
