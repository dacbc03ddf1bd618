"""Heads of self-attention: units that go as a whole, counted with what they multiply, and cut."""

import copy

import pytest
import torch
from torch import nn

from lilnetx_mini import InputError
from lilnetx_mini.nn import models, prune
from lilnetx_mini.nn.attention import SelfAttention, attentions
from lilnetx_mini.nn.channels import Channels
from lilnetx_mini.nn.shrink import shrink, unread
from lilnetx_mini.nn.surrogate import low_rank

pytest.importorskip("torch_pruning")

WIDTH, HEADS, INNER, LENGTH = 32, 4, 48, 10


def texts(count=3):
    x = torch.randint(1, 90, (count, LENGTH), generator=torch.Generator().manual_seed(0))
    x[0, 6:] = 0
    return x


def encoder(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"vocabulary": 90, "width": WIDTH, "heads": HEADS, "inner": INNER, "layers": 2, "length": LENGTH} | changes
    model = models.encoder(**sizes)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model.eval()


def transformer(kind):
    """A network of transformers', whose module is asked for logits of tokens."""
    hub = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {
        "Bert": {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": INNER},
        "DistilBert": {"dim": WIDTH, "n_layers": 2, "n_heads": HEADS, "hidden_dim": INNER},
    }[kind]
    config = getattr(hub, f"{kind}Config")(vocab_size=90, max_position_embeddings=LENGTH, **sizes)

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = getattr(hub, f"{kind}ForSequenceClassification")(config)

        def forward(self, tokens):
            return self.network(input_ids=tokens, attention_mask=(tokens > 0).long()).logits

    torch.manual_seed(0)
    return Logits().eval()


NETWORKS = {"ours": encoder, "bert": lambda: transformer("Bert"), "distilbert": lambda: transformer("DistilBert")}


def heads(model):
    return [a.count for a in attentions(model)]


@torch.no_grad()
def test_self_attention_is_torchs_own():
    torch.manual_seed(0)
    ours, theirs = SelfAttention(24, 3), nn.MultiheadAttention(24, 3, batch_first=True)
    theirs.in_proj_weight.copy_(torch.cat([m.weight for m in (ours.query, ours.key, ours.value)]))
    theirs.in_proj_bias.copy_(torch.cat([m.bias for m in (ours.query, ours.key, ours.value)]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, there = torch.randn(2, 5, 24), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    torch.testing.assert_close(ours(x, there[:, None, None]), theirs(x, x, x, key_padding_mask=~there)[0])


def test_heads_must_share_the_channels_evenly():
    with pytest.raises(InputError, match="5 heads cannot share 24 channels"):
        SelfAttention(24, 5)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", NETWORKS)
def test_masked_and_shrunk_encoders_compute_the_same_with_fewer_heads_and_channels(kind, seed):
    model, x = NETWORKS[kind](), texts()
    want = model(x)
    pruned = prune(model, x[:2])
    assert torch.equal(model(x), want)
    with torch.no_grad():
        pruned.alpha.mul_(torch.rand(pruned.alpha.shape, generator=torch.Generator().manual_seed(seed)))
    pruned.keep(0.5)
    small, counts = pruned.shrink(), pruned.counts()
    masked = model(x)
    assert (small(x) - masked).abs().max() <= 1e-5 * masked.abs().max() and not torch.allclose(masked, want, rtol=1e-3)
    left = pruned.channels.counts(pruned.alive)
    by_name = dict(zip([g.name for g in pruned.channels.groups], left.tolist(), strict=True))
    assert heads(small) == [n for name, n in by_name.items() if "q" in name.rpartition(".")[2]] and min(heads(small)) < HEADS
    again = Channels(small, x[:2])
    assert int(again.macs(torch.tensor(again.units))) == counts.macs <= 0.5 * counts.dense_macs


def test_multiply_adds_of_attention_are_its_layers_and_both_products():
    channels = Channels(encoder(), texts(2))
    a_layer = LENGTH * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER) + 2 * LENGTH * LENGTH * WIDTH
    assert int(channels.macs(torch.tensor(channels.units))) == 2 * a_layer + 2 * WIDTH
    assert channels.units == [HEADS, INNER] * 2
    fewer = torch.tensor([HEADS - 1, INNER] * 2)
    gone = WIDTH // HEADS * (4 * LENGTH * WIDTH + 2 * LENGTH * LENGTH)
    assert int(channels.macs(fewer)) == 2 * (a_layer - gone) + 2 * WIDTH
    assert int(channels.weights(fewer)) == 2 * (4 * WIDTH * WIDTH * 3 // 4 + 2 * WIDTH * INNER) + 2 * WIDTH


def test_a_head_stays_while_any_of_its_columns_is_read_and_the_last_stays_anyway():
    model, size = encoder(), WIDTH // HEADS
    first, second = attentions(model)
    with torch.no_grad():
        first.out.weight[:, size : 3 * size] = 0
        first.out.weight[5, 2 * size] = 1  # of head 2
        second.out.weight.zero_()
    assert first.unread() == [1] and second.unread() == [0, 1, 2, 3]
    small = shrink(model, texts(2))
    assert heads(small) == [3, 1] and heads(model) == [HEADS] * 2
    torch.testing.assert_close(small(texts()), model(texts()))


def test_fused_attention_depends_on_every_query_key_and_value_of_a_head_that_is_read():
    model = encoder()
    attention = attentions(model)[0]
    with torch.no_grad():
        attention.out.weight[:, attention.of([2])] = 0
    for layer in attention.inside:
        assert unread(model, texts(2), {layer: attention.of([2])})
        assert not unread(model, texts(2), {layer: attention.of([2])[:3] + attention.of([0])[:1]})


def test_heads_and_their_ranks_in_one_network():
    model, x = encoder(), texts()
    want = model(x)
    both = low_rank(model, x[:2], channels=True)
    assert (model(x) - want).abs().max() <= 1e-4 * want.abs().max()
    assert sum(n == HEADS for n in both.channels.units) == 2  # beside what lies in between of layers in two
    with torch.no_grad():
        both.alpha.mul_(torch.rand(both.alpha.shape, generator=torch.Generator().manual_seed(3)))
    both.keep(0.4)
    small, masked = both.shrink(), model(x)
    assert (small(x) - masked).abs().max() <= 1e-5 * masked.abs().max() and min(heads(small)) < HEADS


def test_an_attention_that_shares_a_layer_keeps_its_heads():
    model = encoder()
    a, b = model.layers[0].attention, model.layers[1].attention
    b.value = a.value
    with torch.no_grad():
        a.out.weight.zero_()
    assert heads(shrink(model, texts(2))) == [HEADS] * 2


def test_texts_computed_together_by_their_lengths_come_back_in_their_order():
    model, x = encoder(dropout=0.0), texts(9)
    for n, row in enumerate(x):
        row[1 + n * 7 % 9 :] = 0
    x[4] = 0  # a text of nothing
    want = model(x)
    assert want.isfinite().all()
    torch.testing.assert_close(model.train()(x), want)
    longer = torch.cat([x[:, :9], torch.zeros_like(x[:, :1])], 1)
    torch.testing.assert_close(model.eval()(longer), model(x[:, :9]))


def test_the_encoder_that_is_announced():
    assert sum(p.numel() for p in models.encoder().parameters()) == 1_823_746


def test_heads_that_cannot_be_told_apart_are_left_alone():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = SelfAttention(12, 3)
            self.attention.key = nn.Linear(12, 8)

    assert attentions(Other()) == [] and attentions(nn.MultiheadAttention(8, 2)) == []
    assert len(attentions(copy.deepcopy(nn.Sequential(SelfAttention(12, 3))))) == 1
