"""Repairs against slow least squares, their promises (exact where nothing is gone, never worse than nothing),
networks of every kind, and bad input."""
import copy

import pytest, torch, torch.nn.functional as F
from torch import nn

import dlmech
from dlmech.batches import Batches
from dlmech.model import success_rate
from dlmech.pruning.afcc import Diluted, masked
from dlmech.pruning.links import links, merged
from dlmech.pruning.repair import (calibration, draw_images, label_gram, Products, repair, repair_by_labels,
                                   repair_on, sets_of, solve)
from dlmech.pruning.scores import joint_field, keep_top_filters, remove, SCORES, unit_stats
from dlmech.run import DlmechError, ParameterError
from helpers import blobs, linked_net, same_state, state


def by_filter(net: nn.Module, path: str, keep: torch.Tensor) -> dict[str, torch.Tensor]:
    "A mask that leaves the reader at `path` the inputs of some filters (C,), or of each output's own (G, C)."
    w = net.get_submodule(path).weight
    keep = keep if keep.ndim == 2 else keep.expand(len(w), -1)
    wide = keep.repeat_interleave(w.shape[1] // keep.shape[1], 1)
    return {path: wide.reshape(*wide.shape, *[1]*(w.ndim-2)).expand_as(w)}


def every_second(n: int) -> torch.Tensor: return torch.arange(n) % 2 == 0


def readers() -> dict[str, tuple[nn.Module, str, torch.Tensor, torch.Tensor]]:
    "Networks with one reader under a mask: filters, kernels by output, a flattened map, positions."
    torch.manual_seed(0)
    x, tokens = torch.randn(60, 4, 6, 6), torch.randn(60, 5, 8)
    conv = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
                         nn.Conv2d(8, 6, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(6))
    for m in (conv[1], conv[4]):
        for t in (m.running_mean, m.bias): nn.init.normal_(t)
        for t in (m.running_var, m.weight): nn.init.uniform_(t, .5, 2)
    kernels = torch.rand(6, 8) < .5
    kernels[1] = kernels[0]
    kernels[2] = False
    flat = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8*16, 5))
    mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 7))
    return dict(filters=(conv, '3', every_second(8), x), kernels=(conv, '3', kernels, x),
                flattened=(flat, '3', every_second(8), x), positions=(mlp, '2', every_second(12), tokens))


