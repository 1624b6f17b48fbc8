"""The linear relation head of XR-VLM+."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from xrvlm.methods.xr_vlm.relations import RelationHead


class LinearRelations(RelationHead):
    """Relations of every image part with every prompt and with a class-specific vector, in one space of r dimensions.

    A logit is the sum of its relations. r is the number of classes at construction. Not trained by gradient steps:
    `start` computes the codes of the classes in that space, XR-VLM+ then solves for `image_space`.

    Args:
        widths: of the features of each image part; f is their sum.
    """

    linear = True
    text_mean: Tensor                    # (g, 1, d)
    text_space: Tensor                   # (g, d, r)
    own: Tensor                          # (c, r) class-specific vectors

    def __init__(self, embed_dim: int, widths: Sequence[int], text_parts: int, classes: int):
        super().__init__()
        self.sizes, self.widths = (embed_dim, text_parts, classes), tuple(widths)
        self.image_space = nn.Parameter(torch.zeros(sum(widths), classes), requires_grad=False)    # (f, r)
        self.register_buffer("text_mean", torch.zeros(text_parts, 1, embed_dim))
        self.register_buffer("text_space", torch.zeros(text_parts, embed_dim, classes))
        self.register_buffer("own", torch.zeros(classes, classes))
        self.register_load_state_dict_pre_hook(_allocate)

    def start(self, class_features: Tensor, text_share: float, own_share: float) -> Tensor:
        """Set the text space and the class-specific vectors from class features (g, c, d).

        Returns:
            (c, r) codes. Their Gram matrix is `text_share` times that of the class features, centred over the classes
            and scaled to mean length 1, plus `own_share` times the identity.
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
        """A copy for other classes, sharing the tensors.

        Args:
            before: the former index of each class; None for a new class, whose class-specific vector is zero.
        """
        own = self.own.new_zeros(len(before), self.own.shape[1])
        for label, index in enumerate(before):
            if index is not None:
                own[label] = self.own[index]
        # a deep copy, so that the hook for loading is bound to it; around the same tensors
        turned = deepcopy(self, {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())})
        turned.own, turned.sizes = own, (*self.sizes[:2], len(before))
        return turned

    def of_prompts(self, class_features: Tensor) -> Tensor:
        """(g + 1, c, r) codes of the g prompts, then the class-specific vectors."""
        text = torch.einsum("gcd,gdr->gcr", class_features - self.text_mean, self.text_space)
        return torch.cat([text, self.own[None]])

    def relate(self, image_parts: Tensor, prompts: Tensor) -> Tensor:
        """(b, g + 1, m, c) from (b, f); the last prompt is the class-specific vector."""
        pieces = zip(image_parts.split(self.widths, dim=1), self.image_space.split(self.widths), strict=True)
        related = torch.stack([part @ space for part, space in pieces], dim=1)             # (b, m, r)
        return torch.einsum("bmr,gcr->bgmc", related, prompts)

    def score(self, relations: Tensor) -> Tensor:
        """(b, c) logits."""
        return relations.sum(dim=(1, 2))

    def forward(self, image_parts: Tensor, prompts: Tensor) -> Tensor:
        """(b, c) logits from (b, f); equal to `score(relate(...))` with the sums taken first."""
        return image_parts @ self.image_space @ prompts.sum(dim=0).T


def _allocate(head: LinearRelations, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading: r of a head that was turned to other classes is known from the saved tensors only."""
    embed_dim, text_parts, classes = head.sizes
    rank = state[f"{prefix}own"].shape[1] if f"{prefix}own" in state else classes
    space = f"{prefix}image_space"
    if space in state and state[space].ndim == 3:            # of revision 1 of XR-VLM+: (m, d, r)
        state[space] = state[space].flatten(0, 1)
    head.image_space.data = head.image_space.new_empty(sum(head.widths), rank)
    head.text_space = head.text_space.new_empty(text_parts, embed_dim, rank)
    head.own = head.own.new_empty(classes, rank)
