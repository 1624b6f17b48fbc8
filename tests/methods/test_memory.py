"""The memories of test images, by hand and image by image as the papers fill them, and the methods that read them."""

from itertools import product
from math import exp, log, log2

import pytest
import torch
from banks import CLASSES, LABELS, features_of, made_bank, prepared

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.features.source import without_labels
from xrvlm.methods import DMN, TDA
from xrvlm.methods.dmn import WEIGHTS
from xrvlm.methods.memory import entropy, most_certain


def arriving(logits, capacity, low=-1.0, high=1e9) -> dict[int, list[int]]:
    """The rows in each class's memory, filled one by one: a full memory gives up its worst for a better one."""
    kept: dict[int, list[tuple[float, int]]] = {}
    for row, values in enumerate(logits.double().softmax(dim=1).tolist()):
        disorder = -sum(value * log(value) for value in values)
        label = max(range(len(values)), key=values.__getitem__)
        memory = kept.setdefault(label, [])
        if not low < disorder < high:
            continue
        if len(memory) < capacity:
            memory.append((disorder, row))
        elif disorder < memory[-1][0]:
            memory[-1] = (disorder, row)
        memory.sort()
    return {label: [row for _, row in memory] for label, memory in kept.items()}


def test_the_memory_is_that_of_images_that_arrive_one_by_one():
    logits = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    logits[:, 4] = -9                    # predicted for none
    for among, bounds in ((None, ()), ((entropy(logits) > 0.3) & (entropy(logits) < 0.7), (0.3, 0.7))):
        rows, there = most_certain(logits, 3, among)
        expected = arriving(logits, 3, *bounds)
        assert [rows[label][there[label]].tolist() for label in range(5)] == [expected.get(k, []) for k in range(5)]


def streamed(clip, method, seed=3):
    """The method after it has seen made-up test images; and these."""
    queries = made_bank(clip, CLASSES, LABELS, text=0.7, seed=seed)
    method.transduce(clip, without_labels(queries), None)
    return method, features_of(queries)


def test_tda_by_hand(clip):
    """Vote by vote from the definition, with the memories of the test above."""
    clip_scale = 60.0                    # some images certain, some not
    method = prepared(TDA, clip, alpha=1.5, beta=4.0)
    method.zero_shot.logit_scale = torch.tensor(clip_scale)
    method, x = streamed(clip, method)
    logits = method.zero_shot.logits(x, method.zero_shot.weights)
    shares = logits.softmax(dim=1)
    confident = arriving(logits, 3)
    uncertain = arriving(logits, 2, 0.2 * log2(3), 0.5 * log2(3))
    assert sum(map(len, uncertain.values())) > 1
    expected = logits.clone()
    for row, feature in enumerate(x.pooled):
        for label, members in confident.items():
            for member in members:
                expected[row, label] += 1.5 * exp(-4.0 * (1 - float(feature @ x.pooled[member])))
        for member in (member for members in uncertain.values() for member in members):
            for label in range(3):
                if shares[member, label] > 0.03:
                    expected[row, label] -= 0.117 * exp(-(1 - float(feature @ x.pooled[member])))
    torch.testing.assert_close(method.logits(x, method.class_features(clip)), expected, rtol=1e-4, atol=1e-4)


def read(feature, members, beta=5.5) -> float:
    """The cosine of an image with the prototype that it reads from a class's memory."""
    total = sum(exp(-beta * (1 - float(feature @ member))) * member for member in members)
    return float(feature @ total / total.norm())


@pytest.fixture(scope="module")
def remembered(clip):
    support = made_bank(clip, CLASSES, LABELS[:9], text=0.7)
    method = prepared(DMN, clip, support)
    queries = made_bank(clip, CLASSES, LABELS, text=0.7, seed=3)
    method.transduce(clip, without_labels(queries), support)
    return method, features_of(support), features_of(queries)


