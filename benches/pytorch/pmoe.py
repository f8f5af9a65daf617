"""Images per second of the patch-level mixture of experts in PyTorch, to compare with `benches/pmoe.rs`.

    python -m venv venv && venv/bin/pip install torch numpy
    venv/bin/python benches/pytorch/pmoe.py --threads 2 1 2 4 10

The same network (masked experts, one block a group, 4 experts of 16 out of 64 patches), batch 128, SGD without momentum.
For every widen factor and both memory formats: the median over the runs of one training step and of evaluation, and the
process's resident memory before there is a network and at most. `cargo xtask bench --pytorch` calls it once for every
widen factor and format, in turns with ours.
"""

import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F


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
        weights = self.gate(features).flatten(2).softmax(2)
        indices = weights.topk(self.kept, dim=2).indices
        weights = weights * torch.zeros_like(weights).scatter(2, indices, 1.0)
        weights = weights.view(batch, -1, 1, rows, columns)
        outputs = [expert(features * weights[:, e]) for e, expert in enumerate(self.experts)]
        return self.head(self.norm(torch.cat(outputs, 1)).mean((2, 3)))


def rate(runs, batch, work):
    rates = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        rates.append(batch / (time.perf_counter() - start))
    return statistics.median(rates)


def resident(field):
    """MiB of this process: now (VmRSS) or at most (VmHWM); 0 where the system does not say."""
    try:
        with open("/proc/self/status") as status:
            return next((int(line.split()[1]) // 1024 for line in status if line.startswith(field)), 0)
    except OSError:
        return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("widen", type=int, nargs="*", default=[1, 2, 4, 10])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--layout", choices=["first", "last"], help="one memory format; both without")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    before = resident("VmRSS")
    layouts = [("channels first", torch.contiguous_format), ("channels last", torch.channels_last)]
    for widen in arguments.widen:
        for name, memory in layouts:
            if arguments.layout and not name.endswith(arguments.layout):
                continue
            model = PatchMoe(widen).to(memory_format=memory)
            images = torch.rand(arguments.batch, 3, 32, 32).to(memory_format=memory)
            labels = torch.randint(0, 10, (arguments.batch,))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

            def step():
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()

            def evaluate():
                with torch.inference_mode():
                    model(images)

            runs = max(3, 40 // widen)
            step()
            step()
            training = rate(runs, arguments.batch, step)
            model.eval()
            evaluate()
            evaluation = rate(runs, arguments.batch, evaluate)
            print(
                f"widen {widen:2}, {name:14}: training {training:7.1f}, evaluation {evaluation:7.1f} images/s, "
                f"memory {before} MiB before, {resident('VmHWM')} MiB at most",
                flush=True,
            )


if __name__ == "__main__":
    main()
