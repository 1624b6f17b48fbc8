"""Published data sets, read from their official layouts and lists; one module each."""
