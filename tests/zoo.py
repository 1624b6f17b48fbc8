"""Every registered method, and variants of some, for the checks that all of them must pass."""

from functools import cache, partial

from xrvlm.methods import registry
from xrvlm.methods.base import Recipe
from xrvlm.text.class_text import class_text

METHODS = [name for name in registry.targets() if name != "amu_tuning"]    # which needs two towers: test_second.py
VARIANTS = {
    "xr_vlm part_descriptions": ("xr_vlm", {"part_prompts": "descriptions"}),
    "xr_vlm learned_from_descriptions": ("xr_vlm", {"part_prompts": "learned_from_descriptions"}),
    "xr_vlm vectors": ("xr_vlm", {"part_prompts": "vectors"}),
    "xr_vlm shared_then_specific": ("xr_vlm", {"context": "shared_then_specific", "shared_length": 5}),
    "xr_vlm shared words middle": ("xr_vlm", {"context": "shared", "context_words": "a photo of a",
                                              "name_position": "middle"}),
    "xr_vlm unequal parts": ("xr_vlm", {"image_parts": 3, "text_parts": 2, "name_position": "front"}),
    **{f"xr_vlm {head}": ("xr_vlm", {"head": head})
       for head in ("diagonal", "per_class", "per_class_diagonal", "alignment", "visual")},
    "xr_vlm_plus text": ("xr_vlm_plus", {"relate_to": "text"}),
    "xr_vlm_plus classes": ("xr_vlm_plus", {"relate_to": "classes"}),
    "xr_vlm live parts": ("xr_vlm", {"live_parts": True}),
    "xr_vlm text prior": ("xr_vlm", {"prior_weight": 1.0, "learn_prior_weight": True}),
    "xr_vlm per_class shared text prior": ("xr_vlm", {"head": "per_class", "context": "shared", "prior_weight": 0.5}),
    "xr_vlm per_class shared": ("xr_vlm", {"head": "per_class", "context": "shared"}),
    "xr_vlm per_class part_descriptions": ("xr_vlm", {"head": "per_class", "part_prompts": "descriptions"}),
    "xr_vlm per_class_diagonal part_descriptions": ("xr_vlm", {"head": "per_class_diagonal", "image_parts": 2,
                                                               "part_prompts": "descriptions"}),
    "xr_vlm alignment shared": ("xr_vlm", {"head": "alignment", "context": "shared", "name_position": "front"}),
    "coop class-specific": ("coop", {"context": "specific"}),
    "plot class-specific": ("plot", {"text_parts": 2, "context": "specific"}),
    "plot words front": ("plot", {"context_words": "a photo of a", "name_position": "front"}),
    "gallop one each": ("gallop", {"global_prompts": 1, "local_prompts": 1, "top_k": 3, "dropout": 0.0}),
    "cocoop noise": ("cocoop", {"context_words": None, "reduction": 2}),
    "stat_a weights": ("stat_a", {"strength": 0.5, "text_weight": 0.3}),
    "trans_clip weights": ("trans_clip", {"text_weight": 0.2, "shots_weight": 3.0}),
    "coop shared_then_specific": ("coop", {"context": "shared_then_specific", "context_words": "a photo of the"}),
    "clip_adapter wide": ("clip_adapter", {"alpha": 0.6, "reduction": 1}),
    "dclip features": ("dclip", {"pooling": "features"}),
    "proker unprojected": ("proker", {"inputs": "auto", "scaling": "auto", "fit_prior": True}),
    "ss_text apart": ("ss_text", {"text_weight": 4.0, "close_gap": False}),
    "gda alone": ("gda", {"alpha": 100.0}),
    "task_res whole": ("task_res", {"alpha": 1.0}),
    "linear_probe pooled+mid": ("linear_probe", {"inputs": "pooled+mid"}),
    "linear_probe standardised": ("linear_probe", {"inputs": "pooled", "scaling": "standard", "strength": 1.0}),
    "gda unprojected": ("gda", {"inputs": "auto", "scaling": "auto", "fit_prior": True}),
    "tip_adapter_f unprojected": ("tip_adapter_f", {"inputs": "unprojected", "scaling": "l2", "fit_prior": True}),
    "residual_probe standardised": ("residual_probe", {"inputs": "unprojected", "scaling": "standard"}),
    "residual_probe whole prior": ("residual_probe", {"fit_prior": False}),
}
CASES = {name: (name, {}) for name in METHODS} | VARIANTS
OPENED = {"coop", "plot", "plot words front", "xr_vlm per_class shared text prior", "xr_vlm per_class shared",
          "xr_vlm per_class part_descriptions", "xr_vlm per_class_diagonal part_descriptions",
          "xr_vlm alignment shared"}    # by their options
OPEN = OPENED | {case for case, (name, _) in CASES.items() if registry.class_called(name).open_classes}
OTHERS = ("emu", "Tawny Owl", "kite", "hoopoe", "Sarkel's finch")
NAMES = ("Sarkel's finch", "red_wren", "jay", "Grande Aigrette é")
SHORT = Recipe("short", epochs=2, batch_size=6, warmup_epochs=1)


def classes(names=NAMES):
    parts = {name: {"beak": f"a {name} with a short beak.", "wing": f"a {name} with wings."} for name in names}
    return class_text(names, parts=parts)


@cache
def factory(case: str):
    name, options = CASES[case]
    made = registry.find(name)
    small = {"xr_vlm": {"hidden": 8}, "xr_vlm_plus": {"image_parts": 3}}.get(name, {})
    return partial(made.func, **(made.keywords | small | options))
