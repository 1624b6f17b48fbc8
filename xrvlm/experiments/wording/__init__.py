"""Words for the classes: asked of a language model, and chosen by labelled images."""
