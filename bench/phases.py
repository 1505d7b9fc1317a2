"""How fast the phases are, as ratios of two things measured in turn in the same process.

    python bench/phases.py [--device cpu] [--images 1000] [--repeats 5]

Prints one table, as `python -m bench --only phases` does. Each pair is run `repeats` times in turn, and the
ratio is that of the medians, so that what else the machine does hits both sides. Peak memory is that of
processes of their own, since a process's peak never falls.
"""
import argparse, statistics, subprocess, sys, time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pandas as pd, torch, torch.nn.functional as F

from dlmech.arch import get_model, layers_of
from dlmech.batches import Batches
from dlmech.datasets import ImageSet
from dlmech.filter import fields, LabelSums, observe
from dlmech.model import compiled
from dlmech.null import measure_layer
from dlmech.pace import peak_memory
from dlmech.probe import Heads, layer_shapes, PAPER, train_heads


def seconds(f: Callable[[], object], device: torch.device) -> float:
    "How long one call takes."
    if device.type == 'cuda': torch.cuda.synchronize()
    t = time.perf_counter()
    f()
    if device.type == 'cuda': torch.cuda.synchronize()
    return time.perf_counter() - t


def in_turn(slow, fast, repeats: int, device: torch.device, scale: float = 1.) -> tuple[float, float]:
    "Medians of both, run in turn; `scale` is how many times the slow thing would really be done."
    for f in (fast, slow): f()  # warm-up
    times = [(seconds(slow, device) * scale, seconds(fast, device)) for _ in range(repeats)]
    first, second = (statistics.median(t) for t in zip(*times))
    return first, second


def row(what: str, pair: tuple[float, float], aim: str, holds: Callable[[float], bool], unit: str = 's'
        ) -> dict:
    "One row of the table."
    a, b = pair
    return dict(what=what, first=a, second=b, unit=unit, ratio=a/b, aim=aim,
                reached='yes' if holds(a/b) else 'NO')


# ---- what is measured

def random_images(n: int, K: int = 10) -> ImageSet:
    "Random images in bytes: what they show does not matter for time."
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=g)
    return ImageSet(pixels, torch.arange(n) % K, [str(i) for i in range(K)])


def vgg16(device: torch.device, d: int = 64):
    "VGG-16, its layers and a head on each."
    net = get_model('vgg16', 10, d).to(device, memory_format=torch.channels_last).eval()
    paths = layers_of('vgg16')
    shapes = layer_shapes(net, paths, torch.zeros(1, 3, 32, 32, device=device))
    return net, paths, Heads(shapes, 10).to(device)


def phase3(net, paths: list[str], heads: Heads, batches, permutations: int = 0) -> None:
    "All of phase 3 for these layers: one pass, fields, clusters, tables; with or without the null."
    for p, (sums, responses) in observe(net, paths, batches, 10, heads).items():
        measure_layer(sums.means(), heads.weight(p), responses.wins, permutations=permutations)


@torch.no_grad()
def forward(net, batches) -> None:
    "A bare forward pass."
    for x, _ in batches: net(x)


# ---- (a) phase 3 beside a forward pass

def bench_phase3(device: torch.device, n: int, repeats: int) -> Iterator[dict]:
    "All of phase 3 for 13 layers, beside a forward pass of the same images."
    net, paths, heads = vgg16(device)
    batches = Batches(random_images(n), 250, device)
    pair = in_turn(lambda: phase3(net, paths, heads, batches), lambda: forward(net, batches), repeats, device)
    yield row(f'(a) phase 3 without the null, 13 layers of VGG-16, {n} images / bare forward pass', pair,
              '<= 1.10', lambda r: r <= 1.1)


# ---- (b) fields beside two plain ways to them

def kept_maps(n: int, K: int, C: int, side: int, device: torch.device):
    "Random maps (250, C, side, side) with their labels, batch by batch, and a head (K, C, side, side)."
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n).mul(K).div(n, rounding_mode='floor').to(device).split(250)
    maps = [(torch.rand(250, C, side, side, generator=g).to(device), y) for y in labels]
    return maps, torch.randn(K, C, side, side, generator=g).to(device)


def ours(maps, weight):
    "The fields (C, K, K) of all filters from the label sums."
    sums = LabelSums(len(weight))
    for m, y in maps: sums.add(m, y)
    return fields(sums.means(), weight)


def by_masked_head(maps, weight, f: int):
    "The field (K, K) of one filter, by a head in which all others are masked."
    K, w = len(weight), torch.zeros_like(weight)
    w[:, f] = weight[:, f]
    M, count = torch.zeros(K, K, device=w.device), torch.zeros(K, device=w.device)
    for m, y in maps:
        M.index_add_(0, y, F.linear(m.flatten(1), w.flatten(1)))
        count.index_add_(0, y, torch.ones(len(y), device=w.device))
    return M / count[:, None]


def by_scatter(maps, weight):
    "The fields (C, K, K) of all filters: an einsum a batch and a scatter_add a filter."
    K, C = weight.shape[:2]
    M, count = torch.zeros(C, K, K, device=weight.device), torch.zeros(K, device=weight.device)
    for m, y in maps:
        h = torch.einsum('bcp,kcp->bck', m.flatten(2), weight.flatten(2))
        for f in range(C): M[f].scatter_add_(0, y[:, None].expand(-1, K), h[:, f])
        count.index_add_(0, y, torch.ones(len(y), device=weight.device))
    return M / count[None, :, None]


