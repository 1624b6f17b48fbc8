"""XR-VLM (arXiv:2503.07075) and XR-VLM+, with the image parts and relation heads that they are made of."""
