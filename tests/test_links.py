"Whose filters a layer reads, in networks of every kind; what cannot be read off is said in a sentence."
import pytest, torch, torch.nn.functional as F
from torch import nn

from dlmech.pruning.links import Link, link_between, links
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
