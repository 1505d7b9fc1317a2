"""How fast the phases are, as ratios of two things measured in turn in the same process.

    python bench/phases.py [--device cpu] [--images 1000] [--repeats 5]

Prints one table. Each pair is run `repeats` times in turn, and the ratio is that of the medians, so that what else the machine does
hits both sides. Peak memory is that of processes of their own, since a process's peak never falls.
"""
import argparse, resource, statistics, subprocess, sys, time

import torch
import torch.nn.functional as F

from dlmech.data import Batches, ImageSet
from dlmech.filter import LabelSums, fields, measure_layer, observe
from dlmech.arch import get_model, layers_of
from dlmech.model import compiled
from dlmech.probe import Heads, PROBE_RECIPES, layer_shapes, train_heads

ROWS = []


def seconds(f, device):
    "How long one call takes."
    if device.type == 'cuda': torch.cuda.synchronize()
    t = time.perf_counter()
    f()
    if device.type == 'cuda': torch.cuda.synchronize()
    return time.perf_counter() - t


def in_turn(slow, fast, repeats, device, scale=1.):
    "Medians of both, run in turn; `scale` is how many times the slow thing would really be done."
    fast(), slow()                                                                     # warm-up
    times = [(seconds(slow, device) * scale, seconds(fast, device)) for _ in range(repeats)]
    return tuple(statistics.median(t) for t in zip(*times))


def row(what, a, b, ratio, aim, holds, unit='s'):
    "One line of the table, printed at once."
    ROWS.append((what, a, b, ratio))
    print(f'| {what} | {a:.3g} {unit} | {b:.3g} {unit} | {ratio:.2f} | {aim} | {"yes" if holds else "NO"} |',
          flush=True)


def images(n, K=10):
    "Random images in bytes: what they show does not matter for time."
    g = torch.Generator().manual_seed(0)
    return ImageSet(torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=g),
                    torch.arange(n) % K, [str(i) for i in range(K)])


def vgg16(device):
    "VGG-16, d = 64, its layers and a head on each."
    net = get_model('vgg16', 10).to(device, memory_format=torch.channels_last).eval()
    paths = layers_of('vgg16')
    return net, paths, Heads(layer_shapes(net, paths, torch.zeros(1, 3, 32, 32, device=device)),
                             10).to(device)


def phase3(net, paths, heads, batches):
    "All of phase 3 for these layers: one pass, fields, clusters, tables."
    for p, (sums, responses) in observe(net, paths, batches, 10, heads).items():
        measure_layer(sums.means(), heads.weight(p), responses.wins)


@torch.no_grad()
def forward(net, batches):
    "A bare forward pass."
    for x, _ in batches: net(x)


def bench_phase3(device, n, repeats):
    net, paths, heads = vgg16(device)
    batches = Batches(images(n), 250, device)
    three, bare = in_turn(lambda: phase3(net, paths, heads, batches), lambda: forward(net, batches), repeats,
                          device)
    row(f'(a) phase 3, 13 layers of VGG-16, {n} images / bare forward pass', three, bare, three/bare,
        '<= 1.15', three/bare <= 1.15)


