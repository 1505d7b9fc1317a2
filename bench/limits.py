"""How near the work comes to what this processor can do: the share of the rate of a large matrix product.

    OMP_NUM_THREADS=1 python bench/limits.py [--quick] [--out FOLDER]

Operations (products, convolutions, factorisations, triangular solves) and the bytes that all of torch's calls
read and write are counted while the work runs. The rates of a matrix product in float32 and in float64 and of
a copy are measured in turn with it, in processor seconds, with as many threads. The share is the time the
operations would take at these rates, of the time that the work took. Where another library does convolutions
faster than products (oneDNN beside MKL on an AMD processor) it exceeds one; so there is the share of the
faster of the two rates as well.
"""
import argparse, subprocess, sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt, pandas as pd, torch
from matplotlib.figure import Figure
from torch import nn, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dlmech.arch import get_model, layers_of
from dlmech.causal import measure_falls
from dlmech.filter import observe
from dlmech.pace import describe_machine, placed, times_in_turn
from dlmech.probe import Heads, layer_shapes, Maps, solve_head
from dlmech.pruning.repair import _whole, Reading
from dlmech.run import write_csv
from dlmech.trunk import Trunk

aten = torch.ops.aten
FORMULAS: dict[Any, Callable] = flop_registry | {
    aten.addmm_: flop_registry[aten.addmm], aten.baddbmm_: flop_registry[aten.baddbmm],
    aten.linalg_cholesky_ex: lambda A, *_, **__: A.shape[-1]**3 / 3,
    aten.linalg_solve_triangular: lambda A, B, *_, **__: A.shape[-1] * B.numel()}


class Counted(TorchDispatchMode):
    "Inside, operations are counted by number type, and bytes that calls read and write."
    def __init__(self):
        super().__init__()
        self.flop, self.bytes = Counter(), 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view: return out
        met = {id(t): t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)}
        self.bytes += sum(met.values())        # what is written in place counts once
        if formula := FORMULAS.get(func._overloadpacket):
            dtype = next(t.dtype for t in tree_leaves(out) if isinstance(t, Tensor))
            self.flop[dtype] += formula(*args, **kwargs, out_val=out)
        return out


# ---- the work

