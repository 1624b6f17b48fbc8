"""The command line: the only importer of hydra and omegaconf."""
