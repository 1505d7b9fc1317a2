"""dlmech beside what people use for the same now: same network, images, layers and heads, answers checked.

    OMP_NUM_THREADS=1 python bench/peers.py [--quick] [--out FOLDER]

What a filter does on its own (phase 3), given heads:
- published shape: the trunk anew for each layer, an einsum a batch, a scatter_add a filter (written from the
  published description);
- captum: `LayerFeatureAblation` of every filter, all outputs at once;
- hooks: forward hooks that keep all features of all layers;
- torchvision: the same by `create_feature_extractor`;
- torchlens: the same by `extract`.
Of the published shape an eighth of the images is measured and scaled up, of captum a few filters of few
images, by the operations of the passes that all filters take.

A head on every layer: all features by hooks, torchvision or torchlens, then scikit-learn's logistic
regression with the same objective; and the published recipe of 200 epochs, the trunk anew for each layer and
epoch: one and two are measured, and scaled.

One thread, all in turn in one process. Ratios are of processor seconds within a round (median, smallest,
largest round), since neighbours distort the wall's clock. Memory is how far the peak of a process of its own
rises when it does the same a second time; of the published shape and of captum it is that of one batch, as
nothing is kept from one to the next.
"""
import argparse, ctypes, json, math, os, subprocess, sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt, numpy as np, pandas as pd, torch
from matplotlib.figure import Figure
from torch import nn, Tensor
from torch.utils.flop_counter import FlopCounterMode

from dlmech.arch import get_model, layers_of
from dlmech.batches import Batches
from dlmech.datasets import get_data, ImageSet
from dlmech.filter import chunks, fields, label_means, observe
from dlmech.layers import hooked
from dlmech.model import load
from dlmech.null import measure_layer, PERMUTATIONS
from dlmech.pace import describe_machine, peak_memory, placed, times_in_turn
from dlmech.probe import exact_heads, Heads, layer_shapes, PAPER, train_heads, WEIGHT_DECAY
from dlmech.run import DlmechError, write_csv
from dlmech.trunk import Trunk

BATCH = 128
CAPTUM_IMAGES, CAPTUM_FILTERS = 32, 2    # measured with captum; the rest is scaled


@dataclass(frozen=True)
class Case:
    "One network, its layers with a head on each, and labelled images in batches."
    net: nn.Module
    paths: list[str]
    heads: Heads
    batches: list[tuple[Tensor, Tensor]]
    K: int
    @property
    def images(self) -> int:
        "How many."
        return sum(len(y) for _, y in self.batches)


def random_images(N: int, K: int) -> ImageSet:
    "Random images in bytes, labels in turn."
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (N, 32, 32, 3), dtype=torch.uint8, generator=g)
    return ImageSet(pixels, torch.arange(N) % K, [str(k) for k in range(K)])


def network_and_images(d: int, N: int) -> tuple[nn.Module, ImageSet, str]:
    "A trained VGG-16 and CIFAR-10 where they are at hand, else a random one and random images; which it is."
    try: net, data = load(f'vgg16-cifar10-d{d}'), get_data('cifar10').train
    except DlmechError: return get_model('vgg16', 10, d), random_images(N, 10), f'random VGG-16, d = {d}'
    every = len(data) // N
    return net, data.at(torch.arange(N) * every), f'trained VGG-16, d = {d}, CIFAR-10'


def case_of(net: nn.Module, data: ImageSet, K: int, layers: list[int], batch: int = BATCH) -> Case:
    "Heads of chance on these layers (from 1) of a VGG-16."
    net, paths = placed(net, 'cpu').eval(), [layers_of('vgg16')[n-1] for n in layers]
    heads = Heads(layer_shapes(net, paths, torch.zeros(1, 3, 32, 32)), K)
    return Case(net, paths, heads, list(Batches(data, batch, shuffle=True)), K)


# ---- phase 3: the fields (C, K, K) of all filters of all layers

Fields = dict[str, Tensor]


def ours(c: Case, permutations: int = 0) -> Fields:
    "All of phase 3: fields, and winners, top images, clusters and tables as well; with or without the null."
    found = {}
    for p, (sums, responses) in observe(c.net, c.paths, c.batches, c.K, c.heads).items():
        parts: list[Tensor] = []
        measure_layer(sums.means(), c.heads.weight(p), responses.wins, permutations=permutations,
                      keep=lambda M, to=parts: to.append(torch.from_numpy(M).float()))
        found[p] = torch.cat(parts)
    return found


