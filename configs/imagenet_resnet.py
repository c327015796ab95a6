"""ResNet on ImageNet: He et al. 2015, "Deep residual learning for image recognition", arXiv:1512.03385.

Behind the colon stand the depth and the recipe. `50`: section 3.4, batch 256, rate .1 divided by 10 when
validation stops improving, 60e4 iterations (120 epochs), weight decay 1e-4, momentum .9, shorter side in
[256, 480], crops of 224, flips, colour noise. Error of ten crops at test (`evals.ten_crop`): 18 layers 27.88 %; 34, options
A, B, C, 25.03 / 7.76, 24.52 / 7.46, 24.19 / 7.40; 50 22.85 / 6.71; 101 21.75 / 6.05; 152 21.43 / 5.71; of one crop, by the
authors' code, 24.7 / 7.8, 23.6 / 7.1 and 23.0 / 6.7 %.

    python -m experiments.train --config=configs/imagenet_resnet.py:50 --workdir=runs/resnet50 --config.data.data_dir=DIR
    …:18  …:34a  …:34b  …:34c  …:101  …:152   other depths; the shortcuts of options A (18, too), B, C
    …:50-v1                             torchvision's recipe of 90 epochs: 76.130 % right (V1 weights)
    …:50-v2                             torchvision's recipe of 600 epochs: 80.858 % right (V2 weights)

What deviates. All: 1 % of the training images is held out (`imagenet.py`). Paper: only the channels'
means are subtracted, in pixels; validation is seen once an epoch, and 5 times without a better figure divide the rate; biases and norms are not decayed. V2: boxes to erase get random pixels, not grey, the warm-up begins at 0 and not at .005, the
EMA moves a little at each step in place of each 32nd and faster in the first ones (as (1 + t) / (10 + t)),
and BatchNorm and mixup see the whole batch of 1024, not a GPU's 128. Not measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet
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
    """The experiment with this depth and recipe."""
    if variant not in (*_PAPER, *_TORCHVISION):
        raise unknown('variant of imagenet_resnet.py', variant, [*_PAPER, *_TORCHVISION])
    config = imagenet.get_config()
    if variant in _PAPER:
        config.model = ConfigDict(_PAPER[variant])
        _paper(config)
        return config
    # torchvision trains without Goyal et al.'s zeros in each block's last scale.
    config.model = ConfigDict({'name': 'resnet50', 'zero_init_residual': False})
    if variant == '50-v2':
        _torchvision_v2(config)
    else:
        config.weight_decay_pattern = ''  # all parameters: norms and biases, too
    return config


def _paper(config: ConfigDict) -> None:
    config.preprocess.train = 'decode|scale_jitter(256, 480)|random_crop(224)|flip_lr|pca_noise'
    config.preprocess.std = (1 / 255,)
    config.evals.ten_crop = ConfigDict({'protocol': 'ten_crop'})
    config.schedule = ConfigDict({'name': 'plateau', 'warmup': '0 steps', 'patience': 5})
    config.training.duration = '600000 steps'


def _torchvision_v2(config: ConfigDict) -> None:
    """references/classification: 'ResNet50_Weights.IMAGENET1K_V2'."""
    config.preprocess.train = (
        'decode|random_resized_crop(176)|flip_lr|trivialaugment_wide'
        '|random_erasing(0.1, area=(0.02, 0.33))'
    )
    config.preprocess.eval = 'decode|resize_small(232)|central_crop(224)'
    config.data.repeats = 4  # an epoch shows a quarter of the images
    config.preprocess.mixup, config.preprocess.cutmix = 0.2, 1.0
    config.loss.label_smoothing = 0.1
    config.optimizer.lr = 0.5
    config.weight_decay = 2e-5
    config.weight_decay_pattern = '(kernel|fc/bias)$'
    config.schedule = ConfigDict({'name': 'cosine', 'warmup': '5 epochs'})
    config.training.batch_size = 1024
    config.training.duration = '600 epochs'
    # torchvision: 1 - .00002 * 8 * 128 * 32 / 600 at each 32nd step.
    config.training.ema_decay = 1 - 0.00002 * 1024 / 600
