"""A small ViT on Fashion-MNIST, alone or with a ResNet as its teacher; the form follows the colon.

Paper: Touvron et al. 2021, "Training data-efficient image transformers & distillation through
attention" (arXiv:2012.12877), section 4: a convolutional teacher helps a transformer that is
trained on few images. Table 9 has the values of λ and τ.

    python -m experiments.train --config=configs/fashion_mnist_vit.py:teacher \\
        --workdir=runs/fashion_teacher
    … --config=configs/fashion_mnist_vit.py:hard --workdir=runs/fashion_hard
    …:alone  …:soft
    … --config.data.source=idx --config.data.path=FOLDER     the four IDX files, no internet

Result: not measured.
Cost: not measured to the end. The teacher's first 200 steps ran at 244 to 249 images/s on a CPU
that was shared with other programs; at this rate, its 1,289 steps take 11 minutes.
Deviations: the ViT has 4 blocks of width 64 and patches of 4 pixels, the teacher is a ResNet of 8
layers, and both are trained for three epochs; there is no distillation token.
"""

from ml_collections import ConfigDict

from configs.fashion_mnist import set_data
from vision.core.config import default_config
from vision.core.errors import unknown

_FORMS = {
    'teacher': {},
    'alone': {},
    'hard': {'kind': 'hard', 'weight': 0.5},
    'soft': {'kind': 'soft', 'weight': 0.1, 'temperature': 3.0},
}


def get_config(form: str = 'alone') -> ConfigDict:
    """Returns the config of the teacher, or of the ViT with or without the teacher."""
    if form not in _FORMS:
        raise unknown('form of fashion_mnist_vit.py', form, _FORMS)
    config = default_config()
    set_data(config)
    config.preprocess.train = 'random_crop(28, padding=2)|flip_lr'
    config.preprocess.mean = (0.286,)
    config.preprocess.std = (0.353,)
    config.schedule.warmup = '0.3 epochs'
    config.training.batch_size = 128
    config.training.duration = '3 epochs'
    config.training.log_every = '100 steps'
    config.evaluation.batch_size = 1000
    if form == 'teacher':
        config.model = ConfigDict({'name': 'resnet20', 'stage_sizes': (1, 1, 1)})
        config.optimizer.nesterov = True
        config.weight_decay = 5e-4
        return config
    config.model = ConfigDict({'name': 'vit_ti16', 'patch': 4, 'width': 64, 'depth': 4, 'heads': 2})
    config.optimizer = ConfigDict({'name': 'adamw', 'lr': 1e-3, 'clip_norm': 1.0})
    config.optimizer.lr_for_batch = config.optimizer.clip_value = None
    config.weight_decay = 0.05
    if _FORMS[form]:
        teacher = {'name': 'distillation', 'teacher': 'runs/fashion_teacher'}
        config.task = ConfigDict(teacher | _FORMS[form])
    return config
