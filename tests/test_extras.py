"""What users of this ecosystem have: networks of timm and transformers measured, a training followed in
TensorBoard and Weights & Biases. Against the real libraries, offline; a missing one is skipped and said."""
import os, re

import pytest, torch
from torchvision.transforms import v2

import dlmech
from dlmech.datasets import shift_flip
from dlmech.model import check_callbacks, start, train_or_load
from dlmech.run import ParameterError, read_csv
from helpers import blobs, TINY, wait_for

os.environ |= dict(WANDB_MODE='offline', WANDB_SILENT='true', HF_HUB_OFFLINE='1')
LABELS = 4


def means_of(seen: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    "The mean over the images of each label."
    return torch.stack([seen[y == i].double().mean(0) for i in range(LABELS)])


def bytes_of(x: torch.Tensor) -> torch.Tensor: return (x * 30 + 100).clamp(0, 255).byte()


def test_a_vision_transformer_of_transformers_is_measured():
    "Its nodes are units; what is averaged is what the library itself gives as hidden states."
    hf = pytest.importorskip('transformers', reason='transformers (extra hf) is not installed')
    torch.manual_seed(0)
    net = hf.ViTForImageClassification(hf.ViTConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=LABELS))
    (x, y), test = blobs(60, LABELS), blobs(40, LABELS, 1)
    m = dlmech.measure(net, (x, y), test, layers=['vit.layers.0', 'vit.layers.1'], heads='ridge')
    assert m.layers.filters.tolist() == [16, 16]
    with torch.no_grad(): states = net.eval()(test[0], output_hidden_states=True).hidden_states
    for part, state in zip(m, states[1:]):                                                 # (B, N, D)
        seen = means_of(state, test[1]).transpose(1, 2)[..., None]                         # (K, D, N, 1)
        torch.testing.assert_close(part.store.means.double(), seen, rtol=1e-4, atol=1e-5)


