"""The peer's side of `benchmarks.throughput`, for a Python with PyTorch, torchvision and timm.

    python torch_throughput.py PEER FORMAT train|infer MODEL DTYPE PIXELS CHANNELS BATCH [STEPS]

PEER is torchvision or timm (both eager), torch.compile or onnxruntime; FORMAT is contiguous_format
or channels_last; DTYPE is float32 or bfloat16. At least six seconds are measured, or STEPS steps
after two. It imports nothing from this project. timm is the
library of models that torchvision lacks. ONNX Runtime runs the model as exported by PyTorch.
"""

import contextlib
import json
import resource
import statistics
import sys
import tempfile
import time

_TIMM = {'vit_s16': 'vit_small_patch16_224', 'efficientnet_lite0': 'tf_efficientnet_lite0'}
_SECONDS = 6.0
_STEPS = 5


def main(peer, memory, mode, name, dtype, size, channels, batch, steps=None):
    """Measures a model.

    Prints JSON with `rate`, the images/s of the median step; `first`, the seconds of the first step;
    `form`, the library, how the model was run and the memory format; and `peak_mib`, the largest
    resident memory of the process.
    """
    import torch

    on_gpu = torch.cuda.is_available() and peer != 'onnxruntime'
    device = 'cuda' if on_gpu else 'cpu'
    classes = 1000 if channels == 3 else 10
    library, model = _make(name, classes, peer)
    # The settings that PyTorch's performance guide recommends for convolutional networks.
    torch.backends.cudnn.benchmark = on_gpu
    format = {'memory_format': getattr(torch, memory)}
    model = model.to(device).to(**format).train(mode == 'train')
    images = torch.randn(batch, channels, size, size, device=device).contiguous(**format)
    labels = torch.randint(0, classes, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)
    autocast = torch.autocast(device, torch.bfloat16) if dtype == 'bfloat16' else None
    forward = torch.compile(model) if peer == 'torch.compile' else model

    # One step of training or inference on the same batch.
    def train():
        optimizer.zero_grad()
        with autocast or contextlib.nullcontext():
            outputs = forward(images)
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
            forward(images).softmax(-1)

    step = train if mode == 'train' else infer
    if peer == 'onnxruntime':
        step = _onnx_step(model, images)
    # CUDA runs asynchronously: wait for the end of the step.
    wait = torch.cuda.synchronize if on_gpu else None
    first, median = _seconds(step, wait, *((steps, 0) if steps else (_STEPS, _SECONDS)))
    form = {'torch.compile': f'compiled, {memory}', 'onnxruntime': 'ONNX'}.get(peer, memory)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    reading = {'rate': batch / median, 'first': first, 'form': f'{library}, {form}'}
    print(json.dumps({**reading, 'peak_mib': peak}))


def _seconds(step, wait, steps, least):
    """Returns the seconds of the first step, and the median after two; `wait` ends each step."""
    seconds: list[float] = []
    while len(seconds) < steps + 2 or sum(seconds[2:]) < least:
        began = time.perf_counter()
        step()
        if wait:
            wait()
        seconds.append(time.perf_counter() - began)
    return seconds[0], statistics.median(seconds[2:])


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


def _make(name, classes, peer):
    """Returns the library of a model and the model."""
    if name == 'lenet5':
        return 'torch', lenet5(classes)
    if peer == 'timm' or name in _TIMM:
        import timm

        return 'timm', timm.create_model(_TIMM.get(name, name), num_classes=classes)
    import torchvision

    arguments = {'init_weights': False} if name == 'googlenet' else {}
    return 'torchvision', getattr(torchvision.models, name)(num_classes=classes, **arguments)


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
    main(*sys.argv[1:6], *map(int, sys.argv[6:]))
