"""Text of the classes: names and sentences, and prompts that are learned or fixed."""
