from functools import partial

import banks
import pytest
import torch
import torch.nn.functional as F
from banks import features_of, made_bank

from xrvlm.errors import UserError
from xrvlm.methods import DCLIP, ZeroShot
from xrvlm.text.class_text import class_text

SENTENCES = {"bird": ["a bird with wing.", "a bird with beak.", "a red photo of a house."], "dog": ["a dog."],
             "cat": ["a cat.", "the cat in the house."]}
CLASSES = class_text(("bird", "dog", "cat"), descriptions=SENTENCES)
prepared = partial(banks.prepared, classes=CLASSES)


@pytest.fixture(scope="module")
def x(clip):
    return features_of(made_bank(clip, CLASSES, torch.arange(3).repeat(3)))


def test_scores_are_the_mean_over_the_sentences_of_the_similarities(clip, x):
    scores = [[clip.logit_scale * x.pooled @ clip.encode_text([sentence])[0] for sentence in SENTENCES[name]]
              for name in CLASSES.names]
    expected = torch.stack([torch.stack(of_class).mean(dim=0) for of_class in scores], dim=1)
    method = prepared(DCLIP, clip)
    torch.testing.assert_close(method.logits(x, method.class_features(clip)), expected)
    assert method.prompts == "descriptions"


def test_pooled_features_are_what_zero_shot_reads(clip, x):
    method, scores = prepared(DCLIP, clip, pooling="features"), prepared(DCLIP, clip)
    zero_shot = prepared(ZeroShot, clip)
    logits = method.logits(x, method.class_features(clip))
    assert torch.equal(logits, zero_shot.logits(x, zero_shot.weights))
    lengths = scores.weights.norm(dim=1)
    assert lengths[0] < 0.99, "sentences that do not agree"
    assert lengths[1] == pytest.approx(1.0)
    torch.testing.assert_close(scores.logits(x, scores.weights), logits * lengths)
    assert (method.label, scores.label) == ("CuPL", "classification by description")


def test_one_sentence_a_class_is_zero_shot(clip, x):
    classes = class_text(("bird", "dog"))
    for pooling in ("scores", "features"):
        method = prepared(DCLIP, clip, classes=classes, pooling=pooling)
        zero_shot = prepared(ZeroShot, clip, classes=classes)
        torch.testing.assert_close(method.logits(x, method.weights), zero_shot.logits(x, zero_shot.weights))
        assert method.prompts == "names"
        assert F.cosine_similarity(method.weights, zero_shot.weights).min() == pytest.approx(1.0)


def test_it_learns_from_no_image(clip):
    assert not DCLIP.learns
    assert not list(DCLIP(clip, CLASSES).parameters())


def test_bad_options_are_told(clip):
    with pytest.raises(UserError, match="unknown pooling 'mean'; available: features, scores"):
        DCLIP(clip, CLASSES, pooling="mean")