def labelled(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: return x, torch.arange(len(x)) % 3


def lost(net: nn.Module, d: Diluted, path: str, x: torch.Tensor) -> float:
    "The squared error of what the reader at `path` makes."
    seen = []
    for each in (net, d.net):
        handle = each.get_submodule(path).register_forward_hook(lambda m, args, out: seen.append(out))
        with torch.no_grad(): each.eval()(x)
        handle.remove()
    return float((seen[0] - seen[1]).double().pow(2).sum())


@pytest.mark.parametrize('kind', readers())
@pytest.mark.parametrize('whole', [True, False])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('penalty', [1e-3, 1e3])
def test_it_is_never_worse_than_no_repair_on_the_images_of_the_solve(kind, whole, bias, penalty):
    net, path, keep, x = readers()[kind]
    d = masked(net.eval(), by_filter(net, path, keep))
    batches = list(zip(*(t.split(20) for t in labelled(x))))
    before = state(d.net)
    fixed = repair_on(net, d, batches, batches, penalty, whole, bias)
    assert same_state(state(d.net), before)
    assert lost(net, fixed, path, x) <= lost(net, d, path, x) * (1 + 1e-5)
    if penalty < 1: assert lost(net, fixed, path, x) < .95 * lost(net, d, path, x)
    assert (fixed.net.get_submodule(path).weight[~d.masks[path]] == 0).all()
    assert fixed.table.lost[0] == pytest.approx(lost(net, fixed, path, x) / lost(net, d, path, x), rel=.35)


def test_over_whole_kernels_it_is_the_least_squares():
    "Of unfolded patches, for each output within the inputs that it has; with a bias."
    net, path, keep, x = readers()['kernels']
    net.eval()
    d = masked(net, by_filter(net, path, keep))
    batches = [labelled(x)]
    fixed = repair_on(net, d, batches, batches, 1e-9, whole=True).net[3]
    with torch.no_grad(): given, wanted = net[:3](x), net[3](net[:3](x))
    rows = F.unfold(given, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 8, 9).double()
    y = wanted.flatten(2).transpose(1, 2).reshape(-1, 6).double()
    for g in (0, 1, 3):
        X = torch.cat([rows[:, keep[g]].flatten(1), torch.ones(len(rows), 1)], 1)
        slow = X @ torch.linalg.lstsq(X, y[:, g], driver='gelsd').solution
        found = X @ torch.cat([fixed.weight[g, keep[g]].flatten(), fixed.bias[g:g+1]]).double()
        assert torch.allclose(found, slow, atol=1e-3)
    assert fixed.bias[2].item() == pytest.approx(y[:, 2].mean().item(), abs=1e-4)  # it reads nothing any more


@pytest.mark.parametrize('kind', readers())
@pytest.mark.parametrize('whole', [True, False])
def test_it_is_exact_where_nothing_is_removed(kind, whole):
    net, path, keep, x = readers()[kind]
    d = masked(net.eval(), by_filter(net, path, torch.ones_like(keep)))
    fixed = repair(net, d, labelled(x), whole=whole)
    with torch.no_grad(): out, before = fixed.net(x), net(x)
    assert (out - before).abs().max() <= 1e-5 * before.abs().max()


def test_a_filter_that_another_makes_up_for_costs_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    with torch.no_grad():
        net[0].weight[3:] = 2 * net[0].weight[:3]
        net[0].bias[3:] = 2 * net[0].bias[:3]
    x = torch.randn(40, 3, 8, 8)
    d = masked(net, by_filter(net, '2', torch.arange(6) < 3))
    for whole in (True, False):
        fixed = repair(net, d, labelled(x), whole=whole, penalty=1e-8)
        with torch.no_grad(): assert torch.allclose(fixed.net(x), net(x), atol=1e-3)


def test_front_to_back_the_second_reader_makes_up_for_the_first():
    "Solved one by one on what the whole network gives, the two readers lose more together."
    net, (x, y) = linked_net()
    masks = by_filter(net, '4', every_second(8)) | by_filter(net, '8', every_second(12))
    both, batches = masked(net, masks), [(x, y)]
    fixed = repair_on(net, both, batches, batches)
    apart = masked(net, masks)
    for path in masks:
        alone = repair_on(net, masked(net, {path: masks[path]}), batches, batches)
        apart.net.get_submodule(path).load_state_dict(alone.net.get_submodule(path).state_dict())
    assert lost(net, fixed, '8', x) < lost(net, apart, '8', x)
    assert fixed.table.reader.tolist() == ['4', '8']


class Stream(nn.Module):
    "Two residual blocks, the second with a BatchNorm of mixed signs behind its reader."
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.c, self.d = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
    def forward(self, x):
        x = x + self.b(self.a(x).relu())
        out = self.bn(self.d(self.c(x).relu()))
        out += x
        return out


def test_a_residual_block_makes_up_for_what_the_stream_lacks():
    torch.manual_seed(0)
    net, x = Stream().eval(), torch.randn(80, 4, 6, 6)
    with torch.no_grad(): net.bn.weight.copy_(torch.tensor([1., -1., .5, 2.]))
    masks = by_filter(net, 'b', every_second(8)) | by_filter(net, 'd', torch.ones(8).bool())
    d, batches = masked(net, masks), [labelled(x)]
    error = lambda each: float((each.net(x) - net(x)).pow(2).sum().detach())
    fixed = repair_on(net, d, batches, batches)
    first = repair_on(net, masked(net, by_filter(net, 'b', every_second(8))), batches, batches)
    assert error(fixed) < error(d)
    assert error(fixed) < .99 * error(first)  # nothing is missing in its own inputs


def test_images_that_the_network_translates_itself_are_repaired_on_as_it_sees_them():
    net, (x, y) = linked_net()
    d = masked(net, by_filter(net, '8', every_second(12)))
    want = repair_on(net, d, [(2*x + 1, y)], [(2*x + 1, y)]).net
    for each in (net, d.net): each.register_forward_pre_hook(lambda m, args: (2*args[0] + 1,))
    assert torch.allclose(repair_on(net, d, [(x, y)], [(x, y)]).net[8].weight, want[8].weight, atol=1e-5)


@pytest.mark.parametrize('groups', [[3, 0, 3, 1], [0, 0, 0, 0]])
def test_equal_sets_are_solved_together_and_each_as_if_alone(groups):
    g = torch.Generator().manual_seed(0)
    sets = torch.rand(4, 10, generator=g) < .6
    keep, rows = sets[groups], torch.randn(40, 10, generator=g).double()
    p = Products(rows.T @ rows, torch.randn(10, 4, 2, generator=g).double())
    change = solve(p, keep, .1)
    assert len(list(sets_of(keep))) == len(set(groups))
    assert sorted(torch.cat([members for _, members in sets_of(keep)]).tolist()) == [0, 1, 2, 3]
    ridge = .1 * p.gram.diagonal()[keep.any(0)].mean()
    for out in range(4):
        S = keep[out].nonzero()[:, 0]
        alone = torch.linalg.solve(p.gram[S][:, S] + ridge * torch.eye(len(S)), p.lack[S, out])
        assert torch.allclose(change[out, S], alone, atol=1e-8)
        assert (change[out, ~keep[out]] == 0).all()


# ---- from label means

@pytest.fixture(scope='module')
def known():
    net, (x, y) = linked_net()
    m = dlmech.measure(net, (x, y), fields_on=(x, y), layers=['3', '6', '9'])
    return net, unit_stats(net, m, ['3', '6', '9'], [(x, y)]), (x, y)


def test_the_label_gram_is_exact_for_images_that_are_their_label_mean(known):
    net, stats_of, (x, y) = known
    means = torch.stack([x[y == k].mean(0) for k in range(4)])
    same = means[y], y
    m = dlmech.measure(net, same, fields_on=same, layers=['6'])
    stats = unit_stats(net, m, ['6'], [same])['6']
    with torch.no_grad(): given = net[:8](same[0]).double()
    assert torch.allclose(label_gram(stats, bias=False), given.T @ given / len(given), rtol=1e-4, atol=1e-6)
    centred = given - given.mean(0)
    assert torch.allclose(label_gram(stats), centred.T @ centred / len(given), rtol=1e-4, atol=1e-5)


def test_label_means_alone_repair_much(known):
    net, stats_of, (x, y) = known
    removed = remove(net, stats_of, keep_top_filters(stats_of, joint_field, .5))
    filled = remove(net, stats_of, keep_top_filters(stats_of, joint_field, .5), 'mean')
    fixed = repair_by_labels(net, removed, stats_of)
    error = lambda d: float((d.net(x) - net(x)).pow(2).mean().detach())
    assert error(fixed) < error(filled) < error(removed)
    assert all((fixed.net.get_submodule(p).weight[~mask] == 0).all() for p, mask in removed.masks.items())
    every = masked(net, {p: torch.ones_like(m) for p, m in removed.masks.items()})
    whole = repair_by_labels(net, every, stats_of)
    with torch.no_grad(): assert torch.allclose(whole.net(x), net(x), atol=1e-5)


def test_label_means_of_another_layer_are_refused(known):
    net, stats_of, _ = known
    d = masked(net, by_filter(net, '10', every_second(20)))
    with pytest.raises(ParameterError, match="there is no '10'"):
        repair_by_labels(net, d, {'3': stats_of['3']})


# ---- AFCC and FC layers in a row

def test_afcc_with_repair_keeps_its_masks_and_gains(known):
    net, _, (x, y) = known
    m = dlmech.measure(net, (x, y), fields_on=(x, y), layers=['3', '6', '9'])
    d = dlmech.dilute(net, m, ['3', '6', '9', 'output'], epochs=0)
    fixed = repair(net, d, (x, y))
    assert all((fixed.net.get_submodule(p).weight[~mask] == 0).all() for p, mask in d.masks.items())
    assert success_rate(fixed.net, Batches((x, y))) >= success_rate(d.net, Batches((x, y)))
    assert (fixed.table.lost < 1).all()


def test_fc_layers_without_activation_are_one():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(6, 40), nn.Dropout(), nn.Linear(40, 30), nn.Linear(30, 4, bias=False))
    net.eval()
    before, train = state(net), blobs(80, 4)
    one = merged(net)
    with torch.no_grad(): assert torch.allclose(one(train[0]), net(train[0]), atol=1e-5)
    assert same_state(state(net), before)
    assert links(one)['7'].source == '0'
    m = dlmech.measure(net, train, fields_on=train, layers=['1'])
    d = dlmech.dilute(net, m, ['1', 'output'], epochs=0)
    has = [set(map(int, row.labels.split())) for row in m['1'].filters.itertuples()]
    kept = [[j in labels for labels in has] for j in range(4)]
    rescued = set(map(int, d.table.rescued[0].split()))
    assert all(d.masks['7'][j].tolist() == kept[j] for j in range(4) if j not in rescued)
    assert d.net(train[0]).shape == (80, 4)


