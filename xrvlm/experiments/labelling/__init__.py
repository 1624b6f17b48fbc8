"""Work on labels: the file of `predict`, labels that look wrong, images to label next."""
