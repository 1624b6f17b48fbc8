import torch
import torch.nn.functional as F
from reference import assert_close, load, needs_reference, reference, slow_norm, slow_space

from xrvlm.relations import CrossRelations

NAMES = {
    "image_space.in_norm": "image_in_norm", "image_space.project": "image_proj",
    "image_space.out_norm": "image_out_norm", "text_space.in_norm": "text_in_norm",
    "text_space.project": "text_proj", "text_space.out_norm": "text_out_norm",
    "relation_norm": "relation_norm", "hidden": "hidden", "hidden_norm": "hidden_norm", "classifier": "classifier",
}


def reference_head(tensors) -> CrossRelations:
    head = CrossRelations(16, 4, 4, 5, hidden=32)
    load(head, tensors, {ours: f"head.cross.{theirs}" for ours, theirs in NAMES.items()})
    return head


@needs_reference
def test_cross_agrees_with_the_reference_in_eval_mode():
    tensors = reference()
    logits = reference_head(tensors).eval()(tensors["out.eval.parts"], tensors["in.class_features"])
    assert_close(logits, tensors["out.eval.logits.cross"])


@needs_reference
def test_cross_agrees_with_the_reference_in_training():
    tensors = reference()
    parts = tensors["out.eval.parts"].clone().requires_grad_()
    classes = tensors["in.class_features"].clone().requires_grad_()
    logits = reference_head(tensors).train()(parts, classes)
    loss = F.cross_entropy(logits, tensors["in.labels"].long())
    loss.backward()
    assert parts.grad is not None
    assert classes.grad is not None
    assert_close(logits, tensors["out.train.logits.cross"])
    assert_close(loss[None], tensors["out.train.loss.cross"])
    assert_close(parts.grad, tensors["out.train.grad_parts.cross"])
    assert_close(classes.grad, tensors["out.train.grad_class_features.cross"])


@torch.no_grad()
def test_cross_agrees_with_the_formulas_at_other_sizes():
    torch.manual_seed(0)
    sizes = ((4, 2, 3, 5, 8, 6), (7, 1, 1, 3, 6, 9), (3, 5, 2, 2, 4, 4))
    for batch, image_parts, text_parts, classes, dim, hidden in sizes:
        head = CrossRelations(dim, image_parts, text_parts, classes, hidden=hidden).double()
        v = torch.randn(batch, image_parts, dim, dtype=torch.float64)
        t = torch.randn(text_parts, classes, dim, dtype=torch.float64)
        v_space, t_space = slow_space(v, head.image_space.project), slow_space(t, head.text_space.project)
        relations = torch.tensor([[float(v_space[b, m] @ t_space[g, c]) for g in range(text_parts)
                                   for m in range(image_parts) for c in range(classes)] for b in range(batch)],
                                 dtype=torch.float64)
        hidden_rows = slow_norm(relations) @ head.hidden.weight.T + head.hidden.bias
        activated = torch.where(hidden_rows > 0, hidden_rows, torch.exp(hidden_rows) - 1)
        assert_close(head(v, t), slow_norm(activated) @ head.classifier.weight.T, 1e-9)


def test_a_dead_part_gives_finite_logits_and_gradients():
    head = CrossRelations(8, 3, 2, 4, hidden=5)
    parts = torch.randn(6, 3, 8)
    parts[:, 1] = 0
    parts.requires_grad_()
    head(parts, torch.randn(2, 4, 8)).square().sum().backward()
    assert parts.grad is not None
    assert parts.grad.isfinite().all()
