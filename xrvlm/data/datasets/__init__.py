"""The fine-grained data sets of the XR-VLM paper, read from their official layouts and lists; one module each."""
