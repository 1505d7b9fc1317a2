"Compaction that changes no output, in networks of every kind, saved, loaded and exported."
import copy

import pytest, torch, torch.nn.functional as F
from torch import nn
from torch.nn.utils.prune import random_unstructured

from dlmech.pruning.afcc import masked
from dlmech.pruning.compact import (compact, cut_out, exported, forms_of, load_compact, macs, macs_by_layer,
                                    parameters_of, put, save_compact, select, sizes, to_onnx)
from dlmech.pruning.links import cuttable, Link, links
from dlmech.run import DlmechError, write_tensors
from helpers import linked_net


def random_net(seed):
    """Convolutions with and without padding, bias, BatchNorm, PReLU, average pooling, ending in FC layers;
    and images for it."""
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    pick = lambda *choices: choices[int(torch.randint(0, len(choices), (1,), generator=g))]
    c, parts = 3, []
    for n in (6, 10, 8):
        bias = pick(True, False)
        parts.append(nn.Conv2d(c, n, 3, padding=pick(0, 1, 'same'), bias=bias,
                               padding_mode=pick('zeros', 'zeros', 'circular')))
        if pick(True, False) or not bias: parts.append(nn.BatchNorm2d(n))
        parts.append(pick(nn.ReLU(inplace=True), nn.PReLU(n), nn.GELU(), nn.LeakyReLU()))
        if pick(True, False): parts.append(pick(nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2)))
        c = n
    body = nn.Sequential(*parts)
    x = torch.randn(6, 3, 20, 20, generator=g)
    with torch.no_grad(): n = body(x).flatten(1).shape[1]
    net = nn.Sequential(*parts, nn.Flatten(), nn.Linear(n, 9), nn.Tanh(), nn.Linear(9, 4))
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(.5, 2)
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
    return net.eval(), x


def random_masks(net, seed, kept):
    "Random kernels stay; some filters lose all they read, some all that reads them."
    g, masks = torch.Generator().manual_seed(seed), {}
    for path, link in links(net).items():
        if not isinstance(link, Link): continue
        w = net.get_submodule(path).weight
        F_ = len(net.get_submodule(link.source).weight)
        m = torch.rand(len(w), F_, generator=g) < kept
        m[torch.rand(len(w), generator=g) < .3] = False
        m[:, torch.rand(F_, generator=g) < .3] = False
        masks[path] = m.repeat_interleave(link.spread, 1) if w.ndim == 2 else m[:, :, None, None].expand_as(w)
    return masks


@pytest.mark.parametrize('seed', range(12))
def test_the_compact_network_computes_what_the_masked_one_does(seed, tmp_path):
    net, x = random_net(seed)
    d = masked(net, random_masks(net, seed, kept=(.3, .6, .02)[seed % 3]))
    before = copy.deepcopy(d.net.state_dict())
    small, cut, chosen = compact(d, x)
    with torch.no_grad(): assert (small(x) - d.net(x)).abs().max() < 1e-4
    assert sizes(small, x)['parameters'] < sizes(net, x)['parameters']
    assert len(cut)
    assert all(torch.equal(v, before[k]) for k, v in d.net.state_dict().items())
    save_compact(tmp_path/'net.safetensors', small)
    again = load_compact(tmp_path/'net.safetensors', random_net(seed)[0])
    with torch.no_grad(): assert torch.equal(again(x), small(x))


def test_a_constant_filter_before_a_padded_convolution_is_exact_at_the_border():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1), nn.ReLU(),
                        nn.Flatten(), nn.Linear(4*36, 3)).eval()
    with torch.no_grad():
        net[0].weight[:3] = 0
        net[0].bias[:3] = torch.tensor([.5, 1., 2.])
    x = torch.randn(4, 3, 6, 6)
    small, cut = cut_out(net, x)
    with torch.no_grad(): assert (small[:4](x) - net[:4](x)).abs().max() < 1e-5
    assert small[0].out_channels == 3
    assert cut.folded.tolist() == [2]                           # one of three stays and carries the others


