"Whose filters a layer reads, in networks of every kind; what cannot be read off is said in a sentence."
import pytest, timm, torch, torch.nn.functional as F, torchvision
from torch import nn

from dlmech.pruning.links import (added_to, gain_of, graph_of, Link, link_between, links, modules_of,
                                  norm_behind, reader_of)
from dlmech.run import DlmechError


# ---- whose filters a layer reads

class Odd(nn.Module):
    "Functional calls, a view, an addition, a permutation, a layer used twice."
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 6, 3, groups=2)
        self.d = nn.Conv2d(4, 5, 3)
        self.e = nn.Linear(5*9, 7)
        self.f = nn.Linear(7, 7)
        self.twice = nn.Linear(7, 7)
        self.g = nn.Linear(7, 3)
    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.max_pool2d(x + self.b(x), 3)
        self.c(x)
        x = F.relu(self.d(x)).view(x.size(0), -1)
        x = self.f(torch.sigmoid(self.e(x)))
        return self.g(self.twice(self.twice(x)).flip(1))


def test_links_of_an_odd_network():
    found = links(Odd())
    assert found['b'] == Link('a', 'b', ['relu'], 1, False)
    assert found['e'].spread == 9
    assert found['e'].source == 'd'
    assert found['f'].between == ['sigmoid']
    for path, said in dict(a='the images themselves', d='add', c='grouped convolution', twice='used 2 times',
                           g='flip').items():
        assert said in found[path], found[path]


def test_tied_weights_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    assert 'tied weights' in links(net)['2']
    with pytest.raises(DlmechError, match='tied weights'): link_between(net, '1', '3')


def test_control_flow_is_refused():
    class Fickle(nn.Module):
        def forward(self, x): return x if x.sum() > 0 else -x
    with pytest.raises(DlmechError, match='cannot be traced by torch.fx'): links(Fickle())


class Behind(nn.Module):
    "Layers with BatchNorm behind them: directly, behind an activation, behind a sum, and before a sum."
    def __init__(self, **kwargs):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.n1, self.n2, self.n3, self.n4 = (nn.BatchNorm2d(3, **kwargs) for _ in range(4))
    def forward(self, x):
        x = self.n2(F.relu(self.b(F.relu(self.n1(self.a(x))))))
        x = self.n3(x + self.c(x))
        return x + self.n4(self.d(x))


@pytest.mark.parametrize('kwargs', [{}, dict(affine=False), dict(track_running_stats=False)])
def test_the_batchnorm_behind_a_layer_and_what_it_is_added_to(kwargs):
    net = Behind(**kwargs)
    modules, calls = modules_of(net), {str(n.target): n for n in graph_of(net).nodes if n.op == 'call_module'}
    behind = {p: norm_behind(calls[p], modules) for p in 'abcd'}
    assert behind == dict(a=net.n1, b=net.n2, c=None, d=net.n4)
    known = net.n4.running_var is not None  # else how much reaches the sum hangs on the images
    assert {p for p in 'abcd' if added_to(calls[p], modules) is not None} == set('cd' if known else 'c')
    for m in (net.n1, net.n4):
        if known: m.running_var.copy_(torch.tensor([1., 4., 9.]))
        if m.affine: m.weight.data.copy_(torch.tensor([-2., 1., 0.]))
    x, net = torch.randn(5, 3, 4, 4), net.eval()
    gain = gain_of(net.n4, net.d)
    if not known: return torch.testing.assert_close(gain, torch.ones(3))
    moved = net.n4(x + 1) - net.n4(x)  # what it makes of one more
    torch.testing.assert_close(moved.abs(), gain[None, :, None, None].expand_as(x), atol=1e-5, rtol=1e-4)


def test_what_is_nothing_in_evaluation_does_not_hide_a_stream():
    "timm's DropPath, which is an Identity where its rate is 0, and torchvision's StochasticDepth."
    net = timm.create_model('mobilenetv2_050', num_classes=4).eval()
    modules, calls = modules_of(net), {str(n.target): n for n in graph_of(net).nodes if n.op == 'call_module'}
    assert added_to(calls['blocks.1.1.conv_pwl'], modules) is not None
    assert added_to(calls['blocks.1.0.conv_pwl'], modules) is None  # another size: nothing is added
    net = torchvision.models.efficientnet_b0(num_classes=4).eval()
    modules, calls = modules_of(net), {str(n.target): n for n in graph_of(net).nodes if n.op == 'call_module'}
    assert added_to(calls['features.2.1.block.3.0'], modules) is not None


class SamePadding(nn.Conv2d):
    "A convolution of one's own make, whose arithmetic on sizes cannot be traced."
    def forward(self, x): return super().forward(F.pad(x, [int(x.shape[-1] % 2)] * 4))


def test_convolutions_of_another_make_are_one_call():
    net = nn.Sequential(SamePadding(3, 4, 3), nn.ReLU(), SamePadding(4, 2, 3))
    assert links(net)['2'].source == '0'
    lite = timm.create_model('tf_efficientnet_lite0', num_classes=4)
    assert isinstance(links(lite)['blocks.1.0.conv_pwl'], Link)


def test_a_flatten_of_other_dimensions_mixes_filters_and_tokens_are_no_filters():
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Linear(4, 2))
    assert 'not the filters of one layer' in links(flat)['2']
    tokens = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Flatten(), nn.Linear(30, 2))  # for (B, 5, 4)
    assert 'at several positions side by side' in links(tokens)['3']


def test_a_batchnorm_behind_a_flatten_is_no_gain_of_filters():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 2))
    modules, calls = modules_of(net), list(graph_of(net).nodes)
    assert norm_behind(calls[1], modules) is None


def test_why_filters_stay_is_said_as_the_reader_has_it():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 1))
    with pytest.raises(DlmechError, match='^layers: 2 is a grouped convolution.*, so they cannot be removed'):
        reader_of(net, '0')