def test_a_network_of_transformers_with_its_own_colours_is_measured():
    hf = pytest.importorskip('transformers', reason='transformers (extra hf) is not installed')
    torch.manual_seed(0)
    net = hf.ResNetForImageClassification(hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type='basic', num_labels=LABELS))
    (x, y), colours = blobs(60, LABELS), ((.485, .456, .406), (.229, .224, .225))
    path = 'resnet.encoder.stages.1.layers.0'
    m = dlmech.measure(net, (bytes_of(x), y), (bytes_of(x), y), layers=[path], heads='ridge', normal=colours)
    mean, deviation = (torch.tensor(c)[:, None, None] for c in colours)
    with torch.no_grad():
        maps = net.eval()((bytes_of(x) / 255 - mean) / deviation, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(m[path].store.means.double(), means_of(maps, y), rtol=1e-3, atol=1e-4)


def test_a_network_of_timm_is_measured():
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    net = timm.create_model('mobilenetv3_small_050', num_classes=LABELS)
    known, (x, y) = net.pretrained_cfg, blobs(60, LABELS)
    m = dlmech.measure(net, (bytes_of(x), y), (bytes_of(x), y), layers=['blocks.5'], heads='ridge',
                       normal=(known['mean'], known['std']))
    mean, deviation = (torch.tensor(known[k])[:, None, None] for k in ('mean', 'std'))
    with torch.no_grad(): maps = net.eval().forward_features((bytes_of(x) / 255 - mean) / deviation)
    torch.testing.assert_close(m['blocks.5'].store.means.double(), means_of(maps, y), rtol=1e-3, atol=1e-4)


def test_shifts_and_flips_are_those_of_torchvision():
    "v2 draws once a call, so it is asked image by image for what was drawn."
    x, flip, shift = torch.randint(256, (6, 9, 9, 3), dtype=torch.uint8), torch.arange(6) % 2 == 0, 2
    seen = shift_flip(x, shift, flip, torch.Generator().manual_seed(0))
    drawn = torch.randint(0, 2*shift+1, (2, 6, 1), generator=torch.Generator().manual_seed(0))
    for i, (top, left) in enumerate(drawn[..., 0].T.tolist()):
        padded = v2.functional.pad(x[i].permute(2, 0, 1), [shift])
        image = v2.functional.crop(padded, top, left, 9, 9)
        if flip[i]: image = v2.functional.horizontal_flip(image)
        assert torch.equal(seen[i], image.permute(1, 2, 0))


def test_tensorboard_has_every_epoch(tmp_path):
    pytest.importorskip('tensorboard', reason='tensorboard (extra track) is not installed')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard.writer import SummaryWriter
    run = start(**TINY | dict(epochs=2, labels='0,1'), runs=str(tmp_path/'runs'))
    with SummaryWriter(str(tmp_path/'logs')) as writer:
        train_or_load(run, [lambda epoch, row: [writer.add_scalar(k, v, epoch) for k, v in row.items()]])
    events = EventAccumulator(str(tmp_path/'logs')).Reload()
    log = read_csv(run.file('train.csv'))
    assert set(events.Tags()['scalars']) == set(log)
    for name in log:
        assert [e.step for e in events.Scalars(name)] == [1, 2]
        assert [e.value for e in events.Scalars(name)] == pytest.approx(log[name].tolist())


def test_weights_and_biases_has_every_epoch(tmp_path):
    wandb = pytest.importorskip('wandb', reason='wandb (extra track) is not installed')
    run = start(**TINY | dict(epochs=2, labels='0,1'), runs=str(tmp_path/'runs'))
    with wandb.init(project='mine', dir=str(tmp_path)) as told:
        train_or_load(run, [lambda epoch, row: wandb.log(row)])
        log = read_csv(run.file('train.csv'))
        last = wait_for(lambda: (s := dict(told.summary)).get('epoch') == 2 and s)  # another process keeps it
    assert {k: last[k] for k in log} == pytest.approx(log.iloc[-1].to_dict())
    assert last['_step'] == 1  # two rows, counted from 0
    assert list((tmp_path/'wandb').glob('offline-run-*/run-*.wandb'))


def test_callbacks_hear_only_of_what_is_trained_now(tmp_path):
    run, heard = start(**TINY | dict(epochs=2, labels='0,1'), runs=str(tmp_path)), []
    hear = lambda epoch, row: heard.append((epoch, sorted(row)))
    train_or_load(run, [hear])
    assert [epoch for epoch, _ in heard] == [1, 2]
    assert heard[0][1] == sorted(read_csv(run.file('train.csv')))
    train_or_load(run, [hear])
    assert len(heard) == 2


def test_the_log_says_when_a_training_will_be_over(tmp_path, caplog):
    run = start(**TINY | dict(epochs=2, labels='0,1'), runs=str(tmp_path))
    with caplog.at_level('INFO', 'dlmech'): train_or_load(run)
    first, last = [m for m in caplog.messages if m.startswith('phase 1: epoch')]
    assert re.search(r'1 to go, until about \w{3} \d\d:\d\d$', first)
    assert 'until' not in last


def test_a_callback_that_fails_leaves_the_epoch_before_it(tmp_path):
    "Whatever it raises is its own; what was trained is there, and the training goes on from it."
    run = start(**TINY | dict(epochs=2, labels='0,1'), runs=str(tmp_path))
    def fails(epoch, row): raise RuntimeError('no connection')
    with pytest.raises(RuntimeError, match='no connection'): train_or_load(run, [fails])
    assert len(read_csv(run.file('train.csv'))) == 1
    heard = []
    train_or_load(run, [lambda epoch, row: heard.append(epoch)])
    assert heard == [2]


def test_what_cannot_be_called_is_refused_before_anything_is_trained(tmp_path):
    for wrong in (print, 'print', [print, 3], None):
        with pytest.raises(ParameterError, match='callbacks: .* it may be a list of functions'):
            check_callbacks(wrong)
    run = start(**TINY | dict(labels='0,1'), runs=str(tmp_path))
    with pytest.raises(ParameterError, match='callbacks'): train_or_load(run, ['print'])
    assert not run.file('train.csv').exists()