def test_fc_layers_with_something_between_are_not_merged():
    act = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    assert links(merged(act))['2'].source == '0'
    narrow = nn.Sequential(nn.Linear(20, 2), nn.Linear(2, 20))
    assert sum(p.numel() for p in merged(narrow).parameters()) == sum(p.numel() for p in narrow.parameters())
    assert merged(narrow, least=False)[1].weight.shape == (20, 20)


# ---- images

def test_images_are_drawn_with_each_label_s_share_and_none_twice():
    x, y = torch.arange(90.).reshape(90, 1, 1, 1), torch.tensor([0]*60 + [1]*30)
    drawn = draw_images((x, y), 30, seed=3)
    seen = [(float(a), int(b)) for xs, ys in Batches(drawn, 7) for a, b in zip(xs.flatten(), ys)]
    assert len(set(seen)) == 30
    assert abs(sum(label for _, label in seen) - 10) <= 1
    fit, valid = calibration((x, y), 30, seed=3)
    parts = [{float(v) for xs, _ in Batches(part, 7) for v in xs.flatten()} for part in (fit, valid)]
    assert parts[0] & parts[1] == set()
    assert parts[0] | parts[1] == {a for a, _ in seen}
    assert len(parts[1]) == 6


# ---- bad input

@pytest.mark.parametrize('given, sentence', [
    *((dict(penalty=p), 'penalty: .*it may be a number above 0') for p in (0, -1, float('nan'), 'much')),
    (dict(images=1), 'images: 1 is not possible'),
])
def test_bad_input_ends_with_one_sentence(known, given, sentence):
    net, _, train = known
    d = masked(net, by_filter(net, '8', every_second(12)))
    with pytest.raises(ParameterError, match=sentence) as e: repair(net, d, train, **given)
    assert '\n' not in str(e.value)


