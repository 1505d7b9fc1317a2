"""Layers found by looking and their units, on networks that others wrote; data and weights as people have
them.

    python tests/test_layers.py    makes dlmech/results/networks.csv anew, the table of what the tour finds
"""
import pandas as pd, pytest, torch, torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, random_split, SubsetRandomSampler, TensorDataset

import dlmech
from dlmech.arch import get_model, NORMALS
from dlmech.batches import Batches, fingerprint
from dlmech.causal import causal, other_images
from dlmech.filter import fields, label_means
from dlmech.layers import answer_of, blocks_in, find_layers, hooked, LayerName, traced, width_of
from dlmech.look.views import get_image, image_input, layer_maps, uploaded
from dlmech.model import success_rate
from dlmech.run import DlmechError, generator, ParameterError, read_json, RESULTS, write_json
from dlmech.silence import answers, only
from dlmech.trunk import readable, Trunk
from helpers import blobs, same_state, small_net, state

timm = pytest.importorskip('timm')

TORCHVISION = '''resnet18 resnet50 resnext50_32x4d wide_resnet50_2 efficientnet_b0 mobilenet_v2
    mobilenet_v3_small densenet121 googlenet squeezenet1_1 shufflenet_v2_x0_5 mnasnet0_5
    regnet_y_400mf regnet_x_400mf convnext_tiny vit_b_32 swin_t swin_v2_t maxvit_t'''.split()
TIMM = '''resnet18 resnet26 efficientnet_b0 tf_efficientnet_lite0 mobilenetv3_small_050 convnext_atto
    convnextv2_atto swin_tiny_patch4_window7_224 vit_tiny_patch16_224 deit_tiny_patch16_224 mixer_s32_224
    resmlp_12_224 gmlp_s16_224 regnety_002 densenet121 poolformer_s12 mobilevit_xxs pvt_v2_b0
    xcit_nano_12_p16_224 coatnet_nano_rw_224 repvgg_a0 edgenext_xx_small nfnet_l0'''.split()
JOINED = {'_DenseBlock', 'DenseBlock', 'Inception', 'Fire', 'InvertedResidual'}  # what is joined may be wider


def made(source: str, name: str) -> tuple[nn.Module, int]:
    "A network with weights drawn by chance, and the side of its images."
    torch.manual_seed(0)
    side = 224 if any(k in name for k in ('vit', 'swin', 'deit', 'mixer', 'mlp', 'xcit', 'coat')) else 96
    if source == 'timm': return timm.create_model(name, num_classes=4), side
    extra = dict(init_weights=False, aux_logits=False) if name == 'googlenet' else {}
    return torchvision.models.get_model(name, weights=None, num_classes=4, **extra), side


def true_width(net, calls, path) -> int|None:
    "How many units the modules within a block say that it has, if they say."
    at = next(i for i in reversed(range(len(calls))) if calls[i].path == path)
    inside = [c for c in calls[:at+1] if calls[at].holds(c) and width_of(c.module)]
    return None if type(calls[at].module).__name__ in JOINED or not inside else width_of(inside[-1].module)[0]


TOUR = [*(('torchvision', n) for n in TORCHVISION), *(('timm', n) for n in TIMM)]
TABLE = RESULTS/'networks.csv'


def as_text(shape) -> str: return ' x '.join(map(str, shape))


def found_in(net, x) -> dict:
    "What is found in a network: its blocks and layers, and units and maps of the first and the last."
    found, blocks = find_layers(net, x[:1]), blocks_in(traced(net, x[:1]))
    with Trunk(net, [found[0], found[-1]]) as trunk: maps = trunk(x[:1]).values()
    first, last = (as_text(m.shape[1:]) for m in maps)
    return dict(image=x.shape[-1], blocks=len(blocks), block=type(blocks[0].module).__name__,
                layers=len(found), first=found[0], first_units=first, last=found[-1], last_units=last)


def tour_row(source: str, name: str) -> dict:
    "A row of the table."
    net, side = made(source, name)
    return dict(source=source, network=name) | found_in(net, torch.randn(1, 3, side, side))