@pytest.mark.parametrize('form', ['2 blocks', '2 groups', 'CSR'])
def test_every_form_saves_loads_and_computes_the_same(form, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
                        nn.Flatten(), nn.Linear(6*16, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    x, path = torch.randn(5, 3, 8, 8), '6' if form == 'CSR' else '2'
    with torch.no_grad():
        if form == 'CSR': net[6].weight[torch.rand(30, 96) < .95] = 0
        else:
            net[2].weight[:3, 4:] = 0
            net[2].weight[3:, :4] = 0
            net[2].weight[:] = net[2].weight[[0, 3, 1, 4, 2, 5]]
            if form == '2 groups': net[2].weight[0, 0] = 0
    new, order = forms_of(net.get_submodule(path))[form]
    other = copy.deepcopy(net)
    if form != 'CSR':
        select(other, next(link for link in cuttable(other) if link.source == path), torch.as_tensor(order))
    put(other, path, new)
    with torch.no_grad(): assert (other(x) - net(x)).abs().max() < 1e-5
    save_compact(tmp_path/'f.safetensors', other)
    with torch.no_grad(): assert torch.equal(load_compact(tmp_path/'f.safetensors', net)(x), other(x))
    with torch.no_grad(): assert (exported(other, x).module()(x[:2]) - net(x[:2])).abs().max() < 1e-5
    assert macs(other, x) < macs(net, x)
    assert sum(macs_by_layer(other, x).values()) == macs(other, x)
    assert parameters_of(other) < parameters_of(net)


def test_what_cannot_be_cut_is_left():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(),
                        nn.Linear(32, 3)).eval()
    with torch.no_grad(): net[3].weight[:, 1] = 0
    x = torch.randn(2, 3, 8, 8)
    small, cut = cut_out(net, x)
    with torch.no_grad(): assert torch.equal(small(x), net(x))
    assert len(cut) == 0
    assert small[0].out_channels == 4


def test_a_residual_network_is_cut_within_its_blocks():
    import torchvision
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=3).eval()
    with torch.no_grad(): net.layer1[0].conv2.weight[:, :40] = 0
    x = torch.randn(2, 3, 64, 64)
    small, cut = cut_out(net, x)
    with torch.no_grad(): assert (small(x) - net(x)).abs().max() < 1e-4
    assert cut.layer.tolist() == ['layer1.0.conv1']
    assert small.layer1[0].conv1.out_channels == 24


def test_onnx_computes_the_same(tmp_path):
    pytest.importorskip('onnxscript', reason='onnxscript is not installed (extra onnx)')
    ort = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed (extra onnx)')
    net, x = random_net(3)
    small, *_ = compact(masked(net, random_masks(net, 3, .5)), x)
    to_onnx(small, x, tmp_path/'net.onnx')
    out, = ort.InferenceSession(tmp_path/'net.onnx').run(None, {'images': x[:3].numpy()})
    with torch.no_grad(): assert abs(out - small(x[:3]).numpy()).max() < 1e-4


def test_a_file_that_is_no_compact_network_is_refused(tmp_path):
    net, x = random_net(0)
    write_tensors(tmp_path/'plain.safetensors', net.state_dict())
    with pytest.raises(DlmechError, match='holds no compact network'):
        load_compact(tmp_path/'plain.safetensors', net)


def test_the_compact_network_lies_in_memory_as_the_dense_one(tmp_path):
    for layout in (torch.channels_last, torch.contiguous_format):
        net, (x, _) = linked_net()
        net = net.to(memory_format=layout).eval()
        d = masked(net, {'8': torch.arange(48).expand(20, 48) >= 8,
                         '4': (torch.arange(8) > 1)[None, :, None, None].expand(12, 8, 3, 3)})
        small, _ = cut_out(d.net, x)
        save_compact(tmp_path/'small.safetensors', small)
        for made in (small, load_compact(tmp_path/'small.safetensors', net)):
            for i in (0, 4):
                assert made[i].weight.is_contiguous(memory_format=layout)
                assert len(made[i].weight) == {0: 6, 4: 10}[i]
            assert torch.allclose(made(x), d.net(x), atol=1e-5)


def test_filters_that_read_nothing_and_are_no_constants_stay():
    "Behind a pooling that pads, a constant filter is none at the border, so nothing may be folded."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.AvgPool2d(3, 2, 1), nn.Conv2d(5, 4, 3, padding=1),
                        nn.ReLU(), nn.Flatten(), nn.Linear(4*9, 3)).eval()
    with torch.no_grad(): net[0].weight[:2] = 0
    x = torch.randn(4, 3, 6, 6)
    small, cut = cut_out(net, x)
    with torch.no_grad(): assert torch.equal(small(x), net(x))
    assert len(cut) == 0
    assert small[0].out_channels == 5


