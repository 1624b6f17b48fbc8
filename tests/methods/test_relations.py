import pytest
import torch
import torch.nn.functional as F
from reference import assert_close, load, needs_reference, reference, slow_norm, slow_space
from torch import Tensor, nn

from xrvlm.methods.xr_vlm.linear_relations import LinearRelations
from xrvlm.methods.xr_vlm.relations import Alignment, CrossRelations, PerClassRelations, RelationHead, VisualParts

SPACES = {f"relations.{side}_space.{ours}": f"{side}_{theirs}" for side in ("image", "text")
          for ours, theirs in (("in_norm", "in_norm"), ("project", "proj"), ("out_norm", "out_norm"))}
PERCEPTRON = {"perceptron.norm": "relation_norm", "perceptron.hidden_norm": "hidden_norm",
              "perceptron.hidden": "hidden", "perceptron.classifier": "classifier"}
RELATED = ("cross", "diagonal", "per_class", "per_class_diagonal")


def build(name: str, dim: int, image_parts: int, text_parts: int, classes: int, hidden: int) -> nn.Module:
    diagonal = name.endswith("diagonal")
    if name.startswith("per_class"):
        return PerClassRelations(dim, image_parts, text_parts, diagonal=diagonal)
    return CrossRelations(dim, image_parts, text_parts, classes, diagonal=diagonal, hidden=hidden)


def reference_head(name: str, tensors: dict[str, Tensor]) -> nn.Module:
    head = build(name, 16, 4, 4, 5, 32)
    load(head, tensors, {ours: f"head.{name}.{theirs}" for ours, theirs in (SPACES | PERCEPTRON).items()})
    return head


def logits_of(head, image_parts: Tensor, class_features: Tensor) -> Tensor:
    return head(image_parts, head.of_prompts(class_features))


@needs_reference
@pytest.mark.parametrize("name", RELATED)
def test_agrees_with_the_reference_in_eval_mode(name):
    tensors = reference()
    logits = logits_of(reference_head(name, tensors).eval(), tensors["out.eval.parts"], tensors["in.class_features"])
    assert_close(logits, tensors[f"out.eval.logits.{name}"])


@needs_reference
@pytest.mark.parametrize("name", RELATED)
def test_agrees_with_the_reference_in_training(name):
    tensors = reference()
    parts = tensors["out.eval.parts"].clone().requires_grad_()
    classes = tensors["in.class_features"].clone().requires_grad_()
    logits = logits_of(reference_head(name, tensors).train(), parts, classes)
    loss = F.cross_entropy(logits, tensors["in.labels"].long())
    loss.backward()
    assert parts.grad is not None
    assert classes.grad is not None
    assert_close(logits, tensors[f"out.train.logits.{name}"])
    assert_close(loss[None], tensors[f"out.train.loss.{name}"])
    assert_close(parts.grad, tensors[f"out.train.grad_parts.{name}"])
    assert_close(classes.grad, tensors[f"out.train.grad_class_features.{name}"])


@needs_reference
def test_alignment_and_visual_agree_with_the_reference():
    tensors = reference()
    parts, classes = tensors["out.eval.parts"], tensors["in.class_features"]
    assert_close(logits_of(Alignment(torch.tensor(100.0)), parts, classes), tensors["out.logits.alignment"])
    head = VisualParts(16, 4, 5, hidden=32)
    names = ("norm", "hidden_norm", "hidden", "classifier")
    load(head, tensors, {f"perceptrons.{part}.{name}": f"head.visual.{part}.{name}" for part in range(4)
                         for name in names})
    assert_close(logits_of(head.eval(), parts, classes), tensors["out.eval.logits.visual"])


SIZES = ((4, 2, 3, 5, 8, 6), (7, 1, 1, 3, 6, 9), (3, 5, 2, 2, 4, 4), (5, 3, 3, 4, 6, 5))