def our_fields(c: Case) -> Fields:
    "The fields, from label means: all that the others give."
    found = {}
    for p, means in label_means(c.net, c.paths, c.batches, c.K).items():
        W = c.heads.weight(p)
        found[p] = torch.cat([fields(means[:, f], W[:, f]).float() for f in chunks(W.shape[1], c.K**2)])
    return found


@torch.no_grad()
def published(c: Case) -> Fields:
    "The trunk anew for each layer, an einsum a batch, a scatter_add a filter."
    found = {}
    for p in c.paths:
        W = c.heads.weight(p)                                                        # (K, C, h, w)
        M, count = torch.zeros(W.shape[1], c.K, c.K), torch.zeros(c.K)
        with Trunk(c.net, [p]) as trunk:
            for x, y in c.batches:
                h = torch.einsum('bchw,kchw->bck', trunk(x)[p], W)
                for f in range(len(M)): M[f].scatter_add_(0, y[:, None].expand(-1, c.K), h[:, f])
                count += y.bincount(minlength=c.K)
        found[p] = M / count[:, None]
    return found


class Cut(nn.Module):
    "The network up to a layer, and the layer's head."
    def __init__(self, trunk: nn.Module, path: str, weight: Tensor):
        super().__init__()
        self.trunk, self.path, self.maps, self.weight = trunk, path, nn.Identity(), weight
    def forward(self, x: Tensor) -> Tensor:
        return self.maps(self.trunk(x)[self.path]).flatten(1) @ self.weight.flatten(1).T


def by_captum(c: Case, filters: int = 0 # of each layer; 0: all
             ) -> Fields:
    "What the head's outputs lose when a filter's map is set to zero, averaged over each label's images."
    from captum.attr import LayerFeatureAblation
    from torchvision.models.feature_extraction import create_feature_extractor
    found = {}
    for p in c.paths:
        W = c.heads.weight(p)
        C, n = W.shape[1], filters or W.shape[1]
        cut = Cut(create_feature_extractor(c.net, [p]).eval(), p, W)
        ablation = LayerFeatureAblation(cut, cut.maps)
        mask = torch.arange(C).clamp(max=n)[None, :, None, None].expand(1, *W.shape[1:])
        M, count = torch.zeros(n, c.K, c.K), torch.zeros(c.K)
        for x, y in c.batches:
            lost = ablation.attribute(x, layer_mask=mask)[:, :n, 0, 0].reshape(len(y), c.K, n)
            M.index_add_(1, y, lost.permute(2, 0, 1))
            count += y.bincount(minlength=c.K)
        found[p] = M / count[:, None]
    return found


def of_features(c: Case, features: dict[str, Tensor], labels: Tensor) -> Fields:
    "The fields from all features at once: an einsum, and a mean for each label."
    found = {}
    for p, f in features.items():
        h = torch.einsum('bchw,kchw->bck', f, c.heads.weight(p))                     # (N, C, K)
        found[p] = torch.stack([h[labels == k].mean(0) for k in range(c.K)], 1)
    return found


Features = tuple[dict[str, Tensor], Tensor]  # {path: (N, C, h, w)}, labels (N,)


def collected(c: Case, features_of: Callable[[Tensor], dict[str, Tensor]]) -> Features:
    "All features and labels."
    with torch.no_grad(): parts = [features_of(x) for x, _ in c.batches]
    return {p: torch.cat([f[p] for f in parts]) for p in c.paths}, torch.cat([y for _, y in c.batches])


def hook_features(c: Case) -> Features:
    "All features, kept by forward hooks."
    kept: dict[str, Tensor] = {}
    def features_of(x: Tensor) -> dict[str, Tensor]:
        c.net(x)
        return dict(kept)
    keep = lambda p: lambda module, given, out: kept.__setitem__(p, out)
    with hooked([(c.net.get_submodule(p), keep(p)) for p in c.paths]): return collected(c, features_of)


def torchvision_features(c: Case) -> Features:
    "All features, by torchvision's feature extractor."
    from torchvision.models.feature_extraction import create_feature_extractor
    return collected(c, create_feature_extractor(c.net, c.paths).eval())


def torchlens_features(c: Case) -> Features:
    "All features, by torchlens."
    import torchlens
    return collected(c, lambda x: torchlens.extract(c.net, x, {p: p for p in c.paths}))


