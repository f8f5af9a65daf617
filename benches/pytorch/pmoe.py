"""Images per second of the patch-level mixture of experts in PyTorch, to compare with `benches/pmoe.rs`.

    python -m venv venv && venv/bin/pip install torch numpy
    venv/bin/python benches/pytorch/pmoe.py --threads 2 1 2 4 10
    venv/bin/python benches/pytorch/pmoe.py --device cuda --precision bf16 --compile --layout last 10

The same network (masked experts, one block a group, 4 experts of 16 out of 64 patches), batch 128, SGD without momentum.
For every widen factor and both memory formats: the median over the runs of one training step and of evaluation, and the
process's resident memory before there is a network and at most; on a GPU the most memory that PyTorch took there, too.
`cargo xtask bench --pytorch` calls it once for every widen factor and format, in turns with ours.

A GPU works behind the program's back, so steps are timed ten at a time, and it is waited for before the clock is read.
Precisions: f32 (TF32 switched off), tf32 (convolutions and products may use it; GPU only), bf16 (autocast, f32 weights).
Exit code 3: there is no PyTorch, or none that can use the device.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time

NO_PYTORCH = 3

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError as error:
    print(f"{sys.executable} has no PyTorch: {error}", file=sys.stderr)
    sys.exit(NO_PYTORCH)


def normalize(channels):
    return nn.Sequential(nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01), nn.ReLU(inplace=True))


class StridedSame(nn.Module):
    """A 3x3 convolution of stride 2 whose odd zero row and column come last."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        first = nn.Conv2d(inputs, outputs, 3, padding=1) if stride == 1 else StridedSame(inputs, outputs)
        self.main = nn.Sequential(normalize(inputs), first, normalize(outputs), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x):
        return self.main(x) + self.shortcut(x)


class PatchMoe(nn.Module):
    def __init__(self, widen, experts=4, kept=16, classes=10):
        super().__init__()
        width = 64 * widen
        self.kept = kept
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            Block(16, 16 * widen, 1),
            Block(16 * widen, 32 * widen, 2),
            normalize(32 * widen),
            StridedSame(32 * widen, width),
        )
        self.gate = nn.Conv2d(width, experts, 1, bias=False)
        nn.init.normal_(self.gate.weight, std=1e-4)
        self.experts = nn.ModuleList(
            nn.Sequential(normalize(width), nn.Conv2d(width, width // experts, 1)) for _ in range(experts)
        )
        self.norm = normalize(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        features = self.trunk(images)
        batch, _, rows, columns = features.shape
        # Autocast computes a softmax in f32; the scattered ones must have its type.
        weights = self.gate(features).flatten(2).softmax(2)
        indices = weights.topk(self.kept, dim=2).indices
        weights = weights * torch.zeros_like(weights).scatter(2, indices, 1.0)
        weights = weights.view(batch, -1, 1, rows, columns)
        outputs = [expert(features * weights[:, e]) for e, expert in enumerate(self.experts)]
        return self.head(self.norm(torch.cat(outputs, 1)).mean((2, 3)))


def rate(runs, batch, work, device):
    """Median images a second; on a GPU ten steps are one run, ended by waiting for it."""
    steps = 10 if device == "cuda" else 1
    rates = []
    for _ in range(runs):
        start = time.perf_counter()
        for _ in range(steps):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(steps * batch / (time.perf_counter() - start))
    return statistics.median(rates)


def resident(field):
    """MiB of this process: now (VmRSS) or at most (VmHWM); 0 where the system does not say."""
    try:
        with open("/proc/self/status") as status:
            return next((int(line.split()[1]) // 1024 for line in status if line.startswith(field)), 0)
    except OSError:
        return 0


def set_precision(precision):
    tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    # Chooses the fastest convolution for each shape, in the first steps.
    torch.backends.cudnn.benchmark = True


def measure(widen, memory, arguments):
    """Training and evaluation rates of one network, and the seconds of its first step, which compiles."""
    device = arguments.device
    model = PatchMoe(widen).to(device=device, memory_format=memory)
    images = torch.rand(arguments.batch, 3, 32, 32, device=device).to(memory_format=memory)
    labels = torch.randint(0, 10, (arguments.batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    network = torch.compile(model) if arguments.compile else model

    def cast():
        return torch.autocast(device, dtype=torch.bfloat16, enabled=arguments.precision == "bf16")

    def step():
        optimizer.zero_grad()
        with cast():
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    def evaluate():
        with torch.inference_mode(), cast():
            network(images)

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    runs = arguments.runs or max(3, 40 // widen)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step()
    wait()
    first = time.perf_counter() - start
    # After the compiler and the choice of convolutions the caches need some steps more.
    for _ in range(10 if device == "cuda" else 1):
        step()
    wait()
    training = rate(runs, arguments.batch, step, device)
    model.eval()
    for _ in range(10 if device == "cuda" else 1):
        evaluate()
    wait()
    evaluation = rate(runs, arguments.batch, evaluate, device)
    peak = torch.cuda.max_memory_allocated() // 2**20 if device == "cuda" else 0
    return training, evaluation, first, peak


def end_with_input():
    """Ends this process with a line on its standard input or the end of it: its parent's time is over, or its parent."""

    def watch():
        sys.stdin.readline()
        print("ended by its parent", file=sys.stderr, flush=True)
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("widen", type=int, nargs="*", default=[1, 2, 4, 10])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--runs", type=int, default=None, help="timed runs; 40 / widen, at least 3, without")
    parser.add_argument("--layout", choices=["first", "last"], help="one memory format; both without")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--tied", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.precision == "tf32" and arguments.device == "cpu":
        parser.error("--precision tf32 needs --device cuda: processors have no TF32")
    if arguments.tied:
        end_with_input()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__} sees no CUDA device", file=sys.stderr)
        sys.exit(NO_PYTORCH)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    set_precision(arguments.precision)
    before = resident("VmRSS")
    layouts = [("channels first", torch.contiguous_format), ("channels last", torch.channels_last)]
    timings = []
    for widen in arguments.widen:
        for name, memory in layouts:
            if arguments.layout and not name.endswith(arguments.layout):
                continue
            training, evaluation, first, peak = measure(widen, memory, arguments)
            if arguments.json:
                timing = {"widen": widen, "layout": name, "training": training, "evaluation": evaluation}
                timing |= {"first-step-seconds": first, "before-mib": before, "peak-mib": resident("VmHWM")}
                timings.append(timing | {"device-peak-mib": peak})
                continue
            print(
                f"widen {widen:2}, {name:14}: training {training:7.1f}, evaluation {evaluation:7.1f} images/s, "
                f"memory {before} MiB before, {resident('VmHWM')} MiB at most"
                + (f", {peak} MiB on the device" if peak else ""),
                flush=True,
            )
    if arguments.json:
        on_gpu = arguments.device == "cuda"
        document = {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "threads": torch.get_num_threads(),
            "precision": arguments.precision,
            "compiled": arguments.compile,
            "batch": arguments.batch,
            "timings": timings,
        }
        print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