@torch.no_grad()
@pytest.mark.parametrize("name", RELATED)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_formulas_at_other_sizes(name, size):
    batch, image_parts, text_parts, classes, dim, hidden = size
    if name.endswith("diagonal") and image_parts != text_parts:
        pytest.skip("needs as many text parts as image parts")
    torch.manual_seed(0)
    head = build(name, dim, image_parts, text_parts, classes, hidden).double()
    v = torch.randn(batch, image_parts, dim, dtype=torch.float64)
    t = torch.randn(text_parts, classes, dim, dtype=torch.float64)
    v_space = slow_space(v, head.relations.image_space.project)
    t_space = slow_space(t, head.relations.text_space.project)

    def related(b, g, m, c):
        kept = g == m or not name.endswith("diagonal")
        return float(v_space[b, m] @ t_space[g, c]) if kept else 0.0

    images, prompts, parts, kinds = range(batch), range(text_parts), range(image_parts), range(classes)
    if name == "cross":
        rows = [[related(b, g, m, c) for g in prompts for m in parts for c in kinds] for b in images]
    elif name == "diagonal":
        rows = [[related(b, g, m, c) for c in kinds for g in prompts for m in parts] for b in images]
    else:
        rows = [[related(b, g, m, c) for g in prompts for m in parts] for b in images for c in kinds]
    x = head.perceptron.hidden(slow_norm(torch.tensor(rows, dtype=torch.float64)))
    expected = slow_norm(torch.where(x > 0, x, torch.exp(x) - 1)) @ head.perceptron.classifier.weight.T
    assert_close(logits_of(head, v, t), expected.view(batch, classes), 1e-9)


@torch.no_grad()
def test_alignment_and_visual_agree_with_the_formulas():
    torch.manual_seed(0)
    v, t = torch.randn(4, 3, 6, dtype=torch.float64), torch.randn(3, 5, 6, dtype=torch.float64)
    expected = torch.tensor([[sum(float(v[b, i] @ t[i, c] / (v[b, i].norm() + 1e-6) / (t[i, c].norm() + 1e-6))
                                  for i in range(3)) / 3 * 20 for c in range(5)] for b in range(4)])
    assert_close(logits_of(Alignment(torch.tensor(20.0)), v, t), expected.double(), 1e-6)
    head = VisualParts(6, 3, 5, hidden=7).double()
    logits = []
    for part, perceptron in enumerate(head.perceptrons):
        x = slow_norm(64 * v[:, part]) @ perceptron.hidden.weight.T + perceptron.hidden.bias
        x = slow_norm(torch.where(x > 0, x, torch.exp(x) - 1))
        logits.append(x @ perceptron.classifier.weight.T + perceptron.classifier.bias)
    assert_close(logits_of(head, v, t), sum(logits) / 3, 1e-9)


def test_a_dead_part_gives_finite_logits_and_gradients():
    head = CrossRelations(8, 3, 2, 4, hidden=5)
    parts = torch.randn(6, 3, 8)
    parts[:, 1] = 0
    parts.requires_grad_()
    logits_of(head, parts, torch.randn(2, 4, 8)).square().sum().backward()
    assert parts.grad is not None
    assert parts.grad.isfinite().all()


def all_heads(dim: int, parts: int, classes: int) -> dict[str, RelationHead]:
    torch.manual_seed(0)
    heads = {name: build(name, dim, parts, parts, classes, 7) for name in RELATED}
    return heads | {"alignment": Alignment(torch.tensor(20.0)), "visual": VisualParts(dim, parts, classes, hidden=7)}


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(all_heads(4, 1, 2)))
def test_the_steps_of_a_head(name):
    head = all_heads(8, 3, 5)[name]
    v, t = torch.randn(6, 3, 8), torch.randn(3, 5, 8)
    for _ in range(3):
        logits_of(head, v, t)                                # moves the running statistics
    head.eval()
    prompts = head.of_prompts(t)
    relations = head.relate(v, prompts)
    assert relations.shape == (6, 1 if head.linear else 3, 3, 5)
    assert torch.equal(head.score(relations), head(v, prompts))
    assert head.baseline().expand(relations.shape).isfinite().all()
    other = torch.randn(relations.shape)
    sum_of_scores = head.score(relations) + head.score(other)
    assert torch.allclose(head.score(relations + other), sum_of_scores, atol=1e-4) == head.linear


@torch.no_grad()
@pytest.mark.parametrize("name", RELATED)
def test_the_baseline_is_where_the_first_normalisation_gives_zero(name):
    head = all_heads(8, 3, 5)[name]
    for _ in range(3):
        logits_of(head, torch.randn(6, 3, 8), torch.randn(3, 5, 8))
    seen = []
    head.eval().perceptron.norm.register_forward_hook(lambda _norm, _inputs, output: seen.append(output))
    head.score(head.baseline().expand(1, 3, 3, 5))
    assert head.baseline().abs().max() > 0
    assert seen[0].abs().max() < 1e-5


WIDTHS = (4, 6, 3)                       # of the image parts


def started(text_share: float = 1.0, own_share: float = 0.1) -> tuple[LinearRelations, Tensor, Tensor]:
    """Linear relations of 3 image parts and 2 prompts with a drawn image space, class features and codes."""
    torch.manual_seed(0)
    head, class_features = LinearRelations(6, WIDTHS, 2, 5), 1 + torch.randn(2, 5, 6)
    class_features[1] *= 7                                   # the prompts are of other lengths
    codes = head.start(class_features, text_share, own_share)
    head.image_space.copy_(torch.randn(head.image_space.shape))
    return head, class_features, codes