by_hooks, by_torchvision, by_torchlens = (
    (lambda c, features_of=f: of_features(c, *features_of(c)))
    for f in (hook_features, torchvision_features, torchlens_features))
PEERS: dict[str, Callable[[Case], Fields]] = {
    'dlmech': ours, 'dlmech, fields alone': our_fields, 'published shape': published,
    'captum': partial(by_captum, filters=CAPTUM_FILTERS), 'hooks': by_hooks,
    'torchvision': by_torchvision, 'torchlens': by_torchlens}
SCALED, BARE, NULL = ('published shape', 'captum'), 'bare forward pass', 'dlmech, with the null'


# ---- what is measured of each

def rise(f: Callable[[], object]) -> float:
    "How many MiB the peak of this process's memory rises above what it has now."
    with suppress(OSError, AttributeError): ctypes.CDLL('libc.so.6').malloc_trim(0)  # else it is used first
    with suppress(OSError): Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')  # peak forgotten
    before = peak_memory()
    f()
    return peak_memory() - before


def peak_mib(f: Callable[[], object]) -> float:
    "How far the peak of a forked child's memory rises at a second call; NaN if that fails."
    read, write = os.pipe()
    if not os.fork():
        with suppress(BaseException):
            f()     # else what a fork leaves to be read again, torch's own code, counts too
            os.write(write, str(rise(f)).encode())
        os._exit(0)
    os.close(write)
    with open(read, encoding='utf-8') as answer: return float(answer.read() or 'nan')


def peak_apart(name: str, **case) -> float: # of `case_from`
    "The same in a new process, for torchlens, which refuses to work in a forked one."
    done = subprocess.run([sys.executable, __file__, '--peak', json.dumps(dict(name=name, case=case))],
                          capture_output=True, encoding='utf-8')
    return float(done.stdout.split()[-1]) if done.returncode == 0 else math.nan


def case_from(axis: str = '', size: int = 0, images: int = 0, d: int = 0, layers: Sequence[int] = ()) -> Case:
    "A case of the growth, or one of a VGG-16's layers."
    if axis: return growing(axis, size)
    net, data, _ = network_and_images(d, images)
    return case_of(net, data, 10, list(layers))


def print_peak(asked: str) -> None:
    "What `peak_apart` asks of a new process."
    asked = json.loads(asked)
    with one_thread():
        c, f = case_from(**asked['case']), (PEERS | KEPT)[asked['name']]
        f(c)
        print(rise(partial(f, c)))


def counted_flop(f: Callable[[], object]) -> int:
    "The floating-point operations of products and convolutions, as torch counts them."
    with FlopCounterMode(display=False) as counter: f()
    return counter.get_total_flops()


def flop_up_to(c: Case, path: str) -> int:
    "The operations of a pass of the network up to a layer, for one image."
    x = c.batches[0][0][:1]
    with Trunk(c.net, [path]) as trunk:
        trunk(x)    # after which it knows where a pass may end
        return counted_flop(lambda: trunk(x))


def captum_scale(c: Case) -> float:
    """How many times the operations that captum takes for `CAPTUM_FILTERS` of each layer it takes for all: a
    pass up to the layer for each filter, one for all others together, and two with none set to zero."""
    passes = [(flop_up_to(c, p), c.heads.weight(p).shape[1]) for p in c.paths]
    return sum(t * (C + 2) for t, C in passes) / sum(t * (CAPTUM_FILTERS + 3) for t, _ in passes)


