"""What an adapted model is used for: labels, explanations, an exported file."""
