"""The linear relation head of XR-VLM+."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from xrvlm.methods.xr_vlm.relations import RelationHead


class LinearRelations(RelationHead):
    """Every image part with every prompt of every class, and with a vector of the class's own, in one space of r
    dimensions; a logit is the sum of the relations. r is the number of classes that it was made for.

    Not trained by steps: `start` gives the codes of the classes in that space, `image_space` is then solved for.
    """

    linear = True
    text_mean: Tensor                    # (g, 1, d)
    text_space: Tensor                   # (g, d, r)
    own: Tensor                          # (c, r)

    def __init__(self, embed_dim: int, image_parts: int, text_parts: int, classes: int):
        super().__init__()
        self.sizes = embed_dim, image_parts, text_parts, classes
        self.image_space = nn.Parameter(torch.zeros(image_parts, embed_dim, classes), requires_grad=False)
        self.register_buffer("text_mean", torch.zeros(text_parts, 1, embed_dim))
        self.register_buffer("text_space", torch.zeros(text_parts, embed_dim, classes))
        self.register_buffer("own", torch.zeros(classes, classes))
        self.register_load_state_dict_pre_hook(_allocate)

    def start(self, class_features: Tensor, text_share: float, own_share: float) -> Tensor:
        """(c, r) codes whose products are `text_share` times those of the class features (g, c, d), centred over the
        classes and of mean length 1 in all, plus `own_share` where a class meets itself.
        """
        text_parts, classes, width = class_features.shape
        self.text_mean.copy_(class_features.mean(dim=1, keepdim=True))
        centred = class_features - self.text_mean                                          # (g, c, d)
        scale = (text_share / text_parts) ** 0.5 / centred.norm(dim=-1).mean(dim=1).clamp(min=1e-6)    # (g,)
        text = (scale[:, None, None] * centred).transpose(0, 1).flatten(1)                 # (c, g * d)
        wide = torch.cat([text, own_share ** 0.5 * torch.eye(classes, device=text.device)], dim=1)
        space = torch.linalg.svd(wide, full_matrices=False).Vh.T                           # (g * d + c, r)
        self.text_space.copy_(scale[:, None, None] * space[:text_parts * width].view(text_parts, width, classes))
        self.own.copy_(own_share ** 0.5 * space[text_parts * width:])
        return wide @ space

    def for_classes(self, before: Sequence[int | None]) -> "LinearRelations":
        """The same relations for other classes; `before` says where each stood, None for a new one, which has no vector
        of its own.
        """
        own = self.own.new_zeros(len(before), self.own.shape[1])
        for label, place in enumerate(before):
            if place is not None:
                own[label] = self.own[place]
        # deep, so that its hook for loading is its own; around the same tensors
        turned = deepcopy(self, {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())})
        turned.own, turned.sizes = own, (*self.sizes[:3], len(before))
        return turned

    def of_prompts(self, class_features: Tensor) -> Tensor:
        """(g + 1, c, r) codes; the last row is the classes' own vectors."""
        text = torch.einsum("gcd,gdr->gcr", class_features - self.text_mean, self.text_space)
        return torch.cat([text, self.own[None]])

    def relate(self, image_parts: Tensor, prompts: Tensor) -> Tensor:
        """(b, g + 1, m, c); the last row of prompts is the class's own vector."""
        return torch.einsum("bmr,gcr->bgmc", torch.einsum("bmd,mdr->bmr", image_parts, self.image_space), prompts)

    def score(self, relations: Tensor) -> Tensor:
        """(b, c) logits."""
        return relations.sum(dim=(1, 2))

    def forward(self, image_parts: Tensor, prompts: Tensor) -> Tensor:
        """(b, c) logits, the sums taken first."""
        return torch.einsum("bmd,mdr->br", image_parts, self.image_space) @ prompts.sum(dim=0).T


def _allocate(head: LinearRelations, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """The r of a head that was turned to other classes is known from its state alone."""
    embed_dim, image_parts, text_parts, classes = head.sizes
    rank = state[f"{prefix}own"].shape[1] if f"{prefix}own" in state else classes
    head.image_space.data = head.image_space.new_empty(image_parts, embed_dim, rank)
    head.text_space = head.text_space.new_empty(text_parts, embed_dim, rank)
    head.own = head.own.new_empty(classes, rank)