def expected_shares(clip, method, shots, queries, x, but=None):
    """(b, c) each of text, dynamic and static memory; shot `but` stays out of the memories."""
    text = method.zero_shot.weights
    kept = arriving(method.zero_shot.logits(queries, text), 50)
    static = [[text[k], *(shots.pooled[i] for i in range(9) if LABELS[i] == k and i != but)] for k in range(3)]
    dynamic = [[*static[k], *queries.pooled[kept.get(k, [])]] for k in range(3)]
    scores = [[[read(feature, each[k]) for k in range(3)] for feature in x.pooled] for each in (dynamic, static)]
    return [method.zero_shot.logits(x, text).softmax(dim=1),
            *((clip.logit_scale * torch.tensor(each)).softmax(dim=1) for each in scores)]


def test_dmn_by_hand(clip, remembered):
    method, shots, queries = remembered
    x = features_of(made_bank(clip, CLASSES, LABELS[:5], seed=8))
    text, dynamic, static = expected_shares(clip, method, shots, queries, x)
    b2, b3 = method.weights.tolist()
    expected = text + b2 * dynamic + b3 * static
    found = method.logits(x, method.class_features(clip)).softmax(dim=1)
    torch.testing.assert_close(found, expected / expected.sum(dim=1, keepdim=True), rtol=1e-3, atol=1e-4)


def test_dmn_chooses_its_weights_on_shots_that_do_not_see_themselves(clip, remembered):
    method, shots, queries = remembered
    rows = [[each[0] for each in expected_shares(clip, method, shots, queries, Features(shots.pooled[i:i + 1]), but=i)]
            for i in range(9)]
    text, dynamic, static = (torch.stack(column) for column in zip(*rows, strict=True))
    slots = torch.arange(9) // 3 + 1
    found = method.log_shares(shots, method.zero_shot.weights, (LABELS[:9], slots))
    for own, by_hand in zip(found, (text, dynamic, static), strict=True):
        torch.testing.assert_close(own.exp(), by_hand, rtol=1e-3, atol=1e-4)

    def right(b2, b3):
        return int(((text + b2 * dynamic + b3 * static).argmax(dim=1) == LABELS[:9]).sum())

    b2, b3 = method.weights.tolist()
    assert right(b2, b3) == max(right(*pair) for pair in product(WEIGHTS, WEIGHTS))


def test_dmn_with_one_shot_a_class_keeps_its_weights_or_asks_validation_images(clip):
    support = made_bank(clip, CLASSES, LABELS[:3], text=0.7)
    val = made_bank(clip, CLASSES, LABELS, text=0.4, seed=4)
    queries = features_of(made_bank(clip, CLASSES, LABELS, seed=3))
    method = prepared(DMN, clip, support)
    method.transduce(clip, queries, support)
    assert method.weights.tolist() == [1, 1]
    text, dynamic, static = (each.exp() for each in method.log_shares(features_of(val), method.zero_shot.weights))
    right = {(b2, b3): int(((text + b2 * dynamic + b3 * static).argmax(dim=1) == LABELS).sum())
             for b2, b3 in product(WEIGHTS, WEIGHTS)}
    best = min(pair for pair in right if right[pair] == max(right.values()))
    method = prepared(DMN, clip, support)
    method.transduce(clip, queries, support, val)
    assert method.weights.tolist() == pytest.approx(best)
    assert max(right.values()) > min(right.values())


@pytest.mark.parametrize("kind", [TDA, DMN])
def test_a_new_image_changes_nothing(clip, kind):
    support = made_bank(clip, CLASSES, LABELS[:6], text=0.7)
    method = prepared(kind, clip, support)
    method.transduce(clip, features_of(made_bank(clip, CLASSES, LABELS, seed=3)), support)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.logits(features_of(made_bank(clip, CLASSES, LABELS, seed=9)), method.class_features(clip))
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_options_are_checked(clip):
    with pytest.raises(UserError, match=r"alpha must be at least 0 and beta above 0, found 2\.0 and 0"):
        TDA(clip, CLASSES, beta=0)
    with pytest.raises(UserError, match=r"beta must be above 0, found -1"):
        DMN(clip, CLASSES, beta=-1)
