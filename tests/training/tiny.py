"""A run of seconds, for tests in this process: all share what is compiled."""

from configs.digits_lenet5 import get_config


def tiny_config(**overrides):
    """LeNet-5 on digits, 24 steps of 32; overrides as 'training__log_every'."""
    config = get_config()
    values = {
        # An affine map, as the config has it, takes most of the time to compile.
        'preprocess.train': 'resize(32)|translate(3)',
        'training.batch_size': 32,
        'training.ema_decay': 0.0,
        'training.duration': '24 steps',
        'training.eval_every': '8 steps',
        'training.log_every': '6 steps',
        'training.checkpoint_every': '12 steps',
        'schedule.warmup': '2 steps',
        'evaluation.batch_size': 100,
    }
    values |= {key.replace('__', '.'): value for key, value in overrides.items()}
    for key, value in values.items():
        config.update_from_flattened_dict({key: value})
    return config
