"""The peer's side of `benchmarks.throughput`, for a Python with PyTorch, torchvision and timm.

    python torch_throughput.py torchvision train|infer MODEL float32|bfloat16 PIXELS CHANNELS BATCH
    python torch_throughput.py onnxruntime infer MODEL float32 PIXELS CHANNELS BATCH

It imports nothing from this project. timm is the peer for models that torchvision lacks. ONNX
Runtime runs torchvision's model, exported by PyTorch.
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time

_TIMM = {'vit_s16': 'vit_small_patch16_224', 'efficientnet_lite0': 'tf_efficientnet_lite0'}
_SECONDS = 6.0
_STEPS = 5


def main(peer, mode, name, dtype, size, channels, batch):
    """Measures a model in eager mode.

    Prints JSON with `rate`, the images/s of the median step, and `format`, the memory format. On CPUs
    each format is measured, and the faster one counts.
    """
    import torch

    on_gpu = torch.cuda.is_available() and peer == 'torchvision'
    device = 'cuda' if on_gpu else 'cpu'
    classes = 1000 if channels == 3 else 10
    model = _make(name, classes).to(device)
    images = torch.randn(batch, channels, size, size, device=device)
    # The settings that PyTorch's performance guide recommends for convolutional networks on GPUs. On
    # CPUs, channels_last is faster for most networks.
    formats = ['channels_last'] if on_gpu else ['contiguous_format', 'channels_last']
    torch.backends.cudnn.benchmark = on_gpu
    labels = torch.randint(0, classes, (batch,), device=device)
    autocast = torch.autocast(device, torch.bfloat16) if dtype == 'bfloat16' else None

    # One step of training or inference on the same batch.
    def train():
        optimizer.zero_grad()
        with autocast or contextlib.nullcontext():
            outputs = model(images)
            heads = [(outputs, 1.0)]
            # GoogLeNet also returns auxiliary logits.
            if isinstance(outputs, tuple):
                weights = 1.0, 0.3, 0.3
                heads = list(zip(outputs, weights, strict=True))
            loss = sum(w * torch.nn.functional.cross_entropy(o, labels) for o, w in heads)
        loss.backward()
        optimizer.step()

    def infer():
        with torch.inference_mode(), autocast or contextlib.nullcontext():
            model(images).softmax(-1)

    model.train(mode == 'train')
    step = train if mode == 'train' else infer
    rates = {}
    if peer == 'onnxruntime':
        rates['contiguous_format'] = batch / _seconds(_onnx_step(model, images))
    else:
        # CUDA runs asynchronously: wait for the end of the step.
        wait = torch.cuda.synchronize if on_gpu else None
        for name in formats:
            # `step` uses these variables of the enclosing function.
            model = model.to(memory_format=getattr(torch, name))
            images = images.contiguous(memory_format=getattr(torch, name))
            optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)
            rates[name] = batch / _seconds(step, wait)
    fastest = max(rates, key=lambda name: rates[name])
    print(json.dumps({'rate': rates[fastest], 'format': fastest, 'rates': rates}))


def _seconds(step, wait=None):
    """Returns the median time of a step after two steps of warm-up; `wait` ends each step."""
    seconds = []
    for i in range(10**9):
        began = time.perf_counter()
        step()
        if wait:
            wait()
        if i >= 2:
            seconds.append(time.perf_counter() - began)
        if len(seconds) >= _STEPS and sum(seconds) >= _SECONDS:
            break
    return statistics.median(seconds)


def _onnx_step(model, images):
    """Returns a function that computes probabilities with ONNX Runtime, which folds BatchNorm."""
    import onnxruntime
    import torch

    probabilities = torch.nn.Sequential(model, torch.nn.Softmax(-1)).eval()
    with tempfile.NamedTemporaryFile(suffix='.onnx') as file, contextlib.redirect_stdout(None):
        torch.onnx.export(probabilities, (images,), file.name, dynamo=True, external_data=False)
        session = onnxruntime.InferenceSession(file.name, providers=['CPUExecutionProvider'])
    # The session is in memory and no longer needs the file.
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def _make(name, classes):
    if name == 'lenet5':
        return lenet5(classes)
    if name in _TIMM:
        import timm

        return timm.create_model(_TIMM[name], num_classes=classes)
    import torchvision

    arguments = {'init_weights': False} if name == 'googlenet' else {}
    return getattr(torchvision.models, name)(num_classes=classes, **arguments)


def lenet5(classes):
    """Returns LeNet-5 for images of 28 x 28; torchvision does not have it."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


if __name__ == '__main__':
    main(*sys.argv[1:5], *map(int, sys.argv[5:]))