@pytest.mark.parametrize('source, name', TOUR)
def test_a_tour(source, name):
    """Layers are blocks, as the table has them, units have the block's own width, fields are those of the
    definition, nothing is changed."""
    net, side = made(source, name)
    net.train()
    before, x, y = state(net), torch.randn(4, 3, side, side), torch.arange(4) % 2
    found = find_layers(net, x[:1])
    stated = pd.read_csv(TABLE).set_index(['source', 'network']).loc[(source, name)]
    assert found_in(net, x) == stated.to_dict()
    calls = traced(net, x[:1])
    blocks = [c.path for c in blocks_in(calls)]
    assert len(blocks) >= 4
    assert set(blocks) <= {LayerName.read(p, dict(net.named_modules())).module for p in found}
    paths = readable(net, [found[len(found)//2], found[-1]], x[:1])
    with Trunk(net, paths) as trunk: maps = trunk(x)
    for p, units in maps.items():
        width = true_width(net, calls, LayerName.read(p, dict(net.named_modules())).module)
        assert units.ndim == 4
        assert width is None or units.shape[1] == width, p
    p, units = list(maps.items())[-1]
    head = torch.randn(2, *units.shape[1:], generator=generator(1))
    M = fields(label_means(net, [p], [(x, y)], 2)[p], head)
    for f in (0, 1, units.shape[1] - 1):
        alone = torch.einsum('bhw,khw->bk', units[:, f].double(), head[:, f].double())
        slow = torch.stack([alone[y == k].mean(0) for k in (0, 1)])
        assert torch.allclose(M[f], slow, rtol=1e-4, atol=1e-5 * float(slow.abs().max() + 1e-9))
    assert same_state(state(net), before)


@pytest.mark.parametrize('name', ['resnet18', 'efficientnet_b0', 'densenet121'])
def test_the_same_places_are_found_whoever_wrote_it(name):
    x = torch.randn(1, 3, 96, 96)
    widths = []
    for source in ('torchvision', 'timm'):
        net, _ = made(source, name)
        paths = find_layers(net, x)
        with Trunk(net, paths) as trunk: widths.append([tuple(m.shape[1:]) for m in trunk(x).values()])
    assert widths[0] == widths[1]


@pytest.mark.parametrize('looked', [False, True])
def test_nodes_of_a_transformer_are_silenced_where_they_are(looked):
    net, side = made('timm', 'vit_tiny_patch16_224')
    x, keep = torch.randn(2, 3, side, side), torch.arange(192) > 9
    if looked:
        with Trunk(net, ['blocks.3']) as trunk: trunk(x)
    seen = []
    with hooked([(net.blocks[4], lambda m, args: seen.append(args[0]))], before=True):
        with only(net, 'blocks.3', keep) as silent: silent(x)
    assert seen[0][..., :10].abs().max() == 0
    assert seen[0][..., 10:].abs().min() > 0
    with pytest.raises(DlmechError, match='which is not of 7 units'):
        with only(net, 'blocks.3', keep[:7]) as silent: silent(x)


# ---- answers

class Answers(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.net, self.how = small_net(), how
    def forward(self, x): return self.how(self.net(x))


@pytest.mark.parametrize('how', [lambda y: (y, None), lambda y: dict(logits=y),
                                 lambda y: dict(features=y[:, :, None], out=y)])
def test_networks_that_answer_otherwise_are_understood(how):
    plain, other = small_net(), Answers(how)
    tables = [dlmech.measure(net, blobs(80, 4), blobs(40, 4, 1), layers=[path], heads='ridge').layers
              for net, path in ((plain, '5'), (other, 'net.5'))]
    assert tables[0].success_rate.tolist() == tables[1].success_rate.tolist()


class Features(nn.Module):
    "Answers with its features and with the labels' outputs."
    def __init__(self):
        super().__init__()
        self.net, self.fc = small_net(), nn.Linear(4, 7)
    def forward(self, x):
        out = self.net(x)
        return self.fc(out), out


def test_which_of_several_answers_is_kept_for_whoever_asks_later(tmp_path):
    net, data = Features(), (blobs(80, 4), blobs(40, 4, 1))
    with pytest.raises(DlmechError, match=r'several \(B, K\) tensors, K = 4, 7; name the one of the labels'):
        dlmech.measure(net, *data, layers=['net.5'], heads='ridge')
    m = dlmech.measure(net, *data, layers=['net.5'], heads='ridge', output=1)
    alone = dlmech.measure(net.net, *data, layers=['5'], heads='ridge')
    assert m.K == 4
    assert torch.equal(m[m.paths[-1]].fields, alone['5'].fields)
    pd.testing.assert_series_equal(causal(m['net.5'], n=20).auc_zero, causal(alone['5'], n=20).auc_zero)
    assert len(net(data[0][0])) == 2
    again = dlmech.open(m.save(tmp_path/'m'), net, data[1])  # the folder knows it too
    alone = dlmech.open(alone.save(tmp_path/'alone'), net.net, data[1])
    pd.testing.assert_series_equal(causal(again['net.5'], n=20).auc_zero, causal(alone['5'], n=20).auc_zero)
    config = read_json(tmp_path/'m'/'config.json')
    write_json(tmp_path/'m'/'config.json', config | dict(output=[1]))
    with pytest.raises(DlmechError, match='its output is neither a number nor a name'):
        dlmech.open(tmp_path/'m', net, data[1])


def test_a_dict_of_outputs_has_a_success_rate_and_answers():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()
        def forward(self, x): return dict(logits=self.net(x))
    net, batches = Named(), [blobs(40, 4)]
    assert success_rate(net, batches) == success_rate(net.net, batches)
    x = batches[0][0]
    assert answers(net, x[:1], batches, 4).outputs.equal(answers(net.net, x[:1], batches, 4).outputs)

def test_one_of_several_outputs_is_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 5, 3), nn.LazyLinear(4)
        def forward(self, x): return self.fc(self.twice(x)[0].flatten(1))
        def twice(self, x): return self.both(x)
    net = Two()
    net.both = Both()
    net(torch.zeros(1, 3, 16, 16))
    with pytest.raises(DlmechError, match=r'name one of its tensors: both.0, both.1'):
        dlmech.measure(net, blobs(40, 4), blobs(40, 4), layers=['both'])
    m = dlmech.measure(net, blobs(40, 4), blobs(40, 4), layers=['both.1'])
    assert m['both.1'].head.shape[1] == 7


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 7, 3)
    def forward(self, x): return self.a(x), self.b(x)


def test_which_axis_is_asked_where_it_cannot_be_told():
    class Odd(nn.Module):
        "Answers for 8 x 8 images alone, with as many units as positions, by functions without modules."
        def __init__(self):
            super().__init__()
            self.w, self.fc = nn.Parameter(torch.randn(8, 3)), nn.Linear(512, 4)
            self.mix = Mix()
        def forward(self, x):
            if x.shape[-1] != 8: raise ValueError('8 x 8 only')
            return self.fc(self.mix(x, self.w).flatten(1))
    class Mix(nn.Module):
        def forward(self, x, w): return torch.einsum('bchw,kc->bkhw', x, w)
    data = torch.randn(40, 3, 8, 8), torch.arange(40) % 4
    with pytest.raises(DlmechError, match='say mix@first'): dlmech.measure(Odd(), data, data, layers=['mix'])
    assert len(dlmech.measure(Odd(), data, data, layers=['mix@last'])['mix@last']) == 8


# ---- data

def test_a_loader_is_taken_at_its_word():
    x, y = blobs(80, 4)
    every = TensorDataset(x, y)
    loader = DataLoader(every, 8, sampler=SubsetRandomSampler(range(20)))
    assert sum(len(labels) for _, labels in Batches(loader)) == 20
    assert sum(len(labels) for _, labels in Batches(DataLoader(every, 30, drop_last=True))) == 60
    part, _ = random_split(every, [10, 70])
    assert sum(len(labels) for _, labels in Batches(part)) == 10


class Dicts(Dataset):
    "As Hugging Face gives them: bytes, texts for labels."
    def __init__(self, n): self.x, self.y = blobs(n, 4)
    def __len__(self): return len(self.y)
    def __getitem__(self, i):
        return dict(img=(self.x[i] * 30 + 100).clamp(0, 255).byte().permute(1, 2, 0).numpy(),
                    label='abcd'[self.y[i]])


def test_dicts_bytes_and_texts_are_understood():
    m = dlmech.measure(small_net(), Dicts(120), Dicts(40), layers=['5'])
    assert m.names == ['a', 'b', 'c', 'd']
    assert m.layers.success_rate[0] > .5
    m['5'].card(0)


def test_a_hugging_face_data_set_is_understood():
    "The real library, in memory: pictures, names of the labels, a part by `select`, torch's format."
    hf = pytest.importorskip('datasets', reason='datasets (extra hf) is not installed')
    (x, y), names = blobs(120, 4), ['ant', 'bee', 'cat', 'dog']
    x = (x * 30 + 100).clamp(0, 255).byte()
    features = hf.Features(dict(image=hf.Image(), label=hf.ClassLabel(names=names)))
    pictures = [Image.fromarray(p) for p in x.permute(0, 2, 3, 1).numpy()]
    data = hf.Dataset.from_dict(dict(image=pictures, label=y.tolist()), features=features)
    train, test = data.select(range(80)), data.select(range(80, 120))
    m = dlmech.measure(small_net(), train, test, layers=['5'])
    assert m.names == names
    plain = dlmech.measure(small_net(), (x[:80], y[:80]), (x[80:], y[80:]), layers=['5'])
    torches = [d.with_format('torch') for d in (train, test)]
    for same in plain, dlmech.measure(small_net(), *torches, layers=['5']):
        assert same['5'].filters.equals(m['5'].filters)
    split = hf.DatasetDict(train=train, test=test)
    with pytest.raises(ParameterError, match="a part of it, as data.'train'."):
        dlmech.measure(small_net(), split, split, layers=['5'])
    with pytest.raises(ParameterError, match='a data set may be'):
        dlmech.measure(small_net(), train.to_iterable_dataset(), test, layers=['5'])


@pytest.mark.parametrize('labels', [lambda y: y.byte(), lambda y: y.int(), lambda y: y.float(),
                                    lambda y: y[:, None],
                                    lambda y: nn.functional.one_hot(y, 4)])
def test_labels_in_any_form_give_the_same(labels):
    x, y = blobs(60, 4)
    tables = [dlmech.measure(small_net(), (x, t), (x, t), layers=['5'])['5'].filters for t in (y, labels(y))]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize('data, said', [
    ((torch.zeros(9, 3, 16, 16), torch.tensor([0, 1.7] * 4 + [0])), '1.7 is no label'),
    ((torch.zeros(9, 3, 16, 16), torch.zeros(5)), '9 images and 5 labels'),
    ((torch.zeros(9, 3, 16, 16, dtype=torch.int32), torch.zeros(9)), 'type int32 are not understood'),
])
def test_data_that_cannot_be_is_refused(data, said):
    with pytest.raises(ParameterError) as e: dlmech.measure(small_net(), data, data)
    assert said in str(e.value)
    assert '\n' not in str(e.value)


# ---- their normalisation

def test_a_network_with_its_own_colours_gives_the_same_three_ways():
    x, y = torch.rand(60, 3, 16, 16, generator=generator(0)), torch.arange(60) % 4
    mean, std = (torch.tensor(t)[:, None, None] for t in (NORMALS['imagenet'].mean, NORMALS['imagenet'].std))
    net = small_net()
    before = state(net)
    ready = dlmech.measure(net, ((x - mean) / std, y), ((x - mean) / std, y), layers=['5'])
    by_name = dlmech.measure(net, (x, y), (x, y), layers=['5'], normal='imagenet')
    assert torch.allclose(ready['5'].fields, by_name['5'].fields, rtol=1e-3, atol=1e-4)
    assert same_state(state(net), before)
    with pytest.raises(ParameterError, match='as if they had been normalised already'):
        dlmech.measure(net, ((x - mean) / std, y), ((x - mean) / std, y), layers=['5'], normal='imagenet')


def test_every_role_of_a_set_in_unit_colours_is_that_set():
    "The causal test sees the colours that fields saw, and knows whether the images are those of the fields."
    x, y = torch.rand(80, 3, 16, 16, generator=generator(0)), torch.arange(80) % 4
    net, one, two = small_net(), (x[:40], y[:40]), (x[40:], y[40:])
    both = dlmech.measure(net, one, two, layers=['5'], heads='ridge', normal='imagenet')
    images, on = other_images(both)
    assert (images.data, on) == (one, 'training images')
    same = dlmech.measure(net, one, one, layers=['5'], heads='ridge', normal='imagenet')
    assert other_images(same)[1] == 'images of the fields'
    assert same.heads_on == same.fields_on == fingerprint(one)
    by_name, given = (causal(same['5'], images, 20) for images in (None, one))
    pd.testing.assert_frame_equal(by_name.drop(columns='on'), given.drop(columns='on'))

def test_images_in_unit_colours_are_seen_alike_by_measure_folder_and_upload(tmp_path):
    "What the explorer shows of an image, by number or uploaded, is what the measured network was given."
    bits = torch.randint(256, (40, 16, 16, 3), dtype=torch.uint8, generator=generator(1))
    x, y = bits.permute(0, 3, 1, 2) / 255, torch.arange(40) % 4
    net = small_net()
    m = dlmech.measure(net, (x, y), (x, y), layers=['5'], normal='imagenet')
    mean, std = (torch.tensor(t)[:, None, None] for t in (NORMALS['imagenet'].mean, NORMALS['imagenet'].std))
    with Trunk(net, ['5']) as trunk: right = trunk((x[:1] - mean) / std)['5']
    Image.fromarray(bits[0].numpy()).save(picture := tmp_path/'mine.png')
    opened = dlmech.open(m.save(tmp_path/'saved'), model=net, images=(x, y))
    for seen in m, opened:
        uploaded_picture, _ = uploaded(seen, 'mine.png', picture.read_bytes())
        assert torch.equal(uploaded_picture, bits[0])
        assert torch.equal(get_image(seen, 0)[0], bits[0])
        for image in 0, uploaded_picture:
            maps = layer_maps(seen, seen['5'].number, image_input(seen, image))
            assert torch.allclose(maps, right, rtol=1e-4, atol=1e-5)
    assert fingerprint((x, y)).shared(m.fields_on) == 1


def test_answer_of_says_what_was_answered():
    with pytest.raises(DlmechError, match='not with a str'): answer_of('yes')


def test_small_resnets_have_their_blocks():
    for name, blocks in (('resnet20', 9), ('resnet56', 27)):
        assert len(find_layers(get_model(name, 10), torch.zeros(1, 3, 32, 32))) == blocks + 1


if __name__ == '__main__': pd.DataFrame([tour_row(*n) for n in TOUR]).to_csv(TABLE, index=False)