def test_what_cannot_be_repaired_is_refused(known):
    net, _, train = known
    with pytest.raises(ParameterError, match='as dlmech.dilute gives it'):
        repair(net, copy.deepcopy(net), train)
    d = masked(net, by_filter(net, '8', every_second(12)))
    with pytest.raises(ParameterError, match='1 image is too few'):
        repair(net, d, (train[0][:1], train[1][:1]))
    grouped = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.Flatten(),
                            nn.Linear(6*144, 4)).eval()
    d = masked(grouped, {'2': torch.ones(6, 3, 3, 3).bool()})
    with pytest.raises(DlmechError, match='2 is no convolution or FC layer that reads all'):
        repair(grouped, d, train)
    with pytest.raises(ParameterError, match="masks: there is no '77'"):
        repair(net, Diluted(net, {'77': torch.ones(1).bool()}), train)


class Block(nn.Module):
    "A residual block whose shortcut is computed before its reader or, as torchvision's are, after it."
    def __init__(self, last: bool):
        super().__init__()
        self.a, self.down = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.b, self.c = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.drop, self.last = nn.Dropout(.5), last
    def forward(self, x):
        x = self.a(x).relu()
        if self.last: return self.drop(self.c(self.b(x).relu())) + self.down(x)
        down = self.down(x)
        return down + self.drop(self.c(self.b(x).relu()))


def test_a_shortcut_that_is_computed_last_is_a_stream_too():
    torch.manual_seed(0)
    first, x = Block(False).eval(), torch.randn(60, 4, 6, 6)
    last = Block(True).eval()
    last.load_state_dict(first.state_dict())
    masks = by_filter(first, 'a', every_second(4)) | by_filter(first, 'c', every_second(6))
    fixed = [repair_on(net, masked(net, masks), [labelled(x)], [labelled(x)]) for net in (first, last)]
    for a, b in zip(*(f.net.state_dict().values() for f in fixed)): torch.testing.assert_close(a, b)
    both = masks | by_filter(first, 'down', every_second(8))  # another reader: each in its turn
    fixed = [repair_on(net, masked(net, both), [labelled(x)], [labelled(x)]) for net in (first, last)]
    assert [list(f.table.reader) for f in fixed] == [['a', 'down', 'c'], ['a', 'c', 'down']]


def test_rows_that_do_not_fit_in_memory_are_summed_a_few_images_at_a_time(monkeypatch):
    net, (x, y) = linked_net()
    d = masked(net, by_filter(net, '4', every_second(8)))
    monkeypatch.setattr('dlmech.pruning.repair.ROWS', 700)
    want = repair_on(net, d, [(x, y)], [(x, y)], whole=True).net[4].weight
    monkeypatch.setattr('dlmech.pruning.repair.ROW_BYTES', 1)  # one image
    torch.testing.assert_close(repair_on(net, d, [(x, y)], [(x, y)], whole=True).net[4].weight, want)