@torch.no_grad()
@pytest.mark.parametrize(("text_share", "own_share"), [(1.0, 0.1), (1.0, 0.0), (0.0, 0.1), (0.5, 2.0)])
def test_codes_have_the_products_that_the_shares_say(text_share, own_share):
    _, class_features, codes = started(text_share, own_share)
    expected = torch.zeros(5, 5)
    for prompt in class_features:
        centred = prompt - sum(prompt) / 5
        length = sum(float((row ** 2).sum() ** 0.5) for row in centred) / 5
        expected += text_share / 2 * (centred / length) @ (centred / length).T
    expected += own_share * torch.eye(5)
    assert codes.shape == (5, 5)
    assert torch.allclose(codes @ codes.T, expected, atol=1e-5)


@torch.no_grad()
def test_linear_relations_agree_with_the_formula():
    head, class_features, codes = started()
    parts = torch.randn(4, 13)
    pieces, spaces = parts.split(WIDTHS, dim=1), head.image_space.split(WIDTHS)
    expected = torch.zeros(4, 5)
    for image in range(4):
        for label in range(5):
            for part in range(3):
                expected[image, label] += pieces[part][image] @ spaces[part] @ codes[label]
    assert torch.allclose(logits_of(head, parts, class_features), expected, atol=1e-4)
    relations = head.relate(parts, head.of_prompts(class_features))
    assert relations.shape == (4, 3, 3, 5)
    assert torch.allclose(head.score(relations), expected, atol=1e-4)
    for prompt in range(2):                                  # A_ij of the docstring: part 1 with each prompt
        between = spaces[1] @ head.text_space[prompt].T
        centred = class_features[prompt] - class_features[prompt].mean(dim=0)
        assert torch.allclose(relations[:, prompt, 1], pieces[1] @ between @ centred.T, atol=1e-4)
    assert torch.allclose(relations[:, 2, 1], pieces[1] @ spaces[1] @ head.own.T, atol=1e-4)
    assert head.linear
    assert head.baseline() == 0


@torch.no_grad()
def test_linear_relations_turned_to_other_classes():
    head, class_features, _ = started()
    parts, before = torch.randn(4, 13), {name: value.clone() for name, value in head.state_dict().items()}
    new = torch.randn(2, 1, 6)
    turned = head.for_classes([3, None, 0])
    features = torch.cat([class_features[:, [3]], new, class_features[:, [0]]], dim=1)     # (g, 3, d)
    own, scores = logits_of(head, parts, class_features), logits_of(turned, parts, features)
    assert torch.allclose(scores[:, [0, 2]], own[:, [3, 0]], atol=1e-5)
    assert torch.equal(turned.own[[0, 2]], head.own[[3, 0]])
    assert turned.own[1].abs().max() == 0
    assert turned.relate(parts, turned.of_prompts(features))[:, 2, :, 1].abs().max() == 0
    assert turned.image_space is head.image_space, "what was learned is shared"
    permuted = head.for_classes([4, 2, 0, 1, 3])
    scores = logits_of(permuted, parts, class_features[:, [4, 2, 0, 1, 3]])
    assert torch.allclose(scores, own[:, [4, 2, 0, 1, 3]], atol=1e-5)
    assert head.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("places", [[3, None], [0, None, None, 1, 2, None, 4, 3]], ids=["fewer", "more"])
def test_the_state_of_turned_relations_can_be_loaded(places):
    head, _, _ = started()
    turned = head.for_classes(places)
    parts, features = torch.randn(4, 13), torch.randn(2, len(places), 6)
    expected = logits_of(turned, parts, features)
    state = {name: value.clone() for name, value in turned.state_dict().items()}
    assert state["own"].shape == (len(places), 5), "r stays that of the classes trained on"
    fresh = LinearRelations(6, WIDTHS, 2, len(places))
    fresh.load_state_dict(state)
    assert torch.equal(logits_of(fresh, parts, features), expected)
    own = head.own.clone()
    turned.load_state_dict(state)
    assert torch.equal(logits_of(turned, parts, features), expected)
    assert torch.equal(head.own, own), "loading into the turned one leaves the original alone"
    again = turned.for_classes([1, 0])
    assert torch.allclose(logits_of(again, parts, features[:, [1, 0]]), expected[:, [1, 0]], atol=1e-5)
