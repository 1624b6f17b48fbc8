import pytest

from xrvlm.errors import UserError
from xrvlm.methods import CoOp, TipAdapter
from xrvlm.methods.base import Recipe, chosen_recipe, recipe_named

OWN = CoOp.recipe


def test_recipes_by_name():
    fast, adamw = recipe_named("fast"), recipe_named("adamw")
    assert fast == Recipe("fast", epochs=50, learning_rate=4e-3, text_every=10, reestimate=True)
    assert adamw == Recipe("adamw", epochs=60, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01)
    with pytest.raises(UserError, match="unknown recipe 'fats'; did you mean 'fast'.*available: adamw, fast, own"):
        recipe_named("fats")


def test_a_changed_recipe_is_marked_once():
    assert OWN.changed() is OWN
    assert OWN.changed(epochs=None, batch_size=OWN.batch_size) is OWN
    changed = OWN.changed(epochs=3, soup=[0.5, 1], grad_clip=None)
    assert (changed.name, changed.epochs, changed.soup) == ("coop (changed)", 3, (0.5, 1.0))
    assert (changed.batch_size, changed.learning_rate) == (OWN.batch_size, OWN.learning_rate)
    assert changed.changed(momentum=0.5).name == "coop (changed)"
    with pytest.raises(UserError, match="unknown option 'epoch'; did you mean 'epochs'.*available: .*epochs.*"):
        OWN.changed(epoch=3)


def test_the_recipe_of_a_method_unless_another_is_asked_for():
    assert chosen_recipe(OWN) is chosen_recipe(OWN, "own") is chosen_recipe(OWN, OWN) is OWN
    assert chosen_recipe(OWN, "fast") == recipe_named("fast")
    assert chosen_recipe(OWN, None, {"epochs": 3}) == OWN.changed(epochs=3)
    assert chosen_recipe(OWN, "fast", {"epochs": 3}).name == "fast (changed)"
    assert chosen_recipe(OWN, TipAdapter.recipe).epochs == 0