class NormAct(nn.BatchNorm2d):
    "As timm's: a BatchNorm with its activation within."
    def __init__(self, n: int):
        super().__init__(n)
        self.act = nn.ReLU()
        for v in (self.weight, self.running_mean, self.running_var): v.data.uniform_(.5, 1.5)
    def forward(self, x):
        return self.act(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False))


def test_a_norm_with_its_activation_is_followed_and_cut():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), NormAct(8), nn.Conv2d(8, 6, 3), NormAct(6),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    assert [(link.source, link.between, link.target) for link in cuttable(net)][0] == ('0', ['1'], '2')
    mask = (torch.arange(8) < 3)[None, :, None, None].expand_as(net[2].weight)
    d, x = masked(net, {'2': mask}), torch.randn(4, 3, 9, 9)
    small, _ = cut_out(d, x)
    assert small[0].weight.shape[0] == small[1].num_features == small[2].weight.shape[1] == 3
    assert isinstance(small[1].act, nn.ReLU)
    with torch.no_grad(): assert torch.allclose(small(x), d.net(x), atol=1e-5)


def test_a_batchnorm_of_a_flattened_map_is_cut_with_the_places_of_its_filters():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 2))
    net.eval()
    net[3].running_mean.normal_()
    with torch.no_grad(): net[4].weight.view(2, 4, 9)[:, [1, 2]] = 0
    x = torch.randn(6, 3, 5, 5)
    small, cut = cut_out(net, x)
    assert cut.kept.tolist() == [2]
    assert small[3].num_features == 18
    with torch.no_grad(): torch.testing.assert_close(small(x), net(x))


def test_a_convolution_of_another_make_keeps_its_make():
    "As EfficientNet-Lite's, which pad in a module of their own and are made from other arguments."
    class Same(nn.Conv2d):
        def __init__(self, inputs, outputs, kernel_size, image_size=None):
            super().__init__(inputs, outputs, kernel_size)
            self.pad = nn.ZeroPad2d(1)
        def forward(self, x): return F.conv2d(self.pad(x), self.weight, self.bias)
    net = nn.Sequential(Same(3, 8, 3, image_size=6), nn.ReLU(), Same(8, 5, 3), nn.Flatten(),
                        nn.Linear(180, 2))
    net[2].weight.data[:, ::2] = 0
    x = torch.randn(4, 3, 6, 6)
    small, table = cut_out(net, x)
    assert (type(small[0]), len(small[0].weight), small[2].in_channels) == (Same, 4, 4)
    assert len(table)
    with torch.no_grad(): assert torch.allclose(small(x), net(x), atol=1e-6)


MAKES = {'weight norm': nn.utils.parametrizations.weight_norm,
         'spectral norm': nn.utils.parametrizations.spectral_norm,
         'weight norm as it was': nn.utils.weight_norm,
         'pruned': lambda m: random_unstructured(m, 'weight', .2)}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('make', MAKES.values(), ids=MAKES)
def test_weights_that_are_made_of_others_are_cut(make):
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 8, 3), nn.Linear(8 * 16, 2)
    last.weight.data[:, :64] = 0
    net = nn.Sequential(make(first), nn.ReLU(), nn.Flatten(), last).eval()
    x = torch.randn(4, 3, 6, 6)
    with torch.no_grad(): net(x)
    small, _ = cut_out(net, x)
    assert len(small[0].weight) == 4
    with torch.no_grad(): assert torch.allclose(small(x), net(x), atol=1e-6)


def test_a_make_that_holds_more_than_weights_is_refused():
    class Scaled(nn.Conv2d):
        def __init__(self, *args):
            super().__init__(*args)
            self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))
        def forward(self, x): return F.conv2d(x, self.weight * self.gain, self.bias)
    net = nn.Sequential(Scaled(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2))
    net[3].weight.data[:, :64] = 0
    with pytest.raises(DlmechError, match='a Scaled holds gain beside its weights'):
        cut_out(net, torch.randn(4, 3, 6, 6))
