"""XR-VLM (arXiv 2503.07075) and XR-VLM+, with the parts and the relation heads that both are made of."""
