"""A page that answers about photos that are dropped on it: `xrvlm serve`."""