def vgg(d: int, N: int) -> tuple[nn.Module, list[str], Tensor, Tensor]:
    "A random VGG-16, its layers, and random images with labels."
    x = torch.rand(N, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    net = placed(get_model('vgg16', 10, d), 'cpu').eval()
    return net, layers_of('vgg16'), x.contiguous(memory_format=torch.channels_last), torch.arange(N) % 10


def trunk_pass(d: int, N: int) -> Callable[[], object]:
    "All 13 layers' maps."
    net, paths, x, _ = vgg(d, N)
    def work() -> None:
        with Trunk(net, paths) as trunk: trunk(x)
    return work


def phase3_pass(d: int, N: int) -> Callable[[], object]:
    "The same with label sums, winners and top images."
    net, paths, x, y = vgg(d, N)
    heads = Heads(layer_shapes(net, paths, x[:1]), 10)
    return lambda: observe(net, paths, [(x, y)], 10, heads)


def solve(D: int, N: int) -> Callable[[], object]:
    "An exact head of D inputs from N images, of which each label has some in common."
    g = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 10
    f = torch.randn(N, D, 1, 1, generator=g) + torch.randn(10, D, 1, 1, generator=g)[y] * .2
    maps = Maps('layer', N, f.relu())
    maps.add(f.relu(), y)
    return lambda: solve_head(maps, 10)


def gram_sums(C: int, N: int) -> Callable[[], object]:
    "The repair's products over whole 3 x 3 kernels of a convolution with C filters in and out, on 8 x 8."
    conv = nn.Conv2d(C, C, 3, padding=1, bias=False)
    r = Reading('conv', conv, conv, C, True, torch.ones(C, 9*C, dtype=torch.bool))
    xs = list(torch.rand(N, C, 8, 8, generator=torch.Generator().manual_seed(0)).split(32))
    missing = [torch.rand(len(x) * 64, C) for x in xs]
    return lambda: _whole(r, xs, missing, True)


def causal_test(d: int, N: int) -> Callable[[], object]:
    "Every filter of layer 8 silenced in the network itself, twice."
    net, paths, x, y = vgg(d, N)
    C = layer_shapes(net, [paths[7]], x[:1])[paths[7]][0]
    return lambda: measure_falls(net, paths[7], [(x, y)], 10, C)


# ---- what is measured

REFERENCES = 'matrix product, float32', 'matrix product, float64', 'convolution, float32', 'copy'


def matrix_product(n: int, dtype: torch.dtype) -> Callable[[], object]:
    "A product of two (n, n) matrices."
    a = torch.rand(n, n, dtype=dtype)
    return lambda: a @ a


def convolution(C: int) -> Callable[[], object]:
    "A convolution with C filters in and out, 3 x 3, on 16 maps of 16 x 16."
    conv, x = placed(nn.Conv2d(C, C, 3, padding=1), 'cpu'), torch.rand(16, C, 16, 16)
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: conv(x)


def copying(n: int) -> Callable[[], object]:
    "A copy of n numbers."
    a = torch.zeros(n)
    b = torch.empty_like(a)
    return lambda: b.copy_(a)


def counted(work: Callable[[], object]) -> tuple[Counter, int]:
    "Operations by number type, and bytes."
    with torch.no_grad(), Counted() as c: work()
    return c.flop, c.bytes


def limits_table(works: dict[str, Callable[[], object]], n: int, repeats: int) -> pd.DataFrame:
    "A row for each work: operations, bytes, seconds, and its share of the limit; `n`: sides of the products."
    single, double, conv, copied = REFERENCES
    steps = {single: matrix_product(n, torch.float32), double: matrix_product(n, torch.float64),
             conv: convolution(n // 3), copied: copying(2**25)} | works
    with torch.no_grad(): t, rows = times_in_turn(steps, repeats).set_index('what').cpu_s, []
    counts = {name: counted(work) for name, work in steps.items()}
    rate = {torch.float32: 2 * n**3 / t[single], torch.float64: 2 * n**3 / t[double]}
    fastest = max(rate[torch.float32], counts[conv][0][torch.float32] / t[conv])
    bandwidth = counts[copied][1] / t[copied]
    for name, (flop, moved) in counts.items():
        least = sum(flop[k] / rate[k] for k in rate)
        at_best = flop[torch.float32] / fastest + flop[torch.float64] / rate[torch.float64]
        rows.append(dict(what=name, cpu_s=t[name], gflop=sum(flop.values()) / 1e9, gbytes=moved / 1e9,
                         in_float64=flop[torch.float64] / max(1, sum(flop.values())),
                         share_of_matrix_rate=least / t[name], share_of_fastest=at_best / t[name],
                         share_of_bandwidth=moved / bandwidth / t[name],
                         matrix_gflops=rate[torch.float32] / 1e9, matrix64_gflops=rate[torch.float64] / 1e9,
                         fastest_gflops=fastest / 1e9, copy_gbytes_s=bandwidth / 1e9))
    return pd.DataFrame(rows)


def import_seconds(repeats: int = 3) -> float:
    "Processor seconds of `import dlmech` in a process of its own, beyond Python's own start; the least."
    code = 'import time; t = time.process_time(); import dlmech; print(time.process_time() - t)'
    command = [sys.executable, '-c', code]
    return min(float(subprocess.run(command, capture_output=True, encoding='utf-8', check=True).stdout)
               for _ in range(repeats))


def roofline_figure(table: pd.DataFrame) -> Figure:
    "Operations a second against operations a byte, under the roof of matrix rate and bandwidth."
    fig, ax = plt.subplots(figsize=(7, 4.4), layout='constrained')
    first, x = table.iloc[0], torch.logspace(-1, 3, 200)
    roofs = dict(convolution=first.fastest_gflops, float32=first.matrix_gflops, float64=first.matrix64_gflops)
    for (label, most), style in zip(roofs.items(), ('-', '--', ':')):
        roof = (x * first.copy_gbytes_s).clamp(max=most)
        ax.loglog(x, roof, style, color='0.5', lw=1, label=f'roof, {label}')
    for row in table[~table.what.isin(REFERENCES)].itertuples():
        ax.loglog(row.gflop / row.gbytes, row.gflop / row.cpu_s, 'o', ms=6, label=row.what)
    ax.set(xlabel='operations a byte', ylabel='GFLOP a processor second')
    ax.legend(fontsize=8, frameon=False, loc='lower right')
    return fig


def tables(quick: bool = False) -> dict[str, pd.DataFrame]:
    "The share of the limit that each work reaches, and the seconds of `import dlmech`. Sets one thread."
    torch.set_num_threads(1)
    d, N, D, n = (4, 20, 64, 64) if quick else (64, 128, 2048, 1536)
    works = {'trunk pass, 13 layers': trunk_pass(d, N), 'phase 3 pass': phase3_pass(d, N),
             'exact head': solve(D, D), "repair's Gram sums": gram_sums(d, N),
             f'causal test, d = {max(4, d // 4)}': causal_test(max(4, d // 4), max(20, N // 4))}
    limits = limits_table(works, n, 1 if quick else 3)
    start = pd.DataFrame([dict(what='import dlmech', cpu_s=import_seconds(), aim=.3)])
    where = describe_machine()
    return dict(limits=limits.assign(machine=where), start=start.assign(machine=where))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='tiny sizes: whether it runs, not how fast')
    p.add_argument('--out', type=Path, help='a folder for CSV files and the figure')
    a = p.parse_args()
    found = tables(a.quick)
    for name, t in found.items():
        print(f'\n{name}\n{t.to_string(index=False, float_format=lambda v: f"{v:.4g}")}', flush=True)
        if a.out: write_csv(a.out/f'bench-limits{f"-{name}" * (name != "limits")}.csv', t)
    if a.out: roofline_figure(found['limits']).savefig(a.out/'bench-limits.png', dpi=120)


if __name__ == '__main__': main()
