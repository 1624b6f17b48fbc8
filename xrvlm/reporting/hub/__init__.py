"""Handing a run over to others on the Hugging Face hub: `xrvlm push`."""