def bench_fields(device, repeats, n=10_000, K=100, C=512, side=2):
    g = torch.Generator().manual_seed(0)
    maps = [(torch.rand(250, C, side, side, generator=g).to(device),
             (torch.arange(250) + 250*i).mul(K).div(n, rounding_mode='floor').to(device))
             for i in range(n//250)]
    weight = torch.randn(K, C, side, side, generator=g).to(device)

    def ours():
        sums = LabelSums(K)
        for m, y in maps: sums.add(m, y)
        return fields(sums.means(), weight)

    def masked(f):
        w = torch.zeros_like(weight)
        w[:, f] = weight[:, f]
        M, count = torch.zeros(K, K, device=device), torch.zeros(K, device=device)
        for m, y in maps:
            M.index_add_(0, y, F.linear(m.flatten(1), w.flatten(1)))
            count.index_add_(0, y, torch.ones(len(y), device=device))
        return M / count[:, None]

    def scattered():
        M, count = torch.zeros(C, K, K, device=device), torch.zeros(K, device=device)
        for m, y in maps:
            h = torch.einsum('bcp,kcp->bck', m.flatten(2), weight.flatten(2))
            for f in range(C): M[f].scatter_add_(0, y[:, None].expand(-1, K), h[:, f])
            count.index_add_(0, y, torch.ones(len(y), device=device))
        return M / count[None, :, None]

    M = ours()
    assert torch.allclose(M[7].float(), masked(7), rtol=1e-3, atol=1e-4)
    assert torch.allclose(M.float(), scattered(), rtol=1e-3, atol=1e-4)
    few = 4
    slow, fast = in_turn(lambda: [masked(f) for f in range(few)], ours, repeats, device, C/few)
    row(f'(b) fields, {C} x {side} x {side}, K = {K}, {n:,} kept maps: head masked filter by filter ({few} '
        f'measured, scaled to {C}) / ours', slow, fast, slow/fast, '>= 500', slow/fast >= 500)
    slow, fast = in_turn(scattered, ours, repeats, device)
    row('(b) the same: einsum a batch and a scatter_add a filter / ours', slow, fast, slow/fast, '>= 50',
        slow/fast >= 50)


def bench_heads(device, n, repeats):
    net, paths, _ = vgg16(device)
    batches = Batches(images(n), 100, device, shuffle=True, shift=4, flip=True)
    r = PROBE_RECIPES['paper']
    epoch = type(r)(**{**vars(r), 'epochs': 1})
    slow, fast = in_turn(lambda: [train_heads(net, [p], batches, 10, epoch) for p in paths],
                         lambda: train_heads(net, paths, batches, 10, epoch), repeats, device)
    row(f'(c) phase 2, an epoch of {n} images: 13 separate runs / 13 heads at once', slow, fast, slow/fast,
        '>= 5', slow/fast >= 5)


def bench_memory(device):
    def peak(n):
        out = subprocess.run([sys.executable, __file__, '--device', str(device), '--peak', str(n)],
                             capture_output=True, text=True, check=True)
        return float(out.stdout.split()[-1])
    few, many = peak(2000), peak(10000)
    row('(d) peak memory of phase 3: 10,000 images / 2,000', many, few, many/few, '<= 1.05', many/few <= 1.05,
        'MiB')


def bench_forms(device, n, repeats):
    net, _, _ = vgg16(device)
    batches = Batches(images(n), 250, device)
    plain = [(x.contiguous(), y) for x, y in batches]
    contiguous = get_model('vgg16', 10).to(device).eval()
    slow, fast = in_turn(lambda: forward(contiguous, plain), lambda: forward(net, batches), repeats, device)
    row('channels first / channels last, forward', slow, fast, slow/fast, '>= 1.5', slow/fast >= 1.5)
    if device.type == 'cuda':
        def amp(net):
            with torch.autocast('cuda', torch.bfloat16): forward(net, batches)
        quick = compiled(net, device)
        slow, fast = in_turn(lambda: forward(net, batches), lambda: amp(net), repeats, device)
        row('float32 / bfloat16 autocast, forward', slow, fast, slow/fast, '> 1', slow > fast)
        slow, fast = in_turn(lambda: amp(net), lambda: amp(quick), repeats, device)
        row('eager / torch.compile, both bfloat16, forward', slow, fast, slow/fast, '> 1', slow > fast)


if __name__ == '__main__':
    a = argparse.ArgumentParser()
    a.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    a.add_argument('--images', type=int, default=1000)
    a.add_argument('--repeats', type=int, default=5)
    a.add_argument('--peak', type=int)
    a = a.parse_args()
    device = torch.device(a.device)
    if a.peak:
        net, paths, heads = vgg16(device)
        phase3(net, paths, heads, Batches(images(a.peak), 250, device))
        print(torch.cuda.max_memory_allocated() / 2**20 if device.type == 'cuda'
              else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
        sys.exit()
    name = torch.cuda.get_device_name() if device.type == 'cuda' else f'{torch.get_num_threads()} CPU threads'
    print(f'torch {torch.__version__}, {name}, medians of {a.repeats} in turn\n\n| what | first | second | '
          'ratio | aim | reached |\n|---|---|---|---|---|---|')
    bench_phase3(device, a.images, a.repeats)
    bench_fields(device, a.repeats)
    bench_heads(device, max(200, a.images // 2), max(1, a.repeats // 2))
    bench_memory(device)
    bench_forms(device, a.images, a.repeats)
