"""The language side: class names and sentences, and prompts that are learned or fixed."""