def bench_fields(device: torch.device, repeats: int, n=10_000, K=100, C=512, side=2) -> Iterator[dict]:
    "The fields of a layer, beside a masked head for each filter and beside a scatter_add for each."
    maps, weight = kept_maps(n, K, C, side, device)
    M, few = ours(maps, weight), 4
    assert torch.allclose(M[7].float(), by_masked_head(maps, weight, 7), rtol=1e-3, atol=1e-4)
    assert torch.allclose(M.float(), by_scatter(maps, weight), rtol=1e-3, atol=1e-4)
    fast = lambda: ours(maps, weight)
    slow = lambda: [by_masked_head(maps, weight, f) for f in range(few)]
    masked = in_turn(slow, fast, repeats, device, C/few)
    yield row(f'(b) fields, {C} x {side} x {side}, K = {K}, {n:,} kept maps: head masked filter by filter '
              f'({few} measured, scaled to {C}) / ours', masked, '>= 500', lambda r: r >= 500)
    scattered = in_turn(lambda: by_scatter(maps, weight), fast, repeats, device)
    yield row('(b) the same: einsum a batch and a scatter_add a filter / ours', scattered, '>= 50',
              lambda r: r >= 50)


# ---- (c) heads, (d) memory, forms of a network

def bench_heads(device: torch.device, n: int, repeats: int) -> Iterator[dict]:
    "An epoch of 13 heads at once, beside 13 runs of their own."
    net, paths, _ = vgg16(device)
    batches = Batches(random_images(n), 100, device, shuffle=True, shift=4, flip=True)
    epoch = replace(PAPER, epochs=1)
    pair = in_turn(lambda: [train_heads(net, [p], batches, 10, epoch) for p in paths],
                   lambda: train_heads(net, paths, batches, 10, epoch), repeats, device)
    yield row(f'(c) phase 2, an epoch of {n} images: 13 separate runs / 13 heads at once', pair, '>= 5',
              lambda r: r >= 5)


def peak(device: torch.device, n: int) -> float:
    "The peak memory of phase 3 over `n` images, in MiB, in this process."
    net, paths, heads = vgg16(device)
    phase3(net, paths, heads, Batches(random_images(n), 250, device))
    if device.type == 'cuda': return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory()


def bench_memory(device: torch.device) -> Iterator[dict]:
    "Peak memory over many images, beside that over few."
    def of_its_own(n):
        command = [sys.executable, __file__, '--device', str(device), '--peak', str(n)]
        done = subprocess.run(command, capture_output=True, encoding='utf-8', check=True)
        return float(done.stdout.split()[-1])
    few, many = of_its_own(2000), of_its_own(10000)
    yield row('(d) peak memory of phase 3: 10,000 images / 2,000', (many, few), '<= 1.05',
              lambda r: r <= 1.05, 'MiB')


def bench_forms(device: torch.device, n: int, repeats: int) -> Iterator[dict]:
    "A forward pass by how the network lies in memory, and on a GPU by its numbers and by torch.compile."
    net, _, _ = vgg16(device)
    batches = Batches(random_images(n), 250, device)
    plain = [(x.contiguous(), y) for x, y in batches]
    contiguous = get_model('vgg16', 10).to(device).eval()
    pair = in_turn(lambda: forward(contiguous, plain), lambda: forward(net, batches), repeats, device)
    yield row('channels first / channels last, forward', pair, '>= 1.5', lambda r: r >= 1.5)
    if device.type != 'cuda': return
    def amp(net):
        with torch.autocast('cuda', torch.bfloat16): forward(net, batches)
    quick = compiled(net, device)
    pair = in_turn(lambda: forward(net, batches), lambda: amp(net), repeats, device)
    yield row('float32 / bfloat16 autocast, forward', pair, '> 1', lambda r: r > 1)
    pair = in_turn(lambda: amp(net), lambda: amp(quick), repeats, device)
    yield row('eager / torch.compile, both bfloat16, forward', pair, '> 1', lambda r: r > 1)


def rows(device: torch.device, images: int, repeats: int) -> Iterator[dict]:
    "All rows, as they are measured."
    yield from bench_phase3(device, images, repeats)
    yield from bench_fields(device, repeats)
    yield from bench_heads(device, max(200, images // 2), max(1, repeats // 2))
    yield from bench_memory(device)
    yield from bench_forms(device, images, repeats)


def tables(quick: bool = False) -> dict[str, pd.DataFrame]:
    "The phases beside plainer ways to do the same, as ratios."
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    few = bench_fields(device, 1, n=250, K=5, C=8)
    return {'phases': pd.DataFrame(few if quick else rows(device, 1000, 5))}


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--images', type=int, default=1000)
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--peak', type=int, help='print the peak memory over so many images alone')
    a = p.parse_args()
    device = torch.device(a.device)
    if a.peak:
        print(peak(device, a.peak))
        return
    name = torch.cuda.get_device_name() if device.type == 'cuda' else f'{torch.get_num_threads()} CPU threads'
    print(f'torch {torch.__version__}, {name}, medians of {a.repeats} in turn')
    for r in rows(device, a.images, a.repeats):
        print(f'{r["what"]}: {r["first"]:.3g} {r["unit"]} / {r["second"]:.3g} {r["unit"]} = {r["ratio"]:.2f} '
              f'(aim {r["aim"]}: {r["reached"]})', flush=True)


if __name__ == '__main__': main()