def fewer(c: Case, name: str) -> tuple[Case, float]:
    "The case with fewer images, for what takes long, and how much longer all images (and filters) take."
    few = name == 'captum'     # filters, too
    n = CAPTUM_IMAGES if few else max(CAPTUM_IMAGES, c.images // 8)
    if name not in SCALED or (n >= c.images and not few): return c, 1.
    x, y = (torch.cat(t)[:n] for t in zip(*c.batches))
    small = replace(c, batches=list(zip(x.split(BATCH), y.split(BATCH))))
    return small, c.images / len(y) * (captum_scale(c) if few else 1)


def difference(found: Fields, expected: Fields) -> float:
    "The largest difference of the fields, of as many filters as there are, by the layer's largest."
    share = lambda a, b: float((a - b[:len(a)]).abs().max() / b.abs().max())
    return max(share(M, expected[p]) for p, M in found.items())


def agreement(c: Case) -> dict[str, float]:
    "How far each peer's fields are from ours on a few images of each label. Raises an AssertionError if far."
    x, y = (torch.cat(t) for t in zip(*c.batches))
    few = torch.cat([(y == k).nonzero()[:4, 0] for k in range(c.K)])
    small = replace(c, batches=[(x[few], y[few])])
    expected = ours(small)
    found = {name: difference(f(small), expected) for name, f in PEERS.items()}
    assert max(found.values()) < 1e-4, found
    return found


def bare(c: Case) -> None:
    "The network's forward pass, and nothing else."
    with torch.no_grad():
        for x, _ in c.batches: c.net(x)


def phase3_table(c: Case, repeats: int) -> pd.DataFrame:
    """A row for each peer: seconds, ratio, peak memory, agreement; and a bare forward pass, and ours with the
    null, which none of the others has."""
    far, cases = agreement(c), {name: fewer(c, name) for name in PEERS}
    steps = {name: partial(f, cases[name][0]) for name, f in PEERS.items()}
    steps |= {BARE: partial(bare, c), NULL: partial(ours, c, PERMUTATIONS)}
    t = times_in_turn(steps, repeats).set_index('what')
    scale = pd.Series({name: times for name, (_, times) in cases.items()}).reindex(t.index, fill_value=1.)
    t = t.mul(scale, axis=0)
    t['scaled'] = scale
    one = replace(c, batches=c.batches[:1])
    t['peak_mib'] = [peak_mib(f if scale[name] == 1 else partial(PEERS[name], one))
                     for name, f in steps.items()]
    return t.assign(difference=pd.Series(far)).reset_index()


# ---- heads

def loss_of(W: Tensor, f: Tensor, y: Tensor) -> float: # (K, D), (N, D), (N,)
    "The papers' objective in float64."
    W = W.double()
    losses = [nn.functional.cross_entropy(a.double() @ W.T, b, reduction='sum').item()
              for a, b in zip(f.split(512), y.split(512))]
    return sum(losses) / len(y) + WEIGHT_DECAY / 2 * W.square().sum().item()


Weights = dict[str, Tensor]


def exact(c: Case) -> Weights:
    "Our heads: the minimum, layer by layer."
    found = exact_heads(c.net, c.paths, c.batches, c.K)
    return {p: heads.weight(p).flatten(1) for heads in found for p in heads.paths}


def by_sklearn(tol: float, features_of: Callable[[Case], Features], c: Case) -> Weights:
    "All features, then scikit-learn's logistic regression of each layer: the same objective."
    from sklearn.linear_model import LogisticRegression
    features, y = features_of(c)
    found, asked = {}, dict(C=1 / (len(y) * WEIGHT_DECAY), fit_intercept=False, max_iter=10_000, tol=tol)
    for p in c.paths:
        fit = LogisticRegression(**asked)
        fit.fit(features.pop(p).flatten(1).numpy(), y.numpy())
        found[p] = torch.from_numpy(fit.coef_)
    return found


def epochs(n: int, c: Case) -> None:
    "So many epochs of the published recipe for each layer, the trunk anew for each."
    for p in c.paths: train_heads(c.net, [p], c.batches, c.K, replace(PAPER, epochs=n))


def of_recipe(t: pd.DataFrame, one: str, two: str) -> pd.DataFrame:
    "A table with the published recipe in place of the rows for one of its epochs, and for two."
    times = t.loc[one] + (PAPER.epochs - 1) * (t.loc[two] - t.loc[one])   # what comes before is done once
    times[['ratio_low', 'ratio_high']] = math.nan
    t = t.drop([one, two])
    t.loc[f'published recipe, {PAPER.epochs} epochs'] = times
    return t


HEADS = {'dlmech': exact, 'hooks, scikit-learn, tol=1e-4': partial(by_sklearn, 1e-4, hook_features),
         'hooks, scikit-learn, tol=1e-6': partial(by_sklearn, 1e-6, hook_features)}
# 1e-4 is scikit-learn's default, with 1e-6 its loss is about ours
KEPT = {'torchvision, scikit-learn, tol=1e-4': partial(by_sklearn, 1e-4, torchvision_features),
        'torchlens, scikit-learn, tol=1e-4': partial(by_sklearn, 1e-4, torchlens_features)}


def heads_tables(c: Case, repeats: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    "A row for each way: seconds, ratio, peak memory; and the loss of each layer's heads."
    found: dict[str, Weights] = {}
    steps = {name: (lambda name=name, f=f: found.__setitem__(name, f(c)))
             for name, f in (HEADS | KEPT).items()}
    t = times_in_turn(steps | {f'{n}': partial(epochs, n, c) for n in (1, 2)}, repeats).set_index('what')
    t = of_recipe(t, '1', '2')
    t['scaled'] = [1 if name in steps else PAPER.epochs for name in t.index]
    peak = lambda name: math.nan if '1e-6' in name else peak_mib(steps.get(name, partial(epochs, 1, c)))
    t['peak_mib'] = list(map(peak, t.index))   # of 1e-6 it is that of 1e-4
    features, y = hook_features(c)
    losses = pd.DataFrame([dict(layer=p, inputs=features[p][0].numel()) |
                           {name: loss_of(w[p], features[p].flatten(1), y) for name, w in found.items()}
                           for p in c.paths])
    return t.reset_index(), losses


# ---- growth

GRIDS: dict[str, list[int]] = dict(N=[64, 192, 576], K=[10, 100, 1000], filters=[8, 16, 32], layers=[1, 3, 9])
BASE = dict(N=128, K=10, filters=16, layers=4)
LABELLED = 1000   # images for all sizes of K, so that each label has one


def growing(axis: str, value: int) -> Case:
    "A random VGG-16 with one of its sizes changed: images, labels, filters (d of the first layer), layers."
    size = BASE | dict(N=LABELLED if axis == 'K' else BASE['N']) | {axis: value}
    net = get_model('vgg16', size['K'], size['filters'])
    layers = list(range(1, size['layers'] + 1))
    return case_of(net, random_images(size['N'], size['K']), size['K'], layers, 32)


# of layer 5 our head looks at 4,096 images at most (`HEAD_BYTES`), of 9 at 8,192
HEADS_GROWTH: dict[int, list[int]] = {layer: [512, 2048, 8192] for layer in (5, 9, 13)}


def heads_rows(c: Case) -> pd.DataFrame:
    "A row for each way to the head of a case's one layer, ours first: seconds, ratio, peak memory, loss."
    found: dict[str, Weights] = {}
    steps = {name: (lambda name=name, f=f: found.__setitem__(name, f(c)))
             for name, f in HEADS.items() if '1e-6' not in name}
    t, (features, y) = times_in_turn(steps, 1), hook_features(c)
    x = features[c.paths[0]].flatten(1)
    losses = [loss_of(found[name][c.paths[0]], x, y) for name in t.what]
    peaks = [peak_mib(steps[name]) for name in t.what]
    return t.assign(layer=c.paths[0], inputs=x.shape[1], images=c.images, loss=losses, peak_mib=peaks)


def heads_growth(asked: dict[int, list[int]], d: int) -> pd.DataFrame:
    "`heads_rows` for these layers (from 1) and numbers of images."
    net, data, what = network_and_images(d, max(max(sizes) for sizes in asked.values()))
    parts = [heads_rows(case_of(net, data.at(torch.arange(n)), 10, [layer]))
             for layer, sizes in asked.items() for n in sizes]
    return pd.concat(parts, ignore_index=True).assign(network=what)


def growth_rows(axis: str, value: int, repeats: int) -> Iterator[dict]:
    "A row for each peer at one size: processor seconds, counted operations, peak memory."
    c = growing(axis, value)
    cases = {name: fewer(c, name) if name == 'captum' else (c, 1.) for name in PEERS}
    steps = {name: partial(f, cases[name][0]) for name, f in PEERS.items()}
    flop = {name: counted_flop(f) for name, f in steps.items()}                          # the warm-up, too
    slow = dict(captum=steps['captum'])   # it takes longer than all others together, and is scaled
    t = pd.concat([times_in_turn({name: f for name, f in steps.items() if name not in slow}, repeats, False),
                   times_in_turn(slow, 1, False)]).set_index('what').cpu_s
    for name, f in steps.items():
        times = cases[name][1]
        most = peak_apart(name, axis=axis, size=value) if name == 'torchlens' else peak_mib(f)
        yield dict(peer=name, axis=axis, size=value, cpu_s=t[name] * times, flop=flop[name] * times,
                   peak_mib=most)


def slope(sizes: pd.Series, values: pd.Series) -> float:
    "The exponent of a power law, fitted to the logarithms."
    fine = values > 0
    if fine.sum() < 2: return math.nan
    return float(np.polyfit(np.log(sizes[fine]), np.log(values[fine]), 1)[0])


def slopes_of(growth: pd.DataFrame) -> pd.DataFrame:
    "How time and memory of each peer grow, beside the counted operations: exponents."
    return pd.DataFrame([dict(peer=peer, axis=axis) | {f'{name}_slope': slope(t['size'], t[name])
                                                       for name in ('cpu_s', 'flop', 'peak_mib')}
                         for (peer, axis), t in growth.groupby(['peer', 'axis'], sort=False)])


def growth_figure(growth: pd.DataFrame) -> Figure:
    "Log-log curves of time and memory against images, labels, filters and layers."
    fig, axes = plt.subplots(2, len(GRIDS), figsize=(3.2*len(GRIDS), 5.6), sharey='row', layout='constrained')
    for column, axis in enumerate(GRIDS):
        for peer, t in growth[growth.axis == axis].groupby('peer', sort=False):
            for ax, name in zip(axes[:, column], ('cpu_s', 'peak_mib')):
                ax.loglog(t['size'], t[name], 'o-', ms=3, lw=2 if peer == 'dlmech' else 1, label=peer)
        for ax in axes[:, column]:
            ax.set_xticks(GRIDS[axis], labels=[str(size) for size in GRIDS[axis]])
            ax.tick_params(axis='x', which='minor', labelbottom=False)
        axes[1, column].set_xlabel(f'{axis} (d of layer 1)' if axis == 'filters' else axis)
    axes[0, 0].set_ylabel('processor seconds')
    axes[1, 0].set_ylabel('peak memory, MiB')
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside right upper', frameon=False)
    return fig


# ---- all of it

def with_torchlens(t: pd.DataFrame, images: int, d: int, layers: list[int]) -> pd.DataFrame:
    "A table with the peak memory of torchlens."
    for i in t.index[t.what.str.startswith('torchlens')]:
        t.loc[i, 'peak_mib'] = peak_apart(t.what[i], images=images, d=d, layers=layers)
    return t


def each_table(quick: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    "The tables by name, as they are made: phase 3 and heads beside the peers, and how all grow."
    d, N, layers, repeats = (4, 64, [2, 5], 1) if quick else (64, 512, list(range(1, 14)), 3)
    net, data, what = network_and_images(d, N)
    about = dict(network=what, machine=describe_machine())
    phase3 = with_torchlens(phase3_table(case_of(net, data, 10, layers), repeats), N, d, layers)
    yield 'phase3', phase3.assign(images=N, **about)
    few = data.at(torch.arange(N // 2))   # labels come in turn
    heads, losses = heads_tables(case_of(net, few, 10, layers), min(repeats, 2))
    heads = with_torchlens(heads, len(few), d, layers)
    yield 'heads', heads.assign(images=len(few), **about)
    yield 'losses', losses.assign(images=len(few), **about)
    grids = dict(N=GRIDS['N'][:2]) if quick else GRIDS
    growth = pd.DataFrame([row for axis, sizes in grids.items() for size in sizes
                           for row in growth_rows(axis, size, repeats)])
    yield 'growth', growth.assign(machine=describe_machine())
    yield 'slopes', slopes_of(growth)
    asked = {2: [32, 64]} if quick else HEADS_GROWTH
    yield 'heads-growth', heads_growth(asked, d).assign(machine=describe_machine())


def tables(quick: bool = False) -> dict[str, pd.DataFrame]:
    "Phase 3 and heads beside the peers, and how all grow. Computes with one thread."
    with one_thread(): return dict(each_table(quick))


@contextmanager
def one_thread() -> Iterator[None]:
    "Inside, torch, numpy and scikit-learn compute with one thread."
    from threadpoolctl import threadpool_limits
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1): yield
    finally: torch.set_num_threads(before)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='tiny sizes: whether it runs, not how fast')
    p.add_argument('--out', type=Path, help='a folder for CSV files and the figure')
    p.add_argument('--peak', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.peak: return print_peak(a.peak)
    found = {}
    with one_thread():
        for name, t in each_table(a.quick): found[name] = shown(name, t, a.out)
    if a.out: growth_figure(found['growth']).savefig(a.out/'bench-peers.png', dpi=120)


def shown(name: str, t: pd.DataFrame, out: Path|None) -> pd.DataFrame:
    "Prints a table, and writes it."
    print(f'\n{name}\n{t.to_string(index=False, float_format=lambda v: f"{v:.4g}")}', flush=True)
    if out: write_csv(out/f'bench-peers-{name}.csv', t)
    return t


if __name__ == '__main__': main()