def test_afcc_to_the_outputs_of_merged_fc_layers_can_be_repaired():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(8, 5), nn.Dropout(), nn.Linear(5, 4)).eval()
    images = blobs(80, 4)
    m = dlmech.measure(net, images, images, layers=['2'])
    labels = {'2': torch.arange(8)[:, None] % 4 == torch.arange(4)}
    d = dlmech.dilute(net, m, ['2', 'output'], epochs=0, labels=labels)
    fixed = repair(net, d, images)
    assert (fixed.net.get_submodule('7').weight[~d.masks['7']] == 0).all()
    assert fixed.table.lost.iloc[0] < 1
    with pytest.raises(DlmechError, match='its masks are of another network'):
        repair(nn.Sequential(*[nn.Identity()]*7, nn.Linear(9, 2)), d, images)


def test_edges_are_as_the_convolution_pads_them():
    "Reflected edges: the least squares of what the convolution really makes."
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, 3, padding=1, padding_mode='reflect', bias=False)
    net, x = nn.Sequential(nn.Conv2d(3, 6, 1), conv).eval(), torch.randn(50, 3, 5, 5)
    d = masked(net, by_filter(net, '1', every_second(6)))
    fixed = repair_on(net, d, [labelled(x)], [labelled(x)], penalty=1e-9, bias=False).net
    with torch.no_grad():
        given, out = net[0](x), net(x)
        rows = F.unfold(F.pad(given, [1] * 4, mode='reflect'), 3).transpose(1, 2).reshape(-1, 6, 9)
        rows = rows[:, ::2].flatten(1)
        best = torch.linalg.lstsq(rows, out.flatten(2).transpose(1, 2).reshape(-1, 4)).solution
    torch.testing.assert_close(fixed[1].weight[:, ::2].flatten(1).T, best, atol=1e-3, rtol=1e-3)


def test_a_network_with_a_second_input_is_repaired_with_it_as_it_is_by_default():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        def forward(self, x, scale=2.): return self.b(self.a(x).relu() * scale)
    net, (x, y) = Two().eval(), blobs(40, 4)
    fixed = repair_on(net, masked(net, by_filter(net, 'b', every_second(6))), [(x, y)], [(x, y)])
    assert fixed.table.lost.iloc[0] < 1


def test_a_label_with_few_images_is_drawn_too():
    x, y = torch.randn(1000, 3, 4, 4), torch.zeros(1000).long()
    y[17] = 1
    for seed in range(3):
        drawn = draw_images((x, y), 20, seed)
        labels = torch.cat([b for _, b in Batches(drawn, 20)])
        assert labels.bincount().tolist() == [19, 1]


def test_a_convolution_that_pads_in_its_own_way_is_repaired_by_channel():
    class Wide(nn.Conv2d):
        def forward(self, x): return super().forward(F.pad(x, [2] * 4))
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Wide(6, 4, 3)).eval(), torch.randn(40, 3, 8, 8)
    fixed = repair_on(net, masked(net, by_filter(net, '2', every_second(6))), [labelled(x)], [labelled(x)])
    assert not fixed.table.whole.iloc[0]
    assert fixed.table.lost.iloc[0] < 1


def test_label_means_that_were_not_kept_are_asked_for(known):
    net, stats_of, (x, y) = known
    m = dlmech.measure(net, (x, y), layers=['6'], heads='ridge', fields_on=(x, y))
    lean = unit_stats(net, m, ['6'], [(x, y)], by_label=False)
    keep = keep_top_filters(lean, SCORES['weight norm'], .5)
    zeros = remove(net, lean, keep, 'zero')
    for needs in (lambda: SCORES['joint field'](lean['6']), lambda: remove(net, lean, keep, 'mean'),
                  lambda: repair_by_labels(net, zeros, lean)):
        with pytest.raises(DlmechError, match='by_label=False'): needs()


def test_a_layer_that_is_called_twice_is_not_repaired():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        def forward(self, x): return self.c(self.b(self.b(self.a(x).relu()).relu()))
    net, data = Twice(), (torch.randn(20, 4), torch.arange(20) % 2)
    d = masked(net, {'b': torch.rand(4, 4) > .5})
    with pytest.raises(DlmechError, match='b is called more than once'): dlmech.repair(net, d, data)


def test_a_network_that_is_still_in_training_is_repaired_as_it_answers():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        def forward(self, x):
            x = self.a(x).relu()
            return self.b(x * torch.rand(len(x), 1) if self.training else x)
    net, data = Noisy().train(), (torch.randn(40, 6), torch.arange(40) % 3)
    d = dlmech.repair(net, masked(net, by_filter(net, 'b', torch.ones(8).bool())), data)
    assert net.training
    with torch.no_grad(): assert torch.allclose(d.net.eval()(data[0]), net.eval()(data[0]), atol=1e-5)
