"""The embedded default: drawn birds to recognise and a tiny CLIP that knows such birds. Needs no network."""
