"""EfficientNet-B0 on ImageNet.

Paper: Tan and Le 2019, "EfficientNet: rethinking model scaling for CNNs" (arXiv:1905.11946),
section 5.2.

    python -m experiments.train --config=configs/imagenet_efficientnet.py --workdir=runs/b0
    … --config.data.data_dir=DIR     the prepared data set

Result: not run here. Paper's top-1 / top-5 accuracy: 77.1 / 93.3 %.
Cost: not measured; 108,380 steps of batch 4096.
Values from the authors' code, which the paper does not give: batch 4096 with a learning rate of
.256 (.016 per 256 images), 350 epochs, 5 of warm-up, label smoothing .1, a moving average with
decay .9999, epsilon .001 inside the root and a mean square that begins at 1 (TensorFlow), weight
decay of all parameters except BatchNorm's, crop ratio 224/256.
Deviations: 1 % of the training images is held out; the learning rate decays from the end of the
warm-up on; BatchNorm sees the whole batch, not a TPU core's share; crops are bilinear.
"""

from ml_collections import ConfigDict

from configs.imagenet import set_data
from vision.core.config import default_config


def get_config() -> ConfigDict:
    """Returns the config of the experiment."""
    config = default_config()
    config.model = ConfigDict({'name': 'efficientnet_b0', 'framework': 'tensorflow'})
    config.model.dropout, config.model.drop_path = 0.2, 0.2
    set_data(config)
    config.preprocess.train = 'decode|random_resized_crop(224)|flip_lr|autoaugment'
    config.preprocess.eval = 'decode|resize_small(256, "bicubic")|central_crop(224)'
    config.preprocess.mean = (0.485, 0.456, 0.406)
    config.preprocess.std = (0.229, 0.224, 0.225)
    config.loss.label_smoothing = 0.1
    config.optimizer = ConfigDict(
        {'name': 'rmsprop', 'lr': 0.256, 'decay': 0.9, 'momentum': 0.9, 'eps': 1e-3}
    )
    config.optimizer.eps_in_sqrt = True
    config.optimizer.initial_scale = 1.0
    config.optimizer.lr_for_batch = config.optimizer.clip_value = None
    config.optimizer.clip_norm = None
    config.weight_decay = 1e-5
    config.weight_decay_pattern = r'kernel$|(se_\w+|classifier)/bias$'
    config.schedule = ConfigDict(
        {'name': 'exponential', 'warmup': '5 epochs', 'every': '2.4 epochs', 'factor': 0.97}
    )
    config.training.batch_size = 4096
    config.training.duration = '350 epochs'
    config.training.log_every = '100 steps'
    config.training.ema_decay = 0.9999
    config.evaluation.batch_size = 64
    return config
